"""What a scene file may say: the keys of scene.yaml, their types and defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import ResamplingName
from landfuse.scenes.split_rules import SplitSettings
from landfuse.settings import Settings


class ModalitySettings(Settings):
    """One modality of a scene file.

    Args:
        path: the raster; `{tile}` stands for the tile's name, `{tile:02}` for it with numbers of at least two digits.
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
        sensor: what measured it, in words.
        metres: pixel size on the ground, where the file says none; for the table of `check`.
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
    sensor: str = ""
    metres: float | None = pydantic.Field(default=None, gt=0)

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


class FurtherLabels(Settings):
    """A further raster of codes, for data whose training and test labels come in files of their own.

    Args:
        path: the raster, `{tile}` allowed, or a .mat file.
        variable: the variable of a .mat file.
    """

    path: str
    variable: str | None = None


class ColourSettings(Settings):
    """Labels that are pictures of three bands: a pixel's class is the one in the legend that has its `colour`.

    Args:
        ignored: colours that mean unlabelled, `#RRGGBB`.
        tolerance: how far a colour may lie from the nearest of the legend's and the ignored ones, as a distance in red,
            green and blue; above 0 for pictures that were compressed with loss.
    """

    ignored: tuple[Annotated[str, pydantic.Field(pattern=r"^#[0-9A-Fa-f]{6}$")], ...] = ()
    tolerance: float = pydantic.Field(default=0.0, ge=0, le=442)


class LabelSettings(Settings):
    """The labels of a scene file: a raster of codes, or polygons.

    Args:
        path: raster of codes (`{tile}` allowed), or a .mat file.
        variable: the variable of a .mat file.
        axes: of that variable, `HW` or `WH`.
        also: further rasters of codes, with the same `axes`; no pixel may have two classes.
        polygons: vector files (`{tile}` allowed); their attribute gives the class.
        attribute: the column that names the class.
        join: a CSV that holds the attribute, and the key column.
        all_touched: polygons label every pixel they touch, not only those whose centre they hold.
        overlap: where polygons of two classes overlap: `last` in the file wins, `first` wins, or `unlabelled`.
        ignored: codes that mean unlabelled, beside 255.
        unlisted: what codes or attribute values outside the legend are: an `error`, or `unlabelled`.
        crs: CRS of the raster where the file says none.
        colours: the raster is a picture whose colours tell the classes; `{}` is enough.
    """

    path: str | None = None
    variable: str | None = None
    axes: str = "HW"
    also: tuple[FurtherLabels, ...] = ()
    polygons: tuple[str, ...] = ()
    attribute: str | None = None
    join: JoinSettings | None = None
    all_touched: bool = False
    overlap: Literal["last", "first", "unlabelled"] = "last"
    ignored: tuple[int, ...] = ()
    unlisted: Literal["error", "unlabelled"] = "error"
    crs: str | None = None
    colours: ColourSettings | None = None

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
        if self.polygons and self.also:
            raise ValueError("`also` goes with `path`; list further polygon files under `polygons`")
        if self.colours and (self.polygons or self.variable or self.ignored):
            raise ValueError("`colours` goes with a picture under `path`, and lists its own `ignored`")
        return self

    @property
    def rasters(self) -> list[LabelSettings]:
        """One per raster of codes, the first being that of `path`; none where labels are polygons."""
        further = [self.model_copy(update={"path": one.path, "variable": one.variable}) for one in self.also]
        return [self, *further] if self.path else []


class ClassSettings(Settings):
    """One class of the legend.

    Args:
        name: as people say it.
        code: in label rasters and maps; by default its place in the legend, from 1.
        colour: `#RRGGBB`; by default from a palette made for eyes without colour vision.
        value: its value in the attribute of polygons; by default the name.
        scored: whether it enters the means over classes (AA, mF1, mIoU); false for e.g. clutter, which is learnt and
            mapped all the same.
    """

    name: str
    code: int | None = None
    colour: str | None = None
    value: str | None = pydantic.Field(default=None, coerce_numbers_to_str=True)
    scored: bool = True


