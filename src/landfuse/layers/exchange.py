"""Between modalities that are stacked along the batch: splitting them apart, and exchanging what they learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landfuse.errors import ModelError


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
    """How much of every modality's update each modality takes: its own share, and equal parts of the rest.

    Args:
        modalities: M; with one there is nothing to learn.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.own: nn.Parameter | None = nn.Parameter(torch.full((modalities,), 0.5)) if modalities > 1 else None

    def forward(self) -> Tensor:
        """The shares, (M, M): row m holds what modality m takes of each; rows sum to 1."""
        if self.own is None:
            return torch.ones(1, 1)
        others = (1 - self.own) / (self.modalities - 1)
        own = torch.eye(self.modalities, dtype=self.own.dtype, device=self.own.device)
        return own * self.own[:, None] + (1 - own) * others[:, None]
