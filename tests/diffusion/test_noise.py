"""The schedule of noise, and what is known about noise in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landfuse.diffusion.noise import STEPS, add_noise, remove_noise, signal_share, wiener_bound


def test_the_schedule_is_that_of_diffusers() -> None:
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    theirs = scheduling.DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2")
    # They multiply 1000 factors in single precision, we in double.
    torch.testing.assert_close(signal_share(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    images, noise = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    times = torch.tensor([0, 50, 150, 300, 999])
    torch.testing.assert_close(
        add_noise(images, noise, signal_share()[times]), theirs.add_noise(images, noise, times), rtol=1e-4, atol=1e-5
    )


def test_the_signal_fades_from_all_to_nothing() -> None:
    share = signal_share()
    assert share.shape == (STEPS,)
    assert (share.diff() < 0).all()
    assert share[0] > 0.9999
    assert 0 < share[-1] < 1e-6
    # The cosine itself where no step is cut: cos²((t / T + s) / (1 + s) pi / 2), up to its value at 0.
    t = np.array([49, 299, 599])
    cosine = np.cos(((t + 1) / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(share[t].numpy(), cosine, rtol=1e-5)


def test_removing_the_noise_that_was_added_gives_the_image() -> None:
    images, noise = torch.randn(3, 2, 5, 5), torch.randn(3, 2, 5, 5)
    share = signal_share()[torch.tensor([10, 300, 600])]
    noisy = add_noise(images, noise, share)
    torch.testing.assert_close(remove_noise(noisy, noise, share), images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noisy[1], share[1].sqrt() * images[1] + (1 - share[1]).sqrt() * noise[1])


def test_the_bound_is_the_error_of_the_best_linear_guess() -> None:
    generator = torch.Generator().manual_seed(0)
    image = 0.5 * torch.randn(1, 1, 700, 700, generator=generator)
    noise = torch.randn(image.shape, generator=generator)
    for t in (50, 300, 700):
        share = signal_share()[t]
        noisy = add_noise(image, noise, share[None])
        best = (noisy * noise).mean() / noisy.square().mean() * noisy
        assert float((best - noise).square().mean()) == pytest.approx(float(wiener_bound(share, 0.25)), rel=0.01)
