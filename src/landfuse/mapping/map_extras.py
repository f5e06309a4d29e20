"""What a finished map gets beside it: a style for QGIS, polygons; and where there are many, mosaics and an index."""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SceneError, SettingsError
from landfuse.files import write_text
from landfuse.legend import LandClass, Legend
from landfuse.rasters.geotiff_writer import TILE, Mosaic, write_mosaic
from landfuse.rasters.grid import Grid, pixel_areas
from landfuse.rasters.windows import Window
from landfuse.scenes.land_cover_map import beside, open_map

SIGNS = {
    ".qml": r"\A<!DOCTYPE qgis>\n",
    ".png": "landfuse",
    "_polygons.gpkg": 'CREATE TABLE "land_cover"',
    ".stac.json": '"landfuse:bundle"',
    ".vrt": r"\A<VRTDataset [^>]*><",
    "index.gpkg": 'CREATE TABLE "maps"',
}
"""By what the files beside a map are known to be landfuse's; see `check_replaceable`."""

SIZES = ("#FFFFCC", "#FECC5C", "#FD8D3C", "#E31A1C", "#800026")
"""Colours of class sets by the number of their classes."""

MOST_PIXELS = 10_000**2
"""Of a map that is turned into polygons: all of it is in memory then, a few times."""


def write_style(path: str | Path, legend: Legend) -> Path:
    """Writes the style that QGIS gives a map when it opens it: `map.tif` -> `map.qml`.

    Raises:
        OutputError: if it cannot be written.
    """
    place = Path(path).with_suffix(".qml")
    write_text(place, style_of(legend))
    return place


def sizes_legend(classes: int) -> Legend:
    """What a style says of the sizes of class sets: from pale (one class) to dark (five or more)."""
    names = (f"{size} class{'es' * (size > 1)}" for size in range(1, classes + 1))
    return Legend(tuple(LandClass(name, n + 1, SIZES[min(n, len(SIZES) - 1)]) for n, name in enumerate(names)))


def polygons_beside(path: str | Path) -> Path:
    """The file of a map's polygons: `map.tif` -> `map_polygons.gpkg`."""
    return beside(path, "polygons").with_suffix(".gpkg")


def check_polygons(grid: Grid, minimum: float = 0.0) -> None:
    """Raises what `write_polygons` would raise of a map's grid and the minimum, before the map is made."""
    if not 0 <= minimum < math.inf:
        raise SettingsError(
            f"the minimum area of polygons is {minimum:g}",
            "0 or more square metres (square units of the map where it has no CRS)",
            "change --minimum-area",
        )
    if grid.window.pixels > MOST_PIXELS:
        raise SceneError(
            f"the map has {grid.height:,} x {grid.width:,} px, too many for polygons",
            f"at most {MOST_PIXELS:,} px; patches reach across a map, so that all of it is held in memory",
            "map it as several tiles, or without --polygons",
        )


def write_polygons(path: str | Path, legend: Legend, minimum: float = 0.0) -> Path:
    """Writes a map's patches as polygons, with their class and size.

    Patches are of pixels that share an edge. Those below the minimum are merged into the largest patch beside them;
    they stay where no class is beside them. The map itself does not change.

    Args:
        path: of the map.
        legend: of the map.
        minimum: area of a patch, in square metres on the ellipsoid; in square units of the map's coordinates where
            there is no CRS.

    Returns:
        Path of the GeoPackage, `map_polygons.gpkg`; its layer is `land_cover`, its columns `code`, `class`, `hectares`
        (or `area`, in square units of the map's coordinates).

    Raises:
        SettingsError: if the minimum is no area.
        SceneError: if nothing is mapped, or the map has too many pixels or patches.
        OutputError: if the file cannot be written.
    """
    from landfuse.rasters.vector_map import number_patches, without_small_patches, write_patches  # geopandas is slow

    opened = open_map(path)
    grid = opened.grid
    check_polygons(grid, minimum)
    strips = [Window(row, 0, min(TILE, grid.height - row), grid.width) for row in range(0, grid.height, TILE)]
    codes = np.concatenate([opened.codes(strip) for strip in strips])  # a map is read as float32
    a, b, _, d, e, _ = grid.transform
    areas = pixel_areas(grid)

    def numbered() -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float64]]:
        """The patches, their codes and their areas."""
        patches, of_patch = number_patches(codes)
        found = np.zeros(of_patch.size + 1)
        for strip in strips:
            weights = None if areas is None else areas(strip).ravel()
            found += np.bincount(patches[strip.within(grid.window)].ravel(), weights, minlength=found.size)
        return patches, of_patch, found[1:] * (1.0 if areas else abs(a * e - b * d))

    smallest, largest = areas.range if areas else (abs(a * e - b * d),) * 2
    few, many = (math.ceil(min(minimum / area * (1 - 1e-9), codes.size)) for area in (largest, smallest))
    codes = without_small_patches(codes, few)
    if many > few:  # of patches that have too few pixels in one place, some have the area in another
        patches, _, found = numbered()
        merged = without_small_patches(codes, many)
        codes = np.where(np.append(True, found >= minimum * (1 - 1e-9))[patches], codes, merged)
    patches, of_patch, found = numbered()
    place = polygons_beside(path)
    write_patches(place, patches, of_patch, {"hectares": found / 1e4} if areas else {"area": found}, legend, grid)
    return place


