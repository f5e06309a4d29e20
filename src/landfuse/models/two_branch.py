"""A small CNN per modality, joined late: the baseline for single pixels, and the example to copy.

Source: the two-branch design that the field compares with since Xu et al. 2018, "Multisource Remote Sensing Data
Classification Based on Convolutional Neural Network", doi 10.1109/TGRS.2017.2756851. Differs from that paper: any
number of modalities, and three 3x3 convolutions per branch instead of a spectral 1-D branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landfuse.models.base import FusionModel, Modality, settings_of
from landfuse.models.settings import TwoBranchSettings


class TwoBranch(FusionModel):
    """One branch per modality; the class of the central pixel from all of them.

    Args:
        modalities: name -> channels, or `Modality`; a finer one is averaged to the scene's grid after its first layer.
        classes: K.
        config: the settings; or keywords, see `TwoBranchSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used, or the view is even.

    `forward` takes name -> (B, C, view * zoom, view * zoom), and no other size, and returns (B, K, 1, 1).

    >>> import torch, landfuse as lf
    >>> net = lf.models.TwoBranch({"hsi": 144, "height": lf.models.Modality(1, zoom=2)}, classes=15, view=7, width=8)
    >>> net({"hsi": torch.zeros(4, 144, 7, 7), "height": torch.zeros(4, 1, 14, 14)}).shape
    torch.Size([4, 15, 1, 1])
    """

    Settings = TwoBranchSettings

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: TwoBranchSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(TwoBranchSettings, config, keywords)
        super().__init__(modalities, classes, view=config.view, core=1)
        self.branches = nn.ModuleDict({name: _branch(m, config.width) for name, m in self.modalities.items()})
        joined = 2 * config.width * len(modalities)
        self.head = nn.Sequential(
            nn.Linear(joined, 2 * config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.width, classes),
        )

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        self.check_view(images)
        features = []
        centre = self.view // 2
        for name, branch in self.branches.items():
            maps = branch(images[name])  # (B, D, view, view)
            features += [maps[:, :, centre, centre], maps.mean(dim=(2, 3))]
        logits: Tensor = self.head(torch.cat(features, dim=1))
        return logits[:, :, None, None]


def _branch(modality: Modality, width: int) -> nn.Sequential:
    def layer(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU()]

    to_grid = [nn.AvgPool2d(modality.zoom)] if modality.zoom > 1 else []
    return nn.Sequential(*layer(modality.channels), *to_grid, *layer(width), *layer(width))
