"""The commands on many runs: `compare`, `ablation`, `reproduce`, `modalities` and `audit`."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from landfuse.cli.console import (
    Overwrite,
    Quiet,
    ScenePath,
    assigned,
    hint,
    into_folder,
    number,
    out,
    say,
    table,
    there,
)
from landfuse.errors import SettingsError
from landfuse.markup import percent
from landfuse.progress import bar
from landfuse.settings import read_yaml

if TYPE_CHECKING:
    from landfuse.studies.compare import Comparison, Spread
    from landfuse.studies.modalities import ModalityTable

_COMPARISON = "Folder for JSON, CSV, LaTeX, a picture of the differences, and the ledger runs.csv."


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of runs; the first is the reference.", callback=there)
    ],
    classes: Annotated[bool, typer.Option("--classes", help="Also print the F1 and IoU of each class.")] = False,
    output: Annotated[Path | None, into_folder(_COMPARISON)] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compare recipes over their seeds and folds: mean ± standard deviation, costs, and paired differences."""
    with bar("comparing the runs", quiet) as advance:
        advance(0, 0)
        from landfuse.studies.compare import compare as run_comparison

        result = run_comparison(runs)
    print_comparison(result, output, classes=classes, overwrite=overwrite)


def print_comparison(
    result: Comparison, output: Path | None = None, *, classes: bool = False, overwrite: bool = False
) -> None:
    """Prints the tables of a comparison, on request with the scores of each class, and writes them into a folder."""
    titles = ["recipe", "n", *result.recipes[0].scores]
    shown = table("test split: mean ± standard deviation over n runs", titles, left=["recipe"])
    for recipe in result.recipes:
        shown.add_row(escape(recipe.name), str(len(recipe.runs)), *map(_spread, recipe.scores.values()))
    out.print(shown)
    titles = ["recipe", "parameters", "training, s", "mapping the test pixels, s", "peak memory, GiB", "leak fraction"]
    shown = table("what it takes: means over the runs", titles, left=["recipe"])
    for recipe in result.recipes:
        costs = recipe.costs
        shown.add_row(
            escape(recipe.name),
            number(costs["parameters"].mean, ",.0f"),
            number(costs["training_seconds"].mean, ",.0f"),
            number(costs["test_mapping_seconds"].mean, ",.1f"),
            number(costs["peak_memory_bytes"].mean / 2**30, ".2f"),
            number(costs["leak_fraction"].mean, ".1%"),
        )
    out.print(shown)
    if classes:
        _print_classes(result)
    if result.differences:
        _print_differences(result)
    say(*(f"note: {note}" for note in result.notes))
    hint("landfuse", "report", result.recipes[0].runs[0].folder)
    if output is not None:
        from landfuse.studies.tables import save

        for path in save(result, output, overwrite=overwrite):
            say(f"comparison: {path}")


def _print_classes(result: Comparison) -> None:
    for title in ("F1", "IoU"):
        names = [recipe.name for recipe in result.recipes]
        shown = table(f"{title} of each class", ["class", *names], left=["class"])
        for name in result.classes:
            values = [(recipe.f1 if title == "F1" else recipe.iou)[name] for recipe in result.recipes]
            shown.add_row(escape(name), *map(_spread, values))
        out.print(shown)


def _print_differences(result: Comparison) -> None:
    title = f"less {result.recipes[0].name}: mean difference, and p of the sign-flip test"
    shown = table(title, ["recipe", "pairs", *result.recipes[0].scores], left=["recipe"])
    for one in result.differences:
        count = max(value.n for value in one.scores.values())
        cells = [f"{number(value.mean, '+.3f')}  p {number(one.p[name], '.2g')}" for name, value in one.scores.items()]
        shown.add_row(escape(one.name), f"{count} {one.unit}{'s' if count != 1 else ''}", *cells)
    out.print(shown)
    for unit in dict.fromkeys(one.unit for one in result.differences):
        fewest = min(max(v.n for v in one.scores.values()) for one in result.differences if one.unit == unit)
        note = (
            "a fold counts once, as the mean of its seeds; folds share training pixels, so that p is rather too small"
            if unit == "fold"
            else "pairs are seeds on one split: the test does not cover other ground (see `evaluate --against`)"
        )
        pairs = f"{fewest} {unit}{'s' if fewest != 1 else ''}"
        out.print(f"{note}; with {pairs}, p is at least {min(1.0, 2.0 ** (1 - fewest)):.2g}", soft_wrap=True)


