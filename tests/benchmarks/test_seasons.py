"""The simulated year: one ground whatever window is read, clouds as asked for, and one map however it is cut."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import landfuse as lf
from landfuse.rasters.windows import Window, blocks

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "simulated"
Simulate = Callable[..., lf.Scene]


@pytest.fixture
def simulate_seasons(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("season_scene").simulate_seasons


def test_windows_agree_with_the_whole_and_clouds_hide_what_was_asked_for(simulate_seasons: Simulate) -> None:
    scene = simulate_seasons(70, 130, 3, clouds=0.3, step=40)
    for name in scene.modalities:
        whole = scene.read(name, scene.grid.window)
        for window in [*blocks(70, 130, 48), Window(69, 129, 1, 1)]:
            np.testing.assert_array_equal(scene.read(name, window), whole[:, *window.within(scene.grid.window)])
    wide = simulate_seasons(400, 400, 3, clouds=0.3, step=90)
    hidden = np.isnan(wide.read("s2", wide.grid.window))
    assert 0.2 < hidden.mean() < 0.4
    assert not np.isnan(wide.read("s1", Window(0, 0, 40, 40))).any()


def test_classes_differ_by_their_seasons_in_both_years(simulate_seasons: Simulate) -> None:
    for year in (2022, 2023):
        scene = simulate_seasons(160, 160, 1, year=year, clouds=0.0, every="1 month")
        _, red, near = scene.read("s2", scene.grid.window).reshape(12, 4, 160, 160)[:, :3].transpose(1, 0, 2, 3)
        ndvi = (near - red) / (near + red)
        season = np.array([ndvi[:, scene.labels == number].mean(axis=1) for number in range(7)])
        wheat, maize = season[1], season[3]
        assert wheat[4] > 0.5 > wheat[8]  # May and September
        assert maize[4] < 0.4 < maize[7]
        assert season[2].min() > season[[1, 3, 4]].min()  # grassland is never bare


def test_the_map_of_a_year_has_the_same_bytes_by_blocks_and_after_an_interruption(
    simulate_seasons: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landfuse.training.train.save", lambda *_: None)
    dates = {"clouds": 0.5, "step": 30, "every": "2 months", "composite": "mean"}
    forest = lf.Classifier("forest", trees=5, context=[])
    forest.fit(simulate_seasons(80, 80, 0, **dates), progress=False)
    scene = simulate_seasons(48, 60, 1, year=2023, **dates)
    whole = lf.predict(forest, scene, tmp_path / "whole.tif", block=64).read_bytes()

    def stop(done: int, pixels: int) -> None:
        if 2 * done > pixels:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lf.predict(forest, scene, tmp_path / "map.tif", block=24, progress=stop)
    assert not (tmp_path / "map.tif").exists()
    assert lf.predict(forest, scene, tmp_path / "map.tif", block=24).read_bytes() == whole
