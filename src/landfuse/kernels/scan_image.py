"""The selective scan of an image in four directions, fused: the core of VMamba's SS2D.

Each pixel gives low-rank factors of delta, and B and C, for four walks over the image: along rows, along columns, and
both backwards. Every walk reads the same image by its own strides and adds to the same result, so neither four
copies of the image nor a full delta is ever stored.

Source: Liu et al. 2024, "VMamba: Visual State Space Model", arXiv 2401.10166, sections 4.2 and 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.kernels import scan

DIRECTIONS = 4


def image_scan_plain(
    x: Tensor, factors: Tensor, A: Tensor, rank_weight: Tensor, delta_bias: Tensor, D: Tensor
) -> Tensor:
    """The scan of an image as it is defined: four sequences, four plain scans, one sum; as `image_scan`."""
    _, height, width, channels = x.shape
    states, rank = A.shape[1], rank_weight.shape[1]
    y = torch.zeros_like(x)
    for k, (values, weight) in enumerate(
        zip(factors.unflatten(3, (DIRECTIONS, -1)).unbind(3), rank_weight.chunk(DIRECTIONS), strict=True)
    ):
        low_rank, B, C = (
            _sequence(t, k)
            for t in (values[..., :rank], values[..., rank : rank + states], values[..., rank + states :])
        )
        delta = torch.einsum("dr,brl->bdl", weight, low_rank)
        at = slice(k * channels, (k + 1) * channels)
        out, _ = scan.scan_plain(
            _sequence(x, k), delta, A[at], B.unsqueeze(1), C.unsqueeze(1), D[at], delta_bias[at], delta_softplus=True
        )
        out = out.flip(-1) if k >= 2 else out
        y = y + (
            out.unflatten(2, (width, height)).permute(0, 3, 2, 1)
            if k % 2
            else out.unflatten(2, (height, width)).permute(0, 2, 3, 1)
        )
    return y


def _sequence(image: Tensor, direction: int) -> Tensor:
    """(B, H, W, D) -> (B, D, H*W) in the order of one walk."""
    walked = (image.transpose(1, 2) if direction % 2 else image).flatten(1, 2).transpose(1, 2)
    return walked.flip(-1) if direction >= 2 else walked


def image_scan(
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    delta_bias: Tensor,
    D: Tensor,
    path: str = "",
) -> Tensor:
    """The sum of four scans over an image, with delta = softplus(rank_weight r + delta_bias).

    Args:
        x: (B, H, W, D), floating; fastest where contiguous.
        factors: (B, H, W, 4*(R + 2N)): for each direction r (R), B (N) and C (N). The directions are: along rows,
            along columns, backwards along rows, backwards along columns.
        A: (4*D, N), usually negative.
        rank_weight: (4*D, R).
        delta_bias: (4*D,).
        D: (4*D,), the weight of the input itself.
        path: as for `selective_scan`.

    Returns:
        (B, H, W, D) in the type of x.

    Raises:
        ModelError: if shapes, types or devices do not go together, or the image is empty.
    """
    path = path or scan.REQUESTED
    tensors = {"x": x, "factors": factors, "A": A, "rank_weight": rank_weight, "delta_bias": delta_bias, "D": D}
    scan.check_tensors(tensors, path)
    _check_shapes(x, factors, A, rank_weight, delta_bias, D)
    if path == "plain":
        return image_scan_plain(x, factors, A, rank_weight, delta_bias, D)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values())
    y: Tensor = torch.ops.landfuse.image_scan(x, factors, A, rank_weight, delta_bias, D, save, path)[0]
    return y


def project_and_scan(
    x: Tensor, projection: Tensor, A: Tensor, rank_weight: Tensor, delta_bias: Tensor, D: Tensor, path: str = ""
) -> Tensor:
    """`image_scan` of x (B, H, W, D) with factors = projection x, where projection is (4*(R + 2N), D)."""
    return image_scan(x, F.linear(x, projection), A, rank_weight, delta_bias, D, path)


def _check_shapes(x: Tensor, factors: Tensor, A: Tensor, rank_weight: Tensor, delta_bias: Tensor, D: Tensor) -> None:
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ModelError(f"`x` has the shape {tuple(x.shape)}", "(B, H, W, D), with at least one pixel and channel", "")
    for name, tensor in (("A", A), ("rank_weight", rank_weight)):
        if tensor.dim() != 2 or tensor.shape[1] == 0:
            raise ModelError(f"`{name}` has the shape {tuple(tensor.shape)}", "two axes, the second not empty", "")
    batch, height, width, channels = x.shape
    values = DIRECTIONS * (rank_weight.shape[1] + 2 * A.shape[1])
    of_x = f"x has the shape {tuple(x.shape)}"
    because = f"{of_x}, rank_weight {tuple(rank_weight.shape)} and A {tuple(A.shape)}"
    scan.check_shape("A", A, (DIRECTIONS * channels, A.shape[1]), "(4*D, N)", of_x)
    scan.check_shape("rank_weight", rank_weight, (DIRECTIONS * channels, rank_weight.shape[1]), "(4*D, R)", of_x)
    scan.check_shape("factors", factors, (batch, height, width, values), "(B, H, W, 4*(R + 2N))", because)
    scan.check_shape("delta_bias", delta_bias, (DIRECTIONS * channels,), "(4*D,)", of_x)
    scan.check_shape("D", D, (DIRECTIONS * channels,), "(4*D,)", of_x)


_WIDE = (True, True, False, False, False, False)  # x, factors, A, rank_weight, delta_bias, D


@torch.library.custom_op(
    "landfuse::image_scan",
    mutates_args=(),
    schema="(Tensor x, Tensor factors, Tensor A, Tensor rank_weight, Tensor delta_bias, Tensor D, bool save, str path)"
    " -> (Tensor, Tensor)",
)
def _forward(
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    delta_bias: Tensor,
    D: Tensor,
    save: bool,
    path: str,
) -> tuple[Tensor, Tensor]:
    tensors = (x, factors, A, rank_weight, delta_bias, D)
    dtype = scan.working_type(tensors)
    module = scan.implementation(path, x.device, dtype)
    y, saved = module.image_forward(*scan.converted(tensors, _WIDE, module, dtype), save)
    return scan.laid_out(y, x), saved


@_forward.register_fake
def _(
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    delta_bias: Tensor,
    D: Tensor,
    save: bool,
    path: str,
) -> tuple[Tensor, Tensor]:
    dtype = scan.working_type((x, factors, A, rank_weight, delta_bias, D))
    shape = scan.implementation(path, x.device, dtype).image_saved(x.shape, A.shape[1]) if save else (0,)
    return torch.empty_like(x), x.new_empty(shape, dtype=dtype)


@torch.library.custom_op(
    "landfuse::image_scan_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor factors, Tensor A, Tensor rank_weight, Tensor delta_bias, Tensor D, "
    "Tensor saved, str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    dy: Tensor,
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    delta_bias: Tensor,
    D: Tensor,
    saved: Tensor,
    path: str,
) -> tuple[Tensor, ...]:
    tensors = (x, factors, A, rank_weight, delta_bias, D)
    dtype = scan.working_type(tensors)
    module = scan.implementation(path, x.device, dtype)
    gradients = module.image_backward(*scan.converted((dy, *tensors), (True, *_WIDE), module, dtype), saved)
    return tuple(scan.laid_out(gradient, like) for gradient, like in zip(gradients, tensors, strict=True))


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    factors: Tensor,
    A: Tensor,
    rank_weight: Tensor,
    delta_bias: Tensor,
    D: Tensor,
    saved: Tensor,
    path: str,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(like) for like in (x, factors, A, rank_weight, delta_bias, D))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, _, path = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.path = path
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * 8
    return (*torch.ops.landfuse.image_scan_backward(dy, *ctx.saved_tensors, ctx.path), None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
