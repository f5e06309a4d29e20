"""Windows against a plain loop; draws that depend on the seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import SimulatedRaster
from landfuse.training.samples import Draws, Samples, WindowSampler, loader
from landfuse.training.settings import SampleSettings
from landfuse.views import store as store_module
from landfuse.views.mapped_pixels import fit_pixel_maps, read_mapped_pixels
from landfuse.views.pixel_map import PixelMap
from landfuse.views.settings import PixelMapSettings
from landfuse.views.store import Store

TURNS: list[Callable[[NDArray[Any]], NDArray[Any]]] = [
    lambda x: x,
    lambda x: x[..., ::-1, :],
    lambda x: x[..., :, ::-1],
    lambda x: x[..., ::-1, ::-1],
    lambda x: x.swapaxes(-1, -2),
    lambda x: x.swapaxes(-1, -2)[..., ::-1, :],
    lambda x: x.swapaxes(-1, -2)[..., :, ::-1],
    lambda x: x.swapaxes(-1, -2)[..., ::-1, ::-1],
]
"""The eight flips and quarter turns of a square, each once; in what order the code numbers them is its own affair."""


class _Array:
    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def __call__(self, window: Window) -> NDArray[np.float32]:
        height, width = self.values.shape[1:]
        assert window.row >= 0
        assert window.col >= 0
        assert window.row + window.height <= height
        assert window.col + window.width <= width
        return self.values[:, *window.within(Window(0, 0, height, width))].copy()


class _Labels:
    def __init__(self, labels: NDArray[np.uint8]) -> None:
        self.labels = labels

    def __call__(self) -> NDArray[np.uint8]:
        return self.labels


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """So small that the scenes below have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_BLOCK", 16)
        yield


def scene_of(height: int, width: int, zooms: dict[str, int], *, seed: int = 0, holes: float = 0.0) -> Scene:
    """A scene of noise with labels of three classes; `holes` is the fraction of pixels without data."""
    rng = np.random.default_rng(seed)
    grid = Grid(height, width)
    modalities = {}
    for bands, (name, zoom) in enumerate(zooms.items(), start=1):
        values = rng.normal(size=(bands, height * zoom, width * zoom)).astype(np.float32)
        values[:, rng.random(values.shape[1:]) < holes] = np.nan
        modalities[name] = SceneModality(SimulatedRaster(grid.zoomed(zoom), bands, _Array(values), name), zoom)
    labels = rng.choice(np.array([0, 1, 2, UNLABELLED], np.uint8), (height, width), p=[0.5, 0.3, 0.1, 0.1])
    legend = Legend(tuple(LandClass(f"c{i}", i, "#000000") for i in range(3)))
    return Scene(f"noise-{seed}", grid, modalities, legend, _Labels(labels))


def plain_maps(scene: Scene) -> dict[str, PixelMap]:
    """Maps that leave values as they are, but for NaN."""
    return {
        name: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for name, m in scene.modalities.items()
    }


def folded(place: int, size: int) -> int:
    """A place as one inside, mirrored at the edges one step at a time."""
    while not 0 <= place < size:
        place = -1 - place if place < 0 else 2 * size - 1 - place
    return place


def plain_view(scene: Scene, name: str, row: int, col: int, view: int) -> NDArray[np.float32]:
    zoom = scene.modalities[name].zoom
    side = view * zoom
    values = np.nan_to_num(scene.modalities[name].raster.read(scene.grid.zoomed(zoom).window))
    out = np.empty((len(values), side, side), np.float32)
    for r, c in itertools.product(range(side), repeat=2):
        out[:, r, c] = values[:, folded(row * zoom + r, values.shape[1]), folded(col * zoom + c, values.shape[2])]
    return out


def plain_target(scene: Scene, targets: NDArray[np.uint8], row: int, col: int, core: int) -> NDArray[np.uint8]:
    out = np.full((core, core), UNLABELLED, np.uint8)
    for r, c in itertools.product(range(core), repeat=2):
        y, x = row + r, col + c
        if not (0 <= y < scene.grid.height and 0 <= x < scene.grid.width):
            continue
        known = all(
            np.isfinite(m.raster.read(Window(y * m.zoom, x * m.zoom, m.zoom, m.zoom))).all()
            for m in scene.modalities.values()
        )
        if known:
            out[r, c] = targets[y, x]
    return out


def draws_of(rows: Any, cols: Any, turns: Any = None, scenes: Any = None) -> Draws:
    """Draws of so many windows; two modalities or more, none dropped."""
    row = np.asarray(rows, np.int64)
    col, still = np.asarray(cols, np.int64), np.zeros(len(row), np.int64)
    turn, scene = (still if given is None else np.array(list(given), np.int64) for given in (turns, scenes))
    return Draws(
        scene, row, col, turn, np.zeros((len(row), 3), bool), np.zeros((len(row), 0), bool), np.zeros(len(row), bool)
    )


