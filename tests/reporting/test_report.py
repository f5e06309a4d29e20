"""The report: its numbers and pictures against the map itself, its size, and what it says to a mistake."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import pytest
import yaml
from PIL import Image

from landfuse import cli
from landfuse import report as report_function
from landfuse.accuracy.bootstrap import Interval, block_confusions, scores_of
from landfuse.accuracy.certify import Certificate, Zone, certify
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.draw_sample import draw_sample
from landfuse.accuracy.evaluate import Tally, evaluate
from landfuse.errors import LandfuseError, SceneError
from landfuse.figures.images import Coded, Photograph, data_uris, unlike
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.mapping.map_extras import write_mosaics
from landfuse.markup import decimals, percent
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.reporting.mosaic import Mosaic
from landfuse.reporting.page import LARGEST, _class_rows, _in_order, report
from landfuse.reporting.provenance import bare, commands, from_here
from landfuse.reporting.rely import _known_ground, _sets, _zone, answers, certificate_of, of_100, places_to_visit
from landfuse.reporting.scores import area_rows, findings, warnings
from landfuse.scenes.land_cover_map import ClassArea, open_map
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scenes
from landfuse.scenes.split_rules import ROLES, TEST
from landfuse.training.run import read_run

TILES = ("north", "south", "west")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    calls: list[tuple[str, int, int]] = []
    path = report(run, progress=lambda *words: calls.append(words))
    assert path == run / "report.html"
    assert {what for what, _, _ in calls} == {"mapping, px", "reading tiles"}
    assert all(done <= total for _, done, total in calls)
    assert calls[-1] == ("reading tiles", 3, 3)
    return path.read_text(encoding="utf-8")


def tiles_of(page: str) -> list[dict[str, Any]]:
    """The tiles of a page, the first one's pictures put back from where they stand."""
    found = re.search(r'<script type="application/json" id="tiles">(.*?)</script>', page, re.DOTALL)
    assert found
    tiles: list[dict[str, Any]] = json.loads(found.group(1))
    uris = re.findall(r'<figure data-key="([^"]+)">.*?class="layer" src="([^"]+)"', page)
    for layer, (key, uri) in zip(tiles[0]["layers"], uris, strict=True):
        assert (layer["key"], layer["uri"]) == (key, "")
        layer["uri"] = uri
    return tiles


def decoded(layer: dict[str, Any]) -> np.ndarray:
    """(h, w) names of a coded layer, "" where it is transparent."""
    image = np.asarray(picture(layer).convert("RGBA"))
    names = {tuple(bytes.fromhex(colour[1:])): name for colour, name in layer["names"].items()}
    return np.array([[names[tuple(p[:3])] if p[3] else "" for p in row] for row in image])


