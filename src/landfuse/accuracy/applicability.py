"""Where a model may be trusted: how unlike the training pixels a pixel is, by what models see of it.

The dissimilarity of a pixel is its distance to the nearest training pixel, divided by a limit: the largest distance
from a training pixel to the nearest one of another fold, outliers apart. Folds are of whole groups of the split: pixels
side by side do not stand in for each other. Up to 1, a pixel is as much like the training pixels as these are among
themselves; beyond, the scores of the test need not hold. (In the paper, both numbers are divided by the mean distance
between training pixels: the index DI and its threshold.)

Distances are between *predictors*: the first principal components of a modality's bands, then of these and of their
means and standard deviations in the windows that the model sees. Modalities count alike. Nothing is asked of the
model: this is the same for all models, and needs no torch.

Source: Meyer and Pebesma 2021, Predicting into unknown space? Estimating the area of applicability of spatial
prediction models, doi 10.1111/2041-210X.13650.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landfuse.bundles.description import Description
from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.models.pixel_tables import features_of
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import ModalityInfo, Scene, known_pixels
from landfuse.views.reading import read_window

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

MOST = 2000
"""Training pixels that are kept."""

FOLDS = 5

COMPONENTS = 4
"""Principal components that are kept of a modality's bands, and then of its features."""

WINDOWS = (3, 7, 15)
"""Sides of the windows whose means and standard deviations are features, as far as the model's view reaches, px."""

STEPS = 100
"""Numbers per 1, in which dissimilarities are written and counted."""

CAP = 2.5
"""Larger dissimilarities are taken for this."""

PARTS = (0.25, 0.5, 0.75, 1, 1.5, CAP)
"""Ends of the parts by which errors are reported."""

_BLOCK = 32
"""Side of the squares in which the surroundings of single pixels are read, px."""

_FROM = 20_000
"""Pixels of a class in a tile among which those that are kept are drawn."""

_STRIP = 1 << 16
"""Pixels whose features are computed at once."""


@dataclass(frozen=True)
class Mix:
    """(x - mean) times weight, (D, C); where x is NaN it is taken for the mean."""

    mean: NDArray[np.float32]
    weight: NDArray[np.float32]

    @classmethod
    def fitted(cls, x: NDArray[np.float32], width: int = 1, *, whiten: bool = False) -> Mix:
        """The first principal components of columns, (P, C), of which `width` side by side are standardised as one.

        Their variances are 1 in sum, and all the same if whitened.
        """
        values = x.astype(np.float64)
        known = np.isfinite(values)
        count = known.sum(axis=0).clip(1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        centred = np.where(known, values - mean, 0)
        variance = (centred**2).sum(axis=0) / count
        variance[variance <= 1e-14 * mean**2] = 0  # a constant is rounded
        together = variance.reshape(-1, width).mean(axis=1).repeat(width)
        scale = np.where(together > 0, 1 / np.sqrt(np.where(together > 0, together, 1)), 0)
        variances, axes = np.linalg.eigh((centred * scale).T @ (centred * scale) / max(1, len(x)))
        kept = np.flatnonzero(variances >= 1e-6 * variances[-1])[::-1][:COMPONENTS]
        size = variances[kept] * len(kept) if whiten else variances[kept].sum()
        weight = (axes[:, kept] * scale[:, None] / np.sqrt(np.maximum(size, 1e-30))).T
        return cls(mean.astype(np.float32), weight.astype(np.float32))

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, C) -> (P, D); column by column: the bits of a matrix product depend on a pixel's row (P1)."""
        found = np.zeros((len(x), len(self.weight)), np.float32)
        for column, mean, weights in zip(x.T, self.mean, self.weight.T, strict=True):
            found += np.nan_to_num(column - mean)[:, None] * weights
        return found


@dataclass(frozen=True)
class _Space:
    """The training pixels in the predictors of some modalities, and the largest distance that is not dissimilar."""

    tree: cKDTree
    limit: float

    @classmethod
    def of(cls, points: NDArray[np.float32], folds: NDArray[np.uint8]) -> _Space | None:
        """None where pixels of two folds are not at hand, or all are alike."""
        from scipy.spatial import cKDTree

        values = points.astype(np.float64)
        nearest = [cKDTree(values[folds != fold]).query(values[folds == fold])[0] for fold in np.unique(folds)]
        found = np.concatenate([np.zeros(0), *nearest])
        if not np.isfinite(found).any() or not found.any():
            return None
        first, third = np.quantile(found, (0.25, 0.75))
        limit = found[found <= third + 1.5 * (third - first)].max() or found.max()  # 0 where most are alike
        return cls(cKDTree(values), float(limit))


