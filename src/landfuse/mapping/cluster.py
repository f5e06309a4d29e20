"""Mapping by several processes or machines: blocks are tasks of dask.distributed.

Workers open bundle and scene themselves, once each, so that every machine has to see the bundle and the rasters under
the same paths. They write their part files into the part folder; where they do not see it, they send them to the
client, which does. A worker that dies loses the blocks that it had begun; the scheduler assigns them to others.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from landfuse.bundles.predictor import Model
from landfuse.errors import ClusterError, LandfuseError, MissingExtraError, SceneError
from landfuse.files import whole_file
from landfuse.mapping.engine import Engine, PixelProgress
from landfuse.mapping.part_folder import PartFolder
from landfuse.mapping.predict import Job, Runner
from landfuse.mapping.settings import MapOptions
from landfuse.models import registered
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene

_ROUND_TRIP = 2000
"""Blocks that the scheduler has at once; more would only wait in its memory."""

_KEPT = 16
"""Jobs that a worker keeps open; the client maps half as many tiles at once."""


@dataclass(frozen=True)
class _Order:
    """A job as it is sent to workers."""

    output: Path
    notes: dict[str, str] | None
    bundle: Path
    digest: str
    scene: Scene
    options: MapOptions
    landfuse: str
    kind: type | None
    """The model's class, where workers cannot find it by its name."""


_jobs: OrderedDict[bytes, tuple[Job, bool]] = OrderedDict()
_models: dict[str, Model] = {}
_lock = threading.Lock()


def _job(order: bytes) -> tuple[Job, bool]:
    """The job of an order, opened once in each worker, and whether the worker sees its part folder."""
    with _lock:
        if order not in _jobs:
            known: _Order = pickle.loads(order)
            if known.landfuse != version("landfuse"):
                raise ClusterError(
                    f"a worker has landfuse {version('landfuse')}, the client {known.landfuse}",
                    "the same version everywhere",
                    "install the same on all machines",
                )
            engine = Engine(_model(known), known.scene, known.options)
            folder = PartFolder(known.output)
            sees = folder.path.is_dir() and folder.noted() == known.notes  # another map's may have the same name
            _jobs[order] = Job(engine, folder), sees
            while len(_jobs) > _KEPT:
                _jobs.popitem(last=False)
        _jobs.move_to_end(order)
        return _jobs[order]


def _model(order: _Order) -> Model:
    from landfuse.bundles.bundle_files import load_bundle  # the worker's own; mapping itself needs no torch

    if order.digest not in _models:
        bundle = load_bundle(order.bundle, model=order.kind)
        if bundle.digest != order.digest:
            raise ClusterError(
                f"a worker finds another model in {order.bundle} than the client",
                "the same bundle",
                "start the workers again",
            )
        _models.clear()
        _models[order.digest] = bundle
    return _models[order.digest]


def _map_block(order: bytes, window: Window) -> tuple[str, str, str] | bytes | None:
    """Runs on a worker: writes a part, or returns its bytes; or the error's words if the block cannot be read."""
    job, sees = _job(order)
    owned = job.engine.alone(window)
    try:
        prepared = job.engine.read(owned)
    except SceneError as error:
        return error.found, error.expected, error.do
    part = job.engine.compute(prepared, owned)
    if sees:
        job.write(part)
        return None
    with TemporaryDirectory(prefix="landfuse-") as local:
        away = replace(job, folder=PartFolder(Path(local) / "map.tif"))
        away.write(part)
        return away.folder.part(window).read_bytes()