def joined(sampler: WindowSampler) -> Draws:
    """All draws of an epoch."""
    return together(list(sampler))


def together(parts: list[Draws]) -> Draws:
    return Draws(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Draws)))


def places(draws: Draws) -> NDArray[np.int64]:
    """Scene, row and column: (B, 3)."""
    return np.stack([draws.scene, draws.row, draws.col], axis=1)


def turns_that_fit(image: NDArray[Any], truth: NDArray[Any]) -> set[int]:
    return {number for number, turn in enumerate(TURNS) if np.array_equal(image, turn(truth))}


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (3, 1), (5, 3), (4, 4), (12, 2)]),
    st.sampled_from([(1, 1), (1, 3), (1, 10)]),
    st.integers(0, 2**31),
    st.sampled_from([0, 1 << 30]),
)
def test_windows_are_those_of_a_plain_loop(
    height: int, width: int, shape: tuple[int, int], zooms: tuple[int, int], seed: int, memory: int
) -> None:
    view, core = shape
    scene = scene_of(height, width, {"a": zooms[0], "b": zooms[1]}, seed=seed, holes=0.02)
    rng = np.random.default_rng(seed)
    store = Store([scene], plain_maps(scene), view, memory)
    assert store.in_memory == bool(memory)
    rows, cols = rng.integers(1 - core, height, 3), rng.integers(1 - core, width, 3)
    batch = Samples(store, [scene.labels], view, core)[draws_of(rows, cols)]
    assert batch.target.shape == (3, core, core)
    halo = (view - core) // 2
    for number, (row, col) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True)):
        for name, image in batch.images.items():
            side = view * scene.modalities[name].zoom
            assert image.shape[2:] == (side, side)
            np.testing.assert_array_equal(image[number], plain_view(scene, name, row - halo, col - halo, view))
        np.testing.assert_array_equal(batch.target[number], plain_target(scene, scene.labels, row, col, core))


def test_all_eight_turns_are_applied_alike() -> None:
    scene = scene_of(9, 11, {"a": 1, "b": 2, "c": 3}, holes=0.05)
    view, core = 6, 4
    draws = draws_of([2] * 8, [3] * 8, range(8))
    batch = Samples(Store([scene], plain_maps(scene), view, 1 << 30), [scene.labels], view, core)[draws]
    seen = []
    for number in range(8):
        fits = [
            turns_that_fit(batch.images[name][number].numpy(), plain_view(scene, name, 1, 2, view))
            for name in ("a", "b", "c")
        ]
        fits.append(turns_that_fit(batch.target[number].numpy(), plain_target(scene, scene.labels, 2, 3, core)))
        assert len(fits[0]) == 1, "one turn of three bands of noise"
        assert all(fit == fits[0] for fit in fits)
        seen += fits[0]
    assert sorted(seen) == list(range(8))


def test_reading_a_window_is_reading_its_pixels() -> None:
    scene = scene_of(7, 5, {"a": 1, "b": 2})
    mapped = read_mapped_pixels(scene, Window(-3, -4, 15, 12), plain_maps(scene))
    images = mapped.views(torch.tensor([-3, 2]), torch.tensor([-4, 1]), 4)
    for name in ("a", "b"):
        for number, (row, col) in enumerate([(-3, -4), (2, 1)]):
            np.testing.assert_array_equal(images[name][number], plain_view(scene, name, row, col, 4))
    assert mapped.valid.all()


@pytest.mark.parametrize("side", [20, 40])  # small squares are looked up pixel by pixel, large ones copied by rows
@pytest.mark.parametrize("last", [(30, 24), (31, 24), (30, 25)])  # the square of 40 px ends with the window, or beyond
def test_large_squares_are_those_of_their_pixels(side: int, last: tuple[int, int]) -> None:
    scene = scene_of(70, 64, {"a": 1, "b": 2})
    mapped = read_mapped_pixels(scene, scene.grid.window, plain_maps(scene))
    places = [(0, 0), (11, 7), last]
    rows, cols = (torch.tensor(values) for values in zip(*places, strict=True))
    images = mapped.views(rows, cols, side)
    for name in ("a", "b"):
        assert images[name].is_contiguous(memory_format=torch.channels_last)
        for number, (row, col) in enumerate(places):
            np.testing.assert_array_equal(images[name][number], plain_view(scene, name, row, col, side))


