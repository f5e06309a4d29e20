"""A bundle of PyTorch from its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from landfuse.bundles.bundle import Bundle, build_model
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.model_files import Package, bundle_folder, damaged, read_json, read_tensors, saved_spec
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.errors import BundleError, MissingFileError
from landfuse.legend import Legend
from landfuse.models import MODELS, checked, is_own, package_of, unknown
from landfuse.models.base import FusionModel
from landfuse.settings import parse
from landfuse.views.pixel_map import PixelMap

log = logging.getLogger(__name__)


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
    description = read_json(folder)
    tensors = read_tensors(folder, description.weights, safetensors.torch.load_file)
    _check_model(folder, ModelSpec(description.model.name, kind=model), description.package)
    spec = saved_spec(description, model)
    maps = {name: PixelMap(torch.empty(shape), torch.empty(shape[0])) for name, shape in description.pixel_maps.items()}
    modalities = {name: m.modality(description.modalities[name]) for name, m in maps.items()}
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
    bundle.cross_validation, bundle.notes = description.cross_validation, description.notes
    bundle.attached = {name: tensor.numpy() for name, tensor in _part(tensors, "attached.").items()}
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
        raise damaged(folder, error) from None
    broken = [name for name, tensor in bundle.named_parameters() if not torch.isfinite(tensor).all()]
    others = *bundle.named_buffers(), *_part(tensors, "attached.").items()
    broken += [name for name, tensor in others if torch.isnan(tensor).any()]
    if broken:
        raise damaged(folder, f"its weights {', '.join(broken[:5])} hold numbers that are not finite")
    return bundle.eval()


def _check_model(folder: Path, spec: ModelSpec, package: Package | None) -> None:
    """Finds the model's class by its name, or in what the user gave; never by importing what the bundle names."""
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


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
