"""Sweeps of the selective scan in PyTorch operations: time as a grid of chunks by steps.

What does not depend on the step before (delta, the decays, what enters, all sums for the gradients) is computed for a
whole piece at once; only `h = decay h + entering` goes step by step, one operation per step. All chunks of a piece
advance together: once from a zero state, then a short loop carries the state from chunk to chunk, then again from the
right states. The decay over a chunk is exp(A times the sum of delta): only products of decays appear, never the
exponential of a negated running sum, which overflows. The backward pass walks the same grid against time.

In this module tensors are (B, I, J, G, D), I chunks of J steps and D channels in each of G groups, or planes of them,
(N, B, I, J, G, D): views of the caller's memory, chunk by chunk or step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG2_E = math.log2(math.e)


class Scratch:
    """Named buffers, reused by all pieces of one call: fresh large allocations cost page faults."""

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
    raw: Tensor  # (B, I, J, G, D), delta before softplus
    A: Tensor  # (N, G, D)
    B: Tensor  # (N, B, I, J, G, 1)
    C: Tensor  # (N, B, I, J, G, 1)
    softplus: bool
    reverse: bool
    scratch: Scratch

    def new(self, name: str, *planes: int, steps: int = 0) -> Tensor:
        """A buffer, (*planes, B, I, J + steps, G, D), whose memory is in the order of u's."""
        batch, chunks, length, groups, width = self.u.shape
        length += steps
        if self.u.stride(1) >= self.u.stride(2):
            return self.scratch(name, *planes, batch, chunks, length, groups, width)
        return self.scratch(name, *planes, batch, length, chunks, groups, width).transpose(-4, -3)

    def delta(self) -> Tensor:
        """Delta, (B, I, J, G, D)."""
        if not self.softplus:
            return self.raw
        # log(1 + w) = log(v) + (w - (v - 1)) / v with v = 1 + w rounded; from 80 on softplus is the identity. On some
        # machines exp is 4 times slower than exp2, and log1p 20 times slower than log.
        w = torch.clamp(self.raw, max=80.0, out=self.new("delta")).mul_(_LOG2_E).exp2_()
        v = torch.add(w, 1.0, out=self.new("input"))
        log = torch.sub(v, 1.0, out=self.new("spare"))
        w.sub_(log)
        torch.log(v, out=log)
        delta = torch.addcdiv(log, w, v, out=w)
        return torch.maximum(delta, self.raw, out=delta)

    def decays(self, delta: Tensor) -> Tensor:
        """exp(delta A), (N, B, I, J, G, D)."""
        states = self.A.shape[0]
        exponent = (self.A * _LOG2_E)[:, None, None, None]
        return torch.mul(delta, exponent, out=self.new("decays", states)).exp2_()

    def in_time(self, planes: Tensor) -> list[Tensor]:
        """The steps of (N, B, I, J, G, D) in the order of time."""
        steps = planes.unbind(3)
        return list(reversed(steps) if self.reverse else steps)

    def over_chunks(self, delta: Tensor) -> Tensor:
        """The decay over each chunk, less 1: (N, B, I, G, D)."""
        return torch.expm1(delta.sum(2) * self.A[:, None, None])


def _carry(ends: Tensor, decays: Tensor, entering: Tensor, against: bool) -> tuple[Tensor, Tensor]:
    """Carries a state over the chunks.

    Args:
        ends: (N, B, I, G, D), what each chunk ends with when it starts from zero.
        decays: same shape, what is left at its end of what it starts with, less 1.
        entering: (N, B, G, D), the state before the first chunk.
        against: go from the last chunk to the first.

    Returns:
        The state that each chunk starts with, same shape as `ends`, and the state after the last.
    """
    starts, state = torch.empty_like(ends), entering
    for i in reversed(range(ends.shape[2])) if against else range(ends.shape[2]):
        starts[:, :, i] = state
        state = state + torch.addcmul(ends[:, :, i], decays[:, :, i], state)
    return starts, state


def _advance(state: Tensor, entering: list[Tensor], decays: list[Tensor]) -> Tensor:
    """The state after the last step, in the memory of `state`."""
    for value, decay in zip(entering, decays, strict=True):
        torch.addcmul(value, decay, state, out=state)
    return state


