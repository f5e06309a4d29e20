"""Labels that are pictures: colours to classes, exactly, nearly, and not at all; in scene files too."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from landfuse.errors import FaultsError, SceneError, SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.polygons import write_points
from landfuse.scenes.check import check
from landfuse.scenes.labels import classes_of_colours
from landfuse.scenes.land_cover_map import open_map
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scene, read_scene_file

LEGEND = Legend((LandClass("road", 1, "#FFFFFF"), LandClass("roof", 7, "#0000FF"), LandClass("car", 9, "#FFFF00")))


def test_colours_become_classes() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, (37, 53))
    colours = np.array([(255, 255, 255), (0, 0, 255), (255, 255, 0), (0, 0, 0)], np.uint8)
    picture = colours[truth].transpose(2, 0, 1)
    got = classes_of_colours(picture, LEGEND, ignored=["#000000"])
    assert got.dtype == np.uint8
    assert np.array_equal(got, np.where(truth == 3, UNLABELLED, truth))


def test_the_nearest_colour_within_the_tolerance_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.scenes.labels._ROWS", 7)
    random = np.random.default_rng(1)
    picture = random.integers(0, 256, (3, 9, 11)).astype(np.uint8)
    picture[:, 0, 0] = (252, 255, 0)
    got = classes_of_colours(picture, LEGEND, ignored=["#000000"], tolerance=120, unlisted=Counter())
    near = 0
    for row in range(9):
        for column in range(11):
            pixel = picture[:, row, column].astype(float)
            palette = [c.rgb for c in LEGEND] + [(0, 0, 0)]
            distances = [float(np.sqrt(((pixel - colour) ** 2).sum())) for colour in palette]
            nearest = int(np.argmin(distances))
            expected = nearest if nearest < 3 and distances[nearest] <= 120 else UNLABELLED
            assert got[row, column] == expected
            near += expected != UNLABELLED
    assert got[0, 0] == 2
    assert 5 < near < 90


def test_unknown_colours_are_counted_and_named() -> None:
    picture = np.zeros((3, 4, 5), np.uint8)
    picture[:, 0] = 255
    picture[:, 1, :3] = np.array([250, 0, 3])[:, None]
    with pytest.raises(SceneError) as raised:
        classes_of_colours(picture, LEGEND, where="a.tif")
    assert raised.value.found == "a.tif hold 15 pixels of 2 colours that the legend lacks: #000000, #FA0003"
    assert "`labels: colours: ignored:`" in raised.value.do
    with pytest.raises(SceneError, match="two have the same one"):
        classes_of_colours(picture, LEGEND, ignored=["#ffffff"])


def place(folder: Path, size: int = 12, **labels: object) -> Path:
    """A scene with a world file and no CRS; its labels have no place either."""
    random = np.random.default_rng(0)
    at = rasterio.Affine(0.09, 0, 1000, 0, -0.09, 2000)
    shape = {"driver": "GTiff", "height": 12, "width": 14, "dtype": "uint8"}
    with rasterio.open(folder / "top.tif", "w", count=3, transform=at, **shape) as file:
        file.write(random.integers(0, 255, (3, 12, 14)).astype(np.uint8))
    colours = np.array([c.rgb for c in LEGEND], np.uint8)
    picture = colours[random.integers(0, 3, (size, 14))].transpose(2, 0, 1)
    with rasterio.open(folder / "labels.tif", "w", count=3, **(shape | {"height": size})) as file:
        file.write(picture)
    text = {
        "name": "streets",
        "georeferenced": False,
        "modalities": {"top": {"path": "top.tif"}},
        "labels": {"path": "labels.tif", "colours": {}, **labels},
        "legend": [{"name": c.name, "code": c.code, "colour": c.colour} for c in LEGEND],
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    return folder / "scene.yaml"


def test_a_scene_file_reads_them_and_lays_them_on_the_reference(tmp_path: Path) -> None:
    scene = open_scene(place(tmp_path))
    assert scene.grid.transform[2] == 1000  # of the world file
    with rasterio.open(tmp_path / "labels.tif") as file:
        picture = file.read()
    assert np.array_equal(np.array([c.rgb for c in LEGEND])[scene.labels].transpose(2, 0, 1), picture)


def test_labels_of_another_size_are_not_laid_anywhere(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match="are off the reference grid"):
        read_scene_file(place(tmp_path, size=11)).scenes()


def test_mistakes_are_reported_in_words(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`colours` goes with a picture"):
        read_scene_file(place(tmp_path, ignored=[0]))
    with pytest.raises(SettingsError, match="colours"):
        read_scene_file(place(tmp_path, colours={"ignored": ["black"]}))
    path = place(tmp_path)
    path.write_text(path.read_text().replace("colours: {}", "crs: null"))
    with pytest.raises(FaultsError, match=r"have 3 bands(.|\n)*one band of codes(.|\n)*`colours: \{\}`"):
        read_scene_file(path).scenes()
    path = place(tmp_path)
    (tmp_path / "labels.tif").write_bytes((tmp_path / "top.tif").read_bytes())
    with pytest.raises(SceneError, match="colours that the legend lacks"):
        _ = open_scene(path).labels


NAMED = Legend((LandClass("water", 0, "#0000FF"), LandClass("wood", 1, "#00FF00")))


def test_a_map_of_several_bands_is_none(tmp_path: Path) -> None:
    scene = Scene.from_arrays({"a": np.zeros((1, 3, 4))})
    write_raster(tmp_path / "m.tif", scene.grid, np.ones((3, 3, 4), np.int16), nodata=None)
    with pytest.raises(SceneError, match=r"m\.tif has 3 bands"):
        open_map(tmp_path / "m.tif", scene)


def test_class_0_in_rasters_that_call_0_nodata(tmp_path: Path) -> None:
    codes = np.array([[0, 1, 1, 0]] * 3, np.uint8)
    images = {"a": np.zeros((1, 3, 4))}
    write_raster(tmp_path / "l.tif", Grid(3, 4), codes, nodata=0)
    scene = replace(Scene.from_arrays(images), legend=NAMED)
    with pytest.raises(SceneError, match=r"0 is the nodata value of .* and the code of the class `water`"):
        open_map(tmp_path / "l.tif", scene)
    with pytest.raises(SceneError, match=r"0 is the nodata value of .* and the code of the class `water`"):
        Scene.from_arrays(images, tmp_path / "l.tif", legend=NAMED)
    assert Scene.from_arrays(images, tmp_path / "l.tif").legend.names == ["class 1"]
    write_raster(tmp_path / "l.tif", Grid(3, 4), codes, nodata=None)
    assert np.array_equal(Scene.from_arrays(images, tmp_path / "l.tif", legend=NAMED).labels, codes)
    assert np.array_equal(open_map(tmp_path / "l.tif", scene).classes, codes)


def field_day(folder: Path, **also: object) -> Path:
    """A scene of 8 x 10 px, codes 3 and 7, whose left half is labelled; `later.gpkg` holds six points."""
    grid = Grid(8, 10, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")
    codes = np.full((8, 10), 255, np.uint8)
    codes[:4, :5], codes[4:, :5] = 3, 7
    for name, values in (("a", np.ones((1, 8, 10), np.float32)), ("labels", codes)):
        write_raster(folder / f"{name}.tif", grid, values)
    row, col = np.array([0, 1, 2, 3, 4, 5]), np.array([9, 8, 7, 6, 5, 9])
    x, y = grid.at(col + 0.5, row + 0.5)
    columns = {"reference": ["wood", "7", "other", None, "wood", "water"], "probability": [*[np.nan] * 4, 0.1, 0.1]}
    write_points(folder / "later.gpkg", x, y, columns, "EPSG:32632")
    text = {
        "name": "fields",
        "modalities": {"a": {"path": "a.tif"}},
        "labels": {"path": "labels.tif", "also": [{"polygons": "later.gpkg", **also}]},
        "legend": [{"name": "water", "code": 7}, {"name": "wood", "code": 3}],
        "split": {"kind": "blocks", "size": 2},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    return folder / "scene.yaml"


def test_labels_that_came_later_are_laid_beside_the_first(tmp_path: Path) -> None:
    place = field_day(tmp_path)
    scene = open_scene(place)
    first = np.full((8, 10), UNLABELLED)
    first[:4, :5], first[4:, :5] = 1, 0
    np.testing.assert_array_equal(scene.first_labels, first)
    first[0, 9], first[1, 8] = 1, 0  # by name and by code; no class, nothing written, and two points that judge
    np.testing.assert_array_equal(scene.labels, first)
    assert (
        "2 of 6 shapes of later.gpkg are of a reference sample: they judge maps, and do not train" in check(place).notes
    )
    assert str(tmp_path / "later.gpkg") in read_scene_file(place).inputs()
    roles = np.zeros((8, 10), np.uint8)
    roles[:4, :5], roles[:2, :2], roles[4:6, :5], roles[6:, :5], roles[0, 9] = 1, 2, 1, 3, 3
    write_raster(tmp_path / "roles.tif", scene.grid, roles)
    place.write_text(place.read_text().replace("kind: blocks", "kind: roles").replace("size: 2", "path: roles.tif"))
    roles[0, 9], roles[1, 8] = 0, 1  # it lies where the split tests; the other one trains
    found = check(place)
    np.testing.assert_array_equal(found.roles[0], roles)
    assert any(note.startswith("1 px of the labels that came later lie where") for note in found.notes)


def test_later_labels_that_cannot_be_taken(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match="has no attribute `class`"):
        read_scene_file(field_day(tmp_path, attribute="class")).scenes()
    with pytest.raises(SettingsError, match=r"either `path` .* or `polygons`"):
        read_scene_file(field_day(tmp_path, path="labels.tif"))
    place = field_day(tmp_path)
    write_points(
        tmp_path / "later.gpkg", np.array([5e5 + 5]), np.array([5e6 - 5]), {"reference": ["water"]}, "EPSG:32632"
    )
    with pytest.raises(SceneError, match=r"1 pixels have one class in later\.gpkg and another in the labels before it"):
        _ = open_scene(place).labels
    write_points(
        tmp_path / "later.gpkg", np.array([5e5 + 95]), np.array([5e6 - 5]), {"reference": ["wod"]}, "EPSG:32632"
    )
    assert "wod (1; did you mean `wood`?)" in check(place).faults[0].found
