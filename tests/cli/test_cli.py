"""The command: what it says, with which exit code, and never a traceback for a mistake of the user."""

from __future__ import annotations

import errno
import importlib
import io
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from landfuse.mapping.part_folder import PartFolder
from landfuse.mapping.window_owners import BlockWindows
from landfuse.models import SETTINGS
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid

Run = Callable[..., Any]


def scene_like(place: Path, folder: Path, **changes: Any) -> Path:
    """A scene file beside other files that reads those of the small scene."""
    text = yaml.safe_load((place / "scene.yaml").read_text())
    text["root"] = str(place)
    for key, value in changes.items():
        if value is None:
            text.pop(key)
        else:
            text[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    return folder / "scene.yaml"


def test_from_files_to_a_scored_map_by_four_commands(landfuse: Run, place: Path, tmp_path: Path) -> None:
    done = landfuse("check", place)
    assert done.code == 0, done.err
    assert "no fault found" in done.out
    for word in ("EPSG:32632", "field 4", "leak report", "float32"):
        assert word in done.out

    assert done.err.splitlines()[-1].startswith("next: write a recipe")

    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"scene": str(place / "scene.yaml"), "model": "forest"}))
    done = landfuse("train", tmp_path / "r.yaml", "model={name: forest, trees: 9}", f"run={tmp_path / 'run'}", "-q")
    assert done.code == 0, done.err
    assert "next:" not in done.err, "it is quiet"
    assert done.out.rstrip().endswith(f"bundle: {tmp_path / 'run' / 'bundle'}")
    test = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert f"OA {test['OA']:.4f}" in done.out

    done = landfuse("predict", tmp_path / "run", place, "-o", tmp_path / "map.tif", "--confidence", "--picture")
    assert done.code == 0, done.err
    assert f"map: {tmp_path / 'map.tif'}" in done.out
    assert done.err.endswith(f"next: landfuse evaluate {tmp_path / 'map.tif'} {place}\n")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    done = landfuse(
        "evaluate", tmp_path / "map.tif", place, "--split", tmp_path / "run" / "split", "-o", tmp_path / "s"
    )
    assert done.code == 0, done.err
    for name in ("OA", "AA", "kappa", "mF1", "mIoU"):
        assert f"{name} {test[name]:.4f}" in done.out
    assert json.loads((tmp_path / "s" / "scores.json").read_text())["scores"]["OA"] == test["OA"]

    done = landfuse("train", tmp_path / "r.yaml", "model={name: forest, trees: 9}", f"run={tmp_path / 'run'}")
    assert done.code == 0
    assert "has ended before" in " ".join(done.err.split())


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landfuse: Run) -> None:
    demo = importlib.import_module("landfuse.simulate.demo")
    small = demo._RECIPE | {
        "samples": {"batch": 64, "balanced": True, "windows": 1500},
        "training": {"epochs": 3, "rate": 4e-3, "patience": None, "precision": "float32"},
    }
    monkeypatch.setattr(demo, "_RECIPE", small)
    full = demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda *args, **options: full(*args, side=160, **options))
    done = landfuse("demo", tmp_path / "demo", "-q")
    assert done.code == 0, done.err
    accuracy = {
        match.group(1).strip(): float(match.group(2)) for match in re.finditer(r"│ ([a-z +]+?) +│ +(0\.\d+) ", done.out)
    }
    assert accuracy.keys() == {"hsi + height + sar", "hsi", "height", "sar"}
    alone = max(value for name, value in accuracy.items() if "+" not in name)
    assert accuracy["hsi + height + sar"] > alone, "it takes more than one sensor"
    assert f"map:     {tmp_path / 'demo' / 'map.tif'}" in done.out
    assert (tmp_path / "demo" / "map.png").exists()
    assert f"report:  {tmp_path / 'demo' / 'report.html'}" in done.out
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "sar: trained on it alone" in page
    assert "landfuse init FOLDER" in done.out


