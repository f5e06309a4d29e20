"""The selective scan on CUDA by Triton kernels (`scan_triton_kernels`); interface as `scan_torch`.

Inputs may be float16 or bfloat16: the kernels read them as they are and compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from landfuse.kernels import scan_triton_kernels as kernels

READS_HALF = True
"""Whether u, delta, B, C, x, factors and dy may come in half precision; if not, they are converted before."""
_TIME = 64  # steps per tile
_WIDE = 32  # channels per program
_CARRIED = 128  # states per program of the carry


class _Walk(NamedTuple):
    """The place of step t: start + (t // inner) * outer_step + (t % inner) * inner_step."""

    start: int
    inner: int
    inner_step: int
    outer_step: int


class _Inputs(NamedTuple):
    """One launch's inputs, (B, L, D) or (B, L, G, N) views; either `raw` or `factors` and `weight` give delta."""

    u: Tensor
    raw: Tensor | None
    factors: Tensor | None
    weight: Tensor | None
    A: Tensor
    B: Tensor
    C: Tensor
    skip: Tensor
    bias: Tensor
    softplus: bool
    walk: _Walk

    @property
    def delta_arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Raw delta, factors and weight; u stands in for what is absent and never read."""
        return tuple(self.u if t is None else t for t in (self.raw, self.factors, self.weight))  # type: ignore[return-value]

    @property
    def delta_strides(self) -> tuple[int, ...]:
        """Of raw delta (batch, time, channel) and of the factors (batch, time)."""
        raw, factors, _ = self.delta_arguments
        return *raw.stride()[:3], *factors.stride()[:2]

    def sizes(self) -> tuple[int, int, int, int]:
        """Length, channels per group, blocks per group, tiles."""
        length, width = self.u.shape[1], self.A.shape[0] // self.B.shape[2]
        return length, width, triton.cdiv(width, _WIDE), triton.cdiv(length, _time(length))

    def constants(self) -> dict[str, int | bool]:
        """What the kernels are compiled for."""
        rank = 0 if self.weight is None else self.weight.shape[1]
        time = _time(self.u.shape[1])
        return {"STATES": self.A.shape[1], "RANK": rank, "SOFTPLUS": self.softplus, "TIME": time, "WIDE": _WIDE}

    def launch(self) -> tuple[int, int, int]:
        """The grid: tiles, blocks of all groups, batch."""
        _, _, blocks, tiles = self.sizes()
        return tiles, blocks * self.B.shape[2], self.u.shape[0]


def _time(length: int) -> int:
    return min(_TIME, max(16, triton.next_power_of_2(length)))


def _carry(ends: Tensor, decays: Tensor, entering: Tensor, against: bool) -> tuple[Tensor, Tensor]:
    """The states that enter each tile, (B, tiles, N, channels), and the one that leaves the last, (B, N, channels)."""
    batch, tiles = ends.shape[:2]
    count = ends.shape[2] * ends.shape[3]
    starts, last = torch.empty_like(ends), torch.empty_like(entering)
    kernels.carry[(triton.cdiv(count, _CARRIED), batch)](
        ends, decays, starts, entering, last, tiles, count, AGAINST=against, MANY=_CARRIED
    )
    return starts, last


def _forward(inputs: _Inputs, y: Tensor, add: bool) -> tuple[Tensor, Tensor]:
    """Writes or adds to y; returns the states entering each tile and the last one, (B, N, channels)."""
    sizes, batch = inputs.sizes(), inputs.u.shape[0]
    channels, states = inputs.A.shape
    ends = torch.empty((batch, sizes[3], states, channels), dtype=torch.float32, device=y.device)
    decays = torch.empty_like(ends)
    common = (*sizes, *inputs.walk, *inputs.u.stride(), *inputs.delta_strides, *inputs.B.stride())
    kernels.tile_states[inputs.launch()](
        inputs.u, *inputs.delta_arguments, inputs.A, inputs.B, inputs.bias, ends, decays, *common, **inputs.constants()
    )
    starts, last = _carry(ends, decays, ends.new_zeros(batch, states, channels), against=False)
    kernels.outputs[inputs.launch()](
        inputs.u, *inputs.delta_arguments, inputs.A, inputs.B, inputs.C, inputs.skip, inputs.bias, starts, y,
        *common, *inputs.C.stride(), *y.stride(), ADD=add, **inputs.constants(),
    )  # fmt: skip
    return starts, last


class _Gradients(NamedTuple):
    factors: Tensor  # (B, L, R)
    weight: Tensor  # (channels, R)
    A: Tensor
    B: Tensor  # (B, L, G, N)
    C: Tensor
    skip: Tensor
    bias: Tensor


def _backward(
    inputs: _Inputs, starts: Tensor, leaving: Tensor, dy: Tensor, du: Tensor, draw: Tensor, add: bool
) -> _Gradients:
    """Writes du (or adds to it) and draw; `leaving` is the adjoint of the last state, (B, N, channels)."""
    sizes, batch = inputs.sizes(), inputs.u.shape[0]
    length, _, blocks, tiles = sizes
    channels, states = inputs.A.shape
    groups, rank = inputs.B.shape[2], inputs.constants()["RANK"]
    ends, decays = torch.empty_like(starts), torch.empty_like(starts)
    kernels.tile_adjoints[inputs.launch()](
        *inputs.delta_arguments, inputs.A, inputs.C, inputs.bias, dy, ends, decays,
        *sizes, *inputs.walk, *inputs.delta_strides, *inputs.C.stride(), *dy.stride(), **inputs.constants(),
    )  # fmt: skip
    adjoints, _ = _carry(ends, decays, leaving, against=True)
    dB = starts.new_empty(blocks, batch, length, groups, states)
    dfactors = starts.new_empty(blocks, batch, length, rank)
    dA = torch.empty_like(starts)
    dskip, dbias = starts.new_empty(batch, tiles, channels), starts.new_empty(batch, tiles, channels)
    dweight = starts.new_empty(batch, tiles, channels, rank)
    dC = torch.empty_like(dB)
    kernels.gradients[inputs.launch()](
        inputs.u, *inputs.delta_arguments, inputs.A, inputs.B, inputs.C, inputs.skip, inputs.bias, starts, adjoints, dy,
        du, draw, dfactors, dB, dC, dA, dskip, dbias, dweight, *sizes, *inputs.walk,
        *inputs.u.stride(), *inputs.delta_strides, *inputs.B.stride(), *inputs.C.stride(), *dy.stride(),
        *du.stride(), *draw.stride()[:3], ADD=add, **inputs.constants(),
    )  # fmt: skip
    sum_A = dA.sum((0, 1)).t()
    return _Gradients(
        dfactors.sum(0), dweight.sum((0, 1)), sum_A, dB.sum(0), dC.sum(0), dskip.sum((0, 1)), dbias.sum((0, 1))
    )


def saved_tiles(batch: int, channels: int, length: int, states: int, device: torch.device) -> int:
    """How many states per channel the forward pass saves for the backward one."""
    return -(-length // _time(length))


def _sequence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor | None, bias: Tensor | None, softplus: bool
) -> _Inputs:
    zeros = torch.zeros_like(A[:, 0], memory_format=torch.contiguous_format)
    return _Inputs(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        None,
        None,
        A.contiguous(),
        B.permute(0, 3, 1, 2),
        C.permute(0, 3, 1, 2),
        zeros if skip is None else skip.contiguous(),
        zeros if bias is None else bias.contiguous(),
        softplus,
        _Walk(0, u.shape[2], 1, 0),
    )


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `scan_torch.forward`; saves (B, tiles, N*G*D)."""
    y = torch.empty_like(u, dtype=torch.float32)
    starts, last = _forward(_sequence(u, delta, A, B, C, skip, bias, softplus), y.transpose(1, 2), add=False)
    return y, last.transpose(1, 2), starts.flatten(2) if save else starts.new_empty(0)


def backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `scan_torch.backward`."""
    inputs = _sequence(u, delta, A, B, C, skip, bias, softplus)
    du, draw = torch.empty_like(u, dtype=torch.float32), torch.empty_like(delta, dtype=torch.float32)
    starts = saved.view(u.shape[0], -1, A.shape[1], A.shape[0])
    leaving = dlast.transpose(1, 2).contiguous()
    out = _backward(inputs, starts, leaving, dy.transpose(1, 2), du.transpose(1, 2), draw.transpose(1, 2), add=False)
    return du, draw, out.A, out.B.permute(0, 2, 3, 1), out.C.permute(0, 2, 3, 1), out.skip, out.bias


def image_saved(shape: Sequence[int], states: int) -> tuple[int, ...]:
    """The shape of what `image_forward` saves for x of this shape."""
    batch, height, width, channels = shape
    return batch, 4, saved_tiles(0, 0, height * width, 0, torch.device("cpu")), states * channels


def _image(
    x: Tensor, factors: Tensor, A: Tensor, rank_weight: Tensor, bias: Tensor, skip: Tensor
) -> tuple[list[_Inputs], list[slice]]:
    """The four walks' inputs, and each one's place among the factors."""
    _, height, width, channels = x.shape
    length, states, rank = height * width, A.shape[1], rank_weight.shape[1]
    walks = (
        _Walk(0, length, 1, 0),
        _Walk(0, height, width, 1),
        _Walk(length - 1, length, -1, 0),
        _Walk(length - 1, height, -width, -1),
    )
    flat, each = factors.flatten(1, 2), rank + 2 * states
    inputs, places = [], []
    for k, walk in enumerate(walks):
        of_k, at = slice(k * channels, (k + 1) * channels), k * each
        low_rank, B, C = flat[:, :, at : at + each].split([rank, states, states], dim=-1)
        inputs.append(
            _Inputs(
                x.flatten(1, 2),
                None,
                low_rank,
                rank_weight[of_k].contiguous(),
                A[of_k].contiguous(),
                B.unsqueeze(2),
                C.unsqueeze(2),
                skip[of_k].contiguous(),
                bias[of_k].contiguous(),
                True,
                walk,
            )
        )
        places.append(slice(at, at + each))
    return inputs, places


def image_forward(
    x: Tensor, factors: Tensor, A: Tensor, rank_weight: Tensor, bias: Tensor, skip: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """As `scan_torch.image_forward`; saves (B, 4, tiles, N*D)."""
    x, factors = x.contiguous(), factors.contiguous()
    y = torch.empty_like(x, dtype=torch.float32)
    inputs, _ = _image(x, factors, A, rank_weight, bias, skip)
    states = [_forward(one, y.flatten(1, 2), add=k > 0)[0] for k, one in enumerate(inputs)]
    return y, torch.stack(states, 1).flatten(3) if save else y.new_empty(0)


def image_backward(
    dy: Tensor,
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    bias: Tensor,
    skip: Tensor,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `scan_torch.image_backward`."""
    x, factors, dy = x.contiguous(), factors.contiguous(), dy.contiguous()
    inputs, places = _image(x, factors, A, rank_weight, bias, skip)
    batch, _, _, channels = x.shape
    states = A.shape[1]
    starts = saved.view(batch, 4, -1, states, channels)
    dx = torch.empty_like(x, dtype=torch.float32)
    dfactors = torch.empty_like(factors, dtype=torch.float32)
    flat = dfactors.flatten(1, 2)
    outs = []
    for k, (one, place) in enumerate(zip(inputs, places, strict=True)):
        leaving = dx.new_zeros(batch, states, channels)
        wide = dx.flatten(1, 2)
        out = _backward(one, starts[:, k].contiguous(), leaving, dy.flatten(1, 2), wide, wide, add=k > 0)
        flat[:, :, place] = torch.cat([out.factors, out.B.squeeze(2), out.C.squeeze(2)], dim=-1)
        outs.append(out)
    joined = (torch.cat([getattr(out, name) for out in outs]) for name in ("A", "weight", "bias", "skip"))
    return dx, dfactors, *joined  # type: ignore[return-value]
