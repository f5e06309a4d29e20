"""How a branch is guided by diffusion features: three operators of one form, and what prepares the features.

An operator takes tokens (B, L, D) and a guide (B, M, D), M <= L, whose tokens stand beside the last M tokens, in the
same order; tokens before them (a class token) have no partner. It returns the guided tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.layers.token_mixers import Attention


class TimestepMix(nn.Module):
    """Diffusion features of one level at several timesteps become one guide, pixel by pixel.

    Each channel is a weighted mean over the timesteps, with learned weights; then the channels of a pixel are
    normalised and projected.

    Args:
        timesteps: T.
        channels: C, channels at each timestep.
        width: D, of the guide.
    """

    def __init__(self, timesteps: int, channels: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(timesteps, channels)) if timesteps > 1 else None
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., T * C), the channels of a timestep side by side -> (..., D)."""
        if self.weights is not None:
            weights = self.weights.softmax(dim=0)
            features = (features.unflatten(-1, weights.shape) * weights).sum(dim=-2)
        guide: Tensor = self.project(self.norm(features))
        return guide


class FeatureFusion(nn.Module):
    """Adds a projection of the guide to each token, through a gate that both open; it starts nearly closed.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, width)
        self.value = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, tokens: Tensor, guide: Tensor) -> Tensor:
        alone, paired = tokens[:, : tokens.shape[1] - guide.shape[1]], tokens[:, tokens.shape[1] - guide.shape[1] :]
        gate = torch.sigmoid(self.gate(torch.cat([paired, guide], dim=-1)))
        return torch.cat([alone, paired + gate * self.value(guide)], dim=1)


class GroupChannelAttention(nn.Module):
    """Weighs groups of channels against each other, and the channels inside each group.

    Args:
        width: D.
        groups: number of groups, which divides it.
        hidden: width of the perceptron that sees tokens and guide.
    """

    def __init__(self, width: int, groups: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.groups = groups
        self.query = nn.Linear(2 * width, hidden)
        self.between = nn.Linear(hidden, groups)
        self.within = nn.Linear(hidden, width)

    def weights(self, tokens: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Of the groups, (B, groups), which sum to their number; of channels, (B, groups, D / groups), 0..1."""
        query = F.relu(self.query(torch.cat([guide.mean(dim=1), tokens.mean(dim=1)], dim=-1)))
        between = self.groups * self.between(query).softmax(dim=-1)
        return between, torch.sigmoid(self.within(query)).unflatten(-1, (self.groups, -1))

    def forward(self, tokens: Tensor, guide: Tensor) -> Tensor:
        between, within = self.weights(tokens, guide)
        return tokens + tokens * (between[..., None] * within).flatten(1)[:, None]


class CrossAttention(nn.Module):
    """Tokens ask the guide; how much of the answer is added is learned.

    Args:
        width: D.
        heads: number of heads, which divides it.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_guide = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.amount = nn.Parameter(torch.tensor(0.5))

    def forward(self, tokens: Tensor, guide: Tensor) -> Tensor:
        return tokens + torch.tanh(self.amount) * self.attention(self.norm(tokens), self.norm_guide(guide))
