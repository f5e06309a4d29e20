"""The tables of forest, boosted trees and logistic regression against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from landfuse.accuracy.reliability import Reliability
from landfuse.bundles.calibration import fit_temperature, probabilities_of
from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED
from landfuse.models.base import Modality
from landfuse.models.pixel_models import Boosted, Forest, Logistic


def problem(count: int, zoom: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(count, 4, 1, 1)).astype(np.float32).round(1)  # ties between pixels and thresholds
    b = rng.normal(size=(count, 2, zoom, zoom)).astype(np.float32)
    classes = (a[:, 0, 0, 0] + b.mean(axis=(1, 2, 3)) + rng.normal(0, 0.3, count) > 0).astype(np.uint8) * 2
    classes[a[:, 1, 0, 0] > 1.3] = 4
    classes[rng.random(count) < 0.1] = UNLABELLED
    return {"a": torch.from_numpy(a), "b": torch.from_numpy(b)}, torch.from_numpy(classes)[:, None, None]


def table(images: dict[str, Tensor]) -> np.ndarray:
    a, b = images["a"].numpy()[:, :, 0, 0], images["b"].numpy()
    flat = b.reshape(*b.shape[:2], -1)
    parts = [a, flat.mean(axis=2)]
    return np.concatenate([*parts, flat.std(axis=2, ddof=1)] if b.shape[-1] > 1 else parts, axis=1)


@pytest.mark.parametrize("options", [{}, {"depth": 3}, {"leaf": 9, "features": 0.5}, {"balanced": True}])
@pytest.mark.parametrize("zoom", [1, 4])
def test_the_shares_are_those_of_scikit_learn(options: dict[str, object], zoom: int) -> None:
    images, target = problem(1500, zoom)
    model = Forest({"a": Modality(4), "b": Modality(2, zoom)}, 6, Forest.Settings(context=(), trees=11, **options))
    model.fit([(images, target)], seed=3)
    known = target.flatten().numpy() != UNLABELLED
    x = model.features(images)
    np.testing.assert_allclose(x, table(images), rtol=1e-5, atol=1e-6)
    truth = RandomForestClassifier(
        11,
        max_depth=options.get("depth"),
        min_samples_leaf=options.get("leaf", 1),
        max_features=options.get("features", "sqrt"),
        class_weight="balanced" if options.get("balanced") else None,
        random_state=3,
    ).fit(x[known], target.flatten().numpy()[known])
    expected = np.zeros((1500, 6))
    expected[:, truth.classes_.astype(int)] = truth.predict_proba(x)
    found = model(images)
    assert found.shape == (1500, 6, 1, 1)
    np.testing.assert_allclose(found[:, :, 0, 0].exp().numpy(), expected + 1 / 16, atol=2e-6)  # for 11 trees
    assert (found[:, :, 0, 0].argmax(1).numpy() == expected.argmax(1)).mean() > 0.999


def test_a_pixel_on_a_threshold_goes_the_way_of_scikit_learn() -> None:
    # Half-way thresholds of neighbouring float32 values lie between them only in float64.
    x = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2**-23)
    y = (np.arange(64) // 3 % 2).astype(np.uint8)
    model = Forest({"a": Modality(1)}, 2, Forest.Settings(context=(), trees=3))
    images = {"a": torch.from_numpy(x)[:, None, None, None]}
    model.fit([(images, torch.from_numpy(y)[:, None, None])], seed=0)
    truth = RandomForestClassifier(3, random_state=0).fit(x[:, None], y)
    expected = truth.predict_proba(x[:, None]) + 1 / 4  # about one vote of three
    np.testing.assert_allclose(model(images)[:, :, 0, 0].exp().numpy(), expected, atol=1e-6)


def test_a_class_without_a_vote_does_not_decide_on_the_temperature() -> None:
    # One held-out label in twenty is of a class that few trees or none vote for. At a probability of 1e-6 these pixels
    # alone set the temperature, and the error of the others' probabilities was 0.106.
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 8, 3000)
    x = (np.eye(8)[truth] * 4 + rng.normal(size=(3000, 8))).astype(np.float32)
    odd = (rng.random(3000) < 0.05) & (np.arange(3000) >= 1000)
    labels = np.where(odd, rng.integers(0, 8, 3000), truth).astype(np.uint8)
    images, target = torch.from_numpy(x)[:, :, None, None], torch.from_numpy(labels)[:, None, None]
    model = Forest({"a": Modality(8)}, 8, Forest.Settings(context=(), trees=50))
    model.fit([({"a": images[:1000]}, target[:1000])], seed=0)
    logits = model({"a": images[1000:]})[:, :, 0, 0].numpy()
    after = Reliability()
    after.update(probabilities_of(logits[1000:].T, fit_temperature(logits[:1000], labels[1000:2000])).T, labels[2000:])
    assert after.error < 0.03


def test_too_many_pixels_are_thinned_out_by_the_seed() -> None:
    images, target = problem(2000)

    def grown(seed: int) -> Tensor:
        model = Forest({"a": Modality(4), "b": Modality(2)}, 6, Forest.Settings(context=(), trees=3, pixels=100))
        model.fit([(images, target)], seed=seed)
        assert model.branches.shape[1] < 200
        return model(images)

    assert torch.equal(grown(1), grown(1))
    assert not torch.equal(grown(1), grown(2))


def test_a_saved_forest_fits_into_a_new_one(tmp_path: Path) -> None:
    images, target = problem(300)
    config = Forest.Settings(context=(), trees=5)
    model = Forest({"a": Modality(4), "b": Modality(2)}, 6, config)
    model.fit([(images, target)], seed=3)
    torch.save(model.state_dict(), tmp_path / "forest.pt")
    other = Forest({"a": Modality(4), "b": Modality(2)}, 6, config)
    torch.testing.assert_close(other(images).exp(), torch.full((300, 6, 1, 1), 1 / 6), msg="unfitted, all are alike")
    other.load_state_dict(torch.load(tmp_path / "forest.pt", weights_only=True))
    assert torch.equal(other(images), model(images))


TWO = {"a": Modality(4), "b": Modality(2)}


def split(count: int, classes: int) -> tuple[list[tuple[dict[str, Tensor], Tensor]], ...]:
    """Batches to learn from and to stop by, of so many classes."""
    images, target = problem(count)
    target = torch.where((target == 4) & (classes == 2), UNLABELLED, target)
    cut = 2 * count // 3
    first, second = ({name: image[part] for name, image in images.items()} for part in (slice(cut), slice(cut, None)))
    return [(first, target[:cut])], [(second, target[cut:])]


def joined(batches: list[tuple[dict[str, Tensor], Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    images, target = batches[0]
    known = target.flatten().numpy() != UNLABELLED
    return table(images)[known], target.flatten().numpy()[known]


def probabilities(model: torch.nn.Module, images: dict[str, Tensor]) -> np.ndarray:
    found: np.ndarray = model(images)[:, :, 0, 0].double().softmax(1).numpy()
    return found


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("held_out", [True, False])
def test_boosted_trees_are_those_of_scikit_learn(classes: int, held_out: bool) -> None:
    learnt, validation = split(1500, classes)
    rounds = 40 if held_out else 6
    model = Boosted(TWO, 6, context=(), rounds=rounds, patience=3, rate=0.5)
    facts = model.fit(learnt, 3, validation if held_out else ())
    x, y = joined(learnt)
    options = dict(zip(("X_val", "y_val"), joined(validation), strict=True)) if held_out else {}
    truth = HistGradientBoostingClassifier(
        learning_rate=0.5,
        max_iter=rounds,
        min_samples_leaf=5,
        l2_regularization=1,
        early_stopping=held_out,
        n_iter_no_change=3,
        random_state=3,
    ).fit(x, y, **options)
    assert facts == {"epochs": truth.n_iter_}
    assert (truth.n_iter_ < 40) == (held_out or rounds == 6)
    images = validation[0][0]
    images["b"][:40] = torch.nan
    expected = np.zeros((500, 6))
    expected[:, truth.classes_] = truth.predict_proba(table(images))
    np.testing.assert_allclose(probabilities(model, images), expected, atol=2e-6)
    assert model.fit(learnt, 3, validation, epochs=2) == {"epochs": 2}, "as many as are asked for"


def test_boosted_trees_send_missing_values_where_training_found_best() -> None:
    rng = np.random.default_rng(0)
    x = np.zeros((600, 300), np.float32)
    x[:, 9] = rng.normal(size=600)
    y = ((x[:, 9] > 0.3) * 2).astype(np.uint8)
    lost = rng.random(600) < 0.4
    x[lost, 9], y[lost] = np.nan, 2  # what is missing is class 2, as are large values: it has to go right
    model = Boosted({"a": 300}, 3, context=(), rounds=5, rate=1)
    model.fit([({"a": torch.from_numpy(x)[:, :, None, None]}, torch.from_numpy(y)[:, None, None])], 0)
    truth = HistGradientBoostingClassifier(
        learning_rate=1, max_iter=5, min_samples_leaf=5, l2_regularization=1, early_stopping=False, random_state=0
    ).fit(x, y)
    pixels = np.zeros((4, 300), np.float32)
    pixels[:, 9] = np.nan, -2, 2, 0.3
    found = probabilities(model, {"a": torch.from_numpy(pixels)[:, :, None, None]})
    np.testing.assert_allclose(found[:, [0, 2]], truth.predict_proba(pixels), atol=1e-6)
    assert found[0, 2] > 0.9


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_regression_is_that_of_scikit_learn(classes: int, balanced: bool) -> None:
    learnt, other = split(900, classes)
    model = Logistic(TWO, 6, context=(), inverse_penalty=0.5, balanced=balanced)
    assert model.fit(learnt, 0) == {}
    truth = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.5, class_weight="balanced" if balanced else None, max_iter=1000)
    ).fit(*joined(learnt))
    expected = np.zeros((300, 6))
    expected[:, truth[-1].classes_] = truth.predict_proba(table(other[0][0]).astype(np.float64))
    np.testing.assert_allclose(probabilities(model, other[0][0]), expected, atol=1e-5)


def test_logistic_regression_on_diffusion_features_only() -> None:
    rng = torch.Generator().manual_seed(0)
    images = {name: torch.randn(300, 3, 1, 1, generator=rng) for name in ("a", "diffusion_1", "diffusion_3")}
    target = (images["diffusion_3"][:, 0] > 0).to(torch.uint8)
    model = Logistic(dict.fromkeys(images, 3), 2, features="diffusion")
    model.fit([(images, target)], 0)
    assert (model.view, model.place.tolist()) == (1, [3, 4, 5, 6, 7, 8])
    assert torch.equal(model({**images, "a": 99 * images["a"]}), model(images))
    assert ((model(images).argmax(1) == target).float().mean()) > 0.95
    with pytest.raises(ModelError, match=r"gets a, b\n.*`pretrain:` and `features:`"):
        Logistic(TWO, 2, features="diffusion")


def test_solvers_that_stop_early_are_named(caplog: pytest.LogCaptureFixture) -> None:
    Logistic(TWO, 6, context=(), steps=1).fit(split(900, 3)[0], 0)
    assert "`logistic` has not converged after 1 steps" in caplog.text


@pytest.mark.parametrize("kind", [Boosted, Logistic])
def test_one_class_is_refused(kind: type[Boosted] | type[Logistic]) -> None:
    images, target = problem(50)
    with pytest.raises(ModelError, match=r"of one class(.|\n)*two classes or more"):
        kind(TWO, 6, context=()).fit([(images, torch.where(target == 2, target, UNLABELLED))], 0)
