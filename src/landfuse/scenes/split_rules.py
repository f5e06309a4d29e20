"""How labels are split into roles: the settings of each kind of split."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from landfuse.settings import Settings

UNUSED, TRAIN, VALIDATION, TEST = 0, 1, 2, 3
ROLES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
"""Roles and their values in a written split; 0 is a pixel of no role."""

Roles = NDArray[np.uint8]


class _Split(Settings):
    """What all splits share.

    Args:
        validation: share of training that is set aside to choose the epoch.
        seed: of all random choices.
    """

    validation: float = pydantic.Field(default=0.2, ge=0, lt=1)
    seed: int = 0


class MasksSplit(_Split):
    """From files: rasters (or variables of .mat files) whose non-zero pixels are training, test, validation.

    Validation is a share per class of training, drawn at random, unless a file gives it.

    Args:
        train: path of the raster, `{tile}` allowed.
        test: likewise.
        val: likewise; optional.
        variables: for .mat files, the variable of each of the above by its name.
        axes: for .mat files, `HW` or `WH`.
    """

    kind: Literal["masks"]
    train: str
    test: str
    val: str | None = None
    variables: dict[Literal["train", "test", "val"], str] = {}
    axes: str = "HW"


class RolesSplit(_Split):
    """A split that was written before: a raster of roles (1 train, 2 validation, 3 test, 0 none).

    Args:
        path: of the raster, `{tile}` allowed.
    """

    kind: Literal["roles"]
    path: str


class RandomSplit(_Split):
    """Random pixels of each class train, the rest test. Its views overlap: see the leak report before using it.

    Args:
        train: a number of pixels per class (>= 1), or a share of each class (< 1).
    """

    kind: Literal["random"]
    train: float = pydantic.Field(gt=0)

    @pydantic.field_validator("train")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value >= 1 and not value.is_integer():
            raise ValueError("write a whole number of pixels per class (from 1), or a share of each class (below 1)")
        return value


class _Grouped(_Split):
    """Whole groups of pixels go to one role, balanced over the classes.

    Args:
        test: share of the groups that test; not with `folds`.
        folds: number of folds, each of which tests once.
        fold: which of them tests now, from 0.
    """

    test: float = pydantic.Field(default=0.3, gt=0, lt=1)
    folds: int | None = pydantic.Field(default=None, ge=2)
    fold: int = pydantic.Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _fold_exists(self) -> _Grouped:
        if self.folds is None and self.fold:
            raise ValueError("`fold` needs `folds`, their number")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"`fold` is {self.fold}, but the folds are 0 to {self.folds - 1}")
        return self


class BlocksSplit(_Grouped):
    """Square blocks of the ground; a buffer keeps views of one role from holding pixels of another.

    Args:
        size: side of a block, px.
        buffer: px without a role around test blocks and validation blocks. Nothing leaks from `halo + core - 1` of the
            model on: half the view for a core of one pixel, a whole view less one where the core is the view.
    """

    kind: Literal["blocks"]
    size: int = pydantic.Field(ge=2)
    buffer: int = pydantic.Field(default=0, ge=0)


class TilesSplit(_Grouped):
    """Whole tiles (plots, image patches).

    Args:
        test_tiles: names of the tiles that test; instead of `test` and `folds`.
        validation_tiles: names of the tiles that validate; instead of `validation`.
        train_tiles: names of the tiles that train; by default all the others.
        lists: role -> a text or CSV file whose first column names its tiles; instead of the three above.
    """

    kind: Literal["tiles"]
    test_tiles: tuple[str, ...] = ()
    validation_tiles: tuple[str, ...] = ()
    train_tiles: tuple[str, ...] = ()
    lists: dict[Literal["train", "validation", "test"], str] = {}

    @pydantic.model_validator(mode="after")
    def _lists_fit(self) -> TilesSplit:
        named = [*self.test_tiles, *self.validation_tiles, *self.train_tiles]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"the tiles {', '.join(twice)} are named more than once")
        if named and not self.test_tiles:
            raise ValueError("where tiles are named, `test_tiles` are needed too")
        if self.test_tiles and self.folds is not None:
            raise ValueError("name `test_tiles`, or let `folds` deal them out, not both")
        return self


SplitSettings = Annotated[
    MasksSplit | RolesSplit | RandomSplit | BlocksSplit | TilesSplit, pydantic.Field(discriminator="kind")
]
