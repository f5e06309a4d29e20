"""A recipe: one YAML file is one run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from landfuse.diffusion.settings import FeatureSettings, PretrainSettings
from landfuse.errors import SettingsError
from landfuse.mapping.settings import MappingSettings
from landfuse.models import SETTINGS, unknown
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import SplitSettings
from landfuse.settings import Settings, override, parse, read_kind
from landfuse.training.settings import SampleSettings, TrainingSettings
from landfuse.views.settings import PixelMapSettings

ARRAYS = "arrays:"
"""What a recipe names as its scene, followed by their digest, where a model was fitted to arrays: there is no file."""


class _OneSplit(Settings):
    split: SplitSettings


def merged_split(own: SplitSettings | None, changes: Mapping[str, Any] | None) -> SplitSettings | None:
    """The split of a run: the scene file's, changed by the recipe's; with another `kind`, the recipe's alone.

    Raises:
        SettingsError: if the two make no split.
    """
    if changes is None:
        return own
    same = own is not None and changes.get("kind", own.kind) == own.kind
    before = own.model_dump(exclude_unset=True) if own is not None and same else {}
    return parse(_OneSplit, {"split": {**before, **changes}}, "the recipe's split").split


class Recipe(Settings):
    """All that a recipe may say.

    Examples:
        >>> recipe = lf.read_recipe("recipe.yaml")
        >>> recipe.model["name"], recipe.training.seed
        ('forest', 0)
    """

    scene: str = Field(description="path of the scene file, from the recipe's folder")
    model: dict[str, Any] = Field(description="`name`, and the settings of that model")
    modalities: tuple[str, ...] | None = Field(default=None, description="which to use, in order; all by default")
    pixel_maps: dict[str, PixelMapSettings] = Field(
        default={}, description="modality -> how its bands become channels; `default` for those not named"
    )
    pretrain: PretrainSettings | None = Field(
        default=None,
        description="how a denoiser is trained on the scene before the model, without labels; null for none",
    )
    features: FeatureSettings | None = Field(
        default=None, description="which features of that denoiser the model gets as further modalities; null for none"
    )
    samples: SampleSettings = Field(default=SampleSettings(), description="how windows become training samples")
    training: TrainingSettings = Field(default=TrainingSettings(), description="how the model is trained")
    mapping: MappingSettings = Field(default=MappingSettings(), description="how the trained model maps")
    split: dict[str, Any] | None = Field(
        default=None,
        description="settings that override those of the scene file's split, e.g. `fold`; with another `kind`, they "
        "replace it",
    )
    run: str | None = Field(
        default=None,
        description="folder of the run, from the working directory; by default runs/ and the names of scene and recipe",
    )

    @pydantic.field_validator("modalities")
    @classmethod
    def _some_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one modality, and each once")
        return value

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping) or value.get("name") not in SETTINGS:
            named = value.get("name") if isinstance(value, Mapping) else value
            raise ValueError(f"there is no model {named!r}; known: {', '.join(SETTINGS)}; {unknown(str(named))}")
        config = {key: item for key, item in value.items() if key != "name"}
        saved = bool((info.context or {}).get("saved"))
        try:
            parse(SETTINGS[value["name"]], config, f"model `{value['name']}`", saved=saved)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return {"name": value["name"], **SETTINGS[value["name"]].written_out(config, saved=saved)}

    @pydantic.model_validator(mode="after")
    def _features_of_something(self) -> Recipe:
        if self.features is not None and self.pretrain is None:
            raise ValueError("`features` are those of a denoiser: add `pretrain:`, with `start_from` for a trained one")
        dropout = self.samples.modality_dropout
        for name, used in (
            ("modality_dropout", any(dropout.values()) if isinstance(dropout, dict) else dropout),
            ("date_dropout", self.samples.date_dropout),
        ):
            if self.features is not None and used:
                raise ValueError(
                    f"`features` see all data, and `samples.{name}` would not take any away: leave one of them out"
                )
        return self

    def read_scene(self) -> SceneFile:
        """The scene file that it names.

        Raises:
            SettingsError: if the recipe names modalities that the scene lacks.
        """
        if self.scene.startswith(ARRAYS):
            raise SettingsError(
                "the run was fitted to arrays: there is no scene file to read them from",
                "a recipe that names a scene file",
                "fit it again in Python, by `landfuse.Classifier`",
            )
        file = read_scene_file(self.scene)
        self.check_modalities(list(file.settings.modalities), str(file.path))
        return file

    def check_modalities(self, known: Sequence[str], where: str) -> None:
        """Checks the names of modalities.

        Args:
            where: they are, for the message.

        Raises:
            SettingsError: if the recipe names others.
        """
        mapped = [*known, "default", *(self.features.names if self.features else ())]
        unknown = [name for name in self.modalities or () if name not in known]
        unknown += [name for name in self.pixel_maps if name not in mapped]
        if unknown:
            raise SettingsError(
                f"the recipe names the modality {', '.join(dict.fromkeys(unknown))}",
                f"those of {where}: {', '.join(known)}",
                "correct `modalities` or `pixel_maps`",
            )

    def split_of(self, file: SceneFile) -> SplitSettings | None:
        """The split of a run; see `merged_split`."""
        return merged_split(file.settings.split, self.split)

    def to_json(self) -> str:
        """The recipe, resolved, as JSON (which is YAML)."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def read_recipe(path: str | Path, assignments: Iterable[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        assignments: `key.sub=value`, which win over the file.

    Returns:
        The recipe, its scene's path resolved from the recipe's folder and its `run` filled in.

    Raises:
        SettingsError: naming every key that is unknown, missing or wrong.

    Examples:
        >>> lf.read_recipe("recipe.yaml", ["training.seed=3"]).training.seed
        3
    """
    path = Path(path)
    values = read_kind("a recipe", path)
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}  # so that assignments reach its settings
    values = override(values, assignments)
    recipe = parse(Recipe, values, str(path))
    if recipe.scene.startswith(ARRAYS):
        return recipe
    scene = (path.parent / recipe.scene).resolve()
    name = scene.parent.name if scene.name == "scene.yaml" else scene.stem
    run = recipe.run or f"runs/{name}-{path.stem}"
    return recipe.model_copy(update={"scene": str(scene), "run": run})
