"""Dominance, the controller, what is hidden, and the parts of the loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from landfuse.diffusion.balance import (
    SHOWN,
    BalanceSettings,
    ModalityBalance,
    Probe,
    answers,
    denoising_losses,
    gap_scores,
    gradient_scores,
    hiding_shares,
    opm_shares,
    swap_scores,
)
from landfuse.diffusion.denoiser import DEVIATION, Denoiser

CHANNELS = {"h": 12, "l": 1}
levels = st.floats(-12, 3)


@given(levels, levels, st.floats(0.1, 0.7), st.floats(-4, 4))
def test_two_shares_are_symmetric_within_limits_and_have_one_mean(
    a: float, b: float, most: float, kappa: float
) -> None:
    first = hiding_shares(torch.tensor([a, b], dtype=torch.float64), most, kappa)
    second = hiding_shares(torch.tensor([b, a], dtype=torch.float64), most, kappa)
    torch.testing.assert_close(first, second.flip(0))
    assert ((first >= 0) & (first <= most)).all()
    assert float(first.mean()) == pytest.approx(most / 2, abs=1e-9)
    if kappa > 0.1 and a > b + 0.1:
        assert first[0] > first[1]


def test_opm_hides_the_dominant_one_only() -> None:
    shares = opm_shares(torch.tensor([3.0, 1.0]).log())
    assert float(shares[0]) == pytest.approx(0.7 * 0.4 * (1 + 0.5 * math.tanh(2)))
    assert shares[1] == 0
    assert opm_shares(torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("hide", ["whole", "cells"])
def test_hidden_shares_are_those_asked_for_and_never_all(hide: str) -> None:
    balance = ModalityBalance({"a": 3, "b": 2, "c": 1}, BalanceSettings.model_validate({"hide": hide, "warmup": 0}))
    for _ in range(3):
        balance.update({"a": 0.3, "b": 0.01, "c": 0.02})
    shares = balance.shares(1)
    masks = balance.hidden(1, 4000, 16, 16, torch.Generator().manual_seed(0))
    stacked = torch.stack([masks[name][:, 0] for name in balance.names])
    assert set(stacked.unique().tolist()) == {0.0, 1.0}
    assert float(stacked.sum(0).max()) == 1, "at most one of three is hidden at a place"
    for name, share in shares.items():
        assert float(masks[name].mean()) == pytest.approx(share, abs=0.02)
    untouched = (stacked.sum(0).flatten(1).sum(1) == 0).float().mean()
    assert float(untouched) >= SHOWN - 0.02
    parts = {float(mask.mean()) for mask in masks["a"]}
    assert (parts == {0.0, 1.0}) is (hide == "whole")


def test_kinds_of_hiding() -> None:
    def shares(kind: str, step: int = 500, **more: object) -> list[float]:
        balance = ModalityBalance(
            CHANNELS, BalanceSettings.model_validate({"kind": kind, "warmup": 200, "hide": "whole", **more})
        )
        balance.update({"h": 0.5, "l": 0.05})
        return list(balance.shares(step).values())

    assert shares("none") == [0, 0]
    assert shares("fixed") == pytest.approx([0.3, 0.3])
    assert shares("adaptive", step=199) == pytest.approx([0.3, 0.3])
    strong, weak = shares("adaptive")
    assert strong == pytest.approx(0.6 / (1 + 0.1), rel=1e-3)  # sigmoid(2 * ln(10) / 2)
    assert strong + weak == pytest.approx(0.6)
    assert shares("adaptive", kappa=-2.0) == pytest.approx([weak, strong])
    assert shares("opm")[1] == 0


def test_shares_at_balance_are_those_at_rest() -> None:
    for rest in (0.5, 0.1):
        balance = ModalityBalance(CHANNELS, BalanceSettings(hide="whole", warmup=0, rest=rest))
        balance.update({"h": 0.2, "l": 0.2})
        assert list(balance.shares(1).values()) == pytest.approx([0.6 * rest] * 2)
    balance = ModalityBalance(CHANNELS, BalanceSettings(hide="whole", warmup=0, rest=0.1))
    balance.update({"h": 2e3, "l": 2e-6})
    assert balance.shares(1)["h"] == pytest.approx(0.6, rel=1e-3)
    assert balance.shares(1)["l"] < 0.01


def test_levels_are_smoothed_logarithms() -> None:
    balance = ModalityBalance(CHANNELS, BalanceSettings())
    balance.update({"h": 1.0, "l": 0.1})
    balance.update({"h": 0.1, "l": 0.1})
    assert balance.levels.tolist() == pytest.approx([0.2 * math.log(0.1), math.log(0.1)], abs=1e-4)


def test_swapping_hides_nothing_and_goes_on_in_every_fourth_step_after_the_warmup() -> None:
    balance = ModalityBalance(CHANNELS, BalanceSettings(warmup=8))
    balance.update({"h": math.e, "l": 1 / math.e})
    assert set(balance.shares(999).values()) == {0.0}
    assert not any(mask.any() for mask in balance.hidden(999, 4, 8, 8, torch.Generator()).values())
    assert [step for step in range(20) if balance.swaps(step)] == [8, 12, 16]
    for off in ({"kind": "none"}, {"hide": "whole"}, {"evenness": 0}):
        assert not ModalityBalance(CHANNELS, BalanceSettings.model_validate({"warmup": 0, **off})).swaps(8)
    assert not ModalityBalance(CHANNELS, BalanceSettings(warmup=0), ("l",)).swaps(8)
    with pytest.raises(ValueError, match="set `hide` to whole or cells"):
        BalanceSettings(kind="opm")


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
        balance.saw({"h": torch.tensor(0.4), "l": torch.tensor(small), "still": torch.tensor(0.0)})
        weights = balance.weights
        assert sum(weights.values()) == pytest.approx(1)
        return (weights["l"] / weights["h"]) / (plain["l"] / plain["h"])

    assert ratio(0.1) == pytest.approx(2)
    assert ratio(0.1, progress=1) == pytest.approx(4)
    assert ratio(0.1, progress=0) == pytest.approx(1)
    assert ratio(0.1, kind="none") == pytest.approx(1)
    assert ratio(1e-9) == pytest.approx(8)
    balance = ModalityBalance(CHANNELS, BalanceSettings())
    balance.saw({"h": torch.tensor(0.4), "l": torch.tensor(0.2)})
    balance.saw({"h": torch.tensor(0.4), "l": torch.tensor(0.1)})
    assert balance.losses.tolist() == pytest.approx([0.4, 0.98 * 0.2 + 0.02 * 0.1])


def test_weights_begin_at_gamma_and_follow_within_a_factor_of_eight() -> None:
    for gamma, ratio in ((1.0, 12.0), (0.5, math.sqrt(12)), (0.0, 1.0)):
        weights = ModalityBalance(CHANNELS, BalanceSettings(gamma=gamma)).weights
        assert weights["h"] / weights["l"] == pytest.approx(ratio)
        assert sum(weights.values()) == pytest.approx(1)
    balance = ModalityBalance(CHANNELS, BalanceSettings(gamma=0, weight_rate=0.1))
    balance.update({"h": math.e**2, "l": 1.0})
    assert balance.weights["h"] / balance.weights["l"] == pytest.approx(math.exp(-0.1 * 2), rel=1e-3)
    for _ in range(200):
        balance.update({"h": math.e**2, "l": 1.0})
    assert balance.weights["h"] / balance.weights["l"] == pytest.approx(1 / 8, rel=1e-3)


@pytest.mark.parametrize("constant", [("l",), ("h", "l")])
def test_a_constant_modality_is_left_out(constant: tuple[str, ...]) -> None:
    balance = ModalityBalance(CHANNELS, BalanceSettings(hide="whole", warmup=0), constant)
    balance.update({"h": 1.0, "l": 0.0})
    assert balance.shares(10) == {"h": 0, "l": 0}
    assert all(not mask.any() for mask in balance.hidden(10, 9, 8, 8, torch.Generator()).values())


def test_its_state_is_in_its_buffers() -> None:
    one, other = (ModalityBalance(CHANNELS, BalanceSettings(hide="whole", weight_rate=0.1, warmup=0)) for _ in range(2))
    one.update({"h": 0.4, "l": 0.1})
    one.saw({"h": torch.tensor(0.4), "l": torch.tensor(0.1)})
    other.load_state_dict(one.state_dict())
    assert other.shares(5) == one.shares(5)
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


def test_the_swap_score_is_nought_for_what_is_ignored_and_rises_with_what_is_used() -> None:
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


def test_the_gap_is_nought_at_the_bound() -> None:
    network = Denoiser(CHANNELS, 8)
    for head in network.noise_heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    assert all(score < 0.08 for score in gap_scores(probe(network)).values())
    knowing = probe(network)
    knowing.errors = lambda timestep: {"h": torch.tensor(0.0), "l": torch.tensor(9.0)}  # type: ignore[method-assign]
    assert gap_scores(knowing) == {"h": 1.0, "l": 0.0}


def test_the_gradient_score_is_that_of_autograd_by_hand() -> None:
    torch.manual_seed(0)
    network = Denoiser(CHANNELS, 8)
    seen = probe(network)
    expected = 0.0
    for timestep in (100, 300):
        network.zero_grad()
        seen.errors(timestep)["l"].backward()
        assert network.join.weight.grad is not None
        expected += float(network.join.weight.grad.norm()) / 2
    assert gradient_scores(seen)["l"] == pytest.approx(expected, rel=1e-5)


def parts(hidden: dict[str, Tensor], missing: dict[str, Tensor], even: bool = False) -> dict[str, dict[str, float]]:
    torch.manual_seed(3)
    network = Denoiser(CHANNELS, 8)
    images = {n: torch.randn(4, c, 8, 8) for n, c in CHANNELS.items()}
    noise = {n: torch.randn(4, c, 8, 8) for n, c in CHANNELS.items()}
    found = denoising_losses(
        network, images, missing, hidden, noise, torch.tensor([5, 100, 300, 800]), {"h": 1.0, "l": 4.0}, even
    )
    return {kind: {name: float(value.detach()) for name, value in by.items()} for kind, by in found.items()}


def test_what_is_hidden_counts_for_the_image_and_not_for_the_noise() -> None:
    none = {n: torch.zeros(4, 1, 8, 8) for n in CHANNELS}
    height = {"h": torch.zeros(4, 1, 8, 8), "l": torch.ones(4, 1, 8, 8)}
    shown = parts(none, none)
    assert all(value == 0 for value in shown["impute"].values())
    assert all(value > 0 for value in shown["denoise"].values())
    blind = parts(height, none)
    assert blind["denoise"]["l"] == 0
    assert blind["impute"]["l"] > 0
    assert blind["impute"]["h"] == 0
    half = {**height, "l": torch.cat([torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)])}
    assert 0 < parts(half, none)["denoise"]["l"] < shown["denoise"]["l"]
    shares = parts(half, none)["denoise"]["l"] / parts(half, none, even=True)["denoise"]["l"]
    assert shares == pytest.approx(0.5), "half of it is shown"
    assert parts(height, none, even=True)["denoise"]["l"] == 0
    assert all(value == 0 for kind in parts(height, height).values() for n, value in kind.items() if n == "l")
