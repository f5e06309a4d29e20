"""How sure plain scores are: resampling by blocks of ground, and whether two maps differ.

Neighbouring pixels are right or wrong together, so that a million of them tell far less than a million. Blocks of
ground, drawn with replacement, carry that along: the spread of a score over such draws is its uncertainty. It holds if
blocks are larger than the distance over which errors hang together, and there are some dozens of them.

What it covers is the choice of the ground that was labelled, as if other blocks of the same land had been labelled
instead. It does not cover a bias in that choice: for the accuracy of a whole map, see `landfuse.accuracy.estimate`.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 8.6 (blocks) and 13.3 (percentiles);
Lahiri 2003, doi:10.1007/978-1-4757-3803-2, chapter 12 (spatial data); McNemar 1947, doi:10.1007/BF02295996.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED

SCORES = ("OA", "AA", "kappa", "mF1", "mIoU")

_EXACT_BELOW = 25  # discordant pixels; above it the chi-squared approximation is good
_AT_ONCE = 1 << 22  # numbers held at a time while resampling


@dataclass(frozen=True)
class Interval:
    """A score and its 95% interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval lies on one side of 0; of a difference: whether it is more than chance."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class BlockIntervals:
    """Scores, or differences of scores, with 95% intervals from resampled blocks.

    Args:
        scores: OA, AA, kappa, mF1 and mIoU.
        f1: of each class, in order.
        blocks: how many held scored pixels.
        replicates: how often they were drawn anew.
    """

    scores: dict[str, Interval]
    f1: tuple[Interval, ...]
    blocks: int
    replicates: int

    @property
    def rough(self) -> bool:
        """Whether there are so few blocks that the intervals come out too narrow."""
        return self.blocks < 30


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of whether two maps are right equally often.

    Args:
        only_first: pixels that only the first map has right.
        only_second: pixels that only the second map has right.
        p: two-sided probability of such a difference by chance, if pixels were independent of each other.
        exact: by the binomial distribution; else by chi-squared with the continuity correction.
    """

    only_first: int
    only_second: int
    p: float
    exact: bool


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
        (R, 5) in the order of `SCORES`, and (R, K) F1; NaN where a score is not defined.
    """
    m = np.asarray(matrices, np.float64)
    hits = np.diagonal(m, axis1=1, axis2=2)
    truth, mapped = m.sum(axis=2), m.sum(axis=1)
    n = truth.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = hits / truth, 2 * hits / (truth + mapped)
        iou = hits / (truth + mapped - hits)
        right = hits.sum(axis=1)
        by_chance = (truth * mapped).sum(axis=1)
        kappa = (n * right - by_chance) / (n * n - by_chance)
        present = truth > 0 if scored is None else (truth > 0) & scored
        count = present.sum(axis=1)
        aa, mf1, miou = (np.where(present, of_class, 0.0).sum(axis=1) / count for of_class in (recall, f1, iou))
        result = np.stack([right / n, aa, kappa, mf1, miou], axis=1)
    return np.where(np.isfinite(result), result, np.nan), f1


def block_intervals(
    confusions: NDArray[np.int64], replicates: int = 2000, seed: int = 0, scored: NDArray[np.bool_] | None = None
) -> BlockIntervals:
    """Scores of a map with 95% intervals: blocks are drawn with replacement, ends are percentiles.

    Args:
        confusions: (B, K, K) of the blocks.
        replicates: how often.
        seed: of the drawing.
        scored: see `scores_of`.

    Raises:
        SplitError: if there are fewer than two blocks.
    """
    values, f1 = scores_of(confusions.sum(axis=0)[None], scored)
    drawn, drawn_f1 = _resample([confusions], replicates, seed, scored)
    return _intervals(values[0], drawn[0], f1[0], drawn_f1[0], len(confusions), replicates)


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
        replicates: how often.
        seed: of the drawing.
        scored: see `scores_of`.

    Raises:
        SplitError: if there are fewer than two blocks.
        ValueError: if the two do not hold the same truth.
    """
    if first.shape != second.shape or (first.sum(axis=2) != second.sum(axis=2)).any():
        raise ValueError("the two maps have to be scored on the same pixels of the same blocks")
    (a, a_f1), (b, b_f1) = (scores_of(one.sum(axis=0)[None], scored) for one in (first, second))
    drawn, drawn_f1 = _resample([first, second], replicates, seed, scored)
    return _intervals(
        (a - b)[0], drawn[0] - drawn[1], (a_f1 - b_f1)[0], drawn_f1[0] - drawn_f1[1], len(first), replicates
    )


def _resample(
    maps: Sequence[NDArray[np.int64]], replicates: int, seed: int, scored: NDArray[np.bool_] | None
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Scores of every map on the same draws of blocks: for each map (R, 5), and (R, K) F1."""
    B, K = maps[0].shape[:2]
    if B < 2:
        raise SplitError(
            f"all scored pixels lie in {B} block{'' if B == 1 else 's'}",
            "at least two, better some dozens: an interval comes from how blocks differ",
            "take smaller blocks by --block, or score more pixels",
        )
    rng = np.random.default_rng(seed)
    flat = [one.reshape(B, K * K).astype(np.float64) for one in maps]
    scores: list[list[NDArray[np.float64]]] = [[] for _ in maps]
    f1: list[list[NDArray[np.float64]]] = [[] for _ in maps]
    step = max(1, _AT_ONCE // (B + K * K))
    for start in range(0, replicates, step):
        # The counts are whole numbers below 2^53, so that the sums are the same in any order.
        times = rng.multinomial(B, np.full(B, 1 / B), size=min(step, replicates - start)).astype(np.float64)
        for one, into, into_f1 in zip(flat, scores, f1, strict=True):
            values, classes = scores_of((times @ one).reshape(-1, K, K), scored)
            into.append(values)
            into_f1.append(classes)
    return [np.concatenate(parts) for parts in scores], [np.concatenate(parts) for parts in f1]


def _intervals(
    values: NDArray[np.float64],
    drawn: NDArray[np.float64],
    f1: NDArray[np.float64],
    drawn_f1: NDArray[np.float64],
    blocks: int,
    replicates: int,
) -> BlockIntervals:
    scores = {name: _interval(values[i], drawn[:, i]) for i, name in enumerate(SCORES)}
    of_class = tuple(_interval(f1[k], drawn_f1[:, k]) for k in range(f1.size))
    return BlockIntervals(scores, of_class, blocks, replicates)


def _interval(value: np.float64, drawn: NDArray[np.float64]) -> Interval:
    """Percentiles of the draws in which the score is defined: a rare class may be in none of the drawn blocks."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not defined.size:
        return Interval(float(value), math.nan, math.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Tests whether two maps are right equally often, from the pixels that one of them has right.

    Below 25 such pixels the test is exact: twice the smaller tail of the binomial distribution with chance 1/2, at most
    1. From there on it is (|b - c| - 1)^2 / (b + c), with the continuity correction, against chi-squared with one
    degree of freedom. Both take pixels for independent, which neighbours are not: p comes out too small on whole maps,
    and `difference_intervals` is what to go by there.

    Args:
        only_first: pixels that only the first map has right.
        only_second: pixels that only the second map has right.
    """
    n = only_first + only_second
    if n < _EXACT_BELOW:
        p = 1.0 if n == 0 else float(stats.binomtest(only_first, n).pvalue)
        return McNemar(only_first, only_second, p, exact=True)
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return McNemar(only_first, only_second, float(stats.chi2.sf(statistic, 1)), exact=False)
