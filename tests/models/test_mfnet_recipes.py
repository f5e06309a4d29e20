"""MFNet's benchmarks: generated files of the official names and layout are accepted, trained on and scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from numpy.typing import NDArray

from landfuse.accuracy.evaluate import evaluate
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.scenes.check import check
from landfuse.scenes.scene_file import read_scene_file
from landfuse.training.recipe import read_recipe
from landfuse.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIDE = 64
POTSDAM = {
    "train": [
        "6_10",
        "7_10",
        "2_12",
        "3_11",
        "2_10",
        "7_8",
        "5_10",
        "3_12",
        "5_12",
        "7_11",
        "7_9",
        "6_9",
        "7_7",
        "4_12",
        "6_8",
        "6_12",
        "6_7",
        "4_11",
    ],
    "test": ["4_10", "5_11", "2_11", "3_10", "6_11", "7_12"],
}
VAIHINGEN = {
    "train": ["1", "3", "23", "26", "7", "11", "13", "28", "17", "32", "34", "37"],
    "test": ["5", "21", "15", "30"],
}
COLOURS = np.array(
    [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)], np.uint8
)


def write(path: Path, bands: NDArray[Any], *, world: bool = False) -> None:
    """A picture that says nothing of its place, unless there is a world file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = "JPEG" if path.suffix == ".jpg" else "GTiff"
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with rasterio.open(path, "w", driver=driver, **shape) as file:
        file.write(bands)
    if world:
        path.with_suffix(".tfw").write_text("0.09\n0\n0\n-0.09\n496000\n5419000\n")


