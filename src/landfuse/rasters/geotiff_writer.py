"""Writing GeoTIFFs, and burning polygons into a grid."""

from __future__ import annotations

import contextlib
import glob
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.features import rasterize

from landfuse.files import unwritable, whole_file, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.geotiff import GDAL_ERRORS, quietly, rasterio_window, vrt_of
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window

TILE = 512
"""Side of a tile of the files that are written; blocks of a multiple of it are written without compressing twice."""


def burn(
    shapes: Sequence[tuple[Any, int]], grid: Grid, *, all_touched: bool, fill: int = UNLABELLED, dtype: str = "uint8"
) -> NDArray[Any]:
    """Burns pairs of geometry (in the grid's CRS) and number into a grid: (H, W), `fill` elsewhere.

    Later ones win. With `all_touched`, a geometry labels every pixel that it touches, else those whose centre it holds.
    """
    burnt = np.full((grid.height, grid.width), fill, dtype)
    if shapes:
        rasterize(shapes, out=burnt, transform=rasterio.Affine(*grid.transform), all_touched=all_touched)
    return burnt


class GeotiffWriter:
    """Writes one GeoTIFF, window by window; it is whole when the `with` block ends well, else absent.

    Args:
        nodata: the value of pixels without data.
        legend: sets the colours and category names of band 1.
        scale: value = number * scale, for those who read the file.
        tags: free metadata.
        lasting: false for a file that is soon read and deleted: compressed a bit less, in a fifth of the time.
        then: called with the whole file before it takes its name.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        *,
        bands: int = 1,
        dtype: str = "uint8",
        nodata: float | None = UNLABELLED,
        names: Iterable[str] = (),
        legend: Legend | None = None,
        scale: float = 1.0,
        tags: dict[str, str] | None = None,
        lasting: bool = True,
        then: Callable[[Path], None] = lambda written: None,
    ) -> None:
        self.path = Path(path)
        self.legend, self._then = legend, then
        with contextlib.ExitStack() as stack:
            self._partial = stack.enter_context(whole_file(self.path))
            try:
                with quietly():
                    self._file = rasterio.open(
                        self._partial,
                        "w",
                        driver="GTiff",
                        height=grid.height,
                        width=grid.width,
                        count=bands,
                        dtype=dtype,
                        crs=grid.crs,
                        transform=rasterio.Affine(*grid.transform) if grid.georeferenced else None,
                        nodata=nodata,
                        tiled=True,
                        blockxsize=TILE,
                        blockysize=TILE,
                        compress="deflate",
                        zlevel=6 if lasting else 1,
                        predictor=2 if np.dtype(dtype).kind in "iu" and legend is None else 1,
                        bigtiff="if_safer",
                        interleave="band",
                    )
                stack.callback(self._file.close)
                _describe(self._file, names, legend, scale, tags or {})
            except (OSError, *GDAL_ERRORS) as error:
                raise unwritable(self.path, error) from None
            self._stack = stack.pop_all()

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Writes (bands, height, width), or (height, width) for one band, at a window inside the grid."""
        try:
            self._file.write(values if values.ndim == 3 else values[np.newaxis], window=rasterio_window(window))
        except (OSError, *GDAL_ERRORS) as error:
            raise unwritable(self.path, error) from None

    def __enter__(self) -> GeotiffWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if error is None:
                with quietly():
                    _verify(self._partial)
                self._then(self._partial)
        except (OSError, *GDAL_ERRORS) as fault:
            error = unwritable(self.path, fault)
            self._stack.__exit__(type(error), error, None)
            raise error from None
        self._stack.__exit__(kind, error, trace)
        if error is None:
            beside = self.path.with_name(self.path.name + ".aux.xml")
            if self.legend is not None:
                write_category_names(beside, self.legend)
            else:
                beside.unlink(missing_ok=True)  # of a former file of this name


def _describe(file: Any, names: Iterable[str], legend: Legend | None, scale: float, tags: Mapping[str, str]) -> None:
    if legend is not None:
        file.write_colormap(1, {c.code: (*c.rgb, 255) for c in legend})
    if scale != 1.0:
        file.scales = [scale] * file.count
    for index, name in enumerate(names, start=1):
        file.set_band_description(index, name)
    file.update_tags(**tags)


