"""Checkpoints trained with the code of MFNet's authors, by the names that this library's MFNet uses.

Source of the names: https://github.com/sstary/SSRS, directory MFNet, and the golden tensors recorded from it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.models import mfnet_weights

_NAMES = (
    (r"^fpn1([xy])\.1\.ln\.", r"fpn1\1.1."),
    (r"^fpn([12])x\.", r"fusion.pyramids.0.up\1."),
    (r"^fpn([12])y\.", r"fusion.pyramids.1.up\1."),
    (r"^fusion(\d)\.se_rgb\.fc\.", lambda found: f"fusion.gates.{int(found[1]) - 1}.0.fc."),
    (r"^fusion(\d)\.se_depth\.fc\.", lambda found: f"fusion.gates.{int(found[1]) - 1}.1.fc."),
    (r"^decoder\.pre_conv\.", "decoder.pre."),
    (r"^decoder\.b(\d)\.", r"decoder.block\1."),
    (r"\.attn\.local1\.", ".attn.local3."),
    (r"\.attn\.local2\.", ".attn.local1."),
    (r"\.attn\.qkv\.0\.", ".attn.qkv."),
    (r"\.relative_position_bias_table$", ".bias"),
    (r"(decoder\.block\d)\.mlp\.fc1\.", r"\1.mlp.0."),
    (r"(decoder\.block\d)\.mlp\.fc2\.", r"\1.mlp.2."),
    (r"^decoder\.p([23])\.", r"decoder.fusion\1."),
    (r"^decoder\.p1\.(pre_conv|weights|post_conv)", r"decoder.refine.fusion.\1"),
    (r"^decoder\.p1\.ca\.(\d)\.0\.", r"decoder.refine.channel.\1."),
    (r"^decoder\.p1\.pa\.", "decoder.refine.pixel."),
    (r"^decoder\.p1\.", "decoder.refine."),
    (r"\.pre_conv\.0\.", ".pre."),
    (r"\.post_conv\.", ".post."),
    (r"\.weights$", ".shares"),
    (r"^decoder\.segmentation_head\.0\.", "decoder.head.0."),
    (r"^decoder\.segmentation_head\.2\.0\.", "decoder.head.2."),
)


def convert(state: dict[str, Tensor], side: int, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of this library's MFNet that give the same logits.

    Args:
        state: as saved by the authors' code.
        side: side of the images in pixels.
        where: names the source in messages.

    Returns:
        Settings of `MFNet`, and its state without the encoder's positions resized; K is `decoder.head.2.weight`'s
        first size.

    Raises:
        ModelError: if the state is no checkpoint of the authors' MFNet.
    """
    adapter = any(".MLPx_Adapter." in key for key in state)
    lora = any(key.endswith(".lora_Ax") for key in state)
    needed = ("image_encoder.pos_embed", "fpn1x.0.weight", "fpn1y.0.weight", "decoder.segmentation_head.2.0.weight")
    missing = [key for key in needed if key not in state]
    if missing or not (adapter or lora):
        raise ModelError(
            f"{where} is no checkpoint of the authors' MFNet: {', '.join(missing) or 'Adapter and LoRA'} missing",
            "the state_dict of their UNetFormer with multimodal Adapter or LoRA, two modalities",
            "for weights of Segment Anything alone, build MFNet with `weights: path/to/file`",
        )
    try:
        return _converted(state, side, adapter, lora)
    except (RuntimeError, LookupError) as error:
        raise ModelError(
            f"weights of {where} are missing or of another shape: {error}",
            "the whole state_dict of the authors' MFNet",
            "save it again",
        ) from None


