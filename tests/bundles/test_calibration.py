"""Stated probabilities against plain loops and known temperatures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from landfuse.accuracy.reliability import Reliability
from landfuse.bundles.calibration import COLDEST, HOTTEST, LogitSample, fit_temperature


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def drawn(count: int, classes: int, temperature: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that overstate by a temperature: the truth is drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes)) * temperature
    probabilities = softmax(logits / temperature).cumsum(axis=1)
    return logits, (rng.random((count, 1)) > probabilities[:, :-1]).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("classes", [2, 9])
def test_a_known_temperature_is_found_again(temperature: float, classes: int) -> None:
    logits, truth = drawn(60_000, classes, temperature)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.03)
    assert fit_temperature(logits + 1e4, truth) == pytest.approx(fit_temperature(logits, truth), rel=1e-6)


def test_it_is_the_minimum_of_the_likelihood() -> None:
    logits, truth = drawn(500, 4, 1.7, seed=3)

    def surprise(temperature: float) -> float:
        return -sum(
            z[t] / temperature - math.log(math.fsum(math.exp(v / temperature) for v in z))
            for z, t in zip(logits.tolist(), truth.tolist(), strict=True)
        )

    outside = minimize_scalar(surprise, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, truth) == pytest.approx(outside.x, rel=1e-6)
    assert fit_temperature(logits.astype(np.float32), truth) == pytest.approx(outside.x, rel=1e-5)


def test_temperatures_without_an_answer() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == COLDEST, "all right: the surer the better"
    assert fit_temperature(logits, np.array([1, 0])) == HOTTEST, "all wrong: the less sure the better"
    assert fit_temperature(np.full((3, 4), 2.0), np.array([0, 1, 2])) == 1
    assert fit_temperature(np.empty((0, 4)), np.empty(0, np.int64)) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_left_out(wrong: float) -> None:
    logits, truth = drawn(300, 4, 1.7)
    more = np.concatenate([logits, [[0.0, wrong, 1.0, 2.0]]]), np.concatenate([truth, [1]])
    assert fit_temperature(*more) == fit_temperature(logits, truth)
    assert fit_temperature(np.full((3, 4), wrong), np.array([0, 1, 2])) == 1


def test_a_sample_of_many_pixels_is_fair() -> None:
    logits, truth = drawn(60_000, 3, 2.0)
    sample = LogitSample(len(truth), most=20_000)
    whole = LogitSample(len(truth))
    for start in range(0, len(truth), 7_000):
        for one in (sample, whole):
            one.update(logits[start : start + 7_000], truth[start : start + 7_000])
    assert fit_temperature(*whole.arrays) == fit_temperature(logits, truth)
    assert sum(len(part) for part in sample._truth) == pytest.approx(20_000, rel=0.05)
    assert fit_temperature(*sample.arrays) == pytest.approx(2.0, rel=0.05)
    assert fit_temperature(*sample.arrays) != fit_temperature(*whole.arrays)


def test_reliability_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(4, 0.4), 3_000)
    probabilities[:3] = np.array([[1, 0, 0, 0], [0.6, 0.4, 0, 0], [0.25, 0.25, 0.25, 0.25]])  # upper ends of bins
    truth = rng.integers(0, 4, len(probabilities))
    found = Reliability()
    for start in range(0, len(truth), 700):
        found.update(probabilities[start : start + 700], truth[start : start + 700])
    gap, surprise, rows = 0.0, 0.0, []
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [i for i in range(len(truth)) if low < max(probabilities[i]) <= high + 1e-15]
        if not inside:
            continue
        stated = sum(max(probabilities[i]) for i in inside) / len(inside)
        accuracy = sum(int(np.argmax(probabilities[i])) == truth[i] for i in inside) / len(inside)
        gap += len(inside) / len(truth) * abs(stated - accuracy)
        rows.append((len(inside), stated, accuracy))
    surprise = -sum(math.log(max(probabilities[i][truth[i]], 1e-12)) for i in range(len(truth))) / len(truth)
    reported = found.to_dict()
    assert found.error == pytest.approx(gap, rel=1e-12)
    assert reported["ECE"] == found.error
    assert reported["NLL"] == pytest.approx(surprise, rel=1e-12)
    assert reported["pixels"] == 3_000
    assert [(b["pixels"], b["stated"], b["accuracy"]) for b in reported["bins"]] == [  # type: ignore[attr-defined]
        (n, pytest.approx(s), pytest.approx(a)) for n, s, a in rows
    ]
    assert len(rows) < 15, "bins without pixels are left out"


def test_a_temperature_makes_reliable() -> None:
    logits, truth = drawn(40_000, 5, 3.0)
    before, after = Reliability(), Reliability()
    before.update(softmax(logits), truth)
    after.update(softmax(logits / fit_temperature(logits, truth)), truth)
    assert before.error > 0.1
    assert after.error < 0.01
    assert math.isnan(Reliability().error)
