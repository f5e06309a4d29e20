"""Maps of single pixels, y = W x + b: standardise and PCA, fitted on training pixels only, or published statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.settings import Settings

CHUNK = 4096
"""Pixels per matrix product. A product of fixed shape gives a pixel the same bits whatever block it came in (P1)."""

_LANES = 16
"""Outputs are padded to a multiple of this: narrow products take kernels whose bits depend on a pixel's place."""


class PixelMapSettings(Settings):
    """How the bands of one modality become channels.

    Args:
        kind: `standardise` (mean 0, standard deviation 1 per band), `given` (the same by published statistics), `pca`,
            or `none`.
        mean: of each band, for `given`; in the units of the modality, after its scale.
        std: likewise.
        components: channels that PCA keeps.
        whiten: give each principal component a standard deviation of 1; else only the first has it.
        clip: limit values to +- this many standard deviations; null for no limit.
    """

    kind: Literal["standardise", "given", "pca", "none"] = "standardise"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    components: int = Field(default=30, ge=1)
    whiten: bool = True
    clip: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _statistics_fit(self) -> PixelMapSettings:
        if (self.kind == "given") != bool(self.mean and self.std):
            raise ValueError("`kind: given` needs `mean` and `std`, a number per band each, and no other kind has them")
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ValueError("`mean` and `std` must have the same length, and every `std` be above 0")
        return self


class PixelMap(nn.Module):
    """y = W x + b on the last axis, then 0 where x had no data.

    Args:
        weight: (C,) to scale each band, or (D, C) to mix them.
        bias: (C,) or (D,).
        clip: limit of |y|; infinity for none.

    Attributes:
        instead: what all channels of a pixel become where a band has no data, if a map can do without the modality:
            NaN where the model puts a placeholder, 0 for the mean. None if the modality must be there.
    """

    weight: Tensor
    bias: Tensor
    clip: Tensor
    instead: float | None = None

    def __init__(self, weight: Tensor, bias: Tensor, clip: float = float("inf")) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.float32))
        self.register_buffer("bias", bias.to(torch.float32))
        self.register_buffer("clip", torch.tensor(float(clip)))

    @property
    def bands(self) -> int:
        """C, what it takes."""
        return self.weight.shape[-1]

    @property
    def channels(self) -> int:
        """D, what it gives."""
        return self.weight.shape[0]

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels.

        Args:
            pixels: (..., C) float32, NaN where there is no data.

        Returns:
            (..., D) float32, 0 (the mean) where a band that goes into a channel had no data; see `instead`.
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
        mapped = torch.nan_to_num_(mapped, nan=0.0)
        if self.instead is None:
            return mapped
        return torch.where(torch.isfinite(pixels).all(dim=-1, keepdim=True), mapped, self.instead)


@dataclass
class PixelStatistics:
    """Count, mean and scatter of pixels that come in parts; exact, in float64.

    Args:
        bands: C.
    """

    bands: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.bands, dtype=torch.float64)
        self.scatter = torch.zeros(self.bands, self.bands, dtype=torch.float64)

    def update(self, pixels: Tensor) -> None:
        """Adds pixels, (P, C); those with a NaN are left out. Chan et al. 1979, the pairwise update."""
        known = pixels[torch.isfinite(pixels).all(dim=1)].to(torch.float64)
        if not len(known):
            return
        mean = known.mean(dim=0)
        centred = known - mean
        total = self.count + len(known)
        shift = mean - self.mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(known) / total)
        self.mean += shift * (len(known) / total)
        self.count = total

    def pixel_map(self, settings: PixelMapSettings, modality: str) -> PixelMap:
        """The map that these statistics give.

        Args:
            settings: which.
            modality: for messages.

        Raises:
            ModelError: if no pixel had data, or PCA is asked for more components than there are bands.
        """
        if settings.kind == "none":
            return PixelMap(torch.ones(self.bands), torch.zeros(self.bands), settings.clip or float("inf"))
        if settings.kind == "given":
            if len(settings.mean) != self.bands:
                raise ModelError(
                    f"`pixel_maps.{modality}` gives {len(settings.mean)} means and deviations for {self.bands} bands",
                    "one per band, in the order of the scene file's `bands`",
                    f"mend pixel_maps.{modality}",
                )
            weight = 1 / torch.tensor(settings.std, dtype=torch.float64)
            return PixelMap(
                weight, -torch.tensor(settings.mean, dtype=torch.float64) * weight, settings.clip or float("inf")
            )
        if self.count == 0:
            raise ModelError(
                f"no training pixel has data in `{modality}`",
                "at least one pixel with data under the training labels",
                "check its nodata value, and that it covers the labels",
            )
        covariance = self.scatter / self.count
        clip = settings.clip or float("inf")
        if settings.kind == "standardise":
            deviation = covariance.diagonal().sqrt()
            # A constant band carries nothing: it becomes 0 instead of noise blown up by 1 / 0.
            constant = deviation <= 1e-7 * self.mean.abs().clamp(min=1e-12)
            weight = torch.where(constant, 0.0, 1 / deviation.masked_fill(constant, 1.0))
            return PixelMap(weight, -self.mean * weight, clip)
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
