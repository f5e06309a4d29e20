"""How fast the models of single pixels train and map, beside scikit-learn and with and without context, in one run.

    OMP_NUM_THREADS=1 python benchmarks/speed/forest.py [--side 448] [--trees 100] [--repeats 5]

A scene of 14 noisy bands; the forests are grown from 10,000 of its pixels. All take turns; medians of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.models.pixel_tables import features_of
from landfuse.scenes.scene import Scene
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

BANDS = {"s2": 12, "s1": 2}
WINDOWS = (3, 7, 15)


def fitted(scene: Scene, windows: tuple[int, ...], name: str = "forest", **settings: int) -> Bundle:
    """A model of a scene, which learnt from 10,000 pixels."""
    maps = {name: PixelMap(torch.ones(bands), torch.zeros(bands)) for name, bands in BANDS.items()}
    infos = {name: part.info for name, part in scene.modalities.items()}
    bundle = Bundle(ModelSpec(name, {"context": list(windows), **settings}), maps, infos, scene.legend)
    halo = bundle.model.halo
    images = {name: torch.from_numpy(scene.read(name, scene.grid.window.padded(halo)))[None] for name in BANDS}
    rng = np.random.default_rng(0)
    target = np.where(rng.random(scene.labels.shape) < 10_000 / scene.labels.size, scene.labels, UNLABELLED)
    bundle.model.fit([(images, torch.from_numpy(target.astype(np.uint8))[None])], 0)
    return bundle.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=448, help="of the scene, px")
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    scene = simulate_flat(options.side, options.side, BANDS)
    rng = np.random.default_rng(1)
    noisy = {name: scene.read(name, scene.grid.window) for name in BANDS}
    noisy = {name: values + rng.normal(0, 1, values.shape).astype(np.float32) for name, values in noisy.items()}
    scene = Scene.from_arrays(noisy, scene.legend.to_codes(scene.labels), legend=scene.legend, unlabelled=255)
    pixels = features_of({n: v.transpose(1, 2, 0)[None] for n, v in noisy.items()}, dict.fromkeys(BANDS, 1))
    chosen = rng.choice(len(pixels), 10_000, replace=False)
    rival = RandomForestClassifier(options.trees, n_jobs=1).fit(pixels[chosen], scene.labels.ravel()[chosen])
    plain, context = (fitted(scene, windows, trees=options.trees) for windows in ((), WINDOWS))
    trained = pixels[chosen], scene.labels.ravel()[chosen]
    boosting = HistGradientBoostingClassifier(
        max_iter=50, min_samples_leaf=5, l2_regularization=1.0, early_stopping=False
    )
    trees = plain.model.tables
    padded = {name: scene.read(name, scene.grid.window.padded(WINDOWS[-1] // 2)) for name in BANDS}
    images = {name: values.transpose(1, 2, 0)[None].copy() for name, values in padded.items()}
    runs: dict[str, Callable[[], object]] = {
        "scikit-learn grows a forest": lambda: RandomForestClassifier(options.trees, n_jobs=1).fit(*trained),
        "landfuse trains `forest`": lambda: fitted(scene, (), trees=options.trees),
        "scikit-learn boosts, 50 rounds": lambda: boosting.fit(*trained),
        "landfuse trains `boosted`, 50 rounds": lambda: fitted(scene, (), "boosted", rounds=50),
        "the features of the context alone": lambda: features_of(images, dict.fromkeys(BANDS, 1), WINDOWS),
        "scikit-learn's predict_proba, pixels": lambda: rival.predict_proba(pixels),
        "landfuse's trees alone, pixels": lambda: trees.logits(pixels),
        "landfuse maps, pixels": lambda: list(map_blocks(plain, scene)),
        "landfuse maps, with context": lambda: list(map_blocks(context, scene)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    for name, values in times.items():
        print(f"{name:40s} {statistics.median(values):7.2f} s  ({len(pixels):,} px, {options.trees} trees)")


if __name__ == "__main__":
    main()