def _fill(state: Tensor, entering: list[Tensor], decays: list[Tensor]) -> Tensor:
    """Turns what enters at each step into the state after it; returns the last."""
    for value, decay in zip(entering, decays, strict=True):
        state = torch.addcmul(value, decay, state, out=value)
    return state


def sweep(grid: Grid, entering: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Adds to y (B, I, J, G, D); returns the chunks' starting states (N, B, I, G, D) and the state after the last.

    Args:
        grid: the inputs.
        entering: (N, B, G, D), the state before the first step.
        y: takes the result.
    """
    delta, states = grid.delta(), grid.new("states", grid.A.shape[0])
    torch.mul(torch.mul(delta, grid.u, out=grid.new("input")), grid.B, out=states)
    decays = grid.in_time(grid.decays(delta))
    if grid.u.shape[1] > 1:
        ends = _advance(torch.zeros_like(states[:, :, :, 0]), grid.in_time(states), decays)
        starts, last = _carry(ends, grid.over_chunks(delta), entering, grid.reverse)
        _fill(starts, grid.in_time(states), decays)
    else:
        starts = entering.unsqueeze(2)
        last = _fill(starts, grid.in_time(states), decays).squeeze(2).clone()
    for state, C in zip(states, grid.C, strict=True):
        y.addcmul_(state, C)
    return starts, last


@dataclass
class Gradients:
    """Where one backward sweep leaves its results: views like those of `Grid`."""

    u: Tensor  # added to
    raw: Tensor  # written; may be the memory of grid.raw
    A: Tensor  # (N, G, D), added to
    B: Tensor  # (N, B, I, J, G, 1), written
    C: Tensor  # written


def sweep_back(grid: Grid, starts: Tensor, leaving: Tensor, dy: Tensor, out: Gradients) -> Tensor:
    """The gradients of one sweep.

    Args:
        grid: the inputs.
        starts: (N, B, I, G, D), the chunks' starting states, as `sweep` returned them.
        leaving: (N, B, G, D), the adjoint of the state after the last step.
        dy: (B, I, J, G, D), the adjoint of y.
        out: takes the gradients.

    Returns:
        The adjoint of the state before the first step, (N, B, G, D).
    """
    states, steps = grid.A.shape[0], grid.u.shape[2]
    delta = grid.delta()
    input = torch.mul(delta, grid.u, out=grid.new("input"))
    planes = grid.decays(delta)
    decays = grid.in_time(planes)
    history = grid.new("history", states, steps=1)  # the state before the first step, and after each
    before, after = history.narrow(3, int(grid.reverse), steps), history.narrow(3, int(not grid.reverse), steps)
    grid.in_time(history)[0].copy_(starts)
    torch.mul(input, grid.B, out=after)
    _fill(starts, grid.in_time(after), decays)

    adjoint = torch.mul(dy, grid.C, out=grid.new("adjoint", states))  # of the state after each step, once filled
    last, *others = reversed(grid.in_time(adjoint))
    later = decays[:0:-1]
    if grid.u.shape[1] > 1:
        ends = _advance(last.clone(), others, later).mul_(decays[0])
        returning, first = _carry(ends, grid.over_chunks(delta), leaving, not grid.reverse)
        _fill(last.add_(returning), others, later)
    else:
        first = (_fill(last.add_(leaving.unsqueeze(2)), others, later) * decays[0]).squeeze(2)

    product = grid.new("product", states)
    out.C.copy_(torch.mul(after, dy, out=product).sum(-1, keepdim=True))
    out.B.copy_(torch.mul(adjoint, input, out=product).sum(-1, keepdim=True))
    dinput = torch.mul(adjoint[0], grid.B[0], out=grid.new("dinput"))
    for one, B in zip(adjoint[1:], grid.B[1:], strict=True):
        dinput.addcmul_(one, B)
    # kept: the adjoint times what is left of the state before. Taking what entered from the state after it instead
    # would cancel where the decay is strong.
    kept = planes.mul_(adjoint).mul_(before)
    out.A += torch.mul(kept, delta, out=product).sum((1, 2, 3))
    out.u.addcmul_(dinput, delta)
    ddelta = dinput.mul_(grid.u)
    for one, A in zip(kept, grid.A, strict=True):
        ddelta.addcmul_(one, A)
    if grid.softplus:
        torch.mul(ddelta, torch.sigmoid(grid.raw, out=input), out=out.raw)
    else:
        out.raw.copy_(ddelta)
    return first
