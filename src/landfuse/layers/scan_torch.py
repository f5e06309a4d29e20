"""The selective scan in PyTorch operations alone: any device, any floating dtype.

The work is cut into pieces whose intermediate values stay in the cache, and each piece into sweeps (`scan_chunks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from landfuse.layers.scan_chunks import Gradients, Grid, Scratch, sweep, sweep_back

READS_HALF = False
"""Whether u, delta, B, C, x, factors and dy may come in half precision; if not, they are converted before."""

# Elements that advance together. On a CPU the handful of tensors of this size must stay in a 2 MB cache; elsewhere wide
# is fast, and the limit only bounds memory.
_SLAB_CPU = 64 * 1024
_SLAB_ELSEWHERE = 64 * 1024 * 1024
# Rounding errors of the decay add up over the steps of a chunk, hardly over chunks.
_MOST_STEPS = 128


def _chunk_steps(length: int, width: int, device: torch.device) -> int:
    """Steps per chunk, for a sequence of `length` and `width` states (B * channels * N) that advance together."""
    if device.type == "cpu" and length <= _MOST_STEPS and _SLAB_CPU // max(1, width) <= 2:
        return length  # wide enough without chunks, which would need two sweeps
    return min(_MOST_STEPS, max(1, round(math.sqrt(length))))


def saved_tiles(batch: int, channels: int, length: int, states: int, device: torch.device) -> int:
    """How many states per channel the forward pass saves for the backward one."""
    return -(-length // _chunk_steps(length, batch * channels * states, device))


def _pieces(batch: int, groups: int, width: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cuts batch and groups into pieces whose slab of `width` elements per group and batch item stays within limits."""
    limit = _SLAB_CPU if device.type == "cpu" else _SLAB_ELSEWHERE
    groups_at_once = max(1, min(groups, limit // width))
    batch_at_once = max(1, min(batch, limit // (width * groups))) if groups_at_once == groups else 1
    for b in range(0, batch, batch_at_once):
        for g in range(0, groups, groups_at_once):
            yield slice(b, min(b + batch_at_once, batch)), slice(g, min(g + groups_at_once, groups))


def _segments(length: int, steps: int) -> list[tuple[int, int, int]]:
    """(start, stop, chunks): the whole chunks, and what is left over as one short chunk."""
    chunks = length // steps
    left_over = [(chunks * steps, length, 1)] if chunks * steps < length else []
    return [(0, chunks * steps, chunks), *left_over]


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """(B, G*D, L) -> (B, L, G, D), channels contiguous."""
    return tensor.transpose(1, 2).contiguous().unflatten(2, (groups, -1))


def _parameter(tensor: Tensor | None, groups: int) -> Tensor | None:
    return None if tensor is None else tensor.unflatten(0, (groups, -1))


@torch.no_grad()
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
    """The scan; shapes as in `selective_scan`.

    Returns:
        y (B, G*D, L), the last state (B, G*D, N), and the states that `backward` wants, (B, chunks, G*D*N) or empty.
    """
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    steps = _chunk_steps(length, batch * channels * states, u.device)
    us, raws, Bs, Cs = _by_group(u, groups), _by_group(delta, groups), B.permute(0, 3, 1, 2), C.permute(0, 3, 1, 2)
    As = A.unflatten(0, (groups, -1)).transpose(1, 2).contiguous()
    skips, biases = _parameter(skip, groups), _parameter(bias, groups)
    width = channels // groups
    y, last = torch.empty_like(us), u.new_empty(batch, groups, states, width)
    saved = u.new_empty((batch, -(-length // steps), groups, states, width) if save else (0,))
    scratch = Scratch(u)
    for b, g in _pieces(batch, groups, max(1, length // steps) * width * states, u.device):
        state, chunk = u.new_zeros(b.stop - b.start, g.stop - g.start, states, width), 0
        for start, stop, chunks in _segments(length, steps):
            grid, cut = _cut(us, raws, As, Bs, Cs, skips, biases, softplus, b, g, (start, stop, chunks))
            starts, state = sweep(grid, state, cut(y), add=False, scratch=scratch)
            if save:
                saved[b, chunk : chunk + chunks, g] = starts
            chunk += chunks
        last[b, g] = state
    return y.flatten(2).transpose(1, 2), last.transpose(2, 3).flatten(1, 2), saved.flatten(2) if save else saved


@torch.no_grad()
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
    """The gradients of u, delta, A, B, C, skip and bias (the last two also where these are None)."""
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    width = channels // groups
    steps = _chunk_steps(length, batch * channels * states, u.device)
    us, raws, Bs, Cs = _by_group(u, groups), _by_group(delta, groups), B.permute(0, 3, 1, 2), C.permute(0, 3, 1, 2)
    As = A.unflatten(0, (groups, -1)).transpose(1, 2).contiguous()
    skips, biases, dys = _parameter(skip, groups), _parameter(bias, groups), _by_group(dy, groups)
    dlasts = dlast.unflatten(1, (groups, -1)).transpose(2, 3)
    starts = saved.view(batch, -1, groups, states, width)
    du, draw = torch.empty_like(us), torch.empty_like(raws)
    dB, dC = (t.new_empty(batch, length, groups, states) for t in (B, C))
    dA, dskip = torch.zeros_like(As), u.new_zeros(groups, width)
    scratch = Scratch(u)
    for b, g in _pieces(batch, groups, max(1, length // steps) * width * states, u.device):
        state, chunk = dlasts[b, g], starts.shape[1]
        for start, stop, chunks in reversed(_segments(length, steps)):
            grid, cut = _cut(us, raws, As, Bs, Cs, skips, biases, softplus, b, g, (start, stop, chunks))
            out = Gradients(cut(du), cut(draw), dA[g], cut(dB), cut(dC), dskip[g])
            state = sweep_back(grid, starts[b, chunk - chunks : chunk, g], state, cut(dys), out, False, scratch)
            chunk -= chunks
    return (
        du.flatten(2).transpose(1, 2),
        draw.flatten(2).transpose(1, 2),
        dA.transpose(1, 2).flatten(0, 1),
        dB.permute(0, 2, 3, 1),
        dC.permute(0, 2, 3, 1),
        dskip.flatten(),
        draw.sum((0, 1)).flatten(),
    )


def _cut(
    u: Tensor,
    raw: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    b: slice,
    g: slice,
    segment: tuple[int, int, int],
) -> tuple[Grid, Callable[[Tensor], Tensor]]:
    """The grid of one piece and segment, and the function that cuts further (B, L, G, ..) tensors in the same way."""
    start, stop, chunks = segment

    def cut(tensor: Tensor) -> Tensor:
        return tensor[b, start:stop, g].unflatten(1, (chunks, -1))

    at = None if skip is None else skip[g], None if bias is None else bias[g]
    return Grid(cut(u), cut(raw), A[g], cut(B), cut(C), *at, softplus, reverse=False), cut


def _walk(image: Tensor, direction: int) -> Tensor:
    """(B, H, W, D) -> (B, I, J, 1, D): rows of pixels, or columns for the odd directions; no copy."""
    return (image.transpose(1, 2) if direction % 2 else image).unsqueeze(3)


def image_saved(shape: Sequence[int], states: int) -> tuple[int, ...]:
    """The shape of what `image_forward` saves for x of this shape: a state per row and column, both ways."""
    batch, height, width, channels = shape
    return batch, 2 * (height + width), channels * states


def _image_pieces(x: Tensor, states: int) -> Iterator[slice]:
    batch, height, width, channels = x.shape
    for b, _ in _pieces(batch, 1, max(height, width) * channels * states, x.device):
        yield b


def _image_grid(
    x: Tensor, raw: Tensor, factors: Tensor, A: Tensor, skip: Tensor, bias: Tensor, direction: int
) -> tuple[Grid, int]:
    """The sweep of one direction over one piece; A (K, 1, N, D), factors (B, H, W, K, R + 2N). Also returns R."""
    states = A.shape[2]
    rank = factors.shape[-1] - 2 * states
    _, B, C = (_walk(t, direction) for t in factors[:, :, :, direction].split([rank, states, states], dim=-1))
    x, raw = _walk(x, direction), _walk(raw, direction)
    return Grid(x, raw, A[direction], B, C, skip[direction], bias[direction], True, direction >= 2), rank


def _image_parameters(A: Tensor, skip: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (4, 1, N, D), skip and bias (4, 1, D)."""
    return A.view(4, 1, -1, A.shape[1]).transpose(2, 3).contiguous(), skip.view(4, 1, -1), bias.view(4, 1, -1)


@torch.no_grad()
def image_forward(
    x: Tensor, factors: Tensor, A: Tensor, rank_weight: Tensor, bias: Tensor, skip: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """The scan of an image in four directions, summed; shapes as in `scan_image.image_scan`.

    Returns:
        y (B, H, W, D), and the states that `image_backward` wants, (B, chunks, D*N) or empty.
    """
    batch, height, width, channels = x.shape
    states, rank = A.shape[1], rank_weight.shape[1]
    As, skips, biases = _image_parameters(A, skip, bias)
    factors = factors.unflatten(3, (4, -1))
    y = torch.empty_like(x)
    saved = x.new_empty((batch, 2 * (height + width), 1, states, channels) if save else (0,))
    scratch = Scratch(x)
    for b in _image_pieces(x, states):
        chunk = 0
        for k in range(4):
            raw = torch.matmul(factors[b, :, :, k, :rank], rank_weight.view(4, channels, rank)[k].t())
            grid, _ = _image_grid(x[b], raw, factors[b], As, skips, biases, k)
            starts, _ = sweep(grid, x.new_zeros(raw.shape[0], 1, states, channels), _walk(y[b], k), k > 0, scratch)
            if save:
                saved[b, chunk : chunk + starts.shape[1]] = starts
            chunk += starts.shape[1]
    return y, saved.flatten(2) if save else saved


@torch.no_grad()
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
    """The gradients of x, factors, A, rank_weight, bias and skip."""
    batch, _, _, channels = x.shape
    states, rank = A.shape[1], rank_weight.shape[1]
    As, skips, biases = _image_parameters(A, skip, bias)
    weights = rank_weight.view(4, channels, rank)
    factors = factors.unflatten(3, (4, -1))
    saved = saved.view(batch, -1, 1, states, channels)
    dx, dfactors = torch.empty_like(x), torch.empty_like(factors)
    dA, dskip, dbias, dweights = (torch.zeros_like(t) for t in (As, skips, biases, weights))
    scratch = Scratch(x)
    for b in _image_pieces(x, states):
        chunk = 0
        for k in range(4):
            low_rank = factors[b, :, :, k, :rank]
            raw = torch.matmul(low_rank, weights[k].t())
            draw = torch.empty_like(raw)
            grid, _ = _image_grid(x[b], raw, factors[b], As, skips, biases, k)
            dlow_rank, dB, dC = dfactors[b, :, :, k].split([rank, states, states], dim=-1)
            out = Gradients(_walk(dx[b], k), _walk(draw, k), dA[k], _walk(dB, k), _walk(dC, k), dskip[k])
            starts = saved[b, chunk : chunk + grid.u.shape[1]]
            zero = x.new_zeros(raw.shape[0], 1, states, channels)
            sweep_back(grid, starts, zero, _walk(dy[b], k), out, k > 0, scratch)
            flat = draw.view(-1, channels)
            dlow_rank.copy_(torch.matmul(draw, weights[k]))
            dweights[k].addmm_(flat.t(), low_rank.reshape(-1, rank))
            dbias[k] += flat.sum(0)
            chunk += grid.u.shape[1]
    return (
        dx,
        dfactors.flatten(3),
        dA.squeeze(1).transpose(1, 2).reshape(A.shape),
        dweights.view_as(rank_weight),
        dbias.view_as(bias),
        dskip.view_as(skip),
    )
