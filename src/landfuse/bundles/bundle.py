"""A classifier: pixel maps and a model, which together turn raw pixels into logits; and the bundle that holds them.

A bundle is a folder of two files: `model.safetensors` (all tensors) and `model.json` (everything else in words and
numbers). Loading runs no pickled code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.patch_features import built_with
from landfuse.errors import BundleError, FaultsError, LandfuseError, SettingsError
from landfuse.files import unwritable, whole_file
from landfuse.legend import Legend
from landfuse.models import MODELS
from landfuse.models.base import FusionModel, Modality
from landfuse.models.placeholders import WithPlaceholders
from landfuse.rasters.windows import CoreWeights
from landfuse.scenes.scene import Scene, without_data
from landfuse.settings import parse
from landfuse.views.pixel_map import PixelMap

FORMAT = 2
"""Version of the bundle's layout; a newer one is refused. 2: placeholders."""


@dataclass(frozen=True)
class ModalityNote:
    """What the training scene said of one modality; a new scene is checked against it.

    Args:
        bands: number of bands.
        dtype: of the file.
        units: as in the scene file.
        zoom: how many times finer than the scene's grid.
        metres: pixel size of the scene's grid divided by zoom, in CRS units; 0 where there is no CRS.
    """

    bands: int
    dtype: str
    units: str
    zoom: int
    metres: float = 0.0


def note(scene: Scene, modality: str) -> ModalityNote:
    """What there is to note of a scene's modality."""
    part = scene.modalities[modality]
    size = scene.grid.pixel_size[0] / part.zoom if scene.grid.crs else 0.0
    return ModalityNote(part.raster.bands, part.raster.dtype, part.units, part.zoom, size)


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and its settings as plain values."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, modalities: Mapping[str, Modality], classes: int, *, saved: bool = False) -> FusionModel:
        """Makes the model, with the weights that training starts from.

        Args:
            modalities: name -> channels and zoom.
            classes: K.
            saved: those of a bundle are loaded next, so that none need be fetched.

        Raises:
            SettingsError: if its settings are wrong.
            ModelError: if it cannot take these modalities.
        """
        kind = MODELS[self.name]
        config = parse(kind.Settings, self.settings, f"model `{self.name}`", saved=saved)
        if saved:
            config = kind.without_pretraining(config)
        return kind(modalities, classes, config)  # type: ignore[call-arg,arg-type]


