"""UNetFormer's decoder: global-local attention, weighted fusion with the skips, and a refinement head.

Any size of input: where a map is no multiple of the attention's window it is continued by mirroring, as often as
needed, and cropped afterwards.

Source: Wang et al. 2022, "UNetFormer: A UNet-like transformer for efficient semantic segmentation of remote sensing
urban scene imagery", doi 10.1016/j.isprsjprs.2022.06.008, section 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.kernels.gpu import constant


def mirrored(x: Tensor, height: int, width: int) -> Tensor:
    """Continues a map (B, C, H, W) downwards and to the right by mirroring at its edge, without repeating the edge.

    Unlike reflection padding it goes further than the map is wide, by mirroring again.
    """
    for axis, size in ((2, height), (3, width)):
        if x.shape[axis] != size:
            x = x.index_select(axis, _reflection(x.shape[axis], size, x.device))
    return x


@constant
def _reflection(length: int, size: int, device: torch.device) -> Tensor:
    period = max(1, 2 * (length - 1))
    place = torch.arange(size, device=device) % period
    return torch.where(place < length, place, period - place)


def convolution(inputs: int, outputs: int, kernel: int, *, relu: bool = False) -> nn.Sequential:
    """Convolution without bias that keeps the size, and batch norm; then ReLU6 if asked for."""
    convolve = nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2, bias=False)
    return nn.Sequential(convolve, nn.BatchNorm2d(outputs), *([nn.ReLU6()] if relu else []))


def separable(features: int, kernel: int) -> nn.Sequential:
    """Depthwise convolution, batch norm, 1 x 1 convolution; an even kernel makes the map one smaller."""
    return nn.Sequential(
        nn.Conv2d(features, features, kernel, padding=(kernel - 1) // 2, groups=features, bias=False),
        nn.BatchNorm2d(features),
        nn.Conv2d(features, features, 1, bias=False),
    )


class GlobalLocalAttention(nn.Module):
    """Attention within windows, spread across them by strip pooling, beside two convolutions.

    Args:
        features: D, a multiple of `heads`.
        heads: number of attention heads.
        window: side of a window in cells, even.
    """

    pair: Tensor  # (window**2, window**2), the place of each pair's distance in `bias`

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Conv2d(features, 3 * features, 1, bias=False)
        self.local3 = convolution(features, features, 3)
        self.local1 = convolution(features, features, 1)
        self.proj = separable(features, window)
        self.down = nn.AvgPool2d((window, 1), stride=1, padding=(window // 2 - 1, 0))
        self.across = nn.AvgPool2d((1, window), stride=1, padding=(0, window // 2 - 1))
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        row, column = row.flatten(), column.flatten()
        distance_h = row[:, None] - row[None, :] + window - 1
        distance_w = column[:, None] - column[None, :] + window - 1
        self.register_buffer("pair", distance_h * (2 * window - 1) + distance_w, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        B, D, H, W = x.shape
        w = self.window
        rows, columns = -(-H // w), -(-W // w)
        qkv = self.qkv(mirrored(x, rows * w, columns * w))
        cut = qkv.view(B, 3, self.heads, D // self.heads, rows, w, columns, w)
        q, k, v = cut.permute(1, 0, 4, 6, 2, 5, 7, 3).reshape(3, B * rows * columns, self.heads, w * w, -1).unbind(0)
        bias = self.bias[self.pair].permute(2, 0, 1).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        out = out.view(B, rows, columns, self.heads, w, w, -1).permute(0, 3, 6, 1, 4, 2, 5)
        out = out.reshape(B, D, rows * w, columns * w)[:, :, :H, :W]
        out = self.down(mirrored(out, H + 1, W)) + self.across(mirrored(out, H, W + 1))
        out = out + (self.local1(x) + self.local3(x))
        spread: Tensor = self.proj(mirrored(out, H + 1, W + 1))
        return spread


class GlobalLocalBlock(nn.Module):
    """A transformer block with batch norms: global-local attention, then a 1 x 1 convolutional MLP."""

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(features)
        self.attn = GlobalLocalAttention(features, heads, window)
        self.norm2 = nn.BatchNorm2d(features)
        self.mlp = nn.Sequential(nn.Conv2d(features, 4 * features, 1), nn.ReLU6(), nn.Conv2d(4 * features, features, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class WeightedFusion(nn.Module):
    """Doubles a map and adds a skip, if there is one, by two learned weights, not negative, that sum to 1."""

    def __init__(self, skip_channels: int | None, features: int) -> None:
        super().__init__()
        if skip_channels is not None:
            self.pre = nn.Conv2d(skip_channels, features, 1, bias=False)
            self.shares = nn.Parameter(torch.ones(2))  # saved models have this name
        self.post = convolution(features, features, 3, relu=True)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, D, H, W) and (B, C, 2 H, 2 W) -> (B, D, 2 H, 2 W)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        if skip is not None:
            weights = F.relu(self.shares)
            weights = weights / (weights.sum() + 1e-8)
            x = weights[0] * self.pre(skip) + weights[1] * x
        y: Tensor = self.post(x)
        return y


class RefinementHead(nn.Module):
    """Weighted fusion, refined by attention over pixels and over channels."""

    def __init__(self, skip_channels: int | None, features: int) -> None:
        super().__init__()
        self.fusion = WeightedFusion(skip_channels, features)
        self.pixel = nn.Sequential(nn.Conv2d(features, features, 3, padding=1, groups=features), nn.Sigmoid())
        reduced = max(1, features // 16)
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(features, reduced, 1, bias=False),
            nn.ReLU6(),
            nn.Conv2d(reduced, features, 1, bias=False),
            nn.Sigmoid(),
        )
        self.shortcut = convolution(features, features, 1)
        self.proj = separable(features, 3)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, D, H, W) and (B, C, 2 H, 2 W) -> (B, D, 2 H, 2 W)."""
        x = self.fusion(x, skip)
        refined = self.pixel(x) * x + self.channel(x) * x
        return F.relu6(self.proj(refined) + self.shortcut(x))


class UNetFormerDecoder(nn.Module):
    """Four maps, each half as wide as the one before, to class scores at the width of the finest; or one map, enlarged.

    Args:
        channels: channels of the four maps, finest first; or of the one.
        features: D within the decoder, a multiple of 8.
        classes: K.
        dropout: of whole channels before the scores, 0..1.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, features: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        heads = window = 8
        *skips, coarsest = channels
        finest, second, third = skips or (None, None, None)
        self.pre = convolution(coarsest, features, 1)
        self.block4 = GlobalLocalBlock(features, heads, window)
        self.fusion3 = WeightedFusion(third, features)
        self.block3 = GlobalLocalBlock(features, heads, window)
        self.fusion2 = WeightedFusion(second, features)
        self.block2 = GlobalLocalBlock(features, heads, window)
        self.refine = RefinementHead(finest, features)
        self.head = nn.Sequential(
            convolution(features, features, 3, relu=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(features, classes, 1, bias=False),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, channels[i], H / 2**i, W / 2**i) for i in 0..3 -> (B, K, H, W); or one map, (B, C, H / 8, W / 8)."""
        *skips, coarsest = maps
        finest, second, third = skips or (None, None, None)
        x = self.block4(self.pre(coarsest))
        x = self.block3(self.fusion3(x, third))
        x = self.block2(self.fusion2(x, second))
        y: Tensor = self.head(self.refine(x, finest))
        return y
