"""What the device can do at most: bytes copied, and products of matrices."""

from __future__ import annotations

import torch
from device import Device
from record import Record

PART = "ceilings"
NOT_ON_A_CPU = "the GPU's copy rate and matrix products, TF32 among them; the numbers are of this CPU at tiny sizes"


def measure(record: Record, device: Device) -> dict[str, float]:
    """Records the ceilings and returns them: GB/s of a copy, and TFLOP/s by type."""
    found: dict[str, float] = {}
    with record.measurement(PART, "copy") as begun:
        if begun:
            source = torch.randn(1 << (16 if device.dry else 30), device=device.name)
            target = torch.empty_like(source)
            took = device.milliseconds(lambda: target.copy_(source))
            found["copy"] = 2 * source.nbytes / took / 1e6
            record.add(PART, "copy", GB_per_s=found["copy"], of=f"{source.nbytes / 2**20:.3g} MiB, read and written")
            del source, target
            device.release()
    for kind, dtype, tf32 in (("bf16", torch.bfloat16, False), ("f32", torch.float32, False), ("tf32", None, True)):
        if tf32 and device.dry:
            continue
        with record.measurement(PART, f"product {kind}") as begun:
            if not begun:
                continue
            size = 128 if device.dry else 8192 if kind == "bf16" else 4096
            a, b = (torch.randn(size, size, device=device.name, dtype=dtype) for _ in range(2))
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                took = device.milliseconds(lambda a=a, b=b: a @ b)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before
            found[kind] = 2 * size**3 / took / 1e9
            record.add(PART, f"product {kind}", TFLOP_per_s=found[kind], of=f"{size} x {size}")
    device.release()
    return found
