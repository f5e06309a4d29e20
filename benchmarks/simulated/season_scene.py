"""A simulated region over a year: classes that differ by their seasons, clouds over optical dates, SAR through them.

The parcels are those of `simulate`; what grows on them is drawn here. A pixel's greenness rises and falls at days of
its class, shifted by parcel and year; bare soil or water lies beneath. No value depends on the window.

| class        | green from, to (day of year) | VV, VH when bare and when green (dB) |
|--------------|------------------------------|---------------------------------------|
| water        | never                        | -19, -26                              |
| winter wheat | 80, 185                      | -11, -19 and -14, -20                 |
| grassland    | 85, 300, never bare          | -12, -19 and -12, -18                 |
| maize        | 160, 265                     | -11, -19 and -10, -16                 |
| rapeseed     | 75, 180, in flower at 120    | -11, -19 and -10.5, -15.5             |
| forest       | 115, 290                     | -9, -16 and -9.5, -15                 |
| built-up     | never                        | -8, -15                               |
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.grid import Grid
from landfuse.rasters.place_noise import chunks, gamma, normal, smooth, uniform
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.series.dates import periods_of
from landfuse.series.series_raster import DatedRaster, series_of
from landfuse.series.settings import DateSettings
from landfuse.settings import parse
from landfuse.simulate.parcels import Piece, piece_of
from landfuse.simulate.scene import LOOKS, SimulatedRaster

_NAMES = ("water", "winter wheat", "grassland", "maize", "rapeseed", "forest", "built-up")
_COLOURS = ("#0072B2", "#E6C34A", "#B8D96B", "#F0902B", "#F0E442", "#117733", "#BB2211")
_CLASS_OF_GROUND = np.array([0, 1, 2, 3, 4, 5, 6, 6], np.uint8)  # roads and halls are both built-up

_START = np.array([400, 80, 85, 160, 75, 115, 400])  # day of the year, by class
_END = np.array([400, 185, 300, 265, 180, 290, 400])
_LEAST = np.array([0.0, 0.05, 0.35, 0.05, 0.05, 0.25, 0.08])  # greenness out of season, and in it
_MOST = np.array([0.0, 0.85, 0.75, 0.85, 0.85, 0.9, 0.08])
_WIDTH = 9  # days in which greenness changes by half
_SHIFT, _YEAR_SHIFT = 12, 8  # days either way, of a parcel and of a year

_SPECTRA = np.array(
    [[0.10, 0.14, 0.24, 0.30], [0.05, 0.03, 0.46, 0.19]], np.float32
)  # soil, leaves: B03, B04, B08, B11
_WATER, _BUILT = np.array([0.05, 0.03, 0.02, 0.01]), np.array([0.14, 0.16, 0.20, 0.24])
_BARE_DB = np.array([[-19, -26], [-11, -19], [-12, -19], [-11, -19], [-11, -19], [-9, -16], [-8, -15]])
_GREEN_DB = np.array([[-19, -26], [-14, -20], [-12, -18], [-10, -16], [-10.5, -15.5], [-9.5, -15], [-8, -15]])
_PARCEL_DB = 2.5  # either way, by the rows and the roughness of a parcel
_FLOWERS, _FLOWERING, _YELLOW = 4, 120, np.array([0.06, 0.08, 0.0, 0.0])  # class, day, reflectance
_NOISE, _CLOUD_SIZE = 0.012, 40

_YEARS, _CLOUDS, _WET, _OPTICAL, _SPECKLE = 9_999, 10_000, 20_000, 100_000, 200_000
"""Streams of random numbers; from the second on, one or more for each day."""


def simulate_seasons(
    height: int = 256,
    width: int = 256,
    seed: int = 0,
    *,
    year: int = 2022,
    clouds: float = 0.5,
    step: int = 15,
    **dates: Any,
) -> Scene:
    """A year of optical images (`s2`, reflectance of four bands) and SAR (`s1`, VV and VH in dB), and seven classes.

    Args:
        seed: of the ground and of what grows on it.
        year: of the dates; weather and the start of the season differ from year to year.
        clouds: fraction of the pixels of each optical date that are hidden, 0..1.
        step: days from one optical date to the next; SAR has one every 12 days.
        dates: what is made of the dates, as under `dates` in a scene file; by default they stay as they are.
    """
    how = parse(DateSettings, dates, "simulate_seasons")
    grid = Grid(height, width, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")

    def series(
        name: str, bands: tuple[str, ...], days: range, source: Callable[[int], Any], units: str
    ) -> SceneModality:
        each = [date(year, 1, 1) + timedelta(day - 1) for day in days]
        rasters = [SimulatedRaster(grid, len(bands), source(day), f"{name} at {day}") for day in days]
        dated = [DatedRaster(day, raster) for day, raster in zip(each, rasters, strict=True)]
        return SceneModality(series_of(dated, periods_of(how.every, how.between, each), bands, how), units=units)

    return Scene(
        f"seasons-{seed}-{year}",
        grid,
        {
            "s2": series(
                "s2",
                ("B03", "B04", "B08", "B11"),
                range(5, 366, step),
                lambda day: partial(_reflectance, seed, year, day, clouds),
                "reflectance",
            ),
            "s1": series(
                "s1", ("VV", "VH"), range(3, 366, 12), lambda day: partial(_backscatter, seed, year, day), "dB"
            ),
        },
        Legend(tuple(LandClass(n, code, c) for code, (n, c) in enumerate(zip(_NAMES, _COLOURS, strict=True), start=1))),
        partial(_labels, seed, grid),
    )


def _stream(first: int, year: int, day: int, each: int = 1) -> int:
    return first + ((year % 20) * 366 + day) * each


def _ground(seed: int, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> tuple[Piece, NDArray[np.uint8]]:
    return _ground_between(seed, int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1)


@lru_cache(maxsize=8)  # all dates of a window have the same
def _ground_between(seed: int, top: int, bottom: int, left: int, right: int) -> tuple[Piece, NDArray[np.uint8]]:
    piece = piece_of(seed, np.arange(top, bottom, dtype=np.int64), np.arange(left, right, dtype=np.int64))
    return piece, _CLASS_OF_GROUND[piece.classes]


def _greenness(seed: int, year: int, day: int, piece: Piece, classes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """From 0 to 1, of each pixel: (H, W)."""
    one = np.array([year], np.int64)
    shift = 2 * _YEAR_SHIFT * (uniform(0, _YEARS, one, one)[0, 0] - 0.5)
    parcel = (piece.mixture[:, 0] - 0.5) * 2 * _SHIFT  # uniform, of each parcel
    own = day - shift - parcel[piece.parcel]
    rise = 1 / (1 + np.exp((_START[classes] - own) / _WIDTH))
    fall = 1 / (1 + np.exp((own - _END[classes]) / _WIDTH))
    most = _MOST[classes] * (0.75 + 0.25 * piece.vigour[piece.parcel])
    return np.asarray(_LEAST[classes] + np.maximum(most - _LEAST[classes], 0) * rise * fall, np.float32)


@lru_cache(maxsize=16)
def _cloud_level(fraction: float) -> float:
    """Below which the noise that clouds are made of is at this fraction of places."""
    axis = np.arange(1024, dtype=np.int64)
    return float(np.quantile(smooth(0, _CLOUDS, axis, axis, _CLOUD_SIZE), fraction)) if fraction else -1.0


def _reflectance(seed: int, year: int, day: int, clouds: float, window: Window) -> NDArray[np.float32]:
    """(4, H, W), NaN below clouds."""
    out = np.empty((4, window.height, window.width), np.float32)
    for down, right, rows, cols in chunks(window):
        piece, classes = _ground(seed, rows, cols)
        green = _greenness(seed, year, day, piece, classes)
        flowers = green * (classes == _FLOWERS) * np.exp(-(((day - _FLOWERING) / 12) ** 2))
        hidden = smooth(seed, _stream(_CLOUDS, year, day), rows, cols, _CLOUD_SIZE) < _cloud_level(clouds)
        for band, (soil, leaves) in enumerate(_SPECTRA.T):
            values = soil * (0.8 + 0.4 * piece.mixture[piece.parcel, 1]) * (1 - green) + leaves * green
            values = values + _YELLOW[band] * flowers
            values = np.where(classes == 0, _WATER[band], np.where(classes == 6, _BUILT[band], values))
            values = values + _NOISE * normal(seed, _stream(_OPTICAL, year, day, 4) + band, rows, cols)
            out[band, down, right] = np.where(hidden, np.nan, values)
    return out


def _backscatter(seed: int, year: int, day: int, window: Window) -> NDArray[np.float32]:
    """(2, H, W) in dB, of `LOOKS` looks; wet soil is brighter on some days than on others."""
    out = np.empty((2, window.height, window.width), np.float32)
    one = np.array([0], np.int64)
    wet = 3 * (uniform(seed, _stream(_WET, year, day), one, one)[0, 0] - 0.5)
    for down, right, rows, cols in chunks(window):
        piece, classes = _ground(seed, rows, cols)
        green = _greenness(seed, year, day, piece, classes)
        for band in range(2):
            bare, full = _BARE_DB[classes, band], _GREEN_DB[classes, band]
            decibels = bare + (full - bare) * green + wet * (1 - green) * (classes != 0)
            decibels += 2 * _PARCEL_DB * (piece.mixture[piece.parcel, 1] - 0.5)
            speckle = gamma(seed, _stream(_SPECKLE, year, day, 2 * LOOKS) + LOOKS * band, rows, cols, LOOKS)
            out[band, down, right] = decibels + 10 * np.log10(speckle)
    return out


def _labels(seed: int, grid: Grid) -> NDArray[np.uint8]:
    """The classes of six parcels in ten, (H, W) uint8; `UNLABELLED` elsewhere and in mixed pixels."""
    out = np.empty((grid.height, grid.width), np.uint8)
    for down, right, rows, cols in chunks(grid.window):
        piece, classes = _ground(seed, rows, cols)
        known = (piece.covered[piece.parcel] < 0.6) & (piece.rest == 0)
        out[down, right] = np.where(known, classes, np.uint8(UNLABELLED))
    return out
