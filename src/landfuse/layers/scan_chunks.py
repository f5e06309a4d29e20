"""Sweeps of the selective scan in PyTorch operations: time as a grid of chunks by steps.

Time is laid out as a grid of I chunks by J steps. All chunks advance together, one step at a time, from a zero
state; a short loop then carries the state from chunk to chunk; a second sweep starts from the right states. So there
are J steps of wide operations instead of L narrow ones. The decay over a chunk is exp(A times the sum of delta): only
products of decays appear, never the exponential of a negated running sum, which overflows. The backward pass walks the
same grid against time.

In this module tensors are (B, I, J, G, D) and (B, I, J, G, N) views of the caller's memory: D channels in a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Scratch:
    """Named buffers, reused by all steps of one call: fresh large allocations cost page faults."""

    def __init__(self, like: Tensor) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._like = like

    def __call__(self, name: str, *shape: int) -> Tensor:
        """The buffer of this name, in this shape; its content is whatever was left there."""
        count = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[name] = self._like.new_empty(count)
        return buffer[:count].view(shape)


@dataclass
class Grid:
    """The inputs of one sweep."""

    u: Tensor  # (B, I, J, G, D)
    raw: Tensor  # (B, I, J, G, D), delta before bias and softplus
    A: Tensor  # (G, N, D)
    B: Tensor  # (B, I, J, G, N)
    C: Tensor  # (B, I, J, G, N)
    skip: Tensor | None  # (G, D)
    bias: Tensor | None  # (G, D)
    softplus: bool
    reverse: bool

    @property
    def slab(self) -> tuple[int, int, int, int]:
        """The shape of one step without states."""
        return (*self.u.shape[:2], *self.u.shape[3:])

    @property
    def state_slab(self) -> tuple[int, int, int, int, int]:
        """The shape of one step's states, (B, I, G, N, D)."""
        batch, chunks, groups, width = self.slab
        return batch, chunks, groups, self.A.shape[1], width

    def steps(self) -> list[int]:
        """The places along J in the order of time."""
        places = list(range(self.u.shape[2]))
        return places[::-1] if self.reverse else places

    def delta(self, step: int, out: Tensor, scratch: Scratch) -> Tensor:
        """Delta of one step, into `out`."""
        raw = self.raw[:, :, step]
        if self.bias is not None:
            raw = torch.add(raw, self.bias, out=scratch("raw", *self.slab))
        if not self.softplus:
            return out.copy_(raw)
        # log1p(exp(.)) is 1.5 times faster than the library's softplus on a CPU; from 80 on softplus is the identity.
        torch.clamp(raw, max=80.0, out=out).exp_().log1p_()
        return torch.maximum(out, raw, out=out)

    def decay(self, delta: Tensor, scratch: Scratch) -> Tensor:
        """exp(delta A), (B, I, G, N, D)."""
        return torch.mul(delta.unsqueeze(3), self.A, out=scratch("decay", *self.state_slab)).exp_()

    def advance(self, step: int, delta: Tensor, before: Tensor, after: Tensor, scratch: Scratch) -> None:
        """One step of the recurrence, from `before` into `after` (which may be the same)."""
        decay = self.decay(delta, scratch)
        entering = torch.mul(delta, self.u[:, :, step], out=scratch("entering", *self.slab))
        entering = torch.mul(
            entering.unsqueeze(3), self.B[:, :, step].unsqueeze(-1), out=scratch("states", *self.state_slab)
        )
        torch.addcmul(entering, decay, before, out=after)


def _sum_states(weights: Tensor, states: Tensor, out: Tensor, add: bool) -> Tensor:
    """Sum over N of weights (.., N) times states (.., N, D), into `out` (.., D) or added to it."""
    if states.shape[-2] == 1:
        squeezed = states.squeeze(-2)
        return out.addcmul_(weights, squeezed) if add else torch.mul(weights, squeezed, out=out)
    read = torch.matmul(weights.unsqueeze(-2), states).squeeze(-2)
    return out.add_(read) if add else out.copy_(read)


def _sum_channels(states: Tensor, values: Tensor, scratch: Scratch) -> Tensor:
    """Sum over D of states (.., N, D) times values (.., D): (.., N)."""
    if states.shape[-2] == 1:
        product = torch.mul(states.squeeze(-2), values, out=scratch("sum", *values.shape))
        return product.sum(-1, keepdim=True)
    return torch.matmul(states, values.unsqueeze(-1)).squeeze(-1)


def _carry(ends: Tensor, decays: Tensor, entering: Tensor, against: bool) -> tuple[Tensor, Tensor]:
    """Carries a state over the chunks.

    Args:
        ends: (B, I, G, N, D), what each chunk ends with when it starts from zero.
        decays: same shape, what is left at its end of what it starts with, less 1 (that is, expm1 of the exponent).
        entering: (B, G, N, D), the state before the first chunk.
        against: go from the last chunk to the first.

    Returns:
        The state that each chunk starts with, same shape as `ends`, and the state after the last.
    """
    starts, state = torch.empty_like(ends), entering
    for i in reversed(range(ends.shape[1])) if against else range(ends.shape[1]):
        starts[:, i] = state
        state = state + torch.addcmul(ends[:, i], decays[:, i], state)
    return starts, state


