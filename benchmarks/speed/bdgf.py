"""BDGF: how fast it maps, against per-patch features and against a loop over pixels; what a training step takes.

    OMP_NUM_THREADS=1 python benchmarks/speed/bdgf.py [--width 64] [--base 64] [--repeats 3] [--device cpu]

Mapping, of a simulated scene of 30 + 2 bands with random weights, pixels per second of CPU time:
- `cached`: the engine over features that were computed once by tiles (also with that time added);
- `per patch`: the denoiser looks at the 32 px around each pixel, at every timestep, then the same network;
- `loop`: a DataLoader that cuts the patches of every pixel out of padded arrays, features too, float32: the way of the
  field's repositories. Once for a network of single pixels, once for one with a core of 5 px, of which the loop
  reads the central pixel and the engine all 25.

A step of classification (64 patches, guided) and one of pre-training (12 crops of 32 px; the mean of four, one of which
swaps modalities): time of float32 and bfloat16, the fraction of the scan, and, in a process each, the peak of resident
memory above what there was before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as landfuse sets it where it is imported first

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.description import ModelSpec
from landfuse.diffusion.crops import Crops
from landfuse.diffusion.denoising import Denoising
from landfuse.diffusion.features import DiffusionFeatures, compute_features
from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.settings import FeatureSettings, PretrainSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, own_maps
from landfuse.mapping.engine import Engine
from landfuse.mapping.settings import map_options
from landfuse.models.base import Modality
from landfuse.models.bdgf import Bdgf
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene
from landfuse.simulate.scene import simulate_flat
from landfuse.views.mapped_pixels import fit_pixel_maps
from landfuse.views.settings import PixelMapSettings
from landfuse.views.store import Store

BANDS = {"hsi": 30, "lidar": 2}
CLASSES = 15
TIMESTEPS = (50, 150, 300)
CROP = 32  # px that the denoiser sees around a pixel, where features are per patch


def prepared(options: argparse.Namespace, folder: str) -> tuple[Scene, Scene, TrainedDenoiser, float]:
    """A scene, the same with features, the denoiser, and the CPU time of the features."""
    scene = simulate_flat(options.side, options.side, BANDS, seed=0)
    everywhere = [np.ones((options.side, options.side), dtype=bool)]
    maps = own_maps([scene], everywhere, list(BANDS))
    denoiser = TrainedDenoiser.untrained(maps, dict.fromkeys(BANDS, 1), options.base)
    start = time.process_time()
    guided = scene.with_modalities(
        DiffusionFeatures(denoiser, FeatureSettings(timesteps=TIMESTEPS, cache=folder)).of(scene)
    )
    compute_features([guided])
    return scene, guided, denoiser, time.process_time() - start


def classifier(scene: Scene, options: argparse.Namespace, core: int) -> Bundle:
    """The network over a scene's modalities."""
    everywhere = [np.ones((options.side, options.side), dtype=bool)]
    maps = fit_pixel_maps([scene], everywhere, {name: PixelMapSettings() for name in scene.modalities})
    inputs = {name: scene.modalities[name].info for name in maps}
    settings = {"width": options.width, "embedding": 2 * options.width, "heads": options.width // 16, "core": core}
    return Bundle(ModelSpec("bdgf", settings), maps, inputs, scene.legend).eval()


class Patches(Dataset[tuple[dict[str, Tensor], int]]):
    """The patches around every pixel of a window, one by one, out of padded arrays."""

    def __init__(self, made: Bundle, scene: Scene, window: Window) -> None:
        self.view, self.window = made.model.view, window
        padded = window.padded(self.view // 2)
        self.arrays: dict[str, NDArray[np.float32]] = {}
        for name, pixel_map in made.maps.items():
            values = torch.from_numpy(scene.read(name, padded))
            self.arrays[name] = pixel_map(values.permute(1, 2, 0)).permute(2, 0, 1).contiguous().numpy()

    def __len__(self) -> int:
        return self.window.pixels

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        row, col = divmod(index, self.window.width)
        side = self.view
        cut = {n: torch.from_numpy(a[:, row : row + side, col : col + side].copy()) for n, a in self.arrays.items()}
        return cut, index


@torch.inference_mode()
def by_loop(made: Bundle, scene: Scene, window: Window) -> NDArray[np.uint8]:
    """The map of a window, pixel by pixel."""
    found = np.zeros(window.pixels, dtype=np.uint8)
    middle = made.model.core // 2
    for images, index in DataLoader(Patches(made, scene, window), batch_size=64):
        logits = made.model(images)[:, :, middle, middle]
        found[index.numpy()] = logits.argmax(dim=1).numpy()
    return found.reshape(window.height, window.width)


@torch.inference_mode()
def by_patch(made: Bundle, scene: Scene, denoiser: TrainedDenoiser, window: Window) -> None:
    """Maps a window with features that are computed for each pixel separately."""
    view, half = made.model.view, CROP // 2
    alpha = denoiser.network.alpha
    padded = window.padded(half)
    mapped = {name: own(torch.from_numpy(scene.read(name, padded)).flatten(1).T) for name, own in denoiser.maps.items()}
    tables = {name: t.T.reshape(1, -1, padded.height, padded.width) for name, t in mapped.items()}
    looked = {name: torch.from_numpy(scene.read(name, padded)) for name in BANDS}
    places = [(row, col) for row in range(window.height) for col in range(window.width)]
    cut = slice(half - view // 2, half - view // 2 + view)
    for start in range(0, len(places), 16):
        part = places[start : start + 16]
        crops = {n: torch.cat([t[:, :, r : r + CROP, c : c + CROP] for r, c in part]) for n, t in tables.items()}
        shown, missing = denoiser.images(crops)
        images = {
            n: made.maps[n](torch.stack([t[:, r : r + CROP, c : c + CROP] for r, c in part]).permute(0, 2, 3, 1))
            for n, t in looked.items()
        }
        batch = {n: image.permute(0, 3, 1, 2)[..., cut, cut] for n, image in images.items()}
        levels: list[list[Tensor]] = [[], [], []]
        for timestep in TIMESTEPS:
            noisy = {n: add_noise(x, torch.randn_like(x), alpha[timestep][None]) for n, x in shown.items()}
            found = denoiser.network.levels(noisy, missing, torch.full((len(part),), timestep))
            for kept, level in zip(levels, found, strict=True):
                whole = torch.nn.functional.interpolate(level, size=(CROP, CROP), mode="bilinear")
                kept.append(whole[..., cut, cut])
        for number, kept in enumerate(levels, start=1):
            batch[f"diffusion_{number}"] = made.maps[f"diffusion_{number}"](
                torch.cat(kept, dim=1).permute(0, 2, 3, 1)
            ).permute(0, 3, 1, 2)
        made.model(batch)


def seconds(job: Callable[[], object]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def mapping(options: argparse.Namespace) -> None:
    """Prints pixels per second of each way."""
    with tempfile.TemporaryDirectory() as folder:
        scene, guided, denoiser, once = prepared(options, folder)
        side = options.side
        print(f"features of {side} x {side} px, once: {1e6 * once / side**2:.0f} s of CPU time per megapixel")
        made = {core: classifier(guided, options, core) for core in (1, 5)}

        def engine(core: int, precision: str, window: Window) -> None:
            options = map_options({"batch": 128, "device": "cpu", "precision": precision})
            list(Engine(made[core], guided, options).blocks([window]))

        corner = Window(0, 0, 16, 16)
        found = next(Engine(made[1], guided, map_options({"device": "cpu"})).blocks([corner])).classes
        agreed = (found == by_loop(made[1], guided, corner)).mean()
        print(f"the loop and the engine agree in {agreed:.2%} of the pixels")
        few, some, whole = Window(8, 8, 4, 8), Window(0, 0, 32, 32), guided.grid.window
        jobs: dict[str, tuple[Callable[[], object], int]] = {
            "cached, float32": (lambda: engine(1, "float32", some), some.pixels),
            "cached, bfloat16": (lambda: engine(1, "bfloat16", some), some.pixels),
            "cached, core 5, float32": (lambda: engine(5, "float32", whole), whole.pixels),
            "cached, core 5, bfloat16": (lambda: engine(5, "bfloat16", whole), whole.pixels),
            "loop, float32": (lambda: by_loop(made[1], guided, corner), corner.pixels),
            "loop, core 5, float32": (lambda: by_loop(made[5], guided, corner), corner.pixels),
            "per patch, float32": (lambda: by_patch(made[1], scene, denoiser, few), few.pixels),
        }
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(options.repeats):
            for name, (job, pixels) in jobs.items():
                times[name].append(seconds(job) / pixels)
        each = {name: statistics.median(values) for name, values in times.items()}
        for name, value in each.items():
            print(f"{name:28s} {1 / value:8.0f} px/s")
        each = {name: value + (once / side**2 if "cached" in name else 0) for name, value in each.items()}
        for slow, quick in (
            ("per patch, float32", "cached, float32"),
            ("per patch, float32", "cached, core 5, float32"),
            ("loop, float32", "cached, float32"),
            ("loop, float32", "cached, bfloat16"),
            ("loop, core 5, float32", "cached, core 5, float32"),
            ("loop, core 5, float32", "cached, core 5, bfloat16"),
        ):
            print(f"{quick} against {slow}, the features' own time included: {each[slow] / each[quick]:.1f} x")


def classification(options: argparse.Namespace) -> Callable[[str], None]:
    """One training step of the guided network."""
    torch.manual_seed(0)
    widths = (options.base, 2 * options.base, 2 * options.base)
    modalities = {name: Modality(bands) for name, bands in BANDS.items()}
    modalities |= {f"diffusion_{i}": Modality(len(TIMESTEPS) * w) for i, w in enumerate(widths, start=1)}
    config = Bdgf.Settings(width=options.width, embedding=2 * options.width, heads=options.width // 16)
    model = Bdgf(modalities, CLASSES, config)
    print(f"parameters of the network: {sum(p.numel() for p in model.parameters()):,}", file=sys.stderr)
    model.to(options.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4)
    images = {
        n: torch.randn(64, m.channels, 11, 11, device=options.device).contiguous(memory_format=torch.channels_last)
        for n, m in modalities.items()
    }
    target = torch.randint(CLASSES, (64, 1, 1), dtype=torch.uint8, device=options.device)

    def step(precision: str) -> None:
        optimiser.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model.loss(images, target)["loss"]
        loss.backward()
        optimiser.step()

    return step


def pretraining(options: argparse.Namespace) -> Callable[[str], None]:
    """Four steps of the denoiser."""
    scene = simulate_flat(options.side, options.side, BANDS, seed=0)
    maps = own_maps([scene], [np.ones((options.side, options.side), dtype=bool)], list(BANDS))
    settings = PretrainSettings(base=options.base, balance={"warmup": 0})
    crops = Crops(Store([scene], maps, 64, 1 << 40), settings.crop)
    denoiser = TrainedDenoiser.untrained(maps, dict.fromkeys(BANDS, 1), options.base)
    print(f"parameters of the denoiser: {sum(p.numel() for p in denoiser.network.parameters()):,}", file=sys.stderr)
    made: dict[str, Denoising] = {}

    def steps(precision: str) -> None:
        if precision not in made:
            own = settings.model_copy(update={"precision": precision})
            made[precision] = Denoising(denoiser, own, crops, options.device)
        for _ in range(PARTS["pretraining"]):
            made[precision].step()

    return steps


PARTS = {"classification": 1, "pretraining": 4}
"""Steps that each call takes."""

MAKERS = {"classification": classification, "pretraining": pretraining}


def training(what: str, options: argparse.Namespace) -> None:
    """Prints time, fraction of the scan, and memory of a step."""
    step = MAKERS[what](options)
    on_gpu = options.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for turn in range(options.repeats + 1):
        for precision, values in times.items():
            start = clock()
            step(precision)
            if on_gpu:
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                values.append((clock() - start) / PARTS[what])
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for precision, values in times.items():
        with profile(activities=activities) as profiled:
            step(precision)
        events = profiled.key_averages()
        own = [(e.key, e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in events]
        inside = ("scan", "_forward_kernel", "_backward_kernel") if on_gpu else ("selective_scan",)
        fraction = sum(t for key, t in own if any(word in key for word in inside)) / sum(t for _, t in own)
        command = [sys.executable, __file__, "--one", what, precision, "--width", str(options.width)]
        command += ["--base", str(options.base), "--device", options.device]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        each = f"{1e3 * statistics.median(values):6.0f} ms per step"
        print(f"{what}, {precision:9s} {each}, scan {fraction:.0%}, peak {peak}")


def one(what: str, precision: str, options: argparse.Namespace) -> None:
    """Prints the peak memory of two calls, above what there was before."""
    step = MAKERS[what](options)
    if options.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far; Linux only
        before = resident("VmRSS")
    step(precision)
    step(precision)
    after = torch.cuda.max_memory_allocated() if options.device == "cuda" else resident("VmHWM")
    print(f"{(after - before) / 2**20:.0f} MiB")


def resident(key: str) -> int:
    """Bytes, of the kernel's status of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--base", type=int, default=64)
    parser.add_argument("--side", type=int, default=160, help="of the scene, px; full batches at 32 n and 160 n")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the training steps")
    parser.add_argument("--only", choices=["mapping", *MAKERS])
    parser.add_argument("--one", nargs=2, metavar=("STEP", "PRECISION"), help="memory of a step, in this process")
    options = parser.parse_args()
    if options.one:
        one(*options.one, options)
        return
    for what in MAKERS:
        if options.only in (None, what):
            training(what, options)
    if options.only in (None, "mapping"):
        mapping(options)


if __name__ == "__main__":
    main()
