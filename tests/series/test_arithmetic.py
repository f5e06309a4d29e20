"""Composites, gaps and features against numpy, pandas and plain loops in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray

from landfuse.series import arithmetic

DAYS = np.array([3.0, 20.0, 51.5, 90.0, 94.0, 200.0, 300.0])
F = np.float32


def series(gaps: float = 0.4, seed: int = 0) -> NDArray[np.float32]:
    """Seven dates of two bands, 5 x 6 px, with gaps; the first pixel has none at all, the second one date."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 9, (7, 2, 5, 6)).astype(F)
    values[rng.random(values.shape) < gaps] = np.nan
    values[:, :, 0, :2] = np.nan
    values[3, :, 0, 1] = 5
    return values


@pytest.mark.filterwarnings("ignore:All-NaN|Mean of empty")
def test_mean_median_and_percentiles_are_those_of_numpy() -> None:
    values = series()
    exact = values.astype(np.float64)
    np.testing.assert_allclose(arithmetic.mean(iter(values)), np.nanmean(exact, axis=0), rtol=1e-6)
    np.testing.assert_allclose(arithmetic.median(iter(values)), np.nanmedian(exact, axis=0), rtol=1e-7)
    fractions = [0.0, 0.1, 0.25, 0.9, 1.0]
    found = np.stack(list(arithmetic.quantiles(values, fractions)))
    np.testing.assert_allclose(found, np.nanquantile(exact, fractions, axis=0), rtol=1e-6)
    np.testing.assert_allclose(arithmetic.amplitude(values), np.nanmax(exact, 0) - np.nanmin(exact, 0), rtol=1e-6)


@pytest.mark.parametrize("size", [*range(1, 10), 24])
def test_the_network_sorts_every_row(size: int) -> None:
    rows = itertools.product((0, 1), repeat=size)  # a network that sorts all of these sorts all numbers
    ranks = [*np.array(list(rows) if size < 10 else np.random.default_rng(0).integers(0, 2, (2000, size))).T]
    for low, high in arithmetic._network(size):
        ranks[low], ranks[high] = np.minimum(ranks[low], ranks[high]), np.maximum(ranks[low], ranks[high])
    assert (np.diff(np.stack(ranks), axis=0) >= 0).all()


def test_first_and_best_take_whole_dates() -> None:
    values = series(0.2)
    whole = np.isfinite(values).all(axis=1)
    first, best = np.full((2, *values.shape[1:]), np.nan, F)
    for row, col in np.ndindex(5, 6):
        dates = np.flatnonzero(whole[:, row, col])
        if dates.size:
            first[:, row, col] = values[dates[0], :, row, col]
            best[:, row, col] = values[dates[values[dates, 1, row, col].argmax()], :, row, col]
    np.testing.assert_array_equal(arithmetic.first(iter(values)), first)
    np.testing.assert_array_equal(arithmetic.best(iter(values), lambda one: one[1]), best)
    tied = np.zeros((2, 1, 1, 1), F)
    tied[1] = -0.0
    assert not np.signbit(arithmetic.best(iter(tied), lambda one: one[0])).any()  # the first of equal ones


@pytest.mark.parametrize("how", ["linear", "nearest"])
def test_gaps_are_filled_as_pandas_fills_them(how: Any) -> None:
    values = series()
    found = values.copy()
    arithmetic.fill(found, DAYS, how == "nearest")
    for band, row, col in np.ndindex(2, 5, 6):
        table = pandas.Series(values[:, band, row, col].astype(np.float64), index=DAYS)
        if how == "linear":
            expected = table.interpolate("values", limit_direction="both")  # the ends are those next to them
        else:
            known = table.dropna()
            nearest = [abs(known.index.to_numpy() - day).argmin() for day in DAYS] if len(known) else []
            expected = known.iloc[nearest] if len(known) else table
        np.testing.assert_allclose(found[:, band, row, col], expected, rtol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
def test_harmonics_are_least_squares_without_the_gaps(number: int) -> None:
    values, seasons = series(), DAYS / 365
    found = arithmetic.harmonics(values, seasons, number)
    assert found.shape == (1 + 2 * number, 2, 5, 6)
    angle = 2 * np.pi * seasons[:, None] * np.arange(1, number + 1)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(7, -1)
    design = np.concatenate([np.ones((7, 1)), waves], axis=1)
    fitted = 0
    for band, row, col in np.ndindex(2, 5, 6):
        known = np.isfinite(values[:, band, row, col])
        if known.sum() < design.shape[1]:
            assert np.isnan(found[:, band, row, col]).all()
            continue
        fitted += 1
        expected = np.linalg.lstsq(design[known], values[known, band, row, col].astype(np.float64))[0]
        np.testing.assert_allclose(found[:, band, row, col], expected, rtol=2e-4, atol=2e-4)
    assert fitted > 5


def test_harmonics_that_dates_do_not_determine_are_no_data() -> None:
    same_season = arithmetic.harmonics(series(0.0), [0.25] * 7, 1)  # of seven years
    assert np.isnan(same_season).all()
