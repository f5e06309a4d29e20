"""Bundles of models that are tables of numbers, run by numpy alone; and the choice between them and PyTorch's."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import cached_property
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from landfuse.bundles.description import Description, digest_of
from landfuse.bundles.model_files import (
    ModelFile,
    bundle_folder,
    damaged,
    onnx_file,
    read_json,
    read_tensors,
    saved_spec,
)
from landfuse.bundles.predictor import About, Model
from landfuse.bundles.settings import PredictorOptions
from landfuse.legend import Legend
from landfuse.models import SETTINGS
from landfuse.models.pixel_tables import TABLES, Tables, depth_of, features_of
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import parse
from landfuse.views.pixel_arrays import PixelArrays

if TYPE_CHECKING:
    from landfuse.models.base import FusionModel

_STRIP, _TILE = 1 << 19, 1 << 22
"""Numbers that are mapped, and features that are computed, at once."""

_LANES = 64
"""Logits of a tile's pixels are computed in multiples: NumPy may round the rest of an array in another way."""


def load_model(folder: str | Path, *, model: type[FusionModel] | None = None) -> Model:
    """Loads what maps: tables and ONNX files without torch, any other model as `load_bundle` does; see there."""
    file = onnx_file(Path(folder))
    if file is not None:
        from landfuse.bundles.onnx_model import OnnxModel

        return OnnxModel(file)
    folder = bundle_folder(folder)
    known = read_json(folder)
    if known.model.name in TABLES and model is None and known.features is None:
        return TableBundle(folder)
    from landfuse.bundles.bundle_files import load_bundle

    return load_bundle(folder, model=model)


def describe_model(path: str | Path) -> dict[str, Any]:
    """What a saved model takes and returns, as plain values: of any model, without its weights and without torch.

    Returns:
        `model`, its name; `needs_torch`; `modalities`, as a scene must have them, each with the fields of
        `ModalityInfo` but `values`, and `required`; `classes` with code, name and colour.

    Raises:
        BundleError: if there is no model, or its files are damaged.
    """
    file = onnx_file(Path(path))
    if file is not None:
        from landfuse.bundles.onnx_model import OnnxModel

        known: ModelFile = OnnxModel(file).file
    else:
        known = read_json(bundle_folder(path))
    needs_torch = file is None and (known.model.name not in TABLES or known.features is not None)
    modalities = {
        name: {**asdict(info), "required": name not in known.droppable} for name, info in known.needed.items()
    }
    for one in modalities.values():
        del one["values"]
    classes = [{"code": c.code, "name": c.name, "colour": c.colour} for c in known.legend]
    return {"model": known.model.name, "needs_torch": needs_torch, "modalities": modalities, "classes": classes}


