"""What lies inside MATLAB's structs and cells, named as MATLAB names it: `hsi.Data`, `hsi.Lidar{1}.z`, `tiles(2).x`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from landfuse.errors import SceneError

_STEP = r"\.(\w+)|[({](\d+)[)}]"  # .field or {number} or (number)
_NAME = re.compile(rf"(\w+)(?:{_STEP})*")


class Node(Protocol):
    """A struct array, a cell array, or another value, for which `fields` is empty and `size` 0."""

    @property
    def fields(self) -> list[str]:
        """Names of a struct's fields, in order."""

    @property
    def size(self) -> int:
        """Elements of a struct array or a cell array."""

    def field(self, name: str) -> Node:
        """A field of the one element of a struct array."""

    def element(self, number: int) -> Node:
        """What a cell holds, or one struct of an array; from 1, down the columns first, as MATLAB counts."""


@dataclass(frozen=True)
class OldNode:
    """As scipy reads it from files up to version 7.

    Args:
        value: an array, whose type has names if it is of structs and is `object` if it is of cells.
    """

    value: Any

    @property
    def fields(self) -> list[str]:
        """As in `Node`."""
        return list(self.value.dtype.names or ())

    @property
    def size(self) -> int:
        """As in `Node`."""
        return int(self.value.size) if self.fields or self.value.dtype == object else 0

    def field(self, name: str) -> OldNode:
        """As in `Node`."""
        return OldNode(self.value.flat[0][name])

    def element(self, number: int) -> OldNode:
        """As in `Node`."""
        flat = self.value.ravel(order="F")
        return OldNode(flat[number - 1 : number] if self.fields else flat[number - 1])


@dataclass(frozen=True)
class NewNode:
    """As HDF5 holds it, in files of version 7.3.

    Args:
        file: to which references lead.
        item: a group is a struct, or an array of structs whose fields hold references; a dataset of references a cell.
        number: of the struct in the array.
    """

    file: Any
    item: Any
    number: int | None = None

    @property
    def fields(self) -> list[str]:
        """As in `Node`."""
        return list(self.item) if hasattr(self.item, "keys") and "MATLAB_sparse" not in self.item.attrs else []

    @property
    def size(self) -> int:
        """As in `Node`."""
        if self.fields:
            first = self.item[self.fields[0]]
            return int(first.size) if self.number is None and _of_structs(first) else 1
        return int(self.item.size) if _refers(self.item) else 0

    def field(self, name: str) -> NewNode:
        """As in `Node`."""
        child = self.item[name]
        return self._target(child, self.number or 1) if _of_structs(child) else NewNode(self.file, child)

    def element(self, number: int) -> NewNode:
        """As in `Node`."""
        return NewNode(self.file, self.item, number) if self.fields else self._target(self.item, number)

    def _target(self, references: Any, number: int) -> NewNode:
        # The axes lie in reverse order in the file, so that its rows are MATLAB's columns.
        return NewNode(self.file, self.file[references[()].reshape(-1)[number - 1]])


def _refers(item: Any) -> bool:
    return hasattr(item, "dtype") and item.dtype.kind == "O"


def _of_structs(item: Any) -> bool:
    return _refers(item) and "MATLAB_class" not in item.attrs  # a cell says that it is one


def parts_of(name: str) -> tuple[str, list[str | int]]:
    """A variable, and the fields and numbers that lead from it to what is named; none if it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, []
    variable = found[1]
    return variable, [field or int(number) for field, number in re.findall(_STEP, name[len(variable) :])]


def follow(node: Node, name: str, path: str) -> Node:
    """Goes to what is named.

    Args:
        node: the variable that the name begins with.
        name: of what is looked for.
        path: of the file, for messages.

    Raises:
        SceneError: if there is none of the name.
    """
    here, steps = parts_of(name)
    for step in steps:
        if isinstance(step, int):
            if not 1 <= step <= node.size:
                counted = f"has {node.size} elements" if node.size else "is neither a cell nor an array of structs"
                raise SceneError(
                    f"`{here}` of {path} {counted}, and number {step} is asked for",
                    f"`{here}{{1}}` to `{here}{{{node.size}}}`, counted from 1 as in MATLAB" if node.size else here,
                    "mend `variable`",
                )
            node, here = node.element(step), f"{here}{{{step}}}"
        else:
            if step not in node.fields:
                raise SceneError(f"`{here}` of {path} has no field `{step}`", inside(node, here), "mend `variable`")
            if node.size != 1:
                raise SceneError(
                    f"`{here}` of {path} is an array of {node.size} structs", inside(node, here), "mend `variable`"
                )
            node, here = node.field(step), f"{here}.{step}"
    return node


def inside(node: Node, name: str) -> str:
    """What may be named inside a value, in words."""
    if node.fields and node.size == 1:
        return "one of " + ", ".join(f"{name}.{field}" for field in node.fields)
    if node.size:
        return f"one of `{name}{{1}}` to `{name}{{{node.size}}}`"
    return f"`{name}`, which holds nothing by a name"
