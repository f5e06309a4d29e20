"""The selective scan: one operator, several ways to compute it.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t,    h_0 = 0 before the first step.

`scan_plain` is the definition. `selective_scan` returns the same numbers by the fastest way available: `native`, the
compiled kernel, for float32 on a CPU; `triton` for CUDA; `torch` everywhere else. The environment variable
LANDFUSE_SCAN names one of them, or `plain`; where the named one cannot take the tensors at hand, `torch` is used.

Half precision: u, delta, B and C may be float16 or bfloat16; sums are carried in float32 and y comes in the type of u.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, eq. 2 and
algorithm 2, with the input discretised as delta B u, as their implementation does.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from landfuse.errors import ModelError
from landfuse.kernels import scan_native, scan_torch
from landfuse.kernels.gpu import LEAST
from landfuse.kernels.scan_inputs import WIDE, ImageInputs, ScanInputs

PATHS = ("native", "torch", "triton", "plain")
REQUESTED = os.environ.get("LANDFUSE_SCAN", "")
"""The path that LANDFUSE_SCAN named when this module was imported, or empty."""

log = logging.getLogger("landfuse")

Inputs = ScanInputs | ImageInputs


def scan_plain(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The scan as it is defined, step by step, in the type of its inputs (see `ScanInputs`); y (B, G*D, L)."""
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
    return y if D is None else y + u * D[:, None]


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
) -> Tensor:
    """The scan, by the fastest way available, with gradients to all tensors: y (B, G*D, L) in the type of u.

    Arguments are those of `ScanInputs`, and `path`: one of `PATHS`; by default that in LANDFUSE_SCAN, or the fastest.

    Raises:
        ModelError: if shapes, types or devices do not match, or the sequence is empty.
    """
    path = path or REQUESTED
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, delta_softplus)
    given = {name: tensor for name, tensor in inputs._asdict().items() if isinstance(tensor, Tensor)}
    check_tensors(given, path)
    _check_shapes(given)
    if path == "plain":
        return scan_plain(*inputs)
    y: Tensor = torch.ops.landfuse.selective_scan(*inputs, needs_gradient(given), path)[0]
    return y


def needs_gradient(tensors: dict[str, Tensor]) -> bool:
    """Whether a backward pass may follow, for which the forward one saves states."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values())


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
                f"`{name}` is on {tensor.device}, `{reference}` on {first.device}",
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
def _triton_works() -> bool:
    """Whether Triton works on this GPU; where it does not, one warning says why."""
    if torch.cuda.get_device_capability() < LEAST:
        return False  # the warning is `gpu_works`'s
    try:
        from landfuse.kernels import scan_triton

        scan_triton.try_out(torch.device("cuda"))
    except Exception as error:
        log.warning(
            "Triton is missing or does not work here, so scans are computed by PyTorch, many times slower: %s",
            (str(error).strip() or type(error).__name__).splitlines()[0],
        )
        return False
    return True


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run there; TRITON_INTERPRET runs them on a CPU, to check them."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
    return interpreted or (device.type == "cuda" and _triton_works())


def implementation(path: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that computes the scan for this device and working type."""
    if dtype == torch.float32:
        if device.type == "cpu" and path in ("", "native") and scan_native.available():
            return scan_native
        if path in ("", "triton") and runs_triton(device):
            from landfuse.kernels import scan_triton

            return scan_triton
    return scan_torch


def _prepared(inputs: Inputs, path: str) -> tuple[ModuleType, torch.dtype, Inputs]:
    """The module that computes them, the type in which sums are carried, and the inputs as the module reads them."""
    tensors = {name: tensor for name, tensor in inputs._asdict().items() if isinstance(tensor, Tensor)}
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
    module = implementation(path, inputs[0].device, dtype)
    converted: Any = {n: t if module.READS_HALF and n in WIDE else t.to(dtype) for n, t in tensors.items()}
    return module, dtype, inputs._replace(**converted)


def _laid_out(result: Tensor, like: Tensor) -> Tensor:
    """`result` with the type and strides of `torch.empty_like(like)`, which compiled graphs expect; results of an
    operator may not share memory."""
    out = torch.empty_like(like, memory_format=torch.preserve_format)
    whole = result.untyped_storage().nbytes() == result.nbytes
    fits = whole and result.dtype == out.dtype and result.stride() == out.stride()
    return result if fits else scan_torch.copied(out, result)


def register_operator(kind: type[Inputs], name: str, tensors: str, flags: str, prefix: str) -> None:
    """Makes a scan an operator of torch (`torch.ops.landfuse`), with gradients, for compilers and export too.

    Args:
        kind: the record of its inputs: tensors, then flags.
        name: of the operator.
        tensors: the record's tensors as an operator's schema has them.
        flags: the flags likewise, each with a comma behind it.
        prefix: of the functions in the modules that compute it: `forward`, `backward` and `saved_shape`.
    """
    count = tensors.count(",") + 1

    def likes(inputs: Inputs) -> list[Tensor]:
        """What each gradient looks like; an absent vector's as A's rows."""
        return [inputs.A[:, 0] if t is None else t for t in inputs[:count]]  # type: ignore[misc]

    schema = f"({tensors}, {flags} bool save, str path) -> (Tensor, Tensor)"

    @torch.library.custom_op(f"landfuse::{name}", mutates_args=(), schema=schema)
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *values, save, path = arguments
        module, _, inputs = _prepared(kind(*values), path)
        y, saved = getattr(module, f"{prefix}forward")(inputs, save)
        return _laid_out(y, values[0]), saved

    @forward.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor]:
        *values, save, path = arguments
        module, dtype, inputs = _prepared(kind(*values), path)
        shape = getattr(module, f"{prefix}saved_shape")(inputs) if save else (0,)
        return torch.empty_like(values[0]), values[0].new_empty(shape, dtype=dtype)

    schema = f"(Tensor dy, {tensors}, {flags} Tensor saved, str path) -> ({', '.join(['Tensor'] * count)})"

    @torch.library.custom_op(f"landfuse::{name}_backward", mutates_args=(), schema=schema)
    def backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *values, saved, path = arguments
        module, dtype, inputs = _prepared(kind(*values), path)
        # A constant adjoint (of a sum, say) comes with strides of 0, which are slow to read.
        dy = dy.contiguous() if 0 in dy.stride() else dy
        gradients = getattr(module, f"{prefix}backward")(dy if module.READS_HALF else dy.to(dtype), inputs, saved)
        return tuple(_laid_out(g, like) for g, like in zip(gradients, likes(kind(*values)), strict=True))

    @backward.register_fake
    def _(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(like) for like in likes(kind(*arguments[:-2])))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:count], output[1])
        ctx.flags, ctx.path = inputs[count:-2], inputs[-1]
        ctx.set_materialize_grads(False)

    run_backward: Callable[..., tuple[Tensor, ...]] = getattr(torch.ops.landfuse, f"{name}_backward")

    def differentiate(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        *values, saved = ctx.saved_tensors
        rest: tuple[None, ...] = (None,) * (len(ctx.flags) + 2)
        if dy is None:
            return (None,) * count + rest
        gradients = run_backward(dy, *values, *ctx.flags, saved, ctx.path)
        kept = [None if tensor is None else g for tensor, g in zip(values, gradients, strict=True)]
        return (*kept, *rest)

    forward.register_autograd(differentiate, setup_context=setup_context)


register_operator(
    ScanInputs,
    "selective_scan",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias",
    "bool delta_softplus,",
    "",
)
