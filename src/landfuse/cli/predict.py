"""The command `predict`."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landfuse.cli.console import Events, Overwrite, OwnModel, Quiet, ScenePath, hint, own_model, there
from landfuse.cli.map_extras import MapExtras
from landfuse.errors import (
    ClusterError,
    IncompleteError,
    LandfuseError,
    OutputError,
    SceneError,
    SettingsError,
    UnmappedError,
    several,
)
from landfuse.files import log_replaced
from landfuse.mapping.settings import MapOptions, map_options

if TYPE_CHECKING:
    from landfuse.bundles.description import Description
    from landfuse.bundles.predictor import Model
    from landfuse.legend import Legend
    from landfuse.mapping.predict import Runner
    from landfuse.scenes.scene import Scene

log = logging.getLogger("landfuse")

_MAPS = (".tif", ".tiff")


def _option(field: str, *names: str) -> Any:
    """An option that is described where its setting is defined."""
    setting = MapOptions.model_fields[field]
    words = setting.description or ""
    several_times = "; may be given several times" if setting.default == () else ""
    return typer.Option(*names, help=f"{words[0].upper()}{words[1:]}{several_times}.")


def predict(
    bundle: Annotated[
        Path,
        typer.Argument(help="The bundle, the run folder that holds it, or an ONNX file of `export`.", callback=there),
    ],
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
    probabilities: Annotated[bool, _option("probabilities", "--probabilities")] = False,
    confidence: Annotated[bool, _option("confidence", "--confidence")] = False,
    entropy: Annotated[bool, _option("entropy", "--entropy")] = False,
    sets: Annotated[float | None, _option("sets")] = None,
    sets_method: Annotated[str, _option("sets_method")] = "lac",
    sets_by_class: Annotated[bool, _option("sets_by_class", "--sets-by-class")] = False,
    applicability: Annotated[bool, _option("applicability", "--applicability")] = False,
    layer: Annotated[list[str] | None, _option("layers")] = None,
    allow_missing: Annotated[bool, _option("allow_missing", "--allow-missing")] = False,
    allow: Annotated[list[str] | None, _option("allow", "--allow")] = None,
    mean_for: Annotated[list[str] | None, _option("mean_for")] = None,
    picture: Annotated[bool, typer.Option("--picture", help="Also write a picture (.png) of each map.")] = False,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Also write polygons (GeoPackage) with their class and hectares.")
    ] = False,
    minimum_area: Annotated[
        float | None,
        typer.Option(
            help="Merge polygons below this into the largest beside them: square metres on the ellipsoid (square units "
            "of the map where it has no CRS)."
        ),
    ] = None,
    stac: Annotated[
        bool, typer.Option("--stac", help="Also write a STAC item (.stac.json) with place, classes, files and model.")
    ] = False,
    taken: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="When the scene was taken, for --stac; by default when it is mapped."),
    ] = None,
    memory: Annotated[str, _option("memory")] = "2GiB",
    block: Annotated[int | None, _option("block")] = None,
    batch: Annotated[int | None, _option("batch")] = None,
    precision: Annotated[str, _option("precision")] = "float32",
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the blocks of an unfinished run instead of going on from them.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Map by this many processes of this machine.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Map by the workers of this dask scheduler, e.g. tcp://host:8786.")
    ] = None,
    scheduler_file: Annotated[
        Path | None, typer.Option(help="The same, by the file that `dask scheduler --scheduler-file` writes.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print blocks, memory, disk and time, by one timed block; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON, for machines.")] = False,
    overwrite: Overwrite = False,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going/--stop", help="Of several tiles, map the others where one cannot be mapped; or stop there."
        ),
    ] = True,
    own: OwnModel = None,
    quiet: Quiet = False,
) -> None:
    """Map a scene: a cloud-optimised GeoTIFF with colours, class names and a QGIS style, 255 where there is no data.

    Of several tiles, mosaic.vrt shows all maps as one, and index.gpkg shows where they are.

    Interrupted in whatever way, the same command goes on where it stopped; after its end, it maps again. Exit code 3:
    some blocks or tiles cannot be mapped, and the others are.
    """
    options = map_options(
        {
            "probabilities": probabilities, "confidence": confidence, "entropy": entropy, "layers": layer or (),
            "sets": sets, "sets_method": sets_method, "sets_by_class": sets_by_class,
            "applicability": applicability,
            "block": block, "memory": memory, "batch": batch, "precision": precision, "mean_for": mean_for or (),
            "allow_missing": allow_missing, "allow": allow or (),
        }
    )  # fmt: skip
    if sum(option is not None for option in (workers, scheduler, scheduler_file)) > 1:
        raise SettingsError(
            "several of --workers, --scheduler and --scheduler-file are given", "one at most", "choose one"
        )
    from landfuse.mapping.destination import Destination, inputs_of
    from landfuse.scenes.scene_file import read_scene_file

    destination = Destination(output, tile or ())
    if destination.local.is_file() and destination.local.suffix.lower() not in _MAPS:
        expected = "a GeoTIFF (.tif), or a folder of several"
        raise OutputError(f"{output} is a file, and no map", expected, f"-o {Path(output).with_suffix('.tif')}")
    read_scene_file(scene)  # what is refused at once needs no torch
    from landfuse.accuracy.conformal import ClassSets
    from landfuse.bundles.model_files import bundle_folder, onnx_file
    from landfuse.bundles.predictor import ReadyModel
    from landfuse.bundles.table_bundle import load_model
    from landfuse.mapping.map_layers import layers_of
    from landfuse.mapping.part_folder import PartFolder
    from landfuse.mapping.predict import predict as run_mapping
    from landfuse.scenes.land_cover_map import beside

    model = ReadyModel(load_model(bundle, model=own_model(own) if own is not None else None), options)
    known = model.description
    tiles, chosen, failed = _tiles(scene, tile or [], known, options)
    as_file = destination.local.suffix.lower() in _MAPS
    if as_file and len(chosen) + len(failed) > 1:
        raise OutputError(
            f"{len(chosen) + len(failed)} tiles are to be mapped into the one file {output}",
            "a folder, which gets a map per tile",
            "name a folder by -o, or one tile by --tile",
        )
    place, predictor, layers = destination.local, model.predictor(options), layers_of(options, known)
    if sets is not None:
        ClassSets.of(known).warn(sets, sets_by_class)
    events = Events(as_json, quiet, destination.final)
    keep_going = keep_going and len(chosen) + len(failed) > 1
    if failed and not (chosen and keep_going):
        raise several(list({str(fault): fault for fault in failed.values()}.values()))
    for name, fault in failed.items():
        events.fault(name, fault)
    extras = MapExtras(picture, polygons, minimum_area, stac, taken, events)
    extras.check(chosen)
    maps = {place if as_file else place / f"{one.name}.tif": one for one in chosen}
    if dry_run:
        for path, one in maps.items():
            _print_plan(model, one, path, options, workers or 1, len(maps), events)
        return
    every = maps if as_file else {place / f"{one.name}.tif": one for one in tiles}
    sign = predictor.identity["the model"]
    outputs = [(beside(path, layer.name), sign) for path in maps for layer in layers]
    outputs += [one for path in maps for one in extras.outputs(path, layers)]
    outputs += [] if as_file or len(tiles) < 2 else extras.overview(place, every)
    others = [path for path in every if path not in maps]  # of earlier commands
    destination.check(outputs, inputs_of(chosen[0]), overwrite, others)
    log_replaced(path for path in maps if not PartFolder(path).path.exists())  # with parts it goes on
    with destination.delivery():
        keep = len(chosen) > 1 or extras.takes_time
        with _runner(model, maps.values(), options, bundle, workers, scheduler, scheduler_file) as (run, at_once):
            run = replace(run, workers=-(-run.workers // len(maps)))  # workers of one tile
            job = partial(run_mapping, model, restart=restart, run=run, keep=keep, **dict(options))
            size = partial(_size, known.spec.name, predictor.nbytes, not (workers or scheduler or scheduler_file))
            incomplete, wrong = _map_tiles(job, maps, at_once, keep_going, events, size)
        failed |= wrong
        maps = {path: one for path, one in maps.items() if one.name not in failed}
        if not maps:
            raise several(list({str(fault): fault for fault in failed.values()}.values()))
        for path, one in maps.items():
            events.wrote("map", path, tile=one.name, complete=one.name not in incomplete)
            if picture:
                events.wrote("picture", _picture(path, one, known.legend), tile=one.name)
        bundle = onnx_file(bundle) or bundle_folder(bundle)
        if stac and destination.address is not None:
            # Items name the bundle's place relative to theirs: it has to go where they go.
            home = place.with_name(f"{place.stem}_bundle") if as_file else place / "bundle"
            if bundle.is_dir():
                bundle = shutil.copytree(bundle, home, dirs_exist_ok=True)
            else:
                model.save(home)
                bundle = home / "model.onnx"
        faults = extras.write(maps, predictor, bundle, layers, incomplete)
        if not as_file and len(tiles) > 1:
            present = destination.present(every.keys())
            there = {path: one for path, one in every.items() if path in present or path.exists()}
            extras.write_overview(there, place, known.legend)
        lacking = [*incomplete.values(), *(UnmappedError(name, fault) for name, fault in failed.items())]
        if lacking:
            raise several(lacking)
        if keep:
            for path in maps:  # until here they say which tiles are finished
                PartFolder(path).remove()
    if destination.address is None:
        if known.cross_validation is None and any(one.read_labels is not None for one in chosen):
            hint("landfuse", "evaluate", output, scene)
        else:
            hint("landfuse", "sample", output, "-o", "sample.gpkg")
    else:
        events.print("put", f"put at: {destination.address}", address=destination.address)
    if faults:
        raise several(faults)


def _tiles(
    path: Path, names: list[str], known: Description, options: MapOptions
) -> tuple[list[Scene], list[Scene], dict[str, LandfuseError]]:
    """All tiles of a scene file whose place is known; those that are mapped; and why others of these cannot be."""
    from landfuse.scenes.scene_file import read_scene_file

    file = read_scene_file(path)
    unknown = sorted(set(names) - set(file.tiles))
    if unknown:
        raise SceneError(f"the scene has no tile {', '.join(unknown)}", f"some of {', '.join(file.tiles[:9])}", "")
    tiles: list[Scene] = []
    chosen: list[Scene] = []
    failed: dict[str, LandfuseError] = {}
    notes: dict[str, None] = {}
    for name in file.tiles:
        scene, faults = file.open_tile(name, list(known.modalities))
        if scene is not None:
            tiles.append(scene)
        if names and name not in names:
            continue
        try:
            if faults or scene is None:
                raise several(faults)
            checked, more = known.check(scene, options)
            chosen.append(checked)
            notes |= dict.fromkeys(more)
        except LandfuseError as error:
            failed[name] = error
    for note in notes:
        log.warning("%s", note)
    return tiles, chosen, failed


def _map_tiles(
    job: Callable[..., Path],
    maps: Mapping[Path, Scene],
    at_once: int,
    keep_going: bool,
    events: Events,
    size: Callable[[], str],
) -> tuple[dict[str, IncompleteError], dict[str, LandfuseError]]:
    """Maps tiles, several at once where they are small or on a cluster; returns which lack blocks, and which fail."""
    incomplete, failed = dict[str, IncompleteError](), dict[str, LandfuseError]()
    stop = threading.Event()

    with events.mapping(sum(one.grid.window.pixels for one in maps.values()), size) as update:

        def map_tile(path: Path, one: Scene) -> None:
            def progress(done: int, total: int) -> None:
                if stop.is_set():
                    raise KeyboardInterrupt
                update(one.name, done)

            try:
                job(one, path, progress=progress)
            except IncompleteError as error:
                incomplete[one.name] = error
                for where, fault in error.faults.items():
                    events.print("fault", "", tile=one.name, block=where, found=fault.found)
            except (OutputError, ClusterError, SettingsError):  # the next tile would fail as well
                raise
            except LandfuseError as error:
                if not keep_going:
                    raise
                failed[one.name] = error
                events.fault(one.name, error)
            update(one.name, one.grid.window.pixels)

        if at_once == 1:
            for path, one in maps.items():
                map_tile(path, one)
        else:
            with ThreadPoolExecutor(at_once) as pool:
                try:
                    for done in as_completed([pool.submit(map_tile, *entry) for entry in maps.items()]):
                        done.result()
                except BaseException:
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return dict(sorted(incomplete.items())), dict(sorted(failed.items()))


def _size(name: str, weights: int, here: bool) -> str:
    """How large a model is, and the memory that mapping takes where this process does it."""
    from landfuse.mapping.memory import in_bytes
    from landfuse.training.run import memory_words

    return f"{name}: {in_bytes(weights)} of weights" + (f", {memory_words()}" if here else "")


@contextmanager
def _runner(
    model: Model, tiles: Collection[Scene], options: MapOptions,
    bundle: Path, workers: int | None, scheduler: str | None, scheduler_file: Path | None,
) -> Iterator[tuple[Runner, int]]:  # fmt: skip
    """Yields what maps blocks, and how many tiles it maps at once."""
    if workers is None and scheduler is None and scheduler_file is None:
        from landfuse.mapping.memory import tiles_at_once
        from landfuse.mapping.predict import Runner

        yield Runner(turn=threading.Lock()), tiles_at_once(model, tiles, options)
        return
    from landfuse.mapping.cluster import cluster_runner

    with cluster_runner(scheduler, scheduler_file=scheduler_file, workers=workers, bundle=bundle) as run:
        yield run, 8


def _print_plan(
    model: Model, scene: Scene, path: Path, options: MapOptions, workers: int, tiles: int, events: Events
) -> None:
    from landfuse.mapping.memory import in_bytes
    from landfuse.mapping.predict import plan_map

    plan = plan_map(model, scene, path, workers=-(-workers // tiles), **dict(options))
    place = events.where(path)
    lines = [
        f"{scene.name} -> {place}",
        f"  size:    {plan.height:,} x {plan.width:,} px",
        f"  blocks:  {plan.blocks:,} of {plan.block:,} px; halos add {plan.halo_fraction:.0%} to what is read; "
        f"{plan.windows:,} windows" + f", {plan.recomputed_fraction:.0%} of them twice" * (workers > 1),
        f"  memory:  at most {in_bytes(plan.memory)} per process",
        f"  disk:    about {in_bytes(plan.expected_disk)}, at most {in_bytes(plan.disk)}",
    ]
    if plan.seconds is None:
        lines.append("  time:    not known: there is no data in the scene's middle")
    else:
        duration = timedelta(seconds=round(plan.seconds * (1 + plan.recomputed_fraction) / workers))
        lines.append(f"  time:    about {duration} by {workers} process{'es' * (workers > 1)}, by one timed block")
    events.print("plan", "\n".join(lines), tile=scene.name, path=place, **asdict(plan))


def _picture(path: Path, scene: Scene, legend: Legend) -> Path:
    from landfuse.figures.figures import mapped_figure, save
    from landfuse.scenes.land_cover_map import open_map

    classes = open_map(path, replace(scene, legend=legend)).classes  # a scene that is only mapped may have no legend
    return save(mapped_figure(scene, classes, legend), path.with_suffix(".png"))