def sweep(grid: Grid, entering: Tensor, y: Tensor, add: bool, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Writes y (B, I, J, G, D), or adds to it; returns the chunks' starting states and the state after the last."""
    chunks, steps = grid.u.shape[1:3]
    deltas = scratch("deltas", steps if chunks > 1 else 1, *grid.slab)
    last = None
    if chunks > 1:
        ends = grid.u.new_zeros(grid.state_slab)
        total = grid.u.new_zeros(grid.slab)
        for step in grid.steps():
            total += grid.delta(step, deltas[step], scratch)
            grid.advance(step, deltas[step], ends, ends, scratch)
        starts, last = _carry(ends, (total.unsqueeze(3) * grid.A).expm1_(), entering, grid.reverse)
    else:
        starts = entering.unsqueeze(1).clone()
    state = starts.clone()
    for step in grid.steps():
        delta = deltas[step] if chunks > 1 else grid.delta(step, deltas[0], scratch)
        grid.advance(step, delta, state, state, scratch)
        out = _sum_states(grid.C[:, :, step], state, y[:, :, step], add)
        if grid.skip is not None:
            out.addcmul_(grid.u[:, :, step], grid.skip)
    return starts, state[:, 0] if last is None else last


@dataclass
class Gradients:
    """Where one backward sweep leaves its results: views like those of `Grid`; A, skip and bias are added to."""

    u: Tensor
    raw: Tensor
    A: Tensor  # (G, N, D)
    B: Tensor
    C: Tensor
    skip: Tensor  # (G, D)


def sweep_back(
    grid: Grid, starts: Tensor, leaving: Tensor, dy: Tensor, out: Gradients, add: bool, scratch: Scratch
) -> Tensor:
    """The gradients of one sweep.

    Args:
        grid: the inputs.
        starts: (B, I, G, N, D), the chunks' starting states, as `sweep` returned them.
        leaving: (B, G, N, D), the adjoint of the state after the last step.
        dy: (B, I, J, G, D), the adjoint of y.
        out: takes the gradients.
        add: add to the gradient of u instead of writing it.
        scratch: buffers.

    Returns:
        The adjoint of the state before the first step, (B, G, N, D).
    """
    chunks, steps = grid.u.shape[1:3]
    order = grid.steps()
    deltas = scratch("deltas", steps, *grid.slab)
    states = scratch("history", steps + 1, *grid.state_slab)
    states[0].copy_(starts)
    total = grid.u.new_zeros(grid.slab)
    for number, step in enumerate(order):
        total += grid.delta(step, deltas[step], scratch)
        grid.advance(step, deltas[step], states[number], states[number + 1], scratch)

    first = None
    if chunks > 1:
        ends = grid.u.new_zeros(grid.state_slab)
        for step in reversed(order):
            ends.addcmul_(dy[:, :, step].unsqueeze(3), grid.C[:, :, step].unsqueeze(-1))
            ends *= grid.decay(deltas[step], scratch)
        adjoint, first = _carry(ends, (total.unsqueeze(3) * grid.A).expm1_(), leaving, not grid.reverse)
    else:
        adjoint = leaving.unsqueeze(1).clone()

    sum_A, sum_skip = grid.u.new_zeros(grid.state_slab), grid.u.new_zeros(grid.slab)
    at_state, kept = scratch("at_state", *grid.state_slab), scratch("kept", *grid.state_slab)
    dentering, ddelta = scratch("dentering", *grid.slab), scratch("ddelta", *grid.slab)
    for number, step in reversed(list(enumerate(order))):
        u, out_u, delta, dout = grid.u[:, :, step], out.u[:, :, step], deltas[step], dy[:, :, step]
        B, C = grid.B[:, :, step], grid.C[:, :, step]
        torch.addcmul(adjoint, dout.unsqueeze(3), C.unsqueeze(-1), out=at_state)
        entering = torch.mul(delta, u, out=scratch("entering", *grid.slab))
        out.C[:, :, step].copy_(_sum_channels(states[number + 1], dout, scratch))
        out.B[:, :, step].copy_(_sum_channels(at_state, entering, scratch))
        _sum_states(B, at_state, dentering, add=False)
        torch.mul(grid.decay(delta, scratch), at_state, out=adjoint)
        torch.mul(adjoint, states[number], out=kept)
        sum_A.addcmul_(kept, delta.unsqueeze(3))
        kept *= grid.A
        torch.sum(kept, 3, out=ddelta)
        ddelta.addcmul_(dentering, u)
        if grid.softplus:
            raw = grid.raw[:, :, step]
            slope = scratch("slope", *grid.slab)
            torch.sigmoid(raw if grid.bias is None else torch.add(raw, grid.bias, out=slope), out=slope)
            torch.mul(ddelta, slope, out=out.raw[:, :, step])
        else:
            out.raw[:, :, step].copy_(ddelta)
        if add:
            out_u.addcmul_(dentering, delta)
        else:
            torch.mul(dentering, delta, out=out_u)
        if grid.skip is not None:
            out_u.addcmul_(dout, grid.skip)
            sum_skip.addcmul_(dout, u)
    out.A += sum_A.sum((0, 1))
    out.skip += sum_skip.sum((0, 1))
    return adjoint[:, 0] if first is None else first
