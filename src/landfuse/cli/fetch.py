"""The command `fetch`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from landfuse.cli.console import Quiet, bar, err, out, say

INCOMPLETE = 3
"""Exit code where a person has to get something: no mistake of the user's, but the data are not there yet."""


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
    from landfuse.fetch import Progress
    from landfuse.fetch import fetch as get
    from landfuse.places import place_folder, places, recipes
    from landfuse.scenes.scene_file import read_scene_file

    if place is None:
        table = Table(title="places")
        table.add_column("name")
        table.add_column("what it is")
        for name, folder in places().items():
            table.add_row(name, escape(read_scene_file(folder).settings.title))
        out.print(table)
        return
    folder = place_folder(place)
    file = read_scene_file(folder)
    settings = file.settings
    for what in ("title", "licence", "citation", "address"):
        if getattr(settings, what):
            say(f"{what + ':':9} {getattr(settings, what)}")
    say(f"folder:   {file.root}")
    with ExitStack() as stack:

        def progress(name: str) -> Progress:
            tell: Callable[[int, int], None] = stack.enter_context(bar(f"{name}, MB", quiet))
            return lambda done, total: tell(done // 10**6, max(1, total // 10**6))

        result = get(file, progress)
    for name in result.downloaded:
        say(f"fetched:  {name}")
    for name in result.there:
        say(f"there:    {name}")
    for name, checksum in result.checksums.items():
        say(f"no checksum is known of {name}; this one has the SHA-256 {checksum}")
    if result.missing:
        if settings.fetch and settings.fetch.manual:
            err.print(escape(f"get by hand, and put into the folder:\n{settings.fetch.manual}"), soft_wrap=True)
        err.print(escape("not there yet: " + ", ".join(result.missing)), soft_wrap=True)
        raise typer.Exit(INCOMPLETE)
    say(f"complete. Scene file: {file.path}; recipes beside it: {', '.join(recipes(folder))}")
