"""How well stated probabilities agree with how often they are right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-12
"""Probabilities below this count as this, so that one confident error does not make the log-likelihood infinite."""


class Reliability:
    """How often the predicted class is right, by its stated probability. Pixels may be added in parts.

    Args:
        bins: of equal width over the probability of the predicted class, 0..1; a bin includes its upper end.

    Source: Guo et al. 2017, equations 2 and 3.
    """

    def __init__(self, bins: int = 15) -> None:
        self.bins, self.surprise = bins, 0.0
        self.pixels, self.right, self.stated = np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins)

    def update(self, probabilities: NDArray[np.floating], truth: NDArray[np.integer]) -> None:
        """Adds pixels: (N, K) probabilities, which sum to 1 over the classes, and (N,) classes."""
        values = np.asarray(probabilities, np.float64)
        best = values.max(axis=1)
        bins = np.clip(np.ceil(best * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self.pixels += np.bincount(bins, minlength=self.bins)
        self.stated += np.bincount(bins, weights=best, minlength=self.bins)
        self.right += np.bincount(bins[values.argmax(axis=1) == truth], minlength=self.bins)
        self.surprise -= float(np.log(values[np.arange(len(truth)), truth].clip(min=_LEAST)).sum())

    @property
    def error(self) -> float:
        """ECE, the expected calibration error: mean gap between stated and true, weighted by pixels; NaN for none."""
        total = int(self.pixels.sum())
        return float(np.abs(self.right - self.stated).sum() / total) if total else float("nan")

    def to_dict(self) -> dict[str, object]:
        """For `scores.json`: `ECE`, `NLL` (mean, nats per pixel), `pixels`, and `bins`, those that hold pixels:
        `low`, `high`, `pixels`, `stated` (mean probability) and `accuracy`."""
        total = int(self.pixels.sum())
        edges = np.linspace(0, 1, self.bins + 1)
        return {
            "ECE": self.error,
            "NLL": self.surprise / total if total else float("nan"),
            "pixels": total,
            "bins": [
                {
                    "low": round(float(edges[i]), 6),
                    "high": round(float(edges[i + 1]), 6),
                    "pixels": int(self.pixels[i]),
                    "stated": float(self.stated[i] / self.pixels[i]),
                    "accuracy": float(self.right[i] / self.pixels[i]),
                }
                for i in np.flatnonzero(self.pixels)
            ],
        }
