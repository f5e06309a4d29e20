"""The command `predict`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landfuse.cli.console import OwnModel, Quiet, ScenePath, mapping_progress, own_model, print_json, say
from landfuse.cli.map_extras import BesideMaps

if TYPE_CHECKING:
    from landfuse.bundles.bundle import Bundle
    from landfuse.errors import IncompleteError
    from landfuse.legend import Legend
    from landfuse.mapping.predict import Runner
    from landfuse.mapping.settings import MapOptions
    from landfuse.scenes.scene import Scene


def predict(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or the run folder that holds it.")],
    scene: ScenePath,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="The map (.tif), or a folder where the scene has several tiles; or an address (s3://bucket/map.tif), "
            "where it is put at the end.",
        ),
    ],
    tile: Annotated[list[str] | None, typer.Option(help="Map only this tile; may be given several times.")] = None,
    probabilities: Annotated[
        bool, typer.Option(help="Also write class probabilities, uint8 in steps of 1/250.")
    ] = False,
    confidence: Annotated[bool, typer.Option(help="Also write the margin between best and second class.")] = False,
    entropy: Annotated[
        bool, typer.Option(help="Also write the entropy of the probabilities, 0 (sure) to 1 (any class alike).")
    ] = False,
    layer: Annotated[
        list[str] | None, typer.Option(help="Also write this layer that the model tells; may be given several times.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Map also without modalities that the model learnt to do without.")
    ] = False,
    mean_for: Annotated[
        list[str] | None,
        typer.Option(help="Let this modality's training mean stand in where it has no data, at your own risk."),
    ] = None,
    picture: Annotated[bool, typer.Option(help="Also write a picture (.png) of each map.")] = False,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Also write polygons (GeoPackage) with their class and hectares.")
    ] = False,
    minimum_area: Annotated[
        float | None,
        typer.Option(
            help="Merge polygons below this into the largest beside them: square metres (square units of the map where "
            "its CRS is not in metres)."
        ),
    ] = None,
    stac: Annotated[
        bool, typer.Option("--stac", help="Also write a STAC item (.stac.json), which tells place, classes and model.")
    ] = False,
    taken: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="When the scene was taken, for --stac; by default when it is mapped."),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(help="What a process may take; chooses the blocks, at most 2,048 px. Large networks take more."),
    ] = "2GiB",
    block: Annotated[int | None, typer.Option(min=1, help="Side of the blocks, px, instead of --memory.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows per forward pass; by default about 65,000 px.")
    ] = None,
    precision: Annotated[str, typer.Option(help="What the network computes in: float32 or bfloat16.")] = "float32",
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the blocks of an unfinished run instead of going on from them.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Map by this many processes of this machine.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Map by the workers of this dask scheduler, e.g. tcp://host:8786.")
    ] = None,
    scheduler_file: Annotated[
        Path | None, typer.Option(help="The same, by the file that `dask scheduler --scheduler-file` writes.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say blocks, memory, disk and time, by one timed block; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Tell in lines of JSON, for machines.")] = False,
    own: OwnModel = None,
    quiet: Quiet = False,
) -> None:
    """Map a scene: a cloud-optimised GeoTIFF with colours, class names and a QGIS style, 255 where there is no data.

    Of several tiles, mosaic.vrt shows all maps as one, and index.gpkg tells where they lie.

    Interrupted in whatever way, the same command goes on where it stopped. Exit code 3: some blocks cannot be read, and
    the map lacks them.
    """
    from landfuse.bundles.bundle_files import bundle_folder, load_bundle
    from landfuse.errors import OutputError, SceneError, SettingsError, several
    from landfuse.mapping.destination import Destination
    from landfuse.mapping.map_layers import layers_of
    from landfuse.mapping.part_folder import PartFolder
    from landfuse.mapping.predict import predict as run_mapping
    from landfuse.mapping.settings import map_options
    from landfuse.scenes.scene_file import read_scene_file

    options = map_options(
        {
            "probabilities": probabilities, "confidence": confidence, "entropy": entropy, "layers": layer or (),
            "block": block, "memory": memory, "batch": batch, "precision": precision, "mean_for": mean_for or (),
            "allow_missing": allow_missing,
        }
    )  # fmt: skip
    if sum(option is not None for option in (workers, scheduler, scheduler_file)) > 1:
        raise SettingsError(
            "several of --workers, --scheduler and --scheduler-file are given", "one at most", "choose one"
        )
    model = load_bundle(bundle, model=own_model(own) if own is not None else None)
    known = model.description
    file = read_scene_file(scene)
    scenes = file.scenes(only=list(known.modalities))
    unknown = sorted(set(tile or ()) - {s.name for s in scenes})
    if unknown:
        raise SceneError(
            f"the scene has no tile {', '.join(unknown)}", f"some of {', '.join(s.name for s in scenes[:9])}", ""
        )
    for one in scenes:
        known.check(one, options)
    chosen = [one for one in scenes if not tile or one.name in tile]
    extras = BesideMaps(polygons, minimum_area, stac, taken, as_json, quiet)
    extras.check(chosen)
    destination = Destination(output)
    place = destination.local
    as_file = place.suffix.lower() in (".tif", ".tiff")
    if as_file and len(chosen) > 1:
        raise OutputError(
            f"{len(chosen)} tiles are to be mapped into the one file {output}",
            "a folder, which gets a map per tile",
            "name a folder by -o, or one tile by --tile",
        )
    paths = {one.name: place if as_file else place / f"{one.name}.tif" for one in chosen}
    if dry_run:
        for one in chosen:
            _print_plan(model, one, paths[one.name], options, workers or 1, as_json)
        return
    with destination.delivery():
        keep = len(chosen) > 1 or extras.takes_time
        with _runner(bundle, workers, scheduler, scheduler_file) as (run, at_once):
            job = partial(run_mapping, model, restart=restart, run=run, keep=keep, **dict(options))
            incomplete = _map_tiles(job, chosen, paths, at_once, quiet=quiet, as_json=as_json)
        for one in chosen:
            path = paths[one.name]
            if as_json:
                print_json("map", tile=one.name, path=str(path), complete=one.name not in incomplete)
            else:
                say(f"map: {path}")
            if picture:
                drawn = _picture(path, one, known.legend)
                if not as_json:
                    say(f"picture: {drawn}")
        if stac and destination.address is not None:
            # Items name the bundle's place relative to theirs: it has to go where they go.
            home = place.with_name(f"{place.stem}_bundle") if as_file else place / "bundle"
            bundle = shutil.copytree(bundle_folder(bundle), home, dirs_exist_ok=True)
        predictor, layers = model.predictor(options), layers_of(options, known.legend)
        faults = extras.write(chosen, paths, predictor, bundle_folder(bundle), layers, incomplete)
        if not as_file and len(scenes) > 1:
            extras.write_overview(scenes, place, known.legend)
        if incomplete:
            raise several(list(incomplete.values()))
        if keep:
            for path in paths.values():  # until here they say which tiles are finished
                PartFolder(path).remove()
    if destination.address is not None:
        if as_json:
            print_json("put", address=destination.address)
        else:
            say(f"put at: {destination.address}")
    if faults:
        raise several(faults)


def _map_tiles(
    job: Callable[..., Path],
    tiles: Sequence[Scene],
    paths: Mapping[str, Path],
    at_once: int,
    *,
    quiet: bool,
    as_json: bool,
) -> dict[str, IncompleteError]:
    """Maps tiles, several at once where a cluster does the work; returns those whose maps lack blocks."""
    from landfuse.errors import IncompleteError

    incomplete: dict[str, IncompleteError] = {}
    stop = threading.Event()

    with mapping_progress(sum(one.grid.window.pixels for one in tiles), quiet=quiet, as_json=as_json) as report:

        def one_tile(one: Scene) -> None:
            def progress(done: int, total: int) -> None:
                if stop.is_set():
                    raise KeyboardInterrupt
                report(one.name, done)

            try:
                job(one, paths[one.name], progress=progress)
            except IncompleteError as error:
                incomplete[one.name] = error
                if as_json:
                    for where, fault in error.faults.items():
                        print_json("fault", tile=one.name, block=where, found=fault.found)
            report(one.name, one.grid.window.pixels)

        if at_once == 1:
            for one in tiles:
                one_tile(one)
        else:
            with ThreadPoolExecutor(at_once) as pool:
                running = [pool.submit(one_tile, one) for one in tiles]
                try:
                    for tile in as_completed(running):
                        tile.result()
                except BaseException:
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return incomplete


@contextmanager
def _runner(
    bundle: Path, workers: int | None, scheduler: str | None, scheduler_file: Path | None
) -> Iterator[tuple[Runner, int]]:
    """Who maps blocks, and how many tiles they map at once."""
    if workers is None and scheduler is None and scheduler_file is None:
        from landfuse.mapping.predict import map_parts

        yield map_parts, 1
        return
    from landfuse.mapping.cluster import cluster_runner

    with cluster_runner(scheduler, scheduler_file=scheduler_file, workers=workers, bundle=bundle) as run:
        yield run, 8


def _print_plan(model: Bundle, scene: Scene, path: Path, options: MapOptions, workers: int, as_json: bool) -> None:
    from landfuse.mapping.memory import in_bytes
    from landfuse.mapping.predict import plan_map

    plan = plan_map(model, scene, path, **dict(options))
    if as_json:
        print_json("plan", tile=scene.name, path=str(path), **asdict(plan))
        return
    say(f"{scene.name} -> {path}")
    say(f"  size:    {plan.height:,} x {plan.width:,} px")
    say(
        f"  blocks:  {plan.blocks:,} of {plan.block:,} px; halos add {plan.halo_fraction:.0%} to what is read; "
        f"{plan.windows:,} windows"
    )
    if plan.blocks > 1:
        say(
            f"           where they are computed apart (on a cluster) halos add {plan.halo_apart:.0%}, "
            f"and there are {plan.recomputed_fraction:.0%} more windows"
        )
    say(f"  memory:  at most {in_bytes(plan.memory)} per process")
    say(f"  disk:    about {in_bytes(plan.expected_disk)}, at most {in_bytes(plan.disk)}")
    if plan.seconds is None:
        say("  time:    not known: there is no data in the scene's middle")
    else:
        more = 1 + plan.recomputed_fraction if workers > 1 else 1
        time = timedelta(seconds=round(plan.seconds * more / workers))
        say(f"  time:    about {time} by {workers} process{'es' if workers > 1 else ''}, by one timed block")


def _picture(path: Path, scene: Scene, legend: Legend) -> Path:
    from landfuse.accuracy.evaluate import read_map
    from landfuse.figures.figures import class_image, map_figure, modality_image, save

    classes = read_map(path, replace(scene, legend=legend))  # a scene that is only mapped may have no legend
    images = {name: modality_image(scene, name) for name in scene.modalities}
    images["map"] = class_image(classes, legend)
    shown = [classes]
    if scene.read_labels is not None and scene.legend == legend:
        images["labels"] = class_image(scene.labels, scene.legend)
        shown.append(scene.labels)
    return save(map_figure(images, legend, shown), path.with_suffix(".png"))
