"""Where the wings meet: windows of scenes become tensors.

All randomness lives in `Draws`, in the main process: which windows, how flipped and turned. Fetching them is then
plain indexing, so the batches are the same for any number of loader workers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from landfuse.errors import SplitError
from landfuse.layers.pixel_map import PixelMap, PixelMapSettings, PixelStatistics
from landfuse.legend import UNLABELLED
from landfuse.scenes.grid import Window, blocks
from landfuse.scenes.scene import Scene, validity
from landfuse.settings import Settings, byte_count

_BLOCK = 512
"""Side of the blocks that large scenes are read by, px."""


class SampleSettings(Settings):
    """How training sees the scene.

    Args:
        batch: windows per step at most (over all devices); the steps of an epoch share its windows evenly.
        windows: windows per epoch; by default as many as it takes to see each training pixel about once.
        balanced: draw every class equally often, however rare.
        augment: flip and turn by quarters, alike in all modalities.
        memory: scenes up to this size (as float32, after the pixel maps) are held in memory, larger ones are read
            by blocks.
        workers: loader processes; 0 reads in the training process, best for scenes in memory.
    """

    batch: int = Field(default=64, ge=1)
    windows: int | None = Field(default=None, ge=1)
    balanced: bool = False
    augment: bool = True
    memory: int = 4 * 1024**3
    workers: int = Field(default=0, ge=0)

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: str | int) -> int:
        return byte_count(value)


class Sample(NamedTuple):
    """One batch.

    Args:
        images: name -> (B, C, view * zoom, view * zoom) float32, mapped; 0 where there is no data.
        target: (B, core, core) uint8, classes or `UNLABELLED`.
    """

    images: dict[str, Tensor]
    target: Tensor


def _turned(side: int) -> Tensor:
    """Where each pixel of a square comes from under the eight flips and turns: (8, side, side, 2) row and column."""
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    last = side - 1
    pairs = [((r, c), (last - r, c), (r, last - c), (last - r, last - c)) for r, c in ((row, col), (col, row))]
    return torch.stack([torch.stack(pair, dim=-1) for four in pairs for pair in four])


class Patchwork:
    """The mapped modalities of one window of a scene, from which views of any place are gathered.

    Args:
        window: what it holds, in the scene's pixels.
        tables: name -> (pixels, D) with the channels of a pixel side by side.
        zooms: name -> zoom.
        valid: (height, width) bool, where every modality has data.
    """

    def __init__(
        self, window: Window, tables: Mapping[str, Tensor], zooms: Mapping[str, int], valid: NDArray[np.bool_]
    ) -> None:
        self.window, self.tables, self.zooms, self.valid = window, dict(tables), dict(zooms), valid
        self._turns: dict[int, Tensor] = {}

    def _offsets(self, side: int, turns: Tensor | None) -> Tensor:
        """Row and column of each pixel of turned squares: (B or 1, side, side, 2)."""
        if side not in self._turns:
            self._turns[side] = _turned(side)
        return self._turns[side][:1] if turns is None else self._turns[side][turns]

    def _indices(self, rows: Tensor, cols: Tensor, side: int, zoom: int, turns: Tensor | None) -> Tensor:
        """Table indices of squares: (B * side * side,); beyond the window the scene's mirror image."""
        offsets = self._offsets(side, turns)
        height, width = self.window.height * zoom, self.window.width * zoom
        row = (rows - self.window.row)[:, None, None] * zoom + offsets[..., 0]
        col = (cols - self.window.col)[:, None, None] * zoom + offsets[..., 1]
        for index, size in ((row, height), (col, width)):
            if int(index.min()) < 0 or int(index.max()) >= size:
                index.remainder_(2 * size)
                torch.minimum(index, 2 * size - 1 - index, out=index)
        return (row * width + col).reshape(-1)

    def views(self, rows: Tensor, cols: Tensor, side: int, turns: Tensor | None = None) -> dict[str, Tensor]:
        """Gathers squares.

        Args:
            rows: (B,) first row of each square, in the scene's pixels.
            cols: (B,) likewise.
            side: of the square, in the scene's pixels.
            turns: (B,) 0..7, how each is flipped and turned; None for not at all.

        Returns:
            name -> (B, D, side * zoom, side * zoom), in channels-last memory order.
        """
        images = {}
        for name, table in self.tables.items():
            zoom = self.zooms[name]
            index = self._indices(rows, cols, side * zoom, zoom, turns)
            square = table.index_select(0, index).view(len(rows), side * zoom, side * zoom, -1)
            images[name] = square.permute(0, 3, 1, 2)
        return images

    def targets(self, classes: NDArray[np.uint8], rows: Tensor, cols: Tensor, side: int, turns: Tensor) -> Tensor:
        """Gathers squares of the classes of the whole scene.

        Args:
            classes: (H, W) of the scene.
            rows: as in `views`, and so are `cols`, `side` and `turns`.

        Returns:
            (B, side, side) uint8; `UNLABELLED` beyond the scene and where a modality has no data.
        """
        offsets = self._offsets(side, turns)
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


