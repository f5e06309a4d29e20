"""Splits by tile whose names stand in files: one file per role, as data sets of many image patches publish them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from landfuse.errors import MissingFileError, SplitError
from landfuse.scenes.split import TilesSplit


def named_tiles(split: TilesSplit, tiles: Sequence[str], resolve: Callable[[str], Path | str]) -> TilesSplit:
    """The same split with the tiles by name.

    Args:
        split: with `lists`.
        tiles: the names of all tiles.
        resolve: from a path as it is written to where it is.

    Raises:
        MissingFileError: if a list is not there.
        SplitError: if there is none for the test, or a list names no tile, or one that does not exist.
    """
    if "test" not in split.lists:
        raise SplitError("`lists` of the split has none for `test`", "train, test and possibly validation", "add it")
    found = {}
    for role, path in split.lists.items():
        place = Path(resolve(path))
        try:
            with place.open(newline="", encoding="utf-8") as file:
                entries = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
        except OSError:
            raise MissingFileError(
                f"there is no file {place}, the list of the tiles for `{role}`", "a text or CSV file", "check `lists`"
            ) from None
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
        "check the list, and that all files are there",
    )
