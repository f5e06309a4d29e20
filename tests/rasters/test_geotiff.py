"""Reading what GDAL reads, on its own grid or warped, and writing maps: whole or not at all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.rpc import RPC

from landfuse.errors import GridError, MissingFileError, OutputError, SceneError, SettingsError
from landfuse.files import whole_file, write_text
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import _OPEN_FILES, GdalRaster, crs_name, quietly, readers_closed, seen_from
from landfuse.rasters.geotiff_writer import TILE, GeotiffWriter, write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window

UTM = "EPSG:32632"
GRID = Grid(30, 40, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), UTM)
LEGEND = Legend((LandClass("water", 1, "#0000FF"), LandClass("wood & <scrub>", 3, "#00FF00")))
NAN = float("nan")


def values(bands: int, grid: Grid, dtype: str = "float32", seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 100, (bands, grid.height, grid.width)).astype(dtype)


def write(path: Path, array: NDArray[Any], grid: Grid = GRID, **profile: Any) -> str:
    """Writes with rasterio alone."""
    transform = rasterio.Affine(*grid.transform) if grid.georeferenced else None
    with rasterio.open(
        path, "w", **{"driver": "GTiff", "height": grid.height, "width": grid.width, "count": len(array),
        "dtype": array.dtype, "crs": grid.crs, "transform": transform, **profile},
    ) as file:  # fmt: skip
        file.write(array)
    return str(path)


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"])
def test_reads_windows_of_any_type(dtype: str, tmp_path: Path) -> None:
    array = values(3, GRID, dtype)
    raster = GdalRaster(write(tmp_path / "x.tif", array))
    raster.check()
    assert (raster.bands, raster.dtype, raster.grid, raster.warped) == (3, dtype, GRID, False)
    for window in (GRID.window, Window(3, 5, 7, 11), Window(29, 39, 1, 1)):
        got = raster.read(window)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, array[:, *window.within(GRID.window)].astype(np.float32))


@pytest.mark.parametrize("driver", ["ENVI", "COG", "VRT"])
def test_reads_other_formats(driver: str, tmp_path: Path) -> None:
    array = values(2, GRID, "int16")
    path = write(tmp_path / "x.tif", array)
    if driver != "GTiff":
        other = tmp_path / f"y.{driver.lower()}"
        with rasterio.open(path) as source:
            rasterio.shutil.copy(source, other, driver=driver)
        path = str(other)
    raster = GdalRaster(path)
    assert raster.grid == GRID
    np.testing.assert_array_equal(raster.read(GRID.window), array.astype(np.float32))


def test_chosen_bands_in_their_order(tmp_path: Path) -> None:
    array = values(5, GRID)
    path = write(tmp_path / "x.tif", array)
    raster = GdalRaster(path, band_numbers=(4, 1))
    assert raster.bands == 2
    np.testing.assert_array_equal(raster.read(GRID.window), array[[3, 0]])
    with pytest.raises(SceneError, match=r"has 5 bands, not the bands \[6, 0\]"):
        GdalRaster(path, band_numbers=(1, 6, 0)).check()


def test_nodata_of_the_header_and_of_the_settings(tmp_path: Path) -> None:
    array = values(2, GRID, "int16")
    array[0, 2, 3], array[1, 4, 5] = -9999, -1
    path = write(tmp_path / "x.tif", array, nodata=-9999)
    got = GdalRaster(path).read(GRID.window)
    assert np.argwhere(np.isnan(got)).tolist() == [[0, 2, 3]]
    got = GdalRaster(path, Decoding(nodata=-1)).read(GRID.window)
    assert np.argwhere(np.isnan(got)).tolist() == [[1, 4, 5]]


def test_nodata_of_the_settings_need_not_be_a_float32(tmp_path: Path) -> None:
    array = values(1, GRID)
    array[0, 1, 2] = -99.9
    got = GdalRaster(write(tmp_path / "x.tif", array), Decoding(nodata=-99.9)).read(GRID.window)
    assert np.argwhere(np.isnan(got)).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("nodata", [-3.4e38, -3.4028234663852886e38, -1.7976931348623157e308, NAN, -9999.0])
@pytest.mark.parametrize("warp", [False, True])
@pytest.mark.filterwarnings("error")
def test_nodata_of_floats(nodata: float, warp: bool, tmp_path: Path) -> None:
    dtype = "float64" if nodata < -1e300 else "float32"
    array = values(1, GRID, dtype)
    array[0, 10:20, 10:20] = nodata
    path = write(tmp_path / "x.tif", array, nodata=nodata)
    onto = Grid(15, 20, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM) if warp else None
    raster = GdalRaster(path, onto=onto, resampling="average")
    missing = np.isnan(raster.read(raster.grid.window)[0])
    expected = np.zeros((raster.grid.height, raster.grid.width), bool)
    expected[(slice(5, 10),) * 2 if warp else (slice(10, 20),) * 2] = True
    np.testing.assert_array_equal(missing, expected)


def test_undeclared_nan_is_counted_and_missing(tmp_path: Path) -> None:
    array = values(2, GRID)
    array[0, 1, 1], array[1, 1, 1], array[1, 7, 2] = np.nan, np.inf, -np.inf
    path = write(tmp_path / "x.tif", array)
    raster = GdalRaster(path)
    assert len(raster.undeclared(GRID.window)) == 2
    assert len(raster.undeclared(Window(2, 0, 10, 10))) == 1
    assert np.argwhere(np.isnan(raster.read(GRID.window))).tolist() == [[0, 1, 1], [1, 1, 1], [1, 7, 2]]
    declared = GdalRaster(path, Decoding(nodata=NAN))
    assert len(declared.undeclared(GRID.window)) == 0


def test_scale_and_offset_of_the_settings(tmp_path: Path) -> None:
    array = values(1, GRID, "int16")
    array[0, 0, 0] = -32768
    raster = GdalRaster(write(tmp_path / "x.tif", array, nodata=-32768), Decoding(scale=1e-2, offset=-3))
    got = raster.read(GRID.window)
    assert np.isnan(got[0, 0, 0])
    np.testing.assert_allclose(got.ravel()[1:], array.ravel()[1:] * 0.01 - 3, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("warp", [False, True])
def test_scale_and_offset_of_the_header_are_those_of_each_band(warp: bool, tmp_path: Path) -> None:
    array = values(3, GRID, "int16")
    path = write(tmp_path / "x.tif", array)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5, 2.0, 4.0), (0.0, 1.0, -1.0)
    onto = GRID.part(Window(0, 0, 12, 20)) if warp else None
    raster = GdalRaster(path, band_numbers=(3, 2), onto=onto, resampling="nearest")
    part = array[:, :12, :20] if warp else array
    expected = np.stack([part[2] * 4.0 - 1.0, part[1] * 2.0 + 1.0])
    np.testing.assert_allclose(raster.read(raster.grid.window), expected, rtol=1e-6)
    # One that is set wins, also where it is 1; the other stays as the file says.
    raster = GdalRaster(path, Decoding(scale=1.0), band_numbers=(2,))
    np.testing.assert_allclose(raster.read(GRID.window)[0], array[1] + 1.0)


def test_decibel(tmp_path: Path) -> None:
    array = values(1, GRID)
    array[0, 3, 3], array[0, 4, 4], array[0, 5, 5] = 0, -2, 100
    got = GdalRaster(write(tmp_path / "x.tif", array), Decoding(decibel=True, scale=10.0)).read(GRID.window)[0]
    assert np.isnan([got[3, 3], got[4, 4]]).all()
    assert got[5, 5] == pytest.approx(30)
    assert np.isnan(got).sum() == 2
    np.testing.assert_allclose(got[0], 10 * np.log10(array[0, 0].astype(float) * 10), rtol=1e-5)


@pytest.mark.parametrize("warp", [False, True])
def test_a_mask_says_where_there_is_data(warp: bool, tmp_path: Path) -> None:
    array = values(2, GRID)
    array[0, 12, 12] = np.nan
    path = write(tmp_path / "x.tif", array)
    mask = np.full((30, 40), 255, np.uint8)
    mask[10:20, 10:20] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    onto = Grid(15, 20, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM) if warp else None
    raster = GdalRaster(path, onto=onto, resampling="average")
    expected = (mask[::2, ::2] if warp else mask) == 0
    np.testing.assert_array_equal(np.isnan(raster.read(raster.grid.window)), np.stack([expected, expected]))
    assert len(raster.undeclared(raster.grid.window)) == 0


@pytest.mark.parametrize("warp", [False, True])
@pytest.mark.parametrize("bands", [None, (1, 2, 3), (2,)])
@pytest.mark.parametrize("nodata", [None, 255, 0])
def test_alpha_is_no_band_but_says_where_there_is_data(
    warp: bool, bands: tuple[int, ...] | None, nodata: float | None, tmp_path: Path
) -> None:
    array = np.full((4, 30, 40), 100, np.uint8)
    array[1] = 50
    array[3] = 255
    array[3, 10:20, 10:20] = 0
    path = write(tmp_path / "x.tif", array, photometric="RGB", alpha="YES", nodata=nodata)
    onto = Grid(20, 30, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM) if warp else None
    raster = GdalRaster(path, onto=onto, band_numbers=bands, resampling="average")
    raster.check()
    assert raster.bands == (3 if bands is None else len(bands))
    got = raster.read(raster.grid.window)
    expected = np.ones((raster.grid.height, raster.grid.width), bool)
    if warp:
        expected[:15, :20] = False  # the file covers this
        expected[5:10, 5:10] = True
    else:
        expected = array[3] == 0
    np.testing.assert_array_equal(np.isnan(got).all(axis=0), expected)
    np.testing.assert_array_equal(np.isnan(got).any(axis=0), expected)
    assert set(np.unique(got[0][~expected])) == {50.0 if bands == (2,) else 100.0}


def test_alpha_that_is_asked_for_is_a_band(tmp_path: Path) -> None:
    array = values(4, GRID, "uint8")
    array[3, 5, 5] = 0
    path = write(tmp_path / "x.tif", array, photometric="RGB", alpha="YES")
    raster = GdalRaster(path, band_numbers=(1, 2, 3, 4))
    np.testing.assert_array_equal(raster.read(GRID.window), array.astype(np.float32))
    every = GdalRaster(path, band_numbers=())
    np.testing.assert_array_equal(every.read(GRID.window), array.astype(np.float32))
    (note,) = GdalRaster(path).notes
    assert "band 4 is marked as alpha" in note
    assert "`bands: all`" in note
    assert raster.notes == every.notes == []
    warped = GdalRaster(path, band_numbers=(), onto=GRID.zoomed(2), resampling="nearest")
    warped.check()
    np.testing.assert_array_equal(warped.read(warped.grid.window), array.repeat(2, axis=1).repeat(2, axis=2))


HALF = Grid(15, 20, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM)
"""GRID with pixels of twice the side."""


def vrt(path: Path, bands: list[tuple[str, str, float | None]], grid: Grid = GRID) -> str:
    """Writes a VRT of first bands: (file beside it, data type, nodata)."""
    a, b, c, d, e, f = grid.transform
    text = f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}"><SRS>{grid.crs}</SRS>'
    text += f"<GeoTransform>{c},{a},{b},{f},{d},{e}</GeoTransform>"
    for number, (name, kind, nodata) in enumerate(bands, start=1):
        text += f'<VRTRasterBand dataType="{kind}" band="{number}">'
        text += "" if nodata is None else f"<NoDataValue>{nodata!r}</NoDataValue>"
        text += (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename></SimpleSource></VRTRasterBand>'
        )
    path.write_text(text + "</VRTDataset>")
    return str(path)


@pytest.mark.parametrize("onto", [None, HALF])
@pytest.mark.parametrize("nodata", [(65535, 7777), (None, 7777), (7777, None), (0, NAN)])
def test_each_band_has_its_own_nodata_and_type(
    nodata: tuple[float | None, float | None], onto: Grid | None, tmp_path: Path
) -> None:
    types = ("uint16", "float32" if nodata[1] != 7777 else "uint16")
    parts = [
        np.full((1, *shape), value, kind) for shape, value, kind in zip([(30, 40)] * 2, (3, 5), types, strict=True)
    ]
    holes = np.zeros((2, 30, 40), bool)
    holes[0, :8], holes[1, :, :8] = nodata[0] is not None, nodata[1] is not None
    for name, part, hole, number in zip("ab", parts, holes, nodata, strict=True):
        part[0, hole] = 0 if number is None else number
        write(tmp_path / f"{name}.tif", part)
    kinds = [{"uint16": "UInt16", "float32": "Float32"}[kind] for kind in types]
    path = vrt(tmp_path / "x.vrt", [("a.tif", kinds[0], nodata[0]), ("b.tif", kinds[1], nodata[1])])
    expected = np.where(holes, np.nan, np.array([3.0, 5.0])[:, None, None])
    raster = GdalRaster(path, onto=onto, resampling="average")
    raster.check()
    assert raster.dtype == ("uint16" if types[0] == types[1] else "uint16, float32")
    np.testing.assert_array_equal(raster.read(raster.grid.window), expected[:, ::2, ::2] if onto else expected)
    assert len(raster.undeclared(raster.grid.window)) == 0
    second = GdalRaster(path, band_numbers=(2,), onto=onto, resampling="average")
    assert second.dtype == types[1]
    np.testing.assert_array_equal(second.read(second.grid.window), (expected[1:, ::2, ::2] if onto else expected[1:]))
    # The setting wins over all of them.
    raster = GdalRaster(path, Decoding(nodata=3), onto=onto, resampling="nearest")
    assert np.isnan(raster.read(raster.grid.window)[0, -1, -1])
    assert raster.read(raster.grid.window)[1, -1, -1] == 5


@pytest.mark.parametrize(("dtype", "nodata"), [("int32", 2**31 - 1), ("uint32", 2**32 - 1), ("int64", -(2**53))])
def test_nodata_of_wide_integers_warped(dtype: str, nodata: int, tmp_path: Path) -> None:
    array = np.full((2, 30, 40), 9, dtype)
    array[1, :8] = nodata
    raster = GdalRaster(write(tmp_path / "x.tif", array, nodata=nodata), onto=HALF, resampling="average")
    got = raster.read(HALF.window)
    assert np.isnan(got).sum(axis=(1, 2)).tolist() == [0, 80]
    assert set(got[~np.isnan(got)]) == {9}


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("onto", [None, HALF])
@pytest.mark.parametrize(("bands", "nodata"), [(1, 7), (2, 7), (1, None), (4, None), (4, 7)])
def test_masks_count_beside_nodata_and_alpha(
    bands: int, nodata: int | None, onto: Grid | None, internal: bool, tmp_path: Path
) -> None:
    array = np.full((bands, 30, 40), 100, np.uint8)
    expected = np.zeros((30, 40), bool)
    mask = np.full((30, 40), 255, np.uint8)
    array[:, :, :6], mask[:, :6], expected[:, :6] = 200, 0, True
    if nodata is not None:
        array[:, :8, 6:], expected[:8] = nodata, True
    if bands == 4:
        array[3] = 255
        array[3, -4:], expected[-4:] = 0, True
    alpha = {"photometric": "RGB", "alpha": "YES"} if bands == 4 else {}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(
            tmp_path / "x.tif", "w", driver="GTiff", height=30, width=40, count=bands, dtype="uint8", crs=UTM,
            transform=rasterio.Affine(*GRID.transform), nodata=nodata, **alpha,
        ) as file,
    ):  # fmt: skip
        file.write(array)
        file.write_mask(mask)
    assert (tmp_path / "x.tif.msk").exists() is not internal
    raster = GdalRaster(str(tmp_path / "x.tif"), onto=onto, resampling="average")
    got = raster.read(raster.grid.window)
    np.testing.assert_array_equal(np.isnan(got).all(axis=0), expected[::2, ::2] if onto else expected)
    assert set(got[~np.isnan(got)]) == {100}
    assert raster.files() == GdalRaster(raster.path).files() == sorted(tmp_path.iterdir()), "as when it was opened"


def test_files_are_opened_quietly_though_another_thread_has_just_done_so(tmp_path: Path) -> None:
    path, before = write(tmp_path / "x.tif", values(1, GRID), Grid(30, 40)), warnings.filters[:]
    with contextlib.ExitStack() as other:
        with quietly():
            other.enter_context(quietly())
        with warnings.catch_warnings(record=True) as caught:
            rasterio.open(path).close()
        assert not caught
    assert warnings.filters == before


def test_datasets_can_be_closed_and_are_opened_again(tmp_path: Path) -> None:
    raster = GdalRaster(write(tmp_path / "x.tif", values(2, GRID)))
    with readers_closed():
        first, dataset = raster.read(GRID.window), raster._open.dataset
    assert dataset.closed
    np.testing.assert_array_equal(raster.read(GRID.window), first)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", np.full((1, 30, 40), 3 + 4j, np.complex64))
    for raster in (GdalRaster(path), GdalRaster(path, onto=HALF)):
        with pytest.raises(SceneError, match=r"holds complex numbers \(complex64\)") as caught:
            raster.check()
        assert "re² + im²" in str(caught.value)


def test_bands_marked_as_bad_are_left_out(tmp_path: Path) -> None:
    array = values(4, GRID, "int16")
    rasterio.shutil.copy(write(tmp_path / "x.tif", array), tmp_path / "y.img", driver="ENVI")
    header = tmp_path / "y.hdr"
    header.write_text(header.read_text() + "bbl = {1, 0, 1.0, 0}\n")
    path = str(tmp_path / "y.img")
    raster = GdalRaster(path)
    np.testing.assert_array_equal(raster.read(GRID.window), array[[0, 2]])
    (note,) = raster.notes
    assert "bands marked as bad (bbl) are left out unless `bands` names them: 2, 4" in note
    for numbers, kept in (((), [0, 1, 2, 3]), ((2, 1), [1, 0])):
        raster = GdalRaster(path, band_numbers=numbers)
        np.testing.assert_array_equal(raster.read(GRID.window), array[kept])
        assert raster.notes == []
    with pytest.raises(SceneError, match=r"y\.hdr is the header of a raster") as caught:
        GdalRaster(str(header)).check()
    assert f"name that: {path}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("x.tif", "/d/e/x.tif"),
        ("../x.tif", "/d/e/../x.tif"),
        ("/abs/x.tif", "/abs/x.tif"),
        ("S2_T10:30:00.tif", "/d/e/S2_T10:30:00.tif"),
        ("https://host/x.tif", "https://host/x.tif"),
        ("zip+https://host/a.zip!/x.tif", "zip+https://host/a.zip!/x.tif"),
        ("/vsis3/bucket/x.tif", "/vsis3/bucket/x.tif"),
        ("file:///abs/x.tif", "/abs/x.tif"),
        ("zip://a.zip!/b/x.tif", "/vsizip//d/e/a.zip/b/x.tif"),
        ("zip:///abs/a.zip!b/x.tif", "/vsizip//abs/a.zip/b/x.tif"),
        ("/vsizip/a.zip/x.tif", "/vsizip//d/e/a.zip/x.tif"),
        ("/vsizip//abs/a.zip/x.tif", "/vsizip//abs/a.zip/x.tif"),
        ("/vsizip//vsicurl/https://host/a.zip/x.tif", "/vsizip//vsicurl/https://host/a.zip/x.tif"),
        ("/vsitar/a.tgz/x.tif", "/vsitar//d/e/a.tgz/x.tif"),
        ("GPKG:a.gpkg:b", "GPKG:/d/e/a.gpkg:b"),
        ("GPKG:/abs/a.gpkg:b", "GPKG:/abs/a.gpkg:b"),
        ('NETCDF:"a.nc":b', 'NETCDF:"/d/e/a.nc":b'),
        ("HDF5:a.h5://b/c", "HDF5:/d/e/a.h5://b/c"),
        ('HDF4_EOS:EOS_GRID:"a.hdf":b:c', 'HDF4_EOS:EOS_GRID:"/d/e/a.hdf":b:c'),
        ("GTIFF_DIR:2:a.tif", "GTIFF_DIR:2:/d/e/a.tif"),
        (
            "SENTINEL2_L2A:/vsizip/a.zip/MTD.xml:10m:EPSG_32632",
            "SENTINEL2_L2A:/vsizip//d/e/a.zip/MTD.xml:10m:EPSG_32632",
        ),
        ("vrt://a.tif?bands=1", "vrt:///d/e/a.tif?bands=1"),
    ],
)
def test_paths_within_a_folder(path: str, seen: str) -> None:
    assert seen_from("/d/e", path) == seen
    assert seen_from("/d/e", seen) == seen  # it is absolute now


@pytest.mark.parametrize("root", ["/vsizip//abs/a.zip", "https://host/a", "s3://bucket/a"])
def test_paths_within_an_archive_or_address(root: str) -> None:
    assert seen_from(root, "b/x.tif") == seen_from(root + "/", "b/x.tif") == f"{root}/b/x.tif"
    assert seen_from(root, "/abs/x.tif") == "/abs/x.tif"


def test_a_file_of_several_rasters_lists_them(tmp_path: Path) -> None:
    array = values(3, GRID, "uint8")
    path = tmp_path / "two.gpkg"
    for table in ("one", "two"):
        write(path, array, driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET="YES" if path.exists() else "NO")
    with pytest.raises(SceneError, match="holds no bands, but several rasters") as caught:
        GdalRaster(str(path)).check()
    assert caught.value.do == f"name one of them as `path`: GPKG:{path}:one, GPKG:{path}:two"
    assert GdalRaster(f"GPKG:{path}:two").own_grid.crs == UTM
    pages = write(tmp_path / "pages.tif", array)
    assert GdalRaster(pages).notes == []
    write(tmp_path / "pages.tif", array, APPEND_SUBDATASET="YES")
    (note,) = GdalRaster(pages).notes
    assert "the file holds 2 rasters, of which one is read" in note
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"], file["deep/b"] = array[0], array[1]
    with pytest.raises(SceneError, match="but several rasters") as caught:
        GdalRaster(str(tmp_path / "x.h5")).check()
    named = [word.strip(",") for word in caught.value.do.split() if word.endswith("//deep/b")]
    assert [name.replace('"', "") for name in named] == [f"HDF5:{tmp_path}/x.h5://deep/b"]  # GDAL 3.12 has quotes
    np.testing.assert_array_equal(GdalRaster(named[0]).read(GRID.window)[0], array[1])


def test_labels_as_codes(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 5, (1, 30, 40)).astype(np.uint8)
    got = GdalRaster(write(tmp_path / "x.tif", codes)).read_codes()
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, codes[0])
    got = GdalRaster(write(tmp_path / "n.tif", codes, nodata=0)).read_codes()
    np.testing.assert_array_equal(got, np.where(codes[0] == 0, UNLABELLED, codes[0]))
    signed = codes.astype(np.int8) - 1
    got = GdalRaster(write(tmp_path / "s.tif", signed, nodata=-1)).read_codes()
    np.testing.assert_array_equal(got, np.where(codes[0] == 0, UNLABELLED, codes[0].astype(int) - 1))
    floats = codes.astype(np.float32)
    floats[codes == 0] = np.nan
    got = GdalRaster(write(tmp_path / "f.tif", floats, nodata=NAN)).read_codes()
    np.testing.assert_array_equal(got, np.where(codes[0] == 0, UNLABELLED, codes[0]))


# Places -------------------------------------------------------------------------------------------------------------

GRIDDED = [(row, col, 500_000 + 10 * col, 5_400_000 - 10 * row) for row in (0, 30) for col in (0, 40)]


def with_points(path: Path, points: list[tuple[float, float, float, float]], crs: str | None = UTM) -> str:
    with rasterio.open(path, "w", driver="GTiff", height=30, width=40, count=1, dtype="float32") as file:
        file.write(values(1, GRID))
        file.gcps = ([GroundControlPoint(*point) for point in points], crs and rasterio.CRS.from_string(crs))
    return str(path)


def test_control_points_on_a_grid_are_a_geotransform(tmp_path: Path) -> None:
    path = with_points(tmp_path / "x.tif", GRIDDED)
    for raster in (GdalRaster(path), GdalRaster(path, assumed_crs="EPSG:4326"), GdalRaster(path, placed=HALF)):
        raster.check()
        assert raster.own_grid == GRID
    warped = GdalRaster(path, onto=HALF, resampling="average")
    warped.check()
    four = values(1, GRID).reshape(1, 15, 2, 20, 2)
    np.testing.assert_allclose(warped.read(HALF.window), four.mean(axis=(2, 4)), rtol=1e-5)


@pytest.mark.parametrize(
    "points",
    [GRIDDED[:1], [*GRIDDED, (15, 20, 500_201.0, 5_399_850)], [(n, 0, 500_000.0, 5_400_000 - n) for n in range(4)]],
)
@pytest.mark.parametrize("options", [{}, {"assumed_crs": UTM}, {"placed": GRID}])
def test_other_control_points_are_refused(points: Any, options: dict[str, Any], tmp_path: Path) -> None:
    path = with_points(tmp_path / "x.tif", points)
    with pytest.raises(GridError, match="is placed by ground control points, and has no geotransform") as caught:
        GdalRaster(path, **options).check()
    assert "gdalwarp -t_srs" in str(caught.value)


def test_what_else_places_pixels_is_refused(tmp_path: Path) -> None:
    twenty = [1.0] * 20
    rpcs = RPC(0.0, 1.0, 0.0, 1.0, twenty, twenty, 0.0, 1.0, 0.0, 1.0, twenty, twenty, 0.0, 1.0)
    path = write(tmp_path / "x.tif", values(1, GRID), Grid(30, 40))
    with rasterio.open(path, "r+") as file:
        file.rpcs = rpcs
    with pytest.raises(GridError, match="is placed by RPCs") as caught:
        GdalRaster(path, placed=GRID).check()
    assert "gdalwarp -rpc" in str(caught.value)
    path = write(tmp_path / "y.tif", values(1, GRID), Grid(30, 40))
    rasterio.shutil.copy(path, tmp_path / "y.vrt", driver="VRT")
    text = (tmp_path / "y.vrt").read_text()
    domain = '<Metadata domain="GEOLOCATION"><MDI key="X_DATASET">lon.tif</MDI></Metadata>'
    (tmp_path / "y.vrt").write_text(text.replace("<VRTRasterBand", domain + "<VRTRasterBand", 1))
    with pytest.raises(GridError, match="is placed by geolocation arrays"):
        GdalRaster(str(tmp_path / "y.vrt")).check()
    # A geotransform counts where there is one.
    path = write(tmp_path / "z.tif", values(1, GRID))
    with rasterio.open(path, "r+") as file:
        file.rpcs = rpcs
    assert GdalRaster(path).own_grid == GRID


def test_a_crs_alone_does_not_place_a_raster(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", values(1, GRID), Grid(30, 40))
    with pytest.raises(GridError, match="`crs` is not enough"):
        GdalRaster(path, assumed_crs=UTM).check()
    assert GdalRaster(path, placed=GRID).own_grid == GRID


# CRS ----------------------------------------------------------------------------------------------------------------


def test_names_of_crs() -> None:
    assert crs_name(None, "x") is None
    assert crs_name(rasterio.CRS(), "x") is None
    assert crs_name("epsg:32632", "x") == UTM
    assert crs_name(rasterio.CRS.from_epsg(32632).to_wkt(), "x") == UTM
    assert crs_name("+proj=utm +zone=32 +datum=WGS84 +units=m", "x") == UTM
    for wrong in ("EPSG:999999", "somewhere"):
        with pytest.raises(SettingsError, match=r"x: the CRS .* is not known"):
            crs_name(wrong, "x")


@pytest.mark.parametrize(
    "proj",
    [
        "+proj=laea +lat_0=10 +lon_0=20 +x_0=4321000 +ellps=GRS80 +units=m +no_defs",
        "+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs",
        "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=NAD83 +units=us-ft",
    ],
)
def test_a_written_grid_is_read_as_the_same_also_without_epsg_code(proj: str, tmp_path: Path) -> None:
    grid = Grid(4, 5, GRID.transform, crs_name(proj, "x"))
    write_raster(tmp_path / "x.tif", grid, np.zeros((4, 5), np.uint8))
    assert GdalRaster(str(tmp_path / "x.tif")).own_grid == grid
    assert GdalRaster(str(tmp_path / "x.tif"), onto=grid).warped is False


def test_an_assumed_crs_is_taken_only_where_the_file_says_none(tmp_path: Path) -> None:
    bare = Grid(30, 40, GRID.transform)
    path = write(tmp_path / "x.tif", values(1, GRID), bare)
    assert GdalRaster(path).own_grid == bare
    assert GdalRaster(path, assumed_crs=UTM).own_grid == GRID
    path = write(tmp_path / "y.tif", values(1, GRID))
    assert GdalRaster(path, assumed_crs="EPSG:4326").own_grid == GRID


# Warping ------------------------------------------------------------------------------------------------------------

RESAMPLINGS = ["nearest", "bilinear", "cubic", "average", "mode"]
TARGETS = {
    "coarser": Grid(16, 21, (20.0, 0.0, 499_990.0, 0.0, -20.0, 5_400_010.0), UTM),
    "finer": Grid(50, 60, (4.0, 0.0, 500_103.0, 0.0, -4.0, 5_399_951.0), UTM),
    "shifted": Grid(30, 40, (10.0, 0.0, 500_004.0, 0.0, -10.0, 5_400_003.0), UTM),
    "another CRS": Grid(30, 40, (0.00012, 0.0, 9.0, 0.0, -0.00008, 48.7527), "EPSG:4326"),
    "turned": Grid(30, 30, (8.0, 6.0, 500_050.0, 6.0, -8.0, 5_399_900.0), UTM),
    "larger": Grid(60, 80, (10.0, 0.0, 499_800.0, 0.0, -10.0, 5_400_150.0), UTM),
}


@pytest.mark.parametrize("target", TARGETS)
def test_bilinear_against_plain_interpolation(target: str, tmp_path: Path) -> None:
    onto = TARGETS[target]
    array = values(1, GRID)
    raster = GdalRaster(write(tmp_path / "x.tif", array), onto=onto, resampling="bilinear")
    got = raster.read(onto.window)[0]
    if target == "coarser":  # the mean over twice as much, weighted like a tent
        tent = np.array([1, 3, 3, 1]) / 8
        rows, cols = np.arange(1, 15), np.arange(1, 20)
        pieces = [
            tent[i] * tent[j] * array[0][np.ix_(2 * rows + i - 2, 2 * cols + j - 2)] for i in range(4) for j in range(4)
        ]
        np.testing.assert_allclose(got[np.ix_(rows, cols)], sum(pieces), rtol=1e-5)
        return
    rows, cols = np.mgrid[: onto.height, : onto.width] + 0.5
    xs, ys = onto.at(cols, rows)  # type: ignore[arg-type]
    xs, ys = (np.array(p) for p in rasterio.warp.transform(onto.crs, UTM, np.ravel(xs), np.ravel(ys)))
    col, row = (xs - 500_000) / 10 - 0.5, (5_400_000 - ys) / 10 - 0.5
    inside = (row >= 0) & (row <= 29) & (col >= 0) & (col <= 39)
    top, left = np.clip(np.floor(row).astype(int), 0, 28), np.clip(np.floor(col).astype(int), 0, 38)
    expected = sum(
        array[0][top + i, left + j] * (1 - np.abs(row - top - i)) * (1 - np.abs(col - left - j))
        for i in range(2)
        for j in range(2)
    )
    assert inside.mean() > 0.2
    # GDAL places pixels of another CRS to within an eighth of a pixel, in fact far better.
    np.testing.assert_allclose(got.ravel()[inside], expected[inside], atol=0.05 if target == "another CRS" else 1e-4)


def independent(band: NDArray[np.float32], onto: Grid, resampling: str) -> NDArray[np.float32]:
    """One band with NaN for no data, warped by rasterio's other way of doing it, its kernels not guessed by GDAL."""
    scale = "0.5" if onto == TARGETS["coarser"] else "1"
    result = np.full((onto.height, onto.width), np.nan, np.float32)
    rasterio.warp.reproject(
        band, result, src_transform=rasterio.Affine(*GRID.transform), src_crs=GRID.crs, src_nodata=NAN,
        dst_transform=rasterio.Affine(*onto.transform), dst_crs=onto.crs, dst_nodata=NAN,
        resampling=Resampling[resampling], XSCALE=scale, YSCALE=scale,
    )  # fmt: skip
    return result


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("nodata", [None, -9999.0, NAN])
def test_warped_like_an_independent_warp(target: str, resampling: Any, nodata: float | None, tmp_path: Path) -> None:
    onto = TARGETS[target]
    array = values(2, GRID)
    hole = np.zeros((30, 40), bool)
    if nodata is not None:
        hole[5:9, 5:9] = hole[20:25, 30:33] = True
        array[:, hole] = nodata
    one = GdalRaster(write(tmp_path / "1.tif", array[:1], nodata=nodata), onto=onto, resampling=resampling)
    one.check()
    assert one.warped
    expected = independent(np.where(hole, np.nan, array[0]).astype(np.float32), onto, resampling)
    assert np.isfinite(expected).mean() > 0.02
    np.testing.assert_allclose(one.read(onto.window)[0], expected, rtol=1e-5)  # with NaN in the same places
    two = GdalRaster(write(tmp_path / "2.tif", array, nodata=nodata), onto=onto, resampling=resampling)
    known = np.isfinite(expected)
    np.testing.assert_allclose(two.read(onto.window)[0][known], expected[known], rtol=1e-5)
    if target == "larger":
        covered = np.zeros((60, 80), bool)
        covered[15:45, 20:60] = True
        np.testing.assert_array_equal(known, covered & ~np.pad(hole, ((15, 15), (20, 20))))


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("nodata", [-9999.0, NAN])
def test_nodata_in_one_band_bleeds_into_no_value(target: str, resampling: Any, nodata: float, tmp_path: Path) -> None:
    onto = TARGETS[target]
    array = values(2, GRID)
    array[0, 8:14, 8:14] = nodata
    path = write(tmp_path / "x.tif", array, nodata=nodata)
    got = GdalRaster(path, onto=onto, resampling=resampling).read(onto.window)
    first = independent(np.where(array[0] == nodata, np.nan, array[0]).astype(np.float32), onto, resampling)
    second = independent(array[1].astype(np.float32), onto, resampling)
    np.testing.assert_allclose(got[1], second, rtol=1e-5)
    known = np.isfinite(first)
    np.testing.assert_allclose(got[0][known], first[known], rtol=1e-5)
    # Where pixels without data are nearest but others in reach, GDAL may take the mean of those alone.
    assert np.nanmin(got[0]) > -30
    assert np.isnan(got[0]).sum() > np.isnan(second).sum()


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("nodata", [None, -1])
def test_warped_pixels_do_not_depend_on_the_window(nodata: float | None, resampling: Any, tmp_path: Path) -> None:
    source = Grid(400, 500, (0.0002, 0.0, 8.99, 0.0, -0.00015, 48.77), "EPSG:4326")
    path = write(tmp_path / "x.tif", values(1, source), source, nodata=nodata)
    onto = Grid(600, 700, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), UTM)
    whole = GdalRaster(path, onto=onto, resampling=resampling).read(onto.window)
    assert np.isfinite(whole).mean() > 0.5
    for window in (Window(3, 5, 7, 9), Window(130, 200, 300, 77), Window(599, 0, 1, 700), Window(300, 390, 64, 64)):
        part = GdalRaster(path, onto=onto, resampling=resampling).read(window)
        np.testing.assert_array_equal(part, whole[:, *window.within(onto.window)])


