"""A file is whole or absent (P3): it is written under another name, and renamed when it is complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
