"""Training: a recipe becomes a run folder with a bundle, its scores and how they came about.

The run folder holds `bundle/`, `recipe.json` (resolved), `scores.json`, `confusion.csv`, `environment.json`,
`inputs.json` (digests of what it learnt from), `split/` (roles per tile), `metrics.csv`, `curves.png`,
`reliability.png`, `tensorboard/`, and, until the run ends, `checkpoints/` to go on from.
The test split is read once, at the end.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from landfuse.accuracy.applicability import Applicability, ErrorsByDissimilarity
from landfuse.accuracy.conformal import BlockSample, ClassSets, coverage_of, without_fold
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import Tally
from landfuse.accuracy.reliability import Reliability
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.calibration import LogitSample, fit_temperature, probabilities_of
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.settings import PredictorOptions
from landfuse.diffusion.features import DiffusionFeatures, compute_features
from landfuse.errors import SettingsError, SplitError
from landfuse.figures.figures import curves_figure, reliability_figure, save
from landfuse.files import to_json, write_text
from landfuse.kernels.gpu import default_device
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.mapping.locks import held
from landfuse.mapping.settings import MapOptions
from landfuse.models.base import DirectFit
from landfuse.progress import Meter, bars
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.leaks import leak_fraction, learnt_ground, polygon_leak_fraction
from landfuse.scenes.split_rules import CALIBRATION, TEST, TRAIN, VALIDATION
from landfuse.scenes.splits import all_train, block_numbers, roles_digest
from landfuse.training.fit import fit
from landfuse.training.pretrain import facts_of, pretrain
from landfuse.training.recipe import ARRAYS, Recipe, read_recipe
from landfuse.training.run import Run, claim, clear, environment, peak_memory, read_history, read_run, release, remember
from landfuse.training.samples import Samples, WindowSampler, dropout_of, loader
from landfuse.training.training_data import TrainingData, fit_maps, read_training_data
from landfuse.views.store import Store

log = logging.getLogger("landfuse")


def train(recipe: Recipe | str | Path, *assignments: str, progress: bool = True, restart: bool = False) -> Bundle:
    """Trains what a recipe says, or goes on where it was interrupted.

    Args:
        recipe: a recipe, or the path of one.
        assignments: `key.sub=value`, for a path.
        progress: show progress bars.
        restart: delete the run that the folder holds, and train again.

    Returns:
        The classifier of the best epoch; a run that ended before is loaded, not repeated.

    Raises:
        LandfuseError: whatever is wrong with recipe, scene, split or output.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe, assignments)
    elif assignments:
        raise SettingsError("assignments go with the path of a recipe", "a path", "use read_recipe(path, assignments)")
    return train_on(recipe, read_training_data, progress=progress, restart=restart)


def train_on(
    recipe: Recipe, read: Callable[[Recipe], TrainingData], *, progress: bool = True, restart: bool = False
) -> Bundle:
    """Trains on data that need no scene file; the rest as in `train`.

    Args:
        recipe: with a `run`, which no other process may be training.
        read: opens the data of the recipe, or of the same with another fold.
    """
    run = Path(recipe.run or "runs/unnamed")
    # A process of several but the first one, which holds the run.
    further = bool(getattr(rank_zero_only, "rank", 0)) or os.environ.get("NODE_RANK", "0") != "0"
    with ExitStack() as stack:
        if not further and (restart or not (run / "scores.json").exists()):
            stack.enter_context(held(run, "training"))
        if restart and not further:
            clear(run)
        claimed = claim(run, recipe)
        if (run / "scores.json").exists():
            check_data(recipe, run, read)
            log.warning("%s has ended before; its bundle is loaded. Choose another run=... to train again", run)
            return load_bundle(run / "bundle")
        try:
            data = read(recipe)
            remember(run, data.digests(recipe.pretrain is not None))
            folds = None
            if recipe.training.use == "all":
                folds = _train_folds(recipe, data, read, run, progress)
                data = replace(data, roles=[all_train(scene.labels) for scene in data.scenes])
            meter = stack.enter_context(bars(not progress or further, _PARTS))
            return _train(recipe, data, run, meter, folds)
        except BaseException:
            learnt = [*run.glob("checkpoints/*last.ckpt"), *run.glob("checkpoints/*denoiser.pt")]  # or the one before
            if claimed and not learnt and not any(run.glob("folds/*/recipe.json")):
                release(run)
            raise