def _converted(
    state: dict[str, Tensor], side: int, adapter: bool, lora: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    settings: dict[str, Any] = {
        "finetune": "both" if adapter and lora else "adapter" if adapter else "lora",
        "weights": "random",
        "view": side,
        "decoder_features": state["decoder.pre_conv.0.weight"].shape[0],
        **_encoder(state),
    }
    if adapter:
        down = state["image_encoder.blocks.0.MLPx_Adapter.D_fc1.weight"]
        settings["bottleneck"] = down.shape[0] / down.shape[1]
    if lora:
        settings["rank"] = state["image_encoder.blocks.0.mlp.lin1.lora_Ax"].shape[0]
    own = {}
    for key, value in state.items():
        if key.startswith(("fpn", "fusion", "decoder.")) and not key.endswith("relative_position_index"):
            own[_renamed(key)] = value
    return settings, own | _tuned(state, adapter, lora)


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key


def _encoder(state: dict[str, Tensor]) -> dict[str, Any]:
    rel = [v.shape for k, v in sorted(state.items()) if re.fullmatch(r"image_encoder\.blocks\.\d+\.attn\.rel_h", k)]
    width, blocks = state["image_encoder.patch_embed.proj.weight"].shape[0], len(rel)
    lengths = [state[f"image_encoder.blocks.{block}.attn.rel_h"].shape[0] for block in range(blocks)]
    window = (min(lengths) + 1) // 2
    everywhere = [block for block, length in enumerate(lengths) if length != 2 * window - 1]
    for name, size in (("base", (768, 12)), ("large", (1024, 24)), ("huge", (1280, 32))):
        if size == (width, blocks) and window == 14:
            return {"encoder": f"samvit_{name}_patch16"}
    options = {
        "embed_dim": width,
        "depth": blocks,
        "num_heads": width // rel[0][1],
        "window_size": window,
        "global_attn_indexes": everywhere,
    }
    return {"encoder": "samvit_base_patch16", "encoder_options": options}


def _tuned(state: dict[str, Tensor], adapter: bool, lora: bool) -> dict[str, Tensor]:
    """The encoder's weights, with those of the fine-tuning stacked over the two modalities."""
    attention, mlp = ("attn.inner", "mlp.inner") if adapter else ("attn", "mlp")
    plain: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for key, value in mfnet_weights.encoder_state(state).items():
        if "_Adapter" in key or ".lora_" in key:
            continue
        block = re.match(r"(blocks\.\d+)\.(attn|mlp)\.(.*)", key)
        if block:
            layer = block[3]
            if lora and re.match(r"(qkv|fc\d)\.", layer):
                layer = layer.replace(".", ".inner.", 1)
            key = f"{block[1]}.{attention if block[2] == 'attn' else mlp}.{layer}"
        plain[f"encoder.vit.{key}"] = value
    for index in range(len({key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")})):
        theirs, ours = f"image_encoder.blocks.{index}", f"encoder.vit.blocks.{index}"
        if adapter:
            tuned |= _bottlenecks(state, f"{ours}.attn.adapters", f"{theirs}.Img_Adapter", f"{theirs}.DSM_Adapter")
            tuned |= _bottlenecks(state, f"{ours}.mlp.adapters", f"{theirs}.MLPx_Adapter", f"{theirs}.MLPy_Adapter")
            tuned[f"{ours}.mlp.exchange.own"] = _both(state, f"{theirs}.w{{}}_Adapter").flatten()
        if lora:
            down, up = _both(state, f"{theirs}.attn.qkv.lora_A{{}}"), _both(state, f"{theirs}.attn.qkv.lora_B{{}}")
            rank = up.shape[2]
            tuned[f"{ours}.{attention}.qkv.down"] = down.transpose(1, 2)
            tuned[f"{ours}.{attention}.qkv.up"] = up.view(2, 2, -1, rank).permute(0, 1, 3, 2)  # (2, q and v, r, D)
            if down.shape[1] != 2 * rank:
                raise ModelError(
                    f"LoRA of q, k and v has {down.shape[1]} rows for a rank of {rank}", f"{2 * rank}, of q and v", ""
                )
            for layer, name in (("lin1", "fc1"), ("lin2", "fc2")):
                place = f"{ours}.{mlp}.{name}"
                tuned[f"{place}.down"] = _both(state, f"{theirs}.mlp.{layer}.lora_A{{}}").transpose(1, 2)
                tuned[f"{place}.up"] = _both(state, f"{theirs}.mlp.{layer}.lora_B{{}}").transpose(1, 2)
                tuned[f"{place}.exchange.own"] = _both(state, f"{theirs}.mlp.{layer}.lora_w{{}}").flatten()
    return plain | {key: value.contiguous() for key, value in tuned.items()}


def _both(state: dict[str, Tensor], name: str) -> Tensor:
    return torch.stack([state[name.format(modality)] for modality in "xy"])


def _bottlenecks(state: dict[str, Tensor], ours: str, *theirs: str) -> dict[str, Tensor]:
    def stacked(layer: str) -> Tensor:
        return torch.stack([state[f"{name}.{layer}"] for name in theirs])

    return {
        f"{ours}.down": stacked("D_fc1.weight").transpose(1, 2),
        f"{ours}.down_bias": stacked("D_fc1.bias")[:, None],
        f"{ours}.up": stacked("D_fc2.weight").transpose(1, 2),
        f"{ours}.up_bias": stacked("D_fc2.bias")[:, None],
    }
