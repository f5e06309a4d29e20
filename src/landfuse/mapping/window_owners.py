"""Which block computes which window, where one process maps several blocks in row order.

A window whose core touches several blocks is owned by the first of them; the others take over its logits, and need not
read what it looks at. Its logits are the same bits wherever they are computed, so that no map changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.windows import Window, any_within, summed_area

CARRIED = 128 * 2**20
"""Bytes of logits that are kept for the blocks below; those for the block to the right are kept in any case."""

Corner = tuple[int, int]
"""The first row and column of a core."""


@dataclass(frozen=True)
class BlockWindows:
    """The windows that touch a block, and which of them it computes.

    Args:
        block: its pixels.
        rows: first rows of the cores that touch it.
        cols: first columns.
        taken: the windows whose logits it takes over; it owns the others.
        kept: of some of its own windows, the part of the core whose logits later blocks need.
        past: windows that were kept before, and that neither this block nor a later one touches.
    """

    block: Window
    rows: range
    cols: range
    taken: frozenset[Corner] = frozenset()
    kept: Mapping[Corner, Window] = field(default_factory=dict)
    past: Sequence[Corner] = ()

    @property
    def count(self) -> int:
        """How many touch it, its own and others."""
        return len(self.rows) * len(self.cols)

    def alone(self) -> BlockWindows:
        """The same block as the owner of all windows that touch it."""
        return replace(self, taken=frozenset())

    def cores(self, core: int) -> Window:
        """The rectangle around its own cores, of a side, and the block."""
        block = self.block
        if len(self.taken) == self.count:
            return block
        rows, cols = np.asarray(self.rows), np.asarray(self.cols)
        if self.taken:
            own = ~self._where(self.taken)
            rows, cols = rows[own.any(axis=1)], cols[own.any(axis=0)]
        top, left = min(block.row, int(rows[0])), min(block.col, int(cols[0]))
        bottom = max(block.row + block.height, int(rows[-1]) + core)
        right = max(block.col + block.width, int(cols[-1]) + core)
        return Window(top, left, bottom - top, right - left)

    def _where(self, places: Iterable[Corner]) -> NDArray[np.bool_]:
        """(rows, cols), true at these windows."""
        found = np.zeros((len(self.rows), len(self.cols)), dtype=bool)
        for row, col in places:
            found[self.rows.index(row), self.cols.index(col)] = True
        return found

    def places(self, needed: NDArray[np.bool_], reach: Window, core: int) -> NDArray[np.int64]:
        """Its own windows whose core holds a needed pixel: (windows, 2) first row and column, in the lattice's order.

        Of a core that is kept for other blocks all pixels count, else those of the block.

        Args:
            needed: (height, width) of what was read, the window `reach`.
        """
        table = summed_area(needed)
        rows, cols = np.asarray(self.rows), np.asarray(self.cols)

        def holds(area: Window) -> NDArray[np.bool_]:
            down = np.clip([rows, rows + core], area.row, area.row + area.height) - reach.row
            across = np.clip([cols, cols + core], area.col, area.col + area.width) - reach.col
            return any_within(table, down, across)

        needing = holds(self.block)
        if self.kept:
            needing |= self._where(self.kept) & holds(reach)
        if self.taken:
            needing &= ~self._where(self.taken)
        chosen = np.argwhere(needing)
        return np.stack([rows[chosen[:, 0]], cols[chosen[:, 1]]], axis=1)


def _passed(kept: Window, block: Window) -> bool:
    """Whether a part of a core touches neither a block nor a later one."""
    bottom = kept.row + kept.height
    return bottom <= block.row + block.height and (bottom <= block.row or kept.col + kept.width <= block.col)


def assign_windows(
    blocks: Iterable[Window],
    starts: Callable[[Window], tuple[range, range]],
    core: int,
    depth: int,
    scene: Window,
) -> Iterator[BlockWindows]:
    """Assigns the windows to blocks.

    Args:
        blocks: in row order; what a block owns depends on those before.
        starts: returns the first rows and columns of the cores that touch a block.
        core: side of a core, px.
        depth: numbers per pixel of a window's logits, float32.
        scene: what is beyond it is not kept.
    """
    carried: dict[Corner, Window] = {}
    nbytes = 0
    for block in blocks:
        past = [place for place, part in carried.items() if _passed(part, block)]
        for place in past:
            nbytes -= 4 * depth * carried.pop(place).pixels
        rows, cols = starts(block)
        taken = frozenset((row, col) for row, col in carried if row in rows and col in cols)
        kept: dict[Corner, Window] = {}
        right, bottom = block.col + block.width, block.row + block.height
        beside = np.minimum(np.asarray(cols) + core, scene.width) > right
        below = np.minimum(np.asarray(rows) + core, scene.height) > bottom
        across = np.argwhere(below[:, None] | beside).tolist() if below.any() or beside.any() else []
        for row, col in across:
            place = rows[row], cols[col]
            if place in taken or (not beside[col] and nbytes > CARRIED):
                continue
            top = place[0] if beside[col] else max(place[0], bottom)
            left = place[1] if below[row] else max(place[1], right)
            part = Window(top, left, place[0] + core - top, place[1] + core - left).intersection(scene)
            kept[place] = part
            nbytes += 4 * depth * part.pixels
        carried |= kept
        yield BlockWindows(block, rows, cols, taken, kept, past)
