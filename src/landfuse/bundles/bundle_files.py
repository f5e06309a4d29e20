"""Reading a bundle's files: `model.json` (all that is words and numbers) and `model.safetensors` (all tensors).

No pickled code runs, and nothing is imported that a file names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pydantic
import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from landfuse.bundles.bundle import FORMAT, Bundle, build_model
from landfuse.bundles.description import ModelSpec
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.errors import BundleError, MissingFileError
from landfuse.legend import LandClass, Legend
from landfuse.models import MODELS, checked, is_own, package_of, unknown
from landfuse.models.base import FusionModel, Modality
from landfuse.rasters.windows import CoreWeights
from landfuse.scenes.scene import ModalityInfo
from landfuse.settings import parse
from landfuse.views.pixel_map import PixelMap

log = logging.getLogger(__name__)


class _Part(pydantic.BaseModel, strict=True):
    """A part of `model.json`: what it holds is taken as it is, never converted."""


class _Model(_Part):
    name: str
    settings: dict[str, Any]


class _Package(_Part):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")


class _Tiling(_Part):
    stride: int = Field(ge=1)
    weights: CoreWeights = "uniform"


class _File(_Part):
    """What `model.json` holds."""

    weights: str | None = None
    """SHA-256 of `model.safetensors`; bundles of earlier versions have none."""

    model: _Model
    package: _Package | None = None  # of a model that is not landfuse's own
    modalities: dict[str, ModalityInfo]
    pixel_maps: dict[str, Annotated[tuple[int, ...], Field(min_length=1, max_length=2)]]
    legend: list[LandClass]
    frozen: dict[str, str] | None = None
    tiling: _Tiling
    roles: dict[str, str] | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    droppable: tuple[str, ...] = ()
    denoiser: dict[str, Any] | None = None
    features: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> _File:
        Legend(tuple(self.legend))
        bands = {name: info.bands for name, info in self.modalities.items()}
        if bands != {name: shape[-1] for name, shape in self.pixel_maps.items()}:
            raise ValueError("the pixel maps are not those of the modalities")
        wrong = [name for name, info in self.modalities.items() if not info.bands > 0 < info.zoom]
        if wrong or not set(self.droppable) <= bands.keys():
            raise ValueError(f"bands, zoom or name of {', '.join(wrong or self.droppable)}")
        return self


def bundle_folder(path: str | Path) -> Path:
    """The folder of a bundle: the one that is named, or `bundle/` within it where a run folder is named."""
    inside = Path(path) / "bundle"
    return inside if not (Path(path) / "model.json").exists() and (inside / "model.json").exists() else Path(path)


def load_bundle(folder: str | Path, *, model: type[FusionModel] | None = None) -> Bundle:
    """Loads a bundle; its logits are those of the saved one, bit for bit.

    Args:
        folder: the bundle, or a run folder that holds one in `bundle/`.
        model: the class of its model, where that is one of your own that no installed package offers.

    Raises:
        BundleError: if it is missing, damaged, written by a newer version, or of a model that is not known here.
        MissingFileError: if the frozen weights that it refers to are not there.

    Examples:
        >>> lf.load_bundle("runs/first").description.spec.name
        'forest'
    """
    folder = bundle_folder(folder)
    description = _read_json(folder)
    tensors = _read_tensors(folder, description.weights)
    spec = ModelSpec(description.model.name, description.model.settings, model)
    _check_model(folder, spec, description.package)
    maps = {name: PixelMap(torch.empty(shape), torch.empty(shape[0])) for name, shape in description.pixel_maps.items()}
    modalities = {name: Modality(m.channels, description.modalities[name].zoom) for name, m in maps.items()}
    features = None
    if description.features is not None and description.denoiser is not None:
        denoiser = TrainedDenoiser.unpacked(_part(tensors, "denoiser."), description.denoiser)
        settings = parse(FeatureSettings, description.features, f"the features of the bundle {folder}")
        features = DiffusionFeatures(denoiser, settings)
    legend = Legend(tuple(description.legend))
    try:
        network = build_model(spec, modalities, len(legend), saved=True)
    except MissingFileError as error:
        raise MissingFileError(
            f"the bundle {folder} refers to frozen weights that are not here: {error.found}",
            f"the file of SHA-256 {(description.frozen or {}).get('sha256')}; {error.expected}",
            f"{error.do}; or make a bundle that needs none, where they are: landfuse export",
        ) from None
    bundle = Bundle(
        spec, maps, description.modalities, legend, description.tiling.stride, network, description.tiling.weights,
        features, description.droppable,
    )  # fmt: skip
    bundle.temperature, bundle.roles = description.temperature, description.roles
    known, here = description.frozen or {}, bundle.model.frozen_reference() or {}
    if known != here:
        raise BundleError(
            f"the bundle {folder} was trained on other frozen weights than those of {here.get('address')}",
            f"the SHA-256 {known.get('sha256')} ({known.get('address')}), not {here.get('sha256')}",
            "put that file there; or make a bundle that needs none, where it is: landfuse export",
        )
    try:
        bundle.pixel_maps.load_state_dict(_part(tensors, "pixel_maps."))
        bundle.model.load_trained_state(_part(tensors, "model."))
    except (RuntimeError, KeyError, ValueError) as error:  # tensors of other names or shapes
        raise _damaged(folder, error) from None
    broken = [name for name, tensor in bundle.named_parameters() if not torch.isfinite(tensor).all()]
    broken += [name for name, tensor in bundle.named_buffers() if torch.isnan(tensor).any()]
    if broken:
        raise _damaged(folder, f"its weights {', '.join(broken[:5])} hold numbers that are not finite")
    if description.weights is None:
        log.warning(
            "%s is of an earlier landfuse: whether its weights are damaged, and whether names of bands, values and "
            "pixel size of a scene are the model's, is not checked", folder,
        )  # fmt: skip
    return bundle.eval()


def _check_model(folder: Path, spec: ModelSpec, package: _Package | None) -> None:
    """Finds the model's class by its name, or in what the user gave; never by importing what the bundle names.

    Raises:
        BundleError: if there is none.
    """
    name, holds = spec.name, f"the bundle {folder} holds the model `{spec.name}`"
    if spec.kind is not None:
        checked(name, spec.kind)
    if spec.kind is not None and is_own(name) and spec.kind is not MODELS[name]:
        raise BundleError(
            f"{holds}, which is landfuse's own, and {spec.kind.__qualname__} was passed for it",
            "no class, or that of the bundle's model",
            "leave out the model",
        )
    if spec.kind is None and name not in MODELS:
        if package is None:
            raise BundleError(holds, f"one of {', '.join(MODELS)}, or its class", unknown(name))
        raise BundleError(
            f"{holds} of the package {package.name} {package.version}, which does not offer it here",
            "that package installed, or the model's class by --model or load_bundle(folder, model=...)",
            f"pip install {package.name}=={package.version}, if you trust it",
        )
    if package is None:
        return
    here = package_of(spec.kind or MODELS[name])
    if here != (package.name, package.version):
        log.warning(
            "%s: its model `%s` is of %s %s, and here of %s: the map may differ",
            folder, name, package.name, package.version, f"{here.name} {here.version}" if here else "no package",
        )  # fmt: skip


def _read_json(folder: Path) -> _File:
    path = folder / "model.json"
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if values["format"] > FORMAT:
            raise BundleError(
                f"the bundle {folder} has format {values['format']}, of landfuse {values['landfuse']}",
                f"format {FORMAT} or older, which landfuse {version('landfuse')} reads",
                "update landfuse: pip install -U landfuse",
            )
        known = _File.model_validate_json(text)
        if known.weights is None:  # then the pixel size is in units of the CRS
            known.modalities = {name: replace(info, metres=0.0) for name, info in known.modalities.items()}
        return known
    except BundleError:
        raise
    except OSError as error:
        raise _unreadable(folder, error) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise _damaged(folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None


def _read_tensors(folder: Path, digest: str | None) -> dict[str, Tensor]:
    try:
        if digest is not None:
            with (folder / "model.safetensors").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise _damaged(folder, "model.safetensors is not the file that model.json was written with")
        return safetensors.torch.load_file(folder / "model.safetensors")
    except BundleError:
        raise
    except OSError as error:
        raise _unreadable(folder, error) from None
    except (SafetensorError, ValueError) as error:
        raise _damaged(folder, error) from None


def _unreadable(folder: Path, error: OSError) -> BundleError:
    missing = [name for name in ("model.json", "model.safetensors") if not (folder / name).exists()]
    if not missing:
        return BundleError(f"the bundle {folder} cannot be read: {error}", "a bundle", "check the path")
    return BundleError(
        f"{folder} holds no bundle: {' and '.join(missing)} is missing",
        "a folder with model.json and model.safetensors, as `landfuse train` writes it",
        "check the path, or whether the training ended",
    )


def _damaged(folder: Path, error: object) -> BundleError:
    return BundleError(
        f"the bundle {folder} is broken: {str(error)[:300]}", "a whole bundle", "copy it again, or train again"
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
