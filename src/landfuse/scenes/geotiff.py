"""GeoTIFF and everything else that GDAL reads; writing maps; burning polygons. The only rasterio import."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow

from landfuse.errors import GridError, MissingFileError, SceneError, SettingsError
from landfuse.files import unwritable, whole_file, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.scenes.grid import Grid, Window
from landfuse.scenes.values import Decoding

# GDAL keeps decoded tiles in 5% of the machine's memory unless told otherwise; P2 states its own bound.
os.environ.setdefault("GDAL_CACHEMAX", "256")

ResamplingName = Literal["nearest", "bilinear", "cubic", "average", "mode"]

TILE = 512
"""Side of a tile of the files that are written; blocks of a multiple of it are written without compressing twice."""


def crs_name(crs: Any, where: str) -> str | None:
    """A CRS as `EPSG:n` where it has such a code (also if its header lost it), else as WKT; None for none.

    Raises:
        SettingsError: if it is text that names no CRS.
    """
    if crs is None:
        return None
    try:
        known = rasterio.crs.CRS.from_user_input(crs)
    except RasterioError as error:
        raise SettingsError(f"{where}: the CRS {crs!r} is not known: {error}", "EPSG:n, WKT or PROJ") from None
    if not known:
        return None
    code = known.to_epsg()
    return f"EPSG:{code}" if code else str(known.to_wkt())


def _window(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col, window.row, window.width, window.height)


@dataclass(frozen=True)
class GdalRaster:
    """One file that GDAL reads, on its own grid or warped lazily onto another; a `Raster`.

    Datasets are opened once per thread, and again after the object was sent to another process.

    Args:
        path: file or GDAL address.
        decoding: numbers to values.
        band_numbers: the bands to use, from 1; None for all.
        assumed_crs: the CRS to take where the file says none.
        onto: the grid to warp onto; None reads the file's own.
        resampling: how, if the grids differ.
    """

    path: str
    decoding: Decoding = Decoding()
    band_numbers: tuple[int, ...] | None = None
    assumed_crs: str | None = None
    onto: Grid | None = None
    resampling: ResamplingName = "bilinear"
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_open", threading.local())

    @cached_property
    def _header(self) -> dict[str, Any]:
        with self._dataset() as source:
            own_crs = crs_name(source.crs, self.path) or self.assumed_crs
            return {
                "grid": Grid(source.height, source.width, tuple(source.transform)[:6], own_crs),
                "count": source.count,
                "dtypes": source.dtypes,
                "nodata": source.nodata,
                "masked": any(MaskFlags.per_dataset in flags for flags in source.mask_flag_enums),
                "scales": source.scales,
                "offsets": source.offsets,
                "names": source.descriptions,
            }

    def _dataset(self) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                return rasterio.open(self.path)
        except RasterioError as error:
            if "://" not in self.path and not self.path.startswith("/vsi") and not Path(self.path).exists():
                raise MissingFileError(f"there is no file {self.path}", "a raster", "check the path") from None
            raise SceneError(
                f"{self.path} cannot be opened: {error}", "a raster that GDAL reads, whole", "check or fetch it again"
            ) from None

    @property
    def own_grid(self) -> Grid:
        """The grid of the file itself."""
        grid: Grid = self._header["grid"]
        return grid

    @property
    def grid(self) -> Grid:
        """The grid that it is read on."""
        return self.own_grid if self.onto is None else self.onto

    @property
    def bands(self) -> int:
        """Number of bands that are read."""
        return len(self.band_numbers) if self.band_numbers else int(self._header["count"])

    @property
    def dtype(self) -> str:
        """The data type in the file."""
        return str(self._header["dtypes"][0])

    @property
    def warped(self) -> bool:
        """Whether the file lies on another grid than it is read on."""
        return self.onto is not None and self.onto != self.own_grid

    def _numbers(self) -> list[int]:
        return list(self.band_numbers) if self.band_numbers else list(range(1, self.bands + 1))

    @cached_property
    def _decoding(self) -> Decoding:
        """The settings win over the header's nodata, scale and offset."""
        header = self._header
        result = self.decoding
        if result.nodata is None:
            result = replace(result, nodata=header["nodata"])
        index = self._numbers()[0] - 1
        if result.scale == 1.0 and result.offset == 0.0:
            result = replace(result, scale=header["scales"][index], offset=header["offsets"][index])
        return result

    @property
    def declares_nan(self) -> bool:
        """Whether NaN is the declared nodata value."""
        return self._decoding.nodata is not None and bool(np.isnan(self._decoding.nodata))

    def check(self) -> None:
        """Looks at the header without reading pixels.

        Raises:
            SceneError: if the file is missing or broken, or lacks a band.
            GridError: if it has to be warped and has no CRS, or does not overlap the grid.
        """
        count = self._header["count"]
        beyond = [number for number in self._numbers() if not 1 <= number <= count]
        if beyond:
            raise SceneError(
                f"{self.path} has {count} bands, not the bands {beyond}", f"bands from 1 to {count}", "mend `bands`"
            )
        if not self.warped or self.onto is None:
            return
        if self.own_grid.crs is None:
            raise GridError(
                f"{self.path} has no CRS and lies on another grid than the reference ({self.own_grid})",
                f"the reference grid ({self.onto}), or a CRS to warp from",
                "name its CRS by `crs: EPSG:n` if you know it",
            )
        if self.onto.crs is None:
            raise GridError(
                f"{self.path} cannot be placed: the reference grid has no CRS", "a reference with a CRS", "name it"
            )
        own = _bounds(self.own_grid)
        try:
            left, bottom, right, top = transform_bounds(self.own_grid.crs, self.onto.crs, *own)
        except RasterioError as error:
            raise GridError(f"{self.path} cannot be brought to {self.onto.crs}: {error}", "", "check its CRS") from None
        other = _bounds(self.onto)
        if left >= other[2] or right <= other[0] or bottom >= other[3] or top <= other[1]:
            raise GridError(
                f"{self.path} does not overlap the reference grid: it covers x {left:.7g} to {right:.7g}, "
                f"y {bottom:.7g} to {top:.7g}",
                f"x {other[0]:.7g} to {other[2]:.7g}, y {other[1]:.7g} to {other[3]:.7g} (in {self.onto.crs[:20]})",
                "check that both files show the same place, and their CRS",
            )

    def _reader(self) -> Any:
        reader = getattr(self._open, "reader", None)
        if reader is None:
            source = self._dataset()
            if self.warped and self.onto is not None:
                categorical = self.resampling in ("nearest", "mode")
                nodata = self._decoding.nodata
                reader = WarpedVRT(
                    source,
                    src_crs=self.own_grid.crs,
                    crs=self.onto.crs,
                    transform=rasterio.Affine(*self.onto.transform),
                    height=self.onto.height,
                    width=self.onto.width,
                    resampling=Resampling[self.resampling],
                    src_nodata=nodata,
                    nodata=nodata,
                    add_alpha=nodata is None,
                    dtype=None if categorical else "float32",
                )
            else:
                reader = source
            self._open.reader = reader
        return reader

    def read_numbers(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The numbers as they are in the file, (C, height, width), and where a mask band says there are none."""
        reader = self._reader()
        try:
            numbers = reader.read(self._numbers(), window=_window(window))
            outside: NDArray[np.bool_] | None = None
            if self.warped and self._decoding.nodata is None:
                outside = reader.read(reader.count, window=_window(window)) == 0
            elif self._header["masked"]:
                outside = reader.dataset_mask(window=_window(window)) == 0
        except RasterioError as error:
            raise SceneError(
                f"{self.path} cannot be read at row {window.row}, column {window.col}: {error}",
                "a whole file",
                "fetch it again; it may be truncated",
            ) from None
        return numbers, outside

    def read(self, window: Window) -> NDArray[np.float32]:
        """Reads a window inside the grid: (C, height, width) float32, NaN where there is no data."""
        numbers, outside = self.read_numbers(window)
        values = self._decoding(numbers)
        if outside is not None:
            values[:, outside] = np.nan
        return values

    def undeclared_nan(self, window: Window) -> int:
        """Pixels of a window that hold a NaN which the file does not declare as nodata."""
        return self._decoding.undeclared_nan(self.read_numbers(window)[0])

    def read_codes(self) -> NDArray[np.generic]:
        """The first band whole, as the codes of labels: (H, W); `UNLABELLED` where there is no data."""
        numbers, outside = self.read_numbers(self.grid.window)
        codes = numbers[0]
        missing = np.zeros(codes.shape, dtype=bool) if outside is None else outside
        if self._decoding.nodata is not None:
            missing |= np.isnan(codes) if self.declares_nan else codes == self._decoding.nodata
        if missing.any():
            codes = np.where(missing, UNLABELLED, codes)
        return codes


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    corners = [grid.at(col, row) for col in (0, grid.width) for row in (0, grid.height)]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def burn(shapes: Sequence[tuple[Any, int]], grid: Grid, *, all_touched: bool) -> NDArray[np.uint8]:
    """Burns geometries into a grid.

    Args:
        shapes: (geometry, code) in the grid's CRS; later ones win.
        grid: the grid.
        all_touched: every pixel that a geometry touches, instead of those whose centre lies in it.

    Returns:
        (H, W) uint8 codes, `UNLABELLED` elsewhere.
    """
    if not shapes:
        return np.full((grid.height, grid.width), UNLABELLED, dtype=np.uint8)
    burnt: NDArray[np.uint8] = rasterize(
        shapes,
        out_shape=(grid.height, grid.width),
        transform=rasterio.Affine(*grid.transform),
        fill=UNLABELLED,
        all_touched=all_touched,
        dtype="uint8",
    )
    return burnt


class GeotiffWriter:
    """Writes one GeoTIFF, window by window; it is whole when the `with` block ends well, else absent.

    Args:
        path: the file to make.
        grid: where it lies.
        bands: number of bands.
        nodata: the value of pixels without data.
        names: one per band.
        legend: gives band 1 the legend's colours and category names.
        scale: value = number * scale, for those who read the file.
        tags: free metadata.

    Raises:
        OutputError: if the file cannot be made or written.
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
    ) -> None:
        self.path = Path(path)
        self.legend = legend
        self._stack = contextlib.ExitStack()
        self._partial = self._stack.enter_context(whole_file(self.path))
        try:
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
                predictor=2 if np.dtype(dtype).kind in "iu" and legend is None else 1,
                bigtiff="if_safer",
                interleave="band",
            )
        except (OSError, RasterioError) as error:
            self._stack.__exit__(type(error), error, None)
            raise unwritable(self.path, error) from None
        if legend is not None:
            self._file.write_colormap(1, {c.code: (*c.rgb, 255) for c in legend})
        if scale != 1.0:
            self._file.scales = [scale] * bands
        for index, name in enumerate(names, start=1):
            self._file.set_band_description(index, name)
        self._file.update_tags(**(tags or {}))

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Writes (bands, height, width), or (height, width) for one band, at a window inside the grid."""
        try:
            self._file.write(values if values.ndim == 3 else values[np.newaxis], window=_window(window))
        except (OSError, RasterioError) as error:
            raise unwritable(self.path, error) from None

    def __enter__(self) -> GeotiffWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if error is None:
                self._verify()
        except (OSError, RasterioError) as fault:
            error = unwritable(self.path, fault)
            self._stack.__exit__(type(error), error, None)
            raise error from None
        self._stack.__exit__(kind, error, trace)
        if error is None and self.legend is not None:
            _write_category_names(self.path, self.legend)

    def _verify(self) -> None:
        """GDAL tells of a full disk at closing only in its log; a file that was cut short fails in its last tile."""
        with rasterio.open(self._partial) as written:
            for band in range(1, written.count + 1):
                *_, (_, last) = written.block_windows(band)
                written.read(band, window=last)


def _write_category_names(path: Path, legend: Legend) -> None:
    """GDAL keeps the names of categories in a file beside the raster, by place: unused codes get empty names."""
    names = {c.code: c.name for c in legend}
    lines = "".join(f"<Category>{escape(names.get(code, ''))}</Category>" for code in range(max(names) + 1))
    text = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{lines}</CategoryNames></PAMRasterBand></PAMDataset>\n'
    write_text(path.with_name(path.name + ".aux.xml"), text)


def write_raster(path: str | Path, grid: Grid, values: NDArray[Any], **options: Any) -> None:
    """Writes a whole array, (C, H, W) or (H, W), at once; options as in `GeotiffWriter`."""
    array = values if values.ndim == 3 else values[np.newaxis]
    with GeotiffWriter(path, grid, bands=array.shape[0], dtype=str(array.dtype), **options) as file:
        file.write(grid.window, array)
