"""Where the pixels of a raster are: shape, affine transform and CRS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import pyproj

from landfuse.rasters.windows import Window

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f, at the pixel's upper left corner."""

_SAME_CORNER = 0.01  # pixels; headers written by different programs differ by rounding, never by this much


@dataclass(frozen=True, eq=False)
class Grid:
    """Where pixels are. Two grids are equal if they have one shape and CRS and corners within 0.01 pixel.

    Args:
        height: rows.
        width: columns.
        transform: pixel to CRS coordinates.
        crs: `EPSG:n` or WKT; None where the file does not say.

    Example:
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
        tolerance = _SAME_CORNER * min(self.pixel_size)
        return all(math.dist(self.at(column, row), other.at(column, row)) <= tolerance for column, row in corners)

    __hash__ = None  # type: ignore[assignment]  # equality within a tolerance has no hash

    def at(self, column: float, row: float) -> tuple[float, float]:
        """The CRS coordinates of a place in pixels."""
        a, b, c, d, e, f = self.transform
        return a * column + b * row + c, d * column + e * row + f

    @property
    def georeferenced(self) -> bool:
        """Whether it says where its pixels are."""
        return self.crs is not None or self.transform != Grid(1, 1).transform

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

    def __str__(self) -> str:
        x, y = self.pixel_size
        size = f"{x:.6g}" if math.isclose(x, y) else f"{x:.6g} x {y:.6g}"
        left, top = self.transform[2], self.transform[5]
        crs = "no CRS" if self.crs is None else self.crs if len(self.crs) < 20 else "a CRS without authority code"
        return f"{self.height} x {self.width} px of {size} in {crs}, upper left at {left:.9g}, {top:.9g}"


@lru_cache(maxsize=256)
def _same_crs(one: str | None, other: str | None) -> bool:
    """Whether two CRS are one; a CRS without a code gets another name in each file that it is written to."""
    if one is None or other is None or one == other:
        return one == other
    return bool(pyproj.CRS.from_user_input(one) == pyproj.CRS.from_user_input(other))
