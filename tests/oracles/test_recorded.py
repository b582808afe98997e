"""The recorded oracle against its own file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, make_supercell
from pymatgen.entries.computed_entries import ComputedStructureEntry

from discovery.config import compose_oracle
from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.references import element_crystals
from discovery.types import FailureKind
from oracles.recorded import RecordedOracle

SALT = bulk("NaCl", "rocksalt", a=5.69)
CSCL = bulk("NaCl", "cesiumchloride", a=3.5)


def oracle(path: Path) -> RecordedOracle:
    return RecordedOracle(RecordedOracle.Config(path=path))


def write_csv(path: Path, rows: list[tuple[str, Crystal, float]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif", "formation_energy_per_atom"])
        writer.writerows([id_, crystal.to_structure().to(fmt="cif"), energy] for id_, crystal, energy in rows)
    return path


@pytest.fixture
def known(tmp_path: Path) -> Path:
    rows = [("high", SALT, -2.0), ("low", SALT, -2.1), ("other", CSCL, -2.05)]
    return write_csv(tmp_path / "known.csv", [(id_, Crystal.from_atoms(atoms), e) for id_, atoms, e in rows])


def test_it_finds_a_crystal_in_any_cell_and_answers_with_the_lowest(known: Path) -> None:
    supercell = make_supercell(SALT, [[2, 0, 0], [0, 1, 0], [0, 1, 1]])
    supercell.set_cell(supercell.cell * 1.03, scale_atoms=True)
    (evaluation,) = oracle(known).evaluate([Crystal.from_atoms(supercell)])
    assert evaluation.details["entry_id"] == "low"
    assert evaluation.energy_per_atom == pytest.approx(-2.1)
    assert evaluation.crystal is not None
    assert evaluation.crystal.volume / len(evaluation.crystal) == pytest.approx(SALT.cell.volume / 2, rel=1e-4)


def test_what_is_not_there_is_said_so(known: Path) -> None:
    crystals = [
        Crystal.from_atoms(bulk("NaCl", "zincblende", a=6.2)),
        Crystal.from_atoms(bulk("MgO", "rocksalt", a=4.2)),
    ]
    evaluations = oracle(known).evaluate(crystals)
    failures = [evaluation.failure for evaluation in evaluations]
    assert all(failure is not None and failure.kind is FailureKind.NOT_IN_DATABASE for failure in failures)
    assert failures[1] is not None
    assert "O, Mg" in failures[1].message


def test_elements_have_formation_energy_zero_unless_the_file_has_their_ground_state(
    tmp_path: Path, known: Path
) -> None:
    forms = [known.crystal for element in ("Na", "Cl") for known in element_crystals(element)]
    evaluations = oracle(known).evaluate(forms)
    assert [evaluation.energy for evaluation in evaluations] == [0.0] * len(forms)
    (sodium,) = element_crystals("Na")
    fcc = Crystal.from_atoms(bulk("Na", "fcc", a=5.3))
    rows = [("fcc", fcc, 0.0), ("salt", Crystal.from_atoms(SALT), -2.1)]
    ground, other = oracle(write_csv(tmp_path / "ground.csv", rows)).evaluate([fcc, sodium.crystal])
    assert ground.details["entry_id"] == "fcc"
    assert other.failure is not None
    assert other.failure.kind is FailureKind.NOT_IN_DATABASE


def test_energy_scale_follows_the_content(tmp_path: Path, known: Path) -> None:
    scale = oracle(known).energy_scale
    copy = tmp_path / "copy" / known.name
    copy.parent.mkdir()
    copy.write_bytes(known.read_bytes())
    assert oracle(copy).energy_scale == scale
    copy.write_bytes(known.read_bytes().replace(b"-2.05", b"-2.06"))
    assert oracle(copy).energy_scale != scale


def test_entries_give_total_energies_with_their_corrections_on_their_scale(tmp_path: Path) -> None:
    scale = {"code": "vasp", "version": "5.4", "functional": "PBE"}
    structure = Crystal.from_atoms(SALT).to_structure()
    entry = ComputedStructureEntry(structure, -6.8, correction=-0.6, entry_id="a", parameters={"energy_scale": scale})
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([entry.as_dict()]))
    known = oracle(path)
    (evaluation,) = known.evaluate([Crystal.from_atoms(SALT)])
    assert evaluation.energy == pytest.approx(-7.4)
    assert known.energy_scale.code == "vasp"
    other = ComputedStructureEntry(structure, -7.0, entry_id="b", parameters={"energy_scale": scale | {"code": "gpaw"}})
    path.write_text(json.dumps([entry.as_dict(), other.as_dict()]))
    with pytest.raises(EnergyScaleError, match=r"gpaw.* and vasp"):
        oracle(path)


def test_files_that_cannot_serve_are_refused(tmp_path: Path, known: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(known.read_text().replace("formation_energy_per_atom", "energy"))
    with pytest.raises(InvalidInputError, match="formation_energy_per_atom"):
        oracle(path)
    path.write_text(known.read_text().replace("high", "low"))
    with pytest.raises(InvalidInputError, match="twice"):
        oracle(path)


def test_it_is_chosen_by_configuration(known: Path) -> None:
    chosen = compose_oracle("recorded", [f"path={known}", "corrections=MP2020"]).create()
    assert chosen.energy_scale.corrections == "MP2020"
    assert np.isclose(chosen.evaluate([Crystal.from_atoms(CSCL)])[0].energy, -4.1)
