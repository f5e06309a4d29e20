"""The files of a bundle: `model.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from landfuse.bundles.bundle import FORMAT, Bundle, ModalityNote, ModelSpec
from landfuse.diffusion.features import DiffusionFeatures, FeatureSettings
from landfuse.diffusion.patch_features import built_with
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.errors import BundleError, LandfuseError, MissingFileError
from landfuse.legend import LandClass, Legend
from landfuse.models import MODELS
from landfuse.models.base import Modality
from landfuse.views.pixel_map import PixelMap


def bundle_folder(path: str | Path) -> Path:
    """The folder of a bundle: the one that is named, or `bundle/` within it where a run folder is named."""
    inside = Path(path) / "bundle"
    return inside if not (Path(path) / "model.json").exists() and (inside / "model.json").exists() else Path(path)


def load_bundle(folder: str | Path) -> Bundle:
    """Loads a bundle that `Bundle.save` wrote; the logits are those of the saved one, bit for bit.

    Args:
        folder: the bundle, or a run folder that holds one in `bundle/`.

    Raises:
        BundleError: if it is missing, truncated, or written by a newer version.
    """
    folder = bundle_folder(folder)
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
        features = None
        if description.get("features") is not None:
            denoiser = TrainedDenoiser.unpacked(_part(tensors, "denoiser."), description["denoiser"])
            features = DiffusionFeatures(denoiser, FeatureSettings(**description["features"]))
        try:
            model = built_with(features, modalities, lambda seen: spec.build(seen, len(legend), saved=True))
        except MissingFileError as error:
            raise MissingFileError(
                f"the bundle {folder} refers to frozen weights that are not here: {error.found}",
                f"the file of SHA-256 {(description.get('frozen') or {}).get('sha256')}; {error.expected}",
                f"{error.do}; or make a bundle that needs none, where they are: landfuse export",
            ) from None
        tiling = description["tiling"]
        classifier = Bundle(
            spec,
            maps,
            notes,
            legend,
            tiling["stride"],
            model,
            tiling.get("weights", "uniform"),
            features,
            droppable=description.get("droppable", ()),
        )
        classifier.temperature = float(description.get("temperature", 1.0))
        known, here = description.get("frozen") or {}, classifier.model.frozen_reference() or {}
        if known != here:
            raise BundleError(
                f"the bundle {folder} was trained on other frozen weights than those of {here.get('address')}",
                f"the SHA-256 {known.get('sha256')} ({known.get('address')}), not {here.get('sha256')}",
                "put that file there; or make a bundle that needs none, where it is: landfuse export",
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
