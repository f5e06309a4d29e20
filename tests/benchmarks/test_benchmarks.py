"""The field's benchmarks: their scene files read files of the official names, shapes, types and variables, and `check`
confirms the official counts.

The files are made here. Spectral bands are fewer than in the real data where the scene is large (`BANDS`); the copy of
the scene file that is checked then says so, and nothing else in it is changed.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
import scipy.io
import yaml
from numpy.typing import NDArray

from landfuse.errors import GridError
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.benchmarks import recipes
from landfuse.scenes.check import check
from landfuse.scenes.scene_file import open_scene, read_scene_file
from landfuse.scenes.split_rules import MasksSplit
from landfuse.simulate.scene import simulate
from landfuse.training.recipe import read_recipe
from landfuse.training.train import train

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BANDS = 2


class Mat(NamedTuple):
    """A variable of a .mat file: official shape and type."""

    variable: str
    shape: tuple[int, ...]
    dtype: str


HOUSTON = (
    (198, 190, 192, 188, 186, 182, 196, 191, 193, 191, 181, 192, 184, 181, 187),
    (1053, 1064, 505, 1056, 1056, 143, 1072, 1053, 1059, 1036, 1054, 1041, 285, 247, 473),
)
TRENTO = ((129, 125, 105, 154, 184, 122), (3905, 2778, 374, 8969, 10317, 3052))
TRENTO_ALL = (4034, 2903, 479, 9123, 10501, 3174)  # counted in the public file
AUGSBURG = ((146, 264, 21, 248, 52, 7, 23), (13361, 30065, 3830, 26609, 523, 1638, 1507))
BERLIN = (
    (443, 423, 499, 376, 331, 280, 298, 170),
    (54511, 268219, 19067, 58906, 17095, 13025, 24526, 6502),
)
MUUFL_5_PERCENT = (1162, 214, 344, 91, 334, 23, 112, 312, 69, 9, 13)
MUUFL_ALL = (23246, 4270, 6882, 1826, 6687, 466, 2233, 6240, 1385, 183, 269)
WHU = {
    "longkou": ("LongKou", (550, 400, 270), 204_542, "LKtrain100", "LKtest100"),
    "hanchuan": ("HanChuan", (1217, 303, 274), 257_530, "Train100", "Test100"),
    "honghu": ("HongHu", (940, 475, 270), 386_693, "HHCYtrain100", "HHCYtest100"),
}
SAMPLES = "Training samples and test samples"

MODALITIES: dict[str, dict[str, Mat]] = {
    "houston2013": {
        "Houston2013/HSI.mat": Mat("HSI", (349, 1905, 144), "float64"),
        "Houston2013/LiDAR.mat": Mat("LiDAR", (349, 1905), "float64"),
    },
    "trento": {
        "HSI.mat": Mat("HSI", (166, 600, 63), "float32"),
        "LiDAR.mat": Mat("LiDAR", (166, 600), "float32"),
    },
    "trento_public": {
        "Trento-b4afc449ce5d6936ddc04fe267d86f9f35536afd/Italy_hsi.mat": Mat("data", (166, 600, 63), "float32"),
        "Trento-b4afc449ce5d6936ddc04fe267d86f9f35536afd/Italy_lidar.mat": Mat("data", (166, 600, 2), "float32"),
    },
    "muufl": {},  # one struct that holds all
    "augsburg": {
        "data_HS_LR.mat": Mat("data_HS_LR", (332, 485, 180), "uint16"),
        "data_SAR_HR.mat": Mat("data_SAR_HR", (332, 485, 4), "float64"),
        "data_DSM.mat": Mat("data_DSM", (332, 485), "float64"),
    },
    "berlin": {
        "data_HS_LR.mat": Mat("data_HS_LR", (1723, 476, 244), "float64"),
        "data_SAR_HR.mat": Mat("data_SAR_HR", (1723, 476, 4), "float64"),
    },
    "lcz_hk": {
        "data_MS_HR.mat": Mat("data_MS_HR", (529, 528, 10), "float64"),
        "data_SAR_HR.mat": Mat("data_SAR_HR", (529, 528, 4), "float64"),
    },
    "yellow_river_estuary": {
        "data_hsi.mat": Mat("data", (1185, 1342, 285), "uint8"),
        "data_sar.mat": Mat("data", (1185, 1342, 3), "uint8"),
    },
    **{
        f"whu_hi_{key}": {f"WHU_Hi_{name}.mat": Mat(f"WHU_Hi_{name}", shape, "float32")}
        for key, (name, shape, *_) in WHU.items()
    },
}
WHOLE = {"trento", "trento_public", "lcz_hk"}  # small enough for all bands


def read_yaml(place: str) -> dict[str, Any]:
    result: dict[str, Any] = yaml.safe_load((BENCHMARKS / place / "scene.yaml").read_text(encoding="utf-8"))
    return result


def write_mat(path: Path, variable: str, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {variable: array})


def spread(shape: tuple[int, int], counts: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    """Codes 1, 2, ... with exactly these counts, at random places; 0 elsewhere."""
    flat = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    codes = np.repeat(np.arange(1, len(counts) + 1), counts)
    flat[: codes.size] = codes
    return np.random.default_rng(seed).permutation(flat).reshape(shape)


def two_rasters(
    shape: tuple[int, int], train: Sequence[int], test: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Training and test codes that share no pixel."""
    together = spread(shape, [*train, *test])
    K = len(train)
    return np.where(together <= K, together, 0), np.where(together > K, together - K, 0).astype(np.uint8)


