"""Diffusion features: computed when they are read, once per tile, the same whatever is read, and kept where it fits."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from landfuse.diffusion import tiles as tiles_module
from landfuse.diffusion.features import DiffusionFeatures, compute_features
from landfuse.diffusion.noise import add_noise, signal_alpha
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.tiles import FeatureRaster, FeatureTiles, fingerprint, noise_of
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, own_maps
from landfuse.errors import BundleError, OutputError
from landfuse.files import whole_file
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import ModalityInfo, Scene
from landfuse.simulate.scene import simulate

NAMES = ("diffusion_1", "diffusion_2", "diffusion_3")
SMALL = {"tile": 32, "overlap": 16}
TILES = 4 * 5
"""Of SMALL, 16 px each, in the scene below."""


def noise_at(seed: int, denoiser: TrainedDenoiser, window: Window) -> dict[str, torch.Tensor]:
    made = noise_of(seed, denoiser.network.channels, window)
    return {name: torch.from_numpy(values) for name, values in made.items()}


def denoiser_of(scene: Scene, seed: int = 0, names: tuple[str, ...] = ("hsi", "height")) -> TrainedDenoiser:
    maps = own_maps([scene], [np.ones((scene.grid.height, scene.grid.width), bool)], names)
    torch.manual_seed(seed)
    made = TrainedDenoiser.untrained(maps, dict.fromkeys(names, 1), 8)
    for parameter in made.network.parameters():  # half of it begins at zero
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.eval()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return simulate(50, 71, hyperspectral_bands=6, nodata_fraction=0.1)


@pytest.fixture(scope="module")
def denoiser(scene: Scene) -> TrainedDenoiser:
    return denoiser_of(scene)


def settings(cache: Path, **changes: object) -> FeatureSettings:
    return FeatureSettings.model_validate({"cache": str(cache), "timesteps": (50, 300), **changes})


def featured(scene: Scene, denoiser: TrainedDenoiser, used: FeatureSettings) -> Scene:
    return scene.with_modalities(DiffusionFeatures(denoiser, used).of(scene))


def tiles_of(scene: Scene, name: str = "diffusion_1") -> FeatureTiles:
    raster = scene.modalities[name].raster
    assert isinstance(raster, FeatureRaster)
    return raster.tiles


def read_all(scene: Scene) -> dict[str, NDArray[np.float32]]:
    return {name: scene.read(name, scene.grid.window) for name in NAMES if name in scene.modalities}


def same(first: dict[str, NDArray[np.float32]], second: dict[str, NDArray[np.float32]]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name], equal_nan=True) for name in first
    )


@contextmanager
def counted(denoiser: TrainedDenoiser) -> Iterator[list[int]]:
    """The timesteps of the network's calls."""
    calls: list[int] = []
    levels = denoiser.network.levels

    def count(noisy: Any, dark: Any, timestep: torch.Tensor) -> Any:
        calls.append(int(timestep[0]))
        return levels(noisy, dark, timestep)

    denoiser.network.levels = count  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del denoiser.network.levels


@pytest.fixture(scope="module")
def expected(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, NDArray[np.float32]]:
    """The features of the whole scene by the tiles of SMALL, read in one piece."""
    return read_all(featured(scene, denoiser, settings(tmp_path_factory.mktemp("expected"), **SMALL)))


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


