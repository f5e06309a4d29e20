"""Confident learning: which labels are probably wrong, by probabilities of models that have not seen them.

Source: Northcutt, Jiang & Chuang 2021, Journal of Artificial Intelligence Research 70, arXiv 1911.00068.

Labels are (n,) classes, probabilities (n, K).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]

_ROUNDING = 1e-6


def self_confidence(labels: Labels, probabilities: Probabilities) -> Probabilities:
    """The probability of each label, (n,)."""
    return probabilities[np.arange(len(labels)), labels]


def thresholds(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """The mean probability of each class where it is the label, (K,); infinite for a class without labels."""
    kinds = probabilities.shape[1]
    counts = np.bincount(labels, minlength=kinds)
    sums = np.bincount(labels, self_confidence(labels, probabilities), kinds)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def confident_classes(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """The most probable of the classes that reach their threshold, (n,); -1 where none does."""
    reached = probabilities >= thresholds(labels, probabilities) - _ROUNDING
    best = np.where(reached, probabilities, -1).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def joint_counts(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """How many labels of each class are confidently of each class, (K given, K confident)."""
    kinds = probabilities.shape[1]
    found = confident_classes(labels, probabilities)
    sure = found >= 0
    return np.bincount(labels[sure] * kinds + found[sure], minlength=kinds * kinds).reshape(kinds, kinds)


def probably_wrong(labels: Labels, probabilities: Probabilities) -> NDArray[np.bool_]:
    """Whether a label is confidently of another class, and not the most probable class all the same, (n,)."""
    found = confident_classes(labels, probabilities)
    return (found >= 0) & (found != labels) & (probabilities.argmax(axis=1) != labels)


def margins(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """How far the probability of each label is above that of the best other class, 0 to 1; below 0.5 it is not."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return (self_confidence(labels, probabilities) - others.max(axis=1) + 1) / 2
