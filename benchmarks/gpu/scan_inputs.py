"""Random inputs of the two forms of the scan, as a fresh network has them."""

from __future__ import annotations

import torch
from speed_parts import fresh_bias
from torch import Tensor
from torch.nn import functional as F

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SEQUENCE = ("u", "delta", "A", "B", "C", "D", "bias")
IMAGE = ("x", "factors", "A", "weight", "bias", "D")


def sequence_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """`SEQUENCE` for (B, G, D, L, N)."""
    B, G, D, L, N = shape
    torch.manual_seed(seed)
    inner = G * D
    u = F.silu(torch.randn(B, inner, L, device=device)).to(dtype)
    delta = (0.5 * torch.randn(B, inner, L, device=device)).to(dtype)
    factors = [torch.randn(B, G, N, L, device=device).to(dtype) for _ in range(2)]
    skip = (1 + 0.1 * torch.randn(inner)).to(device)
    return [u, delta, decays(inner, N, device), *factors, skip, fresh_bias(inner).to(device)]


def image_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """`IMAGE` for (B, H, W, D, rank, N)."""
    B, H, W, D, rank, N = shape
    torch.manual_seed(seed)
    x = F.silu(torch.randn(B, H, W, D, device=device)).to(dtype)
    factors = torch.randn(B, H, W, 4 * (rank + 2 * N), device=device).to(dtype)
    weight = ((torch.rand(4 * D, rank) - 0.5) * 2 * rank**-0.5).to(device)
    skip = (1 + 0.1 * torch.randn(4 * D)).to(device)
    return [x, factors, decays(4 * D, N, device), weight, fresh_bias(4 * D).to(device), skip]


def decays(inner: int, N: int, device: str) -> Tensor:
    """A of (inner, N): about -(1..N)."""
    return -torch.arange(1.0, N + 1, device=device).repeat(inner, 1) * (0.5 + torch.rand(inner, N, device=device))


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Copies that gradients are asked of; strides stay."""
    return [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
