"""Drawing a reference sample, keeping it in files, and judging maps by it."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from landfuse.accuracy import draw_sample
from landfuse.accuracy.draw_sample import allocate
from landfuse.accuracy.draw_sample import draw_sample as draw_points
from landfuse.accuracy.from_sample import evaluate_sample
from landfuse.accuracy.reference_sample import ReferenceSample, read_sample
from landfuse.cli.commands import app
from landfuse.errors import GridError, LandfuseError, MissingFileError, OutputError, SceneError, SettingsError
from landfuse.figures import figures
from landfuse.figures.figures import areas_figure
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.mapping.map_extras import write_mosaics
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.land_cover_map import LandCoverMap, class_names, open_map

LEGEND = Legend(
    (LandClass("Water", 1, "#0000FF"), LandClass("Forest", 2, "#00FF00"), LandClass("Town <old>", 7, "#FF0000"))
)
U = UNLABELLED


def grid_of(height: int, width: int, crs: str | None = "EPSG:32632") -> Grid:
    return Grid(height, width, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), crs)


def codes_of(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.choice([1, 2, 7, U], (height, width), p=[0.2, 0.6, 0.1, 0.1]).astype(np.uint8)


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """A map of 90 x 70 px of three classes, with holes."""
    write_raster(tmp_path / "city.tif", grid_of(90, 70), codes_of(90, 70), legend=LEGEND)
    return tmp_path / "city.tif"


def filled(sample: ReferenceSample, truth: NDArray[np.uint8]) -> ReferenceSample:
    return replace(sample, reference=tuple(str(code) for code in truth[sample.row, sample.col]))


def truth_of(codes: NDArray[np.uint8], wrong: float = 0.2, seed: int = 4) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(codes.shape) < wrong, rng.choice([1, 2, 7], codes.shape), codes).astype(np.uint8)


@pytest.mark.parametrize("tile", [16, 512])
@pytest.mark.parametrize("design", ["stratified", "simple", "cluster"])
def test_what_is_drawn_lies_in_the_map(
    city: Path, design: draw_sample.Design, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_sample, "TILE", tile)
    codes = codes_of(90, 70)
    reported: list[tuple[int, int]] = []
    sample = draw_points(city, 200, design=design, seed=3, progress=lambda done, total: reported.append((done, total)))
    assert (sample.code == codes[sample.row, sample.col]).all()
    assert (sample.code != U).all()
    assert len(set(zip(sample.row.tolist(), sample.col.tolist(), strict=True))) == len(sample)
    np.testing.assert_array_equal(sample.x, 5e5 + 10 * (sample.col + 0.5))
    np.testing.assert_array_equal(sample.y, 5e6 - 10 * (sample.row + 0.5))
    assert sample.pixels == (codes != U).sum()
    assert reported[-1][0] == reported[-1][1]
    units = {s: np.unique(sample.cluster[sample.stratum == s]).size for s in sample.sizes}
    assert units == dict(sample.drawn)
    if design == "stratified":
        assert dict(sample.sizes) == {code: (codes == code).sum() for code in (1, 2, 7)}
        assert (sample.stratum == sample.code).all()
        assert len(sample) == 200
        assert min(sample.drawn.values()) == 50
        assert len(set(sample.code[:20].tolist())) > 1, "the order of the rows reports nothing"
    elif design == "simple":
        assert dict(sample.sizes) == {0: sample.pixels}
        assert len(sample) == 200
    else:
        cells = {(int(r) // 3, int(c) // 3) for r, c in zip(sample.row, sample.col, strict=True)}
        assert len(cells) == sample.drawn[0] == math.ceil(200 / 9)
        inside = np.zeros_like(codes, dtype=bool)
        for row, col in cells:
            inside[row * 3 : row * 3 + 3, col * 3 : col * 3 + 3] = True
        assert (inside & (codes != U)).sum() == len(sample), "every pixel of a drawn cluster that has a class"
        assert sample.sizes[0] == 30 * 24


@pytest.mark.parametrize("design", ["stratified", "simple", "cluster"])
def test_every_pixel_has_the_chance_that_is_written(tmp_path: Path, design: draw_sample.Design) -> None:
    codes = codes_of(11, 8)
    write_raster(tmp_path / "m.tif", grid_of(11, 8), codes)
    runs = 250
    times = np.zeros(codes.shape)
    chance = np.zeros(codes.shape)
    for seed in range(runs):
        sample = draw_points(tmp_path / "m.tif", 18, design=design, seed=seed, side=2)
        times[sample.row, sample.col] += 1
        chance[sample.row, sample.col] = sample.probability
    assert ((times > 0) == (codes != U)).all()
    p = chance[codes != U]
    error = np.sqrt(p * (1 - p) / runs)
    z = (times[codes != U] / runs - p) / np.where(error > 0, error, 1)
    assert np.abs(z).max() < 4.5
    assert 0.6 < z.std() < 1.4


def test_the_seed_decides(city: Path) -> None:
    first, same, other = (draw_points(city, 100, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x, same.x)
    assert (first.x != other.x).any()


def test_memory_depends_on_the_block_not_on_the_map(tmp_path: Path) -> None:
    peaks = []
    for rows in (512, 4096):
        path = tmp_path / f"{rows}.tif"
        write_raster(path, grid_of(rows, 512), np.tile(codes_of(512, 512), (rows // 512, 1)))
        draw_points(path, 300)
        tracemalloc.start()
        draw_points(path, 300)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


def test_the_allocations_of_olofsson() -> None:
    # Table 5: 641 points for classes of 2, 1.5, 32 and 64.5% of the map.
    sizes = np.array([200_000, 150_000, 3_200_000, 6_450_000])
    assert allocate(sizes, 641, minimum=2).tolist() == [13, 10, 205, 413]
    assert allocate(sizes, 640, minimum=640, weights=np.ones(4)).tolist() == [160] * 4
    assert allocate(sizes, 641, minimum=100).tolist() == [100, 100, 146, 295]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=9),
    st.integers(2, 3000),
    st.integers(2, 200),
    st.integers(0, 99),
)
def test_allocations_add_up_and_keep_their_bounds(sizes: list[int], n: int, minimum: int, seed: int) -> None:
    here = np.array(sizes)
    weights = np.random.default_rng(seed).random(here.size) * (np.random.default_rng(seed + 1).random(here.size) < 0.8)
    if n < 2 * here.size:
        with pytest.raises(SettingsError, match="too few"):
            allocate(here, n)
        return
    for chosen in (None, weights):
        points = allocate(here, n, minimum=minimum, weights=chosen)
        assert points.sum() == min(n, here.sum())
        assert (points <= here).all()
        assert (points >= np.minimum(here, min(minimum, n // here.size))).all()


def test_neyman_gives_more_to_what_is_doubtful(city: Path) -> None:
    doubtful = draw_points(city, 300, allocation="neyman", minimum=10, expected={1: 0.5, 2: 0.99, 7: 0.5})
    by_area = draw_points(city, 300, minimum=10)
    assert doubtful.drawn[1] > by_area.drawn[1]
    assert doubtful.drawn[2] < by_area.drawn[2]
    assert draw_points(city, 300, allocation="equal").drawn == {1: 100, 2: 100, 7: 100}
    with pytest.raises(SettingsError, match="the class 2, 7 has no expected"):
        draw_points(city, 300, allocation="neyman", expected={1: 0.5, 7: 1.5})
    with pytest.raises(SettingsError, match="not known"):
        draw_points(city, 300, design="random")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="the seed -1"):
        draw_points(city, 300, seed=-1)


@pytest.mark.parametrize("design", ["stratified", "simple", "cluster"])
@pytest.mark.parametrize("ending", ["gpkg", "csv"])
def test_a_sample_survives_its_file(city: Path, tmp_path: Path, design: draw_sample.Design, ending: str) -> None:
    sample = draw_points(city, 150, design=design)
    path = tmp_path / f"sample.{ending}"
    sample.save(path)
    again = read_sample(path)
    assert again.reference == (None,) * len(sample)
    columns, read = sample.columns(), again.columns()
    for name in set(columns) - {"reference"}:
        np.testing.assert_array_equal(columns[name], read[name], err_msg=name)
    assert (again.sizes, again.drawn, again.crs) == (sample.sizes, sample.drawn, "EPSG:32632")
    truth = truth_of(codes_of(90, 70))
    done = filled(sample, truth)
    done.save(path)
    assert evaluate_sample(city, path, design).to_json() == evaluate_sample(city, done).to_json()
    assert not list(tmp_path.glob(".*part*"))


@pytest.mark.parametrize("ending", ["gpkg", "csv"])
def test_a_sample_is_replaced_until_somebody_works_on_it(city: Path, tmp_path: Path, ending: str) -> None:
    path, sample = tmp_path / f"sample.{ending}", draw_points(city, 100)
    sample.save(path)
    sample.save(path)
    one = replace(sample, reference=(*[None] * 99, "Water"))
    one.save(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="1 of its 100 references"):
        sample.save(path)
    assert path.read_bytes() == before
    sample.save(path, overwrite=True)
    frame = geopandas.read_file(path) if ending == "gpkg" else pd.read_csv(path)
    frame["photo"] = ""  # a column of the field workers
    frame.to_file(path) if ending == "gpkg" else frame.to_csv(path, index=False)
    with pytest.raises(OutputError, match="more than the columns"):
        sample.save(path)
    geopandas.GeoDataFrame({"plot": [1]}, geometry=[shapely.Point(0, 0)], crs=32632).to_file(tmp_path / "field.gpkg")
    (tmp_path / "field.csv").write_text("plot,class\n1,Water\n")
    with pytest.raises(OutputError, match="it is no sample"):
        sample.save(tmp_path / f"field.{ending}")


def test_a_geopackage_of_a_sample_opens_elsewhere(city: Path, tmp_path: Path) -> None:
    sample = draw_points(city, 100)
    sample.save(tmp_path / "sample.gpkg")
    frame = geopandas.read_file(tmp_path / "sample.gpkg")
    assert frame.crs == "EPSG:32632"
    np.testing.assert_array_equal(frame.geometry.x, sample.x)
    assert frame["reference"].isna().all()
    assert set(frame["map_class"]) == {"Water", "Forest", "Town <old>"}
    frame["reference"] = frame["map_class"].str.upper()  # as a person fills it in
    frame.to_file(tmp_path / "sample.gpkg")
    assert evaluate_sample(city, tmp_path / "sample.gpkg").overall.value == 1
    frame.to_file(tmp_path / "sample.gpkg", layer="another")
    with pytest.raises(SceneError, match="2 layers: sample, another"):
        read_sample(tmp_path / "sample.gpkg")


@pytest.mark.parametrize("design", ["stratified", "simple", "cluster"])
def test_a_sample_of_all_pixels_is_the_truth(city: Path, design: draw_sample.Design) -> None:
    codes = codes_of(90, 70)
    truth = truth_of(codes)
    result = evaluate_sample(
        city, filled(draw_points(city, 90 * 72, design=design), truth)
    )  # clusters reach over the edge
    there = codes != U
    assert result.overall.value == pytest.approx((truth == codes)[there].mean())
    assert result.overall.error == pytest.approx(0, abs=1e-9)
    for code, c in zip((1, 2, 7), result.classes, strict=True):
        assert c.hectares is not None
        assert c.hectares.value == pytest.approx(((truth == code) & there).sum() * 100 / 10_000)
        assert c.users.value == pytest.approx((truth == code)[codes == code].mean())
        assert c.producers.value == pytest.approx((codes == code)[there & (truth == code)].mean())


def test_another_map_is_judged_in_the_strata_of_the_first(city: Path, tmp_path: Path) -> None:
    codes = codes_of(90, 70)
    truth = truth_of(codes)
    better = truth_of(truth, wrong=0.05, seed=9)
    fine = np.repeat(np.repeat(better, 2, axis=0), 2, axis=1)  # on another grid
    write_raster(tmp_path / "fine.tif", grid_of(90, 70).zoomed(2), fine, legend=LEGEND)
    everything = filled(draw_points(city, 90 * 70), truth)
    result = evaluate_sample(tmp_path / "fine.tif", everything)
    assert result.overall.value == pytest.approx((truth == better)[codes != U].mean())
    assert "another map" in result.design
    part = evaluate_sample(tmp_path / "fine.tif", filled(draw_points(city, 600, seed=5), truth))
    assert abs(part.overall.value - result.overall.value) < 4 * part.overall.error
    assert part.overall.error > 0


def test_truth_that_is_not_known_is_left_out_and_noted(city: Path) -> None:
    sample = filled(draw_points(city, 200), codes_of(90, 70))
    sample = replace(sample, reference=(str(U), *sample.reference[1:]))
    result = evaluate_sample(city, sample)
    assert result.points == 199
    assert any("the truth of 1 of 200 points is not known" in note for note in result.notes)


def test_what_is_no_class_of_the_map_is_an_error_with_an_area(city: Path) -> None:
    codes = codes_of(90, 70)
    everything = filled(draw_points(city, 10**6, design="simple"), codes)
    bog = np.arange(len(everything)) < len(everything) // 10
    known = tuple("Other" if lost else text for text, lost in zip(everything.reference, bog, strict=True))
    result = evaluate_sample(city, replace(everything, reference=known))
    assert result.overall.value == pytest.approx(1 - bog.mean())
    assert [c.name for c in result.classes] == ["Water", "Forest", "Town <old>", "other"]
    assert result.classes[-1].fraction.value == pytest.approx(bog.mean())
    assert result.classes[-1].hectares is not None
    assert result.classes[-1].producers.value == 0
    assert result.classes[-1].mapped_points == 0


@pytest.mark.parametrize(("design", "map_crs"), [("stratified", "EPSG:4326"), ("cluster", "EPSG:3395")])
def test_areas_are_true_ones_wherever_the_map_is(design: str, map_crs: str, tmp_path: Path) -> None:
    step, top = (1.0, 70.0) if map_crs == "EPSG:4326" else (1e5, 9e6)
    codes = codes_of(60, 30)
    codes[:30][codes[:30] == 2] = 1  # wood in the south, water in the north, where pixels are small
    write_raster(tmp_path / "m.tif", Grid(60, 30, (step, 0.0, 0.0, 0.0, -step, top), map_crs), codes, legend=LEGEND)
    counted = {name: area.hectares for name, area in open_map(tmp_path / "m.tif").areas().items()}
    sample = draw_points(tmp_path / "m.tif", 60 * 30, design=design, side=3)
    sample.save(tmp_path / "s.csv")
    census = evaluate_sample(tmp_path / "m.tif", filled(read_sample(tmp_path / "s.csv"), codes))
    assert {c.name: c.hectares.value for c in census.classes if c.hectares} == pytest.approx(counted)
    assert census.classes[0].fraction.value < (codes == 1).sum() / (codes != U).sum() / 1.1, "of area, not of pixels"
    draws = [draw_points(tmp_path / "m.tif", 150, design=design, side=3, seed=seed) for seed in range(25)]
    part = [evaluate_sample(tmp_path / "m.tif", filled(draw, truth_of(codes))).classes[0].fraction for draw in draws]
    truth = evaluate_sample(tmp_path / "m.tif", filled(sample, truth_of(codes))).classes[0].fraction.value
    spread = np.std([one.value for one in part])
    assert abs(np.mean([one.value for one in part]) - truth) < 3.5 * spread / math.sqrt(25)
    assert np.mean([one.error for one in part]) == pytest.approx(spread, rel=0.35), "its error is what draws differ by"


def test_a_sample_of_before_has_hectares_where_its_pixels_were_right(city: Path, tmp_path: Path) -> None:
    def of_before(where: Path, crs: str) -> float | None:
        write_raster(where, grid_of(90, 70, crs), codes_of(90, 70), legend=LEGEND)
        sample = draw_points(where, 90 * 70)
        sample = replace(sample, stratum_m2=dict.fromkeys(sample.sizes, math.nan), pixel_m2=np.full(len(sample), 100.0))
        result = evaluate_sample(where, filled(sample, codes_of(90, 70)))
        assert any("no hectares" in note for note in result.notes) == (result.classes[0].hectares is None)
        return result.classes[0].hectares and result.classes[0].hectares.value

    assert of_before(tmp_path / "a.tif", "EPSG:32632") == pytest.approx((codes_of(90, 70) == 1).sum() / 100)
    assert of_before(tmp_path / "b.tif", "EPSG:3857") is None


def test_a_map_without_a_place_has_no_hectares(tmp_path: Path) -> None:
    write_raster(tmp_path / "m.tif", grid_of(30, 30, None), codes_of(30, 30))
    result = evaluate_sample(tmp_path / "m.tif", filled(draw_points(tmp_path / "m.tif", 100), codes_of(30, 30)))
    assert all(c.hectares is None for c in result.classes)
    assert any("no hectares" in note for note in result.notes)
    assert [c.name for c in result.classes] == ["class 1", "class 2", "class 7"]


def test_names_stand_beside_the_map(city: Path, tmp_path: Path) -> None:
    assert class_names(city) == {1: "Water", 2: "Forest", 7: "Town <old>"}
    assert class_names(tmp_path / "none.tif") == {}
    Path(f"{city}.aux.xml").write_text("<broken")
    assert class_names(city) == {}
    assert draw_points(city, 100, legend=LEGEND).names[7] == "Town <old>"


def test_what_is_no_map_is_refused(city: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        draw_points(tmp_path / "none.tif", 10)
    write_raster(tmp_path / "rgb.tif", grid_of(5, 5), np.zeros((3, 5, 5), np.uint8))
    with pytest.raises(SceneError, match="3 bands"):
        draw_points(tmp_path / "rgb.tif", 10)
    write_raster(tmp_path / "height.tif", grid_of(5, 5), np.full((5, 5), 1.5, np.float32), nodata=None)
    with pytest.raises(SceneError, match=r"holds the number 1\.5"):
        draw_points(tmp_path / "height.tif", 10)
    write_raster(tmp_path / "empty.tif", grid_of(5, 5), np.full((5, 5), U, np.uint8))
    with pytest.raises(SceneError, match="no class"):
        draw_points(tmp_path / "empty.tif", 10)
    with pytest.raises(SettingsError, match="too few"):
        draw_points(city, 5)
    with pytest.raises(OutputError, match=r"sample\.shp"):
        draw_points(city, 50).save(tmp_path / "sample.shp")


def rewrite(path: Path, change: str, to: str = "", rows: slice = slice(None)) -> None:
    """Changes a column of a sample's CSV, or keeps some rows only."""
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))[rows]
    for row in table:
        if change:
            row[change] = to
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def test_what_is_no_whole_sample_is_refused(city: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    sample = filled(draw_points(city, 150), codes_of(90, 70))

    def refused(kind: type[LandfuseError], match: str) -> None:
        with pytest.raises(kind, match=match):
            evaluate_sample(city, path)
        sample.save(path, overwrite=True)

    sample.save(path)
    rewrite(path, "", rows=slice(149))
    refused(SceneError, "149 rows, of 150")
    rewrite(path, "id", "1")
    refused(SceneError, "every row that was drawn, once")
    rewrite(path, "reference")
    refused(SceneError, "no reference for 150 of 150")
    rewrite(path, "reference", "Forrest")
    refused(SceneError, "did you mean `Forest`")
    rewrite(path, "reference", "3")
    refused(SceneError, "no class")
    rewrite(path, "stratum_units", "many")
    refused(SceneError, "damaged")
    rewrite(path, "crs", "EPSG:32633")
    refused(GridError, "another CRS")
    rewrite(path, "design", "chosen by eye")
    refused(SceneError, "chosen by eye")
    path.write_bytes(b"\xff\xfe\x00")
    refused(SceneError, "cannot be read")
    with pytest.raises(SettingsError, match="by a stratified design, not simple"):
        evaluate_sample(city, path, "simple")
    with pytest.raises(SceneError, match="no reference for 80 of 80"):
        evaluate_sample(city, draw_points(city, 80))
    holes = codes_of(90, 70)
    holes[:45] = U
    write_raster(tmp_path / "holes.tif", grid_of(90, 70), holes)
    with pytest.raises(GridError, match="no class at"):
        evaluate_sample(tmp_path / "holes.tif", path)
    write_raster(tmp_path / "half.tif", grid_of(45, 70), codes_of(90, 70)[:45])
    with pytest.raises(GridError, match="no class at"):
        evaluate_sample(tmp_path / "half.tif", path)


def test_polygons_are_refused_with_what_can_be_said_instead(city: Path, tmp_path: Path) -> None:
    shapes = [shapely.box(5e5, 5e6 - 90, 5e5 + 90, 5e6)]
    geopandas.GeoDataFrame({"class": ["Water"]}, geometry=shapes, crs="EPSG:32632").to_file(tmp_path / "fields.gpkg")
    with pytest.raises(SceneError, match="how its places were chosen") as reported:
        evaluate_sample(city, tmp_path / "fields.gpkg")
    assert "agrees with them" in str(reported.value)
    assert "landfuse sample" in str(reported.value)


def test_the_commands(city: Path, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    out = tmp_path / "s" / "sample.gpkg"
    done = run.invoke(app, ["sample", str(city), "-n", "120", "--design", "stratified", "-o", str(out), "--seed", "4"])
    assert done.exit_code == 0, done.output
    assert out.exists()
    assert out.with_suffix(".csv").exists()
    more = ["sample", str(city), "-o", str(tmp_path / "p" / "s.csv"), "--picture"]
    failed = run.invoke(app, [*more, "--scene", str(place)])
    assert isinstance(failed.exception, GridError), "the scene is elsewhere"
    assert not (tmp_path / "p").exists()
    done = run.invoke(app, more)
    assert f"picture: {tmp_path / 'p' / 's.png'}" in done.output
    assert (tmp_path / "p" / "s.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "p" / "s.png").write_bytes(b"a photo")
    failed = run.invoke(app, more)
    assert isinstance(failed.exception, OutputError), "it is somebody's"
    filled(read_sample(out), truth_of(codes_of(90, 70))).save(out)
    words = ["evaluate", str(city), str(out), "--design", "stratified", "-o", str(tmp_path / "reported")]
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "areas_figure", lambda rows: drawn.extend(rows) or areas_figure(rows))
    done = run.invoke(app, words)
    assert (
        [row["colour"] for row in drawn]
        == [one.colour for one in LEGEND]
        == [one.colour for one in open_map(city).legend]
    )
    assert done.exit_code == 0, done.output
    reported = json.loads((tmp_path / "reported" / "accuracy.json").read_text(encoding="utf-8"))
    assert f"overall accuracy {reported['overall accuracy']['value']:.4f}" in done.output
    assert (tmp_path / "reported" / "accuracy.csv").exists()
    assert (tmp_path / "reported" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    for more in (["--design", "cluster"], ["--design", "eye"], ["--intervals"], ["--role", "test"]):
        failed = run.invoke(app, [*words[:3], *more])
        assert isinstance(failed.exception, SettingsError), more
    failed = run.invoke(app, ["sample", str(city), "-o", str(tmp_path / "x.shp")])
    assert isinstance(failed.exception, OutputError)
    failed = run.invoke(app, ["sample", str(city), "-o", str(out)])
    assert isinstance(failed.exception, OutputError), "its references are filled in"
    words = ["sample", str(city), "-o", str(out), "--overwrite", "--allocation", "neyman", "--expected", "1:0.5"]
    failed = run.invoke(app, words)
    assert isinstance(failed.exception, SettingsError)


def test_the_commands_on_a_scene(place: Path, tmp_path: Path) -> None:
    run = CliRunner()
    labels, scene = str(place / "labels.tif"), str(place / "scene.yaml")
    words = ["evaluate", labels, scene, "--intervals", "--against", labels, "--block", "8", "-o", str(tmp_path)]
    done = run.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "95% intervals" in done.output
    assert "less" in done.output
    assert json.loads((tmp_path / "intervals.json").read_text())["scores"]["OA"] == {"value": 1, "low": 1, "high": 1}
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["first less second"]["scores"]["OA"] == {"value": 0, "low": 0, "high": 0}
    assert comparison["left out"] == 0
    assert (tmp_path / "scores.json").exists()
    done = run.invoke(app, ["sample", labels, "-n", "40", "-o", str(tmp_path / "s.csv"), "--scene", str(place)])
    assert f"to interpret: {tmp_path / 's.html'}" in done.output, done.output
    assert (tmp_path / "s.html").read_text().count("<section") == 40
    failed = run.invoke(app, ["evaluate", labels, scene, "--design", "simple"])
    assert isinstance(failed.exception, SettingsError)


@pytest.mark.parametrize(("encoding", "separator"), [("cp1252", ";"), ("utf-16", "\t"), ("utf-8-sig", ",")])
def test_a_sample_that_a_spreadsheet_saved(encoding: str, separator: str, city: Path, tmp_path: Path) -> None:
    sample = draw_points(city, 100)
    sample.save(tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").open(encoding="utf-8")))
    truth = truth_of(codes_of(90, 70))
    for row in rows:
        row["reference"] = str(truth[int(row["row"]), int(row["col"])])
        if separator != ",":
            numbers = ("x", "y", "probability", "pixel_m2", "stratum_m2")
            row.update({name: row[name].replace(".", ",") for name in numbers})
    with (tmp_path / "s.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    found = evaluate_sample(city, tmp_path / "s.csv")
    expected = evaluate_sample(city, filled(sample, truth))
    assert found.to_json() == expected.to_json()
    rows[3]["stratum_units"] = "1.280" if separator != "," else "inf"
    with (tmp_path / "s.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(SceneError, match="no whole number"):
        read_sample(tmp_path / "s.csv")


def test_a_sample_of_many_tiles_is_drawn_from_their_mosaic(tmp_path: Path) -> None:
    codes = codes_of(40, 60)
    left, right = grid_of(40, 30), grid_of(40, 60).part(Window(0, 30, 40, 30))
    maps = {"a": (left, tmp_path / "a.tif"), "b": (right, tmp_path / "b.tif")}
    for (grid, place), part in zip(maps.values(), np.split(codes, 2, axis=1), strict=True):
        write_raster(place, grid, part, legend=LEGEND)
    with pytest.raises(SceneError, match="holds no mosaic of maps"):
        draw_points(tmp_path, 100)
    write_mosaics(tmp_path, maps, LEGEND)
    sample = draw_points(tmp_path, 100)
    assert (codes[sample.row, sample.col] == sample.code).all()
    assert sample.names == {1: "Water", 2: "Forest", 7: "Town <old>"}
    assert sample.source == "mosaic.vrt"
    result = evaluate_sample(tmp_path, filled(sample, codes))
    assert result.overall.value == 1
    assert [c.name for c in result.classes] == ["Water", "Forest", "Town <old>"]
    (tmp_path / "mosaic_EPSG32633.vrt").write_bytes((tmp_path / "mosaic.vrt").read_bytes())
    with pytest.raises(SceneError, match=r"holds 2 mosaics of maps: mosaic\.vrt, mosaic_EPSG32633\.vrt"):
        evaluate_sample(tmp_path, filled(sample, codes))


def test_the_empty_ground_of_a_mosaic_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = grid_of(900, 2000)
    places = {"a": Window(0, 0, 40, 30), "b": Window(610, 1500, 50, 60)}
    maps = {name: (wide.part(window), tmp_path / f"{name}.tif") for name, window in places.items()}
    for grid, path in maps.values():
        write_raster(path, grid, codes_of(grid.height, grid.width), legend=LEGEND)
    write_mosaics(tmp_path, maps, LEGEND)
    mosaic = open_map(tmp_path)
    assert mosaic.occupied(100) == [Window(0, 0, 100, 100), Window(600, 1500, 60, 60)]
    assert open_map(tmp_path / "a.tif").occupied(25) == [
        Window(0, 0, 25, 25),
        Window(0, 25, 25, 5),
        Window(25, 0, 15, 25),
        Window(25, 25, 15, 5),
    ]
    read: list[Window] = []
    codes = LandCoverMap.codes
    monkeypatch.setattr(LandCoverMap, "codes", lambda own, window: read.append(window) or codes(own, window))
    sample = draw_points(tmp_path, 60)
    few, read[:] = len(read), []
    monkeypatch.setattr(LandCoverMap, "occupied", lambda own, side: list(blocks(660, 1560, side)))
    again = draw_points(tmp_path, 60)
    np.testing.assert_array_equal((sample.row, sample.col, sample.code), (again.row, again.col, again.code))
    assert few == 6 < len(read)  # two passes over three blocks of 512 px


def test_rasters_of_several_bands_are_no_map(city: Path, tmp_path: Path) -> None:
    sample = filled(draw_points(city, 100), codes_of(90, 70))
    write_raster(tmp_path / "m.tif", grid_of(90, 70), np.stack([codes_of(90, 70)] * 3))
    for judge in (lambda: draw_points(tmp_path / "m.tif", 100), lambda: evaluate_sample(tmp_path / "m.tif", sample)):
        with pytest.raises(SceneError, match="has 3 bands"):
            judge()


def test_points_go_by_area_and_are_found_a_whole_turn_away(tmp_path: Path) -> None:
    codes = np.repeat(np.array([1, 2], np.uint8), 20)[:, None] * np.ones((1, 30), np.uint8)
    grid = Grid(40, 30, (1.0, 0.0, 170.0, 0.0, -2.0, 80.0), "EPSG:4326")  # the north has a third of the area
    write_raster(tmp_path / "m.tif", grid, codes, legend=LEGEND)
    sample = draw_points(tmp_path / "m.tif", 100, minimum=2)
    areas = {name: area.fraction for name, area in open_map(tmp_path / "m.tif").areas().items()}
    assert sample.drawn == {1: round(100 * areas["Water"]), 2: round(100 * areas["Forest"])}
    assert sample.drawn[1] < 45
    write_raster(tmp_path / "same.tif", grid.turned(-1), codes, legend=LEGEND)
    assert evaluate_sample(tmp_path / "same.tif", filled(sample, codes)).overall.value == 1


def test_places_that_were_chosen_are_left_out_of_the_estimate(city: Path, tmp_path: Path) -> None:
    sample = filled(draw_points(city, 80, design="simple"), truth_of(codes_of(90, 70)))
    sample.save(tmp_path / "sample.csv")
    with (tmp_path / "sample.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [{**dict.fromkeys(rows[0], ""), "id": str(100 + n), "x": "5", "y": "5"} for n in range(7)]
    for name, held in (("mixed", [*chosen[:3], *rows, *chosen[3:]]), ("none", chosen)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(held)
    found = evaluate_sample(city, tmp_path / "mixed.csv")
    assert found.notes[0].startswith("7 places that were chosen to train")
    assert replace(found, notes=found.notes[1:]).to_json() == evaluate_sample(city, sample).to_json()
    with pytest.raises(SceneError, match=r"all 7 places of .* none was drawn at random"):
        read_sample(tmp_path / "none.csv")
