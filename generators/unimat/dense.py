"""The diffusion process of the ``unet3d`` variant, over UniMat's dense tensors (arXiv 2311.09235); torch and numpy.

Atoms and lattice are one variance-preserving process. What is known of a crystal (that a slot is empty, because the
composition or the set of elements says so) is never noisy: it is put back after every step and left out of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from generators import lattice as lattices
from generators.conditions import hide
from generators.data import CrystalArrays
from generators.diffusion import (
    DEFAULT_SAMPLER,
    LogSNRSchedule,
    Parametrisation,
    Sampler,
    diffuse,
    predicted_x,
    training_target,
)
from generators.unimat.model import CrystalBatch, OnStep, UniMatModel
from generators.unimat.representation import (
    DenseLayout,
    decode,
    decode_atoms,
    encode,
    occupied_slots,
    random_rotations,
    shuffled_slots,
)
from generators.unimat.unet import UNet3D

LATTICE_LIMIT = 6.0
"""Largest estimate of a standardised lattice number in the sampler."""


@dataclass(frozen=True)
class DenseModelConfig:
    """Everything that, with the weights, defines a dense model; stored in the checkpoint.

    The paper's own model has ``absence=null_location`` in the layout, ``parametrisation=epsilon``,
    ``loss_weighting=mean`` and ``width=256``.

    Parameters
    ----------
    layout
        How crystals are laid out as tensors.
    width, multipliers, blocks, head_dim, dropout
        Of the network, see :class:`generators.unimat.unet.UNet3D`.
    parametrisation
        What the network predicts.
    schedule
        λ(t).
    loss_weighting
        ``balanced``: coordinates of atoms, coordinates of empty slots, occupancy and lattice count the same.
        ``mean``: each number of the tensor does (the lattice is there at every place).
    element_set_fraction, unconditional_fraction
        Shares of training crystals of which only the elements are known, and nothing; of the others the exact
        composition is.
    property_names
        Auxiliary properties the model can be conditioned on.
    property_dropout
        Share of training crystals whose properties are all hidden; of the others each value is, half of the time.
    """

    layout: DenseLayout = field(default_factory=DenseLayout)
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 3
    head_dim: int = 64
    dropout: float = 0.1
    parametrisation: Parametrisation = "v"
    schedule: LogSNRSchedule = field(default_factory=LogSNRSchedule)
    loss_weighting: Literal["balanced", "mean"] = "balanced"
    element_set_fraction: float = 0.25
    unconditional_fraction: float = 0.25
    property_names: tuple[str, ...] = ()
    property_dropout: float = 0.1

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DenseModelConfig:
        """Read the form that ``dataclasses.asdict`` gives, also after JSON."""
        layout = data["layout"]
        return replace(
            cls(),
            **{
                **data,
                "layout": DenseLayout(
                    **{**layout, "periods": tuple(layout["periods"]), "groups": tuple(layout["groups"])}
                ),
                "multipliers": tuple(data["multipliers"]),
                "schedule": LogSNRSchedule(**data["schedule"]),
                "property_names": tuple(data["property_names"]),
            },
        )


@dataclass(frozen=True)
class Known:
    """What is known of crystals before they are sampled.

    Parameters
    ----------
    free
        Bool, shape (B, L, H, W, C): the numbers that are diffused.
    values
        The others' values, shape (B, L, H, W, C).
    channels
        The condition as input of the network, shape (B, 2, L, H, W): occupied slots of an exact composition; places of
        the allowed elements. All zero if nothing is known.
    """

    free: Tensor
    values: Tensor
    channels: Tensor

    def put_back(self, atoms: Tensor) -> Tensor:
        """Return `atoms` (B, L, H, W, C) with the known numbers in their places."""
        return torch.where(self.free, atoms, self.values)


class DenseModel(UniMatModel):
    """UniMat's diffusion over the whole table, conditioned on a composition, a set of elements or nothing."""

    kind = "unimat-unet3d"
    table: Tensor

    def __init__(self, config: DenseModelConfig) -> None:
        cartesian = config.layout.coordinates == "cartesian"
        super().__init__(config, lattice_size=9 if cartesian else 6)
        self.config = config
        self.cartesian = cartesian
        self.periodic_features = not cartesian and config.layout.absence == "occupancy"
        lattice_size = len(self.lattice_mean)
        inputs = config.layout.channels + lattice_size + 2 + (6 if self.periodic_features else 0)
        self.network = UNet3D(
            inputs,
            config.layout.channels + lattice_size,
            config.layout.shape[1:],
            width=config.width,
            multipliers=config.multipliers,
            blocks=config.blocks,
            head_dim=config.head_dim,
            dropout=config.dropout,
            property_names=config.property_names,
        )
        self.register_buffer("table", torch.from_numpy(config.layout.atomic_numbers), persistent=False)

    def misfit(self, numbers: np.ndarray) -> str | None:
        """Return why a cell of the given atomic numbers does not fit the layout, or None if it does."""
        return self.config.layout.misfit(numbers)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that a call returns."""
        occupancy = ("occupancy",) if self.config.layout.absence == "occupancy" else ()
        return "coordinates", "empty", *occupancy, "lattice"

    def fit_normalisation(self, data: CrystalArrays) -> None:
        """Set mean and standard deviation of lattice numbers and properties to those of `data`.

        Lattice vectors of Cartesian crystals, whose orientation is random, share one standard deviation.
        """
        if not self.cartesian:
            super().fit_normalisation(data)
            return
        vectors = torch.from_numpy(data.lattice / np.cbrt(data.n_atoms)[:, None, None])
        self.lattice_std.fill_(vectors.square().mean().sqrt())
        self._fit_properties(data)

    def batch(self, data: CrystalArrays) -> CrystalBatch:
        """Return `data` as a padded batch of clean crystals."""
        return self.crystals(data)

    def _lattice_numbers(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """Return standardised lattice numbers, shape (B, 6), or (B, 9) if Cartesian, float32."""
        if self.cartesian:
            numbers = (vectors / counts.double()[:, None, None] ** (1 / 3)).flatten(1)
        else:
            numbers = lattices.encode(vectors, counts.double())
        return (numbers.float() - self.lattice_mean) / self.lattice_std

    def _vectors(self, lattice: Tensor, counts: Tensor) -> Tensor:
        """Return lattice vectors, Å, float64, of standardised lattice numbers."""
        numbers = (lattice * self.lattice_std + self.lattice_mean).double()
        if self.cartesian:
            return numbers.unflatten(1, (3, 3)) * counts.double()[:, None, None] ** (1 / 3)
        return lattices.decode(numbers, counts.double())

    def known(self, occupied: Tensor, allowed: Tensor, exact: Tensor) -> Known:
        """Return what is known of crystals.

        Parameters
        ----------
        occupied
            Slots of the composition, bool, shape (B, L, H, W); used where `exact` is true.
        allowed
            Places of the elements, bool, shape (B, H, W); all true where nothing is known.
        exact
            Whether the exact composition is known, bool, shape (B,).
        """
        layout = self.config.layout
        exact = exact[:, None, None, None]
        occupied = occupied & exact
        allowed = (allowed & (self.table > 0))[:, None].expand_as(occupied)
        restricted = (allowed != (self.table > 0)).flatten(1).any(1)[:, None, None, None]
        may_be_atom = torch.where(exact, occupied, allowed)
        free = may_be_atom[..., None].repeat(1, 1, 1, 1, layout.channels)
        values = torch.full(free.shape, -1.0, device=free.device)
        if layout.absence == "occupancy":
            values[..., :3] = 0.0
            values[..., 3] = torch.where(occupied, 1.0, -1.0)
            free[..., 3] &= ~exact
        elements = allowed & (restricted | exact)
        return Known(free, values, torch.stack([occupied.float(), elements.float()], dim=1))

    def _predict(
        self, atoms: Tensor, lattice: Tensor, known: Known, log_snr: Tensor, properties: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the network's output for atoms (B, L, H, W, C) and lattice numbers, which is the mean over places."""
        features = [atoms.permute(0, 4, 1, 2, 3), known.channels]
        if self.periodic_features:
            angles = torch.pi * features[0][:, :3]
            features += [angles.sin(), angles.cos()]
        features.append(lattice[:, :, None, None, None].expand(-1, -1, *self.config.layout.shape))
        output = self.network(torch.cat(features, dim=1), log_snr, properties)
        channels = self.config.layout.channels
        return output[:, :channels].permute(0, 2, 3, 4, 1), output[:, channels:].mean((2, 3, 4))

    def forward(self, batch: CrystalBatch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the mean squared errors that `loss_names` names, at random times.

        Crystals are augmented: a random origin, random slots, and for Cartesian coordinates a random orientation.
        """
        config, layout = self.config, self.config.layout
        numbers, device = batch.numbers, batch.frac.device
        b = len(numbers)

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator).to(device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(device)

        frac = (batch.frac + uniform(b, 1, 3)) % 1.0
        vectors = batch.vectors
        if self.cartesian:
            vectors = vectors @ random_rotations(b, generator).to(vectors)
        slots = shuffled_slots(numbers, layout, generator)
        with torch.autocast(device.type, enabled=False):
            atoms = encode(numbers, frac, vectors.float(), slots, layout)
        lattice = self._lattice_numbers(vectors, (numbers > 0).sum(1))

        occupied = occupied_slots(numbers, slots, layout)
        kind = uniform(b)
        unconditional = kind < config.unconditional_fraction
        exact = kind >= config.unconditional_fraction + config.element_set_fraction
        known = self.known(occupied, occupied.any(1) | unconditional[:, None, None], exact)
        properties = batch.properties
        if properties.shape[1]:
            properties = hide(properties, config.property_dropout, generator)

        time = (uniform(1) + torch.arange(b, device=device) / b) % 1.0
        log_snr = config.schedule(time.double()).float()
        per_atom, per_lattice = log_snr[:, None, None, None, None], log_snr[:, None]
        noise, lattice_noise = normal(atoms), normal(lattice)
        noisy = known.put_back(diffuse(atoms, noise, per_atom))
        output, lattice_output = self._predict(
            noisy, diffuse(lattice, lattice_noise, per_lattice), known, log_snr, properties
        )
        error = (output - training_target(atoms, noise, per_atom, config.parametrisation)) ** 2
        lattice_error = lattice_output - training_target(lattice, lattice_noise, per_lattice, config.parametrisation)

        coordinates = torch.arange(layout.channels, device=device) < 3
        of_atoms = occupied[..., None] & coordinates
        groups = [of_atoms, ~of_atoms & coordinates]
        if layout.absence == "occupancy":
            groups.append(~coordinates.expand_as(of_atoms))
        counts = [(known.free & group).sum() for group in groups]
        losses = [
            (error * (known.free & group)).sum() / count.clamp(min=1)
            for group, count in zip(groups, counts, strict=True)
        ]
        losses.append((lattice_error**2).mean())
        if config.loss_weighting == "balanced":
            return tuple(losses)
        counts.append(torch.tensor(lattice.numel() * occupied[0].numel(), device=device))
        total = torch.stack(counts).sum()
        return tuple(loss * count / total for loss, count in zip(losses, counts, strict=True))

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
        """Sample crystals of given atoms, which fit the layout; see :meth:`UniMatModel.sample`."""
        layout = self.config.layout
        given = torch.from_numpy(numbers).to(self.table.device)
        slots = shuffled_slots(given, layout, generator)
        occupied = occupied_slots(given, slots, layout)
        counts = (given > 0).sum(1)

        def finished(atoms: Tensor, lattice: Tensor) -> tuple[np.ndarray, np.ndarray]:
            vectors = self._vectors(lattice, counts)
            frac = decode_atoms(atoms.double(), vectors, slots, given, layout)
            return frac.cpu().numpy(), vectors.cpu().numpy()

        known = self.known(occupied, occupied.any(1), torch.ones(len(given), dtype=torch.bool, device=given.device))
        atoms, lattice = self._denoise(
            known,
            generator,
            sampler,
            self._wanted(len(given), properties),
            guidance_weight,
            None if on_step is None else lambda t, a, v: on_step(t, *finished(a, v)),
        )
        return finished(atoms, lattice)

    @torch.no_grad()
    def sample_elements(
        self,
        elements: Sequence[int] | None,
        n: int,
        *,
        generator: torch.Generator,
        sampler: Sampler = DEFAULT_SAMPLER,
        properties: Mapping[str, float] | None = None,
        guidance_weight: float = 1.0,
    ) -> CrystalArrays:
        """Sample `n` crystals of any number of atoms; one without atoms is possible.

        Parameters
        ----------
        elements
            Atomic numbers that may occur; None allows all of the layout (unconditional generation).
        n
            How many.
        generator, sampler, properties, guidance_weight
            As in :meth:`sample`.
        """
        layout = self.config.layout
        allowed = self.table > 0
        if elements is not None:
            allowed &= torch.isin(self.table, torch.tensor(elements, device=self.table.device))
        none = torch.zeros(n, *layout.shape, dtype=torch.bool, device=self.table.device)
        known = self.known(none, allowed.expand(n, -1, -1), none[:, 0, 0, 0])
        wanted = self._wanted(n, properties)
        atoms, lattice = self._denoise(known, generator, sampler, wanted, guidance_weight)
        present = decode(atoms, torch.eye(3).expand(n, 3, 3), layout).n_atoms
        counts = torch.from_numpy(present).to(lattice.device).clamp(min=1)
        return decode(atoms.double(), self._vectors(lattice, counts), layout)

    def _denoise(
        self,
        known: Known,
        generator: torch.Generator,
        sampler: Sampler,
        wanted: Tensor,
        guidance_weight: float,
        on_step: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Return atoms (B, L, H, W, C) and standardised lattice numbers."""
        device = known.free.device
        b = len(known.free)
        lattice_size = len(self.lattice_mean)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        guided = bool(torch.isfinite(wanted).any())
        atoms = known.put_back(normal(*known.free.shape))
        lattice = normal(b, lattice_size)
        levels = self.config.schedule(sampler.grid).float().to(device)
        for (t, s), (now, later) in zip(pairwise(levels), pairwise(sampler.grid.tolist()), strict=True):
            output = self._predict(atoms, lattice, known, t.expand(b), wanted)
            if guided:
                plain = self._predict(atoms, lattice, known, t.expand(b), torch.full_like(wanted, torch.nan))
                output = (
                    (1 + guidance_weight) * output[0] - guidance_weight * plain[0],
                    (1 + guidance_weight) * output[1] - guidance_weight * plain[1],
                )
            atoms_hat = predicted_x(output[0], atoms, t, self.config.parametrisation).clamp(-1.0, 1.0)
            lattice_hat = predicted_x(output[1], lattice, t, self.config.parametrisation)
            lattice_hat = lattice_hat.clamp(-LATTICE_LIMIT, LATTICE_LIMIT)
            if later == 0:
                return known.put_back(atoms_hat), lattice_hat
            atoms = sampler.step(atoms, atoms_hat, t, s, generator, sampler.speed(now))
            lattice = sampler.step(lattice, lattice_hat, t, s, generator)
            atoms = known.put_back(atoms)
            if on_step is not None:
                on_step(later, atoms, lattice)
        raise AssertionError("the grid ends at 0")