def write_category_names(path: Path, legend: Legend) -> None:
    """Writes the classes' names to where GDAL looks for them, `map.tif.aux.xml`; unused codes get empty names."""
    names = {c.code: c.name for c in legend}
    lines = "".join(f"<Category>{escape(names.get(code, ''))}</Category>" for code in range(max(names) + 1))
    text = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{lines}</CategoryNames></PAMRasterBand></PAMDataset>\n'
    write_text(path, text)


def write_raster(path: str | Path, grid: Grid, values: NDArray[Any], **options: Any) -> None:
    """Writes a whole array, (C, H, W) or (H, W), at once; options as in `GeotiffWriter`."""
    array = values if values.ndim == 3 else values[np.newaxis]
    if array.dtype != np.uint8:
        options.setdefault("nodata", None)  # 255 is a value like any other in wider types
    with GeotiffWriter(path, grid, bands=array.shape[0], dtype=str(array.dtype), **options) as file:
        file.write(grid.window, array)


Overviews = Literal["mode", "average"]
"""How overviews are computed: the most frequent class, or the mean, of the pixels that have data."""


@dataclass(frozen=True)
class Mosaic:
    """Metadata of a mosaic of uint8 pieces; see `GeotiffWriter`.

    Pixels without data have the number `nodata`, also where there is no piece.
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
        pieces: windows of the mosaic, and the file that covers just that. Where several have data, the last one counts.
        first_band: of the pieces' bands, the one that is the mosaic's first.
        overlapping: where a piece has no data, those before it count. Slower to read, and not needed unless pieces
            overlap.
    """
    root = vrt_of(mosaic.grid)
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
            # With these, GDAL need not open every piece to read one.
            ElementTree.SubElement(
                source, "SourceProperties", RasterXSize=size["xSize"], RasterYSize=size["ySize"], DataType="Byte",
                BlockXSize=str(TILE), BlockYSize=str(TILE),
            )  # fmt: skip
            ElementTree.SubElement(source, "SrcRect", size, xOff="0", yOff="0")
            ElementTree.SubElement(source, "DstRect", size, xOff=str(window.col), yOff=str(window.row))
            if overlapping:
                ElementTree.SubElement(source, "NODATA").text = str(mosaic.nodata)
    write_text(path, ElementTree.tostring(root, encoding="unicode"))


@contextlib.contextmanager
def mosaic_in_memory(mosaic: Mosaic, numbers: NDArray[np.uint8]) -> Iterator[Any]:
    """Yields a mosaic of one piece, (bands, H, W), as `write_cloud_geotiff` takes it; no file is written."""
    grid, (bands, height, width) = mosaic.grid, numbers.shape
    place = rasterio.Affine(*grid.transform) if grid.georeferenced else None
    with (
        quietly(),
        rasterio.open(
            "", "w+", "MEM", width, height, bands, grid.crs, place, dtype="uint8", nodata=mosaic.nodata
        ) as file,
    ):
        _describe(file, mosaic.names, mosaic.legend, mosaic.scale, mosaic.tags)
        file.write(numbers)
        yield file


def write_cloud_geotiff(path: Path, source: Any, overviews: Overviews) -> None:
    """Writes a raster that GDAL reads as a cloud-optimised GeoTIFF; memory does not depend on its size.

    Args:
        source: the path of what is copied with its metadata, or a `mosaic_in_memory`.
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
                # GDAL's overviews until they are copied
                for left in partial.parent.glob(f"{glob.escape(partial.name)}?*"):
                    left.unlink()
    except GDAL_ERRORS as error:
        raise unwritable(path, error) from None


def _verify(path: Path) -> None:
    """Reads the last tile, which ends the file: GDAL reports a full disk at closing only in its log."""
    with rasterio.open(path) as written:
        for band in range(1, written.count + 1):
            *_, (_, last) = written.block_windows(band)
            written.read(band, window=last)
