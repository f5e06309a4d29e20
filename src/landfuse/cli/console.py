"""What commands print: lines, tables, errors, the progress of mapping; and arguments that several commands take."""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from landfuse.errors import LandfuseError, MissingFileError, SettingsError
from landfuse.markup import percent
from landfuse.progress import bars

if TYPE_CHECKING:
    from landfuse.accuracy.estimate import Estimate
    from landfuse.download import Progress
    from landfuse.models.base import FusionModel

log = logging.getLogger("landfuse")

out = Console(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else 140)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, neither bars nor lines of JSON.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that landfuse did not write or somebody has filled in, and maps of another model.",
    ),
]
OwnModel = Annotated[
    str | None,
    typer.Option("--model", help="A model of your own, package.module:Class; modules of the working directory too."),
]
ScenePath = Annotated[Path, typer.Argument(help="The scene file (scene.yaml), or the folder that holds it.")]
Block = Annotated[int, typer.Option(min=1, max=10**6, help="Side of the blocks of ground for the intervals, px.")]


def once(pairs: list[str] | None) -> list[str] | None:
    """Refuses a key that several of `key=value` have, of which the last would win."""
    keys = [pair.partition("=")[0].strip() for pair in pairs or ()]
    for key in keys:
        if keys.count(key) > 1:
            raise SettingsError(f"{key} is given {keys.count(key)} times", "once", "choose one")
    return pairs


def there(paths: Any) -> Any:
    """Refuses what is not there before large libraries are imported for it."""
    for path in paths if isinstance(paths, list) else [paths] if paths else []:
        if not path.exists():
            raise MissingFileError(f"there is no file or folder {path}", "one that is there", "check the path")
    return paths


_FILES = (
    ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".html",
    ".json", ".yaml", ".yml", ".csv", ".tex", ".gpkg", ".shp", ".zip", ".vrt",
)  # fmt: skip


def a_folder(path: Path | None) -> Path | None:
    """Refuses the names of files where a folder is made."""
    if path is not None and path.suffix.lower() in _FILES and not path.is_dir():
        raise SettingsError(f"{path} is the name of a file", "a folder for several files", f"-o {path.with_suffix('')}")
    return path


def assigned(words: str) -> Any:
    """The argument of settings that win over a file, each once."""
    return typer.Argument(help=words, callback=once)


def into_folder(words: str) -> Any:
    """The option of the folder for several files."""
    return typer.Option("--output", "-o", help=words, callback=a_folder)


RunPath = Annotated[Path, typer.Argument(help="The run folder.", callback=there)]
RunMaps = Annotated[
    Path | None,
    typer.Option(
        help="The run's map (.tif), or the folder of the tiles' maps; by default `maps` in the run folder, where "
        "missing ones are made.",
        callback=there,
    ),
]

PANELS = {
    panel: names.split()
    for panel, names in {
        "What is done": "recipe seeds folds only model own role split design intervals against methods views tile n "
        "allocation minimum expected side judge walk seed classes alone heat_map merge labels label_column maps scene "
        "bands sample error by after pictures visits",
        "From a STAC catalog": "catalog collections bbox area time assets cloud pixel without sign",
        "Layers of the map": "probabilities confidence entropy sets sets_method sets_by_class applicability layer",
        "Beside the map": "picture polygons minimum_area stac taken",
        "Data that are missing or differ": "allow allow_missing mean_for",
        "How it is computed": "memory block batch precision workers scheduler scheduler_file dry_run",
        "Files and messages": "output overwrite restart keep_going as_json quiet",
    }.items()
}
"""How the options of commands are grouped in their help: the names of parameters."""

_next: list[str] = []


def hint(*words: object) -> None:
    """Sets what is named as the next step when the command has ended: the words of a command, or one sentence."""
    _next[:] = [str(words[0]) if len(words) == 1 else shlex.join(map(str, words))]


def take_hint() -> str | None:
    """The next step, once."""
    return _next.pop() if _next else None


def modules_here() -> None:
    """Lets modules of the working directory be imported."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that no file there hides a library


def own_model(place: str) -> type[FusionModel]:
    """The class that `--model` names."""
    from landfuse.models import imported

    modules_here()
    return imported(place)


def say(*lines: str) -> None:
    """Prints lines, whatever the width and whatever brackets a path holds."""
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def number(value: Any, form: str = ".4f") -> str:
    """A number in a format; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def with_interval(one: Estimate, form: str = ".4f") -> str:
    """An estimate with half the width of its 95% interval."""
    return f"{number(one.value, form)} ± {number(one.half_width, form)}"