class CountSettings(Settings):
    """What `check` must find: the published numbers of a data set. Lists have a number per class, in order.

    Args:
        labelled: labelled pixels.
        train: training pixels of the official split; validation comes out of them and counts as training.
        validation: validation pixels, where the official split has its own.
        test: test pixels of the official split.
        tiles: number of tiles.
        size: rows and columns of the reference grid.
        bands: of each modality that is named.
    """

    labelled: tuple[int, ...] | None = None
    train: tuple[int, ...] | None = None
    validation: tuple[int, ...] | None = None
    test: tuple[int, ...] | None = None
    tiles: int | None = None
    size: tuple[int, int] | None = None
    bands: dict[str, int] = {}

    @property
    def per_class(self) -> dict[str, tuple[int, ...]]:
        """The lists that are given, by name."""
        names = ("labelled", "train", "validation", "test")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class DownloadSettings(Settings):
    """One file that `landfuse fetch` gets.

    Args:
        address: http or https.
        sha256: of the file; where none is known, the file's is told.
        size: bytes; by default what the server says.
        name: of the file; by default the last part of the address.
        unpack: unpack the archive (.zip, .tar, .tar.gz, ...) and remove it.
        folder: where it goes, from `root`.
    """

    address: str = pydantic.Field(pattern=r"^https?://")
    sha256: str | None = pydantic.Field(default=None, pattern=r"^[0-9a-f]{64}$")
    size: int | None = pydantic.Field(default=None, gt=0)
    name: str | None = None
    unpack: bool = False
    folder: str = "."

    @property
    def file(self) -> str:
        """The file's name."""
        return self.name or self.address.split("?")[0].rstrip("/").rsplit("/", 1)[-1]


class FetchSettings(Settings):
    """How the data come to `root`.

    Args:
        files: what is downloaded.
        manual: what a person has to get, where from, and under which names it belongs into `root`.
    """

    files: tuple[DownloadSettings, ...] = ()
    manual: str = ""


class SceneSettings(Settings):
    """All that a scene file may say.

    Args:
        name: short name of the place.
        root: folder that paths start from, relative to the scene file; `${NAME:-default}` takes an environment
            variable; `${LANDFUSE_DATA}` without a default is where `landfuse fetch` puts data.
        tiles: names that `{tile}` stands for; by default all for which the reference raster exists.
        reference: whose grid is the scene's: `labels`, or a modality.
        modalities: by name.
        labels: where the classes are known.
        legend: the classes in order.
        split: how labelled pixels are shared out.
        counts: the published numbers, which `check` compares with what it finds.
        fetch: how `landfuse fetch` gets the data.
        citation: how to cite the data.
        licence: of the data.
        address: where a user gets the data.
        georeferenced: set to false for rasters that have no CRS and need none; those that say nothing of their place
            lie on the reference where they have its size.
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
    counts: CountSettings | None = None
    fetch: FetchSettings | None = None

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
        for name, numbers in (self.counts.per_class if self.counts else {}).items():
            if len(numbers) != len(self.legend):
                wrong.append(f"`counts.{name}` has {len(numbers)} numbers for {len(self.legend)} classes")
        if self.counts and set(self.counts.bands) - set(self.modalities):
            wrong.append("`counts.bands` names a modality that there is not")
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
        further = [one.path for one in labels.also] if labels else []
        return [first, *found.values(), *further, *(labels.polygons if labels else ())]


VARIABLE = "LANDFUSE_DATA"


def data_folder() -> Path:
    """The folder that the environment variable LANDFUSE_DATA names, else the platform's folder for a user's caches."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("landfuse"))


def in_data_folder(text: str) -> str:
    """Puts the data folder in the place of `${LANDFUSE_DATA}`, which has no other default."""
    mark = f"${{{VARIABLE}}}"
    return text.replace(mark, str(data_folder())) if mark in text else text
