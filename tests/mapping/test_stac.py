"""STAC items: the fields that the specification demands, the place, and files that are where they are said to be."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyproj
import pytest
import torch

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import GridError, MissingExtraError
from landfuse.legend import LandClass, Legend
from landfuse.mapping.map_extras import write_polygons, write_style
from landfuse.mapping.map_layers import layers_of
from landfuse.mapping.settings import map_options
from landfuse.mapping.stac import check_item, write_item
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

LEGEND = Legend((LandClass("wood & scrub", 3, "#00FF00"), LandClass("wood / scrub", 1, "#0000ff")))
TURNED = Grid(20, 30, (9.0, 2.0, 5e5, 1.0, -7.0, 5.4e6), "EPSG:32632")


@pytest.fixture
def bundle() -> Bundle:
    scene = simulate_flat(20, 30, {"a": 3, "b": 2})
    maps = {"a": PixelMap(torch.rand(2, 3), torch.rand(2)), "b": PixelMap(torch.rand(2), torch.rand(2))}
    notes = {name: scene.modalities[name].info for name in maps}
    return Bundle(ModelSpec("two_branch", {"view": 5, "width": 8}), maps, notes, LEGEND).eval()


@pytest.fixture
def item(bundle: Bundle, tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "maps" / "map.tif"
    write_raster(path, TURNED, np.full((20, 30), 3, np.uint8), legend=LEGEND)
    write_raster(path.with_name("map_confidence.tif"), TURNED, np.full((20, 30), 9, np.uint8))
    write_style(path, LEGEND)
    write_polygons(path, LEGEND)
    bundle.save(tmp_path / "run" / "bundle")
    layers = layers_of(map_options({"confidence": True}), bundle.description)
    taken = datetime(2023, 6, 1, tzinfo=UTC)
    place = write_item(path, TURNED, bundle.predictor(), tmp_path / "run" / "bundle", layers, taken)
    assert place == tmp_path / "maps" / "map.stac.json"
    return dict(json.loads(place.read_text()))


def test_the_fields_that_the_specification_demands(item: dict, bundle: Bundle) -> None:
    assert {"type", "stac_version", "id", "geometry", "bbox", "properties", "links", "assets"} <= item.keys()
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", "map")
    for name in ("mlm", "projection", "raster", "classification", "file"):
        assert any(f"github.io/{name}/v" in address for address in item["stac_extensions"])
    properties = item["properties"]
    assert properties["datetime"] == "2023-06-01T00:00:00Z"
    assert datetime.fromisoformat(properties["created"]).tzinfo is not None
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32632", [20, 30])
    assert properties["proj:transform"] == [*TURNED.transform, 0, 0, 1]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= properties.keys()
    assert (properties["mlm:name"], properties["mlm:architecture"]) == ("landfuse-two_branch", "TwoBranch")
    assert properties["mlm:framework"] == "PyTorch"
    assert properties["landfuse:bundle"] == bundle.digest
    inputs = [(one["name"], one["bands"], one["input"]["shape"]) for one in properties["mlm:input"]]
    assert inputs == [("a", ["a_1", "a_2", "a_3"], [-1, 3, 5, 5]), ("b", ["b_1", "b_2"], [-1, 2, 5, 5])]
    assert {one["name"] for one in properties["bands"]} == {"a_1", "a_2", "a_3", "b_1", "b_2"}
    [output] = properties["mlm:output"]
    assert output["result"]["shape"] == [-1, 2, 1, 1]
    for one in (*properties["mlm:input"], output):
        shaped = one.get("input") or one["result"]
        assert len(shaped["shape"]) == len(shaped["dim_order"])
    assert [c["value"] for c in output["classification:classes"]] == [0, 1], "places in the output"
    of_map = item["assets"]["map"]["classification:classes"]
    assert [(c["value"], c["title"], c["color_hint"]) for c in of_map] == [
        (3, "wood & scrub", "00FF00"),
        (1, "wood / scrub", "0000FF"),
    ]
    assert [c["name"] for c in of_map] == ["wood_scrub", "wood_scrub_1"]


def test_the_schema_of_the_specification_accepts_it(item: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the core, which pystac brings; those of the extensions it would have to fetch."""
    pystac = pytest.importorskip("pystac")
    validation = pytest.importorskip("pystac.validation.stac_validator")

    def fetched() -> None:
        raise AssertionError("asks the network")

    monkeypatch.setattr(pystac.StacIO, "default", fetched)

    def accepts(one: dict) -> bool:
        judge = validation.JsonSchemaSTACValidator()
        try:
            return bool(judge.validate_core(one, pystac.STACObjectType.ITEM, one["stac_version"]))
        except pystac.STACValidationError:
            return False

    assert accepts(item)
    for broken in (
        {name: value for name, value in item.items() if name != "bbox"},
        item | {"properties": item["properties"] | {"datetime": "yesterday"}},
        item | {"assets": {"map": {"title": "no address"}}},
    ):
        assert not accepts(broken)
    again = pystac.Item.from_dict(item)
    assert again.assets["map"].media_type == pystac.MediaType.COG
    assert again.bbox == item["bbox"]


