"""Networks as ONNX graphs and as programs of torch.export, from raw pixels of views to logits."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir
import onnxscript
import torch
from onnxscript import FLOAT, graph, opset18, script
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from landfuse.bundles.bundle import Bundle
from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.errors import ModelError
from landfuse.kernels import scan_steps
from landfuse.views.pixel_map import PixelMap

OPSET = 18
"""What torch writes as it is; any other version it converts."""

_LARGEST = 3.4028234e38


class RawViews(nn.Module):
    """A bundle's pixel maps and network.

    Args:
        bundle: in evaluation mode, on the CPU.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model, self.layers = bundle.model, bundle.model.layers
        missing = math.nan if bundle.model.marks_missing else 0.0
        self.maps = nn.ModuleDict(
            {name: _Mapped(one, missing, name in bundle.droppable) for name, one in bundle.maps.items()}
        )

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Logits and layers of raw pixels, (B, C, view * zoom, view * zoom) of each modality, NaN without data."""
        mapped = {name: one(image) for (name, one), image in zip(self.maps.items(), images, strict=True)}
        if not self.layers:
            return (self.model(mapped),)
        logits, layers = self.model.map_layers(mapped)
        return (logits, *(layers[name] for name in self.layers))


class RawDenoiser(nn.Module):
    """A denoiser's pixel maps and network, for the features of a window of a scene.

    Args:
        denoiser: on the CPU.
    """

    def __init__(self, denoiser: TrainedDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.maps = nn.ModuleDict({name: _Mapped(one, 0.0, False) for name, one in denoiser.maps.items()})

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The levels, fine to deep, and 1 where no modality has data, (1, 1, H, W).

        Args:
            arguments: raw pixels of each modality, (1, C, H * zoom, W * zoom); noise for each, (1, D, H, W); and the
                timestep, (1,) int64.
        """
        count, timestep = len(self.maps), arguments[-1]
        views = {name: one(image) for (name, one), image in zip(self.maps.items(), arguments[:count], strict=True)}
        images, missing = self.denoiser.images(views)
        alpha = self.denoiser.network.alpha[timestep]
        noise = zip(images.items(), arguments[count:-1], strict=True)
        noisy = {name: add_noise(image, each, alpha) for (name, image), each in noise}
        levels = self.denoiser.network.levels(noisy, missing, timestep)
        return (*levels, torch.stack(list(missing.values())).amin(dim=0))


def denoiser_graph(denoiser: TrainedDenoiser) -> Any:
    """The graph of a `RawDenoiser`, whose height and width are any multiples of 4."""
    tall, wide = (torch.export.Dim(name, min=2, max=1 << 12) for name in ("tall", "wide"))
    images, noises, shapes, inputs = [], [], [], list(denoiser.maps)
    for name, (bands, zoom) in denoiser.inputs.items():
        images.append(torch.randn(1, bands, 16 * zoom, 24 * zoom))
        noises.append(torch.randn(1, denoiser.network.channels[name], 16, 24))
        shapes.append({2: 4 * zoom * tall, 3: 4 * zoom * wide})
    sizes = [*shapes, *({2: 4 * tall, 3: 4 * wide} for _ in noises), {}]
    sample = [*images, *noises, torch.tensor([100])]
    names = [*inputs, *(f"noise_{name}" for name in inputs), "timestep"]
    return graph_of(RawDenoiser(denoiser), sample, names, ["level_1", "level_2", "level_3", "nothing"], sizes)


