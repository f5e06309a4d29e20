"""Which modality a joint denoiser leans on, and how hiding and weighting modalities evens that out; without labels.

Source: sections D.3 and A.3 of our specification of Liu et al. 2025, "Balanced Diffusion-Guided Fusion for Multimodal
Remote Sensing Classification", arXiv 2509.23310 (the paper names adaptive modality masking; the formulas are ours).
`opm` follows the rule of Wei et al. 2024, "On-the-fly Modulation for Balanced Multimodal Learning", arXiv 2410.11582,
with the label-free score in the place of its class probabilities. That losses count by their relative progress follows
Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses", arXiv 1705.07115. Swapping a modality
instead of hiding it, and making the features answer evenly, is ours: where whole modalities are hidden, a long training
leaves the features less even than it finds them (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from landfuse.diffusion.denoiser import Denoiser
from landfuse.diffusion.noise import add_noise, wiener_bound
from landfuse.settings import Settings

SHOWN = 0.3
"""Share of the samples in which nothing is hidden, at least."""

_SMOOTHING = 0.8

_FARTHEST = math.log(8) / 2
"""Two loss weights move apart by a factor of 8 at most."""

_PROBED = (100, 300)
"""Timesteps at which a denoiser is probed: where an image's parts are told apart, and where its layout is."""

_SWAP_EVERY, _SWAP_BELOW = 4, 500
"""Modalities are swapped in every fourth step, at timesteps below 500: above, features hold little of an image."""


class BalanceSettings(Settings):
    """How the modalities of a joint denoiser are held in balance.

    Args:
        kind: how often a modality is hidden. `adaptive`: by how much the decoder's features change when the modality
            is swapped for that of another place; `gap`: by how far its noise is told better than independent pixels
            would allow; `grad`: by the gradient that it sends into the joint layer; `opm`: only the dominant one, by
            the rule of OPM; `fixed`: all alike; `none`: never.
        gamma: the loss of a modality counts by (its channels) ^ gamma: 1 is a plain mean over all channels, 0 counts
            modalities alike.
        progress: the loss of a modality also counts by (its running mean) ^ -progress: at 1 relative progress counts
            alike, however small the loss; 0 leaves that out. Not with `none`.
        weight_rate: how fast the loss weights follow the score, per probe; 0 leaves them as they are.
        imputation: weight of the loss that has hidden pixels guessed; 0 for none.
        hide: `swap`, with `adaptive`: in every fourth step each modality in turn is swapped for that of another crop,
            and the loss grows by how unevenly the decoder's features answer; `whole` hides a modality in a share of the
            samples, `cells` in squares of them.
        evenness: weight of that part of `swap`: to the loss comes evenness * loss * the variance over the modalities of
            ln D.
        cell: side of a cell, px.
        most: the share of samples that a modality is hidden in lies between 0 and this.
        rest: where between 0 and `most` the shares lie when the modalities are in balance.
        even: the loss of a modality is a mean over where it is shown, so that hiding it does not make it count less.
        kappa: how sharply shares follow the score; a negative one hides the weak modality instead of the strong.
        warmup: steps with even shares before the score rules.
        every: steps between probes.
    """

    kind: Literal["adaptive", "gap", "grad", "opm", "fixed", "none"] = "adaptive"
    gamma: float = Field(default=0.5, ge=0, le=1)
    progress: float = Field(default=0.5, ge=0, le=1)
    weight_rate: float = Field(default=0.0, ge=0, le=1)
    imputation: float = Field(default=0.0, ge=0)
    hide: Literal["swap", "whole", "cells"] = "swap"
    evenness: float = Field(default=0.1, ge=0)
    cell: int = Field(default=8, ge=1)
    most: float = Field(default=0.6, gt=0, le=1 - SHOWN)
    rest: float = Field(default=0.5, gt=0, lt=1)
    even: bool = False
    kappa: float = 2.0
    warmup: int = Field(default=200, ge=0)
    every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _swap_is_adaptive(self) -> BalanceSettings:
        if self.hide == "swap" and self.kind not in ("adaptive", "none"):
            raise ValueError(f"`kind: {self.kind}` says how often a modality is hidden: set `hide` to whole or cells")
        return self


class Probe:
    """A batch on which a denoiser is looked at: the same crops and noise at every probed timestep, nothing hidden.

    Args:
        network: the denoiser.
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
        share = self.network.share[timestep]
        return {name: add_noise(image, self.noise[name], share) for name, image in images.items()}

    def errors(self, timestep: int) -> dict[str, Tensor]:
        """name -> mean squared error of the noise where there is data, a scalar with gradients."""
        times = self.times(timestep)
        guess = self.network(self.noisy(self.images, times), self.missing, times).noise
        return {
            name: ((guess[name].float() - self.noise[name]).square() * (1 - self.missing[name])).mean()
            / (1 - self.missing[name]).mean().clamp(min=1e-6)
            for name in self.images
        }

    def bounds(self, timestep: int) -> dict[str, float]:
        """name -> the least error for independent Gaussian pixels of each channel's variance."""
        return {
            name: float(wiener_bound(self.network.share[timestep], image.float().var(dim=(0, 2, 3))).mean())
            for name, image in self.images.items()
        }

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