def picture(layer: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(layer["uri"].partition(",")[2])))


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert len(page.encode()) < LARGEST
    assert "default-src 'none'" in page
    without = re.sub(r'"data:image/[a-z]+;base64,[^"]+"', '""', page)
    assert re.findall(r'(?:src|href)="(?!#|data:,")([^"]+)"', without) == []
    assert not re.search(
        r"url\((?!#)|@import|<link(?! rel=\"icon\" href=\"data:,\")|fetch\(|XMLHttp|<iframe|<object", without
    )
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_names_cannot_break_the_page(page: str, nasty: str) -> None:
    assert "<script>alert" not in page
    assert html.escape(nasty, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert nasty in {name for layer in tiles_of(page)[0]["layers"] for name in layer["names"].values()}


def test_the_scores_are_those_of_the_map(run: Path, page: str) -> None:
    whole = evaluate(run / "maps", run.parent / "scene.yaml", split=run / "split")
    bounds = whole.intervals()
    for one in bounds.scores.values():
        assert f'<dd>{one.value:.3f}</dd><dd class="bounds">{one.low:.3f} to {one.high:.3f}</dd>' in page
    rows = re.findall(
        r"<tr>.*?</tr>", page.partition('<section id="classes">')[2].partition("</section>")[0], re.DOTALL
    )
    for row, one in zip(rows[1:], bounds.f1, strict=True):
        assert row.count(f"{one.value:.3f}<span") >= 1
        assert f"{one.low:.3f} to {one.high:.3f}" in row
    counts = [int(n.replace(",", "")) for n in re.findall(r'class="(?:hit)?">([\d,]+)<small>', page)]
    assert counts == [n for n in whole.confusion.matrix.ravel().tolist() if n]
    assert "are not those of the run" not in page  # scores.json says the same


def test_class_sets_are_shown_as_the_run_measured_them(run: Path, page: str, tmp_path: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    sets = scores["sets"]
    section = page.split('<section id="sets">')[1].split("</section>")[0]
    assert f"come from {sets['blocks']} blocks of 8 px, set aside in training; they carry" in section
    levels = sets["test"]["levels"]["lac"]
    assert list(levels) == ["0.8", "0.9", "0.95"]
    cells = {
        html.unescape(re.sub("<.*?>", "", head)): re.findall(r'<td class="number">(.*?)</td>', rest)
        for head, rest in re.findall(r"<tr><th[^>]*>(.*?)</th>(.*?)</tr>", section)
    }
    assert cells["true class in the set, mean over blocks"] == [percent(one["coverage"]) for one in levels.values()]
    assert cells["water: true class in the set"] == [percent(one["classes"]["water"]) for one in levels.values()]
    one = sets["test"]["levels"]["aps by class"]["0.9"]
    assert cells["aps by class"][::3] == [percent(one["coverage"]), f"{one['mean_size']:.2f}"]
    assert 'id="chart-sets' in section
    assert "of the calibration pixels " in page
    bare = tmp_path / "run"
    shutil.copytree(run, bare)
    sets["test"]["levels"]["lac"].clear()
    (bare / "scores.json").write_text(json.dumps(scores))
    assert 'id="sets"' not in report(bare, scene=run.parent / "scene.yaml").read_text(encoding="utf-8")


def test_the_areas_are_counted_from_the_maps(run: Path, page: str) -> None:
    scenes = open_scenes(run.parent / "scene.yaml")
    counts = sum(
        np.bincount(open_map(run / "maps" / f"{s.name}.tif", s).classes.ravel(), minlength=256)[:4] for s in scenes
    )
    found = re.findall(
        r'data-class="[^"]*">.*?<td class="number">([\d.,]+)</td><td class="number px">([\d,]+)</td>', page
    )
    assert [int(pixels.replace(",", "")) for _, pixels in found] == counts.tolist()
    for (hectares, _), count in zip(found, counts, strict=True):
        assert float(hectares.replace(",", "")) == pytest.approx(count * 100 / 10_000, rel=0.005)


def test_a_reference_sample_adds_accuracy_and_hectares_of_the_whole_map(run: Path, page: str, tmp_path: Path) -> None:
    maps = shutil.copytree(run / "maps", tmp_path / "maps")
    scenes = {scene.name: scene for scene in open_scenes(run.parent / "scene.yaml")}
    write_mosaics(
        maps, {name: (one.grid, maps / f"{name}.tif") for name, one in scenes.items()}, scenes["north"].legend
    )
    sample = draw_sample(maps, 80)
    truth = np.where(np.arange(80) % 5 == 0, 1, sample.code)  # each fifth point is water
    replace(sample, reference=[str(code) for code in truth]).save(tmp_path / "filled.gpkg")
    text = report(run, tmp_path / "page.html", maps=maps, sample=tmp_path / "filled.gpkg").read_text(encoding="utf-8")
    sizes = np.array([sample.sizes[stratum] for stratum in range(1, 5)])
    parts = [truth[sample.code == code] for code in range(1, 5)]  # Olofsson et al. 2014, equations 2 and 9
    right, water = (
        [float((part == code).mean()) for part, code in zip(parts, of, strict=True)] for of in ((1, 2, 3, 4), (1,) * 4)
    )
    overall, area = (float(sizes @ of / sizes.sum()) for of in (right, water))
    assert f"Of the whole map, {overall:.1%} are mapped correctly" in text
    assert "80 points of a reference sample" in text
    row = re.search(r"water</th>(.*?)</tr>", text[text.index("Area of each class") :])
    cells = re.findall(r">([^<]+)</td>", row.group(1)) if row else []
    assert cells[3] == f"{area:.1%}"
    assert float(cells[0]) == pytest.approx(area * sizes.sum() / 100, rel=0.006)
    assert "--sample filled.gpkg" in text
    assert str(tmp_path) not in text
    assert "Of the whole map" not in page


def rely_of(page: str) -> str:
    return html.unescape(page[page.index('<section id="rely">') : page.index('<section id="map">')])


def test_commands_name_one_map_where_the_maps_have_several_coordinate_systems(run: Path) -> None:
    read = read_run(run)
    given = [
        read,
        Confusion.of(Legend.of([(1, "a"), (2, "b")])),
        None,
        None,
        "",
        None,
        None,
        "scene.yaml",
        "maps",
        True,
    ]
    commands = [one["command"] for one in answers(*given, "north")]
    assert commands[0] == "landfuse sample maps/north.tif -n 500 --design simple -o sample.gpkg"
    assert commands[1] == "landfuse certify maps/north.tif sample.gpkg"
    assert commands[4].endswith("scene.yaml --tile north -n 50")
    assert answers(*given)[0]["command"].startswith("landfuse sample maps -n")


def test_commands_name_files_as_from_the_folder_where_the_report_was_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for here, first in ((run.parent.parent, f"{run.parent.name}/"), (run.parent, ""), (tmp_path, "")):
        monkeypatch.chdir(here)
        read = read_run(run)
        paths = [from_here(path, read) for path in (run.parent / "scene.yaml", run / "maps", "/elsewhere/a.gpkg")]
        assert paths == [f"{first}scene.yaml", f"{first}run/maps", "a.gpkg"]
        lines = [line for _, line in commands(read, *paths[:2], 64, with_maps=True, sample="/elsewhere/a.gpkg")]
        assert lines[1] == f"landfuse train {first}run/recipe.json run={first}run-again"
        assert lines[-1] == f"landfuse report {first}run --maps {first}run/maps --sample a.gpkg"


def test_the_page_answers_whether_the_map_can_be_relied_on(run: Path, page: str, tmp_path: Path) -> None:
    maps = shutil.copytree(run / "maps", tmp_path / "maps")
    scenes = {scene.name: scene for scene in open_scenes(run.parent / "scene.yaml")}
    write_mosaics(
        maps, {name: (one.grid, maps / f"{name}.tif") for name, one in scenes.items()}, scenes["north"].legend
    )
    unlike = np.full((2, 48, 48), 90, np.uint8)  # by all modalities and by one
    unlike[0, :12] = 101
    margins = {}
    for name, one in scenes.items():
        write_raster(maps / f"{name}_applicability.tif", one.grid, unlike, scale=0.01)
        margins[name] = read_map_raw(maps / f"{name}_confidence.tif")
    sample = draw_sample(maps, 300, design="simple")
    tile = np.floor((sample.x - 5e5) / 1e5).astype(int)
    margin = np.array([margins[TILES[t]][r, c % 10_000] for t, r, c in zip(tile, sample.row, sample.col, strict=True)])
    truth = np.where(margin < margin.max(), sample.code % 4 + 1, sample.code)  # all but the surest are wrong
    replace(sample, reference=[str(code) for code in truth]).save(tmp_path / "filled.gpkg")
    (tmp_path / "next.csv").write_text(
        "part,map_class,why,x,y\njudge,,drawn at random,500245,4999995\n"
        "train,trees,trees 0.4 or crops 0.3,600015,4999985\ntrain,trees,elsewhere,1,1\ntrain,trees,nowhere,,\n"
    )
    options: dict[str, Any] = {"maps": maps, "sample": tmp_path / "filled.gpkg", "visits": tmp_path / "next.csv"}
    text = report(run, tmp_path / "page.html", **options).read_text(encoding="utf-8")
    said, zone = rely_of(text), certify(maps, tmp_path / "filled.gpkg").zone
    assert zone is not None
    assert 0.1 < zone.fraction < 0.95
    assert (
        f"{round(100 * zone.fraction)} of 100 pixels of the map, {zone.hectares:,.0f} hectares: in it at most 10"
        in said
    )
    assert f"{zone.points} places in it were looked at, {zone.errors} of them wrong" in said
    shown = np.asarray(picture({"uri": re.findall(r'<img src="([^"]+)"', said)[0]}).convert("RGBA"))
    grey = (shown[..., :3] == (222, 222, 219)).all(axis=-1) & (shown[..., 3] > 0)
    inside = np.mean([read_map_raw(maps / f"{name}_confidence.tif") >= round(250 * zone.threshold) for name in TILES])
    assert 1 - grey.sum() / (shown[..., 3] > 0).sum() == pytest.approx(inside, abs=0.03)
    layers = {layer["key"]: layer for layer in tiles_of(text)[0]["layers"]}
    assert (
        (decoded(layers["certified"]) == "inside") == (margins[tiles_of(text)[0]["name"]] >= 250 * zone.threshold - 0.5)
    ).mean() > 0.98
    assert "24 of 100 pixels of the map are unlike any ground" in said
    assert "2 places, the dots in the picture, are in next.csv:" in said
    assert re.findall(r"<li>(.*?)</li>", said) == [
        "south: 600015, 4999985: mapped as trees; trees 0.4 or crops 0.3",
        "north: 500245, 4999995; drawn at random",
    ]
    assert said.count('class="dot"') == 2
    asked = {"landfuse_certified": None, "error": 0.5, "confidence": 0.8, "by": "confidence"}
    (maps / "mosaic_certified.json").write_text(json.dumps(asked))
    asked_for, _ = certificate_of(maps, tmp_path / "filled.gpkg")
    assert asked_for is not None
    assert (asked_for.error, asked_for.confidence) == (0.5, 0.8)
    (maps / "west_confidence.tif").unlink()
    none, why = certificate_of(maps, tmp_path / "filled.gpkg")
    assert none is None
    assert why.startswith("the layer west_confidence.tif of the map mosaic.vrt is not there")
    with pytest.raises(LandfuseError, match=r"no file .*gone\.gpkg"):
        report(run, tmp_path / "page.html", visits=tmp_path / "gone.gpkg")
    plain = rely_of(page)
    for words in ("landfuse sample run/maps -n 500", "landfuse report run --sample", "landfuse next run scene.yaml"):
        assert words in plain


def test_a_zone_of_the_whole_map_and_none_with_how_many_more_places_would_do() -> None:
    tried = (Zone(0.1, 1.0, None, 60, 6, 0.05, 0.19),)
    whole = (Zone(0.0, 1.0, 1024.0, 500, 28, 0.05, 0.08),)
    all_of_it = Certificate(0.1, 0.95, "confidence", whole, None, "simple", 500, (), *[None] * 3)  # type: ignore[arg-type]
    assert _zone(all_of_it, "", True, ["run"])["said"] == [
        "The whole map, 1,024 hectares: in it at most 10 of 100 pixels are wrong, with a confidence of 95%.",
        "500 places in it were looked at, 28 of them wrong. The promise is about the part as a whole, not about each "
        "field in it.",
    ]
    none = Certificate(0.1, 0.95, "confidence", tried, 240, "simple", 60, (), *[None] * 3)  # type: ignore[arg-type]
    answer = _zone(none, "", True, ["run"])
    assert answer["said"] == [
        "There is no part of which the sample shows that at most 10 of 100 pixels are wrong: 6 of 60 places that were "
        "looked at are wrong.",
        "About 240 more places would do, if they are wrong as often.",
    ]


def test_what_the_run_measured_is_said_in_plain_words(run: Path) -> None:
    one = {"one_class": 0.78, "mean_size": 1.31, "coverage": 0.912}
    test = {"together": {"inside": 0.958, "error_inside": 0.1, "error_outside": 0.345}}
    scores = {"sets": {"test": {"levels": {"lac": {"0.8": {}, "0.9": one}}}}, "applicability": {"test": test}}
    read = replace(read_run(run), scores={**read_run(run).scores, **scores})
    sets, ground = _sets(read, "run", "scene.yaml", "maps"), _known_ground(read, None, "run", "scene.yaml", "maps")
    assert sets["said"] == [
        "Asked for every class that a pixel may have, it names a single one for 78 of 100 test pixels, and 1.3 on "
        "average.",
        "The true class should be among them for 90 of 100 pixels; in the test it was for 91 of 100. A layer of the "
        "map shows where it names more than one.",
    ]
    assert ground["said"][0] == (
        "96 of 100 test pixels are like ground that it has learned from; of these 10 of 100 are wrong, and of the "
        "others 34 of 100."
    )
    assert "--applicability" in ground["command"]
    assert _known_ground(read, 0.001, "run", "s.yaml", "maps")["said"][0].startswith("Fewer than 1 of 100 pixels")
    assert [of_100(x) for x in (0.0, 0.001, 0.5, 0.999, 1.0)] == [
        "0 of 100", "fewer than 1 of 100", "50 of 100", "more than 99 of 100", "100 of 100"
    ]  # fmt: skip


def test_the_pictures_are_the_map_the_labels_the_errors_and_the_split(run: Path, page: str) -> None:
    scenes = {scene.name: scene for scene in open_scenes(run.parent / "scene.yaml")}
    tiles = tiles_of(page)
    assert [tile["name"] for tile in tiles] == sorted(TILES)
    for tile in tiles:
        layers = {layer["key"]: layer for layer in tile["layers"]}
        assert list(layers) == ["map", "labels", "errors", "confidence", "split", "modality-s2", "modality-dem"]
        scene = scenes[tile["name"]]
        mapped = open_map(run / "maps" / f"{scene.name}.tif", scene).classes
        roles = read_map_raw(run / "split" / f"{scene.name}.tif")
        names = np.array([*scene.legend.names, ""])
        np.testing.assert_array_equal(decoded(layers["map"]), names[np.minimum(mapped, 4)])
        np.testing.assert_array_equal(decoded(layers["labels"]), names[np.minimum(scene.labels, 4)])
        np.testing.assert_array_equal(decoded(layers["split"]), np.array(["", *ROLES])[roles])
        verdict = np.where(mapped == scene.labels, "right", "wrong")
        verdict[(roles != TEST) | (mapped == UNLABELLED)] = ""
        np.testing.assert_array_equal(decoded(layers["errors"]), verdict)
        steps = read_map_raw(run / "maps" / f"{scene.name}_confidence.tif")
        margin = np.where(
            steps == UNLABELLED, "", [[f"{v:.2f}" for v in row] for row in np.rint(steps / 250 * 40) / 40]
        )
        np.testing.assert_array_equal(decoded(layers["confidence"]), margin)
        assert "Sentinel-2" in layers["modality-s2"]["how"]
        assert picture(layers["modality-dem"]).size == (48, 48)
        assert np.asarray(picture(layers["modality-s2"]).convert("RGBA"))[0, 0, 3] == 0


def read_map_raw(path: Path) -> np.ndarray:
    import rasterio

    with rasterio.open(path) as file:
        return file.read(1)


def test_where_it_comes_from_and_how_to_repeat_it(run: Path, page: str) -> None:
    text = html.unescape(page)
    for name in ("model.safetensors", "model.json"):
        assert hashlib.sha256((run / "bundle" / name).read_bytes()).hexdigest() in text
    for word in ("Somebody 2026", "CC-BY-4.0", "s2/{tile}.tif", "EPSG:32632", "float32", "trees: 4", "forest"):
        assert word in text
    for verb in ("check", "train", "predict", "evaluate", "report"):
        assert f"landfuse {verb} " in text
    size = sum((run.parent / "s2" / f"{tile}.tif").stat().st_size for tile in TILES)
    assert f"{size / 1000:.3g} kB" in text


def test_every_picture_has_words_and_every_control_a_name(page: str) -> None:
    assert all(re.search(r"\salt=", tag) for tag in re.findall(r"<img[^>]*>", page))
    for wanted in (
        'role="slider"',
        'aria-valuenow="50"',
        'aria-label="Zoom in"',
        'lang="en"',
        "<fieldset>",
        "<legend>",
    ):
        assert wanted in page
    assert len(re.findall(r'<input type="radio" name="left"', page)) == 7
    assert len(re.findall(r'<input type="radio" name="right"', page)) == 7


def test_a_map_that_is_there_is_not_made_again(run: Path, page: str, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "maps").iterdir()}
    report(run, tmp_path / "again.html")
    assert {path: path.stat().st_mtime_ns for path in (run / "maps").iterdir()} == before
    other = tmp_path / "maps"
    other.mkdir()
    for tile in TILES:
        shutil.copy(run / "maps" / f"{tile}.tif", other)
    text = report(run, tmp_path / "other.html", maps=other).read_text()
    assert "confidence" not in [layer["key"] for layer in tiles_of(text)[0]["layers"]]
    (other / "west.tif").unlink()
    with pytest.raises(LandfuseError, match=r"there is no map .*west\.tif"):
        report(run, tmp_path / "none.html", maps=other)
    with pytest.raises(LandfuseError, match=rf"north\.tif is one map, and the scene has {len(TILES)} tiles"):
        report(run, tmp_path / "none.html", maps=other / "north.tif")
    assert not (tmp_path / "none.html").exists()


def test_another_map_than_the_run_s_is_reported(run: Path, page: str, tmp_path: Path) -> None:
    for scene in open_scenes(run.parent / "scene.yaml"):
        codes = np.full((48, 48), scene.legend[0].code, np.uint8)
        write_raster(tmp_path / "maps" / f"{scene.name}.tif", scene.grid, codes)
    text = report(run, tmp_path / "x.html", maps=tmp_path / "maps").read_text()
    assert "are not those of the run" in text


def test_at_most_so_many_tiles_and_bytes(run: Path, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["landfuse.reporting.page"]
    for name, value in (("MOST_TILES", 2), ("_ROOM", 9_000), ("_COARSEST", 8)):
        monkeypatch.setattr(module, name, value)
    text = report(run, tmp_path / "small.html").read_text()
    tiles = tiles_of(text)
    assert len(tiles) == 2
    assert "2 of 3 tiles are shown" in text
    assert sum(len(layer["uri"]) for tile in tiles for layer in tile["layers"]) <= 9_000
    assert re.findall(r"<dd>[\d.]+</dd>", text) == re.findall(r"<dd>[\d.]+</dd>", page)  # scores count every tile


def test_the_bands_that_are_asked_for_are_shown(run: Path, page: str, tmp_path: Path) -> None:
    text = report(run, tmp_path / "x.html", bands={"s2": [8, 4, 3]}).read_text()
    assert "bands 8, 4 and 3 as red, green and blue" in text
    with pytest.raises(LandfuseError, match="bands 13"):
        report(run, tmp_path / "y.html", bands={"s2": [13]})
    with pytest.raises(LandfuseError, match="no modality lidar"):
        report(run, tmp_path / "y.html", bands={"lidar": [1]})


def test_calibration_curves_and_modalities_are_shown_where_the_run_has_them(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    scores = json.loads((copy / "scores.json").read_text())
    reported = {
        "ECE": 0.0321,
        "NLL": 1.0,
        "pixels": 9,
        "bins": [{"low": 0, "high": 1, "pixels": 9, "stated": 0.6, "accuracy": 0.5}],
    }
    scores["calibration"] = {
        "temperature": 1.5,
        "fitted_on": "validation",
        "test": {"before": reported, "after": reported},
    }
    parts = [{"to": 1, "pixels": 4000, "error": 0.125}, {"to": 2.5, "pixels": 0, "error": None}]
    errors = {
        "pixels": 4000,
        "inside": 0.75,
        "error_inside": 0.125,
        "error_outside": None,
        "AUROC": 0.625,
        "parts": parts,
    }
    scores["applicability"] = {"groups": "9 blocks", "test": {"together": errors, "s2": {**errors, "inside": 0.625}}}
    (copy / "scores.json").write_text(json.dumps(scores))
    (copy / "metrics.csv").write_text("epoch,val_mIoU,train_loss\n0,0.2,1.5\n1,0.4,0.75\n")
    row = {
        "how": "mean",
        "withheld": ["dem"],
        "seen": ["s2"],
        "run": None,
        "scores": dict.fromkeys(("OA", "AA", "kappa", "mF1", "mIoU"), 0.25),
    }
    row["differences"] = dict.fromkeys(row["scores"], -0.125)
    whole = {**row, "how": "all", "seen": ["s2", "dem"], "withheld": [], "scores": dict.fromkeys(row["scores"], 0.375)}
    (copy / "modalities.json").write_text(json.dumps({"role": "test", "rows": [whole, row], "notes": ["mind this"]}))
    text = html.unescape(report(copy).read_text())
    for word in ("ECE 0.032", "divides its logits by 1.500", "s2, and the mean of dem", "-0.125", "mind this"):
        assert word in text
    areas, losses, scores_, before, after, sets, wrong = re.findall(
        r'<figure class="chart">.*?</figure>', text, re.DOTALL
    )
    assert "loss from 1.500 to 0.750" in losses
    assert "mIoU from 0.200 to 0.400" in scores_
    assert "As trained: expected calibration error 0.032" in before
    assert "In the bundle: ECE 0.032" in after
    assert "Class sets: level 0.5: " in sets
    assert "0.125 of 4,000 px to 1." in wrong
    assert re.search(r'>s2</th><td class="number">62.5%</td><td class="number">12.5%</td><td class="number">–<', text)
    for chart in (areas, losses, scores_, before, after, sets, wrong):
        assert 'role="img"' in chart
        assert chart.count("<title") == chart.count("<desc") == 1
        assert "<style" not in chart, "it would apply to the whole page"
    names = re.findall(r' id="([^"]+)"', text)
    assert len(set(names)) == len(names)
    (copy / "modalities.json").write_text(json.dumps({"rows": [{"how": "all"}]}))
    with pytest.raises(LandfuseError, match=r"modalities\.json is broken"):
        report(copy)


def legend_of(count: int, unscored: int | None = None) -> Legend:
    return Legend(tuple(LandClass("abcd"[k], k + 1, f"#{k}00000", k != unscored) for k in range(count)))


def test_scores_of_classes_come_with_the_intervals_of_the_same_draws() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, (60, 60)).astype(np.uint8)
    mapped = np.where(rng.random((60, 60)) < 0.6, truth, rng.integers(0, 3, (60, 60))).astype(np.uint8)
    truth[:5] = UNLABELLED
    halves = [(truth[:, :30], mapped[:, :30]), (truth[:, 30:], mapped[:, 30:])]
    tally = Tally(legend_of(4), 10)
    tally.score(halves)
    found = tally.intervals()
    for name, wanted in (("precision", "precision"), ("recall", "recall"), ("IoU", "iou"), ("F1", "f1")):
        values = [one.value for one in found.of_class[name]]
        np.testing.assert_allclose(values, getattr(tally.confusion, wanted))
    # A plain loop over draws of blocks for the recall of one class.
    blocks = np.concatenate([block_confusions(t, m, 10, 4) for t, m in halves])
    drawn = np.random.default_rng(0)
    recalls = []
    for _ in range(2000):
        matrix = np.tensordot(drawn.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks))), blocks, 1)
        recalls.append(matrix[1, 1] / matrix[1].sum())
    low, high = np.percentile(recalls, (2.5, 97.5))
    assert (found.of_class["recall"][1].low, found.of_class["recall"][1].high) == pytest.approx((low, high))
    assert scores_of(blocks.sum(axis=0)[None])[0][0, 0] == found.scores["OA"].value