def test_codes_are_warped_by_nearest(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(1, 9, (1, 30, 40)).astype(np.uint8)
    raster = GdalRaster(write(tmp_path / "x.tif", codes), onto=GRID.zoomed(2), resampling="nearest")
    got, outside = raster.read_numbers(raster.grid.window)
    assert outside is None
    np.testing.assert_array_equal(got[0], codes[0].repeat(2, axis=0).repeat(2, axis=1))


def test_rasters_that_cannot_be_placed(tmp_path: Path) -> None:
    bare = Grid(30, 40, GRID.transform)
    path = write(tmp_path / "x.tif", values(1, GRID), bare)
    with pytest.raises(GridError, match=r"x\.tif has no CRS and is on another grid") as caught:
        GdalRaster(path, onto=GRID).check()
    assert "crs: EPSG:n" in str(caught.value)
    path = write(tmp_path / "y.tif", values(1, GRID))
    with pytest.raises(GridError, match=r"y\.tif .*cannot be placed: the reference grid has no CRS"):
        GdalRaster(path, onto=bare).check()
    for away in ((500_400.0, 5_400_000.0), (500_000.0, 5_399_700.0), (100.0, 100.0)):
        onto = Grid(10, 10, (10.0, 0.0, away[0], 0.0, -10.0, away[1]), UTM)
        with pytest.raises(GridError, match=r"y\.tif does not overlap the reference grid: it covers x 500000 to 5004"):
            GdalRaster(path, onto=onto).check()
    with pytest.raises(GridError, match="does not overlap"):
        GdalRaster(path, onto=Grid(10, 10, (0.1, 0, 100.0, 0, -0.1, 40.0), "EPSG:4326")).check()


def test_crs_that_cannot_be_brought_to_each_other(tmp_path: Path) -> None:
    local = Grid(30, 40, (1.0, 0.0, 7.0, 0.0, -1.0, 9.0), crs_name('LOCAL_CS["site",UNIT["metre",1]]', "x"))
    path = write(tmp_path / "x.tif", values(1, GRID), local)
    with pytest.raises(GridError, match=r"x\.tif cannot be brought to the reference grid"):
        GdalRaster(path, onto=GRID).check()


# Files, threads, processes ------------------------------------------------------------------------------------------


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no file .*x\.tif"):
        GdalRaster(str(tmp_path / "x.tif")).check()
    (tmp_path / "x.tif").write_text("no raster")
    with pytest.raises(SceneError, match=r"x\.tif cannot be opened"):
        GdalRaster(str(tmp_path / "x.tif")).check()
    with pytest.raises(SceneError, match="cannot be opened"):
        GdalRaster(str(tmp_path)).check()


@pytest.mark.parametrize("warp", [False, True])
def test_truncated_files(warp: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write(path, values(1, GRID), tiled=False, blockysize=1)
    path.write_bytes(path.read_bytes()[: 400 + 40 * 4 * 15])
    onto = GRID.part(Window(0, 0, 29, 40)) if warp else None
    raster = GdalRaster(str(path), onto=onto)
    raster.check()  # its header is whole
    with pytest.raises(SceneError, match=r"x\.tif cannot be read at row 0, column 0") as caught:
        raster.read(raster.grid.window)
    assert "it may be truncated" in str(caught.value)


@pytest.mark.parametrize("warp", [False, True])
def test_many_threads_read_the_same(warp: bool, tmp_path: Path) -> None:
    onto = Grid(60, 80, (6.0, 0.0, 499_990.0, 0.0, -6.0, 5_400_010.0), UTM) if warp else None
    raster = GdalRaster(write(tmp_path / "x.tif", values(2, GRID), nodata=-1), onto=onto)
    windows = [Window(row, col, 9, 13) for row in range(0, 20, 3) for col in range(0, 26, 3)]
    expected = [raster.read(window) for window in windows]
    with ThreadPoolExecutor(8) as pool:
        for got, known in zip(pool.map(raster.read, windows * 4), expected * 4, strict=True):
            np.testing.assert_array_equal(got, known)
    everyone = threading.Barrier(4)

    def dataset(_: int) -> Any:
        everyone.wait(timeout=30)
        return raster._reader()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(map(id, list(pool.map(dataset, range(4)))))) == 4  # one of its own for each thread


@pytest.mark.parametrize("warp", [False, True])
def test_pickled_after_reading(warp: bool, tmp_path: Path) -> None:
    onto = GRID.zoomed(2) if warp else None
    raster = GdalRaster(write(tmp_path / "x.tif", values(2, GRID)), Decoding(scale=2.0), (2,), onto=onto)
    expected = raster.read(raster.grid.window)
    again = pickle.loads(pickle.dumps(raster))
    assert again == raster
    np.testing.assert_array_equal(again.read(again.grid.window), expected)


def test_more_rasters_than_files_may_be_open(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", values(1, GRID))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + _OPEN_FILES + 20, hard))
    try:
        rasters = [GdalRaster(path, onto=None if n % 2 else GRID.zoomed(2)) for n in range(2 * _OPEN_FILES)]
        for _ in range(2):
            for raster in rasters:
                assert np.isfinite(raster.read(Window(0, 0, 2, 2))).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [GRID, Grid(30, 40), Grid(30, 40, GRID.transform)])
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("float32", NAN), ("int16", None)])
@pytest.mark.filterwarnings("error")
def test_what_is_written_is_read_again(grid: Grid, dtype: str, nodata: float | None, tmp_path: Path) -> None:
    array = values(2, grid, dtype)
    path = tmp_path / "new" / "folder" / "x.tif"
    write_raster(path, grid, array, nodata=nodata, names=["first", "second"], tags={"who": "me"})
    raster = GdalRaster(str(path))
    assert raster.own_grid == grid
    np.testing.assert_array_equal(raster.read(grid.window), array.astype(np.float32))
    assert [p.name for p in path.parent.iterdir()] == ["x.tif"]
    if grid.georeferenced:
        with rasterio.open(path) as file:
            assert file.descriptions == ("first", "second")
            assert file.tags()["who"] == "me"
            np.testing.assert_equal(file.nodata, nodata)
            assert file.block_shapes == [(TILE, TILE)] * 2


