"""Files are whole or absent, temporaries are new files, and nothing is replaced that landfuse did not write; tables in
text files, as other programs write them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from landfuse import files
from landfuse.errors import MissingFileError, OutputError, SceneError
from landfuse.files import check_replaceable, read_cells, read_table, whole_file, write_results, write_text


def test_a_temporary_is_a_new_file_with_the_mode_of_any_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.uuid, "uuid4", lambda: type("Known", (), {"hex": "0" * 32}))
    with whole_file(tmp_path / "a.txt") as partial:
        known = partial.name
    (tmp_path / known).symlink_to(victim)
    with pytest.raises(OutputError, match="exists"):
        write_text(tmp_path / "a.txt", "theirs")
    assert victim.read_text() == "mine"
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "b.txt") as partial:
        partial.unlink()  # as libraries do that rename a private file of their own
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "b.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from landfuse.files import whole_file\n"
        "with whole_file(sys.argv[1]) as partial:\n"
        "    partial.with_name(partial.name + '.ovr.tmp').mkdir()\n"
        "    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "map.png")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    living = tmp_path / f".map.png.{files._HOST}-{os.getpid()}-01234567.part"
    elsewhere, users = tmp_path / ".map.png.0badcafe-1-01234567.part", tmp_path / ".mine.part"
    for path in (living, elsewhere, users):
        path.touch()
    write_text(tmp_path / "other.txt", "")
    assert set(tmp_path.iterdir()) == {living, elsewhere, users, tmp_path / "other.txt"}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("scores.json", {"scores": 1}, {"scores": 2, "more": 3}),
        ("confusion.csv", "code,class\n1,a\n", "code,class\n2,b\n"),
        ("table.md", "# place\n\nold", "# place\n\nnew"),
    ],
)
def test_results_replace_results_and_nothing_else(name: str, before: object, after: object, tmp_path: Path) -> None:
    old, new = (text if isinstance(text, str) else json.dumps(text, indent=2) for text in (before, after))
    path, other = tmp_path / name, tmp_path / "other.json"
    write_results({path: old})
    write_results({path: new})
    assert path.read_text() == new
    path.write_text("my notes\n" + new)
    with pytest.raises(OutputError, match=rf"{name} is there already"):
        write_results({other: "{}", path: new})
    assert not other.exists(), "all are checked before the first is written"
    write_results({path: old}, overwrite=True)
    assert path.read_text() == old


def test_a_folder_and_no_file_are_not_in_the_way(tmp_path: Path) -> None:
    check_replaceable(tmp_path, "x")
    check_replaceable(tmp_path / "none", "x")


def test_spreadsheets_find_no_formula_in_a_table() -> None:
    texts = ["=1+1", "+land", "-5 m", "@x", "\t=1", "'=1", "'90s", "a=b"]
    rows = [{"text": text, "number": number} for text, number in zip(texts, ["-0.5", -0.5, "+3", -1] * 2, strict=True)]
    read = list(csv.DictReader(files.to_csv(rows).splitlines()))
    assert [row["text"][0] for row in read] == ["'"] * 7 + ["a"]
    assert [float(row["number"]) for row in read] == [-0.5, -0.5, 3, -1] * 2
    assert [files.from_cell(row["text"]) for row in read] == [*texts[:5], "=1", "'90s", "a=b"]


def test_commands_replace_no_file_of_a_person(
    place: Path, trained: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    scene, scores, page = (tmp_path / name for name in ("scene.yaml", "scores.json", "page.html"))
    model = tmp_path / "bundle" / "model.json"
    model.parent.mkdir()
    for path in (scene, scores, page, model):
        path.write_text('{"mine": 1}')
    predicted = landfuse("predict", trained, place, "-o", tmp_path / "m.tif")
    assert predicted.code == 0, predicted.err
    for words, path in (
        (("report", trained, "-o", page), page),
        (("evaluate", tmp_path / "m.tif", place, "-o", tmp_path), scores),
        (("export", trained, "-o", model.parent), model),
        (("demo", tmp_path), scene),
    ):
        done = landfuse(*words)
        assert (done.code, path.read_text()) == (2, '{"mine": 1}'), words
        assert f"{path} is there already" in done.err
        assert "--overwrite" in done.err
    for words in (("evaluate", tmp_path / "m.tif", place, "-o", tmp_path), ("export", trained, "-o", model.parent)):
        assert landfuse(*words, "--overwrite").code == 0
    for words in (
        ("predict", trained, place, "-o", tmp_path / "m.tif"),
        ("evaluate", tmp_path / "m.tif", place, "-o", tmp_path),
        ("export", trained, "-o", model.parent),
    ):
        done = landfuse(*words)
        assert (done.code, "written again: " in done.err) == (0, True), "what landfuse wrote is replaced, and named"
    assert "written again" not in predicted.err


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_encoding_and_separator(encoding: str, separator: str, end: str, tmp_path: Path) -> None:
    half = "0.5" if separator == "," else "0,5"
    lines = [["id", "Größe, m", "class"], ["1", half, "Grünland"], ["2", "", "Äcker; hier"]]
    text = end.join(separator.join(f'"{cell}"' if {",", ";"} & {*cell} else cell for cell in line) for line in lines)
    (tmp_path / "t.csv").write_bytes((text + end + end).encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert table.columns == lines[0]
    assert [list(row.values()) for row in table.rows] == [lines[1], ["2", None, "Äcker; hier"]]
    assert table.lines == [2, 3]
    assert table.number(table.rows[0]["Größe, m"]) == 0.5


def test_what_excel_and_single_columns_look_like(tmp_path: Path) -> None:
    place = tmp_path / "t.txt"
    place.write_text("sep=;\na;b\n1,5;2\n", encoding="utf-8")
    assert read_table(place).rows == [{"a": "1,5", "b": "2"}]
    place.write_bytes("\r\n a_1 \r\nb_2\r\n".encode("utf-16"))
    assert [row for _, row in read_cells(place)[0]] == [[" a_1 "], ["b_2"]]
    place.write_text("a,b\n1,2,3\n4\n", encoding="utf-8")
    assert [(row["a"], row["b"]) for row in read_table(place).rows] == [("1", "2"), ("4", None)]
    place.write_text('a,b\n"1,234",2\n', encoding="utf-8")
    table = read_table(place)
    with pytest.raises(ValueError, match="1,234"):  # a thousand or one
        table.number(table.rows[0]["a"])
    place.write_bytes(b"")
    assert read_table(place).columns == []


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"II*\0\x08\0\0\0" * 9)
    with pytest.raises(SceneError, match=r"t\.csv cannot be read: it is no text"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(MissingFileError, match=r"there is no file .*gone\.csv"):
        read_table(tmp_path / "gone.csv")
    with pytest.raises(SceneError, match="cannot be read"):
        read_table(tmp_path)