def test_areas_are_known_where_those_of_all_tiles_are() -> None:
    tile = {
        name: ClassArea(pixels, pixels / 30, pixels / 100) for name, pixels in zip("abcd", (0, 10, 20, 0), strict=True)
    }
    rows = area_rows(Tally(legend_of(4), 8), [tile, tile])
    assert [(row["name"], row["pixels"], row["hectares"]) for row in rows[1:3]] == [("b", 20, 0.2), ("c", 40, 0.4)]
    assert [row["fraction"] for row in rows] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 0]
    assert all(math.isnan(row["corrected"].value) for row in rows), "no test pixel"
    rows = area_rows(Tally(legend_of(4), 8), [tile, {name: ClassArea(1, 0.25, None) for name in "abcd"}])
    assert {row["hectares"] for row in rows} == {None}


def test_areas_are_corrected_by_the_errors_on_the_test_labels() -> None:
    truth = np.array([[0, 0, 0, 1, 1, 1, 1, 1]] * 4, np.uint8)
    mapped = np.array([[0, 0, 1, 1, 1, 1, 1, 0]] * 4, np.uint8)
    tally = Tally(legend_of(2), 2)
    tally.add(truth, mapped)
    tile = {name: ClassArea(pixels, pixels / 100, None) for name, pixels in (("a", 60), ("b", 40))}
    first, second = (row["corrected"] for row in area_rows(tally, [tile], 500))
    # Two of three pixels mapped as a are a, and one of five mapped as b.
    assert first.value == pytest.approx(0.6 * 2 / 3 + 0.4 / 5)
    assert second.value == pytest.approx(1 - first.value)
    assert first.low < first.value < first.high
    assert not area_rows(tally, [tile])[0]["corrected"].known, "no draws"
    mapped[mapped == 0] = 1  # no test pixel is mapped as a, so that the errors of a are not known
    tally = Tally(legend_of(2), 2)
    tally.add(truth, mapped)
    assert all(math.isnan(row["corrected"].value) for row in area_rows(tally, [tile], 500))


