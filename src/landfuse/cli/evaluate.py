"""The commands `evaluate` and `sample`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import (
    Block,
    Overwrite,
    Quiet,
    hint,
    into_folder,
    number,
    once,
    out,
    print_scores,
    say,
    table,
    there,
    with_interval,
)
from landfuse.errors import SettingsError
from landfuse.files import check_replaceable, write_text
from landfuse.progress import bar

if TYPE_CHECKING:
    from landfuse.accuracy.bootstrap import BlockIntervals, Interval


def evaluate(
    maps: Annotated[Path, typer.Argument(help="The map (.tif), or the folder of the tiles' maps.", callback=there)],
    scene: Annotated[
        Path,
        typer.Argument(help="The scene file with labels, or a sample of `sample`, its reference filled in."),
    ],
    role: Annotated[str | None, typer.Option(help="train, validation, test or all; by default test.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="A written split, e.g. the folder `split` of a run.", callback=there)
    ] = None,
    design: Annotated[str | None, typer.Option(help="Of a sample: stratified, simple or cluster.")] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="With 95% intervals, from blocks of ground.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Another map of the scene: is the first one better?", callback=there)
    ] = None,
    block: Block = 64,
    output: Annotated[Path | None, into_folder("Folder for the scores as JSON and CSV, and pictures (PNG).")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score a map against labels, or estimate its accuracy and the areas of its classes from a reference sample."""
    from landfuse.accuracy.evaluate import evaluate as score

    if _is_sample(scene):
        wrong = {"--role": role, "--split": split, "--intervals": intervals, "--against": against}
        if any(wrong.values()):
            named = ", ".join(name for name, value in wrong.items() if value)
            raise SettingsError(f"{named} with the sample {scene}", "a scene file with labels", "leave it out")
        _print_estimate(maps, scene, design, output, overwrite)
        return
    if design is not None:
        raise SettingsError(
            f"--design {design} with the scene file {scene}",
            "a sample drawn at random: labels of a scene do not give the whole map's accuracy and areas",
            f"draw one by `landfuse sample {maps} -n 500 -o sample.gpkg`; or leave --design out",
        )
    with bar("scoring, tiles", quiet) as advance:
        advance(0, 0)
        result = score(maps, scene, role=role, split=split, block=block, against=against, progress=advance)
    print_scores(
        result.confusion.scores(), result.confusion.per_class(result.legend.names), f"{maps}: {result.role} pixels"
    )
    say(*(f"note: {note}" for note in result.notes))
    found = result.intervals() if intervals else None
    differences = result.differences() if against is not None else None
    if found is not None:
        title = f"95% intervals: {found.blocks} blocks of {block} px, {result.role} pixels"
        _print_table(found, result.legend.names, title)
    if differences is not None:
        title = f"{maps} less {against}: {differences.blocks} blocks of {block} px, {result.role} pixels"
        _print_table(differences, result.legend.names, title, signed=True)
        if result.left_out:
            say(f"{result.left_out:,} labelled px have a class in one map only; they are left out")
    if output is not None:
        from landfuse.figures.figures import forest_figure, save

        picture = output / "comparison.png"
        if differences is not None:
            check_replaceable(picture, "landfuse", overwrite)
        for path in result.save(output, found, differences, overwrite=overwrite):
            say(f"scores: {path}")
        if differences is not None:
            rows = {name: {"difference": one} for name, one in _named(differences, result.legend.names).items()}
            figure = forest_figure(rows, f"{maps} less {against}, with 95% intervals from {differences.blocks} blocks")
            say(f"picture: {save(figure, picture)}")
    hint("landfuse", "sample", maps, "-n", 500, "-o", "sample.gpkg")


def _is_sample(path: Path) -> bool:
    """Whether the second argument of `evaluate` is a table of points or shapes, not a scene file."""
    return not path.is_dir() and path.suffix.lower() not in (".yaml", ".yml", "", ".tif", ".tiff", ".vrt")


