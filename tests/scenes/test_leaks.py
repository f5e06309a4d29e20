"""Ground and polygons that both train and test: what is reported, and the split that keeps polygons whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
import yaml
from numpy.typing import NDArray

from landfuse.errors import SplitError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.arrays import ArrayRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.polygons import read_polygons
from landfuse.scenes.check import check
from landfuse.scenes.leaks import leak_fraction, leaks_by_buffer, learnt_ground, polygon_leak_fraction
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file
from landfuse.scenes.split_rules import TEST, TRAIN, UNUSED, VALIDATION, PolygonsSplit, Roles
from landfuse.scenes.splits import assign, counts_per_class
from landfuse.training.recipe import merged_split

UTM = "EPSG:32632"
LEGEND = Legend(tuple(LandClass(str(code), code, "#000000") for code in range(3)))


def grid(left: float, top: float, rows: int = 6, cols: int = 8, size: float = 10.0, crs: str | None = UTM) -> Grid:
    return Grid(rows, cols, (size, 0.0, left, 0.0, -size, top), crs)


def whole(grid: Grid, role: int) -> Roles:
    return np.full((grid.height, grid.width), role, np.uint8)


# Tiles that overlap -------------------------------------------------------------------------------------------------


def test_ground_of_an_overlapping_tile() -> None:
    train, test = grid(500_000, 5_400_000), grid(500_050, 5_399_980)
    roles = [whole(train, TRAIN), whole(test, TEST)]
    ground, pairs = learnt_ground([train, test], roles)
    expected = np.zeros((6, 8), bool)
    expected[:4, :3] = True
    np.testing.assert_array_equal(ground[1], expected)
    assert ground[0].all()
    assert pairs == [(1, 0)]
    assert leak_fraction(roles, 1, learnt=ground) == 12 / 48
    assert leak_fraction(roles, 3, learnt=ground) == 20 / 48
    assert leak_fraction(roles, 3) == 0


@pytest.mark.parametrize("role", [UNUSED, TEST])
def test_only_what_trains_or_validates_counts(role: int) -> None:
    grids = [grid(500_000, 5_400_000), grid(500_050, 5_399_980)]
    assert learnt_ground(grids, [whole(grids[0], role), whole(grids[1], TEST)])[1] == []
    assert learnt_ground(grids, [whole(grids[0], VALIDATION), whole(grids[1], TEST)])[1] == [(1, 0)]


@pytest.mark.parametrize(
    "other",
    [
        grid(500_080, 5_400_000),
        grid(500_000, 5_399_940),
        grid(500_080 - 1e-7, 5_400_000),
        grid(500_000, 5_400_000, crs=None),
    ],
    ids=["beside", "below", "rounding", "no CRS"],
)
def test_tiles_side_by_side_share_no_ground(other: Grid) -> None:
    own = grid(500_000, 5_400_000)
    ground, pairs = learnt_ground([own, other], [whole(own, TRAIN), whole(other, TEST)])
    assert not ground[1].any()
    assert pairs == []


@pytest.mark.parametrize("size", [5.0, 30.0], ids=["finer", "coarser"])
def test_another_pixel_size(size: float) -> None:
    own = grid(500_000, 5_400_000)
    roles = [whole(own, UNUSED), np.full((12, 12), TEST, np.uint8)]
    roles[0][2, 3] = TRAIN  # x 30..40, y 20..30 below the top
    other = grid(500_000, 5_400_000, 12, 12, size)
    (_, ground), _ = learnt_ground([own, other], roles)
    rows, cols = np.nonzero(ground)
    assert set(zip(rows.tolist(), cols.tolist(), strict=True)) == (
        {(4, 6), (4, 7), (5, 6), (5, 7)} if size == 5 else {(0, 1)}
    )


@pytest.mark.parametrize(("zones", "east"), [((32632, 32633), 12.0), ((32660, 32601), 180.0)])
def test_another_crs_also_across_180_degrees(zones: tuple[int, int], east: float) -> None:
    """The centres of one tile's pixels, brought to the other by pyproj; those at its border may go either way."""
    one, two = (f"EPSG:{zone}" for zone in zones)
    x, y = pyproj.Transformer.from_crs(4326, one, always_xy=True).transform(east, 48.0)
    own = grid(x - 300, y + 300, 60, 60, crs=one)
    x, y = pyproj.Transformer.from_crs(4326, two, always_xy=True).transform(east, 48.0)
    other = grid(x - 100, y + 100, 20, 50, crs=two)
    (_, ground), pairs = learnt_ground([own, other], [whole(own, TRAIN), whole(other, TEST)])
    cols, rows = np.meshgrid(np.arange(50) + 0.5, np.arange(20) + 0.5)
    xs, ys = pyproj.Transformer.from_crs(two, one, always_xy=True).transform(x - 100 + cols * 10, y + 100 - rows * 10)
    col, row = (xs - own.transform[2]) / 10, (own.transform[5] - ys) / 10
    inside = (col > 1) & (col < 59) & (row > 1) & (row < 59)
    outside = (col < -1) | (col > 61) | (row < -1) | (row > 61)
    assert pairs == [(1, 0)]
    assert min(inside.sum(), outside.sum()) > 100
    assert ground[inside].all()
    assert not ground[outside].any()


