"""The commands `check` and `fetch`."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from landfuse.cli.console import Overwrite, Quiet, ScenePath, downloads, hint, out, say, table
from landfuse.errors import SettingsError, few_alike
from landfuse.files import to_json
from landfuse.markup import percent
from landfuse.progress import bars, err

if TYPE_CHECKING:
    from landfuse.scenes.check import Report

_WIDE = 120  # columns in which the table of modalities has room


def check(
    scene: ScenePath,
    views: Annotated[
        str, typer.Option(help="Views for the leak report, px: `9` around a pixel, `96/64` with a core of 64.")
    ] = "",
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw an overview into this file (.png or .html): images, labels, split, leaks and classes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no tables, only notes and faults.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Look at a scene: its modalities, its classes per role, what leaks, and every fault at once."""
    from landfuse.scenes.benchmarks import places
    from landfuse.scenes.check import VIEWS
    from landfuse.scenes.check import check as look

    pairs = [_view_and_core(part) for part in views.split(",")] if views else VIEWS
    if picture is not None:
        from landfuse.figures.figures import check_figure, check_picture, save

        check_picture(picture, overwrite)
    with bars(quiet or as_json) as update:
        report = look(scene if scene.exists() else places().get(str(scene), scene), pairs, partial(update, "reading"))
        if picture is not None and report.scenes:
            save(check_figure(report, partial(update, "drawing")), picture)
    if as_json:
        out.out(to_json(report.to_dict()), end="")
    else:
        _print_report(report, quiet)
    if picture is not None and not as_json and not quiet:
        say(f"picture: {picture}" if report.scenes else "no picture: none of the rasters can be opened")
    if report.faults:
        raise typer.Exit(2)


def _print_report(report: Report, quiet: bool) -> None:
    """Prints the tables, unless quiet, the notes, and the faults, in lines of at most 80 characters where possible."""
    for shown in () if quiet else _tables(report):
        out.print(shown, width=_width())
    if report.confirmed and not quiet:
        out.print(f"as published: {', '.join(report.confirmed)}", width=_width())
    for note in report.notes:
        say(_filled(f"note: {note}"))
    for fault in few_alike(report.faults):
        err.print(f"[bold red]fault[/] {escape(_filled(f'fault {fault}').removeprefix('fault '))}", soft_wrap=True)
    if not report.faults and report.file is not None:
        from landfuse.scenes.benchmarks import recipes

        beside = next(iter(recipes(report.file.path.parent).values()), None)
        if report.file.settings.labels is None:
            hint("landfuse", "predict", "RUN", report.file.path, "-o", "map.tif")
        elif beside is None:
            hint("write a recipe, whose models `landfuse models` lists, and train it: landfuse train RECIPE")
        else:
            hint("landfuse", "train", beside)
    if not report.faults and not quiet:
        say("no fault found" + ("; see the notes above" if report.notes else ""))


def _width() -> int:
    """Columns: those of the terminal or of the variable COLUMNS, else 80."""
    return out.width if out.is_terminal else int(os.environ.get("COLUMNS", "80"))


def _filled(text: str) -> str:
    """A message whose lines are broken between words; those of errors begin with two spaces and a heading."""
    options: Any = {"width": _width(), "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(
        textwrap.fill(line, **options, subsequent_indent=" " * (12 if line.startswith("  ") else 6))
        for line in text.splitlines()
    )


