"""Vector labels: polygons of any file that pyogrio reads, burnt onto a grid; tables of points, written and read.

The only geopandas / pyogrio import.
"""

from __future__ import annotations

import glob
import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError

from landfuse.errors import GridError, MissingFileError, SceneError, few, nearest
from landfuse.files import read_table, unwritable, whole_file
from landfuse.legend import UNLABELLED, nfc
from landfuse.rasters.geotiff_writer import burn
from landfuse.rasters.grid import Grid, horizontal, whole_turn

TEXT = (".csv", ".txt", ".tsv")
"""Endings of tables in text files."""

_COORDINATES = (
    ("longitude", "latitude"), ("lon", "lat"), ("x", "y"), ("long", "lat"), ("lng", "lat"), ("easting", "northing"),
)  # fmt: skip
"""Columns of points, whatever their case; those of latitudes are in WGS 84."""

PROBABILITY = "probability"
"""The column of a reference sample that holds the probability of each pixel to be drawn."""


@dataclass(frozen=True)
class Join:
    """A CSV file that holds the attribute, for polygons that hold only a key: a column of both."""

    path: str
    key: str


class Polygons:
    """Shapes with one value each, in file order; made by `read_polygons`.

    Points and lines are burnt too: a point labels the pixel that holds it, a line the pixels along it.

    Args:
        shapes: geopandas.GeoSeries with a CRS; none of them empty.
        values: of the attribute, as text; None where a shape has none.
        source: names the files in messages.
        empty: how many further shapes have no outline.
        left_out: how many further shapes were left out by what a column holds.
    """

    def __init__(
        self, shapes: Any, values: Sequence[str | None], source: str, empty: int = 0, left_out: int = 0
    ) -> None:
        self._shapes = shapes
        self._values = np.array(values, dtype=object)
        self.empty, self.left_out = empty, left_out
        self._bounds = shapes.bounds.to_numpy()
        self.source = source

    def __len__(self) -> int:
        return len(self._values)

    @property
    def values(self) -> dict[str, int]:
        """How many shapes have each value, in order of value; those without a value are left out."""
        return self.values_of(np.arange(len(self)))

    def values_of(self, places: NDArray[np.intp]) -> dict[str, int]:
        """How many of some shapes have each value, as `values`."""
        counts = Counter(value for value in self._values[places] if value is not None)
        return {value: counts[value] for value in sorted(counts)}

    def meeting(self, grid: Grid) -> NDArray[np.intp]:
        """The places of the shapes whose bounding box meets the grid's; a tile may have none. Errors as in `onto`."""
        return np.unique(self._on(grid)[2])

    def onto(
        self,
        grid: Grid,
        codes: Mapping[str, int],
        *,
        unlisted: Counter[str] | None = None,
        all_touched: bool = False,
        overlap: Literal["last", "first", "unlabelled"] = "last",
    ) -> NDArray[np.uint8]:
        """Burns the shapes into a grid.

        A shape whose value is not listed, or that has none, still covers ground whose class is then not known: it
        takes part in overlaps, and what it wins is unlabelled.

        Args:
            grid: with a CRS; the shapes are brought to it.
            codes: value of the attribute -> code, 0..254.
            unlisted: counts the shapes on the grid that have a value without a code, which are then unlabelled; by
                default they are an error. Shapes without a value are always unlabelled.
            all_touched: label every pixel that a polygon touches, instead of those whose centre it holds.
            overlap: where shapes of different codes overlap: the last in the file wins, or the first, or such pixels
                are unlabelled.

        Returns:
            (H, W) uint8 codes, `UNLABELLED` elsewhere.

        Raises:
            SceneError: if shapes on the grid have values without a code that are not counted.
            GridError: if the grid has no CRS, or the shapes cannot be brought to it.
        """
        shapes, values, _ = self._on(grid)
        counts = Counter(value for value in values if value is not None and value not in codes)
        unknown = sorted(counts)
        if unlisted is not None:
            unlisted.update(counts)
        elif unknown:
            shown = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
            raise SceneError(
                f"{self.source}: polygons have the value{'s' if len(unknown) > 1 else ''} {shown}, which no class has",
                f"only {', '.join(codes)}{nearest(unknown[0], codes, '', before='; ')}",
                "add it to `legend` (as `name` or `value`), or write `unlisted: unlabelled` under `labels`",
            )
        claims = [
            (shape, UNLABELLED if value is None else codes.get(value, UNLABELLED))
            for shape, value in zip(shapes, values, strict=True)
        ]
        if overlap == "unlabelled":
            return _undisputed(claims, grid, all_touched)
        return burn(claims[:: -1 if overlap == "first" else 1], grid, all_touched=all_touched)

    def ids_onto(
        self, grid: Grid, *, all_touched: bool = False, overlap: Literal["last", "first", "unlabelled"] = "last"
    ) -> NDArray[np.int64]:
        """Which shape each pixel's code comes from: (H, W), 0 for none; options and errors as in `onto`.

        The number follows from the shape's outline, so that it is the same in every tile.
        """
        shapes, _, places = self._on(grid)
        claims = [(shape, place) for place, shape in enumerate(shapes)][:: -1 if overlap == "first" else 1]
        owner = burn(claims, grid, all_touched=all_touched, fill=-1, dtype="int32")
        return np.append(self.ids[places], 0)[owner]

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The numbers of the shapes that `ids_onto` gives, above 0."""
        digests = (hashlib.blake2b(outline, digest_size=8).digest() for outline in self._shapes.to_wkb())
        return np.array([int.from_bytes(digest, "big") >> 1 or 1 for digest in digests], np.int64)

    def _on(self, grid: Grid) -> tuple[list[Any], list[str | None], NDArray[np.intp]]:
        """The shapes that meet a grid's bounding box, in its CRS, their values, and their places in the file."""
        if grid.crs is None:
            raise GridError(
                f"the grid that {self.source} is to be burnt onto has no CRS",
                "a CRS, to place polygons by",
                "name it in the scene file by `crs:` of the reference, or give labels as a raster",
            )
        turn = whole_turn(self._shapes.crs.to_wkt())
        try:
            to_shapes = pyproj.Transformer.from_crs(horizontal(grid.crs), self._shapes.crs, always_xy=True)
            box = np.array(to_shapes.transform_bounds(*grid.bounds))
            if turn and box[0] > box[2]:  # across 180 degrees
                box[2] += turn
            near, pieces = self._near(box, turn)
            here = geopandas.GeoSeries(pieces, crs=self._shapes.crs).to_crs(grid.crs).to_numpy()
        except (CRSError, ProjError) as error:
            raise GridError(
                f"{self.source} cannot be brought to {grid.crs[:60]}: {error}", "two CRS that PROJ knows", "check both"
            ) from None
        left, _, right, _ = grid.bounds
        if grid.turn and right - left < grid.turn / 2:
            middle = np.array([(left + right) / 2, 0])
            here = shapely.transform(here, lambda x: x + np.round((middle - x) / grid.turn) * [grid.turn, 0])
        bounds = shapely.bounds(here)
        lost = ~np.isfinite(bounds).all(axis=1)
        if lost.any() and np.isfinite(box).all():
            raise GridError(
                f"{self.source}: {few([str(place + 1) for place in near[lost]])} of its shapes, in their order, cannot "
                f"be brought to {grid.crs[:60]}",
                "shapes within the area that the CRS of the rasters is made for",
                "cut them to the scene",
            )
        meeting = _meeting(bounds, np.array(grid.bounds))
        near = near[meeting]
        return list(here[meeting]), list(self._values[near]), near

    def _near(self, box: NDArray[np.float64], turn: float) -> tuple[NDArray[np.intp], NDArray[np.object_]]:
        """The shapes that meet a box in their CRS: their places, and they, cut to what is near it.

        With longitudes, shapes are also looked for a whole turn away; a shape may then come twice.
        """
        shapes = self._shapes.to_numpy()
        if not np.isfinite(box).all():
            return np.arange(len(self)), shapes
        size = box[2:] - box[:2]
        places, pieces = [], []
        for shift in (-turn, 0.0, turn) if turn else (0.0,):
            there = np.add(box, (shift, 0, shift, 0))
            # What only touches the box would come twice.
            near = _meeting(self._bounds, there + (np.array([1, 1, -1, -1]) * 1e-9 * turn if shift else 0))
            found = shapes[near]
            # A world-wide shape has no image in most CRS.
            room = np.concatenate([there[:2] - size, there[2:] + size])
            far = (self._bounds[near, :2] < room[:2]).any(axis=1) | (self._bounds[near, 2:] > room[2:]).any(axis=1)
            around = there + 0.1 * np.concatenate([-size, size])
            cut = shapely.clip_by_rect(shapely.make_valid(found[far]), *around)
            found[far] = shapely.segmentize(cut, float(size.max()) / 50)
            kept = ~shapely.is_empty(found)
            places.append(near[kept])
            pieces.append(shapely.transform(found[kept], lambda x, by=shift: x - [by, 0]) if shift else found[kept])
        near = np.concatenate(places)
        order = np.argsort(near, kind="stable")
        return near[order], np.concatenate(pieces)[order]


