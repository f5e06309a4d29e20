"""The mapping engine: any blocks of a scene, each from its own pixels and halo.

A block computes every window of the scene's lattice whose core touches it and averages their logits in the lattice's
order, whatever the block. What a pixel gets therefore does not depend on the block it lies in (P1), and what is held
does not depend on the scene (P2). Reading the next block and computing this one overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.calibration import probabilities_of
from landfuse.errors import SceneError, SettingsError
from landfuse.legend import UNLABELLED
from landfuse.mapping.window_sharing import Place, Share, shares
from landfuse.rasters.geotiff_writer import TILE
from landfuse.rasters.windows import Window, blocks, core_weights, lattice, total_weight
from landfuse.scenes.scene import Scene
from landfuse.views.mapped_pixels import Patchwork, read_patchwork

Precision = Literal["float32", "bfloat16"]
"""What the network computes in; pixel maps and averages are float32 in any case."""

_LANES = 64
"""Element-wise kernels take this many numbers at once and round what is left otherwise: batches leave nothing."""


@dataclass(frozen=True)
class BlockMap:
    """The map of one block.

    Args:
        window: of the scene.
        classes: (height, width) uint8, `UNLABELLED` where a modality has no data or the pixel was not wanted.
        logits: (K, height, width) float32; only meaningful where there is a class.
        temperature: of the classifier: logits are divided by it on their way to probabilities.
        layers: name -> (height, width) float32, 0..1, what else the model tells and was asked for.
    """

    window: Window
    classes: NDArray[np.uint8]
    logits: Tensor
    temperature: float = 1.0
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, height, width) float32, summing to 1 over the classes."""
        return self.shares(slice(None))

    def shares(self, rows: slice) -> NDArray[np.float32]:
        """The probabilities of some rows: (K, rows, width) float32."""
        return np.moveaxis(probabilities_of(self.logits[:, rows].movedim(0, -1).numpy(), self.temperature), -1, 0)


