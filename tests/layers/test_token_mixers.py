"""The spiral, the scan in both directions, attention: each against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from landfuse.layers.token_mixers import Attention, BidirectionalScan, spiral


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 11])
def test_the_spiral_walks_every_pixel_from_neighbour_to_neighbour(side: int) -> None:
    walk = spiral(side)
    assert sorted(walk.tolist()) == list(range(side * side))
    row, col = walk // side, walk % side
    assert ((row.diff().abs() + col.diff().abs()) == 1).all()
    assert (row[0], col[0]) == (0, 0)


@pytest.mark.parametrize(("side", "core"), [(11, 1), (11, 5), (8, 2), (8, 4)])
def test_the_spiral_ends_in_the_central_square(side: int, core: int) -> None:
    halo = (side - core) // 2
    inside = torch.arange(side * side).view(side, side)[halo : halo + core, halo : halo + core].flatten()
    assert set(spiral(side)[-core * core :].tolist()) == set(inside.tolist())


def directed(scan: BidirectionalScan, tokens: Tensor, number: int) -> Tensor:
    """One direction of the layer for one sequence (L, D), step by step."""
    width = tokens.shape[1]
    mine = slice(number * width, (number + 1) * width)
    values = tokens @ scan.enter.weight[mine].T
    gates = tokens @ scan.enter.weight[2 * width :][mine].T
    state = torch.zeros(width, scan.states, dtype=tokens.dtype)
    out = []
    for t in range(len(tokens)):
        x = scan.smooth.bias[mine].clone()
        for back in range(min(scan.kernel, t + 1)):
            x = x + scan.smooth.weight[mine, 0, scan.kernel - 1 - back] * values[t - back]
        x = x * torch.sigmoid(x)
        low, B, C = (scan.projection[number] @ x).split([scan.rank, scan.states, scan.states])
        delta = torch.log1p(torch.exp(scan.rank_weight[number] @ low + scan.delta_bias[mine]))
        state = torch.exp(-delta[:, None] * scan.log_A[mine].exp()) * state + (delta * x)[:, None] * B
        y = state @ C + scan.D[mine] * x
        out.append(scan.leave.weight[:, mine] @ (y * gates[t] * torch.sigmoid(gates[t])))
    return torch.stack(out)


def test_the_scan_is_the_two_recurrences_added_up() -> None:
    torch.manual_seed(0)
    scan = BidirectionalScan(6, states=3, rank=2).double()
    tokens = torch.randn(2, 9, 6, dtype=torch.float64)
    expected = torch.stack([directed(scan, t, 0) + directed(scan, t.flip(0), 1).flip(0) for t in tokens])
    torch.testing.assert_close(scan(tokens), expected, rtol=1e-10, atol=1e-12)


def test_the_gradients_of_the_scan() -> None:
    torch.manual_seed(0)
    scan = BidirectionalScan(4, states=2, rank=2).double()
    tokens = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scan, (tokens,))


def test_attention_is_the_softmax_of_products() -> None:
    torch.manual_seed(0)
    attention = Attention(8, heads=2).double()
    tokens, context = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    query = attention.query(tokens)
    key, value = attention.key_value(context).split(8, dim=-1)
    mixed = torch.zeros_like(tokens)
    for b in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.softmax(query[b, :, head] @ key[b, :, head].T / math.sqrt(4), dim=-1)
            mixed[b, :, head] = weights @ value[b, :, head]
    torch.testing.assert_close(attention(tokens, context), attention.leave(mixed))
