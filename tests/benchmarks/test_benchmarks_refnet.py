"""REF-Net's benchmarks: scene files read files of the official names and layout, and the recipes train."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml

from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.check import check
from landfuse.scenes.scene_file import read_scene_file
from landfuse.training.recipe import read_recipe
from landfuse.training.train import train

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIDE = 48  # of the tiles, instead of 256 px or more
SMALL = [
    "model.encoder=resnet18",
    "model.pretrained=false",
    "model.view=32",
    "model.width=8",
    "samples.batch=2",
    "samples.windows=4",
    "training.iterations=2",
    "training.precision=float32",
    "training.accelerator=cpu",
]


def place_of(name: str, folder: Path, **counts: Any) -> Path:
    """A copy of a place's scene file and recipe, for the files in a folder."""
    text = yaml.safe_load((BENCHMARKS / name / "scene.yaml").read_text(encoding="utf-8"))
    text["counts"].update(counts)
    (folder / "scene.yaml").write_text(yaml.safe_dump({**text, "root": "."}, sort_keys=False), encoding="utf-8")
    (folder / "refnet.yaml").write_text((BENCHMARKS / name / "refnet.yaml").read_text(encoding="utf-8"))
    return folder / "refnet.yaml"


def codes(rng: np.random.Generator, known: list[int], shape: tuple[int, int]) -> Any:
    return rng.choice(np.array(known, np.uint8), shape)


def dfc2020(folder: Path) -> Path:
    """Patches in the contest's folders and the authors' lists, then what its scene file tells the user to do."""
    rng = np.random.default_rng(0)
    lists = {"train_60": range(9), "val_20": range(9, 12), "test_20": range(12, 15)}
    for number in range(15):
        place, season = ("BlackForest", "spring") if number % 2 else ("CapeTown", "autumn")
        grid = Grid(SIDE, SIDE, (10.0, 0.0, 5e5 + 1e4 * number, 0.0, -10.0, 5e6), "EPSG:32632")
        images = {
            "s1": rng.normal(-15, 3, (2, SIDE, SIDE)),
            "s2": rng.integers(1, 4000, (13, SIDE, SIDE)).astype("uint16"),
            "dfc": codes(rng, [1, 2, 3, 4, 5, 6, 7, 9, 10], (SIDE, SIDE)),
        }
        names = {kind: f"ROIs0000_{season}_{kind}_{place}_p{number}" for kind in images}
        for kind, image in images.items():
            path = folder / "DFC_Public_Dataset" / f"ROIs0000_{season}" / f"{kind}_{place}" / f"{names[kind]}.tif"
            write_raster(path, grid, image, nodata=None)
        for name, numbers in lists.items():
            if number in numbers:
                line = f"optical/{names['s2']}.tif sar/{names['s1']}.tif lbl_digit/{names['dfc']}.png\n"
                with (folder / f"{name}.txt").open("a") as file:
                    file.write(line)
    manual = yaml.safe_load((BENCHMARKS / "dfc2020" / "scene.yaml").read_text())["fetch"]["manual"]
    subprocess.run(["bash", "-ec", manual.split("\n\n")[1]], cwd=folder, check=True)
    return place_of("dfc2020", folder, tiles=15, size=[SIDE, SIDE])


def whu_opt_sar(folder: Path) -> Path:
    """Tiles by the data's names: all that test, and five that train."""
    rng = np.random.default_rng(0)
    text = yaml.safe_load((BENCHMARKS / "whu_opt_sar" / "scene.yaml").read_text())
    tiles = [*text["split"]["test_tiles"], *(f"NH49E00{row}023" for row in range(5, 10))]
    grid = Grid(SIDE, SIDE, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), None)
    for tile in tiles:
        write_raster(folder / "optical" / f"{tile}.tif", grid, rng.integers(0, 255, (4, SIDE, SIDE)).astype("uint8"))
        write_raster(folder / "sar" / f"{tile}.tif", grid, rng.integers(0, 255, (1, SIDE, SIDE)).astype("uint8"))
        labels = codes(rng, [0, 10, 20, 30, 40, 50, 60, 70], (SIDE, SIDE))
        write_raster(folder / "lbl" / f"{tile}.tif", grid, labels, nodata=None)
    return place_of("whu_opt_sar", folder, tiles=25, size=[SIDE, SIDE])


