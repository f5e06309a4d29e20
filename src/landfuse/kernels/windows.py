"""Means and standard deviations of the windows around each pixel, by the compiled kernel or by NumPy.

Both add in the same order, and so give the same numbers; no torch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from ctypes import c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from landfuse.kernels.native_library import library

_CHANNELS_AT_ONCE = 8


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("image", c_void_p), *((name, c_int64) for name in ("images", "rows", "columns", "channels", "zoom")),
        ("half", c_void_p), ("windows", c_int64), ("found", c_void_p), ("stride", c_int64),
    ]  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = library("landfuse_windows_size", _Arguments)
    if found is not None:
        found.landfuse_windows_run.argtypes = [ctypes.POINTER(_Arguments)]
    return found


def window_statistics(image: NDArray[np.float32], zoom: int, windows: Sequence[int], out: NDArray[np.float32]) -> None:
    """Writes the mean and the standard deviation of each channel in each window, of the values that are there.

    Args:
        image: (B, (H + 2 halo) * zoom, (W + 2 halo) * zoom, C), NaN where there is no data.
        zoom: values per pixel, along each side.
        windows: sides, px, odd and ascending; the halo is half of the last.
        out: (B * H * W, windows * 2 * C), the numbers of a pixel side by side; NaN where nothing is known.
    """
    native = _library()
    if native is None:
        out[:] = _by_numpy(image, zoom, windows)
        return
    image, half = np.ascontiguousarray(image, np.float32), np.array(windows, np.int64) // 2
    count, height, width, channels = image.shape
    rows, columns = height // zoom - 2 * int(half[-1]), width // zoom - 2 * int(half[-1])
    arguments = _Arguments(
        image.ctypes.data, count, rows, columns, channels, zoom, half.ctypes.data, len(half), out.ctypes.data,
        out.strides[0] // out.itemsize,
    )  # fmt: skip
    if native.landfuse_windows_run(arguments):
        raise MemoryError("there is no memory for the sums of a window")


def _by_numpy(image: NDArray[np.float32], zoom: int, windows: Sequence[int]) -> NDArray[np.float32]:
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(2 * len(windows))]
    for start in range(0, image.shape[3], _CHANNELS_AT_ONCE):
        values = image[..., start : start + _CHANNELS_AT_ONCE].astype(np.float64)
        known = np.isfinite(values)
        if (known == known[..., :1]).all():
            known = known[..., :1]  # as is usual; counts are the same number then
        values = np.where(known, values, 0)
        moments = _cells(np.concatenate([values, values * values, known], axis=3), zoom)
        for place, sums in enumerate(_window_sums(moments, windows)):
            total, squares, count = np.split(sums, [values.shape[3], 2 * values.shape[3]], axis=3)
            with np.errstate(invalid="ignore"):
                mean = total / count
                variance = squares / count - mean * mean
            found[2 * place].append(mean.astype(np.float32))
            found[2 * place + 1].append(np.sqrt(variance.clip(0)).astype(np.float32))
    whole = [np.concatenate(parts, axis=3).reshape(-1, image.shape[3]) for parts in found]
    return np.concatenate(whole, axis=1)


def _cells(values: NDArray[np.float64], zoom: int) -> NDArray[np.float64]:
    """Sums of the zoom x zoom values within each pixel, in a fixed order."""
    places = [(row, col) for row in range(zoom) for col in range(zoom)]
    total = values[:, ::zoom, ::zoom].copy()
    for row, col in places[1:]:
        total += values[:, row::zoom, col::zoom]
    return total


def _window_sums(moments: NDArray[np.float64], windows: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """Sums over each window, (B, H, W, C), of numbers of pixels, (B, H + 2 halo, W + 2 halo, C).

    Row by row, then column by column, from the middle outwards: a pixel's sums are added up in the same order in every
    block, and with 53 bits of numbers of 24. Running sums would depend on where they began.
    """
    halo, done = max(windows) // 2, 0
    height, width = moments.shape[1] - 2 * halo, moments.shape[2] - 2 * halo
    down = moments[:, halo : halo + height].copy()
    for size in windows:
        for step in range(done + 1, size // 2 + 1):
            down += moments[:, halo - step : halo - step + height]
            down += moments[:, halo + step : halo + step + height]
        done = size // 2
        across = down[:, :, halo : halo + width].copy()
        for step in range(1, done + 1):
            across += down[:, :, halo - step : halo - step + width]
            across += down[:, :, halo + step : halo + step + width]
        yield across
