"""Pre-training within a run: what it leaves, how it goes on, what is used again, and what the model gets of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from landfuse.bundles.bundle_files import load_bundle
from landfuse.diffusion.denoising import Denoising
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.tiles import FeatureTiles
from landfuse.diffusion.trained_denoiser import load_denoiser
from landfuse.errors import BundleError, FaultsError, ModelError, SettingsError
from landfuse.mapping.engine import map_array
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.leaks import leak_fraction
from landfuse.scenes.scene_file import open_scene
from landfuse.scenes.split_rules import CALIBRATION, TEST, TRAIN, VALIDATION
from landfuse.training.pretrain import pretrain
from landfuse.training.recipe import Recipe, read_recipe
from landfuse.training.train import train
from landfuse.training.training_data import TrainingData, read_training_data

train_module = sys.modules["landfuse.training.train"]
SMALL: dict[str, Any] = {
    "model": {"name": "two_branch", "view": 5, "width": 8},
    "samples": {"batch": 32, "windows": 64},
    "training": {"epochs": 1, "precision": "float32", "patience": None},
}
PRETRAIN: dict[str, Any] = {"base": 8, "steps": 4, "batch": 4, "crop": 16, "balance": {"every": 2, "warmup": 0}}

Read = Callable[..., Recipe]


@pytest.fixture
def read(place: Path, tmp_path: Path) -> Read:
    """A recipe for the small scene: SMALL with PRETRAIN, changed by keywords; its run folder is `runs/run`."""

    def recipe(scene: Path = place / "scene.yaml", run: str = "run", **changes: Any) -> Recipe:
        path = tmp_path / "recipe.yaml"
        features = {"timesteps": [50, 300], "cache": str(tmp_path / "cache")}
        text = {"scene": str(scene), "run": str(tmp_path / "runs" / run), **SMALL, "pretrain": PRETRAIN}
        path.write_text(yaml.safe_dump({**text, "features": features, **changes}))
        return read_recipe(path)

    return recipe


def base_of(recipe: Recipe) -> TrainingData:
    return read_training_data(recipe)


def pretrained(recipe: Recipe, base: TrainingData | None = None) -> Any:
    assert recipe.pretrain is not None
    return pretrain(recipe.pretrain, base or base_of(recipe), Path(recipe.run or ""))


def test_a_run_with_features_trains_maps_and_reloads(read: Read, tmp_path: Path, place: Path) -> None:
    recipe = read()
    classifier = train(recipe, progress=False)
    run = tmp_path / "runs" / "run"
    assert list(classifier.model.modalities) == ["a", "b", "diffusion_1", "diffusion_2", "diffusion_3"]
    assert classifier.model.modalities["diffusion_2"].channels == 2 * 16
    assert list(classifier.description.modalities) == ["a", "b"]
    assert classifier.description.computed == ("diffusion_1", "diffusion_2", "diffusion_3")
    assert classifier.inputs["diffusion_2"].bands == 2 * 16
    scores = json.loads((run / "scores.json").read_text())
    assert scores["pretrain"]["fit_on"] == "scene"
    assert scores["pretrain"]["transductive"] is True
    roles = base_of(recipe).roles
    assert leak_fraction(roles, 5) < leak_fraction(roles, 5 + 2 * 56) == scores["leak_fraction"]
    assert scores["pretrain"]["reach"] == 56, "px that the features see around the view"
    assert scores["pretrain"]["modalities"] == ["a", "b"]
    with (run / "pretrain.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0.0", "2.0", "4.0"]
    assert {"D_a", "r_b", "w_a", "denoise_b", "loss"} <= rows[0].keys()
    assert all(0 < float(row["probe_validation"]) <= 1 for row in rows), "before training, and at eighths of it"
    assert (run / "balance.png").stat().st_size > 5000
    assert not (run / "checkpoints").exists()
    assert load_denoiser(run).digest == classifier.features.denoiser.digest  # type: ignore[union-attr]

    bundle, scene = load_bundle(run), open_scene(place / "scene.yaml")
    assert bundle.features is not None
    assert bundle.features.denoiser.digest == load_denoiser(run).digest
    assert bundle.features.settings.timesteps == (50, 300)
    assert recipe.features is not None
    bundle.features = DiffusionFeatures(bundle.features.denoiser, recipe.features)
    whole = map_array(classifier, scene)
    assert (whole != 255).any()
    assert (whole[:6, :9] == 255).all(), "no data, no map"
    assert np.array_equal(map_array(bundle, scene, block=37), whole), "it depends neither on the block nor the reload"

    lacking = dataclasses.replace(scene, modalities={"a": scene.modalities["a"]})
    with pytest.raises(FaultsError, match="no modality `b`"):
        map_array(bundle, lacking)
    with pytest.raises(BundleError, match=r"no modality `b`(.|\n)*the denoiser was trained on"):
        map_array(bundle, lacking, mean_for=("b",))


def test_features_are_computed_once_for_training_and_mapping(
    read: Read, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tile, when training begins; after that training, scoring and mapping read what is kept."""
    features = {"timesteps": [50, 300], "cache": str(tmp_path / "cache"), "tile": 64, "overlap": 32}
    recipe, computed, first = read(features=features), [], []
    compute, maps = FeatureTiles._computed, train_module.fit_maps

    def counted(self: FeatureTiles, tile: tuple[int, int]) -> Any:
        computed.append(tile)
        return compute(self, tile)

    def begun(*args: Any) -> Any:
        first.extend(computed)
        return maps(*args)

    monkeypatch.setattr(FeatureTiles, "_computed", counted)
    monkeypatch.setattr(train_module, "fit_maps", begun)
    classifier = train(recipe, progress=False)
    assert sorted(first) == [(row, col) for row in range(3) for col in range(3)], "96 px by tiles of 32 px"
    map_array(classifier, open_scene(place / "scene.yaml"), block=20)
    assert computed == first


