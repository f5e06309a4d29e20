"""The command `ablation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landfuse.cli.compare import print_comparison
from landfuse.cli.console import Quiet, say


def ablation(
    file: Annotated[Path, typer.Argument(help="The ablation (YAML): a recipe, and what each variant changes in it.")],
    assignments: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that win over all variants, e.g. training.epochs=5 run=runs/a."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Take only this variant; may be given several times. By default all.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, e.g. 0..4 or 0,3,5; by default the file's.")] = None,
    folds: Annotated[str | None, typer.Option(help="Folds, e.g. 0..4; by default the file's.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the comparison as JSON, CSV and LaTeX.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a recipe in several variants, with the same seeds and folds, and compare them with the first.

    Runs lie in folders such as runs/NAME/VARIANT/fold-0-seed-1. The same command goes on after an interruption; runs
    that have ended are not repeated.
    """
    from landfuse.ablation import ablate
    from landfuse.comparison_files import save

    result = ablate(file, assignments or (), only=only or (), seeds=seeds, folds=folds, quiet=quiet, tell=say)
    print_comparison(result)
    if output is not None:
        for path in save(result, output):
            say(f"comparison: {path}")
