"""Maps of single pixels, y = W x + b: standardise and PCA, fitted on training pixels only, or published statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError, few
from landfuse.models.base import Modality
from landfuse.scenes.scene import QUANTILES, ModalityInfo
from landfuse.series.dates import days_of
from landfuse.views.pixel_arrays import CHUNK, PixelArrays
from landfuse.views.settings import PixelMapSettings

_LANES = 16
"""Outputs are padded to a multiple of this: narrow products take kernels whose bits depend on a pixel's place."""

_SAMPLE = 20_000
"""Pixels, at least, that quantiles are taken from, where there are so many."""


class PixelMap(nn.Module):
    """y = W x + b on the last axis, then 0 where x had no data.

    Args:
        weight: (C,) to scale each band, or (D, C) to mix them.
        bias: (C,) or (D,).
        clip: limit of |y|; infinity for none.
    """

    weight: Tensor
    bias: Tensor
    clip: Tensor
    values: tuple[tuple[float, ...], ...] = ()
    """For each band, the quantiles `QUANTILES` of the pixels that it was fitted to."""
    gaps = False
    """Whether a pixel has data if it has one band, as those of series do."""

    def __init__(self, weight: Tensor, bias: Tensor, clip: float = float("inf")) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.float32))
        self.register_buffer("bias", bias.to(torch.float32))
        self.register_buffer("clip", torch.tensor(float(clip)))

    @property
    def bands(self) -> int:
        """C, the bands that go in."""
        return self.weight.shape[-1]

    @property
    def channels(self) -> int:
        """D, the channels that come out."""
        return self.weight.shape[0]

    @torch.no_grad()
    def forward(self, pixels: Tensor, stand_in: float | None = None, missing: float = 0.0) -> Tensor:
        """Maps pixels.

        Args:
            pixels: (..., C) float32, NaN where there is no data.
            stand_in: what all channels of a pixel become where a band has no data (of a series, where none has); None
                leaves the other bands.
            missing: what a channel becomes where a band that goes into it has no data; 0 is the mean.

        Returns:
            (..., D) float32.
        """
        if self.weight.dim() == 1:
            # Two roundings everywhere: a fused multiply-add rounds once, and not every code path is fused.
            mapped = torch.mul(pixels, self.weight).add_(self.bias)
        else:
            flat = pixels.reshape(-1, self.bands)
            mapped = flat.new_empty((len(flat), self.channels))
            weight = F.pad(self.weight, (0, 0, 0, -self.channels % _LANES)).T.contiguous()
            bias = F.pad(self.bias, (0, -self.channels % _LANES))
            chunk = flat.new_zeros((CHUNK, self.bands))
            for start in range(0, len(flat), CHUNK):
                part = flat[start : start + CHUNK]
                chunk[: len(part)] = part
                mapped[start : start + CHUNK] = torch.addmm(bias, chunk, weight)[: len(part), : self.channels]
            mapped = mapped.reshape(*pixels.shape[:-1], self.channels)
        if torch.isfinite(self.clip):
            mapped = mapped.clamp(-self.clip, self.clip)
        mapped = torch.nan_to_num_(mapped, nan=missing)
        if stand_in is None:
            return mapped
        known = torch.isfinite(pixels)
        there = known.any(dim=-1, keepdim=True) if self.gaps else known.all(dim=-1, keepdim=True)
        return torch.where(there, mapped, stand_in)

    def modality(self, info: ModalityInfo) -> Modality:
        """What a model knows of a modality that it maps; of days only where it does not mix them."""
        dated = info.per_step > 0 and self.weight.dim() == 1
        return Modality(self.channels, info.zoom, *((days_of(info.steps), info.per_step) if dated else ()))

    def scale_unseen(self, info: ModalityInfo) -> None:
        """Scales each band of a series on days of which training shows nothing as on the mean of its other days."""
        days = self.modality(info)
        for values in (
            (self.bias, self.weight) if days.days else ()
        ):  # by its weight what is unseen is known: it is last
            table = values[: days.dated].view(-1, days.per_day)
            seen = self.weight[: days.dated].view(-1, days.per_day) != 0
            table[:] = torch.where(seen, table, (table * seen).sum(dim=0) / seen.sum(dim=0).clamp(min=1))

    @property
    def arrays(self) -> PixelArrays:
        """The same map as arrays."""
        weight, bias = self.weight.cpu().numpy(), self.bias.cpu().numpy()
        return PixelArrays(weight, bias, float(self.clip), self.gaps)


