"""What a raster is, wherever its pixels come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window


class Raster(Protocol):
    """Bands on a grid, wherever they come from. Cheap to make, safe to read from several threads, picklable."""

    @property
    def grid(self) -> Grid:
        """Its own grid, `zoom` times finer than the scene's."""

    @property
    def bands(self) -> int:
        """Number of bands."""

    @property
    def dtype(self) -> str:
        """The data type in the file, e.g. `int16`."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""

    def read(self, window: Window) -> NDArray[np.float32]:
        """Reads a window inside the grid: (C, height, width), scaled to its units, NaN where there is no data."""

    def undeclared_nan(self, window: Window) -> int:
        """How many pixels of a window hold a NaN or infinity though the raster declares no such nodata value."""


@dataclass(frozen=True)
class AbsentRaster:
    """A `Raster` without data anywhere."""

    grid: Grid
    bands: int
    dtype: str

    @property
    def path(self) -> str:
        """For messages."""
        return "(absent)"

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`: all NaN."""
        return np.full((self.bands, window.height, window.width), np.nan, np.float32)

    def undeclared_nan(self, window: Window) -> int:
        """See `Raster`: none, since that there are no data is declared."""
        return 0
