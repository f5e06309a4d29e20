"""Pictures: maps with their legend, scenes as people know them, curves. The only matplotlib import."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from landfuse.accuracy.bootstrap import Interval
from landfuse.errors import LandfuseError, SettingsError
from landfuse.figures.overview import (
    drawn_values,
    drawn_windows,
    in_decibel,
    overview,
    side_by_side,
    thinned_classes,
    thinning,
)
from landfuse.files import check_replaceable, whole_file
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.markup import decimals, percent
from landfuse.palette import rgb
from landfuse.rasters.windows import blocks
from landfuse.scenes.check import Report
from landfuse.scenes.land_cover_map import LandCoverMap
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import ROLES, TRAIN

INK, GRID = ("#59636d", "#a2acb5"), ("#d8dcdf", "#353b41")
"""Text and grid lines, on a light and on a dark page."""

LINES = (
    ("#0b5cad", "#86bdf2"),
    ("#b34700", "#ff9d5c"),
    ("#00795a", "#4fd1a5"),
    ("#a23b84", "#f29bd4"),
    ("#6b5b00", "#e3cf57"),
    ("#3a3f45", "#c3cad0"),
)
"""Curves, on a light and on a dark page, each with a contrast of at least 4.5 to the page."""

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.prop_cycle": cycler(color=[light for light, _ in LINES])
    + cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))])
    + cycler(marker=["o", "s", "^", "D", "v", "x"]),
    "axes.edgecolor": GRID[0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID[0],
    "lines.markersize": 3.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK[0]),
    **dict.fromkeys(("xtick.color", "ytick.color"), GRID[0]),
}
_styled = matplotlib.rc_context(_STYLE)

_LARGEST = 1500
"""Pixels along the longer side of a picture; larger maps are thinned out."""

_MOST_NUMBERS = 25
"""Classes of which a confusion matrix shows numbers; above it the cells are too small."""


class Picture(Figure):
    """A figure that a notebook shows where it is the last line of a cell."""

    words = ""
    """What is to be seen, for readers who do not see it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()


_FIGURE: ContextVar[Callable[..., Picture]] = ContextVar("figure", default=Picture)
"""Makes the figures here: on their own, so that nothing keeps them, or by pyplot."""


@contextmanager
def by_pyplot() -> Iterator[None]:
    """Makes figures that notebooks and windows show by themselves, as those of pyplot."""
    from matplotlib import pyplot

    def new(**options: Any) -> Picture:
        return cast(Picture, pyplot.figure(FigureClass=Picture, **options))

    token = _FIGURE.set(new)
    try:
        yield
    finally:
        _FIGURE.reset(token)