# ---- the values ------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_network_by_hand(scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path) -> None:
    made = featured(scene, denoiser, settings(tmp_path, overlap=0))
    assert list(made.modalities) == ["hsi", "height", "sar", *NAMES]
    whole = Window(0, 0, 52, 72)  # mirrored to multiples of 4
    views = {
        name: own(torch.from_numpy(scene.read(name, whole)).movedim(0, -1)).movedim(-1, 0)[None]
        for name, own in denoiser.maps.items()
    }
    images, missing = denoiser.images(views)
    assert missing["height"].any(), "the gaps between flight lines"
    noise = noise_at(0, denoiser, whole)
    for place, t in enumerate((50, 300)):
        times = torch.tensor([t])
        noisy = {name: add_noise(image, noise[name], signal_alpha()[times]) for name, image in images.items()}
        with torch.inference_mode():
            levels = denoiser.network.levels(noisy, missing, times)
        for number, level in enumerate(levels, start=1):
            name, width = f"diffusion_{number}", level.shape[1]
            found = made.read(name, scene.grid.window)
            assert found.dtype == np.float32
            assert found.shape == (2 * width, 50, 71)
            size = -(-50 // 2 ** (number - 1)), -(-71 // 2 ** (number - 1))
            kept = level[:, :, : size[0], : size[1]]
            factor = 2 ** (number - 1)
            fine = F.interpolate(kept, size=(size[0] * factor, size[1] * factor), mode="bilinear")[0, :, :50, :71]
            np.testing.assert_allclose(found[place * width : (place + 1) * width], fine.numpy(), rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("kept", ["folder", "memory"])
@pytest.mark.parametrize(
    "window",
    [
        Window(0, 0, 50, 71), Window(13, 7, 5, 9), Window(49, 70, 1, 1), Window(-3, 66, 9, 9), Window(15, 30, 3, 4),
        Window(16, 32, 16, 16), Window(17, 0, 1, 71), Window(0, 47, 50, 2),
    ],
    ids=str,
)  # fmt: skip
def test_a_window_holds_the_bytes_of_the_whole(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: Window,
    kept: str,
) -> None:
    """Each window is the first that is read, so that its tiles are computed for it alone."""
    if kept == "memory":
        no_room(monkeypatch)
    made = featured(scene, denoiser, settings(tmp_path, **SMALL))
    inside = window.intersection(scene.grid.window)
    around = Window(-8, -8, 80, 96)
    found = {name: made.read(name, window) for name in NAMES}
    for name in NAMES:
        part, truth = found[name][:, *inside.within(window)], expected[name][:, *inside.within(scene.grid.window)]
        assert np.array_equal(part, truth, equal_nan=True)
        whole = made.read(name, around)
        assert np.array_equal(whole[:, *window.within(around)], found[name], equal_nan=True)
    assert bool(list(tmp_path.rglob("*.f16"))) is (kept == "folder")


def test_random_windows_in_any_order_are_those_of_the_whole(
    scene: Scene, denoiser: TrainedDenoiser, expected: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    made = featured(scene, denoiser, settings(tmp_path, **SMALL))
    for _ in range(60):
        row, col = int(rng.integers(0, 50)), int(rng.integers(0, 71))
        window = Window(row, col, int(rng.integers(1, 51 - row)), int(rng.integers(1, 72 - col)))
        name = str(rng.choice(NAMES))
        found = made.modalities[name].raster.read(window)
        assert found.flags.c_contiguous
        assert np.array_equal(found, expected[name][:, *window.within(scene.grid.window)], equal_nan=True)


def test_tiles_that_overlap_by_twice_the_reach_are_the_whole(denoiser: TrainedDenoiser, tmp_path: Path) -> None:
    scene = simulate(136, 140, hyperspectral_bands=6)
    reach = denoiser.network.REACH
    whole, tiled = (
        featured(scene, denoiser, settings(tmp_path, timesteps=(100,), tile=tile, overlap=2 * reach))
        for tile in (512, 2 * reach + 64)
    )
    assert tiles_of(whole).folder != tiles_of(tiled).folder
    assert (len(list(tiles_of(whole).places())), len(list(tiles_of(tiled).places()))) == (1, 9)
    for name in NAMES:
        one, other = (s.read(name, scene.grid.window) for s in (whole, tiled))
        np.testing.assert_allclose(one, other, atol=2e-3 * np.abs(one).max())


def test_there_are_no_features_where_no_modality_has_data(scene: Scene, tmp_path: Path) -> None:
    gaps = np.isnan(scene.read("height", scene.grid.window)[0])
    for names, missing in ((("height",), gaps), (("hsi", "height"), np.zeros_like(gaps))):
        made = featured(scene, denoiser_of(scene, names=names), settings(tmp_path, levels=(1,)))
        found = np.isnan(made.read("diffusion_1", scene.grid.window))
        assert np.array_equal(found.all(axis=0), missing)
        assert np.array_equal(found.any(axis=0), missing)
    assert gaps.any()


def test_chosen_levels_are_those_among_all(
    scene: Scene, denoiser: TrainedDenoiser, expected: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    made = featured(scene, denoiser, settings(tmp_path, levels=(3, 1), **SMALL))
    assert list(made.modalities)[-2:] == ["diffusion_3", "diffusion_1"]
    for name, found in read_all(made).items():
        if name == "diffusion_3":
            assert np.array_equal(found, expected[name])
        else:
            assert np.array_equal(found, expected[name], equal_nan=True)


def test_what_a_model_has_to_know_of_them(scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path) -> None:
    both = DiffusionFeatures(denoiser, settings(tmp_path))
    channels = {"diffusion_1": 16, "diffusion_2": 32, "diffusion_3": 32}
    info = scene.modalities["hsi"].info
    made = both.of(scene)
    assert {name: part.info for name, part in made.items()} == {
        name: ModalityInfo(bands, "float16", "activation", 1, info.metres, info.pixel)
        for name, bands in channels.items()
    }
    for name, part in made.items():
        assert part.raster.grid == scene.grid
        assert scene.name in part.raster.path
        assert part.raster.read(Window(3, 4, 5, 6)).shape == (channels[name], 5, 6)


def test_noise_is_a_function_of_place(denoiser: TrainedDenoiser) -> None:
    outer, inner = Window(-10, 5, 30, 30), Window(0, 12, 8, 9)
    whole, part = noise_at(3, denoiser, outer), noise_at(3, denoiser, inner)
    for name in whole:
        assert torch.equal(whole[name][..., *inner.within(outer)], part[name])
    assert not torch.equal(noise_at(4, denoiser, inner)["hsi"], part["hsi"])
    flat = torch.cat([noise.flatten() for noise in noise_at(0, denoiser, Window(0, 0, 200, 200)).values()])
    assert float(flat.mean()) == pytest.approx(0, abs=0.01)
    assert float(flat.std()) == pytest.approx(1, abs=0.01)
    channels = noise_at(0, denoiser, Window(0, 0, 100, 100))["hsi"][0].flatten(1)
    correlated = torch.corrcoef(channels) - torch.eye(len(channels))
    assert float(correlated.abs().max()) < 0.05


# ---- when they are computed ------------------------------------------------------------------------------------------


def test_nothing_is_computed_before_reading(scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with counted(denoiser) as calls:
        made = featured(scene, denoiser, settings(folder, **SMALL))
        assert [part.info.bands for part in made.modalities.values()][-3:] == [16, 32, 32]
        pickle.dumps(made.grid)
        assert not calls
        assert not folder.exists()
        made.read("diffusion_1", Window(17, 33, 4, 4))
        assert calls == [50, 300], "one tile, at two timesteps"
        made.read("diffusion_2", Window(20, 40, 4, 4))
        made.read("diffusion_3", Window(20, 36, 4, 4))
        assert calls == [50, 300], "of all levels"
    assert len(list(folder.rglob("*.f16"))) == 1


@pytest.mark.parametrize("kept", ["folder", "memory"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_tile_is_computed_once_for_all_levels(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
    threads: int,
) -> None:
    if kept == "memory":
        no_room(monkeypatch)
    made = featured(scene, denoiser, settings(tmp_path, **SMALL))
    with counted(denoiser) as calls, ThreadPoolExecutor(threads) as pool:
        for _ in range(2):
            found = dict(zip(NAMES, pool.map(lambda name: made.read(name, scene.grid.window), NAMES), strict=True))
            assert same(found, expected)
            assert sorted(calls) == [50] * TILES + [300] * TILES
    assert len(list(tiles_of(made).places())) == TILES


def test_kept_tiles_are_used_again(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "landfuse")
    used = settings(tmp_path, **SMALL)
    read_all(featured(scene, denoiser, used))
    files = list(tmp_path.rglob("*.f16"))
    assert len(files) == TILES
    sizes = {path.name: path.stat().st_size for path in files}
    assert sizes["00000-00000.f16"] == 2 * (16 * 16 * 16 + 8 * 8 * 32 + 4 * 4 * 32), "half precision, level by level"
    assert sizes["00003-00004.f16"] == 2 * (4 * 8 * 16 + 2 * 4 * 32 + 1 * 2 * 32), "the last rows and columns"
    with counted(denoiser) as calls:
        assert same(read_all(featured(scene, denoiser, used)), expected)
    assert not calls
    assert caplog.text == ""


def test_computing_beforehand_computes_what_is_missing(
    scene: Scene, denoiser: TrainedDenoiser, expected: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    made = featured(scene, denoiser, settings(tmp_path, **SMALL))
    other = featured(simulate(20, 20, seed=5, hyperspectral_bands=6), denoiser, settings(tmp_path, **SMALL))
    with counted(denoiser) as calls:
        made.read("diffusion_3", Window(0, 0, 2, 2))
        assert len(calls) == 2
        compute_features([made, scene, other])
        assert len(calls) == 2 * (TILES + 4), "of both scenes, and what is there is left"
        compute_features([made, scene, other])
        assert same(read_all(made), expected)
        read_all(other)
        assert len(calls) == 2 * (TILES + 4)


def test_computing_beforehand_needs_a_folder(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)
    with counted(denoiser) as calls:
        compute_features([featured(scene, denoiser, settings(tmp_path, **SMALL))])
    assert not calls


def test_a_scene_that_the_denoiser_was_not_trained_for_is_refused(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path
) -> None:
    both = DiffusionFeatures(denoiser, settings(tmp_path))
    with pytest.raises(BundleError, match="has 7 bands"):
        both.of(simulate(16, 16, hyperspectral_bands=7))
    lacking = Scene(scene.name, scene.grid, {"hsi": scene.modalities["hsi"]}, scene.legend)
    with pytest.raises(BundleError, match="no modality `height`"):
        both.of(lacking)


# ---- where they are kept ---------------------------------------------------------------------------------------------


def test_another_denoiser_scene_or_setting_gets_its_own(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path
) -> None:
    def place(s: Scene, d: TrainedDenoiser, **changes: object) -> Path:
        folder = tiles_of(featured(s, d, settings(tmp_path, levels=(1,), **changes))).folder
        assert folder is not None
        assert folder.parent == tmp_path
        return folder

    other = simulate(50, 71, seed=5, hyperspectral_bands=6)
    places = [
        place(scene, denoiser),
        place(scene, denoiser_of(scene, seed=1)),
        place(other, denoiser),
        place(scene, denoiser, seed=1),
        place(scene, denoiser, timesteps=(50, 301)),
        place(scene, denoiser, tile=64),
        place(scene, denoiser, overlap=16),
    ]
    assert len(set(places)) == len(places)
    assert place(scene, denoiser) == places[0]


@pytest.mark.parametrize("size", [0, 100, 10**5])
def test_a_damaged_tile_is_computed_again(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    size: int,
) -> None:
    used = settings(tmp_path, **SMALL)
    read_all(featured(scene, denoiser, used))
    [file] = tmp_path.rglob("00001-00002.f16")
    good = file.read_bytes()
    file.write_bytes((good * 20)[:size])
    with counted(denoiser) as calls:
        assert same(read_all(featured(scene, denoiser, used)), expected)
        assert calls == [50, 300], "that tile alone, and once"
    assert caplog.text.count("damaged and computed again") == 1
    assert str(file) in caplog.text
    assert file.read_bytes() == good
    caplog.clear()
    read_all(featured(scene, denoiser, used))
    assert caplog.text == ""


@pytest.mark.parametrize("when", ["computing", "writing"])
def test_an_interruption_leaves_nothing_half_written(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    made = featured(scene, denoiser, settings(tmp_path, **SMALL))
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    class Stopping:
        def __init__(self, path: Path) -> None:
            path.write_bytes(b"half")

        def open(self, mode: str) -> Any:
            stop()

    @contextmanager
    def stopped(path: Path) -> Iterator[Any]:
        with whole_file(path) as partial:
            yield Stopping(partial)

    with monkeypatch.context() as patch:
        if when == "computing":
            patch.setattr(denoiser.network, "levels", stop)
        else:
            patch.setattr(tiles_module, "whole_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            read_all(made)
    assert calls
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert same(read_all(made), expected), "the same raster goes on"


def test_without_room_they_are_kept_in_memory(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    no_room(monkeypatch)
    made = featured(scene, denoiser, settings(tmp_path, **SMALL))
    assert same(read_all(made), expected)
    assert caplog.text.count("kept in memory") == 1
    # 52 x 72 px of 16 channels, and 32 each at a half and at a quarter, in half precision
    size = 2 * (52 * 72 * 16 + 26 * 36 * 32 + 13 * 18 * 32)
    assert f"they take {size / 1e9:.3g} GB, and {tmp_path} has 1e-06 GB left" in caplog.text
    assert "set features.cache" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tiles_of(made).folder is None


def test_room_is_needed_for_what_is_missing_only(
    scene: Scene,
    denoiser: TrainedDenoiser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = settings(tmp_path, **SMALL)
    read_all(featured(scene, denoiser, used))
    no_room(monkeypatch)
    with counted(denoiser) as calls:
        read_all(featured(scene, denoiser, used))
    assert not calls
    assert caplog.text == ""


def test_the_memory_is_bounded(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_room(monkeypatch)
    each = 2 * (16 * 16 * 16 + 8 * 8 * 32 + 4 * 4 * 32)
    for limit, held in ((3 * each, 3), (1, 1)):
        monkeypatch.setattr(tiles_module, "_IN_MEMORY", limit)
        made = featured(scene, denoiser, settings(tmp_path, **SMALL))
        most: list[int] = []
        keep = FeatureTiles._keep

        def watched(self: FeatureTiles, *args: Any, keep: Callable[..., None] = keep, most: list[int] = most) -> None:
            keep(self, *args)
            most.append(sum(level.nbytes for levels in self._memory.values() for level in levels))

        with monkeypatch.context() as patch, counted(denoiser) as calls:
            patch.setattr(FeatureTiles, "_keep", watched)
            assert same(read_all(made), expected)
            assert len(calls) > 2 * TILES, "those that were dropped are computed again"
            before = len(calls)
            inner = Window(49, 70, 1, 1)
            for name in NAMES[:2]:  # the third is interpolated with the tiles beside it
                made.read(name, inner)
            assert len(calls) == before, "the last is held with all its levels"
        assert max(most) <= held * each


@pytest.mark.parametrize("how", ["no folder", "while writing"])
def test_a_folder_that_cannot_be_written_gives_way_to_memory(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    (tmp_path / "file").write_text("")
    made = featured(scene, denoiser, settings(tmp_path / "file" if how == "no folder" else tmp_path / "new", **SMALL))
    written: list[Path] = []

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        if len(written) == 3:
            raise OutputError(f"{path} cannot be written: no space left", "room", "free some")
        written.append(path)
        with whole_file(path) as partial:
            yield partial

    monkeypatch.setattr(tiles_module, "whole_file", full)
    with counted(denoiser) as calls:
        assert same(read_all(made), expected)
    assert caplog.text.count("kept in memory") == 1, "it is reported once"
    if how == "no folder":
        assert not written
        assert len(calls) == 2 * TILES
    else:
        assert "no space left" in caplog.text
        assert len(list((tmp_path / "new").rglob("*.f16"))) == 3
        assert len(calls) <= 2 * (TILES + 3)


def test_a_pickled_raster_reads_the_same(
    scene: Scene,
    denoiser: TrainedDenoiser,
    expected: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As workers of a loader and of a cluster do, before and after anything was read."""
    made = featured(scene, denoiser, settings(tmp_path / "kept", **SMALL))
    window = Window(13, 7, 30, 33)
    for _ in range(2):
        alone = pickle.loads(pickle.dumps(made.modalities["diffusion_2"].raster))
        assert np.array_equal(alone.read(window), expected["diffusion_2"][:, *window.within(scene.grid.window)])
        whole = pickle.loads(pickle.dumps(made))
        assert len({id(tiles_of(whole, name)) for name in NAMES}) == 1, "the levels have their tiles in common"
        with counted(tiles_of(whole).denoiser) as calls:
            assert same(read_all(whole), expected)
        assert len(calls) <= 2 * TILES
    assert not calls, "what one process has written, another reads"

    no_room(monkeypatch)
    held = featured(scene, denoiser, settings(tmp_path / "held", **SMALL))
    before = len(pickle.dumps(held))
    read_all(held)
    assert len(pickle.dumps(held)) < before + 2000, "without the tiles in memory"
    assert same(read_all(pickle.loads(pickle.dumps(held))), expected)


def test_the_fingerprint_sees_a_changed_pixel_and_a_changed_file() -> None:
    scene, other = simulate(50, 71), simulate(50, 71, seed=1)
    assert fingerprint(scene, ["hsi"]) == fingerprint(simulate(50, 71), ["hsi"])
    assert fingerprint(scene, ["hsi"]) != fingerprint(other, ["hsi"])
    assert fingerprint(scene, ["hsi"]) != fingerprint(scene, ["height"])
