"""Polygons of files as codes on a grid: which pixels, whose where they overlap, and what is said of bad files."""

from __future__ import annotations

import csv
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
import shapely.affinity
from numpy.typing import NDArray
from rasterio.warp import transform as rasterio_transform

from landfuse.errors import GridError, MissingFileError, SceneError
from landfuse.legend import UNLABELLED
from landfuse.rasters.grid import Grid
from landfuse.rasters.polygons import Join, polygons_of, read_polygons

U = UNLABELLED
CRS = "EPSG:32632"
GRID = Grid(8, 10, (2.0, 0.0, 500_000.0, 0.0, -2.0, 5_400_000.0), CRS)
CODES = {"oak": 3, "pine": 7}


def box(left: float, top: float, right: float, bottom: float) -> Any:
    """A box in pixels of GRID."""
    (x0, y0), (x1, y1) = GRID.at(left, top), GRID.at(right, bottom)
    return shapely.box(x0, y1, x1, y0)


def write(path: Path, shapes: list[Any], crs: str | None = CRS, **columns: Any) -> Path:
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def expect(*boxes: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """Codes with boxes (left, top, right, bottom, code), the later ones on top."""
    out = np.full((GRID.height, GRID.width), U, np.uint8)
    for left, top, right, bottom, code in boxes:
        out[top:bottom, left:right] = code
    return out


@pytest.mark.parametrize("name", ["x.gpkg", "x.shp", "x.geojson"])
def test_pixels_whose_centre_lies_inside(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, [box(1, 1, 4, 3), box(6.4, 5, 9.4, 7.6)], kind=["oak", "pine"])
    polygons = read_polygons(tmp_path / name, "kind")
    assert len(polygons) == 2
    assert polygons.values == {"oak": 1, "pine": 1}
    np.testing.assert_array_equal(polygons.onto(GRID, CODES), expect((1, 1, 4, 3, 3), (6, 5, 9, 8, 7)))


def test_all_touched(tmp_path: Path) -> None:
    polygons = read_polygons(write(tmp_path / "x.gpkg", [box(2.7, 2.7, 4.3, 4.3)], kind=["oak"]), "kind")
    np.testing.assert_array_equal(polygons.onto(GRID, CODES), expect((3, 3, 4, 4, 3)))
    np.testing.assert_array_equal(polygons.onto(GRID, CODES, all_touched=True), expect((2, 2, 5, 5, 3)))


def test_overlap(tmp_path: Path) -> None:
    shapes = [box(0, 0, 5, 4), box(3, 2, 8, 6), box(4, 3, 9, 8)]
    polygons = read_polygons(write(tmp_path / "x.gpkg", shapes, kind=["oak", "pine", "pine"]), "kind")
    a, b, c = (0, 0, 5, 4, 3), (3, 2, 8, 6, 7), (4, 3, 9, 8, 7)
    np.testing.assert_array_equal(polygons.onto(GRID, CODES, overlap="last"), expect(a, b, c))
    np.testing.assert_array_equal(polygons.onto(GRID, CODES, overlap="first"), expect(c, b, a))
    np.testing.assert_array_equal(polygons.onto(GRID, CODES, overlap="unlabelled"), expect(a, b, c, (3, 2, 5, 4, U)))
    same = {"oak": 5, "pine": 5}  # two values of one class do not dispute
    np.testing.assert_array_equal(
        polygons.onto(GRID, same, overlap="unlabelled"), polygons.onto(GRID, same, overlap="last")
    )


def test_unlisted_values_cover_ground_too(tmp_path: Path) -> None:
    shapes = [box(0, 0, 5, 4), box(3, 2, 8, 6), box(0, 6, 2, 8)]
    polygons = read_polygons(write(tmp_path / "x.gpkg", shapes, kind=["oak", "elm", None]), "kind")
    with pytest.raises(SceneError, match="the value elm, which no class has"):
        polygons.onto(GRID, CODES)
    for overlap, expected in (
        ("last", expect((0, 0, 5, 4, 3), (3, 2, 5, 4, U))),
        ("first", expect((0, 0, 5, 4, 3))),
        ("unlabelled", expect((0, 0, 5, 4, 3), (3, 2, 5, 4, U))),
    ):
        unlisted = Counter[str]()
        codes = polygons.onto(GRID, CODES, unlisted=unlisted, overlap=overlap)  # type: ignore[arg-type]
        assert unlisted == {"elm": 1}
        np.testing.assert_array_equal(codes, expected)
    away = Grid(8, 3, GRID.transform, CRS)
    np.testing.assert_array_equal(polygons.onto(away, {"oak": 3}, overlap="first", unlisted=Counter())[:4], 3)
    # Elm does not reach this grid, so that it is no fault of it; the shape without a value never is.
    np.testing.assert_array_equal(polygons.onto(Grid(8, 2, GRID.transform, CRS), CODES)[:4], 3)


def test_unlisted_value_suggests_the_nearest(tmp_path: Path) -> None:
    polygons = read_polygons(write(tmp_path / "x.gpkg", [box(0, 0, 5, 4)], kind=["Pine"]), "kind")
    with pytest.raises(SceneError) as caught:
        polygons.onto(GRID, CODES)
    assert "did you mean `pine`?" in caught.value.expected


def test_points_and_lines(tmp_path: Path) -> None:
    line = shapely.LineString([GRID.at(1.5, 6.5), GRID.at(7.5, 6.5)])
    path = write(tmp_path / "x.gpkg", [shapely.Point(*GRID.at(4.2, 1.9)), line], kind=["oak", "pine"])
    np.testing.assert_array_equal(
        read_polygons(path, "kind").onto(GRID, CODES), expect((4, 1, 5, 2, 3), (1, 6, 8, 7, 7))
    )


def test_another_crs(tmp_path: Path) -> None:
    # A polygon in degrees, checked pixel by pixel: each centre brought to degrees by another way and tested there.
    (west, east), (south, north) = rasterio_transform(CRS, "EPSG:4326", *zip(GRID.at(1, 7), GRID.at(9, 2), strict=True))
    slanted = shapely.Polygon([(west, south), (east, south + 2e-5), (east, north), (west + 5e-5, north)])
    polygons = read_polygons(write(tmp_path / "x.geojson", [slanted], "EPSG:4326", kind=["oak"]), "kind")
    codes = polygons.onto(GRID, CODES)
    for row, col in itertools.product(range(GRID.height), range(GRID.width)):
        x, y = GRID.at(col + 0.5, row + 0.5)
        (lon,), (lat,) = rasterio_transform(CRS, "EPSG:4326", [x], [y])
        point = shapely.Point(lon, lat)
        if slanted.boundary.distance(point) > 1e-7:
            assert (codes[row, col] == 3) == slanted.contains(point), (row, col)
    assert 10 < (codes == 3).sum() < 70


def test_files_of_two_crs_are_joined_in_order(tmp_path: Path) -> None:
    first = write(tmp_path / "a.gpkg", [box(0, 0, 5, 4)], kind=["oak"])
    second = tmp_path / "b.gpkg"
    geopandas.GeoDataFrame({"kind": ["pine"]}, geometry=[box(3, 2, 8, 6)], crs=CRS).to_crs("EPSG:25833").to_file(second)
    a, b = (0, 0, 5, 4, 3), (3, 2, 8, 6, 7)
    np.testing.assert_array_equal(read_polygons([first, second], "kind").onto(GRID, CODES), expect(a, b))
    np.testing.assert_array_equal(read_polygons([str(second), str(first)], "kind").onto(GRID, CODES), expect(b, a))


def test_a_tile_without_polygons(tmp_path: Path) -> None:
    polygons = read_polygons(write(tmp_path / "x.gpkg", [box(0, 0, 5, 4), box(3, 2, 8, 6)], kind=["oak"] * 2), "kind")
    assert len(polygons.meeting(GRID)) == 2
    away = Grid(4, 5, (2.0, 0.0, 501_000.0, 0.0, -2.0, 5_400_000.0), CRS)
    assert len(polygons.meeting(away)) == 0
    assert (polygons.onto(away, CODES) == U).all()
    other_side = Grid(4, 5, (2.0, 0.0, 500_000.0, 0.0, -2.0, 6_000_000.0), "EPSG:32755")
    assert len(polygons.meeting(other_side)) == 0
    assert len(polygons.meeting(Grid(4, 4, GRID.transform, CRS))) == 2
    assert len(polygons.meeting(Grid(4, 2, GRID.transform, CRS))) == 1


def test_a_turned_grid(tmp_path: Path) -> None:
    turned = Grid(6, 6, (1.2, 1.6, 500_000.0, 1.6, -1.2, 5_400_000.0), CRS)
    square = shapely.Polygon([turned.at(*corner) for corner in ((1, 2), (5, 2), (5, 4), (1, 4))])
    codes = read_polygons(write(tmp_path / "x.gpkg", [square], kind=["oak"]), "kind").onto(turned, CODES)
    expected = np.full((6, 6), U)
    expected[2:4, 1:5] = 3
    np.testing.assert_array_equal(codes, expected)


def test_values_become_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.gpkg",
        [box(0, 0, 1, 1)] * 4,
        whole=[3, 4, 5, 6],
        gaps=[3.0, np.nan, 5.0, 2.5],
        text=[" oak ", "", None, "NA"],
    )
    assert read_polygons(path, "whole").values == {"3": 1, "4": 1, "5": 1, "6": 1}
    assert read_polygons(path, "gaps").values == {"2.5": 1, "3": 1, "5": 1}
    assert read_polygons(path, "text").values == {"NA": 1, "oak": 1}


