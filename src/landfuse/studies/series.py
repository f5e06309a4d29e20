"""A series: one recipe with several seeds, several folds, or both, a run folder each.

Every run is a process of its own. Its peak memory is then its own too, a strategy that starts further processes starts
those of this run, and what one run leaves behind cannot reach the next.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from landfuse.errors import ModelError, OutputError, SettingsError
from landfuse.training.recipe import Recipe, read_recipe
from landfuse.training.run import claim

_MOST = 1000  # runs; a typing error should not start a million


@dataclass(frozen=True)
class Member:
    """One run of a series.

    Args:
        assignments: what turns the recipe file into it, for the command line.
    """

    recipe: Recipe
    assignments: tuple[str, ...]
    run: Path

    @property
    def ended(self) -> bool:
        """Whether it need not be run."""
        return (self.run / "scores.json").exists()


def numbers(text: str, option: str) -> list[int]:
    """Reads `0..4` (or `0-4`), `0,3,5` or `0..2,7`: whole numbers from 0, ends included.

    Raises:
        SettingsError: if it is none of these, or names a number twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:(?:\.\.|-)\s*(\d{1,10})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= _MOST:
            raise SettingsError(
                f"{option} is `{text}`", "e.g. 0..4 or 0,3,5: at most 1,000 whole numbers", "correct it"
            )
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise SettingsError(f"{option} names a number twice: `{text}`", "each once", "correct it")
    return found


def members(
    path: str | Path, assignments: Iterable[str] = (), *, seeds: Sequence[int] = (), folds: Sequence[int] = ()
) -> list[Member]:
    """The runs of a series, all of them checked: fold by fold, and in each seed by seed.

    Args:
        path: of the recipe.
        assignments: as in `read_recipe`.
        seeds: each becomes `training.seed`; none for the recipe's own.
        folds: each becomes `split.fold`; none for the recipe's own.

    Raises:
        SettingsError: if the recipe is wrong, or its split has no folds.
        OutputError: if the folder holds a single run, or a run of another recipe.
    """
    assignments = tuple(assignments)
    whole = read_recipe(path, assignments)
    if folds and whole.training.use == "all":
        raise SettingsError(
            "a run per fold of a recipe with training.use=all", "one of them: it trains on each fold by itself",
            "leave the folds out, or set training.use=train",
        )  # fmt: skip
    base = Path(whole.run or "")
    if (base / "recipe.json").exists():
        raise OutputError(
            f"{base} holds a single run", "a folder for a run per seed and fold", "choose another folder by run=..."
        )
    result = []
    for fold in folds or (None,):
        for seed in seeds or (None,):
            named = [("split.fold", "fold", fold), ("training.seed", "seed", seed)]
            own = [f"{key}={value}" for key, _, value in named if value is not None]
            run = base / "-".join(f"{word}-{value}" for _, word, value in named if value is not None)
            given = (*assignments, *own, f"run={run}")
            keys = [one.partition("=")[0] for one in given]
            given = tuple(one for place, one in enumerate(given) if keys[place] not in keys[place + 1 :])
            recipe = read_recipe(path, given)
            recipe.split_of(recipe.read_scene())
            if (run / "recipe.json").exists():
                claim(run, recipe)
            result.append(Member(recipe, given, run))
    return result


def train_series(
    path: str | Path,
    runs: Sequence[Member],
    *,
    quiet: bool = False,
    model: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains the runs that have not ended, one after another; an interrupted one continues.

    Args:
        runs: as `members` returns them.
        model: a class of one's own that the runs train, `package.module:Class`.
        report: called with a line for each run that starts.

    Raises:
        ModelError: if a run fails; its own message has been printed by then. Later runs are not started.
        OutputError: if a run that has ended was trained on other data.
    """
    for number, member in enumerate(runs, start=1):
        place = f"run {number} of {len(runs)}: {member.run}"
        if member.ended:
            from landfuse.training.train import check_data  # imports torch

            check_data(member.recipe, member.run)
            report(f"{place} has ended before")
            continue
        report(place)
        options = [*(["--quiet"] if quiet else []), *(["--model", model] if model is not None else [])]
        code = _run([str(path), *member.assignments, *options])
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise ModelError(
                f"{member.run} did not end (exit code {code})",
                "a run that ends",
                "correct what is reported above, then repeat the same command: runs that have ended are not repeated",
            )


def _run(words: list[str]) -> int:
    """Runs `landfuse train` in a session of its own, so that ctrl-C reaches it once, through this process.

    It ends with this process, in whatever way that ends: its standard input is a pipe that the system closes then.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "landfuse.cli", "train", *words],
        start_new_session=True,
        stdin=subprocess.PIPE,
        env={**os.environ, "LANDFUSE_ENDS_WITH_STDIN": "1"},
    )
    try:
        return process.wait()
    except BaseException:
        if os.name == "posix":
            process.send_signal(signal.SIGINT)
        process.wait()
        raise
