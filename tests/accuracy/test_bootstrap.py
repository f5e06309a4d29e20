"""Intervals of scores by blocks of ground against plain loops, scikit-learn and their own promise."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, f1_score

from landfuse.accuracy.bootstrap import (
    OF_CLASS,
    SCORES,
    block_confusions,
    block_intervals,
    difference_intervals,
    scores_of,
)
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import evaluate
from landfuse.errors import SettingsError, SplitError
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.land_cover_map import open_map
from landfuse.scenes.scene_file import open_scene

U = UNLABELLED


def some_map(seed: int = 0, K: int = 4, shape: tuple[int, int] = (50, 37)) -> tuple[NDArray[np.uint8], ...]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.7, truth, rng.integers(0, K, shape)).astype(np.uint8)
    truth[rng.random(shape) < 0.2] = U
    prediction[rng.random(shape) < 0.05] = U
    truth[:16, :16] = U  # a block without labels
    return truth, prediction


def test_confusions_of_blocks_are_those_of_a_loop() -> None:
    truth, prediction = some_map()
    found = block_confusions(truth, prediction, 16, 4)
    expected = []
    for row, col in itertools.product(range(0, 50, 16), range(0, 37, 16)):
        confusion = Confusion(4)
        confusion.update(truth[row : row + 16, col : col + 16], prediction[row : row + 16, col : col + 16])
        if confusion.pixels:
            expected.append(confusion.matrix)
    assert len(expected) == 11
    np.testing.assert_array_equal(found, np.stack(expected))


def test_scores_of_many_matrices_are_those_of_confusion() -> None:
    rng = np.random.default_rng(1)
    matrices = rng.integers(0, 30, (40, 4, 4)) * (rng.random((40, 4, 1)) < 0.7) * (rng.random((40, 1, 4)) < 0.8)
    matrices[0], matrices[1] = 0, np.diag([7, 0, 0, 0])  # nothing scored; one class only
    values, of_class = scores_of(matrices)
    for matrix, row, classes in zip(matrices, values, of_class, strict=True):
        confusion = Confusion(4, matrix)
        scores = confusion.scores()
        np.testing.assert_allclose(row, [scores[name] for name in SCORES], rtol=1e-12)
        wanted = [confusion.precision, confusion.recall, confusion.f1, confusion.iou]
        np.testing.assert_allclose(classes, wanted, rtol=1e-12)


def test_a_class_that_is_not_scored_stays_out_of_the_means_of_every_draw() -> None:
    scored = np.array([True, False, True, True])
    truth, prediction = some_map(5)
    confusions = block_confusions(truth, prediction, 16, 4)
    values, _ = scores_of(confusions, scored)
    for matrix, row in zip(confusions, values, strict=True):
        scores = Confusion(4, matrix, scored=scored).scores()
        np.testing.assert_allclose(row, [scores[name] for name in SCORES], rtol=1e-12)
    # The map is perfect but for the class that is not scored: the means then do not vary, OA does.
    perfect = np.zeros((12, 4, 4), np.int64)
    perfect[:, [0, 2, 3], [0, 2, 3]] = 5
    perfect[:, 1, 1] = np.arange(12)
    worse = perfect.copy()
    worse[:, 1, 1], worse[:, 1, 2] = 0, np.arange(12)
    found = block_intervals(worse, 200, scored=scored).scores
    assert (found["AA"].value, found["AA"].low, found["AA"].high) == (1, 1, 1)
    assert found["OA"].low < found["OA"].value < found["OA"].high
    difference = difference_intervals(perfect, worse, 200, scored=scored).scores
    assert (difference["AA"].low, difference["AA"].high) == (0, 0)
    assert difference["mIoU"].value > 0, "pixels of that class are errors of the other one"
    assert difference_intervals(perfect, worse, 200).scores["AA"].value == pytest.approx(0.25)


def test_scores_are_those_of_scikit_learn() -> None:
    truth, prediction = some_map(2)
    scored = (truth != U) & (prediction != U)
    values, of_class = scores_of(block_confusions(truth, prediction, 16, 4).sum(axis=0)[None])
    t, p = truth[scored], prediction[scored]
    assert values[0, SCORES.index("kappa")] == pytest.approx(cohen_kappa_score(t, p))
    np.testing.assert_allclose(of_class[0, OF_CLASS.index("F1")], f1_score(t, p, average=None))


def test_intervals_are_the_percentiles_of_a_plain_loop() -> None:
    truth, prediction = some_map(3)
    confusions = block_confusions(truth, prediction, 16, 4)
    found = block_intervals(confusions, replicates=300, seed=9)
    rng = np.random.default_rng(9)
    drawn = []
    for _ in range(300):
        times = rng.multinomial(len(confusions), np.full(len(confusions), 1 / len(confusions)))
        total = np.zeros((4, 4), np.int64)
        for block, count in zip(confusions, times, strict=True):
            for _ in range(count):
                total += block
        drawn.append(Confusion(4, total))
    for name, interval in found.scores.items():
        values = [one.scores()[name] for one in drawn]
        assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), rel=1e-12)
        assert interval.value == pytest.approx(Confusion(4, confusions.sum(axis=0)).scores()[name])
    for name in OF_CLASS:
        for k, interval in enumerate(found.of_class[name]):
            values = [getattr(one, name.lower())[k] for one in drawn]
            assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), rel=1e-12)
    assert found.rough
    assert found == block_intervals(confusions, replicates=300, seed=9)
    assert found != block_intervals(confusions, replicates=300, seed=8)


def test_a_class_in_few_blocks_leaves_no_false_number() -> None:
    confusions = np.zeros((8, 3, 3), np.int64)
    confusions[:, 0, 0] = 5
    confusions[0, 1, 1] = 2
    found = block_intervals(confusions, replicates=200)
    assert found.f1[1].value == 1
    assert found.f1[1].low == 1
    assert math.isnan(found.f1[2].value)
    assert math.isnan(found.f1[2].low)
    with pytest.raises(SplitError, match="1 block"):
        block_intervals(confusions[:1])
    alone = block_intervals(confusions[:1], replicates=0)
    assert alone.scores["OA"].value == 1
    assert math.isnan(alone.scores["OA"].low)


def test_intervals_cover_where_errors_hang_together_and_single_pixels_do_not() -> None:
    rng = np.random.default_rng(7)
    runs, blocks = 400, 60
    expected = 0.8  # Beta(4, 1) blocks of 64 px that are right together
    by_block = by_pixel = 0
    for run in range(runs):
        right = rng.binomial(64, rng.beta(4, 1, blocks))
        confusions = np.zeros((blocks, 2, 2), np.int64)
        confusions[:, 0, 0], confusions[:, 0, 1] = right, 64 - right
        interval = block_intervals(confusions, replicates=300, seed=run).scores["OA"]
        by_block += interval.low <= expected <= interval.high
        half = 1.96 * math.sqrt(interval.value * (1 - interval.value) / (blocks * 64))
        by_pixel += abs(interval.value - expected) <= half
    assert 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / runs) < by_block / runs < 0.99
    assert by_pixel / runs < 0.6


def test_the_difference_of_maps_covers_and_finds_what_is_there() -> None:
    rng = np.random.default_rng(8)
    runs, blocks, covered, found, false = 300, 50, 0, 0, 0
    for run in range(runs):
        ease = rng.beta(4, 1, blocks)  # both maps are wrong at the same places: the pairing takes that out
        maps = []
        for less in (0.0, 0.05, 0.0):
            right = rng.binomial(64, ease * (1 - less))
            one = np.zeros((blocks, 2, 2), np.int64)
            one[:, 0, 0], one[:, 0, 1] = right, 64 - right
            maps.append(one)
        interval = difference_intervals(maps[0], maps[1], replicates=300, seed=run).scores["OA"]
        covered += interval.low <= 0.04 <= interval.high
        found += interval.excludes_zero
        false += difference_intervals(maps[0], maps[2], replicates=300, seed=run).scores["OA"].excludes_zero
    tolerance = 3.5 * math.sqrt(0.95 * 0.05 / runs)
    assert 0.95 - tolerance < covered / runs < 0.99
    assert false / runs < 0.05 + tolerance
    assert found / runs > 0.9


def test_the_difference_is_drawn_on_the_same_blocks() -> None:
    truth, prediction = some_map(4)
    confusions = block_confusions(truth, prediction, 8, 4)
    same = difference_intervals(confusions, confusions, replicates=50)
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in same.scores.values())
    with pytest.raises(ValueError, match="same pixels"):
        difference_intervals(confusions, confusions[::-1])


@pytest.fixture(scope="module")
def maps(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two maps of the small scene, the second one worse; a corner of the second has no class."""
    folder = tmp_path_factory.mktemp("maps")
    scene = open_scene(place / "scene.yaml")
    rng = np.random.default_rng(0)
    for name, errors in (("first", 0.1), ("second", 0.4)):
        mapped = np.where(scene.labels == U, 0, scene.labels).astype(np.uint8)
        wrong = rng.random(mapped.shape) < errors
        mapped[wrong] = rng.integers(0, 4, wrong.sum())
        if name == "second":
            mapped[:5, :5] = U
        write_raster(folder / f"{name}.tif", scene.grid, scene.legend.to_codes(mapped), legend=scene.legend)
    return folder / "first.tif", folder / "second.tif"


