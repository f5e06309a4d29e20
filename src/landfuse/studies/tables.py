"""A comparison as files: JSON (all of it), CSV (a row per recipe), LaTeX, a picture, and a ledger that only grows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from landfuse import files
from landfuse.accuracy.bootstrap import SCORES
from landfuse.figures import figures
from landfuse.files import check_replaceable, write_text
from landfuse.studies.compare import COSTS, Comparison, Spread
from landfuse.training.run import Run

_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def save(comparison: Comparison, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Writes `comparison.json`, `.csv`, `.tex` and a picture of the differences, and adds the runs to `runs.csv`.

    No comparison is overwritten: a further one takes the next free number, `comparison-2.json`; the same one again
    changes nothing.

    Returns:
        The files of this comparison, JSON first.

    Raises:
        OutputError: if they cannot be written; or if `runs.csv` is another table and `overwrite` is not set.
    """
    folder = Path(folder)
    check_replaceable(folder / "runs.csv", r"\Arun,model,", overwrite)
    text = to_json(comparison)
    endings = (".json", ".csv", ".tex", *([".png"] if comparison.differences else []))
    for number in itertools.count(1):
        stem = "comparison" if number == 1 else f"comparison-{number}"
        place = folder / f"{stem}.json"
        there = [path for path in map(place.with_suffix, endings) if path.exists()]
        if not there or (place in there and place.read_text(encoding="utf-8") == text):
            break
    add_to_ledger([run for recipe in comparison.recipes for run in recipe.runs], folder / "runs.csv")
    if not place.exists():
        write_text(place.with_suffix(".csv"), to_csv(comparison))
        write_text(place.with_suffix(".tex"), to_latex(comparison))
        if comparison.differences:
            figures.save(_forest(comparison), place.with_suffix(".png"))
        write_text(place, text)  # last: it marks that all are there
    return [place.with_suffix(ending) for ending in endings]


def _forest(comparison: Comparison) -> figures.Picture:
    units = " and ".join(dict.fromkeys(f"{one.unit}s" for one in comparison.differences))
    rows = {one.name: {k: v.interval for k, v in one.scores.items()} for one in comparison.differences}
    return figures.forest_figure(
        rows, f"Difference to {comparison.recipes[0].name}, mean over {units} with its 95% interval"
    )


def to_json(comparison: Comparison) -> str:
    """All of a comparison; what is not defined is null."""
    recipes = [
        {
            "name": recipe.name,
            "modalities": recipe.runs[0].modalities,
            "settings": recipe.runs[0].settings,
            "n": len(recipe.runs),
            "runs": [{"path": run.folder, "split": run.split, "seed": run.seed} for run in recipe.runs],
            "scores": _spreads(recipe.scores),
            "classes": [
                {"class": name, "F1": asdict(recipe.f1[name]), "IoU": asdict(recipe.iou[name])}
                for name in comparison.classes
            ],
            **_spreads(recipe.costs),
        }
        for recipe in comparison.recipes
    ]
    differences = [
        {
            "recipe": one.name,
            "against": one.against,
            "pairs": one.unit,
            "runs": one.runs,
            "scores": {
                name: {**asdict(own), "low": own.interval.low, "high": own.interval.high, "p": one.p[name]}
                for name, own in one.scores.items()
            },
        }
        for one in comparison.differences
    ]
    return files.to_json(
        {
            "recipes": recipes,
            "differences": differences,
            "test": "two-sided sign-flip test, exact up to 16 pairs, each difference by itself",
            "notes": comparison.notes,
        }
    )


def _spreads(values: Mapping[str, Spread]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in values.items()}


def to_csv(comparison: Comparison) -> str:
    """A row per recipe: scores, costs, F1 and IoU of each class, each with `_std`; then its difference to the first."""
    differences = {one.name: one for one in comparison.differences}
    rows = []
    for recipe in comparison.recipes:
        row: dict[str, Any] = {"recipe": recipe.name, "n": len(recipe.runs)}
        for name, value in {**recipe.scores, **recipe.costs}.items():
            row |= {name: value.mean, f"{name}_std": value.std}
        for score, values in (("F1", recipe.f1), ("IoU", recipe.iou)):
            for name, value in values.items():
                row |= {f"{score} {name}": value.mean, f"{score} {name}_std": value.std}
        one = differences.get(recipe.name)
        for name in SCORES:
            row |= {f"{name}_difference": one.scores[name].mean if one else None}
            row |= {f"{name}_difference_std": one.scores[name].std if one else None}
            row |= {f"{name}_pairs": one.scores[name].n if one else None, f"{name}_p": one.p[name] if one else None}
        rows.append(row)
    return files.to_csv(rows)


def to_latex(comparison: Comparison) -> str:
    """A table for booktabs: scores in per cent, mean ± standard deviation; a dagger where p < 0.05 to the first."""
    differences = {one.name: one for one in comparison.differences}
    rows = []
    for recipe in comparison.recipes:
        row = {"Recipe": "".join(_TEX.get(character, character) for character in recipe.name)}
        row["$n$"] = str(len(recipe.runs))
        one = differences.get(recipe.name)
        for score in SCORES:
            row[score] = _cell(recipe.scores[score]) + (r"$^\dag$" if one and one.p[score] < 0.05 else "")
        parameters = recipe.costs["parameters"].mean
        row["Parameters"] = "--" if math.isnan(parameters) else f"{parameters:,.0f}".replace(",", r"\,")
        rows.append(row)
    table = pd.DataFrame(rows).to_latex(index=False, escape=False, column_format="l" + "r" * (len(rows[0]) - 1))
    return (
        "% needs \\usepackage{booktabs}; scores in per cent, mean $\\pm$ standard deviation over $n$ runs\n"
        f"% \\dag: differs from the first recipe, p < 0.05, paired sign-flip test\n{table}"
    )


def _cell(value: Spread) -> str:
    if math.isnan(value.mean):
        return "--"
    return f"${100 * value.mean:.1f}" + ("$" if math.isnan(value.std) else rf" \pm {100 * value.std:.1f}$")


def add_to_ledger(runs: list[Run], path: Path) -> None:
    """Adds a row per run to a CSV file, once for each result of a run; the rows in it stay."""
    known = pd.DataFrame()
    if path.exists():
        known = pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns={"leak_share": "leak_fraction"})
    table = pd.concat([known, pd.DataFrame([_ledger_row(run) for run in runs])], ignore_index=True).fillna("")
    table = table.drop_duplicates(["run", "seed", "split", *SCORES])
    if len(table) > len(known):
        write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _ledger_row(run: Run) -> dict[str, str]:
    values = {
        "run": str(run.folder.resolve()),
        "model": run.recipe["model"]["name"],
        "modalities": " + ".join(run.modalities),
        "seed": run.seed,
        "split": run.split[:12],
        **{name: run.scores["test"][name] for name in (*SCORES, "pixels", "unmapped")},
        **{name: run.scores.get(name) for name in COSTS},
        "landfuse": run.bundle["landfuse"],
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}


def stacked(parts: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """The columns of several tables, one below the other; nothing (NaN or None) where a table lacks one."""
    frame = pd.concat([pd.DataFrame(dict(part)) for part in parts], ignore_index=True)
    return {str(name): frame[name].to_numpy() for name in frame.columns}
