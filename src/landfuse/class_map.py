"""A map as its file holds it: codes block by block, the names beside it, and the size of its pixels."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray

from landfuse.errors import SceneError
from landfuse.legend import UNLABELLED
from landfuse.scenes.geotiff import GdalRaster
from landfuse.scenes.grid import Grid, Window
from landfuse.scenes.values import Decoding


def open_map(path: str | Path) -> GdalRaster:
    """Opens a map, to be read by `read_map_codes`.

    Raises:
        SceneError: if it is missing or broken, or has several bands.
    """
    raster = GdalRaster(str(path), Decoding(scale=1.0, offset=0.0), resampling="nearest")
    raster.check()
    if raster.bands != 1:
        raise SceneError(f"{path} has {raster.bands} bands", "a map: one band of codes", "name the map itself")
    return raster


def read_map_codes(raster: GdalRaster, window: Window) -> NDArray[np.uint8]:
    """The codes of a window inside the map: (height, width), `UNLABELLED` where there are none.

    Raises:
        SceneError: if it holds a number that is no code.
    """
    values = raster.read(window)[0]
    values[np.isnan(values)] = UNLABELLED
    wrong = values[(values != np.rint(values)) | (values < 0) | (values > UNLABELLED)]
    if wrong.size:
        raise SceneError(
            f"the map {raster.path} holds the number {wrong[0]:g}", "whole-number codes from 0 to 254", "name the map"
        )
    return values.astype(np.uint8)


def pixel_area(grid: Grid) -> float | None:
    """The area of a pixel in square metres; None where it differs from place to place, or is not known."""
    crs = None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs)
    if crs is None or not crs.is_projected or crs.to_epsg() == 3857:  # Web Mercator's metres grow with the latitude
        return None
    a, b, _, d, e, _ = grid.transform
    return float(abs(a * e - b * d) * crs.axis_info[0].unit_conversion_factor ** 2)


def class_names(map_path: str | Path) -> dict[int, str]:
    """The names of a map's codes that GDAL keeps beside it (`.aux.xml`); none if there is no such file."""
    beside = Path(f"{map_path}.aux.xml")
    if not beside.is_file():
        return {}
    try:
        found = ElementTree.parse(beside).getroot().find("PAMRasterBand/CategoryNames")
    except ElementTree.ParseError:
        return {}
    listed = enumerate(found if found is not None else ())
    return {code: name.text.strip() for code, name in listed if name.text and name.text.strip()}
