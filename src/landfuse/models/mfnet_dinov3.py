"""Weights of DINOv3 in the layouts of Meta's release and of Hugging Face transformers, by timm's names.

timm has two models of each size: one whose projections to q and v have a bias (`..._dinov3_qkvb`), and one without, for
weights whose biases are zero.

Source of the names: Siméoni et al. 2025, "DINOv3", arXiv 2508.10104, https://github.com/facebookresearch/dinov3, and
Hugging Face transformers' model `dinov3_vit`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

_META = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_HUGGING_FACE = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.", "blocks."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_DROPPED = re.compile(r"(^|\.)mask_token$|rope|inv_freq$|\.bias_mask$")


def converted(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The same weights by timm's names; None where they are no DINOv3 in one of those layouts."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    if "storage_tokens" in state:
        return _without_zeros(_split_bias(_renamed(state, _META)))
    if "embeddings.register_tokens" in state and "layer.0.attention.q_proj.weight" in state:
        gated = "layer.0.mlp.gate_proj.weight" in state
        mlp = (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1."), (r"\.mlp\.gate_proj\.", ".mlp.fc1_g.")
        return _without_zeros(_fused(_renamed(state, (*_HUGGING_FACE, *mlp))))
    return None


def _renamed(state: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    result = {}
    for name, value in state.items():
        if _DROPPED.search(name):
            continue
        for pattern, new in names:
            name = re.sub(pattern, new, name)
        result[name] = value
    return result


def _split_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A bias of q, k and v as those of q and v; that of k is masked in DINOv3."""
    result = {}
    for name, value in state.items():
        if name.endswith(".attn.qkv.bias"):
            q, _, v = value.chunk(3)
            start = name.removesuffix("qkv.bias")
            result[f"{start}q_bias"], result[f"{start}v_bias"] = q, v
        else:
            result[name] = value
    return result


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three projections as one."""
    result = {}
    for name, value in state.items():
        found = re.fullmatch(r"(.*\.attn\.)([qkv])\.(weight|bias)", name)
        if not found:
            result[name] = value
        elif found[3] == "bias" and found[2] != "k":
            result[f"{found[1]}{found[2]}_bias"] = value
        elif found[2] == "q" and found[3] == "weight":
            parts = [state[f"{found[1]}{part}.weight"] for part in "qkv"]
            result[f"{found[1]}qkv.weight"] = torch.cat(parts)
    return result


def _without_zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the biases of q and v where all of them are zero, as timm's models without them need it."""
    biases = [name for name in state if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if any(state[name].any() for name in biases):
        return state
    return {name: value for name, value in state.items() if name not in set(biases)}
