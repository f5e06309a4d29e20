"""Networks with fewer kernels give the same numbers up to rounding, and leave the model as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landfuse.kernels.gpu import gpu_kernels
from landfuse.kernels.linear import rounded_once
from landfuse.layers.fewer_kernels import norm_relu, with_fewer_kernels
from landfuse.models.refnet import RefNet


def trained(encoder: str) -> tuple[RefNet, dict[str, torch.Tensor]]:
    """With statistics and weights that a new network does not have, and images."""
    torch.manual_seed(0)
    model = RefNet({"a": 3, "b": 2}, 4, encoder=encoder, width=8, view=64).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.3, 0.8)
            module.bias.data.normal_(0, 0.3)
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model, {"a": torch.randn(2, 3, 64, 64), "b": torch.randn(2, 2, 64, 64)}


@pytest.mark.parametrize(("encoder", "kept"), [("resnet18", 0), ("resnet26d", 2), ("test_efficientnet", 24)])
@torch.inference_mode()
def test_the_logits_are_the_same_up_to_rounding(encoder: str, kept: int) -> None:
    """Also behind a stem of several convolutions, shortcuts of a mean and a convolution, and features by hooks."""
    model, images = trained(encoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quick, truth = with_fewer_kernels(model), model(images)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) == kept
    assert ((quick(images) - truth).abs().max() / truth.std()) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        plain, fewer = (rounded_once(one)(images).float() - truth for one in (model, quick))
    assert fewer.std() < 1.1 * plain.std(), "no further from float32 than bfloat16 is anyway"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {p.data_ptr() for p in quick.parameters()} <= {p.data_ptr() for p in model.parameters()}


def test_norm_skip_and_relu_are_pytorchs() -> None:
    torch.manual_seed(0)
    x, skip = torch.randn(2, 2, 5, 4, 3).unbind()
    norms = [nn.BatchNorm2d(5).eval() for _ in range(2)]
    scales = []
    for norm in norms:
        norm.running_var.uniform_(0.5, 2)
        norm.bias.data.normal_()
        scales.append(norm.weight.detach() / (norm.running_var + norm.eps).sqrt())
    shift = sum(norm.bias.detach() for norm in norms)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = torch.nan, -torch.inf
    found = norm_relu([x, skip], scales, shift)
    torch.testing.assert_close(found, F.relu(norms[0](x) + norms[1](skip)).detach(), equal_nan=True)
    first = norms[0].bias.detach()
    torch.testing.assert_close(
        norm_relu([x, skip], scales[:1], first), F.relu(norms[0](x) + skip).detach(), equal_nan=True
    )
    torch.testing.assert_close(norm_relu([x], scales[:1], first), F.relu(norms[0](x)).detach(), equal_nan=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.inference_mode()
def test_the_logits_on_cuda() -> None:
    model, images = trained("resnet18")
    truth = model(images)
    on_gpu = {name: x.cuda().contiguous(memory_format=torch.channels_last) for name, x in images.items()}
    quick = with_fewer_kernels(model.cuda().to(memory_format=torch.channels_last))
    with gpu_kernels(torch.device("cuda"), tf32=False, same=True):
        assert ((quick(on_gpu).cpu() - truth).abs().max() / truth.std()) < 1e-4
        with torch.autocast("cuda", torch.bfloat16):
            plain, fewer = (rounded_once(one)(on_gpu).float().cpu() - truth for one in (model, quick))
    assert fewer.std() < 1.2 * plain.std()
