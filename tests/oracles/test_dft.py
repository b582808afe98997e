"""What all DFT codes have in common: values, failures, time-outs, restarts, and that they agree with each other."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, make_supercell, molecule
from ase.calculators.calculator import kpts2sizeandoffsets
from pymatgen.analysis.structure_matcher import StructureMatcher

from discovery.config import compose_oracle
from discovery.crystal import Crystal
from discovery.types import Evaluation, FailureKind
from oracles.dft import DFTOracle, hubbard_shell, initial_moments, k_mesh, primitive
from tests.oracles.test_external import alive, wait_until

CHEAP = {"relax": False, "cutoff": 250, "k_density": 1.2}
SILICON = Crystal.from_atoms(bulk("Si", a=5.47))

Build = Callable[..., DFTOracle]


def settings_of(code: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what `code` needs to run here, or skip."""
    if code == "espresso":
        return {"pseudopotentials": request.getfixturevalue("pseudopotentials")}
    request.getfixturevalue(f"{code}_installed")
    return {}


def build(code: str, needed: dict[str, str], **settings) -> DFTOracle:
    changes = needed | {name: json.dumps(value) for name, value in (CHEAP | settings).items()}
    oracle: DFTOracle = compose_oracle(code, [f"{name}={value}" for name, value in changes.items()]).create()
    return oracle


@pytest.fixture(params=["gpaw", "abinit", "espresso"])
def oracle(request: pytest.FixtureRequest) -> Build:
    """Build the oracle of one code with cheap settings and changes to them."""
    needed = settings_of(request.param, request)
    return lambda **settings: build(request.param, needed, **settings)


def energy_of(evaluation: Evaluation) -> float:
    assert evaluation.ok, evaluation.failure
    return evaluation.energy_per_atom


@pytest.mark.slow
def test_silicon_relaxes_to_its_pbe_lattice_constant(oracle: Build, tmp_path: Path) -> None:
    """PBE gives 5.47 Å (Zhang et al., New J. Phys. 20, 063020, 2018)."""
    start = Crystal.from_atoms(bulk("Si", a=5.6))
    (evaluation,) = oracle(relax=True, cutoff=350, k_density=2.5).evaluate([start], folder=tmp_path)
    assert evaluation.ok, evaluation.failure
    assert evaluation.crystal is not None
    assert (4 * evaluation.crystal.volume) ** (1 / 3) == pytest.approx(5.47, abs=0.02)
    assert np.abs(evaluation.stress).max() < 0.002  # eV/Å³; the final static has a basis of its own


def test_a_finished_calculation_is_not_repeated(oracle: Build, tmp_path: Path) -> None:
    first = oracle().evaluate([SILICON], folder=tmp_path)[0]
    assert first.ok, first.failure
    (result,) = tmp_path.glob("*/result.json")
    written = result.stat().st_mtime_ns
    again = oracle(max_seconds=1e-3).evaluate([SILICON], folder=tmp_path)[0]
    assert again.to_dict() == first.to_dict()
    assert result.stat().st_mtime_ns == written
    other = oracle(max_seconds=1e-3, cutoff=260).evaluate([SILICON], folder=tmp_path)[0]
    assert other.failure is not None
    assert other.failure.kind is FailureKind.TIMEOUT, "another cutoff is another calculation"


def test_a_time_out_is_reported_and_leaves_no_process(oracle: Build, tmp_path: Path) -> None:
    (evaluation,) = oracle(max_seconds=3, k_density=12, cutoff=1000).evaluate([SILICON], folder=tmp_path)
    assert evaluation.failure is not None
    assert evaluation.failure.kind is FailureKind.TIMEOUT
    assert evaluation.failure.folder is not None
    folder = Path(evaluation.failure.folder)
    assert folder.is_dir()
    assert str(folder) in evaluation.failure.message
    assert "max_seconds" in evaluation.failure.message
    assert (folder / "input.json").exists()
    wait_until(lambda: not processes_in(folder))


