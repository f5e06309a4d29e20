"""GeoTIFF and everything else that GDAL reads. The `*geotiff*.py` files alone import rasterio."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import threading
import warnings
import weakref
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote
from xml.sax.saxutils import unescape

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio._path import _parse_path, _vsi_path
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import from_gcps
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window as RasterioWindow

from landfuse.errors import GridError, MissingFileError, SceneError, SettingsError, few
from landfuse.files import whole_file
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.grid import SAME_CORNER, Grid, Transform, horizontal
from landfuse.rasters.windows import Window

# GDAL keeps decoded tiles in 5% of the machine's memory by default; P2 states its own bound.
os.environ.setdefault("GDAL_CACHEMAX", "256")
# Else GDAL warps large windows as they are instead of by fixed blocks, and its values depend on the window (P1).
os.environ["GDAL_VRT_WARP_USE_DATASET_RASTERIO"] = "NO"
# What a server refuses for the moment is asked for again after 1, 2, 4 s; one that is silent is given up.
for _key, _value in {"MAX_RETRY": 3, "RETRY_DELAY": 1, "CONNECTTIMEOUT": 30, "LOW_SPEED_TIME": 60}.items():
    os.environ.setdefault(f"GDAL_HTTP_{_key}", str(_value))
os.environ.setdefault("GDAL_HTTP_LOW_SPEED_LIMIT", "1")

ResamplingName = Literal["nearest", "bilinear", "cubic", "average", "mode"]

GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError, SystemError)  # the last where GDAL does not say why
"""What rasterio raises; its own errors, and those of GDAL and PROJ that it lets through."""

_MOST_BANDS = 10_000
"""With so many, rasterio takes 10 s for a window, however small, and the square of that with more."""

NOWHERE = -(2.0**127)
"""Nodata of all bands while they are warped; no program writes this one."""

_POINTS = {"ground control points": "", "RPCs": "-rpc ", "geolocation arrays": "-geoloc "}
"""What places pixels without a geotransform, and the option of gdalwarp that uses it."""

BY_GDAL = "e.g. by `gdal_translate -a_srs EPSG:n -a_ullr LEFT TOP RIGHT BOTTOM`"
"""How a raster is georeferenced."""

_NO_MASK = {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}
"""Flags of masks that say nothing beyond the bands themselves."""

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
        """Marks a reader as used."""
        self.readers[id(reader)] = weakref.ref(reader)
        self.readers.move_to_end(id(reader))
        self.close(_OPEN_FILES)

    def close(self, kept: int) -> None:
        """Closes those that were not used for long."""
        while len(self.readers) > kept:
            oldest = self.readers.popitem(last=False)[1]()
            if oldest is not None:
                oldest.close()


_open_readers = _OpenReaders()


@contextlib.contextmanager
def readers_closed() -> Iterator[None]:
    """Closes the datasets of this thread at the end of the block, with what GDAL keeps of them in memory."""
    try:
        yield
    finally:
        _open_readers.close(0)


_quiet_lock, _quiet_filters, _quiet_users = threading.Lock(), contextlib.ExitStack(), 0


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Opens files without rasterio's warning of those without georeference, which is handled.

    Threads share the filters of warnings: the last one restores them.
    """
    global _quiet_users
    with _quiet_lock:
        if not _quiet_users:
            _quiet_filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users:
                _quiet_filters.close()


def crs_name(crs: Any, where: str) -> str | None:
    """A CRS as `EPSG:n` where it has such a code (also if its header lost it), else as WKT; None for none."""
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


def vrt_of(grid: Grid) -> ElementTree.Element:
    """A VRT without bands, on a grid."""
    root = ElementTree.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        ElementTree.SubElement(root, "SRS").text = grid.crs
    if grid.georeferenced:
        a, b, c, d, e, f = grid.transform
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(x)) for x in (c, a, b, f, d, e))
    return root


