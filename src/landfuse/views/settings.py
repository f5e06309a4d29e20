"""Settings of pixel maps; no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from landfuse.settings import Settings


class PixelMapSettings(Settings):
    """How the bands of one modality become channels."""

    kind: Literal["standardise", "given", "pca", "none"] = Field(
        default="standardise",
        description="`standardise`: mean 0 and standard deviation 1 per band; `given`: the same by published "
        "statistics; `pca`: principal components; `none`: the values themselves",
    )
    mean: tuple[Annotated[float, Field(ge=-1e30, le=1e30)], ...] = Field(
        default=(), description="of each band, for `given`; in the units of the modality, after its scale"
    )
    std: tuple[Annotated[float, Field(gt=0, le=1e30)], ...] = Field(
        default=(), description="standard deviation of each band, for `given`"
    )
    components: int = Field(default=30, ge=1, le=65_536, description="channels that `pca` keeps")
    whiten: bool = Field(
        default=True,
        description="give each principal component a standard deviation of 1; otherwise only the first has it",
    )
    clip: float | None = Field(
        default=None, gt=0, le=1e9, description="limit of values in standard deviations, either way; null for no limit"
    )

    @model_validator(mode="after")
    def _statistics_fit(self) -> PixelMapSettings:
        if (self.kind == "given") != bool(self.mean and self.std):
            raise ValueError("`kind: given` needs `mean` and `std`, a number per band each, and no other kind has them")
        if len(self.mean) != len(self.std):
            raise ValueError("`mean` and `std` must have the same length")
        return self
