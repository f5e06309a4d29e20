"""What the features of denoisers are worth: how far they depend on each modality, and what a linear probe makes of them
with few labels, with every modality and with one withheld from the scene that it maps.

    python benchmarks/few_labels/denoisers.py terramind runs/gamma-1 runs/swap --labels 10 --draws 10

Each argument is a run, or a denoiser's folder. The probe is `logistic` on the features of single pixels, fitted with
all modalities; OA on the test blocks, mean ± standard deviation over the draws of `run.py`.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from run import PROBE, SCENES, Place, scored

from landfuse.diffusion.balance import Probe, swap_scores
from landfuse.diffusion.crops import Crops
from landfuse.models.base import Modality
from landfuse.models.pixel_models import Logistic, Pixels
from landfuse.rasters.arrays import ArrayRaster
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.scenes.split_rules import TRAIN
from landfuse.views.store import Store


def without(scene: Scene, name: str) -> Scene:
    """The scene, with no data in one modality."""
    known = scene.modalities[name]
    nothing = np.full((known.raster.bands, known.raster.grid.height, known.raster.grid.width), np.nan, np.float32)
    raster = ArrayRaster(nothing, "CHW", known.raster.grid, name)
    return scene.with_modalities({name: SceneModality(raster, units=known.units, zoom=known.zoom)})


def dependence(place: Place) -> dict[str, float]:
    """D of each modality on 64 crops, see `diffusion/balance.py`."""
    denoiser = place.trained()
    crops = Crops(Store(place.scenes, denoiser.maps, 32, 4 << 30), 32)
    images, missing = denoiser.images(crops.draw((0, 5), 64, False))
    noise = {n: torch.randn(i.shape, generator=torch.Generator().manual_seed(0)) for n, i in images.items()}
    return swap_scores(Probe(denoiser.network, images, missing, noise))


def accuracies(place: Place, seen: list[NDArray[np.float32]], other: list[NDArray[np.float32]],
               labels: int, draws: int) -> list[float]:  # fmt: skip
    """OA by draw of a probe that learns from `seen` and maps `other`."""
    found = []
    for draw in range(draws):
        roles = place.drawn(labels, draw)
        x = np.concatenate([own[role == TRAIN] for own, role in zip(seen, roles, strict=True)])
        y = np.concatenate([scene.labels[role == TRAIN] for scene, role in zip(place.scenes, roles, strict=True)])
        model = Logistic({"diffusion_1": Modality(x.shape[1])}, len(place.file.legend), **PROBE)
        found.append(scored(place, model, Pixels(x, y), other, roles).scores()["OA"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("denoisers", nargs="+", type=Path)
    parser.add_argument("--labels", type=int, default=10, help="per class")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--shown", action="store_true", help="only with every modality")
    options = parser.parse_args()
    names = () if options.shown else SCENES[options.scene]
    print(f"| denoiser | D, {' / '.join(SCENES[options.scene])} | OA | {' | '.join(f'without {n}' for n in names)} |")
    print("|---|---|---|" + "---|" * len(names))
    for path in options.denoisers:
        place = Place(options.scene, path)
        seen = place.features((), True)
        cells = []
        for name in ("", *names):
            own = Place(options.scene, path)
            own.scenes = [without(scene, name) for scene in place.scenes] if name else place.scenes
            other = own.features((), True) if name else seen
            oa = accuracies(place, seen, other, options.labels, options.draws)
            cells.append(f"{statistics.mean(oa):.3f} ± {statistics.stdev(oa):.3f}")
        print(
            f"| {path} | {' / '.join(f'{d:.2f}' for d in dependence(place).values())} | {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
