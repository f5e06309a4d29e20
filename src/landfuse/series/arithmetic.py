"""Composites, gaps and features of series, pixel by pixel: no value depends on which other pixels are computed with it.

Only sums in a fixed order, comparisons and selections: the last bits of a matrix product depend on its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
"""(C, height, width) of one date or period, or (T, C, height, width) of all; NaN where there is no data."""

_PIECE = 2**16
"""Pixels of one band that are combined at once."""

_SINGULAR = 1e-6
"""What is left of a pivot, per observation, below which dates do not determine the harmonics of a pixel."""


def mean(dates: Iterable[Values]) -> Values:
    """Of each band, over the dates that have it; in float32, which loses at most its last digits."""
    total: Any = None
    for values in dates:
        if total is None:
            total, count = np.zeros_like(values), np.zeros(values.shape, np.uint16)
        for place in _pieces(values):
            known = np.isfinite(values[place])
            total[place] += _zeroed(values[place], known)
            count[place] += known
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(total, count, out=total))


def _pieces(values: Values) -> Iterator[tuple[int, slice]]:
    """Some rows of one band after the other, so few that a processor keeps them at hand."""
    rows = max(1, _PIECE // values.shape[2])
    for band in range(len(values)):
        for row in range(0, values.shape[1], rows):
            yield band, slice(row, row + rows)


def _zeroed(values: Values, known: NDArray[np.bool_]) -> Values:
    """0 where values are not known, by their bits: numpy's `where` takes five times as long in the shapes of clouds."""
    mask = np.negative(known.view(np.int8)).astype(np.int32)
    return (np.ascontiguousarray(values).view(np.int32) & mask).view(np.float32)


def median(dates: Iterable[Values]) -> Values:
    """Of each band, over the dates that have it; of an even number, the mean of the two in the middle."""
    every = list(dates)
    result = np.empty_like(every[0])
    for place in _pieces(result):
        result[place] = next(quantiles([values[place] for values in every], [0.5]))
    return result


def first(dates: Iterable[Values]) -> Values:
    """The first date that has all bands."""
    every = iter(dates)
    result = next(every).copy()
    missing = ~np.isfinite(result).all(axis=0)
    result[:, missing] = np.nan
    for values in every:
        if not missing.any():
            break
        taken = missing & np.isfinite(values).all(axis=0)
        result[:, taken] = values[:, taken]
        missing &= ~taken
    return result


def best(dates: Iterable[Values], score: Callable[[Values], Values]) -> Values:
    """The date with the highest score among those that have all bands; the first of several.

    Args:
        dates: their values, in order of time.
        score: of the pixels of one date, (height, width).
    """
    result: Any = None
    for values in dates:
        scores = score(values)
        if result is None:
            result, highest = np.full_like(values, np.nan), np.full_like(scores, -np.inf)
        better = (scores > highest) & np.isfinite(values).all(axis=0)
        result[:, better] = values[:, better]
        highest[better] = scores[better]
    return result


def quantiles(series: Sequence[Values], fractions: Sequence[float]) -> Iterator[Values]:
    """Of each pixel, over the dates that have it, between two of them linearly: an array for each fraction."""
    last = np.sum([np.isfinite(values) for values in series], axis=0, dtype=np.int16) - 1
    ranks = [np.fmin(values, np.float32(np.inf)) for values in series]  # gaps last
    for low, high in _network(len(ranks)):
        ranks[low], ranks[high] = np.minimum(ranks[low], ranks[high]), np.maximum(ranks[low], ranks[high])
    ordered, top = np.stack(ranks), np.maximum(last, 0)
    for fraction in fractions:
        place = top * fraction
        below = np.floor(place).astype(np.intp)
        low, high = (
            np.take_along_axis(ordered, at[None], axis=0)[0].astype(np.float64)
            for at in (below, np.minimum(below + 1, top))
        )
        with np.errstate(invalid="ignore"):
            found = (low + (high - low) * (place - below)).astype(np.float32)
        found[last < 0] = np.nan
        yield found


