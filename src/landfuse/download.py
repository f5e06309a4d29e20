"""Downloads: a file comes under its own name only when it is whole and has the right checksum.

Until then it is `.NAME.part` in the same folder, from which the next call continues.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import count
from pathlib import Path

from landfuse.errors import LandfuseError, MissingFileError, OutputError
from landfuse.files import sha256_of, unwritable

Progress = Callable[[int, int], None]
"""Called with (bytes there, bytes in all; 0 where the server does not say)."""

PATIENCE = (1.0, 4.0, 10.0)
"""Seconds to wait before each further attempt."""

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may turn into better ones."""

log = logging.getLogger("landfuse")

_CHUNK = 1 << 20
_TIMEOUT = 60.0


def wait(attempt: int, what: str, error: Exception) -> bool:
    """Waits before another attempt, and returns whether there is one: only a second where a name is not resolved.

    Args:
        attempt: the number of the one that failed, from 0.
        what: it was for, or what it ended with.
    """
    if attempt == len(PATIENCE) or (attempt > 0 and _unresolved(error)):
        return False
    if attempt == 0:
        why = str(getattr(error, "reason", None) or error).strip().split("\n")[0]
        log.warning("%s: %s; trying again", what, why)
    time.sleep(PATIENCE[attempt])
    return True


def _unresolved(error: BaseException | None) -> bool:
    """Whether an error of any client of the network comes from a name that cannot be resolved."""
    while error is not None and not isinstance(error, socket.gaierror):
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
    return error is not None


def download(
    address: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int = 0,
    room: int = 0,
    variable: str = "",
    secret: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total: None,
) -> str:
    """Downloads a file, unless it is there with this checksum, or without one with this size and of its kind.

    Args:
        path: where it is to be; its folder is made.
        sha256: its checksum, hexadecimal; without one, an interrupted download starts from its beginning.
        size: its bytes, which are compared where there is no checksum; 0 for unknown.
        room: bytes that the disk must have free for it.
        variable: an environment variable that names another folder, for the message on a full disk.
        secret: further headers, for this server alone: another one that it refers to does not get them.

    Returns:
        The file's SHA-256.

    Raises:
        MissingFileError: if the server cannot be reached or lacks the file. What arrived is kept for the next call.
            Or if it sends something else, such as a web page; nothing is kept.
        ValueError: if it has another checksum; nothing is kept.
        OutputError: if the disk is full, or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or _wrong(path, path.suffix, sha256, size):
            if sha256 is None or part.is_symlink():
                part.unlink(missing_ok=True)  # its beginning may be of an older version, or the link leads elsewhere
            _check_room(path, part, room, variable)
            kind = _complete(address, path, part, size, secret or {}, progress)
            wrong = _wrong(part, path.suffix, sha256, size, kind)
            if wrong:
                part.unlink()
                if sha256 is not None:
                    raise ValueError(wrong)
                do = "try again later, look at the address in a browser, or correct `size` or the name"
                raise MissingFileError(f"{address} sends another file: {wrong}", f"the file {path.name}", do)
            part.replace(path)
        return sha256 or sha256_of(path)
    except LandfuseError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None


_BEGINNINGS = {
    **dict.fromkeys((".zip", ".npz"), (b"PK",)),
    **dict.fromkeys((".gz", ".tgz"), (b"\x1f\x8b",)),
    **dict.fromkeys((".tif", ".tiff"), (b"II", b"MM")),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ",),
    ".mat": (b"MATLAB", b"\x89HDF"),
}
"""How files of these names begin."""


def _wrong(path: Path, suffix: str, sha256: str | None, size: int, kind: str = "") -> str:
    """Why a file is not what is wanted, by what it holds and what kind the server says; nothing if it is."""
    if sha256 is not None:
        found = sha256_of(path)
        return "" if found == sha256 else f"it has another checksum: SHA-256 {found}, not {sha256}"
    there, suffix = path.stat().st_size, suffix.lower()
    if size and there != size:
        return f"it has {there:,} bytes, not {size:,}"
    with path.open("rb") as file:
        beginning = file.read(512)
    page = re.match(rb"\s*<(!doctype html|html)\b", beginning, re.IGNORECASE) or (
        kind == "text/html" and suffix not in _BEGINNINGS
    )
    if page and suffix not in (".html", ".htm"):
        return "it is a web page"
    if suffix in _BEGINNINGS and not beginning.startswith(_BEGINNINGS[suffix]):
        return f"it begins with {beginning[:8]!r}, as no {suffix} file does"
    return ""


def _complete(url: str, path: Path, part: Path, size: int, secret: Mapping[str, str], report: Progress) -> str:
    """Fetches what is not there yet, in several attempts; the kind of file that the server says it is."""
    trouble: Exception | None = None
    for attempt in count():
        try:
            return _attempt(url, part, size, secret, report)
        except urllib.error.HTTPError as error:
            trouble = error
            if error.code == 416:  # more is there than the file has: it is of another version
                part.unlink(missing_ok=True)
            elif error.code not in PASSING:
                break
        except LandfuseError:
            raise
        except (OSError, http.client.HTTPException) as error:
            trouble = error
        if not wait(attempt, url, trouble):
            break
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


def _attempt(url: str, part: Path, size: int, secret: Mapping[str, str], report: Progress) -> str:
    """Asks for what is not there yet and appends it; the kind of file that the server says it is.

    Raises:
        OSError, HTTPException: from the network, or if the answer ends early.
        OutputError: if the disk is full.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"landfuse/{version('landfuse')}", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    for name, value in secret.items():
        request.add_unredirected_header(name, value)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
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
    return str(answer.headers.get_content_type())
