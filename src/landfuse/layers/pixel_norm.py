"""Normalisation of single pixels."""

from __future__ import annotations

from torch import Tensor, nn


class PixelNorm(nn.LayerNorm):
    """Normalises the channels of each pixel, (B, C, H, W), then scales and shifts them; no pixel changes another."""

    def forward(self, image: Tensor) -> Tensor:
        """In any memory order; channels last is the fast one."""
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
