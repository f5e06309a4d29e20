"""Dates are dropped as often as the settings say, never all of a modality, and only in training."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch

from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.series.dates import Period
from landfuse.series.series_raster import DatedRaster, SeriesRaster
from landfuse.simulate.scene import simulate_flat
from landfuse.training.samples import Samples, WindowSampler, loader
from landfuse.training.settings import SampleSettings
from landfuse.views.pixel_map import PixelMap
from landfuse.views.store import Store


def scene_of(days: dict[str, int]) -> Scene:
    """Series of two bands each, of so many days, and `c` without dates; nothing is missing."""
    scene = simulate_flat(24, 24, {**dict.fromkeys(days, 2), "c": 1})
    parts = {}
    for name, count in days.items():
        found = [date(2023, 1 + number, 1) for number in range(count)]
        dates = tuple(DatedRaster(day, scene.modalities[name].raster) for day in found)
        raster = SeriesRaster(dates, tuple(Period(day, day) for day in found), ("red", "nir"))
        parts[name] = SceneModality(raster, units="1")
    return scene.with_modalities(parts)


def samples_of(scene: Scene, *, marks_missing: bool = True, droppable: str = "") -> Samples:
    maps = {n: PixelMap(torch.ones(m.raster.bands), torch.ones(m.raster.bands)) for n, m in scene.modalities.items()}
    return Samples(
        Store([scene], maps, 3, 1 << 30, dict.fromkeys(droppable, math.nan), marks_missing=marks_missing),
        [scene.labels],
        3,
        1,
    )


def test_the_fraction_is_that_of_the_settings_and_one_date_is_always_left() -> None:
    samples = samples_of(scene_of({"a": 12, "b": 2}))
    given = SampleSettings(batch=8000, windows=8000, date_dropout=0.4)
    (draws,) = WindowSampler(samples, given, train=True)
    assert draws.dates.shape == (8000, 14)
    np.testing.assert_allclose(draws.dates[:, :12].mean(axis=0), 0.4, atol=0.03)
    np.testing.assert_allclose(draws.dates[:, 12:].mean(axis=0), 0.4 - 0.4**2 / 2, atol=0.03)
    assert not draws.dates[:, 12:].all(axis=1).any()
    assert abs(np.corrcoef(draws.dates[:, :12], rowvar=False)[np.triu_indices(12, 1)]).max() < 0.06
    plain = next(iter(WindowSampler(samples, given.model_copy(update={"date_dropout": 0.0}), train=True)))
    assert (plain.row == draws.row).all()
    assert (plain.turn == draws.turn).all()
    assert plain.dates.shape == (8000, 0)
    assert not next(iter(WindowSampler(samples, given, train=False))).dates.any()


@pytest.mark.parametrize("marks_missing", [True, False])
def test_what_is_dropped_is_missing_and_the_rest_is_what_it_was(marks_missing: bool) -> None:
    samples = samples_of(scene_of({"a": 3, "b": 2}), marks_missing=marks_missing)
    sampler = WindowSampler(samples, SampleSettings(batch=64, windows=64, date_dropout=0.5), train=True)
    (draws,), (batch,) = sampler, loader(samples, sampler)
    whole = samples[replace(draws, dates=draws.dates[:, :0])]
    gone = torch.from_numpy(draws.dates.repeat(2, axis=1))
    for name, lost in (("a", gone[:, :6]), ("b", gone[:, 6:]), ("c", gone[:, :1] & False)):
        values = batch.images[name]
        assert (values[lost].isnan() if marks_missing else values[lost] == 0).all()
        np.testing.assert_array_equal(values[~lost], whole.images[name][~lost])
    assert gone.any()
    assert torch.equal(batch.target, whole.target)


def test_a_pixel_at_which_nothing_is_left_is_not_learnt_from() -> None:
    scene = scene_of({"a": 2})
    part: Any = scene.modalities["a"]
    samples = samples_of(replace(scene, modalities={"a": replace(part, raster=part.raster.without(["2023-01-01"]))}))
    (draws,) = WindowSampler(samples, SampleSettings(batch=32, windows=32, date_dropout=0.5), train=True)
    nothing_left = torch.from_numpy(draws.dates[:, 1])
    assert 0 < nothing_left.sum() < 32
    assert torch.equal(samples[draws].target[:, 0, 0] == UNLABELLED, nothing_left)


def test_where_a_modality_is_missing_it_stays_so() -> None:
    scene = scene_of({"a": 2})
    part: Any = scene.modalities["a"]
    bare = part.raster.without(["2023-01-01", "2023-02-01"])
    scene = scene.with_modalities({"a": replace(part, raster=bare)})
    samples = samples_of(scene, marks_missing=False, droppable="a")
    (draws,) = WindowSampler(samples, SampleSettings(batch=16, windows=16, date_dropout=0.5), train=True)
    assert draws.dates.any()
    assert samples[draws].images["a"].isnan().all(), "for the placeholder"


def test_without_dates_it_is_refused() -> None:
    settings = SampleSettings(date_dropout=0.2)
    for scene, mixed in ((scene_of({}), False), (scene_of({"a": 2}), True)):
        samples = samples_of(scene)
        if mixed:
            samples.store.pixel_maps["a"] = PixelMap(torch.ones(3, 4), torch.ones(3))
        with pytest.raises(SettingsError, match=r"date_dropout is 0\.2, and no modality has dates"):
            WindowSampler(samples, settings, train=True)