def _print_estimate(maps: Path, sample: Path, design: str | None, output: Path | None, overwrite: bool) -> None:
    """Estimates accuracy and areas from a sample, prints them, and writes them into a folder."""
    from landfuse.accuracy.from_sample import evaluate_sample
    from landfuse.accuracy.reference_sample import Design
    from landfuse.files import write_results

    known: tuple[str, ...] = Design.__args__  # type: ignore[attr-defined]
    if design is not None and design not in known:
        raise SettingsError(f"there is no design `{design}`", ", ".join(known), "choose one, or leave it out")
    result = evaluate_sample(maps, sample, design)  # type: ignore[arg-type]
    areas = any(c.hectares for c in result.classes)
    titles = ["class", "truth", "mapped", "user's accuracy", "producer's accuracy", "fraction of the map"]
    titles += ["hectares"] if areas else []
    shown = table(f"{maps}: {result.points} points; {result.design}", titles, left=["class"])
    shown.caption = "± half a 95% interval"
    for c in result.classes:
        row = [escape(c.name), str(c.truth_points), str(c.mapped_points)]
        row += [with_interval(one) for one in (c.users, c.producers, c.fraction)]
        shown.add_row(*row, *([with_interval(c.hectares, ",.1f")] if c.hectares else []))
    out.print(shown)
    out.print(f"overall accuracy {with_interval(result.overall)}")
    say(*(f"note: {note}" for note in result.notes))
    if output is not None:
        from landfuse.accuracy.bootstrap import Interval
        from landfuse.figures.figures import areas_figure, save
        from landfuse.palette import class_colours
        from landfuse.scenes.land_cover_map import open_map

        picture = output / "accuracy.png"
        check_replaceable(picture, "landfuse", overwrite)
        texts = {output / "accuracy.json": result.to_json(), output / "accuracy.csv": result.to_csv()}
        write_results(texts, overwrite)
        say(f"estimates: {output / 'accuracy.json'}")
        in_map, names = open_map(maps).colours, tuple(c.name for c in result.classes)
        colours = class_colours(names, tuple(map(in_map.get, names)))
        rows = []
        for c, colour, mapped in zip(result.classes, colours, result.fractions.sum(axis=0).tolist(), strict=True):
            corrected = Interval(c.fraction.value, c.fraction.low, c.fraction.high)
            rows.append({"name": c.name, "colour": colour, "fraction": mapped, "corrected": corrected})
        say(f"picture: {save(areas_figure(rows), picture)}")


def _print_table(intervals: BlockIntervals, names: list[str], title: str, signed: bool = False) -> None:
    """Prints scores with intervals, or the differences of two maps and whether they are beyond chance."""
    titles = ["score", "difference" if signed else "value", "low", "high", *(["beyond chance"] if signed else [])]
    shown = table(title, titles, left=["score", "beyond chance"])
    for name, one in _named(intervals, names).items():
        ends = [number(value, "+.4f" if signed else ".4f") for value in (one.value, one.low, one.high)]
        shown.add_row(escape(name), *ends, *(["yes" if one.excludes_zero else "no"] if signed else []))
    out.print(shown)
    if any(one.low == one.high for one in (*intervals.scores.values(), *intervals.f1)):
        say("note: where low equals high all blocks agree, which gives no interval")
    if intervals.rough:
        say(
            f"note: only {intervals.blocks} blocks: these intervals are rather too narrow; label more ground, or take "
            "smaller blocks if errors are correlated over less"
        )


def _named(intervals: BlockIntervals, names: list[str]) -> dict[str, Interval]:
    return intervals.scores | {f"F1 {name}": one for name, one in zip(names, intervals.f1, strict=True)}


