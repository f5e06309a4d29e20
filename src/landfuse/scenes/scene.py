"""A scene: rasters of several modalities on one grid, and its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SceneError
from landfuse.legend import Legend
from landfuse.markup import table
from landfuse.rasters.grid import Grid
from landfuse.rasters.raster import Raster
from landfuse.rasters.windows import Window, mirrored


@dataclass(frozen=True)
class ModalityInfo:
    """What a model has to know of a modality; a bundle keeps it, and a scene to be mapped is checked against it.

    Args:
        bands: number of bands.
        dtype: data type in the file, e.g. `int16`.
        units: as the scene file names them.
        zoom: how many times finer than the scene's grid.
        metres: pixel size in CRS units; 0 where there is no CRS.
    """

    bands: int
    dtype: str
    units: str
    zoom: int
    metres: float = 0.0


@dataclass(frozen=True)
class SceneModality:
    """One modality of a scene.

    Args:
        raster: aligned to the scene's grid, or to one `zoom` times finer.
        zoom: how many times finer than the scene's grid.
        units: as the scene file names them.
    """

    raster: Raster
    zoom: int = 1
    units: str = ""

    @property
    def info(self) -> ModalityInfo:
        """What a model has to know of it."""
        grid = self.raster.grid
        size = grid.pixel_size[0] if grid.crs else 0.0
        return ModalityInfo(self.raster.bands, self.raster.dtype, self.units, self.zoom, size)


@dataclass(frozen=True)
class Scene:
    """Co-registered rasters of several modalities, with labels if there are any.

    Args:
        name: the tile's name, or the scene's where it has one tile.
        grid: the reference grid.
        modalities: by name, in the order of the scene file.
        legend: the classes.
        read_labels: gives the whole scene's codes as classes, (H, W) uint8; None where there are no labels.
    """

    name: str
    grid: Grid
    modalities: Mapping[str, SceneModality]
    legend: Legend
    read_labels: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False)

    def read(self, modality: str, window: Window) -> NDArray[np.float32]:
        """Reads one modality in a window of any size at any place; beyond the scene's edges it is mirrored.

        Args:
            modality: its name.
            window: in pixels of the scene's grid.

        Returns:
            (C, height * zoom, width * zoom) float32 in the modality's units, NaN where there is no data.
        """
        part = self.modalities[modality]
        fine = window.scaled(part.zoom)
        rows = mirrored(np.arange(fine.row, fine.row + fine.height), self.grid.height * part.zoom)
        cols = mirrored(np.arange(fine.col, fine.col + fine.width), self.grid.width * part.zoom)
        inside = Window(int(rows.min()), int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
        values = part.raster.read(inside)
        if (inside.row, inside.height) != (fine.row, fine.height):
            values = values.take(rows - inside.row, axis=1)
        if (inside.col, inside.width) != (fine.col, fine.width):
            values = values.take(cols - inside.col, axis=2)
        return np.ascontiguousarray(values)

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """The whole scene's labels as classes: (H, W) uint8, `landfuse.UNLABELLED` where there is none.

        Raises:
            SceneError: if the scene has no labels.
        """
        if self.read_labels is None:
            raise SceneError(
                f"the scene `{self.name}` has no labels", "`labels:` in the scene file", "add them, or use `predict`"
            )
        return self.read_labels()

    def with_modalities(self, more: Mapping[str, SceneModality]) -> Scene:
        """The scene with further modalities."""
        return replace(self, modalities={**self.modalities, **more})

    def _repr_html_(self) -> str:
        rows = [
            (name, part.info.bands, part.info.dtype, part.zoom, part.units, part.raster.path)
            for name, part in self.modalities.items()
        ]
        labels = "" if self.read_labels is None else ", with labels"
        head = ("modality", "bands", "type", "zoom", "units", "file")
        return table(f"Scene {self.name}: {self.grid}{labels}", head, rows)

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        state.pop("labels", None)  # held once, read again elsewhere
        return state


def validity(values: NDArray[np.float32], zoom: int) -> NDArray[np.bool_]:
    """Where a modality has data: (H, W), true where every band of every fine pixel has a value.

    Args:
        values: (C, H * zoom, W * zoom), NaN where there is no data.
        zoom: of the modality.
    """
    valid: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=0))
    if zoom == 1:
        return valid
    height, width = valid.shape[0] // zoom, valid.shape[1] // zoom
    return np.asarray(valid.reshape(height, zoom, width, zoom).all(axis=(1, 3)))
