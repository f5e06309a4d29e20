"""Class sets: for each pixel the classes that it may have, so that the true one is among them at a stated level.

A score says how well a class fits a pixel, the higher the better; a set holds the classes whose score reaches a
threshold. The threshold comes from calibration blocks, which the model has not learnt from. Neighbouring pixels are
right or wrong together, so that blocks, not pixels, are the exchangeable units: a pixel drawn from a new block of the
same kind of ground has its true class in its set with at least the stated level, on average over blocks and
calibrations. Nothing is said of ground of another kind. A level needs `level / (1 - level)` blocks.

No score is random, so that a map has the same bytes each time (P1); and no set is empty: where no class reaches the
threshold, the most probable one is its set, which can only raise the coverage.

Sources:
    Lee, Barber and Willett 2023, https://arxiv.org/abs/2306.06342 (weights of groups), after Dunn, Wasserman and Ramdas
    2023, doi:10.1080/01621459.2022.2060112; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511 (conformal
    sets, by class too). LAC: Sadinle et al. 2019, doi:10.1080/01621459.2017.1395341. APS: Romano et al. 2020,
    https://arxiv.org/abs/2006.02544. RAPS: Angelopoulos et al. 2021, https://arxiv.org/abs/2009.14193.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from landfuse.bundles.description import Description
from landfuse.bundles.settings import Method
from landfuse.errors import BundleError, SettingsError
from landfuse.legend import UNLABELLED, Legend
from landfuse.markup import percent

log = logging.getLogger("landfuse")

METHODS: tuple[Method, ...] = get_args(Method)

LEVELS = np.arange(1, 1000) / 1000
"""Levels whose thresholds a bundle keeps; one in between is rounded up."""

SHOWN = (0.8, 0.9, 0.95)
"""Levels whose coverage on the test is measured, where the blocks carry them."""

_USUAL = 0.9

_CURVE = np.arange(50, 100) / 100
"""Levels of the curve of coverage."""

_PENALTY, _FREE = np.float32(0.05), 2
"""Of RAPS: what each place behind the first two takes from a score."""

_MOST = 1 << 19
"""Pixels that thresholds and coverage come from, about: of each block the same number at most, drawn at random."""

_SMALL = 1e-9  # less than a pixel weighs, more than sums of weights are off


def scores_of(probabilities: NDArray[np.float32], method: Method) -> NDArray[np.float32]:
    """The score of each class: (K, ...) -> (K, ...); equal probabilities have equal scores.

    `lac`: the probability. `aps`: that of the class and all less probable ones together, 1 for the most probable: a set
    holds the most probable classes, until the others' probabilities add up to less than the threshold. `raps`: the
    same less a penalty from the third class on.
    """
    if method == "lac":
        return probabilities
    order = np.argsort(probabilities, axis=0)
    ascending = np.take_along_axis(probabilities, order, axis=0)
    sums = np.cumsum(ascending, axis=0, dtype=np.float32)  # from the least: small sums are exact
    sums[-1] = 1
    K = len(sums)
    for place in range(K - 2, -1, -1):
        if method == "raps":
            sums[place] -= _PENALTY * np.float32(max(0, K - place - _FREE))
        tied = ascending[place] == ascending[place + 1]
        sums[place] = np.where(tied, sums[place + 1], sums[place])
    scores = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, axis=0)
    return scores


def sets_of(probabilities: NDArray[np.float32], thresholds: NDArray[np.float32], method: Method) -> NDArray[np.bool_]:
    """Which classes are in each pixel's set: (K, ...) -> (K, ...).

    Args:
        thresholds: (K, ...) that fits them, e.g. (K, 1, 1); -inf for a class that is in every set.
    """
    return _not_empty(scores_of(probabilities, method) >= thresholds, probabilities)


def _not_empty(found: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    return found | (~found.any(axis=0) & (probabilities == probabilities.max(axis=0)))


def thresholds_of(scores: NDArray[np.float32], blocks: NDArray[np.integer]) -> NDArray[np.float32]:
    """The threshold of each of `LEVELS`, (999,); -inf where there are too few blocks.

    With K blocks, the largest that the fractions of the blocks' scores reach together by (K + 1) level: a block counts
    as a whole, whatever its pixels, and one more block could have no score at all.

    Args:
        scores: (N,) of the true classes.
        blocks: (N,) the block of each.
    """
    found = np.full(len(LEVELS), -np.inf, np.float32)
    _, block, pixels = np.unique(blocks, return_inverse=True, return_counts=True)
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum((1 / pixels)[block[order]])
    place = np.searchsorted(reached, (len(pixels) + 1) * LEVELS - _SMALL)
    carried = place < len(scores)
    found[carried] = scores[order[place[carried]]]
    return found


Sample = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.integer], NDArray[np.integer]]
"""Of pixels: (K, N) probabilities, (N,) classes, (N,) numbers of their blocks and (N,) of their folds."""


class BlockSample:
    """Gathers the probabilities and truth of labelled pixels that come in parts, with their blocks.

    Args:
        targets: (H, W) of each scene, the classes of the pixels that will come, `UNLABELLED` elsewhere.
        blocks: (H, W) of each scene, the number of each pixel's block, counted over all scenes.
        most: pixels that are kept, about.

    Attributes:
        numbers: (H, W) of each scene, the block of the pixels that are kept, -1 elsewhere.
        fold: of the pixels that come next.
    """

    def __init__(
        self, targets: Sequence[NDArray[np.uint8]], blocks: Sequence[NDArray[np.integer]], most: int = _MOST
    ) -> None:
        pixels = np.zeros(1 + max((int(one.max()) for one in blocks), default=0), np.int64)
        for target, block in zip(targets, blocks, strict=True):
            pixels += np.bincount(block[target != UNLABELLED], minlength=pixels.size)
        kept = max(1, most // max(1, int(np.count_nonzero(pixels)))) / np.maximum(pixels, 1)
        rng = np.random.default_rng(0)
        self.numbers = [
            np.where((target != UNLABELLED) & (rng.random(target.shape) < kept[block]), block, -1).astype(np.int32)
            for target, block in zip(targets, blocks, strict=True)
        ]
        self.fold = 0
        self._parts: list[Sample] = []

    def update(self, probabilities: NDArray[np.float32], truth: NDArray[np.uint8], numbers: NDArray[np.int32]) -> None:
        """Adds pixels: (K, N) probabilities, (N,) classes and (N,) of `numbers`."""
        kept = numbers >= 0
        folds = np.full(np.count_nonzero(kept), self.fold)
        self._parts.append((probabilities[:, kept], truth[kept], numbers[kept], folds))

    @property
    def arrays(self) -> Sample:
        """What was gathered."""
        probabilities, truth, numbers, folds = zip(*self._parts, strict=True)
        joined = np.concatenate(truth), np.concatenate(numbers), np.concatenate(folds)
        return np.concatenate(probabilities, axis=1), *joined


def threshold_table(
    probabilities: NDArray[np.float32], truth: NDArray[np.uint8], blocks: NDArray[np.integer]
) -> NDArray[np.float32]:
    """The thresholds of every method at every level: (methods, 1 + K, 999), for all classes together and for each.

    Those of a class come from its own pixels, and from the blocks that hold some.
    """
    K, N = probabilities.shape
    table = np.empty((len(METHODS), 1 + K, len(LEVELS)), np.float32)
    for number, method in enumerate(METHODS):
        scores = scores_of(probabilities, method)[truth, np.arange(N)]
        table[number, 0] = thresholds_of(scores, blocks)
        for k in range(K):
            table[number, 1 + k] = thresholds_of(scores[truth == k], blocks[truth == k])
    return table


def without_fold(sample: BlockSample) -> list[NDArray[np.float32]]:
    """For each fold, from 0, the thresholds by the pixels of all others: none is judged by its own."""
    probabilities, truth, blocks, folds = sample.arrays
    others = [folds != fold for fold in range(int(folds.max(initial=0)) + 1)]
    return [threshold_table(probabilities[:, kept], truth[kept], blocks[kept]) for kept in others]


@dataclass(frozen=True)
class ClassSets:
    """What a bundle knows of class sets.

    Args:
        table: see `threshold_table`.
        notes: `blocks`, their number; `class_blocks`, those that hold each class; `unit`, what a block is; `how`, where
            the scores come from.
    """

    table: NDArray[np.float32]
    legend: Legend
    notes: Mapping[str, Any]

    @staticmethod
    def of(known: Description) -> ClassSets:
        """Those of a bundle.

        Raises:
            SettingsError: if it has none.
            BundleError: if they are not those of its classes.
        """
        table, notes = known.attached.get("sets.thresholds"), known.notes.get("sets")
        if table is None or notes is None:
            raise SettingsError(
                "class sets are asked for, and the bundle has no scores of calibration blocks",
                "a model that was trained with blocks set aside for them",
                "train with split.calibration=0.2; or with training.use=all, where folds serve in their place",
            )
        shape = len(METHODS), 1 + len(known.legend), len(LEVELS)
        if table.shape != shape or not notes.keys() >= {"blocks", "class_blocks", "unit", "how"}:
            raise BundleError(
                f"the thresholds of class sets in the bundle have the shape {table.shape}, with {', '.join(notes)}",
                f"{shape}, as `landfuse train` writes them",
                "copy the bundle again, or train again",
            )
        return ClassSets(table, known.legend, notes)

    @staticmethod
    def fitted(sample: BlockSample, legend: Legend, unit: str, how: str) -> ClassSets:
        """Those of calibration pixels; warns where the blocks are few."""
        probabilities, truth, blocks, _ = sample.arrays
        of_class = [len(np.unique(blocks[truth == k])) for k in range(len(legend))]
        notes = {"blocks": len(np.unique(blocks)), "class_blocks": of_class, "unit": unit, "how": how}
        found = ClassSets(threshold_table(probabilities, truth, blocks), legend, notes)
        if found.highest < _USUAL:
            log.warning(
                "class sets: %s carry levels up to %g; %g takes %d blocks",
                found.words, found.highest, _USUAL, _needed(_USUAL),
            )  # fmt: skip
        return found

    def facts(self) -> dict[str, Any]:
        """For `scores.json`."""
        of_class = dict(zip(self.legend.names, self.notes["class_blocks"], strict=True))
        return {**self.notes, "class_blocks": of_class, "highest_level": self.highest}

    def attach(self, bundle: Any) -> None:
        """Makes a bundle keep them."""
        bundle.attached["sets.thresholds"] = self.table
        bundle.notes["sets"] = dict(self.notes)

    @property
    def words(self) -> str:
        """What they come from."""
        return f"{self.notes['blocks']} {self.notes['unit']}, {self.notes['how']}"

    @property
    def highest(self) -> float:
        """The highest level that the blocks carry; 0 for none."""
        return _highest(self.table[0, 0])

    def thresholds(self, level: float, method: Method = "lac", by_class: bool = False) -> NDArray[np.float32]:
        """The threshold of each class, (K,); -inf for one that is in every set.

        Raises:
            SettingsError: if there is no such method, or the level is not within 0 and 1, or takes more blocks.
        """
        if not 0 < level < 1:
            raise SettingsError(f"the level {level:g} of class sets", "more than 0 and less than 1, e.g. 0.9", "")
        if method not in METHODS:
            raise SettingsError(f"there is no method `{method}` of class sets", ", ".join(METHODS), "choose one")
        place = math.ceil(level * 1000 - _SMALL) - 1
        rows = self.table[METHODS.index(method)]
        rows = rows[1:] if by_class else rows[:1]
        carried = place < rows.shape[1] and np.isfinite(rows[:, place]).any()
        if not carried:
            highest = max(map(_highest, rows))
            most = max(self.notes["class_blocks"]) if by_class else self.notes["blocks"]
            of_class = " of the commonest class" if by_class else ""
            raise SettingsError(
                f"class sets of level {level:g} by {most} calibration blocks{of_class} ({self.notes['unit']})",
                (f"at most {highest:g}, the highest level that they carry" if highest else "more blocks")
                + f"; {level:g} takes {_needed(level)}",
                (f"ask for {highest:g}, or " if highest else "")
                + "train with more calibration blocks: a larger split.calibration, or smaller blocks",
            )
        return np.broadcast_to(rows[:, place], len(self.legend)).copy()

    def warn(self, level: float, by_class: bool) -> None:
        """Warns of classes that have too few blocks."""
        blocks = dict(zip(self.legend.names, self.notes["class_blocks"], strict=True))
        few = ", ".join(f"{name} ({n})" for name, n in blocks.items() if n < _needed(level))
        none = ", ".join(name for name, n in blocks.items() if not n)
        if by_class and few:
            said = "class sets of level %g hold %s in any case: %d calibration blocks of a class are needed"
            log.warning(said, level, few, _needed(level))
        elif none:
            said = "class sets: how often they hold %s is not known: no calibration block holds such a pixel"
            log.warning(said, none)


def _needed(level: float) -> int:
    """Blocks that a level takes."""
    return math.ceil(round(level / (1 - level), 6))


def _highest(thresholds: NDArray[np.float32]) -> float:
    return float(LEVELS[np.isfinite(thresholds)].max(initial=0))


def usual_level(levels: Mapping[str, Any]) -> str:
    """Of the levels in a run's scores the one that is shown first: 0.9, or the highest where the blocks carry less."""
    return str(_USUAL) if str(_USUAL) in levels else max(levels)


