"""Curves of a report as places on a plane; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 460, 280
"""Size of a chart, in its own units."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        name: of it.
        points: `x,y x,y ...` in the chart's units.
        places: the same as pairs, where they are few enough to be marked.
        style: 0 to 5; each has a colour, dashes and a mark of its own.
    """

    name: str
    points: str
    places: tuple[tuple[float, float], ...]
    style: int


@dataclass(frozen=True)
class Chart:
    """Curves on a plane.

    Args:
        title: of it.
        x_title: of the axis.
        y_title: of the axis.
        lines: the curves.
        x_ticks: (place, label).
        y_ticks: (place, label).
        marked: a place on the x axis, e.g. of the epoch that was kept; None for none.
        words: what is to be seen, for those who do not see it.
    """

    title: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marked: float | None
    words: str

    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM


def chart(
    title: str,
    x_title: str,
    y_title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    words: str,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    marked: float | None = None,
) -> Chart:
    """Puts curves onto a plane.

    Args:
        title: of the chart.
        x_title: of the axis.
        y_title: of the axis.
        curves: name -> (x, y); those that are not finite are left out.
        words: for those who do not see it.
        y_range: of the axis; by default what the curves take.
        x_range: likewise.
        marked: a place on the x axis.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in curves.items()
    }
    every = [point for points in finite.values() for point in points] or [(0.0, 0.0)]
    low_x, high_x = x_range or (min(x for x, _ in every), max(x for x, _ in every))
    low_y, high_y = y_range or (min(0.0, min(y for _, y in every)), max(y for _, y in every))
    x_ticks, y_ticks = _ticks(low_x, high_x), _ticks(low_y, high_y)
    if y_range is None and y_ticks:
        high_y = max(high_y, y_ticks[-1])

    def across(x: float) -> float:
        return round(_LEFT + (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - _LEFT - _RIGHT), 1)

    def up(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - low_y) / ((high_y - low_y) or 1) * (HEIGHT - _TOP - _BOTTOM), 1)

    lines = []
    for style, (name, points) in enumerate(finite.items()):
        placed = tuple((across(x), up(y)) for x, y in points)
        marks = placed if len(placed) <= 40 else ()
        lines.append(Line(name, " ".join(f"{x:g},{y:g}" for x, y in placed), marks, style % 6))
    return Chart(
        title,
        x_title,
        y_title,
        tuple(lines),
        tuple((across(x), f"{x:g}") for x in x_ticks),
        tuple((up(y), f"{y:g}") for y in y_ticks),
        None if marked is None else across(marked),
        words,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, about five."""
    if not high > low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def training_charts(history: Sequence[Mapping[str, float]], kept: int | None) -> list[Chart]:
    """Losses and validation scores over the epochs.

    Args:
        history: rows as `landfuse.training.lightning_task.read_history` gives them.
        kept: the epoch that was chosen.
    """
    names = list(dict.fromkeys(name for row in history for name in row if name != "epoch"))
    curves = {name: [(row["epoch"], row[name]) for row in history if name in row] for name in names}
    losses = {name.removeprefix("train_"): points for name, points in curves.items() if not name.startswith("val_")}
    scores = {name.removeprefix("val_"): points for name, points in curves.items() if name.startswith("val_")}
    mark = None if kept is None else float(kept)
    chosen = "" if kept is None else f" The dotted line marks epoch {kept}, which was kept."
    charts = []
    if losses:
        told = "; ".join(f"{name} from {_ends(points)}" for name, points in losses.items() if points)
        charts.append(chart("Training loss", "epoch", "loss", losses, words=f"{told}.{chosen}", marked=mark))
    if scores:
        told = "; ".join(f"{name} from {_ends(points)}" for name, points in scores.items() if points)
        charts.append(
            chart("Validation scores", "epoch", "score", scores, words=f"{told}.{chosen}", y_range=(0, 1), marked=mark)
        )
    return charts


def _ends(points: Sequence[tuple[float, float]]) -> str:
    return f"{points[0][1]:.3f} to {points[-1][1]:.3f}"


def reliability_chart(calibration: Mapping[str, Any]) -> Chart | None:
    """How often the class named is right, by how probable it was said to be; None where nothing is told.

    Args:
        calibration: as `scores.json` holds it.
    """
    told = calibration.get("test") or {}
    titles = {"before": "as trained", "after": "in the bundle"}
    curves = {
        f"{title}, ECE {told[key]['ECE']:.3f}": [(row["stated"], row["accuracy"]) for row in told[key]["bins"]]
        for key, title in titles.items()
        if told.get(key) and told[key].get("ECE") is not None
    }
    if not curves:
        return None
    words = (
        "Share of pixels that are right against the probability stated for them; on the diagonal the two agree. "
        + "; ".join(curves)
        + "."
    )
    return chart(
        "Reliability",
        "probability stated",
        "share that is right",
        {"stated = true": [(0.0, 0.0), (1.0, 1.0)], **curves},
        words=words,
        y_range=(0, 1),
        x_range=(0, 1),
    )
