"""Low-rank updates of linear layers, one per modality of a stacked batch; the formulas are in `layers/adapters.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.kernels.gpu import constant
from landfuse.kernels.linear import linear


def by_modality(x: Tensor, modalities: int) -> Tensor:
    """Splits the stacked batch: (M * B, ..., D) -> (M, T, D), where T counts the tokens of one modality.

    Raises:
        ModelError: if the batch is no multiple of the number of modalities.
    """
    if x.shape[0] % modalities:
        raise ModelError(
            f"a stacked batch of {x.shape[0]} came to a fine-tuning of {modalities} modalities",
            f"a multiple of {modalities}: as many images of every modality",
            "stack the images of all modalities along the batch, one modality after the other",
        )
    return x.reshape(modalities, -1, x.shape[-1])


class Exchange(nn.Module):
    """How much of every modality's update each modality takes: a fraction of its own, and equal parts of the rest.

    Args:
        modalities: M; with one there is nothing to learn.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.own: nn.Parameter | None = nn.Parameter(torch.full((modalities,), 0.5)) if modalities > 1 else None

    def forward(self) -> Tensor:
        """The fractions, (M, M): row m holds what modality m takes of each; rows sum to 1."""
        if self.own is None:
            return torch.ones(1, 1)
        others = (1 - self.own) / (self.modalities - 1)
        return torch.where(_diagonal(self.modalities, self.own.device), self.own[:, None], others[:, None])


@constant
def _diagonal(side: int, device: torch.device) -> Tensor:
    return torch.eye(side, dtype=torch.bool, device=device)


class LoraLinear(nn.Module):
    """A linear layer with a low-rank update per modality, of some parts of its output.

    Args:
        inner: the frozen layer, O x D.
        modalities: M.
        rank: r, of every part's update.
        scale: factor of the update.
        parts: into how many equal parts the output is cut; 3 for a fused qkv.
        updated: the parts that are updated; 0 and 2 for q and v.

    Raises:
        ModelError: if the rank is larger than the layer.
    """

    multiplied = ("down",)

    def __init__(
        self,
        inner: nn.Linear,
        modalities: int,
        rank: int,
        *,
        scale: float = 1.0,
        parts: int = 1,
        updated: tuple[int, ...] = (0,),
    ) -> None:
        super().__init__()
        _check_rank(rank, inner)
        self.inner = inner
        self.modalities, self.rank, self.scale, self.parts, self.updated = modalities, rank, scale, parts, updated
        part = inner.out_features // parts
        self.down = nn.Parameter(torch.empty(modalities, inner.in_features, len(updated) * rank))
        self.up = nn.Parameter(torch.zeros(modalities, len(updated), rank, part))
        nn.init.uniform_(self.down, -(inner.in_features**-0.5), inner.in_features**-0.5)

    def _up(self) -> Tensor:
        """The updates of all parts as one matrix per modality, (M, updated * r, O); zero for a part without one."""
        if self.parts == 1:
            return self.up[:, 0] * self.scale
        width = self.up.shape[-1]
        rows = [
            F.pad(self.up[:, place], (part * width, (self.parts - 1 - part) * width))
            for place, part in enumerate(self.updated)
        ]
        return torch.cat(rows, dim=1) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        low = torch.bmm(by_modality(x, self.modalities), self.down)
        return torch.baddbmm(by_modality(y, self.modalities), low, self._up()).view(y.shape)

    def merged(self) -> nn.Module:
        """The same layer without the update's own products: one weight per modality."""
        update = torch.bmm(self.down, self._up()).transpose(1, 2)  # (M, O, D)
        return _with_update(self.inner, update.detach())


class ExchangedLoraLinear(nn.Module):
    """A linear layer whose low-rank updates are exchanged between the modalities.

    Args:
        inner: the frozen layer, O x D.
        modalities: M.
        rank: r.

    Raises:
        ModelError: if the rank is larger than the layer.
    """

    multiplied = ("down", "up")

    def __init__(self, inner: nn.Linear, modalities: int, rank: int) -> None:
        super().__init__()
        _check_rank(rank, inner)
        self.inner = inner
        self.modalities, self.rank = modalities, rank
        self.down = nn.Parameter(torch.empty(modalities, inner.in_features, rank))
        self.up = nn.Parameter(torch.zeros(modalities, rank, inner.out_features))
        self.exchange = Exchange(modalities)
        nn.init.uniform_(self.down, -(inner.in_features**-0.5), inner.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        M = self.modalities
        y: Tensor = self.inner(x)
        low = torch.bmm(by_modality(x, M), self.down)  # (M, T, r)
        if M > 1:
            # Sum over n of fraction[m, n] low[n] up[n], as one product with the updates of all modalities side by side.
            fractions = self.exchange().to(low.dtype)
            low = (fractions[:, None, :, None] * low.transpose(0, 1)[None]).flatten(2)  # (M, T, M * r)
        return torch.addmm(y.reshape(-1, y.shape[-1]), low.flatten(0, 1), self.up.flatten(0, 1)).view(y.shape)

    def merged(self) -> nn.Module | None:
        """The layer without the update's own products, or None: with several modalities it needs the others' input."""
        if self.modalities > 1:
            return None
        return _with_update(self.inner, torch.bmm(self.down, self.up).transpose(1, 2).detach())


class PerModalityLinear(nn.Module):
    """A linear layer with a weight for every modality; the bias is shared.

    Args:
        weight: (M, O, D).
        bias: (O) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        modalities = by_modality(x, len(self.weight))
        each = [linear(tokens, weight, self.bias) for tokens, weight in zip(modalities, self.weight, strict=True)]
        return torch.stack(each).view(*x.shape[:-1], -1)


def _with_update(inner: nn.Linear, update: Tensor) -> nn.Module:
    weight = inner.weight.detach() + update  # (M, O, D)
    if len(weight) > 1:
        return PerModalityLinear(weight, inner.bias)
    with torch.no_grad():
        inner.weight.copy_(weight[0])
    return inner


def _check_rank(rank: int, layer: nn.Linear) -> None:
    smaller = min(layer.in_features, layer.out_features)
    if not 1 <= rank <= smaller:
        raise ModelError(
            f"the rank of LoRA is {rank}, and a layer of the encoder is {layer.out_features} x {layer.in_features}",
            f"a rank from 1 to {smaller}, far below it to be of use",
            "set `rank` to 4, 8 or 16",
        )


def merge_lora(model: nn.Module) -> tuple[list[str], list[str]]:
    """Folds low-rank updates into weights, where the function stays the same.

    With one modality every update folds into the frozen weight. With several, q and v fold into one weight per modality
    (M times the memory of that layer), but the exchanged updates of the MLP do not fold: modality m takes
    (1 - w) B_n A_n x_n from modality n, which no matrix applied to x_m alone can give.

    Returns:
        Names of the layers that were folded, and of those that were not.
    """
    folded: list[str] = []
    kept: list[str] = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, LoraLinear | ExchangedLoraLinear):
            continue
        replacement = module.merged()
        if replacement is None:
            kept.append(name)
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
        folded.append(name)
    return folded, kept
