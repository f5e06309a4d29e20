"""A run's own files that are cut off, foreign or damaged: fallen back from, or reported in one message."""

from __future__ import annotations

import errno
import logging
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from landfuse.errors import OutputError, SettingsError
from landfuse.training.checkpoints import read_checkpoint, write_checkpoint
from landfuse.training.pretrain import _known
from landfuse.training.run import claim, read_history, read_run


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def every(values: Any) -> bool:
    return "number" in values


@pytest.mark.parametrize("harm", ["cut", "empty", "foreign", "code", "list", "gone"])
def test_the_last_whole_checkpoint_is_read(harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, exploded = tmp_path / "folder" / "last.ckpt", tmp_path / "exploded"
    assert read_checkpoint(path, every) is None
    for number in (1, 2):
        write_checkpoint({"number": number, "weight": torch.ones(number)}, path)
    found = read_checkpoint(path, every)
    assert found is not None
    assert (found[0], found[1]["number"]) == (path, 2)
    if harm in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 100 if harm == "cut" else 0])
    elif harm == "foreign":
        torch.save({"state_dict": {}}, path)
    elif harm == "list":
        torch.save([1], path)
    elif harm == "code":
        path.write_bytes(pickle.dumps({"number": 3, "bomb": Bomb(exploded)}))
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING, "landfuse"):
        found = read_checkpoint(path, every)
    assert found is not None
    assert (found[0].name, found[1]["number"]) == ("before-last.ckpt", 1)
    assert ("cannot be used" in caplog.text) == (harm != "gone")
    assert not exploded.exists()
    assert not path.exists(), "the next one does not become the one before"


def test_a_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_checkpoint({"number": 1}, tmp_path / "last.ckpt")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"last\.ckpt cannot be written: .*No space left"):
        write_checkpoint({"number": 2}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("recipe.json", "{", r"recipe\.json cannot be read"),
        ("recipe.json", "[" * 100_000, r"recipe\.json cannot be read"),
        ("recipe.json", '{"scene": 5, "model": "forest"}', r"is broken: recipe\.scene"),
        ("scores.json", "\xff", r"scores\.json cannot be read"),
        ("scores.json", '{"test": {"OA": "high"}, "classes": []}', r"is broken: scores\.test\.OA"),
        ("scores.json", '{"test": []}', r"is broken: scores\.test"),
        ("environment.json", "7", r"environment\.json cannot be read: it holds no table"),
        ("bundle/model.json", '{"legend": [{"name": 1, "code": 1}]}', r"is broken: bundle\.legend\.0\.name"),
    ],
)
def test_a_run_whose_files_are_damaged(trained: Path, tmp_path: Path, name: str, text: str, words: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    read_run(run)
    (run / name).write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match=words):
        read_run(run)
    if name == "recipe.json" and "cannot" in words:
        with pytest.raises(SettingsError, match=words):
            claim(run, SimpleNamespace(to_json=lambda: "{}"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["checkpoints", "scores.json"])
def test_a_folder_of_other_files_is_no_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=f"holds {name}, but no recipe.json"):
        claim(tmp_path, SimpleNamespace(to_json=lambda: "{}"))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"epoch,loss\n0,high\n", b"epoch,loss\n0,1,2\n", b"loss\n1\n", b"\xff\xfe\n1\n"])
def test_a_history_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(SettingsError, match=r"metrics\.csv cannot be read"):
        read_history(tmp_path / "metrics.csv")
    assert read_history(tmp_path / "none.csv") == []


@pytest.mark.parametrize("text", ["[]", "7", '{"facts": 1}', "[" * 100_000, "\xff"])
def test_a_foreign_denoiser_beside_a_run_is_passed_over(tmp_path: Path, text: str) -> None:
    for run in ("series/one", "series/two"):
        (tmp_path / run / "denoiser").mkdir(parents=True)
        (tmp_path / run / "denoiser" / "denoiser.json").write_text(text, encoding="latin-1")
    assert _known(tmp_path / "series" / "one", "key") is None
