"""The part folder: blocks of a map that is not finished, each in a file of its own, so that mapping can go on.

`map.tif.parts/` is beside `map.tif`. A block is done if its file is there, since files are whole or absent; nothing
else is recorded. `settings.json` says, in hashes and words, what the blocks follow from; `lock` refuses a second
command while one is running.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from landfuse.errors import OutputError
from landfuse.files import unwritable, write_text
from landfuse.mapping.engine import Engine
from landfuse.mapping.locks import sole_use
from landfuse.rasters.raster import Raster, state_of
from landfuse.rasters.windows import Window

FORMAT = 1
"""Version of the folder's layout; mapping does not go on from blocks of another one."""

_NOTES = "settings.json"
_FINISHED = "finished"
_LOCK = "lock"


def fingerprint(engine: Engine) -> dict[str, str]:
    """What a map follows from, each with a hash or a word: equal for equal maps.

    Rasters are known by their settings, path, size and time of change.
    """
    scene, stand_ins = engine.source, engine.predictor.stand_ins
    found = {
        **engine.predictor.identity,
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
    return f"{words} {state_of(raster)}".rstrip()


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
        return [path for path in self.path.iterdir() if path.name != _LOCK]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out of the folder, which is made if needed, and removed if it is empty at the end.

        Raises:
            OutputError: if another process uses it, or it cannot be made.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.callback(self._leave)
                stack.enter_context(sole_use(self.path / _LOCK))
            except BlockingIOError as error:
                raise OutputError(
                    f"{self.path} is in use: {error} is mapping {self.output.name} at this moment",
                    "one command at a time for one map",
                    "wait until it has ended, or end it: this command then goes on from its blocks",
                ) from None
            except OSError as error:
                self.noted()
                raise unwritable(self.output, error) from None
            yield

    def _leave(self) -> None:
        with suppress(OSError):  # something is in it
            self.path.rmdir()

    def claim(self, settings: Mapping[str, str]) -> None:
        """Notes what the blocks are made of, or goes on with those of equal settings; the folder has to be `held`.

        Raises:
            OutputError: if it cannot be written to, or holds blocks of another map.
        """
        noted = self.noted()
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

    def drop_if_empty(self) -> None:
        """Empties the folder if no block is in it yet."""
        if not any(self.path.glob("*.tif")):
            with suppress(OSError):
                self._empty()

    @property
    def finished(self) -> bool:
        """Whether the map is made, and the folder only says so."""
        return (self.path / _FINISHED).exists()

    def finish(self) -> None:
        """Notes that the map is made, and removes the blocks."""
        write_text(self.path / _FINISHED, "")
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


def _change(name: str, before: str | None, now: str | None) -> str:
    if before is None or now is None or max(len(before), len(now)) == 64:
        return name
    return f"{name} ({before}, now {now})"
