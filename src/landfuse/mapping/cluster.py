"""Mapping by several processes of this machine, or by those of a dask scheduler: blocks are tasks.

Workers open bundle and scene themselves, once each, so that every machine has to see the bundle and the rasters under
the same paths. They write their part files into the part folder; where they do not see it, they send them to the
client, which does. The blocks that a worker had begun when it died are begun again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from landfuse.bundles.predictor import Model
from landfuse.errors import ClusterError, LandfuseError, SceneError
from landfuse.extras import missing_extra
from landfuse.files import whole_file
from landfuse.mapping.engine import Engine, PixelProgress
from landfuse.mapping.part_folder import PartFolder
from landfuse.mapping.predict import Job, Runner
from landfuse.mapping.settings import MapOptions
from landfuse.models import registered
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import bounded_processes

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
    from landfuse.bundles.table_bundle import load_model  # the worker's own; mapping itself needs no torch

    if order.digest not in _models:
        bundle = load_model(order.bundle, model=order.kind)
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


@dataclass(frozen=True)
class _Pool:
    """What maps blocks.

    Args:
        submit: calls a function with arguments, elsewhere.
        share: makes the first argument of many calls.
        most: blocks that it has at once; more would only wait in its memory.
        died: what a call raises if its worker died, or one of the processes beside it.
        repeats: how often such a call is repeated.
    """

    submit: Callable[..., Future[Any]]
    share: Callable[[bytes], Any]
    most: int
    died: type[Exception]
    repeats: int


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
        MissingExtraError: if `distributed` is not installed, and a scheduler is named.
        ClusterError: if the scheduler cannot be reached.
    """
    remote = scheduler is not None or scheduler_file is not None
    with (
        _scheduler(scheduler, scheduler_file)
        if remote
        else _processes(bounded_processes(workers or 1, "--workers")) as pool
    ):

        def run(job: Job, windows: Sequence[Window], progress: PixelProgress) -> dict[Window, SceneError]:
            try:
                return _run(pool, job, windows, progress, bundle)
            except LandfuseError:
                raise
            except pool.died as error:
                raise ClusterError(
                    f"several workers died of one block: {str(error)[:300]}",
                    "blocks that fit into a worker's memory",
                    "give the workers more memory, or start again by --restart with a smaller --memory",
                ) from None
            except (OSError, CancelledError, TimeoutError) as error:
                raise _lost(f"the workers were lost: {error or type(error).__name__}") from None
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


@contextmanager
def _processes(workers: int) -> Iterator[_Pool]:
    """Starts worker processes on this machine; they are reached by pipes, and no port is opened.

    Where the system can, they are forks of one process that has imported the libraries.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context, lock = multiprocessing.get_context(method), threading.Lock()
    context.set_forkserver_preload([__name__, "landfuse.bundles.bundle_files"])
    reader, writer = context.Pipe(duplex=False)

    def start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(reader,))

    pool = start()

    def submit(*call: Any) -> Future[Any]:
        nonlocal pool
        with lock:
            for _ in range(100):
                # The process that they are forked from may have died, and be missed a moment later only.
                with suppress(BrokenProcessPool, ConnectionError):
                    return pool.submit(*call)
                pool.shutdown(wait=False, cancel_futures=True)
                pool = start()
                time.sleep(0.1)
            return pool.submit(*call)

    try:
        yield _Pool(submit, lambda order: order, 2 * workers, BrokenProcessPool, 3)
    finally:
        writer.close()  # ends the processes, whatever they do
        pool.shutdown(cancel_futures=True)


def _begin(client: Connection) -> None:
    """Makes a worker of a process: ctrl-C is the client's, and the worker ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # for ONNX Runtime
        with suppress(ImportError):  # without torch it is a forest, by numpy, or an ONNX file
            import torch

            torch.set_num_threads(1)

    def watch() -> None:
        with suppress(EOFError, OSError):
            client.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _scheduler(address: str | None, file: str | Path | None) -> Iterator[_Pool]:
    try:
        import distributed as untyped
    except ImportError as error:
        raise missing_extra(error) from None
    distributed: Any = untyped
    # What dask logs of lost connections and workers, with tracebacks, a ClusterError says in a sentence.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
        client = distributed.Client(address, scheduler_file=file and str(file), timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError, AssertionError) as error:  # the last of a file without an address
        raise _lost(f"the scheduler {address or file} cannot be reached: {str(error)[:200]}") from None
    with client:
        # A task, not scattered data: if the worker that holds it dies, it is made again.
        yield _Pool(
            client.get_executor(pure=False).submit,
            lambda order: client.submit(bytes, order, pure=False),
            2000,
            distributed.scheduler.KilledWorker,
            0,  # the scheduler does that
        )


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
    pool: _Pool, job: Job, windows: Sequence[Window], progress: PixelProgress, bundle: str | Path | None
) -> dict[Window, SceneError]:
    order = pool.share(pickle.dumps(_order(job, bundle)))
    waiting, faults = deque(windows), dict[Window, SceneError]()
    running: dict[Future[Any], Window] = {}
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    deaths: Counter[Window] = Counter()
    try:
        while waiting or running:
            while waiting and len(running) < pool.most:
                window = waiting.popleft()
                future = pool.submit(_map_block, order, window)
                running[future] = window
                future.add_done_callback(done.put)
            future = done.get()
            window = running.pop(future)
            try:
                result = future.result()
            except (pool.died, CancelledError):
                deaths[window] += 1
                if deaths[window] > pool.repeats:
                    raise
                waiting.append(window)
                continue
            if isinstance(result, bytes):
                with whole_file(job.folder.part(window)) as partial:
                    partial.write_bytes(result)
            elif result is not None:
                faults[window] = SceneError(*result)
            progress(window.pixels)
    finally:
        for future in running:
            future.cancel()
    return dict(sorted(faults.items()))
