"""Several files of one kind as one raster: a VRT, which copies no pixel and which every GIS opens."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from landfuse.files import write_text
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import NOWHERE, GdalRaster, ResamplingName, box_in, vrt_of
from landfuse.rasters.grid import SAME_CORNER, Grid
from landfuse.rasters.windows import Window

_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64"}
"""Names of types in VRTs, where these are not like Int16 or Float32."""


@dataclass(frozen=True)
class StoredBand:
    """How a band is stored; None for what is not known.

    Args:
        micrometres: the wavelength in its middle.
    """

    name: str = ""
    dtype: str | None = None
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    micrometres: float | None = None


@dataclass(frozen=True)
class Source:
    """A file of a mosaic.

    Args:
        address: what GDAL opens.
        bands: from its first; their types are known.
    """

    address: str
    grid: Grid
    bands: tuple[StoredBand, ...]

    def offset_on(self, grid: Grid) -> tuple[int, int] | None:
        """Its upper left corner in whole pixels of a grid, column and row; None where it has other pixels."""
        same = replace(grid, height=self.grid.height, width=self.grid.width)
        a, _, c, _, e, f = grid.transform
        col, row = round((self.grid.transform[2] - c) / a), round((self.grid.transform[5] - f) / e)
        x, y = grid.at(col, row)
        return (col, row) if replace(same, transform=(a, 0.0, x, 0.0, e, y)) == self.grid else None

    def window_on(self, grid: Grid) -> Window | None:
        """The part of a grid, whose north is up, that it may cover; None for none."""
        left, bottom, right, top = box_in(self.grid, str(grid.crs))
        a, _, c, _, e, f = grid.transform
        first_col, last_col = np.clip([(left - c) / a + SAME_CORNER, (right - c) / a - SAME_CORNER], 0, grid.width)
        first_row, last_row = np.clip([(top - f) / e + SAME_CORNER, (bottom - f) / e - SAME_CORNER], 0, grid.height)
        row, col = int(first_row), int(first_col)
        height, width = int(np.ceil(last_row)) - row, int(np.ceil(last_col)) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None


def look(address: str) -> Source:
    """A file as its header has it; raises an error if it is no raster, or has no place."""
    raster = GdalRaster(address)
    raster.check()
    return Source(address, raster.own_grid, tuple(StoredBand(*one) for one in raster.stored))


def write_mosaic(
    path: Path, grid: Grid, sources: Sequence[Source], resampling: ResamplingName = "bilinear", codes: bool = False
) -> None:
    """Writes a VRT of some files, those that come first on top.

    Files on the pixels of the grid are read as they are. Others get a VRT of their own in the folder `warped`, which
    brings them there.

    Args:
        grid: its own; north is up.
        sources: files of the same bands.
        resampling: how others are brought to the grid.
        codes: they hold codes or bits, which stay whole numbers: without data are those that the first file says, or 0.
    """
    root = vrt_of(grid)
    parts: list[tuple[Source, Window, tuple[int, int], bool]] = []  # on the grid, and in the file
    for number, source in enumerate(sources, start=1):
        if (window := source.window_on(grid)) is None:
            continue
        if corner := source.offset_on(grid):
            parts.append((source, window, (window.col - corner[0], window.row - corner[1]), False))
            continue
        place = path.parent / "warped" / f"{path.stem}_{number}.vrt"
        nodata = tuple(band.nodata for band in source.bands)
        GdalRaster(
            source.address,
            Decoding(nodata[0] if len(set(nodata)) == 1 else nodata),
            assumed_crs=source.grid.crs,
            onto=grid.part(window),
            resampling="nearest" if codes else resampling,
        ).save_warped(place)
        parts.append((replace(source, address=str(place.resolve())), window, (0, 0), True))
    for number, first in enumerate(sources[0].bands):
        stored = [source.bands[number] for source, *_ in parts]
        decoded = len({(one.scale or 1.0, one.offset or 0.0) for one in stored}) > 1
        types = {(str(one.dtype), repr(one.nodata)) for one in stored}
        kept = codes or not (decoded or len(types) > 1 or first.nodata is None or any(part[-1] for part in parts))
        wide = any(np.dtype(one.dtype).itemsize > (4 if "float" in str(one.dtype) else 2) for one in stored)
        dtype = str(first.dtype) if kept else "float64" if wide else "float32"
        missing = repr(first.nodata or 0.0) if codes else repr(first.nodata) if kept else "nan"
        band = ElementTree.SubElement(
            root, "VRTRasterBand", dataType=_TYPES.get(dtype, dtype.title()), band=str(number + 1)
        )
        if first.micrometres:
            imagery = ElementTree.SubElement(band, "Metadata", domain="IMAGERY")
            ElementTree.SubElement(imagery, "MDI", key="CENTRAL_WAVELENGTH_UM").text = repr(first.micrometres)
        scale = [] if decoded else [("Offset", first.offset), ("Scale", first.scale)]
        for tag, text in [("Description", first.name), ("NoDataValue", missing), *scale]:
            if text not in ("", None):
                ElementTree.SubElement(band, tag).text = str(text)
        for (source, window, (col, row), warped), one in reversed([*zip(parts, stored, strict=True)]):
            part = ElementTree.SubElement(band, "ComplexSource")
            ElementTree.SubElement(part, "SourceFilename", relativeToVRT="0").text = source.address
            ElementTree.SubElement(part, "SourceBand").text = str(number + 1)
            for tag, x, y in (("SrcRect", col, row), ("DstRect", window.col, window.row)):
                box = {"xOff": x, "yOff": y, "xSize": window.width, "ySize": window.height}
                ElementTree.SubElement(part, tag, {key: str(value) for key, value in box.items()})
            if decoded:
                ElementTree.SubElement(part, "ScaleOffset").text = repr(one.offset or 0.0)
                ElementTree.SubElement(part, "ScaleRatio").text = repr(one.scale or 1.0)
            if warped or one.nodata is not None:
                ElementTree.SubElement(part, "NODATA").text = repr(NOWHERE if warped else one.nodata)
            ElementTree.SubElement(part, "UseMaskBand").text = "true"
    ElementTree.indent(root)
    write_text(path, ElementTree.tostring(root, encoding="unicode") + "\n")