def check_data(recipe: Recipe, run: Path, read: Callable[[Recipe], TrainingData] = read_training_data) -> None:
    """Compares the data of a run that has ended with those that it was trained on; see `remember`."""
    if not recipe.scene.startswith(ARRAYS):  # of arrays, the recipe holds the digest
        noted = (run / "inputs.json").exists()
        remember(run, read(recipe).digests(recipe.pretrain is not None) if noted else {})


_PARTS = {
    "pre-training": 9,
    "features": 2,
    "training": 9,
    "scoring validation": 0.5,
    "calibration": 0.5,
    "scoring test": 0.5,
}
"""What the progress of training is made of; what does not occur is passed over quickly."""


Progress = Callable[[int, int], None]
"""Called with the pixels done, and those of all scenes."""

_COMPARED = 20_000
"""Pixels whose dissimilarity is compared with their errors, at most."""

_BLOCK = 64
"""Side of the blocks of ground that the intervals of the scores come from, px."""

Take = Callable[[Sequence[NDArray[Any]]], NDArray[Any]]
"""From (H, W) values of each scene those of the pixels that are scored, (N,)."""


class _HeldOut:
    """What is measured on pixels that the model had not learnt; of several folds, on those of all.

    Args:
        targets: (H, W) of each, the classes of these pixels, where class sets need a sample of them.

    Attributes:
        before: how reliable the probabilities are as trained; `after`, in the bundle.
        sample: of these pixels, for class sets; `unit`, what its blocks are.
        maps: (H, W) for each scene: classes at these pixels.
        seconds: that mapping them took.
        errors: by dissimilarity, where the model keeps training pixels.
    """

    def __init__(self, data: TrainingData, targets: Sequence[NDArray[np.uint8]] = ()) -> None:
        self.unit, blocks = block_numbers(data.scenes, data.split) if targets else ("", [])
        self.sample = BlockSample(targets, blocks)
        self.confusion, self.seconds = Confusion.of(data.legend), 0.0
        self.before, self.after = Reliability(), Reliability()
        self.maps = [np.full_like(scene.labels, UNLABELLED) for scene in data.scenes]
        self.errors: ErrorsByDissimilarity | None = None

    def add(
        self,
        classifier: Bundle,
        data: TrainingData,
        options: MapOptions,
        progress: Progress = lambda done, total: None,
        role: int = TEST,
    ) -> None:
        """Maps and counts the test pixels, or those of another role."""
        start = time.perf_counter()

        def count(values: NDArray[np.float32], truth: NDArray[np.uint8], take: Take) -> None:
            self.before.update(probabilities_of(values.T).T, truth)
            probabilities = probabilities_of(values.T, classifier.temperature)
            self.after.update(probabilities.T, truth)
            if self.sample.numbers:
                self.sample.update(probabilities, truth, take(self.sample.numbers))

        self.confusion += score_role(classifier, data, role, options, count, progress, self.maps)
        self.seconds += time.perf_counter() - start
        if "applicability" in classifier.notes:
            self._compare(Applicability.of(classifier.description), data, role, not classifier.model.marks_missing)

    def _compare(self, known: Applicability, data: TrainingData, role: int, mirror: bool) -> None:
        """Counts errors by dissimilarity, of so many of the pixels at random."""
        mapped = [np.where(own == role, found, UNLABELLED) for own, found in zip(data.roles, self.maps, strict=True)]
        places = np.concatenate(
            [np.insert(np.argwhere(one != UNLABELLED), 0, n, axis=1) for n, one in enumerate(mapped)]
        )
        places = np.random.default_rng(0).permutation(places)[:_COMPARED]
        wrong = np.array(
            [mapped[n][row, col] != data.scenes[n].labels[row, col] for n, row, col in places.tolist()], bool
        )
        self.errors = self.errors or ErrorsByDissimilarity(list(known.points))
        self.errors.update(known.at(data.scenes, places, mirror=mirror), wrong)


@dataclass(frozen=True)
class _Folds:
    """What the models of all folds give for the one that learns from all labels.

    Args:
        held_out: each fold's pixels, by the model that had not learnt them.
        epochs: the mean of their best; None of a model without epochs.
        temperature: the geometric mean of theirs.
        seconds: that training them took.
        facts: for `scores.json`.
    """

    held_out: _HeldOut
    epochs: int | None
    temperature: float
    seconds: float
    facts: dict[str, Any]


