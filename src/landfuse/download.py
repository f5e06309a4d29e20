"""Downloads: a file comes under its own name only when it is whole and has the right checksum.

Until then it is `.NAME.part` in the same folder, from which the next call continues.
"""

from __future__ import annotations

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from landfuse.errors import LandfuseError, MissingFileError, OutputError
from landfuse.files import unwritable

Progress = Callable[[int, int], None]
"""Called with (bytes there, bytes in all; 0 where the server does not say)."""

PATIENCE = (1.0, 4.0, 10.0)
"""Seconds to wait before each further attempt."""

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may turn into better ones


def download(
    address: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int = 0,
    room: int = 0,
    variable: str = "",
    progress: Progress = lambda done, total: None,
) -> str:
    """Downloads a file, unless it is there with this checksum (or without one).

    Args:
        address: where it is.
        path: where it is to be; its folder is made.
        sha256: its checksum, hexadecimal; without one, an interrupted download starts from its beginning.
        size: its bytes, for servers that do not say; 0 for unknown.
        room: bytes that the disk must have free for it.
        variable: an environment variable that names another folder, for the message on a full disk.
        progress: called as bytes arrive.

    Returns:
        The file's SHA-256.

    Raises:
        MissingFileError: if the server cannot be reached or lacks the file. What arrived is kept for the next call.
        ValueError: if it has another checksum; nothing is kept.
        OutputError: if the disk is full, or the folder cannot be written.
    """
    import pooch

    part = path.with_name(f".{path.name}.part")

    def fetch(url: str, output_file: str, _: object) -> None:
        """What pooch calls when the file is not there."""
        if sha256 is None or part.is_symlink():
            part.unlink(missing_ok=True)  # its beginning may be of an older version, or the link leads to another file
        _check_room(path, part, room, variable)
        _complete(url, path, part, size, progress)
        part.replace(output_file)

    pooch.get_logger().setLevel("ERROR")  # it would log each step
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(
            address,
            known_hash=f"sha256:{sha256}" if sha256 else None,
            fname=path.name,
            path=path.parent,
            downloader=fetch,
        )
    except LandfuseError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None
    return sha256 or str(pooch.file_hash(str(path)))


def _complete(url: str, path: Path, part: Path, size: int, report: Progress) -> None:
    """Fetches what is not there yet, in several attempts."""
    trouble: Exception | None = None
    for pause in (0.0, *PATIENCE):
        time.sleep(pause)
        try:
            _attempt(url, part, size, report)
            return
        except urllib.error.HTTPError as error:
            trouble = error
            if error.code == 416:  # more is there than the file has: it is of another version
                part.unlink(missing_ok=True)
            elif error.code not in _PASSING:
                break
        except LandfuseError:
            raise
        except (OSError, http.client.HTTPException) as error:
            trouble = error
    came = part.stat().st_size if part.exists() else 0
    raise MissingFileError(
        f"{url} cannot be downloaded: {getattr(trouble, 'reason', None) or trouble}",
        "a server that can be reached and has the file",
        (
            f"try again: {came:,} bytes are there, and the same command continues from them"
            if came
            else "try again later"
        )
        + f"; or download it yourself and save it as {path}",
    )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _check_room(path: Path, part: Path, room: int, variable: str) -> None:
    needed = room - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"{path.parent} has {free / 1e9:.1f} GB free",
            f"{needed / 1e9:.1f} GB for {path.name}",
            "free some room" + (f", or name another folder by the environment variable {variable}" if variable else ""),
        )


def _attempt(url: str, part: Path, size: int, report: Progress) -> None:
    """Asks for what is not there yet and appends it.

    Raises:
        OSError, HTTPException: from the network, or if the answer ends early.
        OutputError: if the disk is full.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"landfuse/{version('landfuse')}", **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file, whatever was asked for
        total = have + int(answer.headers.get("Content-Length") or 0) if answer.headers.get("Content-Length") else size
        try:
            out = open(part, "ab" if have else "wb", buffering=0, opener=_no_link)  # noqa: SIM115
        except OSError as error:
            raise unwritable(part, error) from None
        with out:
            report(have, total)
            while chunk := answer.read(_CHUNK):
                try:
                    out.write(chunk)
                except OSError as error:
                    raise unwritable(part, error) from None
                have += len(chunk)
                report(have, total)
    if have < total:
        raise http.client.IncompleteRead(b"", total - have)
