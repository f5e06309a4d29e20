"""How far a long task is: one bar on a terminal; elsewhere a line soon, and then about every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

err = Console(stderr=True, highlight=False)

FIRST, EVERY = 1.0, 10.0
"""Seconds until the first line, and between lines."""


class Meter:
    """Shows how far a task is, of one part after another; several threads may call it.

    Args:
        parts: names of the parts of one task, with the fraction of the bar that each takes; any other part has the
            whole bar.
    """

    active = 0
    """How many there are."""

    def __init__(self, shown: bool, parts: Mapping[str, float]) -> None:
        self._lines, self._parts = shown and not err.is_terminal, parts
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
        )
        both = bool(sys.stdout and sys.stdout.isatty())  # else what is printed goes where it is redirected to
        hidden = not shown or not err.is_terminal
        self._bar = Progress(*columns, console=err, transient=True, disable=hidden, redirect_stdout=both)
        self._task = self._bar.add_task("", total=None, words="")
        self._what, self._words = "", ""
        self._fraction: float | None = None  # where it is not known
        self._start = self._before = 0.0
        self._due = time.monotonic() + FIRST
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __call__(
        self, what: str, done: float, total: float, words: str = "", *, before: float | None = None, now: bool = False
    ) -> None:
        """Notes what is done.

        Args:
            total: of the part; 0 where it is not known.
            words: what else there is to say.
            before: what was done before this command; by default what the first call of a part says.
            now: a line is due.
        """
        with self._lock:
            if what != self._what:
                self._what, self._start, self._before = what, time.monotonic(), done
            first = self._before if before is None else before
            spent, left = time.monotonic() - self._start, ""
            if first < done < total:
                left = f"{timedelta(seconds=round((total - done) * spent / (done - first)))} left"
            self._fraction = done / total if total else None
            self._words = ", ".join(filter(None, (words, left)))
            self._bar.update(
                self._task, description=what, completed=self._done(), total=1.0 if total else None, words=self._words
            )
        if now or time.monotonic() >= self._due:
            self.line()

    def _done(self) -> float:
        """The fraction of the bar that is filled."""
        fraction = self._fraction or 0.0
        if self._what not in self._parts:
            return fraction
        names = [*self._parts]
        earlier = sum(self._parts[name] for name in names[: names.index(self._what)])
        return (earlier + self._parts[self._what] * fraction) / sum(self._parts.values())

    def line(self) -> None:
        """Prints a line where there is no bar."""
        with self._lock:
            if self._lines and self._what:
                self._due = time.monotonic() + EVERY
                far = "..." if self._fraction is None else f"{self._fraction:.0%}"
                err.print(", ".join(filter(None, (f"{self._what}: {far}", self._words))), markup=False, soft_wrap=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            if time.monotonic() >= self._due:
                self.line()

    def __enter__(self) -> Meter:
        Meter.active += 1
        self._bar.start()
        if self._lines:
            threading.Thread(target=self._watch, daemon=True).start()  # a part may take long
        return self

    def __exit__(self, *_: Any) -> None:
        Meter.active -= 1
        self._ended.set()
        self._bar.stop()


def bars(quiet: bool = False, parts: Mapping[str, float] | None = None) -> Meter:
    """Shows one part of a task after another, in a `with` statement; see `Meter`."""
    return Meter(not quiet, parts or {})


@contextmanager
def bar(what: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Shows one task; yields a function of what is done and what there is to do."""
    with bars(quiet) as update:
        yield partial(update, what)