def test_an_overview_shows_tiles_where_they_lie_or_side_by_side() -> None:
    def grid(east: float, side: int, crs: str = "EPSG:32632") -> Grid:
        return Grid(side, side, (10.0, 0.0, east, 0.0, -10.0, 5e6), crs)

    near = Mosaic([grid(0, 20), grid(300, 10)])
    assert near.on_ground
    near.put(0, np.zeros((20, 20), np.uint8))
    near.put(1, np.ones((10, 10), np.uint8))
    assert near.values.shape == (500, 1000)
    assert near.values[0, ::250].tolist() == [0, 0, UNLABELLED, 1]
    assert near.values[499, 999] == UNLABELLED
    assert near.places()[1] == {"left": "75.000%", "top": "0.000%", "width": "25.000%", "height": "50.000%"}
    for others in ([grid(9e5, 10)], [grid(200, 20, "EPSG:32633")], [grid(200.0 * n, 20) for n in range(1, 20)]):
        apart = Mosaic([grid(0, 20), *others])
        assert not apart.on_ground
        for index, box in enumerate(apart.boxes.tolist()):
            apart.put(index, np.full((20, 20), index, np.uint8))
            assert (apart.values[box[1] : box[3], box[0] : box[2]] == index).all()


def test_the_tile_of_most_classes_is_seen_first() -> None:
    tiles = [{"name": name, "tested": name != "a"} for name in "abcd"]
    order = _in_order(tiles, {"a": 9, "b": 1, "c": 4, "d": 2})
    assert [tile["name"] for tile in order] == ["c", "b", "d", "a"]


