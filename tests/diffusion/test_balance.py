"""Dominance, how often modalities are masked, swapping, and the loss of each modality."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from landfuse.diffusion.balance import (
    EVENNESS,
    SHOWN,
    ModalityBalance,
    Probe,
    answers,
    denoising_losses,
    masked_fractions,
    swap_scores,
)
from landfuse.diffusion.denoiser import DEVIATION, Denoiser
from landfuse.diffusion.settings import BalanceSettings

CHANNELS = {"h": 12, "l": 1}
levels = st.floats(-12, 3)


def paper(**more: object) -> BalanceSettings:
    return BalanceSettings.model_validate({"kind": "paper", "warmup": 0, **more})


@settings(deadline=None)
@given(levels, levels)
def test_two_masked_fractions_are_symmetric_within_limits_and_have_one_mean(a: float, b: float) -> None:
    first = masked_fractions(torch.tensor([a, b], dtype=torch.float64))
    second = masked_fractions(torch.tensor([b, a], dtype=torch.float64))
    torch.testing.assert_close(first, second.flip(0))
    assert ((first >= 0) & (first <= 0.6)).all()
    assert float(first.mean()) == pytest.approx(0.3, abs=1e-9)
    assert float(first[0]) == pytest.approx(0.6 / (1 + math.exp(b - a)), rel=1e-9), "kappa is 2, half of the distance"
    if a > b + 0.1:
        assert first[0] > first[1]


def test_masked_fractions_are_those_asked_for_and_never_all() -> None:
    balance = ModalityBalance({"a": 3, "b": 2, "c": 1}, paper())
    for _ in range(3):
        balance.update({"a": 0.3, "b": 0.01, "c": 0.02})
    fractions = balance.masked(1)
    assert fractions["a"] > fractions["c"] > fractions["b"] > 0
    assert sum(fractions.values()) <= 1 - SHOWN + 1e-6
    masks = balance.draw_masks(1, 4000, torch.Generator().manual_seed(0))
    assert {mask.shape for mask in masks.values()} == {(4000, 1, 1, 1)}
    stacked = torch.stack([masks[name].flatten() for name in balance.names])
    assert set(stacked.unique().tolist()) == {0.0, 1.0}
    assert float(stacked.sum(0).max()) == 1, "at most one of three is masked in a sample"
    for name, fraction in fractions.items():
        assert float(masks[name].mean()) == pytest.approx(fraction, abs=0.02)
    assert float((stacked.sum(0) == 0).float().mean()) >= SHOWN - 0.02
    again = balance.draw_masks(1, 4000, torch.Generator().manual_seed(0))
    assert all(torch.equal(masks[name], again[name]) for name in masks)


def test_kinds_of_masking() -> None:
    def fractions(kind: str, step: int = 500) -> list[float]:
        balance = ModalityBalance(CHANNELS, BalanceSettings.model_validate({"kind": kind, "warmup": 200}))
        balance.update({"h": 0.5, "l": 0.05})
        return list(balance.masked(step).values())

    assert fractions("none") == [0, 0]
    assert fractions("swap") == [0, 0]
    assert fractions("paper", step=199) == pytest.approx([0.3, 0.3])
    strong, weak = fractions("paper")
    assert strong == pytest.approx(0.6 / (1 + 0.1), rel=1e-3)  # sigmoid(2 * ln(10) / 2)
    assert strong + weak == pytest.approx(0.6)
    unmeasured = ModalityBalance(CHANNELS, paper())
    assert list(unmeasured.masked(500).values()) == pytest.approx([0.3, 0.3]), "until the first probe"


def test_masked_fractions_at_balance_are_half_of_the_most() -> None:
    balance = ModalityBalance(CHANNELS, paper())
    balance.update({"h": 0.2, "l": 0.2})
    assert list(balance.masked(1).values()) == pytest.approx([0.3] * 2)
    balance = ModalityBalance(CHANNELS, paper())
    balance.update({"h": 2e3, "l": 2e-6})
    assert balance.masked(1)["h"] == pytest.approx(0.6, rel=1e-3)
    assert balance.masked(1)["l"] < 0.01


def test_levels_are_smoothed_logarithms() -> None:
    balance = ModalityBalance(CHANNELS, BalanceSettings())
    balance.update({"h": 1.0, "l": 0.1})
    balance.update({"h": 0.1, "l": 0.1})
    assert balance.levels.tolist() == pytest.approx([0.2 * math.log(0.1), math.log(0.1)], abs=1e-4)


def test_swapping_masks_nothing_and_happens_in_every_fourth_step_after_the_warmup() -> None:
    balance = ModalityBalance(CHANNELS, BalanceSettings(warmup=8))
    balance.update({"h": math.e, "l": 1 / math.e})
    assert set(balance.masked(999).values()) == {0.0}
    assert not any(mask.any() for mask in balance.draw_masks(999, 4, torch.Generator()).values())
    assert [step for step in range(20) if balance.swaps(step)] == [8, 12, 16]
    for kind in ("none", "paper"):
        assert not ModalityBalance(CHANNELS, BalanceSettings.model_validate({"warmup": 0, "kind": kind})).swaps(8)
    assert not ModalityBalance(CHANNELS, BalanceSettings(warmup=0), ("l",)).swaps(8)
    assert EVENNESS == 0.1


def test_unevenness_is_the_variance_of_the_log_scores_and_its_gradient_evens_them() -> None:
    torch.manual_seed(0)
    network, balance = Denoiser(CHANNELS, 8), ModalityBalance(CHANNELS, BalanceSettings())
    network.join.weight.data[:, 4:] *= 0.2
    seen = probe(network)

    def uneven() -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return balance.unevenness(seen, generator)

    timestep = torch.randint(0, 500, (8,), generator=torch.Generator().manual_seed(1))
    scores = answers(seen, timestep)
    apart = float((scores["h"] + 1e-6).log().detach() - (scores["l"] + 1e-6).log().detach())
    before = uneven().detach()
    assert float(before) == pytest.approx((apart / 2) ** 2, rel=1e-4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        uneven().backward()
        optimizer.step()
    assert float(uneven().detach()) < 0.8 * float(before)


def test_losses_count_by_their_progress_within_a_factor_of_eight() -> None:
    def ratio(small: float, **more: object) -> float:
        balance = ModalityBalance({**CHANNELS, "still": 1}, BalanceSettings.model_validate(more), ("still",))
        plain = balance.weights
        balance.add_losses({"h": torch.tensor(0.4), "l": torch.tensor(small), "still": torch.tensor(0.0)})
        weights = balance.weights
        assert sum(weights.values()) == pytest.approx(1)
        return (weights["l"] / weights["h"]) / (plain["l"] / plain["h"])

    assert ratio(0.1) == pytest.approx(2)
    assert ratio(0.1, kind="paper") == pytest.approx(2)
    assert ratio(0.1, kind="none") == pytest.approx(1)
    assert ratio(1e-9) == pytest.approx(8)
    balance = ModalityBalance(CHANNELS, BalanceSettings())
    balance.add_losses({"h": torch.tensor(0.4), "l": torch.tensor(0.2)})
    balance.add_losses({"h": torch.tensor(0.4), "l": torch.tensor(0.1)})
    assert balance.losses.tolist() == pytest.approx([0.4, 0.98 * 0.2 + 0.02 * 0.1])


def test_weights_begin_at_gamma() -> None:
    for gamma, ratio in ((1.0, 12.0), (0.5, math.sqrt(12)), (0.0, 1.0)):
        balance = ModalityBalance(CHANNELS, BalanceSettings(gamma=gamma))
        for _ in range(2):
            weights = balance.weights
            assert weights["h"] / weights["l"] == pytest.approx(ratio)
            assert sum(weights.values()) == pytest.approx(1)
            balance.update({"h": math.e**2, "l": 1.0})  # a probe moves what is masked, not the weights


@pytest.mark.parametrize("constant", [("l",), ("h", "l")])
def test_a_constant_modality_is_left_out(constant: tuple[str, ...]) -> None:
    balance = ModalityBalance(CHANNELS, paper(), constant)
    balance.update({"h": 1.0, "l": 0.0})
    assert balance.masked(10) == {"h": 0, "l": 0}
    assert all(not mask.any() for mask in balance.draw_masks(10, 9, torch.Generator()).values())


def test_its_state_is_in_its_buffers() -> None:
    one, other = (ModalityBalance(CHANNELS, paper()) for _ in range(2))
    one.update({"h": 0.4, "l": 0.1})
    one.add_losses({"h": torch.tensor(0.4), "l": torch.tensor(0.1)})
    assert other.masked(5) != one.masked(5)
    assert other.weights != one.weights
    other.load_state_dict(one.state_dict())
    assert other.masked(5) == one.masked(5)
    assert other.weights == one.weights


def probe(network: Denoiser, independent: bool = True) -> Probe:
    generator = torch.Generator().manual_seed(0)
    images = {n: DEVIATION * torch.randn(8, c, 16, 16, generator=generator) for n, c in CHANNELS.items()}
    if not independent:
        images["l"] = images["h"][:, :1].clone()
    noise = {n: torch.randn(8, c, 16, 16, generator=generator) for n, c in CHANNELS.items()}
    return Probe(network, images, {n: torch.zeros(8, 1, 16, 16) for n in CHANNELS}, noise)


def deaf(network: Denoiser, name: str) -> Denoiser:
    """Makes the body ignore a modality."""
    half, place = network.base // 2, list(CHANNELS).index(name)
    network.join.weight.data[:, place * half : (place + 1) * half] = 0
    return network


def test_the_swap_score_is_zero_for_what_is_ignored_and_rises_with_what_is_used() -> None:
    torch.manual_seed(0)
    scores = swap_scores(probe(deaf(Denoiser(CHANNELS, 8), "l")))
    assert scores["l"] == 0
    assert 0.4 < scores["h"] < 0.7  # white images are 0.78 and 0.29 of the variance at the two timesteps
    network = Denoiser(CHANNELS, 8)
    before = swap_scores(probe(network))
    network.join.weight.data[:, 4:] *= 4
    after = swap_scores(probe(network))
    assert after["l"] > 2 * before["l"]
    assert after["h"] < before["h"]


def test_the_swap_score_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    network = Denoiser(CHANNELS, 8)
    seen = probe(network)
    expected = 0.0
    with torch.no_grad():
        for timestep in (100, 300):
            times = torch.full((8,), timestep)
            alpha = float(network.alpha[timestep])

            def levels(
                images: dict[str, Tensor], times: Tensor = times, alpha: float = alpha
            ) -> tuple[Tensor, Tensor, Tensor]:
                noisy = {n: math.sqrt(alpha) * x + math.sqrt(1 - alpha) * seen.noise[n] for n, x in images.items()}
                return network.levels(noisy, seen.missing, times)

            swapped = {**seen.images, "l": torch.stack([seen.images["l"][i - 1] for i in range(8)])}
            for own, other in zip(levels(seen.images), levels(swapped), strict=True):
                change = (own - other).square().mean((0, 2, 3)).sum()
                expected += float(change / (2 * own.movedim(1, 0).flatten(1).var(1).sum())) / 3 / 2
    assert swap_scores(seen)["l"] == pytest.approx(expected, rel=1e-4)


def losses(masked: dict[str, Tensor], missing: dict[str, Tensor]) -> dict[str, float]:
    torch.manual_seed(3)
    network = Denoiser(CHANNELS, 8)
    images = {n: torch.randn(4, c, 8, 8) for n, c in CHANNELS.items()}
    noise = {n: torch.randn(4, c, 8, 8) for n, c in CHANNELS.items()}
    times = torch.tensor([5, 100, 300, 800])
    found = denoising_losses(network, images, missing, masked, noise, times)
    dark = {n: ((missing[n] + masked[n]) > 0).float().expand(4, 1, 8, 8) for n in CHANNELS}
    alpha = network.alpha[times].view(-1, 1, 1, 1)
    with torch.no_grad():
        guess = network({n: alpha.sqrt() * images[n] + (1 - alpha).sqrt() * noise[n] for n in images}, dark, times)
    for name, value in found.items():
        wrong = (guess.noise[name] - noise[name]).square()
        expected = float(wrong[(dark[name] == 0).expand_as(wrong)].sum() / wrong.numel())
        assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    return {name: float(value.detach()) for name, value in found.items()}


def test_what_is_masked_or_missing_does_not_count() -> None:
    none = {n: torch.zeros(4, 1, 1, 1) for n in CHANNELS}
    there = {n: torch.zeros(4, 1, 8, 8) for n in CHANNELS}
    shown = losses(none, there)
    assert all(value > 0 for value in shown.values())
    height = {**none, "l": torch.ones(4, 1, 1, 1)}
    assert losses(height, there)["l"] == 0
    assert losses(height, there)["h"] > 0
    half = {**none, "l": torch.tensor([1.0, 1.0, 0.0, 0.0]).view(4, 1, 1, 1)}
    assert 0 < losses(half, there)["l"] < shown["l"]
    corner = {**there, "l": there["l"].clone()}
    corner["l"][:, :, :4] = 1
    assert 0 < losses(none, corner)["l"] < shown["l"]
    assert losses(none, {**there, "l": torch.ones(4, 1, 8, 8)})["l"] == 0