def test_longitudes_from_0_to_360_and_from_180_west() -> None:
    east = Grid(10, 360, (1.0, 0.0, 0.0, 0.0, -1.0, 5.0), "EPSG:4326")
    west = Grid(10, 360, (1.0, 0.0, -180.0, 0.0, -1.0, 5.0), "EPSG:4326")
    roles = [whole(east, UNUSED), whole(west, TEST)]
    roles[0][3, 350] = TRAIN  # 10 degrees west
    (_, ground), pairs = learnt_ground([east, west], roles)
    assert np.argwhere(ground).tolist() == [[3, 170]]
    assert pairs == [(1, 0)]


def test_a_small_tile_on_a_pixel_of_a_coarse_one() -> None:
    coarse = Grid(180, 360, (1.0, 0.0, -180.0, 0.0, -1.0, 90.0), "EPSG:4326")
    own = grid(560_000, 5_460_000)  # 9.8 degrees east, 49.3 north: far from the middle of the coarse pixel
    (_, ground), _ = learnt_ground([own, coarse], [whole(own, TRAIN), whole(coarse, TEST)])
    assert np.argwhere(ground).tolist() == [[40, 189]]
    (_, ground), _ = learnt_ground([coarse, own], [whole(coarse, TRAIN), whole(own, TEST)])
    assert ground.all()


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["pit",UNIT["metre",1]]'])
def test_what_has_no_place_on_the_globe_overlaps_nothing(crs: str | None) -> None:
    grids = [grid(500_000, 5_400_000, crs=crs)] * 2
    ground, pairs = learnt_ground(grids, [whole(grids[0], TRAIN), whole(grids[1], TEST)])
    assert not ground[1].any()
    assert pairs == []


# Polygons that leak -------------------------------------------------------------------------------------------------


def patches(name: str, ids: NDArray[np.int64]) -> Scene:
    """A tile whose polygons are numbered; the class follows from the number, 0 is unlabelled."""
    labels = np.where(ids > 0, ids % 3, UNLABELLED).astype(np.uint8)
    return Scene(name, Grid(*ids.shape), {}, LEGEND, lambda: labels, lambda: ids)


def strips(first: int, count: int = 12) -> Scene:
    """Polygons of 4 x 4 px, side by side."""
    return patches(f"t{first}", np.arange(first, first + count).repeat(4)[None].repeat(4, axis=0))


def test_polygon_leak_by_hand() -> None:
    scenes = [strips(1, 3), strips(3, 2)]  # polygon 3 lies in both
    roles = [np.full((4, 12), UNUSED, np.uint8), np.full((4, 8), TEST, np.uint8)]
    assert polygon_leak_fraction(scenes, roles) == 0
    roles[0][0, 8] = TRAIN
    assert polygon_leak_fraction(scenes, roles) == 0.5
    roles[0][:, :4] = TEST
    roles[0][0, 0] = VALIDATION
    assert polygon_leak_fraction(scenes, roles) == 31 / 47
    assert polygon_leak_fraction([replace(scenes[0], read_polygons=None), scenes[1]], roles) is None
    assert np.isnan(polygon_leak_fraction(scenes, [np.zeros_like(role) for role in roles]) or 0)


def no_mask(*_: object) -> Any:
    raise AssertionError("this split reads no mask")


def role_of(scenes: list[Scene], roles: list[Roles]) -> dict[int, set[int]]:
    """The roles that the pixels of each polygon have."""
    found: dict[int, set[int]] = {}
    for scene, role in zip(scenes, roles, strict=True):
        assert scene.read_polygons is not None
        for polygon, value in zip(scene.read_polygons().ravel().tolist(), role.ravel().tolist(), strict=True):
            found.setdefault(polygon, set()).add(value)
    return found


