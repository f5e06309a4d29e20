"""The map does not depend on how the scene was cut (P1), memory not on its size (P2), and a file is whole or absent."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate
from torch import Tensor

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import Description, ModelSpec
from landfuse.bundles.predictor import About
from landfuse.errors import FaultsError, IncompleteError, OutputError, SceneError, SettingsError
from landfuse.kernels.gpu import Replayed
from landfuse.legend import UNLABELLED
from landfuse.mapping import engine, window_owners
from landfuse.mapping import predict as mapping
from landfuse.mapping.engine import BlockMap, batch_size, map_array, map_blocks
from landfuse.mapping.map_layers import Layer, beside, confidence_of, entropy_of, layers_of
from landfuse.mapping.predict import Job, Runner, map_parts, predict
from landfuse.mapping.settings import map_options
from landfuse.models.base import FusionModel, Modality
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import CoreWeights, Window, blocks, core_weights, mirrored
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import SimulatedRaster, simulate_flat
from landfuse.views.pixel_map import PixelMap

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


@dataclass(frozen=True)
class _Whole:
    """Small whole numbers in every band, with holes."""

    bands: int
    seed: int
    holes: float

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


def bundle_of(
    scene: Scene, view: int, core: int, stride: int | None = None, weights: CoreWeights = "uniform"
) -> Bundle:
    maps = {
        name: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for name, m in scene.modalities.items()
    }
    notes = {name: scene.modalities[name].info for name in maps}
    modalities = {name: Modality(m.channels, notes[name].zoom) for name, m in maps.items()}
    model = WholeView(modalities, view, core)
    return Bundle(ModelSpec("fake"), maps, notes, scene.legend, stride, model, weights)


def plain_map(bundle: Bundle, scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Classes and weighted mean logits, window by window over the whole lattice, in one plain float64 loop."""
    model, stride = bundle.model, bundle.stride
    height, width = scene.grid.height, scene.grid.width
    total = np.zeros((K, height + model.core, width + model.core), np.float64)
    count = np.zeros((height + model.core, width + model.core))
    along = np.ones(model.core)
    if bundle.weights == "smooth":
        along = np.sin(np.pi * (np.arange(model.core) + 0.5) / model.core) ** 2
    weight = along[:, None] * along
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
            total[:, *core] += weight * model(images)[0].numpy()
            count[core] += weight
            if col + model.core >= width:
                break
            col += stride
        if row + model.core >= height:
            break
        row += stride
    total, count = total[:, :height, :width], count[:height, :width]
    assert (count > 0).all(), "every pixel is in a core"
    mean = (total.astype(np.float32) / count.astype(np.float32)).astype(np.float32)
    return np.where(valid, mean.argmax(axis=0), UNLABELLED).astype(np.uint8), mean


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 28),
    st.integers(1, 28),
    st.sampled_from([(1, 1, 1), (5, 1, 1), (6, 4, 4), (6, 4, 3), (8, 8, 2), (9, 5, 1), (16, 16, 16)]),
    st.integers(1, 30),
    st.sampled_from([None, 1, 3, 64]),
    st.sampled_from([1, 2]),
    st.sampled_from([0.02, 0.7, 0.98]),
)
def test_any_cut_gives_the_map_of_a_plain_loop(
    height: int, width: int, shape: tuple[int, int, int], block: int, batch: int | None, zoom: int, holes: float
) -> None:
    scene = whole_scene(height, width, zoom, holes)
    bundle = bundle_of(scene, *shape)
    classes, logits = plain_map(bundle, scene)
    for part in map_blocks(bundle, scene, block=block, batch=batch):
        place = part.window.within(scene.grid.window)
        np.testing.assert_array_equal(part.classes, classes[place])
        known = part.classes != UNLABELLED
        np.testing.assert_array_equal(part.logits[:, known], logits[:, *place][:, known])
    np.testing.assert_array_equal(map_array(bundle, scene, block=block, batch=batch), classes)


SIZES = st.integers(1, 28)


@st.composite
def lattices(draw: st.DrawFn) -> tuple[int, int, int]:
    """View, core and stride of any kind."""
    core = draw(st.integers(1, 12))
    return core + 2 * draw(st.integers(0, 4)), core, draw(st.integers(1, core))


@settings(deadline=None, max_examples=25)
@given(SIZES, SIZES, lattices(), st.sampled_from([1, 2, 3]), st.data())
def test_smooth_weights_give_the_weighted_mean_and_the_same_bytes_in_any_cut(
    height: int, width: int, shape: tuple[int, int, int], zoom: int, data: st.DataObject
) -> None:
    scene = whole_scene(height, width, zoom)
    bundle = bundle_of(scene, *shape, weights="smooth")
    _, expected = plain_map(bundle, scene)
    found: list[NDArray[np.float32]] = []
    reported = []
    for block in (512, data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))):
        whole = np.full((K, height, width), np.nan, np.float32)
        times = np.zeros((height, width), int)
        batch = data.draw(st.sampled_from([1, 3, 64]))
        for part in map_blocks(bundle, scene, block=block, batch=batch, progress=reported.append):
            place = part.window.within(scene.grid.window)
            times[place] += 1
            whole[:, *place] = np.where(part.classes == UNLABELLED, np.nan, part.logits)
        assert (times == 1).all(), "each pixel is labelled once"
        assert sum(reported) == height * width, "and reported once"
        reported.clear()
        found.append(whole)
    known = ~np.isnan(found[0])
    np.testing.assert_allclose(found[0][known], expected[known], rtol=1e-4, atol=2e-3)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


class Constant(FusionModel):
    """1 for every pixel of every window, and -1 for the second class."""

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        self.seen = getattr(self, "seen", 0) + len(images["a"])
        return torch.tensor([1.0, -1.0, 0.5])[None, :, None, None].expand(len(images["a"]), -1, self.core, self.core)


