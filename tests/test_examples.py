"""The scripts in examples/, one per person that landfuse is made for, run on small scenes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import landfuse as lf

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUICK = ("training.accelerator=cpu", "training.precision=float32", "samples={balanced: true, windows: 1500}")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small run's time goes into its pictures."""
    monkeypatch.setattr("landfuse.training.train.save", lambda *_: None)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"researcher", "practitioner", "engineer", "arrays"}


def test_researcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = (*QUICK, "samples.windows=400", "training.epochs=1")
    found = load("researcher").main(tmp_path, side=80, seeds=2, settings=small)
    assert set(found) == {"random", "blocks"}
    assert all(0.1 < oa < 1 for scores in found.values() for oa in scores.values())
    printed = capsys.readouterr().out
    random, blocks = printed.split("split: blocks")
    assert "two_branch hsi + height + sar: OA" in random
    assert " 0% of the test pixels see a training pixel" in blocks
    fraction = int(random.split("two_branch")[1].split("% of the test pixels see")[0].rsplit(" ", 1)[1])
    assert fraction > 90
    assert "over 2 pairs" in blocks


def test_practitioner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oa = load("practitioner").main(tmp_path / "valley", side=96, points=200, settings=("training.epochs=3", *QUICK))
    printed = capsys.readouterr().out
    assert 0.7 < oa <= 1
    assert "height: 1 bands, 2 m" in printed
    assert "95% interval" in printed
    assert " ha (" in printed
    assert (tmp_path / "valley" / "reference.gpkg").exists()
    again = load("practitioner").main(tmp_path / "valley", points=200, settings=("training.epochs=3", *QUICK))
    assert again is None
    assert "fill in its column `reference`" in capsys.readouterr().out


def test_engineer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load("engineer").main(tmp_path, side=64, block=32, settings=("training.epochs=2", *QUICK))
    printed = capsys.readouterr().out
    assert found["crashed"] == found["without a crash"]
    assert "crashed while mapping n0; there is no n0.tif: True" in printed
    assert "4 tiles" in printed
    assert float(printed.split("test tile: OA ")[1].split(",")[0]) > 0.3


def test_arrays(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rioxarray")
    quick = {"epochs": 2, "windows": 1500, "width": 16, "accelerator": "cpu", "training": {"precision": "float32"}}
    mapped = load("arrays").main(shared / "data" / "terramind", tmp_path, **quick)
    assert mapped is not None
    assert mapped.rio.crs == "EPSG:32718"
    assert set(np.unique(mapped)) <= {1, 2, 4, 5, 9}
    printed = capsys.readouterr().out
    assert float(printed.split("test pixels: OA ")[1].split()[0]) > 0.5
    assert 0 <= float(printed.split("another country: OA ")[1].split()[0]) <= 1
    np.testing.assert_array_equal(lf.open_map(tmp_path / "arrays_map.tif").raster.read_codes(), mapped.values)


def test_arrays_without_the_data_says_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rioxarray")
    assert load("arrays").main(tmp_path) is None
    assert "are not in" in capsys.readouterr().out
