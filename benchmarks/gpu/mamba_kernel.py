"""mamba_ssm's own CUDA kernel of the selective scan, as a function of the arguments that landfuse's takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

PLACE = "gpu/kern/so/mamba_scan.so"


def path() -> Path:
    """Where the binary lies: in the folder that LANDFUSE_SHARED names, or in `shared` beside the checkout."""
    shared = os.environ.get("LANDFUSE_SHARED")
    return (Path(shared) if shared else Path(__file__).resolve().parents[3] / "shared") / PLACE


def load(device: str) -> tuple[Callable[..., Tensor] | None, str]:
    """The kernel, or None; and from where it comes, or why there is none."""
    place = path()
    if not place.exists():
        return None, f"{PLACE} is in neither LANDFUSE_SHARED nor ../shared"
    if device != "cuda":
        return None, f"{PLACE} is there, but needs a GPU"
    try:
        torch.ops.load_library(str(place))
    except (OSError, RuntimeError) as error:  # built for another torch, Python or GPU
        return None, f"{PLACE} cannot be loaded: {str(error).splitlines()[0][:200]}"
    return MambaScan.apply, PLACE


class MambaScan(torch.autograd.Function):
    """y of (u, delta, A, B, C, D, bias), with softplus; its operators are `fwd` and `bwd` without the gate."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias):
        y, states = torch.ops.mamba_scan.fwd(u, delta, A, B, C, D, None, bias, True)[:2]
        ctx.save_for_backward(u, delta, A, B, C, D, bias, states)
        return y

    @staticmethod
    def backward(ctx, dy):
        *tensors, bias, states = ctx.saved_tensors
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        return tuple(torch.ops.mamba_scan.bwd(*tensors, None, bias, dy, states, None, None, True, False)[:7])
