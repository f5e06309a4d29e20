"""What is shown or chosen of a run starts from: its scene, its tiles, their roles and their maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from landfuse.accuracy.evaluate import map_of
from landfuse.errors import MissingFileError, SceneError
from landfuse.mapping.settings import MapOptions
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import Roles
from landfuse.scenes.splits import all_train
from landfuse.training.run import Run

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done, total)."""


def scene_file_of(run: Run, scene: str | Path | None = None) -> SceneFile:
    """Reads the scene file of a run.

    Args:
        scene: the scene file's place, if it has moved.

    Raises:
        MissingFileError: if it is not there any more.
        SceneError: if its legend has changed since the training.
    """
    place = run.scene if scene is None else Path(scene).resolve()
    if not place.exists():
        raise MissingFileError(
            f"the scene file {place} is not there" + ("" if scene is not None else f"; the run {run.folder} names it"),
            "the scene that the run was trained on",
            "put it back, or name its place by --scene",
        )
    file = read_scene_file(place / "scene.yaml" if place.is_dir() else place)
    if run.legend != tuple((c.name, c.code) for c in file.legend):
        raise SceneError(
            f"the scene file {file.path} lists other classes than the run {run.folder} was trained on",
            ", ".join(f"{name} ({code})" for name, code in run.legend),
            "name the scene file of the run by --scene, or train again",
        )
    return file


def open_tiles(run: Run, file: SceneFile) -> tuple[list[Scene], list[str]]:
    """The tiles with every modality that can be opened, and notes on what is left out.

    Raises:
        FaultsError: if a tile, its labels or a modality of the run cannot be opened.
    """
    scenes, faults = file.try_scenes()
    if not faults:
        return scenes, []
    left = [name for name in file.settings.modalities if name not in run.modalities]
    notes = [f"`{name}` is not shown: the run did not use it, and its files cannot be opened" for name in left]
    return file.scenes(run.modalities), notes


def read_roles(run: Run, file: SceneFile, scenes: Sequence[Scene]) -> list[Roles]:
    """The role of every pixel, as the run wrote them.

    Raises:
        LandfuseError: if they are missing, or their grid is not the scene's.
    """
    if run.cross_validated:
        return [all_train(scene.labels) for scene in scenes]
    return file.written_roles(scenes, run.folder / "split")


def mapping_options(run: Run) -> dict[str, Any]:
    """How a run's recipe says that it maps."""
    settings = run.recipe.get("mapping", {})
    return {name: settings[name] for name in MapOptions.model_fields if name in settings}


def find_maps(run: Run, scenes: Sequence[Scene], maps: str | Path | None, progress: Progress) -> list[Path]:
    """The tiles' maps; those that the run does not have yet are made, with their confidence.

    Args:
        maps: a map, or the folder of the tiles' maps; by default `maps` in the run folder, where missing ones are made.
        progress: called with (what is mapped, pixels done, pixels in all).

    Raises:
        MissingFileError: if `maps` is set and lacks a tile.
    """
    if maps is not None:
        return [map_of(maps, scene, len(scenes)) for scene in scenes]
    paths = [run.folder / "maps" / f"{scene.name}.tif" for scene in scenes]
    missing = [(path, scene) for path, scene in zip(paths, scenes, strict=True) if not path.exists()]
    if missing:  # mapping by a network needs torch, a report on existing maps does not
        from landfuse.bundles.table_bundle import load_model
        from landfuse.mapping.predict import predict

        classifier = load_model(run.folder / "bundle")
        options = mapping_options(run) | {"confidence": True}
        total, before = sum(scene.grid.window.pixels for _, scene in missing), 0
        for path, scene in missing:

            def advance(done: int, _all: int, before: int = before) -> None:
                progress("mapping, px", before + done, total)

            predict(classifier, scene, path, progress=advance, **options)
            before += scene.grid.window.pixels
    return paths
