"""Drawing the reference sample of a map: which pixels to observe, at random, however large the map is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.reference_sample import Design, ReferenceSample
from landfuse.errors import SceneError, SettingsError
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.geotiff_writer import TILE
from landfuse.rasters.grid import pixel_areas
from landfuse.rasters.windows import blocks
from landfuse.scenes.land_cover_map import class_names, open_map, open_two_maps

Allocation = Literal["equal", "proportional", "neyman"]


def allocate(
    sizes: NDArray[np.int64], n: int, *, minimum: int = 50, weights: NDArray[np.floating] | None = None
) -> NDArray[np.int64]:
    """Divides n points among strata: by weight, but no stratum gets less than a minimum or more than it has.

    With weights that are the strata's sizes this is what Olofsson et al. 2014 recommend (section 5.1): rare classes
    get 50 to 100 points, so that their user's accuracy is known, and the rest goes by area.

    Args:
        sizes: (S,) pixels in each stratum, all > 0.
        n: points in all; fewer if the strata have fewer.
        minimum: points of a stratum at least; where n is too small for that, n / S; never below 2.
        weights: (S,); sizes by default.

    Returns:
        (S,) points, which add up to n.

    Raises:
        SettingsError: if n is below 2 points in each stratum.
    """
    sizes = np.array(sizes, np.int64)
    wanted = np.asarray(sizes if weights is None else weights, float)
    if n < 2 * sizes.size:
        raise SettingsError(
            f"{n} points are too few for {sizes.size} strata",
            f"at least 2 in each, {2 * sizes.size} in all; some {50 * sizes.size} are of use",
            "draw more points",
        )
    if n >= sizes.sum():
        return sizes
    least = np.minimum(sizes, max(2, min(minimum, n // sizes.size)))
    wanted = np.maximum(wanted, 1e-12 * wanted.max() or 1e-300)  # a weight of 0 still lets a stratum fill up
    low, high = 0.0, float((sizes / wanted).max())
    for _ in range(200):  # the level of water in vessels with floors and brims
        level = (low + high) / 2
        low, high = (level, high) if np.clip(level * wanted, least, sizes).sum() < n else (low, level)
    exact = np.clip(high * wanted, least, sizes)
    points = np.floor(exact + 1e-9).astype(np.int64)
    for place in np.argsort(points - exact, kind="stable"):
        if points.sum() < n and points[place] < sizes[place]:
            points[place] += 1
    return points


def draw_sample(
    map_path: str | Path,
    n: int,
    *,
    design: Design = "stratified",
    allocation: Allocation = "proportional",
    minimum: int = 50,
    expected: Mapping[int, float] | None = None,
    side: int = 3,
    seed: int = 0,
    legend: Legend | None = None,
    after: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReferenceSample:
    """Draws pixels of a map at random, without replacement; reads the map in blocks, twice.

    Args:
        map_path: a raster of codes, or a folder of maps with a mosaic; 255 and no data are not drawn.
        n: pixels; for clusters, as many clusters of side x side pixels as reach that number.
        design: "stratified" draws in each of the map's classes, "simple" anywhere, "cluster" squares of neighbouring
            pixels, every pixel of which is observed.
        allocation: of a stratified sample: "proportional" to area but at least `minimum` in each class, "equal", or
            "neyman", to area * sqrt(u (1 - u)) with the user's accuracy u that is expected, at least `minimum` too.
        minimum: points of a class at least; see `allocate`.
        expected: code -> user's accuracy that is expected, for "neyman".
        side: of a cluster, px.
        seed: the same seed draws the same pixels of the same map.
        legend: names the classes; by default the names in the file beside the map.
        after: a later map of the same place: the classes are then what both maps say (Forest to Water), and the sample
            is one for `change`, with a reference for each date.
        progress: called with (blocks done, blocks in all).

    Raises:
        SceneError: if the file is no map, or holds no class.
        SettingsError: if there are too few points for the classes, or no accuracy is expected of one.

    Examples:
        >>> sample = lf.draw_sample("map.tif", 200)
        >>> len(sample), sample.design
        (200, 'stratified')
    """
    if design not in get_args(Design) or allocation not in get_args(Allocation):
        raise SettingsError(
            f"a {design} design with {allocation} allocation is not known",
            f"{', '.join(get_args(Design))}; {', '.join(get_args(Allocation))}",
            "choose one",
        )
    if n < 2 or side < 1 or seed < 0:
        raise SettingsError(
            f"{n} points in clusters of {side} px, with the seed {seed}",
            "at least 2 points, a side of 1, a seed of 0",
            "",
        )
    opened = open_map(map_path) if after is None else open_two_maps(map_path, after)
    legend = opened.scene_legend or legend
    grid = opened.grid
    cell = side if design == "cluster" else 1
    step = cell * max(1, TILE // cell)
    windows = opened.occupied(step) if after is None else list(blocks(grid.height, grid.width, step))
    counts = np.zeros((len(windows), 256), np.uint32)
    pixels = 0
    areas = pixel_areas(grid)
    square_metres = np.full(256, 0.0 if areas else np.nan)
    for place, window in enumerate(windows):
        codes = opened.codes(window)
        counts[place] = np.bincount(_units(codes, design, cell).ravel(), minlength=256)
        mapped = codes != UNLABELLED
        pixels += int(mapped.sum())
        if areas is not None:
            of_stratum = codes[mapped] if design == "stratified" else np.zeros(int(mapped.sum()), np.uint8)
            square_metres += np.bincount(of_stratum, areas(window)[mapped], minlength=256)
        progress(place + 1, 2 * len(windows))
    totals = counts[:, :UNLABELLED].sum(axis=0, dtype=np.int64)
    strata = np.flatnonzero(totals)
    if not strata.size:
        raise SceneError(f"the map {map_path} holds no class", "codes from 0 to 254", "name the map itself")
    sizes = totals[strata]
    rng = np.random.default_rng(seed)
    if design == "stratified":
        extent = sizes.astype(float) if areas is None or areas.same is not None else square_metres[strata]
        weights = _weights(strata, extent, allocation, expected)
        points = allocate(sizes, n, minimum=n if allocation == "equal" else minimum, weights=weights)
    else:
        points = np.minimum(sizes, max(2, math.ceil(n / cell**2)))
    ranks = {
        int(s): np.sort(rng.choice(size, k, replace=False))
        for s, size, k in zip(strata, sizes.tolist(), points.tolist(), strict=True)
    }
    found: list[tuple[int, int, int, int, int]] = []  # row, column, code, stratum, cluster
    before = np.zeros(256, np.int64)
    clusters = 0
    for place, window in enumerate(windows):
        here = {
            s: r[np.searchsorted(r, before[s]) : np.searchsorted(r, before[s] + counts[place, s])] - before[s]
            for s, r in ranks.items()
        }
        if any(r.size for r in here.values()):
            codes = opened.codes(window)
            units = _units(codes, design, cell)
            for s, chosen in here.items():
                for row, col in np.argwhere(units == s)[chosen].tolist():
                    inside = codes[row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]
                    for r, c in np.argwhere(inside != UNLABELLED).tolist():
                        at = window.row + row * cell + r, window.col + col * cell + c
                        found.append((*at, int(inside[r, c]), s, clusters))
                    clusters += 1
        before += counts[place]
        progress(len(windows) + place + 1, 2 * len(windows))
    table = np.array(found, np.int64)
    if design != "cluster":
        table = table[rng.permutation(len(table))]  # the order of the rows must not reveal their class
        table[:, 4] = np.arange(len(table))
    row, col, code, stratum, cluster = table.T
    x, y = grid.at(col + 0.5, row + 0.5)
    names = {c.code: c.name for c in legend} if legend else class_names(opened.path)
    return ReferenceSample(
        design,
        np.asarray(x, float),
        np.asarray(y, float),
        row,
        col,
        code,
        stratum,
        cluster,
        dict(zip(strata.tolist(), sizes.tolist(), strict=True)),
        dict(zip(strata.tolist(), points.tolist(), strict=True)),
        pixels,
        np.full(len(table), np.nan) if areas is None else areas.at(row, col),
        {s: float(square_metres[s]) for s in strata.tolist()},
        grid.crs,
        names,
        opened.path.name if after is None else f"{opened.path.name} and {Path(after).name}",
        seed,
        reference_after=None if after is None else (),
    )


def _weights(
    strata: NDArray[np.int64], extent: NDArray[np.float64], allocation: Allocation, expected: Mapping[int, float] | None
) -> NDArray[np.float64]:
    if allocation == "equal":
        return np.ones(extent.size)
    if allocation == "proportional":
        return extent
    missing = [str(s) for s in strata.tolist() if not 0 <= (expected or {}).get(s, -1.0) <= 1]
    if missing:
        raise SettingsError(
            f"the class {', '.join(missing)} has no expected user's accuracy",
            "one from 0 to 1 for each class of the map: allocation after Neyman weighs classes by it",
            "give it, or take the allocation `proportional`",
        )
    u = np.array([(expected or {})[s] for s in strata.tolist()])
    return extent * np.sqrt(u * (1 - u))


def _units(codes: NDArray[np.uint8], design: Design, cell: int) -> NDArray[np.uint8]:
    """The stratum of each unit that can be drawn from a block, `UNLABELLED` where there is none."""
    if design == "stratified":
        return codes
    mapped = codes != UNLABELLED
    if design == "cluster":
        height, width = (-(-length // cell) for length in codes.shape)
        whole = np.zeros((height * cell, width * cell), bool)
        whole[: codes.shape[0], : codes.shape[1]] = mapped
        mapped = whole.reshape(height, cell, width, cell).any(axis=(1, 3))
    return np.where(mapped, 0, UNLABELLED).astype(np.uint8)