def check_picture(path: Path, overwrite: bool) -> None:
    """Refuses what no picture can be written to.

    Raises:
        SettingsError: if it is neither PNG nor HTML.
        OutputError: if another file is there that landfuse did not write, and `overwrite` is not set.
    """
    if path.suffix.lower() not in (".png", ".html"):
        raise SettingsError(f"a picture is to be written to {path}", "a name that ends in .png or .html", "change it")
    check_replaceable(path, r'Software\x00landfuse|name="generator" content="landfuse"', overwrite)


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure, whole or not at all: as PNG, or as a page with its words where the name ends in `.html`.

    Raises:
        OutputError: if it cannot be written.
    """
    with whole_file(path) as partial:
        if Path(path).suffix.lower() == ".html" and isinstance(figure, Picture):
            lines = [html.escape(line) for line in figure.words.splitlines()]
            title = lines[0] if lines else "landfuse"
            partial.write_text(
                '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="generator" content="landfuse">'
                '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
                f'<title>{title}</title><body style="font-family: system-ui, sans-serif; margin: 1rem"><h1>{title}</h1>'
                f'<img style="max-width: 100%" alt="{title}" src="data:image/png;base64,'
                f'{base64.b64encode(figure._repr_png_()).decode()}">' + "".join(f"<p>{line}</p>" for line in lines[1:]),
                encoding="utf-8",
            )
            return Path(path)
        figure.savefig(partial, format="png", dpi=110, bbox_inches="tight", metadata={"Software": "landfuse"})
    return Path(path)


def svg(figure: Picture, name: str) -> str:
    """A figure as an SVG element to be placed into a page: transparent, its text as text, its words as description.

    Args:
        name: unique in the page; its ids begin with it.
    """
    buffer = io.StringIO()
    figure.draw_without_rendering()  # ticks change with the room that the first layout leaves
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    # The style element would apply to the whole page, and ids such as `axes_1` would occur once in every picture.
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index(">", text.index("<svg")) + 1 :], flags=re.S
    )
    body = re.sub(r' id="[\w.]+_\d+"', "", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    for light, _ in (INK, GRID, *LINES):
        body = body.replace(light, f"var(--{light[1:]}, {light})")
    title = html.escape(", ".join(filter(None, (axis.get_title() for axis in figure.axes))))
    return (
        f'<svg viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{name}-title" '
        f'aria-describedby="{name}-words" style="stroke-linejoin: round"><title id="{name}-title">{title}</title>'
        f'<desc id="{name}-words">{html.escape(figure.words)}</desc>{body}'
    )


def dark_variables() -> str:
    """CSS declarations that give the pictures of `svg` their colours on a dark page."""
    return " ".join(f"--{light[1:]}: {dark};" for light, dark in (INK, GRID, *LINES))


def ramp(levels: int) -> list[tuple[int, int, int]]:
    """Colours from dark to pale, evenly lighter, so that they are read without colour vision too (cividis)."""
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 1, levels), bytes=True)
    return [(int(red), int(green), int(blue)) for red, green, blue, _ in colours]


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    step = max(1, -(-max(values.shape[:2]) // _LARGEST))
    return values[::step, ::step]


def class_image(classes: NDArray[np.uint8], legend: Legend, blank: int = 255) -> NDArray[np.uint8]:
    """Classes in the legend's colours, (H, W, 3) uint8; white, or another grey, where there is none."""
    table = np.full((256, 3), blank, dtype=np.uint8)
    table[: len(legend)] = [c.rgb for c in legend]
    return table[classes]


