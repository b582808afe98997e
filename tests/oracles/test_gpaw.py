"""What is GPAW's own; what it shares with other codes is tested in ``test_dft.py``."""

from pathlib import Path

import pytest
from ase.build import bulk, molecule

from discovery.crystal import Crystal
from discovery.types import FailureKind
from oracles.gpaw import GPAWOracle

pytestmark = pytest.mark.usefixtures("gpaw_installed")

CHEAP = {"relax": False, "cutoff": 250, "k_density": 1.2}
SILICON = Crystal.from_atoms(bulk("Si", a=5.47))


def oracle(**settings) -> GPAWOracle:
    return GPAWOracle(GPAWOracle.Config(**(CHEAP | settings)))


def test_a_missing_setup_is_invalid_input(tmp_path: Path) -> None:
    (evaluation,) = oracle(setups={"Si": "nonsense"}).evaluate([SILICON], folder=tmp_path)
    assert evaluation.failure.kind is FailureKind.INVALID_INPUT
    assert "Si" in evaluation.failure.message


def test_setups_are_in_the_scale() -> None:
    assert oracle(setups={"Si": ":p,1"}).energy_scale != oracle().energy_scale


@pytest.mark.slow
def test_oxygen_in_a_box_is_a_triplet(tmp_path: Path) -> None:
    """The oracle computes what it is given; the molecule's moment is 2 µB."""
    atoms = molecule("O2")
    atoms.set_cell([4.6, 4.7, 5.6])
    atoms.center()
    (evaluation,) = oracle(cutoff=400, k_density=1).evaluate([Crystal.from_atoms(atoms)], folder=tmp_path)
    assert evaluation.ok
    assert evaluation.details["electronic"]["magnetic_moment"] == pytest.approx(2.0, abs=0.02)
