"""MFNet's Deep Fusion Module, and what stands between images, a ViT and it.

Source: Ma et al. 2025, doi 10.1109/TGRS.2025.3585238, section on the Deep Fusion Module; squeeze and excitation: Hu et
al. 2018, doi 10.1109/CVPR.2018.00745; the pyramid of a plain ViT: Li et al. 2022, doi 10.1007/978-3-031-20077-9_17.
"""

from __future__ import annotations

import functools

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 256  # channels of SAM's neck, of the pyramid and of the fusion


class Stem(nn.Module):
    """Any number of channels to the encoder's three."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix: nn.Conv2d | None = None
        if channels not in (1, 3):
            self.mix = nn.Conv2d(channels, 3, 1)
            with torch.no_grad():
                self.mix.bias.zero_()  # type: ignore[union-attr]
                self.mix.weight.copy_(torch.eye(3, channels)[:, :, None, None])
                if channels == 2:
                    self.mix.weight[2].fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W)."""
        return x.expand(-1, 3, -1, -1) if self.mix is None else self.mix(x)


class SqueezeExcitation(nn.Module):
    """Weighs channels by what the whole map holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // 16
        self.fc = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), nn.ReLU(), nn.Conv2d(reduced, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.fc(F.adaptive_avg_pool2d(x, 1))
        return y


class Pyramid(nn.Module):
    """One map to four: four times and twice as wide by transposed convolutions, as it is, and half as wide.

    Args:
        norm: between the two steps to the widest.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2),
            norm,
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2),
        )
        self.up2 = nn.Sequential(nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One (B, C, H, W) -> (B, C, 4 H, 4 W), (B, C, 2 H, 2 W), (B, C, H, W), (B, C, H / 2, W / 2)."""
        (x,) = maps
        return [self.up1(x), self.up2(x), x, F.max_pool2d(x, 2)]


class DeepFusion(nn.Module):
    """The Deep Fusion Module: a pyramid per modality, and at every scale the sum of what each one's gate lets through.

    Args:
        modalities: M.
        scales: maps of the encoder per modality: 1, or 4, which then are the pyramid.
    """

    def __init__(self, modalities: int, scales: int) -> None:
        super().__init__()
        norms = [LayerNorm2d(WIDTH) if m == 0 else nn.BatchNorm2d(WIDTH) for m in range(modalities)]
        self.pyramids = nn.ModuleList(Pyramid(norm) if scales == 1 else nn.Identity() for norm in norms)
        self.gates = nn.ModuleList(nn.ModuleList(SqueezeExcitation(WIDTH) for _ in range(modalities)) for _ in range(4))

    def forward(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """Per modality its maps -> four fused maps (B, C, H / 2**i, W / 2**i), finest first."""
        pyramids = [pyramid(each) for pyramid, each in zip(self.pyramids, maps, strict=True)]
        fused = []
        for gates, *scale in zip(self.gates, *pyramids, strict=True):
            gated = [gate(x) for gate, x in zip(gates, scale, strict=True)]
            fused.append(functools.reduce(torch.add, gated))
        return fused


class SumFusion(nn.Module):
    """The sum of the modalities' maps at each scale, for comparison with `DeepFusion`."""

    def forward(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """Per modality its maps -> as many fused maps."""
        return [functools.reduce(torch.add, scale) for scale in zip(*maps, strict=True)]


def neck(channels: int, plain: bool) -> nn.Module:
    """What brings an encoder's map to the pyramid's width, where the encoder has no neck of its own."""
    if channels == WIDTH and plain:
        return nn.Identity()
    if not plain:
        return nn.Conv2d(channels, WIDTH, 1)
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 1, bias=False),
        LayerNorm2d(WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        LayerNorm2d(WIDTH),
    )
