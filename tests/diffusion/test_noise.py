"""The schedule of noise, and what is known of noise in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landfuse.diffusion.noise import add_noise, signal_alpha, wiener_bound
from landfuse.diffusion.settings import STEPS


def test_the_schedule_is_that_of_diffusers() -> None:
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    theirs = scheduling.DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2")
    # They multiply 1000 factors in single precision, we in double.
    torch.testing.assert_close(signal_alpha(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    images, noise = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    times = torch.tensor([0, 50, 150, 300, 999])
    torch.testing.assert_close(
        add_noise(images, noise, signal_alpha()[times]), theirs.add_noise(images, noise, times), rtol=1e-4, atol=1e-5
    )


def test_the_signal_fades_from_all_to_nothing() -> None:
    alpha = signal_alpha()
    assert alpha.shape == (STEPS,)
    assert (alpha.diff() < 0).all()
    assert alpha[0] > 0.9999
    assert 0 < alpha[-1] < 1e-6
    # The cosine itself where no step is cut: cos²((t / T + s) / (1 + s) pi / 2), up to its value at 0.
    t = np.array([49, 299, 599])
    cosine = np.cos(((t + 1) / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha[t].numpy(), cosine, rtol=1e-5)


def test_a_noisy_image_is_image_and_noise_by_their_fractions_of_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(3, 2, 50, 50, generator=generator) for _ in range(2))
    alpha = signal_alpha()[torch.tensor([10, 300, 600])]
    noisy = add_noise(images, noise, alpha)
    for number, a in enumerate(alpha.double()):
        by_hand = a.sqrt() * images[number].double() + (1 - a).sqrt() * noise[number].double()
        torch.testing.assert_close(noisy[number].double(), by_hand, rtol=1e-5, atol=1e-5)
        found = (noisy[number].double() - (1 - a).sqrt() * noise[number]) / a.sqrt()
        torch.testing.assert_close(found.float(), images[number], rtol=1e-4, atol=1e-4)
    assert float(noisy.var()) == pytest.approx(1, abs=0.03), "the variance stays"


def test_the_bound_is_the_error_of_the_best_linear_guess() -> None:
    generator = torch.Generator().manual_seed(0)
    image = 0.5 * torch.randn(1, 1, 700, 700, generator=generator)
    noise = torch.randn(image.shape, generator=generator)
    for t in (50, 300, 700):
        alpha = signal_alpha()[t]
        noisy = add_noise(image, noise, alpha[None])
        best = (noisy * noise).mean() / noisy.square().mean() * noisy
        assert float((best - noise).square().mean()) == pytest.approx(float(wiener_bound(alpha, 0.25)), rel=0.01)
