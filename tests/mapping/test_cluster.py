"""A map by several processes has the bytes of one by a single process, also if one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import distributed
import pytest
import rasterio
import torch

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import ClusterError, IncompleteError, MissingExtraError, OutputError
from landfuse.mapping import cluster as module
from landfuse.mapping.cluster import cluster_runner
from landfuse.mapping.engine import BlockMap
from landfuse.mapping.predict import Runner, predict
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap


@pytest.fixture(scope="module")
def processes() -> Iterator[Runner]:
    """Two worker processes; they die in these tests, and come again."""
    with cluster_runner(workers=2) as run:
        yield run


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler, with a worker in a thread."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options, protocol="tcp", silence_logs=50) as running:
        yield running.scheduler_address


def scene_on_disk(folder: Path) -> Scene:
    flat = simulate_flat(40, 1100, {"a": 3})
    write_raster(folder / "a.tif", flat.grid, flat.read("a", flat.grid.window))
    return replace(flat, modalities={"a": SceneModality(GdalRaster(str(folder / "a.tif")))})


def exchange(path: Path, place: int, content: bytes) -> bytes:
    """Writes into a file without changing its time, and gives what was there."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        before = file.read(len(content))
        file.seek(place)
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return before


def bundle_of(scene: Scene) -> Bundle:
    torch.manual_seed(0)
    maps = {"a": PixelMap(torch.randn(2, 3), torch.randn(2))}
    spec = ModelSpec("stacked", {"view": 32, "core": 24, "architecture": "Linknet", "encoder": "tu-test_resnet"})
    return Bundle(spec, maps, {"a": scene.modalities["a"].info}, scene.legend, 16, weights="smooth").eval()


def of_the_worker() -> int:
    return multiprocessing.active_children()[0].pid or 0


def of_the_fork_server() -> int:
    return int(forkserver._forkserver._forkserver_pid or 0)  # type: ignore[attr-defined]


def test_the_same_bytes_though_processes_are_killed(processes: Runner, tmp_path: Path) -> None:
    scene = scene_on_disk(tmp_path)
    bundle = bundle_of(scene)
    predict(bundle, scene, tmp_path / "one" / "map.tif", entropy=True)
    reported: list[int] = []

    def kill(done: int, total: int) -> None:
        if len(reported) in (5, 40):
            os.kill(of_the_worker() if len(reported) == 5 else of_the_fork_server(), signal.SIGKILL)
        reported.append(done)

    predict(bundle, scene, tmp_path / "two" / "map.tif", block=20, entropy=True, run=processes, progress=kill)
    assert reported == sorted(reported)
    assert reported[-1] == 40 * 1100
    assert len(reported) == 2 * 55 + 1, "a block is reported once"
    for name in ("map.tif", "map_entropy.tif", "map.tif.aux.xml"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert not (tmp_path / "two" / "map.tif.parts").exists()


def deadly(order: bytes, name: str, windows: list[Window]) -> None:
    os._exit(9)


def test_a_block_that_kills_every_worker_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Runner
) -> None:
    scene = scene_on_disk(tmp_path)
    monkeypatch.setattr(module, "_map_strip", deadly)
    with pytest.raises(ClusterError, match="several workers died of one block"):
        predict(bundle_of(scene), scene, tmp_path / "map.tif", run=processes)