_ADDRESS = re.compile(r"[a-z0-9+]+://|/vsi")
_ARCHIVE = re.compile(r"(zip|tar|gzip)://")
_BEFORE_FILE = re.compile(
    r"/vsi(?:zip|tar|gzip|7z|rar)/|vrt://|(?:BAG|GPKG|HDF5|NETCDF|S1\d\d|SENTINEL[12]_\w+|ZARR|"
    r"GTIFF_DIR:(?:off:)?\d+|HDF4_\w+:\w+|NITF_IM:\d+):\"?"
)
"""What stands before the name of a file where GDAL names something in it."""


_REMOTE = re.compile(r"https?://|/vsi(curl|s3|gs|az|adls|oss|swift)\b")
"""What lies on a server."""


def is_file_name(path: str) -> bool:
    """Whether it is the name of a file, not an address or GDAL's name of something in a file."""
    return not (_ADDRESS.match(path) or _BEFORE_FILE.match(path))


def seen_from(folder: str, path: str) -> str:
    """A path as GDAL opens it, its file looked for in a folder unless it is absolute.

    Args:
        folder: a folder, an archive (`/vsizip/...`) or an address.
        path: a file, an address, an archive and a file in it (`zip://a.zip!/b.tif`, `/vsizip/a.zip/b.tif`), or what
            GDAL calls one raster of several in a file (`GPKG:a.gpkg:b`).
    """
    path = re.sub(r"^file://(?=/)", "", path)
    archive = _ARCHIVE.match(path)
    if archive:
        path = f"/vsi{archive[1]}/" + re.sub("!/?", "/", path[archive.end() :], count=1)
    before = _BEFORE_FILE.match(path)
    if before:
        return before[0] + seen_from(folder, path[before.end() :])
    if _ADDRESS.match(path) or Path(path).is_absolute():
        return path
    if is_file_name(folder) and "://" not in path:  # as within an HDF5 file
        return str(Path(folder) / path)
    return f"{folder.rstrip('/')}/{path}"


