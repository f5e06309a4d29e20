"""Which colours are hard to distinguish, with full colour vision or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

VISIONS = ("full colour vision", "protanopia", "deuteranopia", "tritanopia")

TOO_CLOSE = 12.0
"""Colours nearer than this in CIELAB are hard to match to a legend: about five times the 2.3 that can just be seen
where two patches touch (Mahy et al. 1994, Color Research and Application 19), since on a map they are far apart."""

# Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113: severity 1, on linear RGB.
_SEEN = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}

_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # IEC 61966-2-1
_WHITE = _XYZ.sum(axis=1)


@dataclass(frozen=True)
class ClosePair:
    """Two colours that are hard to distinguish: their places, the vision in which they are nearest, and how near."""

    first: int
    second: int
    vision: str
    distance: float


def seen(rgb: ArrayLike, vision: str) -> NDArray[np.float64]:
    """Colours as someone with this vision sees them: (..., 3) sRGB 0..255 -> linear RGB 0..1.

    Source: Machado et al. 2009, doi:10.1109/TVCG.2009.113, equation 9.
    """
    srgb = np.asarray(rgb, np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    if vision in _SEEN:
        linear = linear @ np.array(_SEEN[vision]).T
    return np.clip(linear, 0, 1)


def lab(linear: ArrayLike) -> NDArray[np.float64]:
    """Linear RGB as CIELAB (L 0..100, a, b), the white of sRGB as white: (..., 3) -> (..., 3).

    Source: CIE 15:2004, section 8.2.1.
    """
    xyz = np.asarray(linear, np.float64) @ _XYZ.T / _WHITE
    edge = 6 / 29
    f = np.where(xyz > edge**3, np.cbrt(xyz), xyz / (3 * edge**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distances(colours: Sequence[tuple[int, int, int]], vision: str) -> NDArray[np.float64]:
    """Distances of sRGB colours, 0..255, from each other in CIELAB, as seen in a vision: (K, K)."""
    places = lab(seen(np.array(colours, np.float64).reshape(-1, 3), vision))
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


def close_pairs(colours: Sequence[tuple[int, int, int]], limit: float = TOO_CLOSE) -> list[ClosePair]:
    """The pairs of sRGB colours, 0..255, that come nearer than `limit` in some vision, the nearest first."""
    tables = {vision: distances(colours, vision) for vision in VISIONS}
    pairs = []
    for i, j in combinations(range(len(colours)), 2):
        vision = min(VISIONS, key=lambda name: tables[name][i, j])
        pairs.append(ClosePair(i, j, vision, float(tables[vision][i, j])))
    return sorted((pair for pair in pairs if pair.distance < limit), key=lambda pair: pair.distance)
