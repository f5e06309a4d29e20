"""A recipe: one YAML file is one run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from landfuse.errors import SettingsError
from landfuse.layers.pixel_map import PixelMapSettings
from landfuse.models import MODELS
from landfuse.samples import SampleSettings
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split import SplitSettings
from landfuse.settings import Settings, override, parse, read_yaml


class TrainingSettings(Settings):
    """How the model learns.

    Args:
        epochs: at most.
        rate: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of all steps over which the rate rises; it then falls as a cosine to 0.
        patience: epochs without a better validation score before stopping; null to go on to the end.
        choose_by: the validation score that chooses the epoch.
        clip: limit of the gradient's norm; null for none.
        precision: `auto` takes bfloat16 where the hardware computes in it (GPUs, CPUs with AMX or AVX512-BF16),
            else float32; or name one.
        seed: of weights, draws and augmentation.
        accelerator: as Lightning names it: `auto`, `cpu`, `gpu`, `mps`.
        devices: number of devices.
        nodes: number of machines.
        strategy: as Lightning names it, e.g. `ddp`.
        lightning: any further argument of Lightning's Trainer.
    """

    epochs: int = pydantic.Field(default=50, ge=1)
    rate: float = pydantic.Field(default=1e-3, gt=0)
    weight_decay: float = pydantic.Field(default=1e-2, ge=0)
    warmup: float = pydantic.Field(default=0.05, ge=0, lt=1)
    patience: int | None = pydantic.Field(default=15, ge=1)
    choose_by: Literal["OA", "AA", "kappa", "mF1", "mIoU"] = "mF1"
    clip: float | None = pydantic.Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = pydantic.Field(default=0, ge=0)
    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = pydantic.Field(default=1, ge=1)
    strategy: str = "auto"
    lightning: dict[str, Any] = {}


class MappingSettings(Settings):
    """How the trained model maps.

    Args:
        stride: distance between windows, px; by default the core. Smaller ones average overlapping logits.
        batch: windows per forward pass; by default as many as make about 65,000 pixels of views.
    """

    stride: int | None = pydantic.Field(default=None, ge=1)
    batch: int | None = pydantic.Field(default=None, ge=1)


class _OneSplit(Settings):
    split: SplitSettings


class Recipe(Settings):
    """All that a recipe may say.

    Args:
        scene: path of the scene file, from the recipe's folder.
        model: `name` and the settings of that model.
        modalities: which to use, in order; all by default.
        pixel_maps: name -> how its bands become channels; `default` for those not named.
        samples: how training sees the scene.
        training: how the model learns.
        mapping: how the trained model maps.
        split: settings that win over those of the scene file's split, e.g. `fold`; with another `kind`, instead of it.
        run: folder of the run, from the working directory; by default `runs/` and the recipe's and scene's names.
    """

    scene: str
    model: dict[str, Any]
    modalities: tuple[str, ...] | None = None
    pixel_maps: dict[str, PixelMapSettings] = {}
    samples: SampleSettings = SampleSettings()
    training: TrainingSettings = TrainingSettings()
    mapping: MappingSettings = MappingSettings()
    split: dict[str, Any] | None = None
    run: str | None = None

    @pydantic.field_validator("modalities")
    @classmethod
    def _some_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one modality, and each once")
        return value

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping) or value.get("name") not in MODELS:
            named = value.get("name") if isinstance(value, Mapping) else value
            raise ValueError(f"there is no model {named!r}; known: {', '.join(MODELS)}")
        config = {key: item for key, item in value.items() if key != "name"}
        try:
            parse(MODELS[value["name"]].Settings, config, f"model `{value['name']}`")
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return dict(value)

    def read_scene(self) -> SceneFile:
        """The scene file that it names.

        Raises:
            SettingsError: if the recipe names modalities that the scene lacks.
        """
        file = read_scene_file(self.scene)
        known = list(file.settings.modalities)
        unknown = [name for name in (*(self.modalities or ()), *self.pixel_maps) if name not in [*known, "default"]]
        if unknown:
            raise SettingsError(
                f"the recipe names the modality {', '.join(dict.fromkeys(unknown))}",
                f"those of {file.path}: {', '.join(known)}",
                "mend `modalities` or `pixel_maps`",
            )
        return file

    def split_of(self, file: SceneFile) -> SplitSettings | None:
        """The split of a run: the scene file's, changed by the recipe's.

        Raises:
            SettingsError: if the two make no split.
        """
        own = file.settings.split
        if self.split is None or own is None:
            changed = self.split
        else:
            same = self.split.get("kind", own.kind) == own.kind
            changed = {**(own.model_dump(exclude_unset=True) if same else {}), **self.split}
        if changed is None:
            return own
        return parse(_OneSplit, {"split": changed}, "the recipe's split").split

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
    """
    path = Path(path)
    values = override(read_yaml(path), assignments)
    recipe = parse(Recipe, values, str(path))
    scene = Path(recipe.scene)
    scene = (path.parent / scene).resolve()
    name = scene.parent.name if scene.name == "scene.yaml" else scene.stem
    run = recipe.run or f"runs/{name}-{path.stem}"
    return recipe.model_copy(update={"scene": str(scene), "run": run})
