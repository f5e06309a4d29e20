"""How sure the scores of a map against the labels of a scene are, and whether another map differs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.bootstrap import (
    BlockIntervals,
    McNemar,
    block_confusions,
    block_intervals,
    difference_intervals,
    mcnemar,
    scores_of,
)
from landfuse.accuracy.evaluate import role_of, scored_tiles
from landfuse.errors import SettingsError, SplitError
from landfuse.files import write_text
from landfuse.legend import UNLABELLED, Legend
from landfuse.scenes.scene_file import SceneFile, read_scene_file


@dataclass(frozen=True)
class MapIntervals:
    """Scores of a map with 95% intervals.

    Args:
        intervals: of the scores.
        legend: names the classes.
        role: the labels that were scored.
        block: side of the blocks, px.
    """

    intervals: BlockIntervals
    legend: Legend
    role: str
    block: int

    def to_json(self) -> str:
        """All of it as JSON; a score that is not defined is null."""
        return _json({"role": self.role, **_told(self.intervals, self.legend, self.block)})


@dataclass(frozen=True)
class MapComparison:
    """Two maps on the same pixels: labelled, and with a class in both.

    Args:
        first: OA, AA, kappa, mF1 and mIoU of the first map.
        second: of the second map.
        differences: the first less the second, with 95% intervals.
        test: McNemar's.
        legend: names the classes.
        role: the labels that were scored.
        block: side of the blocks, px.
        left_out: labelled pixels that only one of the maps has a class for.
    """

    first: dict[str, float]
    second: dict[str, float]
    differences: BlockIntervals
    test: McNemar
    legend: Legend
    role: str
    block: int
    left_out: int

    def to_json(self) -> str:
        """All of it as JSON; a score that is not defined is null."""
        return _json(
            {
                "role": self.role,
                "first": self.first,
                "second": self.second,
                "first less second": _told(self.differences, self.legend, self.block),
                "McNemar": asdict(self.test),
                "left out": self.left_out,
            }
        )


def score_intervals(
    maps: str | Path,
    scene_file: str | Path,
    *,
    role: str | None = None,
    split: str | Path | None = None,
    block: int = 64,
    replicates: int = 2000,
    seed: int = 0,
) -> MapIntervals:
    """Scores a map as `evaluate` does, with 95% intervals from blocks of ground that are drawn with replacement.

    Args:
        maps: the map, or the folder of the tiles' maps.
        scene_file: the scene file, with labels.
        role: see `evaluate`.
        split: see `evaluate`.
        block: side of the blocks, px; larger than the distance over which errors hang together. Blocks never reach
            over tiles.
        replicates: how often blocks are drawn anew.
        seed: of the drawing.

    Raises:
        SplitError: if no pixel has the role, or all scored pixels lie in one block.
        GridError: if a map does not lie on its scene's grid.
    """
    file = _read(scene_file, block)
    chosen = role_of(file, role, split)
    K = len(file.legend)
    parts = [block_confusions(truth, one, block, K) for truth, (one,) in scored_tiles((maps,), file, chosen, split)]
    intervals = block_intervals(_joined(parts, chosen), replicates, seed, file.legend.scored)
    return MapIntervals(intervals, file.legend, chosen, block)


def compare_maps(
    first: str | Path,
    second: str | Path,
    scene_file: str | Path,
    *,
    role: str | None = None,
    split: str | Path | None = None,
    block: int = 64,
    replicates: int = 2000,
    seed: int = 0,
) -> MapComparison:
    """Whether one map of a scene is better than another, beyond chance.

    Args:
        first: a map, or the folder of the tiles' maps.
        second: the other one.
        scene_file: the scene file, with labels.
        role: see `evaluate`.
        split: see `evaluate`.
        block: see `score_intervals`.
        replicates: see `score_intervals`.
        seed: of the drawing.

    Raises:
        SplitError: if no pixel has the role, or all scored pixels lie in one block.
        GridError: if a map does not lie on its scene's grid.
    """
    file = _read(scene_file, block)
    chosen = role_of(file, role, split)
    K = len(file.legend)
    parts: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    only_first = only_second = left_out = 0
    for truth, (a, b) in scored_tiles((first, second), file, chosen, split):
        both = (a != UNLABELLED) & (b != UNLABELLED)
        left_out += int(((truth != UNLABELLED) & ((a != UNLABELLED) ^ (b != UNLABELLED))).sum())
        common = np.where(both, truth, UNLABELLED).astype(np.uint8)
        right_a, right_b = both & (a == truth), both & (b == truth)
        only_first += int((right_a & ~right_b).sum())
        only_second += int((right_b & ~right_a).sum())
        for into, one in zip(parts, (a, b), strict=True):
            into.append(block_confusions(common, one, block, K))
    of_first, of_second = (_joined(one, chosen) for one in parts)
    scored = file.legend.scored
    values = [scores_of(one.sum(axis=0)[None], scored)[0][0] for one in (of_first, of_second)]
    differences = difference_intervals(of_first, of_second, replicates, seed, scored)
    scores = [dict(zip(differences.scores, one.tolist(), strict=True)) for one in values]
    test = mcnemar(only_first, only_second)
    return MapComparison(scores[0], scores[1], differences, test, file.legend, chosen, block, left_out)


def _read(scene_file: str | Path, block: int) -> SceneFile:
    if block < 1:
        raise SettingsError(f"blocks of {block} px", "a side of at least 1 px", "mend --block")
    return read_scene_file(scene_file)


def _joined(parts: Sequence[NDArray[np.int64]], role: str) -> NDArray[np.int64]:
    if not sum(len(part) for part in parts):
        raise SplitError(
            f"no labelled pixel of the role `{role}` has a class in the map", "labelled pixels", "choose another role"
        )
    return np.concatenate(parts)


def _told(intervals: BlockIntervals, legend: Legend, block: int) -> dict[str, object]:
    return {
        "interval": 0.95,
        "block, px": block,
        "blocks": intervals.blocks,
        "replicates": intervals.replicates,
        "scores": {name: asdict(one) for name, one in intervals.scores.items()},
        "F1": {name: asdict(one) for name, one in zip(legend.names, intervals.f1, strict=True)},
    }


def _json(values: object) -> str:
    return json.dumps(_defined(values), indent=2, ensure_ascii=False, allow_nan=False)


def _defined(values: object) -> object:
    """The same with None for NaN, which JSON lacks."""
    if isinstance(values, dict):
        return {key: _defined(value) for key, value in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values


def save(result: MapIntervals | MapComparison, path: str | Path) -> None:
    """Writes it as JSON, whole or not at all."""
    write_text(path, result.to_json())