def batch_size(view: int, views: int) -> int:
    """Windows per forward pass: about 65,000 pixels of views, at most 8,192, and not many more than there are views."""
    most = min(65_536 // view**2, 8_192)
    if most < _LANES:
        return max(1, min(most, views))
    return min(most // _LANES * _LANES, -(-views // _LANES) * _LANES)


def best_of(logits: Tensor) -> Tensor:
    """The class of the largest logit, the first of equal ones: (K, height, width) -> (height, width) uint8.

    What `argmax` gives over the first axis, for which it has no quick kernel.
    """
    best = logits[0].clone()
    classes = torch.zeros(best.shape, dtype=torch.uint8)
    for number in range(1, len(logits)):
        classes.masked_fill_(logits[number] > best, number)
        torch.maximum(best, logits[number], out=best)
    return classes


class Engine:
    """A classifier made ready to map one scene. Several threads may use it at once.

    Attributes:
        source: the scene as it was given.
        scene: with the features that the classifier appends.

    Args:
        classifier: what maps; it is put into evaluation mode.
        scene: checked against the classifier.
        batch: windows per forward pass; by default as many as make about 65,000 pixels.
        device: where to compute; by default a GPU if there is one.
        precision: what the network computes in.
        layers: names of what the model is to tell beside logits.

    Raises:
        FaultsError: if the scene is not of the kind that the classifier was trained on.
        SettingsError: if the model has no such layer.
    """

    def __init__(
        self,
        classifier: Bundle,
        scene: Scene,
        *,
        batch: int | None = None,
        device: torch.device | str | None = None,
        precision: Precision = "float32",
        layers: Sequence[str] = (),
    ) -> None:
        classifier.check(scene)
        self.source = scene
        self.scene = classifier.prepare(scene)
        unknown = sorted(set(layers) - set(classifier.model.layers))
        if unknown:
            raise SettingsError(
                f"the model `{classifier.spec.name}` has no layer {', '.join(unknown)}",
                ", ".join(classifier.model.layers) or "none, for this model",
                "ask for another, or none",
            )
        self.layers = tuple(layers)
        self.classifier = classifier.eval()
        self.model, self.stride, self.precision = classifier.model, classifier.stride, precision
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.maps = {name: pixel_map.to("cpu") for name, pixel_map in classifier.maps.items()}
        self.model.to(self.device)
        grid = self.scene.grid
        self.windows = len(self._starts(0, grid.height, grid.height)) * len(self._starts(0, grid.width, grid.width))
        self.batch = batch or batch_size(self.model.view, self.windows)
        self._along = core_weights(self.model.core, classifier.weights)
        even = classifier.weights == "uniform"
        self._weight = None if even else torch.from_numpy(np.outer(self._along, self._along))

    def _starts(self, start: int, stop: int, size: int) -> range:
        return lattice(start, stop, size, self.model.core, self.stride)

    def starts(self, window: Window) -> tuple[range, range]:
        """First rows and first columns of the cores that touch a block."""
        grid = self.scene.grid
        return (
            self._starts(window.row, window.row + window.height, grid.height),
            self._starts(window.col, window.col + window.width, grid.width),
        )

    def alone(self, window: Window) -> Share:
        """A block's share of the windows if no other block computes any: all that touch it."""
        return Share(window, *self.starts(window))

    def shares(self, windows: Iterable[Window]) -> Iterator[Share]:
        """Blocks' shares of the windows, where one process maps them in row order."""
        depth = self.model.classes + len(self.layers)
        return shares(windows, self.starts, self.model.core, depth, self.scene.grid.window)

    def reach(self, share: Share) -> Window:
        """The block and all that its own windows look at; it may reach beyond the scene."""
        return share.cores(self.model.core).padded(self.model.halo)

    def read(self, share: Share) -> Patchwork:
        """Reads a block with all that its own windows look at."""
        return read_patchwork(self.scene, self.reach(share), self.maps)

    @torch.inference_mode()
    def compute(
        self,
        patchwork: Patchwork,
        share: Share,
        *,
        wanted: NDArray[np.bool_] | None = None,
        carried: dict[Place, tuple[Window, Tensor]] | None = None,
        tell: Callable[[int], None] = lambda pixels: None,
    ) -> BlockMap:
        """Maps a block.

        Args:
            patchwork: as `read` gave it.
            share: of the block.
            wanted: (H, W) of the scene, true where the map is needed.
            carried: parts of cores and their logits, of earlier blocks; what the share keeps is added.
            tell: told how many more pixels are done.
        """
        window, core, grid = share.window, self.model.core, self.scene.grid
        inside = patchwork.window.intersection(grid.window)
        known = inside.within(patchwork.window)
        needed = np.zeros_like(patchwork.valid)
        needed[known] = patchwork.valid[known]
        if wanted is not None:
            needed[known] &= wanted[inside.within(grid.window)]
        places = torch.from_numpy(share.places(needed, patchwork.window, core))
        summed = torch.zeros((self.model.classes + len(self.layers), window.height, window.width))
        meter = _Meter(window.pixels, len(places), tell)
        if core == 1:
            for part, logits in self._computed(patchwork, places):
                index = (part[:, 0] - window.row) * window.width + part[:, 1] - window.col
                summed.view(len(summed), -1)[:, index] = logits[:, :, 0, 0].T
                meter.add(len(part))
        else:
            self._blend(summed, patchwork, places, share, {} if carried is None else carried, meter)
            rows = total_weight(window.row, window.row + window.height, grid.height, self.stride, self._along)
            cols = total_weight(window.col, window.col + window.width, grid.width, self.stride, self._along)
            summed /= torch.from_numpy(np.outer(rows, cols))
        logits, told = summed.split([self.model.classes, len(self.layers)])
        classes = best_of(logits).numpy()
        classes[~needed[window.within(patchwork.window)]] = UNLABELLED
        meter.end()
        layers = dict(zip(self.layers, told, strict=True))
        return BlockMap(window, classes, logits, self.classifier.temperature, layers)

    def _blend(
        self,
        summed: Tensor,
        patchwork: Patchwork,
        places: Tensor,
        share: Share,
        carried: dict[Place, tuple[Window, Tensor]],
        meter: _Meter,
    ) -> None:
        """Adds the weighted logits of all cores where they touch the block, in the lattice's order."""
        core, window = self.model.core, share.window
        fresh = (logits for _, batch in self._computed(patchwork, places) for logits in batch)
        own: set[Place] = {(row, col) for row, col in places.tolist()}
        for place in sorted(own | (share.given & carried.keys())):
            whole = Window(place[0], place[1], core, core)
            if place in own:
                kept, logits = whole, next(fresh)
                meter.add(1)
                if place in share.kept:
                    part = share.kept[place]
                    carried[place] = part, logits[:, *part.within(whole)].clone()
            else:
                kept, logits = carried[place]
            inside = kept.intersection(window)
            added = logits[:, *inside.within(kept)]
            if self._weight is not None:
                # Two roundings: a fused multiply-add rounds once, and not every code path is fused.
                added = added * self._weight[inside.within(whole)]
            summed[:, *inside.within(window)] += added

    def _computed(self, patchwork: Patchwork, places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Places, (B, 2), and their logits with the layers behind them, (B, K + layers, core, core), by batches."""
        halo, size = self.model.halo, self.batch
        for start in range(0, len(places), size):
            part = places[start : start + size]
            # Every pass has the same shape: kernels differ in their last bits between batch sizes (P1).
            full = part if len(part) == size else torch.cat([part, part[-1:].expand(size - len(part), 2)])
            images = patchwork.views(full[:, 0] - halo, full[:, 1] - halo, self.model.view)
            images = {name: image.to(self.device) for name, image in images.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                if self.layers:
                    logits, told = self.model.map_layers(images)
                    logits = torch.cat([logits, *(told[name].to(logits.dtype) for name in self.layers)], dim=1)
                else:
                    logits = self.model(images)
            yield part, logits.float().cpu()[: len(part)]

    def blocks(
        self,
        windows: Sequence[Window],
        *,
        wanted: NDArray[np.bool_] | None = None,
        on_fault: Callable[[Window, SceneError], None] | None = None,
        tell: Callable[[int], None] = lambda pixels: None,
    ) -> Iterator[BlockMap]:
        """Maps blocks, in row order, and reads the next while it computes; the rest as in `map_blocks`."""
        carried: dict[Place, tuple[Window, Tensor]] = {}
        lost: set[Place] = set()
        coming = self.shares(windows)
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:

            def read_next() -> tuple[Share, Future[Patchwork]] | None:
                share = next(coming, None)
                return None if share is None else (share, reader.submit(self.read, share))

            ahead = read_next()
            while ahead is not None:
                share, reading = ahead
                patchwork: Patchwork | None = None
                try:
                    if lost & share.given:  # it has to read more than was thought
                        share = share.alone()
                        patchwork = self.read(share)
                    else:
                        patchwork = reading.result()
                except SceneError as error:
                    if on_fault is None:
                        raise
                    on_fault(share.window, error)
                    tell(share.window.pixels)
                    lost |= share.kept.keys()
                del reading  # it holds the patchwork
                ahead = read_next()
                for place in share.past:
                    carried.pop(place, None)  # of a block without data, or that cannot be read, there is nothing
                if patchwork is not None:
                    yield self.compute(patchwork, share, wanted=wanted, carried=carried, tell=tell)


class _Meter:
    """Tells of a block's pixels as its windows are done; all of them by its end."""

    def __init__(self, pixels: int, windows: int, tell: Callable[[int], None]) -> None:
        self.pixels, self.windows, self.tell = pixels, windows, tell
        self.done = self.told = 0

    def add(self, windows: int) -> None:
        self.done += windows
        pixels = self.pixels * self.done // self.windows
        if pixels > self.told:
            self.tell(pixels - self.told)
            self.told = pixels

    def end(self) -> None:
        if self.pixels > self.told:
            self.tell(self.pixels - self.told)


def map_blocks(
    classifier: Bundle,
    scene: Scene,
    *,
    block: int = TILE,
    windows: Sequence[Window] | None = None,
    batch: int | None = None,
    wanted: NDArray[np.bool_] | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    layers: Sequence[str] = (),
    on_fault: Callable[[Window, SceneError], None] | None = None,
    tell: Callable[[int], None] = lambda pixels: None,
) -> Iterator[BlockMap]:
    """Maps a scene block by block, in row order.

    Args:
        classifier: what maps; it is put into evaluation mode.
        scene: checked against the classifier.
        block: side of a block, px.
        windows: blocks of the scene, in row order, instead of all.
        batch: windows per forward pass; by default as many as make about 65,000 pixels.
        wanted: (H, W), true where the map is needed; windows and blocks without such a pixel are skipped.
        device: where to compute; by default a GPU if there is one.
        precision: what the network computes in.
        layers: names of what the model is to tell beside logits.
        on_fault: told of a block that cannot be read; the others go on. By default its error is raised.
        tell: told how many more pixels are done.

    Raises:
        FaultsError: if the scene is not of the kind that the classifier was trained on.
        SceneError: if a block cannot be read.
    """
    if block < 1:
        raise SettingsError(f"the block is {block} px", "at least 1", "set another")
    engine = Engine(classifier, scene, batch=batch, device=device, precision=precision, layers=layers)
    grid = engine.scene.grid
    todo = [
        window
        for window in (blocks(grid.height, grid.width, block) if windows is None else windows)
        if wanted is None or wanted[window.within(grid.window)].any()
    ]
    yield from engine.blocks(todo, wanted=wanted, on_fault=on_fault, tell=tell)


def map_array(classifier: Bundle, scene: Scene, **options: object) -> NDArray[np.uint8]:
    """Maps a scene into an array, (H, W) uint8 classes; options as in `map_blocks`."""
    result = np.full((scene.grid.height, scene.grid.width), UNLABELLED, dtype=np.uint8)
    for part in map_blocks(classifier, scene, **options):  # type: ignore[arg-type]
        result[part.window.within(scene.grid.window)] = part.classes
    return result
