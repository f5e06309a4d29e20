"""Splits into whole groups that give every class each role: the block size and the seed, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from landfuse.errors import SplitError, few
from landfuse.legend import UNLABELLED
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import (
    ROLES,
    BlocksSplit,
    BufferedSplit,
    GroupedSplit,
    Roles,
    SplitSettings,
    TilesSplit,
)
from landfuse.scenes.splits import (
    assign,
    buffered,
    counts_per_class,
    deal,
    group_counts,
    group_numbers,
    wanted_roles,
)
from landfuse.settings import parse

SEEDS = 8
"""Seeds that are tried for each size: that of the split, then from 0."""
MOST_BLOCKS = 20_000
"""Blocks beyond which no smaller ones are tried: dealing out very many takes long."""


@dataclass(frozen=True)
class Found:
    """The best split of a search.

    Args:
        split: gives every class each role, or else lacks fewest; None where each leaves a role without any pixel.
        lacking: classes without training pixels, and all pairs of class and role without a pixel.
        why: no split serves every class; empty where this one does.
    """

    split: Any
    lacking: tuple[int, int]
    why: str

    @property
    def line(self) -> str:
        """The split as a line of a scene file."""
        values = self.split.model_dump(mode="json", exclude_unset=True)
        first = {key: values[key] for key in ("kind", "size") if key in values}
        return (
            f"split: {yaml.safe_dump(first | values, default_flow_style=True, sort_keys=False, width=10_000).strip()}"
        )


def searchable(split: SplitSettings | None) -> bool:
    """Whether a split leaves it to landfuse which groups have which role."""
    return isinstance(split, GroupedSplit) and not (isinstance(split, TilesSplit) and (split.test_tiles or split.lists))


def largest_blocks(scene: Scene, settings: Mapping[str, Any]) -> tuple[BlocksSplit, Roles]:
    """The split into the largest blocks that loses no class, or else fewest, see `search`; and its roles, (H, W).

    Args:
        settings: of the split, without its size.
    """
    found = search([scene], parse(BlocksSplit, {"kind": "blocks", **settings, "size": 2}, "the split"))
    if found.split is None:
        raise SplitError(
            "no split into blocks leaves labelled pixels for training, validation and the test",
            "labels in several places",
            "pass `split`, an array of roles or its settings, e.g. {'kind': 'random', 'train': 0.5}",
        )
    return found.split, assign([scene], found.split)[0]


def search(scenes: Sequence[Scene], split: Any) -> Found:
    """Searches the split that gives each labelled class pixels in each role, in every fold.

    Of blocks the largest: sizes are 2 and 3 times powers of two, and that of the split. Each is counted in one pass
    over the labels; seeds are then tried on the counts of blocks. Polygons and tiles stay, and seeds are tried.

    Labels that came later are left out: they only train.

    Args:
        split: blocks, polygons, or tiles that are not named.
    """
    labels = [scene.first_labels for scene in scenes]
    present = np.unique(np.concatenate([np.unique(label) for label in labels]))
    present = present[present != UNLABELLED].astype(int)
    if not present.size:
        return Found(None, (0, 0), "no pixel is labelled")
    sizes = block_sizes(scenes, split) if isinstance(split, BlocksSplit) else [0]
    needed = max(split.folds or 0, len(wanted_roles(split)))
    best: Found | None = None
    held = present
    for size in sizes:
        one: Any = split.model_copy(update={"size": size}) if size else split
        groups = _Groups(scenes, one)
        held = (groups.counts > 0).sum(axis=0)
        served = bool((held[present] >= needed).all())
        for seed in dict.fromkeys((split.seed, *range(SEEDS))) if served else [split.seed]:
            one = one.model_copy(update={"seed": seed}) if seed != split.seed else one
            lacking = groups.lacking(one, present)
            if lacking is not None and (best is None or lacking < best.lacking):
                best = Found(one, lacking, "")
            if lacking == (0, 0):
                return Found(one, lacking, "")
    names, kind = scenes[0].legend.names, split.kind
    scarce = [
        f"`{names[k]}` ({_extent(labels, k)}) lies in {held[k]} {kind[: None if held[k] > 1 else -1]}"
        for k in (present.tolist() if sizes else ())
        if held[k] < needed
    ]
    buffer = split.buffer if isinstance(split, BufferedSplit) else 0
    if not sizes:
        why = f"a buffer of {buffer} px needs blocks of more than {2 * buffer} px, which the scene is too small for"
    elif scarce:
        of = f" of {sizes[-1]} px, the smallest that are tried" if sizes[-1] else ""
        why = f"{few(scarce)}{of}, and {needed} are needed, one for each {'fold' if split.folds else 'role'}"
    else:
        tried = f"blocks of {sizes[0]} to {sizes[-1]} px" if sizes[-1] else f"whole {kind}"
        why = f"none of {SEEDS} seeds does with {tried}" + (f" and a buffer of {buffer} px" if buffer else "")
    return Found(best and best.split, best.lacking if best else (len(present), len(present)), why)


def block_sizes(scenes: Sequence[Scene], split: BlocksSplit) -> list[int]:
    """The sizes of blocks that are searched, px, the largest first.

    At most half of the only tile, or a whole one of several. They are larger than two buffers: a pixel is then near the
    blocks beside its own, and no further ones.
    """
    longest = max(max(scene.grid.height, scene.grid.width) for scene in scenes) // (2 if len(scenes) == 1 else 1)
    pixels = sum(scene.grid.window.pixels for scene in scenes)
    every = {k << n for k in (2, 3) for n in range(longest.bit_length())} | {split.size}
    fitting = sorted((size for size in every if 2 * split.buffer < size <= longest), reverse=True)
    return [size for size in fitting if pixels <= MOST_BLOCKS * size**2] or fitting[:1]


class _Groups:
    """How many labelled pixels of each class lie in each group, (G, K); and, for a buffer, where in it.

    K is the largest class that is labelled and those before, as in `assign`.
    """

    def __init__(self, scenes: Sequence[Scene], split: GroupedSplit) -> None:
        self.labels = [scene.first_labels for scene in scenes]
        self.kinds = 1 + max(int(label[label != UNLABELLED].max(initial=0)) for label in self.labels)
        if isinstance(split, BlocksSplit):
            self.cells = [_cells(label, split.size, split.buffer, self.kinds) for label in self.labels]
            blocks = [cell.reshape(len(cell) // 3, 3, -1, 3, self.kinds).sum(axis=(1, 3)) for cell in self.cells]
            self.counts = np.concatenate([block.reshape(-1, self.kinds) for block in blocks])
            ends = np.cumsum([0, *(block[..., 0].size for block in blocks)])
            self.numbers = [
                np.arange(first, first + block[..., 0].size).reshape(block.shape[:2]).repeat(3, 0).repeat(3, 1)
                for first, block in zip(ends, blocks, strict=False)
            ]
        else:
            self.cells = []
            self.numbers = group_numbers(scenes, split)
            self.counts = group_counts(self.numbers, self.labels)

    def lacking(self, split: Any, present: NDArray[Any]) -> tuple[int, int] | None:
        """What the classes lack, in the first fold in which they lack any; None where a role has no pixel."""
        lacking = 0, 0
        for fold in range(split.folds or 1):
            try:
                roles = deal(self.counts, split.model_copy(update={"fold": fold}), np.random.default_rng(split.seed))
            except SplitError:
                return None
            found = self._found(split, roles)[:, present]
            if not found.any(axis=1).all():
                return None
            lacking = int((found[0] == 0).sum()), int((found == 0).sum())
            if lacking != (0, 0):
                break
        return lacking

    def _found(self, split: Any, role_of: Roles) -> NDArray[np.int64]:
        """Pixels of each class in each wanted role, training first."""
        names = wanted_roles(split)
        buffer = split.buffer if isinstance(split, BufferedSplit) else 0
        if not buffer:
            return np.array([self.counts[role_of == ROLES[name]].sum(axis=0) for name in names])
        if not self.cells:
            roles = [buffered(role_of[number], buffer) for number in self.numbers]
            counts = counts_per_class(roles, self.labels, self.kinds)
            return np.array([counts[name] for name in names])
        near = [buffered(role_of[number], 1) for number in self.numbers]
        return np.array([
            np.sum([cell[role == ROLES[name]].sum(axis=0) for cell, role in zip(self.cells, near, strict=True)], axis=0)
            for name in names
        ])  # fmt: skip


def _cells(labels: NDArray[np.uint8], size: int, buffer: int, kinds: int) -> NDArray[np.int64]:
    """Counts of classes in three times three cells of each block: (3 R, 3 C, K).

    The middle cell is what lies further than the buffer from the block's sides: a buffer reaches one cell far.
    """
    rows, cols = (
        3 * (n // size) + 1 - (n % size < buffer) + (n % size >= size - buffer) for n in map(np.arange, labels.shape)
    )
    high, wide = 3 * (1 + int(rows[-1]) // 3), 3 * (1 + int(cols[-1]) // 3)
    counts = np.zeros((high, wide, kinds), np.int64)
    for first in range(0, len(labels), size):
        strip = labels[first : first + size]
        cell = (rows[first : first + size, None] % 3) * wide + cols[None, :]
        known = strip != UNLABELLED
        place = 3 * (first // size)
        counts[place : place + 3] = np.bincount(cell[known] * kinds + strip[known], minlength=3 * wide * kinds).reshape(
            3, wide, kinds
        )
    return counts


def _extent(labels: Sequence[NDArray[np.uint8]], kind: int) -> str:
    """How many pixels a class has, and how far they spread."""
    places = [found for label in labels if len(found := np.argwhere(label == kind))]
    high, wide = np.ptp(places[0], axis=0) + 1
    where = f"within {high} x {wide} px" if len(places) == 1 else f"in {len(places)} tiles"
    return f"{sum(map(len, places)):,} px {where}"
