"""A run remembers what it learnt from: where that changed, its scores are not shown as fresh."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio
import yaml

from landfuse.errors import OutputError
from landfuse.studies.series import Member, train_series
from landfuse.training.recipe import read_recipe


@pytest.fixture
def run(trained: Path, place: Path, tmp_path: Path) -> Path:
    """A copy of a scene and of a run on it."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    shutil.copytree(trained, tmp_path / "run")
    text = (trained / "recipe.json").read_text().replace(str(place), str(tmp_path))
    (tmp_path / "run" / "recipe.json").write_text(text.replace(str(trained), str(tmp_path / "run")))
    return tmp_path / "run"


def change_pixel(path: Path, value: float) -> None:
    with rasterio.open(path, "r+") as file:
        values = file.read()
        values[0, 20, 20] = value
        file.write(values)


def edit(path: Path, **keys: Any) -> None:
    text = yaml.safe_load(path.read_text())
    for name, value in keys.items():
        text[name] = {**text[name], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(text, sort_keys=False))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "labels": (lambda folder: change_pixel(folder / "labels.tif", 255), "the labels of `chequers`"),
    "raster": (lambda folder: change_pixel(folder / "a.tif", 1e3), "`a` of `chequers`"),
    "scale": (
        lambda folder: edit(folder / "scene.yaml", modalities={"b": {"path": "b.tif", "scale": 2, "units": "1"}}),
        "`b` of `chequers`",
    ),
    "split": (lambda folder: edit(folder / "scene.yaml", split={"seed": 5}), "the split of `chequers`"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_data_are_named_and_end_the_command(run: Path, what: str, landfuse: Callable[..., Any]) -> None:
    change, name = CHANGES[what]
    change(run.parent)
    before = (run / "scores.json").read_bytes()
    result = landfuse("train", run / "recipe.json", "--quiet")
    assert result.code == 2, result.out
    for part in (f"since then {name}", "--restart", "run=..."):
        assert part in result.err
    assert (run / "scores.json").read_bytes() == before


def test_the_same_data_elsewhere_or_touched_are_no_change(run: Path, landfuse: Callable[..., Any]) -> None:
    for path in run.parent.glob("*.tif"):
        os.utime(path, (1, 1))
    assert landfuse("train", run / "recipe.json", "--quiet").code == 0


def test_restart_trains_again(run: Path, landfuse: Callable[..., Any]) -> None:
    (run / "mine.txt").write_text("kept")
    change_pixel(run.parent / "a.tif", 1e3)
    before = (run / "scores.json").stat().st_mtime_ns
    assert landfuse("train", run / "recipe.json", "--restart", "--quiet").code == 0
    assert (run / "scores.json").stat().st_mtime_ns > before
    assert (run / "mine.txt").read_text() == "kept"
    assert landfuse("train", run / "recipe.json", "--quiet").code == 0


def test_an_earlier_run_says_that_it_is_not_checked(run: Path, landfuse: Callable[..., Any]) -> None:
    (run / "inputs.json").unlink()
    change_pixel(run.parent / "a.tif", 1e3)
    result = landfuse("train", run / "recipe.json", "--quiet")
    assert result.code == 0
    assert "is not checked" in " ".join(result.err.split())


def test_a_series_does_not_show_a_stale_run_as_fresh(run: Path) -> None:
    recipe = read_recipe(run / "recipe.json")
    member = Member(recipe, (), run)
    train_series(run / "recipe.json", [member])
    change_pixel(run.parent / "labels.tif", 255)
    with pytest.raises(OutputError, match="since then the labels"):
        train_series(run / "recipe.json", [member])