def sample(
    map_path: Annotated[
        Path, typer.Argument(metavar="MAP", help="The map (.tif) to be evaluated, or the folder of the tiles' maps.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sample: .gpkg (and a .csv beside it), or .csv.")],
    n: Annotated[int, typer.Option("-n", "--points", min=2, max=10**7, help="Points to observe.")] = 500,
    design: Annotated[
        str, typer.Option(help="stratified (by the map's classes), simple, or cluster (squares of pixels).")
    ] = "stratified",
    allocation: Annotated[
        str, typer.Option(help="proportional (to area, at least --minimum per class), equal, or neyman.")
    ] = "proportional",
    minimum: Annotated[int, typer.Option(min=2, max=10**7, help="Points of a class at least.")] = 50,
    expected: Annotated[
        list[str] | None, typer.Option(help="CODE=ACCURACY expected, for neyman; once per class.", callback=once)
    ] = None,
    side: Annotated[int, typer.Option(min=1, max=1000, help="Side of a cluster, px.")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed draws the same points.")] = 0,
    after: Annotated[
        Path | None,
        typer.Option("--with", help="A later map: the sample is then one of both maps, for `change`.", callback=there),
    ] = None,
    picture: Annotated[bool, typer.Option(help="Also write a picture (.png) of the points on the map.")] = False,
    scene: Annotated[
        Path | None,
        typer.Option(help="A scene file: also write a page (.html) with what its images show around each point."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw a reference sample of a map at random; fill in its column `reference`, then evaluate the map by it."""
    from landfuse.accuracy.draw_sample import draw_sample
    from landfuse.accuracy.reference_sample import check_unfilled

    files = [output, output.with_suffix(".csv")] if output.suffix.lower() == ".gpkg" else [output]
    for path in files:
        check_unfilled(path, overwrite)
    png, page = output.with_suffix(".png"), output.with_suffix(".html")
    if picture:
        check_replaceable(png, "landfuse", overwrite)
    if scene is not None:
        from landfuse.figures.contact_sheet import MOST_POINTS, SIGN, contact_sheet
        from landfuse.scenes.scene_file import read_scene_file

        check_replaceable(page, SIGN, overwrite)
        tiles = read_scene_file(scene).scenes()
    with bar("drawing, blocks", quiet) as advance:
        drawn = draw_sample(
            map_path, n, design=design, allocation=allocation, minimum=minimum, expected=_expected(expected or []),  # type: ignore[arg-type]
            side=side, seed=seed, after=after, progress=advance,
        )  # fmt: skip
    sheet = None if scene is None else contact_sheet(drawn, tiles)
    for path in files:
        drawn.save(path, overwrite=overwrite)
    titles = ["stratum", "units in the map", "drawn", "probability"]
    shown = table(f"{output}: {len(drawn)} points, {design}, seed {seed}", titles, left=["stratum"])
    for code, size in drawn.sizes.items():
        name = f"{code} {drawn.names.get(code, '')}" if design == "stratified" else "all"
        shown.add_row(escape(name), f"{size:,}", f"{drawn.drawn[code]:,}", f"{drawn.drawn[code] / size:.3g}")
    out.print(shown)
    if picture:
        from landfuse.figures.figures import sample_figure, save
        from landfuse.scenes.land_cover_map import open_map, open_two_maps

        opened = open_map(map_path) if after is None else open_two_maps(map_path, after)
        say(f"picture: {save(sample_figure(opened, drawn.row, drawn.col), png)}")
    if sheet is not None:
        write_text(page, sheet)
        say(f"to interpret: {page}" + (f", the first {MOST_POINTS:,} points" if len(drawn) > MOST_POINTS else ""))
    words = ["evaluate", map_path, output] if after is None else ["change", map_path, after, output]
    columns = " and ".join(f"`{name}`" for name in drawn.references)
    hint(f"fill in {columns}, then: {shlex.join(['landfuse', *map(str, words)])}")


def _expected(texts: list[str]) -> dict[int, float]:
    try:
        return {int(code): float(value) for code, value in (text.split("=") for text in texts)}
    except ValueError:
        raise SettingsError(
            f"--expected {' '.join(texts)}", "a code and an accuracy from 0 to 1, like 3=0.8", "correct it"
        ) from None
