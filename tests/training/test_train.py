"""From a recipe to a run folder, also when it is interrupted, repeated, or cannot be done."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import landfuse as lf
from landfuse.accuracy.bootstrap import block_confusions, difference_intervals
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import FaultsError, LandfuseError, ModelError, OutputError, SettingsError, SplitError
from landfuse.mapping.engine import map_blocks
from landfuse.mapping.locks import held
from landfuse.models.base import FusionModel
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION
from landfuse.studies.modalities import modality_table
from landfuse.training.checkpoints import Checkpoints, write_checkpoint
from landfuse.training.lightning_task import Task
from landfuse.training.recipe import read_recipe
from landfuse.training.run import read_history
from landfuse.training.train import train
from landfuse.training.training_data import TrainingData, read_training_data

train_module = sys.modules["landfuse.training.train"]
SMALL: dict[str, Any] = {
    "model": {"name": "two_branch", "view": 5, "width": 8},
    "samples": {"batch": 32, "windows": 160},
    "training": {"epochs": 4, "rate": 0.01, "precision": "float32", "patience": None},
}

Write = Callable[..., Path]


@pytest.fixture
def write(place: Path, tmp_path: Path) -> Write:
    """Writes a recipe for the small scene: SMALL, changed by keywords; its run folder is `run` beside it."""

    def recipe(name: str = "recipe", scene: Path = place / "scene.yaml", **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        text = {"scene": str(scene), "run": str(tmp_path / "run"), **SMALL, **changes}
        path.write_text(yaml.safe_dump(text))
        return path

    return recipe


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_bundle(run).state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def scores(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


@pytest.mark.parametrize(
    ("model", "overlap"),
    [
        ({"name": "forest", "trees": 20, "context": [3]}, {}),
        ({"name": "two_branch", "view": 5, "width": 8}, {}),
        (
            {"name": "stacked", "view": 16, "core": 12, "architecture": "Linknet", "encoder": "tu-test_resnet"},
            {"mapping": {"stride": 8}, "samples": {"batch": 8, "windows": 48}},
        ),
    ],
    ids=["forest", "two_branch", "stacked"],
)
def test_a_whole_run(model: dict[str, Any], overlap: dict[str, Any], write: Write, place: Path, tmp_path: Path) -> None:
    classifier = train(write(model=model, **overlap), progress=False)
    run = tmp_path / "run"
    expected = {
        "bundle",
        "confusion.csv",
        "environment.json",
        "inputs.json",
        "recipe.json",
        "reliability.png",
        "scores.json",
        "split",
    }
    if model["name"] != "forest":
        expected |= {"metrics.csv", "curves.png", "tensorboard"}
    assert {p.name for p in run.iterdir()} == expected
    assert same(weights(run), classifier.state_dict())
    assert json.loads((run / "recipe.json").read_text())["model"] == model

    scene = lf.open_scene(place)
    lf.predict(classifier, scene, tmp_path / "map.tif")
    result = lf.evaluate(tmp_path / "map.tif", place, split=run / "split")
    assert result.role == "test"
    assert scores(run)["test"] == pytest.approx(result.confusion.scores(), abs=0)
    assert (run / "confusion.csv").read_text() == result.confusion.to_csv(result.legend)
    assert result.confusion.unmapped > 0, "the corner without data"
    chance = np.max(result.confusion.support) / result.confusion.pixels
    assert result.confusion.overall_accuracy > chance + 0.15
    found = scores(run)
    assert found["validation"]["OA"] > 0.4
    assert found["parameters"] == sum(p.numel() for p in classifier.model.parameters())
    if model["name"] != "forest":
        history = read_history(run / "metrics.csv")
        assert [row["epoch"] for row in history] == [0, 1, 2, 3]
        best = max(history, key=lambda row: row["val_mF1"])
        assert found["epoch"] == best["epoch"], "the first epoch of the highest score"
        if not overlap:  # overlapping windows, which mapping averages, score a little otherwise
            assert found["validation"]["mF1"] == pytest.approx(best["val_mF1"], abs=1e-6)
        assert history[0]["train_loss"] > history[-1]["train_loss"]


def test_the_same_recipe_gives_the_same_weights_for_any_loader(write: Write, tmp_path: Path) -> None:
    runs = []
    for name, samples in (("a", {}), ("b", {"workers": 2}), ("c", {"memory": "1 kB"})):
        runs.append(tmp_path / name)
        train(write(run=str(runs[-1]), samples=SMALL["samples"] | samples), progress=False)
    assert same(weights(runs[0]), weights(runs[1]))
    assert same(weights(runs[0]), weights(runs[2]))
    train(write(run=str(tmp_path / "d"), training=SMALL["training"] | {"seed": 1}), progress=False)
    assert not same(weights(runs[0]), weights(tmp_path / "d"))


@pytest.fixture
def interrupt_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the user press ctrl-C before an epoch; -1 for no more."""
    original = Task.on_train_epoch_start

    def arrange(epoch: int) -> None:
        def start(self: Task) -> None:
            if self.current_epoch == epoch:
                raise KeyboardInterrupt
            original(self)

        monkeypatch.setattr(Task, "on_train_epoch_start", start)

    return arrange


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    write: Write, tmp_path: Path, interrupt_before: Callable[[int], None]
) -> None:
    train(write(run=str(tmp_path / "straight")), progress=False)
    path = write(run=str(tmp_path / "broken"))
    on_interrupt = signal.getsignal(signal.SIGINT)
    for epoch in (1, 3):
        interrupt_before(epoch)
        with pytest.raises(KeyboardInterrupt):
            train(path, progress=False)
        assert not (tmp_path / "broken" / "scores.json").exists()
        assert signal.getsignal(signal.SIGINT) is on_interrupt
        for name in ("last", "best"):
            torch.load(tmp_path / "broken" / "checkpoints" / f"{name}.ckpt", weights_only=True)
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])  # the one of the epoch before is whole
    interrupt_before(-1)
    train(path, progress=False)
    assert same(weights(tmp_path / "broken"), weights(tmp_path / "straight"))
    assert (tmp_path / "broken" / "metrics.csv").read_text() == (tmp_path / "straight" / "metrics.csv").read_text()
    for key in ("test", "validation", "epoch", "epochs"):
        assert scores(tmp_path / "broken")[key] == scores(tmp_path / "straight")[key]
    assert not (tmp_path / "broken" / "checkpoints").exists()


