"""A file is whole or absent (P3): it is written under another name, and renamed when it is complete."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from landfuse.errors import LandfuseError, OutputError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name to write to; the file is renamed at the end, and removed if anything fails.

    Makes the folder; raises an OutputError if the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except LandfuseError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with suppress(OSError):  # without a folder there is nothing to remove
            partial.unlink(missing_ok=True)


def unwritable(path: Path, error: Exception) -> OutputError:
    """The error of a file that cannot be written."""
    return OutputError(
        f"{path} cannot be written: {error}",
        "a place that can be written to, with room on its disk",
        "free some room, or choose another place",
    )


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
    """Rows as CSV under the first row's keys; None and NaN become empty cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: "" if value is None or value != value else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()
