"""What makes the guides of BDGF useful with few labels: candidates on the draws of `run.py`, paired with what they must
beat.

    landfuse train benchmarks/terramind/bdgf.yaml ... run=runs/terramind-bdgf        # once, for the denoiser
    python benchmarks/few_labels/guides.py --denoiser runs/terramind-bdgf --draws 3  # all candidates, an hour on a CPU
    python benchmarks/few_labels/guides.py --denoiser runs/terramind-bdgf --candidates none,full,probe --labels 5,10,20
    python benchmarks/few_labels/guides.py --candidates logistic+probe    # their probabilities averaged, after both
    python benchmarks/few_labels/guides.py --table --against probe

Networks have the size and the pixel maps of the scenes' `bdgf.yaml` (view 7, width 32) and learn for `--steps` of 32
pixels, in float32; there is no validation, and what the last step leaves is scored, on every `--every`-th test pixel.
Scores go to `--out` as those of `run.py`, logits to the folder of the same name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from run import HERE, METHODS, PROBE, Place, tables
from scipy.special import softmax
from torch import Tensor, nn

from landfuse.accuracy.confusion import Confusion
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.settings import FeatureSettings
from landfuse.legend import UNLABELLED
from landfuse.models import MODELS
from landfuse.models.base import Modality
from landfuse.models.bdgf import Bdgf, Scores
from landfuse.models.pixel_models import Pixels
from landfuse.models.settings import BdgfSettings
from landfuse.rasters.arrays import ArrayRaster
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.scenes.split_rules import TEST, TRAIN
from landfuse.training.lightning_task import optimizer_for, rate_share
from landfuse.training.recipe import read_recipe
from landfuse.training.samples import Samples, WindowSampler
from landfuse.training.settings import SampleSettings, TrainingSettings
from landfuse.views.mapped_pixels import fit_pixel_maps
from landfuse.views.settings import PixelMapSettings
from landfuse.views.store import Store

MODEL = {"view": 7, "width": 32, "embedding": 64, "heads": 2}
TRAINING = {"rate": 1e-3, "weight_decay": 0.05}
BATCH = 32


@dataclass(frozen=True)
class Candidate:
    """One way to use the features.

    Args:
        denoiser: `trained` or `untrained`; None for a network that is not guided.
        settings: of the network, beside `MODEL`.
        levels: which level guides which stage.
        timesteps: of the features.
        noise: how many draws of noise the features are a mean over.
        mean: whether they are a mean over the timesteps too.
        statistics: what standardises features: `labels`, training pixels as by default; `scene`, all pixels;
            `whitened`, 32 principal components of each level over all pixels.
        reads: how the features of the labelled pixel reach the answer: not at all (``), as further inputs of the final
            `head`, or by a linear `member` beside the branches.
        hide: fraction of the training samples whose images are hidden, so that only guides are left.
    """

    denoiser: str | None = "trained"
    settings: dict[str, Any] = field(default_factory=dict)
    levels: tuple[int, int, int] = (1, 2, 3)
    timesteps: tuple[int, ...] = (50, 150, 300)
    noise: int = 1
    mean: bool = False
    statistics: str = "labels"
    reads: str = ""
    hide: float = 0.0


FULL = Candidate()
FUSION = {"operators": {"cnn": "fusion", "mamba": "fusion", "transformer": "fusion"}}
MAMBA = {"operators": {"mamba": "fusion"}}
BOTH = {**MAMBA, "linear": True}
CANDIDATES: dict[str, Candidate] = {
    "none": Candidate(None, {"guidance": "none"}),
    "full": FULL,
    "untrained": Candidate("untrained"),
    "levels-2-3-1": Candidate(levels=(2, 3, 1)),
    "levels-3-2-1": Candidate(levels=(3, 2, 1)),
    "level-2": Candidate(levels=(2, 2, 2)),
    "level-3": Candidate(levels=(3, 3, 3)),
    "timesteps-6": Candidate(timesteps=(25, 50, 100, 150, 200, 300), settings={"timesteps": 6}),
    "noise-4": Candidate(noise=4),
    "timesteps-mean": Candidate(mean=True, settings={"timesteps": 1}),
    "scene-statistics": Candidate(statistics="scene"),
    "whitened": Candidate(statistics="whitened", settings={"timesteps": 1}),
    "mamba-fusion": Candidate(settings=MAMBA),
    "mamba-fusion-untrained": Candidate("untrained", settings=MAMBA),
    "all-fusion": Candidate(settings=FUSION),
    "head": Candidate(reads="head"),
    "member": Candidate(reads="member"),
    "hide": Candidate(hide=0.3),
    "late": Candidate(settings={"guidance": "none", "linear": True}),
    "late-mamba-fusion": Candidate(settings=BOTH),
    "late-mamba-fusion-untrained": Candidate("untrained", settings=BOTH),
}


class Guided(Bdgf):
    """BDGF with what a candidate changes."""

    def __init__(self, modalities: Any, classes: int, candidate: Candidate) -> None:
        config = BdgfSettings(**{**MODEL, **candidate.settings})
        super().__init__(modalities, classes, config)
        self.candidate = candidate
        if candidate.denoiser and config.guidance == "full":
            self.chosen = [list(candidate.levels) for _ in self.chosen]
        width = sum(self.modalities[name].channels for name in self.levels)
        if candidate.reads == "member":
            self.member = nn.Linear(width, classes)
            self.names = [*self.names, "features"]
        elif candidate.reads == "head":
            self.final = FinalHead(self.final, width, config.embedding, len(self.names))

    def scores(self, images: Any) -> Scores:
        if self.training and self.candidate.hide:
            shown = torch.rand(len(next(iter(images.values()))), 1, 1, 1) >= self.candidate.hide
            images = {name: image if name in self.levels else image * shown for name, image in images.items()}
        if not self.candidate.reads:
            return super().scores(images)
        middle = self.view // 2
        own = torch.cat([images[name][:, :, middle, middle] for name in self.levels], dim=1)[:, None]
        if self.candidate.reads == "head":
            self.final.own = own
            return super().scores(images)
        found = super().scores(images)
        return found._replace(branches=torch.cat([found.branches, self.member(own)[None]]))


class FinalHead(nn.Module):
    """The final head, which also reads the features of the labelled pixel."""

    own: Tensor

    def __init__(self, final: nn.Sequential, width: int, embedding: int, branches: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(width, embedding), nn.GELU())
        self.rest = nn.Sequential(nn.Linear((branches + 1) * embedding, embedding), *final[1:])

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.rest(torch.cat([features, self.enter(self.own)], dim=-1))
        return found


def scenes_of(place: Place, candidate: Candidate) -> list[Scene]:
    """The scenes with the features of a candidate among their modalities, in memory."""
    if candidate.denoiser is None:
        return place.scenes
    denoiser = replace(place, untrained=candidate.denoiser == "untrained").trained()
    found = []
    for scene in place.scenes:
        levels: dict[str, Any] = defaultdict(float)
        for seed in range(candidate.noise):
            settings = FeatureSettings(timesteps=candidate.timesteps, seed=seed)
            for name, part in DiffusionFeatures(denoiser, settings).of(scene).items():
                levels[name] += part.raster.read(scene.grid.window) / candidate.noise
        if candidate.mean:
            count = len(candidate.timesteps)
            levels = {n: v.reshape(count, -1, *v.shape[1:]).mean(axis=0) for n, v in levels.items()}
        own = {name: SceneModality(ArrayRaster(values, "CHW", scene.grid, name)) for name, values in levels.items()}
        found.append(scene.with_modalities(own))
    return found


class Draws:
    """One draw of labels after another, for the candidates whose scenes are the same."""

    def __init__(self, place: Place, scenes: Sequence[Scene], every: int) -> None:
        self.place, self.scenes, self.every = place, scenes, every
        self.unlabelled: dict[str, Any] = {}
        self.recipe = read_recipe(HERE / place.name / "bdgf.yaml")

    def tested(self, roles: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
        """Every so many of the test pixels: tile, row, column, class."""
        found = []
        for tile, (scene, role, valid) in enumerate(zip(self.scenes, roles, self.place.valid, strict=True)):
            rows, cols = np.nonzero((role == TEST) & valid & (scene.labels != UNLABELLED))
            found.append(np.stack([np.full_like(rows, tile), rows, cols, scene.labels[rows, cols]], axis=1))
        return np.concatenate(found)[:: self.every].astype(np.int64)

    def pixel_maps(self, candidate: Candidate, roles: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        """Images by the training pixels, features by the candidate's statistics."""
        names = list(self.scenes[0].modalities)
        levels = [name for name in names if name.startswith("diffusion_")]
        labelled = [role == TRAIN for role in roles]
        chosen = dict.fromkeys(names, PixelMapSettings()) | self.recipe.pixel_maps
        if candidate.statistics == "labels":
            return fit_pixel_maps(self.scenes, labelled, chosen)
        if not self.unlabelled:
            bands = {name: self.scenes[0].modalities[name].raster.bands for name in levels}
            kinds = {name: PixelMapSettings() for name in levels}
            if candidate.statistics == "whitened":
                kinds = {name: PixelMapSettings(kind="pca", components=min(32, bands[name])) for name in levels}
            self.unlabelled = fit_pixel_maps(self.scenes, self.place.valid, kinds)
        images = fit_pixel_maps(self.scenes, labelled, {n: chosen[n] for n in names if n not in levels})
        return {**images, **self.unlabelled}

    def score(self, candidate: Candidate, labels: int, draw: int, steps: int) -> tuple[Confusion, NDArray[np.float32]]:
        """Trains a candidate on a draw and scores it; also its logits."""
        roles = self.place.drawn(labels, draw)
        maps = self.pixel_maps(candidate, roles)
        store = Store(self.scenes, maps, MODEL["view"], 8 << 30)
        torch.manual_seed(draw)
        network = Guided(store.modalities, len(self.place.file.legend), candidate).train()
        targets = [
            np.where(r == TRAIN, s.labels, UNLABELLED).astype(np.uint8) for r, s in zip(roles, self.scenes, strict=True)
        ]
        samples = Samples(store, targets, network.view, network.core)
        chosen = SampleSettings(batch=BATCH, windows=BATCH * steps, balanced=True)
        settings = TrainingSettings(seed=draw, **TRAINING)
        optimiser = optimizer_for(network, settings)
        for step, batch in enumerate(WindowSampler(samples, chosen, train=True, seed=draw)):
            network.progress = step / steps
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * rate_share(step, settings, steps)
            sample = samples[batch]
            optimiser.zero_grad()
            network.loss(sample.images, sample.target)["loss"].backward()
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimiser.step()
        tested = torch.from_numpy(self.tested(roles))
        network.eval()
        logits = np.empty((len(tested), network.classes), np.float32)
        with torch.inference_mode():
            for members, _, mapped in store.grouped(tested[:, :3]):
                for part in members.split(256):
                    rows, cols = tested[part, 1] - network.halo, tested[part, 2] - network.halo
                    logits[part] = network(mapped.views(rows, cols, network.view))[:, :, 0, 0].numpy()
        return self._confusion(tested.numpy(), logits), logits

    def baseline(self, method: str, seen: Sequence[NDArray[np.float32]], labels: int, draw: int) -> Any:
        """The same of a model of single pixels, as in `run.py`."""
        roles = self.place.drawn(labels, draw)
        tested = self.tested(roles)
        chosen = [role == TRAIN for role in roles]
        x = np.concatenate([own[one] for own, one in zip(seen, chosen, strict=True)])
        y = np.concatenate([scene.labels[one] for scene, one in zip(self.scenes, chosen, strict=True)])
        name, settings = METHODS[method]
        inputs = {"diffusion_1" if settings == PROBE else "all": Modality(x.shape[1])}
        model: Any = MODELS[name](inputs, len(self.place.file.legend), **settings)  # type: ignore[call-arg]
        fitted = model.learn(Pixels(x, y), 0, Pixels(x[:0], y[:0]), None)
        logits = fitted.logits(np.stack([seen[tile][row, col] for tile, row, col, _ in tested]))
        return self._confusion(tested, logits), logits

    def average(self, logits: Sequence[NDArray[np.float32]], labels: int, draw: int) -> Any:
        """The same of methods whose probabilities are averaged."""
        mean = np.mean([softmax(own, axis=1) for own in logits], axis=0)
        return self._confusion(self.tested(self.place.drawn(labels, draw)), mean), mean

    def _confusion(self, tested: NDArray[np.int64], logits: NDArray[Any]) -> Confusion:
        confusion = Confusion.of(self.place.file.legend)
        confusion.update(tested[:, 3].astype(np.uint8), logits.argmax(axis=1).astype(np.uint8))
        return confusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="terramind")
    parser.add_argument("--denoiser", type=Path, help="a run, or a folder of a trained denoiser of the scene")
    parser.add_argument("--candidates", default=",".join(["probe", "probe-untrained", "logistic", *CANDIDATES]))
    parser.add_argument("--labels", default="10", help="per class")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels/guides.jsonl"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--against", default="none", help="the method that the tables compare with")
    options = parser.parse_args()
    options.out.with_suffix("").mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["scene"], line["method"], line["labels"], line["draw"]) for line in lines}
    place = Place(options.scene, options.denoiser)
    wanted = [int(one) for one in options.labels.split(",")]
    for name in [] if options.table else options.candidates.split(","):
        jobs = [(k, d) for k in wanted for d in range(options.draws) if (place.name, name, k, d) not in done]
        if not jobs:
            continue
        if "+" in name:
            run = Draws(place, place.scenes, options.every)
        elif name in CANDIDATES:
            run = Draws(place, scenes_of(place, CANDIDATES[name]), options.every)
        else:
            place.untrained = name == "probe-untrained"
            run = Draws(place, place.scenes, options.every)
            windows = MODELS[METHODS[name][0]].Settings(**METHODS[name][1]).windows
            seen = place.features(windows, METHODS[name][1] == PROBE)
        for labels, draw in jobs:
            start = time.process_time()
            if "+" in name:
                files = [
                    options.out.with_suffix("") / f"{place.name}-{one}-{labels}-{draw}.npy" for one in name.split("+")
                ]
                confusion, logits = run.average([np.load(file).astype(np.float32) for file in files], labels, draw)
            elif name in CANDIDATES:
                confusion, logits = run.score(CANDIDATES[name], labels, draw, options.steps)
            else:
                confusion, logits = run.baseline(name, seen, labels, draw)
            seconds = round(time.process_time() - start, 1)
            line = {"scene": place.name, "method": name, "labels": labels, "draw": draw, "seconds": seconds}
            lines.append({**line, **confusion.scores()})
            np.save(options.out.with_suffix("") / f"{place.name}-{name}-{labels}-{draw}.npy", logits.astype(np.float16))
            with options.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(name, labels, draw, f"{lines[-1]['OA']:.4f} {lines[-1]['mIoU']:.4f}", seconds, flush=True)
    print(tables(lines, options.against))


if __name__ == "__main__":
    main()
