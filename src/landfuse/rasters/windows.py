"""Windows of a grid: blocks, the lattice of cores, weights where cores overlap, and which windows hold a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CoreWeights = Literal["uniform", "smooth"]
"""How much a window counts where cores overlap: alike everywhere, or less towards its border."""


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels; it may reach beyond the grid.

    Examples:
        >>> lf.Window(0, 0, 4, 5).padded(1)
        Window(row=-1, col=-1, height=6, width=7)
    """

    row: int
    col: int
    height: int
    width: int

    def padded(self, halo: int) -> Window:
        """The window with `halo` pixels more on each side."""
        return Window(self.row - halo, self.col - halo, self.height + 2 * halo, self.width + 2 * halo)

    def scaled(self, zoom: int) -> Window:
        """The same ground on a grid that is `zoom` times finer."""
        return Window(self.row * zoom, self.col * zoom, self.height * zoom, self.width * zoom)

    def intersection(self, other: Window) -> Window:
        """The common rectangle; of no height or width where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom = min(self.row + self.height, other.row + other.height)
        right = min(self.col + self.width, other.col + other.width)
        return Window(row, col, max(0, bottom - row), max(0, right - col))

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Slices of an array that holds `outer`, which give this window."""
        row, col = self.row - outer.row, self.col - outer.col
        return slice(row, row + self.height), slice(col, col + self.width)

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.height == 0 or self.width == 0

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width


def mirrored(indices: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Indices of any size as indices 0..size-1, mirrored at the outer edges of the first and last pixel.

    The edge pixel is repeated (… 1 0 | 0 1 2 …): only so do grids of different zoom mirror alike, since the mirror
    is on the pixels' common edge. It holds for any distance, also in scenes smaller than the view.
    """
    folded = np.mod(indices, 2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def blocks(height: int, width: int, side: int) -> Iterator[Window]:
    """Cuts a grid into blocks of `side` pixels, row by row; those at the far edges are smaller."""
    for row in range(0, height, side):
        for col in range(0, width, side):
            yield Window(row, col, min(side, height - row), min(side, width - col))


def lattice(start: int, stop: int, size: int, core: int, stride: int) -> range:
    """Where along one axis the cores begin that touch the pixels start..stop-1.

    Cores begin at 0, stride, 2 * stride, ... until the axis is covered; the last may reach beyond it. Whoever asks,
    for whatever pixels, gets windows of this one lattice: that is why the map does not depend on how it is cut.

    Args:
        start: first pixel, >= 0.
        stop: one past the last pixel, <= size.
        size: length of the whole axis.
        core: side of a core.
        stride: distance between cores, <= core.
    """
    last_core = max(0, -(-(size - core) // stride))
    first = max(0, -(-(start - core + 1) // stride))
    last = min(last_core, (stop - 1) // stride)
    return range(first * stride, last * stride + 1, stride)


def summed_area(mask: NDArray[np.bool_]) -> NDArray[np.integer]:
    """The table of how many pixels above and to the left are true, (H + 1, W + 1), for `any_within`."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32 if mask.size < 2**31 else np.int64)
    np.cumsum(mask, axis=0, out=table[1:, 1:])
    np.cumsum(table, axis=1, out=table)
    return table


def any_within(table: NDArray[np.integer], rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which rectangles of a lattice hold a true pixel: (R, C).

    Args:
        table: `summed_area` of the mask.
        rows: (2, R), the first row of each and one past its last, within the mask.
        cols: (2, C), likewise.
    """
    above, below = table[rows[0]], table[rows[1]]
    found: NDArray[np.bool_] = below[:, cols[1]] - below[:, cols[0]] > above[:, cols[1]] - above[:, cols[0]]
    return found


def core_weights(core: int, kind: CoreWeights) -> NDArray[np.float32]:
    """What the pixels of a core weigh along one axis: (core,) float32, above 0; a pixel weighs row times column.

    `smooth` is sin² of the place between the core's two edges (Hann's window at pixel centres): 1 in the middle, and
    so little at the edges that a map shows no seam there.
    """
    if kind == "uniform":
        return np.ones(core, np.float32)
    return np.square(np.sin(np.pi * (np.arange(core) + 0.5) / core)).astype(np.float32)


def total_weight(start: int, stop: int, size: int, stride: int, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of the `core_weights` of all cores of the `lattice` at the pixels start..stop-1: (stop - start,) float32."""
    core = len(weights)
    total = np.zeros(stop - start, np.float32)
    for first in lattice(start, stop, size, core, stride):
        low, high = max(first, start), min(first + core, stop)
        total[low - start : high - start] += weights[low - first : high - first]
    return total
