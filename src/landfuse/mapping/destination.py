"""Where a map goes: a path, or an address (`s3://bucket/map.tif`), where it is put once it is whole.

What goes to an address is made in a folder of this machine first, in which an interrupted command goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]

from landfuse.errors import IncompleteError, LandfuseError, MissingExtraError, OutputError
from landfuse.scenes.scene_keys import data_folder

_CHUNK = 16 * 2**20  # bytes


class Destination:
    """Where the files of a command go.

    Attributes:
        address: as it was given, where it is an address; else None.
        local: where they are made: the path that was given, or its stand-in.

    Args:
        output: a path, or an address that fsspec writes to.
    """

    def __init__(self, output: str) -> None:
        self.address = output.rstrip("/") if "://" in output else None
        self.local = Path(output)
        if self.address is not None:
            key = hashlib.sha256(self.address.encode()).hexdigest()[:16]
            self.local = data_folder() / "staging" / key / self.address.rsplit("/", 1)[-1]

    @contextmanager
    def delivery(self) -> Iterator[None]:
        """At the end of the block, puts what was made at its address; also if it is a map that lacks blocks.

        Raises:
            MissingExtraError: if what writes to such an address is not installed.
            OutputError: if it cannot be written to: told at the beginning.
        """
        if self.address is None:
            yield
            return
        files, home = self._reach(self.address)
        try:
            yield
        except LandfuseError as error:
            if error.exit_code == IncompleteError.exit_code:
                self._put(files, home)
            raise
        self._put(files, home)
        shutil.rmtree(self.local.parent)

    def _reach(self, address: str) -> tuple[Any, str]:
        """The file system, and the folder in it that the address lies in, which is written to for a try."""
        with _telling(address):
            files, path = fsspec.url_to_fs(address)
            home = path.rsplit("/", 1)[0]
            files.makedirs(home, exist_ok=True)
            files.pipe_file(f"{home}/.landfuse", b"")
            files.rm_file(f"{home}/.landfuse")
        return files, home

    def _put(self, files: Any, home: str) -> None:
        folder = self.local.parent
        made = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        made = [path for path in made if not any(part.endswith(".parts") for part in path.parts)]
        with _telling(str(self.address)), files.transaction:  # none appears before all of them are there
            for path in made:
                target = f"{home}/{path.as_posix()}"
                files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                with (folder / path).open("rb") as source, files.open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy, _CHUNK)


@contextmanager
def _telling(address: str) -> Iterator[None]:
    try:
        yield
    except LandfuseError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{address} cannot be written to: {error}", "the package that writes there", "install it"
        ) from None
    except Exception as error:  # each kind of store raises its own
        raise OutputError(
            f"{address} cannot be written: {error or type(error).__name__}",
            "an address that may be written to",
            "check it, and who may write there; the same command goes on from what is done",
        ) from None
