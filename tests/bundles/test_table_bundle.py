"""The bundles of forest, boosted trees and logistic regression map without torch, and as they do by torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.predictor import ReadyModel
from landfuse.bundles.settings import PredictorOptions
from landfuse.bundles.table_bundle import TableBundle, load_model
from landfuse.bundles.torch_predictor import TorchPredictor
from landfuse.errors import BundleError, SettingsError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_array, map_blocks
from landfuse.mapping.predict import predict
from landfuse.models.pixel_tables import features_of
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap


@pytest.fixture(scope="module")
def scene() -> Scene:
    flat = simulate_flat(40, 60, {"a": 3})
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 80, 120)).astype(np.float32)
    classes = (rng.integers(0, 2, (40, 60)) + 2 * (values[0, ::2, ::2] > 0)).astype(np.uint8)
    grid = Grid(80, 120, (5.0, *flat.grid.transform[1:4], -5.0, flat.grid.transform[5]), flat.grid.crs)
    modalities = {**flat.modalities, "b": SceneModality(ArrayRaster(values, "CHW", grid, "b"), zoom=2)}
    return replace(flat, modalities=modalities, read_labels=lambda: classes)


SETTINGS = {
    "forest": {"trees": 7, "depth": 9, "context": [3, 7]},
    "boosted": {"rounds": 4, "context": [5]},
    "logistic": {"features": "pixels", "steps": 20},
}


@pytest.fixture(scope="module", params=list(SETTINGS))
def bundle(request: pytest.FixtureRequest, scene: Scene) -> Bundle:
    torch.manual_seed(0)
    infos = {name: part.info for name, part in scene.modalities.items()}
    maps = {"a": PixelMap(torch.rand(3), torch.rand(3), clip=2), "b": PixelMap(torch.rand(2), torch.rand(2))}
    made = Bundle(ModelSpec(request.param, SETTINGS[request.param]), maps, infos, scene.legend)
    window = scene.grid.window.padded(made.model.halo)
    images = {
        name: one(torch.from_numpy(scene.read(name, window)).permute(1, 2, 0)).permute(2, 0, 1)[None]
        for name, one in maps.items()
    }
    made.model.fit([(images, torch.from_numpy(scene.labels)[None])], seed=0)
    made.temperature, made.roles = 1.3, {"a grid": "its digest"}
    made.attached, made.notes = {"sums.each": np.arange(6.0).reshape(2, 3)}, {"sums": {"of": "blocks"}}
    return made.eval()


def test_it_is_the_bundle_of_torch_bit_for_bit(bundle: Bundle, scene: Scene, tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    own = load_model(tmp_path / "bundle")
    assert isinstance(own, TableBundle)
    loaded = load_bundle(tmp_path / "bundle")
    assert own.digest == bundle.digest == loaded.digest
    assert own.description.roles == {"a grid": "its digest"}
    assert own.description.packed({}) == bundle.description.packed({})
    for known in (own.description, loaded.description):
        assert known.attached.keys() == {"sums.each"}
        assert known.attached["sums.each"].dtype == np.float64
        assert (known.attached["sums.each"] == np.arange(6.0).reshape(2, 3)).all()
        assert known.notes == {"sums": {"of": "blocks"}}
    for options in (PredictorOptions(), PredictorOptions(mean_for=("b",), withheld=("b",))):
        by_torch = TorchPredictor(bundle, options)
        predictors = [own.predictor(options), loaded.predictor(options), by_torch]
        window, corners = scene.grid.window.padded(bundle.model.halo), np.argwhere(np.ones((40, 60), bool))
        values = {name: scene.read(name, window) for name in scene.modalities}
        values["b"][:, :9, :7] = np.nan
        found = []
        for one in predictors:
            prepared = {name: one.prepare(name, part) for name, part in values.items()}
            found.append(np.concatenate(list(one.logits(window, prepared, np.split(corners, 4)))))
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
        assert found[0].dtype == np.float32
        assert np.isfinite(found[0]).all()
    own.save(tmp_path / "copy")
    assert load_model(tmp_path / "copy").digest == own.digest
    with pytest.raises(SettingsError, match="has no layer shared"):
        own.predictor(PredictorOptions(layers=("shared",)))


def test_many_tiles_are_mapped_by_one_predictor_and_one_digest(
    bundle: Bundle, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(bundle, scene, tmp_path / "one.tif")
    digest, counted = Bundle.digest, []
    monkeypatch.setattr(Bundle, "digest", property(lambda self: counted.append(1) or digest.fget(self)))
    ready = ReadyModel(bundle, PredictorOptions())
    for number in range(3):
        predict(ready, scene, tmp_path / f"{number}.tif")
        assert (tmp_path / f"{number}.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
    assert len(counted) == 1


def test_the_map_does_not_depend_on_the_block(bundle: Bundle, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = map_array(bundle, scene)
    sizes: list[int] = []

    def counted(*args: Any, **keywords: Any) -> np.ndarray:
        sizes.append((found := features_of(*args, **keywords)).size)
        return found

    for name, value in (("_STRIP", 700), ("_TILE", 900), ("features_of", counted)):
        monkeypatch.setattr(f"landfuse.bundles.table_bundle.{name}", value)
    np.testing.assert_array_equal(map_array(bundle, scene, block=13), whole)
    wanted = np.random.default_rng(0).random(whole.shape) < 0.02
    for part in map_blocks(bundle, scene, wanted=wanted):
        own = part.window.within(scene.grid.window)
        np.testing.assert_array_equal(part.classes, np.where(wanted[own], whole[own], UNLABELLED))
    assert 0 < max(sizes) <= 900, "features of a block are never held all at once"


WITHOUT_TORCH = """
import sys


