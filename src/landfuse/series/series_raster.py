"""The rasters of one modality at many dates as one raster.

Its bands are those of the first period, of the second, and so on (`2023-04 B04`, `2023-04 B08`, `2023-05 B04`, ...),
then the features. Without `every` each date is a period of one day: there is one code path for regular series and for
dates as they are, and who sees T x C channels need not know of time. Who does finds the periods in `steps`, and the
bands of each in `per_step` (see `ModalityInfo`). All tiles of a scene have the same periods, those of the dates of all
of them; a tile that was not seen at one has a gap there, as a pixel below a cloud. Nothing is read before a window is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SceneError, few
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.series import arithmetic
from landfuse.series.dates import Period
from landfuse.series.settings import DateSettings, MaskSettings, MaximumSettings

HELD = 2**26
"""Values that are held at once beside those that are returned: windows that need more are read by strips of rows."""

_STRIP = 2**20
"""Values of a date that are combined at once, few enough for memory that is used again, and not fetched each time."""

_TILE = 512
"""Rows of the tiles of most files; those of a period's dates stay in GDAL's cache from strip to strip, or strips are
large and end where the tiles do, lest these are decoded twice."""

_CACHED = 2**20
"""Values of a series whose gaps are filled, and whose features are computed, at once."""


@dataclass(frozen=True)
class ClearMask:
    """Where a date is clear.

    Args:
        raster: a band of the numbers that say it, as they are stored.
        how: which of them are clear.
    """

    raster: Any
    how: MaskSettings

    def read(self, window: Window) -> NDArray[np.bool_]:
        """(height, width); false where the mask has no data."""
        values = self.raster.read(window)[0]
        if self.how.clear:
            return np.logical_or.reduce([values == code for code in self.how.clear])
        known = np.isfinite(values)
        if self.how.below is not None:
            return np.asarray(values < self.how.below)
        numbers = np.where(known, values, 0).astype(np.int64)
        return np.asarray(known & (numbers & sum(1 << bit for bit in self.how.bits) == 0))


@dataclass(frozen=True)
class DatedRaster:
    """One date.

    Args:
        mask: where it is clear; None for everywhere.
    """

    day: date
    raster: Any
    mask: ClearMask | None = None

    @property
    def uncached(self) -> bool:
        """Whether it is an array, of which nothing decoded is kept, as GDAL keeps tiles of files."""
        return isinstance(getattr(self.raster, "parts", (self.raster,))[0], ArrayRaster)

    def placed(self, place: Callable[[Any], Any]) -> DatedRaster:
        """The same on another grid."""
        mask = self.mask and replace(self.mask, raster=place(self.mask.raster))
        return replace(self, raster=place(self.raster), mask=mask)

    def read(self, window: Window) -> arithmetic.Values:
        """(C, height, width), NaN where there is no data or it is not clear."""
        if self.mask is None:
            return np.asarray(self.raster.read(window))
        clear = self.mask.read(window)
        if not clear.any():
            return np.full((self.raster.bands, *clear.shape), np.nan, np.float32)
        values = self.raster.read(window)
        values *= np.where(clear, np.float32(1), np.float32(np.nan))
        return np.asarray(values)


@dataclass(frozen=True)
class SeriesRaster:
    """Some dates as one raster; a `Raster`. Its values do not depend on the window that they are read with.

    Args:
        dates: in order of time, all with the same bands in the same order.
        periods: what they are brought to, in order of time.
        bands_of_date: names of the bands of a date.
        how: composites, gaps, features and indices.
        inputs: index -> what it is computed from, see `inputs_of`.
        places: the bands in use, from 0, in this order; None for all.
        withheld: periods, by their words, whose dates are treated as if there were none.
    """

    dates: tuple[DatedRaster, ...]
    periods: tuple[Period, ...]
    bands_of_date: tuple[str, ...]
    how: DateSettings = DateSettings()
    inputs: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    places: tuple[int, ...] | None = None
    withheld: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Period and band, then feature and band."""
        every = self._every_name
        return tuple(every[place] for place in self._chosen)

    @cached_property
    def _every_name(self) -> list[str]:
        wanted, bands = self.how.features, [*self.bands_of_date, *self.how.indices]
        before = [*self.steps] if wanted.series else []
        before += [f"p{percent:g}" for percent in wanted.percentiles] + ["amplitude"] * wanted.amplitude
        if wanted.harmonics:
            cycles = range(1, wanted.harmonics + 1)
            before += ["level", *(f"{wave}{cycle}" for cycle in cycles for wave in ("cos", "sin"))]
        return [f"{one} {band}" for one in before for band in bands]

    @property
    def _chosen(self) -> Sequence[int]:
        return range(len(self._every_name)) if self.places is None else self.places

    @property
    def steps(self) -> tuple[str, ...]:
        """The periods, as words that `parse_period` reads."""
        return tuple(map(str, self.periods))

    @property
    def per_step(self) -> int:
        """Bands of each period, which come first, period by period; 0 where the bands are features alone."""
        if not self.how.features.series:
            return 0
        each = len(self.bands_of_date) + len(self.how.indices)
        inside = [place for place in self._chosen if place < each * len(self.periods)]
        count = len(inside) // len(self.periods)
        wanted = [step * each + place for step in range(len(self.periods)) for place in inside[:count]]
        return count if [*self._chosen][: len(inside)] == inside == wanted else 0

    @property
    def bands(self) -> int:
        """Number of bands in use."""
        return len(self._chosen)

    def with_bands(self, places: Sequence[int]) -> SeriesRaster:
        """Some of the bands in use, in this order; places count from 0."""
        return replace(self, places=tuple(self._chosen[place] for place in places))

    def without(self, periods: Sequence[str]) -> SeriesRaster:
        """The same, as if there were no date in some periods."""
        return replace(self, withheld=frozenset(periods))

    @cached_property
    def own_grid(self) -> Grid:
        """The grid of most dates; the others are brought to it."""
        grids: list[Grid] = [getattr(one.raster, "own_grid", one.raster.grid) for one in self.dates]
        return max(grids, key=grids.count)

    @property
    def grid(self) -> Grid:
        """The grid that it is read on."""
        return self.dates[0].raster.grid

    @property
    def unfilled(self) -> SeriesRaster:
        """The same without what fills gaps."""
        return replace(self, how=self.how.model_copy(update={"fill": "none"}))

    def placed(self, place: Callable[[Any], Any]) -> SeriesRaster:
        """The same dates on another grid."""
        return replace(self, dates=tuple(one.placed(place) for one in self.dates))

    @property
    def dtype(self) -> str:
        """The data types in the files."""
        return ", ".join(dict.fromkeys(word for one in self.dates for word in one.raster.dtype.split(", ")))

    @property
    def path(self) -> str:
        """The first file and the last, for messages."""
        return " ... ".join(dict.fromkeys(one.raster.path for one in (self.dates[0], self.dates[-1])))

    @property
    def warped(self) -> bool:
        """Whether a date's grid is not the one that it is read on."""
        return any(getattr(one.raster, "warped", False) for one in self.dates)

    @property
    def notes(self) -> list[str]:
        """What is to be known of the dates: those of another grid, and what their files say."""
        odd = [str(one.day) for one in self.dates if getattr(one.raster, "own_grid", self.own_grid) != self.own_grid]
        found = [f"dates on another grid than most, to which they are brought: {few(odd, 12)}"] if odd else []
        notes = [f"{one.day}: {note}" for one in self.dates for note in getattr(one.raster, "notes", ())]
        return found + notes[:12]

    def files(self) -> list[Path]:
        """All files that its pixels come from."""
        rasters = {raster.path: raster for raster in self._rasters}  # many dates may lie in one file
        return sorted({file for raster in rasters.values() if hasattr(raster, "files") for file in raster.files()})

    @property
    def _rasters(self) -> list[Any]:
        return [raster for one in self.dates for raster in (one.raster, one.mask and one.mask.raster) if raster]

    @property
    def digest(self) -> str:
        """Of the dates that are arrays, and of what is made of them."""
        words = [self.how, self.dates[0].mask and self.dates[0].mask.how, self.places, *map(str, self.periods)]
        words += [str(one.day) for one in self.dates]
        return " ".join(map(str, [*words, *(getattr(raster, "digest", "") for raster in self._rasters)]))

    def undeclared(self, window: Window) -> NDArray[np.floating]:
        """See `Decoding.undeclared`."""
        return np.concatenate([one.raster.undeclared(window) for one in self.dates])

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        wanted, each = self.how.features, len(self.bands_of_date) + len(self.how.indices)
        rows = window.height if wanted.series else max(1, HELD // (each * len(self.periods) * window.width))
        result = np.empty((len(self._every_name), window.height, window.width), np.float32)
        for part in _strips(window, rows):
            out = result[:, part.row - window.row :][:, : part.height]
            shape = (len(self.periods), each, part.height, part.width)
            series = out[: shape[0] * each].reshape(shape) if wanted.series else np.empty(shape, np.float32)
            self._combine(series, part)
            few_rows = max(1, _CACHED // (shape[0] * each * window.width))
            for row in range(0, part.height, few_rows):
                some = slice(row, row + few_rows)
                self._finish(series[:, :, some], out[len(out) - self._features * each :, some])
        return result if self.places is None else result[list(self.places)]

    @property
    def _features(self) -> int:
        wanted = self.how.features
        return len(wanted.percentiles) + wanted.amplitude + (1 + 2 * wanted.harmonics if wanted.harmonics else 0)

    def _combine(self, series: arithmetic.Values, window: Window) -> None:
        """Fills (T, C, height, width) with the composites of a window."""
        count, combine = len(self.bands_of_date), self._composite
        width = count * window.width
        for period, values in zip(self.periods, series, strict=True):
            dates = [one for one in self.dates if one.day in period and str(period) not in self.withheld]
            rows = _STRIP // width
            if len(dates) * width * _TILE > HELD // 2 or any(one.uncached for one in dates):
                rows = HELD // (width * (len(dates) if self.how.composite == "median" else 4))
                rows -= rows % _TILE if rows > _TILE else 0
            single = len(dates) == 1 and self.how.composite in ("median", "mean")  # which combine nothing then
            for part in _strips(window, max(1, rows)):
                found: Any = np.nan
                if dates:
                    found = dates[0].read(part) if single else combine(one.read(part) for one in dates)
                values[:count, part.row - window.row :][:, : part.height] = found
        for place, index in enumerate(self.how.indices, start=count):
            series[:, place] = self._index(index, series[:, :count], 1)

    @property
    def _composite(self) -> Callable[[Iterator[arithmetic.Values]], arithmetic.Values]:
        how = self.how.composite
        if isinstance(how, MaximumSettings):
            if how.maximum in self.inputs:
                return partial(arithmetic.best, score=lambda values: self._index(how.maximum, values, 0))
            place = place_of(how.maximum, self.bands_of_date)
            return partial(arithmetic.best, score=lambda values: values[place])
        return {"median": arithmetic.median, "mean": arithmetic.mean, "first clear": arithmetic.first}[how]

    def _index(self, index: str, values: arithmetic.Values, axis: int) -> arithmetic.Values:
        from landfuse.series.indices import index_of  # an optional dependency

        return index_of(index, self.inputs[index], values, axis)

    def _finish(self, series: arithmetic.Values, features: arithmetic.Values) -> None:
        """Computes the features of a series, (F * C, height, width), and fills its gaps."""
        wanted, found = self.how.features, list[arithmetic.Values]()
        if wanted.percentiles:
            found += arithmetic.quantiles(list(series), [percent / 100 for percent in wanted.percentiles])
        if wanted.amplitude:
            found.append(arithmetic.amplitude(series))
        if wanted.harmonics:
            found.extend(arithmetic.harmonics(series, [one.season for one in self.periods], wanted.harmonics))
        if found:
            features[:] = np.concatenate(found)
        if wanted.series and self.how.fill != "none":
            arithmetic.fill(series, [period.middle for period in self.periods], self.how.fill == "nearest")


def _strips(window: Window, rows: int) -> Iterator[Window]:
    """Cuts a window of more than some rows where those of the raster are multiples of their number."""
    if window.height <= rows:
        yield window
        return
    for start in range(window.row - window.row % rows, window.row + window.height, rows):
        yield Window(start, window.col, rows, window.width).intersection(window)


def series_of(
    dates: Sequence[DatedRaster],
    periods: Sequence[Period],
    names: Sequence[str],
    how: DateSettings,
    wavelengths: Sequence[float] = (),
    sensor: str = "",
) -> SeriesRaster:
    """Some dates, in order of time, as one raster.

    Args:
        dates: at least one of them in a period; the others are left out.
        names: of the bands of a date.
        wavelengths: of these bands, nm; for spectral indices, as is `sensor`.
        sensor: in words.

    Raises:
        LandfuseError: if a spectral index cannot be computed from the bands.
    """
    maximum = how.composite.maximum if isinstance(how.composite, MaximumSettings) else ""
    computed = [*how.indices, *([maximum] if maximum and place_of(maximum, names) is None else [])]
    inputs = {}
    if computed:
        from landfuse.series.indices import inputs_of  # an optional dependency

        inputs = {one: inputs_of(one, names, wavelengths, sensor, how.roles) for one in computed}
    return SeriesRaster(tuple(dates), tuple(periods), tuple(names), how, inputs)


def days_in(periods: Sequence[Period], days: Collection[date], where: str) -> list[date]:
    """Those of some days that lie in a period; a SceneError if none does."""
    kept = [day for day in days if any(day in period for period in periods)]
    if not kept:
        raise SceneError(
            f"{where}: none of its {len(days)} dates, {few([str(day) for day in days])}, lies in a period",
            few([str(period) for period in periods], 12),
            "correct `between` or `every`",
        )
    return kept


def place_of(band: str, names: Sequence[str]) -> int | None:
    """The place of a band that a setting names, or numbers from 1, from 0; None if there is none."""
    if band in names:
        return names.index(band)
    return int(band) - 1 if band.isdecimal() and 1 <= int(band) <= len(names) else None
