"""The options of mapping: one class for the command line, Python and the recipe's `mapping:`; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from landfuse.bundles.settings import Method, PredictorOptions
from landfuse.rasters.windows import CoreWeights
from landfuse.settings import Side, byte_count, parse

MEMORY = 2 * 2**30
"""Bytes that a mapping process takes at most by default."""


class MapOptions(PredictorOptions):
    """What a map holds, and how it is computed."""

    probabilities: bool = Field(
        default=False, description="also write MAP_probabilities.tif, a band per class, in steps of 1/250"
    )
    confidence: bool = Field(
        default=False,
        description="also write MAP_confidence.tif, the margin of the best class over the second, in steps of 1/250",
    )
    entropy: bool = Field(
        default=False,
        description="also write MAP_entropy.tif, the entropy of the probabilities, 0 (sure) to 1 (all classes equally "
        "probable), in steps of 1/250",
    )
    sets: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="also write MAP_sets.tif, the classes that each pixel may have, so that the true one is among them "
        "with this probability, e.g. 0.9 (see `split.calibration`): band 1 the number of classes, then a band of 0 and "
        "1 for each class (up to 64 classes)",
    )
    sets_method: Method = Field(
        default="lac",
        description="of class sets: `lac`, all classes that are probable enough, the smallest sets; `aps`, the most "
        "probable classes until few others are left; `raps`, the same with a penalty from the third class on",
    )
    sets_by_class: bool = Field(
        default=False,
        description="let the level of class sets hold for the pixels of each class, not only for all together; classes "
        "with too few calibration blocks are in every set",
    )
    applicability: bool = Field(
        default=False,
        description="also write MAP_applicability.tif, how unlike the training pixels each pixel is, in steps of 1/100 "
        "up to 2.5: beyond 1 do not rely on the map; by all modalities together, then a band for each",
    )
    block: int | None = Field(
        default=None, ge=1, le=10**6, description="side of the blocks, px; by default what `memory` allows"
    )
    memory: int = Field(
        default=MEMORY,
        ge=0,
        lt=2**63,
        description="memory that a process may take, in bytes or e.g. 2GiB; chooses the blocks, up to 2,048 px, where "
        "`block` is not set. Large networks take more",
    )

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: str | int) -> int:
        return byte_count(value)


class MappingSettings(MapOptions):
    """How the trained model maps: the options of its maps, and the lattice that its bundle keeps."""

    stride: Side | None = Field(
        default=None,
        description="distance between windows, px; by default the core. A smaller one averages overlapping logits",
    )
    weights: CoreWeights = Field(
        default="uniform",
        description="of a window's pixels in that average: `uniform`, or `smooth`, which falls towards its border",
    )


def map_options(values: Mapping[str, Any]) -> MapOptions:
    """The options with these keywords.

    Raises:
        SettingsError: naming every keyword that is unknown or wrong.
    """
    return parse(MapOptions, values, "the options of mapping")
