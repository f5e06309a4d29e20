"""Kernel launches of forward passes and training steps, counted without a GPU.

    python benchmarks/gpu/launches.py            # a table of all networks at their papers' sizes
    python benchmarks/gpu/launches.py mfnet -v   # of some, with the operators that launch

Networks run on fake tensors, which have shapes and a device but no numbers, in bfloat16 as on a GPU. Operators that
return a view launch nothing, the others one kernel; those that are known to launch more are in `KERNELS`. Without a GPU
PyTorch has no backward pass of tensors of one, so a step is counted on tensors of the CPU, for which autocast converts
other operators, and without the update of the weights, a few kernels where it is fused.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from landfuse_parts import forget_constants
from networks import Case, batch_of, build, cases, jobs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITHOUT_KERNEL = ("_unsafe_view", "_reshape_alias", "lift_fresh", "device", "_local_scalar_dense")
"""Operators that launch nothing, beside views and those that only allocate."""
KERNELS = {
    "logsumexp": 6,
    "convolution_backward": 2,
    "image_scan": 6,
    "image_scan_backward": 20,
    "selective_scan_backward": 10,
}
"""Operators of several kernels; a selective scan of up to 128 steps is one, or three where it saves states."""
FAKE = FakeTensorMode()
"""One for all networks."""
MODELS = ("mfnet", "refnet", "bdgf", "two_branch")


class Launches(TorchDispatchMode):
    """Counts kernels of a kind of device by operator, within it."""

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.by_operator: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[-1]
        first = next((one for one in tree_leaves(result) if isinstance(one, torch.Tensor)), None)
        nothing = function.is_view or "empty" in name or name in WITHOUT_KERNEL
        if not nothing and first is not None and first.device.type == self.device:
            saves = name == "selective_scan" and args[-2]
            self.by_operator[name] += 3 if saves else KERNELS.get(name, 1)
            if name == "convolution" and args[2] is not None:
                self.by_operator["bias of a convolution"] += 1  # cuDNN's convolution has none
        return result

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Tensors of the device cuda, without numbers."""
    with (
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),  # of autocast
        patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        patch.object(F, "scaled_dot_product_attention", fused_attention),
        patch.object(Tensor, "is_cuda", True),
        patch.object(Tensor, "nonzero", lambda self: torch.arange(len(self), device=self.device)[:, None]),  # all are
        patch("landfuse.kernels.scan.runs_triton", lambda device: True),
        warnings.catch_warnings(),
        FAKE,
    ):
        warnings.simplefilter("ignore")
        forget_constants()  # which have numbers
        try:
            yield
        finally:
            forget_constants()


def move(model: nn.Module, device: str) -> None:
    """Replaces all numbers by fake tensors."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty(p.shape, dtype=p.dtype, device=device)
                module._parameters[name] = nn.Parameter(fake, p.requires_grad)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else torch.empty(b.shape, dtype=b.dtype, device=device)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """One kernel, as on a GPU; on fake tensors PyTorch takes the formula."""
    half = [x.to(torch.bfloat16) for x in (q, k, v)]
    mask = attn_mask if attn_mask is None else attn_mask.expand(*q.shape[:-1], k.shape[-2])
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(*half, mask, False, scale=scale)[0]
    return found


def launches_of(case: Case, what: str) -> Launches:
    """Of a forward pass or a step in bfloat16, after a first one."""
    case, device = replace(case, kind="bf16"), "cuda" if what == "forward" else "cpu"
    model, modalities = build(case, "cpu")
    with pretended_gpu(), patch.object(torch.optim.AdamW, "step", lambda self: None):
        move(model, device)
        parts = model, *batch_of(case, model, modalities, device)
        job = jobs(case, device, parts, torch.no_grad)[what]  # inference mode hides what operators consist of
        job()  # makes what is kept
        with Launches(device) as launches:
            job()
    return launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all of them by default")
    parser.add_argument("-v", "--verbose", action="store_true", help="with the operators")
    chosen = parser.parse_args()
    print("| launches | forward pass | training step |\n|---|---|---|")
    for case in cases(dry=False):
        if not case.plain and case.kind == "bf16" and case.model in (chosen.models or MODELS):
            found = [launches_of(case, what) for what in ("forward", "step")]
            print(f"| {case.name} | {found[0].total:,} | {found[1].total:,} |", flush=True)
            for launches in found if chosen.verbose else []:
                print(dict(launches.by_operator.most_common(40)), file=sys.stderr)


if __name__ == "__main__":
    main()