def _train_folds(
    recipe: Recipe, data: TrainingData, read: Callable[[Recipe], TrainingData], run: Path, progress: bool
) -> _Folds:
    """Trains a model on each fold, in a run folder of its own; those that have ended are not repeated."""
    if not data.folds:
        raise SplitError(
            "training.use=all with a split without folds",
            "folds, by which the score is cross-validated",
            "set e.g. split.folds=5, of a split by blocks, polygons or tiles; or leave training.use=all out",
        )
    if getattr(data.split, "calibration", 0):
        raise SplitError(
            "training.use=all with split.calibration",
            "one of them: the folds' models score all labels, from which class sets come too",
            "leave split.calibration out",
        )
    learns = recipe.training.model_copy(update={"use": "train"})
    folds = []
    for fold in range(data.folds):
        values = {"run": str(run / "folds" / str(fold)), "split": {**(recipe.split or {}), "fold": fold}}
        folds.append(recipe.model_copy(update={**values, "training": learns}))
        try:
            read(folds[-1])  # one that cannot be trained is found before any is
        except SplitError as error:
            raise SplitError(f"with fold {fold} as the test, {error.found}", error.expected, error.do) from None
    held_out, runs = _HeldOut(data, [scene.labels for scene in data.scenes]), list[Run]()
    for number, own in enumerate(folds):
        folder = Path(str(own.run))
        if not (folder / "scores.json").exists():
            log.info("fold %d of %d: %s", number + 1, len(folds), folder)
            train_on(own, read, progress=progress)
        runs.append(read_run(folder))
        held_out.sample.fold = number
        held_out.add(load_bundle(folder), read(own), recipe.mapping)
    scores = [one.scores for one in runs]
    tested = [one["test"]["pixels"] for one in scores]
    epochs = [one["epochs"] if one.get("epoch") is None else one["epoch"] + 1 for one in scores if "epochs" in one]
    temperatures = [one["calibration"]["temperature"] for one in scores]
    known = {
        "measured": f"cross-validated over {len(folds)} folds, not measured on this model",
        "folds": len(folds),
        "epochs": epochs,
        "temperatures": temperatures,
    }
    facts: dict[str, Any] = {"cross_validation": known}
    for name in ("leak_fraction", "polygon_leak_fraction"):
        found = [one[name] for one in scores]
        facts[name] = None if None in found else float(np.average(found, weights=tested))
    log.info("all labels: %s", run)
    mean = float(np.exp(np.log(temperatures).mean()))
    seconds = sum(one["training_seconds"] for one in scores)
    return _Folds(held_out, round(np.mean(epochs)) if epochs else None, mean, seconds, facts)