def test_a_run_interrupted_while_a_checkpoint_is_written_keeps_the_one_before(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_before: Callable[[int], None]
) -> None:
    def half(self: Checkpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if Path(path).name == "last.ckpt" and Path(path).exists():
            Path(path).replace(Path(path).with_name("before-last.ckpt"))
            raise KeyboardInterrupt
        write_checkpoint(checkpoint, Path(path))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_checkpoint", half)
        with pytest.raises(KeyboardInterrupt):
            train(write(), progress=False)
    assert len(read_history(tmp_path / "run" / "metrics.csv")) == 2
    interrupt_before(0)  # it would stop there if it began again
    train(write(), progress=False)


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> dict[str, torch.Tensor]:
    """Has validation score these values, epoch by epoch; gives the weights of the best epoch, once it was."""
    best: dict[str, torch.Tensor] = {}

    def log(self: Task) -> None:
        self.log("val_mF1", values[self.current_epoch])
        if values[self.current_epoch] == max(values):
            best.update({key: value.clone() for key, value in self.model.state_dict().items()})

    monkeypatch.setattr(Task, "on_validation_epoch_end", log)
    return best


def test_the_best_epoch_survives_an_interruption(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_before: Callable[[int], None]
) -> None:
    best = scripted(monkeypatch, [0.1, 0.9, 0.5, 0.6])
    interrupt_before(2)
    with pytest.raises(KeyboardInterrupt):
        train(write(), progress=False)
    interrupt_before(-1)
    train(write(), progress=False)
    assert scores(tmp_path / "run")["epoch"] == 1
    assert same(
        {f"model.{key}": value for key, value in best.items()},
        {key: value for key, value in weights(tmp_path / "run").items() if key.startswith("model.")},
    )


def test_patience(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_before: Callable[[int], None]
) -> None:
    scripted(monkeypatch, [0.1, 0.5, 0.4, 0.3, 0.99, 0.99])
    path = write(training=SMALL["training"] | {"epochs": 6, "patience": 2})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after training, before the end
        patch.setattr(train_module, "score_role", stop)
        with pytest.raises(KeyboardInterrupt):
            train(path, progress=False)
    train(path, progress=False)
    assert scores(tmp_path / "run")["epochs"] == 4
    assert scores(tmp_path / "run")["epoch"] == 1
    assert len(read_history(tmp_path / "run" / "metrics.csv")) == 4


def test_a_finished_run_is_not_repeated(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(model={"name": "forest", "trees": 3})
    first = train(path, progress=False)
    monkeypatch.setattr(train_module, "_train", lambda *_: pytest.fail("it trains again"))
    assert same(train(path, progress=False).state_dict(), first.state_dict())
    monkeypatch.chdir(tmp_path)
    assert same(train(path, "run=run", progress=False).state_dict(), first.state_dict()), (
        "one folder, spelt in two ways"
    )
    with pytest.raises(OutputError, match=r"another recipe; they differ in model\.trees(.|\n)*run="):
        train(path, "model.trees=4", progress=False)


def test_one_process_trains_a_run(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(model={"name": "forest", "trees": 3})
    with held(tmp_path / "run", "training"):
        with pytest.raises(OutputError, match=r"run is in use: process \d+ on .* is training at this moment"):
            train(path, progress=False)
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["lock"]
        with monkeypatch.context() as patch:  # a further machine of those that train it together
            patch.setenv("NODE_RANK", "1")
            patch.setattr(train_module, "_train", lambda *_: "taking part")
            assert train(path, progress=False) == "taking part"
    train(path, progress=False)
    with held(tmp_path / "run", "training"):
        train(path, progress=False)  # it has ended: only read


def test_only_a_run_that_learnt_something_keeps_its_folder(
    write: Write, tmp_path: Path, interrupt_before: Callable[[int], None]
) -> None:
    path = write()
    with pytest.raises(SettingsError, match="names the modality c"):
        train(path, "modalities=[a, c]", progress=False)
    with pytest.raises(ModelError, match="PCA of `a` is to keep 9 components of 3 bands"):
        train(path, "pixel_maps={a: {kind: pca, components: 9}}", progress=False)
    with pytest.raises(ModelError, match="Trainer refuses"):
        train(path, "training.strategy=nonsense", progress=False)
    with pytest.raises(SettingsError, match=r"training\.devices is 4000\n(.|\n)*at most \d+ on this machine"):
        train(path, "training.devices=4000", "training.accelerator=cpu", progress=False)
    interrupt_before(0)
    with pytest.raises(KeyboardInterrupt):
        train(path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
    interrupt_before(1)
    with pytest.raises(KeyboardInterrupt):
        train(path, progress=False)
    with pytest.raises(OutputError, match=r"differ in training\.rate"):
        train(path, "training.rate=0.1", progress=False)


def test_the_test_split_is_read_once_at_the_end(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    targets, step, validate = TrainingData.targets, Task.training_step, Task.on_validation_epoch_end

    def spied_targets(self: TrainingData, role: int) -> Any:
        events.append(role)
        return targets(self, role)

    def spied_step(self: Task, *args: Any) -> Any:
        events.append("step")
        return step(self, *args)

    def spied_validation(self: Task) -> None:
        events.append("validation")
        validate(self)

    monkeypatch.setattr(TrainingData, "targets", spied_targets)
    monkeypatch.setattr(Task, "training_step", spied_step)
    monkeypatch.setattr(Task, "on_validation_epoch_end", spied_validation)
    train(write(), progress=False)
    assert events[:2] == [TRAIN, VALIDATION]
    assert events[2:-2] == (["step"] * 5 + ["validation"]) * 4
    assert events[-2:] == [VALIDATION, TEST]


def test_nothing_of_the_test_split_gets_into_the_bundle(place: Path, write: Write, tmp_path: Path) -> None:
    """Here a forest sees single pixels: other values and labels under test and validation change no byte of it."""
    forest = {"name": "forest", "trees": 5, "context": []}
    recipe, scene = read_recipe(write()), lf.open_scene(place)
    (roles,) = read_training_data(recipe).roles
    write_raster(tmp_path / "roles.tif", scene.grid, roles)
    text = yaml.safe_load((place / "scene.yaml").read_text())
    text["split"] = {"kind": "roles", "path": str(tmp_path / "roles.tif")}
    text["root"] = str(place)
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    train(write(model=forest, run=str(tmp_path / "one"), scene=tmp_path / "scene.yaml"), progress=False)
    other = roles != TRAIN
    assert other.sum() > 1000
    for name in scene.modalities:
        values = scene.read(name, scene.grid.window)
        values[:, other] += 5
        write_raster(tmp_path / "other" / f"{name}.tif", scene.grid, values, nodata=float("nan"))
    codes = scene.legend.to_codes(scene.labels)
    write_raster(
        tmp_path / "other" / "labels.tif", scene.grid, np.where(other & (codes < 255), 1, codes).astype(np.uint8)
    )
    del text["root"]
    (tmp_path / "other" / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    train(write(model=forest, run=str(tmp_path / "two"), scene=tmp_path / "other" / "scene.yaml"), progress=False)
    first, second = (tmp_path / name / "bundle" / "model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert "applicability" in load_bundle(tmp_path / "two").notes, "it keeps training pixels, and only these"
    assert scores(tmp_path / "one")["test"] != scores(tmp_path / "two")["test"]


def test_a_loss_that_is_not_finite_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FusionModel.loss
    seen = []

    def loss(self: FusionModel, *args: Any) -> dict[str, torch.Tensor]:
        seen.append(1)
        parts = original(self, *args)
        return {"loss": parts["loss"] * (float("nan") if len(seen) == 8 else 1), "extra": parts["loss"]}

    monkeypatch.setattr(FusionModel, "loss", loss)
    with pytest.raises(ModelError, match=r"loss of batch 2 in epoch 1 is not finite \(loss nan, extra(.|\n)*rate"):
        train(write(), progress=False)


def test_without_validation_the_last_epoch_is_kept(write: Write, tmp_path: Path) -> None:
    train(write(split={"validation": 0}), progress=False)
    assert "validation" not in scores(tmp_path / "run")
    assert "epoch" not in scores(tmp_path / "run")
    assert scores(tmp_path / "run")["epochs"] == 4


def test_a_view_larger_than_the_scene_works(tmp_path: Path, write: Write) -> None:
    grid = Grid(9, 12, (1.0, 0, 0, 0, -1.0, 0), "EPSG:32632")
    labels = np.tile(np.repeat(np.array([1, 2], np.uint8), 6), (9, 1))
    write_raster(tmp_path / "tiny" / "a.tif", grid, labels[None].astype(np.float32) * 3)
    write_raster(tmp_path / "tiny" / "labels.tif", grid, labels)
    text = {
        "name": "tiny",
        "modalities": {"a": {"path": "a.tif"}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": "left"}, {"name": "right"}],
        "split": {"kind": "random", "train": 0.5},
    }
    (tmp_path / "tiny" / "scene.yaml").write_text(yaml.safe_dump(text))
    model = {"name": "two_branch", "view": 25, "width": 4}
    train(write(scene=tmp_path / "tiny" / "scene.yaml", model=model, samples={"batch": 8}), progress=False)
    assert scores(tmp_path / "run")["test"]["pixels"] == 54
    assert scores(tmp_path / "run")["leak_fraction"] == 1


def test_what_cannot_be_trained_is_refused(write: Write, place: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[LandfuseError], str, dict[str, Any]]] = [
        (SplitError, r"class `field 5` has no training pixel(.|\n)*take it out of the legend", {"legend": "field 5"}),
        (FaultsError, r"there is no file .*b\.tif", {"b": "gone"}),
        (OutputError, r"/dev/null/x cannot be written", {"run": "/dev/null/x"}),
        (SettingsError, r"go with the path", {}),
    ]
    text = yaml.safe_load((place / "scene.yaml").read_text())
    text["root"] = str(place)
    for number, (kind, message, change) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        own = json.loads(json.dumps(text))
        if "legend" in change:
            own["legend"].append({"name": change["legend"], "code": 9})
        if "b" in change:
            own["modalities"]["b"]["path"] = "gone/b.tif"
        (folder / "scene.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
        path = write(scene=folder / "scene.yaml", **({"run": change["run"]} if "run" in change else {}))
        with pytest.raises(kind, match=message):
            train(*((path,) if change else (read_recipe(path), "training.epochs=1")), progress=False)
        assert not (tmp_path / "run").exists()


def test_tiles_of_different_kind_are_refused_before_training(tmp_path: Path, write: Write) -> None:
    grid = Grid(8, 8, (1.0, 0, 0, 0, -1.0, 0), "EPSG:32632")
    for tile, bands in (("t1", 3), ("t2", 4)):
        write_raster(
            tmp_path / "tiles" / f"{tile}_a.tif", grid, np.ones((bands, 8, 8), np.float32 if bands == 3 else np.int16)
        )
        write_raster(tmp_path / "tiles" / f"{tile}_l.tif", grid, np.ones((8, 8), np.uint8))
    text = {
        "name": "tiles",
        "modalities": {"a": {"path": "{tile}_a.tif"}},
        "labels": {"path": "{tile}_l.tif"},
        "legend": [{"name": "all"}],
        "split": {"kind": "tiles", "test_tiles": ["t2"]},
    }
    (tmp_path / "tiles" / "scene.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(FaultsError) as raised:
        train(write(scene=tmp_path / "tiles" / "scene.yaml"), progress=False)
    assert "`a` has 4 bands in the tile `t2`\n  expected: 3 bands, as in the tile `t1`" in str(raised.value)
    assert "`a` has int16 as data type in the tile `t2`" in str(raised.value)


def command(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "landfuse.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def test_control_c_and_on(write: Write, tmp_path: Path) -> None:
    path = write(training=SMALL["training"] | {"epochs": 2000})
    running = command("train", path)
    metrics = tmp_path / "run" / "metrics.csv"
    while running.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=100)
    assert running.returncode == 130, err
    assert "Traceback" not in out + err
    assert "interrupted; nothing half-written is left" in err
    assert not list((tmp_path / "run").rglob("*.part"))
    done = len(read_history(metrics))
    with pytest.MonkeyPatch.context() as patch:
        first: list[int] = []
        original = Task.on_train_epoch_start

        def start(self: Task) -> None:
            first.append(self.current_epoch)
            original(self)
            if len(first) > 2:
                self.trainer.should_stop = True

        patch.setattr(Task, "on_train_epoch_start", start)
        assert isinstance(train(path, progress=False), Bundle)
    assert first[0] in (done - 1, done)
    assert first[0] > 0
    assert (tmp_path / "run" / "scores.json").exists()


def test_two_processes_count_together(write: Write, tmp_path: Path) -> None:
    """Validation of one epoch at a rate that changes nothing: the scores of both are those of one process."""
    still = SMALL["training"] | {"epochs": 1, "rate": 1e-12, "weight_decay": 0.0, "accelerator": "cpu"}
    train(write(run=str(tmp_path / "one"), training=still), progress=False)
    path = write("both", run=str(tmp_path / "two"), training=still | {"devices": 2, "strategy": "ddp"})
    running = command("train", path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    out, err = running.communicate(timeout=200)
    assert running.returncode == 0, err
    assert "Traceback" not in out + err
    assert out.count("bundle:") == 1, "one process reports"
    [one], [two] = (read_history(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    # Running statistics of the batches differ, since each process has half of each; the counts' sum may not.
    assert scores(tmp_path / "two")["test"]["pixels"] == scores(tmp_path / "one")["test"]["pixels"]
    assert two["val_OA"] == pytest.approx(scores(tmp_path / "two")["validation"]["OA"], abs=1e-6)
    assert one["val_OA"] == pytest.approx(scores(tmp_path / "one")["validation"]["OA"], abs=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_temperature_is_fitted_on_what_mapping_gives(
    overlap: bool, write: Write, place: Path, tmp_path: Path
) -> None:
    """On the validation pixels, by a search of its own; then it is what makes the confidence layer."""
    model = {"name": "stacked", "view": 16, "core": 12, "architecture": "Linknet", "encoder": "tu-test_resnet"}
    changes = {"model": model, "mapping": {"stride": 8}, "samples": {"batch": 8, "windows": 48}} if overlap else {}
    train(write(training=SMALL["training"] | {"epochs": 2}, **changes), progress=False)
    run = tmp_path / "run"
    classifier = load_bundle(run)
    assert classifier.temperature != 1
    scene = lf.open_scene(place)
    [roles] = GdalRaster(str(run / "split" / "chequers.tif")).read_numbers(scene.grid.window)[0]
    [part] = map_blocks(classifier, scene)
    surprise = {}
    for role in (VALIDATION, TEST):
        known = (roles == role) & (part.classes != lf.UNLABELLED)
        logits, truth = torch.from_numpy(part.logits[:, known].T).double(), torch.from_numpy(scene.labels[known]).long()
        surprise[role] = [
            float(torch.nn.functional.cross_entropy(logits / t, truth))
            for t in (classifier.temperature, classifier.temperature * 1.02, classifier.temperature / 1.02, 1.0)
        ]
    assert min(surprise[VALIDATION]) == surprise[VALIDATION][0]
    calibration = scores(run)["calibration"]
    assert calibration["fitted_on"] == "validation"
    assert calibration["temperature"] == classifier.temperature
    assert calibration["test"]["after"]["NLL"] == pytest.approx(surprise[TEST][0], rel=1e-5)
    assert calibration["test"]["before"]["NLL"] == pytest.approx(surprise[TEST][3], rel=1e-5)
    assert calibration["validation"]["after"]["NLL"] == pytest.approx(surprise[VALIDATION][0], rel=1e-5)
    assert calibration["test"]["before"]["pixels"] == scores(run)["test"]["pixels"]
    np.testing.assert_array_equal(
        part.classes[known], part.probabilities[:, known].argmax(axis=0), "the map is what it was"
    )
    expected = torch.softmax(torch.from_numpy(part.logits).double() / classifier.temperature, dim=0).numpy()
    np.testing.assert_allclose(part.probabilities, expected, rtol=1e-5, atol=1e-7)


def test_a_model_trained_with_dropout_maps_with_whatever_is_there(write: Write, place: Path, tmp_path: Path) -> None:
    """The corner without `b` is mapped, and so is a scene without `b`; the table says what that costs."""
    samples = SMALL["samples"] | {"modality_dropout": {"b": 0.4}}
    train(write(samples=samples, training=SMALL["training"] | {"epochs": 6}), progress=False)
    run = tmp_path / "run"
    classifier = load_bundle(run)
    assert classifier.droppable == ("b",)
    learnt = classifier.state_dict()["model.placeholders.b"]
    assert learnt.abs().min() > 0, "it has moved from where it began"
    scene = lf.open_scene(place)
    assert (lf.map_array(classifier, scene)[:6, :9] < 4).all()
    assert scores(run)["test"]["unmapped"] == 0
    assert scores(run)["parameters"] == sum(p.numel() for p in classifier.model.parameters())

    train(write(run=str(tmp_path / "alone"), modalities=["a"]), progress=False)
    seventh = SMALL["training"] | {"seed": 7}
    train(write(run=str(tmp_path / "other"), modalities=["a"], training=seventh), progress=False)
    seen: list[tuple[int, int]] = []
    table = modality_table(run, [tmp_path / "alone", tmp_path / "other"], progress=lambda *done: seen.append(done))
    assert [(row.how, row.seen) for row in table.rows] == [
        ("all", ("a", "b")),
        ("mean", ("b",)),
        ("mean", ("a",)),
        ("placeholder", ("a",)),
        ("trained without", ("a",)),
    ]
    assert seen == [(n, 5) for n in range(1, 6)]
    whole, only_b, mean, placeholder, alone = (row.scores for row in table.rows)
    assert whole == pytest.approx(scores(run)["test"], abs=0)
    assert alone == pytest.approx(scores(tmp_path / "alone")["test"], abs=0)
    assert only_b["unmapped"] > 0, "the corner has neither"
    assert placeholder["pixels"] == whole["pixels"]
    assert any("1 other runs" in note for note in table.notes)

    by_hand = lf.Confusion(4)
    [roles] = GdalRaster(str(run / "split" / "chequers.tif")).read_numbers(scene.grid.window)[0]
    truth = np.where(roles == TEST, scene.labels, lf.UNLABELLED).astype(np.uint8)
    by_hand.update(truth, lf.map_array(classifier, scene, withheld=("b",)))
    assert placeholder == pytest.approx(by_hand.scores(), abs=0)
    lacking = dataclasses.replace(scene, modalities={"a": scene.modalities["a"]})
    assert np.array_equal(
        lf.map_array(classifier, lacking, allow_missing=True), lf.map_array(classifier, scene, withheld=("b",))
    )
    filled = lf.Confusion(4)
    filled.update(truth, lf.map_array(classifier, lacking, mean_for=("b",)))
    assert np.array_equal(
        lf.map_array(classifier, lacking, mean_for=("b",)),
        lf.map_array(classifier, scene, mean_for=("b",), withheld=("b",)),
    )
    assert mean == pytest.approx(filled.scores(), abs=0)
    assert mean != placeholder

    place_of = table.save()
    read = json.loads(place_of.read_text())
    assert read["rows"][3]["differences"]["OA"] == pytest.approx(placeholder["OA"] - whole["OA"])
    low, high = read["rows"][3]["intervals"]["OA"]
    assert low <= read["rows"][3]["differences"]["OA"] <= high
    blocks = [block_confusions(truth, lf.map_array(classifier, scene, withheld=off), 64, 4) for off in (("b",), ())]
    assert (low, high) == dataclasses.astuple(difference_intervals(*blocks).scores["OA"])[1:]
    assert (read["rows"][0]["differences"], read["rows"][0]["intervals"]) == ({}, {})
    lines = (run / "modalities.csv").read_text().splitlines()
    assert len(lines) == 6
    assert lines[4].startswith("placeholder,b,a,,")
    with pytest.raises(SettingsError, match=r"none of 1 runs was trained with fewer(.|\n)*modalities=\[a\]"):
        modality_table(run, [run])
    with pytest.raises(ModelError, match="has one modality, `a`"):
        modality_table(tmp_path / "alone")


def test_dropout_that_cannot_be_is_refused_before_training(write: Write, tmp_path: Path) -> None:
    for name in ("modality_dropout", "date_dropout"):
        seen = {"pretrain": {"steps": 1}, "features": {}, "samples": {name: 0.1}}
        with pytest.raises(SettingsError, match=rf"`features` see all data, and `samples.{name}`"):
            train(write(**seen), progress=False)
    for samples, model, kind, message in (
        ({"modality_dropout": 0.6}, SMALL["model"], SettingsError, r"leave one modality in every sample"),
        ({"modality_dropout": {"c": 0.1}}, SMALL["model"], SettingsError, r"names the modality c"),
        ({"date_dropout": 0.1}, SMALL["model"], SettingsError, r"no modality has dates"),
        ({"modality_dropout": 0.1}, {"name": "forest"}, ModelError, r"cannot learn placeholders"),
    ):
        with pytest.raises(kind, match=message):
            train(write(samples=samples, model=model), progress=False)
        assert not (tmp_path / "run").exists()


def test_all_rows_of_the_modality_table_are_scored_on_the_same_pixels(write: Write, tmp_path: Path) -> None:
    """Without `b` the corner that lacks it could be mapped, but the whole model has no class there."""
    train(write(model={"name": "forest", "trees": 3}), progress=False)
    assert scores(tmp_path / "run")["test"]["unmapped"] > 0
    rows = modality_table(tmp_path / "run").rows
    assert [row.how for row in rows] == ["all", "mean", "mean"]
    assert {row.scores["pixels"] for row in rows} == {scores(tmp_path / "run")["test"]["pixels"]}
