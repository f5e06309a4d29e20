"""How fast and how small mapping is: the engine around a model that costs almost nothing.

    python benchmarks/speed/mapping.py [--sides 4096 8192] [--folder /tmp/landfuse-speed]

Writes simulated scenes of 12 + 2 bands as GeoTIFFs, then times, each in a process of its own and in turns: reading and
writing alone, computing alone (the same forward passes on blocks that are in memory already), and `predict`. Tells the
ratio of `predict` to the larger of the two, and the peak resident memory of each size.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landfuse.classifier import Classifier, ModelSpec, note
from landfuse.layers.pixel_map import PixelMap
from landfuse.legend import LandClass, Legend
from landfuse.models import MODELS
from landfuse.models.base import FusionModel
from landfuse.patchwork import read_patchwork
from landfuse.predict import map_blocks, predict
from landfuse.scenes.geotiff import GdalRaster
from landfuse.scenes.geotiff_writer import GeotiffWriter
from landfuse.scenes.grid import Window, blocks
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.scenes.simulate import simulate_flat
from landfuse.settings import Settings

BANDS = {"s2": 12, "s1": 2}
BLOCK = 512


class Averages(FusionModel):
    """Averages its view: every pixel of it counts, and it costs almost nothing."""

    Settings = Settings

    def __init__(self, modalities, classes, config):
        super().__init__(modalities, classes, view=160, core=128)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        mean = sum(image.mean(dim=(1, 2, 3)) for image in images.values())
        shifts = torch.arange(self.classes, dtype=torch.float32)
        scores = torch.cos(mean[:, None] * 3 + shifts)
        return scores[:, :, None, None].expand(-1, -1, self.core, self.core)


MODELS["averages"] = Averages


def write_scene(side: int, folder: Path) -> None:
    """Writes the scene once, as 16-bit numbers in deflated tiles, as data portals give them."""
    scene = simulate_flat(side, side, BANDS, seed=1)
    for name, bands in BANDS.items():
        path = folder / f"{name}-{side}.tif"
        if path.exists():
            continue
        with GeotiffWriter(path, scene.grid, bands=bands, dtype="int16", nodata=None, scale=1e-3) as file:
            for block in blocks(side, side, BLOCK):
                file.write(block, np.rint(scene.read(name, block) * 1000).astype(np.int16))


def open_side(side: int, folder: Path) -> tuple[Scene, Classifier]:
    rasters = {name: GdalRaster(str(folder / f"{name}-{side}.tif")) for name in BANDS}
    legend = Legend(tuple(LandClass(f"c{i}", i, "#112233") for i in range(6)))
    scene = Scene("flat", rasters["s2"].grid, {n: SceneModality(r) for n, r in rasters.items()}, legend)
    maps = {name: PixelMap(torch.ones(bands), torch.zeros(bands)) for name, bands in BANDS.items()}
    classifier = Classifier(ModelSpec("averages"), maps, {name: note(scene, name) for name in BANDS}, legend)
    return scene, classifier


def one(what: str, side: int, folder: Path) -> dict[str, float]:
    scene, classifier = open_side(side, folder)
    halo = classifier.model.halo
    start = time.perf_counter()
    if what == "files":
        with GeotiffWriter(folder / "out-files.tif", scene.grid, legend=classifier.legend) as file:
            for block in blocks(side, side, BLOCK):
                read_patchwork(scene, block.padded(halo), classifier.maps)
                file.write(block, np.zeros((block.height, block.width), np.uint8))
    elif what == "compute":
        # One block in memory serves for all: the forward passes are the same.
        small = Scene("small", scene.grid.part(Window(0, 0, BLOCK, BLOCK)), scene.modalities, scene.legend)
        count = len(list(blocks(side, side, BLOCK)))
        held = read_patchwork(small, small.grid.window.padded(halo), classifier.maps)
        import landfuse.predict as engine

        engine.read_patchwork = lambda *_: held  # type: ignore[assignment]
        start = time.perf_counter()
        for _ in range(count):
            for _part in map_blocks(classifier, small, block=BLOCK, batch=16):
                pass
    else:
        predict(classifier, scene, folder / "out.tif", block=BLOCK, batch=16)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/landfuse-speed"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]), options.folder)))
        return
    for side in options.sides:
        write_scene(side, options.folder)
        found: dict[str, list[dict[str, float]]] = {"files": [], "compute": [], "predict": []}
        for _ in range(options.repeats):
            for what, results in found.items():
                command = [sys.executable, __file__, "--folder", str(options.folder), "--one", what, str(side)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
        seconds = {what: statistics.median(r["seconds"] for r in results) for what, results in found.items()}
        peak = {what: max(r["peak"] for r in results) for what, results in found.items()}
        ratio = seconds["predict"] / max(seconds["files"], seconds["compute"])
        print(
            f"{side} x {side}: files {seconds['files']:.1f} s, compute {seconds['compute']:.1f} s, predict "
            f"{seconds['predict']:.1f} s = {ratio:.2f} x the larger; "
            f"{side * side / seconds['predict'] / 1e6:.1f} Mpx/s; "
            f"peak memory of predict {peak['predict']:.2f} GiB"
        )


if __name__ == "__main__":
    main()
