"""Labels that are probably wrong: each polygon, or piece of a labelled raster, judged by models that learnt elsewhere.

The labels are dealt into folds by whole polygons, tiles or blocks of ground. A model is trained on all folds but one,
and gives the probabilities of the labels in that one: no label is judged by what learnt from it or beside it.
Their means over the pixels of a polygon are ranked, and judged by confident learning. No label is changed.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.confident_learning import joint_counts, margins, probably_wrong, self_confidence
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.calibration import probabilities_of
from landfuse.errors import OutputError, SceneError, SettingsError, SplitError, few
from landfuse.figures.label_sheet import label_sheet
from landfuse.files import not_ours, to_csv, write_text
from landfuse.legend import UNLABELLED
from landfuse.mapping.settings import MapOptions
from landfuse.progress import bars
from landfuse.rasters.polygons import write_shapes
from landfuse.rasters.vector_map import number_patches, outlines
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file
from landfuse.scenes.split_rules import TEST, TRAIN, BlocksSplit, BufferedSplit, PolygonsSplit, TilesSplit
from landfuse.scenes.split_search import search, searchable
from landfuse.scenes.splits import assign
from landfuse.settings import parse
from landfuse.training.recipe import ARRAYS, Recipe, merged_split, read_recipe
from landfuse.training.train import Take, score_role, train_on
from landfuse.training.training_data import TrainingData

log = logging.getLogger("landfuse")

FILES = ("labels.csv", "labels.gpkg", "labels.html")
"""What an audit writes into its folder."""

_MOST_FOLDS = 200


@dataclass(frozen=True)
class AuditedLabel:
    """A polygon, or a piece of a labelled raster: a connected region of one class within a block of ground.

    Args:
        rank: from 1, the most doubtful first.
        tile: in which it lies; the first one of several.
        label: its number.
        given: the class of the label.
        suggested: the most probable class.
        score: mean probability of the given class, by which labels are ranked.
        margin: how far the given class is above the best other one, 0 to 1; below 0.5 it is not.
        doubtful: whether confident learning counts it as of another class.
        pixels: that were judged.
        disagree: the fraction of them whose most probable class is another one.
    """

    rank: int
    tile: str
    label: int
    given: str
    suggested: str
    score: float
    margin: float
    doubtful: bool
    pixels: int
    disagree: float


@dataclass(frozen=True)
class LabelAudit:
    """The labels of a scene, the most doubtful first.

    Args:
        rows: all that were judged.
        joint: (K given, K confident) counts of labels.
        notes: what was not judged, and why.
        scenes: the tiles.
        numbers: of each tile, which label each pixel is of, (H, W), 0 for none.
        lowest: the smallest probability of the given class at a pixel, for each of `rows`.
    """

    rows: tuple[AuditedLabel, ...]
    joint: NDArray[np.int64]
    notes: tuple[str, ...]
    scenes: Sequence[Scene]
    numbers: Sequence[NDArray[np.int32]]
    lowest: NDArray[np.float64]

    @property
    def doubtful(self) -> int:
        """How many labels confident learning counts as of another class."""
        return sum(row.doubtful for row in self.rows)

    def save(self, folder: str | Path, *, pictures: int = 100, overwrite: bool = False) -> list[Path]:
        """Writes `labels.csv`, `labels.gpkg` with the outlines, and `labels.html` with pictures of the first.

        Args:
            folder: made if need be.
            pictures: labels on the page.
            overwrite: replace what is there.

        Raises:
            OutputError: if one of them is there, or cannot be written.
        """
        csv, gpkg, html = check_output(folder, overwrite)
        grids = [scene.grid for scene in self.scenes]
        shapes = outlines(self.numbers, grids)
        page = label_sheet(self.rows[:pictures], len(self.rows), self.scenes, self.numbers)
        rows = []
        for row in self.rows:
            middle = shapes[row.label].representative_point()
            rows.append({**asdict(row), "x": middle.x, "y": middle.y})
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        write_shapes(gpkg, [shapes[row.label] for row in self.rows], columns, grids[0].crs)
        write_text(csv, to_csv(rows))
        write_text(html, page)
        return [csv, gpkg, html]


def check_output(folder: str | Path, overwrite: bool) -> list[Path]:
    """The files of an audit in a folder.

    Raises:
        OutputError: if one of them is there, and `overwrite` is not set.
    """
    paths = [Path(folder) / name for name in FILES]
    for path in paths:
        if path.exists() and not overwrite:
            raise not_ours(path, "of another audit, or somebody's own")
    return paths


def audit(
    scene: str | Path | Scene | Sequence[Scene],
    recipe: str | Path | Recipe | None = None,
    *,
    folds: int = 5,
    side: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LabelAudit:
    """Ranks the labels of a scene by how probably they are wrong. Changes none.

    Args:
        scene: a scene file, or opened tiles, with labels of two classes or more.
        recipe: names the model and how it is trained; by default a random forest. Its own scene is not used.
        folds: models that are trained, each on the other folds' labels.
        side: of the blocks of ground by which labelled regions are cut, px, where labels are no polygons.
        folder: where the models of finished folds are kept until all are, so that the same call goes on after an
            interruption; by default none is kept.
        progress: show progress bars.

    Raises:
        SettingsError: if there are fewer than 2 folds, or a block has no pixel.
        SceneError: if there are no labels, or all are of one class.
        SplitError: if the labels lie in fewer polygons, tiles or blocks than there are folds.
        LandfuseError: whatever else is wrong with scene or recipe.

    Examples:
        >>> audit = lf.audit("scene.yaml", folds=2, progress=False)
        >>> audit.rows[0].rank, audit.rows[0].tile, len(audit.rows) > 10
        (1, 'chequers', True)
    """
    if not 2 <= folds <= _MOST_FOLDS or side < 1:
        expected = f"from 2 to {_MOST_FOLDS} folds, and a side of at least 1 px"
        raise SettingsError(f"{folds} folds, and blocks of {side} px", expected, "correct them")
    file = read_scene_file(scene) if isinstance(scene, str | Path) else None
    own = recipe if isinstance(recipe, Recipe) else read_recipe(recipe) if recipe is not None else None
    known = own or parse(Recipe, {"scene": f"{ARRAYS}labels", "model": "forest"}, "the baseline")
    if file is not None:
        known.check_modalities(list(file.settings.modalities), str(file.path))
        scenes = file.scenes(known.modalities)
        known = known.model_copy(update={"scene": str(file.path.resolve())})
    else:
        scenes = [scene] if isinstance(scene, Scene) else list(scene)  # type: ignore[arg-type]
    scenes = [replace(one, read_first=None) for one in scenes]  # those that came later are judged too
    kinds = {int(kind) for one in scenes for kind in np.unique(one.labels)} - {UNLABELLED}
    if len(kinds) < 2:
        raise SceneError(
            "all labels are of one class" if kinds else "no pixel is labelled",
            "labels of two classes or more, of which one may be wrong for the other",
            "label more places",
        )
    split = _in_folds(
        scenes, merged_split(file.settings.split if file else None, known.split), folds, side, own is None
    )
    fold_of = [np.full(one.labels.shape, UNLABELLED, np.uint8) for one in scenes]
    dealt = [assign(scenes, split.model_copy(update={"fold": fold})) for fold in range(folds)]
    for fold, roles in enumerate(dealt):
        for here, role in zip(fold_of, roles, strict=True):
            here[role == TEST] = fold
    numbers = _numbered(scenes, fold_of, folds, side)
    tallies = _Tallies(scenes, numbers)
    with tempfile.TemporaryDirectory() as spare:
        place = Path(folder or spare) / "folds"
        for fold, roles in enumerate(dealt):
            log.info("fold %d of %d", fold + 1, folds)
            data = TrainingData(scenes, roles, scenes[0].legend, split)
            values = {"run": str(place / str(fold)), "split": {**split.model_dump(exclude_unset=True), "fold": fold}}
            learns = known.training.model_copy(update={"use": "train"})
            one = known.model_copy(update={**values, "training": learns})
            try:
                train_on(one, partial(_same, data), progress=progress)
            except OutputError as error:
                raise OutputError(error.found, error.expected, f"remove {place}, or choose another folder") from None
            tallies.add(load_bundle(place / str(fold)), data, one.mapping, progress)
        shutil.rmtree(place, ignore_errors=True)
    return tallies.ranked()


def _same(data: TrainingData, recipe: Recipe) -> TrainingData:
    return data


def _in_folds(scenes: Sequence[Scene], split: Any, folds: int, side: int, quick: bool) -> Any:
    """The scene's own way to deal labels out, in folds; for other splits by polygons, or blocks that serve all classes.

    Args:
        side: of blocks at least: smaller ones would let labels be judged by what lies beside them.
        quick: the baseline, which needs no validation.
    """
    changes: dict[str, Any] = {"folds": folds, "fold": 0, "calibration": 0.0} | ({"validation": 0.0} if quick else {})
    if not isinstance(split, TilesSplit) and all(scene.read_polygons is not None for scene in scenes):
        buffer = split.buffer if isinstance(split, BufferedSplit) else 0
        split = PolygonsSplit(kind="polygons", buffer=buffer)  # a polygon that is cut would judge itself
    elif not searchable(split):
        found = search(scenes, BlocksSplit(kind="blocks", size=2, **changes)).split
        if found is None:
            raise SplitError(
                f"the labels lie in fewer than {folds} blocks of ground, one for each fold",
                f"labels in {folds} places or more",
                "use fewer folds, or label more places",
            )
        return found.model_copy(update={"size": max(2, side, found.size)})
    return split.model_copy(update=changes)


def _numbered(
    scenes: Sequence[Scene], fold_of: Sequence[NDArray[np.uint8]], folds: int, side: int
) -> list[NDArray[np.int32]]:
    """Which label each pixel is of, from 1, over all tiles; 0 for none."""
    keys = []
    for scene, fold in zip(scenes, fold_of, strict=True):
        if scene.read_polygons is not None:
            keys.append(scene.read_polygons())
            continue
        rows, cols = (np.arange(length) // side for length in scene.labels.shape)
        places = rows[:, None] * (1 + cols[-1]) + cols
        patches = number_patches(scene.labels)[0].astype(np.int64)
        keys.append((patches * folds + np.minimum(fold, folds - 1)) * (1 + places[-1, -1]) + places)
    numbers, last = [], 0
    shared = all(scene.read_polygons is not None for scene in scenes)
    known = [scene.labels != UNLABELLED for scene in scenes]
    every = np.unique(np.concatenate([np.unique(key[here]) for key, here in zip(keys, known, strict=True)]))
    for key, here in zip(keys, known, strict=True):
        found = every if shared else np.unique(key[here])
        numbers.append(np.where(here, 1 + last + np.searchsorted(found, key), 0).astype(np.int32))
        last += 0 if shared else len(found)
    return numbers


class _Tallies:
    """What the models of all folds say of each label, added up over its pixels."""

    def __init__(self, scenes: Sequence[Scene], numbers: Sequence[NDArray[np.int32]]) -> None:
        self.scenes, self.numbers, self.legend = scenes, numbers, scenes[0].legend
        count = 1 + max(int(here.max()) for here in numbers)
        self.given = np.zeros(count, np.int64)
        self.tile = np.zeros(count, np.int64)
        for place, (scene, here) in reversed(list(enumerate(zip(scenes, numbers, strict=True)))):
            self.given[here] = scene.labels
            self.tile[here] = place
        self.sums = np.zeros((count, len(self.legend)))
        self.pixels, self.differing = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.lowest = np.ones(count)

    def add(self, classifier: Bundle, data: TrainingData, options: MapOptions, progress: bool) -> None:
        """Adds the test pixels of a fold whose class the model has learnt."""
        learnt = data.classes(TRAIN)

        def watch(logits: NDArray[np.float32], truth: NDArray[np.uint8], take: Take) -> None:
            known = np.isin(truth, learnt)
            found = probabilities_of(logits[known].T, classifier.temperature).T
            here, own = take(self.numbers)[known], truth[known]
            np.add.at(self.sums, here, found)
            np.add.at(self.pixels, here, 1)
            np.add.at(self.differing, here, found.argmax(axis=1) != own)
            np.minimum.at(self.lowest, here, found[np.arange(len(own)), own])

        with bars(not progress) as meter:
            score_role(classifier, data, TEST, options, watch, partial(meter, "judging"))

    def ranked(self) -> LabelAudit:
        """All labels that were judged, the most doubtful first."""
        judged = np.flatnonzero(self.pixels)
        if not judged.size:
            raise SceneError(
                "no label can be judged", "labels where the images have data", "check nodata and the split"
            )
        given, means = self.given[judged], self.sums[judged] / self.pixels[judged, None]
        scores, between, doubtful = self_confidence(given, means), margins(given, means), probably_wrong(given, means)
        order = np.lexsort((judged, between, scores))
        names = self.legend.names
        rows = [
            AuditedLabel(
                rank,
                self.scenes[self.tile[label]].name,
                int(label),
                names[self.given[label]],
                names[int(means[place].argmax())],
                float(scores[place]),
                float(between[place]),
                bool(doubtful[place]),
                int(self.pixels[label]),
                float(self.differing[label] / self.pixels[label]),
            )
            for rank, place in enumerate(order.tolist(), 1)
            for label in [judged[place]]
        ]
        notes = []
        left = np.unique(np.concatenate([np.unique(here) for here in self.numbers]))
        left = left[(left > 0) & (self.pixels[left] == 0)]
        if left.size:
            kinds = sorted({names[kind] for kind in self.given[left].tolist()})
            notes.append(
                f"{left.size:,} labels are not judged, of {few(kinds)}: the images have no data there, or the class is "
                "in no other fold"
            )
        return LabelAudit(
            tuple(rows), joint_counts(given, means), tuple(notes), self.scenes, self.numbers, self.lowest[judged[order]]
        )
