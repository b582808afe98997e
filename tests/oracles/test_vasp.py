"""VASP: inputs as the Materials Project writes them, stages, repairs, and corrections from uncorrected energies."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.units import GPa
from pymatgen.core import SETTINGS
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar
from pymatgen.io.vasp.sets import MPRelaxSet, MPStaticSet

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import FailureKind
from oracles.vasp import VASPOracle, write_stage
from tests.oracles.test_dft import processes_in
from tests.oracles.test_external import wait_until

pytest.importorskip("custodian", reason="runs VASP; pip install 'discovery-engine[vasp]'")

SALT = Crystal.from_atoms(bulk("NaCl", "rocksalt", a=5.69))
HEMATITE_LIKE = Crystal.from_atoms(bulk("FeO", "rocksalt", a=4.3))
POTCAR = """  PAW_PBE {name} {date}
   7.00000000000000
 parameters from PSCTR are:
   VRHFIN ={element}: s2p5
   LEXCH  = PE
   EATOM  =   400.0000 eV,   30.0000 Ry

   TITEL  = PAW_PBE {name} {date}
   ENMAX  =  260.000; ENMIN  =  190.000 eV
   ZVAL   =    7.000    mass and valenz

END of PSCTR-controll parameters
 local part
  0.10000000E+01  0.20000000E+01  0.30000000E+01
End of Dataset
"""


@pytest.fixture
def potentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Headers of POTCAR files, which are licensed: titles and cutoffs are all that is read of them here."""
    folder = tmp_path / "psp" / "POT_GGA_PAW_PBE"
    for name, date in (("Na_pv", "05Jan2001"), ("Cl", "17Jan2003"), ("Fe_pv", "06Sep2000"), ("O", "08Apr2002")):
        (folder / name).mkdir(parents=True)
        text = POTCAR.format(name=name, element=name.partition("_")[0], date=date)
        (folder / name / "POTCAR").write_text(text)
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(folder.parent))
    monkeypatch.setenv("PMG_VASP_PSP_DIR", str(folder.parent))
    return folder


def oracle(*arguments: object, **settings: object) -> VASPOracle:
    replay = Path(__file__).with_name("vasp_replay.py")
    command = " ".join([sys.executable, str(replay), *(str(argument) for argument in arguments)])
    return VASPOracle(VASPOracle.Config.model_validate({"command": command, **settings}))


