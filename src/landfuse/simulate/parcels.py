"""The ground of simulated scenes: warped Voronoi parcels, roads along their borders, halls on paved ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.place_noise import hashed, smooth, uniform

_WATER, _SOIL, _GRASS, _CROP, _SHRUB, _TREES, _ROAD, _BUILDING = range(8)
_SETTLEMENT = _ROAD  # as the cover of a parcel: paved, with halls
_COVERS = 7
_CELL = 24  # px, mean distance of parcel centres
_WARP = 5.0  # px, how far value noise shifts the parcels' borders
_HALF_ROAD = 3.5  # px
_LOT = 16  # px, one hall each in a settlement


class Stream:
    """Numbers of the counter hashes; each property of the scene draws from its own."""

    COVER, LABELLED, CENTRE_Y, CENTRE_X, MIXTURE, PAVED, VIGOUR, LOT, ROADS, WARP_Y, WARP_X, LIGHT, CANOPY = range(13)
    HEIGHT_NOISE = 20
    SPECKLE = 30  # and one for each band and look
    BAND_NOISE = 1000  # and one for each band


class Piece(NamedTuple):
    """The ground of some pixels, and the properties of the parcels around."""

    classes: NDArray[np.uint8]  # (H, W), the class that covers most of the pixel
    other: NDArray[np.uint8]  # (H, W), the class of the rest
    rest: NDArray[np.float32]  # (H, W), the fraction of `other`, 0..0.5
    parcel: NDArray[np.intp]  # (H, W), the parcel of `classes`
    other_parcel: NDArray[np.intp]  # (H, W), the parcel of `other`
    covered: NDArray[np.float32]  # (parcels,), uniform: where a label is drawn from
    mixture: NDArray[np.float32]  # (parcels, 2), uniform: of two endmembers, in the parcel's cover and in pavement
    vigour: NDArray[np.float32]  # (parcels,), uniform: where between its class's extremes the parcel's height is


def piece_of(seed: int, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Piece:
    """Computes the ground of the rectangle rows x cols: parcels, roads and halls."""
    warp = np.float32(2 * _WARP)
    y = rows[:, None] + warp * (smooth(seed, Stream.WARP_Y, rows, cols, 32) - np.float32(0.5))
    x = cols[None, :] + warp * (smooth(seed, Stream.WARP_X, rows, cols, 32) - np.float32(0.5))
    margin = math.ceil(_WARP) + _CELL
    i = np.arange((rows[0] - margin) // _CELL, (rows[-1] + margin) // _CELL + 1, dtype=np.int64)
    j = np.arange((cols[0] - margin) // _CELL, (cols[-1] + margin) // _CELL + 1, dtype=np.int64)
    nearest, second, border = _voronoi(seed, y, x, i, j)

    cover = _covers(seed, i, j).reshape(-1)
    own, beyond = cover[nearest], cover[second]
    # A road runs along the border of two parcels if their numbers, taken together, say so: both sides agree.
    road = uniform(seed, Stream.ROADS, i, j).reshape(-1)
    lined = (road[nearest] + road[second]) % 1 < 0.3
    lined &= (own != _WATER) & (beyond != _WATER)
    half = np.where(lined, np.float32(_HALF_ROAD), np.float32(0))
    rest = np.clip(np.abs(border - half), 0, 0.5).astype(np.float32)
    rest = np.float32(0.5) - rest  # 0.5 on the border of two surfaces, 0 from half a pixel on
    on_road = border < half
    classes = np.where(on_road, np.uint8(_ROAD), own)
    other = np.where(lined, np.where(on_road, own, np.uint8(_ROAD)), beyond)
    other_parcel = np.where(lined, nearest, second)
    halls = _halls(seed, rows, cols) & (own == _SETTLEMENT) & (border > half + 2)
    classes[halls] = _BUILDING
    mixture = [uniform(seed, stream, i, j).reshape(-1) for stream in (Stream.MIXTURE, Stream.PAVED)]
    return Piece(
        classes,
        other,
        rest,
        nearest,
        other_parcel,
        uniform(seed, Stream.LABELLED, i, j).reshape(-1),
        np.stack(mixture, axis=1),
        uniform(seed, Stream.VIGOUR, i, j).reshape(-1),
    )


def _voronoi(
    seed: int, y: NDArray[np.float64], x: NDArray[np.float64], i: NDArray[np.int64], j: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The nearest and the second parcel of each place, and the distance to the border between them, in pixels."""
    from scipy.spatial import cKDTree

    centre_y = (i[:, None] + 0.2 + 0.6 * uniform(seed, Stream.CENTRE_Y, i, j)) * _CELL
    centre_x = (j[None, :] + 0.2 + 0.6 * uniform(seed, Stream.CENTRE_X, i, j)) * _CELL
    centre_y, centre_x = centre_y.reshape(-1), centre_x.reshape(-1)  # float64: distances keep the far pixels apart
    tree = cKDTree(np.stack([centre_y, centre_x], axis=1))
    distances, cells = tree.query(np.stack([y, x], axis=-1), k=2)
    (best, runner_up), (nearest, second) = np.square(np.moveaxis(distances, -1, 0)), np.moveaxis(cells, -1, 0)
    apart = np.hypot(centre_y[nearest] - centre_y[second], centre_x[nearest] - centre_x[second])
    return nearest, second, ((runner_up - best) / (2 * apart)).astype(np.float32)


def _covers(seed: int, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The cover of each cell. Seven cells in a row hold each cover once, so that small scenes have all of them."""
    group = np.arange(j[0] // _COVERS, j[-1] // _COVERS + 1, dtype=np.int64)
    draws = hashed(seed, Stream.COVER, i, np.arange(group[0] * _COVERS, (group[-1] + 1) * _COVERS, dtype=np.int64))
    order = np.argsort(draws.reshape(i.size, group.size, _COVERS), axis=2, kind="stable")
    return order.reshape(i.size, -1)[:, j - group[0] * _COVERS].astype(np.uint8)


def _halls(seed: int, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where halls would stand if all ground were settled: one on each lot, of varying size."""
    down, right = rows // _LOT, cols // _LOT
    first_down, first_right = int(down[0]), int(right[0])
    size = uniform(
        seed,
        Stream.LOT,
        np.arange(first_down, down[-1] + 1, dtype=np.int64),
        np.arange(first_right, right[-1] + 1, dtype=np.int64),
    )[down - first_down][:, right - first_right]
    half = 5.5 + 1.5 * size
    middle = (_LOT - 1) / 2
    inside: NDArray[np.bool_] = (np.abs(rows % _LOT - middle)[:, None] < half) & (
        np.abs(cols % _LOT - middle)[None, :] < 12.5 - half
    )
    return inside
