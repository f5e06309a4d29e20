"""The GPU: whether PyTorch can compute on it, how float32 is computed there, and how little is launched."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")

log = logging.getLogger("landfuse")

_TURN = threading.RLock()

CAPTURED = 5
"""The pass of a shape that is captured: before it, a small map would take longer."""

LEAST = (8, 0)
"""Compute capability from which on Triton's kernels, TF32 and bfloat16 are the hardware's own."""


@functools.cache
def gpu_works() -> bool:
    """Whether this machine has a CUDA GPU that PyTorch can compute on; one that it cannot use is warned of, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
        if there:
            try:
                torch.ones(1, device="cuda").add(1).item()
            except RuntimeError as error:  # of a card that this build has no kernels for, or one that is broken
                warnings.warn(str(error), stacklevel=1)
                there = False
    if not there:
        for warning in caught[-1:]:  # an old driver is one
            log.warning("the GPU cannot be used, so the CPU computes: %s", str(warning.message).strip().splitlines()[0])
        return False
    if torch.cuda.get_device_capability() < LEAST:
        log.warning(
            "%s has compute capability %d.%d: below %d.%d scans are computed by PyTorch instead of Triton, TF32 is not "
            "available and bfloat16 is slow", torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), *LEAST,
        )  # fmt: skip
    return True


def default_device() -> torch.device:
    """A GPU if there is one that works, else the CPU."""
    return torch.device("cuda" if gpu_works() else "cpu")


@contextmanager
def gpu_kernels(device: torch.device, *, tf32: bool, same: bool) -> Iterator[None]:
    """How a GPU computes float32 within it; PyTorch's own default is TF32 in convolutions but not in products.

    Args:
        device: on a CPU nothing changes.
        tf32: round the numbers that are multiplied to 10 bits.
        same: compute equal shapes by equal, deterministic convolutions; one thread at a time, since all share this.
    """
    if device.type != "cuda":
        yield
        return
    with _TURN if same else nullcontext():
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=same, allow_tf32=tf32):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def constant(function: Callable[..., R]) -> Callable[..., R]:
    """Keeps the tensors, of sizes alone, that a function returned for its last 64 arguments; nobody may change them."""
    # Of inference mode's own tensors no gradient could pass through what they are used in.
    kept = functools.lru_cache(64)(torch.inference_mode(False)(function))
    _FORGET.append(kept.cache_clear)

    @functools.wraps(function)
    def call(*args: Any) -> R:
        # While a graph is traced, tensors have no numbers to keep.
        found: R = (function if torch.compiler.is_compiling() else kept)(*args)
        if _USED is not None:
            _USED.append(found)
        return found

    return call


_FORGET: list[Callable[[], None]] = []


def forget_constants() -> None:
    """Lets go of all that `constant` keeps."""
    for forget in _FORGET:
        forget()


_USED: list[Any] | None = None
"""While a graph is captured, the constants that it reads: it must outlive none of them."""


def captured(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A function as a CUDA graph: what computes it once more, and the tensor that then holds what it returns."""
    global _USED
    graph = torch.cuda.CUDAGraph()
    used: list[Any] = []
    _USED = used
    try:
        # Of its own device, and while other threads copy to the GPU.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            output = function()
    finally:
        _USED = None

    def replay(used: list[Any] = used) -> None:  # which it keeps
        graph.replay()

    return replay, output


class Replayed:
    """A function of images, run in inference mode, whose kernels are launched at once after some calls of one shape.

    The first calls choose and compile kernels; one then captures them, and compares what they give with what the
    function returns, to the last bit. Only the last shape's graph is kept, since it holds the memory of a pass.

    Args:
        function: name -> images to a tensor; it follows from them alone.
        capture: as `captured`.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], Tensor],
        capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]] = captured,
    ) -> None:
        self._function, self._capture, self._run = function, capture, function
        self._shapes: list[Any] = []
        self._calls = 0

    def __call__(self, images: dict[str, Tensor]) -> Tensor:
        """As the function."""
        shapes = [(name, x.shape, x.stride(), x.dtype) for name, x in images.items()]
        if shapes != self._shapes:
            self._shapes, self._run, self._calls = shapes, self._function, 0
        self._calls += 1
        return self._run(images) if self._calls != CAPTURED else self._try(images)

    def _try(self, images: dict[str, Tensor]) -> Tensor:
        expected = self._function(images)
        inputs = {name: torch.empty_like(image) for name, image in images.items()}

        def run(images: dict[str, Tensor]) -> Tensor:
            for name, image in images.items():
                inputs[name].copy_(image)
            replay()
            return output.clone()

        try:
            replay, output = self._capture(lambda: self._function(inputs))
            same = torch.allclose(run(images), expected, rtol=0, atol=0, equal_nan=True)
            why = "" if same else "it gives other numbers"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if why:
            log.warning(
                "the network cannot be captured as a CUDA graph, so its kernels are launched one by one: %s", why
            )
        else:
            self._run = run
        return expected
