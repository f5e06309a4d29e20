"""What mapping takes: the block that fits into memory, the disk, and the time by one timed block."""

from __future__ import annotations

import math
import os
import sys
import time
import zlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from landfuse.bundles.predictor import Model
from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import Engine
from landfuse.mapping.map_layers import layers_of
from landfuse.mapping.settings import MapOptions
from landfuse.mapping.window_owners import CARRIED
from landfuse.rasters.geotiff_writer import TILE
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene
from landfuse.series.series_raster import HELD

_BASE = {"lightning": 1000, "timm": 850, "torch": 600, "onnxruntime": 300, "numpy": 200}
"""MiB of the interpreter and all libraries before the first pixel, by the largest of them that is imported: measured
975, 790, 592 and 145 with torch 2.14, which alone takes 507; that of ONNX Runtime is an allowance."""

_ACTIVATIONS = 512
"""Numbers that a network is taken to hold per pixel of a batch; large ones need more than `--memory` then says."""

_LARGEST = 2048
"""Side of the largest block that is chosen, px: an interruption costs a block at most, and workers need several."""

_SMALLEST = 64

_EACH, _SHARED = 3, 256
"""Blocks that every worker has at least, and the side below which blocks are not made smaller for that, px."""

_PER_HELD = 5
"""Bytes that reading a series takes for each of the values that it holds."""


def block_bytes(engine: Engine, block: int, maps: int = 1) -> int:
    """The most that mapping in blocks of a side takes, in bytes, in all; or making several maps at once.

    The interpreter and its libraries, the weights, GDAL's cache, what is carried from block to block and a batch; two
    blocks as mapped pixels (one computed, one read ahead), what reading one of the modalities takes beside that, and
    the logits of two blocks (one computed, one written).
    """
    known, grid, channels = engine.description, engine.scene.grid, engine.predictor.channels
    height, width = (min(block, size) for size in (grid.height, grid.width))
    ahead = known.core - (known.stride if block % known.stride == 0 else 1)
    reach = (known.core - 1) // known.stride * known.stride + ahead + 2 * known.halo
    pixels = (height + reach) * (width + reach)
    views = sum(channels[name] * info.zoom**2 for name, info in known.inputs.items())
    # Numbers as in the file, as float32 values, and once more for masks and mirrored edges.
    reading = max(info.bands * info.zoom**2 * (np.dtype(info.dtype).itemsize + 8) for info in known.inputs.values())
    series = any(info.steps for info in known.inputs.values())
    depth = len(known.legend) + sum(layer.values is not None for layer in layers_of(engine.options, known))
    on_gpu = engine.predictor.on_gpu  # which then holds views and activations
    compared = 0 if engine.applicability is None else engine.applicability.depth
    own = (
        (CARRIED if known.core > 1 else 0)
        + (_PER_HELD * HELD if series else 0)
        + 4 * engine.batch * (known.core**2 * depth if on_gpu else engine.predictor.view**2 * (views + _ACTIVATIONS))
        + pixels * (2 * (4 * views + 1) + reading)
        + height * width * (2 * 4 * depth + 3 * 4 * compared + 16)
    )
    base = next(size for name, size in _BASE.items() if name in sys.modules) * 2**20
    return base + engine.predictor.nbytes + _gdal_cache() + maps * own


def _gdal_cache() -> int:
    size = os.environ.get("GDAL_CACHEMAX", "256")
    return int(size) * 2**20 if size.isdigit() and int(size) < 100_000 else 256 * 2**20


