"""Estimates from a sample: the papers' worked examples, all samples of a small map, and what intervals promise."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from landfuse.accuracy.estimate import AccuracyEstimate, Estimate, estimate
from landfuse.errors import SceneError


def points_of(counts: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Truth and map of the points of a confusion matrix whose rows are the map."""
    table = np.array(counts)
    mapped, truth = (axis.ravel() for axis in np.indices(table.shape))
    return np.repeat(truth, table.ravel()), np.repeat(mapped, table.ravel())


@pytest.fixture
def olofsson() -> AccuracyEstimate:
    """Olofsson et al. 2014, table 8: 640 points of a map of forest change of 10 million pixels of 30 m, 900,000 ha."""
    truth, mapped = points_of([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
    names = ["deforestation", "forest gain", "stable forest", "stable non-forest"]
    sizes = {0: 200_000, 1: 150_000, 2: 3_200_000, 3: 6_450_000}
    areas = {"areas": np.full(640, 900.0), "stratum_areas": {k: 900.0 * size for k, size in sizes.items()}}
    return estimate(truth, mapped, names, strata=mapped, sizes=sizes, finite=False, **areas)


def test_the_example_of_olofsson_to_its_printed_digits(olofsson: AccuracyEstimate) -> None:
    # Table 9, shares of the map: rows there are the map.
    assert olofsson.fractions.T.round(4).tolist() == [
        [0.0176, 0.0000, 0.0013, 0.0011],
        [0.0000, 0.0110, 0.0016, 0.0024],
        [0.0019, 0.0000, 0.2967, 0.0213],
        [0.0040, 0.0020, 0.0179, 0.6212],
    ]
    users = [(round(c.users.value, 2), round(c.users.half_width, 2)) for c in olofsson.classes]
    assert users == [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    assert [round(c.producers.value, 2) for c in olofsson.classes] == [0.75, 0.85, 0.93, 0.96]
    assert (round(olofsson.overall.value, 2), round(olofsson.overall.half_width, 2)) == (0.95, 0.02)
    hectares = [(round(c.hectares.value), round(c.hectares.half_width)) for c in olofsson.classes if c.hectares]
    assert hectares == [(21158, 6158), (11686, 3756), (285770, 15510), (581386, 16282)]


def test_producers_errors_are_those_of_the_equation_that_olofsson_prints(olofsson: AccuracyEstimate) -> None:
    # The paper prints 0.21, 0.23, 0.03 and 0.01; its own equation 7 gives 0.25 and 0.02 for the second and fourth.
    counts = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]], float)
    N, n = np.array([2e5, 1.5e5, 3.2e6, 6.45e6]), counts.sum(axis=1)
    U = np.diag(counts) / n
    for j, c in enumerate(olofsson.classes):
        total = sum(N[i] * counts[i, j] / n[i] for i in range(4))
        P = N[j] * U[j] / total
        inside = N[j] ** 2 * (1 - P) ** 2 * U[j] * (1 - U[j]) / (n[j] - 1)
        others = [i for i in range(4) if i != j]
        outside = sum(N[i] ** 2 * counts[i, j] / n[i] * (1 - counts[i, j] / n[i]) / (n[i] - 1) for i in others)
        assert c.producers.error == pytest.approx(math.sqrt((inside + P**2 * outside) / total**2), rel=1e-12)
    assert [round(c.producers.half_width, 2) for c in olofsson.classes] == [0.21, 0.25, 0.03, 0.02]


