"""What structs and cells of .mat files hold, named as in MATLAB: `hsi.Data`, `hsi.Lidar{1}.z`, `tiles(2).x`."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from landfuse.errors import SceneError

_STEP = r"\.(\w+)|[({](\d+)[)}]"  # .field or {number} or (number)
_NAME = re.compile(rf"(\w+)(?:{_STEP})*")

Node = TypeVar("Node", "ArrayNode", "Hdf5Node")


class ArrayNode:
    """A value as scipy reads it from files up to version 7: structs are arrays with names, cells those of objects.

    `fields` are the names of a struct's fields; `size` is the number of structs in an array, or of elements of a cell.
    Other values have no fields and the size 0.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.fields: list[str] = list(value.dtype.names or ())
        self.size = int(value.size) if self.fields or value.dtype == object else 0

    def field(self, name: str) -> ArrayNode:
        """A field of a single struct."""
        return ArrayNode(self.value.flat[0][name])

    def element(self, number: int) -> ArrayNode:
        """What a cell holds, or one struct of an array; from 1, down the columns first, as MATLAB counts."""
        flat = self.value.ravel(order="F")
        return ArrayNode(flat[number - 1 : number] if self.fields else flat[number - 1])


class Hdf5Node:
    """The same in a file of version 7.3: structs are groups, cells and the fields of arrays of structs references."""

    def __init__(self, file: Any, value: Any, number: int | None = None) -> None:
        self.file, self.value, self.number = file, value, number
        is_struct = hasattr(value, "keys") and "MATLAB_sparse" not in value.attrs
        self.fields: list[str] = list(value) if is_struct else []
        if self.fields:
            first = value[self.fields[0]]
            self.size = int(first.size) if number is None and _of_structs(first) else 1
        else:
            self.size = int(value.size) if _refers(value) else 0

    def field(self, name: str) -> Hdf5Node:
        """A field of a single struct."""
        child = self.value[name]
        return self._target(child, self.number or 1) if _of_structs(child) else Hdf5Node(self.file, child)

    def element(self, number: int) -> Hdf5Node:
        """What a cell holds, or one struct of an array."""
        return Hdf5Node(self.file, self.value, number) if self.fields else self._target(self.value, number)

    def _target(self, references: Any, number: int) -> Hdf5Node:
        # The file has the axes in reverse order, so that its rows are MATLAB's columns.
        return Hdf5Node(self.file, self.file[references[()].reshape(-1)[number - 1]])


def _refers(value: Any) -> bool:
    return hasattr(value, "dtype") and value.dtype.kind == "O"


def _of_structs(value: Any) -> bool:
    return _refers(value) and "MATLAB_class" not in value.attrs  # a cell says that it is one


def parts_of(name: str) -> tuple[str, list[str | int]]:
    """A variable, and the fields and numbers that lead from it to what is named; none if it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, []
    variable = found[1]
    return variable, [field or int(number) for field, number in re.findall(_STEP, name[len(variable) :])]


def follow(node: Node, name: str, path: str) -> Node:
    """Goes from the variable that a name begins with to what is named; a SceneError if there is none of the name."""
    here, steps = parts_of(name)
    for step in steps:
        if isinstance(step, int):
            if not 1 <= step <= node.size:
                counted = f"has {node.size} elements" if node.size else "is neither a cell nor an array of structs"
                raise SceneError(
                    f"`{here}` of {path} {counted}, and number {step} is asked for",
                    f"`{here}{{1}}` to `{here}{{{node.size}}}`, counted from 1 as in MATLAB" if node.size else here,
                    "correct `variable`",
                )
            node, here = node.element(step), f"{here}{{{step}}}"
        else:
            if step not in node.fields:
                raise SceneError(f"`{here}` of {path} has no field `{step}`", inside(node, here), "correct `variable`")
            if node.size != 1:
                raise SceneError(
                    f"`{here}` of {path} is an array of {node.size} structs", inside(node, here), "correct `variable`"
                )
            node, here = node.field(step), f"{here}.{step}"
    return node


def inside(node: ArrayNode | Hdf5Node, name: str) -> str:
    """What may be named inside a value, in words."""
    if node.fields and node.size == 1:
        return "one of " + ", ".join(f"{name}.{field}" for field in node.fields)
    if node.size:
        return f"one of `{name}{{1}}` to `{name}{{{node.size}}}`"
    return f"`{name}`, which holds nothing by a name"
