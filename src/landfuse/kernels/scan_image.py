"""The selective scan of an image in four directions, fused: the core of VMamba's SS2D.

Each pixel has low-rank factors of delta, and B and C, for four walks over the image: along rows, along columns, and
both backwards. Every walk reads the same image by its own strides and adds to the same result, so neither four
copies of the image nor a full delta is ever stored.

Source: Liu et al. 2024, "VMamba: Visual State Space Model", arXiv 2401.10166, sections 4.2 and 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.kernels import scan
from landfuse.kernels.scan_inputs import ImageInputs

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
        out = scan.scan_plain(
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
    x: Tensor, factors: Tensor, A: Tensor, rank_weight: Tensor, delta_bias: Tensor, D: Tensor, path: str = ""
) -> Tensor:
    """The sum of four scans over an image, (B, H, W, D) in the type of x; arguments as in `ImageInputs`, and `path`
    as for `selective_scan`.

    Raises:
        ModelError: if shapes, types or devices do not match, or the image is empty.
    """
    path = path or scan.REQUESTED
    inputs = ImageInputs(x, factors, A, rank_weight, delta_bias, D)
    scan.check_tensors(inputs._asdict(), path)
    _check_shapes(inputs)
    if path == "plain":
        return image_scan_plain(*inputs)
    y: Tensor = torch.ops.landfuse.image_scan(*inputs, scan.needs_gradient(inputs._asdict()), path)[0]
    return y


def _check_shapes(inputs: ImageInputs) -> None:
    x, factors, A, rank_weight, delta_bias, D = inputs
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


scan.register_operator(
    ImageInputs,
    "image_scan",
    "Tensor x, Tensor factors, Tensor A, Tensor rank_weight, Tensor delta_bias, Tensor D",
    "",
    "image_",
)
