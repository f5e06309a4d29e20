"""The part folder: blocks of a map that is not finished, each in a file of its own, so that mapping can go on.

`map.tif.parts/` is beside `map.tif`. A block is done if its file is there and undamaged: its last line holds a digest
of what was read for the block, and one of block and file. `settings.json` says, in hashes and words, what the blocks
follow from; `inputs.json` lists the files that are read, and their states; `lock` refuses a second command while one is
running.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pydantic import TypeAdapter

from landfuse.errors import ChangedInputError, LandfuseError, OutputError
from landfuse.files import unwritable, write_text
from landfuse.mapping.engine import BlockMap, Engine
from landfuse.mapping.locks import LOCK, held
from landfuse.rasters.raster import Raster, files_of
from landfuse.rasters.windows import Window

FORMAT = 1
"""Version of the folder's layout; mapping does not go on from blocks of another one."""

_NOTES = "settings.json"
_INPUTS = "inputs.json"
_FINISHED = "finished"
_States = TypeAdapter(dict[str, tuple[str, str]])
_Readings = TypeAdapter(dict[str, str])

log = logging.getLogger("landfuse")


def fingerprint(engine: Engine) -> dict[str, str]:
    """What a map follows from, each with a hash or a word: equal for equal maps.

    Rasters are known by their settings and path, those in memory by a digest; files may change, and are noted apart.
    """
    scene, stand_ins = engine.source, engine.predictor.stand_ins
    found = {
        **engine.predictor.identity,
        "the version of the blocks": "2",
        "the grid": str(scene.grid),
        "what stands in for missing modalities": ", ".join(f"{n} {value}" for n, value in stand_ins.items()) or "-",
        "the withheld modalities": ", ".join(engine.options.withheld) or "-",
        "the batch": f"{engine.batch} windows",
    }
    for name in engine.description.modalities:
        if name in scene.modalities:
            part = scene.modalities[name]
            words = f"{part.zoom} {part.units} {_raster_words(part.raster)}"
            found[f"the modality `{name}`"] = hashlib.sha256(words.encode()).hexdigest()
    return found


def _raster_words(raster: Raster) -> str:
    words = f"{raster.path} {raster.bands} {raster.dtype}"
    if dataclasses.is_dataclass(type(raster)):
        words += f" {raster!r}"
    return f"{words} {getattr(raster, 'digest', '')}".rstrip()


def _same(engine: Engine, readings: Iterable[str]) -> bool:
    """Whether the values that were read are those that are there now."""
    try:
        again = engine.reopened()
        return all(again.digest(Window(*map(int, where))) == digest for *where, digest in map(str.split, readings))
    except LandfuseError:  # it cannot be read, or is of another kind
        return False


def reading(part: BlockMap) -> str:
    """What was read for a block, in words."""
    return f"{_numbers(part.read)} {part.digest}"


