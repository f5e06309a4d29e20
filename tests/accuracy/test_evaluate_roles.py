"""`evaluate` scores the pixels that the model has not seen: by the roles of its run, whatever the scene file says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

import landfuse as lf
from landfuse.accuracy.evaluate import evaluate
from landfuse.errors import SplitError
from landfuse.rasters.geotiff_writer import write_raster


@pytest.fixture(scope="module")
def mapped(trained: Path, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a map, `runs/first` beside it, and the scene."""
    folder = tmp_path_factory.mktemp("mapped")
    shutil.copytree(place, folder, dirs_exist_ok=True)
    shutil.copytree(trained, folder / "runs" / "first")
    lf.predict(lf.load_bundle(trained), lf.open_scene(folder / "scene.yaml"), folder / "map.tif")
    return folder


def another_split(folder: Path, **split: Any) -> Path:
    text = yaml.safe_load((folder / "scene.yaml").read_text())
    text["split"] = {**text["split"], **split} if split else None
    path = folder / f"other{len(split)}.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def test_the_roles_of_the_run_win_over_another_split(mapped: Path, landfuse: Callable[..., Any]) -> None:
    known = json.loads((mapped / "runs/first/scores.json").read_text())["test"]
    for scene in (mapped / "scene.yaml", another_split(mapped, seed=7), another_split(mapped)):
        result = landfuse("evaluate", mapped / "map.tif", scene, "-o", mapped / "scores", "--overwrite")
        assert result.code == 0, result.err
        scores = json.loads((mapped / "scores" / "scores.json").read_text())
        assert scores["scores"]["OA"] == pytest.approx(known["OA"])
        assert "test pixels of the split that the model was trained with, as the run" in result.out
        assert scores["role"] == "test"
        assert "runs/first" in scores["notes"][0]


def test_without_the_run_another_split_is_refused(
    mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = tmp_path / "a" / "b" / "c"
    shutil.copytree(mapped, apart, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(apart)  # runs of other tests may lie near the working directory
    other = another_split(apart, seed=7)
    with pytest.raises(SplitError, match=r"another split(.|\n)*not found(.|\n)*--split RUN(.|\n)*--role all"):
        evaluate(apart / "map.tif", other)
    same = evaluate(apart / "map.tif", apart / "scene.yaml")
    assert same.notes == ("scored are the test pixels of the split that the model was trained with",)
    said: list[tuple[int, int]] = []
    every = evaluate(apart / "map.tif", other, role="all", progress=lambda *of: said.append(of))
    assert said == [(0, 1)], "tiles done, and in all"
    assert every.notes == ("all labelled pixels are scored, those that the model was trained on too",)
    by_run = evaluate(apart / "map.tif", other, split=mapped / "runs/first/split")
    assert by_run.confusion.scores() == same.confusion.scores()
    wrong = shutil.copytree(mapped / "runs/first/split", tmp_path / "wrong")
    scene = lf.open_scene(apart / "scene.yaml")
    write_raster(wrong / f"{scene.name}.tif", scene.grid, scene.labels % 3 + np.uint8(1), nodata=0)
    assert "trained with another split than" in evaluate(apart / "map.tif", other, split=wrong).notes[0]


def test_an_earlier_map_says_nothing_of_its_training(mapped: Path, tmp_path: Path) -> None:
    with rasterio.open(mapped / "map.tif") as file:
        codes, profile = file.read(), file.profile
    with rasterio.open(tmp_path / "map.tif", "w", **{**profile, "driver": "GTiff"}) as file:
        file.write(codes)
    (note,) = evaluate(tmp_path / "map.tif", mapped / "scene.yaml").notes
    assert note.startswith("the map does not say which pixels its model was trained on")
