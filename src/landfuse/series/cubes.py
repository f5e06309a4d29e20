"""xarray's Datasets and DataArrays as rasters: variables as bands, and `time` as the dates of a series."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from landfuse.errors import GridError, SceneError, SettingsError, few
from landfuse.rasters.arrays import SPATIAL, ArrayRaster, array_raster, is_data_array
from landfuse.rasters.stacked import StackedRaster
from landfuse.series.dates import periods_of
from landfuse.series.series_raster import ClearMask, DatedRaster, SeriesRaster, days_in, series_of
from landfuse.series.settings import DateSettings
from landfuse.settings import parse

_TIME = ("time", "t")
"""Names that the dimension of dates may have."""


def is_dataset(value: object) -> bool:
    """Whether it is an xarray.Dataset; xarray is not imported for it."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(value, xarray.Dataset)


def has_dates(values: Any) -> bool:
    """Whether it is a DataArray or Dataset of several dates, which a coordinate names."""
    found = is_dataset(values) or is_data_array(values)
    return found and any(values.sizes.get(dim, 1) > 1 and dim in values.coords for dim in _TIME)


def with_dates(cube: Any, *, sensor: str = "", name: str = "cube", **settings: Any) -> SeriesRaster:
    """An xarray cube as an image whose dates are combined, as `dates` of a scene file combines those of files.

    It is read window by window; of dask arrays, no more than a window is computed at a time.

    Args:
        cube: a DataArray with the dimensions `time` (datetime64), `y`, `x` and possibly one of bands, in any order; or
            a Dataset of such variables, whose bands are stacked.
        sensor: what measured it, by which the bands of spectral indices are known, as `Sentinel-2A`.
        name: of it, for messages.
        settings: as under `dates` in a scene file: `every`, `composite`, `between`, `fill`, `features`, `indices`,
            `roles`; and `mask`, e.g. `{"variable": "SCL", "clear": [4, 5, 6]}`, of a variable of the Dataset.

    Returns:
        An image for `Classifier`, `Scene.from_arrays` and `predict`; its `names` are those of the bands of all periods.

    Raises:
        SceneError: if the cube has no dates, or they come twice, or none lies in a period.
        SettingsError: naming every setting that is unknown or wrong.

    Examples:
        >>> import numpy as np, xarray
        >>> days = np.array(["2023-04-03", "2023-04-20", "2023-05-11"], "datetime64[ns]")
        >>> cube = xarray.DataArray(np.zeros((3, 1, 8, 8)), {"time": days, "band": ["red"]}, ("time", "band", "y", "x"))
        >>> lf.with_dates(cube, every="1 month", composite="mean").names
        ('2023-04 red', '2023-05 red')
    """
    how = parse(DateSettings, settings, "with_dates")
    if not is_data_array(cube) and not is_dataset(cube):
        raise SceneError(f"`{name}` is {type(cube).__name__}", "an xarray Dataset or DataArray", "convert it")
    mask = how.mask
    if how.days is not None or (mask and (mask.path or not mask.variable or not is_dataset(cube))):
        raise SettingsError(
            "`with_dates` was called with " + ("`days`" if how.days is not None else "a mask that is no variable"),
            "dates from the coordinate `time`; a mask as a variable of a Dataset, {'variable': 'SCL', ...}",
            "name the variable; or mask the cube before, e.g. by `cube.where(clear)`",
        )
    rasters = cube_rasters(cube, name, without=[str(mask.variable)] if mask else [])
    days = [day for day in rasters if day is not None]
    if not days:
        raise SceneError(f"`{name}` has no dates", "a dimension `time`", "pass it without `with_dates`")
    periods = periods_of(how.every, how.between, days)
    kept = days_in(periods, days, f"`{name}`")
    clear = cube_rasters(cube, name, [str(mask.variable)]) if mask else {}
    dates = [DatedRaster(day, rasters[day], ClearMask(clear[day], mask) if mask else None) for day in kept]
    first = dates[0].raster
    names = first.names or tuple(str(number) for number in range(1, first.bands + 1))
    return series_of(dates, periods, names, how, sensor=sensor)


