import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from pydantic import ValidationError
from pymatgen.core import Element
from pymatgen.entries.computed_entries import ComputedStructureEntry

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError, MissingDependencyError
from discovery.matching import is_valid, spacegroup
from discovery.references import (
    ELEMENTAL_FORMS,
    PROTOTYPES,
    ReferencesConfig,
    element_crystals,
    read_csv,
    reference_crystals,
)

MP20 = Path(os.environ.get("DISCOVERY_SHARED", Path(__file__).parents[3] / "shared")) / "data/mp_20_bt/test.csv.gz"
needs_mp20 = pytest.mark.skipif(not MP20.exists(), reason=f"{MP20} is missing; set DISCOVERY_SHARED")

UNAVAILABLE = {"At", "Fr", "Es", "Fm", "Md", "No", "Lr"}
BUNDLED = [Element.from_Z(z).symbol for z in range(1, 104) if Element.from_Z(z).symbol not in UNAVAILABLE]


def formulas(references):
    return {reference.crystal.formula for reference in references}


@pytest.mark.parametrize("symbol", BUNDLED)
def test_every_usual_element_has_a_sensible_crystal(symbol):
    forms = element_crystals(symbol)
    assert forms
    for form in forms:
        assert {e.symbol for e in form.crystal.composition} == {symbol}
        assert is_valid(form.crystal) is None
        if not form.id.endswith("molecule"):
            volume = form.crystal.volume / len(form.crystal)
            experiment = float(Element(symbol).molar_volume) / 0.602214076
            # diamond and the densest allotropes lie below the tabulated one, molecular crystals above
            assert 0.6 < volume / experiment < 1.7
        structure = form.crystal.to_structure()
        bonds = [n.nn_distance for n in structure.get_neighbors(structure[0], 6.0)]
        assert 0.7 < min(bonds) < 5.5


@pytest.mark.parametrize(
    ("symbol", "number"),
    [
        *[("Mg", 194), ("Si", 227), ("Cu", 225), ("Fe", 229), ("Mn", 217), ("S", 70), ("Se", 152), ("Te", 152)],
        *[("Bi", 166), ("P", 64), ("Ga", 64), ("I", 64), ("B", 166), ("C", 194), ("La", 194), ("U", 63), ("In", 139)],
    ],
)
def test_ground_states_have_the_known_space_group(symbol, number):
    assert number in {spacegroup(form.crystal, symprec=0.01)[0] for form in element_crystals(symbol)}


@pytest.mark.parametrize(("symbol", "length"), [("H", 0.741), ("N", 1.098), ("O", 1.208), ("F", 1.412), ("Cl", 1.988)])
def test_molecules_have_their_bond_length(symbol, length):
    molecule = next(form for form in element_crystals(symbol) if form.id.endswith("molecule"))
    assert molecule.crystal.to_structure().get_distance(0, 1) == pytest.approx(length)


@pytest.mark.parametrize("symbol", sorted(UNAVAILABLE))
def test_elements_without_a_crystal_say_the_way_out(symbol):
    with pytest.raises(InvalidInputError, match=f"element {symbol} .*csv"):
        element_crystals(symbol)


@pytest.mark.parametrize("elements", [[], ["Mg", "Xx"]])
def test_unknown_elements_are_refused(elements):
    with pytest.raises(InvalidInputError):
        reference_crystals(elements, ReferencesConfig())


def test_elements_alone():
    references = reference_crystals(["Mg", "O"], ReferencesConfig(source="elements"))
    assert formulas(references) == {"Mg", "O2"}


def test_element_with_large_cells_keeps_its_smallest():
    sizes = {len(r.crystal) for r in reference_crystals(["Mn"], ReferencesConfig(max_atoms=20))}
    assert sizes == {1, 20}
    assert {len(r.crystal) for r in reference_crystals(["B"], ReferencesConfig(max_atoms=1))} == {12}


@pytest.mark.parametrize(
    ("name", "elements", "formula", "number", "lattice_constant"),
    [
        ("rocksalt", ["Mg", "O"], "MgO", 225, 4.21),
        ("CsCl", ["Cs", "Cl"], "CsCl", 221, 4.12),
        ("zincblende", ["Ga", "As"], "GaAs", 216, 5.65),
        ("fluorite", ["Mg", "Si"], "Mg2Si", 225, 6.35),
        ("perovskite", ["Sr", "Ti", "O"], "SrTiO3", 221, 3.91),
        ("L1_2", ["Cu", "Au"], "Cu3Au", 221, 3.75),
        ("half_Heusler", ["Ti", "Ni", "Sn"], "TiNiSn", 216, 5.93),
    ],
)
def test_prototypes_come_near_known_compounds(name, elements, formula, number, lattice_constant):
    references = reference_crystals(elements, ReferencesConfig(source="prototypes", prototypes=(name,)))
    found = [r for r in references if r.crystal.formula == formula]
    assert found
    assert {spacegroup(r.crystal)[0] for r in found} == {number}
    conventional = [
        (r.crystal.volume * (4 if number in (216, 225) else 1)) ** (1 / 3) for r in found
    ]  # primitive to conventional cell of the face-centred cubic ones
    assert min(abs(a - lattice_constant) for a in conventional) < 0.08 * lattice_constant


