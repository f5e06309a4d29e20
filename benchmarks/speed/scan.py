"""Speed and memory of the selective scan beside its rivals, in one run, each round in turn, medians.

    python benchmarks/speed/scan.py                          # all shapes, one and two threads
    python benchmarks/speed/scan.py --sides 64 --states 1 --threads 2 --repeats 5
    python benchmarks/speed/scan.py --device cuda            # on a GPU; adds mamba_ssm's kernel where installed

The rivals are written plainly here: the loop over time of Mamba's reference, a log-depth parallel scan (Brent and
Kung's network, as mamba.py has it), and around both VMamba's way of scanning an image: four copies, a full delta,
four results. Where `mambapy` is installed, its own scan is a further rival.

Two yardsticks say how far the fastest is from the machine: the least number of bytes that must move against the
measured bandwidth of a copy, and an estimate of the arithmetic against the measured rate of a matrix product that
stays in the cache. Times of a machine with other work are noisy: look at the ratios, or take one thread and
`--clock cpu`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as landfuse sets it where it is imported first

import torch
from torch import Tensor
from torch.nn import functional as F

from landfuse.kernels import scan_native
from landfuse.kernels.scan import selective_scan
from landfuse.kernels.scan_image import image_scan

CHANNELS, BATCH = 256, 2  # of the images: REF-Net's width 128, expanded twice
PATCHES = (49, 81, 121)  # pixels of 7x7, 9x9 and 11x11 patches
# Operations per state and step (exponential 17, update and read 8), and per channel and step (softplus 40, the rest 6).
FLOPS_STATE, FLOPS_CHANNEL = 25, 46


def expanded(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and input of every state and step: (B, G*D, L, N)."""
    per_group = u.shape[1] // B.shape[1]
    decay = torch.exp(delta[..., None] * A[:, None, :])
    return decay, (delta * u)[..., None] * B.repeat_interleave(per_group, 1).transpose(2, 3)


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The loop over time."""
    decay, entering = expanded(u, F.softplus(delta + bias[:, None]), A, B)
    states, state = [], torch.zeros_like(entering[:, :, 0])
    for a, x in zip(decay.unbind(2), entering.unbind(2), strict=True):
        state = a * state + x
        states.append(state)
    return read(torch.stack(states, 2), u, C, D)


def read(states: Tensor, u: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """y from the states (B, G*D, L, N)."""
    per_group = u.shape[1] // C.shape[1]
    return (states * C.repeat_interleave(per_group, 1).transpose(2, 3)).sum(-1) + D[:, None] * u


def network_(a: Tensor, x: Tensor) -> None:
    """In place: x becomes the states of x_t + a_t h_{t-1}; (B, D, L, N). About 2 log2 L steps."""
    length, strides = x.shape[2], [1]
    while 2 * strides[-1] <= length:
        strides.append(2 * strides[-1])

    def join(first_right: int, first_left: int, step: int) -> None:
        right_x, right_a = x[:, :, first_right::step], a[:, :, first_right::step]
        count = right_x.shape[2]
        left_x, left_a = x[:, :, first_left::step][:, :, :count], a[:, :, first_left::step][:, :, :count]
        right_x.addcmul_(right_a, left_x)
        right_a.mul_(left_a)

    for s in strides[:-1]:
        join(2 * s - 1, s - 1, 2 * s)
    for s in reversed(strides):
        if 3 * s - 1 < length:
            join(3 * s - 1, 2 * s - 1, 2 * s)


class LogDepth(torch.autograd.Function):
    """The log-depth scan of (decay, input), with its analytic backward pass."""

    @staticmethod
    def forward(ctx, decay: Tensor, entering: Tensor) -> Tensor:
        states = entering.clone()
        network_(decay.clone(), states)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx, dstates: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        later = torch.cat([decay[:, :, 1:], torch.zeros_like(decay[:, :, :1])], 2).flip(2)
        adjoint = dstates.flip(2).contiguous()
        network_(later.contiguous(), adjoint)
        adjoint = adjoint.flip(2)
        ddecay = torch.zeros_like(decay)
        ddecay[:, :, 1:] = adjoint[:, :, 1:] * states[:, :, :-1]
        return ddecay, adjoint


def log_depth(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The log-depth parallel scan."""
    states = LogDepth.apply(*expanded(u, F.softplus(delta + bias[:, None]), A, B))
    return read(states, u, C, D)


def mamba_py() -> Callable[..., Tensor] | None:
    """mamba.py's parallel scan, if it is installed, on the same decays and inputs as the one above."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        decay, entering = expanded(u, F.softplus(delta + bias[:, None]), A, B)
        states: Tensor = pscan(decay.transpose(1, 2), entering.transpose(1, 2)).transpose(1, 2)
        return read(states, u, C, D)

    return scan


def four_copies(x: Tensor) -> Tensor:
    """An image (B, H, W, D) in the order of VMamba's four walks: (B, 4, D, L)."""
    image = x.permute(0, 3, 1, 2)
    two = torch.stack([image.flatten(2), image.transpose(2, 3).flatten(2)], 1)
    return torch.cat([two, two.flip(-1)], 1)