def read_patchwork(scene: Scene, window: Window, pixel_maps: Mapping[str, PixelMap]) -> Patchwork:
    """Reads and maps one window of a scene; it may reach beyond the scene's edges.

    Args:
        scene: in whose pixels `window` is.
        window: what is read.
        pixel_maps: name -> map, for the modalities to read.
    """
    tables, zooms = {}, {}
    valid = np.ones((window.height, window.width), dtype=bool)
    for name, pixel_map in pixel_maps.items():
        zoom = scene.modalities[name].zoom
        values = scene.read(name, window)  # (C, H * zoom, W * zoom)
        valid &= validity(values, zoom)
        tables[name] = pixel_map(torch.from_numpy(values).flatten(1).T)
        zooms[name] = zoom
    return Patchwork(window, tables, zooms, valid)


def fit_pixel_maps(
    scenes: Sequence[Scene],
    wanted: Sequence[NDArray[np.bool_]],
    settings: Mapping[str, PixelMapSettings],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, PixelMap]:
    """Fits the pixel maps to the wanted pixels, reading block by block.

    Args:
        scenes: the tiles.
        wanted: (H, W) per scene, true where a pixel may be looked at: the training pixels.
        settings: in the order of the modalities.
        progress: told (blocks done, in all).

    Raises:
        ModelError: if a modality has no data in the wanted pixels.
    """
    statistics = {name: PixelStatistics(scenes[0].modalities[name].raster.bands) for name in settings}
    jobs = [
        (scene, mask, block)
        for scene, mask in zip(scenes, wanted, strict=True)
        for block in blocks(scene.grid.height, scene.grid.width, _BLOCK)
        if mask[block.within(scene.grid.window)].any()
    ]
    for done, (scene, mask, block) in enumerate(jobs, start=1):
        inside = mask[block.within(scene.grid.window)]
        for name, part in statistics.items():
            zoom = scene.modalities[name].zoom
            fine = inside.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else inside
            part.update(torch.from_numpy(scene.read(name, block)[:, fine]).T)
        progress(done, len(jobs))
    return {name: statistics[name].pixel_map(settings[name], name) for name in settings}


class Store:
    """Mapped scenes to gather from: held whole where they fit into memory, else by blocks, the latest used kept.

    Args:
        scenes: the tiles.
        pixel_maps: name -> map.
        reach: how far a view may extend beyond the pixel that it is asked for, px.
        memory: bytes that may be held.
    """

    def __init__(self, scenes: Sequence[Scene], pixel_maps: Mapping[str, PixelMap], reach: int, memory: int) -> None:
        self.scenes, self.pixel_maps, self.reach, self.memory = list(scenes), dict(pixel_maps), reach, memory
        depth = sum(m.channels * scenes[0].modalities[name].zoom ** 2 for name, m in self.pixel_maps.items())
        self.in_memory = 4 * depth * sum(scene.grid.window.pixels for scene in scenes) <= memory
        self._held: OrderedDict[tuple[int, int, int], Patchwork] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return sum(held.nbytes for held in self._held.values())

    def grouped(self, places: Tensor) -> Iterator[tuple[Tensor, int, Patchwork]]:
        """Groups places, (B, 3) scene, row, column, by what they are gathered from.

        Returns:
            (which of the places, their scene, its patchwork), group by group.
        """
        keys = places.clone()
        # Cores that begin before the scene belong to its first blocks.
        keys[:, 1:] = 0 if self.in_memory else keys[:, 1:].clamp(min=0) // _BLOCK
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
        for number, (scene, row, col) in enumerate(distinct.tolist()):
            yield torch.nonzero(inverse == number).flatten(), scene, self._patchwork((scene, row, col))

    def _patchwork(self, key: tuple[int, int, int]) -> Patchwork:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                scene = self.scenes[key[0]]
                block = Window(key[1] * _BLOCK, key[2] * _BLOCK, _BLOCK, _BLOCK).padded(self.reach)
                window = scene.grid.window if self.in_memory else block
                held = self._held[key] = read_patchwork(scene, window, self.pixel_maps)
                while not self.in_memory and len(self._held) > 1 and self.held_bytes > self.memory:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
        return held


