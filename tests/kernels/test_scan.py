"""The selective scan: every way of computing it against the plain one in float64; types, compilers, mistakes."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from landfuse.errors import ModelError
from landfuse.kernels import native_library, scan_native, scan_torch
from landfuse.kernels.scan import implementation, scan_plain, selective_scan

Inputs = list[Tensor | None]
native = pytest.param(
    "native", marks=pytest.mark.skipif(not scan_native.available(), reason="the kernel was not built")
)
FAST = (native, "torch")


def inputs(batch: int, channels: int, length: int, states: int, groups: int, seed: int = 0, delta: str = "") -> Inputs:
    """Float64: u, delta (before softplus unless a scale is named), A, B, C, D, delta_bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    deltas = draw(batch, channels, length)
    if delta == "extreme":  # log-uniform from 1e-6 to 1e4, so that large and small meet
        deltas = 10 ** (torch.rand(batch, channels, length, generator=generator, dtype=torch.float64) * 10 - 6)
    elif delta:
        deltas = float(delta) * (0.3 * deltas).exp()
    A = -torch.exp(0.3 * draw(channels, states)) * torch.arange(1, states + 1)
    B, C = draw(batch, groups, states, length), draw(batch, groups, states, length)
    values: list[Tensor] = [draw(batch, channels, length), deltas, A, B, C, draw(channels), draw(channels)]
    return [value.float().double() for value in values]