@pytest.mark.parametrize("role", [None, "all"])
def test_a_map_is_scored_with_intervals(
    place: Path, maps: tuple[Path, Path], role: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(
        "landfuse.accuracy.evaluate.open_map", lambda path, scene: opened.append(path) or open_map(path, scene)
    )
    found = evaluate(maps[0], place / "scene.yaml", role=role, block=8)
    scores, intervals = found.confusion.scores(), found.intervals(200)
    assert opened == [maps[0]], "a map is read once"
    assert found.role == (role or "test")
    for name, interval in intervals.scores.items():
        assert interval.value == pytest.approx(scores[name])
        assert interval.low < scores[name] < interval.high
    found.save(tmp_path, intervals)
    written = json.loads((tmp_path / "intervals.json").read_text())
    assert written["scores"]["OA"]["low"] == intervals.scores["OA"].low
    assert set(written["F1"]) == set(found.legend.names)
    assert (written["role"], written["block, px"]) == (found.role, 8)


def test_two_maps_are_compared_on_the_pixels_of_both(place: Path, maps: tuple[Path, Path], tmp_path: Path) -> None:
    found = evaluate(maps[0], place / "scene.yaml", role="all", block=8, against=maps[1])
    assert found.left_out == 25
    assert found.confusion.matrix.tolist() == evaluate(maps[0], place, role="all").confusion.matrix.tolist()
    differences = found.differences(200)
    assert differences.scores["OA"].excludes_zero
    assert found.pair is not None
    first, second = (one.confusion for one in found.pair)
    labels = open_scene(place / "scene.yaml").labels
    assert first.pixels == second.pixels == int((labels != U).sum()) - 25
    assert differences.scores["OA"].value == pytest.approx(first.overall_accuracy - second.overall_accuracy)
    back = evaluate(maps[1], place / "scene.yaml", role="all", block=8, against=maps[0]).differences(200)
    assert back.scores["mIoU"].value == pytest.approx(-differences.scores["mIoU"].value)
    found.save(tmp_path, differences=differences)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["first"]["OA"] == first.overall_accuracy
    assert written["first less second"]["scores"]["OA"]["value"] == differences.scores["OA"].value
    with pytest.raises(ValueError, match="without another one"):
        evaluate(maps[0], place, role="all").differences()


def test_maps_are_scored_without_the_classes_that_are_not_scored(
    place: Path, maps: tuple[Path, Path], tmp_path: Path
) -> None:
    text = yaml.safe_load((place / "scene.yaml").read_text()) | {"root": str(place)}
    text["legend"][1]["scored"] = False
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    whole = evaluate(maps[0], tmp_path, role="all", block=8, against=maps[1])
    scores, found = whole.confusion.scores(), whole.intervals(50).scores
    assert {name: one.value for name, one in found.items()} == pytest.approx({name: scores[name] for name in found})
    every = evaluate(maps[0], place, role="all", block=8).intervals(50)
    assert found["mIoU"].value != every.scores["mIoU"].value, "the class made a difference"
    assert whole.pair is not None
    first, second = (one.confusion.scores()["mF1"] for one in whole.pair)
    assert whole.differences(50).scores["mF1"].value == pytest.approx(first - second)


def test_intervals_of_impossible_blocks_are_refused(place: Path, maps: tuple[Path, Path]) -> None:
    with pytest.raises(SplitError, match="1 block"):
        evaluate(maps[0], place / "scene.yaml", role="all", block=4096).intervals()
    with pytest.raises(SettingsError, match="0 px"):
        evaluate(maps[0], place / "scene.yaml", block=0)
    with pytest.raises(SplitError, match="no role"):
        evaluate(maps[0], place / "scene.yaml", role="tset")
