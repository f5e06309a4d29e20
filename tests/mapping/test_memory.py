"""The block that fits into memory, and what a dry run says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from landfuse.bundles.bundle import Bundle, ModelSpec, note
from landfuse.bundles.bundle_files import load_bundle
from landfuse.errors import FaultsError, SettingsError
from landfuse.mapping.engine import Engine
from landfuse.mapping.map_layers import Wanted
from landfuse.mapping.memory import block_bytes, block_side, in_bytes, plan
from landfuse.mapping.predict import plan_map
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

SMALL = {"view": 32, "core": 24, "architecture": "Linknet", "encoder": "tu-test_resnet"}


def engine_of(side: int, stride: int = 16, bands: int = 3) -> Engine:
    scene = simulate_flat(side, side, {"a": bands})
    maps = {"a": PixelMap(torch.ones(bands), torch.zeros(bands))}
    spec = ModelSpec("stacked", SMALL)
    return Engine(Bundle(spec, maps, {"a": note(scene, "a")}, scene.legend, stride, weights="smooth"), scene)


@pytest.mark.parametrize("memory", [1_580, 1_700, 2_048])
def test_the_largest_block_that_fits_is_chosen(memory: int) -> None:
    engine, layers = engine_of(100_000, bands=60), Wanted(entropy=True).layers(engine_of(64).classifier.legend)
    side = block_side(engine, memory * 2**20, layers)
    assert side % 16 == 0
    assert 64 <= side < 2_048
    assert block_bytes(engine, side, layers) <= memory * 2**20
    assert block_bytes(engine, side + 64, layers) > memory * 2**20


def test_blocks_are_at_most_2048_px_and_no_larger_than_the_scene() -> None:
    layers = Wanted().layers(engine_of(64).classifier.legend)
    assert block_side(engine_of(100_000), 64 * 2**30, layers) == 2_048
    assert block_side(engine_of(300), 64 * 2**30, layers) == 320
    assert block_side(engine_of(5), 64 * 2**30, layers) == 64


@pytest.mark.parametrize(("block", "stride"), [(64, 16), (70, 16), (72, 24), (50, 7)])
def test_the_arithmetic_covers_what_is_held(block: int, stride: int) -> None:
    engine = engine_of(600, stride)
    layers = Wanted().layers(engine.classifier.legend)
    held = engine.read(engine.alone(Window(4 * block, 4 * block, block, block))).nbytes
    per_pixel = 4 * 3 + 1
    most = (block_bytes(engine, block, layers) - block_bytes(engine_of(600, stride, bands=1), block, layers)) / (
        2 * (2 * 4) + 2 * (4 + 8)  # what two further bands add per pixel: both tables, and reading
    )
    batch = 4 * engine.batch * 32**2 * 2 / 40
    assert held <= (most - batch) * per_pixel <= 1.5 * held


def test_more_bands_classes_and_larger_views_take_more() -> None:
    layers = Wanted().layers(engine_of(64).classifier.legend)
    plain = block_bytes(engine_of(3000), 512, layers)
    assert block_bytes(engine_of(3000, bands=4), 512, layers) - plain > 512**2 * 4 * 2
    assert block_bytes(engine_of(3000), 1024, layers) > plain
    assert block_bytes(engine_of(3000), 512, Wanted(entropy=True).layers(engine_of(64).classifier.legend)) > plain


def test_too_little_memory_is_told() -> None:
    with pytest.raises(SettingsError, match=r"10 MiB of memory are too few(.|\n)*at least 1\.\d+ GiB"):
        block_side(engine_of(3000), 10 * 2**20, Wanted().layers(engine_of(64).classifier.legend))


def test_bytes_in_words() -> None:
    assert [in_bytes(n) for n in (12, 2048, 1.5 * 2**20, 2**31)] == ["12 B", "2 KiB", "1.5 MiB", "2 GiB"]


def test_a_plan_counts_blocks_windows_halos_and_disk() -> None:
    engine = engine_of(160)
    layers = Wanted(entropy=True).layers(engine.classifier.legend)
    told = plan(engine, 64, layers)
    assert (told.height, told.width, told.block, told.blocks) == (160, 160, 64, 9)
    assert told.windows == 10 * 10  # cores of 24 from 0 to 144
    # Along an axis the blocks 0-64, 64-128, 128-160 touch 4, 5 and 3 windows and look at 4 + 24 + 4 px and the strides.
    assert told.recomputed_share == pytest.approx((4 + 5 + 3) ** 2 / 100 - 1)
    # One process computes 4, 4 and 2 of them, and looks at 4 + 24 + 4 px and the strides of these.
    assert told.halo_share == pytest.approx(((3 + 3 + 1) * 16 + 3 * 32) ** 2 / 160**2 - 1)
    assert told.halo_apart == pytest.approx(((3 + 4 + 2) * 16 + 3 * 32) ** 2 / 160**2 - 1)
    assert told.memory == block_bytes(engine, 64, layers)
    assert told.disk == round(160**2 * 2 * 8 / 3)
    assert told.expected_disk < told.disk
    assert told.seconds is not None
    assert told.seconds > 0


def test_a_plan_writes_nothing_and_takes_the_block_of_unfinished_parts(tmp_path: Path) -> None:
    scene = simulate_flat(160, 160, {"a": 3})
    classifier = engine_of(160).classifier
    assert plan_map(classifier, scene, tmp_path / "map.tif", block=50).block == 50
    assert plan_map(classifier, scene, tmp_path / "map.tif").block == 192
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "map.tif.parts").mkdir()
    (tmp_path / "map.tif.parts" / "settings.json").write_text('{"format": 1, "the block": "48 px"}')
    assert plan_map(classifier, scene, tmp_path / "map.tif").block == 48
    with pytest.raises(FaultsError, match="no modality `a`"):
        plan_map(classifier, replace(scene, modalities={}), tmp_path / "map.tif")


def test_a_scene_without_data_in_its_middle_has_no_time() -> None:
    engine = engine_of(160)

    class Empty:
        def __getattr__(self, name: str) -> object:
            return getattr(raster, name)

        def read(self, window: Window) -> np.ndarray:
            return np.full((3, window.height, window.width), np.nan, np.float32)

    raster = engine.scene.modalities["a"].raster
    scene: Scene = replace(engine.scene, modalities={"a": replace(engine.scene.modalities["a"], raster=Empty())})  # type: ignore[arg-type]
    assert plan(Engine(engine.classifier, scene), 64, Wanted().layers(engine.classifier.legend)).seconds is None


def test_the_bundle_keeps_how_windows_are_weighed(tmp_path: Path) -> None:
    engine = engine_of(64)
    engine.classifier.save(tmp_path)
    assert load_bundle(tmp_path).weights == "smooth"
    older = (tmp_path / "model.json").read_text().replace(',\n    "weights": "smooth"', "")
    assert "smooth" not in older
    (tmp_path / "model.json").write_text(older)
    assert load_bundle(tmp_path).weights == "uniform"
