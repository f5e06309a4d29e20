"""Tensors that follow from sizes alone are made once, since on a GPU each step of making them waits for a launch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

R = TypeVar("R")


def constant(function: Callable[..., R]) -> Callable[..., R]:
    """Keeps what a function returned for its last 64 arguments; nobody may change it."""
    # Of inference mode's own tensors no gradient could pass through what they are used in.
    kept = functools.lru_cache(64)(torch.inference_mode(False)(function))

    @functools.wraps(function)
    def call(*args: Any) -> R:
        # While a graph is traced, tensors have no numbers to keep.
        found: R = (function if torch.compiler.is_compiling() else kept)(*args)
        return found

    return call
