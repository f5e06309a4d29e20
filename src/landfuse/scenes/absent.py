"""A modality that a scene does not have, as a raster without any data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from landfuse.scenes.grid import Grid, Window
from landfuse.scenes.scene import Scene, SceneModality


@dataclass(frozen=True)
class AbsentRaster:
    """No data anywhere; see `Raster`.

    Args:
        grid: that it would lie on.
        bands: that it would have.
        dtype: that it would have in a file.
    """

    grid: Grid
    bands: int
    dtype: str

    @property
    def path(self) -> str:
        """For messages."""
        return "(absent)"

    def read(self, window: Window) -> NDArray[np.float32]:
        """(C, height, width) of NaN."""
        return np.full((self.bands, window.height, window.width), np.nan, np.float32)

    def undeclared_nan(self, window: Window) -> int:
        """None: that there are no data is declared."""
        return 0


def without_data(scene: Scene, modality: str, *, bands: int, dtype: str, zoom: int, units: str) -> Scene:
    """The scene with a modality that has no data anywhere, instead of its own or beside what it has."""
    part = SceneModality(AbsentRaster(scene.grid.zoomed(zoom), bands, dtype), zoom, units)
    return replace(scene, modalities={**scene.modalities, modality: part})
