"""A lock is held by one at a time, and ends with the process that holds it."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from landfuse.mapping import locks
from landfuse.mapping.locks import sole_use

fcntl = pytest.importorskip("fcntl")


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with sole_use(path):
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "), sole_use(path):
                pass
            assert path.exists(), "a refused process does not remove it"
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
    path, flock = tmp_path / "lock", fcntl.flock
    opened: list[int] = []

    def removed_at_first(file: Any, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            opened.append(1)
            if len(opened) == 1:
                path.unlink()  # by its holder until now
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_at_first)
    with sole_use(path):
        assert len(opened) == 2
        with pytest.raises(BlockingIOError), sole_use(path):
            pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with sole_use(tmp_path / "lock"):
        assert (tmp_path / "victim").read_text() == "mine"


def test_many_threads_take_turns_though_each_removes_the_file(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(30):
            try:
                with sole_use(tmp_path / "lock"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BlockingIOError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for code in (errno.ENOLCK, errno.ENOSYS):

        def without(file: Any, operation: int, code: int = code) -> None:
            raise OSError(code, "No locks available")

        monkeypatch.setattr(fcntl, "flock", without)
        locks._warn_of_missing_locks.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "landfuse"):
            for _ in range(3):
                with sole_use(tmp_path / "lock"):
                    pass
        assert len(caplog.records) == 1
        assert "No locks available" in caplog.text
        assert list(tmp_path.iterdir()) == []
    locks._warn_of_missing_locks.cache_clear()


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Errno"), sole_use(tmp_path / "file" / "lock"):
        pass