def test_tiles_are_listed_the_worst_first(run: Path, page: str) -> None:
    listed = re.findall(r'<button type="button" class="to-tile named" data-tile="(\d)">(\w+)</button>', page)
    wanted = {}
    for scene in open_scenes(run.parent / "scene.yaml"):
        truth, roles = scene.labels, read_map_raw(run / "split" / f"{scene.name}.tif")
        mapped = open_map(run / "maps" / f"{scene.name}.tif", scene).classes
        scored = (roles == TEST) & (mapped != UNLABELLED)
        wanted[scene.name] = (mapped == truth)[scored].mean()
    assert [name for _, name in listed] == sorted(wanted, key=lambda name: wanted[name])
    assert all(tiles_of(page)[int(number)]["name"] == name for number, name in listed)
    assert f'<td class="number">{min(wanted.values()):.3f}</td><td class="wide"' in page
    assert page.count('class="to-tile" data-tile') == 3


def test_no_folder_of_this_machine_is_printed(run: Path, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    facts = {"command": f"landfuse train {copy}/recipe.json", "python": "3"}
    (copy / "environment.json").write_text(json.dumps(facts))
    recipe = json.loads((copy / "recipe.json").read_text())
    (copy / "recipe.json").write_text(json.dumps({**recipe, "scene": str(run.parent / "scene.yaml"), "run": str(copy)}))
    scene = yaml.safe_load((run.parent / "scene.yaml").read_text())
    for part in (*scene["modalities"].values(), scene["labels"]):
        part["path"] = str(run.parent / part["path"])
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(scene))
    text = html.unescape(report(copy, scene=tmp_path / "scene.yaml", maps=copy / "maps").read_text())
    for folder in (run.parent, tmp_path, tmp_path.parent):
        assert str(folder) not in text
        assert folder.name not in text
    for word in ("landfuse train run/recipe.json run=run-again", "landfuse report run --maps run/maps", "{tile}.tif"):
        assert word in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/a/x.tif", "x.tif"),
        ("../../place/scene.yaml", "scene.yaml"),
        ("run=/tmp/runs/first and ~/b", "run=first and b"),
        ("C:\\data\\x.tif, labels/x.tif", "x.tif, labels/x.tif"),
        ("https://host/a/b.tif s3://bucket/k", "https://host/a/b.tif s3://bucket/k"),
        ("1 / 2 and m/s", "1 / 2 and m/s"),
    ],
)
def test_folders_are_cut_from_paths_and_nothing_else(text: str, shown: str) -> None:
    assert bare(text) == shown


