"""What training reports the model; the optimisers and schedules."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file

from landfuse.errors import ModelError, SettingsError
from landfuse.models.base import Modality
from landfuse.models.two_branch import TwoBranch
from landfuse.settings import parse
from landfuse.training.lightning_task import Curves, Task, optimizer_for
from landfuse.training.run import read_history
from landfuse.training.settings import TrainingSettings
from landfuse.training.train import train


def recipe(place: Path, tmp_path: Path) -> Path:
    text = {
        "scene": str(place / "scene.yaml"),
        "run": str(tmp_path / "run"),
        "model": {"name": "two_branch", "view": 3, "width": 4},
        "samples": {"batch": 32, "windows": 128},
        "training": {"epochs": 2, "precision": "float32", "patience": None},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "recipe.yaml"


def test_the_model_knows_how_far_the_training_is_also_after_an_interruption(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[float] = []
    loss, start = TwoBranch.loss, Task.on_train_batch_start

    def watched(self: TwoBranch, *args: Any) -> Any:
        reported.append(self.progress)
        return loss(self, *args)

    def interrupted(self: Task, *args: Any) -> None:
        if self.current_epoch == 1 and len(reported) == 4:
            reported.append(-1)
            raise KeyboardInterrupt
        start(self, *args)

    monkeypatch.setattr(TwoBranch, "loss", watched)
    monkeypatch.setattr(Task, "on_train_batch_start", interrupted)
    for name in ("FIRST", "EVERY"):  # lines by the clock would come between on a slow machine
        monkeypatch.setattr(f"landfuse.progress.{name}", 1e6)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(place, tmp_path), progress=False)
    assert "training:" not in capsys.readouterr().err
    train(recipe(place, tmp_path))
    line, *more = [line for line in capsys.readouterr().err.splitlines() if "training:" in line]
    assert not more, "a line per epoch"
    assert re.fullmatch(r"training: 100%, epoch 2 of 2, train_loss \d\.\d{4}, val_mF1 0\.\d{4}", line)
    assert reported == [0, 1 / 8, 2 / 8, 3 / 8, -1, 4 / 8, 5 / 8, 6 / 8, 7 / 8]


def test_a_class_that_is_not_scored_does_not_choose_the_epoch(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validated(self: Task, batch: Any, index: int) -> None:
        """The first three classes are known a little better in the first epoch, the fourth only in the second."""
        hits = torch.tensor([90, 90, 90, 0] if self.current_epoch == 0 else [80, 80, 80, 10])
        wrong = torch.tensor([100, 100, 100, 10]) - hits
        self.confusion.copy_(torch.diag(hits) + torch.roll(torch.diag(wrong), 1, dims=1))

    monkeypatch.setattr(Task, "validation_step", validated)
    text = yaml.safe_load((place / "scene.yaml").read_text())
    text["root"] = str(place)
    for scored, epoch in ((True, 1), (False, 0)):
        text["legend"][3]["scored"] = scored
        (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
        for score in ("mF1", "AA", "mIoU"):
            run = tmp_path / f"{scored}-{score}"
            changes = [f"scene={tmp_path / 'scene.yaml'}", f"training.choose_by={score}", f"run={run}"]
            train(recipe(place, tmp_path), *changes, progress=False)
            assert json.loads((run / "scores.json").read_text())["epoch"] == epoch, (scored, score)
    rows = read_history(tmp_path / "False-AA" / "metrics.csv")
    assert [row["val_AA"] for row in rows] == pytest.approx([0.9, 0.8])


def test_the_losses_of_an_epoch_are_means_over_its_windows(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    loss = TwoBranch.loss

    def watched(self: TwoBranch, images: dict[str, torch.Tensor], target: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = loss(self, images, target)
        seen.append((len(target), float(parts["loss"].detach())))
        rare = {} if len(seen) % 4 else {"rare": parts["loss"].reshape(1).double() * 2}
        early = {} if len(seen) > 4 else {"early": torch.tensor(len(seen))}
        return {**parts, **rare, **early}

    monkeypatch.setattr(TwoBranch, "loss", watched)
    train(recipe(place, tmp_path), "samples.windows=100", "samples.batch=28", progress=False)
    rows = read_history(tmp_path / "run" / "metrics.csv")
    assert [size for size, _ in seen[:4]] == [25] * 4
    assert [row.get("train_early", math.nan) for row in rows] == pytest.approx([2.5, math.nan], nan_ok=True)
    monkeypatch.setattr(TwoBranch, "loss", lambda self, *args: {**loss(self, *args), "all": torch.ones(3)})
    with pytest.raises(ModelError, match="the part `all` of the model's loss is 3 numbers"):
        train(recipe(place, tmp_path), f"run={tmp_path / 'other'}", progress=False)
    for epoch, row in enumerate(rows):
        sizes, losses = zip(*seen[4 * epoch : 4 * epoch + 4], strict=True)
        assert row["train_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-6)
        assert row["train_rare"] == pytest.approx(2 * losses[3], rel=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_gradients_are_clipped_with_a_fused_optimiser(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes = [f"training.optimizer={name.lower()}", "training.precision=bfloat16", "training.clip=0.01"]
    changes += ["training.epochs=1", "samples.windows=64"]
    made: list[torch.optim.Optimizer] = []
    plain = getattr(torch.optim, name)

    def fused(*args: Any, **known: Any) -> torch.optim.Optimizer:
        made.append(plain(*args, **{**known, "fused": True}))  # as on a GPU
        return made[-1]

    losses = []
    for run, optimizer in (("plain", plain), ("fused", fused)):
        monkeypatch.setattr(f"landfuse.training.lightning_task.{name}", optimizer)
        train(recipe(place, tmp_path), *changes, f"run={tmp_path / run}", progress=False)
        losses.append([row["train_loss"] for row in read_history(tmp_path / run / "metrics.csv")])
    assert made[0].param_groups[0]["fused"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def rates(settings: TrainingSettings, steps: int) -> list[float]:
    """The learning rate of every step, as training sets it."""
    model = TwoBranch({"a": Modality(channels=2)}, 2, TwoBranch.Settings(view=3))
    task = Task(model, settings, steps, np.array([True, True]))
    made = task.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def torchs(make: Callable[[torch.optim.Optimizer], Any], rate: float, steps: int, each: int = 1) -> list[float]:
    """The same of one of torch's own schedulers, which goes on every `each` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule, found = make(optimizer), []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % each == 0:
            schedule.step()
    return found


