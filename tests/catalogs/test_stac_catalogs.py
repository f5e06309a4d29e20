"""STAC catalogs as modalities with dates: two zones, gaps, clouds, broken assets; from files, by HTTP, by an API."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
import yaml

from landfuse.errors import LandfuseError, MissingExtraError, OutputError, SceneError, SettingsError
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.from_files import propose
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scene

pytest.importorskip("pystac", reason="reading catalogs needs landfuse[stac]")
from landfuse.catalogs.stac import Catalog, signer

LEFT, TOP = 723_600.0, 5_320_800.0  # in UTM 32, just where 33 begins
SIDE = 40  # px of 10 m of an item
AREA = (11.9995, 47.9985, 12.0035, 48.0005)


_PLAIN = ("name", "data_type", "nodata")


def plane(grid: Grid) -> Any:
    """Numbers that grow with easting and northing of UTM 32, whatever the CRS of the grid: (1, H, W)."""
    col, row = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    x, y = pyproj.Transformer.from_crs(grid.crs, 32632, always_xy=True).transform(*grid.at(col, row))
    return np.round(2000 + (x - LEFT) + 2 * (TOP - y))[None].astype(np.uint16)


def item(name: str, grid: Grid, day: str, root: Path, *, clouds: float = 10, offset: float = -0.1, **more: Any) -> Any:
    """An item with a band of 10 m, one of 20 m and the classes of the scene, written with its files."""
    a, _, c, _, e, f = grid.transform
    half = Grid(grid.height // 2, grid.width // 2, (2 * a, 0.0, c, 0.0, 2 * e, f), grid.crs)
    assets = {}
    for key, own, values in [
        ("B04", grid, plane(grid)),
        ("B11", half, plane(half)),
        ("SCL", half, np.full((1, half.height, half.width), 4, np.uint8)),
    ]:
        if key == "B04":
            values[:, :4, :4] = 0  # no data
        if key == "SCL":
            values[:, -2:] = 9  # a cloud
        write_raster(root / f"{name}_{key}.tif", own, values, nodata=None)
        how = {"scale": 0.0001, "offset": offset} if key != "SCL" else {}
        band = {"data_type": str(values.dtype), "nodata": 0, **how}
        assets[key] = {
            "href": f"./{name}_{key}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
            "proj:shape": [own.height, own.width],
            "proj:transform": [*own.transform, 0, 0, 1],
            "raster:bands": [band],
            **({"eo:bands": [{"name": key, "center_wavelength": 0.665}]} if key == "B04" else {}),
        }
    properties = {"datetime": day, "eo:cloud_cover": clouds, "proj:epsg": int(str(grid.crs)[5:])}
    if name == "b":  # as STAC 1.1 says the same
        properties["proj:code"] = f"EPSG:{properties.pop('proj:epsg')}"
        for asset in assets.values():
            band, names = asset.pop("raster:bands")[0], asset.pop("eo:bands", [{}])[0]
            asset["bands"] = [{key if key in _PLAIN else f"raster:{key}": value for key, value in band.items()}]
            asset["bands"][0] |= {key if key in _PLAIN else f"eo:{key}": value for key, value in names.items()}
    assets["thumbnail"] = {"href": "./x.png", "type": "image/png", "roles": ["thumbnail"]}
    to_degrees = pyproj.Transformer.from_crs(grid.crs, 4326, always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*grid.bounds)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0" if name == "b" else "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": properties,
        "links": [{"rel": "collection", "href": "./collection.json"}],
        "assets": {key: asset for key, asset in assets.items() if key not in more.get("lacks", ())},
    }


def at(col: int, row: int, crs: str = "EPSG:32632", left: float = LEFT, top: float = TOP) -> Grid:
    return Grid(SIDE, SIDE, (10.0, 0.0, left + col * 10, 0.0, -10.0, top - row * 10), crs)


EAST = at(0, 0, "EPSG:32633", 276_260.0, 5_320_800.0)
ITEMS = {
    "a0": at(0, 0),
    "a1": at(0, 0),
    "a2": at(SIDE, 0),
    "b": at(0, 0),
    "c": at(0, 0),
    "e": at(0, 0),
    "z": EAST,
    "far": at(9000, 0),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static catalog in a folder."""
    home = tmp_path_factory.mktemp("catalog")
    days = {"a1": "2023-04-01T10:00:00Z", "a2": "2023-04-01T10:00:20Z", "b": "2023-04-21T10:00:00Z"}
    days |= {"z": "2023-05-01T01:00:00+02:00", "c": "2023-05-01T10:00:00Z", "e": "2023-05-11T10:00:00Z"}
    days |= {"far": days["a1"], "a0": days["a1"]}
    made = [
        item("a0", ITEMS["a0"], days["a0"], home, clouds=30, offset=5.0),  # below a1
        item("a1", ITEMS["a1"], days["a1"], home),
        item("a2", ITEMS["a2"], days["a2"], home, offset=0.0),
        item("b", ITEMS["b"], days["b"], home),
        item("z", ITEMS["z"], days["z"], home),  # of 30 April in UTC
        item("c", ITEMS["c"], days["c"], home, clouds=90),
        item("e", ITEMS["e"], days["e"], home, lacks=("B11",)),
        item("far", ITEMS["far"], days["far"], home),
    ]
    for one in made:
        (home / f"{one['id']}.json").write_text(json.dumps(one))
    start = {"stac_version": "1.0.0", "description": "made here"}
    links = [{"rel": "item", "href": f"./{one['id']}.json", "type": "application/json"} for one in made]
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    for name, found in {"collection": links, "empty": []}.items():
        kind = {"type": "Collection", "id": "sentinel-2-l2a" if found else "empty", "license": "other"}
        (home / f"{name}.json").write_text(json.dumps(start | kind | {"extent": extent, "links": found}))
    children = [{"rel": "child", "href": f"./{name}.json"} for name in ("collection", "empty")]
    (home / "catalog.json").write_text(json.dumps(start | {"type": "Catalog", "id": "x", "links": children}))
    (home / "torn.json").write_text((home / "catalog.json").read_text()[:80])
    (home / "page.html").write_text("<html>sign in</html>" * 200)
    return home


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("range_server.py")), str(root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "2")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def made(address: object, home: Path, **how: Any) -> tuple[Scene, dict[str, Any], list[str]]:
    found = propose((), home, catalog=Catalog(str(address), AREA, **{"cloud": 40, **how}).write)
    scene, _ = found.write()
    return open_scene(scene), yaml.safe_load(scene.read_text()), found.notes


