"""Sole use of a folder while a process lives, by locks of the operating system."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from landfuse.errors import OutputError
from landfuse.files import unwritable

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

LOCK = "lock"
"""The file in a folder that is `held`."""

_PATIENCE = 0.2
"""Seconds to try for: a holder that ends at this moment removes its file, and the lock is taken on a new one."""


@contextmanager
def held(folder: Path, doing: str, output: Path | None = None) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if needed, and removed if it is empty at the end.

    Args:
        folder: the folder.
        doing: what is done there, for the message of a process that is refused.
        output: what cannot be written where the folder cannot be made; by default the folder.

    Raises:
        OutputError: if another process holds it, or it cannot be made.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_leave, folder)
            stack.enter_context(sole_use(folder / LOCK))
        except BlockingIOError as error:
            raise OutputError(
                f"{folder} is in use: {error} is {doing} at this moment",
                "one command at a time",
                "wait until it has ended, or end it: this command then goes on from what it has done",
            ) from None
        except OSError as error:
            raise unwritable(output or folder, error) from None
        yield


def _leave(folder: Path) -> None:
    with suppress(OSError):  # something is in it
        folder.rmdir()


@contextmanager
def sole_use(path: Path) -> Iterator[None]:
    """Holds a lock file to the end of the block. The system releases it if the process ends in any other way.

    Where the file system has no locks, nothing is held, and the log reports that once.

    Args:
        path: of the lock file, in an existing folder; it is removed at the end.

    Raises:
        BlockingIOError: if another process holds it, or another part of this one; its message says who.
        OSError: if the file cannot be made.
    """
    lock = FileLock(path, timeout=_PATIENCE, fallback_to_soft=False)
    try:
        if path.is_symlink():
            path.unlink()  # else the file that it leads to is overwritten
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        raise BlockingIOError(_holder(path)) from None
    except OSError as error:
        if lock.is_locked or error.errno not in _WITHOUT_LOCKS:
            raise
        _warn_of_missing_locks(str(error))
    try:
        yield
    finally:
        # While it is held, so that no one locks a file that is about to go.
        with suppress(OSError):  # Windows removes no open file; there, releasing it does
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    with suppress(OSError):  # Windows lets no other process read it
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"


@cache
def _warn_of_missing_locks(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "this file system has no locks (%s): make sure that no two commands write to one place at once", reason
    )