def test_schedules_are_those_of_torch() -> None:
    scheduler = torch.optim.lr_scheduler
    polynomial = {"iterations": 70, "rate": 5e-4, "warmup": 0, "schedule": "polynomial", "power": 0.9}
    expected = torchs(lambda o: scheduler.PolynomialLR(o, total_iters=70, power=0.9), 5e-4, 70)
    assert rates(TrainingSettings(**polynomial), 70) == pytest.approx(expected, rel=1e-9)
    steps = {"epochs": 10, "rate": 0.01, "warmup": 0, "schedule": "steps", "milestones": (5, 7, 9)}
    expected = torchs(lambda o: scheduler.MultiStepLR(o, [5, 7, 9], gamma=0.1), 0.01, 30, each=3)
    assert rates(TrainingSettings(**steps), 30) == pytest.approx(expected, rel=1e-9)
    by_step = {"iterations": 30, "rate": 0.01, "warmup": 0, "schedule": "steps", "milestones": (4, 25), "factor": 0.5}
    expected = torchs(lambda o: scheduler.MultiStepLR(o, [4, 25], gamma=0.5), 0.01, 30)
    assert rates(TrainingSettings(**by_step), 30) == pytest.approx(expected, rel=1e-9)
    expected = torchs(lambda o: scheduler.CosineAnnealingLR(o, T_max=40), 1e-3, 40)
    assert rates(TrainingSettings(warmup=0), 40) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert rates(TrainingSettings(warmup=0, schedule="constant"), 9) == [1e-3] * 9


def test_a_warm_up_comes_before_any_schedule() -> None:
    for schedule, last in (("constant", 1.0), ("polynomial", 0.1**0.9), ("cosine", (1 - math.cos(0.1 * math.pi)) / 2)):
        found = rates(TrainingSettings(rate=1.0, warmup=0.5, schedule=schedule), 20)
        assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert found[10] == pytest.approx(1.0)
        assert found[-1] == pytest.approx(last)


