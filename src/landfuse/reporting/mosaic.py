"""The overview of many tiles: their maps in one picture, where they lie on the ground or else side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from landfuse.legend import UNLABELLED
from landfuse.rasters.grid import Grid

_SIDE = 1000
"""Pixels along the longer side of the picture."""

_FILLED = 0.1
"""Fraction of the ground around all tiles that they have to fill to be shown where they lie."""

_LONGEST = 8
"""How many times as long as wide such ground may be."""


class Mosaic:
    """A picture that the maps of tiles are put into, one at a time; `values` are classes."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        found = _on_ground(grids)
        self.on_ground = found is not None
        boxes = _side_by_side(grids) if found is None else found
        boxes *= _SIDE / boxes[:, 2:].max()
        self.boxes = np.stack([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).reshape(-1, 4).astype(int)
        """(N, 4) left, top, right, bottom of each tile in the picture, px."""
        self.values = np.full(self.boxes[:, [3, 2]].max(axis=0), UNLABELLED, np.uint8)

    def put(self, index: int, classes: NDArray[np.uint8]) -> None:
        """Puts a tile's map, (H, W) uint8 classes, into its place."""
        left, top, right, bottom = self.boxes[index]
        rows = (np.arange(bottom - top) + 0.5) * classes.shape[0] / (bottom - top)
        cols = (np.arange(right - left) + 0.5) * classes.shape[1] / (right - left)
        there = classes[np.ix_(rows.astype(int), cols.astype(int))]
        place = self.values[top:bottom, left:right]
        place[:] = np.where(there == UNLABELLED, place, there)

    def at(self, index: int, row: float, col: float, shape: tuple[int, int]) -> dict[str, str]:
        """The place of a pixel of a tile of some (height, width) in the picture, in percent."""
        left, top, right, bottom = self.boxes[index].tolist()
        height, width = self.values.shape
        return {
            "left": f"{(left + (right - left) * col / shape[1]) / width:.2%}",
            "top": f"{(top + (bottom - top) * row / shape[0]) / height:.2%}",
        }

    def places(self) -> list[dict[str, str]]:
        """Each tile's place in the picture, in percent."""
        height, width = self.values.shape
        return [
            {
                "left": f"{left / width:.3%}",
                "top": f"{top / height:.3%}",
                "width": f"{(right - left) / width:.3%}",
                "height": f"{(bottom - top) / height:.3%}",
            }
            for left, top, right, bottom in self.boxes.tolist()
        ]


def _on_ground(grids: Sequence[Grid]) -> NDArray[np.float64] | None:
    """The boxes of the tiles from the upper left corner of all, in CRS units; None if they are turned, of different
    CRSs, or so far apart or in so long a row that nothing would be seen."""
    transforms = np.array([grid.transform for grid in grids])
    a, b, left, d, e, top = transforms.T
    upright = (a > 0).all() and (e < 0).all() and not b.any() and not d.any()
    if not upright or len({grid.crs for grid in grids}) > 1 or not all(grid.georeferenced for grid in grids):
        return None
    width, height = a * [grid.width for grid in grids], -e * [grid.height for grid in grids]
    left, top = left - left.min(), top.max() - top
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    across, down = boxes[:, 2:].max(axis=0)
    filled = (width * height).sum() >= _FILLED * across * down
    return boxes if filled and 1 / _LONGEST <= across / down <= _LONGEST else None


def _side_by_side(grids: Sequence[Grid]) -> NDArray[np.float64]:
    """The boxes of the tiles in rows of cells of one size, px; larger tiles are drawn smaller."""
    ratio = max(grid.width for grid in grids) / max(grid.height for grid in grids)
    columns = max(1, round(math.sqrt(len(grids) / ratio)))
    boxes = []
    for index, grid in enumerate(grids):
        row, col = divmod(index, columns)
        scale = 0.94 / max(grid.width / ratio, grid.height)
        left, top = col * ratio, row
        boxes.append((left, top, left + grid.width * scale, top + grid.height * scale))
    return np.array(boxes, np.float64)
