"""SAM's attention with relative positions, by PyTorch's fused attention and on the image's own tokens only.

SAM adds relative positions to the logits: the query times a learned vector per vertical distance plus one per
horizontal distance. Written out, that bias is as large as the attention matrix. Here it is folded into the product
instead: with q' = [q / sqrt(d), q R_row, q R_col] and k' = [k, one-hot(row), one-hot(column)] the product q' k' is the
same sum, so no matrix of all pairs is kept.

SAM also pads the map to whole windows before the projection, so the padding takes part as keys: at 256 px 784 tokens
for 256. All padded tokens are what zeros project to, one key k0 and one value v0, and differ in their place only. What
they add to the softmax is therefore one more key with the value v0 and the logit

    q k0 / sqrt(d) + log sum over the padded places (i, j) of exp(r_i + c_j),   r = q R_row, c = q R_col,

and since the padded places are two rectangles (below the image, and to its right), each of their sums is a product of
a sum over rows and one over columns. Nothing is approximated.

Source: Kirillov et al. 2023, "Segment Anything", doi 10.1109/ICCV51070.2023.00371; relative positions: Li et al. 2022,
"MViTv2", doi 10.1109/CVPR52688.2022.00476, equation 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models.vision_transformer_sam import Attention as SamAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from landfuse.kernels.gpu import constant


class Padding(NamedTuple):
    """The tokens that fill a window up to its side, below the image's own and to their right.

    Args:
        k: their key, (B, heads, 1, d).
        v: their value, (B, heads, 1, d).
        side: of the whole window, in tokens.
    """

    k: Tensor
    v: Tensor
    side: int


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
        if self.window and (x.shape[1] % self.window or x.shape[2] % self.window):
            padding = self.qkv(x.new_zeros(x.shape[0], 1, 1, x.shape[-1]))
        if torch.is_grad_enabled() and qkv.requires_grad:
            # Only q, k and v are kept; the rest of the attention is computed again.
            out = checkpoint(self._attend, qkv, padding, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._attend(qkv, padding)
        projected: Tensor = self.proj(out)
        return projected

    def _attend(self, qkv: Tensor, padding: Tensor | None) -> Tensor:
        H, W = qkv.shape[1:3]
        if padding is not None and qkv.is_cuda:
            return self._filled_up(qkv, padding)
        side_h, side_w = (self.window, self.window) if self.window else (H, W)
        # Whole windows first, then those that the image's edge cuts: their sizes differ, and so do their tensors.
        cut_h, cut_w = H - H % side_h, W - W % side_w
        bands = []
        for band in (qkv[:, :cut_h], qkv[:, cut_h:]):
            parts = [
                self._windows(part, min(side_h, part.shape[1]), min(side_w, part.shape[2]), padding)
                for part in (band[:, :, :cut_w], band[:, :, cut_w:])
                if part.numel()
            ]
            bands += [torch.cat(parts, dim=2)] if parts else []
        return torch.cat(bands, dim=1)

    def _filled_up(self, qkv: Tensor, padding: Tensor) -> Tensor:
        """The same with the padding as tokens, as SAM has it: more to compute, but all windows in one call."""
        B, H, W, D = qkv.shape
        whole = padding.expand(B, H + -H % self.window, W + -W % self.window, D).clone()
        whole[:, :H, :W] = qkv
        return self._windows(whole, self.window, self.window, None)[:, :H, :W]

    def _windows(self, qkv: Tensor, h: int, w: int, padding: Tensor | None) -> Tensor:
        B, H, W, _ = qkv.shape
        rows, columns = H // h, W // w
        cut = qkv.reshape(B, rows, h, columns, w, 3, self.heads, -1)
        # (3, B, rows, columns, heads, h, w, d), windows as the batch of the attention.
        q, k, v = cut.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3).unbind(0)
        filled = None
        if padding is not None and (h < self.window or w < self.window):
            filling = padding.view(B, 1, 3, self.heads, 1, -1).expand(-1, rows * columns, -1, -1, -1, -1)
            _, k0, v0 = filling.flatten(0, 1).unbind(1)
            filled = Padding(self.k_norm(k0), v0, self.window)
        out = relative_attention(self.q_norm(q), self.k_norm(k), v, self.rel_pos_h, self.rel_pos_w, filled)
        out = out.view(B, rows, columns, self.heads, h, w, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return out.reshape(B, H, W, -1)


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, padding: Padding | None = None
) -> Tensor:
    """Scaled dot-product attention with decomposed relative positions.

    Args:
        q: (B, heads, H, W, d), also k and v.
        k: keys.
        v: values.
        rows: one vector per vertical distance, from -(side - 1) to side - 1: (2 side - 1, d). The side is H, or the
            padding's.
        columns: per horizontal distance; its side is W, or the padding's.
        padding: tokens below and to the right that are keys, but not queries.

    Returns:
        (B, heads, H * W, d).
    """
    H, W, d = q.shape[-3:]
    side_h, side_w = (padding.side, padding.side) if padding else (H, W)
    distances, here = _places(H, W, side_h, side_w, q.dtype, q.device)
    # By every distance, in one product; of these each query takes those to the rows and the columns of its keys.
    near = torch.matmul(q.flatten(2, 3), torch.cat((rows, columns)).to(q.dtype).t())
    near = near.gather(-1, distances.expand(*near.shape[:2], -1, -1))  # (B, heads, H * W, side_h + side_w)
    by_row, by_column = near.split((side_h, side_w), dim=-1)
    query = [q.flatten(2, 3) * d**-0.5, *((by_row[..., :H], by_column[..., :W]) if padding else (near,))]
    key = torch.cat((k.flatten(2, 3), here.expand(*k.shape[:2], -1, -1)), dim=-1)
    value = v.flatten(2, 3)
    if padding:
        wide = torch.promote_types(q.dtype, torch.float32)
        logit = _log_sum_of_padding(by_row.to(wide), by_column.to(wide), H, W)[..., None]
        # In two parts, since half precision would blur the weight of padding that outnumbers the image's tokens.
        high = logit.to(q.dtype)
        query += [high, (logit - high).to(q.dtype)]
        last = F.pad(padding.k, (0, H + W))
        key = torch.cat((F.pad(key, (0, 2)), F.pad(last, (0, 2), value=1.0)), dim=2)
        value = torch.cat((value, padding.v), dim=2)
    # The fused kernels ask that values be as wide as keys.
    value = F.pad(value, (0, key.shape[-1] - d))
    return F.scaled_dot_product_attention(torch.cat(query, dim=-1), key, value, scale=1.0)[..., :d]


def _log_sum_of_padding(by_row: Tensor, by_column: Tensor, H: int, W: int) -> Tensor:
    """log of the sum of exp(r_i + c_j) over the places of a window beyond its first H rows or W columns."""
    terms = []
    if by_row.shape[-1] > H:
        terms.append(by_row[..., H:].logsumexp(-1) + by_column.logsumexp(-1))
    if by_column.shape[-1] > W:
        terms.append(by_row[..., :H].logsumexp(-1) + by_column[..., W:].logsumexp(-1))
    return terms[0] if len(terms) == 1 else torch.logaddexp(*terms)


@constant
def _places(
    H: int, W: int, side_h: int, side_w: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each token of H x W, in rows: where in both tables its distances to side_h rows and side_w columns are,
    (H * W, side_h + side_w); and 1 at its row and its column, (H * W, H + W)."""
    row, column = torch.meshgrid(torch.arange(H, device=device), torch.arange(W, device=device), indexing="ij")
    row, column = row.reshape(-1, 1), column.reshape(-1, 1)
    down = row - torch.arange(side_h, device=device) + side_h - 1
    across = column - torch.arange(side_w, device=device) + side_w - 1 + 2 * side_h - 1
    here = torch.cat((F.one_hot(row[:, 0], H), F.one_hot(column[:, 0], W)), dim=-1)
    return torch.cat((down, across), dim=-1), here.to(dtype)