def test_join(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gpkg", [box(0, 0, 5, 4), box(3, 2, 8, 6), box(0, 7, 1, 8)], id=[11, 12, 13])
    table = tmp_path / "trees.csv"
    table.write_text("\ufeffid,name,kind\n12,a,pine\n11,b,oak\n11,b,oak\n99,c,oak\n,d,elm\n", encoding="utf-8")
    polygons = read_polygons((str(path),), "kind", Join(str(table), "id"))
    assert (len(polygons), polygons.values) == (3, {"oak": 1, "pine": 1})
    np.testing.assert_array_equal(polygons.onto(GRID, CODES), expect((0, 0, 5, 4, 3), (3, 2, 8, 6, 7)))


def test_files_are_read_once_and_again_when_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.geojson", [box(0, 0, 5, 4)], kind=["oak"])
    reads, read = [], pyogrio.read_dataframe
    monkeypatch.setattr(pyogrio, "read_dataframe", lambda *a, **k: (reads.append(a), read(*a, **k))[1])
    assert read_polygons(path, "kind") is read_polygons(str(path), "kind")
    assert len(reads) == 1
    write(path, [box(0, 0, 5, 4)], kind=["elm"])
    os.utime(path, (1, 1))
    assert read_polygons(path, "kind").values == {"elm": 1}


# ---- bad input


def test_missing_file(tmp_path: Path) -> None:
    path = write(tmp_path / "crowns.gpkg", [box(0, 0, 1, 1)], kind=["oak"])
    with pytest.raises(MissingFileError, match="there is no file") as caught:
        read_polygons(tmp_path / "crown.gpkg", "kind")
    assert "crowns.gpkg" in caught.value.do
    with pytest.raises(MissingFileError, match=r"trees\.csv"):
        read_polygons(path, "kind", Join(str(tmp_path / "trees.csv"), "id"))


def test_missing_attribute(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gpkg", [box(0, 0, 1, 1)], kind=["oak"], height=[3.0])
    with pytest.raises(SceneError, match="no attribute `Kinds`") as caught:
        read_polygons(path, "Kinds")
    assert "kind, height" in caught.value.expected
    assert caught.value.do == "did you mean `kind`?"


def test_missing_crs(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="crs"):
        path = write(tmp_path / "x.shp", [box(0, 0, 1, 1)], crs=None, kind=["oak"])
    with pytest.raises(SceneError, match="has no CRS"):
        read_polygons(path, "kind")
    good = read_polygons(write(tmp_path / "y.gpkg", [box(0, 0, 1, 1)], kind=["oak"]), "kind")
    with pytest.raises(GridError, match="no CRS"):
        good.onto(Grid(8, 10), CODES)
    with pytest.raises(GridError, match="EPSG:99999"):
        good.meeting(Grid(8, 10, GRID.transform, "EPSG:99999"))


def test_empty_file(tmp_path: Path) -> None:
    for name, shapes in (("none.gpkg", []), ("empty.gpkg", [shapely.Polygon(), None])):
        path = tmp_path / name
        frame = geopandas.GeoDataFrame({"kind": ["oak"] * len(shapes)}, geometry=shapes, crs=CRS)
        frame.to_file(path, geometry_type="Polygon")
        with pytest.raises(SceneError, match="holds no shapes"):
            read_polygons(path, "kind")
    (tmp_path / "table.csv").write_text("kind,id\noak,1\n")
    with pytest.raises(SceneError, match="a table of 1 samples without a place"):
        read_polygons(tmp_path / "table.csv", "kind")


def test_broken_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gpkg", [box(0, 0, 1, 1)] * 500, kind=["oak"] * 500)
    for content in (b"", b"Not Found", path.read_bytes()[:1000], path.read_bytes()[:-40_000]):
        (tmp_path / "y.gpkg").write_bytes(content)
        with pytest.raises(SceneError, match=r"y\.gpkg"):
            read_polygons(tmp_path / "y.gpkg", "kind")


def test_several_layers(tmp_path: Path) -> None:
    path = tmp_path / "x.gpkg"
    geopandas.GeoDataFrame({"kind": ["oak"]}, geometry=[box(0, 0, 1, 1)], crs=CRS).to_file(path, layer="trees")
    geopandas.GeoDataFrame({"name": ["A"]}, geometry=[box(0, 0, 1, 1)], crs=CRS).to_file(path, layer="roads")
    assert read_polygons(path, "kind").values == {"oak": 1}
    geopandas.GeoDataFrame({"kind": ["elm"]}, geometry=[box(0, 0, 1, 1)], crs=CRS).to_file(path, layer="more")
    with pytest.raises(SceneError, match="layers trees, more"):
        read_polygons(path, "kind")


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ("tree,kind\n11,oak\n", "id", "no column `id`, the key"),
        ("id,sort\n11,oak\n", "id", "no column `kind`, the attribute"),
        ("", "id", "no column"),
        ("id,kind\n11,oak\n12,elm\n11,pine\n", "id", "id 11 the kind oak, and pine in line 4"),
        ("id,kind\n21,oak\n", "id", "e.g. 11, the table 21"),
        ("id,kind\n11,\0ak\n", "id", "cannot be read: it is no text"),
        ("id,kind\n11,oak\n", "ID", "no attribute `ID`"),
    ],
)
def test_bad_join(tmp_path: Path, content: str, key: str, message: str) -> None:
    path = write(tmp_path / "x.gpkg", [box(0, 0, 1, 1)], id=[11])
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(SceneError, match=message):
        read_polygons(path, "kind", Join(str(tmp_path / "t.csv"), key))


