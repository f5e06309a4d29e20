"""A bundle: pixel maps and a model, which together turn raw pixels into logits, and what is known about both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from landfuse.bundles.description import Description, ModelSpec, digest_of
from landfuse.bundles.predictor import Predictor
from landfuse.bundles.settings import PredictorOptions
from landfuse.bundles.table_bundle import TablePredictor
from landfuse.bundles.torch_predictor import TorchPredictor
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.errors import BundleError
from landfuse.files import check_replaceable, log_replaced, sha256_of, unwritable, whole_file
from landfuse.legend import Legend
from landfuse.models import MODELS, package_of
from landfuse.models.base import FusionModel, Modality
from landfuse.models.pixel_tables import TABLES
from landfuse.models.placeholders import WithPlaceholders
from landfuse.rasters.windows import CoreWeights
from landfuse.scenes.scene import ModalityInfo, Scene
from landfuse.settings import Settings, parse
from landfuse.views.pixel_map import PixelMap


def build_model(
    spec: ModelSpec, modalities: Mapping[str, Modality], classes: int, *, saved: bool = False
) -> FusionModel:
    """Builds a model, with the weights that training starts from.

    Args:
        saved: the weights of a bundle are loaded next: only those that it leaves out are read here.

    Raises:
        SettingsError: if its settings are wrong.
        ModelError: if it cannot take these modalities.
    """
    kind = spec.kind or MODELS[spec.name]
    config = parse(kind.Settings, spec.settings, f"model `{spec.name}`", saved=saved)
    model = kind(modalities, classes, config)  # type: ignore[call-arg,arg-type]
    model.load_pretrained(missing_only=saved)
    return model


class Bundle(nn.Module):
    """Raw pixels in, logits out.

    Args:
        pixel_maps: name -> map, in the order of the modalities.
        inputs: name -> what the pixel maps take.
        stride: distance between windows in mapping, px; at most the core, which is the default.
        model: the network, where it was built before.
        weights: how much the pixels of a window count where cores overlap.
        features: the diffusion features among the inputs.
        droppable: modalities that the model is trained to do without; placeholders stand in for them.

    Attributes:
        temperature: logits are divided by it to obtain probabilities; fitted on validation (`calibration`).
        cross_validation: of a model that learnt from all labels: what its scores are, and how they were measured.
        attached: what it keeps beside the model, and `notes`, words about that; see `Description`.

    Examples:
        >>> bundle = lf.load_bundle("runs/first")
        >>> list(bundle.description.modalities), bundle.description.view
        (['a', 'b'], 15)
    """

    def __init__(
        self,
        spec: ModelSpec,
        pixel_maps: Mapping[str, PixelMap],
        inputs: Mapping[str, ModalityInfo],
        legend: Legend,
        stride: int | None = None,
        model: FusionModel | None = None,
        weights: CoreWeights = "uniform",
        features: DiffusionFeatures | None = None,
        droppable: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.inputs, self.legend, self.features = dict(inputs), legend, features
        self.temperature = 1.0
        self.roles: dict[str, str] | None = None
        self.cross_validation: dict[str, Any] | None = None
        self.attached: dict[str, NDArray[Any]] = {}
        self.notes: dict[str, dict[str, Any]] = {}
        self.pixel_maps = nn.ModuleDict(pixel_maps)
        for name, pixel_map in pixel_maps.items():
            pixel_map.gaps = inputs[name].per_step > 0
        modalities = {name: m.modality(inputs[name]) for name, m in pixel_maps.items()}
        built = model or build_model(spec, modalities, len(legend))
        settings = getattr(type(built), "Settings", Settings).written_out(spec.settings)
        self.spec = replace(spec, settings=settings)
        self.droppable = tuple(name for name in pixel_maps if name in set(droppable))
        self.model = WithPlaceholders(built, self.droppable) if self.droppable and not built.takes_dropped else built
        self.stride = stride or self.model.core
        self.weights: CoreWeights = weights
        if not 1 <= self.stride <= self.model.core:
            raise BundleError(
                f"the stride is {self.stride} px", f"1 to {self.model.core}, the model's core", "set stride within it"
            )

    @property
    def maps(self) -> dict[str, PixelMap]:
        """The pixel maps by name, in the order of the modalities."""
        return {name: module for name, module in self.pixel_maps.items() if isinstance(module, PixelMap)}

    @property
    def description(self) -> Description:
        """All but the tensors."""
        computed = self.features.settings.names if self.features is not None else ()
        return Description(
            self.spec, self.inputs, computed, self.legend, self.model.view, self.model.core, self.stride, self.weights,
            self.temperature, self.droppable, self.model.layers, self.roles,
            self.cross_validation, self.attached, self.notes,
        )  # fmt: skip

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Logits of raw pixels.

        Args:
            images: name -> (B, C, view * zoom, view * zoom), in the modality's units, NaN where there is no data.

        Returns:
            (B, K, core, core).
        """
        logits: Tensor = self.model(self.mapped(images))
        return logits

    def mapped(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model takes, of raw pixels as in `forward`."""
        stand_ins, missing = dict.fromkeys(self.droppable, math.nan), math.nan if self.model.marks_missing else 0.0
        return {
            name: pixel_map(images[name].permute(0, 2, 3, 1), stand_ins.get(name), missing).permute(0, 3, 1, 2)
            for name, pixel_map in self.maps.items()
        }

    def predictor(self, options: PredictorOptions = PredictorOptions()) -> Predictor:  # noqa: B008  (frozen)
        """Makes the bundle ready to map; raises a SettingsError if the options do not fit."""
        if self.spec.name in TABLES:
            maps, model = {name: one.arrays for name, one in self.maps.items()}, cast(Any, self.model)
            windows, complete = model.pixel_settings.windows, self.with_features
            return TablePredictor(
                self.description, model.tables, windows, maps, lambda: self.digest, options, complete
            )  # fmt: skip
        self.eval()
        return TorchPredictor(self, options)

    def with_features(self, scene: Scene) -> Scene:
        """The scene with its diffusion features, where the model takes some."""
        return scene if self.features is None else scene.with_modalities(self.features.of(scene))

    @property
    def digest(self) -> str:
        """SHA-256 of all that the bundle holds."""
        words, tensors = self.packed()
        named = ((f"{name} {one.dtype} {list(one.shape)}", one) for name, one in sorted(tensors.items()))
        return digest_of(words, ((title, one.flatten().view(torch.uint8).numpy().tobytes()) for title, one in named))

    def packed(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the files hold: words and numbers for the JSON file, and tensors by name."""
        description = self.description.packed({name: list(m.weight.shape) for name, m in self.maps.items()})
        description["frozen"] = self.model.frozen_reference()
        network = self.model.network if isinstance(self.model, WithPlaceholders) else self.model
        package = package_of(type(network))
        if package is not None:
            description["package"] = package._asdict()
        state = {f"model.{name}": tensor for name, tensor in self.model.trained_state().items()}
        state |= {f"pixel_maps.{name}": tensor for name, tensor in self.pixel_maps.state_dict().items()}
        state |= {f"attached.{name}": torch.from_numpy(values) for name, values in self.attached.items()}
        if self.features is not None:
            tensors, description["denoiser"] = self.features.denoiser.packed()
            state |= {f"denoiser.{name}": tensor for name, tensor in tensors.items()}
            description["features"] = self.features.settings.model_dump(mode="json", exclude={"cache"})
        return description, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes the bundle; an older one in the folder is replaced, and stays whole if writing fails.

        Raises:
            OutputError: if it cannot be written, or other files of these names are there and `overwrite` is not set.
        """
        folder = Path(folder)
        for name in ("model.json", "model.safetensors"):
            check_replaceable(folder / name, '"landfuse":', overwrite)
        log_replaced([folder / "model.json"])
        description, tensors = self.packed()
        # Cloned, since safetensors refuses tensors that share memory (tied weights).
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        with whole_file(folder / "model.safetensors") as weights, whole_file(folder / "model.json") as words:
            try:
                safetensors.torch.save_file(tensors, weights, metadata={"landfuse": str(description["format"])})
            except SafetensorError as error:
                raise unwritable(folder / "model.safetensors", error) from None
            description["weights"] = sha256_of(weights)
            words.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