def test_the_example_of_stehman_where_strata_are_not_the_map() -> None:
    def of(letters: str) -> NDArray[np.int64]:
        return np.array(["ABCD".index(letter) for letter in letters])

    strata = of("A" * 10 + "B" * 10 + "C" * 10 + "D" * 10)
    mapped = of("AAAAAAABBB" + "ABBBBBBBBB" + "BBCCCCCCBB" + "DDDDDDDDDD")
    truth = of("AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB")
    result = estimate(truth, mapped, list("ABCD"), strata=strata, sizes={0: 40_000, 1: 30_000, 2: 20_000, 3: 10_000})
    a, b, c, _ = result.classes
    reported = [
        a.fraction.value,
        c.fraction.value,
        result.overall.value,
        b.users.value,
        b.producers.value,
        result.fractions[2, 1],
    ]
    assert [round(value, 3) for value in reported] == [0.35, 0.2, 0.63, 0.574, 0.794, 0.08]
    errors = [a.fraction.error, c.fraction.error, result.overall.error, b.users.error, b.producers.error]
    assert [round(value, 3) for value in errors] == [0.082, 0.064, 0.085, 0.125, 0.117]


@pytest.mark.parametrize("clustered", [False, True])
def test_a_plain_loop_gives_the_same(clustered: bool) -> None:
    rng = np.random.default_rng(3)
    n, K = 90, 3
    unit = np.sort(rng.integers(0, 30, n)) if clustered else np.arange(n)
    strata = unit % 2
    truth, mapped = rng.integers(0, K, n), rng.integers(0, K, n)
    sizes = {0: 200, 1: 120}
    result = estimate(truth, mapped, list("abc"), strata=strata, sizes=sizes, clusters=unit if clustered else None)

    def loop(part: list[bool], whole: list[bool]) -> tuple[float, float]:
        y_total = x_total = variance = 0.0
        members = {s: sorted({int(u) for u in unit[strata == s]}) for s in sizes}
        y = {u: sum(p for p, v in zip(part, unit, strict=True) if v == u) for u in set(unit.tolist())}
        x = {u: sum(w for w, v in zip(whole, unit, strict=True) if v == u) for u in set(unit.tolist())}
        for s, size in sizes.items():
            y_total += size * sum(y[u] for u in members[s]) / len(members[s])
            x_total += size * sum(x[u] for u in members[s]) / len(members[s])
        for s, size in sizes.items():
            m = len(members[s])
            d = [y[u] - y_total / x_total * x[u] for u in members[s]]
            mean = sum(d) / m
            variance += size**2 * (1 - m / size) * sum((value - mean) ** 2 for value in d) / (m - 1) / m
        return y_total / x_total, math.sqrt(variance) / x_total

    every = [True] * n
    assert (result.overall.value, result.overall.error) == pytest.approx(loop((truth == mapped).tolist(), every))
    for k, c in enumerate(result.classes):
        both = ((truth == k) & (mapped == k)).tolist()
        assert (c.users.value, c.users.error) == pytest.approx(loop(both, (mapped == k).tolist()))
        assert (c.producers.value, c.producers.error) == pytest.approx(loop(both, (truth == k).tolist()))
        assert (c.fraction.value, c.fraction.error) == pytest.approx(loop((truth == k).tolist(), every))
    assert result.fractions.sum() == pytest.approx(1)
    assert result.fractions.sum(axis=1) == pytest.approx([c.fraction.value for c in result.classes])
    assert result.counts.sum() == n


def test_over_all_samples_of_a_small_map_shares_and_their_errors_are_right_in_the_mean() -> None:
    truth = np.array([0, 0, 1, 0, 1, 1, 1, 0, 1])
    strata = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    estimates = []
    for first in itertools.combinations(range(5), 2):
        for second in itertools.combinations(range(5, 9), 2):
            drawn = np.array([*first, *second])
            result = estimate(truth[drawn], strata[drawn], ["a", "b"], strata=strata[drawn], sizes={0: 5, 1: 4})
            estimates.append((result.overall.value, result.overall.error**2))
    values, variances = np.array(estimates).T
    assert values.mean() == pytest.approx((truth == strata).mean())
    assert variances.mean() == pytest.approx(values.var())


def test_looking_at_every_pixel_leaves_no_error() -> None:
    truth, mapped = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
    result = estimate(truth, mapped, ["a", "b"], strata=np.zeros(5, int), sizes={0: 5})
    assert result.overall == Estimate(0.8, 0.0)
    assert all(c.users.error == c.producers.error == c.fraction.error == 0 for c in result.classes)


