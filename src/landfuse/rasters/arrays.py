"""Rasters in memory: arrays, and xarray's DataArrays at the place that their coordinates give.

Neither xarray nor rioxarray is imported before a DataArray is met.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray

from landfuse.errors import GridError, SceneError
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import crs_name
from landfuse.rasters.grid import Grid, Transform
from landfuse.rasters.windows import Window, blocks

SPATIAL = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"))
"""Names of the dimensions that rows and columns may have in a DataArray."""

_UNEVEN = 0.01
"""Pixels by which the steps between coordinates may differ."""

_SIDE = 1024
"""Side of the pieces that are hashed one by one, px."""


@dataclass(frozen=True, eq=False)
class ArrayRaster:
    """An array as a raster; a `Raster`. It is sliced window by window, so it may be on disk (numpy.memmap, dask).

    Args:
        values: whatever numpy can slice, of the axes below.
        axes: of `values`: `H`, `W` and possibly `C`, in any order.
        name: stands in `path`.
        band_names: of the bands; by default the labels of a DataArray's dimension.
        store: the folder of a Zarr array that it is read from.
    """

    values: Any = field(repr=False)
    axes: str
    grid: Grid
    name: str
    decoding: Decoding = Decoding()
    band_names: tuple[str, ...] = ()
    store: str = ""
    warped = False
    notes: Sequence[str] = ()
    wavelengths: Sequence[float] = ()

    @property
    def bands(self) -> int:
        """Number of bands."""
        return int(self.values.shape[self.axes.index("C")]) if "C" in self.axes else 1

    @property
    def dtype(self) -> str:
        """The data type of the array."""
        return str(self.values.dtype)

    @property
    def path(self) -> str:
        """The Zarr array, or a name for messages."""
        return self.store or f"the array `{self.name}`"

    @property
    def own_grid(self) -> Grid:
        """The grid of the array itself: it is never resampled."""
        return self.grid

    def files(self) -> list[Path]:
        """All files that its pixels come from."""
        return sorted(path for path in Path(self.store).rglob("*") if path.is_file()) if self.store else []

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands: a DataArray's labels of their dimension, or its `long_name` of each, if they are text."""
        if self.band_names:
            return self.band_names
        if "C" not in self.axes or not is_data_array(self.values):
            return ()
        dim = self.values.dims[self.axes.index("C")]
        labels = self.values.coords[dim].values.tolist() if dim in self.values.coords else []
        names = self.values.attrs.get("long_name")
        if isinstance(names, tuple | list):  # of a file, whose bands the labels count from 1
            labels = [dict(enumerate(names, start=1)).get(label, label) for label in labels]
        return tuple(labels) if all(isinstance(label, str) for label in labels) else ()

    def with_bands(self, places: Sequence[int]) -> ArrayRaster:
        """Some of the bands, in this order; places count from 0."""
        kept = tuple(list(places) if axis == "C" else slice(None) for axis in self.axes)
        scales: dict[str, Any] = {
            key: tuple(number[place] for place in places)
            for key in ("nodata", "scale", "offset")
            if isinstance(number := getattr(self.decoding, key), tuple)
        }
        return replace(
            self,
            values=self.values[kept],
            decoding=replace(self.decoding, **scales),
            band_names=tuple(self.band_names[place] for place in places) if self.band_names else (),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers, read piece by piece."""
        known = hashlib.sha256(f"{self.dtype} {self.bands} {self.decoding}".encode())
        for window in blocks(self.grid.height, self.grid.width, _SIDE):
            numbers, outside = self._numbers(window)
            known.update(np.ascontiguousarray(numbers).tobytes())
            known.update(b"" if outside is None else outside.tobytes())
        return known.hexdigest()

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`."""
        numbers, outside = self._numbers(window)
        values = self.decoding(numbers)
        if outside is not None:
            values[:, outside] = np.nan
        return values

    def undeclared(self, window: Window) -> NDArray[np.floating]:
        """See `Decoding.undeclared`."""
        return self.decoding.undeclared(*self._numbers(window))

    def read_codes(self) -> NDArray[np.generic]:
        """Its one band whole, as the codes of labels: (H, W); `UNLABELLED` where there is no data."""
        return self.decoding.codes(*self._numbers(self.grid.window))

    def _numbers(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """(C, height, width) as in the array, and (height, width) where a masked array says that there is nothing."""
        rows, cols = window.within(self.grid.window)
        ranges = {"H": rows, "W": cols, "C": slice(None)}
        found = self.values[tuple(ranges[axis] for axis in self.axes)]
        masked = isinstance(found, np.ma.MaskedArray)
        try:
            parts = [np.asarray(found), *([np.ma.getmaskarray(found)] if masked else [])]
        except Exception as error:  # whatever the codecs of a Zarr array raise
            if not self.store:
                raise
            raise SceneError(
                f"{self.path} cannot be read at row {window.row}, column {window.col}: {error}",
                "a whole Zarr array",
                "fetch it again; a chunk may be damaged",
            ) from None
        masks: list[NDArray[Any]]
        order = [self.axes.index(axis) for axis in "CHW" if axis in self.axes]
        numbers, *masks = (part.transpose(order).reshape(-1, window.height, window.width) for part in parts)
        return numbers, np.asarray(masks[0].any(axis=0)) if masks else None


def is_data_array(value: object) -> bool:
    """Whether it is an xarray.DataArray; xarray is not imported for it."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(value, xarray.DataArray)


def array_raster(values: Any, name: str) -> ArrayRaster:
    """An array, (C, H, W) or (H, W), or a DataArray as a raster, on its own grid.

    Args:
        values: the array. Of a DataArray the dimensions may come in any order; its coordinates and CRS say where it is,
            and its attributes `_FillValue`, `scale_factor` and `add_offset` what its numbers mean.

    Raises:
        SceneError: if it is no array of numbers with rows and columns.
        GridError: if its coordinates are not evenly spaced.
    """
    if is_data_array(values):
        raster = _of_data_array(values, name)
    else:
        array = values if isinstance(getattr(values, "dtype", None), np.dtype) else np.asarray(values)
        if len(array.shape) not in (2, 3):
            raise SceneError(
                f"`{name}` has the shape {tuple(array.shape)}",
                "(bands, rows, columns), or (rows, columns)",
                "bring the axes into this order, e.g. by `numpy.moveaxis(array, -1, 0)` for bands that come last",
            )
        raster = ArrayRaster(array, "CHW"[-len(array.shape) :], Grid(*array.shape[-2:]), name)
    kind = np.dtype(raster.dtype).kind
    if kind not in "iufb":
        how = "abs(array) ** 2" if kind == "c" else ".astype('float32')"
        raise SceneError(f"`{name}` holds {raster.dtype}", "real numbers", f"convert it, e.g. by `{how}`")
    if 0 in raster.values.shape:
        raise SceneError(f"`{name}` is empty: its shape is {tuple(raster.values.shape)}", "pixels", "check the array")
    return raster


def _of_data_array(array: Any, name: str) -> ArrayRaster:
    sizes = dict(zip(array.dims, array.shape, strict=True))
    rows, cols = next((pair for pair in SPATIAL if set(pair) <= sizes.keys()), ("", ""))
    others = [dim for dim in array.dims if dim not in (rows, cols)]
    several = [str(dim) for dim in others if sizes[dim] > 1]
    if not rows or len(several) > 1:
        raise SceneError(
            f"the DataArray `{name}` has the dimensions {', '.join(map(str, array.dims)) or 'none'}",
            "`y` and `x`, and at most one further dimension, that of the bands",
            "choose one place along the others, e.g. by `.isel(time=0)`"
            if rows
            else "rename them, e.g. by `.rename({'dim_0': 'y', 'dim_1': 'x'})`",
        )
    kept = several or others[:1]
    array = array.squeeze([dim for dim in others if dim not in kept], drop=True)
    letters = {rows: "H", cols: "W", **dict.fromkeys(kept, "C")}
    height, width = sizes[rows], sizes[cols]
    for dim in (rows, cols):
        if dim in array.coords:
            _even(array.coords[dim].values, dim, name)
    crs, transform = _place(array, rows, cols, name)
    grid = Grid(height, width, crs=crs) if transform is None else Grid(height, width, transform, crs)
    return ArrayRaster(array, "".join(letters[dim] for dim in array.dims), grid, name, _decoding(array.attrs))


def _even(coordinates: NDArray[Any], dim: str, name: str) -> None:
    steps = np.diff(coordinates.astype(np.float64))
    if len(steps) and not (np.abs(steps - steps.mean()) <= _UNEVEN * abs(steps.mean())).all():
        raise GridError(
            f"the coordinate `{dim}` of `{name}` is not evenly spaced: its steps are {steps.min():.6g} to "
            f"{steps.max():.6g}",
            "pixels of one size",
            "resample it to an even grid first",
        )


def _place(array: Any, rows: str, cols: str, name: str) -> tuple[str | None, Transform | None]:
    """CRS and transform of a DataArray: as rioxarray finds them, or by its coordinates; None where they are unknown."""
    stated: Any = array.attrs.get("spatial:transform")
    stated = tuple(float(number) for number in stated) if stated is not None else None
    words = [array.attrs.get(key) for key in ("crs", "proj:code", "proj:wkt2")]  # the last two are GeoZarr's
    try:
        import rioxarray
    except ImportError:
        mapping = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping", "spatial_ref"))
        named = array.coords[mapping].attrs if mapping in array.coords else {}
        words = [named.get("crs_wkt"), named.get("spatial_ref"), *words]
        crs = crs_name(next((text for text in words if text), None), f"`{name}`")
        return crs, _by_coordinates(array, rows, cols) or stated
    shaped = array.rio.set_spatial_dims(x_dim=cols, y_dim=rows)
    crs = crs_name(next((text for text in [shaped.rio.crs, *words] if text), None), f"`{name}`")
    try:
        found: Transform = tuple(float(number) for number in shaped.rio.transform()[:6])  # type: ignore[assignment]
    except rioxarray.exceptions.RioXarrayError:  # a single row or column
        return crs, stated
    return crs, stated if found == Grid(1, 1).transform else found


def _by_coordinates(array: Any, rows: str, cols: str) -> Transform | None:
    if rows not in array.coords or cols not in array.coords or 1 in (array.sizes[rows], array.sizes[cols]):
        return None
    down, across = (array.coords[dim].values.astype(np.float64) for dim in (rows, cols))
    height, width = ((axis[-1] - axis[0]) / (len(axis) - 1) for axis in (down, across))
    return float(width), 0.0, float(across[0] - width / 2), 0.0, float(height), float(down[0] - height / 2)


def _decoding(attributes: Mapping[Any, Any]) -> Decoding:
    """What the attributes of a DataArray say of its numbers; xarray takes away those that it has applied."""

    def number(*names: str) -> Any:
        found = next((attributes[name] for name in names if attributes.get(name) is not None), None)
        numbers = tuple(float(value) for value in np.ravel(found)) if found is not None else (None,)
        return numbers[0] if len(numbers) == 1 else numbers

    nodata = number("_FillValue", "missing_value")
    return Decoding(
        nodata if isinstance(nodata, float) else None,
        number("scale_factor", "scales"),
        number("add_offset", "offsets"),
    )


def like_data_array(
    template: Any,
    values: NDArray[Any],
    grid: Grid,
    name: str,
    attributes: Mapping[str, Any],
    bands: tuple[str, Sequence[str]] | None = None,
) -> Any:
    """Values on a scene's grid as a DataArray, at the place of one of its images.

    Args:
        template: the DataArray, on the grid or on a finer one; its dimensions, CRS and coordinates are taken over.
        values: (H, W), or (K, H, W).
        bands: of (K, H, W): the first dimension's name, and its K labels.
    """
    import xarray

    rows, cols = next(pair for pair in SPATIAL if set(pair) <= set(template.dims))
    coords: dict[Any, Any] = {}
    for dim, size, step, start in (
        (rows, grid.height, grid.transform[4], grid.transform[5]),
        (cols, grid.width, grid.transform[0], grid.transform[2]),
    ):
        if dim in template.coords and template.sizes[dim] == size:
            coords[dim] = template.coords[dim]
        elif dim in template.coords or grid.crs:
            attrs = template.coords[dim].attrs if dim in template.coords else {}
            coords[dim] = (dim, start + step * (np.arange(size) + 0.5), attrs)
    if "spatial_ref" in template.coords:
        coords["spatial_ref"] = template.coords["spatial_ref"]
    elif grid.crs:
        coords["spatial_ref"] = ((), 0, pyproj.CRS.from_user_input(grid.crs).to_cf())
    dims: tuple[Any, ...] = (rows, cols)
    if bands is not None:
        dims, coords[bands[0]] = (bands[0], rows, cols), list(bands[1])
    result = xarray.DataArray(values, coords, dims, name, dict(attributes))
    if template.sizes[rows] != grid.height and "spatial_ref" in coords:
        # The transform of a finer image, which rioxarray would trust more than the coordinates.
        result.coords["spatial_ref"] = result.coords["spatial_ref"].copy()
        result.coords["spatial_ref"].attrs.pop("GeoTransform", None)
    return result
