"""Sole use of a folder while a process lives, by locks of the operating system."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import FileIO
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(file: FileIO) -> None:
        file.seek(2**30)  # what is locked cannot be read, and the file's beginning says who holds it
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: FileIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_ATTEMPTS = 10


@contextmanager
def sole_use(path: Path) -> Iterator[None]:
    """Holds a lock file to the end of the block. The system lets go of it if the process ends in any other way.

    Where the file system knows no locks, nothing is held, and the log says so once.

    Args:
        path: of the lock file, in a folder that is there; it is removed at the end.

    Raises:
        BlockingIOError: if another process holds it, or another part of this one; its message says who.
        OSError: if the file cannot be made.
    """
    file = _locked(path)
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        # While it is held, so that no one takes a file that is about to go; but Windows removes no open file.
        with suppress(OSError):
            path.unlink()
        file.close()
        if sys.platform == "win32":
            with suppress(OSError):
                path.unlink()


def _locked(path: Path) -> FileIO:
    for _ in range(_ATTEMPTS):
        file = path.open("ab", buffering=0)
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):  # the latter on Windows, and on some shared file systems
            file.close()
            raise BlockingIOError(_holder(path)) from None
        except OSError as error:
            _say_that_nothing_is_locked(str(error))
        # Who held it may have removed it between the two steps: then a new file counts.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return file
        file.close()
    raise OSError(f"{path} is gone whenever it was made")


def _holder(path: Path) -> str:
    told = ""
    with suppress(OSError):
        told = path.read_text(encoding="utf-8")
    return told or "another process"


@cache
def _say_that_nothing_is_locked(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "this file system knows no locks (%s): see to it that no two commands write one map at once", reason
    )
