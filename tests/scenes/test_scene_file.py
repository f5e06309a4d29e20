"""scene.yaml: every setting, one scene or many, and what is said of files that do not fit."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import shapely
import yaml
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint

from landfuse.errors import FaultsError, LandfuseError, MissingFileError, SceneError, SettingsError, SplitError
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes import scene_keys, split_rules
from landfuse.scenes.scene import ModalityInfo
from landfuse.scenes.scene_file import open_scene, open_scenes, read_scene_file
from landfuse.settings import Settings, expand

UTM = "EPSG:32632"
GRID = Grid(24, 30, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), UTM)
LEGEND = [{"name": "water", "code": 1}, {"name": "wood", "code": 2}]
U = UNLABELLED

Edit = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("module", [scene_keys, split_rules], ids=["keys", "splits"])
def test_every_key_is_described_at_its_field(module: Any) -> None:
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Settings)]
    fields = [(kind, name, field) for kind in kinds for name, field in kind.model_fields.items()]
    assert len(fields) > 20
    assert [(kind.__name__, name) for kind, name, field in fields if name != "kind" and not field.description] == []


def values(bands: int, grid: Grid = GRID, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(1, 9, (bands, grid.height, grid.width)).astype(np.float32)


def codes(grid: Grid = GRID, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, (grid.height, grid.width)).astype(np.uint8)


@pytest.fixture
def text() -> dict[str, Any]:
    return {
        "name": "place",
        "modalities": {"s2": {"path": "s2.tif"}, "dem": {"path": "dem.tif"}},
        "labels": {"path": "labels.tif", "ignored": [0]},
        "legend": [dict(kind) for kind in LEGEND],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_raster(tmp_path / "s2.tif", GRID, values(4), nodata=None)
    write_raster(tmp_path / "dem.tif", GRID, values(1, seed=1), nodata=None)
    write_raster(tmp_path / "labels.tif", GRID, codes(), nodata=None)
    return tmp_path


def save(folder: Path, text: dict[str, Any], name: str = "scene.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(text, sort_keys=False))
    return folder / name


def faults(path: Path) -> list[LandfuseError]:
    with pytest.raises(FaultsError) as caught:
        open_scenes(path)
    return list(caught.value.faults)


# What it may say ----------------------------------------------------------------------------------------------------


def test_a_plain_scene(folder: Path, text: dict[str, Any]) -> None:
    scene = open_scene(save(folder, text))
    assert (scene.name, scene.grid, list(scene.modalities)) == ("place", GRID, ["s2", "dem"])
    np.testing.assert_array_equal(scene.read("s2", GRID.window), values(4))
    expected = np.choose(codes(), [U, 0, 1])
    np.testing.assert_array_equal(scene.labels, expected)
    again = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(again.labels, expected)
    assert open_scene(folder).name == "place"  # the folder that holds it does as well
    assert read_scene_file(folder).legend.names == ["water", "wood"]


def test_settings_of_a_modality(folder: Path, text: dict[str, Any]) -> None:
    array = values(4)
    array[0, 0, 0] = 5.5
    write_raster(folder / "s2.tif", GRID, array, nodata=None)
    text["modalities"]["s2"] |= {"bands": "3-4, 1", "scale": 0.5, "offset": 1, "nodata": 5.5, "units": "reflectance"}
    text["modalities"]["dem"] |= {"decibel": True}
    scene = open_scene(save(folder, text))
    expected = array[[2, 3, 0]] * 0.5 + 1
    expected[2, 0, 0] = np.nan
    np.testing.assert_allclose(scene.read("s2", GRID.window), expected, rtol=1e-6)
    assert (scene.modalities["s2"].units, scene.modalities["s2"].raster.bands) == ("reflectance", 3)
    np.testing.assert_allclose(scene.read("dem", GRID.window), 10 * np.log10(values(1, seed=1)), rtol=1e-5)


def test_scale_in_the_header_holds_unless_the_file_says_otherwise(folder: Path, text: dict[str, Any]) -> None:
    write_raster(folder / "s2.tif", GRID, values(4), nodata=None, scale=0.25)
    np.testing.assert_allclose(open_scene(save(folder, text)).read("s2", GRID.window), values(4) * 0.25, rtol=1e-6)
    text["modalities"]["s2"]["scale"] = 1
    np.testing.assert_allclose(open_scene(save(folder, text)).read("s2", GRID.window), values(4), rtol=1e-6)


def test_zoom_keeps_finer_pixels(folder: Path, text: dict[str, Any]) -> None:
    fine = GRID.zoomed(10)
    write_raster(folder / "rgb.tif", fine, values(3, fine), nodata=None)
    text["modalities"]["rgb"] = {"path": "rgb.tif", "zoom": 10}
    scene = open_scene(save(folder, text))
    assert scene.grid == GRID
    assert scene.modalities["rgb"].raster.grid == fine
    window = Window(3, 4, 5, 6)
    np.testing.assert_array_equal(scene.read("rgb", window), values(3, fine)[:, *window.scaled(10).within(fine.window)])


@pytest.mark.parametrize("zoom", [1, 3])
def test_another_grid_is_warped_onto_the_reference(zoom: int, folder: Path, text: dict[str, Any]) -> None:
    other = Grid(40, 50, (7.0, 0.0, 499_980.0, 0.0, -7.0, 5_400_020.0), UTM)
    write_raster(folder / "dem.tif", other, values(1, other), nodata=None)
    text["modalities"]["dem"] |= {"resampling": "nearest", "zoom": zoom}
    scene = open_scene(save(folder, text))
    raster = scene.modalities["dem"].raster
    assert isinstance(raster, GdalRaster)
    assert raster.warped
    fine = GRID.zoomed(zoom)
    assert raster.grid == fine
    xs = np.array([fine.at(col + 0.5, 0)[0] for col in range(fine.width)])
    ys = np.array([fine.at(0, row + 0.5)[1] for row in range(fine.height)])
    rows, cols = ((5_400_020 - ys) // 7).astype(int), ((xs - 499_980) // 7).astype(int)
    np.testing.assert_array_equal(scene.read("dem", GRID.window)[0], values(1, other)[0][np.ix_(rows, cols)])


def test_labels_as_reference(folder: Path, text: dict[str, Any]) -> None:
    coarse = Grid(8, 10, (30.0, 0.0, 500_000.0, 0.0, -30.0, 5_400_000.0), UTM)
    write_raster(folder / "labels.tif", coarse, codes(coarse), nodata=None)
    text["reference"] = "labels"
    text["modalities"]["s2"]["resampling"] = "average"
    text["modalities"]["dem"]["zoom"] = 3
    scene = open_scene(save(folder, text))
    assert scene.grid == coarse
    mean = values(4).reshape(4, 8, 3, 10, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(scene.read("s2", coarse.window), mean, rtol=1e-5)
    np.testing.assert_array_equal(scene.read("dem", coarse.window), values(1, seed=1))  # 3 x 10 m: as it is
    assert scene.labels.shape == (8, 10)


def test_crs_where_the_file_says_none(folder: Path, text: dict[str, Any]) -> None:
    write_raster(folder / "dem.tif", Grid(24, 30, GRID.transform), values(1, seed=1), nodata=None)
    (fault,) = faults(save(folder, text))
    assert "dem.tif has no CRS and is on another grid" in str(fault)
    text["modalities"]["dem"]["crs"] = UTM
    raster = open_scene(save(folder, text)).modalities["dem"].raster
    assert isinstance(raster, GdalRaster)
    assert not raster.warped
    text["modalities"]["dem"]["crs"] = "EPSG:999999"
    (fault,) = faults(save(folder, text))
    assert "`dem`: the CRS 'EPSG:999999' is not known" in str(fault)


def test_rasters_without_any_georeference(folder: Path, text: dict[str, Any]) -> None:
    bare = Grid(24, 30)
    for name, bands in (("s2", 4), ("dem", 1)):
        write_raster(folder / f"{name}.tif", bare, values(bands), nodata=None)
    write_raster(folder / "labels.tif", bare, codes(), nodata=None)
    (fault,) = faults(save(folder, text))
    assert "the reference, has no CRS and no geotransform" in str(fault)
    assert "crs: EPSG:n" not in str(fault)  # which would not be enough
    assert "`georeferenced: false`" in str(fault)
    text["georeferenced"] = False
    assert not open_scene(save(folder, text)).grid.georeferenced
    write_raster(folder / "dem.tif", Grid(23, 30), values(1, Grid(23, 30)), nodata=None)
    (fault,) = faults(save(folder, text))
    assert "`dem` has 23 x 30 px and no CRS" in str(fault)


def test_root_and_environment(folder: Path, text: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "elsewhere"
    other.mkdir()
    text["root"] = "${LF_TEST_ROOT:-..}"
    assert open_scene(save(other, text)).name == "place"
    monkeypatch.setenv("LF_TEST_ROOT", str(folder))
    assert open_scene(save(other, text)).name == "place"
    text["root"] = "${LF_TEST_NOWHERE}"
    with pytest.raises(SettingsError, match="LF_TEST_NOWHERE is not set"):
        read_scene_file(save(other, text))


_SECRETS = [
    "http://127.0.0.1:9/${LF_SECRET}.tif",
    "/vsicurl/http://127.0.0.1:9/${LF_SECRET}.tif",
    "/vsizip//vsicurl/http://127.0.0.1:9/${LF_SECRET}.zip/a.tif",
    "/vsis3/bucket/${LF_SECRET:-x}.tif",
    "${LF_BASE}/${LF_SECRET}.tif",
    "${LF_NONE:-http://127.0.0.1:9/}${LF_SECRET}.tif",
    "${LF_SECRET}://127.0.0.1:9/a.tif",
]


@pytest.mark.parametrize(
    ("address", "root"),
    [
        ("${LF_SECRET}.tif", "http://127.0.0.1:9"),
        *((address, ".") for address in _SECRETS),
    ],
)
def test_no_variable_is_sent_to_a_server(
    address: str, root: str, folder: Path, text: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LF_SECRET", "tok3n")
    monkeypatch.setenv("LF_BASE", "http://127.0.0.1:9")
    text["modalities"]["s2"]["path"], text["root"] = address, root
    with pytest.raises(FaultsError, match="has an environment variable in it") as caught:
        open_scenes(save(folder, text))
    assert "tok3n" not in str(caught.value)


def test_a_variable_holds_a_whole_address_or_a_part_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LF_BASE", "s3://bucket")
    monkeypatch.setenv("LF_YEAR", "2024")
    assert expand("${LF_BASE}/a.tif") == "s3://bucket/a.tif"
    assert expand("${LF_NONE:-http://h/x}/a.tif") == "http://h/x/a.tif"
    assert expand("data/${LF_YEAR}/${LF_NONE:-a}.tif") == "data/2024/a.tif"
    assert expand("/vsizip/${LF_YEAR}.zip/a.tif") == "/vsizip/2024.zip/a.tif"
    assert expand("zip://in/${LF_YEAR}.zip!/a.tif") == "zip://in/2024.zip!/a.tif"
    with pytest.raises(SettingsError, match="an environment variable in it"):
        expand("HTTP://host/${LF_YEAR}")


@pytest.mark.parametrize(
    ("root", "path"),
    [
        (".", "/vsizip/r.zip/{}"),
        (".", "zip://r.zip!/{}"),
        ("/vsizip/r.zip", "{}"),
        ("zip://r.zip", "{}"),
        ("/vsizip/FOLDER/r.zip", "{}"),
        ("file://FOLDER", "/vsizip/r.zip/{}"),
    ],
)
def test_rasters_in_archives_are_found_from_the_folder_of_the_scene_file(
    root: str, path: str, folder: Path, text: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_scene(save(folder, text))
    values, labels = expected.read("s2", GRID.window), expected.labels
    text["root"] = root.replace("FOLDER", str(folder))
    with zipfile.ZipFile(folder / "r.zip", "w") as archive:
        for part in (*text["modalities"].values(), text["labels"]):
            archive.write(folder / part["path"], part["path"])
            (folder / part["path"]).unlink()
            part["path"] = path.format(part["path"])
    monkeypatch.chdir("/")
    scene = open_scene(save(folder, text))
    np.testing.assert_array_equal(scene.read("s2", GRID.window), values)
    np.testing.assert_array_equal(scene.labels, labels)


def test_the_reference_needs_a_place(folder: Path, text: dict[str, Any]) -> None:
    made = {"driver": "GTiff", "height": 24, "width": 30, "count": 1, "dtype": "uint8"}
    with rasterio.open(folder / "bare.tif", "w", crs=UTM, **made) as file:
        file.write(np.ones((1, 24, 30), np.uint8))
    text["modalities"]["s2"]["path"] = "bare.tif"
    assert "bare.tif, the reference, has no geotransform" in str(faults(save(folder, text))[0])
    text["georeferenced"] = False
    assert "geotransform" not in str(faults(save(folder, text))[0])
    text["modalities"]["s2"]["path"] = "s2.tif"
    with rasterio.open(folder / "dem.tif", "w", **made) as file:
        file.write(np.ones((1, 24, 30), np.uint8))
        file.gcps = ([GroundControlPoint(0, 0, 9, 48)], rasterio.CRS.from_epsg(4326))
    (fault,) = faults(save(folder, text))
    assert "is placed by ground control points" in str(fault)  # not taken to be on the reference grid for its size


def test_codes_and_colours_by_default(folder: Path, text: dict[str, Any]) -> None:
    text["legend"] = [{"name": "water"}, {"name": "wood", "colour": "#123456"}]
    legend = read_scene_file(save(folder, text)).legend
    assert legend.codes.tolist() == [1, 2]
    assert legend[1].colour == "#123456"


def test_labels_may_be_float_codes_with_nan(folder: Path, text: dict[str, Any]) -> None:
    array = codes().astype(np.float32)
    array[codes() == 0] = np.nan
    write_raster(folder / "labels.tif", GRID, array, nodata=None)
    np.testing.assert_array_equal(open_scene(save(folder, text)).labels, np.choose(codes(), [U, 0, 1]))


def test_unlisted_codes(folder: Path, text: dict[str, Any]) -> None:
    text["labels"].pop("ignored")
    scene = open_scene(save(folder, text))
    with pytest.raises(SceneError, match=r"labels\.tif hold the code 0, which the legend lacks"):
        _ = scene.labels
    text["labels"]["unlisted"] = "unlabelled"
    np.testing.assert_array_equal(open_scene(save(folder, text)).labels, np.choose(codes(), [U, 0, 1]))


def test_a_class_whose_code_is_the_nodata_of_the_labels(folder: Path, text: dict[str, Any]) -> None:
    text["labels"].pop("ignored")
    text["legend"] = [{"name": name, "code": code} for code, name in enumerate(("water", "wood", "town"))]
    write_raster(folder / "labels.tif", GRID, codes(), nodata=0)
    with pytest.raises(FaultsError, match=r"0 is the nodata value of .* and the code of the class `water`") as caught:
        open_scene(save(folder, text))
    assert "write `nodata: 255` under `labels`" in str(caught.value)
    text["labels"]["nodata"] = 255
    np.testing.assert_array_equal(open_scene(save(folder, text)).labels, codes())
    text["labels"]["nodata"] = 2
    with pytest.raises(SettingsError, match=r"`labels\.nodata` names 2, the code of the class `town`"):
        open_scene(save(folder, text))
    del text["legend"][2]
    np.testing.assert_array_equal(open_scene(save(folder, text)).labels, np.where(codes() == 2, U, codes()))
    text["labels"]["ignored"] = [2, 1]
    with pytest.raises(SettingsError, match=r"`labels\.ignored` names 1, the code of the class `wood`"):
        open_scene(save(folder, text))


def test_the_nodata_of_labels_in_a_mat_file(folder: Path, text: dict[str, Any]) -> None:
    scipy.io.savemat(folder / "labels.mat", {"gt": codes().astype(np.int16) - 1})
    text["labels"] = {"path": "labels.mat", "variable": "gt", "nodata": -1}
    text["legend"] = [{"name": "water", "code": 0}, {"name": "wood", "code": 1}]
    np.testing.assert_array_equal(open_scene(save(folder, text)).labels, np.choose(codes(), [U, 0, 1]))


def test_the_reference_may_come_after_other_modalities(folder: Path, text: dict[str, Any]) -> None:
    scene = open_scene(save(folder, text | {"reference": "dem"}))
    np.testing.assert_array_equal(scene.read("s2", GRID.window), values(4))
    np.testing.assert_array_equal(scene.read("dem", GRID.window), values(1, seed=1))


def test_only_some_modalities(folder: Path, text: dict[str, Any]) -> None:
    (folder / "dem.tif").unlink()
    (scene,) = read_scene_file(save(folder, text)).scenes(only=["s2", "not there"])
    assert list(scene.modalities) == ["s2"]


# Tiles --------------------------------------------------------------------------------------------------------------


def tiled(folder: Path, text: dict[str, Any], names: list[str], pattern: str = "{kind}/{{tile}}.tif") -> Path:
    for number, name in enumerate(names):
        for kind, bands in (("s2", 4), ("dem", 1), ("labels", 0)):
            path = folder / pattern.format(kind=kind).replace("{tile}", name)
            array: NDArray[Any] = values(bands, seed=number) if bands else codes(seed=number)
            write_raster(path, GRID, array, nodata=None)
    for kind in ("s2", "dem"):
        text["modalities"][kind]["path"] = pattern.format(kind=kind)
    text["labels"]["path"] = pattern.format(kind="labels")
    return save(folder, text)


@pytest.mark.parametrize(
    "pattern", ["{kind}/{{tile}}.tif", "{kind}_{{tile}}_x.tif", "{{tile}}/{kind}.tif", "{{tile}}/{kind}_{{tile}}.tif"]
)
def test_tiles_by_a_pattern_in_natural_order(pattern: str, folder: Path, text: dict[str, Any]) -> None:
    path = tiled(folder, text, ["OSBS_10", "OSBS_9", "MLBS_1²"], pattern)
    if pattern.startswith("{{tile}}/{kind}_"):
        (folder / "OSBS_9" / "s2_OSBS_10.tif").write_text("not of this tile")
    file = read_scene_file(path)
    assert file.tiles == ["MLBS_1²", "OSBS_9", "OSBS_10"]
    scenes = file.scenes()
    for scene, seed in zip(scenes, (2, 1, 0), strict=True):
        np.testing.assert_array_equal(scene.read("s2", GRID.window), values(4, seed=seed))
        np.testing.assert_array_equal(scene.labels, np.choose(codes(seed=seed), [U, 0, 1]))
    assert open_scene(path, tile="OSBS_9").name == "OSBS_9"
    with pytest.raises(SceneError, match="has 3 tiles: MLBS"):
        open_scene(path)
    with pytest.raises(SceneError, match="has 3 tiles") as caught:
        open_scene(path, tile="OSBS_8")
    assert "not 'OSBS_8'" in str(caught.value)


def test_tiles_in_a_folder_with_odd_characters(tmp_path: Path, text: dict[str, Any]) -> None:
    folder = tmp_path / "a [1] *"
    folder.mkdir()
    path = tiled(folder, text, ["a", "b"], "{kind}/{{tile}}[1].tif")
    (folder / "s2" / "._a[1].tif").write_bytes(b"what another system notes")
    assert read_scene_file(path).tiles == ["a", "b"]


def test_tiles_by_relative_paths(folder: Path, text: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiled(folder, text, ["a", "b"], "{{tile}}_{kind}.tif")
    monkeypatch.chdir(folder)
    assert read_scene_file("scene.yaml").tiles == ["a", "b"]


def test_explicit_tiles(folder: Path, text: dict[str, Any]) -> None:
    text["tiles"] = ["c", "a"]
    path = tiled(folder, text, ["a", "b", "c"])
    assert [scene.name for scene in open_scenes(path)] == ["c", "a"]
    text["tiles"] = ["c", "d"]
    messages = "\n".join(map(str, faults(save(folder, text))))
    for kind in ("s2", "dem", "labels"):
        assert f"there is no file {folder / kind / 'd.tif'}" in messages


def test_tiles_that_are_not_there(folder: Path, text: dict[str, Any]) -> None:
    path = tiled(folder, text, [])
    text["address"] = "https://example.org/data"
    with pytest.raises(FaultsError, match=r"no file fits .*s2/\{tile\}\.tif") as caught:
        open_scenes(save(folder, text))
    assert "https://example.org/data" in str(caught.value)
    with pytest.raises(MissingFileError):
        _ = read_scene_file(path).tiles


def test_a_tile_that_lacks_a_file_is_reported_and_the_others_open(folder: Path, text: dict[str, Any]) -> None:
    path = tiled(folder, text, ["a", "b"])
    (folder / "dem" / "b.tif").unlink()
    scenes, wrong = read_scene_file(path).try_scenes()
    assert [list(scene.modalities) for scene in scenes] == [["s2", "dem"], ["s2"]]
    assert [str(fault).splitlines()[0] for fault in wrong] == [f"there is no file {folder / 'dem' / 'b.tif'}"]
    with pytest.raises(FaultsError):
        open_scenes(path)


def test_tiles_with_labels_of_all_in_one_file(folder: Path, text: dict[str, Any]) -> None:
    path = tiled(folder, text, ["a"])
    write_raster(folder / "labels.tif", GRID.zoomed(2), codes(GRID.zoomed(2)), nodata=None)
    text["labels"]["path"] = "labels.tif"
    (fault,) = faults(save(folder, text))
    assert "labels.tif are off the reference grid" in str(fault)
    assert "cut them into one raster per tile" in str(fault)
    assert path.exists()


# .mat ---------------------------------------------------------------------------------------------------------------


def mat(folder: Path, text: dict[str, Any], version: str = "5") -> Path:
    arrays = {"cube": values(4).transpose(1, 2, 0), "truth": codes().T.copy(), "train": codes() == 1}
    arrays["test"] = codes() == 2
    if version == "5":
        scipy.io.savemat(folder / "x.mat", arrays)
    else:
        with h5py.File(folder / "x.mat", "w") as file:
            for name, array in arrays.items():
                file[name] = array.astype(np.float64).transpose()
    text["modalities"] = {"hsi": {"path": "x.mat", "variable": "cube", "axes": "HWC", "scale": 2.0}}
    text["labels"] = {"path": "x.mat", "variable": "truth", "axes": "WH", "ignored": [0]}
    return save(folder, text)


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_a_mat_scene(version: str, folder: Path, text: dict[str, Any]) -> None:
    text["split"] = {
        "kind": "masks", "train": "x.mat", "test": "x.mat", "variables": {"train": "train", "test": "test"},
        "validation": 0.5,
    }  # fmt: skip
    file = read_scene_file(mat(folder, text, version))
    (scene,) = file.scenes()
    np.testing.assert_allclose(scene.read("hsi", scene.grid.window), values(4) * 2, rtol=1e-6)
    np.testing.assert_array_equal(scene.labels, np.choose(codes(), [U, 0, 1]))
    (roles,) = file.roles([scene])
    np.testing.assert_array_equal(roles == 3, codes() == 2)
    np.testing.assert_array_equal((roles == 1) | (roles == 2), codes() == 1)


def test_a_mat_modality_beside_geotiffs_is_placed_by_its_shape(folder: Path, text: dict[str, Any]) -> None:
    mat(folder, text)
    text["modalities"] = {"s2": {"path": "s2.tif"}, **text["modalities"]}
    scene = open_scene(save(folder, text))
    assert scene.grid == GRID
    assert scene.modalities["hsi"].raster.grid == GRID
    text["modalities"]["hsi"]["axes"] = "WHC"
    (fault,) = faults(save(folder, text))
    assert "by the axes WHC, 30 x 24 px" in str(fault)
    assert "write `axes: HWC`" in str(fault)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t["modalities"]["hsi"].pop("variable"), r"x\.mat is a \.mat file"),
        (lambda t: t["modalities"]["hsi"].pop("axes"), "axes are never guessed"),
        (lambda t: t["modalities"]["hsi"].update(axes="HW"), "but 2 axes are named"),
        (lambda t: t["modalities"]["hsi"].update(variable="cub"), "holds no variable `cub`"),
        (lambda t: t["labels"].update(axes="HW"), "by the axes HW, 30 x 24 px"),
        (lambda t: t["labels"].pop("variable"), r"x\.mat is a \.mat file"),
    ],
)
def test_mat_faults(edit: Edit, message: str, folder: Path, text: dict[str, Any]) -> None:
    mat(folder, text)
    edit(text)
    with pytest.raises(FaultsError, match=message) as caught:
        open_scenes(save(folder, text))
    assert len(caught.value.faults) == 1


def test_a_written_split_is_no_mat_file(folder: Path, text: dict[str, Any]) -> None:
    text["split"] = {"kind": "roles", "path": "x.mat"}
    file = read_scene_file(mat(folder, text))
    with pytest.raises(SettingsError, match="the split names no variable"):
        file.roles(file.scenes())


# Polygons -----------------------------------------------------------------------------------------------------------


def polygons(folder: Path, text: dict[str, Any]) -> Path:
    def box(left: int, top: int, right: int, bottom: int) -> Any:
        (x0, y0), (x1, y1) = GRID.at(left, top), GRID.at(right, bottom)
        return shapely.box(x0, y1, x1, y0)

    frame = geopandas.GeoDataFrame(
        {"key": ["k1", "k2", "k3"], "number": [1, 2, 2]},
        geometry=[box(0, 0, 4, 5), box(10, 10, 20, 15), box(3, 4, 6, 8)],
        crs=UTM,
    )
    frame.to_crs("EPSG:4326").to_file(folder / "plots.gpkg")
    (folder / "table.csv").write_text("key,taxon\nk1,water\nk2,QURU\nk3,QURU\n")
    text["labels"] = {"polygons": "plots.gpkg", "attribute": "taxon", "join": {"path": "table.csv", "key": "key"}}
    text["legend"][1]["value"] = "QURU"
    return save(folder, text)


def expected_polygons(last: int) -> NDArray[np.uint8]:
    out = np.full((24, 30), U, np.uint8)
    out[:5, :4], out[10:15, 10:20], out[4:8, 3:6] = 0, 1, 1
    out[4:5, 3:4] = last
    return out


def test_polygons_with_a_joined_table(folder: Path, text: dict[str, Any]) -> None:
    path = polygons(folder, text)
    np.testing.assert_array_equal(open_scene(path).labels, expected_polygons(1))
    for rule, winner in (("first", 0), ("unlabelled", U)):
        text["labels"]["overlap"] = rule
        np.testing.assert_array_equal(open_scene(save(folder, text)).labels, expected_polygons(winner))
    assert (pickle.loads(pickle.dumps(open_scene(path))).labels == expected_polygons(U)).all()


def test_polygons_by_a_number(folder: Path, text: dict[str, Any]) -> None:
    polygons(folder, text)
    text["labels"] = {"polygons": ["plots.gpkg"], "attribute": "number"}
    text["legend"][0]["value"], text["legend"][1]["value"] = 1, 2
    np.testing.assert_array_equal(open_scene(save(folder, text)).labels, expected_polygons(1))


def test_polygons_of_each_tile(folder: Path, text: dict[str, Any]) -> None:
    polygons(folder, text)
    labels = {**text["labels"], "polygons": "plots_{tile}.gpkg"}
    text["labels"] = {"path": ""}
    tiled(folder, text, ["a", "b"])
    text["labels"] = labels
    (folder / "plots.gpkg").rename(folder / "plots_a.gpkg")
    (fault,) = faults(save(folder, text))
    assert f"there is no file {folder / 'plots_b.gpkg'}" in str(fault)


def test_a_fault_that_many_tiles_have_is_reported_once(folder: Path, text: dict[str, Any]) -> None:
    polygons(folder, text)
    labels = text["labels"]
    text["labels"] = {"path": ""}
    tiled(folder, text, ["a", "b", "c"])
    text["labels"] = {**labels, "polygons": "plot.gpkg"}
    (fault,) = faults(save(folder, text))
    assert "did you mean" in str(fault)


def test_values_that_no_class_has(folder: Path, text: dict[str, Any]) -> None:
    polygons(folder, text)
    text["legend"][1].pop("value")
    with pytest.raises(SceneError, match="polygons have the value QURU, which no class has"):
        _ = open_scene(save(folder, text)).labels


# Faults -------------------------------------------------------------------------------------------------------------


def fetched(text: dict[str, Any], **keys: str) -> None:
    text["fetch"] = {"files": [{"address": "http://host/x.tif", **keys}]}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(modalites={}), "unknown key `modalites`; did you mean `modalities`?"),
        (lambda t: t["modalities"]["s2"].update(unit="m"), "unknown key `modalities.s2.unit`; did you mean `units`?"),
        (lambda t: t["modalities"]["s2"].pop("path"), "the key `modalities.s2.path` is missing"),
        (lambda t: t.pop("name"), "the key `name` is missing"),
        (lambda t: t.update(modalities={}), "`modalities` is {}"),
        (lambda t: t["modalities"]["s2"].update(bands="1-x"), "write bands like '1-5, 9'"),
        (lambda t: t["modalities"]["s2"].update(bands="4-2"), "4-2 runs backwards"),
        (lambda t: t["modalities"]["s2"].update(bands=[]), "`modalities.s2.bands` is"),
        (lambda t: t["modalities"]["s2"].update(zoom=0), "`modalities.s2.zoom` is 0"),
        (lambda t: t["modalities"]["s2"].update(resampling="lanczos"), "`modalities.s2.resampling` is 'lanczos'"),
        (lambda t: t.update(reference="s3"), "`reference` is 's3'; choose one of s2, dem, labels"),
        (lambda t: (t["modalities"]["s2"].update(zoom=2), t.update(reference="s2")), "`s2`, whose zoom is not 1"),
        (lambda t: [m.update(zoom=2) for m in t["modalities"].values()], "every modality has a zoom"),
        (lambda t: t["modalities"].update({"s-1": {"path": "x"}}), "the modality name 's-1' is not made of letters"),
        (lambda t: t["modalities"].update(labels={"path": "x"}), "a modality is named `labels`"),
        (lambda t: t.pop("legend"), "`labels` need a `legend`"),
        (lambda t: t["labels"].pop("path"), "labels need either `path`"),
        (lambda t: t["labels"].update(polygons="x.shp"), "labels need either `path`"),
        (lambda t: t.update(labels={"polygons": "x.shp"}), "need `attribute`"),
        (lambda t: t["labels"].update(overlap="best"), "`labels.overlap` is 'best'"),
        (lambda t: t["legend"].append({"name": "water"}), "the legend uses the name water more than once"),
        (lambda t: t["legend"].append({"name": "x", "code": 2}), "the legend uses the code 2 more than once"),
        (lambda t: t["legend"].append({"name": "x", "code": 300}), "has the code 300"),
        (lambda t: t["legend"][0].update(colour="blue"), "has the colour 'blue'"),
        (lambda t: t.update(split={"kind": "block"}), "`split.kind` is 'block', not one of"),
        (lambda t: t.update(split={"kind": "blocks"}), "the key `split.size` is missing"),
        (lambda t: t.update(tiles=["a"]), "the path of the reference raster has no `{tile}`"),
        (lambda t: t.update(tiles=[]), "`tiles` is"),
        *(
            (partial(dict.update, name=name), "files get this name")
            for name in ("../x", "a/b", "a\\b", "..", ".", " ", "", "/")
        ),
        (lambda t: (t["modalities"]["s2"].update(path="{tile}.tif"), t.update(tiles=["a", ".."])), "`tiles.1` is '..'"),
        (lambda t: (t["modalities"]["s2"].update(path="{tile}.tif"), t.update(tiles=["../../a"])), "get this name"),
        *(
            (partial(fetched, folder=folder), "name a folder within `root`")
            for folder in ("../up", "a/../../b", "/tmp/x", "C:/x", "a\\..\\..\\b", "\\\\host\\x")
        ),
        (partial(fetched, name="../x"), "files get this name"),
        (partial(fetched, address="http://host/.."), "files get this name"),
        (lambda t: t["modalities"]["dem"].update(path="{tile}.tif"), "a path has `{tile}`, but that of the reference"),
        (
            lambda t: (t["modalities"]["s2"].update(path="{tile}.tif"), t.update(tiles=["a", "b", "a"])),
            "`tiles` names a more than once",
        ),
        (
            lambda t: (
                t.update(labels={"polygons": "x.shp", "attribute": "a"}),
                t["legend"][0].update(value="wood"),
            ),
            "two classes of `legend` have the value wood",
        ),
    ],
)
def test_settings_that_are_wrong(edit: Edit, message: str, folder: Path, text: dict[str, Any]) -> None:
    edit(text)
    with pytest.raises(SettingsError) as caught:
        read_scene_file(save(folder, text))
    assert message in str(caught.value)


def test_several_wrong_settings_in_one_go(folder: Path, text: dict[str, Any]) -> None:
    text["modalities"]["s2"] |= {"zoom": 0, "unit": "m"}
    text["labels"]["overlap"] = "best"
    with pytest.raises(FaultsError) as caught:
        read_scene_file(save(folder, text))
    assert len(caught.value.faults) == 3


def test_duplicate_keys_are_refused(folder: Path) -> None:
    (folder / "scene.yaml").write_text("name: a\nmodalities:\n  s2: {path: s2.tif}\n  s2: {path: dem.tif}\n")
    with pytest.raises(SettingsError, match="the key `s2` twice"):
        read_scene_file(folder)


def test_no_scene_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no file .*scene\.yaml"):
        read_scene_file(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f, t: (f / "s2.tif").unlink(), r"there is no file .*s2\.tif"),
        (lambda f, t: (f / "dem.tif").unlink(), r"there is no file .*dem\.tif"),
        (lambda f, t: (f / "labels.tif").unlink(), r"there is no file .*labels\.tif"),
        (lambda f, t: (f / "dem.tif").write_text("x"), r"dem\.tif cannot be opened"),
        (lambda f, t: t["modalities"]["s2"].update(bands=[5]), r"s2\.tif has 4 bands, not the bands \[5\]"),
        (lambda f, t: t["labels"].update(path="s2.tif"), r"the labels .*s2\.tif have 4 bands"),
        (
            lambda f, t: write_raster(f / "labels.tif", GRID.zoomed(2), codes(GRID.zoomed(2)), nodata=None),
            "are off the reference grid",
        ),
        (
            lambda f, t: write_raster(
                f / "dem.tif", Grid(9, 9, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), UTM), np.ones((9, 9), np.float32)
            ),
            r"dem\.tif does not overlap",
        ),
    ],
)
def test_files_that_are_wrong(edit: Any, message: str, folder: Path, text: dict[str, Any]) -> None:
    edit(folder, text)
    with pytest.raises(FaultsError, match=message) as caught:
        open_scenes(save(folder, text))
    assert len(caught.value.faults) == 1


def test_faults_beside_a_missing_reference_are_reported_too(folder: Path, text: dict[str, Any]) -> None:
    (folder / "s2.tif").unlink()
    (folder / "dem.tif").write_text("x")
    text["labels"] = {"polygons": "plots.gpkg", "attribute": "taxon"}
    messages = [str(fault) for fault in faults(save(folder, text))]
    assert len(messages) == 3
    for part in ("s2.tif", "dem.tif cannot be opened", "plots.gpkg"):
        assert any(part in line for line in messages)


def test_no_split(folder: Path, text: dict[str, Any]) -> None:
    file = read_scene_file(save(folder, text))
    with pytest.raises(SplitError, match="has no split"):
        file.roles(file.scenes())


def test_masks_on_another_grid(folder: Path, text: dict[str, Any]) -> None:
    write_raster(folder / "m.tif", GRID.zoomed(2), codes(GRID.zoomed(2)), nodata=None)
    text["split"] = {"kind": "masks", "train": "m.tif", "test": "m.tif"}
    file = read_scene_file(save(folder, text))
    with pytest.raises(SceneError, match=r"m\.tif has the grid 48 x 60 px"):
        file.roles(file.scenes())
    text["split"] = {"kind": "roles", "path": "no.tif"}
    file = read_scene_file(save(folder, text))
    with pytest.raises(MissingFileError, match=r"no\.tif"):
        file.roles(file.scenes())


def tiles_of_bands(folder: Path, *names: tuple[str, ...], **keys: Any) -> Path:
    """Tiles t0, t1, ... whose band is filled with the place of its name in the first one's."""
    for number, own in enumerate(names):
        order = [names[0].index(name) if name in names[0] else 9 for name in own]
        filled = np.ones((len(own), GRID.height, GRID.width), np.float32) * np.array(order)[:, None, None]
        write_raster(folder / f"s2_t{number}.tif", GRID, filled.astype(np.float32), nodata=None, names=list(own))
    return save(folder, {"name": "bands", "modalities": {"s2": {"path": "s2_{tile}.tif", **keys}}})


