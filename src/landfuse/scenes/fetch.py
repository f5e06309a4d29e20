"""Getting a place's data: downloaded with checksum, going on where a download stopped, unpacked into their folder.

A file comes under its own name only when it is whole and has the right checksum; until then it is `.NAME.part`, from
which the next call goes on. What was unpacked is noted in `fetched.json`, and the archive is removed.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from landfuse.errors import LandfuseError, MissingFileError, OutputError, SceneError
from landfuse.files import unwritable, write_text
from landfuse.scenes.scene_file import SceneFile
from landfuse.scenes.scene_keys import DownloadSettings

Progress = Callable[[int, int], None]
"""Told (bytes there, bytes in all; 0 where the server does not say)."""

NOTE = "fetched.json"
PATIENCE = (1.0, 4.0, 10.0)
"""Seconds to wait before each further attempt."""

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may turn into better ones


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
    settings = file.settings
    split = settings.split.model_dump() if settings.split else {}
    masks = [split[key] for key in ("train", "test", "val") if isinstance(split.get(key), str)]
    paths = dict.fromkeys([*settings.paths, *masks, *split.get("lists", {}).values()])
    return [path for path in paths if not _is_there(file.root, path)]


def _is_there(root: Path, path: str) -> bool:
    if "://" in path or path.startswith("/vsi"):
        return True
    pattern = re.sub(r"\{tile[^}]*\}", "*", path)
    return any(root.glob(pattern)) if pattern != path else (root / path).exists()


def fetch(file: SceneFile, progress: Callable[[str], Progress] = lambda name: lambda done, total: None) -> Fetched:
    """Gets what a scene file says under `fetch: files`, into its root; what is there already is left alone.

    Args:
        file: the scene file.
        progress: name of a file -> the callback for its bytes.

    Raises:
        MissingFileError: if a server cannot be reached or lacks the file. What came so far is kept for the next call.
        SceneError: if a file has another checksum, or is no archive that can be unpacked.
        OutputError: if the disk is full, or the folder cannot be written.
    """
    result = Fetched(file.root)
    note = file.root / NOTE
    known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    for wanted in file.settings.fetch.files if file.settings.fetch else ():
        folder = file.root / wanted.folder
        before = known.get(wanted.address, {})
        parts = [folder / name for name in before.get("files", [])]
        if parts and before.get("sha256") == (wanted.sha256 or before.get("sha256")) and all(p.exists() for p in parts):
            result.there.append(wanted.file)
            continue
        path, checksum = _retrieve(wanted, folder, progress(wanted.file))
        names = _unpack(path, folder) if wanted.unpack else [path.name]
        known[wanted.address] = {"sha256": checksum, "files": names}
        write_text(note, json.dumps(known, indent=2) + "\n")
        result.downloaded.append(wanted.file)
        if wanted.sha256 is None:
            result.checksums[wanted.file] = checksum
    result.missing = missing_files(file)
    return result


def _retrieve(wanted: DownloadSettings, folder: Path, progress: Progress) -> tuple[Path, str]:
    """Downloads one file and checks it: (its path, its SHA-256)."""
    import pooch

    try:
        folder.mkdir(parents=True, exist_ok=True)
        pooch.get_logger().setLevel("ERROR")  # it would tell of each step on its own
        path = pooch.retrieve(
            wanted.address,
            known_hash=f"sha256:{wanted.sha256}" if wanted.sha256 else None,
            fname=wanted.file,
            path=folder,
            downloader=partial(_download, wanted=wanted, folder=folder, progress=progress),
        )
    except LandfuseError:
        raise
    except ValueError:  # pooch's word for another checksum; it has removed the file
        raise SceneError(
            f"{wanted.address} has another checksum than the scene file says",
            f"SHA-256 {wanted.sha256}",
            "fetch it again; if it stays so, its publisher changed it: look at its page before you trust it",
        ) from None
    except OSError as error:
        raise unwritable(folder / wanted.file, error) from None
    return Path(path), wanted.sha256 or str(pooch.file_hash(str(path)))


def _download(
    url: str, output_file: str, _pooch: Any, *, wanted: DownloadSettings, folder: Path, progress: Progress
) -> None:
    """What pooch calls to get a file: downloads beside it, going on where an earlier attempt or call stopped."""
    partial_file = folder / f".{wanted.file}.part"
    if wanted.sha256 is None:
        partial_file.unlink(missing_ok=True)  # nothing would tell that its beginning is of an older version
    _room(wanted, partial_file)
    trouble: Exception | None = None
    for pause in (0.0, *PATIENCE):
        time.sleep(pause)
        try:
            _attempt(url, partial_file, wanted.size or 0, progress)
            partial_file.replace(output_file)
            return
        except urllib.error.HTTPError as error:
            trouble = error
            if error.code == 416:  # more is there than the file has: it is of another version
                partial_file.unlink(missing_ok=True)
            elif error.code not in _PASSING:
                break
        except LandfuseError:
            raise
        except (OSError, http.client.HTTPException) as error:
            trouble = error
    came = partial_file.stat().st_size if partial_file.exists() else 0
    raise MissingFileError(
        f"{url} cannot be downloaded: {getattr(trouble, 'reason', None) or trouble}",
        "a server that can be reached and has the file",
        (f"try again: {came:,} bytes are there, and the same command goes on from them" if came else "try again later")
        + f"; or get it by hand and save it as {folder / wanted.file}",
    )


def _room(wanted: DownloadSettings, partial_file: Path) -> None:
    have = partial_file.stat().st_size if partial_file.exists() else 0
    needed = (wanted.size or 0) * (2 if wanted.unpack else 1) - have
    free = shutil.disk_usage(partial_file.parent).free
    if needed > free:
        raise OutputError(
            f"{partial_file.parent} has {free / 1e9:.1f} GB free",
            f"{needed / 1e9:.1f} GB for {wanted.file}",
            "free some room, or name another folder by the environment variable LANDFUSE_DATA",
        )


def _attempt(url: str, partial_file: Path, size: int, progress: Progress) -> None:
    """One attempt: asks for what is not there yet and appends it.

    Raises:
        OSError, HTTPException: from the network, or if the answer ends early.
        OutputError: if the disk is full.
    """
    have = partial_file.stat().st_size if partial_file.exists() else 0
    headers = {"User-Agent": f"landfuse/{version('landfuse')}", **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file, whatever was asked for
        total = have + int(answer.headers.get("Content-Length") or 0) if answer.headers.get("Content-Length") else size
        try:
            out = partial_file.open("ab" if have else "wb", buffering=0)
        except OSError as error:
            raise unwritable(partial_file, error) from None
        with out:
            progress(have, total)
            while chunk := answer.read(_CHUNK):
                try:
                    out.write(chunk)
                except OSError as error:
                    raise unwritable(partial_file, error) from None
                have += len(chunk)
                progress(have, total)
    if have < total:
        raise http.client.IncompleteRead(b"", total - have)


def _unpack(archive: Path, folder: Path) -> list[str]:
    """Unpacks an archive into its folder and removes it: the names of its files."""
    scratch = folder / f".{archive.name}.{uuid.uuid4().hex[:8]}.unpacking"
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(scratch)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
        names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).replace(folder / name)
        archive.unlink()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
        raise SceneError(
            f"{archive} cannot be unpacked: {error}", "a .zip or .tar archive", "unpack it by hand into its folder"
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return names
