"""The mapping engine: any blocks of a scene, each from its own pixels and halo.

A block computes every window of the scene's lattice whose core touches it and averages their logits in the lattice's
order, whatever the block. What a pixel gets therefore does not depend on the block it is in (P1), and what is held does
not depend on the scene (P2). The next block is read and prepared while this one is computed. Whatever predicts, the
lattice, blending and nodata are here; no torch is imported.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.applicability import Applicability
from landfuse.bundles.calibration import probabilities_of
from landfuse.bundles.predictor import Model
from landfuse.errors import SceneError
from landfuse.legend import UNLABELLED
from landfuse.mapping.settings import MapOptions, map_options
from landfuse.mapping.window_owners import BlockWindows, Corner, assign_windows
from landfuse.rasters.geotiff_writer import TILE
from landfuse.rasters.windows import Window, blocks, core_weights, lattice, total_weight
from landfuse.scenes.scene import Scene
from landfuse.views.reading import read_window

log = logging.getLogger("landfuse")

_LANES = 64
"""Element-wise kernels take this many numbers at once and round the rest in another way: batches leave no rest."""

PixelProgress = Callable[[int], None]
"""Called with how many more pixels are done."""


def _silent(pixels: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class BlockMap:
    """The map of one block.

    Args:
        window: of the scene.
        classes: (height, width) uint8, `UNLABELLED` where a modality has no data, the pixel was not wanted, or the
            model gives no finite logits.
        logits: (K, height, width) float32; only meaningful where there is a class.
        temperature: logits are divided by it to obtain probabilities.
        layers: name -> (height, width) float32, 0..1, what else was asked of the model.
        read: the window that was read for it.
        applicability: the training pixels that it can be compared with, where that was asked for.
        predictors: modality -> (height, width, D), what is compared.
        digest: of the values in it.
    """

    window: Window
    classes: NDArray[np.uint8]
    logits: NDArray[np.float32]
    temperature: float = 1.0
    layers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    read: Window = Window(0, 0, 0, 0)
    digest: str = ""
    applicability: Applicability | None = None
    predictors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, height, width) float32, summing to 1 over the classes."""
        return self.probabilities_in(slice(None))

    def probabilities_in(self, rows: slice) -> NDArray[np.float32]:
        """The probabilities of some rows: (K, rows, width) float32."""
        return probabilities_of(self.logits[:, rows], self.temperature)

    def dissimilarity_in(self, rows: slice) -> NDArray[np.float32]:
        """How unlike the training pixels those of some rows are, NaN where there is no class: (1 + M, rows, width)."""
        known, mapped = self.applicability, self.classes[rows] != UNLABELLED
        if known is None:
            raise ValueError("mapped without applicability")
        found = np.full((1 + len(known.points), *mapped.shape), np.nan, np.float32)
        found[:, mapped] = known.dissimilarity({name: values[rows][mapped] for name, values in self.predictors.items()})
        return found


@dataclass(frozen=True)
class PreparedBlock:
    """A block that was read and prepared for the predictor.

    Args:
        window: what was read; it may reach beyond the scene.
        valid: (height, width), true where a pixel can be mapped.
        inputs: name -> what the predictor made of it.
        digest: of the values that were read.
        predictors: see `BlockMap`.
    """

    window: Window
    valid: NDArray[np.bool_]
    inputs: Mapping[str, Any]
    digest: str
    predictors: Mapping[str, NDArray[np.float32]]


