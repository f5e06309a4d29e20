"""Which block computes which window, where one process maps several blocks in row order.

A window whose core lies across several blocks belongs to the first of them; the others are given its logits, and need
not read what it looks at. Its logits are the same bits wherever they are computed, so that this changes no map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from landfuse.scenes.grid import Window

CARRIED = 128 * 2**20
"""Bytes of logits that are kept for the blocks below; those for the block to the right are kept in any case."""

Place = tuple[int, int]
"""The first row and column of a core."""


@dataclass(frozen=True)
class Share:
    """The windows that touch a block, and which of them it computes.

    Args:
        window: the block.
        rows: first rows of the cores that touch it.
        cols: first columns.
        own: (rows, cols), true where the block itself computes a window; the others an earlier block has computed.
        kept: of some of its own windows, the part of the core whose logits later blocks need.
    """

    window: Window
    rows: range
    cols: range
    own: NDArray[np.bool_]
    kept: Mapping[Place, Window]

    @property
    def given(self) -> set[Place]:
        """The windows whose logits it is given."""
        return self._where(~self.own)

    @property
    def mine(self) -> set[Place]:
        """The windows that it computes itself."""
        return self._where(self.own)

    def _where(self, mask: NDArray[np.bool_]) -> set[Place]:
        return {(self.rows[row], self.cols[col]) for row, col in np.argwhere(mask).tolist()}

    def alone(self) -> Share:
        """The same block if it is given nothing."""
        return replace(self, own=np.ones_like(self.own))

    def cores(self, core: int) -> Window:
        """The rectangle around its own cores, of a side, and the block."""
        block, spans = self.window, []
        for axis, starts, first, size in (
            (1, self.rows, block.row, block.height),
            (0, self.cols, block.col, block.width),
        ):
            own = np.flatnonzero(self.own.any(axis=axis))
            low, high = (starts[own[0]], starts[own[-1]] + core) if len(own) else (first, first)
            spans.append((min(low, first), max(high, first + size)))
        (top, bottom), (left, right) = spans
        return Window(top, left, bottom - top, right - left)

    def places(self, needed: NDArray[np.bool_], reach: Window, core: int) -> NDArray[np.int64]:
        """Its own windows whose core holds a needed pixel: (windows, 2) first row and column, in the lattice's order.

        Of a core that is kept for other blocks all pixels count, else those of the block.

        Args:
            needed: (height, width) of what was read.
            reach: what was read.
            core: side of a core, px.
        """
        # A summed-area table tells for all cores at once whether they hold a needed pixel.
        sums = np.zeros((reach.height + 1, reach.width + 1), dtype=np.int32)
        np.cumsum(needed, axis=0, out=sums[1:, 1:])
        np.cumsum(sums, axis=1, out=sums)
        rows, cols = np.asarray(self.rows), np.asarray(self.cols)

        def holds(area: Window) -> NDArray[np.bool_]:
            top, bottom = np.clip([rows, rows + core], area.row, area.row + area.height) - reach.row
            left, right = np.clip([cols, cols + core], area.col, area.col + area.width) - reach.col
            below, above = sums[bottom], sums[top]
            found: NDArray[np.bool_] = below[:, right] - below[:, left] > above[:, right] - above[:, left]
            return found

        keeps = np.zeros_like(self.own)
        for row, col in self.kept:
            keeps[self.rows.index(row), self.cols.index(col)] = True
        chosen = np.argwhere(self.own & np.where(keeps, holds(reach), holds(self.window)))
        return np.stack([rows[chosen[:, 0]], cols[chosen[:, 1]]], axis=1)


def passed(kept: Window, block: Window) -> bool:
    """Whether a part of a core touches neither a block nor a later one."""
    bottom = kept.row + kept.height
    return bottom <= block.row + block.height and (bottom <= block.row or kept.col + kept.width <= block.col)


def shares(
    blocks: Iterable[Window],
    starts: Callable[[Window], tuple[range, range]],
    core: int,
    depth: int,
    scene: Window,
) -> Iterator[Share]:
    """Divides the windows among blocks.

    Args:
        blocks: in row order; each share depends on those before.
        starts: gives the first rows and columns of the cores that touch a block.
        core: side of a core, px.
        depth: numbers per pixel of a window's logits, float32.
        scene: the whole; what lies beyond it is not kept.
    """
    carried: dict[Place, Window] = {}
    nbytes = 0
    for block in blocks:
        for place in [place for place, kept in carried.items() if passed(kept, block)]:
            nbytes -= 4 * depth * carried.pop(place).pixels
        rows, cols = starts(block)
        own = np.ones((len(rows), len(cols)), dtype=bool)
        for row, col in carried:
            if row in rows and col in cols:
                own[rows.index(row), cols.index(col)] = False
        kept: dict[Place, Window] = {}
        right, bottom = block.col + block.width, block.row + block.height
        beside = np.minimum(np.asarray(cols) + core, scene.width) > right
        below = np.minimum(np.asarray(rows) + core, scene.height) > bottom
        for row, col in np.argwhere(own & (below[:, None] | beside)).tolist():
            if not beside[col] and nbytes > CARRIED:
                continue
            top, left = (
                rows[row] if beside[col] else max(rows[row], bottom),
                cols[col] if below[row] else max(cols[col], right),
            )
            part = Window(top, left, rows[row] + core - top, cols[col] + core - left).intersection(scene)
            kept[rows[row], cols[col]] = part
            nbytes += 4 * depth * part.pixels
        carried |= kept
        yield Share(block, rows, cols, own, kept)
