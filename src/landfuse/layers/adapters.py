"""Fine-tuning of a frozen ViT for several modalities: Adapter, LoRA, both, none, all.

A mechanism replaces modules inside the blocks of an unmodified timm ViT. Modalities come stacked along the batch,
modality-major: rows 0..B-1 are the first modality, B..2B-1 the second. So the frozen layers run once on all of them,
and only the new modules know that there are modalities.

With two modalities x, y the formulas are the paper's, per token:

    after attention          x + adapter_x(x)
    beside the MLP           mlp(x) + w_x a_x(x) + (1 - w_x) a_y(y)           (a: an adapter without skip)
    LoRA of q and v          W x + (1 / rank) B_x A_x x
    LoRA of the MLP's layers W x + w_x B_x A_x x + (1 - w_x) B_y A_y y

and the same with x and y exchanged; w_x, w_y are learned scalars of each layer and start at 0.5. Their extension to M
modalities: a modality keeps the share w of its own update and takes (1 - w) / (M - 1) of every other's. The fractions
sum to 1, so with one modality there is no scalar and the update is its own.

A new mechanism is one class with `attach` and one line in `MECHANISMS` (tests/layers/test_adapters.py has an example).

Source: Ma et al. 2025, "A Unified Framework with Multimodal Fine-tuning for Remote Sensing Semantic Segmentation",
doi 10.1109/TGRS.2025.3585238, sections on the multimodal Adapter and the multimodal LoRA; LoRA: Hu et al. 2022,
doi 10.48550/arXiv.2106.09685.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from landfuse.errors import ModelError
from landfuse.kernels.linear import linear_each
from landfuse.layers.lora import Exchange, ExchangedLoraLinear, LoraLinear, by_modality


class Bottlenecks(nn.Module):
    """One two-layer perceptron per modality, D -> hidden -> D with GELU, run as one batched product.

    Args:
        modalities: M.
        features: D.
        hidden: width between.
    """

    multiplied = ("down", "down_bias", "up", "up_bias")

    def __init__(self, modalities: int, features: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(modalities, features, hidden))
        self.down_bias = nn.Parameter(torch.empty(modalities, 1, hidden))
        self.up = nn.Parameter(torch.empty(modalities, hidden, features))
        self.up_bias = nn.Parameter(torch.empty(modalities, 1, features))
        # nn.Linear's own start, as in the authors' release.
        for fan_in, parameters in ((features, (self.down, self.down_bias)), (hidden, (self.up, self.up_bias))):
            for parameter in parameters:
                nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    def forward(self, x: Tensor, fractions: Tensor | None = None) -> Tensor:
        """(M, T, D) -> (M, T, D).

        Args:
            x: the tokens of every modality.
            fractions: (M, M), what each modality takes of every perceptron's output; by default its own.
        """
        hidden = linear_each(x, self.down, self.down_bias)
        if torch.is_grad_enabled() and hidden.requires_grad:
            # Only the narrow layer is kept; the second half costs little to compute again.
            y: Tensor = checkpoint(self._second, hidden, fractions, use_reentrant=False, preserve_rng_state=False)
            return y
        return self._second(hidden, fractions)

    def _second(self, hidden: Tensor, fractions: Tensor | None) -> Tensor:
        y = linear_each(F.gelu(hidden), self.up, self.up_bias)
        return y if fractions is None else torch.matmul(fractions, y.flatten(1)).view(y.shape)


class AdaptedAttention(nn.Module):
    """An attention layer followed by an adapter with a skip, one per modality."""

    def __init__(self, inner: nn.Module, modalities: int, features: int, hidden: int) -> None:
        super().__init__()
        self.inner = inner
        self.modalities = modalities
        self.adapters = Bottlenecks(modalities, features, hidden)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.inner(x, *args, **kwargs)
        update: Tensor = self.adapters(by_modality(y, self.modalities))
        return y + update.view(y.shape)


class AdaptedMlp(nn.Module):
    """An MLP with adapters beside it, whose outputs may be exchanged between the modalities."""

    def __init__(self, inner: nn.Module, modalities: int, features: int, hidden: int, exchange: bool = True) -> None:
        super().__init__()
        self.inner = inner
        self.modalities = modalities
        self.adapters = Bottlenecks(modalities, features, hidden)
        self.exchange = Exchange(modalities) if exchange else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        fractions = self.exchange() if self.exchange is not None and self.modalities > 1 else None
        update: Tensor = self.adapters(by_modality(x, self.modalities), fractions)
        return y + update.view(y.shape)


class Mechanism:
    """How a frozen ViT is fine-tuned. A subclass overrides `attach`.

    Args:
        modalities: M, the number of modalities stacked along the batch, at least 1.
        rank: r of low-rank updates.
        bottleneck: width of an adapter's hidden layer, as a part of the block's width; above 0, at most 1.
        exchange: whether updates are exchanged between the modalities.

    Raises:
        ModelError: if one of them is out of range.
    """

    trains_encoder: ClassVar[bool] = False

    def __init__(self, modalities: int, *, rank: int = 4, bottleneck: float = 0.25, exchange: bool = True) -> None:
        if modalities < 1:
            raise ModelError(
                f"the fine-tuning got {modalities} modalities", "at least 1", "name the modalities in the scene file"
            )
        if not 0 < bottleneck <= 1:
            raise ModelError(
                f"`bottleneck` is {bottleneck}", "a part of the width: above 0, at most 1", "set it to 0.25"
            )
        self.modalities, self.rank, self.bottleneck, self.exchange = modalities, rank, bottleneck, exchange

    def attach(self, block: nn.Module) -> None:
        """Replaces modules of one block (`attn`, `mlp` or parts of them); parameters that it makes are trained."""

    def hidden(self, features: int) -> int:
        """Width of an adapter's hidden layer beside a block of `features` features."""
        return max(1, math.floor(features * self.bottleneck))


