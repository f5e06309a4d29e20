"""A lock is held by one at a time, and goes with who holds it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from landfuse.mapping import locks
from landfuse.mapping.locks import sole_use


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with sole_use(path):
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "), sole_use(path):
                pass
            assert path.exists(), "who was refused leaves it alone"
            with sole_use(tmp_path / "another"):
                pass
        assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on a machine with a long name")
    with sole_use(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        assert "long name" not in (tmp_path / "lock").read_text()


def test_a_file_that_was_removed_before_it_was_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "lock", locks._lock
    opened: list[int] = []

    def removed_at_first(file: Any) -> None:
        opened.append(1)
        if len(opened) == 1:
            path.unlink()  # by who held it until now
        lock(file)

    monkeypatch.setattr(locks, "_lock", removed_at_first)
    with sole_use(path):
        assert len(opened) == 2
        with pytest.raises(BlockingIOError), sole_use(path):
            pass


def test_a_file_system_without_locks_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(file: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", unknown)
    locks._say_that_nothing_is_locked.cache_clear()
    with caplog.at_level(logging.WARNING, "landfuse"):
        for _ in range(3):
            with sole_use(tmp_path / "lock"):
                pass
    assert len(caplog.records) == 1
    assert "No locks available" in caplog.text
    locks._say_that_nothing_is_locked.cache_clear()


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), sole_use(tmp_path / "no" / "lock"):
        pass
