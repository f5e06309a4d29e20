"""A classifier that is fitted to arrays: scikit-learn's habits, the same bytes as from files, and what it refuses."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sklearn.base
import sklearn.utils.estimator_checks as checks
import torch
import yaml
from torch import Tensor

import landfuse as lf
from landfuse import models
from landfuse.errors import BundleError, GridError, ModelError, OutputError, SceneError, SettingsError, SplitError
from landfuse.models.base import FusionModel, Modality
from landfuse.rasters.geotiff import GdalRaster
from landfuse.scenes.split_rules import TEST, TRAIN, UNUSED, VALIDATION
from landfuse.settings import Settings
from landfuse.training.train import train

QUICK: dict[str, Any] = {"view": 5, "width": 8, "batch": 32, "windows": 160, "epochs": 2, "rate": 0.01}
QUICK |= {"patience": None, "accelerator": "cpu"}
QUICK["training"] = {"precision": "float32"}
SPLIT = {"kind": "blocks", "size": 8, "test": 0.3, "validation": 0.2}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small run's time goes into its pictures."""
    monkeypatch.setattr(sys.modules["landfuse.training.train"], "save", lambda *_: None)


def field(side: int = 48, classes: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two images, (3, side, side) and (side, side), that distinguish the codes 1.. of the labels."""
    rng = np.random.default_rng(0)
    place = np.add.outer(np.arange(side) // 4, np.arange(side) // 4) % classes
    s2 = place + 0.1 * rng.standard_normal((3, side, side))
    height = (place == 0) + 0.1 * rng.standard_normal((side, side))
    return {"s2": s2.astype(np.float32), "height": height.astype(np.float32)}, (place + 1).astype(np.uint8)


@pytest.fixture(scope="module")
def forest() -> lf.Classifier:
    images, labels = field()
    return lf.Classifier("forest", trees=5).fit(images, labels, progress=False)


# ---- as scikit-learn's estimators ------------------------------------------------------------------------------------


def test_parameters_are_stored_and_shown() -> None:
    classifier = lf.Classifier("refnet", view=64, epochs=20, rate=1e-3, split={"size": 32})
    assert repr(classifier) == "Classifier('refnet', split={'size': 32}, view=64, epochs=20)"
    params = classifier.get_params()
    assert (params["view"], params["epochs"], params["width"], params["seed"]) == (64, 20, 128, 0)
    assert params["batch"] == 64
    assert classifier.set_params(encoder="resnet18", model="stacked", split=None) is classifier
    assert repr(classifier) == "Classifier('stacked', view=64, epochs=20)"
    assert repr(lf.Classifier("two_branch", mapping={"batch": 4})) == "Classifier('two_branch', mapping={'batch': 4})"
    assert repr(lf.Classifier({"name": "forest", "features": 0.5})) == (
        "Classifier({'name': 'forest', 'features': 0.5})"
    )


def test_a_clone_has_the_same_parameters_and_is_not_fitted(forest: lf.Classifier) -> None:
    clone = sklearn.base.clone(forest)
    assert repr(clone) == repr(forest) == "Classifier('forest', trees=5)"
    assert clone.get_params() == forest.get_params()
    with pytest.raises(ModelError, match="not fitted"):
        _ = clone.bundle
    assert type(forest)(**forest.get_params()).get_params() == forest.get_params()


@pytest.mark.parametrize(
    "check",
    [
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_get_params_invariance,
        checks.check_set_params,
        checks.check_parameters_default_constructible,
        checks.check_no_attributes_set_in_init,
    ],
    ids=lambda check: check.__name__,
)
def test_checks_of_scikit_learn_that_need_no_table(check: Callable[..., None]) -> None:
    check("Classifier", lf.Classifier("two_branch", width=8))


@pytest.mark.parametrize(
    ("model", "keyword", "near"),
    [
        ("refnet", "veiw", "view"),
        ("forest", "tree", "trees"),
        ("two_branch", "epoch", "epochs"),
        ("two_branch", "modality_dropuot", "modality_dropout"),
        ("two_branch", "pixel_map", "pixel_maps"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest(model: str, keyword: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"no setting `{keyword}`\n.*\n.*did you mean `{near}`"):
        lf.Classifier(model, **{keyword: 3})
    with pytest.raises(ValueError, match=f"did you mean `{near}`"):
        lf.Classifier(model).set_params(**{keyword: 3})


def test_a_setting_of_the_model_before_is_refused() -> None:
    with pytest.raises(SettingsError, match="Classifier\\('forest'\\) has no setting `view`"):
        lf.Classifier("two_branch", view=5).set_params(model="forest")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "refnett"}, "no model 'refnett'"),
        ({"model": "two_branch", "view": 0}, "view"),
        ({"model": "two_branch", "rate": -1}, "`training.rate` is -1"),
        ({"model": "two_branch", "rate": 1, "training": {"rate": 2}}, "`rate` is set twice"),
        ({"model": "two_branch", "samples": {"btach": 2}}, "did you mean `batch`"),
        ({"model": "two_branch", "modalities": ["sar"]}, "names the modality sar"),
        ({"model": "two_branch", "pixel_maps": {"sar": {}}}, "names the modality sar"),
        ({"model": "forest", "features": 0.5}, "features"),
        ({"model": "two_branch", "split": {"kind": "block"}}, "did you mean `blocks`"),
    ],
)
def test_wrong_values_are_reported_by_fit(settings: dict[str, Any], message: str) -> None:
    images, labels = field(16)
    with pytest.raises(SettingsError, match=message):
        lf.Classifier(**settings).fit(images, labels, progress=False)


# ---- the same as from files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{"name": "two_branch", "view": 5, "width": 8}, {"name": "forest", "trees": 5}])
def test_arrays_give_the_bytes_of_files(model: dict[str, Any], place: Path, tmp_path: Path) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    recipe = {
        "scene": str(place / "scene.yaml"),
        "run": str(tmp_path / "files"),
        "model": model,
        "samples": {"batch": 32, "windows": 160, "modality_dropout": {} if model["name"] == "forest" else {"b": 0.2}},
        "training": {"epochs": 2, "rate": 0.01, "accelerator": "cpu", "precision": "float32", "seed": 3},
        "mapping": {"memory": "3GiB"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(tmp_path / "recipe.yaml", progress=False)

    scene = lf.open_scene(place)
    settings = {k: v for k, v in model.items() if k != "name"} | recipe["samples"] | recipe["training"]
    settings |= {"mapping": recipe["mapping"]}
    a = rioxarray.open_rasterio(place / "a.tif").transpose("x", "band", "y")
    a.attrs["units"] = "1"
    images = {"a": a, "b": scene.modalities["b"]}
    classifier = lf.Classifier(model["name"], **settings)
    classifier.fit(images, place / "labels.tif", SPLIT, legend=scene.legend, progress=False)
    classifier.save(tmp_path / "arrays")
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "arrays" / name).read_bytes() == (tmp_path / "files" / "bundle" / name).read_bytes()
    scores = json.loads((tmp_path / "files" / "scores.json").read_text())
    assert classifier.run.scores["test"] == scores["test"]
    assert classifier.run.scores["calibration"] == scores["calibration"]

    from_files = lf.predict(tmp_path / "files", scene, tmp_path / "files.tif", confidence=True)
    from_arrays = lf.predict(classifier, images, tmp_path / "arrays.tif", confidence=True, block=40)
    assert from_files.read_bytes() == from_arrays.read_bytes()
    confidence = [(tmp_path / f"{name}_confidence.tif").read_bytes() for name in ("files", "arrays")]
    assert confidence[0] == confidence[1]
    mapped = classifier.predict(images, progress=False)
    classes = scene.legend.to_classes(mapped.values)
    np.testing.assert_array_equal(classes, lf.open_map(from_files, scene).classes)
    np.testing.assert_array_equal(classes, lf.map_array(classifier, scene))


def test_no_run_folder_is_left(forest: lf.Classifier) -> None:
    images, labels = field(24)
    fitted = lf.Classifier("forest", trees=2).fit(images, labels, progress=False)
    folder = fitted.run.folder
    assert (folder / "bundle" / "model.json").exists()
    assert fitted.run.scores["test"]["OA"] > 0.5
    del fitted
    gc.collect()
    assert not folder.parents[1].exists()


def test_a_run_folder_is_kept_and_serves_the_same_arrays_only(tmp_path: Path) -> None:
    images, labels = field(24)
    classifier = lf.Classifier("forest", trees=2).fit(images, labels, run=tmp_path / "run", progress=False)
    again = lf.Classifier("forest", trees=2).fit(images, labels, run=tmp_path / "run", progress=False)
    assert again.bundle.digest == classifier.bundle.digest
    with pytest.raises(OutputError, match="differ in scene"):
        lf.Classifier("forest", trees=2).fit(
            {**images, "s2": images["s2"] + 1}, labels, run=tmp_path / "run", progress=False
        )
    assert lf.train(tmp_path / "run" / "recipe.json").bundle.digest == classifier.bundle.digest
    with pytest.raises(SettingsError, match="fitted to arrays"):
        lf.train(tmp_path / "run" / "recipe.json", f"run={tmp_path / 'other'}")


# ---- fitted ----------------------------------------------------------------------------------------------------------


def test_predict_returns_codes_and_calibrated_probabilities(forest: lf.Classifier) -> None:
    images, labels = field()
    images["s2"][:, :3, :5] = np.nan
    codes = forest.predict(images, progress=False)
    assert codes.dtype == np.uint8
    assert (codes[:3, :5] == 255).all()
    assert set(np.unique(codes)) == {1, 2, 3, 255}
    probabilities = forest.predict_proba(images, progress=False)
    assert probabilities.shape == (3, 48, 48)
    assert np.isnan(probabilities[:, :3, :5]).all()
    np.testing.assert_allclose(probabilities[:, 10:].sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(forest.classes_[probabilities[:, 10:].argmax(axis=0)], codes[10:])
    assert forest.legend.names == ["class 1", "class 2", "class 3"]
    other = {**images, "s2": images["s2"] + np.where(np.arange(48) < 24, 0, 90)}
    dissimilarity = forest.predict_dissimilarity(other, progress=False)
    assert dissimilarity.shape == (1 + len(images), 48, 48)
    assert np.isnan(dissimilarity[:2, :3, :5]).all()
    assert (dissimilarity[:2, 10:, 30:] == 2.5).all()
    assert (dissimilarity[:, 10:, :12] <= 1).mean() > 0.8
    evaluation = forest.evaluate(images, labels, progress=False)
    assert evaluation.role == "all"
    assert evaluation.confusion.unmapped == 15
    assert forest.evaluate(images, labels, forest.roles, progress=False).confusion.pixels == (
        (forest.roles == TEST)[codes != 255].sum()
    )
    with pytest.raises(SceneError, match="hold the code 9"):
        forest.evaluate(images, np.where(labels == 1, 9, labels), progress=False)
    with pytest.raises(SplitError, match="no pixel is labelled"):
        forest.evaluate(images, np.zeros_like(labels), progress=False)
    with pytest.raises(SettingsError, match="blocks of 0 px"):
        forest.evaluate(images, labels, block=0, progress=False)


def test_a_classifier_is_saved_loaded_and_sent(forest: lf.Classifier, tmp_path: Path) -> None:
    images, _ = field()
    codes = forest.predict(images, progress=False)
    forest.save(tmp_path / "bundle")
    loaded = lf.load(tmp_path / "bundle")
    assert repr(loaded) == repr(forest)
    with pytest.raises(ModelError, match="loaded from a bundle"):
        _ = loaded.run
    assert loaded.roles is loaded.split is None
    for other in (loaded, pickle.loads(pickle.dumps(forest)), copy.deepcopy(forest), lf.load(forest.run.folder)):
        np.testing.assert_array_equal(other.predict(images, progress=False), codes)
    assert lf.load(forest.run.folder).run.scores == forest.run.scores
    with pytest.raises(BundleError):
        lf.load(tmp_path / "nothing")


def test_a_recipe_gives_a_fitted_classifier(place: Path, tmp_path: Path) -> None:
    recipe = {"scene": str(place / "scene.yaml"), "model": {"name": "forest", "trees": 3, "features": 0.5}}
    recipe |= {"samples": {"balanced": True, "batch": 32}, "split": {"seed": 2}, "mapping": {"memory": "3GiB"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    classifier = lf.train(tmp_path / "recipe.yaml", f"run={tmp_path / 'run'}", progress=False)
    assert classifier.run.folder == tmp_path / "run"
    assert 0 < classifier.run.scores["test"]["OA"] <= 1
    shown = (
        "Classifier({'name': 'forest', 'features': 0.5}, split={'seed': 2}, samples={'balanced': True}, "
        "mapping={'memory': 3221225472}, trees=3, batch=32)"
    )
    assert repr(classifier) == repr(lf.load(tmp_path / "run")) == repr(lf.load(tmp_path / "run" / "bundle")) == shown
    scene = lf.open_scene(place)
    lf.predict(classifier, scene, tmp_path / "map.tif")
    mapped = scene.legend.to_classes(classifier.predict(scene, progress=False))
    np.testing.assert_array_equal(mapped, lf.open_map(tmp_path / "map.tif", scene).classes)
    refitted = sklearn.base.clone(classifier).fit(scene, progress=False)
    assert refitted.split is not None
    assert refitted.split.seed == 2


def test_a_missing_image_needs_a_model_that_can_do_without(forest: lf.Classifier) -> None:
    images, labels = field(24)
    with pytest.raises(ModelError, match=r"the images lack `height`\n.*s2, height\n.*modality_dropout"):
        forest.predict({"s2": images["s2"]})
    with pytest.raises(ModelError, match="lack `s2` and name `S2`"):
        forest.predict({"S2": images["s2"], "height": images["height"]})
    able = lf.Classifier("two_branch", **QUICK, modality_dropout={"height": 0.3})
    able.fit(images, labels, progress=False)
    assert (able.predict({"s2": images["s2"]}, progress=False) != 255).all()
    with pytest.raises(ModelError, match="lack `s2`"):
        able.predict({"height": images["height"]})
    mean = copy.deepcopy(forest).set_params(mean_for=("height",))
    assert (mean.predict({"s2": images["s2"]}, progress=False) != 255).all()


def test_other_images_than_it_was_fitted_to(forest: lf.Classifier) -> None:
    images, _ = field()
    for other, message in (
        ({"s2": images["s2"][:2]}, "trained on 3 bands of `s2`, this scene has 2"),
        ({"s2": images["s2"].astype(np.int16)}, "'float32' as data type of `s2`"),
        ({"s2": images["s2"].repeat(2, axis=1).repeat(2, axis=2)}, "different sizes.*\n.*as the model was fitted"),
    ):
        with pytest.raises(lf.LandfuseError, match=message):
            forest.predict({**images, **other}, progress=False)
    wide = {name: image.astype(np.float64) for name, image in images.items()}
    np.testing.assert_array_equal(forest.predict(wide, progress=False), forest.predict(images, progress=False))


def test_nothing_is_predicted_before_fit() -> None:
    images, labels = field(16)
    for call in (
        lambda c: c.predict(images),
        lambda c: c.predict_proba(images),
        lambda c: c.evaluate(images, labels),
        lambda c: c.save("bundle"),
        lambda c: c.legend,
        lambda c: c.run,
    ):
        with pytest.raises(ModelError, match=r"is not fitted\n.*fit"):
            call(lf.Classifier("forest"))


def test_paths_are_read_by_blocks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {name: place / f"{name}.tif" for name in ("a", "b")}
    classifier = lf.Classifier("two_branch", **QUICK, mapping={"batch": 16, "block": 24})
    classifier.fit(images, place / "labels.tif", SPLIT, progress=False)
    seen: list[int] = []
    read = GdalRaster.read
    monkeypatch.setattr(GdalRaster, "read", lambda own, window: seen.append(window.pixels) or read(own, window))
    mapped = classifier.predict(images, progress=False)
    assert len(seen) == 2 * 16 + 2 * 36, "blocks, and windows whose values are compared with those of training"
    assert max(seen) <= (24 + 4) ** 2
    monkeypatch.undo()
    np.testing.assert_array_equal(classifier.set_params(mapping={"block": 96}).predict(images, progress=False), mapped)


def test_progress_can_be_silenced(
    forest: lf.Classifier, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landfuse.progress.FIRST", 0.0)
    images, _ = field()
    forest.predict(images, progress=False)
    assert capfd.readouterr() == ("", "")
    forest.predict(images)
    assert "mapping" in capfd.readouterr().err


class _Late(FusionModel):
    """The sum of what each modality says of a pixel."""

    class Settings(Settings):
        width: int = 4

    Settings: ClassVar[type[Settings]]

    def __init__(self, modalities: dict[str, Modality], classes: int, config: Any) -> None:
        super().__init__(modalities, classes, view=1, core=1)
        self.heads = torch.nn.ModuleDict({n: torch.nn.Conv2d(m.channels, classes, 1) for n, m in modalities.items()})

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        return sum(head(images[name]) for name, head in self.heads.items())


def test_a_class_of_ones_own_is_fitted(tmp_path: Path) -> None:
    images, labels = field(24)
    with pytest.raises(SettingsError, match=r"Classifier\(_Late\) has no setting `widht`\n.*\n.*did you mean `width`"):
        lf.Classifier(_Late, widht=3)
    classifier = lf.Classifier(_Late, width=3, batch=64, epochs=2, accelerator="cpu")
    assert repr(classifier) == "Classifier(_Late, width=3, epochs=2, accelerator='cpu')"
    name = f"{_Late.__module__}:_Late"
    try:
        classifier.fit(images, labels, run=tmp_path / "run", progress=False)
        assert classifier.bundle.spec.name == name
    finally:
        models._registered.pop(name, None)
    with pytest.raises(BundleError, match="_Late"):
        lf.load(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "bundle"):
        loaded = lf.load(folder, model=_Late)
        assert repr(loaded) == repr(classifier)
        np.testing.assert_array_equal(
            loaded.predict(images, progress=False), classifier.predict(images, progress=False)
        )


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_the_default_split_is_the_largest_blocks_that_lose_no_class(caplog: pytest.LogCaptureFixture) -> None:
    images, labels = field(64)
    labels[:32] = 1  # the other classes are in the lower half only
    with caplog.at_level(logging.INFO, "landfuse"):
        classifier = lf.Classifier("forest", trees=2).fit(images, labels, progress=False)
    assert classifier.split is not None
    assert classifier.split.size == 24
    assert "blocks of 24 px" in caplog.text
    found = [set(np.unique(labels[classifier.roles == role])) for role in (TRAIN, VALIDATION, TEST)]
    assert found == [{1, 2, 3}] * 3
    roles = lf.Classifier("forest", trees=2, split={"size": 32}).fit(images, labels, progress=False).roles
    assert any(set(np.unique(labels[roles == role])) != {1, 2, 3} for role in (TRAIN, VALIDATION, TEST))


def test_roles_and_settings_of_a_split_are_used(tmp_path: Path) -> None:
    images, labels = field(24)
    roles = np.full(labels.shape, TRAIN, np.uint8)
    roles[:6], roles[6:12] = TEST, VALIDATION
    masked = np.ma.masked_array(roles, np.eye(24, dtype=bool))  # no role where it is masked
    roles = masked.filled(UNUSED)
    classifier = lf.Classifier("forest", trees=2).fit(images, labels, masked, progress=False)
    np.testing.assert_array_equal(classifier.roles, roles)
    assert classifier.split is None
    assert classifier.run.scores["test"]["pixels"] == (roles == TEST).sum()
    random = {"kind": "random", "train": 0.5, "seed": 3}
    by_settings = lf.Classifier("forest", trees=2).fit(images, labels, random, progress=False)
    assert by_settings.split is not None
    assert by_settings.split.kind == "random"
    for wrong, message in (
        (roles[1:], "have the shape \\(23, 24\\)"),
        (roles * 2, "holds the number"),
        (np.ones_like(roles), "no labelled pixel for `test`"),
        (np.where(labels == 1, TEST, TRAIN), "`class 1` has no training pixel"),
    ):
        with pytest.raises(lf.LandfuseError, match=message):
            lf.Classifier("forest", trees=2).fit(images, labels, wrong, progress=False)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.ones((24, 24), int), SceneError, "one class only"),
        (np.zeros((24, 24), int), SceneError, "label no pixel"),
        (np.ones((24, 23), int), GridError, "24 x 23 px\n.*24 x 24 px"),
        (np.arange(576).reshape(24, 24), SceneError, "575 codes, from 1 to 575|574 codes"),
        (np.full((24, 24), -3), SceneError, "from -3 to -3"),
        (np.ones((24, 24), np.float32), SceneError, "are float32\n.*whole-number"),
        (np.where(np.eye(24), np.nan, 1.0), SceneError, "are float64, 24 of them NaN"),
        (None, SceneError, "without labels"),
        (np.ones((2, 24, 24), int), SceneError, "2 bands"),
    ],
)
def test_labels_that_are_refused(labels: Any, error: type[Exception], message: str) -> None:
    images, _ = field(24)
    with pytest.raises(error, match=message):
        lf.Classifier("forest").fit(images, labels, progress=False)


def test_a_picture_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import landfuse as lf; lf.plot, lf.predict, lf.Classifier('forest')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
