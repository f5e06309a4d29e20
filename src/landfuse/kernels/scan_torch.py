"""The selective scan in PyTorch operations alone: any device, any floating dtype.

The work is cut into pieces whose intermediate values stay in the cache, and each piece into sweeps (`Grid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from landfuse.kernels.scan_inputs import ImageInputs, ScanInputs

READS_HALF = False
"""Whether u, delta, B, C, x, factors and dy may come in half precision; if not, they are converted before."""

# Elements of a piece: states of its steps. On a CPU the handful of tensors of this size should stay in the cache;
# elsewhere wide is fast, and the limit only bounds memory.
_PIECE_CPU = 1024 * 1024
_PIECE_ELSEWHERE = 16 * 1024 * 1024
# Rounding errors of the decay add up over the steps of a chunk, hardly over chunks.
_MOST_STEPS = 128
_WIDE_STEPS = 64
_WIDE = 4096  # states that advance together without chunks, which would need two sweeps
_TILED = 3600  # numbers of a matrix from which on PyTorch swaps its axes by tiles


def _piece(device: torch.device) -> int:
    return _PIECE_CPU if device.type == "cpu" else _PIECE_ELSEWHERE


def _chunk_steps(length: int, width: int) -> int:
    """Steps per chunk, for a sequence of `length` and `width` states (B * channels * N) that advance together."""
    if width >= _WIDE:
        return min(_WIDE_STEPS, length)
    return min(_MOST_STEPS, max(1, round(math.sqrt(length))))


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape of the states that `forward` saves for `backward`: one per chunk and channel."""
    batch, channels, length = inputs.u.shape
    states = inputs.A.shape[1]
    return batch, -(-length // _chunk_steps(length, batch * channels * states)), channels * states


def _at_once(count: int, size: int, device: torch.device) -> int:
    """How many of `count` items with `size` elements each fit into a piece, at least one."""
    return max(1, min(count, _piece(device) // max(1, size)))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _pieces(batch: int, groups: int, size: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cuts batch and groups, `size` elements in one chunk of each."""
    groups_at_once = _at_once(groups, size, device)
    batch_at_once = _at_once(batch, size * groups, device)
    return ((b, g) for b in _slices(batch, batch_at_once) for g in _slices(groups, groups_at_once))


def _segments(length: int, steps: int, chunks: int) -> list[tuple[int, int, int]]:
    """(start, stop, chunks): whole chunks, at most `chunks` at once, and what is left over as one short chunk."""
    whole = length // steps
    segments = [(s.start * steps, s.stop * steps, s.stop - s.start) for s in _slices(whole, chunks)]
    return segments + ([(whole * steps, length, 1)] if whole * steps < length else [])


def copied(out: Tensor, source: Tensor) -> Tensor:
    """Copies (B, M, N) into a tensor of other strides.

    One item at a time: on a CPU, PyTorch swaps the axes of a matrix by tiles, seven times as fast.
    """
    if source.dim() != 3 or source.device.type != "cpu" or source.shape[1] * source.shape[2] < _TILED:
        return out.copy_(source)
    for one, other in zip(out, source, strict=True):
        one.copy_(other)
    return out


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """(B, G*D, L) -> (B, L, G, D), channels contiguous."""
    swapped = tensor.transpose(1, 2)
    if not swapped.is_contiguous():
        swapped = copied(torch.empty_like(swapped, memory_format=torch.contiguous_format), swapped)
    return swapped.unflatten(2, (groups, -1))


def _planes(tensor: Tensor) -> Tensor:
    """(B, ..., N) -> (N, B, ..., 1)."""
    return tensor.movedim(-1, 0).unsqueeze(-1)


class _Sequences:
    """The inputs of a scan by group and piece."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, delta, A, B, C, D, bias, softplus = inputs
        self.batch, channels, self.length = u.shape
        self.groups, self.states = B.shape[1:3]
        self.width = channels // self.groups
        self.steps = _chunk_steps(self.length, self.batch * channels * self.states)
        self.u, self.raw = _by_group(u, self.groups), _by_group(delta, self.groups)
        self.A = A.unflatten(0, (self.groups, -1)).permute(2, 0, 1).contiguous()  # (N, G, D)
        self.B, self.C = (t.permute(0, 3, 1, 2) for t in (B, C))  # (B, L, G, N)
        self.bias, self.D = (None if t is None else t.unflatten(0, (self.groups, -1)) for t in (bias, D))
        self.softplus, self.scratch = softplus, Scratch(u)

    def pieces(self) -> Iterator[tuple[slice, slice, list[tuple[int, int, int]]]]:
        """Batch items, groups and segments of time."""
        size, device = self.steps * self.width * self.states, self.u.device
        for b, g in _pieces(self.batch, self.groups, size, device):
            taken = size * (b.stop - b.start) * (g.stop - g.start)
            yield b, g, _segments(self.length, self.steps, _at_once(self.length, taken, device))

    def cut(self, b: slice, g: slice, segment: tuple[int, int, int]) -> tuple[Grid, Callable[[Tensor], Tensor]]:
        """The grid of one piece and segment, and the function that cuts other (B, L, G, ..) tensors in the same way."""
        start, stop, chunks = segment

        def cut(tensor: Tensor) -> Tensor:
            return tensor[b, start:stop, g].unflatten(1, (chunks, -1))

        u, raw, B, C = cut(self.u), cut(self.raw), _planes(cut(self.B)), _planes(cut(self.C))
        grid = Grid(u, raw, self.A[:, g], B, C, self.softplus, reverse=False, scratch=self.scratch)
        if self.bias is not None:
            grid.raw = torch.add(raw, self.bias[g], out=grid.new("raw"))
        return grid, cut


@torch.no_grad()
def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor]:
    """The scan: y (B, G*D, L), and the states that `backward` needs, (B, chunks, N*G*D) or empty."""
    all_ = _Sequences(inputs)
    batch, groups, states, width = all_.batch, all_.groups, all_.states, all_.width
    y = torch.zeros_like(all_.u) if all_.D is None else all_.u * all_.D
    saved = y.new_empty((batch, -(-all_.length // all_.steps), states, groups, width) if save else (0,))
    for b, g, segments in all_.pieces():
        state, chunk = y.new_zeros(states, b.stop - b.start, g.stop - g.start, width), 0
        for segment in segments:
            grid, cut = all_.cut(b, g, segment)
            starts, state = sweep(grid, state, cut(y))
            if save:
                saved[b, chunk : chunk + segment[2], :, g] = starts.movedim(0, 2)
            chunk += segment[2]
    return y.flatten(2).transpose(1, 2), saved.flatten(2) if save else saved


@torch.no_grad()
def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """The gradients of all tensors (of D and the bias also where these are None)."""
    all_ = _Sequences(inputs)
    batch, groups, states, width = all_.batch, all_.groups, all_.states, all_.width
    dys = _by_group(dy, groups)
    starts = saved.view(batch, -1, states, groups, width).movedim(2, 0)
    du = torch.zeros_like(all_.u) if all_.D is None else dys * all_.D
    draw = torch.empty_like(all_.raw)
    dB, dC = (t.new_empty(batch, all_.length, groups, states) for t in (all_.B, all_.C))
    dA = torch.zeros_like(all_.A)
    for b, g, segments in all_.pieces():
        state, chunk = dA.new_zeros(states, b.stop - b.start, g.stop - g.start, width), starts.shape[2]
        for segment in reversed(segments):
            grid, cut = all_.cut(b, g, segment)
            out = Gradients(cut(du), cut(draw), dA[:, g], _planes(cut(dB)), _planes(cut(dC)))
            state = sweep_back(grid, starts[:, b, chunk - segment[2] : chunk, g], state, cut(dys), out)
            chunk -= segment[2]
    return (
        du.flatten(2).transpose(1, 2),
        draw.flatten(2).transpose(1, 2),
        dA.permute(1, 2, 0).flatten(0, 1),
        dB.permute(0, 2, 3, 1),
        dC.permute(0, 2, 3, 1),
        _sum_of_product(dys.flatten(2), all_.u.flatten(2)),
        draw.sum((0, 1)).flatten(),
    )


def _sum_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum over all axes but the last; one batch item at a time, so that no second tensor of that size is made."""
    total = a.new_zeros(a.shape[-1])
    for one, other in zip(a, b, strict=True):
        total += (one * other).flatten(0, -2).sum(0)
    return total


def image_saved_shape(inputs: ImageInputs) -> tuple[int, ...]:
    """The shape of what `image_forward` saves: a state per row and column, both ways."""
    batch, height, width, channels = inputs.x.shape
    return batch, 2 * (height + width), channels * inputs.A.shape[1]


class _Image:
    """The inputs of a scan over an image, by direction and piece."""

    def __init__(self, inputs: ImageInputs) -> None:
        x, factors, A, rank_weight, bias, D = inputs
        self.x, self.states, self.rank = x, A.shape[1], rank_weight.shape[1]
        self.batch, *self.sides, self.channels = x.shape
        self.factors = factors.unflatten(3, (4, -1))
        self.A = A.view(4, 1, -1, self.states).permute(0, 3, 1, 2).contiguous()  # (4, N, 1, D)
        self.weights, self.bias = rank_weight.view(4, -1, self.rank), bias.view(4, -1)
        self.D, self.scratch = D.view(4, -1).sum(0), Scratch(x)

    def pieces(self) -> Iterator[tuple[int, slice, list[slice]]]:
        """Directions, batch items, and lines (rows, or columns for the odd directions) in the order of time."""
        pixel, device = self.channels * self.states, self.x.device
        for k in range(4):
            lines, steps = self.sides if k % 2 == 0 else self.sides[::-1]
            batch_at_once = _at_once(self.batch, lines * steps * pixel, device)
            lines_at_once = _at_once(lines, batch_at_once * steps * pixel, device)
            bands = list(_slices(lines, lines_at_once))
            for b in _slices(self.batch, batch_at_once):
                yield k, b, bands[::-1] if k >= 2 else bands

    def cut(self, tensor: Tensor, k: int, b: slice, band: slice) -> Tensor:
        """(B, H, W, ..) -> (B, I, J, ..): rows of pixels, or columns for the odd directions; no copy."""
        return (tensor.transpose(1, 2) if k % 2 else tensor)[b, band]

    def grid(self, k: int, b: slice, band: slice) -> tuple[Grid, Tensor, Tensor]:
        """The sweep of one piece; also its low-rank factors (pixels, R) and the memory of its raw delta (pixels, D)."""
        values = self.cut(self.factors[:, :, :, k], k, b, band)
        # Pixels in the order of the image's memory, whichever way they are walked.
        in_memory = values.transpose(1, 2) if k % 2 else values
        low_rank = in_memory[..., : self.rank].reshape(-1, self.rank)
        B, C = (_planes(t.unsqueeze(3)) for t in values[..., self.rank :].split(self.states, dim=-1))
        u = self.cut(self.x, k, b, band).unsqueeze(3)
        grid = Grid(u, u, self.A[k], B, C, True, k >= 2, self.scratch)
        flat = self.scratch("raw", low_rank.shape[0], self.channels)
        torch.addmm(self.bias[k], low_rank, self.weights[k].t(), out=flat)
        raw = flat.view(*in_memory.shape[:3], 1, self.channels)
        grid.raw = raw.transpose(1, 2) if k % 2 else raw
        return grid, low_rank, flat


@torch.no_grad()
def image_forward(inputs: ImageInputs, save: bool) -> tuple[Tensor, Tensor]:
    """The four scans' sum: y (B, H, W, D), and the states that `image_backward` needs, (B, chunks, N*D) or empty."""
    image, x = _Image(inputs), inputs.x
    y = x * image.D
    saved = x.new_empty((x.shape[0], 2 * sum(image.sides), image.states, 1, image.channels) if save else (0,))
    for k, b, bands in image.pieces():
        state = x.new_zeros(image.states, b.stop - b.start, 1, image.channels)
        for band in bands:
            starts, state = sweep(image.grid(k, b, band)[0], state, image.cut(y, k, b, band).unsqueeze(3))
            if save:
                saved[b, _places(image, k, band)] = starts.movedim(0, 2)
    return y, saved.flatten(2) if save else saved


def _places(image: _Image, k: int, band: slice) -> slice:
    """Where the starting states of some lines are saved."""
    first = (0, image.sides[0], sum(image.sides), sum(image.sides) + image.sides[0])[k]
    return slice(first + band.start, first + band.stop)


@torch.no_grad()
def image_backward(dy: Tensor, inputs: ImageInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """The gradients of all tensors."""
    image, x = _Image(inputs), inputs.x
    states, rank = image.states, image.rank
    starts = saved.view(x.shape[0], -1, states, 1, image.channels).movedim(2, 0)
    dx, dfactors = dy * image.D, torch.empty_like(image.factors)
    dA, dbias, dweights = (torch.zeros_like(t) for t in (image.A, image.bias, image.weights))
    for k, b, bands in image.pieces():
        state = x.new_zeros(states, b.stop - b.start, 1, image.channels)
        for band in reversed(bands):
            grid, low_rank, raw = image.grid(k, b, band)
            values = image.cut(dfactors[:, :, :, k], k, b, band)
            dB, dC = (_planes(t.unsqueeze(3)) for t in values[..., rank:].split(states, dim=-1))
            dxs, dys = (image.cut(t, k, b, band).unsqueeze(3) for t in (dx, dy))
            out = Gradients(dxs, grid.raw, dA[k], dB, dC)
            state = sweep_back(grid, starts[:, b, _places(image, k, band)], state, dys, out)
            in_memory = (values.transpose(1, 2) if k % 2 else values)[..., :rank]
            in_memory.copy_(torch.mm(raw, image.weights[k]).view(in_memory.shape))
            dweights[k].addmm_(raw.t(), low_rank)
            dbias[k] += raw.sum(0)
    dskip = _sum_of_product(dy, x)
    return (
        dx,
        dfactors.flatten(3),
        dA.permute(0, 2, 3, 1).reshape(inputs.A.shape),
        dweights.view_as(inputs.rank_weight),
        dbias.flatten(),
        dskip.repeat(4),
    )


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
