"""The leak report: what the test labels were predicted from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyproj
from numpy.typing import NDArray
from scipy.spatial import KDTree

from landfuse.markup import percent
from landfuse.rasters.geotiff import mask_onto
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import any_within, lattice, summed_area
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION, Roles


def leak_fraction(
    roles: Sequence[Roles],
    view: int,
    core: int = 1,
    stride: int | None = None,
    learnt: Sequence[NDArray[np.bool_]] | None = None,
) -> float:
    """The fraction of test pixels whose logits come from a view which holds a training or validation pixel.

    Args:
        roles: one array per scene.
        view: side of the view, px.
        core: side of the core, px.
        stride: distance between the windows of the lattice, as in mapping; by default the core.
        learnt: where each scene shows ground that trains or validates, see `learnt_ground`; by default its own pixels.

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
        leaking += int(((role == TEST) & covered).sum())
        total += int((role == TEST).sum())
    return leaking / total if total else float("nan")


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
                there = mask_onto(own[source], grids[source], grids[test])
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


def _learns(role: Roles) -> NDArray[np.bool_]:
    return (role == TRAIN) | (role == VALIDATION)


def _neighbours(grids: Sequence[Grid]) -> list[tuple[int, int]]:
    """Pairs of tiles that may overlap: the balls around them meet, on the globe, where no coordinate jumps."""
    numbers, centres, radii = [], [], []
    globes = {grid.crs: pyproj.Transformer.from_crs(grid.crs, 4326, always_xy=True) for grid in grids if grid.crs}
    for number, grid in enumerate(grids):
        if not grid.crs:
            continue
        cols, rows = np.meshgrid(np.linspace(0, grid.width, 5), np.linspace(0, grid.height, 5))
        a, b, c, d, e, f = grid.transform
        east, north = np.radians(globes[grid.crs].transform(a * cols + b * rows + c, d * cols + e * rows + f))
        points = np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)
        points = points[np.isfinite(points).all(axis=-1)]
        if len(points):
            numbers.append(number)
            centres.append(points.mean(axis=0))
            radii.append(1.01 * np.linalg.norm(points - centres[-1], axis=-1).max())
    if len(numbers) < 2:
        return []
    pairs = KDTree(centres).query_pairs(2 * max(radii))
    near = [(i, j) for i, j in sorted(pairs) if np.linalg.norm(centres[i] - centres[j]) < radii[i] + radii[j]]
    return [(numbers[i], numbers[j]) for i, j in near]
