import gzip
import json
import zipfile

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from pymatgen.io.cif import CifWriter

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.sets import read_set

ROCKSALT = Crystal.from_atoms(bulk("NaCl", "rocksalt", a=5.64))
CIF = str(CifWriter(ROCKSALT.to_structure(), significant_figures=10))
PARTIAL = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def same(crystal):
    return crystal.formula == "NaCl" and np.isclose(crystal.volume, ROCKSALT.volume)


def test_folder_keeps_what_cannot_be_read(tmp_path):
    (tmp_path / "a.cif").write_text(CIF)
    (tmp_path / "b.cif").write_text("data_nothing\n")
    (tmp_path / "c.cif").write_text("")
    (tmp_path / "d.cif").write_text(str(CifWriter(PARTIAL)))
    (tmp_path / "e.vasp").write_text("not a POSCAR")
    (tmp_path / "notes.txt").write_text("not a crystal")
    good, *others = read_set(tmp_path).members
    assert same(good.crystal)
    assert [member.id for member in others] == ["b.cif", "c.cif", "d.cif", "e.vasp"]
    assert all(member.crystal is None and member.problem for member in others)
    assert "partially occupied" in others[2].problem


def test_archive_and_compressed_cif(tmp_path):
    path = tmp_path / "crystals.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gen_0.cif", CIF)
        archive.writestr("gen_1.cif", "broken")
        archive.writestr("readme.txt", "x")
    good, broken = read_set(path).members
    assert same(good.crystal)
    assert broken.problem
    (tmp_path / "x.cif.gz").write_bytes(gzip.compress(CIF.encode()))
    assert same(read_set(tmp_path / "x.cif.gz").members[0].crystal)
    path.write_bytes(b"PK no archive")
    with pytest.raises(InvalidInputError, match="no readable zip"):
        read_set(path)


def test_frames_survive_broken_neighbours(tmp_path):
    path = tmp_path / "frames.extxyz"
    molecule = Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])
    write(path, [bulk("NaCl", "rocksalt", a=5.64), molecule, bulk("Cu")])
    lines = path.read_text().splitlines()
    lines[2] = "Na nan x 0"
    path.write_text("\n".join(lines) + "\n")
    first, second, third = read_set(path).members
    assert first.crystal is None
    assert "no three-dimensional cell" in second.problem
    assert third.crystal.formula == "Cu"
    for ending in ("garbage", "-5"):
        path.write_text("\n".join([*lines, ending]) + "\n")
        assert "line 12" in read_set(path).members[-1].problem


def test_json_of_entries_structures_and_crystals(tmp_path):
    structure = ROCKSALT.to_structure()
    items = [
        ComputedStructureEntry(structure, -6.0, correction=-0.5, entry_id="mp-1").as_dict(),
        ComputedEntry("MgO", -12.0, entry_id="mp-2").as_dict(),
        structure.as_dict(),
        ROCKSALT.to_dict(),
        {"energy": 1.0},
        "text",
        ComputedStructureEntry(PARTIAL, -1.0, entry_id="partial").as_dict(),
    ]
    path = tmp_path / "entries.json"
    path.write_text(json.dumps(items))
    entry, composition, plain, own, empty, text, partial = read_set(path).members
    assert entry.energies.total == pytest.approx(-6.5 / 2)
    assert composition.composition == {"Mg": 1.0, "O": 1.0}
    assert composition.crystal is None
    assert same(plain.crystal)
    assert own.crystal == ROCKSALT
    assert all(member.problem for member in (empty, text, partial))
    path.write_text('{"a": 1}')
    with pytest.raises(InvalidInputError, match="no list"):
        read_set(path)


def test_csv_with_and_without_crystals(tmp_path):
    path = tmp_path / "x.csv"
    cell = CIF.replace('"', '""')
    path.write_text(f'material_id,formation_energy_per_atom,cif\na,-1,"{cell}"\nb,-2,\nc,inf,"junk"\n')
    good, empty, junk = read_set(path).members
    assert same(good.crystal)
    assert good.energies.formation == -1.0
    assert empty.problem == "the cif is empty"
    assert junk.crystal is None
    assert junk.energies.formation is None
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInputError, match="neither a column 'cif' nor a formula"):
        read_set(path)


def test_unknown_and_missing_files(tmp_path):
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_set(tmp_path / "nothing.csv")
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(InvalidInputError, match="no known kind"):
        read_set(tmp_path / "x.docx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=r"no \.cif"):
        read_set(tmp_path / "empty")


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from(["x.csv", "x.json", "x.extxyz", "x.zip", "x.cif", "x.cif.gz", "x.vasp"])
)
def test_no_file_brings_the_reader_down(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    try:
        members = read_set(path).members
    except InvalidInputError:
        return
    assert all(member.crystal is not None or member.problem for member in members)


def test_a_hundred_thousand_rows_are_read(tmp_path):
    path = tmp_path / "many.csv"
    rows = (f"id-{n},Mg{n % 90 + 1}O{n % 7 + 1},{-(n % 13) / 10}" for n in range(100_000))
    path.write_text("id,formula,formation_energy_per_atom\n" + "\n".join(rows) + "\n")
    members = read_set(path, crystals=False).members
    assert len(members) == 100_000
    assert members[5].composition == Composition("Mg6O6").as_dict()