class TableBundle:
    """A `Model`: the bundle of one of `TABLES`.

    Raises:
        BundleError: if they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        known = read_json(folder)
        self.folder, self._tensors = folder, read_tensors(folder, known.weights, safetensors.numpy.load_file)
        kind = TABLES[known.model.name]
        spec = saved_spec(known)
        settings = parse(SETTINGS[spec.name], spec.settings, f"model `{spec.name}`", saved=True)
        self.description = Description(
            spec, known.modalities, (), Legend(tuple(known.legend)), getattr(settings, "view", 1), 1, 1,
            known.tiling.weights, known.temperature, known.droppable, roles=known.roles,
            cross_validation=known.cross_validation, notes=known.notes,
            attached={n.removeprefix("attached."): v for n, v in self._tensors.items() if n.startswith("attached.")},
        )  # fmt: skip
        self._windows: tuple[int, ...] = getattr(settings, "windows", ())
        try:
            self._maps, tables = {}, {one.name: self._tensors[f"model.{one.name}"] for one in fields(kind)}
            for name, info in known.modalities.items():
                weight, bias, clip = (self._tensors[f"pixel_maps.{name}.{part}"] for part in ("weight", "bias", "clip"))
                self._maps[name] = PixelArrays(weight, bias, float(clip), info.per_step > 0)
        except KeyError as error:
            raise damaged(folder, error) from None
        self._tables: Tables = kind(**tables)
        shapes = {name: one.weight.shape for name, one in self._maps.items()}
        if shapes != known.pixel_maps or self._tables.classes != len(known.legend):
            raise damaged(folder, "its tensors have other shapes than model.json says")
        broken = [name for name, one in self._tensors.items() if np.isnan(one).any()]
        if broken:
            raise damaged(folder, f"its weights {', '.join(broken[:5])} hold numbers that are not finite")

    def predictor(self, options: PredictorOptions = PredictorOptions()) -> TablePredictor:  # noqa: B008  (frozen)
        """Makes it ready to map; raises a SettingsError if the options do not fit."""
        return TablePredictor(self.description, self._tables, self._windows, self._maps, lambda: self.digest, options)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds; that of the same `Bundle` of PyTorch."""
        words = self.description.packed({name: list(one.weight.shape) for name, one in self._maps.items()})
        named = sorted(self._tensors.items())
        return digest_of(
            words, ((f"{name} torch.{one.dtype} {list(one.shape)}", one.reshape(-1).data) for name, one in named)
        )

    def save(self, folder: str | Path) -> None:
        """Copies its files."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


class TablePredictor:
    """A `Predictor` of tables, whatever device the options name.

    Args:
        tables: what the model learnt.
        windows: sides of the windows around a pixel that are features, px.
        pixel_maps: name -> map of each input.
        digest: SHA-256 of the bundle, computed when it is asked for.
        complete: adds the inputs that are computed from the scene.

    Raises:
        SettingsError: if layers are asked for, which no tables have.
    """

    view = 1
    on_gpu = False

    def __init__(
        self,
        description: Description,
        tables: Tables,
        windows: tuple[int, ...],
        pixel_maps: Mapping[str, PixelArrays],
        digest: Callable[[], str],
        options: PredictorOptions,
        complete: Callable[[Scene], Scene] = lambda scene: scene,
    ) -> None:
        description.check_layers(options)
        self.description, self.complete, self._tables, self._windows = description, complete, tables, windows
        self._maps, self._digest = pixel_maps, digest
        self.marks_missing = bool(windows) or tables.takes_dropped
        self.stand_ins = description.stand_ins(options)
        self._zooms = {name: description.inputs[name].zoom for name in pixel_maps}
        self.channels = {name: len(one.weight) for name, one in pixel_maps.items()}
        self._depth = sum(depth_of(self.channels[name], zoom, windows) for name, zoom in self._zooms.items())
        self.nbytes = sum(one.nbytes for one in vars(tables).values() if isinstance(one, np.ndarray))
        self.about = About(type(tables).__name__, 0, "NumPy", np.__version__)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the logits follow from beside the scene."""
        libraries = ["landfuse", "numpy", *(["torch"] if self.description.computed else [])]
        return {"the model": self._digest(), "the version": ", ".join(f"{name} {version(name)}" for name in libraries)}

    def prepare(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mapped values, (height * zoom, width * zoom, channels)."""
        found = np.empty((*values.shape[1:], self.channels[name]), np.float32)
        step = max(1, _STRIP // found[0].size)
        stand_in, missing = self.stand_ins.get(name), math.nan if self.marks_missing else 0.0
        for row in range(0, len(found), step):
            strip = values[:, row : row + step]
            mapped = self._maps[name](strip.reshape(len(strip), -1).T, stand_in, missing)
            found[row : row + step] = mapped.reshape(-1, *found.shape[1:])
        return found

    def logits(
        self, window: Window, prepared: Mapping[str, Any], batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.float32]]:
        """Labels windows, whose cores are pixels, batch by batch, while the features of the next are computed."""
        with ThreadPoolExecutor(1, thread_name_prefix="features") as ahead:
            started: Iterator[Any] = (
                (tile, ahead.submit(self._features, prepared, tile.places)) for tile in self._tiles(window, batches)
            )
            for (tile, features), _ in pairwise(chain(started, [None])):
                tile.found[tile.own] = self._tables.logits(features.result())
                if tile.last:
                    yield tile.found[:, :, None, None]

    def _tiles(self, window: Window, batches: Iterable[NDArray[np.int64]]) -> Iterator[_Tile]:
        halo = self.description.halo
        for corners in batches:
            places = corners - (window.row + halo, window.col + halo)
            rows, cols = (places - places.min(axis=0)).T
            height = min(int(rows.max()) + 1, math.isqrt(_TILE // self._depth) or 1)
            width = _TILE // (self._depth * height) or 1
            tiles = rows // height * window.width + cols // width
            found, every = np.empty((len(places), self._tables.classes), np.float32), np.unique(tiles)
            for tile in every:
                own = np.flatnonzero(tiles == tile)
                own = np.resize(own, -(-len(own) // _LANES) * _LANES)
                yield _Tile(places[own], own, found, tile == every[-1])

    def _features(self, prepared: Mapping[str, Any], places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features of pixels of a block, (P, features); (P, 2) row and column."""
        top, left = places.min(axis=0)
        bottom, right = places.max(axis=0) + 1 + 2 * self.description.halo
        images = {
            name: prepared[name][None, top * zoom : bottom * zoom, left * zoom : right * zoom]
            for name, zoom in self._zooms.items()
        }
        found = features_of(images, self._zooms, self._windows, missing=self._tables.takes_dropped)
        rows, cols = (places - (top, left)).T
        return found[rows * (right - left - 2 * self.description.halo) + cols]


class _Tile(NamedTuple):
    """Pixels of a batch whose features are computed at once.

    Args:
        places: (P, 2) row and column in the block.
        own: (P,) places in the batch.
        found: (B, K) logits of the batch, which theirs are written to.
        last: whether they complete it.
    """

    places: NDArray[np.int64]
    own: NDArray[np.int64]
    found: NDArray[np.float32]
    last: bool
