"""What each modality gives: one trained model with one modality withheld, beside models that were trained without it.

A modality can be withheld from a trained model in two ways. Its training mean can stand in, which asks how far the
model relies on it; a model that was never without it may then fail, and the loss describes the model more than
the modality. If it was trained with `samples.modality_dropout`, its placeholder can stand in, which is how it would map
a scene without that modality. The worth of a modality shows in a model that was trained without it.

All rows are scored on the same pixels: the test pixels that the model maps when nothing is withheld.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.bootstrap import SCORES
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import Tally
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import ModelError, SettingsError
from landfuse.files import to_csv, to_json, write_text
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import TEST, RolesSplit
from landfuse.training.recipe import read_recipe
from landfuse.training.run import Run, find_runs, read_run
from landfuse.training.training_data import TrainingData

How = Literal["all", "mean", "placeholder", "trained without"]


@dataclass(frozen=True)
class ModalityRow:
    """One row of the table.

    Args:
        how: `all` (nothing withheld), `mean` or `placeholder` (what stands in), or `trained without`.
        withheld: the modalities that the model lacked.
        seen: those that it had.
        run: the run that was trained without them.
        scores: OA, AA, kappa, mF1, mIoU, unmapped and pixels; NaN where not defined.
        f1: of each class.
    """

    how: How
    withheld: tuple[str, ...]
    seen: tuple[str, ...]
    run: str | None
    scores: dict[str, float]
    f1: dict[str, float]


@dataclass(frozen=True)
class ModalityTable:
    """The rows of one run, `all` first, and notes on runs that were skipped."""

    run: Path
    rows: tuple[ModalityRow, ...]
    notes: tuple[str, ...]

    def difference(self, row: ModalityRow, score: str) -> float:
        """A row's score less that of the whole model."""
        return row.scores[score] - self.rows[0].scores[score]

    def save(self) -> Path:
        """Writes `modalities.json` and `modalities.csv` into the run folder; returns the path of the former.

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
                "differences": {score: self.difference(row, score) for score in SCORES},
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
                **{f"{score}_difference": self.difference(row, score) for score in SCORES},
                **{f"F1 {name}": value for name, value in row.f1.items()},
            }
            for row in self.rows
        ]
        write_text(self.run / "modalities.csv", to_csv(flat))
        write_text(self.run / "modalities.json", to_json({"role": "test", "rows": rows, "notes": self.notes}))
        return self.run / "modalities.json"


def modality_table(
    run: str | Path,
    alone: Iterable[str | Path] = (),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModalityTable:
    """Withholds each modality from a run's model, one at a time, and scores it on the run's test pixels.

    Args:
        run: a finished run.
        alone: runs, or folders of runs, among which are those of the same model, split and seed that were trained with
            fewer modalities.
        progress: called with (maps done, in all); a map is a tile in one of the rows.

    Raises:
        MissingFileError: if the run has not ended.
        ModelError: if its model has one modality only.
        SettingsError: if none of `alone` fits.
    """
    run = Path(run)
    record = read_run(run)
    classifier = load_bundle(run)
    names = list(classifier.description.modalities)
    if len(names) < 2:
        raise ModelError(f"the model of {run} has one modality, `{names[0]}`", "two or more", "choose another run")
    trained, notes = _trained_without(record, alone)
    data = _test_data(run)
    truths = data.targets(TEST)
    ways: list[tuple[How, str | None]] = [("all", None)]
    for name in names:
        ways += [("mean", name), *([("placeholder", name)] if name in classifier.droppable else [])]  # type: ignore[list-item]
    rows: list[ModalityRow] = []
    for number, (how, withheld) in enumerate(ways):

        def advance(done: int, before: int = number * len(truths)) -> None:
            progress(before + done, len(ways) * len(truths))

        confusion = _score(classifier, data.scenes, truths, withheld, how, advance)
        seen = tuple(name for name in names if name != withheld)
        f1 = dict(zip(data.legend.names, confusion.f1.tolist(), strict=True))
        rows.append(ModalityRow(how, (withheld,) if withheld else (), seen, None, confusion.scores(), f1))
    for other in trained:
        rows.append(
            ModalityRow(
                "trained without",
                tuple(name for name in names if name not in other.modalities),
                other.modalities,
                str(other.folder),
                {key: math.nan if value is None else value for key, value in other.scores["test"].items()},
                {row["class"]: math.nan if row["F1"] is None else row["F1"] for row in other.scores["classes"]},
            )
        )
        if other.scores["test"]["pixels"] != rows[0].scores["pixels"]:
            notes.append(f"{other.folder} was scored on other test pixels, where its own modalities have data")
    return ModalityTable(run, tuple(rows), tuple(notes))


def _test_data(run: Path) -> TrainingData:
    """The scenes of a run, and the roles that it wrote down."""
    recipe = read_recipe(run / "recipe.json")
    file = recipe.read_scene()
    scenes = file.scenes(recipe.modalities)
    written = RolesSplit(kind="roles", path=str((run / "split").resolve() / "{tile}.tif"))
    return TrainingData(scenes, file.roles(scenes, written), file.legend)


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


def _score(
    classifier: Bundle,
    scenes: Sequence[Scene],
    truths: list[NDArray[np.uint8]],
    withheld: str | None,
    how: How,
    advance: Callable[[int], None],
) -> Confusion:
    """Scores the model without one modality; with nothing withheld, also takes unmapped pixels out of the truths."""
    missing = () if withheld is None else (withheld,)
    mean_for = missing if how == "mean" else ()

    def parts() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        for number, (scene, truth) in enumerate(zip(scenes, truths, strict=True)):
            wanted = truth != UNLABELLED
            if wanted.any():
                for part in map_blocks(classifier, scene, wanted=wanted, withheld=missing, mean_for=mean_for):
                    inside = part.window.within(scene.grid.window)
                    yield truth[inside], part.classes
                    if withheld is None:
                        truth[inside][part.classes == UNLABELLED] = UNLABELLED
            advance(number + 1)

    return Tally(classifier.legend).score(parts())
