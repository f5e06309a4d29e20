"""Grids, windows and the lattice, against plain loops; areas against geodesics and the whole ellipsoid."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from landfuse.rasters.grid import Grid, degrees_box, footprint, pixel_areas
from landfuse.rasters.windows import Window, blocks, lattice, mirrored

GRID = Grid(30, 40, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
TURNED = Grid(30, 40, (8.0, 6.0, 500_000.0, 6.0, -8.0, 5_400_000.0), "EPSG:32632")
sizes = st.integers(1, 23)


def moved(grid: Grid, x: float = 0.0, y: float = 0.0, stretch: float = 1.0) -> Grid:
    a, b, c, d, e, f = grid.transform
    return dataclasses.replace(grid, transform=(a * stretch, b, c + x, d, e, f + y))


@given(size=sizes, index=st.integers(-200, 200))
def test_mirrored_against_walking_to_and_fro(size: int, index: int) -> None:
    to_and_fro = [*range(size), *reversed(range(size))]  # ... 1 0 | 0 1 ... n-1 | n-1 ... 0 | ...
    expected = to_and_fro[index % (2 * size)]
    assert mirrored(np.array([index]), size).tolist() == [expected]


@given(size=sizes, zoom=st.integers(1, 10), index=st.integers(-50, 50))
def test_mirrors_of_finer_grids_lie_on_the_same_pixels(size: int, zoom: int, index: int) -> None:
    fine = mirrored(np.arange(index * zoom, (index + 1) * zoom), size * zoom)
    assert set(fine // zoom) == set(mirrored(np.array([index]), size))


@given(height=sizes, width=sizes, side=st.integers(1, 30))
def test_blocks_cover_each_pixel_once_row_by_row(height: int, width: int, side: int) -> None:
    hits = np.zeros((height, width), int)
    corners = []
    for block in blocks(height, width, side):
        assert 0 < block.height <= side
        assert 0 < block.width <= side
        hits[block.row : block.row + block.height, block.col : block.col + block.width] += 1
        corners.append((block.row, block.col))
    assert (hits == 1).all()
    assert hits.shape == (height, width)
    assert corners == sorted(corners)
    assert all(row % side == 0 and col % side == 0 for row, col in corners)


@settings(max_examples=300)
@given(data=st.data(), size=st.integers(1, 60), core=st.integers(1, 20))
def test_lattice_against_a_plain_loop(data: st.DataObject, size: int, core: int) -> None:
    stride = data.draw(st.integers(1, core))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    whole = [0]
    while whole[-1] + core < size:
        whole.append(whole[-1] + stride)
    expected = [first for first in whole if first < stop and first + core > start]
    assert list(lattice(start, stop, size, core, stride)) == expected
    covered = {pixel for first in expected for pixel in range(first, first + core)}
    assert covered >= set(range(start, stop))


@given(
    st.tuples(st.integers(-9, 9), st.integers(-9, 9), sizes, sizes),
    st.tuples(st.integers(-9, 9), st.integers(-9, 9), sizes, sizes),
)
def test_intersections_against_sets_of_pixels(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    def pixels(window: Window) -> set[tuple[int, int]]:
        rows = range(window.row, window.row + window.height)
        return {(row, col) for row in rows for col in range(window.col, window.col + window.width)}

    both = Window(*one).intersection(Window(*other))
    assert pixels(both) == pixels(Window(*one)) & pixels(Window(*other))
    assert both.empty == (not pixels(both))
    assert both.pixels == len(pixels(both))


def test_windows() -> None:
    window = Window(3, 5, 4, 6)
    assert window.padded(2) == Window(1, 3, 8, 10)
    assert window.scaled(10) == Window(30, 50, 40, 60)
    array = np.arange(200).reshape(10, 20)
    np.testing.assert_array_equal(array[window.within(Window(0, 0, 10, 20))], array[3:7, 5:11])
    inner = array[2:9, 4:15]
    np.testing.assert_array_equal(inner[window.within(Window(2, 4, 7, 11))], array[3:7, 5:11])


@pytest.mark.parametrize("grid", [GRID, TURNED])
def test_equality_is_of_corners_within_a_hundredth_of_a_pixel(grid: Grid) -> None:
    assert grid == dataclasses.replace(grid)
    assert grid == moved(grid, 0.09, 0.0)
    assert grid != moved(grid, 0.11, 0.0)
    assert grid != moved(grid, 0.0, -0.2)
    # A pixel size that is off by little adds up over the grid: 40 columns.
    assert grid == moved(grid, stretch=1 + 2e-4)
    assert grid != moved(grid, stretch=1 + 4e-4)
    assert grid != dataclasses.replace(grid, height=31)
    assert grid != dataclasses.replace(grid, width=39)
    assert grid != dataclasses.replace(grid, crs="EPSG:32633")
    assert grid != dataclasses.replace(grid, crs=None)
    assert grid != "grid"


def test_equality_knows_a_crs_by_its_meaning() -> None:
    def laea(latitude: float) -> str:
        return str(pyproj.CRS(f"+proj=laea +lat_0={latitude} +lon_0=20 +datum=WGS84 +units=m").to_wkt("WKT1_GDAL"))

    named = laea(10).replace('PROJCS["unknown"', 'PROJCS["Africa"')
    assert named != laea(10)
    one = dataclasses.replace(GRID, crs=laea(10))
    assert one == dataclasses.replace(GRID, crs=named)
    assert one != dataclasses.replace(GRID, crs=laea(11))
    assert one != GRID


def test_a_grid_has_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(GRID)


@pytest.mark.parametrize("grid", [GRID, TURNED])
@pytest.mark.parametrize("zoom", [1, 2, 10])
def test_zoomed_grids_cover_the_same_ground(grid: Grid, zoom: int) -> None:
    fine = grid.zoomed(zoom)
    assert (fine.height, fine.width, fine.crs) == (30 * zoom, 40 * zoom, grid.crs)
    for column, row in ((0, 0), (40, 30), (7, 13)):
        assert fine.at(column * zoom, row * zoom) == pytest.approx(grid.at(column, row), rel=1e-12)
    assert fine.pixel_size == pytest.approx([10 / zoom, 10 / zoom])
    assert (fine == grid) == (zoom == 1)


@pytest.mark.parametrize("grid", [GRID, TURNED])
def test_parts(grid: Grid) -> None:
    part = grid.part(Window(4, 6, 10, 12))
    assert (part.height, part.width) == (10, 12)
    assert part.at(3, 2) == pytest.approx(grid.at(9, 6))
    assert grid.part(grid.window) == grid


def test_places_against_a_matrix() -> None:
    matrix = np.array([TURNED.transform[:3], TURNED.transform[3:], (0, 0, 1)])
    for column, row in ((0, 0), (3.5, 1.25), (-7, 100)):
        assert TURNED.at(column, row) == pytest.approx((matrix @ [column, row, 1])[:2])


def test_georeferenced() -> None:
    assert GRID.georeferenced
    assert dataclasses.replace(GRID, crs=None).georeferenced
    assert not Grid(3, 4).georeferenced


def test_in_words() -> None:
    assert str(GRID) == "30 x 40 px of 10 in EPSG:32632, upper left at 500000, 5400000"
    assert str(Grid(3, 4, (2.0, 0.0, 0.0, 0.0, -1.0, 0.0))) == "3 x 4 px of 2 x 1 in no CRS, upper left at 0, 0"
    assert "a CRS without authority code" in str(dataclasses.replace(GRID, crs="PROJCS[" + "x" * 40))
    assert math.isclose(TURNED.pixel_size[0], 10)


GLOBE = 510_065_621_724_089.0  # square metres of the ellipsoid WGS 84
WORLD = [Grid(720, 1440, (0.25, 0.0, west, 0.0, -0.25, 90.0), "EPSG:4326") for west in (-180.0, 0.0, -30.0)]


def around(grid: Grid) -> float:
    """The area of a grid's outline, by geodesics between close points."""
    side = np.linspace(0, 1, 400)
    cols = np.concatenate([side, 1 + 0 * side, 1 - side, 0 * side]) * grid.width
    rows = np.concatenate([0 * side, side, 1 + 0 * side, 1 - side]) * grid.height
    places = [grid.at(col, row) for col, row in zip(cols, rows, strict=True)]
    to = pyproj.Transformer.from_crs(grid.crs, pyproj.CRS(grid.crs).geodetic_crs, always_xy=True)
    unit = pyproj.CRS(grid.crs).geodetic_crs.axis_info[0].unit_conversion_factor
    lon, lat = (np.degrees(np.array(side) * unit) for side in to.transform(*zip(*places, strict=True)))
    area, _ = pyproj.CRS(grid.crs).get_geod().polygon_area_perimeter(lon, lat)
    return abs(area)


