"""Fine-tuning mechanisms against the paper's formulas, written as plain loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.vision_transformer_sam import Block
from torch import Tensor, nn

from landfuse.errors import ModelError
from landfuse.layers.adapters import MECHANISMS, Adapter, Lora, Mechanism, fine_tune
from landfuse.layers.lora import Exchange, ExchangedLoraLinear, LoraLinear, PerModalityLinear, by_modality, merge_lora


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3)
    return module.double()


def product(matrix: Tensor, x: list[float]) -> list[float]:
    return [sum(m * value for m, value in zip(row, x, strict=True)) for row in matrix.detach().tolist()]


def plus(*vectors: list[float]) -> list[float]:
    return [sum(values) for values in zip(*vectors, strict=True)]


def times(factor: float, x: list[float]) -> list[float]:
    return [factor * value for value in x]


def bottleneck(adapters: nn.Module, m: int, x: list[float]) -> list[float]:
    hidden = plus(product(adapters.down[m].T, x), adapters.down_bias[m, 0].tolist())
    return plus(product(adapters.up[m].T, [gelu(h) for h in hidden]), adapters.up_bias[m, 0].tolist())


def block(width: int = 8) -> Block:
    return randomise(Block(width, num_heads=2, mlp_ratio=2.0))


def stacked(modalities: int, batch: int, *shape: int) -> Tensor:
    return torch.randn(modalities * batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_the_adapter_after_attention_is_a_skip_and_a_bottleneck_of_its_own_modality() -> None:
    tuned = block()
    plain = tuned.attn
    Adapter(2, bottleneck=0.5).attach(tuned)
    randomise(tuned.attn.adapters, 1)
    x = stacked(2, 2, 2, 3, 8)
    with torch.no_grad():
        got, attended = tuned.attn(x), plain(x)
    for row in range(4):
        for i in range(2):
            for j in range(3):
                y = attended[row, i, j].tolist()
                truth = plus(y, bottleneck(tuned.attn.adapters, row // 2, y))
                assert got[row, i, j].tolist() == pytest.approx(truth, abs=1e-12)


def test_adapters_beside_the_mlp_are_exchanged_by_the_papers_formula() -> None:
    tuned = block()
    plain = tuned.mlp
    Adapter(2, bottleneck=0.5).attach(tuned)
    randomise(tuned.mlp.adapters, 1)
    tuned.mlp.exchange.double().own.data = torch.tensor([0.7, 0.2], dtype=torch.float64)
    x = stacked(2, 3, 4, 8)
    with torch.no_grad():
        got, through = tuned.mlp(x), plain(x)
    wx, wy = 0.7, 0.2
    for b in range(3):
        for t in range(4):
            ax = bottleneck(tuned.mlp.adapters, 0, x[b, t].tolist())
            ay = bottleneck(tuned.mlp.adapters, 1, x[3 + b, t].tolist())
            first = plus(through[b, t].tolist(), times(wx, ax), times(1 - wx, ay))
            second = plus(through[3 + b, t].tolist(), times(wy, ay), times(1 - wy, ax))
            assert got[b, t].tolist() == pytest.approx(first, abs=1e-12)
            assert got[3 + b, t].tolist() == pytest.approx(second, abs=1e-12)


def test_lora_updates_q_and_v_of_each_modality_scaled_by_the_rank_and_leaves_k() -> None:
    tuned = block()
    plain = tuned.attn.qkv
    Lora(2, rank=3).attach(tuned)
    layer = tuned.attn.qkv
    assert isinstance(layer, LoraLinear)
    with torch.no_grad():
        layer.down.copy_(torch.randn(layer.down.shape))
        layer.up.copy_(torch.randn(layer.up.shape))
    layer.double()
    x = stacked(2, 2, 3, 8)
    with torch.no_grad():
        got, through = layer(x), plain(x)
    for row in range(4):
        m = row // 2
        for t in range(3):
            token = x[row, t].tolist()
            low_q = product(layer.down[m, :, :3].T, token)
            low_v = product(layer.down[m, :, 3:].T, token)
            q = times(1 / 3, product(layer.up[m, 0].T, low_q))
            v = times(1 / 3, product(layer.up[m, 1].T, low_v))
            truth = plus(through[row, t].tolist(), q + [0.0] * 8 + v)
            assert got[row, t].tolist() == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_lora_of_the_mlp_is_exchanged(modalities: int) -> None:
    layer = ExchangedLoraLinear(nn.Linear(5, 4), modalities, rank=2)
    own = [0.7, 0.2, 0.9][:modalities]
    randomise(layer, 2)
    if modalities > 1:
        layer.exchange.own.data = torch.tensor(own, dtype=torch.float64)
    x = stacked(modalities, 2, 3, 5)
    with torch.no_grad():
        got, through = layer(x), layer.inner(x)
    for b in range(2):
        for t in range(3):
            low = [product(layer.down[m].T, x[2 * m + b, t].tolist()) for m in range(modalities)]
            updates = [product(layer.up[m].T, low[m]) for m in range(modalities)]
            for m in range(modalities):
                truth = through[2 * m + b, t].tolist()
                for n in range(modalities):
                    share = 1.0 if modalities == 1 else own[m] if n == m else (1 - own[m]) / (modalities - 1)
                    truth = plus(truth, times(share, updates[n]))
                assert got[2 * m + b, t].tolist() == pytest.approx(truth, abs=1e-12)


def test_with_three_modalities_shares_still_sum_to_one() -> None:
    exchange = Exchange(3)
    exchange.own.data = torch.tensor([0.5, 0.1, 0.8])
    fractions = exchange()
    torch.testing.assert_close(fractions.sum(1), torch.ones(3))
    torch.testing.assert_close(fractions[1], torch.tensor([0.45, 0.1, 0.45]))


def test_one_modality_has_no_scalar_to_exchange_by() -> None:
    tuned = block()
    MECHANISMS["both"](1, rank=2).attach(tuned)
    assert not [name for name, _ in tuned.named_parameters() if name.endswith("exchange.own")]
    assert tuned.double()(stacked(1, 2, 3, 3, 8)).shape == (2, 3, 3, 8)


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_only_the_mechanism_is_trained(name: str) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=32)
    before = {n for n, _ in vit.named_parameters()}
    fine_tune(vit, MECHANISMS[name](2, rank=2))
    trained = {n for n, p in vit.named_parameters() if p.requires_grad}
    if name == "full":
        assert trained == before
    else:
        frozen = {n.replace(".inner", "") for n, p in vit.named_parameters() if not p.requires_grad}
        assert frozen == before
        assert bool(trained) == (name != "none")


def test_the_wrapped_block_starts_as_the_frozen_one_with_lora() -> None:
    vit = timm.create_model("vit_small_patch16_dinov3_qkvb", depth=2, num_classes=0, init_values=1.0).eval()
    images = torch.randn(2, 3, 32, 32)
    before = vit(images)
    fine_tune(vit, Lora(2, rank=2))
    torch.testing.assert_close(vit(images), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for module in vit.modules():
            if isinstance(module, LoraLinear):
                module.up.normal_()
    # timm's EVA attention can take the weight past the module; then this update would be without effect.
    assert (vit(images) - before).abs().max() > 1e-3


@pytest.mark.parametrize("modalities", [1, 2])
def test_merging_gives_the_same_function(modalities: int) -> None:
    model = nn.Sequential(block(), block())
    for each in model:
        Lora(modalities, rank=2).attach(each)
    randomise(model, 3)
    x = stacked(modalities, 2, 3, 3, 8)
    with torch.no_grad():
        before = model(x)
        folded, kept = merge_lora(model)
        torch.testing.assert_close(model(x), before, atol=1e-10, rtol=1e-10)
    assert {name.rpartition(".")[2] for name in folded} == ({"qkv", "fc1", "fc2"} if modalities == 1 else {"qkv"})
    assert {name.rpartition(".")[2] for name in kept} == (set() if modalities == 1 else {"fc1", "fc2"})
    assert isinstance(model[0].attn.qkv, nn.Linear if modalities == 1 else PerModalityLinear)


def test_a_mechanism_of_ones_own_is_one_class() -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module, modalities: int, features: int) -> None:
            super().__init__()
            self.inner = inner
            self.scale = nn.Parameter(torch.ones(modalities, 1, features))

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return (by_modality(y, len(self.scale)) * self.scale).view(y.shape)

    class Rescale(Mechanism):
        def attach(self, block: nn.Module) -> None:
            block.mlp = Scaled(block.mlp, self.modalities, block.mlp.fc2.out_features)

    vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=32)
    fine_tune(vit, Rescale(3))
    # Weighted, since the plain sum of what a layer norm gives does not depend on anything before it.
    (vit(torch.randn(3, 3, 32, 32)) * torch.randn(3, 192)).sum().backward()
    scales = [p for p in vit.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in scales] == [(3, 1, 192)] * 2
    assert all(p.grad.abs().sum() > 0 for p in scales)


def saved_bytes(run: Callable[[], Tensor], ignored: nn.Module) -> int:
    known = {p.untyped_storage().data_ptr() for p in ignored.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in seen.values())


def test_layers_without_anything_to_train_below_them_keep_no_activations() -> None:
    images = torch.randn(2, 3, 32, 32)
    kept = []
    for first in (0, 2, 3):
        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=0, img_size=32)
        fine_tune(vit, Adapter(2), first)
        kept.append(saved_bytes(lambda vit=vit: vit(images), vit))
    assert kept[0] > 1.8 * kept[1] > 3 * kept[2] / 2 > 0
    vit = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=0, img_size=32)
    fine_tune(vit, MECHANISMS["none"](2))
    assert saved_bytes(lambda: vit(images), vit) == 0


def test_mistakes_are_reported_in_words() -> None:
    with pytest.raises(ModelError, match=r"rank of LoRA is 9.*\n.*from 1 to 8"):
        Lora(2, rank=9).attach(block())
    with pytest.raises(ModelError, match="0 modalities"):
        Adapter(0)
    with pytest.raises(ModelError, match="`bottleneck` is 0"):
        Adapter(1, bottleneck=0.0)
    tuned = block()
    Adapter(2).attach(tuned)
    tuned.double()
    with pytest.raises(ModelError, match="stacked batch of 3 came to a fine-tuning of 2"):
        tuned(torch.zeros(3, 2, 2, 8, dtype=torch.float64))
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0)
    with pytest.raises(ModelError, match="`first_block` is 2, and the encoder has 2 blocks"):
        fine_tune(vit, Adapter(2), 2)
    other = nn.Module()
    other.attn, other.mlp = nn.Identity(), nn.Identity()
    with pytest.raises(ModelError, match="no projection to q and v in Identity"):
        Lora(1).attach(other)
