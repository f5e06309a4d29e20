"""Pre-training: a denoiser learns from the scenes of a run, without labels, before the model learns from them.

The run folder gets `denoiser/`, `pretrain.csv` (losses, balance, and what a linear probe of the features reaches),
`balance.png`, and, until the denoiser is there, `checkpoints/denoiser.pt` to go on from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landfuse.diffusion.crops import Crops
from landfuse.diffusion.denoising import Denoising, run_steps
from landfuse.diffusion.settings import PretrainSettings
from landfuse.diffusion.tiles import check_inputs, fingerprint
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, constant, load_denoiser, own_maps
from landfuse.errors import LandfuseError, ModelError, SettingsError
from landfuse.figures.figures import balance_figure, save
from landfuse.kernels.gpu import default_device
from landfuse.markup import percent
from landfuse.scenes.split_rules import CALIBRATION, TEST, TRAIN, VALIDATION
from landfuse.training.checkpoints import read_checkpoint, write_checkpoint
from landfuse.training.linear_probe import LinearProbe
from landfuse.training.run import read_history, write_history
from landfuse.training.training_data import TrainingData
from landfuse.views.store import Store

log = logging.getLogger("landfuse")

Progress = Callable[[int, int, str], None]

_BETWEEN_CHECKPOINTS = 30.0
"""Seconds."""

_PROBES = 8
"""How often the features are probed in a training, evenly, beside once before it."""


def pretrain(
    settings: PretrainSettings,
    base: TrainingData,
    run: Path,
    *,
    memory: int = 4 * 1024**3,
    progress: Progress = lambda done, total, words: None,
) -> TrainedDenoiser:
    """Trains a denoiser, goes on where it was interrupted, or takes one that was trained alike on the same scenes.

    Args:
        base: the scenes, every pixel's role, and its label, by which features are probed; nothing is learnt from it.
        run: the run folder; the folders beside it, and those in the folders beside its parent (an ablation's variants),
            are searched for a denoiser of the same settings and scenes.
        memory: scenes up to this many bytes are held in memory.
        progress: called with (steps done, in all, the loss in words).

    Raises:
        SettingsError: if it names modalities that the scenes lack.
        ModelError: if a loss is not finite.
        BundleError: if `start_from` holds no denoiser, or one of other modalities.
    """
    names = list(settings.modalities or base.scenes[0].modalities)
    lacking = [name for name in names if name not in base.scenes[0].modalities]
    if lacking:
        raise SettingsError(
            f"`pretrain` names the modality {', '.join(lacking)}",
            f"those of the recipe: {', '.join(base.scenes[0].modalities)}",
            "correct `pretrain.modalities`",
        )
    start = load_denoiser(settings.start_from) if settings.start_from else None
    if start is not None:
        for scene in base.scenes:
            check_inputs(start.inputs, scene)
        names = list(start.maps)
    key = _key(settings, base, names, start)
    known = _known(run, key)
    if known is not None:
        return known
    denoiser = start or _untrained(settings, base, names)
    _log_start(denoiser, settings)
    over = shown = None
    if settings.fit_on == "train":
        over = [roles == TRAIN for roles in base.roles]
        shown = [~np.isin(roles, (TEST, VALIDATION, CALIBRATION)) for roles in base.roles]
    device = default_device()
    store = Store(base.scenes, denoiser.maps, settings.crop, memory, device=device)
    crops = Crops(store, settings.crop, over, shown)
    training = Denoising(denoiser, settings, crops, device)
    probe = LinearProbe(store, base, crops.side, settings.seed) if LinearProbe.possible(base) else None
    rows = _fit(training, key, run, probe, progress)
    denoiser = training.finished()
    denoiser.facts = {
        "key": key,
        "fit_on": settings.fit_on,
        "transductive": settings.fit_on == "scene",
        "steps": settings.total,
        "settings": settings.model_dump(mode="json"),
        "last": rows[-1] if rows else {},
    }
    denoiser.save(run / "denoiser")
    if rows:
        save(balance_figure(rows, list(denoiser.maps)), run / "balance.png")
        probed = [row["probe_validation"] for row in rows if "probe_validation" in row]
        if probed:
            log.info(
                "a linear probe of the denoiser's features labels %s of the validation pixels correctly; before "
                "training %s", percent(probed[-1]), percent(probed[0]),
            )  # fmt: skip
    for done in (run / "checkpoints").glob("*denoiser.pt"):
        done.unlink()
    return denoiser


def _key(settings: PretrainSettings, base: TrainingData, names: Sequence[str], start: TrainedDenoiser | None) -> str:
    """A hash of all that the denoiser follows from."""
    known = hashlib.sha256(settings.model_dump_json(exclude={"start_from"}).encode())
    known.update((start.digest if start else "").encode())
    for scene, roles in zip(base.scenes, base.roles, strict=True):
        known.update(fingerprint(scene, names).encode())
        if settings.fit_on == "train":
            known.update(roles.tobytes())
    return known.hexdigest()


def _known(run: Path, key: str) -> TrainedDenoiser | None:
    """A denoiser of this key, in this run, in one beside it, or in one of another series of the same ablation."""
    near = run.absolute().parent.parent.glob("*/*/denoiser")
    for folder in (run / "denoiser", *sorted(run.glob("folds/*/denoiser")), *sorted(near)):
        try:
            facts = json.loads((folder / "denoiser.json").read_text(encoding="utf-8"))["facts"]
            if facts.get("key") != key:
                continue
            found = load_denoiser(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, LandfuseError):
            continue  # not there, or not whole: it is trained again
        if folder.parent.resolve() != run.resolve():
            log.info("the denoiser of %s was trained alike on the same scenes, and is used", folder.parent)
            found.save(run / "denoiser")
        return found
    return None


def _untrained(settings: PretrainSettings, base: TrainingData, names: Sequence[str]) -> TrainedDenoiser:
    seen = [(roles == TRAIN) | (settings.fit_on == "scene") for roles in base.roles]
    maps = own_maps(base.scenes, seen, names)
    zooms = {name: base.scenes[0].modalities[name].zoom for name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return TrainedDenoiser.untrained(maps, zooms, settings.base)


def _log_start(denoiser: TrainedDenoiser, settings: PretrainSettings) -> None:
    still = constant(denoiser.maps)
    if still:
        log.warning("%s never changes: it is left out of the balance", ", ".join(still))
    if len(denoiser.maps) - len(still) < 2 and settings.balance.kind != "none":
        log.warning("the denoiser looks at one changing modality: there is nothing to balance")
    if settings.fit_on == "scene":
        log.info("the denoiser learns from all pixels of the scene, test pixels too, without labels (transductive)")


def _fit(
    training: Denoising, key: str, run: Path, probe: LinearProbe | None, progress: Progress
) -> list[dict[str, float]]:
    """Runs the steps that are left; gives the rows of `pretrain.csv`."""
    checkpoint, table = run / "checkpoints" / "denoiser.pt", run / "pretrain.csv"
    saved = read_checkpoint(checkpoint, lambda values: values["key"] == key, training.device)
    if saved is not None:
        training.load_state(saved[1]["state"])
    rows = [row for row in read_history(table, "step") if row["step"] <= training.done]
    total = training.settings.total
    probed = training.done * _PROBES // max(1, total)
    last = time.monotonic()

    def keep() -> None:
        write_checkpoint({"key": key, "state": training.state()}, checkpoint)

    def report(step: int, row: dict[str, float]) -> None:
        nonlocal last, probed
        due = step * _PROBES // total
        if probe is not None and due > probed:
            row, probed = {**row, **probe(training.denoiser)}, due
        rows.append({"step": float(step), **row})
        write_history(table, rows)
        progress(step, total, f"loss {row['loss']:.3f}")
        if time.monotonic() - last > _BETWEEN_CHECKPOINTS:
            keep()
            last = time.monotonic()

    if probe is not None and not rows:
        rows.append({"step": 0.0, **probe(training.denoiser)})
    progress(training.done, total, "")
    try:
        run_steps(training, total, report)
    except ModelError:
        keep()  # the step that failed has changed nothing
        raise
    return rows


def facts_of(denoiser: TrainedDenoiser) -> dict[str, Any]:
    """What `scores.json` says of the denoiser."""
    kept = {name: denoiser.facts.get(name) for name in ("fit_on", "transductive", "steps", "last")}
    parameters = sum(p.numel() for p in denoiser.parameters())
    return {**kept, "reach": denoiser.network.REACH, "modalities": list(denoiser.maps), "parameters": parameters}