def run(scan: Callable[..., Tensor], tensors: Inputs, softplus: bool, seed: int = 1) -> dict[str, Tensor]:
    """Results and gradients, by name."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = scan(*leaves, softplus)
    (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum().backward()
    names = ("u", "delta", "A", "B", "C", "D", "bias")
    gradients = {f"d{name}": leaf.grad for name, leaf in zip(names, leaves, strict=True) if leaf is not None}
    return {"y": y.detach(), **gradients}


def by(path: str) -> Callable[..., Tensor]:
    return lambda *a: selective_scan(*a, path=path)


def single(tensors: Inputs) -> Inputs:
    return [None if t is None else t.float() for t in tensors]


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], relative: float = 1e-5) -> None:
    for name, expected in truth.items():
        scale = expected.abs().max().clamp(min=1e-30)
        error = ((found[name].double() - expected).abs().max() / scale).item()
        assert error < relative, f"{name}: {error:.1e}"


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize(
    ("batch", "channels", "length", "states", "groups"),
    [
        (1, 1, 1, 1, 1),
        (2, 64, 50, 1, 1),
        (3, 36, 121, 16, 2),
        (1, 15, 1000, 3, 3),
        (2, 128, 17, 64, 2),
        (2, 1024, 33, 1, 4),
        (5, 7, 300, 2, 7),
    ],
)
def test_results_and_gradients_are_those_of_the_plain_scan(
    path: str, batch: int, channels: int, length: int, states: int, groups: int
) -> None:
    tensors = inputs(batch, channels, length, states, groups)
    truth = run(scan_plain, tensors, softplus=True)
    if length == 1:
        truth.pop("dA")  # nothing decays, so the gradient is zero
    assert_close(run(by(path), single(tensors), softplus=True), truth)


@settings(max_examples=25, deadline=None)
@given(
    path=st.sampled_from(["native", "torch"] if scan_native.available() else ["torch"]),
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 70),
    length=st.integers(2, 70),
    states=st.integers(1, 9),
    softplus=st.booleans(),
    has_D=st.booleans(),
    has_bias=st.booleans(),
)
def test_any_shape_agrees(
    path: str,
    batch: int,
    groups: int,
    width: int,
    length: int,
    states: int,
    softplus: bool,
    has_D: bool,
    has_bias: bool,
) -> None:
    tensors = inputs(batch, groups * width, length, states, groups, delta="" if softplus else "0.1")
    tensors[5], tensors[6] = tensors[5] if has_D else None, tensors[6] if has_bias and softplus else None
    assert_close(run(by(path), single(tensors), softplus), run(scan_plain, tensors, softplus))


@functools.cache
def long(delta: str) -> tuple[Inputs, dict[str, Tensor]]:
    """65,536 steps, and the truth: the PyTorch scan in float64, which agrees with the plain one (see below)."""
    tensors = inputs(1, 3, 65_536, 2, 1, delta="" if delta == "constant" else delta)
    if delta == "constant":
        tensors[1] = torch.full_like(tensors[1], 1e-5).float().double()  # every step has the same rounding error
    tensors[5] = tensors[6] = None  # D u would hide errors of the state
    truth = run(by("torch"), tensors, softplus=False)
    if delta == "1e4":
        truth.pop("dA")  # underflows to zero
    return tensors, truth


@pytest.mark.parametrize("delta", ["1e-6", "constant", "1e4", "extreme"])
@pytest.mark.parametrize("path", FAST)
def test_extreme_deltas_over_long_sequences(path: str, delta: str) -> None:
    tensors, truth = long(delta)
    assert_close(run(by(path), single(tensors), softplus=False), truth)


def test_the_float64_scan_agrees_with_the_plain_one() -> None:
    for delta in ("1e-6", "extreme"):
        tensors = inputs(1, 2, 3000, 2, 1, delta=delta)
        assert_close(run(by("torch"), tensors, False), run(scan_plain, tensors, False), relative=1e-11)


def test_gradcheck() -> None:
    tensors = [t.requires_grad_() for t in inputs(2, 6, 11, 2, 3) if t is not None]
    assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, True, path="torch"), tensors)


@pytest.mark.parametrize("path", FAST)
def test_strides_do_not_matter(path: str) -> None:
    tensors = single(inputs(2, 64, 61, 4, 2))
    truth = run(by(path), tensors, True)
    u, delta, A, B, C, D, bias = tensors
    strided: Inputs = [
        u.transpose(1, 2).contiguous().transpose(1, 2),  # channels last
        torch.stack([delta, delta], -1)[..., 0],
        A.t().contiguous().t(),
        B.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.cat([C, C], 2)[:, :, :4],
        torch.stack([D, D], 1)[:, 0],
        torch.stack([bias, bias], 1)[:, 1],
    ]
    leaves = [t.detach().requires_grad_() for t in strided]
    y = selective_scan(*leaves, True, path=path)
    torch.testing.assert_close(y, truth["y"], rtol=1e-5, atol=1e-5)
    y.sum().backward()  # its adjoint has strides of 0
    again = [t.detach().clone().contiguous().requires_grad_() for t in tensors]
    selective_scan(*again, True, path=path).sum().backward()
    for leaf, other in zip(leaves, again, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", [*FAST, "plain"])
def test_nan_stays_where_it_is_and_after_it(path: str) -> None:
    for where in range(2):  # u, delta
        tensors = single(inputs(2, 20, 90, 3, 2))
        clean = selective_scan(*tensors, True, path=path)
        tensors[where][1, 7, 41] = torch.nan
        y = selective_scan(*tensors, True, path=path)
        assert y[1, 7, 41:].isnan().all()
        y[1, 7, 41:] = clean[1, 7, 41:]
        assert torch.equal(y, clean)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(path: str, dtype: torch.dtype) -> None:
    tensors = inputs(2, 16, 200, 4, 2, delta="0.05")
    half = [t.to(dtype) if i in (0, 1, 3, 4) else t.float() for i, t in enumerate(tensors[:6])]
    y = selective_scan(*half, path=path)
    truth = scan_plain(*(t.double() for t in half))
    assert y.dtype == dtype
    assert ((y.double() - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + 1e-3).all()  # one rounding, at the end


def test_autocast_gives_gradients_in_the_parameters_type() -> None:
    projection = torch.nn.Linear(8, 8)
    tensors = single(inputs(1, 8, 20, 2, 1))
    A = tensors[2].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        u = projection(tensors[0].transpose(1, 2)).transpose(1, 2)
        assert u.dtype == torch.bfloat16
        y = selective_scan(u, tensors[1], A, *tensors[3:], True)
    y.float().sum().backward()
    assert projection.weight.grad is not None
    assert A.grad is not None
    assert A.grad.dtype == torch.float32


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.A = torch.nn.Parameter(-torch.rand(6, 2) - 0.5)
        self.B, self.C = (torch.nn.Parameter(torch.randn(1, 3, 2, 9)) for _ in range(2))

    def forward(self, u: Tensor) -> Tensor:
        B, C = (t.expand(u.shape[0], -1, -1, -1) for t in (self.B, self.C))
        return selective_scan(u * 2, u.abs(), self.A, B, C, delta_softplus=True).tanh()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(backend: str) -> None:
    layer, u = Layer(), torch.randn(2, 6, 9, requires_grad=True)
    expected = layer(u)
    (wanted,) = torch.autograd.grad(expected.sum(), u)
    torch._dynamo.reset()
    y = torch.compile(layer, fullgraph=True, backend=backend)(u)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), u)[0], wanted)


def test_exports() -> None:
    layer, u = Layer().eval(), torch.randn(2, 6, 9)
    with torch.no_grad():
        program = torch.export.export(layer, (u,))
    torch.testing.assert_close(program.module()(u), layer(u))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    layer = Layer()
    u = torch.randn(2, 6, 9, requires_grad=True)
    layer(u).sum().backward()
    expected, u.grad = (u.grad, layer.A.grad), None
    layer.zero_grad()
    checkpoint(layer, u, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close((u.grad, layer.A.grad), expected)


@pytest.mark.parametrize("path", FAST)
def test_the_operator_keeps_torchs_contract(path: str) -> None:
    u, delta, A, B, C, D, bias = (t.requires_grad_() for t in single(inputs(2, 6, 20, 2, 3)))
    torch.library.opcheck(
        torch.ops.landfuse.selective_scan.default, (u, delta, A, B, C, D, bias, True, True, path), rtol=1e-4, atol=1e-4
    )
    torch.library.opcheck(
        torch.ops.landfuse.selective_scan.default,
        (u, delta, A, B, C, None, None, True, True, path),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.skipif(not scan_native.available(), reason="the kernel was not built")
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    tensors, before = single(inputs(2, 256, 300, 1, 2)), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(selective_scan(*tensors, True, path="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.skipif(not scan_native.available(), reason="the kernel was not built")
def test_every_instruction_set_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, make = inputs(2, 74, 70, 3, 2), scan_native._sequence
    truth = run(scan_plain, tensors, True)
    for isa in (0, 1, 2):  # baseline, AVX2, AVX-512; one that this machine lacks falls back to its best

        def chosen(*arguments: object, isa: int = isa) -> object:
            made, prepared = make(*arguments)
            made.isa = isa
            return made, prepared

        monkeypatch.setattr(scan_native, "_sequence", chosen)
        assert_close(run(by("native"), single(tensors), True), truth)


def test_float32_on_a_cpu_takes_the_kernel_and_float64_does_not() -> None:
    cpu = torch.device("cpu")
    expected = scan_native if scan_native.available() else scan_torch
    assert implementation("", cpu, torch.float32) is expected
    assert implementation("native", cpu, torch.float64) is scan_torch
    assert implementation("torch", cpu, torch.float32) is scan_torch


def test_a_missing_kernel_is_said_once_and_the_pytorch_scan_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    monkeypatch.setattr(native_library, "__file__", str(tmp_path / "native_library.py"))
    caches = scan_native._library, native_library.library, native_library._warn
    for cache in caches:
        cache.cache_clear()
    tensors = single(inputs(1, 4, 12, 1, 1))
    with caplog.at_level(logging.WARNING):
        y = selective_scan(*tensors, True)
        selective_scan(*tensors, True)
    for cache in caches:
        cache.cache_clear()
    assert [record.message for record in caplog.records if "was not built" in record.message].__len__() == 1
    torch.testing.assert_close(y, scan_plain(*tensors, True), rtol=1e-4, atol=1e-5)


def test_the_environment_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [t.requires_grad_() for t in single(inputs(1, 4, 12, 1, 1)) if t is not None]
    assert "landfuse" in type(selective_scan(*tensors).grad_fn).__name__
    monkeypatch.setattr("landfuse.kernels.scan.REQUESTED", "plain")
    assert "landfuse" not in type(selective_scan(*tensors).grad_fn).__name__
    monkeypatch.setattr("landfuse.kernels.scan.REQUESTED", "fastest")
    with pytest.raises(ModelError, match="LANDFUSE_SCAN"):
        selective_scan(*tensors)


def test_an_empty_batch_is_fine() -> None:
    tensors = single(inputs(2, 4, 12, 1, 1))
    empty = [t[:0] if i in (0, 1, 3, 4) else t for i, t in enumerate(tensors) if t is not None]
    for path in ("native", "torch"):
        assert selective_scan(*empty, True, path=path).shape == (0, 4, 12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(delta=t["delta"][..., 1:]), ["`delta`", "(2, 6, 8)", "(2, 6, 9)"]),
        (lambda t: t.update(A=t["A"][1:]), ["`A`", "(5, 2)", "(6, 2)"]),
        (lambda t: t.update(B=t["B"][:, :, :1]), ["`B`", "(2, 3, 1, 9)", "(2, 3, 2, 9)"]),
        (lambda t: t.update(C=t["C"][:, :2]), ["`C`", "(2, 2, 2, 9)", "(2, 3, 2, 9)"]),
        (lambda t: t.update(B=torch.rand(2, 4, 2, 9)), ["`B`", "4 groups", "(2, 4, 2, 9)", "(2, 6, 9)"]),
        (lambda t: t.update(B=t["B"][0]), ["`B`", "(3, 2, 9)", "(B, G, N, L)"]),
        (lambda t: t.update(D=t["D"][:3]), ["`D`", "(3,)", "(6,)"]),
        (lambda t: t.update(delta_bias=t["delta_bias"][None]), ["`delta_bias`", "(1, 6)", "(6,)"]),
        (lambda t: t.update(u=t["u"].long()), ["`u`", "torch.int64", "floating"]),
        (lambda t: t.update(u=t["u"].to(torch.complex64)), ["`u`", "complex64"]),
        (lambda t: t.update(C=t["C"].to("meta")), ["`C`", "meta", "cpu"]),
        (lambda t: t.update(path="fastest"), ["`fastest`", "native, torch, triton, plain", "LANDFUSE_SCAN"]),
        (
            lambda t: t.update(u=t["u"][..., :0], delta=t["delta"][..., :0], B=t["B"][..., :0], C=t["C"][..., :0]),
            ["empty", "(2, 6, 0)"],
        ),
    ],
)
def test_mistakes_name_the_argument_and_both_shapes(change: Callable[[dict], None], words: list[str]) -> None:
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    arguments: dict = dict(zip(names, single(inputs(2, 6, 9, 2, 3)), strict=True))
    change(arguments)
    with pytest.raises(ModelError) as caught:
        selective_scan(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value


TRITON = """
import torch
from landfuse.kernels.scan import scan_plain, selective_scan
from landfuse.kernels import scan_triton
from landfuse.kernels.scan_image import image_scan, image_scan_plain
g = torch.Generator().manual_seed(0)
draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)

