"""The map does not depend on how the scene was cut (P1), memory not on its size (P2), and a file is whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from landfuse.classifier import Classifier, ModelSpec, note
from landfuse.errors import FaultsError, OutputError, SettingsError
from landfuse.layers.pixel_map import PixelMap
from landfuse.legend import UNLABELLED
from landfuse.models.base import FusionModel, Modality
from landfuse.predict import batch_size, beside, confidence_of, map_array, map_blocks, predict
from landfuse.scenes.grid import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.scenes.simulate import SimulatedRaster, simulate_flat

K = 3


class WholeView(FusionModel):
    """Every core pixel's logits weigh every pixel of the view, in whole numbers, which add up exactly in any order."""

    def __init__(self, modalities: dict[str, Modality], view: int, core: int) -> None:
        super().__init__(modalities, K, view=view, core=core)
        random = np.random.default_rng(view * 100 + core)
        self.weights = {
            name: torch.from_numpy(
                random.integers(-3, 4, (m.channels * (view * m.zoom) ** 2, K * core * core)).astype(np.float32)
            )
            for name, m in modalities.items()
        }

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        total = sum(images[name].flatten(1) @ weight for name, weight in self.weights.items())
        assert isinstance(total, Tensor)
        return total.view(-1, K, self.core, self.core)


class _Whole:
    """Small whole numbers in every band, with holes."""

    def __init__(self, bands: int, seed: int, holes: float) -> None:
        self.bands, self.seed, self.holes = bands, seed, holes

    def __call__(self, window: Window) -> NDArray[np.float32]:
        values = np.random.default_rng(self.seed).integers(-4, 5, (self.bands, 120, 120)).astype(np.float32)
        values[:, np.random.default_rng(self.seed + 1).random((120, 120)) < self.holes] = np.nan
        return values[:, *window.within(Window(0, 0, 120, 120))].copy()


def whole_scene(height: int, width: int, zoom: int = 1, holes: float = 0.02) -> Scene:
    flat = simulate_flat(height, width, {"a": 1})
    a = SimulatedRaster(flat.grid, 2, _Whole(2, 1, holes), "a")
    b = SimulatedRaster(flat.grid.zoomed(zoom), 1, _Whole(1, 5, holes), "b")
    legend = replace(flat.legend, classes=flat.legend.classes[:K])
    return replace(flat, modalities={"a": SceneModality(a), "b": SceneModality(b, zoom)}, legend=legend)


def classifier_of(scene: Scene, view: int, core: int, stride: int | None = None) -> Classifier:
    maps = {
        name: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for name, m in scene.modalities.items()
    }
    notes = {name: note(scene, name) for name in maps}
    modalities = {name: Modality(m.channels, notes[name].zoom) for name, m in maps.items()}
    return Classifier(ModelSpec("fake"), maps, notes, scene.legend, stride, WholeView(modalities, view, core))


