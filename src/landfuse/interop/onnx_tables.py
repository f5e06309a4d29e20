"""Forest, boosted trees and logistic regression as ONNX graphs, from raw pixels of any size to logits.

The operators and their order are those of `models/pixel_tables.py`: context in double precision, sums from the middle
of a window outwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from landfuse.bundles.bundle import Bundle
from landfuse.models.pixel_tables import Boosted, Forest, Logistic, Nodes, depth_of
from landfuse.views.pixel_arrays import PixelArrays

OPSET, TREES = 18, 3
"""Versions of ONNX's operators and of those of trees."""

_ROWS, _COLUMNS = 2, 3
"""Axes of images, (B, C, H, W)."""


class _Graph:
    """Nodes and constants; calling it adds an operator, and returns the name of its first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, Any], onnx.TensorProto] = {}

    def __call__(self, operator: str, *inputs: Any, domain: str = "", **attributes: Any) -> str:
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], domain=domain, **attributes))
        return name

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        key = f"{array.dtype} {array.shape}", array.tobytes()
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def cut(self, image: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """Part of an image along an axis; a `stop` of 0 is its end."""
        end = stop or np.iinfo(np.int64).max
        bounds = ([start], [end], [axis], [step])
        return self("Slice", image, *(np.array(one, np.int64) for one in bounds))

    def cast(self, value: str, kind: int) -> str:
        return self("Cast", value, to=kind)


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    """The graph of a bundle of `TABLES`; its inputs are named as the modalities, its output `logits`."""
    model: Any = bundle.model
    tables, windows = model.tables, model.pixel_settings.windows
    made, halo = _Graph(), max(windows, default=1) // 2
    columns, width = list[str](), 0
    for name, own in bundle.maps.items():
        missing = math.nan if model.marks_missing else 0.0
        mapped = _mapped(made, name, own.arrays, missing, name in bundle.droppable)
        zoom = bundle.inputs[name].zoom
        columns += _features(made, mapped, zoom, windows, halo)
        width += depth_of(own.channels, zoom, windows)
    features = made("Concat", *columns, axis=1)
    if not tables.takes_dropped:
        features = made("Where", made("IsNaN", features), np.float32(0), features)
    rows = made("Transpose", features, perm=[0, _ROWS, _COLUMNS, 1])
    shape = made("Shape", rows)
    start, last, every = (np.array([one], np.int64) for one in (0, 3, -1))
    flat = made("Reshape", rows, made("Concat", every, made("Slice", shape, last, np.array([4], np.int64)), axis=0))
    scores = _LOGITS[type(tables)](made, flat, tables, width)
    count = np.array([tables.classes], np.int64)
    back = made("Reshape", scores, made("Concat", made("Slice", shape, start, last), count, axis=0))
    made.nodes.append(helper.make_node("Transpose", [back], ["logits"], perm=[0, 3, 1, 2]))
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["batch", info.bands, f"height_{info.zoom}", f"width_{info.zoom}"]
        )
        for name, info in bundle.inputs.items()
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", tables.classes, "rows", "columns"])
    whole = helper.make_graph(made.nodes, bundle.spec.name, inputs, [output], list(made.constants.values()))
    operators = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", TREES)]
    return helper.make_model(whole, opset_imports=operators, ir_version=10)


def _mapped(made: _Graph, image: str, own: PixelArrays, missing: float, droppable: bool) -> str:
    weight, bias = own.weight, own.bias
    if weight.ndim == 1:
        mapped = made("Add", made("Mul", image, weight[:, None, None]), bias[:, None, None])
    else:
        # Band by band, as `PixelArrays` does it: a pixel's bits do not depend on its place (P1).
        mapped = made.constant(bias[:, None, None])
        for band, weights in enumerate(weight.T):
            part = made("Mul", made.cut(image, 1, band, band + 1), weights[:, None, None])
            mapped = made("Add", mapped, part)
    limit = np.float32(min(own.clip, float(np.finfo(np.float32).max)))
    clipped = made("Clip", mapped, -limit, limit)
    mapped = made("Where", made("IsNaN", mapped), np.float32(missing), clipped)
    if not droppable:
        return mapped
    unknown = made.cast(made("IsNaN", image), TensorProto.FLOAT)
    axis = np.array([1], np.int64)
    gone = made("ReduceMin" if own.gaps else "ReduceMax", unknown, axis, keepdims=1)
    return made("Where", made.cast(gone, TensorProto.BOOL), np.float32(math.nan), mapped)


def _features(made: _Graph, image: str, zoom: int, windows: Sequence[int], halo: int) -> Iterator[str]:
    """See `pixel_tables.features_of`."""
    inside = image
    for axis in (_ROWS, _COLUMNS) if halo else ():
        inside = made.cut(inside, axis, halo * zoom, -halo * zoom)
    if zoom == 1:
        yield inside
    else:
        first = np.array([0], np.int64)
        cells = made("Concat", *(made("Unsqueeze", one, first) for one in _in_cells(made, inside, zoom)), axis=0)
        mean = made("ReduceMean", cells, first, keepdims=0)
        yield mean
        apart = made("Sub", cells, mean)
        squares = made("ReduceSum", made("Mul", apart, apart), first, keepdims=0)
        yield made("Sqrt", made("Div", squares, np.float32(zoom * zoom - 1)))
    if windows:
        yield from _context(made, image, zoom, windows)


def _in_cells(made: _Graph, image: str, zoom: int) -> Iterator[str]:
    """The zoom x zoom values within each pixel, one image of each place."""
    for row in range(zoom):
        rows = made.cut(image, _ROWS, row, 0, zoom)
        for col in range(zoom):
            yield made.cut(rows, _COLUMNS, col, 0, zoom)


def _context(made: _Graph, image: str, zoom: int, windows: Sequence[int]) -> Iterator[str]:
    gone = made("IsNaN", image)
    values = made("Where", gone, np.float64(0), made.cast(image, TensorProto.DOUBLE))
    known = made.cast(made("Not", gone), TensorProto.DOUBLE)
    moments = made("Concat", values, made("Mul", values, values), known, axis=1)
    if zoom > 1:
        first, *others = _in_cells(made, moments, zoom)
        for one in others:
            first = made("Add", first, one)
        moments = first
    halo, done = max(windows) // 2, 0
    down = _shifted(made, moments, _ROWS, halo, 0)
    for size in windows:
        for step in range(done + 1, size // 2 + 1):
            for way in (-step, step):
                down = made("Add", down, _shifted(made, moments, _ROWS, halo, way))
        done = size // 2
        across = _shifted(made, down, _COLUMNS, halo, 0)
        for step in range(1, done + 1):
            for way in (-step, step):
                across = made("Add", across, _shifted(made, down, _COLUMNS, halo, way))
        third = made("Div", made("Shape", across, start=1, end=2), np.array([3], np.int64))
        parts = [made("Mul", third, np.array([one], np.int64)) for one in range(4)]
        axis = np.array([1], np.int64)
        total, squares, count = (made("Slice", across, parts[one], parts[one + 1], axis) for one in range(3))
        mean = made("Div", total, count)
        variance = made("Sub", made("Div", squares, count), made("Mul", mean, mean))
        yield made.cast(mean, TensorProto.FLOAT)
        below = made("Less", variance, np.float64(0))
        yield made.cast(made("Sqrt", made("Where", below, np.float64(0), variance)), TensorProto.FLOAT)


def _shifted(made: _Graph, values: str, axis: int, halo: int, way: int) -> str:
    return made.cut(values, axis, halo + way, way - halo)


def _trees(nodes: Nodes) -> tuple[dict[str, list[Any]], list[NDArray[np.intp]]]:
    """Attributes of the nodes of trees, and the places of each tree's leaves."""
    found: dict[str, list[Any]] = {
        "nodes_treeids": [], "nodes_nodeids": [], "nodes_featureids": [], "nodes_values": [], "nodes_modes": [],
        "nodes_truenodeids": [], "nodes_falsenodeids": [],
    }  # fmt: skip
    leaves = []
    for tree, (branches, feature, threshold) in enumerate(
        zip(nodes.branches, nodes.feature, nodes.threshold, strict=True)
    ):
        count = int(branches.max()) + 1  # tables are filled up with zeros
        left, right = branches[:count].T
        leaf = left == np.arange(count)
        found["nodes_treeids"] += [tree] * count
        found["nodes_nodeids"] += range(count)
        found["nodes_featureids"] += feature[:count].tolist()
        found["nodes_values"] += threshold[:count].tolist()
        found["nodes_modes"] += ["LEAF" if one else "BRANCH_LEQ" for one in leaf]
        found["nodes_truenodeids"] += np.where(leaf, 0, left).tolist()
        found["nodes_falsenodeids"] += np.where(leaf, 0, right).tolist()
        leaves.append(np.flatnonzero(leaf))
    return found, leaves


