"""DINOv3's weights in the layouts of Meta and of Hugging Face, written here from timm's, come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.layers.checkpoints import read_tensors
from landfuse.layers.vit_encoder import StackedEncoder
from landfuse.models import mfnet_weights

PLAIN, BIASED, GATED = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"


def encoder(name: str) -> StackedEncoder:
    torch.manual_seed(0)
    made = StackedEncoder(name, 32, {"depth": 2})
    with torch.no_grad():
        for parameter in made.vit.parameters():
            parameter.normal_()
    return made


def metas(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Meta's checkpoints: one bias for q, k and v (k's is masked), and buffers that timm does not have."""
    names = {
        "reg_token": "storage_tokens",
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "fc1_g": "w1",
        "fc1_x": "w2",
    }
    found = {}
    gated = any("fc1_g" in name for name in state)
    for name, value in state.items():
        if name.endswith(("q_bias", "v_bias")):
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        found[name.replace("mlp.fc2", "mlp.w3") if gated else name] = value
    for block in range(2):
        start = f"blocks.{block}.attn."
        zero = torch.zeros(384)
        q, v = state.get(f"{start}q_bias", zero), state.get(f"{start}v_bias", zero)
        found[f"{start}qkv.bias"] = torch.cat((q, torch.full((384,), 9.0), v))
        found[f"{start}qkv.bias_mask"] = torch.cat((zero + 1, zero, zero + 1))
    return found | {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}


def hugging_faces(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers saves them: three projections, other names."""
    gated = any("fc1_g" in name for name in state)
    names = (
        ("cls_token", "embeddings.cls_token"),
        ("reg_token", "embeddings.register_tokens"),
        ("patch_embed.proj.", "embeddings.patch_embeddings."),
        ("blocks.", "layer."),
        ("gamma_1", "layer_scale1.lambda1"),
        ("gamma_2", "layer_scale2.lambda1"),
        ("attn.proj.", "attention.o_proj."),
        ("fc1_g.", "gate_proj."),
        ("fc1_x." if gated else "fc1.", "up_proj."),
        ("fc2.", "down_proj."),
        ("attn.q_bias", "attention.q_proj.bias"),
        ("attn.v_bias", "attention.v_proj.bias"),
    )
    found: dict[str, Tensor] = {"embeddings.mask_token": torch.zeros(1, 1, 384)}
    for name, value in state.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        if name.endswith("attn.qkv.weight"):
            for part, weight in zip("qkv", value.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.{part}_proj")] = weight.clone()
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("layout", [metas, hugging_faces])
@pytest.mark.parametrize("name", [PLAIN, BIASED, GATED])
def test_layouts_are_read(tmp_path: Path, layout: type, name: str) -> None:
    source = encoder(name)
    state = source.vit.state_dict()
    safetensors.torch.save_file({k: v.contiguous() for k, v in layout(state).items()}, tmp_path / "w.safetensors")
    fresh = StackedEncoder(name, 32, {"depth": 2})
    read = mfnet_weights.encoder_state(read_tensors(tmp_path / "w.safetensors"))
    mfnet_weights.fit(fresh.vit, read, "w.safetensors")
    for key, value in state.items():
        assert torch.equal(fresh.vit.state_dict()[key], value), key
    images = [torch.randn(1, 3, 32, 32)]
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images)[0][0], source.eval()(images)[0][0])


@pytest.mark.parametrize("layout", [metas, hugging_faces])
def test_biases_are_never_dropped_silently(layout: type) -> None:
    state = mfnet_weights.encoder_state(layout(encoder(BIASED).vit.state_dict()))
    with pytest.raises(ModelError, match=r"blocks\.0\.attn\.q_bias is more than the encoder has"):
        mfnet_weights.fit(StackedEncoder(PLAIN, 32, {"depth": 2}).vit, state, "w.pth")
    plain = mfnet_weights.encoder_state(layout(encoder(PLAIN).vit.state_dict()))
    with pytest.raises(ModelError, match=r"blocks\.0\.attn\.q_bias is missing"):
        mfnet_weights.fit(StackedEncoder(BIASED, 32, {"depth": 2}).vit, plain, "w.pth")
