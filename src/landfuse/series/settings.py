"""What a scene file says of the dates of a modality."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from landfuse.errors import SettingsError
from landfuse.series.dates import parse_period, step_of
from landfuse.settings import Settings

Word = Annotated[str, Field(coerce_numbers_to_str=True, min_length=1)]


def _words_of_period(text: str) -> str:
    try:
        parse_period(text, "it")
    except SettingsError as error:
        raise ValueError(
            f"{error.found.removeprefix('it: ')}; write days, months or years, as 2023-03/2023-10"
        ) from None
    return text


PeriodWord = Annotated[str, Field(coerce_numbers_to_str=True), pydantic.AfterValidator(_words_of_period)]


class MaskSettings(Settings):
    """Which pixels of a date are clear; the others are no data."""

    path: str | None = Field(
        default=None,
        description="The raster that says it, with `{date}`; by default the file of the modality itself. On another "
        "grid it is read by nearest neighbour.",
    )
    variable: str | None = Field(default=None, description="Of a Zarr group or a Dataset, the variable that says it.")
    band: int = Field(
        default=1, ge=1, le=65_536, description="Its band; in the modality's own file, no band of values."
    )
    clear: tuple[Annotated[int, Field(ge=-(2**31), lt=2**32)], ...] = Field(
        default=(), description="The codes that are clear, as `[4, 5, 6]` of Sentinel-2's SCL."
    )
    bits: tuple[Annotated[int, Field(ge=0, le=15)], ...] = Field(
        default=(), description="Bits, from 0, of which none is set where it is clear, as `[1, 3, 4]` of Landsat's QA."
    )
    below: float | None = Field(
        default=None, ge=-1e38, le=1e38, description="Clear are numbers below this, as of a cloud probability."
    )

    @pydantic.model_validator(mode="after")
    def _one(self) -> MaskSettings:
        if bool(self.clear) + bool(self.bits) + (self.below is not None) != 1:
            raise ValueError("a mask needs one of `clear`, `bits` and `below`")
        return self


class MaximumSettings(Settings):
    """The date of a period at which a band is largest."""

    maximum: Word = Field(description="A band, by its name or number, or a spectral index.")


class FeatureSettings(Settings):
    """What of a series becomes channels."""

    series: bool = Field(default=True, description="Each period, or date, with all its bands.")
    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(
        default=(), description="Of each band over time, as `[10, 50, 90]`."
    )
    amplitude: bool = Field(default=False, description="Largest less smallest value of each band over time.")
    harmonics: int = Field(
        default=0,
        ge=0,
        le=6,
        description="Cycles a year that are fitted to each band by least squares: its level, then cosine and sine of "
        "each. A pixel with too few dates to determine them has no data.",
    )

    @pydantic.model_validator(mode="after")
    def _some(self) -> FeatureSettings:
        if not (self.series or self.percentiles or self.amplitude or self.harmonics):
            raise ValueError("no feature is left")
        return self


class DateSettings(Settings):
    """The dates of a modality, and what is made of them."""

    days: Literal["bands"] | tuple[Word, ...] | None = Field(
        default=None,
        description="Where the dates are known from, if not from `{date}` in `path`: a list of one per file, or, of "
        "one file, one for each group of its bands; `bands` if the names of the bands hold them. With `{date}` a list "
        "says which to use.",
    )
    mask: MaskSettings | None = Field(default=None, description="Which pixels are clear at each date.")
    between: PeriodWord | None = Field(
        default=None,
        description="Dates outside are not used: `2023-03/2023-10`, `2023`, `2023-04-01/2023-09-30`. Periods begin at "
        "it; by default they begin with a year.",
    )
    every: str | tuple[PeriodWord, ...] | None = Field(
        default=None,
        description="Periods that dates are combined to: `1 month`, `16 days`, or a list, `[2023-03/2023-05, 2023-06]`."
        " By default each date is one of its own.",
    )
    composite: Literal["median", "mean", "first clear"] | MaximumSettings = Field(
        default="median",
        description="How the dates of a period become one: `median` or `mean` of each band, `first clear` date with "
        "all bands, or `{maximum: NDVI}`, the date at which a band or index is largest.",
    )
    fill: Literal["linear", "nearest", "none"] = Field(
        default="none",
        description="What gaps become, pixel by pixel: `linear` between the periods before and after, `nearest` of "
        "them (by their middle days; at the ends the only one), or `none`, which models see as the mean of training. A "
        "pixel without data at every date is no data in any case.",
    )
    features: FeatureSettings = Field(
        default=FeatureSettings(),
        description="What becomes channels; all but the series itself is taken before `fill`.",
    )
    indices: tuple[str, ...] = Field(
        default=(),
        description="Spectral indices by their names in spyndex, which `landfuse[indices]` installs: further bands of "
        "each period.",
    )
    roles: dict[str, Word] = Field(
        default={},
        description="Which band is which of an index, `{N: B08, R: B04}`, where names, wavelengths and `sensor` do "
        "not say.",
    )

    @pydantic.field_validator("every")
    @classmethod
    def _periods(cls, value: Any) -> Any:
        if isinstance(value, str):
            step_of(value)
        elif value is not None:
            found = [parse_period(one, "it") for one in value]
            if not found or any(one.last >= other.first for one, other in itertools.pairwise(found)):
                raise ValueError("list periods in order of time that do not overlap")
        return value

    @pydantic.field_validator("days")
    @classmethod
    def _some_days(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("name one date at least, or leave it out")
        return value
