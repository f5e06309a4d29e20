"""What the scans read, as one record each; every way of computing them takes these."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Inputs of the scan of sequences; any strides. Tensors stand before what is none."""

    u: Tensor  # (B, G*D, L), floating
    delta: Tensor  # (B, G*D, L), floating, before bias and softplus
    A: Tensor  # (G*D, N), usually negative
    B: Tensor  # (B, G, N, L)
    C: Tensor  # (B, G, N, L)
    D: Tensor | None = None  # (G*D,), weight of u itself
    delta_bias: Tensor | None = None  # (G*D,), added to delta
    delta_softplus: bool = False  # delta becomes log(1 + exp(delta)), after the bias


class ImageInputs(NamedTuple):
    """Inputs of the scan of an image in four directions, with delta = softplus(rank_weight r + delta_bias)."""

    x: Tensor  # (B, H, W, D), floating; fastest where contiguous
    # (B, H, W, 4*(R + 2N)): for each direction r (R), B (N) and C (N). The directions are: along rows, along columns,
    # backwards along rows, backwards along columns.
    factors: Tensor
    A: Tensor  # (4*D, N), usually negative
    rank_weight: Tensor  # (4*D, R)
    delta_bias: Tensor  # (4*D,)
    D: Tensor  # (4*D,), weight of x itself


WIDE = frozenset({"u", "delta", "B", "C", "x", "factors"})
"""Inputs that may be in half precision where an implementation reads it (`READS_HALF`)."""
