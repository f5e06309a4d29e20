"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landfuse.cli.console import Overwrite, Quiet, number, out, say, table


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo writes.")] = Path("landfuse-demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the simulated scene and the training.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a scene of three sensors, train, map, score and report it: all of landfuse in a minute or two."""
    import torch

    from landfuse.simulate.demo import run_demo

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks as small as these keep further processors waiting, not working
    try:
        result = run_demo(folder, seed=seed, overwrite=overwrite, progress=not quiet, report=say)
    finally:
        torch.set_num_threads(threads)
    shown = table("what each modality gives (test split)", ["modalities", "OA", "mF1", "mIoU"], left=["modalities"])
    for name, scores in result.scores.items():
        shown.add_row(name, *(number(scores[key]) for key in ("OA", "mF1", "mIoU")))
    out.print(shown)
    say(f"map:     {result.map}")
    say(f"picture: {result.picture}")
    say(f"report:  {result.report}")
    say("next:    landfuse init FOLDER, with rasters and labels of your own; landfuse map does all steps at once")
