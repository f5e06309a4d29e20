"""The selective scan on CPUs by the compiled kernel in `native/`, called through ctypes.

The kernel is optional: where it was not built, `available()` is false and the PyTorch path serves instead. All tensors
here are float32 on the CPU; any strides of u and delta are read in place.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_int, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from landfuse.kernels.native_library import library
from landfuse.kernels.scan_inputs import ImageInputs, ScanInputs

READS_HALF = False
"""Whether u, delta, B, C, x, factors and dy may come in half precision; if not, they are converted before."""
TIME_TILE = 16  # as in native/scan_arguments.h
# Below this many state updates a second thread takes longer to start than it saves.
_WORK_PER_THREAD = 60_000


class _Strided(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("time", c_int64), ("channel", c_int64)]


class _Direction(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("start", "inner", "inner_step", "outer_step")]


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "length", "channels", "groups", "states", "rank")),
        *((name, c_int32) for name in ("image", "softplus", "threads", "isa")),
        ("directions", POINTER(_Direction)),
        *((name, c_void_p) for name in ("A", "skip", "bias", "rank_weight")),
        *((name, _Strided) for name in ("u", "delta", "low_rank", "B", "C", "y")),
        ("checkpoints", c_void_p),
        *((name, _Strided) for name in ("dy", "du", "ddelta", "dlow_rank", "dB", "dC")),
        *((name, c_int64) for name in ("dlow_rank_part", "dB_part", "dC_part")),
        *((name, c_void_p) for name in ("dA", "dskip", "dbias", "drank_weight")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = library("landfuse_scan_arguments_size", _Arguments)
    if found is not None:
        found.landfuse_scan_block.restype = c_int64
        found.landfuse_scan_block.argtypes = [POINTER(_Arguments)]
        found.landfuse_scan_run.argtypes = [POINTER(_Arguments), c_int]
    return found


def available() -> bool:
    """Whether the kernel was built and can be loaded; says so once in the log if not."""
    return _library() is not None


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape of what `forward` saves."""
    batch, channels, length = inputs.u.shape
    return batch, -(-length // TIME_TILE), channels * inputs.A.shape[1]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _channel_first(tensor: Tensor) -> _Strided:
    """(B, channels, L)."""
    return _Strided(tensor.data_ptr(), tensor.stride(0), tensor.stride(2), tensor.stride(1))


def _states_last(tensor: Tensor, offset: int = 0) -> _Strided:
    """(.., B, L, G, values), values contiguous; `offset` skips the first values."""
    batch, time, group, _ = tensor.stride()[-4:]
    return _Strided(tensor.data_ptr() + offset * tensor.element_size(), batch, time, group)


def _threads(updates: int) -> int:
    return max(1, min(torch.get_num_threads(), updates // _WORK_PER_THREAD))


def _run(arguments: _Arguments, backward: bool) -> None:
    native = _library()
    if native is None or native.landfuse_scan_run(arguments, int(backward)):
        raise MemoryError("the scan found no memory for its scratch")


def _parts(arguments: _Arguments) -> int:
    """Blocks of channels in a group; each leaves its own sums over channels."""
    native = _library()
    block = native.landfuse_scan_block(arguments) if native else 1
    return -(-(arguments.channels // arguments.groups) // block)


def _sequence(inputs: ScanInputs) -> tuple[_Arguments, ScanInputs]:
    """What forward and backward have in common, and the inputs with B and C as (B, L, G, N); all but u and delta are
    contiguous, and must live as long as the arguments that point to them."""
    B, C = (t.permute(0, 3, 1, 2).contiguous() for t in (inputs.B, inputs.C))
    D, bias = (None if t is None else t.contiguous() for t in (inputs.D, inputs.delta_bias))
    inputs = inputs._replace(A=inputs.A.contiguous(), B=B, C=C, D=D, delta_bias=bias)
    (batch, channels, length), states, groups = inputs.u.shape, inputs.A.shape[1], B.shape[2]
    arguments = _Arguments(batch, length, channels, groups, states, 0)
    arguments.softplus, arguments.isa = inputs.delta_softplus, -1
    arguments.threads = _threads(inputs.u.numel() * states)
    arguments.directions = (_Direction * groups)(*[_Direction(0, length, 1, 0)] * groups)
    arguments.A, arguments.skip, arguments.bias = inputs.A.data_ptr(), _pointer(D), _pointer(bias)
    arguments.u, arguments.delta = _channel_first(inputs.u), _channel_first(inputs.delta)
    arguments.B, arguments.C = _states_last(B), _states_last(C)
    return arguments, inputs


def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor]:
    """As `scan_torch.forward`; saves (B, tiles, N*G*D)."""
    arguments, inputs = _sequence(inputs)
    y = torch.empty_like(inputs.u)
    saved = y.new_empty(saved_shape(inputs) if save else (0,))
    arguments.y, arguments.checkpoints = _channel_first(y), saved.data_ptr() if save else None
    _run(arguments, backward=False)
    return y, saved


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """As `scan_torch.backward`."""
    arguments, inputs = _sequence(inputs)
    u, A, B = inputs.u, inputs.A, inputs.B
    batch, channels, _ = u.shape
    saved = saved.contiguous()
    du, ddelta = torch.empty_like(u), torch.empty_like(inputs.delta)
    parts = _parts(arguments)
    dB, dC = (u.new_empty(parts, *B.shape) for _ in range(2))
    dA, dskip, dbias = u.new_empty(batch, *A.shape), u.new_empty(batch, channels), u.new_empty(batch, channels)
    arguments.dy, arguments.du, arguments.ddelta = _channel_first(dy), _channel_first(du), _channel_first(ddelta)
    arguments.dB, arguments.dC = _states_last(dB), _states_last(dC)
    arguments.dB_part = arguments.dC_part = B.numel()
    arguments.checkpoints = saved.data_ptr()
    arguments.dA, arguments.dskip, arguments.dbias = dA.data_ptr(), dskip.data_ptr(), dbias.data_ptr()
    _run(arguments, backward=True)
    dB, dC = dB.sum(0).permute(0, 2, 3, 1), dC.sum(0).permute(0, 2, 3, 1)
    return du, ddelta, dA.sum(0), dB, dC, dskip.sum(0), dbias.sum(0)


def _image(inputs: ImageInputs) -> tuple[_Arguments, ImageInputs, Tensor]:
    """What forward and backward have in common, the inputs contiguous, and `factors` as (B, L, 4, R + 2N)."""
    inputs = ImageInputs(*(t.contiguous() for t in inputs))
    x, factors, A, rank_weight, bias, skip = inputs
    batch, height, width, channels = x.shape
    length, states, rank = height * width, A.shape[1], rank_weight.shape[1]
    factors = factors.view(batch, length, 4, rank + 2 * states)
    arguments = _Arguments(batch, length, 4 * channels, 4, states, rank)
    arguments.image, arguments.softplus, arguments.isa = 1, 1, -1
    arguments.threads = _threads(x.numel() * 4 * states)
    arguments.directions = (_Direction * 4)(
        _Direction(0, length, 1, 0),  # along rows
        _Direction(0, height, width, 1),  # along columns
        _Direction(length - 1, length, -1, 0),  # and both backwards
        _Direction(length - 1, height, -width, -1),
    )
    arguments.A, arguments.skip, arguments.bias = A.data_ptr(), skip.data_ptr(), bias.data_ptr()
    arguments.rank_weight = rank_weight.data_ptr()
    arguments.u = _channels_last(x)
    arguments.low_rank, arguments.B, arguments.C = (_states_last(factors, at) for at in (0, rank, rank + states))
    return arguments, inputs, factors


def image_saved_shape(inputs: ImageInputs) -> tuple[int, ...]:
    """The shape of what `image_forward` saves."""
    batch, height, width, channels = inputs.x.shape
    return batch, -(-(height * width) // TIME_TILE), 4 * channels * inputs.A.shape[1]


def _channels_last(image: Tensor) -> _Strided:
    """(B, H, W, D) contiguous."""
    _, height, width, channels = image.shape
    return _Strided(image.data_ptr(), height * width * channels, channels, 1)


def image_forward(inputs: ImageInputs, save: bool) -> tuple[Tensor, Tensor]:
    """As `scan_torch.image_forward`; saves (B, tiles, N*4*D)."""
    arguments, inputs, _ = _image(inputs)
    y = torch.empty_like(inputs.x)
    saved = y.new_empty(image_saved_shape(inputs) if save else (0,))
    arguments.y, arguments.checkpoints = _channels_last(y), saved.data_ptr() if save else None
    _run(arguments, backward=False)
    return y, saved


def image_backward(dy: Tensor, inputs: ImageInputs, saved: Tensor) -> tuple[Tensor, ...]:
    """As `scan_torch.image_backward`."""
    arguments, inputs, by_direction = _image(inputs)
    x, factors, A, rank_weight, _, _ = inputs
    dy, saved = dy.contiguous(), saved.contiguous()
    batch, channels, states, rank = x.shape[0], A.shape[0], A.shape[1], rank_weight.shape[1]
    dx = torch.empty_like(x)
    dfactors = x.new_empty(_parts(arguments), *by_direction.shape)
    dA, dweight = x.new_empty(batch, channels, states), x.new_empty(batch, channels, rank)
    dskip, dbias = x.new_empty(batch, channels), x.new_empty(batch, channels)
    arguments.dy, arguments.du = _channels_last(dy), _channels_last(dx)
    arguments.dlow_rank, arguments.dB, arguments.dC = (_states_last(dfactors, at) for at in (0, rank, rank + states))
    arguments.dlow_rank_part = arguments.dB_part = arguments.dC_part = factors.numel()
    arguments.checkpoints = saved.data_ptr()
    arguments.dA, arguments.drank_weight = dA.data_ptr(), dweight.data_ptr()
    arguments.dskip, arguments.dbias = dskip.data_ptr(), dbias.data_ptr()
    _run(arguments, backward=True)
    return dx, dfactors.sum(0).view_as(factors), dA.sum(0), dweight.sum(0), dbias.sum(0), dskip.sum(0)
