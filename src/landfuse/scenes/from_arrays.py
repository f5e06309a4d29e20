"""Scenes without a scene file: from arrays, DataArrays, paths and data frames, checked and never resampled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import GridError, SceneError, SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend, whole_codes
from landfuse.rasters.arrays import ArrayRaster, array_raster
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.grid import Grid
from landfuse.rasters.stacked import StackedRaster
from landfuse.scenes.scene import ModalityInfo, Scene, SceneModality
from landfuse.series.cubes import cube_rasters, has_dates, is_dataset, with_dates
from landfuse.series.series_raster import SeriesRaster

Image = Any
"""(C, H, W) or (H, W): an array, an xarray DataArray or Dataset, possibly with `time`, the path of a raster, a `Raster`
(as of `with_dates`), or a scene's modality."""

Labels = Any
"""(H, W) codes as an array, an xarray.DataArray or the path of a raster; or polygons: a path or a GeoDataFrame."""

Classes = Legend | Sequence[str] | Mapping[int, str]
"""The classes: a legend, their names (codes from 1), or code -> name."""

_LARGEST_ZOOM = 64
_MOST_CLASSES = 254
_VECTORS = (".gpkg", ".shp", ".geojson", ".json", ".fgb", ".gml", ".kml", ".sqlite", ".csv")
_NO_RESAMPLING = (
    "bring them to one grid first (rioxarray: `a.rio.reproject_match(b)`); or name the files in a scene file"
)
"""What to do where grids differ. A scene file aligns its rasters on reading, by the resampling that it names."""


def scene_from(
    images: Mapping[str, Image] | Scene,
    labels: Labels | None = None,
    *,
    legend: Classes | None = None,
    unlabelled: int | Collection[int] | None = 0,
    column: str | None = None,
    name: str = "arrays",
    like: Mapping[str, ModalityInfo] | None = None,
) -> Scene:
    """A scene from images and labels; see `Scene.from_arrays`.

    Args:
        images: as there; or a scene, which keeps its labels and legend unless others are passed.
        like: what a model knows of the modalities: their zooms, and the units of those that state none.
    """
    if isinstance(images, Scene):
        scene = images
    else:
        if not isinstance(images, Mapping) or not images:
            raise SceneError(
                f"the images are {'an empty mapping' if isinstance(images, Mapping) else type(images).__name__}",
                "a mapping of names to images, or a scene",
                "write e.g. {'s2': array}",
            )
        for key in images:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)) or key in ("labels", "default"):
                raise SceneError(
                    f"an image is named {key!r}",
                    "letters, digits and underscores, and neither `labels` nor `default`",
                    "rename it",
                )
        sources = {key: _source(image, key) for key, image in images.items()}
        known = like or {}
        grid, zooms = _common_grid({key: source.raster for key, source in sources.items()}, known)
        modalities = {
            key: replace(
                source,
                raster=_placed(source.raster, grid.zoomed(zooms[key])),
                zoom=zooms[key],
                units=source.units or (known[key].units if key in known else ""),
            )
            for key, source in sources.items()
        }
        scene = Scene(name, grid, modalities, Legend((LandClass("unknown", 0, "#000000"),)))
    if labels is None:
        return scene
    classes, found, read_polygons = _read_labels(labels, scene.grid, _legend(legend), unlabelled, column)
    named = (*scene.sources, *([str(labels)] if isinstance(labels, str | Path) else []))
    read_labels = partial(np.asarray, classes)
    return replace(scene, legend=found, read_labels=read_labels, read_polygons=read_polygons, sources=named)


def _source(image: Image, name: str) -> SceneModality:
    if isinstance(image, SceneModality):
        return image
    if isinstance(image, str | Path):
        return SceneModality(_file(image, name))
    if callable(getattr(image, "read", None)) and isinstance(getattr(image, "grid", None), Grid):
        return SceneModality(image)
    if has_dates(image):
        return SceneModality(with_dates(image, name=name))
    if is_dataset(image):
        return SceneModality(next(iter(cube_rasters(image, name).values())))
    units = getattr(image, "attrs", {}).get("units", "")
    return SceneModality(array_raster(image, name), units=units if isinstance(units, str) else "")


def _file(path: str | Path, name: str, categorical: bool = False) -> GdalRaster:
    if str(path).lower().endswith(".mat"):
        raise SceneError(
            f"`{name}` is the .mat file {path}, whose variable and axes are not known",
            "an array, or a raster that GDAL reads",
            "read the variable, e.g. by `scipy.io.loadmat`, and pass the array; or write a scene file",
        )
    raster = GdalRaster(str(path), resampling="nearest" if categorical else "bilinear")
    raster.check()
    return raster


