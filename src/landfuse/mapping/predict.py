"""Mapping: a model and a scene become georeferenced files, block by block, from where an earlier call stopped.

Every block is written into a file of its own (`part_folder`); at the end these are joined into cloud-optimised GeoTIFFs
(`map_layers`). Reading the next block, computing this one and writing the last overlap (`engine`). The one block of a
small map goes straight into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from landfuse.accuracy.conformal import ClassSets
from landfuse.bundles.predictor import Model
from landfuse.errors import IncompleteError, LandfuseError, OutputError, SceneError
from landfuse.files import remove_leftovers, unwritable
from landfuse.mapping.engine import BlockMap, Engine, PixelProgress
from landfuse.mapping.map_layers import Layer, assemble, layers_of, write_part
from landfuse.mapping.memory import Plan, block_side, is_small, plan
from landfuse.mapping.part_folder import PartFolder, fingerprint, reading
from landfuse.mapping.settings import map_options
from landfuse.rasters.geotiff import readers_closed
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.land_cover_map import beside
from landfuse.scenes.scene import Scene

Progress = Callable[[int, int], None]
"""Called with the pixels that are done and the pixels of the scene."""


@dataclass(frozen=True)
class Job:
    """What is mapped, and where its parts go."""

    engine: Engine
    folder: PartFolder

    @property
    def layers(self) -> list[Layer]:
        """The files of the map."""
        return layers_of(self.engine.options, self.engine.description)

    def write(self, part: BlockMap) -> None:
        """Writes the file of a block."""
        engine = self.engine
        path, seal = self.folder.part(part.window), partial(self.folder.seal, part)
        write_part(path, part, engine.scene.grid, engine.description.legend, self.layers, seal)


def map_parts(job: Job, windows: Iterable[Window], progress: PixelProgress) -> dict[Window, SceneError]:
    """Writes the parts of some blocks, in row order, and reports their pixels; returns what cannot be read, and why."""
    faults: dict[Window, SceneError] = {}
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        for part in job.engine.blocks(windows, on_fault=faults.__setitem__, progress=progress):
            if writing is not None:
                writing.result()
            writing = writer.submit(job.write, part)
            del part  # else its logits are held while the next block's are computed
        if writing is not None:
            writing.result()
    return faults


@dataclass(frozen=True)
class Runner:
    """What maps blocks: by default this process.

    Args:
        map: as `map_parts`.
        workers: how many blocks it maps at once; there are several for each.
        turn: held while the block of a small map is computed, where several are mapped at once.
    """

    map: Callable[[Job, Sequence[Window], PixelProgress], dict[Window, SceneError]] = map_parts
    workers: int = 1
    turn: AbstractContextManager[Any] = nullcontext()


def predict(
    model: Model,
    scene: Scene,
    path: str | Path,
    *,
    restart: bool = False,
    keep: bool = False,
    run: Runner = Runner(),
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> Path:
    """Maps a scene into a GeoTIFF of the legend's codes, with its colours and names; 255 where there is no data.

    The files are cloud-optimised and appear when they are whole. Until then finished blocks are in `map.tif.parts/`;
    the same call goes on from them, and ends in the same bytes.

    Args:
        model: what maps, e.g. a `Bundle`.
        scene: what is mapped.
        path: of the map.
        restart: delete the blocks of an earlier, unfinished call instead of going on from them.
        keep: leave an empty part folder, by which the same call knows that the map is finished.
        run: maps the blocks; by default this process.
        options: those of `MapOptions`, e.g. `confidence=True` or `memory="4GiB"`.

    Returns:
        The map's path.

    Raises:
        FaultsError: if the scene does not fit the model.
        OutputError: if a file cannot be written, the part folder holds blocks of another map, or another process is
            writing this map.
        SettingsError: if an option does not fit.
        IncompleteError: if some blocks cannot be read; the map is there without them.
        ChangedInputError: if the rasters changed after blocks were made from them.
    """
    path = Path(path)
    folder = PartFolder(path)
    engine = Engine(model, scene, map_options(options))
    engine.check_values()
    job = Job(engine, folder)
    with folder.held():
        remove_leftovers(path.parent)
        remove_leftovers(folder.path)
        if restart:
            folder.clear()
        side = _block(engine, folder, run.workers)
        settings = fingerprint(engine) | {
            "the block": f"{side} px",
            "the layers": ", ".join(layer.name or "classes" for layer in job.layers),
        }
        if engine.options.sets is not None:
            settings["the class sets"] = _sets_words(engine)
        folder.claim(settings)
        every = list(blocks(engine.scene.grid.height, engine.scene.grid.width, side))
        known = folder.finished if all(beside(path, layer.name).exists() for layer in job.layers) else None
        done = folder.readings(every) if known is None else known
        folder.check_inputs(engine, done.values())
        if known is None:
            try:
                folder.finish(_map(job, path, every, done, run, progress))
            except BaseException:
                folder.drop_if_empty()
                raise
        if not keep:
            folder.clear()
    return path


def plan_map(model: Model, scene: Scene, path: str | Path, *, workers: int = 1, **options: Any) -> Plan:
    """Estimates what `predict` will take by some workers, and writes nothing; options and errors as in `predict`."""
    engine = Engine(model, scene, map_options(options))
    engine.check_values()
    return plan(engine, _block(engine, PartFolder(Path(path)), workers), workers)


def _block(engine: Engine, folder: PartFolder, workers: int) -> int:
    """The side of the blocks: as asked for, else as in the blocks that are there, else as memory and workers need."""
    if engine.options.block is not None:
        return engine.options.block
    noted = (folder.noted() or {}).get("the block", "").split(" ")[0]
    return int(noted) if noted.isdigit() else block_side(engine, workers)


def _map(
    job: Job, path: Path, every: Sequence[Window], ready: Mapping[Window, str], run: Runner, progress: Progress
) -> dict[Window, str]:
    """Writes the missing parts and joins all of them; returns what was read for each.

    Raises:
        IncompleteError: if some blocks cannot be read.
        ChangedInputError: if the rasters changed meanwhile.
    """
    grid, folder = job.engine.scene.grid, job.folder
    todo = [window for window in every if window not in ready]
    total = grid.window.pixels
    done = total - sum(window.pixels for window in todo)

    def add(pixels: int) -> None:
        nonlocal done
        done += pixels
        progress(done, total)

    add(0)
    faults: dict[Window, SceneError] = {}
    parts: Mapping[Window, Path] | BlockMap
    if run.map is map_parts and len(todo) == len(every) == 1 and is_small(grid):
        owned = job.engine.alone(grid.window)
        with readers_closed():
            prepared = job.engine.read(owned)
        with run.turn:
            parts = job.engine.compute(prepared, owned, progress=add)
        readings = {grid.window: reading(parts)}
    else:
        faults = run.map(job, todo, add) if todo else {}
        if len(faults) == len(every):
            raise next(iter(faults.values()))
        parts = {window: folder.part(window) for window in every if window not in faults}
        readings = folder.readings(parts)
        if len(readings) < len(parts):
            raise OutputError(
                f"{folder.path} lost {len(parts) - len(readings)} blocks before they were joined",
                "a disk that keeps what is written",
                "give the same command again: it maps these blocks only",
            )
    folder.check_inputs(job.engine, readings.values())
    description = job.engine.description
    identity, options = job.engine.predictor.identity, job.engine.options
    tags = {
        "landfuse_model": description.spec.name,
        "landfuse_bundle": identity["the model"],
        "landfuse_batch": f"{job.engine.batch} windows in {options.precision} on {identity.get('the GPU', 'a CPU')}",
    }
    learnt = description.learnt_at(grid)
    if learnt is not None:
        tags["landfuse_roles"] = learnt
    if job.engine.options.sets is not None:
        tags["landfuse_sets"] = _sets_words(job.engine)
    if faults:
        tags["landfuse_incomplete"] = "; ".join(f"{w.row} {w.col} {w.height} {w.width}" for w in faults)
    try:
        assemble(path, folder.scratch, grid, description.legend, job.layers, parts, tags)
    except LandfuseError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None
    if faults:
        raise IncompleteError(path, {_named(window): error for window, error in faults.items()}, len(every))
    return readings


def _sets_words(engine: Engine) -> str:
    options = engine.options
    by = f"{options.sets_method}{' by class' if options.sets_by_class else ''}"
    return f"level {options.sets:g} by {by}, of {ClassSets.of(engine.description).words}"


def _named(window: Window) -> str:
    return f"row {window.row}, column {window.col} ({window.height} x {window.width} px)"