def truth(random: np.random.Generator, classes: int = 6) -> NDArray[np.int64]:
    """Classes in squares of 8 px, all of them."""
    coarse = random.permutation(np.arange(SIDE // 8 * (SIDE // 8)) % classes).reshape(SIDE // 8, -1)
    return np.kron(coarse, np.ones((8, 8), np.int64))


def eroded(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Black (6) along the borders of the squares."""
    result = classes.copy()
    result[::8] = 6
    result[:, ::8] = 6
    return result


def images(classes: NDArray[np.int64], random: np.random.Generator, bands: int) -> NDArray[np.uint8]:
    tones = np.arange(bands)[:, None, None] * 20 + classes * 25
    return np.clip(tones + random.normal(0, 5, tones.shape), 0, 255).astype(np.uint8)


def vaihingen(root: Path) -> None:
    random = np.random.default_rng(0)
    for tile in VAIHINGEN["train"] + VAIHINGEN["test"]:
        classes = truth(random)
        write(root / f"top/top_mosaic_09cm_area{tile}.tif", images(classes, random, 3), world=True)
        heights = (250 + 2 * classes + random.normal(0, 0.1, classes.shape)).astype("float32")
        write(root / f"dsm/dsm_09cm_matching_area{tile}.tif", heights[None], world=True)
        full, border = (COLOURS[of].transpose(2, 0, 1) for of in (classes, eroded(classes)))
        write(root / f"gts_for_participants/top_mosaic_09cm_area{tile}.tif", full)
        write(root / f"gts_eroded_for_participants/top_mosaic_09cm_area{tile}_noBoundary.tif", border)


def potsdam(root: Path) -> None:
    random = np.random.default_rng(1)
    for tile in POTSDAM["train"] + POTSDAM["test"]:
        classes = truth(random)
        write(root / f"4_Ortho_RGBIR/top_potsdam_{tile}_RGBIR.tif", images(classes, random, 4), world=True)
        digits = "_".join(f"{int(number):02d}" for number in tile.split("_"))
        heights = root / f"1_DSM_normalisation/dsm_potsdam_{digits}_normalized_lastools.jpg"
        write(heights, (classes[None] * 30).astype(np.uint8))
        full, border = (COLOURS[of].transpose(2, 0, 1) for of in (classes, eroded(classes)))
        if tile == "4_12":  # compressed with loss at the source
            full = np.clip(full + random.integers(-35, 36, full.shape), 0, 255).astype(np.uint8)
        if tile == "6_7":
            full = np.where(
                (full == COLOURS[4][:, None, None]).all(axis=0), np.array([252, 255, 0])[:, None, None], full
            )
            full = full.astype(np.uint8)
        write(root / f"5_Labels_for_participants/top_potsdam_{tile}_label.tif", full)
        write(root / f"5_Labels_for_participants_no_Boundary/top_potsdam_{tile}_label_noBoundary.tif", border)


def mmhunan(root: Path) -> None:
    random = np.random.default_rng(2)
    tests = yaml.safe_load((BENCHMARKS / "mmhunan/scene.yaml").read_text())["split"]["test_tiles"]
    codes = np.array([1, 2, 3, 5, 6, 8, 9, 0], np.uint8)
    for tile in [*tests[:3], "10062", "10258", "1031", "10434", "10503"]:
        classes = truth(random, 7)
        write(root / f"s2/s2_{tile}.tif", np.repeat(images(classes, random, 3), 4, axis=0).astype("int16"))
        write(root / f"topo/topo_{tile}.tif", np.stack([classes, classes]).astype("float32"))
        write(root / f"lc/lc_{tile}.tif", codes[np.where(random.random(classes.shape) < 0.1, 7, classes)][None])


PLACES: dict[str, Callable[[Path], None]] = {"vaihingen": vaihingen, "potsdam": potsdam, "mmhunan": mmhunan}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, make in PLACES.items():
        make(root / name)
    return root


@pytest.fixture(autouse=True)
def _where(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", str(data))


def scene(place: str, folder: Path) -> Path:
    """The place's own scene file; what differs is that the generated tiles are smaller, and of MMHunan fewer."""
    text = yaml.safe_load((BENCHMARKS / place / "scene.yaml").read_text())
    if "size" in text["counts"]:
        text["counts"]["size"] = [SIDE, SIDE]
    if place == "mmhunan":
        assert len(text["split"]["test_tiles"]) == len(set(text["split"]["test_tiles"])) == 50
        text["counts"]["tiles"] = 8
        text["split"].update(test_tiles=text["split"]["test_tiles"][:3], validation=0.3)
    (folder / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    return folder / "scene.yaml"


@pytest.mark.parametrize("place", PLACES)
def test_files_of_the_official_layout_are_accepted(place: str, tmp_path: Path) -> None:
    report = check(scene(place, tmp_path), [(32, 32)])
    assert [str(fault) for fault in report.faults] == []
    assert {"tiles", *(f"bands.{name}" for name in report.modalities)} <= set(report.confirmed)
    assert (report.counts["train"] > 0).sum() >= 6
    assert (report.counts["test"] > 0).sum() >= 6
    assert report.leaks[32, 32] == 0


@pytest.mark.parametrize(("place", "published"), [("vaihingen", VAIHINGEN), ("potsdam", POTSDAM)])
def test_tiles_are_split_as_published_and_read_with_their_faults(place: str, published: dict[str, list[str]]) -> None:
    file = read_scene_file(BENCHMARKS / place)
    scenes = file.scenes()
    assert {tile.name for tile in scenes} == {*published["train"], *published["test"]}
    for tile, roles in zip(scenes, file.roles(scenes), strict=True):
        assert set(np.unique(roles)) <= ({3} if tile.name in published["test"] else {1, 2})
        assert (tile.labels != UNLABELLED).all(), tile.name  # 4_12 and 6_7 of Potsdam too
    border = {tile.name: tile.labels for tile in read_scene_file(BENCHMARKS / place / "eroded").scenes()}
    for tile in scenes:
        kept = border[tile.name] != UNLABELLED
        assert kept.mean() == pytest.approx((7 / 8) ** 2)
        assert np.array_equal(border[tile.name][kept], tile.labels[kept])


def test_clutter_is_learnt_but_does_not_enter_the_means(tmp_path: Path) -> None:
    """Maps that are right everywhere but on clutter: its own F1 is 0, and the means are those of the other five."""
    file = read_scene_file(BENCHMARKS / "vaihingen")
    for tile in file.scenes():
        wrong = np.where(tile.labels == 5, 0, tile.labels).astype(np.uint8)
        write_raster(tmp_path / f"{tile.name}.tif", tile.grid, tile.legend.to_codes(wrong), nodata=255)
    scored = evaluate(tmp_path, BENCHMARKS / "vaihingen" / "eroded")
    scored.save(tmp_path / "scores")
    written = yaml.safe_load((tmp_path / "scores" / "scores.json").read_text())
    f1 = [row["F1"] for row in written["classes"]]
    assert f1[5] == 0
    assert written["scores"]["mF1"] == pytest.approx(sum(f1[:5]) / 5)
    assert written["scores"]["OA"] == pytest.approx(1 - (scored.confusion.support[5] / scored.confusion.pixels))


@pytest.mark.parametrize("place", PLACES)
def test_the_recipes_hold_the_papers_figures(place: str) -> None:
    read = read_recipe(BENCHMARKS / place / "mfnet.yaml")
    training = read.training
    assert read.model["encoder"] == "samvit_large_patch16"
    assert (training.optimizer, training.rate, training.momentum, training.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (training.epochs, training.schedule, training.milestones) == (50, "steps", (25, 35, 45))
    assert read.samples.batch == 10
    assert read.samples.windows == (5000 if place == "mmhunan" else 10_000)
    assert read.mapping.stride == {"vaihingen": 32, "potsdam": 128, "mmhunan": 256}[place]
    assert read_recipe(BENCHMARKS / place / "mfnet_8gb.yaml").training.optimizer == "adamw"


@pytest.mark.parametrize(
    ("place", "recipe"), [("vaihingen", "mfnet"), ("potsdam", "mfnet_8gb"), ("mmhunan", "mfnet_8gb")]
)
def test_two_steps_of_a_small_encoder(place: str, recipe: str, tmp_path: Path) -> None:
    path = BENCHMARKS / place / f"{recipe}.yaml"
    small = {
        "scene": str(scene(place, tmp_path)),
        "model.encoder": "samvit_base_patch16",
        "model.encoder_options": "{embed_dim: 16, depth: 2, num_heads: 2, window_size: 3, global_attn_indexes: [1]}",
        "model.weights": "random",
        "model.view": SIDE,
        "model.decoder_features": 8,
        "samples.batch": 4,
        "samples.windows": 8,
        "training.epochs": 1,
        "training.precision": "float32",
        "mapping.stride": SIDE,
        "run": str(tmp_path / "run"),
    }
    if recipe == "mfnet":
        small |= {"training.schedule": "constant", "training.milestones": "[]"}
    train(read_recipe(path, [f"{key}={value}" for key, value in small.items()]), progress=False)
    assert (tmp_path / "run" / "scores.json").exists()
