"""A learned placeholder for each modality that may be missing, in front of any model.

Where a modality was dropped in training, or has no data at a pixel, its image holds NaN. Here a vector of its channels
replaces it, the same at every pixel and trained with the model, so that the model can distinguish
"nothing was seen" from "a mean value was seen".

Source: of the idea, Neverova et al. 2016, ModDrop, doi 10.1109/TPAMI.2015.2461544, who put zeros there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from landfuse.errors import ModelError
from landfuse.models.base import DirectFit, FusionModel


class WithPlaceholders(FusionModel):
    """A model whose images may hold NaN.

    Args:
        network: the model; its view, core and loss are kept.
        names: of the modalities that may be missing.

    Raises:
        ModelError: if the model is not trained by gradient descent.
    """

    def __init__(self, network: FusionModel, names: Iterable[str]) -> None:
        super().__init__(network.modalities, network.classes, view=network.view, core=network.core)
        if isinstance(network, DirectFit):
            raise ModelError(
                "a model that is fitted in one pass cannot learn placeholders for dropped modalities",
                "a model trained by gradient descent, e.g. `two_branch`",
                "set samples.modality_dropout=0; `landfuse modalities` still reports what each modality contributes",
            )
        self.network = network
        self.layers = network.layers
        # From zeros, the mean: training starts as if it were filled in.
        start = {name: nn.Parameter(torch.zeros(network.modalities[name].channels)) for name in names}
        self.placeholders = nn.ParameterDict(start)

    def filled(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images, (B, C, H, W), with placeholders instead of NaN."""
        return {
            name: torch.where(image.isnan(), self.placeholders[name][:, None, None].to(image.dtype), image)
            if name in self.placeholders
            else image
            for name, image in images.items()
        }

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Images hold NaN where a modality is missing."""
        logits: Tensor = self.network(self.filled(images))
        return logits

    def map_layers(self, images: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.network.map_layers(self.filled(images))

    def loss(self, images: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        self.network.progress = self.progress
        return self.network.loss(self.filled(images), target)

    def frozen_reference(self) -> dict[str, str] | None:
        return self.network.frozen_reference()

    def trained_state(self) -> dict[str, Tensor]:
        own = {f"placeholders.{name}": value for name, value in self.placeholders.items()}
        return own | {f"network.{name}": value for name, value in self.network.trained_state().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        own = {name.removeprefix("placeholders."): v for name, v in state.items() if name.startswith("placeholders.")}
        self.placeholders.load_state_dict(own)
        rest = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
        self.network.load_trained_state(rest)
