"""Training: a recipe becomes a run folder with a bundle, its scores and how they came about.

The run folder holds `bundle/`, `recipe.json` (resolved), `scores.json`, `confusion.csv`, `environment.json`, `split/`
(roles per tile), `metrics.csv`, `curves.png`, `tensorboard/`, and, until the run ends, `checkpoints/` to go on from.
The test split is read once, at the end.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from landfuse.classifier import Classifier, ModelSpec, load_bundle, note
from landfuse.errors import FaultsError, ModelError, SceneError, SettingsError, SplitError
from landfuse.files import write_text
from landfuse.layers.pixel_map import PixelMap, PixelMapSettings
from landfuse.legend import UNLABELLED, Legend
from landfuse.models.base import DirectFit
from landfuse.pictures import curves_figure, save
from landfuse.predict import map_blocks
from landfuse.recipe import Recipe, TrainingSettings, read_recipe
from landfuse.run_folder import claim, environment, peak_memory, plain, release
from landfuse.samples import Draws, Sample, Samples, SampleSettings, Store, fit_pixel_maps, loader
from landfuse.scenes.geotiff_writer import write_raster
from landfuse.scenes.leaks import leak_share
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile
from landfuse.scenes.split import TEST, TRAIN, VALIDATION, Roles, counts_per_class
from landfuse.scores import Confusion
from landfuse.task import History, Patience, Task, read_history

log = logging.getLogger("landfuse")


@dataclass(frozen=True)
class Ground:
    """What a run stands on: the tiles, their roles and targets."""

    scenes: Sequence[Scene]
    roles: Sequence[Roles]
    legend: Legend

    def targets(self, role: int) -> list[NDArray[np.uint8]]:
        """Per scene (H, W) uint8: classes of the pixels of a role, `UNLABELLED` elsewhere."""
        return [
            np.where(roles == role, scene.labels, UNLABELLED).astype(np.uint8)
            for scene, roles in zip(self.scenes, self.roles, strict=True)
        ]

    def has(self, role: int) -> bool:
        """Whether any pixel has the role."""
        return any((roles == role).any() for roles in self.roles)


def ground(recipe: Recipe, file: SceneFile) -> Ground:
    """Opens the scenes of a recipe and gives every pixel its role.

    Raises:
        FaultsError: if scenes cannot be opened, or their modalities differ in bands or data type.
        SplitError: if a class has no training pixel, or there is no split.
    """
    scenes = file.scenes(recipe.modalities)
    _alike(scenes)
    roles = file.roles(scenes, recipe.split_of(file))
    counts = counts_per_class(roles, [scene.labels for scene in scenes], len(file.legend))
    empty = [name for name, count in zip(file.legend.names, counts["train"], strict=True) if count == 0]
    if empty:
        raise SplitError(
            f"the class{'es' if len(empty) > 1 else ''} {', '.join(f'`{name}`' for name in empty)} ha"
            f"{'ve' if len(empty) > 1 else 's'} no training pixel",
            "labelled pixels of every class in training",
            "take it out of the legend (its code into `labels: ignored`), or change the split or its seed",
        )
    return Ground(scenes, roles, file.legend)


def _alike(scenes: Sequence[Scene]) -> None:
    first = scenes[0]
    faults = [
        SceneError(
            f"`{name}` has {getattr(own, what)} {words} in the tile `{scene.name}`",
            f"{getattr(known, what)} {words}, as in the tile `{first.name}`",
            "make the tiles alike, or choose common bands by `bands`",
        )
        for scene in scenes[1:]
        for name in first.modalities
        for own, known in [(note(scene, name), note(first, name))]
        for what, words in (("bands", "bands"), ("dtype", "as data type"))
        if getattr(own, what) != getattr(known, what)
    ]
    if faults:
        raise FaultsError(faults)


def fit_maps(recipe: Recipe, base: Ground) -> dict[str, PixelMap]:
    """Fits the pixel maps of a recipe to the training pixels."""
    names = list(base.scenes[0].modalities)
    default = recipe.pixel_maps.get("default", PixelMapSettings())
    settings = {name: recipe.pixel_maps.get(name, default) for name in names}
    return fit_pixel_maps(base.scenes, [roles == TRAIN for roles in base.roles], settings)


class _Data(LightningDataModule):
    """Hands Lightning its loaders once the ranks are known."""

    def __init__(self, train: Samples, validation: Samples | None, settings: SampleSettings, seed: int) -> None:
        super().__init__()
        self.train, self.validation, self.settings, self.seed = train, validation, settings, seed

    def _loader(self, samples: Samples, train: bool) -> DataLoader[Sample]:
        ranks = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        return loader(samples, Draws(samples, self.settings, train=train, seed=self.seed, rank=rank, ranks=ranks))

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.train, train=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        return self._loader(self.validation, train=False) if self.validation is not None else []


def precision(settings: TrainingSettings) -> str:
    """Lightning's name of the precision that the settings choose on this hardware."""
    names = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
    if settings.precision != "auto":
        return names[settings.precision]
    if settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return names["bfloat16" if torch.cuda.is_bf16_supported() else "float16"]
    if settings.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return names["float32"]
    return names["bfloat16" if _cpu_has_bfloat16() else "float32"]