def _meeting(bounds: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of (N, 4) bounding boxes (left, bottom, right, top) meet a box; those with infinite sides do not."""
    meets = (bounds[:, :2] <= box[2:]).all(axis=1) & (bounds[:, 2:] >= box[:2]).all(axis=1)
    return np.flatnonzero(meets & np.isfinite(bounds).all(axis=1))


def _undisputed(claims: Sequence[tuple[Any, int]], grid: Grid, all_touched: bool) -> NDArray[np.uint8]:
    """Burns claims so that pixels of two codes have none."""
    out = np.full((grid.height, grid.width), UNLABELLED, np.uint8)
    claimed = np.zeros(out.shape, bool)
    disputed = np.zeros(out.shape, bool)
    for code in sorted({code for _, code in claims}):
        mine = burn([(shape, 0) for shape, other in claims if other == code], grid, all_touched=all_touched) == 0
        disputed |= claimed & mine
        claimed |= mine
        out[mine] = code
    out[disputed] = UNLABELLED
    return out


def read_polygons(
    paths: Iterable[str | Path] | str | Path,
    attribute: str,
    join: Join | None = None,
    crs: str | None = None,
    without: str = "",
) -> Polygons:
    """Reads vector files, and points of text tables with columns of coordinates.

    The result is kept, in each process, until a file changes.

    Values become text: 3 and 3.0 are "3", surrounding blanks are dropped, and nothing or blank is no value. A file of
    several layers must have the attribute (or the key) in one of them only. In a joined CSV a key may come more than
    once if its value is the same each time; shapes whose key is not in it have no value.

    Args:
        paths: one file, or several, which are joined one after the other.
        attribute: the column that names the class.
        crs: of files that have none.
        without: a column that files may have; shapes with something in it are left out.

    Raises:
        MissingFileError: if a file is not there.
        SceneError: if a file cannot be read, holds no shapes, has no CRS or lacks the attribute; if the CSV lacks
            the key or the attribute, contradicts itself, or fits no shape.
    """
    places = (paths,) if isinstance(paths, str | Path) else tuple(paths)
    texts = tuple(str(path) for path in places)
    stamps = tuple(_stamp(path) for path in (*texts, *([join.path] if join else [])))
    return _read(texts, attribute, join, crs, without, stamps)


def _elsewhere(path: str) -> bool:
    """Whether it is at an address or in an archive, where only GDAL reads it."""
    return "://" in path or path.startswith("/vsi")


def _stamp(path: str) -> tuple[int, int]:
    """When a file changed and how large it is."""
    if _elsewhere(path):
        return 0, 0
    place = Path(path)
    if not place.exists():
        raise MissingFileError(
            f"there is no file {path}",
            "a vector file or CSV",
            nearest(place.name, place.parent.glob("*"), "check the path", key=lambda one: one.name),
        )
    status = place.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _read(
    paths: tuple[str, ...],
    attribute: str,
    join: Join | None,
    crs: str | None,
    without: str,
    stamps: tuple[tuple[int, int], ...],
) -> Polygons:
    column = join.key if join else attribute
    parts = [_read_file(path, column, crs, without) for path in paths]
    crs = parts[0].crs
    shapes = geopandas.GeoSeries(np.concatenate([part.geometry.to_crs(crs).to_numpy() for part in parts]), crs=crs)
    values = [_text(value) for part in parts for value in part[column]]
    source = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
    if join is not None:
        table = _table(join, attribute)
        matched = sum(value in table for value in values)
        if not matched:
            ours = next((value for value in values if value is not None), "nothing")
            raise SceneError(
                f"no shape of {source} has a `{join.key}` that {join.path} lists",
                f"common keys; the shapes have e.g. {ours}, the table {next(iter(table), 'nothing')}",
                "check `key` and that the files belong together",
            )
        values = [table.get(value) if value is not None else None for value in values]
    empty, left_out = (sum(part.attrs[what] for part in parts) for what in ("empty", "left_out"))
    return Polygons(shapes, values, source, empty, left_out)


@contextmanager
def _literal(path: str) -> Iterator[str]:
    """The file under a name that pyogrio leaves as it is: it splits others at `!`, and drops their line breaks."""
    if path.startswith("/vsi") or not re.search(r"[!\t\r\n]", path):
        yield path
        return
    with TemporaryDirectory() as folder:
        place = Path(path).absolute()
        for beside in place.parent.glob(glob.escape(place.stem) + ".*"):  # a Shapefile is several files
            (Path(folder) / f"file{beside.name.removeprefix(place.stem)}").symlink_to(beside)
        yield str(Path(folder) / f"file{place.suffix}")


def _read_file(path: str, column: str, crs: str | None, without: str) -> Any:
    """The shapes of one file with one column, as a GeoDataFrame without empty shapes and those left out."""
    do = "add it, or name it by `labels: crs:`; a Shapefile needs its .prj beside it"
    points = _points(path, column, crs, without, do) if Path(path).suffix.lower() in TEXT else None
    if points is not None:
        return points
    try:
        with _literal(path) as literal:
            fields = {
                str(name): list(pyogrio.read_info(literal, layer=name)["fields"])
                for name, kind in pyogrio.list_layers(literal)
                if kind is not None
            }
            fitting = [name for name, columns in fields.items() if column in columns]
            if len(fitting) == 1:
                wanted = [column, *(name for name in fields[fitting[0]] if name == without)]
                frame = pyogrio.read_dataframe(literal, layer=fitting[0], columns=wanted)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, UnicodeDecodeError) as error:
        raise SceneError(
            f"{path} cannot be read: {error}",
            "a vector file that GDAL reads, such as GeoPackage, Shapefile or GeoJSON",
            "check that it is whole; a Shapefile needs its .shx and .dbf beside it",
        ) from None
    if not fields:
        raise SceneError(f"{path} holds no shapes", "polygons", "check the file")
    if not fitting:
        present = list(dict.fromkeys(name for columns in fields.values() for name in columns))
        raise SceneError(
            f"{path} has no attribute `{column}`", f"one of: {', '.join(present) or 'none'}", nearest(column, present)
        )
    if len(fitting) > 1:
        raise SceneError(
            f"{path} has the attribute `{column}` in the layers {', '.join(fitting)}",
            "one layer that has it",
            "save the layer that is meant as a file of its own",
        )
    return _shapes(frame, path, do, crs, without)


def box_of(path: str | Path) -> tuple[float, float, float, float]:
    """West, south, east and north of all shapes of a file, in degrees.

    Raises:
        MissingFileError: if there is none.
        SceneError: if it cannot be read, or does not say where its shapes are.
    """
    if not Path(path).exists():
        raise MissingFileError(f"there is no file {path}", "a vector file", "check the path")
    boxes = []
    try:
        for name, kind in pyogrio.list_layers(path):
            if kind is None:
                continue
            info = pyogrio.read_info(path, layer=name, force_total_bounds=True)
            to_degrees = pyproj.Transformer.from_crs(info["crs"], 4326, always_xy=True)
            boxes.append(to_degrees.transform_bounds(*info["total_bounds"]))
    except (pyogrio.errors.DataSourceError, pyproj.exceptions.ProjError) as error:
        raise SceneError(f"{path} does not say where it is: {error}", "a vector file with a CRS", "") from None
    if not np.isfinite(boxes).all() or not boxes:
        raise SceneError(f"{path} holds no shapes that have a place", "polygons or points", "check the file")
    west, south, east, north = np.transpose(boxes)
    return float(west.min()), float(south.min()), float(east.max()), float(north.max())


def _points(path: str, column: str, crs: str | None, without: str, do: str) -> Any:
    """The points of a text table with one column, as a GeoDataFrame; None if it has a column of geometry instead."""
    table = read_table(path)
    named = {name.lower(): name for name in table.columns}
    if named.keys() & {"wkt", "geometry", "geom", "the_geom"}:
        return None
    pair = next(([named[name] for name in pair] for pair in _COORDINATES if named.keys() >= set(pair)), None)
    if pair is None:
        raise SceneError(
            f"{path} is a table of {len(table.rows):,} samples without a place: it has the columns "
            f"{few(table.columns, 8) or 'none'}",
            "points: columns named " + ", or ".join(" and ".join(pair) for pair in _COORDINATES[:3]),
            "add the coordinates: labels are pixels of a scene",
        )
    if column not in table.columns:
        raise SceneError(
            f"{path} has no column `{column}`", f"one of: {', '.join(table.columns)}", nearest(column, table.columns)
        )
    try:
        places = np.array([[table.number(row[name]) for name in pair] for row in table.rows]).reshape(-1, 2)
        degrees = pair[1].lower().startswith("lat")
        if degrees and (np.abs(places) > [360, 90]).any():
            raise ValueError("a longitude or latitude is beyond 360 or 90 degrees")
    except ValueError as error:
        raise SceneError(
            f"the columns {' and '.join(pair)} of {path} cannot be read: {error}", "numbers", "correct them"
        ) from None
    stated = {row.get("crs") for row in table.rows}  # as in a sample of `landfuse sample`
    known = crs or ("EPSG:4326" if degrees else stated.pop() if len(stated) == 1 else None)
    geometry = np.where(np.isfinite(places).all(axis=1), shapely.points(places), None)
    wanted = [column, *(name for name in table.columns if name == without)]
    columns = {name: [row[name] for row in table.rows] for name in wanted}
    return _shapes(geopandas.GeoDataFrame(columns, geometry=geometry), path, do, known, without)


def _shapes(frame: Any, source: str, do: str, crs: str | None = None, without: str = "") -> Any:
    """A GeoDataFrame without empty shapes and heights, whose CRS is known; `crs` where it has none."""
    empty = frame.geometry.isna() | frame.geometry.is_empty
    frame = frame[~empty]
    left_out = np.array([_text(v) is not None for v in frame[without]], bool) if without in frame.columns else None
    if not len(frame):
        raise SceneError(f"{source} holds no shapes", "at least one polygon", "check the file")
    if crs and frame.crs is None:
        try:
            frame = frame.set_crs(crs)
        except CRSError as error:
            raise SceneError(f"{source}: the CRS {crs!r} is not known: {error}", "EPSG:n, WKT or PROJ", do) from None
    if frame.crs is None:
        raise SceneError(f"{source} has no CRS", "a CRS, to bring the polygons to the grid", do)
    frame = frame.set_geometry(shapely.force_2d(frame.geometry.to_numpy()), crs=frame.crs)
    frame = frame if left_out is None else frame[~left_out]
    frame.attrs |= {"empty": int(empty.sum()), "left_out": 0 if left_out is None else int(left_out.sum())}
    return frame


def polygons_of(frame: Any, attribute: str) -> Polygons:
    """The shapes of a GeoDataFrame; values and errors as in `read_polygons`."""
    source = "the GeoDataFrame"
    if attribute not in frame.columns:
        present = [str(name) for name in frame.columns if name != frame.geometry.name]
        raise SceneError(
            f"{source} has no column `{attribute}`",
            f"one of: {', '.join(present) or 'none'}",
            nearest(attribute, present),
        )
    shapes = _shapes(frame, source, "add it, e.g. by `.set_crs('EPSG:32632')`")
    return Polygons(shapes.geometry, [_text(value) for value in shapes[attribute]], source)


def _table(join: Join, attribute: str) -> dict[str, str | None]:
    """Key -> attribute of a CSV file."""
    found = read_table(join.path)
    for what, column in (("key", join.key), ("attribute", attribute)):
        if column not in found.columns:
            raise SceneError(
                f"{join.path} has no column `{column}`, the {what}",
                f"one of: {', '.join(found.columns) or 'none; it is empty'}",
                nearest(column, found.columns),
            )
    table: dict[str, str | None] = {}
    for line, row in zip(found.lines, found.rows, strict=True):
        key, value = _text(row[join.key]), _text(row[attribute])
        if key is None:
            continue
        if table.setdefault(key, value) != value:
            raise SceneError(
                f"{join.path} gives the {join.key} {key} the {attribute} {table[key]}, and {value} in line {line}",
                f"one {attribute} for each {join.key}",
                "remove the rows that do not hold",
            )
    return table


def _text(value: Any) -> str | None:
    """A value of an attribute as text, None where there is none."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return None
    # A column of whole numbers with gaps comes as floats.
    text = str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)
    return nfc(text).strip() or None


