"""A classifier: pixel maps and a model, which together turn raw pixels into logits; and the bundle that holds them.

A bundle is a folder of two files: `model.safetensors` (all tensors) and `model.json` (everything else in words and
numbers). Loading runs no pickled code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from landfuse.errors import BundleError, FaultsError, LandfuseError
from landfuse.files import unwritable, whole_file
from landfuse.layers.pixel_map import PixelMap
from landfuse.legend import LandClass, Legend
from landfuse.models import MODELS
from landfuse.models.base import FusionModel, Modality
from landfuse.scenes.scene import Scene
from landfuse.settings import parse

FORMAT = 1
"""Version of the bundle's layout; a newer one is refused."""


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
        config = parse(kind.Settings, self.settings, f"model `{self.name}`")
        if saved:
            config = kind.without_pretraining(config)
        return kind(modalities, classes, config)  # type: ignore[call-arg,arg-type]


class Classifier(nn.Module):
    """Raw pixels in, logits out.

    Args:
        spec: the model's name and settings.
        pixel_maps: name -> map, in the order of the modalities.
        notes: name -> what the training scene said.
        legend: the classes.
        stride: distance between windows in mapping, px; <= core.
        model: the network, where it was built before.
    """

    def __init__(
        self,
        spec: ModelSpec,
        pixel_maps: Mapping[str, PixelMap],
        notes: Mapping[str, ModalityNote],
        legend: Legend,
        stride: int | None = None,
        model: FusionModel | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.notes, self.legend = spec, dict(notes), legend
        self.pixel_maps = nn.ModuleDict(pixel_maps)
        modalities = {name: Modality(m.channels, notes[name].zoom) for name, m in pixel_maps.items()}
        self.model = spec.build(modalities, len(legend)) if model is None else model
        self.stride = stride or self.model.core
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

    def check(self, scene: Scene) -> None:
        """Checks that a scene is of the kind that the classifier was trained on.

        Raises:
            FaultsError: naming every modality that is missing or differs in bands, data type, units or zoom.
        """
        faults: list[LandfuseError] = []
        for name, known in self.notes.items():
            if name not in scene.modalities:
                faults.append(
                    BundleError(
                        f"the scene `{scene.name}` has no modality `{name}`",
                        f"the modalities of the training scene: {', '.join(self.notes)}",
                        "name it so in the scene file, or train without it",
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

    def save(self, folder: str | Path) -> None:
        """Writes the bundle; an older one in the folder is replaced, and stays whole if writing fails.

        Raises:
            OutputError: if it cannot be written.
        """
        folder = Path(folder)
        description = {
            "format": FORMAT,
            "landfuse": version("landfuse"),
            "model": {"name": self.spec.name, "settings": self.spec.settings},
            "modalities": {name: asdict(n) for name, n in self.notes.items()},
            "pixel_maps": {name: list(m.weight.shape) for name, m in self.maps.items()},
            "legend": [asdict(c) for c in self.legend],
            "frozen": self.model.frozen_reference(),
            "tiling": {"view": self.model.view, "core": self.model.core, "stride": self.stride},
        }
        state = {f"model.{name}": tensor for name, tensor in self.model.trained_state().items()}
        state |= {f"pixel_maps.{name}": tensor for name, tensor in self.pixel_maps.state_dict().items()}
        # Cloned, since safetensors refuses tensors that share memory (tied weights).
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        with whole_file(folder / "model.safetensors") as weights, whole_file(folder / "model.json") as words:
            try:
                safetensors.torch.save_file(tensors, weights, metadata={"landfuse": str(FORMAT)})
            except SafetensorError as error:
                raise unwritable(folder / "model.safetensors", error) from None
            words.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def predict(self, scene: Scene, path: str | Path, **options: Any) -> Path:
        """Maps a scene into a GeoTIFF; see `landfuse.predict.predict` for the options."""
        from landfuse.predict import predict

        return predict(self, scene, path, **options)


def load_bundle(folder: str | Path) -> Classifier:
    """Loads a bundle that `Classifier.save` wrote; the logits are those of the saved one, bit for bit.

    Args:
        folder: the bundle, or a run folder that holds one in `bundle/`.

    Raises:
        BundleError: if it is missing, truncated, or written by a newer version.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists() and (folder / "bundle" / "model.json").exists():
        folder = folder / "bundle"
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise BundleError(
                f"the bundle {folder} has format {description['format']}, of landfuse {description['landfuse']}",
                f"format {FORMAT} or older, which landfuse {version('landfuse')} reads",
                "update landfuse: pip install -U landfuse",
            )
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        spec = ModelSpec(description["model"]["name"], description["model"]["settings"])
        if spec.name not in MODELS:
            raise BundleError(
                f"the bundle {folder} holds the model `{spec.name}`", f"one of {', '.join(MODELS)}", "update"
            )
        maps = {
            name: PixelMap(torch.empty(shape), torch.empty(shape[0]))
            for name, shape in description["pixel_maps"].items()
        }
        notes = {name: ModalityNote(**values) for name, values in description["modalities"].items()}
        legend = Legend(tuple(LandClass(**values) for values in description["legend"]))
        modalities = {name: Modality(m.channels, notes[name].zoom) for name, m in maps.items()}
        model = spec.build(modalities, len(legend), saved=True)
        classifier = Classifier(spec, maps, notes, legend, description["tiling"]["stride"], model)
        if classifier.model.frozen_reference() != description.get("frozen"):
            raise BundleError(
                f"the bundle {folder} was trained on other frozen weights: {description.get('frozen')}",
                f"the weights that its settings name now: {classifier.model.frozen_reference()}",
                "put the file of that SHA-256 where the bundle's settings look for it",
            )
        classifier.pixel_maps.load_state_dict(_part(tensors, "pixel_maps."))
        classifier.model.load_trained_state(_part(tensors, "model."))
    except LandfuseError:
        raise
    except FileNotFoundError as error:
        missing = [name for name in ("model.json", "model.safetensors") if not (folder / name).exists()]
        raise BundleError(
            f"{folder} holds no bundle: {' and '.join(missing) or error} is missing",
            "a folder with model.json and model.safetensors, as `landfuse train` writes it",
            "check the path, or whether the training ended",
        ) from None
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be read: {error}", "a bundle", "check the path") from None
    except (ValueError, SafetensorError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise BundleError(
            f"the bundle {folder} is broken: {str(error)[:300]}", "a whole bundle", "copy it again, or train again"
        ) from None
    return classifier.eval()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
