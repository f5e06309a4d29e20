"""Class sets: thresholds by blocks against plain loops and crepes; coverage; and what is refused."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from landfuse.accuracy.conformal import (
    LEVELS,
    METHODS,
    BlockSample,
    ClassSets,
    coverage_of,
    coverage_words,
    scores_of,
    sets_of,
    threshold_table,
    thresholds_of,
    without_fold,
)
from landfuse.bundles.description import Description, ModelSpec
from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend

K = 4
LEGEND = Legend(tuple(LandClass(f"class {k}", k, "#000000") for k in range(K)))


def pixels(seed: int, count: int = 600, blocks: int = 30, steps: int = 0) -> tuple[Any, ...]:
    """Probabilities, classes, blocks and folds; with `steps` many probabilities are equal."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(K, 0.5), count).T
    p = np.maximum(np.rint(p * steps), 1) if steps else p
    p = (p / p.sum(axis=0)).astype(np.float32)
    truth = (rng.random(count) > p.astype(np.float64).cumsum(axis=0)).sum(axis=0).clip(0, K - 1).astype(np.uint8)
    numbers = rng.integers(0, blocks, count)
    return p, truth, numbers, numbers % 3


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 25))
@settings(max_examples=25, deadline=None)
def test_thresholds_are_those_of_the_definition(seed: int, count: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    scores, numbers = rng.integers(0, 12, count).astype(np.float32), rng.integers(0, blocks, count)
    found = thresholds_of(scores, numbers)
    present, sizes = np.unique(numbers, return_counts=True)
    size = dict(zip(present.tolist(), sizes.tolist(), strict=True))
    for place in (99, 499, 666, 749, 799, 899, 949, 998):
        wanted = Fraction(place + 1, 1000) * (len(present) + 1)
        reached = [
            t
            for t in np.unique(scores)
            if sum(Fraction(1, size[b]) for s, b in zip(scores, numbers.tolist(), strict=True) if s >= t) >= wanted
        ]
        assert found[place] == (max(reached) if reached else -np.inf)
    carried = Fraction(len(present), len(present) + 1)
    assert np.isfinite(found).sum() == sum(Fraction(i, 1000) <= carried for i in range(1, 1000))
    assert (found[1:] <= found[:-1]).all(), "a higher level has larger sets"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [23, 250])  # where `(count + 1) level` is whole, crepes takes one more
def test_of_blocks_of_one_pixel_sets_are_those_of_crepes(method: Any, count: int) -> None:
    crepes = pytest.importorskip("crepes")
    p, truth, *_ = pixels(1, count)
    new = scores_of(pixels(2)[0], method)
    scores = scores_of(p, method)[truth, np.arange(count)]
    judge = crepes.ConformalClassifier().fit(-scores)
    thresholds = thresholds_of(scores, np.arange(count))
    for level in (0.55, 0.8, 0.9, 0.95):
        expected = judge.predict_set(-new.T, confidence=level, smoothing=False).T.astype(bool)
        assert (expected == (new >= thresholds[round(level * 1000) - 1])).all(), level


@pytest.mark.parametrize("count", [19, 39, 250])
def test_of_blocks_of_one_pixel_the_threshold_is_that_of_mapie(count: int) -> None:
    mapie = pytest.importorskip("mapie.classification")
    p, truth, *_ = pixels(1, count)

    class Known(ClassifierMixin, BaseEstimator):
        classes_, n_features_in_ = np.arange(K), K

        def fit(self, x: NDArray[Any], y: NDArray[Any]) -> Any:
            return self

        def predict_proba(self, x: NDArray[Any]) -> NDArray[Any]:
            return x

        def predict(self, x: NDArray[Any]) -> NDArray[Any]:
            return x.argmax(axis=1)

    levels = [0.8, 0.9, 0.95] if count > 20 else [0.8, 0.9]
    judge = mapie.SplitConformalClassifier(Known(), confidence_level=levels, conformity_score="lac", prefit=True)
    judge.conformalize(p.T.astype(np.float64), truth)
    new = pixels(2)[0]
    expected = judge.predict_set(new.T.astype(np.float64))[1]
    thresholds = thresholds_of(p[truth, np.arange(count)], np.arange(count))
    for number, level in enumerate(levels):
        assert ((new >= thresholds[round(level * 1000) - 1]) == expected[..., number].T).all(), level