def test_a_scene_that_is_only_mapped_needs_no_labels(landfuse: Run, place: Path, trained: Path, tmp_path: Path) -> None:
    bare = scene_like(place, tmp_path / "bare", labels=None, legend=None, split=None)
    done = landfuse("predict", trained, bare, "-o", tmp_path / "maps", "--picture")
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        "chequers.png",
        "chequers.qml",
        "chequers.tif",
        "chequers.tif.aux.xml",
    ]
    with rasterio.open(tmp_path / "maps" / "chequers.tif") as file:
        assert set(np.unique(file.read(1)).tolist()) <= {1, 2, 3, 4, 255}
        assert (file.read(1)[:6, :9] == 255).all()


def test_brackets_are_printed_as_they_are(landfuse: Run, place: Path, trained: Path, tmp_path: Path) -> None:
    legend = [{"name": f"field [{index}] [red]", "code": index} for index in range(1, 5)]
    odd = scene_like(place, tmp_path / "[bold]odd[/]", legend=legend)
    done = landfuse("check", odd)
    assert done.code == 0
    assert "field [1] [red]" in done.out
    done = landfuse("predict", trained, odd, "-o", tmp_path / "[x]" / ("m" * 100 + "[y].tif"))
    assert f"map: {tmp_path / '[x]'}/{'m' * 100}[y].tif\n" in done.out, "whole, on one line"
    done = landfuse("train", tmp_path / "[bold][1]" / "none.yaml")
    assert done.code == 2
    assert f"there is no file {tmp_path}/[bold][1]/none.yaml" in done.err


def mistakes(place: Path, trained: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        yaml.safe_dump({"scene": str(place / "scene.yaml"), "model": "forest", "run": str(tmp_path / "r")})
    )
    wide = scene_like(
        place, tmp_path / "wide", modalities={"a": {"path": "b.tif"}, "b": {"path": "b.tif", "units": "1"}}
    )
    other = Grid(5, 5, (1.0, 0, 0, 0, -1.0, 0), "EPSG:32632")
    write_raster(tmp_path / "small.tif", other, np.ones((5, 5), np.uint8))
    for tile in ("t1", "t2"):
        for name in ("a", "b"):
            (tmp_path / "tiles").mkdir(exist_ok=True)
            (tmp_path / "tiles" / f"{name}_{tile}.tif").write_bytes((place / f"{name}.tif").read_bytes())
    tiles = scene_like(
        place,
        tmp_path / "tiles",
        root=str(tmp_path / "tiles"),
        modalities={n: {"path": n + "_{tile}.tif", "units": "1"} for n in ("a", "b")},
        labels=None,
        legend=None,
        split=None,
    )
    (tmp_path / "truncated").mkdir()
    for path in (trained / "bundle").iterdir():
        (tmp_path / "truncated" / path.name).write_bytes(path.read_bytes()[:300])
    unlabelled = scene_like(place, tmp_path / "bare", labels=None, legend=None, split=None)
    return {
        "no recipe": (["train", tmp_path / "rr.yaml"], r"there is no file(.|\n)*did you mean .*r\.yaml"),
        "misspelt": (["train", recipe, "trainig.epochs=3"], r"unknown key `trainig`; did you mean `training`\?"),
        "no value": (["train", recipe, "training.epochs"], r"is no assignment"),
        "modality": (["train", recipe, "modalities=[c]"], r"names the modality c(.|\n)*a, b"),
        "view": (
            ["train", recipe, "model={name: two_branch, view: 8}"],
            r"view of 8 px and a core of 1 px(.|\n)*view to 9",
        ),
        "split key": (["train", recipe, "split.sise=2"], r"the recipe's split: unknown key(.|\n)*did you mean `size`"),
        "unwritable": (["train", recipe, "run=/dev/null/x"], r"/dev/null/x cannot be written"),
        "no bundle": (
            ["predict", tmp_path, place, "-o", tmp_path / "m.tif"],
            r"holds no bundle: there is no model\.json and",
        ),
        "truncated": (["predict", tmp_path / "truncated", place, "-o", tmp_path / "m.tif"], r"is broken"),
        "kind": (["predict", trained, wide, "-o", tmp_path / "m.tif"], r"3 bands of `a`, this scene has 2(.|\n)*units"),
        "no scene": (["predict", trained, tmp_path / "no", "-o", tmp_path / "m.tif"], r"there is no file"),
        "no tile": (
            ["predict", trained, place, "-o", tmp_path / "m.tif", "--tile", "t9"],
            r"no tile t9(.|\n)*chequers",
        ),
        "one file": (
            ["predict", trained, tiles, "-o", tmp_path / "m.tif"],
            r"2 tiles are to be mapped into the one file",
        ),
        "output": (["predict", trained, place, "-o", "/dev/null/m.tif"], r"/dev/null/m\.tif cannot be written"),
        "grid": (["evaluate", tmp_path / "small.tif", place], r"has the grid 5 x 5 px(.|\n)*96 x 96 px"),
        "no map": (["evaluate", tmp_path / "no.tif", place], r"there is no file or folder .*no\.tif"),
        "role": (
            ["evaluate", place / "labels.tif", place, "--role", "exam"],
            r"no role `exam`(.|\n)*train, validation",
        ),
        "labels": (["evaluate", place / "labels.tif", unlabelled, "--role", "all"], r"has no labels"),
        "unlabelled": (["train", recipe, f"scene={unlabelled}", "split={kind: random, train: 9}"], r"has no labels"),
        "split": (["evaluate", place / "labels.tif", place, "--split", tmp_path / "no"], r"there is no file"),
        "views": (["check", place, "--views", "7,x"], r"--views holds 'x'"),
        "core": (["check", place, "--views", "7/9"], r"--views holds '7/9'"),
        "scores": (["evaluate", place / "labels.tif", place, "-o", "/dev/null/x"], r"cannot be written"),
        "option": (["predict", trained, place], r"Missing option"),
        "demo": (["demo", "/dev/null/x"], r"cannot be written"),
    }


