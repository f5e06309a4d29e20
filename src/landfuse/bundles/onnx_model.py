"""A bundle as one ONNX file, run by ONNX Runtime; no torch.

The file's graph takes raw pixels of views, NaN where there is no data, and returns logits. What else a bundle holds is
in the file's properties: `landfuse`, as in `model.json`; `landfuse_attached`, the arrays beside the model;
`landfuse_denoiser`, a second graph, which computes the features that the first one takes; and `landfuse_graph`, the
SHA-256 of the graph.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pydantic
import safetensors.numpy
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from landfuse.bundles.description import Description, ModelSpec
from landfuse.bundles.model_files import ModelFile, damaged, parse_json
from landfuse.bundles.predictor import About
from landfuse.bundles.settings import PredictorOptions
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.tiles import features_of, noise_of
from landfuse.errors import BundleError, SettingsError
from landfuse.files import bytes_of, sha256_of
from landfuse.legend import Legend
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import parse, threads
from landfuse.views.reading import read_window

log = logging.getLogger("landfuse")

FORMAT = 1
"""Version of the properties; a newer one is refused."""

PROPERTY, ATTACHED, DENOISER, GRAPH = "landfuse", "landfuse_attached", "landfuse_denoiser", "landfuse_graph"
"""Names of the file's properties."""

_GRAPH, _METADATA_PROPS = 7, 14
"""The fields of an ONNX file that hold the graph and its properties."""

_IN_MEMORY = 2.25
"""Bytes of memory for each of a file, since ONNX Runtime keeps weights in an order of its own too."""

_STRIP = 1 << 20
"""Numbers of an input that a model of any size gets at once."""


class OnnxDenoiser(pydantic.BaseModel):
    """What the properties say of the denoiser's graph."""

    inputs: dict[str, tuple[int, int]]  # modality -> bands and zoom
    channels: dict[str, int]  # of the noise of each
    widths: tuple[int, int, int]


class OnnxPart(pydantic.BaseModel):
    """What the properties say of the graph, under `onnx`."""

    format: int = FORMAT
    digest: str  # of the bundle
    precision: str = "float32"  # what the graph computes in
    runtime: str  # the version of ONNX Runtime by which the file was checked
    architecture: str
    parameters: int
    layers: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    any_size: bool = False  # whether images may be larger than a view; the core grows with them
    marks_missing: bool = False
    images_per_view: int = 1
    denoiser: OnnxDenoiser | None = None
    means: dict[str, list[float]] = Field(default_factory=dict)  # raw values that the pixel maps turn into 0


class OnnxFile(ModelFile):
    """What the property `landfuse` holds."""

    onnx: OnnxPart
    licence: str = ""


