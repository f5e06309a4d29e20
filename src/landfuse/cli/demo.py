"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from landfuse.cli.console import Quiet, err, out, say, share


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo writes.")] = Path("landfuse-demo"),
    seed: Annotated[int, typer.Option(help="Of the simulated scene and the training.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Simulate a scene of three sensors, train, map and score it: all of landfuse in two minutes."""
    from landfuse.simulate.demo import run_demo

    result = run_demo(folder, seed=seed, progress=not quiet and err.is_terminal, report=say)
    table = Table(title="what each modality gives (test split)")
    for title in ("modalities", "OA", "mF1", "mIoU"):
        table.add_column(title, justify="left" if title == "modalities" else "right")
    for name, scores in result.scores.items():
        table.add_row(name, *(share(scores[key]) for key in ("OA", "mF1", "mIoU")))
    out.print(table)
    say(f"map:     {result.map}")
    say(f"picture: {result.picture}")
