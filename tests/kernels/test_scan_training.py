"""The scans where training puts them: in two processes, checkpointed, exported, under autocast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from landfuse.errors import ModelError
from landfuse.kernels import scan_native
from landfuse.kernels.scan import selective_scan
from landfuse.kernels.scan_image import image_scan
from landfuse.layers.state_space import VSSBlock

# Both operators: a VSS block over an image, then a scan over its pixels.
PROCESS = """
import os
import sys
import torch
from torch import nn
import landfuse.kernels.scan as selective_scan_module
from landfuse.kernels.scan import selective_scan
from landfuse.layers.state_space import VSSBlock

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = VSSBlock(6, states=2)
        self.A, self.B = nn.Parameter(-torch.rand(6, 2)), nn.Parameter(torch.randn(1, 3, 2, 20))

    def forward(self, x):
        u = self.block(x).flatten(2)
        B = self.B.expand(len(u), -1, -1, -1)
        return selective_scan(u, u, self.A, B, B, delta_softplus=True)

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for selective_scan_module.REQUESTED in sys.argv[3:]:
    torch.manual_seed(0)
    net, images = Net(), torch.randn(4, 6, 4, 5)
    net(images).square().mean().backward()
    alone = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    both = nn.parallel.DistributedDataParallel(net)  # a name keeps it alive until the gradients are joined
    both(images[2 * rank : 2 * rank + 2]).square().mean().backward()
    for name, p in net.named_parameters():
        assert alone[name].abs().sum() > 0, name
        torch.testing.assert_close(p.grad, alone[name], rtol=1e-4, atol=1e-6, msg=lambda m: name + ": " + m)
    del both
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # all was compared; gloo's threads now and then abort an interpreter that ends in its own time
"""


def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    paths = ["native", "torch"] if scan_native.available() else ["torch"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store"), *paths],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed[0][-2000:] + printed[1][-2000:]


def test_a_checkpointed_block_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    block, x = VSSBlock(6), torch.randn(2, 6, 4, 5, requires_grad=True)
    parameters = [x, *block.parameters()]
    expected = torch.autograd.grad(block(x).square().sum(), parameters)
    for reentrant in (False, True):
        for p in parameters:
            p.grad = None
        checkpoint(block, x, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close([p.grad for p in parameters], list(expected))


def test_a_block_is_exported_with_any_batch() -> None:
    block, x = VSSBlock(6).eval(), torch.randn(2, 6, 4, 5)
    with torch.no_grad():
        program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        more = torch.randn(3, 6, 4, 5)
        torch.testing.assert_close(program.module()(more), block(more))
    assert any("image_scan" in str(node.target) for node in program.graph.nodes)


def test_an_image_under_autocast_gives_gradients_in_the_parameters_types() -> None:
    torch.manual_seed(0)
    block, x = VSSBlock(6), torch.randn(1, 6, 4, 5, requires_grad=True)
    expected = torch.autograd.grad(block(x).sum(), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = block(x).float().sum()
    loss.backward()
    assert {p.grad.dtype for p in block.parameters()} == {torch.float32}
    torch.testing.assert_close(x.grad, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "delta_bias"])
def test_a_tensor_on_another_device_is_named(name: str) -> None:
    tensors = {
        "u": torch.rand(1, 2, 3), "delta": torch.rand(1, 2, 3), "A": torch.rand(2, 1), "B": torch.rand(1, 1, 1, 3),
        "C": torch.rand(1, 1, 1, 3), "D": torch.rand(2), "delta_bias": torch.rand(2),
    }  # fmt: skip
    with pytest.raises(ModelError, match=rf"`{name}` is on meta, `u` on cpu"):
        selective_scan(**{**tensors, name: tensors[name].to("meta")})
    with pytest.raises(ModelError, match=rf"`{name}` holds torch\.int32"):
        selective_scan(**{**tensors, name: tensors[name].int()})


@pytest.mark.parametrize("place", range(1, 6))
def test_an_images_tensor_on_another_device_or_of_integers_is_named(place: int) -> None:
    names = ("x", "factors", "A", "rank_weight", "delta_bias", "D")
    tensors = [torch.rand(shape) for shape in ((1, 2, 3, 4), (1, 2, 3, 12), (16, 1), (16, 1), (16,), (16,))]
    for changed, words in ((tensors[place].to("meta"), "is on meta, `x` on cpu"), (tensors[place].long(), "int64")):
        with pytest.raises(ModelError, match=rf"`{names[place]}` .*{words}"):
            image_scan(*tensors[:place], changed, *tensors[place + 1 :])
