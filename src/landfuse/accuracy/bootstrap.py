"""How certain plain scores are: resampling by blocks of ground, and whether two maps differ.

Neighbouring pixels are right or wrong together, so a million of them carry far less information than a million
independent ones. Blocks of ground, drawn with replacement, keep that dependence: the spread of a score over such draws
is its uncertainty. It holds if blocks are larger than the distance over which errors are correlated, and there are some
dozens of them.

The intervals cover the choice of the ground that was labelled, as if other blocks of the same land had been labelled
instead. They do not cover a bias in that choice: for the accuracy of a whole map, see `landfuse.accuracy.estimate`.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 8.6 (blocks) and 13.3 (percentiles);
Lahiri 2003, doi:10.1007/978-1-4757-3803-2, chapter 12 (spatial data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED

SCORES = ("OA", "AA", "kappa", "mF1", "mIoU")
OF_CLASS = ("precision", "recall", "F1", "IoU")

_AT_ONCE = 1 << 22  # numbers held at a time while resampling


@dataclass(frozen=True)
class Interval:
    """A score and its 95% interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether the ends differ; where all blocks agree, as without any error, they cannot give an interval."""
        return self.low < self.high

    def text(self, form: Callable[[float], str]) -> str:
        """The ends in words, with as many digits as they differ in; "no interval" where they do not."""
        if not self.known:
            return "no interval"
        low, high = form(self.low), form(self.high)
        if low == high:
            low, high = (f"{end:.4%}" if "%" in low else f"{end:.6f}" for end in (self.low, self.high))
        return f"{low} to {high}"

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0; of a difference: whether it is more than chance."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class BlockIntervals:
    """Scores, or differences of scores, with 95% intervals from resampled blocks.

    Args:
        scores: OA, AA, kappa, mF1 and mIoU.
        of_class: precision, recall, F1 and IoU, each of all classes, in order.
        blocks: number of blocks with scored pixels.
        replicates: number of draws; 0 for none, which leaves the ends NaN.
    """

    scores: dict[str, Interval]
    of_class: dict[str, tuple[Interval, ...]]
    blocks: int
    replicates: int

    @property
    def f1(self) -> tuple[Interval, ...]:
        """F1 of each class, in order."""
        return self.of_class["F1"]

    @property
    def rough(self) -> bool:
        """Whether there are so few blocks that the intervals come out too narrow."""
        return self.blocks < 30

    def to_dict(self, names: Sequence[str], block: int) -> dict[str, object]:
        """The scores and the F1 of each class, as `landfuse evaluate` writes them; `block`: side of the blocks, px."""
        return {
            "interval": 0.95,
            "block, px": block,
            "blocks": self.blocks,
            "replicates": self.replicates,
            "scores": {name: asdict(one) for name, one in self.scores.items()},
            "F1": {name: asdict(one) for name, one in zip(names, self.f1, strict=True)},
        }


def block_confusions(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], side: int, classes: int
) -> NDArray[np.int64]:
    """Confusion matrices of square blocks of a map.

    Args:
        truth: (H, W) uint8, 0..K-1 or `UNLABELLED`.
        prediction: (H, W) uint8, 0..K-1 or `UNLABELLED`; pixels without a class are not scored.
        side: of the blocks, px; they begin at pixel 0, those at the far edges are smaller.
        classes: K.

    Returns:
        (B, K, K), rows truth, columns prediction; only of the B blocks that hold scored pixels.
    """
    size = classes * classes
    counts = [np.zeros((0, size), np.int64)]
    for top in range(0, truth.shape[0], side):  # the places of a whole map's pixels would take 40 bytes each
        t, p = truth[top : top + side], prediction[top : top + side]
        row, col = np.nonzero((t != UNLABELLED) & (p != UNLABELLED))
        pair = t[row, col].astype(np.int64) * classes + p[row, col]
        there, block = np.unique(col // side, return_inverse=True)
        counts.append(np.bincount(block * size + pair, minlength=there.size * size).reshape(-1, size))
    return np.concatenate(counts).reshape(-1, classes, classes)


def scores_of(
    matrices: NDArray[np.number], scored: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scores of many confusion matrices at once, by the rules of `Confusion`.

    Args:
        matrices: (R, K, K), rows truth, columns prediction.
        scored: (K,), which classes enter the means (`Legend.scored`); all if left out.

    Returns:
        (R, 5) in the order of `SCORES`, and (R, 4, K) in the order of `OF_CLASS`; NaN where a score is not defined.
    """
    m = np.asarray(matrices, np.float64)
    hits = np.diagonal(m, axis1=1, axis2=2)
    truth, mapped = m.sum(axis=2), m.sum(axis=1)
    n = truth.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hits / mapped, hits / truth
        f1, iou = 2 * hits / (truth + mapped), hits / (truth + mapped - hits)
        right = hits.sum(axis=1)
        by_chance = (truth * mapped).sum(axis=1)
        kappa = (n * right - by_chance) / (n * n - by_chance)
        present = truth > 0 if scored is None else (truth > 0) & scored
        count = present.sum(axis=1)
        aa, mf1, miou = (np.where(present, of_class, 0.0).sum(axis=1) / count for of_class in (recall, f1, iou))
        result = np.stack([right / n, aa, kappa, mf1, miou], axis=1)
    return np.where(np.isfinite(result), result, np.nan), np.stack([precision, recall, f1, iou], axis=1)


