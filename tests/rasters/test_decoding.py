"""Rasters whose values run from 0 to 1."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import yaml

from landfuse.rasters.decoding import StretchedRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.check import check
from landfuse.scenes.scene_file import open_scene


def test_each_band_runs_from_0_to_1_over_the_whole_tile(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(200, 50, (3, 30, 40)).astype("float32")
    image[0, 5, 5] = image[1, 0, 0] = np.nan
    image[2] = 7
    write_raster(tmp_path / "dsm.tif", Grid(30, 40, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), "EPSG:32632"), image)
    text = {"name": "t", "root": ".", "modalities": {"dsm": {"path": "dsm.tif", "units": "m", "stretch": True}}}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    modality = open_scene(tmp_path / "scene.yaml").modalities["dsm"]
    assert modality.info.units == "0 to 1 in each tile"
    low, high = (end(image.astype(float), axis=(1, 2), keepdims=True) for end in (np.nanmin, np.nanmax))
    truth = (image - low) / np.where(high > low, high - low, 1)
    window = Window(3, 4, 10, 20)
    for raster in (modality.raster, pickle.loads(pickle.dumps(modality.raster))):
        assert "ends" in vars(raster), "a worker does not read the whole raster again"
        np.testing.assert_allclose(raster.read(window), truth[:, 3:13, 4:24], atol=1e-6)
    assert (modality.raster.read(window)[2] == 0).all()
    assert not any("extreme" in note for note in check(tmp_path / "scene.yaml", []).notes)
    other = modality.raster.with_bands([1, 0])
    assert isinstance(other, StretchedRaster)
    np.testing.assert_allclose(other.read(window), truth[[1, 0], 3:13, 4:24], atol=1e-6)


def test_a_nodata_that_is_not_declared_is_noted_all_the_same(tmp_path: Path) -> None:
    image = np.full((1, 30, 40), 300, "float32")
    image[0, 3, 3], image[0, 4, 4] = -9999, 310
    write_raster(tmp_path / "dsm.tif", Grid(30, 40, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), "EPSG:32632"), image, nodata=None)
    text = {"name": "t", "root": ".", "modalities": {"dsm": {"path": "dsm.tif", "stretch": True}}}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    assert any("holds -9999 as an extreme" in note for note in check(tmp_path / "scene.yaml", []).notes)
