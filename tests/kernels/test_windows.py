"""Statistics of windows by the compiled kernel and by NumPy, beside plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from landfuse.kernels import windows
from landfuse.kernels.windows import window_statistics

KERNELS = [
    pytest.param(lambda: None, id="numpy"),
    pytest.param(
        windows._library,
        id="native",
        marks=pytest.mark.skipif(windows._library() is None, reason="it was not compiled"),
    ),
]


def image_of(zoom: int, channels: int, rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(zoom)
    image = (rng.normal(size=(2, rows * zoom, columns * zoom, channels)) * 100 + 1000).astype(np.float32)
    image[rng.random(image.shape) < 0.05] = np.nan
    image[:, : 8 * zoom] = np.nan
    image[:, -zoom:, -zoom:] = np.inf
    return image


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("zoom", "channels"), [(1, 3), (2, 9)])
def test_means_and_deviations_are_those_of_plain_loops(
    kernel: Callable[[], object], zoom: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_library", kernel)
    image, sides, halo = image_of(zoom, channels, 17, 43), (3, 7), 3
    rows, columns = 17 - 2 * halo, 43 - 2 * halo
    room = np.full((2 * rows * columns, 4 * channels + 2), -1, np.float32)
    window_statistics(image, zoom, sides, room[:, 1:-1])
    assert (room[:, [0, -1]] == -1).all(), "columns beside it are not touched"
    found = room[:, 1:-1].reshape(2, rows, columns, 2, 2, channels)
    for place in ((0, 0, 0), (0, 5, 3), (1, rows - 1, columns - 1), (1, 9, 31), (0, 2, 32)):
        number, row, column = place
        for which, side in enumerate(sides):
            first = [(middle + halo - side // 2) * zoom for middle in (row, column)]
            seen = image[number, first[0] : first[0] + side * zoom, first[1] : first[1] + side * zoom].astype(
                np.float64
            )
            for channel in range(channels):
                known = seen[..., channel][np.isfinite(seen[..., channel])]
                expected = (known.mean(), known.std()) if len(known) else (np.nan, np.nan)
                np.testing.assert_allclose(found[(*place, which)][:, channel], expected, rtol=1e-5, atol=2e-4)


@pytest.mark.skipif(windows._library() is None, reason="it was not compiled")
@pytest.mark.parametrize(("zoom", "channels"), [(1, 14), (3, 1)])
def test_both_give_the_same_numbers(zoom: int, channels: int) -> None:
    image = image_of(zoom, channels, 19, 75)
    expected = windows._by_numpy(image, zoom, (3, 7, 15))
    found = np.empty_like(expected)
    window_statistics(image, zoom, (3, 7, 15), found)
    np.testing.assert_array_equal(found, expected)
