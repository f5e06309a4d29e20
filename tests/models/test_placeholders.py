"""A model that learnt to do without a modality, and what is asked of one that did not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.settings import PredictorOptions
from landfuse.errors import BundleError, FaultsError, ModelError, SettingsError
from landfuse.mapping.engine import map_array
from landfuse.models.placeholders import WithPlaceholders
from landfuse.scenes.scene import Scene
from landfuse.simulate.scene import simulate_flat
from landfuse.views.pixel_map import PixelMap

SPEC = ModelSpec("two_branch", {"view": 5, "width": 8, "dropout": 0.0})


@pytest.fixture
def scene() -> Scene:
    return simulate_flat(20, 24, {"a": 3, "b": 2})


def made(scene: Scene, *droppable: str, spec: ModelSpec = SPEC) -> Bundle:
    torch.manual_seed(1)
    maps = {n: PixelMap(torch.ones(m.raster.bands), torch.zeros(m.raster.bands)) for n, m in scene.modalities.items()}
    notes = {name: scene.modalities[name].info for name in maps}
    classifier = Bundle(spec, maps, notes, scene.legend, droppable=droppable)
    if droppable:
        assert isinstance(classifier.model, WithPlaceholders)
        for value in classifier.model.placeholders.values():
            torch.nn.init.normal_(value)
    return classifier.eval()


def lacking(scene: Scene, *names: str) -> Scene:
    return replace(scene, modalities={n: m for n, m in scene.modalities.items() if n not in names})


def images(scene: Scene) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {n: torch.randn(6, m.raster.bands, 5, 5, generator=random) for n, m in scene.modalities.items()}


def test_the_placeholder_stands_where_nothing_was_seen(scene: Scene) -> None:
    model = made(scene, "b").model
    assert isinstance(model, WithPlaceholders)
    given = images(scene)
    given["b"][1] = torch.nan
    given["b"][2, :, 3, 4] = torch.nan
    by_hand = {name: image.clone() for name, image in given.items()}
    by_hand["b"][1] = model.placeholders["b"][:, None, None]
    by_hand["b"][2, :, 3, 4] = model.placeholders["b"]
    with torch.no_grad():
        assert torch.equal(model(given), model.network(by_hand))
        assert torch.equal(model.map_layers(given)[0], model(given))


def test_it_is_learnt_with_the_model(scene: Scene) -> None:
    """Its gradient is the sum over where it stands; the network's loss and progress are its own."""
    model = made(scene, "b").model
    assert isinstance(model, WithPlaceholders)
    given = images(scene)
    given["b"][1] = torch.nan
    target = torch.arange(6, dtype=torch.uint8).remainder(4)[:, None, None]
    seen: list[float] = []
    inner = model.network.loss
    model.network.loss = lambda *args: seen.append(model.network.progress) or inner(*args)  # type: ignore[method-assign,func-returns-value]
    model.progress = 0.25
    loss = model.loss(given, target)["loss"]
    loss.backward()
    assert seen == [0.25]
    probe = given["b"].clone()
    probe[1] = model.placeholders["b"].detach()[:, None, None]
    probe.requires_grad_()
    other = F.cross_entropy(model.network({"a": given["a"], "b": probe}), target.long())
    assert loss.detach() == pytest.approx(float(other.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(other, probe)
    torch.testing.assert_close(model.placeholders["b"].grad, gradient[1].sum(dim=(1, 2)), rtol=1e-4, atol=1e-7)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_bundle_keeps_it(scene: Scene, tmp_path: Path) -> None:
    classifier = made(scene, "b")
    classifier.save(tmp_path)
    loaded = load_bundle(tmp_path)
    assert loaded.droppable == ("b",)
    gap = lacking(scene, "b")
    mapped = [map_array(one, gap, allow_missing=True) for one in (loaded, classifier)]
    np.testing.assert_array_equal(*mapped)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), classifier.parameters(), strict=True))
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 2
    made(scene).save(tmp_path / "plain")
    words = json.loads((tmp_path / "plain" / "model.json").read_text())
    assert (words["format"], words["droppable"]) == (1, [])
    del words["droppable"]
    (tmp_path / "plain" / "model.json").write_text(json.dumps(words))
    assert load_bundle(tmp_path / "plain").droppable == (), "a bundle from before"


