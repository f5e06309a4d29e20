"""Trees as tables of nodes: what their leaves hold is added up for each pixel, by the compiled kernel or by NumPy.

Both add in the order of the trees, and so give the same bits; no torch.
"""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_void_p
from typing import cast

import numpy as np
from numpy.typing import NDArray

from landfuse.kernels.native_library import library
from landfuse.settings import threads

_PIXELS_AT_ONCE = 1 << 13
_STEPS = 6
_PER_THREAD = 2048
"""Pixels below which a further thread takes longer to start than it saves."""

_FEATURES, _NODES = 1 << 12, 1 << 20
"""Features, and nodes of a tree, that a node of 8 bytes has room for."""


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("features", c_void_p), ("pixels", c_int64), ("count", c_int64), ("nodes", c_void_p), ("start", c_void_p),
        *((name, c_int64) for name in ("trees", "depth", "wide")), ("values", c_void_p), ("width", c_int64),
        ("target", c_void_p), ("total", c_void_p), ("classes", c_int64),
    ]  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = library("landfuse_trees_arguments_size", _Arguments)
    if found is not None:
        found.landfuse_trees_add.restype = None
        found.landfuse_trees_add.argtypes = [ctypes.POINTER(_Arguments)]
        found.landfuse_trees_pack.restype = c_int64
        found.landfuse_trees_pack.argtypes = [*[c_void_p] * 3, *[c_int64] * 2, *[c_void_p] * 3]
    return found


class TreeWalk:
    """T trees in tables of equal length, and what their leaves hold.

    Args:
        branches: (T, nodes, 2) left and right; a leaf is its own child.
        feature: (T, nodes) place of the feature that is compared.
        threshold: (T, nodes) go left if <=.
        depth: steps from any root to its deepest leaf.
        values: (T, nodes, width) of the leaves.
        target: (T,) the first class that a tree's values are added to.
    """

    def __init__(
        self,
        branches: NDArray[np.int32],
        feature: NDArray[np.int32],
        threshold: NDArray[np.float32],
        depth: int,
        values: NDArray[np.float32],
        target: NDArray[np.int32],
    ) -> None:
        self.branches, self.feature, self.threshold = branches, feature, threshold
        self.depth, self.values, self.target = depth, values, np.ascontiguousarray(target, np.int32)

    def add(self, total: NDArray[np.float32], features: NDArray[np.float32]) -> None:
        """Adds, tree by tree, what the leaves hold to (P, K) of pixels whose features are (P, D)."""
        native = _library()
        if native is None or not len(self.feature):
            self._add(total, features)
            return
        nodes, starts, values = self._packed
        features = np.ascontiguousarray(features)
        count = max(1, min(threads(), len(features) // _PER_THREAD))
        each = max(1, -(-len(features) // count))

        def run(first: int) -> None:
            own, part = total[first : first + each], features[first : first + each]
            native.landfuse_trees_add(
                _Arguments(
                    part.ctypes.data, *part.shape, nodes.ctypes.data, starts.ctypes.data, len(starts), self.depth,
                    nodes.itemsize > 8, values.ctypes.data, values.shape[1], self.target.ctypes.data,
                    own.ctypes.data, own.shape[1],
                )
            )  # fmt: skip

        if count == 1:
            run(0)
            return
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(run, range(0, len(features), each)))

    @functools.cached_property
    def _packed(self) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.float32]]:
        """The nodes of all trees as the kernel takes them, where each tree begins, and the values of the nodes."""
        count, length = self.feature.shape
        wide = np.empty(count * length, [("threshold", np.float32), ("feature", np.uint32), ("left", np.uint32)])
        order, starts = np.empty(count * length, np.int64), np.empty(count, np.int64)
        tables = [np.ascontiguousarray(one) for one in (self.branches, self.feature, self.threshold)]
        found = cast(ctypes.CDLL, _library()).landfuse_trees_pack(
            *(one.ctypes.data for one in tables), count, length, *(one.ctypes.data for one in (wide, order, starts))
        )
        if found < 0:
            raise ValueError("a node of a tree has a child that is none of its nodes, or is above it")
        nodes, values = wide[:found], self.values.reshape(count * length, -1)[order[:found]]
        if nodes["feature"].max() < _FEATURES and nodes["left"].max() < _NODES:
            narrow = np.empty(found, [("threshold", np.float32), ("both", np.uint32)])
            narrow["threshold"], narrow["both"] = nodes["threshold"], nodes["left"] * _FEATURES + nodes["feature"]
            nodes = narrow
        return nodes, starts, values

    def _add(self, total: NDArray[np.float32], features: NDArray[np.float32]) -> None:
        """`add` by NumPy."""
        width = self.values.shape[2]
        for number, first in enumerate(self.target.tolist()):
            tree = self.branches[number].ravel().astype(np.intp), self.feature[number].astype(np.intp)
            for start in range(0, len(features), _PIXELS_AT_ONCE):
                part = slice(start, start + _PIXELS_AT_ONCE)
                leaf = self._descend(features[part], *tree, self.threshold[number])
                total[part, first : first + width] += self.values[number].take(leaf, axis=0)

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
        return leaf
