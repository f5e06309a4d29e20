"""Heights as people read them: lit from the north-west."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def slopes(
    heights: NDArray[np.floating], pixel: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How heights rise to the right and downwards, each (H, W), a ratio; at the edges the edge pixel is repeated.

    Args:
        heights: (H, W), NaN where there is no data; a slope next to such a pixel is NaN.
        pixel: width and height of a pixel, in the units of the heights.

    Source: Horn 1981, doi:10.1109/PROC.1981.11918, the weights 1, 2, 1 of section IX.
    """
    p = np.pad(np.asarray(heights, np.float64), 1, mode="edge")
    left = p[:-2, :-2] + 2 * p[1:-1, :-2] + p[2:, :-2]
    right = p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:]
    above = p[:-2, :-2] + 2 * p[:-2, 1:-1] + p[:-2, 2:]
    below = p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:]
    return (right - left) / (8 * pixel[0]), (below - above) / (8 * pixel[1])


def hillshade(
    heights: NDArray[np.floating],
    pixel: tuple[float, float],
    *,
    exaggeration: float = 1.0,
    azimuth: float = 315.0,
    altitude: float = 45.0,
) -> NDArray[np.float64]:
    """The light that a matt surface throws back: (H, W), 0 (in its own shade) to 1; NaN where there is no data.

    Args:
        heights: (H, W), rows from north to south, NaN where there is no data.
        pixel: width and height of a pixel, in the units of the heights.
        exaggeration: what heights are multiplied by.
        azimuth: of the light, degrees clockwise from the top of the picture.
        altitude: of the light above the horizon, degrees.

    Source: Horn 1981, doi:10.1109/PROC.1981.11918 (Lambertian shading).
    """
    right, down = slopes(np.asarray(heights, np.float64) * exaggeration, pixel)
    turn, up = math.radians(azimuth), math.radians(altitude)
    # The surface's normal is (-right, down, 1) in (east, north, up), the light comes from `light`.
    light = (math.cos(up) * math.sin(turn), math.cos(up) * math.cos(turn), math.sin(up))
    shade = (-right * light[0] + down * light[1] + light[2]) / np.sqrt(1 + right**2 + down**2)
    return np.asarray(np.where(np.isfinite(heights), np.clip(shade, 0, 1), np.nan))
