"""Embeddings as a modality: numbers that are signed roots, as AlphaEarth's, beside a second sensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import landfuse as lf
from landfuse.errors import LandfuseError
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene_file import open_scene

GRID = Grid(48, 48, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), "EPSG:32632")
DECODE = {"kind": "signed_square", "divide": 127.5}


def test_numbers_become_signed_squares_and_nodata_is_that_of_the_file() -> None:
    numbers = np.array([-128, -127, -64, 0, 1, 127], np.int8).reshape(1, 1, 6)
    # Google's definition of Satellite Embedding V1: divided by 127.5, squared, with the sign.
    truth = [np.nan, -((127 / 127.5) ** 2), -((64 / 127.5) ** 2), 0.0, (1 / 127.5) ** 2, (127 / 127.5) ** 2]
    found = Decoding(nodata=-128, scale=1.0, offset=0.0, signed_square=127.5)(numbers)
    np.testing.assert_allclose(found.ravel(), truth, rtol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 8 bands for two of three classes, and SAR for the third. Not to be written to."""
    folder, rng = tmp_path_factory.mktemp("embeddings"), np.random.default_rng(0)
    truth = np.add.outer(np.arange(48) // 6, np.arange(48) // 6) % 3
    directions = rng.normal(size=(2, 8))
    vectors = directions[np.minimum(truth, 1)].transpose(2, 0, 1) + rng.normal(0, 0.2, (8, 48, 48))
    vectors /= np.linalg.norm(vectors, axis=0)
    stored = np.rint(np.sign(vectors) * np.sqrt(np.abs(vectors)) * 127.5).clip(-127, 127).astype(np.int8)
    stored[:, :3, :4] = -128
    write_raster(folder / "aef.tif", GRID, stored, nodata=-128)
    write_raster(folder / "s1.tif", GRID, rng.normal(-12 + 8.0 * (truth == 2), 1, (2, 48, 48)).astype("f4"))
    write_raster(folder / "labels.tif", GRID, (truth + 1).astype(np.uint8))
    np.savez(folder / "truth.npz", vectors=vectors, truth=truth)
    return folder


def scene_file(folder: Path, place: Path, **aef: Any) -> Path:
    text = {
        "name": "here",
        "root": str(folder),
        "modalities": {"aef": {"path": "aef.tif", **aef}, "s1": {"path": "s1.tif", "units": "dB"}},
        "labels": {"path": "labels.tif"},
        "legend": [{"name": "bare"}, {"name": "crop"}, {"name": "trees"}],
        "split": {"kind": "blocks", "size": 6, "test": 0.4},
    }
    (place / "scene.yaml").write_text(yaml.safe_dump(text))
    return place / "scene.yaml"


def test_a_scene_reads_the_vectors_whatever_the_block(folder: Path, tmp_path: Path) -> None:
    scene = open_scene(scene_file(folder, tmp_path, decode=DECODE))
    whole = scene.read("aef", GRID.window)
    assert np.isnan(whole[:, :3, :4]).all()
    known = np.isfinite(whole)
    np.testing.assert_allclose(whole[known], np.load(folder / "truth.npz")["vectors"][known], atol=0.01)
    for block in blocks(48, 48, 13):
        np.testing.assert_array_equal(scene.read("aef", block), whole[:, *block.within(GRID.window)])
    assert scene.read("aef", Window(0, 0, 2, 2)).dtype == np.float32


@pytest.mark.parametrize("model", ["forest", "two_branch"])
def test_models_learn_from_embeddings_and_sar_and_refuse_what_is_decoded_otherwise(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landfuse.training.train.save", lambda *_: None)
    settings: dict[str, Any] = (
        {"trees": 10} if model == "forest" else {"view": 3, "width": 8, "epochs": 4, "rate": 0.01}
    )
    scene = open_scene(scene_file(folder, tmp_path, decode=DECODE))
    classifier = lf.Classifier(model, **settings)
    classifier.fit(scene, split={"kind": "blocks", "size": 6, "test": 0.4}, progress=False)
    assert classifier.run.scores["test"]["OA"] > 0.9
    classifier.save(tmp_path / "bundle")
    bundle = lf.load(tmp_path / "bundle")
    assert bundle.description.modalities["aef"].decode == "signed_square 127.5"
    a, b = (lf.predict(bundle, scene, tmp_path / f"{side}.tif", block=side) for side in (12, 48))
    assert a.read_bytes() == b.read_bytes()
    for other in ({}, {"decode": {**DECODE, "divide": 127.0}}):
        with pytest.raises(LandfuseError, match="as `decode` of `aef`"):
            lf.predict(bundle, open_scene(scene_file(folder, tmp_path, **other)), tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()


def test_a_decoding_beside_a_scale_is_refused(folder: Path, tmp_path: Path) -> None:
    for other in ({"scale": 0.1}, {"decibel": True}):
        with pytest.raises(LandfuseError, match="`decode` stands in place of"):
            open_scene(scene_file(folder, tmp_path, decode=DECODE, **other))
