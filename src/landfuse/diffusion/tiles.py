"""Features of a denoiser as rasters that are computed when they are read, whoever computes them; no torch.

The tiles that features are computed by form a fixed lattice over the scene, whoever reads and whatever the window, and
the noise is a function of the pixel's place; so the features of a pixel are always the same (P1). A tile is computed
once for all levels and kept in half precision: in a folder where there is room, otherwise the last ones in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from landfuse.diffusion.settings import FACTORS, FeatureSettings
from landfuse.errors import BundleError
from landfuse.files import whole_file
from landfuse.rasters.grid import Grid
from landfuse.rasters.place_noise import normal
from landfuse.rasters.raster import state_of
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality

log = logging.getLogger("landfuse")

_IN_MEMORY = 2**30
"""Bytes of tiles that are kept where the folder has no room; reading a block level by level needs its tiles again."""

_LARGEST = 65_504
"""Half precision's largest number."""


class Denoising(Protocol):
    """A trained denoiser, whatever runs it."""

    @property
    def inputs(self) -> Mapping[str, tuple[int, int]]:
        """What it looks at: name -> bands and zoom."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Features of the levels, fine to deep."""

    @property
    def digest(self) -> str:
        """A hash of all that its features follow from."""

    def levels(
        self, scene: Scene, window: Window, settings: FeatureSettings
    ) -> Iterator[tuple[Sequence[NDArray[np.float32]], NDArray[np.bool_]]]:
        """Features of a window of a scene, timestep by timestep.

        Args:
            window: of the scene; height and width are multiples of 4.
            settings: the timesteps, and the seed of the noise.

        Returns:
            The levels, (C, height / factor, width / factor) each, fine to deep; and (height, width), true where no
            modality has data.
        """


def check_inputs(inputs: Mapping[str, tuple[int, int]], scene: Scene) -> None:
    """Checks that a scene has what a denoiser looks at.

    Raises:
        BundleError: if it lacks a modality, or has another number of bands or zoom.
    """
    for name, (bands, zoom) in inputs.items():
        if name not in scene.modalities:
            raise BundleError(
                f"the scene `{scene.name}` has no modality `{name}`",
                f"those that the denoiser was trained on: {', '.join(inputs)}",
                "name it so in the scene file, use it in the recipe, or pre-train without it",
            )
        part = scene.modalities[name]
        if (part.raster.bands, part.zoom) != (bands, zoom):
            raise BundleError(
                f"`{name}` of the scene `{scene.name}` has {part.raster.bands} bands at zoom {part.zoom}",
                f"{bands} bands at zoom {zoom}, as the denoiser was trained on",
                "choose the bands in the scene file, or pre-train again",
            )


def features_of(denoising: Denoising, settings: FeatureSettings, scene: Scene) -> dict[str, SceneModality]:
    """The features of a scene as modalities; nothing is computed before they are read.

    Raises:
        BundleError: as `check_inputs`.
    """
    check_inputs(denoising.inputs, scene)
    tiles, channels = FeatureTiles(scene, denoising, settings), channels_of(denoising, settings)
    return {
        name: SceneModality(FeatureRaster(tiles, place, FACTORS[level], channels[name]), units="activation")
        for place, (name, level) in enumerate(zip(settings.names, settings.levels, strict=True))
    }


def channels_of(denoising: Denoising, settings: FeatureSettings) -> dict[str, int]:
    """Name of each level's modality -> its channels: timesteps x the level's width, timestep by timestep."""
    levels = zip(settings.names, settings.levels, strict=True)
    return {name: len(settings.timesteps) * denoising.widths[level - 1] for name, level in levels}


