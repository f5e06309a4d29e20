"""Mapping: a classifier and a scene become a georeferenced map, block by block.

A block reads its pixels and a halo, computes every window of the scene's lattice whose core touches it, and averages
their logits in the lattice's order. What a pixel gets therefore does not depend on the block it lies in (P1), and what
is held does not depend on the scene (P2). Reading the next block, computing this one and writing the last overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landfuse.classifier import Classifier
from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.patchwork import Patchwork, read_patchwork
from landfuse.scenes.geotiff_writer import TILE, GeotiffWriter
from landfuse.scenes.grid import Window, blocks, lattice
from landfuse.scenes.scene import Scene

PROBABILITY_STEPS = 250
"""Probabilities are written as uint8: value / 250, 255 for no data."""

_LANES = 64
"""Element-wise kernels take this many numbers at once and round what is left otherwise: batches leave nothing."""

Progress = Callable[[int, int], None]
"""Told (pixels done, pixels in all)."""


@dataclass(frozen=True)
class BlockMap:
    """The map of one block.

    Args:
        window: of the scene.
        classes: (height, width) uint8, `UNLABELLED` where a modality has no data or the pixel was not wanted.
        logits: (K, height, width) float32; only meaningful where there is a class.
    """

    window: Window
    classes: NDArray[np.uint8]
    logits: Tensor

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, height, width) float32, summing to 1 over the classes."""
        # Along the last axis: over the first, the kernel rounds by a pixel's place in the block (P1).
        shares = torch.softmax(self.logits.movedim(0, -1).contiguous(), dim=-1).movedim(-1, 0)
        return np.asarray(shares.numpy())


