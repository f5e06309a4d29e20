"""The errors of landfuse, drawn as a tree.

    LandfuseError                  anything a user can mend; the command ends with exit code 2
    ├── SettingsError (ValueError)     a recipe or scene file that cannot be understood
    ├── SceneError (ValueError)        rasters or labels that are wrong in themselves
    │   ├── MissingFileError (FileNotFoundError)
    │   └── GridError                  rasters that do not lie on each other
    ├── SplitError (ValueError)        a split that leaves nothing to learn from or to test on
    ├── ModelError (ValueError)        a model that cannot take this scene
    ├── BundleError (ValueError)       a saved classifier that is broken, newer, or for another scene
    ├── OutputError (OSError)          results that cannot be written
    ├── MissingExtraError (ImportError) an optional dependency that is not installed
    └── FaultsError                    several of the above, found in one go

Each also derives from the builtin that one would catch, and says what was found, what was expected
and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class LandfuseError(Exception):
    """A fault that the user can mend.

    Args:
        found: what is wrong, naming the file, key or band.
        expected: what would have been right.
        do: what to do about it.
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
    """Rasters that do not lie on each other."""


class SplitError(LandfuseError, ValueError):
    """A split that leaves nothing to learn from or nothing to test on."""


class ModelError(LandfuseError, ValueError):
    """A model that cannot take this scene or these settings."""


class BundleError(LandfuseError, ValueError):
    """A saved classifier that is broken, newer than this version, or made for another scene."""


class OutputError(LandfuseError, OSError):
    """Results that cannot be written where they were asked for."""


class MissingExtraError(LandfuseError, ImportError):
    """An optional dependency that is not installed."""


class FaultsError(LandfuseError):
    """Several faults, found in one go."""

    def __init__(self, faults: Sequence[LandfuseError]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in faults))
