"""Items of a SpatioTemporal Asset Catalog (STAC) as modalities with dates: a VRT per date and asset.

A VRT of each day and asset mosaics the items of that day where they lie. The scene file needs no key for that, each
date has its own scale, offset and nodata, and a run that goes on after an interruption finds the same local files.

Source:
    STAC 1.0 and 1.1, https://stacspec.org, with its extensions projection, raster and electro-optical.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyproj
import pystac
import shapely

from landfuse.catalogs.mosaic import Source, StoredBand, look, write_mosaic
from landfuse.errors import GridError, LandfuseError, OutputError, SceneError, SettingsError, few, nearest
from landfuse.extras import missing_extra
from landfuse.rasters.geotiff import crs_name
from landfuse.rasters.grid import Grid
from landfuse.scenes.from_files import LEFT_OUT, RASTERS, DatedFiles, identifier, sensor_of
from landfuse.series.dates import parse_period

_MASKS = {"scl": "clear: [4, 5, 6]", "qa_pixel": "bits: [1, 3, 4]"}
"""Asset -> which of its values are clear: of Sentinel-2 level 2A, and of Landsat collection 2."""
_AT_ONCE = 8
"""Headers that are read at once."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Catalog:
    """Which items and assets of a catalog become a scene.

    Args:
        address: file or URL of a catalog or collection, or of the root of a STAC API.
        area: west, south, east and north, degrees.
        time: the days, `2023-04/2023-09`; all by default.
        collections: their ids; of a catalog of files all by default.
        assets: the keys of those that become bands; by default those of data.
        cloud: the largest `eo:cloud_cover`, percent; items that do not state it are taken.
        pixel: size in units of the CRS; by default that of the files.
        without: ids of items that are left out.
        sign: address of a file -> what it is read from; by default the same.
    """

    address: str
    area: Box
    time: str | None = None
    collections: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    cloud: float | None = None
    pixel: float | None = None
    without: tuple[str, ...] = ()
    sign: Callable[[str], str] | None = None
    _looked: dict[tuple[str, str], tuple[StoredBand, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        west, south, east, north = self.area
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise SettingsError(
                f"the area is {west:g}, {south:g}, {east:g}, {north:g}",
                "west, south, east and north in degrees, west less than east; not across 180 degrees",
                "correct it",
            )
        if self.pixel is not None and not self.pixel > 0:
            raise SettingsError(f"pixels of {self.pixel:g}", "a size above 0", "correct it")

    def items(self) -> list[pystac.Item]:
        """The items that fit, by their ids.

        Raises:
            SceneError: if the catalog cannot be read, or none fits.
        """
        period = parse_period(self.time, "the time") if self.time else None
        lost: Counter[str] = Counter()
        found: dict[tuple[str, str], pystac.Item] = {}
        there: set[str] = set()
        try:
            for item in self._listed():
                there.add(item.collection_id or "")
                cloud = item.properties.get("eo:cloud_cover")
                if self.collections and item.collection_id not in self.collections:
                    lost["are of other collections"] += 1
                elif item.geometry is None or not shapely.intersects(
                    shapely.geometry.shape(item.geometry), shapely.box(*self.area)
                ):
                    lost["lie outside the area"] += 1
                elif period and _day(item) not in period:
                    lost["are of other times"] += 1
                elif self.cloud is not None and cloud is not None and cloud > self.cloud:
                    lost[f"have more than {self.cloud:g}% clouds"] += 1
                elif item.id in self.without:
                    lost["are left out by name"] += 1
                else:
                    found[item.collection_id or "", item.id] = item
        except LandfuseError:
            raise
        except Exception as error:  # whatever pystac, its reader of JSON or the network raises
            raise SceneError(
                f"{self.address} cannot be read as a STAC catalog: {type(error).__name__}: {error}",
                "the path or address of a catalog, a collection, or the root of a STAC API",
                "check it, and whether it needs a password",
            ) from error
        if not found:
            raise SceneError(
                f"no item of {self.address} fits: "
                + ("; ".join(f"{n} {why}" for why, n in lost.items()) or "it lists none"),
                "items in the area and time" + (f"; collections seen: {few(sorted(there - {''}))}" if there else ""),
                "check area, time, collections and clouds",
            )
        return [found[key] for key in sorted(found)]

    def _listed(self) -> Iterator[pystac.Item]:
        root: Any = pystac.read_file(self.address)
        if not root.get_links("search"):
            yield from [root] if isinstance(root, pystac.Item) else _of(root, self.collections)
            return
        if not self.collections:
            there = [link.href.rstrip("/").rsplit("/", 1)[-1] for link in root.get_links("child")]
            raise SettingsError(
                f"no collection of {self.address} is named",
                f"one or more of: {few(there, 40)}" if there else "their ids",
                "name them by --collections",
            )
        try:
            from pystac_client import Client  # not needed for catalogs of files
        except ImportError as error:
            raise missing_extra(error) from None
        period = parse_period(self.time, "the time") if self.time else None
        yield from (
            Client.open(self.address)
            .search(
                collections=[*self.collections],
                bbox=self.area,
                datetime=f"{period.first}T00:00:00Z/{period.last}T23:59:59Z" if period else None,
            )
            .items()
        )

    def write(self, folder: Path, notes: list[str], used: set[str]) -> tuple[list[DatedFiles], list[Path]]:
        """Writes the VRTs of all dates; returns the modalities, and the folders that were not there before.

        Args:
            folder: of the scene file; each modality gets a folder in it.
            notes: takes what was left out.
            used: names that other modalities have.

        Raises:
            SceneError: if no item fits, there is no such asset, or a file is no raster.
            OutputError: if the folder of a modality is there already.
        """
        by_collection: dict[str, list[pystac.Item]] = {}
        for item in self.items():
            by_collection.setdefault(item.collection_id or "", []).append(item)
        present = {key for items in by_collection.values() for item in items for key in item.assets}
        wrong = [key for key in self.assets if key not in present]
        if wrong:
            raise SceneError(
                f"no item has the asset `{wrong[0]}`",
                f"one of: {few(sorted(present), 40)}",
                nearest(wrong[0], sorted(present)),
            )
        found: list[DatedFiles] = []
        made: list[Path] = []
        try:
            for collection, items in by_collection.items():
                called = sensor_of(collection) or identifier(collection) or "image"
                name = next(n for k in range(1, 999) if (n := called if k == 1 else f"{called}_{k}") not in used)
                used.add(name)
                if (folder / name).exists():
                    raise OutputError(
                        f"{folder / name} is there already, perhaps with dates of another selection",
                        "a new folder for the VRTs",
                        "remove it if nobody needs it, or name another folder by -o",
                    )
                made += [place for place in (folder / name, folder) if not place.exists()]
                found.append(self._write_one(name, collection, items, folder, notes))
        except BaseException:
            for place in made:
                shutil.rmtree(place, ignore_errors=True)
            raise
        return found, made

    def _write_one(
        self, name: str, collection: str, items: Sequence[pystac.Item], folder: Path, notes: list[str]
    ) -> DatedFiles:
        where = f"`{name}` ({collection or 'items without a collection'})"
        wanted = [key for key in self.assets if any(key in item.assets for item in items)] or _data(items)
        mask = next((key for key in (*wanted, *items[0].assets) if key.lower() in _MASKS), None)
        keys = [key for key in wanted if key != mask]
        if not keys:
            raise SceneError(
                f"no asset of {where} looks like data: {few(list(items[0].assets), 20)}", "one", "name it by --assets"
            )
        every = [*keys, *([mask] if mask else [])]
        lacking = [item.id for item in items if any(key not in item.assets for key in every)]
        if lacking:
            notes.append(f"items of {where} that lack an asset are left out: {few(lacking)}")
        whole = [item for item in items if item.id not in lacking]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            by_asset = {key: [self._source(whole[0], key, True)] for key in every} if whole else {}
            for key, sources in by_asset.items():
                sources += pool.map(partial(self._source, key=key), whole[1:])
        if not whole:
            raise SceneError(f"no item of {where} has all of {few(every, 20)}", "one", "name others by --assets")
        for key, sources in by_asset.items():
            odd = next((n for n, one in enumerate(sources) if len(one.bands) != len(sources[0].bands)), None)
            if odd is not None:
                raise SceneError(
                    f"the asset `{key}` of the item {whole[odd].id} has {len(sources[odd].bands)} bands",
                    f"{len(sources[0].bands)}, as that of {whole[0].id}",
                    f"leave the item out by --without {whole[odd].id}",
                )
        counts = Counter(str(source.grid.crs) for source in by_asset[keys[0]])
        crs = max(sorted(counts), key=lambda one: counts[one])
        grids = {key: self._grid(sources, crs) for key, sources in by_asset.items()}
        days: dict[date, list[int]] = {}
        order = sorted(
            range(len(whole)),
            key=lambda n: (by_asset[keys[0]][n].grid.crs != crs, whole[n].properties.get("eo:cloud_cover") or 0),
        )
        for n in order:
            if all(by_asset[key][n].window_on(grids[key]) for key in every):
                days.setdefault(_day(whole[n]), []).append(n)
        if not days:
            raise SceneError(f"no file of {where} lies in the area", "one", "check the area")
        for day, key in ((day, key) for day in sorted(days) for key in every):
            own, grid = by_asset[key], grids[key]
            coarser = grid.pixel_size[0] > 1.5 * own[0].grid.pixel_size[0] and own[0].grid.crs == crs
            write_mosaic(
                folder / name / f"{day}_{identifier(key)}.vrt",
                grid,
                [own[n] for n in days[day]],
                "average" if coarser else "bilinear",
                codes=key == mask,
            )
        finest = min((grids[key] for key in keys), key=lambda grid: grid.pixel_size[0])
        why = f"{len(whole)} items of {collection} in {self.address}, on {finest}"
        why += f", the CRS of {counts[crs]} of them; the others are warped" if len(counts) > 1 else ""
        single = all(len(by_asset[key][0].bands) == 1 for key in keys)
        paths = {key: f"{name}/{{date}}_{identifier(key)}.vrt" for key in every}
        clear = f'{{path: "{paths[mask]}", {_MASKS[mask.lower()]}}}' if mask else ""
        patterns, names = tuple(paths[key] for key in keys), tuple(keys) if single else ()
        return DatedFiles(name, patterns, tuple(sorted(days)), names, clear, why)

    def _source(self, item: pystac.Item, key: str, first: bool = False) -> Source:
        """A file: as the catalog describes it where that holds of the first item, else as its header does."""
        asset = item.assets[key]
        href = str(asset.get_absolute_href() or asset.href)
        address = _for_gdal(self.sign(href) if self.sign else href)
        try:
            grid, bands = _stated(item, asset)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise SceneError(
                f"{self.address} describes the asset `{key}` of the item {item.id} wrongly: {error}",
                "proj:shape, proj:transform and raster:bands as in STAC",
                f"leave the item out by --without {item.id}",
            ) from None
        complete = grid is not None and all(band.dtype for band in bands)
        kind = (item.collection_id or "", key)
        if complete and not first and kind in self._looked:
            return Source(address, grid, _merged(bands, self._looked[kind]))  # type: ignore[arg-type]
        try:
            seen = look(address)
        except LandfuseError as error:
            error.found = f"the asset `{key}` of the item {item.id}: {error.found}"
            error.do = f"{error.do}; or leave the item out by --without {item.id}"
            raise
        if complete and first and grid == seen.grid and [b.dtype for b in bands] == [b.dtype for b in seen.bands]:
            # What the catalog leaves out is as in this file.
            self._looked[kind] = tuple(replace(band, name="", micrometres=None) for band in seen.bands)
        if seen.grid.crs is None:
            seen = replace(seen, grid=replace(seen.grid, crs=_crs(item, asset)))
            if seen.grid.crs is None:
                raise GridError(
                    f"the asset `{key}` of the item {item.id} has no CRS, and the catalog states none",
                    "a CRS",
                    f"leave the item out by --without {item.id}",
                )
        return replace(seen, bands=_merged(bands, seen.bands))

    def _grid(self, sources: Sequence[Source], crs: str) -> Grid:
        """The area on the pixels of most files, or with those that are asked for."""
        same = [source.grid for source in sources if source.grid.crs == crs] or [source.grid for source in sources]
        first = max(same, key=lambda grid: sum(grid.pixel_size == other.pixel_size for other in same))
        x, y, left, top = *first.pixel_size, first.transform[2], first.transform[5]
        if self.pixel is not None or first.crs != crs:
            x = y = self.pixel or min(first.pixel_size)
            left = top = 0.0
        try:
            to_crs = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
            west, south, east, north = to_crs.transform_bounds(*self.area)
        except pyproj.exceptions.ProjError:
            west = math.inf
        if not math.isfinite(west):
            raise GridError(f"the area has no place in {crs:.60}", "an area within the CRS of the items", "")
        first_col, last_col = math.floor((west - left) / x), math.ceil((east - left) / x)
        first_row, last_row = math.floor((top - north) / y), math.ceil((top - south) / y)
        transform = (x, 0.0, left + first_col * x, 0.0, -y, top - first_row * y)
        return Grid(last_row - first_row, last_col - first_col, transform, crs)


def signer(place: str) -> Callable[[str], str]:
    """Imports a function that the user names, `package.module:function`."""
    try:
        found: Callable[[str], str] = importlib.metadata.EntryPoint("sign", place, "landfuse").load()
    except Exception as error:  # whatever another module's import may raise
        raise SettingsError(
            f"{place} cannot be imported: {type(error).__name__}: {error}",
            "package.module:function, which takes an address and returns the signed one",
            "correct the name, or install its package",
        ) from error
    return found


def _of(catalog: pystac.Catalog, collections: Sequence[str]) -> Iterator[pystac.Item]:
    """The items below a catalog; of a collection that is not wanted none is read."""
    if not collections or catalog.id in collections or not isinstance(catalog, pystac.Collection):
        yield from catalog.get_items()
    for child in catalog.get_children():
        yield from _of(child, () if child.id in collections else collections)


def _day(item: pystac.Item) -> date:
    """The day on which an item was taken, in UTC."""
    moment = item.datetime or datetime.fromisoformat(str(item.properties["start_datetime"]).replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).date()


def _data(items: Sequence[pystac.Item]) -> list[str]:
    """The assets that look like data; of two with the same bands the first."""
    found: dict[str, Any] = {}
    for key, asset in items[0].assets.items():
        kind, suffix = asset.media_type or "", Path(asset.href.split("?")[0]).suffix.lower()
        raster = re.match(r"image/(tiff|jp2|vnd\.stac\.geotiff)", kind) if kind else suffix in RASTERS
        data = "data" in (asset.roles or ["data"]) and not re.fullmatch(f"{LEFT_OUT}|visual", key.lower())
        if raster and data:
            names = [band.get("name") for band in asset.extra_fields.get("eo:bands") or ()]
            found.setdefault(str(names) if any(names) else key, key)
    return list(found.values())


def _crs(item: pystac.Item, asset: pystac.Asset) -> str | None:
    stated: Mapping[str, Any] = item.properties | asset.extra_fields
    code = stated.get("proj:code") or (stated.get("proj:epsg") and f"EPSG:{stated['proj:epsg']}")
    return crs_name(code or stated.get("proj:wkt2"), f"the item {item.id}")


def _stated(item: pystac.Item, asset: pystac.Asset) -> tuple[Grid | None, tuple[StoredBand, ...]]:
    """What a catalog says of a file: its grid, if it does of this very file, and its bands."""
    own, crs = asset.extra_fields, _crs(item, asset)
    shape, transform = own.get("proj:shape"), own.get("proj:transform")
    grid = None
    if shape and transform and crs:
        a, b, c, d, e, f = map(float, transform[:6])
        grid = Grid(int(shape[0]), int(shape[1]), (a, b, c, d, e, f), crs)
    lists = [own.get(key) or [] for key in ("eo:bands", "raster:bands", "bands")]
    bands = []
    for number in range(max(1, *map(len, lists))):
        said: dict[str, Any] = {key.split(":")[-1]: own[key] for key in _NUMBERS if key in own}
        for one in lists:
            said |= {key.split(":")[-1]: value for key, value in (one[number] if number < len(one) else {}).items()}
        wave, numbers = said.get("center_wavelength"), {k: said.get(k) for k in ("nodata", "scale", "offset")}
        values = {k: None if value is None else float(value) for k, value in numbers.items()}
        bands.append(StoredBand(said.get("name") or "", said.get("data_type"), micrometres=wave, **values))
    return grid, tuple(bands)


_NUMBERS = ("data_type", "nodata", "raster:scale", "raster:offset")
"""What STAC 1.1 may say of all bands of a file."""


def _merged(stated: Sequence[StoredBand], seen: Sequence[StoredBand]) -> tuple[StoredBand, ...]:
    """The bands of a file: as the catalog says where it does, else as the file."""
    if len(stated) != len(seen):
        stated = [StoredBand()] * len(seen)
    merged = []
    for said, found in zip(stated, seen, strict=True):
        known = {key: value for key, value in vars(said).items() if value not in (None, "")}
        merged.append(replace(found, **(known | {"dtype": found.dtype})))
    return tuple(merged)


def _for_gdal(href: str) -> str:
    """An address as GDAL reads it, without looking for files beside it."""
    kind, _, rest = href.partition("://")
    if kind in ("http", "https"):
        return f"/vsicurl?empty_dir=yes&url={quote(href, safe=':/')}"
    if kind in ("s3", "gs"):
        return f"/vsi{kind}/{rest}"
    return rest if kind == "file" else href
