"""The numbers of a report: scores of the map with intervals, areas, and what they say in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.bootstrap import BlockIntervals, Interval, block_confusions, block_intervals
from landfuse.accuracy.confusion import Confusion
from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED, Legend

OF_CLASS = ("precision", "recall", "F1", "IoU")

_REPLICATES = 2000
_AT_ONCE = 1 << 22  # numbers held at a time while resampling


@dataclass(frozen=True)
class MapScores:
    """Scores of a map on the test labels.

    Args:
        confusion: of all tiles.
        intervals: of the scores of all; None where all scored pixels lie in one block.
        of_class: precision, recall, F1 and IoU of each class, in order; NaN as ends where there are no intervals.
        block: side of the blocks that were drawn, px.
    """

    confusion: Confusion
    intervals: BlockIntervals | None
    of_class: dict[str, tuple[Interval, ...]]
    block: int

    @property
    def overall(self) -> dict[str, Interval]:
        """OA, AA, kappa, mF1 and mIoU; NaN as ends where there are no intervals."""
        if self.intervals is not None:
            return self.intervals.scores
        values = self.confusion.scores()
        return {name: Interval(values[name], math.nan, math.nan) for name in ("OA", "AA", "kappa", "mF1", "mIoU")}


class Tally:
    """Gathers what the tiles say.

    Args:
        legend: the K classes.
        block: side of the blocks of ground, px.
    """

    def __init__(self, legend: Legend, block: int) -> None:
        self.legend, self.block = legend, block
        self.confusion = Confusion.of(legend)
        self.mapped = np.zeros(len(legend), np.int64)
        self.unmapped = 0
        self.square_metres: NDArray[np.float64] | None = np.zeros(len(legend))
        self._blocks: list[NDArray[np.int64]] = []

    def add(
        self, truth: NDArray[np.uint8], mapped: NDArray[np.uint8], pixel_area: float | None
    ) -> tuple[float, int, int]:
        """Adds a tile.

        Args:
            truth: (H, W), the labels that the map is scored by.
            mapped: (H, W), the map.
            pixel_area: in square metres; None where it is not known.

        Returns:
            Its overall accuracy (NaN where nothing is scored), its scored pixels, and those labelled but not mapped.
        """
        K = self.confusion.classes
        counts = np.zeros(256, np.int64)
        for row in mapped:  # of the whole map it would take 8 bytes a pixel
            counts += np.bincount(row, minlength=256)
        self.mapped += counts[:K]
        self.unmapped += int(counts[UNLABELLED])
        if pixel_area is None or self.square_metres is None:
            self.square_metres = None
        else:
            self.square_metres += counts[:K] * pixel_area
        own = Confusion.of(self.legend)
        own.update(truth, mapped)
        self.confusion += own
        self._blocks.append(block_confusions(truth, mapped, self.block, K))
        return own.overall_accuracy, own.pixels, own.unmapped

    def scores(self) -> MapScores:
        """Scores with 95% intervals from blocks that are drawn with replacement."""
        blocks = np.concatenate(self._blocks) if self._blocks else np.zeros((0, *self.confusion.matrix.shape), np.int64)
        values = dict(zip(OF_CLASS, _of_class(blocks.sum(axis=0)[None])[:, 0], strict=True))
        try:
            intervals = block_intervals(blocks, _REPLICATES, scored=self.legend.scored)
        except SplitError:  # all in one block
            alone = {
                name: tuple(Interval(float(value), math.nan, math.nan) for value in row) for name, row in values.items()
            }
            return MapScores(self.confusion, None, alone, self.block)
        drawn = _drawn(blocks)
        of_class = {
            name: tuple(_interval(value, drawn[i, :, k]) for k, value in enumerate(values[name]))
            for i, name in enumerate(OF_CLASS)
        }
        return MapScores(self.confusion, intervals, of_class, self.block)


def _of_class(matrices: NDArray[np.number]) -> NDArray[np.float64]:
    """Precision, recall, F1 and IoU of many confusion matrices by the rules of `Confusion`: (R, K, K) -> (4, R, K)."""
    m = np.asarray(matrices, np.float64)
    hits = np.diagonal(m, axis1=1, axis2=2)
    truth, mapped = m.sum(axis=2), m.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([hits / mapped, hits / truth, 2 * hits / (truth + mapped), hits / (truth + mapped - hits)])


def _drawn(blocks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores of each class on the same draws of blocks that `block_intervals` makes: (4, R, K)."""
    B, K = blocks.shape[:2]
    rng = np.random.default_rng(0)
    flat = blocks.reshape(B, K * K).astype(np.float64)
    parts = []
    step = max(1, _AT_ONCE // (B + K * K))
    for start in range(0, _REPLICATES, step):
        times = rng.multinomial(B, np.full(B, 1 / B), size=min(step, _REPLICATES - start))
        parts.append(_of_class((times.astype(np.float64) @ flat).reshape(-1, K, K)))
    return np.concatenate(parts, axis=1)


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    defined = drawn[np.isfinite(drawn)]
    if math.isnan(value) or not defined.size:
        return Interval(float(value), math.nan, math.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def findings(scores: MapScores, legend: Legend, leak_share: float | None) -> list[str]:
    """What the scores say, in plain sentences."""
    confusion, said = scores.confusion, []
    if not confusion.pixels:
        return ["No test label lies on the map, so that nothing can be said of its accuracy."]
    accuracy = scores.overall["OA"]
    bounds = (
        "" if math.isnan(accuracy.low) else f" (95% interval {accuracy.low * 100:.0f} to {accuracy.high * 100:.0f})"
    )
    said.append(
        f"Of 100 test pixels the map names {accuracy.value * 100:.0f} rightly{bounds}; "
        f"{confusion.pixels:,} pixels were scored."
    )
    commonest = int(confusion.support.argmax())
    share = confusion.support[commonest] / confusion.pixels
    said.append(
        f"To call every pixel {legend.names[commonest]}, the commonest class, would be right at "
        f"{share * 100:.0f} of 100."
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
            f"{confusion.unmapped_share * 100:.1f}% of the labelled test pixels have no class in the map; "
            "they are not scored."
        )
    if leak_share:
        said.append(
            f"{leak_share * 100:.1f}% of the test pixels were labelled from a view that holds a training or validation "
            "pixel: their scores flatter the map."
        )
    elif leak_share == 0:
        said.append("No test pixel was labelled from a view that holds a training or validation pixel.")
    return said


def warnings(scores: MapScores, told: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before trusting the numbers.

    Args:
        scores: of this map.
        told: the scores that the run wrote when it ended.
    """
    said = []
    if scores.intervals is None:
        said.append("All scored pixels lie in one block of ground, so that no interval can be given.")
    elif scores.intervals.rough:
        said.append(
            f"Only {scores.intervals.blocks} blocks of ground hold scored pixels: the intervals are rather too narrow."
        )
    own = scores.confusion.scores()
    written = told.get("OA"), told.get("pixels")
    if written[0] is not None and (own["pixels"] != written[1] or abs(own["OA"] - written[0]) > 5e-5):
        said.append(
            f"The run wrote OA {written[0]:.4f} on {written[1]:,} pixels when it ended, this map has {own['OA']:.4f} "
            f"on {own['pixels']:,}: the map, the labels or the machine are not those of the run."
        )
    elif told.get("mIoU") is not None and abs(own["mIoU"] - told["mIoU"]) > 5e-5:
        said.append(
            f"The run wrote mIoU {told['mIoU']:.4f} when it ended, this map has {own['mIoU']:.4f}: other classes enter "
            "the means (`scored` in the scene file) than then."
        )
    return said


def area_rows(tally: Tally, legend: Legend) -> list[dict[str, Any]]:
    """Each class with its pixels, share of the mapped pixels, and hectares (None where pixels have no known area)."""
    total = max(1, int(tally.mapped.sum()))
    metres: Sequence[float] | None = None if tally.square_metres is None else tally.square_metres.tolist()
    return [
        {
            "name": c.name,
            "colour": c.colour,
            "pixels": int(tally.mapped[k]),
            "share": float(tally.mapped[k] / total),
            "hectares": None if metres is None else metres[k] / 10_000,
        }
        for k, c in enumerate(legend)
    ]
