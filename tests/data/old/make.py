"""Makes what lies in this folder: `python tests/data/old/make.py FOLDER`, by the version that README.md names.

Later versions are not to run it again: what is here stands for files that users wrote with that version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SIDE = 40
CODES = (1, 2, 4, 7)

SCENE = {
    "name": "old",
    "title": "A chequered slope, simulated",
    "citation": "nobody",
    "licence": "CC0-1.0",
    "address": "none",
    "root": ".",
    "reference": "optical",
    "modalities": {
        "optical": {"path": "optical.tif", "bands": "1-4", "scale": 1.0e-4, "offset": 0.0, "units": "reflectance"},
        "sar": {"path": "sar.tif", "units": "dB", "resampling": "nearest", "sensor": "simulated", "metres": 10},
    },
    "labels": {"path": "labels.tif", "ignored": [0]},
    "legend": [
        {"name": "water", "code": 1, "colour": "#1A5BAB"},
        {"name": "trees", "code": 2, "colour": "#358221"},
        {"name": "crops", "code": 4, "colour": "#FFDB5C"},
        {"name": "clutter", "code": 7, "colour": "#ED022A", "scored": False},
    ],
    "split": {"kind": "blocks", "size": 8, "buffer": 1, "test": 0.3, "validation": 0.2, "seed": 1},
}

FIXED = {"precision": "float32", "accelerator": "cpu", "patience": None, "choose_by": "mIoU", "rate": 0.005}
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": [1]}
RECIPES: dict[str, dict[str, Any]] = {
    "forest": {"model": {"name": "forest", "trees": 4, "depth": 6}, "pixel_maps": {"default": {"kind": "none"}}},
    "two_branch": {
        "model": {"name": "two_branch", "view": 5, "width": 8},
        "pixel_maps": {"optical": {"kind": "pca", "components": 3}},
        "samples": {"batch": 32, "windows": 256, "balanced": True},
        "training": {"epochs": 4, **FIXED},
    },
    "dropout": {
        "model": {"name": "two_branch", "view": 5, "width": 8},
        "samples": {"batch": 32, "windows": 256, "modality_dropout": {"sar": 0.3}},
        "training": {"epochs": 4, **FIXED},
    },
    "bdgf": {
        "pretrain": {"base": 8, "steps": 6, "batch": 4, "crop": 16, "balance": {"every": 2, "warmup": 0}},
        "features": {"timesteps": [50, 300], "levels": [1, 2, 3], "tile": 32, "overlap": 8},
        "model": {
            **{"name": "bdgf", "view": 5, "width": 8, "embedding": 8, "states": 4, "heads": 2, "groups": 2},
            "timesteps": 2,
        },
        "samples": {"batch": 32, "windows": 192},
        "training": {"epochs": 3, **FIXED},
    },
    "stacked": {
        "model": {
            "name": "stacked",
            "architecture": "Linknet",
            "encoder": "tu-test_efficientnet",
            "view": 32,
            "core": 8,
        },
        "samples": {"batch": 8, "windows": 64},
        "training": {"epochs": 3, **FIXED},
        "mapping": {"stride": 4, "weights": "smooth", "batch": 16},
    },
    "refnet": {
        "model": {"name": "refnet", "encoder": "test_efficientnet", "view": 32, "core": 8, "width": 4},
        "samples": {"batch": 8, "windows": 64},
        "training": {"iterations": 20, "schedule": "polynomial", "power": 0.9, **FIXED},
    },
    "mfnet": {
        "model": {
            **{"name": "mfnet", "weights": "random", "encoder_options": TINY, "encoder_zoom": 2, "view": 16, "core": 8},
            **{"decoder_features": 8, "finetune": "lora", "rank": 2},
        },
        "samples": {"batch": 8, "windows": 64},
        "training": {"epochs": 2, **FIXED},
    },
}

EVERY_SETTING = """\
# Every setting of a recipe that is not one of a kind of model, none of them at its default.
scene: ../scene/scene.yaml
modalities: [sar, optical]
pixel_maps:
  default: {kind: standardise}
  optical: {kind: pca, components: 2}
