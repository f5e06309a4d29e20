"""Areas of change between two maps, from a reference sample of what both say.

The difference of two maps is not change: the errors of either map appear as change, and where little changes they are
most of it. A sample of the pairs of classes (Forest to Water, stable Forest), observed at both dates, gives the areas
with their errors: a pair is a class, and the estimator is that of `landfuse.accuracy.estimate`.

Source:
    Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015, of which this is the case that the paper is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.estimate import AccuracyEstimate, ClassEstimate
from landfuse.accuracy.from_sample import OTHER, OTHER_NAME, estimated, filled, on_map, references
from landfuse.accuracy.reference_sample import ReferenceSample
from landfuse.files import to_json
from landfuse.legend import UNLABELLED
from landfuse.scenes.land_cover_map import open_two_maps, pair_name


@dataclass(frozen=True, eq=False)
class ChangeEstimate:
    """What a sample says of the change between two maps.

    Args:
        transitions: accuracy and areas of each pair of classes; `users` is how much of what the maps' difference shows
            is that change, `producers` how much of that change it shows.
        all: change as a whole, of whatever classes.
        mapped: the fraction of the maps whose classes differ, 0..1, as estimated from the sample.
    """

    transitions: AccuracyEstimate
    all: ClassEstimate
    mapped: float

    def to_json(self) -> str:
        """All of it as JSON."""
        return to_json({"change": self.all.row(self.mapped), **self.transitions.values()})


def change(
    before: str | Path, after: str | Path, sample: ReferenceSample | str | Path, *, finite: bool = True
) -> ChangeEstimate:
    """Estimates the areas of change between two maps from a sample of `draw_sample(before, after=after)`.

    Args:
        before: the earlier map.
        after: the later map, on the same grid and of the same legend.
        sample: with a reference for each date, or its file.
        finite: see `landfuse.accuracy.estimate`.

    Raises:
        SceneError: if the sample is one of a single map or is not filled in, or the maps have different legends.
        GridError: if the maps' grids differ, or one of them has no class at a sampled place.

    Examples:
        >>> from dataclasses import replace
        >>> sample = lf.draw_sample("map.tif", 200, after="map.tif")
        >>> codes = [name.removeprefix("stable ") for name in map(sample.names.get, sample.code.tolist())]
        >>> lf.change("map.tif", "map.tif", replace(sample, reference=codes, reference_after=codes)).all.hectares.value
        0.0
    """
    sample, where = filled(sample, two_maps=True)
    opened = open_two_maps(before, after)
    mapped = on_map(opened, sample, where)
    first, second = (references(texts, opened.names, where) for texts in sample.references.values())
    unknown = (first == UNLABELLED) | (second == UNLABELLED)
    names = {**opened.names, OTHER: OTHER_NAME}
    of_map = np.array([*opened.pairs])[mapped]

    def whole(truth: NDArray[np.int64], of_map: NDArray[np.int64], names: dict[int, str]) -> AccuracyEstimate:
        truth = np.where(unknown, UNLABELLED, truth)
        return estimated(sample, truth, of_map, names, opened.grid, finite, moved=bool((mapped != sample.code).any()))

    def paired(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        return (a + 1) * 1000 + b  # never `UNLABELLED`

    truth, shown = paired(first, second), paired(of_map[:, 0], of_map[:, 1])
    pairs = {*truth[~unknown].tolist(), *shown.tolist()}
    transitions = whole(truth, shown, {pair: pair_name(pair // 1000 - 1, pair % 1000, names) for pair in pairs})
    both = whole(
        (first != second).astype(np.int64),
        (of_map[:, 0] != of_map[:, 1]).astype(np.int64),
        {0: "no change", 1: "all change"},
    )
    return ChangeEstimate(transitions, both.classes[1], float(both.fractions[:, 1].sum()))
