"""What a scene file may say: the keys of scene.yaml, their types and defaults."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

import platformdirs
import pydantic
from pydantic import Field

from landfuse.files import file_name
from landfuse.legend import nfc
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff import ResamplingName
from landfuse.scenes.split_rules import SplitSettings
from landfuse.series.dates import FORMS
from landfuse.series.settings import DateSettings
from landfuse.settings import Settings, expand

FileName = Annotated[str, pydantic.AfterValidator(file_name)]

BANDS = 65_536
"""Bands that GDAL reads at most."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)]
"""One path, or a list of them."""
Pixels = Annotated[int, Field(ge=0, le=10**15)]
Code = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class SignedSquareSettings(Settings):
    """Numbers that are roots, as of the embeddings of AlphaEarth: value = (number / divide)², with its sign."""

    kind: Literal["signed_square"] = Field(description="The only one.")
    divide: float = Field(gt=0, le=1e30, description="What numbers are divided by, 127.5 for AlphaEarth.")


class ModalitySettings(Settings):
    """One modality of a scene file: a raster of one sensor."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="The raster, anything that GDAL opens, or a .mat file; `{tile}` is replaced by the tile's name, "
        "`{tile:02}` by the name with its numbers padded to two digits. Or several files whose bands are "
        "stacked: a list, or a pattern such as `{tile}_B*.tif`, in natural order. Their pixels may differ in "
        "size: all are brought to the smallest, or to the reference. "
        f"`{{date}}` stands for a date, {FORMS}; see `dates`. Or a Zarr group on this machine, in a folder x.zarr; "
        "its `time` becomes dates with `dates: {}`."
    )
    variable: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="The variable of a .mat file; or that of a Zarr group, or several whose bands are stacked, by "
        "default all with rows and columns.",
    )
    axes: str | None = Field(default=None, description="Axes of that variable as MATLAB shows it, e.g. `HWC`.")
    bands: tuple[Annotated[int, Field(ge=1, le=BANDS)], ...] | None = Field(
        default=None,
        description="Bands to use, from 1: `[1, 2, 5]` or `1-5, 9`; `all` for every one. By default all but those that "
        "the file marks as alpha, which is read as a mask, or as bad (ENVI's `bbl`).",
    )
    names: tuple[str, ...] = Field(
        default=(),
        description="Names of these bands; by default what the file says, unless it names all alike. Bands of tiles "
        "and of scenes to be mapped are put in the order of their names.",
    )
    units: str = Field(default="", description="Units of the values, e.g. `reflectance`, `m`, `dB`.")
    nodata: float | None = Field(
        default=None,
        allow_inf_nan=True,
        description="The number that means no data, as stored; `.nan` for NaN. By default what the file says.",
    )
    scale: float | None = Field(
        default=None,
        ge=-1e30,
        le=1e30,
        description="value = number * scale + offset; by default what the file says, else 1.",
    )
    offset: float | None = Field(
        default=None, ge=-1e30, le=1e30, description="See `scale`; by default what the file says, else 0."
    )
    decibel: bool = Field(default=False, description="Convert linear power to dB.")
    decode: SignedSquareSettings | None = Field(
        default=None, description="How numbers become values where scale and offset do not say it."
    )
    stretch: bool = Field(
        default=False,
        description="Bring the values of each band to 0 at the least and 1 at the largest of the tile; its units then "
        "say so.",
    )
    zoom: int = Field(
        default=1, ge=1, le=64, description="Keep the modality this many times finer than the reference grid, 1 to 64."
    )
    resampling: ResamplingName = Field(
        default="bilinear", description="How it is resampled if it is on another grid than the reference."
    )
    crs: str | None = Field(default=None, description="CRS of the raster if the file has none, e.g. `EPSG:32632`.")
    sensor: str = Field(default="", description="What measured it, in words.")
    metres: float | None = Field(default=None, gt=0, le=1e7, description="Pixel size in metres if the file has none.")
    dates: DateSettings | None = Field(
        default=None,
        description="A raster per date, whose names hold it where `path` has `{date}`; or what else says the dates. "
        "`{}` is enough.",
    )

    @pydantic.field_validator("bands", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("name one band at least, or leave it out for all")
        if not isinstance(value, str):
            return value
        bands: list[int] = []
        if value.strip() == "all":
            return bands
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if not match:
                raise ValueError("write bands like '1-5, 9' or [1, 2, 5], or all")
            first, last = int(match.group(1)), int(match.group(2) or match.group(1))
            if last > BANDS:
                raise ValueError(f"a raster has at most {BANDS:,} bands")
            if last < first:
                raise ValueError(f"{part.strip()} runs backwards; list the bands one by one, like [3, 2, 1]")
            bands += range(first, last + 1)
        return bands

    @pydantic.model_validator(mode="after")
    def _one_decoding(self) -> ModalitySettings:
        if self.decode and (self.scale is not None or self.offset is not None or self.decibel):
            raise ValueError("`decode` stands in place of `scale`, `offset` and `decibel`; leave these out")
        return self

    @property
    def decoding(self) -> Decoding:
        """The part that turns numbers into values."""
        if self.decode:
            return Decoding(self.nodata, 1.0, 0.0, signed_square=self.decode.divide)
        return Decoding(self.nodata, self.scale, self.offset, self.decibel)

    @property
    def decode_words(self) -> str:
        """What a bundle keeps of `decode`."""
        return f"{self.decode.kind} {self.decode.divide:.9g}" if self.decode else ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths as they are written."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def mask_path(self) -> tuple[str, ...]:
        """That of the raster which says where a date is clear, if there is one."""
        mask = self.dates and self.dates.mask
        return (mask.path,) if mask and mask.path else ()


class JoinSettings(Settings):
    """A table joined to polygons."""

    path: str = Field(description="A CSV file that holds the attribute.")
    key: str = Field(description="The column that both the CSV file and the polygons have.")


class FurtherLabels(Settings):
    """A further raster of codes, where training and test labels have files of their own; or labels that came later."""

    path: str | None = Field(default=None, description="The raster, or a .mat file; `{tile}` is allowed.")
    variable: str | None = Field(default=None, description="The variable of a .mat file.")
    polygons: Paths = Field(
        default=(),
        description="Or vector files, or tables of points, of labels that came later, as of `landfuse next`. They "
        "train and leave the split as it is; where its blocks or tiles have another role, and within its `buffer`, "
        "they have none. Rows of a reference sample, those with a `probability`, judge maps and are left out.",
    )
    attribute: str = Field(
        default="reference", description="The column of `polygons` that names the class: its value, name or code."
    )

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> FurtherLabels:
        if bool(self.path) == bool(self.polygons):
            raise ValueError("further labels need either `path` (a raster of codes) or `polygons`, not both")
        return self


class ColourSettings(Settings):
    """Labels that are pictures of three bands: a pixel's class is the one in the legend that has its `colour`."""

    ignored: tuple[Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")], ...] = Field(
        default=(), description="Colours that mean unlabelled, `#RRGGBB`."
    )
    tolerance: float = Field(
        default=0.0,
        ge=0,
        le=442,
        description="Largest distance of a colour from the nearest one of the legend and `ignored`, in red, green and "
        "blue, 0 to 442; above 0 for pictures that were compressed with loss.",
    )


