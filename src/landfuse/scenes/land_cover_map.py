"""A map that was written, opened again: its codes, classes and areas."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import GridError, SceneError, few
from landfuse.legend import UNLABELLED, Legend, nfc
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.grid import Grid, pixel_areas
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene

_BLOCK = 2048
"""Side of the blocks that are read, px."""


@dataclass(frozen=True)
class ClassArea:
    """How much of a map a class takes, as counted; for areas that allow for errors see `landfuse.accuracy.estimate`.

    Args:
        pixels: number of pixels.
        fraction: of the area that has a class, 0..1; of the pixels where hectares are not known.
        hectares: on the ellipsoid; None where the map's CRS does not place it on the ground.
    """

    pixels: int
    fraction: float
    hectares: float | None


@dataclass(frozen=True)
class LandCoverMap:
    """A map and what its codes mean; made by `open_map`.

    Examples:
        >>> opened = lf.open_map("map.tif")
        >>> opened.classes.shape, opened.legend.names == lf.open_scene("scene.yaml").legend.names
        ((96, 96), True)
    """

    raster: GdalRaster
    scene_legend: Legend | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.raster.path)

    @property
    def grid(self) -> Grid:
        """The map's own grid."""
        return self.raster.own_grid

    @cached_property
    def legend(self) -> Legend:
        """The classes: those of the scene, else the codes in the map with the names beside it and default colours."""
        if self.scene_legend is not None:
            return self.scene_legend
        found = {int(code) for window in self._blocks() for code in np.unique(self.codes(window))}
        names = class_names(self.path)
        codes = sorted((found | set(names)) - {UNLABELLED})
        return Legend.of([(code, names.get(code, f"class {code}")) for code in codes] or [(0, "unknown")])

    def codes(self, window: Window) -> NDArray[np.uint8]:
        """The codes of a window inside the map: (height, width), `UNLABELLED` where there are none.

        Raises:
            SceneError: if it holds a number that is no code.
        """
        values = self.raster.read(window)[0]
        values[np.isnan(values)] = UNLABELLED
        wrong = values[(values != np.rint(values)) | (values < 0) | (values > UNLABELLED)]
        if wrong.size:
            raise SceneError(
                f"the map {self.path} holds the number {wrong[0]:g}",
                "whole-number codes from 0 to 254",
                "name the map",
            )
        return values.astype(np.uint8)

    @cached_property
    def classes(self) -> NDArray[np.uint8]:
        """The whole map: (H, W) uint8, 0..K-1, `landfuse.UNLABELLED` where there is none.

        Raises:
            SceneError: if it holds a code that the legend lacks.
        """
        result = np.full((self.grid.height, self.grid.width), UNLABELLED, np.uint8)
        for window in self._blocks():
            classes = self.legend.to_classes(self.codes(window), where=f"the map {self.path}")
            result[window.within(self.grid.window)] = classes
        return result

    def areas(self) -> dict[str, ClassArea]:
        """The area of each class by its name, in the legend's order."""
        counts, hectares = np.zeros(256, np.int64), np.zeros(256)
        areas = pixel_areas(self.grid)
        for window in self._blocks():
            classes = self.classes[window.within(self.grid.window)].ravel()
            counts += np.bincount(classes, minlength=256)
            if areas is not None:
                hectares += np.bincount(classes, areas(window).ravel(), minlength=256) / 10_000
        sizes = counts if areas is None else hectares
        total = sizes[: len(self.legend)].sum() or 1
        return {
            name: ClassArea(int(counts[k]), float(sizes[k] / total), None if areas is None else float(hectares[k]))
            for k, name in enumerate(self.legend.names)
        }

    def _blocks(self) -> Iterator[Window]:
        return blocks(self.grid.height, self.grid.width, _BLOCK)


def open_map(path: str | Path, scene: Scene | None = None) -> LandCoverMap:
    """Opens a map that `predict` wrote, or any raster of codes.

    Args:
        path: the file, or the folder of the maps of many tiles, whose mosaic is opened.
        scene: of the map, for names and colours; else names come from the file beside the map, and colours are the
            default ones.

    Raises:
        SceneError: if it is missing or broken, or has several bands; if a folder has no mosaic, or several.
        GridError: if it is not on the scene's grid.

    Examples:
        >>> lf.open_map("map.tif").grid.height
        96
    """
    if Path(path).is_dir():
        mosaics = sorted(Path(path).glob("mosaic*.vrt"))
        if len(mosaics) != 1:
            raise SceneError(
                f"the folder {path} holds {len(mosaics) or 'no'} mosaic{'s' if mosaics else ''} of maps"
                + (f": {few([place.name for place in mosaics])}" if mosaics else ""),
                "one map: a file, or the folder of tiles that `landfuse predict` wrote, with its mosaic.vrt",
                "name the map itself, or one of the mosaics",
            )
        path = mosaics[0]
    raster = GdalRaster(str(path), Decoding(scale=1.0, offset=0.0), resampling="nearest")
    raster.check()
    if raster.bands != 1:
        raise SceneError(f"{path} has {raster.bands} bands", "a map: one band of codes", "name the map itself")
    if scene is not None and raster.own_grid != scene.grid:
        raise GridError(
            f"the map {path} has the grid {raster.own_grid}",
            f"the grid of the scene `{scene.name}`: {scene.grid}",
            "name the scene of this map, or leave it out",
        )
    if scene is not None:
        scene.legend.refuse_nodata(raster.nodata, f"the map {path}", "remove it by `gdal_edit.py -unsetnodata`")
    return LandCoverMap(raster, None if scene is None else scene.legend)


def class_names(map_path: str | Path) -> dict[int, str]:
    """The names of a map's codes that GDAL keeps beside it (`.aux.xml`), or that a mosaic (`.vrt`) or its maps have."""
    path = Path(map_path)
    places = {Path(f"{path}.aux.xml"): "PAMRasterBand/CategoryNames"}
    if path.suffix.lower() == ".vrt":
        places[path] = "VRTRasterBand/CategoryNames"
    for file, place in places.items():
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError):
            continue
        found = root.find(place)
        if found is not None:
            listed = enumerate(found)
            return {code: nfc(name.text).strip() for code, name in listed if name.text and name.text.strip()}
        for source in root.iter("SourceFilename"):
            names = class_names(path.parent / (source.text or ""))
            if names:
                return names
    return {}


def beside(path: str | Path, layer: str) -> Path:
    """The file of a further layer beside a map: `map.tif` -> `map_confidence.tif`."""
    path = Path(path)
    return path.with_name(f"{path.stem}_{layer}{path.suffix}") if layer else path