def labels(place: str, root: Path) -> None:
    """The official label files of a place."""
    if place == "houston2013":
        pair = two_rasters((349, 1905), *HOUSTON)
        for name, array in zip(("TRLabel", "TSLabel"), pair, strict=True):
            write_mat(root / f"Houston2013/{name}.mat", name, array)
    elif place == "trento":
        pair = two_rasters((166, 600), *TRENTO)
        for name, array in zip(("TRLabel", "TSLabel"), pair, strict=True):
            write_mat(root / f"{name}.mat", name, array)
    elif place == "trento_public":
        folder = root / "Trento-b4afc449ce5d6936ddc04fe267d86f9f35536afd"
        write_mat(folder / "allgrd.mat", "mask_test", spread((166, 600), TRENTO_ALL))
    elif place == "muufl":
        muufl(root / "muufl_gulfport_campus_1_hsi_220_label.mat")
    elif place == "yellow_river_estuary":
        listed = spread((1185, 1342), [3, 2] * 18)  # odd codes train, even ones test
        write_mat(root / "data_gt.mat", "data", (listed + 1) // 2)
        index = {
            f"{role}_index": np.argwhere(of)
            for role, of in (
                ("train", listed % 2 == 1),
                ("test", (listed > 0) & (listed % 2 == 0)),
                ("all", listed >= 0),
            )
        }
        scipy.io.savemat(root / "data_index.mat", index)
    elif place.startswith("whu_hi"):
        name, shape, _, *variables = WHU[place.removeprefix("whu_hi_")]
        counts = read_yaml(place)["counts"]
        pair = two_rasters(shape[:2], counts["train"], counts["test"])
        for file, variable, array in zip(("Train100", "Test100"), variables, pair, strict=True):
            write_mat(root / SAMPLES / f"{file}.mat", variable, array)
    else:
        counts = {"augsburg": AUGSBURG, "berlin": BERLIN, "lcz_hk": ((40,) * 13, (300,) * 13)}[place]
        shape = next(iter(MODALITIES[place].values())).shape[:2]
        for name, array in zip(("TrainImage", "TestImage"), two_rasters(shape, *counts), strict=True):
            write_mat(root / f"{name}.mat", name, array)


def muufl(path: Path) -> None:
    """The struct of MUUFL's own file, but for `info` and the fields of targets and coordinates."""
    rng = np.random.default_rng(0)
    flights = np.empty((1, 2), object)
    for number in range(2):
        z = rng.uniform(0, 40, (325, 220, 2))
        flights[0, number] = {"x": np.zeros((325, 220)), "y": np.zeros((325, 220)), "z": z, "info": "from the air"}
    codes = spread((325, 220), MUUFL_ALL).astype(np.float64)
    codes[codes == 0] = -1
    materials = np.array([[name] for name in (c["name"] for c in read_yaml("muufl")["legend"])], object)
    hsi = {
        "info": {"samples": 220.0, "lines": 325.0, "bands": 64.0},
        "Data": rng.random((325, 220, 64)),
        "Lidar": flights,
        "sceneLabels": {"Materials_Type": materials, "labels": codes},
        "RGB": np.zeros((325, 220, 3), np.uint8),
    }
    scipy.io.savemat(path, {"hsi": hsi})


def make(place: str, folder: Path) -> Path:
    """Writes the place's files, and a copy of its scene file that finds them."""
    text = read_yaml(place)
    rng = np.random.default_rng(0)
    for path, mat in MODALITIES[place].items():
        shape = mat.shape
        if len(shape) == 3 and shape[2] > BANDS and place not in WHOLE:
            shape = (*shape[:2], BANDS)
            name = next(n for n, m in text["modalities"].items() if m["path"] == path)
            assert text["counts"]["bands"][name] == mat.shape[2]  # the published number, before it is reduced
            text["counts"]["bands"][name] = BANDS
        write_mat(folder / path, mat.variable, rng.integers(1, 200, shape).astype(mat.dtype))
    labels(place, folder)
    return save(text, folder)


def save(text: Mapping[str, Any], folder: Path) -> Path:
    path = folder / "scene.yaml"
    path.write_text(yaml.safe_dump({**text, "root": "."}, sort_keys=False), encoding="utf-8")
    return path


# What the scene files say ---------------------------------------------------------------------------------------------


def test_the_scene_files_hold_the_published_counts() -> None:
    def counts(place: str) -> dict[str, Any]:
        return dict(read_yaml(place)["counts"])

    for place, pair in (("houston2013", HOUSTON), ("houston2013_shadow", HOUSTON), ("trento", TRENTO)):
        assert (counts(place)["train"], counts(place)["test"]) == tuple(map(list, pair)), place
    for place, pair in (("augsburg", AUGSBURG), ("berlin", BERLIN)):
        assert (counts(place)["train"], counts(place)["test"]) == tuple(map(list, pair)), place
    assert counts("muufl")["train"] == list(MUUFL_5_PERCENT)
    assert sum(counts("muufl")["labelled"]) == 53_687
    assert counts("muufl")["labelled"] == list(MUUFL_ALL)
    assert counts("trento_public")["labelled"] == list(TRENTO_ALL) == np.sum(TRENTO, axis=0).tolist()
    assert sum(counts("houston2018")["labelled"]) == 2_018_910
    for key, (_, shape, total, *_) in WHU.items():
        found = counts(f"whu_hi_{key}")
        assert sum(found["labelled"]) == total
        assert found["labelled"] == np.add(found["train"], found["test"]).tolist()
        assert found["size"] == list(shape[:2])


PLACES = sorted(path.parent.name for path in BENCHMARKS.glob("*/scene.yaml"))


@pytest.mark.parametrize("place", PLACES)
def test_a_place_says_where_it_is_from_and_its_recipes_are_accepted(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path))
    settings = read_scene_file(BENCHMARKS / place).settings
    assert settings.citation
    assert settings.licence
    assert settings.address.startswith("http") or place == "simulated"
    assert settings.name == place
    assert recipes(BENCHMARKS / place)
    for path in recipes(BENCHMARKS / place).values():
        recipe = read_recipe(path)
        recipe.read_scene()


