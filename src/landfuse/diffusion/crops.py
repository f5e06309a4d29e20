"""Random crops of mapped scenes, from which a denoiser learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.views.store import Store


class Crops:
    """Random crops of mapped scenes.

    Args:
        store: the scenes, mapped by the denoiser's maps.
        side: of a crop at most, px; a multiple of 4. Where all scenes are smaller, it is that of the largest.
        over: per scene (H, W), true for the pixels that crops are laid over; None for crops of any place.
        shown: per scene (H, W), true where a pixel may be shown; the others have no data. None for everywhere.

    Raises:
        ModelError: if crops have no pixel to be laid over.
    """

    def __init__(
        self,
        store: Store,
        side: int,
        over: Sequence[NDArray[np.bool_]] | None = None,
        shown: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        self.store = store
        sizes = [(scene.grid.height, scene.grid.width) for scene in store.scenes]
        self.side = max(4, min(side, max(min(size) for size in sizes) // 4 * 4))
        self._sizes = np.array(sizes, dtype=np.int64)
        self._shown = None if shown is None else [mask.astype(np.uint8) for mask in shown]
        self._places = None
        if over is not None:
            found = [np.argwhere(mask) for mask in over]
            numbers = [np.full((len(pixels), 1), number) for number, pixels in enumerate(found)]
            self._places = np.concatenate([np.hstack(pair) for pair in zip(numbers, found, strict=True)])
            if not len(self._places):
                raise ModelError(
                    "no pixel may be shown to the denoiser", "training pixels", "set pretrain.fit_on=scene"
                )

    def draw(self, entropy: tuple[int, ...], count: int, augment: bool) -> dict[str, Tensor]:
        """Draws crops: name -> (count, D + 1, side * zoom, side * zoom), on the device of the store."""
        rng = np.random.default_rng(entropy)
        if self._places is None:
            pixels = self._sizes.prod(axis=1)
            scene = rng.choice(len(pixels), size=count, p=pixels / pixels.sum())
            room = self._sizes[scene] - self.side
            place = np.floor(rng.random((count, 2)) * (np.abs(room) + 1)).astype(np.int64) + np.minimum(room, 0)
        else:
            chosen = self._places[rng.integers(0, len(self._places), size=count)]
            scene, place = chosen[:, 0], chosen[:, 1:] - rng.integers(0, self.side, size=(count, 2))
            room = self._sizes[scene] - self.side
            place = np.clip(place, np.minimum(room, 0), np.maximum(room, 0))
        turns = torch.as_tensor(rng.integers(0, 8, size=count) if augment else np.zeros(count, np.int64))
        table = torch.as_tensor(np.column_stack([scene, place]).astype(np.int64))
        views: dict[str, Tensor] = {}
        for members, number, mapped in self.store.grouped(table):
            rows, cols = table[members, 1], table[members, 2]
            parts = mapped.views(rows, cols, self.side, turns[members])
            if self._shown is not None:
                squares = mapped.targets(self._shown[number], rows, cols, self.side, turns[members])
                shown = (squares == 1).to(self.store.device, torch.float32)[:, None]  # mirrored pixels are not shown
                zooms = mapped.zooms
                parts = {
                    name: part * shown.repeat_interleave(zooms[name], 2).repeat_interleave(zooms[name], 3)
                    for name, part in parts.items()
                }
            if len(members) == count:
                return parts
            members = members.to(self.store.device)
            for name, part in parts.items():
                if name not in views:
                    shape = (count, *part.shape[1:])
                    views[name] = torch.empty(shape, device=part.device, memory_format=torch.channels_last)
                views[name][members] = part
        return views
