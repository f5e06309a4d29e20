"""Judging a map by a reference sample: accuracy and areas with their errors, whatever the sample was drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.estimate import AccuracyEstimate, estimate
from landfuse.accuracy.reference_sample import Design, ReferenceSample, read_sample
from landfuse.errors import GridError, SceneError, SettingsError, nearest
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import TILE
from landfuse.rasters.grid import Grid, pixel_areas
from landfuse.rasters.windows import Window
from landfuse.scenes.land_cover_map import LandCoverMap, class_names, open_map

OTHER, OTHER_NAME = UNLABELLED + 1, "other"
"""The code and the reference of what is no class of the map: an error wherever it is."""


def evaluate_sample(
    map_path: str | Path, sample: ReferenceSample | str | Path, design: Design | None = None, finite: bool = True
) -> AccuracyEstimate:
    """Estimates the accuracy of a map, and the areas of its classes, from a sample whose reference is filled in.

    The map need not be the one that the sample was drawn from: strata that are another map's classes are treated
    as in Stehman 2014. It has to have a class at every sampled place.

    Args:
        map_path: the map, or a folder of maps with a mosaic.
        sample: from `draw_sample`, or its file.
        design: the expected design; a sample of another one is refused.
        finite: see `landfuse.accuracy.estimate`.

    Raises:
        SceneError: if the sample is none, or its reference is not filled in.
        SettingsError: if it was drawn by another design.
        GridError: if the map has another CRS, or no class at a sampled place.

    Examples:
        >>> from dataclasses import replace
        >>> sample = lf.draw_sample("map.tif", 200)
        >>> filled = replace(sample, reference=[str(code) for code in sample.code])  # as if the map were right
        >>> lf.evaluate_sample("map.tif", filled).overall.value == 1
        True
    """
    sample, where = filled(sample, design)
    opened = open_map(map_path)
    mapped, truth, names = truth_of(opened, sample, where)
    return estimated(sample, truth, mapped, names, opened.grid, finite, moved=bool((mapped != sample.code).any()))


def filled(
    sample: ReferenceSample | str | Path, design: Design | None = None, two_maps: bool = False
) -> tuple[ReferenceSample, str]:
    """Reads a sample whose reference is filled in, and what messages call it.

    Raises:
        SceneError: if it is none, is one of two maps or is not one of two, or its reference is not filled in.
        SettingsError: if it was drawn by another design.
    """
    where = str(sample) if isinstance(sample, str | Path) else "the sample"
    if not isinstance(sample, ReferenceSample):
        sample = read_sample(sample)
    if design is not None and design != sample.design:
        raise SettingsError(
            f"{where} was drawn by a {sample.design} design, not {design}",
            "the design that it was drawn by: another one gives wrong errors, and mostly wrong figures",
            f"say --design {sample.design}, or leave it out",
        )
    if (sample.reference_after is not None) != two_maps:
        raise SceneError(
            f"{where} was drawn from {'one map' if two_maps else 'two maps'}, {sample.source}",
            "a sample of two maps, with a reference for each date" if two_maps else "a sample of one map",
            "draw one by `landfuse sample BEFORE --with AFTER -n 500 -o change.gpkg`"
            if two_maps
            else f"`landfuse change BEFORE AFTER {where}` estimates change from it",
        )
    empty = sum(None in of_point for of_point in zip(*sample.references.values(), strict=True))
    if empty or not sample.reference:
        columns = " and ".join(f"`{name}`" for name in sample.references)
        raise SceneError(
            f"{where} has no reference for {empty or len(sample)} of {len(sample)} points",
            f"a code or the name of a class in {columns}, in every row",
            f"fill them in; write {UNLABELLED} where the truth is not known",
        )
    return sample, where


def truth_of(
    opened: LandCoverMap, sample: ReferenceSample, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, str]]:
    """What a map and the reference of a sample say at its places, as codes: (n,) and (n,), and the names of classes.

    Raises:
        SceneError: if a reference is no class.
        GridError: if the map has another CRS, or no class at a sampled place.
    """
    names = {**sample.names, **class_names(opened.path)}
    return on_map(opened, sample, where), references(sample.reference, names, where), names


def estimated(
    sample: ReferenceSample,
    truth: NDArray[np.int64],
    mapped: NDArray[np.int64],
    names: Mapping[int, str],
    grid: Grid,
    finite: bool,
    moved: bool,
) -> AccuracyEstimate:
    """The estimate from (n,) codes of the truth, `UNLABELLED` where it is not known, and of the map.

    Args:
        moved: whether the strata are not the classes of the map.
    """
    known = truth != UNLABELLED
    codes = sorted({*names, *mapped.tolist(), *truth[known].tolist()})
    place = {code: index for index, code in enumerate(codes)}
    stratum_m2 = _stratum_areas(sample, grid)
    placed = all(math.isfinite(area) for area in stratum_m2.values())
    result = estimate(
        np.array([place[code] for code in truth[known].tolist()], np.int64),
        np.array([place[code] for code in mapped[known].tolist()], np.int64),
        [names.get(code, OTHER_NAME if code == OTHER else f"class {code}") for code in codes],
        strata=sample.stratum[known],
        sizes=sample.sizes,
        clusters=sample.cluster[known] if sample.design == "cluster" else None,
        finite=finite,
        areas=sample.pixel_m2[known] if placed else None,
        stratum_areas=stratum_m2 if placed else None,
        design=_words(sample) + " (strata are the classes of another map: Stehman 2014)" * moved,
    )
    notes = list(result.notes)
    if not known.all():
        notes.append(
            f"the truth of {int((~known).sum())} of {len(sample)} points is not known; the estimate takes them to be "
            "like the others of their stratum"
        )
    if sample.left_out:
        notes.append(
            f"{sample.left_out} places that were chosen to train, not drawn at random, are left out: they say nothing "
            "of the whole map"
        )
    if not placed:
        notes.append(
            "no hectares, and fractions are of pixels, not of area: the map has no CRS, or the sample was drawn by an "
            "earlier version, which took its pixels to be of one size"
        )
    return replace(result, notes=tuple(notes))


def _stratum_areas(sample: ReferenceSample, grid: Grid) -> Mapping[int, float]:
    """Square metres of each stratum; samples of earlier versions hold those of a pixel, which is right in some CRS."""
    areas = pixel_areas(grid)
    if areas is None or areas.same is None or all(map(math.isfinite, sample.stratum_m2.values())):
        return sample.stratum_m2
    of_unit = sample.pixels / sum(sample.sizes.values()) * float(sample.pixel_m2[0])
    return {stratum: units * of_unit for stratum, units in sample.sizes.items()}


def _words(sample: ReferenceSample) -> str:
    units = sum(sample.drawn.values())
    if sample.design == "cluster":
        return f"cluster sampling, one stage: {units} of {sum(sample.sizes.values()):,} clusters, ratio-to-size"
    strata = "the map's classes" if sample.reference_after is None else "the classes of both maps"
    kind = "simple random sampling" if sample.design == "simple" else f"random sampling stratified by {strata}"
    return f"{kind}: {units} of {sample.pixels:,} pixels"


def references(texts: Sequence[str | None], names: Mapping[int, str], where: str) -> NDArray[np.int64]:
    """References as codes: (n,); any code is taken where the classes have no names."""
    of_name = {OTHER_NAME: OTHER, **{name.casefold(): code for code, name in names.items()}}
    codes = []
    for text in texts:
        known = of_name.get(str(text).casefold())
        if known is None and str(text).isdecimal() and int(str(text)) <= UNLABELLED:
            number = int(str(text))
            known = number if number in names or number == UNLABELLED or not names else None
        if known is None:
            listed = ", ".join(f"{code} {name}" for code, name in sorted(names.items())) or "codes from 0 to 254"
            raise SceneError(
                f"{where} has the reference {text!r}, which is no class",
                f"a code or a name: {listed}; {OTHER_NAME} for what is none of them; {UNLABELLED} where the truth is "
                "not known",
                nearest(str(text), [OTHER_NAME, *names.values()], "correct it"),
            )
        codes.append(known)
    return np.array(codes, np.int64)


def on_map(opened: LandCoverMap, sample: ReferenceSample, where: str) -> NDArray[np.int64]:
    """The classes of a map at the sampled places: (n,) codes.

    Raises:
        GridError: if it has another CRS, or no class at one of them.
    """
    mapped = codes_at(opened, sample, where)
    none = int((mapped == UNLABELLED).sum())
    if none:
        raise GridError(
            f"the map {opened.path} has no class at {none} of {len(sample)} sampled places",
            f"a class wherever the map that the sample was drawn from ({sample.source}) has one",
            "name that map, or draw a sample of this one",
        )
    return mapped


def codes_at(opened: LandCoverMap, sample: ReferenceSample, where: str) -> NDArray[np.int64]:
    """What a map holds at the sampled places: (n,) codes, `UNLABELLED` where there is none; read block by block.

    Raises:
        GridError: if it has another CRS.
    """
    grid = opened.grid
    if Grid(1, 1, crs=grid.crs) != Grid(1, 1, crs=sample.crs):
        raise GridError(
            f"the map {opened.path} has another CRS than {where}",
            f"{(sample.crs or 'none')[:60]}",
            "warp the map to it",
        )
    row, col = grid.pixels(sample.x, sample.y)
    codes = np.full(len(sample), UNLABELLED, np.int64)
    for window, mine in by_block(row, col, grid):
        codes[mine] = opened.codes(window)[row[mine] - window.row, col[mine] - window.col]
    return codes


def by_block(
    row: NDArray[np.int64], col: NDArray[np.int64], grid: Grid, side: int = TILE
) -> Iterator[tuple[Window, NDArray[np.intp]]]:
    """The blocks of a grid that hold places, and which places those are; places off the grid are skipped."""
    inside = (row >= 0) & (row < grid.height) & (col >= 0) & (col < grid.width)
    of_block = (row // side) * (-(-grid.width // side)) + col // side
    for block in np.unique(of_block[inside]).tolist():
        top, left = (side * place for place in divmod(block, -(-grid.width // side)))
        window = Window(top, left, side, side).intersection(grid.window)
        yield window, np.flatnonzero(inside & (of_block == block))