def test_counting_a_large_map_takes_few_bytes_a_pixel() -> None:
    rng = np.random.default_rng(3)
    truth, mapped = (rng.integers(0, 3, (1024, 2048)).astype(np.uint8) for _ in range(2))
    tally = Tally(legend_of(3), 64)
    tracemalloc.start()
    tally.add(truth, mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tally.confusion.pixels == truth.size
    assert peak < 24 * truth.size, "at once it took 65 bytes a pixel"


def said_of(tally: Tally, leak: float | None = None) -> str:
    return " ".join(findings(tally.confusion, tally.intervals(0), tally.legend, leak))


def test_what_the_scores_say_in_sentences() -> None:
    tally = Tally(legend_of(2), 4)
    truth = np.zeros((4, 8), np.uint8)
    truth[:, 6:] = 1
    mapped = np.zeros((4, 8), np.uint8)
    mapped[0, 6] = 1
    tally.add(truth, mapped)
    said = said_of(tally, 0.25)
    assert "names 78.1% of the test pixels correctly" in said
    assert "Naming every pixel a, the commonest class, would be correct at 75.0% of them" in said
    assert "b mapped as a, 7 pixels, 87.5% of all b" in said
    assert "25.0% of the test pixels were labelled from a view" in said
    assert "No test label" in said_of(Tally(legend_of(2), 4))


def test_an_interval_that_cannot_be_given_says_so_and_why() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((8, 64), np.uint8)
    truth[0, :8] = 1  # in one block only
    mapped = truth.copy()
    tally = Tally(legend_of(2), 8)
    tally.add(truth, mapped)
    found = tally.intervals()
    assert [one.text(decimals) for one in found.scores.values()] == ["no interval"] * 5
    assert "names 100% of the test pixels correctly; 512 pixels" in " ".join(
        findings(tally.confusion, found, tally.legend, 0)
    )
    assert warnings(tally.confusion, found, {"test": {}})[0].startswith("All blocks of ground are scored alike")
    tally = Tally(legend_of(2), 8)
    tally.add(truth, np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth).astype(np.uint8))
    first, second = _class_rows(tally, tally.intervals())
    assert (first["blocks"], second["blocks"]) == (8, 1)
    assert all(one.known for one in first["scores"].values())
    assert not any(one.known for one in second["scores"].values())
    assert Interval(0.5, 0.05801, 0.05804).text(decimals) == "0.058010 to 0.058040"
    assert Interval(0.5, 0.61501, 0.61504).text(percent) == "61.5010% to 61.5040%"


