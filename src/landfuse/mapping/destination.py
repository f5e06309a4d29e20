"""Where a map goes: a path, or an address (`s3://bucket/map.tif`) that it is copied to once it is whole.

What goes to an address is made in a folder of this machine first, in which an interrupted command goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from landfuse.errors import IncompleteError, LandfuseError, MissingExtraError, OutputError
from landfuse.scenes.scene_keys import data_folder

_CHUNK = 16 * 2**20  # bytes


class Destination:
    """Where the files of a command go.

    Args:
        output: a path, or an address that fsspec writes to.

    Attributes:
        address: the address; None for a path.
        local: where the files are made: the path, or the address's folder on this machine.
    """

    def __init__(self, output: str) -> None:
        self.address = output.rstrip("/") if "://" in output else None
        self.local = Path(output)
        if self.address is not None:
            key = hashlib.sha256(self.address.encode()).hexdigest()[:16]
            self.local = data_folder() / "staging" / key / self.address.rsplit("/", 1)[-1]

    @contextmanager
    def delivery(self) -> Iterator[None]:
        """At the end of the block, copies what was made to the address; also if it is a map that lacks blocks.

        Raises:
            MissingExtraError: if what writes to such an address is not installed.
            OutputError: if it cannot be written to, which is tried at the beginning.
        """
        if self.address is None:
            yield
            return
        with _store_errors(self.address):
            files, path = fsspec.url_to_fs(self.address)
            home = path.rsplit("/", 1)[0]
            files.makedirs(home, exist_ok=True)
            files.pipe_file(f"{home}/.landfuse", b"")
            files.rm_file(f"{home}/.landfuse")
        folder = self.local.parent

        def put() -> None:
            made = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
            with _store_errors(str(self.address)), files.transaction:  # none appears before all of them are there
                for path in made:
                    if any(part.endswith(".parts") for part in path.parts):
                        continue
                    target = f"{home}/{path.as_posix()}"
                    files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                    with (folder / path).open("rb") as source, files.open(target, "wb") as copy:
                        shutil.copyfileobj(source, copy, _CHUNK)

        try:
            yield
        except LandfuseError as error:
            if error.exit_code == IncompleteError.exit_code:
                put()
            raise
        put()
        shutil.rmtree(folder)


@contextmanager
def _store_errors(address: str) -> Iterator[None]:
    """Turns what a store raises into an error that names the address."""
    try:
        yield
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