def test_the_simulated_place_is_made_by_its_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["scene.py", "--side", "160"])
    runpy.run_path(str(BENCHMARKS / "simulated" / "scene.py"), run_name="__main__")
    report = check(BENCHMARKS / "simulated" / "scene.yaml", [(7, 1)])
    assert report.faults == []
    assert report.modalities["hsi"].bands == 48
    assert report.leaks == {(7, 1): 0}
    scene = open_scene(BENCHMARKS / "simulated" / "scene.yaml")
    truth = simulate(160, 160, 0)
    names = [scene.legend.names[code] for code in np.unique(scene.labels[truth.labels == 2])]
    assert names == ["herbs"], "grassland"


# The readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", sorted(MODALITIES))
def test_check_confirms_the_counts_of_files_in_the_official_layout(place: str, tmp_path: Path) -> None:
    scene = make(place, tmp_path)
    report = check(scene, [(11, 1)])
    assert [str(fault) for fault in report.faults] == []
    named = read_yaml(place)["counts"]
    expected = {key for key in named if key != "bands"} | {f"bands.{name}" for name in named["bands"]}
    assert set(report.confirmed) == expected


def test_a_split_may_list_rows_and_columns(tmp_path: Path) -> None:
    path = make("yellow_river_estuary", tmp_path)
    file = read_scene_file(path)
    (scene,) = file.scenes(["sar"])
    (roles,) = file.roles([scene], MasksSplit.model_validate({**read_yaml(path.parent)["split"], "validation": 0}))
    assert [np.bincount(scene.labels[roles == role], minlength=18).tolist() for role in (1, 3)] == [[3] * 18, [2] * 18]
    scipy.io.savemat(tmp_path / "data_index.mat", {"train_index": [[1185, 0]], "test_index": [[0, 0]]})
    with pytest.raises(GridError, match=r"`train_index` of .* 0 to 1185(.|\n)*a row \(0 to 1184\)"):
        file.roles([scene])


