"""Training sets calibration blocks aside, or lets folds take their place; the bundle keeps the thresholds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

import landfuse as lf
from landfuse.accuracy.conformal import METHODS, ClassSets, sets_of, threshold_table
from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import CALIBRATION, TEST
from landfuse.simulate.scene import simulate_flat
from landfuse.training.train import train

SPLIT = {"kind": "blocks", "size": 6, "test": 0.3, "validation": 0.2, "calibration": 0.4}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene whose classes are hard to tell apart."""
    folder = tmp_path_factory.mktemp("noisy")
    scene = simulate_flat(72, 72, {"a": 2})
    values = scene.read("a", scene.grid.window) + np.random.default_rng(0).normal(0, 0.7, (2, 72, 72))
    write_raster(folder / "a.tif", scene.grid, values.astype(np.float32), nodata=float("nan"))
    write_raster(folder / "labels.tif", scene.grid, scene.legend.to_codes(scene.labels), legend=scene.legend)
    text = {
        "name": "noisy",
        "modalities": {"a": {"path": "a.tif", "units": "1"}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": c.name, "code": c.code, "colour": c.colour} for c in scene.legend],
        "split": SPLIT,
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    model = {"name": "forest", "trees": 8, "context": [3]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"scene": "scene.yaml", "model": model}))
    return folder


@pytest.fixture(scope="module")
def run(file: Path) -> Path:
    train(file / "recipe.yaml", f"run={file / 'run'}", progress=False)
    return file / "run"


def gathered(folder: Path, file: SceneFile, roles: np.ndarray, role: int) -> tuple[Any, ...]:
    """Probabilities, classes and blocks of the pixels of a role, by a map of the whole scene."""
    scene = lf.open_scene(file.path)
    p = lf.load(folder).predict_proba(scene, progress=False)
    rows, cols = np.nonzero((roles == role) & (scene.labels != UNLABELLED))
    return p[:, rows, cols], scene.labels[rows, cols], rows // 6 * 12 + cols // 6


def roles_of(run: Path) -> np.ndarray:
    with rasterio.open(run / "split" / "noisy.tif") as opened:
        return opened.read(1)


def test_thresholds_are_those_of_the_blocks_set_aside(run: Path, file: Path) -> None:
    roles = roles_of(run)
    known = ClassSets.of(lf.load_bundle(run).description)
    p, truth, blocks = gathered(run, read_scene_file(file / "scene.yaml"), roles, CALIBRATION)
    np.testing.assert_array_equal(known.table, threshold_table(p, truth, blocks))
    count = len(np.unique(blocks))
    of_class = [len(np.unique(blocks[truth == k])) for k in range(4)]
    assert count > 15
    assert known.notes == {
        "blocks": count, "class_blocks": of_class, "unit": "blocks of 6 px", "how": "set aside in training",
    }  # fmt: skip
    scores = json.loads((run / "scores.json").read_text())
    sets = scores["sets"]
    assert sets["class_blocks"] == dict(zip(known.legend.names, of_class, strict=True))
    assert sets["highest_level"] == known.highest
    assert 0 < scores["calibration_leak_fraction"] <= 1
    p, truth, blocks = gathered(run, read_scene_file(file / "scene.yaml"), roles, TEST)
    assert sets["test"]["pixels"] == truth.size == scores["test"]["pixels"]
    for method in METHODS:
        found = sets_of(p, known.thresholds(0.9, method)[:, None], method)
        held = found[truth, np.arange(truth.size)]
        one = sets["test"]["levels"][method]["0.9"]
        assert one["coverage"] == pytest.approx(np.mean([held[blocks == b].mean() for b in np.unique(blocks)]))
        assert one["mean_size"] == pytest.approx(found.sum(axis=0).mean())
    assert 0.8 < sets["test"]["levels"]["lac"]["0.9"]["coverage"] < 1


def test_of_folds_each_pixel_is_scored_by_the_model_that_had_not_learnt_it(file: Path) -> None:
    words = ["training.use=all", "split.folds=2", "split.calibration=0", "model.trees=3", f"run={file / 'all'}"]
    bundle = train(file / "recipe.yaml", *words, progress=False)
    known = ClassSets.of(bundle.description)
    parts = []
    for fold in range(2):
        folder = file / "all" / "folds" / str(fold)
        parts.append(gathered(folder, read_scene_file(file / "scene.yaml"), roles_of(folder), TEST))
    p, truth, blocks = (np.concatenate(one, axis=-1) for one in zip(*parts, strict=True))
    assert truth.size == 72 * 72
    np.testing.assert_array_equal(known.table, threshold_table(p, truth, blocks))
    assert known.notes["blocks"] == 144
    assert known.notes["how"] == "cross-fitted over 2 folds (approximate: their models learnt from fewer labels)"
    own, right, numbers = parts[0]
    others = threshold_table(*(np.concatenate(one, axis=-1) for one in zip(*parts[1:], strict=True)))
    held = sets_of(own, others[0, 0, 899], "lac")[right, np.arange(right.size)]
    first = np.mean([held[numbers == b].mean() for b in np.unique(numbers)])
    sets = json.loads((file / "all" / "scores.json").read_text())["sets"]["test"]
    assert sets["blocks"] == 144
    assert abs(sets["levels"]["lac"]["0.9"]["coverage"] - first) < 0.1
    with pytest.raises(SplitError, match=r"training.use=all with split.calibration(.|\n)*leave split.calibration out"):
        train(file / "recipe.yaml", *words[:2], f"run={file / 'both'}", progress=False)


def test_without_validation_sets_are_given_too(file: Path) -> None:
    scene = lf.open_scene(file / "scene.yaml")
    fitted = lf.Classifier("forest", trees=3).fit(scene, split={**SPLIT, "validation": 0}, progress=False)
    assert fitted.description.temperature == 1
    sets = fitted.predict_sets(scene, 0.8, method="aps", progress=False)
    assert sets.shape == (4, 72, 72)
    assert sets.dtype == np.uint8
    p = fitted.predict_proba(scene, progress=False)
    thresholds = ClassSets.of(fitted.description).thresholds(0.8, "aps")
    np.testing.assert_array_equal(sets, sets_of(p, thresholds[:, None, None], "aps"))


def test_the_command_writes_sets(run: Path, file: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    words = ("predict", run, file / "scene.yaml", "-o", tmp_path / "map.tif")
    done = landfuse(*words, "--sets", "0.9", "--sets-method", "aps", "--sets-by-class")
    assert done.code == 0, done.err
    with rasterio.open(tmp_path / "map_sets.tif") as opened:
        assert opened.count == 5
    done = landfuse(*words, "--sets", "0.99", "--overwrite")
    assert done.code == 2
    assert "0.99 takes 99" in done.err
    done = landfuse(*words, "--sets", "1.5", "--overwrite")
    assert done.code == 2
    assert "sets" in done.err


def test_a_bundle_without_scores_gives_no_sets(
    run: Path, file: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    bare = lf.load_bundle(run)
    bare.attached.clear()
    bare.save(tmp_path / "bundle")
    done = landfuse("predict", tmp_path / "bundle", file / "scene.yaml", "-o", tmp_path / "map.tif", "--sets", "0.9")
    assert done.code == 2
    assert "no scores of calibration blocks" in done.err
    assert "split.calibration=0.2" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