def block_side(engine: Engine, workers: int = 1) -> int:
    """The side of the largest blocks that need no more than the memory of the options, at most 2,048 px.

    A multiple of the stride, so that few cores touch two blocks; with several workers each has several blocks, in whole
    rows if possible, unless these were smaller than 256 px.

    Raises:
        SettingsError: if even the smallest block takes more.
    """
    stride, grid, memory = engine.description.stride, engine.scene.grid, engine.options.memory
    unit = stride * math.ceil(_SMALLEST / stride)
    largest = -(-min(_LARGEST, max(grid.height, grid.width)) // unit) * unit
    if workers > 1:
        enough = max(_SHARED, math.isqrt(grid.window.pixels // (_EACH * workers)))
        largest = min(largest, max(1, enough // unit) * unit)
        # Strips of whole rows of blocks have the shortest borders, along which windows are computed twice.
        sides = range(largest, max(_SHARED, largest // 2) - 1, -unit)
        largest = next((side for side in sides if math.ceil(grid.height / side) % workers == 0), largest)
    for side in range(largest, 0, -unit):
        if block_bytes(engine, side) <= memory:
            return side
    least = block_bytes(engine, unit)
    raise SettingsError(
        f"{in_bytes(memory)} of memory is too little: a block of {unit} px takes {in_bytes(least)}",
        f"at least {in_bytes(least)}",
        "raise --memory, or lower --batch",
    )


def is_small(grid: Grid) -> bool:
    """Whether a map has one block, which is computed again rather than kept if the process ends before the map."""
    return max(grid.height, grid.width) <= TILE


def tiles_at_once(model: Model, tiles: Collection[Scene], options: MapOptions) -> int:
    """How many tiles a process maps at once: two small ones, so that one is read or written beside the other."""
    largest = max(tiles, key=lambda one: one.grid.window.pixels)
    if len(tiles) == 1 or options.block is not None or not is_small(largest.grid):
        return 1
    return 1 + (block_bytes(Engine(model, largest, options), TILE, maps=2) <= options.memory)


def in_bytes(count: float) -> str:
    """A number of bytes in words: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


@dataclass(frozen=True)
class Plan:
    """What mapping a scene will take; sides in px, memory and disk in bytes.

    Args:
        height: of the scene.
        width: of the scene.
        block: side of a block.
        blocks: how many.
        halo_fraction: pixels that are read beyond those of the blocks, as a fraction of the scene.
        windows: forward passes' windows, if no window is computed twice.
        recomputed_fraction: windows that several workers compute, as a fraction of all.
        memory: of a process at most, by arithmetic.
        disk: at most, parts and map, uncompressed.
        expected_disk: the same, compressed as well as the timed block.
        seconds: by the timed block, of one process; None where the block in the scene's middle cannot be mapped.
    """

    height: int
    width: int
    block: int
    blocks: int
    halo_fraction: float
    windows: int
    recomputed_fraction: float
    memory: int
    disk: int
    expected_disk: int
    seconds: float | None


def plan(engine: Engine, block: int, workers: int = 1) -> Plan:
    """Estimates what mapping in blocks of a side takes, and times one block in the scene's middle for that.

    Args:
        workers: that map at once; what they read and compute twice follows from how blocks are dealt at first.

    Raises:
        SceneError: if the timed block cannot be read.
    """
    grid = engine.scene.grid
    cut = list(blocks(grid.height, grid.width, block))
    strips = [cut] if workers == 1 else engine.strips(cut, workers)
    every = [owned for strip in strips for owned in engine.assigned(strip)]
    recomputed = sum(owned.count - len(owned.taken) for owned in every) / engine.windows - 1
    total = grid.window.pixels
    halo = sum(engine.reach(owned).pixels for owned in every) / total - 1
    # Small enough not to take long, and large enough for more than one pass where the block is.
    side = min(block, max(256, 2 * engine.description.core))
    row, col = (max(0, (size - side) // 2) for size in (grid.height, grid.width))
    owned = engine.alone(Window(row, col, min(side, grid.height), min(side, grid.width)))
    engine.read(owned)
    begun = time.perf_counter()
    prepared = engine.read(owned)  # once more, with files open
    read = time.perf_counter()
    part = engine.compute(prepared, owned)
    computed = time.perf_counter()
    seconds = None
    if (part.classes != UNLABELLED).any():
        # Reading goes on beside computing: the longer of the two counts.
        reading = (read - begun) / engine.reach(owned).pixels * (1 + halo) * total
        seconds = max(reading, (computed - read) / owned.count * engine.windows)
    squeezed = len(zlib.compress(part.classes.tobytes())) / part.classes.nbytes
    bands = sum(len(layer.bands) for layer in layers_of(engine.options, engine.description))
    pixels = total * 8 / 3  # parts, the map, and its overviews twice while they are made
    return Plan(
        grid.height, grid.width, block, len(cut), halo, engine.windows, recomputed,
        block_bytes(engine, block), round(bands * pixels), round((squeezed + bands - 1) * pixels), seconds,
    )  # fmt: skip