class PartFolder:
    """The part folder of a map."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".parts")

    @property
    def scratch(self) -> Path:
        """A folder within, for what is not yet whole; emptied by `claim`."""
        return self.path / "assembly"

    def part(self, window: Window) -> Path:
        """The file of a block."""
        return self.path / f"{window.row:08d}-{window.col:08d}.tif"

    def noted(self) -> dict[str, str] | None:
        """What its blocks were made of; None where there is no such folder, or nothing in it."""
        try:
            notes = json.loads((self.path / _NOTES).read_text(encoding="utf-8"))
            if notes.pop("format") == FORMAT and all(isinstance(value, str) for value in notes.values()):
                return dict(notes)
        except (FileNotFoundError, NotADirectoryError):
            if not self.path.exists() or (self.path.is_dir() and not self._inside()):
                return None
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        raise OutputError(
            f"{self.path} is there, but holds no blocks of a map of this version",
            f"room for the blocks of {self.output.name} until it is finished",
            f"move {self.path.name} away, or choose another output",
        )

    def _inside(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != LOCK]

    def held(self) -> AbstractContextManager[None]:
        """Keeps other processes out of the folder; see `locks.held`."""
        if self.path.is_file():
            self.noted()
        return held(self.path, f"mapping {self.output.name}", self.output)

    def claim(self, settings: Mapping[str, str]) -> None:
        """Notes what the blocks are made of, or goes on with those of equal settings; the folder has to be `held`.

        Raises:
            OutputError: if it cannot be written to, or holds blocks of another map.
        """
        noted = self.noted()
        if noted not in (None, dict(settings)) and self.finished is not None and not any(self.path.glob("*.tif")):
            self.clear()  # it is of a map that is whole
            noted = None
        if noted is not None and noted != dict(settings):
            names = dict.fromkeys([*settings, *noted])
            differing = [name for name in names if settings.get(name) != noted.get(name)]
            raise OutputError(
                f"{self.path} holds blocks of another map: other is "
                + ", ".join(_change(name, noted.get(name), settings.get(name)) for name in differing),
                "the model, scene and options that those blocks were made with, to go on with them",
                "give the former command again, or start again by --restart, which deletes those blocks",
            )
        try:
            if self.output.is_dir():
                raise IsADirectoryError("it is a folder")
            shutil.rmtree(self.scratch, ignore_errors=True)
            if noted is None:
                text = json.dumps({"format": FORMAT, **settings}, indent=2, ensure_ascii=False) + "\n"
                write_text(self.path / _NOTES, text)
        except OSError as error:
            self.drop_if_empty()
            raise (error if isinstance(error, OutputError) else unwritable(self.output, error)) from None

    @staticmethod
    def seal(part: BlockMap, file: Path) -> None:
        """Adds the last line to the file of a block."""
        content, note = file.read_bytes(), reading(part)
        with file.open("ab") as end:
            end.write(f"\n{note} {_seal(content, note, part.window)}".encode())

    def readings(self, windows: Iterable[Window]) -> dict[Window, str]:
        """The blocks that are done -> what was read for them; the files of damaged ones are removed."""
        found = {}
        for window in windows:
            with suppress(FileNotFoundError):
                content, _, last = self.part(window).read_bytes().rpartition(b"\n")
                note, _, seal = last.decode(errors="replace").rpartition(" ")
                if seal == _seal(content, note, window):
                    found[window] = note
                else:
                    log.warning("%s is damaged: its block is mapped again", self.part(window))
                    self.part(window).unlink()
        return found

    def check_inputs(self, engine: Engine, readings: Collection[str]) -> None:
        """Notes the files that are read, and compares them with those noted before.

        Where only a file's inode or time of change of its inode are others, or a file beside it came or went, what was
        read for the blocks is compared with what is there now.

        Raises:
            ChangedInputError: if the blocks do not follow from the files that are there now.
        """
        before: dict[str, tuple[str, str]] = {}
        now = dict(before)
        for name, part in engine.source.modalities.items():
            if name in engine.description.modalities and name not in engine.options.withheld:
                now |= files_of(part.raster)
        with suppress(FileNotFoundError, ValueError):
            before = _States.validate_json((self.path / _INPUTS).read_bytes())
        if before == now:
            return
        other = [file for file in {**before, **now} if before.get(file) != now.get(file)]
        changed = [file for file in other if file in now and file in before and before[file][0] != now[file][0]]
        if readings and (changed or not _same(engine, readings)):
            names = changed or other
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            raise ChangedInputError(
                f"after blocks of {self.output.name} were made, its input changed: {', '.join(names[:5])}{more}",
                "the same files until the map is finished, which would otherwise mix old and new",
                "put the former files back, or start again by --restart, which deletes those blocks",
            )
        write_text(self.path / _INPUTS, json.dumps(now, indent=2))

    def drop_if_empty(self) -> None:
        """Empties the folder if no block is in it yet."""
        if not any(self.path.glob("*.tif")):
            with suppress(OSError):
                self._empty()

    @property
    def finished(self) -> dict[Window, str] | None:
        """Of a map that is made, and whose folder only says so, what was read for its blocks; else None."""
        with suppress(FileNotFoundError, ValueError):
            kept = _Readings.validate_json((self.path / _FINISHED).read_bytes())
            return {Window(*map(int, window.split())): note for window, note in kept.items()}
        return None

    def finish(self, readings: Mapping[Window, str]) -> None:
        """Notes that the map is made, and of what, and removes the blocks."""
        kept = {_numbers(window): note for window, note in readings.items()}
        write_text(self.path / _FINISHED, json.dumps(kept))
        shutil.rmtree(self.scratch, ignore_errors=True)
        for part in self.path.glob("*.tif"):
            part.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what is in the folder, if it is one of ours.

        Raises:
            OutputError: if it is not, or its files cannot be removed.
        """
        self.noted()
        try:
            self._empty()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _empty(self) -> None:
        # The notes last: what an interruption leaves here is then still known to be ours.
        for path in sorted(self._inside(), key=lambda path: path.name == _NOTES):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def remove(self) -> None:
        """Removes the folder, if there is one; as `clear`, where it is not held."""
        if self.path.exists():
            with self.held():
                self.clear()


def _numbers(window: Window) -> str:
    return f"{window.row} {window.col} {window.height} {window.width}"


def _seal(content: bytes, note: str, window: Window) -> str:
    known = hashlib.sha1(f"{_numbers(window)} {note}".encode(), usedforsecurity=False)
    known.update(content)
    return known.hexdigest()


def _change(name: str, before: str | None, now: str | None) -> str:
    if before is None or now is None or max(len(before), len(now)) == 64:
        return name
    return f"{name} ({before}, now {now})"
