"""Linear layers by convolution: the same numbers, the same gradients, and no input kept for a frozen weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.kernels import linear as module
from landfuse.kernels.linear import Linear, linear, linear_each, quicken


@pytest.fixture(params=[True, False])
def by_convolution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways, whatever this processor is."""
    taken = bool(request.param)
    monkeypatch.setattr(module, "_by_convolution", lambda *_: taken)
    return taken


@pytest.mark.parametrize("shape", [(128, 24), (4, 8, 4, 24)])
@pytest.mark.parametrize(("trained", "biased"), [(True, True), (False, True), (False, False), (True, False)])
def test_linear_is_a_matrix_product_with_its_gradients(
    by_convolution: bool, shape: tuple[int, ...], trained: bool, biased: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(10, 24, requires_grad=trained)
    bias = torch.randn(10, requires_grad=trained) if biased else None
    wide = [t.detach().double().requires_grad_() for t in (x, weight, *([bias] if biased else []))]
    truth = wide[0] @ wide[1].T + (wide[2] if biased else 0)
    got = linear(x, weight, bias)
    torch.testing.assert_close(got.double(), truth, atol=1e-5, rtol=1e-5)
    by = torch.randn_like(truth)
    (got * by).sum().backward()
    (truth * by).sum().backward()
    for ours, theirs in zip((x, weight, bias), wide, strict=False):
        if ours is not None and ours.requires_grad:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)


def test_each_modality_has_its_own_matrix(by_convolution: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((3, 128, 6), (3, 6, 5), (3, 1, 5)))
    got = linear_each(x, weight, bias)
    truth = torch.einsum("mti,mio->mto", x, weight) + bias
    torch.testing.assert_close(got, truth, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), (x, weight, bias)),
        torch.autograd.grad(truth.square().sum(), (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_a_frozen_layer_keeps_no_input(by_convolution: bool) -> None:
    layer = Linear.of(nn.Linear(24, 10)).requires_grad_(False)
    x = torch.randn(128, 24, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x * 1)
    assert {t.untyped_storage().data_ptr() for t in kept} <= {p.untyped_storage().data_ptr() for p in [layer.weight]}


@pytest.mark.parametrize("rows", [1, 16, 127, 128, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_number_of_rows_of_any_type(rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(rows, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype), torch.randn(5, dtype=dtype)
    got = linear(x, weight, bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got, F.linear(x, weight, bias))


def test_under_autocast_it_computes_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(128, 8), torch.randn(5, 8)).dtype == torch.bfloat16
        each = linear_each(torch.randn(2, 128, 8), torch.randn(2, 8, 5), torch.randn(2, 1, 5))
        assert each.dtype == torch.bfloat16


def test_quickened_modules_keep_names_and_parameters() -> None:
    plain: Any = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2, bias=False)))
    parameters = dict(plain.named_parameters())
    quicken(plain)
    assert type(plain[0]) is Linear
    assert type(plain[1][1]) is Linear
    assert all(parameter is parameters[name] for name, parameter in plain.named_parameters())
    assert len(list(plain.parameters())) == 3