def _of_forest(made: _Graph, features: str, tables: Forest, width: int) -> str:
    nodes, leaves = _trees(tables)
    every = np.arange(tables.classes)
    # All classes of each leaf, also those of few votes: summed up as by NumPy, so that equal votes stay equal.
    votes = made(
        "TreeEnsembleRegressor", features, domain="ai.onnx.ml", n_targets=tables.classes, **nodes,
        target_treeids=np.repeat(np.arange(len(leaves)), [len(leaf) * len(every) for leaf in leaves]).tolist(),
        target_nodeids=np.concatenate([leaf.repeat(len(every)) for leaf in leaves]).tolist(),
        target_ids=np.concatenate([np.tile(every, len(leaf)) for leaf in leaves]).tolist(),
        target_weights=np.concatenate(
            [share[leaf].ravel() for share, leaf in zip(tables.share, leaves, strict=True)]
        ).tolist(),
    )  # fmt: skip
    return made("Log", made("Max", made("Div", votes, np.float32(len(leaves))), np.float32(1e-6)))


def _of_boosted(made: _Graph, features: str, tables: Boosted, width: int) -> str:
    nodes, leaves = _trees(tables)
    trees, places, weights = [], [], []
    for tree, (value, leaf) in enumerate(zip(tables.value, leaves, strict=True)):
        trees += [tree] * len(leaf)
        places += leaf.tolist()
        weights += value[leaf].tolist()
    # A place beyond the features says that a missing value goes right; see `pixel_tables.Boosted`.
    left = [int(one < width) for one in nodes["nodes_featureids"]]
    nodes["nodes_featureids"] = [one % width for one in nodes["nodes_featureids"]]
    added = made(
        "TreeEnsembleRegressor", features, domain="ai.onnx.ml", n_targets=tables.classes, **nodes,
        nodes_missing_value_tracks_true=left, target_treeids=trees, target_nodeids=places,
        target_ids=[int(tables.target[tree]) for tree in trees], target_weights=weights,
    )  # fmt: skip
    return made("Add", added, tables.start)


def _of_logistic(made: _Graph, features: str, tables: Logistic, width: int) -> str:
    used = made("Gather", features, tables.place.astype(np.int64), axis=1)
    scaled = made("Div", made("Sub", used, tables.mean), tables.scale)
    return made("Gemm", scaled, np.ascontiguousarray(tables.weight.T), tables.bias)


_LOGITS: dict[type, Any] = {Forest: _of_forest, Boosted: _of_boosted, Logistic: _of_logistic}
