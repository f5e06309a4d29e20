"""The LightningModule: one model, one objective, one validation score. It knows no model by name."""

from __future__ import annotations

import functools
import logging
import math
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from landfuse.accuracy.confusion import Confusion
from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED
from landfuse.models.base import FusionModel
from landfuse.progress import Meter
from landfuse.training.run import memory_words, read_history, write_history
from landfuse.training.samples import Sample
from landfuse.training.settings import TrainingSettings

log = logging.getLogger("landfuse")


class Task(LightningModule):
    """Trains a model by a gradient method and a schedule; scores validation by one confusion matrix over all ranks.

    Args:
        steps: optimiser steps of the whole training.
        scored: (K,), which classes enter the means that choose the epoch (`Legend.scored`).
    """

    confusion: Tensor  # (K, K) int64, truth by prediction, of this rank

    def __init__(self, model: FusionModel, settings: TrainingSettings, steps: int, scored: NDArray[np.bool_]) -> None:
        super().__init__()
        self.model, self.settings, self.steps, self.scored = model, settings, steps, scored
        self.register_buffer(
            "confusion", torch.zeros((model.classes, model.classes), dtype=torch.int64), persistent=False
        )
        self.sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # parts of the loss -> their sums, windows

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Seeds what layers draw (dropout, noise) by step and rank (loaders and resuming use the same generator), and
        sets the progress of the training on the model."""
        entropy = (self.settings.seed, self.global_step, self.global_rank)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # `torch.manual_seed` goes through every kind of device, which a small network's step would wait for.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        self.model.progress = self.global_step / max(1, self.steps)

    def training_step(self, batch: Sample, index: int) -> Tensor:
        """One step; a loss that is not finite stops the training at once."""
        parts = self.model.loss(batch.images, batch.target)
        loss = parts["loss"]
        numbers = {
            name: torch.as_tensor(part).detach().to(loss.device, torch.float32).flatten()
            for name, part in parts.items()
        }
        for name, number in numbers.items():
            if len(number) != 1:
                raise ModelError(
                    f"the part `{name}` of the model's loss is {len(number):,} numbers",
                    "a single one",
                    "return its mean",
                )
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {float(number):.4g}" for name, number in numbers.items())
            raise FloatingPointError(
                f"the loss of batch {index} in epoch {self.current_epoch} is not finite ({values})"
            )
        names, size = tuple(parts), len(batch.target)
        summed = size * torch.cat(list(numbers.values()))
        total, windows = self.sums.get(names, (torch.zeros_like(summed), 0))
        self.sums[names] = total + summed, windows + size
        return loss

    def on_train_epoch_start(self) -> None:
        """Starts the sums of the losses; `log` in every step would take some kernels and a millisecond for each."""
        self.sums.clear()

    def losses(self) -> dict[str, float]:
        """The mean of each part of the loss over the epoch's windows of this rank."""
        found: dict[str, list[float]] = {}
        for names, (total, windows) in self.sums.items():
            for name, value in zip(names, total.tolist(), strict=True):
                so_far = found.setdefault(f"train_{name}", [0.0, 0.0])
                found[f"train_{name}"] = [so_far[0] + value, so_far[1] + windows]
        return {name: total / windows for name, (total, windows) in found.items()}

    def on_train_batch_end(self, outputs: Any, batch: Sample, batch_idx: int) -> None:
        """Asks to stop after the last step: Lightning then validates, also in the middle of an epoch."""
        if self.global_step >= self.steps:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Starts a new confusion matrix."""
        self.confusion.zero_()

    def validation_step(self, batch: Sample, index: int) -> None:
        """Counts one batch."""
        predicted = self.model(batch.images).argmax(dim=1)
        known = batch.target != UNLABELLED
        pairs = batch.target[known].long() * self.model.classes + predicted[known]
        self.confusion += torch.bincount(pairs, minlength=self.model.classes**2).view_as(self.confusion)

    def on_validation_epoch_end(self) -> None:
        """Scores the counts of all ranks."""
        counts = self.trainer.strategy.reduce(self.confusion, reduce_op="sum")
        if not isinstance(counts, Tensor):
            raise TypeError(f"the strategy reduced counts to {type(counts).__name__}")
        matrix = counts.cpu().numpy().astype(np.int64)
        scores = Confusion(self.model.classes, matrix, scored=self.scored).scores()
        for name in ("OA", "AA", "kappa", "mF1", "mIoU"):
            value = scores[name]
            self.log(f"val_{name}", 0.0 if math.isnan(value) else value)

    def configure_optimizers(self) -> Any:
        """The optimiser over what can be trained, and its rate at each step."""
        optimizer = optimizer_for(self.model, self.settings)
        schedule = LambdaLR(optimizer, functools.partial(rate_share, settings=self.settings, steps=self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def optimizer_for(model: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The optimiser over what can be trained in a model."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    rate, decay = settings.rate, settings.weight_decay
    fused = all(p.is_cuda for p in trainable) or None
    if settings.optimizer == "sgd":
        optimizer: Optimizer = SGD(trainable, rate, settings.momentum, weight_decay=decay, fused=fused)
    else:
        groups = [
            {"params": [p for p in trainable if p.dim() > 1], "weight_decay": decay},
            {
                "params": [p for p in trainable if p.dim() <= 1],
                "weight_decay": decay if settings.decay_vectors else 0.0,
            },
        ]
        optimizer = AdamW([g for g in groups if g["params"]], lr=rate, fused=fused)
    # Else Lightning would leave float16's scaling to a fused optimiser, and refuse to clip its gradients.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def rate_share(step: int, settings: TrainingSettings, steps: int) -> float:
    """The learning rate of a step as a fraction of the peak.

    Args:
        step: from 0.
    """
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "steps":
        return settings.factor ** sum(step * settings.length >= milestone * steps for milestone in settings.milestones)
    done = min(1.0, (step - warm) / max(1, steps - warm))
    if settings.schedule == "polynomial":
        return (1 - done) ** settings.power
    return 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1.0


class Patience(EarlyStopping):
    """Stops after epochs without a better score; a run that had stopped before it was interrupted stays stopped."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, dict[str, dict[str, int]]]
    ) -> None:
        """Looks whether patience had run out."""
        if checkpoint["callbacks"].get(self.state_key, {}).get("wait_count", 0) >= self.patience:
            trainer.should_stop = True


