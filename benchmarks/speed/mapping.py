"""How fast and how small mapping is.

    python benchmarks/speed/mapping.py forward [--side 10000]    predict beside its forward passes alone
    python benchmarks/speed/mapping.py memory [--sides 4096 20000]   peak resident memory, by the side of the scene
    python benchmarks/speed/mapping.py pixels                    a patch classifier beside a loader of single patches
    python benchmarks/speed/mapping.py workers [--side 4096]     two worker processes beside one
    python benchmarks/speed/mapping.py bfloat16 [--side 2048]    bfloat16 beside float32: speed, and classes that change

Scenes are mosaics of any size of one written file of 2,048 x 2,048 px with 12 + 2 bands (`flat_scene`). Each
measurement is a process of its own, in turns; medians of `--repeats`. Seconds are of the clock; `cpu` are those of all
threads, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as landfuse sets it where it is imported first

import flat_scene
import numpy as np
import torch
from flat_scene import BANDS, BASE, mosaic
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.mapping.cluster import cluster_runner
from landfuse.mapping.engine import Engine, map_blocks
from landfuse.mapping.predict import plan_map, predict
from landfuse.models import register
from landfuse.models.base import FusionModel
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import Settings

UNET = ModelSpec("stacked", {"architecture": "Unet", "encoder": "resnet18", "view": 256})
PATCHES = ModelSpec("two_branch", {"view": 11})
STRIDE = 192


class Averages(FusionModel):
    """Averages its view: every pixel of it counts, and it costs almost nothing."""

    Settings = Settings

    def __init__(self, modalities, classes, config):
        super().__init__(modalities, classes, view=256, core=256)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        mean = sum(image.mean(dim=(1, 2, 3)) for image in images.values())
        shifts = torch.arange(self.classes, dtype=torch.float32)
        scores = torch.cos(mean[:, None] * 3 + shifts)
        return scores[:, :, None, None].expand(-1, -1, self.core, self.core)


register("averages", Averages)


def place(spec: ModelSpec, side: int, folder: Path) -> tuple[Bundle, Scene]:
    return flat_scene.place(spec, side, folder, None if spec is PATCHES else STRIDE)


def timed(work: Callable[[], object]) -> dict[str, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}


def cpu_of(process: BaseProcess) -> float:
    """Seconds of all threads of a process, as Linux counts them."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@torch.inference_mode()
