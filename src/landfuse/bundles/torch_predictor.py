"""A bundle run by PyTorch."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landfuse.bundles.predictor import About
from landfuse.bundles.settings import PredictorOptions
from landfuse.errors import SettingsError
from landfuse.kernels.gpu import Replayed, default_device, gpu_kernels, gpu_works
from landfuse.kernels.linear import rounded_once
from landfuse.kernels.scan import runs_triton
from landfuse.rasters.windows import Window
from landfuse.views.mapped_pixels import MappedPixels, pixel_table

if TYPE_CHECKING:
    from landfuse.bundles.bundle import Bundle

GRAPHS = os.environ.get("LANDFUSE_CUDA_GRAPHS") != "0"
"""Whether a GPU replays the passes of a map as one CUDA graph; the map is the same."""

_IN_FLIGHT = 2
"""Batches that a GPU is given beyond the one that is waited for."""


def _arrived(logits: Tensor, copied: torch.cuda.Event | None) -> NDArray[np.float32]:
    """Logits in the CPU's memory, once they are there; waiting for the whole GPU would wait for later batches too."""
    if copied is not None:
        copied.synchronize()
    found: NDArray[np.float32] = logits.numpy()
    return found


class TorchPredictor:
    """A `Predictor` of a bundle in evaluation mode, whose model is moved to the device.

    Raises:
        SettingsError: if the model has no such layer, or there is no such device.
    """

    def __init__(self, bundle: Bundle, options: PredictorOptions) -> None:
        self.description, self.complete = bundle.description, bundle.with_features
        self.options, self._bundle, model = options, bundle, bundle.model
        self.description.check_layers(options)
        try:
            self.device = torch.device(options.device) if options.device else default_device()
            self.model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise SettingsError(
                f"the device {options.device} cannot be used: {str(error).splitlines()[0]}", "cpu, or e.g. cuda:0"
            ) from None
        self.on_gpu = self.device.type == "cuda"
        if self.on_gpu and not gpu_works():
            raise SettingsError(f"PyTorch cannot compute on the device {self.device}", "a GPU that it knows, or cpu")
        if options.precision == "tf32" and not self.on_gpu:
            raise SettingsError(
                f"the precision tf32 on the device {self.device}",
                "float32 or bfloat16, or a CUDA GPU",
                "choose float32",
            )
        self.maps = {name: pixel_map.to("cpu") for name, pixel_map in bundle.maps.items()}
        self.stand_ins = self.description.stand_ins(options)
        self.view = math.ceil(self.description.view * math.sqrt(model.images_per_view))
        self.marks_missing = model.marks_missing
        self.channels = {name: pixel_map.channels for name, pixel_map in self.maps.items()}
        self._pass: Callable[[dict[str, Tensor]], Tensor] = self._forward
        network = getattr(self.model, "network", self.model)  # behind placeholders
        parameters = sum(p.numel() for p in self.model.parameters())
        self.about = About(type(network).__name__, parameters, "PyTorch", torch.__version__)
        if self.on_gpu:
            self.model.to(memory_format=torch.channels_last)  # that of the views: else each pass rearranges weights
        if type(network).__module__.startswith("landfuse."):  # another's model may leave autocast somewhere
            if runs_triton(self.device):
                from landfuse.layers.fewer_kernels import with_fewer_kernels  # timm takes 180 MiB

                self.model = with_fewer_kernels(self.model)
            self.model = rounded_once(self.model) if options.precision == "bfloat16" else self.model
            if self.on_gpu and GRAPHS:
                self._pass = Replayed(self._forward)
        self.nbytes = sum(p.nbytes for p in {*model.parameters(), *self.model.parameters()})
        self.nbytes += 0 if bundle.features is None else bundle.features.nbytes

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the logits follow from beside the scene."""
        known = {
            "the model": self._bundle.digest,
            "the version": f"landfuse {version('landfuse')}, torch {torch.__version__}",
            "the precision": self.options.precision,
            "the device": self.device.type,
        }
        if self.on_gpu:  # whose last bits follow from these too
            known["the GPU"] = f"{torch.cuda.get_device_name(self.device)}, cuDNN {torch.backends.cudnn.version()}"
        return known

    def prepare(self, name: str, values: NDArray[np.float32]) -> Tensor:
        """Returns a table of mapped pixels, (pixels, D), on the device."""
        missing = math.nan if self.marks_missing else 0.0
        table = pixel_table(values, self.maps[name], self.stand_ins.get(name), missing)
        try:
            return table.to(self.device)
        except torch.OutOfMemoryError:
            raise SettingsError(
                f"a block whose pixels take {table.nbytes / 2**30:.1f} GiB does not fit into the GPU's memory",
                "a smaller block, which does not change the map",
                "lower block or memory, and give the command again",
            ) from None

    def logits(
        self, window: Window, prepared: Mapping[str, Tensor], batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.float32]]:
        """Labels windows, batch by batch; a GPU has the next ones to compute while one is copied back and used.

        Raises:
            SettingsError: if a batch does not fit into the GPU's memory.
        """
        zooms = {name: info.zoom for name, info in self.description.inputs.items()}
        mapped = MappedPixels(window, prepared, zooms)
        running: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        fallen = self._fallen()
        for places in batches:
            try:
                found = self._run(mapped, torch.from_numpy(places)).float()
                running.append((found.to("cpu", non_blocking=True), torch.cuda.Event() if self.on_gpu else None))
            except torch.OutOfMemoryError:
                raise self._too_large(len(places)) from None
            if self._fallen() > fallen:
                raise self._too_large(len(places))
            event = running[-1][1]
            if event is not None:
                event.record(torch.cuda.current_stream(self.device))
            while len(running) > (_IN_FLIGHT if self.on_gpu else 0):
                yield _arrived(*running.popleft())
        while running:
            yield _arrived(*running.popleft())

    def _fallen(self) -> int:
        """How often the GPU's memory was too small: cuDNN then takes another algorithm, which rounds otherwise (P1)."""
        return int(torch.cuda.memory_stats_as_nested_dict(self.device)["num_ooms"]) if self.on_gpu else 0

    def _too_large(self, batch: int) -> SettingsError:
        free, whole = torch.cuda.mem_get_info(self.device)
        return SettingsError(
            f"{batch} windows of {self.description.view} px per pass do not fit into the GPU's memory, of which "
            f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB are free",
            "a batch that fits, the same for the whole map",
            f"set batch to {batch // 2} and start again" if batch > 1 else "choose the device cpu, or a smaller model",
        )

    @torch.inference_mode()
    def _run(self, mapped: MappedPixels, places: Tensor) -> Tensor:
        """(B, K + layers, core, core) of B windows."""
        halo = self.description.halo
        images = mapped.views(places[:, 0] - halo, places[:, 1] - halo, self.description.view)
        precision = self.options.precision
        with (
            torch.cuda.device(self.device if self.device.type == "cuda" else -1),  # Triton's kernels run on this one
            gpu_kernels(self.device, tf32=precision == "tf32", same=True),
            # A graph would read what the cache had freed.
            torch.autocast(
                self.device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=not self.on_gpu
            ),
        ):
            return self._pass(images)

    def _forward(self, images: dict[str, Tensor]) -> Tensor:
        if not self.options.layers:
            logits: Tensor = self.model(images)
            return logits
        logits, layers = self.model.map_layers(images)
        return torch.cat([logits, *(layers[name].to(logits.dtype) for name in self.options.layers)], dim=1)
