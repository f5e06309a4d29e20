"""Accuracy and areas of a map from a probability sample: what the sampling design allows to be said, with its error.

One estimator carries every design. Each figure is a ratio of two totals over the map: overall accuracy is pixels
mapped right / pixels, user's accuracy is pixels mapped right as a class / pixels mapped as it, producer's accuracy is
pixels mapped right as a class / pixels that are it, the fraction of a class is pixels that are it / pixels. A total is
estimated stratum by stratum from the *units* that were drawn: pixels, or clusters of pixels that were drawn together.

- Strata that are the map's classes: these are the estimators of Olofsson et al. 2014, equations 1 to 11.
- Strata that are something else (an older map, regions): those of Stehman 2014, equations 1 to 28.
- Simple random sampling: one stratum.
- Cluster sampling, one stage (every pixel of a drawn cluster is observed): the ratio-to-size estimator, which holds
  for clusters of equal and of unequal size.
- Pixels of unequal area (degrees, Mercator): each counts by its area, and each stratum by the area that it has in the
  map (the separate ratio estimator, with area as the auxiliary variable). Every figure is then of area, not of pixels.

Source:
    Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015; Stehman 2014, doi:10.1080/01431161.2014.930207;
    Cochran 1977, Sampling Techniques, sections 6.10 and 6.11 (ratios in strata) and 9A.1 (clusters of unequal size).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from landfuse.errors import SceneError
from landfuse.files import to_csv, to_json

Z95 = 1.96
"""Standard errors from the middle of a 95% interval to its ends, as both sources round it."""

_FEW = 30  # units or points below which the normal approximation of an interval is doubtful


@dataclass(frozen=True)
class Estimate:
    """An estimated figure with its standard error.

    Args:
        value: NaN where the sample holds nothing to estimate it from.
        error: the standard error; NaN where it cannot be known, since a stratum holds one point.
        reach: standard errors from the value to the ends of its 95% interval.
        most: the largest value that is possible; 1 for fractions.
    """

    value: float
    error: float
    reach: float = Z95
    most: float = 1.0

    @property
    def half_width(self) -> float:
        """Half the width of the 95% interval, before it is cut to what is possible."""
        return self.reach * self.error

    @property
    def low(self) -> float:
        """The lower end of the 95% interval, not below 0."""
        return self.value - self.half_width if not self.value - self.half_width < 0 else 0.0

    @property
    def high(self) -> float:
        """The upper end of the 95% interval, not above what is possible."""
        return self.value + self.half_width if not self.value + self.half_width > self.most else self.most

    def scaled(self, factor: float) -> Estimate:
        """The same figure in another unit, e.g. a fraction as hectares."""
        return Estimate(self.value * factor, self.error * factor, self.reach, self.most * factor)


@dataclass(frozen=True)
class ClassEstimate:
    """What is known of one class.

    Args:
        name: of the class.
        truth_points: sampled pixels that are it.
        mapped_points: sampled pixels that are mapped as it.
        users: of what is mapped as it, the fraction that is it.
        producers: of what is it, the fraction that is mapped as it.
        fraction: of the map's area, the fraction that is it.
        hectares: its area; None where the area of pixels is not known.
    """

    name: str
    truth_points: int
    mapped_points: int
    users: Estimate
    producers: Estimate
    fraction: Estimate
    hectares: Estimate | None

    def row(self, mapped: float) -> dict[str, str | int | float]:
        """The figures by name; NaN where one is not known.

        Args:
            mapped: the fraction of the map that is mapped as it.
        """
        row: dict[str, str | int | float] = {
            "class": self.name,
            "truth points": self.truth_points,
            "mapped points": self.mapped_points,
        }
        figures = {"user's accuracy": self.users, "producer's accuracy": self.producers, "share": self.fraction}
        for name, figure in {**figures, **({"hectares": self.hectares} if self.hectares else {})}.items():
            row |= {name: figure.value, f"{name} error": figure.error}
            row |= {f"{name} low": figure.low, f"{name} high": figure.high}
        return {**row, "mapped share": mapped}


@dataclass(frozen=True, eq=False)
class AccuracyEstimate:
    """The accuracy of a map and the areas of its classes, as estimated from a sample.

    Args:
        design: in words.
        overall: the fraction of the map's area that is mapped as what it is.
        classes: in the order of the legend.
        counts: (K, K) sampled pixels, rows truth, columns map.
        fractions: (K, K) estimated fractions of the map's area, rows truth, columns map; they add up to 1.
        points: sampled pixels.
        units: pixels or clusters that were drawn.
        notes: what has to be said beside the figures.
    """

    design: str
    overall: Estimate
    classes: tuple[ClassEstimate, ...]
    counts: NDArray[np.int64]
    fractions: NDArray[np.float64]
    points: int
    units: int
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, str | int | float]]:
        """One row per class, in order; NaN where a figure is not known.

        The mapped fraction is estimated too; where the strata are the map's classes it is what the map holds.
        """
        return [c.row(mapped) for c, mapped in zip(self.classes, self.fractions.sum(axis=0).tolist(), strict=True)]

    def values(self) -> dict[str, object]:
        """All of it by name."""
        o = self.overall
        return {
            "design": self.design,
            "interval": 0.95,
            "points": self.points,
            "units": self.units,
            "overall accuracy": {"value": o.value, "error": o.error, "low": o.low, "high": o.high},
            "classes": self.rows(),
            "confusion": {
                "rows": "truth",
                "columns": "map",
                "classes": [c.name for c in self.classes],
                "counts": self.counts,
                "shares": self.fractions,
            },
            "notes": self.notes,
        }

    def to_json(self) -> str:
        """All of it as JSON; a figure that is not known is null."""
        return to_json(self.values())

    def to_csv(self) -> str:
        """One row per class as CSV, then its row of estimated fractions; figures that are not known are empty."""
        titles = [f"share mapped as {c.name}" for c in self.classes]
        rows = zip(self.rows(), self.fractions.tolist(), strict=True)
        return to_csv([{**row, **dict(zip(titles, values, strict=True))} for row, values in rows])


def estimate(
    truth: NDArray[np.integer],
    mapped: NDArray[np.integer],
    names: Sequence[str],
    *,
    strata: NDArray[np.integer],
    sizes: Mapping[int, int],
    clusters: NDArray[np.integer] | None = None,
    finite: bool = True,
    areas: NDArray[np.floating] | None = None,
    stratum_areas: Mapping[int, float] | None = None,
    design: str = "",
) -> AccuracyEstimate:
    """Estimates accuracy and areas from units drawn at random, without replacement, within strata.

    Args:
        truth: (n,) classes 0..K-1 of the sampled pixels.
        mapped: (n,) the map's classes 0..K-1 there.
        names: K names.
        strata: (n,) the stratum that each pixel was drawn from; each cluster is in one stratum.
        sizes: stratum -> units in the whole map: pixels, or clusters. Strata that hold none may be left out.
        clusters: (n,) which pixels were drawn together; None where pixels were drawn one by one.
        finite: reduce the error by the fraction of the units that was observed, as Stehman 2014 does. Olofsson et al.
            2014 leave this correction out; it matters where the sample is a good part of the map.
        areas: (n,) square metres of the sampled pixels; None where they are not known, and taken to be equal.
        stratum_areas: stratum -> square metres in the whole map; with `areas`.
        design: in words, for the result.

    Raises:
        SceneError: if a stratum of the map has no sampled unit: nothing can be said about it.
        ValueError: if shapes differ, or a stratum holds more sampled units than it has.
    """
    K = len(names)
    truth, mapped, strata = (np.asarray(values, np.int64) for values in (truth, mapped, strata))
    if not truth.shape == mapped.shape == strata.shape or truth.ndim != 1 or not truth.size:
        raise ValueError(f"truth, map and strata of shapes {truth.shape}, {mapped.shape} and {strata.shape}")
    if min(truth.min(), mapped.min()) < 0 or max(truth.max(), mapped.max()) >= K:
        raise ValueError(f"truth and map have to hold classes 0..{K - 1}")
    unit = np.arange(truth.size) if clusters is None else np.unique(clusters, return_inverse=True)[1].reshape(-1)
    one = np.ones(truth.size) if areas is None else np.asarray(areas, float)
    units = _Units(unit, strata, sizes, finite, clusters is not None, None if areas is None else one, stratum_areas)
    hectares = None if stratum_areas is None else sum(stratum_areas.values()) / 10_000
    is_class = truth == np.arange(K)[:, None]
    as_class = mapped == np.arange(K)[:, None]
    reach = float(stats.t.ppf(0.975, units.count - 1)) if clusters is not None and units.count > 1 else Z95

    def ratio(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Estimate:
        return Estimate(*units.ratio(part * one, whole * one), reach)

    every = np.ones(truth.size, bool)
    overall = ratio(truth == mapped, every)
    classes = []
    for k, name in enumerate(names):
        both = is_class[k] & as_class[k]
        fraction = ratio(is_class[k], every)
        classes.append(
            ClassEstimate(
                name,
                int(is_class[k].sum()),
                int(as_class[k].sum()),
                ratio(both, as_class[k]),
                ratio(both, is_class[k]),
                fraction,
                None if hectares is None else fraction.scaled(hectares),
            )
        )
    counts = np.bincount(truth * K + mapped, minlength=K * K).reshape(K, K)
    weights = units.weights[unit] * one
    fractions = np.bincount(truth * K + mapped, weights, minlength=K * K).reshape(K, K) / weights.sum()
    notes = _notes(units, classes, as_class)
    return AccuracyEstimate(design, overall, tuple(classes), counts, fractions, truth.size, units.count, notes)


class _Units:
    """The units that were drawn, and the totals over the map that follow from them.

    Args:
        unit: (n,) the unit of each pixel, 0..U-1.
        strata: (n,) the stratum of each pixel.
        sizes: stratum -> units in the map.
        finite: whether to correct for the fraction that was drawn.
        clustered: whether units hold several pixels.
        areas: (n,) of the pixels; None to count units.
        stratum_areas: stratum -> area in the map, with `areas`.
    """

    def __init__(
        self,
        unit: NDArray[np.integer],
        strata: NDArray[np.int64],
        sizes: Mapping[int, int],
        finite: bool,
        clustered: bool,
        areas: NDArray[np.float64] | None,
        stratum_areas: Mapping[int, float] | None,
    ) -> None:
        self.unit, self.clustered = unit, clustered
        self.count = int(unit.max()) + 1
        of_unit = np.zeros(self.count, np.int64)
        of_unit[unit] = strata
        if (of_unit[unit] != strata).any():
            raise ValueError("a cluster is in more than one stratum")
        self.labels = [stratum for stratum, size in sizes.items() if size > 0]
        members = [np.flatnonzero(of_unit == stratum) for stratum in self.labels]
        missing = [stratum for stratum, drawn in zip(self.labels, members, strict=True) if not drawn.size]
        if missing:
            raise SceneError(
                f"no sampled unit is in the stratum {', '.join(map(str, missing))}, which the map has",
                "at least two units in each stratum",
                "draw the sample again, or merge rare classes before drawing",
            )
        self.members = members
        self.sizes = np.array([sizes[stratum] for stratum in self.labels], float)
        self.drawn = np.array([drawn.size for drawn in members], float)
        if self.drawn.sum() != self.count or (self.drawn > self.sizes).any():
            raise ValueError("a stratum holds more sampled units than it has, or one without a size was sampled")
        self.complete = self.drawn == self.sizes
        self.kept = 1 - self.drawn / self.sizes if finite else np.ones_like(self.sizes)
        self.weights = np.empty(self.count)
        self.areas = np.ones(self.count) if areas is None else np.bincount(unit, areas, minlength=self.count)
        for stratum, drawn in zip(self.labels, members, strict=True):
            whole = (stratum_areas or sizes)[stratum]
            self.weights[drawn] = whole / self.areas[drawn].sum()

    def seen_whole(self, pixels: NDArray[np.bool_]) -> bool:
        """Whether every stratum that such sampled pixels are from was observed as a whole."""
        units = np.unique(self.unit[pixels])
        return all(
            whole for whole, drawn in zip(self.complete, self.members, strict=True) if np.isin(units, drawn).any()
        )

    def ratio(self, part: NDArray[np.float64], whole: NDArray[np.float64]) -> tuple[float, float]:
        """The ratio of two totals over the map and its standard error; (n,) values of the sampled pixels.

        Source: Stehman 2014, equations 27 and 28: with d = part - ratio * whole, the variance of the ratio is the sum
        over strata of N^2 (1 - n / N) var(d) / n, divided by the squared total of the whole. Where areas differ, the
        deviations are from the line through the origin, sum(d) / sum(area) * area: Cochran 1977, section 6.10.
        """
        y = np.bincount(self.unit, part, minlength=self.count)
        x = np.bincount(self.unit, whole, minlength=self.count)
        total = float(self.weights @ x)
        if total == 0:
            return math.nan, math.nan
        value = float(self.weights @ y) / total
        rest = y - value * x
        variance = 0.0
        for drawn, kept in zip(self.members, self.kept, strict=True):
            # A stratum that takes no part adds nothing, also where its one unit would leave the error unknown.
            if kept and x[drawn].any():
                area = self.areas[drawn]
                deviation = rest[drawn] - area * (rest[drawn].sum() / area.sum())
                spread = float(np.square(deviation).sum() / (drawn.size - 1)) if drawn.size > 1 else math.nan
                variance += self.weights[drawn[0]] ** 2 * kept * spread * drawn.size
        return value, math.sqrt(variance) / total


def _notes(units: _Units, classes: Sequence[ClassEstimate], as_class: NDArray[np.bool_]) -> tuple[str, ...]:
    notes = []
    census = bool(units.complete.all())
    single = [str(s) for s, n, kept in zip(units.labels, units.drawn, units.kept, strict=True) if n == 1 and kept]
    if single:
        notes.append(f"one sampled unit in the stratum {', '.join(single)}: errors that it enters are not known")
    if census:
        notes.append("the whole map was observed: a census, without sampling error")
    elif units.count < _FEW:
        what = "clusters" if units.clustered else "points"
        notes.append(f"only {units.count} {what} were drawn: the intervals are rough below {_FEW}")
    for c, mapped in zip(classes, as_class, strict=True):
        if c.mapped_points == 0:
            notes.append(f"{c.name}: no sampled point is mapped as it; its user's accuracy is not known")
        if c.truth_points == 0:
            area = "" if census else ", nor how large it may be"
            notes.append(f"{c.name}: no sampled point has this reference; its producer's accuracy is not known{area}")
        for points, figure, what, whole in (
            (c.mapped_points, c.users, "mapped as it", census or units.seen_whole(mapped)),
            (c.truth_points, c.producers, "with this reference", census),
        ):
            if points and figure.error == 0 and figure.value in (0.0, 1.0) and not whole:
                agree, unseen = ("right", "errors") if figure.value == 1 else ("wrong", "hits")
                notes.append(
                    f"{c.name}: all {points} sampled points {what} are {agree}; the interval has no width, yet "
                    f"{unseen} of up to about {min(1.0, 3 / points):.0%} would go unseen"
                )
    return tuple(notes)
