"""The largest blocks, or another seed, by which every class has each role; or that there are none, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.check import check
from landfuse.scenes.leaks import leak_fraction
from landfuse.scenes.scene import Scene
from landfuse.scenes.split_rules import UNUSED, BlocksSplit, GroupedSplit, PolygonsSplit, TilesSplit
from landfuse.scenes.split_search import SEEDS, block_sizes, search, searchable
from landfuse.scenes.splits import assign, counts_per_class, group_numbers, wanted_roles

K = 3
LEGEND = Legend(tuple(LandClass(f"class {k}", k, "#000000") for k in range(K)))


def tiles(count: int, height: int, width: int, patch: int, seed: int, unlabelled: float, rare: float) -> list[Scene]:
    """Tiles of patches, each of which is a polygon; few hold the last class."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        shape = height // patch + 1, width // patch + 1
        kinds = rng.choice(np.array([0, 1, 2, UNLABELLED], np.uint8), shape, p=[0.5, 0.3 - rare, rare, 0.2])
        ids = 1 + number * kinds.size + np.arange(kinds.size).reshape(shape)
        drawn = [part.repeat(patch, 0).repeat(patch, 1)[:height, :width].copy() for part in (kinds, ids)]
        drawn[0][rng.uniform(size=drawn[0].shape) < unlabelled] = UNLABELLED
        labels, polygons = drawn[0].astype(np.uint8), drawn[1].astype(np.int64)
        result.append(
            Scene(f"t{number}", Grid(height, width), {}, LEGEND, lambda one=labels: one, lambda one=polygons: one)
        )
    return result


def serves(scenes: list[Scene], split: Any) -> bool:
    """By the split itself, pixel by pixel: whether in each fold every labelled class has each role."""
    present = np.unique(np.concatenate([scene.labels[scene.labels != UNLABELLED] for scene in scenes]))
    for fold in range(split.folds or 1):
        try:
            roles = assign(scenes, split.model_copy(update={"fold": fold}))
        except SplitError:
            return False
        counts = counts_per_class(roles, [scene.labels for scene in scenes], K)
        if not all(counts[name][present].all() for name in wanted_roles(split)):
            return False
    return True


def searched(scenes: list[Scene], split: Any) -> Iterator[Any]:
    """All splits that the search may find, the best first."""
    for size in block_sizes(scenes, split) if isinstance(split, BlocksSplit) else [None]:
        for seed in dict.fromkeys((split.seed, *range(SEEDS))):
            yield split.model_copy(update={"seed": seed} | ({} if size is None else {"size": size}))


SPLITS: list[GroupedSplit] = [
    BlocksSplit(kind="blocks", size=5),
    BlocksSplit(kind="blocks", size=7, buffer=2, seed=3),
    BlocksSplit(kind="blocks", size=4, buffer=1, validation=0),
    BlocksSplit(kind="blocks", size=4, folds=3),
    BlocksSplit(kind="blocks", size=4, buffer=1, calibration=0.3),
    PolygonsSplit(kind="polygons"),
    PolygonsSplit(kind="polygons", buffer=2, folds=2),
    TilesSplit(kind="tiles"),
    TilesSplit(kind="tiles", folds=2, validation=0, seed=9),
]


@settings(max_examples=16, deadline=None)
@given(
    split=st.sampled_from(SPLITS),
    count=st.sampled_from([1, 1, 4]),
    height=st.integers(9, 30),
    width=st.integers(9, 30),
    patch=st.integers(2, 9),
    seed=st.integers(0, 10**6),
    unlabelled=st.sampled_from([0.0, 0.3, 0.97]),
    rare=st.sampled_from([0.0, 0.02, 0.1]),
)
def test_the_first_split_that_serves_every_class_is_found(split: Any, **how: Any) -> None:
    scenes = tiles(**how)
    if all((scene.labels == UNLABELLED).all() for scene in scenes):
        assert search(scenes, split).why == "no pixel is labelled"
        return
    expected = next((one for one in searched(scenes, split) if serves(scenes, one)), None)
    found = search(scenes, split)
    if expected is None:
        assert found.why, "none of the splits that are searched serves every class"
        return
    assert (found.split, found.lacking, found.why) == (expected, (0, 0), "")
    roles = assign(scenes, found.split)
    if isinstance(split, BlocksSplit):
        assert leak_fraction(roles, 2 * split.buffer + 1) == 0, "what leaks is what leaks from block to block"
    numbers, values = (
        np.concatenate([one.ravel() for one in some]) for some in (group_numbers(scenes, expected), roles)
    )
    pairs = np.unique(np.stack([numbers, values])[:, values != UNUSED], axis=1)[0]
    assert len(pairs) == len(np.unique(pairs)), "a group has one role"


