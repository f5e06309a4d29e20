"""Cloud-optimised GeoTIFFs from many pieces: a mosaic (VRT) that points at them, and GDAL's writer, which streams."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import rasterio.shutil

from landfuse.files import unwritable, whole_file, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.scenes.geotiff import GDAL_ERRORS, quietly
from landfuse.scenes.geotiff_writer import TILE
from landfuse.scenes.grid import Grid, Window

Overviews = Literal["mode", "average"]
"""How coarser pixels come of finer ones: the most frequent class, or the mean; those without data do not count."""


@dataclass(frozen=True)
class Mosaic:
    """What a mosaic of uint8 pieces says of itself.

    Args:
        grid: where it lies.
        names: of its bands.
        legend: gives the bands its colours.
        scale: value = number * scale, for those who read it.
        nodata: the number of pixels without data, also where no piece lies.
        tags: free metadata.
    """

    grid: Grid
    names: Sequence[str]
    legend: Legend | None = None
    scale: float = 1.0
    nodata: int = UNLABELLED
    tags: Mapping[str, str] = field(default_factory=dict)


def write_mosaic(
    path: Path,
    mosaic: Mosaic,
    pieces: Collection[tuple[Window, Path]],
    first_band: int = 1,
    *,
    overlapping: bool = False,
) -> None:
    """Writes a mosaic as a VRT, which holds no pixels.

    Args:
        path: of the VRT.
        mosaic: what it says of itself.
        pieces: windows of the mosaic, and the file that covers just that. Where several have data, the last one counts.
        first_band: of the pieces' bands, the one that is the mosaic's first.
        overlapping: what a piece has no data for is left to those before it. Needless, and slower to read, where no two
            pieces overlap.

    Raises:
        OutputError: if it cannot be written.
    """
    grid = mosaic.grid
    root = ElementTree.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        ElementTree.SubElement(root, "SRS").text = grid.crs
    if grid.georeferenced:
        a, b, c, d, e, f = grid.transform
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(x)) for x in (c, a, b, f, d, e))
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in mosaic.tags.items():
        ElementTree.SubElement(metadata, "MDI", key=key).text = value
    for number, name in enumerate(mosaic.names):
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number + 1))
        ElementTree.SubElement(band, "Description").text = name
        ElementTree.SubElement(band, "NoDataValue").text = str(mosaic.nodata)
        if mosaic.scale != 1.0:
            ElementTree.SubElement(band, "Scale").text = repr(mosaic.scale)
        if mosaic.legend is not None:
            ElementTree.SubElement(band, "ColorInterp").text = "Palette"
            colours = {c.code: c.rgb for c in mosaic.legend}
            table = ElementTree.SubElement(band, "ColorTable")
            for code in range(256):
                rgb = zip(("c1", "c2", "c3"), map(str, colours.get(code, (0, 0, 0))), strict=True)
                ElementTree.SubElement(table, "Entry", dict(rgb), c4=str(255 if code != mosaic.nodata else 0))
        for window, piece in pieces:
            source = ElementTree.SubElement(band, "ComplexSource" if overlapping else "SimpleSource")
            relative = piece.is_relative_to(path.parent)
            name_of = piece.relative_to(path.parent).as_posix() if relative else str(piece.resolve())
            ElementTree.SubElement(source, "SourceFilename", relativeToVRT=str(int(relative))).text = name_of
            ElementTree.SubElement(source, "SourceBand").text = str(first_band + number)
            size = {"xSize": str(window.width), "ySize": str(window.height)}
            # Told here, GDAL need not open every piece to look at one.
            ElementTree.SubElement(
                source, "SourceProperties", RasterXSize=size["xSize"], RasterYSize=size["ySize"], DataType="Byte",
                BlockXSize=str(TILE), BlockYSize=str(TILE),
            )  # fmt: skip
            ElementTree.SubElement(source, "SrcRect", size, xOff="0", yOff="0")
            ElementTree.SubElement(source, "DstRect", size, xOff=str(window.col), yOff=str(window.row))
            if overlapping:
                ElementTree.SubElement(source, "NODATA").text = str(mosaic.nodata)
    write_text(path, ElementTree.tostring(root, encoding="unicode"))


def write_cloud_geotiff(path: Path, source: Path, overviews: Overviews) -> None:
    """Writes a raster that GDAL reads as a cloud-optimised GeoTIFF; memory does not depend on its size.

    Args:
        path: of the file; whole or absent.
        source: what is copied, with its metadata.
        overviews: how coarser pixels come of finer ones.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        with whole_file(path) as partial:
            try:
                with quietly():
                    rasterio.shutil.copy(
                        source,
                        partial,
                        driver="COG",
                        compress="deflate",
                        predictor="no" if overviews == "mode" else "standard",
                        blocksize=TILE,
                        overview_resampling=overviews,
                        bigtiff="if_safer",
                    )
                    _verify(partial)
            finally:
                for left in partial.parent.glob(f"{partial.name}?*"):  # GDAL's overviews until they are copied
                    left.unlink()
    except GDAL_ERRORS as error:
        raise unwritable(path, error) from None


def _verify(path: Path) -> None:
    """GDAL tells of a full disk at closing only in its log; the last tile of the finest level ends the file."""
    with rasterio.open(path) as written:
        for band in range(1, written.count + 1):
            *_, (_, last) = written.block_windows(band)
            written.read(band, window=last)
