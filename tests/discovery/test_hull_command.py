import json

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry, ConstantEnergyAdjustment
from typer.testing import CliRunner

from discovery.cli import app
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.hull_command import place

REFERENCE = """id,formula,energy_per_atom
a,Mg,-1.5
b,Si,-5.0
c,Mg2Si,-3.0
"""


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "reference.csv"
    path.write_text(REFERENCE)
    return path


def test_candidates_of_every_kind_are_accounted_for(tmp_path, reference):
    candidates = tmp_path / "candidates.csv"
    candidates.write_text(
        "id,formula,energy_per_atom\nlow,MgSi,-3.6\nhigh,MgSi,-3.4\nforeign,MgO,-6\nbroken,Qq2,-1\nc,Mg2Si,-3.0\n"
        "nan,MgSi,nan\nempty,,-1\n"
    )
    result = CliRunner().invoke(app, ["hull", str(candidates), "--reference", str(reference), "--json"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    found = {item["id"]: item for item in report["results"]}
    assert (report["requested"], report["placed"], report["reference"]["used"]) == (7, 3, 3)
    # MgSi decomposes into Mg2Si (3/4 of the atoms) and Si: -3.5 eV/atom
    assert found["low"]["decomposition_energy"] == pytest.approx(-0.1)
    assert found["low"]["e_above_hull"] == 0.0
    assert found["high"]["e_above_hull"] == pytest.approx(0.1)
    assert found["high"]["products"] == pytest.approx({"Mg2Si": 0.75, "Si": 0.25})
    # an entry of the reference is compared with the hull without it: 2/3 Mg + 1/3 Si
    assert found["c"]["decomposition_energy"] == pytest.approx(-3.0 - (-1.5 * 2 - 5.0) / 3)
    assert found["foreign"]["problem"] == "undefined: no reference entry of O"
    assert "unreadable" in found["broken"]["problem"]
    assert found["nan"]["problem"] == "no total energy is given"
    assert found["empty"]["problem"] == "unreadable formula: Invalid formula=''"
    shown = CliRunner().invoke(app, ["hull", str(candidates), "--reference", str(reference)]).output
    assert "3 of 7 candidates placed" in shown
    assert "0.75 Mg2Si + 0.25 Si" in shown


def test_extxyz_and_entries_hold_the_same_energies(tmp_path):
    frames = [bulk("Cu"), bulk("Au"), bulk("Cu", "fcc", a=3.8)]
    entries = []
    for number, atoms in enumerate(frames):
        atoms.calc = EMT()
        energy = atoms.get_potential_energy()
        adjustment = ConstantEnergyAdjustment(0.5 * len(atoms))
        structure = Structure(Lattice(atoms.cell.array), atoms.get_chemical_symbols(), atoms.get_scaled_positions())
        entries.append(
            ComputedStructureEntry(
                structure, energy - 0.5 * len(atoms), energy_adjustments=[adjustment], entry_id=str(number)
            ).as_dict()
        )
    write(tmp_path / "all.extxyz", frames)
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    own = place(tmp_path / "all.extxyz", tmp_path / "all.extxyz")
    other = place(tmp_path / "all.extxyz", tmp_path / "entries.json")
    assert own.placements[2].decomposition.e_above_hull > 0.01
    assert own.placements[1].problem == "undefined: it is the only entry of its element"
    assert other.placements[2].decomposition.e_above_hull == pytest.approx(
        frames[2].get_potential_energy() - frames[0].get_potential_energy()
    )


def test_duplicate_ids_are_refused(tmp_path, reference):
    reference.write_text(REFERENCE + "a,Mg,-1.4\n")
    with pytest.raises(InvalidInputError, match="'a' occurs twice"):
        place(reference, reference)


def test_kinds_and_scales_of_energies_never_meet(tmp_path, reference):
    formation = tmp_path / "formation.csv"
    formation.write_text("id,formula,formation_energy_per_atom\nx,MgSi,-0.1\n")
    with pytest.raises(InvalidInputError, match="same kind"):
        place(formation, reference)
    scales = [{"code": code, "version": "1", "functional": "PBE"} for code in ("one", "two")]
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, scale in zip(paths, scales, strict=True):
        path.write_text(json.dumps([ComputedEntry("Mg", -1.0, parameters={"energy_scale": scale}).as_dict()]))
    with pytest.raises(EnergyScaleError, match=r"one-pbe.* and two-pbe"):
        place(*paths)


def test_formation_energies_need_no_elements(tmp_path):
    path = tmp_path / "formation.csv"
    path.write_text("id,formula,formation_energy_per_atom\nx,MgO,-3.0\ny,Mg2O,-1.5\n")
    x, y = place(path, path).placements
    assert x.decomposition.decomposition_energy == pytest.approx(-3.0 + 1.5 * 0.75)
    assert y.decomposition.decomposition_energy == pytest.approx(-1.5 + 3.0 * 2 / 3)
