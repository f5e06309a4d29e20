"""What a raster is, wherever its pixels come from."""

from __future__ import annotations

from pathlib import Path
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


def state_of(raster: Raster) -> str:
    """What changes with the pixels of a raster: size and time of its file, or the digest of an array; else nothing."""
    file = Path(raster.path)
    if file.is_file():
        return f"{file.stat().st_size} {file.stat().st_mtime_ns}"
    return str(getattr(raster, "digest", ""))
