"""Attention over the dates of each modality, joined late: for series with gaps and irregular dates, as they are.

Sources: the attention is that of Garnot and Landrieu 2020, "Lightweight Temporal Self-Attention for Classifying
Satellite Image Time Series", arXiv 2007.00586; late fusion of several modalities, and leaving out dates in training
(`samples.date_dropout`), that of Garnot et al. 2022, "Multi-Modal Temporal Attention Models for Crop Mapping from
Satellite Time Series", arXiv 2112.07558. Differs from them: a date is encoded by convolutions over a small view in
place of sets of pixels, and pixel by pixel it may be missing; days are counted from the beginning of the first year;
there are no auxiliary classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.layers.pixel_norm import PixelNorm
from landfuse.models.base import FusionModel, Modality, settings_of
from landfuse.models.settings import TemporalSettings

_PERIOD = 1000
"""Of the slowest sine of a day, in 2 pi days, as in the paper."""


class Temporal(FusionModel):
    """Encodes each date, weighs the dates of each modality, and joins the modalities.

    Args:
        modalities: name -> channels, or `Modality`, which says what belongs to which day; a modality without days, and
            channels beside those of days, have an encoder of their own. A finer one is brought to the scene's grid by
            the first layer.
        classes: K.
        config: the settings; or keywords, see `TemporalSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used, or the core is not centred in the view.

    `forward` takes images of any size, name -> (B, C, H * zoom, W * zoom), NaN where there is no data, and returns
    (B, K, H - 2 * halo, W - 2 * halo). A date counts at a pixel where all of its channels are known; nothing stands in
    for the others.

    >>> import torch, landfuse as lf
    >>> s2 = lf.models.Modality(30, days=(95.0, 110.0, 187.5), per_day=10)
    >>> net = lf.models.Temporal({"s2": s2, "height": 1}, classes=8, view=5).eval()
    >>> net({"s2": torch.zeros(4, 30, 5, 5), "height": torch.zeros(4, 1, 5, 5)}).shape
    torch.Size([4, 8, 1, 1])
    """

    Settings = TemporalSettings
    marks_missing = True
    takes_dropped = True

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: TemporalSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(TemporalSettings, config, keywords)
        super().__init__(modalities, classes, view=config.view, core=config.core)
        self.images_per_view = max(1, *(len(m.days) for m in self.modalities.values()))
        branches = {name: _Branch(m, config, self.halo) for name, m in self.modalities.items()}
        self.branches = nn.ModuleDict(branches)
        joined = sum(branch.features for branch in branches.values())
        self.head = nn.Sequential(
            *_layer(joined, 2 * config.width), nn.Dropout(config.dropout), nn.Conv2d(2 * config.width, classes, 1)
        )

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        self.size_of(images)
        logits: Tensor = self.head(torch.cat([branch(images[name]) for name, branch in self.branches.items()], dim=1))
        return logits


class _Branch(nn.Module):
    """One modality: (B, C, H * zoom, W * zoom) to (B, features, H - 2 * halo, W - 2 * halo)."""

    def __init__(self, modality: Modality, config: TemporalSettings, halo: int) -> None:
        super().__init__()
        self.modality, self.halo = modality, halo
        others = modality.channels - modality.dated
        self.features = config.width * (bool(modality.days) + bool(others))
        if modality.days:
            self.of_day = _encoder(modality.per_day, config.width, modality.zoom, halo)
            self.attention = TemporalAttention(modality.days, config.width, config.heads, config.keys)
            self.after = nn.Sequential(*_layer(config.width, config.width))
        if others:
            self.of_others = _encoder(others, config.width, modality.zoom, halo)

    def forward(self, image: Tensor) -> Tensor:
        parts, (channels, zoom, days, per_day) = [], self.modality
        if days:
            dates = image[:, : self.modality.dated].unflatten(1, (len(days), per_day))
            marked, known = _marked(dates.flatten(0, 1))
            whole = -F.max_pool2d(-known, zoom)
            whole = whole[:, :, self.halo : whole.shape[2] - self.halo, self.halo : whole.shape[3] - self.halo]
            seen = [values.unflatten(0, dates.shape[:2]) for values in (self.of_day(marked), whole)]
            parts.append(self.after(self.attention(seen[0], seen[1] > 0)))
        if channels > self.modality.dated:
            parts.append(self.of_others(_marked(image[:, self.modality.dated :])[0]))
        return torch.cat(parts, dim=1)


class TemporalAttention(nn.Module):
    """Lightweight temporal attention: each head weighs the days of its own features by what it asks for.

    Args:
        days: T, when each date is.
        width: D, features of a date.
        heads: that share the features.
        keys: numbers that a head compares with what it asks for.
    """

    encoding: Tensor

    def __init__(self, days: Sequence[float], width: int, heads: int, keys: int) -> None:
        super().__init__()
        self.heads, each = heads, width // heads
        self.query = nn.Parameter(torch.randn(heads, keys) * math.sqrt(2 / keys))
        self.key = nn.Parameter(torch.randn(heads, keys, each) / math.sqrt(each))
        encoding = day_encoding(days, each).repeat(1, heads)[:, :, None, None]
        self.register_buffer("encoding", encoding.float(), persistent=False)  # the days are known without it

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """Weighs days.

        Args:
            features: (B, T, D, H, W) of each.
            known: (B, T, 1, H, W) bool, which are there.

        Returns:
            (B, D, H, W); 0 where none is.
        """
        values = features + self.encoding
        # The query does not depend on the image: queries times keys are one direction per head.
        direction = (self.query[:, :, None] * self.key).sum(dim=1) / math.sqrt(self.query.shape[1])
        # Products and sums, no matrix product, whose last bits depend on a pixel's place.
        scores = (values * direction.flatten()[:, None, None]).unflatten(2, (self.heads, -1)).sum(dim=3)
        scores = scores.masked_fill(~known, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=1) * known
        return (values.unflatten(2, (self.heads, -1)) * weights[:, :, :, None]).sum(dim=1).flatten(1, 2)


def day_encoding(days: Sequence[float], size: int) -> Tensor:
    """Sines and cosines of days, from quick to slow: (T, size) float64."""
    place = torch.arange(size, dtype=torch.float64)
    rate = _PERIOD ** (-2 * (place // 2) / size)
    return torch.sin(torch.tensor(days, dtype=torch.float64)[:, None] * rate + math.pi / 2 * (place % 2))


def _layer(channels: int, width: int, side: int = 1, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, side, stride), PixelNorm(width), nn.ReLU()]


def _encoder(channels: int, width: int, zoom: int, halo: int) -> nn.Sequential:
    """Of one date with its mark: a layer of single pixels, then one of 3 x 3 for each ring of the halo."""
    rings = [part for _ in range(halo) for part in _layer(width, width, 3)]
    return nn.Sequential(*_layer(channels + 1, width, zoom, zoom), *rings)


def _marked(image: Tensor) -> tuple[Tensor, Tensor]:
    """An image with a channel that is 1 where all others are known, and 0 as all others elsewhere; and that channel."""
    known = ~image.isnan().any(dim=1, keepdim=True)
    mark = known.to(image.dtype)
    return torch.cat([torch.where(known, image, 0), mark], dim=1), mark
