"""The errors of landfuse, drawn as a tree.

    LandfuseError                  anything a user can correct; the command ends with exit code 2 (all codes: README)
    ├── SettingsError (ValueError)     a recipe or scene file that cannot be understood
    ├── SceneError (ValueError)        rasters or labels that are wrong in themselves
    │   ├── MissingFileError (FileNotFoundError)
    │   └── GridError                  rasters whose grids do not fit together
    ├── SplitError (ValueError)        a split that leaves nothing to learn from or to test on
    ├── ModelError (ValueError)        a model that cannot take this scene
    ├── BundleError (ValueError)       a saved classifier that is broken, newer, or for another scene
    ├── OutputError (OSError)          results that cannot be written
    ├── IncompleteError                a map that lacks blocks; the command ends with exit code 3
    ├── ChangedInputError              a map whose inputs changed before it was finished; exit code 3
    ├── UnmappedError                  a tile of several that is not mapped; exit code 3
    ├── ClusterError (ConnectionError) a scheduler or workers that cannot be reached, or fail
    ├── MissingExtraError (ImportError) an optional dependency that is not installed
    └── FaultsError                    several of the above, found in one go

Each also derives from the builtin that one would catch, and says what was found, what was expected
and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SHOWN = 20
"""Blocks that a message names."""


def few(words: Sequence[str], most: int = 5) -> str:
    """The first of several words, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def nearest(
    name: str,
    known: Iterable[Any],
    otherwise: str = "choose one of these",
    *,
    before: str = "",
    cutoff: float = 0.6,
    key: Callable[[Any], str] = str,
) -> str:
    """Asks whether the most similar of the known names was meant.

    Args:
        name: the one that is not known.
        known: the names, or what `key` gives the names of.
        otherwise: what is returned where none is similar.
        before: what the question begins with.
        cutoff: how similar it has to be, from 0 to 1; capitals make no difference.
    """
    of_name = {key(one).casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), of_name, n=1, cutoff=cutoff)
    return f"{before}did you mean `{of_name[near[0]]}`?" if near else otherwise


class LandfuseError(Exception):
    """A fault that the user can correct.

    Args:
        found: what is wrong, naming the file, key or band.
        expected: what would have been right.
        do: what to do about it.

    Examples:
        >>> try:
        ...     lf.open_scene("gone.yaml")
        ... except lf.LandfuseError as error:
        ...     print(error.found)
        there is no file gone.yaml
    """

    exit_code = 2

    def __init__(self, found: str, expected: str = "", do: str = "") -> None:
        self.found, self.expected, self.do = found, expected, do
        super().__init__(found, expected, do)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.do:
            lines.append(f"  do this:  {self.do}")
        return "\n".join(lines)


class SettingsError(LandfuseError, ValueError):
    """A recipe or scene file that cannot be understood."""


class SceneError(LandfuseError, ValueError):
    """Rasters or labels that are wrong in themselves."""


class MissingFileError(SceneError, FileNotFoundError):
    """A file that a scene, recipe or command names is not there."""


class GridError(SceneError):
    """Rasters whose grids do not fit together."""


class SplitError(LandfuseError, ValueError):
    """A split that leaves nothing to learn from or nothing to test on."""


class ModelError(LandfuseError, ValueError):
    """A model that cannot take this scene or these settings."""


class BundleError(LandfuseError, ValueError):
    """A saved classifier that is broken, newer than this version, or made for another scene."""


class OutputError(LandfuseError, OSError):
    """Results that cannot be written."""


class IncompleteError(LandfuseError):
    """A map that was written, and lacks blocks.

    Args:
        faults: block, in words -> why it cannot be mapped.
    """

    exit_code = 3

    def __init__(self, path: Path, faults: Mapping[str, LandfuseError], blocks: int) -> None:
        self.path, self.faults = path, dict(faults)
        shown = list(faults.items())[:_SHOWN]
        lines = "".join(f"\n  {where}: {fault.found}" for where, fault in shown)
        if len(faults) > _SHOWN:
            lines += f"\n  and {len(faults) - _SHOWN} more; the map's tag `landfuse_incomplete` lists them all"
        super().__init__(
            f"{path} is incomplete: {len(faults)} of {blocks} blocks cannot be read{lines}",
            "rasters that can be read everywhere",
            "the same command repeats these blocks only; where a raster had to be replaced, start over by --restart",
        )


class ChangedInputError(LandfuseError):
    """A map whose inputs changed before it was finished."""

    exit_code = 3


class UnmappedError(LandfuseError):
    """A tile of several that is not mapped, since its files cannot be read or do not fit the model."""

    exit_code = 3

    def __init__(self, tile: str, fault: LandfuseError) -> None:
        super().__init__(
            f"the tile `{tile}` is not mapped: {fault.found or fault}",
            fault.expected,
            f"{fault.do}{'; ' * bool(fault.do)}the same command then maps what is missing",
        )


class ClusterError(LandfuseError, ConnectionError):
    """A scheduler or workers that cannot be reached, or fail."""


class MissingExtraError(LandfuseError, ImportError):
    """An optional dependency that is not installed."""


class FaultsError(LandfuseError):
    """Several faults, found in one go."""

    def __init__(self, faults: Sequence[LandfuseError]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(few_alike(faults)))


def few_alike(faults: Iterable[LandfuseError], most: int = 5) -> list[str]:
    """The faults as text; of those that name the same remedy only the first, and how many more there are."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        kinds.setdefault((fault.expected, fault.do), []).append(str(fault))
    return [
        text
        for remedy, alike in kinds.items()
        for text in (
            [*alike[:most], f"and {len(alike) - most:,} more like the last"] if any(remedy) and alike[most:] else alike
        )
    ]


def of_the_system(error: Exception) -> LandfuseError | None:
    """In words: memory, disk or names that do not suffice, wherever they were met; None for any other error."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate" in str(error)):  # torch's
        do = "choose a smaller view, batch, block or --memory, or another machine"
        return LandfuseError(f"the memory does not suffice: {error}", "settings that fit this machine", do)
    if isinstance(error, UnicodeEncodeError):
        return LandfuseError(f"the name {error.object!r} is not in UTF-8", "names of files in UTF-8", "rename it")
    if isinstance(error, OSError):
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return LandfuseError(f"the system refuses: {where}", "files that can be read and written", "check this place")
    if isinstance(error, OverflowError):
        return LandfuseError(f"a number is too large: {error}", "settings in their usual range", "choose a smaller one")
    return None


def several(errors: Sequence[LandfuseError]) -> LandfuseError:
    """One error of one or more of a kind, with their exit code."""
    if len(errors) == 1:
        return errors[0]
    together = FaultsError(errors)
    together.exit_code = errors[0].exit_code
    return together
