"""What a run stands on: the tiles of its scene, every pixel's role, and pixel maps fitted to the training pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import FaultsError, SceneError, SplitError
from landfuse.legend import UNLABELLED, Legend
from landfuse.models import MODELS
from landfuse.rasters.windows import blocks
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TRAIN, Roles, SplitSettings
from landfuse.scenes.splits import counts_per_class, roles_digest
from landfuse.training.recipe import Recipe
from landfuse.views.mapped_pixels import fit_pixel_maps
from landfuse.views.pixel_map import PixelMap
from landfuse.views.settings import PixelMapSettings

_BLOCK = 512
"""Side of the blocks that are read one by one, px."""


@dataclass(frozen=True)
class TrainingData:
    """What a run stands on: the tiles, their roles and targets, and the rule of the split, where it is known."""

    scenes: Sequence[Scene]
    roles: Sequence[Roles]
    legend: Legend
    split: SplitSettings | None = None

    @property
    def folds(self) -> int:
        """The number of folds, of which one tests; 0 for none."""
        return getattr(self.split, "folds", None) or 0

    def targets(self, role: int) -> list[NDArray[np.uint8]]:
        """Per scene (H, W) uint8: classes of the pixels of a role, `UNLABELLED` elsewhere."""
        return [
            np.where(roles == role, scene.labels, UNLABELLED).astype(np.uint8)
            for scene, roles in zip(self.scenes, self.roles, strict=True)
        ]

    def classes(self, role: int) -> list[int]:
        """The classes of the pixels of a role, in order."""
        pairs = zip(self.scenes, self.roles, strict=True)
        found = [np.unique(scene.labels[roles == role]) for scene, roles in pairs]
        return [kind for kind in np.unique(np.concatenate(found)).tolist() if kind != UNLABELLED]

    def digests(self, whole: bool = False) -> dict[str, str]:
        """SHA-256 of all that a run learns from, each by its name: labels, roles, legend, and values of the rasters.

        Args:
            whole: of the rasters all pixels; else those of the blocks that hold a pixel with a role.
        """
        found = {"the legend": hashlib.sha256(repr(self.legend).encode()).hexdigest()}
        for scene, roles in zip(self.scenes, self.roles, strict=True):
            found[f"the labels of `{scene.name}`"] = hashlib.sha256(scene.labels.tobytes()).hexdigest()
            found[f"the split of `{scene.name}`"] = roles_digest(roles, scene.grid)
            grid = scene.grid
            windows = [
                w for w in blocks(grid.height, grid.width, _BLOCK) if whole or roles[w.within(grid.window)].any()
            ]
            for name, part in scene.modalities.items():
                known = hashlib.sha256(f"{part.zoom} {part.units} {part.raster.bands}".encode())
                for window in windows:
                    known.update(scene.read(name, window).tobytes())
                found[f"`{name}` of `{scene.name}`"] = known.hexdigest()
        return found

    def has(self, role: int) -> bool:
        """Whether any pixel has the role."""
        return any((roles == role).any() for roles in self.roles)


def read_training_data(recipe: Recipe) -> TrainingData:
    """Opens the scenes of a recipe and gives every pixel its role.

    Raises:
        FaultsError: if scenes cannot be opened, or their modalities differ in bands or data type.
        SplitError: if a class has no training pixel, or there is no split.
    """
    file = recipe.read_scene()
    scenes = file.scenes(recipe.modalities)
    _alike(scenes)
    split = recipe.split_of(file)
    return checked_data(scenes, file.roles(scenes, split), file.legend, split)


def checked_data(
    scenes: Sequence[Scene], roles: Sequence[Roles], legend: Legend, split: SplitSettings | None = None
) -> TrainingData:
    """What a run stands on, if every class can be learnt.

    Raises:
        SplitError: if a class has no training pixel.
    """
    counts = counts_per_class(roles, [scene.labels for scene in scenes], len(legend))
    empty = [name for name, count in zip(legend.names, counts["train"], strict=True) if count == 0]
    if empty:
        raise SplitError(
            f"the class{'es' if len(empty) > 1 else ''} {', '.join(f'`{name}`' for name in empty)} ha"
            f"{'ve' if len(empty) > 1 else 's'} no training pixel",
            "labelled pixels of every class in training",
            "take it out of the legend (its code into `labels: ignored`), or change the split or its seed",
        )
    return TrainingData(scenes, roles, legend, split)


def _alike(scenes: Sequence[Scene]) -> None:
    first = scenes[0]
    faults = [
        SceneError(
            f"`{name}` has {getattr(own, what)} {words} in the tile `{scene.name}`",
            f"{getattr(known, what)} {words}, as in the tile `{first.name}`",
            "make the tiles alike, or choose common bands by `bands`",
        )
        for scene in scenes[1:]
        for name in first.modalities
        for own, known in [(scene.modalities[name].info, first.modalities[name].info)]
        for what, words in (("bands", "bands"), ("dtype", "as data type"))
        if getattr(own, what) != getattr(known, what)
    ]
    if faults:
        raise FaultsError(faults)


def fit_maps(recipe: Recipe, data: TrainingData) -> dict[str, PixelMap]:
    """Fits the pixel maps of a recipe to the training pixels."""
    default = recipe.pixel_maps.get("default", PixelMapSettings())
    computed = recipe.features.names if recipe.features else ()  # the default is for what the scene file names
    settings = {
        name: recipe.pixel_maps.get(name, PixelMapSettings() if name in computed else default)
        for name in data.scenes[0].modalities
    }
    maps = fit_pixel_maps(data.scenes, [roles == TRAIN for roles in data.roles], settings)
    if MODELS[str(recipe.model["name"])].takes_dropped:  # others would see values that they never learnt from
        for name, own in maps.items():
            own.scale_unseen(data.scenes[0].modalities[name].info)
    return maps
