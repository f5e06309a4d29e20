"""A raster whose values run from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.windows import Window, blocks

_BLOCK = 1024
"""Side of the blocks that are read to find the ends, px."""


@dataclass(frozen=True)
class StretchedRaster:
    """Brings each band of a raster to 0 at its least value and 1 at its largest; a `Raster`.

    The ends are those of the whole raster, so that a pixel's value does not depend on the window. A band of one value
    becomes 0.
    """

    raster: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "raster":  # which copying and unpickling look for first
            raise AttributeError(name)
        return getattr(self.raster, name)

    def with_bands(self, places: Sequence[int]) -> StretchedRaster:
        """Some of the bands in use, in this order; places count from 0."""
        return StretchedRaster(self.raster.with_bands(places))

    @cached_property
    def ends(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least value of each band, (C, 1, 1), and what it is divided by."""
        low = np.full((self.raster.bands, 1, 1), np.inf, np.float32)
        high, grid = -low, self.raster.grid
        for block in blocks(grid.height, grid.width, _BLOCK):
            values = self.raster.read(block)
            low = np.fmin(low, np.fmin.reduce(values, axis=(1, 2), keepdims=True))
            high = np.fmax(high, np.fmax.reduce(values, axis=(1, 2), keepdims=True))
        return low, np.where(high > low, high - low, np.float32(1))

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        low, span = self.ends
        values: NDArray[np.float32] = (self.raster.read(window) - low) / span
        return values