class Curves(TensorBoardLogger):
    """TensorBoard's logger, which no signal interrupts: the thread that it gives numbers to might wait for ever."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As TensorBoard's; ctrl-C comes after it."""
        came: list[int] = []
        here = threading.current_thread() is threading.main_thread()  # the one that gets signals
        handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM) if here}
        for one in handlers:
            signal.signal(one, lambda got, _: came.append(got))
        try:
            super().log_metrics(*args, **kwargs)
        finally:
            for one, handler in handlers.items():
                signal.signal(one, handler)
        for number in came[:1]:
            signal.raise_signal(number)


class Forecast(Callback):
    """Says once, after the first second of steps, how large the training is: parameters, memory, time.

    Args:
        steps: of the whole training.
        checks: batches of validation after each epoch.
    """

    def __init__(self, steps: int, checks: int) -> None:
        self.steps, self.checks = steps, checks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.start, self.before, self.said = time.perf_counter(), trainer.global_step, trainer.global_rank > 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the line."""
        seconds, per_epoch = time.perf_counter() - self.start, int(trainer.num_training_batches)
        if trainer.global_step == self.before + 1 and batch_idx + 1 < per_epoch:  # the first step takes longer
            self.start, self.before = time.perf_counter(), trainer.global_step
            return
        if self.said or (seconds < 1 and batch_idx + 1 < per_epoch):
            return
        self.said = True
        per_step = seconds / max(1, trainer.global_step - self.before)
        per_step *= 1 + self.checks / (3 * per_epoch)  # a step takes about three forward passes
        log.info(
            "%s parameters, %s; at most %s epochs of %s steps, about %s left",
            f"{sum(p.numel() for p in pl_module.parameters()):,}", memory_words(),
            f"{math.ceil(self.steps / per_epoch):,}", f"{per_epoch:,}",
            timedelta(seconds=round((self.steps - trainer.global_step) * per_step)),
        )  # fmt: skip


class History(Callback):
    """Keeps one row of metrics per epoch in a CSV file, also over interruption and resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row; rows of this epoch and later ones, from before a resume, go."""
        losses: dict[str, Any] = pl_module.losses() if isinstance(pl_module, Task) else {}
        pl_module.log_dict(losses)
        if trainer.global_rank:
            return
        rows = [row for row in read_history(self.path) if row["epoch"] < trainer.current_epoch]
        # Of a part that the loss no longer has, Lightning keeps the last mean.
        scores = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("train_")}
        measured = {name: float(value) for name, value in {**scores, **losses}.items()}
        write_history(self.path, [*rows, {"epoch": float(trainer.current_epoch), **measured}])


class Epochs(Callback):
    """Shows how far the whole training is, and what each epoch gave.

    Args:
        steps: of the whole training.
        choose_by: the validation score that is shown.
    """

    def __init__(self, meter: Meter, steps: int, choose_by: str) -> None:
        self.meter, self.steps, self.choose_by, self.words = meter, steps, choose_by, ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins where an interrupted run stopped."""
        self._show(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the step."""
        self._show(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the scores."""
        names = ("train_loss", f"val_{self.choose_by}")
        measured = [
            f"{name} {trainer.callback_metrics[name]:.4f}" for name in names if name in trainer.callback_metrics
        ]
        self.words = ", ".join([f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", *measured])
        self._show(trainer, now=True)

    def _show(self, trainer: Trainer, now: bool = False) -> None:
        self.meter("training", trainer.global_step, self.steps, self.words, now=now)