def test_without_dropout_nothing_changes(scene: Scene) -> None:
    plain = made(scene)
    assert not isinstance(plain.model, WithPlaceholders)
    assert plain.description.stand_ins(PredictorOptions()) == {}
    learnt = made(scene, "a", "b")
    assert isinstance(learnt.model, WithPlaceholders)
    with torch.no_grad():
        assert torch.equal(learnt.model(images(scene)), plain.model(images(scene))), "where all is there"
    np.testing.assert_array_equal(map_array(learnt, scene), map_array(plain, scene))


def test_a_scene_that_lacks_a_modality(scene: Scene) -> None:
    learnt, plain = made(scene, "b"), made(scene)
    gap = lacking(scene, "b")
    with pytest.raises(FaultsError, match=r"no modality `b`(.|\n)*for which the model was trained: --allow-missing"):
        map_array(learnt, gap)
    for options in ({}, {"allow_missing": True}):
        with pytest.raises(FaultsError, match=r"no modality `b`(.|\n)*modality_dropout(.|\n)*--mean-for b"):
            map_array(plain, gap, **options)
    with pytest.raises(FaultsError, match="no modality `a`"):
        map_array(learnt, lacking(scene, "a"), allow_missing=True)

    mapped = map_array(learnt, gap, allow_missing=True)
    np.testing.assert_array_equal(map_array(learnt, scene, withheld=["b"]), mapped)
    assert (mapped < 4).all()
    assert isinstance(learnt.model, WithPlaceholders)
    by_hand = scene.read("a", scene.grid.window.padded(2))
    stand_in = learnt.model.placeholders["b"].detach()[:, None, None].expand(2, *by_hand.shape[1:])
    for row, col in ((0, 0), (7, 9), (19, 23)):
        window = (slice(None), slice(row, row + 5), slice(col, col + 5))
        with torch.no_grad():
            logits = learnt.model.network(
                {"a": torch.from_numpy(by_hand[window])[None], "b": stand_in[window][None].contiguous()}
            )
        assert mapped[row, col] == int(logits.flatten().argmax())

    filled = map_array(plain, gap, mean_for=["b"])
    np.testing.assert_array_equal(map_array(plain, scene, mean_for=["b"], withheld=["b"]), filled)
    assert (filled < 4).all()
    with torch.no_grad():
        logits = plain.model({"a": torch.from_numpy(by_hand[:, 7:12, 9:14])[None], "b": torch.zeros(1, 2, 5, 5)})
    assert filled[7, 9] == int(logits.flatten().argmax())
    with pytest.raises(SettingsError, match="no modality c"):
        map_array(plain, scene, mean_for=["c"])
    with pytest.raises(SettingsError, match="cannot do without b"):
        map_array(plain, scene, withheld=["b"])
    with pytest.raises(FaultsError, match="trained on 3 bands"):
        map_array(learnt, replace(gap, modalities={"a": scene.modalities["b"]}), allow_missing=True)


def test_a_forest_is_refused_in_words(scene: Scene) -> None:
    with pytest.raises(ModelError, match=r"cannot learn placeholders(.|\n)*modality_dropout=0"):
        made(scene, "b", spec=ModelSpec("forest", {"trees": 2}))


def test_a_bundle_whose_placeholders_are_gone_is_reported(scene: Scene, tmp_path: Path) -> None:
    made(scene).save(tmp_path)
    words = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**words, "droppable": ["b"]}))
    with pytest.raises(BundleError, match="broken"):
        load_bundle(tmp_path)
