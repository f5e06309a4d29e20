"""Scenes from arrays, DataArrays, paths and data frames: what fits together, what comes back, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import landfuse as lf
from landfuse.errors import GridError, SceneError, SettingsError
from landfuse.rasters.arrays import ArrayRaster, array_raster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.raster import state_of
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import SceneModality

xarray = pytest.importorskip("xarray")
rioxarray = pytest.importorskip("rioxarray")

GRID = Grid(20, 30, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.training.train.save", lambda *_: None)


def values(bands: int = 3, grid: Grid = GRID, seed: int = 0) -> np.ndarray:
    shape = (bands, grid.height, grid.width)
    return np.random.default_rng(seed).integers(0, 9000, shape).astype(np.int16)


def labels(grid: Grid = GRID) -> np.ndarray:
    return (np.add.outer(np.arange(grid.height) // 3, np.arange(grid.width) // 3) % 3).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_raster(tmp_path / "s2.tif", GRID, values(), nodata=-1)
    return tmp_path / "s2.tif"


def data_array(grid: Grid = GRID, bands: int = 3, crs: str | None = "EPSG:32632", **words: Any) -> Any:
    a, _, c, _, e, f = grid.transform
    coords = {
        "x": c + a * (np.arange(grid.width) + 0.5),
        "y": f + e * (np.arange(grid.height) + 0.5),
        "band": np.arange(1, bands + 1),
    }
    array = xarray.DataArray(values(bands, grid), coords, ("band", "y", "x"), **words)
    return array.rio.write_crs(crs) if crs else array


# ---- one raster ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["band y x", "x y band", "y band x", "y x band"])
def test_a_data_array_reads_as_the_file_whatever_the_order_of_its_dimensions(axes: str, path: Path) -> None:
    opened = rioxarray.open_rasterio(path)
    scene = lf.Scene.from_arrays({"array": opened.transpose(*axes.split()), "file": path})
    assert scene.grid == GRID
    window = Window(-3, 5, 12, 40)
    np.testing.assert_array_equal(scene.read("array", window), scene.read("file", window))
    assert scene.modalities["array"].info == scene.modalities["file"].info


def test_numbers_of_a_data_array_mean_what_its_attributes_say() -> None:
    array = data_array(attrs={"_FillValue": 7, "scale_factor": 0.1, "add_offset": -1.0, "units": "m"})
    array[0, 2, 3] = 7
    scene = lf.Scene.from_arrays({"h": array})
    read = scene.read("h", GRID.window)
    assert np.isnan(read[0, 2, 3])
    known = array.values[1:] != 7
    np.testing.assert_allclose(read[1:][known], array.values[1:][known] * 0.1 - 1, rtol=1e-5)
    assert scene.modalities["h"].units == "m"


def test_the_place_is_found_without_rioxarray(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [data_array(), data_array(crs=None).assign_attrs(crs="EPSG:32632")]
    monkeypatch.setitem(sys.modules, "rioxarray", None)
    for array in arrays:
        raster = array_raster(array, "a")
        assert raster.grid == GRID
        assert raster.grid.crs == "EPSG:32632"
    assert array_raster(data_array(crs=None).drop_vars(["x", "y"]), "a").grid == Grid(20, 30)
    assert array_raster(data_array(crs=None)[:, :1], "a").grid.georeferenced is False


def test_a_part_of_a_data_array_is_where_it_is(path: Path) -> None:
    opened = rioxarray.open_rasterio(path)
    assert array_raster(opened[:, 4:, 5:], "a").grid == GRID.part(Window(4, 5, 16, 25))
    named = opened.rename(y="lat", x="lon").drop_vars("spatial_ref")
    assert array_raster(named, "a").grid.transform == GRID.transform
    assert array_raster(opened.isel(band=0), "a").bands == 1
    opened.attrs["long_name"] = ("red", "green", "nir")[: opened.sizes["band"]]  # as it gives descriptions
    assert array_raster(opened.isel(band=[1, 0]), "a").names == ("green", "red")
    assert array_raster(opened, "a").with_bands([1]).names == ("green",)


def test_masked_values_are_no_data_and_memory_maps_are_read_by_windows(tmp_path: Path) -> None:
    masked = np.ma.masked_less(values(), 4000)
    read = array_raster(masked, "a").read(Window(0, 0, 20, 30))
    np.testing.assert_array_equal(np.isnan(read).all(axis=0), masked.mask.any(axis=0))
    np.save(tmp_path / "a.npy", values())
    mapped = array_raster(np.load(tmp_path / "a.npy", mmap_mode="r"), "a")
    np.testing.assert_array_equal(mapped.read(Window(3, 4, 5, 6)), values()[:, 3:8, 4:10])


def test_a_lazy_data_array_is_read_by_windows_only(path: Path) -> None:
    lazy = rioxarray.open_rasterio(path)
    raster = array_raster(lazy, "a")
    raster.read(Window(0, 0, 4, 4))
    assert not lazy.variable._in_memory
    with_dask = array_raster(rioxarray.open_rasterio(path, chunks={"x": 8, "y": 8}), "a")
    np.testing.assert_array_equal(with_dask.read(Window(3, 4, 5, 6)), raster.read(Window(3, 4, 5, 6)))


def test_a_digest_changes_with_the_pixels_only() -> None:
    first = array_raster(values(), "a")
    assert state_of(first) == state_of(array_raster(values(), "b")) == state_of(array_raster(values().copy("F"), "a"))
    changed = values()
    changed[2, 19, 29] += 1
    assert state_of(first) != state_of(array_raster(changed, "a"))
    assert isinstance(first, ArrayRaster)
    assert "digest" not in repr(first)


# ---- several on one grid ---------------------------------------------------------------------------------------------


def test_any_mixture_on_one_grid(path: Path) -> None:
    fine = GRID.zoomed(2)
    scene = lf.Scene.from_arrays(
        {"plain": values(1)[0], "file": path, "fine": data_array(fine, 2), "fine_plain": values(1, GRID.zoomed(4))},
        labels(),
    )
    assert scene.grid == GRID
    assert {name: part.zoom for name, part in scene.modalities.items()} == {
        "plain": 1, "file": 1, "fine": 2, "fine_plain": 4,
    }  # fmt: skip
    for part in scene.modalities.values():
        assert part.raster.grid == GRID.zoomed(part.zoom)
    finer_only = lf.Scene.from_arrays({"plain": values(), "fine": data_array(fine)})
    assert finer_only.grid == GRID, "the place comes from the finer one"


def test_arrays_alone_have_no_place() -> None:
    scene = lf.Scene.from_arrays({"a": values(), "b": np.zeros((40, 60))}, labels(), unlabelled=None)
    assert not scene.grid.georeferenced
    assert scene.modalities["b"].zoom == 2
    assert scene.legend.names == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (values()[:, :-1], "different sizes: `a` 20 x 30 px, `b` 19 x 30 px"),
        (np.zeros((30, 45)), "different sizes"),
        (data_array(Grid(20, 30, GRID.transform, "EPSG:32633"), crs="EPSG:32633"), "not on one grid.*EPSG:32633"),
        (data_array(Grid(20, 30, (10.0, 0.0, 5e5 + 5, 0.0, -10.0, 5e6))), "not on one grid.*500005"),
        (data_array(Grid(20, 30, (5.0, 0.0, 5e5, 0.0, -5.0, 5e6))), "not on one grid"),
        (data_array().sortby("y"), "not on one grid(.|\n)*sortby"),
    ],
    ids=["size", "factor", "CRS", "shifted", "pixel size", "turned over"],
)
def test_images_of_two_grids_are_refused(other: Any, message: str) -> None:
    with pytest.raises(GridError, match=message) as raised:
        lf.Scene.from_arrays({"a": data_array(), "b": other})
    assert raised.value.expected
    assert raised.value.do


def test_a_data_array_without_crs_fits_if_its_coordinates_do() -> None:
    scene = lf.Scene.from_arrays({"a": data_array(crs=None), "b": data_array()})
    assert scene.grid == GRID
    assert scene.modalities["a"].info == scene.modalities["b"].info


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (xarray.DataArray(np.zeros((4, 5))), SceneError, "dimensions dim_0, dim_1\n.*`y` and `x`(.|\n)*rename"),
        (xarray.DataArray(np.zeros((2, 3, 4, 5)), dims=("time", "band", "y", "x")), SceneError, "isel"),
        (
            xarray.DataArray(np.zeros((3, 4)), {"y": [0, 1, 5], "x": range(4)}, ("y", "x")),
            GridError,
            "`y` of `a` is not evenly",
        ),
        (np.zeros(5), SceneError, "the shape \\(5,\\)"),
        (np.zeros((0, 4, 4)), SceneError, "is empty"),
        (np.zeros((2, 4, 4), complex), SceneError, "holds complex128"),
        ("missing.tif", FileNotFoundError, "there is no file missing.tif"),
        ("a.mat", SceneError, "variable and axes are not known"),
    ],
)
def test_images_that_are_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lf.Scene.from_arrays({"a": image})


def test_what_is_no_mapping_of_images_is_refused() -> None:
    for images, message in ((values(), "ndarray"), ({}, "empty"), ({"a b": values()}, "named 'a b'")):
        with pytest.raises(SceneError, match=message):
            lf.Scene.from_arrays(images)  # type: ignore[arg-type]


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_of_each_kind_are_the_same(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    from shapely import box

    codes = np.zeros((20, 30), np.uint8)
    codes[:5, :6], codes[10:, 20:] = 3, 7
    shapes = [box(5e5, 5e6 - 50, 5e5 + 60, 5e6), box(5e5 + 200, 5e6 - 200, 5e5 + 300, 5e6 - 100)]
    frame = geopandas.GeoDataFrame({"code": [3, 7], "name": ["crop", "bog"]}, geometry=shapes, crs="EPSG:32632")
    frame.to_crs("EPSG:4326").to_file(tmp_path / "labels.gpkg")
    write_raster(tmp_path / "labels.tif", GRID, codes)
    placed = data_array(bands=1).copy(data=codes[None])
    image = {"a": data_array()}
    expected = lf.Scene.from_arrays(image, codes)
    assert [c.code for c in expected.legend] == [3, 7]
    for other, words in (
        (codes.astype(np.int64), {}),
        (np.where(codes, codes.astype(int), -1), {"unlabelled": -1}),
        (np.where(codes, codes, 9), {"unlabelled": (9, 0)}),
        (np.where(codes, codes, 9), {"unlabelled": np.array([9.0, np.nan, 0])}),
        (codes, {"legend": {3.0: "class 3", np.float64(7): "class 7"}}),
        (placed, {}),
        (placed.isel(band=0).transpose("x", "y"), {}),
        (np.ma.masked_equal(codes, 0), {"unlabelled": None}),
        (tmp_path / "labels.tif", {}),
        (frame, {"column": "code"}),
        (tmp_path / "labels.gpkg", {"column": "code"}),
    ):
        scene = lf.Scene.from_arrays(image, other, **words)
        np.testing.assert_array_equal(scene.labels, expected.labels)
        assert scene.legend == expected.legend
    named = lf.Scene.from_arrays(image, frame, column="name")
    assert [(c.name, c.code) for c in named.legend] == [("bog", 1), ("crop", 2)]
    for legend in (["bog", "crop"], {3: "crop", 7: "bog"}, named.legend):
        scene = lf.Scene.from_arrays(image, frame, legend=legend, column="name")
        assert (scene.legend.to_codes(scene.labels)[:5, :6] == {c.name: c.code for c in scene.legend}["crop"]).all()


def test_labels_of_one_signed_byte_and_of_true_and_false() -> None:
    image = {"a": values()}
    masked = lf.Scene.from_arrays(image, np.ma.masked_equal(labels().astype(np.int8), 1))
    np.testing.assert_array_equal(masked.labels, np.where(labels() == 2, 0, 255))
    flags = lf.Scene.from_arrays(image, labels() == 1)
    assert flags.legend.names == ["class 1"]
    np.testing.assert_array_equal(flags.labels, np.where(labels() == 1, 0, 255))


def test_a_modality_of_a_scene_keeps_what_its_file_says() -> None:
    raster = lf.Scene.from_arrays({"a": values()}).modalities["a"].raster
    given = SceneModality(raster, units="m", names=("x", "y", "z"), metres=2.0)
    kept = lf.Scene.from_arrays({"a": given}).modalities["a"].info
    assert (kept.units, kept.names, kept.metres) == ("m", ("x", "y", "z"), 2.0)


def test_the_legend_says_what_a_code_means() -> None:
    scene = lf.Scene.from_arrays({"a": values()}, labels(), legend={0: "water", 1: "grass", 2: "rock"})
    assert scene.legend.names == ["water", "grass", "rock"]
    np.testing.assert_array_equal(scene.labels, labels())  # 0 is a class, since the legend names it
    listed = lf.Scene.from_arrays({"a": values()}, labels(), legend=["grass", "rock"])
    assert (listed.labels == 255).sum() == (labels() == 0).sum()


@pytest.mark.parametrize(
    ("given", "words", "message"),
    [
        (labels(), {"legend": ["grass"]}, "hold the code 2, which no class has(.|\n)*unlabelled=\\[0, 2\\]"),
        (labels(), {"legend": "grass"}, "`legend` is 'grass'"),
        (labels(), {"legend": {"grass": 1}}, "`legend` is {'grass': 1}"),
        (labels(), {"legend": {1.5: "grass"}}, "`legend` is {1.5: 'grass'}"),
        (labels(), {"legend": {300: "grass"}}, "code 300"),
        (labels(), {"unlabelled": 0.5}, "`unlabelled` is 0.5\n"),
        (labels(), {"unlabelled": ["0"]}, r"`unlabelled` is \['0'\]"),
        (labels(), {"unlabelled": [np.inf, 0]}, "a whole-number code, or several"),
        (labels()[:, 1:], {}, "have 20 x 29 px\n.*20 x 30 px"),
        (labels(GRID.zoomed(2)), {}, "have 40 x 60 px"),
        (labels().astype(float), {}, "are float64"),
        ("fields.gpkg", {}, "`column`"),
        (data_array(Grid(20, 30, GRID.transform, "EPSG:32633"), 1, crs="EPSG:32633"), {}, "off the grid"),
    ],
)
def test_labels_that_do_not_fit_are_refused(given: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises((SceneError, SettingsError), match=message):
        lf.Scene.from_arrays({"a": data_array()}, given, **words)


def test_a_data_frame_is_checked_as_a_file_is() -> None:
    geopandas = pytest.importorskip("geopandas")
    from shapely import box

    frame = geopandas.GeoDataFrame({"kind": ["a", "b"]}, geometry=[box(0, 0, 1, 1)] * 2)
    for given, column, message in (
        (frame, None, "`column`"),
        (frame, "kimd", "did you mean `kind`"),
        (frame, "kind", "has no CRS(.|\n)*set_crs"),
        (frame[:0].set_crs("EPSG:32632"), "kind", "holds no shapes"),
    ):
        with pytest.raises((SceneError, SettingsError), match=message):
            lf.Scene.from_arrays({"a": data_array()}, given, column=column)


# ---- there and back --------------------------------------------------------------------------------------------------


def test_a_map_comes_back_where_the_images_are(path: Path) -> None:
    s2 = rioxarray.open_rasterio(path, masked=True)
    classifier = lf.Classifier("forest", trees=3).fit({"s2": s2}, labels(), unlabelled=None, progress=False)
    mapped = classifier.predict({"s2": s2}, progress=False)
    assert mapped.dims == ("y", "x")
    assert mapped.dtype == np.uint8
    for axis in ("x", "y"):
        np.testing.assert_array_equal(mapped[axis], s2[axis])
    assert mapped.rio.crs == s2.rio.crs
    assert mapped.rio.transform() == s2.rio.transform()
    assert mapped.rio.nodata == 255
    assert mapped.attrs["flag_meanings"] == "class_0 class_1 class_2"
    probabilities = classifier.predict_proba({"s2": s2}, progress=False)
    assert probabilities.dims == ("class", "y", "x")
    assert list(probabilities["class"].values) == ["class 0", "class 1", "class 2"]
    assert set(np.unique(probabilities.argmax("class"))) <= set(np.unique(mapped))
    mapped.rio.to_raster(path.parent / "map.tif")
    np.testing.assert_array_equal(lf.open_map(path.parent / "map.tif").raster.read_codes(), mapped.values)


def test_a_map_of_finer_images_is_on_the_coarsest_grid() -> None:
    images = {"plain": values(2).astype(np.float32), "fine": data_array(GRID.zoomed(2)).astype("float32")}
    classifier = lf.Classifier("forest", trees=3).fit(images, labels(), unlabelled=None, progress=False)
    mapped = classifier.predict(images, progress=False)
    assert mapped.shape == (20, 30)
    assert tuple(mapped.rio.transform())[:6] == GRID.transform
    assert mapped.rio.crs == images["fine"].rio.crs
    able = lf.Classifier(
        "two_branch", view=3, width=4, epochs=1, modality_dropout={"plain": 0.2}, accelerator="cpu", windows=64
    ).fit(images, labels(), unlabelled=None, progress=False)
    assert able.predict({"fine": images["fine"]}, progress=False).shape == (20, 30)


def test_neither_xarray_nor_rioxarray_is_imported_for_arrays() -> None:
    code = (
        "import sys, numpy as np, landfuse as lf; "
        "lf.Scene.from_arrays({'a': np.zeros((2, 4, 4))}); "
        "print([name for name in ('xarray', 'rioxarray', 'geopandas', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_bands_of_a_data_array_are_taken_by_their_labels() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(values, {"band": ["B2", "B3"]}, ("band", "y", "x"))
    known = lf.Scene.from_arrays({"s2": array}).modalities["s2"].info
    other = lf.Scene.from_arrays({"s2": array.isel(band=[1, 0]).transpose("y", "x", "band")})
    part, note = other.modalities["s2"].like(known, "`s2`", "the model")
    assert np.array_equal(part.raster.read(other.grid.window), values)
    assert note == "the bands of `s2` are taken in the order of the model: B2, B3"
