"""Which labelled pixels train, validate, test, and calibrate class sets.

Validation and calibration are always taken from training, by the same rule as the split itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import MissingFileError, SplitError
from landfuse.files import read_cells
from landfuse.legend import UNLABELLED
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import (
    CALIBRATION,
    ROLES,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    BlocksSplit,
    BufferedSplit,
    GroupedSplit,
    MasksSplit,
    PolygonsSplit,
    RandomSplit,
    Roles,
    RolesSplit,
    SplitSettings,
    TilesSplit,
)

_HEADER = re.compile(r"(tile|name|id|file|path|image|patch|plot|scene)s?([ _-]?(name|id|file|path)s?)?", re.IGNORECASE)
"""What the first row of a list of tiles says if it is no tile; another word may be a misspelt tile."""

BLOCK = 64
"""Side of the blocks of ground that take the place of groups where a split has none, px."""

_TRIES = 32
"""Assignments of groups to roles that are tried; fewer where there are very many groups."""

MaskReader = Callable[[Scene, str, str | None, str], NDArray[np.generic]]
"""(scene, path with `{tile}`, variable, axes) -> (H, W) numbers on the scene's grid."""


def _no_masks(scene: Scene, path: str, variable: str | None, axes: str) -> NDArray[np.generic]:
    raise SplitError(f"the split names the mask {path}", "none", "leave it out")


def assign(scenes: Sequence[Scene], split: SplitSettings, read_mask: MaskReader = _no_masks) -> list[Roles]:
    """Assigns a role to every labelled pixel.

    Args:
        read_mask: reads the masks that the rule names.

    Returns:
        One (H, W) uint8 array of roles per scene; unlabelled pixels have none.

    Raises:
        SplitError: if nothing is left for training, the test or a wanted validation, a tile that is named does not
            exist, or a written split holds other numbers than roles.
    """
    ground = ground_roles(scenes, split, read_mask)
    roles = [
        np.where(scene.labels == UNLABELLED, UNUSED, role).astype(np.uint8)
        for scene, role in zip(scenes, ground, strict=True)
    ]
    names = wanted_roles(split)
    for name in names:
        if not any((role == ROLES[name]).any() for role in roles):
            raise SplitError(
                f"the split leaves no labelled pixel for `{name}`",
                f"labelled pixels for {', '.join(names)}",
                "check the labels and the settings of `split` (a large buffer can eat whole blocks)"
                + (f"; `{name}: 0` does without" if name in ("validation", "calibration") else ""),
            )
    return roles


def ground_roles(scenes: Sequence[Scene], split: SplitSettings, read_mask: MaskReader) -> list[Roles]:
    """The role of every pixel if it were labelled; arguments as in `assign`.

    Labels that came later, and new ones, leave the split as it is: they train, but on the ground of blocks, tiles and
    masks that have another role, and within a buffer of it, they have none.
    """
    labels = [scene.first_labels for scene in scenes]
    rng = np.random.default_rng(split.seed)
    if isinstance(split, MasksSplit):
        roles = _draw_calibration([_from_masks(scene, split, read_mask) for scene in scenes], scenes, split, rng)
        if split.val is None:
            roles = _draw_pixels(roles, labels, TRAIN, VALIDATION, split.validation, rng)
    elif isinstance(split, RolesSplit):
        roles = [_written(scene, split, read_mask) for scene in scenes]
    elif isinstance(split, RandomSplit):
        roles = [np.where(label != UNLABELLED, TEST, UNUSED).astype(np.uint8) for label in labels]
        roles = _draw_calibration(_draw_pixels(roles, labels, TEST, TRAIN, split.train, rng), scenes, split, rng)
        roles = _draw_pixels(roles, labels, TRAIN, VALIDATION, split.validation, rng)
    elif isinstance(split, TilesSplit) and split.test_tiles:
        roles = _by_tiles(scenes, labels, split, rng)
    else:
        groups = group_numbers(scenes, split)
        role_of = deal(group_counts(groups, labels), split, rng)
        roles = [role_of[group] for group in groups]
    later = [label == UNLABELLED for label in labels]
    roles = [np.where(new & (role == UNUSED), TRAIN, role) for new, role in zip(later, roles, strict=True)]
    if isinstance(split, BufferedSplit):
        roles = [buffered(role, split.buffer) for role in roles]
    return [np.where(new & (role != TRAIN), UNUSED, role) for new, role in zip(later, roles, strict=True)]


