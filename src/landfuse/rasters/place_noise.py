"""Random numbers that are functions of a seed and a pixel's place, so that they do not depend on the window."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.windows import Window

_CHUNK = 1 << 16  # pixels computed at a time, so that the working arrays stay in the cache


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scrambles in place; a bijection of 32 bits with the shifts and odd factors of MurmurHash3's finaliser."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def keys(seed: int, stream: int, indices: NDArray[np.int64]) -> NDArray[np.uint32]:
    """One random number for each index, which may be negative."""
    start = _mix(np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, stream], np.uint32))
    salt = _mix(start[:1] * np.uint32(3) ^ start[1:2] * np.uint32(5) ^ start[2:])
    return _mix(_mix(indices.astype(np.uint32)) + salt)  # wraps around


def hashed(seed: int, stream: int, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Random numbers of the rectangle rows x cols: (H, W) uint32."""
    return _mix(keys(seed, 2 * stream, rows)[:, None] ^ keys(seed, 2 * stream + 1, cols)[None, :])


def uniform(seed: int, stream: int, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1): (H, W) float32."""
    return (hashed(seed, stream, rows, cols) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


@lru_cache(maxsize=1)
def _normal_table() -> NDArray[np.float32]:
    """The standard normal distribution's quantiles at 2^14 equal steps: a hash of 14 bits becomes a normal number."""
    inverse = NormalDist().inv_cdf
    table = np.array([inverse((i + 0.5) / (1 << 14)) for i in range(1 << 14)])
    return np.asarray(table / table.std(), np.float32)


def normal(seed: int, stream: int, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float32]:
    """Standard normal numbers: (H, W) float32."""
    return np.asarray(np.take(_normal_table(), hashed(seed, stream, rows, cols) >> np.uint32(18)))


def gamma(seed: int, stream: int, rows: NDArray[np.int64], cols: NDArray[np.int64], looks: int) -> NDArray[np.float32]:
    """Gamma numbers of mean 1 and variance 1 / looks, as the mean of `looks` exponential ones: (H, W) float32.

    They draw from `looks` streams, from `stream` on.
    """
    product = np.ones((rows.size, cols.size), np.float64)
    for look in range(looks):
        product *= uniform(seed, stream + look, rows, cols) + np.float32(2**-25)
    return (np.log(product) / -looks).astype(np.float32)


def smooth(
    seed: int, stream: int, rows: NDArray[np.int64], cols: NDArray[np.int64], spacing: int
) -> NDArray[np.float32]:
    """Value noise in [0, 1]: random numbers `spacing` pixels apart, and a smooth surface through them: (H, W)."""
    (top, down), (left, right) = (_knots(axis, spacing) for axis in (rows, cols))
    knots = uniform(
        seed, stream, np.arange(top[0], top[-1] + 2, dtype=np.int64), np.arange(left[0], left[-1] + 2, dtype=np.int64)
    )
    upper, lower = knots[top - top[0]], knots[top - top[0] + 1]
    lines = upper + (lower - upper) * down[:, None]
    start = lines[:, left - left[0]]
    result: NDArray[np.float32] = start + (lines[:, left - left[0] + 1] - start) * right[None, :]
    return result


def _knots(axis: NDArray[np.int64], spacing: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The knot before each pixel, and how far the surface has gone to the next one (0..1, smooth at both)."""
    knot = axis // spacing
    t = ((axis - knot * spacing).astype(np.float32) + np.float32(0.5)) / np.float32(spacing)
    return knot, np.asarray(t * t * (3 - 2 * t))


def chunks(window: Window) -> Iterator[tuple[slice, slice, NDArray[np.int64], NDArray[np.int64]]]:
    """Cuts a window into pieces of at most `_CHUNK` pixels: their place in it, and their rows and columns."""
    wide = min(window.width, 4096)
    tall = max(1, _CHUNK // max(1, wide))
    for row in range(0, window.height, tall):
        for col in range(0, window.width, wide):
            place = slice(row, min(row + tall, window.height)), slice(col, min(col + wide, window.width))
            rows = np.arange(window.row + place[0].start, window.row + place[0].stop, dtype=np.int64)
            cols = np.arange(window.col + place[1].start, window.col + place[1].stop, dtype=np.int64)
            yield (*place, rows, cols)