# ---- real data


def test_real_crowns(shared: Path) -> None:
    folder = shared / "data/idtrees"
    join = Join(str(folder / "Field/train_data.csv"), "indvdID")
    polygons = read_polygons([folder / f"ITC/train_{site}.shp" for site in ("MLBS", "OSBS")], "taxonID", join)
    with (folder / "Field/train_data.csv").open() as file:
        taxa = {row["indvdID"]: row["taxonID"] for row in csv.DictReader(file)}
    crowns = [pyogrio.read_dataframe(folder / f"ITC/train_{site}.shp") for site in ("MLBS", "OSBS")]
    truth = Counter(taxa[tree] for frame in crowns for tree in frame["indvdID"] if tree in taxa)
    assert polygons.values == dict(truth)
    codes = {taxon: index for index, taxon in enumerate(sorted(truth))}
    left, _, _, top = crowns[0].geometry.iloc[0].bounds
    grid = Grid(20, 30, (1.0, 0.0, float(int(left)) - 10, 0.0, -1.0, float(int(top)) + 10), "EPSG:32617")
    # A crown is a box: the truth is a plain loop over boxes and pixel centres.
    expected = np.full((20, 30), U)
    for frame in crowns:
        for tree, bounds in zip(frame["indvdID"], frame.geometry.bounds.to_numpy(), strict=True):
            for row, col in itertools.product(range(20), range(30)):
                x, y = grid.at(col + 0.5, row + 0.5)
                if bounds[0] < x < bounds[2] and bounds[1] < y < bounds[3]:
                    expected[row, col] = codes[taxa[tree]] if tree in taxa else U
    assert (expected != U).sum() > 20
    np.testing.assert_array_equal(polygons.onto(grid, codes), expected)