@torch.no_grad()
def gap_scores(probe: Probe) -> dict[str, float]:
    """How far each modality's noise is told below the bound of independent pixels: 0 at the bound, 1 without error."""
    told, bound = dict.fromkeys(probe.images, 0.0), dict.fromkeys(probe.images, 1e-12)
    for timestep in _PROBED:
        errors, bounds = probe.errors(timestep), probe.bounds(timestep)
        for name in probe.images:
            told[name] += float(errors[name])
            bound[name] += bounds[name]
    return {name: max(1 - told[name] / bound[name], 0.0) for name in probe.images}


def gradient_scores(probe: Probe) -> dict[str, float]:
    """The norm of the gradient that each modality's own error sends into the layer that joins the stems."""
    weight = probe.network.join.weight
    scores = dict.fromkeys(probe.images, 0.0)
    for timestep in _PROBED:
        errors = probe.errors(timestep)
        for name, error in errors.items():
            (gradient,) = torch.autograd.grad(error, weight, retain_graph=True)
            scores[name] += float(gradient.norm()) / len(_PROBED)
    return scores


def hiding_shares(levels: Tensor, most: float, kappa: float, rest: float = 0.5) -> Tensor:
    """In which share of the samples each modality is hidden: most * sigmoid(kappa (l_m - mean l) + logit(rest)).

    Args:
        levels: logarithms of the scores, (M,).
        most: the upper limit.
        kappa: how sharply shares follow.
        rest: share of `most` at balance.
    """
    return most * torch.sigmoid(kappa * (levels - levels.mean()) + math.log(rest / (1 - rest)))


def opm_shares(levels: Tensor) -> Tensor:
    """OPM's shares: 0.4 (1 + 0.5 tanh(rho - 1)) for a modality whose score is rho > 1 times that of the others."""
    scores = levels.exp()
    others = (scores.sum() - scores) / max(1, len(scores) - 1)
    rho = scores / others.clamp(min=1e-12)
    return torch.where(rho > 1, 0.4 * (1 + 0.5 * torch.tanh(rho - 1)), 0.0).clamp(0, 1) * (1 - SHOWN)