class Frozen(Mechanism):
    """The encoder as it is; only what follows it is trained."""


class Full(Mechanism):
    """The whole encoder is trained."""

    trains_encoder = True


class Adapter(Mechanism):
    """The multimodal Adapter: after attention, and beside the MLP with exchange."""

    def attach(self, block: nn.Module) -> None:
        sizes = (self.modalities, features := _width(block), self.hidden(features))
        block.attn = AdaptedAttention(block.get_submodule("attn"), *sizes)
        block.mlp = AdaptedMlp(block.get_submodule("mlp"), *sizes, self.exchange)


class Lora(Mechanism):
    """The multimodal LoRA: of q and v per modality, in the MLP with exchange."""

    def attach(self, block: nn.Module) -> None:
        attention, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
        fused = getattr(attention, "qkv", None)
        if isinstance(fused, nn.Linear):
            attention.qkv = LoraLinear(fused, self.modalities, self.rank, scale=1 / self.rank, parts=3, updated=(0, 2))
            if hasattr(attention, "qkv_bias_separate"):
                attention.qkv_bias_separate = True  # type: ignore[assignment]  # timm's EVA attention would take qkv.weight past the module
        elif isinstance(getattr(attention, "q_proj", None), nn.Linear):
            for name in ("q_proj", "v_proj"):
                linear = attention.get_submodule(name)
                if isinstance(linear, nn.Linear):
                    setattr(attention, name, LoraLinear(linear, self.modalities, self.rank, scale=1 / self.rank))
        else:
            raise ModelError(
                f"LoRA found no projection to q and v in {type(attention).__name__}",
                "an attention with `qkv`, or with `q_proj` and `v_proj`",
                "set `finetune: adapter`, or take another encoder",
            )
        for name, child in list(mlp.named_children()):
            if isinstance(child, nn.Linear):
                kind = ExchangedLoraLinear if self.exchange else LoraLinear
                setattr(mlp, name, kind(child, self.modalities, self.rank))


class AdapterAndLora(Mechanism):
    """Both, LoRA inside and adapters around."""

    def attach(self, block: nn.Module) -> None:
        for mechanism in (Lora, Adapter):  # the adapters then wrap layers that hold LoRA
            one = mechanism(self.modalities, rank=self.rank, bottleneck=self.bottleneck, exchange=self.exchange)
            one.attach(block)


def _width(block: nn.Module) -> int:
    norm = block.get_submodule("norm2")  # after a stage's change of width, which norm1 is not
    return int(norm.normalized_shape[-1])  # type: ignore[index]


MECHANISMS: dict[str, type[Mechanism]] = {
    "adapter": Adapter,
    "lora": Lora,
    "both": AdapterAndLora,
    "none": Frozen,
    "full": Full,
}


def fine_tune(encoder: nn.Module, mechanism: Mechanism, first: int = 0) -> None:
    """Freezes an encoder and attaches a mechanism to its blocks.

    Args:
        encoder: has `blocks`, as timm's ViTs do.
        mechanism: what is attached.
        first: blocks before it stay as they are, and then keep no activations for the backward pass.

    Raises:
        ModelError: if there is no block from `first` on.
    """
    blocks = list(encoder.get_submodule("blocks").children())
    if not 0 <= first < len(blocks):
        raise ModelError(
            f"`first_block` is {first}, and the encoder has {len(blocks)} blocks",
            f"a block from 0 to {len(blocks) - 1}",
            "set `first_block: 0` to fine-tune all blocks",
        )
    encoder.requires_grad_(mechanism.trains_encoder)
    for block in blocks[first:]:
        mechanism.attach(block)
