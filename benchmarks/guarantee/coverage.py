"""How often class sets hold the true class: in simulated fields of logits, in trained scenes, and under shift.

    python benchmarks/guarantee/coverage.py             # 5 minutes on one core; `scenes` alone: 1 minute

Fields: 1,000 of 256 x 256 px and five classes, cut into 256 blocks of 16 px. Logits are what the classes follow from,
plus errors; both are noise that is smoothed over 6 px. Of each block a number of pixels between 4 and 256 is labelled.
Calibration blocks are drawn among the blocks of a field; the others are new blocks of it. Beside the thresholds by
blocks, those of ordinary split conformal prediction, which counts pixels.

Scenes: 20, each with a forest on height and radar of simulated parcels, 384 x 384 px, split into blocks of 24 px with a
buffer. Then the same forests on another place of the same kind, under noisier sensors, in another season (plants that
are lower), and forests of the western half on the eastern one, where values change from west to east.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from sklearn.ensemble import RandomForestClassifier

from landfuse.accuracy.conformal import LEVELS, METHODS, coverage_of, scores_of, threshold_table, thresholds_of
from landfuse.bundles.calibration import fit_temperature, probabilities_of
from landfuse.legend import UNLABELLED
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import CALIBRATION, TEST, TRAIN, VALIDATION, BlocksSplit, RandomSplit
from landfuse.scenes.splits import assign
from landfuse.simulate.scene import simulate

CLASSES = 8
SIDE, BLOCK, K = 256, 16, 5
WIDE, SQUARE = 384, 24
COUNTS = (10, 20, 50, 128)
SHOWN = (0.8, 0.9, 0.95)


def field(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]]:
    """Labelled pixels of a field: (K, N) probabilities, (N,) classes, (N,) blocks."""
    rng = np.random.default_rng(seed)

    def smooth() -> NDArray[np.float64]:
        noise = gaussian_filter(rng.standard_normal((K, SIDE, SIDE)), (0, 6, 6), mode="wrap")
        return noise / noise.std()

    signal = smooth()
    logits = 3 * (signal + 0.9 * smooth()).astype(np.float32)
    rows, cols = np.indices((SIDE, SIDE)) // BLOCK
    blocks = rows * (SIDE // BLOCK) + cols
    kept = rng.random((SIDE, SIDE)) < np.exp(rng.uniform(np.log(4 / 256), 0, blocks.max() + 1))[blocks]
    z, truth = logits[:, kept], signal.argmax(axis=0)[kept].astype(np.uint8)
    some = rng.random(truth.size) < 0.1
    return probabilities_of(z, fit_temperature(z[:, some].T, truth[some])), truth, blocks[kept]


def of_blocks(values: NDArray[np.floating], blocks: NDArray[np.int64]) -> float:
    """The mean over blocks of the means of their pixels."""
    pixels = np.bincount(blocks)
    return float((np.bincount(blocks, values)[pixels > 0] / pixels[pixels > 0]).mean())


def sets_by(scores: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """As `sets_of`, of scores."""
    found = scores >= np.float32(threshold)
    return found | ~found.any(axis=0) & (scores == scores.max(axis=0))


def by_pixels(scores: NDArray[np.float32], level: float) -> float:
    """The threshold of ordinary split conformal prediction."""
    place = int(np.ceil((len(scores) + 1) * level)) - 1
    return float(np.sort(-scores)[min(place, len(scores) - 1)] * -1)


def fields(count: int) -> None:
    """Coverage of new blocks of the same field and of the field before, by blocks and by pixels."""
    found: dict[tuple[str, int, float, str], list[float]] = defaultdict(list)
    accuracies, before = [], None
    for seed in range(count):
        p, truth, blocks = field(seed)
        accuracies.append(of_blocks(p.argmax(axis=0) == truth, blocks))
        order = np.random.default_rng(seed).permutation(SIDE**2 // BLOCK**2)
        hard = p.max(axis=0) < np.quantile(p.max(axis=0), 0.2)
        scores = {method: scores_of(p, method) for method in METHODS}
        for method, every in scores.items():
            own = every[truth, np.arange(truth.size)]
            for number in COUNTS if method == METHODS[0] else COUNTS[-1:]:
                fits, new = np.isin(blocks, order[:number]), np.isin(blocks, order[128:])
                thresholds = thresholds_of(own[fits], blocks[fits])
                for level in SHOWN:
                    by_block = thresholds[np.searchsorted(LEVELS, level - 1e-9)]
                    if not np.isfinite(by_block):
                        continue
                    pairs = {"blocks": by_block}
                    if method == METHODS[0]:
                        pairs["pixels"] = by_pixels(own[fits], level)
                    for unit, threshold in pairs.items():
                        key = method, number, level
                        sets = sets_by(every[:, new], threshold)
                        held = sets[truth[new], np.arange(new.sum())]
                        found[*key, f"by {unit}"].append(of_blocks(held, blocks[new]))
                        if number == COUNTS[-1] and unit == "blocks":
                            found[*key, "size"].append(float(sets.sum(axis=0).mean()))
                            found[*key, "one class"].append(float((sets.sum(axis=0) == 1).mean()))
                            found[*key, "of the least sure 20%"].append(float(held[hard[new]].mean()))
                            if before is not None:
                                other, right, groups = before
                                sets = sets_by(other[method], threshold)
                                held = sets[right, np.arange(right.size)]
                                found[*key, "by blocks, another field"].append(of_blocks(held, groups))
        before = scores, truth, blocks
    print(f"{count} fields, accuracy {np.mean(accuracies):.3f}")
    for (method, number, level, what), values in found.items():
        low, high = np.percentile(values, [5, 95])
        print(f"{method:5} K={number:<4} {level:4} {what:26} {np.mean(values):.3f}  ({low:.3f} to {high:.3f})")


# ---- trained scenes --------------------------------------------------------------------------------------------------

Change = Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.float64]]


def same(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """As it is."""
    return values


def noisier(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise of 2 m and 2 dB more."""
    return values + 2 * rng.standard_normal(values.shape)