@pytest.mark.parametrize("steps", [0, 6])
def test_scores_are_those_of_a_plain_loop(steps: int) -> None:
    p = pixels(3, 200, steps=steps)[0]
    for method in METHODS:
        found = scores_of(p, method)
        for n in range(p.shape[1]):
            own = p[:, n].astype(np.float64)
            for k in range(K):
                above = int((p[:, n] > p[k, n]).sum())
                tail = 1.0 if above == 0 else own[p[:, n] <= p[k, n]].sum()
                least = int((p[:, n] >= p[k, n]).sum())  # of equal ones the first place counts
                penalty = 0.05 * max(0, above + 1 - 2)
                expected = {"lac": own[k], "aps": tail, "raps": tail - penalty}[method]
                assert found[k, n] == pytest.approx(expected, abs=1e-6), (method, least)


@pytest.mark.parametrize("method", METHODS)
def test_sets_are_never_empty_and_grow_with_the_level(method: Any) -> None:
    p, truth, numbers, _ = pixels(4, 3000, 200, steps=20)
    table = threshold_table(p, truth, numbers)[METHODS.index(method)]
    before = np.zeros(p.shape, bool)
    for place in (199, 799, 899, 949):
        for thresholds in (table[:1, place], table[1:, place]):
            sets = sets_of(p, thresholds[:, None], method)
            assert sets.any(axis=0).all()
        sets = sets_of(p, table[0, place], method)
        assert (sets | (p < p.max(axis=0))).all(), "the most probable class is in it"
        assert (sets >= before).all()
        before = sets
        parts = [sets_of(p[:, n : n + 1], table[0, place], method) for n in range(50)]
        assert (np.concatenate(parts, axis=1) == sets[:, :50]).all(), "whatever pixels are beside it"


