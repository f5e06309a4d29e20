"""How mapping tells of itself: a bar with rate and time left for people, JSON lines for machines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from landfuse.cli.console import err, say


@dataclass
class Tally:
    """Pixels of all tiles together, their rate and the time left.

    Args:
        total: pixels of all tiles.
        clock: seconds.
    """

    total: int
    clock: Callable[[], float] = time.monotonic
    _done: dict[str, int] = field(default_factory=dict)
    _before: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._start = self.clock()

    def tell(self, tile: str, done: int) -> None:
        """Notes that so many pixels of a tile are done; those of the first time were done before."""
        with self._lock:
            self._before.setdefault(tile, done)
            self._done[tile] = done

    @property
    def done(self) -> int:
        """Pixels."""
        return sum(self._done.values())

    @property
    def rate(self) -> float:
        """Megapixels per second since this call began."""
        return (self.done - sum(self._before.values())) / 1e6 / max(1e-9, self.clock() - self._start)

    @property
    def left(self) -> float | None:
        """Seconds; None where nothing has been done yet."""
        return (self.total - self.done) / 1e6 / self.rate if self.rate > 0 else None

    def words(self) -> str:
        """Rate and time left."""
        left = "" if self.left is None else f", {timedelta(seconds=round(self.left))} left"
        return f"{self.rate:.3g} Mpx/s{left}"


def tell_json(event: str, **values: Any) -> None:
    """One line of JSON."""
    say(json.dumps({"event": event, **values}, ensure_ascii=False))


@contextmanager
def mapping_progress(pixels: int, *, quiet: bool, as_json: bool) -> Iterator[Callable[[str, int], None]]:
    """Shows how mapping goes; gives what is to be told (tile, its pixels done).

    Args:
        pixels: of all tiles.
        quiet: show nothing.
        as_json: a line of JSON a second instead of a bar.
    """
    tally = Tally(pixels)
    if as_json:
        last = -1.0

        def told(tile: str, done: int) -> None:
            nonlocal last
            tally.tell(tile, done)
            if not quiet and (tally.clock() - last >= 1 or tally.done == tally.total):
                last = tally.clock()
                seconds = None if tally.left is None else round(tally.left, 1)
                tell_json(
                    "progress", tile=tile, pixels=tally.done, of=tally.total,
                    megapixels_per_second=round(tally.rate, 4), seconds_left=seconds,
                )  # fmt: skip

        yield told
        return
    columns = (TextColumn("mapping"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task("mapping", total=pixels, words="")

        def shown(tile: str, done: int) -> None:
            tally.tell(tile, done)
            progress.update(task, completed=tally.done, words=tally.words())

        yield shown