def plain_map(classifier: Classifier, scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Classes and mean logits, window by window over the whole lattice, in one plain loop."""
    model, stride = classifier.model, classifier.stride
    height, width = scene.grid.height, scene.grid.width
    total = np.zeros((K, height + model.core, width + model.core), np.float64)
    count = np.zeros((height + model.core, width + model.core))
    valid = np.ones((height, width), bool)
    for name, m in scene.modalities.items():
        fine = np.isfinite(scene.read(name, scene.grid.window)).all(axis=0)
        valid &= fine.reshape(height, m.zoom, width, m.zoom).all(axis=(1, 3))
    row = 0
    while True:
        col = 0
        while True:
            view = Window(row - model.halo, col - model.halo, model.view, model.view)
            images = {n: torch.from_numpy(np.nan_to_num(scene.read(n, view)))[None] for n in scene.modalities}
            core = slice(row, row + model.core), slice(col, col + model.core)
            total[:, *core] += model(images)[0].numpy()
            count[core] += 1
            if col + model.core >= width:
                break
            col += stride
        if row + model.core >= height:
            break
        row += stride
    mean = (total.astype(np.float32) / np.maximum(count, 1).astype(np.float32))[:, :height, :width]
    assert (count[:height, :width] >= 1).all()
    return np.where(valid, mean.argmax(axis=0), UNLABELLED).astype(np.uint8), mean


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 28),
    st.integers(1, 28),
    st.sampled_from([(1, 1, 1), (5, 1, 1), (6, 4, 4), (6, 4, 3), (8, 8, 2), (9, 5, 1), (16, 16, 16)]),
    st.integers(1, 30),
    st.sampled_from([None, 1, 3, 64]),
    st.sampled_from([1, 2]),
)
def test_any_cut_gives_the_map_of_a_plain_loop(
    height: int, width: int, shape: tuple[int, int, int], block: int, batch: int | None, zoom: int
) -> None:
    scene = whole_scene(height, width, zoom)
    classifier = classifier_of(scene, *shape)
    classes, logits = plain_map(classifier, scene)
    for part in map_blocks(classifier, scene, block=block, batch=batch):
        place = part.window.within(scene.grid.window)
        np.testing.assert_array_equal(part.classes, classes[place])
        known = part.classes != UNLABELLED
        np.testing.assert_array_equal(part.logits.numpy()[:, known], logits[:, *place][:, known])
    np.testing.assert_array_equal(map_array(classifier, scene, block=block, batch=batch), classes)


def test_wanted_pixels_are_as_in_the_whole_map() -> None:
    scene = whole_scene(40, 33)
    classifier = classifier_of(scene, 8, 6, 4)
    whole = map_array(classifier, scene)
    wanted = np.zeros((40, 33), bool)
    wanted[3:9, 20:30] = wanted[39, 0] = True
    parts = list(map_blocks(classifier, scene, block=10, wanted=wanted))
    assert len(parts) == 2, "blocks without such a pixel are skipped"
    found = np.full_like(whole, UNLABELLED)
    for part in parts:
        found[part.window.within(scene.grid.window)] = part.classes
    np.testing.assert_array_equal(found, np.where(wanted, whole, UNLABELLED))


@pytest.mark.parametrize(
    ("view", "views", "expected"), [(1, 10**7, 8192), (11, 10**7, 512), (11, 100, 128), (128, 9, 4)]
)
def test_batches_leave_no_rest(view: int, views: int, expected: int) -> None:
    """Of fewer than 64 numbers, which element-wise kernels round otherwise than the others."""
    assert batch_size(view, views) == expected


def test_real_networks_give_the_same_bytes_in_any_blocks() -> None:
    scene = simulate_flat(50, 61, {"a": 3, "b": 2})
    torch.manual_seed(0)
    for spec, stride in (
        (ModelSpec("two_branch", {"view": 5, "width": 8}), None),
        (ModelSpec("stacked", {"view": 32, "core": 24, "architecture": "Linknet", "encoder": "tu-test_resnet"}), 16),
    ):
        maps = {"a": PixelMap(torch.randn(2, 3), torch.randn(2)), "b": PixelMap(torch.rand(2), torch.rand(2))}
        notes = {name: note(scene, name) for name in maps}
        classifier = Classifier(spec, maps, notes, scene.legend, stride)
        probabilities = [np.zeros((4, 50, 61), np.float32) for _ in range(3)]
        for block, whole in zip((512, 17, 32), probabilities, strict=True):
            for part in map_blocks(classifier, scene, block=block):
                whole[:, *part.window.within(scene.grid.window)] = part.probabilities
        assert probabilities[0].any()
        np.testing.assert_array_equal(probabilities[1], probabilities[0])
        np.testing.assert_array_equal(probabilities[2], probabilities[0])


def test_the_file_is_georeferenced_and_coloured(tmp_path: Path) -> None:
    scene = whole_scene(40, 33)
    classifier = classifier_of(scene, 5, 3)
    told: list[tuple[int, int]] = []
    path = predict(
        classifier,
        scene,
        tmp_path / "new" / "map.tif",
        block=16,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (40 * 33, 40 * 33)
    classes = map_array(classifier, scene)
    assert (classes == UNLABELLED).any()
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), scene.legend.to_codes(classes))
        assert file.dtypes == ("uint8",)
        assert file.nodata == 255
        assert file.crs.to_epsg() == 32632
        assert tuple(file.transform)[:6] == scene.grid.transform
        assert [file.colormap(1)[c.code][:3] for c in scene.legend] == [c.rgb for c in scene.legend]
        assert file.tags()["landfuse_model"] == "fake"
    names = (tmp_path / "new" / "map.tif.aux.xml").read_text()
    assert "<Category>field 2</Category>" in names
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_probabilities_and_confidence(tmp_path: Path) -> None:
    scene = whole_scene(20, 33)
    classifier = classifier_of(scene, 5, 3)
    with torch.no_grad():
        model = classifier.model
        assert isinstance(model, WholeView)
        model.weights = {name: weight / 50 for name, weight in model.weights.items()}
    path = predict(classifier, scene, tmp_path / "map.tif", probabilities=True, confidence=True)
    [part] = map_blocks(classifier, scene)
    missing = part.classes == UNLABELLED
    assert missing.any()
    with rasterio.open(beside(path, "probabilities")) as file:
        shares = file.read()
        assert file.descriptions == tuple(scene.legend.names)
        assert file.scales == (1 / 250,) * K
        assert file.nodata == 255
    assert (shares[:, missing] == 255).all()
    known = shares[:, ~missing]
    np.testing.assert_allclose(known / 250, part.probabilities[:, ~missing], atol=0.5 / 250 + 1e-6)
    assert (np.abs(known.sum(axis=0, dtype=int) - 250) <= K).all()
    best = np.sort(part.probabilities, axis=0)
    with rasterio.open(beside(path, "confidence")) as file:
        np.testing.assert_array_equal(file.read(1) == 255, missing)
        np.testing.assert_allclose(file.read(1)[~missing] / 250, (best[-1] - best[-2])[~missing], atol=0.5 / 250 + 1e-6)
    assert (confidence_of(np.ones((1, 2, 2), np.float32)) == 1).all()


def test_what_is_wrong_is_told_before_a_file_is_there(tmp_path: Path) -> None:
    scene = whole_scene(20, 33)
    classifier = classifier_of(scene, 5, 3)
    with pytest.raises(FaultsError, match="no modality `b`"):
        predict(classifier, replace(scene, modalities={"a": scene.modalities["a"]}), tmp_path / "map.tif")
    with pytest.raises(SettingsError, match="block is 0 px"):
        predict(classifier, scene, tmp_path / "map.tif", block=0)
    with pytest.raises(OutputError, match="cannot be written"):
        predict(classifier, scene, "/dev/null/map.tif")
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        predict(classifier, scene, tmp_path / "folder.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.tif"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    scene = whole_scene(60, 60)
    classifier = classifier_of(scene, 5, 3)
    (tmp_path / "map.tif").write_bytes(b"the map of yesterday")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise error

    with pytest.raises(error):
        predict(classifier, scene, tmp_path / "map.tif", block=16, probabilities=True, confidence=True, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]
    assert (tmp_path / "map.tif").read_bytes() == b"the map of yesterday"


_MAPPING = """
import sys
import torch
from landfuse.classifier import Classifier, ModelSpec, note
from landfuse.layers.pixel_map import PixelMap
from landfuse.models.base import FusionModel, Modality
from landfuse.predict import predict
from landfuse.scenes.simulate import simulate_flat

class Mean(FusionModel):
    def forward(self, images):
        return images["a"].mean(dim=(2, 3), keepdim=True)[:, :4].expand(-1, 4, self.core, self.core)

side, path, slow = int(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
scene = simulate_flat(side, side, {"a": 8})
maps = {"a": PixelMap(torch.ones(8), torch.zeros(8))}
model = Mean({"a": Modality(8)}, 4, view=48, core=32)
classifier = Classifier(ModelSpec("mean"), maps, {"a": note(scene, "a")}, scene.legend, model=model)
if slow:
    import time
    def progress(done, total):
        print("mapping", flush=True)
        time.sleep(0.2)
    predict(classifier, scene, path, block=64, progress=progress)
else:
    predict(classifier, scene, path, block=256)
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    peaks = {}
    for side in (512, 1536):
        command = [sys.executable, "-c", _MAPPING, str(side), str(tmp_path / "map.tif")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[side] = int(done.stdout.split()[-1]) / 1024  # MiB; the larger scene alone would be 72
    assert peaks[1536] - peaks[512] < 25, peaks


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_map(tmp_path: Path, sent: signal.Signals) -> None:
    command = [sys.executable, "-c", _MAPPING, "512", str(tmp_path / "map.tif"), "slowly"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for _ in range(3):
        assert "mapping" in running.stdout.readline()
    os.kill(running.pid, sent)
    start = time.monotonic()
    running.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert running.returncode != 0
    left = [p.name for p in tmp_path.iterdir()]
    assert not [name for name in left if not name.startswith(".")], "nothing under the final name"
    assert sent == signal.SIGKILL or left == []
