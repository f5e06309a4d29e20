"""The files of a map: the classes, and on request probabilities, confidence, entropy and layers of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.applicability import STEPS, Applicability
from landfuse.accuracy.conformal import ClassSets, sets_of
from landfuse.bundles.description import Description
from landfuse.bundles.settings import Method
from landfuse.legend import UNLABELLED, Legend
from landfuse.mapping.engine import BlockMap
from landfuse.mapping.settings import MapOptions
from landfuse.rasters.geotiff_writer import (
    GeotiffWriter,
    Mosaic,
    Overviews,
    mosaic_in_memory,
    write_category_names,
    write_cloud_geotiff,
    write_mosaic,
)
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.land_cover_map import beside

PROBABILITY_STEPS = 250
"""Probabilities are written as uint8: value * 250, 255 for no data."""

MOST_SETS = 64
"""Classes of which each has a band in a file of class sets, at most; above it, there is only the sets' size."""

_STRIP = 64
"""Rows that are turned into numbers at once: probabilities of a whole block would take as much memory as its logits."""

Values = Callable[[BlockMap, slice, NDArray[np.float32]], NDArray[np.float32]]
"""A layer's values, (bands, rows, width), of a block, its rows and the probabilities, (K, rows, width)."""


@dataclass(frozen=True)
class Layer:
    """One file of a map.

    Args:
        name: stands in the file's name; empty for the classes.
        bands: their names.
        values: what they hold, from 0, or NaN for no data; None for codes.
        steps: numbers per 1: a value is written as value * steps, rounded, and at most 254; 255 is no data.
    """

    name: str
    bands: tuple[str, ...]
    values: Values | None = None
    steps: int = PROBABILITY_STEPS

    @property
    def scale(self) -> float:
        """value = number * scale, for those who read the file."""
        return 1.0 if self.values is None else 1 / self.steps


def layers_of(options: MapOptions, known: Description) -> list[Layer]:
    """The files of a map, the classes first; raises a SettingsError of what the bundle cannot give."""
    chosen = [Layer("", ("class",))]
    if options.probabilities:
        chosen.append(Layer("probabilities", tuple(known.legend.names), lambda part, rows, found: found))
    if options.confidence:
        chosen.append(Layer("confidence", ("confidence",), lambda part, rows, found: confidence_of(found)[None]))
    if options.entropy:
        chosen.append(Layer("entropy", ("entropy",), lambda part, rows, found: entropy_of(found)[None]))
    if options.sets is not None:
        thresholds = ClassSets.of(known).thresholds(options.sets, options.sets_method, options.sets_by_class)
        bands = ("size", *(known.legend.names if len(known.legend) <= MOST_SETS else ()))
        chosen.append(Layer("sets", bands, _sets(thresholds[:, None, None], options.sets_method, len(bands)), steps=1))
    if options.applicability:
        bands = ("together", *Applicability.of(known).points)
        chosen.append(Layer("applicability", bands, lambda part, rows, found: part.dissimilarity_in(rows), STEPS))
    return chosen + [Layer(name, (name,), _model_layer(name)) for name in options.layers]


def _sets(thresholds: NDArray[np.float32], method: Method, bands: int) -> Values:
    def values(part: BlockMap, rows: slice, found: NDArray[np.float32]) -> NDArray[np.float32]:
        sets = sets_of(found, thresholds, method)
        return np.concatenate([sets.sum(axis=0, keepdims=True), sets])[:bands].astype(np.float32)

    return values


def _model_layer(name: str) -> Values:
    return lambda part, rows, found: part.layers[name][rows].clip(0, 1)[None]


def confidence_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The margin between the best and the second class: (K, ...) -> (...), 0..1; 1 where there is one class."""
    if len(probabilities) == 1:
        return np.ones_like(probabilities[0])
    best = np.partition(probabilities, -2, axis=0)
    return best[-1] - best[-2]


def entropy_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shannon's entropy as a fraction of the largest, that of K equal classes: (K, ...) -> (...), 0..1."""
    if len(probabilities) == 1:
        return np.zeros_like(probabilities[0])
    total = np.zeros(probabilities.shape[1:], np.float32)
    for of_class in probabilities:  # one by one and contiguous: else kernels round by a pixel's place (P1)
        p = np.maximum(np.ascontiguousarray(of_class), np.float32(1e-30))  # 0 log 0 is 0
        total -= p * np.log(p)
    return np.clip(total / np.float32(np.log(len(probabilities))), 0, 1)