pretrain:
  modalities: [optical, sar]
  fit_on: train
  base: 16
  steps: 10
  batch: 4
  crop: 16
  rate: 1.0e-3
  weight_decay: 1.0e-3
  clip: 2.0
  average: 0.9
  augment: false
  balance: {kind: fixed, gamma: 1.0, progress: 0.0, hide: cells, cell: 4, imputation: 0.5, every: 5, warmup: 1}
  precision: float32
  seed: 4
features: {kind: diffusion, timesteps: [10], levels: [2], mode: patch, tile: 64, overlap: 16, seed: 2, cache: features}
model:
  name: bdgf
  view: 7
  core: 3
  width: 16
  embedding: 16
  branches: [cnn, mamba, transformer]
  guidance: one_level_each
  operators: {cnn: cross_attention, mamba: fusion, transformer: group_attention}
  timesteps: 1
  states: 8
  heads: 2
  groups: 4
  ensemble: false
  label_smoothing: 0.1
  mutual:
    {probabilities: dml, probability_weight: 1, temperature: 3, features: relational, feature_weight: 0.2, ramp: 0.5}
samples: {batch: 8, windows: 16, balanced: true, augment: false, modality_dropout: 0, memory: 1GiB, workers: 0}
training:
  iterations: 100
  optimizer: sgd
  momentum: 0.8
  rate: 1.0e-2
  weight_decay: 1.0e-4
  warmup: 0.1
  schedule: steps
  milestones: [50, 80]
  factor: 0.5
  patience: 3
  choose_by: kappa
  clip: null
  precision: float32
  seed: 7
  accelerator: cpu
  devices: 1
  nodes: 1
  strategy: auto
  lightning: {log_every_n_steps: 5}
