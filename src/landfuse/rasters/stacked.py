"""Several rasters as one: a modality whose bands are files, or variables of a cube, of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window


@dataclass(frozen=True)
class StackedRaster:
    """The bands of some files one after the other; a `Raster`. Each keeps its own nodata, scale and type.

    Args:
        places: the bands in use, from 0, in this order; None for all.
    """

    parts: tuple[GdalRaster | ArrayRaster, ...]
    places: tuple[int, ...] | None = None

    @cached_property
    def own_grid(self) -> Grid:
        """The grid of the file with the smallest pixels; the others are brought to it."""
        grids = [part.own_grid for part in self.parts]
        return min(grids, key=lambda grid: grid.pixel_size[0] * grid.pixel_size[1])

    @property
    def grid(self) -> Grid:
        """The grid that it is read on."""
        return self.parts[0].grid

    @property
    def bands(self) -> int:
        """Number of bands in use."""
        return len(self._chosen)

    @property
    def dtype(self) -> str:
        """The data types in the files."""
        return ", ".join(dict.fromkeys(part.dtype for part in self.parts))

    @property
    def path(self) -> str:
        """The first file and the last, for messages."""
        return f"{self.parts[0].path} ... {self.parts[-1].path}"

    @property
    def warped(self) -> bool:
        """Whether a file's grid is not the one that it is read on."""
        return any(part.warped for part in self.parts)

    @property
    def notes(self) -> list[str]:
        """Those of the files."""
        return [f"{part.path}: {note}" for part in self.parts for note in part.notes]

    @property
    def names(self) -> tuple[str, ...]:
        """Those in the files; else, of files of one band, what distinguishes the files' names."""
        every = [name for part in self.parts for name in part.names]
        if len(every) < self._count and self._count == len(self.parts):
            every = _differing([Path(part.path).stem for part in self.parts])
        return tuple(every[place] for place in self._chosen) if len(every) == self._count else ()

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Of the bands, nm; none where one is not known."""
        every = [one for part in self.parts for one in part.wavelengths]
        return tuple(every[place] for place in self._chosen) if len(every) == self._count else ()

    @property
    def _count(self) -> int:
        return sum(part.bands for part in self.parts)

    @property
    def _chosen(self) -> Sequence[int]:
        return range(self._count) if self.places is None else self.places

    def with_bands(self, places: Sequence[int]) -> StackedRaster:
        """Some of the bands in use, in this order; places count from 0."""
        return replace(self, places=tuple(self._chosen[place] for place in places))

    def placed(self, place: Callable[[Any], Any]) -> StackedRaster:
        """The same bands of files on another grid."""
        return replace(self, parts=tuple(place(part) for part in self.parts))

    def files(self) -> list[Path]:
        """All files that its pixels come from."""
        return sorted({file for part in self.parts for file in part.files()})

    @property
    def digest(self) -> str:
        """That of the parts which are arrays, and the bands in use."""
        return " ".join([str(self.places), *(getattr(part, "digest", "") for part in self.parts)])

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        every = np.concatenate([part.read(window) for part in self.parts])
        return every if self.places is None else every[list(self.places)]

    def undeclared(self, window: Window) -> NDArray[np.floating]:
        """See `Decoding.undeclared`."""
        return np.concatenate([part.undeclared(window) for part in self.parts])


def _differing(names: Sequence[str]) -> list[str]:
    """What distinguishes names: `T32_B02_10m` and `T32_B03_10m` differ by `B02` and `B03`."""
    words = [re.split(r"[_\-. ]+", name) for name in names]
    if len(set(map(len, words))) > 1:
        return list(names)
    columns = [column for column in zip(*words, strict=True) if len(set(column)) > 1]
    return ["_".join(parts) for parts in zip(*columns, strict=True)]