class Bundle(nn.Module):
    """Raw pixels in, logits out.

    Args:
        spec: the model's name and settings.
        pixel_maps: name -> map, in the order of the modalities.
        notes: name -> what the training scene said.
        legend: the classes.
        stride: distance between windows in mapping, px; <= core.
        weights: how much a window counts where cores overlap.
        model: the network, where it was built before.
        features: what is appended to a scene before the model sees it.
        droppable: modalities that the model learns to do without; placeholders stand in for them.

    Attributes:
        temperature: what logits are divided by on their way to probabilities; fitted on validation (`calibration`).
    """

    def __init__(
        self,
        spec: ModelSpec,
        pixel_maps: Mapping[str, PixelMap],
        notes: Mapping[str, ModalityNote],
        legend: Legend,
        stride: int | None = None,
        model: FusionModel | None = None,
        weights: CoreWeights = "uniform",
        features: DiffusionFeatures | None = None,
        droppable: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.features = features
        self.spec, self.notes, self.legend = spec, dict(notes), legend
        self.temperature = 1.0
        self.pixel_maps = nn.ModuleDict(pixel_maps)
        modalities = {name: Modality(m.channels, notes[name].zoom) for name, m in pixel_maps.items()}
        built = model or built_with(features, modalities, lambda seen: spec.build(seen, len(legend)))
        names = [name for name in pixel_maps if name in set(droppable)]
        self.model = WithPlaceholders(built, names) if names else built
        for name in names:
            self.maps[name].instead = math.nan
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

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Logits of raw pixels.

        Args:
            images: name -> (B, C, view * zoom, view * zoom), in the modality's units, NaN where there is no data.

        Returns:
            (B, K, core, core).
        """
        mapped = {
            name: pixel_map(images[name].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for name, pixel_map in self.maps.items()
        }
        logits: Tensor = self.model(mapped)
        return logits

    @property
    def needed(self) -> tuple[str, ...]:
        """The modalities that a scene must have: all but those that `prepare` appends."""
        appended = self.features.appended if self.features is not None else ()
        return tuple(name for name in self.notes if name not in appended)

    @property
    def droppable(self) -> tuple[str, ...]:
        """The modalities that it learnt to do without."""
        return tuple(self.model.placeholders) if isinstance(self.model, WithPlaceholders) else ()

    def fill_mean(self, *names: str) -> None:
        """Lets the training mean stand in for modalities where they have no data, and maps there.

        Until it is loaded anew. A model that did not learn to do without them may go far astray.

        Raises:
            SettingsError: if it has no such modality.
        """
        unknown = [name for name in names if name not in self.needed]
        if unknown:
            raise SettingsError(f"the model has no modality {', '.join(unknown)}", ", ".join(self.needed), "mend it")
        for name in names:
            self.maps[name].instead = 0.0

    def complete(self, scene: Scene, only: Collection[str] | None = None) -> Scene:
        """The scene with what it lacks, but the model can do without, as modalities without data.

        Args:
            scene: what is to be mapped.
            only: names of these; by default all that were dropped in training, or that `fill_mean` was called for.
                `check` refuses other gaps.
        """
        for name in self.needed if only is None else only:
            if name not in scene.modalities and self.maps[name].instead is not None:
                scene = self.without(scene, name)
        return scene

    def without(self, scene: Scene, modality: str) -> Scene:
        """The scene with one modality of the model's as if it had no data anywhere."""
        known = self.notes[modality]
        return without_data(scene, modality, bands=known.bands, dtype=known.dtype, zoom=known.zoom, units=known.units)

    def prepare(self, scene: Scene) -> Scene:
        """The scene with the features that the model takes beside its modalities; itself where it takes none.

        Raises:
            BundleError: if the scene lacks what the features are computed from.
            OutputError: if the features cannot be kept.
        """
        return scene if self.features is None else self.features.append([scene])[0]

    def check(self, scene: Scene) -> None:
        """Checks that a scene, prepared or not, is of the kind that the classifier was trained on.

        Raises:
            FaultsError: naming every modality that is missing or differs in bands, data type, units or zoom.
        """
        faults: list[LandfuseError] = []
        for name in self.needed:
            known = self.notes[name]
            if name not in scene.modalities:
                faults.append(
                    BundleError(
                        f"the scene `{scene.name}` has no modality `{name}`",
                        f"the modalities of the training scene: {', '.join(self.needed)}",
                        "name it so in the scene file; or map without it, which the model has learnt: --allow-missing"
                        if name in self.droppable
                        else "name it so in the scene file; or train without it, or with samples.modality_dropout; "
                        f"or let its training mean stand in, at your own risk: --mean-for {name}",
                    )
                )
                continue
            found = note(scene, name)
            for what, unit in (
                ("bands", "bands"),
                ("zoom", "as zoom"),
                ("units", "as units"),
                ("dtype", "as data type"),
            ):
                if getattr(found, what) != getattr(known, what):
                    faults.append(
                        BundleError(
                            f"the model was trained on {getattr(known, what)!r} {unit} of `{name}`, this scene has "
                            f"{getattr(found, what)!r}",
                            "a scene of the same kind as the training scene",
                            f"mend `modalities: {name}:` in the scene file (bands, scale, units), or train anew",
                        )
                    )
        if faults:
            raise FaultsError(faults)

    def packed(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a bundle holds: words and numbers for its JSON file, and tensors by name."""
        description: dict[str, Any] = {
            "format": FORMAT if self.droppable else 1,  # without placeholders, older versions read it right
            "landfuse": version("landfuse"),
            "model": {"name": self.spec.name, "settings": self.spec.settings},
            "modalities": {name: asdict(n) for name, n in self.notes.items()},
            "pixel_maps": {name: list(m.weight.shape) for name, m in self.maps.items()},
            "legend": [asdict(c) for c in self.legend],
            "frozen": self.model.frozen_reference(),
            "tiling": {
                "view": self.model.view,
                "core": self.model.core,
                "stride": self.stride,
                "weights": self.weights,
            },
            "temperature": self.temperature,
            "droppable": list(self.droppable),
        }
        state = {f"model.{name}": tensor for name, tensor in self.model.trained_state().items()}
        state |= {f"pixel_maps.{name}": tensor for name, tensor in self.pixel_maps.state_dict().items()}
        if self.features is not None:
            tensors, description["denoiser"] = self.features.denoiser.packed()
            state |= {f"denoiser.{name}": tensor for name, tensor in tensors.items()}
            description["features"] = self.features.settings.model_dump(mode="json", exclude={"cache"})
        return description, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def save(self, folder: str | Path) -> None:
        """Writes the bundle; an older one in the folder is replaced, and stays whole if writing fails.

        Raises:
            OutputError: if it cannot be written.
        """
        folder = Path(folder)
        description, tensors = self.packed()
        # Cloned, since safetensors refuses tensors that share memory (tied weights).
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        with whole_file(folder / "model.safetensors") as weights, whole_file(folder / "model.json") as words:
            try:
                safetensors.torch.save_file(tensors, weights, metadata={"landfuse": str(description["format"])})
            except SafetensorError as error:
                raise unwritable(folder / "model.safetensors", error) from None
            words.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
