"""The commands `init` and `map`: from files to a scene file, and on to a map with its report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landfuse.cli.console import Quiet, a_folder, say
from landfuse.errors import SceneError
from landfuse.progress import err

if TYPE_CHECKING:
    from landfuse.scenes.scene_file import SceneFile

Places = Annotated[list[Path], typer.Argument(help="Rasters, and vector files with labels; or folders of them.")]
LabelFile = Annotated[
    Path | None, typer.Option("--labels", help="The file of labels, raster or vector; by default what looks like it.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="The column of a vector file that names the class.")
]


def init(
    places: Places,
    labels: LabelFile = None,
    label_column: LabelColumn = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for scene.yaml and recipe.yaml.", callback=a_folder)
    ] = Path(),
) -> None:
    """Write a scene file and a recipe for a folder of files, with the reason of each choice, and check the scene.

    Files are grouped into modalities and tiles by their names, and labels are found among them. Nothing is written over
    files that are there. On a terminal it asks where several columns could name the class.
    """
    from landfuse.cli.data import check

    check(_write(places, labels, label_column, output).path)


def map(
    places: Places,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all results.", callback=a_folder)],
    labels: LabelFile = None,
    label_column: LabelColumn = None,
    quiet: Quiet = False,
) -> None:
    """Map a folder of files in one command: what `init`, `train`, `predict` and `report` do, one after the other.

    The folder gets scene.yaml and recipe.yaml (change them, and give the commands one by one, to do better), the run,
    the map and the report. The same command goes on after an interruption.
    """
    from landfuse.cli.predict import predict
    from landfuse.cli.report import report
    from landfuse.cli.train import train

    file = _write(places, labels, label_column, output, train=True)
    run, maps = output / "run", output / ("maps" if len(file.tiles) > 1 else "map.tif")
    train(file.path.with_name("recipe.yaml"), [f"run={run}"], quiet=quiet)
    predict(run, file.path, str(maps), quiet=quiet)
    report(run, output / "report.html", maps=maps, quiet=quiet)


def _write(
    places: Sequence[Path], labels: Path | None, column: str | None, output: Path, train: bool = False
) -> SceneFile:
    """Proposes the scene file and the recipe, prints what was chosen, and writes them; returns the scene file."""
    from landfuse.scenes.from_files import propose

    asks = _ask if sys.stdin.isatty() and err.is_terminal else None
    found = propose(places, output, labels=labels, column=column, choose=asks)
    for note in found.notes:
        say(f"note: {note}")
    if train and found.file.settings.labels is None:
        raise SceneError("there are no labels to train by", "a raster of classes or polygons", "name them by --labels")
    scene, recipe = found.write()
    say(f"scene file: {scene}")
    say(f"recipe:     {recipe}")
    return found.file


def _ask(question: str, choices: Sequence[str]) -> str:
    for number, choice in enumerate(choices, start=1):
        say(f"  {number}  {choice}")
    chosen = typer.prompt(question + " Number", type=int, err=True)
    if not 1 <= chosen <= len(choices):
        raise SceneError(f"there is no number {chosen}", f"1 to {len(choices)}", "name the column by --label-column")
    return choices[chosen - 1]
