"""How a denoiser learns: crops of the scene without labels, one step after another, its modalities held in balance.

Every step draws from generators seeded by its own number, so that a training which was interrupted ends in the weights
of one that was not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landfuse.diffusion.balance import EVENNESS, ModalityBalance, Probe, denoising_losses, swap_scores
from landfuse.diffusion.crops import Crops
from landfuse.diffusion.settings import STEPS, PretrainSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, constant
from landfuse.errors import ModelError

_PROBE = 16
"""Crops that a probe looks at."""


class Denoising:
    """The training of one denoiser.

    Args:
        denoiser: what learns; its network is the one that the steps change.
        settings: how.
        crops: what it learns from.
        device: where.
    """

    def __init__(
        self, denoiser: TrainedDenoiser, settings: PretrainSettings, crops: Crops, device: torch.device | str = "cpu"
    ) -> None:
        self.denoiser, self.settings, self.crops, self.device = denoiser, settings, crops, torch.device(device)
        self.network = copy.deepcopy(denoiser.network).to(self.device).requires_grad_(True).train()
        self.average = denoiser.network.to(self.device)
        constants = constant(denoiser.maps)
        self.balance = ModalityBalance(self.network.channels, settings.balance, constants)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.rate, weight_decay=settings.weight_decay
        )
        self.done = 0
        self._scored: tuple[int, dict[str, float]] = (-1, {})
        named = {"float32": False, "bfloat16": True, "auto": self.device.type == "cuda"}
        self._half = named[settings.precision]

    def _draw(self, purpose: int, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Any]:
        """Images, masks and noise of one step, and the generator that drew the noise."""
        settings = self.settings
        views = self.crops.draw((settings.seed, self.done, purpose), count, settings.augment)
        images, missing = self.denoiser.images(views)
        seed = np.random.SeedSequence((settings.seed, self.done, purpose, 1)).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        noise = {name: torch.randn(image.shape, generator=generator) for name, image in images.items()}
        return *(self._there(values) for values in (images, missing, noise)), generator  # type: ignore[return-value]

    def _there(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, memory_format=torch.channels_last) for name, value in values.items()}

    def probe(self) -> Probe:
        """A batch to look at the network as it is now."""
        images, missing, noise, _ = self._draw(1, _PROBE)
        return Probe(self.network, images, missing, noise)

    def _swap_scores(self) -> dict[str, float]:
        """The swap scores after the steps that are done; they are asked for twice."""
        if self._scored[0] != self.done:
            self._scored = (self.done, swap_scores(self.probe()))
        return self._scored[1]

    def step(self) -> dict[str, float]:
        """Takes one step of the optimiser and returns the loss, and its parts by modality.

        Raises:
            ModelError: if the loss or its gradient is not finite; nothing is changed by this step.
        """
        settings, balance = self.settings, self.balance
        if self.done % settings.balance.every == 0 and self.done and len(balance.balanced) > 1:
            balance.update(self._swap_scores())
        images, missing, noise, generator = self._draw(0, settings.batch)
        timestep = torch.randint(0, STEPS, (settings.batch,), generator=generator).to(self.device)
        masked = self._there(balance.draw_masks(self.done, settings.batch, generator))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * self._pace()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            parts = denoising_losses(self.network, images, missing, masked, noise, timestep)
        weights = balance.weights
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        values = {f"denoise_{name}": float(part.detach()) for name, part in parts.items()}
        if balance.swaps(self.done):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
                uneven = balance.unevenness(Probe(self.network, images, missing, noise), generator)
            loss = loss + EVENNESS * loss.detach() * uneven
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad or not math.isfinite(float(norm)):
            raise ModelError(
                f"{', '.join(bad) or 'the gradient'} of pre-training step {self.done} is not finite "
                f"({', '.join(f'{name} {value:.4g}' for name, value in values.items())})",
                "finite losses",
                "lower pretrain.rate, or set pretrain.precision=float32; the last good state is kept, and the same "
                "command goes on from it",
            )
        self.optimizer.step()
        balance.add_losses(parts)
        self.done += 1
        self._follow()
        return {"loss": float(loss.detach()), **values}

    def _pace(self) -> float:
        """Fraction of the rate at this step: it rises over the first 5% of the steps, then falls as a cosine to 0."""
        total = max(1, self.settings.total)
        rising = min(1.0, (self.done + 1) / (0.05 * total))
        return rising * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done / total)))

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the mean weights; while there are few steps behind them, the mean is over those."""
        weight = min(self.settings.average, (1 + self.done) / (10 + self.done))
        for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now, 1 - weight)

    def measured(self) -> dict[str, float]:
        """The balance now: D (dominance), r (fraction masked) and w (loss weight) of each modality."""
        found = self._swap_scores()
        masked = self.balance.masked(self.done)
        weights = self.balance.weights
        return {
            f"{letter}_{name}": values[name]
            for letter, values in (("D", found), ("r", masked), ("w", weights))
            for name in values
        }

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as tensors and plain values."""
        return {
            "done": self.done,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "balance": self.balance.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.done = int(state["done"])
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.balance.load_state_dict(state["balance"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finished(self) -> TrainedDenoiser:
        """The denoiser with the mean weights."""
        self.denoiser.network = self.average.cpu().eval().requires_grad_(False)
        return self.denoiser


def run_steps(
    training: Denoising, steps: int, progress: Callable[[int, dict[str, float]], None] = lambda step, row: None
) -> None:
    """Trains up to a number of steps.

    Args:
        training: what goes on.
        steps: when it ends.
        progress: called after every `balance.every` steps and at the end with the steps done, and the means of the
            losses since the last call with the balance.
    """
    rows: list[dict[str, float]] = []
    while training.done < steps:
        rows.append(training.step())
        if training.done % training.settings.balance.every == 0 or training.done == steps:
            means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
            progress(training.done, {**means, **training.measured()})
            rows = []