def block_intervals(
    confusions: NDArray[np.int64], replicates: int = 2000, seed: int = 0, scored: NDArray[np.bool_] | None = None
) -> BlockIntervals:
    """Scores of a map with 95% intervals: blocks are drawn with replacement, ends are percentiles.

    Args:
        confusions: (B, K, K) of the blocks.
        replicates: number of draws; 0 gives the scores alone.
        scored: see `scores_of`.

    Raises:
        SplitError: if there are fewer than two blocks to draw from.
    """
    values = scores_of(confusions.sum(axis=0)[None], scored)
    return _intervals(values, _resample([confusions], replicates, seed, scored)[0], len(confusions))


def difference_intervals(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    replicates: int = 2000,
    seed: int = 0,
    scored: NDArray[np.bool_] | None = None,
) -> BlockIntervals:
    """Scores of the first map less those of the second, with 95% intervals: both are scored on the same draws.

    Args:
        first: (B, K, K) of the blocks, with the same labelled pixels as `second`.
        second: (B, K, K) of the same blocks.
        scored: see `scores_of`.

    Raises:
        SplitError: if there are fewer than two blocks.
        ValueError: if the two do not hold the same truth.
    """
    if first.shape != second.shape or (first.sum(axis=2) != second.sum(axis=2)).any():
        raise ValueError("the two maps have to be scored on the same pixels of the same blocks")
    (a, a_class), (b, b_class) = (scores_of(one.sum(axis=0)[None], scored) for one in (first, second))
    (c, c_class), (d, d_class) = _resample([first, second], replicates, seed, scored)
    return _intervals((a - b, a_class - b_class), (c - d, c_class - d_class), len(first))


def area_intervals(
    confusions: NDArray[np.int64], sizes: NDArray[np.floating], replicates: int = 2000, seed: int = 0
) -> list[Interval]:
    """The fraction of the ground that each class takes, corrected by the errors on the scored pixels: K intervals.

    Right if the errors in the mapped pixels are like those in the scored ones: sure only of a sample by chance.

    Args:
        confusions: (B, K, K) of the blocks.
        sizes: (K,) pixels or hectares that are mapped as each class.
        replicates: number of draws; 0 gives the values alone.

    Returns:
        NaN for all where no scored pixel is mapped as some class of the map, so that its errors are not known.

    Source: Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015, equation 9; the spread is that of drawn blocks.
    """
    weights = sizes / (sizes.sum() or 1)
    whole = confusions.sum(axis=0)
    mapped = whole.sum(axis=0)
    if not sizes.any() or (mapped == 0)[sizes > 0].any():
        return [Interval(math.nan, math.nan, math.nan)] * len(sizes)
    truth = whole / np.maximum(mapped, 1)  # of the pixels mapped as each class
    drawn = [np.zeros((0, len(sizes)))]
    for (matrices,) in _draws([confusions], replicates, seed):
        of_class = matrices.sum(axis=1, keepdims=True)
        drawn.append(np.where(of_class > 0, matrices / np.maximum(of_class, 1), truth) @ weights)
    return [_interval(value, ends) for value, ends in zip(truth @ weights, np.concatenate(drawn).T, strict=True)]


_Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
"""What `scores_of` returns."""


def _resample(
    maps: Sequence[NDArray[np.int64]], replicates: int, seed: int, scored: NDArray[np.bool_] | None
) -> list[_Scores]:
    """Scores of every map on the same draws of blocks."""
    K = maps[0].shape[1]
    drawn = [[scores_of(np.zeros((0, K, K)), scored)] for _ in maps]
    for matrices in _draws(maps, replicates, seed):
        for one, parts in zip(matrices, drawn, strict=True):
            parts.append(scores_of(one, scored))
    return [(np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])) for parts in drawn]


def _draws(maps: Sequence[NDArray[np.int64]], replicates: int, seed: int) -> Iterator[list[NDArray[np.float64]]]:
    """Confusions of every map, (R, K, K), on the same draws of blocks; some draws at a time."""
    B, K = maps[0].shape[:2]
    if B < 2 and replicates:
        raise SplitError(
            f"all scored pixels are in {B} block{'' if B == 1 else 's'}",
            "at least two, better some dozens: an interval comes from how blocks differ",
            "take smaller blocks by --block, or score more pixels",
        )
    rng = np.random.default_rng(seed)
    flat = [one.reshape(B, K * K).astype(np.float64) for one in maps]
    step = max(1, _AT_ONCE // (B + K * K))
    for start in range(0, replicates, step):
        # The counts are whole numbers below 2^53, so that the sums are the same in any order.
        times = rng.multinomial(B, np.full(B, 1 / B), size=min(step, replicates - start)).astype(np.float64)
        yield [(times @ one).reshape(-1, K, K) for one in flat]


def _intervals(values: _Scores, drawn: _Scores, blocks: int) -> BlockIntervals:
    (overall, of_class), (overall_drawn, of_class_drawn) = values, drawn
    scores = {name: _interval(overall[0, i], overall_drawn[:, i]) for i, name in enumerate(SCORES)}
    classes = {
        name: tuple(_interval(of_class[0, i, k], of_class_drawn[:, i, k]) for k in range(of_class.shape[2]))
        for i, name in enumerate(OF_CLASS)
    }
    return BlockIntervals(scores, classes, blocks, len(overall_drawn))


def _interval(value: np.float64, drawn: NDArray[np.float64]) -> Interval:
    """Percentiles of the draws in which the score is defined: a rare class may be in none of the drawn blocks."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not defined.size:
        return Interval(float(value), math.nan, math.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