GLOBE = [
    shapely.box(-180, -90, 180, 90).difference(shapely.box(-30, 30, 40, 60)),  # the world but for Europe
    shapely.box(0, -90, 180, 90),  # a hemisphere
    shapely.MultiPolygon([shapely.box(179.3, -18.1, 180, -16.2), shapely.box(-180, -18.1, -179.2, -16.2)]),
    shapely.box(-20.3, 10.2, 15.1, 80.4),
]


@pytest.mark.parametrize(
    "grid",
    [
        Grid(9, 8, (7e3, 0.0, 3e5, 0.0, -7e3, 5.4e6), "EPSG:32632"),
        Grid(30, 30, (9e4, 0.0, 3.0e6, 0.0, -9e4, 5.5e6), "EPSG:3035"),
        Grid(20, 20, (5e5, 0.0, -5.1e6, 0.0, -5e5, 5.03e6), "EPSG:3413"),  # around the pole
        Grid(30, 20, (0.1, 0.0, 179.03, 0.0, -0.1, -15.94), "EPSG:4326"),  # across 180 degrees
        Grid(30, 20, (0.1, 0.0, -181.03, 0.0, -0.1, -15.94), "EPSG:4326"),
        Grid(30, 20, (0.1, 0.0, 179.03, 0.0, -0.1, -15.94), "EPSG:4267"),
        Grid(20, 20, (9e3, 0.0, 8e5, 0.0, -9e3, 8.3e6), "EPSG:32760"),
        Grid(18, 36, (10.0, 0.0, 0.0, 0.0, -10.0, 90.0), "EPSG:4326"),
        Grid(18, 36, (10.0, 0.0, -180.0, 0.0, -10.0, 90.0), "EPSG:4326"),
    ],
)
@pytest.mark.parametrize("east", [0, 180])
def test_shapes_of_the_world_are_where_they_belong(grid: Grid, east: int) -> None:
    """Against the longitude and latitude of each pixel's centre, also for shapes with longitudes from 0 to 360."""
    shapes = [shapely.affinity.translate(shape, east) for shape in GLOBE]
    frame = geopandas.GeoDataFrame({"kind": list("abcd")}, geometry=shapes, crs="EPSG:4326")
    found = polygons_of(frame, "kind").onto(grid, {"a": 0, "b": 1, "c": 2, "d": 3})
    cols, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    a, b, c, d, e, f = grid.transform
    places = (a * cols + b * rows + c).ravel(), (d * cols + e * rows + f).ravel()
    x, y = (np.array(side) for side in rasterio_transform(grid.crs, "EPSG:4326", *places))
    expected = np.full(x.size, U, np.uint8)
    for code, shape in enumerate(shapes):
        for turn in (-360, 0, 360):
            expected[shapely.contains_xy(shape, x + turn, y)] = code
    np.testing.assert_array_equal(found.ravel(), expected)