def test_whole_polygons_over_tiles_by_class() -> None:
    scenes = [strips(1), strips(7), strips(13)]  # the middle one shares polygons with both
    roles = assign(scenes, PolygonsSplit(kind="polygons", test=0.34, validation=0.25), no_mask)
    found = role_of(scenes, roles)
    assert sorted(found) == list(range(1, 25))
    assert all(len(one) == 1 for one in found.values())
    for kind in range(3):  # 8 polygons of each class
        dealt = [next(iter(found[polygon])) for polygon in found if polygon % 3 == kind]
        assert dealt.count(TEST) in (2, 3)
        assert dealt.count(VALIDATION) in (1, 2)
    assert polygon_leak_fraction(scenes, roles) == 0


@pytest.mark.parametrize("seed", range(3))
def test_small_polygons_beside_large_ones_reach_every_role(seed: int) -> None:
    sizes = np.random.default_rng(seed).permutation([400, 60, 20, 8, 3, 2]).repeat(3)  # six polygons of each class
    scene = patches("t", np.arange(1, 19).repeat(sizes)[None])
    (roles,) = assign([scene], PolygonsSplit(kind="polygons", seed=seed), no_mask)
    counts = counts_per_class([roles], [scene.labels], 3)
    assert all(counts[role].all() for role in ("train", "validation", "test"))


def test_each_polygon_tests_in_one_fold() -> None:
    scenes = [strips(1), strips(7)]
    tested: list[int] = []
    for fold in range(3):
        roles = assign(scenes, PolygonsSplit(kind="polygons", folds=3, fold=fold), no_mask)
        counts = counts_per_class(roles, [scene.labels for scene in scenes], 3)
        assert all(counts[role].all() for role in ("train", "validation", "test"))
        tested += [polygon for polygon, one in role_of(scenes, roles).items() if one == {TEST}]
    assert sorted(tested) == list(range(1, 19))


def test_a_buffer_around_polygons() -> None:
    scenes = [strips(1)]
    (bare,) = assign(scenes, PolygonsSplit(kind="polygons"), no_mask)
    (roles,) = assign(scenes, PolygonsSplit(kind="polygons", buffer=2), no_mask)
    np.testing.assert_array_equal(roles == TEST, bare == TEST)
    assert (bare == TRAIN).sum() > (roles == TRAIN).sum() > 0
    assert leak_fraction([bare], 5) > 0
    assert leak_fraction([roles], 5) == 0


# Files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Two tiles of 20 x 30 px that overlap by 10 columns, and 5 x 5 px fields of three crops over both."""
    for name, left in (("a", 500_000), ("b", 500_200)):
        own = grid(left, 5_400_000, 20, 30)
        write_raster(tmp_path / f"s2_{name}.tif", own, np.ones((1, 20, 30), np.float32), nodata=None)
    shapes = [
        shapely.box(500_000 + 50 * col, 5_400_000 - 50 * (row + 1), 500_050 + 50 * col, 5_400_000 - 50 * row)
        for row in range(4)
        for col in range(10)
    ]
    crop = [("wheat", "maize", "rape")[number % 3] for number in range(40)]
    geopandas.GeoDataFrame({"crop": crop}, geometry=shapes, crs=UTM).to_crs(4326).to_file(tmp_path / "fields.gpkg")
    text = {
        "name": "fields",
        "tiles": ["a", "b"],
        "modalities": {"s2": {"path": "s2_{tile}.tif"}},
        "labels": {"polygons": "fields.gpkg", "attribute": "crop"},
        "legend": [{"name": name} for name in ("wheat", "maize", "rape")],
        "split": {"kind": "blocks", "size": 8},
    }
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "scene.yaml"


def test_blocks_that_cut_fields_are_reported(fields: Path, landfuse: Callable[..., Any]) -> None:
    report = check(fields, [(1, 1)])
    assert report.polygon_leak is not None
    assert report.polygon_leak > 0.3
    assert report.leaks[1, 1] > 0
    code, out, _ = landfuse("check", fields, "--views", "1")
    assert code == 0
    assert f"note: {report.polygon_leak:.1%} of the test pixels lie in polygons that also train or validate" in out
    assert f"note: tiles overlap: {report.leaks[1, 1]:.1%} of the test pixels lie on ground" in out
    assert "(`b` on `a`)" in out


def test_a_split_by_polygons_in_a_scene_file_and_a_recipe(fields: Path) -> None:
    file = read_scene_file(fields)
    scenes = file.scenes()
    split = merged_split(file.settings.split, {"kind": "polygons", "seed": 3})
    roles = file.roles(scenes, split)
    assert split is not None
    assert (split.kind, split.seed) == ("polygons", 3)
    assert all(len(one) == 1 for one in role_of(scenes, roles).values())
    # On the ground where both tiles lie, each pixel has one role, so that nothing leaks there.
    np.testing.assert_array_equal(roles[0][:, 20:], roles[1][:, :10])
    fields.write_text(fields.read_text().replace("kind: blocks\n  size: 8", "kind: polygons\n  folds: 4"))
    report = check(fields, [(1, 1)])
    assert not report.faults
    assert report.polygon_leak == report.leaks[1, 1] == 0
    assert not any("also train" in note for note in report.notes)


