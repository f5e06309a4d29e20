"""What each modality and each part of the year give: one trained model with one of them withheld, beside models that
were trained without a modality.

A modality can be withheld from a trained model in two ways. Its training mean can stand in, which asks how far the
model relies on it; a model that was never without it may then fail, and the loss describes the model more than
the modality. If it was trained with `samples.modality_dropout`, its placeholder can stand in, which is how it would map
a scene without that modality. The worth of a modality shows in a model that was trained without it.

Of a modality with dates each quarter of the year is withheld too, as if it had been cloudy all the time: from models
that take gaps as they are, and from those that learnt to, by `samples.date_dropout`.

All rows are scored on the same pixels: the test pixels that the model maps when nothing is withheld.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.bootstrap import SCORES, Interval, difference_intervals
from landfuse.accuracy.evaluate import Tally
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import ModelError, SettingsError
from landfuse.figures import figures
from landfuse.files import to_csv, to_json, write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.mapping.engine import map_array
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TEST
from landfuse.series.dates import seasons_of
from landfuse.training.recipe import read_recipe
from landfuse.training.run import Run, find_runs, read_run, saw
from landfuse.training.training_data import TrainingData

_NONE = Interval(math.nan, math.nan, math.nan)

How = Literal["all", "mean", "placeholder", "without", "trained without"]


@dataclass(frozen=True)
class ModalityRow:
    """One row of the table.

    Args:
        how: `all` (nothing withheld), `mean` or `placeholder` (what stands in), `without` (part of the year), or
            `trained without`.
        withheld: the modalities that the model lacked, or the part of the year of one.
        seen: those that it had.
        run: the run that was trained without them.
        scores: OA, AA, kappa, mF1, mIoU, unmapped and pixels; NaN where not defined.
        f1: of each class.
        differences: its scores less those of the whole model, on the pixels that have a class in both maps, with 95%
            intervals from blocks of ground; of the whole model itself none.
    """

    how: How
    withheld: tuple[str, ...]
    seen: tuple[str, ...]
    run: str | None
    scores: dict[str, float]
    f1: dict[str, float]
    differences: dict[str, Interval]


@dataclass(frozen=True)
class ModalityTable:
    """The rows of one run, `all` first, and notes on runs that were skipped."""

    run: Path
    rows: tuple[ModalityRow, ...]
    notes: tuple[str, ...]

    def save(self) -> Path:
        """Writes `modalities.json`, `.csv` and a picture, `.png`, into the run folder; returns the path of the first.

        Raises:
            OutputError: if they cannot be written.
        """
        rows = [
            {
                "how": row.how,
                "withheld": row.withheld,
                "seen": row.seen,
                "run": row.run,
                "scores": row.scores,
                "differences": {score: one.value for score, one in row.differences.items()},
                "intervals": {score: (one.low, one.high) for score, one in row.differences.items()},
                "F1": row.f1,
            }
            for row in self.rows
        ]
        flat = [
            {
                "how": row.how,
                "withheld": " + ".join(row.withheld),
                "seen": " + ".join(row.seen),
                "run": row.run,
                **row.scores,
                **{
                    f"{score}_difference{end}": value
                    for score in SCORES
                    for end, value in zip(
                        ("", "_low", "_high"), astuple(row.differences.get(score, _NONE)), strict=True
                    )
                },
                **{f"F1 {name}": value for name, value in row.f1.items()},
            }
            for row in self.rows
        ]
        differences = {
            saw(row.how, row.seen, row.withheld) + (f" ({Path(row.run).name})" if row.run else ""): row.differences
            for row in self.rows
            if row.how != "all"
        }
        title = f"Difference to {saw('all', self.rows[0].seen, ())} on the test split, with its 95% interval"
        figures.save(figures.forest_figure(differences, title), self.run / "modalities.png")
        write_text(self.run / "modalities.csv", to_csv(flat))
        write_text(self.run / "modalities.json", to_json({"role": "test", "rows": rows, "notes": self.notes}))
        return self.run / "modalities.json"


def modality_table(
    run: str | Path,
    alone: Iterable[str | Path] = (),
    *,
    block: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModalityTable:
    """Withholds each modality, and each part of the year, from a run's model and scores it on the run's test pixels.

    Args:
        alone: runs, or folders of runs, among which are those of the same model, split and seed that were trained with
            fewer modalities.
        block: side of the blocks of ground that the intervals come from, px.
        progress: called with (maps done, in all); a map is a tile in one of the rows.

    Raises:
        MissingFileError: if the run has not ended.
        ModelError: if its model has one modality only, and no part of the year can be withheld.
        SettingsError: if none of `alone` fits.
    """
    run = Path(run)
    record = read_run(run)
    if record.cross_validated:
        raise SettingsError(
            f"the model of {run} learnt from all labels", "a run with test pixels", "name a run with training.use=train"
        )
    classifier = load_bundle(run)
    names = list(classifier.description.modalities)
    parts, unable = _parts_of_the_year(record, classifier)
    if len(names) < 2 and not parts:
        raise ModelError(
            f"the model of {run} has one modality, `{names[0]}`",
            "two or more, or dates",
            "; ".join(unable) or "choose another run",
        )
    trained, notes = _trained_without(record, alone)
    data = test_data(run)
    truths = data.targets(TEST)
    ways: list[tuple[How, str | None, Run | None]] = [("all", None, None)]
    for name in names if len(names) > 1 else ():
        ways.append(("mean", name, None))
        if name in classifier.droppable:
            ways.append(("placeholder", name, None))
    ways += [("without", part, None) for part in parts]
    ways += [("trained without", None, other) for other in trained]
    rows: list[ModalityRow] = []
    whole: list[NDArray[np.uint8]] = []
    for number, (how, withheld, other) in enumerate(ways):

        def advance(done: int, before: int = number * len(truths)) -> None:
            progress(before + done, len(ways) * len(truths))

        bundle = classifier if other is None else load_bundle(other.folder)
        scenes = data.scenes
        if how == "without":
            scenes = [_without(scene, *parts[str(withheld)]) for scene in scenes]
        maps = _maps(bundle, scenes, truths, withheld, how, advance)
        confusion = Tally(data.legend).score(zip(truths, maps, strict=True))
        if how == "all":
            whole = maps
            for truth, mapped in zip(truths, maps, strict=True):
                truth[mapped == UNLABELLED] = UNLABELLED  # the others are scored where the whole model has a class
        seen = tuple(name for name in names if name != withheld) if other is None else other.modalities
        rows.append(
            ModalityRow(
                how,
                (str(withheld),) if how == "without" else tuple(name for name in names if name not in seen),
                seen,
                None if other is None else str(other.folder),
                confusion.scores(),
                dict(zip(data.legend.names, confusion.f1.tolist(), strict=True)),
                {} if how == "all" else _differences(data.legend, truths, maps, whole, block),
            )
        )
    return ModalityTable(run, tuple(rows), (*notes, *unable))


def _parts_of_the_year(record: Run, classifier: Bundle) -> tuple[dict[str, tuple[str, tuple[str, ...]]], list[str]]:
    """What can be withheld of modalities with dates: part, in words -> modality and periods; and why others cannot."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    notes: list[str] = []
    able = classifier.model.takes_dropped or record.recipe["samples"].get("date_dropout")
    for name, info in classifier.description.modalities.items():
        seasons = seasons_of(info.steps)
        if len(seasons) > 1 and not able:
            notes.append(
                f"no part of the year of `{name}` is withheld: `{classifier.spec.name}` has not learnt to do without; "
                "train it with samples.date_dropout, or train `temporal`"
            )
        elif len(seasons) > 1:
            found |= {f"{name} of {season}": (name, periods) for season, periods in seasons.items()}
    return found, notes


