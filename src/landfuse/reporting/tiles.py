"""What a report starts from: a run that has ended, its scene, and its maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landfuse.accuracy.evaluate import map_of
from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import BundleError, MissingFileError, SceneError, SettingsError
from landfuse.legend import Legend
from landfuse.mapping.predict import predict
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import Roles, RolesSplit
from landfuse.training.lightning_task import read_history
from landfuse.training.recipe import Recipe, read_recipe

Progress = Callable[[str, int, int], None]
"""Told (what is done, done, total)."""


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Args:
        folder: the run folder.
        recipe: resolved.
        file: the scene file.
        scores: as `scores.json` holds them.
        bundle: as `model.json` holds it.
        environment: versions and hardware; empty where it was not kept.
        withheld: as `modalities.json` holds it; None where there is none.
    """

    folder: Path
    recipe: Recipe
    file: SceneFile
    scores: dict[str, Any]
    bundle: dict[str, Any]
    environment: dict[str, Any]
    withheld: dict[str, Any] | None

    @property
    def legend(self) -> Legend:
        """The classes."""
        return self.file.legend

    @property
    def used(self) -> list[str]:
        """The modalities that it was trained on, in order."""
        return list(self.bundle["modalities"])

    @property
    def history(self) -> list[dict[str, float]]:
        """Loss and validation scores, a row per epoch; none where nothing was iterated."""
        return read_history(self.folder / "metrics.csv")

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the bundle's files."""
        result = {}
        for name in ("model.safetensors", "model.json"):
            with (self.folder / "bundle" / name).open("rb") as file:
                result[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return result


def read_run(folder: str | Path, scene: str | Path | None = None) -> Run:
    """Reads a run folder and the scene file that it names.

    Args:
        folder: of the run.
        scene: where the scene file lies now, if it has moved.

    Raises:
        MissingFileError: if the folder is no run, the run has not ended, or its scene is not there any more.
        SettingsError: if one of its files is broken.
        BundleError: if it has no bundle.
        SceneError: if the scene has another legend by now.
    """
    folder = Path(folder)
    if not (folder / "recipe.json").is_file():
        beneath = sorted(path.parent.name for path in folder.glob("*/recipe.json"))
        raise MissingFileError(
            f"{folder} is no run: " + ("it holds no recipe.json" if folder.is_dir() else "there is no such folder"),
            "a run folder, as `landfuse train` makes it",
            f"name one of those in it, e.g. {folder / beneath[0]}" if beneath else "check the path",
        )
    if not (folder / "scores.json").is_file():
        raise MissingFileError(
            f"the run {folder} has not ended: it holds no scores.json",
            "a run that was trained and scored",
            f"go on with it: landfuse train {folder / 'recipe.json'} run={folder}",
        )
    recipe = read_recipe(folder / "recipe.json")
    place = Path(scene).resolve() if scene is not None else Path(recipe.scene)
    if not place.exists():
        raise MissingFileError(
            f"the scene file {place} is not there" + ("" if scene is not None else f"; the run {folder} names it"),
            "the scene that the run was trained on",
            "put it back, or name its place by --scene",
        )
    if place.is_dir():
        place = place / "scene.yaml"
    bundle = _json(folder / "bundle" / "model.json")
    if bundle is None:
        raise BundleError(f"{folder} holds no bundle", "bundle/model.json in it", "copy the whole run folder")
    run = Run(
        folder,
        recipe.model_copy(update={"scene": str(place)}),
        read_scene_file(place),
        _json(folder / "scores.json") or {},
        bundle,
        _json(folder / "environment.json") or {},
        _json(folder / "modalities.json"),
    )
    try:
        trained = [(c["name"], c["code"]) for c in bundle["legend"]]
        _ = run.used, run.scores["test"]["OA"]
    except (KeyError, TypeError) as error:
        raise SettingsError(
            f"the run {folder} is broken: {error} is missing", "the files of `landfuse train`", "train it again"
        ) from None
    if trained != [(c.name, c.code) for c in run.legend]:
        raise SceneError(
            f"the scene file {place} lists other classes than the run {folder} was trained on",
            ", ".join(f"{name} ({code})" for name, code in trained),
            "name the scene file of the run by --scene, or train again",
        )
    return run


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "JSON, as it was written", "restore it") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds no table", "JSON, as it was written", "restore it")
    return values


def open_tiles(run: Run) -> tuple[list[Scene], list[str]]:
    """The tiles with every modality that can be opened, and what is left out, in words.

    Raises:
        FaultsError: if a tile, its labels or a modality of the run cannot be opened.
    """
    scenes, faults = run.file.try_scenes()
    if not faults:
        return scenes, []
    scenes = run.file.scenes(run.used)
    left = [name for name in run.file.settings.modalities if name not in run.used]
    return scenes, [f"`{name}` is not shown: the run did not use it, and its files cannot be opened" for name in left]


def read_roles(run: Run, scenes: Sequence[Scene]) -> list[Roles]:
    """The role of every pixel, as the run wrote them.

    Raises:
        LandfuseError: if they are missing, or lie on another grid than the scene.
    """
    return run.file.roles(scenes, RolesSplit(kind="roles", path=str((run.folder / "split").resolve() / "{tile}.tif")))


def find_maps(run: Run, scenes: Sequence[Scene], maps: str | Path | None, progress: Progress) -> list[Path]:
    """The tiles' maps; those that the run does not have yet are made, with their confidence.

    Args:
        run: the run.
        scenes: its tiles.
        maps: a map, or the folder of the tiles' maps; by default `maps` in the run folder, where missing ones are made.
        progress: told (what is mapped, pixels done, pixels in all).

    Raises:
        MissingFileError: if `maps` was given and lacks a tile.
    """
    if maps is not None:
        return [map_of(maps, scene, len(scenes)) for scene in scenes]
    paths = [run.folder / "maps" / f"{scene.name}.tif" for scene in scenes]
    missing = [(path, scene) for path, scene in zip(paths, scenes, strict=True) if not path.exists()]
    classifier = load_bundle(run.folder / "bundle") if missing else None
    total = sum(scene.grid.window.pixels for _, scene in missing)
    before = 0
    for path, scene in missing:
        if classifier is not None:
            start = before
            predict(
                classifier, scene, path, confidence=True, batch=run.recipe.mapping.batch,
                progress=lambda done, _all: progress("mapping, px", start + done, total),  # noqa: B023
            )  # fmt: skip
        before += scene.grid.window.pixels
    return paths
