"""How labels are split into roles: the settings of each kind of split."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from landfuse.settings import Chance, Seed, Settings

UNUSED, TRAIN, VALIDATION, TEST, CALIBRATION = 0, 1, 2, 3, 4
ROLES = {"train": TRAIN, "validation": VALIDATION, "test": TEST, "calibration": CALIBRATION}
"""Roles and their values in a written split; 0 is a pixel of no role."""

Roles = NDArray[np.uint8]


class _Split(Settings):
    """The settings of all splits."""

    validation: Chance = Field(
        default=0.2, description="Fraction of training that is set aside to choose the epoch, from 0 to 1."
    )
    calibration: Chance = Field(
        default=0.0,
        description="Fraction of training that is set aside before validation, as whole blocks, polygons or tiles, for "
        "the thresholds of class sets, from 0 (no class sets) to 1; of splits by pixels, blocks of 64 px.",
    )
    seed: Seed = Field(default=0, description="Seed of all random choices.")


class MasksSplit(_Split):
    """From files: rasters (or variables of .mat files) whose non-zero pixels are training, test, validation.

    Without `val`, validation is a random fraction of each class of training.
    """

    kind: Literal["masks"]
    train: str = Field(description="Raster of the training pixels; `{tile}` is allowed.")
    test: str = Field(description="Raster of the test pixels.")
    val: str | None = Field(default=None, description="Raster of the validation pixels.")
    variables: dict[Literal["train", "test", "val"], str] = Field(
        default={}, description="For .mat files: the variables of `train`, `test` and `val`."
    )
    axes: str = Field(
        default="HW",
        description="For .mat files: `HW` or `WH`; `list` where a variable lists the row and column of each pixel, "
        "counted from 0.",
    )


class RolesSplit(_Split):
    """A split that was written before."""

    kind: Literal["roles"]
    path: str = Field(
        description="Raster of roles (1 train, 2 validation, 3 test, 4 calibration, 0 none); `{tile}` is allowed."
    )


class RandomSplit(_Split):
    """Random pixels of each class train, the rest test. Its views overlap: see the leak report before using it."""

    kind: Literal["random"]
    train: float = Field(
        gt=0, le=1e9, description="Pixels per class (1 and above), or a fraction of each class (below 1)."
    )

    @pydantic.field_validator("train")
    @classmethod
    def _fraction_or_number(cls, value: float) -> float:
        if value >= 1 and not value.is_integer():
            raise ValueError("write a whole number of pixels per class (from 1), or a fraction of each class (below 1)")
        return value


class GroupedSplit(_Split):
    """Whole groups of pixels go to one role, balanced over the classes."""

    test: float = Field(default=0.3, gt=0, lt=1, description="Fraction of the groups that test; not with `folds`.")
    folds: int | None = Field(default=None, ge=2, le=10_000, description="Number of folds, each of which tests once.")
    fold: int = Field(default=0, ge=0, le=10_000, description="Which fold tests now, from 0.")

    @pydantic.model_validator(mode="after")
    def _fold_exists(self) -> GroupedSplit:
        if self.folds is None and self.fold:
            raise ValueError("`fold` needs `folds`, their number")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"`fold` is {self.fold}, but the folds are 0 to {self.folds - 1}")
        return self


class BufferedSplit(GroupedSplit):
    """A buffer keeps views of one role from holding pixels of another."""

    buffer: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Pixels without a role around those that test, calibrate or validate. Nothing leaks from "
        "`halo + core - 1` of the model on: half the view for a core of one pixel, the view less one where the core is "
        "the view.",
    )


class BlocksSplit(BufferedSplit):
    """Square blocks of the ground."""

    kind: Literal["blocks"]
    size: int = Field(ge=2, le=10**6, description="Side of a block, px.")


class PolygonsSplit(BufferedSplit):
    """Whole polygons of the labels, also where one lies in several tiles."""

    kind: Literal["polygons"]


class TilesSplit(GroupedSplit):
    """Whole tiles (plots, image patches)."""

    kind: Literal["tiles"]
    test_tiles: tuple[str, ...] = Field(default=(), description="Tiles that test; instead of `test` and `folds`.")
    validation_tiles: tuple[str, ...] = Field(default=(), description="Tiles that validate; instead of `validation`.")
    calibration_tiles: tuple[str, ...] = Field(
        default=(), description="Tiles that calibrate; instead of `calibration`."
    )
    train_tiles: tuple[str, ...] = Field(default=(), description="Tiles that train; by default all the others.")
    lists: dict[Literal["train", "validation", "test", "calibration"], str] = Field(
        default={},
        description="Role: a text or CSV file whose first column names its tiles; instead of the four above.",
    )

    @pydantic.model_validator(mode="after")
    def _lists_fit(self) -> TilesSplit:
        named = [*self.test_tiles, *self.calibration_tiles, *self.validation_tiles, *self.train_tiles]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"the tiles {', '.join(twice)} are named more than once")
        if named and not self.test_tiles:
            raise ValueError("where tiles are named, `test_tiles` are needed too")
        if self.test_tiles and self.folds is not None:
            raise ValueError("name `test_tiles`, or let `folds` choose them, not both")
        return self


SplitSettings = Annotated[
    MasksSplit | RolesSplit | RandomSplit | BlocksSplit | PolygonsSplit | TilesSplit, Field(discriminator="kind")
]