mapping: {stride: 1, weights: smooth, batch: 32}
split: {kind: blocks, size: 10, buffer: 2, folds: 3, fold: 1, validation: 0.25, seed: 5}
run: runs/every
"""


def landfuse(folder: Path, *words: object) -> None:
    """Runs the command in a folder."""
    code = "from landfuse.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=folder, check=True)


def raster(path: Path, values: np.ndarray, nodata: float | None = None, finer: int = 1) -> None:
    """Writes bands, (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = from_origin(500_000, 5_400_000, 10 / finer, 10 / finer)
    shape = dict(zip(("count", "height", "width"), values.shape, strict=True))
    with rasterio.open(
        path, "w", "GTiff", **shape, dtype=values.dtype, crs="EPSG:32632", transform=where, nodata=nodata,
        compress="deflate",
    ) as file:  # fmt: skip
        file.write(values)


def pixels(seed: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two modalities and labels of a chequered slope."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:side, :side]
    classes = (rows // 5 + 2 * (cols // 5)) % 4
    means = rng.uniform(500, 4000, (4, 4))[:, classes]
    optical = np.rint(means + 150 * rng.standard_normal(means.shape)).astype(np.int16)
    sar = (rng.uniform(-18, -4, (2, 4))[:, classes] + 0.7 * rng.standard_normal((2, side, side))).astype(np.float32)
    return optical, sar, np.array(CODES, np.uint8)[classes][None]


def make_scene(folder: Path) -> None:
    """The scene that all was trained on."""
    optical, sar, labels = pixels(1, SIDE)
    sar[:, :4, :6] = -9999
    labels[:, :, 20:22] = 0
    raster(folder / "optical.tif", optical)
    raster(folder / "sar.tif", sar, nodata=-9999)
    raster(folder / "labels.tif", labels, nodata=0)
    (folder / "scene.yaml").write_text(yaml.safe_dump(SCENE, sort_keys=False))


def make_tiles(folder: Path) -> None:
    """A scene of two tiles, in a file of many settings: polygons with a join, a finer modality, published counts."""
    shapes, table = [], ["tree,species"]
    for number, tile in enumerate(("north", "south")):
        optical, sar, _ = pixels(2 + number, 20)
        raster(folder / "optical" / f"{tile}.tif", optical)
        raster(folder / "detail" / f"{tile}.tif", np.repeat(np.repeat(sar, 2, 1), 2, 2), finer=2)
        for place in range(4):
            left, top = 500_000 + 50 * place, 5_400_000 - 100 * number
            ring = [[left, top], [left + 50, top], [left + 50, top - 50], [left, top - 50], [left, top]]
            key = 4 * number + place
            shapes.append(
                {"type": "Feature", "properties": {"tree": key}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
            )
            table.append(f"{key},{('PISY', 'QURO', 'FASY')[place % 3]}")
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    (folder / "crowns.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": shapes}))
    (folder / "field.csv").write_text("\n".join(table) + "\n")
    (folder / "scene.yaml").write_text("""\
# Many settings of a scene file.
name: tiles
title: Two tiles
citation: nobody
licence: CC0-1.0
address: none
root: ${LANDFUSE_OLD_TILES:-.}
tiles: [north, south]
reference: optical
georeferenced: true
modalities:
  optical:
    path: optical/{tile}.tif
    bands: [1, 3, 4]
    scale: 1.0e-4
    offset: 0.01
    nodata: -32768
    units: reflectance
    sensor: simulated
    metres: 10
  detail: {path: "detail/{tile}.tif", zoom: 2, resampling: average, units: dB, crs: EPSG:32632}
  power: {path: "detail/{tile}.tif", bands: "2", scale: -1.0, resampling: average, decibel: true, units: dB}
labels:
  polygons: [crowns.geojson]
  attribute: species
  join: {path: field.csv, key: tree}
  all_touched: false
  overlap: first
  unlisted: unlabelled
legend:
  - {name: Scots pine, value: PISY, code: 3, colour: "#117733"}
  - {name: oak, value: QURO, code: 5, colour: "#DDCC77", scored: false}
split: {kind: tiles, train_tiles: [north], test_tiles: [south], validation: 0}
counts: {tiles: 2, size: [20, 20], bands: {optical: 3, detail: 2}}
fetch: {files: [], manual: "all of it lies here"}
""")


def thinned(bundle: Path, scene: Path) -> None:
    """Leaves few of a bundle's many weights, in few digits, so that it compresses, and fits these to the scene."""
    import landfuse as lf

    torch.manual_seed(0)
    classifier, whole = lf.load_bundle(bundle), lf.open_scene(scene)
    large = [p for p in classifier.model.parameters() if p.numel() > 2000]
    masks = [p.abs() > p.abs().flatten().kthvalue(int(0.97 * p.numel())).values for p in large]
    view, core = classifier.model.view, classifier.model.core
    values = {name: torch.from_numpy(whole.read(name, whole.grid.window)) for name in classifier.notes}
    target = torch.from_numpy(whole.labels.astype(np.int64))
    halo = (view - core) // 2
    optimizer = torch.optim.Adam((p for p in classifier.model.parameters() if p.requires_grad), lr=0.005)
    classifier.train()
    for _ in range(60):
        places = torch.randint(0, SIDE - view + 1, (8, 2)).tolist()
        images = {n: torch.stack([v[:, r : r + view, c : c + view] for r, c in places]) for n, v in values.items()}
        truth = torch.stack([target[r + halo :, c + halo :][:core, :core] for r, c in places])
        loss = torch.nn.functional.cross_entropy(classifier(images), truth, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weights, mask in zip(large, masks, strict=True):
                weights.copy_((weights * mask).bfloat16().float())
    classifier.eval().save(bundle)


def settle(run: Path, old: Path) -> None:
    """Takes out of a run folder what is of one machine, and what is large."""
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    for name in ("curves.png", "balance.png", *(["reliability.png"] if run.name != "two_branch" else [])):
        (run / name).unlink(missing_ok=True)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["scene"] = os.path.relpath(recipe["scene"], run)
    (run / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    facts = json.loads((run / "environment.json").read_text())
    facts["platform"] = "Linux"
    facts["command"] = re.sub(r"^\S+", "landfuse", facts["command"]).replace(f"{old}/", "")
    (run / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")


def batch(bundle: Path) -> dict[str, torch.Tensor]:
    """Raw images of the test, as tests/test_old_files.py draws them."""
    description = json.loads((bundle / "model.json").read_text())
    side = description["tiling"]["view"]
    images = {}
    for number, (name, note) in enumerate(description["modalities"].items()):
        mean, spread = {"optical": (0.2, 0.1), "sar": (-10.0, 4.0)}.get(name, (0.0, 1.0))
        shape = (2, note["bands"], side, side)
        values = np.random.default_rng(number).standard_normal(shape)
        images[name] = torch.from_numpy((mean + spread * values).astype(np.float32))
    images["sar"][0, :, :2, :2] = float("nan")
    return images


def unfinished(bundle: Path, scene: Path, path: Path) -> None:
    """Interrupts a map after its first blocks."""
    import landfuse as lf

    def stop(done: int, _all: int) -> None:
        if done > 700:
            raise KeyboardInterrupt

    try:
        lf.load_bundle(bundle).predict(lf.open_scene(scene), path, block=16, progress=stop)
    except KeyboardInterrupt:
        return


def main(old: Path) -> None:
    """Makes all of it in an empty folder."""
    import landfuse as lf

    old = old.resolve()
    os.environ["LANDFUSE_CACHE"] = str(old.with_name("old-cache"))
    make_scene(old / "scene")
    make_tiles(old / "tiles")
    (old / "recipes").mkdir()
    (old / "recipes" / "every_setting.yaml").write_text(EVERY_SETTING)
    variants = {"base": "forest.yaml", "seeds": "0..1", "variants": {"both": {}, "alone": {"modalities": ["optical"]}}}
    (old / "recipes" / "ablation.yaml").write_text(yaml.safe_dump(variants, sort_keys=False))
    bundles: dict[str, str] = {}
    for name, recipe in RECIPES.items():
        path = old / "recipes" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"scene": "../scene/scene.yaml", **recipe}, sort_keys=False))
        landfuse(old, "train", path, f"run=runs/{name}", "--quiet", *(["--seeds", "0..1"] if name == "forest" else []))
        bundles[name] = f"runs/{name}/seed-0" if name == "forest" else f"runs/{name}"
        if name in ("stacked", "refnet", "mfnet"):
            bundles[name] = f"bundles/{name}"
            shutil.copytree(old / "runs" / name / "bundle", old / bundles[name])
            shutil.rmtree(old / "runs" / name)
            thinned(old / bundles[name], old / "scene" / "scene.yaml")
        landfuse(old, "predict", bundles[name], "scene/scene.yaml", "-o", f"maps/{name}.tif", "--quiet")
    landfuse(old, "modalities", "runs/dropout")
    unfinished(old / bundles["two_branch"], old / "scene" / "scene.yaml", old / "maps" / "unfinished.tif")
    for path in old.rglob("recipe.json"):
        settle(path.parent, old)
    expected = {}
    for name, place in bundles.items():
        folder = old / place
        inside = folder if (folder / "model.json").exists() else folder / "bundle"
        with torch.no_grad():
            logits = lf.load_bundle(folder)(batch(inside))
        expected[name] = {
            "bundle": place,
            "shape": list(logits.shape),
            "logits": [float(f"{value:.7g}") for value in logits.flatten().tolist()],
        }
    (old / "expected.json").write_text(json.dumps(expected) + "\n")
    for name in ("stacked", "refnet", "mfnet"):
        folder = old / "bundles" / name
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, f"{name}/{path.name}")
        shutil.rmtree(folder)
    for path in (old / "maps").iterdir():
        if path.is_file() and path.suffix != ".tif":
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
