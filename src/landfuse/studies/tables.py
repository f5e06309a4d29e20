"""A comparison as files: JSON (all of it), CSV (a row per recipe), LaTeX, and a ledger of runs that only grows."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from landfuse.accuracy.bootstrap import SCORES
from landfuse.files import write_text
from landfuse.studies.compare import COSTS, Comparison, RecipeResult, Spread
from landfuse.training.run import RunRecord, plain

_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def save(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes `comparison.json`, `.csv` and `.tex`, and adds the runs to `runs.csv`; nothing there is overwritten.

    A further comparison takes the next free number, `comparison-2.json`; the same one again changes nothing.

    Returns:
        The files of this comparison, JSON first.

    Raises:
        OutputError: if they cannot be written.
    """
    folder = Path(folder)
    text = to_json(comparison)
    for number in itertools.count(1):
        stem = "comparison" if number == 1 else f"comparison-{number}"
        place = folder / f"{stem}.json"
        if not place.exists() or place.read_text(encoding="utf-8") == text:
            break
    add_to_ledger([run for recipe in comparison.recipes for run in recipe.runs], folder / "runs.csv")
    if not place.exists():
        write_text(place.with_suffix(".csv"), to_csv(comparison))
        write_text(place.with_suffix(".tex"), to_latex(comparison))
        write_text(place, text)  # last: it marks that all are there
    return [place, place.with_suffix(".csv"), place.with_suffix(".tex")]


def to_json(comparison: Comparison) -> str:
    """All of a comparison; what is not defined is null."""
    recipes = [
        {
            "name": recipe.name,
            "modalities": list(recipe.runs[0].modalities),
            "settings": recipe.runs[0].settings,
            "n": len(recipe.runs),
            "runs": [{"path": str(run.path), "split": run.split, "seed": run.seed} for run in recipe.runs],
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
            "scores": {name: {**asdict(own), "p": one.p[name]} for name, own in one.scores.items()},
        }
        for one in comparison.differences
    ]
    told = {
        "recipes": recipes,
        "differences": differences,
        "test": "two-sided sign-flip test, exact up to 16 pairs, each difference by itself",
        "notes": list(comparison.notes),
    }
    return json.dumps(plain(told), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _spreads(values: Mapping[str, Spread]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in values.items()}


def to_csv(comparison: Comparison) -> str:
    """A row per recipe: scores, costs, F1 and IoU of each class, each with `_std`; then its difference to the first."""
    differences = {one.name: one for one in comparison.differences}
    rows = []
    for recipe in comparison.recipes:
        row: dict[str, Any] = {"recipe": recipe.name, "n": len(recipe.runs)}
        for name, value in {**recipe.scores, **recipe.costs, **_of_classes(recipe)}.items():
            row |= {name: value.mean, f"{name}_std": value.std}
        for score in SCORES:
            one = differences.get(recipe.name)
            row |= {f"{score}_difference": one.scores[score].mean if one else None}
            row |= {f"{score}_difference_std": one.scores[score].std if one else None}
            row |= {f"{score}_pairs": one.scores[score].n if one else None, f"{score}_p": one.p[score] if one else None}
        rows.append(plain(row))
    return _table(rows)


def _of_classes(recipe: RecipeResult) -> dict[str, Spread]:
    f1 = {f"F1 {name}": value for name, value in recipe.f1.items()}
    return f1 | {f"IoU {name}": value for name, value in recipe.iou.items()}


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_latex(comparison: Comparison) -> str:
    """A table for booktabs: scores in per cent, mean ± standard deviation; a dagger where p < 0.05 to the first."""
    head = ["Recipe", "$n$", *SCORES, "Parameters"]
    lines = [
        "% needs \\usepackage{booktabs}; scores in per cent, mean $\\pm$ standard deviation over $n$ runs",
        "% \\dag: differs from the first recipe, p < 0.05, paired sign-flip test",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        " & ".join(head) + " \\\\",
        "\\midrule",
    ]
    differences = {one.name: one for one in comparison.differences}
    for recipe in comparison.recipes:
        one = differences.get(recipe.name)
        cells = [_escaped(recipe.name), str(len(recipe.runs))]
        for score in SCORES:
            sure = one is not None and one.p[score] < 0.05
            cells.append(_cell(recipe.scores[score]) + (r"$^\dag$" if sure else ""))
        parameters = recipe.costs["parameters"].mean
        cells.append("--" if math.isnan(parameters) else f"{parameters:,.0f}".replace(",", r"\,"))
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _cell(value: Spread) -> str:
    if math.isnan(value.mean):
        return "--"
    return f"${100 * value.mean:.1f}" + ("$" if math.isnan(value.std) else rf" \pm {100 * value.std:.1f}$")


def _escaped(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def add_to_ledger(runs: list[RunRecord], path: Path) -> int:
    """Adds a row per run to a CSV file, once for each result of a run; what stands there stays.

    Returns:
        How many rows were added.
    """
    rows = [_ledger_row(run) for run in runs]
    known: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            known = list(csv.DictReader(file))
    there = {tuple(row[name] for name in ("run", "seed", "split", *SCORES)) for row in known}
    new = [row for row in rows if tuple(row[name] for name in ("run", "seed", "split", *SCORES)) not in there]
    if new:
        names = dict.fromkeys(name for row in [*known, *new] for name in row)
        write_text(path, _table([{name: row.get(name, "") for name in names} for row in [*known, *new]]))
    return len(new)


def _ledger_row(run: RunRecord) -> dict[str, str]:
    values = {
        "run": str(run.path.resolve()),
        "model": run.recipe["model"]["name"],
        "modalities": " + ".join(run.modalities),
        "seed": run.seed,
        "split": run.split[:12],
        **{name: run.scores["test"][name] for name in (*SCORES, "pixels", "unmapped")},
        **{name: run.scores.get(name) for name in COSTS},
        "landfuse": run.version,
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}