@pytest.mark.parametrize("second", [("c", "b", "a"), ("B", "A", "C"), ("d", "c", "a", "b")])
def test_the_bands_of_tiles_are_put_in_one_order(
    tmp_path: Path, second: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    scenes = open_scenes(tiles_of_bands(tmp_path, ("a", "b", "c"), tuple(second)))
    last = tuple(name for name in sorted(second, key=str.casefold) if name != "d")
    assert scenes[1].modalities["s2"].info.names == last
    if "a" in second:
        assert scenes[1].read("s2", GRID.window)[:, 0, 0].tolist() == [0, 1, 2]
    assert "the bands of `s2` of the tile `t1` are taken in the order of `t0`: " in caplog.text


def test_tiles_of_other_bands_are_refused_unless_the_scene_file_names_them(tmp_path: Path) -> None:
    path = tiles_of_bands(tmp_path, ("a", "b"), ("a", "x"))
    (fault,) = faults(path)
    assert (fault.found, fault.expected) == ("`s2` of the tile `t1` has the bands a, x", "those of `t0`: a, b")
    scenes = open_scenes(tiles_of_bands(tmp_path, ("a", "b"), ("a", "x"), names=["a", "b"]))
    assert [scene.modalities["s2"].info.names for scene in scenes] == [("a", "b")] * 2
    (fault,) = faults(tiles_of_bands(tmp_path, ("a", "b"), ("a", "x"), names=["a"]))
    assert "1 `names` for 2 bands" in fault.found


def test_wavelengths_go_before_names() -> None:
    known = ModalityInfo(3, "int16", "", 1, names=("a", "b", "c"), wavelengths=(450.0, 660.0, 2200.0))
    assert known.places_in(replace(known, names=("c", "b", "a"), wavelengths=(2186.0, 451.0, 660.0))) == (1, 2, 0)
    assert known.places_in(replace(known, wavelengths=(450.0, 680.0, 2200.0))) is None, "3% off"
    assert known.places_in(replace(known, wavelengths=(450.0, 2199.0, 2200.0))) is None
    assert known.places_in(replace(known, wavelengths=(), names=("c", "a", "b"))) == (1, 2, 0)


def test_bands_in_files_of_their_own_are_stacked(tmp_path: Path) -> None:
    """Two bands of 10 m and one of 20 m, of two tiles; each with its own nodata."""
    names = ("B02", "B04", "B11")
    for number, tile in enumerate(("t_1", "t_2")):
        for band, name in enumerate(names):
            pixel = 20 if name == "B11" else 10
            grid = Grid(640 // pixel, 640 // pixel, (pixel, 0, 5e5 + 1e4 * number, 0, -pixel, 5.4e6), "EPSG:32632")
            values = np.full((1, grid.height, grid.width), 100 * band + number, np.int16)
            values[0, 0, :4] = -band
            write_raster(tmp_path / f"{tile}_{name}.tif", grid, values, nodata=-band)
    written = {"name": "x", "modalities": {"s2": {"path": "{tile}_B*.tif", "resampling": "nearest"}}}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(written))
    one, two = open_scenes(tmp_path / "scene.yaml")
    assert [one.name, two.name] == ["t_1", "t_2"]
    assert (one.grid.height, one.modalities["s2"].raster.bands) == (64, 3)
    assert one.modalities["s2"].info.names == names
    values = two.read("s2", Window(0, 0, 4, 12))
    assert values[:, 3, 11].tolist() == [1, 101, 201]
    assert np.isnan(values[:, 0]).sum(axis=1).tolist() == [4, 4, 8]

    listed = {"path": ["{tile}_B11.tif", "{tile}_B02.tif"], "bands": [2]}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump({"name": "x", "modalities": {"s2": listed}}))
    chosen = open_scenes(tmp_path / "scene.yaml")[1]
    assert chosen.read("s2", Window(3, 11, 1, 1)).ravel().tolist() == [1]
    assert chosen.grid.height == 64
    for path, words in (("{tile}_C*.tif", "no file fits"), (["{tile}_B11.tif", "{tile}_B12.tif"], "B12.tif")):
        (tmp_path / "scene.yaml").write_text(yaml.safe_dump({"name": "x", "modalities": {"s2": {"path": path}}}))
        with pytest.raises(LandfuseError, match=words):
            open_scenes(tmp_path / "scene.yaml")


