"""A scene is read in windows of any size at any place; beyond its edges it is mirrored."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landfuse.errors import SceneError
from landfuse.legend import LandClass, Legend
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import ModalityInfo, Scene, SceneModality, validity

LEGEND = Legend((LandClass("a", 1, "#000000"),))


class Whole:
    """A raster in memory that refuses windows which are not inside it."""

    dtype = "float32"
    path = "memory"

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array = array
        self.bands = len(array)
        self.grid = Grid(*array.shape[1:])

    def read(self, window: Window) -> NDArray[np.float32]:
        assert window.intersection(self.grid.window) == window
        assert not window.empty
        return self.array[:, *window.within(self.grid.window)]


def scene_of(height: int, width: int, zooms: dict[str, int], bands: int = 2) -> Scene:
    rng = np.random.default_rng(0)
    modalities = {
        name: SceneModality(Whole(rng.uniform(size=(bands, height * zoom, width * zoom)).astype(np.float32)), zoom)
        for name, zoom in zooms.items()
    }
    return Scene("s", Grid(height, width), modalities, LEGEND)


def folded(index: int, size: int) -> int:
    """Steps back at each edge, pixel by pixel."""
    while not 0 <= index < size:
        index = -1 - index if index < 0 else 2 * size - 1 - index
    return index


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(-25, 25), st.integers(-25, 25), st.integers(1, 20), st.integers(1, 20)),
    zoom=st.sampled_from([1, 2, 10]),
)
def test_any_window_against_a_plain_loop(size: tuple[int, int], window: tuple[int, int, int, int], zoom: int) -> None:
    scene = scene_of(*size, {"m": zoom}, bands=1)
    array = scene.modalities["m"].raster.read(Window(0, 0, size[0] * zoom, size[1] * zoom))
    got = scene.read("m", Window(*window))
    row, col, height, width = (number * zoom for number in window)
    expected = np.empty((1, height, width), np.float32)
    cols = [folded(col + j, size[1] * zoom) for j in range(width)]
    for i in range(height):
        expected[0, i] = array[0, folded(row + i, size[0] * zoom), cols]
    np.testing.assert_array_equal(got, expected)
    assert got.flags.c_contiguous


def test_modalities_of_different_zoom_stay_on_each_other() -> None:
    coarse = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    fine = coarse.repeat(10, axis=1).repeat(10, axis=2)
    modalities = {"coarse": SceneModality(Whole(coarse)), "fine": SceneModality(Whole(fine), 10)}
    scene = Scene("s", Grid(3, 4), modalities, LEGEND)
    for window in (Window(-7, -5, 20, 22), Window(2, 3, 4, 4), Window(-1, 0, 2, 2)):
        one, ten = scene.read("coarse", window), scene.read("fine", window)
        np.testing.assert_array_equal(ten, one.repeat(10, axis=1).repeat(10, axis=2))


@pytest.mark.parametrize("zoom", [1, 3])
def test_validity_needs_every_band_of_every_fine_pixel(zoom: int) -> None:
    values = np.ones((2, 4 * zoom, 5 * zoom), np.float32)
    values[1, 1 * zoom, 2 * zoom] = np.nan
    values[0, 4 * zoom - 1, 5 * zoom - 1] = np.inf
    expected = np.ones((4, 5), bool)
    expected[1, 2] = expected[3, 4] = False
    info = ModalityInfo(2, "float32", "", zoom)
    np.testing.assert_array_equal(validity(values, info), expected)


def counted(calls: list[int]) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        calls.append(1)
        return np.zeros((3, 4), np.uint8)

    return read


def test_labels_are_read_once() -> None:
    calls: list[int] = []
    scene = Scene("s", Grid(3, 4), {}, LEGEND, counted(calls))
    assert scene.labels is scene.labels
    assert len(calls) == 1
    with pytest.raises(SceneError, match="the scene `s` has no labels"):
        _ = Scene("s", Grid(3, 4), {}, LEGEND).labels


def zeros() -> NDArray[np.uint8]:
    return np.zeros((500, 400), np.uint8)


def test_sent_to_another_process_without_what_it_holds(tmp_path: Path) -> None:
    grid = Grid(500, 400)
    array = np.random.default_rng(0).uniform(size=(2, 500, 400)).astype(np.float32)
    write_raster(tmp_path / "x.tif", grid, array, nodata=None)
    scene = Scene("s", grid, {"m": SceneModality(GdalRaster(str(tmp_path / "x.tif")))}, LEGEND, zeros)
    scene.read("m", grid.window)
    assert scene.labels.shape == (500, 400)
    sent = pickle.dumps(scene)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.read("m", Window(-3, 5, 9, 9)), scene.read("m", Window(-3, 5, 9, 9)))
    np.testing.assert_array_equal(again.labels, scene.labels)


def test_a_scene_of_arrays_has_a_name_that_is_no_place() -> None:
    with pytest.raises(SceneError, match=r"a scene is named '\.\./x'"):
        Scene.from_arrays({"a": np.zeros((1, 4, 4))}, name="../x")
    with pytest.raises(SceneError, match="a scene is named"):
        Scene.from_arrays({"a": np.zeros((1, 4, 4))}, name="\ud83c")
