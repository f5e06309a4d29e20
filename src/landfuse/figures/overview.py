"""A scene at a glance: modalities thinned out and shown as people know them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
from numpy.typing import NDArray

from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import ModalityInfo, Scene, SceneModality


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
    """The light that a matt surface reflects: (H, W), 0 (in its own shade) to 1; NaN where there is no data.

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


_BLOCK = 512
"""Side of the blocks that are read, about; px."""

_PLACES, _AROUND = 16, 9
"""Windows that are drawn for each class, and their side, px."""

_STEEP = 0.7
"""The slope that the steeper parts of heights are drawn with, as a ratio; flat land would show nothing."""


@dataclass(frozen=True)
class Overview:
    """One modality as a picture.

    Args:
        image: (h, w, 3) uint8; without meaning where there is no data.
        known: (h, w), where there is data.
        how: what it shows, in words.
    """

    image: NDArray[np.uint8]
    known: NDArray[np.bool_]
    how: str

    @property
    def on_white(self) -> NDArray[np.uint8]:
        """The picture with white where there is no data, (h, w, 3) uint8."""
        return np.where(self.known[:, :, None], self.image, np.uint8(255))


def thinning(height: int, width: int, longest: int) -> int:
    """How many pixels one pixel of a picture stands for, along each side."""
    return max(1, -(-max(height, width) // longest))


def thinned_classes(classes: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Every `step`-th pixel of classes, from the middle of the pixels that it stands for: (H, W) -> (h, w)."""
    height, width = classes.shape
    rows = np.minimum(np.arange(0, height, step) + step // 2, height - 1)
    cols = np.minimum(np.arange(0, width, step) + step // 2, width - 1)
    return classes[np.ix_(rows, cols)]


def thinned(scene: Scene, modality: str, step: int, bands: Sequence[int]) -> NDArray[np.float32]:
    """Some bands of a modality, averaged over squares of pixels and read block by block.

    Args:
        step: side of the squares, in the modality's pixels.
        bands: from 0.

    Returns:
        (C, h, w) float32; NaN where a square holds no data.
    """
    part = scene.modalities[modality]
    read = _reader(scene, modality, bands)
    height, width = scene.grid.height, scene.grid.width
    sides = [-(-size * part.zoom // step) for size in (height, width)]
    result = np.empty((len(bands), *sides), np.float32)
    for window in blocks(height, width, step * max(1, _BLOCK // (step * part.zoom))):
        values = read(window)
        row, col = window.row * part.zoom // step, window.col * part.zoom // step
        mean = _means(values, step)
        result[:, row : row + mean.shape[1], col : col + mean.shape[2]] = mean
    return result


def _reader(scene: Scene, modality: str, bands: Sequence[int]) -> Callable[[Window], NDArray[np.float32]]:
    """Reads windows of some bands of a modality, and, where its kind allows, nothing else."""
    part = scene.modalities[modality]
    raster, places = part.raster, list(bands)
    if hasattr(raster, "with_bands"):
        unique = sorted(set(bands))
        raster, places = raster.with_bands(unique), [unique.index(band) for band in bands]
    narrow = dataclasses.replace(scene, modalities={modality: SceneModality(raster, part.zoom, part.units)})
    return lambda window: narrow.read(modality, window)[places]


def _means(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of squares, (C, H, W) -> (C, ceil(H / step), ceil(W / step)), over the pixels that have data."""
    if step == 1:
        return values
    known = np.isfinite(values)
    starts = [np.arange(0, size, step) for size in values.shape[1:]]
    total, count = (
        np.add.reduceat(np.add.reduceat(one, starts[0], axis=1), starts[1], axis=2)
        for one in (np.where(known, values, 0).astype(np.float64), known.astype(np.int64))
    )
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0).astype(np.float32)


def shown_bands(scene: Scene, modality: str) -> tuple[tuple[int, ...], str]:
    """Which bands show a modality as people know it, from 0, and what they are, in words.

    By the bands' wavelengths or names, by Sentinel-2's order where the modality is called so, the first three of three
    or four, or three spread over many; of a series, those of the period in the middle.
    """
    info = scene.modalities[modality].info
    if not info.per_step:
        return _shown_bands(scene, modality, info)
    middle, count = len(info.steps) // 2, info.per_step
    names = tuple(name.partition(" ")[2] for name in info.names[:count])
    chosen, how = _shown_bands(scene, modality, dataclasses.replace(info, bands=count, names=names))
    return tuple(middle * count + band for band in chosen), f"{info.steps[middle]}: {how}"


def _shown_bands(scene: Scene, modality: str, info: ModalityInfo) -> tuple[tuple[int, ...], str]:
    count = info.bands
    if _height(scene, modality):
        return (0,), "height, lit from the north-west"
    if in_decibel(scene, modality):
        if count == 1:
            return (0,), "backscatter in dB"
        return (0, 1), "bands 1 and 2 in dB as red and green, their difference as blue"
    if count < 3:
        return (0,), "band 1 in grey"
    named = _by_name(info)
    if named:
        return named, f"{_numbered(named)} as red, green and blue"
    if re.match(r"(s2|sentinel_?2)", modality, re.IGNORECASE) and count in (10, 12, 13):
        chosen = (2, 1, 0) if count == 10 else (3, 2, 1)
        return chosen, f"{_numbered(chosen)} as red, green and blue (by Sentinel-2's usual order)"
    if count <= 4:
        return (0, 1, 2), f"{_numbered((0, 1, 2))} as red, green and blue"
    spread = (2 * count // 3, count // 3, count // 12)
    return spread, f"false colour: {_numbered(spread)} as red, green and blue"


def overview(scene: Scene, modality: str, longest: int = 1500, bands: Sequence[int] | None = None) -> Overview:
    """A modality as a picture: colours from three bands, one band in grey, heights lit from the side, SAR in dB.

    Each band is stretched from its 2nd to its 98th percentile.

    Args:
        longest: pixels along the longer side of the picture, at most.
        bands: one band for grey or three for red, green and blue, from 0; by default those of `shown_bands`.

    Raises:
        SettingsError: if there is no such band, or they are neither one nor three.
    """
    part = scene.modalities[modality]
    chosen, how = shown_bands(scene, modality)
    if bands is not None:
        if len(bands) not in (1, 3) or not all(0 <= band < part.raster.bands for band in bands):
            raise SettingsError(
                f"the bands {', '.join(str(band + 1) for band in bands)} of `{modality}` are to be shown",
                f"one or three of its bands 1 to {part.raster.bands}",
                "name others",
            )
        chosen = tuple(bands)
        how = f"{_numbered(chosen)} as red, green and blue" if len(chosen) == 3 else f"{_numbered(chosen)} in grey"
    step = thinning(scene.grid.height * part.zoom, scene.grid.width * part.zoom, longest)
    values = thinned(scene, modality, step, chosen)
    lit = bands is None and _height(scene, modality)
    return _drawn(values, how, _metres(scene.grid, step / part.zoom) if lit else None)


def closeups(places: Sequence[tuple[Scene, Window]], modality: str, pixels: int) -> list[NDArray[np.uint8]]:
    """A modality around places, each as `Overview.on_white`, (h, w, 3) uint8, all stretched alike.

    Args:
        places: tiles of one scene, and windows of one size, which may reach beyond them.
        pixels: along a side of the pictures, about.
    """
    first, window = places[0]
    zoom = first.modalities[modality].zoom
    step = max(1, round(window.width * zoom / pixels))
    chosen, how = shown_bands(first, modality)
    read = {scene.name: _reader(scene, modality, chosen) for scene, _ in places}
    parts = []
    for scene, inner in places:
        window = inner.padded(step)  # `zoom` pixels of the picture, since slopes at its edges are those to the next one
        values = read[scene.name](window)
        inside = window.intersection(scene.grid.window).scaled(zoom).within(window.scaled(zoom))
        part = np.full_like(values, np.nan)  # what lies beyond the tile is read as its mirror image
        part[:, *inside] = values[:, *inside]
        parts.append(_means(part, step))
    lit = _metres(first.grid, step / zoom) if _height(first, modality) else None
    drawn = np.split(_drawn(np.concatenate(parts, axis=1), how, lit).on_white, len(parts))
    return [one[zoom:-zoom, zoom:-zoom] for one in drawn]


def _drawn(values: NDArray[np.float32], how: str, lit: tuple[float, float] | None) -> Overview:
    """Values of one to three bands, (C, h, w), as a picture; heights with the pixel's width and height are lit."""
    known: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=0))
    if lit is not None:
        image, times = _lit(values[0], lit)
        return Overview(image, known, f"{how}, {times:.2g} times as high" if times != 1 else how)
    if len(values) == 2:
        values = np.stack([values[0], values[1], values[0] - values[1]])
    grey = [_stretched(band, known) for band in values]
    return Overview(np.stack(grey if len(grey) == 3 else grey[:1] * 3, axis=-1), known, how)


def side_by_side(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of tiles, each (h, w, 3), row by row in one that is about square, with white between them."""
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    columns = math.ceil(math.sqrt(len(images) * height / width))
    gap = max(1, round(0.05 * height)) if len(images) > 1 else 0
    rows = -(-len(images) // columns)
    result = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        row, col = (place * (side + gap) for place, side in zip(divmod(number, columns), (height, width), strict=True))
        result[row : row + image.shape[0], col : col + image.shape[1]] = image
    return result


def drawn_windows(labels: Sequence[NDArray[np.uint8]], classes: int) -> list[tuple[int, Window]]:
    """Small windows around pixels of each class that are drawn at random: number of the tile and window."""
    rng = np.random.default_rng(0)
    found = set()
    for kind in range(classes):
        ends = np.cumsum([np.count_nonzero(label == kind) for label in labels])
        for number in np.unique(rng.integers(0, ends[-1], _PLACES)) if ends[-1] else ():
            tile = int(np.searchsorted(ends, number, side="right"))
            within = np.flatnonzero(labels[tile] == kind)[number - ends[tile]]
            row, col = divmod(int(within), labels[tile].shape[1])
            around = Window(row - _AROUND // 2, col - _AROUND // 2, _AROUND, _AROUND)
            found.add((tile, around.intersection(Window(0, 0, *labels[tile].shape))))
    return sorted(found, key=lambda one: (one[0], one[1].row, one[1].col))


def drawn_values(
    scenes: Sequence[Scene], labels: Sequence[NDArray[np.uint8]], windows: Sequence[tuple[int, Window]], modality: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What a modality holds in the labelled pixels of some windows that have data: (C, N), and their classes, (N,).

    Where it is finer than the scene's grid, its pixels are averaged.
    """
    values, classes = [], []
    for tile, window in windows:
        scene = scenes[tile]
        found = _means(scene.read(modality, window), scene.modalities[modality].zoom)
        label = labels[tile][window.within(scene.grid.window)]
        known = (label != UNLABELLED) & np.isfinite(found).all(axis=0)
        values.append(found[:, known])
        classes.append(label[known])
    return np.concatenate(values, axis=1), np.concatenate(classes)


def _height(scene: Scene, modality: str) -> bool:
    part = scene.modalities[modality]
    return part.raster.bands == 1 and part.units.strip().lower() in ("m", "metre", "metres", "meter", "meters")


def in_decibel(scene: Scene, modality: str) -> bool:
    """Whether a modality's values are decibels, as those of SAR."""
    return scene.modalities[modality].units.strip().lower() in ("db", "decibel")


def _numbered(bands: Sequence[int]) -> str:
    numbers = [str(band + 1) for band in bands]
    if len(numbers) == 1:
        return f"band {numbers[0]}"
    return f"bands {', '.join(numbers[:-1])} and {numbers[-1]}"


def _by_name(info: ModalityInfo) -> tuple[int, ...] | None:
    """The red, green and blue bands by their wavelengths, or by their names: colours, Sentinel-2's B4 or B04."""
    names = [name.strip().lower() for name in info.names]
    lengths = [re.fullmatch(r"(\d{3,4}(?:\.\d+)?)\s*(?:nm|nanometers?)", name) for name in names]
    known = np.array(info.wavelengths or [float(match[1]) for match in lengths if match])
    if len(known) == info.bands and known.min() <= 520 and known.max() >= 630:
        return tuple(int(np.argmin(np.abs(known - middle))) for middle in (660, 560, 480))
    for wanted in (("red", "green", "blue"), ("b04", "b03", "b02"), ("b4", "b3", "b2")):
        if all(name in names for name in wanted):
            return tuple(names.index(name) for name in wanted)
    return None


def _stretched(band: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    result = np.zeros(band.shape, np.uint8)
    if known.any():
        low, high = np.percentile(band[known], (2, 98))
        scaled = np.clip((band[known] - low) / max(high - low, 1e-12), 0, 1)
        result[known] = np.rint(scaled * 255).astype(np.uint8)
    return result


def _lit(heights: NDArray[np.float32], pixel: tuple[float, float]) -> tuple[NDArray[np.uint8], float]:
    """Heights as light and shade, the higher the brighter: (h, w, 3) uint8; and how many times they are raised."""
    across, down = slopes(heights, pixel)
    steep = np.hypot(across, down)
    seen = steep[np.isfinite(steep)]
    usual = float(np.percentile(seen, 90)) if seen.size else 0.0
    times = float(np.clip(_STEEP / usual, 0.05, 50)) if usual > 0 else 1.0
    times = float(f"{times:.1g}")
    shade = np.nan_to_num(hillshade(heights, pixel, exaggeration=times))
    rank = _stretched(heights, np.isfinite(heights)) / 255.0
    low, high = np.array([96, 116, 110.0]), np.array([255, 246, 226.0])
    tint = low + (high - low) * rank[:, :, None]
    return np.clip(tint * (0.25 + shade[:, :, None]), 0, 255).astype(np.uint8), times


def _metres(grid: Grid, pixels: float) -> tuple[float, float]:
    """Width and height of a number of pixels in metres; in pixels where the CRS is not known."""
    width, height = (size * pixels for size in grid.pixel_size)
    crs = None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs)
    if crs is None:
        return width, height
    unit = crs.axis_info[0].unit_conversion_factor
    if not crs.is_geographic:
        return width * unit, height * unit
    radius = 6_371_000.0  # of the earth, m; units of angles are given in radians
    latitude = grid.at(grid.width / 2, grid.height / 2)[1] * unit
    return width * unit * radius * max(math.cos(latitude), 0.01), height * unit * radius
