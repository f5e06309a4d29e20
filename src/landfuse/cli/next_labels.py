"""The command `next`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import Overwrite, Quiet, RunMaps, RunPath, ScenePath, hint, out, say, table
from landfuse.files import check_replaceable
from landfuse.progress import bars


def next(
    run: RunPath,
    scene: ScenePath,
    n: Annotated[int, typer.Option("-n", "--points", min=2, max=10_000, help="Places to label.")] = 50,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The places, .gpkg or .csv; by default next.gpkg beside the scene file."),
    ] = None,
    judge: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Fraction of the places that is drawn at random, to judge maps by; the others train."
        ),
    ] = 0.5,
    walk: Annotated[
        float | None,
        typer.Option(
            help="Side of walking blocks, metres (pixels without a CRS): places to train lie in few of them. By "
            "default they are spread over the scene."
        ),
    ] = None,
    maps: RunMaps = None,
    tile: Annotated[str | None, typer.Option(help="Take this tile only.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed draws the same places.")] = 0,
    picture: Annotated[bool, typer.Option(help="Also write a picture (.png) of the places on the map.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw places to label next: where labels help the run's model most, and at random, to judge its maps by.

    Fill in the column `reference`. Places with `train` in the column `part` come back by `labels: also:` of the scene
    file; those with `judge` are a sample by which `evaluate` estimates the accuracy of this and every later map.
    """
    from landfuse.accuracy.reference_sample import check_unfilled

    path = output or (scene if scene.is_dir() else scene.parent) / "next.gpkg"
    check_unfilled(path, overwrite)
    if picture:
        check_replaceable(path.with_suffix(".png"), "landfuse", overwrite)
    from landfuse.studies.next_labels import next_labels

    with bars(quiet) as progress:
        found = next_labels(
            run, scene, n, judge=judge, walk=walk, maps=maps, tile=tile, seed=seed, progress=progress
        )  # fmt: skip
    found.save(path, overwrite=overwrite)
    shown = table(
        f"{path}: {len(found)} places, seed {seed}", ["the map's class", "train", "judge"], ["the map's class"]
    )
    columns = found.columns()
    pairs = list(zip(columns["map_class"].tolist(), columns["part"].tolist(), strict=True))
    for name in sorted({name for name, _ in pairs}):
        shown.add_row(escape(name), *(str(pairs.count((name, part))) for part in ("train", "judge")))
    out.print(shown)
    if picture and found.map_path is None:
        say("no picture: there is a map per tile; name one by --tile")
    elif picture and found.map_path is not None:
        from landfuse.figures.figures import sample_figure, save
        from landfuse.scenes.land_cover_map import open_map

        figure = sample_figure(open_map(found.map_path), columns["row"], columns["col"], columns["part"] == "train")
        say(f"picture: {save(figure, path.with_suffix('.png'))}")
    entry = f"also: [{{polygons: {path.absolute()}}}]"  # the whole path: others start from the scene file's `root`
    hint(f"fill in `reference`, then write `{entry}` under `labels:` of the scene file, and train again")
