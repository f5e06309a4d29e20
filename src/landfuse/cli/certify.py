"""The commands `certify` and `change`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import Overwrite, Quiet, hint, into_folder, number, out, say, table, there, with_interval
from landfuse.errors import SceneError
from landfuse.files import write_results
from landfuse.markup import percent
from landfuse.progress import bar

MapPath = Annotated[Path, typer.Argument(metavar="MAP", help="The map (.tif), or the folder of the tiles' maps.")]


def certify(
    map_path: MapPath,
    sample: Annotated[Path, typer.Argument(help="A sample of `sample`, its reference filled in.")],
    error: Annotated[float, typer.Option(help="Fraction of wrong pixels that is allowed, above 0 and below 1.")] = 0.1,
    confidence: Annotated[
        float,
        typer.Option(help="That the error is no larger, above 0 and below 1.", rich_help_panel="What is done"),
    ] = 0.95,
    by: Annotated[
        str, typer.Option(help="The layer beside the map that orders its pixels: confidence, entropy or applicability.")
    ] = "confidence",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The mask (.tif); by default MAP_certified.tif.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find the largest part of a map whose error is at most a stated rate, with a stated confidence; write its mask."""
    from landfuse.accuracy.certify import REVERSED, certified_path
    from landfuse.accuracy.certify import certify as find
    from landfuse.scenes.land_cover_map import open_map

    certified_path(open_map(map_path).path, by, output, overwrite)  # before the map is read
    with bar("counting, blocks", quiet) as advance:
        found = find(map_path, sample, error, confidence, by=by, progress=advance)
    zone = found.zone
    titles = [
        f"{found.by} {'up to' if found.by in REVERSED else 'from'}",
        "of the map",
        "hectares",
        "points",
        "wrong",
        "error at most",
        "certified",
    ]
    shown = table(
        f"{map_path}: error at most {error:g} with confidence {confidence:g}; {found.points} points, {found.design}",
        titles,
    )
    shown.caption = "tried from top to bottom; untried where the zone before failed"
    for one in found.zones:
        hectares = number(one.hectares, ",.1f")
        passed = "yes" if one.bound <= error else "no" if one.risk else "untried"
        row = (f"{one.threshold:.3g}", percent(one.fraction), hectares, str(one.points), str(one.errors))
        shown.add_row(*row, number(one.bound), passed)
    out.print(shown)
    say(*(f"note: {note}" for note in found.notes))
    if zone is None:
        raise SceneError(*found.refusal)
    with bar("writing, blocks", quiet) as advance:
        path = found.save(output, overwrite=overwrite, progress=advance)
    area = "" if zone.hectares is None else f", {zone.hectares:,.1f} ha"
    say(
        f"certified: {percent(zone.fraction)} of the map{area}: at most {percent(error)} of its pixels are wrong, with "
        f"confidence {confidence:g}"
    )
    say(f"zone: {path}; its numbers: {path.with_suffix('.json')}")
    hint("landfuse", "report", "RUN", "--maps", map_path, "--sample", sample)


def change(
    before: Annotated[Path, typer.Argument(help="The earlier map (.tif), or the folder of tiles.", callback=there)],
    after: Annotated[Path, typer.Argument(help="The later map, of the same grid and legend.", callback=there)],
    sample: Annotated[
        Path | None, typer.Argument(help="A sample of `sample BEFORE --with AFTER`, both references filled in.")
    ] = None,
    output: Annotated[Path | None, into_folder("Folder for the estimates as JSON and CSV.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate the areas of change between two maps, from a reference sample; without one, say how the maps differ."""
    from landfuse.accuracy.change import change as estimate
    from landfuse.scenes.land_cover_map import open_two_maps

    if sample is None:
        both = open_two_maps(before, after)
        shown = table(
            f"differences of {before} and {after}", ["classes", "pixels", "of the maps", "hectares"], ["classes"]
        )
        for one, area in zip(both.legend, both.pairs.values(), strict=True):
            shown.add_row(escape(one.name), f"{area.pixels:,}", percent(area.fraction), number(area.hectares, ",.1f"))
        out.print(shown)
        say("note: differences of two maps are not change: errors of either map appear as change")
        hint("landfuse", "sample", before, "--with", after, "-n", 500, "-o", "change.gpkg")
        return
    found = estimate(before, after, sample)
    result = found.transitions
    titles = [
        "classes",
        "truth",
        "mapped",
        "of the maps, mapped",
        "estimated",
        "hectares",
        "user's accuracy",
        "producer's accuracy",
    ]
    shown = table(f"{before} to {after}: {result.points} points; {result.design}", titles, left=["classes"])
    shown.caption = "± half a 95% interval"
    fractions = result.fractions.sum(axis=0).tolist()
    for c, mapped in [*zip(result.classes, fractions, strict=True), (found.all, found.mapped)]:
        row = [escape(c.name), str(c.truth_points), str(c.mapped_points), number(mapped), with_interval(c.fraction)]
        hectares = "–" if c.hectares is None else with_interval(c.hectares, ",.1f")
        shown.add_row(*row, hectares, with_interval(c.users), with_interval(c.producers))
    out.print(shown)
    say(*(f"note: {note}" for note in result.notes))
    if output is not None:
        write_results({output / "change.json": found.to_json(), output / "change.csv": result.to_csv()}, overwrite)
        say(f"estimates: {output / 'change.json'}")