def test_all_prototypes_give_valid_distinct_decorations():
    references = reference_crystals(["Li", "Mn", "O"], ReferencesConfig(source="prototypes"))
    assert all(is_valid(r.crystal) is None for r in references)
    assert len({r.id for r in references}) == len(references)
    assert {r.id.split(":")[1] for r in references if r.id.startswith("prototype:")} == set(PROTOTYPES)
    # exchanging the two sites of rocksalt changes nothing, of perovskite it does
    assert sum(r.id.startswith("prototype:rocksalt:") for r in references) == 3
    assert sum(r.id.startswith("prototype:perovskite:") for r in references) == 6
    assert sum(r.id.startswith("prototype:half_Heusler:") for r in references) == 3


def test_prototypes_respect_limits():
    few = reference_crystals(["Mg", "Si"], ReferencesConfig(source="prototypes", max_atoms=3, max_phases=5))
    compounds = [r for r in few if r.id.startswith("prototype:")]
    assert len(compounds) == 5
    assert all(len(r.crystal) <= 3 for r in few)


def cif(atoms):
    return Crystal.from_atoms(atoms).to_structure().to(fmt="cif")


def write_csv(path, rows, columns=("material_id", "pretty_formula", "e_above_hull", "cif")):
    lines = [",".join(columns)]
    lines += [",".join('"' + str(row[c]).replace('"', '""') + '"' for c in columns) for row in rows]
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def rows():
    return [
        {"material_id": "a", "pretty_formula": "MgO", "e_above_hull": 0.0, "cif": cif(bulk("MgO", "rocksalt", 4.2))},
        {"material_id": "b", "pretty_formula": "MgO", "e_above_hull": 0.3, "cif": cif(bulk("MgO", "wurtzite", 3.3))},
        {"material_id": "c", "pretty_formula": "NaCl", "e_above_hull": 0.0, "cif": cif(bulk("NaCl", "rocksalt", 5.6))},
        {"material_id": "d", "pretty_formula": "MgO", "e_above_hull": 0.0, "cif": "data_MgO\nnonsense"},
        {"material_id": "e", "pretty_formula": "MgO", "e_above_hull": "high", "cif": cif(bulk("MgO", "rocksalt", 4.2))},
    ]


@pytest.mark.parametrize("name", ["known.csv", "known.csv.gz"])
def test_csv(tmp_path, rows, name):
    content = read_csv(write_csv(tmp_path / name, rows), ["Mg", "O"])
    assert [r.id for r in content.crystals] == ["a", "b"]
    assert content.crystals[1].properties == {"e_above_hull": 0.3}
    assert content.crystals[0].crystal.volume == pytest.approx(4.2**3 / 4)
    assert [row.row for row in content.skipped] == [4, 5]
    assert all(row.reason for row in content.skipped)


def test_csv_without_formula_column_is_filtered_by_its_crystals(tmp_path, rows):
    path = write_csv(tmp_path / "known.csv", rows[:3], ("material_id", "cif"))
    assert [r.id for r in read_csv(path, ["Na", "Cl"]).crystals] == ["c"]
    assert [r.id for r in read_csv(path, max_atoms=2).crystals] == ["a", "c"]
    rows[0]["cif"] = rows[0]["cif"].replace("_chemical_formula_sum", "_chemical_formula_other")
    path = write_csv(tmp_path / "unnamed.csv", rows[:3], ("material_id", "cif"))
    assert [r.id for r in read_csv(path, ["Mg", "O"]).crystals] == ["a", "b"]


def test_crystals_of_other_elements_are_not_built(tmp_path, rows, monkeypatch):
    built = []
    monkeypatch.setattr(
        "discovery.references._crystal_from_cif", lambda text: built.append(text) or Crystal.from_atoms(bulk("Mg"))
    )
    read_csv(write_csv(tmp_path / "known.csv", rows[:3], ("material_id", "cif")), ["Na", "Cl", "Mg"])
    assert built == [rows[2]["cif"]]


def test_csv_source_adds_missing_elements_and_filters(tmp_path, rows, caplog):
    path = write_csv(tmp_path / "known.csv", rows)
    references = reference_crystals(["Mg", "O"], ReferencesConfig(source="csv", path=path))
    assert [r.id for r in references if r.crystal.formula == "MgO"] == ["a"]
    assert formulas(references) == {"Mg", "O2", "MgO"}
    assert "row 4 skipped" in caplog.text