def _without(scene: Scene, name: str, periods: Sequence[str]) -> Scene:
    """A scene without some periods of a modality."""
    part = scene.modalities[name]
    return scene.with_modalities({name: replace(part, raster=cast(Any, part.raster).without(periods))})


def test_data(run: Path) -> TrainingData:
    """The scenes of a run, and the roles that it wrote down."""
    recipe = read_recipe(run / "recipe.json")
    file = recipe.read_scene()
    scenes = file.scenes(recipe.modalities)
    return TrainingData(scenes, file.written_roles(scenes, run / "split"), file.legend)


def _trained_without(record: Run, paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs with fewer modalities that match this one, and a note on the others."""
    paths = list(paths)
    found = [read_run(path) for path in find_runs(paths)[0]]
    fits = [
        other
        for other in found
        if set(other.modalities) < set(record.modalities)
        and (other.key, other.legend, other.unscored) == (record.key, record.legend, record.unscored)
        and other.recipe["model"]["name"] == record.recipe["model"]["name"]
    ]
    if paths and not fits:
        raise SettingsError(
            f"none of {len(found)} runs was trained with fewer modalities than {record.folder}, and otherwise like it",
            f"runs of `{record.recipe['model']['name']}` with the same split and seed, e.g. with "
            f"`modalities=[{record.modalities[0]}]`",
            "train them, or leave --alone out",
        )
    left = len(found) - len(fits)
    return fits, [f"{left} other runs of --alone were skipped: not of this model, split and seed"] if left else []


def _maps(
    classifier: Bundle,
    scenes: Sequence[Scene],
    truths: list[NDArray[np.uint8]],
    withheld: str | None,
    how: How,
    advance: Callable[[int], None],
) -> list[NDArray[np.uint8]]:
    """The maps of the tiles, (H, W) classes each, where their truth is labelled, by a model without one modality."""
    missing = () if withheld is None or how == "without" else (withheld,)
    maps = []
    for number, (scene, truth) in enumerate(zip(scenes, truths, strict=True)):
        wanted = truth != UNLABELLED
        options = {"wanted": wanted, "withheld": missing, "mean_for": missing if how == "mean" else ()}
        maps.append(map_array(classifier, scene, **options) if wanted.any() else truth)
        advance(number + 1)
    return maps


def _differences(
    legend: Legend,
    truths: Sequence[NDArray[np.uint8]],
    maps: Sequence[NDArray[np.uint8]],
    whole: Sequence[NDArray[np.uint8]],
    block: int,
) -> dict[str, Interval]:
    """The scores of maps less those of the whole model, on the pixels that have a class in both."""
    pair = Tally(legend, block), Tally(legend, block)
    for truth, mapped, other in zip(truths, maps, whole, strict=True):
        common = np.where(mapped == UNLABELLED, UNLABELLED, truth).astype(np.uint8)
        pair[0].add(common, mapped)
        pair[1].add(common, other)
    first, second = (one.blocks for one in pair)
    return difference_intervals(first, second, 2000 if len(first) > 1 else 0, scored=legend.scored).scores
