"""Checkpoints that the authors of a method trained with their own code, as bundles."""

from __future__ import annotations

from pathlib import Path

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import ModelError, SettingsError
from landfuse.models import mfnet, refnet
from landfuse.models.base import Modality
from landfuse.training.recipe import Recipe
from landfuse.views.pixel_map import PixelStatistics
from landfuse.views.settings import PixelMapSettings


def import_checkpoint(path: str | Path, recipe: Recipe) -> Bundle:
    """A bundle that maps as the authors' network of REF-Net or MFNet.

    Args:
        path: of their checkpoint.
        recipe: names the scene whose files, bands and classes the network expects, in its order; the pixel maps that
            its authors used; and of the model the backbone, view and core where they are not the checkpoint's.

    Raises:
        SettingsError: if the recipe is of another model, or its pixel maps would have to be fitted.
        MissingFileError: if there is no such file.
        ModelError: if it is no checkpoint of this model, or does not fit the scene.
    """
    name = str(recipe.model["name"])
    if name not in ("refnet", "mfnet"):
        raise SettingsError(
            f"the recipe's model is `{name}`", "refnet or mfnet, whose authors' checkpoints can be read", "name another"
        )
    file = recipe.read_scene()
    scene, *_ = file.scenes(recipe.modalities)
    inputs = {one: part.info for one, part in scene.modalities.items()}
    if len(inputs) != 2:
        raise SettingsError(
            f"the recipe has the modalities {', '.join(inputs)}",
            "two, the optical image first",
            "name them in the recipe, e.g. modalities=[s2, s1]",
        )
    maps = {}
    for one, info in inputs.items():
        settings = recipe.pixel_maps.get(one, recipe.pixel_maps.get("default", PixelMapSettings()))
        if settings.kind not in ("given", "none"):
            raise SettingsError(
                f"the pixel map of `{one}` is `{settings.kind}`, which is fitted in training",
                "the constants that the network was trained with: `kind: given`, or `none`",
                f"set pixel_maps.{one}",
            )
        maps[one] = PixelStatistics(info.bands).pixel_map(settings, one)
    modalities = {one: Modality(maps[one].channels, info.zoom) for one, info in inputs.items()}
    view, core = recipe.model.get("view", 256), recipe.model.get("core")
    K = len(file.legend)
    model: refnet.RefNet | mfnet.MFNet
    if name == "refnet":
        first, second = inputs
        model = refnet.from_authors(path, (first, second), recipe.model.get("encoder"), view, core=core, classes=K)
    else:
        model = mfnet.from_authors(path, modalities, view=view, core=core)
    if model.modalities != modalities or model.classes != K:
        raise ModelError(
            f"{path} takes {_described(model.modalities)} and gives {model.classes} classes",
            f"{_described(modalities)} and {K} classes, as in {file.path}",
            "check the scene file's bands and legend, and the order of the modalities",
        )
    spec = ModelSpec(name, model.config.model_dump(mode="json"))
    mapping = recipe.mapping
    return Bundle(spec, maps, inputs, file.legend, mapping.stride, model, mapping.weights)


def _described(modalities: dict[str, Modality]) -> str:
    return ", ".join(f"{one.channels} bands of `{name}` at zoom {one.zoom}" for name, one in modalities.items())
