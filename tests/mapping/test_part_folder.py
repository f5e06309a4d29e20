"""A map goes on from whole blocks of the very inputs that are there: damaged blocks go, changed inputs are refused."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from landfuse import files
from landfuse.bundles.description import Description, ModelSpec
from landfuse.bundles.predictor import About
from landfuse.errors import ChangedInputError, OutputError
from landfuse.mapping.predict import predict
from landfuse.rasters.geotiff import GdalRaster
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.matlab import open_mat
from landfuse.rasters.raster import Raster, files_of
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import simulate_flat

FLAT = simulate_flat(48, 48, {"a": 1})


class Signs:
    """Class 0 where the centre pixel of a view is above zero, else class 1."""

    stand_ins: Mapping[str, float] = {}
    channels = {"a": 1}
    view = 3
    marks_missing = on_gpu = False
    nbytes = 0
    about = About("Signs", 0, "NumPy", np.__version__)
    identity = {"the model": "signs"}

    def __init__(self, scene: Scene) -> None:
        infos = {name: part.info for name, part in scene.modalities.items()}
        self.description = Description(ModelSpec("signs"), infos, (), scene.legend, view=3, core=1, stride=1)

    def predictor(self, options: Any) -> Signs:
        return self

    def complete(self, scene: Scene) -> Scene:
        return scene

    def prepare(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values

    def logits(self, window: Window, prepared: Any, batches: Any) -> Iterator[NDArray[np.float32]]:
        for corners in batches:
            rows, cols = (corners - (window.row, window.col)).T
            above = prepared["a"][0, rows, cols] > 0
            found = np.full((len(corners), len(self.description.legend), 1, 1), -9, np.float32)
            found[:, 0, 0, 0], found[:, 1, 0, 0] = above, ~above
            yield found


def write(path: Path, fill: float, driver: str = "GTiff") -> None:
    import rasterio

    values = np.where(FLAT.read("a", FLAT.grid.window) > 0, fill, -fill).astype(np.float32)
    place = rasterio.Affine(*FLAT.grid.transform)
    with rasterio.open(
        path, "w", driver=driver, height=48, width=48, count=1, dtype="float32", crs=FLAT.grid.crs, transform=place
    ) as file:
        file.write(values)


def write_vrt(path: Path, source: str) -> None:
    path.write_text(
        '<VRTDataset rasterXSize="48" rasterYSize="48"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )


def write_zip(path: Path, member: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(member, "a.tif")


NOTES = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>{}</NoDataValue></PAMRasterBand></PAMDataset>"


def tif(folder: Path, fill: float) -> Raster:
    write(folder / "a.tif", fill)
    return GdalRaster(str(folder / "a.tif"))


def vrt_of_vrt(folder: Path, fill: float) -> Raster:
    write(folder / "a.tif", fill)
    write_vrt(folder / "inner.vrt", "a.tif")
    write_vrt(folder / "outer.vrt", "inner.vrt")
    return GdalRaster(str(folder / "outer.vrt"))


def notes_of_a_source(folder: Path, fill: float) -> Raster:
    if not (folder / "a.tif").exists():
        vrt_of_vrt(folder, 1)
    (folder / "a.tif.aux.xml").write_text(NOTES.format(f"{fill - 1:g}"))
    return GdalRaster(str(folder / "outer.vrt"))


def archive(folder: Path, fill: float) -> Raster:
    write(folder / "a.tif", fill)
    write_zip(folder / "a.zip", folder / "a.tif")
    (folder / "a.tif").unlink()
    return GdalRaster(f"/vsizip/{folder / 'a.zip'}/a.tif")


def header(folder: Path, fill: float) -> Raster:
    if not (folder / "a.img").exists():
        write(folder / "a.img", 1, "ENVI")
    words = (folder / "a.hdr").read_text()
    (folder / "a.hdr").write_text(words.replace("byte order = 0", f"byte order = {fill - 1:g}"))
    return GdalRaster(str(folder / "a.img"))


def matlab(folder: Path, fill: float) -> Raster:
    scipy.io.savemat(folder / "a.mat", {"a": np.full((48, 48), fill)})
    return replace(open_mat(folder / "a.mat", "a", "HW"), grid=FLAT.grid)


@pytest.fixture(autouse=True)
def _rasters_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.rasters.raster._SMALL", 1500)  # that of a.tif is not looked into


def scene_of(raster: Raster) -> Scene:
    return replace(FLAT, modalities={"a": SceneModality(raster)})


def stop(done: int, total: int) -> None:
    if done > total / 2:
        raise RuntimeError("interrupted")


def put_back(folder: Path, times: dict[Path, int]) -> None:
    """Gives files that changed their former times."""
    for path, time in times.items():
        if path.exists():
            os.utime(path, ns=(time, time))


Change = Callable[[Path, float], Raster]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (tif, "a.tif"),
        (vrt_of_vrt, "a.tif"),
        (notes_of_a_source, "a.tif.aux.xml"),
        (archive, "a.zip"),
        (header, "a.hdr"),
        (matlab, "a.mat"),
    ],
)
def test_changed_inputs_are_refused_and_named(make: Change, named: str, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    scene = scene_of(make(folder, 1))
    assert str(folder / named) in files_of(scene.modalities["a"].raster)
    with pytest.raises(RuntimeError):
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=stop)
    before = {path: path.stat() for path in folder.iterdir()}
    make(folder, 2)
    assert (folder / named).stat().st_size == before[folder / named].st_size
    put_back(folder, {path: status.st_mtime_ns for path, status in before.items()})  # only the values are others
    for _ in range(2):
        with pytest.raises(ChangedInputError, match=rf"input changed: [^\n]*/{named}[,\n]") as raised:
            predict(Signs(scene), scene, tmp_path / "map.tif", block=16)
        assert raised.value.exit_code == 3
        assert not (tmp_path / "map.tif").exists()
    predict(Signs(scene), scene, tmp_path / "map.tif", block=16, restart=True)


def copy_in_place(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def test_the_same_values_in_another_file_are_gone_on_with(tmp_path: Path) -> None:
    scene = scene_of(tif(tmp_path, 1))
    predict(Signs(scene), scene, tmp_path / "whole.tif")
    with pytest.raises(RuntimeError):
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=stop)
    copy_in_place(tmp_path / "a.tif")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")  # as a viewer leaves it
    first: list[int] = []
    predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=lambda done, total: first.append(done))
    assert first[0] == 4 * 256
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    with pytest.raises(RuntimeError):
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=stop)
    os.utime(tmp_path / "a.tif", ns=(1, 1))
    with pytest.raises(ChangedInputError, match=r"a\.tif\n"):
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16)


@pytest.mark.parametrize("fill", [0, 1, 2])
def test_what_changes_while_it_is_mapped(fill: float, tmp_path: Path) -> None:
    scene = scene_of(tif(tmp_path, 1))
    time = (tmp_path / "a.tif").stat().st_mtime_ns

    def change(done: int, total: int) -> None:
        if done == total:
            (tmp_path / "a.tif").unlink()
            if fill:
                tif(tmp_path, fill)
            put_back(tmp_path, {tmp_path / "a.tif": time})

    if fill == 1:
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=change)
        return
    with pytest.raises(ChangedInputError, match=r"a\.tif\n"):
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=change)
    assert not (tmp_path / "map.tif").exists()


def test_a_finished_map_of_other_inputs_is_no_finished_map(tmp_path: Path) -> None:
    scene = scene_of(tif(tmp_path, 1))
    path = predict(Signs(scene), scene, tmp_path / "map.tif", block=16, keep=True)
    copy_in_place(tmp_path / "a.tif")
    made = path.stat().st_mtime_ns
    predict(Signs(scene), scene, path, block=16, keep=True)
    assert path.stat().st_mtime_ns == made
    tif(tmp_path, 2)
    with pytest.raises(ChangedInputError, match=r"a\.tif\n"):
        predict(Signs(scene), scene, path, block=16, keep=True)


def test_what_a_killed_command_left_goes_at_the_next_start(tmp_path: Path) -> None:
    scene = scene_of(tif(tmp_path, 1))
    with subprocess.Popen(["true"]) as ended:
        pass
    (tmp_path / "map.tif.parts").mkdir()
    for name in (".map.png", "map.tif.parts/.00000000-00000000.tif"):
        (tmp_path / f"{name}.{files._HOST}-{ended.pid}-01234567.part").touch()
    with pytest.raises(RuntimeError):
        predict(Signs(scene), scene, tmp_path / "map.tif", block=16, progress=stop)
    assert [path.name for path in tmp_path.rglob(".*.part")] == []
    assert (tmp_path / "map.tif.parts").exists(), "from it mapping goes on"


def test_the_folder_of_a_finished_map_is_in_the_way_of_no_other_one(tmp_path: Path) -> None:
    scene = scene_of(tif(tmp_path, 1))
    path = predict(Signs(scene), scene, tmp_path / "map.tif", block=16, keep=True)
    predict(Signs(scene), scene, path, block=24, confidence=True)
    assert not (tmp_path / "map.tif.parts").exists()
    with pytest.raises(RuntimeError):
        predict(Signs(scene), scene, path, block=16, progress=stop)
    with pytest.raises(OutputError, match="holds blocks of another map"):
        predict(Signs(scene), scene, path, block=24)


def swap(parts: list[Path]) -> None:
    one, two = (path.read_bytes() for path in parts[:2])
    parts[0].write_bytes(two)
    parts[1].write_bytes(one)


def flip(parts: list[Path]) -> None:
    content = bytearray(parts[0].read_bytes())
    content[200] ^= 1
    parts[0].write_bytes(content)


def cut(parts: list[Path]) -> None:
    parts[0].write_bytes(parts[0].read_bytes()[:300])


def empty(parts: list[Path]) -> None:
    parts[0].write_bytes(b"")


def other_size(parts: list[Path]) -> None:
    write_raster(parts[0], FLAT.grid, np.zeros((1, 48, 48), np.uint8))


@pytest.mark.parametrize(("harm", "lost"), [(swap, 2), (flip, 1), (cut, 1), (empty, 1), (other_size, 1)])
def test_damaged_blocks_are_mapped_again(
    harm: Callable[[list[Path]], None], lost: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict(Signs(FLAT), FLAT, tmp_path / "whole.tif")
    with pytest.raises(RuntimeError):
        predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16, progress=stop)
    parts = sorted((tmp_path / "map.tif.parts").glob("*.tif"))
    harm(parts)
    first: list[int] = []
    with caplog.at_level(logging.WARNING, "landfuse"):
        predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16, progress=lambda done, total: first.append(done))
    assert caplog.text.count("is damaged: its block is mapped again") == lost
    assert first[0] == (len(parts) - lost) * 256
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_blocks_that_are_damaged_before_they_are_joined(tmp_path: Path) -> None:
    def harm(done: int, total: int) -> None:
        if done == total:
            cut(sorted((tmp_path / "map.tif.parts").glob("*.tif")))

    with pytest.raises(OutputError, match="lost 1 blocks before they were joined"):
        predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16, progress=harm)
    predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16)


def test_blocks_of_an_earlier_version_are_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "map.tif.parts"
    with pytest.raises(RuntimeError):
        predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16, progress=stop)
    words = (folder / "settings.json").read_text()
    (folder / "settings.json").write_text(words.replace('"the version of the blocks": "2",', ""))
    with pytest.raises(OutputError, match=r"other is the version of the blocks\n(.|\n)*--restart"):
        predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16)
    predict(Signs(FLAT), FLAT, tmp_path / "map.tif", block=16, restart=True)
