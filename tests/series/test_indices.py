"""Spectral indices of series, by name; the formulas are spyndex's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from landfuse.errors import FaultsError, LandfuseError, MissingExtraError
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import open_scene, read_scene_file

GRID = Grid(4, 5, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32632")
RED, NIR = 1, 2
VALUES = np.random.default_rng(0).uniform(0.01, 0.6, (2, 3, 4, 5)).astype(np.float32)
VALUES[0, RED, 1, 1] = np.nan
VALUES[0, [RED, NIR], 2, 2] = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day, values in zip(("20230401", "20230411"), VALUES, strict=True):
        write_raster(tmp_path / f"{day}.tif", GRID, values, nodata=float("nan"), names=["B03", "B04", "B08"])
    return tmp_path


def write(folder: Path, dates: dict[str, Any], **keys: Any) -> Path:
    modality = {"path": "{date}.tif", "dates": dates, **keys}
    (folder / "scene.yaml").write_text(yaml.safe_dump({"name": "x", "modalities": {"s2": modality}}))
    return folder / "scene.yaml"


def scene(folder: Path, dates: dict[str, Any], **keys: Any) -> Scene:
    pytest.importorskip("spyndex", reason="the optional extra landfuse[indices] is not installed")
    return open_scene(write(folder, dates, **keys))


def ndvi(values: Any) -> Any:
    with np.errstate(invalid="ignore"):
        return (values[:, NIR] - values[:, RED]) / (values[:, NIR] + values[:, RED])


@pytest.mark.parametrize(
    ("dates", "keys"),
    [
        ({}, {"sensor": "Sentinel-2A"}),
        ({"roles": {"N": "B08", "R": "B04"}}, {}),
        ({}, {"names": ["green", "red", "nir"]}),
        ({}, {"names": ["G", "R", "N"]}),
    ],
)
def test_an_index_is_a_further_band(folder: Path, dates: Any, keys: Any) -> None:
    found = scene(folder, {"indices": ["NDVI"], **dates}, **keys)
    info = found.modalities["s2"].info
    assert (info.bands, info.per_step, info.names[3]) == (8, 4, "2023-04-01 NDVI")
    values = found.read("s2", GRID.window).reshape(2, 4, 4, 5)
    np.testing.assert_array_equal(values[:, :3], VALUES)
    np.testing.assert_allclose(values[:, 3], ndvi(VALUES.astype(np.float64)), rtol=1e-5, atol=1e-6)
    assert np.isnan(values[0, 3, [1, 2], [1, 2]]).all()  # no data, and 0 / 0


def test_bands_are_known_by_wavelength() -> None:
    pytest.importorskip("spyndex", reason="the optional extra landfuse[indices] is not installed")
    from landfuse.series.indices import inputs_of

    found = inputs_of("EVI", ["1", "2", "3", "4"], [443, 492, 665, 842], "", {})
    assert {key: found[key] for key in "NRB"} == {"N": 3, "R": 2, "B": 1}
    assert found["g"] == 2.5  # a constant of the formula


def test_the_date_of_the_largest_index(folder: Path) -> None:
    dates = {"every": "1 month", "composite": {"maximum": "NDVI"}}
    values = scene(folder, dates, sensor="Sentinel-2B").read("s2", GRID.window)
    place = np.nan_to_num(ndvi(VALUES), nan=-2).argmax(axis=0)
    np.testing.assert_array_equal(values, np.take_along_axis(VALUES, place[None, None], axis=0)[0])


@pytest.mark.parametrize(
    ("dates", "keys", "message"),
    [
        ({"indices": ["NVDI"]}, {}, "there is no spectral index `NVDI`"),
        ({"indices": ["NDVI"]}, {}, "`NDVI` needs the band N (Near-Infrared (NIR), 760 to 900 nm)"),
        ({"indices": ["NBR"]}, {"sensor": "Sentinel-2A"}, "`NBR` needs the band S2"),
        ({"indices": ["kNDVI"]}, {"sensor": "Sentinel-2A"}, "which is no band"),
    ],
)
def test_an_index_that_bands_do_not_give_is_named(folder: Path, dates: Any, keys: Any, message: str) -> None:
    with pytest.raises(LandfuseError) as error:
        scene(folder, dates, **keys)
    assert message in str(error.value)


def test_without_spyndex_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spyndex", None)
    monkeypatch.delitem(__import__("sys").modules, "landfuse.series.indices", raising=False)
    with pytest.raises(FaultsError) as error:
        read_scene_file(write(folder, {"indices": ["NDVI"]})).scenes()
    assert isinstance(error.value.faults[0], MissingExtraError)
    assert 'pip install "landfuse[indices]"' in str(error.value)