class Samples(Dataset[Sample]):
    """Batches of windows.

    Indexing takes a table of draws, (B, 4) int64: scene, row, column (of the core's first pixel), turn (0..7); a
    negative turn marks a row that only fills up the batch, whose target is unlabelled.

    Args:
        store: what is gathered from.
        targets: (H, W) uint8 per scene: classes, `UNLABELLED` where a pixel does not count.
        view: side of the view, px.
        core: side of the core, px.
    """

    def __init__(self, store: Store, targets: Sequence[NDArray[np.uint8]], view: int, core: int) -> None:
        self.store, self.targets, self.view, self.core = store, list(targets), view, core

    def __getitem__(self, draws: NDArray[np.int64]) -> Sample:
        """Fetches the batch that a table of draws describes."""
        table = torch.as_tensor(draws)
        halo = (self.view - self.core) // 2
        images: dict[str, Tensor] = {}
        target = torch.empty((len(table), self.core, self.core), dtype=torch.uint8)
        for members, scene, patchwork in self.store.grouped(table[:, :3]):
            rows, cols, turns = table[members, 1], table[members, 2], table[members, 3].clamp(min=0)
            views = patchwork.views(rows - halo, cols - halo, self.view, turns)
            squares = patchwork.targets(self.targets[scene], rows, cols, self.core, turns)
            if len(members) == len(table):
                images, target = views, squares
                break
            for name, view in views.items():
                if name not in images:
                    shape = (len(table), *view.shape[1:])
                    images[name] = torch.empty(shape, memory_format=torch.channels_last)
                images[name][members] = view
            target[members] = squares
        return Sample(images, target.masked_fill((table[:, 3] < 0)[:, None, None], UNLABELLED))


class Draws(Sampler[NDArray[np.int64]]):
    """Which windows make up an epoch, batch by batch.

    Training draws labelled pixels (each once per epoch, or each class equally often) and puts a core at a random
    place over each; validation walks the lattice. Every rank of several gets its share of each batch.

    Args:
        samples: what is drawn from.
        settings: batch, windows, balanced, augment.
        train: draw at random, else walk the lattice once.
        seed: of the draws; epoch e uses (seed, e).
        rank: of this process.
        ranks: number of processes.

    Raises:
        SplitError: if no pixel is labelled.
    """

    def __init__(
        self, samples: Samples, settings: SampleSettings, *, train: bool, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.samples, self.settings, self.train, self.seed = samples, settings, train, seed
        self.rank, self.ranks, self.epoch = rank, ranks, 0
        places = []
        for number, target in enumerate(samples.targets):
            rows, cols = np.nonzero(target != UNLABELLED)
            places.append(np.stack([np.full_like(rows, number), rows, cols, target[rows, cols]], axis=1))
        self._pixels = np.concatenate(places).astype(np.int64)  # (P, 4): scene, row, column, class
        if not len(self._pixels):
            raise SplitError("no labelled pixel is left to draw from", "labelled pixels", "check labels and split")
        self._walk = np.empty((0, 4), dtype=np.int64) if train else self._lattice()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose draws come next."""
        self.epoch = epoch

    def _lattice(self) -> NDArray[np.int64]:
        """The windows of the lattice whose core holds a labelled pixel."""
        core = self.samples.core
        cores = self._pixels[:, :3].copy()
        cores[:, 1:] = cores[:, 1:] // core * core
        cores = np.unique(cores, axis=0)
        return np.concatenate([cores, np.zeros((len(cores), 1), dtype=np.int64)], axis=1)

    @property
    def windows(self) -> int:
        """Windows per epoch, over all ranks."""
        if not self.train:
            return len(self._walk)
        return self.settings.windows or max(1, -(-len(self._pixels) // self.samples.core**2))

    def __len__(self) -> int:
        return -(-self.windows // self.settings.batch)

    def _epoch(self) -> NDArray[np.int64]:
        if not self.train:
            return self._walk
        rng = np.random.default_rng((self.seed, self.epoch))
        count, core = self.windows, self.samples.core
        if self.settings.balanced:
            order = np.argsort(self._pixels[:, 3], kind="stable")
            _, starts, sizes = np.unique(self._pixels[order, 3], return_index=True, return_counts=True)
            kind = rng.permutation(np.arange(count) % len(sizes))
            chosen = order[starts[kind] + rng.integers(0, sizes[kind])]
        else:
            rounds = -(-count // len(self._pixels))
            chosen = np.concatenate([rng.permutation(len(self._pixels)) for _ in range(rounds)])[:count]
        draws = self._pixels[chosen].copy()
        draws[:, 1:3] -= rng.integers(0, core, size=(count, 2))
        draws[:, 3] = rng.integers(0, 8, size=count) if self.settings.augment else 0
        return draws

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        # Batches of even size: a last one of a single window would have no variance to normalise by.
        for batch in np.array_split(self._epoch(), len(self)):
            share = -(-len(batch) // self.ranks)
            part = batch[self.rank * share : (self.rank + 1) * share]
            if len(part) < share:  # every rank takes every step, and with a batch of the same size
                filler = np.repeat(batch[:1], share - len(part), axis=0)
                filler[:, 3] = -1
                part = np.concatenate([part, filler])
            yield part


def loader(samples: Samples, draws: Draws) -> DataLoader[Sample]:
    """A loader of whole batches; the sampler's tables of draws are its indices."""
    workers = draws.settings.workers
    return DataLoader(
        samples,
        sampler=draws,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
