"""A timm ViT that sees several modalities in one pass, stacked along the batch.

SAM's attention is replaced by `RelativeAttention`, which returns the same numbers; other ViTs stay as timm makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer_sam import Attention as SamAttention
from torch import Tensor, nn

from landfuse.errors import ModelError, nearest
from landfuse.kernels.attention import RelativeAttention
from landfuse.kernels.linear import quicken


class StackedEncoder(nn.Module):
    """A timm ViT over several modalities at once.

    Args:
        name: timm's name, with or without the tag of its weights, e.g. `samvit_base_patch16`.
        side: side of the square images in pixels, before padding.
        options: passed to timm, e.g. `depth`, for an encoder of another size.
        checkpointing: whether blocks keep only their input, and are computed again in the backward pass.

    Raises:
        ModelError: if timm has no such encoder or cannot build it so, or the images are smaller than one patch.
    """

    def __init__(
        self, name: str, side: int, options: Mapping[str, Any] | None = None, *, checkpointing: bool = False
    ) -> None:
        super().__init__()
        architecture = name.split(".")[0]
        if not timm.is_model(architecture):
            known = timm.list_models(["samvit_*", "sam2_hiera_*", "vit_*"])
            raise ModelError(
                f"there is no encoder `{name}`",
                "a ViT by its name in timm, e.g. samvit_base_patch16 or vit_base_patch16_dinov3",
                nearest(architecture, known, "choose from timm.list_models('*vit*')"),
            )
        patch = _patch(architecture)
        hierarchical = "hiera" in architecture
        multiple = 32 if hierarchical else 2 * patch  # the decoder halves the deepest map of a plain ViT once more
        if side < patch:
            raise ModelError(
                f"the images are {side} px wide, and a patch of `{name}` is {patch} px",
                f"images of at least {patch} px",
                f"set `view` so that view x zoom is at least {patch}, e.g. 256",
            )
        self.name, self.side = name, side
        # At least two cells in the deepest map: batch norm in training needs more than one value per channel.
        self.padded = max(2, -(-side // multiple)) * multiple
        self.vit = _build(architecture, self.padded, dict(options or {}))
        self.vit.set_grad_checkpointing(checkpointing)
        self.indices: int | list[int] = 4 if hierarchical else 1
        self.channels: tuple[int, ...] = (
            tuple(info["num_chs"] for info in self.vit.feature_info[-4:]) if hierarchical else (_width(self.vit),)
        )
        self.hierarchical = hierarchical
        self.strides: tuple[int, ...] = (4, 8, 16, 32) if hierarchical else (patch,)

    def forward(self, images: list[Tensor]) -> list[list[Tensor]]:
        """Runs once over the modalities, stacked along the batch.

        Args:
            images: per modality (B, 3, padded, padded).

        Returns:
            Per modality its maps, (B, channels, padded / stride, padded / stride), finest first.
        """
        stacked = torch.cat(images)
        maps = self.vit.forward_intermediates(
            stacked, indices=self.indices, norm=not self.hierarchical, output_fmt="NCHW", intermediates_only=True
        )
        chunked = [each.unflatten(0, (len(images), -1)) for each in maps]
        return [[each[m] for each in chunked] for m in range(len(images))]


def _width(vit: Any) -> int:
    """Channels of a plain ViT's map, after its neck where it has one; timm's own note of it differs by version."""
    after_neck = list(vit.neck.parameters()) if hasattr(vit, "neck") else []
    return int(after_neck[-1].shape[0] if after_neck else vit.embed_dim)


def _patch(architecture: str) -> int:
    """Side of a patch in pixels, read off the name, as timm writes it; SAM 2's Hiera starts at 4."""
    for part in architecture.split("_"):
        if part.startswith("patch") and part[5:].isdigit():
            return int(part[5:])
    return 4 if "hiera" in architecture else 16


def _build(architecture: str, side: int, options: dict[str, Any]) -> Any:
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        options.setdefault("img_size", side)
    if architecture.startswith("samvit"):
        # Segment Anything was trained with 1e-6; timm's own default is 1e-5.
        options.setdefault("norm_layer", partial(nn.LayerNorm, eps=1e-6))
    try:
        vit = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"timm cannot build `{architecture}` with {options}: {error}",
            "options that this encoder takes",
            "check `encoder_options`",
        ) from None
    if not (hasattr(vit, "blocks") and hasattr(vit, "forward_intermediates")):
        raise ModelError(
            f"`{architecture}` is no Vision Transformer",
            "an encoder made of blocks, e.g. samvit_base_patch16",
            "set `encoder` to a ViT, or use the model `stacked` for other backbones",
        )
    vit.head = nn.Identity()  # SAM 2's keeps a norm of its own that nothing here would train
    for block in vit.blocks:
        attention = getattr(block, "attn", None)
        if isinstance(attention, SamAttention) and attention.use_rel_pos:
            block.attn = RelativeAttention(attention, block.window_size)
            block.window_size = 0
    quicken(vit.blocks)
    return vit
