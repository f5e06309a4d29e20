"""Calibration: how far stated probabilities are true, and the one number that mends most of it.

A network that says 0.9 should be right nine times in ten. `fit_temperature` finds the number that all logits are
divided by so that they say what they can keep; `Reliability` counts how well it is kept.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599, sections 2 (ECE)
and 4.2 (temperature).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

COLDEST, HOTTEST = 0.05, 20.0
"""Limits of a temperature. One lies outside if the pixels are too few or too easy to tell, as where all are right."""

_MOST = 1 << 18
"""Pixels that a temperature is fitted to at most; it is one number."""


def probabilities_of(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """softmax(logits / temperature) over the last axis: (..., K) -> (..., K), float32."""
    # Over the last axis: over the first, the kernel rounds by a pixel's place in its block (P1).
    scaled = torch.from_numpy(np.ascontiguousarray(logits)) / temperature
    return np.asarray(torch.softmax(scaled, dim=-1).numpy())


def fit_temperature(logits: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """The temperature whose probabilities, softmax(logits / T), give the truth the highest likelihood.

    The negative log-likelihood is convex in 1 / T, so that its slope has one root.

    Args:
        logits: (N, K).
        truth: (N,) classes, 0..K-1.

    Returns:
        T, within `COLDEST` and `HOTTEST`; 1 where the logits leave it open (no pixel, or all logits of a pixel alike).

    Source: Guo et al. 2017, section 4.2.
    """
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=1, keepdims=True) if len(z) else z
    if not z.any():
        return 1.0
    of_truth = z[np.arange(len(z)), truth].mean()

    def slope(inverse: float) -> float:
        shares = np.exp(inverse * z)
        return float(((shares * z).sum(axis=1) / shares.sum(axis=1)).mean() - of_truth)

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    return float(1 / brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-12))


class LogitSample:
    """Gathers logits and truth of labelled pixels that come in parts; a fair sample of them where they are many.

    Args:
        pixels: how many will come, at most.
        most: how many are kept, about.
    """

    def __init__(self, pixels: int, most: int = _MOST) -> None:
        self._share = min(1.0, most / max(1, pixels))
        self._random = np.random.default_rng(0)
        self._logits: list[NDArray[np.floating]] = []
        self._truth: list[NDArray[np.integer]] = []

    def update(self, logits: NDArray[np.floating], truth: NDArray[np.integer]) -> None:
        """Adds pixels.

        Args:
            logits: (N, K).
            truth: (N,) classes.
        """
        kept = self._random.random(len(truth)) < self._share
        self._logits.append(logits[kept])
        self._truth.append(truth[kept])

    def temperature(self) -> float:
        """See `fit_temperature`; 1 without any pixel."""
        return fit_temperature(np.concatenate(self._logits), np.concatenate(self._truth)) if self._logits else 1.0
