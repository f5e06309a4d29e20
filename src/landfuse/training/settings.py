"""Settings of samples and of training; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from landfuse.settings import Chance, Count, Options, Rate, Seed, Settings, byte_count


class SampleSettings(Settings):
    """How windows of the scene become training samples."""

    batch: int = Field(
        default=64,
        ge=1,
        le=10**6,
        description="windows per step at most (over all devices); the steps of an epoch have batches of even size",
    )
    windows: Count | None = Field(
        default=None,
        description="windows per epoch; by default as many as it takes to see each training pixel about once",
    )
    balanced: bool = Field(default=False, description="draw every class equally often, however rare")
    augment: bool = Field(default=True, description="flip and rotate by quarter turns, the same in all modalities")
    modality_dropout: Chance | dict[str, Chance] = Field(
        default=0.0,
        description="how often a sample lacks a modality, 0 to 1: one number, or by name, e.g. {sar: 0.2}; never all "
        "at once. The model is then trained to map where such a modality has no data",
    )
    date_dropout: Chance = Field(
        default=0.0,
        description="fraction of the dates (or periods) of each modality that a sample lacks, each by itself; one of "
        "each modality is always left. The model is then trained to map where dates are missing",
    )
    memory: int = Field(
        default=4 * 1024**3,
        ge=0,
        lt=2**63,
        description="scenes up to this size (as float32, after the pixel maps) are held in memory, larger ones are "
        "read by blocks; bytes, or e.g. 8GiB",
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="loader processes; 0 reads in the training process, best for scenes in memory",
    )

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: str | int) -> int:
        return byte_count(value)


class TrainingSettings(Settings):
    """How the model is trained."""

    use: Literal["train", "all"] = Field(
        default="train",
        description="labels that the model learns from: `train`, those of its role; `all`, every one: first a model is "
        "trained on each fold of the split (it needs `folds`), which gives the cross-validated score, the number of "
        "epochs (the mean of their best) and the calibration; then the model on all labels",
    )
    epochs: int | None = Field(
        default=None, ge=1, le=10**6, description="at most; 50 where neither `epochs` nor `iterations` is given"
    )
    iterations: Count | None = Field(
        default=None,
        description="optimiser steps, instead of `epochs`. An epoch, after which validation is scored, has its usual "
        "length (see `samples.windows`); only the last may be shorter",
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw",
        description="`adamw`: weight decay on all but biases, norms and other vectors; `sgd`: on all weights",
    )
    momentum: Chance = Field(default=0.9, description="of `sgd`")
    rate: Rate = Field(default=1e-3, description="peak learning rate")
    weight_decay: float = Field(default=1e-2, ge=0, le=1e3, description="of the optimiser")
    decay_vectors: bool = Field(default=False, description="let `adamw` decay biases, norms and other vectors too")
    warmup: Chance = Field(
        default=0.05, description="fraction of the steps in which the rate rises; then comes `schedule`"
    )
    schedule: Literal["cosine", "polynomial", "steps", "constant"] = Field(
        default="cosine",
        description="how the rate falls: as a `cosine` to 0, as (1 - fraction of the steps done) ^ `power` "
        "(`polynomial`), by `factor` at each of `milestones` (`steps`), or not at all (`constant`)",
    )
    power: float = Field(default=0.9, gt=0, le=100, description="of `polynomial`")
    milestones: tuple[Annotated[int, Field(ge=1, le=10**9)], ...] = Field(
        default=(), description="of `steps`, counted in `epochs`, or in `iterations` where those are given"
    )
    factor: float = Field(default=0.1, gt=0, lt=1, description="of `steps`")
    patience: int | None = Field(
        default=15,
        ge=1,
        le=10**6,
        description="epochs without a better validation score before it stops; null for no limit",
    )
    choose_by: Literal["OA", "AA", "kappa", "mF1", "mIoU"] = Field(
        default="mF1", description="the validation score that chooses the epoch"
    )
    clip: float | None = Field(default=1.0, gt=0, le=1e9, description="limit of the gradient's norm; null for none")
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = Field(
        default="auto",
        description="`auto`: bfloat16 where the hardware computes in it (GPUs, CPUs with AMX or AVX512-BF16), else "
        "float32; `tf32`: float32 whose products are rounded to 10 bits, on NVIDIA GPUs",
    )
    seed: Seed = Field(default=0, description="of weights, draws and augmentation")
    accelerator: str = Field(default="auto", description="as Lightning names it: auto, cpu, gpu, mps")
    devices: Annotated[int, Field(ge=-1, le=4096)] | str = Field(default=1, description="number of devices")
    nodes: int = Field(default=1, ge=1, le=10_000, description="number of machines")
    strategy: str = Field(default="auto", description="as Lightning names it, e.g. ddp")
    lightning: Options = Field(default={}, description="any further argument of Lightning's Trainer")

    @model_validator(mode="before")
    @classmethod
    def _fifty_epochs(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("epochs") is None and values.get("iterations") is None:
            return {**values, "epochs": 50}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingSettings:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError(
                f"both `epochs` ({self.epochs}) and `iterations` ({self.iterations}) are given; set one of them to null"
            )
        if self.use == "all" and (self.devices != 1 or self.nodes != 1):
            raise ValueError("`use: all` trains on one device: leave `devices` and `nodes` at 1")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("`schedule: steps` and `milestones` go together")
        if any(b <= a for a, b in zip((0, *self.milestones), (*self.milestones, self.length), strict=True)):
            raise ValueError(f"`milestones` are {list(self.milestones)}; they must rise from 1 to below {self.length}")
        return self

    @property
    def length(self) -> int:
        """How long training is, in epochs or in iterations, whichever is given."""
        return self.iterations or self.epochs or 1

    def steps(self, per_epoch: int) -> int:
        """Optimiser steps in all, for so many in an epoch."""
        return self.iterations or self.length * per_epoch
