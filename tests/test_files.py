"""Files are whole or absent, temporaries are new files, and nothing is replaced that landfuse did not write."""

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
from landfuse.errors import OutputError
from landfuse.files import check_replaceable, whole_file, write_results, write_text


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
        "    partial.with_name(partial.name + '.ovr.tmp').touch()\n"
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
    scene, scores = tmp_path / "scene.yaml", tmp_path / "scores.json"
    model = tmp_path / "bundle" / "model.json"
    model.parent.mkdir()
    for path in (scene, scores, model):
        path.write_text('{"mine": 1}')
    predicted = landfuse("predict", trained, place, "-o", tmp_path / "m.tif")
    assert predicted.code == 0, predicted.err
    for words, path in (
        (("report", trained, "-o", scene), scene),
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
        assert landfuse(*words).code == 0, "what landfuse wrote is replaced"
