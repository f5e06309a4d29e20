"""A run to report on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.training.train import train

NASTY = "</script><script>alert('x')</script> & \"quoted\""
TILES = ("north", "south", "west")


@pytest.fixture(scope="session")
def nasty() -> str:
    """The name of a class that would break a careless page."""
    return NASTY


@pytest.fixture(scope="module")  # a report leaves maps in it
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small forest on three tiles of 48 px, its scene file beside it; one class is called `nasty`."""
    folder, side = tmp_path_factory.mktemp("places"), 48
    rng = np.random.default_rng(0)
    names = ["water", NASTY, "trees", "crops"]
    for number, tile in enumerate(TILES):
        grid = Grid(side, side, (10.0, 0.0, 5e5 + number * 1e5, 0.0, -10.0, 5e6), "EPSG:32632")
        classes = np.kron(rng.integers(0, 4, (side // 6, side // 6)), np.ones((6, 6), int))
        values = {name: classes + rng.normal(0, 0.7, (bands, side, side)) for name, bands in (("s2", 12), ("dem", 1))}
        for name, pixels in values.items():
            pixels[:, :4, :5] = np.nan
            write_raster(folder / name / f"{tile}.tif", grid, pixels.astype(np.float32), nodata=float("nan"))
        labels = (classes + 1).astype(np.uint8)
        labels[30:34] = UNLABELLED
        write_raster(folder / "labels" / f"{tile}.tif", grid, labels)
    text = {
        "name": "places",
        "title": f"Three tiles {NASTY}",
        "citation": "Somebody 2026",
        "licence": "CC-BY-4.0",
        "modalities": {
            "s2": {"path": "s2/{tile}.tif", "units": "reflectance"},
            "dem": {"path": "dem/{tile}.tif", "units": "m"},
        },
        "labels": {"path": "labels/{tile}.tif"},
        "legend": [{"name": name, "code": code} for code, name in enumerate(names, start=1)],
        "split": {"kind": "blocks", "size": 8, "test": 0.4, "validation": 0.2, "calibration": 0.3},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    recipe = {"scene": "scene.yaml", "model": {"name": "forest", "trees": 4}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(folder / "recipe.yaml", f"run={folder / 'run'}", progress=False)
    return folder / "run"
