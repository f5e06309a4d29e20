"""xarray's cubes and Zarr groups as modalities with dates: against numpy's own medians of the months."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

import landfuse as lf
from landfuse.errors import LandfuseError, SceneError, SettingsError
from landfuse.rasters.arrays import like_data_array
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.raster import state_of
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scene

xarray = pytest.importorskip("xarray")
rioxarray = pytest.importorskip("rioxarray")

GRID = Grid(20, 26, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")
DAYS = ["2023-05-20", "2023-04-03", "2023-04-20", "2023-06-11"]  # not in order
BANDS = ["B04", "B08"]
F = np.float32


def numbers() -> NDArray[np.int16]:
    """(T, C, H, W) as they are stored: -9 is no data."""
    found = np.random.default_rng(0).integers(0, 5000, (4, 2, 20, 26)).astype(np.int16)
    found[0, :, :4, :5] = found[2, :, 3:9] = -9
    return found


def expected() -> NDArray[np.float32]:
    """Bands of April, May and June, by scale 0.001 and offset -0.5."""
    stored = numbers()
    values = np.where(stored == -9, np.nan, stored.astype(F) * F(0.001) + F(-0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.concatenate([np.nanmedian(values[[1, 2]], axis=0), values[0], values[3]])


def cube(crs: bool = True) -> Any:
    """A DataArray (time, band, y, x)."""
    coords = {
        "time": np.array(DAYS, "datetime64[ns]"),
        "band": BANDS,
        "y": 5e6 - 10 * (np.arange(20) + 0.5),
        "x": 5e5 + 10 * (np.arange(26) + 0.5),
    }
    attrs = {"_FillValue": -9, "scale_factor": 0.001, "add_offset": -0.5}
    array = xarray.DataArray(numbers(), coords, ("time", "band", "y", "x"), "s2", attrs)
    return array.rio.write_crs("EPSG:32632") if crs else array


def dataset(crs: bool = True) -> Any:
    """A Dataset with a variable per band, and one of codes: 4 is clear."""
    array = cube(crs)
    found = array.to_dataset("band")
    for band in BANDS:
        found[band].attrs = dict(array.attrs)
    found["SCL"] = array[:, 0].drop_vars("band").copy(data=np.where(numbers()[:, 1] % 3, 4, 9).astype(np.uint8))
    found["SCL"].attrs = {}
    return found


def read(scene: Scene, name: str = "s2") -> NDArray[np.float32]:
    """Read by blocks of 7 px, which has to give what one window gives."""
    whole = scene.read(name, GRID.window)
    for block in blocks(20, 26, 7):
        np.testing.assert_array_equal(scene.read(name, block), whole[:, *block.within(GRID.window)])
    return whole


@pytest.mark.parametrize("axes", ["time band y x", "x y band time"])
def test_the_dates_of_a_data_array_are_those_of_its_coordinate(axes: str) -> None:
    array = cube().transpose(*axes.split())
    scene = lf.Scene.from_arrays({"s2": lf.with_dates(array, every="1 month")})
    info = scene.modalities["s2"].info
    assert (info.steps, info.per_step, scene.grid) == (("2023-04", "2023-05", "2023-06"), 2, GRID)
    assert info.names[:3] == ("2023-04 B04", "2023-04 B08", "2023-05 B04")
    np.testing.assert_allclose(read(scene), expected(), rtol=1e-6)
    as_they_are = lf.Scene.from_arrays({"s2": array}).modalities["s2"].info
    assert as_they_are.steps == tuple(sorted(DAYS))


def test_the_variables_of_a_dataset_are_bands_and_one_of_them_says_what_is_clear() -> None:
    mask = {"variable": "SCL", "clear": [4]}
    scene = lf.Scene.from_arrays({"s2": lf.with_dates(dataset(), every="1 month", mask=mask)})
    assert scene.modalities["s2"].info.names[:2] == ("2023-04 B04", "2023-04 B08")
    cloudy = numbers()[0, 1] % 3 == 0
    np.testing.assert_allclose(read(scene)[2:4], np.where(cloudy, np.nan, expected()[2:4]), rtol=1e-6)


def test_of_a_dask_array_no_more_than_the_window_is_computed_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dask = pytest.importorskip("dask.array")
    monkeypatch.setattr("landfuse.series.series_raster._STRIP", 12)  # of files, whose tiles are cached
    computed: list[tuple[int, ...]] = []

    def load(block: NDArray[Any]) -> NDArray[Any]:
        computed.append(block.shape)
        return block

    lazy = dask.from_array(numbers(), chunks=(1, 2, 10, 13)).map_blocks(load, dtype=np.int16, meta=np.zeros(0, "i2"))
    scene = lf.Scene.from_arrays({"s2": lf.with_dates(cube().copy(data=lazy), every="1 month")})
    assert not computed
    np.testing.assert_allclose(scene.read("s2", Window(1, 2, 5, 6)), expected()[:, 1:6, 2:8], rtol=1e-6)
    assert computed == [(1, 2, 10, 13)] * 4


def test_a_classifier_of_cubes_returns_data_arrays_and_wants_the_same_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.training.train.save", lambda *_: None)
    array = cube().copy(data=np.broadcast_to((np.arange(26) // 3 % 2 * 900 + 100).astype(np.int16), (4, 2, 20, 26)))
    labels = np.broadcast_to(np.arange(26) // 3 % 2 + 1, (20, 26))
    split = {"kind": "random", "train": 0.3}
    forest = lf.Classifier("forest", trees=5)
    forest.fit({"s2": lf.with_dates(array, every="1 month")}, labels, split, progress=False)
    later = array.assign_coords(time=array.time + np.timedelta64(366, "D"))
    found = forest.predict({"s2": lf.with_dates(later, every="1 month")}, progress=False)
    np.testing.assert_array_equal(found.values, labels)
    assert (found.dims, found.rio.crs.to_epsg()) == (("y", "x"), 32632)
    np.testing.assert_array_equal(found.x, array.x)
    with pytest.raises(LandfuseError, match="other periods than the model"):
        forest.predict({"s2": array}, progress=False)


def test_two_cubes_of_other_numbers_are_not_taken_for_one_another() -> None:
    one, other = (lf.with_dates(array, every="1 month") for array in (cube(), cube() + 1))
    assert state_of(one) == state_of(lf.with_dates(cube(), every="1 month")) != state_of(other)


@pytest.mark.parametrize(
    ("wrong", "settings", "words"),
    [
        (lambda: cube().drop_vars("time"), {}, "coordinate `time` is missing"),
        (lambda: cube().assign_coords(time=np.array([DAYS[0]] * 2 + DAYS[2:], "M8[ns]")), {}, "several times on 2023"),
        (lambda: cube().isel(time=0, drop=True), {}, "has no dates"),
        (lambda: cube(), {"between": "2024"}, "none of its 4 dates"),
        (lambda: cube(), {"evry": "1 month"}, "every"),
        (lambda: cube(), {"mask": {"band": 1, "clear": [4]}}, "a mask that is no variable"),
        (lambda: dataset(), {"mask": {"variable": "QA", "clear": [4]}}, "no variable QA"),
        (lambda: dataset().assign(dem=dataset().B04[0, :, :].drop_vars("time")), {}, "with dates and without"),
        (lambda: numbers(), {}, "is ndarray"),
    ],
)
def test_cubes_without_usable_dates_are_refused(wrong: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((SceneError, SettingsError)) as error:
        lf.with_dates(wrong(), **settings)
    assert words in str(error.value)


# ---- Zarr ------------------------------------------------------------------------------------------------------------


def opened(folder: Path, **keys: Any) -> Scene:
    text = {"name": "place", "modalities": {"s2": {"path": "cube.zarr", **keys}}}
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    return open_scene(folder / "scene.yaml")


def refused(folder: Path, **keys: Any) -> str:
    with pytest.raises(LandfuseError) as error:
        opened(folder, **keys)
    return str(error.value)


def written(folder: Path, group: Any, version: int, **words: Any) -> Path:
    pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks = {"chunks": (1, 2, 10, 13)} if "s2" in group else {}
        group.to_zarr(folder / "cube.zarr", zarr_format=version, encoding={"s2": chunks} if chunks else {}, **words)
    return folder


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("variables", [1, 2])
def test_a_zarr_group_is_a_modality_with_dates(version: int, variables: int, tmp_path: Path) -> None:
    written(tmp_path, cube().to_dataset() if variables == 1 else dataset().drop_vars("SCL"), version)
    scene = opened(tmp_path, dates={"every": "1 month"})
    assert scene.grid == GRID
    assert scene.modalities["s2"].info.names[:2] == ("2023-04 B04", "2023-04 B08")
    np.testing.assert_allclose(read(scene), expected(), rtol=1e-6)
    np.testing.assert_array_equal(read(pickle.loads(pickle.dumps(scene))), read(scene))


def test_the_scene_file_wins_over_what_a_zarr_group_says(tmp_path: Path) -> None:
    written(tmp_path, dataset(crs=False), 3)
    mask = {"variable": "SCL", "clear": [4]}
    scene = opened(tmp_path, variable="B08", scale=2.0, offset=0.0, crs="EPSG:32632", dates={"mask": mask})
    stored = numbers()[[1, 2, 0, 3], 1]
    np.testing.assert_array_equal(read(scene), np.where((stored % 3 == 0) | (stored == -9), np.nan, stored * 2.0))
    assert scene.grid == GRID


def test_a_map_goes_to_zarr_and_back(tmp_path: Path) -> None:
    attrs = {"_FillValue": 255, "flag_values": np.array([1, 2], np.uint8)}
    codes = np.where(numbers()[0, 0] < 0, 255, 1).astype(np.uint8)
    mapped = like_data_array(cube()[0, 0], codes, GRID, "land_cover", attrs)
    written(tmp_path, mapped.drop_vars(["time", "band"], errors="ignore").to_dataset(), 3)
    scene = opened(tmp_path)
    np.testing.assert_array_equal(read(scene)[0], np.where(codes == 255, np.nan, codes))
    assert scene.grid == GRID


def test_geozarr_attributes_place_a_group(tmp_path: Path) -> None:
    place = {"proj:code": "EPSG:32632", "spatial:transform": list(GRID.transform)}
    written(tmp_path, cube(crs=False).drop_vars(["x", "y"]).to_dataset().assign_attrs(place), 3)
    assert opened(tmp_path, dates={}).grid == GRID


def test_the_files_of_a_group_tell_its_state_and_another_raster_is_brought_to_it(tmp_path: Path) -> None:
    written(tmp_path, cube().to_dataset(), 2)
    fine = Grid(40, 52, (5.0, 0.0, 5e5, 0.0, -5.0, 5e6), "EPSG:32632")
    write_raster(tmp_path / "dem.tif", fine, np.ones((1, 40, 52), F), nodata=None)
    modalities = {"s2": {"path": "cube.zarr", "dates": {}}, "dem": {"path": "dem.tif"}}
    for reference in modalities:
        text = {"name": "place", "reference": reference, "modalities": modalities}
        (tmp_path / f"{reference}.yaml").write_text(yaml.safe_dump(text))
    scene = open_scene(tmp_path / "s2.yaml")
    assert scene.read("dem", GRID.window).shape == (1, 20, 26)
    before = state_of(scene.modalities["s2"].raster)
    (tmp_path / "cube.zarr" / "s2" / "0.0.0.0").write_bytes(b"broken")
    assert before
    assert state_of(scene.modalities["s2"].raster) != before
    with pytest.raises(SceneError, match=r"cube.zarr/s2 cannot be read at row 0"):
        scene.read("s2", GRID.window)
    with pytest.raises(LandfuseError, match="say `reference: s2`"):
        open_scene(tmp_path / "dem.yaml")


def test_zarr_groups_that_do_not_fit_are_answered(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    assert "there is no folder" in refused(tmp_path)
    written(tmp_path, dataset(crs=False), 3)
    assert "has 4 dates" in refused(tmp_path, variable="B04")
    assert "no variable B4" in refused(tmp_path, variable="B4", dates={})
    assert "has no CRS" in refused(tmp_path, variable="B04", dates={})
    assert "not the bands [3]" in refused(tmp_path, variable=["B04", "B08"], bands=[3], dates={})
    shutil.rmtree(tmp_path / "cube.zarr")
    (tmp_path / "cube.zarr").mkdir()
    assert "cannot be opened as a Zarr group" in refused(tmp_path)
