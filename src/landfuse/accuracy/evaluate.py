"""Scoring a map against labels: the confusion matrix and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.confusion import Confusion
from landfuse.errors import GridError, MissingFileError, SceneError, SplitError
from landfuse.files import write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.geotiff import GdalRaster
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import ROLES, Roles, RolesSplit


@dataclass(frozen=True)
class Evaluation:
    """A scored map: its confusion matrix over the legend, and the role that was scored."""

    confusion: Confusion
    legend: Legend
    role: str

    def save(self, folder: str | Path) -> None:
        """Writes `scores.json` and `confusion.csv`."""
        write_text(Path(folder) / "scores.json", self.confusion.to_json(self.legend))
        write_text(Path(folder) / "confusion.csv", self.confusion.to_csv(self.legend))


def read_map(path: str | Path, scene: Scene) -> NDArray[np.uint8]:
    """Reads a map of a scene: (H, W) uint8 classes.

    Raises:
        GridError: if it does not lie on the scene's grid.
        SceneError: if it cannot be read, or holds codes that the legend lacks.
    """
    raster = GdalRaster(str(path), resampling="nearest")
    if raster.own_grid != scene.grid:
        raise GridError(
            f"the map {path} has the grid {raster.own_grid}",
            f"the grid of the scene `{scene.name}`: {scene.grid}",
            "map this very scene, or name the right one",
        )
    return scene.legend.to_classes(raster.read_codes(), where=f"the map {path}")


def map_of(maps: str | Path, scene: Scene, tiles: int) -> Path:
    """The file of a tile's map: the path itself, or `TILE.tif` in it where the scene has several.

    Raises:
        MissingFileError: if it is not there.
    """
    maps = Path(maps)
    path = maps / f"{scene.name}.tif" if tiles > 1 or maps.is_dir() else maps
    if not path.exists():
        raise MissingFileError(
            f"there is no map {path}",
            f"a map per tile, as `landfuse predict` writes them; the scene has {tiles}",
            "map it",
        )
    return path


def role_of(file: SceneFile, role: str | None, split: str | Path | None) -> str:
    """The role that is scored: the one asked for, else `test` where there is a split, else `all`.

    Raises:
        SceneError: if the scene has no labels.
        SplitError: if there is no such role.
    """
    if file.settings.labels is None:
        raise SceneError(f"{file.path} has no labels", "`labels:` and `legend:` in the scene file", "add them")
    chosen = role or ("test" if split is not None or file.settings.split else "all")
    if chosen != "all" and chosen not in ROLES:
        raise SplitError(f"there is no role `{chosen}`", f"all, {', '.join(ROLES)}", "choose one")
    return chosen


def scored_tiles(
    maps: Sequence[str | Path], file: SceneFile, role: str, split: str | Path | None
) -> Iterator[tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]]:
    """The labels of a role and what the maps say, tile by tile; tiles without such labels are passed over.

    Args:
        maps: maps, or folders of the tiles' maps.
        file: the scene file.
        role: as `role_of` gives it.
        split: see `evaluate`.

    Returns:
        (H, W) classes of the labels, `UNLABELLED` elsewhere, and as many arrays of the maps' classes.
    """
    scenes = file.scenes()
    written = None
    if split is not None:
        place = Path(split).resolve()
        written = RolesSplit(kind="roles", path=str(place / "{tile}.tif" if place.is_dir() else place))
    roles: Sequence[Roles | None] = [None] * len(scenes) if role == "all" else file.roles(scenes, written)
    for scene, scene_roles in zip(scenes, roles, strict=True):
        truth = scene.labels
        if scene_roles is not None:
            truth = np.where(scene_roles == ROLES[role], truth, UNLABELLED).astype(np.uint8)
        if (truth != UNLABELLED).any():
            yield truth, [read_map(map_of(one, scene, len(scenes)), scene) for one in maps]


def evaluate(
    maps: str | Path, scene_file: str | Path, *, role: str | None = None, split: str | Path | None = None
) -> Evaluation:
    """Scores the map of a scene file against its labels.

    Args:
        maps: the map, or the folder of the tiles' maps.
        scene_file: the scene file, with labels.
        role: `train`, `validation`, `test`, or `all` labelled pixels; by default `test` where there is a split.
        split: a written split instead of the scene file's: a raster of roles, or a folder with one per tile, as a
            run folder holds it.

    Raises:
        SceneError: if the scene has no labels.
        GridError: if a map does not lie on its scene's grid.
        SplitError: if no pixel has the role.
    """
    file = read_scene_file(scene_file)
    chosen = role_of(file, role, split)
    confusion = Confusion.of(file.legend)
    for truth, (mapped,) in scored_tiles((maps,), file, chosen, split):
        confusion.update(truth, mapped)
    if not confusion.matrix.sum() and not confusion.unmapped:
        raise SplitError(
            f"no labelled pixel has the role `{chosen}`", "labelled pixels", "choose another role or split"
        )
    return Evaluation(confusion, file.legend, chosen)