def c2seg(folder: Path) -> Path:
    """Both cities, smaller; Berlin has bands beyond those that are used."""
    rng = np.random.default_rng(0)
    for city, shape, bands in (("augsburg", (SIDE, 60), 242), ("berlin", (64, SIDE), 244)):
        scipy.io.savemat(
            folder / f"{city}_multimodal.mat",
            {
                "HSI": rng.normal(1000, 100, (*shape, bands)).astype("float32"),
                "MSI": rng.integers(0, 4000, (*shape, 4)).astype("uint16"),
                "SAR": rng.normal(-12, 3, (*shape, 2)),
                "label": codes(rng, list(range(14)), shape),
            },
        )
    return place_of("c2seg", folder)


def c2seg_bw(folder: Path) -> Path:
    """Patches of the challenge's training part, by number."""
    rng = np.random.default_rng(0)
    grid = Grid(SIDE, SIDE, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), None)
    for tile in range(1, 6):
        images = {
            "msi": rng.integers(0, 4000, (4, SIDE, SIDE)).astype("uint16"),
            "sar": rng.normal(-18, 4, (2, SIDE, SIDE)).astype("float32"),
            "label": codes(rng, list(range(14)), (SIDE, SIDE)),
        }
        for kind, image in images.items():
            write_raster(folder / "C2Seg_BW" / "train" / kind / f"{tile}.tiff", grid, image, nodata=None)
    return place_of("c2seg_bw", folder)


@pytest.mark.parametrize(("make", "tests"), [(dfc2020, 3), (whu_opt_sar, 20), (c2seg, 1), (c2seg_bw, 1)])
def test_files_of_the_official_layout_are_read_and_the_recipe_trains(make: Any, tests: int, tmp_path: Path) -> None:
    recipe = make(tmp_path)
    report = check(tmp_path / "scene.yaml", [(32, 32)])
    assert [str(fault) for fault in report.faults] == []
    counts = yaml.safe_load((tmp_path / "scene.yaml").read_text())["counts"]
    assert set(report.confirmed) == {k for k in counts if k != "bands"} | {f"bands.{name}" for name in counts["bands"]}
    file = read_scene_file(tmp_path / "scene.yaml")
    scenes = file.scenes()
    roles = [set(np.unique(roles)) - {0} for roles in file.roles(scenes)]
    assert sum(role == {3} for role in roles) == tests
    if make is c2seg_bw:
        return  # it trains as dfc2020
    few = {"c2seg": ["pixel_maps.hsi.components=3"]}.get(make.__name__, [])
    train(recipe, *SMALL, *few, f"run={tmp_path / 'run'}", progress=False)
    assert (tmp_path / "run" / "scores.json").exists()


@pytest.mark.parametrize("name", ["dfc2020", "whu_opt_sar", "c2seg", "c2seg_bw"])
def test_the_recipes_hold_the_papers_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDFUSE_DATA", "nowhere")
    recipe = read_recipe(BENCHMARKS / name / "refnet.yaml")
    training = recipe.training
    assert (training.iterations, training.epochs, recipe.samples.batch) == (70_000, None, 8)
    assert (training.optimizer, training.rate, training.weight_decay) == ("adamw", 5e-4, 5e-4)
    assert (training.schedule, training.power, training.warmup) == ("polynomial", 0.9, 0.0)
    assert (training.decay_vectors, training.precision, training.clip) == (True, "float32", None)
    assert recipe.model["encoder"] == "resnet50.tv_in1k"
