"""Precision at k of `landfuse audit` where a tenth of the labels is made wrong on purpose.

    python benchmarks/guarantee/audit.py simulated|terramind|idtrees [--seeds 3]

Of each scene a tenth of the labels (polygons; of rasters pieces of regions within blocks of 16 px) gets another class
at random, then the labels are ranked. A label is wrong if most of its pixels are. Beside the order of the audit stand
those by the margin over the best other class, by the fraction of pixels that disagree, and by the worst pixel of each
label, which is where a list of doubtful pixels would lead.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.legend import UNLABELLED
from landfuse.rasters.vector_map import number_patches
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scenes
from landfuse.simulate.scene import simulate
from landfuse.studies.label_audit import audit
from landfuse.training.recipe import Recipe

HERE = Path(__file__).resolve().parents[1]
BLOCK, FOLDS, FRACTION = 16, 3, 0.1
FOREST: dict[str, Any] = {"name": "forest", "trees": 40, "context": [3], "pixels": 20_000}
RECIPES: dict[str, dict[str, Any]] = {
    "simulated": {"model": FOREST},
    "terramind": {"model": FOREST},
    "idtrees": {
        "model": FOREST,
        "modalities": ["hsi", "chm"],
        "pixel_maps": {"hsi": {"kind": "pca", "components": 12}},
    },
}


def scenes_of(name: str, seed: int) -> list[Scene]:
    """The tiles; another field for each seed where it is simulated."""
    if name == "simulated":
        return [simulate(128, 128, seed)]
    return open_scenes(HERE / name / "scene.yaml")


def with_errors(scenes: list[Scene], seed: int) -> tuple[list[Scene], list[NDArray[np.bool_]]]:
    """The scenes with a tenth of their labels wrong, and where they are."""
    rng = np.random.default_rng(seed)
    result, wrong = [], []
    kinds = np.unique(np.concatenate([np.unique(scene.labels) for scene in scenes]))
    kinds = kinds[kinds != UNLABELLED]
    for scene in scenes:
        labels = scene.labels.copy()
        if scene.read_polygons is not None:
            keys = scene.read_polygons()
        else:
            rows, cols = (np.arange(side) // BLOCK for side in labels.shape)
            keys = number_patches(labels)[0] * np.int64(10**6) + rows[:, None] * 1000 + cols
        known = labels != UNLABELLED
        units = np.unique(keys[known])
        chosen = units[rng.uniform(size=len(units)) < FRACTION]
        for unit in chosen:
            here = known & (keys == unit)
            labels[here] = rng.choice(kinds[kinds != labels[here][0]])
        result.append(replace(scene, read_labels=partial(np.asarray, labels)))
        wrong.append(labels != scene.labels)
    return result, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    for seed in range(options.seeds):
        scenes, wrong = with_errors(scenes_of(options.scene, seed), seed)
        recipe = Recipe(scene="arrays:audit", **RECIPES[options.scene])
        scenes = [
            replace(one, modalities={name: one.modalities[name] for name in recipe.modalities or one.modalities})
            for one in scenes
        ]
        done = audit(scenes, recipe, folds=FOLDS, side=BLOCK, progress=False)
        count = 1 + max(int(here.max()) for here in done.numbers)
        share, pixels = np.zeros(count), np.zeros(count)
        for here, false in zip(done.numbers, wrong, strict=True):
            share += np.bincount(here.ravel(), false.ravel(), count)
            pixels += np.bincount(here.ravel(), minlength=count)
        truth = np.array([2 * share[row.label] >= pixels[row.label] for row in done.rows])
        orders = {
            "audit": np.arange(len(truth)),
            "margin": np.argsort([row.margin for row in done.rows], kind="stable"),
            "pixels that disagree": np.argsort([-row.disagree for row in done.rows], kind="stable"),
            "worst pixel": np.argsort(done.lowest, kind="stable"),
        }
        base = truth.mean()
        doubtful = np.array([row.doubtful for row in done.rows])
        print(
            f"{options.scene} seed {seed}: {len(truth)} labels, {truth.sum()} wrong ({base:.3f}); {doubtful.sum()} "
            f"doubtful: {truth[doubtful].mean():.3f} of them wrong, {doubtful[truth].mean():.3f} of the wrong",
            flush=True,
        )
        for name, order in orders.items():
            right = truth[order]
            found.setdefault(name, []).append([right[:k].mean() for k in (10, 20, 50, int(truth.sum()))])
    for name, values in found.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        print(f"| {options.scene} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
