"""What models of single pixels see of the windows around them, against a plain loop in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.models import SETTINGS
from landfuse.models.base import Modality
from landfuse.models.pixel_models import Forest
from landfuse.models.pixel_tables import features_of
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.grid import Grid
from landfuse.scenes import from_files
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.settings import parse
from landfuse.simulate.scene import simulate_flat
from landfuse.training.samples import Samples, WindowSampler
from landfuse.training.settings import SampleSettings
from landfuse.views.pixel_map import PixelMap
from landfuse.views.store import Store

WINDOWS = (3, 7)


def plain(image: NDArray[np.float32], zoom: int, row: int, col: int) -> list[float]:
    """Channels, then mean and deviation of each window, of the pixel (row, col) of an image (H, W, C) and its edges."""
    fine = image.astype(np.float64)
    height, width = (size // zoom for size in fine.shape[:2])

    def inside(half: int) -> NDArray[np.float64]:
        rows = slice(max(0, row - half) * zoom, min(height, row + half + 1) * zoom)
        cols = slice(max(0, col - half) * zoom, min(width, col + half + 1) * zoom)
        return fine[rows, cols].reshape(-1, fine.shape[2])

    own = inside(0)
    found = [*own[0]] if zoom == 1 else [*own.mean(axis=0), *own.std(axis=0, ddof=1)]
    for size in WINDOWS:
        values = inside(size // 2)
        found += [*np.nanmean(values, axis=0), *np.nanstd(values, axis=0)]
    return found


@pytest.fixture(scope="module")
def scene() -> Scene:
    """`a` and, twice as fine, `b`; both with holes."""
    flat = simulate_flat(24, 30, {"a": 3})
    rng = np.random.default_rng(0)
    modalities = {}
    for name, zoom, bands in (("a", 1, 3), ("b", 2, 2)):
        values = rng.normal(5, 2, size=(bands, 24 * zoom, 30 * zoom)).astype(np.float32)
        values[1, rng.random(values.shape[1:]) < 0.05] = np.nan
        a, b, c, d, e, f = flat.grid.transform
        grid = Grid(24 * zoom, 30 * zoom, (a / zoom, b, c, d, e / zoom, f), flat.grid.crs)
        modalities[name] = SceneModality(ArrayRaster(values, "CHW", grid, name), zoom=zoom)
    classes = rng.integers(0, 4, size=(24, 30)).astype(np.uint8)
    return replace(flat, modalities=modalities, read_labels=lambda: classes)


MAPS = {
    "a": PixelMap(torch.tensor([0.5, 2, 1]), torch.tensor([0.1, 0, -3])),
    "b": PixelMap(torch.ones(2), -torch.ones(2)),
}


def fitted(scene: Scene, memory: int = 1 << 30) -> tuple[Forest, list[NDArray[np.float32]]]:
    """A forest grown from all of a scene's pixels as training does it, and what it saw, pixel by pixel."""
    model = Forest({"a": 3, "b": Modality(2, zoom=2)}, len(scene.legend), trees=4, context=WINDOWS)
    store = Store([scene], MAPS, model.view, memory, marks_missing=True)
    samples = Samples(store, [scene.labels], model.view, model.core)
    sampler = WindowSampler(samples, SampleSettings(augment=False), train=False)
    batches = [(batch.images, batch.target) for batch in map(samples.__getitem__, sampler)]
    model.fit(batches, seed=0)
    return model, [model.features(images) for images, _ in batches]


def test_means_and_deviations_are_those_of_a_plain_loop(scene: Scene) -> None:
    images = {}
    for name, one in MAPS.items():
        values = torch.from_numpy(scene.read(name, scene.grid.window)).permute(1, 2, 0)
        images[name] = one(values, None, math.nan).numpy()
    _, seen = fitted(scene)
    found = np.concatenate(seen).reshape(24, 30, -1)
    assert found.shape[2] == 3 * 5 + 2 * 6
    known = np.isfinite(images["a"]).all(axis=2)
    known &= np.isfinite(images["b"]).all(axis=2).reshape(24, 2, 30, 2).all(axis=(1, 3))
    assert 400 < known.sum() < 700, "holes among the neighbours are left out; a pixel without data is not mapped"
    for row, col in np.argwhere(known):
        expected = [*plain(images["a"], 1, row, col), *plain(images["b"], 2, row, col)]
        np.testing.assert_allclose(found[row, col], expected, rtol=1e-5, atol=2e-6)


def test_a_window_of_large_equal_numbers_has_no_deviation() -> None:
    image = np.full((1, 7, 7, 1), 12345.678, np.float32)
    seen = features_of({"a": image}, {"a": 1}, WINDOWS)
    assert (seen[0, [0, 1, 3]] == image[0, 0, 0, 0]).all()
    assert (seen[0, [2, 4]] < 1e-3).all()
    image[0, 0, 0] += 49
    assert features_of({"a": image}, {"a": 1}, WINDOWS)[0, 4] == pytest.approx(48**0.5, rel=1e-5)


def test_blocks_and_memory_change_no_bit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = fitted(scene)
    monkeypatch.setattr("landfuse.views.store._BLOCK", 7)
    again, by_blocks = fitted(scene, memory=0)
    assert np.array_equal(np.concatenate(seen), np.concatenate(by_blocks), equal_nan=True)
    assert torch.equal(model.threshold, again.threshold)
    infos = {name: part.info for name, part in scene.modalities.items()}
    settings = {"trees": 4, "context": list(WINDOWS)}
    bundle = Bundle(ModelSpec("forest", settings), MAPS, infos, scene.legend, model=model)

    def logits(block: int) -> NDArray[np.float32]:
        found = np.full((len(scene.legend), 24, 30), np.nan, np.float32)
        for part in map_blocks(bundle, scene, block=block):
            part.logits[:, part.classes == UNLABELLED] = np.nan
            found[:, *part.window.within(scene.grid.window)] = part.logits
        return found

    whole = logits(64)
    assert np.isfinite(whole).any()
    for name in ("_STRIP", "_TILE"):
        monkeypatch.setattr(f"landfuse.bundles.table_bundle.{name}", 1)
    for block in (5, 16):
        assert np.array_equal(logits(block), whole, equal_nan=True)


@pytest.mark.parametrize("sizes", [[4], [7, 3], [3, 3], [1], [3.5]])
def test_odd_rising_windows_are_asked_for(sizes: list[float]) -> None:
    with pytest.raises(SettingsError, match="context"):
        parse(SETTINGS["forest"], {"context": sizes}, "model `forest`")


def test_init_leaves_a_buffer_for_the_view_of_a_forest() -> None:
    assert SETTINGS["forest"]().view == from_files._CONTEXT  # type: ignore[attr-defined]