def _tables(report: Report) -> Iterator[Table]:
    """What was found of modalities, classes and leaks."""
    if report.file is not None and report.modalities:
        settings = report.file.settings
        title = f"{settings.title or settings.name}: {report.tiles} tile{'s' if report.tiles != 1 else ''}"
        rows = []
        for name, m in report.modalities.items():
            crs = [c if len(c) < 20 else "WKT" for c in m.crs]
            rows.append({
                "modality": escape(name), "bands": str(m.bands), "type": m.dtype, "pixel": f"{report.pixel(name):.4g}",
                "CRS": ", ".join(crs[:3]) + (" ..." if len(crs) > 3 else ""), "warped": str(m.warped),
                "no data": percent(m.missing / max(1, m.pixels)),
                "min": f"{m.low:.4g}", "mean": f"{m.mean:.4g}", "max": f"{m.high:.4g}", "units": escape(m.units),
            })  # fmt: skip
        columns = list(rows[0])
        parts = [columns] if _width() >= _WIDE else [columns[:6], [columns[0], *columns[6:]]]
        for part in parts:
            shown = table(title, part, left=["modality", "type", "CRS", "units"])
            for row in rows:
                shown.add_row(*(row[column] for column in part))
            yield shown
            title = ""
    if report.file is not None and report.counts:
        shown = table("labelled pixels", ["code", "class", *report.counts], left=["class"])
        for index, kind in enumerate(report.file.legend):
            counts = [f"{int(count[index]):,}" for count in report.counts.values()]
            shown.add_row(str(kind.code), f"[{kind.colour}]■[/] {escape(kind.name)}", *counts)
        shown.add_section()
        shown.add_row("", "all", *(f"{int(count.sum()):,}" for count in report.counts.values()))
        yield shown
    if report.leaks:
        title = "leak report: test pixels labelled from a view (or in a polygon) with training or validation pixels"
        shown = table(title, ["view, px", "core, px", "leak fraction"])
        for (view, core), fraction in report.leaks.items():
            shown.add_row(str(view), str(core), _leak(fraction))
        if report.polygon_leak is not None:
            shown.add_section()
            shown.add_row("polygon", "", _leak(report.polygon_leak))
        yield shown


def _leak(fraction: float) -> str:
    return f"[{'red' if fraction > 0 else 'green'}]{percent(fraction)}[/]"


def _view_and_core(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d{1,4})\s*(?:/\s*(\d{1,4})\s*)?", text)
    view, core = (int(match.group(1)), int(match.group(2) or 1)) if match else (0, 0)
    if not 1 <= core <= view:
        expected = "views like 7,11,96/64, below 10,000 px, with cores no larger"
        raise SettingsError(f"--views holds {text[:20]!r}", expected, "correct it")
    return view, core


INCOMPLETE = 3
"""Exit code where a person has to get something: no mistake of the user, but the data are not there yet."""


def fetch(
    place: Annotated[
        str | None,
        typer.Argument(help="A benchmark place (without one they are listed), or the folder of a scene file."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Download the data of a benchmark, or say what to download and where to put it (exit code 3 until it is there).

    Data go into the folder that LANDFUSE_DATA names, by default the user's cache folder. An interrupted download goes
    on by the same command; what is there is not fetched again.
    """
    from landfuse.scenes.benchmarks import place_folder, places, recipes
    from landfuse.scenes.fetch import fetch as get
    from landfuse.scenes.scene_file import read_scene_file

    if place is None:
        shown = table("places", ["name", "what it is"], left=["name", "what it is"])
        for name, folder in places().items():
            shown.add_row(name, escape(read_scene_file(folder).settings.title))
        out.print(shown)
        hint("landfuse", "fetch", "NAME")
        return
    folder = place_folder(place)
    file = read_scene_file(folder)
    settings = file.settings
    for what in ("title", "licence", "citation", "address"):
        if getattr(settings, what):
            say(f"{what + ':':9} {getattr(settings, what)}")
    say(f"folder:   {file.root}")
    with downloads(quiet) as progress:
        result = get(file, progress)
    for name in result.downloaded:
        say(f"fetched:  {name}")
    for name in result.there:
        say(f"there:    {name}")
    for name, checksum in result.checksums.items():
        say(f"no checksum is known of {name}; this one has the SHA-256 {checksum}")
    if result.missing:
        if settings.fetch and settings.fetch.manual:
            err.print(escape(f"get by hand, and save in the folder:\n{settings.fetch.manual}"), soft_wrap=True)
        err.print(escape("not there yet: " + ", ".join(result.missing)), soft_wrap=True)
        raise typer.Exit(INCOMPLETE)
    hint("landfuse", "check", place)
    say(f"complete. Scene file: {file.path}; recipes beside it: {', '.join(recipes(folder))}")
