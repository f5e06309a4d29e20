"""BDGF: guidance on and off, branches, losses and their ramp, cores of several pixels, sizes, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import ModelError, SettingsError
from landfuse.layers import mutual
from landfuse.legend import UNLABELLED
from landfuse.models.base import Modality
from landfuse.models.bdgf import Bdgf
from landfuse.models.bdgf_branches import Branch
from landfuse.settings import parse
from landfuse.studies.ablation import read_ablation
from landfuse.training.recipe import read_recipe

TWO = {"hsi": Modality(12), "chm": Modality(1)}
FEATURES = {f"diffusion_{i}": Modality(channels) for i, channels in enumerate((24, 48, 48), start=1)}
GUIDED = {**TWO, **FEATURES}
CLASSES = 5


def make(modalities: dict[str, Modality] = GUIDED, **values: Any) -> Bdgf:
    torch.manual_seed(0)
    small = {"view": 5, "width": 16, "embedding": 16, "states": 2}
    return Bdgf(modalities, CLASSES, parse(Bdgf.Settings, small | values, "settings"))


def images(model: Bdgf, batch: int = 4, seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(batch, m.channels, model.view * m.zoom, model.view * m.zoom, generator=random)
        for n, m in model.modalities.items()
    }


def target(model: Bdgf, batch: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randint(CLASSES, (batch, model.core, model.core), generator=random, dtype=torch.uint8)


def other(batch: dict[str, Tensor], names: object) -> dict[str, Tensor]:
    return {n: 2 * x.flip(0) + 1 if n in set(names) else x for n, x in batch.items()}  # type: ignore[call-overload]


def test_the_published_size() -> None:
    """With the denoiser's 3.24 M the paper's 4.3 M are kept; branches as the specification counts them."""
    modalities = {"hsi": Modality(30), "lidar": Modality(2)}
    levels = {f"diffusion_{i}": Modality(3 * c) for i, c in enumerate((64, 128, 128), start=1)}
    model = Bdgf({**modalities, **levels}, 15, Bdgf.Settings())
    sizes = {n: sum(p.numel() for p in b.stages.parameters()) for n, b in model.branches.items()}  # type: ignore[union-attr, operator]
    assert sizes == {"cnn": 259_200, "mamba": 108_168, "transformer": 151_107}
    assert sum(p.numel() for p in model.parameters()) == 684_359


@pytest.mark.parametrize("guidance", ["full", "one_level_each"])
def test_every_level_guides(guidance: str) -> None:
    model = make(guidance=guidance).eval()
    batch = images(model)
    for name in FEATURES:
        assert not torch.equal(model(other(batch, [name])), model(batch)), name


@pytest.mark.parametrize("guidance", ["none", "raw"])
def test_without_guidance_the_features_change_nothing(guidance: str) -> None:
    model = make(guidance=guidance).eval()
    batch = images(model)
    assert torch.equal(model(other(batch, FEATURES)), model(batch))
    assert not torch.equal(model(other(batch, ["chm"])), model(batch))


def test_without_features_it_is_the_network_without_guidance() -> None:
    off, bare = make(guidance="none").eval(), make(TWO).eval()
    bare.load_state_dict(off.state_dict())
    batch = images(off)
    assert torch.equal(bare({n: batch[n] for n in TWO}), off(batch))


def test_a_level_guides_the_stage_or_the_branch_that_it_should() -> None:
    full = make()
    assert full.chosen == [[1, 2, 3]] * 3
    assert make(guidance="one_level_each").chosen == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert make({**TWO, "diffusion_2": Modality(24)}).chosen == [[None, 2, None]] * 3
    model = make(guidance="one_level_each").eval()
    batch = images(model)
    with torch.no_grad():
        moved = (model.scores(other(batch, ["diffusion_2"])).branches - model.scores(batch).branches).abs()
    assert [float(m) > 0 for m in moved.amax(dim=(1, 2, 3))] == [False, True, False]


def test_operators_can_be_swapped() -> None:
    swapped = {"cnn": "cross_attention", "mamba": "fusion", "transformer": "group_attention"}
    model = make(operators=swapped)
    kinds = [type(b.stages[0].operator).__name__ for b in model.branches.values()]  # type: ignore[union-attr, index]
    assert kinds == ["CrossAttention", "FeatureFusion", "GroupChannelAttention"]
    batch, truth = images(model), target(model)
    model.loss(batch, truth)["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    assert not torch.equal(model(other(batch, ["diffusion_3"])), model(batch))


@pytest.mark.parametrize("kind", ["cnn", "mamba", "transformer"])
def test_a_guide_stands_beside_the_pixels_that_it_belongs_to(kind: str) -> None:
    model = make({"a": Modality(2), "diffusion_1": Modality(6)}, branches=[kind], operators={kind: "fusion"})
    branch = cast(Branch, model.branches[kind])
    fusion = cast(nn.Module, cast(nn.Module, branch.stages[0]).operator)
    class_tokens = 1 if kind == "transformer" else 0
    tokens, guide = torch.randn(1, 25 + class_tokens, 16), torch.randn(1, 16, 5, 5)
    before = fusion(tokens, branch._tokens(guide))
    guide[:, :, 1, 3] += 1
    (moved,) = torch.nonzero((fusion(tokens, branch._tokens(guide)) != before).any(-1)[0]).flatten().tolist()
    assert int(branch.walk[moved - class_tokens]) == 1 * 5 + 3


@pytest.mark.parametrize("branches", [["cnn"], ["mamba", "transformer"], ["cnn", "cnn", "cnn"]])
def test_any_branches(branches: list[str]) -> None:
    model = make(branches=branches)
    batch, truth = images(model), target(model)
    parts = model.loss(batch, truth)
    names = {("cnn", "cnn", "cnn"): ["cnn", "cnn_2", "cnn_3"]}.get(tuple(branches), branches)
    together = {"probabilities", "features"} if len(branches) > 1 else set()
    assert set(parts) == {"loss", "final", *names} | together
    parts["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.layers == (("disagreement",) if len(branches) > 1 else ())
    logits, layers = model.eval().map_layers(batch)
    assert torch.equal(logits, model(batch))
    assert set(layers) == set(model.layers)


def test_three_cnns_of_the_ablation_are_as_large_as_the_full_network() -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "idtrees"
    base = read_recipe(folder / "bdgf_cpu.yaml").model
    variant = read_ablation(folder / "bdgf_ablation.yaml").variants["three-cnns"]
    assert variant is not None
    levels = {f"diffusion_{i}": Modality(3 * c) for i, c in enumerate((32, 64, 64), start=1)}
    modalities = {"hsi": Modality(30), "chm": Modality(1), **levels}
    sizes = []
    for changes in ({}, variant["model"]):
        config = {k: v for k, v in {**base, **changes}.items() if k != "name"}
        sizes.append(sum(p.numel() for p in Bdgf(modalities, 10, parse(Bdgf.Settings, config, "x")).parameters()))
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.03)


class _Whole(nn.Module):
    """A stem that lets the image through."""

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        return images["a"]


@pytest.mark.parametrize("kind", ["cnn", "mamba", "transformer"])
@pytest.mark.parametrize("core", [1, 3])
def test_every_pixel_of_the_core_is_read_at_its_own_token(kind: str, core: int) -> None:
    model = make({"a": Modality(16)}, branches=[kind], core=core)
    assert model.eval()(images(model)).shape == (4, CLASSES, core, core)
    branch = cast(Branch, model.branches[kind])
    branch.stem, branch.read = _Whole(), nn.Identity()  # type: ignore[assignment]
    branch.stages, branch.begin = nn.ModuleList(), None
    image = images(model)["a"]
    read = branch({"a": image}, [])
    halo = (5 - core) // 2
    inside = image[:, :, halo : halo + core, halo : halo + core].flatten(2).transpose(1, 2)
    assert torch.equal(read[..., 16:], inside)
    torch.testing.assert_close(read[:, 0, :16], image.mean((2, 3)))


def test_the_ensemble_averages_the_probabilities_of_all_heads() -> None:
    model = make().eval()
    batch = images(model)
    with torch.no_grad():
        scores = model.scores(batch)
        probabilities = [F.softmax(logits, dim=-1) for logits in (*scores.branches, scores.final)]
        expected = torch.stack(probabilities).mean(dim=0)[:, 0]
        torch.testing.assert_close(model(batch)[:, :, 0, 0].softmax(dim=1), expected)
        torch.testing.assert_close(model(batch)[:, :, 0, 0].exp(), expected)
        alone = make(ensemble=False).eval()
        assert torch.equal(alone(batch)[:, :, 0, 0], alone.scores(batch).final[:, 0])


@pytest.mark.parametrize("core", [1, 3])
def test_a_linear_layer_on_the_pixels_own_features_is_averaged_with_the_network(core: int) -> None:
    model = make(core=core, linear=True, guidance="none").eval()
    batch, truth, halo = images(model), target(model), (5 - core) // 2
    layer = cast(nn.Linear, model.linear)
    with torch.no_grad():
        together, loss = model(batch), model.loss(batch, truth)
        model.linear = None
        network, rest = model(batch), model.loss(batch, truth)
        own = 0.0
        for place in [(b, row, col) for b in range(4) for row in range(core) for col in range(core)]:
            b, row, col = place
            pixel = torch.cat([batch[name][b, :, halo + row, halo + col] for name in FEATURES]).double()
            linear = (layer.weight.double() @ pixel + layer.bias.double()).softmax(dim=0)
            expected = (linear + network[b, :, row, col].double().softmax(dim=0)) / 2
            torch.testing.assert_close(together[b, :, row, col].double().exp(), expected, rtol=1e-5, atol=1e-6)
            smooth = 0.95 * linear[int(truth[place])].log() + 0.05 * linear.log().mean()
            own -= float(smooth) / (4 * core * core)
    assert float(loss["linear"]) == pytest.approx(own, rel=1e-5)
    assert float(loss["loss"] - rest["loss"]) == pytest.approx(own, rel=1e-4)


def test_the_loss_is_its_parts_and_ramps_with_progress() -> None:
    model = make(core=3).eval()
    batch, truth = images(model), target(model)
    truth[0, 0] = UNLABELLED
    known = truth.flatten() != UNLABELLED

    def smoothed(logits: Tensor) -> float:
        return float(F.cross_entropy(logits.flatten(0, 1)[known], truth.flatten()[known].long(), label_smoothing=0.05))

    with torch.no_grad():
        scores = model.scores(batch)
        heads = {"final": smoothed(scores.final)}
        heads |= {n: smoothed(scores.branches[i]) for i, n in enumerate(("cnn", "mamba", "transformer"))}
        branches = scores.branches.flatten(1, 2)[:, known]
        together = {
            "probabilities": float(mutual.distil(branches, 2.0)),
            "features": float(mutual.align_direction(scores.features.flatten(1, 2)[:, known])),
        }
        for progress, ramp in ((0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)):
            model.progress = progress
            parts = {n: float(v) for n, v in model.loss(batch, truth).items()}
            expected = sum(heads.values()) + ramp * (0.5 * together["probabilities"] + 0.1 * together["features"])
            assert parts == pytest.approx({"loss": expected, **heads, **together}, rel=1e-5)


def test_mutual_learning_can_be_off() -> None:
    off = make(mutual={"probability_weight": 0, "feature_weight": 0})
    assert set(off.loss(images(off), target(off))) == {"loss", "final", "cnn", "mamba", "transformer"}


def test_settings_that_no_longer_exist_load_at_their_old_defaults() -> None:
    old = {"probabilities": "weighted", "temperature": 2.0, "features": "cosine", "ramp": 0.2}
    assert parse(Bdgf.Settings, {"mutual": old}, "settings") == Bdgf.Settings()
    with pytest.raises(SettingsError, match=r"`probabilities` no longer exists; .*remove it"):
        parse(Bdgf.Settings, {"mutual": old | {"probabilities": "dml"}}, "settings")
    with pytest.raises(SettingsError, match=r"`probabilities` no longer exists; .*; and `ramp` no longer exists"):
        parse(Bdgf.Settings, {"mutual": old | {"probabilities": "dml", "ramp": 0.5}}, "settings")
    # They only concerned training: a trained model is loaded whatever they were.
    assert parse(Bdgf.Settings, {"mutual": old | {"probabilities": "dml"}}, "settings", saved=True) == Bdgf.Settings()


def test_disagreement_is_that_of_the_branches() -> None:
    model = make(core=3).eval()
    batch = images(model)
    with torch.no_grad():
        logits, layers = model.map_layers(batch)
        expected = mutual.disagreement(model.scores(batch).branches.log_softmax(-1)).view(4, 1, 3, 3)
    assert torch.equal(logits, model(batch))
    torch.testing.assert_close(layers["disagreement"], expected)
    assert 0 < float(layers["disagreement"].mean()) < 1


def test_a_finer_modality_counts_by_its_mean_only_where_it_is_raw_guidance() -> None:
    model = make({"hsi": Modality(12), "rgb": Modality(3, zoom=2)}, guidance="raw").eval()
    batch = images(model)
    assert model(batch).shape == (4, CLASSES, 1, 1)
    assert not torch.equal(model(other(batch, ["rgb"])), model(batch))


@pytest.mark.parametrize(
    ("modalities", "values", "message"),
    [
        (FEATURES, {}, "only diffusion features"),
        ({**TWO, "diffusion_1": Modality(25)}, {}, "25 channels"),
        (TWO, {"width": 18}, "`heads`"),
        (GUIDED, {"width": 20}, "`groups`"),
        (TWO, {"branches": []}, "at least one branch"),
        (TWO, {"branches": ["cnm"]}, "branches"),
        (TWO, {"linear": True}, "`linear` is to read diffusion features"),
        (TWO, {"core": 2}, "view of 5 px and a core of 2 px"),
    ],
)
def test_mistakes(modalities: dict[str, Modality], values: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelError, SettingsError), match=message):
        make(modalities, **values)
