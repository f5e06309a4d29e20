"""ONNX Runtime beside torch: the same maps by both on a CPU, in turns, and what smaller numbers lose.

    OMP_NUM_THREADS=1 python benchmarks/speed/onnx_runtime.py [two_branch refnet ...] [--repeats 3] [--smaller]
    OMP_NUM_THREADS=1 python benchmarks/speed/onnx_runtime.py runs/NAME ...    of a run, the first tile of its scene

Networks are untrained, which costs as much; forest, boosted trees and logistic regression learn from the scene. Seconds
are medians of all threads' processor time, which a busy machine changes less than the clock. `--smaller` also writes
the file in int8 (weights of matrix products) and in float16, by ONNX Runtime's own tools, and compares their maps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.bundles.onnx_model import OnnxModel
from landfuse.interop.onnx_export import write_onnx
from landfuse.legend import UNLABELLED
from landfuse.mapping.engine import map_blocks
from landfuse.models.base import DirectFit
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file
from landfuse.simulate.scene import simulate_flat
from landfuse.training.run import read_run
from landfuse.views.mapped_pixels import fit_pixel_maps, read_mapped_pixels
from landfuse.views.settings import PixelMapSettings

BANDS = {"s2": 12, "s1": 2}

VIT = {"embed_dim": 192, "depth": 6, "num_heads": 3}

MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "forest": (128, {"trees": 100}),
    "boosted": (128, {"rounds": 50}),
    "logistic": (256, {}),
    "two_branch": (32, {"view": 11}),
    "temporal": (48, {"view": 7}),
    "bdgf": (24, {"view": 11}),
    "stacked": (256, {"architecture": "Unet", "encoder": "resnet18", "view": 256}),
    "refnet": (128, {"view": 128, "encoder": "resnet18", "width": 48}),
    "mfnet": (256, {"view": 256, "weights": "random", "encoder_options": VIT}),
}
"""Side of the scene, px, and settings."""


def built(name: str) -> tuple[Bundle, Scene]:
    if name not in MODELS:  # a run's folder: its model, and the first tile of its scene
        recipe = read_run(name).recipe
        scene, *_ = read_scene_file(recipe["scene"]).scenes(recipe.get("modalities"))
        return load_bundle(name), scene
    side, settings = MODELS[name]
    scene = simulate_flat(side, side, BANDS, seed=1)
    infos = {one: part.info for one, part in scene.modalities.items()}
    every = [np.ones((side, side), bool)]
    maps = fit_pixel_maps([scene], every, dict.fromkeys(BANDS, PixelMapSettings()))
    torch.manual_seed(0)
    made = Bundle(ModelSpec(name, settings), maps, infos, scene.legend)
    if isinstance(made.model, DirectFit):
        window = scene.grid.window.padded(made.model.halo)
        pixels = read_mapped_pixels(scene, window, maps, marks_missing=made.model.marks_missing)
        images = {one: table.T.reshape(1, -1, window.height, window.width) for one, table in pixels.tables.items()}
        made.model.fit([(images, torch.from_numpy(scene.labels)[None])], seed=0)
    return made.eval(), scene


def logits_of(model: Any, scene: Scene) -> np.ndarray:
    parts = map_blocks(model, scene, block=512)
    return np.concatenate([part.logits[:, part.classes != UNLABELLED] for part in parts], axis=1)


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def compared(found: np.ndarray, wanted: np.ndarray) -> str:
    same = (found.argmax(axis=0) == wanted.argmax(axis=0)).mean()
    apart, largest = np.abs(found - wanted).max(), np.abs(wanted).max()
    return f"logits within {apart:.1e} (largest {largest:.1f}), classes {same:.3%} equal"


def smaller(path: Path) -> dict[str, Path]:
    """The file in int8 and in float16; pixel maps stay in float32, for raw values are large."""
    int8, float16 = path.with_suffix(".int8.onnx"), path.with_suffix(".float16.onnx")
    quantize_dynamic(path, int8, op_types_to_quantize=["MatMul", "Gemm"])
    model = onnx.load(path)
    kept = [node.name for node in model.graph.node if node.name.startswith("pixel_map")]
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept), float16)
    return {"int8": int8, "float16": float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smaller", action="store_true")
    options = parser.parse_args()
    for name in options.models:
        bundle, scene = built(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            spent = seconds(lambda bundle=bundle, path=path: write_onnx(bundle, path))
            models = {"torch": bundle, "onnx": OnnxModel(path)}
            maps = {one: logits_of(model, scene) for one, model in models.items()}  # also warms up
            times: dict[str, list[float]] = {one: [] for one in models}
            for _ in range(options.repeats):
                for one, model in models.items():
                    times[one].append(seconds(lambda model=model, scene=scene: logits_of(model, scene)))
            size = path.stat().st_size
            torch_s, onnx_s = (statistics.median(times[one]) for one in ("torch", "onnx"))
            print(
                f"{name}: torch {torch_s:.2f} s, ONNX Runtime {onnx_s:.2f} s, {torch_s / onnx_s:.2f} times as fast; "
                f"{compared(maps['onnx'], maps['torch'])}; {size / 1e6:.2f} MB, written in {spent:.0f} s",
                flush=True,
            )
            for kind, file in smaller(path).items() if options.smaller else ():
                try:
                    begun = time.process_time()
                    found = logits_of(OnnxModel(file), scene)
                    spent = time.process_time() - begun
                    size = file.stat().st_size
                    print(f"  {kind}: {spent:.2f} s, {compared(found, maps['torch'])}; {size / 1e6:.2f} MB", flush=True)
                except Exception as error:
                    print(f"  {kind}: {str(error).splitlines()[0][:200]}", flush=True)


if __name__ == "__main__":
    main()
