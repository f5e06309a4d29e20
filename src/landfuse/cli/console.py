"""Where the command speaks: output, errors, progress bars, and arguments that several commands take."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from landfuse.models.base import FusionModel

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
OwnModel = Annotated[
    str | None,
    typer.Option("--model", help="A model of your own, package.module:Class; modules of the working directory too."),
]
ScenePath = Annotated[Path, typer.Argument(help="The scene file (scene.yaml), or the folder that holds it.")]


def own_model(place: str) -> type[FusionModel]:
    """The class that `--model` names."""
    from landfuse.models import imported

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that no file there hides a library
    return imported(place)


def say(line: str) -> None:
    """One line, whatever the width and whatever brackets a path holds."""
    out.print(line, markup=False, soft_wrap=True)


@contextmanager
def bar(what: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; gives what is to be told (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_scores(scores: dict[str, float], classes: Sequence[Mapping[str, object]], title: str) -> None:
    """A table of the scores per class, and the scores of all below it."""
    table = Table(title=escape(title))
    for name in ("class", "precision", "recall", "F1", "IoU", "support"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in classes:
        values = [row[name] for name in ("precision", "recall", "F1", "IoU")]
        table.add_row(escape(str(row["class"])), *(share(v) for v in values), f"{row['support']:,}")
    out.print(table)
    out.print("  ".join(f"{name} {share(scores[name])}" for name in ("OA", "AA", "kappa", "mF1", "mIoU")))
    if scores.get("unmapped"):
        out.print(f"{scores['unmapped']:.1%} of the labelled pixels have no class in the map; they are not scored")


def share(value: object) -> str:
    """A share of 1 in four decimals; a dash for none."""
    return "–" if value is None or value != value else f"{value:.4f}"


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


def print_json(event: str, **values: Any) -> None:
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
                print_json(
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
