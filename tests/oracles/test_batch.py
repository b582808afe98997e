"""Relaxation of many crystals at once: the same minima as ASE finds, whatever the batch."""

from collections.abc import Sequence

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE
from ase.spacegroup import crystal as spacegroup_crystal

from discovery.crystal import Crystal
from discovery.types import EnergyScale, Evaluation, FailureKind
from oracles.chgnet import CHGNetOracle
from oracles.matgl import MatGLForceField
from oracles.neighbors import bonds
from oracles.relax import Answer, RelaxConfig, evaluate_batch

FMAX, SMAX = 0.01, 1e-4
RUTILE = spacegroup_crystal(
    ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90]
)


def distorted(atoms, seed: int = 0, strain: float = 0.03, displacement: float = 0.08) -> Crystal:
    rng = np.random.default_rng(seed)
    matrix = strain * rng.standard_normal((3, 3))
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (matrix + matrix.T) / 2), scale_atoms=True)
    atoms.positions += displacement * rng.standard_normal((len(atoms), 3))
    return Crystal.from_atoms(atoms)


SALTS = [distorted(bulk("NaCl", "rocksalt", a=5.7)), distorted(bulk("Mg")), distorted(RUTILE)]
ALLOYS = []
for index, (first, second) in enumerate([("Cu", "Au"), ("Ni", "Al"), ("Ag", "Pd"), ("Pt", "Cu"), ("Al", "Ag")]):
    alloy = bulk(first, cubic=True).repeat((1, 1, 1 + index % 2))
    alloy.symbols[: 1 + index] = second
    ALLOYS.append(distorted(alloy, index))


class Metals:
    """Effective-medium theory in batches, with a limited memory and crystals it breaks on."""

    def __init__(self, max_atoms: int = 1000, poison: Crystal | None = None) -> None:
        self.max_atoms, self.poison = max_atoms, poison
        self.batches: list[int] = []

    def compute(self, crystals: Sequence[Crystal]) -> list[Answer]:
        self.batches.append(len(crystals))
        if sum(map(len, crystals)) > self.max_atoms:
            raise MemoryError
        if any(crystal == self.poison for crystal in crystals):
            raise ZeroDivisionError
        answers = []
        for crystal in crystals:
            atoms = crystal.to_atoms()
            atoms.calc = EMT()
            answers.append(Answer(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)))
        return answers


def relaxed(crystals: Sequence[Crystal], force_field: Metals, batch_atoms: int = 1000, **settings) -> list[Evaluation]:
    return evaluate_batch(
        crystals,
        force_field,
        energy_scale=EnergyScale("test", "1", "none"),
        supported=range(1, 119),
        config=RelaxConfig(fmax=FMAX, smax=SMAX, **settings),
        batch_atoms=batch_atoms,
    )


def by_ase(crystal: Crystal, calculator: Calculator) -> tuple[float, float, int]:
    """Energy and volume per atom at the minimum that ASE finds, and its steps."""
    atoms = crystal.to_atoms()
    atoms.calc = calculator
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    for step in range(500):
        forces, stress = atoms.get_forces(), atoms.get_stress()
        if np.linalg.norm(forces, axis=1).max() <= FMAX and np.abs(stress).max() <= SMAX:
            return atoms.get_potential_energy() / len(atoms), atoms.get_volume() / len(atoms), step
        optimizer.step()
    pytest.fail("ASE does not converge")


def assert_same_minimum(evaluation: Evaluation, energy: float, volume: float) -> None:
    assert evaluation.ok, evaluation.failure
    assert evaluation.energy_per_atom == pytest.approx(energy, abs=1e-3)
    assert evaluation.crystal.volume / len(evaluation.crystal) == pytest.approx(volume, rel=5e-3)
    assert np.linalg.norm(evaluation.forces, axis=1).max() <= FMAX
    assert np.abs(evaluation.stress).max() <= SMAX


def test_same_minima_as_ase_in_fewer_steps() -> None:
    evaluations = relaxed(ALLOYS, Metals())
    references = [by_ase(crystal, EMT()) for crystal in ALLOYS]
    for evaluation, (energy, volume, _) in zip(evaluations, references, strict=True):
        assert_same_minimum(evaluation, energy, volume)
    assert 3 * sum(e.details["steps"] for e in evaluations) < sum(steps for *_, steps in references)


@pytest.mark.parametrize("crystal", SALTS[:2], ids=lambda crystal: crystal.formula)
def test_chgnet_finds_the_minima_that_ase_finds_with_its_own_calculator(chgnet, chgnet_calculator, crystal) -> None:
    (evaluation,) = chgnet.evaluate([crystal])
    energy, volume, _ = by_ase(crystal, chgnet_calculator)
    assert_same_minimum(evaluation, energy, volume)


@pytest.fixture(scope="module")
def chgnet() -> CHGNetOracle:
    return CHGNetOracle(CHGNetOracle.Config(fmax=FMAX, smax=SMAX))


@pytest.fixture(scope="module")
def chgnet_calculator() -> Calculator:
    from chgnet.model import CHGNet, CHGNetCalculator

    return CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")


