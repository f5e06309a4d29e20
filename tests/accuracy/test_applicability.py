"""Where a model may be trusted: dissimilarities against a plain loop, folds of groups, and the layer of a map."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from landfuse.accuracy.applicability import (
    CAP,
    Applicability,
    ErrorsByDissimilarity,
    Mix,
    Predictors,
    drawn,
)
from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.table_bundle import TableBundle
from landfuse.errors import SettingsError
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.mapping.predict import predict
from landfuse.rasters.arrays import ArrayRaster
from landfuse.scenes.scene import ModalityInfo, Scene, SceneModality
from landfuse.simulate.scene import simulate_flat
from landfuse.training.run import read_run
from landfuse.views.pixel_map import PixelMap


def applicability_of(points: dict[str, Any], folds: list[int], known: Any = None) -> Applicability:
    """One whose predictors are the bands themselves."""
    arrays = {name: np.asarray(values, np.float32) for name, values in points.items()}
    own = {}
    for name, values in arrays.items():
        depth = values.shape[1]
        same = Mix(np.zeros(depth, np.float32), np.eye(depth, dtype=np.float32))
        own[name] = Predictors(ModalityInfo(depth, "float32", "", 1), (), same, same)
    has = np.ones((len(folds), len(arrays)), bool) if known is None else np.asarray(known, bool)
    return Applicability(own, arrays, has, np.array(folds, np.uint8), "groups")


def plain(
    points: NDArray[np.float64], folds: NDArray[np.int64], pixels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """The index of Meyer and Pebesma of pixels and its threshold, pixel by pixel."""
    pairs = [np.linalg.norm(p - q) for i, p in enumerate(points) for q in points[:i]]
    mean = np.mean(pairs)
    own = [
        min(np.linalg.norm(p - q) for q, other in zip(points, folds, strict=True) if other != fold) / mean
        for p, fold in zip(points, folds, strict=True)
    ]
    first, third = np.percentile(own, [25, 75])
    threshold = max(one for one in own if one <= third + 1.5 * (third - first))
    return np.array([min(np.linalg.norm(x - p) for p in points) / mean for x in pixels]), threshold


def test_by_hand() -> None:
    """Training pixels at 0, 1, 3 and 7 in folds of their own: the nearest others lie at 1, 1, 2 and 4."""
    known = applicability_of({"a": [[0], [1], [3], [7]]}, [0, 1, 2, 3])
    # The quartiles are 1 and 2.5, and 4 <= 2.5 + 1.5 * 1.5.
    found = known.dissimilarity({"a": np.float32([[0], [5], [-2], [100], [np.nan]])})
    np.testing.assert_allclose(found[0], [0, 0.5, 0.5, CAP, np.nan])
    np.testing.assert_array_equal(found[0], found[1])
    # In two folds the nearest others of 0, 1, 3 and 7 lie at 3, 2, 2 and 6: the limit is 6.
    found = applicability_of({"a": [[0], [1], [3], [7]]}, [0, 0, 1, 1]).dissimilarity({"a": np.float32([[10]])})
    np.testing.assert_allclose(found[0], [0.5])


def test_outliers_do_not_raise_the_limit() -> None:
    known = applicability_of({"a": [*[[x] for x in range(20)], [1000]]}, [*range(21)])
    np.testing.assert_allclose(known.dissimilarity({"a": np.float32([[-2]])})[0], [2.0])


def test_where_training_pixels_are_alike() -> None:
    known = applicability_of({"a": [*[[0]] * 9, [4]], "b": [[3]] * 10}, [*range(10)])
    found = known.dissimilarity({"a": np.float32([[1], [0]]), "b": np.float32([[3], [9]])})
    np.testing.assert_allclose(found, [[0.25, 1.5], [0.25, 0], [np.nan, np.nan]])


def test_of_several_modalities_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    points = {"a": rng.normal(size=(60, 3)), "b": rng.normal(size=(60, 2)) * 2}
    has = np.ones((60, 2), bool)
    has[:10, 1] = False  # training pixels without b
    folds = rng.integers(0, 4, 60)
    pixels = {"a": rng.normal(size=(40, 3)) * 2, "b": rng.normal(size=(40, 2)) * 3}
    pixels["a"][:8], pixels["b"][4:15] = np.nan, np.nan
    known = applicability_of(points, folds.tolist(), has)
    found = known.dissimilarity({name: values.astype(np.float32) for name, values in pixels.items()})
    exact = {name: values.astype(np.float32).astype(float) for name, values in points.items()}
    for pixel in range(40):
        there = [name for name in points if not np.isnan(pixels[name][pixel]).any()]
        for row, names in ((0, there), (1, ["a"]), (2, ["b"])):
            if not names or not set(names) <= set(there):
                assert np.isnan(found[row, pixel])
                continue
            rows = has[:, [list(points).index(name) for name in names]].all(axis=1)
            x = np.concatenate([pixels[name][pixel] for name in names]).astype(np.float32)[None]
            index, threshold = plain(np.concatenate([exact[n][rows] for n in names], 1), folds[rows], x)
            np.testing.assert_allclose(found[row, pixel], min(index[0] / threshold, CAP), rtol=1e-5)


def test_pixels_are_compared_alike_however_many_at_once() -> None:
    rng = np.random.default_rng(0)
    known = applicability_of({"a": rng.normal(size=(300, 6))}, (np.arange(300) % 5).tolist())
    x = rng.normal(size=(257, 6)).astype(np.float32)
    whole = known.dissimilarity({"a": x})
    assert (
        whole.tobytes() == np.concatenate([known.dissimilarity({"a": x[i : i + 1]}) for i in range(257)], 1).tobytes()
    )


def test_components_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 5).astype(np.float32)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    expected = PCA(4, whiten=True).fit_transform(scaled)
    found = Mix.fitted(x, whiten=True)(x)
    np.testing.assert_allclose(np.abs(found), np.abs(expected) / 2, atol=2e-3)  # variances are 1 in sum
    together = np.concatenate([x, 5 * x], axis=1)  # of columns that are standardised as one, the larger ones count more
    expected = PCA(4).fit_transform((together - together.mean(axis=0)) / np.sqrt(together.var(axis=0).mean()))
    expected /= np.sqrt(expected.var(axis=0).sum())
    np.testing.assert_allclose(np.abs(Mix.fitted(together, 12)(together)), np.abs(expected), atol=2e-3)


def test_columns_that_are_missing_or_constant_say_nothing() -> None:
    x = np.float32([[1, 7, np.nan], [2, 7, 3], [3, 7, 5]])
    mixed = Mix.fitted(x)(np.float32([[2, 900, np.nan], [np.nan, 7, 4]]))
    np.testing.assert_allclose(mixed, 0, atol=1e-6)
    assert not Mix.fitted(np.full((3, 2), 0.1, np.float32))(np.float32([[5, 5]])).any()


def test_drawn_pixels_are_of_all_classes_and_spread_over_groups() -> None:
    labels = np.full((40, 40), UNLABELLED, np.uint8)
    labels[:, :30], labels[0, 30:33] = 0, 1  # 1,200 and 3 px
    groups = np.zeros((40, 40), int)
    groups[:, 29], groups[:, 30:] = 1, 2  # 1,160, 40 and 400 px
    places, group = drawn([labels, np.full((2, 2), UNLABELLED, np.uint8)], [groups, np.full((2, 2), 3)], most=43)
    assert len(np.unique(places, axis=0)) == 43
    found = labels[places[:, 1], places[:, 2]]
    np.testing.assert_array_equal(np.bincount(found), [40, 3])
    np.testing.assert_array_equal(np.bincount(group[found == 0]), [20, 20])
    again, _ = drawn([labels], [groups], most=43)
    np.testing.assert_array_equal(places, again)


def test_errors_are_counted_by_dissimilarity() -> None:
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 251, (2, 400)) / 100).astype(np.float32)
    wrong = rng.random(400) < values[0] / 3
    values[1, :50] = np.nan
    counted = ErrorsByDissimilarity(["a"])
    for part in (slice(0, 123), slice(123, 400)):
        counted.update(values[:, part], wrong[part])
    facts = counted.facts()
    assert list(facts) == ["together", "a"]
    inside = values[0] <= 1
    assert facts["together"]["AUROC"] == pytest.approx(roc_auc_score(wrong, values[0]))
    assert facts["together"]["inside"] == pytest.approx(inside.mean())
    assert facts["together"]["error_inside"] == pytest.approx(wrong[inside].mean())
    assert facts["together"]["error_outside"] == pytest.approx(wrong[~inside].mean())
    first, second, *_, last = facts["together"]["parts"]
    assert first["error"] == pytest.approx(wrong[values[0] <= 0.25].mean())
    assert second["pixels"] == ((values[0] > 0.25) & (values[0] <= 0.5)).sum()
    assert sum(part["pixels"] for part in facts["together"]["parts"]) == 400
    assert last["to"] == CAP
    assert facts["a"]["pixels"] == 350
    nothing = ErrorsByDissimilarity([]).facts()["together"]
    assert (nothing["pixels"], nothing["AUROC"], nothing["inside"]) == (0, None, None)


# ---- of scenes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene() -> Scene:
    """64 x 64 px with `a`, `b` of a corner without data, and a finer `c`; the last quarter is of another kind."""
    flat = simulate_flat(64, 64, {"a": 3, "b": 2, "c": 1})
    values = {name: flat.read(name, flat.grid.window) for name in ("a", "b")}
    values["a"][:, 32:, 32:] += 60
    values["b"][:, :6, :9] = np.nan
    modalities = {
        name: SceneModality(ArrayRaster(one, "CHW", flat.grid, name), units="1") for name, one in values.items()
    }
    fine = np.random.default_rng(0).normal(size=(1, 128, 128)).astype(np.float32)
    modalities["c"] = SceneModality(ArrayRaster(fine, "CHW", flat.grid.zoomed(2), "c"), zoom=2, units="1")
    return replace(flat, modalities=modalities)


def bundle_of(scene: Scene, view: int, **settings: Any) -> Bundle:
    torch.manual_seed(0)
    maps = {
        name: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for name, m in scene.modalities.items()
    }
    infos = {name: m.info for name, m in scene.modalities.items()}
    spec = ModelSpec("two_branch", {"view": view, "width": 4})
    return Bundle(spec, maps, infos, scene.legend, **settings).eval()


def upper_left(scene: Scene) -> NDArray[np.uint8]:
    """The labels outside the quarter of another kind."""
    target = scene.labels.copy()
    target[32:, 32:] = UNLABELLED
    return target


def fitted(scene: Scene, bundle: Bundle) -> Applicability:
    groups = "blocks of 8 px", [np.arange(64)[:, None] // 8 * 8 + np.arange(64) // 8]
    known = Applicability.fitted([scene], [upper_left(scene)], groups, bundle.description, mirror=True)
    assert known is not None
    known.attach(bundle)
    return known


@pytest.fixture(scope="module")
def bundle(scene: Scene) -> Bundle:
    made = bundle_of(scene, 7, droppable=["b", "c"])
    fitted(scene, made)
    return made


def plain_predictors(scene: Scene, name: str, own: Predictors, row: int, col: int) -> NDArray[np.float64]:
    """Those of a pixel: components, then their means and deviations in windows, pixel by pixel in float64."""
    zoom, features = scene.modalities[name].zoom, []
    from landfuse.rasters.windows import Window

    def components(side: int) -> NDArray[np.float64]:
        half = side // 2
        values = scene.read(name, Window(row - half, col - half, side, side)).astype(float)
        return np.einsum("dc,chw->dhw", own.bands.weight.astype(float), values - own.bands.mean[:, None, None])

    inside = components(1)
    features += [inside[:, 0, 0]] if zoom == 1 else [inside.mean(axis=(1, 2)), inside.std(axis=(1, 2), ddof=1)]
    for side in own.windows:
        around = components(side)
        features += [np.nanmean(around, axis=(1, 2)), np.nanstd(around, axis=(1, 2))]
    assert own.features is not None
    return np.nan_to_num(np.concatenate(features) - own.features.mean) @ own.features.weight.T.astype(float)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (2, 11), (40, 50), (63, 30)])
def test_a_pixel_is_compared_by_what_a_plain_loop_sees(scene: Scene, bundle: Bundle, row: int, col: int) -> None:
    known = Applicability.of(bundle.description)
    assert known.predictors["a"].windows == (3, 7)
    found = known.at([scene], np.array([[0, row, col]]), mirror=True)[:, 0]
    there = [name for name in ("a", "b", "c") if name != "b" or row >= 6 or col >= 9]
    for place, names in enumerate([there, ["a"], ["b"], ["c"]]):
        if not set(names) <= set(there):
            assert np.isnan(found[place])
            continue
        rows = known.known[:, [list(known.points).index(name) for name in names]].all(axis=1)
        points = np.concatenate([known.points[name][rows] for name in names], axis=1).astype(float)
        x = np.concatenate([plain_predictors(scene, name, known.predictors[name], row, col) for name in names])
        others = [
            np.linalg.norm(points[known.folds[rows] != fold] - one, axis=1).min()
            for one, fold in zip(points, known.folds[rows], strict=True)
        ]
        first, third = np.percentile(others, [25, 75])
        limit = max(one for one in others if one <= third + 1.5 * (third - first))
        expected = min(np.linalg.norm(points - x, axis=1).min() / limit, CAP)
        np.testing.assert_allclose(found[place], expected, rtol=1e-3, atol=1e-4)


def test_training_pixels_of_one_group_are_never_in_two_folds(scene: Scene, bundle: Bundle) -> None:
    target, group = upper_left(scene), np.arange(64)[:, None] // 8 * 8 + np.arange(64) // 8
    places, numbers = drawn([target], [group])
    known = Applicability.of(bundle.description)
    assert known.groups == "48 blocks of 8 px"
    assert {len(set(known.folds[numbers == one].tolist())) for one in np.unique(numbers)} == {1}
    assert set(known.folds.tolist()) == {0, 1, 2, 3, 4}
    assert (target[places[:, 1], places[:, 2]] != UNLABELLED).all()
    one = "one block", [np.zeros((64, 64), int)]
    assert Applicability.fitted([scene], [target], one, bundle.description, mirror=True) is None


def test_the_layer_does_not_depend_on_the_block(scene: Scene, bundle: Bundle, tmp_path: Path) -> None:
    predict(bundle, scene, tmp_path / "map.tif", applicability=True, entropy=True)
    predict(bundle, scene, tmp_path / "cut.tif", applicability=True, entropy=True, block=13)
    assert (tmp_path / "map_applicability.tif").read_bytes() == (tmp_path / "cut_applicability.tif").read_bytes()
    with rasterio.open(tmp_path / "map_applicability.tif") as file:
        numbers = file.read()
        assert file.descriptions == ("together", "a", "b", "c")
        assert (file.scales, file.nodata, file.dtypes[0]) == ((0.01,) * 4, UNLABELLED, "uint8")
    places = np.stack([np.zeros(4096, int), *np.divmod(np.arange(4096), 64)], axis=1)
    exact = Applicability.of(bundle.description).at([scene], places, mirror=True).reshape(4, 64, 64)
    np.testing.assert_array_equal(numbers == UNLABELLED, np.isnan(exact))
    assert np.isnan(exact[2, :6, :9]).all()
    np.testing.assert_allclose(numbers[numbers != UNLABELLED] / 100, exact[~np.isnan(exact)], atol=0.00501)
    assert (numbers[0, 34:, 34:] == 250).all(), "the quarter of another kind"
    assert (numbers[0, :28, :28] <= 100).mean() > 0.9
    with rasterio.open(tmp_path / "map_entropy.tif") as file:
        assert file.scales == (1 / 250,)


@pytest.mark.parametrize(("view", "core", "stride"), [(16, 8, 5), (8, 8, 3)])
def test_of_models_that_label_patches(scene: Scene, view: int, core: int, stride: int) -> None:
    own = bundle_of(scene, 7)
    own.model.view, own.model.core, own.stride = view, core, stride
    own.model.forward = lambda images: torch.zeros(len(images["a"]), 4, core, core)  # type: ignore[method-assign]
    known = fitted(scene, own)
    assert known.predictors["a"].windows == ((3, 7) if view > core else ())
    whole = next(map_blocks(own, scene, applicability=True, block=64)).dissimilarity_in(slice(None))
    for part in map_blocks(own, scene, applicability=True, block=11):
        np.testing.assert_array_equal(
            part.dissimilarity_in(slice(None)), whole[:, *part.window.within(scene.grid.window)]
        )


def test_a_modality_that_is_withheld_or_missing_is_left_out(scene: Scene, bundle: Bundle) -> None:
    part = next(map_blocks(bundle, scene, applicability=True, withheld=["b"]))
    found = part.dissimilarity_in(slice(None))
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 1, 3]]).all()
    rest = replace(scene, modalities={name: scene.modalities[name] for name in ("a", "c")})
    missing = next(map_blocks(bundle, rest, applicability=True, allow_missing=True)).dissimilarity_in(slice(None))
    np.testing.assert_array_equal(missing, found)
    whole = next(map_blocks(bundle, scene, applicability=True)).dissimilarity_in(slice(None))
    assert not np.array_equal(whole[0, 10:], found[0, 10:])
    np.testing.assert_array_equal(whole[1], found[1])


def test_a_bundle_keeps_it(scene: Scene, bundle: Bundle, tmp_path: Path) -> None:
    from landfuse.bundles.bundle_files import load_bundle

    bundle.save(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.digest == bundle.digest
    (one,), (other,) = (list(map_blocks(own, scene, applicability=True, block=64)) for own in (bundle, loaded))
    np.testing.assert_array_equal(one.dissimilarity_in(slice(None)), other.dissimilarity_in(slice(None)))


def test_a_run_is_judged_on_its_test(trained: Path, place: Path) -> None:
    known = TableBundle(trained / "bundle").description
    assert known.notes["applicability"]["windows"] == [3, 7, 15]
    facts = read_run(trained).scores["applicability"]
    assert facts["groups"].endswith("blocks of 8 px")
    assert list(facts["test"]) == ["together", "a", "b"]
    scores = read_run(trained).scores["test"]
    together = facts["test"]["together"]
    assert together["pixels"] == scores["pixels"]
    wrong = sum(part["error"] * part["pixels"] for part in together["parts"] if part["pixels"])
    assert 1 - wrong / together["pixels"] == pytest.approx(scores["OA"])


def test_an_older_bundle_is_refused_before_anything_is_written(
    trained: Path, place: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    import json

    import safetensors.numpy

    shutil.copytree(trained / "bundle", tmp_path / "bundle")
    words = json.loads((tmp_path / "bundle" / "model.json").read_text())
    del words["notes"]["applicability"]
    (tmp_path / "bundle" / "model.json").write_text(json.dumps({**words, "weights": None}))
    tensors = safetensors.numpy.load_file(tmp_path / "bundle" / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if not name.startswith("attached.applicability")}
    safetensors.numpy.save_file(kept, tmp_path / "bundle" / "model.safetensors")
    ended = landfuse(
        "predict", tmp_path / "bundle", place / "scene.yaml", "-o", tmp_path / "map.tif", "--applicability"
    )
    assert ended.code == 2
    assert "keeps no training pixels to compare a scene with" in ended.err
    assert not list(tmp_path.glob("map*"))
    with pytest.raises(SettingsError, match="train again"):
        Applicability.of(TableBundle(tmp_path / "bundle").description)
    ended = landfuse("predict", trained, place / "scene.yaml", "-o", tmp_path / "map.tif", "--applicability", "--quiet")
    assert ended.code == 0, ended.err
    assert (tmp_path / "map_applicability.tif").exists()
