"""Standardise and PCA against scikit-learn and NumPy in float64; the same bits for a pixel in any company (P1, P4)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from landfuse.errors import ModelError, SettingsError
from landfuse.scenes.scene import ModalityInfo, Scene, SceneModality
from landfuse.settings import parse
from landfuse.simulate.scene import SimulatedRaster, simulate_flat
from landfuse.views.mapped_pixels import fit_pixel_maps
from landfuse.views.pixel_arrays import PixelArrays
from landfuse.views.pixel_map import PixelMap, PixelStatistics
from landfuse.views.settings import PixelMapSettings


def pixels(count: int, bands: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated bands of very different size, as sensors give them."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, bands)) @ rng.normal(size=(bands, bands))
    return (mixed * 10.0 ** rng.uniform(-2, 3, bands) + 10.0 ** rng.uniform(-1, 4, bands)).astype(np.float32)


def fitted(x: NDArray[np.float32], **options: object) -> PixelMap:
    statistics = PixelStatistics(x.shape[1])
    statistics.update(torch.from_numpy(x))
    return statistics.pixel_map(PixelMapSettings.model_validate(options), "m")


def test_standardise_is_that_of_scikit_learn() -> None:
    x = pixels(5000, 7)
    truth = StandardScaler().fit_transform(x.astype(np.float64))
    found = fitted(x)(torch.from_numpy(x)).numpy()
    # float32 holds a band of mean m and deviation s to about m / s * 6e-8
    assert np.abs(found - truth).max() < 2e-4
    assert np.abs(found[:, 0] - truth[:, 0]).max() < 2e-5


@pytest.mark.parametrize("whiten", [True, False])
def test_pca_is_that_of_scikit_learn(whiten: bool) -> None:
    x = pixels(4000, 9, seed=1) / np.float32(1000)
    truth = PCA(5, whiten=whiten, svd_solver="full").fit(x.astype(np.float64))
    expected = truth.transform(x.astype(np.float64))
    if whiten:
        expected /= np.sqrt(1 - 1 / len(x))  # scikit-learn divides by n - 1
    else:
        expected /= expected[:, 0].std()
    expected *= np.sign(np.take_along_axis(truth.components_, np.abs(truth.components_).argmax(1)[:, None], 1))[:, 0]
    found = fitted(x, kind="pca", components=5, whiten=whiten)(torch.from_numpy(x)).numpy()
    assert found.shape == (4000, 5)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_statistics_in_parts_are_those_of_the_whole() -> None:
    x = pixels(3000, 4, seed=2)
    whole, parts = PixelStatistics(4), PixelStatistics(4)
    whole.update(torch.from_numpy(x))
    for part in np.array_split(x, [1, 2, 700, 701, 2500]):
        parts.update(torch.from_numpy(part))
    parts.update(torch.empty(0, 4))
    assert parts.count == whole.count == 3000
    exact = x.astype(np.float64)
    for statistics in (whole, parts):
        np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.scatter / 3000, np.cov(exact.T, bias=True), rtol=1e-9, atol=1e-9)


def test_pixels_without_data_are_left_out_and_become_zero() -> None:
    x = pixels(500, 3, seed=3)
    holes = x.copy()
    holes[::5, 1] = np.nan
    kept = np.delete(x, np.arange(0, 500, 5), axis=0)
    for options in ({}, {"kind": "pca", "components": 2}):
        from_holes, from_kept = fitted(holes, **options), fitted(kept, **options)
        np.testing.assert_array_equal(from_holes.weight, from_kept.weight)
        np.testing.assert_array_equal(from_holes.bias, from_kept.bias)
        mapped = from_holes(torch.from_numpy(holes)).numpy()
        assert np.isfinite(mapped).all()
        gone = mapped[::5] if options else mapped[::5, 1]
        assert (gone == 0).all()
        assert (np.delete(mapped, np.arange(0, 500, 5), axis=0) != 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 4000.0])
def test_a_constant_band_becomes_zero(value: float) -> None:
    x = pixels(300, 3, seed=4)
    x[:, 1] = value
    statistics = PixelStatistics(3)
    for part in np.array_split(x, 7):  # rounding in the merging must not make it seem to vary
        statistics.update(torch.from_numpy(part))
    mapped = statistics.pixel_map(PixelMapSettings(), "m")(torch.from_numpy(x))
    assert torch.isfinite(mapped).all()
    assert (mapped[:, 1] == 0).all()
    assert mapped[:, 0].std() == pytest.approx(1, abs=0.01)
    whitened = fitted(x, kind="pca", components=3)(torch.from_numpy(x))
    assert torch.isfinite(whitened).all()
    assert whitened.abs().max() < 20


def test_clip_and_none() -> None:
    x = pixels(300, 2, seed=5)
    mapped = fitted(x, clip=1.5)(torch.from_numpy(x))
    assert mapped.max() == 1.5
    assert mapped.min() == -1.5
    np.testing.assert_array_equal(fitted(x, kind="none")(torch.from_numpy(x)), x)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no training pixel has data in `lidar`"):
        PixelStatistics(2).pixel_map(PixelMapSettings(), "lidar")
    x = pixels(50, 3)
    x[:, 1] = np.nan
    with pytest.raises(ModelError, match=r"no training pixel has data in band 2 of the 3 in use of `m`"):
        fitted(x)
    with pytest.raises(ModelError, match=r"keep 30 components of 3 bands(.|\n)*pixel_maps\.m\.components"):
        fitted(pixels(50, 3), kind="pca")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(3, None), (12, None), (12, 5), (13, 7), (6, 4), (7, 1), (48, 12)]),
    st.integers(0, 9000),
    st.integers(1, 6000),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_a_pixel_has_the_same_bits_in_any_company(
    shape: tuple[int, int | None], first: int, count: int, band_first: bool, threads: int
) -> None:
    bands, components = shape
    x = torch.from_numpy(pixels(10_000, bands, seed=6))
    torch.manual_seed(0)
    weight = torch.randn(bands) if components is None else torch.randn(components, bands)
    pixel_map = PixelMap(weight, torch.randn(len(weight)))
    before = torch.get_num_threads()
    try:
        whole = pixel_map(x)
        torch.set_num_threads(threads)  # loader workers have one
        part = x[first : first + count].clone()
        if band_first:  # as rasters come
            part = part.T.contiguous().T
        assert torch.equal(pixel_map(part), whole[first : first + count])
    finally:
        torch.set_num_threads(before)


class _Altered:
    """A raster whose pixels outside a mask are others."""

    def __init__(self, source: SimulatedRaster, kept: NDArray[np.bool_], value: float) -> None:
        self.source, self.kept, self.value = source, kept, value

    def __call__(self, window: object) -> NDArray[np.float32]:
        values = self.source.read(window)  # type: ignore[arg-type]
        return np.where(self.kept[window.within(self.source.grid.window)], values, self.value).astype(np.float32)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["standardise", "pca"])
def test_only_training_pixels_are_looked_at(kind: str) -> None:
    scene = simulate_flat(600, 40, {"a": 4})  # two blocks
    training = np.random.default_rng(0).random((600, 40)) < 0.3
    wanted = {"a": PixelMapSettings.model_validate({"kind": kind, "components": 3})}

    def altered(value: float) -> Scene:
        own = scene.modalities["a"].raster
        assert isinstance(own, SimulatedRaster)
        raster = SimulatedRaster(own.grid, own.bands, _Altered(own, training, value), "altered")
        return replace(scene, modalities={"a": SceneModality(raster)})

    truth = scene.read("a", scene.grid.window)[:, training].astype(np.float64)
    maps = [fit_pixel_maps([s], [training], wanted)["a"] for s in (scene, altered(1e6), altered(float("nan")))]
    if kind == "standardise":
        np.testing.assert_allclose(maps[0].weight, 1 / truth.std(axis=1), rtol=1e-6)
    for other in maps[1:]:
        assert torch.equal(other.weight, maps[0].weight)
        assert torch.equal(other.bias, maps[0].bias)


def test_published_statistics_are_taken_as_they_are() -> None:
    settings = PixelMapSettings(kind="given", mean=(763.88, -12.54), std=(248.19, 2.42))
    pixel_map = PixelStatistics(2).pixel_map(settings, "s2")  # no training pixel is looked at
    pixels = torch.tensor([[763.88, -12.54], [1012.07, -14.96], [torch.nan, 0.0]])
    expected = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 12.54 / 2.42]])
    torch.testing.assert_close(pixel_map(pixels), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="gives 2 means and deviations for 3 bands"):
        PixelStatistics(3).pixel_map(settings, "s2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "given"}, "needs `mean` and `std`"),
        ({"kind": "given", "mean": [1.0]}, "needs `mean` and `std`"),
        ({"mean": [1.0], "std": [1.0]}, "no other kind has them"),
        ({"kind": "given", "mean": [1.0], "std": [1.0, 2.0]}, "the same length"),
        ({"kind": "given", "mean": [1.0], "std": [0.0]}, "greater than 0"),
    ],
)
def test_published_statistics_must_fit(values: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(PixelMapSettings, values, "here")


# ---- stand-ins, and the form without torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kind": "pca", "components": 2}], ids=str)
@pytest.mark.parametrize("stand_in", [math.nan, 0.0, -3.5])
def test_a_stand_in_takes_all_channels_of_a_pixel_that_lacks_a_band(options: dict, stand_in: float) -> None:
    x = pixels(400, 3, seed=3)
    own = fitted(x, **options)
    holes = x.copy()
    holes[::5, 1] = np.nan
    holes[1::5, 2] = np.inf
    lacking = ~np.isfinite(holes).all(axis=1)
    assert lacking.mean() == pytest.approx(0.4)
    plain, mapped = own(torch.from_numpy(holes)), own(torch.from_numpy(holes), stand_in)
    assert torch.equal(mapped[~lacking], plain[~lacking])
    np.testing.assert_array_equal(mapped[lacking].numpy(), np.full((int(lacking.sum()), own.channels), stand_in))
    image = torch.from_numpy(holes).view(20, 20, 3)
    np.testing.assert_array_equal(own(image, stand_in).flatten(0, 1).numpy(), mapped.numpy())
    assert torch.equal(own(torch.from_numpy(x), stand_in), own(torch.from_numpy(x))), "where all bands have data"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 1000, 9000])
@pytest.mark.parametrize("stand_in", [None, math.nan, 0.0, 2.5])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"clip": 1.5}, {"kind": "none"}, {"kind": "given", "mean": [1, 2, 3, 4], "std": [1, 2, 3, 4]},
        {"kind": "pca", "components": 3}, {"kind": "pca", "components": 1}, {"kind": "pca", "components": 2, "clip": 1},
        {"kind": "pca", "components": 4, "whiten": False},
    ],
    ids=str,
)  # fmt: skip
def test_arrays_give_what_the_map_of_torch_gives(options: dict, stand_in: float | None, count: int) -> None:
    own = fitted(pixels(3000, 4, seed=7) / np.float32(100), **options)
    x = pixels(9000, 4, seed=8)[:count] / np.float32(100)
    x[::7, 1] = np.nan
    x[::11] = np.nan
    before = x.copy()
    found, expected = own.arrays(x, stand_in), own(torch.from_numpy(x.copy()), stand_in).numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (count, own.channels)
    if own.weight.dim() == 1:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(own.bias.numpy()).max())
        np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_array_equal(x, before), "the pixels are left as they were"


def test_arrays_are_those_of_the_map() -> None:
    own = fitted(pixels(300, 3, seed=9), kind="pca", components=2, clip=2.0)
    arrays = own.arrays
    np.testing.assert_array_equal(arrays.weight, own.weight.numpy())
    np.testing.assert_array_equal(arrays.bias, own.bias.numpy())
    assert arrays.clip == 2.0
    assert fitted(pixels(300, 3, seed=9)).arrays.clip == math.inf


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(3, None), (12, None), (12, 5), (13, 7), (6, 4), (7, 1), (48, 12)]),
    st.integers(0, 9000),
    st.integers(1, 6000),
    st.booleans(),
)
def test_arrays_give_a_pixel_the_same_bits_in_any_company(
    shape: tuple[int, int | None], first: int, count: int, band_first: bool
) -> None:
    bands, components = shape
    x = pixels(10_000, bands, seed=6)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=bands if components is None else (components, bands)).astype(np.float32)
    arrays = PixelArrays(weight, rng.normal(size=len(weight)).astype(np.float32))
    part = x[first : first + count].copy()
    if band_first:  # as rasters come
        part = part.T.copy().T
    assert np.array_equal(arrays(part), arrays(x)[first : first + count])


def test_gaps_of_a_series_are_the_mean_of_their_band_and_no_reason_for_a_stand_in() -> None:
    values = np.random.default_rng(0).normal(5, [1, 2, 3], (900, 3)).astype(np.float32)
    values[np.arange(900), np.arange(900) % 3] = np.nan  # no pixel has all of its bands
    statistics = PixelStatistics(3, gaps=True)
    statistics.update(torch.from_numpy(values[:400]))
    statistics.update(torch.from_numpy(values[400:]))
    own = statistics.pixel_map(PixelMapSettings(), "s2")
    own.gaps = True
    exact = values.astype(np.float64)
    expected = np.nan_to_num((exact - np.nanmean(exact, axis=0)) / np.nanstd(exact, axis=0))
    values[0] = np.nan
    for mapped in (own(torch.from_numpy(values), 7.0).numpy(), own.arrays(values, 7.0)):
        np.testing.assert_array_equal(mapped[0], [7, 7, 7])
        np.testing.assert_allclose(mapped[1:], expected[1:], rtol=1e-5, atol=1e-5)


def test_days_that_training_does_not_show_are_scaled_as_the_others() -> None:
    info = ModalityInfo(7, "float32", "1", 1, steps=("2023-04", "2023-05", "2023-06"), per_step=2)
    own = PixelMap(torch.tensor([2.0, 0, 0, 0, 4, 0, 0]), torch.tensor([1.0, 0, 0, 0, 3, 0, 0]))
    own.scale_unseen(info)
    assert own.weight.tolist() == [2, 0, 3, 0, 4, 0, 0]
    assert own.bias.tolist() == [1, 0, 2, 0, 3, 0, 0]
    assert own.modality(info) == (7, 1, (104.5, 135.0, 165.5), 2)
    mixed = PixelMap(torch.zeros(3, 7), torch.zeros(3))
    mixed.scale_unseen(info)
    assert mixed.modality(info) == (3, 1, (), 0)
