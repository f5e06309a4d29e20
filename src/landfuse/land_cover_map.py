"""A map that was made, opened again: its classes, their areas, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landfuse import class_map
from landfuse.errors import GridError
from landfuse.legend import UNLABELLED, LandClass, Legend, default_colour
from landfuse.scenes.grid import Grid, blocks
from landfuse.scenes.scene import Scene

if TYPE_CHECKING:
    from landfuse.pictures import Picture

_BLOCK = 2048
"""Side of the blocks that are read, px."""


@dataclass(frozen=True)
class ClassArea:
    """How much of a map a class takes, as counted; for areas that allow for errors see `landfuse.accuracy`.

    Args:
        pixels: number of pixels.
        share: of the pixels that have a class, 0..1.
        hectares: None where the size of a pixel is not known in metres.
    """

    pixels: int
    share: float
    hectares: float | None


@dataclass(frozen=True)
class LandCoverMap:
    """A map and what its codes mean; made by `open_map`.

    Args:
        path: the file.
        grid: where it lies.
        legend: the classes.
    """

    path: Path
    grid: Grid
    legend: Legend

    @cached_property
    def classes(self) -> NDArray[np.uint8]:
        """The whole map: (H, W) uint8, 0..K-1, `landfuse.UNLABELLED` where there is none.

        Raises:
            SceneError: if it holds a code that the legend lacks.
        """
        raster = class_map.open_map(self.path)
        result = np.full((self.grid.height, self.grid.width), UNLABELLED, np.uint8)
        for window in blocks(self.grid.height, self.grid.width, _BLOCK):
            codes = class_map.read_map_codes(raster, window)
            result[window.within(self.grid.window)] = self.legend.to_classes(codes, where=f"the map {self.path}")
        return result

    def areas(self) -> dict[str, ClassArea]:
        """The area of each class by its name, in the legend's order."""
        counts = np.bincount(self.classes.reshape(-1), minlength=UNLABELLED + 1)[: len(self.legend)]
        total, pixel = max(1, int(counts.sum())), class_map.pixel_area(self.grid)
        return {
            name: ClassArea(int(count), float(count / total), None if pixel is None else float(count * pixel / 10_000))
            for name, count in zip(self.legend.names, counts, strict=True)
        }

    def plot(self) -> Picture:
        """The map over its legend, as a figure of matplotlib."""
        from landfuse.pictures import classes_figure

        return classes_figure(self.classes, self.legend, self.path.stem)


def open_map(path: str | Path, scene: Scene | None = None) -> LandCoverMap:
    """Opens a map that `predict` wrote, or any raster of codes.

    Args:
        path: the file.
        scene: of the map, which tells names and colours; else names come from the file beside the map, and colours
            are the default ones.

    Raises:
        SceneError: if it is missing or broken, or has several bands.
        GridError: if it does not lie on the scene's grid.
    """
    path = Path(path)
    raster = class_map.open_map(path)
    if scene is None:
        return LandCoverMap(path, raster.own_grid, _own_legend(path))
    if raster.own_grid != scene.grid:
        raise GridError(
            f"the map {path} has the grid {raster.own_grid}",
            f"the grid of the scene `{scene.name}`: {scene.grid}",
            "name the scene of this map, or leave it out",
        )
    return LandCoverMap(path, raster.own_grid, scene.legend)


def _own_legend(path: Path) -> Legend:
    """The legend as far as the map's own files tell it."""
    raster = class_map.open_map(path)
    found: set[int] = set()
    for window in blocks(raster.own_grid.height, raster.own_grid.width, _BLOCK):
        found |= {int(code) for code in np.unique(class_map.read_map_codes(raster, window))}
    names = class_map.class_names(path)
    codes = sorted((found | set(names)) - {UNLABELLED})
    told = [LandClass(names.get(code, f"class {code}"), code, default_colour(i)) for i, code in enumerate(codes)]
    return Legend(tuple(told or [LandClass("unknown", 0, default_colour(0))]))