def _written(scene: Scene, split: RolesSplit, read_mask: MaskReader) -> Roles:
    roles = read_mask(scene, split.path, None, "HW")
    known = np.logical_or.reduce([roles == value for value in (UNUSED, *ROLES.values(), UNLABELLED)])
    if not known.all():
        raise SplitError(
            f"the written split of `{scene.name}` holds the number {roles[~known][0]}",
            f"{UNUSED} for none, " + ", ".join(f"{value} {name}" for name, value in ROLES.items()),
            "check `path` of the split",
        )
    return np.where(roles == UNLABELLED, UNUSED, roles).astype(np.uint8)


def _from_masks(scene: Scene, split: MasksSplit, read_mask: MaskReader) -> Roles:
    roles = np.zeros((scene.grid.height, scene.grid.width), dtype=np.uint8)
    for name, path, role in (("train", split.train, TRAIN), ("val", split.val, VALIDATION), ("test", split.test, TEST)):
        if path is None:
            continue
        mask = read_mask(scene, path, split.variables.get(name), split.axes)  # type: ignore[call-overload]
        taken = (mask != 0) & (mask != UNLABELLED) & ~np.isnan(mask)
        both = taken & (roles != UNUSED)
        if both.any():
            raise SplitError(
                f"{int(both.sum())} pixels of `{scene.name}` stand in two masks of the split",
                "each pixel in one of train, val and test",
                "check the mask files",
            )
        roles[taken] = role
    return roles


def _draw_pixels(
    roles: list[Roles], labels: list[NDArray[np.uint8]], source: int, role: int, amount: float, rng: np.random.Generator
) -> list[Roles]:
    """Moves a number (>= 1) or fraction (< 1) of the pixels of each class from one role to another, over all tiles."""
    if not amount:
        return roles
    flat_roles = np.concatenate([r.ravel() for r in roles])
    flat_labels = np.concatenate([label.ravel() for label in labels])
    for value in np.unique(flat_labels[flat_roles == source]):
        if value == UNLABELLED:
            continue
        members = np.flatnonzero((flat_labels == value) & (flat_roles == source))
        count = int(amount) if amount >= 1 else max(1, round(amount * members.size))
        # A class with too few pixels keeps one for the other side.
        count = min(count, members.size - 1)
        flat_roles[rng.permutation(members)[:count]] = role
    ends = np.cumsum([r.size for r in roles])[:-1]
    return [part.reshape(r.shape) for part, r in zip(np.split(flat_roles, ends), roles, strict=True)]


def wanted_roles(split: SplitSettings) -> list[str]:
    """The roles without which a split is of no use; a written one says by itself whether there is validation."""
    drawn = [] if isinstance(split, RolesSplit) else [n for n in ("validation", "calibration") if getattr(split, n)]
    return ["train", "test", *drawn]


def group_numbers(scenes: Sequence[Scene], split: GroupedSplit) -> list[NDArray[np.int64]]:
    """The block, polygon or tile of each pixel, numbered from 0 over all tiles."""
    if isinstance(split, BlocksSplit):
        return _block_numbers(scenes, split.size)
    if isinstance(split, PolygonsSplit):
        return _polygon_numbers(scenes)
    return [np.full((s.grid.height, s.grid.width), number, np.int64) for number, s in enumerate(scenes)]


