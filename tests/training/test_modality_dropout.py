"""The probabilities are those that were asked for: counted, in every way that samples are drawn."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.training.samples import Draws, Samples, WindowSampler, dropout_of, loader, patterns
from landfuse.training.settings import SampleSettings
from landfuse.views.pixel_map import PixelMap
from landfuse.views.store import Store


@pytest.mark.parametrize(
    "chances", [[0.2, 0.2], [0.5, 0.0], [0.9, 0.05], [0.3, 0.2, 0.1], [0.6, 0.6, 0.6], [0.0, 0.0], [0.4] * 5]
)
def test_patterns_add_up_to_what_was_asked_for(chances: list[float]) -> None:
    found = patterns(chances)
    bits = np.array(list(itertools.product((0, 1), repeat=len(chances))))[:, ::-1]  # bit m in column m
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found[-1] == 0, "never all of them"
    np.testing.assert_allclose(found @ bits, chances, atol=1e-12)


def test_beside_never_all_they_are_drawn_by_themselves() -> None:
    """With three modalities, dropping two goes like dropping each: odds of pairs multiply."""
    s = patterns([0.3, 0.2, 0.1])
    assert s[0b011] * s[0b000] == pytest.approx(s[0b001] * s[0b010], rel=1e-12)
    np.testing.assert_allclose(patterns([0.3, 0.0, 0.0]), [0.7, 0.3, 0, 0, 0, 0, 0, 0], atol=1e-15)


def test_what_cannot_be_is_refused_in_words() -> None:
    names = ["s2", "s1"]
    assert dropout_of(0.2, names) == {"s2": 0.2, "s1": 0.2}
    assert dropout_of({"s1": 0.3, "s2": 0.0}, names) == {"s1": 0.3}
    assert dropout_of(0, names) == {}
    with pytest.raises(SettingsError, match=r"names the modality dem(.|\n)*s2, s1"):
        dropout_of({"dem": 0.1}, names)
    with pytest.raises(SettingsError, match=r"drop s2 at 0\.5, s1 at 0\.5(.|\n)*lower them"):
        dropout_of(0.5, names)
    with pytest.raises(SettingsError, match=r"a single modality cannot be dropped"):
        dropout_of(0.1, ["s2"])
    for wrong in (1.0, -0.1, {"s1": 1.2}, "often"):
        with pytest.raises(ValueError, match="modality_dropout"):
            SampleSettings(modality_dropout=wrong)  # type: ignore[arg-type]


def scene_and_maps() -> tuple[Scene, dict[str, PixelMap]]:
    scene = simulate_flat(48, 48, {"a": 2, "b": 1, "c": 3})
    maps = {n: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for n, m in scene.modalities.items()}
    return scene, maps


def store_of(scene: Scene, maps: dict[str, PixelMap], view: int, droppable: str) -> Store:
    return Store([scene], maps, view, 1 << 30, dict.fromkeys(droppable, math.nan))


def joined(batches: WindowSampler) -> Draws:
    """All draws of an epoch."""
    parts = list(batches)
    return Draws(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Draws)))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_probabilities_are_those_of_the_settings(balanced: bool, ranks: int) -> None:
    scene, maps = scene_and_maps()
    labels = scene.labels.copy()
    labels[:40][labels[:40] == 3] = UNLABELLED  # a rare class
    samples = Samples(store_of(scene, maps, 3, "ac"), [labels], 3, 1)
    given = SampleSettings(batch=100, windows=40_000, balanced=balanced, modality_dropout={"a": 0.3, "c": 0.15})
    parts = [joined(WindowSampler(samples, given, train=True, seed=4, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for part in parts:
        drawn = part.take(np.flatnonzero(~part.filler))
        dropped = drawn.dropped.astype(int)
        assert dropped.shape == (len(drawn), 3)
        error = 4 * 0.5 / np.sqrt(len(drawn))
        np.testing.assert_allclose(dropped.mean(axis=0), [0.3, 0, 0.15], atol=error)
        assert (dropped[:, 0] * dropped[:, 2]).mean() == pytest.approx(0.3 * 0.15, abs=error)
        classes = labels[drawn.row, drawn.col]
        for one in np.unique(classes):
            of_class = dropped[classes == one]
            np.testing.assert_allclose(of_class.mean(axis=0), [0.3, 0, 0.15], atol=2.5 / np.sqrt(len(of_class)))
    turns = np.bincount(np.concatenate([part.turn for part in parts]), minlength=8)
    assert turns.min() > 0.1 * turns.sum(), "turns are drawn as before"


def test_without_dropout_the_draws_are_what_they_were_and_validation_drops_nothing() -> None:
    scene, maps = scene_and_maps()
    samples = Samples(store_of(scene, maps, 3, "abc"), [scene.labels], 3, 1)
    plain, dropping = SampleSettings(batch=64), SampleSettings(batch=64, modality_dropout=0.3)
    before = joined(WindowSampler(samples, plain, train=True, seed=1))
    after = joined(WindowSampler(samples, dropping, train=True, seed=1))
    assert not before.dropped.any()
    assert after.dropped.any(axis=0).all()
    assert not after.dropped.all(axis=1).any(), "never all of them"
    for name in ("scene", "row", "col", "turn", "filler"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for settings in (plain, dropping):
        assert not joined(WindowSampler(samples, settings, train=False)).dropped.any()


def test_what_is_dropped_is_nan_and_the_rest_is_what_it_was() -> None:
    scene, maps = scene_and_maps()
    samples = Samples(store_of(scene, maps, 5, "abc"), [scene.labels], 5, 3)
    whole = loader(samples, WindowSampler(samples, SampleSettings(batch=50), train=True))
    given = SampleSettings(batch=50, modality_dropout={"a": 0.4, "b": 0.4, "c": 0.4})
    sampler = WindowSampler(samples, given, train=True)
    for draws, full, batch in zip(sampler, whole, loader(samples, sampler), strict=True):
        dropped = torch.from_numpy(draws.dropped)
        assert dropped.any()
        for place, name in enumerate(("a", "b", "c")):
            assert batch.images[name][dropped[:, place]].isnan().all()
            assert torch.equal(batch.images[name][~dropped[:, place]], full.images[name][~dropped[:, place]])
        assert torch.equal(batch.target, full.target)
    often = SampleSettings(batch=50, modality_dropout=0.4)
    by_workers = loader(samples, WindowSampler(samples, often.model_copy(update={"workers": 1}), train=True))
    again = loader(samples, WindowSampler(samples, often, train=True))
    for one, other in zip(by_workers, again, strict=True):
        for name in one.images:
            np.testing.assert_array_equal(one.images[name], other.images[name])


@pytest.mark.parametrize("zoom", [1, 2])
def test_a_pixel_at_which_nothing_is_left_is_not_learnt_from(zoom: int) -> None:
    """A modality that the scene lacks is NaN everywhere; once the other is dropped as well, nothing is left."""
    scene, maps = scene_and_maps()
    gone = Absent(scene.grid.zoomed(zoom), 1)
    scene = scene.with_modalities({"b": SceneModality(gone, zoom)})
    maps = {name: maps[name] for name in ("a", "b")}
    samples = Samples(store_of(scene, maps, 3, "ab"), [scene.labels], 3, 1)
    batch = samples[draws_of([5, 5, 5], [7, 7, 7], dropped=[[False, False], [True, False], [False, True]])]
    assert batch.target[:, 0, 0].tolist() == [scene.labels[5, 7], UNLABELLED, scene.labels[5, 7]]
    assert batch.images["b"].shape == (3, 1, 3 * zoom, 3 * zoom)
    assert batch.images["b"].isnan().all()
    assert batch.images["a"].isnan().flatten(1).all(dim=1).tolist() == [False, True, False]


def test_what_fills_up_a_batch_is_not_learnt_from() -> None:
    scene, maps = scene_and_maps()
    samples = Samples(store_of(scene, maps, 3, "abc"), [scene.labels], 3, 1)
    draws = replace(draws_of([5, 5], [7, 7], dropped=[[False] * 3] * 2), filler=np.array([False, True]))
    batch = samples[draws]
    assert batch.target[:, 0, 0].tolist() == [scene.labels[5, 7], UNLABELLED]
    assert torch.equal(batch.images["a"][0], batch.images["a"][1])


def draws_of(rows: list[int], cols: list[int], dropped: list[list[bool]]) -> Draws:
    still = np.zeros(len(rows), np.int64)
    row, col = np.array(rows, np.int64), np.array(cols, np.int64)
    none = np.zeros((len(rows), 0), bool)
    return Draws(still, row, col, still.copy(), np.array(dropped), none, np.zeros(len(rows), bool))


class Absent:
    """A raster without data."""

    def __init__(self, grid: Grid, bands: int) -> None:
        self.grid, self.bands, self.dtype, self.path = grid, bands, "float32", "(absent)"

    def read(self, window: Window) -> NDArray[np.float32]:
        return np.full((self.bands, window.height, window.width), np.nan, np.float32)
