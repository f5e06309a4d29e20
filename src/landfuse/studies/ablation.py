"""An ablation: one recipe in several variants, each with the same seeds and folds, compared with the first.

The file names the recipe and what each variant changes in it:

    base: bdgf.yaml                          # from this file's folder
    seeds: 0..4                              # as in `landfuse train --seeds`; folds likewise
    variants:
      full: {}                               # the first is the reference of the differences
      no-guidance: {model: {guidance: none}}

Each run has a folder, `runs/NAME/VARIANT/fold-0-seed-0`; those that have ended are not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from landfuse.errors import SettingsError
from landfuse.settings import Settings, parse, read_kind
from landfuse.studies.compare import Comparison, compare
from landfuse.studies.series import Member, members, numbers, train_series

Number = Annotated[int, Field(ge=0, lt=2**32)]


class AblationSettings(Settings):
    """The keys of an ablation file."""

    base: str = Field(description="path of the recipe, from this file's folder")
    variants: dict[str, dict[str, Any] | None] = Field(
        description="name -> what it changes in the recipe, as sections or with dotted keys; the first is the reference"
    )
    common: dict[str, Any] = Field(default={}, description="what all variants change")
    seeds: Number | str = Field(default="0", description="of training, e.g. `0..4`")
    folds: Number | str | None = Field(default=None, description="of the split; null for the recipe's own")
    run: str | None = Field(
        default=None,
        description="folder of all runs, from the working directory; by default `runs/` and the names of this file "
        "and its folder",
    )

    @pydantic.field_validator("variants")
    @classmethod
    def _names_of_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        odd = [name for name in value if not re.fullmatch(r"[\w+-][\w.+-]*", name)]
        if odd or not value:
            raise ValueError(f"a variant is named {odd[0]!r}; use letters, digits and - _ + ." if odd else "name some")
        return value


def read_ablation(path: str | Path) -> AblationSettings:
    """Reads and checks an ablation file.

    Raises:
        SettingsError: naming every key that is unknown, missing or wrong.
    """
    return parse(AblationSettings, read_kind("an ablation", path), str(path))


def ablation_members(
    path: str | Path,
    assignments: Iterable[str] = (),
    *,
    only: Sequence[str] = (),
    seeds: str | None = None,
    folds: str | None = None,
) -> dict[str, list[Member]]:
    """The runs of each variant, all of them checked.

    Args:
        assignments: `key.sub=value`, which win over every variant; `run=` is the folder of all runs.
        only: the variants to take; none for all.
        seeds: instead of the file's.
        folds: likewise.

    Raises:
        SettingsError: if the file, or the recipe of a variant, is wrong.
        OutputError: if a folder holds a run of another recipe.
    """
    path, settings = Path(path), read_ablation(path)
    unknown = sorted(set(only) - set(settings.variants))
    if unknown:
        raise SettingsError(
            f"there is no variant {', '.join(unknown)}", ", ".join(settings.variants), "correct the name"
        )
    settings_given = [one for one in assignments if not one.startswith("run=")]
    runs = [one.removeprefix("run=") for one in assignments if one.startswith("run=")]
    folder = runs[-1] if runs else settings.run or f"runs/{path.resolve().parent.name}-{path.stem}"
    folds = folds if folds is not None or settings.folds is None else str(settings.folds)
    return {
        name: members(
            path.parent / settings.base,
            [*_assignments(settings.common), *_assignments(changes or {}), *settings_given, f"run={folder}/{name}"],
            seeds=numbers(seeds or str(settings.seeds), "seeds"),
            folds=numbers(folds, "folds") if folds is not None else (),
        )
        for name, changes in settings.variants.items()
        if not only or name in only
    }


def ablate(
    path: str | Path,
    assignments: Iterable[str] = (),
    *,
    only: Sequence[str] = (),
    seeds: str | None = None,
    folds: str | None = None,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Trains what has not ended of an ablation, and compares its variants; arguments as in `ablation_members`.

    Args:
        quiet: no progress bars.
        report: called with a line for each run that starts.

    Raises:
        LandfuseError: if the file is wrong, or a run fails.
    """
    variants = ablation_members(path, assignments, only=only, seeds=seeds, folds=folds)
    base = Path(path).parent / read_ablation(path).base
    train_series(base, [run for runs in variants.values() for run in runs], quiet=quiet, report=report)
    return named(compare([run.run for runs in variants.values() for run in runs]), variants)


def named(comparison: Comparison, variants: Mapping[str, Sequence[Member]]) -> Comparison:
    """The comparison with the variants' names in place of the settings that differ."""
    names = {run.run.resolve(): name for name, runs in variants.items() for run in runs}
    new = {recipe.name: names[recipe.runs[0].folder.resolve()] for recipe in comparison.recipes}
    return dataclasses.replace(
        comparison,
        recipes=tuple(dataclasses.replace(recipe, name=new[recipe.name]) for recipe in comparison.recipes),
        differences=tuple(
            dataclasses.replace(one, name=new[one.name], against=new[one.against]) for one in comparison.differences
        ),
    )


def _assignments(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Sections as `key.sub=value`; values as JSON, which is YAML."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"
