"""What a scene file may say: the keys of scene.yaml, their types and defaults."""

from __future__ import annotations

import re
from typing import Any, Literal

import pydantic

from landfuse.scenes.geotiff import ResamplingName
from landfuse.scenes.split import SplitSettings
from landfuse.scenes.values import Decoding
from landfuse.settings import Settings


class ModalitySettings(Settings):
    """One modality of a scene file.

    Args:
        path: the raster; `{tile}` stands for the tile's name.
        variable: the variable of a .mat file.
        axes: of that variable as MATLAB shows it, e.g. `HWC`.
        bands: which bands to use: `[1, 2, 5]` or `"1-5, 9"`; all by default.
        units: of the values, e.g. `reflectance`, `m`, `dB`.
        nodata: the number that means no data; by default what the file says. `.nan` for NaN.
        scale: value = number * scale + offset; by default what the file says, else 1.
        offset: see `scale`; by default what the file says, else 0.
        decibel: turn linear power into dB.
        zoom: keep the modality this many times finer than the reference grid.
        resampling: how it is brought to the reference grid where it lies on another.
        crs: its CRS, where the file says none.
    """

    path: str
    variable: str | None = None
    axes: str | None = None
    bands: tuple[int, ...] | None = pydantic.Field(default=None, min_length=1)
    units: str = ""
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    decibel: bool = False
    zoom: int = pydantic.Field(default=1, ge=1, le=64)
    resampling: ResamplingName = "bilinear"
    crs: str | None = None

    @pydantic.field_validator("bands", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        bands: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if not match:
                raise ValueError("write bands like '1-5, 9' or [1, 2, 5]")
            first, last = int(match.group(1)), int(match.group(2) or match.group(1))
            if last < first:
                raise ValueError(f"{part.strip()} runs backwards; list the bands one by one, like [3, 2, 1]")
            bands += range(first, last + 1)
        return bands

    @property
    def decoding(self) -> Decoding:
        """The part that turns numbers into values."""
        return Decoding(self.nodata, self.scale, self.offset, self.decibel)


class JoinSettings(Settings):
    """A table joined to polygons: a CSV file and the key that both have."""

    path: str
    key: str


class LabelSettings(Settings):
    """The labels of a scene file: a raster of codes, or polygons.

    Args:
        path: raster of codes (`{tile}` allowed), or a .mat file.
        variable: the variable of a .mat file.
        axes: of that variable, `HW` or `WH`.
        polygons: vector files (`{tile}` allowed); their attribute gives the class.
        attribute: the column that names the class.
        join: a CSV that holds the attribute, and the key column.
        all_touched: polygons label every pixel they touch, not only those whose centre they hold.
        overlap: where polygons of two classes overlap: `last` in the file wins, `first` wins, or `unlabelled`.
        ignored: codes that mean unlabelled, beside 255.
        unlisted: what codes or attribute values outside the legend are: an `error`, or `unlabelled`.
        crs: CRS of the raster where the file says none.
    """

    path: str | None = None
    variable: str | None = None
    axes: str = "HW"
    polygons: tuple[str, ...] = ()
    attribute: str | None = None
    join: JoinSettings | None = None
    all_touched: bool = False
    overlap: Literal["last", "first", "unlabelled"] = "last"
    ignored: tuple[int, ...] = ()
    unlisted: Literal["error", "unlabelled"] = "error"
    crs: str | None = None

    @pydantic.field_validator("polygons", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> LabelSettings:
        if bool(self.path) == bool(self.polygons):
            raise ValueError("labels need either `path` (a raster of codes) or `polygons`, not both")
        if self.polygons and not self.attribute:
            raise ValueError("labels from polygons need `attribute`, the column that names the class")
        return self


class ClassSettings(Settings):
    """One class of the legend.

    Args:
        name: as people say it.
        code: in label rasters and maps; by default its place in the legend, from 1.
        colour: `#RRGGBB`; by default from a palette that can be told apart without colour vision.
        value: its value in the attribute of polygons; by default the name.
    """

    name: str
    code: int | None = None
    colour: str | None = None
    value: str | None = pydantic.Field(default=None, coerce_numbers_to_str=True)


class SceneSettings(Settings):
    """All that a scene file may say.

    Args:
        name: short name of the place.
        root: folder that paths start from, relative to the scene file; `${NAME:-default}` takes an environment
            variable.
        tiles: names that `{tile}` stands for; by default all for which the reference raster exists.
        reference: whose grid is the scene's: `labels`, or a modality.
        modalities: by name.
        labels: where the classes are known.
        legend: the classes in order.
        split: how labelled pixels are shared out.
        citation: how to cite the data.
        licence: of the data.
        address: where a user gets the data.
        georeferenced: set to false for rasters that have no CRS and need none.
    """

    name: str
    title: str = ""
    citation: str = ""
    licence: str = ""
    address: str = ""
    georeferenced: bool = True
    root: str = "."
    tiles: tuple[str, ...] | None = pydantic.Field(default=None, min_length=1)
    reference: str | None = None
    modalities: dict[str, ModalitySettings] = pydantic.Field(min_length=1)
    labels: LabelSettings | None = None
    legend: tuple[ClassSettings, ...] = ()
    split: SplitSettings | None = None

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> SceneSettings:
        wrong = []
        on_grid = [name for name, m in self.modalities.items() if m.zoom == 1]
        choices = [*on_grid, *(["labels"] if self.labels and self.labels.path else [])]
        if self.reference in self.modalities and self.modalities[str(self.reference)].zoom != 1:
            wrong.append(f"`reference` is `{self.reference}`, whose zoom is not 1")
        elif self.reference is not None and self.reference not in choices:
            wrong.append(f"`reference` is {self.reference!r}; choose one of {', '.join(choices)}")
        if self.reference is None and not on_grid:
            wrong.append("every modality has a zoom, so that none can be the reference grid; name a `reference`")
        if self.labels and not self.legend:
            wrong.append("`labels` need a `legend`")
        for name in self.modalities:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                wrong.append(f"the modality name {name!r} is not made of letters, digits and underscores")
            if name in ("labels", "default"):
                wrong.append(f"a modality is named `{name}`, a word that scene files and recipes use otherwise")
        values = [c.value if c.value is not None else c.name for c in self.legend]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice and self.labels and self.labels.polygons:
            wrong.append(f"two classes of `legend` have the value {', '.join(twice)}")
        tiles = list(self.tiles or ())
        if len(set(tiles)) < len(tiles):
            wrong.append(f"`tiles` names {', '.join(sorted({t for t in tiles if tiles.count(t) > 1}))} more than once")
        if tiles and "{tile}" not in self.paths[0]:
            wrong.append("`tiles` are named, but the path of the reference raster has no `{tile}`")
        elif "{tile}" not in self.paths[0] and any("{tile}" in path for path in self.paths):
            wrong.append("a path has `{tile}`, but that of the reference raster has none")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def reference_name(self) -> str:
        """The raster whose grid is the scene's: `labels`, or a modality."""
        return self.reference or next((name for name, m in self.modalities.items() if m.zoom == 1), "")

    @property
    def paths(self) -> list[str]:
        """The paths of all rasters and vector files as they are written, that of the reference first."""
        found = {name: m.path for name, m in self.modalities.items()}
        labels = self.labels
        if labels and labels.path:
            found["labels"] = labels.path
        first = found.pop(self.reference_name, "")
        return [first, *found.values(), *(labels.polygons if labels else ())]
