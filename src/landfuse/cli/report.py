"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landfuse.cli.console import Block, Overwrite, Quiet, RunMaps, RunPath, hint, once, say, there
from landfuse.errors import SettingsError
from landfuse.progress import bars


def report(
    run: RunPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page (.html); by default report.html in the run folder.")
    ] = None,
    maps: RunMaps = None,
    scene: Annotated[
        Path | None, typer.Option(help="The scene file, if it has moved since the training.", callback=there)
    ] = None,
    bands: Annotated[
        list[str] | None,
        typer.Option(
            help="How to show a modality, e.g. s2=4,3,2 (red, green, blue) or hsi=30; once per modality.", callback=once
        ),
    ] = None,
    block: Block = 64,
    sample: Annotated[
        Path | None,
        typer.Option(
            help="A sample of `sample`, its reference filled in: accuracy and areas of the whole map are estimated "
            "from it, and the part that is right often enough."
        ),
    ] = None,
    visits: Annotated[
        Path | None,
        typer.Option("--next", help="Places of `next` to show; by default next.gpkg beside the scene file."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a page that shows a run's map, how good it is, and where it came from: one file, without any network."""
    from landfuse.reporting.page import report as write

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        do = f"-o {output.with_suffix('.html')}; a browser prints it as PDF"
        raise SettingsError(f"the report cannot be written as {output}", "the name of a page (.html)", do)
    with bars(quiet) as progress:
        page = write(
            run, output, maps=maps, scene=scene, bands=dict(map(_bands, bands or ())), block=block,
            sample=sample, visits=visits, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    hint(f"open {page} in a browser; it is one file, which can be sent to others")
    say(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")


def _bands(text: str) -> tuple[str, list[int]]:
    """`s2=4,3,2` as a name and numbers."""
    name, _, numbers = text.partition("=")
    try:
        return name, [int(number) for number in numbers.split(",")]
    except ValueError:
        raise SettingsError(f"--bands {text}", "a modality and its bands, e.g. s2=4,3,2", "correct it") from None
