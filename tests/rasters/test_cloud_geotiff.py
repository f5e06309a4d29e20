"""Mosaics of pieces, and cloud-optimised GeoTIFFs of them, by an outside judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from landfuse.errors import OutputError
from landfuse.legend import LandClass, Legend
from landfuse.rasters.geotiff_writer import Mosaic, write_cloud_geotiff, write_mosaic, write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window, blocks

LEGEND = Legend((LandClass("water", 1, "#0000FF"), LandClass("wood & <scrub>", 3, "#00FF00")))
TURNED = Grid(700, 1200, (9.0, 2.0, 5e5, 1.0, -7.0, 5.4e6), "EPSG:32632")
NOWHERE = Grid(700, 1200)


def pieces_of(values: np.ndarray, folder: Path, side: int, grid: Grid) -> dict[Window, Path]:
    pieces = {}
    for window in blocks(grid.height, grid.width, side):
        path = folder / f"{window.row}-{window.col}.tif"
        write_raster(path, grid.part(window), values[:, *window.within(grid.window)])
        pieces[window] = path
    return pieces


@pytest.mark.parametrize("grid", [TURNED, NOWHERE])
@pytest.mark.parametrize("apart", [False, True])
def test_what_lies_in_pieces_is_read_as_one(grid: Grid, apart: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 250, (3, 700, 1200)).astype(np.uint8)
    values[:, 100:200, 300:350] = 255
    pieces = pieces_of(values, tmp_path / "pieces", 500, grid)
    gone = Window(500, 500, 200, 500)
    del pieces[gone]
    values[:, *gone.within(grid.window)] = 255
    source = (tmp_path if apart else tmp_path / "pieces") / "x.vrt"
    write_mosaic(
        source, Mosaic(grid, ["a", "b & c"], scale=1 / 250, tags={"who": "me & <you>"}), pieces.items(), first_band=2
    )
    write_cloud_geotiff(tmp_path / "x.tif", source, "average")
    assert cog_validate(tmp_path / "x.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "x.tif") as file:
        np.testing.assert_array_equal(file.read(), values[1:])
        assert file.descriptions == ("a", "b & c")
        assert file.scales == (1 / 250,) * 2
        assert file.nodata == 255
        assert file.tags()["who"] == "me & <you>"
        assert file.overviews(1) == [2, 4]
        assert (file.crs is None) == (grid.crs is None)
        if grid.crs is not None:
            assert tuple(file.transform)[:6] == grid.transform
    with rasterio.open(tmp_path / "x.tif", overview_level=0) as half:
        four = values[1].reshape(350, 2, 600, 2).astype(float)
        four[four == 255] = np.nan
        known = ~np.isnan(four).all(axis=(1, 3))
        mean = np.nansum(four, axis=(1, 3)) / np.maximum(1, (~np.isnan(four)).sum(axis=(1, 3)))
        np.testing.assert_array_equal(half.read(1) == 255, ~known)
        np.testing.assert_allclose(half.read(1)[known], mean[known], atol=0.51)


def test_classes_keep_their_colours_and_coarser_pixels_are_the_most_frequent(tmp_path: Path) -> None:
    codes = np.where(np.random.default_rng(0).random((1, 700, 1200)) < 0.8, 1, 3).astype(np.uint8)
    codes[0, :, 600:] = 255
    write_mosaic(tmp_path / "x.vrt", Mosaic(TURNED, ["class"], LEGEND), pieces_of(codes, tmp_path, 350, TURNED).items())
    write_cloud_geotiff(tmp_path / "x.tif", tmp_path / "x.vrt", "mode")
    with rasterio.open(tmp_path / "x.tif") as file:
        np.testing.assert_array_equal(file.read(), codes)
        colours = file.colormap(1)
        assert (colours[1], colours[3], colours[255][3]) == ((0, 0, 255, 255), (0, 255, 0, 255), 0)
    with rasterio.open(tmp_path / "x.tif", overview_level=0) as half:
        four = codes[0].reshape(350, 2, 600, 2).transpose(0, 2, 1, 3).reshape(350, 600, 4)
        coarse = half.read(1)
        for code in (1, 3, 255):
            most = (four == code).sum(axis=2) >= 3
            assert most.any()
            assert (coarse[most] == code).all()


def test_a_small_raster_needs_no_overviews(tmp_path: Path) -> None:
    grid = Grid(5, 7, TURNED.transform, TURNED.crs)
    codes = np.ones((1, 5, 7), np.uint8)
    write_mosaic(tmp_path / "x.vrt", Mosaic(grid, ["class"], LEGEND), pieces_of(codes, tmp_path, 3, grid).items())
    write_cloud_geotiff(tmp_path / "x.tif", tmp_path / "x.vrt", "mode")
    assert cog_validate(tmp_path / "x.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "x.tif") as file:
        assert file.overviews(1) == []
        np.testing.assert_array_equal(file.read(), codes)


def test_a_place_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    mosaic = Mosaic(NOWHERE, ["class"])
    with pytest.raises(OutputError, match="cannot be written"):
        write_mosaic(Path("/dev/null/x.vrt"), mosaic, [])
    write_mosaic(tmp_path / "x.vrt", mosaic, [(NOWHERE.window, tmp_path / "gone.tif")])
    with pytest.raises(OutputError, match=r"x\.tif cannot be written"):
        write_cloud_geotiff(tmp_path / "x.tif", tmp_path / "x.vrt", "mode")
    assert [p.name for p in tmp_path.iterdir()] == ["x.vrt"]
