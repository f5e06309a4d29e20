"""Splits by tile whose names stand in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from landfuse.errors import SplitError
from landfuse.scenes.split_rules import TilesSplit
from landfuse.scenes.splits import named_tiles

TILES = ["a_1", "a_1_2", "a_12", "b.1", "c"]


def read(folder: Path, text: str, role: str = "test") -> tuple[str, ...]:
    (folder / "list.txt").write_text(text)
    split = TilesSplit(kind="tiles", lists={"test": "list.txt", role: "list.txt"})  # type: ignore[dict-item]
    named = named_tiles(split, TILES, lambda path: folder / path)
    assert named.lists == {}
    tiles: tuple[str, ...] = getattr(named, f"{role}_tiles")
    return tiles


@pytest.mark.parametrize(
    ("entry", "tile"),
    [
        ("a_1", "a_1"), ("a_1_S1.tif", "a_1"), ("a_1_2_S1.tif", "a_1_2"), ("a_1_2.tif", "a_1_2"), ("a_12.tif", "a_12"),
        ("some/folder/b.1.tif", "b.1"), ("c_S2.tif,c_labels.tif", "c"), (" c ,x", "c"),
    ],
)  # fmt: skip
def test_an_entry_means_the_longest_tile_that_it_begins_with(entry: str, tile: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"{entry}\n\n{entry}\n") == (tile,)
    assert read(tmp_path, entry, "train") == (tile,)


@pytest.mark.parametrize("header", ["tile", "Tile,fold", "image_name", "FILENAME", "Patch ID,x", "names"])
def test_a_header_row_names_no_tile(header: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"{header}\nc,1\na_1,2\n") == ("c", "a_1")
    with pytest.raises(SplitError, match="names no tile"):
        read(tmp_path, f"{header}\n")


@pytest.mark.parametrize(
    ("encoding", "text"), [("utf-16", "a_1\r\nc\r\n"), ("cp1252", "a_1;Grünland\nc;Öde\n"), ("utf-8-sig", "a_1\nc\n")]
)
def test_a_list_in_the_encoding_of_another_program(encoding: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    named = named_tiles(TilesSplit(kind="tiles", lists={"test": "list.txt"}), TILES, lambda path: tmp_path / path)
    assert named.test_tiles == ("a_1", "c")


def test_a_misspelt_first_tile_is_no_header(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="names 'a_2', which is no tile"):
        read(tmp_path, "a_2\nc\n")
    with pytest.raises(SplitError, match="names 'tile', which is no tile"):
        read(tmp_path, "c\ntile\n")


def test_what_is_no_tile_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"names 'a_3\.tif', which is no tile"):
        read(tmp_path, "a_1\na_3.tif\n")
    with pytest.raises(SplitError, match="names no tile"):
        read(tmp_path, "\n")
    with pytest.raises(SplitError, match="none for `test`"):
        named_tiles(TilesSplit(kind="tiles", lists={"train": "x"}), TILES, Path)
