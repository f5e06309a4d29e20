"""Patches of a map: small ones merged into their neighbours, and their outlines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import shapes, sieve

from landfuse.legend import UNLABELLED
from landfuse.scenes.grid import Grid


def without_small_patches(codes: NDArray[np.uint8], smallest: int) -> NDArray[np.uint8]:
    """Merges patches into the largest patch beside them until all are large enough.

    Pixels are of one patch if they share an edge. A small patch stays where no class lies beside it, or where no patch
    around it can grow to the size either: then none of them is a patch to merge into.

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