def test_adamw_spares_vectors_and_sgd_is_plain() -> None:
    model = TwoBranch({"a": Modality(channels=2)}, 2, TwoBranch.Settings(view=3))
    adamw = optimizer_for(model, TrainingSettings(weight_decay=0.3))
    assert isinstance(adamw, torch.optim.AdamW)
    for group in adamw.param_groups:
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] == 0.3}
    every = optimizer_for(model, TrainingSettings(weight_decay=0.3, decay_vectors=True))
    assert {group["weight_decay"] for group in every.param_groups} == {0.3}
    sgd = optimizer_for(model, TrainingSettings(optimizer="sgd", rate=0.5, momentum=0.8, weight_decay=0.2))
    parameters = list(model.parameters())
    expected = [p.detach().clone() for p in parameters]
    speed = [torch.zeros_like(p) for p in parameters]
    for _ in range(3):
        for p, w, v in zip(parameters, expected, speed, strict=True):
            p.grad = torch.full_like(p, 0.1)
            v.mul_(0.8).add_(0.1 + 0.2 * w)
            w.sub_(0.5 * v)
        sgd.step()
    for p, w in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), w)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 3, "iterations": 5}, r"both `epochs` \(3\) and `iterations` \(5\)"),
        ({"schedule": "steps"}, "go together"),
        ({"milestones": [3]}, "go together"),
        ({"schedule": "steps", "milestones": [3, 3]}, "must rise from 1 to below 50"),
        ({"schedule": "steps", "milestones": [3, 8], "iterations": 8}, "must rise from 1 to below 8"),
        ({"optimizer": "lion"}, r"`optimizer` is 'lion'"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(TrainingSettings, values, "here")


def test_the_length_of_training() -> None:
    assert TrainingSettings().epochs == 50
    assert TrainingSettings(iterations=70).epochs is None
    assert (TrainingSettings(epochs=3).steps(4), TrainingSettings(iterations=7).steps(4)) == (12, 7)
    settings = TrainingSettings(iterations=70)
    assert parse(TrainingSettings, settings.model_dump(), "again") == settings


def test_training_by_iterations_stops_and_resumes_to_the_step(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["training.epochs=null", "training.iterations=10", "training.optimizer=sgd", "training.rate=0.05",
               "training.schedule=polynomial", "training.warmup=0", "split.validation=0"]  # fmt: skip
    seen: list[tuple[int, float]] = []
    start = Task.on_train_batch_start

    def watched(self: Task, *args: Any) -> None:
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append((self.global_step, self.optimizers().param_groups[0]["lr"]))
        start(self, *args)

    monkeypatch.setattr(Task, "on_train_batch_start", watched)
    path, stop = recipe(place, tmp_path), -1
    train(path, *changes, f"run={tmp_path / 'whole'}", progress=False)
    whole, stop = list(seen), 6
    assert whole == [(step, pytest.approx(0.05 * (1 - step / 10) ** 0.9)) for step in range(10)]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(path, *changes, f"run={tmp_path / 'halves'}", progress=False)
    stop = -1
    train(path, *changes, f"run={tmp_path / 'halves'}", progress=False)
    assert seen[6:] == whole[4:]  # 4 steps an epoch: it goes on from the end of the first
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("whole", "halves"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_a_last_epoch_that_is_cut_short_is_validated(place: Path, tmp_path: Path) -> None:
    changes = ["training.epochs=null", "training.patience=2"]
    for iterations, epochs in ((3, 1), (10, 3)):
        run = tmp_path / str(iterations)
        train(recipe(place, tmp_path), *changes, f"training.iterations={iterations}", f"run={run}", progress=False)
        rows = read_history(run / "metrics.csv")
        assert len(rows) == epochs
        assert all("val_mF1" in row for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_after_what_tensorboard_is_given(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole: list[dict[str, float]] = []

    def log(_: TensorBoardLogger, metrics: dict[str, float]) -> None:
        signal.raise_signal(number)
        whole.append(metrics)

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", log)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Curves(tmp_path).log_metrics({"loss": 1.0})
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert whole == [{"loss": 1.0}]
