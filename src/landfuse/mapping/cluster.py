"""Mapping by several processes of this machine, or by those of a dask scheduler.

A task is a strip: neighbouring blocks in row order, which share windows as in one process. A worker without a strip
gets half of what is left of another's, and what is left of a dead worker's strip is begun again. Workers open bundle
and scene themselves, once each, so that every machine has to see the bundle and the rasters under the same paths. They
write their part files into the part folder; where they do not see it, they send them to the client, which does.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from landfuse.bundles.predictor import Model
from landfuse.errors import ClusterError, LandfuseError, SceneError
from landfuse.extras import missing_extra
from landfuse.files import whole_file, write_text
from landfuse.mapping.engine import BlockMap, Engine, PixelProgress
from landfuse.mapping.part_folder import PartFolder
from landfuse.mapping.predict import Job, Runner, map_parts
from landfuse.mapping.settings import MapOptions
from landfuse.models import registered
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import bounded_processes

_KEPT = 16
"""Jobs that a worker keeps open; the client maps half as many tiles at once."""

_SENT = 64 * 2**20
"""Bytes of parts that a worker sends at once, before compression, but one part at least."""

_LOOK = 0.5
"""Seconds between two looks at which parts are there."""


@dataclass(frozen=True)
class _Order:
    """A job as it is sent to workers."""

    output: Path
    bundle: Path
    digest: str
    scene: Scene
    options: MapOptions
    landfuse: str
    kind: type | None
    """The model's class, where workers cannot find it by its name."""


@dataclass(frozen=True)
class _StripJob(Job):
    """A job of which only the blocks of one strip are written, and only while its file is there.

    The file is in the part folder, and holds how many blocks of the strip remain the worker's. The client removes it
    when it ends, so that no worker goes on into the part folder of a later command.
    """

    file: Path

    def write(self, part: BlockMap) -> None:
        if self.file.exists():
            super().write(part)

    def remaining(self, windows: Sequence[Window]) -> Iterator[Window]:
        """The blocks of the strip, as long as they are the worker's."""
        for number, window in enumerate(windows):
            try:
                if number >= int(self.file.read_text()):
                    return
            except FileNotFoundError:
                return
            yield window


@dataclass(frozen=True)
class _Mapped:
    """What a worker did of a strip.

    Args:
        windows: the blocks.
        faults: those that cannot be read, and the errors' words.
        parts: the files of the others, where it does not see the part folder.
        kind: of the worker, as `_check_kind` compares it.
    """

    windows: Sequence[Window]
    faults: dict[Window, tuple[str, str, str]]
    parts: dict[Window, bytes]
    kind: str


_jobs: OrderedDict[bytes, Job] = OrderedDict()
_models: dict[str, Model] = {}
_lock = threading.Lock()


def _job(order: bytes) -> Job:
    """The job of an order, opened once in each worker."""
    with _lock:
        if order not in _jobs:
            known: _Order = pickle.loads(order)
            if known.landfuse != version("landfuse"):
                raise ClusterError(
                    f"a worker has landfuse {version('landfuse')}, the client {known.landfuse}",
                    "the same version everywhere",
                    "install the same on all machines",
                )
            _jobs[order] = Job(Engine(_model(known), known.scene, known.options), PartFolder(known.output))
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


