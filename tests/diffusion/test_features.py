"""Diffusion features: the same however they are asked for, kept on disk, and made again where they do not fit."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landfuse.diffusion.features import FeatureSettings, fingerprint, place_noise, with_features
from landfuse.diffusion.noise import add_noise, signal_share
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, own_maps
from landfuse.errors import OutputError, SettingsError
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.settings import parse
from landfuse.simulate.scene import simulate


def denoiser_of(scene: Scene, seed: int = 0, names: tuple[str, ...] = ("hsi", "height")) -> TrainedDenoiser:
    maps = own_maps([scene], [np.ones((scene.grid.height, scene.grid.width), bool)], names)
    torch.manual_seed(seed)
    made = TrainedDenoiser.untrained(maps, dict.fromkeys(names, 1), 8)
    for parameter in made.network.parameters():  # half of it begins at nought
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


def test_features_are_those_of_the_network_by_hand(scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path) -> None:
    (made,) = with_features([scene], denoiser, settings(tmp_path, overlap=0))
    assert list(made.modalities) == ["hsi", "height", "sar", "diffusion_1", "diffusion_2", "diffusion_3"]
    whole = Window(0, 0, 52, 72)  # mirrored to multiples of 4
    views = {
        name: own(torch.from_numpy(scene.read(name, whole)).movedim(0, -1)).movedim(-1, 0)[None]
        for name, own in denoiser.maps.items()
    }
    images, missing = denoiser.images(views)
    assert missing["height"].any(), "the gaps between flight lines"
    noise = place_noise(0, denoiser, whole)
    for place, t in enumerate((50, 300)):
        times = torch.tensor([t])
        noisy = {name: add_noise(image, noise[name], signal_share()[times]) for name, image in images.items()}
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


@pytest.mark.parametrize(
    "window", [Window(0, 0, 50, 71), Window(13, 7, 5, 9), Window(49, 70, 1, 1), Window(-3, 66, 9, 9)]
)
def test_a_window_holds_the_bytes_of_the_whole(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path, window: Window
) -> None:
    (made,) = with_features([scene], denoiser, settings(tmp_path, tile=32, overlap=16))
    around = Window(-8, -8, 80, 96)
    for name in ("diffusion_1", "diffusion_2", "diffusion_3"):
        assert np.array_equal(made.read(name, around)[:, *window.within(around)], made.read(name, window))


def test_tiles_that_overlap_by_twice_the_reach_are_the_whole(denoiser: TrainedDenoiser, tmp_path: Path) -> None:
    scene = simulate(136, 140, hyperspectral_bands=6)
    reach = denoiser.network.REACH
    whole, tiled = (
        with_features([scene], denoiser, settings(tmp_path, timesteps=(100,), tile=tile, overlap=2 * reach))[0]
        for tile in (512, 2 * reach + 64)
    )
    for name in ("diffusion_1", "diffusion_2", "diffusion_3"):
        assert whole.modalities[name].raster.path != tiled.modalities[name].raster.path
        one, other = (s.read(name, scene.grid.window) for s in (whole, tiled))
        np.testing.assert_allclose(one, other, atol=2e-3 * np.abs(one).max())


def test_there_are_no_features_where_no_modality_has_data(scene: Scene, tmp_path: Path) -> None:
    gaps = np.isnan(scene.read("height", scene.grid.window)[0])
    for names, expected in ((("height",), gaps), (("hsi", "height"), np.zeros_like(gaps))):
        (made,) = with_features([scene], denoiser_of(scene, names=names), settings(tmp_path, levels=(1,)))
        assert np.array_equal(np.isnan(made.read("diffusion_1", scene.grid.window)).all(axis=0), expected)
    assert gaps.any()


def test_noise_is_a_function_of_place(denoiser: TrainedDenoiser) -> None:
    outer, inner = Window(-10, 5, 30, 30), Window(0, 12, 8, 9)
    whole, part = place_noise(3, denoiser, outer), place_noise(3, denoiser, inner)
    for name in whole:
        assert torch.equal(whole[name][..., *inner.within(outer)], part[name])
    assert not torch.equal(place_noise(4, denoiser, inner)["hsi"], part["hsi"])
    flat = torch.cat([noise.flatten() for noise in place_noise(0, denoiser, Window(0, 0, 200, 200)).values()])
    assert float(flat.mean()) == pytest.approx(0, abs=0.01)
    assert float(flat.std()) == pytest.approx(1, abs=0.01)
    channels = place_noise(0, denoiser, Window(0, 0, 100, 100))["hsi"][0].flatten(1)
    correlated = torch.corrcoef(channels) - torch.eye(len(channels))
    assert float(correlated.abs().max()) < 0.05


def test_a_cache_is_used_again_and_told(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "landfuse")
    used = settings(tmp_path)
    (first,) = with_features([scene], denoiser, used)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.f16"))
    assert f"computing diffusion features: {size / 1e9:.3g} GB in {tmp_path}" in caplog.text
    caplog.clear()
    denoiser.network.levels = None  # type: ignore[assignment,method-assign]
    try:
        (again,) = with_features([scene], denoiser, used)
        (twice,) = with_features([again], denoiser, used)
    finally:
        del denoiser.network.levels
    assert caplog.text == ""
    for other in (again, twice, pickle.loads(pickle.dumps(again.modalities["diffusion_1"]))):
        raster = (other.modalities["diffusion_1"] if isinstance(other, Scene) else other).raster
        assert raster == first.modalities["diffusion_1"].raster
    assert list(twice.modalities) == list(first.modalities)


def test_another_denoiser_scene_or_setting_gets_its_own(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path
) -> None:
    def place(s: Scene, d: TrainedDenoiser, **changes: object) -> str:
        return (
            with_features([s], d, settings(tmp_path, levels=(1,), **changes))[0].modalities["diffusion_1"].raster.path
        )

    other = simulate(50, 71, seed=5, hyperspectral_bands=6)
    places = [
        place(scene, denoiser),
        place(scene, denoiser_of(scene, seed=1)),
        place(other, denoiser),
        place(scene, denoiser, seed=1),
        place(scene, denoiser, timesteps=(50, 301)),
    ]
    assert len(set(places)) == len(places)
    assert place(scene, denoiser) == places[0]


@pytest.mark.parametrize("harm", ["cut", "words", "stranger"])
def test_a_cache_that_does_not_fit_is_made_again(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    used = settings(tmp_path)
    (made,) = with_features([scene], denoiser, used)
    file = Path(made.modalities["diffusion_2"].raster.path)
    good, words = file.read_bytes(), file.with_name("features.json")
    expected = {"cut": "are not whole", "words": "are broken", "stranger": "are of another denoiser or scene"}[harm]
    if harm == "cut":
        file.write_bytes(good[:100])
    elif harm == "words":
        words.unlink()
    else:
        words.write_text(json.dumps({**json.loads(words.read_text()), "key": "x"}))
        file.write_bytes(bytes(len(good)))
    with_features([scene], denoiser, used)
    assert expected in caplog.text
    assert file.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == [file.parent.name], "nothing half-written is left"


def test_a_failure_leaves_nothing(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def levels(*_: object) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(denoiser.network, "levels", levels)
    with pytest.raises(KeyboardInterrupt):
        with_features([scene], denoiser, settings(tmp_path))
    assert calls
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before(
    scene: Scene, denoiser: TrainedDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"take .* GB, and .* has 1e-06 GB left"):
        with_features([scene], denoiser, settings(tmp_path))


def test_the_fingerprint_sees_a_changed_pixel_and_a_changed_file() -> None:
    scene, other = simulate(50, 71), simulate(50, 71, seed=1)
    assert fingerprint(scene, ["hsi"]) == fingerprint(simulate(50, 71), ["hsi"])
    assert fingerprint(scene, ["hsi"]) != fingerprint(other, ["hsi"])
    assert fingerprint(scene, ["hsi"]) != fingerprint(scene, ["height"])


@pytest.mark.parametrize(
    "wrong",
    [{"timesteps": []}, {"timesteps": [1000]}, {"levels": [1, 1]}, {"levels": [4]}, {"tile": 32, "overlap": 32}],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        parse(FeatureSettings, wrong, "features")
