"""Simulated scenes of several modalities, computed window by window: for the demo and for tests of scale.

Every pixel is a function of the seed and of its own row and column, so that any window gives the same values as the
whole scene, and a scene of any size takes no memory.

What `simulate` draws: warped Voronoi parcels of water, bare soil, grassland, crop, shrub, trees or settlement (halls
on paved ground), with roads along some of their borders. What each modality can distinguish:

| class      | material (hsi) | height (m)    | VV, VH (dB) |
|------------|----------------|---------------|-------------|
| water      | water          | 0             | -19, -26    |
| bare soil  | soil           | 0             | -12, -20    |
| grassland  | herb           | 0.1           | -12, -19    |
| crop       | herb           | 1.2 to 2.6    | -11, -18    |
| shrub      | wood           | 1.2 to 2.6    | -11, -17    |
| trees      | wood           | 5 to 12       | -9, -15     |
| road       | mineral        | 0             | -16, -24    |
| building   | mineral        | 5 to 12       | -6, -14     |

Classes of one material share their spectra; the others share their height. Neither alone can name the eight classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.palette import PALETTE
from landfuse.rasters.grid import Grid
from landfuse.rasters.place_noise import chunks, gamma, keys, normal, smooth
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.parcels import Stream, piece_of

LOOKS = 4
"""Equivalent number of looks of the simulated SAR intensity: its speckle has mean 1 and variance 1 / LOOKS."""

REFLECTANCE_NOISE = 0.012
"""Standard deviation of the noise of each hyperspectral band, in reflectance."""

HEIGHT_NOISE = 0.08
"""Standard deviation of the noise of the height, in metres."""

STRIPE_PERIOD = 128
"""Pixels from one gap between flight lines to the next."""

_NAMES = ("water", "bare soil", "grassland", "crop", "shrub", "trees", "road", "building")
_COLOURS = ("#0072B2", "#CC9966", "#B8D96B", "#F0E442", "#7A9A01", "#117733", "#A6A6A6", "#BB2211")

_LOW = np.array([0.0, 0.0, 0.05, 1.2, 1.2, 5.0, 0.0, 5.0], np.float32)  # m, by class
_HIGH = np.array([0.0, 0.0, 0.15, 2.6, 2.6, 12.0, 0.0, 12.0], np.float32)
_ROUGHNESS = np.array(
    [0.0, 0.05, 0.3, 0.3, 0.6, 0.7, 0.0, 0.0], np.float32
)  # fraction of the height that texture takes
_VV = np.array([-19.0, -12.0, -12.0, -11.0, -11.0, -9.0, -16.0, -6.0])  # dB, by class
_VH = np.array([-26.0, -20.0, -19.0, -18.0, -17.0, -15.0, -24.0, -14.0])


@dataclass(frozen=True)
class SimulatedRaster:
    """A raster whose pixels are computed when they are read; a `Raster`.

    Args:
        grid: its grid.
        bands: number of bands.
        source: computes a window, (bands, height, width) float32; a `partial` of a module's function, to be picklable.
        name: stands in `path`.
    """

    grid: Grid
    bands: int
    source: Callable[[Window], NDArray[np.float32]]
    name: str
    dtype = "float32"

    @property
    def path(self) -> str:
        """A name for messages; there is no file."""
        return f"simulated:{self.name}"

    def read(self, window: Window) -> NDArray[np.float32]:
        """Computes a window inside the grid: (bands, height, width), NaN where there is no data."""
        return self.source(window)


def simulate(
    height: int = 256,
    width: int = 256,
    seed: int = 0,
    *,
    hyperspectral_bands: int = 48,
    nodata_fraction: float = 0.03,
    labelled_fraction: float = 0.6,
) -> Scene:
    """A scene of eight classes that only spectra and heights together distinguish.

    The modalities are `hsi` (reflectance from 0.4 to 2.4 µm: two endmembers mixed per parcel, parcels mixed linearly
    at their borders, varying illumination, white noise), `height` (metres above ground, with texture, noise and gaps
    between flight lines) and `sar` (VV and VH intensity in dB, gamma speckle of `LOOKS` looks).

    Args:
        seed: of everything; the same seed gives the same pixels, in a scene of any size.
        hyperspectral_bands: bands of `hsi`.
        nodata_fraction: fraction of `height` without data, 0..1, in diagonal stripes.
        labelled_fraction: fraction of the parcels that have labels, 0..1; their mixed border pixels have none.
    """
    grid = Grid(height, width, (1.0, 0.0, 500_000.0, 0.0, -1.0, 5_400_000.0), "EPSG:32632")
    sources: dict[str, tuple[int, Callable[[Window], NDArray[np.float32]], str]] = {
        "hsi": (hyperspectral_bands, partial(_reflectance, seed, hyperspectral_bands), "reflectance"),
        "height": (1, partial(_height, seed, nodata_fraction), "m"),
        "sar": (2, partial(_backscatter, seed), "dB"),
    }
    return Scene(
        f"simulated-{seed}",
        grid,
        {
            name: SceneModality(SimulatedRaster(grid, bands, source, name), units=units)
            for name, (bands, source, units) in sources.items()
        },
        Legend(tuple(LandClass(n, code, c) for code, (n, c) in enumerate(zip(_NAMES, _COLOURS, strict=True), start=1))),
        partial(_labels, seed, grid, labelled_fraction),
    )


def simulate_flat(height: int, width: int, bands: Mapping[str, int], seed: int = 0) -> Scene:
    """A scene that is cheap to compute, for tests of scale: a chequered slope and noise in every band.

    Its four classes are the fields of the chequers, so that a model can learn them; all of it is labelled.

    Args:
        bands: modality -> number of bands.
    """
    grid = Grid(height, width, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
    modalities = {
        name: SceneModality(
            SimulatedRaster(grid, count, partial(_slopes, seed, 10_000 * index, count), name), units="1"
        )
        for index, (name, count) in enumerate(bands.items())
    }
    classes = tuple(LandClass(f"field {index + 1}", index + 1, PALETTE[index]) for index in range(4))
    return Scene(f"flat-{seed}", grid, modalities, Legend(classes), partial(_fields, grid))


# ---- what the sensors see --------------------------------------------------------------------------------------------


def _dip(wavelength: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.exp(-np.square((wavelength - centre) / width))
    return result


def _endmembers(bands: int) -> NDArray[np.float32]:
    """Two reflectance spectra for each of five materials, (5, 2, bands), from 0.4 to 2.4 µm: pure shapes.

    Vegetation has a green peak, a red edge at 0.72 µm and water absorption at 0.97, 1.2, 1.45 and 1.94 µm; soil rises
    and has a clay feature at 2.2 µm; water is dark beyond 0.7 µm; asphalt and concrete are flat.
    """
    w = np.linspace(0.4, 2.4, bands)

    def leaves(plateau: float, green: float, edge: float, moisture: float) -> NDArray[np.float64]:
        rise = 1 / (1 + np.exp(-(w - edge) / 0.018))
        slope = 1 - 0.28 * np.clip(w - 1.3, 0, None)
        water = 0.12 * _dip(w, 0.97, 0.04) + 0.2 * _dip(w, 1.2, 0.06) + _dip(w, 1.45, 0.09) + 1.1 * _dip(w, 1.94, 0.12)
        visible = 0.035 + green * _dip(w, 0.55, 0.045)
        result: NDArray[np.float64] = visible * (1 - rise) + plateau * rise * slope * np.exp(-moisture * water)
        return result

    def bare(dark: float, rise: float, clay: float) -> NDArray[np.float64]:
        result: NDArray[np.float64] = (dark + rise * (1 - np.exp(-(w - 0.4) / 0.6))) * (1 - clay * _dip(w, 2.2, 0.05))
        return result

    water = [0.02 + 0.07 * np.exp(-(w - 0.4) / 0.12), 0.02 + 0.05 * _dip(w, 0.57, 0.12)]
    soil = [bare(0.07, 0.33, 0.18), bare(0.05, 0.22, 0.1)]
    herb = [leaves(0.52, 0.09, 0.715, 0.75), leaves(0.44, 0.12, 0.705, 0.45)]
    wood = [leaves(0.40, 0.035, 0.725, 1.15), leaves(0.30, 0.025, 0.73, 1.35)]
    mineral = [bare(0.07, 0.06, 0.0), bare(0.14, 0.10, 0.03)]
    return np.array([water, soil, herb, wood, mineral], dtype=np.float32)


_MATERIAL = np.array([0, 1, 2, 2, 3, 3, 4, 4])  # by class


def _reflectance(seed: int, bands: int, window: Window) -> NDArray[np.float32]:
    """Hyperspectral reflectance of the ground, (bands, H, W), not negative."""
    out = np.empty((bands, window.height, window.width), np.float32)
    endmembers = _endmembers(bands)
    for down, right, rows, cols in chunks(window):
        piece = piece_of(seed, rows, cols)
        paved = _MATERIAL == 4
        # One spectrum for each parcel and class: a mixture of the two endmembers of the class's material.
        weight = np.where(paved[None, :], piece.mixture[:, 1:], piece.mixture[:, :1])[..., None]  # (P, 8, 1)
        pair = endmembers[_MATERIAL][None]  # (1, 8, 2, bands)
        spectra = np.ascontiguousarray((pair[:, :, 0] * (1 - weight) + pair[:, :, 1] * weight).reshape(-1, bands).T)
        own = piece.parcel * 8 + piece.classes
        mixed = np.nonzero(piece.rest)
        other = (piece.other_parcel * 8 + piece.other)[mixed]
        rest = piece.rest[mixed]
        light = np.float32(0.7) + np.float32(0.4) * smooth(seed, Stream.LIGHT, rows, cols, 48)
        for band in range(bands):
            values = np.take(spectra[band], own)
            pure = values[mixed]
            values[mixed] = pure + (np.take(spectra[band], other) - pure) * rest
            values *= light
            noise = normal(seed, Stream.BAND_NOISE + band, rows, cols)
            noise *= np.float32(REFLECTANCE_NOISE)
            values += noise
            np.maximum(values, 0, out=out[band, down, right])
    return out


def _height(seed: int, nodata_fraction: float, window: Window) -> NDArray[np.float32]:
    """Height of the surface above the ground, as a LiDAR gives it: (1, H, W) in metres."""
    out = np.empty((1, window.height, window.width), np.float32)
    for down, right, rows, cols in chunks(window):
        piece = piece_of(seed, rows, cols)
        classes = piece.classes
        full = _LOW[classes] + (_HIGH - _LOW)[classes] * piece.vigour[piece.parcel]
        texture = smooth(seed, Stream.CANOPY, rows, cols, 5)
        values = full * (1 - _ROUGHNESS[classes] * texture)
        values += np.float32(HEIGHT_NOISE) * normal(seed, Stream.HEIGHT_NOISE, rows, cols)
        phase = (cols[None, :] * 3 + rows[:, None]) % (3 * STRIPE_PERIOD)
        values[phase < nodata_fraction * 3 * STRIPE_PERIOD] = np.nan
        out[0, down, right] = values
    return out


def _backscatter(seed: int, window: Window) -> NDArray[np.float32]:
    """SAR intensity of the ground in two polarisations: (2, H, W) in dB."""
    out = np.empty((2, window.height, window.width), np.float32)
    for down, right, rows, cols in chunks(window):
        piece = piece_of(seed, rows, cols)
        for band, decibels in enumerate((_VV, _VH)):
            power = (10 ** (decibels / 10)).astype(np.float32)
            mean = power[piece.classes]
            mean += (power[piece.other] - mean) * piece.rest
            stream = Stream.SPECKLE + LOOKS * band
            out[band, down, right] = 10 * np.log10(mean * gamma(seed, stream, rows, cols, LOOKS))
    return out


def _labels(seed: int, grid: Grid, labelled_fraction: float) -> NDArray[np.uint8]:
    """The classes of the labelled parcels, (H, W) uint8; `UNLABELLED` outside them and in mixed pixels."""
    out = np.empty((grid.height, grid.width), np.uint8)
    for down, right, rows, cols in chunks(grid.window):
        piece = piece_of(seed, rows, cols)
        known = (piece.covered[piece.parcel] < labelled_fraction) & (piece.rest == 0)
        out[down, right] = np.where(known, piece.classes, np.uint8(UNLABELLED))
    return out


# ---- the cheap scene -------------------------------------------------------------------------------------------------

_FIELD = 64  # px


def _wave(axis: NDArray[np.int64], shift: int) -> NDArray[np.float32]:
    """A triangle from -1 to 1 and back over two fields; positive in every other field."""
    t = ((axis + shift) % (2 * _FIELD)).astype(np.float32) + np.float32(0.5)
    return np.asarray(1 - np.abs(t - _FIELD) * np.float32(2 / _FIELD))


def _slopes(seed: int, first: int, bands: int, window: Window) -> NDArray[np.float32]:
    """Bands of slopes and noise: (bands, H, W), about -3 to 3."""
    out = np.empty((bands, window.height, window.width), np.float32)
    for down, right, rows, cols in chunks(window):
        high, wide = _wave(rows, _FIELD // 2)[:, None], _wave(cols, _FIELD // 2)[None, :]
        for band in range(bands):
            stream = 2 * (first + band)
            noise = keys(seed, stream, rows)[:, None] ^ keys(seed, stream + 1, cols)[None, :]
            noise *= np.uint32(0x9E3779B1)  # a shorter scramble than `_mix`: speed matters here, quality does not
            noise ^= noise >> np.uint32(15)
            noise *= np.uint32(0x85EBCA6B)
            place = out[band, down, right]
            np.multiply(noise.view(np.int32), np.float32(2**-31), out=place, dtype=np.float32, casting="unsafe")
            place += high if band % 2 else wide * (1 + band % 3)
    return out


def _fields(grid: Grid) -> NDArray[np.uint8]:
    """The chequers of the cheap scene as classes: (H, W) uint8, 0..3."""
    high, wide = (
        (_wave(np.arange(size, dtype=np.int64), _FIELD // 2) > 0).astype(np.uint8) for size in (grid.height, grid.width)
    )
    return 2 * high[:, None] + wide[None, :]
