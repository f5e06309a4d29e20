"""Comparing runs: what each recipe reaches over its seeds and folds, and whether two recipes differ beyond chance.

Runs of two recipes are paired by split and seed. Where there are several splits (folds), the seeds of a fold are
averaged first, since they share their test pixels: a fold counts once. The test is the exact sign-flip test: if the
recipes were equal, every difference could as well have had the other sign. It needs no assumption on the
distribution, and few pairs prove little: with n pairs, p is at least 2 / 2^n.

Folds share training pixels, so that their differences are correlated a little and p is rather too small (Nadeau and
Bengio 2003, doi 10.1023/A:1024068626366). With one split the test covers seeds only, not other ground; for that,
see `landfuse evaluate --against`.

Source: Fisher 1935, The Design of Experiments, section 21 (the sign-flip test); Pitman 1937, doi 10.2307/2984124.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from landfuse.accuracy.bootstrap import SCORES, Interval
from landfuse.errors import OutputError, SceneError, SettingsError, SplitError
from landfuse.training.run import Key, Run, find_runs, read_run

COSTS = ("parameters", "training_seconds", "test_mapping_seconds", "peak_memory_bytes", "leak_fraction")
"""What else is reported of a recipe, by its name in `scores.json`."""

_EXACT_UP_TO = 16  # pairs; above it, signs are drawn at random
_DRAWS = 1 << 17


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; NaN where there are too few."""

    mean: float
    std: float
    n: int

    @property
    def interval(self) -> Interval:
        """The mean with its 95% interval by Student's t, without ends where there are fewer than two values."""
        half = float(stdtrit(self.n - 1, 0.975)) * self.std / math.sqrt(self.n) if self.n > 1 else math.nan
        return Interval(self.mean, self.mean - half, self.mean + half)


@dataclass(frozen=True)
class RecipeResult:
    """What the runs of one recipe reached.

    Args:
        name: model, modalities, and the settings that distinguish it from the others.
        scores: OA, AA, kappa, mF1 and mIoU.
        f1: of each class; over the runs whose test pixels hold it.
        iou: likewise.
        costs: as in `COSTS`.
    """

    name: str
    runs: tuple[Run, ...]
    scores: Mapping[str, Spread]
    f1: Mapping[str, Spread]
    iou: Mapping[str, Spread]
    costs: Mapping[str, Spread]


