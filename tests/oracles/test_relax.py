"""The guarded relaxation: what it reaches and how it fails."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from discovery.crystal import Crystal
from discovery.types import EnergyScale, FailureKind
from oracles.emt import EMTOracle
from oracles.relax import RelaxConfig, evaluate, overlap

COPPER = bulk("Cu", cubic=True, a=3.8)
SCALE = EnergyScale("test", "1", "none")


def relaxed(atoms, calculator=None, **settings):
    return evaluate(
        Crystal.from_atoms(atoms),
        calculator or EMT(),
        energy_scale=SCALE,
        supported=range(1, 119),
        config=RelaxConfig(**settings),
    )


def equilibrium_lattice_constant(symbol: str) -> float:
    """Minimum of a cubic fit to EMT energies of fcc cells: no optimiser is involved."""
    constants = np.linspace(0.98, 1.02, 9) * bulk(symbol, cubic=True).cell[0, 0]
    energies = []
    for a in constants:
        atoms = bulk(symbol, "fcc", a=a)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    fit = np.polynomial.Polynomial.fit(constants, energies, 3)
    return float(min(fit.deriv().roots().real, key=lambda a: abs(a - constants.mean())))


@pytest.mark.parametrize("symbol", ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"])
def test_emt_lattice_constants(symbol: str) -> None:
    start = bulk(symbol, "fcc", a=1.05 * bulk(symbol, cubic=True).cell[0, 0])
    (evaluation,) = EMTOracle(EMTOracle.Config(fmax=1e-3, smax=1e-4)).evaluate([Crystal.from_atoms(start)])
    assert evaluation.ok
    a = (4 * evaluation.crystal.volume) ** (1 / 3)
    assert a == pytest.approx(equilibrium_lattice_constant(symbol), abs=0.005)


def test_emt_energies_of_elements_do_not_depend_on_the_other_elements() -> None:
    """EMT's cutoff is one for all elements, so that formation energies mean something."""
    slab = bulk("Al", "fcc", a=3.99)
    alone = relaxed(slab, relax=False).energy
    calculator = EMT()
    mixed = bulk("Al", "fcc", a=3.99).repeat((3, 1, 1))
    mixed.symbols[0] = "Au"
    mixed.calc = calculator
    mixed.get_potential_energy()
    slab.calc = calculator
    assert slab.get_potential_energy() == pytest.approx(alone, abs=1e-9)


def test_atoms_and_cell_relax_together() -> None:
    atoms = COPPER.copy()
    atoms.rattle(0.1, seed=1)
    evaluation = relaxed(atoms, fmax=0.01, smax=1e-3)
    assert evaluation.ok
    assert evaluation.converged
    assert np.linalg.norm(evaluation.forces, axis=1).max() <= 0.01
    assert np.abs(evaluation.stress).max() <= 1e-3
    assert evaluation.crystal.volume < 0.9 * COPPER.cell.volume
    assert evaluation.details["steps"] > 1


def test_a_relaxation_ends_on_the_stress_too() -> None:
    """In a perfect crystal every force vanishes by symmetry; only the stress says that the cell is wrong."""
    evaluation = relaxed(COPPER, fmax=1.0, smax=1e-3)
    assert evaluation.ok
    assert np.abs(evaluation.stress).max() <= 1e-3
    assert evaluation.crystal.volume < 0.9 * COPPER.cell.volume


def test_static_keeps_the_crystal() -> None:
    evaluation = relaxed(COPPER, relax=False)
    assert evaluation.crystal == Crystal.from_atoms(COPPER)


def test_running_out_of_steps_is_not_converged() -> None:
    evaluation = relaxed(COPPER, max_steps=2)
    assert evaluation.failure.kind is FailureKind.NOT_CONVERGED
    assert "max_steps" in evaluation.failure.message
    assert evaluation.details["steps"] == 2
    assert evaluation.energy is None


def test_running_out_of_time_is_a_timeout() -> None:
    evaluation = relaxed(COPPER, max_seconds=1e-6)
    assert evaluation.failure.kind is FailureKind.TIMEOUT


def test_a_changing_volume_is_unphysical() -> None:
    evaluation = relaxed(COPPER, max_volume_ratio=1.02)
    assert evaluation.failure.kind is FailureKind.UNPHYSICAL
    assert "volume" in evaluation.failure.message


def test_a_large_force_is_unphysical() -> None:
    atoms = COPPER.copy()
    atoms.positions[0] += 0.5
    evaluation = relaxed(atoms, relax=False, max_force=1.0)
    assert evaluation.failure.kind is FailureKind.UNPHYSICAL
    assert "max_force" in evaluation.failure.message


class Broken(Calculator):
    """A calculator that returns or raises what it is given; real ones do so too rarely to wait for."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, energy: float | Exception) -> None:
        super().__init__()
        self.energy = energy

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if isinstance(self.energy, Exception):
            raise self.energy
        self.results = {"energy": self.energy, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


@pytest.mark.parametrize("relax", [True, False])
@pytest.mark.parametrize(
    ("energy", "kind"),
    [
        (float("nan"), FailureKind.UNPHYSICAL),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory"), FailureKind.OUT_OF_MEMORY),
        (ZeroDivisionError("division by zero"), FailureKind.CRASHED),
    ],
)
def test_what_calculators_do_becomes_a_kind(energy: float | Exception, kind: FailureKind, relax: bool) -> None:
    evaluation = relaxed(COPPER, Broken(energy), relax=relax)
    assert evaluation.failure.kind is kind
    assert evaluation.failure.message


@pytest.mark.parametrize("distance", [0.6, 1.0, 1.1, 1.3])
def test_overlap_agrees_with_all_image_distances(distance: float) -> None:
    """Also across the cell boundary; the truth is ASE's minimum-image distance."""
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1] = atoms.positions[0] + [0, 0, distance - atoms.cell[2, 2]]
    crystal = Crystal.from_atoms(atoms)
    shortest = atoms.get_all_distances(mic=True)[np.triu_indices(4, 1)].min()
    limit = 0.4 * 2 * 1.32  # covalent radius of copper, Å
    assert (overlap(crystal, 0.4) is not None) == (shortest < limit)


def test_an_atom_may_overlap_its_own_image() -> None:
    thin = Crystal(np.diag([0.7, 10.0, 10.0]), np.zeros((1, 3)), np.array([29]))
    failure = overlap(thin, 0.4)
    assert failure is not None
    assert "Cu–Cu at 0.7 Å" in failure.message
