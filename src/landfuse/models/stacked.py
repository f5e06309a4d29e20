"""All bands stacked into one network of segmentation-models-pytorch: early fusion, the baseline for dense maps.

Source: segmentation-models-pytorch (Iakubovskii 2019), whose architectures and encoders go by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError, nearest
from landfuse.layers.checkpoints import timm_weights
from landfuse.models.base import FusionModel, Modality, settings_of
from landfuse.models.settings import StackedSettings


class Stacked(FusionModel):
    """Any segmentation network on all channels at once.

    Args:
        modalities: name -> channels, or `Modality`; a finer one is averaged to the scene's grid.
        classes: K.
        config: the settings; or keywords, see `StackedSettings`. With `weights`, `load_pretrained` reads them.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used, or the architecture or encoder is not known.

    `forward` takes images of any size, name -> (B, C, H * zoom, W * zoom), and returns (B, K, H, W), less the halo
    where a `core` is set. Encoders halve the image five times: in between it is padded to a multiple of 32 px.

    >>> import torch, landfuse as lf
    >>> net = lf.models.Stacked({"s2": 10, "s1": 2}, classes=8, architecture="Linknet").eval()
    >>> net({"s2": torch.zeros(1, 10, 50, 70), "s1": torch.zeros(1, 2, 50, 70)}).shape
    torch.Size([1, 8, 50, 70])
    """

    Settings = StackedSettings

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: StackedSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(StackedSettings, config, keywords)
        super().__init__(modalities, classes, view=config.view, core=config.core or config.view)
        self.config = config
        self.network = self._built(None)
        # Encoders halve the image five times; other sizes are padded to the next multiple.
        self.multiple = 32

    def _built(self, weights: str | None) -> nn.Module:
        config, known = self.config, _architectures()
        options: dict[str, Any] = {}
        if weights is not None and Path(weights).suffix in (".pth", ".pt", ".safetensors"):
            name = config.encoder.removeprefix("tu-")
            if name == config.encoder:
                raise ModelError(
                    f"model.weights names the file {weights}, and model.encoder is `{name}`",
                    "for weights from a file a backbone of timm, `tu-` and its name",
                    f"set model.encoder=tu-{name} if timm has it",
                )
            state = timm_weights(weights, name, self.network.get_submodule("encoder.model"))
            options["pretrained_cfg_overlay"] = {"state_dict": state}
        if config.architecture.lower() not in known:
            kinds = sorted(kind.__name__ for kind in known.values())
            raise ModelError(
                f"segmentation-models-pytorch has no architecture `{config.architecture}`",
                ", ".join(kinds),
                nearest(config.architecture, kinds),
            )
        try:
            return known[config.architecture.lower()](
                encoder_name=config.encoder,
                encoder_weights=True if options else weights,
                in_channels=sum(modality.channels for modality in self.modalities.values()),
                classes=self.classes,
                **options,
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

    def load_pretrained(self, *, missing_only: bool = False) -> None:
        """Reads the encoder's published weights, if `weights` names some."""
        if self.config.weights is not None and not missing_only:
            encoder = self.network.get_submodule("encoder")
            with torch.random.fork_rng(devices=[]):  # what is drawn there is not kept
                published = self._built(self.config.weights).get_submodule("encoder")
            encoder.load_state_dict(published.state_dict())

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        height, width = self.size_of(images)
        stack = torch.cat([_on_grid(images[name], m.zoom) for name, m in self.modalities.items()], dim=1)
        rows, columns = -height % self.multiple, -width % self.multiple
        top, left = rows // 2, columns // 2
        if rows or columns:
            stack = F.pad(stack, (left, columns - left, top, rows - top), mode="replicate")
        logits: Tensor = self.network(stack)
        logits = logits[:, :, top : top + height, left : left + width]
        return logits[:, :, self.halo : height - self.halo, self.halo : width - self.halo]


def _on_grid(image: Tensor, zoom: int) -> Tensor:
    return F.avg_pool2d(image, zoom) if zoom > 1 else image


def _architectures() -> dict[str, type[nn.Module]]:
    return {
        name.lower(): kind
        for name, kind in vars(smp).items()
        if isinstance(kind, type) and issubclass(kind, smp.base.SegmentationModel)
    }