def test_a_run_keeps_and_says_what_leaks(fields: Path, landfuse: Callable[..., Any]) -> None:
    (fields.parent / "r.yaml").write_text("scene: scene.yaml\nmodel: {name: forest, trees: 3, context: []}\n")
    run = fields.parent / "run"
    code, out, _ = landfuse("train", fields.parent / "r.yaml", f"run={run}", "-q")
    assert code == 0
    report = check(fields, [(1, 1)])
    scores = json.loads((run / "scores.json").read_text())
    assert scores["leak_fraction"] == report.leaks[1, 1] > 0
    assert scores["polygon_leak_fraction"] == report.polygon_leak
    assert "of the test pixels lie in polygons that also train or validate" in out


def test_labels_that_are_no_polygons_have_no_such_split() -> None:
    scene = replace(strips(1), read_polygons=None)
    with pytest.raises(SplitError, match="by polygons, and the labels are a raster"):
        assign([scene], PolygonsSplit(kind="polygons"), no_mask)


def test_the_polygon_of_a_pixel_is_that_of_its_class(tmp_path: Path) -> None:
    own = grid(500_000, 5_400_000)
    boxes = [shapely.box(500_000, 5_399_970, 500_040, 5_400_000), shapely.box(500_020, 5_399_950, 500_070, 5_399_980)]
    geopandas.GeoDataFrame({"kind": ["x", "y"]}, geometry=boxes, crs=UTM).to_file(tmp_path / "x.gpkg")
    polygons = read_polygons(tmp_path / "x.gpkg", "kind")
    for overlap in ("last", "first"):
        codes = polygons.onto(own, {"x": 0, "y": 1}, overlap=overlap)  # type: ignore[arg-type]
        ids = polygons.ids_onto(own, overlap=overlap)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ids, np.append(polygons.ids, 0)[np.where(codes == UNLABELLED, 2, codes)])
        moved = polygons.ids_onto(grid(500_030, 5_400_000), overlap=overlap)  # type: ignore[arg-type]
        np.testing.assert_array_equal(moved[:, :5], ids[:, 3:])


def test_arrays_with_polygons_split_by_them() -> None:
    boxes = [shapely.box(500_000 + 20 * n, 5_399_940, 500_020 + 20 * n, 5_400_000) for n in range(4)]
    frame = geopandas.GeoDataFrame({"kind": ["x", "y", "x", "y"]}, geometry=boxes, crs=UTM)
    image = ArrayRaster(np.ones((1, 6, 8), np.float32), "CHW", grid(500_000, 5_400_000), "s2")
    scene = Scene.from_arrays({"s2": image}, frame, column="kind")
    (roles,) = assign([scene], PolygonsSplit(kind="polygons", validation=0), no_mask)
    assert [len(one) for one in role_of([scene], [roles]).values()] == [1] * 4


def test_leaks_by_buffer_against_plain_loops() -> None:
    rng = np.random.default_rng(3)
    roles = [rng.choice(4, size, p=(0.9, 0.06, 0.02, 0.02)).astype(np.uint8) for size in ((17, 23), (9, 30))]
    roles.append(np.full((4, 4), TEST, np.uint8))  # a tile without anything learnt
    learnt = [(role == TRAIN) | (role == VALIDATION) for role in roles]

    def near(pixels: NDArray[np.bool_], mask: NDArray[np.bool_], distance: int) -> int:
        return sum(
            mask[max(0, row - distance) : row + distance + 1, max(0, col - distance) : col + distance + 1].any()
            for row, col in zip(*np.nonzero(pixels), strict=True)
        )

    tested = [role == TEST for role in roles]
    for row in leaks_by_buffer(roles, learnt):
        distance = int(row["buffer"])
        leaking = sum(near(test, ground, distance) for test, ground in zip(tested, learnt, strict=True))
        losing = sum(near(ground, test, distance) for test, ground in zip(tested, learnt, strict=True))
        assert row["leaks"] == pytest.approx(leaking / sum(test.sum() for test in tested))
        assert row["lost"] == pytest.approx(losing / sum(ground.sum() for ground in learnt))
        assert row["leaks"] == pytest.approx(leak_fraction(roles, 2 * distance + 1))
