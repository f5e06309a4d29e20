"""Networks made ready for mapping on a GPU: the same numbers up to rounding, by fewer kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from timm.models._features import FeatureDictNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.kernels.scan import runs_triton

M = TypeVar("M", bound=nn.Module)


def with_fewer_kernels(model: M) -> M:
    """The model for evaluation; it stays as it is, and all parameters are shared with it.

    Batch norms and ReLU behind convolutions, in sequences and in ResNet's blocks, become one kernel, and layer norms
    take half precision without a copy in float32 before and after.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared).eval()
    _replace(copied)
    return copied


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BasicBlock | Bottleneck) and _is_plain(child):
            setattr(module, name, ResidualBlock(child))
        elif type(child) is nn.LayerNorm and child.bias is not None:
            setattr(module, name, HalfLayerNorm(child))
        else:
            _replace(child)
    if isinstance(module, nn.Sequential | FeatureDictNet):
        children, kept = list(module.named_children()), getattr(module, "return_layers", ())
        for (name, conv), (norm_name, norm), (act_name, act) in zip(children, children[1:], children[2:], strict=False):
            known = (type(conv), type(norm), type(act)) == (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
            if known and name not in kept and norm_name not in kept:
                setattr(module, name, ConvNormReLU(conv, norm))
                setattr(module, norm_name, nn.Identity())
                setattr(module, act_name, nn.Identity())


@torch.library.custom_op("landfuse::norm_relu", mutates_args=())
def norm_relu(images: Sequence[Tensor], scales: Sequence[Tensor], shift: Tensor) -> Tensor:
    """ReLU of the sum of one or two images, each times its scale, and the shift, as one kernel; in the first's type.

    Args:
        images: (B, C, H, W) each, of any floating type.
        scales: (C,) float32 each; for the second image it may be left out, which is then added as it is.
        shift: (C,) float32.
    """
    if runs_triton(shift.device):
        from landfuse.layers import norm_relu_triton

        return norm_relu_triton.norm_relu(images, scales, shift)
    y = images[0].float() * scales[0][:, None, None] + shift[:, None, None]
    for number, image in enumerate(images[1:], start=1):
        y += image * scales[number][:, None, None] if number < len(scales) else image
    return y.relu_().to(images[0].dtype)


@norm_relu.register_fake
def _(images: Sequence[Tensor], scales: Sequence[Tensor], shift: Tensor) -> Tensor:
    return torch.empty_like(images[0])


class HalfLayerNorm(nn.LayerNorm):
    """A layer norm that returns bfloat16 for bfloat16, where autocast has it return float32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.half_weight, self.half_bias = (nn.Buffer(p.detach().to(torch.bfloat16)) for p in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.half_weight, self.half_bias, self.eps)


class ConvNormReLU(nn.Module):
    """A convolution, its batch norm, a skip where there is one, and ReLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, (scale, shift) = conv, _line(norm)
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu([self.conv(x)], [self.scale], self.shift)


class ResidualBlock(nn.Module):
    """A block of ResNet without batch norms of its own."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        *first, last = [1, 2, 3] if isinstance(block, Bottleneck) else [1, 2]
        self.first = nn.Sequential(*(ConvNormReLU(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in first))
        self.last: nn.Conv2d = getattr(block, f"conv{last}")
        norms, others = [getattr(block, f"bn{last}")], []
        if block.downsample is not None:
            *others, norm = block.downsample
            norms.append(norm)
        self.skip = nn.Sequential(*others)
        lines = [_line(norm) for norm in norms]
        self.scales = nn.Buffer(torch.stack([scale for scale, _ in lines]))
        self.shift = nn.Buffer(torch.stack([shift for _, shift in lines]).sum(0))

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu([self.last(self.first(x)), self.skip(x)], self.scales.unbind(), self.shift)


def _line(norm: Any) -> tuple[Tensor, Tensor]:
    """By what a batch norm multiplies each channel in evaluation, and what it then adds."""
    with torch.no_grad():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return scale, norm.bias - norm.running_mean * scale


def _is_plain(block: BasicBlock | Bottleneck) -> bool:
    """Whether it has nothing beside convolutions, batch norms and ReLU."""
    parts = [part for name, part in block.named_children() if name != "downsample"]
    known = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Identity}
    normed = block.downsample is None or type(block.downsample[-1]) is nn.BatchNorm2d
    return normed and block.drop_path is None and block.se is None and {type(part) for part in parts} <= known
