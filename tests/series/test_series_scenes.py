"""Scene files with dates: what is read of them, whatever the block, and what is said of dates that do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

import landfuse as lf
from landfuse.errors import LandfuseError
from landfuse.figures.overview import shown_bands
from landfuse.legend import UNLABELLED as U
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scene, open_scenes, read_scene_file
from landfuse.series import series_raster

UTM = "EPSG:32632"
GRID = Grid(24, 30, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), UTM)
DATES = ["20230405", "20230420", "20230425", "20230511", "20230702", "20230709"]
MONTHS = [[0, 1, 2], [3], [], [4, 5]]
F = np.float32


def date_values(number: int, bands: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(number).uniform(1, 9, (bands, 24, 30)).astype(F)


def codes(number: int) -> NDArray[np.uint8]:
    """Like Sentinel-2's SCL: 4 and 5 are clear, 9 is cloud, 0 is no data."""
    return np.random.default_rng(100 + number).choice([4, 5, 9, 0], (24, 30)).astype(np.uint8)


def clear_values() -> NDArray[np.float32]:
    """(T, C, H, W), NaN where it is not clear."""
    return np.stack([np.where(codes(n) // 2 == 2, date_values(n), F(np.nan)) for n in range(len(DATES))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six dates of three bands with cloud masks. Not to be written to."""
    folder = tmp_path_factory.mktemp("dates")
    for number, day in enumerate(DATES):
        write_raster(folder / "s2" / f"{day}.tif", GRID, date_values(number), nodata=None, names=["B04", "B08", "B11"])
        write_raster(folder / "scl" / f"scl_{day}T101031.tif", GRID, codes(number), nodata=0)
    return folder


MASK = {"path": "scl/scl_{date}.tif", "clear": [4, 5]}


def scene(folder: Path, dates: dict[str, Any], text: Path | None = None, **keys: Any) -> Scene:
    """The scene of the files in a folder, the scene file in another one."""
    modality = {"path": "s2/{date}.tif", "dates": dates, **keys}
    path = (text or folder) / "scene.yaml"
    path.write_text(yaml.safe_dump({"name": "place", "root": str(folder), "modalities": {"s2": modality}}))
    return open_scene(path)


def refused(*args: Any, **keys: Any) -> str:
    with pytest.raises(LandfuseError) as error:
        scene(*args, **keys)
    return str(error.value)


def test_dates_by_file_name_are_bands_with_gaps_where_it_is_not_clear(folder: Path, tmp_path: Path) -> None:
    found = scene(folder, {"mask": MASK}, tmp_path)
    info = found.modalities["s2"].info
    assert info.steps == ("2023-04-05", "2023-04-20", "2023-04-25", "2023-05-11", "2023-07-02", "2023-07-09")
    assert (info.bands, info.per_step, info.names[3:5]) == (18, 3, ("2023-04-20 B04", "2023-04-20 B08"))
    np.testing.assert_array_equal(found.read("s2", GRID.window), clear_values().reshape(18, 24, 30))


@pytest.mark.filterwarnings("ignore:All-NaN|Mean of empty")
@pytest.mark.parametrize("how", ["median", "mean", "first clear", {"maximum": "B08"}, {"maximum": 2}])
def test_months_are_composites_of_the_clear_dates(folder: Path, tmp_path: Path, how: Any) -> None:
    found = scene(folder, {"mask": MASK, "every": "1 month", "composite": how}, tmp_path)
    assert found.modalities["s2"].info.steps == ("2023-04", "2023-05", "2023-06", "2023-07")
    values = clear_values()
    expected = np.full((4, 3, 24, 30), np.nan)
    for month, dates in enumerate(MONTHS):
        for row, col in np.ndindex(24, 30) if dates else ():
            clear = values[dates, :, row, col].astype(np.float64)
            clear = clear[np.isfinite(clear[:, 0])]
            if not len(clear):
                continue
            one = {"median": np.median, "mean": np.mean}.get(how) if isinstance(how, str) else None
            place = 0 if how == "first clear" else clear[:, 1].argmax()
            expected[month, :, row, col] = one(clear, axis=0) if one else clear[place]
    np.testing.assert_allclose(found.read("s2", GRID.window).reshape(4, 3, 24, 30), expected, rtol=1e-6)


EVERYTHING = {
    "mask": MASK,
    "every": "1 month",
    "fill": "linear",
    "features": {"percentiles": [10, 50, 90], "amplitude": True, "harmonics": 1},
}


@pytest.mark.parametrize("how", ["median", "mean", "first clear", {"maximum": "B08"}])
def test_values_do_not_depend_on_the_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    raster = scene(folder, {**EVERYTHING, "composite": how}, tmp_path).modalities["s2"].raster
    whole = raster.read(GRID.window)
    assert whole.shape[0] == raster.bands == 3 * (4 + 3 + 1 + 3)
    assert np.isfinite(whole).mean() > 0.5
    other = pickle.loads(pickle.dumps(raster))
    for held, side in ((2**25, 7), (2**8, 30), (2**10, 13)):
        monkeypatch.setattr(series_raster, "HELD", held)
        monkeypatch.setattr(series_raster, "_CACHED", held)
        monkeypatch.setattr(series_raster, "_STRIP", held // 2)
        for window in blocks(24, 30, side):
            np.testing.assert_array_equal(other.read(window), whole[:, *window.within(GRID.window)])


def test_gaps_are_filled_and_a_pixel_without_any_date_is_no_data(folder: Path, tmp_path: Path) -> None:
    found = scene(folder, {"mask": MASK, "every": "1 month", "fill": "nearest"}, tmp_path)
    values = found.read("s2", GRID.window).reshape(4, 3, 24, 30)
    seen = np.isfinite(clear_values()).any(axis=(0, 1))
    assert 0 < (~seen).sum() < 50
    np.testing.assert_array_equal(np.isfinite(values).all(axis=(0, 1)), seen)
    assert np.isnan(values[:, :, ~seen]).all()


@pytest.mark.parametrize(
    ("mask", "clear"),
    [
        ({"clear": [4, 5]}, lambda n: n // 2 == 2),
        ({"bits": [0, 3]}, lambda n: (n & 0b1001) == 0),
        ({"below": 5}, lambda n: n < 5),
    ],
)
def test_codes_bits_and_thresholds_say_what_is_clear(folder: Path, tmp_path: Path, mask: Any, clear: Any) -> None:
    found = scene(folder, {"mask": {"path": "scl/scl_{date}.tif", **mask}}, tmp_path)
    known = np.isfinite(found.read("s2", GRID.window).reshape(6, 3, 24, 30)[:, 0])
    np.testing.assert_array_equal(known, [clear(codes(n)) & (codes(n) != 0) for n in range(6)])


def test_a_band_of_the_same_file_is_a_mask_and_no_value(tmp_path: Path) -> None:
    for number, day in enumerate(DATES):
        both = np.concatenate([date_values(number), codes(number)[None]])
        write_raster(tmp_path / "s2" / f"{day}.tif", GRID, both, nodata=0.0)
    found = scene(tmp_path, {"mask": {"band": 4, "clear": [4, 5]}})
    np.testing.assert_array_equal(found.read("s2", GRID.window), clear_values().reshape(18, 24, 30))


@pytest.mark.parametrize("names", [None, "{day} {band}", "{band}_{day}"])
def test_dates_of_the_bands_of_one_file(tmp_path: Path, names: str | None) -> None:
    every = [(day, band) for day in DATES for band in ("B04", "B08", "B11")]
    described = [names.format(day=day, band=band) for day, band in every] if names else None
    values = np.concatenate([date_values(n) for n in range(6)])
    write_raster(tmp_path / "all.tif", GRID, values, nodata=None, names=described or ())
    found = scene(tmp_path, {"days": "bands" if names else DATES}, path="all.tif")
    np.testing.assert_array_equal(found.read("s2", GRID.window), values)
    assert found.modalities["s2"].info.names[4] == ("2023-04-20 B08" if names else "2023-04-20 2")


def test_dates_from_a_list(folder: Path, tmp_path: Path) -> None:
    values = clear_values().reshape(6, 3, 24, 30)
    some = scene(folder, {"mask": MASK, "days": DATES[1:3]}, tmp_path)
    assert some.modalities["s2"].info.steps == ("2023-04-20", "2023-04-25")
    mine = {"mask": {**MASK, "path": "scl/*.tif"}, "days": [f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in DATES]}
    listed = scene(folder, mine, tmp_path, path="s2/*.tif")
    np.testing.assert_array_equal(listed.read("s2", GRID.window).reshape(values.shape), values)
    between = scene(folder, {"between": "2023-04-10/2023-05"}, tmp_path)
    assert between.modalities["s2"].info.steps == ("2023-04-20", "2023-04-25", "2023-05-11")


def test_tiles_with_dates_of_their_own_have_the_same_periods(tmp_path: Path) -> None:
    grids = {"T1": GRID, "T1_2": Grid(24, 30, (10.0, 0.0, 500_300.0, 0.0, -10.0, 5_400_000.0), UTM)}
    for tile, days in (("T1", DATES[:2]), ("T1_2", DATES[1:4])):
        for day in days:
            write_raster(tmp_path / f"{tile}_{day}.tif", grids[tile], date_values(DATES.index(day)), nodata=None)
    text = {"name": "region", "modalities": {"s2": {"path": "{tile}_{date}.tif", "dates": {}}}}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    file = read_scene_file(tmp_path / "scene.yaml")
    assert {match["tile"] for match in file.fitting("{tile}{date}.tif")} == {"T1_", "T1_2_"}
    first, second = file.scenes()
    assert (first.name, second.name) == ("T1", "T1_2")
    known = first.modalities["s2"].info
    assert known.steps == second.modalities["s2"].info.steps == ("2023-04-05", "2023-04-20", "2023-04-25", "2023-05-11")
    values = first.read("s2", GRID.window).reshape(4, 3, 24, 30)
    np.testing.assert_array_equal(values[:2], [date_values(0), date_values(1)])
    assert np.isnan(values[2:]).all()
    assert not np.isnan(second.read("s2", GRID.window)[3:]).any()
    assert {Path(name).name for name in read_scene_file(tmp_path / "scene.yaml").inputs()} == {
        "scene.yaml", *(path.name for path in tmp_path.glob("*.tif")),
    }  # fmt: skip


def test_dates_may_be_folders_and_bands_files(tmp_path: Path) -> None:
    coarse = Grid(12, 15, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM)
    for day in DATES[:2]:
        write_raster(tmp_path / day / f"T1_7_{day}_10_B04.tif", coarse, date_values(0, 1)[:, :12, :15], nodata=None)
        write_raster(tmp_path / day / f"T1_7_{day}_10_B08.tif", GRID, date_values(1, 1), nodata=None)
    bands = ["{date}/{tile}_{date}_10_B04.tif", "{date}/{tile}_{date}_*_B08.tif"]
    for path in ("{date}/{tile}_{date}_*_B*.tif", "{date}/{tile}_{date}**B*.tif", bands):
        text = {"name": "region", "modalities": {"s2": {"path": path, "dates": {}}}}
        (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
        [found] = open_scenes(tmp_path / "scene.yaml")
        info = found.modalities["s2"].info
        assert (found.name, found.grid, info.steps) == ("T1_7", GRID, ("2023-04-05", "2023-04-20"))
        assert info.names == tuple(f"{step} {band}" for step in info.steps for band in ("B04", "B08"))
        np.testing.assert_array_equal(found.read("s2", GRID.window)[[1, 3]], date_values(1, 1).repeat(2, axis=0))


def test_a_date_on_another_grid_is_aligned_and_said(tmp_path: Path) -> None:
    for number, day in enumerate(DATES[:3]):
        grid = Grid(12, 15, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM) if not number else GRID
        write_raster(
            tmp_path / "s2" / f"{day}.tif", grid, np.full((2, grid.height, grid.width), number, F), nodata=None
        )
    found = scene(tmp_path, {})
    assert found.grid == GRID  # of most dates
    part: Any = found.modalities["s2"]
    assert part.raster.notes == ["dates on another grid than most, to which they are brought: 2023-04-05"]
    np.testing.assert_array_equal(found.read("s2", GRID.window)[:, 5, 5], [0, 0, 1, 1, 2, 2])


def test_a_coarser_mask_covers_the_pixels_below_it_whatever_the_block(folder: Path, tmp_path: Path) -> None:
    coarse = Grid(12, 15, (20.0, 0.0, 500_000.0, 0.0, -20.0, 5_400_000.0), UTM)
    for number, day in enumerate(DATES):
        write_raster(tmp_path / f"{day}.tif", coarse, codes(number)[:12, :15], nodata=0)
    found = scene(folder, {"mask": {**MASK, "path": str(tmp_path / "{date}.tif")}}, tmp_path)
    whole = found.read("s2", GRID.window)
    clear = [(codes(n)[:12, :15] // 2 == 2).repeat(2, axis=0).repeat(2, axis=1) for n in range(6)]
    np.testing.assert_array_equal(np.isfinite(whole.reshape(6, 3, 24, 30)).all(axis=1), clear)
    for window in blocks(24, 30, 7):
        np.testing.assert_array_equal(found.read("s2", window), whole[:, *window.within(GRID.window)])


def test_bands_of_each_date_are_put_in_one_order_and_what_is_missing_is_named(tmp_path: Path) -> None:
    orders = [["B04", "B08"], ["B08", "B04"], ["B04", "B08"]]
    for number, (day, names) in enumerate(zip(DATES, orders, strict=False)):
        write_raster(tmp_path / "s2" / f"{day}.tif", GRID, date_values(number, 2), nodata=None, names=names)
    found = scene(tmp_path, {}).read("s2", Window(3, 4, 1, 1))[:, 0, 0]
    one, two = (date_values(number, 2)[:, 3, 4] for number in (0, 1))
    np.testing.assert_array_equal(found[:4], [*one, *two[::-1]])
    write_raster(tmp_path / "s2" / "20230501.tif", GRID, date_values(9, 1), nodata=None, names=["B08"])
    assert "at 2023-05-01 has 1 bands: B08\n  expected: the 2 bands that it has at 2023-04-05: B04, B08" in refused(
        tmp_path, {}
    )


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        ({"between": "2025"}, "none of its 6 dates"),
        ({"mask": {"path": "scl/scl_{date}T101032.tif", "clear": [4]}}, "no file fits"),
        ({"mask": {"clear": [4]}, "days": DATES, "every": "1 fortnight"}, "write a number of days"),
        ({"every": ["2023-05", "2023-04"]}, "in order of time"),
        ({"between": "2023-31"}, "'2023-31' is no date"),
        ({"mask": {"path": "scl/scl_{date}.tif"}}, "one of `clear`, `bits` and `below`"),
        ({"composite": "medium"}, "composite"),
        ({"days": ["20230405", "2023-04-05"]}, "lists a date twice"),
        ({"days": ["20230405", "20240405"]}, "no file fits s2/{date}.tif at 2024-04-05"),
        ({"features": {"series": False}}, "no feature is left"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder: Path, tmp_path: Path, dates: Any, message: str) -> None:
    assert message in refused(folder, dates, tmp_path)


def test_files_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    assert "add `dates: {}`" in refused(folder, None, tmp_path)  # type: ignore[arg-type]
    assert "no file fits" in refused(folder, {}, tmp_path, path="s3/{date}.tif")
    assert "the dates of s2/20230405.tif are not known" in refused(folder, {}, tmp_path, path="s2/20230405.tif")
    write_raster(tmp_path / "s2" / "20230405.tif", GRID, date_values(0), nodata=None)
    write_raster(tmp_path / "s2" / "2023-04-05.tif", GRID, date_values(0), nodata=None)
    assert "the date 2023-04-05 comes twice, as 2023-04-05 and 20230405" in refused(tmp_path, {})
    (tmp_path / "s2" / "2023-04-05.tif").rename(tmp_path / "s2" / "20230431.tif")
    assert "20230431.tif: '20230431' is no date" in refused(tmp_path, {})
    (tmp_path / "s2" / "20230431.tif").rename(tmp_path / "s2" / "2023-4-6.tif")
    assert "'2023-4-6' is no date" in refused(tmp_path, {})


def trainable(folder: Path, dates: dict[str, Any], **keys: Any) -> Path:
    """A scene file with labels, and a recipe of a forest, of six dates in a folder; returns the recipe."""
    labels = (np.indices((24, 30)) // 6).sum(axis=0) % 2 + 1
    write_raster(folder / "labels.tif", GRID, labels.astype(np.uint8))
    text = {
        "name": "place",
        "modalities": {"s2": {"path": "s2/{date}.tif", "dates": dates, **keys}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": "water"}, {"name": "wood"}],
        "split": {"kind": "blocks", "size": 6},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    (folder / "recipe.yaml").write_text("scene: scene.yaml\nmodel: {name: forest, trees: 3}\n")
    return folder / "recipe.yaml"


def test_a_model_learns_maps_and_refuses_other_periods(tmp_path: Path) -> None:
    for number, day in enumerate(DATES):
        write_raster(tmp_path / "s2" / f"{day}.tif", GRID, clear_values()[number], nodata=float("nan"))
    dates = {"every": "1 month", "between": "2023-04/2023-07"}  # with gaps
    classifier = lf.train(trainable(tmp_path, dates), f"run={tmp_path / 'run'}", progress=False)
    scene_file = tmp_path / "scene.yaml"
    for side in (7, 64):
        lf.predict(classifier, open_scene(scene_file), tmp_path / f"{side}.tif", block=side)
    whole, cut = (GdalRaster(str(tmp_path / f"{side}.tif")).read_codes() for side in (64, 7))
    np.testing.assert_array_equal(whole, cut)
    np.testing.assert_array_equal(whole != U, np.isfinite(clear_values()).any(axis=(0, 1)))
    for path in (tmp_path / "s2").iterdir():
        path.rename(path.with_name(path.name.replace("2023", "2024")))  # the same months of another year
    for months, message in (("2024-04/2024-07", ""), ("2024-05/2024-08", "2024-05 in place of 2023-04")):
        scene_file.write_text(yaml.safe_dump({**yaml.safe_load(scene_file.read_text()), "split": None}))
        trainable(tmp_path, {**dates, "between": months})
        if not message:
            lf.predict(classifier, open_scene(scene_file), tmp_path / "next.tif")
            np.testing.assert_array_equal(GdalRaster(str(tmp_path / "next.tif")).read_codes(), whole)
            continue
        with pytest.raises(LandfuseError, match=message):
            lf.predict(classifier, open_scene(scene_file), tmp_path / "other.tif")


def test_check_names_periods_without_a_clear_date_and_shows_the_one_in_the_middle(folder: Path, tmp_path: Path) -> None:
    found = scene(folder, {"mask": MASK, "every": "1 month", "fill": "linear"}, tmp_path)
    report = lf.check(tmp_path / "scene.yaml")
    assert report.faults == []
    assert "`s2` is nowhere clear in 2023-06, in all of the tile `place`" in report.notes
    assert report.modalities["s2"].missing == (~np.isfinite(clear_values()).any(axis=(0, 1))).sum()
    assert shown_bands(found, "s2") == ((6, 7, 8), "2023-06: bands 1, 2 and 3 as red, green and blue")
