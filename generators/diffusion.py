"""Noise schedules, parametrisations and sampler steps shared by diffusion generators; torch only.

All processes are continuous in time, t ∈ [0, 1], and written with the log signal-to-noise ratio λ:
α² = sigmoid(λ), σ² = sigmoid(−λ), z_t = α x + σ ε (Kingma et al., arXiv 2107.00630; Ho et al., arXiv 2204.03458).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Parametrisation = Literal["epsilon", "v", "x"]


@dataclass(frozen=True)
class LogSNRSchedule:
    """Log-SNR λ(t), decreasing from `maximum` at t = 0 to `minimum` at t = 1.

    Parameters
    ----------
    kind
        ``cosine``: λ(t) = −2 log tan(a t + b) with b = atan(e^{−λmax/2}), a = atan(e^{−λmin/2}) − b.
        ``linear``: λ(t) linear in t, that is, noise levels spaced geometrically.
    minimum, maximum
        Bounds of λ.
    """

    kind: Literal["cosine", "linear"] = "cosine"
    minimum: float = -20.0
    maximum: float = 20.0

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __call__(self, t: Tensor) -> Tensor:
        """Return λ(t), float32 or wider, same shape as `t`."""
        if self.kind == "linear":
            return self.maximum + (self.minimum - self.maximum) * t
        b = math.atan(math.exp(-self.maximum / 2))
        a = math.atan(math.exp(-self.minimum / 2)) - b
        return -2.0 * torch.log(torch.tan(a * t + b))


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return α and σ of the variance-preserving process at λ."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def diffuse(x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """Return z = α x + σ ε."""
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * x + sigma * noise


def training_target(x: Tensor, noise: Tensor, log_snr: Tensor, parametrisation: Parametrisation) -> Tensor:
    """Return what a network predicts: ε, v = α ε − σ x, or x."""
    if parametrisation == "epsilon":
        return noise
    if parametrisation == "x":
        return x
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * noise - sigma * x


def predicted_x(output: Tensor, z: Tensor, log_snr: Tensor, parametrisation: Parametrisation) -> Tensor:
    """Return the denoised estimate x̂ that a network's `output` at `z` means."""
    if parametrisation == "x":
        return output
    alpha, sigma = alpha_sigma(log_snr)
    if parametrisation == "epsilon":
        return (z - sigma * output) / alpha
    return alpha * z - sigma * output


@dataclass(frozen=True)
class Sampler:
    """How noise becomes data: steps along the uniform grid from t = 1 to 0.

    Parameters
    ----------
    steps
        Network evaluations.
    gamma
        Log-variance interpolation γ of ancestral steps.
    deterministic
        Take DDIM steps instead.
    anti_annealing
        Slope s′ of inference anti-annealing (FlowMM, arXiv 2406.04713): at time t a step goes 1 + s′ (1 − t) times as
        far from where it is towards the estimate x̂, and never beyond. 0 samples the distribution that was learned; more
        favours its modes: closer to the likeliest crystal, and less diverse.
    """

    steps: int = 100
    gamma: float = 0.1
    deterministic: bool = False
    anti_annealing: float = 0.0

    @property
    def grid(self) -> Tensor:
        """Times, float64, shape (steps + 1,)."""
        return torch.linspace(1.0, 0.0, self.steps + 1, dtype=torch.float64)

    def speed(self, t: float) -> float:
        """Return how many times as far as the plain process a step at time t goes."""
        return 1.0 + self.anti_annealing * (1.0 - t)

    def step(
        self,
        z: Tensor,
        x_hat: Tensor,
        log_snr_t: Tensor,
        log_snr_s: Tensor,
        generator: torch.Generator,
        speed: float = 1.0,
    ) -> Tensor:
        """Take one step from time t to an earlier time s; an ancestral one draws its noise from `generator` (CPU)."""
        if self.deterministic:
            return deterministic_step(z, x_hat, log_snr_t, log_snr_s, speed)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
        return ancestral_step(z, x_hat, log_snr_t, log_snr_s, noise, self.gamma, speed)


DEFAULT_SAMPLER = Sampler()


def ancestral_step(
    z: Tensor,
    x_hat: Tensor,
    log_snr_t: Tensor,
    log_snr_s: Tensor,
    noise: Tensor,
    gamma: float = 0.1,
    speed: float = 1.0,
) -> Tensor:
    """Take one ancestral step from time t to an earlier time s.

    Mean r (α_s/α_t) z + (1 − r) α_s x̂ with r = exp(λ_t − λ_s); variance interpolated in the logarithm between the
    posterior's (1 − r) σ_s² (γ = 0) and the forward process's (1 − r) σ_t² (γ = 1). In the mean, 1 − r is multiplied by
    `speed`, up to 1.
    """
    alpha_t, sigma_t = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    moved = -torch.expm1(log_snr_t - log_snr_s)
    mean = torch.lerp((alpha_s / alpha_t) * z, alpha_s * x_hat, (speed * moved).clamp(max=1.0))
    return mean + moved.sqrt() * sigma_s ** (1 - gamma) * sigma_t**gamma * noise


def deterministic_step(z: Tensor, x_hat: Tensor, log_snr_t: Tensor, log_snr_s: Tensor, speed: float = 1.0) -> Tensor:
    """Take one deterministic (DDIM, arXiv 2010.02502) step from time t to an earlier time s.

    It is (1 − m) (α_s/α_t) z + m α_s x̂ with m = 1 − exp((λ_t − λ_s)/2), which is multiplied by `speed`, up to 1.
    """
    alpha_t, _ = alpha_sigma(log_snr_t)
    alpha_s, _ = alpha_sigma(log_snr_s)
    moved = -torch.expm1((log_snr_t - log_snr_s) / 2)
    return torch.lerp((alpha_s / alpha_t) * z, alpha_s * x_hat, (speed * moved).clamp(max=1.0))


def wrap(x: Tensor, period: float = 1.0) -> Tensor:
    """Return the minimum image of `x` in [−period/2, period/2)."""
    return x - period * torch.floor(x / period + 0.5)


def wrapped_normal_noise(displacement: Tensor, std: Tensor, images: int = 3) -> Tensor:
    """Return −std · ∇ log p(displacement), p a wrapped normal of unit period.

    It is the expectation of the noise ε that led to `displacement` = std · ε (mod 1); where std is small it is
    displacement/std itself. Softmax over images −`images`…`images`.
    """
    offsets = torch.arange(-images, images + 1, dtype=displacement.dtype, device=displacement.device)
    candidates = (displacement.unsqueeze(-1) + offsets) / std.unsqueeze(-1)
    weights = torch.softmax(-0.5 * candidates**2, dim=-1)
    return (weights * candidates).sum(-1)
