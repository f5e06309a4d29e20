"""From the numbers in a file to physical values: nodata, scale, offset, decibels. One rule for every reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.legend import UNLABELLED
from landfuse.rasters.windows import Window, blocks

_BEYOND = 1e20
"""Beyond any physical range; the nodata of some programs is, which they do not always declare (-3.4e38)."""


@dataclass(frozen=True)
class Decoding:
    """How the numbers of a raster become values.

    Args:
        nodata: the number that means "no data", compared before scaling; for all bands, or one (or None) for each. NaN
            is allowed. NaN, infinity and numbers beyond any physical range (1e20) are no data in any case.
        scale: value = number * scale + offset; for all bands, or one for each. None for what the file says, else 1.
        offset: see `scale`; None for what the file says, else 0.
        decibel: turn linear power into 10 * log10(value) dB at the end (SAR intensity); power <= 0 is no data.
        signed_square: divide by it, then square and keep the sign (embeddings stored as the root of their values).
    """

    nodata: float | tuple[float | None, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    decibel: bool = False
    signed_square: float | None = None

    def __call__(self, numbers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Decodes numbers of any type, (C, H, W), into float32 values, NaN where there is no data."""
        with np.errstate(over="ignore"):  # a nodata of -1.8e308 in float64 files
            values = numbers.astype(np.float32)
        if self.scale not in (None, 1.0):
            values *= _per_band(self.scale)
        if self.offset not in (None, 0.0):
            values += _per_band(self.offset)
        if self.signed_square is not None:
            values /= np.float32(self.signed_square)
            values *= np.abs(values)
        if self.decibel:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, 10 * np.log10(values), np.float32(np.nan)).astype(np.float32)
        values[self.missing(numbers) | no_values(numbers)] = np.nan
        return values

    def missing(self, numbers: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Where the bands of (C, H, W) hold their nodata; infinity, too, where that is NaN."""
        found = np.zeros(numbers.shape, bool)
        each = self.nodata if isinstance(self.nodata, tuple) else (self.nodata,) * len(numbers)
        for band, nodata, there in zip(numbers, each, found, strict=True):
            if nodata is None:
                continue
            if np.isnan(nodata):
                there[:] = ~np.isfinite(band)
            elif band.dtype.kind == "f":
                # A nodata of -3.4e38 in the header and in float32 pixels differ in their last digits.
                there[:] = np.isclose(band.astype(np.float64), nodata, rtol=1e-6, atol=0)
            else:
                there[:] = band == nodata
        return found

    def codes(self, numbers: NDArray[np.generic], outside: NDArray[np.bool_] | None = None) -> NDArray[np.generic]:
        """One band, (1, H, W), as the codes of labels: (H, W); `UNLABELLED` where there is no data."""
        codes, missing = numbers[0], self.missing(numbers)[0]
        if outside is not None:
            missing |= outside
        if missing.any():
            wide = codes if np.can_cast(np.uint8, codes.dtype) else codes.astype(np.int64)  # int8 cannot hold 255
            codes = np.where(missing, UNLABELLED, wide)
        return codes

    def undeclared(
        self, numbers: NDArray[np.generic], outside: NDArray[np.bool_] | None = None
    ) -> NDArray[np.floating]:
        """A number of each pixel that has one which is no value though `nodata` does not declare it: (P,).

        Args:
            numbers: as they are in the file, (C, H, W).
            outside: (H, W), true where a mask says that there are none.
        """
        wrong = no_values(numbers) & ~self.missing(numbers)
        pixels = wrong.any(axis=0) if outside is None else wrong.any(axis=0) & ~outside
        which = wrong[:, pixels].argmax(axis=0)
        return np.take_along_axis(numbers[:, pixels], which[None], axis=0)[0].astype(np.float64)


def no_values(numbers: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where numbers are NaN, infinite or beyond any physical range."""
    if numbers.dtype.kind != "f":
        return np.zeros(numbers.shape, bool)
    return ~(np.abs(numbers) < _BEYOND)


def _per_band(numbers: float | tuple[float, ...] | None) -> NDArray[np.float32]:
    """Numbers that broadcast over (C, H, W): one for all bands, or one for each."""
    return np.asarray(numbers, dtype=np.float32).reshape((-1, 1, 1) if isinstance(numbers, tuple) else ())


_BLOCK = 1024
"""Side of the blocks that are read to find the ends, px."""


@dataclass(frozen=True)
class StretchedRaster:
    """Brings each band of a raster to 0 at its least value and 1 at its largest; a `Raster`.

    The ends are those of the whole raster, so that a pixel's value does not depend on the window. A band of one value
    becomes 0.
    """

    raster: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "raster":  # which copying and unpickling look for first
            raise AttributeError(name)
        return getattr(self.raster, name)

    def with_bands(self, places: Sequence[int]) -> StretchedRaster:
        """Some of the bands in use, in this order; places count from 0."""
        return StretchedRaster(self.raster.with_bands(places))

    def without(self, periods: Sequence[str]) -> StretchedRaster:
        """A series without some of its periods; see `SeriesRaster`."""
        return StretchedRaster(self.raster.without(periods))

    @cached_property
    def ends(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least value of each band, (C, 1, 1), and what it is divided by."""
        low = np.full((self.raster.bands, 1, 1), np.inf, np.float32)
        high, grid = -low, self.raster.grid
        for block in blocks(grid.height, grid.width, _BLOCK):
            values = self.raster.read(block)
            low = np.fmin(low, np.fmin.reduce(values, axis=(1, 2), keepdims=True))
            high = np.fmax(high, np.fmax.reduce(values, axis=(1, 2), keepdims=True))
        return low, np.where(high > low, high - low, np.float32(1))

    def __getstate__(self) -> dict[str, Any]:
        """With the ends, so that no worker reads the whole raster to find them again."""
        return {**self.__dict__, "ends": self.ends}

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        return self._stretched(self.raster.read(window))

    def _decoding(self, numbers: NDArray[np.generic]) -> NDArray[np.float32]:
        """What numbers in the file become: a nodata that is not declared is looked for among the ends."""
        decode = getattr(self.raster, "_decoding", getattr(self.raster, "decoding", Decoding()))
        return self._stretched(decode(numbers))

    def _stretched(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        low, span = self.ends
        result: NDArray[np.float32] = (values - low) / span
        return result
