"""The leak report: what the test labels were predicted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from landfuse.errors import GridError
from landfuse.markup import percent
from landfuse.rasters.grid import Grid, footprint, horizontal
from landfuse.rasters.windows import Window, any_within, blocks, lattice, summed_area
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION, Roles

_BLOCK = 1024
"""Side of the blocks in which pixels are brought from tile to tile, px."""

_EDGE = 21
"""Places along a side of a tile by which it is found on another one."""


def leak_fraction(
    roles: Sequence[Roles],
    view: int,
    core: int = 1,
    stride: int | None = None,
    learnt: Sequence[NDArray[np.bool_]] | None = None,
    of: int = TEST,
) -> float:
    """The fraction of test pixels whose logits come from a view which holds a training or validation pixel.

    Args:
        view: side of the view, px.
        core: side of the core, px.
        stride: distance between the windows of the lattice, as in mapping; by default the core.
        learnt: where each scene shows ground that trains or validates, see `learnt_ground`; by default its own pixels.
        of: the role whose pixels count instead of those of the test.

    Returns:
        0..1; NaN if there is no test pixel.
    """
    stride = stride or core
    halo = (view - core) // 2
    leaking = total = 0
    for role, ground in zip(roles, learnt or [_learns(role) for role in roles], strict=True):
        height, width = role.shape
        rows = np.array(lattice(0, height, height, core, stride))
        cols = np.array(lattice(0, width, width, core, stride))
        down = np.clip([rows - halo, rows - halo + view], 0, height)
        across = np.clip([cols - halo, cols - halo + view], 0, width)
        leaky = any_within(summed_area(ground), down, across)
        # The cores of leaky windows, painted by their corners.
        painted = np.zeros((height + 1, width + 1), dtype=np.int64)
        row, col = rows[np.nonzero(leaky)[0]], cols[np.nonzero(leaky)[1]]
        last_row, last_col = np.minimum(row + core, height), np.minimum(col + core, width)
        for sign, r, c in ((1, row, col), (-1, last_row, col), (-1, row, last_col), (1, last_row, last_col)):
            np.add.at(painted, (r, c), sign)
        covered = painted.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
        leaking += int(((role == of) & covered).sum())
        total += int((role == of).sum())
    return leaking / total if total else float("nan")


BUFFERS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Distances of the leak report, px."""


def leaks_by_buffer(roles: Sequence[Roles], learnt: Sequence[NDArray[np.bool_]]) -> list[dict[str, float]]:
    """What leaks within a distance, and what a buffer of that width would cost; `learnt` as of `learnt_ground`.

    Returns:
        For each of `BUFFERS`: `buffer`, px; `leaks`, the fraction of test pixels with such ground within that distance,
        along rows and columns; `lost`, the fraction of training and validation pixels that near to a test pixel.
    """
    tested = [role == TEST for role in roles]
    near = [_within(ground, test) for ground, test in zip(learnt, tested, strict=True)]
    lost = [_within(test, _learns(role)) for test, role in zip(tested, roles, strict=True)]
    of = sum(int(test.sum()) for test in tested), sum(int(_learns(role).sum()) for role in roles)
    leaking, losing = (np.sum(found, axis=0) / max(1, total) for found, total in zip((near, lost), of, strict=True))
    return [
        {"buffer": d, "leaks": leaking, "lost": losing}
        for d, leaking, losing in zip(BUFFERS, leaking.tolist(), losing.tolist(), strict=True)
    ]


