"""What a raster is, wherever its pixels come from."""

from __future__ import annotations

import hashlib
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window


class Raster(Protocol):
    """Bands on a grid, wherever they come from. Cheap to make, safe to read from several threads, picklable."""

    @property
    def grid(self) -> Grid:
        """Its own grid, `zoom` times finer than the scene's."""

    @property
    def bands(self) -> int:
        """Number of bands."""

    @property
    def dtype(self) -> str:
        """The data type in the file, e.g. `int16`."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""

    def read(self, window: Window) -> NDArray[np.float32]:
        """Reads a window inside the grid: (C, height, width), scaled to its units, NaN where there is no data."""


def plain_name(band: str) -> str:
    """A band's name without capitals, signs and leading zeros: `B02` is `b2`."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]", "", band.casefold()))


_SMALL = 2**16
"""Bytes of a file up to which its content is looked at: headers, VRTs, notes beside a raster."""


def files_of(raster: Raster) -> dict[str, tuple[str, str]]:
    """The files on this machine that the pixels of a raster come from, and two states of each.

    Returns:
        path -> size, time and the digest of a small file; and what else changes where those were put back.
    """
    found = {}
    for file in raster.files() if hasattr(raster, "files") else [Path(raster.path)]:
        with suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                small = hashlib.sha256(file.read_bytes()).hexdigest() if status.st_size <= _SMALL else ""
                state = f"{status.st_size} {status.st_mtime_ns} {small}".rstrip()
                found[str(file)] = state, f"{status.st_ctime_ns} {status.st_ino}"
    return found


def state_of(raster: Raster) -> str:
    """What changes with the pixels of a raster: the states of its files, or the digest of an array; else nothing."""
    return " ".join(state for state, _ in files_of(raster).values()) or str(getattr(raster, "digest", ""))
