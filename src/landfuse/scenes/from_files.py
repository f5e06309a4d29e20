"""A scene file and a recipe proposed from files that people have, with the reason of each choice beside it."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from landfuse.errors import LandfuseError, MissingFileError, OutputError, SceneError, SettingsError, SplitError, nearest
from landfuse.files import write_text
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.polygons import TEXT, read_rows
from landfuse.rasters.windows import Window
from landfuse.scenes.land_cover_map import class_names
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile, natural
from landfuse.scenes.scene_keys import SceneSettings
from landfuse.scenes.split_rules import BlocksSplit, GroupedSplit, PolygonsSplit, TilesSplit
from landfuse.scenes.split_search import Found, search
from landfuse.series.dates import DATE, parse_day
from landfuse.settings import parse

RASTERS = (".tif", ".tiff", ".vrt", ".img", ".jp2", ".dat", ".bsq", ".bil", ".bip", ".asc")
VECTORS = (".gpkg", ".shp", ".geojson", ".fgb", ".gml", ".kml")
_OTHERS = {
    ".mat": "its variable and axes have to be named in a scene file: docs/how-to/matlab.md",
    ".zarr": "name it by hand: docs/how-to/time-series.md",
    ".nc": "name a subdataset by hand: docs/add-a-scene.md",
    ".h5": "name a subdataset by hand: docs/add-a-scene.md",
    ".hdf": "name a subdataset by hand: docs/add-a-scene.md",
    ".zip": "unpack it first",
    ".las": "make a height raster of it first",
    ".laz": "make a height raster of it first",
}
"""Files of data that are not looked into, and what to do."""

_SENSORS = {
    "s2": r"s2[abc]?|sentinel2[abc]?|msi(l[12][ac])?|s2(l[12][ac]|msi)",
    "s1": r"s1[abc]?|sentinel1[abc]?|s1(grd|rtc)|vv|vh|hh|hv|sar|grd|rtc|palsar2?|terrasar|tsx|csk|gf3|backscatter",
    "landsat": r"landsat\d?|l[cet]0?[4-9]|oli|etm",
    "hsi": r"hsi?|hyperspectral|hyper|enmap|prisma|aviris|casi|hymap|hyspex|desis",
    "height": r"chm|ndsm|hag|heights?|canopy|lidar",
    "dem": r"dem|dtm|dsm|srtm|elevation|copdem|terrain|dgm|mnt",
    "rgb": r"rgb|rgbn|ortho(photo)?s?|naip|aerial|uav|drone|cir|dop",
    "planet": r"planet(scope)?|psscene",
    "optical": r"optical|opt|ms|multispectral|spot\d?|pleiades|worldview\d?",
}
"""Modality -> the words of names of files and folders by which it is known; the first that fits."""
_LABELS = r"labels?|gt|groundtruth|truth|classes|lulc|landcover|annotations?|targets?|masks?"
LEFT_OUT = r"tci|pvi|quicklook|preview|browse|thumb(nail)?|scl|aot|wvp|qa\d*|msk.*|cldprb|snwprb"
"""Words of names of pictures to look at, and of masks of quality: copies or by-products of images, found in folders."""
_BAND = r"b\d{1,2}a?|band\d*|red|green|blue|nir\d?|swir\d?|vv|vh|hh|hv"
_COLUMN = r".*(class|label|land_?cover|land_?use|crop|species|type|category|klasse|nutzung|name).*|lc|lu|code"
_MOST_VALUES = 60  # of a column that names classes
_SAMPLE = 256  # px, side of the window that is looked at
_WIDE = 30  # bands, from which on it is hyperspectral
_SPLIT = 3  # roles, among which the shapes of a class are dealt
_FEW_TILES = 6  # below, tiles are too few to be split whole
_FEW_LABELS = 2_000  # px, below which a forest is trained
_MANY_PIXELS = 4_000_000  # px, beyond which a forest maps
_VIEW = 9  # px
_MONTHS = 62  # days, beyond which dates are brought to months
_CONTEXT = 15  # px, the view of a forest


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # from the common folder, with slashes; of several that differ by their date alone, with `{date}`
    raster: GdalRaster
    days: tuple[date, ...] = ()  # of these

    @property
    def words(self) -> list[list[str]]:
        """The words of the file's name, then of its folders upwards."""
        parts = [self.name.rsplit("/", 1)[-1].rsplit(".", 1)[0], *reversed(self.name.split("/")[:-1])]
        return [_words(part) for part in parts]

    def says(self, pattern: str) -> bool:
        """Whether a word of its name or its nearest folder fits."""
        return any(re.fullmatch(pattern, word) for words in self.words[:2] for word in words)

    @property
    def whole_numbers(self) -> bool:
        return self.raster.bands == 1 and np.dtype(self.raster.dtype).kind in "iu"


