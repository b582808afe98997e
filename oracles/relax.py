"""One guarded relaxation for every oracle that speaks through an ASE calculator."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from discovery.crystal import Crystal
from discovery.protocols import PluginConfig
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

MIN_VOLUME_PER_ATOM = 1.0  # Å³; a fifth of diamond's, the densest arrangement of atoms at ambient pressure


class RelaxConfig(PluginConfig):
    """Settings of a relaxation and its guards; oracles extend it."""

    relax: bool = Field(True, description="Relax atoms and cell; false computes the crystal as it is given.")
    fmax: float = Field(0.05, gt=0, le=1, description="Largest force on an atom after relaxation, eV/Å.")
    smax: float = Field(
        0.0005, gt=0, le=0.1, description="Largest stress component after relaxation, eV/Å³ (0.00624 eV/Å³ = 1 GPa)."
    )
    max_steps: int = Field(500, ge=1, description="Steps after which a relaxation counts as not converged.")
    max_seconds: float = Field(600.0, gt=0, description="Wall time one crystal may take, seconds.")
    max_volume_ratio: float = Field(
        3.0, gt=1, description="Growth or shrinkage of the cell's volume beyond which a relaxation is unphysical."
    )
    max_force: float = Field(1e3, gt=0, description="Force on an atom beyond which a crystal is unphysical, eV/Å.")
    min_distance: float = Field(
        0.4,
        ge=0,
        lt=1,
        description="Closest approach of two atoms, as a fraction of the sum of their covalent radii.",
    )


@dataclass(frozen=True)
class _Guards:
    """What ends a relaxation early; one instance per crystal."""

    config: RelaxConfig
    initial_volume: float
    start: float

    def check(self, atoms: Atoms) -> Failure | None:
        """Return why `atoms`, whose forces are known, must not be followed further."""
        forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
        if not (np.isfinite(atoms.get_potential_energy()) and np.isfinite(forces).all() and np.isfinite(stress).all()):
            return Failure(FailureKind.UNPHYSICAL, "energy, forces or stress are not finite")
        largest = float(np.linalg.norm(forces, axis=1).max())
        if largest > self.config.max_force:
            message = f"force of {largest:.3g} eV/Å exceeds max_force={self.config.max_force:g} eV/Å"
            return Failure(FailureKind.UNPHYSICAL, message)
        return None

    def check_geometry(self, atoms: Atoms) -> Failure | None:
        """Return why the geometry of `atoms` is not worth a calculation."""
        ratio = atoms.cell.volume / self.initial_volume
        limit = self.config.max_volume_ratio
        if not (np.isfinite(atoms.positions).all() and 1 / limit <= ratio <= limit):
            message = f"the cell's volume changed by a factor {ratio:.3g}, beyond max_volume_ratio={limit:g}"
            return Failure(FailureKind.UNPHYSICAL, message)
        if time.perf_counter() - self.start > self.config.max_seconds:
            message = f"relaxation took longer than max_seconds={self.config.max_seconds:g} s"
            return Failure(FailureKind.TIMEOUT, message)
        return overlap(Crystal.from_atoms(atoms), self.config.min_distance)


def overlap(crystal: Crystal, min_distance: float) -> Failure | None:
    """Return a failure if atoms of `crystal` overlap or its cell is collapsed.

    Parameters
    ----------
    crystal
        Crystal to look at; periodic images, also of an atom itself, count.
    min_distance
        Closest allowed approach as a fraction of the sum of the two covalent radii (Cordero et al.,
        Dalton Trans. 2832, 2008).
    """
    from ase.data import chemical_symbols, covalent_radii
    from ase.neighborlist import neighbor_list

    if crystal.volume < MIN_VOLUME_PER_ATOM * len(crystal):
        message = f"{crystal.volume:.3g} Å³ for {len(crystal)} atoms, less than {MIN_VOLUME_PER_ATOM:g} Å³ per atom"
        return Failure(FailureKind.UNPHYSICAL, message)
    radii = min_distance * covalent_radii[crystal.atomic_numbers]
    first, second, distance = neighbor_list("ijd", crystal.to_atoms(), radii)
    if not len(distance):
        return None
    closest = int(np.argmin(distance))
    pair = "–".join(chemical_symbols[crystal.atomic_numbers[i[closest]]] for i in (first, second))
    message = f"atoms overlap: {pair} at {distance[closest]:.3g} Å, less than {min_distance:g} of their covalent radii"
    return Failure(FailureKind.UNPHYSICAL, message)


def reject(crystal: Crystal, supported: Collection[int], min_distance: float) -> Failure | None:
    """Return why `crystal` cannot be computed at all, or None.

    Parameters
    ----------
    crystal
        Crystal to look at.
    supported
        Atomic numbers that the oracle has parameters for.
    min_distance
        As in :func:`overlap`.
    """
    from ase.data import chemical_symbols

    if not len(crystal):
        return Failure(FailureKind.INVALID_INPUT, "the crystal has no atoms")
    missing = sorted(set(crystal.atomic_numbers.tolist()) - set(supported))
    if missing:
        names = ", ".join(chemical_symbols[z] for z in missing)
        return Failure(FailureKind.INVALID_INPUT, f"this oracle has no parameters for {names}")
    return overlap(crystal, min_distance)


def evaluate(
    crystal: Crystal,
    calculator: Calculator,
    *,
    energy_scale: EnergyScale,
    supported: Collection[int],
    config: RelaxConfig,
    optimizer: Literal["FIRE", "BFGS"] = "FIRE",
    magnetic_moments: Sequence[float] | None = None,
) -> Evaluation:
    """Compute `crystal` with an ASE calculator, relaxed if the configuration says so.

    Atoms and cell move together (``FrechetCellFilter``). The relaxation ends when the largest force *and* the
    largest stress component are within tolerance: the filter's own criterion divides the virial by the number of atoms,
    so that the stress it lets pass depends on the volume per atom. One that does not end within ``max_steps`` is a
    failure of kind ``not_converged``.

    Parameters
    ----------
    crystal
        The crystal as given.
    calculator
        ASE calculator with energy (eV per cell), forces and stress (eV/Å³).
    energy_scale
        Scale of the calculator's energies.
    supported
        Atomic numbers that the calculator has parameters for.
    config
        Tolerances and guards.
    optimizer
        ASE optimiser: FIRE finds its way from distorted crystals, BFGS needs fewer calculations near a minimum.
    magnetic_moments
        Initial moment of each atom in µB, for calculators that use them.

    Returns
    -------
    Evaluation
        Failures are in it; this function does not raise for a bad crystal.
    """
    start = time.perf_counter()
    details: dict[str, Any] = {}
    failure = reject(crystal, supported, config.min_distance)
    if failure is None:
        atoms = crystal.to_atoms()
        atoms.set_initial_magnetic_moments(magnetic_moments)
        atoms.calc = calculator
        guards = _Guards(config, crystal.volume, start)
        try:
            failure = _relax(atoms, guards, optimizer, details) if config.relax else guards.check(atoms)
        except Exception as error:
            failure = _failure_of(error)
    if failure is not None:
        seconds = time.perf_counter() - start
        return Evaluation(energy_scale, seconds=seconds, details=details, failure=failure)
    return Evaluation(
        energy_scale,
        crystal=Crystal.from_atoms(atoms) if config.relax else crystal,
        energy=float(atoms.get_potential_energy()),
        forces=np.array(atoms.get_forces(), dtype=float),
        stress=np.array(atoms.get_stress(voigt=False), dtype=float),
        converged=True,
        seconds=time.perf_counter() - start,
        details=details,
    )


def _failure_of(error: Exception) -> Failure:
    """Return the failure that stands for an exception raised while computing one crystal."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    signs = ("MemoryError", "OutOfMemory", "out of memory", "can't allocate memory")
    memory = any(sign in text for sign in signs)
    if "isolated atom" in text:
        return Failure(FailureKind.UNPHYSICAL, f"an atom has no neighbour that the model can see ({text})")
    return Failure(FailureKind.OUT_OF_MEMORY if memory else FailureKind.CRASHED, text)


def _relax(atoms: Atoms, guards: _Guards, name: str, details: dict[str, Any]) -> Failure | None:
    """Relax `atoms` in place; return why it failed, or None once forces and stress are within tolerance."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS, FIRE

    config = guards.config
    optimizer = {"FIRE": FIRE, "BFGS": BFGS}[name](FrechetCellFilter(atoms), logfile=None)
    for _ in range(config.max_steps + 1):
        failure = guards.check_geometry(atoms) or guards.check(atoms)
        if failure is not None:
            return failure
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        stress = float(np.abs(atoms.get_stress()).max())
        details.update(
            steps=optimizer.nsteps,
            max_force=force,
            max_stress=stress,
            volume_ratio=float(atoms.cell.volume / guards.initial_volume),
        )
        if force <= config.fmax and stress <= config.smax:
            return None
        optimizer.step()
        optimizer.nsteps += 1
    message = (
        f"not relaxed after {config.max_steps} steps: largest force {force:.3g} eV/Å (fmax={config.fmax:g}), "
        f"largest stress {stress:.3g} eV/Å³ (smax={config.smax:g}); raise max_steps to go on"
    )
    return Failure(FailureKind.NOT_CONVERGED, message)
