"""Mapping: a classifier and a scene become georeferenced files, block by block, from where it stopped the last time.

Every block is written into a file of its own (`parts`); at the end these are joined into cloud-optimised GeoTIFFs
(`products`). Reading the next block, computing this one and writing the last overlap (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from landfuse.bundles.bundle import Bundle
from landfuse.errors import IncompleteError, LandfuseError, SceneError, SettingsError
from landfuse.files import unwritable
from landfuse.mapping.engine import BlockMap, Engine, Precision, batch_size, map_array, map_blocks
from landfuse.mapping.map_layers import (
    PROBABILITY_STEPS,
    Layer,
    Wanted,
    assemble,
    confidence_of,
    entropy_of,
    write_part,
)
from landfuse.mapping.memory import MEMORY, Plan, block_side, plan
from landfuse.mapping.part_folder import PartFolder, fingerprint
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.land_cover_map import beside
from landfuse.scenes.scene import Scene

__all__ = [
    "PROBABILITY_STEPS", "BlockMap", "Job", "Progress", "Runner", "batch_size", "confidence_of", "entropy_of",
    "map_array", "map_blocks", "map_parts", "plan_map", "predict",
]  # fmt: skip

Progress = Callable[[int, int], None]
"""Told (pixels done, pixels in all)."""


@dataclass(frozen=True)
class Job:
    """What is mapped, and where its parts go.

    Args:
        engine: classifier and scene, made ready.
        wanted: what the parts hold beside the classes.
        folder: of the parts.
        made_by: hash of the classifier.
    """

    engine: Engine
    wanted: Wanted
    folder: PartFolder
    made_by: str

    @property
    def layers(self) -> list[Layer]:
        """The files of the map."""
        return self.wanted.layers(self.engine.classifier.legend)

    def write(self, part: BlockMap) -> None:
        """Writes the file of a block."""
        scene, legend = self.engine.scene, self.engine.classifier.legend
        write_part(self.folder.part(part.window), part, scene.grid, legend, self.layers)


Runner = Callable[[Job, Sequence[Window], Callable[[int], None]], dict[Window, SceneError]]
"""Writes the parts of some blocks, and tells (pixels more); gives the blocks that cannot be read, and why."""


def map_parts(job: Job, windows: Sequence[Window], tell: Callable[[int], None]) -> dict[Window, SceneError]:
    """Maps blocks in this process; a `Runner`."""
    faults: dict[Window, SceneError] = {}
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        for part in job.engine.blocks(windows, on_fault=faults.__setitem__, tell=tell):
            if writing is not None:
                writing.result()
            writing = writer.submit(job.write, part)
            del part  # else its logits are held while the next block's are computed
        if writing is not None:
            writing.result()
    return faults


def predict(
    classifier: Bundle,
    scene: Scene,
    path: str | Path,
    *,
    probabilities: bool = False,
    confidence: bool = False,
    entropy: bool = False,
    layers: Sequence[str] = (),
    block: int | None = None,
    memory: int = MEMORY,
    batch: int | None = None,
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    restart: bool = False,
    keep: bool = False,
    run: Runner = map_parts,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Maps a scene into a GeoTIFF of the legend's codes, with its colours and names; 255 where there is no data.

    The files are cloud-optimised and appear when they are whole. Until then finished blocks lie in `map.tif.parts/`;
    the same call goes on from them, and ends in the same bytes.

    Args:
        classifier: what maps.
        scene: what is mapped.
        path: of the map.
        probabilities: also write `..._probabilities.tif`, a band per class, in steps of 1/250.
        confidence: also write `..._confidence.tif`, the margin of the best class over the second, in steps of 1/250.
        entropy: also write `..._entropy.tif`, the entropy of the probabilities, 0 (sure) to 1 (any class alike), in
            steps of 1/250.
        layers: also write these of what the model tells beside classes, `..._NAME.tif`, in steps of 1/250.
        block: side of the blocks, px; by default as large as `memory` allows, at most 2,048.
        memory: bytes that the process may take, where `block` is not given.
        batch: windows per forward pass.
        precision: what the network computes in.
        device: where to compute.
        restart: delete the blocks of an earlier, unfinished call instead of going on from them.
        keep: leave an empty part folder, by which the same call knows that the map is finished.
        run: who maps the blocks; by default this process.
        progress: told (pixels done, pixels in all).

    Returns:
        The map's path.

    Raises:
        FaultsError: if the scene does not fit the classifier.
        OutputError: if a file cannot be written, the part folder holds blocks of another map, or another process is
            writing this map.
        SettingsError: if an option does not fit.
        IncompleteError: if some blocks cannot be read; the map is there without them.
    """
    path = Path(path)
    folder = PartFolder(path)
    wanted = Wanted(probabilities, confidence, entropy, tuple(layers))
    engine = Engine(classifier, scene, batch=batch, device=device, precision=precision, layers=wanted.model)
    files = wanted.layers(classifier.legend)
    with folder.held():
        if restart:
            folder.clear()
        settings = fingerprint(classifier, scene)
        side = _block(engine, files, folder, block, memory)
        settings |= {
            "the block": f"{side} px",
            "the batch": f"{engine.batch} windows",
            "the precision": precision,
            "the device": engine.device.type,
            "the layers": ", ".join(layer.name or "classes" for layer in files),
        }
        folder.claim(settings)
        if not (folder.finished and all(beside(path, layer.name).exists() for layer in files)):
            try:
                _map(Job(engine, wanted, folder, settings["the model"]), path, side, run, progress)
            except BaseException:
                folder.drop_if_empty()
                raise
            folder.finish()
        if not keep:
            folder.clear()
    return path


