"""Maps as vectors: the patches of one, and an index of the tiles of many. GeoPackages of one layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError
from rasterio.features import shapes, sieve
from shapely.geometry import shape

from landfuse.errors import GridError, SceneError
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.grid import Grid
from landfuse.rasters.polygons import write_layer

WGS84 = "EPSG:4326"

MOST_PATCHES = 500_000
"""A patch takes about 2 KiB of memory until the file is written."""

_PIECES = 16
"""Into which an edge is cut, since a straight edge in one CRS is a curve in another."""


def write_patches(
    path: Path, patches: Iterable[tuple[Mapping[str, Any], int]], legend: Legend, grid: Grid, metres: float | None
) -> int:
    """Writes polygons as the layer `land_cover` with the columns `code`, `class`, and `hectares` or `area`.

    Args:
        path: of the file; whole or absent.
        patches: (GeoJSON geometry, code), in the grid's CRS.
        legend: names the codes.
        grid: of the map.
        metres: square metres of a square unit of the CRS; None where that differs from place to place, or is not
            known: then the column is `area`, in square units of the map's coordinates.

    Returns:
        How many there are.

    Raises:
        SceneError: if there is none, or there are more than `MOST_PATCHES`.
        OutputError: if the file cannot be written.
    """
    geometries, codes = [], []
    for geometry, code in itertools.islice(patches, MOST_PATCHES + 1):
        geometries.append(shape(geometry))
        codes.append(code)
    if not geometries:
        raise SceneError(
            f"there are no polygons for {path.name}: nothing is mapped",
            "a map in which at least one pixel has a class",
            "check that all modalities that the model needs have data there",
        )
    if len(geometries) > MOST_PATCHES:
        raise SceneError(
            f"the map has more than {MOST_PATCHES:,} patches, too many for {path.name}",
            "fewer patches; their outlines are held in memory",
            "raise --minimum-area",
        )
    names = {one.code: one.name for one in legend}
    areas = shapely.area(geometries)
    size = {"area": areas} if metres is None else {"hectares": areas * metres / 1e4}
    columns = {"code": codes, "class": [names.get(code, "") for code in codes], **size}
    write_layer(path, "land_cover", geopandas.GeoDataFrame(columns, geometry=geometries, crs=grid.crs))
    return len(geometries)


def write_index(path: Path, tiles: Mapping[str, tuple[Grid, str]]) -> None:
    """Writes the outlines of tiles in WGS 84: the layer `maps` with the columns `tile`, `path` and `crs`.

    Args:
        path: of the file; whole or absent.
        tiles: name -> its grid, and the path that is written for it.

    Raises:
        GridError: if a tile cannot be placed.
        OutputError: if the file cannot be written.
    """
    columns = {
        "tile": list(tiles),
        "path": [place for _, place in tiles.values()],
        "crs": [grid.crs for grid, _ in tiles.values()],
    }
    frames = [shapely.Polygon(footprint(grid)) for grid, _ in tiles.values()]
    write_layer(path, "maps", geopandas.GeoDataFrame(columns, geometry=frames, crs=WGS84))


def footprint(grid: Grid) -> list[tuple[float, float]]:
    """A grid's outline in WGS 84: (longitude, latitude) in degrees, counterclockwise, the first point again at the end.

    Raises:
        GridError: if the grid has no CRS, or is where its CRS does not reach.
    """
    if grid.crs is None:
        raise GridError(
            "the map has no CRS, and so no place on the globe", "a CRS", "name it in the scene file: `crs:`"
        )
    right, bottom = float(grid.width), float(grid.height)
    corners = [(0.0, 0.0), (0.0, bottom), (right, bottom), (right, 0.0), (0.0, 0.0)]
    places = [
        grid.at(start[0] + (end[0] - start[0]) * step / _PIECES, start[1] + (end[1] - start[1]) * step / _PIECES)
        for start, end in itertools.pairwise(corners)
        for step in range(_PIECES)
    ]
    try:
        to_globe = pyproj.Transformer.from_crs(grid.crs, WGS84, always_xy=True)
        ring = [(float(x), float(y)) for x, y in (to_globe.transform(*place) for place in places)]
    except (CRSError, ProjError) as error:
        raise _unplaced(grid, str(error)) from None
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in ring):
        raise _unplaced(grid, "its CRS does not reach there")
    ring.append(ring[0])
    near = [(x - ring[0][0], y - ring[0][1]) for x, y in ring]  # else a small map's turn is lost in rounding
    turning = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(near))
    return ring if turning > 0 else ring[::-1]


def _unplaced(grid: Grid, why: str) -> GridError:
    return GridError(
        f"the map cannot be placed on the globe: {why}; its grid is {grid}",
        "a CRS that PROJ knows, within the area it is made for",
        "check the CRS of the rasters",
    )


def without_small_patches(codes: NDArray[np.uint8], smallest: int) -> NDArray[np.uint8]:
    """Merges patches into the largest patch beside them until all are large enough.

    Pixels are of one patch if they share an edge. A small patch stays if no class is beside it, or if no patch around
    it reaches the size either: then none of them is a patch to merge into.

    Args:
        codes: (H, W), `UNLABELLED` where there is no class; such pixels neither change nor take in others.
        smallest: pixels that a patch must have.

    Returns:
        (H, W).
    """
    mapped = (codes != UNLABELLED).astype(np.uint8)
    size = 2
    while size < smallest:
        # GDAL merges only into patches that are large enough: in noise none is, until the smallest have been merged.
        codes = sieve(codes, size, mask=mapped)
        size *= 2
    while smallest > 1:
        merged = sieve(codes, smallest, mask=mapped)
        if np.array_equal(merged, codes):
            break
        codes = merged
    return codes


def outlines(codes: NDArray[np.uint8], grid: Grid) -> Iterator[tuple[dict[str, Any], int]]:
    """The patches of a map as polygons along pixel edges, in the grid's CRS: (GeoJSON geometry, code).

    Args:
        codes: (H, W), `UNLABELLED` where there is no class.
        grid: of the map.
    """
    mapped = (codes != UNLABELLED).astype(np.uint8)
    for geometry, code in shapes(codes, mask=mapped, connectivity=4, transform=rasterio.Affine(*grid.transform)):
        yield geometry, int(code)