def _spread(value: Spread) -> str:
    return number(value.mean, ".3f") + ("" if math.isnan(value.std) else f" ± {value.std:.3f}")


def ablation(
    file: Annotated[Path, typer.Argument(help="The ablation (YAML): a recipe, and what each variant changes in it.")],
    assignments: Annotated[
        list[str] | None, assigned("Settings that win over all variants, e.g. training.epochs=5 run=runs/a.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Take only this variant; may be given several times. By default all.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, e.g. 0..4 or 0,3,5; by default the file's.")] = None,
    folds: Annotated[str | None, typer.Option(help="Folds, e.g. 0..4; by default the file's.")] = None,
    output: Annotated[Path | None, into_folder(_COMPARISON)] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe in several variants, with the same seeds and folds, and compare them with the first.

    The file holds e.g. `base: recipe.yaml` and `variants: {all: {}, no-sar: {modalities: [hsi]}}`.

    Runs are in folders such as runs/NAME/VARIANT/fold-0-seed-1. The same command continues after an interruption; runs
    that have ended are not repeated.
    """
    read_yaml(file)  # what is refused at once needs no torch
    from landfuse.studies.ablation import ablate

    result = ablate(file, assignments or (), only=only or (), seeds=seeds, folds=folds, quiet=quiet, report=say)
    print_comparison(result, output, overwrite=overwrite)


def reproduce(
    place: Annotated[str, typer.Argument(help="A benchmark place (see `landfuse fetch`), or its folder.")],
    assignments: Annotated[
        list[str] | None, assigned("Settings that win over every recipe, e.g. training.epochs=20.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Recipes of the place, by name, separated by commas.")
    ] = "forest,two_branch",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs per method and split: 5 takes the seeds 0 to 4.")
    ] = 5,
    output: Annotated[Path | None, into_folder("Folder of all runs; by default runs/reproduce-PLACE.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a place's methods on its official split and on one that does not leak, beside what has been published.

    The same command continues after an interruption; runs that have ended are not repeated.
    """
    from landfuse.accuracy.bootstrap import SCORES
    from landfuse.studies.reproduce import cell
    from landfuse.studies.reproduce import reproduce as run

    names = [name.strip() for name in methods.split(",") if name.strip()]
    result = run(
        place, names, seeds, assignments or (), output,
        overwrite=overwrite, quiet=quiet, report=say,
    )  # fmt: skip
    words = ["method", "modalities", "split"]
    title = f"{result.place}: scores in per cent, mean ± standard deviation"
    shown = table(title, [*words, "n", "leak", *SCORES, "see"], left=words)
    published = [row for row in result.rows if row.source != "landfuse"]
    for row in result.rows:
        if published and row is published[0]:
            shown.add_section()
        leak = "–" if row.leak is None else f"[{'red' if row.leak else 'green'}]{percent(row.leak)}[/]"
        shown.add_row(
            escape(row.method), escape(row.modalities), row.split, str(row.n or "–"), leak,
            *(cell(row.scores[name]) for name in SCORES), f"{published.index(row) + 1}" if row in published else "",
        )  # fmt: skip
    out.print(shown)
    for place_in_list, row in enumerate(published, start=1):
        say(f"{place_in_list}  {row.method}: {row.source}. Faults of its protocol: {row.faults or 'none known'}")
    for note in result.notes:
        say(note)
    hint("landfuse", "compare", output or f"runs/reproduce-{result.place}")
    say(f"tables: {(output or Path(f'runs/reproduce-{result.place}')) / 'table.md'}")


def modalities(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Finished runs of models with two or more modalities, or with dates.", callback=there),
    ],
    alone: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run, or a folder of runs, with fewer modalities; may be given several times.", callback=there
        ),
    ] = None,
    heat_map: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead, draw where each modality's features speak for this class (Grad-CAM, of mfnet), in the view "
            "with most of its test pixels; may be given several times."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Report what each modality gives: the trained model with one withheld, and models trained without it.

    Of a modality with dates each quarter of the year is withheld too, if the model takes gaps: temporal, boosted, or
    any that was trained with samples.date_dropout.

    Scores are those of the run's test pixels, as its folder `split` has them. Writes modalities.json, .csv and
    .png into the run folder; with --heat-map, heat_maps-CODE.png.
    """
    if heat_map:
        from landfuse.studies.heat_maps import save_heat_maps

        if alone:
            raise SettingsError("--alone with --heat-map", "one of the two", "leave one out")
        for run, name in itertools.product(runs, heat_map):
            say(f"heat maps: {save_heat_maps(run, name)}")
        return
    from landfuse.studies.modalities import modality_table

    for run in runs:
        with bar(f"{run}, tiles", quiet) as advance:
            found = modality_table(run, alone or (), progress=advance)
        _print_modalities(found)
        say(f"table: {found.save()}")
        hint("landfuse", "report", run)


def _print_modalities(found: ModalityTable) -> None:
    from landfuse.accuracy.bootstrap import SCORES
    from landfuse.training.run import saw

    title = f"{found.run}: test split; in brackets, less the whole model; * more than chance"
    shown = table(title, ["what it saw", *SCORES], left=["what it saw"])
    for row in found.rows:
        cells = [
            number(row.scores[score])
            + (f" ({one.value:+.3f}){' *' * one.excludes_zero}" if (one := row.differences.get(score)) else "")
            for score in SCORES
        ]
        shown.add_row(escape(saw(row.how, row.seen, row.withheld)), *cells)
    out.print(shown)
    for row in found.rows:
        if row.scores["unmapped"] and row.how != "all":
            lost = percent(row.scores["unmapped"])
            say(f"note: without {' + '.join(row.withheld)}, {lost} of the pixels have no class")
    say(*(f"note: {note}" for note in found.notes))


def audit(
    scene: ScenePath,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A recipe whose model judges, in place of a random forest on this scene.", callback=there),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=200, help="Models, each of which judges what it did not learn.")] = 5,
    side: Annotated[
        int, typer.Option(min=1, max=10_000, help="Side of the blocks that cut labelled regions of rasters, px.")
    ] = 32,
    pictures: Annotated[int, typer.Option(min=0, max=1000, help="Labels on the page, the most doubtful first.")] = 100,
    output: Annotated[Path, into_folder("Folder of labels.csv, labels.gpkg and labels.html.")] = Path("audit"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Rank labels by how probably they are wrong, with a picture of each; changes none.

    Polygons, or pieces of a labelled raster, are judged by models that learnt from the other folds of the split: other
    polygons, tiles or blocks of ground. The same command goes on after an interruption.
    """
    from landfuse.studies.label_audit import audit as judge
    from landfuse.studies.label_audit import check_output

    check_output(output, overwrite)
    found = judge(scene, recipe, folds=folds, side=side, folder=output, progress=not quiet)
    titles = ["rank", "tile", "label", "given", "suggested", "score", "pixels", "disagree"]
    shown = table("the most doubtful labels", titles, left=["tile", "given", "suggested"])
    for row in found.rows[:10]:
        cells = str(row.rank), row.tile, str(row.label), row.given, row.suggested
        shown.add_row(*map(escape, cells), number(row.score, ".3f"), f"{row.pixels:,}", percent(row.disagree))
    out.print(shown)
    say(f"{found.doubtful:,} of {len(found.rows):,} labels are more probably of another class than their own")
    say(*(f"note: {note}" for note in found.notes))
    for path in found.save(output, pictures=pictures, overwrite=overwrite):
        say(f"labels: {path}")
    hint(f"look at {output / 'labels.html'}, and correct in your own file what is wrong")