@dataclass(frozen=True)
class _Group:
    """Files of one modality: one, or one for each tile."""

    name: str
    patterns: tuple[str, ...]  # several where each band has a file of its own
    tiles: Mapping[str, _File]  # under "" where it is one
    why: str
    names: tuple[str, ...] = ()  # of its bands, by the names of files
    mask: str = ""  # what says where its dates are clear, as YAML

    @property
    def first(self) -> _File:
        return next(iter(self.tiles.values()))

    @property
    def pixel(self) -> float:
        """Size of a pixel in metres, roughly where the CRS is geographic."""
        grid = self.first.raster.own_grid
        return grid.pixel_size[0] * (111_320.0 if abs(grid.transform[2]) <= 360 and grid.pixel_size[0] < 0.1 else 1.0)


@dataclass(frozen=True)
class DatedFiles:
    """A modality with dates in the folder of the scene file, such as the items of a collection.

    Args:
        patterns: its paths there, with `{date}`.
        names: of the bands, where each asset has one.
        mask: the setting of what is clear, as YAML; empty for none.
        why: of the choices, in words.
    """

    name: str
    patterns: tuple[str, ...]
    days: tuple[date, ...]
    names: tuple[str, ...]
    mask: str
    why: str


Catalog = Callable[[Path, list[str], set[str]], tuple[list[DatedFiles], list[Path]]]
"""Writes modalities into a folder; takes notes, and the names that others have. Returns also which folders are new."""


@dataclass
class Proposal:
    """A scene file and a recipe, not yet written.

    Args:
        file: the scene file as it will be read.
        notes: what was left out, and what could not be chosen well.
        made: folders that were written for it, and are removed if it cannot be.
    """

    scene: str
    recipe: str
    file: SceneFile
    notes: list[str] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)

    def write(self) -> tuple[Path, Path]:
        """Writes `scene.yaml` and `recipe.yaml`, and returns their paths.

        Raises:
            OutputError: if one of them is there already, or cannot be written.
        """
        places = self.file.path, self.file.path.with_name("recipe.yaml")
        for place, text in zip(places, (self.scene, self.recipe), strict=True):
            if place.exists() and place.read_text(encoding="utf-8", errors="replace") != text:
                _remove(self.made)
                raise OutputError(
                    f"{place} is there already, and differs from what these files give",
                    "a folder without it",
                    "go on with it by `landfuse train`; or remove it, or name another folder by -o",
                )
        for place, text in zip(places, (self.scene, self.recipe), strict=True):
            write_text(place, text)
        return places


def propose(
    places: Sequence[str | Path],
    folder: str | Path = ".",
    *,
    labels: str | Path | None = None,
    column: str | None = None,
    choose: Callable[[str, Sequence[str]], str] | None = None,
    catalog: Catalog | None = None,
) -> Proposal:
    """Looks at files and proposes a scene file and a recipe.

    Args:
        places: rasters, vector files with labels, or folders of them.
        folder: where the scene file is to be; paths in it start from there.
        labels: the file of labels, raster or vector; by default the one that looks like it.
        column: of a vector file, the one that names the class; by default the one that looks like it.
        choose: asked where several columns could be meant: called with a question and the columns, returns one.
        catalog: writes further modalities into the folder, as `Catalog.write` of `landfuse.catalogs.stac` does.

    Raises:
        MissingFileError: if there is no raster.
        SceneError: if files cannot be grouped into modalities and tiles, or the column is not clear.
        FaultsError: if the scene that follows has faults.
    """
    notes: list[str] = []
    left: dict[str, list[Path]] = {}
    rasters, vectors = _find(places, labels, notes, left)
    truth = _label_files(rasters, labels)
    if truth and vectors and labels is None:
        raise SceneError(
            f"the labels could be {truth[0].path} or {vectors[0]}", "a raster or a vector file", "name it by --labels"
        )
    known = bool(truth or vectors)
    images = [one for one in rasters if one not in truth and not (known and _of_classes(one, places, left))]
    finest: dict[str, _File] = {}
    for one in sorted(images, key=lambda one: one.raster.own_grid.pixel_size[0]):
        if finest.setdefault(re.sub(r"(?<![a-z0-9])r?\d+m(?![a-z0-9])", "", one.name.lower()), one) is not one:
            left.setdefault("its name differs from another's only by larger pixels", []).append(one.path)
            images.remove(one)
    for why, paths in left.items():
        notes.append(f"{paths[0]} {f'and {len(paths) - 1} more are' if paths[1:] else 'is'} left out: {why}")
    if not images and catalog is None:
        raise MissingFileError(
            f"no raster is in {', '.join(map(str, places))}",
            "images that GDAL reads",
            "; ".join(notes) or "check the path; unpack archives",
        )
    groups = _modalities(_by_date(images))
    top = rasters[0].path.resolve().parents[rasters[0].name.count("/")] if rasters else Path(folder).resolve()
    label_group = _grouped("labels", truth, "") if truth else []
    if len(label_group) > 1:
        raise SceneError(
            f"several rasters could be the labels: {', '.join(g.first.name for g in label_group[:4])}",
            "one, or one for each tile, like TILE/labels.tif or labels/TILE.tif",
            "name it by --labels; or write a scene file, where `tiles` is a table of the files",
        )
    made: list[Path] = []
    try:
        if catalog is not None:
            series, made = catalog(Path(folder), notes, {group.name for group in groups})
            groups += [_of_catalog(one, Path(folder), top) for one in series]
        scene = _Text(groups, replace(label_group[0], name="labels") if label_group else None, Path(folder), top)
        if not truth:
            scene.add_polygons(_vectors(vectors, labels), column, choose, places, notes)
        return replace(scene.finish(notes), made=made)
    except BaseException:
        _remove(made)
        raise


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _of_catalog(series: DatedFiles, folder: Path, top: Path) -> _Group:
    """A modality of a catalog, whose paths start from the common folder."""
    before = Path(os.path.relpath(folder.resolve(), top))
    paths = [(before / pattern).as_posix() for pattern in series.patterns]
    first = folder / series.patterns[0].replace("{date}", str(series.days[0]))
    file = _File(first, paths[0], GdalRaster(str(first)), series.days)
    mask = series.mask.replace('"', f'"{before.as_posix()}/' if before != Path() else '"', 1)
    return _Group(series.name, tuple(paths), {"": file}, series.why, series.names, mask)


def _find(
    places: Sequence[str | Path], labels: str | Path | None, notes: list[str], left: dict[str, list[Path]]
) -> tuple[list[_File], list[Path]]:
    """The rasters and the vector files in some places; `left` gets what is left out, by the reason."""
    found: dict[Path, Path] = {}
    labels = Path(labels) if labels else None
    for place in map(Path, [*places, *([labels] if labels else [])]):
        if not place.exists():
            kind = "labels, raster or vector" if place == labels else "rasters, or a folder of them"
            raise MissingFileError(f"there is no file {place}", kind, "check the path")
        inside = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(place).parts)]
        found |= {p.resolve(): p for p in inside}
    files = list(dict.fromkeys(map(_whole_group, found.values())))
    top = Path(os.path.commonpath([p.resolve().parent for p in files])) if files else Path()
    rasters: list[_File] = []
    vectors: list[Path] = []
    for path in files:
        kind, header = path.suffix.lower(), path.with_name(path.name + ".hdr")
        if kind in VECTORS:
            vectors.append(path)
        elif kind in RASTERS or ((header.exists() or path.with_suffix(".hdr").exists()) and kind != ".hdr"):
            raster = GdalRaster(str(path))
            if path not in map(Path, places) and re.search(rf"(^|[^a-z])({LEFT_OUT})([^a-z]|$)", path.stem.lower()):
                left.setdefault("by its name a picture to look at, or a mask", []).append(path)
                continue
            try:
                raster.check()
            except LandfuseError as error:
                notes.append(f"{error.found}; it is left out")
                continue
            rasters.append(_File(path, path.resolve().relative_to(top).as_posix(), raster))
        elif kind in _OTHERS:
            left.setdefault(_OTHERS[kind], []).append(path)
    return rasters, vectors


def _whole_group(path: Path) -> Path:
    """The folder of the Zarr group that a file belongs to; else the file."""
    return next((folder for folder in path.parents if folder.suffix.lower() == ".zarr"), path)


def _by_date(files: Sequence[_File]) -> list[_File]:
    """The files, those of one place that differ by a date alone as one."""
    groups: dict[str, dict[date, _File]] = {}
    for one in files:
        texts = set(re.findall(rf"(?<!\d){DATE}(?!\d)", one.name))
        name, day = one.name, date.min
        if len(texts) == 1:
            with suppress(SettingsError):  # a number that is no date
                text = texts.pop()
                day = parse_day(text, one.name)
                name = one.name.replace(text, "{date}")
        if groups.setdefault(name, {}).setdefault(day, one) is not one:
            groups[one.name] = {day: one}
    found: list[_File] = []
    for name, dated in groups.items():
        several, first = list(dated.values()), next(iter(dated.values()))
        kinds = [(one.raster.bands, one.raster.own_grid) for one in several]
        if len(several) > 1 and kinds.count(kinds[0]) == len(kinds):
            found.append(replace(first, name=name, days=tuple(sorted(dated))))
        else:
            found += several
    return found


def _label_files(rasters: Sequence[_File], labels: str | Path | None) -> list[_File]:
    """The rasters of labels: in the place that is named, else those that look like it."""
    if labels is None:
        return [one for one in rasters if one.whole_numbers and one.says(_LABELS)]
    place = Path(labels).resolve()
    chosen = [one for one in rasters if place in (one.path.resolve(), *one.path.resolve().parents)]
    if not chosen and place.suffix.lower() not in VECTORS and not place.is_dir():
        raise SceneError(
            f"{labels} is neither a raster nor a vector file", f"one that GDAL reads, e.g. {', '.join(VECTORS)}", ""
        )
    return chosen


def _of_classes(one: _File, places: Sequence[str | Path], left: dict[str, list[Path]]) -> bool:
    """Whether a raster in a folder holds classes, as an old map does, but is not the labels; it is then left out."""
    if one.path in map(Path, places) or not one.whole_numbers:
        return False
    if not one.says(_LABELS) and (
        _sensor(one)[0] or one.raster.dtype != "uint8" or len(np.unique(one.raster.read_codes())) > _MOST_VALUES
    ):
        return False
    left.setdefault("it looks like a map of classes, and is not the labels", []).append(one.path)
    return True


def _vectors(vectors: Sequence[Path], labels: str | Path | None) -> list[tuple[Path, list[dict[str, str | None]]]]:
    """The vector files of labels with their attributes; several belong together if they have the same columns."""
    read = [(path, read_rows(path)) for path in ([Path(labels)] if labels is not None else vectors)]
    if len({tuple(rows[0]) if rows else () for _, rows in read}) > 1:
        raise SceneError(
            f"several vector files could be the labels: {', '.join(path.name for path, _ in read[:5])}",
            "one, or several of the same columns",
            "name it by --labels",
        )
    return read


def _modalities(files: Sequence[_File]) -> list[_Group]:
    """Files as modalities: by the sensor that their names or folders mention, else by folder or name."""
    by_sensor: dict[str, list[_File]] = {name: [] for name in [*_SENSORS, ""]}
    for one in files:
        by_sensor[_sensor(one)[0]].append(one)
    used: Counter[str] = Counter()
    unique = []
    for name, same in by_sensor.items():
        for group in _grouped(name, same, _sensor(same[0])[1] if same else ""):
            used[group.name] += 1
            number = used[group.name]
            unique.append(group if number == 1 else replace(group, name=f"{group.name}_{number}"))
    return unique


def _words(text: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", re.sub(r"(sentinel|landsat)[-_ ]?(\d)", r"\1\2", text.lower()))


def sensor_of(text: str) -> str:
    """The modality that a text names, such as `s2` by `sentinel-2-l2a`; empty for none."""
    words = _words(text)
    return next((name for name, known in _SENSORS.items() if any(re.fullmatch(known, w) for w in words)), "")


def _sensor(one: _File) -> tuple[str, str]:
    """The modality that a file is of, and why."""
    for words in one.words:
        for name, pattern in _SENSORS.items():
            word = next((word for word in words if re.fullmatch(pattern, word)), None)
            if word is not None:
                return name, f"by `{word}` in its name"
    if one.raster.bands == 1 and any(re.fullmatch(r"b\d\d|b8a", word) for word in one.words[0]):
        return "s2", "by the names of its bands"
    if one.raster.bands > _WIDE:
        return "hsi", f"by its {one.raster.bands} bands"
    return "", ""


def _grouped(name: str, files: Sequence[_File], why: str) -> list[_Group]:
    """Files of one sensor as groups: tiles of a modality have as many bands, and lie beside each other."""
    by_kind: dict[tuple[Any, ...], list[_File]] = {}
    for one in files:
        bands = [word for word in one.words[0] if re.fullmatch(_BAND, word)] if one.raster.bands == 1 else []
        folder = one.name.rpartition("/")[0] if not name else ""
        by_kind.setdefault((one.raster.bands, folder, tuple(bands)), []).append(one)
    found: dict[tuple[str, frozenset[str], bool], list[_Group]] = {}
    for (_, folder, bands), same in by_kind.items():
        called = name or folder.rpartition("/")[2]
        for label, pattern, tiles in _laid_out(same):
            group = _Group(
                identifier(f"{called}_{label}") or "image", (pattern,), tiles, why, ("_".join(bands).upper(),)
            )
            found.setdefault((group.name, frozenset(tiles), bool(bands)), []).append(group)
    groups = []
    for (called, _, single), several in found.items():
        if single and len(several) > 1:  # a file per band
            several.sort(key=lambda group: natural(group.names[0]))
            patterns, names = tuple(g.patterns[0] for g in several), tuple(g.names[0] for g in several)
            groups.append(_Group(called, patterns, min(several, key=lambda group: group.pixel).tiles, why, names))
        else:
            groups += [replace(group, names=()) for group in several]
    return groups


def _laid_out(same: Sequence[_File]) -> list[tuple[str, str, dict[str, _File]]]:
    """Files of one kind as tiles of one modality, or as modalities of their own: a label, the path, the tiles."""
    stems = [one.name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for one in same]
    pattern = _pattern([one.name for one in same], wild=bool(_sensor(same[0])[0])) if len(same) > 1 else None
    if len(same) == 1:
        words = re.split(r"[_\-. ]+", stems[0])
        label = "_".join(word for word in words if same[0].raster.bands > 1 or not re.fullmatch(_BAND, word.lower()))
        label = "" if _sensor(same[0])[0] or "/" in same[0].name else label
        return [(label, same[0].name, {"": same[0]})]
    if pattern and "*" in pattern[0]:
        top = Path(str(same[0].path.resolve()).removesuffix(same[0].name.replace("/", os.sep)))
        if any(len(list(top.glob(pattern[0].replace("{tile}", glob.escape(tile))))) > 1 for tile in pattern[1]):
            pattern = None  # other files fit as well
    if pattern is None or same[0].raster.own_grid == same[1].raster.own_grid:  # several images of one place
        labels = pattern[1] if pattern else stems
        return [(label, one.name, {"": one}) for label, one in zip(labels, same, strict=True)]
    return [("", pattern[0], dict(zip(pattern[1], same, strict=True)))]


def _pattern(names: Sequence[str], wild: bool) -> tuple[str, list[str]] | None:
    """One pattern with `{tile}` that fits all names, and what stands for it; None if they differ in several places.

    With `wild`, `*` stands for what else differs, e.g. the date.
    """
    split = [re.split(r"([_\-. /]+)", name) for name in names]
    shortest = min(map(len, split))
    head = next((i for i in range(shortest) if len({t[i] for t in split}) > 1), shortest)
    tail = next((i for i in range(shortest - head) if len({t[-1 - i] for t in split}) > 1), shortest - head)
    middles = ["".join(t[head : len(t) - tail]) for t in split]
    choices = [(middles, [[*t[:head], m, *t[len(t) - tail :]] for t, m in zip(split, middles, strict=True)])]
    if len(set(map(len, split))) == 1:
        choices += [([t[i] for t in split], split) for i in range(head, shortest) if len({t[i] for t in split}) > 1]
    found: list[tuple[tuple[bool, bool, int], tuple[str, list[str]]]] = []
    for values, tokens in choices:
        if len(set(values)) < len(names) or any(not v or "/" in v or v.startswith(".") for v in values):
            continue
        named = [["{tile}" if x == v else x for x in t] for t, v in zip(tokens, values, strict=True)]
        columns = (column[0] if len(set(column)) == 1 else "*" for column in zip(*named, strict=True))
        pattern = re.sub(r"\*+", "*", "".join(columns))
        dated = all(re.match(r"\d{6,}", v) for v in values)
        if "*" not in pattern or (wild and "[" not in pattern and "{tile}" in pattern):
            found.append((("*" in pattern, dated, -pattern.count("{tile}")), (pattern, values)))
    return min(found, key=lambda one: one[0])[1] if found else None


def identifier(text: str) -> str:
    """A text as the name of a modality."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
    name = f"m_{name}" if name[:1].isdigit() else name
    return f"{name}_image" if name in ("labels", "default", *_WORDS) else name


class _Text:
    """The scene file as it grows: keys, and the reasons that become comments."""

    def __init__(self, groups: Sequence[_Group], labels: _Group | None, folder: Path, top: Path) -> None:
        self.groups, self.labels, self.folder, self.top = list(groups), labels, folder, top
        self.root = Path(os.path.relpath(self.top, folder.resolve())).as_posix()
        self.legend: list[dict[str, Any]] = []
        self.label_lines: list[str] = []
        self.reference, self.reference_why = self._reference()

    def _reference(self) -> tuple[_Group, str]:
        if self.labels is not None:
            grid = self.labels.first.raster.own_grid
            fitting = [
                g for g in self.groups if g.first.raster.own_grid == grid and set(g.tiles) == set(self.labels.tiles)
            ]
            if fitting:
                return fitting[0], "it is on the grid of the labels, which are never resampled"
            return self.labels, "labels are never resampled: the images are brought to their grid"
        tiled = [g for g in self.groups if len(g.tiles) > 1] or self.groups
        wide = [g for g in tiled if g.first.raster.bands > _WIDE]
        finest = min(wide or tiled, key=lambda g: g.pixel)
        if any(g.pixel < finest.pixel for g in tiled):
            return finest, "finer pixels of other images would only repeat its many bands"
        return finest, "it has the smallest pixels" if len(self.groups) > 1 else "it is the only image"

    def add_polygons(
        self,
        files: Sequence[tuple[Path, list[dict[str, str | None]]]],
        column: str | None,
        choose: Callable[[str, Sequence[str]], str] | None,
        places: Sequence[str | Path],
        notes: list[str],
    ) -> None:
        """Labels from vector files, perhaps with a table of `places`; nothing where there is none."""
        if not files:
            notes.append("no labels were found: name them by --labels; without them a scene can be mapped, not trained")
            return
        shapes = rows = [row for _, some in files for row in some]
        source, key = files[0][0], ""
        if not ([column] if column in _columns(rows) else column is None and _of_classes_in(rows)):
            source, key, rows = _joined(rows, places) or (source, key, rows)
        name, why = _column(source, rows, column, choose)
        counts = Counter(value for row in rows if (value := row[name]) is not None)
        few = sorted((v for v in counts if counts[v] < _SPLIT), key=natural)
        few = few if len(few) + 1 < len(counts) else []
        kept = sorted(counts.keys() - set(few), key=natural)
        self.legend = [{"name": v, "comment": f"{counts[v]} shape{'s' * (counts[v] > 1)}"} for v in kept]
        paths = [_quoted(Path(os.path.relpath(path.resolve(), self.top)).as_posix()) for path, _ in files]
        self.label_lines = [f"  polygons: [{', '.join(paths)}]  # {len(shapes)} shapes"]
        self.label_lines.append(f"  attribute: {_quoted(name)}  # {why}")
        if key:
            table = _quoted(Path(os.path.relpath(source.resolve(), self.top)).as_posix())
            line = f"  join: {{path: {table}, key: {_quoted(key)}}}  # it has the attribute of {len(rows)} shapes"
            self.label_lines.append(line)
        if few:
            self._leave_out(few, "of one or two shapes, too few to train, validate and test", notes)

    def _leave_out(self, names: Sequence[str], why: str, notes: list[str]) -> None:
        """Takes classes out of the legend; their shapes are unlabelled then."""
        words = f"classes {why}: {', '.join(names)}"
        self.legend = [one for one in self.legend if one["name"] not in names]
        if self.label_lines[-1].startswith("  unlisted:"):
            self.label_lines[-1] += f"; {words}"
        else:
            self.label_lines.append(f"  unlisted: unlabelled  # {words}")
        notes.append(f"left out are {words}")

    def finish(self, notes: list[str]) -> Proposal:
        """The whole text, after the scene that it describes was opened and its labels were read."""
        groups = self._tiles(notes)
        if self.labels is not None:
            self._raster_labels(self.labels)
        body = [
            "# Proposed by `landfuse init`; the reason of each choice is beside it.",
            f"name: {_quoted(self.folder.resolve().name or 'scene')}",
            f"root: {_quoted(self.root)}  # paths start from here",
            *self.tile_lines,
            f"reference: {self.reference.name}  # whose grid is the map's: {self.reference_why}",
        ]
        if not any(g.first.raster.own_grid.crs for g in groups):
            body.append("georeferenced: false  # no raster has a CRS")
        body += ["", "modalities:"]
        for group in groups:
            body += _modality_lines(group, None if group is self.reference else self.reference)
        images, scenes = body, self._opened(body + self._labelled()).scenes()
        recipe, view = self._recipe(scenes)
        if self.label_lines:
            found = set(np.concatenate([np.unique(scene.labels) for scene in scenes]).tolist())
            nowhere = [one["name"] for number, one in enumerate(self.legend) if number not in found]
            if nowhere and self.labels is None:
                self._leave_out(nowhere, "without a shape in the images", notes)
                scenes = self._opened(images + self._labelled()).scenes()
            body = images + self._labelled()
            body += ["", self._split(body, scenes, view // 2, notes)]
        return Proposal("\n".join(body) + "\n", recipe, self._opened(body), notes)

    def _labelled(self) -> list[str]:
        """What the scene file says of labels and classes."""
        if not self.label_lines:
            return []
        return ["", "labels:", *self.label_lines, "", "legend:", *map(_class_line, self.legend)]

    def _opened(self, lines: Sequence[str]) -> SceneFile:
        settings = parse(SceneSettings, yaml.safe_load("\n".join(lines)), "the proposed scene file")
        root = Path(os.path.normpath(self.folder.resolve() / settings.root))  # the folder may not be there yet
        return SceneFile(settings, str(root), self.folder / "scene.yaml")

    def _tiles(self, notes: list[str]) -> list[_Group]:
        """The modalities that cover the tiles of the reference; sets the lines that name the tiles."""
        tiles = set(self.reference.tiles)
        self.tile_lines: list[str] = []
        kept = []
        for group in [*self.groups, *([self.labels] if self.labels else [])]:
            if len(group.tiles) == 1 and "" in group.tiles:
                kept.append(group)
                continue
            common = tiles & set(group.tiles)
            if not common:
                raise SceneError(
                    f"`{group.name}` comes as {len(group.tiles)} files ({', '.join(list(group.tiles)[:3])}, ...) and "
                    f"`{self.reference.name}` as {', '.join(sorted(tiles)[:3]) if '' not in tiles else 'one'}",
                    "the same names of tiles, or one file",
                    "join the files by `gdalbuildvrt`, rename them, or leave some out",
                )
            tiles = common
            kept.append(group)
        if "" not in tiles and any(set(g.tiles) != tiles for g in kept if "" not in g.tiles):
            names = sorted(tiles, key=natural)
            self.tile_lines = [f"tiles: [{', '.join(map(_quoted, names))}]  # those that every modality has"]
            lost = set().union(*(set(g.tiles) for g in kept if "" not in g.tiles)) - tiles
            notes.append(f"tiles that lack a modality are left out: {', '.join(sorted(lost)[:5])} ({len(lost)} in all)")
        return [g for g in kept if g is not self.labels]

    def _raster_labels(self, group: _Group) -> None:
        """Labels from a raster: its codes, and what means unlabelled."""
        counts: dict[int, int] = {}
        names: dict[int, str] = {}
        for one in group.tiles.values():
            codes, found = np.unique(one.raster.read_codes(), return_counts=True)
            for code, n in zip(codes.tolist(), found.tolist(), strict=True):
                counts[int(code)] = counts.get(int(code), 0) + n
            names |= class_names(one.path)
        counts.pop(UNLABELLED, None)
        if not 0 < len(counts) <= _MOST_VALUES:
            raise SceneError(
                f"the labels {group.first.path} hold {len(counts)} different numbers besides {UNLABELLED}",
                f"codes of 1 to {_MOST_VALUES} classes",
                "name the raster of labels by --labels",
            )
        self.label_lines = [f"  path: {_quoted(group.patterns[0])}"]
        if 0 in counts and 0 not in names and len(counts) > 1:
            pixels = counts.pop(0)
            self.label_lines.append(
                f"  ignored: [0]  # taken as unlabelled ({pixels:,} px); if 0 is a class, remove this and list it below"
            )
        self.legend = [
            {"name": names.get(code, f"class {code}"), "code": code, "comment": f"{n:,} px"}
            for code, n in sorted(counts.items())
        ]

    def _recipe(self, scenes: Sequence[Scene]) -> tuple[str, int]:
        """The recipe, and the view of its model."""
        pixels = sum(scene.grid.window.pixels for scene in scenes)
        labelled = sum(int((scene.labels != UNLABELLED).sum()) for scene in scenes) if self.label_lines else 0
        if self.label_lines and not labelled:
            raise SceneError(
                "no pixel is labelled", "labels that lie on the images", "check the CRS of labels and images"
            )
        lines = ["# Proposed by `landfuse init`; the reason of each choice is beside it.", "scene: scene.yaml"]
        if labelled < _FEW_LABELS or pixels > _MANY_PIXELS:
            few = labelled < _FEW_LABELS
            why = (
                f"{labelled:,} labelled pixels are few for a network" if few else f"fast on a CPU: {pixels:,} px to map"
            )
            lines.append(f"model: forest  # {why}")
            return "\n".join(lines) + "\n", _CONTEXT
        lines += [
            f"model: {{name: two_branch, view: {_VIEW}}}  # a small network; {labelled:,} labelled pixels suffice",
            "samples: {balanced: true, windows: 6000}  # rare classes are drawn as often as others",
            "training: {epochs: 15, patience: null}",
        ]
        wide = [g.name for g in self.groups if g.first.raster.bands > _WIDE]
        lines += ["pixel_maps:  # many bands hold much the same"] if wide else []
        lines += [f"  {name}: {{kind: pca, components: 30}}" for name in wide]
        return "\n".join(lines) + "\n", _VIEW

    def _split(self, body: Sequence[str], scenes: Sequence[Scene], buffer: int, notes: list[str]) -> str:
        """The split that loses no class: whole polygons, whole tiles, or blocks as large as possible.

        One that leaks is taken only where the others leave a class without training.
        """
        drawn, why = self.labels is None, "whole polygons go to one role"
        polygons = PolygonsSplit(kind="polygons", test=0.3)
        apart = polygons.model_copy(update={"buffer": buffer})
        blocks = BlocksSplit(kind="blocks", size=2, buffer=buffer, test=0.3)
        near = f"{why}; a buffer would lose classes, so that views reach others"
        several = sum(bool((scene.labels != UNLABELLED).any()) for scene in scenes) >= _FEW_TILES
        # A split, why, whether it is possible, and whether test pixels see, or lie in, what trains.
        trials: list[tuple[GroupedSplit, str, bool, bool]] = [
            (apart, f"{why}, no view reaches from one to another", drawn, False),
            (TilesSplit(kind="tiles", test=0.3), "whole tiles go to one role", several, False),
            (polygons, near, drawn, True),
            (blocks, "the largest blocks that lose no class", True, drawn),
        ]
        best: Found | None = None
        for split, why, possible, leaks in trials:
            if not possible or (leaks and best is not None and not best.lacking[0]):
                continue
            found = search(scenes, split)
            if found.split is not None and not found.why:
                return f"{found.line}  # {why}"
            if found.split is not None and (best is None or found.lacking < best.lacking):
                best = found
        if best is None:
            raise SplitError(
                "no split leaves labelled pixels for training, validation and the test",
                "labels in several places",
                "label more places",
            )
        notes.append(f"no split keeps every class in each role: {best.why}")
        return f"{best.line}  # no split keeps every class in each role; this one loses fewest"


def _columns(rows: Sequence[Mapping[str, str | None]]) -> list[str]:
    return list(rows[0]) if rows else []


def _of_classes_in(rows: Sequence[Mapping[str, str | None]]) -> list[str]:
    """The columns of few values, which come more than once."""
    kinds = {name: {row[name] for row in rows} - {None} for name in _columns(rows)}
    return [n for n, values in kinds.items() if 2 <= len(values) <= min(_MOST_VALUES, max(2, len(rows) - 1))]


def _joined(
    rows: Sequence[Mapping[str, str | None]], places: Sequence[str | Path]
) -> tuple[Path, str, list[dict[str, str | None]]] | None:
    """A table that knows the key of most shapes: its path, the key, and its row for each of these shapes."""
    for path in (p for place in map(Path, places) for p in ([place] if place.is_file() else sorted(place.rglob("*")))):
        if path.suffix.lower() not in TEXT:
            continue
        try:
            table = read_rows(path)
        except LandfuseError:
            continue  # of something else
        for key in [name for name in _columns(rows) if name in _columns(table)]:
            known = {row[key]: row for row in table if row[key] is not None}
            found = [known[row[key]] for row in rows if row[key] in known]
            if 2 * len(found) > len(rows):
                return path, key, found
    return None


def _column(
    path: Path,
    rows: Sequence[Mapping[str, str | None]],
    column: str | None,
    choose: Callable[[str, Sequence[str]], str] | None,
) -> tuple[str, str]:
    """The column that names the class, and why it is that one."""
    present = _columns(rows)
    if column is not None:
        if column not in present:
            raise SceneError(
                f"{path} has no column `{column}`",
                f"one of: {', '.join(present) or 'none'}",
                nearest(column, present),
            )
        return column, "as named"
    fitting = _of_classes_in(rows)
    named = [name for name in fitting if re.fullmatch(_COLUMN, name.lower())]
    for some, why in (
        (named, "its name and its few values look like classes"),
        (fitting, "the only one of few values"),
    ):
        if len(some) == 1:
            return some[0], why
    if not fitting:
        raise SceneError(
            f"no column of {path} looks like classes",
            f"a column of 2 to {_MOST_VALUES} values that come more than once",
            f"name it by --label-column; there are: {', '.join(present) or 'none'}",
        )
    shown = [f"{name} ({', '.join(sorted({str(row[name]) for row in rows})[:3])}, ...)" for name in fitting]
    if choose is None:
        raise SceneError(
            f"several columns of {path} could name the class: {'; '.join(shown)}", "one", "name it by --label-column"
        )
    return choose(f"Which column of {path.name} names the class?", fitting), "as chosen"


def _modality_lines(group: _Group, onto: _Group | None) -> list[str]:
    """A modality of the scene file; `onto` is the reference where it is another one."""
    raster = group.first.raster
    metres = f"{group.pixel:.3g} m" if raster.own_grid.crs else f"{group.pixel:.3g}"
    size = f"{max(raster.bands, len(group.patterns))} x {raster.dtype}, pixels of {metres}"
    tiles = "" if "" in group.tiles else f", {len(group.tiles)} tiles"
    paths = ", ".join(map(_quoted, group.patterns))
    lines = [
        f"  {group.name}:  # {size}{tiles}{f'; {group.why}' if group.why else ''}",
        f"    path: {paths}" if len(group.patterns) == 1 else f"    path: [{paths}]",
    ]
    if days := group.first.days:
        every = "every: 1 month, " if (days[-1] - days[0]).days > _MONTHS else ""
        mask, lack = (f", mask: {group.mask}", "") if group.mask else ("", "; a `mask` hides clouds")
        lines.append(f"    dates: {{{every}fill: linear{mask}}}  # {len(days)} dates, {days[0]} to {days[-1]}{lack}")
    if group.names:
        lines.append(f"    names: [{', '.join(group.names)}]")
    grid = raster.own_grid
    height, width = min(_SAMPLE, grid.height), min(_SAMPLE, grid.width)
    side = Window((grid.height - height) // 2, (grid.width - width) // 2, height, width)
    values = raster.read(side)
    known = values[np.isfinite(values)]
    if group.name.startswith("s1") and known.size and known.min() >= 0 and np.median(known) < 5:
        lines += ["    decibel: true  # its values are linear power", "    units: dB"]
    elif group.name.startswith("s1") and known.size and np.median(known) < 0:
        lines.append("    units: dB  # by its values")
    elif group.name.startswith(("dem", "height")):
        lines.append("    units: m")
    empty = float((values == 0).all(axis=0).mean())
    if raster.bands > 2 and 0 < empty < 1 and np.isfinite(values).all():
        lines.append(
            f"    nodata: 0  # no value is declared, and 0 is in every band of {empty:.1%} of the pixels looked at"
        )
    if onto is not None and raster.own_grid != onto.first.raster.own_grid:
        finer = group.pixel < onto.pixel * 0.75
        lines.append(
            "    resampling: average  # its pixels are smaller than those of the reference"
            if finer
            else "    resampling: bilinear  # its pixels are not those of the reference"
        )
    return lines


def _class_line(kind: Mapping[str, Any]) -> str:
    code = f", code: {kind['code']}" if "code" in kind else ""
    return f"  - {{name: {_quoted(kind['name'])}{code}}}  # {kind['comment']}"


def _quoted(text: str) -> str:
    """A text as a YAML scalar."""
    return (
        text
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in _WORDS
        else json.dumps(text, ensure_ascii=False)
    )


_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""What some readers of YAML take for more than text."""
