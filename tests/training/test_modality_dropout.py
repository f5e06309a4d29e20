"""The probabilities are those that were asked for: counted, in every way that samples are drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, without_data
from landfuse.simulate.scene import simulate_flat
from landfuse.training.samples import Draws, Samples, SampleSettings, dropout_of, loader, patterns
from landfuse.views.mapped_pixels import read_patchwork
from landfuse.views.pixel_map import PixelMap
from landfuse.views.store import Store


@pytest.mark.parametrize(
    "chances", [[0.2, 0.2], [0.5, 0.0], [0.9, 0.05], [0.3, 0.2, 0.1], [0.6, 0.6, 0.6], [0.0, 0.0], [0.4] * 5]
)
def test_patterns_add_up_to_what_was_asked_for(chances: list[float]) -> None:
    shares = patterns(chances)
    bits = np.array(list(itertools.product((0, 1), repeat=len(chances))))[:, ::-1]  # bit m in column m
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert shares[-1] == 0, "never all of them"
    np.testing.assert_allclose(shares @ bits, chances, atol=1e-12)


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


def scene_and_maps(*droppable: str) -> tuple[Scene, dict[str, PixelMap]]:
    scene = simulate_flat(48, 48, {"a": 2, "b": 1, "c": 3})
    maps = {n: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for n, m in scene.modalities.items()}
    for name in droppable:
        maps[name].instead = torch.nan
    return scene, maps


def gone(draws: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which modalities each row of draws drops: (rows, 3)."""
    return np.stack([draws[:, 3].clip(min=0) // 8 >> bit & 1 for bit in range(3)], axis=1)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_probabilities_are_those_of_the_settings(balanced: bool, ranks: int) -> None:
    scene, maps = scene_and_maps("a", "c")
    labels = scene.labels.copy()
    labels[:40][labels[:40] == 3] = UNLABELLED  # a rare class
    samples = Samples(Store([scene], maps, 3, 1 << 30), [labels], 3, 1)
    given = SampleSettings(batch=100, windows=40_000, balanced=balanced, modality_dropout={"a": 0.3, "c": 0.15})
    parts = [
        np.concatenate(list(Draws(samples, given, train=True, seed=4, rank=rank, ranks=ranks))) for rank in range(ranks)
    ]
    for part in parts:
        drawn = part[part[:, 3] >= 0]
        dropped = gone(drawn)
        error = 4 * 0.5 / np.sqrt(len(drawn))
        np.testing.assert_allclose(dropped.mean(axis=0), [0.3, 0, 0.15], atol=error)
        assert (dropped[:, 0] * dropped[:, 2]).mean() == pytest.approx(0.3 * 0.15, abs=error)
        classes = labels[drawn[:, 1], drawn[:, 2]]
        for one in np.unique(classes):
            of_class = dropped[classes == one]
            np.testing.assert_allclose(of_class.mean(axis=0), [0.3, 0, 0.15], atol=2.5 / np.sqrt(len(of_class)))
    turns = np.bincount(np.concatenate(parts)[:, 3].clip(min=0) % 8, minlength=8)
    assert turns.min() > 0.1 * turns.sum(), "turns are drawn as before"


def test_without_dropout_the_draws_are_what_they_were_and_validation_drops_nothing() -> None:
    scene, maps = scene_and_maps("a", "b", "c")
    samples = Samples(Store([scene], maps, 3, 1 << 30), [scene.labels], 3, 1)
    plain, dropping = SampleSettings(batch=64), SampleSettings(batch=64, modality_dropout=0.3)
    before = np.concatenate(list(Draws(samples, plain, train=True, seed=1)))
    after = np.concatenate(list(Draws(samples, dropping, train=True, seed=1)))
    assert not gone(before).any()
    assert gone(after).any(axis=0).all()
    assert not gone(after).all(axis=1).any(), "never all of them"
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    np.testing.assert_array_equal(before[:, 3], after[:, 3] % 8)
    for settings in (plain, dropping):
        assert not gone(np.concatenate(list(Draws(samples, settings, train=False)))).any()


def test_what_is_dropped_is_nan_and_the_rest_is_what_it_was() -> None:
    scene, maps = scene_and_maps("a", "b", "c")
    samples = Samples(Store([scene], maps, 5, 1 << 30), [scene.labels], 5, 3)
    whole = loader(samples, Draws(samples, SampleSettings(batch=50), train=True))
    draws = Draws(samples, SampleSettings(batch=50, modality_dropout={"a": 0.4, "b": 0.4, "c": 0.4}), train=True)
    for table, full, batch in zip(draws, whole, loader(samples, draws), strict=True):
        dropped = torch.from_numpy(gone(table)).bool()
        for bit, name in enumerate(("a", "b", "c")):
            assert batch.images[name][dropped[:, bit]].isnan().all()
            assert torch.equal(batch.images[name][~dropped[:, bit]], full.images[name][~dropped[:, bit]])
        assert torch.equal(batch.target, full.target)
    by_workers = loader(samples, Draws(samples, SampleSettings(batch=50, workers=1, modality_dropout=0.4), train=True))
    again = loader(samples, Draws(samples, SampleSettings(batch=50, modality_dropout=0.4), train=True))
    for one, other in zip(by_workers, again, strict=True):
        for name in one.images:
            np.testing.assert_array_equal(one.images[name], other.images[name])


def test_a_pixel_at_which_nothing_is_left_is_not_learnt_from() -> None:
    scene, maps = scene_and_maps("a", "b")
    scene = without_data(scene, "b", bands=1, dtype="float32", zoom=1, units="1")
    maps = {name: maps[name] for name in ("a", "b")}
    samples = Samples(Store([scene], maps, 3, 1 << 30), [scene.labels], 3, 1)
    where = [[0, row, 7, 8 * mask] for row, mask in ((5, 0b00), (5, 0b01), (5, 0b10))]
    target = samples[np.array(where)].target[:, 0, 0].tolist()
    assert target == [scene.labels[5, 7], UNLABELLED, scene.labels[5, 7]]


@pytest.mark.parametrize("droppable", [(), ("b",), ("a", "b")])
def test_what_can_be_mapped(droppable: tuple[str, ...]) -> None:
    """All that must be there is there, and one of all."""
    scene = simulate_flat(12, 12, {"a": 2, "b": 2})
    values = {name: scene.read(name, scene.grid.window) for name in scene.modalities}
    values["a"][:, :4] = np.nan
    values["b"][0, :, :4] = np.nan  # one band is enough

    class Held:
        def __init__(self, name: str) -> None:
            self.name, self.bands, self.dtype, self.grid = name, 2, "float32", scene.grid

        def read(self, window: Window) -> NDArray[np.float32]:
            return values[self.name][:, *window.within(scene.grid.window)]

    scene = Scene(
        "held",
        scene.grid,
        {n: type(m)(Held(n), m.zoom, m.units) for n, m in scene.modalities.items()},  # type: ignore[arg-type]
        scene.legend,
    )
    maps = {name: PixelMap(torch.full((2,), 2.0), torch.ones(2)) for name in ("a", "b")}
    for name in droppable:
        maps[name].instead = torch.nan
    patchwork = read_patchwork(scene, scene.grid.window, maps)
    known = {name: np.asarray(np.isfinite(values[name]).all(axis=0)) for name in values}
    expected = np.ones((12, 12), bool)
    for row, col in itertools.product(range(12), repeat=2):
        must = all(known[name][row, col] for name in values if name not in droppable)
        expected[row, col] = must and any(known[name][row, col] for name in values)
    np.testing.assert_array_equal(patchwork.valid, expected)
    for name in values:
        table = patchwork.tables[name].numpy().reshape(12, 12, 2)
        np.testing.assert_array_equal(table[known[name]], np.moveaxis(values[name], 0, -1)[known[name]] * 2 + 1)
        if name in droppable:
            assert np.isnan(table[~known[name]]).all(), "a pixel has all its bands or none"
        else:
            assert not np.isnan(table).any()
    maps["a"].instead = 0.0
    assert (read_patchwork(scene, scene.grid.window, maps).tables["a"].reshape(12, 12, 2)[:4] == 0).all()
