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

from landfuse.kernels.linear import Linear
from landfuse.kernels.scan_image import DIRECTIONS, project_and_scan


class SS2D(nn.Module):
    """Mixes the pixels of an image along four directions by selective scans.

    Args:
        width: channels of the image.
        states: N, states per channel.
        expansion: inner channels per channel.
        rank: of the projection of delta; by default a sixteenth of `width`, rounded up.
        kernel: side of the depthwise convolution before the scan; 1 for none.
        kernel_bias: whether that convolution has a bias.
    """

    def __init__(
        self,
        width: int,
        states: int = 1,
        expansion: float = 2.0,
        rank: int | None = None,
        kernel: int = 3,
        kernel_bias: bool = False,
    ) -> None:
        super().__init__()
        inner = int(expansion * width)
        rank = rank or math.ceil(width / 16)
        self.enter = Linear(width, inner, bias=False)
        self.smooth = (
            nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=kernel_bias)
            if kernel > 1
            else nn.Identity()
        )
        self.activation = nn.SiLU()
        self.projection = nn.Parameter(torch.empty(DIRECTIONS * (rank + 2 * states), inner))
        self.rank_weight = nn.Parameter(torch.empty(DIRECTIONS * inner, rank))
        self.delta_bias = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.log_A = nn.Parameter(torch.empty(DIRECTIONS * inner, states))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.norm = nn.LayerNorm(inner)
        self.leave = Linear(inner, width, bias=False)
        self.reset()

    def reset(self) -> None:
        """Draws fresh parameters of the scan: A is -1, -2, ..., -N, and delta starts between 0.001 and 0.1."""
        nn.init.kaiming_uniform_(self.projection, a=math.sqrt(5))
        rank = self.rank_weight.shape[1]
        nn.init.uniform_(self.rank_weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            states = torch.arange(1, self.log_A.shape[1] + 1, dtype=self.log_A.dtype)
            self.log_A.copy_(states.log().expand_as(self.log_A))
            low, high = math.log(0.001), math.log(0.1)
            delta = torch.empty_like(self.delta_bias).uniform_(low, high).exp_()
            self.delta_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W, width) -> the same."""
        x = self.enter(image).permute(0, 3, 1, 2)
        x = self.activation(self.smooth(x)).permute(0, 2, 3, 1)
        A = -self.log_A.exp()
        y = project_and_scan(x.contiguous(), self.projection, A, self.rank_weight, self.delta_bias, self.D)
        out: Tensor = self.leave(self.norm(y))
        return out


class VSSBlock(nn.Module):
    """A visual state-space block: SS2D, then a perceptron per pixel, each after a layer norm and with a skip.

    Args:
        width: channels.
        states: N, states per channel.
        expansion: inner channels of SS2D, per channel.
        mlp_ratio: hidden channels of the perceptron, per channel.
        drop_path: share of samples for which a branch is left out in training.
    """

    def __init__(
        self, width: int, states: int = 1, expansion: float = 2.0, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mix = SS2D(width, states, expansion)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, width))
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
    """Renames the parameters of one VSS block from VMamba's names to those of `VSSBlock`.

    Args:
        block: parameters of one block, without the block's own prefix (`norm.weight`, `op.in_proj.weight`, ...).

    Returns:
        The same values for `VSSBlock.load_state_dict`.

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
