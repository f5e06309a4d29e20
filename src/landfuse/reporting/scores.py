"""The numbers of a report: areas, and what the scores say in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landfuse.accuracy.bootstrap import BlockIntervals, Interval, area_intervals
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import Tally
from landfuse.legend import Legend
from landfuse.markup import decimals, percent
from landfuse.scenes.land_cover_map import ClassArea

if TYPE_CHECKING:
    from landfuse.accuracy.estimate import AccuracyEstimate


def area_rows(
    tally: Tally,
    tiles: Sequence[Mapping[str, ClassArea]],
    replicates: int = 0,
    sampled: AccuracyEstimate | None = None,
) -> list[dict[str, Any]]:
    """Each class with its pixels, fraction of the mapped area, hectares (None where a tile's are not known), and its
    fraction as corrected by the errors on the test labels, or as estimated from a sample, an interval."""
    rows: list[dict[str, Any]] = []
    for c in tally.legend:
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
    known = all(row["hectares"] is not None for row in rows)
    sizes = np.array([row["hectares" if known else "pixels"] for row in rows], float)
    if sampled is not None:
        fractions_of = {c.name: Interval(c.fraction.value, c.fraction.low, c.fraction.high) for c in sampled.classes}
        corrected = [fractions_of[c.name] for c in tally.legend]
    else:
        corrected = area_intervals(tally.blocks, sizes, replicates if len(tally.blocks) > 1 else 0)
    fractions = (sizes / (sizes.sum() or 1)).tolist()
    return [{**row, "fraction": f, "corrected": one} for row, f, one in zip(rows, fractions, corrected, strict=True)]


def findings(
    confusion: Confusion,
    intervals: BlockIntervals,
    legend: Legend,
    leak_fraction: float | None,
    cross_validated: str = "",
    reach: int = 0,
) -> list[str]:
    """What the scores say, in plain sentences; `reach`: how far diffusion features see beyond the view, px."""
    said = []
    if not confusion.pixels:
        return ["No test label is on the map, so its accuracy is not known."]
    accuracy = intervals.scores["OA"]
    bounds = f" (95% interval {accuracy.text(percent)})" if accuracy.known else ""
    subject = "The models of the folds name" if cross_validated else "The map names"
    said.append(
        f"{subject} {percent(accuracy.value)} of the test pixels correctly{bounds}; "
        f"{confusion.pixels:,} pixels were scored."
    )
    commonest = int(confusion.support.argmax())
    fraction = confusion.support[commonest] / confusion.pixels
    said.append(
        f"Naming every pixel {legend.names[commonest]}, the commonest class, would be correct at "
        f"{percent(float(fraction))} of them."
    )
    present = [k for k in range(len(legend)) if confusion.support[k] and legend[k].scored]
    f1 = confusion.f1
    best, worst = (extreme(present, key=lambda k: f1[k], default=0) for extreme in (max, min))
    if best != worst:
        said.append(
            f"It knows {legend.names[best]} best (F1 {decimals(f1[best])}) and {legend.names[worst]} least "
            f"(F1 {decimals(f1[worst])})."
        )
    wrong = confusion.matrix.copy()
    np.fill_diagonal(wrong, 0)
    if wrong.any():
        t, p = np.unravel_index(int(wrong.argmax()), wrong.shape)
        said.append(
            f"The commonest mistake: {legend.names[t]} mapped as {legend.names[p]}, {wrong[t, p]:,} pixels, "
            f"{percent(float(wrong[t, p] / confusion.support[t]))} of all {legend.names[t]} in the test."
        )
    if confusion.unmapped:
        said.append(
            f"{percent(confusion.unmapped_fraction)} of the labelled test pixels have no class in the map; "
            "they are not scored."
        )
    view = f"a view, with the {reach} px around it that its diffusion features see," if reach else "a view"
    return said + leak_words(leak_fraction, view)


def leak_words(fraction: float | None, view: str) -> list[str]:
    """A sentence on test pixels that leak into training; none where that is not known."""
    if fraction is None:
        return []
    if not fraction:
        return [f"No test pixel was labelled from {view} that holds a training or validation pixel."]
    return [
        f"{percent(fraction)} of the test pixels were labelled from {view} that holds a training or validation pixel: "
        "their scores are too high."
    ]


def cross_validation_words(measured: str) -> list[str]:
    """What a reader has to know of a model that learnt from all labels, if it did: how it was scored."""
    if not measured:
        return []
    return [
        f"This model learnt from all labels, and none was kept for a test. The scores are {measured}: test pixels are, "
        "on this page, all labelled pixels, each mapped by the model of a fold that had not learnt it. A reference "
        "sample (landfuse sample) measures this map."
    ]


def calibration_words(written_run: Mapping[str, Any]) -> list[str]:
    """A sentence on calibration that made the probabilities of a run worse, if it did."""
    calibration = written_run.get("calibration") or {}
    before, after = ((calibration.get("test") or {}).get(key) or {} for key in ("before", "after"))
    worse = [
        f"{what} {decimals(before[key])} as trained, {decimals(after[key])} in the bundle"
        for key, what in (("ECE", "calibration error (ECE)"), ("NLL", "negative log-likelihood"))
        if before.get(key) is not None and after.get(key) is not None and after[key] > before[key] + 0.0005
    ]
    if not worse:
        return []
    fit = [((calibration.get("validation") or {}).get(key) or {}).get("ECE") for key in ("before", "after")]
    pixels = calibration["validation"]["after"]["pixels"] if None not in fit else 0
    on_fit = (
        f" It was fitted to {pixels:,} validation pixels, whose error went from {decimals(fit[0])} to "
        f"{decimals(fit[1])}: they are too few, or of other ground than the test."
    )
    return [
        f"Calibration made the stated probabilities worse on the test pixels: {'; '.join(worse)}."
        f"{on_fit if pixels else ''} The classes of the map are the same with and without it; do not rely on its "
        "probabilities."
    ]


def warnings(confusion: Confusion, intervals: BlockIntervals, written_run: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before trusting the numbers.

    Args:
        written_run: what the run wrote into its `scores.json` when it ended.
    """
    said = []
    if not intervals.replicates:
        said.append("All scored pixels are in one block of ground, so no interval can be given.")
    elif not intervals.scores["OA"].known:
        said.append(
            "All blocks of ground are scored alike, so no interval can be given: it comes from how blocks differ."
        )
    elif intervals.rough:
        said.append(
            f"Only {intervals.blocks} blocks of ground hold scored pixels: the intervals are rather too narrow."
        )
    said += calibration_words(written_run)
    written, own = written_run["test"], confusion.scores()
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