def truth(grid: Grid, names: str, key: str = "B04") -> Any:
    """What each pixel holds, by a loop over the items, the first on top: (H, W)."""
    wanted = np.full((grid.height, grid.width), np.nan)
    for name in reversed(names.split()):
        own = ITEMS[name]
        numbers = plane(own)[0].astype(float)
        numbers[:4, :4] = np.nan
        values = numbers * 0.0001 + (0.0 if name == "a2" else -0.1)
        for row in range(grid.height):
            for col in range(grid.width):
                x, y = grid.at(col + 0.5, row + 0.5)
                own_col, own_row = int((x - own.transform[2]) // 10), int((own.transform[5] - y) // 10)
                inside = 0 <= own_col < SIDE and 0 <= own_row < SIDE
                if inside and np.isfinite(values[own_row, own_col]):
                    wanted[row, col] = values[own_row, own_col]
    return wanted


def test_dates_zones_and_scales(root: Path, tmp_path: Path) -> None:
    scene, text, notes = made(root / "catalog.json", tmp_path)
    s2 = text["modalities"]["s2"]
    assert s2["path"] == ["s2/{date}_b04.vrt", "s2/{date}_b11.vrt"]
    assert s2["names"] == ["B04", "B11"]
    assert s2["dates"]["mask"] == {"path": "s2/{date}_scl.vrt", "clear": [4, 5, 6]}
    assert any("that lack an asset are left out: e" in note for note in notes)
    grid, raster = scene.grid, scene.modalities["s2"].raster
    assert (grid.crs, grid.pixel_size) == ("EPSG:32632", (10.0, 10.0))
    assert (grid.transform[2] - LEFT) % 10 == 0, "on the pixels of the files"
    west, south, east, north = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform_bounds(*AREA)
    left, bottom, right, top = grid.bounds
    assert 0 <= west - left < 10
    assert 0 <= right - east < 10
    assert 0 <= top - north < 10
    assert 0 <= south - bottom < 10
    dates = {str(one.day): one for one in raster.dates}  # type: ignore[attr-defined]
    assert list(dates) == ["2023-04-01", "2023-04-21", "2023-04-30"], "in UTC; without clouds, gaps of bands and others"
    first = dates["2023-04-01"].raster.read(grid.window)
    np.testing.assert_allclose(first[0], truth(grid, "a1 a2"), atol=1e-6)
    np.testing.assert_allclose(dates["2023-04-21"].raster.read(grid.window)[0], truth(grid, "b"), atol=1e-6)
    other = dates["2023-04-30"].raster.read(grid.window)[0]
    wanted = plane(grid)[0] * 0.0001 - 0.1
    there = np.isfinite(other)
    assert 0.3 < there.mean() < 1
    np.testing.assert_allclose(other[there], wanted[there], atol=0.0006)  # numbers are whole
    assert dates["2023-04-01"].raster.parts[0].wavelengths == (665.0,)
    assert dates["2023-04-21"].raster.parts[0].wavelengths == (665.0,)
    clear = dates["2023-04-01"].mask.read(grid.window)
    rows = np.array([(TOP - grid.at(0, row + 0.5)[1]) // 10 for row in range(grid.height)])
    assert not clear[(rows >= SIDE - 4) & (rows < SIDE)].any()
    assert clear[(rows >= 0) & (rows < SIDE - 4)].mean() > 0.9


def test_same_values_by_windows_and_by_http(root: Path, server: str, tmp_path: Path) -> None:
    """P1, also where a zone is warped; and a busy server is asked again."""
    scene = made(root / "catalog.json", tmp_path / "disk")[0]
    again = made(f"{server}/catalog.json", tmp_path / "http", sign=lambda one: one.replace(server, f"{server}/flaky"))[
        0
    ]
    local = {path.name for path in scene.modalities["s2"].raster.files()}  # type: ignore[attr-defined]
    assert {"2023-04-01_b04.vrt", "2023-04-30_b04_1.vrt", "a1_B04.tif", "z_B04.tif"} <= local, "whose change is noticed"
    assert all(path.is_file() for path in again.modalities["s2"].raster.files())  # type: ignore[attr-defined]
    whole = scene.modalities["s2"].raster.read(scene.grid.window)
    assert again.grid == scene.grid
    np.testing.assert_array_equal(again.modalities["s2"].raster.read(scene.grid.window), whole)
    for row in range(0, scene.grid.height, 7):
        for col in range(0, scene.grid.width, 11):
            window = Window(row, col, min(7, scene.grid.height - row), min(11, scene.grid.width - col))
            part = scene.modalities["s2"].raster.read(window)
            np.testing.assert_array_equal(part, whole[:, row : row + 7, col : col + 11])


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("status/401", "401"),
        ("status/403", "403"),
        ("status/404", "404"),
        ("status/500", "500"),
        ("cut", ""),
        ("torn", "read at row 0, column 0"),
        ("page.html?", "not recognized"),
    ],
)
@pytest.mark.parametrize("name", ["a1", "b", "z"])
def test_what_a_server_refuses_is_named(
    root: Path, server: str, tmp_path: Path, place: str, why: str, name: str
) -> None:
    """The first item of all is looked at by init; others, whose catalog says all, are not before they are read."""

    def sign(one: str) -> str:
        return one.replace(server, f"{server}/{place}") + "?token=secret" if f"{name}_B04" in one else one

    def read() -> None:
        scene = made(f"{server}/catalog.json", tmp_path, sign=sign)[0]
        scene.modalities["s2"].raster.read(scene.grid.window)

    with pytest.raises(SceneError) as raised:
        read()
    text = str(raised.value)
    assert f"{server}/{place.rstrip('?')}" in text
    assert why in text
    assert "secret" not in text.splitlines()[0].split(" cannot ")[0]
    if (name == "a1" and place != "torn") or (name == "z" and "status" in place):
        assert list(tmp_path.iterdir()) == [], "nothing is left of what cannot be opened"
    assert (tmp_path / "scene.yaml").is_file() or name != "b"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"area": (0, 0, 1, 1)}, "no item of .* 8 lie outside the area"),
        ({"time": "2022"}, "7 are of other times"),
        ({"collections": ("s1",)}, "lists none"),
        ({"assets": ("B4",)}, "no item has the asset `B4`"),
        ({"address": "{root}/torn.json"}, "torn.json cannot be read as a STAC catalog"),
        ({"address": "{server}/status/403/c.json"}, r"cannot be read as a STAC (.|\n)*403"),
        ({"address": "{server}/api"}, "no collection of .* is named"),
        ({"address": "{root}/no.json"}, "no.json cannot be read as a STAC catalog"),
    ],
)
def test_what_does_not_fit(root: Path, server: str, tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    settings = {"address": "{root}/catalog.json", "area": AREA, **chosen}
    settings["address"] = settings["address"].format(root=root, server=server)
    with pytest.raises(LandfuseError, match=message):
        propose((), tmp_path / "new", catalog=Catalog(**settings).write)
    assert not (tmp_path / "new").exists()


def test_api(root: Path, server: str, tmp_path: Path) -> None:
    pytest.importorskip("pystac_client", reason="asking an API needs landfuse[stac]")
    features = []
    for name in ("a1", "b"):
        one = json.loads((root / f"{name}.json").read_text())
        for asset in one["assets"].values():
            asset["href"] = f"{server}/{asset['href'][2:]}"
        features.append(one)
    (root / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features, "links": []}))
    scene, text, _ = made(
        f"{server}/api", tmp_path, collections=("sentinel-2-l2a",), time="2023-04", assets=("B04",), pixel=20.0
    )
    asked = json.loads((root / "asked.json").read_text())
    assert asked["collections"] == ["sentinel-2-l2a"]
    assert asked["bbox"] == [*AREA]
    assert asked["datetime"] == "2023-04-01T00:00:00Z/2023-04-30T23:59:59Z"
    assert scene.grid.pixel_size == (20.0, 20.0)
    assert text["modalities"]["s2"]["path"] == "s2/{date}_b04.vrt"
    values = scene.modalities["s2"].raster.read(scene.grid.window)[0]
    wanted = 0.2 - 0.1 + (plane(scene.grid)[0] - 2000.0) * 0.0001
    np.testing.assert_allclose(values, np.where(np.isnan(values), np.nan, wanted), atol=0.0002)
    with pytest.raises(OutputError, match="s2 is there already"):
        made(f"{server}/api", tmp_path, collections=("sentinel-2-l2a",), time="2023-04-01", without=("b",))


