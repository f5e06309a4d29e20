"""The command `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from landfuse.cli.console import Quiet, err, out, print_scores, say


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML): one file is one run.")],
    assignments: Annotated[
        list[str] | None, typer.Argument(help="Settings that win over the file, e.g. training.epochs=20 run=runs/a.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train what a recipe says and score it on the test split; the same command goes on after an interruption."""
    from landfuse.recipe import read_recipe
    from landfuse.train import train as run_training

    read = read_recipe(recipe, assignments or ())
    run = Path(read.run or "")
    run_training(read, progress=not quiet and err.is_terminal)
    if not (run / "scores.json").exists():
        return  # a further rank of several; the first one reports
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    print_scores(scores["test"], scores["classes"], f"{run}: test split")
    if scores["leak_share"]:
        out.print(f"[red]{scores['leak_share']:.1%} of the test pixels have a training pixel in their view[/]")
    say(f"bundle: {run / 'bundle'}")