def cube_rasters(
    cube: Any, name: str, variables: Sequence[str] = (), without: Collection[str] = (), store: str = ""
) -> dict[date | None, ArrayRaster | StackedRaster]:
    """The raster of each date of a DataArray or Dataset, in order of time; under None the one of a cube without dates.

    Nothing is read before a window is.

    Args:
        cube: with rows and columns, and possibly bands and `time`.
        variables: of a Dataset: which, in this order; by default all with rows and columns.
        without: of a Dataset: variables that are left out by default.
        store: the folder of the Zarr group that it was opened from.

    Raises:
        SceneError: if a variable is missing, or the dates are not known or come twice.
        GridError: if the variables are not on one grid.
    """
    arrays = _variables(cube, name, variables, without) if is_dataset(cube) else {"": cube}
    dims = {title: next((dim for dim in _TIME if dim in array.dims), None) for title, array in arrays.items()}
    dim = next(iter(dims.values()))
    if len(set(dims.values())) > 1:
        raise SceneError(
            f"`{name}` has variables with dates and without: {few(list(dims), 12)}", "all, or none", _CHOOSE
        )
    days = _days(next(iter(arrays.values())), dim, name) if dim else {None: 0}
    found: dict[date | None, list[ArrayRaster]] = {day: [] for day in days}
    for title, array in arrays.items():
        first = array.isel({dim: 0}, drop=True) if dim else array
        raster = array_raster(first, name if not title else f"{name}` / `{title}")
        if title:
            labels = raster.names or [str(number) for number in range(1, raster.bands + 1)]
            names = (title,) if raster.bands == 1 else tuple(f"{title} {label}" for label in labels)
            names = raster.names if raster.names and len(arrays) == 1 else names
            raster = replace(raster, band_names=names, store=str(Path(store) / title) if store else "")
        single = [other for other in first.dims if other not in raster.values.dims]  # dropped, as of length 1
        for day, place in days.items():
            values = array.isel({dim: place}, drop=True) if dim else array
            found[day].append(replace(raster, values=values.squeeze(single, drop=True)))
    grids = [raster.grid for raster in next(iter(found.values()))]
    if any(grid != grids[0] for grid in grids):
        raise GridError(
            f"the variables of `{name}` are not on one grid: {few(list(dict.fromkeys(map(str, grids))))}",
            "one",
            _CHOOSE,
        )
    return {day: parts[0] if len(parts) == 1 else StackedRaster(tuple(parts)) for day, parts in found.items()}


_CHOOSE = "choose some by `variable` in a scene file, or by `dataset[[...]]`"


def _variables(cube: Any, name: str, variables: Sequence[str], without: Collection[str]) -> dict[str, Any]:
    """The variables of a Dataset that are used, with what its attributes say of their place."""
    images = [
        str(key)
        for key, array in cube.data_vars.items()
        if any(set(pair) <= set(array.dims) for pair in SPATIAL) and array.dtype.kind in "iufbc"
    ]
    wanted = list(variables) or [key for key in images if key not in without]
    missing = [key for key in variables if key not in cube.variables]
    if missing or not wanted:
        raise SceneError(
            f"`{name}` has no variable {', '.join(missing) or 'with rows and columns'}",
            few(images, 12) or "variables with the dimensions `y` and `x`",
            "correct `variable`; a group of a Zarr store is named by its path, as cube.zarr/r10m",
        )
    place = {key: value for key, value in cube.attrs.items() if str(key).startswith(("proj:", "spatial:"))}
    mappings = [one for one in cube.variables.values() if not one.dims and {"crs_wkt", "spatial_ref"} & {*one.attrs}]
    found = {}
    for key in wanted:
        array = cube[key].assign_attrs({**place, **cube[key].attrs})
        if mappings and array.encoding.get("grid_mapping", array.attrs.get("grid_mapping")) not in array.coords:
            array = array.assign_coords(spatial_ref=mappings[0])
        found[key] = array
    return found


def _days(array: Any, dim: str, name: str) -> dict[date | None, int]:
    """The dates of a cube, in order of time -> their places in it."""
    times = array.coords[dim].values if dim in array.coords else np.zeros(0)
    if times.dtype.kind != "M" or np.isnat(times).any():
        raise SceneError(
            f"the dates of `{name}` are not known: the coordinate `{dim}` "
            + (f"holds {times.dtype}" if dim in array.coords else "is missing"),
            "times as datetime64, all of them known",
            "assign them, e.g. by `.assign_coords(time=pandas.to_datetime([...]))`; another calendar by "
            "`.convert_calendar('standard')`",
        )
    days = times.astype("datetime64[D]").tolist()
    twice = sorted({str(day) for day in days if days.count(day) > 1})
    if twice:
        raise SceneError(
            f"`{name}` has several times on {few(twice)}",
            "one for each date",
            "merge them, e.g. by `.assign_coords(time=cube.time.dt.floor('D')).groupby('time').first()`",
        )
    return dict(sorted((day, place) for place, day in enumerate(days)))
