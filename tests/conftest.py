"""Where the tests find real data, golden tensors, a small scene on disk, and the command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# The networks of the tests are so small that threads cost more than they give; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from landfuse import cli, models
from landfuse.cli import commands
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.simulate.scene import simulate_flat

# Started in the background, the tests would ignore ctrl-C, and hand that down to the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _models_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that a test registers are not known to the next."""
    monkeypatch.setattr(models, "_registered", dict(models._registered))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden tensors, from LANDFUSE_SHARED or beside the checkout."""
    folder = Path(os.environ.get("LANDFUSE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set LANDFUSE_SHARED to its place")
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small scene as a user would have it: 96 x 96 px, `a` (3 bands) and `b` (2 bands, a corner
    without data), labels of four classes (a strip is unlabelled), and a split into blocks. Not to be written to."""
    folder = tmp_path_factory.mktemp("place")
    scene = simulate_flat(96, 96, {"a": 3, "b": 2})
    for name in scene.modalities:
        values = scene.read(name, scene.grid.window)
        if name == "b":
            values[:, :6, :9] = np.nan
        write_raster(folder / f"{name}.tif", scene.grid, values, nodata=float("nan"))
    labels = scene.labels.copy()
    labels[:, 40:42] = UNLABELLED
    write_raster(folder / "labels.tif", scene.grid, scene.legend.to_codes(labels), legend=scene.legend)
    text = {
        "name": "chequers",
        "modalities": {name: {"path": f"{name}.tif", "units": "1"} for name in scene.modalities},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": c.name, "code": c.code, "colour": c.colour} for c in scene.legend],
        "split": {"kind": "blocks", "size": 8, "test": 0.3, "validation": 0.2},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    return folder


class Ended(NamedTuple):
    """What a command ends with."""

    code: int
    out: str
    err: str


@pytest.fixture
def landfuse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """Runs the command as a shell would, on a wide screen."""
    on_term = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(commands, "FIRST_WORDS", 60.0)  # however busy the machine is
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["landfuse", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, on_term)


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Runs the command, and gives what it raises instead of reporting it."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(commands.app, [str(word) for word in words])

    return run


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small forest."""
    from landfuse.training.train import train

    folder = tmp_path_factory.mktemp("trained")
    (folder / "forest.yaml").write_text(yaml.safe_dump({"scene": str(place / "scene.yaml"), "model": "forest"}))
    train(folder / "forest.yaml", f"run={folder / 'run'}", "model={name: forest, trees: 5}", progress=False)
    return folder / "run"