def compare(fast, plain, tensors, half=()):
    leaves = [[t.clone().requires_grad_() for t in ts] for ts in
              ([t.bfloat16() if i in half else t.float() for i, t in enumerate(tensors)],
               [t.bfloat16().double() if i in half else t for i, t in enumerate(tensors)])]
    outs = [f(*ts) for f, ts in zip((fast, plain), leaves)]
    weight = draw(*outs[1].shape)
    for out in outs:
        (out * weight.to(out.dtype)).sum().backward()
    pairs = [(outs[0], outs[1])] + [(a.grad, b.grad) for a, b in zip(*leaves)]
    for i, (a, b) in enumerate(pairs):
        error = ((a.double() - b).abs().max() / b.abs().max()).item()
        assert error < (2e-2 if half else 1e-5), (i, error)

def sequence(b, channels, length, n, groups):
    return [draw(b, channels, length), draw(b, channels, length), -draw(channels, n).exp(), draw(b, groups, n, length),
            draw(b, groups, n, length), draw(channels), draw(channels)]

def image(b, height, width, channels, rank, n):
    return [draw(b, height, width, channels), draw(b, height, width, 4 * (rank + 2 * n)), -draw(4 * channels, n).exp(),
            draw(4 * channels, rank), draw(4 * channels), draw(4 * channels)]

