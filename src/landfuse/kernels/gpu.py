"""The GPU: whether PyTorch can compute on it, how float32 is computed there, and what need not be launched twice."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

R = TypeVar("R")

log = logging.getLogger("landfuse")

_TURN = threading.RLock()

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

    @functools.wraps(function)
    def call(*args: Any) -> R:
        # While a graph is traced, tensors have no numbers to keep.
        found: R = (function if torch.compiler.is_compiling() else kept)(*args)
        return found

    return call