class Missing:
    @staticmethod
    def find_spec(name, path, target=None):
        if name in ("torch", "sklearn", "lightning", "timm"):
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Missing)
import landfuse as lf
classifier, scene = lf.load(sys.argv[1]), lf.open_scene(sys.argv[2])
lf.predict(classifier, scene, sys.argv[3], confidence=True, applicability=True, memory="700MiB")
codes = lf.open_map(sys.argv[3]).legend.to_codes(lf.open_map(sys.argv[3]).classes)
assert (classifier.predict(scene, progress=False) == codes).all()
try:
    classifier.bundle
except lf.LandfuseError as error:
    assert "landfuse[train]" in error.do
else:
    raise AssertionError
"""


def test_a_run_maps_where_torch_is_not_installed(trained: Path, place: Path, tmp_path: Path) -> None:
    from landfuse.scenes.scene_file import open_scene

    predict(load_bundle(trained), open_scene(place), tmp_path / "with.tif", confidence=True, applicability=True)
    words = [str(trained), str(place / "scene.yaml"), str(tmp_path / "without.tif")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("", "_confidence", "_applicability"):
        assert (tmp_path / f"with{name}.tif").read_bytes() == (tmp_path / f"without{name}.tif").read_bytes()


@pytest.mark.parametrize("bundle", ["forest"], indirect=True)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.share", lambda one: one[..., :2], "other shapes"),
        ("pixel_maps.a.weight", lambda one: one[:2], "other shapes"),
        ("pixel_maps.b.bias", lambda one: one * np.nan, "pixel_maps.b.bias hold numbers that are not finite"),
        ("model.depth", None, "model.depth"),
    ],
)
def test_a_damaged_forest_is_refused(
    bundle: Bundle, tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray] | None, message: str
) -> None:
    bundle.save(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    old = tensors.pop(name)
    if change is not None:
        tensors[name] = np.ascontiguousarray(change(old))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    words = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**words, "weights": None}))
    with pytest.raises(BundleError, match=message):
        load_model(tmp_path)
