"""Kernel launches of forward passes, counted without a GPU.

    python benchmarks/gpu/launches.py            # a table of all networks at their papers' sizes
    python benchmarks/gpu/launches.py mfnet -v   # of some, with the operators that launch

Networks run on fake tensors, which have shapes and a device but no numbers, in bfloat16 as on a GPU. Operators that
return a view launch nothing, the others one kernel; those that are known to launch more are in `KERNELS`.
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
from networks import Case, batch_of, build, cases, jobs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITHOUT_KERNEL = ("_unsafe_view", "_reshape_alias", "lift_fresh")
"""Operators that launch nothing, beside views and those that only allocate."""
KERNELS = {"logsumexp": 6, "selective_scan": 3, "image_scan": 6}
"""Operators of several kernels."""
FAKE = FakeTensorMode()
"""One for all networks, since constants are kept."""
MODELS = ("mfnet", "refnet", "bdgf", "two_branch")


class Launches(TorchDispatchMode):
    """Counts kernels by operator, within it."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[-1]
        first = next((one for one in tree_leaves(result) if isinstance(one, torch.Tensor)), None)
        nothing = function.is_view or "empty" in name or name in WITHOUT_KERNEL
        if not nothing and first is not None and first.device.type == "cuda":
            self.by_operator[name] += KERNELS.get(name, 1)
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
        patch("landfuse.kernels.scan._triton_works", lambda: True),
        warnings.catch_warnings(),
        FAKE,
    ):
        warnings.simplefilter("ignore")
        yield


def move(model: nn.Module) -> None:
    """Replaces all numbers by fake tensors of the GPU."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(fake, p.requires_grad)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else torch.empty(b.shape, dtype=b.dtype, device="cuda")


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """One kernel, as on a GPU; on fake tensors PyTorch takes the formula."""
    half = [x.to(torch.bfloat16) for x in (q, k, v)]
    mask = attn_mask if attn_mask is None else attn_mask.expand(*q.shape[:-1], k.shape[-2])
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(*half, mask, False, scale=scale)[0]
    return found


def forward_launches(case: Case) -> Launches:
    """Of a forward pass in bfloat16, after a first one."""
    case = replace(case, kind="bf16")
    model, modalities = build(case, "cpu")
    with pretended_gpu():
        move(model)
        parts = model, *batch_of(case, model, modalities, "cuda")
        forward = jobs(case, "cuda", parts, torch.no_grad)["forward"]  # inference mode hides what operators consist of
        forward()  # makes what is kept
        with Launches() as launches:
            forward()
    return launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all of them by default")
    parser.add_argument("-v", "--verbose", action="store_true", help="with the operators")
    chosen = parser.parse_args()
    print("| forward pass | launches |\n|---|---|")
    for case in cases(dry=False):
        if not case.plain and case.kind == "bf16" and case.model in (chosen.models or MODELS):
            launches = forward_launches(case)
            print(f"| {case.name} | {launches.total:,} |", flush=True)
            if chosen.verbose:
                print(dict(launches.by_operator.most_common(40)), file=sys.stderr)


if __name__ == "__main__":
    main()
