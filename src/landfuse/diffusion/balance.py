"""Which modality a joint denoiser depends on, and how masking or swapping modalities evens that out; without labels.

`paper`: masking whole modalities, from sections D.3 and A.3 of our specification of Liu et al. 2025, "Balanced
Diffusion-Guided Fusion for Multimodal Remote Sensing Classification", arXiv 2509.23310 (the paper names adaptive
modality masking; the formulas are ours). Weighting losses by their relative progress follows Kendall et al. 2018,
"Multi-Task Learning Using Uncertainty to Weigh Losses", arXiv 1705.07115. `swap` is ours: where whole modalities are
masked, a long training leaves the features less even than it finds them (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from landfuse.diffusion.denoiser import Denoiser
from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.settings import BalanceSettings

SHOWN = 0.3
"""Fraction of the samples in which nothing is masked, at least."""

_MOST, _KAPPA = 0.6, 2.0
"""A modality is masked in at most this fraction of the samples, and how sharply that follows the scores."""

_PROGRESS = 0.5
"""The loss of a modality is weighted by (its running mean) ^ -0.5: small losses count nearly as much as large ones."""

EVENNESS = 0.1
"""Weight of the swap loss: evenness * loss * the variance over the modalities of ln D is added to the loss."""

_SMOOTHING = 0.8

_FARTHEST = math.log(8) / 2
"""Two loss weights move apart by a factor of 8 at most."""

_PROBED = (100, 300)
"""Timesteps at which a denoiser is probed: one that still shows parts of an image, one that leaves its layout."""

_SWAP_EVERY, _SWAP_BELOW = 4, 500
"""Modalities are swapped in every fourth step, at timesteps below 500: above, features hold little of an image."""


class Probe:
    """A batch on which a denoiser is measured: the same crops and noise at every timestep, nothing masked.

    Args:
        images: name -> (B, C, H, W).
        missing: name -> (B, 1, H, W), 1 where a modality has no data.
        noise: name -> (B, C, H, W), standard normal.
    """

    def __init__(
        self,
        network: Denoiser,
        images: Mapping[str, Tensor],
        missing: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
    ) -> None:
        self.network, self.images, self.missing, self.noise = network, dict(images), dict(missing), dict(noise)
        first = next(iter(self.images.values()))
        self.size, self.device = len(first), first.device

    def noisy(self, images: Mapping[str, Tensor], timestep: Tensor) -> dict[str, Tensor]:
        """Images with the probe's noise, as much as at (B,) timesteps."""
        alpha = self.network.alpha[timestep]
        return {name: add_noise(image, self.noise[name], alpha) for name, image in images.items()}

    def times(self, timestep: int) -> Tensor:
        """The probe's timesteps, (B,), where all are one."""
        return torch.full((self.size,), timestep, device=self.device)


def answers(probe: Probe, timestep: Tensor) -> dict[str, Tensor]:
    """How far the features depend on each modality: 0 not at all, 1 as much as on everything; with gradients.

    D_m = mean over levels of |F(x) - F(x with m of another crop)|^2 / (2 Var F), with the noise left in its place.

    Args:
        probe: what is swapped in, crop by crop.
        timestep: (B,).
    """

    def levels(images: Mapping[str, Tensor]) -> list[Tensor]:
        found = probe.network.levels(probe.noisy(images, timestep), probe.missing, timestep)
        return [level.float() for level in found]

    own = levels(probe.images)
    spread = [2 * level.var(dim=(0, 2, 3)).sum().clamp(min=1e-12) for level in own]
    found = {}
    for name, image in probe.images.items():
        swapped = levels({**probe.images, name: image.roll(1, dims=0)})
        changes = [(a - b).square().mean(dim=(0, 2, 3)).sum() / s for a, b, s in zip(own, swapped, spread, strict=True)]
        found[name] = torch.stack(changes).mean()
    return found


@torch.no_grad()
def swap_scores(probe: Probe) -> dict[str, float]:
    """D of each modality, see `answers`, over the probed timesteps."""
    scores = dict.fromkeys(probe.images, 0.0)
    for timestep in _PROBED:
        for name, score in answers(probe, probe.times(timestep)).items():
            scores[name] += float(score) / len(_PROBED)
    return scores


def masked_fractions(levels: Tensor) -> Tensor:
    """In which fraction of the samples each modality is masked: `_MOST` * sigmoid(kappa (l_m - mean l)).

    Args:
        levels: logarithms of the scores, (M,).
    """
    return _MOST * torch.sigmoid(_KAPPA * (levels - levels.mean()))


