"""A trained denoiser run by PyTorch, and its features of a scene; see `tiles`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.tiles import FeatureRaster, features_of, noise_of
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.kernels.gpu import default_device, gpu_kernels
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.views.mapped_pixels import read_mapped_pixels


@dataclass(frozen=True)
class DiffusionFeatures:
    """A denoiser, and which of its features a model gets as further modalities."""

    denoiser: TrainedDenoiser
    settings: FeatureSettings

    @property
    def nbytes(self) -> int:
        """Bytes that computing a tile takes, with the weights; as measured, 20 numbers per pixel and feature."""
        network = self.denoiser.network
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        return weights + 4 * 20 * network.base * self.settings.tile**2

    def of(self, scene: Scene) -> dict[str, SceneModality]:
        """The features of a scene as modalities; errors as `features_of`."""
        return features_of(TorchDenoising(self.denoiser), self.settings, scene)


@dataclass(frozen=True)
class TorchDenoising:
    """A `Denoising`."""

    denoiser: TrainedDenoiser

    @property
    def inputs(self) -> dict[str, tuple[int, int]]:
        """Name -> bands and zoom."""
        return self.denoiser.inputs

    @property
    def widths(self) -> tuple[int, int, int]:
        """Features of the levels, fine to deep."""
        return self.denoiser.network.widths

    @cached_property
    def digest(self) -> str:
        """That of the denoiser."""
        return self.denoiser.digest

    def levels(
        self, scene: Scene, window: Window, settings: FeatureSettings
    ) -> Iterator[tuple[Sequence[NDArray[np.float32]], NDArray[np.bool_]]]:
        """See `Denoising.levels`."""
        device = default_device()
        network = self.denoiser.network.to(device).eval()
        mapped = read_mapped_pixels(scene, window, self.denoiser.maps)
        views = {
            name: table.T.reshape(1, -1, window.height * mapped.zooms[name], window.width * mapped.zooms[name])
            for name, table in mapped.tables.items()
        }
        with torch.inference_mode():
            images, missing = self.denoiser.images(views)
            nothing = (torch.stack(list(missing.values())).amin(dim=0)[0, 0] == 1).numpy()
            noise = noise_of(settings.seed, network.channels, window)
            alpha, dark = network.alpha.cpu(), {name: mask.to(device) for name, mask in missing.items()}
        for timestep in settings.timesteps:
            with torch.inference_mode(), gpu_kernels(device, tf32=False, same=True):
                noisy = {
                    name: add_noise(image, torch.from_numpy(noise[name]), alpha[timestep][None]).to(device)
                    for name, image in images.items()
                }
                levels = network.levels(noisy, dark, torch.tensor([timestep], device=device))
            yield [level[0].cpu().numpy() for level in levels], nothing


def compute_features(
    scenes: Sequence[Scene], *, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Computes all features of scenes that are to be read many times, where they can be kept.

    Args:
        scenes: with features among their modalities.
        progress: called with (tiles done, in all).
    """
    rasters = [part.raster for scene in scenes for part in scene.modalities.values()]
    found = [raster.tiles for raster in rasters if isinstance(raster, FeatureRaster)]
    jobs = [(tiles, place) for tiles in dict.fromkeys(found) if tiles.folder is not None for place in tiles.places()]
    missing = [(tiles, place) for tiles, place in jobs if not tiles.has(place)]
    for number, (tiles, place) in enumerate(missing):
        progress(number, len(missing))
        tiles.level(place, 0)