def test_every_mistake_ends_in_one_message_and_exit_code_2(
    landfuse: Run, place: Path, trained: Path, tmp_path: Path
) -> None:
    cases = mistakes(place, trained, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name, (words, message) in cases.items():
        done = landfuse(*words)
        assert done.code == 2, (name, done)
        assert re.search(message, done.err), (name, done.err)
        assert "Traceback" not in done.out + done.err, name
        assert done.err.count("error") == 1 or name == "option", (name, done.err)
        assert sorted(tmp_path.rglob("*")) == before, f"{name} left something"


def test_check_reports_all_faults_in_one_go(landfuse: Run, place: Path, tmp_path: Path) -> None:
    modalities = {
        "a": {"path": "a.tif", "bands": [1, 9]},
        "b": {"path": "gone.tif"},
    }
    done = landfuse("check", scene_like(place, tmp_path / "bad", modalities=modalities, reference="labels"))
    assert done.code == 2
    assert done.err.count("fault") == 2
    assert "has 3 bands, not the bands [9]" in done.err
    assert re.search(r"there is no file .*gone\.tif", done.err)


def test_a_fault_of_the_program_is_reported_as_one(
    landfuse: Run, place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("[1] divided by [0]")

    monkeypatch.setattr(sys.modules["landfuse.mapping.engine"].Engine, "compute", broken)
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif")
    assert done.code == 1
    assert "ZeroDivisionError: [1] divided by [0]" in done.err
    assert "this is a fault of landfuse" in done.err


def test_control_c(landfuse: Run, place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["landfuse.mapping.engine"].Engine, "compute", interrupted)
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif")
    assert done.code == 130
    assert done.err.strip().startswith("interrupted; nothing half-written is left")
    assert list(tmp_path.iterdir()) == []


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_dry_run_says_what_mapping_takes_and_writes_nothing(
    landfuse: Run, place: Path, trained: Path, tmp_path: Path
) -> None:
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--dry-run", "--block", "40", "--entropy")
    assert done.code == 0, done.err
    assert re.search(r"size: +96 x 96 px\n +blocks: +9 of 40 px", done.out)
    assert re.search(
        r"memory: +at most 1\.\d+ GiB\D+disk: +about [\d.]+ KiB, at most 48 KiB\n +time: +about 0:", done.out
    )
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--dry-run", "--json")
    [plan] = events(done.out)
    assert (plan["event"], plan["blocks"], plan["windows"]) == ("plan", 1, 96 * 96)
    assert plan["seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--memory", "50MB")
    assert done.code == 2
    assert re.search(r"47\.68 MiB of memory is too little: a block of 64 px takes 1\.\d+ GiB", done.err)


def tiles_of(place: Path, folder: Path) -> Path:
    """A scene file of two tiles, and the second's raster `a` torn."""
    for tile in ("t1", "t2"):
        for name in ("a", "b"):
            folder.mkdir(exist_ok=True)
            (folder / f"{name}_{tile}.tif").write_bytes((place / f"{name}.tif").read_bytes())
    modalities = {n: {"path": n + "_{tile}.tif", "units": "1"} for n in ("a", "b")}
    return scene_like(
        place, folder, root=str(folder), modalities=modalities, labels=None, legend=None, split=None
    )  # fmt: skip


def test_an_incomplete_map_of_several_ends_with_exit_code_3(
    landfuse: Run, place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from landfuse.errors import SceneError
    from landfuse.mapping.engine import Engine

    tiles, out, read = tiles_of(place, tmp_path / "tiles"), tmp_path / "maps", Engine.read
    again: list[str] = []

    def torn(self: Engine, owned: BlockWindows) -> Any:
        again.append(self.scene.name)
        if self.scene.name == "t2" and owned.block.row == 0 and owned.block.col == 48:
            raise SceneError("a_t2.tif cannot be read", "a whole file", "fetch it again")
        return read(self, owned)

    command = ["predict", trained, tiles, "-o", out, "--block", "48"]
    monkeypatch.setattr(Engine, "read", torn)
    done = landfuse(*command)
    assert done.code == 3, done.err
    assert "t2.tif is incomplete: 1 of 4 blocks cannot be read" in done.err
    assert "row 0, column 48 (48 x 48 px): a_t2.tif cannot be read" in done.err
    assert f"map: {out / 't1.tif'}" in done.out
    assert again == ["t1"] * 4 + ["t2"] * 4
    again.clear()
    done = landfuse(*command, "--json")
    assert done.code == 3
    assert again == ["t2"], "neither finished tiles nor finished blocks are repeated"
    found = events(done.out)
    assert [(e["tile"], e["complete"]) for e in found if e["event"] == "map"] == [("t1", True), ("t2", False)]
    [fault] = [e for e in found if e["event"] == "fault"]
    assert fault["block"] == "row 0, column 48 (48 x 48 px)"
    monkeypatch.setattr(Engine, "read", read)
    done = landfuse(*command, "--json")
    assert done.code == 0, done.err
    last = [e for e in events(done.out) if e["event"] == "progress"][-1]
    assert (last["pixels"], last["of"], last["seconds_left"]) == (2 * 96 * 96, 2 * 96 * 96, 0)
    assert last["megapixels_per_second"] >= 0
    assert sorted(p.name for p in out.iterdir()) == [
        "index.gpkg", "mosaic.qml", "mosaic.vrt",
        "t1.qml", "t1.tif", "t1.tif.aux.xml", "t2.qml", "t2.tif", "t2.tif.aux.xml",
    ]  # fmt: skip
    with rasterio.open(out / "t1.tif") as one, rasterio.open(out / "t2.tif") as two:
        np.testing.assert_array_equal(one.read(), two.read())
        assert "landfuse_incomplete" not in two.tags()


def test_blocks_of_an_unfinished_map_and_restart(
    landfuse: Run, place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from landfuse.mapping.engine import Engine

    read = Engine.read

    def interrupted(self: Engine, owned: BlockWindows) -> Any:
        if owned.block.row > 0:
            raise KeyboardInterrupt
        return read(self, owned)

    monkeypatch.setattr(Engine, "read", interrupted)
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--block", "48")
    assert done.code == 130
    assert "`predict` command goes on from there" in done.err
    monkeypatch.setattr(Engine, "read", read)
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--block", "32")
    assert done.code == 2
    assert "the block (48 px, now 32 px)" in done.err
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--block", "32", "--restart")
    assert done.code == 0, done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.qml", "m.tif", "m.tif.aux.xml"]


forked = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None


def hold(output: Path, queue: Any) -> None:
    with PartFolder(output).held():
        queue.put("held")
        time.sleep(100)


@pytest.mark.skipif(forked is None, reason="no fork here")
def test_a_second_command_for_the_same_map_is_refused_unless_the_first_is_dead(
    landfuse: Run, place: Path, trained: Path, tmp_path: Path
) -> None:
    words = ("predict", trained, place, "-o", tmp_path / "m.tif")
    assert forked is not None
    queue = forked.Queue()
    first = forked.Process(target=hold, args=(tmp_path / "m.tif", queue))
    first.start()
    try:
        queue.get(timeout=100)
        for restart in ([], ["--restart"]):
            refused = landfuse(*words, *restart)
            assert refused.code == 2
            assert re.search(
                rf"m\.tif\.parts is in use: process {first.pid} on (.|\n)*one command at a time(.|\n)*wait until",
                refused.err,
            )
        assert [p.name for p in tmp_path.rglob("*")] == ["m.tif.parts", "lock"]
        assert landfuse(*words, "--dry-run").code == 0
    finally:
        first.kill()
        first.join()
    assert [p.name for p in tmp_path.rglob("*")] == ["m.tif.parts", "lock"], "the dead cannot tidy up"
    assert landfuse(*words).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.qml", "m.tif", "m.tif.aux.xml"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_place_that_became_read_only_is_reported_before_anything_is_mapped(
    begun: bool, landfuse: Run, place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted read-only: permissions do not keep root from writing, so the system's answer is
    put in its mouth."""
    from landfuse.mapping.engine import Engine

    (tmp_path / "m.tif").write_bytes(b"the map of yesterday")
    if begun:
        folder = PartFolder(tmp_path / "m.tif")
        with folder.held():
            folder.claim({"the model": "some"})
    mkdir, open_file, open_low = os.mkdir, io.open, os.open

    def refuse(path: Any) -> None:
        if Path(path).is_relative_to(tmp_path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    def no_folder(path: Any, *rest: Any, **options: Any) -> None:
        if not Path(path).exists():
            refuse(path)
        mkdir(path, *rest, **options)

    def no_writing(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse(path)
        return open_file(path, mode, *rest, **options)

    def no_low_writing(path: Any, flags: int, *rest: Any, **options: Any) -> Any:
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return open_low(path, flags, *rest, **options)

    monkeypatch.setattr(os, "mkdir", no_folder)
    monkeypatch.setattr(os, "open", no_low_writing)  # that of filelock
    monkeypatch.setattr(io, "open", no_writing)  # that of pathlib
    monkeypatch.setattr(Engine, "read", lambda *_: pytest.fail("mapped"))
    before = sorted(tmp_path.rglob("*"))
    done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", "--polygons", "--overwrite")
    assert done.code == 2
    assert re.search(r"m\.tif cannot be written: .*Read-only file system(.|\n)*choose another place", done.err)
    assert (sorted(tmp_path.rglob("*")), (tmp_path / "m.tif").read_bytes()) == (before, b"the map of yesterday")


@pytest.mark.parametrize("folder", ["/proc", "/sys", "/dev/null"])
def test_a_place_of_this_machine_that_cannot_be_written_to(
    folder: str, landfuse: Run, place: Path, trained: Path
) -> None:
    if not Path(folder).exists():
        pytest.skip(f"there is no {folder} here")
    done = landfuse("predict", trained, place, "-o", f"{folder}/landfuse-m.tif")
    assert done.code == 2
    assert re.search(r"landfuse-m\.tif cannot be written: (.|\n)*choose another place", done.err)
    assert not Path(folder, "landfuse-m.tif.parts").exists()


def test_options_that_do_not_go_together(landfuse: Run, place: Path, trained: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--memory", "much"], r"`memory` is 'much': 'much' is no size"),
        (["--precision", "float8"], r"`precision` is 'float8', not one of: float32, tf32, bfloat16"),
        (["--workers", "2", "--scheduler", "tcp://x:1"], r"several of --workers"),
        (["--layer", "depth"], r"`forest` has no layer depth"),
        (["--scheduler-file", tmp_path / "no.json"], r"no\.json cannot be reached"),
    ):
        done = landfuse("predict", trained, place, "-o", tmp_path / "m.tif", *words)
        assert done.code == 2, done
        assert re.search(message, done.err), done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("check", ["px"]),
        ("train", ["training.epochs=20"]),
        ("predict", ["px", "2GiB", "65,000 px", "1/250", "--output", "float32"]),
        ("evaluate", ["by default test", "scores"]),
        ("demo", ["landfuse-demo", "default: 0"]),
    ],
)
def test_help_names_units_and_defaults(
    landfuse: Run, command: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = landfuse(command, "--help")
    assert done.code == 0
    for word in words:
        assert word in done.out, word
    every = landfuse("--help")
    assert command in every.out
    assert landfuse("--version").out.strip() == version("landfuse")


def test_models_and_their_settings_are_listed(landfuse: Callable[..., Any]) -> None:
    listed = landfuse("models")
    assert listed.code == 0
    assert all(name in listed.out for name in SETTINGS)
    shown = landfuse("models", "forest").out
    assert all(f" {name} " in shown for name in SETTINGS["forest"].model_fields)
    assert "whole number from 1 to" in shown
    wrong = landfuse("models", "florest")
    assert (wrong.code, "did you mean `forest`?" in wrong.err) == (2, True)
    assert "ONNX file" in wrong.err
    known = json.loads(landfuse("models", "forest", "--json").out)
    assert [row["key"] for row in known["settings"]] == list(SETTINGS["forest"].model_fields)


def test_what_a_saved_model_maps_is_listed(trained: Path, landfuse: Callable[..., Any]) -> None:
    known = json.loads(landfuse("models", trained, "--json").out)
    assert (known["model"], known["needs_torch"]) == ("forest", False)
    modalities = {name: (one["bands"], one["units"], one["required"]) for name, one in known["modalities"].items()}
    assert modalities == {"a": (3, "1", True), "b": (2, "1", True)}
    names = [one["name"] for one in known["classes"]]
    shown = landfuse("models", trained).out
    assert known["modalities"]["a"]["pixel"].split(" in ")[0] in shown
    assert all(word in shown for word in ("modality", "model: forest\n", f"classes: {', '.join(names)}"))
    for words, fault in (((trained / "split",), "holds no bundle"), ((), "--json without a name")):
        wrong = landfuse("models", *words, "--json")
        assert (wrong.code, fault in wrong.err) == (2, True)


def test_init_writes_and_checks(place: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    ended = landfuse("init", place, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "no fault found" in ended.out
    assert "ignored" not in (tmp_path / "out" / "scene.yaml").read_text()
    again = landfuse("init", place, "-o", place)
    assert again.code == 2
    assert "is there already" in again.err


def test_without_labels_nothing_is_trained(place: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    ended = landfuse("map", place / "a.tif", place / "b.tif", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "no labels to train by" in ended.err
    assert not (tmp_path / "out").exists()
    assert "next: landfuse predict RUN" in landfuse("init", place / "a.tif", "-o", tmp_path / "out").err


def test_map_goes_from_files_to_the_report(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landfuse: Callable[..., Any]
) -> None:
    monkeypatch.setattr("landfuse.scenes.from_files._FEW_LABELS", 10**6)  # the forest is the faster one
    for words in ((), ("again",)):
        ended = landfuse(
            "map", place / "a.tif", place / "b.tif", "--labels", place / "labels.tif", "-o", tmp_path / "out"
        )
        assert ended.code == 0, (words, ended.err)
    assert all((tmp_path / "out" / name).exists() for name in ("map.tif", "map.qml", "report.html", "run/scores.json"))