def test_written_window_by_window(tmp_path: Path) -> None:
    grid = Grid(700, 600)
    array = values(3, grid, "uint8")
    with GeotiffWriter(tmp_path / "x.tif", grid, bands=3, scale=1 / 250) as file:
        for row in range(0, 700, 100):
            for col in range(0, 600, 250):
                window = Window(row, col, 100, min(250, 600 - col))
                file.write(window, array[:, *window.within(grid.window)])
        assert not (tmp_path / "x.tif").exists()
    numbers, _ = GdalRaster(str(tmp_path / "x.tif")).read_numbers(grid.window)
    np.testing.assert_array_equal(numbers, array)
    got = GdalRaster(str(tmp_path / "x.tif")).read(grid.window)  # 255 is no data
    np.testing.assert_allclose(got, np.where(array == 255, np.nan, array / 250), rtol=1e-5)


def test_colours_and_names_of_a_map(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    codes = np.array([[1, 3], [255, 1]], np.uint8)
    write_raster(path, Grid(2, 2, GRID.transform, UTM), codes, legend=LEGEND)
    with rasterio.open(path) as file:
        assert file.colorinterp == (ColorInterp.palette,)
        colours = file.colormap(1)
        assert (colours[1], colours[3]) == ((0, 0, 255, 255), (0, 255, 0, 255))
        np.testing.assert_array_equal(file.read(1), codes)
    # rasterio does not report category names; the pyogrio wheel brings no gdalinfo: look as GDAL does, into the
    # VRT that it makes of the file.
    with rasterio.open(path) as file:
        rasterio.shutil.copy(file, tmp_path / "map.vrt", driver="VRT")
    vrt = (tmp_path / "map.vrt").read_text()
    names = [
        line.split(">")[1].split("<")[0] for line in vrt.splitlines() if "<Category" in line and "Names" not in line
    ]
    assert names == ["", "water", "", "wood &amp; &lt;scrub&gt;"]


def test_what_was_noted_of_a_former_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    write_raster(path, Grid(2, 2), np.ones((2, 2), np.uint8), legend=LEGEND)
    assert (tmp_path / "map.tif.aux.xml").exists()
    write_raster(path, Grid(2, 2), np.ones((2, 2), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SceneError, OSError])
@pytest.mark.parametrize("former", [False, True])
def test_an_exception_leaves_nothing_behind(kind: type[BaseException], former: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    if former:
        path.write_bytes(b"former")
    expected: type[BaseException] = OutputError if kind is OSError else kind

    def fail() -> None:
        with GeotiffWriter(path, GRID) as file:
            file.write(Window(0, 0, 10, 40), np.zeros((10, 40), np.uint8))
            raise kind("stop")

    with pytest.raises(expected):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == (["x.tif"] if former else [])
    if former:
        assert path.read_bytes() == b"former"


def test_a_fault_while_the_file_is_made_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        GeotiffWriter(tmp_path / "x.tif", GRID, names=["one", "and one too many"])
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.tif").mkdir()
    for path in (tmp_path / "file" / "x.tif", tmp_path / "folder.tif", tmp_path / ("n" * 300 + ".tif")):
        with pytest.raises(OutputError, match="cannot be written"):
            write_raster(path, GRID, np.zeros((30, 40), np.uint8))
        with pytest.raises(OutputError, match="cannot be written"):
            write_text(path, "x")
    if Path("/proc/self").is_dir():  # where not even root may write
        with pytest.raises(OutputError, match="cannot be written"):
            write_raster("/proc/x.tif", GRID, np.zeros((30, 40), np.uint8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.tif"]
    assert list((tmp_path / "folder.tif").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_a_full_disk(small_disk: Path, tiles: int) -> None:
    """Whichever tile no longer fits, also the last one, which GDAL writes when the file is closed."""
    side = 420  # 172 KiB that cannot be compressed; a second tile does not fit
    noise = np.random.default_rng(0).integers(0, 255, (side, side)).astype(np.uint8)
    grid = Grid(TILE, TILE * tiles)

    def fill() -> None:
        with GeotiffWriter(small_disk / "x.tif", grid) as file:
            for tile in range(tiles):
                file.write(Window(0, tile * TILE, side, side), noise)

    if tiles == 1:
        fill()
        np.testing.assert_array_equal(
            GdalRaster(str(small_disk / "x.tif")).read_numbers(Window(0, 0, side, side))[0][0], noise
        )
        return
    with pytest.raises(OutputError, match=r"x\.tif cannot be written"):
        fill()
    assert list(small_disk.iterdir()) == []
    write_text(small_disk / "room.txt", "there is room again")
    with pytest.raises(OutputError, match=r"x\.txt cannot be written"):
        write_text(small_disk / "x.txt", "x" * 300_000)
    assert [p.name for p in small_disk.iterdir()] == ["room.txt"]


def test_a_file_cut_short_at_closing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk does where GDAL reports it in its log only."""
    writer = GeotiffWriter(tmp_path / "x.tif", GRID)
    close = writer._file.close

    class CutShort:
        def close(self) -> None:
            close()
            content = writer._partial.read_bytes()
            writer._partial.write_bytes(content[: len(content) - 200])

        def write(self, *args: Any, **options: Any) -> None:
            file.write(*args, **options)

    file = writer._file
    monkeypatch.setattr(writer, "_file", CutShort())
    noise = np.random.default_rng(0).integers(0, 255, (30, 40)).astype(np.uint8)
    with pytest.raises(OutputError, match=r"x\.tif cannot be written"), writer:
        writer.write(GRID.window, noise)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = GeotiffWriter(tmp_path / "x.tif", GRID)

    class Full:
        close = writer._file.close

        def write(self, *_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(OutputError, match=r"x\.tif cannot be written: .*No space left"), writer:
        writer.write(GRID.window, np.zeros((30, 40), np.uint8))
    assert list(tmp_path.iterdir()) == []


def write_for_ever(path: Path, begun: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with GeotiffWriter(path, Grid(TILE, TILE)) as file:
        while True:
            file.write(Window(0, 0, TILE, TILE), np.zeros((TILE, TILE), np.uint8))
            begun.set()


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=write_for_ever, args=(tmp_path / "x.tif", begun))
    process.start()
    assert begun.wait(timeout=30)
    assert len(list(tmp_path.iterdir())) == 1  # under its other name
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(timeout=30)
    assert process.exitcode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_whole_file_is_there_at_once_and_under_no_other_name(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.txt"
    write_text(path, "former")
    with whole_file(path) as partial:
        partial.write_text("näxt", encoding="utf-8")
        assert path.read_text() == "former"
    assert path.read_text(encoding="utf-8") == "näxt"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize(
    ("crs", "name"),
    [("EPSG:25832+7837", "EPSG:25832"), ("EPSG:7415", "EPSG:28992"), ("EPSG:4979", "EPSG:4326"), ("EPSG:4326",) * 2],
)
def test_a_height_datum_is_left_out_of_the_crs(crs: str, name: str) -> None:
    assert crs_name(crs, "x") == name


# Names of bands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "numbers", "found"),
    [
        (("red", "green", "nir"), None, ("red", "green", "nir")),
        (("red", "green", "nir"), (3, 1), ("nir", "red")),
        (("Band 4", "Band 3", "Band 2"), None, ("Band 4", "Band 3", "Band 2")),
        (("Band 1", "Band 2", "Band 3"), None, ()),
        (("Band 1", "band_2", "3"), (3, 2), ()),
        (("red", "", "nir"), None, ()),
        (("red", "", "nir"), (1, 3), ("red", "nir")),
        (("bands", "bands", "bands"), (3, 1), ()),
    ],
)
def test_bands_have_the_names_of_the_file(
    tmp_path: Path, given: tuple[str, ...], numbers: tuple[int, ...] | None, found: tuple[str, ...]
) -> None:
    path = write(tmp_path / "a.tif", values(3, GRID))
    with rasterio.open(path, "r+") as file:
        file.descriptions = given
    raster = GdalRaster(path, band_numbers=numbers)
    assert raster.names == found
    turned = raster.with_bands([1, 0])
    assert turned.names == (found[1::-1] if found else ())
    assert np.array_equal(turned.read(GRID.window), raster.read(GRID.window)[[1, 0]])


@pytest.mark.parametrize(("unit", "wavelengths"), [("Nanometers", "450.5, 560"), ("Micrometers", "0.4505, 0.56")])
def test_bands_have_the_wavelengths_of_an_envi_header(tmp_path: Path, unit: str, wavelengths: str) -> None:
    path = write(tmp_path / "a.img", values(2, GRID), driver="ENVI")
    with (tmp_path / "a.hdr").open("a") as header:
        header.write(f"wavelength units = {unit}\nwavelength = {{{wavelengths}}}\n")
    assert GdalRaster(path).wavelengths == pytest.approx((450.5, 560))
    assert GdalRaster(path, band_numbers=(2,)).wavelengths == pytest.approx((560,))


def test_more_bands_than_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.rasters.geotiff._MOST_BANDS", 3)
    write_raster(tmp_path / "x.tif", Grid(2, 2), np.ones((4, 2, 2), np.int16), nodata=None)
    with pytest.raises(SceneError, match=r"x\.tif has 4 bands\n  expected: at most 3, .*\n.*choose some by `bands`"):
        GdalRaster(str(tmp_path / "x.tif")).check()
    GdalRaster(str(tmp_path / "x.tif"), band_numbers=(4, 1, 2)).check()


def test_codes_are_of_one_band(tmp_path: Path) -> None:
    write_raster(tmp_path / "m.tif", Grid(4, 5), np.ones((3, 4, 5), np.uint8))
    with pytest.raises(SceneError, match="has 3 bands"):
        GdalRaster(str(tmp_path / "m.tif")).read_codes()


FIJI = Grid(20, 20, (0.1, 0.0, 179.0, 0.0, -0.1, -16.0), "EPSG:4326")
SOURCES = {
    "-180 to 180": Grid(90, 180, (2.0, 0.0, -180.0, 0.0, -2.0, 90.0), "EPSG:4326"),
    "0 to 360": Grid(90, 180, (2.0, 0.0, 0.0, 0.0, -2.0, 90.0), "EPSG:4326"),
    "177 to 183": Grid(60, 60, (0.1, 0.0, 177.0, 0.0, -0.1, -14.0), "EPSG:4326"),
    "-183 to -177": Grid(60, 60, (0.1, 0.0, -183.0, 0.0, -0.1, -14.0), "EPSG:4326"),
    "Mercator": Grid(90, 120, (5e3, 0.0, 3.1e6, 0.0, -5e3, -1.6e6), "EPSG:3832"),
}


def smooth(grid: Grid) -> np.ndarray:
    """Values that follow from the place on the globe: (H, W)."""
    cols, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    a, b, c, d, e, f = grid.transform
    x, y = (a * cols + b * rows + c).ravel(), (d * cols + e * rows + f).ravel()
    lon, lat = np.radians(rasterio.warp.transform(grid.crs, "EPSG:4326", x, y))
    return (100 + 50 * np.cos(lat) * np.sin(lon) + 50 * np.sin(lat)).reshape(grid.height, grid.width)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "onto",
    [
        FIJI,
        FIJI.turned(-1),
        replace(FIJI, width=9),
        replace(FIJI.turned(-1), transform=(0.1, 0.0, -179.9, 0.0, -0.1, -16.0)),
        replace(FIJI, crs="EPSG:4167"),
        Grid(20, 20, (9e3, 0.0, 8.2e5, 0.0, -9e3, 8.25e6), "EPSG:32760"),
    ],
)
def test_rasters_across_180_degrees_are_read_whole(source: str, onto: Grid, tmp_path: Path) -> None:
    write_raster(tmp_path / "s.tif", SOURCES[source], smooth(SOURCES[source]).astype(np.float32))
    raster = GdalRaster(str(tmp_path / "s.tif"), onto=onto)
    raster.check()
    found = raster.read(onto.window)[0]
    np.testing.assert_allclose(found, smooth(onto), atol=0.9 if source in ("-180 to 180", "0 to 360") else 0.2)
    part = Window(3, 2, 9, 5)
    np.testing.assert_array_equal(raster.read(part)[0], found[part.within(onto.window)])


def test_what_lies_elsewhere_still_does_not_overlap(tmp_path: Path) -> None:
    write_raster(tmp_path / "s.tif", SOURCES["177 to 183"], smooth(SOURCES["177 to 183"]).astype(np.float32))
    for west in (184.0, 0.0, -150.0):
        onto = replace(FIJI, transform=(0.1, 0.0, west, 0.0, -0.1, -16.0))
        with pytest.raises(GridError, match="does not overlap"):
            GdalRaster(str(tmp_path / "s.tif"), onto=onto).check()
