"""BDGF in mapping: a core of several pixels and the layer of disagreement, against a loop over windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import Engine
from landfuse.mapping.predict import predict
from landfuse.mapping.settings import MapOptions
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file
from landfuse.views.mapped_pixels import fit_pixel_maps
from landfuse.views.settings import PixelMapSettings

SETTINGS = {"view": 7, "core": 3, "width": 16, "embedding": 8, "states": 2}


@pytest.fixture
def scene(place: Path) -> Scene:
    """A part of the small scene, with the corner where a modality has no data."""
    (whole,) = read_scene_file(place).scenes()
    return dataclasses.replace(whole, grid=whole.grid.part(Window(0, 0, 40, 46)))


def classifier(scene: Scene, stride: int) -> Bundle:
    torch.manual_seed(0)
    everywhere = [np.ones((scene.grid.height, scene.grid.width), dtype=bool)]
    maps = fit_pixel_maps([scene], everywhere, {name: PixelMapSettings() for name in scene.modalities})
    inputs = {name: scene.modalities[name].info for name in maps}
    return Bundle(ModelSpec("bdgf", SETTINGS), maps, inputs, scene.legend, stride).eval()


@torch.no_grad()
def by_loop(made: Bundle, scene: Scene, window: Window) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and disagreement of a window from every window of the scene's lattice, one after another."""
    height, width, core, halo = scene.grid.height, scene.grid.width, made.model.core, made.model.halo
    summed = np.zeros((made.model.classes + 1, height + core, width + core))
    count = np.zeros((height + core, width + core))
    for row in range(0, height, made.stride):
        for col in range(0, width, made.stride):
            if row > window.row + window.height or col > window.col + window.width:
                continue
            seen = Window(row - halo, col - halo, made.model.view, made.model.view)
            mapped = {
                name: own(torch.from_numpy(scene.read(name, seen)).permute(1, 2, 0)).permute(2, 0, 1)[None]
                for name, own in made.maps.items()
            }
            logits, layers = made.model.map_layers(mapped)
            both = torch.cat([logits, layers["disagreement"]], dim=1)[0].numpy()
            summed[:, row : row + core, col : col + core] += both
            count[row : row + core, col : col + core] += 1
    mean = (summed / np.maximum(count, 1)).astype(np.float32)
    part = mean[:, window.row : window.row + window.height, window.col : window.col + window.width]
    return part[:-1], part[-1]


@pytest.mark.parametrize("stride", [3, 2])
def test_the_map_is_that_of_a_loop_over_all_windows(scene: Scene, stride: int) -> None:
    made, window = classifier(scene, stride), Window(8, 10, 14, 11)
    (part,) = Engine(made, scene, MapOptions(layers=("disagreement",), batch=64, device="cpu")).blocks([window])
    logits, apart = by_loop(made, scene, window)
    np.testing.assert_allclose(part.logits, logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(part.layers["disagreement"], apart, atol=1e-5)
    assert 0.001 < apart.mean() < 1
    assert apart.std() > 1e-4


def test_disagreement_is_written_beside_the_map_whatever_the_block(scene: Scene, tmp_path: Path) -> None:
    made = classifier(scene, 3)
    files = []
    for block in (48, 20):
        predict(made, scene, tmp_path / f"{block}.tif", layers=("disagreement",), block=block, batch=64, device="cpu")
        raster = GdalRaster(str(tmp_path / f"{block}_disagreement.tif"), resampling="nearest")
        files.append(raster.read_codes())
    assert np.array_equal(*files)
    assert (files[0][:6, :9] == UNLABELLED).all(), "no data, no disagreement"
    assert files[0][files[0] != UNLABELLED].max() <= 250
    assert len(np.unique(files[0])) > 5