@contextmanager
def cluster_runner(
    scheduler: str | None = None,
    *,
    scheduler_file: str | Path | None = None,
    workers: int | None = None,
    bundle: str | Path | None = None,
) -> Iterator[Runner]:
    """Yields a `Runner` that maps blocks on a cluster, for `predict(..., run=...)`.

    Args:
        scheduler: its address, e.g. `tcp://host:8786`.
        scheduler_file: the file that `dask scheduler --scheduler-file` writes, instead of the address.
        workers: start this many processes on this machine instead.
        bundle: its folder, for workers too; by default it is written into each part folder.

    Raises:
        MissingExtraError: if `distributed` is not installed.
        ClusterError: if the scheduler cannot be reached.
    """
    distributed = _distributed()
    with _client(distributed, scheduler, scheduler_file, workers) as client:

        def run(job: Job, windows: Sequence[Window], progress: PixelProgress) -> dict[Window, SceneError]:
            try:
                return _run(distributed, client, job, windows, progress, bundle)
            except LandfuseError:
                raise
            except distributed.scheduler.KilledWorker as error:
                raise ClusterError(
                    f"several workers died of one block: {str(error)[:300]}",
                    "blocks that fit into a worker's memory",
                    "give the workers more memory, or start again by --restart with a smaller --memory",
                ) from None
            except (OSError, distributed.CancelledError, TimeoutError) as error:
                raise _lost(f"the cluster was lost: {error}") from None
            except (ImportError, pickle.UnpicklingError, AttributeError) as error:
                raise ClusterError(
                    f"a worker cannot run landfuse: {error}",
                    "landfuse on every machine, and the package of a model of your own",
                    "install them there",
                ) from None

        yield run


def _lost(found: str) -> ClusterError:
    return ClusterError(
        found, "a scheduler that answers, and workers", "check its address; the same command goes on from what is done"
    )


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise MissingExtraError(
            "dask.distributed is not installed", "the extra `cluster`", "pip install 'landfuse[cluster]'"
        ) from None
    return distributed


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """Starts worker processes of one thread each on this machine.

    Where the system can, they are forks of one process that has imported the libraries: that takes seconds and some
    600 MB for all of them instead of for each.
    """
    distributed = _distributed()
    import dask

    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        method = "forkserver"
        multiprocessing.set_forkserver_preload([__name__, "distributed"])
        forkserver.ensure_running()  # before dask names what to import
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": method}),
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster,
    ):
        yield cluster


@contextmanager
def _client(
    distributed: Any, scheduler: str | None, scheduler_file: str | Path | None, workers: int | None
) -> Iterator[Any]:
    with ExitStack() as stack:
        if scheduler is None and scheduler_file is None:
            scheduler = stack.enter_context(local_cluster(workers or 1)).scheduler_address
        try:
            if scheduler_file is not None and not Path(scheduler_file).is_file():
                raise FileNotFoundError(f"there is no file {scheduler_file}")
            client = distributed.Client(
                scheduler, scheduler_file=scheduler_file and str(scheduler_file), timeout=10, set_as_default=False
            )
        except (OSError, ValueError, TimeoutError, AssertionError) as error:  # the last of a file without an address
            where = scheduler or scheduler_file
            raise _lost(f"the scheduler {where} cannot be reached: {str(error)[:200]}") from None
        yield stack.enter_context(client)


def _order(job: Job, bundle: str | Path | None) -> _Order:
    engine = job.engine
    spec = engine.model.description.spec
    output = job.folder.output.resolve()
    place = PartFolder(output).path / "bundle" if bundle is None else Path(bundle).resolve()
    if bundle is None:
        engine.model.save(place)
    return _Order(
        output,
        job.folder.noted(),
        place,
        engine.predictor.identity["the model"],
        replace(engine.source, read_labels=None),  # labels may hold much, and mapping needs none
        engine.options.model_copy(update={"batch": engine.batch}),
        version("landfuse"),
        spec.kind or registered(spec.name),
    )


def _run(
    distributed: Any,
    client: Any,
    job: Job,
    windows: Sequence[Window],
    progress: PixelProgress,
    bundle: str | Path | None,
) -> dict[Window, SceneError]:
    # A task, not scattered data: if the worker that holds it dies, it is made again.
    shared = client.submit(bytes, pickle.dumps(_order(job, bundle)), pure=False)
    faults: dict[Window, SceneError] = {}
    waiting = iter(windows)
    futures: dict[Any, Window] = {}

    def submit(count: int) -> list[Any]:
        begun = {client.submit(_map_block, shared, window, pure=False): window for window in islice(waiting, count)}
        futures.update(begun)
        return list(begun)

    done = distributed.as_completed(submit(_ROUND_TRIP), loop=client.loop)
    try:
        for future in done:
            result = future.result()
            window = futures.pop(future)
            if isinstance(result, bytes):
                with whole_file(job.folder.part(window)) as partial:
                    partial.write_bytes(result)
            elif result is not None:
                faults[window] = SceneError(*result)
            progress(window.pixels)
            done.update(submit(1))
    finally:
        client.cancel([*futures, shared], force=True)
    return dict(sorted(faults.items()))
