"""Settings of the denoiser, its training and its features; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from landfuse.settings import Chance, Count, Rate, Seed, Settings

STEPS = 1000
"""Timesteps from the image (0) to pure noise (999)."""

FACTORS = {1: 1, 2: 2, 3: 4}
"""Level of the decoder -> how many times coarser than the scene's grid it is."""


_RETIRED = "leave it out: `balance` has kind (none, paper or swap), gamma, warmup and every"

_FORMER_KINDS = ("adaptive", "gap", "grad", "opm", "fixed")


class BalanceSettings(Settings):
    """How the modalities of a joint denoiser are kept in balance."""

    kind: Literal["none", "paper", "swap"] = Field(
        default="swap",
        description="`paper`: adaptive masking: a modality is hidden in the more samples, the more the decoder's "
        "features depend on it; `swap`: in every fourth step each modality in turn is replaced by that of another "
        "crop, and the loss grows by how unevenly the features change; `none`: neither",
    )
    gamma: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the loss of a modality is weighted by (its channels) ^ gamma: 1 is a plain mean over all "
        "channels, 0 weighs all modalities equally",
    )
    warmup: int = Field(default=200, ge=0, le=10**9, description="steps before balancing begins")
    every: Count = Field(default=20, description="steps between two measurements of the balance")

    retired = dict.fromkeys(("progress", "rest"), (0.5, _RETIRED)) | {
        "weight_rate": (0.0, _RETIRED),
        "imputation": (0.0, _RETIRED),
        "evenness": (0.1, _RETIRED),
        "cell": (8, _RETIRED),
        "most": (0.6, _RETIRED),
        "even": (False, _RETIRED),
        "kappa": (2.0, _RETIRED),
    }
    retired_training = frozenset(retired)

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any, info: ValidationInfo) -> Any:
        """Translates `kind: adaptive` with `hide: swap` or `whole`, which are now the kinds `swap` and `paper`."""
        if not isinstance(values, Mapping) or not ("hide" in values or values.get("kind") in _FORMER_KINDS):
            return values
        kind, hide = values.get("kind", "adaptive"), values.get("hide", "swap")
        saved = (info.context or {}).get("saved")
        if not saved and (kind in _FORMER_KINDS[1:] or (hide == "cells" and kind != "none")):
            raise ValueError(f"`kind: {kind}` with `hide: {hide}` no longer exists; {_RETIRED}")
        kind = kind if kind not in _FORMER_KINDS else "swap" if hide == "swap" else "paper"
        return {**{name: value for name, value in values.items() if name != "hide"}, "kind": kind}


class PretrainSettings(Settings):
    """How a denoiser is trained, before the model and without labels."""

    modalities: tuple[str, ...] | None = Field(
        default=None, description="modalities of the denoiser; by default those of the recipe"
    )
    fit_on: Literal["scene", "train"] = Field(
        default="scene",
        description="`scene`: all pixels of the scene, test pixels too, never a label (transductive use, which the "
        "run's scores report); `train`: crops around training pixels, without validation and test pixels",
    )
    start_from: str | None = Field(
        default=None,
        description="a run, or a denoiser's folder, from the working directory: its network and pixel maps are loaded, "
        "and trained for `steps` more",
    )
    base: int = Field(
        default=32,
        ge=8,
        le=4096,
        multiple_of=8,
        description="features of the network at full resolution; 64 is the published size, 24 to 32 suit a CPU",
    )
    steps: int | None = Field(
        default=None,
        ge=0,
        le=10**9,
        description="optimiser steps; 20,000 on a GPU, 1,000 to 3,000 on a CPU. By default 2,000, or 0 after "
        "`start_from`",
    )
    batch: int = Field(default=12, ge=2, le=10**6, description="crops per step; 64 on a GPU")
    crop: int = Field(
        default=32, ge=4, le=8192, multiple_of=4, description="side of a crop, px; at most that of the scene"
    )
    rate: Rate = Field(
        default=2e-3,
        description="learning rate of AdamW; rises over the first 5% of the steps, then falls as a cosine. 2e-4 suits "
        "long training",
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=1e3, description="of AdamW")
    clip: float = Field(default=1.0, gt=0, le=1e9, description="limit of the gradient's norm")
    average: Chance = Field(
        default=0.999,
        description="the weights that are kept are an exponential mean over the steps; this is the weight of its past",
    )
    augment: bool = Field(default=True, description="flip crops and rotate them by quarter turns")
    balance: BalanceSettings = Field(default=BalanceSettings(), description="how the modalities are kept in balance")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="`auto`: bfloat16 on GPUs and float32 elsewhere"
    )
    seed: Seed = Field(default=0, description="of weights, crops, noise and masking")

    @property
    def total(self) -> int:
        """Steps of the optimiser."""
        return self.steps if self.steps is not None else 0 if self.start_from else 2000


class FeatureSettings(Settings):
    """Which features of a denoiser the model gets as further modalities, `diffusion_1` to `diffusion_3`."""

    kind: Literal["diffusion"] = Field(default="diffusion", description="the only kind")
    timesteps: tuple[Annotated[int, Field(ge=0, lt=STEPS)], ...] = Field(
        default=(50, 150, 300), description="how much noise is added to the scene, 0 (none) to 999 (nothing else)"
    )
    levels: tuple[Annotated[int, Field(ge=1, le=3)], ...] = Field(
        default=(1, 2, 3),
        description="of the decoder, 1 (fine) to 3 (deep); each becomes one modality of timesteps x its width channels",
    )
    tile: int = Field(
        default=256, ge=16, le=8192, multiple_of=8, description="side of the tiles that features are computed by, px"
    )
    overlap: int = Field(
        default=32,
        ge=0,
        le=8192,
        multiple_of=8,
        description="overlap of neighbouring tiles, px, less than `tile`; only a tile's centre is kept",
    )
    seed: Seed = Field(default=0, description="of the noise")
    cache: str | None = Field(
        default=None,
        description="folder where computed tiles are kept; by default $LANDFUSE_CACHE/features, or else "
        "~/.cache/landfuse/features",
    )

    retired = {"mode": ("scene", "features are computed once per scene; leave `mode` out")}

    @field_validator("timesteps", "levels")
    @classmethod
    def _some_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one, each once")
        return value

    @field_validator("overlap")
    @classmethod
    def _below_tile(cls, value: int, info: Any) -> int:
        if value >= info.data.get("tile", 256):
            raise ValueError("the overlap must be less than the tile")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that the levels become."""
        return tuple(f"diffusion_{level}" for level in self.levels)

    @property
    def folder(self) -> Path:
        """Where computed tiles are kept."""
        if self.cache is not None:
            return Path(self.cache)
        return Path(os.environ.get("LANDFUSE_CACHE") or Path.home() / ".cache" / "landfuse") / "features"
