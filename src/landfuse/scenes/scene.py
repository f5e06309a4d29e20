"""A scene: rasters of several modalities on one grid, and its labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SceneError, few
from landfuse.files import file_name
from landfuse.legend import Legend
from landfuse.markup import table
from landfuse.rasters.grid import Grid, pixel_areas
from landfuse.rasters.raster import Raster, plain_name
from landfuse.rasters.windows import Window, mirrored
from landfuse.series.dates import other_period

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
"""Those of a band's training values that a model keeps."""

_SAME_WAVELENGTH = 0.01
"""Fraction by which the wavelengths of a band may differ between two sensors of a kind."""


@dataclass(frozen=True)
class ModalityInfo:
    """What a model has to know of a modality; a bundle keeps it, and a scene to be mapped is checked against it.

    Args:
        dtype: data type in the file, e.g. `int16`.
        units: as the scene file names them.
        zoom: how many times finer than the scene's grid.
        metres: side of a pixel on the ground; 0 where it is not known.
        pixel: the size of a pixel in the CRS and the CRS's name; empty without one.
        names: of the bands; empty where they are not known.
        wavelengths: of the bands, nm; empty where they are not known.
        values: of a model, for each band the quantiles `QUANTILES` of its training pixels; empty where not known.
        steps: of a series, its periods or dates in order of time, as `parse_period` reads them; else empty.
        per_step: bands of each of these, which come first, step by step; 0 where there are only features of a series.
        decode: how numbers become values where the scene file says `decode`, in words.
    """

    bands: int
    dtype: str
    units: str
    zoom: int
    metres: float = 0.0
    pixel: str = ""
    names: tuple[str, ...] = ()
    wavelengths: tuple[float, ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    steps: tuple[str, ...] = ()
    per_step: int = 0
    decode: str = ""

    @property
    def band_words(self) -> str:
        """The names or wavelengths of the bands, for messages."""
        words = self.names or [f"{one:g} nm" for one in self.wavelengths]
        return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")

    @property
    def names_without_dates(self) -> list[str]:
        """The names of the bands, with the numbers of periods in place of their dates, which differ by the year."""
        count = self.per_step * len(self.steps)
        series = [
            f"t{place // self.per_step}t{name.partition(' ')[2]}" for place, name in enumerate(self.names[:count])
        ]
        return [*series, *self.names[count:]]

    def places_in(self, other: ModalityInfo) -> tuple[int, ...] | None:
        """The places of these bands among others, by wavelengths, else by names; None if the others lack one.

        Where either says nothing, all of the others in their own order.
        """
        places: list[int]
        if self.wavelengths and other.wavelengths:
            known, found = np.array(self.wavelengths), np.array(other.wavelengths)
            distances = np.abs(known[:, None] - found)
            places = distances.argmin(axis=1).tolist()
            fits = bool((distances.min(axis=1) <= _SAME_WAVELENGTH * known).all()) and len(set(places)) == len(places)
            return tuple(places) if fits else None
        names, others = (list(map(plain_name, one.names_without_dates)) for one in (self, other))
        if names and others and len(set(names)) == len(names) and len(set(others)) == len(others):
            return tuple(map(others.index, names)) if set(names) <= set(others) else None
        return tuple(range(other.bands))


@dataclass(frozen=True)
class SceneModality:
    """One modality of a scene.

    Args:
        raster: aligned to the scene's grid, or to one `zoom` times finer.
        zoom: how many times finer than the scene's grid.
        units: as the scene file names them.
        names: of the bands; by default those of the raster.
        metres: side of a pixel on the ground where the raster does not say; 0 where that is not known.
        decode: see `ModalityInfo`.
    """

    raster: Raster
    zoom: int = 1
    units: str = ""
    names: tuple[str, ...] = ()
    metres: float = 0.0
    decode: str = ""

    @property
    def info(self) -> ModalityInfo:
        """What a model has to know of it."""
        raster, areas = self.raster, pixel_areas(self.raster.grid)
        metres, pixel = (self.metres, "") if areas is None else (areas.metres, areas.stated)
        names, wavelengths = self.names or getattr(raster, "names", ()), getattr(raster, "wavelengths", ())
        dates = {key: getattr(raster, key) for key in ("steps", "per_step") if hasattr(raster, key)}
        return ModalityInfo(
            raster.bands,
            raster.dtype,
            self.units,
            self.zoom,
            metres,
            pixel,
            names,
            wavelengths,
            decode=self.decode,
            **dates,
        )

    def like(self, known: ModalityInfo, name: str, whose: str) -> tuple[SceneModality, str]:
        """With its bands in the order of others, by names or wavelengths, and what is to be said of it.

        Args:
            known: the others.
            name: of the modality, for messages.
            whose: the others are, for messages.

        Raises:
            SceneError: if the bands are others, or the periods of a series; the year makes no difference.
        """
        found, raster = self.info, cast(Any, self.raster)
        if differing := other_period(known.steps, found.steps):
            raise SceneError(
                f"{name} has other periods than {whose}: {differing}",
                few(known.steps, 36) or "a modality without dates",
                "set `dates: every` and `dates: between` alike; the year may be another one",
            )
        places = known.places_in(found)
        if places == tuple(range(found.bands)) or (places is None and known.bands != found.bands):
            return self, ""  # that they differ in number is said elsewhere
        if places is None and found.bands == 1:
            return self, f"the band of {name} is {found.band_words}, and that of {whose} {known.band_words}"
        if places is None:
            raise SceneError(
                f"{name} has the bands {found.band_words}",
                f"those of {whose}: {known.band_words}",
                "choose them by `bands` in the scene file; or name them alike by `names` there, if they are the same",
            )
        names = tuple(self.names[place] for place in places) if self.names else ()
        part = replace(self, raster=raster.with_bands(places), names=names)
        return part, f"the bands of {name} are taken in the order of {whose}: {part.info.band_words}"


@dataclass(frozen=True)
class Scene:
    """Co-registered rasters of several modalities, with labels if there are any.

    Args:
        name: the tile's name, or the scene's where it has one tile.
        grid: the reference grid.
        modalities: by name, in the order of the scene file.
        legend: the classes.
        read_labels: gives the whole scene's codes as classes, (H, W) uint8; None where there are no labels. That of a
            scene file takes a `Counter` for what the legend lacks, in place of an error.
        read_polygons: gives the polygon that each pixel's label comes from, (H, W) int64, by a number that is the same
            in all tiles, 0 for none; None where labels are no polygons.
        sources: files that it was opened from besides its modalities: the scene file, or that of the labels.
        read_first: gives the labels without those that came later, by which the split is made; None where none did.

    Examples:
        >>> scene = lf.open_scene("scene.yaml")
        >>> scene.read("a", lf.Window(0, 0, 4, 5)).shape, scene.labels.shape
        ((3, 4, 5), (96, 96))
    """

    name: str
    grid: Grid
    modalities: Mapping[str, SceneModality]
    legend: Legend
    read_labels: Callable[..., NDArray[np.uint8]] | None = field(default=None, repr=False)
    read_polygons: Callable[[], NDArray[np.int64]] | None = field(default=None, repr=False)
    sources: tuple[str, ...] = ()
    read_first: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            file_name(self.name)
        except ValueError as error:
            raise SceneError(f"a scene is named {self.name!r}", str(error), "choose another name") from None

    @classmethod
    def from_arrays(
        cls,
        images: Mapping[str, Any],
        labels: Any | None = None,
        *,
        legend: Legend | Sequence[str] | Mapping[int, str] | None = None,
        unlabelled: int | Collection[int] | None = 0,
        column: str | None = None,
        name: str = "arrays",
    ) -> Scene:
        """A scene without a scene file. Rasters are checked and never resampled.

        Args:
            images: by name; each a numpy array, (C, H, W) or (H, W); an xarray.DataArray with the dimensions `y`, `x`
                and possibly one of bands, in any order, placed by rioxarray's CRS and transform, or, without rioxarray,
                by its coordinates and the attributes of `spatial_ref`; an xarray.Dataset, whose variables are stacked;
                either with `time`, see `landfuse.with_dates`; or the path of a raster that GDAL reads, which is read
                window by window. In any mixture: all are on one grid, or finer by whole factors (zooms), in
                which case the coarsest is the scene's grid. What has no coordinates is placed by its shape. NaN is no
                data, as is what a nodata value, a mask or `_FillValue` says. `units` of a DataArray's attributes
                and a file's or DataArray's scale and offset are respected.
            labels: of the coarsest image's shape: whole-number codes, (H, W), as an array, a DataArray or the path of a
                raster; or polygons, as a path or a GeoDataFrame, with `column`. None for a scene without labels.
            legend: a `Legend`, names of the classes (of the codes 1, 2, ...), or code -> name. By default every code
                is a class, `class 3` say; values of polygons that are no numbers are names, in alphabetical order.
            unlabelled: the code or codes of pixels without a label, unless the legend names them; 255 always is one.
            column: of polygons: the attribute that names the class, or holds its code.
            name: of the scene.

        Raises:
            SceneError: if an image or the labels are no such thing, or labels hold other codes than the legend's,
                more than 254, or ones outside 0..254.
            GridError: if two of them are not on one grid.
            SettingsError: if the legend or `column` does not fit.

        Examples:
            >>> import numpy as np
            >>> scene = lf.Scene.from_arrays({"s2": np.zeros((4, 32, 32)), "dem": np.zeros((64, 64))})
            >>> scene.grid.height, scene.modalities["dem"].zoom
            (32, 2)
        """
        from landfuse.scenes.from_arrays import scene_from

        return scene_from(images, labels, legend=legend, unlabelled=unlabelled, column=column, name=name)

    def read(self, modality: str, window: Window) -> NDArray[np.float32]:
        """Reads one modality in a window of any size at any place; beyond the scene's edges it is mirrored.

        Args:
            modality: its name.
            window: in pixels of the scene's grid.

        Returns:
            (C, height * zoom, width * zoom) float32 in the modality's units, NaN where there is no data.
        """
        part = self.modalities[modality]
        fine = window.scaled(part.zoom)
        rows = mirrored(np.arange(fine.row, fine.row + fine.height), self.grid.height * part.zoom)
        cols = mirrored(np.arange(fine.col, fine.col + fine.width), self.grid.width * part.zoom)
        inside = Window(int(rows.min()), int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
        values = part.raster.read(inside)
        if (inside.row, inside.height) != (fine.row, fine.height):
            values = values.take(rows - inside.row, axis=1)
        if (inside.col, inside.width) != (fine.col, fine.width):
            values = values.take(cols - inside.col, axis=2)
        return np.ascontiguousarray(values)

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """The whole scene's labels as classes: (H, W) uint8, `landfuse.UNLABELLED` where there is none.

        Raises:
            SceneError: if the scene has no labels.
        """
        if self.read_labels is None:
            raise SceneError(
                f"the scene `{self.name}` has no labels", "`labels:` in the scene file", "add them, or use `predict`"
            )
        return self.read_labels()

    @property
    def first_labels(self) -> NDArray[np.uint8]:
        """The labels without those that came later (`labels: also: polygons:`), as `labels`."""
        return self.labels if self.read_first is None else self.read_first()

    def with_modalities(self, more: Mapping[str, SceneModality]) -> Scene:
        """The scene with further modalities."""
        return replace(self, modalities={**self.modalities, **more})

    def _repr_html_(self) -> str:
        rows = [
            (name, part.info.bands, part.info.dtype, part.zoom, part.units, part.raster.path)
            for name, part in self.modalities.items()
        ]
        labels = "" if self.read_labels is None else ", with labels"
        head = ("modality", "bands", "type", "zoom", "units", "file")
        return table(f"Scene {self.name}: {self.grid}{labels}", head, rows)

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        state.pop("labels", None)  # held once, read again elsewhere
        return state


def known_pixels(values: NDArray[np.float32], info: ModalityInfo) -> NDArray[np.bool_]:
    """Where values, (C, height, width), are known: a value in every band; of a series in every band of some step."""
    known = np.isfinite(values)
    count = info.per_step * len(info.steps)
    series = known[:count].reshape(-1, info.per_step, *known.shape[1:]).all(axis=1).any(axis=0) if count else True
    return np.asarray(series & known[count:].all(axis=0))


def validity(values: NDArray[np.float32], info: ModalityInfo) -> NDArray[np.bool_]:
    """Where all fine pixels of values, (C, H * zoom, W * zoom), are known (`known_pixels`): (H, W)."""
    valid, zoom = known_pixels(values, info), info.zoom
    if zoom == 1:
        return valid
    height, width = valid.shape[0] // zoom, valid.shape[1] // zoom
    return np.asarray(valid.reshape(height, zoom, width, zoom).all(axis=(1, 3)))
