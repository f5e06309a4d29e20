"""`training.use=all`: folds give the score, the epochs and the calibration; the model learns from every label."""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

import landfuse as lf
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import evaluate
from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import SettingsError, SplitError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_array
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TEST
from landfuse.simulate.scene import simulate_flat
from landfuse.studies.compare import compare
from landfuse.studies.modalities import modality_table
from landfuse.studies.series import members
from landfuse.training.lightning_task import Task
from landfuse.training.recipe import Recipe
from landfuse.training.run import read_history, read_run
from landfuse.training.train import train
from landfuse.training.training_data import TrainingData

train_module = sys.modules["landfuse.training.train"]

MEASURED = "cross-validated over 2 folds, not measured on this model"


def write(folder: Path, scene: Path, **sections: Any) -> Path:
    text = {
        "scene": str(scene),
        "run": str(folder / "run"),
        "model": {"name": "forest", "trees": 8, "context": []},
        "split": {"folds": 2},
        "training": {"use": "all"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**text, **sections}))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the scene, `run` and `map.tif` beside it."""
    folder = tmp_path_factory.mktemp("all")
    shutil.copytree(place, folder, dirs_exist_ok=True)
    train(write(folder, folder / "scene.yaml"), progress=False)
    lf.predict(lf.load_bundle(folder / "run"), lf.open_scene(folder / "scene.yaml"), folder / "map.tif")
    return folder / "run"


@pytest.fixture(scope="module")
def scene(run: Path) -> Scene:
    return lf.open_scene(run.parent / "scene.yaml")


def codes(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as file:
        return file.read(1)


def test_each_pixel_is_scored_by_the_model_that_had_not_learnt_it(run: Path, scene: Scene) -> None:
    expected, leaks, tested = np.full_like(scene.labels, UNLABELLED), [], []
    for fold in "01":
        folder = run / "folds" / fold
        test = codes(folder / "split" / "chequers.tif") == TEST
        assert (expected[test] == UNLABELLED).all()
        expected[test] = map_array(load_bundle(folder), scene, wanted=test)[test]
        leaks.append(read_run(folder).scores["leak_fraction"])
        tested.append(read_run(folder).scores["test"]["pixels"])
    confusion = Confusion.of(scene.legend)
    confusion.update(scene.labels, expected)
    found = read_run(run)
    assert found.scores["test"] == pytest.approx(confusion.scores())
    assert found.scores["test"]["pixels"] == sum(tested) > 8000
    known = {name: one["value"] for name, one in found.scores["intervals"]["scores"].items()}
    assert known == pytest.approx({name: confusion.scores()[name] for name in known})
    assert np.array_equal(
        codes(run / "cross_validation" / "chequers.tif"),
        np.where(scene.labels == UNLABELLED, 255, scene.legend.to_codes(expected)),
    )
    assert found.scores["leak_fraction"] == pytest.approx(np.average(leaks, weights=tested))
    assert found.scores["calibration"]["test"]["after"]["pixels"] == sum(tested)
    bundle = load_bundle(run)
    temperatures = [load_bundle(run / "folds" / fold).temperature for fold in "01"]
    assert bundle.temperature == pytest.approx(math.sqrt(temperatures[0] * temperatures[1]))
    assert bundle.cross_validation is not None
    assert bundle.cross_validation["measured"] == found.scores["cross_validation"]["measured"] == MEASURED
    assert bundle.cross_validation["scores"]["OA"] == pytest.approx(confusion.scores()["OA"])


def test_the_model_learns_from_every_label(run: Path, scene: Scene) -> None:
    labelled = (scene.labels != UNLABELLED) & (
        scene.read("b", scene.grid.window)[0] == scene.read("b", scene.grid.window)[0]
    )
    right = (map_array(load_bundle(run), scene)[labelled] == scene.labels[labelled]).mean()
    fold = (map_array(load_bundle(run / "folds" / "0"), scene)[labelled] == scene.labels[labelled]).mean()
    assert right > 0.97 > fold  # trees know by heart what they learnt
    assert np.array_equal(codes(run / "split" / "chequers.tif"), (scene.labels != UNLABELLED).astype(np.uint8))


def test_its_own_labels_do_not_score_it(run: Path, scene: Scene, landfuse: Callable[..., Any], tmp_path: Path) -> None:
    folder = run.parent
    for options in ([], ["--role", "all"], ["--role", "train"], ["--split", run / "folds" / "0" / "split"]):
        result = landfuse("evaluate", folder / "map.tif", folder / "scene.yaml", *options)
        assert result.code == 2
        assert "was trained on all labels" in result.err
        assert f"landfuse sample {folder / 'map.tif'}" in result.err
    with pytest.raises(SplitError, match="trained on all labels"):
        evaluate(run / "cross_validation", folder / "scene.yaml", role="all", against=folder / "map.tif")
    held_out = evaluate(run / "cross_validation", folder / "scene.yaml", role="all")
    assert held_out.confusion.scores() == pytest.approx(read_run(run).scores["test"])
    shutil.copytree(folder, tmp_path / "b")  # labels that changed since
    with rasterio.open(tmp_path / "b" / "labels.tif", "r+") as file:
        file.write(np.roll(file.read(), 5, axis=2))
    with pytest.raises(SplitError, match="trained on all labels"):
        evaluate(tmp_path / "b" / "map.tif", tmp_path / "b" / "scene.yaml")
    assert evaluate(tmp_path / "b" / "map.tif", tmp_path / "b" / "scene.yaml", role="all").confusion.pixels > 8000


def test_report_and_compare_say_how_it_was_scored(run: Path, landfuse: Callable[..., Any]) -> None:
    result = landfuse("train", run.parent / "recipe.yaml", "--quiet")
    assert result.code == 0
    assert MEASURED in " ".join(result.out.split())
    page = lf.report(run).read_text()
    assert f"The scores are {MEASURED}" in page
    assert f"{read_run(run).scores['test']['pixels']:,} pixels were scored" in page
    assert "landfuse sample run/maps" in page
    assert "landfuse evaluate" not in page
    assert compare([run]).notes == (f"forest a + b: {MEASURED}",)
    assert len(compare([run / "folds"]).recipes[0].runs) == 2
    with pytest.raises(SettingsError, match="learnt from all labels"):
        modality_table(run)


def test_runs_of_other_folds_are_not_the_same_split(run: Path, tmp_path: Path) -> None:
    train(write(tmp_path, run.parent / "scene.yaml", split={"folds": 2, "seed": 3}), "model.trees=1", progress=False)
    assert read_run(tmp_path / "run").split != read_run(run).split


def test_refused_before_anything_is_trained(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "_train", lambda *_: pytest.fail("it trains"))
    for split in (None, {"kind": "random", "train": 0.5}):
        with pytest.raises(SplitError, match=r"split without folds(.|\n)*split\.folds=5"):
            train(write(tmp_path, place / "scene.yaml", split=split), progress=False)
    whole = train_module.read_training_data

    def read(recipe: Recipe) -> TrainingData:
        if recipe.split == {"folds": 2, "fold": 1}:
            raise SplitError("the class `x` has no training pixel", "some", "change the split")
        return whole(recipe)

    monkeypatch.setattr(train_module, "read_training_data", read)
    with pytest.raises(SplitError, match="with fold 1 as the test, the class `x` has no training pixel"):
        train(write(tmp_path, place / "scene.yaml"), progress=False)
    with pytest.raises(SettingsError, match="one device"):
        train(write(tmp_path, place / "scene.yaml", training={"use": "all", "devices": 2}), progress=False)
    with pytest.raises(SettingsError, match="by itself"):
        members(write(tmp_path, place / "scene.yaml"), (), folds=[0, 1])
    assert not (tmp_path / "run" / "recipe.json").exists()  # a corrected recipe may have the folder


NET: dict[str, Any] = {
    "model": {"name": "two_branch", "view": 3, "width": 4},
    "samples": {"batch": 64, "windows": 64},
    "training": {"use": "all", "epochs": 3, "rate": 0.02, "precision": "float32"},
}


def test_epochs_are_the_mean_of_the_best_and_interruptions_are_gone_on_from(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    best = {"0": 2, "1": 0}  # from 0: 3 epochs and 1, 2 in the mean

    def score(self: Task) -> None:
        fold = Path(self.trainer.checkpoint_callbacks[0].dirpath).parent.name  # type: ignore[attr-defined]
        self.log("val_mF1", float(self.current_epoch == best[fold]))

    monkeypatch.setattr(Task, "on_validation_epoch_end", score)
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    straight, broken = (tmp_path / name / "run" for name in ("straight", "broken"))
    with caplog.at_level("INFO", "landfuse"):
        train(write(straight.parent, place / "scene.yaml", **NET), progress=False)
    parameters = f"{read_run(straight).scores['parameters']:,} parameters, "
    said = [line.getMessage() for line in caplog.records if line.getMessage().startswith(parameters)]
    assert [re.findall(r"memory; at most (\d) epochs of 1 steps, about 0:00:\d\d left", line) for line in said] == [
        ["3"], ["3"], ["2"],
    ]  # fmt: skip
    assert read_run(straight).scores["cross_validation"]["epochs"] == [3, 1]
    assert len(read_history(straight / "metrics.csv")) == 2
    path, whole = write(broken.parent, place / "scene.yaml", **NET), Task.training_step
    # An epoch is one step: within the second fold, then (the rest of it are 2 steps) within the fit on all labels.
    for steps in (4, 3):
        left = [steps]

        def step(self: Task, batch: Any, index: int, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return whole(self, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(Task, "training_step", step)
            with pytest.raises(KeyboardInterrupt):
                train(path, progress=False)
        assert (broken / "recipe.json").exists()
        assert not (broken / "scores.json").exists()
    assert (broken / "checkpoints" / "last.ckpt").exists()
    train(path, progress=False)
    one, other = (load_bundle(run).state_dict() for run in (straight, broken))
    assert all(bool((one[key] == other[key]).all()) for key in one)
    for name in ("test", "cross_validation"):
        assert read_run(broken).scores[name] == read_run(straight).scores[name]


def test_of_arrays() -> None:
    flat = simulate_flat(96, 96, {"a": 3})
    images, labels = {"a": flat.read("a", flat.grid.window)}, flat.legend.to_codes(flat.labels)
    fitted = lf.Classifier("forest", trees=3, use="all", split={"size": 8, "folds": 2}).fit(
        images, labels, progress=False
    )
    assert fitted.run.scores["cross_validation"]["measured"] == MEASURED
    assert fitted.roles is not None
    assert (fitted.roles == 1).all()
    with pytest.raises(SplitError, match="trained on all labels"):
        fitted.evaluate(images, labels, progress=False)
    with pytest.raises(SplitError, match="split without folds"):
        lf.Classifier("forest", use="all").fit(
            images, labels, (np.arange(96) // 8 % 2 * 2 + np.ones((96, 1))).astype(int)
        )
