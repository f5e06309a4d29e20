"""What every model keeps (P8): one test over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from landfuse.bundles.bundle import Bundle, build_model
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import ModelError
from landfuse.kernels.linear import rounded_once
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.models import MODELS
from landfuse.models.base import DirectFit, FusionModel, Modality
from landfuse.scenes.scene import ModalityInfo
from landfuse.views.pixel_map import PixelMap

SMALL: dict[str, dict[str, Any]] = {
    "bdgf": {"view": 5, "width": 32, "embedding": 32, "states": 4},
    "forest": {"trees": 7},
    "stacked": {"view": 32, "core": 28, "architecture": "Linknet", "encoder": "tu-test_resnet"},
    "temporal": {"view": 5, "core": 3, "width": 16, "heads": 4},
    "two_branch": {"view": 5, "width": 8},
    "refnet": {"view": 64, "encoder": "resnet18", "width": 8},
    "mfnet": {
        "view": 32,
        "weights": "random",
        "encoder_options": {"embed_dim": 32, "depth": 4, "num_heads": 2, "global_attn_indexes": (1, 3)},
    },
}
"""Settings that make a model small and quick; one that is not named here is taken as it comes."""

TWO = {"a": Modality(3), "b": Modality(2)}
CLASSES = 4


def build(name: str, modalities: dict[str, Modality] = TWO) -> FusionModel:
    torch.manual_seed(0)
    model = build_model(ModelSpec(name, SMALL.get(name, {})), modalities, CLASSES)
    if isinstance(model, DirectFit):
        x, y = images(model, 200), target(model, 200)
        y[:, 0, 0] = torch.where(x[next(iter(x))].mean(dim=(1, 2, 3)) > 0, 3, 1).to(torch.uint8)
        model.fit([({n: i[:150] for n, i in x.items()}, y[:150]), ({n: i[150:] for n, i in x.items()}, y[150:])], 0)
    return model


def images(model: FusionModel, batch: int, seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, m.channels, model.view * m.zoom, model.view * m.zoom, generator=random)
        for name, m in model.modalities.items()
    }


def target(model: FusionModel, batch: int) -> Tensor:
    random = torch.Generator().manual_seed(2)
    shape = (batch, model.core, model.core)
    classes = torch.randint(CLASSES, shape, generator=random, dtype=torch.uint8)
    return classes.masked_fill(torch.rand(shape, generator=random) < 0.3, UNLABELLED) if model.core > 1 else classes


each = pytest.mark.parametrize("name", list(MODELS))


@each
def test_shapes(name: str) -> None:
    model = build(name).eval()
    assert model.view >= model.core >= 1
    assert (model.view - model.core) % 2 == 0
    with torch.no_grad():
        for batch in (1, 3):
            logits = model(images(model, batch))
            assert logits.shape == (batch, CLASSES, model.core, model.core)
            assert torch.isfinite(logits).all()
    assert model.Settings.__doc__, "docs and messages name the settings"


@each
def test_every_modality_counts(name: str) -> None:
    model = build(name).eval()
    base = images(model, 4)
    with torch.no_grad():
        before = model(base)
        for modality in model.modalities:
            assert not torch.equal(model({**base, modality: 3 * base[modality].flip(0) + 1}), before)


@each
def test_a_finer_modality_is_used_or_refused(name: str) -> None:
    try:
        model = build(name, {"a": Modality(3), "b": Modality(2, zoom=2)})
    except ModelError as error:
        if "zoom" not in str(error):
            raise
        return
    model.eval()
    with torch.no_grad():
        assert model(images(model, 2)).shape == (2, CLASSES, model.core, model.core)


@each
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    model = build(name).train()
    if isinstance(model, DirectFit):
        assert not list(model.parameters())
        return
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trainable
    moved = dict.fromkeys(trainable, False)
    optimiser = torch.optim.SGD(trainable.values(), lr=1e-2)
    for step in range(3):  # the second factor of a product that starts at 0 moves one step later
        optimiser.zero_grad()
        parts = model.loss(images(model, 4, seed=step), target(model, 4))
        assert all(part.dim() == 0 and torch.isfinite(part) for part in parts.values())
        parts["loss"].backward()
        for key, parameter in trainable.items():
            assert parameter.grad is not None, f"{key} takes no part in the loss"
            assert torch.isfinite(parameter.grad).all(), key
            moved[key] |= bool((parameter.grad != 0).any())
        optimiser.step()
    assert [key for key, did in moved.items() if not did] == []


@each
def test_no_sample_sees_its_batch_mates(name: str) -> None:
    model = build(name).eval()
    batch = images(model, 3)
    with torch.no_grad():
        logits = model(batch)
        mates = {key: torch.cat([image[:1], 100 * torch.ones_like(image[1:])]) for key, image in batch.items()}
        alone = model({key: image[:1] for key, image in batch.items()})
        assert torch.equal(model(mates)[0], logits[0])
    torch.testing.assert_close(alone[0], logits[0], rtol=1e-4, atol=1e-4)  # other batch sizes, other last bits


@each
def test_the_place_in_the_batch_changes_no_bit(name: str) -> None:
    """The map relies on it (P1): a window's place in its batch depends on the block."""
    model = build(name).eval()
    batch = images(model, 3)
    order = [2, 0, 1]
    with torch.no_grad():
        assert torch.equal(model({key: image[order] for key, image in batch.items()}), model(batch)[order])