class LabelSettings(Settings):
    """The labels of a scene file: a raster of codes, or polygons."""

    path: str | None = Field(default=None, description="Raster of codes, or a .mat file; `{tile}` is allowed.")
    variable: str | None = Field(default=None, description="The variable of a .mat file.")
    axes: str = Field(default="HW", description="Axes of that variable, `HW` or `WH`.")
    also: tuple[FurtherLabels, ...] = Field(
        default=(),
        description="Further rasters of codes, with the same `axes`; or labels that came later. No pixel may have two "
        "classes.",
    )
    polygons: Paths = Field(
        default=(),
        description="Vector files, or tables (CSV) of points with the columns `longitude` and `latitude`, or `x` and "
        "`y` (with `crs`); `{tile}` is allowed.",
    )
    attribute: str | None = Field(default=None, description="The column of the polygons that names the class.")
    join: JoinSettings | None = Field(
        default=None, description="A CSV file that holds the attribute, if the polygons have only a key."
    )
    all_touched: bool = Field(
        default=False, description="Polygons label every pixel that they touch, not only those whose centre they hold."
    )
    overlap: Literal["last", "first", "unlabelled"] = Field(
        default="last",
        description="Where polygons of two classes overlap: the `last` in the file wins, the `first`, or `unlabelled`.",
    )
    ignored: tuple[Code, ...] = Field(default=(), description="Codes that mean unlabelled, besides 255.")
    nodata: Code | None = Field(
        default=None,
        description="The code that means no data, in place of the one that the file states; 255 for none.",
    )
    unlisted: Literal["error", "unlabelled"] = Field(
        default="error", description="What codes or attribute values outside the legend are."
    )
    crs: str | None = Field(default=None, description="CRS of the raster or vector file if it has none.")
    colours: ColourSettings | None = Field(
        default=None, description="The raster is a picture in the colours of the legend; `{}` is enough."
    )

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> LabelSettings:
        if bool(self.path) == bool(self.polygons):
            raise ValueError("labels need either `path` (a raster of codes) or `polygons`, not both")
        if self.polygons and not self.attribute:
            raise ValueError("labels from polygons need `attribute`, the column that names the class")
        if self.polygons and any(one.path for one in self.also):
            raise ValueError("rasters under `also` go with `path`, not with `polygons`")
        if self.colours and (self.polygons or self.variable or self.ignored or self.nodata is not None):
            raise ValueError("`colours` goes with a picture under `path`, and lists its own `ignored`")
        if self.polygons and self.nodata is not None:
            raise ValueError("`nodata` goes with `path`; polygons have none")
        return self

    @property
    def decoding(self) -> Decoding:
        """The part that says where there are no codes."""
        return Decoding(self.nodata)

    @property
    def without_class(self) -> list[int]:
        """The codes that mean unlabelled, besides 255."""
        return [*self.ignored, *([] if self.nodata is None else [self.nodata])]

    @property
    def counter(self) -> Counter[str] | None:
        """Takes what the legend lacks, and makes it unlabelled; None if that is an error."""
        return Counter() if self.unlisted == "unlabelled" else None

    @property
    def rasters(self) -> list[LabelSettings]:
        """One per raster of codes, the first being that of `path`; none where labels are polygons."""
        rasters = [one for one in self.also if one.path]
        further = [self.model_copy(update={"path": one.path, "variable": one.variable}) for one in rasters]
        return [self, *further] if self.path else []

    @property
    def later(self) -> list[FurtherLabels]:
        """Vector files of labels that came later."""
        return [one for one in self.also if one.polygons]

    @property
    def paths(self) -> list[str]:
        """All its files but a joined table, as they are written."""
        further = (path for one in self.also for path in (one.path, *one.polygons))
        return [path for path in (self.path, *self.polygons, *further) if path]