def test_csv_source_keeps_its_own_elements(tmp_path, rows):
    rows.append({"material_id": "mg", "pretty_formula": "Mg", "e_above_hull": 0.0, "cif": cif(bulk("Mg"))})
    references = reference_crystals(
        ["Mg", "O"], ReferencesConfig(source="csv", path=write_csv(tmp_path / "k.csv", rows))
    )
    assert [r.id for r in references if r.crystal.formula == "Mg"] == ["mg"]


def test_most_stable_compounds_are_kept(tmp_path, rows):
    path = write_csv(tmp_path / "known.csv", list(reversed(rows[:2])))
    config = ReferencesConfig(source="csv", path=path, max_e_above_hull=1.0, max_phases=1)
    assert [r.id for r in reference_crystals(["Mg", "O"], config) if r.crystal.formula == "MgO"] == ["a"]


def test_csv_errors_say_what_is_wrong(tmp_path, rows):
    with pytest.raises(InvalidInputError, match=r"missing\.csv does not exist"):
        read_csv(tmp_path / "missing.csv")
    with pytest.raises(InvalidInputError, match="no column 'cif'; its columns are: material_id, pretty_formula"):
        read_csv(write_csv(tmp_path / "nocif.csv", rows, ("material_id", "pretty_formula")))
    with pytest.raises(InvalidInputError, match="none of the 1 rows"):
        read_csv(write_csv(tmp_path / "broken.csv", rows[3:4]))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InvalidInputError, match="no column 'cif'"):
        read_csv(tmp_path / "empty.csv")
    (tmp_path / "not.csv.gz").write_text("plain text")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_csv(tmp_path / "not.csv.gz")


@needs_mp20
def test_csv_agrees_with_its_own_formulas():
    content = read_csv(MP20, ["Li", "Mn", "O", "Fe", "F"])
    assert content.crystals
    assert content.skipped == ()
    for reference in content.crystals:
        assert {e.symbol for e in reference.crystal.composition} <= {"Li", "Mn", "O", "Fe", "F"}
        assert len(reference.crystal) <= 20
        assert reference.properties["e_above_hull"] < 0.08


def test_entries(tmp_path):
    structures = [
        Crystal.from_atoms(bulk("MgO", s, a)).to_structure() for s, a in (("rocksalt", 4.2), ("wurtzite", 3.3))
    ]
    entries = [
        ComputedStructureEntry(s, -10.0, entry_id=f"e{n}", data={"energy_above_hull": 0.2 * n})
        for n, s in enumerate(structures)
    ]
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([*(e.as_dict() for e in entries), {"energy": 1.0}]))
    references = reference_crystals(["Mg", "O"], ReferencesConfig(source="entries", path=path))
    compounds = [r for r in references if r.crystal.formula == "MgO"]
    assert [r.id for r in compounds] == ["e0"]
    np.testing.assert_allclose(compounds[0].crystal.lattice, structures[0].lattice.matrix)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("{}", "no list"), ("[{}]", "usable 'structure'")])
def test_broken_entries_are_named(tmp_path, text, message):
    (tmp_path / "entries.json").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        reference_crystals(["Mg"], ReferencesConfig(source="entries", path=tmp_path / "entries.json"))


def test_materials_project_needs_a_key(monkeypatch):
    monkeypatch.delenv("MP_API_KEY", raising=False)
    with pytest.raises(MissingDependencyError, match="MP_API_KEY"):
        reference_crystals(["Mg", "O"], ReferencesConfig(source="materials_project"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "csv"}, "set path"),
        ({"source": "prototypes", "prototypes": ("rocksalt", "granite")}, "granite"),
        ({"source": "oqmd"}, "source"),
        ({"max_atom": 3}, "max_atom"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValidationError, match=message):
        ReferencesConfig(**settings)


def test_every_listed_form_is_bundled():
    assert set(ELEMENTAL_FORMS) <= set(BUNDLED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formula", "lattice_constant", "enthalpy"),
    # measured enthalpies of formation in kJ/mol (CRC Handbook), to which the energies CHGNet learnt are corrected
    [("MgO", 4.21, -601.6), ("NaCl", 5.64, -411.2), ("LiF", 4.06, -616.0)],
)
def test_bundled_elements_give_known_formation_energies(formula, lattice_constant, enthalpy):
    chgnet = pytest.importorskip("chgnet.model")
    relaxer = chgnet.StructOptimizer(model=chgnet.CHGNet.load(verbose=False))

    def energy_per_atom(crystal):
        result = relaxer.relax(crystal.to_structure(), fmax=0.05, steps=200, verbose=False)
        return result["trajectory"].energies[-1] / len(crystal)

    compound = Crystal.from_atoms(bulk(formula, "rocksalt", lattice_constant))
    elements = [min(energy_per_atom(f.crystal) for f in element_crystals(e.symbol)) for e in compound.composition]
    assert energy_per_atom(compound) - np.mean(elements) == pytest.approx(enthalpy / 96.485 / 2, abs=0.1)
