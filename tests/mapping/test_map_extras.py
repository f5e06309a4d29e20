"""What is beside finished maps: polygons against a count of pixels, mosaics against the maps, the index."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
from scipy import ndimage

from landfuse.errors import GridError, LandfuseError, OutputError, SceneError, SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.mapping import map_extras
from landfuse.mapping.map_extras import check_polygons, index_maps, write_mosaics, write_polygons
from landfuse.rasters import vector_map
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid, footprint
from landfuse.rasters.vector_map import without_small_patches

LEGEND = Legend((LandClass("water", 1, "#0000FF"), LandClass("wood", 3, "#00FF00"), LandClass("rock", 7, "#777777")))
TURNED = Grid(60, 80, (9.0, 2.0, 5e5, 1.0, -7.0, 5.4e6), "EPSG:32632")
DEGREES = Grid(60, 80, (1e-4, 0.0, 9.0, 0.0, -1e-4, 48.0), "EPSG:4326")
FEET = Grid(60, 80, (100.0, 0.0, 9e5, 0.0, -100.0, 2e5), "EPSG:2263")
NOWHERE = Grid(60, 80)


def noise(seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).choice(np.array([1, 3, 7], np.uint8), (60, 80))
    codes[10:20, 30:50] = UNLABELLED
    return codes


def sizes(codes: np.ndarray) -> list[int]:
    """Pixels of every patch, by scipy."""
    found: list[int] = []
    for code in (1, 3, 7):
        found += np.bincount(ndimage.label(codes == code)[0].ravel())[1:].tolist()
    return sorted(found)


def written(path: Path, grid: Grid, codes: np.ndarray, minimum: float = 0.0) -> geopandas.GeoDataFrame:
    write_raster(path / "map.tif", grid, codes, legend=LEGEND)
    place = write_polygons(path / "map.tif", LEGEND, minimum)
    assert place == path / "map_polygons.gpkg"
    assert sorted(p.name for p in path.iterdir()) == ["map.tif", "map.tif.aux.xml", "map_polygons.gpkg"]
    return geopandas.read_file(place, layer="land_cover")


@pytest.mark.parametrize(
    ("grid", "column", "of_pixel"),
    [
        (TURNED, "hectares", 65 / 1e4),
        (DEGREES, "hectares", 82.98 / 1e4),  # by geodesics
        (FEET, "hectares", (100 * 1200 / 3937) ** 2 / 1e4),
        (NOWHERE, "area", 1.0),
    ],
)
def test_polygons_are_the_patches_of_the_map(grid: Grid, column: str, of_pixel: float, tmp_path: Path) -> None:
    codes = noise()
    frame = written(tmp_path, grid, codes)
    assert list(frame.columns) == ["code", "class", column, "geometry"]
    np.testing.assert_allclose(
        sorted(frame[column]), np.array(sizes(codes)) * of_pixel, rtol=2e-4 if grid is DEGREES else 1e-6
    )
    assert dict(zip(frame["code"], frame["class"], strict=True)) == {1: "water", 3: "wood", 7: "rock"}
    assert (frame.crs is None) == (grid.crs is None)
    shapes = list(zip(frame.geometry, frame["code"], strict=True))
    burnt = rasterio.features.rasterize(
        shapes, (60, 80), UNLABELLED, transform=rasterio.Affine(*grid.transform), dtype="uint8"
    )
    np.testing.assert_array_equal(burnt, codes)


def test_small_patches_are_merged_until_none_is_left(tmp_path: Path) -> None:
    codes = noise()
    codes[0, :4], codes[1, :4], codes[:2, 4] = 1, UNLABELLED, UNLABELLED  # four pixels by themselves
    assert min(sizes(codes)) == 1
    for smallest in (1, 2, 7, 40):
        merged = without_small_patches(codes, smallest)
        assert min(size for size in sizes(merged) if size != 4) >= smallest
        np.testing.assert_array_equal(merged == UNLABELLED, codes == UNLABELLED)
        assert (merged[0, :4] == 1).all(), "no class is beside it"
    frame = written(tmp_path, TURNED, codes, 7 * 65.0)
    kept = frame["hectares"] * 1e4 / 65
    assert kept[kept > 4.5].min() == pytest.approx(7), "seven pixels of 65 square metres are enough"
    block = np.full((9, 9), 3, np.uint8)
    block[4, 4] = 7
    block[0, 0] = 1
    assert sizes(without_small_patches(block, 2)) == [81]


def test_the_minimum_area_is_one_on_the_ground(tmp_path: Path) -> None:
    codes = np.kron(noise()[:60, :80], np.ones((2, 1), np.uint8)).astype(np.uint8)
    grid = Grid(120, 80, (0.5, 0.0, 0.0, 0.0, -0.5, 75.0), "EPSG:4326")
    before = written(tmp_path, grid, codes)
    minimum = 1e10  # four pixels in the south, ten in the north
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    after = written(tmp_path, grid, codes, minimum)
    assert after["hectares"].sum() == pytest.approx(before["hectares"].sum())
    assert after["hectares"].min() >= minimum / 1e4
    burnt = rasterio.features.rasterize(
        zip(after.geometry, after["code"], strict=True),
        codes.shape,
        UNLABELLED,
        transform=rasterio.Affine(*grid.transform),
    )
    large = before[before["hectares"] >= minimum / 1e4]
    for shape, code in zip(large.geometry, large["code"], strict=True):
        inside = rasterio.features.geometry_mask([shape], codes.shape, rasterio.Affine(*grid.transform), invert=True)
        assert (burnt[inside] == code).all(), "what is large enough stays"


@pytest.mark.parametrize("grid", [TURNED, DEGREES, NOWHERE])
@pytest.mark.parametrize("minimum", [1e9, 1e300])
def test_a_minimum_beyond_the_map_leaves_the_largest_patch(grid: Grid, minimum: float, tmp_path: Path) -> None:
    codes = np.full((60, 80), 3, np.uint8)
    codes[5:20, 5:20] = 7
    frame = written(tmp_path, grid, codes, minimum)
    assert frame["code"].tolist() == [3]


def test_what_cannot_be_polygons_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: type[LandfuseError], message: str, codes: np.ndarray, minimum: float = 0.0) -> None:
        write_raster(tmp_path / "map.tif", TURNED, codes, legend=LEGEND)
        with pytest.raises(error, match=message):
            write_polygons(tmp_path / "map.tif", LEGEND, minimum)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]

    refused(SceneError, "nothing is mapped", np.full((60, 80), UNLABELLED, np.uint8))
    for minimum in (-1.0, float("nan"), float("inf")):
        refused(SettingsError, "minimum area of polygons is", noise(), minimum)
    monkeypatch.setattr(vector_map, "MOST_PATCHES", 100)
    refused(SceneError, "more than 100 patches", noise())
    monkeypatch.setattr(map_extras, "MOST_PIXELS", 60 * 80 - 1)
    refused(SceneError, r"60 x 80 px, too many for polygons", noise())
    monkeypatch.setattr(map_extras, "MOST_PIXELS", 60 * 80)
    check_polygons(TURNED)
    write_raster(tmp_path / "map.tif", TURNED, np.full((60, 80), 3, np.uint8), legend=LEGEND)
    (tmp_path / "map_polygons.gpkg").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_polygons(tmp_path / "map.tif", LEGEND)


def tiles_in(folder: Path, grids: dict[str, Grid]) -> dict[str, tuple[Grid, Path]]:
    maps = {}
    for number, (name, grid) in enumerate(grids.items()):
        maps[name] = (grid, folder / f"{name}.tif")
        write_raster(folder / f"{name}.tif", grid, noise(number), legend=LEGEND)
    return maps


def shifted(grid: Grid, columns: float, rows: float) -> Grid:
    a, b, _, d, e, _ = grid.transform
    x, y = grid.at(columns, rows)
    return replace(grid, transform=(a, b, x, d, e, y))


def test_a_mosaic_shows_all_maps_of_one_lattice(tmp_path: Path) -> None:
    maps = tiles_in(tmp_path, {"b": shifted(TURNED, 80, 0), "a": TURNED, "c": shifted(TURNED, -100, 70)})
    [place] = write_mosaics(tmp_path, maps, LEGEND)
    assert place == tmp_path / "mosaic.vrt"
    assert (tmp_path / "mosaic.qml").exists()
    expected = np.full((130, 260), UNLABELLED, np.uint8)
    for rows, cols, seed in ((0, 180, 0), (0, 100, 1), (70, 0, 2)):
        expected[rows : rows + 60, cols : cols + 80] = noise(seed)
    tmp_path = tmp_path.rename(tmp_path.with_name("moved"))  # it points at the maps beside it
    with rasterio.open(tmp_path / "mosaic.vrt") as file:
        np.testing.assert_array_equal(file.read(1), expected)
        assert tuple(file.transform)[:6] == pytest.approx(shifted(TURNED, -100, 0).transform)
        assert file.crs.to_epsg() == 32632
        assert file.colormap(1)[3][:3] == (0, 255, 0)


def test_no_data_of_a_later_tile_leaves_the_classes_of_an_earlier_one(tmp_path: Path) -> None:
    grids = {"a": TURNED, "b": shifted(TURNED, 40, 25), "same": TURNED}
    maps = {name: (grid, tmp_path / f"{name}.tif") for name, grid in grids.items()}
    codes = {name: noise(number) for number, name in enumerate(grids)}
    codes["b"][5:30, 10:35] = UNLABELLED
    codes["same"][:, 50:] = UNLABELLED
    expected = np.full((85, 120), UNLABELLED, np.uint8)
    for name, (row, col) in {"a": (0, 0), "b": (25, 40), "same": (0, 0)}.items():
        write_raster(maps[name][1], grids[name], codes[name], legend=LEGEND)
        for i, j in np.argwhere(codes[name] != UNLABELLED):
            expected[row + i, col + j] = codes[name][i, j]
    [place] = write_mosaics(tmp_path, maps, LEGEND)
    with rasterio.open(place) as file:
        np.testing.assert_array_equal(file.read(1), expected)


def test_a_mosaic_for_each_crs_and_lattice(tmp_path: Path) -> None:
    grids = {
        "a": TURNED,
        "b": replace(TURNED, crs="EPSG:32633"),
        "c": shifted(TURNED, 80.5, 0),
        "d": shifted(TURNED, 0, 60.001),
        "e": NOWHERE,
    }
    places = write_mosaics(tmp_path, tiles_in(tmp_path, grids), LEGEND)
    assert [p.name for p in places] == ["mosaic_EPSG32632.vrt", "mosaic_EPSG32633.vrt", "mosaic_EPSG32632-2.vrt"]
    shapes = []
    for place in places:
        with rasterio.open(place) as file:
            shapes.append(file.shape)
    assert shapes == [(120, 80), (60, 80), (60, 80)]
    assert write_mosaics(tmp_path, {"e": (NOWHERE, tmp_path / "e.tif")}, LEGEND) == []


def test_a_mosaic_and_the_index_hold_across_180_degrees(tmp_path: Path) -> None:
    grids = {
        "east": Grid(60, 80, (0.01, 0.0, 179.2, 0.0, -0.01, -16.0), "EPSG:4326"),
        "west": Grid(60, 80, (0.01, 0.0, -180.0, 0.0, -0.01, -16.0), "EPSG:4326"),
    }
    maps = tiles_in(tmp_path, grids)
    [place] = write_mosaics(tmp_path, maps, LEGEND)
    with rasterio.open(place) as file:
        np.testing.assert_array_equal(file.read(1), np.hstack([noise(0), noise(1)]))
    index_maps(tmp_path, {"both": (replace(grids["east"], width=160), place)})
    [shape] = geopandas.read_file(tmp_path / "index.gpkg").geometry
    assert len(shape.geoms) == 2, "cut at 180 degrees"
    assert shape.area == pytest.approx(1.6 * 0.6)


def test_the_index_shows_where_tiles_are(tmp_path: Path) -> None:
    grids = {"a": TURNED, "west/b": replace(FEET, height=30), "e": NOWHERE}
    maps = {name: (grid, tmp_path / f"{name}.tif") for name, grid in grids.items()}
    assert index_maps(tmp_path, maps) == tmp_path / "index.gpkg"
    frame = geopandas.read_file(tmp_path / "index.gpkg", layer="maps")
    assert frame.crs.to_epsg() == 4326
    assert frame[["tile", "path", "crs"]].to_numpy().tolist() == [
        ["a", "a.tif", "EPSG:32632"],
        ["west/b", "west/b.tif", "EPSG:2263"],
    ]
    for shape, grid in zip(frame.geometry, (grids["a"], grids["west/b"]), strict=True):
        back = geopandas.GeoSeries([shape], crs=4326).to_crs(grid.crs).iloc[0]
        assert back.area == pytest.approx(np.prod(grid.pixel_size) * grid.height * grid.width, rel=0.05)
        corners = {(round(x, 3), round(y, 3)) for x, y in back.exterior.coords}
        for place in ((0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height)):
            assert tuple(round(value, 3) for value in grid.at(*place)) in corners
    assert index_maps(tmp_path, {"e": maps["e"]}) is None


def test_a_footprint_runs_counterclockwise_through_the_corners() -> None:
    to_globe = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    for grid in (TURNED, replace(TURNED, transform=(9.0, 0.0, 5e5, 0.0, 7.0, 5.4e6))):
        ring = list(footprint(grid).exterior.coords)
        assert ring[0] == ring[-1]
        for corner in ((0, 0), (80, 0), (0, 60), (80, 60)):
            place = to_globe.transform(*grid.at(*corner))
            assert min(np.hypot(x - place[0], y - place[1]) for x, y in ring) < 1e-9
        assert sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) > 0
    for grid in (NOWHERE, replace(TURNED, transform=(9.0, 0.0, 1e12, 0.0, -7.0, 1e12))):
        with pytest.raises(GridError, match="on the globe"):
            footprint(grid)
