"""Simulated scenes: one ground whatever window is read, honest noise, and classes that take both modalities."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score

from landfuse.legend import UNLABELLED
from landfuse.rasters.place_noise import gamma, hashed, normal
from landfuse.rasters.windows import Window, blocks
from landfuse.scenes.scene import Scene
from landfuse.simulate.scene import HEIGHT_NOISE, LOOKS, REFLECTANCE_NOISE, simulate, simulate_flat

SCENES = {
    "plausible": simulate(150, 210, seed=3, hyperspectral_bands=5),
    "flat": simulate_flat(150, 210, {"a": 3, "b": 2}, seed=3),
}
ROWS, COLS = np.arange(600, dtype=np.int64), np.arange(900, dtype=np.int64)


def whole(scene: Scene, modality: str) -> NDArray[np.float32]:
    return scene.read(modality, scene.grid.window)


@pytest.mark.parametrize("kind", SCENES)
def test_windows_agree_with_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = SCENES[kind]
    expected = {name: whole(scene, name) for name in scene.modalities}
    labels = scene.read_labels() if scene.read_labels else None
    for side in (1 << 16, 1000):  # the size of the pieces in which windows are computed must not show either
        monkeypatch.setattr("landfuse.rasters.place_noise._CHUNK", side)
        for name, full in expected.items():
            raster = scene.modalities[name].raster
            assert (raster.bands, raster.dtype) == (len(full), full.dtype)
            for window in [*blocks(150, 210, 64), Window(149, 209, 1, 1), Window(17, 3, 1, 200), Window(5, 101, 90, 1)]:
                rows, cols = window.within(scene.grid.window)
                np.testing.assert_array_equal(raster.read(window), full[:, rows, cols])
        assert scene.read_labels is not None
        np.testing.assert_array_equal(scene.read_labels(), labels)


@pytest.mark.parametrize(
    "make",
    [
        lambda h, w, s: simulate(h, w, s, hyperspectral_bands=3),
        lambda h, w, s: simulate_flat(h, w, {"a": 3}, s),
    ],
)
def test_the_seed_and_only_the_seed_decides(make: Any) -> None:
    scene, again, larger, other = make(60, 70, 5), make(60, 70, 5), make(90, 300, 5), make(60, 70, 6)
    for name in scene.modalities:
        values = whole(scene, name)
        np.testing.assert_array_equal(values, whole(again, name))
        np.testing.assert_array_equal(values, larger.read(name, scene.grid.window))
        assert not np.allclose(values, whole(other, name), equal_nan=True)
    np.testing.assert_array_equal(scene.labels, larger.labels[:60, :70])


def test_pickles_and_is_lazy() -> None:
    scene = simulate_flat(20_000, 20_000, {"a": 12})
    assert len(pickle.dumps(scene)) < 10_000
    again = pickle.loads(pickle.dumps(SCENES["plausible"]))
    np.testing.assert_array_equal(whole(again, "hsi"), whole(SCENES["plausible"], "hsi"))
    far = scene.read("a", Window(19_990, 19_990, 10, 10))
    assert far.shape == (12, 10, 10)
    assert not np.array_equal(far[0], far[1])


def test_hash_bits_are_even_and_uncorrelated() -> None:
    bits = hashed(1, 2, ROWS, COLS)
    for shift in range(0, 32, 5):
        bit = ((bits >> np.uint32(shift)) & np.uint32(1)).astype(np.float64) - 0.5
        limit = 5 * 0.5 / bit.size**0.5  # five standard errors
        assert abs(bit.mean()) < limit
        for moved in (bit[1:, :] * bit[:-1, :], bit[:, 1:] * bit[:, :-1], bit[1:, 1:] * bit[:-1, :-1]):
            assert abs(moved.mean()) < 5 * 0.25 / moved.size**0.5
        # Where keys of rows and columns are only combined linearly, the four corners of a rectangle cancel out.
        corners = bit[:300, :400] * bit[300:, :400] * bit[:300, 400:800] * bit[300:, 400:800]
        assert abs(corners.mean()) < 5 * 0.5**4 / corners.size**0.5
    for other in (hashed(1, 3, ROWS, COLS), hashed(2, 2, ROWS, COLS), hashed(1 + (1 << 32), 2, ROWS, COLS)):
        assert abs(np.corrcoef(bits.reshape(-1), other.reshape(-1))[0, 1]) < 5 / bits.size**0.5
    assert len(np.unique(bits)) > 0.999 * bits.size


def test_normal_and_gamma_numbers() -> None:
    even = normal(0, 1, ROWS, COLS).astype(np.float64)
    n = even.size
    assert abs(even.mean()) < 5 / n**0.5
    assert even.var() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert (even > 2).mean() == pytest.approx(0.02275, rel=0.05)
    speckle = gamma(0, 10, ROWS, COLS, LOOKS).astype(np.float64)
    assert speckle.mean() == pytest.approx(1, abs=5 * (1 / LOOKS / n) ** 0.5)
    assert speckle.var() == pytest.approx(1 / LOOKS, rel=0.02)
    assert ((speckle - 1) ** 3).mean() / speckle.var() ** 1.5 == pytest.approx(2 / LOOKS**0.5, rel=0.05)  # its skewness


@pytest.fixture(scope="module")
def scene() -> Scene:
    return simulate(256, 256, seed=0)


def test_sensors_see_the_stated_physics(scene: Scene) -> None:
    hsi, height, sar, labels = whole(scene, "hsi"), whole(scene, "height")[0], whole(scene, "sar"), scene.labels
    assert hsi.min() >= 0
    assert 0.4 < hsi.max() < 1
    patches = simulate(256, 256, seed=0, labelled_fraction=1).labels
    named = {c.name: labels == index for index, c in enumerate(scene.legend)}
    assert all(mask.sum() > 300 for mask in named.values())
    # Speckle: intensity over one class has the mean of its table and the variance of LOOKS looks.
    for band, decibels in enumerate((-12, -20)):
        power = 10 ** (sar[band][named["bare soil"]].astype(np.float64) / 10)
        assert power.mean() == pytest.approx(10 ** (decibels / 10), rel=0.03)
        assert power.var() / power.mean() ** 2 == pytest.approx(1 / LOOKS, rel=0.1)
    speckle = np.corrcoef(sar[:, named["bare soil"]])[0, 1]
    assert abs(speckle) < 5 / named["bare soil"].sum() ** 0.5  # the polarisations' speckle is independent
    assert np.nanstd(height[named["road"]]) == pytest.approx(HEIGHT_NOISE, rel=0.05)
    assert 5 < np.nanmedian(height[named["building"]]) < 12
    # Vegetation has a red edge, soil has not; water is dark in the infrared.
    wavelength = np.linspace(0.4, 2.4, len(hsi))
    red, infrared = (hsi[np.abs(wavelength - um).argmin()] for um in (0.66, 0.85))
    index = (infrared - red) / (infrared + red)
    assert index[named["trees"]].mean() > 0.6
    assert abs(index[named["bare soil"]].mean()) < 0.3
    assert infrared[named["water"]].mean() < 0.05
    # Illumination: along unbroken runs of soil, 15 px on, brightness differs far more than averaged noise does.
    soil = patches == 1
    run = np.lib.stride_tricks.sliding_window_view(soil, 16, axis=1).all(axis=2)
    bright = hsi.mean(axis=0)
    ratio = (bright[:, 15:] / bright[:, :-15])[run]
    assert run.sum() > 300
    assert ratio.std() > 0.03
    # Within a small patch of water the spectra differ by noise only.
    patch = patches == 0
    pairs = patch[:, 1:] & patch[:, :-1]
    difference = (hsi[10][:, 1:] - hsi[10][:, :-1])[pairs]
    assert difference.std() == pytest.approx(REFLECTANCE_NOISE * 2**0.5, rel=0.1)


def test_borders_are_mixed_and_unlabelled(scene: Scene) -> None:
    every = simulate(256, 256, seed=0, labelled_fraction=1)
    mixed = every.labels == UNLABELLED
    assert 0.05 < mixed.mean() < 0.3
    assert 0.3 < (scene.labels == UNLABELLED).mean() < 0.65
    agree = scene.labels[scene.labels != UNLABELLED] == every.labels[scene.labels != UNLABELLED]
    assert agree.all()
    # A mixed pixel between bare soil and water lies between the two in the infrared, where they differ tenfold.
    infrared = whole(scene, "hsi")[20]
    left, middle, right = every.labels[:, :-2], every.labels[:, 1:-1], every.labels[:, 2:]
    row, col = np.nonzero((left == 0) & (middle == UNLABELLED) & (right == 1))
    assert row.size > 3
    assert (infrared[row, col] < infrared[row, col + 1]).mean() > 0.8
    assert (infrared[row, col + 1] < infrared[row, col + 2]).mean() > 0.8


def test_gaps(scene: Scene) -> None:
    missing = np.isnan(whole(scene, "height")[0])
    assert missing.mean() == pytest.approx(0.03, abs=0.01)
    assert not any(np.isnan(whole(scene, name)).any() for name in ("hsi", "sar"))
    assert not np.isnan(whole(simulate(200, 200, nodata_fraction=0), "height")).any()
    assert np.isnan(whole(simulate(64, 64, nodata_fraction=1), "height")).all()


def test_both_modalities_are_needed(scene: Scene) -> None:
    train, test = simulate(256, 256, seed=1), scene

    def pixels(of: Scene, names: tuple[str, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
        values = np.concatenate([whole(of, name) for name in names])
        known = (of.labels != UNLABELLED) & np.isfinite(whole(of, "height")[0])
        return values[:, known].T[::7], of.labels[known][::7]

    accuracy = {}
    for names in (("hsi",), ("height",), ("hsi", "height")):
        model = RandomForestClassifier(40, min_samples_leaf=3, random_state=0)
        model.fit(*pixels(train, names))
        values, truth = pixels(test, names)
        accuracy[names] = balanced_accuracy_score(truth, model.predict(values))
    assert accuracy["hsi", "height"] > 0.9, accuracy
    assert accuracy["hsi",] < 0.72, accuracy
    assert accuracy["height",] < 0.52, accuracy


def test_flat_fields_can_be_learnt() -> None:
    flat = simulate_flat(256, 256, {"a": 2})
    assert sorted(np.unique(flat.labels)) == [0, 1, 2, 3]
    low, high = (np.median(whole(flat, "a")[1][flat.labels // 2 == side]) for side in (0, 1))
    assert high - low > 0.7
