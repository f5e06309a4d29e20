"""A series from an xarray Dataset or DataArray with a dimension of time."""

from __future__ import annotations

from typing import Any

from landfuse.errors import SceneError, SettingsError
from landfuse.rasters.arrays import is_data_array
from landfuse.rasters.cubes import cube_rasters, is_dataset
from landfuse.series.dates import periods_of
from landfuse.series.series_raster import ClearMask, DatedRaster, SeriesRaster, refuse_empty, series_of
from landfuse.series.settings import DateSettings
from landfuse.settings import parse


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
    kept = [day for day in days if any(day in period for period in periods)]
    refuse_empty(days, kept, periods, f"`{name}`")
    clear = cube_rasters(cube, name, [str(mask.variable)]) if mask else {}
    dates = [DatedRaster(day, rasters[day], ClearMask(clear[day], mask) if mask else None) for day in kept]
    first = dates[0].raster
    names = first.names or tuple(str(number) for number in range(1, first.bands + 1))
    return series_of(dates, periods, names, how, sensor=sensor)
