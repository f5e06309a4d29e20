"""Whether the scan's Triton kernels give what its definition gives: outputs and all gradients, beside a float64 loop.

`torch.empty` is filled with NaN meanwhile, so that a number that a kernel leaves unwritten shows. Each gradient is
computed twice: the same bytes are expected.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from device import Device, difference
from landfuse_parts import HAS_TRITON, scan_image, selective_scan
from record import Record
from scan_inputs import IMAGE, SEQUENCE, TYPES, image_inputs, leaves, sequence_inputs
from torch import Tensor
from workers import Workers

PART = "parity"
NOT_ON_A_CPU = "the kernels as a GPU runs them: Triton's interpreter ran two small shapes, and not those of networks"
ALLOWED = {"f32": 1e-4, "bf16": 2e-2}
"""The largest relative error norm that passes."""

Case = tuple[str, str, tuple[int, ...], str]
"""Form, type, shape (as `scan_inputs` has it), and what is unusual about the inputs."""


def cases(dry: bool) -> list[Case]:
    """The long ones first."""
    if dry:
        return [("sequence", "f32", (1, 2, 3, 17, 2), "strided"), ("image", "bf16", (1, 3, 2, 2, 1, 1), "")]
    found: list[Case] = []
    for dtype in TYPES:
        found += [("image", dtype, (1, 72, 56, 16, 4, 1), ""), ("sequence", dtype, (1, 1, 8, 16384, 16), "")]
    for dtype in TYPES:
        found += [
            ("sequence", dtype, (2, 1, 33, 257, 16), ""),
            ("sequence", dtype, (2, 3, 17, 131, 8), ""),
            ("sequence", dtype, (1, 2, 32, 1000, 64), ""),
            ("sequence", dtype, (3, 1, 64, 121, 16), "strided"),
            ("sequence", dtype, (2, 1, 32, 129, 16), "wild"),
            ("sequence", dtype, (2, 1, 48, 63, 1), "without softplus"),
            ("image", dtype, (2, 13, 9, 33, 3, 1), ""),
            ("image", dtype, (2, 16, 16, 64, 4, 16), ""),
        ]
    found += [
        ("sequence", "f32", (2, 4, 1, 1, 1), ""),
        ("sequence", "f32", (1, 1, 1, 777, 1), ""),
        ("sequence", "f32", (2, 1, 40, 100, 8), "bare"),
        ("image", "f32", (1, 7, 31, 1, 1, 8), ""),
        ("image", "f32", (1, 1, 5, 8, 2, 64), ""),
    ]
    return found


def inputs_of(case: Case, device: str) -> list[Tensor]:
    """`bare` leaves out D, the bias and softplus; `wild` has large steps and decays."""
    form, kind, shape, unusual = case
    dtype, seed = TYPES[kind], zlib.crc32(str(shape).encode()) % 1000
    if form == "image":
        return image_inputs(shape, dtype, device, seed)
    tensors = sequence_inputs(shape, dtype, device, seed)
    if unusual in ("bare", "without softplus"):  # delta must be positive by itself
        tensors[1] = (0.01 + 0.2 * torch.rand_like(tensors[1].float())).to(dtype)
        tensors[6] = 0.05 * torch.rand_like(tensors[6])
    if unusual == "wild":
        tensors[1] = (3 * torch.randn_like(tensors[1].float())).to(dtype)
        tensors[2] = -torch.empty_like(tensors[2]).uniform_(-3, 5).exp()
    if unusual == "strided":
        tensors[:2] = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[:2]]
    return tensors[:5] if unusual == "bare" else tensors


def by_triton(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    if case[0] == "image":
        return [scan_image.image_scan(*tensors, path="triton")]
    return [selective_scan.selective_scan(*tensors, **softplus(case), path="triton")]


def by_definition(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    if case[0] == "image":
        return [scan_image.image_scan_plain(*tensors)]
    return [selective_scan.scan_plain(*tensors, **softplus(case))]


def softplus(case: Case) -> dict[str, bool]:
    return {"delta_softplus": case[3] not in ("bare", "without softplus")}


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills what `torch.empty` gives with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compare(case: Case, device: str) -> dict[str, Any]:
    """Relative error norms of outputs and gradients."""
    with poisoned():
        is_poisoned = bool(torch.empty(1000, device=device).isnan().all())
        tensors = inputs_of(case, device)
        ours, references = leaves(tensors), [t.detach().cpu().double().requires_grad_() for t in tensors]
        results, expected = by_triton(case, ours), by_definition(case, references)
        torch.manual_seed(7)
        weights = [torch.randn_like(r, dtype=torch.float32).to(r.dtype) for r in results]
        gradients = torch.autograd.grad(results, ours, weights)
        again = torch.autograd.grad(by_triton(case, ours), ours, weights)
        wanted = torch.autograd.grad(expected, references, [w.detach().cpu().double() for w in weights])
    names = [f"d{name}" for name in (IMAGE if case[0] == "image" else SEQUENCE)]
    errors = {name: difference(r, e) for name, r, e in zip(("y",), results, expected, strict=True)}
    errors |= {name: difference(g, w) for name, g, w in zip(names, gradients, wanted, strict=False)}
    worst = max(errors, key=lambda name: errors[name])
    return {
        "largest_error": errors[worst],
        "of": worst,
        "passes": errors[worst] < ALLOWED[case[1]],
        "poisoned": is_poisoned,
        "same_gradients_twice": all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True)),
        "errors": errors,
    }


def measure(record: Record, device: Device, workers: Workers) -> None:
    """Records each case, and a fault for one that does not pass."""
    if not HAS_TRITON:
        record.not_measured(PART, "anything: Triton is not installed")
        return
    arguments = [(case, device.name) for case in cases(device.dry)]
    for (case, _), found in workers.run(compare, arguments):
        form, kind, shape, unusual = case
        name = " ".join([form, "x".join(map(str, shape)), kind, unusual]).strip()
        with record.measurement(PART, name):
            if isinstance(found, Exception):
                raise found
            record.add(PART, name, **found)
            if not found["passes"] or not found["poisoned"]:
                raise ValueError(f"parity fails: {found}")
