"""What models of single pixels see, and what they learnt as tables of numbers, by NumPy alone: no torch maps with them.

Each kind of tables has what its model stored in a bundle, tensor by tensor, as its fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

_PIXELS_AT_ONCE = 1 << 13
_STEPS = 6
_CHANNELS_AT_ONCE = 8

UNSEEN = -30.0
"""Logit of a class that was not among the training pixels."""


def features_of(
    images: Mapping[str, NDArray[np.float32]],
    zooms: Mapping[str, int],
    windows: Sequence[int] = (),
    *,
    missing: bool = False,
) -> NDArray[np.float32]:
    """What models of single pixels see, (B * H * W, D).

    Of each modality the channels, then the mean and the standard deviation of each channel in each window. Of a finer
    modality the mean and the standard deviation of each channel within the pixel take the place of the channels.

    Args:
        images: name -> (B, (H + 2 halo) * zoom, (W + 2 halo) * zoom, C), NaN where there is no data.
        zooms: of the modalities, in the order of the features.
        windows: sides, px of the scene's grid; the halo is that of the largest.
        missing: leave NaN where nothing is known; else 0, the mean, takes its place.
    """
    columns = []
    halo = max(windows, default=1) // 2
    for name, zoom in zooms.items():
        image = images[name]
        count, height, width, channels = image.shape
        height, width = height // zoom, width // zoom
        inside = image[:, halo * zoom : (height - halo) * zoom, halo * zoom : (width - halo) * zoom]
        if zoom == 1:
            columns.append(inside.reshape(-1, channels))
        else:
            cells = inside.reshape(count, height - 2 * halo, zoom, width - 2 * halo, zoom, channels)
            flat = np.ascontiguousarray(cells.transpose(0, 1, 3, 5, 2, 4)).reshape(-1, channels, zoom * zoom)
            columns += [flat.mean(axis=2), flat.std(axis=2, ddof=1)]
        if windows:
            columns += _context(image, zoom, windows)
    found = np.concatenate(columns, axis=1)
    return found if missing else np.nan_to_num(found, copy=False)


def _context(image: NDArray[np.float32], zoom: int, windows: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Mean and standard deviation of each window, (B * H * W, C) each, of the values that are there."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(2 * len(windows))]
    for start in range(0, image.shape[3], _CHANNELS_AT_ONCE):
        values = image[..., start : start + _CHANNELS_AT_ONCE].astype(np.float64)
        known = np.isfinite(values)
        if (known == known[..., :1]).all():
            known = known[..., :1]  # as is usual; counts are the same number then
        values = np.where(known, values, 0)
        moments = _cells(np.concatenate([values, values * values, known], axis=3), zoom)
        for place, sums in enumerate(_window_sums(moments, windows)):
            total, squares, count = np.split(sums, [values.shape[3], 2 * values.shape[3]], axis=3)
            with np.errstate(invalid="ignore"):
                mean = total / count
                variance = squares / count - mean * mean
            found[2 * place].append(mean.astype(np.float32))
            found[2 * place + 1].append(np.sqrt(variance.clip(0)).astype(np.float32))
    for parts in found:
        yield np.concatenate(parts, axis=3).reshape(-1, image.shape[3])


def _cells(values: NDArray[np.float64], zoom: int) -> NDArray[np.float64]:
    """Sums of the zoom x zoom values within each pixel, in a fixed order."""
    places = [(row, col) for row in range(zoom) for col in range(zoom)]
    total = values[:, ::zoom, ::zoom].copy()
    for row, col in places[1:]:
        total += values[:, row::zoom, col::zoom]
    return total


def _window_sums(moments: NDArray[np.float64], windows: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """Sums over each window, (B, H, W, C), of numbers of pixels, (B, H + 2 halo, W + 2 halo, C).

    Row by row, then column by column, from the middle outwards: a pixel's sums are added up in the same order in every
    block, and with 53 bits of numbers of 24. Running sums would depend on where they began.
    """
    halo, done = max(windows) // 2, 0
    height, width = moments.shape[1] - 2 * halo, moments.shape[2] - 2 * halo
    down = moments[:, halo : halo + height].copy()
    for size in windows:
        for step in range(done + 1, size // 2 + 1):
            down += moments[:, halo - step : halo - step + height]
            down += moments[:, halo + step : halo + step + height]
        done = size // 2
        across = down[:, :, halo : halo + width].copy()
        for step in range(1, done + 1):
            across += down[:, :, halo - step : halo - step + width]
            across += down[:, :, halo + step : halo + step + width]
        yield across


class Tables(Protocol):
    """What a model learnt, as arrays."""

    takes_dropped: ClassVar[bool]
    """Whether features may be NaN; else 0, the mean, takes their place."""

    @property
    def classes(self) -> int:
        """K."""

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, D) -> (P, K)."""