def test_muufl_is_split_as_in_the_paper_and_leaks(tmp_path: Path) -> None:
    report = check(make("muufl", tmp_path), [(11, 1)])
    training = report.counts["train"] + report.counts["validation"]
    assert training.tolist() == list(MUUFL_5_PERCENT)
    assert report.leaks[11, 1] > 0.9


def test_houston2013_with_the_shadow_is_read_from_the_contests_files(tmp_path: Path) -> None:
    text = read_yaml("houston2013_shadow")
    grid = Grid(349, 1905, (2.5, 0.0, 272_056.0, 0.0, -2.5, 3_290_290.0), "EPSG:32615")
    names = ("2013_DFTC/2013_IEEE_GRSS_DF_Contest_CASI.tif", "2013_DFTC/2013_IEEE_GRSS_DF_Contest_LiDAR.tif")
    for path, dtype, bands in zip(names, ("uint16", "float32"), (BANDS, 1), strict=True):
        write_raster(tmp_path / path, grid, np.ones((bands, 349, 1905), dtype))
    for role, array in zip(("TR", "VA"), two_rasters((349, 1905), *HOUSTON), strict=True):
        write_raster(tmp_path / f"2013_IEEE_GRSS_DF_Contest_Samples_{role}.tif", grid, array, nodata=None)
    text["counts"]["bands"]["hsi"] = BANDS
    report = check(save(text, tmp_path), [(11, 1)])
    assert [str(fault) for fault in report.faults] == []
    assert {"train", "test", "size", "bands.hsi", "bands.lidar"} == set(report.confirmed)


