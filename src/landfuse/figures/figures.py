"""Pictures: maps with their legend, scenes as people know them, curves. The only matplotlib import."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from landfuse.figures.overview import overview, thinned_classes, thinning
from landfuse.files import whole_file
from landfuse.legend import UNLABELLED, Legend
from landfuse.scenes.scene import Scene

_LARGEST = 1500
"""Pixels along the longer side of a picture; larger maps are thinned out."""

_MOST_NUMBERS = 25
"""Classes of which a confusion matrix shows numbers; above it the cells are too small."""


class Picture(Figure):
    """A figure that a notebook shows where it is the last line of a cell."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()


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


def modality_image(scene: Scene, modality: str, bands: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """One modality as people know it, (H, W, 3) uint8, white where there is no data; see `landfuse.figures.overview`.

    Args:
        scene: the scene.
        modality: its name.
        bands: from 0: three for red, green and blue, or one for grey.
    """
    return overview(scene, modality, _LARGEST, bands).on_white


def map_figure(images: Mapping[str, NDArray[np.uint8]], legend: Legend, shown: Sequence[NDArray[np.uint8]]) -> Picture:
    """Pictures side by side over one legend.

    Args:
        images: title -> (H, W, 3) uint8, of one shape or multiples of it.
        legend: the classes.
        shown: arrays of classes; the legend lists those that occur in them.
    """
    first = next(iter(images.values()))
    ratio = np.clip(first.shape[0] / first.shape[1], 0.2, 3)
    columns = min(len(images), 4 if len(images) == 4 else 3 if ratio < 1.6 else 5)
    rows = -(-len(images) // columns)
    figure = Picture(figsize=(4.2 * columns, 4.2 * ratio * rows + 0.9), layout="constrained")
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
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=9, frameon=False
        )
    return figure


def scene_figure(
    scene: Scene, modalities: Sequence[str] | None = None, bands: Mapping[str, Sequence[int]] | None = None
) -> Picture:
    """A scene's modalities as people know them, and its labels where it has some.

    Args:
        scene: the scene.
        modalities: which; all by default.
        bands: modality -> the bands to show, from 1: three for red, green and blue, or one for grey.
    """
    chosen = {name: [band - 1 for band in numbers] for name, numbers in (bands or {}).items()}
    images = {}
    for name in scene.modalities if modalities is None else modalities:
        seen = overview(scene, name, _LARGEST, chosen.get(name))
        images[f"{name}: {seen.how}" if len(seen.how) < 30 else name] = seen.on_white
    shown = []
    if scene.read_labels is not None:
        shown.append(thinned_classes(scene.labels, thinning(scene.grid.height, scene.grid.width, _LARGEST)))
        images["labels"] = class_image(shown[0], scene.legend)
    return map_figure(images, scene.legend, shown)


def classes_figure(classes: NDArray[np.uint8], legend: Legend, title: str) -> Picture:
    """A map of classes over its legend.

    Args:
        classes: (H, W) uint8, `UNLABELLED` where there is none.
        legend: the classes.
        title: above it.
    """
    thin = thinned_classes(classes, thinning(classes.shape[0], classes.shape[1], _LARGEST))
    return map_figure({title: class_image(thin, legend)}, legend, [thin])


def confusion_figure(matrix: NDArray[np.int64], names: Sequence[str]) -> Picture:
    """A confusion matrix, each cell with its count, shaded by its share of the row.

    Args:
        matrix: (K, K), rows truth, columns map.
        names: K names.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(3.0, 0.62 * len(names) + 1.2)
    figure = Picture(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names), default=0) > 5 else 0)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("map")
    axis.set_ylabel("truth")
    if len(names) <= _MOST_NUMBERS:
        for (row, col), count in np.ndenumerate(matrix):
            told = f"{count:,}\n{shares[row, col]:.0%}" if count else "0"
            dark = shares[row, col] > 0.55
            axis.text(col, row, told, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_title("pixels, and shares of each row of the truth", fontsize=9)
    return figure


def reliability_figure(counts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How often the class named is right against how probable it was said to be; on the diagonal, words are true.

    Args:
        counts: title -> what `landfuse.accuracy.reliability.Reliability.told` gives.
    """
    figure = Figure(figsize=(4.2 * len(counts), 4), layout="constrained")
    for axis, (title, told) in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        most = max((row["pixels"] for row in told["bins"]), default=1)
        for row in told["bins"]:
            width = row["high"] - row["low"]
            axis.bar(row["low"], row["accuracy"], width, align="edge", color="#0072b2", edgecolor="white")
            axis.bar(row["low"], 0.15 * row["pixels"] / most, width, align="edge", color="#333333", alpha=0.5)
            axis.plot(row["stated"], row["accuracy"], "o", ms=4, color="#d55e00")
        axis.plot((0, 1), (0, 1), "--", color="#333333", lw=1)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="probability stated", ylabel="share that is right")
        axis.set_title(f"{title}: ECE {told['ECE']:.3f}", fontsize=10)
    figure.supxlabel("test pixels; dark: how many, as shares of the fullest bin", fontsize=8)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]], chosen: int | None) -> Figure:
    """Loss and validation scores over the epochs.

    Args:
        history: rows as `landfuse.training.lightning_task.read_history` gives them.
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


def balance_figure(rows: Sequence[Mapping[str, float]], modalities: Sequence[str]) -> Figure:
    """How a denoiser's modalities were held in balance: dominance, share hidden and loss weight over the steps.

    Args:
        rows: with `step`, and `D_`, `r_` and `w_` before each modality's name.
        modalities: their names.
    """
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    titles = {"D": "dominance D", "r": "share of samples in which it is hidden, r", "w": "weight of its loss, w"}
    for axis, (letter, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for name in modalities:
            points = [(row["step"], row[f"{letter}_{name}"]) for row in rows if f"{letter}_{name}" in row]
            axis.plot(*zip(*points, strict=True), label=name, marker=".", ms=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if letter == "D":
            axis.set_yscale("log", nonpositive="clip")
        else:
            axis.set_ylim(0, 1)
    axis.legend(fontsize=8)
    return figure