def plan_map(
    classifier: Bundle,
    scene: Scene,
    path: str | Path,
    *,
    probabilities: bool = False,
    confidence: bool = False,
    entropy: bool = False,
    layers: Sequence[str] = (),
    block: int | None = None,
    memory: int = MEMORY,
    batch: int | None = None,
    precision: Precision = "float32",
    device: torch.device | str | None = None,
) -> Plan:
    """Says what `predict` will take, and writes nothing; options and errors as in `predict`."""
    wanted = Wanted(probabilities, confidence, entropy, tuple(layers))
    engine = Engine(classifier, scene, batch=batch, device=device, precision=precision, layers=wanted.model)
    files = wanted.layers(classifier.legend)
    return plan(engine, _block(engine, files, PartFolder(Path(path)), block, memory), files)


def _block(engine: Engine, layers: Sequence[Layer], folder: PartFolder, block: int | None, memory: int) -> int:
    """The side of the blocks: as asked for, else as in the blocks that are there, else as memory allows."""
    if block is not None:
        if block < 1:
            raise SettingsError(f"the block is {block} px", "at least 1", "set another")
        return block
    noted = folder.noted() or {}
    told = noted.get("the block", "").split(" ")[0]
    return int(told) if told.isdigit() else block_side(engine, memory, layers)


def _map(job: Job, path: Path, side: int, run: Runner, progress: Progress) -> None:
    """Writes the missing parts and joins all of them.

    Raises:
        IncompleteError: if some blocks cannot be read.
    """
    grid, folder = job.engine.scene.grid, job.folder
    every = list(blocks(grid.height, grid.width, side))
    todo = [window for window in every if not folder.part(window).exists()]
    done, total = sum(window.pixels for window in every) - sum(window.pixels for window in todo), grid.window.pixels

    def tell(pixels: int) -> None:
        nonlocal done
        done += pixels
        progress(done, total)

    tell(0)
    faults = run(job, todo, tell) if todo else {}
    if len(faults) == len(every):
        raise next(iter(faults.values()))
    tags = {"landfuse_model": job.engine.classifier.spec.name, "landfuse_bundle": job.made_by}
    if faults:
        tags["landfuse_incomplete"] = "; ".join(f"{w.row} {w.col} {w.height} {w.width}" for w in faults)
    parts = {window: folder.part(window) for window in every if window not in faults}
    try:
        assemble(path, folder.scratch, grid, job.engine.classifier.legend, job.layers, parts, tags)
    except LandfuseError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None
    if faults:
        raise IncompleteError(path, {_named(window): error for window, error in faults.items()}, len(every))


def _named(window: Window) -> str:
    return f"row {window.row}, column {window.col} ({window.height} x {window.width} px)"