def _map_strip(order: bytes, name: str, windows: Sequence[Window]) -> _Mapped:
    """Runs on a worker: writes the parts of a strip, or returns those of its first blocks."""
    job = _job(order)
    strip = _StripJob(job.engine, job.folder, job.folder.scratch / name)
    parts: dict[Window, bytes] = {}
    identity = job.engine.predictor.identity
    kind = ", ".join(identity[name] for name in ("the version", "the device", "the GPU") if name in identity)
    if strip.file.exists():
        _check_kind(job.folder, kind)
        ready = job.folder.readings(windows)  # of a worker that died
        todo = (window for window in strip.remaining(windows) if window not in ready)
        faults = map_parts(strip, todo, lambda pixels: None)
        done = [window for window in windows if window in faults or job.folder.part(window).exists()]
    else:
        each = windows[0].pixels * sum(len(layer.bands) for layer in job.layers)
        done = list(windows[: max(1, _SENT // each)])
        with TemporaryDirectory(prefix="landfuse-") as local:
            away = replace(job, folder=PartFolder(Path(local) / "map.tif"))
            faults = map_parts(away, done, lambda pixels: None)
            parts = {window: away.folder.part(window).read_bytes() for window in done if window not in faults}
    words = {window: (error.found, error.expected, error.do) for window, error in faults.items()}
    return _Mapped(done, words, parts, kind)


def _check_kind(folder: PartFolder, kind: str) -> None:
    """Notes which versions and card compute the blocks of a map, or refuses a worker of others: it rounds otherwise."""
    note = folder.path / "workers"
    if not note.exists():
        write_text(note, kind)
    begun = note.read_text(encoding="utf-8")
    if begun != kind:
        raise ClusterError(
            f"a worker computes by {kind}, and blocks of this map were computed by {begun}",
            "workers of one kind of card with the same versions, whose blocks have the same bytes",
            "leave one kind out and give the command again; to keep the other one, start again by --restart",
        )


@dataclass(frozen=True)
class _Pool:
    """What maps blocks.

    Args:
        submit: calls a function with arguments, elsewhere.
        share: makes the first argument of many calls.
        workers: how many calls it answers at once, now.
        grows: whether it starts workers for calls that wait.
        died: what a call raises if its worker died, or one of the processes beside it.
        repeats: how often such a call is repeated.
        running: the calls that are not answered yet.
    """

    submit: Callable[..., Future[Any]]
    share: Callable[[bytes], Any]
    workers: Callable[[], int]
    grows: bool
    died: type[Exception]
    repeats: int
    running: set[Future[Any]] = field(default_factory=set)

    @property
    def idle(self) -> int:
        """How many of its workers have nothing to do."""
        return self.workers() - len(self.running)

    def begin(self, *call: Any) -> Future[Any]:
        """As `submit`, for `running`."""
        future = self.submit(*call)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future


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

        yield Runner(run, max(1, pool.workers()))


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
        yield _Pool(submit, lambda order: order, lambda: workers, False, BrokenProcessPool, 3)
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
            lambda: sum(client.nthreads().values()),
            True,
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
    folder, left, faults = job.folder, set(windows), dict[Window, SceneError]()
    running: dict[Future[Any], tuple[Path, Sequence[Window]]] = {}
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    deaths: Counter[Window] = Counter()

    def begin(strip: Sequence[Window]) -> None:
        file = folder.scratch / f"strip-{uuid4().hex}"
        write_text(file, str(len(strip)))
        future = pool.begin(_map_strip, order, file.name, strip)
        running[future] = file, strip
        future.add_done_callback(ended.put)

    def finish(found: Iterable[Window]) -> None:
        for window in left.intersection(found):
            left.remove(window)
            progress(window.pixels)

    def look() -> None:
        there = {path.name for path in folder.path.glob("*.tif")}
        finish([window for window in left if folder.part(window).name in there])

    def divide() -> None:
        """Gives each worker without a strip half of the one of which most is left."""
        for _ in range(pool.idle):
            # A worker computes the first of those that are left, and reads the second.
            rests = {future: [window for window in s if window in left][2:] for future, (_, s) in running.items()}
            future = max(rests, key=lambda future: len(rests[future]))
            if not rests[future]:
                return
            file, strip = running[future]
            given = rests[future][len(rests[future]) // 2 :]
            running[future] = file, strip[: strip.index(given[0])]
            write_text(file, str(len(running[future][1])))
            begin(given)

    try:
        for strip in job.engine.strips(windows, pool.idle, spare=pool.grows):
            begin(strip)
        while running:
            divide()
            try:
                future = ended.get(timeout=_LOOK)
            except Empty:
                look()
                continue
            file, strip = running.pop(future)
            file.unlink(missing_ok=True)
            died: BaseException | None = None
            try:
                found: _Mapped = future.result()
            except (pool.died, CancelledError) as error:
                died = error
                look()
            else:
                _check_kind(folder, found.kind)
                for window, content in found.parts.items():
                    with whole_file(folder.part(window)) as partial:
                        partial.write_bytes(content)
                faults |= {window: SceneError(*words) for window, words in found.faults.items()}
                finish(found.windows)
            rest = [window for window in strip if window in left]
            if died is not None and rest:
                deaths[rest[0]] += 1
                if rest[0] == strip[0] and deaths[rest[0]] > pool.repeats:
                    raise died
            if rest:
                begin(rest)
    finally:
        for future, (file, _) in running.items():
            future.cancel()
            file.unlink(missing_ok=True)
    return dict(sorted(faults.items()))
