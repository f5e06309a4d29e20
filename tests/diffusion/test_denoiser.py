"""The joint denoiser: shapes, what reaches what, and that it learns what can be learnt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landfuse.diffusion.denoiser import DEVIATION, Denoiser
from landfuse.diffusion.noise import add_noise, signal_alpha, wiener_bound

CHANNELS = {"hsi": 5, "height": 1}


def images(batch: int = 2, side: int = 16, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, c, side, side, generator=generator) for name, c in CHANNELS.items()}


def shown(batch: int = 2, side: int = 16) -> dict[str, Tensor]:
    return {name: torch.zeros(batch, 1, side, side) for name in CHANNELS}


def random_weights(network: Denoiser) -> Denoiser:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def test_every_modality_gets_its_noise_and_the_levels_halve() -> None:
    network = Denoiser(CHANNELS, 16)
    found = network(images(), shown(), torch.tensor([10, 500]))
    assert {name: tuple(value.shape) for name, value in found.noise.items()} == {
        "hsi": (2, 5, 16, 16),
        "height": (2, 1, 16, 16),
    }
    assert [tuple(level.shape[1:]) for level in found.levels] == [(16, 16, 16), (32, 8, 8), (32, 4, 4)]
    assert tuple(level.shape[1] for level in found.levels) == network.widths
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.levels, network.levels(images(), shown(), torch.tensor([10, 500])), strict=True)
    )


def test_the_schedule_is_no_part_of_its_state() -> None:
    network = Denoiser(CHANNELS, 8)
    assert torch.equal(network.alpha, signal_alpha())
    assert "alpha" not in network.state_dict()
    assert not any("image_heads" in name for name in network.state_dict())


def test_the_published_size() -> None:
    network = Denoiser({"hsi": 30, "lidar": 2}, 64)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(3.24e6, rel=0.01)


def test_what_is_masked_is_not_seen_and_the_mask_is() -> None:
    network = random_weights(Denoiser(CHANNELS, 8))
    one, other = images(seed=0), images(seed=0)
    other["height"] = images(seed=5)["height"]
    time, hidden = torch.tensor([100, 100]), shown()
    hidden["height"] = torch.ones(2, 1, 16, 16)
    assert torch.equal(network.levels(one, hidden, time)[0], network.levels(other, hidden, time)[0])
    assert not torch.equal(network.levels(one, shown(), time)[0], network.levels(other, shown(), time)[0])
    assert not torch.equal(network.levels(one, hidden, time)[0], network.levels(one, shown(), time)[0])


def test_nothing_beyond_its_reach_gets_to_a_pixel() -> None:
    network = random_weights(Denoiser({"a": 1}, 8))
    image = torch.randn(1, 1, 256, 256, requires_grad=True)
    farthest = 0
    for row, col in ((128, 128), (129, 131), (131, 130)):
        (gradient,) = torch.autograd.grad(
            network.levels({"a": image}, {"a": torch.zeros(1, 1, 256, 256)}, torch.tensor([100]))[0][
                0, :, row, col
            ].sum(),
            image,
        )
        rows, cols = torch.nonzero(gradient[0, 0], as_tuple=True)
        farthest = max(farthest, int((rows - row).abs().max()), int((cols - col).abs().max()))
    assert Denoiser.REACH - 4 < farthest <= Denoiser.REACH


def test_training_begins_at_the_bound_of_independent_pixels() -> None:
    network = Denoiser(CHANNELS, 8)
    for head in network.noise_heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    clean = {name: DEVIATION * image for name, image in images(8, 64).items()}
    noise = images(8, 64, seed=1)
    for t in (50, 300, 700):
        alpha = signal_alpha()[t]
        noisy = {name: add_noise(image, noise[name], alpha.expand(8)) for name, image in clean.items()}
        found = network(noisy, shown(8, 64), torch.full((8,), t)).noise
        for name in CHANNELS:
            error = float((found[name] - noise[name]).square().mean().detach())
            assert error == pytest.approx(float(wiener_bound(alpha, DEVIATION**2)), rel=0.05)


@pytest.mark.parametrize(("channels", "height"), [({"a": 3}, 12), ({"a": 1, "b": 2, "c": 17}, 8)])
def test_any_number_of_modalities_and_any_multiple_of_four(channels: dict[str, int], height: int) -> None:
    network = Denoiser(channels, 8)
    noisy = {name: torch.randn(1, c, height, 20) for name, c in channels.items()}
    hidden = {name: torch.zeros(1, 1, height, 20) for name in channels}
    found = network(noisy, hidden, torch.tensor([3]))
    assert {name: value.shape[1] for name, value in found.noise.items()} == channels


def test_it_learns_from_neighbours_below_the_bound() -> None:
    """On smooth images neighbours determine each other: a few steps go far below what single pixels allow."""
    torch.manual_seed(0)
    network = Denoiser({"a": 1}, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    alpha, mask = signal_alpha(), torch.zeros(8, 1, 8, 8)
    error = 0.0
    for step in range(80):
        image = DEVIATION * torch.randn(8, 1, 1, 1).expand(8, 1, 8, 8)
        noise = torch.randn(8, 1, 8, 8)
        times = torch.full((8,), 300)
        found = network({"a": add_noise(image, noise, alpha[times])}, {"a": mask}, times).noise["a"]
        loss = (found - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        error += float(loss.detach()) / 20 * (step >= 60)
    assert error < 0.5 * float(wiener_bound(alpha[300], DEVIATION**2))