def test_pixels_are_mapped_alike_whatever_strip_they_lie_in(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(90, 80, {"a": 1})
    bands = scene.modalities["a"].raster.bands
    mixed = PixelMap(torch.linspace(-1, 1, 2 * bands).reshape(2, bands), torch.tensor([0.5, -2.0]))
    whole = mixed(torch.from_numpy(scene.read("a", scene.grid.window)).flatten(1).T)
    monkeypatch.setattr("landfuse.views.mapped_pixels._STRIP", 1)
    table = read_mapped_pixels(scene, scene.grid.window, {"a": mixed}).tables["a"]
    assert table.is_contiguous()
    assert torch.equal(table, whole), "7,200 pixels, in strips of 4,096"


def all_batches(samples: Samples, given: SampleSettings, epoch: int = 0, **options: Any) -> list[Any]:
    sampler = WindowSampler(samples, given, **{"train": True, **options})
    sampler.set_epoch(epoch)
    return list(loader(samples, sampler))


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.target, other.target)
        and one.images.keys() == other.images.keys()
        and all(torch.equal(one.images[name], other.images[name]) for name in one.images)
        for one, other in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def two_tiles() -> list[Scene]:
    return [scene_of(40, 30, {"a": 1, "b": 2}, seed=seed, holes=0.01) for seed in (1, 2)]


def samples_of(scenes: list[Scene], view: int, core: int, memory: int = 1 << 30) -> Samples:
    everywhere = [np.ones(scene.labels.shape, bool) for scene in scenes]
    wanted = {"a": PixelMapSettings(), "b": PixelMapSettings(kind="pca", components=2)}
    maps = fit_pixel_maps(scenes, everywhere, wanted)
    return Samples(Store(scenes, maps, view, memory), [scene.labels for scene in scenes], view, core)


def test_the_batches_are_the_same_for_any_number_of_workers(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 7, 3)
    by_workers = {
        workers: all_batches(samples, SampleSettings(batch=64, workers=workers), seed=5) for workers in (0, 1, 2)
    }
    assert same(by_workers[0], by_workers[1])
    assert same(by_workers[0], by_workers[2])
    assert not same(by_workers[0], all_batches(samples, SampleSettings(batch=64), seed=6))
    assert not same(by_workers[0], all_batches(samples, SampleSettings(batch=64), epoch=1, seed=5))


def test_read_by_blocks_or_held_in_memory_is_the_same(two_tiles: list[Scene]) -> None:
    given = SampleSettings(batch=32, windows=100)
    held = all_batches(samples_of(two_tiles, 5, 3), given)
    samples = samples_of(two_tiles, 5, 3, memory=80_000)
    assert not samples.store.in_memory
    assert same(held, all_batches(samples, given))
    assert 1 < len(samples.store._held) < 12
    assert samples.store.held_bytes <= 80_000


def test_each_labelled_pixel_is_drawn_once_per_epoch(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 5, 1)
    drawn = joined(WindowSampler(samples, SampleSettings(batch=50), train=True, seed=3))
    expected = {(n, r, c) for n, s in enumerate(two_tiles) for r, c in zip(*np.nonzero(s.labels != 255), strict=True)}
    assert len(drawn) == len(expected)
    assert {tuple(place) for place in places(drawn).tolist()} == expected
    assert set(drawn.turn.tolist()) == set(range(8))
    still = joined(WindowSampler(samples, SampleSettings(augment=False), train=True))
    assert not still.turn.any()


def test_draws_are_typed_and_of_one_length(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 5, 1)
    for train in (True, False):
        for draws in WindowSampler(samples, SampleSettings(batch=50), train=train):
            count = len(draws)
            for name in ("scene", "row", "col", "turn"):
                values = getattr(draws, name)
                assert (values.dtype, values.shape) == (np.int64, (count,)), name
            assert (draws.dropped.dtype, draws.dropped.shape) == (bool, (count, 2)), "a column per modality"
            assert (draws.filler.dtype, draws.filler.shape) == (bool, (count,))
            assert not draws.filler.any(), "one rank needs none"
            some = draws.take(np.array([3, 0, 0]))
            assert len(some) == 3
            for field in fields(Draws):
                np.testing.assert_array_equal(getattr(some, field.name), getattr(draws, field.name)[[3, 0, 0]])
            with pytest.raises(AttributeError):
                draws.row = draws.col  # type: ignore[misc]


def test_windows_of_several_scenes_come_back_in_their_order(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 5, 3)
    rng = np.random.default_rng(0)
    scenes, rows, cols, turns = (rng.integers(0, most, 12) for most in (2, 38, 28, 8))
    draws = replace(draws_of(rows, cols, turns, scenes), dropped=np.zeros((12, 2), bool))
    batch = samples[draws]
    for number in range(12):
        alone = samples[draws.take(np.array([number]))]
        assert torch.equal(batch.target[number], alone.target[0])
        for name in ("a", "b"):
            assert torch.equal(batch.images[name][number], alone.images[name][0])


