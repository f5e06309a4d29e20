"""Does the error grow with the dissimilarity, on ground like that of training and on other ground?

    python benchmarks/simulated/scene.py                   # once; TerraMind and IDTReeS as in their scene files
    python benchmarks/guarantee/applicability.py           # 9 cases, 3 models: about 10 minutes of one core
    python benchmarks/guarantee/applicability.py --cases simulated --models forest

Cases are the splits of the scene files, and the same with ground in the test that training has not seen: a whole place
(TerraMind), a class, or half of the scene with other values (simulated). Of the test, each third pixel of each third
row counts. AUROC: the probability that a wrong pixel has a higher value than a right one, by dissimilarity (`DI`), by
entropy, and by the sum of both ranks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from landfuse.accuracy.applicability import Applicability
from landfuse.bundles.bundle import Bundle
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.mapping.map_layers import entropy_of
from landfuse.rasters.arrays import ArrayRaster
from landfuse.scenes.scene import SceneModality
from landfuse.scenes.split_rules import TEST, UNUSED, VALIDATION
from landfuse.training.recipe import read_recipe
from landfuse.training.train import train_on
from landfuse.training.training_data import TrainingData, read_training_data

HERE = Path(__file__).resolve().parents[1]
MODELS = {
    "forest": ["model={name: forest, trees: 50, leaf: 2, pixels: 5000}"],
    "logistic": ["model={name: logistic, pixels: 5000, steps: 300}"],
    "two_branch": ["training.epochs=3", "samples.windows=4000", "samples.balanced=false", "training.patience=null"],
}
EDGES = (0.5, 0.75, 1.0)


def place(number: int) -> Callable[[TrainingData], TrainingData]:
    """A place that is only tested."""

    def change(data: TrainingData) -> TrainingData:
        roles = list(data.roles)
        roles[number] = np.where(data.scenes[number].labels == UNLABELLED, UNUSED, TEST).astype(np.uint8)
        return replace(data, roles=roles)

    return change


def lacking(name: str) -> Callable[[TrainingData], TrainingData]:
    """A class that training lacks."""

    def change(data: TrainingData) -> TrainingData:
        number = data.legend.names.index(name)
        pairs = zip(data.roles, data.scenes, strict=True)
        roles = [np.where((one != TEST) & (s.labels == number), UNUSED, one).astype(np.uint8) for one, s in pairs]
        return replace(data, roles=roles)

    return change


def shifted(data: TrainingData) -> TrainingData:
    """Reflectance that is a fifth higher in the right half, which is only tested."""
    scene, roles = data.scenes[0], data.roles[0].copy()
    half = scene.grid.width // 2
    roles[:, half:][roles[:, half:] != TEST] = UNUSED
    values = scene.read("hsi", scene.grid.window)
    values[:, :, half:] *= 1.2
    raster = ArrayRaster(values, "CHW", scene.grid, "hsi")
    hsi = SceneModality(raster, units=scene.modalities["hsi"].units)
    return replace(data, scenes=[replace(scene, modalities={**scene.modalities, "hsi": hsi})], roles=[roles])


CASES: Mapping[str, tuple[str, Callable[[TrainingData], TrainingData]]] = {
    "terramind": ("terramind", lambda data: data),
    **{f"terramind, place {n + 1} only tested": ("terramind", place(n)) for n in range(3)},
    "idtrees": ("idtrees", lambda data: data),
    "simulated": ("simulated", lambda data: data),
    "simulated, without building": ("simulated", lacking("building")),
    "simulated, without water": ("simulated", lacking("water")),
    "simulated, half brighter": ("simulated", shifted),
}


def thinned(data: TrainingData) -> tuple[TrainingData, TrainingData]:
    """What is trained on, without validation and with one test pixel; and the test, a ninth of its pixels."""
    every = np.concatenate([np.insert(np.argwhere(one == TEST), 0, n, axis=1) for n, one in enumerate(data.roles)])
    every = every[(every[:, 1] % 3 == 1) & (every[:, 2] % 3 == 1)]
    roles = [np.where((one == TEST) | (one == VALIDATION), UNUSED, one).astype(np.uint8) for one in data.roles]
    test = [np.zeros_like(one) for one in roles]
    for n, row, col in every.tolist():
        test[n][row, col] = TEST
    n, row, col = every[0]
    roles[n][row, col] = TEST
    return replace(data, roles=roles), replace(data, roles=test)


def tested(bundle: Bundle, data: TrainingData) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Dissimilarity, (1 + M, P), entropy and whether it is wrong, of the test pixels."""
    found = []
    for scene, roles in zip(data.scenes, data.roles, strict=True):
        for part in map_blocks(bundle, scene, wanted=roles == TEST, applicability=True):
            inside = part.window.within(scene.grid.window)
            known = (part.classes != UNLABELLED) & (roles[inside] == TEST)
            wrong = part.classes != scene.labels[inside]
            values = part.dissimilarity_in(slice(None))
            found.append((values[:, known], entropy_of(part.probabilities)[known], wrong[known]))
    values, entropy, wrong = zip(*found, strict=True)
    return np.concatenate(values, axis=1), np.concatenate(entropy), np.concatenate(wrong)


def row(case: str, model: str, names: Sequence[str], bundle: Bundle, data: TrainingData) -> str:
    values, entropy, wrong = tested(bundle, data)
    together = values[0]

    def auroc(scores: NDArray[np.floating]) -> str:
        known = np.isfinite(scores)
        return f"{roc_auc_score(wrong[known], scores[known]):.2f}" if 0 < wrong[known].sum() < known.sum() else "–"

    def error(where: NDArray[np.bool_]) -> str:
        return f"{wrong[where].mean():.2f} ({where.mean():.0%})" if where.any() else "– (0%)"

    bins = [error((together > low) & (together <= high)) for low, high in zip((-1, *EDGES), (*EDGES, 9), strict=True)]
    single = ", ".join(f"{name} {auroc(one)}" for name, one in zip(names, values[1:], strict=True))
    cells = [case, model, f"{wrong.mean():.2f}", *bins, auroc(together), auroc(entropy),
             auroc(rankdata(together) + rankdata(entropy)), single]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    head = [
        "case",
        "model",
        "error",
        "DI to 0.5",
        "0.5 to 0.75",
        "0.75 to 1",
        "above 1",
        "AUROC of DI",
        "of entropy",
        "of both",
        "of each",
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for case in options.cases:
        folder, change = CASES[case]
        for model in options.models:
            with tempfile.TemporaryDirectory() as scratch:
                words = [*MODELS[model], f"run={scratch}/run", *(["split.fold=0"] if folder == "idtrees" else [])]
                recipe = read_recipe(HERE / folder / f"{model}.yaml", words)
                data, test = thinned(change(read_training_data(recipe)))
                bundle = train_on(recipe, lambda own, data=data: data, progress=False)
                print(row(case, model, list(Applicability.of(bundle.description).points), bundle, test), flush=True)


if __name__ == "__main__":
    main()
