"""Pixel maps as arrays, which need no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Pixels per matrix product. A product of fixed shape gives a pixel the same bits whatever block it came in (P1)."""


@dataclass(frozen=True)
class PixelArrays:
    """A pixel map as arrays: what is stored, and the form that needs no torch.

    Args:
        weight: (C,) to scale each band, or (D, C) to mix them; float32.
        bias: (C,) or (D,); float32.
        clip: limit of |y|; infinity for none.
        gaps: see `PixelMap.gaps`.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    clip: float = math.inf
    gaps: bool = False

    def __call__(
        self, pixels: NDArray[np.float32], stand_in: float | None = None, missing: float = 0.0
    ) -> NDArray[np.float32]:
        """Maps pixels, (P, C) float32, to (P, D); see `PixelMap.forward`."""
        if self.weight.ndim == 1:
            mapped = pixels * self.weight + self.bias
        else:
            mapped = np.empty((len(pixels), len(self.weight)), np.float32)
            # Band by band: the bits of a matrix product depend on a pixel's row, also in products of one size (P1).
            for start in range(0, len(pixels), CHUNK):
                part, total = pixels[start : start + CHUNK], mapped[start : start + CHUNK]
                total[:] = self.bias
                for band, weights in enumerate(self.weight.T):
                    total += part[:, band, None] * weights
        mapped = np.nan_to_num(mapped.clip(-self.clip, self.clip), copy=False, nan=missing)
        if stand_in is not None:
            known = np.isfinite(pixels)
            mapped[~(known.any(axis=1) if self.gaps else known.all(axis=1))] = stand_in
        return mapped