def rasterio_window(window: Window) -> RasterioWindow:
    """A window as rasterio takes it."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


@dataclass(frozen=True)
class GdalRaster:
    """One file that GDAL reads, on its own grid or warped lazily onto another; a `Raster`.

    Each thread opens its own dataset, and again after the object was sent to another process. A band that the file
    marks as alpha says where there is data unless `band_numbers` name it.

    Args:
        path: file or GDAL address.
        band_numbers: the bands to use, from 1; empty for all, None for all but those marked as alpha or as bad.
        assumed_crs: the CRS to take if the file has none.
        onto: the grid to warp onto; None reads the file's own.
        resampling: how, if the grids differ.
        placed: the grid to take if the file has no georeference and this grid's size.
        turns: whole turns that are added to the file's longitudes.
    """

    path: str
    decoding: Decoding = Decoding()
    band_numbers: tuple[int, ...] | None = None
    assumed_crs: str | None = None
    onto: Grid | None = None
    resampling: ResamplingName = "bilinear"
    placed: Grid | None = None
    turns: int = 0
    _open: _Reader = field(default_factory=_Reader, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_open", _Reader())

    @cached_property
    def _header(self) -> dict[str, Any]:
        with self._dataset() as source:
            if not source.count:
                raise SceneError(
                    f"{self.path} holds no bands" + (", but several rasters" if source.subdatasets else ""),
                    "one raster",
                    "name one of them as `path`: " + few(source.subdatasets)
                    if source.subdatasets
                    else "check the path",
                )
            transform, crs = _place(source, self.path)
            own_crs = crs_name(crs, self.path) or self.assumed_crs
            grid = Grid(source.height, source.width, transform, own_crs)
            if own_crs and not crs and not grid.located:
                raise GridError(
                    f"{self.path} does not say where its corner is and how large its pixels are; `crs` is not enough",
                    "a geotransform, or a world file beside it",
                    f"georeference it, {BY_GDAL}; or say `georeferenced: false`, without `crs`",
                )
            flags = dict(enumerate(source.mask_flag_enums, start=1))
            own_masks = [n for n, kinds in flags.items() if not {*kinds} & _NO_MASK]
            shared = [n for n in own_masks if MaskFlags.per_dataset in flags[n]]
            good = [float(number) for number in re.findall(r"[\d.]+", source.tags(ns="ENVI").get("bbl", ""))]
            return {
                "grid": grid,
                "count": source.count,
                "dtypes": source.dtypes,
                "nodata": source.nodatavals,
                "masks": shared[:1] or own_masks,
                "alpha": [n for n, kind in enumerate(source.colorinterp, start=1) if kind == ColorInterp.alpha],
                "bad": [str(n) for n, kept in enumerate(good, start=1) if not kept and len(good) == source.count],
                "scales": source.scales,
                "offsets": source.offsets,
                "names": source.descriptions,
                "colours": source.colormap(1) if source.colorinterp[0] == ColorInterp.palette else {},
                "tags": source.tags(),
                "wavelengths": [_nanometres(source, number) for number in source.indexes],
                "others": source.subdatasets,
                "files": source.files,
            }

    def _dataset(self) -> Any:
        try:
            with quietly():
                return rasterio.open(self.path)
        except GDAL_ERRORS as error:
            path = Path(self.path)
            if is_file_name(self.path) and not path.exists():
                raise MissingFileError(f"there is no file {self.path}", "a raster", "check the path") from None
            if path.suffix.lower() == ".hdr":
                beside = [str(p) for p in sorted(path.parent.glob(glob.escape(path.stem) + "*")) if p != path]
                raise SceneError(
                    f"{self.path} is the header of a raster",
                    "its data file",
                    "name that: " + (few(beside) or "it is not there"),
                ) from None
            raise self._unreadable(error, "be opened") from None

    def _unreadable(self, error: BaseException, what: str) -> SceneError:
        """The error that names the file, or of a VRT the source, and what GDAL or the server says."""
        why = str(error.__cause__ or error)
        name = _culprit(self.path, why)
        via = f" (in {self.path})" if name != self.path else ""
        do = "check or fetch it again; it may be truncated"
        if _REMOTE.match(name):
            do = "try again later; an address that is refused may need a password or a new signature"
        return SceneError(f"{_shown(name)} cannot {what}: {why}{via}", "a raster that GDAL reads, whole", do)

    @property
    def stored(self) -> list[tuple[str, str, float | None, float | None, float | None, float | None]]:
        """Of each band in use its name, type, nodata, scale, offset and wavelength in micrometres, as the file says."""
        header, columns = self._header, ("names", "dtypes", "nodata", "scales", "offsets", "wavelengths")
        found = [[header[column][number - 1] for column in columns] for number in self.numbers]
        return [
            (name or "", dtype, nodata, scale if scale != 1 else None, offset or None, length and length / 1000)
            for name, dtype, nodata, scale, offset, length in found
        ]

    def save_warped(self, path: Path) -> None:
        """Writes a VRT that is warped as this raster is: numbers as they are in the file, `NOWHERE` without data."""
        try:
            reader = self._reader()
        except GDAL_ERRORS as error:
            raise self._unreadable(error, "be opened") from None
        with whole_file(path) as partial:
            rasterio.shutil.copy(reader, partial, driver="VRT")

    def files(self) -> list[Path]:
        """All files that its pixels come from: those beside it, the sources of a VRT and theirs, archives."""
        found: dict[str, Path] = {}
        listed = [self.path]
        with quietly():
            while listed:
                name = listed.pop()
                if name not in found and not _REMOTE.match(name):
                    found[name] = _on_disk(name)
                    known = self.__dict__.get("_header") if name == self.path else None
                    with contextlib.suppress(*GDAL_ERRORS):  # a header is no raster
                        listed += _files(name) if known is None else known["files"]
                        listed += [one for one in _sources(name) if Path(one).is_absolute()]
        return sorted(set(found.values()))

    @property
    def own_grid(self) -> Grid:
        """The grid of the file itself."""
        grid: Grid = self._header["grid"]
        home = self.placed
        if home and not grid.georeferenced and (grid.height, grid.width) == (home.height, home.width):
            return home
        return grid.turned(self.turns) if self.turns else grid

    @property
    def grid(self) -> Grid:
        """The grid that it is read on."""
        return self.own_grid if self.onto is None else self.onto

    @property
    def bands(self) -> int:
        """See `Raster`."""
        return len(self.numbers)

    @property
    def dtype(self) -> str:
        """The data type in the file; those of all bands in use where they differ."""
        dtypes = self._dtypes
        return ", ".join(dtypes if len(set(dtypes)) > 1 else dtypes[:1])

    @property
    def _dtypes(self) -> list[str]:
        return [str(dtype) for n in self.numbers for dtype in self._header["dtypes"][n - 1 : n]]

    @property
    def notes(self) -> list[str]:
        """What of the file is not read as values though nobody said so, in words."""
        header, left_out = self._header, self.band_numbers is None
        found = []
        if self._alpha:
            found.append(f"band {self._alpha} is marked as alpha and read as a mask; `bands: all` reads it as values")
        if left_out and header["bad"]:
            found.append(f"bands marked as bad (bbl) are left out unless `bands` names them: {few(header['bad'])}")
        if header["others"]:
            found.append(
                f"the file holds {len(header['others'])} rasters, of which one is read (`gdalinfo` lists them)"
            )
        return found

    @property
    def tags(self) -> dict[str, str]:
        """What the file says of itself."""
        tags: dict[str, str] = self._header["tags"]
        return tags

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands; none where one has no name, they are only counted (`Band 1`, `Band 2`), or all alike."""
        known = self._header["names"]
        names = {number: known[number - 1] or "" for number in self.numbers}
        counted = all(re.fullmatch(rf"(band[ _]?)?0*{number}", name, re.I) for number, name in names.items())
        alike = len(known) > 1 and len(set(known)) == 1  # xarray gives each the name of the variable
        return () if counted or alike or not all(names.values()) else tuple(names.values())

    @property
    def colours(self) -> dict[int, str]:
        """The colour of each number in the first band's colour table, `#RRGGBB`; empty without one."""
        return {number: "#{:02X}{:02X}{:02X}".format(*rgba[:3]) for number, rgba in self._header["colours"].items()}

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Wavelengths of the bands, nm; none where one is not known."""
        found = [self._header["wavelengths"][number - 1] for number in self.numbers]
        return tuple(found) if all(found) else ()

    def with_bands(self, places: Sequence[int]) -> GdalRaster:
        """Some of the bands, in this order; places count from 0."""
        numbers = self.numbers
        return replace(self, band_numbers=tuple(numbers[place] for place in places))

    @property
    def warped(self) -> bool:
        """Whether the file's grid is not the one that it is read on."""
        return self.onto is not None and self.onto != self.own_grid

    @property
    def numbers(self) -> list[int]:
        """Those of the bands in use, in the file, from 1."""
        every = range(1, self._header["count"] + 1)
        if self.band_numbers is None:
            return [n for n in every if n not in self._header["alpha"] and str(n) not in self._header["bad"]] or list(
                every
            )
        return list(self.band_numbers or every)

    @property
    def _alpha(self) -> int | None:
        """The band that says where there is data, if it is not read as values."""
        return next((number for number in self._header["alpha"] if number not in self.numbers), None)

    @property
    def _decoding(self) -> Decoding:
        """Of what `read_numbers` returns."""
        return replace(self._file_decoding, nodata=NOWHERE) if self.warped else self._file_decoding

    @cached_property
    def _file_decoding(self) -> Decoding:
        """The settings win over the header's nodata, scales and offsets."""
        header, own = self._header, self.decoding
        return replace(
            own,
            nodata=self._of_bands(header["nodata"]) if own.nodata is None else own.nodata,
            scale=self._of_bands(header["scales"]) if own.scale is None else own.scale,
            offset=self._of_bands(header["offsets"]) if own.offset is None else own.offset,
        )

    def _of_bands(self, numbers: Sequence[Any]) -> Any:
        chosen = tuple(numbers[number - 1] for number in self.numbers)
        return chosen[0] if len(set(chosen)) == 1 else chosen

    @property
    def nodata(self) -> float | None:
        """The number that means no data in the first band, by the settings, else the header."""
        nodata = self._decoding.nodata
        return nodata[0] if isinstance(nodata, tuple) else nodata

    def check(self) -> None:
        """Checks the header without reading pixels.

        Raises:
            SceneError: if the file is missing or broken, or lacks a band.
            GridError: if it has to be warped and cannot be, or does not overlap the grid.
        """
        count = self._header["count"]
        beyond = [number for number in self.numbers if not 1 <= number <= count]
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
        if "complex" in self.dtype:
            raise SceneError(
                f"{self.path} holds complex numbers ({self.dtype})",
                "real ones: of a radar image the intensity, which `decibel: true` converts",
                "write re² + im² to a file of its own, and name that",
            )
        if not self.warped or self.onto is None:
            return
        if self.own_grid.crs is None:
            raise GridError(
                f"{self.path} has no CRS and is on another grid than the reference ({self.own_grid})",
                f"the reference grid ({self.onto}), or a CRS to warp from",
                "name its CRS by `crs: EPSG:n` if you know it"
                if self.own_grid.located
                else f"georeference it, {BY_GDAL}",
            )
        if self.onto.crs is None:
            raise GridError(
                f"{self.path} ({self.own_grid}) cannot be placed: the reference grid has no CRS ({self.onto})",
                "a reference with a CRS",
                "name the reference's CRS by `crs: EPSG:n`, or make this raster the `reference`",
            )
        own, other = self.own_grid, self.onto
        try:
            apart = _apart(own, other) and _apart(other, own)  # one of them may not be whole in the other's CRS
            left, bottom, right, top = transform_bounds(own.crs, other.crs, *own.bounds)
        except GDAL_ERRORS as error:
            raise GridError(
                f"{self.path} cannot be brought to the reference grid: {str(error)[:200]}",
                f"two CRS that PROJ can turn into each other, not {own.crs:.60} and {other.crs:.60}",
                "check both; a local one has to be replaced by that of the country or the world",
            ) from None
        if apart:
            there = other.bounds
            raise GridError(
                f"{self.path} does not overlap the reference grid: it covers x {left:.7g} to {right:.7g}, "
                f"y {bottom:.7g} to {top:.7g}",
                f"x {there[0]:.7g} to {there[2]:.7g}, y {there[1]:.7g} to {there[3]:.7g} (in {other.crs:.20})",
                "check that both files show the same place, and their CRS",
            )

    @cached_property
    def _turned(self) -> tuple[GdalRaster, ...]:
        """The same file whole turns of longitude away, as far as the grid that it is warped onto may lie there."""
        if self.onto is None or self.turns or not self.warped:
            return ()
        return tuple(replace(self, turns=turns) for turns in self.own_grid.turns_to(self.onto) if turns)

    def _reader(self) -> Any:
        mine = self._open
        if mine.dataset is None:
            if self.warped and self.onto is not None:
                mine.source = rasterio.open(self._uniform())
                mine.dataset = WarpedVRT(
                    mine.source,
                    src_crs=self.own_grid.crs,
                    crs=self.onto.crs,
                    transform=rasterio.Affine(*self.onto.transform),
                    height=self.onto.height,
                    width=self.onto.width,
                    resampling=Resampling[self.resampling],
                    src_nodata=NOWHERE,
                    nodata=NOWHERE,
                    dtype="float32",
                    # Else nodata in one band only is taken for a value and mixed with its neighbours.
                    UNIFIED_SRC_NODATA="NO",
                    **_scales(self.own_grid, self.onto),
                )
            else:
                mine.dataset = self._dataset()
        _open_readers.touch(mine)
        return mine.dataset

    @property
    def _masks(self) -> list[str]:
        """What says where there is data, as VRTs name bands."""
        return [*([str(self._alpha)] if self._alpha else []), *(f"mask,{number}" for number in self._header["masks"])]

    def _uniform(self) -> str:
        """A VRT of the bands in use that GDAL can warp together: with one nodata, and masks as an alpha band."""
        root, path = vrt_of(self.own_grid), _vsi_path(_parse_path(self.path))
        nodata = self._file_decoding.nodata
        each = nodata if isinstance(nodata, tuple) else (nodata,) * self.bands
        bands = [
            ("Float64" if dtype == "float64" else "Float32", [(str(number), missing)])
            for number, dtype, missing in zip(self.numbers, self._dtypes, each, strict=True)
        ]
        if self._masks:  # each but the first counts where it is 0
            bands.append(("Byte", [(mask, 255 if n else None) for n, mask in enumerate(self._masks)]))
        for number, (dtype, sources) in enumerate(bands, start=1):
            band = ElementTree.SubElement(root, "VRTRasterBand", dataType=dtype, band=str(number))
            what = ("ColorInterp", "Alpha") if number > self.bands else ("NoDataValue", repr(NOWHERE))
            ElementTree.SubElement(band, what[0]).text = what[1]
            for name, missing in sources:
                source = ElementTree.SubElement(band, "ComplexSource")
                ElementTree.SubElement(source, "SourceFilename").text = path
                ElementTree.SubElement(source, "SourceBand").text = name
                if missing is not None:
                    ElementTree.SubElement(source, "NODATA").text = repr(missing)
        return ElementTree.tostring(root, encoding="unicode")

    def read_numbers(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The numbers as they are in the file, (C, height, width), and where a mask says there are none.

        Warped ones are float32, with one nodata, also where a mask says that there are none.
        """
        where = rasterio_window(window)
        try:
            with np.errstate(over="ignore"):  # a nodata of -1.8e308 in float64 files
                reader = self._reader()
                if self.warped:
                    return reader.read(list(range(1, self.bands + 1)), window=where), None
                numbers = self.numbers
                found = (
                    reader.read(numbers, window=where)
                    if len(set(self._dtypes)) == 1
                    else np.stack([reader.read(number, window=where) for number in numbers])
                )
                outside = None
                if self._alpha is not None:
                    outside = reader.read(self._alpha, window=where) == 0
                if self._header["masks"]:
                    masked = (reader.read_masks(self._header["masks"], window=where) == 0).any(axis=0)
                    outside = masked if outside is None else outside | masked
        except GDAL_ERRORS as error:
            raise self._unreadable(error, f"be read at row {window.row}, column {window.col}") from None
        return found, outside

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        numbers, outside = self.read_numbers(window)
        values = self._decoding(numbers)
        if outside is not None:
            values[:, outside] = np.nan
        for turned in self._turned:
            missing = np.isnan(values)
            if missing.any():
                values[missing] = turned.read(window)[missing]
        return values

    def undeclared(self, window: Window) -> NDArray[np.floating]:
        """See `Decoding.undeclared`."""
        return self._decoding.undeclared(*self.read_numbers(window))

    def read_codes(self) -> NDArray[np.generic]:
        """Its one band whole, as the codes of labels: (H, W); `UNLABELLED` where there is no data."""
        if self.bands != 1:
            raise SceneError(f"{self.path} has {self.bands} bands", "one band of codes", "save it as a file of its own")
        return self._decoding.codes(*self.read_numbers(self.grid.window))


_MOST_SOURCES = 2**24
"""Bytes of a VRT up to which its sources are looked for in its text."""


def _culprit(path: str, why: str) -> str:
    """The source of a VRT, or of one in it, that an error speaks of or that cannot be opened; else the path itself."""
    found = list(dict.fromkeys(_culprit(name, why) for name in _sources(path)))
    for name in found:
        if re.split(r"[/=]", name)[-1] in why:
            return name
    for name in found:
        try:
            with quietly():
                rasterio.open(name).close()
        except GDAL_ERRORS:
            return name
    return found[0] if len(found) == 1 else path


def _files(path: str) -> list[str]:
    """The files that GDAL reads a raster from."""
    with rasterio.open(path) as source:
        return list(source.files)


def _sources(path: str) -> list[str]:
    """The sources that a VRT names, also those of a VRT that is written within it."""
    file = Path(path)
    if file.suffix.lower() != ".vrt" or not file.is_file() or file.stat().st_size > _MOST_SOURCES:
        return []
    found = []
    for name in re.findall(r"<Source(?:Filename|Dataset)[^>]*>([^<]+)<", file.read_text(encoding="utf-8")):
        found += re.findall(r"<SourceFilename[^>]*>([^<]+)<", unescape(name)) or [name]
    return [unescape(name) for name in found]


def _shown(name: str) -> str:
    """A name as a person knows it: an address without GDAL's words, and without its signature."""
    address = re.sub(r"^/vsicurl(\?.*url=|/)", "", name)
    return unquote(address).split("?")[0] if address != name else name


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


def _place(source: Any, path: str) -> tuple[Transform, Any]:
    """Geotransform and CRS of a dataset, by its control points where these lie on a grid; nothing else places it."""
    none, (points, crs) = rasterio.Affine.identity(), source.gcps
    placed_by = zip(_POINTS.items(), (points, source.rpcs, source.tags(ns="GEOLOCATION")), strict=True)
    found = [words for words, there in placed_by if there]
    if source.transform != none or not found:
        return tuple(source.transform)[:6], source.crs
    fitted = from_gcps(points) if points else none
    if points and not fitted.is_degenerate:
        off = [math.dist(~fitted * (point.x, point.y), (point.col, point.row)) for point in points]
        if max(off) <= SAME_CORNER:
            return tuple(fitted)[:6], source.crs or crs
    raise GridError(
        f"{path} is placed by {found[0][0]}, and has no geotransform",
        "pixels on a regular grid of a CRS",
        f"warp it first, e.g. by `gdalwarp {found[0][1]}-t_srs EPSG:n`, and name the new file",
    )


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
    if source.turn:
        steps[0] -= np.round(steps[0] / source.turn) * source.turn
    across, down = np.hypot(*np.linalg.solve(np.array([[a, b], [d, e]]), steps).T)
    return {"XSCALE": f"{1 / across:.9g}", "YSCALE": f"{1 / down:.9g}"} if across and down else {}


def box_in(grid: Grid, crs: str) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of the box around a grid in another CRS; a GridError where that does not reach."""
    try:
        left, bottom, right, top = transform_bounds(grid.crs, crs, *grid.bounds)
    except GDAL_ERRORS as error:
        raise GridError(f"{grid} has no place in {crs:.60}: {error}", "one within the CRS", "") from None
    return left, bottom, right, top


def _apart(one: Grid, other: Grid) -> bool:
    """Whether the box around a grid, in the CRS of another, does not meet the box around that one."""
    left, bottom, right, top = transform_bounds(one.crs, other.crs, *one.bounds)
    right += other.turn if right < left else 0  # across 180 degrees
    west, south, east, north = other.bounds
    across = any(left + turn < east and right + turn > west for turn in (-other.turn, 0, other.turn))
    return not across or bottom >= north or top <= south
