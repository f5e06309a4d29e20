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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import Tally
from landfuse.accuracy.reliability import Reliability
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.calibration import LogitSample, probabilities_of
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.settings import PredictorOptions
from landfuse.diffusion.features import DiffusionFeatures, compute_features
from landfuse.errors import SettingsError
from landfuse.figures.figures import curves_figure, reliability_figure, save
from landfuse.files import to_json, write_text
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.mapping.locks import held
from landfuse.mapping.settings import MapOptions
from landfuse.models.base import DirectFit
from landfuse.progress import Meter, bars
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.leaks import leak_fraction, learnt_ground, polygon_leak_fraction
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION
from landfuse.scenes.splits import roles_digest
from landfuse.training.fit import fit
from landfuse.training.pretrain import facts_of, pretrain
from landfuse.training.recipe import ARRAYS, Recipe, read_recipe
from landfuse.training.run import claim, clear, environment, peak_memory, read_history, release, remember
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
    return train_on(recipe, lambda: read_training_data(recipe, recipe.read_scene()), progress=progress, restart=restart)


def train_on(
    recipe: Recipe, read: Callable[[], TrainingData], *, progress: bool = True, restart: bool = False
) -> Bundle:
    """Trains on data that need no scene file; the rest as in `train`.

    Args:
        recipe: with a `run`, which no other process may be training.
        read: opens the data.
        progress: show progress bars.
        restart: delete the run that the folder holds, and train again.
    """
    run = Path(recipe.run or "runs/unnamed")
    further = (
        getattr(rank_zero_only, "rank", 0) or os.environ.get("NODE_RANK", "0") != "0"
    )  # of several; the first one holds the run
    with ExitStack() as stack:
        if not further and (restart or not (run / "scores.json").exists()):
            stack.enter_context(held(run, "training"))
        if restart and not further:
            clear(run)
        claimed = claim(run, recipe)
        meter = stack.enter_context(bars(not progress or bool(further), _PARTS))
        if (run / "scores.json").exists():
            if not recipe.scene.startswith(ARRAYS):  # of arrays, the recipe holds the digest
                noted = (run / "inputs.json").exists()
                remember(run, read().digests(recipe.pretrain is not None) if noted else {})
            log.warning("%s has ended before; its bundle is loaded. Choose another run=... to train again", run)
            return load_bundle(run / "bundle")
        try:
            data = read()
            remember(run, data.digests(recipe.pretrain is not None))
            return _train(recipe, data, run, meter)
        except BaseException:
            learnt = [run / "checkpoints" / name for name in ("last.ckpt", "denoiser.pt")]
            if claimed and not any(path.exists() for path in learnt):
                release(run)
            raise


_PARTS = {"pre-training": 9, "features": 2, "training": 9, "scoring validation": 0.5, "scoring test": 0.5}
"""What the progress of training is made of; what does not occur is passed over quickly."""


def _train(recipe: Recipe, data: TrainingData, run: Path, meter: Meter) -> Bundle:
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
    store = Store(data.scenes, maps, model.view, recipe.samples.memory, stand_ins)
    training = Samples(store, data.targets(TRAIN), model.view, model.core)
    validation = Samples(store, data.targets(VALIDATION), model.view, model.core) if data.has(VALIDATION) else None

    start = time.perf_counter()
    facts: dict[str, Any] = {}
    if isinstance(model, DirectFit):
        whole = recipe.samples.model_copy(update={"augment": False, "windows": None})
        meter("training", 0, 0)
        batches = loader(training, WindowSampler(training, whole, train=True, seed=recipe.training.seed))
        model.fit(((batch.images, batch.target) for batch in batches), recipe.training.seed)
    else:
        trainer, facts = fit(recipe, run, model, data.legend, training, validation, meter)
        if trainer.global_rank:
            return classifier.eval()
    facts["training_seconds"] = round(time.perf_counter() - start, 3)
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    classifier.eval()
    if validation is not None:
        logits = LogitSample(sum(int((roles == VALIDATION).sum()) for roles in data.roles))
        show = partial(meter, "scoring validation")
        facts["validation"] = score_role(classifier, data, VALIDATION, recipe.mapping, logits.update, show).scores()
        classifier.temperature = logits.temperature()

    start = time.perf_counter()
    before, after = Reliability(), Reliability()

    def count(values: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        before.update(probabilities_of(values.T).T, truth)
        after.update(probabilities_of(values.T, classifier.temperature).T, truth)

    confusion = score_role(classifier, data, TEST, recipe.mapping, count, partial(meter, "scoring test"))
    facts["calibration"] = {
        "temperature": classifier.temperature,
        "fitted_on": "validation" if validation is not None else None,
        "test": {"before": before.to_dict(), "after": after.to_dict()},
    }
    facts["test_mapping_seconds"] = round(time.perf_counter() - start, 3)
    facts["peak_memory_bytes"] = peak_memory()
    if features is not None:
        facts["pretrain"] = facts_of(features.denoiser)
    learnt, _ = learnt_ground([scene.grid for scene in data.scenes], data.roles)
    facts["leak_fraction"] = leak_fraction(data.roles, model.view, model.core, classifier.stride, learnt)
    facts["polygon_leak_fraction"] = polygon_leak_fraction(data.scenes, data.roles)
    classifier.save(run / "bundle")
    for scene, roles in zip(data.scenes, data.roles, strict=True):
        write_raster(run / "split" / f"{scene.name}.tif", scene.grid, roles, nodata=0, names=["role"])
    history = read_history(run / "metrics.csv")
    if history:
        save(curves_figure(history, facts.get("epoch")), run / "curves.png")
    save(
        reliability_figure({"as trained": before.to_dict(), "in the bundle": after.to_dict()}), run / "reliability.png"
    )
    write_text(run / "confusion.csv", confusion.to_csv(data.legend))
    write_text(run / "environment.json", to_json(environment()))
    scores = {"test": confusion.scores(), "classes": confusion.per_class(data.legend.names), **facts}
    write_text(run / "scores.json", to_json(scores))  # last: it marks the end
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return classifier


def score_role(
    classifier: Bundle,
    data: TrainingData,
    role: int,
    options: MapOptions = MapOptions(),  # noqa: B008  (frozen)
    watch: Callable[[NDArray[np.float32], NDArray[np.uint8]], None] = lambda logits, truth: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Confusion:
    """Maps the pixels of a role with the mapping engine and scores them, as a map of the scene would score.

    Args:
        classifier: what maps.
        data: the scenes and their roles.
        role: whose pixels are mapped.
        options: how they are mapped.
        watch: called with the logits, (N, K), and the truth, (N,), of the pixels that are scored, part by part.
        progress: called with the pixels done, and those of all scenes.
    """
    total = sum(scene.grid.window.pixels for scene in data.scenes)
    same = options.model_dump(include=set(PredictorOptions.model_fields) - {"layers"} | {"block"})

    def parts() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        done = 0
        for scene, roles, target in zip(data.scenes, data.roles, data.targets(role), strict=True):
            for part in map_blocks(classifier, scene, wanted=roles == role, **same):
                inside = part.window.within(scene.grid.window)
                truth = target[inside]
                scored = (truth != UNLABELLED) & (part.classes != UNLABELLED)
                watch(part.logits[:, scored].T, truth[scored])
                yield truth, part.classes
                progress(done + inside[0].stop * scene.grid.window.width, total)
            done += scene.grid.window.pixels

    return Tally(data.legend).score(parts())