def test_a_core_lies_at_any_place_over_its_pixel(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 6, 4)
    only = np.full(two_tiles[0].labels.shape, UNLABELLED, np.uint8)
    only[20, 10] = 1
    samples.targets = [only, np.full_like(only, UNLABELLED)]
    drawn = joined(WindowSampler(samples, SampleSettings(windows=800), train=True))
    offsets = {(20 - row, 10 - col) for _, row, col in places(drawn).tolist()}
    assert offsets == set(itertools.product(range(4), repeat=2))


def test_balanced_draws_each_class_equally_often(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 3, 1)
    labels = np.stack([scene.labels for scene in two_tiles])

    def draw(balanced: bool) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        drawn = joined(WindowSampler(samples, SampleSettings(windows=3000, balanced=balanced), train=True))
        return places(drawn), labels[drawn.scene, drawn.row, drawn.col]

    drawn, classes = draw(balanced=True)
    assert np.bincount(classes, minlength=3).tolist() == [1000, 1000, 1000]
    rare = drawn[classes == 2]
    assert len(np.unique(rare, axis=0)) > 0.9 * (labels == 2).sum(), "all pixels of the class, not a few"
    frequency = np.bincount(labels[labels != UNLABELLED]) / (labels != UNLABELLED).sum()
    np.testing.assert_allclose(np.bincount(draw(balanced=False)[1], minlength=3) / 3000, frequency, atol=0.03)


@pytest.mark.parametrize(("view", "core"), [(5, 1), (8, 8), (11, 7)])
def test_validation_covers_each_labelled_pixel_once(two_tiles: list[Scene], view: int, core: int) -> None:
    samples = samples_of(two_tiles, view, core)
    walk = WindowSampler(samples, SampleSettings(batch=16), train=False)
    seen = [np.zeros(scene.labels.shape, int) for scene in two_tiles]
    for draws in walk:
        assert not draws.turn.any()
        target = samples[draws].target.numpy()
        for (tile, row, col), square in zip(places(draws).tolist(), target, strict=True):
            for r, c in zip(*np.nonzero(square != UNLABELLED), strict=True):
                assert square[r, c] == two_tiles[tile].labels[row + r, col + c]
                seen[tile][row + r, col + c] += 1
    for scene, counts in zip(two_tiles, seen, strict=True):
        known = np.isfinite(scene.read("a", scene.grid.window)).all(0)
        fine = np.isfinite(scene.read("b", scene.grid.window)).all(0)
        known &= fine.reshape(40, 2, 30, 2).all(axis=(1, 3))
        assert not known.all()
        np.testing.assert_array_equal(counts, (scene.labels != UNLABELLED) & known)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_divide_each_batch(two_tiles: list[Scene], train: bool, ranks: int) -> None:
    samples = samples_of(two_tiles, 5, 1)
    given = SampleSettings(batch=101)
    whole = list(WindowSampler(samples, given, train=train, seed=1))
    of_ranks = [list(WindowSampler(samples, given, train=train, seed=1, rank=r, ranks=ranks)) for r in range(ranks)]
    assert {len(batches) for batches in of_ranks} == {len(whole)}
    for step, batch in enumerate(whole):
        parts = [batches[step] for batches in of_ranks]
        assert len({len(part) for part in parts}) == 1, "batches of one size on all ranks"
        every = together(parts)
        for field in fields(Draws):
            found = getattr(every, field.name)[~every.filler]
            np.testing.assert_array_equal(found, getattr(batch, field.name))
        filler = every.take(np.flatnonzero(every.filler))
        assert len(filler) < ranks
        if len(filler):
            assert (samples[filler].target == UNLABELLED).all()


def test_batches_are_of_even_size(two_tiles: list[Scene]) -> None:
    sampler = WindowSampler(samples_of(two_tiles, 5, 1), SampleSettings(batch=64, windows=129), train=True)
    assert [len(batch) for batch in sampler] == [43, 43, 43]
    assert len(sampler) == 3
    assert [len(batch) for batch in WindowSampler(sampler.samples, SampleSettings(windows=5), train=True)] == [5]


def test_nothing_to_draw_from_is_an_error(two_tiles: list[Scene]) -> None:
    samples = samples_of(two_tiles, 5, 1)
    samples.targets = [np.full_like(target, UNLABELLED) for target in samples.targets]
    with pytest.raises(SplitError, match="no labelled pixel"):
        WindowSampler(samples, SampleSettings(), train=True)
