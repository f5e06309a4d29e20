"""Windows of scenes as tensors: read, mapped by the pixel maps, held, and gathered from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landfuse.legend import UNLABELLED
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene
from landfuse.views.pixel_arrays import CHUNK
from landfuse.views.pixel_map import PixelMap, PixelStatistics
from landfuse.views.reading import read_window
from landfuse.views.settings import PixelMapSettings

_BLOCK = 512
"""Side of the blocks that large scenes are read by, px."""

_STRIP = 2**20
"""Bytes of values that are mapped at once."""

_LARGE = 32
"""Side of squares from which on it is quicker to copy their rows than to look up their pixels."""


@lru_cache(16)
def _turned(side: int) -> Tensor:
    """Where each pixel of a square comes from under the eight flips and turns: (8, side, side, 2) row and column."""
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    last = side - 1
    pairs = [((r, c), (last - r, c), (r, last - c), (last - r, last - c)) for r, c in ((row, col), (col, row))]
    return torch.stack([torch.stack(pair, dim=-1) for four in pairs for pair in four])


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """A copy where the tables are, without waiting for what a GPU is computing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class MappedPixels:
    """The mapped modalities of one window of a scene, from which views of any place are gathered.

    Args:
        window: what it holds, in the scene's pixels.
        tables: name -> (pixels, D) with the channels of a pixel side by side.
        valid: (height, width) bool, which pixels can be mapped (see `read_window`); needed for targets only.
    """

    def __init__(
        self,
        window: Window,
        tables: Mapping[str, Tensor],
        zooms: Mapping[str, int],
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        self.window, self.tables, self.zooms = window, dict(tables), dict(zooms)
        self.valid = np.ones((window.height, window.width), bool) if valid is None else valid
        self._turns: dict[int, Tensor] = {}

    def _indices(
        self, rows: Tensor, cols: Tensor, turns: Tensor | None, *, side: int, zoom: int, inside: bool
    ) -> Tensor:
        """Table indices of squares, all where the tables are: (B * side * side,); beyond the window the scene's mirror
        image."""
        if side not in self._turns:
            self._turns[side] = _turned(side).to(next(iter(self.tables.values())).device)
        squares = self._turns[side]
        offsets = squares[:1] if turns is None else squares[turns]
        height, width = self.window.height * zoom, self.window.width * zoom
        row = (rows - self.window.row)[:, None, None] * zoom + offsets[..., 0]
        col = (cols - self.window.col)[:, None, None] * zoom + offsets[..., 1]
        for index, size in () if inside else ((row, height), (col, width)):
            index.remainder_(2 * size)
            torch.minimum(index, 2 * size - 1 - index, out=index)
        return (row * width + col).reshape(-1)

    def _holds(self, rows: Tensor, cols: Tensor, side: int) -> bool:
        """Whether all squares lie within the window."""
        window = self.window
        last_row, last_col = window.row + window.height - side, window.col + window.width - side
        return bool(((rows >= window.row) & (rows <= last_row) & (cols >= window.col) & (cols <= last_col)).all())

    def views(self, rows: Tensor, cols: Tensor, side: int, turns: Tensor | None = None) -> dict[str, Tensor]:
        """Gathers squares.

        Args:
            rows: (B,) first row of each square, in the scene's pixels; in the CPU's memory, as all places are.
            cols: (B,) likewise.
            side: of the square, in the scene's pixels.
            turns: (B,) 0..7, how each is flipped and turned; None for not at all.

        Returns:
            name -> (B, D, side * zoom, side * zoom), in channels-last memory order, where the tables are.
        """
        images = {}
        inside = self._holds(rows, cols, side)
        device = next(iter(self.tables.values())).device
        there = _moved(rows, device), _moved(cols, device), None if turns is None else _moved(turns, device)
        for name, table in self.tables.items():
            zoom = self.zooms[name]
            fine = side * zoom
            if inside and turns is None and fine >= _LARGE:
                image = table.view(self.window.height * zoom, self.window.width * zoom, -1)
                corners = torch.stack([rows - self.window.row, cols - self.window.col], dim=1) * zoom
                squares = torch.stack([image[row : row + fine, col : col + fine] for row, col in corners.tolist()])
            else:
                index = self._indices(*there, side=fine, zoom=zoom, inside=inside)
                squares = table.index_select(0, index).view(len(rows), fine, fine, -1)
            images[name] = squares.permute(0, 3, 1, 2)
        return images

    def targets(self, classes: NDArray[np.uint8], rows: Tensor, cols: Tensor, side: int, turns: Tensor) -> Tensor:
        """Gathers squares of the classes of the whole scene.

        Args:
            classes: (H, W) of the scene.
            rows: as in `views`, and so are `cols`, `side` and `turns`.

        Returns:
            (B, side, side) uint8; `UNLABELLED` beyond the scene and where a pixel cannot be mapped.
        """
        offsets = _turned(side)[turns]
        row, col = rows[:, None, None] + offsets[..., 0], cols[:, None, None] + offsets[..., 1]
        height, width = classes.shape
        inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        row, col = row.clamp(0, height - 1), col.clamp(0, width - 1)
        found = torch.from_numpy(classes)[row, col]
        valid = torch.from_numpy(self.valid)[row - self.window.row, col - self.window.col]
        return found.masked_fill(~(inside & valid), UNLABELLED)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(table.numel() * table.element_size() for table in self.tables.values()) + self.valid.nbytes


def read_mapped_pixels(
    scene: Scene,
    window: Window,
    pixel_maps: Mapping[str, PixelMap],
    stand_ins: Mapping[str, float] | None = None,
    *,
    marks_missing: bool = False,
) -> MappedPixels:
    """Reads and maps one window of a scene; it may reach beyond the scene's edges.

    Args:
        pixel_maps: name -> map, for the modalities to read.
        stand_ins: what takes the place of a modality without data; see `read_window`.
        marks_missing: NaN is where there is no data, and beyond the scene; see `FusionModel`.
    """
    modalities = {name: scene.modalities[name].info for name in pixel_maps}
    tables: dict[str, Tensor] = {}

    def take(name: str, values: NDArray[np.float32]) -> None:
        missing = math.nan if marks_missing else 0.0
        tables[name] = pixel_table(values, pixel_maps[name], (stand_ins or {}).get(name), missing)

    valid = read_window(scene, window, modalities, stand_ins or {}, take, mirror=not marks_missing)
    return MappedPixels(window, tables, {name: info.zoom for name, info in modalities.items()}, valid)


def pixel_table(
    values: NDArray[np.float32], pixel_map: PixelMap, stand_in: float | None, missing: float = 0.0
) -> Tensor:
    """Maps (C, H, W) to a table of pixels, (H * W, D), in strips that stay in the cache; see `PixelMap.forward`."""
    flat = torch.from_numpy(values).flatten(1)
    table = torch.empty((flat.shape[1], pixel_map.channels))
    step = max(1, _STRIP // (4 * pixel_map.bands * CHUNK)) * CHUNK
    for start in range(0, len(table), step):
        table[start : start + step] = pixel_map(flat[:, start : start + step].T, stand_in, missing)
    return table


def fit_pixel_maps(
    scenes: Sequence[Scene],
    wanted: Sequence[NDArray[np.bool_]],
    settings: Mapping[str, PixelMapSettings],
) -> dict[str, PixelMap]:
    """Fits the pixel maps to the wanted pixels, reading block by block.

    Args:
        wanted: (H, W) per scene, true where a pixel may be looked at: the training pixels.
        settings: in the order of the modalities.

    Raises:
        ModelError: if a modality has no data in the wanted pixels.
    """
    infos = {name: scenes[0].modalities[name].info for name in settings}
    statistics = {name: PixelStatistics(info.bands, gaps=info.per_step > 0) for name, info in infos.items()}
    for scene, mask in zip(scenes, wanted, strict=True):
        for block in blocks(scene.grid.height, scene.grid.width, _BLOCK):
            inside = mask[block.within(scene.grid.window)]
            for name, part in statistics.items() if inside.any() else ():
                zoom = scene.modalities[name].zoom
                fine = inside.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else inside
                part.update(torch.from_numpy(scene.read(name, block)[:, fine]).T)
    maps = {name: statistics[name].pixel_map(settings[name], name) for name in settings}
    for name, made in maps.items():
        made.values, made.gaps = statistics[name].values, statistics[name].gaps
    return maps