scan_triton.try_out(torch.device("cpu"))
right = scan_triton._Inputs.carried
scan_triton._Inputs.carried = lambda self, *words: right(self, *words).zero_()
try:
    scan_triton.try_out(torch.device("cpu"))
except RuntimeError as error:
    assert str(error) == "its results are not those of PyTorch"
else:
    raise AssertionError("a scan that carries no state was taken for right")
scan_triton._Inputs.carried = right

torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
fast, plain = lambda *a: selective_scan(*a, True, path="triton"), lambda *a: scan_plain(*a, True)
by_image = lambda *a: image_scan(*a, path="triton")
scan_triton._TIME = 8
strided = sequence(1, 4, 11, 1, 2)
strided[:4] = [t.transpose(1, -1).contiguous().transpose(1, -1) for t in strided[:4]]
compare(fast, plain, strided)
compare(fast, plain, sequence(2, 33, 3, 2, 1))
compare(fast, plain, sequence(1, 2, 9, 16, 1), half=(0, 1, 3, 4))
mixed = sequence(1, 2, 20, 1, 1)[:5]
mixed[1] = 10 ** (torch.rand(1, 2, 20, generator=g, dtype=torch.float64) * 10 - 6)
compare(lambda *a: selective_scan(*a, path="triton"), scan_plain, mixed)
compare(by_image, image_scan_plain, image(1, 3, 3, 2, 3, 2))
compare(by_image, image_scan_plain, image(2, 1, 3, 1, 1, 1), half=(0, 1))
sizes = lambda inputs: (inputs.time, inputs.carried_shape()[2])
tiles = lambda *shape: sizes(scan_triton._sequence(scan_triton.ScanInputs(*sequence(*shape), True)).without_backward())
assert [tiles(1, 1, length, 1, 1) for length in (128, 129)] == [(128, 1), (8, 17)]
scan_triton._FEW = 2
assert tiles(1, 1, 129, 1, 1) == (128, 2)
scan_triton._LONG = 12  # 14 steps are two tiles of other lengths
for function, truth, tensors in (
    (fast, plain, sequence(1, 3, 14, 2, 1)), (by_image, image_scan_plain, image(1, 7, 2, 2, 1, 1))
):
    with torch.no_grad():
        found, wanted = function(*[t.float() for t in tensors]), truth(*tensors)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()

