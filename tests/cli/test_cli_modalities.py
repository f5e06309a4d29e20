"""The commands `predict --allow-missing`, `predict --mean-for` and `modalities`, on a small trained model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from typer.testing import Result

from landfuse.errors import FaultsError, LandfuseError, SettingsError
from landfuse.training.train import train

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small network that learnt to do without `b`; beside it a scene file without `b`."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = {
        "scene": str(place / "scene.yaml"),
        "model": {"name": "two_branch", "view": 5, "width": 8},
        "samples": {"batch": 32, "windows": 320, "modality_dropout": {"b": 0.3}},
        "training": {"epochs": 3, "rate": 0.01, "precision": "float32"},
        "run": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(folder / "recipe.yaml", progress=False)
    scene = yaml.safe_load((place / "scene.yaml").read_text())
    scene["root"] = str(place)
    del scene["modalities"]["b"]
    (folder / "only_a.yaml").write_text(yaml.safe_dump(scene, sort_keys=False))
    return folder


def test_a_scene_without_a_modality_is_mapped_if_it_is_asked_for(trained: Path, tmp_path: Path, invoke: Run) -> None:
    words = ("predict", trained / "run", trained / "only_a.yaml", "-o")
    refused = invoke(*words, tmp_path / "refused.tif")
    assert isinstance(refused.exception, FaultsError)
    assert "no modality `b`" in str(refused.exception)
    assert "--allow-missing" in str(refused.exception)
    assert not (tmp_path / "refused.tif").exists()
    codes = {}
    for name, option in {"learnt": ["--allow-missing"], "mean": ["--mean-for", "b"]}.items():
        done = invoke(*words, tmp_path / f"{name}.tif", *option)
        assert done.exit_code == 0, done.exception
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            codes[name] = file.read(1)
        assert (codes[name] != 255).all()
    assert (codes["learnt"] != codes["mean"]).any()
    with rasterio.open(tmp_path / "learnt.tif") as file:
        assert np.isin(file.read(1), [0, 1, 2, 3, 4, 255]).all()
    unknown = invoke(*words, tmp_path / "x.tif", "--mean-for", "c")
    assert isinstance(unknown.exception, SettingsError)


def test_modalities_prints_and_writes_the_table(trained: Path, invoke: Run) -> None:
    done = invoke("modalities", trained / "run")
    assert done.exit_code == 0, done.exception
    assert "a, and the placeholder of b" in done.output
    assert "b, and the mean of a" in done.output
    rows = json.loads((trained / "run" / "modalities.json").read_text())["rows"]
    assert (trained / "run" / "modalities.png").read_bytes().startswith(b"\x89PNG")
    assert f"{rows[0]['scores']['OA']:.4f}" in done.output
    assert f"({rows[3]['differences']['OA']:+.3f})" in done.output


def test_heat_maps_are_drawn_for_a_class_of_mfnet(place: Path, trained: Path, tmp_path: Path, invoke: Run) -> None:
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "window_size": 3, "global_attn_indexes": [0]}
    model = {"name": "mfnet", "encoder_options": options, "weights": "random", "view": 32, "core": 16}
    recipe = {
        "scene": str(place / "scene.yaml"),
        "model": {**model, "decoder_features": 8, "deep_fusion": False, "finetune": "none"},
        "samples": {"batch": 8, "windows": 8, "modality_dropout": {"b": 0.3}},
        "training": {"epochs": 1, "precision": "float32"},
        "run": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(tmp_path / "recipe.yaml", progress=False)
    legend = yaml.safe_load((place / "scene.yaml").read_text())["legend"]
    name, code = legend[1]["name"], legend[1]["code"]
    done = invoke("modalities", tmp_path / "run", "--heat-map", name)
    assert done.exit_code == 0, done.exception
    with rasterio.open(tmp_path / "run" / f"heat_maps-{code}.png") as file:
        assert (file.read(1) < 255).mean() > 0.2
    assert not (tmp_path / "run" / "modalities.json").exists()
    for words, found in (
        ((tmp_path / "run", "--heat-map", f"{name}s"), f"did you mean `{name}`?"),
        ((trained / "run", "--heat-map", name), "is `two_branch`"),
        ((tmp_path / "run", "--heat-map", name, "--alone", trained), "--alone with --heat-map"),
    ):
        refused = invoke("modalities", *words)
        assert isinstance(refused.exception, LandfuseError)
        assert found in str(refused.exception)
