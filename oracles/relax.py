"""One guarded relaxation for every oracle: of one crystal by an ASE calculator, or of many at once by a force field.

Atoms and cell move together (:class:`~oracles.optimizer.QuasiNewton`). A relaxation ends when the largest force *and*
the largest stress component are within tolerance; one that does not end within ``max_steps`` is a failure of kind
``not_converged``.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from discovery.crystal import Crystal
from discovery.protocols import PluginConfig
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind
from oracles.neighbors import bonds
from oracles.optimizer import QuasiNewton

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from torch import Tensor

MIN_VOLUME_PER_ATOM = 1.0  # Å³; a fifth of diamond's, the densest arrangement of atoms at ambient pressure


class RelaxConfig(PluginConfig):
    """Settings of a relaxation and its guards; oracles extend it."""

    relax: bool = Field(True, description="Relax atoms and cell; false computes the crystal as it is given.")
    fmax: float = Field(0.02, gt=0, le=1, description="Largest force on an atom after relaxation, eV/Å.")
    smax: float = Field(
        0.0002, gt=0, le=0.1, description="Largest stress component after relaxation, eV/Å³ (0.00624 eV/Å³ = 1 GPa)."
    )
    max_steps: int = Field(500, ge=1, description="Steps after which a relaxation counts as not converged.")
    max_seconds: float = Field(
        600.0, gt=0, description="Time one crystal may take, seconds; of a batch, its share by atoms."
    )
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

    if crystal.volume < MIN_VOLUME_PER_ATOM * len(crystal):
        message = f"{crystal.volume:.3g} Å³ for {len(crystal)} atoms, less than {MIN_VOLUME_PER_ATOM:g} Å³ per atom"
        return Failure(FailureKind.UNPHYSICAL, message)
    radii = min_distance * covalent_radii[crystal.atomic_numbers]
    bond = bonds(crystal, 2 * radii.max(initial=0.0))
    touching = np.flatnonzero(bond.length < radii[bond.first] + radii[bond.second])
    if not len(touching):
        return None
    closest = touching[np.argmin(bond.length[touching])]
    pair = "–".join(chemical_symbols[crystal.atomic_numbers[i[closest]]] for i in (bond.first, bond.second))
    message = (
        f"atoms overlap: {pair} at {bond.length[closest]:.3g} Å, less than {min_distance:g} of their covalent radii"
    )
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


class BatchConfig(RelaxConfig):
    """Settings of an oracle that computes many crystals in one pass."""

    batch_atoms: int = Field(
        64, ge=1, description="Most atoms in one pass; memory permitting, a GPU is faster with thousands."
    )


class Answer(NamedTuple):
    """What is known of one crystal: energy (eV per cell), forces (eV/Å, shape (N, 3)), stress (eV/Å³, shape (3, 3))."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray

    @property
    def max_force(self) -> float:
        """Largest force on an atom, eV/Å."""
        return float(np.linalg.norm(self.forces, axis=1).max())

    @property
    def max_stress(self) -> float:
        """Largest stress component, eV/Å³."""
        return float(np.abs(self.stress).max())


def split_answers(crystals: Sequence[Crystal], energies: Tensor, forces: Tensor, stresses: Tensor) -> list[Answer]:
    """Split what a network gives for a batch, with shapes (B,), (N, 3) and (B, 3, 3), into one answer per crystal."""
    energies, forces, stresses = (tensor.detach().double() for tensor in (energies, forces, stresses))
    ends = np.cumsum([len(crystal) for crystal in crystals])[:-1]
    return [
        Answer(*answer)
        for answer in zip(energies.tolist(), np.split(forces.numpy(), ends), stresses.numpy(), strict=True)
    ]


class ForceField(Protocol):
    """Computes many crystals in one pass."""

    def compute(self, crystals: Sequence[Crystal]) -> Sequence[Answer | Failure]:
        """Return one answer per crystal, in order.

        It may raise, for example when memory runs out; the crystals are then computed in smaller batches.
        """
        ...


