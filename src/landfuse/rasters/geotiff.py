"""GeoTIFF and everything else that GDAL reads. The `*geotiff*.py` files alone import rasterio."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject, transform, transform_bounds
from rasterio.windows import Window as RasterioWindow

from landfuse.errors import GridError, MissingFileError, SceneError, SettingsError
from landfuse.legend import UNLABELLED
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.grid import Grid, horizontal
from landfuse.rasters.windows import Window

# GDAL keeps decoded tiles in 5% of the machine's memory by default; P2 states its own bound.
os.environ.setdefault("GDAL_CACHEMAX", "256")

ResamplingName = Literal["nearest", "bilinear", "cubic", "average", "mode"]

GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError)
"""What rasterio raises; its own errors, and those of GDAL and PROJ that it lets through."""

_MOST_BANDS = 10_000
"""With so many, rasterio takes 10 s for a window, however small, and the square of that with more."""

_OPEN_FILES = 64
"""Datasets that a thread keeps open; systems allow a process some 1,000 (macOS 256), a region has more tiles."""


class _Reader(threading.local):
    """The dataset that a thread reads a raster from; None before it is opened, and after it was closed for others."""

    dataset: Any = None
    source: Any = None  # under a warped dataset

    def close(self) -> None:
        for dataset in (self.dataset, self.source):
            if dataset is not None:
                dataset.close()
        self.dataset = self.source = None


class _OpenReaders(threading.local):
    """The readers of a thread that have an open dataset, the latest used last."""

    def __init__(self) -> None:
        self.readers: OrderedDict[int, weakref.ref[_Reader]] = OrderedDict()

    def touch(self, reader: _Reader) -> None:
        """Marks a reader as used, and closes those that were not used for long."""
        self.readers[id(reader)] = weakref.ref(reader)
        self.readers.move_to_end(id(reader))
        while len(self.readers) > _OPEN_FILES:
            oldest = self.readers.popitem(last=False)[1]()
            if oldest is not None:
                oldest.close()


_open_readers = _OpenReaders()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Opens files without rasterio's warning of those without georeference, which is handled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def crs_name(crs: Any, where: str) -> str | None:
    """A CRS as `EPSG:n` where it has such a code (also if its header lost it), else as WKT; None for none.

    Raises:
        SettingsError: if it is text that names no CRS.
    """
    if crs is None:
        return None
    try:
        known = rasterio.crs.CRS.from_user_input(crs)
    except GDAL_ERRORS as error:
        raise SettingsError(f"{where}: the CRS {crs!r} is not known: {error}", "EPSG:n, WKT or PROJ") from None
    if not known:
        return None
    if known.to_wkt().startswith(("COMPD_CS", "GEOGCRS", "PROJCRS")):  # heights do not move a pixel
        known = rasterio.crs.CRS.from_wkt(horizontal(known.to_wkt()).to_wkt())
    code = known.to_epsg()
    return f"EPSG:{code}" if code else str(known.to_wkt())


def rasterio_window(window: Window) -> RasterioWindow:
    """A window as rasterio takes it."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


