"""The selective scan on CUDA by Triton kernels (`scan_triton_kernels`); interface as `scan_torch`.

Inputs may be float16 or bfloat16: the kernels read them as they are and compute in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from landfuse.kernels import scan_triton_kernels as kernels
from landfuse.kernels.scan_inputs import ImageInputs, ScanInputs

READS_HALF = True
"""Whether u, delta, B, C, x, factors and dy may come in half precision; else they are converted before."""
_TIME = 64  # steps per tile
_SHORT = 128  # sequences up to this length are one tile: no state has to be carried, and each step is scanned once
_IMAGE_TIME = 32  # likewise of images, which are walked step by step
_WIDE = 32  # channels per program at most: one per thread of a warp
_MANY = 2048  # steps times channels per program
_CARRIED = 128  # states per program of the carry


def try_out() -> None:
    """Compiles the smallest of the kernels, without a tensor; raises what Triton raises."""
    floats = [torch.float32] * 3
    kernels.carry.warmup(*floats, 1, 1, AGAINST=False, MANY=_CARRIED, grid=(1, 1))


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
    time: int  # steps per tile

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
        return length, width, triton.cdiv(width, self.wide), triton.cdiv(length, self.time)

    @property
    def wide(self) -> int:
        """Channels per program."""
        return min(_WIDE, _MANY // self.time)

    def constants(self) -> dict[str, int | bool]:
        """What the kernels are compiled for."""
        rank = 0 if self.weight is None else self.weight.shape[1]
        sizes = {"TIME": self.time, "WIDE": self.wide}
        return {"STATES": self.A.shape[1], "RANK": rank, "SOFTPLUS": self.softplus, **sizes}

    def launch(self) -> tuple[int, int, int]:
        """The grid: tiles, blocks of all groups, batch."""
        _, _, blocks, tiles = self.sizes()
        return tiles, blocks * self.B.shape[2], self.u.shape[0]


def _time(length: int) -> int:
    return max(16, triton.next_power_of_2(length)) if length <= _SHORT else _TIME


def _image_time(length: int) -> int:
    return min(_IMAGE_TIME, max(16, triton.next_power_of_2(length)))


def _carry(ends: Tensor, decays: Tensor, against: bool) -> Tensor:
    """The states that enter each tile, (..., tiles, N, channels); the first is zero."""
    starts = torch.empty_like(ends)
    count = ends.shape[-2] * ends.shape[-1]
    kernels.carry[(triton.cdiv(count, _CARRIED), ends.shape[:-3].numel())](
        ends, decays, starts, ends.shape[-3], count, AGAINST=against, MANY=_CARRIED
    )
    return starts


def _without_rank(inputs: _Inputs) -> dict[str, int | bool]:
    return {name: value for name, value in inputs.constants().items() if name != "RANK"}


def _entering(one: _Inputs) -> Tensor:
    """The states that enter each tile, (B, tiles, N, channels)."""
    shape = one.u.shape[0], one.sizes()[3], *reversed(one.A.shape)
    if shape[1] == 1:
        return torch.zeros(shape, dtype=torch.float32, device=one.u.device)
    ends = torch.empty(shape, dtype=torch.float32, device=one.u.device)
    decays = torch.empty_like(ends)
    raw = one.delta_arguments[0]
    kernels.tile_states[one.launch()](
        one.u, raw, one.A, one.B, one.bias, ends, decays, *one.sizes(),
        *one.u.stride(), *raw.stride(), *one.B.stride(), **_without_rank(one),
    )  # fmt: skip
    return _carry(ends, decays, against=False)


def _leaving(one: _Inputs, starts: Tensor, dy: Tensor) -> Tensor:
    """The adjoints of the states that leave each tile, as `starts` of `_entering`."""
    if one.sizes()[3] == 1:
        return starts  # zeros
    ends, decays = torch.empty_like(starts), torch.empty_like(starts)
    raw = one.delta_arguments[0]
    kernels.tile_adjoints[one.launch()](
        raw, one.A, one.C, one.bias, dy, ends, decays, *one.sizes(),
        *raw.stride(), *one.C.stride(), *dy.stride(), **_without_rank(one),
    )  # fmt: skip
    return _carry(ends, decays, against=True)


def _forward(one: _Inputs, starts: Tensor, y: Tensor) -> None:
    """Writes y, from the states that enter each tile."""
    raw = one.delta_arguments[0]
    kernels.outputs[one.launch()](
        one.u, raw, one.A, one.B, one.C, one.skip, one.bias, starts, y, *one.sizes(),
        *one.u.stride(), *raw.stride(), *one.B.stride(), *one.C.stride(), *y.stride(), **_without_rank(one),
    )  # fmt: skip


class _Gradients(NamedTuple):
    factors: Tensor  # (B, L, R)
    weight: Tensor  # (channels, R)
    A: Tensor
    B: Tensor  # (B, L, G, N)
    C: Tensor
    skip: Tensor
    bias: Tensor


def _backward(
    inputs: _Inputs, starts: Tensor, adjoints: Tensor, dy: Tensor, du: Tensor, draw: Tensor, add: bool
) -> _Gradients:
    """Writes du (or adds to it) and draw."""
    sizes, batch = inputs.sizes(), inputs.u.shape[0]
    length, _, blocks, tiles = sizes
    channels, states = inputs.A.shape
    groups, rank = inputs.B.shape[2], inputs.constants()["RANK"]
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


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape of what `forward` saves."""
    batch, channels, length = inputs.u.shape
    return batch, -(-length // _time(length)), channels * inputs.A.shape[1]


def _sequence(inputs: ScanInputs) -> _Inputs:
    u, delta, A, B, C, D, bias, softplus = inputs
    zeros = torch.zeros_like(A[:, 0], memory_format=torch.contiguous_format)
    return _Inputs(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        None,
        None,
        A.contiguous(),
        B.permute(0, 3, 1, 2),
        C.permute(0, 3, 1, 2),
        zeros if D is None else D.contiguous(),
        zeros if bias is None else bias.contiguous(),
        softplus,
        _Walk(0, u.shape[2], 1, 0),
        _time(u.shape[2]),
    )


def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor]:
    """As `scan_torch.forward`; saves (B, tiles, N*G*D)."""
    y = torch.empty_like(inputs.u, dtype=torch.float32)
    sequence = _sequence(inputs)
    starts = _entering(sequence)
    _forward(sequence, starts, y.transpose(1, 2))
    return y, starts.flatten(2) if save else starts.new_empty(0)


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """As `scan_torch.backward`."""
    u, A = inputs.u, inputs.A
    du, draw = torch.empty_like(u, dtype=torch.float32), torch.empty_like(inputs.delta, dtype=torch.float32)
    starts = saved.view(u.shape[0], -1, A.shape[1], A.shape[0])
    sequence, dy, du_steps, draw_steps = _sequence(inputs), *(t.transpose(1, 2) for t in (dy, du, draw))
    out = _backward(sequence, starts, _leaving(sequence, starts, dy), dy, du_steps, draw_steps, add=False)
    return du, draw, out.A, out.B.permute(0, 2, 3, 1), out.C.permute(0, 2, 3, 1), out.skip, out.bias


