"""What mixes the tokens of a patch: scans in both directions along a spiral, and attention.

Tokens are (B, L, D): the pixels of a square, in rows or along the spiral, perhaps with class tokens before them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.kernels.scan import selective_scan
from landfuse.layers.state_space import initialise_scan


def spiral(side: int) -> Tensor:
    """The pixels of a square from its first corner clockwise inwards: (side * side,) int64, row * side + column.

    The last one is the centre, so that a scan ends where it has seen all of the patch; the last k * k are the central
    square of that side, for odd k in an odd square and even k in an even one.
    """
    grid = torch.arange(side * side).view(side, side)
    walk = []
    while grid.numel():
        walk.append(grid[0])
        grid = grid[1:].T.flip(0)  # what is left, turned so that the next side is its first row
    return torch.cat(walk)


class BidirectionalScan(nn.Module):
    """Two selective scans over a sequence, one from each end, each gated, added up.

    Source: the block of Gu and Dao 2023, arXiv 2312.00752, figure 3, in both directions as in Zhu et al. 2024, "Vision
    Mamba", arXiv 2401.09417, algorithm 1; the inner width is that of the tokens.

    Args:
        width: D.
        states: N, states per channel.
        rank: of the projection of delta.
    """

    multiplied = ("projection", "rank_weight")

    def __init__(self, width: int, states: int = 16, rank: int = 4) -> None:
        super().__init__()
        self.rank, self.states, self.kernel = rank, states, 4
        self.enter = nn.Linear(width, 4 * width, bias=False)  # values and gates of both directions
        self.smooth = nn.Conv1d(2 * width, 2 * width, self.kernel, groups=2 * width)
        self.projection = nn.Parameter(torch.empty(2, rank + 2 * states, width))
        self.rank_weight = nn.Parameter(torch.empty(2, width, rank))
        self.delta_bias = nn.Parameter(torch.empty(2 * width))
        self.log_A = nn.Parameter(torch.empty(2 * width, states))
        self.D = nn.Parameter(torch.ones(2 * width))
        self.leave = nn.Linear(2 * width, width, bias=False)
        nn.init.uniform_(self.projection, -(width**-0.5), width**-0.5)
        initialise_scan(self.rank_weight, self.log_A, self.delta_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> the same."""
        values, gates = self.enter(tokens).chunk(2, dim=-1)  # (B, L, 2D) each
        values = _flip_second(values).transpose(1, 2)
        values = F.silu(self.smooth(F.pad(values, (self.kernel - 1, 0))))  # (B, 2D, L)
        by_direction = values.unflatten(1, (2, -1))
        factors = torch.einsum("grd,bgdl->bgrl", self.projection, by_direction)
        low_rank, B, C = factors.split([self.rank, self.states, self.states], dim=2)
        delta = torch.einsum("gdr,bgrl->bgdl", self.rank_weight, low_rank)
        if torch.compiler.is_exporting():  # torch before 2.13 takes the batch of other layouts for one of a fixed size
            delta = delta.contiguous()
        y = selective_scan(
            values, delta.flatten(1, 2), -self.log_A.exp(), B, C, self.D, self.delta_bias, delta_softplus=True
        )
        out: Tensor = self.leave(_flip_second(y.transpose(1, 2)) * F.silu(gates))
        return out


def _flip_second(both: Tensor) -> Tensor:
    """(B, L, 2D): the second half of the channels runs backwards along L."""
    forwards, backwards = both.chunk(2, dim=-1)
    return torch.cat([forwards, backwards.flip(1)], dim=-1)


class Attention(nn.Module):
    """Multi-head attention of tokens to a context.

    Args:
        width: D of both.
        heads: number of heads, which divides it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """(B, L, D), (B, M, D) -> (B, L, D)."""
        query = self.query(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, D / heads)
        key_value = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key_value[0], key_value[1])
        out: Tensor = self.leave(mixed.transpose(1, 2).flatten(2))
        return out
