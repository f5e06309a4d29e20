"""The scans in operators that other runtimes have, and one loop over steps, for the export of models.

    h_t = exp(delta_t A) h_{t-1} + x_t B_t,    y_t = sum over N of C_t h_t,    h_0 = start

`steps` is that loop, ONNX's `Scan`; all else is products and sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from landfuse.kernels.scan_image import DIRECTIONS


@torch.library.custom_op("landfuse::steps", mutates_args=())
def steps(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The loop: y (T, ..., 1, D), and the state after the last step (..., N, D).

    Args:
        x: (T, ..., 1, D), and so is `delta`.
        delta: at least 0.
        A: (..., N, D).
        B: (T, ..., N, 1), and so is `C`.
        C: weights of the states.
        start: (..., N, D).
    """
    state, ys = start, []
    for x_t, delta_t, B_t, C_t in zip(x, delta, B, C, strict=True):
        state = torch.exp(delta_t * A) * state + x_t * B_t
        ys.append((state * C_t).sum(-2, keepdim=True))
    return torch.stack(ys), state.clone()


@steps.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(delta.shape, dtype=delta.dtype), torch.empty(start.shape, dtype=start.dtype)


def sequence_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
    path: str,
) -> tuple[Tensor, Tensor]:
    """`landfuse::selective_scan`."""
    groups = B.shape[1]

    def in_time(values: Tensor) -> Tensor:  # (B, G*D, L) -> (L, B, G, 1, D)
        return values.unflatten(1, (groups, -1)).permute(3, 0, 1, 2).unsqueeze(3)

    raw = delta if delta_bias is None else delta + delta_bias[:, None]
    change = in_time(F.softplus(raw) if delta_softplus else raw)
    rates = A.unflatten(0, (groups, -1)).transpose(1, 2)  # (G, N, D)
    entering, leaving = (values.permute(3, 0, 1, 2).unsqueeze(4) for values in (B, C))
    y, _ = steps(change * in_time(u), change, rates, entering, leaving, torch.zeros_like(change[0] * rates))
    y = y.squeeze(3).flatten(2).permute(1, 2, 0)
    return y if D is None else y + u * D[:, None], u.new_empty((0,))


def image_scan(
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    delta_bias: Tensor,
    D: Tensor,
    save: bool,
    path: str,
) -> tuple[Tensor, Tensor]:
    """`landfuse::image_scan` of a square image.

    All rows of the four walks at once: from zero to the state that each row ends with, from row to row by what is left
    of the states in each, and once more along the rows, from the state that each begins with.
    """
    states, rank = A.shape[1], rank_weight.shape[1]
    of_walk = factors.unflatten(3, (DIRECTIONS, -1)).unbind(3)
    low_rank, B, C = _walks(of_walk).split([rank, states, states], dim=-1)
    weights = rank_weight.unflatten(0, (DIRECTIONS, 1, 1, -1)).transpose(3, 4)  # (4, 1, 1, R, D)
    bias = delta_bias.unflatten(0, (DIRECTIONS, 1, 1, 1, -1))
    delta = F.softplus(torch.matmul(low_rank, weights) + bias)  # (4, B, I, J, D)
    rates = A.unflatten(0, (DIRECTIONS, 1, 1, -1)).transpose(3, 4)  # (4, 1, 1, N, D)

    def in_time(values: Tensor, axis: int) -> Tensor:  # (4, B, I, J, C) -> (J, 4, B, I, 1, C), or (.., C, 1)
        return values.permute(3, 0, 1, 2, 4).unsqueeze(axis)

    along = in_time(delta * _walks([x] * DIRECTIONS), 4), in_time(delta, 4), rates, in_time(B, 5), in_time(C, 5)
    _, ends = steps(*along, torch.zeros_like(along[1][0] * rates))  # (4, B, I, N, D)
    rows = ends.permute(2, 0, 1, 3, 4).flatten(3).unsqueeze(3)  # (I, 4, B, 1, N*D)
    whole = delta.sum(dim=3).permute(2, 0, 1, 3).unsqueeze(3)
    one = torch.ones_like(rows[..., :1])
    down = whole.repeat(1, 1, 1, 1, states), rates.flatten(2).unsqueeze(2), one, one
    after, _ = steps(rows, *down, torch.zeros_like(rows[0]))
    before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
    starts = before.squeeze(3).unflatten(3, (states, -1)).permute(1, 2, 0, 3, 4)
    y = steps(*along, starts)[0].squeeze(4).permute(1, 2, 3, 0, 4)  # (4, B, I, J, D)
    right, down_, left, up = y.unbind(0)
    total = x * D.unflatten(0, (DIRECTIONS, -1)).sum(0) + right + down_.transpose(1, 2)
    return total + left.flip(1, 2) + up.flip(1, 2).transpose(1, 2), x.new_empty((0,))


def _walks(of_walk: Any) -> Tensor:
    """(B, S, S, C) of each walk -> (4, B, I, J, C), pixels in the order of the walk."""
    right, down, left, up = of_walk
    return torch.stack([right, down.transpose(1, 2), left.flip(1, 2), up.transpose(1, 2).flip(1, 2)])


IN_STEPS: dict[Any, Any] = {torch.ops.landfuse.selective_scan: sequence_scan, torch.ops.landfuse.image_scan: image_scan}
"""landfuse's operators, and what takes their place where a model is exported."""
