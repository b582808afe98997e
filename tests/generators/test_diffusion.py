"""The sampler against a case with a known denoiser, and the torus against the wrapped normal's own series."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from generators.diffusion import (
    LogSNRSchedule,
    Sampler,
    alpha_sigma,
    ancestral_step,
    deterministic_step,
    diffuse,
    predicted_x,
    training_target,
    wrap,
    wrapped_normal_noise,
)

SCHEDULES = [LogSNRSchedule(), LogSNRSchedule("linear", -8.0, 10.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_schedule_runs_from_maximum_to_minimum(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    log_snr = schedule(t)
    assert log_snr[0].item() == pytest.approx(schedule.maximum, abs=1e-6)
    assert log_snr[-1].item() == pytest.approx(schedule.minimum, abs=1e-6)
    assert (log_snr.diff() < 0).all()
    alpha, sigma = alpha_sigma(log_snr)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), log_snr)


@pytest.mark.parametrize("parametrisation", ["epsilon", "v", "x"])
def test_every_parametrisation_gives_back_x(parametrisation):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    log_snr = torch.linspace(-6, 6, 50, dtype=torch.float64)
    z = diffuse(x, noise, log_snr)
    target = training_target(x, noise, log_snr, parametrisation)
    torch.testing.assert_close(predicted_x(target, z, log_snr, parametrisation), x)


def sample_gaussian(schedule, mean, covariance, sampler, n=40_000):
    """Sample with the exact denoiser of a Gaussian, E[x|z] = μ + α C (α² C + σ²)⁻¹ (z − α μ)."""
    generator = torch.Generator().manual_seed(1)

    def denoise(z, log_snr):
        alpha, sigma = alpha_sigma(log_snr)
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(len(mean)))
        return mean + (z - alpha * mean) @ gain.T

    z = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    levels = schedule(sampler.grid)
    for time, (t, s) in zip(sampler.grid.tolist(), pairwise(levels[:-1]), strict=False):
        z = sampler.step(z, denoise(z, t), t, s, generator, sampler.speed(time))
    return denoise(z, levels[-2])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("kind", ["ancestral", "deterministic"])
def test_sampler_recovers_mean_and_covariance_of_a_gaussian(schedule, kind):
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)

    sampler = Sampler(256, gamma=0.0, deterministic=kind == "deterministic")
    x = sample_gaussian(schedule, mean, covariance, sampler)
    torch.testing.assert_close(x.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), covariance, atol=0.02, rtol=0)


@pytest.mark.parametrize("slope", [0.0, 1.0, 4.0])
def test_anti_annealing_keeps_the_mean_and_narrows_a_gaussian_as_its_equation_says(slope):
    """With τ = σ/α, dy/dτ = k(t) τ y/(τ² + c) for y = z/α − μ, k = 1 + s′(1 − t), and dτ/τ = Δλ/2 dt."""
    schedule, c = LogSNRSchedule("linear", -8.0, 10.0), 0.3
    sampler = Sampler(2000, deterministic=True, anti_annealing=slope)
    x = sample_gaussian(schedule, torch.tensor([0.7]).double(), torch.tensor([[c]]).double(), sampler, n=20_000)

    def rate(t):
        squared = math.exp(-schedule(torch.tensor(t, dtype=torch.float64)))
        return (1 + slope * (1 - t)) * squared / (squared + c) * (schedule.maximum - schedule.minimum) / 2

    std = math.exp(-schedule.minimum / 2 - quad(rate, 0, 1)[0])
    assert x.mean().item() == pytest.approx(0.7, abs=0.02)
    assert x.std().item() == pytest.approx(std, rel=0.05)
    assert slope > 0 or std == pytest.approx(math.sqrt(c), rel=0.02)


def test_a_fast_step_ends_at_the_estimate():
    z, x_hat = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor(-1.0), torch.tensor(1.0)
    without_noise = ancestral_step(z, x_hat, t, s, torch.zeros_like(z), speed=100.0)
    for moved in (deterministic_step(z, x_hat, t, s, speed=100.0), without_noise):
        torch.testing.assert_close(moved, alpha_sigma(s)[0] * x_hat)


def test_deterministic_steps_draw_no_noise():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    z = torch.zeros(5)
    t, s = torch.tensor(-1.0), torch.tensor(1.0)
    Sampler(deterministic=True).step(z, z, t, s, generator)
    assert torch.equal(generator.get_state(), before)
    Sampler().step(z, z, t, s, generator)
    assert not torch.equal(generator.get_state(), before)


def test_variance_interpolation_lies_between_posterior_and_forward_variance():
    z, x_hat = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    t, s, one = torch.tensor(-1.0).double(), torch.tensor(1.0).double(), torch.ones(1).double()
    std = [ancestral_step(z, x_hat, t, s, one, gamma).item() for gamma in (0.0, 0.5, 1.0)]
    factor = 1 - math.exp(-2)
    assert std[0] ** 2 == pytest.approx(factor / (1 + math.e))
    assert std[2] ** 2 == pytest.approx(factor / (1 + math.exp(-1)))
    assert std[1] ** 2 == pytest.approx(std[0] * std[2])


@pytest.mark.parametrize("std", [0.02, 0.1, 0.2, 0.41])
def test_wrapped_normal_noise_is_the_score_of_the_fourier_series(std):
    x = torch.linspace(-0.499, 0.499, 301, dtype=torch.float64, requires_grad=True)
    k = torch.arange(1, 200, dtype=torch.float64)
    weights = torch.exp(-2 * math.pi**2 * std**2 * k**2)
    density = 1 + 2 * (weights * torch.cos(2 * math.pi * k * x[:, None])).sum(-1)
    keep = density > 1e-3
    (gradient,) = torch.autograd.grad(density.clamp(min=1e-12).log()[keep].sum(), x)
    noise = wrapped_normal_noise(x.detach(), torch.full_like(x, std).detach())
    torch.testing.assert_close(noise[keep], -std * gradient[keep], atol=1e-5, rtol=1e-5)


def test_wrap_gives_the_minimum_image():
    x = torch.tensor([0.0, 0.49, 0.5, 0.51, -0.5, 1.25, -3.75], dtype=torch.float64)
    np.testing.assert_allclose(wrap(x), [0.0, 0.49, -0.5, -0.49, -0.5, 0.25, 0.25], atol=1e-12)