class ModalityBalance(nn.Module):
    """Masks modalities and weighs their losses by the measured scores. Its state is in its buffers.

    Args:
        channels: name -> C, all modalities.
        constant: those that never change; nothing can depend on them, and they are left out of the balance.
    """

    levels: Tensor
    log_weights: Tensor
    losses: Tensor
    probes: Tensor

    def __init__(self, channels: Mapping[str, int], settings: BalanceSettings, constant: Sequence[str] = ()) -> None:
        super().__init__()
        self.names, self.settings = tuple(channels), settings
        self.balanced = tuple(name for name in channels if name not in constant)
        size = [channels[name] ** settings.gamma for name in self.names]
        self.register_buffer("levels", torch.zeros(len(self.balanced)))
        self.register_buffer("log_weights", torch.tensor([math.log(s / sum(size)) for s in size]))
        self.register_buffer("losses", torch.zeros(len(self.names)))
        self.register_buffer("probes", torch.tensor(0))

    def loss_weights(self) -> Tensor:
        """The weight of each modality's loss, (M,); they sum to 1. Nothing waits for a GPU."""
        logits = self.log_weights.clone()
        places = [self.names.index(name) for name in self.balanced]
        if self.settings.kind != "none" and places:
            losses = self.losses[places].log()
            progress = (_PROGRESS * (losses.mean() - losses)).clamp(-_FARTHEST, _FARTHEST)
            logits[places] += torch.where(self.losses[places].all(), progress, 0.0)
        return logits.softmax(dim=0)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each modality's loss by its name."""
        return dict(zip(self.names, self.loss_weights().tolist(), strict=True))

    def swaps(self, step: int) -> bool:
        """Whether modalities are swapped in a step."""
        due = step >= self.settings.warmup and step % _SWAP_EVERY == 0
        return self.settings.kind == "swap" and len(self.balanced) > 1 and due

    def unevenness(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """The variance of ln D over the modalities at random timesteps, a scalar with gradients."""
        timestep = torch.randint(0, _SWAP_BELOW, (probe.size,), generator=generator).to(probe.device)
        found = answers(probe, timestep)
        return torch.stack([(found[name] + 1e-6).log() for name in self.balanced]).var(correction=0)

    def masked(self, step: int) -> dict[str, float]:
        """In which fraction of the samples each modality is masked at a step."""
        count = len(self.balanced)
        if self.settings.kind != "paper" or count < 2:
            values = torch.zeros(count)
        elif step < self.settings.warmup or not int(self.probes):
            values = torch.full((count,), _MOST / 2)
        else:
            values = masked_fractions(self.levels)
        # At most one modality is masked in a sample: the fractions must leave samples without any.
        values = values * min(1.0, (1 - SHOWN) / max(float(values.sum()), 1e-12))
        found = dict(zip(self.balanced, values.tolist(), strict=True))
        return {name: found.get(name, 0.0) for name in self.names}

    def add_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Updates the running means of the losses by those of a step."""
        now = torch.stack([losses[name].detach().float() for name in self.names])
        self.losses.copy_(torch.where(self.losses.any(), 0.98 * self.losses + 0.02 * now, now))

    def update(self, scores: Mapping[str, float]) -> None:
        """Updates the smoothed scores by those of a probe."""
        if len(self.balanced) < 2:
            return
        now = torch.tensor([math.log(scores[name] + 1e-6) for name in self.balanced], device=self.levels.device)
        self.levels.copy_(now if not int(self.probes) else _SMOOTHING * self.levels + (1 - _SMOOTHING) * now)
        self.probes += 1

    def draw_masks(self, step: int, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws which samples lack which modality: name -> (batch, 1, 1, 1), 1 where it is masked; never all."""
        fractions = torch.tensor(list(self.masked(step).values()))
        draw = torch.rand((batch, 1, 1, 1), generator=generator)
        upper = fractions.cumsum(0)
        return {
            name: ((draw < upper[i]) & (draw >= upper[i] - fractions[i])).to(torch.float32)
            for i, name in enumerate(self.names)
        }


def denoising_losses(
    network: Denoiser,
    images: Mapping[str, Tensor],
    missing: Mapping[str, Tensor],
    masked: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    timestep: Tensor,
) -> dict[str, Tensor]:
    """The loss of each modality: the mean squared error of its noise where it is shown.

    A mean over all pixels, so that what is masked also counts less for its own modality.

    Args:
        images: name -> (B, C, H, W).
        missing: name -> (B, 1, H, W), 1 where there is no data.
        masked: name -> (B, 1, 1, 1), 1 where it is masked.
        noise: name -> (B, C, H, W), standard normal.
        timestep: (B,).

    Returns:
        name -> scalar.
    """
    noisy = {name: add_noise(image, noise[name], network.alpha[timestep]) for name, image in images.items()}
    dark = {name: torch.maximum(missing[name], masked[name]) for name in images}
    guess = network(noisy, dark, timestep).noise
    return {name: ((guess[name].float() - noise[name]).square() * (1 - dark[name])).mean() for name in images}