class _Mapped(nn.Module):
    """`PixelMap.forward` of images, (B, C, H, W) to (B, D, H, W), in operators that ONNX has."""

    def __init__(self, source: PixelMap, missing: float, droppable: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.missing = source.weight[..., None, None], source.bias, missing
        self.limit, self.gaps, self.droppable = min(float(source.clip), _LARGEST), source.gaps, droppable

    def forward(self, image: Tensor) -> Tensor:
        if self.weight.dim() == 3:
            mapped = image * self.weight + self.bias[:, None, None]
        else:
            mapped = F.conv2d(image, self.weight, self.bias)
        # Clipping a NaN gives a number in some runtimes.
        mapped = torch.where(mapped.isnan(), self.missing, mapped.clamp(-self.limit, self.limit))
        if not self.droppable:
            return mapped
        unknown = image.isnan()
        gone = unknown.all(dim=1, keepdim=True) if self.gaps else unknown.any(dim=1, keepdim=True)
        return torch.where(gone, math.nan, mapped)


class _WrittenOut(TorchFunctionMode):
    """Writes operators out: attention, whose layout in memory would become part of the program, and others."""

    def __init__(self, others: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._known = {F.scaled_dot_product_attention: _attention, **others}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._known.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    return torch.matmul((scores if attn_mask is None else scores + attn_mask).softmax(dim=-1), value)


def program_of(
    module: nn.Module,
    sample: Sequence[Tensor],
    written_out: Mapping[Any, Callable[..., Any]] | None = None,
    shapes: Sequence[Mapping[int, Any]] | None = None,
) -> torch.export.ExportedProgram:
    """The program of a module.

    Args:
        sample: its arguments, two images or more.
        written_out: operators of torch, and what takes their place.
        shapes: which axes of each argument are of any size; by default the first one of all.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    free = tuple(shapes or ({0: batch} for _ in sample))
    with _WrittenOut(written_out or {}), torch.no_grad(), quiet():
        return torch.export.export(module, tuple(sample), dynamic_shapes=(free,))


@script(onnxscript.values.Opset("landfuse", 1), default_opset=opset18)  # type: ignore[untyped-decorator]
def _steps(x: FLOAT, delta: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT, start: FLOAT) -> tuple[FLOAT, FLOAT]:
    @graph()
    def step(state, x_t, delta_t, B_t, C_t):  # type: ignore[no-untyped-def]
        following = opset18.Exp(delta_t * A) * state + x_t * B_t
        return opset18.Identity(following), opset18.ReduceSum(following * C_t, [-2], keepdims=1)

    last, y = opset18.Scan(start, x, delta, B, C, body=step, num_scan_inputs=4)
    return y, last


def graph_of(
    module: nn.Module,
    sample: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Sequence[Mapping[int, Any]] | None = None,
) -> Any:
    """A module as in `program_of` as an `onnx.ModelProto` whose inputs and outputs have these names."""
    program = program_of(module, sample, scan_steps.IN_STEPS, shapes)
    with quiet():
        table: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.landfuse.steps.default: _steps}
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, custom_translation_table=table, verbose=False
        )
    if made is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = made.model
    named = dict(zip((*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True))
    # What torch notes there are lines of source code and paths.
    for number, node in enumerate(model.graph):
        if "/maps." in node.metadata_props.get("namespace", ""):
            node.name = f"pixel_map_{number}"  # what needs float32 if the rest is converted
    for holder in (model, model.graph, *model.graph.all_nodes(), *model.graph.initializers.values()):
        holder.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value.name in named.values():
                value.name = f"{value.name}__"
    for value, name in named.items():
        value.name = name
        value.metadata_props.clear()
        if shapes is None:
            value.shape = onnx_ir.Shape(["batch", *value.shape[1:]])
    return onnx_ir.to_proto(model)


@contextmanager
def quiet() -> Iterator[None]:
    """Torch's exporters without their warnings and lines of progress, and with one message for what they refuse.

    Raises:
        ModelError: if this version of torch cannot export the network.
    """
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
    ]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        except RuntimeError as error:  # of Dynamo and of the exporter
            why = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"torch {torch.__version__} cannot export this network: {why}",
                "torch 2.13 or newer, which exports all of landfuse's",
                'pip install --upgrade "landfuse[train]"',
            ) from error
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