def merged(y: Tensor, height: int, width: int) -> Tensor:
    """The sum of four walks' results (B, 4 D, L), as an image (B, H, W, D)."""
    y = y.unflatten(1, (4, -1))
    y = y[:, :2] + y[:, 2:].flip(-1)
    columns = y[:, 1].unflatten(2, (width, height)).transpose(2, 3).flatten(2)
    return (y[:, 0] + columns).unflatten(2, (height, width)).permute(0, 2, 3, 1)


def vmamba(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """VMamba's way around a scan: copy the image in four directions, scan, and merge."""

    def run(x: Tensor, projection: Tensor, A: Tensor, weight: Tensor, bias: Tensor, D: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        rank, states = weight.shape[1], A.shape[1]
        four = four_copies(x)
        factors = torch.einsum("bkdl,kcd->bkcl", four, projection.view(4, -1, channels))
        low_rank, B, C = factors.split([rank, states, states], 2)
        delta = torch.einsum("bkrl,kdr->bkdl", low_rank, weight.view(4, channels, rank))
        return merged(scan(four.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias), height, width)

    return run


def ours(path: str) -> Callable[..., Tensor]:
    return lambda u, delta, A, B, C, D, bias: selective_scan(u, delta, A, B, C, D, bias, True, path=path)


def fused(path: str) -> Callable[..., Tensor]:
    return lambda x, projection, *rest: image_scan(x, F.linear(x, projection), *rest, path=path)


def mamba_kernel() -> Callable[..., Tensor] | None:
    """mamba_ssm's CUDA kernel, if it is installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return lambda u, delta, A, B, C, D, bias: selective_scan_fn(u, delta, A, B, C, D, None, bias, True)


def image_inputs(side: int, states: int, device: str) -> list[Tensor]:
    """As in a fresh VSS block: A = -(1..N), delta between 0.001 and 0.1."""
    rank, inner = CHANNELS // 32, 4 * CHANNELS
    return leaves(
        [
            F.silu(torch.randn(BATCH, side, side, CHANNELS)),
            torch.randn(4 * (rank + 2 * states), CHANNELS) / CHANNELS**0.5,
            -torch.arange(1.0, states + 1).repeat(inner, 1),
            (torch.rand(inner, rank) - 0.5) * 2 * rank**-0.5,
            fresh_bias(inner),
            torch.ones(inner),
        ],
        device,
    )


def patch_inputs(length: int, device: str) -> list[Tensor]:
    batch, channels, states = 64, 128, 16
    wide = [F.silu(torch.randn(batch, channels, length)), 0.5 * torch.randn(batch, channels, length)]
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    factors = [torch.randn(batch, 1, states, length) for _ in range(2)]
    return leaves([*wide, A, *factors, torch.ones(channels), fresh_bias(channels)], device)


def fresh_bias(channels: int) -> Tensor:
    delta = torch.empty(channels).uniform_(-6.9, -2.3).exp()
    return delta + torch.log(-torch.expm1(-delta))


def leaves(tensors: list[Tensor], device: str) -> list[Tensor]:
    return [t.to(device).requires_grad_() for t in tensors]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(
    scan: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor, device: str, clock: Callable[[], float]
) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of forward and backward."""
    with torch.no_grad():
        wait(device)
        start = clock()
        scan(*tensors)
        wait(device)
        forward = clock() - start
    start = clock()
    torch.autograd.grad(scan(*tensors), tensors, dy)
    wait(device)
    return 1e3 * forward, 1e3 * (clock() - start)


def peak_megabytes(scan: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor, device: str) -> float:
    """What a forward and backward pass takes on top of its inputs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(scan(*tensors), tensors, dy)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, stop = Path("/proc/self/statm"), threading.Event()
    if not status.exists():
        return float("nan")

    def resident() -> float:
        return int(status.read_text().split()[1]) * 4096 / 2**20

    before, seen = resident(), [0.0]

    def watch() -> None:
        while not stop.wait(0.001):
            seen[0] = max(seen[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    torch.autograd.grad(scan(*tensors), tensors, dy)
    stop.set()
    watcher.join()
    return max(0.0, seen[0] - before)


def yardsticks(clock: Callable[[], float]) -> tuple[float, float]:
    """Copy bandwidth, bytes read and written per second, and multiply-adds in cache, operations per second."""
    source = torch.rand(32 * 2**20)
    target = torch.empty_like(source)
    small = [torch.rand(256, 256) for _ in range(2)]
    out = torch.empty(256, 256)
    copies, products = [], []
    for _ in range(7):
        start = clock()
        target.copy_(source)
        copies.append(clock() - start)
        start = clock()
        for _ in range(20):
            torch.mm(*small, out=out)
        products.append((clock() - start) / 20)
    return 2 * source.numel() * 4 / min(copies), 2 * 256**3 / min(products)


def compare(
    title: str,
    scans: dict[str, Callable[..., Tensor]],
    tensors: list[Tensor],
    repeats: int,
    device: str,
    clock: Callable[[], float],
) -> dict[str, tuple[float, float]]:
    with torch.no_grad():
        results = {name: scan(*tensors) for name, scan in scans.items()}
    reference = results["log-depth"]
    for name, result in results.items():
        error = ((result - reference).abs().max() / reference.abs().max()).item()
        if not error < 1e-4:
            raise SystemExit(f"{title}: {name} is off by {error:.1e}")
    dy = torch.randn_like(reference)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in scans}
    for number in range(repeats + 1):
        for name, scan in scans.items():
            measured = timed(scan, tensors, dy, device, clock)
            if number:  # the first round warms up
                rounds[name].append(measured)
    medians = {name: tuple(statistics.median(column) for column in zip(*r, strict=True)) for name, r in rounds.items()}
    rival = medians["log-depth"]
    for name, scan in scans.items():
        forward, both = medians[name]
        ratios = f"{rival[0] / forward:.1f} | {rival[1] / both:.1f}"
        memory = peak_megabytes(scan, tensors, dy, device)
        print(f"| {title} | {name} | {forward:.1f} | {both:.1f} | {ratios} | {memory:.0f} |", flush=True)
    return medians


def limits(
    title: str, name: str, milliseconds: float, bytes_moved: float, operations: float, clock: Callable[[], float]
) -> str:
    bandwidth, rate = yardsticks(clock)
    of_copy, of_rate = bytes_moved / bandwidth / milliseconds * 1e3, operations / rate / milliseconds * 1e3
    return f"| {title} | {name} | {100 * of_copy:.0f} % | {100 * of_rate:.0f} % |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--sides", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    arguments.add_argument("--states", type=int, nargs="*", default=[1, 16])
    arguments.add_argument("--patches", type=int, nargs="*", default=list(PATCHES))
    arguments.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: this process's own time")
    arguments.add_argument("--no-loop", action="store_true", help="leave out the loop over time, by far the slowest")
    chosen = arguments.parse_args()
    device = chosen.device
    clock = time.process_time if chosen.clock == "cpu" else time.perf_counter
    paths = ["triton", "torch"] if device == "cuda" else ["native", "torch"]
    if device == "cpu" and not scan_native.available():
        paths.remove("native")
    kernel = mamba_kernel() if device == "cuda" else None
    theirs = mamba_py()
    best, limit_rows = paths[0], []
    print("| shape | scan | forward, ms | with backward, ms | times log-depth | with backward | memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    for threads in chosen.threads if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        where = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else "GPU"
        for states in chosen.states:
            for side in chosen.sides:
                if states > 1 and side > 64 and device == "cpu":
                    continue  # the rivals take 20 GB
                torch.manual_seed(0)
                scans: dict[str, Callable[..., Tensor]] = {} if chosen.no_loop else {"loop": vmamba(loop)}
                scans["log-depth"] = vmamba(log_depth)
                if theirs:
                    scans["mamba.py"] = vmamba(theirs)
                if kernel:
                    scans["mamba_ssm"] = vmamba(kernel)
                scans |= {f"ours, {path}": fused(path) for path in paths}
                scans["ours, torch, general form"] = vmamba(ours("torch"))
                title = f"SS2D {side}², N = {states}, {where}"
                medians = compare(title, scans, image_inputs(side, states, device), chosen.repeats, device, clock)
                if device == "cpu":
                    pixels = BATCH * side * side
                    moved = 4 * pixels * (2 * CHANNELS + 4 * (CHANNELS // 32 + 2 * states))
                    work = 4 * pixels * CHANNELS * (states * FLOPS_STATE + FLOPS_CHANNEL + 2 * (CHANNELS // 32))
                    limit_rows.append(limits(title, best, medians[f"ours, {best}"][0], moved, work, clock))
        for length in chosen.patches:
            torch.manual_seed(0)
            scans = {} if chosen.no_loop else {"loop": loop}
            scans["log-depth"] = log_depth
            if theirs:
                scans["mamba.py"] = theirs
            if kernel:
                scans["mamba_ssm"] = kernel
            scans |= {f"ours, {path}": ours(path) for path in paths}
            compare(
                f"patches L = {length}, {where}", scans, patch_inputs(length, device), chosen.repeats, device, clock
            )
    if limit_rows:
        print("\n| shape | scan, forward | of copy bandwidth | of multiply-add rate |\n|---|---|---|---|")
        print("\n".join(limit_rows))


if __name__ == "__main__":
    main()