@pytest.mark.parametrize(
    ("ece", "nll", "warned"),
    [
        (0.206, 0.9, "ECE) 0.026 as trained, 0.206"),
        (0.026, 0.9, None),
        (0.026, 1.2, "likelihood 1.000 as trained, 1.200"),
        (0.0263, 1.0, None),
    ],
)
def test_a_calibration_that_made_the_test_worse_is_a_warning(ece: float, nll: float, warned: str | None) -> None:
    tally = Tally(legend_of(2), 4)
    tally.add(np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8))
    test = {"before": {"ECE": 0.026, "NLL": 1.0}, "after": {"ECE": ece, "NLL": nll}}
    said = " ".join(warnings(tally.confusion, tally.intervals(0), {"test": {}, "calibration": {"test": test}}))
    assert ("Calibration made" in said) == (warned is not None)
    assert (warned or "") in said
    fit = {"before": {"ECE": 0.2}, "after": {"ECE": 0.1, "pixels": 1234}}
    said = " ".join(
        warnings(tally.confusion, tally.intervals(0), {"test": {}, "calibration": {"test": test, "validation": fit}})
    )
    assert ("fitted to 1,234 validation pixels, whose error went from 0.200 to 0.100" in said) == (warned is not None)


def test_a_class_that_is_not_scored_is_named_and_stays_out_of_the_means(run: Path, page: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, (40, 40)).astype(np.uint8)
    mapped = np.where((truth != 1) & (rng.random(truth.shape) < 0.9), truth, 0).astype(np.uint8)
    for block in (10, 100):  # 100: one block, without intervals
        tally = Tally(legend_of(3, unscored=1), block)
        tally.add(truth[:, :20], mapped[:, :20])
        tally.add(truth[:, 20:], mapped[:, 20:])
        found = tally.intervals(0).scores
        assert found["AA"].value == pytest.approx((tally.confusion.recall[0] + tally.confusion.recall[2]) / 2)
        assert found["mIoU"].value == pytest.approx((tally.confusion.iou[0] + tally.confusion.iou[2]) / 2)
        assert "least (F1 0.00)" not in said_of(tally)
    text = yaml.safe_load((run.parent / "scene.yaml").read_text())
    text["root"] = str(run.parent)
    text["legend"][2]["scored"] = False
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    said = html.unescape(report(run, tmp_path / "x.html", scene=tmp_path / "scene.yaml").read_text())
    whole = evaluate(run / "maps", tmp_path / "scene.yaml", split=run / "split").confusion.scores()
    for name, title in (("AA", "average accuracy"), ("mIoU", "mean IoU")):
        assert f"<dt>{title}</dt><dd>{whole[name]:.3f}</dd>" in said
    assert "Not in the means (AA, mean F1, mean IoU): trees;" in said
    assert "other classes enter the means" in said
    assert "Not in the means" not in page
    assert "other classes enter the means" not in page


