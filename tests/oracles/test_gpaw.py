"""GPAW in processes of its own: values, failures, time-outs and restarts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from pymatgen.analysis.structure_matcher import StructureMatcher

from discovery.crystal import Crystal
from discovery.types import FailureKind
from oracles.gpaw import GPAWOracle, initial_moments, primitive
from tests.oracles.test_external import alive, wait_until

pytestmark = pytest.mark.usefixtures("gpaw_installed")

CHEAP = {"relax": False, "cutoff": 250, "k_density": 1.2}
SILICON = Crystal.from_atoms(bulk("Si", a=5.47))


def oracle(**settings) -> GPAWOracle:
    return GPAWOracle(GPAWOracle.Config(**(CHEAP | settings)))


@pytest.mark.slow
def test_silicon_relaxes_to_its_pbe_lattice_constant(tmp_path: Path) -> None:
    """PBE gives 5.47 Å (Zhang et al., New J. Phys. 20, 063020, 2018)."""
    start = Crystal.from_atoms(bulk("Si", a=5.6))
    (evaluation,) = oracle(relax=True, cutoff=350, k_density=2.5).evaluate([start], folder=tmp_path)
    assert evaluation.ok
    assert (4 * evaluation.crystal.volume) ** (1 / 3) == pytest.approx(5.47, abs=0.02)
    assert np.abs(evaluation.stress).max() < 0.002  # eV/Å³; the final static has a basis of its own
    assert set(evaluation.details["electronic"]["setups"]) == {"Si"}


def test_a_finished_calculation_is_not_repeated(tmp_path: Path) -> None:
    first = oracle().evaluate([SILICON], folder=tmp_path)[0]
    (result,) = tmp_path.glob("*/result.json")
    written = result.stat().st_mtime_ns
    supercell = Crystal.from_atoms(SILICON.to_atoms().repeat((2, 1, 1)))
    again = oracle(max_seconds=1e-3).evaluate([SILICON], folder=tmp_path)[0]
    assert again.to_dict() == first.to_dict()
    assert result.stat().st_mtime_ns == written
    other = oracle(max_seconds=1e-3, cutoff=260).evaluate([SILICON], folder=tmp_path)[0]
    assert other.failure.kind is FailureKind.TIMEOUT, "another cutoff is another calculation"
    assert len(primitive(supercell, 0.02)) == len(first.crystal)


def test_a_time_out_is_reported_and_leaves_no_process(tmp_path: Path) -> None:
    (evaluation,) = oracle(max_seconds=2, k_density=8, cutoff=800).evaluate([SILICON], folder=tmp_path)
    assert evaluation.failure.kind is FailureKind.TIMEOUT
    folder = Path(evaluation.failure.folder)
    assert folder.is_dir()
    assert str(folder) in evaluation.failure.message
    assert "max_seconds" in evaluation.failure.message
    assert (folder / "input.json").exists()
    assert not workers_in(folder)


def workers_in(folder: Path) -> list[int]:
    """Process ids of workers that compute in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"oracles.gpaw_worker" in command and str(folder).encode() in command and alive(int(entry.name)):
            found.append(int(entry.name))
    return found


START = """
import json, pathlib, sys
from discovery.crystal import Crystal
from oracles.gpaw import GPAWOracle
crystal = Crystal.from_dict(json.loads(sys.argv[2]))
oracle = GPAWOracle(GPAWOracle.Config(relax=False, cutoff=800, k_density=8))
(evaluation,) = oracle.evaluate([crystal], folder=pathlib.Path(sys.argv[1]))
print(evaluation.failure.kind)
"""


@pytest.fixture
def running(tmp_path: Path):
    """A process that waits for a long calculation in `tmp_path`, and the calculation's process id."""
    arguments = [sys.executable, "-c", START, str(tmp_path), json.dumps(SILICON.to_dict())]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("*/static.txt")), seconds=120)
    (worker,) = workers_in(tmp_path)
    yield process, worker
    process.kill()
    process.communicate()


def test_a_killed_driver_takes_its_calculation_along(running) -> None:
    process, worker = running
    process.kill()
    process.wait(timeout=30)
    wait_until(lambda: not alive(worker))


