"""Where a map goes: a path, or an address (`s3://bucket/map.tif`) that it is copied to once it is whole.

What goes to an address is made in a folder of this machine first, in which an interrupted command goes on. Nothing goes
over a file that the scene is read from, or that landfuse did not write.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from landfuse.errors import IncompleteError, LandfuseError, MissingExtraError, OutputError
from landfuse.files import HEAD, check_replaceable, not_ours
from landfuse.mapping.locks import sole_use
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.raster import files_of
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file
from landfuse.scenes.scene_keys import data_folder

_CHUNK = 16 * 2**20  # bytes


_PICTURES = {"png", "jpg", "jpeg", "webp", "svg", "pdf"}
_NO_MAPS = {*_PICTURES, "gpkg", "shp", "geojson", "img", "jp2", "nc", "html", "zarr"}
"""Endings of what a map is not; a folder of maps may have any other."""


class Destination:
    """Where the files of a command go.

    Args:
        output: a path, or an address that fsspec writes to.
        tiles: those of the scene that the command maps, where it does not map all: commands for other ones may write to
            the same address at the same time.

    Attributes:
        address: the address; None for a path.
        local: where the files are made: the path, or the address's folder on this machine.
    """

    def __init__(self, output: str, tiles: Iterable[str] = ()) -> None:
        self.address = output.rstrip("/") if "://" in output else None
        self.local = Path(output)
        stem, _, ending = output.rpartition(".")
        if ending.lower() in _NO_MAPS and (ending.lower() == "zarr" or not self.local.is_dir()):
            do = f"name it {stem}.tif" + (
                "; a picture of it is written beside it by --picture" * (ending.lower() in _PICTURES)
            )
            raise OutputError(f"a map cannot be written as {output}", "a GeoTIFF (.tif), or a folder of several", do)
        if self.address is not None:
            key = hashlib.sha256("\n".join([self.address, *sorted(tiles)]).encode()).hexdigest()[:16]
            self.local = data_folder() / "staging" / key / self.address.rsplit("/", 1)[-1]

    def final(self, path: Path) -> str:
        """The path or address at which a file is in the end."""
        if self.address is None:
            return str(path)
        return f"{self.address.rpartition('/')[0]}/{path.relative_to(self.local.parent).as_posix()}"

    def present(self, paths: Collection[Path]) -> set[Path]:
        """Those of the files that are in their place already; at an address, each folder is listed once."""
        if self.address is None:
            return {path for path in paths if path.exists()}
        found: set[Path] = set()
        for folder in {path.parent for path in paths}:
            with _store_errors(self.address), suppress(FileNotFoundError, PermissionError):  # some list nothing
                files, place = _store(self.final(folder / "x").removesuffix("/x"))
                files.invalidate_cache()
                names = {name.rstrip("/").rpartition("/")[2] for name in files.ls(place, detail=False)}
                found |= {path for path in paths if path.parent == folder and path.name in names}
        return found

    def check(
        self,
        outputs: Collection[tuple[Path, str]],
        inputs: Iterable[str],
        overwrite: bool = False,
        others: Iterable[Path] = (),
    ) -> None:
        """Refuses outputs that are the same file, a file of the scene, or one that landfuse did not write.

        Args:
            outputs: the path of each file that is to be written, and the sign by which landfuse's own are known.
            inputs: names of the files that the scene is read from.
            overwrite: replace files that landfuse did not write.
            others: maps of other tiles, which none of the outputs may be.

        Raises:
            OutputError: naming the file.
        """
        every = Counter([*(path for path, _ in outputs), *others])
        twice = [path for path, count in every.items() if count > 1]
        if twice:
            raise OutputError(
                f"{self.final(twice[0])} would be written twice: as a map, and beside the map of another tile or layer",
                "a file of its own for each map and layer",
                "rename a tile, or leave out the option that adds this layer",
            )
        present = self.present([path for path, _ in outputs])
        there = {_identity(self.final(path)): path for path in present}
        for name in inputs if there else ():
            if _identity(name) in there:
                raise OutputError(
                    f"{self.final(there[_identity(name)])} is a file that the scene is read from ({name})",
                    "an output apart from the scene's own files",
                    "name another file or folder by -o",
                )
        for path, sign in outputs:
            if self.address is None:
                check_replaceable(path, sign, overwrite)
            elif path in present and not overwrite:
                with _store_errors(self.address):
                    files, place = _store(self.final(path))
                    head = files.cat_file(place, 0, HEAD)
                if not re.search(sign.encode(), head):
                    raise not_ours(self.final(path))

    @contextmanager
    def delivery(self) -> Iterator[None]:
        """At the end of the block, copies what was made to the address; also if it is a map that lacks blocks.

        Raises:
            MissingExtraError: if what writes to such an address is not installed.
            OutputError: if it cannot be written to, which is tried at the beginning; or if the same command runs.
        """
        if self.address is None:
            yield
            return
        with _store_errors(self.address):
            files, path = _store(self.address)
            home = path.rsplit("/", 1)[0]
            files.makedirs(home, exist_ok=True)
            probe = f"{home}/.landfuse-{uuid.uuid4().hex[:8]}"
            files.pipe_file(probe, b"")
            files.rm_file(probe)
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

        with ExitStack() as stack:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(sole_use(folder.with_suffix(".lock")))
            except BlockingIOError as error:
                raise OutputError(
                    f"{folder} is in use: {error} is mapping to {self.address} at this moment",
                    "one command at a time for the same tiles of an address",
                    "wait until it has ended",
                ) from None
            try:
                yield
            except LandfuseError as error:
                if error.exit_code == IncompleteError.exit_code:
                    put()
                raise
            put()
            shutil.rmtree(folder)


def inputs_of(scene: Scene) -> Iterator[str]:
    """The names of all files that a scene is read from; where it comes from a scene file, also those of other tiles."""
    for part in scene.modalities.values():
        yield part.raster.path
        yield from files_of(part.raster)
    for source in scene.sources:
        listed = read_scene_file(source).inputs() if source.endswith((".yaml", ".yml")) else [source]
        for name in listed:
            yield name
            if "://" not in name and not name.endswith((".tif", ".tiff")):  # of no further files that a map could be
                yield from files_of(GdalRaster(name))


def _identity(name: str) -> object:
    """What two names of one file share, whatever links lead to it."""
    with suppress(OSError, ValueError):
        status = Path(name.removeprefix("file://")).stat()
        return status.st_dev, status.st_ino
    return re.sub(r"^/vsi(s3|gs)/", r"\1://", name)


def _store(address: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    found: tuple[Any, str] = fsspec.url_to_fs(address)
    return found


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
