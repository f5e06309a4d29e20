"""The noise of a diffusion model: its schedule, noised images, and how well the noise of a Gaussian can be estimated.

Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equation 4 (x_t from x_0);
Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672, equation 17 (cosine
schedule).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landfuse.diffusion.settings import STEPS


def signal_alpha(steps: int = STEPS) -> Tensor:
    """What fraction of the variance is still the image's at each timestep, under the cosine schedule: (steps,) float32.

    It is computed step by step with the noise of a step limited to 0.999, as the paper does; the last values are
    therefore small instead of 0.
    """

    def left(t: float) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = [max(left(t + 1) / left(t), 0.001) for t in range(steps)]
    return torch.tensor(kept, dtype=torch.float64).cumprod(0).to(torch.float32)


def add_noise(images: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) e.

    Args:
        images: x_0, (B, C, H, W).
        noise: e, standard normal, of one shape with `images`.
        alpha: a, the signal's fraction of the variance, (B,).

    Returns:
        (B, C, H, W).
    """
    a = alpha.view(-1, 1, 1, 1)
    return a.sqrt() * images + (1 - a).sqrt() * noise


def wiener_bound(alpha: Tensor, variance: Tensor | float) -> Tensor:
    """The least mean squared error with which noise can be estimated if pixels were independent Gaussians.

    a s² / (a s² + 1 - a): 0 where all is noise, 1 where there is none. A denoiser that knows how pixels and bands
    hang together goes below it.

    Args:
        alpha: a, any shape.
        variance: s² of the image.
    """
    signal = alpha * variance
    return signal / (signal + 1 - alpha)
