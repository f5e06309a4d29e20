"""Where the command speaks: output, errors, progress bars, and arguments that several commands take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
ScenePath = Annotated[Path, typer.Argument(help="The scene file (scene.yaml), or the folder that holds it.")]


def say(line: str) -> None:
    """One line, whatever the width and whatever brackets a path holds."""
    out.print(line, markup=False, soft_wrap=True)


@contextmanager
def bar(what: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; gives what is to be told (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_scores(scores: dict[str, float], classes: Sequence[Mapping[str, object]], title: str) -> None:
    """A table of the scores per class, and the scores of all below it."""
    table = Table(title=escape(title))
    for name in ("class", "precision", "recall", "F1", "IoU", "support"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in classes:
        values = [row[name] for name in ("precision", "recall", "F1", "IoU")]
        table.add_row(escape(str(row["class"])), *(share(v) for v in values), f"{row['support']:,}")
    out.print(table)
    out.print("  ".join(f"{name} {share(scores[name])}" for name in ("OA", "AA", "kappa", "mF1", "mIoU")))
    if scores.get("unmapped"):
        out.print(f"{scores['unmapped']:.1%} of the labelled pixels have no class in the map; they are not scored")


def share(value: object) -> str:
    """A share of 1 in four decimals; a dash for none."""
    return "–" if value is None or value != value else f"{value:.4f}"
