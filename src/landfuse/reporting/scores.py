"""The numbers of a report: areas, and what the scores say in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landfuse.accuracy.bootstrap import BlockIntervals
from landfuse.accuracy.confusion import Confusion
from landfuse.legend import Legend
from landfuse.scenes.land_cover_map import ClassArea


def area_rows(legend: Legend, tiles: Sequence[Mapping[str, ClassArea]]) -> list[dict[str, Any]]:
    """Each class with its pixels, fraction of the mapped pixels, and hectares (None where a tile's are not known)."""
    rows: list[dict[str, Any]] = []
    for c in legend:
        found = [areas[c.name] for areas in tiles]
        hectares = [one.hectares for one in found if one.hectares is not None]
        rows.append(
            {
                "name": c.name,
                "colour": c.colour,
                "pixels": sum(one.pixels for one in found),
                "hectares": sum(hectares) if len(hectares) == len(found) else None,
            }
        )
    total = max(1, sum(row["pixels"] for row in rows))
    return [{**row, "fraction": row["pixels"] / total} for row in rows]


def findings(confusion: Confusion, intervals: BlockIntervals, legend: Legend, leak_fraction: float | None) -> list[str]:
    """What the scores say, in plain sentences."""
    said = []
    if not confusion.pixels:
        return ["No test label is on the map, so its accuracy is not known."]
    accuracy = intervals.scores["OA"]
    bounds = (
        "" if math.isnan(accuracy.low) else f" (95% interval {accuracy.low * 100:.0f} to {accuracy.high * 100:.0f})"
    )
    said.append(
        f"The map names {accuracy.value * 100:.0f} of 100 test pixels correctly{bounds}; "
        f"{confusion.pixels:,} pixels were scored."
    )
    commonest = int(confusion.support.argmax())
    fraction = confusion.support[commonest] / confusion.pixels
    said.append(
        f"Naming every pixel {legend.names[commonest]}, the commonest class, would be correct at "
        f"{fraction * 100:.0f} of 100."
    )
    present = [k for k in range(len(legend)) if confusion.support[k] and legend[k].scored]
    f1 = confusion.f1
    best, worst = (extreme(present, key=lambda k: f1[k], default=0) for extreme in (max, min))
    if best != worst:
        said.append(
            f"It knows {legend.names[best]} best (F1 {f1[best]:.2f}) and {legend.names[worst]} least "
            f"(F1 {f1[worst]:.2f})."
        )
    wrong = confusion.matrix.copy()
    np.fill_diagonal(wrong, 0)
    if wrong.any():
        t, p = np.unravel_index(int(wrong.argmax()), wrong.shape)
        said.append(
            f"The commonest mistake: {legend.names[t]} mapped as {legend.names[p]}, {wrong[t, p]:,} pixels, "
            f"{wrong[t, p] / confusion.support[t] * 100:.0f}% of all {legend.names[t]} in the test."
        )
    if confusion.unmapped:
        said.append(
            f"{confusion.unmapped_fraction * 100:.1f}% of the labelled test pixels have no class in the map; "
            "they are not scored."
        )
    if leak_fraction:
        said.append(
            f"{leak_fraction * 100:.1f}% of the test pixels were labelled from a view that holds a training or "
            "validation pixel: their scores are too high."
        )
    elif leak_fraction == 0:
        said.append("No test pixel was labelled from a view that holds a training or validation pixel.")
    return said


def warnings(confusion: Confusion, intervals: BlockIntervals, written: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before trusting the numbers.

    Args:
        confusion: of this map.
        intervals: of its scores.
        written: the scores that the run wrote when it ended.
    """
    said = []
    if not intervals.replicates:
        said.append("All scored pixels are in one block of ground, so no interval can be given.")
    elif intervals.rough:
        said.append(
            f"Only {intervals.blocks} blocks of ground hold scored pixels: the intervals are rather too narrow."
        )
    own = confusion.scores()
    accuracy, pixels = written.get("OA"), written.get("pixels")
    if accuracy is not None and (own["pixels"] != pixels or abs(own["OA"] - accuracy) > 5e-5):
        said.append(
            f"The run wrote OA {accuracy:.4f} on {pixels:,} pixels when it ended, this map has {own['OA']:.4f} "
            f"on {own['pixels']:,}: the map, the labels or the machine are not those of the run."
        )
    elif written.get("mIoU") is not None and abs(own["mIoU"] - written["mIoU"]) > 5e-5:
        said.append(
            f"The run wrote mIoU {written['mIoU']:.4f} when it ended, this map has {own['mIoU']:.4f}: other classes "
            "enter the means (`scored` in the scene file) than then."
        )
    return said
