"""The certified zone: bounds against exact ones, what is promised in simulation, and the zone against a plain loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy import stats
from typer.testing import Result

from landfuse.accuracy.certify import _levels, _tested, _thinned, certify, upper_bound
from landfuse.accuracy.draw_sample import draw_sample
from landfuse.accuracy.reference_sample import Design, ReferenceSample
from landfuse.errors import GridError, LandfuseError, MissingFileError, OutputError, SceneError, SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.mapping.map_extras import write_mosaics
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window

LEGEND = Legend((LandClass("water", 1, "#0000FF"), LandClass("wood", 2, "#00FF00")))
SIDE = 60
GRID = Grid(SIDE, SIDE, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")


def fields() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes with holes, confidence with many ties, and truth, which is wrong mostly where confidence is low."""
    rng = np.random.default_rng(3)
    codes = rng.choice([1, 2, UNLABELLED], (SIDE, SIDE), p=[0.2, 0.75, 0.05]).astype(np.uint8)
    levels = np.minimum(250, rng.integers(0, 400, (SIDE, SIDE)) // 10 * 10).astype(np.uint8)
    levels[0, :5] = UNLABELLED
    wrong = rng.random((SIDE, SIDE)) < 0.5 * (1 - np.minimum(levels, 250) / 250) ** 2
    return codes, levels, np.where(wrong & (codes != UNLABELLED), 3 - codes, codes).astype(np.uint8)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    codes, levels, _ = fields()
    write_raster(tmp_path / "map.tif", GRID, codes, legend=LEGEND)
    write_raster(tmp_path / "map_confidence.tif", GRID, levels, scale=1 / 250)
    write_raster(
        tmp_path / "map_entropy.tif", GRID, np.where(levels == UNLABELLED, levels, 250 - levels), scale=1 / 250
    )
    return tmp_path


def observed(path: Path, n: int = 400, design: Design = "simple", seed: int = 0) -> ReferenceSample:
    sample, truth = draw_sample(path, n, design=design, seed=seed), fields()[2]
    return replace(sample, reference=tuple(str(code) for code in truth[sample.row, sample.col]))


@pytest.mark.parametrize(("errors", "points"), [(0, 29), (3, 120), (40, 50), (7, 7), (0, 0)])
def test_the_bound_is_that_of_clopper_and_pearson(errors: int, points: int) -> None:
    test = stats.binomtest(errors, points, alternative="less") if points else None
    assert upper_bound(errors, points, 0.05) == pytest.approx(test.proportion_ci(0.95, "exact").high if test else 1.0)


@pytest.mark.parametrize("errors", [0, 1, 4, 15])
def test_no_division_of_errors_among_strata_breaks_the_bound(errors: int) -> None:
    """The exact chance of so few errors, where each stratum has another rate, and all together that of the bound."""
    points, rng = np.array([30, 60, 10]), np.random.default_rng(errors)
    wrong = upper_bound(errors, 100, 0.05) * 100  # expected, at least
    for rates in rng.dirichlet([0.4] * 3, 200) * wrong / points:
        chance = np.ones(1)
        for n, rate in zip(points, rates, strict=True):
            chance = np.convolve(chance, stats.binom.pmf(np.arange(n + 1), n, rate)) if rate <= 1 else chance * 0
        assert chance[: errors + 1].sum() <= 0.05 + 1e-9


def test_strata_are_thinned_out_to_the_density_of_the_sparsest(maps: Path) -> None:
    sample = observed(maps / "map.tif", 300, design="stratified")
    sample = replace(sample, sizes={1: 800, 2: 4000}, drawn={1: 75, 2: 225})
    kept = _thinned(replace(sample, stratum=np.repeat([1, 2], [75, 225])))
    assert (kept[:75].sum(), kept[75:].sum()) == (45, 225)
    shuffled = np.random.default_rng(1).permutation(300)
    moved = replace(
        sample, stratum=np.repeat([1, 2], [75, 225])[shuffled], row=sample.row[shuffled], col=sample.col[shuffled]
    )
    assert (_thinned(moved) == kept[shuffled]).all(), "whatever the order of the file"
    assert _thinned(observed(maps / "map.tif")).all()
    means, rng = [], np.random.default_rng(0)
    for _ in range(300):  # else places in the north, which come first, would be kept more often than others, or less
        row, col = rng.integers(0, SIDE, (2, 300))
        again = replace(sample, stratum=np.repeat([1, 2], [75, 225]), sizes={1: 300, 2: 4000}, row=row, col=col)
        kept = _thinned(again)[:75]
        assert kept.sum() == 17
        means.append(row[:75][kept].mean())
    assert abs(np.mean(means) - (SIDE - 1) / 2) < 4 * SIDE / np.sqrt(12 * 17 * 300)


@pytest.mark.parametrize("drawn", [(400,), (160, 240)])
def test_a_zone_with_too_many_errors_is_certified_as_rarely_as_stated(drawn: tuple[int, ...]) -> None:
    """Zones whose error is just above the stated rate from the 15th on, the worst case for the tests from there on."""
    rng = np.random.default_rng(1)
    steps = np.arange(1, 21)
    rate = np.where(steps <= 8, 0.02, 0.182)
    bad = int((np.cumsum(rate) / steps <= 0.1).sum())
    broken, reached, repeats = 0, 0, 600
    for _ in range(repeats):
        points = np.stack([rng.multinomial(n, np.full(20, 0.05)) for n in drawn], axis=1)
        # Errors are three times as frequent in the first stratum.
        odds = np.array([3.0, 1.0])[: len(drawn)] / np.average([3.0, 1.0][: len(drawn)], weights=drawn)
        errors = rng.binomial(points, rate[:, None] * odds).cumsum(axis=0).sum(axis=1)
        points, expected = points.cumsum(axis=0).sum(axis=1), 400 * steps / 20
        trials = (points, points) if len(drawn) == 1 else (np.full(20, 400), expected)
        passed = [zone for zone, _, bound in _tested(errors, *trials, expected, 0.1, 0.05) if bound <= 0.1]
        broken += any(zone >= bad for zone in passed)
        reached += bool(passed)
    assert broken / repeats <= 0.05
    assert reached / repeats > 0.8


def test_zones_follow_from_the_map_and_keep_ties_together() -> None:
    inside = np.array([1000] * 1 + [700] * 100 + [330] * 100 + [20] * 54)  # 300 px of level 0, 370 of 100, 310 of 200
    assert _levels(inside, 1000).tolist() == [200, 100, 0]
    assert _levels(inside, 1400).tolist() == [200, 100, 0], "400 px have no level"


@pytest.mark.parametrize("design", ["simple", "stratified"])
def test_the_zone_is_that_of_a_plain_loop(maps: Path, design: Design) -> None:
    codes, levels, truth = fields()
    found = certify(maps / "map.tif", observed(maps / "map.tif", design=design), 0.15)
    zone = found.zone
    assert zone is not None
    inside = (codes != UNLABELLED) & (levels != UNLABELLED) & (levels >= round(zone.threshold * 250))
    assert zone.fraction == pytest.approx(inside.sum() / (codes != UNLABELLED).sum())
    assert zone.hectares == pytest.approx(inside.sum() * 100 / 10_000, rel=1e-3)
    sample = observed(maps / "map.tif", design=design)
    used = _thinned(sample)
    assert zone.points == (used & inside[sample.row, sample.col]).sum()
    assert zone.errors == (used & (inside & (truth != codes))[sample.row, sample.col]).sum()
    assert ((truth != codes) & inside).sum() / inside.sum() <= 0.15
    assert 0.2 < zone.fraction < 1
    path = found.save()
    with rasterio.open(path) as file:
        assert (file.read(1) == np.where(codes == UNLABELLED, UNLABELLED, inside)).all()
        assert file.tags()["landfuse_certified"] == "error 0.15, confidence 0.95, 400 points"
    assert json.loads((maps / "map_certified.json").read_text())["landfuse_certified"]["points"] == zone.points
    assert found.save() == path, "its own files are replaced"
    assert not list(maps.glob(".*"))


def test_entropy_orders_from_its_smallest_values_on(maps: Path) -> None:
    sample = observed(maps / "map.tif")
    by_confidence, by_entropy = (certify(maps / "map.tif", sample, 0.15, by=by) for by in ("confidence", "entropy"))
    assert [z.fraction for z in by_confidence.zones] == [z.fraction for z in by_entropy.zones]
    assert [z.bound for z in by_confidence.zones] == pytest.approx([z.bound for z in by_entropy.zones], nan_ok=True)
    assert [z.threshold for z in by_entropy.zones] == pytest.approx([1 - z.threshold for z in by_confidence.zones])
    for (_, a), (_, b) in zip(by_confidence.blocks(), by_entropy.blocks(), strict=True):
        assert (a == b).all()


def test_the_zone_of_many_tiles_is_that_of_their_mosaic(maps: Path, tmp_path: Path) -> None:
    codes, levels, _ = fields()
    tiles = {}
    for name, col in (("a", 0), ("b", 30)):
        grid = GRID.part(Window(0, col, SIDE, 30))
        write_raster(tmp_path / f"tiles/{name}.tif", grid, codes[:, col : col + 30], legend=LEGEND)
        write_raster(tmp_path / f"tiles/{name}_confidence.tif", grid, levels[:, col : col + 30], scale=1 / 250)
        tiles[name] = (grid, tmp_path / f"tiles/{name}.tif")
    write_mosaics(tmp_path / "tiles", tiles, LEGEND)
    sample = observed(maps / "map.tif")
    one, many = (certify(place, sample, 0.15) for place in (maps / "map.tif", tmp_path / "tiles"))
    assert str(one.zones) == str(many.zones)
    with rasterio.open(one.save()) as first, rasterio.open(many.save()) as second:
        assert second.name.endswith("tiles/mosaic_certified.tif")
        assert (first.read() == second.read()).all()
    (tmp_path / "tiles/b_confidence.tif").unlink()
    with pytest.raises(MissingFileError, match=r"b_confidence\.tif of the map"):
        certify(tmp_path / "tiles", sample)


def test_what_a_sample_lacks_is_said(maps: Path) -> None:
    few = observed(maps / "map.tif", 60)
    found = certify(maps / "map.tif", few, 0.05)
    assert found.zone is None
    assert found.more is not None
    assert 20 < found.more < 600
    with pytest.raises(SceneError, match="cannot certify any part"):
        found.save()
    assert not (maps / "map_certified.tif").exists()
    assert certify(maps / "map.tif", observed(maps / "map.tif", 60 + 2 * found.more), 0.05).zone is not None
    hopeless = replace(few, reference=tuple(str(3 - code) for code in few.code.tolist()))
    assert certify(maps / "map.tif", hopeless).more is None


def test_a_simple_sample_of_another_map_of_the_same_pixels_serves_too(maps: Path) -> None:
    write_raster(maps / "better.tif", GRID, fields()[2], legend=LEGEND)
    write_raster(maps / "better_confidence.tif", GRID, fields()[1], scale=1 / 250)
    zone = certify(maps / "better.tif", observed(maps / "map.tif"), 0.05).zone
    assert zone is not None
    assert zone.errors == 0


def test_truth_that_is_not_known_counts_as_wrong(maps: Path) -> None:
    sample = observed(maps / "map.tif")
    unknown = replace(sample, reference=(str(UNLABELLED),) * 30 + sample.reference[30:])
    whole = certify(maps / "map.tif", sample, 0.15).zones[-1]
    found = certify(maps / "map.tif", unknown, 0.15)
    right = sum(str(code) == text for code, text in zip(sample.code[:30].tolist(), sample.reference, strict=False))
    inside = fields()[1][sample.row, sample.col] != UNLABELLED
    assert found.zones[-1].errors - whole.errors == right - (~inside[:30]).sum()
    assert "30 of 400" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"error": 0.0}, SettingsError, "error 0"),
        ({"error": 1.0}, SettingsError, "error 1"),
        ({"confidence": 95.0}, SettingsError, "confidence 95"),
        ({"confidence": float("nan")}, SettingsError, "confidence nan"),
        ({"by": "nothing"}, MissingFileError, r"map_nothing\.tif of the map"),
        ({"by": "float"}, SceneError, "1 bands of float32"),
        ({"by": "small"}, GridError, "has the grid 30 x 60"),
        ({"sample": "empty"}, SceneError, "no reference for 400 of 400"),
        ({"sample": "cluster"}, SettingsError, "drawn in clusters"),
        ({"sample": "other"}, SceneError, "other numbers of pixels"),
        ({"sample": "points"}, SceneError, "does not say how its places were chosen"),
        ({"sample": "change"}, SceneError, "drawn from two maps"),
    ],
)
def test_what_cannot_be_certified_is_refused(
    maps: Path, change: dict[str, object], kind: type[LandfuseError], message: str
) -> None:
    write_raster(maps / "map_float.tif", GRID, np.zeros((SIDE, SIDE), np.float32))
    write_raster(maps / "map_small.tif", Grid(30, SIDE, GRID.transform, GRID.crs), np.zeros((30, SIDE), np.uint8))
    write_raster(maps / "other.tif", GRID, fields()[2])
    (maps / "points.csv").write_text("x,y,class\n500005,4999995,1\n")
    both = draw_sample(maps / "map.tif", 50, after=maps / "map.tif")
    samples = {
        "whole": observed(maps / "map.tif"),
        "empty": draw_sample(maps / "map.tif", 400),
        "cluster": observed(maps / "map.tif", design="cluster"),
        "other": observed(maps / "other.tif", design="stratified"),
        "points": maps / "points.csv",
        "change": replace(both, reference=("1",) * len(both), reference_after=("1",) * len(both)),
    }
    options = {"sample": "whole", **change}
    options["sample"] = samples[str(options["sample"])]
    with pytest.raises(kind, match=message):
        certify(maps / "map.tif", **options)  # type: ignore[arg-type]


def test_the_command(maps: Path, invoke: Callable[..., Result]) -> None:
    observed(maps / "map.tif").save(maps / "s.csv")
    words = ["certify", maps / "map.tif", maps / "s.csv", "--error", 0.15]
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "at most 15.0% of its pixels are wrong, with confidence 0.95" in done.output
    assert (maps / "map_certified.tif").exists()
    for place in ("map.tif", "map_confidence.tif", "s.csv"):
        failed = invoke(*words, "-o", maps / place)
        assert isinstance(failed.exception, OutputError), place
    (maps / "mine.json").write_text("{}")
    assert isinstance(invoke(*words, "-o", maps / "mine.tif").exception, OutputError)
    assert not (maps / "mine.tif").exists()
    assert "entropy up to" in invoke(*words, "--by", "entropy").output
    failed = invoke(*words[:-1], 0.001)
    assert isinstance(failed.exception, SceneError)
    assert "error at most" in failed.output, "the numbers are printed"
