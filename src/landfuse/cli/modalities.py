"""The command `modalities`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from landfuse.cli.console import Quiet, bar, out, say, share

if TYPE_CHECKING:
    from landfuse.modality_table import ModalityTable


def modalities(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs of models with two or more modalities.")],
    alone: Annotated[
        list[Path] | None,
        typer.Option(help="A run, or a folder of runs, with fewer modalities; may be given several times."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Tell what each modality gives: the trained model with one withheld, and models trained without it.

    Scores are those of the run's test pixels, as its folder `split` has them. Writes modalities.json and
    modalities.csv into the run folder.
    """
    from landfuse.modality_table import modality_table

    for run in runs:
        with bar(f"{run}, tiles", quiet) as tell:
            table = modality_table(run, alone or (), progress=tell)
        _print(table)
        say(f"table: {table.save()}")


def _print(found: ModalityTable) -> None:
    from landfuse.intervals import SCORES

    table = Table(title=escape(f"{found.run}: test split; in brackets, less the whole model"))
    table.add_column("what it saw")
    for score in SCORES:
        table.add_column(score, justify="right", no_wrap=True)
    for row in found.rows:
        told = " + ".join(row.seen)
        if row.how in ("mean", "placeholder"):
            told += f", and the {row.how} of {' + '.join(row.withheld)}"
        elif row.how == "trained without":
            told += ": trained on it alone" if len(row.seen) == 1 else ": trained on these alone"
        cells = [
            share(row.scores[score]) + (f" ({found.difference(row, score):+.3f})" if row.how != "all" else "")
            for score in SCORES
        ]
        table.add_row(escape(told), *cells)
    out.print(table)
    for row in found.rows:
        if row.scores["unmapped"] and row.how != "all":
            say(f"note: without {' + '.join(row.withheld)}, {row.scores['unmapped']:.1%} of the pixels have no class")
    for note in found.notes:
        say(f"note: {note}")
