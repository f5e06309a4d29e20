"""REF-Net with each way of scanning, against the same network on the sequential scan, in one run.

    python benchmarks/speed/refnet.py                     # resnet50, 256 px, batch 8; `plain` steps take much memory
    python benchmarks/speed/refnet.py --batch 1 --threads 1 --clock cpu --repeats 1
    python benchmarks/speed/refnet.py --forward-only
    python benchmarks/speed/refnet.py --device cuda --paths triton torch

`plain` is the loop over time of Mamba's reference (`scan_plain`). Forward is without gradients; a step is forward,
loss, backward and AdamW. Medians of rounds in which each path comes in turn, after one to warm up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as landfuse sets it where it is imported first

import torch
from torch import Tensor

from landfuse.kernels import scan
from landfuse.models.base import Modality
from landfuse.models.refnet import RefNet


def step(model: RefNet, optimizer: torch.optim.Optimizer, images: dict[str, Tensor], target: Tensor) -> float:
    optimizer.zero_grad()
    loss = model.loss(images, target)["loss"]
    loss.backward()
    optimizer.step()
    return loss.item()


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--encoder", default="resnet50")
    arguments.add_argument("--side", type=int, default=256, help="px")
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--paths", nargs="*", default=["plain", "torch", "native"], choices=scan.PATHS)
    arguments.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: this process's own time")
    arguments.add_argument("--forward-only", action="store_true")
    chosen = arguments.parse_args()
    clock = time.process_time if chosen.clock == "cpu" else time.perf_counter

    torch.manual_seed(0)
    config = RefNet.Settings(encoder=chosen.encoder, view=chosen.side, drop_path=0.0)
    model = RefNet({"s2": Modality(3), "s1": Modality(2)}, 8, config).to(chosen.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    shape = (chosen.batch, chosen.side, chosen.side)
    images = {
        name: torch.randn(shape[0], bands, *shape[1:], device=chosen.device) for name, bands in (("s2", 3), ("s1", 2))
    }
    target = torch.randint(8, shape, device=chosen.device)

    def timed(run: Callable[[], object]) -> float:
        if chosen.device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run()
        if chosen.device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    @torch.no_grad()
    def forward() -> None:
        model(images)

    print("| threads | scan | forward, s | step, s | times slowest, forward | step |\n|---|---|---|---|---|---|")
    for threads in chosen.threads if chosen.device == "cpu" else [1]:
        torch.set_num_threads(threads)
        rounds: dict[str, list[tuple[float, float]]] = {path: [] for path in chosen.paths}
        for number in range(chosen.repeats + 1):
            for path in chosen.paths:
                if not number and path == "plain":
                    continue  # has nothing to warm up, and takes long
                scan.REQUESTED = path
                model.eval()
                first = timed(forward)
                model.train()
                second = float("nan") if chosen.forward_only else timed(lambda: step(model, optimizer, images, target))
                if number:
                    rounds[path].append((first, second))
        medians = {path: [statistics.median(column) for column in zip(*r, strict=True)] for path, r in rounds.items()}
        slowest = [max(column) for column in zip(*medians.values(), strict=True)]
        for path, (first, second) in medians.items():
            ratios = f"{slowest[0] / first:.1f} | {slowest[1] / second:.1f}"
            print(f"| {threads} | {path} | {first:.2f} | {second:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