@each
def test_a_batch_without_labels_gives_no_nan(name: str) -> None:
    model = build(name).train()
    if isinstance(model, DirectFit):
        nothing = torch.full((5, 1, 1), UNLABELLED, dtype=torch.uint8)
        with pytest.raises(ModelError, match="labelled"):
            model.fit([(images(model, 5), nothing)], 0)
        return
    empty = torch.full((2, model.core, model.core), UNLABELLED, dtype=torch.uint8)
    loss = model.loss(images(model, 2), empty)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@each
def test_saved_and_loaded_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    maps = {key: PixelMap(torch.rand(m.channels) + 0.5, torch.randn(m.channels), clip=5) for key, m in TWO.items()}
    notes = {key: ModalityInfo(m.channels, "float32", "1", 1) for key, m in TWO.items()}
    legend = Legend(tuple(LandClass(f"c{i}", 10 * i, "#123456") for i in range(CLASSES)))
    model = build(name)
    if not isinstance(model, DirectFit):  # running statistics and weights that a new model does not have
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train().loss(images(model, 4), target(model, 4))["loss"].backward()
        optimiser.step()
    classifier = Bundle(ModelSpec(name, SMALL.get(name, {})), maps, notes, legend, None, model).eval()
    raw = images(model, 3, seed=9)
    raw["b"][1, :, :2] = float("nan")
    with torch.no_grad():
        before = classifier(raw)
        classifier.save(tmp_path / "bundle")
        after = load_bundle(tmp_path / "bundle")(raw)
    assert torch.isfinite(before).all()
    assert torch.equal(after, before)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "forest"])
def test_weights_that_are_rounded_once_give_the_bits_of_autocast(name: str) -> None:
    model = build(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = images(model, 2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rounded = rounded_once(model)
        assert torch.equal(rounded(batch), model(batch))
    assert any(p.dtype == torch.bfloat16 for p in rounded.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "the model stays as it is"


@pytest.mark.parametrize("name", ["stacked", "temporal", "two_branch"])  # the others: tests/benchmarks/test_launches.py
def test_a_pass_asks_no_tensor_for_a_number(name: str) -> None:
    """A GPU would be waited for, and no CUDA graph could be captured; tensors without numbers refuse the question."""
    model = build(name).eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.inference_mode():
        assert model({key: fake.from_tensor(x) for key, x in images(model, 2).items()}).shape[0] == 2