class OnnxModel:
    """A `Model`: a file that `landfuse export --onnx` wrote.

    Raises:
        BundleError: if it is no such file, damaged, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        properties = _properties(path)
        if PROPERTY not in properties:
            raise BundleError(
                f"{path} does not say what it takes and returns: it has no property `{PROPERTY}`",
                "an ONNX file that `landfuse export --onnx` wrote",
                "export it again from its bundle; a file of another program cannot be mapped with",
            )
        self.file = known = parse_json(properties[PROPERTY], path, OnnxFile)
        self.part, self._denoiser, self._graph = known.onnx, properties.get(DENOISER, ""), properties.get(GRAPH)
        if self.part.format > FORMAT:
            raise BundleError(
                f"{path} has version {self.part.format} of the ONNX files of landfuse",
                f"version {FORMAT} or older, which landfuse {version('landfuse')} reads",
                "update landfuse: pip install -U landfuse",
            )
        attached = safetensors.numpy.load(base64.b64decode(properties[ATTACHED])) if ATTACHED in properties else {}
        self.description = Description(
            ModelSpec(known.model.name, known.model.settings), known.modalities, self.part.computed,
            Legend(tuple(known.legend)), known.tiling.view, known.tiling.core, known.tiling.stride,
            known.tiling.weights, known.temperature, known.droppable, self.part.layers, known.roles,
            known.cross_validation, attached, known.notes,
        )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """That of the bundle, where the graph is as it was written, and computes in float32 as the bundle does."""
        with bytes_of(self.path) as data:
            place = next((part for number, part in _fields(data) if number == _GRAPH), slice(0))
            with memoryview(data) as whole, whole[place] as graph:
                found = hashlib.sha256(graph).hexdigest()
        if self._graph in (None, found):
            return self.part.digest
        log.warning(
            "%s was changed after landfuse wrote it, by another program (as for int8 or float16) or by damage: its "
            "maps may differ from those of the bundle", self.path,
        )  # fmt: skip
        return found

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The graph, ready to run on the CPU.

        Raises:
            BundleError: if the installed ONNX Runtime cannot run it.
        """
        return session_of(str(self.path), self.path, self.part.runtime)

    def complete(self, scene: Scene) -> Scene:
        """The scene with its diffusion features, where the graph takes some."""
        if self.part.denoiser is None:
            return scene
        settings = parse(FeatureSettings, self.file.features or {}, f"the features of {self.path}")
        denoising = OnnxDenoising(self._denoiser, self.part, self.path)
        return scene.with_modalities(features_of(denoising, settings, scene))

    def predictor(self, options: PredictorOptions = PredictorOptions()) -> OnnxPredictor:  # noqa: B008  (frozen)
        """Makes it ready to map; raises a SettingsError if the options do not fit."""
        return OnnxPredictor(self, options)

    def save(self, folder: str | Path) -> None:
        """Copies the file."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, Path(folder) / "model.onnx")


class OnnxPredictor:
    """A `Predictor`.

    Raises:
        SettingsError: if the options do not fit.
    """

    on_gpu = False

    def __init__(self, model: OnnxModel, options: PredictorOptions) -> None:
        known, part = model.description, model.part
        known.check_layers(options)
        if options.precision != "float32" or options.device not in (None, "cpu"):
            chosen = options.precision if options.precision != "float32" else options.device
            raise SettingsError(
                f"{model.path} is to be run in {chosen}",
                f"{part.precision} on the CPU, as the file is written",
                "leave out the option; bundles run by torch have it",
            )
        self.description, self._model, self._options, self.complete = known, model, options, model.complete
        self._session = model.session
        self.stand_ins, self.marks_missing = known.stand_ins(options), part.marks_missing
        self.view = 1 if part.any_size else math.ceil(known.view * math.sqrt(part.images_per_view))
        self.channels = {name: info.bands for name, info in known.inputs.items()}
        self.nbytes = int(_IN_MEMORY * model.path.stat().st_size)
        self.about = About(part.architecture, part.parameters, "ONNX Runtime", onnxruntime.__version__)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the logits follow from beside the scene."""
        return {
            "the model": self._model.digest,
            "the file": sha256_of(self._model.path),
            "the version": f"landfuse {version('landfuse')}, onnxruntime {onnxruntime.__version__}",
        }

    def prepare(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The pixels as they are; where the training mean stands in, that takes the place of those without data."""
        if self.stand_ins.get(name) == 0:
            known = np.isfinite(values)
            there = known.any(axis=0) if self.description.inputs[name].per_step > 0 else known.all(axis=0)
            means = np.array(self._model.part.means[name], np.float32)
            values = np.where(there, values, means[:, None, None])
        return np.ascontiguousarray(values)

    def logits(
        self, window: Window, prepared: Mapping[str, NDArray[np.float32]], batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.float32]]:
        """Labels windows, batch by batch; for a model of any size, all pixels of the block at once."""
        known, names = self.description, ["logits", *self._options.layers]
        halo, view = known.halo, known.view
        zooms = {name: known.inputs[name].zoom for name in prepared}
        if self._model.part.any_size:
            whole = self._whole(prepared, zooms)
            for places in batches:
                rows, cols = (places - (window.row + halo, window.col + halo)).T
                yield whole[rows, cols][:, :, None, None]
            return
        cut = {
            name: sliding_window_view(values, (view * zooms[name],) * 2, axis=(1, 2)).transpose(1, 2, 0, 3, 4)
            for name, values in prepared.items()
        }
        for places in batches:
            rows, cols = (places - (window.row + halo, window.col + halo)).T
            views = {name: one[rows * zooms[name], cols * zooms[name]] for name, one in cut.items()}
            found = self._session.run(names, views)
            yield found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def _whole(self, prepared: Mapping[str, NDArray[np.float32]], zooms: Mapping[str, int]) -> NDArray[np.float32]:
        """Logits of a block's pixels but those of the halo, (height, width, K), strip by strip."""
        halo, found = self.description.halo, []
        name, values = next(iter(prepared.items()))
        height, width = (size // zooms[name] - 2 * halo for size in values.shape[1:])
        numbers = max(len(one) * zooms[name] ** 2 for name, one in prepared.items()) * width
        step = max(1, 2 * halo, _STRIP // numbers)
        for row in range(0, height, step):
            strip = {
                name: one[None, :, row * zooms[name] : (row + step + 2 * halo) * zooms[name]]
                for name, one in prepared.items()
            }
            found.append(self._session.run(["logits"], strip)[0][0])
        return np.concatenate(found, axis=1).transpose(1, 2, 0)


class OnnxDenoising:
    """A `Denoising`.

    Args:
        graph: of `landfuse_denoiser`, in base 64.

    Raises:
        BundleError: if the installed ONNX Runtime cannot run it.
    """

    def __init__(self, graph: str, part: OnnxPart, path: Path) -> None:
        known = part.denoiser
        if known is None or not graph:
            raise damaged(path, f"it has no property `{DENOISER}`")
        self.inputs, self.widths, self._channels = known.inputs, known.widths, known.channels
        data = base64.b64decode(graph)
        self._source = data, path, part.runtime
        self.digest = hashlib.sha256(f"onnxruntime {onnxruntime.__version__}".encode() + data).hexdigest()
        self._session = session_of(*self._source)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._session = session_of(*self._source)

    def levels(
        self, scene: Scene, window: Window, settings: FeatureSettings
    ) -> Iterator[tuple[Sequence[NDArray[np.float32]], NDArray[np.bool_]]]:
        """See `Denoising.levels`."""
        given: dict[str, NDArray[Any]] = {}

        def take(name: str, values: NDArray[np.float32]) -> None:
            given[name] = np.ascontiguousarray(values)[None]

        read_window(scene, window, {name: scene.modalities[name].info for name in self.inputs}, {}, take)
        noise = noise_of(settings.seed, self._channels, window)
        given |= {f"noise_{name}": values for name, values in noise.items()}
        for timestep in settings.timesteps:
            *levels, nothing = self._session.run(None, {**given, "timestep": np.array([timestep], np.int64)})
            yield [level[0] for level in levels], nothing[0, 0] == 1


def session_of(source: str | bytes, path: Path, checked: str = "") -> onnxruntime.InferenceSession:
    """A graph, ready to run on the CPU.

    Args:
        source: the file, or its bytes.
        path: of the file, for messages.
        checked: the version of ONNX Runtime that it was written with.

    Raises:
        BundleError: if the installed ONNX Runtime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings name nodes of the graph
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has an exception for each of its codes, and derives them from nothing else
        here = onnxruntime.__version__
        if _release(checked) <= _release(here):
            raise damaged(path, error) from None
        raise BundleError(
            f"ONNX Runtime {here} cannot run {path}: {str(error).splitlines()[0][:300]}",
            f"version {checked} or newer, by which the file was written and checked",
            f'pip install -U "onnxruntime>={checked}"',
        ) from None


def _release(words: str) -> tuple[int, ...]:
    return tuple(int(one) for one in words.split(".")[:3] if one.isdigit())


def _properties(path: Path) -> dict[str, str]:
    """The properties of an ONNX file, which is not loaded for that."""
    try:
        with bytes_of(path) as data:
            parts = [data[place] for number, place in _fields(data) if number == _METADATA_PROPS]
        pairs = [{number: part[place] for number, place in _fields(part)} for part in parts]
        return {pair[1].decode(): pair.get(2, b"").decode() for pair in pairs}
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}", "an ONNX file", "check the path") from None
    except (ValueError, IndexError, KeyError) as error:
        raise BundleError(
            f"{path} is no ONNX file, or not whole: {error}",
            "a file that `landfuse export --onnx` wrote",
            "copy or export it again",
        ) from None


def _fields(data: Any) -> Iterator[tuple[int, slice]]:
    """The fields with bytes of a message of protocol buffers: their numbers and places."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = number()
        kind, field = key & 7, key >> 3
        if kind == 0:
            number()
        elif kind == 2 and field:
            size = number()
            if place + size > len(data):
                raise ValueError("its end is missing")
            yield field, slice(place, place + size)
            place += size
        else:
            raise ValueError("its bytes are of another form")
