"""Recipes of models of single pixels, from training to the map."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import landfuse as lf
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.table_bundle import TableBundle, load_model
from landfuse.scenes.leaks import leak_fraction
from landfuse.training.train import train


def trained(folder: Path, place: Path, **values: Any) -> dict[str, Any]:
    """The scores of a run in `folder / "run"`."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"scene": str(place / "scene.yaml"), **values}))
    train(folder / "recipe.yaml", f"run={folder / 'run'}", progress=False)
    found: dict[str, Any] = json.loads((folder / "run" / "scores.json").read_text())
    return found


def test_the_default_of_a_forest_is_said_written_out_and_counted(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "landfuse"):
        scores = trained(tmp_path, place, model={"name": "forest", "trees": 3})
    assert "windows of 3, 7, 15 px: 35 features in all; model.context=[] for the pixel alone" in caplog.text
    for file in ("recipe.json", "bundle/model.json"):
        model = json.loads((tmp_path / "run" / file).read_text())["model"]
        assert model.get("settings", model)["context"] == [3, 7, 15]
    scene = lf.open_scene(place)
    split = [lf.read_recipe(tmp_path / "recipe.yaml").read_scene().roles([scene])[0]]
    assert scores["leak_fraction"] == leak_fraction(split, 15) > 0.9


def test_boosted_trees_stop_by_validation_and_do_without_a_modality(place: Path, tmp_path: Path) -> None:
    model = {"name": "boosted", "rounds": 40, "patience": 2, "rate": 0.5, "context": [3]}
    scores = trained(tmp_path, place, model=model, samples={"modality_dropout": {"b": 0.3}})
    assert 0 < scores["epochs"] < 40
    assert scores["test"]["OA"] > 0.6
    assert scores["test"]["unmapped"] == 0, "the corner without `b` is mapped"
    bundle, scene = load_model(tmp_path / "run"), lf.open_scene(place)
    assert isinstance(bundle, TableBundle)
    assert bundle.description.droppable == ("b",)
    lacking = dataclasses.replace(scene, modalities={"a": scene.modalities["a"]})
    without = lf.map_array(bundle, lacking, allow_missing=True)
    assert np.array_equal(without, lf.map_array(load_bundle(tmp_path / "run"), scene, withheld=("b",), block=17))
    assert not np.array_equal(without, lf.map_array(bundle, lacking, mean_for=("b",)))
    assert (without < 4).all()


def test_boosted_trees_learn_from_all_labels_for_as_many_rounds_as_the_folds(place: Path, tmp_path: Path) -> None:
    model = {"name": "boosted", "rounds": 20, "patience": 2, "rate": 0.5, "context": []}
    scores = trained(tmp_path, place, model=model, training={"use": "all"}, split={"folds": 2})
    assert scores["epochs"] == round(np.mean(scores["cross_validation"]["epochs"]))


@pytest.mark.parametrize("features", ["diffusion", "context"])
def test_a_linear_probe_of_diffusion_features_maps_alike_in_any_blocks(
    features: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path / "cache"))
    sections = {"pretrain": {"steps": 0, "base": 8}, "features": {"timesteps": [50], "levels": [1], "tile": 64}}
    model = {"name": "logistic", "features": features, "context": [3]}
    scores = trained(tmp_path, place, model=model, **sections)
    assert 0.2 < scores["test"]["OA"] <= 1
    bundle, scene = load_model(tmp_path / "run"), lf.open_scene(place)
    whole = lf.map_array(bundle, scene)
    assert np.unique(whole).size > 2
    assert np.array_equal(lf.map_array(bundle, scene, block=33), whole)