def test_pictures_fit_their_room_and_keep_their_colours() -> None:
    rng = np.random.default_rng(0)
    noise = Photograph(rng.integers(0, 255, (400, 400, 3)).astype(np.uint8), np.ones((400, 400), bool))
    few = Coded(rng.integers(0, 3, (50, 50)).astype(np.uint8), unlike([(0, 0, 0), (0, 0, 0), (255, 255, 255)]))
    whole = data_uris([noise, few], 10_000_000)
    fitted = data_uris([noise, few], 40_000)
    assert sum(map(len, fitted)) <= 40_000 < sum(map(len, whole))
    assert fitted[1] == whole[1], "the largest is halved, not the others"
    assert len(set(few.colours)) == 3
    small = Photograph(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8), rng.random((20, 20)) < 0.5)
    back = np.asarray(picture({"uri": data_uris([small], 10**6)[0]}).convert("RGBA"))
    np.testing.assert_array_equal(back[..., 3] > 0, small.known)
    np.testing.assert_array_equal(back[small.known, :3], small.image[small.known])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: shutil.rmtree(run), "no such folder"),
        (lambda run: (run / "recipe.json").unlink(), "no recipe.json"),
        (lambda run: (run / "scores.json").unlink(), "has not ended"),
        (lambda run: (run / "scores.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "scores.json").write_text("[]"), "no table"),
        (lambda run: (run / "scores.json").write_text("{}"), "broken"),
        (lambda run: (run / "bundle" / "model.json").unlink(), "no bundle"),
        (lambda run: shutil.rmtree(run / "split"), "split"),
        (lambda run: (run / "report.html").mkdir(), "is a folder"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_reported(run: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("report.html", "maps"))
    spoil(copy)
    with pytest.raises(LandfuseError, match=words):
        report(copy)
    assert not (copy / "maps").exists()
    assert not (copy / "report.html").is_file()


def test_a_folder_of_runs_names_one(run: Path) -> None:
    with pytest.raises(LandfuseError, match=r"name one of those in it, e\.g\. .*run"):
        report(run.parent)


def test_a_scene_that_has_moved_is_named_by_an_option(run: Path, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    recipe = json.loads((copy / "recipe.json").read_text())
    recipe["scene"] = str(tmp_path / "gone" / "scene.yaml")
    (copy / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(LandfuseError, match=r"is not there; the run .* names it") as raised:
        report(copy)
    assert "--scene" in str(raised.value)
    report(copy, scene=run.parent)
    text = yaml.safe_load((run.parent / "scene.yaml").read_text())
    text["legend"][0]["name"] = "ocean"
    text["root"] = str(run.parent)
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(LandfuseError, match="lists other classes"):
        report(copy, scene=tmp_path / "scene.yaml")


def test_a_modality_that_the_run_did_not_use_may_be_missing(run: Path, tmp_path: Path) -> None:
    text = yaml.safe_load((run.parent / "scene.yaml").read_text())
    text["root"] = str(run.parent)
    text["modalities"]["lost"] = {"path": "lost/{tile}.tif"}
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    said = html.unescape(report(run, tmp_path / "x.html", scene=tmp_path / "scene.yaml").read_text())
    assert "`lost` is not shown: the run did not use it" in said


def test_a_report_on_existing_maps_opens_each_once_and_needs_no_torch(run: Path, page: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'lightning', 'timm'): sys.modules[name] = None\n"  # whoever imports it now fails
        "from landfuse.reporting import page\nfrom landfuse.reporting.page import report\n"
        "opened, open_map = [], page.open_map\n"
        "page.open_map = lambda path, scene: opened.append(path.name) or open_map(path, scene)\n"
        "from landfuse.studies.compare import compare\n"
        "report(sys.argv[1], sys.argv[2])\n"
        "compare([sys.argv[1]])\n"
        "sys.stdout.write(' '.join(opened))\n"
    )
    words = [sys.executable, "-c", code, str(run), str(tmp_path / "page.html")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["north.tif", "south.tif", "west.tif"]


def test_an_older_run_with_the_key_leak_share_is_read(run: Path, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    text = (copy / "scores.json").read_text()
    (copy / "scores.json").write_text(text.replace('"leak_fraction"', '"leak_share"'))
    assert read_run(copy).scores == read_run(run).scores
    assert "leak_fraction" in read_run(run).scores


def test_the_public_name_is_the_function() -> None:
    assert report_function is report


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["report", "RUN", "-o", "PAGE", "-q", "--bands", "s2=8,4,3"], 0, r"report: .* \(0\.\d MB\)"),
        (["report", "RUN", "-o", "PAGE", "--bands", "s2"], 2, "a modality and its bands"),
        (["report", "RUN", "-o", "PAGE", "--scene", "gone.yaml"], 2, "there is no file or folder gone.yaml"),
        (["report", "RUN", "-o", "RUN"], 2, "the name of a page"),
        (["report", "nowhere"], 2, "there is no file or folder nowhere"),
    ],
)
def test_the_command_says_one_thing_and_its_exit_code(
    run: Path,
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    on_term = signal.getsignal(signal.SIGTERM)
    places = {"RUN": str(run), "PAGE": str(tmp_path / "page.html")}
    monkeypatch.setattr(sys, "argv", ["landfuse", *(places.get(word, word) for word in words)])
    try:
        cli.main()
        ended = 0
    except SystemExit as stopped:
        ended = int(stopped.code or 0)
    finally:
        signal.signal(signal.SIGTERM, on_term)
    reported = capsys.readouterr()
    assert ended == code, reported.err
    assert re.search(said, re.sub(r"\s+", " ", reported.out + reported.err))
    assert "Traceback" not in reported.err
    assert (tmp_path / "page.html").exists() == (code == 0)


def test_places_to_visit_are_found_in_tiles_of_another_crs(tmp_path: Path) -> None:
    """Of two tiles at the same coordinates of neighbouring zones, rows say the zone, or are in the first tile's."""
    transform = (10.0, 0.0, 300_000.0, 0.0, -10.0, 5_500_000.0)
    zones = [pyproj.CRS(code).to_wkt() for code in (32632, 32633)]
    tiles = [
        Scene(name, Grid(20, 20, transform, crs), {}, Legend([LandClass("a", 1, "#112233")]))
        for name, crs in zip("we", zones, strict=True)
    ]
    place = 300_055.0, 5_499_925.0
    moved = pyproj.Transformer.from_crs(32633, 32632, always_xy=True).transform(*place)
    rows = [("", *place), (zones[1], *place), ("", *moved)]
    pd.DataFrame(rows, columns=["crs", "x", "y"]).to_csv(tmp_path / "next.csv", index=False)
    found = places_to_visit(tmp_path / "next.csv", tiles, lambda index, row, col, shape: (index, row, col))
    assert found is not None
    assert found["dots"] == [(0, 7.5, 5.5), (1, 7.5, 5.5), (1, 7.5, 5.5)]
    for crs, x, words in (("nonsense", "1e30", "names the CRS nonsense"), ("", "east", "holds a place at east, 1")):
        (tmp_path / "wrong.csv").write_text(f"crs,x,y\n{crs},{x},1\n")
        with pytest.raises(SceneError, match=words):
            places_to_visit(tmp_path / "wrong.csv", tiles, lambda *_: None)
    (tmp_path / "far.csv").write_text("x,y\n1e30,1\n")
    assert places_to_visit(tmp_path / "far.csv", tiles, lambda *_: None) is None