def batch_size(view: int, views: int) -> int:
    """Windows per forward pass: about 65,000 pixels of views, at most 8,192, and not many more than there are views."""
    most = min(65_536 // view**2, 8_192)
    if most < _LANES:
        return max(1, min(most, views))
    return min(most // _LANES * _LANES, -(-views // _LANES) * _LANES)


@torch.inference_mode()
def map_blocks(
    classifier: Classifier,
    scene: Scene,
    *,
    block: int = TILE,
    batch: int | None = None,
    wanted: NDArray[np.bool_] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[BlockMap]:
    """Maps a scene block by block, in row order.

    Args:
        classifier: what maps; it is put into evaluation mode.
        scene: checked against the classifier.
        block: side of a block, px.
        batch: windows per forward pass; by default as many as make about 65,000 pixels.
        wanted: (H, W), true where the map is needed; windows and blocks without such a pixel are skipped.
        device: where to compute; by default a GPU if there is one.

    Raises:
        FaultsError: if the scene is not of the kind that the classifier was trained on.
    """
    classifier.check(scene)
    if block < 1:
        raise SettingsError(f"the block is {block} px", "at least 1", "set another")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    classifier.eval()
    maps = {name: pixel_map.to("cpu") for name, pixel_map in classifier.maps.items()}
    classifier.model.to(device)
    core, stride, grid = classifier.model.core, classifier.stride, scene.grid
    lattice_size = len(lattice(0, grid.height, grid.height, core, stride)) * len(
        lattice(0, grid.width, grid.width, core, stride)
    )
    size = batch or batch_size(classifier.model.view, lattice_size)
    todo = [
        window
        for window in blocks(grid.height, grid.width, block)
        if wanted is None or wanted[window.within(grid.window)].any()
    ]

    def read(window: Window) -> Patchwork:
        rows = lattice(window.row, window.row + window.height, grid.height, core, stride)
        cols = lattice(window.col, window.col + window.width, grid.width, core, stride)
        cores = Window(rows[0], cols[0], rows[-1] - rows[0] + core, cols[-1] - cols[0] + core)
        return read_patchwork(scene, cores.padded(classifier.model.halo), maps)

    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        ahead: Future[Patchwork] | None = reader.submit(read, todo[0]) if todo else None
        for number, window in enumerate(todo):
            patchwork = ahead.result() if ahead else read(window)
            ahead = reader.submit(read, todo[number + 1]) if number + 1 < len(todo) else None
            yield _map_block(classifier, patchwork, window, grid.window, size, wanted, device)


def _map_block(
    classifier: Classifier,
    patchwork: Patchwork,
    window: Window,
    scene: Window,
    size: int,
    wanted: NDArray[np.bool_] | None,
    device: torch.device,
) -> BlockMap:
    model, stride = classifier.model, classifier.stride
    needed = patchwork.valid[window.within(patchwork.window)].copy()
    if wanted is not None:
        needed &= wanted[window.within(scene)]
    places = _places(needed, window, scene, model.core, stride)
    summed = torch.zeros((model.classes, window.height, window.width))
    weight = torch.zeros((window.height, window.width))
    for start in range(0, len(places), size):
        part = places[start : start + size]
        # Every pass has the same shape: kernels differ in their last bits between batch sizes (P1).
        full = part if len(part) == size else torch.cat([part, part[-1:].expand(size - len(part), 2)])
        images = patchwork.views(full[:, 0] - model.halo, full[:, 1] - model.halo, model.view)
        scores = model({name: image.to(device) for name, image in images.items()}).float().cpu()
        _add(summed, weight, scores[: len(part)], part, window)
    weight = weight.clamp(min=1)
    logits = summed / weight
    classes = logits.argmax(dim=0).to(torch.uint8).numpy()
    classes[~needed] = UNLABELLED
    return BlockMap(window, classes, logits)


def _places(needed: NDArray[np.bool_], window: Window, scene: Window, core: int, stride: int) -> Tensor:
    """First core pixels, (windows, 2), of the lattice windows whose core holds a needed pixel of this block."""
    rows = torch.tensor(lattice(window.row, window.row + window.height, scene.height, core, stride))
    cols = torch.tensor(lattice(window.col, window.col + window.width, scene.width, core, stride))
    # A summed-area table tells for all cores at once whether they hold a needed pixel.
    table = torch.zeros((window.height + 1, window.width + 1), dtype=torch.int64)
    table[1:, 1:] = torch.from_numpy(needed).long().cumsum(0).cumsum(1)
    top, bottom = ((rows + offset - window.row).clamp(0, window.height) for offset in (0, core))
    left, right = ((cols + offset - window.col).clamp(0, window.width) for offset in (0, core))
    held = table[bottom][:, right] - table[top][:, right] - table[bottom][:, left] + table[top][:, left]
    row, col = torch.nonzero(held, as_tuple=True)
    return torch.stack([rows[row], cols[col]], dim=1)


def _add(summed: Tensor, weight: Tensor, logits: Tensor, places: Tensor, window: Window) -> None:
    """Adds cores, (B, K, core, core), onto the block where they touch it, in their order."""
    core = logits.shape[-1]
    if core == 1:
        index = (places[:, 0] - window.row) * window.width + places[:, 1] - window.col
        summed.view(len(summed), -1)[:, index] = logits[:, :, 0, 0].T
        weight.view(-1)[index] = 1
        return
    for scores, (row, col) in zip(logits, places.tolist(), strict=True):
        whole = Window(row, col, core, core)
        inside = whole.intersection(window)
        summed[:, *inside.within(window)] += scores[:, *inside.within(whole)]
        weight[inside.within(window)] += 1


def map_array(classifier: Classifier, scene: Scene, **options: object) -> NDArray[np.uint8]:
    """Maps a scene into an array, (H, W) uint8 classes; options as in `map_blocks`."""
    result = np.full((scene.grid.height, scene.grid.width), UNLABELLED, dtype=np.uint8)
    for part in map_blocks(classifier, scene, **options):  # type: ignore[arg-type]
        result[part.window.within(scene.grid.window)] = part.classes
    return result


def beside(path: str | Path, layer: str) -> Path:
    """The file of a further layer beside a map: `map.tif` -> `map_confidence.tif`."""
    path = Path(path)
    return path.with_name(f"{path.stem}_{layer}{path.suffix}")


def predict(
    classifier: Classifier,
    scene: Scene,
    path: str | Path,
    *,
    probabilities: bool = False,
    confidence: bool = False,
    block: int = TILE,
    batch: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Maps a scene into a GeoTIFF of the legend's codes, with its colours and names; 255 where there is no data.

    Args:
        classifier: what maps.
        scene: what is mapped.
        path: of the map. Files appear when they are whole.
        probabilities: also write `..._probabilities.tif`, a band per class, in steps of 1/250.
        confidence: also write `..._confidence.tif`, the margin of the best class over the second, in steps of 1/250.
        block: side of the blocks, px; a multiple of 512 writes fastest.
        batch: windows per forward pass.
        device: where to compute.
        progress: told (pixels done, pixels in all).

    Returns:
        The map's path.

    Raises:
        FaultsError: if the scene does not fit the classifier.
        OutputError: if a file cannot be written.
    """
    path = Path(path)
    tags = {"landfuse_model": classifier.spec.name}
    with contextlib.ExitStack() as stack:
        scaled = {"scale": 1 / PROBABILITY_STEPS, "tags": tags}
        main = stack.enter_context(
            GeotiffWriter(path, scene.grid, names=["class"], legend=classifier.legend, tags=tags)
        )
        shares = margin = None
        if probabilities:
            names = classifier.legend.names
            shares = stack.enter_context(
                GeotiffWriter(beside(path, "probabilities"), scene.grid, bands=len(names), names=names, **scaled)  # type: ignore[arg-type]
            )
        if confidence:
            margin = stack.enter_context(
                GeotiffWriter(beside(path, "confidence"), scene.grid, names=["confidence"], **scaled)  # type: ignore[arg-type]
            )

        def write(part: BlockMap) -> None:
            main.write(part.window, classifier.legend.to_codes(part.classes))
            missing = part.classes == UNLABELLED
            if shares is not None:
                shares.write(part.window, _steps(part.probabilities, missing))
            if margin is not None:
                margin.write(part.window, _steps(confidence_of(part.probabilities), missing))

        done, writing = 0, None
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            for part in map_blocks(classifier, scene, block=block, batch=batch, device=device):
                if writing is not None:
                    writing.result()
                writing = writer.submit(write, part)
                done += part.window.pixels
                progress(done, scene.grid.window.pixels)
            if writing is not None:
                writing.result()
    return path


def confidence_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The margin between the best and the second class: (K, ...) -> (...), 0..1; 1 where there is one class."""
    if len(probabilities) == 1:
        return np.ones_like(probabilities[0])
    best = np.partition(probabilities, -2, axis=0)
    return best[-1] - best[-2]


def _steps(values: NDArray[np.float32], missing: NDArray[np.bool_]) -> NDArray[np.uint8]:
    steps = np.rint(values * PROBABILITY_STEPS).astype(np.uint8)
    steps[..., missing] = UNLABELLED
    return steps
