"""The selective scan: one operator, several ways to compute it.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t,    h_0 = 0 before the first step.

`scan_plain` is the definition. `selective_scan` gives the same numbers by the fastest way that serves: `native`, the
compiled kernel, for float32 on a CPU; `triton` for CUDA; `torch` everywhere else. The environment variable
LANDFUSE_SCAN names one of them, or `plain`; where the named one cannot take the tensors at hand, `torch` serves.

Half precision: u, delta, B and C may be float16 or bfloat16; sums are carried in float32 and y comes in the type of u.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, eq. 2 and
algorithm 2, with the input discretised as delta B u, as their implementation does.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.kernels import scan_native, scan_torch

PATHS = ("native", "torch", "triton", "plain")
REQUESTED = os.environ.get("LANDFUSE_SCAN", "")
"""The path that LANDFUSE_SCAN named when this module was imported, or empty."""


def scan_plain(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scan as it is defined, step by step, in the type of its inputs.

    Args:
        u: (B, G*D, L).
        delta: (B, G*D, L).
        A: (G*D, N).
        B: (B, G, N, L).
        C: (B, G, N, L).
        D: (G*D,).
        delta_bias: (G*D,), added to delta.
        delta_softplus: delta becomes log(1 + exp(delta)), after the bias.

    Returns:
        y (B, G*D, L), and the state after the last step (B, G*D, N).
    """
    repeats = u.shape[1] // B.shape[1]
    # unbind: indexing [..., t] inside the loop would make the backward pass quadratic in L
    Bs, Cs = (t.repeat_interleave(repeats, dim=1).unbind(-1) for t in (B, C))  # L times (B, G*D, N)
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    state, ys = torch.zeros_like(Bs[0]), []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(-1), delta.unbind(-1), Bs, Cs, strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        ys.append((state * C_t).sum(-1))
    y = torch.stack(ys, dim=-1)
    return (y if D is None else y + u * D[:, None]), state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    path: str = "",
) -> tuple[Tensor, Tensor]:
    """The scan, by the fastest way that serves; arguments and result as in `scan_plain`, gradients to all tensors.

    Args:
        u: (B, G*D, L), floating; any strides.
        delta: (B, G*D, L), floating.
        A: (G*D, N), usually negative.
        B: (B, G, N, L).
        C: (B, G, N, L).
        D: (G*D,).
        delta_bias: (G*D,), added to delta.
        delta_softplus: delta becomes log(1 + exp(delta)), after the bias.
        path: one of `PATHS`; by default that in LANDFUSE_SCAN, or the fastest.

    Returns:
        y (B, G*D, L) in the type of u, and the state after the last step (B, G*D, N).

    Raises:
        ModelError: if shapes, types or devices do not go together, or the sequence is empty.
    """
    path = path or REQUESTED
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    check_tensors(given, path)
    _check_shapes(given)
    if path == "plain":
        return scan_plain(u, delta, A, B, C, D, delta_bias, delta_softplus)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values())
    y, last, _ = torch.ops.landfuse.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, save, path)
    return y, last


def check_tensors(tensors: dict[str, Tensor], path: str) -> None:
    """Refuses what no way of computing the scan can take, shapes apart.

    Raises:
        ModelError: for an unknown path, a type that is not floating, or tensors on several devices.
    """
    if path and path not in PATHS:
        raise ModelError(f"there is no scan `{path}`", f"one of {', '.join(PATHS)}", "change or unset LANDFUSE_SCAN")
    reference, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise ModelError(f"`{name}` holds {tensor.dtype}", "a floating type", f"convert it: {name}.float()")
        if tensor.device != first.device:
            raise ModelError(
                f"`{name}` lies on {tensor.device}, `{reference}` on {first.device}",
                "all tensors on one device",
                f"move it: {name}.to({reference}.device)",
            )


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], axes: str, because: str) -> None:
    """Raises a ModelError that names the argument and both shapes, unless `tensor` has the expected one."""
    if tuple(tensor.shape) != expected:
        raise ModelError(
            f"`{name}` has the shape {tuple(tensor.shape)}",
            f"{expected}, that is {axes}, since {because}",
            f"check what `{name}` is made from",
        )