def evaluate_batch(
    crystals: Sequence[Crystal],
    force_field: ForceField,
    *,
    energy_scale: EnergyScale,
    supported: Collection[int],
    config: RelaxConfig,
    batch_atoms: int,
) -> list[Evaluation]:
    """Compute `crystals` together, relaxed if the configuration says so.

    Each pass through the force field advances every crystal of the batch by one step. Crystals that are finished leave
    the batch and others enter. When a pass fails, the batch is halved until it succeeds or one crystal alone is to
    blame.

    Parameters
    ----------
    crystals
        The crystals as given.
    force_field
        What computes them.
    energy_scale
        Scale of the force field's energies.
    supported
        Atomic numbers that the force field has parameters for.
    config
        Tolerances and guards; they hold for each crystal by itself.
    batch_atoms
        Most atoms in one pass; a larger crystal is computed alone.

    Returns
    -------
    list of Evaluation
        One per crystal, in order. Failures are in it; this function does not raise for a bad crystal.
    """
    relaxations = [_Relaxation(crystal, supported, config) for crystal in crystals]
    pending = [relaxation for relaxation in relaxations if not relaxation.done]
    limit = batch_atoms
    while pending:
        start = time.perf_counter()
        batch = _first(pending, limit)
        atoms = sum(len(relaxation.crystal) for relaxation in batch)
        try:
            answers = force_field.compute([relaxation.crystal for relaxation in batch])
        except Exception as error:
            if len(batch) > 1:
                limit = atoms // 2
                continue
            answers, limit = [_failure_of(error)], batch_atoms
        for relaxation, answer in zip(batch, answers, strict=True):
            relaxation.advance(answer)
        seconds = time.perf_counter() - start
        for relaxation in batch:
            relaxation.seconds += seconds * len(relaxation.crystal) / atoms
        pending = [relaxation for relaxation in pending if not relaxation.done]
    return [relaxation.evaluation(energy_scale) for relaxation in relaxations]


def _first(pending: Sequence[_Relaxation], limit: int) -> list[_Relaxation]:
    """Return as many as have at most `limit` atoms together, at least one."""
    batch = [pending[0]]
    atoms = len(pending[0].crystal)
    for relaxation in pending[1:]:
        atoms += len(relaxation.crystal)
        if atoms > limit:
            break
        batch.append(relaxation)
    return batch


class _Relaxation:
    """One crystal on its way to its minimum, or to the failure that ends it."""

    def __init__(self, crystal: Crystal, supported: Collection[int], config: RelaxConfig) -> None:
        start = time.perf_counter()
        self.crystal = crystal
        self.done = False
        self._config = config
        self._volume = crystal.volume
        self._steps = 0
        self._optimizer: QuasiNewton | None = None
        self._answer: Answer | None = None
        self._details: dict[str, Any] = {}
        self._failure: Failure | None = None
        failure = reject(crystal, supported, config.min_distance)
        if failure is not None:
            self._fail(failure)
        self.seconds = time.perf_counter() - start

    def advance(self, answer: Answer | Failure) -> None:
        """Take in what is known of :attr:`crystal` and move it on, unless it is done."""
        failure = answer if isinstance(answer, Failure) else _check(answer, self._config)
        if failure is not None or isinstance(answer, Failure):
            self._fail(failure)
            return
        self._answer = answer
        config = self._config
        if not config.relax:
            self.done = True
            return
        force, stress = answer.max_force, answer.max_stress
        ratio = self.crystal.volume / self._volume
        self._details = {"steps": self._steps, "max_force": force, "max_stress": stress, "volume_ratio": ratio}
        if force <= config.fmax and stress <= config.smax:
            self.done = True
        elif self._steps == config.max_steps:
            message = (
                f"not relaxed after {config.max_steps} steps: largest force {force:.3g} eV/Å (fmax={config.fmax:g}), "
                f"largest stress {stress:.3g} eV/Å³ (smax={config.smax:g}); raise max_steps to go on"
            )
            self._fail(Failure(FailureKind.NOT_CONVERGED, message))
        else:
            self._step(answer)

    def _step(self, answer: Answer) -> None:
        if self._optimizer is None:
            self._optimizer = QuasiNewton(self.crystal)
        self._optimizer.step(answer.forces, answer.stress)
        self._steps += 1
        self.crystal = self._optimizer.crystal
        failure = self._check_geometry()
        if failure is not None:
            self._fail(failure)

    def _check_geometry(self) -> Failure | None:
        """Return why the present geometry is not worth a calculation."""
        ratio, limit = self.crystal.volume / self._volume, self._config.max_volume_ratio
        if not 1 / limit <= ratio <= limit:
            message = f"the cell's volume changed by a factor {ratio:.3g}, beyond max_volume_ratio={limit:g}"
            return Failure(FailureKind.UNPHYSICAL, message)
        if self.seconds > self._config.max_seconds:
            message = f"relaxation took longer than max_seconds={self._config.max_seconds:g} s"
            return Failure(FailureKind.TIMEOUT, message)
        return overlap(self.crystal, self._config.min_distance)

    def _fail(self, failure: Failure | None) -> None:
        self._failure, self.done = failure, True

    def evaluation(self, energy_scale: EnergyScale) -> Evaluation:
        """Return the outcome."""
        if self._failure is not None or self._answer is None:
            return Evaluation(energy_scale, seconds=self.seconds, details=self._details, failure=self._failure)
        return Evaluation(
            energy_scale,
            crystal=self.crystal,
            energy=self._answer.energy,
            forces=self._answer.forces,
            stress=self._answer.stress,
            converged=True,
            seconds=self.seconds,
            details=self._details,
        )