class ModalityBalance(nn.Module):
    """Hides modalities and weighs their losses, as the scores of probes tell it. Its state is in its buffers.

    Args:
        channels: name -> C, all modalities.
        constant: those that never change, which cannot be leant on and are left out of the balance.
        settings: how.
    """

    levels: Tensor
    log_weights: Tensor
    losses: Tensor
    _first: Tensor
    probes: Tensor

    def __init__(self, channels: Mapping[str, int], settings: BalanceSettings, constant: Sequence[str] = ()) -> None:
        super().__init__()
        self.names, self.settings = tuple(channels), settings
        self.balanced = tuple(name for name in channels if name not in constant)
        size = [channels[name] ** settings.gamma for name in self.names]
        self.register_buffer("levels", torch.zeros(len(self.balanced)))
        self.register_buffer("log_weights", torch.tensor([math.log(s / sum(size)) for s in size]))
        self.register_buffer("_first", self.log_weights.clone(), persistent=False)
        self.register_buffer("losses", torch.zeros(len(self.names)))
        self.register_buffer("probes", torch.tensor(0))

    @property
    def scores(self) -> Callable[[Probe], dict[str, float]]:
        """What rules: a function of a probe."""
        return {"gap": gap_scores, "grad": gradient_scores}.get(self.settings.kind, swap_scores)

    @property
    def weights(self) -> dict[str, float]:
        """What the loss of each modality counts; they sum to 1."""
        logits = self.log_weights.clone()
        places = [self.names.index(name) for name in self.balanced]
        if self.settings.kind != "none" and places and bool(self.losses[places].all()):
            losses = self.losses[places].log()
            logits[places] += (self.settings.progress * (losses.mean() - losses)).clamp(-_FARTHEST, _FARTHEST)
        return dict(zip(self.names, logits.softmax(dim=0).tolist(), strict=True))

    def swaps(self, step: int) -> bool:
        """Whether modalities are swapped in a step."""
        settings = self.settings
        asked = settings.hide == "swap" and settings.kind != "none" and settings.evenness > 0
        return asked and len(self.balanced) > 1 and step >= settings.warmup and step % _SWAP_EVERY == 0

    def unevenness(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """The variance of ln D over the modalities at random timesteps, a scalar with gradients."""
        timestep = torch.randint(0, _SWAP_BELOW, (probe.size,), generator=generator).to(probe.device)
        found = answers(probe, timestep)
        return torch.stack([(found[name] + 1e-6).log() for name in self.balanced]).var(correction=0)

    def shares(self, step: int) -> dict[str, float]:
        """In which share of the samples each modality is hidden at a step."""
        settings, count = self.settings, len(self.balanced)
        if settings.kind == "none" or settings.hide == "swap" or count < 2:
            values = torch.zeros(count)
        elif settings.kind == "fixed" or step < settings.warmup or not int(self.probes):
            values = torch.full((count,), settings.most / 2)
        elif settings.kind == "opm":
            values = opm_shares(self.levels)
        else:
            values = hiding_shares(self.levels, settings.most, settings.kappa, settings.rest)
        # At most one modality is hidden at a place, so that shares must leave room for samples without any.
        values = values * min(1.0, (1 - SHOWN) / max(float(values.sum()), 1e-12))
        found = dict(zip(self.balanced, values.tolist(), strict=True))
        return {name: found.get(name, 0.0) for name in self.names}

    def saw(self, losses: Mapping[str, Tensor]) -> None:
        """Takes in the losses of a step."""
        now = torch.stack([losses[name].detach().float() for name in self.names])
        self.losses.copy_(now if not bool(self.losses.any()) else 0.98 * self.losses + 0.02 * now)

    def update(self, scores: Mapping[str, float]) -> None:
        """Takes in the scores of a probe, and lets the weights follow where they may."""
        if len(self.balanced) < 2:
            return
        now = torch.tensor([math.log(scores[name] + 1e-6) for name in self.balanced], device=self.levels.device)
        self.levels.copy_(now if not int(self.probes) else _SMOOTHING * self.levels + (1 - _SMOOTHING) * now)
        self.probes += 1
        for level, name in zip(self.levels - self.levels.mean(), self.balanced, strict=True):
            place = self.names.index(name)
            moved = self.log_weights[place] - self.settings.weight_rate * level
            self.log_weights[place] = moved.clamp(self._first[place] - _FARTHEST, self._first[place] + _FARTHEST)

    def hidden(self, step: int, batch: int, height: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws what is hidden: name -> (batch, 1, height, width), 1 where it is; never all modalities at a place."""
        shares = torch.tensor(list(self.shares(step).values()))
        if self.settings.hide != "cells":
            draw = torch.rand((batch, 1, 1, 1), generator=generator)
            spared = torch.zeros((batch, 1, 1, 1), dtype=torch.bool)
        else:
            cells = -(-height // self.settings.cell), -(-width // self.settings.cell)
            draw = torch.rand((batch, 1, *cells), generator=generator)
            draw = draw.repeat_interleave(self.settings.cell, 2).repeat_interleave(self.settings.cell, 3)
            draw = draw[..., :height, :width]
            shares = shares / (1 - SHOWN)  # of the samples in which anything is hidden
            spared = torch.rand((batch, 1, 1, 1), generator=generator) < SHOWN
        upper = shares.cumsum(0)
        return {
            name: ((draw < upper[i]) & (draw >= upper[i] - shares[i]) & ~spared)
            .expand(batch, 1, height, width)
            .to(torch.float32)
            for i, name in enumerate(self.names)
        }


def denoising_losses(
    network: Denoiser,
    images: Mapping[str, Tensor],
    missing: Mapping[str, Tensor],
    hidden: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    timestep: Tensor,
    variances: Mapping[str, float] | None = None,
    even: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """The parts of the loss: how badly noise is told where a modality is shown, and images where it is hidden.

    Both are means over all pixels, so that what is hidden also counts less for its own modality.

    Args:
        network: the denoiser.
        images: name -> (B, C, H, W).
        missing: name -> (B, 1, H, W), 1 where there is no data.
        hidden: name -> (B, 1, H, W), 1 where it is hidden.
        noise: name -> (B, C, H, W), standard normal.
        timestep: (B,).
        variances: name -> variance of its pixels; None leaves the guess of hidden images out.
        even: take the means over the pixels that are shown.

    Returns:
        `denoise` and, if asked for, `impute`: name -> scalar.
    """
    noisy = {name: add_noise(image, noise[name], network.share[timestep]) for name, image in images.items()}
    dark = {name: torch.maximum(missing[name], hidden[name]) for name in images}
    told = network(noisy, dark, timestep, images=variances is not None)

    def mean(guess: Tensor, truth: Tensor, where: Tensor) -> Tensor:
        return ((guess.float() - truth).square() * where).mean()

    parts = {"denoise": {name: mean(told.noise[name], noise[name], 1 - dark[name]) for name in images}}
    if even:
        parts["denoise"] = {n: part / (1 - dark[n]).mean().clamp(min=0.05) for n, part in parts["denoise"].items()}
    if variances is not None:
        parts["impute"] = {
            name: mean(told.images[name], images[name], hidden[name] * (1 - missing[name])) / max(variances[name], 1e-4)
            for name in images
        }
    return parts
