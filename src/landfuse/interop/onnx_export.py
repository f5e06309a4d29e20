"""A bundle as one ONNX file that any runtime runs, and landfuse without torch; and as a program of torch.export."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import safetensors.numpy
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.onnx_model import ATTACHED, DENOISER, GRAPH, PROPERTY, OnnxDenoiser, OnnxPart, session_of
from landfuse.bundles.settings import PredictorOptions
from landfuse.errors import ModelError, OutputError
from landfuse.files import check_replaceable, log_replaced, whole_file
from landfuse.interop import onnx_networks, onnx_tables
from landfuse.mapping.stac import model_fields
from landfuse.models.pixel_tables import TABLES
from landfuse.views.pixel_arrays import PixelArrays

NEAR = 1e-4
"""How far logits of a file may be from those of the bundle, as a fraction of the largest where that is above 1."""

_MOST = 2**31 - 1
"""Bytes of an ONNX file."""

_VIEWS = 3


def write_onnx(bundle: Bundle, path: str | Path, *, licence: str = "", overwrite: bool = False) -> float:
    """Writes a bundle as one ONNX file: pixel maps, model and all that mapping needs.

    The graph takes raw pixels of views, float32 (B, C, view * zoom, view * zoom) by the modalities' names, NaN where
    there is no data, and returns `logits`, (B, K, core, core), and the model's layers by their names.

    Args:
        licence: of the model, e.g. `CC-BY-4.0`.
        overwrite: replace a file that is none of landfuse's.

    Returns:
        How far the file's logits are from the bundle's, at most, on three views.

    Raises:
        ModelError: if ONNX Runtime finds other logits.
        OutputError: if it cannot be written.
    """
    path = Path(path)
    check_replaceable(path, "landfuse", overwrite)
    known = bundle.eval().description
    images = sample(bundle)
    if known.spec.name in TABLES:
        model = onnx_tables.graph_of(bundle)
    else:
        network, outputs = onnx_networks.RawViews(bundle), ["logits", *known.layers]
        model = onnx_networks.graph_of(network, list(images.values()), list(known.inputs), outputs)
    model.producer_name, model.producer_version = "landfuse", version("landfuse")
    graph = hashlib.sha256(model.graph.SerializeToString()).hexdigest()
    helper.set_model_props(model, {**properties(bundle, licence), GRAPH: graph})
    if model.ByteSize() > _MOST:
        raise OutputError(
            f"the model takes {model.ByteSize() / 2**30:.1f} GiB, and an ONNX file holds less than 2",
            "a smaller encoder",
            "write a bundle: -o; or a program of torch.export: --pt2",
        )
    data = model.SerializeToString()
    apart = difference(bundle, data, images)
    if not apart <= NEAR:
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} finds logits that differ by {apart:.2g} from those of the bundle",
            f"at most {NEAR:g}",
            "report it, please; nothing was written",
        )
    log_replaced([path])
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return apart


def write_pt2(bundle: Bundle, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a bundle's network as a program of torch.export, with the inputs and outputs of `write_onnx`.

    Raises:
        ModelError: if the model is none of torch.
        OutputError: if it cannot be written.
    """
    path = Path(path)
    check_replaceable(path, "landfuse", overwrite)
    if bundle.spec.name in TABLES:
        raise ModelError(
            f"`{bundle.spec.name}` is tables of numbers, and no program of torch", "a network", "write it by --onnx"
        )
    program = onnx_networks.program_of(onnx_networks.RawViews(bundle.eval()), list(sample(bundle).values()))
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    words = {f"{PROPERTY}.json": properties(bundle)[PROPERTY]}
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.export.save(program, file, extra_files=words)


def properties(bundle: Bundle, licence: str = "") -> dict[str, str]:
    """The properties of a file, each a text; see `onnx_model`, and `mlm`, the STAC extension's fields of the model."""
    known, about = bundle.description, bundle.predictor(PredictorOptions(device="cpu")).about
    words, _ = bundle.packed()
    denoiser = None
    if bundle.features is not None:
        trained = bundle.features.denoiser.cpu()
        channels = trained.network.channels
        denoiser = OnnxDenoiser(inputs=trained.inputs, channels=channels, widths=trained.network.widths)
    part = OnnxPart(
        digest=bundle.digest,
        runtime=onnxruntime.__version__,
        architecture=about.architecture,
        parameters=about.parameters,
        layers=known.layers,
        computed=known.computed,
        any_size=known.spec.name in TABLES,
        marks_missing=bundle.model.marks_missing,
        images_per_view=bundle.model.images_per_view,
        denoiser=denoiser,
        means={name: mean_of(one.arrays).tolist() for name, one in bundle.maps.items()},
    )
    found = {
        PROPERTY: json.dumps({**words, "onnx": part.model_dump(mode="json"), "licence": licence}, ensure_ascii=False),
        "mlm": json.dumps(model_fields(known, about)),
    }
    if bundle.features is not None:
        graph = onnx_networks.denoiser_graph(bundle.features.denoiser)
        found[DENOISER] = base64.b64encode(graph.SerializeToString()).decode()
    if known.attached:
        found[ATTACHED] = base64.b64encode(safetensors.numpy.save(dict(known.attached))).decode()
    return found


def mean_of(own: PixelArrays) -> NDArray[np.float64]:
    """Raw values of the bands that a pixel map turns into 0, the training mean."""
    weight, bias = own.weight.astype(np.float64), own.bias.astype(np.float64)
    if weight.ndim == 1:
        return np.where(weight == 0, 0, -bias / np.where(weight == 0, 1, weight))
    return np.asarray(np.linalg.lstsq(weight, -bias, rcond=None)[0])


def sample(bundle: Bundle) -> dict[str, Tensor]:
    """Raw pixels of three views: values as in training, a pixel without data, a view without what may be missing."""
    random, found = np.random.default_rng(0), {}
    for name, info in bundle.inputs.items():
        side = bundle.model.view * info.zoom
        own = bundle.maps[name].arrays
        low, high = mean_of(own) - 1, mean_of(own) + 1
        if info.values:
            low, high = np.array(info.values)[:, [0, -1]].T
        values = random.uniform(0, 1, (_VIEWS, side, side, info.bands)) * (high - low) + low
        values[0, side // 2, side // 2] = np.nan
        if name in bundle.droppable:
            values[1] = np.nan
        found[name] = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32))
    return found


def difference(bundle: Bundle, data: bytes, images: dict[str, Tensor]) -> float:
    """The largest difference between the logits of a graph and of the bundle, as `NEAR` counts it."""
    with torch.no_grad():
        wanted = bundle(images).numpy()
    session = session_of(data, Path("the exported graph"))
    given: Any = {name: image.numpy() for name, image in images.items()}
    found = session.run(["logits"], given)[0]
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))
