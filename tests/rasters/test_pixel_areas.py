"""The true area of pixels, against geodesics and the whole ellipsoid."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest

from landfuse.rasters.grid import Grid
from landfuse.rasters.pixel_areas import pixel_areas
from landfuse.rasters.windows import Window

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
