"""A forest's bundle, run by numpy alone; and the choice between it and a bundle of PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from landfuse.bundles.description import Description, ModelSpec, digest_of
from landfuse.bundles.model_files import bundle_folder, damaged, read_json, read_tensors
from landfuse.bundles.predictor import About, Model
from landfuse.bundles.settings import PredictorOptions
from landfuse.legend import Legend
from landfuse.models.forest_trees import Trees, channels_of
from landfuse.models.settings import ForestSettings
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import parse
from landfuse.views.pixel_arrays import PixelArrays

if TYPE_CHECKING:
    from landfuse.models.base import FusionModel

_STRIP = 1 << 16
"""Pixels that are mapped at once."""


def load_model(folder: str | Path, *, model: type[FusionModel] | None = None) -> Model:
    """Loads what maps: a forest without torch, any other model as `load_bundle` does; for its arguments see there."""
    folder = bundle_folder(folder)
    known = read_json(folder)
    if known.model.name == "forest" and model is None and known.features is None:
        return ForestBundle(folder)
    from landfuse.bundles.bundle_files import load_bundle

    return load_bundle(folder, model=model)


class ForestBundle:
    """A `Model`: the bundle of a forest.

    Args:
        folder: of its files.

    Raises:
        BundleError: if they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        known = read_json(folder)
        self.folder, self._tensors = folder, read_tensors(folder, known.weights, safetensors.numpy.load_file)
        parse(ForestSettings, known.model.settings, "model `forest`", saved=True)
        self.description = Description(
            ModelSpec("forest", known.model.settings), known.modalities, (), Legend(tuple(known.legend)), 1, 1, 1,
            known.tiling.weights, known.temperature, roles=known.roles, cross_validation=known.cross_validation,
        )  # fmt: skip
        try:
            self._maps, trees = {}, {name: self._tensors[f"model.{name}"] for name in Trees.__annotations__}
            for name in known.modalities:
                weight, bias, clip = (self._tensors[f"pixel_maps.{name}.{part}"] for part in ("weight", "bias", "clip"))
                self._maps[name] = PixelArrays(weight, bias, float(clip))
        except KeyError as error:
            raise damaged(folder, error) from None
        self._trees = Trees(**{**trees, "depth": int(trees["depth"])})
        shapes = {name: one.weight.shape for name, one in self._maps.items()}
        if shapes != known.pixel_maps or self._trees.share.shape[2:] != (len(known.legend),):
            raise damaged(folder, "its tensors have other shapes than model.json says")
        broken = [name for name, one in self._tensors.items() if np.isnan(one).any()]
        if broken:
            raise damaged(folder, f"its weights {', '.join(broken[:5])} hold numbers that are not finite")

    def predictor(self, options: PredictorOptions = PredictorOptions()) -> ForestPredictor:  # noqa: B008  (frozen)
        """Makes it ready to map; raises a SettingsError if the options do not fit."""
        return ForestPredictor(self.description, self._trees, self._maps, lambda: self.digest, options)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds; that of the same `Bundle` of PyTorch."""
        words = self.description.packed({name: list(one.weight.shape) for name, one in self._maps.items()})
        named = sorted(self._tensors.items())
        return digest_of(words, ((f"{name} torch.{one.dtype} {list(one.shape)}", one.tobytes()) for name, one in named))

    def save(self, folder: str | Path) -> None:
        """Copies its files."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


class ForestPredictor:
    """A `Predictor` of a forest, whatever device the options name.

    Args:
        description: of the bundle.
        trees: the forest.
        pixel_maps: name -> map of each input.
        digest: SHA-256 of the bundle, computed when it is asked for.
        options: how it is run.

    Raises:
        SettingsError: if layers are asked for, which a forest does not have.
    """

    def __init__(
        self,
        description: Description,
        trees: Trees,
        pixel_maps: Mapping[str, PixelArrays],
        digest: Callable[[], str],
        options: PredictorOptions,
    ) -> None:
        description.check_layers(options)
        self.description, self._trees, self._maps, self._digest = description, trees, pixel_maps, digest
        self.stand_ins = description.stand_ins(options)
        self.channels = {name: len(one.weight) for name, one in pixel_maps.items()}
        self.nbytes = sum(one.nbytes for one in (trees.branches, trees.feature, trees.threshold, trees.share))
        self.about = About("Forest", 0, "NumPy", np.__version__)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the logits follow from beside the scene."""
        return {"the model": self._digest(), "the version": f"landfuse {version('landfuse')}, numpy {np.__version__}"}

    def complete(self, scene: Scene) -> Scene:
        """The scene: a forest has no inputs that are computed."""
        return scene

    def prepare(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the trees compare of each pixel, (height, width, channels)."""
        zoom, own = self.description.inputs[name].zoom, self._maps[name]
        height, width = values.shape[1] // zoom, values.shape[2] // zoom
        found = np.empty((height, width, len(own.weight) * (1 if zoom == 1 else 2)), np.float32)
        step = max(1, _STRIP // (width * zoom**2))
        for row in range(0, height, step):
            strip = values[:, row * zoom : (row + step) * zoom]
            mapped = own(strip.reshape(len(strip), -1).T, self.stand_ins.get(name))
            image = mapped.T.reshape(1, -1, *strip.shape[1:])
            found[row : row + step] = channels_of({name: image}, {name: zoom}).reshape(-1, width, found.shape[2])
        return found

    def logits(
        self, window: Window, prepared: Mapping[str, Any], batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.float32]]:
        """Labels windows, which are pixels, batch by batch."""
        for places in batches:
            rows, cols = (places - (window.row, window.col)).T
            pixels = np.concatenate([prepared[name][rows, cols] for name in self._maps], axis=1)
            yield self._trees.logits(pixels)[:, :, None, None]
