"""Maps as vectors: the patches of one, and an index of the tiles of many. GeoPackages of one layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import shapes, sieve
from scipy import ndimage
from shapely import union_all
from shapely.geometry import shape

from landfuse.errors import SceneError
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.grid import Grid, footprint
from landfuse.rasters.polygons import write_layer

WGS84 = "EPSG:4326"

MOST_PATCHES = 500_000
"""A patch takes about 2 KiB of memory until the file is written."""


def write_patches(
    path: Path, patches: NDArray[np.int32], codes: NDArray[np.uint8], sizes: Mapping[str, NDArray[np.float64]],
    legend: Legend, grid: Grid,
) -> None:  # fmt: skip
    """Writes patches as polygons along pixel edges: the layer `land_cover` with `code`, `class` and their size.

    Args:
        patches: (H, W) their numbers, from `number_patches`.
        sizes: a column's name -> its values, (n,).

    Raises:
        SceneError: if there is none, or there are more than `MOST_PATCHES`.
    """
    if not codes.size:
        raise SceneError(
            f"there are no polygons for {path.name}: nothing is mapped",
            "a map in which at least one pixel has a class",
            "check that all modalities that the model needs have data there",
        )
    if codes.size > MOST_PATCHES:
        raise SceneError(
            f"the map has more than {MOST_PATCHES:,} patches, too many for {path.name}",
            "fewer patches; their outlines are held in memory",
            "raise --minimum-area",
        )
    geometries, numbers = zip(*_outlines(patches, grid), strict=True)
    names, order = {one.code: one.name for one in legend}, [number - 1 for number in numbers]
    columns = {
        "code": codes[order],
        "class": [names.get(code, "") for code in codes[order].tolist()],
        **{name: values[order] for name, values in sizes.items()},
    }
    write_layer(path, "land_cover", geopandas.GeoDataFrame(columns, geometry=list(geometries), crs=grid.crs))


def _outlines(numbers: NDArray[np.int32], grid: Grid) -> Iterator[tuple[Any, int]]:
    """The outlines of connected pixels of one number above 0, and the number, in the grid's CRS."""
    transform = rasterio.Affine(*grid.transform)
    for geometry, number in shapes(numbers, mask=numbers > 0, connectivity=4, transform=transform):
        yield shape(geometry), int(number)


def outlines(numbers: Sequence[NDArray[np.int32]], grids: Sequence[Grid]) -> dict[int, Any]:
    """The outline of the pixels of each number above 0, along pixel edges, in the CRS of the first grid.

    Args:
        numbers: (H, W) of each tile; a number may be in several.
    """
    parts: dict[int, list[Any]] = {}
    for here, grid in zip(numbers, grids, strict=True):
        found = list(_outlines(here, grid))
        places = geopandas.GeoSeries([geometry for geometry, _ in found], crs=grid.crs)
        places = places.to_crs(grids[0].crs) if grid.crs != grids[0].crs else places
        for geometry, (_, number) in zip(places, found, strict=True):
            parts.setdefault(number, []).append(geometry)
    return {number: union_all(several) if several[1:] else several[0] for number, several in parts.items()}


def write_index(path: Path, tiles: Mapping[str, tuple[Grid, str]]) -> None:
    """Writes the outlines of tiles in WGS 84: the layer `maps` with the columns `tile`, `path` and `crs`.

    Args:
        tiles: name -> its grid, and the path that is written for it.
    """
    columns = {
        "tile": list(tiles),
        "path": [place for _, place in tiles.values()],
        "crs": [grid.crs for grid, _ in tiles.values()],
    }
    frames = [footprint(grid) for grid, _ in tiles.values()]
    write_layer(path, "maps", geopandas.GeoDataFrame(columns, geometry=frames, crs=WGS84))


def without_small_patches(codes: NDArray[np.uint8], smallest: int) -> NDArray[np.uint8]:
    """Merges patches into the largest patch beside them until all are large enough.

    Pixels are of one patch if they share an edge. A small patch stays if no class is beside it, or if no patch around
    it reaches the size either: then none of them is a patch to merge into.

    Args:
        codes: (H, W), `UNLABELLED` where there is no class; such pixels neither change nor take in others.
        smallest: pixels that a patch must have.
    """
    mapped = (codes != UNLABELLED).astype(np.uint8)
    smallest = min(smallest, codes.size - 1)  # GDAL takes no more
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


def number_patches(codes: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The patches of a map, of pixels of one code that share an edge.

    Args:
        codes: (H, W), `UNLABELLED` where there is no class.

    Returns:
        (H, W) the number of each pixel's patch, from 1, or 0; and the code of each patch, (n,).
    """
    patches, found = np.zeros(codes.shape, np.int32), [np.zeros(0, np.uint8)]
    last = 0
    for code in np.unique(codes[codes != UNLABELLED]):
        here, count = ndimage.label(codes == code)
        patches += np.where(here, here + last, 0).astype(np.int32)
        last += count
        found.append(np.full(count, code, np.uint8))
    return patches, np.concatenate(found)