def _check(answer: Answer, config: RelaxConfig) -> Failure | None:
    """Return why a crystal with this answer must not be followed further."""
    if not (np.isfinite(answer.energy) and np.isfinite(answer.forces).all() and np.isfinite(answer.stress).all()):
        return Failure(FailureKind.UNPHYSICAL, "energy, forces or stress are not finite")
    if answer.max_force > config.max_force:
        message = f"force of {answer.max_force:.3g} eV/Å exceeds max_force={config.max_force:g} eV/Å"
        return Failure(FailureKind.UNPHYSICAL, message)
    return None


class _Calculator:
    """An ASE calculator as a force field; it keeps one set of atoms, so that it can go on from its last result."""

    def __init__(self, calculator: Calculator, magnetic_moments: Sequence[float] | None) -> None:
        self._calculator = calculator
        self._magnetic_moments = magnetic_moments
        self._atoms: Atoms | None = None

    def compute(self, crystals: Sequence[Crystal]) -> list[Answer]:
        """Compute the steps of one crystal, one by one."""
        return [self._compute(crystal) for crystal in crystals]

    def _compute(self, crystal: Crystal) -> Answer:
        if self._atoms is None:
            self._atoms = crystal.to_atoms()
            self._atoms.set_initial_magnetic_moments(self._magnetic_moments)
            self._atoms.calc = self._calculator
        atoms = self._atoms
        moved = crystal.frac_coords - atoms.get_scaled_positions(wrap=False)
        frac_coords = crystal.frac_coords - np.round(moved)
        atoms.set_cell(crystal.lattice)
        atoms.set_scaled_positions(frac_coords)
        return Answer(
            float(atoms.get_potential_energy()),
            np.array(atoms.get_forces(), dtype=float),
            np.array(atoms.get_stress(voigt=False), dtype=float),
        )


def evaluate(
    crystal: Crystal,
    calculator: Calculator,
    *,
    energy_scale: EnergyScale,
    supported: Collection[int],
    config: RelaxConfig,
    magnetic_moments: Sequence[float] | None = None,
) -> Evaluation:
    """Compute `crystal` with an ASE calculator, relaxed if the configuration says so.

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
    magnetic_moments
        Initial moment of each atom in µB, for calculators that use them.

    Returns
    -------
    Evaluation
        Failures are in it; this function does not raise for a bad crystal.
    """
    (evaluation,) = evaluate_batch(
        [crystal],
        _Calculator(calculator, magnetic_moments),
        energy_scale=energy_scale,
        supported=supported,
        config=config,
        batch_atoms=len(crystal),
    )
    return evaluation


def _failure_of(error: Exception) -> Failure:
    """Return the failure that stands for an exception raised while computing one crystal."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    signs = ("MemoryError", "OutOfMemory", "out of memory", "can't allocate memory")
    memory = any(sign in text for sign in signs)
    return Failure(FailureKind.OUT_OF_MEMORY if memory else FailureKind.CRASHED, text)