def map_figure(images: Mapping[str, NDArray[np.uint8]], legend: Legend, shown: Sequence[NDArray[np.uint8]]) -> Picture:
    """Pictures side by side over one legend.

    Args:
        images: title -> (H, W, 3) uint8, of one shape or multiples of it.
        shown: arrays of classes; the legend lists those that occur in them.
    """
    first = next(iter(images.values()))
    ratio = np.clip(first.shape[0] / first.shape[1], 0.2, 3)
    columns = min(len(images), 4 if len(images) == 4 else 3 if ratio < 1.6 else 5)
    rows = -(-len(images) // columns)
    figure = _FIGURE.get()(figsize=(4.2 * columns, 4.2 * ratio * rows + 0.9), layout="constrained")
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


def mapped_figure(scene: Scene, classes: NDArray[np.uint8], legend: Legend) -> Picture:
    """A scene's modalities beside its map, (H, W) classes of a legend, and its labels where they are of that legend."""
    images = {name: overview(scene, name).on_white for name in scene.modalities}
    shown = [classes]
    if scene.read_labels is not None and scene.legend.names == legend.names:
        images["labels"] = class_image(scene.labels, scene.legend)
        shown.append(scene.labels)
    return map_figure({**images, "map": class_image(classes, legend)}, legend, shown)


def scene_figure(
    scene: Scene, modalities: Sequence[str] | None = None, bands: Mapping[str, Sequence[int]] | None = None
) -> Picture:
    """A scene's modalities as people know them, and its labels where it has some.

    Args:
        modalities: which; all by default.
        bands: modality -> the bands to show, from 1: three for red, green and blue, or one for grey.
    """
    unknown = [name for name in (*(modalities or ()), *(bands or ())) if name not in scene.modalities]
    if unknown:
        raise SettingsError(
            f"the scene has no modality {', '.join(unknown)}", ", ".join(scene.modalities), "choose one"
        )
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
    """A map of classes, (H, W) uint8, over its legend."""
    thin = thinned_classes(classes, thinning(classes.shape[0], classes.shape[1], _LARGEST))
    return map_figure({title: class_image(thin, legend)}, legend, [thin])


def sample_figure(
    opened: LandCoverMap, row: NDArray[Any], col: NDArray[Any], chosen: NDArray[np.bool_] | None = None
) -> Picture:
    """Places on their map, which is read block by block: circles, and triangles for those that were chosen."""
    height, width = opened.grid.height, opened.grid.width
    step = thinning(height, width, _LARGEST)
    thin = np.empty((-(-height // step), -(-width // step)), np.uint8)
    for window in blocks(height, width, step * max(1, 2048 // step)):
        classes = thinned_classes(opened.legend.to_classes(opened.codes(window)), step)
        top, left = window.row // step, window.col // step
        thin[top : top + classes.shape[0], left : left + classes.shape[1]] = classes
    figure = map_figure({f"{len(row):,} points": class_image(thin, opened.legend)}, opened.legend, [thin])
    size = float(np.clip(4000 / len(row), 4, 30))
    x, y = ((one + 0.5) / step - 0.5 for one in (col, row))
    drawn = np.ones(len(row), bool) if chosen is None else ~chosen
    for shape, mine in (("o", drawn), ("^", ~drawn)):
        figure.axes[0].scatter(
            x[mine], y[mine], s=size, marker=shape, color="white", edgecolors="black", linewidths=0.7
        )
    return figure


def confusion_figure(matrix: NDArray[np.int64], names: Sequence[str]) -> Picture:
    """A confusion matrix, (K, K), rows truth, columns map; cells are shaded by their fraction of the row."""
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(3.0, 0.62 * len(names) + 1.2)
    figure = _FIGURE.get()(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names), default=0) > 5 else 0)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("map")
    axis.set_ylabel("truth")
    if len(names) <= _MOST_NUMBERS:
        for (row, col), count in np.ndenumerate(matrix):
            label = f"{count:,}\n{percent(float(fractions[row, col]), 0)}" if count else "0"
            dark = fractions[row, col] > 0.55
            axis.text(col, row, label, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_title("pixels, and fractions of each row of the truth", fontsize=9)
    return figure


@_styled
def reliability_figure(counts: Mapping[str, Mapping[str, Any]]) -> Picture:
    """How often the predicted class is right, by its stated probability; on the diagonal the two agree.

    Args:
        counts: title -> what `landfuse.accuracy.reliability.Reliability.to_dict` returns.
    """
    figure = _FIGURE.get()(figsize=(4.2 * len(counts), 5.2), layout="constrained")
    axes = figure.subplots(2, len(counts), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (axis, below), (title, found) in zip(axes.T, counts.items(), strict=True):
        for row in found["bins"]:
            place = {"x": row["low"], "width": 0.94 * (row["high"] - row["low"]), "align": "edge"}
            axis.bar(height=row["accuracy"], color=LINES[0][0], **place)
            axis.plot(row["stated"], row["accuracy"], "o", color=LINES[1][0])
            below.bar(height=row["pixels"], color=INK[0], **place)
            middle = (row["low"] + row["high"]) / 2
            below.text(middle, row["pixels"], f" {row['pixels']:,}", fontsize=7, rotation=90, ha="center", va="bottom")
        axis.plot((0, 1), (0, 1), "--", color=INK[0], lw=1, marker="")
        axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="fraction that is right")
        axis.set_title(f"{title}: ECE {decimals(found['ECE'])}")
        most = max((row["pixels"] for row in found["bins"]), default=1)
        below.set(yscale="log", ylim=(0.5, 60 * most), ylabel="test pixels", xlabel="stated probability")
        below.set_yticks([10**power for power in range(len(str(most)))])
        below.minorticks_off()
        below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.words = (
        "Fraction of the pixels that are right against the probability stated for them; on the diagonal the two agree. "
        + "; ".join(
            f"{title}: expected calibration error {decimals(found['ECE'])}; "
            + ", ".join(f"{b['accuracy']:.3f} of {b['pixels']:,} px stated {b['stated']:.3f}" for b in found["bins"])
            for title, found in counts.items()
        )
        + "."
    )
    return figure


@_styled
def coverage_figure(curve: Sequence[Mapping[str, float]]) -> Picture:
    """How often class sets hold the true class of test pixels, and how many sets are one class, by level.

    Args:
        curve: each with `level`, `coverage` and `one_class`; see `landfuse.accuracy.conformal.coverage_of`.
    """
    figure = _FIGURE.get()(figsize=(4.2, 3.6), layout="constrained")
    axis = figure.subplots()
    levels = [row["level"] for row in curve]
    for number, (key, words) in enumerate({"coverage": "true class in the set", "one_class": "one class"}.items()):
        axis.plot(levels, [row[key] for row in curve], color=LINES[number][0], marker="", label=words)
    axis.plot(levels, levels, "--", color=INK[0], lw=1, marker="", label="the level")
    axis.set(xlabel="level", ylabel="fraction of the test pixels", ylim=(0, 1.02), title="Class sets by level")
    axis.legend(loc="lower left")
    figure.words = "Class sets: " + "; ".join(
        f"level {row['level']:g}: {percent(row['coverage'])} covered, {percent(row['one_class'])} of one class"
        for row in curve[::5]
    )
    return figure


@_styled
def dissimilarity_figure(found: Mapping[str, Any]) -> Picture:
    """The fraction of wrong pixels by their dissimilarity; a line at 1, up to which they are like the training pixels.

    Args:
        found: one of those of `landfuse.accuracy.applicability.ErrorsByDissimilarity.facts`.
    """
    figure = _FIGURE.get()(figsize=(4.2, 5.2), layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    parts = [(low, one) for low, one in zip((0, *(one["to"] for one in found["parts"])), found["parts"], strict=False)]
    for low, one in parts:
        place = {"x": low, "width": 0.94 * (one["to"] - low), "align": "edge"}
        axis.bar(height=one["error"] or 0, color=LINES[0][0], **place)
        below.bar(height=one["pixels"], color=INK[0], **place)
    for one in (axis, below):
        one.axvline(1, ls="--", color=INK[0], lw=1)
    most = max(one["pixels"] for _, one in parts)
    axis.set(ylim=(0, 1), ylabel="fraction that is wrong", title="Errors by dissimilarity")
    below.set(yscale="log", ylim=(0.5, 60 * max(1, most)), ylabel="test pixels", xlabel="dissimilarity")
    figure.words = (
        "Fraction of the test pixels that are wrong by how unlike the training pixels they are: "
        + ", ".join(f"{one['error']:.3f} of {one['pixels']:,} px to {one['to']:g}" for _, one in parts if one["pixels"])
        + "."
    )
    return figure


@_styled
def areas_figure(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """The area of each class as a bar, and, where it is known, as corrected by the map's errors with its 95% interval.

    Args:
        rows: each with `name`, `colour`, `fraction` of the mapped pixels, and `corrected`, a fraction with `value`,
            `low` and `high`.
    """
    names = [textwrap.fill(row["name"], 24) for row in rows]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = _FIGURE.get()(figsize=(5.2, 0.9 + 0.1 * len(rows) + 0.17 * lines), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        axis.barh(place - 0.14, row["fraction"] * 100, 0.5, color=row["colour"], edgecolor=INK[0], linewidth=0.8)
        one = row["corrected"]
        if not math.isnan(one.value):
            ends = [[max(0, one.value - one.low) * 100], [max(0, one.high - one.value) * 100]] if one.known else None
            axis.errorbar(one.value * 100, place + 0.28, xerr=ends, fmt="D", color=LINES[1][0], capsize=3, markersize=4)
    axis.set_yticks(range(len(rows)), names, fontsize=9)
    axis.invert_yaxis()
    axis.set(title="Area by class", xlabel="% of the mapped area", xlim=(0, None), ylim=(len(rows) - 0.4, -0.6))
    axis.grid(axis="x")
    if not all(math.isnan(row["corrected"].value) for row in rows):
        handles = [Patch(facecolor="none", edgecolor=INK[0]), Line2D([], [], ls="", marker="D", color=LINES[1][0])]
        figure.legend(
            handles, ["in the map", "corrected by its errors, 95% interval"], loc="outside lower left", ncols=2
        )
    figure.words = "; ".join(
        f"{row['name']} {percent(row['fraction'])}"
        + ("" if math.isnan(row["corrected"].value) else f", corrected {percent(row['corrected'].value)}")
        + (f" ({row['corrected'].text(percent)})" if row["corrected"].known else "")
        for row in rows
    )
    return figure


_ROLE_COLOURS = {
    "train": LINES[0][0],
    "validation": "#e0a100",
    "test": "#c2337a",
    "calibration": "#562424",
    "unused": "#8a949d",
}

_USES = {"train": "train", "validation": "validate", "test": "test", "calibration": "calibrate"}

_MOST_TILES = 100
"""Tiles of an overview; of more, every n-th is drawn."""

_CELL = 4.2
"""Width of each part of an overview, inches."""


@_styled
def check_figure(report: Report, progress: Callable[[int, int], None] = lambda done, total: None) -> Picture:
    """A scene at a glance: images, labels, split, pixels per class, leaks by buffer, values of each class.

    Args:
        progress: called with (parts that are drawn, of how many).

    Raises:
        SceneError: if no raster could be opened.
    """
    if report.file is None or not report.scenes:
        raise report.faults[0]
    file, names = report.file, list(report.modalities)
    scenes = report.scenes[:: -(-len(report.scenes) // _MOST_TILES)]
    few_tiles = f" ({len(scenes)} of {report.tiles} tiles)" if len(scenes) < report.tiles else ""
    side = max(24, _LARGEST // math.ceil(math.sqrt(len(scenes))))
    images = {}
    for number, name in enumerate(names):
        progress(number, 2 * len(names))
        with suppress(LandfuseError):  # what cannot be read is among the faults
            seen = [overview(scene, name, side) for scene in scenes if name in scene.modalities]
            title = f"{name}: {seen[0].how}" + ", each tile by itself" * (len(scenes) > 1) + few_tiles
            images[title] = side_by_side([one.on_white for one in seen])
    if report.roles:
        every = report.roles[:: -(-len(report.scenes) // _MOST_TILES)]
        steps = [thinning(scene.grid.height, scene.grid.width, side) for scene in scenes]
        labels = [thinned_classes(scene.labels, step) for scene, step in zip(scenes, steps, strict=True)]
        grey = _blank(file.legend)
        images["labels" + few_tiles] = side_by_side([class_image(label, file.legend, grey) for label in labels])
    if any(role.any() for role in report.roles):
        by_role = np.array([rgb(_ROLE_COLOURS[name]) for name in ("unused", *ROLES)] + [[_blank(())] * 3], np.uint8)
        split = [
            by_role[np.where(label == UNLABELLED, len(by_role) - 1, thinned_classes(role, step))]
            for label, role, step in zip(labels, every, steps, strict=True)
        ]
        images["split" + few_tiles] = side_by_side(split)
    charts: list[Callable[[Axes], None]] = []
    if report.counts:
        charts.append(partial(_draw_counts, report=report))
        learnt = [
            np.where((role == TRAIN) | (not report.counts["train"].any()), scene.labels, UNLABELLED)
            for scene, role in zip(report.scenes, report.roles, strict=True)
        ]
        windows = drawn_windows(learnt, len(file.legend))
        if report.by_buffer:
            charts.append(partial(_draw_leaks, report=report))
        for number, name in enumerate(names, len(names)):
            progress(number, 2 * len(names))
            with suppress(LandfuseError):
                found = drawn_values(report.scenes, learnt, windows, name)
                charts.append(partial(_draw_values, scene=report.scenes[0], name=name, found=found))
    title = f"{file.settings.title or file.settings.name}: {report.tiles} tile{'s' * (report.tiles != 1)}"
    return _sheet(title, images, charts, report)


def _sheet(
    title: str, images: Mapping[str, NDArray[np.uint8]], charts: Sequence[Callable[[Axes], None]], report: Report
) -> Picture:
    """Images, and charts below them, over one legend."""
    parts = len(images), len(charts)
    columns = min((5, 4, 3), key=lambda side: sum(-part % side for part in parts)) if charts else len(images)
    rows = [-(-len(images) // columns), -(-len(charts) // columns)]
    ratio = max((min(2.0, image.shape[0] / image.shape[1]) for image in images.values()), default=1.0)
    classes = report.file.legend if report.file and report.counts else ()
    heights = [_CELL * ratio] * rows[0] + [max(3.4, 1.4 + 0.3 * len(classes))] * rows[1]
    figure = _FIGURE.get()(figsize=(_CELL * columns, sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(sum(rows), columns, squeeze=False, height_ratios=heights)
    places = [*axes[: rows[0]].ravel(), *axes[rows[0] :].ravel()]
    for axis in places:
        axis.axis("off")
    for axis, (words, image) in zip(places, images.items(), strict=False):
        axis.imshow(_thinned(image), interpolation="nearest")
        axis.set_title(textwrap.fill(words, 46))
        if words.startswith("split"):
            roles = [Patch(facecolor=_ROLE_COLOURS[role], label=role) for role, n in report.counts.items() if n.any()]
            axis.legend(handles=roles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, columnspacing=1)
    for axis, draw in zip(axes[rows[0] :].ravel(), charts, strict=False):
        axis.axis("on")
        draw(axis)
    handles = [Patch(facecolor=c.colour, edgecolor=INK[0], label=c.name) for c in classes]
    if handles:
        handles.append(Patch(facecolor=str(_blank(classes) / 255), edgecolor=INK[0], label="no label"))
        room = 13 * _CELL * columns / (6 + max(len(kind.name) for kind in classes))  # about 13 letters an inch
        figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(int(room), len(handles))))
    figure.suptitle(title, fontsize=13)
    figure.words = "\n".join(
        [title, *(f"Note: {note}" for note in report.notes), *(f"Fault: {fault}" for fault in report.faults)]
    )
    return figure


def _draw_counts(axis: Axes, report: Report) -> None:
    """Labelled pixels of each class by role, and how many polygons, blocks or tiles hold them."""
    legend = report.scenes[0].legend
    shown = [role for role, count in report.counts.items() if count.any()]
    for number, role in enumerate(shown):
        places = np.arange(len(legend)) + 0.8 * ((number + 0.5) / len(shown) - 0.5)
        axis.barh(places, report.counts[role], 0.8 / len(shown), color=_ROLE_COLOURS[role])
    most = max(int(count.max()) for count in report.counts.values())
    axis.set(xscale="log", xlim=(0.8, most * (12 if report.grouped else 2)), title="labelled pixels by class and role")
    if report.grouped:
        uses = " / ".join(_USES[role] for role in report.groups)
        axis.set_title(f"labelled pixels by class and role; {report.grouped}\nthat {uses}")
        for place in range(len(legend)):
            numbers = " / ".join(str(report.groups[role][place]) for role in report.groups)
            axis.text(most * 1.3, place, numbers, fontsize=8, va="center")
    _class_rows(axis, legend)
    for place, kind in enumerate(legend):
        axis.plot(0.8, place, "s", color=kind.colour, mec=INK[0], mew=0.6, markersize=7, clip_on=False)
    axis.grid(axis="x")


def _blank(classes: Iterable[LandClass]) -> int:
    """The grey of what has no label: the palest that is unlike the colours of all classes."""
    greys = (grey for grey in (235, 200, 165, 130) if all(np.ptp([*c.rgb, grey]) > 30 for c in classes))
    return next(greys, 235)


def _class_rows(axis: Axes, legend: Legend) -> None:
    names = [textwrap.fill(kind.name, 26, max_lines=2, placeholder=" ...") for kind in legend]
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)


def _draw_leaks(axis: Axes, report: Report) -> None:
    """What leaks within a distance, and what a buffer of that width costs."""
    distances = [row["buffer"] for row in report.by_buffer]
    axis.plot(distances, [100 * row["leaks"] for row in report.by_buffer], label="test pixels this near to training")
    axis.plot(distances, [100 * row["lost"] for row in report.by_buffer], label="training lost to such a buffer")
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xticks([0, 1, 2, 4, 8, 16, 32, 64, 128], ["0", "1", "2", "4", "8", "16", "32", "64", "128"])
    axis.set(title="leaks by buffer", xlabel="distance, px (of a model: halo + core - 1)", ylabel="%", ylim=(-3, 103))
    axis.grid()
    axis.legend()


def _draw_values(axis: Axes, scene: Scene, name: str, found: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    """Median spectra of the classes, or, of one or two bands and of SAR, their quantiles."""
    values, classes = found
    info, legend = scene.modalities[name].info, scene.legend
    units = f"{name}, {info.units}" if info.units else name
    bands = info.names if len(set(info.names)) == len(values) else tuple(str(n + 1) for n in range(len(values)))
    if len(values) > 2 and not in_decibel(scene, name):
        x = info.wavelengths or range(1, len(values) + 1)
        for number, kind in enumerate(legend):
            if (classes == number).any():
                median = np.median(values[:, classes == number], axis=1)
                edge = [withStroke(linewidth=2.6, foreground=INK[0])]  # of pale colours nothing would be seen
                axis.plot(x, median, color=kind.colour, lw=1.8, ls="-", marker="", path_effects=edge)
        if not info.wavelengths and len(values) <= 16:
            axis.set_xticks(x, bands, rotation=90 if max(map(len, bands)) > 3 else 0)
        axis.set(title=f"{name}: median of each class", ylabel=units, xlabel="nm" if info.wavelengths else "band")
        axis.grid()
        return
    height = 0.8 / len(values)
    for band, row in enumerate(values):
        for number, kind in enumerate(legend):
            if (classes == number).any():
                low, first, middle, third, high = np.percentile(row[classes == number], (5, 25, 50, 75, 95))
                place = number + height * (band + 0.5) - 0.4
                axis.plot((low, high), (place, place), color=INK[0], ls="-", lw=1, marker="")
                axis.barh(place, third - first, 0.8 * height, first, color=kind.colour, edgecolor=INK[0], lw=0.6)
                axis.plot(middle, place, "|", color="black", markersize=8, mew=1.5)
    axis.use_sticky_edges = False
    order = "" if len(values) == 1 else f"; from above: bands {', '.join(bands)}"
    _class_rows(axis, legend)
    axis.set(title=f"{name}: 5, 25, 50, 75 and 95%{order}", xlabel=units)
    axis.grid(axis="x")


@_styled
def forest_figure(rows: Mapping[str, Mapping[str, Interval]], title: str) -> Picture:
    """Differences with their 95% intervals against zero: a line for each name, a panel for each score.

    Args:
        rows: name -> score -> difference; filled where the whole interval is on one side of zero.
        title: what is subtracted from what.
    """
    names = [textwrap.fill(name, 36) for name in rows]
    heights = np.array([1 + 0.55 * name.count("\n") for name in names])
    places = np.cumsum(heights) - heights / 2
    scores = list(dict.fromkeys(score for row in rows.values() for score in row))
    size = (3.2 + 1.9 * len(scores), 1.4 + 0.3 * float(heights.sum()))
    figure = _FIGURE.get()(figsize=size, layout="constrained")
    for axis, score in zip(
        figure.subplots(1, len(scores), squeeze=False, sharex=True, sharey=True)[0], scores, strict=True
    ):
        for place, row in zip(places, rows.values(), strict=True):
            if score not in row or math.isnan(row[score].value):
                continue
            one, colour = row[score], LINES[0 if row[score].excludes_zero else 5][0]
            ends = [[one.value - one.low], [one.high - one.value]] if one.known else None
            fill = colour if one.excludes_zero else "white"
            axis.errorbar(one.value, place, xerr=ends, fmt="o", color=colour, mfc=fill, capsize=3, markersize=5)
        axis.axvline(0, color=INK[0], ls="--", lw=1, marker="")
        axis.set(title=score, ylim=(heights.sum(), 0))
        axis.set_yticks(places, names, fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+.4g}" if value else "0")
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x")
    figure.suptitle(
        "\n".join(textwrap.wrap(f"{title}; filled: the interval leaves out 0", int(11 * size[0]))), fontsize=10
    )
    figure.words = "; ".join(
        f"{name}, {score}: {one.value:+.4f} ({one.text('{:+.4f}'.format)})"
        for name, row in rows.items()
        for score, one in row.items()
    )
    return figure


@_styled
def curves_figure(
    history: Sequence[Mapping[str, float]], chosen: int | None, kinds: Sequence[str] = ("loss", "score")
) -> Picture:
    """Loss and validation scores over the epochs, each zoomed to its values.

    Args:
        history: rows as `landfuse.training.run.read_history` returns them.
        chosen: the epoch that was kept; like those of `history` counted from 0, and drawn from 1 as training says it.
        kinds: `loss`, `score` or both, side by side.
    """
    figure = _FIGURE.get()(figsize=(4.2 * len(kinds), 3.4), layout="constrained")
    names = list(dict.fromkeys(name for row in history for name in row if name != "epoch"))
    losses = [
        value for row in history for name, value in row.items() if name != "epoch" and not name.startswith("val_")
    ]
    said = []
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for name in [name for name in names if name.startswith("val_") == (kind == "score")]:
            points = [(row["epoch"] + 1, row[name]) for row in history if name in row]
            label = name.removeprefix("val_").removeprefix("train_")
            axis.plot(*zip(*points, strict=True), label=label)
            said.append(f"{label} from {points[0][1]:.3f} to {points[-1][1]:.3f}")
        if chosen is not None:
            axis.axvline(chosen + 1, color=INK[0], ls=":", lw=1.2, marker="", label="kept epoch")
        axis.set(title="Training loss" if kind == "loss" else "Validation scores", xlabel="epoch", ylabel=kind)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if kind == "loss" and losses and min(losses) > 0 and max(losses) > 20 * min(losses):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.minorticks_off()
        _finish(axis)
    kept = "" if chosen is None else f" The dotted line marks epoch {chosen + 1}, which was kept."
    figure.words = f"{'; '.join(said)}.{kept}"
    return figure


@_styled
def balance_figure(rows: Sequence[Mapping[str, float]], modalities: Sequence[str]) -> Picture:
    """The balance of a denoiser's modalities: dominance, fraction hidden and weight of the loss over the steps.

    Where a linear classifier of its features was scored, its accuracy is the last panel.

    Args:
        rows: with `step`, and `D_`, `r_` and `w_` before each modality's name; some with `probe_training` and
            `probe_validation`.
    """
    probed = [row for row in rows if "probe_validation" in row]
    figure = _FIGURE.get()(figsize=(15 if probed else 11, 3.4), layout="constrained")
    titles = {"D": "dominance D", "r": "fraction of samples in which it is hidden, r", "w": "weight of its loss, w"}
    axes = figure.subplots(1, 3 + bool(probed))
    if probed:
        for name in ("training", "validation"):
            axes[3].plot(
                [row["step"] for row in probed], [row[f"probe_{name}"] for row in probed], label=f"{name} pixels"
            )
        axes[3].set(title="accuracy of a linear classifier of the features", xlabel="step")
        _finish(axes[3])
    for axis, (letter, title) in zip(axes[:3], titles.items(), strict=True):
        for name in modalities:
            points = [(row["step"], row[f"{letter}_{name}"]) for row in rows if f"{letter}_{name}" in row]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set(title=title, xlabel="step")
        if letter == "D":
            axis.set_yscale("log", nonpositive="clip")
        else:
            axis.set_ylim(0, 1)
        _finish(axis)
    return figure


def _finish(axis: Axes) -> None:
    axis.grid()
    if axis.lines:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