def write_points(
    path: str | Path, xs: NDArray[np.float64], ys: NDArray[np.float64], columns: Mapping[str, Any], crs: str | None
) -> None:
    """Writes points, (n,) coordinates in the CRS, with columns of n values, as `write_shapes` does."""
    write_shapes(Path(path), shapely.points(xs, ys), columns, crs)


def write_shapes(path: Path, shapes: Any, columns: Mapping[str, Any], crs: str | None) -> None:
    """Writes shapes as a GeoPackage of one layer of the file's name; see `write_layer`."""
    write_layer(path, path.stem, geopandas.GeoDataFrame(dict(columns), geometry=shapes, crs=crs))


def write_layer(path: Path, layer: str, frame: Any) -> None:
    """Writes a GeoDataFrame as a GeoPackage of one layer, whole or not at all."""
    with whole_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the partial file's name, and of a map without CRS
        try:
            written = BytesIO()  # a path is split at `!`, and loses its line breaks
            pyogrio.write_dataframe(frame, written, layer=layer, driver="GPKG")
            partial.write_bytes(written.getvalue())  # a view of it can crash Python 3.12.1 as it collects garbage
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            raise unwritable(path, error) from None


def read_rows(path: str | Path) -> list[dict[str, str | None]]:
    """The attributes of a vector file's shapes, or a CSV file's rows: column -> value as text, None for nothing.

    Raises:
        MissingFileError: if it is not there.
        SceneError: if it cannot be read, or has shapes in several layers.
    """
    _stamp(str(path))
    text = Path(path).suffix.lower() in TEXT
    if text and not _elsewhere(str(path)):
        table = read_table(path)
        decimal = re.compile(rf"[-+]?\d+{re.escape(table.decimal)}\d+([eE][-+]?\d+)?")
        return [
            {
                name: cell.replace(table.decimal, ".") if cell and decimal.fullmatch(cell) else _text(cell)
                for name, cell in row.items()
            }
            for row in table.rows
        ]
    try:
        with _literal(str(path)) as literal:
            layers = [str(name) for name, kind in pyogrio.list_layers(literal) if text or kind is not None]
            frame = pyogrio.read_dataframe(literal, read_geometry=False, layer=layers[0]) if len(layers) == 1 else None
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        raise SceneError(
            f"{path} cannot be read: {error}", "a vector file that GDAL reads, or a CSV file", "check the file"
        ) from None
    if frame is None:
        raise SceneError(
            f"{path} has shapes in {len(layers)} layers{': ' if layers else ''}{', '.join(layers)}",
            "one layer",
            "save the layer that is meant as a file of its own",
        )
    lists = {str(name): [_text(value) for value in frame[name]] for name in frame.columns}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