def coverage_words(facts: Mapping[str, Any]) -> list[str]:
    """What the `sets` of a run's scores say of the test, in a sentence for each level."""
    test, found = facts["test"], []
    for level, one in test["levels"].get(METHODS[0], {}).items():
        error = one["standard_error"]
        found.append(
            f"class sets of level {level}, by {facts['blocks']} calibration blocks, hold the true class of "
            f"{percent(one['coverage'])} of the test pixels (mean over {test['blocks']} {facts['unit']}"
            f"{f', standard error {percent(error)}' if error else ''}); "
            f"{percent(one['one_class'])} of the sets are one class"
        )
    return found


def coverage_of(sample: Sample, tables: Sequence[NDArray[np.float32]], names: Sequence[str]) -> dict[str, Any]:
    """How often sets hold the true class of labelled pixels, and how large they are.

    Args:
        tables: for each fold its thresholds, see `threshold_table`.

    Returns:
        `blocks` and `pixels`, their numbers; `levels`: method (`lac`, `lac by class`, ...) -> level -> `coverage` (the
        mean over blocks), its `standard_error`, `coverage_of_pixels`, `worst_block`, `blocks_below` (fraction of the
        blocks that are covered less often than the level), `one_class` (fraction of the pixels whose set is one
        class), `mean_size`, `sizes` (fraction of the sets of 1, 2, ... classes) and `classes` (coverage of each, the
        mean over its blocks; null without any); `curve`: of `lac`, `level`, `coverage` and `one_class`.
    """
    probabilities, truth, numbers, which = sample
    K, N = probabilities.shape
    _, blocks = np.unique(numbers, return_inverse=True)
    stacked = np.stack(tables)
    if not N:
        return {"blocks": 0, "pixels": 0, "levels": {}, "curve": []}
    # A level counts where every table carries it.
    carried: NDArray[np.bool_] = np.isfinite(stacked[:, 0, 0]).min(axis=0)

    def means(values: NDArray[Any], chosen: NDArray[np.bool_] | slice = slice(None)) -> NDArray[np.float64]:
        """Of each block that has such pixels."""
        pixels = np.bincount(blocks[chosen])
        sums = np.bincount(blocks[chosen], values[chosen])
        return np.asarray(sums[pixels > 0] / pixels[pixels > 0])

    def measured(scores: NDArray[np.float32], method: int, by_class: bool, place: int) -> tuple[Any, Any]:
        rows = stacked[:, method, 1:, place] if by_class else stacked[:, method, :1, place]
        inside = _not_empty(scores >= rows[which].T, probabilities)
        return inside[truth, np.arange(N)], inside.sum(axis=0)

    levels: dict[str, dict[str, Any]] = {}
    curve = []
    for number, method in enumerate(METHODS):
        scores = scores_of(probabilities, method)
        for by_class in (False, True):
            of_method = levels.setdefault(method + " by class" * by_class, {})
            for level in SHOWN:
                place = round(level * 1000) - 1
                if not carried[place]:
                    continue
                covered, size = measured(scores, number, by_class, place)
                of_block = means(covered)
                held = {name: means(covered, truth == k) for k, name in enumerate(names)}
                of_method[f"{level:g}"] = {
                    "coverage": float(of_block.mean()),
                    "standard_error": float(of_block.std(ddof=1) / len(of_block) ** 0.5) if len(of_block) > 1 else None,
                    "coverage_of_pixels": float(covered.mean()),
                    "worst_block": float(of_block.min()),
                    "blocks_below": float((of_block < level - _SMALL).mean()),
                    "one_class": float((size == 1).mean()),
                    "mean_size": float(size.mean()),
                    "sizes": (np.bincount(size, minlength=K + 1)[1:] / N).tolist(),
                    "classes": {name: float(own.mean()) if own.size else None for name, own in held.items()},
                }
        if number == 0:
            for level in _CURVE[carried[np.rint(_CURVE * 1000).astype(int) - 1]]:
                covered, size = measured(scores, number, False, round(level * 1000) - 1)
                row = {"coverage": float(means(covered).mean()), "one_class": float((size == 1).mean())}
                curve.append({"level": float(level), **row})
    return {"blocks": int(blocks.max()) + 1, "pixels": N, "levels": levels, "curve": curve}
