"""Classifiers and scenes of GeoTIFFs that mapping and property P1 are measured on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from device import Device
from landfuse_parts import (
    Bundle,
    DiffusionFeatures,
    FeatureSettings,
    ModelSpec,
    PixelMap,
    Scene,
    TrainedDenoiser,
    Window,
    read_mapped_pixels,
)
from speed_parts import place

MODELS = ("two_branch", "bdgf", "refnet")
GUIDED = "bdgf with diffusion features"
BASE, DRY_BASE = 2048, 128  # px, side of the written files


def placed(model: str, side: int, folder: Path, device: Device) -> tuple[Bundle, Scene]:
    """An untrained classifier of always the same weights, and a scene of a side."""
    if model == "refnet":
        small = {"view": 64, "core": 48, "encoder": "resnet18", "width": 32}
        spec = ModelSpec(model, small if device.dry else {"view": 256, "core": 224, "encoder": "resnet18"})
        stride = 40 if device.dry else 192
    else:
        small = {"width": 16, "embedding": 32, "heads": 1} if device.dry and model != "two_branch" else {}
        spec, stride = ModelSpec(model.split()[0], {"view": 11, **small}), None
    bundle, scene = place(spec, side, folder, stride, DRY_BASE if device.dry else BASE)
    return (guided(bundle, scene, folder, device) if model == GUIDED else bundle), scene


def guided(bundle: Bundle, scene: Scene, folder: Path, device: Device) -> Bundle:
    """The same with features of an untrained denoiser, which are computed once more for each scene."""
    settings = {"tile": 32, "overlap": 8} if device.dry else {}
    denoiser = TrainedDenoiser.untrained(bundle.maps, dict.fromkeys(bundle.maps, 1), 8 if device.dry else 32)
    features = DiffusionFeatures(denoiser, FeatureSettings(cache=tempfile.mkdtemp(dir=folder), **settings))
    added = features.of(scene)
    counts = {name: modality.info.bands for name, modality in added.items()}
    maps = bundle.maps | {name: PixelMap(torch.ones(count), torch.zeros(count)) for name, count in counts.items()}
    whole = scene.with_modalities(added)
    inputs = {name: whole.modalities[name].info for name in maps}
    return Bundle(bundle.spec, maps, inputs, bundle.legend, features=features).eval()


def windows_of(
    classifier: Bundle, scene: Scene, rows: torch.Tensor, columns: torch.Tensor, device: Device
) -> dict[str, torch.Tensor]:
    """Views at these places of the scene's first 512 px, on the device."""
    side = min(scene.grid.height, 512)
    mapped = read_mapped_pixels(classifier.with_features(scene), Window(0, 0, side, side), classifier.maps)
    views = mapped.views(rows, columns, classifier.model.view)
    return {name: image.to(device.name) for name, image in views.items()}


@torch.no_grad()
def settle(classifier: Bundle, scene: Scene, device: Device) -> None:
    """Gives random weights a map of several classes: batch norm sees the scene, and the heads' means become 0."""
    model, view = classifier.model.to(device.name), classifier.model.view
    chance = torch.Generator().manual_seed(0)
    count = (4 if view >= 64 else 32) if device.dry else 8 if view >= 64 else 256
    most = max(1, min(scene.grid.height, 512) - view)

    def images() -> dict[str, torch.Tensor]:
        rows, columns = (torch.randint(0, most, (count,), generator=chance) for _ in range(2))
        return windows_of(classifier, scene, rows, columns, device)

    seen = images()
    model.train()
    for _ in range(4):
        model(images())
    model.eval()
    if classifier.spec.name == "bdgf":
        scores = model.scores(seen)
        for name, logits in zip(model.names, scores.branches, strict=True):
            model.heads[name].bias -= logits.mean((0, 1))
        model.final[-1].bias -= scores.final.mean((0, 1))
    else:
        head = model.head if classifier.spec.name == "refnet" else model.head[-1]
        head.bias -= model(seen).float().mean((0, 2, 3))
    classifier.eval()