class ClassSettings(Settings):
    """One class of the legend."""

    name: str = Field(description="Name of the class.")
    code: int | None = Field(
        default=None, description="Its code in label rasters and maps, 0 to 254; by default its place, from 1."
    )
    colour: str | None = Field(
        default=None,
        min_length=1,
        description="`#RRGGBB`; by default the one that people expect of the name, else one of a fixed table of 40.",
    )
    value: str | None = Field(
        default=None,
        coerce_numbers_to_str=True,
        description="Its value in the attribute of polygons; by default the name.",
    )
    scored: bool = Field(
        default=True,
        description="Whether it enters the means over classes (AA, mF1, mIoU); false for e.g. clutter, which is "
        "learned and mapped all the same.",
    )

    @pydantic.field_validator("name", "value")
    @classmethod
    def _one_form(cls, value: str | None) -> str | None:
        return value and nfc(value)


class CountSettings(Settings):
    """Published numbers of a data set, which `check` must find. Lists have a number per class, in order."""

    labelled: tuple[Pixels, ...] | None = Field(default=None, description="Labelled pixels.")
    train: tuple[Pixels, ...] | None = Field(
        default=None,
        description="Training pixels of the official split; validation taken from training counts as training.",
    )
    validation: tuple[Pixels, ...] | None = Field(
        default=None, description="Validation pixels, if the official split has its own."
    )
    test: tuple[Pixels, ...] | None = Field(default=None, description="Test pixels of the official split.")
    tiles: int | None = Field(default=None, ge=0, le=10**9, description="Number of tiles.")
    size: tuple[Pixels, Pixels] | None = Field(default=None, description="Rows and columns of the reference grid.")
    bands: dict[str, Pixels] = Field(default={}, description="Number of bands by modality.")

    @property
    def per_class(self) -> dict[str, tuple[int, ...]]:
        """The lists that are given, by name."""
        names = ("labelled", "train", "validation", "test")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class DownloadSettings(Settings):
    """One file that `landfuse fetch` downloads."""

    address: str = Field(pattern=r"^https?://", description="http or https.")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="Checksum; if there is none, that of the file is reported."
    )
    size: int | None = Field(default=None, gt=0, lt=2**63, description="Bytes; by default what the server says.")
    name: FileName | None = Field(
        default=None, description="Name of the file; by default the last part of the address."
    )
    unpack: bool = Field(default=False, description="Unpack the archive (.zip, .tar, .tar.gz, ...) and remove it.")
    folder: str = Field(default=".", description="The folder that it is saved in, within `root`.")

    @pydantic.field_validator("folder")
    @classmethod
    def _within(cls, value: str) -> str:
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if path.anchor or ".." in path.parts:
                raise ValueError("name a folder within `root`")
        return value

    @pydantic.model_validator(mode="after")
    def _has_a_name(self) -> DownloadSettings:
        file_name(self.file)
        return self

    @property
    def file(self) -> str:
        """The file's name."""
        return self.name or self.address.split("?")[0].rstrip("/").rsplit("/", 1)[-1]


class FetchSettings(Settings):
    """How the data come to `root`."""

    files: tuple[DownloadSettings, ...] = Field(default=(), description="What is downloaded.")
    manual: str = Field(
        default="", description="What a person has to get, where from, and under which names it belongs into `root`."
    )


