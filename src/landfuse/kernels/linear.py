"""Linear layers at the speed of the processor.

PyTorch multiplies float32 matrices on x86 with MKL, which on AMD processors leaves AVX-512 unused: on an EPYC of family
26 it reaches 100 GFLOP/s per core, and oneDNN 200. PyTorch's public way to oneDNN in float32 is a convolution, so there
a linear layer is run as a 1 x 1 convolution. In all other cases it is `torch.nn.functional.linear`; the numbers are the
same up to rounding.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

M = TypeVar("M", bound=nn.Module)

IMAGES = 16
"""With fewer images in a batch and one thread PyTorch does not take oneDNN for a convolution."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O).

    Returns:
        (..., O).
    """
    if not _by_convolution(x, weight):
        return F.linear(x, weight, bias)
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return _convolution(x, weight, bias)
    frozen: Tensor = _Frozen.apply(x, weight, bias)
    return frozen


def linear_each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y[m] = x[m] W[m] + b[m].

    Args:
        x: (M, T, I).
        weight: (M, I, O).
        bias: (M, 1, O).

    Returns:
        (M, T, O).
    """
    if not _by_convolution(x[0], weight):
        return torch.baddbmm(bias, x, weight)
    each = zip(x, weight.transpose(1, 2), bias[:, 0], strict=True)
    return torch.stack([_convolution(*layer) for layer in each])


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    images = x.reshape(IMAGES, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class _Frozen(torch.autograd.Function):
    """A convolution would keep its input for the backward pass, even where the weight has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _convolution(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(gradients[0], weight.t()), None, None


def _by_convolution(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # a graph would be bound to multiples of IMAGES
        return False
    rows = x.numel() // x.shape[-1]
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and rows % IMAGES == 0
        and rows >= 8 * IMAGES  # below that the rearranging of the weights costs more than it brings
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


class Linear(nn.Linear):
    """`torch.nn.Linear`, run by `linear`."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """The same layer, with the same parameters."""
        same = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        same.weight, same.bias = layer.weight, layer.bias
        return same

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


def quicken(module: nn.Module) -> None:
    """Replaces every `torch.nn.Linear` inside a module by `Linear`, in place; names and parameters stay."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, Linear.of(child))
        else:
            quicken(child)


def rounded_once(model: M) -> M:
    """The model with the weights of its products and convolutions in bfloat16; to be run in autocast, for inference.

    Its outputs are those of the model in autocast, to the last bit. The model itself stays as it is, and the other
    parameters are shared with it. A module whose own parameters only enter products names them in `multiplied`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    rounded = copy.deepcopy(model, shared)
    for module in rounded.modules():
        names = ("weight", "bias") if isinstance(module, nn.Linear | _ConvNd) else getattr(module, "multiplied", ())
        for name in names:
            parameter = getattr(module, name)
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False))
    return rounded