def test_shapes_that_cannot_be_placed_are_named() -> None:
    frame = geopandas.GeoDataFrame(
        {"kind": ["a", "b"]}, geometry=[shapely.box(0, 80, 9, 85), GLOBE[0]], crs="EPSG:4326"
    )
    to_the_horizon = Grid(20, 20, (7e6, 0.0, -7e7, 0.0, -7e6, 7e7), "+proj=gnom +lat_0=90 +ellps=WGS84 +type=crs")
    with pytest.raises(GridError, match="the GeoDataFrame: 2 of its shapes"):
        polygons_of(frame, "kind").onto(to_the_horizon, {"a": 0, "b": 1})


@pytest.mark.parametrize(
    ("header", "crs"),
    [
        ("Longitude,Latitude", None),
        ("LAT;lon", None),
        ("x;y", CRS),
        ("crs,X,Y", None),
        ("easting\tnorthing", CRS),
        ("latitude,longitude,x,y", None),
    ],
)
def test_points_of_a_table_are_labels(header: str, crs: str | None, tmp_path: Path) -> None:
    """The pixels (row 1, column 2) and (row 5, column 7), and a row without a place."""
    separator = next(sign for sign in ";\t," if sign in header)
    names, lines = header.split(separator), []
    for col, row, kind in ((2.5, 1.5, "oak"), (7.5, 5.5, "pine"), (None, None, "oak")):
        cells = dict.fromkeys(("x", "y", "lon", "lat"), "")
        if col is not None:
            x, y = GRID.at(col, row)
            [lon], [lat] = rasterio_transform(CRS, "EPSG:4326", [x], [y])
            cells = {"x": repr(x), "y": repr(y), "lon": repr(lon), "lat": repr(lat)}
        of_name = {"easting": "x", "northing": "y", "longitude": "lon", "latitude": "lat"}
        values = [CRS if name == "crs" else cells[of_name.get(name.lower(), name.lower())] for name in names]
        decimal = "." if separator == "," else ","
        lines.append(separator.join([*(value.replace(".", decimal) for value in values), kind]))
    (tmp_path / "p.csv").write_text("\n".join([separator.join([*names, "kind"]), *lines]), encoding="utf-16")
    polygons = read_polygons(tmp_path / "p.csv", "kind", crs=crs)
    np.testing.assert_array_equal(polygons.onto(GRID, CODES), expect((2, 1, 3, 2, 3), (7, 5, 8, 6, 7)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,kind\n1,oak\n2,pine\n", "is a table of 2 samples without a place: it has the columns a, kind"),
        ("x,y,kind\n1,2,oak\n", "has no CRS"),
        ("lon,lat,kind\n50,110,oak\n", "beyond 360 or 90 degrees"),
        ("lon,lat,kind\n50,north,oak\n", "lon and lat of .* cannot be read"),
        ("lon,lat,species\n50,10,oak\n", "has no column `kind`"),
        ("lon,lat,kind\n,,oak\n", "holds no shapes"),
    ],
)
def test_tables_that_are_no_points(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SceneError, match=message):
        read_polygons(tmp_path / "p.csv", "kind")


def test_a_file_without_crs_takes_the_named_one(tmp_path: Path) -> None:
    write(tmp_path / "x.gpkg", [box(1, 1, 4, 3)], crs=None, kind=["oak"])
    polygons = read_polygons(tmp_path / "x.gpkg", "kind", crs=CRS)
    np.testing.assert_array_equal(polygons.onto(GRID, CODES), expect((1, 1, 4, 3, 3)))
    with pytest.raises(SceneError, match="the CRS 'EPSG:1' is not known"):
        read_polygons(tmp_path / "x.gpkg", "kind", crs="EPSG:1")


def test_values_and_keys_are_equal_however_their_accents_were_typed(tmp_path: Path) -> None:
    mac, pc = "Gru\u0308n", "Gr\u00fcn"
    path = write(tmp_path / "x.gpkg", [box(0, 0, 5, 4), box(5, 0, 8, 4)], key=[mac, pc])
    assert read_polygons(path, "key").values == {pc: 2}
    (tmp_path / "t.csv").write_text(f"key,kind\n{pc},{mac}\n", encoding="utf-8")
    assert read_polygons(path, "kind", Join(str(tmp_path / "t.csv"), "key")).values == {pc: 2}
