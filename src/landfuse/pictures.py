"""Pictures: maps with their legend, scenes as people know them, curves. The only matplotlib import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from landfuse.files import whole_file
from landfuse.legend import UNLABELLED, Legend
from landfuse.scenes.grid import Window
from landfuse.scenes.scene import Scene

_LARGEST = 1500
"""Pixels along the longer side of a picture; larger maps are thinned out."""


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110, bbox_inches="tight")
    return Path(path)


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    step = max(1, -(-max(values.shape[:2]) // _LARGEST))
    return values[::step, ::step]


def class_image(classes: NDArray[np.uint8], legend: Legend) -> NDArray[np.uint8]:
    """Classes in the legend's colours, (H, W, 3) uint8; white where there is none."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(legend)] = [c.rgb for c in legend]
    return table[classes]


def modality_image(scene: Scene, modality: str) -> NDArray[np.uint8]:
    """One modality as a picture, (H, W, 3) uint8: three bands spread over the spectrum, or one in grey.

    Each band is stretched from its 2nd to its 98th percentile; no data is white.
    """
    part = scene.modalities[modality]
    step = max(1, -(-max(scene.grid.height, scene.grid.width) * part.zoom // _LARGEST))
    rows = []
    strip = max(1, 512 // part.zoom)
    for row in range(0, scene.grid.height, strip):
        window = Window(row, 0, min(strip, scene.grid.height - row), scene.grid.width)
        values = scene.read(modality, window)
        count = len(values)
        chosen = [2 * count // 3, count // 3, count // 12] if count > 4 else [2, 1, 0] if count >= 3 else [0, 0, 0]
        first = -(row * part.zoom) % step
        rows.append(values[chosen, first::step, ::step])
    bands = np.concatenate(rows, axis=1)
    image = np.full((*bands.shape[1:], 3), 255, dtype=np.uint8)
    for index, band in enumerate(bands):
        known = np.isfinite(band)
        if known.any():
            low, high = np.percentile(band[known], (2, 98))
            scaled = np.clip((band[known] - low) / max(high - low, 1e-12), 0, 1)
            image[known, index] = (scaled * 255).astype(np.uint8)
    return image


def map_figure(images: Mapping[str, NDArray[np.uint8]], legend: Legend, shown: Sequence[NDArray[np.uint8]]) -> Figure:
    """Pictures side by side over one legend.

    Args:
        images: title -> (H, W, 3) uint8, of one shape or multiples of it.
        legend: the classes.
        shown: arrays of classes; the legend lists those that occur in them.
    """
    first = next(iter(images.values()))
    ratio = np.clip(first.shape[0] / first.shape[1], 0.2, 3)
    columns = min(len(images), 3 if ratio < 1.6 else 5)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * ratio * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, image) in zip(axes, images.items(), strict=False):
        axis.imshow(_thinned(image), interpolation="nearest")
        axis.set_title(title, fontsize=10)
    present = {int(value) for array in shown for value in np.unique(array)}
    handles = [
        Patch(facecolor=c.colour, edgecolor="#555555", label=c.name) for i, c in enumerate(legend) if i in present
    ]
    if UNLABELLED in present:
        handles.append(Patch(facecolor="white", edgecolor="#555555", label="none"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=9, frameon=False)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]], chosen: int | None) -> Figure:
    """Loss and validation scores over the epochs.

    Args:
        history: rows as `landfuse.task.read_history` gives them.
        chosen: the epoch that was kept.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for row in history for name in row if name != "epoch"))
    for name in names:
        points = [(row["epoch"], row[name]) for row in history if name in row]
        axis = right if name.startswith("val_") else left
        axis.plot(*zip(*points, strict=True), label=name.removeprefix("val_").removeprefix("train_"), marker=".", ms=3)
    left.set_title("training loss")
    right.set_title("validation scores")
    right.set_ylim(0, 1)
    for axis in (left, right):
        axis.set_xlabel("epoch")
        if chosen is not None:
            axis.axvline(chosen, color="#888888", ls=":", lw=1)
        if axis.lines:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure
