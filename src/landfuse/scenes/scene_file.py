"""How a scene file becomes scenes (one, or many tiles), a legend and a split; its keys are in `scene_keys.py`."""

from __future__ import annotations

import glob
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import (
    FaultsError,
    GridError,
    LandfuseError,
    MissingFileError,
    SceneError,
    SettingsError,
    SplitError,
    few,
)
from landfuse.files import file_name
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.palette import class_colours
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.decoding import StretchedRaster
from landfuse.rasters.geotiff import BY_GDAL, GdalRaster, ResamplingName, crs_name, is_file_name, seen_from
from landfuse.rasters.grid import Grid
from landfuse.rasters.matlab import MatRaster, open_mat, read_variable
from landfuse.rasters.stacked import StackedRaster
from landfuse.scenes.benchmarks import places
from landfuse.scenes.labels import read_colours
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.scenes.scene_keys import LabelSettings, ModalitySettings, SceneSettings, expand_root
from landfuse.scenes.split_rules import Roles, RolesSplit, SplitSettings, TilesSplit
from landfuse.scenes.splits import assign, ground_roles, named_tiles
from landfuse.series.cubes import cube_rasters
from landfuse.series.dates import DATE, FORMS, Period, parse_day, periods_of
from landfuse.series.series_raster import ClearMask, DatedRaster, SeriesRaster, days_in, series_of
from landfuse.series.settings import DateSettings, MaskSettings
from landfuse.settings import expand, parse, parse_rest, read_kind

if TYPE_CHECKING:
    from landfuse.rasters.polygons import Polygons

log = logging.getLogger("landfuse")


@dataclass(frozen=True)
class SceneFile:
    """A scene file as read: settings, and the folder, archive or address that its paths start from."""

    settings: SceneSettings
    root: str
    path: Path

    @property
    def legend(self) -> Legend:
        """The classes."""
        listed = self.settings.legend
        colours = class_colours(tuple(c.name for c in listed), tuple(c.colour for c in listed))
        return Legend(
            tuple(
                LandClass(c.name, c.code if c.code is not None else index + 1, colours[index], c.scored)
                for index, c in enumerate(listed)
            )
        )

    @property
    def values(self) -> dict[str, int]:
        """The codes of the classes by their value in the attribute of polygons."""
        classes = zip(self.settings.legend, self.legend, strict=True)
        return {c.name if c.value is None else c.value: listed.code for c, listed in classes}

    @property
    def tiles(self) -> list[str]:
        """The tiles' names, in natural order; the scene's own name where it is one."""
        settings = self.settings
        if settings.tiles is not None:
            return list(self._table or settings.tiles)
        if "{tile}" not in settings.paths[0]:
            return [settings.name]
        found = {match["tile"] for match in self.fitting(settings.paths[0])}
        if not found:
            raise MissingFileError(
                f"{self.path}: no file fits {seen_from(self.root, settings.paths[0])}",
                "one file per tile, or their names under `tiles`",
                "check `root` and the paths, or fetch the data: " + (settings.address or "no address is given"),
            )
        return sorted(found, key=natural)

    @cached_property
    def _table(self) -> dict[str, dict[str, str]]:
        """Of tiles that a table lists: name -> what stands for each column in paths."""
        if not isinstance(self.settings.tiles, str):
            return {}
        path = seen_from(self.root, expand(self.settings.tiles))
        from landfuse.rasters.polygons import read_rows

        rows = [{key: value or "" for key, value in row.items()} for row in read_rows(path)]
        names = [row.get("tile", "") for row in rows]
        wrong = [name for name in names if not name or names.count(name) > 1]
        if wrong or not names:
            raise SceneError(
                f"{path}: the column `tile` {'holds ' + repr(wrong[0]) + ' twice' if any(wrong) else 'lacks names'}",
                "a row per tile, each with its name in the column `tile`",
                "correct the table",
            )
        return {file_name(row["tile"]): row for row in rows}

    def scenes(self, only: Sequence[str] | None = None) -> list[Scene]:
        """Opens every tile.

        Args:
            only: the modalities that are needed, in order; all by default. Names that the file lacks are passed over.

        Raises:
            FaultsError: with every fault of every tile.
        """
        scenes, faults = self.try_scenes(only)
        if faults:
            raise FaultsError(faults)
        return scenes

    def try_scenes(self, only: Sequence[str] | None = None) -> tuple[list[Scene], list[LandfuseError]]:
        """Opens every tile whose reference can be opened, with the modalities and labels that can; lists all faults.

        Reads headers only. A fault of many tiles, such as a missing vector file, is listed once.
        """
        try:
            tiles = self.tiles
        except LandfuseError as error:
            return [], [self._with_advice(error)]
        scenes: list[Scene] = []
        faults: list[LandfuseError] = []
        for tile in tiles:
            scene, wrong = self.open_tile(tile, only)
            faults += wrong
            if scene is not None:
                scenes.append(self._with_bands_of(scenes[0], scene, faults) if scenes else scene)
        return scenes, list({str(fault): self._with_advice(fault) for fault in faults}.values())

    def _with_advice(self, fault: LandfuseError) -> LandfuseError:
        """A missing file, of data that `landfuse fetch` gets, says so."""
        if isinstance(fault, MissingFileError) and self.settings.fetch is not None:
            folder = self.path.absolute().parent
            name = folder.name if folder in places().values() else folder
            fault.do = f"get the data by `landfuse fetch {name}`; a path to a file of your own starts from `root`"
        return fault

    def _with_bands_of(self, first: Scene, scene: Scene, faults: list[LandfuseError]) -> Scene:
        """A tile with its bands in the order of the first tile, by their names; adds what does not fit."""
        modalities = dict(scene.modalities)
        for name in [one for one in modalities if one in first.modalities]:
            known, where = first.modalities[name].info, f"`{name}` of the tile `{scene.name}`"
            try:
                modalities[name], note = modalities[name].like(known, where, f"`{first.name}`")
                if note:
                    log.warning("%s", note)
            except SceneError as error:
                faults.append(error)
        return replace(scene, modalities=modalities)

    def inputs(self) -> Iterator[str]:
        """The names of all files that the scene is read from, those of all tiles, and of the scene file itself."""
        yield str(self.path)
        for tile in self.tiles:
            for path in self.settings.files:
                yield from (self._resolve(one, tile) for one in self._matching(path, tile))

    def roles(self, scenes: Sequence[Scene], split: SplitSettings | None = None) -> list[Roles]:
        """The roles of the labelled pixels of the tiles, by the file's own split or another one.

        Raises:
            SplitError: if there is no split, or it leaves nothing to train or test on.
        """
        return assign(scenes, self._split(split), self._read_mask)

    def ground_roles(self, scenes: Sequence[Scene], split: SplitSettings | None = None) -> list[Roles]:
        """The role that a label at each pixel has, or that a new one would have; see `splits.ground_roles`."""
        return ground_roles(scenes, self._split(split), self._read_mask)

    def _split(self, split: SplitSettings | None) -> SplitSettings:
        chosen = split or self.settings.split
        if chosen is None:
            raise SplitError(
                f"{self.path} has no split",
                "`split:` in the scene file or the recipe",
                "add e.g. `split: {kind: blocks, size: 64}`",
            )
        if isinstance(chosen, TilesSplit) and chosen.lists:
            return named_tiles(chosen, self.tiles, self._resolve)
        return chosen

    def written_roles(self, scenes: Sequence[Scene], place: str | Path) -> list[Roles]:
        """The roles in a raster, or in those of a folder, such as the `split` of a run; see `roles`."""
        place = Path(place).resolve()

        def read(scene: Scene, *_: object) -> NDArray[np.generic]:
            return read_mask(scene, str(place / f"{scene.name}.tif" if place.is_dir() else place), None, "HW")

        as_written = [replace(scene, read_first=None) for scene in scenes]  # labels that came since have no role in it
        return assign(as_written, RolesSplit(kind="roles", path=str(place)), read)

    def _read_mask(self, scene: Scene, path: str, variable: str | None, axes: str) -> NDArray[np.generic]:
        """One mask of a split, (H, W) on the scene's grid."""
        return read_mask(scene, self._resolve(path, scene.name), variable, axes)

    def fitting(self, path: str, tile: str = "\0", day: str = DATE) -> Iterator[re.Match[str]]:
        """The files that a path of the scene file names; matches of their names, with the groups `tile` and `date`.

        Args:
            path: as it is written.
            tile: its name; by default any.
            day: what stands for `{date}`, as a regular expression.
        """
        # Signs for what is open: the names of the folders on disk that are put before it may hold * or {date} too.
        where = self._resolve(path.replace("*", "\1").replace("?", "\2").replace("{date}", "\3"), tile)
        pattern = re.escape(where).replace("\1", r"[^/\\]*").replace("\2", r"[^/\\]")
        for sign, group, text in (("\0", "tile", r"[^/\\.][^/\\]*?"), ("\3", "date", day)):
            pattern = pattern.replace(sign, f"(?P<{group}>{text})", 1).replace(sign, f"(?P={group})")
        files = Path(_stars(glob.escape(where).translate({0: "*", 1: "*", 2: "?", 3: "*"})))
        for file in Path(files.anchor).glob(str(files.relative_to(files.anchor))):
            if match := re.fullmatch(pattern, str(file)):
                yield match

    def _resolve(self, path: str, tile: str | None = None) -> str:
        if not is_file_name(self.root):
            expand(f"{self.root}/{path}")  # refuses variables there
        for column, value in self._table.get(tile or "", {}).items():
            if not value and f"{{{column}}}" in path:
                raise SceneError(f"the tile `{tile}` has nothing in the column `{column}`", "a file name", "fill it in")
            path = path.replace(f"{{{column}}}", value) if column != "tile" else path
        return seen_from(self.root, expand(path, tile=tile))

    def _matching(self, path: str, tile: str) -> list[str]:
        """A path as it is written, or the files that its pattern names."""
        if "{date}" in path and "date" not in self._table.get(tile, {}):
            return [one for written in self._dated(path, tile).values() for one in self._matching(written, tile)]
        if not set("*?") & set(path):
            return [path]
        parts = Path(path).parts
        fixed = next(number for number, part in enumerate(parts) if set("*?") & set(part))
        start, rest = Path(*parts[:fixed]), Path(*parts[fixed:]).as_posix()
        folder = Path(self._resolve(start.as_posix(), tile))
        inside = folder.glob(_stars(expand(rest, tile=glob.escape(tile))))
        found = [path.relative_to(folder).as_posix() for path in inside]
        return [(start / name).as_posix() for name in sorted(found, key=natural)]

    def _raster(self, tile: str, m: ModalitySettings | LabelSettings, where: str, home: Grid | None) -> Any:
        """A raster, or several stacked, on its own grid; `home` is that which it belongs on, None for the reference."""
        if isinstance(m, LabelSettings):
            return self._one_raster(m.path or "", tile, m, where, home)
        if m.dates is not None:
            return self._series(tile, m, m.dates, where, home)
        paths = [found for path in m.paths for found in self._matching(path, tile)]
        if not paths:
            raise MissingFileError(f"{where}: no file fits {', '.join(m.paths)}", "a file per band", "check the path")
        if len(paths) == 1:
            return self._one_raster(paths[0], tile, m, where, home)
        parts = [self._one_raster(path, tile, m.model_copy(update={"bands": None}), where, home) for path in paths]
        if any(isinstance(part, MatRaster) for part in parts):
            raise SettingsError(f"{where}: several .mat files", "rasters that GDAL reads, or one .mat file", "")
        stack = _with_bands(StackedRaster(tuple(parts)), m, f"{where}: its {len(paths)} files have")
        return _placed(stack, stack.own_grid, where)

    def _dated(self, path: str, tile: str, listed: Mapping[date, str] = {}) -> dict[date, str]:
        """The dates of the files that a path with `{date}` names, in order of time -> the path with its date.

        Args:
            listed: the only dates in use, as they are written where files cannot be listed; empty for all.
        """
        if not is_file_name(self._resolve(path, tile)):
            if listed:
                return {day: path.replace("{date}", text) for day, text in listed.items()}
            raise SettingsError(
                f"{self.path}: the files of `{path}` cannot be listed there",
                "their dates",
                "list them by `dates: days`",
            )
        # With `T1_{date}.tif`, the tile T1 does not take T1_2_20230401.tif; else what begins with a digit is a date.
        text = DATE if "{tile" in path or set("*?") & set(path) else rf"{DATE}|\d[^/\\]*?"
        found: dict[date, str] = {}
        for name, again in sorted((match.string, match["date"]) for match in self.fitting(path, tile, text)):
            written = found.setdefault(parse_day(again, name), again)
            if written != again:
                raise SceneError(
                    f"{name}: the date {parse_day(written, name)} comes twice, as {written} and {again}",
                    "one file per date",
                    "merge the two, or list one of them by `dates: days`",
                )
        return {day: path.replace("{date}", found[day]) for day in sorted(found) if day in (listed or found)}

    def _paths_by_day(
        self, tile: str, paths: Sequence[str], how: DateSettings, where: str
    ) -> dict[date, tuple[str, ...]]:
        """The paths of each date, in order of time; none where the dates are those of bands."""
        listed = {parse_day(text, where): text for text in how.days} if isinstance(how.days, tuple) else {}
        if isinstance(how.days, tuple) and len(listed) < len(how.days):
            raise SettingsError(f"{where}: `days` lists a date twice: {few(how.days, 12)}", "each once", "correct it")
        if not any("{date}" in path for path in paths):
            files = [file for path in paths for file in self._matching(path, tile)]
            pairs = zip(listed, files, strict=True) if len(listed) == len(files) else ()
            return {day: (file,) for day, file in sorted(pairs)}
        each = [self._dated(path, tile, listed) for path in paths if "{date}" in path]
        days = sorted({day for one in each for day in one} | listed.keys())
        if not days or len(each) < len(paths):
            raise MissingFileError(
                f"{where}: no file fits {', '.join(paths)}", f"a file per date, `{{date}}` in each path: {FORMS}", ""
            )
        lacking = [(day, path) for path, one in zip(paths, each, strict=True) for day in days if day not in one]
        if lacking:
            raise MissingFileError(
                f"{where}: no file fits {lacking[0][1]} at {lacking[0][0]}",
                "the files of each date",
                "add it, or leave that date out by `dates: days` or `dates: between`",
            )
        return {day: tuple(one[day] for one in each) for day in days}

    def _by_day(
        self, tile: str, m: ModalitySettings, how: DateSettings, where: str, home: Grid | None
    ) -> dict[date, Callable[[], Any]]:
        """What opens the raster of each date, in order of time."""
        plain = m.model_copy(update={"dates": None})
        if paths := self._paths_by_day(tile, m.paths, how, where):
            return {
                day: partial(self._raster, tile, plain.model_copy(update={"path": one}), f"{where} at {day}", home)
                for day, one in paths.items()
            }
        if how.days is None and is_zarr(m.paths[0]):
            without = [how.mask.variable] if how.mask and how.mask.variable else []
            found = self._of_zarr(m.paths[0], tile, plain, where, without)
            if None in found:
                raise SceneError(f"{where}: {m.paths[0]} has no dates", "a dimension `time`", "leave out `dates`")
            return {day: partial(_itself, raster) for day, raster in found.items() if day}
        whole = self._raster(tile, plain, where, home)
        groups: dict[date, list[int]] = {}
        if how.days == "bands":
            for place, name in enumerate(whole.names or [""] * whole.bands):
                match = re.search(DATE, name)
                groups.setdefault(parse_day(match[0] if match else name, f"{where}: band {place + 1}"), []).append(
                    place
                )
        else:
            count, rest = divmod(whole.bands, len(how.days or "x"))
            if rest or how.days is None:
                raise SettingsError(
                    f"{where}: the dates of {', '.join(m.paths)} are not known: it has {whole.bands} bands"
                    + (f" for {len(how.days)} `days`" if how.days else ""),
                    "`{date}` in the path; or `days`: a date per file, or per group of as many bands of one file",
                    "name the dates by `dates: days`",
                )
            groups = {parse_day(text, where): [*range(n * count, (n + 1) * count)] for n, text in enumerate(how.days)}
        return {day: partial(whole.with_bands, places) for day, places in sorted(groups.items())}

    @cached_property
    def _periods(self) -> dict[str, tuple[Period, ...]]:
        """The periods of each modality that has dates, the same in all tiles."""
        found = {}
        for name, m in self.settings.modalities.items():
            how, days = m.dates, set[date]()
            if how is None:
                continue
            if how.every is None or not how.between:
                for tile in self.tiles:
                    with suppress(LandfuseError):  # reported where the tile is opened
                        days |= self._by_day(tile, m, how, name, None).keys()
            found[name] = periods_of(how.every, how.between, days)
        return found

    def _series(self, tile: str, m: ModalitySettings, how: DateSettings, where: str, home: Grid | None) -> SeriesRaster:
        """The rasters of all dates as one, on the grid of most of them."""
        by_day = self._by_day(tile, m, how, where, home)
        periods = self._periods[next(name for name, one in self.settings.modalities.items() if one is m)]
        days = days_in(periods, by_day, where)
        parts = {}
        for day in days:
            raster = by_day[day]()
            if isinstance(raster, MatRaster):
                raise SettingsError(f"{where}: a .mat file", "rasters with dates that GDAL reads", "convert it")
            if how.mask and not how.mask.path and not m.bands and isinstance(raster, GdalRaster):
                raster = raster.with_bands([n for n, band in enumerate(raster.numbers) if band != how.mask.band])
            names = tuple(re.sub(DATE, "", name).strip(" _-.") for name in raster.names)
            parts[day] = SceneModality(raster, names=names if all(names) else ())
        first = max(parts, key=lambda day: parts[day].info.bands)
        known = parts[first].info
        for day, part in parts.items():
            places = known.places_in(part.info)
            if places is None or len(places) != known.bands:
                raise SceneError(
                    f"{where} at {day} has {part.info.bands} bands: {part.info.band_words or part.raster.path}",
                    f"the {known.bands} bands that it has at {first}: {known.band_words}",
                    "add what is missing; or choose common ones by `bands`, or leave that date out by `dates`",
                )
            if places != tuple(range(part.info.bands)):
                parts[day] = replace(part, raster=part.raster.with_bands(places))  # type: ignore[attr-defined]
        names = m.names or known.names or tuple(f"{one:g} nm" for one in known.wavelengths)
        names = names or tuple(str(number + 1) for number in range(known.bands))
        if len(names) != known.bands:
            raise SettingsError(
                f"{where} has {len(names)} `names` for {known.bands} bands", "one per band of a date", "correct it"
            )
        masks = self._masks(tile, m, how.mask, days, where, home) if how.mask else {}
        dates = [DatedRaster(day, part.raster, masks.get(day)) for day, part in parts.items()]
        series = series_of(dates, periods, names, how, known.wavelengths, m.sensor)
        return _placed(series, series.own_grid, where)

    def _masks(
        self, tile: str, m: ModalitySettings, mask: MaskSettings, days: Sequence[date], where: str, home: Grid | None
    ) -> dict[date, ClearMask]:
        """Where each date is clear."""
        if mask.variable:
            one = ModalitySettings(path=mask.path or m.path, variable=mask.variable, scale=1.0, offset=0.0, crs=m.crs)
            rasters = self._of_zarr(one.paths[0], tile, one, f"the mask of {where}")
            lacking = [str(day) for day in days if day not in rasters]
            if lacking:
                raise SceneError(f"{where} has no mask at {few(lacking)}", "one for each date", "check `dates: mask`")
            return {day: ClearMask(_whole_bits(rasters[day], mask), mask) for day in days}
        how = DateSettings(days=m.dates.days) if m.dates else DateSettings()
        paths = self._paths_by_day(tile, (mask.path,) if mask.path else m.paths, how, f"the mask of {where}")
        lacking = [str(day) for day in days if len(paths.get(day, ())) != 1]
        if lacking:
            raise MissingFileError(
                f"{where} has no mask at {few(lacking)}",
                "one file per date" if mask.path else "the mask in the one file of each date, or its `path`",
                "check `dates: mask`",
            )
        numbers = {"bands": (mask.band,), "scale": 1.0, "offset": 0.0, "resampling": "nearest", "crs": m.crs}
        found = {}
        for day in days:
            one = ModalitySettings(path=paths[day], **numbers)  # type: ignore[arg-type]
            raster = self._raster(tile, one, f"the mask of {where} at {day}", home)
            found[day] = ClearMask(_whole_bits(raster, mask), mask)
        return found

    def _of_zarr(
        self, path: str, tile: str, m: ModalitySettings, where: str, without: Sequence[str] = ()
    ) -> dict[date | None, Any]:
        """The raster of each date of a Zarr group on its own grid; under None the one of a group without dates."""
        from landfuse.series.zarr_store import open_zarr  # an optional dependency

        path = self._resolve(path, tile)
        variables = (m.variable,) if isinstance(m.variable, str) else m.variable or ()
        rasters = cube_rasters(open_zarr(path), path, variables, without, path)
        return {day: _with_bands(_decoded(raster, m, where), m, f"{where} has") for day, raster in rasters.items()}

    def _one_raster(
        self, path: str, tile: str, m: ModalitySettings | LabelSettings, where: str, home: Grid | None
    ) -> Any:
        path = self._resolve(path, tile)
        bands = m.bands if isinstance(m, ModalitySettings) else None
        decoding = m.decoding
        if path.lower().endswith(".mat"):
            if not isinstance(m.variable, str) or not m.axes:
                raise SettingsError(
                    f"{where}: {path} is a .mat file",
                    "`variable` and `axes`, since axes are never guessed",
                    "add e.g. `variable: data` and `axes: HWC`",
                )
            shape = (home.height, home.width) if home else None
            return open_mat(path, m.variable, m.axes, decoding=decoding, bands=bands, expected=shape)
        if is_zarr(path):
            if not isinstance(m, ModalitySettings):
                raise SettingsError(f"{where}: {path} is a Zarr group", "labels that GDAL reads", "write a GeoTIFF")
            found = self._of_zarr(path, tile, m, where)
            if len(found) > 1:
                raise SettingsError(
                    f"{where}: {path} has {len(found)} dates", "`dates`, of which `{}` is enough", "add `dates: {}`"
                )
            return next(iter(found.values()))
        assumed = crs_name(m.crs, where) if m.crs else None
        how: ResamplingName = m.resampling if isinstance(m, ModalitySettings) else "nearest"
        placed = None if self.settings.georeferenced else home
        raster = GdalRaster(path, decoding, bands, assumed, resampling=how, placed=placed)
        raster.check()
        wanted = 3 if isinstance(m, LabelSettings) and m.colours else 1
        if isinstance(m, LabelSettings) and raster.bands != wanted:
            raise SceneError(
                f"the labels {path} have {raster.bands} band{'s' if raster.bands > 1 else ''}",
                "three bands, red, green and blue" if m.colours else "one band of codes",
                "leave out `labels: colours:`"
                if m.colours
                else "save that band as a file of its own; or say `colours: {}` under `labels` if it is a picture",
            )
        return raster

    def open_tile(self, tile: str, only: Sequence[str] | None = None) -> tuple[Scene | None, list[LandfuseError]]:
        """A tile, and all its faults; no tile if its reference cannot be opened, but the faults of its other files."""
        settings = self.settings
        faults: list[LandfuseError] = []
        grid: Grid | None = None
        reference = settings.reference_name
        sources: dict[str, Any] = {"labels": settings.labels, **settings.modalities}
        try:
            own = first = self._raster(tile, sources[reference], f"{self.path}: `{reference}`", None)
            grid = own.grid
            lacks = [what for what, there in (("CRS", grid.crs), ("geotransform", grid.located)) if not there]
            if lacks and settings.georeferenced and not isinstance(own, MatRaster):
                faults.append(
                    GridError(
                        f"{own.path}, the reference, has no {' and no '.join(lacks)}",
                        "a CRS and a geotransform, so that the map can be placed",
                        ("name it by `crs: EPSG:n`" if grid.located else f"georeference it, {BY_GDAL}")
                        + "; or say `georeferenced: false` if the scene has no place",
                    )
                )
        except LandfuseError as error:
            faults.append(error)
            del sources[reference]
        labels = sources.pop("labels", None)
        modalities: dict[str, SceneModality] = {}
        for name in settings.modalities if only is None else only:
            if name not in sources:
                continue
            m = settings.modalities[name]
            try:
                fine = grid and grid.zoomed(m.zoom)
                own = first if name == reference else self._raster(tile, m, f"{self.path}: `{name}`", fine)
                if fine:
                    names = () if m.dates else m.names  # which are those of a date
                    if names and len(names) != own.bands:
                        raise SettingsError(
                            f"{self.path}: `{name}` has {len(names)} `names` for {own.bands} bands",
                            "one per band",
                            "correct it",
                        )
                    placed, units = _placed(own, fine, name), m.units
                    if m.stretch:
                        placed, units = StretchedRaster(placed), "0 to 1 in each tile"
                    modalities[name] = SceneModality(placed, m.zoom, units, names, m.metres or 0.0, m.decode_words)
            except LandfuseError as error:
                faults.append(error)
        read_labels = read_polygons = read_first = None
        if labels is not None:
            try:
                read_labels = self._label_reader(tile, labels, grid)
                shapes = self.shapes(tile, labels)
                for one in shapes:
                    one.read()
                if labels.polygons and grid is not None:
                    read_polygons = partial(_polygon_ids, shapes, labels, grid)
                if labels.later and grid is not None and read_labels is not None:
                    read_first, later = read_labels, shapes[-len(labels.later) :]
                    read_labels = partial(_with_later, read_first, later, labels, grid, self.legend)
            except LandfuseError as error:
                faults.append(error)
        if grid is None:
            return None, faults
        legend = self.legend if settings.legend else Legend((LandClass("unknown", 0, "#000000"),))
        from_file = (str(self.path),)
        return Scene(tile, grid, modalities, legend, read_labels, read_polygons, from_file, read_first), faults

    def _label_reader(
        self, tile: str, labels: LabelSettings, grid: Grid | None
    ) -> Callable[..., NDArray[np.uint8]] | None:
        """What reads a tile's labels, whose files are found to be readable; None if the reference grid is not known."""
        if labels.polygons:
            return partial(_burnt, self.shapes(tile, labels)[0], labels, grid, self.legend) if grid else None
        rasters = []
        for one in labels.rasters:
            own = self._raster(tile, one, f"{self.path}: `labels`", grid)
            if grid is None:
                continue
            if not isinstance(own, MatRaster) and own.own_grid != grid:
                raise GridError(
                    f"the labels {own.path} are off the reference grid: {own.own_grid}",
                    f"the grid of `{self.settings.reference_name}`: {grid}; labels are never resampled",
                    "say `reference: labels` to bring the modalities to the labels instead"
                    if "{tile}" in str(labels.path) or "{tile}" not in self.settings.paths[0]
                    else "cut them into one raster per tile, and name these by `{tile}`",
                )
            self.legend.refuse_nodata(
                getattr(own, "nodata", None), f"the labels {one.path}", "write `nodata: 255` under `labels`"
            )
            rasters.append(_placed(own, grid, "labels"))
        return partial(_codes, rasters, labels, self.legend) if grid else None

    def shapes(self, tile: str, labels: LabelSettings) -> list[Shapes]:
        """The vector files of a tile's labels: those of `polygons`, then those that came later."""
        found = []
        if labels.polygons:
            join = (self._resolve(labels.join.path, tile), labels.join.key) if labels.join else None
            paths = tuple(self._resolve(path, tile) for path in labels.polygons)
            read = partial(_polygons, paths, str(labels.attribute), join, labels.crs)
            found.append(Shapes(labels.polygons, str(labels.attribute), self.values, read))
        classes = zip(self.settings.legend, self.legend, strict=True)
        values = {_OTHER: UNLABELLED, str(UNLABELLED): UNLABELLED, **{str(c.code): c.code for c in self.legend}}
        values |= {word: own.code for c, own in classes for word in (c.name, c.value) if word is not None}
        for one in labels.later:
            paths = tuple(self._resolve(path, tile) for path in one.polygons)
            read = partial(_polygons, paths, one.attribute, None, labels.crs, later=True)
            found.append(Shapes(one.polygons, one.attribute, values, read))
        return found


def _polygons(
    paths: tuple[str, ...], attribute: str, join: tuple[str, str] | None, crs: str | None, *, later: bool = False
) -> Polygons:
    from landfuse.rasters.polygons import PROBABILITY, Join, read_polygons  # geopandas takes long; mapping needs none

    return read_polygons(paths, attribute, Join(*join) if join else None, crs, without=PROBABILITY if later else "")


_OTHER = "other"
"""What a reference sample calls what is no class of the map: unlabelled, as the code 255."""


@dataclass(frozen=True)
class Shapes:
    """Vector files that label a tile.

    Args:
        paths: as they are written.
        attribute: the column that names the class.
        codes: the codes of the classes by their value there.
    """

    paths: tuple[str, ...]
    attribute: str
    codes: Mapping[str, int]
    read: Callable[[], Polygons]

    def ids(self, labels: LabelSettings, grid: Grid) -> NDArray[np.int64]:
        """Which shape each pixel's label comes from; see `Polygons.ids_onto`."""
        return self.read().ids_onto(grid, all_touched=labels.all_touched, overlap=labels.overlap)


def read_mask(scene: Scene, path: str, variable: str | None, axes: str) -> NDArray[np.generic]:
    """One mask of a split, or its roles, in a raster or a variable of a .mat file: (H, W) on the scene's grid."""
    if path.lower().endswith(".mat"):
        if variable is None:
            raise SettingsError(
                f"{path} is a .mat file, and the split names no variable of it",
                "`variables: {train: ..., test: ...}` in a split of kind `masks`",
                "name the variables",
            )
        if axes == "list":
            return _listed(read_variable(path, variable, "HW"), scene.grid, f"`{variable}` of {path}")
        mask = read_variable(path, variable, axes)
        if mask.shape != (scene.grid.height, scene.grid.width):
            raise GridError(
                f"`{variable}` of {path} has the shape {mask.shape} with axes {axes}",
                f"{scene.grid.height} x {scene.grid.width}, as the reference grid",
                "correct `axes` of the split",
            )
        return mask
    raster = GdalRaster(path, resampling="nearest")
    if raster.own_grid != scene.grid:
        raise GridError(
            f"{path} has the grid {raster.own_grid}", f"the scene's grid: {scene.grid}", "make it on that grid"
        )
    return raster.read_codes()


