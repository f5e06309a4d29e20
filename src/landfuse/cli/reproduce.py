"""The command `reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from landfuse.cli.console import Quiet, err, out, say


def reproduce(
    place: Annotated[str, typer.Argument(help="A benchmark place (see `landfuse fetch`), or its folder.")],
    assignments: Annotated[
        list[str] | None, typer.Argument(help="Settings that win over every recipe, e.g. training.epochs=20.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Recipes of the place, by name, separated by commas.")
    ] = "forest,two_branch",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per method and split: 5 takes the seeds 0 to 4.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of all runs; by default runs/reproduce-PLACE.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a place's methods on its official split and on one that does not leak, beside what has been published.

    The same command goes on after an interruption; runs that have ended are not repeated.
    """
    from landfuse.intervals import SCORES
    from landfuse.reproduce import cell
    from landfuse.reproduce import reproduce as run

    names = [name.strip() for name in methods.split(",") if name.strip()]
    result = run(place, names, seeds, assignments or (), output, quiet=quiet or not err.is_terminal, tell=say)
    table = Table(title=f"{escape(result.place)}: scores in per cent, mean ± standard deviation")
    for title in ("method", "modalities", "split", "n", "leak", *SCORES, "see"):
        table.add_column(title, justify="left" if title in ("method", "modalities", "split") else "right")
    published = [row for row in result.rows if row.source != "landfuse"]
    for row in result.rows:
        if published and row is published[0]:
            table.add_section()
        leak = "–" if row.leak is None else f"[{'red' if row.leak else 'green'}]{row.leak:.1%}[/]"
        table.add_row(
            escape(row.method), escape(row.modalities), row.split, str(row.n or "–"), leak,
            *(cell(row.scores[name]) for name in SCORES), f"{published.index(row) + 1}" if row in published else "",
        )  # fmt: skip
    out.print(table)
    for number, row in enumerate(published, start=1):
        say(f"{number}  {row.method}: {row.source}. Faults of its protocol: {row.faults or 'none known'}")
    for note in result.notes:
        say(note)
    say(f"tables: {(output or Path(f'runs/reproduce-{result.place}')) / 'table.md'}")
