"""The block that fits into memory, and what a dry run says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import FaultsError, SettingsError
from landfuse.mapping.engine import Engine
from landfuse.mapping.memory import block_bytes, block_side, in_bytes, plan, tiles_at_once
from landfuse.mapping.predict import plan_map
from landfuse.mapping.settings import map_options
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

SMALL = {"view": 32, "core": 24, "architecture": "Linknet", "encoder": "tu-test_resnet"}


def engine_of(side: int, stride: int = 16, bands: int = 3, **options: object) -> Engine:
    scene = simulate_flat(side, side, {"a": bands})
    maps = {"a": PixelMap(torch.ones(bands), torch.zeros(bands))}
    spec = ModelSpec("stacked", SMALL)
    bundle = Bundle(spec, maps, {"a": scene.modalities["a"].info}, scene.legend, stride, weights="smooth")
    return Engine(bundle, scene, map_options(options))


@pytest.mark.parametrize("memory", [1_580, 1_700, 2_048])
def test_the_largest_block_that_fits_is_chosen(memory: int) -> None:
    engine = engine_of(100_000, bands=60, entropy=True, memory=memory * 2**20)
    side = block_side(engine)
    assert side % 16 == 0
    assert 64 <= side < 2_048
    assert block_bytes(engine, side) <= memory * 2**20
    assert block_bytes(engine, side + 64) > memory * 2**20


def test_blocks_are_at_most_2048_px_and_no_larger_than_the_scene() -> None:
    assert block_side(engine_of(100_000, memory="64GiB")) == 2_048
    assert block_side(engine_of(300, memory="64GiB")) == 320
    assert block_side(engine_of(5, memory="64GiB")) == 64


def test_every_worker_has_several_blocks() -> None:
    assert [block_side(engine_of(1_344, memory="64GiB"), workers) for workers in (1, 2, 3)] == [1_344, 384, 448]
    assert block_side(engine_of(600), 40) == 256, "and none has small ones"


def test_workers_get_whole_rows_of_blocks_where_it_is_possible() -> None:
    """Of the 81 rows of windows of a scene of 1,304 px, two strips share the one that touches both."""
    engine = engine_of(1_304, memory="64GiB")
    side = block_side(engine, 2)
    assert side == 384, "not three rows of 512 px"
    strips = engine.strips(list(blocks(1_304, 1_304, side)), 2)
    assert sum(owned.count - len(owned.taken) for strip in strips for owned in engine.assigned(strip)) == 82 * 81


def test_two_small_tiles_are_mapped_at_once_where_both_fit_into_the_memory() -> None:
    small = engine_of(96)

    def at_once(engine: Engine = small, tiles: int = 3, **options: object) -> int:
        return tiles_at_once(engine.model, [engine.source] * tiles, map_options(options))

    assert at_once() == 2
    assert at_once(tiles=1) == at_once(engine=engine_of(513)) == at_once(block=16) == 1
    assert at_once(memory=block_bytes(small, 512, 2)) == 2
    assert at_once(memory=block_bytes(small, 512, 2) - 1) == 1


@pytest.mark.parametrize(("block", "stride"), [(64, 16), (70, 16), (72, 24), (50, 7)])
def test_the_arithmetic_covers_what_is_held(block: int, stride: int) -> None:
    engine = engine_of(600, stride)
    prepared = engine.read(engine.alone(Window(4 * block, 4 * block, block, block)))
    held = prepared.inputs["a"].nbytes + prepared.valid.nbytes
    per_pixel = 4 * 3 + 1
    most = (block_bytes(engine, block) - block_bytes(engine_of(600, stride, bands=1), block)) / (
        2 * (2 * 4) + 2 * (4 + 8)  # what two further bands add per pixel: both tables, and reading
    )
    batch = 4 * engine.batch * 32**2 * 2 / 40
    assert held <= (most - batch) * per_pixel <= 1.5 * held


def test_more_bands_classes_and_larger_views_take_more() -> None:
    plain = block_bytes(engine_of(3000), 512)
    assert block_bytes(engine_of(3000, bands=4), 512) - plain > 512**2 * 4 * 2
    assert block_bytes(engine_of(3000), 1024) > plain
    assert block_bytes(engine_of(3000, entropy=True), 512) > plain


def test_too_little_memory_is_reported() -> None:
    with pytest.raises(SettingsError, match=r"10 MiB of memory is too little(.|\n)*at least 1\.\d+ GiB"):
        block_side(engine_of(3000, memory="10MiB"))


def test_bytes_in_words() -> None:
    assert [in_bytes(n) for n in (12, 2048, 1.5 * 2**20, 2**31)] == ["12 B", "2 KiB", "1.5 MiB", "2 GiB"]


def test_a_plan_counts_blocks_windows_halos_and_disk() -> None:
    engine = engine_of(160, entropy=True)
    found = plan(engine, 64)
    assert (found.height, found.width, found.block, found.blocks) == (160, 160, 64, 9)
    assert found.windows == 10 * 10  # cores of 24 from 0 to 144
    # Along an axis the blocks 0-64, 64-128, 128-160 touch 4, 5 and 3 windows and look at 4 + 24 + 4 px and the strides.
    apart = plan(engine, 64, workers=9)
    assert apart.recomputed_fraction == pytest.approx((4 + 5 + 3) ** 2 / 100 - 1)
    assert apart.halo_fraction == pytest.approx(((3 + 4 + 2) * 16 + 3 * 32) ** 2 / 160**2 - 1)
    assert plan(engine, 64, workers=3).recomputed_fraction == pytest.approx((4 + 5 + 3) * 10 / 100 - 1), "3 rows"
    # One process computes 4, 4 and 2 of them, and looks at 4 + 24 + 4 px and the strides of these.
    assert found.recomputed_fraction == 0
    assert found.halo_fraction == pytest.approx(((3 + 3 + 1) * 16 + 3 * 32) ** 2 / 160**2 - 1)
    assert found.memory == block_bytes(engine, 64)
    assert found.disk == round(160**2 * 2 * 8 / 3)
    assert found.expected_disk < found.disk
    assert found.seconds is not None
    assert found.seconds > 0


def test_a_plan_writes_nothing_and_takes_the_block_of_unfinished_parts(tmp_path: Path) -> None:
    scene = simulate_flat(160, 160, {"a": 3})
    bundle = engine_of(160).model
    assert plan_map(bundle, scene, tmp_path / "map.tif", block=50).block == 50
    assert plan_map(bundle, scene, tmp_path / "map.tif").block == 192
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "map.tif.parts").mkdir()
    (tmp_path / "map.tif.parts" / "settings.json").write_text('{"format": 1, "the block": "48 px"}')
    assert plan_map(bundle, scene, tmp_path / "map.tif").block == 48
    with pytest.raises(FaultsError, match="no modality `a`"):
        plan_map(bundle, replace(scene, modalities={}), tmp_path / "map.tif")


def test_a_scene_without_data_in_its_middle_has_no_time() -> None:
    engine = engine_of(160)

    class Empty:
        def __getattr__(self, name: str) -> object:
            return getattr(raster, name)

        def read(self, window: Window) -> np.ndarray:
            return np.full((3, window.height, window.width), np.nan, np.float32)

    raster = engine.scene.modalities["a"].raster
    scene: Scene = replace(engine.scene, modalities={"a": replace(engine.scene.modalities["a"], raster=Empty())})  # type: ignore[arg-type]
    assert plan(Engine(engine.model, scene, engine.options), 64).seconds is None


def test_the_bundle_keeps_how_windows_are_weighed(tmp_path: Path) -> None:
    engine = engine_of(64)
    engine.model.save(tmp_path)
    assert load_bundle(tmp_path).weights == "smooth"
    older = (tmp_path / "model.json").read_text().replace(',\n    "weights": "smooth"', "")
    assert "smooth" not in older
    (tmp_path / "model.json").write_text(older)
    assert load_bundle(tmp_path).weights == "uniform"
