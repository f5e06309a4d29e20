"""A place's table in one command: methods over seeds, on the official split and on one that does not leak, beside what
has been published.

Each method's recipe is trained with seeds 0 to n - 1 on both splits (`official` is the scene file's own), in
`runs/reproduce-PLACE/SPLIT/METHOD/seed-0`. Runs that have ended are not repeated. The block split is the same for all
methods: blocks of the side that the place's `published.yaml` names, with a buffer that keeps the largest view off other
roles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from landfuse import files
from landfuse.accuracy.bootstrap import SCORES
from landfuse.errors import MissingFileError, SettingsError
from landfuse.files import write_results
from landfuse.models import MODELS
from landfuse.scenes.benchmarks import place_folder, recipes
from landfuse.scenes.fetch import missing_files
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import BlocksSplit, TilesSplit
from landfuse.settings import Seed, Settings, parse, read_yaml
from landfuse.studies.ablation import named
from landfuse.studies.compare import Comparison, Spread, compare
from landfuse.studies.series import Member, members, train_series
from landfuse.studies.tables import save
from landfuse.training.recipe import Recipe, read_recipe

_PerCent = Annotated[float, Field(ge=0, le=100)]
PerCent = tuple[_PerCent] | tuple[_PerCent, _PerCent]
"""A mean, and a standard deviation where there is one."""


class BlockSplit(Settings):
    """The split that does not leak."""

    size: int = Field(default=32, ge=2, le=10**6, description="side of a block, px of the scene's grid")
    test: float = Field(default=0.5, gt=0, lt=1, description="fraction of the blocks that test")
    seed: Seed = Field(default=0, description="of the assignment of blocks to roles")


class PublishedFigure(Settings):
    """A result from a publication."""

    method: str = Field(description="its name")
    modalities: str = Field(default="", description="what it was trained on")
    split: Literal["official", "random", "blocks", "unknown"] = Field(default="official", description="of the pixels")
    scores: dict[Literal["OA", "AA", "kappa", "mF1", "mIoU"], PerCent] = Field(
        description="in per cent: mean, and standard deviation if there is one"
    )
    source: str = Field(description="the publication, with DOI or arXiv number")
    faults: str = Field(default="", description="of its protocol")
    verified: bool = Field(default=True, description="whether somebody of this project has read it there")


class PublishedSettings(Settings):
    """The keys of a `published.yaml`."""

    block_split: BlockSplit = Field(default=BlockSplit(), description="the split that does not leak")
    figures: tuple[PublishedFigure, ...] = Field(default=(), description="results that were published")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        modalities: what it was trained on.
        n: runs behind it; 0 where it is not reported.
        leak: fraction of test pixels whose view holds a training or validation pixel; None where it is not reported.
        scores: name -> mean and standard deviation, 0..1.
        source: `landfuse`, or where it was published.
        faults: of the protocol.
    """

    method: str
    modalities: str
    split: str
    n: int
    leak: float | None
    scores: dict[str, Spread]
    source: str = "landfuse"
    faults: str = ""


@dataclass
class Reproduction:
    """The table of a place: rows of ours by split, then the published ones; and notes on the splits."""

    place: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_published(folder: Path) -> PublishedSettings:
    """The `published.yaml` of a place; empty where there is none."""
    path = folder / "published.yaml"
    return parse(PublishedSettings, read_yaml(path), str(path)) if path.exists() else PublishedSettings()


def plan(
    place: str | Path,
    methods: Sequence[str],
    seeds: int,
    assignments: Iterable[str] = (),
    folder: str | Path | None = None,
) -> tuple[dict[str, dict[str, list[Member]]], list[str]]:
    """The runs of a reproduction, all of them checked: split -> method -> runs; and notes.

    Args:
        place: a place's name, or its folder.
        methods: names of recipes in that folder.
        seeds: how many; 0, 1, ... are taken.
        assignments: settings that win over every recipe. Without `split.fold` all folds of a split are taken.
        folder: of all runs; by default `runs/reproduce-PLACE`.

    Raises:
        SettingsError: if there is no such place or recipe, or a recipe is wrong.
        MissingFileError: if the data are not there.
    """
    home = place_folder(place)
    known = recipes(home)
    unknown = [name for name in methods if name not in known]
    if unknown or not methods or seeds < 1:
        raise SettingsError(
            f"{home} has no recipe {', '.join(unknown)}" if unknown else f"{len(methods)} methods and {seeds} seeds",
            f"some of {', '.join(known)}, and at least one seed",
            "correct `--methods` or `--seeds`",
        )
    file = read_scene_file(home)
    missing = missing_files(file)
    if missing:
        raise MissingFileError(
            f"the data of {file.settings.name} are not there: {', '.join(missing[:4])} of {file.root}",
            "all files of the scene file",
            f"landfuse fetch {place}",
        )
    folder = Path(folder or f"runs/reproduce-{home.name}")
    assignments = tuple(assignments)
    chosen = [read_recipe(known[name], assignments) for name in methods]
    splits, notes = _splits(file, chosen, read_published(home))
    own = chosen[0].split_of(file)
    folds = getattr(own, "folds", None)
    if folds and not any(one.startswith("split.fold=") for one in assignments):
        splits["official"] = splits["official"][0], range(folds)
    return {
        split: {
            name: members(
                known[name], [*assignments, *more, f"run={folder / split / name}"], seeds=range(seeds), folds=folds
            )
            for name in methods
        }
        for split, (more, folds) in splits.items()
    }, notes


