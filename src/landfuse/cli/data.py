"""The commands `check` and `fetch`."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import Quiet, ScenePath, out, say, table
from landfuse.errors import SettingsError
from landfuse.markup import percent
from landfuse.progress import bar, bars, err

_MOST_PAIRS = 5  # of close colours; a legend of many classes has dozens


def check(
    scene: ScenePath,
    views: Annotated[
        str, typer.Option(help="Views for the leak report, px: `9` around a pixel, `96/64` with a core of 64.")
    ] = "",
) -> None:
    """Look at a scene: its modalities, its classes per role, what leaks, and every fault at once."""
    from landfuse.palette import TOO_CLOSE
    from landfuse.scenes.benchmarks import places
    from landfuse.scenes.check import VIEWS
    from landfuse.scenes.check import check as look

    pairs = [_view_and_core(part) for part in views.split(",")] if views else VIEWS
    with bar("reading") as progress:
        report = look(scene if scene.exists() else places().get(str(scene), scene), pairs, progress)
    if report.file is not None and report.modalities:
        settings = report.file.settings
        shown = table(
            f"{settings.title or settings.name}: {report.tiles} tile{'s' if report.tiles != 1 else ''}",
            ["modality", "bands", "type", "pixel", "CRS", "warped", "no data", "min", "mean", "max", "units"],
            left=["modality", "type", "CRS", "units"],
        )
        for name, m in report.modalities.items():
            crs = [c if len(c) < 20 else "WKT" for c in m.crs]
            pixel = settings.modalities[name].metres or m.pixel
            shown.add_row(
                name, str(m.bands), m.dtype, f"{pixel:.4g}", ", ".join(crs[:3]) + (" ..." if len(crs) > 3 else ""),
                str(m.warped), percent(m.missing / max(1, m.pixels)), f"{m.low:.4g}", f"{m.mean:.4g}", f"{m.high:.4g}",
                escape(m.units),
            )  # fmt: skip
        out.print(shown)
    if report.file is not None and report.counts:
        shown = table("labelled pixels", ["code", "class", *report.counts], left=["class"])
        for index, kind in enumerate(report.file.legend):
            counts = [f"{int(count[index]):,}" for count in report.counts.values()]
            shown.add_row(str(kind.code), f"[{kind.colour}]■[/] {escape(kind.name)}", *counts)
        shown.add_section()
        shown.add_row("", "all", *(f"{int(count.sum()):,}" for count in report.counts.values()))
        out.print(shown)
        close = report.close_colours
        if close:
            names = report.file.legend.names
            found = [f"{names[p.first]} and {names[p.second]} ({p.distance:.1f} with {p.vision})" for p in close]
            more = f", and {len(found) - _MOST_PAIRS} more pairs" if len(found) > _MOST_PAIRS else ""
            say(
                f"note: colours that are hard to distinguish, nearer than {TOO_CLOSE:g} in CIELAB: "
                f"{', '.join(found[:_MOST_PAIRS])}{more}. Other ones can be named by `colour` in the legend"
            )
    if report.leaks:
        title = "leak report: test pixels labelled from a view (or in a polygon) with training or validation pixels"
        shown = table(title, ["view, px", "core, px", "leak fraction"])
        for (view, core), fraction in report.leaks.items():
            shown.add_row(str(view), str(core), _leak(fraction))
        if report.polygon_leak is not None:
            shown.add_section()
            shown.add_row("polygon", "", _leak(report.polygon_leak))
        out.print(shown)
    if report.confirmed:
        out.print(f"as published: {', '.join(report.confirmed)}")
    for note in report.notes:
        say(f"note: {note}")
    for fault in report.faults:
        err.print(f"[bold red]fault[/] {escape(str(fault))}", soft_wrap=True)
    if report.faults:
        raise typer.Exit(2)
    out.print("no fault found" + ("; see the notes above" if report.notes else ""))


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
    from landfuse.download import Progress
    from landfuse.scenes.benchmarks import place_folder, places, recipes
    from landfuse.scenes.fetch import fetch as get
    from landfuse.scenes.scene_file import read_scene_file

    if place is None:
        shown = table("places", ["name", "what it is"], left=["name", "what it is"])
        for name, folder in places().items():
            shown.add_row(name, escape(read_scene_file(folder).settings.title))
        out.print(shown)
        return
    folder = place_folder(place)
    file = read_scene_file(folder)
    settings = file.settings
    for what in ("title", "licence", "citation", "address"):
        if getattr(settings, what):
            say(f"{what + ':':9} {getattr(settings, what)}")
    say(f"folder:   {file.root}")
    with bars(quiet) as update:

        def progress(name: str) -> Progress:
            return lambda done, total: update(f"{name}, MB", done // 10**6, max(1, total // 10**6))

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
    say(f"complete. Scene file: {file.path}; recipes beside it: {', '.join(recipes(folder))}")
