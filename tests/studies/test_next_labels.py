"""What to label next: places that are chosen, places that are drawn, and the loop that brings them back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

import landfuse as lf
from landfuse.accuracy.conformal import ClassSets, threshold_table
from landfuse.accuracy.draw_sample import draw_sample
from landfuse.accuracy.reference_sample import read_sample
from landfuse.bundles.table_bundle import load_model
from landfuse.errors import LandfuseError, MissingFileError, OutputError, SceneError, SettingsError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.place_noise import uniform
from landfuse.scenes.land_cover_map import open_map
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION
from landfuse.simulate.scene import simulate_flat
from landfuse.studies import next_labels as module
from landfuse.studies.next_labels import Candidates, next_labels, score
from landfuse.training.train import train


def some(count: int = 300, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    place = np.stack([rng.integers(0, 2, count), *rng.integers(0, 60, (2, count))], axis=1)
    place = np.unique(place, axis=0)
    found = rng.dirichlet(np.ones(3), len(place)).astype(np.float32)
    values = rng.normal(size=(len(place), 4)).astype(np.float32)
    values[::7, 1] = np.nan
    return Candidates(place, score(found.T, np.array([0.6, 0.3, 0.1])), found, values)


def test_a_score_is_uncertainty_by_rarity() -> None:
    found = np.array([[0.5, 0.4, 0.1], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0]], np.float32).T
    expected = [0.9 / np.sqrt(0.64), (1 - 0.85) / np.sqrt(1e-3), 1e-6]
    np.testing.assert_allclose(score(found, np.array([0.64, 0.36, 0.0])), expected, rtol=1e-5)


def test_places_are_chosen_as_by_a_plain_loop() -> None:
    held, rng = some(), np.random.default_rng(3)
    values = np.array(held.values, float)
    for band in range(4):
        known = np.isfinite(values[:, band])
        mean = values[known, band].mean()
        values[:, band] = np.where(known, values[:, band] - mean, 0)
        values[:, band] /= np.sqrt((values[:, band] ** 2).sum() / known.sum()) * 2  # four bands
    features = np.concatenate([values, 2.0 * held.probabilities], axis=1)
    expected: list[int] = []
    for _ in range(25):
        chance = np.zeros(len(features))
        for one in range(len(features)):
            near = [np.sum((features[one] - features[other]) ** 2) for other in expected]
            steps = [held.place[one] - held.place[other] for other in expected]
            if all(step[0] != 0 or np.hypot(*step[1:]) >= 6 for step in steps):
                chance[one] = held.weight[one] * min(near, default=1.0)
        expected.append(int(rng.choice(len(chance), p=chance / chance.sum())))
    assert held.choose(25, 6.0, 3).tolist() == expected


def test_distances_give_way_where_there_is_no_room() -> None:
    held = some()
    chosen = held.choose(200, 40.0)
    assert len(set(chosen.tolist())) == 200
    assert len(held.choose(10_000, 1.0)) == len(held.place)
    same = replace(held, values=np.ones_like(held.values), probabilities=np.ones_like(held.probabilities))
    assert len(set(same.choose(50, 0.0).tolist())) == 50  # all alike: no distance tells them apart


def test_walking_blocks_are_those_of_the_highest_scores() -> None:
    held = some(600)
    kept = held.in_blocks(20, 15)
    squares: dict[tuple[int, ...], float] = {}
    for place, weight in zip(held.place.tolist(), held.weight.tolist(), strict=True):
        key = (place[0], place[1] // 20, place[2] // 20)
        squares[key] = squares.get(key, 0.0) + weight
    found = {(t, r // 20, c // 20) for t, r, c in kept.place.tolist()}
    assert found == set(sorted(squares, key=lambda key: -squares[key])[: len(found)])
    assert 2 <= len(found) < len(squares)
    assert len(kept.place) >= 60
    assert len(held.in_blocks(20, 10_000).place) == len(held.place)


def roles_of(run: Path) -> NDArray[Any]:
    return GdalRaster(str(run / "split" / "chequers.tif")).read_codes()


@pytest.mark.parametrize(("blocks", "level"), [(40, 0.9), (5, 5 / 6)])
def test_class_sets_are_those_of_the_bundle(trained: Path, blocks: int, level: float) -> None:
    known = load_model(trained / "bundle").description
    rng = np.random.default_rng(0)
    found, truth = rng.dirichlet(np.ones(4), 800).T.astype(np.float32), rng.integers(0, 4, 800).astype(np.uint8)
    assert module._sets(found, known) == {}
    table = threshold_table(found, truth, np.arange(800) % blocks)
    notes = {"sets": {"blocks": blocks, "class_blocks": [blocks] * 4, "unit": "blocks", "how": ""}}
    whole = replace(known, attached={"sets.thresholds": table}, notes=notes)
    threshold = ClassSets.of(whole).thresholds(np.floor(level * 1000) / 1000)[0]
    for one, words in zip(found.T[:50], module._sets(found[:, :50], whole)["set"], strict=True):
        held = [name for name, p in zip(known.legend.names, one, strict=True) if p >= threshold]
        assert words == ", ".join(held or [known.legend.names[int(one.argmax())]])


@pytest.fixture(scope="module")
def unmapped(trained: Path, place: Path) -> NDArray[np.bool_]:
    """Where a new label trains: unlabelled, and in no block of 8 px that tests or validates."""
    scene = lf.open_scene(place / "scene.yaml")
    roles = roles_of(trained)
    allowed = scene.labels == UNLABELLED
    for row in range(0, 96, 8):
        for col in range(0, 96, 8):
            block = (slice(row, row + 8), slice(col, col + 8))
            if np.isin(roles[block], (TEST, VALIDATION)).any():
                allowed[block] = False
    return allowed


def test_both_parts_are_what_they_say(
    trained: Path, place: Path, unmapped: NDArray[np.bool_], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    found = next_labels(trained, place / "scene.yaml", 30, judge=0.4, progress=lambda what, *_: seen.append(what))
    found.save(tmp_path / "next.gpkg")
    frame = geopandas.read_file(tmp_path / "next.gpkg")
    assert frame["part"].tolist() == ["judge"] * 12 + ["train"] * 18
    assert frame["id"].tolist() == list(range(1, 31))
    assert {"mapping, px", "drawing, blocks", "scoring, px"} <= set(seen)
    opened = open_map(trained / "maps" / "chequers.tif", lf.open_scene(place / "scene.yaml"))
    row, col = frame["row"].to_numpy(), frame["col"].to_numpy()
    names = np.array(opened.legend.names)[opened.classes[row, col]]
    assert frame["map_class"].tolist() == names.tolist()
    np.testing.assert_allclose(frame.geometry.x, opened.grid.at(col + 0.5, row + 0.5)[0])
    train = (frame["part"] == "train").to_numpy()
    assert unmapped[row[train], col[train]].all()
    assert frame["probability"][train].isna().all()
    assert frame["why"][train].str.contains(r"\(\d\.\d\d\)").all()
    sample, drawn = read_sample(tmp_path / "next.gpkg"), draw_sample(opened.path, 12, design="simple")
    assert sample.left_out == 18
    np.testing.assert_array_equal(sample.row, drawn.row)
    assert (sample.probability == 12 / (opened.classes != UNLABELLED).sum()).all()
    monkeypatch.setattr(module, "mapping_options", lambda run: {"block": 13})
    monkeypatch.setattr(module, "_STRIP", 5)
    again = next_labels(trained, place, 30, judge=0.4).columns()  # however it is cut
    for name, column in found.columns().items():
        np.testing.assert_array_equal(column.astype(str), again[name].astype(str), err_msg=name)


def test_candidates_are_a_weighted_sample_of_all_pixels(
    trained: Path, place: Path, unmapped: NDArray[np.bool_], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, model = lf.open_scene(place / "scene.yaml"), load_model(trained / "bundle")
    (block,) = map_blocks(model, scene)
    mapped = block.classes != UNLABELLED
    known, fractions = unmapped & mapped, np.bincount(block.classes[mapped], minlength=4) / mapped.sum()
    random = uniform(5, 0, np.arange(96), np.arange(96)).astype(float) + 2.0**-25
    keys = {}
    for row, col in np.argwhere(known).tolist():
        best = np.sort(block.probabilities[:, row, col].astype(float))
        weight = max(1e-6, (1 - (best[-1] - best[-2])) / np.sqrt(max(1e-3, fractions[block.classes[row, col]])))
        keys[row, col] = np.log(random[row, col]) / weight
    monkeypatch.setattr(module, "_CANDIDATES", -9)
    held: list[Candidates] = []
    choose = Candidates.choose
    monkeypatch.setattr(Candidates, "choose", lambda own, *words: held.append(own) or choose(own, *words))
    next_labels(trained, place, 10, judge=0.0, seed=5)
    assert [tuple(one) for one in held[0].place[:, 1:].tolist()] == sorted(keys, key=lambda at: -keys[at])[:41]
    a = scene.read("a", scene.grid.window)
    np.testing.assert_array_equal(held[0].values[:, :3], a[:, held[0].place[:, 1], held[0].place[:, 2]].T)


def test_the_loop(trained: Path, place: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    folder = shutil.copytree(place, tmp_path / "scene")
    ended = landfuse("next", trained, folder, "-n", 40, "--picture", "--walk", 500)
    assert ended.code == 0, ended.err
    assert f"also: [{{polygons: {folder / 'next.gpkg'}}}]" in ended.err
    assert (folder / "next.png").exists()
    frame = geopandas.read_file(folder / "next.gpkg")
    legend = lf.open_scene(folder).legend
    truth = simulate_flat(96, 96, {"a": 3}).labels[frame["row"], frame["col"]]
    frame["reference"] = [legend.names[k] if n % 2 else str(legend.codes[k]) for n, k in enumerate(truth.tolist())]
    frame.to_file(folder / "next.gpkg")
    text = yaml.safe_load((folder / "scene.yaml").read_text())
    text["labels"]["also"] = [{"polygons": "next.gpkg"}]
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"scene": "scene.yaml", "model": {"name": "forest", "trees": 5}, "run": "second"})
    )
    train(folder / "recipe.yaml", f"run={folder / 'second'}", progress=False)
    before, after = roles_of(trained), roles_of(folder / "second")
    own = frame["part"] == "train"
    differing = np.argwhere(before != after)
    assert sorted(map(tuple, differing.tolist())) == sorted(zip(frame["row"][own], frame["col"][own], strict=True))
    assert (after[before != after] == TRAIN).all()
    of_old = [lf.evaluate(trained / "maps", one, split=trained / "split").confusion for one in (place, folder)]
    assert np.array_equal(of_old[0].matrix, of_old[1].matrix)  # what came since does not test
    ended = landfuse("evaluate", trained / "maps" / "chequers.tif", folder / "next.gpkg")
    assert ended.code == 0, ended.err
    assert "20 points; simple random sampling" in " ".join(ended.out.split())
    assert "20 places that were chosen to train" in ended.out
    ended = landfuse("next", folder / "second", folder, "-q")
    assert ended.code == 2
    assert "40 of its 40 references are filled in" in ended.err


def test_many_tiles_and_their_systems(tmp_path: Path) -> None:
    scene = simulate_flat(96, 96, {"a": 3})
    for number in (0, 1):
        part = scene.grid.part(lf.Window(0, 48 * number, 96, 48))
        cut = (slice(None), slice(48 * number, 48 * number + 48))
        labels = np.where(np.indices((96, 48)).sum(axis=0) % 3 == 0, scene.labels[cut], UNLABELLED).astype(np.uint8)
        write_raster(tmp_path / f"{number}_labels.tif", part, scene.legend.to_codes(labels))
        write_raster(tmp_path / f"{number}_a.tif", part, scene.read("a", scene.grid.window)[:, *cut])
    text = {
        "name": "pair",
        "modalities": {"a": {"path": "{tile}_a.tif"}},
        "labels": {"path": "{tile}_labels.tif"},
        "legend": [{"name": c.name, "code": c.code} for c in scene.legend],
        "split": {"kind": "blocks", "size": 6},
    }
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"scene": "scene.yaml", "model": {"name": "forest", "trees": 5}})
    )
    train(tmp_path / "recipe.yaml", f"run={tmp_path / 'run'}", progress=False)
    found = next_labels(tmp_path / "run", tmp_path, 20)
    assert found.map_path == tmp_path / "run" / "maps" / "mosaic.vrt"
    columns = found.columns()
    codes = open_map(found.map_path).classes
    names = np.array(scene.legend.names)
    assert (names[codes[columns["row"].astype(int), columns["col"].astype(int)]] == columns["map_class"]).all()
    assert columns["col"][10:].max() >= 48 > columns["col"][10:].min()
    one = next_labels(tmp_path / "run", tmp_path, 20, tile="1", judge=0.0)
    assert one.map_path.name == "1.tif"
    assert one.columns()["x"].min() > scene.grid.bounds[0] + 480
    moved = replace(lf.open_scenes(tmp_path)[1].grid, crs="EPSG:32633")
    for name in ("a", "labels"):
        values = GdalRaster(str(tmp_path / f"1_{name}.tif")).read(lf.Window(0, 0, 96, 48))
        write_raster(
            tmp_path / f"1_{name}.tif",
            moved,
            np.nan_to_num(values, nan=255).astype(np.uint8) if name == "labels" else values,
        )
    shutil.rmtree(tmp_path / "run" / "maps")
    with pytest.raises(SceneError, match=r"the maps of the 2 tiles make 2 mosaics"):
        next_labels(tmp_path / "run", tmp_path, 20)
    apart = next_labels(tmp_path / "run", tmp_path, 20, judge=0.0)  # points of both, in the CRS of the first
    assert apart.map_path is None
    apart.save(tmp_path / "next.gpkg")
    frame = geopandas.read_file(tmp_path / "next.gpkg")
    inside = [
        frame.to_crs(one.grid.crs).cx[slice(*one.grid.bounds[::2]), slice(*one.grid.bounds[1::2])]
        for one in lf.open_scenes(tmp_path)
    ]
    assert min(map(len, inside)) > 0
    assert sum(map(len, inside)) == 20
    with pytest.raises(SceneError, match="has no tile 7"):
        next_labels(tmp_path / "run", tmp_path, 20, tile="7")


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"n": 5000, "judge": 0.1}, SettingsError, r"4500 places to train, of \d+ pixels"),
        ({"n": 2}, SettingsError, "of which 1 judge"),
        ({"judge": 1.5}, SettingsError, "a fraction from 0 to 1"),
        ({"judge": math.nan}, SettingsError, "a fraction from 0 to 1"),
        ({"walk": 0.0}, SettingsError, "walking blocks of 0 m"),
        ({"run": "nothing"}, MissingFileError, "no such folder"),
        ({"run": "begun"}, MissingFileError, "has not ended"),
        ({"scene": "other.yaml"}, SceneError, "lists other classes than the run"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn(
    words: dict[str, Any], error: type[LandfuseError], says: str, trained: Path, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    (tmp_path / "other.yaml").write_text((place / "scene.yaml").read_text().replace("name: field 1", "name: meadow"))
    (tmp_path / "begun").mkdir()
    shutil.copy(trained / "recipe.json", tmp_path / "begun")
    where = {name: tmp_path / words[name] for name in ("run", "scene") if name in words}
    with pytest.raises(error, match=says):
        next_labels(**{"run": trained, "scene": place, **words, **where})


def test_files_that_are_not_replaced(trained: Path, place: Path, tmp_path: Path) -> None:
    found = next_labels(trained, place, 8, judge=0.0)
    found.save(tmp_path / "next.csv")
    found.save(tmp_path / "next.csv")  # nothing is filled in
    with pytest.raises(OutputError, match="a name ending in"):
        found.save(tmp_path / "next.tif")
    with pytest.raises(SceneError, match="does not say how its places were chosen"):
        read_sample(tmp_path / "next.csv")
    (tmp_path / "notes.csv").write_text("name\nmine\n")
    with pytest.raises(OutputError, match="it is no sample"):
        found.save(tmp_path / "notes.csv")
