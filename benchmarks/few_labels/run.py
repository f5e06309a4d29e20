r"""Which method wins with few labels: the same draws of labels for every method, scored on test blocks apart.

    python benchmarks/simulated/scene.py                    # once; TerraMind and IDTReeS as in their scene files
    python benchmarks/few_labels/run.py                     # the baselines, on a CPU: half an hour
    python benchmarks/few_labels/run.py --denoiser terramind=runs/terramind-bdgf --methods probe,probe-untrained
    python benchmarks/few_labels/run.py --recipe bdgf=bdgf.yaml --methods "" --scenes terramind --labels 10
    python benchmarks/few_labels/run.py --table             # only the tables of what has run

The size for a GPU, which has not been run; the draws of a scene share one denoiser:

    SIZE="--set training.precision=auto --set model.view=11 --set model.width=64 --set model.embedding=128 \
        --set model.heads=4"
    python benchmarks/few_labels/run.py --methods "" --recipe bdgf=bdgf.yaml $SIZE \
        --set pretrain.base=64 --set pretrain.batch=64 --set pretrain.steps=4000
    python benchmarks/few_labels/run.py --methods "" --recipe unguided=bdgf.yaml $SIZE \
        --set pretrain=null --set features=null
    python benchmarks/few_labels/run.py --methods probe,probe-untrained --scenes terramind \
        --denoiser terramind=runs/few_labels/terramind-bdgf-10-0        # and likewise of the other scenes

A draw takes so many pixels of each class of the scene file's training role; where the split has folds, draw `d` takes
fold `d % folds`. Nothing is chosen on test pixels, and there is no validation: all settings are defaults (of boosting
100 rounds). Scores go to `--out`, one line of JSON per scene, method, budget and draw; those that are there are not
computed again. Trees see values as they are; `logistic` standardises by the pixels of its draw.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.confusion import Confusion
from landfuse.diffusion.features import DiffusionFeatures
from landfuse.diffusion.settings import FeatureSettings, PretrainSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, load_denoiser
from landfuse.legend import UNLABELLED
from landfuse.models import MODELS
from landfuse.models.base import Modality
from landfuse.models.pixel_models import PixelModel, Pixels
from landfuse.models.pixel_tables import features_of
from landfuse.scenes.scene import Scene, validity
from landfuse.scenes.scene_file import SceneFile, read_scene_file
from landfuse.scenes.split_rules import TEST, TRAIN, Roles
from landfuse.training.pretrain import pretrain
from landfuse.training.recipe import merged_split, read_recipe
from landfuse.training.run import read_run
from landfuse.training.train import train_on
from landfuse.training.training_data import TrainingData, checked_data

HERE = Path(__file__).resolve().parents[1]
SCENES = {"terramind": ("s2", "s1", "dem"), "idtrees": ("hsi", "chm"), "simulated": ("hsi", "height")}
WINDOWS = (3, 7, 15)
PROBE = {"features": "diffusion"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "forest": ("forest", {"leaf": 1}),
    "forest-pixels": ("forest", {"context": []}),
    "boosted": ("boosted", {"rounds": 100}),
    "logistic": ("logistic", {}),
    "logistic-pixels": ("logistic", {"features": "pixels"}),
    "probe": ("logistic", PROBE),
    "probe-untrained": ("logistic", PROBE),
}
"""Method -> model and settings; the probes need a denoiser."""


@dataclass
class Place:
    """A scene file, its tiles, and what models of single pixels see of them.

    Args:
        name: of the folder in `benchmarks/`.
        denoiser: a run, or a folder of a denoiser of these scenes, for the probes.
        untrained: take one of the same form that is not trained in its place.
    """

    name: str
    denoiser: Path | None = None
    untrained: bool = False

    @cached_property
    def file(self) -> SceneFile:
        return read_scene_file(HERE / self.name / "scene.yaml")

    @cached_property
    def scenes(self) -> list[Scene]:
        return list(self.file.scenes(SCENES[self.name]))

    @property
    def folds(self) -> int:
        return getattr(self.file.settings.split, "folds", None) or 0

    def roles(self, draw: int) -> list[Roles]:
        """Those of the scene file's split, in the draw's fold."""
        split = merged_split(self.file.settings.split, {"fold": draw % self.folds} if self.folds else None)
        return list(self.file.roles(self.scenes, split))

    def drawn(self, labels: int, draw: int) -> list[Roles]:
        """The same, with so many training pixels of each class, and no validation."""
        rng = np.random.default_rng(draw)
        roles = [np.where(role == TEST, role, 0).astype(role.dtype) for role in self.roles(draw)]
        pool = [np.argwhere((r == TRAIN) & v) for r, v in zip(self.roles(draw), self.valid, strict=True)]
        places = np.concatenate([np.insert(own, 0, tile, axis=1) for tile, own in enumerate(pool)])
        classes = np.concatenate([s.labels[tuple(own.T)] for s, own in zip(self.scenes, pool, strict=True)])
        for known in np.unique(classes[classes != UNLABELLED]):
            own = places[classes == known]
            for tile, row, col in own[rng.permutation(len(own))[:labels]]:
                roles[tile][row, col] = TRAIN
        return roles

    @cached_property
    def valid(self) -> list[NDArray[np.bool_]]:
        """Where every modality has data."""
        return [
            np.all([validity(s.read(n, s.grid.window), s.modalities[n].info) for n in SCENES[self.name]], axis=0)
            for s in self.scenes
        ]

    def features(self, windows: tuple[int, ...], diffusion: bool) -> list[NDArray[np.float32]]:
        """What a model sees of each tile, (H, W, D)."""
        halo, found = max(windows, default=1) // 2, []
        for scene in self.scenes:
            names = SCENES[self.name]
            if diffusion:
                maker = DiffusionFeatures(self.trained(), FeatureSettings())
                scene, names = scene.with_modalities(maker.of(scene)), maker.settings.names
            images = {}
            for name in names:
                padding = ((0, 0), (halo, halo), (halo, halo))
                values = np.pad(scene.read(name, scene.grid.window), padding, constant_values=np.nan)
                images[name] = np.where(np.isfinite(values).all(axis=0), values, np.nan).transpose(1, 2, 0)[None]
            seen = features_of(images, dict.fromkeys(names, 1), windows)
            found.append(seen.reshape(scene.grid.height, scene.grid.width, -1))
        return found

    def trained(self) -> TrainedDenoiser:
        """The denoiser; or one of the same form and pixel maps that is not trained."""
        found = load_denoiser(str(self.denoiser))
        if not self.untrained:
            return found
        settings = PretrainSettings(**{**found.facts["settings"], "steps": 0, "start_from": None})
        data = TrainingData(self.scenes, self.roles(0), self.file.legend)
        return pretrain(settings, data, Path("runs/few_labels/denoisers") / self.name)


def scored(place: Place, model: PixelModel, pixels: Pixels, seen: list[NDArray[Any]], roles: list[Roles]) -> Confusion:
    """The scores of a model that has learnt some pixels, on the test pixels."""
    tables = model.learn(pixels, 0, Pixels(pixels.x[:0], pixels.y[:0]), None)
    confusion = Confusion.of(place.file.legend)
    for scene, own, role, valid in zip(place.scenes, seen, roles, place.valid, strict=True):
        tested = (role == TEST) & valid & (scene.labels != UNLABELLED)
        if tested.any():
            confusion.update(scene.labels[tested], tables.logits(own[tested]).argmax(axis=1).astype(np.uint8))
    return confusion


def baselines(place: Place, method: str, budgets: list[int], draws: int, done: set[Any]) -> Iterator[dict[str, Any]]:
    """The scores of a model of single pixels for every budget and draw."""
    name, settings = METHODS[method]
    kind = MODELS[name]
    windows = kind.Settings(**settings).windows
    seen = place.features(windows, settings == PROBE)
    names = {"diffusion_1": Modality(seen[0].shape[2])} if settings == PROBE else {"all": Modality(seen[0].shape[2])}
    for labels in budgets:
        for draw in range(draws):
            if (place.name, method, labels, draw) in done:
                continue
            roles = place.drawn(labels, draw)
            chosen = [role == TRAIN for role in roles]
            x = np.concatenate([own[one] for own, one in zip(seen, chosen, strict=True)])
            y = np.concatenate([scene.labels[one] for scene, one in zip(place.scenes, chosen, strict=True)])
            model: Any = kind(names, len(place.file.legend), **settings)  # type: ignore[call-arg]
            scores = scored(place, model, Pixels(x, y), seen, roles).scores()
            yield {"scene": place.name, "method": method, "labels": labels, "draw": draw, **scores}


def recipes(
    place: Place, method: str, path: str, changes: list[str], budgets: list[int], draws: int, done: set[Any]
) -> Iterator[dict[str, Any]]:
    """The scores of a recipe with changes, trained on every draw; its run folders stay."""
    for labels in budgets:
        for draw in range(draws):
            if (place.name, method, labels, draw) in done:
                continue
            run = Path(f"runs/few_labels/{place.name}-{method}-{labels}-{draw}")
            recipe = read_recipe(HERE / place.name / path, [*changes, f"run={run}", f"training.seed={draw}"])
            data = checked_data(place.scenes, place.drawn(labels, draw), place.file.legend)
            train_on(recipe, lambda own, data=data: replace(data), progress=False)  # type: ignore[misc]
            scores = read_run(run).scores["test"]
            yield {"scene": place.name, "method": method, "labels": labels, "draw": draw, **scores}


def tables(lines: list[Mapping[str, Any]], against: str) -> str:
    """Per scene a table of OA and one of mIoU: mean ± standard deviation, and paired differences to one method."""
    found: dict[Any, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        found[line["scene"], line["method"], line["labels"]][line["draw"]] = line
    text = []
    for scene in dict.fromkeys(line["scene"] for line in lines):
        methods = dict.fromkeys([*METHODS, *(line["method"] for line in lines)])
        budgets = sorted({line["labels"] for line in lines if line["scene"] == scene})
        for score in ("OA", "mIoU"):
            text += [f"\n{scene}, {score}, by labels per class:\n", f"| method | {' | '.join(map(str, budgets))} |"]
            text += [f"|---|{'---|' * len(budgets)}"]
            for method in methods:
                cells = [_cell(found, (scene, labels), method, against, score) for labels in budgets]
                if any(cells):
                    text.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _cell(found: Mapping[Any, Any], where: tuple[str, int], method: str, against: str, score: str) -> str:
    scene, labels = where
    own, first = found.get((scene, method, labels), {}), found.get((scene, against, labels), {})
    values = [line[score] for line in own.values()]
    if len(values) < 2:
        return ""
    text = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    pairs = [line[score] - first[draw][score] for draw, line in own.items() if draw in first]
    if own is first or len(pairs) < 2:
        return text
    wins = sum(pair > 0 for pair in pairs)
    return f"{text} ({statistics.mean(pairs):+.3f} ± {statistics.stdev(pairs):.3f}, {wins}/{len(pairs)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="terramind,idtrees,simulated")
    parser.add_argument("--methods", default="forest,forest-pixels,boosted,logistic,logistic-pixels")
    parser.add_argument("--labels", default="5,10,20,50", help="per class")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--denoiser", action="append", default=[], help="SCENE=RUN")
    parser.add_argument("--recipe", action="append", default=[], help="METHOD=FILE, in the scene's folder")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of these recipes, as in landfuse train")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels/scores.jsonl"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--against", default="forest", help="the method that the tables compare with")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["scene"], line["method"], line["labels"], line["draw"]) for line in lines}
    budgets = [int(one) for one in options.labels.split(",")]
    denoisers = dict(one.split("=", 1) for one in options.denoiser)
    for name in [] if options.table else options.scenes.split(","):
        for method, path in [
            *((one, None) for one in options.methods.split(",") if one),
            *(one.split("=", 1) for one in options.recipe),
        ]:
            place = Place(name, denoisers.get(name), method == "probe-untrained")
            runs = (
                recipes(place, method, path, options.set, budgets, options.draws, done)
                if path
                else baselines(place, method, budgets, options.draws, done)
            )
            for line in runs:
                lines.append(line)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(tables(lines, options.against))


if __name__ == "__main__":
    main()
