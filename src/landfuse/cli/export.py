"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landfuse.cli.console import say


def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or the run folder that holds it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the new bundle.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold LoRA into the weights, where the scores stay the same.")
    ] = False,
) -> None:
    """Write a bundle that opens anywhere: with its frozen encoder, which a run's own bundle only refers to."""
    from landfuse.export import export as write

    done = write(bundle, output, merge=merge)
    if merge:
        say(f"folded into its weights: {len(done.folded)} layers ({_kinds(done.folded)})")
    if done.kept:
        say(
            f"not folded: {len(done.kept)} layers ({_kinds(done.kept)}); there a modality takes a share of what the "
            "others' updates make of their own pixels, which no weight on its own pixels can give"
        )
    if done.whole and not merge:
        say("the bundle held all its weights before; this is a copy")
    size = sum(path.stat().st_size for path in done.folder.glob("model.*"))
    say(f"bundle: {done.folder} ({size / 1e6:.1f} MB)")


def _kinds(layers: list[str]) -> str:
    """The last parts of the layers' names, each once."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