def test_on_average_new_blocks_are_covered_as_stated() -> None:
    """Of blocks whose pixels are all alike, and so worth one pixel each."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        each = rng.normal(size=40).astype(np.float32)
        scores, numbers = each.repeat(25), np.arange(40).repeat(25)
        found.append((rng.normal(size=500) >= thresholds_of(scores, numbers)[899]).mean())
    assert 0.9 - 0.005 < np.mean(found) < 0.9 + 1 / 41 + 0.005


def test_a_sample_holds_of_each_block_as_many_pixels() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:, :20] = UNLABELLED
    blocks = np.indices((40, 60))[1] // 20
    blocks[0, 20] = 7
    sample = BlockSample([labels, labels], [blocks, blocks + 8], most=250)
    counts = np.bincount(sample.numbers[0][sample.numbers[0] >= 0], minlength=8)
    assert not counts[0], "of pixels without a label"
    assert counts[7] == 1, "a block of one pixel is kept"
    assert all(20 < n < 80 for n in counts[1:3])
    sample.fold = 3
    p = np.full((K, 40 * 60), 0.25, np.float32)
    sample.update(p, labels.ravel(), sample.numbers[0].ravel())
    _, truth, numbers, folds = sample.arrays
    assert len(truth) == len(numbers) == counts.sum()
    assert (folds == 3).all()


def sets_of_pixels(seed: int = 5, blocks: int = 30, without: int | None = None) -> ClassSets:
    p, truth, numbers, _ = pixels(seed, 900, blocks)
    kept = truth != without
    sample = BlockSample([truth[None]], [numbers[None]])
    sample.update(p[:, kept], truth[kept], sample.numbers[0][0][kept])
    return ClassSets.fitted(sample, LEGEND, "blocks of 8 px", "set aside in training")


def test_a_class_without_blocks_is_in_every_set(caplog: pytest.LogCaptureFixture) -> None:
    known = sets_of_pixels(without=2)
    assert known.notes["class_blocks"][2] == 0
    thresholds = known.thresholds(0.9, by_class=True)
    assert np.isneginf(thresholds).tolist() == [False, False, True, False]
    p = pixels(6)[0]
    for method in METHODS:
        assert sets_of(p, known.thresholds(0.9, method, True)[:, None], method)[2].all()
    with caplog.at_level(logging.WARNING, logger="landfuse"):
        known.warn(0.9, by_class=True)
        known.warn(0.9, by_class=False)
    assert [record.getMessage() for record in caplog.records] == [
        "class sets of level 0.9 hold class 2 (0) in any case: 9 calibration blocks of a class are needed",
        "class sets: how often they hold class 2 is not known: no calibration block holds such a pixel",
    ]


def test_levels_that_are_refused() -> None:
    known = sets_of_pixels(blocks=12)
    assert known.highest == 0.923
    assert np.isfinite(known.thresholds(0.923)).all()
    assert (known.thresholds(0.9001) == known.thresholds(0.901)).all(), "rounded up"
    for level, message in (
        (0.95, r"level 0.95 by 12 calibration blocks(.|\n)*at most 0.923(.|\n)*0.95 takes 19(.|\n)*ask for 0.923"),
        (0.9999, r"at most 0.923(.|\n)*takes 9999"),
        (1.0, "more than 0 and less than 1"),
        (0.0, "more than 0 and less than 1"),
        (float("nan"), "more than 0 and less than 1"),
    ):
        with pytest.raises(SettingsError, match=message):
            known.thresholds(level)
    with pytest.raises(SettingsError, match="no method `lca`"):
        known.thresholds(0.9, "lca")  # type: ignore[arg-type]
    none = sets_of_pixels(blocks=1)
    with pytest.raises(SettingsError, match=r"by 1 calibration blocks(.|\n)*at most 0.5"):
        none.thresholds(0.9)
    with pytest.raises(SettingsError, match=r"no scores of calibration blocks(.|\n)*split.calibration=0.2"):
        ClassSets.of(Description(ModelSpec("forest"), {}, (), LEGEND, 1, 1, 1))


def test_few_blocks_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="landfuse"):
        sets_of_pixels(blocks=5)
    assert "5 blocks of 8 px, set aside in training carry levels up to 0.833; 0.9 takes 9" in caplog.text


def plain_mean(values: NDArray[Any], blocks: NDArray[Any]) -> float:
    return float(np.mean([values[blocks == b].mean() for b in np.unique(blocks)]))


def test_coverage_against_a_plain_loop() -> None:
    p, truth, numbers, folds = pixels(7, 900)
    sample = BlockSample([truth[None]], [numbers[None]])
    for fold in range(3):
        sample.fold = fold
        own = folds == fold
        sample.update(p[:, own], truth[own], numbers[own])
    tables = without_fold(sample)
    found = coverage_of(sample.arrays, tables, LEGEND.names)
    assert (found["blocks"], found["pixels"]) == (30, 900)
    assert list(found["levels"]["lac"]) == ["0.8", "0.9", "0.95"]
    for number, method in enumerate(METHODS):
        for by_class in (False, True):
            sets = np.zeros(p.shape, bool)
            for n in range(p.shape[1]):
                others = folds != folds[n]
                table = threshold_table(p[:, others], truth[others], numbers[others])[number]
                sets[:, n : n + 1] = sets_of(p[:, n : n + 1], table[1:, 899:900] if by_class else table[0, 899], method)
                if n == 40:
                    break
            one = found["levels"][method + " by class" * by_class]["0.9"]
            held, size = np.empty(900), np.empty(900)
            for fold in range(3):
                own = folds == fold
                thresholds = tables[fold][number, 1:, 899:900] if by_class else tables[fold][number, 0, 899]
                every = sets_of(p[:, own], thresholds, method)
                held[own], size[own] = every[truth[own], np.arange(own.sum())], every.sum(axis=0)
                assert (every[:, np.flatnonzero(own) <= 40] == sets[:, :41][:, own[:41]]).all()
            per_block = np.array([held[numbers == b].mean() for b in range(30)])
            assert one["coverage"] == pytest.approx(per_block.mean())
            assert one["standard_error"] == pytest.approx(per_block.std(ddof=1) / 30**0.5)
            assert one["coverage_of_pixels"] == pytest.approx(held.mean())
            assert (one["worst_block"], one["blocks_below"]) == (per_block.min(), (per_block < 0.9).mean())
            assert (one["one_class"], one["mean_size"]) == ((size == 1).mean(), pytest.approx(size.mean()))
            assert one["sizes"] == pytest.approx([(size == n).mean() for n in range(1, K + 1)])
            for k, name in enumerate(LEGEND.names):
                assert one["classes"][name] == pytest.approx(plain_mean(held[truth == k], numbers[truth == k]))
    at = {row["level"]: row for row in found["curve"]}
    assert at[0.9]["coverage"] == found["levels"]["lac"]["0.9"]["coverage"]
    assert max(at) <= LEVELS[np.isfinite(tables[0][0, 0])].max()


def test_the_words_of_coverage_say_how_many_blocks_the_sets_rest_on() -> None:
    one = {"coverage": 0.999, "standard_error": 0.01, "one_class": 0.25}
    facts = {"blocks": 9, "unit": "blocks of 64 px", "test": {"blocks": 15, "levels": {"lac": {"0.9": one}}}}
    assert coverage_words(facts) == [
        "class sets of level 0.9, by 9 calibration blocks, hold the true class of 99.9% of the test pixels (mean over "
        "15 blocks of 64 px, standard error 1.0%); 25.0% of the sets are one class"
    ]
