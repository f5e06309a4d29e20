"""What each part of the year gives, of a small model of time; and its map, which does not depend on the block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import landfuse as lf
from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_array
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.studies.modalities import modality_table
from landfuse.training.train import train

GRID = Grid(40, 48, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
DAYS = ["20230210", "20230420", "20230511", "20230802"]
"""Only those of the second quarter show the class."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four dates, a third of each without data, of `s2`; and `s1`, noise."""
    folder, rng = tmp_path_factory.mktemp("dated"), np.random.default_rng(0)
    classes = (np.indices((40, 48)).sum(axis=0) // 6 % 2).astype(np.uint8)
    for number, day in enumerate(DAYS):
        values = rng.normal(0, 0.3, (2, 40, 48)) + (classes * 2 if number in (1, 2) else 0)
        values[:, rng.random((40, 48)) < 0.33] = np.nan
        write_raster(folder / f"s2_{day}.tif", GRID, values.astype(np.float32), nodata=float("nan"))
    write_raster(folder / "s1.tif", GRID, rng.normal(size=(1, 40, 48)).astype(np.float32), nodata=None)
    write_raster(folder / "labels.tif", GRID, classes, nodata=255)
    scene = {
        "name": "dated",
        "modalities": {"s2": {"path": "s2_{date}.tif", "dates": {}}, "s1": {"path": "s1.tif"}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": "a", "code": 0}, {"name": "b", "code": 1}],
        "split": {"kind": "blocks", "size": 8, "test": 0.3, "validation": 0.2},
    }
    (folder / "scene.yaml").write_text(yaml.safe_dump(scene))
    return folder


def trained(folder: Path, name: str, model: dict[str, object], *more: str) -> Path:
    recipe = {
        "scene": str(folder / "scene.yaml"),
        "model": model,
        "samples": {"batch": 64, "windows": 640},
        "training": {"epochs": 4, "rate": 0.01, "precision": "float32"},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    train(folder / f"{name}.yaml", f"run={folder / name}", *more, progress=False)
    return folder / name


TEMPORAL = {"name": "temporal", "view": 3, "width": 16, "heads": 2, "dropout": 0}


@pytest.fixture(scope="module")
def temporal(folder: Path) -> Path:
    return trained(folder, "temporal", TEMPORAL, "samples.date_dropout=0.3", "samples.modality_dropout={s2: 0.2}")


def test_each_part_of_the_year_is_withheld_from_a_model_of_time(temporal: Path, invoke: object) -> None:
    found = modality_table(temporal)
    rows = {(row.how, *row.withheld): row.scores for row in found.rows}
    assert list(rows) == [
        ("all",),
        ("mean", "s1"),
        ("mean", "s2"),
        ("placeholder", "s2"),
        ("without", "s2 of January-March"),
        ("without", "s2 of April-June"),
        ("without", "s2 of July-September"),
    ]
    assert rows["all",]["OA"] > 0.85
    assert rows["without", "s2 of April-June"]["OA"] < 0.7 < 0.8 < rows["without", "s2 of January-March"]["OA"]
    assert not found.notes
    found.save()
    done = invoke("modalities", temporal)  # type: ignore[operator]
    assert "s1 + s2, without s2 of April-June" in done.output


def test_a_map_of_time_does_not_depend_on_the_block(temporal: Path, tmp_path: Path) -> None:
    scene = lf.open_scene(temporal.parent / "scene.yaml")
    for block in (16, 32, 512):
        lf.predict(temporal, scene, tmp_path / f"{block}.tif", block=block, confidence=True)
    for kind in ("", "_confidence"):
        first, *others = ((tmp_path / f"{block}{kind}.tif").read_bytes() for block in (16, 32, 512))
        assert [one == first for one in others] == [True, True]
    bundle = lf.load_bundle(temporal)
    assert bundle.predictor().view == 6, "four dates of 3 x 3 px count as 6 x 6 px: batches are as much smaller"
    mapped = map_array(bundle, scene)
    assert (mapped != UNLABELLED).all(), "a scene that lacks a droppable sensor here and there is mapped"


def test_another_model_says_why_it_cannot_do_without(folder: Path) -> None:
    small = {"name": "two_branch", "view": 1, "width": 4}
    run = trained(folder, "plain", small, "training.epochs=1", "modalities=[s2]")
    with pytest.raises(ModelError, match=r"one modality(.|\n)*`two_branch` has not learnt(.|\n)*samples.date_dropout"):
        modality_table(run)
    able = trained(folder, "able", small, "training.epochs=1", "modalities=[s2]", "samples.date_dropout=0.3")
    assert [row.withheld for row in modality_table(able).rows[1:]] == [
        (f"s2 of {season}",) for season in ("January-March", "April-June", "July-September")
    ]