def _splits(
    file: SceneFile, chosen: Sequence[Recipe], published: PublishedSettings
) -> tuple[dict[str, tuple[list[str], Sequence[int]]], list[str]]:
    """The splits by name, each as what it changes in a recipe and its folds; and notes."""
    own = chosen[0].split_of(file)
    if isinstance(own, TilesSplit):
        return {"official": ([], ())}, ["the official split is by whole tiles, so it is the only one"]
    block = published.block_split
    buffer = max(_reach(recipe) for recipe in chosen)
    if isinstance(own, BlocksSplit) and own.buffer >= buffer:
        return {"official": ([], ())}, ["the scene file's split is by blocks that do not leak, so it is the only one"]
    values = {"kind": "blocks", "buffer": buffer, **block.model_dump()}
    note = f"blocks: squares of {block.size} px, {buffer} px without a role around those that test or validate"
    return {"official": ([], ()), "blocks": ([f"split={json.dumps(values)}"], ())}, [note]


def _reach(recipe: Recipe) -> int:
    """Pixels beyond a test pixel that a model may see from: halo + core - 1."""
    config = {key: value for key, value in recipe.model.items() if key != "name"}
    settings: Any = parse(MODELS[str(recipe.model["name"])].Settings, config, "the model")
    view = getattr(settings, "view", 1)
    core = getattr(settings, "core", 1) or view
    return int((view + core) // 2 - 1)


def reproduce(
    place: str | Path,
    methods: Sequence[str] = ("forest", "two_branch"),
    seeds: int = 5,
    assignments: Iterable[str] = (),
    folder: str | Path | None = None,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Reproduction:
    """Trains what has not ended, and makes the table; arguments as in `plan`.

    Args:
        overwrite: replace files of other kinds.
        report: called with a line for each run that starts.

    Returns:
        The table; the folder gets it as `table.md` and `table.json`, beside the comparisons of both splits.

    Raises:
        LandfuseError: if something is wrong, or a run fails. The same call continues.
    """
    home = place_folder(place)
    folder = Path(folder or f"runs/reproduce-{home.name}")
    splits, notes = plan(place, methods, seeds, assignments, folder)
    result = Reproduction(home.name, notes=notes)
    known = recipes(home)
    for split, runs in splits.items():
        for name, own in runs.items():
            report(f"{split} split, {name}")
            train_series(known[name], own, quiet=quiet, report=report)
        comparison = named(compare([one.run for own in runs.values() for one in own]), runs)
        save(comparison, folder / split, overwrite=overwrite)
        result.rows += _ours(comparison, split)
        result.notes += [f"{split}: {note}" for note in comparison.notes]
    result.rows += [_row(figure) for figure in read_published(home).figures]
    write_results({folder / "table.json": to_json(result), folder / "table.md": to_markdown(result)}, overwrite)
    return result


def _ours(comparison: Comparison, split: str) -> list[Row]:
    return [
        Row(
            one.name,
            " + ".join(one.runs[0].modalities),
            split,
            len(one.runs),
            one.costs["leak_fraction"].mean,
            dict(one.scores),
        )
        for one in comparison.recipes
    ]


def _row(figure: PublishedFigure) -> Row:
    nothing = Spread(float("nan"), float("nan"), 0)
    published = {
        name: Spread(value[0] / 100, value[1] / 100 if len(value) > 1 else float("nan"), 1)
        for name, value in figure.scores.items()
    }
    scores = {name: published.get(name, nothing) for name in SCORES}  # type: ignore[call-overload]
    source = figure.source if figure.verified else f"{figure.source} (not verified)"
    return Row(figure.method, figure.modalities, figure.split, 0, None, scores, source, figure.faults)


def cell(value: Spread) -> str:
    """Mean ± standard deviation in per cent; a dash for none."""
    if value.mean != value.mean:
        return "–"
    return f"{100 * value.mean:.2f}" + (f" ± {100 * value.std:.2f}" if value.std == value.std else "")


def to_json(result: Reproduction) -> str:
    """The table as JSON; what is not defined is null."""
    rows = [
        {
            **{key: getattr(row, key) for key in ("method", "modalities", "split", "n", "leak", "source", "faults")},
            "scores": {name: {"mean": value.mean, "std": value.std} for name, value in row.scores.items()},
        }
        for row in result.rows
    ]
    return files.to_json({"place": result.place, "rows": rows, "notes": result.notes})


def to_markdown(result: Reproduction) -> str:
    """The table as Markdown."""
    head = ["method", "modalities", "split", "n", "leak", *SCORES, "source", "faults of the protocol"]
    lines = [f"# {result.place}", "", "Scores in per cent, mean ± standard deviation over n runs.", ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in result.rows:
        leak = "–" if row.leak is None else f"{100 * row.leak:.1f} %"
        cells = [row.method, row.modalities, row.split, str(row.n or "–"), leak]
        cells += [*(cell(row.scores[name]) for name in SCORES), row.source, row.faults]
        lines.append(f"| {' | '.join(text.replace('|', '/') for text in cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in result.notes)]) + "\n"
