"""A map that was written, opened again: its codes, classes and areas."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import GridError, MissingFileError, SceneError, few
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
        """The classes: those of the scene, else the codes in the map with their names and colours there."""
        if self.scene_legend is not None:
            return self.scene_legend
        found = {int(code) for window in self._blocks() for code in np.unique(self.codes(window))}
        names = class_names(self.path)
        codes = sorted((found | set(names)) - {UNLABELLED})
        return Legend.of([(code, names.get(code, f"class {code}")) for code in codes] or [(0, "unknown")], self.colours)

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each class by its name, of those that have a name and a colour in the map."""
        colours = self.raster.colours
        return {name: colours[code] for code, name in class_names(self.path).items() if code in colours}

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

    def occupied(self, side: int) -> list[Window]:
        """The blocks of a side, px, that hold a map, in row order: of a mosaic only some, whose maps lie far apart."""
        grid = self.grid
        if self.path.suffix.lower() != ".vrt":
            return list(blocks(grid.height, grid.width, side))
        sources = [
            one for one in ElementTree.parse(self.path).getroot().iter() if one.find("SourceFilename") is not None
        ]
        rects = [one.find("DstRect") for one in sources]
        if not rects or any(rect is None for rect in rects):  # a source is laid over all of it
            return list(blocks(grid.height, grid.width, side))
        places = set()
        for rect in rects:
            left, top, width, height = (float(rect.get(key, 0)) for key in ("xOff", "yOff", "xSize", "ySize"))  # type: ignore[union-attr]
            rows = range(max(0, int(top // side)), math.ceil(min(top + height, grid.height) / side))
            cols = range(max(0, int(left // side)), math.ceil(min(left + width, grid.width) / side))
            places |= {(row, col) for row in rows for col in cols}
        return [Window(row * side, col * side, side, side).intersection(grid.window) for row, col in sorted(places)]

    def _blocks(self) -> Iterator[Window]:
        return blocks(self.grid.height, self.grid.width, _BLOCK)


def mosaics_in(folder: Path) -> list[Path]:
    """The mosaics of maps in a folder: several where the tiles differ in CRS or lattice."""
    return sorted(folder.glob("mosaic*.vrt"))


def open_map(path: str | Path, scene: Scene | None = None) -> LandCoverMap:
    """Opens a map that `predict` wrote, or any raster of codes.

    Args:
        path: the file, or the folder of the maps of many tiles, whose mosaic is opened.
        scene: of the map, for names and colours; else names come from the file beside the map, and colours from its
            colour table.

    Raises:
        SceneError: if it is missing or broken, or has several bands; if a folder has no mosaic, or several.
        GridError: if it is not on the scene's grid.

    Examples:
        >>> lf.open_map("map.tif").grid.height
        96
    """
    if Path(path).is_dir():
        mosaics = mosaics_in(Path(path))
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


WRITTEN = ("confidence", "entropy", "applicability")
"""Layers that `predict` writes by an option of their name."""


def layer_of(opened: LandCoverMap, name: str) -> LandCoverMap:
    """A further layer of a map as the whole numbers that its file holds, 0..254, and 255 for no data; of
    `applicability`, the first band, of all modalities together.

    Of a mosaic without that layer it is the mosaic of the layers that lie beside its maps.

    Raises:
        MissingFileError: if it is not there.
        SceneError: if it is no layer that `predict` writes.
        GridError: if it has another grid than the map.
    """
    path = beside(opened.path, name)
    made = f"landfuse predict RUN scene.yaml -o {opened.path} --{name}" if name in WRITTEN else ""
    address = str(path)
    if not path.exists() and path.suffix.lower() == ".vrt":
        root = ElementTree.parse(opened.path).getroot()
        for source in root.iter("SourceFilename"):
            path = beside(opened.path.parent / (source.text or ""), name)
            source.text = str(path.resolve())
            source.set("relativeToVRT", "0")
            if not path.exists():
                break
            scale = GdalRaster(str(path)).stored[0][3]  # a mosaic of classes states none
        for band in root.iter("VRTRasterBand"):
            ElementTree.SubElement(band, "Scale").text = str(scale or 1.0)
        address = ElementTree.tostring(root, encoding="unicode")
    if not path.exists():
        raise MissingFileError(
            f"the layer {path} of the map {opened.path} is not there", "the map's layer beside it",
            f"write it with the map: {made}" if made else "name a layer that is there",
        )  # fmt: skip
    bands = (1,) if name == "applicability" else None
    raster = GdalRaster(address, Decoding(scale=1.0, offset=0.0), bands, resampling="nearest")
    if raster.bands != 1 or raster.dtype != "uint8":
        raise SceneError(
            f"{path} has {raster.bands} bands of {raster.dtype}", "a layer of a map: one band of uint8", "name a layer"
        )
    if raster.own_grid != opened.grid:
        raise GridError(
            f"the layer {path} has the grid {raster.own_grid}",
            f"that of its map: {opened.grid}",
            f"write it with the map: {made}" if made else "name a layer of this map",
        )
    return LandCoverMap(raster)


@dataclass(frozen=True, kw_only=True)
class TwoMaps(LandCoverMap):
    """Two maps of one place as a map of what both say, each pair of classes a code; made by `open_two_maps`.

    Args:
        after: the later map; the earlier one is the map itself.
        names: code -> name of a class of either map; empty where they have none.
        pairs: (code of the earlier map, of the later map) -> how much of the maps has both.
    """

    after: LandCoverMap
    names: Mapping[int, str]
    pairs: Mapping[tuple[int, int], ClassArea]

    def codes(self, window: Window) -> NDArray[np.uint8]:
        """The places of pairs in `pairs`; `UNLABELLED` where either map has no class."""
        table = np.full((256, 256), UNLABELLED, np.uint8)
        table[tuple(np.array([*self.pairs]).T)] = np.arange(len(self.pairs))
        return table[super().codes(window), self.after.codes(window)]


def open_two_maps(before: str | Path, after: str | Path) -> TwoMaps:
    """Opens two maps of one place as a map of the pairs of their classes, whose names are `A to B` and `stable A`.

    Raises:
        GridError: if their grids differ.
        SceneError: if their classes have other names, or they hold more than 254 pairs of classes, or none.
    """
    first, second = open_map(before), open_map(after)
    if first.grid != second.grid:
        raise GridError(
            f"the map {second.path} has the grid {second.grid}",
            f"that of the map {first.path}: {first.grid}",
            "warp one of them to the grid of the other by `gdalwarp -r near`",
        )
    names, others = class_names(first.path), class_names(second.path)
    differ = sorted({code for code, _ in {*names.items()} ^ {*others.items()}}) if names and others else []
    if differ:
        raise SceneError(
            f"the maps {first.path} and {second.path} have different legends: "
            + few([f"{code} is {names.get(code, 'none')} and {others.get(code, 'none')}" for code in differ]),
            "one legend: the same codes with the same names",
            "map both dates by models of one legend, or recode one of the maps",
        )
    counts, hectares, areas = np.zeros(65536, np.int64), np.zeros(65536), pixel_areas(first.grid)
    for window in blocks(first.grid.height, first.grid.width, _BLOCK):
        both = (first.codes(window).astype(np.int64) * 256 + second.codes(window)).ravel()
        counts += np.bincount(both, minlength=65536)
        if areas is not None:
            hectares += np.bincount(both, areas(window).ravel(), minlength=65536) / 10_000
    sizes = (counts if areas is None else hectares).reshape(256, 256)
    found = [(a, b) for a, b in np.argwhere(counts.reshape(256, 256)).tolist() if UNLABELLED not in (a, b)]
    if not 0 < len(found) < UNLABELLED:
        raise SceneError(
            f"the maps {first.path} and {second.path} hold {len(found)} pairs of classes",
            f"1 to {UNLABELLED - 1}",
            "merge classes in both maps" if found else "name two maps of one place",
        )
    total = sum(sizes[pair] for pair in found)
    pairs = {
        (a, b): ClassArea(
            int(counts[a * 256 + b]), float(sizes[a, b] / total), None if areas is None else float(sizes[a, b])
        )
        for a, b in found
    }
    names = names or others
    legend = Legend.of([(code, pair_name(*pair, names)) for code, pair in enumerate(pairs)])
    return TwoMaps(first.raster, legend, after=second, names=names, pairs=pairs)


def pair_name(before: int, after: int, names: Mapping[int, str]) -> str:
    """What the class of two dates is called."""
    first, second = (names.get(code, f"class {code}") for code in (before, after))
    return f"stable {first}" if before == after else f"{first} to {second}"