def _train(recipe: Recipe, data: TrainingData, run: Path, meter: Meter, folds: _Folds | None) -> Bundle:
    features = None
    if recipe.pretrain is not None:
        show = partial(meter, "pre-training")
        denoiser = pretrain(recipe.pretrain, data, run, memory=recipe.samples.memory, progress=show)
        if recipe.features is not None:
            features = DiffusionFeatures(denoiser, recipe.features)
            data = replace(data, scenes=[scene.with_modalities(features.of(scene)) for scene in data.scenes])
            compute_features(data.scenes, progress=partial(meter, "features"))
    lightning.seed_everything(recipe.training.seed, workers=True, verbose=False)
    maps = fit_maps(recipe, data)
    inputs = {name: replace(data.scenes[0].modalities[name].info, values=own.values) for name, own in maps.items()}
    spec = ModelSpec(str(recipe.model["name"]), {k: v for k, v in recipe.model.items() if k != "name"})
    stride, weights = recipe.mapping.stride, recipe.mapping.weights
    dropped = dropout_of(recipe.samples.modality_dropout, list(maps))
    classifier = Bundle(spec, maps, inputs, data.legend, stride, weights=weights, features=features, droppable=dropped)
    classifier.roles = {}
    for scene, roles in zip(data.scenes, data.roles, strict=True):  # without a CRS, several tiles have one grid
        digests = classifier.roles.setdefault(str(scene.grid), "")
        classifier.roles[str(scene.grid)] = f"{digests} {roles_digest(roles, scene.grid)}".lstrip()
    model = classifier.model
    stand_ins = dict.fromkeys(dropped, math.nan)
    memory, marks = recipe.samples.memory, model.marks_missing
    settings = recipe.training
    alone = settings.accelerator in ("auto", "gpu", "cuda") and settings.devices == settings.nodes == 1
    # Other processes, and the loaders' workers, would not see what is on the GPU; large networks need its memory.
    device = default_device() if alone and not recipe.samples.workers and not isinstance(model, DirectFit) else "cpu"
    store = Store(data.scenes, maps, model.view, memory, stand_ins, device, room=1 / 16, marks_missing=marks)
    training = Samples(store, data.targets(TRAIN), model.view, model.core)
    validation = Samples(store, data.targets(VALIDATION), model.view, model.core) if data.has(VALIDATION) else None

    start = time.perf_counter()
    facts: dict[str, Any] = {}
    if isinstance(model, DirectFit):
        meter("training", 0, 0)
        first, second = (_whole(model, samples, recipe) for samples in (training, validation))
        facts = model.fit(first, recipe.training.seed, second, folds.epochs if folds else None)
    else:
        trainer, facts = fit(
            recipe, run, model, data.legend, training, validation, meter, folds.epochs if folds else None
        )
        if trainer.global_rank:
            return classifier.eval()
    facts["training_seconds"] = round(time.perf_counter() - start + (folds.seconds if folds else 0), 3)
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    classifier.eval()
    start, groups = time.perf_counter(), block_numbers(data.scenes, data.split)
    known = classifier.description
    applicability = Applicability.fitted(data.scenes, training.targets, groups, known, mirror=not marks)
    if applicability is not None:
        applicability.attach(classifier)
    facts["applicability_seconds"] = round(time.perf_counter() - start, 3)
    held_out = folds.held_out if folds else _HeldOut(data, data.targets(TEST) if data.has(CALIBRATION) else ())
    sets = None
    fitted_before, fitted_after = Reliability(), Reliability()
    if folds is not None:
        classifier.temperature = folds.temperature
        facts |= folds.facts
        classifier.cross_validation = {**folds.facts["cross_validation"], "scores": held_out.confusion.scores()}
        count = folds.facts["cross_validation"]["folds"]
        how = f"cross-fitted over {count} folds (approximate: their models learnt from fewer labels)"
        sets = ClassSets.fitted(held_out.sample, data.legend, held_out.unit, how)
    elif validation is not None:
        logits = LogitSample(sum(int((roles == VALIDATION).sum()) for roles in data.roles))
        show = partial(meter, "scoring validation")

        def keep(values: NDArray[np.float32], truth: NDArray[np.uint8], take: Take) -> None:
            logits.update(values, truth)

        facts["validation"] = score_role(classifier, data, VALIDATION, recipe.mapping, keep, show).scores()
        values, truth = logits.arrays
        classifier.temperature = fit_temperature(values, truth)
        for one, by in ((fitted_before, 1.0), (fitted_after, classifier.temperature)):
            one.update(probabilities_of(values.T, by).T, truth)
    if folds is None:
        if data.has(CALIBRATION):
            aside = _HeldOut(data, data.targets(CALIBRATION))
            aside.add(classifier, data, recipe.mapping, partial(meter, "calibration"), CALIBRATION)
            sets = ClassSets.fitted(aside.sample, data.legend, aside.unit, "set aside in training")
        held_out.add(classifier, data, recipe.mapping, partial(meter, "scoring test"))
        learnt, _ = learnt_ground([scene.grid for scene in data.scenes], data.roles)
        reach = features.denoiser.network.REACH if features is not None else 0
        seen = model.view + 2 * reach
        facts["leak_fraction"] = leak_fraction(data.roles, seen, model.core, classifier.stride, learnt)
        facts["polygon_leak_fraction"] = polygon_leak_fraction(data.scenes, data.roles)
        if sets is not None:
            leak = leak_fraction(data.roles, seen, model.core, classifier.stride, learnt, of=CALIBRATION)
            facts["calibration_leak_fraction"] = leak
    if sets is not None:
        sets.attach(classifier)
        tables = [sets.table] if folds is None else without_fold(held_out.sample)
        facts["sets"] = sets.facts() | {"test": coverage_of(held_out.sample.arrays, tables, data.legend.names)}
    if applicability is not None and held_out.errors is not None:
        facts["applicability"] = {"groups": applicability.groups, "test": held_out.errors.facts()}
    confusion, before, after = held_out.confusion, held_out.before.to_dict(), held_out.after.to_dict()
    tally = Tally(data.legend, _BLOCK)
    tally.score((scene.labels, found) for scene, found in zip(data.scenes, held_out.maps, strict=True))
    intervals = tally.intervals() if len(tally.blocks) > 1 else tally.intervals(0)
    facts["intervals"] = intervals.to_dict(data.legend.names, _BLOCK)
    facts["calibration"] = {
        "temperature": classifier.temperature,
        "fitted_on": "the folds' validation" if folds else "validation" if validation is not None else None,
        "test": {"before": before, "after": after},
        "validation": {"before": fitted_before.to_dict(), "after": fitted_after.to_dict()},
    }
    facts["test_mapping_seconds"] = round(held_out.seconds, 3)
    facts["peak_memory_bytes"] = peak_memory()
    if features is not None:
        facts["pretrain"] = facts_of(features.denoiser)
    classifier.save(run / "bundle")
    for scene, roles, found in zip(data.scenes, data.roles, held_out.maps, strict=True):
        write_raster(run / "split" / f"{scene.name}.tif", scene.grid, roles, nodata=0, names=["role"])
        if folds is not None:
            codes = data.legend.to_codes(found)
            write_raster(run / "cross_validation" / f"{scene.name}.tif", scene.grid, codes, legend=data.legend)
    history = read_history(run / "metrics.csv")
    if history:
        save(curves_figure(history, facts.get("epoch")), run / "curves.png")
    save(reliability_figure({"as trained": before, "in the bundle": after}), run / "reliability.png")
    write_text(run / "confusion.csv", confusion.to_csv(data.legend))
    write_text(run / "environment.json", to_json(environment()))
    scores = {"test": confusion.scores(), "classes": confusion.per_class(data.legend.names), **facts}
    write_text(run / "scores.json", to_json(scores))  # last: it marks the end
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return classifier


