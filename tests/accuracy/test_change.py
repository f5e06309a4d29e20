"""Areas of change: Olofsson's example from files, all samples of two small maps, and what intervals promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from typer.testing import Result

from landfuse.accuracy.change import change
from landfuse.accuracy.draw_sample import draw_sample
from landfuse.accuracy.from_sample import evaluate_sample
from landfuse.accuracy.reference_sample import Design, ReferenceSample, read_sample
from landfuse.errors import GridError, LandfuseError, OutputError, SceneError
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.land_cover_map import open_two_maps

LEGEND = Legend((LandClass("forest", 1, "#0000FF"), LandClass("town", 2, "#00FF00")))
GRID = Grid(100, 100, (30.0, 0.0, 5e5, 0.0, -30.0, 5e6), "EPSG:32632")
ARRAYS = ("x", "y", "row", "col", "code", "stratum", "cluster", "pixel_m2")
PAIRS = {"forest to town": (1, 2), "town to forest": (2, 1), "stable forest": (1, 1), "stable town": (2, 2)}


def write(folder: Path, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> tuple[Path, Path]:
    places = folder / "before.tif", folder / "after.tif"
    for place, codes in zip(places, (before, after), strict=True):
        write_raster(place, Grid(*codes.shape, GRID.transform, GRID.crs), codes, legend=LEGEND)
    return places


def observed(sample: ReferenceSample, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> ReferenceSample:
    texts = [tuple(str(code) for code in truth[sample.row, sample.col]) for truth in (before, after)]
    return replace(sample, reference=texts[0], reference_after=texts[1])


def scenery(seed: int = 0) -> tuple[NDArray[np.uint8], ...]:
    """Truth before and after, 2% of which changes, and maps of both with 5% of errors each."""
    rng = np.random.default_rng(seed)
    before = (1 + (np.add.outer(np.arange(100) // 9, np.arange(100) // 7) % 3 == 0)).astype(np.uint8)
    after = np.where(rng.random(before.shape) < 0.02, 3 - before, before).astype(np.uint8)
    maps = [np.where(rng.random(t.shape) < 0.05, 3 - t, t).astype(np.uint8) for t in (before, after)]
    return before, after, *maps


def test_the_example_of_olofsson_from_files(tmp_path: Path) -> None:
    """Tables 8 and 9 of the paper on a thousandth of its map: 10,000 px of 30 m, 900 ha, in its proportions."""
    codes = [np.repeat([pair[date] for pair in PAIRS.values()], [200, 150, 3200, 6450]) for date in (0, 1)]
    before, after = write(tmp_path, *(one.astype(np.uint8).reshape(100, 100) for one in codes))
    every = draw_sample(before, 10**6, after=after)
    counts = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])  # rows are the maps
    strata = [next(code for code, name in every.names.items() if name == pair) for pair in PAIRS]
    chosen = np.concatenate(
        [np.flatnonzero(every.stratum == s)[:n] for s, n in zip(strata, counts.sum(axis=1), strict=True)]
    )
    truth = np.array([*PAIRS.values()])[np.repeat(np.tile(np.arange(4), 4), counts.ravel())]
    sample = replace(
        every,
        **{name: getattr(every, name)[chosen] for name in ARRAYS},
        drawn=dict(zip(strata, counts.sum(axis=1).tolist(), strict=True)),
        reference=tuple(map(str, truth[:, 0])),
        reference_after=tuple(map(str, truth[:, 1])),
    )
    found = change(before, after, sample, finite=False)
    area = {c.name: (c.hectares.value, c.hectares.half_width) for c in found.transitions.classes if c.hectares}
    assert area["forest to town"] == pytest.approx((21.158, 6.158), abs=6e-4)
    assert area["town to forest"] == pytest.approx((11.686, 3.756), abs=6e-4)
    assert area["stable forest"] == pytest.approx((285.770, 15.510), abs=6e-4)
    assert area["stable town"] == pytest.approx((581.386, 16.282), abs=6e-4)
    users = {c.name: round(c.users.value, 2) for c in found.transitions.classes}
    assert users == {"forest to town": 0.88, "town to forest": 0.73, "stable forest": 0.93, "stable town": 0.96}
    assert found.all.hectares is not None
    assert found.all.hectares.value == pytest.approx(21.158 + 11.686, abs=1e-3)
    assert found.mapped == pytest.approx(0.035)


def test_a_sample_of_all_pixels_is_the_truth(tmp_path: Path) -> None:
    before, after, *shown = scenery()
    maps = write(tmp_path, *shown)
    found = change(*maps, observed(draw_sample(maps[0], 10**6, after=maps[1]), before, after))
    area = {c.name: c.hectares.value for c in found.transitions.classes if c.hectares}
    assert area == pytest.approx(
        {name: ((before == a) & (after == b)).sum() * 0.09 for name, (a, b) in PAIRS.items()}, rel=1e-3
    )
    assert found.all.fraction.value == pytest.approx((before != after).mean())
    assert found.all.users.value == pytest.approx((before != after)[shown[0] != shown[1]].mean())
    assert found.mapped == pytest.approx((shown[0] != shown[1]).mean())
    assert found.mapped > 4 * found.all.fraction.value, "most of the difference is no change"


def test_intervals_hold_the_true_area_of_change(tmp_path: Path) -> None:
    before, after, *shown = scenery(5)
    maps = write(tmp_path, *shown)
    truth, held = (before != after).mean(), []
    for seed in range(30):
        one = change(*maps, observed(draw_sample(maps[0], 600, after=maps[1], seed=seed), before, after)).all.fraction
        held.append(one.low <= truth <= one.high)
    assert np.mean(held) >= 0.8


@pytest.mark.parametrize("ending", ["gpkg", "csv"])
@pytest.mark.parametrize("design", ["stratified", "simple", "cluster"])
def test_a_sample_of_two_maps_survives_its_file(tmp_path: Path, ending: str, design: Design) -> None:
    before, after, *shown = scenery()
    maps = write(tmp_path, *shown)
    drawn, path = draw_sample(maps[0], 200, after=maps[1], design=design), tmp_path / f"s.{ending}"
    drawn.save(path)
    drawn.save(path)
    assert read_sample(path).references == {
        name: (None,) * len(drawn) for name in ("reference_before", "reference_after")
    }
    with pytest.raises(SceneError, match=f"no reference for {len(drawn)} of {len(drawn)} points"):
        change(*maps, path)
    done = observed(drawn, before, after)
    half = replace(done, reference_after=(None, *(done.reference_after or ())[1:]))
    half.save(path)
    with pytest.raises(SceneError, match="no reference for 1 of"):
        change(*maps, path)
    with pytest.raises(OutputError, match="references are filled in"):
        done.save(path)
    done.save(path, overwrite=True)
    assert change(*maps, path).to_json() == change(*maps, done).to_json()
    assert set(read_sample(path).names.values()) <= set(PAIRS)


def test_references_are_codes_names_other_or_not_known(tmp_path: Path) -> None:
    before, after, *shown = scenery()
    maps = write(tmp_path, *shown)
    done = observed(draw_sample(maps[0], 200, after=maps[1]), before, after)
    named = replace(done, reference=tuple(LEGEND.names[int(text) - 1].upper() for text in done.reference))
    assert change(*maps, named).to_json() == change(*maps, done).to_json()
    mixed = replace(done, reference=("other", str(UNLABELLED), *done.reference[2:]))
    found = change(*maps, mixed).transitions
    assert found.points == 199
    assert found.classes[-1].name.startswith("other to ")
    with pytest.raises(SceneError, match="'bog', which is no class"):
        change(*maps, replace(done, reference=("bog", *done.reference[1:])))


def test_an_unnamed_map_has_pairs_of_codes(tmp_path: Path) -> None:
    codes = np.tile(np.array([1, 2, 9, UNLABELLED], np.uint8), (4, 1))
    for name, values in (("a", codes), ("b", codes[:, ::-1])):
        write_raster(tmp_path / f"{name}.tif", Grid(4, 4), np.ascontiguousarray(values))
    both = open_two_maps(tmp_path / "a.tif", tmp_path / "b.tif")
    assert dict(zip(both.pairs, both.legend.names, strict=True)) == {
        (2, 9): "class 2 to class 9",
        (9, 2): "class 9 to class 2",
    }
    assert [(one.pixels, one.hectares) for one in both.pairs.values()] == [(4, None)] * 2
    assert both.codes(both.grid.window)[0].tolist() == [UNLABELLED, 0, 1, UNLABELLED]


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("grid", GridError, "has the grid 50 x 100"),
        ("legend", SceneError, "different legends: 2 is town and none, 3 is none and road"),
        ("nothing", SceneError, "hold 0 pairs of classes"),
        ("many", SceneError, "hold 400 pairs of classes"),
        ("one", SceneError, "was drawn from one map, before.tif"),
    ],
)
def test_what_is_no_pair_of_maps_is_refused(tmp_path: Path, what: str, kind: type[LandfuseError], message: str) -> None:
    before, after, *shown = scenery()
    maps = write(tmp_path, *shown)
    sample = observed(draw_sample(maps[0], 100, after=maps[1]), before, after)
    if what == "grid":
        write_raster(maps[1], Grid(50, 100, GRID.transform, GRID.crs), shown[1][:50], legend=LEGEND)
    elif what == "legend":
        write_raster(maps[1], GRID, shown[1], legend=Legend((LEGEND[0], LandClass("road", 3, "#FF0000"))))
    elif what == "nothing":
        write_raster(maps[1], GRID, np.full_like(shown[1], UNLABELLED), legend=LEGEND)
    elif what == "many":
        for place, codes in zip(maps, np.indices((100, 100)) % 20, strict=True):
            write_raster(place, GRID, codes.astype(np.uint8))
            Path(f"{place}.aux.xml").unlink(missing_ok=True)
    else:
        sample = replace(draw_sample(maps[0], 100), reference=("1",) * 100)
    with pytest.raises(kind, match=message):
        change(*maps, sample)


def test_a_sample_of_two_maps_says_nothing_of_one(tmp_path: Path) -> None:
    before, after, *shown = scenery()
    maps = write(tmp_path, *shown)
    observed(draw_sample(maps[0], 100, after=maps[1]), before, after).save(tmp_path / "s.csv")
    with pytest.raises(SceneError, match="landfuse change BEFORE AFTER"):
        evaluate_sample(maps[0], tmp_path / "s.csv")


def test_the_commands(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    before, after, *shown = scenery()
    maps = write(tmp_path, *shown)
    done = invoke("change", *maps)
    assert done.exit_code == 0, done.output
    assert "differences of" in done.output
    assert "are not change: errors of either map appear as change" in done.output
    assert f"landfuse sample {maps[0]} --with {maps[1]}" in done.output
    drawn = invoke("sample", maps[0], "--with", maps[1], "-n", 300, "-o", tmp_path / "s.csv", "--picture")
    assert drawn.exit_code == 0, drawn.output
    assert f"landfuse change {maps[0]} {maps[1]} {tmp_path / 's.csv'}" in drawn.output
    assert (tmp_path / "s.png").exists()
    table = pd.read_csv(tmp_path / "s.csv")
    table["reference_before"], table["reference_after"] = before[table.row, table.col], after[table.row, table.col]
    table.to_csv(tmp_path / "s.csv", index=False)
    done = invoke("change", *maps, tmp_path / "s.csv", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for name in [*PAIRS, "all change"]:
        assert name in done.output
    values = json.loads((tmp_path / "out/change.json").read_text())
    assert values["change"]["class"] == "all change"
    assert [row["class"] for row in values["classes"]] == [
        "stable forest",
        "forest to town",
        "town to forest",
        "stable town",
    ]
    assert list(pd.read_csv(tmp_path / "out/change.csv")["class"]) == [row["class"] for row in values["classes"]]