def write_mosaics(folder: Path, maps: Mapping[str, tuple[Grid, Path]], legend: Legend) -> list[Path]:
    """Writes mosaics (VRT) that show many maps as one, each with its style.

    Returns:
        Their paths; see `mosaics`.

    Raises:
        OutputError: if they cannot be written.
    """
    found = mosaics(folder, maps)
    for path, (grid, pieces) in found.items():
        write_mosaic(path, Mosaic(grid, ["class"], legend), pieces, overlapping=True)
        write_style(path, legend)
    return list(found)


def mosaics(folder: Path, maps: Mapping[str, tuple[Grid, Path]]) -> dict[Path, tuple[Grid, list[tuple[Window, Path]]]]:
    """Which mosaics show many maps as one: `mosaic.vrt`, or one of each CRS and lattice, `mosaic_EPSG32632.vrt`.

    Args:
        folder: where they go.
        maps: tile -> its grid and its map. Where tiles overlap, the last one that has a class there counts. Maps
            without georeference are in none.

    Returns:
        path -> its grid, and the maps as windows of it.
    """
    groups: list[tuple[Grid, list[tuple[Window, Path]]]] = []  # the first grid of a lattice, and maps as windows of it
    for grid, path in maps.values():
        if not grid.georeferenced:
            continue
        for first, pieces in groups:
            window = _window_in(first, grid)
            if window is not None:
                pieces.append((window, path))
                break
        else:
            groups.append((grid, [(grid.window, path)]))
    found: dict[Path, tuple[Grid, list[tuple[Window, Path]]]] = {}
    for first, pieces in groups:
        top, left = min(w.row for w, _ in pieces), min(w.col for w, _ in pieces)
        height = max(w.row + w.height for w, _ in pieces) - top
        width = max(w.col + w.width for w, _ in pieces) - left
        placed = [(Window(w.row - top, w.col - left, w.height, w.width), path) for w, path in pieces]
        name = "mosaic" if len(groups) == 1 else f"mosaic_{_short(first.crs)}"
        same = sum(other.stem == name or other.stem.startswith(f"{name}-") for other in found)
        whole = first.part(Window(top, left, height, width))
        found[folder / f"{name}{f'-{same + 1}' if same else ''}.vrt"] = whole, placed
    return found


def _window_in(grid: Grid, other: Grid) -> Window | None:
    """A grid as a window of another one of the same CRS and lattice of pixels; None where they differ."""
    a, b, c, d, e, f = grid.transform
    place = other.beside(grid).transform
    x, y = place[2] - c, place[5] - f
    area = a * e - b * d
    row, col = round((a * y - d * x) / area), round((e * x - b * y) / area)
    window = Window(row, col, other.height, other.width)
    return window if grid.part(window) == other else None


def _short(crs: str | None) -> str:
    if crs is None:
        return "local"
    return crs.replace(":", "") if len(crs) < 20 else "other"


def index_maps(folder: Path, maps: Mapping[str, tuple[Grid, Path]]) -> Path | None:
    """Writes where many maps are: `index.gpkg`, a polygon for each in WGS 84, with `tile`, `path` and `crs`.

    Args:
        folder: where it goes; paths are relative to it.
        maps: tile -> its grid and its map.

    Returns:
        Its path; None where no map has a CRS.

    Raises:
        GridError: if a tile cannot be placed.
        OutputError: if it cannot be written.
    """
    from landfuse.rasters.vector_map import write_index

    placed = {
        tile: (grid, Path(os.path.relpath(path, folder)).as_posix())
        for tile, (grid, path) in maps.items()
        if grid.crs is not None
    }
    if not placed:
        return None
    place = folder / "index.gpkg"
    write_index(place, placed)
    return place


def style_of(legend: Legend) -> str:
    """The style of a map of codes as XML that QGIS 3 reads: each class in its colour, with its name."""
    root = ElementTree.Element("qgis", version="3.0.0", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(pipe, "rasterrenderer", type="paletted", band="1", alphaBand="-1", opacity="1")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for one in legend:
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(one.code), color=one.colour.lower(), alpha="255", label=one.name
        )
    ElementTree.SubElement(pipe, "rasterresampler", zoomedInResampler="nearest", zoomedOutResampler="nearest")
    ElementTree.SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    return f"<!DOCTYPE qgis>\n{ElementTree.tostring(root, encoding='unicode')}\n"
