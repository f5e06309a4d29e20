"""The demo: a simulated scene of three modalities, written as files, trained on, mapped and scored."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from landfuse.bundles.bundle_files import load_bundle
from landfuse.figures.figures import mapped_figure, save
from landfuse.files import check_replaceable, not_ours, write_text
from landfuse.mapping.predict import predict
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.reporting.page import report as write_report
from landfuse.scenes.land_cover_map import open_map
from landfuse.scenes.scene_file import open_scene
from landfuse.simulate.scene import simulate
from landfuse.studies.modalities import modality_table
from landfuse.training.recipe import read_recipe
from landfuse.training.run import read_run
from landfuse.training.train import train

_SIDE = 320
_RECIPE = {
    "scene": "scene.yaml",
    "model": {"name": "two_branch", "view": 7, "width": 32},
    "pixel_maps": {"hsi": {"kind": "pca", "components": 12}},
    "samples": {"batch": 128, "balanced": True, "windows": 4000},
    "training": {"epochs": 6, "rate": 2e-3, "patience": None},
}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: scores on the test split by the modalities that were used; files on all modalities."""

    scores: dict[str, dict[str, float]]
    map: Path
    picture: Path
    report: Path


def write_demo_scene(folder: Path, seed: int = 0, side: int = _SIDE, *, overwrite: bool = False) -> Path:
    """Simulates a scene of hyperspectral, height and SAR, of `side` px of 1 m, and writes it; returns the scene file.

    The folder gets `scene.yaml`, one GeoTIFF per modality, `labels.tif` and `recipe.yaml`. With `overwrite`, other
    files of these names are replaced.
    """
    scene = simulate(side, side, seed)
    modalities = {
        name: {"path": f"{name}.tif", "units": part.units, "nodata": float("nan")}
        for name, part in scene.modalities.items()
    }
    settings = {
        "name": "demo",
        "title": "Simulated scene: hyperspectral, LiDAR height and SAR",
        "citation": "simulated by landfuse",
        "licence": "CC0",
        "modalities": modalities,
        "labels": {"path": "labels.tif"},
        "legend": [{"name": c.name, "code": c.code, "colour": c.colour} for c in scene.legend],
        "split": {"kind": "blocks", "size": 40, "buffer": 3, "test": 0.4, "seed": seed},
    }
    texts = {
        folder / "scene.yaml": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        folder / "recipe.yaml": yaml.safe_dump(_RECIPE, sort_keys=False),
    }
    for path, text in texts.items():
        check_replaceable(path, re.escape(text), overwrite)
    for name in (*(f"{name}.tif" for name in modalities), "labels.tif", "map.tif", "map.png", "report.html"):
        if (folder / name).exists() and not (overwrite or (folder / "scene.yaml").exists()):
            raise not_ours(folder / name, "it is of no demo")
    for path, text in texts.items():
        write_text(path, text)
    for name in modalities:
        write_raster(folder / f"{name}.tif", scene.grid, scene.read(name, scene.grid.window), nodata=float("nan"))
    codes = scene.legend.to_codes(scene.labels)
    write_raster(folder / "labels.tif", scene.grid, codes, legend=scene.legend)
    return folder / "scene.yaml"


def run_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    side: int = _SIDE,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Runs the demo; a second run in the same folder continues where the first one stopped.

    Args:
        seed: of the scene and the training.
        side: of the scene, px of 1 m.
        overwrite: replace files that are not those of this demo.
        progress: show progress bars.
        report: called with a line for each step.
    """
    folder = Path(folder)
    report(f"simulating a scene of {side} x {side} px in {folder}")
    path = write_demo_scene(folder, seed, side, overwrite=overwrite)
    scene = open_scene(path)
    names = list(scene.modalities)
    scores, runs = dict[str, dict[str, float]](), list[Path]()
    for used in (names, *([name] for name in names)):
        title = " + ".join(used)
        report(f"training two_branch on {title}")
        run = folder / "runs" / "-".join(used)
        runs.append(run)
        recipe = read_recipe(
            folder / "recipe.yaml",
            [f"modalities=[{', '.join(used)}]", f"run={run}", f"training.seed={seed}"]
            + ([] if "hsi" in used else ["pixel_maps={}"]),
        )
        train(recipe, progress=progress)
        scores[title] = dict(read_run(run).scores["test"])
    report("mapping the whole scene, and writing the report")
    map_path = predict(load_bundle(runs[0]), scene, folder / "map.tif", confidence=True)
    picture = save(mapped_figure(scene, open_map(map_path, scene).classes, scene.legend), folder / "map.png")
    modality_table(runs[0], runs[1:]).save()
    page = write_report(runs[0], folder / "report.html", maps=map_path, overwrite=overwrite)
    return DemoResult(scores, map_path, picture, page)
