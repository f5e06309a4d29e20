"""Reading a bundle's files without torch: `model.json` (words and numbers) and `model.safetensors` (all tensors).

No pickled code runs, and nothing is imported that a file names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
from pydantic import Field
from safetensors import SafetensorError

from landfuse.bundles.description import FORMAT, ModelSpec
from landfuse.diffusion.settings import FeatureSettings
from landfuse.errors import BundleError
from landfuse.files import sha256_of
from landfuse.legend import LandClass, Legend
from landfuse.models import SETTINGS
from landfuse.rasters.windows import CoreWeights
from landfuse.scenes.scene import ModalityInfo
from landfuse.settings import parse

if TYPE_CHECKING:
    from landfuse.models.base import FusionModel

log = logging.getLogger(__name__)

_Tensors = TypeVar("_Tensors")


class _Part(pydantic.BaseModel, strict=True):
    """A part of `model.json`: what it holds is taken as it is, never converted."""


class _Model(_Part):
    name: str
    settings: dict[str, Any]


class Package(_Part):
    """What a model that is not landfuse's own is installed with."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")


class _Tiling(_Part):
    view: int = Field(default=1, ge=1)
    core: int = Field(default=1, ge=1)
    stride: int = Field(ge=1)
    weights: CoreWeights = "uniform"


class ModelFile(_Part):
    """What `model.json` holds."""

    weights: str | None = None
    """SHA-256 of `model.safetensors`; bundles of earlier versions have none."""

    model: _Model
    package: Package | None = None  # of a model that is not landfuse's own
    modalities: dict[str, ModalityInfo]
    pixel_maps: dict[str, Annotated[tuple[int, ...], Field(min_length=1, max_length=2)]]
    legend: list[LandClass]
    frozen: dict[str, str] | None = None
    tiling: _Tiling
    roles: dict[str, str] | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    droppable: tuple[str, ...] = ()
    cross_validation: dict[str, Any] | None = None
    notes: dict[str, dict[str, Any]] = {}
    denoiser: dict[str, Any] | None = None
    features: dict[str, Any] | None = None

    @property
    def needed(self) -> dict[str, ModalityInfo]:
        """What a scene must have: all modalities but those that are computed from it."""
        computed = parse(FeatureSettings, self.features, "the features").names if self.features else ()
        return {name: info for name, info in self.modalities.items() if name not in computed}

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> ModelFile:
        Legend(tuple(self.legend))
        bands = {name: info.bands for name, info in self.modalities.items()}
        if bands != {name: shape[-1] for name, shape in self.pixel_maps.items()}:
            raise ValueError("the pixel maps are not those of the modalities")
        wrong = [name for name, info in self.modalities.items() if not info.bands > 0 < info.zoom]
        if wrong or not set(self.droppable) <= bands.keys():
            raise ValueError(f"bands, zoom or name of {', '.join(wrong or self.droppable)}")
        return self


_File = TypeVar("_File", bound=ModelFile)


def bundle_folder(path: str | Path) -> Path:
    """The folder of a bundle: the one that is named, or `bundle/` within it where a run folder is named."""
    inside = Path(path) / "bundle"
    return inside if not (Path(path) / "model.json").exists() and (inside / "model.json").exists() else Path(path)


def onnx_file(path: Path) -> Path | None:
    """The ONNX file that a path names, itself or as a folder that holds `model.onnx` and no other bundle."""
    if path.is_file():
        return path
    inside, others = path / "model.onnx", (path / "model.json", path / "bundle" / "model.json")
    return inside if inside.is_file() and not any(one.exists() for one in others) else None


def read_json(folder: Path) -> ModelFile:
    """Reads `model.json`; raises a BundleError."""
    try:
        text = (folder / "model.json").read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(folder, error) from None
    except ValueError as error:
        raise damaged(folder, error) from None
    known = parse_json(text, folder, ModelFile)
    if known.weights is None:  # then the pixel size is in units of the CRS
        known.modalities = {name: replace(info, metres=0.0) for name, info in known.modalities.items()}
    return known


def parse_json(text: str, place: Path, kind: type[_File]) -> _File:
    """What `model.json` says, or the like in another file; raises a BundleError that names the place."""
    try:
        values = json.loads(text)
        if values["format"] > FORMAT:
            raise BundleError(
                f"{place} has format {values['format']}, of landfuse {values['landfuse']}",
                f"format {FORMAT} or older, which landfuse {version('landfuse')} reads",
                "update landfuse: pip install -U landfuse",
            )
        return kind.model_validate_json(text)
    except BundleError:
        raise
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise damaged(place, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(place, error) from None


def saved_spec(known: ModelFile, kind: type[FusionModel] | None = None) -> ModelSpec:
    """The model of a bundle, with the settings that it is older than."""
    settings = (SETTINGS[known.model.name] if kind is None else kind.Settings).written_out(
        known.model.settings, saved=True
    )
    return ModelSpec(known.model.name, settings, kind)


def read_tensors(folder: Path, digest: str | None, load: Callable[[Path], _Tensors]) -> _Tensors:
    """Reads them by a function of safetensors, after a look at their digest; raises a BundleError."""
    try:
        if digest is None:
            log.warning(
                "%s is of an earlier landfuse: whether its weights are damaged, and whether names of bands, values and "
                "pixel size of a scene are the model's, is not checked", folder,
            )  # fmt: skip
        elif sha256_of(folder / "model.safetensors") != digest:
            raise damaged(folder, "model.safetensors is not the file that model.json was written with")
        return load(folder / "model.safetensors")
    except BundleError:
        raise
    except OSError as error:
        raise _unreadable(folder, error) from None
    except (SafetensorError, ValueError) as error:
        raise damaged(folder, error) from None


def _unreadable(folder: Path, error: OSError) -> BundleError:
    missing = [name for name in ("model.json", "model.safetensors") if not (folder / name).exists()]
    if not missing:
        return BundleError(f"the bundle {folder} cannot be read: {error}", "a bundle", "check the path")
    return BundleError(
        f"{folder} holds no bundle: there is no {' and no '.join(missing)}",
        "a folder with model.json and model.safetensors, as `landfuse train` writes it",
        "check the path, or whether the training ended",
    )


def damaged(folder: Path, error: object) -> BundleError:
    """The error of a bundle whose files contradict each other."""
    what, again = ("file", "export it again") if folder.suffix == ".onnx" else ("bundle", "train again")
    return BundleError(
        f"the {what} {folder} is broken: {str(error)[:300]}", f"a whole {what}", f"copy it again, or {again}"
    )
