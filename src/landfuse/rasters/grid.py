"""Where the pixels of a raster are: shape, affine transform and CRS; and how large they are on the ground."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
import shapely.affinity
from numpy.typing import NDArray
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertCylindricalEqualAreaConversion
from pyproj.exceptions import CRSError, ProjError

from landfuse.errors import GridError
from landfuse.rasters.windows import Window

if TYPE_CHECKING:
    from scipy.interpolate import RectBivariateSpline

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f, at the pixel's upper left corner."""

SAME_CORNER = 0.01
"""Pixels within which two corners are one; headers written by different programs differ by rounding, never by more."""

_SAME = 1e-3
"""What areas may differ from the square of the pixel size, as a fraction, to count as equal to it."""

_NODES = 32
"""Places along each side of a grid at which the area is computed; between them it is interpolated."""

_HALF = 0.25
"""Half the side of the squares whose area is computed, px; those at the outermost nodes end at the edge of the grid."""

_PIECES = 16
"""Into which an edge is cut, since a straight edge in one CRS is a curve in another."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where pixels are.

    Two grids are equal if they have one shape, CRS and corners within 0.01 pixel. A height datum makes no difference,
    nor do whole turns of longitude: 190 degrees is -170.

    Args:
        height: rows.
        width: columns.
        transform: pixel to CRS coordinates.
        crs: `EPSG:n` or WKT; None where the file does not say.

    Examples:
        >>> grid = lf.Grid(100, 200, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
        >>> grid.pixel_size, grid.at(1, 1)
        ((10.0, 10.0), (500010.0, 5399990.0))
    """

    height: int
    width: int
    transform: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    crs: str | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        if (self.height, self.width) != (other.height, other.width) or not _same_crs(self.crs, other.crs):
            return False
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        tolerance = SAME_CORNER * min(self.pixel_size)
        other = other.beside(self)
        return all(math.dist(self.at(column, row), other.at(column, row)) <= tolerance for column, row in corners)

    __hash__ = None  # type: ignore[assignment]  # equality within a tolerance has no hash

    def at(self, column: float, row: float) -> tuple[float, float]:
        """The CRS coordinates of a place in pixels."""
        a, b, c, d, e, f = self.transform
        return a * column + b * row + c, d * column + e * row + f

    def pixels(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows and columns of the pixels that hold places in the CRS; beyond the grid where it does not."""
        a, b, c, d, e, f = self.transform
        x = x if not self.turn else self.bounds[0] + (x - self.bounds[0]) % self.turn
        with np.errstate(invalid="ignore"):  # of places that are farther than integers reach
            col, row = np.floor(np.linalg.solve(np.array([[a, b], [d, e]]), np.stack([x - c, y - f]))).astype(np.int64)
        return row, col

    @property
    def georeferenced(self) -> bool:
        """Whether it says something of where its pixels are."""
        return self.crs is not None or self.located

    @property
    def located(self) -> bool:
        """Whether it has a transform of its own."""
        return self.transform != Grid(1, 1).transform

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Width and height of a pixel, in CRS units."""
        a, b, _, d, e, _ = self.transform
        return math.hypot(a, d), math.hypot(b, e)

    @property
    def window(self) -> Window:
        """The whole grid as a window."""
        return Window(0, 0, self.height, self.width)

    def zoomed(self, zoom: int) -> Grid:
        """The same ground with pixels `zoom` times finer."""
        a, b, c, d, e, f = self.transform
        return Grid(self.height * zoom, self.width * zoom, (a / zoom, b / zoom, c, d / zoom, e / zoom, f), self.crs)

    def part(self, window: Window) -> Grid:
        """The grid of a window of this one."""
        a, b, _, d, e, _ = self.transform
        x, y = self.at(window.col, window.row)
        return Grid(window.height, window.width, (a, b, x, d, e, y), self.crs)

    @property
    def turn(self) -> float:
        """A whole turn of longitude in CRS units, where the CRS is geographic; else 0."""
        return whole_turn(self.crs) if self.crs else 0.0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of the box around it, in CRS units."""
        x, y = zip(*(self.at(col, row) for col in (0, self.width) for row in (0, self.height)), strict=True)
        return min(x), min(y), max(x), max(y)

    def turned(self, turns: int) -> Grid:
        """The same ground, with longitudes that are so many whole turns larger."""
        a, b, c, d, e, f = self.transform
        return replace(self, transform=(a, b, c + turns * self.turn, d, e, f))

    def turns_to(self, other: Grid) -> tuple[int, ...]:
        """The whole turns by which its longitudes may differ from those of another grid, of whatever CRS."""
        if not self.turn:
            return (0,)
        sides = (*self.bounds[::2], *(other.bounds[::2] if other.turn else ()))
        within = max(map(abs, sides)) <= self.turn / 2 + SAME_CORNER * self.pixel_size[0]
        return (0,) if within else (0, -1, 1)

    def beside(self, other: Grid) -> Grid:
        """The same ground, with longitudes that are within half a turn of those of another grid of its CRS."""
        return self.turned(round((other.transform[2] - self.transform[2]) / self.turn)) if self.turn else self

    def __str__(self) -> str:
        x, y = self.pixel_size
        size = f"{x:.6g}" if math.isclose(x, y) else f"{x:.6g} x {y:.6g}"
        left, top = self.transform[2], self.transform[5]
        crs = "no CRS" if self.crs is None else self.crs if len(self.crs) < 20 else "a CRS without authority code"
        return f"{self.height} x {self.width} px of {size} in {crs}, upper left at {left:.9g}, {top:.9g}"


@lru_cache(maxsize=256)
def horizontal(crs: str) -> pyproj.CRS:
    """A CRS without its heights, if it has some."""
    return pyproj.CRS.from_user_input(crs).to_2d()


@lru_cache(maxsize=256)
def whole_turn(crs: str) -> float:
    """A whole turn of longitude in units of a CRS, if it is geographic; else 0."""
    known = horizontal(crs)
    return math.tau / float(known.axis_info[0].unit_conversion_factor) if known.is_geographic else 0.0


@lru_cache(maxsize=256)
def _same_crs(one: str | None, other: str | None) -> bool:
    """Whether two CRS are one; a CRS without a code gets another name in each file that it is written to."""
    if one is None or other is None or one == other:
        return one == other
    # Rasters have longitude first, whatever the CRS says of its axes.
    return bool(horizontal(one).equals(horizontal(other), ignore_axis_order=True))


def footprint(grid: Grid) -> Any:
    """A grid's outline in WGS 84, in degrees: a shapely Polygon, counterclockwise.

    Across 180 degrees it is a MultiPolygon cut there, as RFC 7946 asks; a pole inside is taken in.

    Raises:
        GridError: if the grid has no CRS, or is where its CRS does not reach.
    """
    ring = _ring(grid)
    if ring[:, 0].min() >= -180 and ring[:, 0].max() <= 180:
        return shapely.orient_polygons(shapely.Polygon(ring))
    whole = shapely.make_valid(shapely.Polygon(ring))
    parts = [
        shapely.affinity.translate(shapely.intersection(whole, shapely.box(west, -90, west + 360, 90)), -180 - west)
        for west in (-540.0, -180.0, 180.0)
    ]
    return shapely.orient_polygons(shapely.union_all([part for part in parts if part.area]))


def degrees_box(grid: Grid) -> tuple[float, float, float, float]:
    """West, south, east and north of a grid's `footprint`; west is larger than east across 180 degrees."""
    ring = _ring(grid)
    (west, south), (east, north) = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
    if east - west >= 360:
        return -180.0, south, 180.0, north
    west, east = west - 360 * (west >= 180), east - 360 * (east > 180)
    return west + 360 * (west < -180), south, east + 360 * (east <= -180), north


def _ring(grid: Grid) -> NDArray[np.float64]:
    """A grid's outline in WGS 84, (N, 2) in degrees; longitudes run on beyond 180 instead of jumping."""
    if grid.crs is None:
        raise GridError(
            "the map has no CRS, and so no place on the globe", "a CRS", "name it in the scene file: `crs:`"
        )
    right, bottom = float(grid.width), float(grid.height)
    corners = [(0.0, 0.0), (0.0, bottom), (right, bottom), (right, 0.0), (0.0, 0.0)]
    step = np.arange(_PIECES)[:, None] / _PIECES
    places = np.concatenate(
        [np.add(start, step * np.subtract(end, start)) for start, end in itertools.pairwise(corners)]
    )
    a, b, c, d, e, f = grid.transform
    try:
        to_globe = pyproj.Transformer.from_crs(horizontal(grid.crs), 4326, always_xy=True)
        x, y = to_globe.transform(*(np.array([[a, b], [d, e]]) @ places.T + [[c], [f]]))
    except (CRSError, ProjError) as error:
        raise _unplaced(grid, str(error)) from None
    if not np.isfinite([x, y]).all():
        raise _unplaced(grid, "its CRS does not reach there")
    x = np.unwrap(np.append(x, x[0]), period=360)
    y = np.append(y, y[0])
    if abs(x[-1] - x[0]) > 180:  # once around a pole
        pole = math.copysign(90, y.mean())
        x, y = np.append(x, [x[-1], x[0], x[0]]), np.append(y, [pole, pole, y[0]])
    return np.stack([x, y], axis=1)


def _unplaced(grid: Grid, why: str) -> GridError:
    return GridError(
        f"the map cannot be placed on the globe: {why}; its grid is {grid}",
        "a CRS that PROJ knows, within the area it is made for",
        "check the CRS of the rasters",
    )


@dataclass(frozen=True)
class PixelAreas:
    """Square metres of the pixels of a grid; made by `pixel_areas`."""

    grid: Grid
    _crs: pyproj.CRS
    _to_globe: pyproj.Transformer
    _globe: tuple[float, float]
    """The globe's radius, and how high the pole is on the cylinder around it."""

    @property
    def _plane(self) -> float:
        """Square metres of a pixel in the plane of the CRS; not of a geographic one, whose units are angles."""
        a, b, _, d, e, _ = self.grid.transform
        return float(abs(a * e - b * d) * self._crs.axis_info[0].unit_conversion_factor ** 2)

    @cached_property
    def _places(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sides = self.grid.height, self.grid.width
        rows, cols = (np.linspace(_HALF, side - _HALF, min(2 * side, _NODES)) for side in sides)
        return rows, cols

    @cached_property
    def _nodes(self) -> NDArray[np.float64]:
        """Square metres of a pixel at the nodes, (R, C)."""
        radius, pole = self._globe
        rows: Any
        cols: Any
        rows, cols = (place[..., None] for place in np.meshgrid(*self._places, indexing="ij"))
        x, y = self.grid.at(cols + _HALF * np.array([-1, 1, 1, -1]), rows + _HALF * np.array([-1, -1, 1, 1]))
        x, y = self._to_globe.transform(x, y)
        # From the cylinder to the sphere of the ellipsoid's area: there neither 180 degrees nor a pole is special.
        with np.errstate(invalid="ignore"):
            up = np.clip(y / pole, -1, 1)
            out, turn = np.sqrt((1 - up) * (1 + up)), x / radius
            corners = np.stack([out * np.cos(turn), out * np.sin(turn), up], axis=-1)
            cross = np.cross(corners[..., 2, :] - corners[..., 0, :], corners[..., 3, :] - corners[..., 1, :])
            areas = np.linalg.norm(cross, axis=-1) / 2 * radius * pole / (2 * _HALF) ** 2
        return np.where(np.isfinite(areas), areas, self._plane)  # where the CRS does not reach

    @cached_property
    def same(self) -> float | None:
        """Square metres of every pixel, where all are of one size within 0.1%."""
        return self._plane if (abs(self._nodes / self._plane - 1) <= _SAME).all() else None

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest."""
        return (self.same, self.same) if self.same is not None else (float(self._nodes.min()), float(self._nodes.max()))

    @property
    def side(self) -> float | None:
        """Metres of a pixel's side in the middle; None in degrees, where width and height differ."""
        return None if self._crs.is_geographic else self.metres

    @property
    def metres(self) -> float:
        """The side of a square as large as a pixel in the middle."""
        return float(np.sqrt(self.same or np.median(self._nodes)))

    @property
    def stated(self) -> str:
        """The size of the pixels in the CRS, and the CRS, for messages."""
        return " x ".join(f"{size:.6g}" for size in self.grid.pixel_size) + f" in {self._crs.name}"

    @cached_property
    def _spline(self) -> RectBivariateSpline:
        from scipy.interpolate import RectBivariateSpline  # slow to import, and not often needed

        rows, cols = self._places
        return RectBivariateSpline(rows, cols, self._nodes, kx=min(3, rows.size - 1), ky=min(3, cols.size - 1))

    def __call__(self, window: Window) -> NDArray[np.float64]:
        """Those of a window inside the grid: (height, width)."""
        if self.same is not None:
            return np.broadcast_to(self.same, (window.height, window.width))
        rows, cols = window.row + np.arange(window.height) + 0.5, window.col + np.arange(window.width) + 0.5
        return np.asarray(self._spline(rows, cols))

    def at(self, row: NDArray[np.integer], col: NDArray[np.integer]) -> NDArray[np.float64]:
        """Those of single pixels: (n,)."""
        if self.same is not None:
            return np.full(row.shape, self.same)
        return np.asarray(self._spline.ev(row + 0.5, col + 0.5))


def pixel_areas(grid: Grid) -> PixelAreas | None:
    """The true areas of a grid's pixels; None where it has no CRS, or one that is not tied to the ground."""
    return _pixel_areas(grid.height, grid.width, grid.transform, grid.crs)


@lru_cache(maxsize=64)
def _pixel_areas(height: int, width: int, transform: Transform, crs: str | None) -> PixelAreas | None:
    globe = _globe_of(crs or "")
    return PixelAreas(Grid(height, width, transform, crs), *globe) if globe else None


@lru_cache(maxsize=64)  # thousands of tiles share a CRS, and PROJ takes 0.1 s
def _globe_of(crs: str) -> tuple[pyproj.CRS, pyproj.Transformer, tuple[float, float]] | None:
    try:
        known = horizontal(crs)
        base = known.source_crs if known.is_geographic and known.is_derived else known.geodetic_crs
        if base is None or not (known.is_projected or known.is_geographic):
            return None
        cylinder = ProjectedCRS(LambertCylindricalEqualAreaConversion(), geodetic_crs=base)
        to_globe = pyproj.Transformer.from_crs(known, cylinder, always_xy=True)
    except (CRSError, ProjError):
        return None
    geod: Any = known.get_geod()
    return known, to_globe, (geod.a, pyproj.Proj(proj="cea", a=geod.a, b=geod.b)(0, 90)[1])