def _whole(model: DirectFit, samples: Samples | None, recipe: Recipe) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """All samples for a model that is fitted in one pass, or as many at random as it takes."""
    if samples is not None:
        labelled = sum(int((target != UNLABELLED).sum()) for target in samples.targets)
        most = None if model.most is None else min(model.most, labelled)
        whole = recipe.samples.model_copy(update={"augment": False, "windows": most})
        for batch in loader(samples, WindowSampler(samples, whole, train=True, seed=recipe.training.seed)):
            yield batch.images, batch.target


def score_role(
    classifier: Bundle,
    data: TrainingData,
    role: int,
    options: MapOptions = MapOptions(),  # noqa: B008  (frozen)
    watch: Callable[[NDArray[np.float32], NDArray[np.uint8], Take], None] = lambda logits, truth, take: None,
    progress: Progress = lambda done, total: None,
    maps: Sequence[NDArray[np.uint8]] = (),
) -> Confusion:
    """Maps the pixels of a role with the mapping engine and scores them, as a map of the scene would score.

    Args:
        role: whose pixels are mapped.
        watch: called with the logits, (N, K), and the truth, (N,), of the pixels that are scored, part by part, and
            with what takes their values from arrays of each scene.
        maps: (H, W) for each scene, into which the classes of these pixels are put.
    """
    total = sum(scene.grid.window.pixels for scene in data.scenes)
    same = options.model_dump(include=set(PredictorOptions.model_fields) - {"layers"} | {"block"})

    def parts() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        done = 0
        every = zip_longest(data.scenes, data.roles, data.targets(role), maps)
        for number, (scene, roles, target, classes) in enumerate(every):
            for part in map_blocks(classifier, scene, wanted=roles == role, **same):
                inside = part.window.within(scene.grid.window)
                truth = target[inside]
                scored = (truth != UNLABELLED) & (part.classes != UNLABELLED)
                watch(part.logits[:, scored].T, truth[scored], partial(_taken, number, inside, scored))
                if classes is not None:
                    classes[inside][scored] = part.classes[scored]
                yield truth, part.classes
                progress(done + inside[0].stop * scene.grid.window.width, total)
            done += scene.grid.window.pixels

    return Tally(data.legend).score(parts())


def _taken(
    scene: int, inside: tuple[slice, slice], scored: NDArray[np.bool_], values: Sequence[NDArray[Any]]
) -> NDArray[Any]:
    return values[scene][inside][scored]