def _common_grid(rasters: Mapping[str, Any], like: Mapping[str, ModalityInfo]) -> tuple[Grid, dict[str, int]]:
    """The coarsest grid, and how many times finer each raster is kept; `like` are those whose zoom is known."""
    grids: dict[str, Grid] = {name: raster.grid for name, raster in rasters.items()}
    coarsest = min(grids, key=lambda name: (grids[name].height, grids[name].width))
    zoom = like[coarsest].zoom if coarsest in like else 1
    height, width = grids[coarsest].height // zoom, grids[coarsest].width // zoom
    zooms = {name: like[name].zoom if name in like else max(1, grid.height // height) for name, grid in grids.items()}
    for name, grid in grids.items():
        fits = (grid.height, grid.width) == (height * zooms[name], width * zooms[name])
        if not fits or zooms[name] > _LARGEST_ZOOM:
            sizes = ", ".join(f"`{key}` {one.height} x {one.width} px" for key, one in grids.items())
            raise GridError(
                f"the images have different sizes: {sizes}",
                "one size in rows and columns, or whole multiples of the smallest, up to 64"
                if not like
                else ", ".join(f"`{key}` {info.zoom} times as fine" for key, info in like.items() if key in grids)
                + ", as the model was fitted",
                _NO_RESAMPLING,
            )
    # A raster with a CRS says best where the scene is, then one with coordinates; of those, one that needs no dividing.
    stated = [name for name, grid in grids.items() if grid.georeferenced]
    stated.sort(key=lambda name: (grids[name].crs is None, zooms[name]))
    if not stated:
        return Grid(height, width), zooms
    first = stated[0]
    reference = _coarser(grids[first], zooms[first])
    for name in stated[1:]:
        grid, home = grids[name], reference.zoomed(zooms[name])
        if (grid if grid.crs else replace(grid, crs=home.crs)) != home:
            raise GridError(
                f"the images are not on one grid: `{first}` has {grids[first]}; `{name}` has {grid}",
                "one CRS and place, and pixel sizes that differ by whole factors",
                "turn it over by `.sortby('y', ascending=False)`"
                if grid.transform[4] * home.transform[4] < 0
                else _NO_RESAMPLING,
            )
    return reference, zooms


def _coarser(grid: Grid, zoom: int) -> Grid:
    """The same ground with pixels `zoom` times larger."""
    a, b, c, d, e, f = grid.transform
    return Grid(grid.height // zoom, grid.width // zoom, (a * zoom, b * zoom, c, d * zoom, e * zoom, f), grid.crs)


def _placed(raster: Any, grid: Grid) -> Any:
    """A raster on the grid that it was found to be on: those that do not state it take it over."""
    if isinstance(raster, SeriesRaster | StackedRaster):
        return raster.placed(partial(_placed, grid=grid))
    if isinstance(raster, ArrayRaster):
        return raster if raster.grid.crs else replace(raster, grid=grid)
    if isinstance(raster, GdalRaster) and not raster.own_grid.georeferenced:
        return replace(raster, placed=grid)
    if isinstance(raster, GdalRaster) and raster.own_grid.crs is None:
        return replace(raster, assumed_crs=grid.crs)
    return raster


# ---- labels ----------------------------------------------------------------------------------------------------------


def _legend(classes: Classes | None) -> Legend | None:
    """The legend that is stated, if any."""
    if classes is None or isinstance(classes, Legend):
        return classes
    listed = isinstance(classes, Sequence) and not isinstance(classes, str)
    named: Any = dict(enumerate(classes, start=1)) if listed else classes
    if not isinstance(named, Mapping) or not all(re.fullmatch(r"-?\d+(\.0)?", str(code)) for code in named):
        raise SettingsError(
            f"`legend` is {classes!r}",
            "a legend, a list of names, or {code: name} with whole numbers as codes",
            "write e.g. ['water', 'forest']",
        )
    return Legend.of([(int(float(code)), str(name)) for code, name in named.items()])


def _whole(unlabelled: Any) -> set[int]:
    """The codes that mean unlabelled; NaN does without being named."""
    several = np.iterable(unlabelled) and not isinstance(unlabelled, str)
    given = [] if unlabelled is None else list(unlabelled) if several else [unlabelled]
    kinds = int | float | np.integer | np.floating
    if not all(isinstance(code, kinds) and (code != code or float(code).is_integer()) for code in given):
        raise SettingsError(f"`unlabelled` is {unlabelled!r}", "a whole-number code, or several", "correct it")
    return {int(code) for code in given if code == code}


def _read_labels(
    labels: Labels, grid: Grid, legend: Legend | None, unlabelled: int | Collection[int] | None, column: str | None
) -> tuple[NDArray[np.uint8], Legend, Callable[[], NDArray[np.int64]] | None]:
    """Labels as classes, their legend, and what reads their polygons; see `Scene.from_arrays` for the errors."""
    path = isinstance(labels, str | Path)
    if (path and column is not None) or hasattr(labels, "geometry"):
        return _burnt(labels, grid, legend, column)
    if path and Path(labels).suffix.lower() in _VECTORS:
        raise SettingsError(
            f"the labels {labels} are shapes", "`column`, the attribute that names the class", "name it"
        )
    ignored = _whole(unlabelled)
    codes, where = _codes(labels, grid, legend)
    if legend is None:
        legend = _legend_of(np.setdiff1d(codes, [*ignored, UNLABELLED]), where)
    unlisted = Counter[str]()
    classes = legend.to_classes(codes, ignored - set(legend.codes.tolist()), unlisted, where)
    if unlisted:
        unknown = [int(code) for code in unlisted]
        shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise SceneError(
            f"{where} hold the code{'s' if len(unknown) > 1 else ''} {shown}, which no class has",
            f"{', '.join(map(str, legend.codes))}, or a code that means unlabelled",
            f"add the class to `legend`, or pass unlabelled={sorted(map(int, {*ignored, *unknown}))[:10]}",
        )
    return classes, legend, None


def _codes(labels: Labels, grid: Grid, legend: Legend | None) -> tuple[NDArray[Any], str]:
    """Codes, (H, W), `UNLABELLED` where there is none, and what messages call them."""
    if isinstance(labels, str | Path):
        raster: Any = _file(labels, "labels", categorical=True)
        where = f"the labels {labels}"
    else:
        raster, where = array_raster(labels, "labels"), "the labels"
    own: Grid = raster.grid
    if raster.bands != 1:
        raise SceneError(f"{where} have {raster.bands} bands", "one band of codes", "choose it")
    if (own.height, own.width) != (grid.height, grid.width):
        raise GridError(
            f"{where} have {own.height} x {own.width} px",
            f"{grid.height} x {grid.width} px, as the coarsest image",
            "cut or repeat them to that grid; labels are never resampled",
        )
    if own.georeferenced and grid.georeferenced and (own if own.crs else replace(own, crs=grid.crs)) != grid:
        raise GridError(
            f"{where} are off the grid of the images: {own}",
            f"{grid}; labels are never resampled",
            _NO_RESAMPLING,
        )
    if legend is not None:
        stated = raster.nodata if isinstance(raster, GdalRaster) else raster.decoding.nodata
        legend.refuse_nodata(stated, where, "remove it from the file or the attributes")
    if isinstance(raster, ArrayRaster) and np.dtype(raster.dtype).kind == "f":
        nan = int(np.isnan(np.asarray(raster.values)).sum())
        raise SceneError(
            f"{where} are {raster.dtype}" + (f", {nan:,} of them NaN" if nan else ""),
            "whole-number codes",
            "fill in a code for unlabelled and convert them, e.g. by `numpy.nan_to_num(labels).astype('uint8')`",
        )
    return whole_codes(raster.read_codes(), where), where


def _legend_of(codes: NDArray[Any], where: str) -> Legend:
    """The legend of labels that come without: each code is a class."""
    if not codes.size:
        raise SceneError(f"{where} label no pixel", "codes of classes", "check them, and `unlabelled`")
    if len(codes) > _MOST_CLASSES or codes[0] < 0 or codes[-1] >= UNLABELLED:
        raise SceneError(
            f"{where} hold {len(codes):,} codes, from {codes[0]} to {codes[-1]}",
            f"at most {_MOST_CLASSES} classes, of codes from 0 to {UNLABELLED - 1}",
            "number the classes from 1, and name the code of unlabelled pixels by `unlabelled`",
        )
    return Legend.of([(int(code), f"class {code}") for code in codes])


def _burnt(
    labels: Labels, grid: Grid, legend: Legend | None, column: str | None
) -> tuple[NDArray[np.uint8], Legend, Callable[[], NDArray[np.int64]]]:
    """Polygons as classes. Without a legend, values that are all numbers are codes; others are named in their order."""
    from landfuse.rasters.polygons import polygons_of, read_polygons

    if column is None:
        raise SettingsError("the labels are a GeoDataFrame", "`column`, which names the class", "name it")
    polygons = read_polygons(labels, column) if isinstance(labels, str | Path) else polygons_of(labels, column)
    values = list(polygons.values)
    if legend is None:
        if all(value.isdecimal() for value in values):
            legend = _legend_of(np.array(sorted(map(int, values))), polygons.source)
        else:
            legend = _legend(values)
    if legend is None or not values:
        raise SceneError(f"{polygons.source} has no value in `{column}`", "the class of each shape", "check the column")
    codes = {c.name: c.code for c in legend} | {str(c.code): c.code for c in legend}
    return legend.to_classes(polygons.onto(grid, codes)), legend, partial(polygons.ids_onto, grid)
