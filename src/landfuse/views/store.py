"""The store that samples are gathered from: mapped scenes, in memory or read by blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from landfuse.models.base import Modality
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.views.mapped_pixels import MappedPixels, read_mapped_pixels
from landfuse.views.pixel_map import PixelMap

_BLOCK = 512
"""Side of the blocks that scenes too large for memory are held by, px."""


class Store:
    """Mapped scenes to gather from: held whole where they fit into memory, else by blocks, the latest used kept.

    Args:
        reach: how far a view may extend beyond the pixel that it is asked for, px.
        memory: bytes that may be held.
        stand_ins: what takes the place of a modality without data; see `read_window`.
        device: where scenes are held, if all of them fit there; otherwise on the CPU.
        room: fraction of a GPU's free memory that they may take.
        marks_missing: NaN is where there is no data, and beyond the scene; see `FusionModel`.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        pixel_maps: Mapping[str, PixelMap],
        reach: int,
        memory: int,
        stand_ins: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
        *,
        room: float = 0.5,
        marks_missing: bool = False,
    ) -> None:
        self.stand_ins, self.marks_missing = dict(stand_ins or {}), marks_missing
        self.scenes, self.pixel_maps, self.reach, self.memory = list(scenes), dict(pixel_maps), reach, memory
        depth = sum(m.channels * scenes[0].modalities[name].zoom ** 2 for name, m in self.pixel_maps.items())
        size = 4 * depth * sum(scene.grid.window.pixels for scene in scenes)
        self.in_memory, self.device = size <= memory, torch.device(device)
        if self.device.type == "cuda":
            fits = self.in_memory and size <= room * torch.cuda.mem_get_info(self.device)[0]
            self.device = self.device if fits else torch.device("cpu")
        self._held: OrderedDict[tuple[int, int, int], MappedPixels] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def modalities(self) -> dict[str, Modality]:
        """What a model knows of the modalities."""
        return {name: m.modality(self.scenes[0].modalities[name].info) for name, m in self.pixel_maps.items()}

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return sum(held.nbytes for held in self._held.values())

    def grouped(self, places: Tensor) -> Iterator[tuple[Tensor, int, MappedPixels]]:
        """Groups places, (B, 3) scene, row, column, by what they are gathered from.

        Returns:
            (which of the places, their scene, its mapped pixels), group by group.
        """
        keys = places.clone()
        # Cores that begin before the scene belong to its first blocks.
        keys[:, 1:] = 0 if self.in_memory else keys[:, 1:].clamp(min=0) // _BLOCK
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
        for number, (scene, row, col) in enumerate(distinct.tolist()):
            yield torch.nonzero(inverse == number).flatten(), scene, self._mapped((scene, row, col))

    def _mapped(self, key: tuple[int, int, int]) -> MappedPixels:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                scene = self.scenes[key[0]]
                block = Window(key[1] * _BLOCK, key[2] * _BLOCK, _BLOCK, _BLOCK).padded(self.reach)
                whole = scene.grid.window.padded(self.reach if self.marks_missing else 0)
                window = whole if self.in_memory else block
                held = read_mapped_pixels(
                    scene, window, self.pixel_maps, self.stand_ins, marks_missing=self.marks_missing
                )
                held.tables = {name: table.to(self.device) for name, table in held.tables.items()}
                self._held[key] = held
                while not self.in_memory and len(self._held) > 1 and self.held_bytes > self.memory:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
        return held
