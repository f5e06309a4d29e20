"""A linear classifier of a denoiser's features: how much of the classes they hold, while the denoiser is trained."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.settings import FACTORS, FeatureSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser
from landfuse.legend import UNLABELLED
from landfuse.scenes.split_rules import TRAIN, VALIDATION
from landfuse.training.samples import Sample, Samples, WindowSampler
from landfuse.training.settings import SampleSettings
from landfuse.training.training_data import TrainingData
from landfuse.views.store import Store

_CROPS, _PIXELS = 256, 2000
"""Crops, enough to cover the scenes twice, and pixels of each role at most. Pixels of few crops are alike: on 64 crops
the probe fell while the features improved."""

_AT_ONCE = 16
"""Crops that the denoiser looks at together."""


class LinearProbe:
    """Logistic regression on the features of single pixels, fitted to training pixels and scored on validation pixels.

    Its crops, pixels and noise are drawn once, so that its scores can be compared from step to step. Test pixels are
    not looked at, and nothing is chosen by its scores.

    Args:
        store: the scenes, mapped by the denoiser's maps.
        side: of its crops, px.
    """

    def __init__(self, store: Store, data: TrainingData, side: int, seed: int) -> None:
        self.seed = seed
        covering = 2 * sum(scene.grid.window.pixels for scene in store.scenes) // side**2
        self.crops = min(_CROPS, max(_AT_ONCE, covering))
        self._parts = [self._drawn(Samples(store, data.targets(role), side, side)) for role in (TRAIN, VALIDATION)]

    @staticmethod
    def possible(data: TrainingData) -> bool:
        """Whether there are two classes to distinguish in training, and validation pixels to score."""
        return len(data.classes(TRAIN)) > 1 and data.has(VALIDATION)

    def _drawn(self, samples: Samples) -> tuple[Sample, Tensor]:
        """Crops, and which of their pixels count: (P, 3) crop, row and column."""
        settings = SampleSettings(batch=self.crops, windows=self.crops, augment=False, balanced=True)
        sample = samples[next(iter(WindowSampler(samples, settings, train=True, seed=self.seed)))]
        pixels = torch.nonzero(sample.target != UNLABELLED)
        chosen = np.random.default_rng(self.seed).permutation(len(pixels))[:_PIXELS]
        return sample, pixels[torch.as_tensor(np.sort(chosen))]

    def __call__(self, denoiser: TrainedDenoiser) -> dict[str, float]:
        """The fraction of training and of validation pixels that it labels correctly; none if one class was drawn."""
        (train, truth), (test, validation) = (self._features(denoiser, *part) for part in self._parts)
        if len(np.unique(truth)) < 2:
            return {}
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3, max_iter=2000)).fit(train, truth)
        return {
            "probe_training": float(probe.score(train, truth)),
            "probe_validation": float(probe.score(test, validation)),
        }

    @torch.inference_mode()
    def _features(
        self, denoiser: TrainedDenoiser, sample: Sample, pixels: Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        network, generator = denoiser.network, torch.Generator().manual_seed(self.seed)
        device, rows = network.alpha.device, []
        for start in range(0, len(sample.target), _AT_ONCE):
            views = {name: view[start : start + _AT_ONCE] for name, view in sample.images.items()}
            images, missing = ({n: v.to(device) for n, v in part.items()} for part in denoiser.images(views))
            noise = {name: torch.randn(image.shape, generator=generator).to(device) for name, image in images.items()}
            crop, row, col = pixels[(pixels[:, 0] >= start) & (pixels[:, 0] < start + _AT_ONCE)].T.to(device)
            found = []
            for timestep in FeatureSettings().timesteps:
                times = torch.full((len(next(iter(views.values()))),), timestep, device=device)
                noisy = {name: add_noise(image, noise[name], network.alpha[times]) for name, image in images.items()}
                levels = network.levels(noisy, missing, times)
                for factor, level in zip(FACTORS.values(), levels, strict=True):
                    found.append(level[crop - start, :, row // factor, col // factor])
            rows.append(torch.cat(found, dim=1).float().cpu())
        return torch.cat(rows).numpy(), sample.target[tuple(pixels.T)].numpy()
