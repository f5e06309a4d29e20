"""Which pixels can be mapped, what stands in where data lack, and mapped windows against plain loops."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import ModalityInfo, Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.views.mapped_pixels import read_mapped_pixels
from landfuse.views.pixel_map import PixelMap
from landfuse.views.reading import read_window
from landfuse.views.store import Store

ZOOMS = {"a": 1, "b": 2}
SIDE = 12


class Held:
    """A raster that holds its values."""

    def __init__(self, grid: Grid, values: NDArray[np.float32]) -> None:
        self.grid, self.values = grid, values
        self.bands, self.dtype, self.path = len(values), "float32", "(held)"

    def read(self, window: Window) -> NDArray[np.float32]:
        return self.values[:, *window.within(self.grid.window)]


@pytest.fixture
def values() -> dict[str, NDArray[np.float32]]:
    """Two modalities of two bands: `a` lacks its first rows, `b` (twice as fine) its first columns, in one band only,
    and one fine pixel elsewhere."""
    rng = np.random.default_rng(0)
    found = {n: rng.normal(size=(2, SIDE * zoom, SIDE * zoom)).astype(np.float32) for n, zoom in ZOOMS.items()}
    found["a"][:, :4] = np.nan
    found["b"][0, :, :8] = np.nan
    found["b"][1, 17, 19] = np.nan  # of pixel (8, 9)
    return found


@pytest.fixture
def scene(values: dict[str, NDArray[np.float32]]) -> Scene:
    made = simulate_flat(SIDE, SIDE, {"a": 2})
    parts = {n: SceneModality(Held(made.grid.zoomed(ZOOMS[n]), v), ZOOMS[n]) for n, v in values.items()}
    return Scene("held", made.grid, parts, made.legend)


def maps() -> dict[str, PixelMap]:
    return {name: PixelMap(torch.full((2,), 2.0), torch.ones(2)) for name in ZOOMS}


def known_at(values: dict[str, NDArray[np.float32]], name: str, row: int, col: int) -> bool:
    zoom = ZOOMS[name]
    return bool(np.isfinite(values[name][:, row * zoom : (row + 1) * zoom, col * zoom : (col + 1) * zoom]).all())


@pytest.mark.parametrize("stand_in", [math.nan, 0.0])
@pytest.mark.parametrize("droppable", ["", "a", "b", "ab"])
def test_what_can_be_mapped(
    scene: Scene, values: dict[str, NDArray[np.float32]], droppable: str, stand_in: float
) -> None:
    """All that must have data has some, and so has one of all."""
    stand_ins = dict.fromkeys(droppable, stand_in)
    mapped = read_mapped_pixels(scene, scene.grid.window, maps(), stand_ins)
    expected = np.ones((SIDE, SIDE), bool)
    for row, col in itertools.product(range(SIDE), repeat=2):
        must = all(known_at(values, name, row, col) for name in values if name not in droppable)
        expected[row, col] = must and any(known_at(values, name, row, col) for name in values)
    np.testing.assert_array_equal(mapped.valid, expected)
    assert expected.any()
    assert not expected.all()
    for name, zoom in ZOOMS.items():
        table = mapped.tables[name].numpy().reshape(SIDE * zoom, SIDE * zoom, 2)
        whole = np.moveaxis(values[name], 0, -1)
        known = np.isfinite(whole).all(axis=-1)
        np.testing.assert_array_equal(table[known], whole[known] * 2 + 1)
        if name in droppable:
            np.testing.assert_array_equal(table[~known], np.full_like(table[~known], stand_in))
        else:
            np.testing.assert_array_equal(table[~known], np.nan_to_num(whole[~known] * 2 + 1))


def test_a_window_is_read_modality_by_modality(scene: Scene, values: dict[str, NDArray[np.float32]]) -> None:
    infos = {name: scene.modalities[name].info for name in ("b", "a")}
    window = Window(-2, 6, 9, 10)
    seen: dict[str, NDArray[np.float32]] = {}
    valid = read_window(scene, window, infos, {}, seen.__setitem__)
    assert list(seen) == ["b", "a"], "in the order that was asked for"
    assert valid.shape == (9, 10)
    for name, zoom in ZOOMS.items():
        assert seen[name].shape == (2, 9 * zoom, 10 * zoom)
        np.testing.assert_array_equal(seen[name], scene.read(name, window))
    for row, col in itertools.product(range(9), range(10)):
        y, x = row - 2, col + 6
        y, x = (-1 - y if y < 0 else y), (2 * SIDE - 1 - x if x >= SIDE else x)  # the mirror image
        assert valid[row, col] == all(known_at(values, name, y, x) for name in ZOOMS)


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_modality_that_is_missing_from_the_scene_is_nan(
    scene: Scene, values: dict[str, NDArray[np.float32]], missing: str
) -> None:
    infos = {name: part.info for name, part in scene.modalities.items()}
    left = Scene(scene.name, scene.grid, {n: p for n, p in scene.modalities.items() if n != missing}, scene.legend)
    [other] = left.modalities
    window, seen = Window(-1, 2, 8, 8), {}
    valid = read_window(left, window, infos, {missing: math.nan}, seen.__setitem__)
    zoom = ZOOMS[missing]
    assert seen[missing].shape == (2, 8 * zoom, 8 * zoom)
    assert seen[missing].dtype == np.float32
    assert np.isnan(seen[missing]).all()
    whole: dict[str, NDArray[np.float32]] = {}
    alone = read_window(scene, window, {other: infos[other]}, {}, whole.__setitem__)
    np.testing.assert_array_equal(valid, alone), "where the other one has data"
    np.testing.assert_array_equal(seen[other], whole[other])
    assert not read_window(left, window, infos, {}, seen.__setitem__).any(), "it must have data"
    both = dict.fromkeys(ZOOMS, math.nan)
    np.testing.assert_array_equal(read_window(left, window, infos, both, seen.__setitem__), alone)


def test_nothing_to_read_can_be_mapped_nowhere(scene: Scene) -> None:
    assert not read_window(scene, scene.grid.window, {}, {}, lambda name, values: None).any()


def test_a_missing_modality_has_the_bands_of_its_description(scene: Scene) -> None:
    seen: dict[str, NDArray[np.float32]] = {}
    info = ModalityInfo(5, "int16", "dB", 3)
    read_window(scene, Window(0, 0, 2, 4), {"gone": info}, {"gone": 0.0}, seen.__setitem__)
    assert seen["gone"].shape == (5, 6, 12)


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_a_store_has_its_stand_ins_in_every_view(scene: Scene, memory: int) -> None:
    store = Store([scene], maps(), 3, memory, {"a": math.nan})
    for held in (store, pickle.loads(pickle.dumps(store))):
        [(_, _, mapped)] = held.grouped(torch.tensor([[0, 2, 5]]))
        views = mapped.views(torch.tensor([2]), torch.tensor([5]), 4)
        assert views["a"][0, :, :2].isnan().all(), "rows 2 and 3 of `a` have no data"
        assert not views["a"][0, :, 2:].isnan().any()
        assert not views["b"].isnan().any()
    plain = Store([scene], maps(), 3, memory)
    [(_, _, mapped)] = plain.grouped(torch.tensor([[0, 2, 5]]))
    assert not mapped.views(torch.tensor([2]), torch.tensor([5]), 4)["a"].isnan().any()


@pytest.mark.parametrize(("free", "device"), [(3 * 10 * 10 * 4 * 8, "cuda"), (3 * 10 * 10 * 4 * 8 - 1, "cpu")])
def test_scenes_are_held_on_a_gpu_only_where_they_take_little_of_what_is_free(
    free: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = simulate_flat(10, 10, {"a": 3})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10 * free))
    store = Store([scene], {"a": PixelMap(torch.ones(3), torch.zeros(3))}, 0, 1 << 30, device="cuda", room=1 / 8)
    assert store.device.type == device
