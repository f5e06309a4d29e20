"""The commands `init`, `map` and `demo`: from files to a scene file, and on to a map with its report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landfuse.cli.console import Overwrite, Quiet, hint, into_folder, modules_here, number, out, say, table
from landfuse.errors import SceneError, SettingsError
from landfuse.progress import err

if TYPE_CHECKING:
    from landfuse.scenes.from_files import Catalog
    from landfuse.scenes.scene_file import SceneFile

_PLACES = typer.Argument(help="Rasters, and vector files with labels; or folders of them.")
Places = Annotated[list[Path], _PLACES]
LabelFile = Annotated[
    Path | None, typer.Option("--labels", help="The file of labels, raster or vector; by default what looks like it.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="The column of a vector file that names the class.")
]


def init(
    places: Annotated[list[Path] | None, _PLACES] = None,
    labels: LabelFile = None,
    label_column: LabelColumn = None,
    catalog: Annotated[
        str | None,
        typer.Option("--stac", help="Add modalities from a STAC catalog: catalog.json, its address, or a STAC API."),
    ] = None,
    collections: Annotated[
        str | None, typer.Option(help="Ids, separated by commas; of a catalog of files all by default.")
    ] = None,
    bbox: Annotated[str | None, typer.Option(help="The area: west,south,east,north in degrees.")] = None,
    area: Annotated[
        Path | None, typer.Option(help="Or a vector file whose bounds it is; by default the labels, if polygons.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="2023, 2023-04/2023-09 or 2023-04-01/2023-09-30.")] = None,
    assets: Annotated[
        str | None, typer.Option(help="Those that become bands: red,nir,scl. By default all that look like data.")
    ] = None,
    cloud: Annotated[
        float | None, typer.Option(min=0, max=100, help="Largest eo:cloud_cover of an item, percent.")
    ] = None,
    pixel: Annotated[
        float | None, typer.Option(help="Pixel size in units of the items' CRS; by default the files' own.")
    ] = None,
    without: Annotated[str | None, typer.Option(help="Ids of items that are left out.")] = None,
    sign: Annotated[
        str | None,
        typer.Option(
            help="A function that signs the address of a file: package.module:function, also of the working directory."
        ),
    ] = None,
    output: Annotated[Path, into_folder("Folder for scene.yaml and recipe.yaml.")] = Path(),
) -> None:
    """Write a scene file and a recipe for a folder of files, with the reason of each choice, and check the scene.

    Files are grouped into modalities and tiles by their names, and labels are found among them. Nothing is written over
    files that are there. On a terminal it asks where several columns could name the class. Of a catalog no pixels are
    copied: they are read where they lie, and `landfuse check` reads them all.
    """
    from landfuse.cli.data import check

    if catalog is None:
        alone: dict[str, object] = {
            "collections": collections,
            "bbox": bbox,
            "area": area,
            "time": time,
            "assets": assets,
        }
        alone |= {"cloud": cloud, "pixel": pixel, "without": without, "sign": sign}
        given = [f"--{name}" for name, value in alone.items() if value is not None]
        if given or not places:
            found = f"{given[0]} is given without --stac" if given else "no file is named"
            raise SettingsError(found, "files, or a catalog by --stac", "name what the scene is made of")
        check(_write(places, labels, label_column, output).path)
        return
    from landfuse.catalogs.stac import Catalog, signer  # pystac is an optional dependency

    modules_here()
    chosen = Catalog(
        catalog,
        _area(bbox, area, labels),
        time,
        _listed(collections),
        _listed(assets),
        cloud,
        pixel,
        _listed(without),
        signer(sign) if sign else None,
    )
    file = _write(places or [], labels, label_column, output, catalog=chosen.write)
    hint("landfuse", "check", file.path)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _area(bbox: str | None, area: Path | None, labels: Path | None) -> tuple[float, float, float, float]:
    """West, south, east and north of what the options name."""
    from landfuse.rasters.polygons import box_of
    from landfuse.scenes.from_files import VECTORS

    if bbox is not None and area is not None:
        raise SettingsError("the area is given by --bbox and by --area", "one of them", "leave one out")
    if bbox is not None:
        try:
            west, south, east, north = (float(part) for part in bbox.split(","))
        except ValueError:
            raise SettingsError(f"--bbox is {bbox}", "west,south,east,north in degrees", "correct it") from None
        return west, south, east, north
    area = area or (labels if labels and labels.suffix.lower() in VECTORS else None)
    if area is None:
        raise SettingsError("the area is not given", "--bbox west,south,east,north, or --area FILE", "add one of them")
    return box_of(area)


def map(
    places: Places,
    output: Annotated[Path, into_folder("Folder for all results.")],
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
    places: Sequence[Path],
    labels: Path | None,
    column: str | None,
    output: Path,
    train: bool = False,
    catalog: Catalog | None = None,
) -> SceneFile:
    """Proposes the scene file and the recipe, prints what was chosen, and writes them; returns the scene file."""
    from landfuse.scenes.from_files import propose

    asks = _ask if sys.stdin.isatty() and err.is_terminal else None
    found = propose(places, output, labels=labels, column=column, choose=asks, catalog=catalog)
    say(*(f"note: {note}" for note in found.notes))
    if train and found.file.settings.labels is None:
        raise SceneError("there are no labels to train by", "a raster of classes or polygons", "name them by --labels")
    scene, recipe = found.write()
    say(f"scene file: {scene}")
    say(f"recipe:     {recipe}")
    return found.file


def _ask(question: str, choices: Sequence[str]) -> str:
    for place, choice in enumerate(choices, start=1):
        say(f"  {place}  {choice}")
    chosen = typer.prompt(question + " Number", type=int, err=True)
    if not 1 <= chosen <= len(choices):
        raise SceneError(f"there is no number {chosen}", f"1 to {len(choices)}", "name the column by --label-column")
    return choices[chosen - 1]


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
