"""The command `predict`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landfuse.cli.console import Quiet, ScenePath, bar, say

if TYPE_CHECKING:
    from landfuse.legend import Legend
    from landfuse.scenes.scene import Scene


def predict(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or the run folder that holds it.")],
    scene: ScenePath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The map (.tif), or a folder where the scene has several tiles.")
    ],
    tile: Annotated[list[str] | None, typer.Option(help="Map only this tile; may be given several times.")] = None,
    probabilities: Annotated[
        bool, typer.Option(help="Also write class probabilities, uint8 in steps of 1/250.")
    ] = False,
    confidence: Annotated[bool, typer.Option(help="Also write the margin between best and second class.")] = False,
    picture: Annotated[bool, typer.Option(help="Also write a picture (.png) of each map.")] = False,
    block: Annotated[int, typer.Option(min=1, help="Side of the blocks, px; bounds the memory.")] = 512,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows per forward pass; by default about 65,000 px.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Map a scene: a georeferenced GeoTIFF with colours and class names, 255 where there is no data."""
    from landfuse.classifier import load_bundle
    from landfuse.errors import OutputError, SceneError
    from landfuse.predict import predict as run_mapping
    from landfuse.scenes.scene_file import read_scene_file

    classifier = load_bundle(bundle)
    file = read_scene_file(scene)
    scenes = file.scenes(only=list(classifier.notes))
    unknown = sorted(set(tile or ()) - {s.name for s in scenes})
    if unknown:
        raise SceneError(
            f"the scene has no tile {', '.join(unknown)}", f"some of {', '.join(s.name for s in scenes[:9])}", ""
        )
    for one in scenes:
        classifier.check(one)
    chosen = [one for one in scenes if not tile or one.name in tile]
    as_file = output.suffix.lower() in (".tif", ".tiff")
    if as_file and len(chosen) > 1:
        raise OutputError(
            f"{len(chosen)} tiles are to be mapped into the one file {output}",
            "a folder, which gets a map per tile",
            "name a folder by -o, or one tile by --tile",
        )
    for one in chosen:
        path = output if as_file else output / f"{one.name}.tif"
        with bar(f"mapping {one.name}, px", quiet) as tell:
            run_mapping(
                classifier, one, path, probabilities=probabilities, confidence=confidence, block=block, batch=batch,
                progress=tell,
            )  # fmt: skip
        say(f"map: {path}")
        if picture:
            say(f"picture: {_picture(path, one, classifier.legend)}")


def _picture(path: Path, scene: Scene, legend: Legend) -> Path:
    from landfuse.evaluate import read_map
    from landfuse.pictures import class_image, map_figure, modality_image, save

    classes = read_map(path, replace(scene, legend=legend))  # a scene that is only mapped may have no legend
    images = {name: modality_image(scene, name) for name in scene.modalities}
    images["map"] = class_image(classes, legend)
    shown = [classes]
    if scene.read_labels is not None and scene.legend == legend:
        images["labels"] = class_image(scene.labels, scene.legend)
        shown.append(scene.labels)
    return save(map_figure(images, legend, shown), path.with_suffix(".png"))