def test_impossible_splits_say_why() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 1
    labels[5:9, 7:12] = 2
    polygons = labels.astype(np.int64) + 1
    scene = Scene("t", Grid(40, 60), {}, LEGEND, lambda: labels, lambda: polygons)
    cases: list[tuple[GroupedSplit, str]] = [
        (PolygonsSplit(kind="polygons"), "`class 2` (20 px within 4 x 5 px) lies in 1 polygon"),
        (TilesSplit(kind="tiles"), "`class 0` (1,180 px within 40 x 30 px) lies in 1 tile, "),
        (BlocksSplit(kind="blocks", size=8, buffer=4), "lies in 1 block of 12 px, the smallest that are tried, and 3"),
        (BlocksSplit(kind="blocks", size=8, buffer=15), "a buffer of 15 px needs blocks of more than 30 px"),
    ]
    for split, why in cases:
        assert why in search([scene], split).why
    small = Scene("t", Grid(12, 40), {}, LEGEND, lambda: labels[:12, :40])
    assert "and 10 are needed, one for each fold" in search([small], BlocksSplit(kind="blocks", size=3, folds=10)).why
    found = search([scene], BlocksSplit(kind="blocks", size=8))
    assert not found.why
    assert found.line.startswith("split: {kind: blocks, size: ")


def test_only_splits_that_landfuse_deals_out_are_searched() -> None:
    assert searchable(TilesSplit(kind="tiles"))
    assert not searchable(TilesSplit(kind="tiles", test_tiles=("a",)))
    assert not searchable(TilesSplit(kind="tiles", lists={"test": "a.txt"}))
    assert not searchable(None)


@pytest.mark.parametrize("size", [24, 96])
def test_check_proposes_a_line_for_the_scene_file(size: int, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    """Blocks of half the scene, or of all of it, leave a class or a whole role without pixels."""
    grid = Grid(48, 48, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
    codes = np.where(np.arange(48) < 40, 1, 2).astype(np.uint8) * np.ones((48, 1), np.uint8)
    image: NDArray[np.float32] = np.random.default_rng(0).normal(size=(1, 48, 48)).astype(np.float32)
    write_raster(tmp_path / "a.tif", grid, image)
    write_raster(tmp_path / "labels.tif", grid, codes, nodata=None)
    text: dict[str, Any] = {
        "name": "two",
        "reference": "a",
        "modalities": {"a": {"path": "a.tif"}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": "one", "code": 1}, {"name": "two", "code": 2}],
        "split": {"kind": "blocks", "size": size, "buffer": 2},
    }
    path = tmp_path / "scene.yaml"
    path.write_text(yaml.safe_dump(text))
    report = check(path, [(1, 1)])
    assert bool(report.faults) == (size == 96)
    assert any(report.proposed in note and "every class each role" in note for note in report.notes)
    path.write_text(yaml.safe_dump({k: v for k, v in text.items() if k != "split"}) + report.proposed)
    again = check(path, [(5, 1)])
    assert not again.faults
    assert again.proposed == ""
    assert all((again.counts[role] > 0).all() for role in ("train", "validation", "test"))
    assert again.leaks == {(5, 1): 0}
    text["legend"].append({"name": "three", "code": 3})
    codes[3:5, 3:5] = 3
    write_raster(tmp_path / "labels.tif", grid, codes, nodata=None)
    path.write_text(yaml.safe_dump(text))
    _, out, err = landfuse("check", path, "--views", "1")
    said = " ".join((out + err).split())
    assert "no split into blocks gives every class each role: `three` (4 px within 2 x 2 px) lies in 1 block" in said