def _check_shapes(tensors: dict[str, Tensor]) -> None:
    u, A, B = tensors["u"], tensors["A"], tensors["B"]
    for name, axes in (("u", "(B, G*D, L)"), ("A", "(G*D, N)"), ("B", "(B, G, N, L)")):
        if tensors[name].dim() != axes.count(",") + 1:
            raise ModelError(
                f"`{name}` has the shape {tuple(tensors[name].shape)}", f"{axes.count(',') + 1} axes, {axes}", ""
            )
    batch, channels, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    of_u = f"u has the shape {tuple(u.shape)}"
    if length == 0 or channels == 0 or states == 0 or groups == 0:
        raise ModelError(
            f"the sequence is empty: u has the shape {tuple(u.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)}",
            "at least one step, channel, group and state",
            "check the input's size",
        )
    check_shape("delta", tensors["delta"], (batch, channels, length), "(B, G*D, L)", of_u)
    check_shape("A", A, (channels, states), "(G*D, N)", of_u)
    if channels % groups:
        raise ModelError(
            f"`B` has {groups} groups (shape {tuple(B.shape)}) and u {channels} channels (shape {tuple(u.shape)})",
            "a number of groups that divides the channels",
            "check the groups",
        )
    because = f"{of_u} and A {tuple(A.shape)}"
    check_shape("B", B, (batch, groups, states, length), "(B, G, N, L)", because)
    check_shape("C", tensors["C"], (batch, groups, states, length), "(B, G, N, L)", f"{because}, B {tuple(B.shape)}")
    for name in ("D", "delta_bias"):
        if name in tensors:
            check_shape(name, tensors[name], (channels,), "(G*D,)", of_u)


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def working_type(tensors: tuple[Tensor | None, ...]) -> torch.dtype:
    """The type in which sums are carried: float64 if any tensor has it, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def implementation(path: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that computes the scan for this device and working type."""
    if dtype == torch.float32:
        if device.type == "cpu" and path in ("", "native") and scan_native.available():
            return scan_native
        # TRITON_INTERPRET runs the kernels on a CPU, to check them.
        reachable = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
        if reachable and path in ("", "triton") and _triton_is_installed():
            from landfuse.kernels import scan_triton

            return scan_triton
    return scan_torch


def converted(
    tensors: tuple[Tensor | None, ...], wide: tuple[bool, ...], module: ModuleType, dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """The tensors in the working type; those that are `wide` stay as they are where the module can read them."""
    return tuple(
        t if t is None or (is_wide and module.READS_HALF) else t.to(dtype)
        for t, is_wide in zip(tensors, wide, strict=True)
    )


_WIDE = (True, True, False, True, True, False, False)  # u, delta, A, B, C, D, delta_bias


@torch.library.custom_op(
    "landfuse::selective_scan",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, "
    "bool softplus, bool save, str path) -> (Tensor, Tensor, Tensor)",
)
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    save: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (u, delta, A, B, C, D, delta_bias)
    dtype = working_type(tensors)
    module = implementation(path, u.device, dtype)
    y, last, saved = module.forward(*converted(tensors, _WIDE, module, dtype), softplus, save)
    return laid_out(y, u), last.contiguous(), saved


@_forward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    save: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = u.shape
    dtype, states = working_type((u, delta, A, B, C, D, delta_bias)), A.shape[1]
    tiles = implementation(path, u.device, dtype).saved_tiles(batch, channels, length, states, u.device) if save else 0
    saved = u.new_empty((batch, tiles, channels * states) if save else (0,), dtype=dtype)
    return torch.empty_like(u), u.new_empty((batch, channels, states), dtype=dtype), saved


@torch.library.custom_op(
    "landfuse::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? dlast, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? delta_bias, Tensor saved, bool softplus, str path) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    saved: Tensor,
    softplus: bool,
    path: str,
) -> tuple[Tensor, ...]:
    tensors = (u, delta, A, B, C, D, delta_bias)
    dtype = working_type(tensors)
    module = implementation(path, u.device, dtype)
    worked = converted(tensors, _WIDE, module, dtype)
    # A constant adjoint (of a sum, say) comes with strides of 0, which are slow to read.
    dy = dy.contiguous() if 0 in dy.stride() else dy
    dy = dy if module.READS_HALF else dy.to(dtype)
    dlast = u.new_zeros((*u.shape[:2], A.shape[1]), dtype=dtype) if dlast is None else dlast.to(dtype)
    gradients = module.backward(dy, dlast, *worked, saved, softplus)
    likes = (u, delta, A, B, C, A[:, 0] if D is None else D, A[:, 0] if delta_bias is None else delta_bias)
    return tuple(laid_out(gradient, like) for gradient, like in zip(gradients, likes, strict=True))


@_backward.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    saved: Tensor,
    softplus: bool,
    path: str,
) -> tuple[Tensor, ...]:
    likes = (u, delta, A, B, C, A[:, 0] if D is None else D, A[:, 0] if delta_bias is None else delta_bias)
    return tuple(torch.empty_like(like) for like in likes)


def laid_out(result: Tensor, like: Tensor) -> Tensor:
    """`result` with the type and strides of `torch.empty_like(like)`, as compiled graphs are told it has."""
    out = torch.empty_like(like, memory_format=torch.preserve_format)
    return result if result.dtype == out.dtype and result.stride() == out.stride() else out.copy_(result)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:  # type: ignore[type-arg]
    *tensors, softplus, _, path = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.settings = softplus, path  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy: Tensor | None, dlast: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def]
    *tensors, saved = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    gradients = torch.ops.landfuse.selective_scan_backward(dy, dlast, *tensors, saved, *ctx.settings)
    kept = (None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True))
    return (*kept, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