def _cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 run on this CPU's own instructions (AMX or AVX512-BF16)."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        return False
    words = flags.read_text(errors="replace").split()
    return "amx_bf16" in words or "avx512_bf16" in words


def train(recipe: Recipe | str | Path, *assignments: str, progress: bool = True) -> Classifier:
    """Trains what a recipe says, or goes on where it was interrupted.

    Args:
        recipe: a recipe, or the path of one.
        assignments: `key.sub=value`, for a path.
        progress: show progress bars.

    Returns:
        The classifier of the best epoch; a run that ended before is loaded, not repeated.

    Raises:
        LandfuseError: whatever is wrong with recipe, scene, split or output.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe, assignments)
    elif assignments:
        raise SettingsError("assignments go with the path of a recipe", "a path", "use read_recipe(path, assignments)")
    run = Path(recipe.run or "runs/unnamed")
    claimed = claim(run, recipe)
    if (run / "scores.json").exists():
        log.warning("%s has ended before; its bundle is loaded. Choose another run=... to train again", run)
        return load_bundle(run / "bundle")
    try:
        return _train(recipe, run, progress)
    except BaseException:
        if claimed and not (run / "checkpoints" / "last.ckpt").exists():
            release(run)
        raise


def _train(recipe: Recipe, run: Path, progress: bool) -> Classifier:
    file = recipe.read_scene()
    base = ground(recipe, file)
    lightning.seed_everything(recipe.training.seed, workers=True, verbose=False)
    maps = fit_maps(recipe, base)
    notes = {name: note(base.scenes[0], name) for name in maps}
    spec = ModelSpec(str(recipe.model["name"]), {k: v for k, v in recipe.model.items() if k != "name"})
    classifier = Classifier(spec, maps, notes, base.legend, recipe.mapping.stride)
    model = classifier.model
    store = Store(base.scenes, maps, model.view, recipe.samples.memory)
    training = Samples(store, base.targets(TRAIN), model.view, model.core)
    validation = Samples(store, base.targets(VALIDATION), model.view, model.core) if base.has(VALIDATION) else None

    start = time.perf_counter()
    facts: dict[str, Any] = {}
    if isinstance(model, DirectFit):
        whole = recipe.samples.model_copy(update={"augment": False, "windows": None})
        batches = loader(training, Draws(training, whole, train=True, seed=recipe.training.seed))
        model.fit(((batch.images, batch.target) for batch in batches), recipe.training.seed)
    else:
        trainer, facts = _fit(recipe, run, classifier, training, validation, progress)
        if trainer.global_rank:
            return classifier.eval()
    facts["training_seconds"] = round(time.perf_counter() - start, 3)
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    classifier.eval()
    if validation is not None:
        facts["validation"] = score_role(classifier, base, VALIDATION, recipe.mapping.batch).scores()

    start = time.perf_counter()
    confusion = score_role(classifier, base, TEST, recipe.mapping.batch)
    facts["test_mapping_seconds"] = round(time.perf_counter() - start, 3)
    facts["peak_memory_bytes"] = peak_memory()
    facts["leak_share"] = leak_share(base.roles, model.view, model.core, classifier.stride)
    classifier.save(run / "bundle")
    for scene, roles in zip(base.scenes, base.roles, strict=True):
        write_raster(run / "split" / f"{scene.name}.tif", scene.grid, roles, nodata=0, names=["role"])
    history = read_history(run / "metrics.csv")
    if history:
        save(curves_figure(history, facts.get("epoch")), run / "curves.png")
    write_text(run / "confusion.csv", confusion.to_csv(base.legend))
    write_text(run / "environment.json", json.dumps(environment(), indent=2) + "\n")
    scores = {"test": confusion.scores(), "classes": confusion.per_class(base.legend.names), **facts}
    write_text(run / "scores.json", json.dumps(plain(scores), indent=2) + "\n")  # last: it marks the end
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return classifier


def _fit(
    recipe: Recipe, run: Path, classifier: Classifier, training: Samples, validation: Samples | None, progress: bool
) -> tuple[Trainer, dict[str, Any]]:
    """Trains by gradient, keeps the best epoch's weights; returns the trainer and what is to be told."""
    settings = recipe.training
    data = _Data(training, validation, recipe.samples, settings.seed)
    steps = settings.epochs * len(Draws(training, recipe.samples, train=True))
    task = Task(classifier.model, settings, steps)
    folder = run / "checkpoints"
    last = ModelCheckpoint(folder, "last", save_top_k=1, every_n_epochs=1, enable_version_counter=False)
    callbacks: list[Any] = [History(run / "metrics.csv")]
    best = None
    if validation is not None:
        watched = f"val_{settings.choose_by}"
        best = ModelCheckpoint(
            folder, "best", monitor=watched, mode="max", save_weights_only=True, enable_version_counter=False
        )
        callbacks.append(best)
        if settings.patience is not None:
            callbacks.append(Patience(watched, patience=settings.patience, mode="max"))
    callbacks.append(last)  # after `best`, whose state it holds
    if progress:
        callbacks.append(RichProgressBar(leave=False))
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Scenes in memory need no loader workers, an epoch may have few steps, and an existing folder is resumed.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*number of training batches.*")
        warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # without validation
        warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 on torch 2.9 and later
        arguments: dict[str, Any] = {
            "max_epochs": settings.epochs,
            "accelerator": settings.accelerator,
            "devices": settings.devices,
            "num_nodes": settings.nodes,
            "strategy": settings.strategy,
            "precision": precision(settings),
            "gradient_clip_val": settings.clip,
            "callbacks": callbacks,
            "logger": TensorBoardLogger(run, name="tensorboard", version=""),
            "use_distributed_sampler": False,  # Draws deal out the ranks' shares
            "enable_progress_bar": progress,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        try:
            trainer = Trainer(**{**arguments, **settings.lightning})
        except (TypeError, ValueError, lightning.fabric.utilities.exceptions.MisconfigurationException) as error:
            raise ModelError(
                f"Lightning's Trainer refuses the settings: {error}", "arguments that it knows", "mend `training:`"
            ) from None
        resume = folder / "last.ckpt"
        try:
            trainer.fit(task, data, ckpt_path=str(resume) if resume.exists() else None)
        except SystemExit:
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except FloatingPointError as error:
            raise ModelError(
                str(error),
                "finite losses",
                "lower training.rate, or set training.precision=float32, and choose another folder by run=...",
            ) from None
    facts: dict[str, Any] = {"epochs": len(read_history(run / "metrics.csv")), "precision": precision(settings)}
    kept = best.best_model_path if best is not None else ""
    if kept:
        state = torch.load(kept, map_location="cpu", weights_only=True)
        weights = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
        classifier.model.load_state_dict(weights)
        facts["epoch"] = int(state["epoch"])
    return trainer, facts


def score_role(classifier: Classifier, base: Ground, role: int, batch: int | None = None) -> Confusion:
    """Maps the pixels of a role with the mapping engine and scores them, as a map of the scene would score."""
    confusion = Confusion(len(base.legend))
    for scene, roles, target in zip(base.scenes, base.roles, base.targets(role), strict=True):
        for part in map_blocks(classifier, scene, wanted=roles == role, batch=batch):
            confusion.update(target[part.window.within(scene.grid.window)], part.classes)
    return confusion
