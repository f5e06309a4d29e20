"""The true area of pixels, on the ellipsoid; most CRS have pixels of one size on paper only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertCylindricalEqualAreaConversion
from pyproj.exceptions import CRSError
from scipy.interpolate import RectBivariateSpline

from landfuse.rasters.grid import Grid, Transform
from landfuse.rasters.windows import Window

_SAME = 1e-3
"""What areas may differ from the square of the pixel size, as a fraction, to count as equal to it."""

_NODES = 32
"""Places along each side of a grid at which the area is computed; between them it is interpolated."""

_HALF = (
    0.25  # of the small squares whose area is computed, in pixels; those at the outermost nodes end at the grid's edge
)


@dataclass(frozen=True)
class PixelAreas:
    """Square metres of the pixels of a grid; made by `pixel_areas`."""

    grid: Grid
    _crs: pyproj.CRS

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
        globe = ProjectedCRS(LambertCylindricalEqualAreaConversion(), geodetic_crs=self._crs.geodetic_crs)
        geod: Any = self._crs.get_geod()
        radius, pole = geod.a, pyproj.Proj(proj="cea", a=geod.a, b=geod.b)(0, 90)[1]
        rows: Any
        cols: Any
        rows, cols = (place[..., None] for place in np.meshgrid(*self._places, indexing="ij"))
        x, y = self.grid.at(cols + _HALF * np.array([-1, 1, 1, -1]), rows + _HALF * np.array([-1, -1, 1, 1]))
        x, y = pyproj.Transformer.from_crs(self._crs, globe, always_xy=True).transform(x, y)
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
        return None if self._crs.is_geographic else float(np.sqrt(self.same or np.median(self._nodes)))

    @cached_property
    def _spline(self) -> RectBivariateSpline:
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
    try:
        known = pyproj.CRS.from_user_input(crs or "")
    except CRSError:
        return None
    grounded = (known.is_projected or known.is_geographic) and known.geodetic_crs is not None
    return PixelAreas(Grid(height, width, transform, crs), known) if grounded else None
