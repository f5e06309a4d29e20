"""A file is whole or absent (P3): it is written under another name, and renamed when it is complete."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import logging
import math
import mmap
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from landfuse.errors import LandfuseError, MissingFileError, OutputError, SceneError, few

log = logging.getLogger("landfuse")

HEAD = 2**20
"""Bytes at the beginning of a file by which it is recognised."""

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_name(path: Path) -> Path:
    """A name beside a path that no other file has, and by which what a killed process left is known."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name to write to; the file is renamed at the end, and removed if anything fails.

    Makes the folder; raises an OutputError if the file cannot be written. What a killed process left in the folder is
    removed.
    """
    path = Path(path)
    partial = temporary_name(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with partial.open("xb") as made:  # a new file, never one that a link leads to
            mode = os.fstat(made.fileno()).st_mode
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.chmod(mode)  # some libraries make files that only their owner reads
        partial.replace(path)
    except LandfuseError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with suppress(OSError):  # without a folder there is nothing to remove
            partial.unlink(missing_ok=True)


@cache  # once for a folder: it may hold thousands of files
def remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine that have ended left half-written in a folder."""
    if os.name == "nt":  # there a process cannot be asked whether it lives
        return
    for left in folder.glob(f".*.{_HOST}-*.part*"):
        found = re.search(rf"\.{_HOST}-(\d+)-[0-9a-f]{{8}}\.part", left.name)
        try:
            if found:
                os.kill(int(found[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        except (OSError, OverflowError):  # it lives, and is another user's
            continue


def check_replaceable(path: str | Path, sign: str, overwrite: bool = False) -> None:
    """Refuses to replace a file that landfuse did not write.

    Args:
        sign: a pattern that files of this kind hold in their first MiB if landfuse wrote them.

    Raises:
        OutputError: if it is another file.
    """
    try:
        with Path(path).open("rb") as file:
            ours = re.search(sign.encode(), file.read(HEAD))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return  # writing a file in the place of a folder fails by itself
    except OSError as error:
        raise unwritable(Path(path), error) from None
    if not (ours or overwrite):
        raise not_ours(path)


def log_replaced(paths: Iterable[Path]) -> None:
    """Logs which of the files that are to be written are there, so that none of landfuse's own is replaced silently."""
    present = [str(path) for path in paths if path.exists()]
    if present:
        log.info("written again: %s", few(present))


def not_ours(path: str | Path, why: str = "landfuse did not write it, or it is a map of another model") -> OutputError:
    """The error of a file that must not be replaced."""
    return OutputError(
        f"{path} is there already: {why}",
        "a new name, or a file that the same command wrote and nobody has changed",
        "choose another name; or replace the file by --overwrite (in Python, overwrite=True)",
    )


def file_name(name: str) -> str:
    """A name that becomes one of a file or folder.

    Raises:
        ValueError: if it would be another place, or none.
    """
    with suppress(UnicodeEncodeError):
        if name.strip() not in ("", ".", "..") and not re.search(r"[/\\\0]", name) and os.fsencode(name):
            return name
    raise ValueError("files get this name: it must not be empty, `.` or `..`, nor hold / or \\")


def write_results(texts: Mapping[Path, str], overwrite: bool = False) -> None:
    """Writes text files over earlier ones that begin alike: the first key of JSON, the columns of CSV, the first line.

    Raises:
        OutputError: if one of them is another file, before any is written; or if one cannot be written.
    """
    for path, text in texts.items():
        begins = text[: text.find(":" if path.suffix == ".json" else "\n") + 1]
        check_replaceable(path, rf"\A{re.escape(begins)}", overwrite)
    log_replaced(texts)
    for path, text in texts.items():
        write_text(path, text)


def unwritable(path: Path, error: Exception) -> OutputError:
    """The error of a file that cannot be written."""
    return OutputError(
        f"{path} cannot be written: {error}",
        "a place that can be written to, with room on its disk",
        "free some room, or choose another place",
    )


@contextmanager
def bytes_of(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, read from disk as they are used; raises a ValueError if the file is empty."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def to_json(values: object) -> str:
    """Values as indented JSON. What is not finite becomes null; NumPy's numbers and arrays, and paths, are accepted."""
    return json.dumps(_plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, np.ndarray | np.generic):
        return _plain(values.tolist())
    if isinstance(values, Path):
        return str(values)
    return None if isinstance(values, float) and not math.isfinite(values) else values


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under the first row's keys; None and NaN become empty cells.

    Text that a spreadsheet would take for a formula gets an apostrophe before it; `from_cell` takes it off.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value):
        with suppress(ValueError):
            return float(value) and value
        return f"'{value}"
    return "" if value is None or value != value else value


def from_cell(text: str) -> str:
    """The text of a cell that `to_csv` wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


_FORMULA = re.compile(r"[=+\-@\t\r]")


def read_cells(path: str | Path) -> tuple[list[tuple[int, list[str]]], str]:
    """The cells of a table in a text file, row by row, each with the number of its line; blank rows are left out.

    The text is in UTF-16, UTF-8 or the encoding of Windows. Cells are separated by what is most frequent in the first
    line, semicolons, tabs or commas, or by what a first line such as `sep=;` says; that sign is returned, too.

    Raises:
        MissingFileError: if it is not there.
        SceneError: if it cannot be read, or is no text.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        wide = "utf-16" if marked else "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
        text = encoding = ""
        for encoding in (wide,) if b"\0" in data else ("utf-8-sig", "cp1252", "latin-1"):
            with suppress(UnicodeDecodeError):
                text = data.decode(encoding)
                break
        if "\0" in text or bool(text) != bool(data):
            raise ValueError("it is no text")
        first = next((line for line in text.splitlines() if line.strip()), "")
        if first.lower().startswith("sep="):
            separator, text = first[4:5], text.replace(first, "", 1)
        else:
            separator = max(",;\t", key=re.sub(r'"[^"]*"', "", first).count)
        if separator != "," or encoding != "utf-8-sig":
            between = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(separator, separator)
            log.warning("%s is read as text in %s, with %s between cells", path, encoding, between)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)], separator
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}", "a table in a text file", "check the path") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise SceneError(
            f"{path} cannot be read: {error}", "a table in a text file, such as CSV", "save it as CSV in UTF-8"
        ) from None


@dataclass(frozen=True)
class TextTable:
    """A table in a text file whose first row names the columns; made by `read_table`.

    Args:
        rows: column -> cell; None where it is empty.
        lines: the number of the line that each row ends in.
        decimal: the sign before decimals beside the dot.
    """

    columns: list[str]
    rows: list[dict[str, str | None]]
    lines: list[int]
    decimal: str

    def number(self, text: str | None) -> float:
        """A cell as a number; NaN where it is empty."""
        return float((text or "nan").replace(self.decimal, "."))


def read_table(path: str | Path) -> TextTable:
    """Reads a table with a row of names; see `read_cells`."""
    cells, separator = read_cells(path)
    columns = [name.strip() for name in cells[0][1]] if cells else []
    rows, decimal = cells[1:], "." if separator == "," else ","
    named = [{name: cell.strip() or None for name, cell in zip_longest(columns, row, fillvalue="")} for _, row in rows]
    return TextTable(columns, named, [line for line, _ in rows], decimal)
