"""What REF-Net's parts see: the energy of shared, differing and fused features on one tile, beside its modalities.

    python benchmarks/refnet_parts.py runs/terramind-refnet/bundle benchmarks/terramind --tile 433D_629L_3_1
        [--strides 4 8] [--out parts.png]

Energy is the root of the mean square over a feature's channels, shown from its 2nd (dark) to its 98th percentile in the
tile. With two modalities both have the same differing features; with more, each has its own. The network sees the whole
tile at once, whatever its view was in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from landfuse.bundles.bundle_files import load_bundle
from landfuse.figures.figures import class_image, map_figure, save
from landfuse.figures.overview import overview
from landfuse.models.refnet import RefNet
from landfuse.rasters.windows import Window
from landfuse.scenes.scene_file import read_scene_file

STRIDES = (32, 16, 8, 4, 2)  # as `RefNet.parts` gives them


def energy(features: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(1, D, h, w) -> (H, W, 3)."""
    values = features.square().mean(1, keepdim=True).sqrt()
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98]))
    shown = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) * 255
    grey = F.interpolate(shown, size=size, mode="nearest")[0, 0].to(torch.uint8).numpy()
    return np.repeat(grey[:, :, None], 3, axis=2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("scene", type=Path, help="a scene file, or a folder that holds scene.yaml")
    arguments.add_argument("--tile", help="by default the first")
    arguments.add_argument("--strides", type=int, nargs="*", default=[4, 8], choices=STRIDES)
    arguments.add_argument("--out", type=Path, default=Path("refnet_parts.png"))
    chosen = arguments.parse_args()
    classifier = load_bundle(chosen.bundle).eval()
    model = classifier.model
    if not isinstance(model, RefNet):
        raise SystemExit(f"{chosen.bundle} holds no REF-Net")
    scenes = read_scene_file(chosen.scene).scenes()
    scene = next((s for s in scenes if chosen.tile in (None, s.name)), None)
    if scene is None:
        raise SystemExit(f"there is no tile {chosen.tile}; there are {', '.join(s.name for s in scenes)}")
    size = (scene.grid.height, scene.grid.width)
    window = Window(0, 0, *size)
    mapped = {
        name: pixel_map(torch.from_numpy(scene.read(name, window)).permute(1, 2, 0)).permute(2, 0, 1)[None]
        for name, pixel_map in classifier.maps.items()
    }
    with torch.no_grad():
        parts = dict(zip(STRIDES, model.parts(mapped), strict=True))
    images = {name: overview(scene, name).on_white for name in mapped}
    images["labels"] = class_image(scene.labels, scene.legend)
    for stride in chosen.strides:
        part = parts[stride]
        found = {"shared": part.shared, "differing": part.differing, "fused": part.fused}
        if len(mapped) > 2:
            found |= {f"differing, {n}": d for n, d in zip(mapped, part.differing_by_modality, strict=False)}
        images |= {f"{n}, stride {stride}": energy(f, size) for n, f in found.items() if f is not None}
    save(map_figure(images, scene.legend, [scene.labels]), chosen.out)


if __name__ == "__main__":
    main()
