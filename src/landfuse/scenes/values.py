"""From the numbers in a file to physical values: nodata, scale, offset, decibels. One rule for every reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoding:
    """How the numbers of a raster become values.

    Args:
        nodata: the number that means "no data", compared before scaling; NaN is allowed. NaN and infinity are
            no data in any case.
        scale: value = number * scale + offset.
        offset: see `scale`.
        decibel: turn linear power into 10 * log10(value) dB at the end (SAR intensity); power <= 0 is no data.
    """

    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    decibel: bool = False

    def __call__(self, numbers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Decodes numbers of any type and shape into float32 values, NaN where there is no data."""
        values = numbers.astype(np.float32)
        missing: NDArray[np.bool_] | None = None
        if self.nodata is not None and not np.isnan(self.nodata):
            # A nodata of -3.4e38 in the header and in float32 pixels differ in their last digits.
            missing = (
                np.isclose(numbers.astype(np.float64), self.nodata, rtol=1e-6, atol=0)
                if numbers.dtype.kind == "f"
                else numbers == self.nodata
            )
        if self.scale != 1.0:
            values *= np.float32(self.scale)
        if self.offset != 0.0:
            values += np.float32(self.offset)
        if self.decibel:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, 10 * np.log10(values), np.float32(np.nan)).astype(np.float32)
        if missing is not None:
            values[missing] = np.nan
        if numbers.dtype.kind == "f":
            values[~np.isfinite(values)] = np.nan
        return values

    def undeclared_nan(self, numbers: NDArray[np.generic]) -> int:
        """How many pixels of (C, H, W) hold a NaN or infinity though `nodata` does not announce it."""
        if numbers.dtype.kind != "f" or (self.nodata is not None and np.isnan(self.nodata)):
            return 0
        return int((~np.isfinite(numbers)).any(axis=0).sum())
