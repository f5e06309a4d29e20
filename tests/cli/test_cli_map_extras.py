"""`landfuse predict` with what it writes beside maps: polygons, STAC items, mosaics and the index."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from typer.testing import Result

import landfuse as lf
from landfuse.errors import GridError, LandfuseError, OutputError, SceneError, SettingsError
from landfuse.mapping.engine import Engine
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid

Run = Callable[..., Result]


@pytest.fixture
def tiles(place: Path, tmp_path: Path) -> Path:
    """A scene file of three tiles side by side; the last holds no data."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for name in ("a", "b"):
        with rasterio.open(place / f"{name}.tif") as file:
            values, (a, b, c, d, e, f) = file.read(), tuple(file.transform)[:6]
        for number in range(3):
            grid = Grid(96, 96, (a, b, c + 96 * a * number, d, e, f), "EPSG:32632")
            filled = values if number < 2 else np.full_like(values, np.nan)
            write_raster(folder / f"{name}_t{number + 1}.tif", grid, filled, nodata=float("nan"))
    text = {"name": "three", "modalities": {n: {"path": n + "_{tile}.tif", "units": "1"} for n in ("a", "b")}}
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    return folder / "scene.yaml"


def events(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_map_with_polygons_and_an_item(invoke: Run, place: Path, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    words = ["--polygons", "--minimum-area", "2000", "--stac", "--taken", "2023-06-01", "--entropy"]
    done = invoke("predict", trained, place, "-o", path, *words)
    assert done.exit_code == 0, done.output
    assert f"polygons: {tmp_path / 'm_polygons.gpkg'}\nstac: {tmp_path / 'm.stac.json'}\n" in done.stdout
    names = ["m.qml", "m.stac.json", "m.tif", "m.tif.aux.xml", "m_entropy.tif", "m_polygons.gpkg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    with rasterio.open(path) as file:
        mapped = (file.read(1) != 255).sum()
        bundle = file.tags()["landfuse_bundle"]
    frame = geopandas.read_file(tmp_path / "m_polygons.gpkg")
    assert frame["hectares"].sum() == pytest.approx(mapped / 100), "pixels of 10 m"
    assert frame["hectares"].min() >= 0.2
    item = json.loads((tmp_path / "m.stac.json").read_text())
    assert item["properties"]["landfuse:bundle"] == bundle
    assert item["properties"]["datetime"].startswith("2023-06-01T")
    assert {"map", "entropy", "polygons", "style", "model"} <= item["assets"].keys()
    assert (tmp_path / item["assets"]["model"]["href"]).is_file()


def test_many_tiles_get_a_mosaic_and_an_index(invoke: Run, tiles: Path, trained: Path, tmp_path: Path) -> None:
    done = invoke("predict", trained, tiles, "-o", tmp_path / "maps", "--tile", "t1")
    assert done.exit_code == 0, done.output
    done = invoke(
        "predict", trained, tiles, "-o", tmp_path / "maps", "--polygons", "--json", "--tile", "t2", "--tile", "t3"
    )
    assert done.exit_code == 0, done.output
    found = events(done)
    [note] = [e for e in found if e["event"] == "note"]
    assert "t3_polygons.gpkg: nothing is mapped" in note["found"]
    assert [e["tile"] for e in found if e["event"] == "polygons"] == ["t2"]
    assert [Path(e["path"]).name for e in found if e["event"] in ("mosaic", "index")] == ["mosaic.vrt", "index.gpkg"]
    assert not list((tmp_path / "maps").glob("*.parts"))
    with rasterio.open(tmp_path / "maps" / "mosaic.vrt") as whole:
        assert whole.shape == (96, 288), "t1 is shown, though it was mapped before"
        for number in range(3):
            with rasterio.open(tmp_path / "maps" / f"t{number + 1}.tif") as one:
                np.testing.assert_array_equal(whole.read(1)[:, 96 * number : 96 * (number + 1)], one.read(1))
    index = geopandas.read_file(tmp_path / "maps" / "index.gpkg")
    assert index["tile"].tolist() == ["t1", "t2", "t3"]
    assert all((tmp_path / "maps" / path).is_file() for path in index["path"])


def test_small_tiles_are_read_at_once_and_computed_in_turn(
    invoke: Run, tiles: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, read, compute, turn = threading.Barrier(2, timeout=20), Engine.read, Engine.compute, threading.Lock()

    def together(*args: Any) -> Any:
        both.wait()
        return read(*args)

    def alone(*args: Any, **options: Any) -> Any:
        assert turn.acquire(blocking=False)
        time.sleep(0.1)
        turn.release()
        return compute(*args, **options)

    monkeypatch.setattr(Engine, "read", together)
    monkeypatch.setattr(Engine, "compute", alone)
    done = invoke("predict", trained, tiles, "-o", tmp_path / "maps", "--tile", "t1", "--tile", "t2")
    assert done.exit_code == 0, done.output


def test_an_address_gets_the_files_of_a_folder(
    invoke: Run, tiles: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path / "data"))
    address = f"file://{tmp_path}/there/maps"
    done = invoke("predict", trained, tiles, "-o", address)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"put at: {address}\n")
    assert invoke("predict", trained, tiles, "-o", tmp_path / "here").exit_code == 0
    there = {path.name: path for path in (tmp_path / "there" / "maps").iterdir()}
    assert sorted(there) == sorted(path.name for path in (tmp_path / "here").iterdir())
    for name, path in there.items():
        if not name.endswith(".gpkg"):
            assert path.read_bytes() == (tmp_path / "here" / name).read_bytes()
    with rasterio.open(there["mosaic.vrt"]) as one, rasterio.open(tmp_path / "here" / "mosaic.vrt") as other:
        np.testing.assert_array_equal(one.read(1), other.read(1))


@pytest.mark.parametrize(("output", "item"), [("maps", "maps/t1.stac.json"), ("t1.tif", "t1.stac.json")])
def test_an_item_at_an_address_names_a_bundle_there(
    invoke: Run, tiles: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, item: str
) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path / "data"))
    done = invoke("predict", trained, tiles, "-o", f"file://{tmp_path}/there/{output}", "--stac", "--tile", "t1")
    assert done.exit_code == 0, done.output
    place = tmp_path / "there" / item
    assets = json.loads(place.read_text())["assets"]
    weights = place.parent / assets["model"]["href"]
    assert weights.is_relative_to(place.parent)
    assert weights.read_bytes() == (trained / "bundle" / "model.safetensors").read_bytes()
    assert all((place.parent / asset["href"]).is_file() for asset in assets.values())