def test_a_table_lists_the_tiles_and_their_files(tmp_path: Path) -> None:
    for number, name in enumerate(("S1A_x", "S1B_y")):
        grid = Grid(8, 8, (10, 0, 5e5 + 1000 * number, 0, -10, 5.4e6), "EPSG:32632")
        write_raster(tmp_path / f"{name}.tif", grid, np.full((1, 8, 8), number, np.float32))
    (tmp_path / "tiles.csv").write_text("tile;radar\nnorth;S1A_x.tif\nsouth;S1B_y.tif\n")
    written = {"name": "x", "tiles": "tiles.csv", "modalities": {"s1": {"path": "{radar}"}}}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(written))
    scenes = open_scenes(tmp_path / "scene.yaml")
    assert [(scene.name, float(scene.read("s1", Window(0, 0, 1, 1))[0, 0, 0])) for scene in scenes] == [
        ("north", 0.0),
        ("south", 1.0),
    ]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (*tmp_path.glob("*.tif"), tmp_path / "tiles.csv"):
            archive.write(path, path.name)
    (tmp_path / "zipped.yaml").write_text(yaml.safe_dump({**written, "root": "zip://all.zip"}))
    assert [scene.name for scene in open_scenes(tmp_path / "zipped.yaml")] == ["north", "south"]
    for table, words in (
        ("tile,radar\na,\n", "nothing in the column"),
        ("tile,radar\na,x\na,y\n", "twice"),
        ("s1\nx\n", "lacks names"),
    ):
        (tmp_path / "tiles.csv").write_text(table)
        with pytest.raises(LandfuseError, match=words):
            open_scenes(tmp_path / "scene.yaml")