def _listed(places: NDArray[Any], grid: Grid, what: str) -> NDArray[np.generic]:
    """A mask of pixels that are listed by row and column, (N, 2)."""
    size = (grid.height, grid.width)
    if places.size and (
        places.shape[1] != 2 or not ((places >= 0) & (places < size) & (places == np.floor(places))).all()
    ):
        raise GridError(
            f"{what} is {len(places)} x {places.shape[1]} and holds {places.min():g} to {places.max():g}",
            f"a row (0 to {grid.height - 1}) and a column (0 to {grid.width - 1}) for each pixel",
            "correct `axes` or `variables` of the split",
        )
    mask = np.zeros(size, np.uint8)
    mask[tuple(places.astype(np.int64).T)] = 1
    return mask


def _stars(pattern: str) -> str:
    """Several stars as one where they are no whole part of a path, which Python refuses before 3.13."""
    return re.sub(r"(?<=[^/\\])\*\*+|\*\*+(?=[^/\\*])", "*", pattern)


def natural(name: str) -> list[int | str]:
    """For sorting: `plot_9` before `plot_10`."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def is_zarr(path: str) -> bool:
    """Whether a path names a Zarr group: a folder x.zarr, or one in it."""
    return Path(path).suffix.lower() in (".zarr", "") and re.search(r"\.zarr([/\\]|$)", path, re.I) is not None


def _itself(raster: Any) -> Any:
    return raster


def _decoded(raster: Any, m: ModalitySettings, where: str) -> Any:
    """An array, or several stacked, with the CRS and the decoding of the scene file, which win over its own."""
    if isinstance(raster, StackedRaster):
        return raster.placed(lambda part: _decoded(part, m, where))
    set_here = {key: value for key, value in vars(m.decoding).items() if value is not None}
    crs = raster.grid.crs or (crs_name(m.crs, where) if m.crs else None)
    return replace(raster, grid=replace(raster.grid, crs=crs), decoding=replace(raster.decoding, **set_here))


def _with_bands(raster: Any, m: ModalitySettings, has: str) -> Any:
    """The bands that the scene file names."""
    beyond = [band for band in m.bands or () if band > raster.bands]
    if beyond:
        raise SceneError(
            f"{has} {raster.bands} bands, not the bands {beyond}", f"bands from 1 to {raster.bands}", "correct `bands`"
        )
    return raster.with_bands([band - 1 for band in m.bands]) if m.bands else raster


def _whole_bits(raster: Any, mask: MaskSettings) -> Any:
    if mask.bits and np.dtype(raster.dtype).itemsize > 2:
        raise SceneError(f"the mask {raster.path} holds {raster.dtype}", "bits of 8 or 16", "convert it")
    return raster


def _placed(raster: Any, grid: Grid, name: str) -> Any:
    """Brings a raster to a grid: as it is, by shape if it is a .mat file, else warped lazily."""
    if isinstance(raster, MatRaster):
        return replace(raster, grid=grid)  # whose size it has, as `open_mat` found
    if isinstance(raster, StackedRaster | SeriesRaster):
        return raster.placed(lambda part: _placed(part, grid, name))
    if isinstance(raster, ArrayRaster):
        size = (raster.grid.height, raster.grid.width)
        if raster.grid == grid or (not raster.grid.georeferenced and size == (grid.height, grid.width)):
            return replace(raster, grid=grid)
        raise GridError(
            f"{raster.path} has the grid {raster.grid}",
            f"the grid of the reference, or `zoom` times finer: {grid}; Zarr arrays are not resampled",
            f"say `reference: {name}`, to which the other rasters are brought; or bring the cube to this grid",
        )
    if raster.own_grid == grid:
        return raster if raster.onto is None else replace(raster, onto=None)
    own = raster.own_grid
    if own.crs is None and grid.crs is None and (own.height, own.width) != (grid.height, grid.width):
        raise GridError(
            f"`{name}` has {own.height} x {own.width} px and no CRS",
            f"{grid.height} x {grid.width} px, as the reference grid",
            "resample it, or give both a CRS",
        )
    onto = replace(raster, onto=grid, placed=None)
    onto.check()
    return onto


def _codes(
    rasters: Sequence[GdalRaster | MatRaster],
    labels: LabelSettings,
    legend: Legend,
    unlisted: Counter[str] | None = None,
) -> NDArray[np.uint8]:
    unlisted = labels.counter if unlisted is None else unlisted
    classes = [
        read_colours(raster, legend, labels.colours.ignored, labels.colours.tolerance, unlisted)
        if labels.colours and isinstance(raster, GdalRaster)
        else legend.to_classes(raster.read_codes(), labels.without_class, unlisted, where=raster.path)
        for raster in rasters
    ]
    return _merged(classes, [raster.path for raster in rasters])


def _merged(classes: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> NDArray[np.uint8]:
    """Labels of several sources as one; a SceneError if a pixel has two classes."""
    merged = classes[0]
    for name, further in zip(names[1:], classes[1:], strict=True):
        twice = int(((merged != UNLABELLED) & (further != UNLABELLED) & (merged != further)).sum())
        if twice:
            raise SceneError(
                f"{twice} pixels have one class in {name} and another in the labels before it",
                "one class for each pixel",
                "check `labels: also:`",
            )
        merged = np.where(merged != UNLABELLED, merged, further)
    return merged


def _burnt(
    shapes: Shapes, labels: LabelSettings, grid: Grid, legend: Legend, unlisted: Counter[str] | None = None
) -> NDArray[np.uint8]:
    unlisted = labels.counter if unlisted is None else unlisted
    burnt = shapes.read().onto(
        grid, shapes.codes, unlisted=unlisted, all_touched=labels.all_touched, overlap=labels.overlap
    )
    return legend.to_classes(burnt)


def _with_later(
    first: Callable[..., NDArray[np.uint8]],
    later: Sequence[Shapes],
    labels: LabelSettings,
    grid: Grid,
    legend: Legend,
    unlisted: Counter[str] | None = None,
) -> NDArray[np.uint8]:
    classes = [first(unlisted), *(_burnt(one, labels, grid, legend, unlisted) for one in later)]
    return _merged(classes, ["", *(", ".join(one.paths) for one in later)])


def _polygon_ids(shapes: Sequence[Shapes], labels: LabelSettings, grid: Grid) -> NDArray[np.int64]:
    found = shapes[0].ids(labels, grid)
    for one in shapes[1:]:
        found = np.where(found != 0, found, one.ids(labels, grid))
    return found


_NEEDED = ("name", "root", "tiles", "reference", "georeferenced", "modalities", "legend")
"""What no other fault of a scene can be found without."""


def read_scene_file(path: str | Path, faults: list[LandfuseError] | None = None) -> SceneFile:
    """Reads and checks a scene.yaml, or that of a folder; opens no raster.

    Args:
        faults: takes what is wrong with single keys, which are then left out, unless nothing is left without them.

    Raises:
        MissingFileError: if there is none.
        SettingsError: naming every key that is unknown, missing or wrong.
    """
    path = Path(path)
    with suppress(OSError):  # of a name that is too long, which reading reports
        path = path / "scene.yaml" if path.is_dir() else path
    values = read_kind("a scene file", path)
    if faults is None:
        settings = parse(SceneSettings, values, str(path))
    else:
        rest, wrong = parse_rest(SceneSettings, values, str(path), _NEEDED)
        if rest is None:
            raise FaultsError(wrong)
        settings = rest
        faults += wrong
    result = SceneFile(settings, seen_from(str(path.parent), expand_root(settings.root)), path)
    try:
        _ = settings.legend and result.legend
    except SettingsError as error:
        if faults is None or settings.reference == "labels":
            raise
        faults.append(error)
        without = {"labels": None, "legend": (), "split": None, "counts": None}
        return replace(result, settings=settings.model_copy(update=without))
    return result


def open_scenes(path: str | Path) -> list[Scene]:
    """Opens all tiles of a scene file; see `read_scene_file` and `SceneFile.scenes` for the errors.

    Examples:
        >>> [scene.name for scene in lf.open_scenes("scene.yaml")]
        ['chequers']
    """
    return read_scene_file(path).scenes()


def open_scene(path: str | Path, tile: str | None = None) -> Scene:
    """Opens one tile of a scene file, or the only one.

    Raises:
        SceneError: if there are several tiles and none is named, or none has that name.

    Examples:
        >>> list(lf.open_scene("scene.yaml").modalities)
        ['a', 'b']
    """
    scenes = open_scenes(path)
    names = [scene.name for scene in scenes]
    if tile is None and len(scenes) == 1:
        return scenes[0]
    if tile not in names:
        raise SceneError(
            f"{path} has {len(names)} tiles: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            "the name of one of them" if tile is None else f"one of them, not {tile!r}",
            "name one by `tile`, or use `open_scenes` for all",
        )
    return scenes[names.index(tile)]