def test_api_without_the_client(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(MissingExtraError, match=r'pip install "landfuse\[stac\]"'):
        Catalog(f"{server}/api", AREA, collections=("s2",)).items()


def test_labels_beside_a_catalog(root: Path, tmp_path: Path) -> None:
    grid = at(5, 5)
    codes = np.repeat(np.repeat(np.arange(100).reshape(10, 10) % 3 + 1, 4, 0), 4, 1)[None].astype(np.uint8)
    write_raster(tmp_path / "field" / "labels.tif", grid, codes)
    found = propose(
        [tmp_path / "field"], tmp_path / "new", catalog=Catalog(str(root / "catalog.json"), AREA, cloud=40).write
    )
    scene = open_scene(found.write()[0])
    assert scene.grid == grid, "labels are not resampled"
    np.testing.assert_array_equal(scene.labels, codes[0] - 1)
    first = scene.modalities["s2"].raster.dates[0].raster.read(grid.window)[0]  # type: ignore[attr-defined]
    assert np.isfinite(first).mean() > 0.4
    np.testing.assert_allclose(first, np.where(np.isnan(first), np.nan, truth(grid, "a1 a2")), atol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [({"area": (12, 48, 11, 49)}, "west less than east"), ({"area": AREA, "pixel": 0.0}, "a size above 0")],
)
def test_wrong_settings(how: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Catalog("x.json", **how)


def test_command(root: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    """The area is that of the polygons that are the labels; what cannot be is said before anything is written."""
    x, y = (axis.ravel() for axis in np.meshgrid(723_740 + np.arange(7) * 40.0, 5_320_500 + np.arange(5) * 40.0))
    kinds = {"crop": np.array(["wheat", "maize"])[np.arange(35) % 2]}
    fields = geopandas.GeoDataFrame(kinds, geometry=shapely.box(x, y, x + 30, y + 30), crs="EPSG:32632")
    fields.to_file(tmp_path / "fields.gpkg")
    words = ("init", "--stac", root / "catalog.json", "--cloud", 40)
    done = invoke(*words, "--labels", tmp_path / "fields.gpkg", "--assets", "B04, SCL", "-o", tmp_path / "new")
    assert done.exit_code == 0, done.output
    scene = open_scene(tmp_path / "new")
    assert len(scene.legend) == 2
    left, bottom, right, top = scene.grid.bounds
    assert (left, bottom) <= (723_740, 5_320_500)
    assert (right, top) >= (724_010, 5_320_690)
    bbox = ",".join(map(str, AREA))
    shutil.rmtree(tmp_path / "new" / "s2")
    done = invoke(*words, "--bbox", bbox, "-o", tmp_path / "new")
    assert "differs from what these files give" in str(done.exception)
    assert not (tmp_path / "new" / "s2").exists(), "an old scene file does not get the images of another one"
    for wrong, message in {
        ("init", "--cloud", 40): "--cloud is given without --stac",
        ("init",): "no file is named",
        words: "the area is not given",
        (*words, "--bbox", "1,2,3"): "--bbox is 1,2,3",
        (*words, "--bbox", bbox, "--area", tmp_path / "fields.gpkg"): "by --bbox and by --area",
        (*words, "--area", tmp_path / "no.gpkg"): "no.gpkg",
        (*words, "--bbox", bbox, "--time", "soon"): "'soon' is no date",
    }.items():
        done = invoke(*wrong, "-o", tmp_path / "other")
        assert isinstance(done.exception, LandfuseError)
        assert message in str(done.exception)
    assert not (tmp_path / "other").exists()


def test_signer() -> None:
    assert signer("posixpath:basename")("a/b") == "b"
    with pytest.raises(LandfuseError, match="no_such_module:f cannot be imported"):
        signer("no_such_module:f")