COVERED = (0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 600), 0.95 + 3.5 * math.sqrt(0.95 * 0.05 / 600))
"""How often 600 intervals of 95% may hold the truth: 3.5 standard errors of a binomial share."""


def holds(figure: Estimate, truth: float) -> bool:
    return figure.low <= truth <= figure.high


@pytest.mark.parametrize("design", ["classes", "regions", "simple"])
def test_intervals_cover_at_the_nominal_rate(design: str) -> None:
    # Enough points, and accuracies away from 1: with 70 points of a class the normal approximation covers some 93%,
    # as docs/accuracy.md says. The standard errors are right in either case.
    rng = np.random.default_rng(11)
    N = 20_000
    truth = rng.choice(3, N, p=[0.5, 0.3, 0.2])
    mapped = np.where(rng.random(N) < 0.65, truth, rng.integers(0, 3, N))
    regions = (np.arange(N) >= 8_000).astype(int)
    strata = {"classes": mapped, "regions": regions, "simple": np.zeros(N, int)}[design]
    members = {int(s): np.flatnonzero(strata == s) for s in np.unique(strata)}
    sizes = {s: m.size for s, m in members.items()}
    right = truth == mapped
    hits, found = [], []
    for _ in range(600):
        drawn = np.concatenate([rng.choice(m, 1200 // len(members), replace=False) for m in members.values()])
        result = estimate(truth[drawn], mapped[drawn], list("abc"), strata=strata[drawn], sizes=sizes)
        figures = [result.overall, *(f for c in result.classes for f in (c.users, c.producers, c.fraction))]
        true = [right.mean()]
        for k in range(3):
            true += [right[mapped == k].mean(), right[truth == k].mean(), (truth == k).mean()]
        hits.append([holds(figure, value) for figure, value in zip(figures, true, strict=True)])
        found.append([(figure.value, figure.error) for figure in figures])
    rates = np.mean(hits, axis=0)
    assert (rates > COVERED[0]).all(), rates
    assert (rates < COVERED[1]).all(), rates
    values, errors = np.moveaxis(np.array(found), 2, 0)
    np.testing.assert_allclose(errors.mean(axis=0), values.std(axis=0), rtol=0.12)  # 4 standard errors of a spread


def test_intervals_of_clusters_of_unequal_size_cover_and_pixels_taken_one_by_one_do_not() -> None:
    rng = np.random.default_rng(5)
    M = 1500
    size = rng.integers(4, 26, M)
    cluster = np.repeat(np.arange(M), size)
    kind = rng.choice(2, M, p=[0.7, 0.3])  # neighbours are of one class
    truth = np.where(rng.random(cluster.size) < 0.9, kind[cluster], 1 - kind[cluster])
    wrong = rng.beta(1.2, 4.8, M)  # and wrong together
    mapped = np.where(rng.random(cluster.size) < wrong[cluster], 1 - truth, truth)
    right = truth == mapped
    hits, naive = [], []
    for _ in range(600):
        drawn = np.isin(cluster, rng.choice(M, 150, replace=False))
        t, m = truth[drawn], mapped[drawn]
        zero = np.zeros(t.size, int)
        result = estimate(t, m, ["a", "b"], strata=zero, sizes={0: M}, clusters=cluster[drawn])
        hits.append([holds(result.overall, right.mean()), holds(result.classes[0].fraction, (truth == 0).mean())])
        single = estimate(t, m, ["a", "b"], strata=zero, sizes={0: cluster.size})
        naive.append(holds(single.overall, right.mean()))
    rates = np.mean(hits, axis=0)
    assert (rates > COVERED[0]).all(), rates
    assert (rates < COVERED[1]).all(), rates
    assert np.mean(naive) < 0.9


def test_what_a_sample_does_not_report_is_said() -> None:
    truth, mapped = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 2])
    result = estimate(truth, mapped, list("abcd"), strata=mapped, sizes={0: 50, 1: 40, 2: 9, 3: 0})
    a, b, c, d = result.classes
    assert a.users.value == 1
    assert a.users.error == 0
    assert math.isnan(b.users.error), "one point in the stratum"
    assert math.isnan(result.overall.error)
    assert math.isnan(c.producers.value)
    assert math.isnan(d.users.value)
    reported = "\n".join(result.notes)
    assert "one sampled unit in the stratum 1, 2" in reported
    assert "a: all 3 sampled points mapped as it are right" in reported
    assert "d: no sampled point is mapped as it" in reported
    assert "only 5 points" in reported


def test_a_stratum_without_a_point_is_refused() -> None:
    truth = np.array([0, 0, 1])
    with pytest.raises(SceneError, match="no sampled unit is in the stratum 2"):
        estimate(truth, truth, list("abc"), strata=truth, sizes={0: 5, 1: 5, 2: 5})
    with pytest.raises(ValueError, match="more sampled units"):
        estimate(truth, truth, list("ab"), strata=truth, sizes={0: 1, 1: 5})
    with pytest.raises(ValueError, match="more than one stratum"):
        estimate(truth, truth, list("ab"), strata=truth, sizes={0: 5, 1: 5}, clusters=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="classes"):
        estimate(truth, truth + 1, list("ab"), strata=truth, sizes={0: 5, 1: 5})


def test_intervals_stay_within_what_is_possible() -> None:
    assert (Estimate(0.99, 0.02).low, Estimate(0.99, 0.02).high) == (pytest.approx(0.9508), 1.0)
    assert Estimate(0.01, 0.02).low == 0
    assert Estimate(0.99, 0.02).scaled(200).high == 200
    assert math.isnan(Estimate(0.5, math.nan).low)
    assert math.isnan(Estimate(0.5, math.nan).high)


def test_json_and_csv_hold_the_figures(olofsson: AccuracyEstimate) -> None:
    reported = json.loads(olofsson.to_json())
    rows = list(csv.DictReader(io.StringIO(olofsson.to_csv())))
    assert reported["overall accuracy"]["value"] == olofsson.overall.value
    assert reported["confusion"]["counts"] == olofsson.counts.tolist()
    for c, in_json, in_csv in zip(olofsson.classes, reported["classes"], rows, strict=True):
        assert in_json["user's accuracy error"] == float(in_csv["user's accuracy error"]) == c.users.error
        assert c.hectares
        assert in_json["hectares low"] == float(in_csv["hectares low"]) == c.hectares.low
    assert [row["mapped share"] for row in reported["classes"]] == pytest.approx([0.02, 0.015, 0.32, 0.645])
    one = np.zeros(2, int)
    unknown = estimate(one, one, ["a", "b"], strata=one, sizes={0: 9})
    assert json.loads(unknown.to_json())["classes"][1]["user's accuracy"] is None
    assert next(itertools.islice(csv.DictReader(io.StringIO(unknown.to_csv())), 1, None))["user's accuracy"] == ""


def test_a_census_leaves_nothing_unseen() -> None:
    truth = np.repeat([0, 1, 2], [5, 30, 5])
    sizes = {0: 5, 1: 30, 2: 5}
    notes = estimate(truth, truth, list("abcd"), strata=truth, sizes=sizes).notes
    assert notes == (
        "the whole map was observed: a census, without sampling error",
        "d: no sampled point is mapped as it; its user's accuracy is not known",
        "d: no sampled point has this reference; its producer's accuracy is not known",
    )
    notes = estimate(truth, truth, list("abc"), strata=truth, sizes={**sizes, 1: 40}).notes
    unseen = [note.split(";")[0] for note in notes if "would go unseen" in note]
    assert unseen == [  # all that is mapped as a and c was observed, yet more of them may be in the rest of b
        "a: all 5 sampled points with this reference are right",
        "b: all 30 sampled points mapped as it are right",
        "b: all 30 sampled points with this reference are right",
        "c: all 5 sampled points with this reference are right",
    ]
