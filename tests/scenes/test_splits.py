"""Who learns, who chooses, who judges; and what leaks."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landfuse.errors import SettingsError, SplitError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.leaks import calibration_leak_words, leak_fraction
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile
from landfuse.scenes.scene_keys import SceneSettings
from landfuse.scenes.split_rules import (
    CALIBRATION,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    BlocksSplit,
    Roles,
    SplitSettings,
)
from landfuse.scenes.splits import assign, block_numbers, counts_per_class, named_tiles
from landfuse.settings import Settings, parse

K = 3
LEGEND = Legend(tuple(LandClass(str(k), k, "#000000") for k in range(K)))


class _One(Settings):
    split: SplitSettings


def split_of(**values: Any) -> Any:
    return parse(_One, {"split": values}, "test").split


def tile(name: str, labels: NDArray[np.uint8]) -> Scene:
    return Scene(name, Grid(*labels.shape), {}, LEGEND, lambda: labels)


def tiles(count: int = 3, height: int = 40, width: int = 50, seed: int = 0, unlabelled: float = 0.2) -> list[Scene]:
    """Tiles of patchy classes."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        patches = rng.choice(K, (height // 5 + 1, width // 5 + 1), p=[0.6, 0.3, 0.1]).astype(np.uint8)
        labels = patches.repeat(5, axis=0).repeat(5, axis=1)[:height, :width].copy()
        labels[rng.uniform(size=labels.shape) < unlabelled] = UNLABELLED
        result.append(tile(f"t{number}", labels))
    return result


def no_mask(scene: Scene, path: str, variable: str | None, axes: str) -> NDArray[np.generic]:
    raise AssertionError("this split reads no mask")


def given_masks(masks: dict[str, list[NDArray[Any]]]) -> Any:
    def read(scene: Scene, path: str, variable: str | None, axes: str) -> NDArray[Any]:
        return masks[path][int(scene.name[1:])]

    return read


