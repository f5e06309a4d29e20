"""Features of a scene in a file, read like a modality."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window


@dataclass(frozen=True)
class FeatureRaster:
    """One level of a scene's features; a `Raster` of the scene's own grid.

    Args:
        path: of the file: half precision, row by row, the channels of a pixel side by side.
        grid: the scene's.
        bands: timesteps x the level's width, timestep by timestep.
        factor: how many times coarser than the grid the file is.
    """

    path: str
    grid: Grid
    bands: int
    factor: int

    @property
    def dtype(self) -> str:
        """The data type in the file."""
        return "float16"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the file: rows, columns, bands."""
        return -(-self.grid.height // self.factor), -(-self.grid.width // self.factor), self.bands

    def read(self, window: Window) -> NDArray[np.float32]:
        """Reads a window inside the grid, (bands, height, width); coarse levels are interpolated linearly."""
        stored = _mapped(self.path, self.shape)
        if self.factor == 1:
            values = stored[window.row : window.row + window.height, window.col : window.col + window.width]
            return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32)
        top, bottom, down = self._knots(window.row, window.height, self.shape[0])
        left, right, along = self._knots(window.col, window.width, self.shape[1])
        row, col = int(top[0]), int(left[0])
        part = stored[row : int(bottom[-1]) + 1, col : int(right[-1]) + 1].astype(np.float32)
        down, along = down[:, None, None], along[:, None]
        rows = part[top - row] * (1 - down) + part[bottom - row] * down
        smooth = rows[:, left - col] * (1 - along) + rows[:, right - col] * along
        return np.ascontiguousarray(np.moveaxis(smooth, -1, 0))

    def _knots(
        self, start: int, count: int, size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The coarse pixels on both sides of each fine one's centre, and how far it lies towards the second."""
        place = (np.arange(start, start + count) + 0.5) / self.factor - 0.5
        first = np.floor(place).astype(np.int64)
        share = (place - first).astype(np.float32)
        return first.clip(0, size - 1), (first + 1).clip(0, size - 1), share

    def undeclared_nan(self, window: Window) -> int:
        """0: features are numbers everywhere."""
        return 0


@functools.lru_cache(maxsize=64)
def _mapped(path: str, shape: tuple[int, int, int]) -> NDArray[np.float16]:
    return np.memmap(path, dtype=np.float16, mode="r", shape=shape)


def close_files() -> None:
    """Lets go of the files that are open for reading, before one of them is replaced."""
    _mapped.cache_clear()