def lower(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Another season: heights of a half, and 2 dB less."""
    return values * [[[0.5]], [[1]], [[1]]] - [[[0]], [[2]], [[2]]]


def sloped(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Values that change from west to east, by 3 m and 4 dB."""
    return values + np.linspace(0, 1, WIDE) * [[[3]], [[4]], [[4]]]


@dataclass(frozen=True)
class Place:
    """A simulated scene: what a pixel is told apart by, (H, W, D), and where it is labelled, by block."""

    scene: Scene
    values: NDArray[np.float64]
    blocks: NDArray[np.int64]

    @staticmethod
    def of(seed: int, change: Change) -> Place:
        """Height and radar with noise, and their means over 5 x 5 px."""
        scene = simulate(WIDE, WIDE, seed, nodata_fraction=0.0)
        bands = np.concatenate([scene.read(name, scene.grid.window) for name in ("height", "sar")])
        bands = change(noisier(bands, np.random.default_rng(seed)), np.random.default_rng(seed + 1))
        means = [uniform_filter(band, 5) for band in bands]
        blocks = np.arange(WIDE)[:, None] // SQUARE * (WIDE // SQUARE) + np.arange(WIDE) // SQUARE
        return Place(scene, np.moveaxis(np.concatenate([bands, means]), 0, 2), blocks)

    def drawn(self, where: NDArray[np.bool_], most: int, seed: int) -> tuple[NDArray[Any], ...]:
        """At most so many labelled pixels of a part: values, classes, blocks."""
        flat = np.flatnonzero(where & (self.scene.labels != UNLABELLED))
        flat = np.random.default_rng(seed).permutation(flat)[:most]
        return self.values.reshape(-1, self.values.shape[2])[flat], self.scene.labels.flat[flat], self.blocks.flat[flat]


@dataclass(frozen=True)
class Forest:
    """A forest, calibrated on validation pixels."""

    trees: RandomForestClassifier
    temperature: float = 1.0

    @staticmethod
    def of(place: Place, train: NDArray[np.bool_], validation: NDArray[np.bool_] | None, seed: int) -> Forest:
        """Trained on the pixels of a part of a place."""
        values, truth, _ = place.drawn(train, 8000, seed)
        plain = Forest(RandomForestClassifier(20, min_samples_leaf=5, random_state=seed).fit(values, truth))
        if validation is None:
            return plain
        values, truth, _ = place.drawn(validation, 3000, seed)
        return replace(plain, temperature=fit_temperature(plain.logits(values).T, truth))

    def logits(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """(K, N)."""
        found = np.full((CLASSES, len(values)), -9.0, np.float32)
        found[self.trees.classes_] = np.log(np.maximum(self.trees.predict_proba(values), 1e-4)).T
        return found

    def scored(self, place: Place, where: NDArray[np.bool_], fold: int = 0) -> Any:
        """A sample of the pixels of a part, as `threshold_table` and `coverage_of` take it."""
        values, truth, blocks = place.drawn(where, 12_000, 1)
        return probabilities_of(self.logits(values), self.temperature), truth, blocks, np.full(len(truth), fold)


def scenes(count: int) -> None:
    """Coverage of trained forests on new blocks, on another place, and under shift."""
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)

    def measure(name: str, sample: Any, table: NDArray[np.float32]) -> None:
        accuracy = of_blocks(sample[0].argmax(axis=0) == sample[1], sample[2])
        names = [str(k) for k in range(CLASSES)]
        for method, levels in coverage_of(sample, [table], names)["levels"].items():
            for level, one in levels.items():
                if name == "new blocks" or method in ("lac", "lac by class"):
                    worst = min(value for value in one["classes"].values() if value is not None)
                    row = one["coverage"], worst, one["mean_size"], one["one_class"], accuracy
                    found[f"{name:28} {method:13} {level}"].append(row)

    for seed in range(count):
        place = Place.of(seed, same)
        split = BlocksSplit(kind="blocks", size=SQUARE, test=0.3, validation=0.2, calibration=0.4, buffer=4, seed=seed)
        (roles,) = assign([place.scene], split)
        forest = Forest.of(place, roles == TRAIN, roles == VALIDATION, seed)
        aside = forest.scored(place, roles == CALIBRATION)
        found["calibration blocks"].append((len(np.unique(aside[2])),))
        table, test = threshold_table(*aside[:3]), roles == TEST
        measure("new blocks", forest.scored(place, test), table)
        everywhere = np.ones_like(test)
        elsewhere = Place.of(seed + 500, same)
        measure("another place", forest.scored(elsewhere, everywhere), table)
        measure("noisier sensors", forest.scored(Place.of(seed, noisier), test), table)
        measure("another season", forest.scored(Place.of(seed, lower), test), table)
        parts = []
        for fold in range(3):
            folds = BlocksSplit(kind="blocks", size=SQUARE, folds=3, fold=fold, buffer=4, seed=seed)
            (own,) = assign([place.scene], folds)
            parts.append(Forest.of(place, own == TRAIN, own == VALIDATION, seed).scored(place, own == TEST))
        crossed = threshold_table(*(np.concatenate(one, axis=-1) for one in list(zip(*parts, strict=True))[:3]))
        whole = Forest.of(place, everywhere, None, seed)
        measure("cross-fitted, another place", whole.scored(elsewhere, everywhere), crossed)
        (pixels,) = assign([place.scene], RandomSplit(kind="random", train=0.7, validation=0, seed=seed))
        half = np.random.default_rng(seed).random(pixels.shape) < 0.4
        mixed = Forest.of(place, (pixels == TRAIN) & ~half, None, seed)
        near = threshold_table(*mixed.scored(place, (pixels == TRAIN) & half)[:3])
        measure("pixels at random, new place", mixed.scored(elsewhere, everywhere), near)
        place = Place.of(seed, sloped)
        west = np.arange(WIDE) < WIDE // 2
        forest = Forest.of(place, (roles == TRAIN) & west, (roles == VALIDATION) & west, seed)
        table = threshold_table(*forest.scored(place, (roles == CALIBRATION) & west)[:3])
        measure("trained in the west: west", forest.scored(place, test & west), table)
        measure("trained in the west: east", forest.scored(place, everywhere & ~west), table)
    print(f"{count} scenes: coverage, least covered class, size, one class, accuracy; SD of the coverage")
    for name, rows in found.items():
        print(
            f"{name:48} " + "  ".join(f"{v:.3f}" for v in np.mean(rows, axis=0)) + f"  SD {np.std(rows, axis=0)[0]:.3f}"
        )


if __name__ == "__main__":
    if "scenes" not in sys.argv:
        fields(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    scenes(int(sys.argv[2]) if len(sys.argv) > 2 else 20)
