"""What UniMat's variants share, and the diffusion process of the token variant; torch and numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from generators import lattice as lattices
from generators.conditions import SPACE_GROUP, hide
from generators.data import CrystalArrays
from generators.diffusion import (
    DEFAULT_SAMPLER,
    LogSNRSchedule,
    Sampler,
    alpha_sigma,
    diffuse,
    predicted_x,
    training_target,
    wrap,
    wrapped_normal_noise,
)
from generators.unimat.token import TokenBatch, TokenNetwork

OnStep = Callable[[float, np.ndarray, np.ndarray], None]
"""Takes t, fractional coordinates (B, N, 3) and lattice vectors (B, 3, 3) of unfinished samples."""


class ModelConfig(Protocol):
    """What the configurations of all variants have."""

    @property
    def property_names(self) -> tuple[str, ...]:
        """Auxiliary properties the model can be conditioned on."""
        ...


class CrystalBatch(NamedTuple):
    """Padded clean crystals.

    Parameters
    ----------
    numbers
        Atomic numbers, int64, shape (B, N); 0 marks padding.
    frac
        Fractional coordinates, float32, shape (B, N, 3).
    vectors
        Lattice vectors as rows, Å, float64, shape (B, 3, 3).
    properties
        Auxiliary properties, standardised but for the space group, shape (B, P); NaN where unknown.
    """

    numbers: Tensor
    frac: Tensor
    vectors: Tensor
    properties: Tensor


class UniMatModel(nn.Module):
    """A variant of UniMat: scales of its data, loss and sampler.

    Calling it as ``model(model.batch(data), generator)`` gives the losses that `loss_names` names; their sum is
    minimised.
    """

    kind: ClassVar[str]
    """What its checkpoints are marked with."""

    lattice_mean: Tensor
    lattice_std: Tensor
    property_mean: Tensor
    property_std: Tensor

    def __init__(self, config: ModelConfig, lattice_size: int = 6) -> None:
        super().__init__()
        self.property_names = config.property_names
        self.register_buffer("lattice_mean", torch.zeros(lattice_size))
        self.register_buffer("lattice_std", torch.ones(lattice_size))
        self.register_buffer("property_mean", torch.zeros(len(config.property_names)))
        self.register_buffer("property_std", torch.ones(len(config.property_names)))

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that a call returns."""
        raise NotImplementedError

    def fit_normalisation(self, data: CrystalArrays) -> None:
        """Set mean and standard deviation of lattice encodings and properties to those of `data`."""
        encoding = lattices.encode(torch.from_numpy(data.lattice), torch.from_numpy(data.n_atoms).double())
        self.lattice_mean.copy_(encoding.mean(0))
        self.lattice_std.copy_(encoding.std(0).clamp(min=1e-3))
        self._fit_properties(data)

    def _fit_properties(self, data: CrystalArrays) -> None:
        if data.properties.size:
            self.property_mean.copy_(torch.from_numpy(np.nan_to_num(np.nanmean(data.properties, axis=0))))
            self.property_std.copy_(torch.from_numpy(np.nan_to_num(np.nanstd(data.properties, axis=0), nan=1)) + 1e-6)
            if SPACE_GROUP in data.property_names:
                column = data.property_names.index(SPACE_GROUP)
                self.property_mean[column], self.property_std[column] = 0.0, 1.0

    def crystals(self, data: CrystalArrays) -> CrystalBatch:
        """Return `data` as tensors on the model's device, with standardised properties."""
        numbers, frac = data.padded()
        device = self.lattice_mean.device
        properties = torch.from_numpy(data.properties).float().to(device)
        return CrystalBatch(
            torch.from_numpy(numbers).to(device),
            torch.from_numpy(frac).float().to(device),
            torch.from_numpy(data.lattice).to(device),
            (properties - self.property_mean) / self.property_std,
        )

    def _wanted(self, n: int, properties: Mapping[str, float] | None) -> Tensor:
        """Return standardised wanted properties (n, P), NaN where nothing is wanted."""
        wanted = torch.full((n, len(self.property_names)), torch.nan, device=self.lattice_mean.device)
        for name, value in (properties or {}).items():
            index = self.property_names.index(name)
            wanted[:, index] = (value - self.property_mean[index]) / self.property_std[index]
        return wanted

    def batch(self, data: CrystalArrays) -> Any:
        """Return `data` as the batch of clean crystals that a call takes."""
        raise NotImplementedError

    def misfit(self, numbers: np.ndarray) -> str | None:  # noqa: ARG002
        """Return why the model cannot hold a cell of the given atomic numbers, shape (N,), or None if it can."""
        return None

    def sample(
        self,
        numbers: np.ndarray,
        *,
        generator: torch.Generator,
        sampler: Sampler = DEFAULT_SAMPLER,
        properties: Mapping[str, float] | None = None,
        guidance_weight: float = 1.0,
        on_step: OnStep | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample crystals of given atoms.

        Parameters
        ----------
        numbers
            Atomic numbers, int64, shape (B, N); 0 marks padding.
        generator
            CPU generator; all randomness comes from it.
        sampler
            Kind and number of steps; anti-annealing is that of the coordinates.
        properties
            Wanted values of auxiliary properties; None samples without guidance.
        guidance_weight
            ω of equation 2: ε̂ = (1 + ω) ε(x, t | c, aux) − ω ε(x, t | c).
        on_step
            Called after each step but the last with t, and with coordinates and lattices as they are returned.

        Returns
        -------
        frac, lattice
            Fractional coordinates (B, N, 3) and lattice vectors as rows (B, 3, 3), Å, float64.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TokenModelConfig:
    """Everything that, with the weights, defines a token model; stored in the checkpoint.

    Fractional coordinates are diffused on the torus with centred coordinates scaled to [−1, 1): the default schedule
    spans standard deviations from 0.41 (nearly uniform) to 0.015 of the cell. The lattice is its standardised
    log-metric encoding.
    """

    width: int = 160
    pair_width: int = 80
    layers: int = 5
    frequencies: int = 10
    radial: int = 24
    property_names: tuple[str, ...] = ()
    frac_schedule: LogSNRSchedule = field(default_factory=lambda: LogSNRSchedule("linear", 0.4, 7.0))
    lattice_schedule: LogSNRSchedule = field(default_factory=lambda: LogSNRSchedule("linear", -5.0, 10.0))
    property_dropout: float = 0.6

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenModelConfig:
        """Read the form that ``dataclasses.asdict`` gives."""
        return replace(
            cls(),
            **{
                **data,
                "property_names": tuple(data["property_names"]),
                "frac_schedule": LogSNRSchedule(**data["frac_schedule"]),
                "lattice_schedule": LogSNRSchedule(**data["lattice_schedule"]),
            },
        )


class TokenModel(UniMatModel):
    """UniMat's diffusion over occupied slots and the lattice, for exact compositions (arXiv 2311.09235)."""

    kind = "unimat-token"

    def __init__(self, config: TokenModelConfig) -> None:
        super().__init__(config)
        self.config = config
        self.network = TokenNetwork(
            config.width,
            config.pair_width,
            config.layers,
            config.frequencies,
            config.radial,
            config.property_names,
        )

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that a call returns."""
        return "coordinates", "lattice"

    def batch(self, data: CrystalArrays) -> TokenBatch:
        """Return `data` as a padded batch of clean crystals."""
        crystals = self.crystals(data)
        counts = (crystals.numbers > 0).sum(1).double()
        encoding = (lattices.encode(crystals.vectors, counts).float() - self.lattice_mean) / self.lattice_std
        return TokenBatch(crystals.numbers, crystals.frac, encoding, crystals.properties)

    def _metric(self, lattice: Tensor, n_atoms: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(lattice.device.type, enabled=False):
            return lattices.decode_metric(lattice * self.lattice_std + self.lattice_mean, n_atoms.to(lattice.dtype))

    def _predict(self, batch: TokenBatch, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(batch, self._metric(batch.lattice, batch.n_atoms), time)

    def forward(self, batch: TokenBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mean squared errors of coordinate noise and of the lattice's v at random times.

        The coordinate target is the wrapped normal's expected noise, without its mean over the atoms (a shift of the
        origin cannot be known); its error is averaged over atoms within a crystal, then over crystals.
        """
        b, n, _ = batch.frac.shape
        device = batch.frac.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        time = ((torch.rand(1, generator=generator) + torch.arange(b) / b) % 1.0).to(device)
        present = batch.mask[..., None].float()
        counts = batch.n_atoms.float()[:, None, None]

        std = self._frac_std(time)[:, None, None]
        noise = normal(b, n, 3)
        shift = torch.rand(b, 1, 3, generator=generator).to(device)
        target = wrapped_normal_noise(wrap(std * noise), std) * present
        target = (target - target.sum(1, keepdim=True) / counts) * present

        lattice_log_snr = self.config.lattice_schedule(time)[:, None]
        lattice_noise = normal(b, 6)
        lattice = diffuse(batch.lattice, lattice_noise, lattice_log_snr)

        properties = batch.properties
        if properties.shape[1]:
            properties = hide(properties, self.config.property_dropout, generator)

        noisy = TokenBatch(batch.numbers, batch.frac + shift + std * noise, lattice, properties)
        frac_output, lattice_output = self._predict(noisy, time)
        frac_loss = (((frac_output - target) ** 2) * present).sum((1, 2)) / (3 * counts[:, 0, 0])
        lattice_target = training_target(batch.lattice, lattice_noise, lattice_log_snr, "v")
        return frac_loss.mean(), ((lattice_output - lattice_target) ** 2).mean()

    def _frac_std(self, time: Tensor) -> Tensor:
        """Return the standard deviation of fractional coordinates at t: half of σ/α, as the period is 2."""
        return 0.5 * torch.exp(-0.5 * self.config.frac_schedule(time))

    @torch.no_grad()
    def sample(
        self,
        numbers: np.ndarray,
        *,
        generator: torch.Generator,
        sampler: Sampler = DEFAULT_SAMPLER,
        properties: Mapping[str, float] | None = None,
        guidance_weight: float = 1.0,
        on_step: OnStep | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample crystals of given atoms; see :meth:`UniMatModel.sample`."""
        device = self.lattice_mean.device
        atoms = torch.from_numpy(numbers).to(device)
        b, n = atoms.shape
        counts = (atoms > 0).sum(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        wanted = self._wanted(b, properties)
        frac = torch.rand(b, n, 3, generator=generator).to(device)
        lattice = normal(b, 6)
        for t, s in pairwise(sampler.grid.float().to(device)):
            time = t.expand(b)
            noise, v = self._predict(TokenBatch(atoms, frac, lattice, wanted), time)
            if properties:
                plain_noise, plain_v = self._predict(
                    TokenBatch(atoms, frac, lattice, torch.full_like(wanted, torch.nan)), time
                )
                noise = (1 + guidance_weight) * noise - guidance_weight * plain_noise
                v = (1 + guidance_weight) * v - guidance_weight * plain_v
            frac_t, frac_s = self.config.frac_schedule(t), self.config.frac_schedule(s)
            lattice_t, lattice_s = self.config.lattice_schedule(t), self.config.lattice_schedule(s)
            frac_hat = 2 * (frac - self._frac_std(time)[:, None, None] * noise)
            lattice_hat = predicted_x(v, lattice, lattice_t, "v").clamp(-6.0, 6.0)
            if s == 0:
                frac, lattice = frac_hat / 2, lattice_hat
                break
            z = 2 * alpha_sigma(frac_t)[0] * frac
            z = sampler.step(z, frac_hat, frac_t, frac_s, generator, sampler.speed(float(t)))
            lattice = sampler.step(lattice, lattice_hat, lattice_t, lattice_s, generator)
            frac = wrap(z / (2 * alpha_sigma(frac_s)[0]))
            if on_step is not None:
                on_step(float(s), *self._finished(frac, lattice, counts))
        return self._finished(frac, lattice, counts)

    def _finished(self, frac: Tensor, lattice: Tensor, counts: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates and lattice vectors as :meth:`sample` does."""
        encoding = (lattice * self.lattice_std + self.lattice_mean).double()
        vectors = lattices.decode(encoding, counts.double())
        return (frac.double() % 1.0).cpu().numpy(), vectors.cpu().numpy()
