"""The device, the time and memory of a call on it, and how far two results are apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

FLUSHED = 256 << 20  # bytes: more than the L2 cache of any GPU so far


@dataclass
class Device:
    """Where to measure.

    Args:
        name: cuda, or cpu in a dry run, in which each call is timed once.
    """

    name: str
    _flush: list[Tensor] = field(default_factory=list)

    @property
    def dry(self) -> bool:
        return self.name == "cpu"

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def once(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call, by the clock."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def milliseconds(self, call: Callable[[], object], budget: float = 150.0, flush: bool = False) -> float:
        """The median of the calls that fit into the budget (ms), by GPU events; at most 60.

        Args:
            call: what to time.
            budget: a call that takes four times as long is timed once.
            flush: 256 MiB are written before each call, so that nothing of the inputs is left in the L2 cache.
        """
        first = self.once(call)
        if self.dry:
            return first
        second = self.once(call)  # the first one may have compiled
        if second > 4 * budget:
            return second
        if flush and not self._flush:
            self._flush.append(torch.empty(FLUSHED, dtype=torch.uint8, device=self.name))
        call()
        count = max(3, min(60, int(budget / max(second, 1e-3))))
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        self.wait()
        for start, end in pairs:
            if flush:
                self._flush[0].fill_(1)
            start.record()
            call()
            end.record()
        self.wait()
        return statistics.median(start.elapsed_time(end) for start, end in pairs)

    def peak(self, call: Callable[[], object]) -> tuple[float, float] | None:
        """GiB of the allocator at most during a call: in all, and above what there was before; None on a CPU."""
        if self.dry:
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        most = torch.cuda.max_memory_allocated()
        return most / 2**30, (most - before) / 2**30

    def release(self) -> None:
        """Gives cached memory back, so that the next measurement has it."""
        if not self.dry:
            torch.cuda.empty_cache()

    def answers(self) -> bool:
        """Whether the GPU still computes; after an illegal access a process cannot use it any more."""
        try:
            return float((torch.ones(8, device=self.name) + 1).sum()) == 16
        except RuntimeError:
            return False


def difference(found: Tensor, reference: Tensor) -> float:
    """The norm of the error over that of the reference; infinite where a number is not finite."""
    found, reference = found.detach().double().cpu(), reference.detach().double().cpu()
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    norm = float(reference.norm())
    return float((found - reference).norm()) / (norm or 1.0)