@dataclass
class PixelStatistics:
    """Count, mean and scatter of pixels that come in parts; exact, in float64.

    Args:
        bands: C.
        gaps: whether pixels may lack bands, as those of series do; each band is standardised by those that have it.
    """

    bands: int
    gaps: bool = False
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)
    seen: Tensor = field(init=False)
    _single: Tensor = field(init=False)  # of each band: number, sum and sum of squares
    _low: Tensor = field(init=False)
    _high: Tensor = field(init=False)
    _sample: Tensor = field(init=False)
    _step: int = 1

    def __post_init__(self) -> None:
        self._low = torch.full((self.bands,), math.inf, dtype=torch.float64)
        self._high, self._sample = -self._low, torch.zeros(0, self.bands)
        self.mean = torch.zeros(self.bands, dtype=torch.float64)
        self.scatter = torch.zeros(self.bands, self.bands, dtype=torch.float64)
        self.seen = torch.zeros(self.bands, dtype=torch.bool)
        self._single = torch.zeros(3, self.bands, dtype=torch.float64)

    def update(self, pixels: Tensor) -> None:
        """Adds pixels, (P, C); those with a NaN are left out. Chan et al. 1979, the pairwise update."""
        finite = torch.isfinite(pixels)
        self.seen |= finite.any(dim=0)
        if self.gaps:
            values = torch.where(finite, pixels, 0).to(torch.float64)
            self._single += torch.stack([finite.sum(dim=0), values.sum(dim=0), values.square().sum(dim=0)])
        known = pixels[finite.all(dim=1)].to(torch.float64)
        if not len(known):
            return
        self._low = torch.minimum(self._low, known.amin(dim=0))
        self._high = torch.maximum(self._high, known.amax(dim=0))
        self._sample = torch.cat([self._sample, known[-self.count % self._step :: self._step].float()])
        while len(self._sample) > 2 * _SAMPLE:
            self._sample, self._step = self._sample[::2], 2 * self._step
        mean = known.mean(dim=0)
        centred = known - mean
        total = self.count + len(known)
        shift = mean - self.mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(known) / total)
        self.mean += shift * (len(known) / total)
        self.count = total

    @property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """For each band the quantiles `QUANTILES`: the ends exact, the others those of a sample; empty without data."""
        if not self.count:
            return ()
        inner = np.quantile(self._sample.numpy(), QUANTILES[1:-1], axis=0)
        return tuple(map(tuple, np.column_stack([self._low, inner.T, self._high]).tolist()))

    def pixel_map(self, settings: PixelMapSettings, modality: str) -> PixelMap:
        """Returns the map of these statistics.

        Args:
            settings: which.
            modality: for messages.

        Raises:
            ModelError: if no pixel had data, or PCA is asked for more components than there are bands.
        """
        clip = settings.clip or math.inf
        if settings.kind == "none":
            return PixelMap(torch.ones(self.bands), torch.zeros(self.bands), clip)
        if settings.kind == "given":
            if len(settings.mean) != self.bands:
                raise ModelError(
                    f"`pixel_maps.{modality}` gives {len(settings.mean)} means and deviations for {self.bands} bands",
                    "one per band, in the order of the scene file's `bands`",
                    f"correct pixel_maps.{modality}",
                )
            weight = 1 / torch.tensor(settings.std, dtype=torch.float64)
            return PixelMap(weight, -torch.tensor(settings.mean, dtype=torch.float64) * weight, clip)
        single = self.gaps and settings.kind == "standardise"
        if not self.seen.any() or (self.count == 0 and not single):
            dead = [str(band + 1) for band in range(self.bands) if not self.seen[band]]
            raise ModelError(
                "no training pixel has data in "
                + (f"band {few(dead)} of the {self.bands} in use of " if 0 < len(dead) < self.bands else "")
                + f"`{modality}`",
                "at least one pixel with data in every band under the training labels",
                "check its nodata value, that it covers the labels, and its `bands`: `landfuse check` shows more",
            )
        covariance, mean = self.scatter / self.count, self.mean
        if settings.kind == "standardise":
            deviation = covariance.diagonal().sqrt()
            if single:
                mean, square = self._single[1:] / self._single[0].clamp(min=1)
                deviation = (square - mean.square()).clamp(min=0).sqrt()
            # A constant band carries nothing: it becomes 0 instead of noise blown up by 1 / 0.
            constant = deviation <= 1e-7 * mean.abs().clamp(min=1e-12)
            weight = torch.where(constant, 0.0, 1 / deviation.masked_fill(constant, 1.0))
            return PixelMap(weight, -mean * weight, clip)
        if settings.components > self.bands:
            raise ModelError(
                f"PCA of `{modality}` is to keep {settings.components} components of {self.bands} bands",
                f"at most {self.bands}",
                f"set pixel_maps.{modality}.components lower",
            )
        variances, axes = torch.linalg.eigh(covariance)
        variances, axes = variances.flip(0)[: settings.components], axes.flip(1)[:, : settings.components]
        signs = torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))  # the largest loading is positive
        floor = variances[0].clamp(min=1e-30) * 1e-10
        scale = (
            variances.clamp(min=floor).sqrt()
            if settings.whiten
            else variances[0].clamp(min=1e-30).sqrt().expand_as(variances)
        )
        weight = (axes * signs / scale).T
        return PixelMap(weight, -weight @ self.mean, clip)