def _strips(part: BlockMap, legend: Legend, layers: Sequence[Layer]) -> Iterator[NDArray[np.uint8]]:
    """The numbers of a block's layers, one after the other as bands: some rows at a time, (bands, rows, width)."""
    for first in range(0, part.window.height, _STRIP):
        rows = slice(first, first + _STRIP)
        classes = part.classes[rows]
        numbers = [legend.to_codes(classes)[None]]
        if len(layers) > 1:
            found = part.probabilities_in(rows)
            numbers += [
                _numbers(layer.values(part, rows, found), layer.steps, classes == UNLABELLED)
                for layer in layers
                if layer.values is not None
            ]
        yield np.concatenate(numbers)


def write_part(
    path: Path, part: BlockMap, grid: Grid, legend: Legend, layers: Sequence[Layer], then: Callable[[Path], None]
) -> None:
    """Writes a block's layers, one after the other, as the bands of one file; the grid is that of the scene.

    `then` is called with the file before it takes its name.

    Raises:
        OutputError: if it cannot be written.
    """
    window, first = part.window, 0
    bands = sum(len(layer.bands) for layer in layers)
    with GeotiffWriter(path, grid.part(window), bands=bands, lasting=False, then=then) as file:
        for numbers in _strips(part, legend, layers):
            file.write(Window(first, 0, numbers.shape[1], window.width), numbers)
            first += numbers.shape[1]


def _numbers(values: NDArray[np.float32], steps: int, missing: NDArray[np.bool_]) -> NDArray[np.uint8]:
    numbers = np.nan_to_num(np.minimum(np.rint(values * steps), UNLABELLED - 1), nan=UNLABELLED).astype(np.uint8)
    numbers[..., missing] = UNLABELLED
    return numbers


def assemble(
    path: Path, scratch: Path, grid: Grid, legend: Legend, layers: Sequence[Layer],
    parts: Mapping[Window, Path] | BlockMap, tags: dict[str, str],
) -> None:  # fmt: skip
    """Joins parts into the map's files: cloud-optimised GeoTIFFs; 255 where there is no part.

    All files are made before the first takes its place.

    Args:
        path: of the map; the other layers go beside it.
        scratch: a folder on the same disk, for what is not yet whole.
        grid: of the scene.
        legend: of the map.
        layers: as the parts hold them.
        parts: block -> its file; or the one block that is the map.
        tags: of each file.

    Raises:
        OutputError: if they cannot be written.
    """
    first = 1
    made = []
    if isinstance(parts, BlockMap):
        numbers = np.concatenate([*_strips(parts, legend, layers)], axis=1)
    for layer in layers:
        codes = layer.values is None
        mosaic = Mosaic(grid, layer.bands, legend if codes else None, layer.scale, tags=tags)
        whole = scratch / f"{first}.tif"
        overviews: Overviews = "mode" if layer.scale == 1 else "average"
        if isinstance(parts, BlockMap):
            with mosaic_in_memory(mosaic, numbers[first - 1 : first - 1 + len(layer.bands)]) as source:
                write_cloud_geotiff(whole, source, overviews)
        else:
            write_mosaic(whole.with_suffix(".vrt"), mosaic, parts.items(), first)
            write_cloud_geotiff(whole, whole.with_suffix(".vrt"), overviews)
        made.append((whole, beside(path, layer.name)))
        first += len(layer.bands)
    for (whole, place), layer in zip(made, layers, strict=True):
        notes = place.with_name(place.name + ".aux.xml")
        notes.unlink(missing_ok=True)  # what GDAL noted about an earlier file of this name
        whole.replace(place)
        if layer.values is None:
            write_category_names(notes, legend)
