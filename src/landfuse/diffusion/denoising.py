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
    """

    def __init__(
        self, denoiser: TrainedDenoiser, settings: PretrainSettings, crops: Crops, device: torch.device | str = "cpu"
    ) -> None:
        self.denoiser, self.settings, self.crops, self.device = denoiser, settings, crops, torch.device(device)
        self.network = copy.deepcopy(denoiser.network).to(self.device).requires_grad_(True).train()
        self.average = denoiser.network.to(self.device)
        constants = constant(denoiser.maps)
        self.balance = ModalityBalance(self.network.channels, settings.balance, constants)
        for name in ("losses", "log_weights"):  # what changes in every step; masks are drawn on the CPU
            setattr(self.balance, name, getattr(self.balance, name).to(self.device))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.rate,
            weight_decay=settings.weight_decay,
            fused=self.device.type == "cuda",
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
        seed = int(np.random.SeedSequence((settings.seed, self.done, purpose, 1)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        images, missing = self._there(images), self._there(missing)
        there = generator if self.device.type == "cpu" else torch.Generator(self.device).manual_seed(seed)
        noise = {
            name: torch.randn(image.shape, generator=there, device=self.device).to(memory_format=torch.channels_last)
            for name, image in images.items()
        }
        return images, missing, noise, generator

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

    def step(self) -> dict[str, Tensor]:
        """Takes one step of the optimiser and returns the loss, its parts by modality, and the gradient's norm.

        Nothing waits for a GPU, so they are scalars on the device; `run_steps` finds out whether they are finite.
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
        loss = (balance.loss_weights() * torch.stack(list(parts.values()))).sum()
        if balance.swaps(self.done):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
                uneven = balance.unevenness(Probe(self.network, images, missing, noise), generator)
            loss = loss + EVENNESS * loss.detach() * uneven
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        balance.add_losses(parts)
        self.done += 1
        self._follow()
        values = {f"denoise_{name}": part.detach() for name, part in parts.items()}
        return {"loss": loss.detach(), **values, "gradient": norm}

    def _pace(self) -> float:
        """Fraction of the rate at this step: it rises over the first 5% of the steps, then falls as a cosine to 0."""
        total = max(1, self.settings.total)
        rising = min(1.0, (self.done + 1) / (0.05 * total))
        return rising * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done / total)))

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the mean weights; while there are few steps behind them, the mean is over those."""
        weight = min(self.settings.average, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - weight)

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
    """Trains up to a number of steps; losses are looked at after every `balance.every` steps and at the end.

    Args:
        progress: called then with the steps done, and the means of the losses since the last call with the balance.

    Raises:
        ModelError: if a loss or its gradient is not finite; the training is as it was at the last look.
    """
    rows: list[dict[str, Tensor]] = []
    good = copy.deepcopy(training.state())
    while training.done < steps:
        rows.append(training.step())
        if training.done % training.settings.balance.every == 0 or training.done == steps:
            table = torch.stack([torch.stack([value.float() for value in row.values()]) for row in rows]).cpu()
            names, first = list(rows[0]), training.done - len(rows)
            for row in (~table.isfinite().all(dim=1)).nonzero().flatten().tolist()[:1]:
                training.load_state(good)
                values = {name: value for name, value in zip(names, table[row].tolist(), strict=True) if "_" in name}
                bad = [name for name, value in values.items() if not math.isfinite(value)]
                raise ModelError(
                    f"{', '.join(bad) or 'the gradient'} of pre-training step {first + row} is not finite "
                    f"({', '.join(f'{name} {value:.4g}' for name, value in values.items())})",
                    "finite losses",
                    "lower pretrain.rate, or set pretrain.precision=float32; the last good state is kept, and the same "
                    "command goes on from it",
                )
            good = copy.deepcopy(training.state())
            means = dict(zip(names, table.double().mean(dim=0).tolist(), strict=True))
            progress(training.done, {**means, **training.measured()})
            rows = []