@dataclass(frozen=True)
class GdalRaster:
    """One file that GDAL reads, on its own grid or warped lazily onto another; a `Raster`.

    Each thread opens its own dataset, and again after the object was sent to another process. A band that the file
    marks as alpha says where there is data; it is no band of values unless `band_numbers` name it.

    Args:
        path: file or GDAL address.
        decoding: numbers to values.
        band_numbers: the bands to use, from 1; None for all but alpha.
        assumed_crs: the CRS to take if the file has none.
        onto: the grid to warp onto; None reads the file's own.
        resampling: how, if the grids differ.
        placed: the grid to take if the file has no georeference and this grid's size.
    """

    path: str
    decoding: Decoding = Decoding()
    band_numbers: tuple[int, ...] | None = None
    assumed_crs: str | None = None
    onto: Grid | None = None
    resampling: ResamplingName = "bilinear"
    placed: Grid | None = None
    _open: _Reader = field(default_factory=_Reader, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_open", _Reader())

    @cached_property
    def _header(self) -> dict[str, Any]:
        with self._dataset() as source:
            own_crs = crs_name(source.crs, self.path) or self.assumed_crs
            return {
                "grid": Grid(source.height, source.width, tuple(source.transform)[:6], own_crs),
                "count": source.count,
                "dtypes": source.dtypes,
                "nodata": source.nodata,
                "masked": any(
                    MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums
                ),
                "alpha": [n for n, kind in enumerate(source.colorinterp, start=1) if kind == ColorInterp.alpha],
                "scales": source.scales,
                "offsets": source.offsets,
                "names": source.descriptions,
                "wavelengths": [_nanometres(source, number) for number in source.indexes],
            }

    def _dataset(self) -> Any:
        try:
            with quietly():
                return rasterio.open(self.path)
        except GDAL_ERRORS as error:
            if "://" not in self.path and not self.path.startswith("/vsi") and not Path(self.path).exists():
                raise MissingFileError(f"there is no file {self.path}", "a raster", "check the path") from None
            raise SceneError(
                f"{self.path} cannot be opened: {error}", "a raster that GDAL reads, whole", "check or fetch it again"
            ) from None

    def files(self) -> list[Path]:
        """All files that its pixels come from: those beside it, the sources of a VRT and theirs, archives."""
        found: dict[str, Path] = {}
        listed = [self.path]
        with quietly():
            while listed:
                name = listed.pop()
                if name not in found:
                    found[name] = _on_disk(name)
                    with contextlib.suppress(*GDAL_ERRORS), rasterio.open(name) as source:  # a header is no raster
                        listed += source.files
        return sorted(set(found.values()))

    @property
    def own_grid(self) -> Grid:
        """The grid of the file itself."""
        grid: Grid = self._header["grid"]
        home = self.placed
        if home and not grid.georeferenced and (grid.height, grid.width) == (home.height, home.width):
            return home
        return grid

    @property
    def grid(self) -> Grid:
        """The grid that it is read on."""
        return self.own_grid if self.onto is None else self.onto

    @property
    def bands(self) -> int:
        """See `Raster`."""
        return len(self._numbers())

    @property
    def dtype(self) -> str:
        """The data type in the file."""
        dtypes = self._header["dtypes"]
        number = self._numbers()[0]
        return str(dtypes[number - 1 if number <= len(dtypes) else 0])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands; none where one has no name, or they are only counted (`Band 1`, `Band 2`)."""
        names = {number: self._header["names"][number - 1] or "" for number in self._numbers()}
        counted = all(re.fullmatch(rf"(band[ _]?)?0*{number}", name, re.I) for number, name in names.items())
        return () if counted or not all(names.values()) else tuple(names.values())

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Wavelengths of the bands, nm; none where one is not known."""
        found = [self._header["wavelengths"][number - 1] for number in self._numbers()]
        return tuple(found) if all(found) else ()

    def with_bands(self, places: Sequence[int]) -> GdalRaster:
        """Some of the bands, in this order; places count from 0."""
        numbers = self._numbers()
        return replace(self, band_numbers=tuple(numbers[place] for place in places), _open=_Reader())

    @property
    def warped(self) -> bool:
        """Whether the file's grid is not the one that it is read on."""
        return self.onto is not None and self.onto != self.own_grid

    def _numbers(self) -> list[int]:
        if self.band_numbers:
            return list(self.band_numbers)
        every = range(1, self._header["count"] + 1)
        return [number for number in every if number not in self._header["alpha"]] or list(every)

    @property
    def _alpha(self) -> int | None:
        """The band that says where there is data, if it is not read as values."""
        return next((number for number in self._header["alpha"] if number not in self._numbers()), None)

    @cached_property
    def _decoding(self) -> Decoding:
        """The settings win over the header's nodata, scales and offsets."""
        header, own = self._header, self.decoding
        return replace(
            own,
            nodata=header["nodata"] if own.nodata is None else own.nodata,
            scale=self._of_bands(header["scales"]) if own.scale is None else own.scale,
            offset=self._of_bands(header["offsets"]) if own.offset is None else own.offset,
        )

    def _of_bands(self, numbers: Sequence[float]) -> float | tuple[float, ...]:
        chosen = tuple(numbers[number - 1] for number in self._numbers())
        return chosen[0] if len(set(chosen)) == 1 else chosen

    @property
    def nodata(self) -> float | None:
        """The number that means no data, by the settings, else the header."""
        return self._decoding.nodata

    @property
    def declares_nan(self) -> bool:
        """Whether NaN is the declared nodata value."""
        return self._decoding.nodata is not None and bool(np.isnan(self._decoding.nodata))

    def check(self) -> None:
        """Checks the header without reading pixels.

        Raises:
            SceneError: if the file is missing or broken, or lacks a band.
            GridError: if it has to be warped and cannot be, or does not overlap the grid.
        """
        count = self._header["count"]
        beyond = [number for number in self._numbers() if not 1 <= number <= count]
        if beyond:
            raise SceneError(
                f"{self.path} has {count} bands, not the bands {beyond}", f"bands from 1 to {count}", "correct `bands`"
            )
        if self.bands > _MOST_BANDS:
            raise SceneError(
                f"{self.path} has {self.bands:,} bands",
                f"at most {_MOST_BANDS:,}, since all are read at once",
                "choose some by `bands`",
            )
        if not self.warped or self.onto is None:
            return
        if self.own_grid.crs is None:
            raise GridError(
                f"{self.path} has no CRS and is on another grid than the reference ({self.own_grid})",
                f"the reference grid ({self.onto}), or a CRS to warp from",
                "name its CRS by `crs: EPSG:n` if you know it",
            )
        if self.onto.crs is None:
            raise GridError(
                f"{self.path} ({self.own_grid}) cannot be placed: the reference grid has no CRS ({self.onto})",
                "a reference with a CRS",
                "name the reference's CRS by `crs: EPSG:n`, or make this raster the `reference`",
            )
        if self._header["alpha"] and self._alpha is None:
            raise GridError(
                f"{self.path} is on another grid, and its band {self._header['alpha'][0]} is marked as alpha",
                "values only, to warp them",
                "leave that band out of `bands`, or write the raster again without the mark",
            )
        own, own_crs = _bounds(self.own_grid), self.own_grid.crs
        try:
            left, bottom, right, top = transform_bounds(own_crs, self.onto.crs, *own)
        except GDAL_ERRORS as error:
            raise GridError(
                f"{self.path} cannot be brought to the reference grid: {str(error)[:200]}",
                f"two CRS that PROJ can turn into each other, not {own_crs[:60]} and {self.onto.crs[:60]}",
                "check both; a local one has to be replaced by that of the country or the world",
            ) from None
        other = _bounds(self.onto)
        if left >= other[2] or right <= other[0] or bottom >= other[3] or top <= other[1]:
            raise GridError(
                f"{self.path} does not overlap the reference grid: it covers x {left:.7g} to {right:.7g}, "
                f"y {bottom:.7g} to {top:.7g}",
                f"x {other[0]:.7g} to {other[2]:.7g}, y {other[1]:.7g} to {other[3]:.7g} (in {self.onto.crs[:20]})",
                "check that both files show the same place, and their CRS",
            )

    def _reader(self) -> Any:
        mine = self._open
        if mine.dataset is None:
            source = self._dataset()
            if self.warped and self.onto is not None:
                categorical = self.resampling in ("nearest", "mode")
                nodata = self._decoding.nodata
                mine.dataset = WarpedVRT(
                    source,
                    src_crs=self.own_grid.crs,
                    crs=self.onto.crs,
                    transform=rasterio.Affine(*self.onto.transform),
                    height=self.onto.height,
                    width=self.onto.width,
                    resampling=Resampling[self.resampling],
                    src_nodata=nodata,
                    nodata=nodata,
                    add_alpha=nodata is None and not self._header["alpha"],
                    dtype=None if categorical else "float32",
                    # Else nodata in one band only is taken for a value and mixed with its neighbours.
                    UNIFIED_SRC_NODATA="NO",
                    **_scales(self.own_grid, self.onto),
                )
                mine.source = source
            else:
                mine.dataset = source
        _open_readers.touch(mine)
        return mine.dataset

    def read_numbers(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The numbers as they are in the file, (C, height, width), and where a mask band says there are none."""
        try:
            with np.errstate(over="ignore"):  # a nodata of -1.8e308 in float64 files
                reader = self._reader()
                numbers = reader.read(self._numbers(), window=rasterio_window(window))
                outside: NDArray[np.bool_] | None = None
                if self._alpha is not None:
                    outside = reader.read(self._alpha, window=rasterio_window(window)) == 0
                elif self.warped and self._decoding.nodata is None:
                    outside = reader.read(reader.count, window=rasterio_window(window)) == 0
                elif self._header["masked"]:
                    outside = reader.dataset_mask(window=rasterio_window(window)) == 0
        except GDAL_ERRORS as error:
            raise SceneError(
                f"{self.path} cannot be read at row {window.row}, column {window.col}: {error}",
                "a whole file",
                "fetch it again; it may be truncated",
            ) from None
        return numbers, outside

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        numbers, outside = self.read_numbers(window)
        values = self._decoding(numbers)
        if outside is not None:
            values[:, outside] = np.nan
        return values

    def undeclared_nan(self, window: Window) -> int:
        """See `Raster`."""
        return self._decoding.undeclared_nan(*self.read_numbers(window))

    def read_codes(self) -> NDArray[np.generic]:
        """The first band whole, as the codes of labels: (H, W); `UNLABELLED` where there is no data."""
        numbers, outside = self.read_numbers(self.grid.window)
        codes = numbers[0]
        missing = np.zeros(codes.shape, dtype=bool) if outside is None else outside
        if self._decoding.nodata is not None:
            missing |= np.isnan(codes) if self.declares_nan else codes == self._decoding.nodata
        if missing.any():
            holds = codes.dtype.kind == "f" or np.iinfo(codes.dtype).max >= UNLABELLED
            wide = codes if holds else codes.astype(np.int64)  # int8 cannot hold 255
            codes = np.where(missing, UNLABELLED, wide)
        return codes


def mask_onto(mask: NDArray[np.bool_], own: Grid, onto: Grid) -> NDArray[np.bool_]:
    """A mask on another grid, both with a CRS: true where a pixel shares ground with a true one."""
    result = np.zeros((onto.height, onto.width), np.uint8)
    reproject(
        mask.astype(np.uint8),
        result,
        src_transform=rasterio.Affine(*own.transform),
        src_crs=own.crs,
        dst_transform=rasterio.Affine(*onto.transform),
        dst_crs=onto.crs,
        resampling=Resampling.max,
    )
    return result > 0


def _on_disk(name: str) -> Path:
    """The file that GDAL reads under a name: of a member of an archive, the archive."""
    if not name.startswith("/vsi"):
        return Path(name)
    path = Path(re.sub(r"^(/vsi[a-z0-9_]+/)+", "", name).replace("{", "").replace("}", ""))
    return next((place for place in (path, *path.parents) if place.is_file()), path)


def _nanometres(source: Any, number: int) -> float | None:
    """The wavelength of a band, as ENVI headers or GDAL's domain IMAGERY have it; None where it is not known."""
    own = source.tags(number)
    text, unit = own.get("wavelength"), own.get("wavelength_units", "").lower()
    if text is None:
        text, unit = source.tags(number, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM"), "um"
    factor = 1.0 if unit.startswith(("nm", "nano")) else 1000.0 if unit.startswith(("um", "µm", "micro")) else 0.0
    try:
        return float(text) * factor or None
    except (TypeError, ValueError):
        return None


def _scales(source: Grid, onto: Grid) -> dict[str, str]:
    """How many pixels of the target one of the source spans, across and down, in the middle of the target.

    GDAL would guess it from the sides of windows, and smooths where the grids are turned against each other.
    """
    col, row = onto.width / 2, onto.height / 2
    places = [onto.at(col, row), onto.at(col + 1, row), onto.at(col, row + 1)]
    xs, ys = transform(onto.crs, source.crs, [x for x, _ in places], [y for _, y in places])
    if not np.isfinite([*xs, *ys]).all():
        return {}
    a, b, _, d, e, _ = source.transform
    steps = np.array([[xs[1] - xs[0], xs[2] - xs[0]], [ys[1] - ys[0], ys[2] - ys[0]]])  # of one target pixel
    across, down = np.hypot(*np.linalg.solve(np.array([[a, b], [d, e]]), steps).T)
    return {"XSCALE": f"{1 / across:.9g}", "YSCALE": f"{1 / down:.9g}"} if across and down else {}


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    corners = [grid.at(col, row) for col in (0, grid.width) for row in (0, grid.height)]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(xs), min(ys), max(xs), max(ys)