def forward_alone(classifier: Bundle, scene: Scene, windows: int | None = None) -> None:
    """As many forward passes as mapping takes, on a batch of windows in memory."""
    engine = Engine(classifier, scene)
    view = classifier.model.view
    side = min(scene.grid.height, 512)
    patchwork = engine.read(engine.alone(Window(0, 0, side, side)))
    rows = torch.arange(engine.batch) % 7
    images = patchwork.views(rows, rows, view)  # channels last, as mapping has them
    for _ in range(-(-(windows or engine.windows) // engine.batch)):
        classifier.model(images)


class Patches(Dataset):
    """A patch for each pixel, cut out one by one, as the repositories of patch classifiers do."""

    def __init__(self, image: Tensor, view: int, count: int) -> None:
        halo = view // 2
        self.padded = torch.nn.functional.pad(image[None], (halo,) * 4, mode="reflect")[0]
        self.view, self.width, self.count = view, image.shape[2], count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        row, col = divmod(index, self.width)
        return self.padded[:, row : row + self.view, col : col + self.view]


@torch.inference_mode()
def loader_loop(classifier: Bundle, scene: Scene) -> None:
    image = torch.from_numpy(np.concatenate([scene.read(name, scene.grid.window) for name in BANDS]))
    patches = Patches(image, classifier.model.view, scene.grid.window.pixels)
    for batch in DataLoader(patches, batch_size=512):
        classifier.model(dict(zip(BANDS, batch.split(list(BANDS.values()), dim=1), strict=True))).argmax(dim=1)


def classes_of(classifier: Bundle, scene: Scene, precision: str, path: Path) -> None:
    predict(classifier, scene, path, precision=precision, restart=True)  # type: ignore[arg-type]


def one(what: str, side: int, folder: Path) -> dict[str, float]:
    """One measurement, in this process."""
    out = folder / f"{what}.tif"
    spec = PATCHES if what.startswith("pixels") else ModelSpec("averages") if what == "memory" else UNET
    classifier, scene = place(spec, side, folder)
    if what.endswith("forward"):
        found = timed(lambda: forward_alone(classifier, scene))
    elif what == "pixels-loader":
        found = timed(lambda: loader_loop(classifier, scene))
    elif what == "pixels-map":
        found = timed(lambda: [None for _ in map_blocks(classifier, scene)])
    elif what in ("float32", "bfloat16"):
        found = timed(lambda: classes_of(classifier, scene, what, out))
    elif what.startswith("workers"):
        classifier.save(folder / "bundle")
        with cluster_runner(workers=int(what[-1]), bundle=folder / "bundle") as run:
            predict(classifier, place(spec, 256, folder)[1], folder / "warm.tif", run=run, block=64)
            found = timed(lambda: predict(classifier, scene, out, run=run, restart=True))
            found["cpu"] = sum(map(cpu_of, multiprocessing.active_children()))
        plan = plan_map(classifier, scene, out, workers=run.workers)
        found |= {"recomputed": plan.recomputed_fraction, "halo": plan.halo_fraction, "block": plan.block}
    else:
        found = timed(lambda: predict(classifier, scene, out, restart=True))
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def measured(names: list[str], side: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of each measurement, in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.repeats):
        for name in names:
            command = [sys.executable, __file__, "one", name, str(side), "--folder", str(options.folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in found.items()
    }


def reported(name: str, values: dict[str, float], pixels: int) -> str:
    return (
        f"{name}: {values['seconds']:.1f} s ({values['cpu']:.1f} s cpu), {pixels / values['seconds'] / 1e6:.4g} Mpx/s, "
        f"peak {values['peak']:.2f} GiB"
    )


def ratio(a: dict[str, float], b: dict[str, float]) -> str:
    return f"{a['seconds'] / b['seconds']:.2f} x in time, {a['cpu'] / b['cpu']:.2f} x in cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["forward", "memory", "pixels", "workers", "bfloat16", "one"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--side", type=int, help="of the scene, px")
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 20000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/landfuse-speed"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "one":
        print(json.dumps(one(options.rest[0], int(options.rest[1]), options.folder)))
        return
    for name in BANDS:
        mosaic(name, BASE, options.folder)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.what == "memory":
        peaks = {side: measured(["memory"], side, options)["memory"] for side in options.sides}
        for side, values in peaks.items():
            print(reported(f"{side} x {side}", values, side * side))
        first, *_, last = (values["peak"] for values in peaks.values())
        print(f"difference: {last / first - 1:+.1%}")
        return
    side = options.side or {"forward": 10_000, "pixels": 256, "workers": 4096, "bfloat16": 2048}[options.what]
    names = {
        "forward": ["forward", "predict"],
        "pixels": ["pixels-forward", "pixels-map", "pixels-loader"],
        "workers": ["workers-1", "workers-2"],
        "bfloat16": ["float32", "bfloat16"],
    }[options.what]
    found = measured(names, side, options)
    for name, values in found.items():
        print(reported(name, values, side * side))
    a, b = found[names[1]], found[names[0]]
    print(f"{names[1]} / {names[0]}: {ratio(a, b)}")
    if options.what == "pixels":
        print(f"pixels-loader / pixels-map: {ratio(found['pixels-loader'], a)}")
    if options.what == "workers":
        print(f"blocks of {a['block']:.0f} px: {a['recomputed']:.1%} windows recomputed, {a['halo']:.1%} more read")
    if options.what == "bfloat16":
        maps = [GdalRaster(str(options.folder / f"{name}.tif")).read(Window(0, 0, side, side)) for name in names]
        print(f"share of pixels whose class changes: {(maps[0] != maps[1]).mean():.4%}")


if __name__ == "__main__":
    main()