def table(title: str, columns: Iterable[str], left: Sequence[str] = ()) -> Table:
    """An empty table whose columns are right-aligned and whole, but for those of words, which may fold."""
    result = Table(title=escape(title))
    for column in columns:
        if column in left:
            result.add_column(escape(column), overflow="fold")
        else:
            result.add_column(escape(column), justify="right", no_wrap=True)
    return result


def print_scores(scores: dict[str, float], classes: Sequence[Mapping[str, object]], title: str) -> None:
    """Prints a table of the scores per class, and the scores of all classes below it."""
    names = ("precision", "recall", "F1", "IoU")
    shown = table(title, ["class", *names, "support"], left=["class"])
    for row in classes:
        shown.add_row(escape(str(row["class"])), *(number(row[name]) for name in names), f"{row['support']:,}")
    out.print(shown)
    out.print("  ".join(f"{name} {number(scores[name])}" for name in ("OA", "AA", "kappa", "mF1", "mIoU")))
    if scores.get("unmapped"):
        out.print(f"{percent(scores['unmapped'])} of the labelled pixels have no class in the map; they are not scored")


@contextmanager
def downloads(quiet: bool) -> Iterator[Callable[[str], Progress]]:
    """Shows downloads in MB; yields what makes the progress of a file by its name."""
    with bars(quiet) as update:
        yield lambda name: lambda done, total: update(f"{name}, MB", done // 10**6, max(1, total // 10**6))


@dataclass(frozen=True)
class Events:
    """What a long command prints: lines for people, or lines of JSON for machines.

    Args:
        where: the place of a file that is named; it may be made in another one.
    """

    as_json: bool
    quiet: bool
    where: Callable[[Path], str] = str

    def print(self, event: str, words: str, **values: Any) -> None:
        """Prints what happened: in words (nothing where there are none), or as an event with its values."""
        if self.as_json:
            say(json.dumps({"event": event, **values}))
        elif words:
            say(words)

    def wrote(self, what: str, path: Path, **values: Any) -> None:
        """Prints which file was written."""
        place = self.where(path)
        self.print(what, f"{what}: {place}", **values, path=place)

    def fault(self, tile: str, fault: LandfuseError) -> None:
        """Prints why a tile is not mapped, while others are."""
        self.print("fault", f"note: the tile `{tile}` is not mapped: {fault.found}", tile=tile, found=fault.found)

    @contextmanager
    def mapping(self, pixels: int, size: Callable[[], str] = str) -> Iterator[Callable[[str, int], None]]:
        """Shows the progress, or prints a line of JSON a second; yields a function of tile and pixels done.

        Args:
            pixels: of all tiles.
            size: of the model and of what it takes, logged once with the time left.
        """
        start, printed, said = time.monotonic(), -math.inf, self.quiet or self.as_json
        before, done = dict[str, int](), dict[str, int]()  # pixels of each tile before this command, and by now
        begun: tuple[float, int] | None = None
        lock = threading.Lock()  # several tiles at once
        with bars(self.quiet or self.as_json) as meter:

            def update(tile: str, count: int) -> None:
                nonlocal printed, said, begun
                with lock:
                    before.setdefault(tile, count)
                    done[tile] = count
                    now, first, whole = time.monotonic(), sum(before.values()), sum(done.values())
                rate = (whole - first) / 1e6 / max(1e-9, now - start)
                meter("mapping", whole, pixels, f"{rate:.3g} Mpx/s", before=first)
                if rate > 0 and begun is None:  # the first window takes longer
                    begun = now, whole
                elif not said and begun is not None and now >= begun[0] + 1 and whole > begun[1]:
                    said = True
                    ahead = (pixels - whole) * (now - begun[0]) / (whole - begun[1])
                    log.info("%s; %s px, about %s left", size(), f"{pixels:,}", timedelta(seconds=round(ahead)))
                if self.as_json and not self.quiet and (now - printed >= 1 or whole == pixels):
                    printed = now
                    left = round((pixels - whole) / 1e6 / rate, 1) if rate > 0 else None
                    self.print(
                        "progress", "", tile=tile, pixels=whole, of=pixels,
                        megapixels_per_second=round(rate, 4), seconds_left=left,
                    )  # fmt: skip

            yield update