@pytest.mark.parametrize(
    ("sent", "kind"), [(signal.SIGKILL, FailureKind.OUT_OF_MEMORY), (signal.SIGSEGV, FailureKind.CRASHED)]
)
def test_a_calculation_that_dies_is_a_failure(running, sent: signal.Signals, kind: FailureKind) -> None:
    process, worker = running
    os.kill(worker, sent)
    output, _ = process.communicate(timeout=60)
    assert output.strip() == kind


def test_an_scf_that_does_not_converge_is_not_converged(tmp_path: Path) -> None:
    (evaluation,) = oracle(maxiter=2).evaluate([SILICON], folder=tmp_path)
    assert evaluation.failure.kind is FailureKind.NOT_CONVERGED
    assert "maxiter" in evaluation.failure.message
    assert "static.txt" in evaluation.failure.message
    assert evaluation.seconds > 0


def test_a_missing_setup_is_invalid_input(tmp_path: Path) -> None:
    (evaluation,) = oracle(setups={"Si": "nonsense"}).evaluate([SILICON], folder=tmp_path)
    assert evaluation.failure.kind is FailureKind.INVALID_INPUT
    assert "Si" in evaluation.failure.message


def test_elements_without_a_setup_are_refused_before_anything_runs(tmp_path: Path) -> None:
    technetium = Crystal.from_atoms(bulk("Tc", "hcp", a=2.74, c=4.4))
    (evaluation,) = oracle().evaluate([technetium], folder=tmp_path)
    assert evaluation.failure.kind is FailureKind.INVALID_INPUT
    assert "Tc" in evaluation.failure.message
    assert not list(tmp_path.iterdir())


def test_settings_that_move_energies_are_in_the_scale() -> None:
    base = oracle().energy_scale
    changes = ({"cutoff": 300}, {"k_density": 2}, {"smearing": 0.2}, {"spin": "off"}, {"setups": {"Si": ":p,1"}})
    scales = {base.id} | {oracle(**change).energy_scale.id for change in changes}
    assert len(scales) == len(changes) + 1
    assert oracle(symprec=None, max_steps=3).energy_scale == base


@pytest.mark.parametrize(
    ("atoms", "spin", "expected"),
    [
        (bulk("Si"), "auto", None),
        (bulk("MgO", "rocksalt", a=4.2), "auto", None),
        (bulk("Fe"), "auto", [5.0]),
        (bulk("NiO", "rocksalt", a=4.2), "auto", [3.0, 0.0]),
        (molecule("O2", vacuum=3), "auto", [1.0, 1.0]),
        (molecule("N2", vacuum=3), "auto", None),
        (bulk("Fe"), "off", None),
        (bulk("Si"), "on", [1.0, 1.0]),
    ],
)
def test_initial_moments(atoms, spin, expected) -> None:
    assert initial_moments(Crystal.from_atoms(atoms), spin) == expected


@pytest.mark.parametrize("matrix", [[[2, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 0], [-1, 1, 0], [0, 0, 2]]])
def test_primitive_cells_are_the_same_crystal(matrix) -> None:
    from ase.build import make_supercell

    atoms = make_supercell(bulk("MgO", "rocksalt", a=4.25), matrix)
    atoms.rattle(0.002, seed=1)
    crystal = Crystal.from_atoms(atoms)
    reduced = primitive(crystal, 0.02)
    assert len(reduced) == 2
    assert StructureMatcher(scale=False).fit(reduced.to_structure(), crystal.to_structure())
    assert primitive(crystal, None) is crystal


@pytest.mark.slow
def test_oxygen_in_a_box_is_a_triplet(tmp_path: Path) -> None:
    """The oracle computes what it is given; the molecule's moment is 2 µB."""
    atoms = molecule("O2")
    atoms.set_cell([4.6, 4.7, 5.6])
    atoms.center()
    (evaluation,) = oracle(cutoff=400, k_density=1).evaluate([Crystal.from_atoms(atoms)], folder=tmp_path)
    assert evaluation.ok
    assert evaluation.details["electronic"]["magnetic_moment"] == pytest.approx(2.0, abs=0.02)
