"""Whether training waits for its data: samples per second from a scene against the same batches already in memory.

    python benchmarks/speed/training.py [--repeats 7]

Both loops take the same optimiser steps with the same `two_branch`; they alternate in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable

import numpy as np
import torch

from landfuse.models.base import Modality
from landfuse.models.two_branch import TwoBranch
from landfuse.simulate.scene import simulate
from landfuse.training.samples import Sample, Samples, WindowSampler, loader
from landfuse.training.settings import SampleSettings
from landfuse.views.mapped_pixels import fit_pixel_maps
from landfuse.views.settings import PixelMapSettings
from landfuse.views.store import Store


def steps(model: TwoBranch, optimizer: torch.optim.Optimizer, batches: Iterable[Sample]) -> float:
    start, count = time.perf_counter(), 0
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch.images, batch.target)["loss"].backward()
        optimizer.step()
        count += len(batch.target)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--windows", type=int, default=2560)
    options = parser.parse_args()
    torch.manual_seed(0)
    scene = simulate(256, 256, seed=0)
    wanted = [np.ones((256, 256), dtype=bool)]
    maps = fit_pixel_maps([scene], wanted, {name: PixelMapSettings() for name in scene.modalities})
    model = TwoBranch({n: Modality(m.channels) for n, m in maps.items()}, len(scene.legend), TwoBranch.Settings())
    optimizer = torch.optim.AdamW(model.parameters())
    settings = SampleSettings(batch=64, windows=options.windows)
    samples = Samples(Store([scene], maps, model.view, settings.memory), [scene.labels], model.view, model.core)
    draws = WindowSampler(samples, settings, train=True)
    held = list(loader(samples, draws))
    rates: dict[str, list[float]] = {"scene": [], "memory": []}
    for turn in range(options.repeats + 1):
        draws.set_epoch(turn)
        found = {"scene": steps(model, optimizer, loader(samples, draws)), "memory": steps(model, optimizer, held)}
        if turn:  # the first round warms up
            for name, rate in found.items():
                rates[name].append(rate)
    scene_rate, memory_rate = (statistics.median(rates[name]) for name in ("scene", "memory"))
    ratio = statistics.median(a / b for a, b in zip(rates["scene"], rates["memory"], strict=True))
    print(f"from the scene {scene_rate:.0f}, from memory {memory_rate:.0f} samples/s; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