@dataclass(frozen=True)
class Predictors:
    """What a modality's pixels are compared by.

    Args:
        windows: sides of the windows whose means and standard deviations are features, px.
        bands: makes components of bands.
        features: makes predictors of the components' features.
    """

    info: ModalityInfo
    windows: tuple[int, ...]
    bands: Mix
    features: Mix | None = None

    @property
    def halo(self) -> int:
        """How far they look beyond a pixel, px."""
        return max(self.windows, default=1) // 2

    def seen(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features, (C, (H + 2 halo) * zoom, (W + 2 halo) * zoom) -> (H, W, F), or predictors where they are known."""
        zoom, halo = self.info.zoom, self.halo
        height, width = (size // zoom - 2 * halo for size in values.shape[1:])
        known, parts = known_pixels(values, self.info), []
        step = max(1, 2 * halo, _STRIP // (values.shape[2] * zoom))
        for row in range(0, height, step):
            rows = slice(row * zoom, (row + step + 2 * halo) * zoom)
            mixed = self.bands(values[:, rows].reshape(len(values), -1).T)
            mixed[~known[rows].ravel()] = np.nan
            image = mixed.reshape(1, -1, values.shape[2], mixed.shape[1])
            found = features_of({"": image}, {"": zoom}, self.windows, missing=True)
            parts.append(found if self.features is None else self.features(found))
        inside = slice(halo * zoom, (halo + height) * zoom), slice(halo * zoom, (halo + width) * zoom)
        result = np.concatenate(parts).reshape(height, width, -1)
        result[~known[inside].reshape(height, zoom, width, zoom).all(axis=(1, 3))] = np.nan
        return result


@dataclass(frozen=True)
class Applicability:
    """The training pixels that others are compared with.

    Args:
        predictors: modality -> what its pixels are compared by.
        points: modality -> (P, D) predictors of the training pixels, 0 where a modality has no data.
        known: (P, M), where it has.
        folds: (P,) the fold of each.
        groups: what the folds are of, and how many there are.
    """

    predictors: Mapping[str, Predictors]
    points: Mapping[str, NDArray[np.float32]]
    known: NDArray[np.bool_]
    folds: NDArray[np.uint8]
    groups: str
    _spaces: dict[tuple[bool, ...], _Space | None] = field(default_factory=dict, repr=False)

    @classmethod
    def fitted(
        cls,
        scenes: Sequence[Scene],
        targets: Sequence[NDArray[np.uint8]],
        groups: tuple[str, Sequence[NDArray[np.int64]]],
        known: Description,
        *,
        mirror: bool,
    ) -> Applicability | None:
        """Draws training pixels and keeps what is seen there.

        Args:
            targets: (H, W) of each, the classes of the training pixels.
            groups: those of the split: what they are, and (H, W) of each tile, the number of each pixel's.
            mirror: beyond the scene's edges is its mirror image; else no data.

        Returns:
            None where the training pixels are all of one group.
        """
        words, numbers = groups
        places, group = drawn(targets, numbers)
        distinct, number = np.unique(group, return_inverse=True)
        if len(distinct) < 2:
            return None
        folds = np.random.default_rng(0).permutation(len(distinct))[number] % FOLDS
        windows = tuple(side for side in WINDOWS if side <= 2 * known.halo + 1)
        infos, halo = known.modalities, max(windows, default=1) // 2
        values = _at(scenes, places, infos, lambda name, values: _cells(values, infos[name].zoom), 0, mirror)
        bands = {name: Mix.fitted(x.reshape(-1, infos[name].bands)) for name, x in values.items()}
        seen = {name: Predictors(info, windows, bands[name]) for name, info in infos.items()}
        features = _at(scenes, places, infos, lambda name, values: seen[name].seen(values), halo, mirror)
        has = np.stack([np.isfinite(x).any(axis=1) for x in features.values()], axis=1)
        own, points = {}, {}
        for (name, x), data in zip(features.items(), has.T, strict=True):
            mix = Mix.fitted(x, len(bands[name].weight), whiten=True)
            own[name], points[name] = replace(seen[name], features=mix), mix(x) * data[:, None]
        return cls(own, points, has, folds.astype(np.uint8), f"{len(distinct)} {words}")

    @classmethod
    def of(cls, known: Description) -> Applicability:
        """That of a bundle.

        Raises:
            SettingsError: if the bundle keeps none.
        """
        note, kept = known.notes.get("applicability"), known.attached
        if note is None:
            raise SettingsError(
                "the bundle keeps no training pixels to compare a scene with",
                "a model of this version of landfuse, trained on pixels of two groups of its split or more",
                "train again, or map without applicability",
            )
        windows = tuple(int(side) for side in note["windows"])
        own, points = {}, {}
        for name, info in known.modalities.items():
            bands, features = (
                Mix(*(kept[f"applicability.{name}.{kind}.{part}"] for part in ("mean", "weight")))
                for kind in ("bands", "features")
            )
            own[name] = Predictors(info, windows, bands, features)
            points[name] = kept[f"applicability.{name}.points"]
        return cls(own, points, kept["applicability.known"], kept["applicability.folds"], note["groups"])

    def attach(self, bundle: Any) -> None:
        """Makes a bundle keep it."""
        kept: dict[str, NDArray[Any]] = {"known": self.known, "folds": self.folds}
        for name, own in self.predictors.items():
            kept[f"{name}.points"] = self.points[name]
            for kind, mix in (("bands", own.bands), ("features", own.features)):
                kept |= {f"{name}.{kind}.{part}": values for part, values in vars(mix).items()}
        bundle.attached |= {f"applicability.{name}": values for name, values in kept.items()}
        windows = next(iter(self.predictors.values())).windows
        bundle.notes["applicability"] = {"windows": list(windows), "groups": self.groups}

    @property
    def halo(self) -> int:
        """How far predictors look beyond a pixel, px."""
        return next(iter(self.predictors.values())).halo

    @property
    def depth(self) -> int:
        """Predictors of a pixel, of all modalities."""
        return sum(points.shape[1] for points in self.points.values())

    def dissimilarity(self, predictors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """How unlike the training pixels others are.

        Args:
            predictors: modality -> (P, D), NaN where it has no data.

        Returns:
            (1 + M, P), at most `CAP`: by the modalities that have data together, then by each. NaN where there is none
            of them, or all training pixels are alike in it.
        """
        has = np.stack([np.isfinite(predictors[name]).any(axis=1) for name in self.points], axis=1)
        found = np.full((1 + has.shape[1], len(has)), np.nan, np.float32)
        for pattern in np.unique(has, axis=0):
            pixels = np.flatnonzero((has == pattern).all(axis=1))
            found[0, pixels] = self._distance(pattern, predictors, pixels)
        for place, single in enumerate(np.eye(has.shape[1], dtype=bool)):
            pixels = np.flatnonzero(has[:, place])
            found[1 + place, pixels] = self._distance(single, predictors, pixels)
        return found

    def _distance(
        self, pattern: NDArray[np.bool_], predictors: Mapping[str, NDArray[np.float32]], pixels: NDArray[np.intp]
    ) -> NDArray[np.floating] | float:
        """By some modalities, of some of the pixels."""
        names, key = list(compress(self.points, pattern)), tuple(pattern.tolist())
        if not names or not len(pixels):
            return np.nan
        if key not in self._spaces:
            rows = self.known[:, pattern].all(axis=1)
            points = np.concatenate([self.points[name][rows] for name in names], axis=1)
            self._spaces[key] = _Space.of(points, self.folds[rows])
        space = self._spaces[key]
        if space is None:
            return np.nan
        x = np.concatenate([predictors[name][pixels] for name in names], axis=1)
        distance, _ = space.tree.query(x, distance_upper_bound=CAP * space.limit)  # infinity beyond it
        return np.minimum(distance / space.limit, CAP)

    def at(self, scenes: Sequence[Scene], places: NDArray[np.int64], *, mirror: bool) -> NDArray[np.float32]:
        """The dissimilarity of single pixels.

        Args:
            places: (P, 3) scene, row, column.
            mirror: as when it was fitted.
        """
        infos = {name: own.info for name, own in self.predictors.items()}
        found = _at(scenes, places, infos, lambda name, values: self.predictors[name].seen(values), self.halo, mirror)
        return self.dissimilarity(found)


class ErrorsByDissimilarity:
    """Errors of pixels, counted by their dissimilarity.

    Args:
        names: what the rows of `Applicability.dissimilarity` are.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = ("together", *names)
        self._counts = np.zeros((len(self.names), round(STEPS * CAP) + 1, 2), np.int64)  # right and wrong, by steps

    def update(self, dissimilarity: NDArray[np.float32], wrong: NDArray[np.bool_]) -> None:
        """Counts pixels, (1 + M, P) and (P,)."""
        for counts, values in zip(self._counts, dissimilarity, strict=True):
            known = np.isfinite(values)
            np.add.at(counts, (np.rint(values[known] * STEPS).astype(int), wrong[known].astype(int)), 1)

    def facts(self) -> dict[str, Any]:
        """For `scores.json`, by modality: pixels, the fraction up to 1, the fraction of errors there and beyond, by
        parts, and the probability that a wrong pixel has a larger dissimilarity than a right one (AUROC)."""
        return {name: self._facts_of(counts) for name, counts in zip(self.names, self._counts, strict=True)}

    def _facts_of(self, counts: NDArray[np.int64]) -> dict[str, Any]:
        right, wrong = counts.T
        inside = slice(None, STEPS + 1)
        pairs = int(right.sum()) * int(wrong.sum())
        greater = float((wrong * (right.cumsum() - right / 2)).sum())
        ends = [0, *(round(STEPS * end) for end in PARTS)]
        return {
            "pixels": int(counts.sum()),
            "inside": _fraction(counts[inside].sum(), counts.sum()),
            "error_inside": _fraction(wrong[inside].sum(), counts[inside].sum()),
            "error_outside": _fraction(wrong[STEPS + 1 :].sum(), counts[STEPS + 1 :].sum()),
            "AUROC": greater / pairs if pairs else None,
            "parts": [
                {
                    "to": last / STEPS,
                    "pixels": int(counts[own].sum()),
                    "error": _fraction(wrong[own].sum(), counts[own].sum()),
                }
                for first, last in pairwise(ends)
                for own in [slice(first + (first > 0), last + 1)]
            ],
        }


def _fraction(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def drawn(
    targets: Sequence[NDArray[np.uint8]], groups: Sequence[NDArray[np.int64]], most: int = MOST, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws pixels: of all classes alike, as long as there are some left, and spread over the groups.

    Returns:
        (P, 3) scene, row, column, in that order; and (P,) their groups.
    """
    every, rng = [], np.random.default_rng(seed)
    for number, (target, group) in enumerate(zip(targets, groups, strict=True)):
        row, col = rng.permutation(np.argwhere(target != UNLABELLED)).T
        few = _turns(target[row, col]) < _FROM
        row, col = row[few], col[few]
        every.append(np.stack([np.full_like(row, number), row, col, target[row, col], group[row, col]], axis=1))
    pixels = rng.permutation(np.concatenate(every))
    _, both = np.unique(pixels[:, 3:], axis=0, return_inverse=True)
    # One of each class in each group, then the second, ...; in that order one of each class, then the second, ...
    pixels = pixels[np.argsort(_turns(both.ravel()), kind="stable")]
    pixels = pixels[np.argsort(_turns(pixels[:, 3]), kind="stable")][:most]
    pixels = pixels[np.lexsort(pixels[:, 2::-1].T)]
    return pixels[:, :3], pixels[:, 4]


def _turns(keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many of the same key stand before each."""
    order = np.argsort(keys, kind="stable")
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    turns = np.empty(len(keys), np.int64)
    turns[order] = np.arange(len(keys)) - np.repeat(starts, counts)
    return turns


def _cells(values: NDArray[np.float32], zoom: int) -> NDArray[np.float32]:
    """(C, H * zoom, W * zoom) -> (H, W, zoom, zoom, C)."""
    count, height, width = values.shape
    return values.reshape(count, height // zoom, zoom, width // zoom, zoom).transpose(1, 3, 2, 4, 0)


def _at(
    scenes: Sequence[Scene],
    places: NDArray[np.int64],
    infos: Mapping[str, ModalityInfo],
    look: Callable[[str, NDArray[np.float32]], NDArray[np.float32]],
    halo: int,
    mirror: bool,
) -> dict[str, NDArray[np.float32]]:
    """What is seen of single pixels: modality -> (P, ...).

    Args:
        places: (P, 3) scene, row, column.
        look: from a modality's name and its values in a square and its halo, (C, (H + 2 halo) * zoom, (W + 2 halo) *
            zoom), what is seen of its pixels, (H, W, ...).
    """
    squares, which = np.unique(places // (1, _BLOCK, _BLOCK), axis=0, return_inverse=True)
    which = which.ravel()
    order = np.argsort(which, kind="stable")
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in infos}
    for (number, row, col), members in zip(
        squares.tolist(), np.split(order, np.cumsum(np.bincount(which))[:-1]), strict=True
    ):
        scene = scenes[number]
        square = Window(row * _BLOCK, col * _BLOCK, _BLOCK, _BLOCK).intersection(scene.grid.window)
        rows, cols = (places[members, 1:] - (square.row, square.col)).T

        def take(name: str, values: NDArray[np.float32], rows: Any = rows, cols: Any = cols) -> None:
            found[name].append(look(name, values)[rows, cols])

        read_window(scene, square.padded(halo), infos, dict.fromkeys(infos, np.nan), take, mirror=mirror)
    back = np.argsort(order)
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}
