"""A recipe: one YAML file is one run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from landfuse.diffusion.denoising import PretrainSettings
from landfuse.diffusion.features import FeatureSettings
from landfuse.errors import SettingsError
from landfuse.models import MODELS
from landfuse.rasters.windows import CoreWeights
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import SplitSettings
from landfuse.settings import Settings, override, parse, read_kind
from landfuse.training.run import merged_split
from landfuse.training.samples import SampleSettings
from landfuse.views.pixel_map import PixelMapSettings


class TrainingSettings(Settings):
    """How the model learns.

    Args:
        epochs: at most; 50 where neither these nor `iterations` are given.
        iterations: optimiser steps, instead of `epochs`. An epoch, after which validation looks, is as long as ever
            (see `samples.windows`), only the last may be shorter.
        optimizer: `adamw`, which does not decay biases, norms and other vectors, or `sgd`, which decays all.
        momentum: of `sgd`.
        rate: peak learning rate.
        weight_decay: of the optimiser.
        warmup: share of all steps over which the rate rises; then it follows `schedule`.
        schedule: the rate falls as a `cosine` to 0, as (1 - share of the steps done)^`power` (`polynomial`), by a
            `factor` at each of `milestones` (`steps`), or not at all (`constant`).
        power: of `polynomial`.
        milestones: of `steps`, counted in `epochs`, or in `iterations` where those are given.
        factor: of `steps`.
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

    epochs: int | None = pydantic.Field(default=None, ge=1)
    iterations: int | None = pydantic.Field(default=None, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = pydantic.Field(default=0.9, ge=0, lt=1)
    rate: float = pydantic.Field(default=1e-3, gt=0)
    weight_decay: float = pydantic.Field(default=1e-2, ge=0)
    warmup: float = pydantic.Field(default=0.05, ge=0, lt=1)
    schedule: Literal["cosine", "polynomial", "steps", "constant"] = "cosine"
    power: float = pydantic.Field(default=0.9, gt=0)
    milestones: tuple[int, ...] = ()
    factor: float = pydantic.Field(default=0.1, gt=0, lt=1)
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

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fifty_epochs(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("epochs") is None and values.get("iterations") is None:
            return {**values, "epochs": 50}
        return values

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> TrainingSettings:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError(
                f"both `epochs` ({self.epochs}) and `iterations` ({self.iterations}) are given; set one of them to null"
            )
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("`schedule: steps` and `milestones` go together")
        if any(b <= a for a, b in zip((0, *self.milestones), (*self.milestones, self.length), strict=True)):
            raise ValueError(f"`milestones` are {list(self.milestones)}; they must rise from 1 to below {self.length}")
        return self

    @property
    def length(self) -> int:
        """How long training is, in epochs or in iterations, whichever is given."""
        return self.iterations or self.epochs or 1

    def steps(self, per_epoch: int) -> int:
        """Optimiser steps in all, for so many in an epoch."""
        return self.iterations or self.length * per_epoch


class MappingSettings(Settings):
    """How the trained model maps.

    Args:
        stride: distance between windows, px; by default the core. Smaller ones average overlapping logits.
        weights: of a window's pixels in that average: `uniform`, or `smooth`, which falls towards its border.
        batch: windows per forward pass; by default as many as make about 65,000 pixels of views.
    """

    stride: int | None = pydantic.Field(default=None, ge=1)
    weights: CoreWeights = "uniform"
    batch: int | None = pydantic.Field(default=None, ge=1)


class Recipe(Settings):
    """All that a recipe may say.

    Args:
        scene: path of the scene file, from the recipe's folder.
        model: `name` and the settings of that model.
        modalities: which to use, in order; all by default.
        pixel_maps: name -> how its bands become channels; `default` for those not named.
        pretrain: how a denoiser learns from the scene before the model, without labels; null for none.
        features: what of that denoiser the model gets as further modalities; null for nothing.
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
    pretrain: PretrainSettings | None = None
    features: FeatureSettings | None = None
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

    @pydantic.model_validator(mode="after")
    def _features_of_something(self) -> Recipe:
        if self.features is not None and self.pretrain is None:
            raise ValueError("`features` are those of a denoiser: add `pretrain:`, with `start_from` for a trained one")
        dropout = self.samples.modality_dropout
        if self.features is not None and (any(dropout.values()) if isinstance(dropout, dict) else dropout):
            raise ValueError(
                "`features` see all modalities, and `samples.modality_dropout` would not take one away: leave one out"
            )
        return self

    def read_scene(self) -> SceneFile:
        """The scene file that it names.

        Raises:
            SettingsError: if the recipe names modalities that the scene lacks.
        """
        file = read_scene_file(self.scene)
        known = list(file.settings.modalities)
        mapped = [*known, "default", *(self.features.names if self.features else ())]
        unknown = [name for name in self.modalities or () if name not in known]
        unknown += [name for name in self.pixel_maps if name not in mapped]
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
    """
    path = Path(path)
    values = override(read_kind("a recipe", path), assignments)
    recipe = parse(Recipe, values, str(path))
    scene = Path(recipe.scene)
    scene = (path.parent / scene).resolve()
    name = scene.parent.name if scene.name == "scene.yaml" else scene.stem
    run = recipe.run or f"runs/{name}-{path.stem}"
    return recipe.model_copy(update={"scene": str(scene), "run": run})
