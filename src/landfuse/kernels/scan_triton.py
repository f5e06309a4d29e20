"""The selective scan on CUDA by Triton kernels (`scan_triton_kernels`); interface as `scan_torch`.

Inputs may be float16 or bfloat16: the kernels read them as they are and compute in float32.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from landfuse.kernels import scan_torch
from landfuse.kernels import scan_triton_kernels as kernels
from landfuse.kernels.scan_inputs import ImageInputs, ScanInputs

READS_HALF = True
"""Whether u, delta, B, C, x, factors and dy may come in half precision; else they are converted before."""
_TIME = 32  # steps per tile where a backward pass follows, or few channels leave most of a GPU idle
_LONG = 128  # steps per tile otherwise; sequences up to this length are one tile: no state has to be carried
_FEW = 1056  # programs: 8 for each multiprocessor of an H100
_WIDE = 32  # channels per program: one per thread of a warp
_CARRIED = 128  # states per program of the carry


def try_out(device: torch.device) -> None:
    """Computes a small scan of two tiles and its gradients; raises what Triton raises, or RuntimeError where PyTorch
    gives other numbers."""
    draw = torch.Generator().manual_seed(0)
    shapes = (1, 3, 40), (1, 3, 40), (1, 1, 2, 40), (1, 1, 2, 40)
    drawn = [torch.randn(shape, generator=draw) for shape in shapes]
    drawn.insert(2, -torch.rand(3, 2, generator=draw))
    results = []
    for scan, place in ((scan_torch, torch.device("cpu")), (sys.modules[__name__], device)):
        u, delta, A, B, C = (tensor.to(place) for tensor in drawn)
        there = ScanInputs(u, delta, A, B, C, delta_softplus=True)
        y, saved = scan.forward(there, True)
        results.append([y, *scan.backward(torch.ones_like(y), there, saved)])
    for ours, truth in zip(*reversed(results), strict=True):
        if not torch.allclose(ours.cpu(), truth, rtol=1e-3, atol=1e-4):
            raise RuntimeError("its results are not those of PyTorch")


class _Inputs(NamedTuple):
    """What the kernels read; delta is softplus(raw + bias), or softplus(weight r + bias) if there is a rank."""

    u: Tensor  # (B, L, G, D), as raw
    raw: Tensor  # u where there is a rank
    factors: Tensor  # r: (B, L, G, R); without a rank raw
    weight: Tensor  # (G*D, R); without a rank A
    A: Tensor  # (G*D, N)
    B: Tensor  # (B, L, G, N), as C
    C: Tensor
    skip: Tensor  # (G*D,), as bias
    bias: Tensor
    softplus: bool
    time: int  # steps per tile
    rank: int = 0
    sides: tuple[int, int] | None = None  # of an image, over which the groups walk; their results are added up

    def carried_shape(self) -> tuple[int, ...]:
        """Of the states that enter each tile: (G, B, tiles, N, D)."""
        batch, length, groups, channels = self.u.shape
        return groups, batch, triton.cdiv(length, self.time), self.A.shape[1], channels

    def launches(self) -> list[int]:
        """The first groups of the launches, one for each group whose result is added to the others'."""
        return list(range(self.u.shape[2])) if self.sides else [0]

    def numbers(self, first: int, u: Tensor) -> list[int]:
        """Sizes, from the first group on, then strides; `u` is read in the place of u."""
        _, batch, tiles, _, channels = self.carried_shape()
        sizes = [self.u.shape[1], *(self.sides or (0, 0)), first, batch, channels, tiles]
        return [*sizes, *u.stride(), *self.raw.stride(), *self.factors.stride()[:3], *self.B.stride(), *self.C.stride()]

    def constants(self) -> dict[str, int | bool]:
        """What the kernels are compiled for."""
        options = {"SOFTPLUS": self.softplus, "WALKS": self.sides is not None, "TIME": self.time, "WIDE": _WIDE}
        return {"STATES": self.A.shape[1], "RANK": self.rank, **options}

    def without_backward(self) -> _Inputs:
        """The same in longer tiles, where enough programs remain."""
        longer = self._replace(time=_LONG)
        groups, batch, tiles, _, channels = longer.carried_shape()
        programs = groups * batch * tiles * triton.cdiv(channels, _WIDE) // len(self.launches())
        return longer if tiles == 1 or programs >= _FEW else self

    def walk(
        self, gives: str, u: Tensor, states: Tensor, totals: Tensor, y: Tensor, out: Tensor, first: int, groups: int
    ) -> None:
        _, batch, tiles, _, channels = self.carried_shape()
        N, R = (triton.next_power_of_2(count) for count in (self.A.shape[1], self.rank or 1))
        kernels.walk[groups * batch * tiles, triton.cdiv(channels, _WIDE)](
            u, *self[1:9], states, totals, y, out, *self.numbers(first, u), *y.stride(),
            GIVES=gives, N=N, R=R, ADD=first > 0, **self.constants(), num_warps=1,
        )  # fmt: skip

    def carried(self, gives: str, u: Tensor) -> Tensor:
        """The states that enter each tile, or the adjoints of those that leave it; none where there is one tile."""
        groups, batch, tiles, states, channels = shape = self.carried_shape()
        if tiles == 1:
            return torch.empty(0, device=u.device)
        ends, starts = (torch.empty(shape, device=u.device) for _ in range(2))
        totals = torch.empty(groups, batch, tiles, channels, device=u.device)
        self.walk(gives, u, ends, totals, u, u, 0, groups)
        kernels.carry[groups * batch, triton.cdiv(states * channels, _CARRIED)](
            ends, totals, self.A, starts, batch, tiles, channels,
            STATES=states, AGAINST=gives == "adjoints", MANY=_CARRIED,
        )  # fmt: skip
        return starts

    def summed(self, out: Tensor) -> Tensor:
        """Where results of groups are added up in float32 before the last one writes `out`; of the same strides."""
        if self.sides is None or out.dtype == torch.float32:
            return out
        return torch.empty_like(out[:, :, :1], dtype=torch.float32).expand_as(out)

    def forward(self, out: Tensor) -> Tensor:
        """Writes y, (B, L, G, D); returns what `carried` does."""
        starts, firsts, y = self.carried("states", self.u), self.launches(), self.summed(out)
        for first in firsts:
            to = out if first == firsts[-1] else y
            self.walk("outputs", self.u, starts, starts, y, to, first, self.u.shape[2] // len(firsts))
        return starts

    def backward(self, starts: Tensor, dy: Tensor, out: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the gradients of u and raw.

        Returns:
            Those of factors, B and C, (B, L, G, R + 2N), and of A, skip, bias and weight, (G, N + 2 + R, D).
        """
        adjoints, firsts, du = self.carried("adjoints", dy), self.launches(), self.summed(out)
        groups, batch, tiles, states, channels = self.carried_shape()
        blocks, length, each = triton.cdiv(channels, _WIDE), self.u.shape[1], groups // len(firsts)
        narrow = out.new_empty(batch, length, groups, self.rank + 2 * states, dtype=torch.float32)
        rows = out.new_empty(groups, states + 2 + self.rank, channels, dtype=torch.float32)
        for first in firsts:
            narrow_parts = narrow.new_empty(blocks, each, batch, length, narrow.shape[3])
            row_parts = rows.new_empty(each, batch * tiles, *rows.shape[1:])
            kernels.gradients[each * batch * tiles, blocks](
                *self[:9], starts, adjoints, dy, du, out if first == firsts[-1] else du, draw, narrow_parts,
                row_parts, *self.numbers(first, self.u), *dy.stride(), *du.stride(), *draw.stride(),
                ADD=first > 0, **self.constants(),
            )  # fmt: skip
            these = slice(first, first + each)
            torch.sum(narrow_parts, 0, out=narrow[:, :, these].permute(2, 0, 1, 3))
            torch.sum(row_parts, 1, out=rows[these])
        return narrow, rows


def _sequence(inputs: ScanInputs) -> _Inputs:
    u, delta, A, B, C, D, bias, softplus = inputs
    groups, zeros = B.shape[1], torch.zeros_like(A[:, 0], memory_format=torch.contiguous_format)
    skip, offset = (zeros if t is None else t.contiguous() for t in (D, bias))
    B, C = (t.permute(0, 3, 1, 2) for t in (B, C))
    u, raw = _by_group(u, groups), _by_group(delta, groups)
    return _Inputs(u, raw, raw, A, A.contiguous(), B, C, skip, offset, softplus, _TIME)


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """(B, G*D, L) -> (B, L, G, D)."""
    return tensor.unflatten(1, (groups, -1)).permute(0, 3, 1, 2)


def _by_channel(rows: Tensor) -> Tensor:
    """(G, N, D) -> (G*D, N)."""
    return rows.transpose(1, 2).flatten(0, 1)


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape of what `forward` saves."""
    return _saved_shape(_sequence(inputs))


def _saved_shape(inputs: _Inputs) -> tuple[int, ...]:
    shape = inputs.carried_shape()
    return shape if shape[2] > 1 else (0,)


def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor]:
    """As `scan_torch.forward`, in the type of u."""
    y = torch.empty_like(inputs.u)
    sequence = _sequence(inputs)
    starts = (sequence if save else sequence.without_backward()).forward(_by_group(y, inputs.B.shape[1]))
    return y, starts if save else starts.new_empty(0)


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """As `scan_torch.backward`, the first two in the types of u and delta."""
    groups, states = inputs.B.shape[1], inputs.A.shape[1]
    du, draw = torch.empty_like(inputs.u), torch.empty_like(inputs.delta)
    dy_steps, du_steps, draw_steps = (_by_group(t, groups) for t in (dy, du, draw))
    narrow, rows = _sequence(inputs).backward(saved, dy_steps, du_steps, draw_steps)
    dB, dC = narrow.permute(0, 2, 3, 1).split(states, dim=2)
    return du, draw, _by_channel(rows[:, :states]), dB, dC, rows[:, states].flatten(), rows[:, states + 1].flatten()


def _image(image: ImageInputs) -> _Inputs:
    x, factors, A, rank_weight, bias, skip = (tensor.contiguous() for tensor in image)
    states, rank = A.shape[1], rank_weight.shape[1]
    low, B, C = factors.flatten(1, 2).unflatten(2, (4, -1)).split([rank, states, states], dim=-1)
    u = _shared(x)
    return _Inputs(u, u, low, rank_weight, A, B, C, skip, bias, True, _TIME, rank, (x.shape[1], x.shape[2]))


def _shared(x: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, L, 4, D), the same for all groups."""
    return x.flatten(1, 2).unsqueeze(2).expand(-1, -1, 4, -1)


def image_saved_shape(inputs: ImageInputs) -> tuple[int, ...]:
    """The shape of what `image_forward` saves."""
    return _saved_shape(_image(inputs))


def image_forward(image: ImageInputs, save: bool) -> tuple[Tensor, Tensor]:
    """As `scan_torch.image_forward`, in the type of x."""
    y = torch.empty_like(image.x, memory_format=torch.contiguous_format)
    walks = _image(image)
    starts = (walks if save else walks.without_backward()).forward(_shared(y))
    return y, starts if save else starts.new_empty(0)


def image_backward(dy: Tensor, image: ImageInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """As `scan_torch.image_backward`."""
    states = image.A.shape[1]
    dx = torch.empty_like(image.x, memory_format=torch.contiguous_format)
    narrow, rows = _image(image).backward(saved, _shared(dy.contiguous()), *[_shared(dx)] * 2)
    dA, dweight = _by_channel(rows[:, :states]), _by_channel(rows[:, states + 2 :])
    dskip, dbias = rows[:, states].flatten(), rows[:, states + 1].flatten()
    return dx, narrow.view(image.factors.shape), dA, dweight, dbias, dskip
