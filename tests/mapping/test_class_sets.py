"""Class sets as a layer of a map: the same bytes in any cut, and refused where the bundle cannot give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from landfuse.accuracy.conformal import ClassSets, sets_of, threshold_table
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import BundleError, OutputError, SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.mapping.engine import PixelProgress, map_blocks
from landfuse.mapping.map_layers import layers_of
from landfuse.mapping.predict import Job, Runner, map_parts, predict
from landfuse.mapping.settings import map_options
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap


@pytest.fixture(scope="module")
def scene() -> Scene:
    flat = simulate_flat(40, 52, {"a": 3})
    values = flat.read("a", flat.grid.window)
    values[:, 3:9, 11:30] = np.nan
    return replace(flat, modalities={"a": SceneModality(ArrayRaster(values, "CHW", flat.grid, "a"), units="1")})


@pytest.fixture
def bundle(scene: Scene) -> Bundle:
    torch.manual_seed(0)
    maps = {"a": PixelMap(40 * torch.randn(2, 3), torch.rand(2))}
    infos = {"a": scene.modalities["a"].info}
    made = Bundle(ModelSpec("two_branch", {"view": 5, "width": 8}), maps, infos, scene.legend).eval()
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(4, 2.0), 500).T.astype(np.float32)
    truth, blocks = p[:3].argmax(axis=0).astype(np.uint8), rng.integers(0, 40, 500)
    notes = {"blocks": 40, "class_blocks": [40, 40, 40, 0], "unit": "blocks of 8 px", "how": "set aside in training"}
    ClassSets(threshold_table(p, truth, blocks), scene.legend, notes).attach(made)
    return made


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize(("method", "by_class"), [("lac", False), ("aps", True), ("raps", False)])
def test_sets_are_the_same_in_any_cut(
    bundle: Bundle, scene: Scene, tmp_path: Path, method: Any, by_class: bool
) -> None:
    words = {"sets": 0.8, "sets_method": method, "sets_by_class": by_class}
    paths = [predict(bundle, scene, tmp_path / f"{block}.tif", block=block, **words) for block in (19, 512)]
    files = [path.with_name(f"{path.stem}_sets.tif") for path in paths]
    assert files[0].read_bytes() == files[1].read_bytes()
    (whole,) = map_blocks(bundle, scene, block=512)
    thresholds = ClassSets.of(bundle.description).thresholds(0.8, method, by_class)[:, None, None]
    expected = sets_of(whole.probabilities, thresholds, method).astype(np.uint8)
    missing = whole.classes == UNLABELLED
    assert 0 < missing.sum() < missing.size
    found = read(files[0])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], np.where(missing, 255, expected.sum(axis=0)))
    np.testing.assert_array_equal(found[1:], np.where(missing, 255, expected))
    assert found[0].min() >= 1
    assert len(np.unique(found[0][~missing])) > 1
    with rasterio.open(files[0]) as file:
        assert file.descriptions == ("size", *scene.legend.names)
        assert file.tags()["landfuse_sets"] == (
            f"level 0.8 by {method}{' by class' * by_class}, of 40 blocks of 8 px, set aside in training"
        )


def test_blocks_of_other_sets_are_not_gone_on_from(bundle: Bundle, scene: Scene, tmp_path: Path) -> None:
    def interrupted(job: Job, windows: Sequence[Window], progress: PixelProgress) -> Any:
        map_parts(job, windows[:2], progress)
        raise KeyboardInterrupt

    path, words = tmp_path / "map.tif", {"sets": 0.8, "block": 20}
    with pytest.raises(KeyboardInterrupt):
        predict(bundle, scene, path, run=Runner(interrupted), **words)
    for other in ({"sets": 0.9}, {"sets_method": "aps"}, {"sets_by_class": True}):
        with pytest.raises(OutputError, match="the class sets"):
            predict(bundle, scene, path, **{**words, **other})
    predict(bundle, scene, path, **words)
    again = predict(bundle, scene, tmp_path / "again.tif", **words)
    for name in ("map_sets.tif", "map.tif"):
        assert (tmp_path / name).read_bytes() == again.with_name(name.replace("map", "again", 1)).read_bytes()


def test_of_more_than_64_classes_there_is_the_size_alone(bundle: Bundle) -> None:
    known = bundle.description
    for count, bands in ((64, 65), (65, 1)):
        legend = Legend(tuple(LandClass(f"class {k}", k, "#000000") for k in range(count)))
        table = np.zeros((3, 1 + count, 999), np.float32)
        many = replace(known, legend=legend, attached={"sets.thresholds": table})
        layer = layers_of(map_options({"sets": 0.9}), many)[1]
        assert (layer.name, len(layer.bands), layer.scale) == ("sets", bands, 1)
        assert layer.values is not None
        p = np.full((count, 3, 5), 1 / count, np.float32)
        values = layer.values(None, slice(None), p)  # type: ignore[arg-type]
        assert values.shape == (bands, 3, 5)
        assert (values[0] == count).all()


def test_sets_that_cannot_be_given_are_refused(bundle: Bundle, scene: Scene, tmp_path: Path) -> None:
    for words, message in (
        ({"sets": 0.99}, r"0.99 by 40 calibration blocks(.|\n)*at most 0.975(.|\n)*takes 99"),
        ({"sets": 1.0}, "`sets` is 1.0"),
        ({"sets": -0.1}, "`sets` is -0.1"),
        ({"sets": 0.9, "sets_method": "lca"}, "`sets_method` is 'lca'"),
    ):
        with pytest.raises(SettingsError, match=message):
            predict(bundle, scene, tmp_path / "map.tif", **words)
    table = bundle.attached["sets.thresholds"]
    bundle.attached["sets.thresholds"] = table[:, :3]
    with pytest.raises(BundleError, match=r"class sets in the bundle have the shape \(3, 3, 999\)"):
        predict(bundle, scene, tmp_path / "map.tif", sets=0.9)
    bundle.attached.clear()
    with pytest.raises(SettingsError, match=r"no scores of calibration blocks(.|\n)*split.calibration"):
        predict(bundle, scene, tmp_path / "map.tif", sets=0.9)
    assert not list(tmp_path.iterdir())
