"""A timm ViT that sees several modalities in one pass, stacked along the batch.

SAM's attention adds relative positions to the logits: the query times a learned vector per vertical distance plus one
per horizontal distance. Written out, that bias is as large as the attention matrix. Here it is folded into the product
instead: with q' = [q / sqrt(d), q R_row, q R_col] and k' = [k, one-hot(row), one-hot(column)] the product q' k' is the
same sum, so PyTorch's fused attention needs no mask and no matrix of all pairs is kept.

Windows are cut from q, k and v instead of from their input, so the two projections run on the image's own tokens and
not on the padding of the windows (at 256 px a third of the tokens that SAM's windows of 14 hold).

Source: Kirillov et al. 2023, "Segment Anything", doi 10.1109/ICCV51070.2023.00371; relative positions: Li et al. 2022,
"MViTv2", doi 10.1109/CVPR52688.2022.00476, equation 4.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer_sam import Attention as SamAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from landfuse.errors import ModelError


class RelativeAttention(nn.Module):
    """SAM's attention, in windows or global, without a materialised attention matrix.

    Takes over the parameters of timm's module under the same names.

    Args:
        source: timm's attention with relative positions.
        window: side of a window in tokens; 0 for global attention.
    """

    def __init__(self, source: SamAttention, window: int) -> None:
        super().__init__()
        self.qkv, self.proj = source.qkv, source.proj
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.rel_pos_h, self.rel_pos_w = source.rel_pos_h, source.rel_pos_w
        self.heads: int = source.num_heads
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        qkv = self.qkv(x)
        padding = None
        H, W = x.shape[1:3]
        if self.window and (H % self.window or W % self.window):
            # SAM pads windows before the projection, so a padded token's q, k and v are what zeros project to.
            padding = self.qkv(x.new_zeros(len(x), 1, 1, x.shape[-1]))
        if torch.is_grad_enabled() and qkv.requires_grad:
            # Only q, k and v of the image's own tokens are kept; the rest of the attention is computed again.
            out = checkpoint(self._attend, qkv, padding, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._attend(qkv, padding)
        projected: Tensor = self.proj(out)
        return projected

    def _attend(self, qkv: Tensor, padding: Tensor | None) -> Tensor:
        B, H, W, _ = qkv.shape
        side_h, side_w = (self.window, self.window) if self.window else (H, W)
        if padding is not None:
            filled = padding.expand(B, -(-H // side_h) * side_h, -(-W // side_w) * side_w, -1).clone()
            filled[:, :H, :W] = qkv
            qkv = filled
        rows, columns = qkv.shape[1] // side_h, qkv.shape[2] // side_w
        cut = qkv.view(B, rows, side_h, columns, side_w, 3, self.heads, -1)
        # (3, B, rows, columns, heads, side_h, side_w, d), windows as the batch of the attention.
        q, k, v = cut.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3).unbind(0)
        out = relative_attention(self.q_norm(q), self.k_norm(k), v, self.rel_pos_h, self.rel_pos_w)
        out = out.view(B, rows, columns, self.heads, side_h, side_w, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return out.reshape(B, rows * side_h, columns * side_w, -1)[:, :H, :W]


def relative_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scaled dot-product attention with decomposed relative positions.

    Args:
        q: (B, heads, H, W, d), also k and v.
        k: keys.
        v: values.
        rows: (2 H - 1, d), one vector per vertical distance, from -(H - 1) on.
        columns: (2 W - 1, d), per horizontal distance.

    Returns:
        (B, heads, H * W, d).
    """
    H, W, d = q.shape[-3:]
    table_h = _per_pair(rows, H).to(q.dtype)  # (H, H, d): query row, key row
    table_w = _per_pair(columns, W).to(q.dtype)
    by_row = torch.matmul(q, table_h.transpose(1, 2))  # (B, heads, H, W, H)
    by_column = torch.einsum("bnhwd,wkd->bnhwk", q, table_w)
    place = torch.arange(H * W, device=q.device)
    here = torch.cat((F.one_hot(place // W, H), F.one_hot(place % W, W)), dim=-1).to(q.dtype)  # (H * W, H + W)
    query = torch.cat((q * d**-0.5, by_row.to(q.dtype), by_column.to(q.dtype)), dim=-1).flatten(2, 3)
    key = torch.cat((k.flatten(2, 3), here.expand(*k.shape[:2], -1, -1)), dim=-1)
    # The fused kernels ask that values be as wide as keys.
    value = F.pad(v.flatten(2, 3), (0, H + W))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :d]


def _per_pair(table: Tensor, side: int) -> Tensor:
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place[None, :] + side - 1]


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
            near = difflib.get_close_matches(architecture, known, n=1)
            raise ModelError(
                f"there is no encoder `{name}`",
                "a ViT by its name in timm, e.g. samvit_base_patch16 or vit_base_patch16_dinov3",
                f"set `encoder: {near[0]}`" if near else "choose from timm.list_models('*vit*')",
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
        chunked = [each.chunk(len(images)) for each in maps]
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
    return vit
