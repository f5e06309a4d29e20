"""Property P1: what a pixel gets depends neither on the block it lies in nor on the size of a batch, to the last bit.

The same map is also computed twice in the same way: where that differs, the kernels are not deterministic.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from device import Device
from landfuse_parts import Bundle, Scene, gpu, map_blocks
from numpy.typing import NDArray
from record import Record
from scenes_to_map import MODELS, placed, settle
from speed_parts import CLASSES

PART = "p1"
NOT_ON_A_CPU = "P1 of the GPU's kernels, and of bfloat16: what is said is of this CPU"


def mapped(
    classifier: Bundle, scene: Scene, block: int, batch: int, precision: str, device: Device
) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """Classes and logits of the whole scene."""
    grid = scene.grid
    classes = np.zeros((grid.height, grid.width), np.uint8)
    logits = torch.zeros(CLASSES, grid.height, grid.width)
    for part in map_blocks(classifier, scene, block=block, batch=batch, device=device.name, precision=precision):
        at = part.window.within(grid.window)
        classes[at] = part.classes
        logits[:, *at] = torch.from_numpy(part.logits)
    return classes, logits


def compare(record: Record, device: Device, model: str, precision: str, folder: Path) -> None:
    """Records what changes with the block, with the batch, and with nothing."""
    if model == "refnet":
        side, batches = (72, (2, 1)) if device.dry else (600, (4, 1))
        sizes = side, side // 2
    else:
        side, batches = (9, (64, 128)) if device.dry else (96, (512, 192))  # multiples of 64, as the engine's own are
        sizes = side, side // 3
    classifier, scene = placed(model, side, folder, device)
    settle(classifier, scene, device)
    never, second = 0, 2  # the pass that is captured as a CUDA graph
    with patch.object(gpu, "CAPTURED", never):
        first = mapped(classifier, scene, sizes[0], batches[0], precision, device)
    for what, block, batch, captured in (
        ("nothing", sizes[0], batches[0], never),
        (f"block {sizes[0]} to {sizes[1]} px", sizes[1], batches[0], never),
        *([] if device.dry else [("to CUDA graphs", sizes[0], batches[0], second)]),
        (f"batch {batches[0]} to {batches[1]}", sizes[0], batches[1], never),
    ):
        with patch.object(gpu, "CAPTURED", captured):
            other = mapped(classifier, scene, block, batch, precision, device)
        record.add(
            PART,
            f"{model} {precision}, changed: {what}",
            same_classes=bool((first[0] == other[0]).all()),
            same_logits=bool(torch.equal(first[1], other[1])),
            share_of_pixels=float((first[0] != other[0]).mean()),
            largest_difference=float((first[1] - other[1]).abs().max()),
            classes_seen=len(np.unique(first[0])),
        )


def measure(record: Record, device: Device, folder: Path) -> None:
    """Records all models."""
    for model in MODELS:
        for precision in ("float32",) if device.dry else ("float32", "bfloat16"):
            with record.measurement(PART, f"{model} {precision}") as begun:
                if begun:
                    compare(record, device, model, precision, folder)
            device.release()