CLIENT = """
import os, time
from landfuse.mapping.cluster import _processes
with _processes(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 100)
    time.sleep(100)
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks where Linux lists sockets")
def test_workers_end_with_their_client_and_open_no_port() -> None:
    client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    worker = int(client.stdout.readline())
    files = {str(place.readlink()) for place in Path(f"/proc/{worker}/fd").iterdir() if place.is_symlink()}
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert not {f"socket:[{line[9]}]" for line in listening} & files
    client.kill()
    client.wait()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the worker goes on alone")


def thread_runner(threads: ThreadPoolExecutor, workers: Callable[[], int], call: Callable[..., Any]) -> Runner:
    """Maps by `call` in threads, as many of which are there as `workers` says."""
    pool = module._Pool(lambda _, *rest: threads.submit(call, *rest), bytes, workers, False, BrokenProcessPool, 0)
    return Runner(lambda *job: module._run(pool, *job, None))


def test_a_worker_that_comes_later_gets_half_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_on_disk(tmp_path)
    bundle = bundle_of(scene)
    predict(bundle, scene, tmp_path / "one.tif", batch=4)
    written: list[tuple[Window, str]] = []
    write = module._StripJob.write

    def slow(job: module._StripJob, part: BlockMap) -> None:
        written.append((part.window, job.file.name))
        time.sleep(0.02)
        write(job, part)

    def stop(done: int, total: int) -> None:
        if done > total / 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._StripJob, "write", slow)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    path = tmp_path / "two.tif"
    with ThreadPoolExecutor(2) as threads:
        run = thread_runner(threads, lambda: 1 + (len(written) > 2), module._map_strip)
        with pytest.raises(KeyboardInterrupt):
            predict(bundle, scene, path, block=40, batch=4, run=run, progress=stop)
    assert len(written) < 20, "workers stop when the command ends"
    written.clear()
    with ThreadPoolExecutor(2) as threads:
        run = thread_runner(threads, lambda: 1 + (len(written) > 2), module._map_strip)
        predict(bundle, scene, path, block=40, batch=4, run=run)
    windows, strips = zip(*written, strict=True)
    assert len(set(strips)) > 1
    assert len(windows) - len(set(windows)) <= 4 * len(set(strips)), "few blocks are mapped twice"
    assert path.read_bytes() == (tmp_path / "one.tif").read_bytes()


def test_what_is_left_of_a_strip_is_begun_again_while_it_gets_shorter(tmp_path: Path) -> None:
    scene = scene_on_disk(tmp_path)
    bundle = bundle_of(scene)
    predict(bundle, scene, tmp_path / "one.tif", batch=4)

    def dies(order: bytes, name: str, windows: list[Window]) -> None:
        module._map_strip(order, name, windows[:5])
        raise BrokenProcessPool

    with ThreadPoolExecutor(1) as threads:
        predict(bundle, scene, tmp_path / "two.tif", block=40, batch=4, run=thread_runner(threads, lambda: 1, dies))
    assert (tmp_path / "two.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()


def test_workers_that_do_not_see_the_output_send_their_blocks_to_the_client(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_on_disk(tmp_path)
    bundle = bundle_of(scene)
    bundle.save(tmp_path / "bundle")
    predict(bundle, scene, tmp_path / "one" / "map.tif", entropy=True)
    order = module._order
    elsewhere = tmp_path / "a disk of another machine" / "map.tif"
    monkeypatch.setattr(module, "_order", lambda job, bundle: replace(order(job, bundle), output=elsewhere))
    monkeypatch.setattr(module, "_SENT", 3 * 40 * 40 * 2)  # three blocks at once, of 28
    path, seen = tmp_path / "two" / "map.tif", set()

    def look(done: int, total: int) -> None:
        seen.update(part.name for part in path.with_name("map.tif.parts").glob("*.tif"))
        if done == total:
            assert len(seen) == 28

    with cluster_runner(scheduler, bundle=tmp_path / "bundle") as run:
        predict(bundle, scene, path, block=40, entropy=True, run=run, progress=look)
    for name in ("map.tif", "map_entropy.tif"):
        assert path.with_name(name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not elsewhere.parent.exists()
    assert not path.with_name("map.tif.parts").exists()


@pytest.mark.parametrize("sees_the_output", [True, False])
def test_workers_of_two_kinds_of_cards_are_refused(
    sees_the_output: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, order, cards = scene_on_disk(tmp_path), module._order, iter(["an H100", "an H100", "an A100"])
    if not sees_the_output:
        elsewhere = tmp_path / "elsewhere" / "map.tif"
        monkeypatch.setattr(module, "_order", lambda job, bundle: replace(order(job, bundle), output=elsewhere))

    def on_a_card(order: bytes, name: str, windows: list[Window]) -> object:
        predictor = module._job(order).engine.predictor
        vars(predictor)["identity"] = {**predictor.identity, "the GPU": next(cards)}
        return module._map_strip(order, name, windows[:5])

    with ThreadPoolExecutor(1) as threads, pytest.raises(ClusterError, match=r"cpu, an A100, and .* cpu, an H100\n"):
        predict(
            bundle_of(scene), scene, tmp_path / "map.tif", block=40, run=thread_runner(threads, lambda: 1, on_a_card)
        )
    assert len(list((tmp_path / "map.tif.parts").glob("*.tif"))) == 10
    assert not (tmp_path / "map.tif").exists()


def test_faults_and_interruptions_are_as_in_one_process(processes: Runner, tmp_path: Path) -> None:
    scene = scene_on_disk(tmp_path)
    bundle = bundle_of(scene)
    path = tmp_path / "maps" / "map.tif"

    def stop(done: int, total: int) -> None:
        if done > 0:  # early: workers go on until they hear of it, and must not reach what is broken next
            raise KeyboardInterrupt

    with rasterio.open(tmp_path / "a.tif") as file:
        first_byte = int(file.get_tag_item("BLOCK_OFFSET_2_0", "TIFF", bidx=1))  # of the pixels from column 1,024 on
    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        predict(bundle, scene, path, block=32, run=processes, progress=stop)
    before = exchange(tmp_path / "a.tif", first_byte, bytes(100))
    with pytest.raises(IncompleteError, match=r"8 of 70 blocks(.|\n)*row 32, column 1088 \(8 x 12 px\): .*a\.tif"):
        predict(bundle, scene, path, block=32, run=processes, progress=lambda done, total: first.append(done))
    assert first[0] > 0, "it goes on"
    exchange(tmp_path / "a.tif", first_byte, before)
    predict(bundle, scene, path, block=32, run=processes)
    predict(bundle, scene, tmp_path / "one.tif")
    assert path.read_bytes() == (tmp_path / "one.tif").read_bytes()


def test_a_worker_that_cannot_write_ends_it(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_on_disk(tmp_path)

    def away(*_: Any, **__: Any) -> None:
        raise OutputError("x.tif cannot be written: No space left on device", "room", "free some")

    monkeypatch.setattr(module, "_map_strip", away)
    with cluster_runner(scheduler) as run, pytest.raises(OutputError, match="No space left"):
        predict(bundle_of(scene), scene, tmp_path / "map.tif", run=run)
    assert not (tmp_path / "map.tif").exists()


def test_a_scheduler_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda *args, **options: client(*args, **{**options, "timeout": 0.3}))
    for options, message in (
        ({"scheduler": "tcp://127.0.0.1:9"}, r"tcp://127\.0\.0\.1:9 cannot be reached"),
        ({"scheduler": "nowhere"}, r"nowhere cannot be reached"),
        ({"scheduler_file": tmp_path / "no.json"}, r"no\.json cannot be reached: there is no file"),
    ):
        with pytest.raises(ClusterError, match=message), cluster_runner(**options):
            pass
    (tmp_path / "no.json").write_text("{}")
    assert not [one for one in caplog.records if one.name.startswith(("distributed", "asyncio"))]
    with pytest.raises(ClusterError, match="cannot be reached"), cluster_runner(scheduler_file=tmp_path / "no.json"):
        pass


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r'pip install "landfuse\[cluster\]"'), cluster_runner("tcp://h:1"):
        pass
