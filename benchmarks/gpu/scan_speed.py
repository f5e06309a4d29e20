"""How fast the scan is beside mamba_ssm's kernel and landfuse's own PyTorch path, and beside the ceilings.

On images mamba_ssm's kernel is timed twice: with VMamba's four copies, full delta and merge around it, from the same
factors as landfuse's, and alone, on inputs of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import mamba_kernel
import torch
from device import Device, difference
from landfuse_parts import HAS_TRITON, scan_image, selective_scan
from record import Record
from scan_inputs import TYPES, image_inputs, leaves, sequence_inputs
from speed_parts import four_copies, merged
from torch import Tensor
from workers import Workers

PART = "scan"
NOT_ON_A_CPU = "Triton's kernels: the PyTorch path stands in for them, at tiny shapes; memory"
BATCH, CHANNELS, RANK = 8, 256, 8  # of the images: REF-Net's width 128, expanded twice
SIDES, STATES = (64, 128), (1, 16)
SEQUENCES = ((1024, 1, 64, 121, 16), (8, 1, 1024, 4096, 16))  # patches, and a long one

Scan = Callable[..., Tensor]


class Way(NamedTuple):
    """One way to compute a scan; on inputs of its own if it has any. A slow one gets half the time."""

    scan: Scan
    inputs: list[Tensor] | None = None
    slow: bool = False


class Task(NamedTuple):
    """What is computed: its title and inputs, bytes that must move forwards and with the way back, exponentials."""

    title: str
    inputs: list[Tensor]
    moved: tuple[float, float]
    exponentials: float
    reference: Callable[[], Tensor] | None


def of_image(path: str) -> Scan:
    return lambda *tensors: scan_image.image_scan(*tensors, path=path)


def of_sequence(path: str) -> Scan:
    return lambda *tensors: selective_scan.selective_scan(*tensors, True, path=path)


def with_copies(scan: Scan) -> Scan:
    """VMamba's way around a scan, from the factors of `image_scan`."""

    def run(x: Tensor, factors: Tensor, A: Tensor, weight: Tensor, bias: Tensor, D: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        rank, states = weight.shape[1], A.shape[1]
        of_walks = factors.unflatten(3, (4, -1)).permute(0, 3, 4, 1, 2)  # (B, 4, C, H, W)
        rows, columns = of_walks[:, 0::2].flatten(3), of_walks[:, 1::2].transpose(3, 4).flatten(3)
        ordered = torch.stack([rows[:, 0], columns[:, 0], rows[:, 1].flip(-1), columns[:, 1].flip(-1)], 1)
        low, B, C = ordered.split([rank, states, states], 2)
        delta = torch.einsum("bkrl,kdr->bkdl", low, weight.view(4, channels, rank).to(low.dtype))
        delta = delta.flatten(1, 2).to(x.dtype).contiguous()
        y = scan(four_copies(x).flatten(1, 2), delta, A, B.contiguous(), C.contiguous(), D, bias)
        return merged(y, height, width)

    return run


def image_task(side: int, states: int, dtype: torch.dtype, device: Device) -> Task:
    batch, channels, rank = (2, 8, 2) if device.dry else (BATCH, CHANNELS, RANK)
    inputs = image_inputs((batch, side, side, channels, rank, states), dtype, device.name)
    wide, factors = inputs[0].nbytes, inputs[1].nbytes
    compared = device.dry or (states == 1 and side == SIDES[0])
    double = [t.double() for t in inputs] if compared else []
    moved = 2 * wide + factors, 5 * wide + 3 * factors
    title = f"SS2D {batch}x{side}x{side}x{channels} N={states}"
    reference = (lambda: of_image("torch")(*double)) if compared else None
    return Task(title, inputs, moved, 4 * states * inputs[0].numel(), reference)


def sequence_task(shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> Task:
    B, _, D, L, N = shape
    inputs = sequence_inputs(shape, dtype, device.name)
    wide, narrow = inputs[0].nbytes, inputs[3].nbytes
    double = [t.double() for t in inputs]
    moved = 3 * wide + 2 * narrow, 8 * wide + 6 * narrow
    title = f"sequence B={B} D={D} L={L} N={N}"
    return Task(title, inputs, moved, N * inputs[0].numel(), lambda: of_sequence("torch")(*double))


def compile_for(form: str, kind: str, shape: tuple[int, ...], device: str) -> None:
    """Runs a small scan, forwards and backwards, so that its kernels lie in Triton's cache."""
    make, scan = (image_inputs, of_image("triton")) if form == "image" else (sequence_inputs, of_sequence("triton"))
    tensors = leaves(make(shape, TYPES[kind], device))
    with torch.no_grad():
        scan(*tensors)
    y = scan(*tensors)
    torch.autograd.grad(y, tensors, torch.randn_like(y))
    torch.cuda.synchronize()


def prepare(record: Record, device: Device, workers: Workers) -> None:
    """Compiles the kernels in several processes, so that timing need not wait for it."""
    if device.dry or workers.pool is None or not HAS_TRITON:
        return
    jobs = [("image", kind, (2, side, side, CHANNELS, RANK, N)) for kind in TYPES for side in SIDES for N in STATES]
    jobs += [("sequence", kind, (4, *shape[1:])) for kind in TYPES for shape in SEQUENCES]
    for (form, kind, shape, _), found in workers.run(compile_for, [(*job, device.name) for job in jobs]):
        if isinstance(found, Exception):
            record.fault(PART, f"compiling {form} {kind} {shape}", f"{type(found).__name__}: {found}")


def time_each(
    record: Record, device: Device, task: Task, kind: str, ways: Mapping[str, Way], ceilings: Mapping[str, float]
) -> None:
    """Records the times of each way."""
    expected = None
    for name, (scan, own, slow) in ways.items():
        title = f"{task.title} {kind}, {name}"
        with record.measurement(PART, title) as begun:
            if not begun:
                continue
            tensors, budget = leaves(own or task.inputs), 40 if slow else 80
            with torch.no_grad():
                if expected is None and task.reference is not None:
                    expected = task.reference()
                y = scan(*tensors)
                error = difference(y, expected) if expected is not None and own is None else None
                forward = device.milliseconds(lambda scan=scan, t=tensors: scan(*t), budget, flush=True)
            dy = torch.randn_like(y)

            def both(scan: Scan = scan, tensors: list[Tensor] = tensors, dy: Tensor = dy) -> object:
                return torch.autograd.grad(scan(*tensors), tensors, dy)

            backward = device.milliseconds(both, budget, flush=True)
            peak = device.peak(both)
            copied = [moved / ms / 1e6 for moved, ms in zip(task.moved, (forward, backward), strict=True)]
            record.add(
                PART,
                title,
                forward_ms=forward,
                with_backward_ms=backward,
                share_of_copy_rate=copied[0] / ceilings["copy"] if "copy" in ceilings else None,
                with_backward_share=copied[1] / ceilings["copy"] if "copy" in ceilings else None,
                Gexp_per_s=task.exponentials / forward / 1e6,
                extra_MiB=peak and peak[1] * 1024,
                error=error,
            )
    device.release()


def measure(record: Record, device: Device, ceilings: Mapping[str, float]) -> None:
    """Records images, patches and a long sequence."""
    kernel, said = mamba_kernel.load(device.name)
    if kernel is None:
        record.not_measured(PART, f"mamba_ssm's kernel: {said}")
    if not HAS_TRITON:
        record.not_measured(PART, "landfuse's kernels: Triton is not installed")
    path = "triton" if HAS_TRITON and not device.dry else "torch"
    sides = (4,) if device.dry else SIDES
    for kind, dtype in TYPES.items():
        for states in STATES:
            for side in sides:
                task = image_task(side, states, dtype, device)
                ways = {f"landfuse ({path})": Way(of_image(path))}
                if kernel:
                    alone = sequence_inputs((BATCH, 4, CHANNELS, side * side, states), dtype, device.name)
                    ways["mamba_ssm with VMamba's copies"] = Way(with_copies(kernel))
                    ways["mamba_ssm, kernel alone"] = Way(kernel, alone)
                elif device.dry:
                    ways["VMamba's copies around landfuse's scan"] = Way(with_copies(of_sequence("torch")))
                if kind == "f32" and side == sides[0] and not device.dry:
                    ways["landfuse (torch)"] = Way(of_image("torch"), slow=True)
                time_each(record, device, task, kind, ways, ceilings)
    for shape in ((4, 1, 8, 9, 2), (1, 1, 8, 33, 2)) if device.dry else SEQUENCES:
        for kind, dtype in TYPES.items():
            ways = {f"landfuse ({path})": Way(of_sequence(path))}
            if kernel:
                ways["mamba_ssm"] = Way(kernel)
            if kind == "f32" and not device.dry:
                ways["landfuse (torch)"] = Way(of_sequence("torch"), slow=True)
            time_each(record, device, sequence_task(shape, dtype, device), kind, ways, ceilings)