@dataclass(frozen=True)
class Difference:
    """A recipe less the first one.

    Args:
        name: of the recipe.
        against: the first recipe's name.
        unit: what a pair is: `fold` (each the mean of its seeds) or `seed`.
        runs: pairs of runs behind it.
        scores: mean, standard deviation and number of the pairs' differences.
        p: two-sided probability of a mean as far from 0, were the recipes equal; NaN without pairs.
    """

    name: str
    against: str
    unit: str
    runs: int
    scores: Mapping[str, Spread]
    p: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Recipes side by side; the first is the reference of the differences."""

    recipes: tuple[RecipeResult, ...]
    differences: tuple[Difference, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def compare(paths: Iterable[str | Path]) -> Comparison:
    """Compares finished runs, grouped by recipe; the first path's recipe comes first.

    Args:
        paths: run folders, or folders of runs (a series).

    Raises:
        MissingFileError: if a path holds no run.
        OutputError: if none has ended.
        SettingsError, SceneError, SplitError: if the runs are of different legends, scenes or splits, or one comes
            twice.
    """
    finished, unfinished = find_runs(paths)
    notes = [f"{path} has not ended; it is left out" for path in unfinished]
    if not finished:
        raise OutputError("no run has ended yet", "at least one finished run", "wait for `landfuse train` to end")
    runs = [read_run(path) for path in finished]
    _refuse_different(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.settings, run.modalities], sort_keys=True), []).append(run)
    members = list(groups.values())
    _refuse_unpaired(members)
    names = _names(members)
    recipes = tuple(_result(name, group) for name, group in zip(names, members, strict=True))
    first = members[0]
    differences = tuple(
        _difference(name, names[0], group, first) for name, group in zip(names[1:], members[1:], strict=True)
    )
    measured = zip(names, members, strict=True)
    notes += [f"{name}: {group[0].cross_validated}" for name, group in measured if group[0].cross_validated]
    counts = {run.key: run.scores["test"]["pixels"] for run in first}
    uneven = [
        name
        for name, group in zip(names[1:], members[1:], strict=True)
        if any(counts.get(run.key, pixels) != pixels for run in group for pixels in [run.scores["test"]["pixels"]])
    ]
    if uneven:
        notes.append(
            f"{', '.join(uneven)}: not the same test pixels are scored as in {names[0]}: a modality lacks data at some"
        )
    keys = [{run.key for run in group} for group in members]
    if any(own != keys[0] for own in keys[1:]):
        notes.append("the recipes were not run with the same folds and seeds; differences use the common ones")
    return Comparison(recipes, differences, tuple(name for name, _ in runs[0].legend), tuple(notes))


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation of what is defined."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Spread(mean, math.nan, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)), len(known))


def sign_flip(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """Two-sided p of the sign-flip test: exact up to 16 pairs, else from 131,072 draws of signs; NaN without pairs.

    The fraction of all choices of signs whose mean is as far from 0 as the one found.
    """
    d = np.asarray(differences, np.float64)
    if not d.size:
        return math.nan
    found = abs(d.sum())
    least = found - 1e-9 * max(np.abs(d).sum(), 1e-300)  # sums that differ by rounding only count as equal
    if d.size <= _EXACT_UP_TO:
        bits = np.arange(1 << d.size)[:, None] >> np.arange(d.size) & 1
        return float((np.abs((1 - 2 * bits) @ d) >= least).mean())
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (_DRAWS, d.size))
    return float(((np.abs(signs @ d) >= least).sum() + 1) / (_DRAWS + 1))


def _result(name: str, runs: Sequence[Run]) -> RecipeResult:
    def of_classes(score: str) -> dict[str, Spread]:
        rows = [{row["class"]: row for row in run.scores["classes"]} for run in runs]
        return {
            one: spread(row[one][score] if row[one]["support"] else None for row in rows) for one, _ in runs[0].legend
        }

    return RecipeResult(
        name,
        tuple(runs),
        {score: spread(run.scores["test"][score] for run in runs) for score in SCORES},
        of_classes("F1"),
        of_classes("IoU"),
        {cost: spread(run.scores.get(cost) for run in runs) for cost in COSTS},
    )


def _difference(name: str, against: str, runs: Sequence[Run], first: Sequence[Run]) -> Difference:
    base = {run.key: run for run in first}
    pairs = [(run, base[run.key]) for run in runs if run.key in base]
    splits = list(dict.fromkeys(run.split for run, _ in pairs))
    by_fold = len(splits) > 1
    scores, p = {}, {}
    for score in SCORES:
        found: dict[Key | str, list[float]] = {}
        for run, other in pairs:
            values = run.scores["test"][score], other.scores["test"][score]
            if None not in values:
                found.setdefault(run.split if by_fold else run.key, []).append(values[0] - values[1])
        units = [math.fsum(values) / len(values) for values in found.values()]
        scores[score], p[score] = spread(units), sign_flip(units)
    return Difference(name, against, "fold" if by_fold else "seed", len(pairs), scores, p)


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A short name for each: model and modalities; where several have the same, also the settings that differ."""
    short = [f"{g[0].recipe['model']['name']} {' + '.join(g[0].modalities)}" for g in groups]
    names = []
    for name, group in zip(short, groups, strict=True):
        alike = [other[0].settings for same, other in zip(short, groups, strict=True) if same == name]
        special = []
        for key in sorted({key for settings in alike for key in settings}):
            values = [json.dumps(settings.get(key)) for settings in alike]
            own = json.dumps(group[0].settings.get(key))
            usual = max(values, key=values.count)  # the first of the most frequent
            special += [f"{key}={own}"] if own != usual else []
        names.append(" ".join([name, *special]))
    return names


def _refuse_different(runs: Sequence[Run]) -> None:
    """Refuses runs of another legend or scene than the first, and a run that comes twice."""
    first = runs[0]
    for run in runs[1:]:
        if run.legend != first.legend:
            raise SettingsError(
                f"{run.folder} has the classes {_classes(run)}",
                f"those of {first.folder}: {_classes(first)}",
                "compare runs of one legend",
            )
        if run.unscored != first.unscored:
            raise SettingsError(
                f"the means of {run.folder} leave out {', '.join(run.unscored) or 'no class'}",
                f"those that {first.folder} leaves out: {', '.join(first.unscored) or 'none'}",
                "compare runs with the same `scored` in the legend; train one of them again",
            )
        if not _same_scene(run.scene, first.scene):
            raise SceneError(
                f"{run.folder} is of the scene {run.scene}",
                f"that of {first.folder}: {first.scene}",
                "compare runs of one scene",
            )
    seen: dict[str, Run] = {}
    for run in runs:
        twin = seen.setdefault(json.dumps([run.settings, run.modalities, run.key], sort_keys=True), run)
        if twin is not run:
            raise SettingsError(
                f"{twin.folder} and {run.folder} are of one recipe, split and seed",
                "each once, or the spread would come out too small",
                "name one of them",
            )


def _refuse_unpaired(groups: Sequence[Sequence[Run]]) -> None:
    """Refuses recipes that were never tested on the same pixels as the first."""
    splits = {run.split for run in groups[0]}
    for group in groups[1:]:
        if not splits & {run.split for run in group}:
            raise SplitError(
                f"{group[0].folder} and {groups[0][0].folder} are of different splits: no roles of pixels in common",
                "recipes that were trained and tested on the same pixels, at least in one fold",
                "train them with one `split`, or compare them apart",
            )


def _classes(run: Run) -> str:
    return ", ".join(f"{name} ({code})" for name, code in run.legend)


def _same_scene(one: Path, other: Path) -> bool:
    """Whether two paths are of one scene file: the same place, or a copy of it."""
    try:
        return one == other or one.read_bytes() == other.read_bytes()
    except OSError:
        return False
