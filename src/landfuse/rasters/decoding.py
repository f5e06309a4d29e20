"""From the numbers in a file to physical values: nodata, scale, offset, decibels. One rule for every reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoding:
    """How the numbers of a raster become values.

    Args:
        nodata: the number that means "no data", compared before scaling; for all bands, or one (or None) for each. NaN
            is allowed. NaN and infinity are no data in any case.
        scale: value = number * scale + offset; for all bands, or one for each. None for what the file says, else 1.
        offset: see `scale`; None for what the file says, else 0.
        decibel: turn linear power into 10 * log10(value) dB at the end (SAR intensity); power <= 0 is no data.
    """

    nodata: float | tuple[float | None, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    decibel: bool = False

    def __call__(self, numbers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Decodes numbers of any type, (C, H, W), into float32 values, NaN where there is no data."""
        with np.errstate(over="ignore"):  # a nodata of -1.8e308 in float64 files
            values = numbers.astype(np.float32)
        if self.scale not in (None, 1.0):
            values *= _per_band(self.scale)
        if self.offset not in (None, 0.0):
            values += _per_band(self.offset)
        if self.decibel:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, 10 * np.log10(values), np.float32(np.nan)).astype(np.float32)
        values[self.missing(numbers)] = np.nan
        if numbers.dtype.kind == "f":
            values[~np.isfinite(values)] = np.nan
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

    def undeclared_nan(self, numbers: NDArray[np.generic], outside: NDArray[np.bool_] | None = None) -> int:
        """How many pixels of (C, H, W) hold a NaN or infinity that `nodata` does not declare.

        Args:
            numbers: as they are in the file.
            outside: (H, W), true where a mask says that there are none.
        """
        if numbers.dtype.kind != "f":
            return 0
        found = (~np.isfinite(numbers) & ~self.missing(numbers)).any(axis=0)
        return int((found if outside is None else found & ~outside).sum())


def _per_band(numbers: float | tuple[float, ...] | None) -> NDArray[np.float32]:
    """Numbers that broadcast over (C, H, W): one for all bands, or one for each."""
    return np.asarray(numbers, dtype=np.float32).reshape((-1, 1, 1) if isinstance(numbers, tuple) else ())