def test_features_kept_in_memory_give_the_same_run(
    read: Read, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features = {"timesteps": [50, 300], "tile": 64, "overlap": 32}
    (tmp_path / "file").write_text("")
    kept, held = (
        train(read(run=name, features={**features, "cache": str(tmp_path / name)}), progress=False)
        for name in ("kept", "file")
    )
    assert "kept in memory" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), held.state_dict().values(), strict=True))
    scene = open_scene(place / "scene.yaml")
    assert np.array_equal(map_array(kept, scene), map_array(held, scene, block=40))


def test_interrupted_pretraining_goes_on_to_the_same_weights(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = pretrained(read(run="elsewhere/straight"))
    step, run = Denoising.step, tmp_path / "runs" / "run"
    monkeypatch.setattr("landfuse.training.pretrain._BETWEEN_CHECKPOINTS", 0)

    def stopped(self: Denoising) -> dict[str, float]:
        if self.done == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Denoising, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(read(), progress=False)
    assert (run / "checkpoints" / "denoiser.pt").exists()
    assert (run / "recipe.json").exists(), "the folder stays its recipe's"
    steps = []

    def counted(self: Denoising) -> dict[str, float]:
        steps.append(self.done)
        return step(self)

    monkeypatch.setattr(Denoising, "step", counted)
    pretrained(read())
    assert steps == [2, 3]
    assert load_denoiser(run).digest == straight.digest


def test_a_denoiser_trained_alike_is_used_again(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "landfuse")
    first = pretrained(read(run="first"))
    seen: list[int] = []
    step = Denoising.step
    monkeypatch.setattr(Denoising, "step", lambda self: (seen.append(1), step(self))[1])
    second = pretrained(read(run="second"))
    assert second.digest == first.digest
    assert not seen
    assert "was trained alike on the same scenes" in caplog.text
    assert load_denoiser(tmp_path / "runs" / "second").digest == first.digest
    for run in ("ablation/full/fold-0", "ablation/cnn/fold-0"):
        assert pretrained(read(run=run, pretrain={**PRETRAIN, "seed": 2})).digest != first.digest
    assert len(seen) == 4, "a variant of an ablation takes the denoiser of another variant"
    assert pretrained(read(run="third", pretrain={**PRETRAIN, "seed": 1})).digest != first.digest
    assert len(seen) == 8


def test_start_from_goes_on_from_another_runs_denoiser(read: Read, tmp_path: Path) -> None:
    first = pretrained(read(run="first"))
    start = str(tmp_path / "runs" / "first")
    as_it_is = pretrained(read(run="second", pretrain={"start_from": start}))
    assert as_it_is.digest == first.digest
    further = pretrained(read(run="third", pretrain={**PRETRAIN, "start_from": start, "steps": 1}))
    assert further.digest != first.digest
    assert {n: m.weight.tolist() for n, m in further.maps.items()} == {
        n: m.weight.tolist() for n, m in first.maps.items()
    }
    with pytest.raises(BundleError, match="holds no denoiser"):
        pretrained(read(run="fourth", pretrain={"start_from": str(tmp_path / "nowhere")}))


def test_an_untrained_denoiser_is_a_setting(read: Read) -> None:
    made = pretrained(read(pretrain={**PRETRAIN, "steps": 0}))
    assert made.facts["steps"] == 0


def test_fit_on_train_sees_no_test_pixel(read: Read, place: Path, tmp_path: Path) -> None:
    """The scene with other test, validation and calibration pixels gives the same denoiser, to the bit."""
    changed = tmp_path / "changed"
    changed.mkdir()
    words = {"pretrain": {**PRETRAIN, "fit_on": "train"}, "split": {"calibration": 0.3}}
    recipe = read(**words)
    base = base_of(recipe)
    unseen = np.isin(base.roles[0], (TEST, VALIDATION, CALIBRATION))
    assert (base.roles[0] == CALIBRATION).any()
    for name in ("a", "b"):
        values = base.scenes[0].read(name, base.scenes[0].grid.window)
        values[:, unseen] += 50
        write_raster(changed / f"{name}.tif", base.scenes[0].grid, values, nodata=float("nan"))
    for name in ("scene.yaml", "labels.tif"):
        (changed / name).write_bytes((place / name).read_bytes())
    other = read(scene=changed / "scene.yaml", run="elsewhere/other", **words)
    assert np.array_equal(base.roles[0], base_of(other).roles[0])
    first = pretrained(recipe)
    assert first.facts["transductive"] is False
    assert pretrained(other).digest == first.digest
    open_scene_runs = [
        read(scene=s, run=f"elsewhere/{i}") for i, s in enumerate((place / "scene.yaml", changed / "scene.yaml"))
    ]
    assert len({pretrained(one).digest for one in open_scene_runs}) == 2
    assert (base.roles[0] == TRAIN).any()


def test_one_modality_works_and_says_that_nothing_is_balanced(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    made = pretrained(read(modalities=["a"]))
    assert list(made.maps) == ["a"]
    assert "there is nothing to balance" in caplog.text
    assert made.facts["last"]["r_a"] == 0
    some = pretrained(read(run="other", pretrain={**PRETRAIN, "modalities": ["b"]}))
    assert list(some.maps) == ["b"]
    with pytest.raises(SettingsError, match="names the modality c"):
        pretrained(read(pretrain={**PRETRAIN, "modalities": ["c"]}))


def test_a_constant_modality_is_reported(
    read: Read, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("scene.yaml", "labels.tif", "a.tif"):
        (flat / name).write_bytes((place / name).read_bytes())
    scene = open_scene(place / "scene.yaml")
    write_raster(flat / "b.tif", scene.grid, np.full((2, 96, 96), 7, np.float32), nodata=float("nan"))
    made = pretrained(read(scene=flat / "scene.yaml"))
    assert "b never changes: it is left out of the balance" in caplog.text
    assert np.isfinite(list(made.facts["last"].values())).all()


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Denoising.step

    def broken(self: Denoising) -> dict[str, torch.Tensor]:
        if self.done == 3:
            self.network.noise_heads["b"].bias.data.fill_(float("nan"))
        return step(self)

    monkeypatch.setattr(Denoising, "step", broken)
    with pytest.raises(ModelError, match="denoise_b of pre-training step 3 is not finite"):
        train(read(), progress=False)
    saved = torch.load(tmp_path / "runs" / "run" / "checkpoints" / "denoiser.pt", weights_only=True)
    assert saved["state"]["done"] == 2, "what was good when the losses were last looked at"
    assert all(torch.isfinite(value).all() for value in saved["state"]["average"].values())


def test_features_need_a_denoiser(read: Read) -> None:
    with pytest.raises(SettingsError, match="add `pretrain:`"):
        read(pretrain=None)
    with pytest.raises(SettingsError, match="diffusion_9"):
        read(pixel_maps={"diffusion_9": {"kind": "pca"}}).read_scene()
    read(pixel_maps={"diffusion_2": {"kind": "pca", "components": 4}}).read_scene()