@dataclass(frozen=True)
class Nodes:
    """T trees in tables of equal length.

    Args:
        branches: (T, nodes, 2) left and right; a leaf is its own child.
        feature: (T, nodes) place of the feature that is compared.
        threshold: (T, nodes) go left if <=.
        depth: steps from any root to its deepest leaf; a single number.
    """

    branches: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    depth: NDArray[np.int32]

    def leaves(self, features: NDArray[np.float32]) -> Iterator[tuple[int, slice, NDArray[np.intp]]]:
        """Which leaf each pixel reaches: the tree, some of the pixels, and their leaves, tree by tree."""
        for number, (branches, feature, threshold) in enumerate(
            zip(self.branches, self.feature, self.threshold, strict=True)
        ):
            tree = branches.ravel().astype(np.intp), feature.astype(np.intp), threshold
            for start in range(0, len(features), _PIXELS_AT_ONCE):
                part = slice(start, start + _PIXELS_AT_ONCE)
                yield number, part, self._descend(features[part], *tree)

    def _descend(
        self,
        features: NDArray[np.float32],
        branches: NDArray[np.intp],
        feature: NDArray[np.intp],
        threshold: NDArray[np.float32],
    ) -> NDArray[np.intp]:
        values = features.ravel()
        leaf, node = np.zeros((2, len(features)), np.intp)
        moving, row = np.arange(len(features)), np.arange(0, features.size, features.shape[1])
        for step in range(int(self.depth)):
            right = values.take(row + feature.take(node)) > threshold.take(node)
            node = branches.take(2 * node + right)
            if step % _STEPS == _STEPS - 1:
                # Most pixels reach their leaf long before the deepest: only the others go on.
                leaf[moving] = node
                on = np.flatnonzero(branches.take(2 * node) != node)
                moving, node, row = moving[on], node[on], row[on]
                if not len(on):
                    break
        leaf[moving] = node
        return leaf


@dataclass(frozen=True)
class Forest(Nodes):
    """A random forest.

    Args:
        share: (T, nodes, K) fraction of training pixels of each class, and a little for each.
    """

    takes_dropped = False
    share: NDArray[np.float32]

    @property
    def classes(self) -> int:
        """K."""
        return self.share.shape[2]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log of the trees' mean vote for each class: (P, D) -> (P, K)."""
        found = np.zeros((len(features), self.share.shape[2]), np.float32)
        for tree, part, leaf in self.leaves(features):
            found[part] += self.share[tree].take(leaf, axis=0)
        return np.log((found / np.float32(len(self.branches))).clip(1e-6))


@dataclass(frozen=True)
class Boosted(Nodes):
    """Boosted trees, of which each adds to the logit of one class.

    A split sends a missing value left or right: features are compared twice, once with -infinity in its place, and, D
    places further, with infinity.

    Args:
        value: (T, nodes) what a leaf adds.
        target: (T,) the class that a tree adds to.
        start: (K,) logits before the first tree.
    """

    takes_dropped = True
    value: NDArray[np.float32]
    target: NDArray[np.int32]
    start: NDArray[np.float32]

    @property
    def classes(self) -> int:
        """K."""
        return len(self.start)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, D) -> (P, K)."""
        missing = np.isnan(features)
        infinity = np.float32(np.inf)
        both = np.concatenate([np.where(missing, -infinity, features), np.where(missing, infinity, features)], axis=1)
        found = np.repeat(self.start[None], len(features), axis=0)
        for tree, part, leaf in self.leaves(both):
            found[part, self.target[tree]] += self.value[tree].take(leaf)
        return found


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on standardised features.

    Args:
        place: (D',) places of the features that are used.
        mean: (D',) of the training pixels.
        scale: (D',) their standard deviation.
        weight: (K, D').
        bias: (K,).
    """

    takes_dropped = False
    place: NDArray[np.int32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def classes(self) -> int:
        """K."""
        return len(self.bias)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, D) -> (P, K)."""
        found = np.repeat(self.bias[None], len(features), axis=0)
        # Feature by feature: the bits of a matrix product depend on a pixel's row (P1).
        for place, mean, scale, weight in zip(self.place, self.mean, self.scale, self.weight.T, strict=True):
            found += ((features[:, place] - mean) / scale)[:, None] * weight
        return found


TABLES: dict[str, Any] = {"boosted": Boosted, "forest": Forest, "logistic": Logistic}
"""By the model's name."""
