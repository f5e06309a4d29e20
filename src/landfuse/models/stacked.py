"""All bands stacked into one network of segmentation-models-pytorch: early fusion, the baseline for dense maps.

Source: segmentation-models-pytorch (Iakubovskii 2019), whose architectures and encoders go by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional as F

from landfuse import settings
from landfuse.errors import ModelError
from landfuse.models.base import FusionModel, Modality
from landfuse.models.settings import StackedSettings


class Stacked(FusionModel):
    """Any segmentation network on all channels at once.

    Args:
        modalities: name -> channels and zoom; a finer modality is averaged to the scene's grid.
        classes: K.
        config: the settings.

    Raises:
        ModelError: if the architecture or encoder is not known, or its weights cannot be fetched.
    """

    Settings = StackedSettings

    def __init__(self, modalities: Mapping[str, Modality], classes: int, config: StackedSettings) -> None:
        super().__init__(modalities, classes, view=config.view, core=config.core or config.view)
        channels = sum(modality.channels for modality in modalities.values())
        known = _architectures()
        if config.architecture.lower() not in known:
            near = difflib.get_close_matches(config.architecture.lower(), known, n=1)
            raise ModelError(
                f"segmentation-models-pytorch has no architecture `{config.architecture}`",
                ", ".join(sorted(kind.__name__ for kind in known.values())),
                f"did you mean {known[near[0]].__name__}?" if near else "choose one of these",
            )
        try:
            self.network = known[config.architecture.lower()](
                encoder_name=config.encoder, encoder_weights=config.weights, in_channels=channels, classes=classes
            )
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"`{config.architecture}` cannot be built with encoder `{config.encoder}`: {str(error)[:300]}",
                "an encoder that segmentation-models-pytorch knows, or `tu-` and a timm backbone",
                "correct model.encoder or model.weights",
            ) from None
        except OSError as error:
            raise ModelError(
                f"the weights `{config.weights}` of `{config.encoder}` cannot be fetched: {str(error)[:200]}",
                "a network connection, or weights fetched before",
                "set model.weights=null to start from random weights",
            ) from None
        # Encoders halve the image five times; other sizes are padded to the next multiple.
        self.multiple = 32

    @classmethod
    def without_pretraining(cls, config: settings.Settings) -> settings.Settings:
        return config.model_copy(update={"weights": None})

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        stack = torch.cat([_on_grid(images[name], m.zoom) for name, m in self.modalities.items()], dim=1)
        missing = -self.view % self.multiple
        if missing:
            before = missing // 2
            stack = F.pad(stack, (before, missing - before, before, missing - before), mode="replicate")
        logits: Tensor = self.network(stack)
        first = missing // 2 + self.halo
        return logits[:, :, first : first + self.core, first : first + self.core]


def _on_grid(image: Tensor, zoom: int) -> Tensor:
    return F.avg_pool2d(image, zoom) if zoom > 1 else image


def _architectures() -> dict[str, type[torch.nn.Module]]:
    return {
        name.lower(): kind
        for name, kind in vars(smp).items()
        if isinstance(kind, type) and issubclass(kind, smp.base.SegmentationModel)
    }