def assert_agrees(answers: Sequence[Answer], crystals: Sequence[Crystal], calculator: Calculator) -> None:
    for answer, crystal in zip(answers, crystals, strict=True):
        atoms = crystal.to_atoms()
        atoms.calc = calculator
        assert answer.energy == pytest.approx(atoms.get_potential_energy(), abs=2e-5 * len(atoms))
        np.testing.assert_allclose(answer.forces, atoms.get_forces(), atol=1e-3)
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(answer.stress, (stress + stress.T) / 2, atol=1e-5)


@pytest.mark.parametrize("crystals", [SALTS, [distorted(bulk("Xe", a=6.2))]], ids=["solids", "no angles"])
def test_chgnet_in_batches_is_chgnet(chgnet, chgnet_calculator, crystals) -> None:
    """Against the package's own calculator, which makes another graph and differentiates separately."""
    static = CHGNetOracle(CHGNetOracle.Config(relax=False))
    answers = [Answer(e.energy, e.forces, e.stress) for e in static.evaluate(crystals)]
    assert_agrees(answers, crystals, chgnet_calculator)


def test_matgl_in_batches_is_matgl(matgl_model) -> None:
    from matgl.ext.ase import PESCalculator
    from matgl.utils.io import load_model

    potential = load_model(matgl_model)
    answers = MatGLForceField(potential).compute(SALTS)
    assert_agrees(answers, SALTS, PESCalculator(potential, stress_unit="eV/A3", use_voigt=True))


@pytest.mark.parametrize("batch_atoms", [1, 8, 12])
def test_the_batch_does_not_matter(batch_atoms) -> None:
    together = relaxed(ALLOYS, Metals())
    for one, other in zip(together, relaxed(ALLOYS, Metals(), batch_atoms), strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
        assert one.details == pytest.approx(other.details)


def test_finished_crystals_leave_and_others_enter() -> None:
    """Every pass but the last ones is as full as can be, although crystals need different numbers of steps."""
    metals = Metals()
    cells = [distorted(bulk("Cu", cubic=True), seed, 0.01 * seed) for seed in range(6)]
    evaluations = relaxed(cells, metals, batch_atoms=8)
    steps = [evaluation.details["steps"] + 1 for evaluation in evaluations]
    assert len(set(steps)) > 1
    assert sum(metals.batches) == sum(steps)
    assert metals.batches == sorted(metals.batches, reverse=True)
    assert set(metals.batches) <= {2, 1}


def test_a_batch_that_needs_too_much_memory_is_halved() -> None:
    metals = Metals(max_atoms=12)
    evaluations = relaxed(ALLOYS, metals)
    assert all(evaluation.ok for evaluation in evaluations)
    assert metals.batches[0] == len(ALLOYS)
    assert metals.batches.count(len(ALLOYS)) == 1


def test_a_crystal_that_is_too_large_fails_alone() -> None:
    large = Crystal.from_atoms(bulk("Cu", cubic=True, a=3.5).repeat(2))
    kinds = [e.failure and e.failure.kind for e in relaxed([*ALLOYS[:2], large, ALLOYS[2]], Metals(max_atoms=31))]
    assert kinds == [None, None, FailureKind.OUT_OF_MEMORY, None]


def test_a_crystal_that_breaks_the_force_field_fails_alone() -> None:
    metals = Metals(poison=ALLOYS[2])
    kinds = [e.failure and e.failure.kind for e in relaxed(ALLOYS, metals)]
    assert kinds == [None, None, FailureKind.CRASHED, None, None]


def test_guards_hold_for_each_crystal() -> None:
    swollen = Crystal.from_atoms(bulk("Cu", cubic=True, a=4.2))
    evaluations = relaxed([ALLOYS[0], swollen, ALLOYS[1]], Metals(), max_volume_ratio=1.3)
    kinds = [e.failure and e.failure.kind for e in evaluations]
    assert kinds == [None, FailureKind.UNPHYSICAL, None]
    assert "volume" in evaluations[1].failure.message


def test_time_is_shared_by_atoms() -> None:
    small, large = Crystal.from_atoms(bulk("Cu")), distorted(bulk("Cu", cubic=True).repeat((2, 2, 1)))
    one, other = relaxed([small, large], Metals(), relax=False)
    assert 4 * one.seconds < other.seconds


@pytest.mark.parametrize("cutoff", [2.0, 4.5])
@pytest.mark.parametrize("crystal", [*SALTS, ALLOYS[1]], ids=lambda crystal: crystal.formula)
def test_bonds_are_those_of_ase(crystal, cutoff) -> None:
    """Each pair once: half of ASE's list, with vectors that lead from one atom to the other."""
    found = bonds(crystal, cutoff)
    lengths = neighbor_list("d", crystal.to_atoms(), cutoff)
    assert 2 * len(found.length) == len(lengths)
    np.testing.assert_allclose(np.sort(np.repeat(found.length, 2)), np.sort(lengths), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(found.vector, axis=1), found.length, atol=1e-8)