def _within(mask: NDArray[np.bool_], pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of some pixels have a pixel of the mask within each of `BUFFERS`."""
    if not mask.any():
        return np.zeros(len(BUFFERS), np.int64)
    distances = distance_transform_cdt(~mask, "chessboard")[pixels]
    counts = np.bincount(np.minimum(distances, BUFFERS[-1] + 1), minlength=BUFFERS[-1] + 1)
    return counts.cumsum()[list(BUFFERS)]


def learnt_ground(
    grids: Sequence[Grid], roles: Sequence[Roles]
) -> tuple[list[NDArray[np.bool_]], list[tuple[int, int]]]:
    """Where each tile shows ground that trains or validates, in itself or in another tile, of whatever CRS.

    Returns:
        (H, W) for each tile; and the pairs of tiles of which the first one has test pixels on such ground of the other.
    """
    own = [_learns(role) for role in roles]
    ground, pairs = [one.copy() for one in own], []
    for one, other in _neighbours(grids):
        for test, source in ((one, other), (other, one)):
            tested = roles[test] == TEST
            if tested.any() and own[source].any():
                there = _onto(own[source], grids[source], grids[test])
                ground[test] |= there
                if (tested & there).any():
                    pairs.append((test, source))
    return ground, pairs


def polygon_leak_fraction(scenes: Sequence[Scene], roles: Sequence[Roles]) -> float | None:
    """The fraction of test pixels in polygons that hold training or validation pixels too, in whatever tile.

    Returns:
        0..1; NaN if there is no test pixel, None where labels are no polygons.
    """
    learnt, tested, pixels = [], [], []
    for scene, role in zip(scenes, roles, strict=True):
        if scene.read_polygons is None:
            return None
        polygons = scene.read_polygons()
        learnt.append(np.unique(polygons[_learns(role)]))
        found, counts = np.unique(polygons[role == TEST], return_counts=True)
        tested.append(found)
        pixels.append(counts)
    total = np.concatenate(pixels)
    leaking = total[np.isin(np.concatenate(tested), np.concatenate(learnt))]
    return float(leaking.sum() / total.sum()) if total.size else float("nan")


def polygon_leak_words(fraction: float | None) -> list[str]:
    """A sentence on polygons that leak, if any."""
    if not fraction or np.isnan(fraction):
        return []
    return [
        f"{percent(fraction)} of the test pixels lie in polygons that also train or validate: their scores are too "
        "high. `split: {kind: polygons}` gives each polygon one role"
    ]


def calibration_leak_words(fractions: Mapping[int, float]) -> list[str]:
    """A sentence on calibration pixels that leak, if any: side of the view, px -> fraction."""
    leaking = [f"{percent(fraction)} (views of {view} px)" for view, fraction in fractions.items() if fraction > 0]
    if not leaking:
        return []
    return [
        f"of the calibration pixels {', '.join(leaking[:4])} are predicted from a view that holds training or "
        "validation pixels: class sets may come out too small. A `buffer` of the split prevents it"
    ]


def _learns(role: Roles) -> NDArray[np.bool_]:
    return (role == TRAIN) | (role == VALIDATION)


def _onto(mask: NDArray[np.bool_], own: Grid, onto: Grid) -> NDArray[np.bool_]:
    """A mask on another grid: true where a pixel's centre lies in a true pixel, or one's centre lies in the pixel."""
    result = np.zeros((onto.height, onto.width), bool)
    for block in blocks(own.height, own.width, _BLOCK):
        rows, cols = np.nonzero(mask[block.within(own.window)])
        row, col = _places(own, onto, rows + block.row + 0.5, cols + block.col + 0.5)
        inside = (row >= 0) & (row < onto.height) & (col >= 0) & (col < onto.width)
        result[row[inside].astype(int), col[inside].astype(int)] = True
    # The pixels that may show the other grid at all.
    lattice_rows, lattice_cols = np.meshgrid(np.linspace(0, own.height, _EDGE), np.linspace(0, own.width, _EDGE))
    row, col = _places(own, onto, lattice_rows, lattice_cols)
    near = onto.window
    if np.isfinite([row, col]).all():
        margin = 2 + int(max(np.ptp(row), np.ptp(col))) // _EDGE
        size = int(np.ptp(row)) + 2 * margin, int(np.ptp(col)) + 2 * margin
        near = Window(int(row.min()) - margin, int(col.min()) - margin, *size).intersection(near)
    for part in blocks(near.height, near.width, _BLOCK):
        block = Window(part.row + near.row, part.col + near.col, part.height, part.width)
        rows, cols = np.mgrid[: block.height, : block.width]
        row, col = _places(onto, own, rows + block.row + 0.5, cols + block.col + 0.5)
        inside = (row >= 0) & (row < own.height) & (col >= 0) & (col < own.width)
        found = result[block.within(onto.window)]
        found[inside] |= mask[row[inside].astype(int), col[inside].astype(int)]
    return result


def _places(own: Grid, onto: Grid, rows: NDArray[Any], cols: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and columns on another grid, with fractions; infinite where its CRS does not reach."""
    a, b, c, d, e, f = own.transform
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    x, y = onto_crs(own.crs, onto.crs, x, y)
    a, b, c, d, e, f = onto.transform
    if onto.turn:
        left = onto.bounds[0]
        x = left + (x - left) % onto.turn
    determinant = a * e - b * d
    with np.errstate(invalid="ignore"):
        return (a * (y - f) - d * (x - c)) / determinant, (e * (x - c) - b * (y - f)) / determinant


def onto_crs(own: str | None, onto: str | None, x: Any, y: Any) -> tuple[Any, Any]:
    """Coordinates in another CRS, infinite where it does not reach; unchanged where it is the same."""
    return (x, y) if own == onto else _between(str(own), str(onto)).transform(x, y)


@lru_cache(maxsize=64)
def _between(own: str, onto: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(horizontal(own), horizontal(onto), always_xy=True)


def _neighbours(grids: Sequence[Grid]) -> list[tuple[int, int]]:
    """Pairs of tiles that may overlap; those that have no place on the globe overlap none."""
    outlines = {}
    for number, grid in enumerate(grids):
        with suppress(GridError):
            outlines[number] = footprint(grid)
    numbers, shapes = list(outlines), np.array(list(outlines.values()), dtype=object)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    return [(numbers[i], numbers[j]) for i, j in sorted(zip(one.tolist(), other.tolist(), strict=True)) if i < j]
