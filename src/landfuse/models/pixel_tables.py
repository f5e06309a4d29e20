"""What models of single pixels see, and what they learnt as tables of numbers, by NumPy alone: no torch maps with them.

Each kind of tables has what its model stored in a bundle, tensor by tensor, as its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from landfuse.kernels.trees import TreeWalk
from landfuse.kernels.windows import window_statistics

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
    halo = max(windows, default=1) // 2
    (count, height, width, _), zoom = next((images[name].shape, zoom) for name, zoom in zooms.items())
    height, width = height // zoom - 2 * halo, width // zoom - 2 * halo
    depths = [depth_of(images[name].shape[3], zoom, windows) for name, zoom in zooms.items()]
    found = np.empty((count * height * width, sum(depths)), np.float32)
    for (name, zoom), own in zip(zooms.items(), np.split(found, np.cumsum(depths)[:-1], axis=1), strict=True):
        image, channels = images[name], images[name].shape[3]
        inside = image[:, halo * zoom : (height + halo) * zoom, halo * zoom : (width + halo) * zoom]
        if zoom == 1:
            own[:, :channels] = inside.reshape(-1, channels)
        else:
            cells = inside.reshape(count, height, zoom, width, zoom, channels)
            flat = np.ascontiguousarray(cells.transpose(0, 1, 3, 5, 2, 4)).reshape(-1, channels, zoom * zoom)
            own[:, :channels], own[:, channels : 2 * channels] = flat.mean(axis=2), flat.std(axis=2, ddof=1)
        if windows:
            window_statistics(image, zoom, windows, own[:, (1 if zoom == 1 else 2) * channels :])
    if not missing and not np.isfinite(found).all():
        np.nan_to_num(found, copy=False)
    return found


def depth_of(channels: int, zoom: int, windows: Sequence[int]) -> int:
    """How many features a modality has."""
    return channels * ((1 if zoom == 1 else 2) + 2 * len(windows))


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

    def walk(self, values: NDArray[np.float32], target: NDArray[np.int32]) -> TreeWalk:
        """The trees with what their leaves hold; see `TreeWalk`."""
        return TreeWalk(self.branches, self.feature, self.threshold, int(self.depth), values, target)


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

    @cached_property
    def _walk(self) -> TreeWalk:
        return self.walk(self.share, np.zeros(len(self.share), np.int32))

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log of the trees' mean vote for each class: (P, D) -> (P, K)."""
        found = np.zeros((len(features), self.classes), np.float32)
        self._walk.add(found, features)
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

    @cached_property
    def _walk(self) -> TreeWalk:
        return self.walk(self.value[..., None], self.target)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, D) -> (P, K)."""
        missing = np.isnan(features)
        infinity = np.float32(np.inf)
        both = np.concatenate([np.where(missing, -infinity, features), np.where(missing, infinity, features)], axis=1)
        found = np.repeat(self.start[None], len(features), axis=0)
        self._walk.add(found, both)
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
