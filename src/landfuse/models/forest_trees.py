"""A grown forest as tables of numbers, which numpy alone evaluates: in mapping no torch is needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PIXELS_AT_ONCE = 1 << 13
_STEPS = 6


def channels_of(images: Mapping[str, NDArray[np.float32]], zooms: Mapping[str, int]) -> NDArray[np.float32]:
    """What a tree compares, (B * H * W, C), of images (B, C, H * zoom, W * zoom).

    Of a finer modality these are the mean and the standard deviation of each channel within a pixel.
    """
    columns = []
    for name, image in images.items():
        zoom = zooms[name]
        count, channels, height, width = image.shape
        cells = image.reshape(count, channels, height // zoom, zoom, width // zoom, zoom).transpose(0, 2, 4, 1, 3, 5)
        flat = np.ascontiguousarray(cells).reshape(-1, channels, zoom * zoom)
        columns.append(flat.mean(axis=2))
        if zoom > 1:
            columns.append(flat.std(axis=2, ddof=1))
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class Trees:
    """T trees in tables of equal length.

    Args:
        branches: (T, nodes, 2) left and right; a leaf is its own child.
        feature: (T, nodes) channel that is compared.
        threshold: (T, nodes) go left if <=.
        share: (T, nodes, K) fraction of training pixels of each class, and a little for each.
        depth: steps from any root to its deepest leaf.
    """

    branches: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    share: NDArray[np.float32]
    depth: int

    def logits(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log of the trees' mean vote for each class: (P, C) -> (P, K)."""
        found = np.zeros((len(pixels), self.share.shape[2]), np.float32)
        for branches, feature, threshold, share in zip(
            self.branches, self.feature, self.threshold, self.share, strict=True
        ):
            tree = branches.ravel().astype(np.intp), feature.astype(np.intp), threshold, share
            for start in range(0, len(pixels), _PIXELS_AT_ONCE):
                part = slice(start, start + _PIXELS_AT_ONCE)
                self._add(found[part], pixels[part], *tree)
        return np.log((found / np.float32(len(self.branches))).clip(1e-6))

    def _add(
        self,
        total: NDArray[np.float32],
        pixels: NDArray[np.float32],
        branches: NDArray[np.intp],
        feature: NDArray[np.intp],
        threshold: NDArray[np.float32],
        share: NDArray[np.float32],
    ) -> None:
        """Adds what one tree gives each pixel."""
        values = pixels.ravel()
        leaf, node = np.zeros((2, len(pixels)), np.intp)
        moving, row = np.arange(len(pixels)), np.arange(0, pixels.size, pixels.shape[1])
        for step in range(self.depth):
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
        total += share.take(leaf, axis=0)