@dataclass(frozen=True)
class FeatureRaster:
    """One level of a scene's features; a `Raster` on the scene's own grid.

    Args:
        place: of the level among those of `tiles`.
        factor: how many times coarser than the grid the level is.
    """

    tiles: FeatureTiles
    place: int
    factor: int
    bands: int

    @property
    def grid(self) -> Grid:
        """The scene's."""
        return self.tiles.scene.grid

    @property
    def dtype(self) -> str:
        """What features are kept in."""
        return "float16"

    @property
    def path(self) -> str:
        """For messages."""
        return f"(diffusion features of {self.tiles.scene.name})"

    def read(self, window: Window) -> NDArray[np.float32]:
        """Reads a window inside the grid, (bands, height, width); coarse levels are interpolated linearly.

        Raises:
            SceneError: if the scene cannot be read.
        """
        if self.factor == 1:
            values = self._stored(window.row, window.row + window.height, window.col, window.col + window.width)
            return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32)
        height, width = -(-self.grid.height // self.factor), -(-self.grid.width // self.factor)
        top, bottom, down = self._knots(window.row, window.height, height)
        left, right, along = self._knots(window.col, window.width, width)
        row, col = int(top[0]), int(left[0])
        part = self._stored(row, int(bottom[-1]) + 1, col, int(right[-1]) + 1).astype(np.float32)
        down, along = down[:, None, None], along[:, None]
        rows = part[top - row] * (1 - down) + part[bottom - row] * down
        smooth = rows[:, left - col] * (1 - along) + rows[:, right - col] * along
        return np.ascontiguousarray(np.moveaxis(smooth, -1, 0))

    def _knots(
        self, start: int, count: int, size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The coarse pixels on both sides of each fine one's centre, and how far it is from the first to the second."""
        place = (np.arange(start, start + count) + 0.5) / self.factor - 0.5
        first = np.floor(place).astype(np.int64)
        return first.clip(0, size - 1), (first + 1).clip(0, size - 1), (place - first).astype(np.float32)

    def _stored(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.float16]:
        """Rows and columns of the level itself, from the tiles that hold them: (rows, columns, bands)."""
        side = self.tiles.side // self.factor
        values = np.empty((bottom - top, right - left, self.bands), np.float16)
        for row in range(top // side, (bottom - 1) // side + 1):
            for col in range(left // side, (right - 1) // side + 1):
                tile = self.tiles.level((row, col), self.place)
                first_row, first_col = max(top, row * side), max(left, col * side)
                last_row, last_col = min(bottom, (row + 1) * side), min(right, (col + 1) * side)
                values[first_row - top : last_row - top, first_col - left : last_col - left] = tile[
                    first_row - row * side : last_row - row * side, first_col - col * side : last_col - col * side
                ]
        return values


class FeatureTiles:
    """The tiles of a scene's features: kept where they were computed before, otherwise computed now."""

    def __init__(self, scene: Scene, denoiser: Denoising, settings: FeatureSettings) -> None:
        self.scene, self.denoiser, self.settings = scene, denoiser, settings
        self.side = settings.tile - settings.overlap
        self._memory: OrderedDict[tuple[int, int], list[NDArray[np.float16]]] = OrderedDict()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, object]:
        state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**state, "_memory": OrderedDict()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def places(self) -> Iterator[tuple[int, int]]:
        """Row and column of every tile on their lattice."""
        grid = self.scene.grid
        for row in range(-(-grid.height // self.side)):
            for col in range(-(-grid.width // self.side)):
                yield row, col

    def window(self, place: tuple[int, int]) -> Window:
        """The centre of a tile in the scene's pixels; at the far edges it reaches beyond them to a multiple of 4."""
        row, col, grid = place[0] * self.side, place[1] * self.side, self.scene.grid
        tall, wide = (min(self.side, -(-left // 4) * 4) for left in (grid.height - row, grid.width - col))
        return Window(row, col, tall, wide)

    def shapes(self, place: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Of a tile's levels: rows, columns and channels."""
        window, channels = self.window(place), channels_of(self.denoiser, self.settings).values()
        factors = [FACTORS[level] for level in self.settings.levels]
        return [(window.height // f, window.width // f, depth) for f, depth in zip(factors, channels, strict=True)]

    @cached_property
    def folder(self) -> Path | None:
        """Where the tiles are kept; None where there is no room for them."""
        used = {**self.settings.model_dump(mode="json", exclude={"cache"}), "denoiser": self.denoiser.digest}
        used["scene"] = fingerprint(self.scene, list(self.denoiser.inputs))
        key = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
        folder = self.settings.folder / key[:24]
        sizes = (2 * int(np.prod(shape)) for place in self.places() if not (folder / _name(place)).exists()
                 for shape in self.shapes(place))  # fmt: skip
        size = sum(sizes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            log.warning("diffusion features are kept in memory: %s", error)
            return None
        if free < size:
            log.warning(
                "diffusion features are kept in memory: they take %.3g GB, and %s has %.3g GB left; set features.cache "
                "to a folder with more room to compute each of them once",
                size / 1e9, self.settings.folder, free / 1e9,
            )  # fmt: skip
            return None
        return folder

    def has(self, place: tuple[int, int]) -> bool:
        """Whether a tile is in the folder."""
        return self.folder is not None and (self.folder / _name(place)).exists()

    def level(self, place: tuple[int, int], number: int) -> NDArray[np.float16]:
        """One level of a tile, (rows, columns, channels).

        Raises:
            SceneError: if the scene cannot be read.
        """
        with self._lock:
            if place in self._memory:
                self._memory.move_to_end(place)
                return self._memory[place][number]
            kept = self._kept(place, number)
            if kept is not None:
                return kept
            levels = self._computed(place)
            self._keep(place, levels)
            return levels[number]

    def _kept(self, place: tuple[int, int], number: int) -> NDArray[np.float16] | None:
        if self.folder is None or not self.has(place):
            return None
        path, shapes = self.folder / _name(place), self.shapes(place)
        sizes = [int(np.prod(shape)) for shape in shapes]
        if path.stat().st_size != 2 * sum(sizes):
            log.warning("the features in %s are damaged and computed again", path)
            return None
        values = np.fromfile(path, np.float16, count=sizes[number], offset=2 * sum(sizes[:number]))
        return values.reshape(shapes[number])

    def _keep(self, place: tuple[int, int], levels: list[NDArray[np.float16]]) -> None:
        if self.folder is not None:
            try:
                with whole_file(self.folder / _name(place)) as partial, partial.open("wb") as file:
                    for level in levels:
                        file.write(level.tobytes())
                return
            except OSError as error:
                log.warning("diffusion features are kept in memory: %s", error)
                self.__dict__["folder"] = None
        self._memory[place] = levels
        while (
            len(self._memory) > 1 and sum(part.nbytes for tile in self._memory.values() for part in tile) > _IN_MEMORY
        ):
            self._memory.popitem(last=False)

    def _computed(self, place: tuple[int, int]) -> list[NDArray[np.float16]]:
        """The levels of a tile's centre, (rows, columns, channels), the timesteps one after the other in channels."""
        settings, tile = self.settings, self.window(place)
        halo = settings.overlap // 2
        found: list[list[NDArray[np.float16]]] = [[] for _ in settings.levels]
        for levels, nothing in self.denoiser.levels(self.scene, tile.padded(halo), settings):
            for parts, number in zip(found, settings.levels, strict=True):
                level, edge = levels[number - 1], halo // FACTORS[number]
                inside = level[:, edge : level.shape[1] - edge, edge : level.shape[2] - edge]
                inside = inside.clip(-_LARGEST, _LARGEST)
                if number == 1:  # features of nothing would pass for data
                    inside[:, nothing[edge : len(nothing) - edge, edge : nothing.shape[1] - edge]] = np.nan
                parts.append(np.moveaxis(inside, 0, -1).astype(np.float16))
        return [np.ascontiguousarray(np.concatenate(parts, axis=-1)) for parts in found]


def _name(place: tuple[int, int]) -> str:
    return f"{place[0]:05d}-{place[1]:05d}.f16"


def noise_of(seed: int, channels: Mapping[str, int], window: Window) -> dict[str, NDArray[np.float32]]:
    """Standard normal noise that is a function of the pixel's place: name -> (1, D, height, width)."""
    rows = np.arange(window.row, window.row + window.height, dtype=np.int64)
    cols = np.arange(window.col, window.col + window.width, dtype=np.int64)
    noise, stream = {}, 0
    for name, count in channels.items():
        noise[name] = np.stack([normal(seed, stream + channel, rows, cols) for channel in range(count)])[None]
        stream += count
    return noise


def fingerprint(scene: Scene, names: Sequence[str]) -> str:
    """A hash of a scene's data: its files' sizes and times, and the pixels of 16 small windows."""
    known = hashlib.sha256(str(scene.grid).encode())
    height, width = scene.grid.height, scene.grid.width
    for name in names:
        part = scene.modalities[name]
        known.update(f"{name} {part.raster.bands} {part.raster.dtype} {part.zoom} {part.raster.path}".encode())
        known.update(state_of(part.raster).encode())
        for place in range(16):
            row, col = height * (place // 4) // 4, width * (place % 4) // 4
            window = Window(row, col, min(8, height - row), min(8, width - col))
            known.update(np.ascontiguousarray(scene.read(name, window)).tobytes())
    return known.hexdigest()