def _draw_calibration(
    roles: list[Roles], scenes: Sequence[Scene], split: SplitSettings, rng: np.random.Generator
) -> list[Roles]:
    """Moves the training pixels of whole blocks of ground to calibration."""
    if not split.calibration:
        return roles
    numbers = _block_numbers(scenes, BLOCK)
    training = [np.where(r == TRAIN, s.first_labels, UNLABELLED) for r, s in zip(roles, scenes, strict=True)]
    counts = group_counts(numbers, training)
    chosen = _aside(counts, np.flatnonzero(counts.sum(axis=1)), split.calibration, rng)
    return [
        np.where(
            ((role == TRAIN) | ((role == UNUSED) & (scene.first_labels == UNLABELLED))) & np.isin(number, chosen),
            CALIBRATION,
            role,
        ).astype(np.uint8)
        for scene, role, number in zip(scenes, roles, numbers, strict=True)
    ]


def _aside(
    counts: NDArray[np.int64], groups: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A fraction of groups that train, to be set aside; none where there is one group only."""
    if not fraction or groups.size < 2:
        return groups[:0]
    return groups[_distribute(counts[groups], np.array([fraction, 1 - fraction]), rng) == 0]


def block_numbers(scenes: Sequence[Scene], split: SplitSettings | None) -> tuple[str, list[NDArray[np.int64]]]:
    """The exchangeable units of a split, and the number of each pixel's, counted over all tiles.

    They are what the split deals: blocks, polygons or tiles; blocks of 64 px where it deals pixels.
    """
    if isinstance(split, PolygonsSplit | TilesSplit):
        return split.kind, group_numbers(scenes, split)
    side = split.size if isinstance(split, BlocksSplit) else BLOCK
    return f"blocks of {side} px", _block_numbers(scenes, side)


def _block_numbers(scenes: Sequence[Scene], size: int) -> list[NDArray[np.int64]]:
    """The block of each pixel; those of different tiles are different."""
    numbered, offset = [], 0
    for scene in scenes:
        rows, cols = np.arange(scene.grid.height) // size, np.arange(scene.grid.width) // size
        numbered.append(offset + rows[:, None] * (cols[-1] + 1) + cols[None, :])
        offset = int(numbered[-1][-1, -1]) + 1
    return numbered


def _polygon_numbers(scenes: Sequence[Scene]) -> list[NDArray[np.int64]]:
    """The polygon of each pixel's label; one that lies in several tiles has one number."""
    ids = [scene.read_polygons() for scene in scenes if scene.read_polygons is not None]
    if len(ids) < len(scenes):
        raise SplitError(
            "the split is by polygons, and the labels are a raster",
            "labels from polygons, whose outlines are known",
            "name the vector file by `labels: polygons:`, or choose another kind of split, e.g. `blocks`",
        )
    known = np.unique(np.concatenate([np.unique(one) for one in ids]))
    return [np.searchsorted(known, one) for one in ids]


def group_counts(groups: Sequence[NDArray[np.int64]], labels: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Labelled pixels of each class in each group, (G, K), K the largest class that is labelled and those before."""
    kinds = 1 + max(int(label[label != UNLABELLED].max(initial=0)) for label in labels)
    counts = np.zeros((1 + max(int(group.max()) for group in groups), kinds), dtype=np.int64)
    for group, label in zip(groups, labels, strict=True):
        known = label != UNLABELLED
        np.add.at(counts, (group[known], label[known]), 1)
    return counts


def deal(counts: NDArray[np.int64], split: GroupedSplit, rng: np.random.Generator) -> Roles:
    """Assigns whole groups to roles: the role of each, from its pixels of each class, (G, K).

    Raises:
        SplitError: if fewer groups hold labels than there are folds.
    """
    if isinstance(split, PolygonsSplit):  # of very different sizes: their number counts as much as their pixels
        counts = np.hstack([counts, counts > 0])
    role_of = np.zeros(len(counts), dtype=np.uint8)
    members = np.flatnonzero(counts.sum(axis=1) > 0)
    folds = split.folds or 0
    if folds:
        if members.size < folds:
            raise SplitError(
                f"{members.size} groups hold labels",
                f"at least {folds}, one per fold",
                "use smaller blocks or fewer folds",
            )
        fractions = np.full(folds, 1 / folds)
    else:
        fractions = np.array([split.test, 1 - split.test])
    assigned = _distribute(counts[members], fractions, rng)
    testing = split.fold if folds else 0
    role_of[members] = np.where(assigned == testing, TEST, TRAIN)
    training = members[assigned != testing]
    for role, fraction in ((CALIBRATION, split.calibration), (VALIDATION, split.validation)):
        role_of[_aside(counts, training, fraction, rng)] = role
        training = training[role_of[training] == TRAIN]
    return role_of


def _distribute(
    counts: NDArray[np.int64], fractions: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """The part of each group, so that each part has its fraction of every class: the best of several greedy tries.

    Args:
        counts: (groups, K) pixels.
        fractions: of the parts, summing to 1.
        rng: makes the tries differ.
    """
    weight = counts / np.maximum(counts.sum(axis=0), 1)  # each class counts alike, however rare
    goal = fractions[:, None] * weight.sum(axis=0)
    best, least = np.zeros(len(counts), dtype=np.int64), np.inf
    for _ in range(max(1, min(_TRIES, 20_000 // max(1, len(counts))))):
        # The largest first, to the part that needs it most; sizes are blurred at random, so that the seed matters.
        order = np.argsort(-weight.max(axis=1) * rng.uniform(0.3, 1, len(counts)), kind="stable")
        held = np.zeros(goal.shape)
        parts = np.zeros(len(counts), dtype=np.int64)
        for place, group in enumerate(order):
            empty = np.flatnonzero(held.sum(axis=1) == 0)
            wish = ((held + weight[group] - goal) ** 2 - (held - goal) ** 2).sum(axis=1)
            allowed = empty if len(empty) >= len(order) - place else np.arange(len(fractions))
            parts[group] = part = allowed[np.argmin(wish[allowed])]
            held[part] += weight[group]
        off = float(((held - goal) ** 2).sum())
        if off < least:
            best, least = parts, off
    return best


def buffered(roles: Roles, buffer: int) -> Roles:
    """Removes pixels near those that test, calibrate or validate from the roles behind theirs in this order."""
    if not buffer:
        return roles
    from scipy.ndimage import maximum_filter

    result = roles.copy()
    for role, behind in (
        (TEST, (CALIBRATION, VALIDATION, TRAIN)), (CALIBRATION, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)),
    ):  # fmt: skip
        if (roles == role).any():
            near = maximum_filter(roles == role, size=2 * buffer + 1, mode="constant", cval=False)
            result[near & np.isin(roles, behind)] = UNUSED
    return result


def _by_tiles(
    scenes: Sequence[Scene], labels: list[NDArray[np.uint8]], split: TilesSplit, rng: np.random.Generator
) -> list[Roles]:
    names = [scene.name for scene in scenes]
    lists = {
        TRAIN: split.train_tiles, VALIDATION: split.validation_tiles, CALIBRATION: split.calibration_tiles,
        TEST: split.test_tiles,
    }  # fmt: skip
    unknown = sorted({name for tiles in lists.values() for name in tiles} - set(names))
    if unknown:
        raise SplitError(
            f"the split names tiles that do not exist: {', '.join(unknown)}",
            f"some of {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            "correct the names",
        )
    role_of = np.full(len(names), UNUSED if split.train_tiles else TRAIN, dtype=np.uint8)
    for role, tiles in lists.items():
        role_of[[names.index(name) for name in tiles]] = role
    kinds = len(scenes[0].legend)
    counts = np.array([np.bincount(label[label != UNLABELLED], minlength=kinds) for label in labels])
    for role, fraction in ((CALIBRATION, split.calibration), (VALIDATION, split.validation)):
        if not lists[role]:
            role_of[_aside(counts, np.flatnonzero((role_of == TRAIN) & counts.any(axis=1)), fraction, rng)] = role
    return [np.full(label.shape, role, dtype=np.uint8) for label, role in zip(labels, role_of, strict=True)]


def roles_digest(roles: NDArray[np.generic], grid: Grid) -> str:
    """SHA-256 of the roles of a tile's pixels and of where they are."""
    return hashlib.sha256(
        f"{grid}".encode() + np.where(roles == UNLABELLED, UNUSED, roles).astype(np.uint8).tobytes()
    ).hexdigest()


ALL_LABELS = "all labels"
"""What a map says behind the digests of roles where its model learnt from every label."""


def all_train(labels: NDArray[np.uint8]) -> Roles:
    """The roles of a model that learns from every label."""
    return np.where(labels == UNLABELLED, UNUSED, TRAIN).astype(np.uint8)


def counts_per_class(
    roles: Sequence[Roles], labels: Sequence[NDArray[np.uint8]], classes: int
) -> dict[str, NDArray[np.int64]]:
    """Pixels of each class in each role: role -> (K,)."""
    result = {}
    for name, value in ROLES.items():
        parts = [
            np.bincount(label[(role == value) & (label != UNLABELLED)], minlength=classes)
            for role, label in zip(roles, labels, strict=True)
        ]
        result[name] = np.sum(parts, axis=0)
    return result


def groups_per_class(
    scenes: Sequence[Scene], roles: Sequence[Roles], split: SplitSettings | None
) -> tuple[str, dict[str, NDArray[np.int64]]]:
    """How many polygons of the labels, or else blocks or tiles of the split, hold each class in each role.

    Returns:
        Which of the three, and role -> (K,); nothing where labels are single pixels.
    """
    if all(scene.read_polygons is not None for scene in scenes):
        kind, numbers = "polygons", _polygon_numbers(scenes)
    elif isinstance(split, BlocksSplit | TilesSplit):
        kind, numbers = split.kind, group_numbers(scenes, split)
    else:
        return "", {}
    result = {}
    for name, value in ROLES.items():
        held = np.zeros((1 + max(int(number.max()) for number in numbers), len(scenes[0].legend)), bool)
        for scene, role, number in zip(scenes, roles, numbers, strict=True):
            held[number[role == value], scene.labels[role == value]] = True
        result[name] = held.sum(axis=0)
    return kind, result


def named_tiles(split: TilesSplit, tiles: Sequence[str], resolve: Callable[[str], Path | str]) -> TilesSplit:
    """A split with `lists` of tiles as a split that names them.

    Args:
        tiles: the names of all tiles.
        resolve: from a path as written in the file to where it is.
    """
    if "test" not in split.lists:
        raise SplitError("`lists` of the split has none for `test`", "train, test and possibly validation", "add it")
    found = {}
    for role, path in split.lists.items():
        place = Path(resolve(path))
        try:
            entries = [row[0].strip() for _, row in read_cells(place)[0] if row[0].strip()]
        except MissingFileError:
            raise MissingFileError(
                f"there is no file {place}, the list of the tiles for `{role}`", "a text or CSV file", "check `lists`"
            ) from None
        if entries and _HEADER.fullmatch(entries[0]) and entries[0] not in tiles:
            entries = entries[1:]
        found[f"{role}_tiles"] = tuple(dict.fromkeys(_tile(entry, tiles, place) for entry in entries))
        if not entries:
            raise SplitError(f"{place} names no tile", "a tile in each line", "check the file")
    return split.model_copy(update={**found, "lists": {}})


def _tile(entry: str, tiles: Sequence[str], place: Path) -> str:
    """The tile that an entry means: itself, or the one that its name begins with (`a_1` for `a_1_S1.tif`)."""
    name = Path(entry).name
    if name in tiles:
        return name
    known = set(tiles)
    for end in range(len(name) - 1, 0, -1):  # the longest name wins: `a_1_2_S1.tif` is of `a_1_2`, not of `a_1`
        if name[end] in "_." and name[:end] in known:
            return name[:end]
    raise SplitError(
        f"{place} names {entry!r}, which is no tile",
        f"names like {', '.join(list(tiles)[:3])}, possibly with an ending",
        "check the list, and that all files are there; a header is `tile`",
    )
