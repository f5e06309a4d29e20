"""The command `compare`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from landfuse.cli.console import out, say

if TYPE_CHECKING:
    from landfuse.compare import Comparison, Spread


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs; the first is the measure.")],
    classes: Annotated[bool, typer.Option("--classes", help="Also print the F1 and IoU of each class.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for JSON, CSV and LaTeX, and the ledger runs.csv; it only grows."),
    ] = None,
) -> None:
    """Compare recipes over their seeds and folds: mean ± standard deviation, costs, and paired differences."""
    from landfuse.compare import compare as run_comparison
    from landfuse.comparison_files import save

    result = run_comparison(runs)
    print_comparison(result, classes=classes)
    if output is not None:
        for path in save(result, output):
            say(f"comparison: {path}")


def print_comparison(result: Comparison, *, classes: bool = False) -> None:
    """The tables of a comparison.

    Args:
        result: the comparison.
        classes: also the scores of each class.
    """
    table = _table("test split: mean ± standard deviation over n runs", ["n", *result.recipes[0].scores])
    for recipe in result.recipes:
        table.add_row(escape(recipe.name), str(len(recipe.runs)), *map(_share, recipe.scores.values()))
    out.print(table)
    titles = ["parameters", "training, s", "mapping the test pixels, s", "peak memory, GiB", "leak share"]
    table = _table("what it takes: means over the runs", titles)
    for recipe in result.recipes:
        costs = recipe.costs
        table.add_row(
            escape(recipe.name),
            _number(costs["parameters"].mean, ",.0f"),
            _number(costs["training_seconds"].mean, ",.0f"),
            _number(costs["test_mapping_seconds"].mean, ",.1f"),
            _number(costs["peak_memory_bytes"].mean / 2**30, ".2f"),
            _number(costs["leak_share"].mean, ".1%"),
        )
    out.print(table)
    if classes:
        _print_classes(result)
    if result.differences:
        _print_differences(result)
    for note in result.notes:
        say(f"note: {note}")


def _table(title: str, columns: Iterable[str], first: str = "recipe") -> Table:
    """A table whose first column may fold; the others hold numbers, whole."""
    table = Table(title=escape(title))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(escape(column), justify="right", no_wrap=True)
    return table


def _print_classes(result: Comparison) -> None:
    for title in ("F1", "IoU"):
        table = Table(title=f"{title} of each class")
        table.add_column("class")
        for recipe in result.recipes:
            table.add_column(escape(recipe.name), justify="right")
        for name in result.classes:
            values = [(recipe.f1 if title == "F1" else recipe.iou)[name] for recipe in result.recipes]
            table.add_row(escape(name), *map(_share, values))
        out.print(table)


def _print_differences(result: Comparison) -> None:
    title = f"less {result.recipes[0].name}: mean difference, and p of the sign-flip test"
    table = _table(title, ["pairs", *result.recipes[0].scores])
    for one in result.differences:
        count = max(value.n for value in one.scores.values())
        cells = [
            f"{_number(value.mean, '+.3f')}  p {_number(one.p[name], '.2g')}" for name, value in one.scores.items()
        ]
        table.add_row(escape(one.name), f"{count} {one.unit}{'s' if count != 1 else ''}", *cells)
    out.print(table)
    for unit in dict.fromkeys(one.unit for one in result.differences):
        fewest = min(max(v.n for v in one.scores.values()) for one in result.differences if one.unit == unit)
        told = (
            "a fold counts once, as the mean of its seeds; folds share training pixels, so that p is rather too small"
            if unit == "fold"
            else "pairs are seeds on one split: the test says nothing of other ground (see `evaluate --against`)"
        )
        pairs = f"{fewest} {unit}{'s' if fewest != 1 else ''}"
        out.print(f"{told}; with {pairs}, p is at least {min(1.0, 2.0 ** (1 - fewest)):.2g}", soft_wrap=True)


def _share(value: Spread) -> str:
    return _number(value.mean, ".3f") + ("" if math.isnan(value.std) else f" ± {value.std:.3f}")


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