@pytest.fixture
def replay_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word of a real command is the program; here it is an argument of the replay."""
    monkeypatch.setattr("oracles.vasp.shutil.which", lambda program: program)


pytestmark = pytest.mark.usefixtures("replay_is_a_program", "potentials")


def test_inputs_are_those_of_the_materials_project(tmp_path: Path) -> None:
    """Cutoff, k-points, spin and U as documented by the Materials Project; the rest as pymatgen writes it."""
    write_stage(tmp_path / "relax", HEMATITE_LIKE, relax=True)
    write_stage(tmp_path / "static", HEMATITE_LIKE, relax=False)
    relax, static = (Incar.from_file(tmp_path / stage / "INCAR") for stage in ("relax", "static"))
    assert (relax["ENCUT"], relax["ISIF"], relax["ISPIN"], relax["LDAU"]) == (520, 3, 2, True)
    assert relax["LDAUU"] == [5.3, 0]
    assert relax["MAGMOM"][0] == 5
    assert relax["EDIFF"] == pytest.approx(5e-5 * 2)
    assert (static["NSW"], static["ISMEAR"], static["ENCUT"]) == (0, -5, 520)
    structure = HEMATITE_LIKE.to_structure()
    for stage, inputs in (("relax", MPRelaxSet), ("static", MPStaticSet)):
        inputs(structure).write_input(str(tmp_path / "expected"))
        for name, reader in (("INCAR", Incar), ("KPOINTS", Kpoints), ("POSCAR", Poscar)):
            expected = reader.from_file(tmp_path / "expected" / name)
            assert str(reader.from_file(tmp_path / stage / name)) == str(expected)


def test_sodium_chloride_is_corrected_once_and_finished_stages_are_not_repeated(tmp_path: Path) -> None:
    """MP2020 lowers a chloride by 0.614 eV per chlorine (Wang et al., Sci. Rep. 11, 15496, 2021)."""
    (evaluation,) = oracle(-6.8, 0.99).evaluate([SALT], folder=tmp_path)
    assert evaluation.ok, evaluation.failure
    assert evaluation.energy == pytest.approx(-6.8 - 0.614)
    assert list(evaluation.corrections.values()) == [pytest.approx(-0.614)]
    assert evaluation.details["uncorrected_energy"] == pytest.approx(-6.8)
    assert evaluation.crystal is not None
    assert evaluation.crystal.volume == pytest.approx(SALT.volume * 0.99**6, rel=1e-5)
    np.testing.assert_allclose(evaluation.stress, -GPa * np.eye(3), rtol=1e-6)
    (folder,) = tmp_path.glob("NaCl-*")
    assert (folder / "runs.txt").read_text().split() == ["relax-1", "relax-2", "static"]
    (folder / "result.json").unlink()
    (folder / "static" / "finished.json").unlink()
    again = oracle(-6.8, 0.99).evaluate([SALT], folder=tmp_path)[0]
    assert again.energy == evaluation.energy
    assert (folder / "runs.txt").read_text().split() == ["relax-1", "relax-2", "static", "static"]


def test_oxides_with_u_are_corrected_for_both(tmp_path: Path) -> None:
    """−0.687 eV per oxygen and −2.256 eV per iron (same source)."""
    (evaluation,) = oracle(-12.0, relax=False).evaluate([HEMATITE_LIKE], folder=tmp_path)
    assert evaluation.ok, evaluation.failure
    assert sorted(evaluation.corrections.values()) == [pytest.approx(-2.256), pytest.approx(-0.687)]
    assert evaluation.energy == pytest.approx(-12.0 - 2.256 - 0.687)


def test_custodian_repairs_what_did_not_converge(tmp_path: Path) -> None:
    (evaluation,) = oracle(-6.8, 1.0, 1, relax=False).evaluate([SALT], folder=tmp_path)
    assert evaluation.ok, evaluation.failure
    (folder,) = tmp_path.glob("NaCl-*")
    assert (folder / "runs.txt").read_text().split() == ["static", "static"]
    repairs = json.loads((folder / "static" / "finished.json").read_text())["repairs"]
    assert "UnconvergedErrorHandler" in json.dumps(repairs)


def test_what_cannot_be_repaired_is_not_converged(tmp_path: Path) -> None:
    (evaluation,) = oracle(-6.8, 1.0, 9, relax=False, max_errors=1).evaluate([SALT], folder=tmp_path)
    assert evaluation.failure is not None
    assert evaluation.failure.kind is FailureKind.NOT_CONVERGED
    assert "custodian.json" in evaluation.failure.message


@pytest.mark.slow
@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_nothing_of_it_goes_on_running(tmp_path: Path, how: str) -> None:
    """custodian gives VASP a session of its own, so that killing the worker's process group does not reach it."""
    sleeper = tmp_path / "vasp_sleep"
    sleeper.write_text("#!/bin/sh\necho > started\nexec sleep 300\n")
    sleeper.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from pymatgen.core import SETTINGS; import os;"
        "SETTINGS['PMG_VASP_PSP_DIR'] = os.environ['PMG_VASP_PSP_DIR'];"
        "from oracles.vasp import VASPOracle; from discovery.crystal import Crystal; from ase.build import bulk;"
        "oracle = VASPOracle(VASPOracle.Config(command=sys.argv[1], max_seconds=float(sys.argv[3])));"
        "crystal = Crystal.from_atoms(bulk('NaCl', 'rocksalt', a=5.69));"
        "print(oracle.evaluate([crystal], folder=Path(sys.argv[2]))[0].failure.kind)"
    )
    folder = tmp_path / "run"
    seconds = "25" if how == "timeout" else "300"
    command = [sys.executable, "-c", code, str(sleeper), str(folder), seconds]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list(folder.glob("*/relax-1/started")) or process.poll() is not None, seconds=120)
        if how == "kill":
            assert processes_in(folder)
            process.kill()
        else:
            assert process.communicate(timeout=120)[0].strip() == "timeout"
        wait_until(lambda: not processes_in(folder))
    finally:
        process.kill()
        process.communicate()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", None)
    with pytest.raises(MissingDependencyError, match="pmg config"):
        oracle(-6.8)
    monkeypatch.setattr("oracles.vasp.shutil.which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="command"):
        VASPOracle(VASPOracle.Config())
