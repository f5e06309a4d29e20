"""Scenes at a glance: shading against the closed form, thinning against plain loops, and which bands are shown."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from landfuse.errors import SettingsError
from landfuse.figures.overview import hillshade, overview, shown_bands, slopes, thinned, thinned_classes, thinning
from landfuse.legend import LandClass, Legend
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import GeotiffWriter, write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate, simulate_flat

UTM = "EPSG:32632"


def scene_of(folder: Path, values: np.ndarray, name: str = "it", units: str = "", **options: object) -> Scene:
    """A scene of one modality on disk, of 2 m pixels."""
    grid = Grid(values.shape[1], values.shape[2], (2.0, 0.0, 5e5, 0.0, -2.0, 5e6), UTM)
    path = folder / f"{name}.tif"
    write_raster(path, grid, values, nodata=float("nan"), **options)  # type: ignore[arg-type]
    return Scene(
        "s", grid, {name: SceneModality(GdalRaster(str(path)), 1, units)}, Legend((LandClass("a", 1, "#112233"),))
    )


def test_a_plane_is_lit_as_the_cosine_of_its_angle_to_the_light() -> None:
    rows, cols = np.mgrid[:7, :9].astype(float)
    right, down = 0.3, -0.5  # per metre
    plane = right * cols * 2 + down * rows * 3
    across, along = slopes(plane, (2, 3))
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(across[inner], right)
    np.testing.assert_allclose(along[inner], down)
    normal = np.array([-right, down, 1.0]) / math.sqrt(1 + right**2 + down**2)  # east, north, up; rows run south
    turn, up = math.radians(200), math.radians(30)
    light = np.array([math.cos(up) * math.sin(turn), math.cos(up) * math.cos(turn), math.sin(up)])
    shade = hillshade(plane, (2, 3), azimuth=200, altitude=30)
    np.testing.assert_allclose(shade[inner], max(0, float(normal @ light)))


def test_the_north_west_side_of_a_hill_is_the_bright_one() -> None:
    rows, cols = np.mgrid[:41, :41].astype(float)
    hill = 20 * np.exp(-((rows - 20) ** 2 + (cols - 20) ** 2) / 100)
    shade = hillshade(hill, (1, 1))
    assert shade[12, 12] > 0.95 > shade[20, 20] > shade[28, 28]
    assert shade[20, 20] == pytest.approx(math.sin(math.radians(45)))
    hill[5, 5] = np.nan
    assert np.isnan(hillshade(hill, (1, 1))[5, 5])
    assert np.isfinite(hillshade(hill, (1, 1))[30, 30])


def test_thinned_is_the_mean_of_squares_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(4, 37, 53)).astype(np.float32)
    values[:, 3:10, 4:9] = np.nan
    scene = scene_of(tmp_path, values)
    wanted = np.full((2, 13, 18), np.nan)
    for band, source in enumerate((2, 0)):
        for row in range(13):
            for col in range(18):
                part = values[source, row * 3 : row * 3 + 3, col * 3 : col * 3 + 3]
                if np.isfinite(part).any():
                    wanted[band, row, col] = np.nanmean(part.astype(np.float64))
    assert np.isnan(wanted).any()
    np.testing.assert_allclose(thinned(scene, "it", 3, (2, 0)), wanted, rtol=1e-5)
    monkeypatch.setattr("landfuse.figures.overview._BLOCK", 7)
    np.testing.assert_allclose(thinned(scene, "it", 3, (2, 0)), wanted, rtol=1e-5)


def test_a_finer_modality_is_thinned_by_its_own_pixels() -> None:
    scene = simulate_flat(40, 60, {"a": 3})
    part = scene.modalities["a"]
    coarse = Scene("c", Grid(20, 30), {"a": SceneModality(part.raster, 2)}, scene.legend)
    np.testing.assert_allclose(thinned(coarse, "a", 1, (1,)), scene.read("a", scene.grid.window)[1:2])
    assert thinned(coarse, "a", 4, (0, 1)).shape == (2, 10, 15)


def test_only_the_wanted_bands_of_a_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(tmp_path, np.zeros((30, 8, 8), np.float32))
    read = []
    plain = GdalRaster.read
    monkeypatch.setattr(GdalRaster, "read", lambda self, window: read.append(self.bands) or plain(self, window))
    overview(scene, "it")
    assert read == [3]


def test_classes_are_thinned_from_the_middle_of_each_square() -> None:
    classes = np.arange(35, dtype=np.uint8).reshape(5, 7)
    np.testing.assert_array_equal(thinned_classes(classes, 1), classes)
    np.testing.assert_array_equal(thinned_classes(classes, 3), [[8, 11, 13], [29, 32, 34]])
    assert (thinning(100, 20, 100), thinning(101, 20, 100), thinning(3, 5, 1)) == (1, 2, 5)


@pytest.mark.parametrize(
    ("bands", "name", "units", "chosen", "word"),
    [
        (12, "s2", "reflectance", (3, 2, 1), "Sentinel-2"),
        (10, "Sentinel2", "", (2, 1, 0), "Sentinel-2"),
        (3, "rgb", "", (0, 1, 2), "red"),
        (4, "aerial", "", (0, 1, 2), "bands 1, 2 and 3"),
        (48, "hsi", "", (32, 16, 4), "false colour"),
        (2, "sar", "dB", (0, 1), "dB"),
        (1, "vv", "dB", (0,), "dB"),
        (1, "dem", "m", (0,), "north-west"),
        (1, "ndvi", "", (0,), "grey"),
    ],
)
def test_a_modality_is_shown_as_people_know_it(
    bands: int, name: str, units: str, chosen: tuple[int, ...], word: str
) -> None:
    flat = simulate_flat(8, 8, {name: bands})
    scene = Scene("s", flat.grid, {name: SceneModality(flat.modalities[name].raster, 1, units)}, flat.legend)
    found, how = shown_bands(scene, name)
    assert found == chosen
    assert word in how
    assert overview(scene, name).image.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("blue", "green", "red", "nir", "swir"), (2, 1, 0)),
        (("B02", "B03", "B04", "B08", "B11"), (2, 1, 0)),
        (("450 nm", "555.5 nm", "665nm", "842 nm", "1610 nm"), (2, 1, 0)),
        (("800 nm", "900 nm", "1000 nm", "1100 nm", "1200 nm"), (3, 1, 0)),  # nothing visible: spread over them
    ],
)
def test_bands_are_found_by_their_names(tmp_path: Path, names: tuple[str, ...], chosen: tuple[int, ...]) -> None:
    grid = Grid(4, 4, (2.0, 0.0, 5e5, 0.0, -2.0, 5e6), UTM)
    with GeotiffWriter(tmp_path / "x.tif", grid, bands=5, dtype="float32", nodata=None, names=names) as writer:
        writer.write(grid.window, np.zeros((5, 4, 4), np.float32))
    scene = Scene(
        "s", grid, {"x": SceneModality(GdalRaster(str(tmp_path / "x.tif")))}, Legend((LandClass("a", 1, "#112233"),))
    )
    assert shown_bands(scene, "x")[0] == chosen


def test_colours_are_stretched_and_gaps_stay_gaps(tmp_path: Path) -> None:
    values = np.stack([np.linspace(0, 1, 10_000).reshape(100, 100) * scale for scale in (1, 50, 1000)])
    values[:, 40:50, 40:50] = np.nan
    seen = overview(scene_of(tmp_path, values.astype(np.float32), "rgb"), "rgb")
    np.testing.assert_array_equal(seen.image[..., 0], seen.image[..., 2])  # each band for itself
    assert seen.known.sum() == 9_900
    assert (seen.on_white[40:50, 40:50] == 255).all()
    low, high = np.nanpercentile(values[0], (2, 98))
    shades = np.rint(np.clip((values[0] - low) / (high - low), 0, 1) * 255)
    np.testing.assert_allclose(seen.image[..., 0][seen.known], shades[seen.known], atol=1)


def test_the_third_colour_of_radar_is_the_difference_of_its_bands() -> None:
    scene = simulate(64, 64, 1, hyperspectral_bands=3)
    seen = overview(scene, "sar")
    values = scene.read("sar", scene.grid.window)
    difference = values[0] - values[1]
    low, high = np.percentile(difference, (2, 98))
    wanted = np.rint(np.clip((difference - low) / (high - low), 0, 1) * 255)
    np.testing.assert_allclose(seen.image[..., 2], wanted, atol=1)


@pytest.mark.parametrize("bands", [(0, 1), (0, 1, 9), (-1,), ()])
def test_bands_that_are_not_there_are_refused(bands: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="bands 1 to 3"):
        overview(simulate_flat(8, 8, {"a": 3}), "a", bands=bands)
    assert "band 2 in grey" in overview(simulate_flat(8, 8, {"a": 3}), "a", bands=(1,)).how


def test_an_empty_modality_and_a_flat_one_are_shown(tmp_path: Path) -> None:
    empty = overview(scene_of(tmp_path, np.full((1, 6, 6), np.nan, np.float32), "empty", "m"), "empty")
    assert not empty.known.any()
    assert (empty.on_white == 255).all()
    flat = overview(scene_of(tmp_path, np.full((1, 6, 6), 7, np.float32), "flat", "m"), "flat")
    assert flat.known.all()
    assert len(np.unique(flat.image.reshape(-1, 3), axis=0)) == 1