def test_what_cannot_be_written_is_refused_before_mapping(
    invoke: Run, place: Path, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "nowhere"
    for name in ("a", "b"):
        with rasterio.open(place / f"{name}.tif") as file:
            write_raster(folder / f"{name}.tif", Grid(96, 96), file.read(), nodata=float("nan"))
    text = {
        "name": "x",
        "georeferenced": False,
        "modalities": {n: {"path": f"{n}.tif", "units": "1"} for n in ("a", "b")},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    cases: list[tuple[Path, list[str], type[LandfuseError], str]] = [
        (place, ["--polygons", "--minimum-area", "-1"], SettingsError, "minimum area of polygons is -1"),
        (place, ["--minimum-area", "5"], SettingsError, "--minimum-area is given without --polygons"),
        (place, ["--taken", "2023-06-01"], SettingsError, "--taken is given without --stac"),
        (folder, ["--stac"], GridError, "the map has no CRS"),
    ]
    for scene, words, kind, message in cases:
        done = invoke("predict", trained, scene, "-o", tmp_path / "maps" / "m.tif", *words)
        assert isinstance(done.exception, kind), done.output
        assert message in str(done.exception)
    assert not (tmp_path / "maps").exists()


def test_a_map_without_any_class_has_no_polygons(invoke: Run, tiles: Path, trained: Path, tmp_path: Path) -> None:
    done = invoke("predict", trained, tiles, "--tile", "t3", "-o", tmp_path / "maps" / "m.tif", "--polygons")
    assert isinstance(done.exception, SceneError)
    assert "nothing is mapped" in str(done.exception)
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["m.qml", "m.tif", "m.tif.aux.xml"]


def test_interrupted_at_the_polygons_the_same_command_does_not_map_again(
    invoke: Run, place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("landfuse.rasters.vector_map.write_patches", interrupted)
    command = ["predict", trained, place, "-o", tmp_path / "m.tif", "--polygons"]
    assert invoke(*command).exit_code == 130
    monkeypatch.undo()
    monkeypatch.setattr(Engine, "read", interrupted)
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.qml", "m.tif", "m.tif.aux.xml", "m_polygons.gpkg"]


def test_a_tile_that_cannot_be_mapped_stops_no_other(
    landfuse: Callable[..., Any], tiles: Path, trained: Path, tmp_path: Path
) -> None:
    (tiles.parent / "b_t1.tif").rename(tmp_path / "elsewhere.tif")
    whole = (tiles.parent / "a_t3.tif").read_bytes()
    (tiles.parent / "a_t3.tif").write_bytes(whole[: len(whole) // 2])  # its header can be read
    words = ("predict", trained, tiles, "-o", tmp_path / "maps")
    stopped = landfuse(*words, "--stop")
    assert stopped.code == 2
    assert not (tmp_path / "maps").exists()
    done = landfuse(*words, "--picture", "--json")
    assert done.code == 3
    assert "the tile `t1` is not mapped: there is no file" in done.err
    assert "the tile `t3` is not mapped" in done.err
    assert sorted(path.name for path in (tmp_path / "maps").glob("t*.tif")) == ["t2.tif"]
    found = [json.loads(line) for line in done.out.splitlines()]
    assert {one["tile"] for one in found if one["event"] == "fault" and "block" not in one} == {"t1", "t3"}
    assert [Path(one["path"]).name for one in found if "path" in one] == [
        "t2.tif",
        "t2.png",
        "mosaic.vrt",
        "index.gpkg",
    ]
    alone = landfuse(*words, "--tile", "t1")
    assert (alone.code, "b_t1.tif" in alone.err) == (2, True)
    none = landfuse(*words, "--tile", "t1", "--tile", "t3")
    assert none.code == 2, "nothing is mapped"
    (tmp_path / "elsewhere.tif").rename(tiles.parent / "b_t1.tif")
    (tiles.parent / "a_t3.tif").write_bytes(whole)
    assert landfuse(*words).code == 0


def test_the_names_of_all_files_are_compared_before_anything_is_mapped(
    landfuse: Callable[..., Any], tiles: Path, trained: Path, tmp_path: Path
) -> None:
    for band in "ab":
        (tiles.parent / f"{band}_t2.tif").rename(tiles.parent / f"{band}_t1_confidence.tif")
        (tiles.parent / f"{band}_t3.tif").rename(tiles.parent / f"{band}_mosaic.tif")
    for words, name in (
        (("--confidence",), "t1_confidence.tif"),
        (("--confidence", "--tile", "t1"), "t1_confidence.tif"),
        ((), "mosaic.qml"),
    ):
        done = landfuse("predict", trained, tiles, "-o", tmp_path / "maps", *words)
        assert (done.code, done.out) == (2, "")
        assert f"{name} would be written twice" in done.err
        assert not (tmp_path / "maps").exists()


def test_a_map_goes_over_no_other_file(
    landfuse: Callable[..., Any], place: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(place, tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    for output in ("a.tif", "labels.tif", "./../in/b.tif"):
        done = landfuse("predict", trained, tmp_path / "in", "-o", tmp_path / "in" / output, "--overwrite")
        assert done.code == 2
        assert "is a file that the scene is read from" in done.err
    mine = tmp_path / "mine.tif"
    mine.write_bytes(before[tmp_path / "in" / "a.tif"])
    (tmp_path / "new.qml").write_text("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis/>")
    (tmp_path / "new.png").write_bytes(b"a photo")
    words = ("predict", trained, tmp_path / "in", "-o")
    for output, name in ((mine, "mine.tif"), (tmp_path / "new.tif", "new.qml")):
        done = landfuse(*words, output)
        assert done.code == 2
        assert f"{name} is there already" in done.err
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    with pytest.raises(OutputError, match=r"mine\.tif is there already"):
        lf.predict(trained, lf.open_scene(tmp_path / "in"), mine)
    with pytest.raises(OutputError, match="is a file that the scene is read from"):
        lf.predict(trained, lf.open_scene(tmp_path / "in"), tmp_path / "in" / "labels.tif", overwrite=True)
    new = (*words, tmp_path / "new.tif", "--picture", "--polygons", "--stac", "--confidence", "--json", "--quiet")
    assert landfuse(*new, "--overwrite").code == 0
    again = landfuse(*new)
    assert again.code == 0, again.err
    events = [json.loads(line) for line in again.out.splitlines()]
    assert [one["event"] for one in events] == ["map", "picture", "polygons", "stac"], "and no progress"
    assert all(Path(one["path"]).exists() for one in events)


def test_json_names_files_where_they_are_in_the_end(
    landfuse: Callable[..., Any], tiles: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path / "data"))
    address = f"file://{tmp_path}/there/maps"
    for name in ("t1", "t2"):
        done = landfuse("predict", trained, tiles, "-o", address, "--json", "--quiet", "--picture", "--tile", name)
        assert done.code == 0, done.err
        named = [one["path"] for one in map(json.loads, done.out.splitlines()) if "path" in one]
        assert [path.rpartition("/")[2] for path in named] == [f"{name}.tif", f"{name}.png", "mosaic.vrt", "index.gpkg"]
        assert all(Path(path.removeprefix("file://")).exists() for path in named)
    assert geopandas.read_file(tmp_path / "there/maps/index.gpkg")["tile"].tolist() == ["t1", "t2"]
    with (
        rasterio.open(tmp_path / "there/maps/mosaic.vrt") as whole,
        rasterio.open(tmp_path / "there/maps/t1.tif") as one,
    ):
        np.testing.assert_array_equal(whole.read(1)[:, :96], one.read(1))
