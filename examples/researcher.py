"""A researcher compares fusion methods: fixed splits, seeds, spread, and how far the split itself leaks.

    python examples/researcher.py [FOLDER]

Trains two methods on a scene with several seeds, on random pixels as many papers do and on blocks of ground, and prints
scores, their spread, the paired difference, and the leak fraction: that of test pixels whose view holds a training
pixel. The scene is simulated; for one of the field's, see `landfuse fetch` and `landfuse reproduce`, which do the same
in one command each.
"""
# ruff: noqa: T201

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import landfuse as lf
from landfuse.simulate.demo import write_demo_scene
from landfuse.studies.compare import compare

SPLITS = {
    "random": "split={kind: random, train: 0.1}",
    "blocks": "split={kind: blocks, size: 16, buffer: 3, test: 0.4}",  # 3 px: half the view of 7 px
}
RECIPES = {
    "forest": "scene: scene.yaml\npixel_maps: {default: {kind: none}}\nmodel: {name: forest, trees: 50, leaf: 2}\n",
    "two_branch": "scene: scene.yaml\npixel_maps: {hsi: {kind: pca, components: 12}}\n"
    "model: {name: two_branch, view: 7, width: 32}\n"
    "samples: {balanced: true, windows: 4000}\ntraining: {epochs: 8, rate: 2.0e-3, patience: null}\n",
}


def main(folder: Path, *, side: int = 192, seeds: int = 3, settings: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Returns split -> method -> mean OA."""
    write_demo_scene(folder, side=side)
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    result: dict[str, dict[str, float]] = {}
    for split, assignment in SPLITS.items():
        runs = []
        for method in RECIPES:
            for seed in range(seeds):
                run = folder / "runs" / split / method / f"seed-{seed}"
                recipe = folder / f"{method}.yaml"
                lf.train(recipe, assignment, *settings, f"training.seed={seed}", f"run={run}", progress=False)
                runs.append(run)
        comparison = compare(runs)
        print(f"\nsplit: {split}")
        for recipe in comparison.recipes:
            oa, miou = recipe.scores["OA"], recipe.scores["mIoU"]
            print(
                f"  {recipe.name}: OA {oa.mean:.3f} ± {oa.std:.3f}, mIoU {miou.mean:.3f} ± {miou.std:.3f},"
                f" {recipe.costs['leak_fraction'].mean:.0%} of the test pixels see a training pixel"
            )
        for one in comparison.differences:
            gap = one.scores["OA"]
            print(f"  {one.name} less {one.against}: OA {gap.mean:+.3f}, p = {one.p['OA']:.2f} over {gap.n} pairs")
        result[split] = {one.runs[0].recipe["model"]["name"]: one.scores["OA"].mean for one in comparison.recipes}
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "landfuse-researcher"))
