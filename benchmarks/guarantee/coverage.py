"""How often class sets hold the true class: in simulated fields of logits, in trained scenes, and under shift.

    python benchmarks/guarantee/coverage.py [fields] [scenes]        # 1000 and 20: about 15 minutes on one core

Fields: 256 x 256 px of five classes, cut into 256 blocks of 16 px. Logits are what the classes follow from, plus
errors; both are noise that is smoothed over 6 px. Of each block a number of pixels between 4 and 256 is labelled.
Calibration blocks are drawn among the blocks of a field; the others are new blocks of it. Beside the thresholds by
blocks, those of ordinary split conformal prediction, which counts pixels.

Scenes: a forest on height and radar of simulated parcels, 384 x 384 px, split into blocks of 24 px. Then the same
forests under shift: another place of the same kind, noisier sensors, plants that are lower, and a slope of the values
across the scene with training on one side and the test on the other.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import landfuse as lf
from landfuse.accuracy.conformal import LEVELS, METHODS, ClassSets, scores_of, sets_of, thresholds_of
from landfuse.bundles.calibration import fit_temperature, probabilities_of
from landfuse.legend import UNLABELLED
from landfuse.simulate.scene import simulate

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


Images = dict[str, NDArray[np.float32]]


def opened(seed: int, change: Callable[[Images, np.random.Generator], Images]) -> tuple[Images, NDArray[np.uint8]]:
    """Arrays and codes of a simulated scene."""
    scene = simulate(WIDE, WIDE, seed, nodata_fraction=0.0)
    images = {name: scene.read(name, scene.grid.window) for name in ("height", "sar")}
    images = noisier(images, np.random.default_rng(seed))
    codes = scene.legend.to_codes(scene.labels)
    return {n: v.astype(np.float32) for n, v in change(images, np.random.default_rng(seed + 1)).items()}, codes


def same(images: Images, rng: np.random.Generator) -> Images:
    """As it is."""
    return images


def noisier(images: Images, rng: np.random.Generator) -> Images:
    """Noise of 2 m and 2 dB more."""
    return {n: v + 2 * rng.standard_normal(v.shape) for n, v in images.items()}


def lower(images: Images, rng: np.random.Generator) -> Images:
    """Another season: heights of a half, and 2 dB less."""
    return {"height": images["height"] * 0.5, "sar": images["sar"] - 2}


def sloped(images: Images, rng: np.random.Generator) -> Images:
    """Values that change from west to east, by 3 m and 4 dB."""
    across = np.linspace(0, 1, WIDE)
    return {"height": images["height"] + 3 * across, "sar": images["sar"] + 4 * across}


def trained(images: Images, codes: NDArray[np.uint8], **more: object) -> lf.Classifier:
    """A fitted forest."""
    split = {"kind": "blocks", "size": SQUARE, "test": 0.3, "validation": 0.2, "calibration": 0.4, "buffer": 4} | more
    clf = lf.Classifier("forest", trees=20, context=[5], use="all" if "folds" in more else "train")
    return clf.fit(images, codes, split, unlabelled=UNLABELLED, progress=False)


Rows = dict[tuple[str, str], list[tuple[float, ...]]]


def measure(found: Rows, name: str, clf: lf.Classifier, images: Images, codes: NDArray[np.uint8]) -> None:
    """Adds coverage by blocks on the labelled pixels, the sets' mean size, the fraction of one class, and accuracy."""
    known = codes != UNLABELLED
    p = clf.predict_proba(images, progress=False)[:, known]
    blocks = (np.indices(codes.shape)[0] // SQUARE * (WIDE // SQUARE) + np.indices(codes.shape)[1] // SQUARE)[known]
    truth = np.searchsorted(clf.classes_, codes[known])
    accuracy = of_blocks(p.argmax(axis=0) == truth, blocks)
    for level in SHOWN:
        sets = sets_of(p, ClassSets.of(clf.description).thresholds(level)[:, None], METHODS[0])
        size = sets.sum(axis=0)
        row = of_blocks(sets[truth, np.arange(truth.size)], blocks), size.mean(), (size == 1).mean(), accuracy
        found[name, f"{METHODS[0]} {level}"].append(tuple(map(float, row)))


def scenes(count: int) -> None:
    """Coverage on the test blocks of trained scenes, and of their forests under shift."""
    found: Rows = defaultdict(list)
    for seed in range(count):
        images, codes = opened(seed, same)
        plain, crossed = trained(images, codes), trained(images, codes, folds=5, calibration=0)
        for name, clf in (("set aside", plain), ("cross-fitted", crossed)):
            sets = clf.run.scores["sets"]
            for method, levels in sets["test"]["levels"].items():
                for level, one in levels.items():
                    row = (
                        one["coverage"],
                        one["mean_size"],
                        one["one_class"],
                        min(filter(None, one["classes"].values())),
                    )
                    found[name, f"{method} {level}"].append(row)
            found[name, "blocks"].append((float(sets["blocks"]),))
        for name, number, change in (
            ("another place", seed + 500, same),
            ("noisier sensors", seed, noisier),
            ("another season", seed, lower),
        ):
            there, labels = opened(number, change)
            if number == seed:
                labels = np.where(plain.roles == 3, labels, UNLABELLED)
            measure(found, name, plain, there, labels)
        there, labels = opened(seed, sloped)
        west = np.where(np.arange(WIDE) < WIDE // 2, labels, UNLABELLED)
        clf = trained(there, west)
        measure(found, "sloped, west", clf, there, np.where(clf.roles == 3, labels, UNLABELLED))
        measure(found, "sloped, east", clf, there, np.where(np.arange(WIDE) < WIDE // 2, UNLABELLED, labels))
    print(f"{count} scenes: coverage, size, one class; then the least covered class, or under shift the accuracy")
    for (name, method), rows in found.items():
        spread = np.std([row[0] for row in rows])
        print(f"{name:16} {method:18} " + "  ".join(f"{v:.3f}" for v in np.mean(rows, axis=0)) + f"  (SD {spread:.3f})")


if __name__ == "__main__":
    fields(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    scenes(int(sys.argv[2]) if len(sys.argv) > 2 else 20)
