"""Which labels are probably wrong, against cleanlab."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint, get_confident_thresholds
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

from landfuse.accuracy.confident_learning import (
    confident_classes,
    joint_counts,
    margins,
    probably_wrong,
    self_confidence,
    thresholds,
)


def examples(n: int, kinds: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels of unequal classes, a fifth of them wrong, and probabilities that mostly know better."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate(
        [np.arange(kinds), rng.choice(kinds, n - kinds, p=np.arange(1, kinds + 1) / (kinds * (kinds + 1) / 2))]
    )
    given = np.where(rng.uniform(size=n) < 0.2, rng.integers(kinds, size=n), truth)
    given[:kinds] = np.arange(kinds)
    probabilities = rng.dirichlet(np.full(kinds, 0.6), n) + 1.2 * np.eye(kinds)[truth] * rng.uniform(size=(n, 1))
    return given, probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "kinds", "seed"), [(300, 2, 0), (500, 4, 1), (900, 7, 2)])
def test_as_cleanlab(n: int, kinds: int, seed: int) -> None:
    labels, probabilities = examples(n, kinds, seed)
    limits: Any = get_confident_thresholds(labels, probabilities)
    np.testing.assert_allclose(thresholds(labels, probabilities), limits)
    # Where several classes are confident cleanlab takes the most probable of all, the paper the most probable of them.
    reached = probabilities >= limits - 1e-6
    best = probabilities.argmax(axis=1)
    alike = (reached.sum(axis=1) < 2) | reached[np.arange(n), best]
    assert alike.mean() > 0.9
    found: Any = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
    assert found.sum() > n / 20
    np.testing.assert_array_equal(probably_wrong(labels, probabilities)[alike], found[alike])
    for method, own in (("normalized_margin", margins), ("self_confidence", self_confidence)):
        expected: Any = get_label_quality_scores(labels, probabilities, method=method)
        np.testing.assert_allclose(own(labels, probabilities), expected)
    joint: Any = compute_confident_joint(labels, probabilities, thresholds=limits, calibrate=False)
    counts = joint_counts(labels, probabilities)
    assert abs(counts - joint).sum() <= 2 * (~alike).sum()
    assert counts.sum() == (confident_classes(labels, probabilities) >= 0).sum() == reached.any(axis=1).sum()


def test_a_class_without_labels_is_never_confident() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    assert thresholds(labels, probabilities).tolist() == [0.4, 0.35, np.inf]
    assert confident_classes(labels, probabilities).tolist() == [-1, 0, 1, 0]
    assert probably_wrong(labels, probabilities).tolist() == [False, False, False, True]
    np.testing.assert_allclose(margins(labels, probabilities), [0.25, 0.65, 0.6, 0.25])