class SceneSettings(Settings):
    """All that a scene file may say."""

    name: FileName = Field(description="Short name of the place; its map is saved under it.")
    title: str = Field(default="", description="What it is, in a line.")
    citation: str = Field(default="", description="How to cite the data.")
    licence: str = Field(default="", description="Licence of the data.")
    address: str = Field(default="", description="Where a user gets the data.")
    georeferenced: bool = Field(
        default=True,
        description="False for rasters that have no CRS and need none; rasters without a place of their own are on the "
        "reference grid if they have its size.",
    )
    root: str = Field(
        default=".",
        description="The folder that paths start from, relative to the scene file; `${NAME:-default}` is an "
        "environment variable; `${LANDFUSE_DATA}` without a default is where `landfuse fetch` saves data.",
    )
    tiles: tuple[FileName, ...] | str | None = Field(
        default=None,
        description="Names that replace `{tile}`; by default all for which the reference raster exists. Or a table "
        "(CSV, GeoPackage) of a row per tile with its name in the column `tile`; paths then name further columns, as "
        "`{s2}`.",
    )
    reference: str | None = Field(
        default=None,
        description="Whose grid is the scene's: `labels` or a modality; by default the first modality of zoom 1.",
    )
    modalities: dict[str, ModalitySettings] = Field(min_length=1, description="Modalities by name.")
    labels: LabelSettings | None = Field(default=None, description="Where the classes are known.")
    legend: tuple[ClassSettings, ...] = Field(default=(), description="The classes, in order.")
    split: SplitSettings | None = Field(default=None, description="Which labelled pixels train, validate and test.")
    counts: CountSettings | None = Field(
        default=None, description="Published numbers, which `check` compares with what it finds."
    )
    fetch: FetchSettings | None = Field(default=None, description="How `landfuse fetch` gets the data.")

    @pydantic.field_validator("tiles", mode="before")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("name one tile at least, or leave it out")
        return value

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
            m = self.modalities[name]
            if any("{date}" in path for path in m.paths) and not m.dates and not isinstance(self.tiles, str):
                wrong.append(f"the path of `{name}` has `{{date}}`; add `dates: {{}}`")
            if name in ("labels", "default"):
                wrong.append(f"a modality is named `{name}`, a word that scene files and recipes use otherwise")
        values = [c.value if c.value is not None else c.name for c in self.legend]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice and self.labels and self.labels.polygons:
            wrong.append(f"two classes of `legend` have the value {', '.join(twice)}")
        codes = {c.code if c.code is not None else place: c.name for place, c in enumerate(self.legend, start=1)}
        if self.labels:
            given = [*(("ignored", code) for code in self.labels.ignored), ("nodata", self.labels.nodata)]
            wrong += [
                f"`labels.{word}` names {code}, the code of the class `{codes[code]}`"
                for word, code in given
                if code in codes
            ]
        tiles = [] if self.tiles is None or isinstance(self.tiles, str) else list(self.tiles)
        if len(set(tiles)) < len(tiles):
            wrong.append(f"`tiles` names {', '.join(sorted({t for t in tiles if tiles.count(t) > 1}))} more than once")
        if tiles and "{tile}" not in self.paths[0]:
            wrong.append("`tiles` are named, but the path of the reference raster has no `{tile}`")
        elif (
            not isinstance(self.tiles, str) and "{tile}" not in self.paths[0] and any("{tile}" in p for p in self.paths)
        ):
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
        found = {name: (*m.paths, *m.mask_path) for name, m in self.modalities.items()}
        found["labels"] = tuple(self.labels.paths) if self.labels else ()
        first = found.pop(self.reference_name, ("",))
        return [*first, *(path for paths in found.values() for path in paths)]

    @property
    def files(self) -> list[str]:
        """The paths of all files that the scene is read from, as they are written."""
        split = self.split.model_dump() if self.split else {}
        masks = [split[key] for key in ("train", "test", "val", "path") if isinstance(split.get(key), str)]
        join = [self.labels.join.path] if self.labels and self.labels.join else []
        table = [self.tiles] if isinstance(self.tiles, str) else []
        return list(dict.fromkeys([*self.paths, *join, *masks, *table, *split.get("lists", {}).values()]))


VARIABLE = "LANDFUSE_DATA"


def data_folder() -> Path:
    """The folder that the environment variable LANDFUSE_DATA names, else the platform's folder for a user's caches."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("landfuse")


def expand_root(text: str) -> str:
    """Expands `root`, in which `${LANDFUSE_DATA}` without a default is the data folder."""
    return expand(text, {VARIABLE: str(data_folder())} if f"${{{VARIABLE}}}" in text else None)
