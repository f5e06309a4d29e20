"""The options of whatever runs a bundle's model; no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from landfuse.settings import Settings

Check = Literal["values", "pixel-size"]
"""A check of a scene against the model that a user may pass over."""

Method = Literal["lac", "aps", "raps"]
"""How class sets are scored, the usual way first; see `landfuse.accuracy.conformal`."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""What a network computes in; pixel maps and averages are float32 in any case."""


class PredictorOptions(Settings):
    """How a model is run, and what it does where data are missing."""

    layers: tuple[str, ...] = Field(
        default=(),
        description="also write these layers that the model returns beside classes, MAP_NAME.tif, in steps of 1/250",
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="windows per forward pass; by default about 65,000 px of views, on a GPU 524,000",
    )
    precision: Precision = Field(
        default="float32",
        description="what the network computes in: float32, tf32 (float32 whose products are rounded to 10 bits, on "
        "NVIDIA GPUs) or bfloat16",
    )
    device: str | None = Field(
        default=None, description="where to compute, e.g. cpu or cuda:1; by default a GPU if any"
    )
    mean_for: tuple[str, ...] = Field(
        default=(),
        description="modalities whose training mean stands in where they have no data; the map may be far wrong there "
        "unless the model was trained with `samples.modality_dropout`",
    )
    allow_missing: bool = Field(
        default=False,
        description="map scenes that lack a modality which the model was trained to do without "
        "(`samples.modality_dropout`)",
    )
    allow: tuple[Check, ...] = Field(
        default=(),
        description="map although the scene's `values` or `pixel-size` are not those that the model was trained on",
    )
    withheld: tuple[str, ...] = Field(default=(), description="modalities that are treated as if the scene lacked them")

    @field_validator("device", mode="before")
    @classmethod
    def _name(cls, value: Any) -> str | None:
        return None if value is None else str(value)  # a torch.device too
