"""`landfuse check`: what is there, what leaks, and every fault in one go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import scipy.io
import shapely
import yaml
from numpy.typing import NDArray

from landfuse.markup import percent
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.check import VIEWS, check
from landfuse.scenes.leaks import leak_fraction
from landfuse.scenes.scene_file import read_scene_file

UTM = "EPSG:32632"
GRID = Grid(40, 48, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), UTM)
AWAY = Grid(40, 48, (10.0, 0.0, 600_000.0, 0.0, -10.0, 5_400_000.0), UTM)
REPO = Path(__file__).resolve().parents[2]

Edit = Callable[[Path, dict[str, Any]], Any]


def values(bands: int, grid: Grid = GRID, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(1, 9, (bands, grid.height, grid.width)).astype(np.float32)


def codes() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 4, (40, 48)).astype(np.uint8)


def scene_text() -> dict[str, Any]:
    return {
        "name": "place",
        "modalities": {"s2": {"path": "s2.tif", "units": "[reflectance]"}, "dem": {"path": "dem.tif", "units": "m"}},
        "labels": {"path": "labels.tif", "ignored": [0]},
        "legend": [{"name": f"class {code}", "code": code} for code in (1, 2, 3)],
        "split": {"kind": "blocks", "size": 8, "buffer": 1},
    }


def write_scene(folder: Path) -> dict[str, Any]:
    write_raster(folder / "s2.tif", GRID, values(4), nodata=None)
    write_raster(folder / "dem.tif", GRID, values(1, seed=1), nodata=None)
    write_raster(folder / "labels.tif", GRID, codes(), nodata=None)
    return scene_text()


def save(folder: Path, text: dict[str, Any]) -> Path:
    (folder / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    return folder / "scene.yaml"


WITHOUT_TORCH = """
import sys
from landfuse.cli import main
sys.modules.update(torch=None, lightning=None, timm=None)  # an import of these raises
sys.argv = ["landfuse", "check", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("units", ["reflectance", ["no", "text"]], ids=["right", "wrong"])
def test_scenes_and_their_faults_need_no_torch(units: Any, tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    text["modalities"]["s2"]["units"] = units
    command = [sys.executable, "-c", WITHOUT_TORCH, str(save(tmp_path, text))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if units == "reflectance":
        assert (ended.returncode, "Error" in ended.stderr) == (0, False)
        assert "no fault found" in ended.stdout
    else:
        assert ended.returncode == 2
        assert "`modalities.s2.units` is ['no', 'text']: expected text" in ended.stderr


def test_what_is_not_read_as_values_is_said(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    array = np.random.default_rng(0).integers(1, 255, (4, 40, 48)).astype(np.uint8)
    with rasterio.open(
        tmp_path / "s2.tif", "w", driver="GTiff", height=40, width=48, count=4, dtype="uint8", crs=UTM,
        transform=rasterio.Affine(*GRID.transform), photometric="RGB", alpha="YES",
    ) as file:  # fmt: skip
        file.write(array)
    write_raster(tmp_path / "hsi.tif", GRID, values(3), nodata=None)
    rasterio.shutil.copy(tmp_path / "hsi.tif", tmp_path / "hsi.img", driver="ENVI")
    with (tmp_path / "hsi.hdr").open("a") as header:
        header.write("bbl = {1, 0, 1}\n")
    text["modalities"]["hsi"] = {"path": "hsi.img"}
    path = save(tmp_path, text)
    report = check(path)
    assert {name: row.bands for name, row in report.modalities.items()} == {"s2": 3, "dem": 1, "hsi": 2}
    code, out, _ = landfuse("check", path, "--views", "1")
    assert code == 0
    assert "note: `s2`: band 4 is marked as alpha and read as a mask; `bands: all` reads it as values" in out
    assert "note: `hsi`: bands marked as bad (bbl) are left out unless `bands` names them: 2" in out
    text["modalities"]["s2"]["bands"] = text["modalities"]["hsi"]["bands"] = "all"
    report = check(save(tmp_path, text))
    assert {name: row.bands for name, row in report.modalities.items()} == {"s2": 4, "dem": 1, "hsi": 3}
    assert [note for note in report.notes if "band" in note] == []
    text["modalities"]["s2"]["bands"] = []
    (fault,) = check(save(tmp_path, text)).faults
    assert "name one band at least" in str(fault)


def test_close_colours_are_reported_and_are_no_fault(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    for kind, colour in zip(text["legend"], ("#C45A28", "#0000C8", "#78781E"), strict=True):
        kind["colour"] = colour
    path = save(tmp_path, text)
    (pair,) = check(path).close_colours
    assert (pair.first, pair.second) == (0, 2)
    code, out, _ = landfuse("check", str(path), "--views", "1")
    assert code == 0
    assert f"class 1 and class 3 ({pair.distance:.1f} with {pair.vision})" in out
    for kind in text["legend"]:
        del kind["colour"]
    assert check(save(tmp_path, text)).close_colours == []
    assert "hard to distinguish" not in landfuse("check", str(path), "--views", "1")[1]


# What it finds ------------------------------------------------------------------------------------------------------


def test_modalities(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    array = values(4)
    array[1, 3:5, 7] = -1
    array[2, 3, 7:9] = -1
    write_raster(tmp_path / "s2.tif", GRID, array, nodata=-1)
    other = Grid(90, 90, (6.0, 0.0, 499_970.0, 0.0, -6.0, 5_400_040.0), UTM)
    write_raster(tmp_path / "dem.tif", other, values(1, other), nodata=None)
    report = check(save(tmp_path, text))
    assert not report.faults
    assert (report.tiles, list(report.modalities)) == (1, ["s2", "dem"])
    s2, dem = report.modalities["s2"], report.modalities["dem"]
    known = array[array != -1].astype(np.float64)
    assert (s2.bands, s2.dtype, s2.units, s2.pixel, s2.crs, s2.warped) == (4, "float32", "[reflectance]", 10, [UTM], 0)
    assert (s2.pixels, s2.missing) == (40 * 48, 3)
    assert (s2.low, s2.high) == (known.min(), known.max())
    assert s2.mean == pytest.approx(known.mean())
    assert (dem.pixel, dem.warped, dem.missing) == (6.0, 1, 0)


def test_statistics_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, write_scene(tmp_path))
    one = check(path).modalities["s2"]
    monkeypatch.setattr(sys.modules["landfuse.scenes.check"], "_BLOCK", 7)
    seen: list[tuple[int, int]] = []
    many = check(path, progress=lambda done, total: seen.append((done, total))).modalities["s2"]
    assert (one.low, one.high, one.pixels) == (many.low, many.high, many.pixels)
    assert one.mean == pytest.approx(many.mean)
    assert seen == [(done, 43) for done in range(1, 44)]  # 42 blocks, and the labels


def test_of_very_large_rasters_a_sample_of_windows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, write_scene(tmp_path))
    module = sys.modules["landfuse.scenes.check"]
    monkeypatch.setattr(module, "_BLOCK", 8)
    monkeypatch.setattr(module, "_MOST", 5 * 40 * 48)
    monkeypatch.setattr(module, "_SAMPLE", 5 * 8 * 8 * 10)
    assert check(path).notes == []
    monkeypatch.setattr(module, "_MOST", 5 * 40 * 48 - 1)
    seen: list[tuple[int, int]] = []
    report = check(path, progress=lambda done, total: seen.append((done, total)))
    assert report.notes == [
        "the rasters hold 9,600 values, more than 9,599: what the table says of them, and what is wrong with "
        "single pixels, comes from 10 windows drawn at random"
    ]
    assert report.modalities["s2"].pixels == 10 * 64
    assert seen[-1] == (11, 11)
    assert report.counts["train"].any()  # labels are read whole
    monkeypatch.setattr(module, "_MOST_LABELS", 40 * 48 - 1)
    report = check(path)
    assert "the labels have 1,920 pixels, more than 1,919, and are not read" in report.notes[1]
    assert not report.counts


def test_no_data_in_a_sample_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_scene(tmp_path)
    array = np.full((1, 40, 48), -1, np.float32)
    array[0, 0, 0] = 5
    write_raster(tmp_path / "dem.tif", GRID, array, nodata=-1)
    module = sys.modules["landfuse.scenes.check"]
    for name, number in (("_BLOCK", 4), ("_MOST", 1000), ("_SAMPLE", 200)):
        monkeypatch.setattr(module, name, number)
    report = check(save(tmp_path, text))
    assert not report.faults
    assert report.modalities["dem"].missing == report.modalities["dem"].pixels > 0


@pytest.mark.parametrize(("at_once", "side"), [(5 * 49, 7), (4, 1), (10**9, 48)])
def test_windows_are_smaller_the_more_bands_there_are(
    at_once: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, write_scene(tmp_path))
    module = sys.modules["landfuse.scenes.check"]
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    windows, sampled = module._windows(read_scene_file(path).scenes())
    assert sampled == 0
    corners = [(row, col) for row in range(0, 40, side) for col in range(0, 48, side)]
    assert [(window.row, window.col) for _, window in windows] == corners
    assert sum(window.pixels for _, window in windows) == 40 * 48
    assert max(window.height * window.width for _, window in windows) <= side**2


def test_windows_of_several_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of different sizes: every window lies in its tile, and all together cover each of them once."""
    sizes = ((5, 9), (3, 2), (8, 8))
    text = {"name": "x", "modalities": {"s": {"path": "{tile}.tif"}}}
    for number, (rows, cols) in enumerate(sizes):
        own = Grid(rows, cols, GRID.transform, UTM)
        write_raster(tmp_path / f"t{number}.tif", own, np.ones((1, rows, cols), np.float32), nodata=None)
    module = sys.modules["landfuse.scenes.check"]
    monkeypatch.setattr(module, "_BLOCK", 4)
    covered = {f"t{number}": np.zeros(size, int) for number, size in enumerate(sizes)}
    for scene, window in module._windows(read_scene_file(save(tmp_path, text)).scenes())[0]:
        covered[scene.name][window.within(scene.grid.window)] += 1
    assert all((count == 1).all() for count in covered.values())


def test_ctrl_c_ends_it(tmp_path: Path, landfuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["landfuse.scenes.check"].ModalityCheck, "add", interrupted)
    code, out, err = landfuse("check", save(tmp_path, write_scene(tmp_path)))
    assert code == 130
    assert "interrupted" in err
    assert "no fault found" not in out


def test_calibration_is_counted_and_its_leak_noted(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    assert "calibration" not in check(save(tmp_path, text)).counts
    text["split"] |= {"calibration": 0.4, "buffer": 0}
    report = check(save(tmp_path, text))
    (roles,) = report.roles
    assert report.counts["calibration"].tolist() == [int(((codes() == k) & (roles == 4)).sum()) for k in (1, 2, 3)]
    assert sum(count.sum() for count in report.counts.values()) == (codes() > 0).sum()
    assert list(report.groups) == ["train", "validation", "test", "calibration"]
    (note,) = [note for note in report.notes if "of the calibration pixels" in note]
    assert f"{percent(leak_fraction([roles], 7, of=4))} (views of 7 px)" in note
    text["split"]["buffer"] = 3
    (note,) = [note for note in check(save(tmp_path, text)).notes if "of the calibration pixels" in note]
    assert "views of 7 px" not in note
    text["split"] = {"kind": "blocks", "size": 8, "calibration": 1.2}
    assert "`split.calibration` is 1.2" in str(check(save(tmp_path, text)).faults[0])


def test_classes_and_leaks(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    text["split"]["buffer"] = 3
    path = save(tmp_path, text)
    report = check(path)
    file = read_scene_file(path)
    scenes = file.scenes()
    (roles,) = file.roles(scenes)
    for name, value in (("train", 1), ("validation", 2), ("test", 3), ("unused", 0)):
        expected = [int(((codes() == code) & (roles == value)).sum()) for code in (1, 2, 3)]
        assert report.counts[name].tolist() == expected
    assert list(report.leaks) == list(VIEWS)
    for (view, core), fraction in report.leaks.items():
        assert fraction == leak_fraction([roles], view, core)
    assert report.leaks[(1, 1)] == report.leaks[(7, 1)] == 0  # halo 3 = buffer
    assert report.leaks[(11, 1)] > 0


def test_a_scene_without_labels_or_split(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    del text["split"]
    report = check(save(tmp_path, text))
    assert not report.faults
    assert not report.leaks
    assert report.counts["unused"].tolist() == [int((codes() == code).sum()) for code in (1, 2, 3)]
    del text["labels"], text["legend"]
    report = check(save(tmp_path, text))
    assert not report.faults
    assert not report.counts


def test_a_tile_without_any_labelled_pixel(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    for number in range(4):
        for kind, array in (("s2", values(4)), ("dem", values(1)), ("labels", codes() * (number > 0))):
            write_raster(tmp_path / f"{kind}_{number}.tif", GRID, array, nodata=None)
    for m in (*text["modalities"].values(), text["labels"]):
        m["path"] = m["path"].replace(".tif", "_{tile}.tif")
    text["split"] = {"kind": "tiles", "test": 0.34}
    report = check(save(tmp_path, text))
    assert not report.faults
    assert all(report.counts[role].all() for role in ("train", "validation", "test"))


def notes_of(path: Path) -> list[str]:
    report = check(path, [(1, 1)])
    assert not report.faults
    return report.notes


def test_classes_without_a_pixel_in_a_role(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    roles = np.where(codes() > 0, np.where(np.arange(48) < 24, 1, np.where(np.arange(48) < 36, 2, 3)), 0)
    roles[(roles == 3) & (codes() == 2)] = 1
    roles[(roles == 2) & (codes() != 2)] = 1
    write_raster(tmp_path / "roles.tif", GRID, roles.astype(np.uint8), nodata=None)
    text["split"] = {"kind": "roles", "path": "roles.tif"}
    code, out, _ = landfuse("check", save(tmp_path, text), "--views", "1")
    assert code == 0
    assert "note: no validation pixel is labelled class 1, class 3, so the epoch is chosen without regard to" in out
    assert "note: no test pixel is labelled class 2, so how well these classes are mapped is not measured" in out
    assert "no fault found; see the notes above" in out


def test_a_scene_that_is_only_mapped_need_not_have_every_class(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    del text["split"]
    text["legend"].append({"name": "ice", "code": 9})
    assert notes_of(save(tmp_path, text)) == ["no pixel is labelled ice; only training needs every class"]


def test_codes_that_the_legend_lacks_are_listed_with_all_tiles(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    for tile, labels in (
        ("a", codes()),
        ("b", np.where(codes() == 3, 77, codes())),
        ("c", codes() + 40 * (codes() == 1)),
    ):
        for kind, array in (("s2", values(4)), ("dem", values(1)), ("labels", labels.astype(np.uint8))):
            write_raster(tmp_path / f"{kind}_{tile}.tif", GRID, array, nodata=None)
    for m in (*text["modalities"].values(), text["labels"]):
        m["path"] = m["path"].replace(".tif", "_{tile}.tif")
    text["split"] = {"kind": "tiles", "test_tiles": ["c"], "train_tiles": ["a", "b"], "validation": 0}
    ones, threes = int((codes() == 1).sum()), int((codes() == 3).sum())
    listed = sorted(((41, ones), (77, threes)), key=lambda found: -found[1])
    expected = (
        "the labels labels_{tile}.tif hold codes that the legend lacks in 2 of 3 tiles (b, c); pixels of each: "
        + ", ".join(f"{code} ({pixels:,})" for code, pixels in listed)
    )  # fmt: skip
    (fault,) = check(save(tmp_path, text)).faults
    assert fault.found == expected
    text["labels"]["unlisted"] = "unlabelled"
    assert notes_of(save(tmp_path, text))[0] == f"{expected}. They are unlabelled"


def test_colours_that_the_legend_lacks_are_listed(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [1, 2, 3]], np.uint8)
    write_raster(tmp_path / "labels.tif", GRID, palette[codes()].transpose(2, 0, 1), nodata=None)
    text["labels"] = {"path": "labels.tif", "colours": {"ignored": ["#000000"]}, "unlisted": "unlabelled"}
    text["legend"] = [{"name": "red", "colour": "#FF0000"}, {"name": "green", "colour": "#00FF00"}]
    assert notes_of(save(tmp_path, text)) == [
        "the labels labels.tif hold colours that the legend lacks; pixels of each: "
        f"#010203 ({(codes() == 3).sum():,}). They are unlabelled"
    ]


def test_what_polygons_label_nothing_is_listed(tmp_path: Path) -> None:
    text = write_scene(tmp_path)

    def square(col: float, row: float, side: float) -> Any:
        (left, top), (right, bottom) = GRID.at(col, row), GRID.at(col + side, row + side)
        return shapely.box(left, bottom, right, top)

    shapes = [square(4 * n, 8 * row, 4) for row in range(3) for n in range(12)]
    kinds: list[str | None] = ["Gru\u0308nland", "Wald", "Acker"] * 12
    shapes += [
        square(400, 3, 9),
        square(20.1, 30.1, 0.2),
        square(30, 30, 4),
        shapely.Polygon(),
        square(40, 30, 4),
        square(60, 30, 4),
    ]
    kinds += ["Wald", "Acker", "Wlad", "Acker", None, "See"]
    geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs=UTM).to_crs(4326).to_file(tmp_path / "p.gpkg")
    text["labels"] = {"polygons": "p.gpkg", "attribute": "kind", "unlisted": "unlabelled"}
    text["legend"] = [{"name": name} for name in ("Gr\u00fcnland", "Wald", "Acker")]
    text["split"] = {"kind": "polygons"}
    assert notes_of(save(tmp_path, text)) == [
        "2 of 42 shapes of p.gpkg lie outside the raster: See (1), Wald (1)",
        "1 of 42 shapes of p.gpkg label no pixel: they are smaller than one, or others lie on them: Acker (1)",
        "1 of 42 shapes of p.gpkg have no value in `kind`",
        "1 of 42 shapes of p.gpkg have no outline",
        "the labels p.gpkg hold values that the legend lacks; shapes of each: See (1), Wlad (1; did you mean `Wald`?). "
        "They are unlabelled",
        "classes in fewer than 5 polygons of a role, so that a few places decide on them: test: Gr\u00fcnland (4), "
        "Wald (4), Acker (4)",
    ]
    del text["labels"]["unlisted"]
    (fault,) = check(save(tmp_path, text)).faults
    assert "See (1), Wlad (1; did you mean `Wald`?)" in fault.found
    assert fault.expected == "only Gr\u00fcnland, Wald, Acker"


def test_shapes_of_many_files_are_counted_together(tmp_path: Path) -> None:
    (left, top), (right, bottom) = GRID.at(0, 0), GRID.at(48, 40)
    for tile in ("a", "b"):
        write_raster(tmp_path / f"s2_{tile}.tif", GRID, values(1), nodata=None)
        shapes = [shapely.box(left, bottom, right - 10 * (tile == "b"), top), shapely.box(0, 0, 9, 9), None]
        frame = geopandas.GeoDataFrame({"kind": ["x", "x", "x"]}, geometry=shapes, crs=UTM)
        frame.to_file(tmp_path / f"{tile}.gpkg")
    text = {
        "name": "two",
        "modalities": {"s2": {"path": "s2_{tile}.tif"}},
        "labels": {"polygons": "{tile}.gpkg", "attribute": "kind"},
        "legend": [{"name": "x"}],
    }
    assert notes_of(save(tmp_path, text)) == [
        "2 of 6 shapes of {tile}.gpkg lie outside every tile: x (2)",
        "2 of 6 shapes of {tile}.gpkg have no outline",
    ]


def test_bands_and_tiles_that_hold_nothing_are_noted(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    for tile in ("a", "b"):
        array = values(4)
        array[[1, 3]] = 7
        array[2, 3, 4] = -9999
        height = np.full((1, 40, 48), np.float32(np.nan if tile == "b" else 3))
        height[0, 0, 0] = np.nan if tile == "b" else 65535
        for kind, found in (("s2", array), ("dem", height), ("labels", codes())):
            grid = GRID if tile == "a" else AWAY
            write_raster(tmp_path / f"{kind}_{tile}.tif", grid, found, nodata=np.nan if kind == "dem" else None)
    for m in (*text["modalities"].values(), text["labels"]):
        m["path"] = m["path"].replace(".tif", "_{tile}.tif")
    text["modalities"]["dem"] |= {"scale": 0.1, "offset": -5}
    number = "a number that often stands for no data: if it does here, set `nodata:"
    dem = [
        f"`dem` holds 65535 as an extreme of band 1, {number} 65535` for `dem`",
        "`dem` has no data in 1 of 2 tiles: b",
    ]
    assert notes_of(save(tmp_path, text)) == [
        f"`s2` holds -9999 as an extreme of band 3, {number} -9999` for `s2`",
        "`s2` has one value in all pixels of bands 2, 4, from which no model can learn: check the file, or leave that "
        "out by `bands`",
        *dem,
    ]
    text["modalities"]["s2"] |= {"nodata": -9999, "bands": [3, 1]}
    assert notes_of(save(tmp_path, text)) == dem


@pytest.mark.parametrize("split", [{"kind": "blocks", "size": 16}, {"kind": "random", "train": 0.5}, None])
def test_classes_in_few_blocks_are_noted(split: Any, tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    text["split"] = split
    if split is None:
        del text["split"]
    path = save(tmp_path, text)
    report = check(path, [(1, 1)])
    if split is None or split["kind"] == "random":
        assert (report.grouped, report.notes) == ("", [])
        return
    file = read_scene_file(path)
    (roles,) = file.roles(file.scenes())
    held = {
        role: [
            len({(row // 16, col // 16) for row, col in zip(*np.nonzero((roles == n) & (codes() == k)), strict=True)})
            for k in (1, 2, 3)
        ]
        for role, n in (("train", 1), ("validation", 2), ("test", 3))
    }
    assert {role: count.tolist() for role, count in report.groups.items()} == held
    assert max(held["train"]) >= 5 > max(held["test"])
    scarce = "; ".join(
        f"{role}: " + ", ".join(f"class {k + 1} ({n})" for k, n in enumerate(held[role]) if n < 5)
        for role in ("train", "test")
        if min(held[role]) < 5
    )
    assert report.notes == [f"classes in fewer than 5 blocks of a role, so that a few places decide on them: {scarce}"]


# What it says -------------------------------------------------------------------------------------------------------


def no_crs(folder: Path, text: dict[str, Any]) -> None:
    write_raster(folder / "s2.tif", Grid(40, 48, GRID.transform), values(4), nodata=None)
    for kind, array in (("dem", values(1)), ("labels", codes())):
        write_raster(folder / f"{kind}.tif", Grid(40, 48, GRID.transform), array, nodata=None)


def mat(folder: Path, text: dict[str, Any]) -> None:
    scipy.io.savemat(folder / "x.mat", {"cube": values(3).transpose(2, 1, 0)})
    text["modalities"]["hsi"] = {"path": "x.mat", "variable": "cube", "axes": "HWC"}


def with_nan(folder: Path, text: dict[str, Any]) -> None:
    array = values(4)
    array[2, 5, 5:8] = np.nan
    array[0, 5, 5] = np.inf
    write_raster(folder / "s2.tif", GRID, array, nodata=None)


def dead_band(folder: Path, text: dict[str, Any]) -> None:
    array = values(5)
    array[2] = -1
    write_raster(folder / "s2.tif", GRID, array, nodata=-1)
    text["modalities"]["s2"]["bands"] = "2-5"


def fill(name: str, array: NDArray[Any], grid: Grid = GRID, nodata: float | None = None) -> Edit:
    return lambda folder, text: write_raster(folder / name, grid, array, nodata=nodata)


def rare(folder: Path, text: dict[str, Any]) -> None:
    labels = codes() % 3
    labels[0, 0] = 3  # one pixel, which a random split keeps for the test
    write_raster(folder / "labels.tif", GRID, labels, nodata=None)
    text["split"] = {"kind": "random", "train": 3, "validation": 0}


FAULTS: dict[str, tuple[Edit, list[str]]] = {
    "missing file": (lambda f, t: (f / "dem.tif").unlink(), ["there is no file", "dem.tif"]),
    "missing reference": (lambda f, t: (f / "s2.tif").unlink(), ["there is no file", "s2.tif"]),
    "no overlap": (fill("dem.tif", values(1), AWAY), ["dem.tif does not overlap the reference grid"]),
    "unknown codes": (
        fill("labels.tif", np.where(codes() == 3, 77, codes()).astype(np.uint8)),
        ["labels.tif hold codes that the legend lacks; pixels of each: 77 (", "`labels: ignored:`"],
    ),
    "empty class": (
        fill("labels.tif", np.where(codes() == 3, 0, codes()).astype(np.uint8)),
        ["the class `class 3` has no labelled pixel"],
    ),
    "no labels at all": (fill("labels.tif", np.zeros((40, 48), np.uint8)), ["no pixel is labelled"]),
    "labels off the grid": (
        fill("labels.tif", codes(), Grid(40, 48, (10.0, 0.0, 500_005.0, 0.0, -10.0, 5_400_000.0), UTM)),
        ["labels.tif are off the reference grid", "`reference: labels`"],
    ),
    "NaN": (with_nan, ["`s2` holds NaN or infinity in 3 pixels", "`nodata: .nan`"]),
    "no CRS": (no_crs, ["s2.tif, the reference, has no CRS", "`crs: EPSG:n`"]),
    "axis order": (mat, ["by the axes HWC, 48 x 40 px", "write `axes: WHC`"]),
    "undeclared nodata": (
        fill("s2.tif", np.where(codes() == 0, np.float32(-3.4028235e38), values(4))),
        [f"`s2` holds -3.40282347e+38 in {(codes() == 0).sum()} pixels", "`nodata: -3.40282347e+38`"],
    ),
    "undeclared netCDF nodata": (
        fill("dem.tif", np.where(codes() == 0, np.float32(9.96921e36), values(1))),
        [f"`dem` holds 9.96920997e+36 in {(codes() == 0).sum()} pixels", "`nodata: 9.96920997e+36`"],
    ),
    "dead band": (
        dead_band,
        ["`s2` has no data in band 3, so that no pixel has data in all bands", "leave that out by `bands`"],
    ),
    "no data anywhere": (
        lambda f, t: t["modalities"]["dem"].update(scale=-1.0, decibel=True),
        ["`dem` has no data anywhere"],
    ),
    "truncated": (
        lambda f, t: (f / "dem.tif").write_bytes((f / "dem.tif").read_bytes()[:-3000]),
        ["dem.tif cannot be"],
    ),
    "no training pixel": (rare, ["the class `class 3` has no training pixel, but 1 labelled ones"]),
    "split": (lambda f, t: t["split"].update(buffer=40), ["the split leaves no labelled pixel for"]),
    "misspelt key": (lambda f, t: t["split"].update(bufer=4), ["unknown key `split.bufer`; did you mean `buffer`?"]),
    "empty scene file": (lambda f, t: t.clear(), ["scene.yaml: "]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_message_and_exit_code_2(fault: str, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    edit, parts = FAULTS[fault]
    edit(tmp_path, text)
    code, _, err = landfuse("check", str(save(tmp_path, text)))
    assert code == 2
    assert "Traceback" not in err
    if fault != "empty scene file":
        assert err.count("fault ") == 1
    for part in parts:
        assert part in err


def test_all_faults_in_one_go(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    with_nan(tmp_path, text)  # in the reference
    (tmp_path / "dem.tif").unlink()
    mat(tmp_path, text)
    write_raster(tmp_path / "away.tif", AWAY, values(1), nodata=None)
    text["modalities"]["away"] = {"path": "away.tif"}
    write_raster(tmp_path / "bare.tif", Grid(40, 48, AWAY.transform), values(1), nodata=None)
    text["modalities"]["bare"] = {"path": "bare.tif"}
    text["legend"].append({"name": "ice", "code": 9})
    expected = [
        "dem.tif", "by the axes HWC", "away.tif does not overlap", "bare.tif has no CRS", "`s2` holds NaN",
        "`ice` has no labelled pixel",
    ]  # fmt: skip
    report = check(save(tmp_path, text))
    messages = [str(fault) for fault in report.faults]
    assert len(messages) == len(expected)
    for part in expected:
        assert sum(part in line for line in messages) == 1
    text["legend"] = text["legend"][:2]
    code, out, err = landfuse("check", str(save(tmp_path, text)))
    assert code == 2
    assert err.count("fault ") == 6
    assert "hold codes that the legend lacks; pixels of each: 3 (" in err
    assert "no fault found" not in out


def test_faults_of_several_tiles_in_one_go(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    for tile, labels in (("a", codes()), ("b", codes() + 100), ("c", codes())):
        for kind, array in (("s2", values(3 if tile == "c" else 4)), ("dem", values(1)), ("labels", labels)):
            write_raster(tmp_path / f"{kind}_{tile}.tif", GRID, array, nodata=None)
    (tmp_path / "dem_a.tif").unlink()
    for m in (*text["modalities"].values(), text["labels"]):
        m["path"] = m["path"].replace(".tif", "_{tile}.tif")
    text["legend"].append({"name": "only in a tile whose labels are wrong", "code": 100})
    report = check(save(tmp_path, text))
    messages = [str(fault) for fault in report.faults]
    assert len(messages) == 3
    for part in ("dem_a.tif", "labels_{tile}.tif hold codes that the legend lacks in 1 of 3 tiles (b)", "s2_c.tif has"):
        assert sum(part in line for line in messages) == 1
    assert report.tiles == 3


def test_wrong_settings_are_reported_one_by_one(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    text["modalities"]["s2"] |= {"zoom": 0, "unit": "m"}
    text["lables"] = {}
    code, _, err = landfuse("check", str(save(tmp_path, text)))
    assert code == 2
    assert err.count("fault ") == 3
    for part in ("`modalities.s2.zoom` is 0", "unknown key `modalities.s2.unit`", "did you mean `labels`?"):
        assert part in err


def test_wrong_keys_do_not_hide_the_faults_of_files(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    text["modalities"]["s2"]["unit"] = "m"
    text["split"] = {"kind": "blocks", "size": "large"}
    text["legend"].append({"name": "ice", "code": 9, "color": "#FFFFFF"})
    (tmp_path / "dem.tif").unlink()
    write_raster(tmp_path / "labels.tif", GRID, np.where(codes() == 3, 77, codes()).astype(np.uint8), nodata=None)
    messages = [fault.found for fault in check(save(tmp_path, text)).faults]
    expected = ["`modalities.s2.unit`", "`legend.3.color`", "`split.size`", "dem.tif", "codes that the legend lacks"]
    assert len(messages) == len(expected)
    for part, message in zip(expected, messages, strict=True):
        assert part in message


def test_a_wrong_legend_does_not_hide_the_faults_of_files(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    text["legend"][1]["code"] = 1
    (tmp_path / "dem.tif").unlink()
    messages = [fault.found for fault in check(save(tmp_path, text)).faults]
    assert len(messages) == 2
    assert "the code 1 more than once" in messages[0]
    assert "dem.tif" in messages[1]


def test_an_unknown_key_does_not_hide_other_faults_of_the_scene_file(tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    text["titel"] = "x"
    text["counts"] = {"labelled": [1]}
    messages = [fault.found for fault in check(save(tmp_path, text)).faults]
    assert len(messages) == 2
    assert "unknown key `titel`; did you mean `title`?" in messages[0]
    assert "`counts.labelled` has 1 numbers for 3 classes" in messages[1]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text["modalities"]["s2"].pop("path"),
        lambda text: text.update(tiles=[]),
        lambda text: text["legend"][0].pop("name"),
        lambda text: text.pop("name"),
        lambda text: text.update(modalities=[]),
    ],
)
def test_what_the_rest_depends_on_is_the_only_fault(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    text = write_scene(tmp_path)
    edit(text)
    report = check(save(tmp_path, text))
    assert len(report.faults) == 1
    assert report.file is None


def test_tables(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    text["legend"][0]["name"] = "[bare] soil"
    code, out, err = landfuse("check", str(save(tmp_path, text)), "--views", "3,9/3")
    assert code == 0
    assert err.startswith("next: write a recipe")
    for part in ("s2", "float32", UTM, "[reflectance]", "[bare] soil", "validation", "leak report", "no fault found"):
        assert part in out
    lines = [line.split() for line in out.splitlines()]
    assert any(line[1:2] == ["3"] and line[3:4] == ["1"] and line[5:6] == ["0%"] for line in lines)
    assert any(line[1:2] == ["9"] and line[3:4] == ["3"] for line in lines)


def test_lines_fit_80_columns(tmp_path: Path, landfuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_scene(tmp_path)
    text["legend"][0]["name"] = "bare soil and rock with very little vegetation or none at all"
    text["modalities"]["dem"]["units"] = "metres above the ellipsoid of the reference frame"
    text["modalities"]["a_modality_of_a_long_name"] = {"path": "hsi.tif"}
    array = values(4) * -1e-30
    array[1] = 7
    write_raster(tmp_path / "hsi.tif", GRID, array, nodata=None)
    text["legend"].append({"name": "ice", "code": 9})
    monkeypatch.chdir(tmp_path)
    save(tmp_path, text)
    monkeypatch.delenv("COLUMNS")
    code, out, err = landfuse("check", "scene.yaml")
    assert code == 2
    assert max(map(len, (out + err).splitlines())) <= 80
    for word in ("float32", UTM, "-9e-30", "100%", "the class `ice` has no labelled pixel", "no model can learn"):
        assert word in " ".join((out + err).replace("│", " ").split())
    assert "…" not in out


@pytest.mark.parametrize("wrong", [False, True])
def test_json_and_quiet(wrong: bool, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    text = write_scene(tmp_path)
    flat = values(4)
    flat[2] = 7
    write_raster(tmp_path / "s2.tif", GRID, flat, nodata=None)
    if wrong:
        (tmp_path / "dem.tif").unlink()
    path = save(tmp_path, text)
    code, out, err = landfuse("check", path, "--json", "--views", "1,9/3")
    assert (code, err) == (2 if wrong else 0, "")
    found, report = json.loads(out), check(path, [(1, 1), (9, 3)])
    assert found["tiles"] == 1
    assert list(found["modalities"]) == ["s2"] if wrong else ["s2", "dem"]
    s2 = found["modalities"]["s2"]
    assert (s2["pixels"], s2["pixels_without_data"], s2["min"][2], s2["max"][2]) == (1920, 0, 7, 7)
    assert [kind["name"] for kind in found["classes"]] == ["class 1", "class 2", "class 3"]
    for index, kind in enumerate(found["classes"]):
        assert kind["pixels"] == {role: count[index] for role, count in report.counts.items()}
        assert kind["blocks"] == {role: count[index] for role, count in report.groups.items()}
    assert [(leak["view"], leak["core"]) for leak in found["leaks"]] == [(1, 1), (9, 3)]
    assert [row["buffer"] for row in found["leaks_by_buffer"]][:4] == [0, 1, 2, 3]
    assert found["notes"] == report.notes
    assert ["band 3" in note for note in found["notes"]].count(True) == 1
    assert [fault["found"] for fault in found["faults"]] == [fault.found for fault in report.faults]
    assert len(found["faults"]) == wrong
    code, out, err = landfuse("check", path, "--quiet")
    assert code == 2 * wrong
    assert out.splitlines() == [f"note: {note}" for note in report.notes]
    assert err.count("fault ") == wrong


def test_a_file_that_is_no_scene_as_json(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    code, out, _ = landfuse("check", tmp_path / "nowhere.yaml", "--json")
    found = json.loads(out)
    assert (code, found["scene"], found["modalities"]) == (2, None, {})
    assert "there is no file" in found["faults"][0]["found"]


@pytest.mark.parametrize("views", ["x", "9/", "0", "3/5", "9;7"])
def test_views_that_are_none(views: str, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    code, _, err = landfuse("check", str(save(tmp_path, write_scene(tmp_path))), "--views", views)
    assert code == 2
    assert "--views" in err
    assert "Traceback" not in err


def test_no_scene(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    code, _, err = landfuse("check", str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no file" in err


# Real data ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANDFUSE_SHARED", str(shared))
    return REPO / "benchmarks"


def test_terramind(real: Path) -> None:
    report = check(real / "terramind")
    assert not report.faults
    assert report.tiles == 3
    assert {name: (m.bands, m.dtype, m.pixel) for name, m in report.modalities.items()} == {
        "s2": (12, "int16", 10.0), "s1": (2, "float64", 10.0), "dem": (1, "int16", 10.0),
    }  # fmt: skip
    for m in report.modalities.values():
        assert sorted(m.crs) == ["EPSG:32632", "EPSG:32718", "EPSG:32722"]
        assert (m.pixels, m.missing, m.warped) == (3 * 224 * 224, 0, 0)
    everything = np.sum(list(report.counts.values()), axis=0)
    assert everything.tolist() == [29_118, 30_295, 65_595, 12_539, 3_316, 9_575]
    assert all(report.counts[role].sum() > 10_000 for role in ("train", "validation", "test"))
    assert [report.leaks[view, 1] for view in (1, 7, 11, 15)] == [0, 0, 0, 0]  # the buffer is 16
    assert report.leaks[64, 64] > 0.3


def test_idtrees_labels(real: Path) -> None:
    file = read_scene_file(real / "idtrees")
    scenes = file.scenes()
    assert len(scenes) == len(file.tiles) == 69
    assert {scene.grid.crs for scene in scenes} == {"EPSG:32617"}
    assert {(scene.grid.height, scene.grid.width) for scene in scenes} == {(20, 20)}
    assert {name: (m.raster.bands, m.zoom) for name, m in scenes[0].modalities.items()} == {
        "hsi": (369, 1), "chm": (1, 1), "rgb": (3, 10),
    }  # fmt: skip
    roles = file.roles(scenes)
    counts = np.zeros((4, len(file.legend)), int)
    for scene, role in zip(scenes, roles, strict=True):
        known = scene.labels != 255
        assert len(set(role[known])) <= 1  # whole plots
        np.add.at(counts, (role[known], scene.labels[known]), 1)
    assert counts.sum(axis=0).tolist() == [4098, 2546, 2240, 1624, 875, 868, 747, 507, 191, 175]
    assert (counts.sum(axis=0) >= 150).all()
    assert not counts[0].any()
    assert counts[1:].sum(axis=1).min() > 1000
    rgb, chm = (scenes[0].read(name, Window(3, 4, 5, 6)) for name in ("rgb", "chm"))
    assert (rgb.shape, chm.shape) == ((3, 50, 60), (1, 5, 6))
