"""The sums of trees' leaves by the compiled kernel and by NumPy, beside a walk node by node and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from landfuse.kernels import trees
from landfuse.kernels.trees import TreeWalk
from landfuse.models.pixel_models import Forest, Pixels

KERNELS = [
    pytest.param(lambda: None, id="numpy"),
    pytest.param(
        trees._library, id="native", marks=pytest.mark.skipif(trees._library() is None, reason="it was not compiled")
    ),
]


def grown(rng: np.random.Generator, features: int, depth: int, width: int = 3) -> TreeWalk:
    """Five trees of some depth, nodes in random order, with rooms that no node takes."""
    count, length = 5, 2 ** (depth + 1) + 7
    branches = np.tile(np.arange(length, dtype=np.int32)[:, None], (count, 1, 2))
    feature = rng.integers(0, features, (count, length)).astype(np.int32)
    for tree in range(count):
        free = [*rng.permutation(np.arange(1, length))]
        level = [0]
        for _ in range(depth):
            inner = [node for node in level if node == 0 or rng.random() < 0.7]
            level = []
            for node in inner:
                branches[tree, node] = free.pop(), free.pop()
                level += branches[tree, node].tolist()
    threshold = rng.normal(size=(count, length)).astype(np.float32)
    values = rng.normal(size=(count, length, width)).astype(np.float32)
    return TreeWalk(branches, feature, threshold, depth, values, np.array([0, 2, 1, 0, 2], np.int32))


def by_hand(walk: TreeWalk, features: NDArray[np.float32], classes: int) -> NDArray[np.float32]:
    total = np.zeros((len(features), classes), np.float32)
    for own, pixel in zip(total, features, strict=True):
        for tree, first in enumerate(walk.target):
            node = 0
            while walk.branches[tree, node, 0] != node:
                right = pixel[walk.feature[tree, node]] > walk.threshold[tree, node]
                node = walk.branches[tree, node, int(right)]
            own[first : first + walk.values.shape[2]] += walk.values[tree, node]
    return total


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("features", "depth"), [(4, 1), (4, 9), (5000, 6)], ids=["a root", "deep", "wide nodes"])
def test_the_sums_are_those_of_a_walk_node_by_node(
    kernel: Callable[[], object], features: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_library", kernel)
    rng = np.random.default_rng(depth)
    walk, pixels = grown(rng, features, depth), rng.normal(size=(83, features)).astype(np.float32)
    pixels[3] = np.inf
    pixels[4] = -np.inf
    expected = by_hand(walk, pixels, 5)
    for part in (slice(0, 83), slice(0, 1), slice(10, 27)):
        total = np.zeros((len(pixels[part]), 5), np.float32)
        walk.add(total, pixels[part])
        np.testing.assert_array_equal(total, expected[part])


@pytest.mark.parametrize("kernel", KERNELS)
def test_several_threads_give_the_same_sums(kernel: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    walk, pixels = grown(rng, 4, 6), rng.normal(size=(3 * trees._PER_THREAD + 5, 4)).astype(np.float32)
    one, three = np.zeros((2, len(pixels), 5), np.float32)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    walk.add(one, pixels)
    monkeypatch.setattr(trees, "_library", kernel)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    walk.add(three, pixels)
    np.testing.assert_array_equal(three, one)


@pytest.mark.skipif(trees._library() is None, reason="it was not compiled")
@pytest.mark.parametrize("child", [-1, 39, 0])
def test_a_child_that_is_no_node_or_one_above_is_refused(child: int) -> None:
    walk = grown(np.random.default_rng(3), 4, 4)
    assert walk.branches.shape[1] == 39
    walk.branches[2, 0, 1] = child
    with pytest.raises(ValueError, match="a node of a tree"):
        walk.add(np.zeros((9, 5), np.float32), np.zeros((9, 4), np.float32))


def test_a_forest_votes_as_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(400, 6)).astype(np.float32), rng.integers(0, 3, 400).astype(np.uint8)
    own = Forest({"a": 6}, 3, trees=20, context=[]).learn(Pixels(x, y), 0, Pixels(x[:0], y[:0]), None)
    theirs = RandomForestClassifier(20, random_state=0).fit(x, y).predict_proba(x)
    votes = np.exp(own.logits(x)) - 0.5**5  # of each class, about one vote in all is added
    np.testing.assert_allclose(votes, theirs, atol=1e-5)