def batch_size(view: int, views: int, *, on_gpu: bool = False) -> int:
    """Windows per forward pass: about 65,000 pixels of views, on a GPU 524,000, and not many more than there are views.

    They follow from model, kind of processor and scene only, since last bits depend on the batch (P1).
    """
    most = (524_288 if on_gpu else 65_536) // view**2
    if most < _LANES:
        return max(1, min(most, views))
    return min(most // _LANES * _LANES, -(-views // _LANES) * _LANES)


def passes_in_order(windows: int, batch: int) -> NDArray[np.int32]:
    """Which of some windows are computed at once, (passes, batch): one after the other, -1 behind the last."""
    passes = np.full((-(-windows // batch), batch), -1, np.int32)
    passes.reshape(-1)[:windows] = np.arange(windows)
    return passes


def passes_by_place(steps: NDArray[np.int64], batch: int) -> NDArray[np.int32]:
    """The same, where the place of a window in its batch follows from its place in the lattice, (B, 2) row and column.

    Windows of a row follow each other, and a row is shifted against the one above by the golden ratio of the batch: so
    every place gets nearly as many windows of whatever rectangle, and nearly all batches are full.
    """
    shift = next(step for step in count(round(0.618 * batch)) if math.gcd(step, batch) == 1)
    places = ((steps[:, 0] * shift + steps[:, 1]) % batch).astype(np.min_scalar_type(batch))
    order = np.argsort(places, kind="stable")  # in linear time where a place takes 16 bits
    counts = np.bincount(places, minlength=batch)
    first = np.cumsum(counts) - counts
    passes = np.full((counts.max(initial=0), batch), -1, np.int32)
    passes[np.arange(len(places)) - first[places[order]], places[order]] = order
    return passes


def best_of(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`argmax` over the first axis, for which NumPy has no fast path: (K, height, width) -> (height, width) uint8."""
    best = logits[0].copy()
    classes = np.zeros(best.shape, np.uint8)
    for number in range(1, len(logits)):
        classes[logits[number] > best] = number
        np.maximum(best, logits[number], out=best)
    return classes


class Engine:
    """A model that is ready to map one scene. Several threads may use it at once.

    Attributes:
        source: the scene as it was passed, with its bands in the model's order.
        scene: without the withheld modalities, with the inputs that are computed from it.

    Raises:
        FaultsError: if the scene is not of the kind that the model was trained on.
        SettingsError: if the options do not fit the model.
    """

    def __init__(self, model: Model, scene: Scene, options: MapOptions = MapOptions()) -> None:  # noqa: B008  (frozen)
        self.model, self.options, self.description = model, options, model.description
        scene, notes = self.description.check(scene, options)
        for note in notes:
            log.warning("`%s`: %s", scene.name, note)
        self.predictor = model.predictor(options)
        self.applicability = Applicability.of(self.description) if options.applicability else None
        self.source = scene
        shown = {name: part for name, part in scene.modalities.items() if name not in options.withheld}
        self.scene = self.predictor.complete(replace(scene, modalities=shown))
        grid, core = self.scene.grid, self.description.core
        self.windows = len(self._starts(0, grid.height, grid.height)) * len(self._starts(0, grid.width, grid.width))
        on_gpu = self.predictor.on_gpu
        self.batch = options.batch or batch_size(self.predictor.view, self.windows, on_gpu=on_gpu)
        self.depth = len(self.description.legend) + len(options.layers)
        self._along = core_weights(core, self.description.weights)
        even = self.description.weights == "uniform"
        self._weight = None if even else np.outer(self._along, self._along)

    def check_values(self) -> None:
        """Warns of values that the model was not trained on; see `Description.check_values`."""
        for note in self.description.check_values(self.source, self.options):
            log.warning("%s", note)

    def _starts(self, start: int, stop: int, size: int) -> range:
        return lattice(start, stop, size, self.description.core, self.description.stride)

    def starts(self, window: Window) -> tuple[range, range]:
        """First rows and first columns of the cores that touch a block."""
        grid = self.scene.grid
        return (
            self._starts(window.row, window.row + window.height, grid.height),
            self._starts(window.col, window.col + window.width, grid.width),
        )

    def alone(self, window: Window) -> BlockWindows:
        """The windows of a block if it owns all that touch it."""
        return BlockWindows(window, *self.starts(window))

    def assigned(self, windows: Iterable[Window]) -> Iterator[BlockWindows]:
        """The windows of each block, where one process maps them in row order."""
        return assign_windows(windows, self.starts, self.description.core, self.depth, self.scene.grid.window)

    def reach(self, owned: BlockWindows) -> Window:
        """The block and all that its own windows look at; it may reach beyond the scene."""
        return owned.cores(self.description.core).padded(self.description.halo)

    def read(self, owned: BlockWindows) -> PreparedBlock:
        """Reads and prepares a block with all that its own windows look at.

        Raises:
            SceneError: if it cannot be read.
        """
        window, known = self.reach(owned), self.applicability
        inputs: dict[str, Any] = {}
        predictors: dict[str, NDArray[np.float32]] = {}

        def prepare(name: str, values: NDArray[np.float32]) -> None:
            inputs[name] = self.predictor.prepare(name, values)
            if known is not None and name in known.points:
                zoom = self.description.inputs[name].zoom
                around = owned.block.padded(known.halo).scaled(zoom).within(window.scaled(zoom))
                predictors[name] = known.predictors[name].seen(values[:, *around])

        valid, digest = self._read(window, prepare)
        return PreparedBlock(window, valid, inputs, digest, predictors)

    def _read(
        self, window: Window, receive: Callable[[str, NDArray[np.float32]], None]
    ) -> tuple[NDArray[np.bool_], str]:
        known = hashlib.sha1(usedforsecurity=False)  # fast, where processors compute it themselves

        def note(name: str, values: NDArray[np.float32]) -> None:
            known.update(values.data)
            receive(name, values)

        mirror = not self.predictor.marks_missing
        valid = read_window(self.scene, window, self.description.inputs, self.predictor.stand_ins, note, mirror=mirror)
        return valid, known.hexdigest()

    def digest(self, window: Window) -> str:
        """The digest of the values in a window, as of a block that reads it; raises a SceneError as `read` does."""
        return self._read(window, lambda name, values: None)[1]

    def reopened(self) -> Engine:
        """The same with files that are opened again, as they are now."""
        parts = self.source.modalities.items()
        again = {name: replace(part, raster=copy.copy(part.raster)) for name, part in parts}
        return Engine(self.model, replace(self.source, modalities=again), self.options)

    def compute(
        self,
        prepared: PreparedBlock,
        owned: BlockWindows,
        *,
        wanted: NDArray[np.bool_] | None = None,
        carried: dict[Corner, tuple[Window, NDArray[np.float32]]] | None = None,
        progress: PixelProgress = _silent,
    ) -> BlockMap:
        """Maps a block that was read.

        Args:
            wanted: (H, W) of the scene, true where the map is needed.
            carried: parts of cores and their logits, of earlier blocks; those that this block keeps are added.
        """
        window, core, grid = owned.block, self.description.core, self.scene.grid
        inside = prepared.window.intersection(grid.window)
        known = inside.within(prepared.window)
        needed = np.zeros_like(prepared.valid)
        needed[known] = prepared.valid[known]
        if wanted is not None:
            needed[known] &= wanted[inside.within(grid.window)]
        corners = owned.places(needed, prepared.window, core)
        summed = np.zeros((self.depth, window.height, window.width), np.float32)
        meter = _Meter(window.pixels, len(corners), progress)
        if core == 1:
            flat = summed.reshape(self.depth, -1)
            for which, logits in self._computed(prepared, corners, wanted is None):
                part = corners[which]
                flat[:, (part[:, 0] - window.row) * window.width + part[:, 1] - window.col] = logits[:, :, 0, 0].T
                meter.add(len(part))
        else:
            found = self._in_order(self._computed(prepared, corners, wanted is None))
            self._blend(summed, found, corners, owned, {} if carried is None else carried, meter)
            stride = self.description.stride
            rows = total_weight(window.row, window.row + window.height, grid.height, stride, self._along)
            cols = total_weight(window.col, window.col + window.width, grid.width, stride, self._along)
            summed /= np.outer(rows, cols)
        logits, layers = np.split(summed, [len(self.description.legend)])
        classes = best_of(logits)
        classes[~needed[window.within(prepared.window)] | ~np.isfinite(logits).all(axis=0)] = UNLABELLED
        meter.end()
        named = dict(zip(self.options.layers, layers, strict=True))
        return BlockMap(
            window, classes, logits, self.description.temperature, named, prepared.window, prepared.digest,
            self.applicability, prepared.predictors,
        )  # fmt: skip

    def _blend(
        self,
        summed: NDArray[np.float32],
        fresh: Iterator[NDArray[np.float32]],
        corners: NDArray[np.int64],
        owned: BlockWindows,
        carried: dict[Corner, tuple[Window, NDArray[np.float32]]],
        meter: _Meter,
    ) -> None:
        """Adds the weighted logits of all cores where they touch the block, in the lattice's order."""
        core, window = self.description.core, owned.block
        own: set[Corner] = {(row, col) for row, col in corners.tolist()}
        for corner in sorted(own | (owned.taken & carried.keys())):
            whole = Window(corner[0], corner[1], core, core)
            if corner in own:
                kept, logits = whole, next(fresh)
                meter.add(1)
                if corner in owned.kept:
                    part = owned.kept[corner]
                    carried[corner] = part, logits[:, *part.within(whole)].copy()
            else:
                kept, logits = carried[corner]
            inside = kept.intersection(window)
            added = logits[:, *inside.within(kept)]
            if self._weight is not None:
                # Two roundings: a fused multiply-add rounds once, and not every code path is fused.
                added = added * self._weight[inside.within(whole)]
            summed[:, *inside.within(window)] += added

    def _computed(
        self, prepared: PreparedBlock, corners: NDArray[np.int64], whole: bool
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Batch by batch, which of the corners, (B,), and their logits with the layers behind them, (B, K + layers,
        core, core).

        Every pass has the same shape, since kernels differ in their last bits between batch sizes (P1). Those of a GPU
        also differ between places in a batch, so that there a window of the map has its own place, whatever the block.
        """
        if self.predictor.on_gpu and whole:
            passes = passes_by_place(corners // self.description.stride, self.batch)
        else:
            passes = passes_in_order(len(corners), self.batch)
        filled = (corners[np.where(which < 0, which.max(), which)] for which in passes)
        found = self.predictor.logits(prepared.window, prepared.inputs, filled)
        for which, logits in zip(passes, found, strict=True):
            yield which[which >= 0], logits[which >= 0]

    @staticmethod
    def _in_order(
        batches: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]],
    ) -> Iterator[NDArray[np.float32]]:
        """The logits of one window after the other."""
        waiting: dict[int, NDArray[np.float32]] = {}
        following = 0
        for which, logits in batches:
            waiting.update(zip(which.tolist(), logits, strict=True))
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def cut(
        self, side: int, wanted: NDArray[np.bool_] | None = None, windows: Iterable[Window] | None = None
    ) -> list[Window]:
        """The scene's blocks of a side, or the windows, that hold a wanted pixel; all without `wanted`."""
        grid = self.scene.grid
        return [
            window
            for window in (blocks(grid.height, grid.width, side) if windows is None else windows)
            if wanted is None or wanted[window.within(grid.window)].any()
        ]

    def strips(self, windows: Sequence[Window], workers: int, *, spare: bool = False) -> list[Sequence[Window]]:
        """Deals blocks in row order to workers, as runs of neighbours, which share windows.

        Args:
            spare: deal more runs than there are workers, as many as repeat at most a 20th of the work at their borders.
        """
        known, every = self.description, len(windows)
        repeated = max(1, (known.core - 1) // known.stride * known.stride, known.core + 2 * known.halo - known.stride)
        count = min(every, max(1, workers, self.scene.grid.height // (20 * repeated) * spare))
        return [windows[every * n // count : every * (n + 1) // count] for n in range(count)]

    def blocks(
        self,
        windows: Iterable[Window],
        *,
        wanted: NDArray[np.bool_] | None = None,
        on_fault: Callable[[Window, SceneError], None] | None = None,
        progress: PixelProgress = _silent,
    ) -> Iterator[BlockMap]:
        """Maps blocks, in row order, and reads the next while it computes; the rest as in `map_blocks`."""
        carried: dict[Corner, tuple[Window, NDArray[np.float32]]] = {}
        lost: set[Corner] = set()
        coming = self.assigned(windows)
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:

            def read_next() -> tuple[BlockWindows, Future[PreparedBlock]] | None:
                owned = next(coming, None)
                return None if owned is None else (owned, reader.submit(self.read, owned))

            ahead = read_next()
            while ahead is not None:
                owned, reading = ahead
                prepared: PreparedBlock | None = None
                try:
                    if lost & owned.taken:  # those windows are its own then, and it has to read more
                        owned = owned.alone()
                        prepared = self.read(owned)
                    else:
                        prepared = reading.result()
                except SceneError as error:
                    if on_fault is None:
                        raise
                    on_fault(owned.block, error)
                    progress(owned.block.pixels)
                    lost |= owned.kept.keys()
                del reading  # it holds the block
                ahead = read_next()
                for corner in owned.past:
                    carried.pop(corner, None)  # of a block without data, or that cannot be read, there is nothing
                if prepared is not None:
                    yield self.compute(prepared, owned, wanted=wanted, carried=carried, progress=progress)


class _Meter:
    """Reports a block's pixels as its windows are done; all of them by its end."""

    def __init__(self, pixels: int, windows: int, progress: PixelProgress) -> None:
        self.pixels, self.windows, self.progress = pixels, windows, progress
        self.done = self.reported = 0

    def add(self, windows: int) -> None:
        self.done += windows
        pixels = self.pixels * self.done // self.windows
        if pixels > self.reported:
            self.progress(pixels - self.reported)
            self.reported = pixels

    def end(self) -> None:
        if self.pixels > self.reported:
            self.progress(self.pixels - self.reported)


def map_blocks(
    model: Model,
    scene: Scene,
    *,
    windows: Sequence[Window] | None = None,
    wanted: NDArray[np.bool_] | None = None,
    on_fault: Callable[[Window, SceneError], None] | None = None,
    progress: PixelProgress = _silent,
    **options: Any,
) -> Iterator[BlockMap]:
    """Maps a scene block by block, in row order.

    Args:
        windows: blocks of the scene, in row order, instead of all.
        wanted: (H, W), true where the map is needed; windows and blocks without such a pixel are skipped.
        on_fault: called with each block that cannot be read and the error; the others go on. By default it is raised.
        options: those of `MapOptions`; `block` is 512 px by default.

    Raises:
        FaultsError: if the scene is not of the kind that the model was trained on.
        SceneError: if a block cannot be read.
        SettingsError: if an option does not fit.
    """
    engine = Engine(model, scene, map_options(options))
    if wanted is None:
        engine.check_values()
    todo = engine.cut(engine.options.block or TILE, wanted, windows)
    yield from engine.blocks(todo, wanted=wanted, on_fault=on_fault, progress=progress)


def map_array(model: Model, scene: Scene, **options: Any) -> NDArray[np.uint8]:
    """Maps a scene into an array, (H, W) uint8 classes; arguments as in `map_blocks`.

    Examples:
        >>> lf.map_array(lf.load_bundle("runs/first"), lf.open_scene("scene.yaml")).shape
        (96, 96)
    """
    result = np.full((scene.grid.height, scene.grid.width), UNLABELLED, dtype=np.uint8)
    for part in map_blocks(model, scene, **options):
        result[part.window.within(scene.grid.window)] = part.classes
    return result