def image_saved_shape(inputs: ImageInputs) -> tuple[int, ...]:
    """The shape of what `image_forward` saves."""
    batch, height, width, channels = inputs.x.shape
    return 4, batch, -(-(height * width) // _image_time(height * width)), channels * inputs.A.shape[1]


def _walk(
    image: ImageInputs, gives: str, x: Tensor, states: Tensor, decays: Tensor, y: Tensor, out: Tensor, walk: int | None
) -> None:
    """Launches `image_walk`, for all walks where none is named."""
    batch, height, width, channels = image.x.shape
    N, rank = image.A.shape[1], image.rank_weight.shape[1]
    grid = states.shape[2], triton.cdiv(channels, _WIDE), 4 * batch if walk is None else batch
    kernels.image_walk[grid](
        x, image.factors, image.rank_weight, image.A, image.delta_bias, image.D, states, decays, y, out,
        height, width, channels, states.shape[2], batch, walk or 0, GIVES=gives, STATES=N,
        N=triton.next_power_of_2(N), RANK=rank, R=triton.next_power_of_2(rank), ADD=bool(walk),
        TIME=_image_time(height * width), WIDE=_WIDE, num_warps=1,
    )  # fmt: skip


def _carried(image: ImageInputs, gives: str, x: Tensor) -> Tensor:
    """The states that enter each tile of each walk, (4, B, tiles, N, D), or the adjoints of those that leave it."""
    states = image.A.shape[1]
    shape = *image_saved_shape(image)[:3], states, image.x.shape[3]
    if shape[2] == 1:
        return torch.zeros(shape, dtype=torch.float32, device=x.device)
    ends = torch.empty(shape, dtype=torch.float32, device=x.device)
    decays = torch.empty_like(ends)
    _walk(image, gives, x, ends, decays, ends, ends, None)
    return _carry(ends, decays, against=gives == "adjoints")


def _contiguous(image: ImageInputs) -> ImageInputs:
    return ImageInputs(*(tensor.contiguous() for tensor in image))


def _image(image: ImageInputs) -> tuple[list[_Inputs], list[slice]]:
    """The four walks' inputs, and each one's place among the factors."""
    x, factors, A, rank_weight, bias, skip = image
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
                _image_time(length),
            )
        )
        places.append(slice(at, at + each))
    return inputs, places


def image_forward(image: ImageInputs, save: bool) -> tuple[Tensor, Tensor]:
    """As `scan_torch.image_forward`, in the type of x; saves (4, B, tiles, N*D)."""
    image = _contiguous(image)
    starts = _carried(image, "states", image.x)
    y = torch.empty_like(image.x, dtype=torch.float32)  # of all walks but the last
    out = y if image.x.dtype == torch.float32 else torch.empty_like(image.x)
    for k in range(4):
        _walk(image, "outputs", image.x, starts, starts, y, out if k == 3 else y, k)
    return out, starts.flatten(3) if save else starts.new_empty(0)


def image_backward(dy: Tensor, image: ImageInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """As `scan_torch.image_backward`."""
    image, dy = _contiguous(image), dy.contiguous()
    x, factors = image.x, image.factors
    inputs, places = _image(image)
    starts = saved.view(*saved.shape[:3], image.A.shape[1], x.shape[3])
    adjoints = _carried(image, "adjoints", dy)
    dx = torch.empty_like(x, dtype=torch.float32)
    dfactors = torch.empty_like(factors, dtype=torch.float32)
    flat = dfactors.flatten(1, 2)
    outs = []
    for k, (one, place) in enumerate(zip(inputs, places, strict=True)):
        wide = dx.flatten(1, 2)
        out = _backward(one, starts[k], adjoints[k], dy.flatten(1, 2), wide, wide, add=k > 0)
        flat[:, :, place] = torch.cat([out.factors, out.B.squeeze(2), out.C.squeeze(2)], dim=-1)
        outs.append(out)
    joined = (torch.cat([getattr(out, name) for out in outs]) for name in ("A", "weight", "bias", "skip"))
    return dx, dfactors, *joined
