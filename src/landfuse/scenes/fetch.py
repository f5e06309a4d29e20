"""Getting a place's data: downloaded with checksum, continued where a download stopped, unpacked into their folder.

What was unpacked is noted in `fetched.json`, and the archive is removed.
"""

from __future__ import annotations

import filecmp
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from landfuse.download import Progress, download
from landfuse.errors import LandfuseError, OutputError, SceneError, SettingsError
from landfuse.files import remove_leftovers, temporary_name, unwritable, write_text
from landfuse.rasters.geotiff import is_file_name
from landfuse.scenes.scene_file import SceneFile
from landfuse.scenes.scene_keys import DownloadSettings

NOTE = "fetched.json"


class _Kept(pydantic.BaseModel):
    """What is noted of a download."""

    sha256: str = ""
    files: list[str] = []


_Notes = pydantic.TypeAdapter(dict[str, _Kept])


@dataclass
class Fetched:
    """What `fetch` did.

    Args:
        root: the folder of the data.
        downloaded: names of the files that were fetched now.
        there: names of those that were there before.
        checksums: name -> SHA-256 of files for which the scene file knows none.
        missing: paths of the scene file that are still not there.
    """

    root: Path
    downloaded: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def missing_files(file: SceneFile) -> list[str]:
    """The paths of a scene file, as they are written, for which there is no file."""
    local = [path for path in file.settings.files if is_file_name(path) and is_file_name(file.root)]
    return [path for path in local if not any(file.fitting(path))]


def fetch(file: SceneFile, progress: Callable[[str], Progress] = lambda name: lambda done, total: None) -> Fetched:
    """Gets what a scene file says under `fetch: files`, into its root; what is there already is left alone.

    Args:
        progress: name of a file -> the callback for its bytes.

    Raises:
        MissingFileError: if a server cannot be reached or lacks the file. What came so far is kept for the next call.
        SceneError: if a file has another checksum, or is no archive that can be unpacked.
        OutputError: if the disk is full, or the folder cannot be written.
    """
    root = Path(file.root)
    if not is_file_name(file.root):
        raise SettingsError(f"`root` of {file.path} is {file.root}", "a folder, to save files in", "correct `root`")
    result = Fetched(root)
    note = root / NOTE
    known: dict[str, _Kept] = {}
    if note.exists():
        with suppress(pydantic.ValidationError):  # what a broken one lists is fetched again
            known = _Notes.validate_json(note.read_bytes())
    for wanted in file.settings.fetch.files if file.settings.fetch else ():
        folder = root / wanted.folder
        before = known.get(wanted.address, _Kept())
        parts = [folder / name for name in before.files]
        if parts and before.sha256 == (wanted.sha256 or before.sha256) and all(p.exists() for p in parts):
            result.there.append(wanted.file)
            continue
        path = folder / wanted.file
        checksum = _retrieve(wanted, path, progress(wanted.file))
        names = _unpack(path, folder, before.files, known=bool(wanted.sha256)) if wanted.unpack else [path.name]
        known[wanted.address] = _Kept(sha256=checksum, files=names)
        write_text(note, _Notes.dump_json(known, indent=2).decode() + "\n")
        result.downloaded.append(wanted.file)
        if wanted.sha256 is None:
            result.checksums[wanted.file] = checksum
    result.missing = missing_files(file)
    return result


def _retrieve(wanted: DownloadSettings, path: Path, progress: Progress) -> str:
    """Downloads one file and checks it; its SHA-256."""
    size = wanted.size or 0
    try:
        return download(
            wanted.address,
            path,
            sha256=wanted.sha256,
            size=size,
            room=size * (2 if wanted.unpack else 1),
            variable="LANDFUSE_DATA",
            progress=progress,
        )
    except LandfuseError:
        raise
    except ValueError:
        raise SceneError(
            f"{wanted.address} has another checksum than the scene file says",
            f"SHA-256 {wanted.sha256}",
            "fetch it again; if it stays so, its publisher changed it: look at its page before you trust it",
        ) from None


def _unpack(archive: Path, folder: Path, before: Collection[str], *, known: bool) -> list[str]:
    """Unpacks an archive into its folder and removes it: the names of its files.

    All of it or nothing; a damaged one is removed, to be fetched again, unless its checksum is known and right. Of
    the files that are there, only those that it gave before are replaced.
    """
    remove_leftovers(folder)
    scratch = temporary_name(archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(scratch)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
                _check_end(tar)
        names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
        for name in names:
            other = (folder / name).exists() and not filecmp.cmp(scratch / name, folder / name, shallow=False)
            if other and name not in before:
                raise OutputError(
                    f"{folder / name} is there already, and is another file than that of {archive.name}",
                    "a folder without it",
                    "move it away; the same command then unpacks the archive",
                )
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).replace(folder / name)
        archive.unlink()
    except LandfuseError:
        raise
    except Exception as error:  # each kind of archive has its own for damage, a password or an unknown method
        if isinstance(error, OSError) and error.errno:
            raise unwritable(folder, error) from None
        if not known:
            archive.unlink(missing_ok=True)
        raise SceneError(
            f"{archive} cannot be unpacked: {error}",
            "a whole .zip or .tar archive without a password",
            "unpack it by hand into its folder" if known else "repeat the command, which fetches it again",
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return names


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuses what tarfile takes for the end of an archive: a damaged header, or the end of the file."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is damaged, or ends early")
    while file.read(1 << 20):  # a compressed one has its checksum at its end
        pass
