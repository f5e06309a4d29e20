"""The benchmark places that come with landfuse: a folder each, with a scene file, recipes and published figures."""

from __future__ import annotations

from pathlib import Path

from landfuse.errors import SettingsError, nearest
from landfuse.settings import kind_of, read_yaml

_HERE = Path(__file__).resolve().parents[1]
FOLDERS = (_HERE / "benchmarks", _HERE.parents[1] / "benchmarks")
"""Their folders: in an installed package, and in a checkout."""


def places() -> dict[str, Path]:
    """The folders of all places by name, in order of name."""
    found = {path.parent.name: path.parent for folder in reversed(FOLDERS) for path in folder.glob("*/scene.yaml")}
    return dict(sorted(found.items()))


def place_folder(place: str | Path) -> Path:
    """The folder of a place.

    Args:
        place: its name, or a folder that holds a scene.yaml, or that file itself.

    Raises:
        SettingsError: if there is none, naming the nearest.
    """
    path = Path(place)
    if path.is_file():
        return path.parent
    if (path / "scene.yaml").is_file():
        return path
    known = places()
    if str(place) in known:
        return known[str(place)]
    raise SettingsError(
        f"there is no place {str(place)!r}",
        f"a folder with a scene.yaml, or one of: {', '.join(known)}",
        nearest(str(place), known, "check the name"),
    )


def recipes(folder: Path) -> dict[str, Path]:
    """The recipes in a place's folder by name: its YAML files that name a scene and a model."""
    found = {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != "scene"}
    return {name: path for name, path in found.items() if kind_of(read_yaml(path)) == "a recipe"}
