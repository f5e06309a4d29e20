"""Weights rounded to bfloat16 once, where autocast would round them again in every pass."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

M = TypeVar("M", bound=nn.Module)


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