def constant_bundle(scene: Scene, view: int, core: int, stride: int, weights: CoreWeights) -> Bundle:
    bundle = bundle_of(scene, view, core, stride, weights)
    bundle.model = Constant(bundle.model.modalities, K, view=view, core=core)
    return bundle


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("core", [1, 4])
def test_where_logits_are_not_finite_there_is_no_class(
    wrong: float, core: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = whole_scene(8, 8, holes=0)
    bundle = constant_bundle(scene, core, core, core, "uniform")
    assert (map_array(bundle, scene) == 0).all()
    logits = torch.tensor([1.0, wrong, 0.5])[None, :, None, None]
    monkeypatch.setattr(Constant, "forward", lambda self, images: logits.expand(len(images["a"]), -1, core, core))
    assert (map_array(bundle, scene) == UNLABELLED).all()


@settings(deadline=None, max_examples=25)
@given(SIZES, SIZES, lattices(), st.integers(1, 30), st.sampled_from(["uniform", "smooth"]))
def test_the_weights_of_a_pixel_add_up_to_one(
    height: int, width: int, shape: tuple[int, int, int], block: int, weights: CoreWeights
) -> None:
    scene = whole_scene(height, width, holes=0)
    bundle = constant_bundle(scene, *shape, weights)
    for part in map_blocks(bundle, scene, block=block):
        expected = np.broadcast_to(np.float32([1.0, -1.0, 0.5])[:, None, None], part.logits.shape)
        torch.testing.assert_close(part.logits, expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("core", [1, 2, 7, 256, 4096])
def test_core_weights_are_smooth_symmetric_and_above_zero(core: int) -> None:
    weights = core_weights(core, "smooth")
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert (np.outer(weights[[0, -1]], weights[[0, -1]]) > 1e-30).all(), "also in the corners"
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-4)
    assert weights.max() <= 1
    assert core == 1 or np.abs(np.diff(weights)).max() <= 4 / core
    assert (core_weights(core, "uniform") == 1).all()


@pytest.mark.parametrize(("stride", "block"), [(4, 7), (6, 8), (5, 10)])
def test_one_process_computes_each_window_once(stride: int, block: int) -> None:
    scene = whole_scene(41, 38, holes=0)
    bundle = constant_bundle(scene, 10, 6, stride, "uniform")
    list(map_blocks(bundle, scene, block=block, batch=1))
    windows = (-(-(41 - 6) // stride) + 1) * (-(-(38 - 6) // stride) + 1)
    assert bundle.model.seen == windows


@dataclass(frozen=True)
class _Broken:
    """As another raster, but one pixel of it cannot be read."""

    values: Callable[[Window], NDArray[np.float32]]
    row: int
    col: int

    def __call__(self, window: Window) -> NDArray[np.float32]:
        if not window.intersection(Window(self.row, self.col, 1, 1)).empty:
            raise SceneError("a broken tile", "a whole file", "fetch it again")
        return self.values(window)


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, lattices(), st.integers(3, 20), st.sampled_from([0.0, 0.9]), st.data())
def test_blocks_that_are_done_or_broken_change_no_other(
    height: int, width: int, shape: tuple[int, int, int], block: int, holes: float, data: st.DataObject
) -> None:
    scene = whole_scene(height, width, holes=holes)
    bundle = bundle_of(scene, *shape, weights="smooth")
    whole = next(map_blocks(bundle, scene, block=512))
    every = list(blocks(height, width, block))
    todo = [window for window in every if data.draw(st.booleans())]
    raster = scene.modalities["a"].raster
    assert isinstance(raster, SimulatedRaster)
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    broken = replace(raster, source=_Broken(raster.source, row, col))
    scene = replace(scene, modalities=scene.modalities | {"a": SceneModality(broken)})
    faults: set[Window] = set()
    parts = list(map_blocks(bundle, scene, windows=todo, on_fault=lambda window, error: faults.add(window)))
    assert faults.isdisjoint(part.window for part in parts)
    assert faults | {part.window for part in parts} == set(todo)
    for part in parts:
        place = part.window.within(scene.grid.window)
        np.testing.assert_array_equal(part.classes, whole.classes[place])
        known = part.classes != UNLABELLED
        np.testing.assert_array_equal(part.logits[:, known], whole.logits[:, *place][:, known])
    made = engine.Engine(bundle, scene)
    for window in faults:
        reach = made.reach(made.alone(window))
        rows = mirrored(np.arange(reach.row, reach.row + reach.height), height)
        cols = mirrored(np.arange(reach.col, reach.col + reach.width), width)
        assert rows.min() <= row <= rows.max(), "a block fails only of what its windows look at"
        assert cols.min() <= col <= cols.max()


def test_what_is_carried_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = whole_scene(41, 38, holes=0)
    bundle = constant_bundle(scene, 10, 6, 4, "smooth")
    expected = map_array(bundle, scene, block=8)
    once = bundle.model.seen
    monkeypatch.setattr(window_owners, "CARRIED", 0)
    np.testing.assert_array_equal(map_array(bundle, scene, block=8), expected)
    assert once * 2 < bundle.model.seen, "windows for the blocks below were computed again"


def test_lower_precision_computes_in_it_and_gives_the_same_bytes_in_any_blocks() -> None:
    scene = simulate_flat(50, 61, {"a": 3, "b": 2})
    torch.manual_seed(0)
    maps = {"a": PixelMap(torch.randn(2, 3), torch.randn(2)), "b": PixelMap(torch.rand(2), torch.rand(2))}
    notes = {name: scene.modalities[name].info for name in maps}
    bundle = Bundle(ModelSpec("two_branch", {"view": 5, "width": 8}), maps, notes, scene.legend)
    kinds = []
    bundle.model.register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
    logits = {}
    for name, block, precision in (("a", 512, "bfloat16"), ("b", 17, "bfloat16"), ("full", 512, "float32")):
        logits[name] = np.zeros((4, 50, 61), np.float32)
        for part in map_blocks(bundle, scene, block=block, precision=precision):
            logits[name][:, *part.window.within(scene.grid.window)] = part.logits
    assert set(kinds) == {torch.bfloat16, torch.float32}
    np.testing.assert_array_equal(logits["a"], logits["b"])
    difference = np.abs(logits["a"] - logits["full"]).max()
    assert 0 < difference < 0.1 * np.abs(logits["full"]).max()


class RowsAbove(WholeView):
    """Its logits say the fraction of a window's rows above a pixel."""

    layers = ("height",)

    def map_layers(self, images: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self(images)
        rows = torch.arange(self.core)[:, None].expand(self.core, self.core) / self.core
        return logits, {"height": rows.expand(len(logits), 1, -1, -1)}


def test_layers_of_the_model_are_averaged_like_logits(tmp_path: Path) -> None:
    scene = whole_scene(20, 33)
    bundle = bundle_of(scene, 8, 4, 2)
    plain = map_array(bundle, scene)
    bundle.model = RowsAbove(bundle.model.modalities, 8, 4)
    path = predict(bundle, scene, tmp_path / "map.tif", layers=["height"], block=7)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), scene.legend.to_codes(plain))
    with rasterio.open(beside(path, "height")) as file:
        height = file.read(1)
    assert ((height == 255) == (plain == UNLABELLED)).all()
    rows = np.arange(20)
    expected = np.where(rows < 2, rows / 4, np.where(rows >= 18, (rows % 2 + 2) / 4, (rows % 2) / 4 + 0.25))
    expected = np.broadcast_to(np.rint(expected * 250)[:, None], height.shape)
    np.testing.assert_allclose(height[height != 255], expected[height != 255], atol=1)
    with pytest.raises(SettingsError, match=r"has no layer depth(.|\n)*height"):
        predict(bundle, scene, tmp_path / "map.tif", layers=["depth"])


def test_layers_of_whole_numbers_and_of_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = whole_scene(20, 33)

    def rows(part: BlockMap, within: slice, found: NDArray[np.float32]) -> NDArray[np.float32]:
        own = np.arange(part.window.row, part.window.row + part.window.height, dtype=np.float32)[within]
        return np.broadcast_to(own[:, None], found.shape[1:])[None]

    more = [Layer("row", ("row",), rows, steps=1), Layer("far", ("distance",), rows, steps=20)]
    monkeypatch.setattr(mapping, "layers_of", lambda options, known: [*layers_of(options, known), *more])
    path = predict(bundle_of(scene, 8, 4), scene, tmp_path / "map.tif", block=7)
    codes = rasterio.open(path).read(1)
    for name, steps, scale in (("row", 1, 1.0), ("far", 20, 1 / 20)):
        with rasterio.open(beside(path, name)) as file:
            assert (file.scales[0], file.nodata) == (scale, 255)
            expected = np.minimum(np.arange(20)[:, None] * steps, 254)
            np.testing.assert_array_equal(file.read(1), np.where(codes == 255, 255, expected))


def test_wanted_pixels_are_as_in_the_whole_map() -> None:
    scene = whole_scene(40, 33)
    bundle = bundle_of(scene, 8, 6, 4)
    whole = map_array(bundle, scene)
    wanted = np.zeros((40, 33), bool)
    wanted[3:9, 20:30] = wanted[39, 0] = True
    parts = list(map_blocks(bundle, scene, block=10, wanted=wanted))
    assert len(parts) == 2, "blocks without such a pixel are skipped"
    found = np.full_like(whole, UNLABELLED)
    for part in parts:
        found[part.window.within(scene.grid.window)] = part.classes
    np.testing.assert_array_equal(found, np.where(wanted, whole, UNLABELLED))


@pytest.mark.parametrize(
    ("view", "views", "expected", "on_gpu"),
    [(1, 10**7, 65536, 524288), (11, 10**7, 512, 4288), (11, 100, 128, 128), (128, 9, 4, 9), (1024, 9, 1, 1)],
)
def test_batches_leave_no_rest(view: int, views: int, expected: int, on_gpu: int) -> None:
    """Of fewer than 64 numbers, which element-wise kernels round otherwise than the others."""
    assert batch_size(view, views) == expected
    assert batch_size(view, views, on_gpu=True) == on_gpu


def test_real_networks_give_the_same_bytes_in_any_blocks() -> None:
    scene = simulate_flat(50, 61, {"a": 3, "b": 2})
    torch.manual_seed(0)
    for spec, stride in (
        (ModelSpec("two_branch", {"view": 5, "width": 8}), None),
        (ModelSpec("stacked", {"view": 32, "core": 24, "architecture": "Linknet", "encoder": "tu-test_resnet"}), 16),
    ):
        maps = {"a": PixelMap(torch.randn(2, 3), torch.randn(2)), "b": PixelMap(torch.rand(2), torch.rand(2))}
        notes = {name: scene.modalities[name].info for name in maps}
        bundle = Bundle(spec, maps, notes, scene.legend, stride)
        probabilities = [np.zeros((4, 50, 61), np.float32) for _ in range(3)]
        for block, whole in zip((512, 17, 32), probabilities, strict=True):
            for part in map_blocks(bundle, scene, block=block):
                whole[:, *part.window.within(scene.grid.window)] = part.probabilities
        assert probabilities[0].any()
        np.testing.assert_array_equal(probabilities[1], probabilities[0])
        np.testing.assert_array_equal(probabilities[2], probabilities[0])


@pytest.mark.parametrize("block", [512, 17])
def test_every_pass_has_the_same_full_batch(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels differ in their last bits between batch sizes: whatever the block, the last batch is filled up (P1)."""
    scene = whole_scene(40, 33)
    bundle, sizes = bundle_of(scene, 5, 3), set()
    forward = bundle.model.forward
    monkeypatch.setattr(bundle.model, "forward", lambda images: sizes.add(len(images["a"])) or forward(images))
    map_array(bundle, scene, block=block, batch=13)
    assert sizes == {13}


class PlaceMatters:
    """A model, and what runs it, whose logits follow from the place in the batch, as the last bits of a GPU do."""

    stand_ins, channels, nbytes, view, marks_missing = {}, {"a": 1}, 0, 5, False
    about = About("PlaceMatters", 0, "NumPy", np.__version__)
    identity = {"the model": "place"}

    def __init__(self, scene: Scene, core: int, on_gpu: bool) -> None:
        infos = {name: part.info for name, part in scene.modalities.items()}
        self.on_gpu = on_gpu
        self.description = Description(ModelSpec("place"), infos, (), scene.legend, view=5, core=core, stride=core)

    def predictor(self, options: object) -> PlaceMatters:
        return self

    def complete(self, scene: Scene) -> Scene:
        return scene

    def prepare(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values

    def logits(
        self, window: Window, prepared: object, batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.float32]]:
        classes, core = len(self.description.legend), self.description.core
        for corners in batches:
            assert len(corners) == 13, "all batches are full"
            found = corners.sum(axis=1)[:, None] + np.arange(13)[:, None] * 0.01 - np.arange(classes)
            yield np.broadcast_to(found[..., None, None], (13, classes, core, core)).astype(np.float32)


@pytest.mark.parametrize("core", [1, 3])
def test_on_a_gpu_a_window_has_its_own_place_in_a_batch_whatever_the_block(core: int) -> None:
    """Kernels of GPUs differ in their last bits between places of a batch, not with what is at the others (P1)."""
    scene = simulate_flat(50, 61, {"a": 1})

    def logits(on_gpu: bool, block: int) -> NDArray[np.float32]:
        found = np.zeros((4, 50, 61), np.float32)
        for part in map_blocks(PlaceMatters(scene, core, on_gpu), scene, block=block, batch=13):
            found[:, *part.window.within(scene.grid.window)] = part.logits
        return found

    whole = logits(True, 512)
    for block in (7, 17, 32):
        np.testing.assert_array_equal(logits(True, block), whole)
    assert (logits(False, 512) != logits(False, 17)).any(), "the place does matter"


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 64, 512, 4288])
@pytest.mark.parametrize(("rows", "cols"), [(60, 60), (8, 300), (300, 8), (512, 1)])
def test_nearly_all_batches_are_full_where_places_are_fixed(batch: int, rows: int, cols: int) -> None:
    steps = np.argwhere(np.ones((rows, cols), bool)) + np.array([37, 91])
    passes = engine.passes_by_place(steps, batch)
    assert sorted(passes[passes >= 0]) == list(range(rows * cols)), "each window once"
    assert len(passes) <= -(-rows * cols // batch) + 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(
    ("spec", "stride"),
    [
        (ModelSpec("two_branch", {"view": 5, "width": 8}), None),
        (ModelSpec("bdgf", {"view": 7}), None),
        (ModelSpec("refnet", {"view": 64, "core": 48, "encoder": "resnet18", "width": 32}), 40),
        (ModelSpec("stacked", {"view": 64, "core": 48, "architecture": "Unet", "encoder": "resnet18"}), 32),
    ],
)
def test_a_gpu_gives_the_same_bytes_in_any_blocks(spec: ModelSpec, stride: int | None, precision: str) -> None:
    scene = simulate_flat(300, 320, {"a": 3, "b": 2})
    torch.manual_seed(0)
    maps = {"a": PixelMap(torch.ones(3), torch.zeros(3)), "b": PixelMap(torch.ones(2), torch.zeros(2))}
    bundle = Bundle(spec, maps, {n: scene.modalities[n].info for n in maps}, scene.legend, stride).eval()
    whole: NDArray[np.float32] | None = None
    for block in (512, 64, 150, 512):
        logits = np.zeros((4, 300, 320), np.float32)
        for part in map_blocks(bundle, scene, block=block, precision=precision, device="cuda"):
            logits[:, *part.window.within(scene.grid.window)] = part.logits
        whole = logits if whole is None else whole
        np.testing.assert_array_equal(logits, whole)


class Copied:
    """In place of an event of CUDA: writes down what happens to each batch."""

    happened: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.number = sum(word.startswith("queued") for word in self.happened)

    def record(self, stream: object) -> None:
        self.happened.append(f"queued {self.number}")

    def synchronize(self) -> None:
        self.happened.append(f"waited for {self.number}")


def test_a_gpu_has_two_batches_to_compute_while_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = whole_scene(20, 33)
    bundle = bundle_of(scene, 5, 3)
    expected = map_array(bundle, scene, batch=20)
    predictor = bundle.predictor(map_options({"device": "cpu"}))
    monkeypatch.setattr(bundle, "predictor", lambda options: predictor)
    monkeypatch.setattr(predictor, "on_gpu", True)
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: {"num_ooms": 0})
    monkeypatch.setattr(torch.cuda, "Event", Copied)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    Copied.happened.clear()
    np.testing.assert_array_equal(map_array(bundle, scene, batch=20), expected)
    assert Copied.happened[:6] == ["queued 0", "queued 1", "queued 2", "waited for 0", "queued 3", "waited for 1"]
    waited = [int(word.split()[-1]) for word in Copied.happened if word.startswith("waited")]
    assert waited == list(range(len(waited)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_map_of_replayed_passes_is_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = whole_scene(20, 33)
    bundle = bundle_of(scene, 5, 3)
    expected = map_array(bundle, scene, batch=8, precision=precision)
    predictor = bundle.predictor(map_options({"device": "cpu", "precision": precision}))
    replayed: list[int] = []

    def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = torch.zeros_like(function())
        return lambda: replayed.append(len(output.copy_(function()))), output

    monkeypatch.setattr(predictor, "_pass", Replayed(predictor._forward, capture))
    monkeypatch.setattr(bundle, "predictor", lambda options: predictor)
    np.testing.assert_array_equal(map_array(bundle, scene, batch=8, precision=precision), expected)
    assert len(replayed) > 3
    assert set(replayed) == {8}


def test_a_batch_that_does_not_fit_into_the_gpu_names_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = whole_scene(20, 33)
    bundle = bundle_of(scene, 5, 3)
    predictor = bundle.predictor(map_options({"device": "cpu"}))
    ooms = iter([0, 0, 1])
    monkeypatch.setattr(bundle, "predictor", lambda options: predictor)
    monkeypatch.setattr(predictor, "on_gpu", True)
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: {"num_ooms": next(ooms, 1)})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 2**33))
    monkeypatch.setattr(torch.cuda, "Event", Copied)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    too_large = r"12 windows of 5 px per pass do not fit .* 0\.5 of 8\.0 GiB are free.* set batch to 6 and start again"
    with pytest.raises(SettingsError, match=re.compile(too_large, re.DOTALL)):
        map_array(bundle, scene, batch=12)  # the second pass fits only because a kernel fell back to another one

    def full(images: dict[str, Tensor]) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bundle.model, "forward", full)
    with pytest.raises(SettingsError, match=re.compile(too_large, re.DOTALL)):
        map_array(bundle, scene, batch=12)
    with pytest.raises(SettingsError, match="choose the device cpu"):
        map_array(bundle, scene, batch=1)


def test_tf32_needs_a_gpu() -> None:
    scene = whole_scene(20, 33)
    with pytest.raises(SettingsError, match="the precision tf32 on the device cpu"):
        map_array(bundle_of(scene, 5, 3), scene, precision="tf32", device="cpu")


def test_the_file_is_georeferenced_and_coloured(tmp_path: Path) -> None:
    scene = whole_scene(40, 33)
    bundle = bundle_of(scene, 5, 3)
    reported: list[tuple[int, int]] = []
    path = predict(
        bundle,
        scene,
        tmp_path / "new" / "map.tif",
        block=16,
        progress=lambda done, total: reported.append((done, total)),
    )
    assert reported[-1] == (40 * 33, 40 * 33)
    classes = map_array(bundle, scene)
    assert (classes == UNLABELLED).any()
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), scene.legend.to_codes(classes))
        assert file.dtypes == ("uint8",)
        assert file.nodata == 255
        assert file.crs.to_epsg() == 32632
        assert tuple(file.transform)[:6] == scene.grid.transform
        assert [file.colormap(1)[c.code][:3] for c in scene.legend] == [c.rgb for c in scene.legend]
        assert file.tags()["landfuse_model"] == "fake"
        assert re.fullmatch(r"\d+ windows in float32 on a CPU", file.tags()["landfuse_batch"])
    names = (tmp_path / "new" / "map.tif.aux.xml").read_text()
    assert "<Category>field 2</Category>" in names
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["map.tif", "map.tif.aux.xml"]
    assert cog_validate(path)[0]


def test_probabilities_confidence_and_entropy(tmp_path: Path) -> None:
    scene = whole_scene(20, 33)
    bundle = bundle_of(scene, 5, 3)
    with torch.no_grad():
        model = bundle.model
        assert isinstance(model, WholeView)
        model.weights = {name: weight / 50 for name, weight in model.weights.items()}
    path = predict(bundle, scene, tmp_path / "map.tif", probabilities=True, confidence=True, entropy=True)
    [part] = map_blocks(bundle, scene)
    missing = part.classes == UNLABELLED
    assert missing.any()
    with rasterio.open(beside(path, "probabilities")) as file:
        probabilities = file.read()
        assert file.descriptions == tuple(scene.legend.names)
        assert file.scales == (1 / 250,) * K
        assert file.nodata == 255
    assert (probabilities[:, missing] == 255).all()
    known = probabilities[:, ~missing]
    np.testing.assert_allclose(known / 250, part.probabilities[:, ~missing], atol=0.5 / 250 + 1e-6)
    assert (np.abs(known.sum(axis=0, dtype=int) - 250) <= K).all()
    best = np.sort(part.probabilities, axis=0)
    with rasterio.open(beside(path, "confidence")) as file:
        np.testing.assert_array_equal(file.read(1) == 255, missing)
        np.testing.assert_allclose(file.read(1)[~missing] / 250, (best[-1] - best[-2])[~missing], atol=0.5 / 250 + 1e-6)
    exact = part.probabilities.astype(np.float64)
    entropy = -(exact * np.log(np.maximum(exact, 1e-300))).sum(axis=0) / np.log(K)
    with rasterio.open(beside(path, "entropy")) as file:
        np.testing.assert_array_equal(file.read(1) == 255, missing)
        np.testing.assert_allclose(file.read(1)[~missing] / 250, entropy[~missing], atol=0.5 / 250 + 1e-5)
    for layer in ("probabilities", "confidence", "entropy"):
        assert cog_validate(beside(path, layer))[0]


@pytest.mark.parametrize("crs", ["EPSG:32632", None])
def test_a_small_map_has_the_bytes_of_its_blocks_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crs: str | None
) -> None:
    scene = whole_scene(70, 33)
    if crs is None:
        scene = replace(scene, grid=Grid(70, 33))
    bundle = bundle_of(scene, 5, 3)
    predict(bundle, scene, tmp_path / "blocks" / "map.tif", block=32, **EVERY)
    monkeypatch.setattr(mapping, "write_part", None)
    turn = threading.Lock()
    monkeypatch.setattr(mapping.Engine, "compute", computed_under(turn))
    predict(bundle, scene, tmp_path / "small" / "map.tif", run=Runner(turn=turn), **EVERY)
    assert contents(tmp_path / "small") == contents(tmp_path / "blocks")


def computed_under(turn: Any) -> Callable[..., BlockMap]:
    compute = mapping.Engine.compute

    def in_turn(*args: Any, **options: Any) -> BlockMap:
        assert turn.locked()
        return compute(*args, **options)

    return in_turn


def test_confidence_and_entropy_at_their_ends() -> None:
    one, even, sure = np.ones((1, 2, 2), np.float32), np.full((4, 1), 0.25, np.float32), np.zeros((4, 1), np.float32)
    sure[2] = 1
    assert (confidence_of(one) == 1).all()
    assert (confidence_of(even) == 0).all()
    assert (confidence_of(sure) == 1).all()
    assert (entropy_of(one) == 0).all()
    np.testing.assert_allclose(entropy_of(even), 1, rtol=1e-6)
    np.testing.assert_allclose(entropy_of(sure), 0, atol=1e-6)


def test_what_is_wrong_is_reported_before_a_file_is_there(tmp_path: Path) -> None:
    scene = whole_scene(20, 33)
    bundle = bundle_of(scene, 5, 3)
    with pytest.raises(FaultsError, match="no modality `b`"):
        predict(bundle, replace(scene, modalities={"a": scene.modalities["a"]}), tmp_path / "map.tif")
    with pytest.raises(SettingsError, match="`block` is 0"):
        predict(bundle, scene, tmp_path / "map.tif", block=0)
    with pytest.raises(OutputError, match="cannot be written"):
        predict(bundle, scene, "/dev/null/map.tif")
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        predict(bundle, scene, tmp_path / "folder.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.tif"]


def stop_after(fraction: float, error: type[BaseException]) -> Any:
    def stop(done: int, total: int) -> None:
        if done > total * fraction:
            raise error

    return stop


EVERY = {"probabilities": True, "confidence": True, "entropy": True}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_map_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, error: type[BaseException]) -> None:
    scene = whole_scene(60, 60)
    bundle = bundle_of(scene, 5, 3, 2, "smooth")
    predict(bundle, scene, tmp_path / "whole" / "map.tif", block=60, **EVERY)
    (tmp_path / "map").mkdir()
    path = tmp_path / "map" / "map.tif"
    path.write_bytes(b"the map of yesterday")
    for fraction in (0.3, 0.6):
        with pytest.raises(error):
            predict(bundle, scene, path, block=16, progress=stop_after(fraction, error), **EVERY)
        assert sorted(p.name for p in path.parent.iterdir()) == ["map.tif", "map.tif.parts"]
        assert path.read_bytes() == b"the map of yesterday"
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "map" / "map.tif.parts").glob("*.tif")}
    assert 8 <= len(parts) < 16
    reported: list[tuple[int, int]] = []
    again: list[Window] = []

    def run(job: Job, windows: Sequence[Window], progress: Callable[[int], None]) -> dict[Window, SceneError]:
        again.extend(windows)
        return map_parts(job, windows, progress)

    predict(bundle, scene, path, block=16, progress=lambda *now: reported.append(now), run=Runner(run), **EVERY)
    assert len(again) == 16 - len(parts), "only what was missing"
    assert reported[0] == (3600 - sum(window.pixels for window in again), 3600)
    assert reported[-1] == (3600, 3600)
    assert contents(tmp_path / "map") == contents(tmp_path / "whole")


def test_an_interruption_before_the_first_block_leaves_nothing(tmp_path: Path) -> None:
    scene = whole_scene(60, 60)
    with pytest.raises(KeyboardInterrupt):
        predict(bundle_of(scene, 5, 3), scene, tmp_path / "map.tif", progress=stop_after(-1, KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []


def interrupted(tmp_path: Path, **options: Any) -> tuple[Bundle, Scene, Path]:
    scene = whole_scene(60, 60)
    bundle = bundle_of(scene, 5, 3, 2)
    with pytest.raises(RuntimeError):
        predict(bundle, scene, tmp_path / "map.tif", block=16, progress=stop_after(0.5, RuntimeError), **options)
    return bundle, scene, tmp_path / "map.tif"


def test_blocks_of_another_map_are_refused_in_words(tmp_path: Path) -> None:
    bundle, scene, path = interrupted(tmp_path)
    before = contents(tmp_path / "map.tif.parts")
    other = bundle_of(scene, 5, 3, 2)
    with torch.no_grad():
        other.pixel_maps["a"].bias += 1  # type: ignore[operator]
    sar = replace(scene.modalities["b"], raster=replace(scene.modalities["b"].raster, source=_Whole(1, 9, 0.02)))
    moved = replace(scene, grid=replace(scene.grid, crs="EPSG:32633"))
    cases: list[tuple[Bundle, Scene, dict[str, Any], str]] = [
        (other, scene, {"block": 16}, r"other is the model\n"),
        (bundle_of(scene, 5, 3, 2, "smooth"), scene, {"block": 16}, r"other is the model\n"),
        (bundle_of(scene, 5, 3, 1), scene, {"block": 16}, r"other is the model, the batch"),
        (bundle, replace(scene, modalities=scene.modalities | {"b": sar}), {"block": 16}, r"is the modality `b`\n"),
        (bundle, moved, {"block": 16}, r"the grid \(.*32632.*, now .*32633"),
        (bundle, scene, {"block": 17}, r"the block \(16 px, now 17 px\)"),
        (bundle, scene, {"block": 16, "entropy": True}, r"the layers \(classes, now classes, entropy\)"),
        (bundle, scene, {"block": 16, "batch": 3}, r"the batch \(\d+ windows, now 3 windows\)"),
        (bundle, scene, {"block": 16, "precision": "bfloat16"}, r"the precision \(float32, now bfloat16\)"),
    ]
    for one, place, options, message in cases:
        with pytest.raises(OutputError, match=message) as raised:
            predict(one, place, path, **options)
        assert "--restart" in str(raised.value)
        assert contents(tmp_path / "map.tif.parts") == before
        assert not path.exists()
    predict(bundle, scene, path)  # the block of the parts, since none is named
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["map.tif", "map.tif.aux.xml"]


def test_where_a_modality_is_missing_there_is_a_map_only_if_the_mean_may_stand_in(tmp_path: Path) -> None:
    bundle, scene, path = interrupted(tmp_path)
    a, b = (np.isfinite(scene.read(name, scene.grid.window)).all(axis=0) for name in ("a", "b"))
    assert (a & ~b).any()
    np.testing.assert_array_equal(map_array(bundle, scene) != UNLABELLED, a & b)
    np.testing.assert_array_equal(map_array(bundle, scene, block=13, mean_for=["b"]) != UNLABELLED, a)
    with pytest.raises(OutputError, match=r"what stands in for missing modalities \(-, now b 0\.0\)"):
        predict(bundle, scene, path, block=16, mean_for=["b"])


def test_a_new_start_deletes_the_blocks(tmp_path: Path) -> None:
    bundle, scene, path = interrupted(tmp_path)
    predict(bundle, scene, path, block=20, restart=True)
    predict(bundle, scene, tmp_path / "whole" / "map.tif")
    assert path.read_bytes() == (tmp_path / "whole" / "map.tif").read_bytes()
    assert not (tmp_path / "map.tif.parts").exists()


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    scene = whole_scene(20, 20)
    (tmp_path / "map.tif.parts").mkdir()
    (tmp_path / "map.tif.parts" / "diary.txt").write_text("dear")
    for restart in (False, True):
        with pytest.raises(OutputError, match=r"holds no blocks of a map(.|\n)*move map\.tif\.parts away"):
            predict(bundle_of(scene, 5, 3), scene, tmp_path / "map.tif", restart=restart)
    assert [p.name for p in (tmp_path / "map.tif.parts").iterdir()] == ["diary.txt"]
    (tmp_path / "map.tif.parts" / "diary.txt").unlink()
    predict(bundle_of(scene, 5, 3), scene, tmp_path / "map.tif")  # an empty one is no one's


def test_a_map_that_is_kept_as_finished_is_not_made_again(tmp_path: Path) -> None:
    scene = whole_scene(40, 40)
    bundle = bundle_of(scene, 5, 3)
    path = predict(bundle, scene, tmp_path / "map.tif", block=16, keep=True)
    made = path.stat().st_mtime_ns
    assert sorted(contents(tmp_path / "map.tif.parts")) == ["finished", "settings.json"]
    predict(bundle, scene, path, block=16, keep=True)
    assert path.stat().st_mtime_ns == made
    path.unlink()
    predict(bundle, scene, path, block=16, keep=True)
    assert path.exists(), "it was lost, and is made again"
    predict(bundle, scene, path, block=16)
    assert not (tmp_path / "map.tif.parts").exists()


@dataclass(frozen=True)
class _Torn:
    """Whole numbers that cannot be read in some windows while a file says so."""

    inner: _Whole
    row: int
    torn: str

    def __call__(self, window: Window) -> NDArray[np.float32]:
        if Path(self.torn).exists() and window.row <= self.row < window.row + window.height:
            raise SceneError(f"b.tif cannot be read at row {window.row}, column {window.col}: torn", "a whole file")
        return self.inner(window)


def torn_scene(flag: Path, side: int = 60) -> Scene:
    scene = whole_scene(side, side)
    raster = scene.modalities["b"].raster
    assert isinstance(raster, SimulatedRaster)
    torn = replace(raster, source=_Torn(raster.source, 50, str(flag)))  # type: ignore[arg-type]
    return replace(scene, modalities=scene.modalities | {"b": SceneModality(torn)})


def test_a_block_that_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    flag, path = tmp_path / "torn", tmp_path / "maps" / "map.tif"
    scene = torn_scene(flag)
    bundle = bundle_of(scene, 5, 3, 2)
    predict(bundle, scene, tmp_path / "whole" / "map.tif", entropy=True)
    flag.touch()
    for _ in range(2):  # as long as it is torn
        with pytest.raises(IncompleteError) as raised:
            predict(bundle, scene, path, block=20, entropy=True)
        assert raised.value.exit_code == 3
        assert "is incomplete: 3 of 9 blocks cannot be read" in str(raised.value)
        assert "row 40, column 20 (20 x 20 px): b.tif cannot be read at row" in str(raised.value)
        with rasterio.open(path) as file, rasterio.open(tmp_path / "whole" / "map.tif") as whole:
            assert (file.read(1)[40:] == 255).all()
            np.testing.assert_array_equal(file.read(1)[:40], whole.read(1)[:40])
            assert file.tags()["landfuse_incomplete"] == "40 0 20 20; 40 20 20 20; 40 40 20 20"
        assert cog_validate(path)[0]
        assert len(list((tmp_path / "maps" / "map.tif.parts").glob("*.tif"))) == 6
    flag.unlink()
    again: list[int] = []
    predict(bundle, scene, path, block=20, entropy=True, progress=lambda done, total: again.append(done))
    assert again[0] == 6 * 400, "only the failed blocks are repeated"
    assert contents(tmp_path / "maps") == contents(tmp_path / "whole")


def test_a_scene_of_which_no_block_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "torn").touch()
    scene = torn_scene(tmp_path / "torn")
    with pytest.raises(SceneError, match=r"b\.tif cannot be read"):
        predict(bundle_of(scene, 5, 3), scene, tmp_path / "map.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["torn"]
    with pytest.raises(SceneError, match=r"b\.tif cannot be read"):
        map_array(bundle_of(scene, 5, 3), scene, block=20)


def test_a_full_disk_keeps_what_is_done_and_the_same_call_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    scene = whole_scene(100, 100, holes=0)
    bundle = bundle_of(scene, 5, 3)
    try:
        (disk / "filler").write_bytes(bytes(120 * 1024))
        with pytest.raises(OutputError, match=r"No space left|cannot be written"):
            predict(bundle, scene, disk / "map.tif", block=16, **EVERY)
        assert sorted(p.name for p in disk.iterdir()) == ["filler", "map.tif.parts"]
        parts = [p.name for p in (disk / "map.tif.parts").iterdir()]
        assert len(parts) > 3
        assert all(name.endswith((".tif", ".json")) and not name.startswith(".") for name in parts), "all are whole"
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        predict(bundle, scene, disk / "map.tif", block=16, **EVERY)
        predict(bundle, scene, tmp_path / "whole" / "map.tif", **EVERY)
        assert contents(disk) == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_no_room_to_join_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = whole_scene(40, 40)
    bundle = bundle_of(scene, 5, 3)
    copy = rasterio.shutil.copy

    def full(source: Path, target: Path, **options: Any) -> None:
        copy(source, target, **options)
        target.write_bytes(target.read_bytes()[:-60])  # as GDAL does where it reports it in its log only
        target.with_name(target.name + ".ovr.tmp").touch()

    monkeypatch.setattr(rasterio.shutil, "copy", full)
    with pytest.raises(OutputError, match="cannot be written"):
        predict(bundle, scene, tmp_path / "map.tif", block=16)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif.parts"]
    assert not list((tmp_path / "map.tif.parts" / "assembly").glob("*.tif*"))
    monkeypatch.undo()
    predict(bundle, scene, tmp_path / "map.tif", block=16)
    assert sorted(contents(tmp_path)) == ["map.tif", "map.tif.aux.xml"]


def test_layers_and_overviews_of_a_larger_map(tmp_path: Path) -> None:
    """1,100 px: two levels of overviews; turned grid, pixels that are not square, holes, colours and names."""
    flat = simulate_flat(1100, 700, {"a": 2})
    grid = Grid(1100, 700, (8.0, 3.0, 5e5, 2.0, -11.0, 5.4e6), "EPSG:32632")
    scene = replace(flat, grid=grid, modalities={"a": SceneModality(SimulatedRaster(grid, 2, _Holed(), "a"))})
    maps = {"a": PixelMap(torch.ones(2), torch.zeros(2))}
    model = Sign({"a": Modality(2)}, 4, view=48, core=40)
    bundle = Bundle(ModelSpec("sign"), maps, {"a": scene.modalities["a"].info}, scene.legend, 30, model)
    path = predict(bundle, scene, tmp_path / "map.tif", confidence=True, block=333)
    for each in (path, beside(path, "confidence")):
        assert cog_validate(each, strict=True) == (True, [], [])
        with rasterio.open(each) as file:
            assert tuple(file.transform)[:6] == grid.transform
            assert file.overviews(1) == [2, 4]
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(path) as file, rasterio.open(path, overview_level=0) as half:
        whole, coarse = file.read(1), half.read(1)
        assert file.colorinterp[0].name == half.colorinterp[0].name == "palette"
    assert (whole == 255).any()
    assert set(np.unique(coarse)) <= set(np.unique(whole)), "no code that is none"
    four = whole.reshape(550, 2, 350, 2).transpose(0, 2, 1, 3).reshape(550, 350, 4)
    most = (four == np.median(four, axis=2, keepdims=True)).sum(axis=2) >= 3
    np.testing.assert_array_equal(coarse[most], np.median(four, axis=2)[most].astype(np.uint8))


class Sign(FusionModel):
    """Classes by the signs of two bands."""

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        a = images["a"][:, :, self.halo : self.halo + self.core, self.halo : self.halo + self.core]
        return torch.stack([-a[:, 0] - a[:, 1], a[:, 0] - a[:, 1], a[:, 1] - a[:, 0], a[:, 0] + a[:, 1]], dim=1)


@dataclass(frozen=True)
class _Holed:
    """Waves, with a hole in every 97 x 89 px."""

    def __call__(self, window: Window) -> NDArray[np.float32]:
        rows = np.arange(window.row, window.row + window.height)[:, None]
        cols = np.arange(window.col, window.col + window.width)
        values = np.stack([np.sin(rows / 9 + cols / 31), np.cos(cols / 13 - rows / 23)]).astype(np.float32)
        values[:, (rows % 97 < 20) & (cols % 89 < 30)] = np.nan
        return values


class Mean(FusionModel):
    """Means of the view's bands."""

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        return images["a"].mean(dim=(2, 3), keepdim=True)[:, :4].expand(-1, 4, self.core, self.core)


def map_means(side: int, path: Path, block: int, **options: Any) -> None:
    scene = simulate_flat(side, side, {"a": 8})
    maps = {"a": PixelMap(torch.ones(8), torch.zeros(8))}
    model = Mean({"a": Modality(8)}, 4, view=48, core=32)
    bundle = Bundle(ModelSpec("mean"), maps, {"a": scene.modalities["a"].info}, scene.legend, model=model)
    predict(bundle, scene, path, block=block, **options)


forked = multiprocessing.get_context("fork") if hasattr(os, "fork") else None  # a fresh interpreter takes long to start


def peak_of_mapping(side: int, path: Path, queue: Any) -> None:
    import resource  # not on Windows

    map_means(side, path, 256)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts peaks as Linux does")
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    assert forked is not None
    peaks = {}
    for side in (768, 1536):
        queue = forked.Queue()
        process = forked.Process(target=peak_of_mapping, args=(side, tmp_path / "map.tif", queue))
        process.start()
        peaks[side] = queue.get(timeout=100)  # MiB; the larger scene alone would be 72
        process.join()
    assert peaks[1536] - peaks[768] < 25, peaks


def map_slowly(path: Path, queue: Any) -> None:
    def progress(done: int, total: int) -> None:
        queue.put(done)
        time.sleep(0.02)

    map_means(250, path, 64, progress=progress)


@pytest.mark.skipif(forked is None, reason="no fork here")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_whole_blocks_to_go_on_from(tmp_path: Path, sent: signal.Signals) -> None:
    assert forked is not None
    queue = forked.Queue()
    process = forked.Process(target=map_slowly, args=(tmp_path / "map.tif", queue))
    process.start()
    while queue.get(timeout=60) < 250 * 120:
        pass
    with pytest.raises(OutputError, match=rf"is in use: process {process.pid} on .* is mapping map\.tif"):
        map_means(250, tmp_path / "map.tif", 64)
    os.kill(process.pid or 0, sent)
    process.join(timeout=30)
    assert process.exitcode not in (0, None)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif.parts"], "nothing under the final name"
    kept = list((tmp_path / "map.tif.parts").glob("*.tif"))
    assert 0 < len(kept) < 16
    first: list[int] = []
    map_means(250, tmp_path / "map.tif", 64, progress=lambda done, total: first.append(done))
    assert first[0] > 0, "it goes on"
    map_means(250, tmp_path / "whole" / "map.tif", 128)
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole" / "map.tif").read_bytes()
    assert not (tmp_path / "map.tif.parts").exists()


def test_the_class_of_a_pixel_is_the_first_of_its_largest_logits() -> None:
    logits = np.random.default_rng(0).integers(-2, 3, (5, 40, 30)).astype(np.float32)
    logits[:, 0, 0] = -np.inf
    found = engine.best_of(logits)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, logits.argmax(axis=0))
    assert not engine.best_of(logits[:1]).any()