def test_what_the_extensions_demand(item: dict) -> None:
    """Read off the schemas of their versions, which are not to be had without a network."""
    addresses = [f"https://stac-extensions.github.io/{name}/schema.json" for name in (
        "mlm/v1.4.0", "projection/v2.0.0", "raster/v2.0.0", "classification/v2.0.0", "file/v2.1.0",
    )]  # fmt: skip
    assert item["stac_extensions"] == addresses
    properties, assets = item["properties"], item["assets"]
    assert not {"mlm:artifact_type", "mlm:compile_method", "mlm:entrypoint"} & properties.keys(), "of assets only"
    for one in properties["mlm:input"]:
        assert {"name", "bands", "input"} <= one.keys()
        assert "bands" in one["input"]["dim_order"]
    for one in properties["mlm:output"]:
        assert {"name", "tasks", "result"} <= one.keys()
    of_models = [name for name, asset in assets.items() if "mlm:model" in asset["roles"]]
    assert of_models == ["model"]
    assert assets["model"]["mlm:artifact_type"]
    assert "proj:code" in properties
    assert len(properties["proj:transform"]) == 9
    for name, asset in assets.items():
        for one in asset.get("classification:classes", ()):
            assert isinstance(one["value"], int)
            assert re.fullmatch(r"[0-9A-Za-z_-]+", one["name"])
            assert re.fullmatch(r"[0-9A-F]{6}", one["color_hint"])
        assert re.fullmatch(r"[a-f0-9]+", asset["file:checksum"]), name
        assert isinstance(asset["file:size"], int)


def test_the_geometry_is_the_rasters_in_degrees(item: dict) -> None:
    to_globe = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    corners = np.array([to_globe.transform(*TURNED.at(*c)) for c in ((0, 0), (30, 0), (0, 20), (30, 20))])
    [ring] = item["geometry"]["coordinates"]
    for corner in corners:
        assert np.abs(np.array(ring) - corner).sum(axis=1).min() < 1e-9
    np.testing.assert_allclose(item["bbox"], [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-7)


def test_files_are_where_and_what_they_are_said_to_be(item: dict, tmp_path: Path) -> None:
    assets = item["assets"]
    assert {name: asset["href"] for name, asset in assets.items()} == {
        "map": "./map.tif",
        "confidence": "./map_confidence.tif",
        "style": "./map.qml",
        "polygons": "./map_polygons.gpkg",
        "model": "../run/bundle/model.safetensors",
        "model-description": "../run/bundle/model.json",
    }
    for asset in assets.values():
        content = (tmp_path / "maps" / asset["href"]).read_bytes()
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
        assert asset["file:size"] == len(content)
    assert "mlm:model" in assets["model"]["roles"]
    assert (assets["map"]["data_type"], assets["map"]["nodata"]) == ("uint8", 255)
    assert "raster:spatial_resolution" not in assets["map"], "pixels that are not square"
    assert assets["confidence"]["bands"] == [{"name": "confidence", "raster:scale": 1 / 250, "raster:offset": 0}]
    assert all(not link["href"].startswith("/") for link in item["links"])


def test_a_crs_without_a_code_is_written_as_wkt_and_none_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    wkt = pyproj.CRS.from_proj4("+proj=laea +lat_0=47 +lon_0=11 +ellps=GRS80").to_wkt()
    grid = Grid(4, 6, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), wkt)
    write_raster(tmp_path / "m.tif", grid, np.full((4, 6), 3, np.uint8), legend=LEGEND)
    item = json.loads(
        write_item(
            tmp_path / "m.tif", grid, bundle.predictor(), tmp_path, layers_of(map_options({}), bundle.description)
        ).read_text()
    )
    assert item["properties"]["proj:code"] is None
    assert pyproj.CRS.from_wkt(item["properties"]["proj:wkt2"]) == pyproj.CRS.from_wkt(wkt)
    assert item["assets"]["map"]["raster:spatial_resolution"] == 10
    assert item["properties"]["datetime"] == item["properties"]["created"]
    (tmp_path / "m.stac.json").unlink()
    with pytest.raises(GridError, match="has no CRS"):
        write_item(
            tmp_path / "m.tif",
            replace(grid, crs=None),
            bundle.predictor(),
            tmp_path,
            layers_of(map_options({}), bundle.description),
        )
    assert not (tmp_path / "m.stac.json").exists()


def test_without_the_extra(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystac", None)
    for write in (
        lambda: check_item(TURNED),
        lambda: write_item(
            tmp_path / "m.tif", TURNED, bundle.predictor(), tmp_path, layers_of(map_options({}), bundle.description)
        ),
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "landfuse\[stac\]"'):
            write()


def test_an_item_across_180_degrees(bundle: Bundle, tmp_path: Path) -> None:
    grid = Grid(20, 30, (0.1, 0.0, 178.5, 0.0, -0.1, -16.0), "EPSG:4326")
    write_raster(tmp_path / "map.tif", grid, np.full((20, 30), 3, np.uint8), legend=LEGEND)
    place = write_item(
        tmp_path / "map.tif", grid, bundle.predictor(), tmp_path, layers_of(map_options({}), bundle.description)
    )
    item = json.loads(place.read_text())
    assert item["bbox"] == pytest.approx([178.5, -18, -178.5, -16]), "west is larger than east"
    assert item["geometry"]["type"] == "MultiPolygon"
    assert [len(part) for part in item["geometry"]["coordinates"]] == [1, 1]
