"""A U-Net that estimates the noise of several modalities at once: a stem and a head for each, one body for all.

Source: sections D.2 and D.4 of our specification of Liu et al. 2025, "Balanced Diffusion-Guided Fusion for Multimodal
Remote Sensing Classification", arXiv 2509.23310; the body follows Ho et al. 2020, arXiv 2006.11239.

Differs from the usual U-Net of diffusion models, and why. (1) The network estimates only what the best guess for
independent Gaussian pixels leaves over, scaled to a variance of 1 (Karras et al. 2022, arXiv 2206.00364, section 5,
here for the noise). Training begins at that bound; without it, a thousand steps on a CPU do not come near it. (2)
Features are normalised over the channels of each pixel instead of over the image. What a pixel gets then depends on
what lies within `Denoiser.REACH` only, so that features of a tile are those of the whole scene, and crops look like
tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.diffusion.noise import signal_alpha, wiener_bound
from landfuse.layers.pixel_norm import PixelNorm

DEVIATION = 1 / 3
"""Standard deviation of the images that the denoiser takes: values within -1..1, three deviations from the mean."""


class Denoised(NamedTuple):
    """What the denoiser returns.

    Args:
        noise: name -> (B, C, H, W), the noise in each modality.
        levels: decoder activations from fine to deep, (B, base, H, W), (B, 2 base, H/2, W/2), (B, 2 base, H/4, W/4).
    """

    noise: dict[str, Tensor]
    levels: tuple[Tensor, ...]


class Denoiser(nn.Module):
    """The joint denoiser.

    Args:
        channels: name -> C.
        base: features at full resolution; twice as many at 1/2 and 1/4. A multiple of 8.
    """

    REACH = 56
    """Pixels beyond which nothing reaches a pixel's features; a multiple of 4."""

    SIDES = 4
    """Height and width must be multiples of this."""

    alpha: Tensor

    def __init__(self, channels: Mapping[str, int], base: int = 64) -> None:
        super().__init__()
        self.channels, self.base = dict(channels), base
        deep, time = 2 * base, 4 * base
        half = base // 2
        self.stems = nn.ModuleDict({name: nn.Conv2d(c + 1, half, 3, padding=1) for name, c in self.channels.items()})
        self.tokens = nn.ParameterDict({name: nn.Parameter(torch.zeros(c)) for name, c in self.channels.items()})
        self.join = nn.Conv2d(half * len(self.channels), base, 1)
        self.time = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.encoder = nn.ModuleList([_Block(base, base, time), _Block(base, deep, time), _Block(deep, deep, time)])
        self.down = nn.ModuleList([nn.Conv2d(c, c, 3, stride=2, padding=1) for c in (base, deep)])
        self.middle = nn.ModuleList([_Block(deep, deep, time), _Block(deep, deep, time)])
        self.decoder = nn.ModuleList(
            [_Block(2 * base, base, time), _Block(2 * deep, deep, time), _Block(2 * deep, deep, time)]
        )
        self.up = nn.ModuleList([nn.Conv2d(deep, base, 3, padding=1), nn.Conv2d(deep, deep, 3, padding=1)])
        self.norm = PixelNorm(base)
        self.register_buffer("alpha", signal_alpha(), persistent=False)
        self.noise_heads = nn.ModuleDict({name: nn.Conv2d(base, c, 3, padding=1) for name, c in self.channels.items()})

    @property
    def widths(self) -> tuple[int, int, int]:
        """Features of the levels, fine to deep."""
        return self.base, 2 * self.base, 2 * self.base

    def forward(self, noisy: Mapping[str, Tensor], hidden: Mapping[str, Tensor], timestep: Tensor) -> Denoised:
        """Estimates the noise.

        Args:
            noisy: name -> (B, C, H, W), H and W multiples of 4.
            hidden: name -> (B, 1, H, W) float, 1 where a pixel is not shown (hidden, or without data), else 0.
            timestep: (B,) int64, 0..999; the same for all modalities.
        """
        levels = self.levels(noisy, hidden, timestep)
        last = F.silu(self.norm(levels[0]))
        alpha = self.alpha[timestep].view(-1, 1, 1, 1)
        spread = alpha * DEVIATION**2 + 1 - alpha  # variance of what is shown
        plain, scale = (1 - alpha).sqrt() / spread, wiener_bound(alpha, DEVIATION**2).sqrt()
        return Denoised(
            {name: noisy[name] * plain + head(last).float() * scale for name, head in self.noise_heads.items()},
            levels,
        )

    def levels(
        self, noisy: Mapping[str, Tensor], hidden: Mapping[str, Tensor], timestep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's activations, fine to deep; arguments as in `forward`."""
        alpha = self.alpha[timestep].view(-1, 1, 1, 1)
        scale = (alpha * DEVIATION**2 + 1 - alpha).rsqrt()
        stems = []
        for name, stem in self.stems.items():
            mask, token = hidden[name], self.tokens[name].view(1, -1, 1, 1)
            shown = noisy[name] * scale * (1 - mask) + token * mask
            stems.append(stem(torch.cat([shown, mask], dim=1)))
        x = self.join(torch.cat(stems, dim=1))
        time = self.time(_waves(timestep, self.base))
        fine = self.encoder[0](x, time)
        middle = self.encoder[1](self.down[0](fine), time)
        deep = self.encoder[2](self.down[1](middle), time)
        x = deep
        for block in self.middle:
            x = block(x, time)
        third = self.decoder[2](torch.cat([x, deep], dim=1), time)
        second = self.decoder[1](torch.cat([self.up[1](_doubled(third)), middle], dim=1), time)
        first = self.decoder[0](torch.cat([self.up[0](_doubled(second)), fine], dim=1), time)
        return first, second, third


class _Block(nn.Module):
    """Two convolutions beside a shortcut, the second one steered by the timestep; at first it is the shortcut."""

    def __init__(self, channels: int, features: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([PixelNorm(channels), PixelNorm(features)])
        self.first = nn.Conv2d(channels, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.film = nn.Linear(time, 2 * features)
        self.shortcut = nn.Conv2d(channels, features, 1) if channels != features else nn.Identity()
        for part in (self.second, self.film):
            nn.init.zeros_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W), (B, T) -> (B, D, H, W)."""
        scale, shift = self.film(time)[:, :, None, None].chunk(2, dim=1)
        y = self.first(F.silu(self.norms[0](x)))
        y = self.second(F.silu(self.norms[1](y) * (1 + scale) + shift))
        total: Tensor = self.shortcut(x) + y
        return total


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _waves(timestep: Tensor, features: int) -> Tensor:
    """Sines and cosines of the timestep at wavelengths from 2 pi to 10,000 * 2 pi: (B,) -> (B, features)."""
    half = features // 2
    rates = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10_000) / half))
    angles = timestep[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
