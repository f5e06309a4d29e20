"""Calibration: the one number by which logits are divided so that stated probabilities come true.

A network that states 0.9 should be right nine times in ten; `landfuse.accuracy.reliability` measures how far that
holds.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599, sections 2 (ECE)
and 4.2 (temperature).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLDEST, HOTTEST = 0.05, 20.0
"""Limits of a temperature. A fit beyond them means that the pixels are too few or too easy, as where all are right."""

_MOST = 1 << 18
"""Pixels that a temperature is fitted to at most; it is one number."""


def probabilities_of(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """softmax(logits / temperature) over the first axis: (K, ...) -> (K, ...), float32."""
    scale = np.float32(temperature)
    highest = logits.max(axis=0)
    # Class by class and contiguous: other orders sum in blocks whose bounds depend on a pixel's place (P1).
    found = np.empty(logits.shape, np.float32)
    total = np.zeros(logits.shape[1:], np.float32)
    for number, of_class in enumerate(logits):
        np.exp(np.ascontiguousarray((of_class - highest) / scale), out=found[number])
        total += found[number]
    found /= total
    return found


def fit_temperature(logits: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """The temperature whose probabilities, softmax(logits / T), give the truth the highest likelihood.

    The negative log-likelihood is convex in 1 / T, so that its slope has one root.

    Args:
        logits: (N, K); pixels with one that is not finite are left out.
        truth: (N,) classes, 0..K-1.

    Returns:
        T, within `COLDEST` and `HOTTEST`; 1 where the logits leave it open (no pixel, or all logits of a pixel alike).

    Source: Guo et al. 2017, section 4.2.
    """
    z = np.asarray(logits, np.float64)
    finite = np.isfinite(z).all(axis=1)
    z, truth = z[finite], truth[finite]
    z = z - z.max(axis=1, keepdims=True) if len(z) else z
    if not z.any():
        return 1.0
    of_truth = z[np.arange(len(z)), truth].mean()

    def slope(inverse: float) -> float:
        weights = np.exp(inverse * z)
        return float(((weights * z).sum(axis=1) / weights.sum(axis=1)).mean() - of_truth)

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    from scipy.optimize import brentq  # takes longer to import than a small scene to map

    return float(1 / brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-12))


class LogitSample:
    """Gathers logits and truth of labelled pixels that come in parts; a fair sample of them where they are many.

    Args:
        pixels: how many will come, at most.
        most: how many are kept, about.
    """

    def __init__(self, pixels: int, most: int = _MOST) -> None:
        self._fraction = min(1.0, most / max(1, pixels))
        self._random = np.random.default_rng(0)
        self._logits: list[NDArray[np.floating]] = []
        self._truth: list[NDArray[np.integer]] = []

    def update(self, logits: NDArray[np.floating], truth: NDArray[np.integer]) -> None:
        """Adds pixels: (N, K) logits and (N,) classes."""
        kept = self._random.random(len(truth)) < self._fraction
        self._logits.append(logits[kept])
        self._truth.append(truth[kept])

    @property
    def arrays(self) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
        """The sample: (N, K) logits and (N,) classes."""
        return np.concatenate(self._logits), np.concatenate(self._truth)
