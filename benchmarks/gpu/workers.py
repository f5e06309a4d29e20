"""Jobs in several processes side by side, where nothing is timed: comparing with slow references, and compiling."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch


class Workers:
    """Processes that take jobs; ended by leaving the `with` block.

    Args:
        count: of processes; with 0 the jobs run here, one after the other.
    """

    def __init__(self, count: int) -> None:
        self.pool: ProcessPoolExecutor | None = None
        if count:
            spawn = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
            self.pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; later jobs run here."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None

    def run(self, job: Callable[..., Any], arguments: Sequence[tuple]) -> Iterator[tuple[tuple, Any | Exception]]:
        """Each job's arguments, and what it returned or raised, as they end; begins in the order given."""
        if self.pool is None:
            for given in arguments:
                try:
                    yield given, job(*given)
                except Exception as error:
                    yield given, error
            return
        futures = {self.pool.submit(job, *given): given for given in arguments}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield futures[future], error or future.result()
