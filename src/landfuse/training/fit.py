"""Fitting a model by gradient descent, through Lightning: loaders, precision, checkpoints, the best epoch."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from landfuse.errors import LandfuseError, ModelError, SettingsError
from landfuse.files import unwritable
from landfuse.kernels.gpu import default_device, gpu_kernels, gpu_works
from landfuse.legend import Legend
from landfuse.models.base import FusionModel
from landfuse.progress import Meter
from landfuse.settings import most_processes
from landfuse.training.checkpoints import Checkpoints, read_checkpoint
from landfuse.training.lightning_task import Curves, Epochs, Forecast, History, Patience, Task
from landfuse.training.recipe import Recipe
from landfuse.training.run import read_history
from landfuse.training.samples import Sample, Samples, WindowSampler, loader
from landfuse.training.settings import SampleSettings, TrainingSettings


class _Data(LightningDataModule):
    """The loaders for Lightning, made once the ranks are known."""

    def __init__(self, train: Samples, validation: Samples | None, settings: SampleSettings, seed: int) -> None:
        super().__init__()
        self.train, self.validation, self.settings, self.seed = train, validation, settings, seed

    def _loader(self, samples: Samples, train: bool) -> DataLoader[Sample]:
        ranks = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        sampler = WindowSampler(samples, self.settings, train=train, seed=self.seed, rank=rank, ranks=ranks)
        return loader(samples, sampler)

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.train, train=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        return self._loader(self.validation, train=False) if self.validation is not None else []


def precision(settings: TrainingSettings) -> str:
    """Lightning's name of the precision that the settings choose on this hardware."""
    names = {"float32": "32-true", "tf32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and gpu_works()
    if settings.precision == "tf32" and not on_gpu:
        raise SettingsError("training.precision is tf32, without a GPU", "float32 or bfloat16", "choose one of them")
    if settings.precision != "auto":
        return names[settings.precision]
    if on_gpu:
        return names["bfloat16" if torch.cuda.is_bf16_supported() else "float16"]
    if settings.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return names["float32"]
    return names["bfloat16" if _cpu_has_bfloat16() else "float32"]


def _cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 run on this CPU's own instructions (AMX or AVX512-BF16)."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        return False
    words = flags.read_text(errors="replace").split()
    return "amx_bf16" in words or "avx512_bf16" in words


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def fit(
    recipe: Recipe,
    run: Path,
    model: FusionModel,
    legend: Legend,
    training: Samples,
    validation: Samples | None,
    meter: Meter,
    epochs: int | None = None,
) -> tuple[Trainer, dict[str, Any]]:
    """Trains a model by gradient and leaves the best epoch's weights in it, or goes on where it was interrupted.

    Args:
        recipe: its `training` and `samples`.
        run: folder; gets `metrics.csv`, `tensorboard/` and, until the run ends, `checkpoints/`.
        legend: its classes; those that are not scored have no say in which epoch is best.
        validation: what chooses the epoch; None for the last one.
        epochs: after which it stops, before the end of the settings' schedule.

    Returns:
        The trainer, and facts of the fit for `scores.json`.

    Raises:
        ModelError: if Lightning refuses the settings, or a loss is not finite.
        OutputError: if the disk is full.
    """
    settings = recipe.training
    lost = settings.accelerator == "auto" and torch.cuda.is_available() and not gpu_works()
    accelerator = "cpu" if lost else settings.accelerator  # Lightning would take a GPU that PyTorch cannot compute on
    count, most = str(settings.devices), most_processes()
    if count.isdigit() and int(count) > most and not torch.cuda.is_available():  # of too many GPUs Lightning complains
        raise SettingsError(f"training.devices is {count}", f"at most {most} on this machine", "set fewer")
    data = _Data(training, validation, recipe.samples, settings.seed)
    per_epoch = len(WindowSampler(training, recipe.samples, train=True))
    steps = settings.steps(per_epoch)
    until = min(math.ceil(steps / per_epoch), epochs or steps)
    checks = len(WindowSampler(validation, recipe.samples, train=False)) if validation is not None else 0
    task = Task(model, settings, steps, legend.scored)
    shapes = _shapes(task.state_dict())
    folder = run / "checkpoints"
    last = ModelCheckpoint(folder, "last", save_top_k=1, every_n_epochs=1, enable_version_counter=False)
    taken = min(steps, until * per_epoch)
    callbacks: list[Any] = [
        History(run / "metrics.csv"), Epochs(meter, taken, settings.choose_by), Forecast(taken, checks),
    ]  # fmt: skip
    best = None
    if validation is not None:
        watched = f"val_{settings.choose_by}"
        best = ModelCheckpoint(
            folder, "best", monitor=watched, mode="max", save_weights_only=True, enable_version_counter=False
        )
        callbacks.append(best)
        if settings.patience is not None:
            callbacks.append(Patience(watched, patience=settings.patience, mode="max"))
    callbacks.append(last)  # after `best`, whose state it holds
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Scenes in memory need no loader workers, an epoch may have few steps, and an existing folder is resumed.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*number of training batches.*")
        warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # without validation
        warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 on torch 2.9 and later
        arguments: dict[str, Any] = {
            "min_epochs": 0,
            # `max_steps` would make Lightning draw another epoch's batches after a resume; the task stops instead.
            "max_epochs": until,
            "accelerator": accelerator,
            "devices": settings.devices,
            "num_nodes": settings.nodes,
            "strategy": settings.strategy,
            "precision": precision(settings),
            "gradient_clip_val": settings.clip,
            "callbacks": callbacks,
            "plugins": [Checkpoints()],
            "logger": find_spec("tensorboard") is not None and Curves(run, name="tensorboard", version=""),
            "use_distributed_sampler": False,  # WindowSampler deals out the ranks' windows
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        try:
            trainer = Trainer(**{**arguments, **settings.lightning})
        except (TypeError, ValueError, lightning.fabric.utilities.exceptions.MisconfigurationException) as error:
            raise ModelError(
                f"Lightning's Trainer refuses the settings: {error}", "arguments that it knows", "correct `training:`"
            ) from None
        read_history(run / "metrics.csv")  # a damaged one would end the training after an epoch
        resume = read_checkpoint(
            folder / "last.ckpt", lambda saved: "optimizer_states" in saved and _shapes(saved["state_dict"]) == shapes
        )
        try:
            with gpu_kernels(default_device(), tf32=settings.precision == "tf32", same=False):
                trainer.fit(task, data, ckpt_path=resume and str(resume[0]), weights_only=True)
        except LandfuseError:
            raise
        except torch.OutOfMemoryError:
            raise ModelError(
                f"{recipe.samples.batch} windows per step do not fit into the GPU's memory",
                "a batch that fits",
                "lower samples.batch, and give the command again",
            ) from None
        except OSError as error:  # of Lightning's and TensorBoard's own files
            raise unwritable(run, error) from None
        except SystemExit:
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except FloatingPointError as error:
            raise ModelError(
                str(error),
                "finite losses",
                "lower training.rate, or set training.precision=float32, and choose another folder by run=...",
            ) from None
    facts: dict[str, Any] = {"epochs": len(read_history(run / "metrics.csv")), "precision": precision(settings)}
    kept = best.best_model_path if best is not None else ""
    if kept:
        found = read_checkpoint(Path(kept), lambda saved: _shapes(saved["state_dict"]) == shapes)
        if found is None:
            raise ModelError(
                f"{kept}, which holds the weights of the best epoch, is gone or broken",
                "a run folder that nothing else writes to",
                "remove the folder and train again",
            )
        state = found[1]
        weights = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
        model.load_state_dict(weights)
        facts["epoch"] = int(state["epoch"])
    return trainer, facts