def test_houston2018_is_read_from_the_contests_files(tmp_path: Path) -> None:
    text = read_yaml("houston2018")
    corner, crs = (272_056.0, 3_290_290.0), "EPSG:26915"
    height, width = 300, 1192  # a sixteenth of the 1202 x 4768 px, and of each class
    assert text["counts"]["size"] == [1202, 4768]
    counts = [number // 16 for number in text["counts"]["labelled"]]
    text["counts"].update(size=[height, width], labelled=counts)
    text["split"].update(size=50)
    fine = Grid(height, width, (0.5, 0.0, corner[0], 0.0, -0.5, corner[1]), crs)
    folder = tmp_path / "2018IEEE_Contest" / "Phase2"
    codes = spread((height, width), counts)
    write_raster(folder / "TrainingGT" / "2018_IEEE_GRSS_DFC_GT_TR.tif", fine, codes, nodata=None)
    write_raster(
        folder / "Lidar GeoTiff Rasters" / "DEM+B_C123" / "UH17_GEM051.tif",
        fine,
        np.ones((1, height, width), "float32"),
    )
    pix = folder / "FullHSIDataset" / "20170218_UH_CASI_S4_NAD83.pix"
    pix.parent.mkdir()
    affine = rasterio.Affine(1.0, 0.0, corner[0], 0.0, -1.0, corner[1])
    shape = {
        "width": width // 2,
        "height": height // 2,
        "count": BANDS,
        "dtype": "uint16",
        "crs": crs,
        "transform": affine,
    }
    with rasterio.open(pix, "w", driver="PCIDSK", **shape) as file:
        file.write(np.full((BANDS, height // 2, width // 2), 7, "uint16"))
    assert text["modalities"]["hsi"]["bands"] == "1-48"
    text["modalities"]["hsi"]["bands"] = f"1-{BANDS}"
    text["counts"]["bands"]["hsi"] = BANDS
    report = check(save(text, tmp_path), [(11, 1)])
    assert [str(fault) for fault in report.faults] == []
    assert {"labelled", "size", "bands.hsi", "bands.lidar"} == set(report.confirmed)
    assert report.leaks[11, 1] == 0
    assert report.modalities["hsi"].warped == 1
    assert report.modalities["hsi"].low == report.modalities["hsi"].high == 7


CHIPS = {
    "train": ["Ghana_103272", "Ghana_1032725", "India_80221"],
    "valid": ["Spain_7370579"],
    "test": ["USA_741073", "Nigeria_417184"],
    "bolivia": ["Bolivia_103757"],
}


def floods(folder: Path, side: int = 24) -> Path:
    """Chips of the official names, bands and types; smaller than the official 512 x 512 px."""
    text = read_yaml("sen1floods11")
    data = folder / "v1.1" / "data" / "flood_events" / "HandLabeled"
    lists = folder / "v1.1" / "splits" / "flood_handlabeled"
    lists.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, chip in enumerate(chip for chips in CHIPS.values() for chip in chips):
        grid = Grid(side, side, (9e-5, 0.0, number * 1.0, 0.0, -9e-5, 38.0), "EPSG:4326")
        s1 = rng.uniform(-40, 10, (2, side, side)).astype("float32")
        s1[:, :2] = np.nan
        write_raster(data / "S1Hand" / f"{chip}_S1Hand.tif", grid, s1, nodata=float("nan"))
        s2 = rng.integers(7, 6060, (13, side, side)).astype("int16")
        write_raster(data / "S2Hand" / f"{chip}_S2Hand.tif", grid, s2, nodata=0)
        water = rng.integers(-1, 2, (side, side)).astype("int16")
        write_raster(data / "LabelHand" / f"{chip}_LabelHand.tif", grid, water, nodata=None)
    for role, chips in CHIPS.items():
        rows = "".join(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n" for chip in chips)
        (lists / f"flood_{role}_data.csv").write_text(rows)
    text["counts"].update(tiles=7, size=[side, side])
    return save(text, folder)


def test_sen1floods11_is_split_by_its_lists(tmp_path: Path) -> None:
    scene = floods(tmp_path)
    report = check(scene, [(11, 1)])
    assert [str(fault) for fault in report.faults] == []
    assert {"tiles", "size", "bands.s1", "bands.s2"} == set(report.confirmed)
    file = read_scene_file(scene)
    scenes = file.scenes()
    roles = {
        tile.name: set(np.unique(role[tile.labels != 255]))
        for tile, role in zip(scenes, file.roles(scenes), strict=True)
    }
    wanted = {"train": {1}, "valid": {2}, "test": {3}, "bolivia": {0}}
    assert roles == {chip: wanted[role] for role, chips in CHIPS.items() for chip in chips}
    assert report.modalities["s2"].high < 1  # reflectance


# What is wrong is reported class by class ---------------------------------------------------------------------------


def test_a_wrong_count_is_reported_class_by_class(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    scene = make("trento", tmp_path)
    train_labels, test_labels = two_rasters((166, 600), *TRENTO)
    train_labels[tuple(np.argwhere(train_labels == 3)[0])] = 0
    rows, cols = np.nonzero(test_labels == 1)
    test_labels[rows[:5], cols[:5]] = 6
    write_mat(tmp_path / "TRLabel.mat", "TRLabel", train_labels)
    write_mat(tmp_path / "TSLabel.mat", "TSLabel", test_labels)
    code, out, err = landfuse("check", str(scene))
    assert code == 2
    assert "the pixels of `train` are not the published ones in 1 of 6 classes: Ground 104 instead of 105" in err
    assert "`test` are not the published ones in 2 of 6 classes: Apple trees 3,900 instead of 3,905" in err
    assert "Roads 3,057 instead of 3,052" in err
    assert "819 pixels, as `counts`" in err
    assert "as published: size, bands.hsi, bands.lidar" in out


def test_a_wrong_size_and_a_wrong_number_of_bands_are_reported(tmp_path: Path) -> None:
    path = make("trento", tmp_path)
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    text["counts"].update(size=[166, 601], bands={"hsi": 64, "lidar": 1}, tiles=2)
    faults = [str(fault) for fault in check(save(text, tmp_path), [(1, 1)]).faults]
    assert len(faults) == 3
    assert "`counts.tiles`: the files have 1" in faults[0]
    assert "166 x 600 px" in faults[1]
    assert "166 x 601 px" in faults[1]
    assert "63 bands" in faults[2]
    assert "64 bands" in faults[2]


def test_a_pixel_with_two_classes_is_a_fault(tmp_path: Path) -> None:
    scene = make("trento", tmp_path)
    train_labels, test_labels = two_rasters((166, 600), *TRENTO)
    place = tuple(np.argwhere(train_labels == 1)[0])
    test_labels[place] = 2
    write_mat(tmp_path / "TSLabel.mat", "TSLabel", test_labels)
    (fault,) = check(scene, [(1, 1)]).faults
    assert "1 pixels have one class in" in str(fault)
    assert "TSLabel.mat" in str(fault)


def test_a_list_of_tiles_that_are_not_there_is_reported(tmp_path: Path) -> None:
    scene = floods(tmp_path)
    listed = tmp_path / "v1.1/splits/flood_handlabeled/flood_test_data.csv"
    listed.write_text("Mekong_1_S1Hand.tif,Mekong_1_LabelHand.tif\n")
    (fault,) = check(scene, [(1, 1)]).faults
    assert "names 'Mekong_1_S1Hand.tif', which is no tile" in str(fault)
    listed.unlink()
    (fault,) = check(scene, [(1, 1)]).faults
    assert "the list of the tiles for `test`" in str(fault)


def test_the_forest_of_a_place_trains(tmp_path: Path) -> None:
    make("trento", tmp_path)
    recipe = tmp_path / "forest.yaml"
    recipe.write_text((BENCHMARKS / "trento" / "forest.yaml").read_text())
    classifier = train(recipe, "model.trees=2", f"run={tmp_path / 'run'}", progress=False)
    assert classifier.legend.names[3] == "Woods"
    assert (tmp_path / "run" / "scores.json").exists()