KINDS: dict[str, dict[str, Any]] = {
    "random fraction": {"kind": "random", "train": 0.3},
    "random number": {"kind": "random", "train": 20},
    "blocks": {"kind": "blocks", "size": 7, "test": 0.4},
    "blocks with a buffer": {"kind": "blocks", "size": 10, "buffer": 2},
    "block folds": {"kind": "blocks", "size": 7, "folds": 4, "fold": 2},
    "tiles": {"kind": "tiles", "test": 0.34},
    "tile folds": {"kind": "tiles", "folds": 3, "fold": 1},
    "named tiles": {"kind": "tiles", "test_tiles": ["t2"], "validation_tiles": ["t0"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_rules(kind: str) -> None:
    scenes = tiles(6 if "tile" in kind else 3)
    roles = assign(scenes, split_of(**KINDS[kind]), no_mask)
    labels = [scene.labels for scene in scenes]
    for role, label in zip(roles, labels, strict=True):
        assert role.dtype == np.uint8
        assert role.shape == label.shape
        assert (role[label == UNLABELLED] == UNUSED).all()
        assert set(np.unique(role)) <= {UNUSED, TRAIN, VALIDATION, TEST}
    counts = counts_per_class(roles, labels, K)
    assert all(counts[name].sum() > 0 for name in ("train", "validation", "test"))
    if "buffer" not in kind:
        assert sum(count.sum() for count in counts.values()) == sum((label != UNLABELLED).sum() for label in labels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    scenes = tiles(9 if "tile" in kind else 3)
    first, again, other = (
        assign(scenes, split_of(**KINDS[kind], seed=seed), no_mask) for seed in (5, 5, 6)
    )  # fmt: skip
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    if "tile" not in kind:  # few tiles have one best way to be dealt out
        assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_random_numbers_and_fractions_per_class() -> None:
    scenes = tiles()
    labels = [scene.labels for scene in scenes]
    size = counts_per_class([np.full(label.shape, TRAIN, np.uint8) for label in labels], labels, K)["train"]
    counts = counts_per_class(assign(scenes, split_of(kind="random", train=20), no_mask), labels, K)
    assert counts["train"].tolist() == [16] * K  # a fifth of the 20 validates
    assert counts["validation"].tolist() == [4] * K
    assert (counts["test"] == size - 20).all()
    split = split_of(kind="random", train=0.25, validation=0.5)
    counts = counts_per_class(assign(scenes, split, no_mask), labels, K)
    np.testing.assert_allclose(counts["train"] + counts["validation"], size * 0.25, atol=0.5)
    np.testing.assert_allclose(counts["validation"], size * 0.125, atol=0.75)


def test_random_split_of_tiny_classes_keeps_one_pixel_for_the_test() -> None:
    labels = np.full((6, 6), UNLABELLED, np.uint8)
    labels[0, :2], labels[1, :], labels[2, 0] = 0, 1, 2  # 2, 6 and 1 pixels
    counts = counts_per_class(assign([tile("t0", labels)], split_of(kind="random", train=50), no_mask), [labels], K)
    assert counts["test"].tolist() == [1, 1, 1]
    assert counts["train"].tolist() == [1, 4, 0]  # what has one pixel cannot be trained on: `check` says so
    assert counts["validation"].tolist() == [0, 1, 0]


def test_nothing_left_is_an_error() -> None:
    labels = np.full((4, 4), UNLABELLED, np.uint8)
    labels[0, 0] = 1
    with pytest.raises(SplitError, match="no labelled pixel for `train`"):
        assign([tile("t0", labels)], split_of(kind="random", train=0.5), no_mask)
    labels[0, 1] = 1
    with pytest.raises(SplitError, match="no labelled pixel for `validation`") as caught:
        assign([tile("t0", labels)], split_of(kind="random", train=0.5), no_mask)
    assert "`validation: 0` does without" in str(caught.value)
    roles = assign([tile("t0", labels)], split_of(kind="random", train=0.5, validation=0), no_mask)
    assert sorted(roles[0].ravel())[-2:] == [TRAIN, TEST]


def test_a_buffer_that_eats_a_role_is_an_error() -> None:
    with pytest.raises(SplitError, match="a large buffer can eat whole blocks"):
        assign(tiles(1), split_of(kind="blocks", size=5, buffer=30), no_mask)


# Masks and written splits -------------------------------------------------------------------------------------------


def test_masks() -> None:
    scenes = tiles(2)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 3, scene.labels.shape) for scene in scenes]
    masks = {"a": [(d == 1) * 7 for d in drawn], "b": [np.where(d == 2, 1.0, np.nan) for d in drawn]}
    roles = assign(scenes, split_of(kind="masks", train="a", test="b", validation=0.25), given_masks(masks))
    labels = [scene.labels for scene in scenes]
    counts = counts_per_class(roles, labels, K)
    for role, label, d in zip(roles, labels, drawn, strict=True):
        known = label != UNLABELLED
        np.testing.assert_array_equal(role == TEST, known & (d == 2))
        np.testing.assert_array_equal((role == TRAIN) | (role == VALIDATION), known & (d == 1))
    np.testing.assert_allclose(counts["validation"], 0.25 * (counts["train"] + counts["validation"]), atol=0.5)
    masks["c"] = [d == 0 for d in drawn]
    roles = assign(scenes, split_of(kind="masks", train="a", test="b", val="c"), given_masks(masks))
    for role, label, d in zip(roles, labels, drawn, strict=True):
        np.testing.assert_array_equal(role == VALIDATION, (label != UNLABELLED) & (d == 0))


def test_masks_that_overlap() -> None:
    scenes = tiles(2)
    masks = {"a": [np.ones((40, 50))] * 2, "b": [np.zeros((40, 50)), np.eye(40, 50)]}
    with pytest.raises(SplitError, match="40 pixels of `t1` stand in two masks"):
        assign(scenes, split_of(kind="masks", train="a", test="b"), given_masks(masks))


def scene_file(folder: Path) -> SceneFile:
    settings = parse(SceneSettings, {"name": "x", "modalities": {"m": {"path": "{tile}.tif"}}}, "x")
    return SceneFile(settings, str(folder), folder / "scene.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_is_saved_and_used_again(kind: str, tmp_path: Path) -> None:
    scenes = tiles(6 if "tile" in kind else 3)
    roles = assign(scenes, split_of(**KINDS[kind]), no_mask)
    for scene, role in zip(scenes, roles, strict=True):
        write_raster(tmp_path / f"{scene.name}_split.tif", scene.grid, role, nodata=0, names=["role"])
    again = scene_file(tmp_path).roles(scenes, split_of(kind="roles", path="{tile}_split.tif"))
    for one, other in zip(roles, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_written_split_without_validation_stays_so(tmp_path: Path) -> None:
    scenes = tiles(1)
    roles = assign(scenes, split_of(kind="blocks", size=7, validation=0), no_mask)
    write_raster(tmp_path / "t0.tif", scenes[0].grid, roles[0], nodata=0)
    (again,) = scene_file(tmp_path).roles(scenes, split_of(kind="roles", path="{tile}.tif"))
    np.testing.assert_array_equal(again, roles[0])


def test_masks_from_files_take_nodata_for_none(tmp_path: Path) -> None:
    scenes = tiles(1)
    grid = scenes[0].grid
    train = np.full((40, 50), -9999.0, np.float32)
    train[:20] = 1
    test = np.zeros((40, 50), np.uint8)
    test[25:] = 1
    write_raster(tmp_path / "train.tif", grid, train, nodata=-9999)
    write_raster(tmp_path / "test.tif", grid, test, nodata=None)
    (roles,) = scene_file(tmp_path).roles(scenes, split_of(kind="masks", train="train.tif", test="test.tif"))
    assert not np.isin(roles[20:], [TRAIN, VALIDATION]).any()
    assert not (roles[:25] == TEST).any()
    assert (roles == TRAIN).any()


def test_a_written_split_of_other_numbers(tmp_path: Path) -> None:
    scenes = tiles(1)
    write_raster(tmp_path / "t0.tif", scenes[0].grid, np.full((40, 50), 7, np.uint8), nodata=0)
    with pytest.raises(SplitError, match="the written split of `t0` holds the number 7"):
        scene_file(tmp_path).roles(scenes, split_of(kind="roles", path="{tile}.tif"))


# Groups -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"kind": "blocks", "size": 6, "buffer": 1}, {"kind": "tiles"}])
def test_each_labelled_pixel_tests_in_exactly_one_fold(settings: dict[str, Any]) -> None:
    scenes = tiles(7, 24, 31)
    tested = [np.zeros(scene.labels.shape, int) for scene in scenes]
    for fold in range(4):
        roles = assign(scenes, split_of(**settings, folds=4, fold=fold), no_mask)
        for times, role in zip(tested, roles, strict=True):
            times += role == TEST
    for times, scene in zip(tested, scenes, strict=True):
        np.testing.assert_array_equal(times, scene.labels != UNLABELLED)


def test_blocks_go_whole_to_one_role_and_each_class_is_split() -> None:
    scenes = tiles(3, 60, 60)
    labels = [scene.labels for scene in scenes]
    roles = assign(scenes, split_of(kind="blocks", size=8, test=0.3, validation=0.25), no_mask)
    for role, label in zip(roles, labels, strict=True):
        for row in range(0, 60, 8):
            for col in range(0, 60, 8):
                inside = role[row : row + 8, col : col + 8][label[row : row + 8, col : col + 8] != UNLABELLED]
                assert len(set(inside)) == 1
    counts = counts_per_class(roles, labels, K)
    size = sum(counts.values())
    np.testing.assert_allclose(counts["test"] / size, 0.3, atol=0.05)
    np.testing.assert_allclose(counts["validation"] / (size - counts["test"]), 0.25, atol=0.11)


def test_tiles_go_whole_to_one_role() -> None:
    scenes = tiles(9)
    roles = assign(scenes, split_of(kind="tiles", test=0.3), no_mask)
    kinds = [set(role[scene.labels != UNLABELLED]) for role, scene in zip(roles, scenes, strict=True)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {value for kind in kinds for value in kind} == {TRAIN, VALIDATION, TEST}


def test_named_tiles() -> None:
    scenes = tiles(5)
    split = split_of(kind="tiles", test_tiles=["t1"], validation_tiles=["t3"], train_tiles=["t0", "t4"])
    assert [int(role.max()) for role in assign(scenes, split, no_mask)] == [TRAIN, TEST, UNUSED, VALIDATION, TRAIN]
    split = split_of(kind="tiles", test_tiles=["t1", "t2"], validation=0)
    assert [int(role.max()) for role in assign(scenes, split, no_mask)] == [TRAIN, TEST, TEST, TRAIN, TRAIN]
    with pytest.raises(SplitError, match="tiles that do not exist: t7"):
        assign(scenes, split_of(kind="tiles", test_tiles=["t1", "t7"]), no_mask)


def test_a_tile_without_labels_takes_no_role_from_others() -> None:
    blank = tile("t9", np.full((40, 50), UNLABELLED, np.uint8))
    for split in (
        split_of(kind="tiles", test=0.4),
        split_of(kind="tiles", folds=2, fold=1),
        split_of(kind="tiles", test_tiles=["t0"]),
        split_of(kind="blocks", size=20),
    ):
        for scenes in ([*tiles(4), blank], [blank, *tiles(4)]):
            roles = assign(scenes, split, no_mask)
            assert not next(r for r, s in zip(roles, scenes, strict=True) if s is blank).any()
            counts = counts_per_class(roles, [scene.labels for scene in scenes], K)
            assert all(counts[name].sum() for name in ("train", "validation", "test"))


def test_validation_is_not_carved_out_of_tiles_without_labels() -> None:
    alike = tiles(1)[0].labels
    blank = np.full((40, 50), UNLABELLED, np.uint8)
    scenes = [tile(f"t{n}", labels) for n, labels in enumerate([alike, alike, alike, blank, blank])]
    roles = assign(scenes, split_of(kind="tiles", test_tiles=["t0"]), no_mask)
    assert sorted(int(role.max()) for role in roles) == [UNUSED, UNUSED, TRAIN, VALIDATION, TEST]


@pytest.mark.parametrize("kind", [*KINDS, "masks"])
def test_calibration_is_whole_groups_of_training_and_changes_no_other_role(kind: str) -> None:
    scenes = tiles(9) if "tile" in kind else tiles(3) if "block" in kind else tiles(2, 128, 192)
    settings, read = KINDS.get(kind, {"kind": "masks", "train": "a", "test": "b"}), no_mask
    if kind == "masks":
        half = [np.indices(scene.labels.shape)[0] < 64 for scene in scenes]
        read = given_masks({"a": half, "b": [~one for one in half]})
    plain = assign(scenes, split_of(**settings, validation=0), read)
    split = split_of(**settings, validation=0, calibration=0.4)
    found = assign(scenes, split, read)
    again = assign(scenes, split_of(**settings, validation=0.3, calibration=0.4), read)
    unit, numbers = block_numbers(scenes, split)
    assert unit == ("tiles" if "tile" in kind else f"blocks of {settings.get('size', 64)} px")
    if "buffer" not in kind:
        for before, after, third in zip(plain, found, again, strict=True):
            assert (np.where(after == CALIBRATION, TRAIN, after) == before).all()
            assert ((third == CALIBRATION) == (after == CALIBRATION)).all(), "before validation"
    of_role = {}
    for role in (TRAIN, CALIBRATION):
        of_role[role] = {n for r, number in zip(found, numbers, strict=True) for n in np.unique(number[r == role])}
    assert of_role[TRAIN]
    assert of_role[CALIBRATION]
    assert not of_role[TRAIN] & of_role[CALIBRATION]
    fraction = len(of_role[CALIBRATION]) / (len(of_role[TRAIN]) + len(of_role[CALIBRATION]))
    assert 0.2 < fraction < 0.6


def test_tiles_that_calibrate_may_be_named(tmp_path: Path) -> None:
    scenes = tiles(5)
    split = split_of(kind="tiles", test_tiles=["t1"], calibration_tiles=["t3", "t0"], validation=0)
    expected = [CALIBRATION, TEST, TRAIN, CALIBRATION, TRAIN]
    assert [int(role.max()) for role in assign(scenes, split, no_mask)] == expected
    for name, tile_names in (("test", "t1"), ("calibration", "t3\nt0")):
        (tmp_path / name).write_text(tile_names)
    listed = split_of(kind="tiles", lists={"test": "test", "calibration": "calibration"}, validation=0)
    named = named_tiles(listed, [scene.name for scene in scenes], lambda path: tmp_path / path)
    assert [int(role.max()) for role in assign(scenes, named, no_mask)] == expected
    with pytest.raises(SplitError, match=r"no labelled pixel for `calibration`(.|\n)*`calibration: 0` does without"):
        assign(tiles(2), split_of(kind="tiles", test_tiles=["t1"], calibration=0.5, validation=0), no_mask)


def test_a_buffer_keeps_calibration_apart() -> None:
    scenes = tiles(2, 60, 70)
    roles = assign(scenes, split_of(kind="blocks", size=9, buffer=2, calibration=0.4), no_mask)
    for role in roles:
        for row, col in np.argwhere((role == TRAIN) | (role == VALIDATION))[::7]:
            assert distance_to(role, CALIBRATION, row, col) > 2
        for row, col in np.argwhere(role == CALIBRATION)[::7]:
            assert distance_to(role, TEST, row, col) > 2
    assert leak_fraction(roles, 5, of=CALIBRATION) == 0
    near = leak_fraction(roles, 21, of=CALIBRATION)
    swapped = [np.choose(role, [UNUSED, TRAIN, VALIDATION, UNUSED, TEST]) for role in roles]
    assert near == leak_fraction(swapped, 21) > 0
    words = calibration_leak_words({5: 0.0, 21: near, 31: 1.0})
    assert re.match(
        r"of the calibration pixels .*% \(views of 21 px\), 100% \(views of 31 px\) are predicted", words[0]
    )
    assert not calibration_leak_words({5: 0.0, 7: math.nan})


def test_too_few_groups_for_the_folds() -> None:
    with pytest.raises(SplitError, match="2 groups hold labels") as caught:
        assign(tiles(2), split_of(kind="tiles", folds=3), no_mask)
    assert "at least 3, one per fold" in str(caught.value)


# Leaks --------------------------------------------------------------------------------------------------------------


def distance_to(role: Roles, wanted: int, row: int, col: int) -> int:
    rows, cols = np.nonzero(role == wanted)
    return int(np.maximum(np.abs(rows - row), np.abs(cols - col)).min()) if len(rows) else 10**6


@pytest.mark.parametrize("buffer", [0, 1, 3])
def test_a_buffer_keeps_roles_apart_and_takes_nothing_else(buffer: int) -> None:
    scenes = tiles(2, 30, 37)
    bare = assign(scenes, split_of(kind="blocks", size=9), no_mask)
    roles = assign(scenes, split_of(kind="blocks", size=9, buffer=buffer), no_mask)
    for before, after, scene in zip(bare, roles, scenes, strict=True):
        for row, col in np.argwhere(scene.labels != UNLABELLED):
            role = after[row, col]
            assert role in (before[row, col], UNUSED)
            if before[row, col] == TEST:
                assert role == TEST
            if role in (TRAIN, VALIDATION):
                assert distance_to(after, TEST, row, col) > buffer
            if role == TRAIN:
                assert distance_to(after, VALIDATION, row, col) > buffer
    for view in range(1, 2 * buffer + 2, 2):
        assert leak_fraction(roles, view) == 0
    assert leak_fraction(roles, 2 * buffer + 7) > 0


def plain_leak_fraction(roles: list[Roles], view: int, core: int) -> float:
    halo = (view - core) // 2
    leaking = total = 0
    for role in roles:
        height, width = role.shape
        for row in range(height):
            for col in range(width):
                if role[row, col] != TEST:
                    continue
                top, left = row // core * core - halo, col // core * core - halo
                seen = role[max(0, top) : max(0, top + view), max(0, left) : max(0, left + view)]
                leaking += bool(np.isin(seen, [TRAIN, VALIDATION]).any())
                total += 1
    return leaking / total


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=3),
    core=st.integers(1, 7),
    halo=st.integers(0, 6),
    density=st.sampled_from([0.02, 0.2]),
    seed=st.integers(0, 1000),
)
def test_leak_fraction_against_a_plain_loop(
    shapes: list[tuple[int, int]], core: int, halo: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    part = density / 2
    roles = [rng.choice(4, s, p=[0.5 - density, part, part, 0.5]).astype(np.uint8) for s in shapes]
    roles[0][0, 0] = TEST
    assert leak_fraction(roles, core + 2 * halo, core) == pytest.approx(
        plain_leak_fraction(roles, core + 2 * halo, core)
    )


def test_leak_fraction_by_hand() -> None:
    roles = np.array([[TEST, UNUSED, UNUSED, TRAIN, UNUSED, TEST, TEST, TEST]], np.uint8)
    assert leak_fraction([roles], 1) == 0
    assert leak_fraction([roles], 5) == 1 / 4  # the one two pixels beside the training pixel
    assert leak_fraction([roles], 7) == 3 / 4
    assert leak_fraction([roles], 2, 2) == 0
    assert leak_fraction([roles], 4, 4) == 1 / 4  # the first four pixels are one view
    assert np.isnan(leak_fraction([np.zeros((2, 2), np.uint8)], 3))


def test_a_split_that_leaks_not_between_tiles() -> None:
    roles = [np.full((5, 5), TRAIN, np.uint8), np.full((5, 5), TEST, np.uint8)]
    assert leak_fraction(roles, 101) == 0


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "blocs"}, "`split.kind` is 'blocs', not one of: .* did you mean `blocks`"),
        ({"kind": "blocks"}, "`split.size` is missing"),
        ({"kind": "blocks", "size": 8, "folds": 3, "fold": 3}, "`fold` is 3, but the folds are 0 to 2"),
        ({"kind": "blocks", "size": 8, "bufer": 3}, "unknown key `split.bufer`; did you mean `buffer`"),
        ({"kind": "blocks", "size": 8, "buffer": -1}, "`split.buffer` is -1"),
        ({"kind": "random", "train": 0}, "`split.train` is 0"),
        ({"kind": "random", "train": 2.5}, "a whole number of pixels per class"),
        ({"kind": "random", "train": 5, "validation": 1.0}, "`split.validation` is 1.0"),
        ({"kind": "tiles", "train_tiles": ["a"]}, "`test_tiles` are needed"),
        ({"kind": "tiles", "test_tiles": ["a"], "validation_tiles": ["a"]}, "the tiles a are named more than once"),
        ({"kind": "tiles", "test_tiles": ["a"], "folds": 3}, "not both"),
        ({"kind": "masks", "train": "a"}, "`split.test` is missing"),
        ({"kind": "masks", "train": "a", "test": "b", "variables": {"tain": "x"}}, r"`split.variables.tain"),
    ],
)
def test_settings_that_make_no_split(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        split_of(**values)


def test_settings_are_closed() -> None:
    with pytest.raises(pydantic.ValidationError):
        split_of(kind="tiles").seed = 3


def test_a_fold_without_folds_is_refused() -> None:
    with pytest.raises(ValueError, match="needs `folds`"):
        BlocksSplit(kind="blocks", size=8, fold=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "blocks", "size": 8, "buffer": 2},
        {"kind": "blocks", "size": 10, "folds": 3},
        {"kind": "tiles", "test": 0.4},
        {"kind": "random", "train": 5},
    ],
    ids=str,
)
def test_labels_that_came_later_leave_the_split_and_train_apart_from_it(settings: dict[str, Any]) -> None:
    first, split = tiles(4), split_of(**settings)
    before = assign(first, split, no_mask)
    rng, scenes = np.random.default_rng(5), []
    for scene in first:
        more = scene.labels.copy()
        more[(more == UNLABELLED) & (rng.random(more.shape) < 0.5)] = 1
        scenes.append(replace(scene, read_labels=partial(np.asarray, more), read_first=scene.read_labels))
    after = assign(scenes, split, no_mask)
    trained = 0
    for scene, old, new in zip(scenes, before, after, strict=True):
        known = scene.first_labels != UNLABELLED
        np.testing.assert_array_equal(new[known], old[known])
        later = ~known & (scene.labels != UNLABELLED)
        trained += int((new[later] == TRAIN).sum())
        for row, col in np.argwhere(later).tolist():
            if split.kind == "random":
                expected = True
            elif split.kind == "tiles":
                expected = not np.isin(old, (TEST, VALIDATION)).any()
            else:  # no pixel of a block that tests or validates is within the buffer
                b, size = getattr(split, "buffer", 0), split.size
                around = [(r // size, c // size) for r in (row - b, row, row + b) for c in (col - b, col, col + b)]
                held = [old[r * size : (r + 1) * size, c * size : (c + 1) * size] for r, c in around if r >= 0 <= c]
                expected = not any(np.isin(block, (TEST, VALIDATION)).any() for block in held)
            assert new[row, col] == (TRAIN if expected else 0), (row, col)
    assert trained > 50
