"""Names of folders and files on disk are literal: only what is written in a scene file is a pattern or a variable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import pytest
import rasterio
import yaml
from shapely.geometry import box

from landfuse.rasters.polygons import read_polygons, read_rows
from landfuse.scenes.fetch import missing_files
from landfuse.scenes.scene_file import read_scene_file

ODD = "[a]! * ? \n{tile} {tile:02} ${HOME}"
Run = Callable[..., Any]


def test_a_scene_of_tiles_is_trained_mapped_and_shown(landfuse: Run, place: Path, tmp_path: Path) -> None:
    home, tiles = tmp_path / ODD, ["${HOME}", "[1]!\n*", "{tile}"]
    home.mkdir()
    for tile in tiles:
        for name in ("a", "labels"):
            (home / f"{name}_{tile}.tif").symlink_to(place / f"{name}.tif")
    text = yaml.safe_load((place / "scene.yaml").read_text())
    text["modalities"] = {"a": {"path": "${LF_FOLDER:-.}/a_{tile}.tif"}}
    text["labels"] = {"path": "labels_{tile}.tif"}
    text["split"] = {"kind": "tiles", "test_tiles": [tiles[0]], "validation_tiles": [tiles[2]]}
    (home / "scene.yaml").write_text(yaml.safe_dump(text))
    (home / "recipe.yaml").write_text(yaml.safe_dump({"scene": "scene.yaml", "model": {"name": "forest", "trees": 3}}))
    file = read_scene_file(home)
    assert sorted(file.tiles) == sorted(tiles)
    assert missing_files(file) == []
    for words in (
        ["train", home / "recipe.yaml", f"run={json.dumps(str(home / 'run'))}", "-q"],
        ["predict", home / "run", home, "-o", home / "maps", "--polygons"],
        ["evaluate", home / "maps", home, "--split", home / "run" / "split"],
    ):
        done = landfuse(*words)
        assert done.code == 0, done.err
    assert {path.stem for path in (home / "maps").glob("*.tif")} == {*tiles}
    assert len(geopandas.read_file((home / "maps" / "{tile}_polygons.gpkg").read_bytes())) > 3
    with rasterio.open(home / "maps" / "mosaic.vrt") as mosaic:
        assert mosaic.read(1).max() < 255


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "geojson"])
def test_vector_files_are_read(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    frame = geopandas.GeoDataFrame({"kind": ["wood"]}, geometry=[box(0, 0, 1, 1)], crs="EPSG:4326")
    frame.to_file(tmp_path / "plain" / f"p.{suffix}")
    (tmp_path / "plain").rename(tmp_path / ODD)
    for path in sorted((tmp_path / ODD).iterdir()):
        path.rename(path.with_name("x!\n" + path.name))
    path = tmp_path / ODD / f"x!\np.{suffix}"
    assert read_polygons(path, "kind").values == {"wood": 1}
    assert [row["kind"] for row in read_rows(path)] == ["wood"]
