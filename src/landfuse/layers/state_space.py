"""State-space layers over images: SS2D and the VSS block.

Source: Liu et al. 2024, "VMamba: Visual State Space Model", arXiv 2401.10166, section 4 and appendix; the variant
without the multiplicative branch ("noz"), which REF-Net uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.kernels.linear import Linear
from landfuse.kernels.scan_image import DIRECTIONS, image_scan


def initialise_scan(rank_weight: Tensor, log_A: Tensor, delta_bias: Tensor) -> None:
    """Draws the parameters of a scan: A is -1, -2, ..., -N, and delta starts between 0.001 and 0.1."""
    rank = rank_weight.shape[-1]
    nn.init.uniform_(rank_weight, -(rank**-0.5), rank**-0.5)
    with torch.no_grad():
        log_A.copy_(torch.arange(1, log_A.shape[1] + 1, dtype=log_A.dtype).log().expand_as(log_A))
        delta = torch.empty_like(delta_bias).uniform_(math.log(0.001), math.log(0.1)).exp_()
        delta_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus


class SS2D(nn.Module):
    """Mixes the pixels of an image along four directions by selective scans.

    Args:
        width: channels of the image; twice as many inside.
        states: N, states per channel.
    """

    multiplied = ("projection",)

    def __init__(self, width: int, states: int = 1) -> None:
        super().__init__()
        inner, rank = 2 * width, math.ceil(width / 16)
        self.enter = Linear(width, inner, bias=False)
        self.smooth = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.activation = nn.SiLU()
        self.projection = nn.Parameter(torch.empty(DIRECTIONS * (rank + 2 * states), inner))
        self.rank_weight = nn.Parameter(torch.empty(DIRECTIONS * inner, rank))
        self.delta_bias = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.log_A = nn.Parameter(torch.empty(DIRECTIONS * inner, states))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.norm = nn.LayerNorm(inner)
        self.leave = Linear(inner, width, bias=False)
        nn.init.kaiming_uniform_(self.projection, a=math.sqrt(5))
        initialise_scan(self.rank_weight, self.log_A, self.delta_bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W, width) -> the same."""
        x = self.enter(image).permute(0, 3, 1, 2)
        x = self.activation(self.smooth(x)).permute(0, 2, 3, 1).contiguous()
        factors = F.linear(x, self.projection)
        y = image_scan(x, factors, -self.log_A.exp(), self.rank_weight, self.delta_bias, self.D)
        out: Tensor = self.leave(self.norm(y))
        return out


class VSSBlock(nn.Module):
    """A visual state-space block: SS2D, then a perceptron per pixel, each after a layer norm and with a skip.

    Args:
        width: channels.
        states: N, states per channel.
        drop_path: fraction of samples for which a branch is left out in training.
    """

    def __init__(self, width: int, states: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mix = SS2D(width, states)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.drop = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        x = image.permute(0, 2, 3, 1)
        x = x + self.drop(self.mix(self.norm1(x)))
        x = x + self.drop(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


# VMamba's name -> ours, within one block.
_VMAMBA = {
    "norm.": "norm1.",
    "norm2.": "norm2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.2.",
    "op.in_proj.": "mix.enter.",
    "op.conv2d.": "mix.smooth.",
    "op.out_norm.": "mix.norm.",
    "op.out_proj.": "mix.leave.",
    "op.x_proj_weight": "mix.projection",
    "op.dt_projs_weight": "mix.rank_weight",
    "op.dt_projs_bias": "mix.delta_bias",
    "op.A_logs": "mix.log_A",
    "op.Ds": "mix.D",
}


def from_vmamba(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the parameters of one block, without its prefix, from VMamba's names to those of `VSSBlock`.

    Raises:
        KeyError: for a name that such a block does not have.
    """
    renamed = {}
    for name, value in block.items():
        theirs = max((key for key in _VMAMBA if name.startswith(key)), key=len, default=None)
        if theirs is None:
            raise KeyError(name)
        ours = _VMAMBA[theirs] + name.removeprefix(theirs)
        if value.dim() == 4 and "conv2d" not in name:
            value = value.flatten(1)  # a linear map, stored as a 1x1 convolution
        if ours in ("mix.projection", "mix.rank_weight", "mix.delta_bias"):
            value = value.flatten(0, 1)  # (4, ..) -> (4*D, ..)
        renamed[ours] = value
    return renamed