from landfuse.layers import norm_relu_triton
from landfuse.layers.fewer_kernels import norm_relu
norm_relu_triton._MANY = 64  # two programs, the last one not full
x, skip = draw(2, 2, 5, 3, 4).float().unbind()
x[0, 1, 2, 3], scales, shift = torch.nan, list(draw(2, 5).float().unbind()), draw(5).float()
wide = [v[:, None, None] for v in (*scales, shift)]
for order in (torch.channels_last, torch.contiguous_format):
    for count in (1, 2):
        first = x.bfloat16().contiguous(memory_format=order)
        found = norm_relu([first, skip], scales[:count], shift)
        truth = (first.float() * wide[0] + skip * (wide[1] if count == 2 else 1) + wide[2]).relu()
        torch.testing.assert_close(found, truth.bfloat16(), equal_nan=True)
        assert found.stride() == first.stride()
    truth = (first.float() * wide[0] + wide[2]).relu().bfloat16()
    torch.testing.assert_close(norm_relu([first], scales[:1], shift), truth, equal_nan=True)
"""


def test_triton_kernels_in_the_interpreter() -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton before 3.7 makes numbers of arrays, which NumPy 2.4 refuses")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", TRITON], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels run")
def test_triton_kernels_compile_for_an_h100_without_spilling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.backends.compiler import GPUTarget

    from landfuse.kernels import scan_triton
    from landfuse.kernels.scan_image import ImageInputs
    from landfuse.layers import norm_relu_triton

    class Pretended:
        """Compiled for, but never run on."""

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    made: dict[str, bytes] = {}
    run = triton.runtime.jit.JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        made[f"{kernel.name} {options}"] = kernel.asm["cubin"]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compiled)
    monkeypatch.setattr(triton.runtime.driver, "_active", Pretended())
    u = torch.zeros(2, 64, 200, dtype=torch.bfloat16)
    B = torch.zeros(2, 1, 16, 200, dtype=torch.bfloat16)
    sequence = scan_triton.ScanInputs(u, u, torch.zeros(64, 16), B, B, delta_softplus=True)
    y, saved = scan_triton.forward(sequence, True)
    scan_triton.backward(y, sequence, saved)
    x, factors = torch.zeros(2, 9, 9, 64), torch.zeros(2, 9, 9, 4 * 6)
    columns = torch.zeros(256)
    image = ImageInputs(x, factors, torch.zeros(256, 1), torch.zeros(256, 4), columns, columns)
    y, saved = scan_triton.image_forward(image, True)
    scan_triton.image_backward(y, image, saved)
    norm_relu_triton.norm_relu([x.bfloat16(), x], [columns[:9], columns[:9]], columns[:9])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for name, code in made.items():
        (tmp_path / "code").write_bytes(code)
        said = subprocess.run(
            [tool, "-res-usage", tmp_path / "code"], capture_output=True, text=True, check=True
        ).stdout
        assert "STACK:0 " in said, (name, said)
    assert {name.split()[0] for name in made} == {"walk", "carry", "gradients", "_norm_relu"}
    assert len(made) == 15, sorted(made)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("path", ["triton", "torch"])
def test_results_and_gradients_on_cuda(path: str) -> None:
    tensors = inputs(2, 96, 1000, 4, 2)
    truth = run(scan_plain, tensors, softplus=True)
    moved: Inputs = [None if t is None else t.float().cuda() for t in tensors]
    leaves = [t.requires_grad_() for t in moved if t is not None]
    y = selective_scan(*leaves, True, path=path)
    generator = torch.Generator().manual_seed(1)
    (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).float().cuda()).sum().backward()
    found = {"y": y.detach()}
    found |= {f"d{n}": t.grad for n, t in zip(("u", "delta", "A", "B", "C", "D", "bias"), leaves, strict=True)}
    assert_close({name: t.cpu() for name, t in found.items()}, truth)