@pytest.mark.parametrize("grid", WORLD)
def test_pixels_of_the_whole_earth_add_up_to_it(grid: Grid) -> None:
    areas = pixel_areas(grid)
    assert areas
    assert areas(grid.window).sum() == pytest.approx(GLOBE, rel=1e-6)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(100, 90, (1e-3, 0.0, 10.0, 0.0, -1e-3, 60.0), "EPSG:4326"),
        Grid(100, 90, (1e-2, 0.0, 179.5, 0.0, -1e-2, -16.0), "EPSG:4326"),  # across 180 degrees
        Grid(100, 90, (100.0, 0.0, 1_113_200.0, 0.0, -100.0, 8_362_700.0), "EPSG:3395"),
        Grid(100, 90, (100.0, 20.0, 1_113_200.0, 10.0, -100.0, 8_362_700.0), "EPSG:3857"),
        Grid(50, 40, (30.0, 0.0, 950_000.0, 0.0, -30.0, 8_000_000.0), "EPSG:32660"),  # east of its zone
        Grid(200, 150, (5_000.0, 0.0, -400_000.0, 0.0, -5_000.0, 300_000.0), "EPSG:3413"),  # around the pole
        Grid(1, 1, (0.5, 0.0, 10.0, 0.0, -0.5, 60.0), "EPSG:4979"),
        Grid(20, 20, (0.01, 0.0, 2.0, 0.0, -0.01, 52.0), "EPSG:4807"),  # in grads from Paris
    ],
)
def test_pixels_add_up_to_the_area_of_the_outline(grid: Grid) -> None:
    areas = pixel_areas(grid)
    assert areas
    assert areas.same is None
    whole = areas(grid.window)
    assert whole.sum() == pytest.approx(around(grid), rel=2e-5)
    part = Window(0, grid.width // 2, 1, 1)
    np.testing.assert_allclose(areas(part), whole[part.within(grid.window)], rtol=1e-12)
    assert areas.at(np.array([0]), np.array([grid.width // 2])) == pytest.approx(areas(part)[0, 0], rel=1e-12)
    assert areas.range[0] <= whole.min() * 1.001 <= whole.max() * 1.002 <= areas.range[1] * 1.003


def test_pixels_of_one_size_have_it_exactly() -> None:
    feet = Grid(9, 9, (100.0, 0.0, 984_000.0, 0.0, -100.0, 196_000.0), "EPSG:2263")
    for grid, expected in (
        (Grid(9, 9, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632"), 100.0),
        (Grid(9, 9, (10.0, 0.0, 4.3e6, 0.0, -10.0, 3.2e6), "EPSG:3035"), 100.0),
        (Grid(9, 9, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:25832+7837"), 100.0),
        (feet, pytest.approx(1e4 * (1200 / 3937) ** 2, rel=1e-12)),
    ):
        areas = pixel_areas(grid)
        assert areas
        assert areas.same == expected
        assert (areas(grid.window) == areas.same).all()


def test_pixels_without_a_place_have_no_area() -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'
    assert pixel_areas(Grid(4, 4)) is None
    assert pixel_areas(Grid(4, 4, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6))) is None
    assert pixel_areas(Grid(4, 4, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), local)) is None


FIJI = Grid(20, 30, (0.1, 0.0, 178.5, 0.0, -0.1, -16.0), "EPSG:4326")  # to 181.5


def test_whole_turns_heights_and_axes_make_no_difference() -> None:
    for other in (FIJI.turned(-1), FIJI.turned(2), dataclasses.replace(FIJI, crs="OGC:CRS84")):
        assert other == FIJI
        assert other.beside(FIJI).transform == pytest.approx(FIJI.transform)
    assert moved(FIJI, 1.0) != FIJI
    assert moved(GRID, 360.0) != GRID, "in metres"
    for crs, heights in (("EPSG:32632", "EPSG:32632+5773"), ("EPSG:4326", "EPSG:4979"), ("EPSG:4326", "EPSG:9518")):
        assert dataclasses.replace(GRID, crs=crs) == dataclasses.replace(GRID, crs=heights)
    grads = Grid(9, 9, (0.1, 0.0, 190.0, 0.0, -0.1, 50.0), "EPSG:4807")
    assert grads.turn == pytest.approx(400)
    assert GRID.turn == Grid(9, 9).turn == 0


@pytest.mark.parametrize(
    ("grid", "box", "parts"),
    [
        (FIJI, (178.5, -18, -178.5, -16), [(-180, -18, -178.5, -16), (178.5, -18, 180, -16)]),
        (FIJI.turned(-1), (178.5, -18, -178.5, -16), [(-180, -18, -178.5, -16), (178.5, -18, 180, -16)]),
        (moved(FIJI, 10), (-171.5, -18, -168.5, -16), [(-171.5, -18, -168.5, -16)]),
        (moved(FIJI, 1.5), (-180, -18, -177, -16), [(-180, -18, -177, -16)]),
        (moved(FIJI, -1.5), (177, -18, 180, -16), [(177, -18, 180, -16)]),
        (Grid(9, 36, (10.0, 0.0, 0.0, 0.0, -10.0, 40.0), "EPSG:4326"), (-180, -50, 180, 40), [(-180, -50, 180, 40)]),
    ],
)
def test_an_outline_is_cut_at_180_degrees(grid: Grid, box: tuple[float, ...], parts: list[tuple[float, ...]]) -> None:
    """By RFC 7946: sections 3.1.9 and 5.2."""
    assert degrees_box(grid) == pytest.approx(box)
    outline = footprint(grid)
    assert outline.geom_type == ("Polygon" if len(parts) == 1 else "MultiPolygon")
    assert sorted(part.bounds for part in shapely.get_parts(outline)) == [pytest.approx(part) for part in parts]
    assert all(part.exterior.is_ccw for part in shapely.get_parts(outline))


def test_an_outline_holds_the_pole() -> None:
    for crs, pole in (("EPSG:3413", 89.9), ("EPSG:3031", -89.9)):
        grid = Grid(60, 60, (1e4, 0.0, -2.8e5, 0.0, -1e4, 3e5), crs)
        outline = footprint(grid)
        assert shapely.contains_xy(outline, [-179.9, -60, 30, 179.9], [pole] * 4).all()
        west, south, east, north = degrees_box(grid)
        assert (west, east) == (-180, 180)
        assert (north if pole > 0 else south) == math.copysign(90, pole)
        assert outline.area == pytest.approx(360 * 3, rel=0.1)
