"""The audit of labels: what is ranked first, what it writes, and that labels stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray
from shapely.geometry import Polygon, box

import landfuse as lf
from landfuse.errors import LandfuseError
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene
from landfuse.studies import label_audit
from landfuse.studies.label_audit import FILES, LabelAudit, audit
from landfuse.training.recipe import Recipe

QUICK = Recipe(scene="arrays:test", model={"name": "forest", "trees": 8, "context": []})
SIDE, FIELD = 48, 6
FIELDS = np.random.default_rng(0).integers(1, 5, (SIDE // FIELD, SIDE // FIELD)).astype(np.uint8)
"""The class of each field, 1 to 4."""
TRUTH = FIELDS.repeat(FIELD, 0).repeat(FIELD, 1)
WRONG = [(1, 2), (4, 0), (6, 5)]
"""Rows and columns of fields whose labels are wrong."""


def image() -> NDArray[np.float32]:
    """A band for each class, and noise: (4, H, W)."""
    noise = np.random.default_rng(1).normal(0, 0.3, (4, SIDE, SIDE))
    return (np.eye(4)[TRUTH - 1].transpose(2, 0, 1) + noise).astype(np.float32)


def spoilt(fields: NDArray[np.uint8]) -> NDArray[np.uint8]:
    fields = fields.copy()
    for place in WRONG:
        fields[place] = fields[place] % 4 + 1
    return fields


def scene_of(labels: NDArray[np.uint8] | None) -> Scene:
    return Scene.from_arrays({"a": image()}, labels, legend=[f"crop {code}" for code in (1, 2, 3, 4)])


@pytest.fixture(scope="module")
def found() -> LabelAudit:
    scene = scene_of(spoilt(FIELDS).repeat(FIELD, 0).repeat(FIELD, 1))
    return audit(scene, QUICK, folds=2, side=FIELD, progress=False)


def test_wrong_labels_come_first(found: LabelAudit) -> None:
    first = found.rows[: len(WRONG)]
    places = [np.argwhere(found.numbers[0] == row.label)[0] // FIELD for row in first]
    assert sorted(map(tuple, places)) == WRONG
    for row, place in zip(first, map(tuple, places), strict=True):
        assert (row.given, row.suggested) == (f"crop {FIELDS[place] % 4 + 1}", f"crop {FIELDS[place]}")
        assert row.pixels == FIELD**2
        assert row.disagree > 0.9
        assert row.score < 0.2
        assert row.doubtful
    assert [row.rank for row in found.rows] == list(range(1, len(found.rows) + 1))
    scores = [row.score for row in found.rows]
    assert scores == sorted(scores)
    assert all(row.margin < 0.5 for row in found.rows if row.doubtful)
    assert found.rows[-1].score > 0.8 < found.rows[-1].margin
    assert np.trace(found.joint) > 20 > found.joint.sum() - np.trace(found.joint) >= len(WRONG)
    assert sum(row.pixels for row in found.rows) == SIDE**2
    assert (found.numbers[0] > 0).all()


def test_files(found: LabelAudit, tmp_path: Path) -> None:
    paths = found.save(tmp_path / "audit", pictures=3)
    assert [path.name for path in paths] == list(FILES)
    table = pd.read_csv(paths[0])
    assert table["rank"].tolist() == list(range(1, len(found.rows) + 1))
    assert {"tile", "label", "given", "suggested", "score", "pixels", "disagree", "x", "y"} <= set(table)
    shapes = geopandas.read_file(paths[1])
    assert shapes.area.tolist() == [(found.numbers[0] == label).sum() for label in shapes["label"]]
    page = paths[2].read_text()
    assert page.count("<section") == page.count("<svg") == page.count("<img") == 3
    assert f"3 most doubtful of {len(found.rows)}" in page
    side, path = re.search(r'viewBox="0 0 (\d+) \d+"><path d="M([^Z]+)Z"', page).groups()  # type: ignore[union-attr]
    shape = Polygon([[float(part) for part in place.split(",")] for place in path.split("L")])
    assert shape.area == found.rows[0].pixels
    assert np.abs(np.subtract(shape.centroid.coords[0], int(side) / 2)).max() <= 0.5, "in the middle of the picture"
    assert f"label {found.rows[0].label} in" in page
    with pytest.raises(LandfuseError, match="is there already"):
        found.save(tmp_path / "audit")
    found.save(tmp_path / "audit", pictures=0, overwrite=True)


def test_polygons_are_judged_whole_by_the_command(tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    grid = Grid(SIDE, SIDE, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
    fields = spoilt(FIELDS)
    places = [(row, col) for row in range(len(fields)) for col in range(len(fields))]
    shapes = [box(5e5 + 60 * col, 54e5 - 60 * row - 50, 5e5 + 60 * col + 50, 54e5 - 60 * row) for row, col in places]
    names = [f"crop {fields[place]}" for place in places]
    geopandas.GeoDataFrame({"kind": names}, geometry=shapes, crs=grid.crs).to_file(tmp_path / "labels.gpkg")
    write_raster(tmp_path / "a.tif", grid, image())
    text = {
        "name": "fields",
        "modalities": {"a": {"path": "a.tif"}},
        "labels": {"polygons": ["labels.gpkg"], "attribute": "kind"},
        "legend": [{"name": f"crop {code}"} for code in (1, 2, 3, 4)],
        "split": {"kind": "blocks", "size": 8, "buffer": 1},
    }
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    recipe = {"scene": "scene.yaml", "model": QUICK.model, "split": {"validation": 0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = (tmp_path / "labels.gpkg").read_bytes()
    words = "audit", tmp_path, "--recipe", tmp_path / "recipe.yaml", "--folds", 2, "-o", tmp_path / "out", "-q"
    code, out, err = landfuse(*words)
    assert code == 0, err
    assert "of 64 labels are more probably of another class" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES), "the models are not kept"
    shown = geopandas.read_file(tmp_path / "out" / "labels.gpkg")
    assert shown.crs == grid.crs
    assert {
        places[next(n for n, s in enumerate(shapes) if s.contains(p))] for p in shown.representative_point()[:3]
    } == {*WRONG}
    assert shown.area.tolist() == [2500.0] * 64
    assert (tmp_path / "labels.gpkg").read_bytes() == before
    code, _, err = landfuse(*words)
    assert code == 2
    assert "is there already" in err


def test_it_goes_on_where_it_was_interrupted(
    found: LabelAudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, train_on = [], label_audit.train_on

    def counted(recipe: Recipe, read: Any, **options: Any) -> Any:
        trained.append(Path(str(recipe.run)).name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_on(recipe, read, **options)

    monkeypatch.setattr(label_audit, "train_on", counted)
    with pytest.raises(KeyboardInterrupt):
        audit(found.scenes, QUICK, folds=2, side=FIELD, folder=tmp_path, progress=False)
    assert (tmp_path / "folds" / "0" / "scores.json").exists()
    again = audit(found.scenes, QUICK, folds=2, side=FIELD, folder=tmp_path, progress=False)
    assert not any(tmp_path.iterdir())
    assert again.rows == found.rows


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones_like(TRUTH), "all labels are of one class"),
        (np.zeros_like(TRUTH), "no pixel is labelled"),
        (None, "has no labels"),
        (np.where(np.arange(SIDE) < 2, TRUTH, 0) * (np.arange(SIDE) < 12)[:, None], "fewer than 40 blocks|at least 40"),
    ],
    ids=["one class", "no label", "no labels at all", "fewer places than folds"],
)
def test_labels_that_cannot_be_judged(labels: NDArray[np.uint8] | None, message: str) -> None:
    with pytest.raises(LandfuseError, match=message):
        lf.audit(scene_of(labels), QUICK, folds=40, progress=False)
    for options in ({"folds": 1}, {"side": 0}):
        with pytest.raises(LandfuseError, match="2 to 200 folds, and a side of at least 1 px"):
            lf.audit(scene_of(labels), QUICK, **options)


def test_a_class_in_one_place_is_not_judged() -> None:
    """No other fold has it: a model that never saw it would call it wrong."""
    labels = TRUTH.copy()
    labels[labels == 4] = 0
    labels[20:22, 20:22] = 4
    found = audit(scene_of(labels), QUICK, folds=2, side=FIELD, progress=False)
    assert "crop 4" not in {row.given for row in found.rows}
    assert "1 labels are not judged, of crop 4" in found.notes[0]
