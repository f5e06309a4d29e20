"""Mapping GeoTIFFs: pixels per second, beside forward passes alone, and how busy the GPU is meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from device import Device
from landfuse_parts import (
    STEPS_OF_MAPPING,
    Bundle,
    Engine,
    Scene,
    TorchPredictor,
    Window,
    map_blocks,
    map_options,
    predict,
)
from record import Record
from scenes_to_map import GUIDED, MODELS, placed, windows_of

PART = "mapping"
NOT_ON_A_CPU = "how busy the GPU is, bfloat16, and scenes of full size"
SIDES = {"two_branch": 1024, "bdgf": 512, GUIDED: 512, "refnet": 2048}
DRY_SIDES = {"two_branch": 16, "bdgf": 8, GUIDED: 8, "refnet": 72}
BATCHES = {"two_branch": (512, (512, 4096, 16384)), "bdgf": (256, (512, 2048)), "refnet": (1024, (1, 8))}
"""Model -> side of the scene, and windows per forward pass."""


class Clock:
    """Seconds inside the steps of mapping, over all threads, and GPU seconds inside forward passes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STEPS_OF_MAPPING, 0.0)
        self.events: list[list[torch.cuda.Event]] = []

    def _timed(self, step: str, function: object) -> object:
        def run(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[step] += time.perf_counter() - start

        return run

    def _between_events(self, function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            result = function(*arguments)
            pair[1].record()
            self.events.append(pair)
            return result

        return run

    @contextmanager
    def watching(self, device: Device) -> Iterator[None]:
        """Everything inside the `with` block is counted."""
        before = {step: getattr(*where) for step, where in STEPS_OF_MAPPING.items()}
        run = TorchPredictor._run
        if not device.dry:
            TorchPredictor._run = self._between_events(run)
        for step, (owner, attribute) in STEPS_OF_MAPPING.items():
            setattr(owner, attribute, self._timed(step, before[step]))
        try:
            yield
        finally:
            for step, (owner, attribute) in STEPS_OF_MAPPING.items():
                setattr(owner, attribute, before[step])
            TorchPredictor._run = run

    def busy(self, device: Device) -> float:
        device.wait()
        return sum(start.elapsed_time(end) for start, end in self.events) / 1e3


def bare_pass(classifier: Bundle, scene: Scene, precision: str, device: Device) -> tuple[float, Engine]:
    """Seconds of a forward pass of windows that lie on the GPU already, and the engine that says how many there are."""
    engine = Engine(classifier, scene, map_options({"device": device.name, "precision": precision}))
    places = torch.arange(engine.batch) % 7
    images = windows_of(classifier, scene, places, places, device)

    def run() -> None:
        half = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.name, torch.bfloat16, enabled=half):
            classifier.model(images)

    return device.milliseconds(run, 200) / 1e3, engine


def whole_map(record: Record, device: Device, model: str, side: int, precision: str, folder: Path) -> None:
    """Records a map from files to a file."""
    classifier, scene = placed(model, side, folder, device)
    each, engine = bare_pass(classifier, scene, precision, device)
    small = placed(model, min(side, 256 if model == "refnet" else 64), folder, device)[1]
    options = {"precision": precision, "device": device.name, "restart": True}
    predict(classifier, small, folder / "warm.tif", **options)
    clock = Clock()
    start = time.perf_counter()
    with clock.watching(device):
        predict(classifier, scene, folder / f"{model}.tif", **options)
        device.wait()
    took = time.perf_counter() - start
    passes = -(-engine.windows // engine.batch)
    record.add(
        PART,
        f"{model} {side} px {precision}",
        pixels_per_s=side * side / took,
        seconds=took,
        bare_passes_s=each * passes,
        times_bare_passes=took / (each * passes),
        gpu_busy=None if device.dry else clock.busy(device) / took,
        batch=engine.batch,
        steps_s=clock.seconds,
    )


def by_batch(record: Record, device: Device, model: str, side: int, size: int, precision: str, folder: Path) -> None:
    """Records mapping without files to write, by windows per forward pass."""
    classifier, scene = placed(model, side, folder, device)
    options = {"batch": size, "device": device.name, "precision": precision}
    list(map_blocks(classifier, scene, windows=[Window(0, 0, side // 4, side // 4)], **options))
    start = time.perf_counter()
    list(map_blocks(classifier, scene, block=side, **options))
    took = time.perf_counter() - start
    record.add(
        PART,
        f"{model} {side} px {precision}, no file written, batch {size}",
        pixels_per_s=side * side / took,
        seconds=took,
        batch=size,
    )


def measure(record: Record, device: Device, folder: Path) -> None:
    """Records whole maps, and the effect of the batch."""
    for precision in ("float32",) if device.dry else ("bfloat16", "float32"):
        for model in SIDES:
            side = (DRY_SIDES if device.dry else SIDES)[model]
            if precision == "float32" and not device.dry and model != "refnet":
                side //= 2
            with record.measurement(PART, f"{model} {side} px {precision}") as begun:
                if begun:
                    whole_map(record, device, model, side, precision, folder)
            device.release()
    half = "float32" if device.dry else "bfloat16"
    for model in MODELS:
        side, sizes = (DRY_SIDES[model], (2,) if model == "refnet" else (32,)) if device.dry else BATCHES[model]
        for size in sizes:
            with record.measurement(PART, f"{model} batch {size}") as begun:
                if begun:
                    by_batch(record, device, model, side, size, half, folder)
            device.release()
