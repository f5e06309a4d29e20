"""The features that a trained denoiser gives of a scene; see `tiles`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from landfuse.diffusion.settings import FeatureSettings
from landfuse.diffusion.tiles import FeatureRaster, features_of
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.scenes.scene import Scene, SceneModality


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
        return features_of(self.denoiser, self.settings, scene)


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
