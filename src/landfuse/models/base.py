"""The contract that every fusion model keeps. A model is one file; `docs/add-a-model.md` walks through one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse import settings
from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED


class Modality(NamedTuple):
    """What a model knows of one modality."""

    channels: int  # after the pixel map
    zoom: int = 1  # how many times finer than the scene's grid


class FusionModel(nn.Module):
    """Looks at a view of every modality and labels the centred core.

    A subclass sets `Settings`, calls `super().__init__`, and defines `forward`; it overrides `loss` where it has
    auxiliary heads or its own objective.

    Args:
        modalities: name -> channels and zoom, in the order in which images come.
        classes: K, the number of classes.
        view: side of the square that is looked at, in pixels of the scene's grid.
        core: side of the centred square that is labelled; 1 for a model that classifies single pixels.

    Raises:
        ModelError: if the core is not centred in the view.
    """

    Settings: ClassVar[type[settings.Settings]]

    progress: float = 1.0
    """Fraction of the training's steps that are done, 0..1; set before each step, so that `loss` may ramp by it."""

    layers: tuple[str, ...] = ()
    """Names of what `map_layers` returns beside logits; may be set by instance."""

    def __init__(self, modalities: Mapping[str, Modality], classes: int, *, view: int, core: int) -> None:
        super().__init__()
        if not 1 <= core <= view or (view - core) % 2:
            raise ModelError(
                f"the model has a view of {view} px and a core of {core} px",
                "a core no larger than the view, both odd or both even, so that it is in the middle",
                f"set view to {core + 2 * max(0, -(-(view - core) // 2))}",
            )
        self.modalities = dict(modalities)
        self.classes = classes
        self.view = view
        self.core = core

    @classmethod
    def without_pretraining(cls, config: settings.Settings) -> settings.Settings:
        """The settings that build the same network without fetching pretrained weights, for those of a bundle."""
        return config

    @property
    def halo(self) -> int:
        """Pixels that a view extends beyond its core, on each side."""
        return (self.view - self.core) // 2

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Scores the classes of every core pixel.

        Args:
            images: name -> (B, C, view * zoom, view * zoom) float, standardised; 0 where there is no data.

        Returns:
            Logits, (B, K, core, core).
        """
        raise NotImplementedError

    def map_layers(self, images: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What a map can hold of every core pixel.

        Args:
            images: as in `forward`.

        Returns:
            Logits, as from `forward`, and (B, 1, core, core), 0..1, for each name in `layers`.
        """
        return self(images), {}

    def loss(self, images: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The quantity to minimise, and its parts for the log.

        Args:
            images: as in `forward`.
            target: (B, core, core) uint8, classes or `UNLABELLED`.

        Returns:
            Scalars: `loss`, which is minimised, and any further parts by name.
        """
        return {"loss": cross_entropy(self(images), target)}

    def frozen_reference(self) -> dict[str, str] | None:
        """What a bundle says of weights that it does not store: their name, address and SHA-256; None for nothing."""
        return None

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that a bundle stores: all, or those beside the frozen ones that `frozen_reference` names."""
        return self.state_dict()

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `trained_state` returned."""
        self.load_state_dict(dict(state))


class DirectFit(FusionModel):
    """A model that is fitted in one pass over all samples instead of by gradient descent (a forest, say)."""

    def fit(self, samples: Iterable[tuple[dict[str, Tensor], Tensor]], seed: int) -> None:
        """Fits to batches of (images, target), as for `loss`; the same seed gives the same model."""
        raise NotImplementedError


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0, with zero gradients, where there are none.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) uint8, classes or `UNLABELLED`.
        smoothing: fraction of each label that is spread over all classes.
    """
    labelled = target != UNLABELLED
    total = F.cross_entropy(
        logits.float(), target.long(), ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing
    )
    return total / labelled.sum().clamp(min=1).to(torch.float32)


def refuse_zoom(model: str, modalities: Mapping[str, Modality]) -> None:
    """Refuses modalities that are finer than the scene's grid, for models that cannot use them.

    Raises:
        ModelError: naming the modality.
    """
    for name, modality in modalities.items():
        if modality.zoom != 1:
            raise ModelError(
                f"`{model}` cannot use the modality `{name}` at zoom {modality.zoom}",
                "modalities on the scene's own grid (zoom 1)",
                f"remove `zoom` from `{name}` in the scene file, or leave it out by `modalities:` in the recipe",
            )