def processes_in(folder: Path) -> list[int]:
    """Process ids of workers and programs that compute in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            text = (entry / "cmdline").read_bytes() + os.fsencode((entry / "cwd").readlink())
        except OSError:
            continue
        if entry.name.isdigit() and str(folder).encode() in text and alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def test_an_scf_that_does_not_converge_is_not_converged(oracle: Build, tmp_path: Path) -> None:
    (evaluation,) = oracle(maxiter=2).evaluate([SILICON], folder=tmp_path)
    assert evaluation.failure is not None
    assert evaluation.failure.kind is FailureKind.NOT_CONVERGED
    assert "maxiter" in evaluation.failure.message
    assert "static" in evaluation.failure.message
    assert evaluation.seconds > 0


def test_a_relaxation_that_does_not_converge_is_not_converged(oracle: Build, tmp_path: Path) -> None:
    stretched = Crystal.from_atoms(bulk("Si", a=5.8))
    (evaluation,) = oracle(relax=True, max_steps=1).evaluate([stretched], folder=tmp_path)
    assert evaluation.failure is not None
    assert evaluation.failure.kind is FailureKind.NOT_CONVERGED
    assert "max_steps" in evaluation.failure.message


def test_settings_that_move_energies_are_in_the_scale(oracle: Build) -> None:
    base = oracle().energy_scale
    changes = ({"cutoff": 300}, {"k_density": 2}, {"smearing": 0.2}, {"spin": "off"}, {"hubbard_u": {"Ni": 6.2}})
    scales = {base.id} | {oracle(**change).energy_scale.id for change in changes}
    assert len(scales) == len(changes) + 1
    assert oracle(symprec=None, max_steps=3).energy_scale == base


START = """
import json, pathlib, sys
from discovery import plugins
from discovery.crystal import Crystal
crystal = Crystal.from_dict(json.loads(sys.argv[2]))
plugin = plugins.load("oracles", sys.argv[3])
oracle = plugin(plugin.Config(relax=False, cutoff=1000, k_density=14, symprec=None))
(evaluation,) = oracle.evaluate([crystal], folder=pathlib.Path(sys.argv[1]))
print(evaluation.failure.kind)
"""
LOGS = {"gpaw": "*/static.txt", "abinit": "*/static/abinit.log"}


@pytest.fixture(params=LOGS)
def running(request: pytest.FixtureRequest, tmp_path: Path):
    """A process that waits for a long calculation in `tmp_path`."""
    settings_of(request.param, request)
    arguments = [sys.executable, "-c", START, str(tmp_path), json.dumps(SILICON.to_dict()), request.param]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob(LOGS[request.param])), seconds=120)
    yield process
    process.kill()
    process.communicate()


def test_a_killed_driver_takes_its_calculation_along(running, tmp_path: Path) -> None:
    (folder,) = tmp_path.iterdir()
    assert processes_in(folder)
    running.kill()
    running.wait(timeout=30)
    wait_until(lambda: not processes_in(folder))


@pytest.mark.parametrize(
    ("sent", "kind"), [(signal.SIGKILL, FailureKind.OUT_OF_MEMORY), (signal.SIGSEGV, FailureKind.CRASHED)]
)
@pytest.mark.parametrize("running", ["gpaw"], indirect=True)
def test_a_worker_that_dies_is_a_failure(running, tmp_path: Path, sent: signal.Signals, kind: FailureKind) -> None:
    (folder,) = tmp_path.iterdir()
    (worker,) = processes_in(folder)
    os.kill(worker, sent)
    output, _ = running.communicate(timeout=60)
    assert output.strip() == kind


@pytest.mark.slow
@pytest.mark.usefixtures("gpaw_installed", "abinit_installed")
def test_gpaw_and_abinit_agree(tmp_path: Path) -> None:
    """With equal PAW data, cutoff and k-mesh, energy differences agree.

    Between two widths of smearing they differ by several meV, for each code has its own number of empty bands; were one
    of the energies not extrapolated to zero width, it would be by more than 100.
    """
    silicon = [Crystal.from_atoms(bulk("Si", a=a)) for a in (5.3, 5.6)]
    aluminium = Crystal.from_atoms(bulk("Al", a=4.05))
    differences = {}
    for code in ("gpaw", "abinit"):
        low, high = build(code, {}, cutoff=400).evaluate(silicon, folder=tmp_path / code)
        found = [energy_of(high) - energy_of(low)]
        narrow, wide = (
            energy_of(build(code, {}, smearing=width).evaluate([aluminium], folder=tmp_path / code)[0])
            for width in (0.1, 0.5)
        )
        differences[code] = [*found, wide - narrow]
    assert abs(differences["gpaw"][0]) > 0.01
    (distance, smearing), (same_distance, same_smearing) = differences["abinit"], differences["gpaw"]
    assert distance == pytest.approx(same_distance, abs=0.002)
    assert smearing == pytest.approx(same_smearing, abs=0.02)


def test_only_elements_with_potentials_are_supported(oracle: Build, tmp_path: Path) -> None:
    """No code here has a potential of technetium."""
    technetium = Crystal.from_atoms(bulk("Tc", "hcp", a=2.74, c=4.4))
    (evaluation,) = oracle().evaluate([technetium], folder=tmp_path)
    assert evaluation.failure is not None
    assert evaluation.failure.kind is FailureKind.INVALID_INPUT
    assert "Tc" in evaluation.failure.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("density", [1.0, 3.5, 4.0])
@pytest.mark.parametrize("name", ["Si", "Mg", "NaCl"])
def test_k_meshes_are_those_of_ase(name: str, density: float) -> None:
    atoms = bulk(name, "rocksalt", a=5.7) if name == "NaCl" else bulk(name)
    size, _ = kpts2sizeandoffsets(density=density, gamma=True, atoms=atoms)
    assert k_mesh(Crystal.from_atoms(atoms), density) == size.tolist()


def test_equivalent_axes_get_equal_divisions() -> None:
    """At 4 divisions exactly, rounding may push one of three equal axes to 5."""
    density = 4 * 5.0 / (2 * np.pi)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        crystal = Crystal(5.0 * rotation * np.sign(np.linalg.det(rotation)), np.zeros((1, 3)), np.array([29]))
        assert k_mesh(crystal, density) == [4, 4, 4]


@pytest.mark.parametrize(("element", "shell"), [("O", "p"), ("Ni", "d"), ("La", "f"), ("Ce", "f"), ("U", "f")])
def test_hubbard_shells(element: str, shell: str) -> None:
    assert hubbard_shell(element) == shell


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
    atoms = make_supercell(bulk("MgO", "rocksalt", a=4.25), matrix)
    atoms.rattle(0.002, seed=1)
    crystal = Crystal.from_atoms(atoms)
    reduced = primitive(crystal, 0.02)
    assert len(reduced) == 2
    assert StructureMatcher(scale=False).fit(reduced.to_structure(), crystal.to_structure())
    assert primitive(crystal, None) is crystal


def test_spin_may_be_switched_off_on_the_command_line() -> None:
    """YAML reads off as false."""
    assert compose_oracle("abinit", ["spin=off"]).options.model_dump()["spin"] == "off"