@lru_cache
def _network(size: int) -> tuple[tuple[int, int], ...]:
    """The comparisons that sort so many numbers, whichever they are: Batcher's merge exchange (Knuth, 5.2.2 M).

    Whole planes are compared at once, ten times quicker than numpy sorts pixel by pixel.
    """
    pairs = []
    top = step = 1 << max(0, (size - 1).bit_length() - 1)
    while step and size > 1:
        jump, offset, distance = top, 0, step
        while True:
            pairs += [(n, n + distance) for n in range(size - distance) if n & step == offset]
            if jump == step:
                break
            distance, jump, offset = jump - step, jump // 2, step
        step //= 2
    return tuple(pairs)


def amplitude(series: Values) -> Values:
    """The largest value of each band less the smallest."""
    return np.asarray(np.fmax.reduce(series, axis=0) - np.fmin.reduce(series, axis=0))


def harmonics(series: Values, seasons: Sequence[float], number: int) -> Values:
    """Level, then cosine and sine of one cycle a year, of two, ...: least squares over the dates that have a band.

    Args:
        series: (T, C, height, width).
        seasons: when in the year each date is, from 0 to 1.
        number: of cycles.

    Returns:
        (1 + 2 * number, C, height, width); NaN where the dates are too few or too close to determine all of them.
    """
    terms = 1 + 2 * number
    normal = np.zeros((terms, terms + 1, *series.shape[1:]))  # the right side is the last column
    count = np.zeros(series.shape[1:])
    for values, season in zip(series, seasons, strict=True):
        angles = 2 * np.pi * season * np.arange(1, number + 1)
        row = [1.0, *np.stack([np.cos(angles), np.sin(angles)], axis=1).ravel().tolist()]
        known = np.isfinite(values)
        count += known
        for i in range(terms):
            for j in range(i, terms):
                normal[i, j] += row[i] * row[j] * known
            normal[i, terms] += row[i] * np.where(known, values, np.float32(0)).astype(np.float64)
    for i in range(terms):
        normal[i, :i] = normal[:i, i]
    bad = count < terms
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(terms):  # Gauss and Jordan: of such a matrix, pivots are positive without a search
            bad |= ~(normal[i, i] > _SINGULAR * count)
            normal[i] /= normal[i, i].copy()
            for j in range(terms):
                if j != i:
                    normal[j] -= normal[j, i].copy() * normal[i]
    return np.where(bad, np.nan, normal[:, terms]).astype(np.float32)


def fill(series: Values, middles: Sequence[float], nearest: bool) -> None:
    """Fills gaps in place, from the periods before and after that have the band; at the ends from the only one.

    Args:
        series: (T, C, height, width), in order of time.
        middles: of the periods, in days.
        nearest: take the nearer of the two, the earlier of equal ones, instead of a straight line between them.
    """
    known = np.isfinite(series)
    some = ~known.all(axis=0) & known.any(axis=0)
    values, known = series[:, some], known[:, some]  # (T, pixels)
    times, last = np.asarray(middles), len(series) - 1
    places = np.arange(len(series), dtype=np.int16)[:, None]
    before = np.maximum.accumulate(np.where(known, places, -1), axis=0)
    after = np.minimum.accumulate(np.where(known, places, last + 1)[::-1], axis=0)[::-1]
    for place, time in enumerate(times):
        gaps = np.flatnonzero(~known[place])
        low, high = before[place, gaps], after[place, gaps]
        low, high = np.where(low < 0, high, low), np.where(high > last, low, high)
        if nearest:
            low = high = np.where(times[high] - time < time - times[low], high, low)
        weight = (time - times[low]) / np.maximum(times[high] - times[low], 0.5)  # 0 or more than half a day apart
        start, end = (values[at, gaps].astype(np.float64) for at in (low, high))
        values[place, gaps] = start + (end - start) * weight
    series[:, some] = values
