import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from discovery.crystal import Crystal
from discovery.matching import CrystalIndex, Matcher, duplicates, is_valid, spacegroup
from discovery.references import element_crystals, read_csv

MP20 = Path(os.environ.get("DISCOVERY_SHARED", Path(__file__).parents[3] / "shared")) / "data/mp_20_bt/test.csv.gz"
needs_mp20 = pytest.mark.skipif(not MP20.exists(), reason=f"{MP20} is missing; set DISCOVERY_SHARED")


def crystal(atoms):
    return Crystal.from_atoms(atoms)


ROCKSALT = crystal(bulk("NaCl", "rocksalt", a=5.64))
CUBIC_ROCKSALT = crystal(bulk("NaCl", "rocksalt", a=5.9, cubic=True))
CSCL = crystal(bulk("NaCl", "cesiumchloride", a=3.4))


@pytest.mark.parametrize("symbol", ["H", "C", "O", "Mg", "Fe", "Bi", "Cs", "S"])
def test_elements_are_valid(symbol):
    assert [is_valid(reference.crystal) for reference in element_crystals(symbol)] == [None] * len(
        element_crystals(symbol)
    )


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (Atoms(cell=np.eye(3) * 3, pbc=True), "no atoms"),
        (Atoms("Si2", [[0, 0, 0], [0.3, 0, 0]], cell=np.eye(3) * 4, pbc=True), "0.300 Å apart"),
        (Atoms("Si2", [[0, 0, 0], [3.7, 0, 0]], cell=np.eye(3) * 4, pbc=True), "0.300 Å apart"),
        (Atoms("Si2", [[0, 0, 0], [0, 0, 0]], cell=np.eye(3) * 4, pbc=True), "0.000 Å apart"),
        (Atoms("Si", cell=[0.4, 9, 9], pbc=True), "lattice vector has 0.400 Å"),
        (Atoms("Si", cell=[[5, 0, 0], [5, 0.4, 0], [0, 0, 9]], pbc=True), "lattice vector has 0.400 Å"),
        (Atoms("Si", cell=[1.2, 1.2, 1.2], pbc=True), "below 2.0 Å³/atom"),
        (Atoms("Si", cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]], pbc=True), "below 2.0 Å³/atom"),
        (Atoms("Si", cell=[11, 11, 11], pbc=True), "above 1000 Å³/atom"),
    ],
)
def test_unphysical_crystals_are_named(atoms, reason):
    scaled = np.zeros((len(atoms), 3)) if atoms.get_volume() < 1e-9 else atoms.get_scaled_positions()
    assert reason in is_valid(Crystal(atoms.cell.array, scaled, atoms.numbers))


def test_same_structure_in_another_cell_is_found():
    assert Matcher().find(ROCKSALT, {"cscl": CSCL, "cubic": CUBIC_ROCKSALT}) == "cubic"
    assert Matcher().find(CUBIC_ROCKSALT, {"primitive": ROCKSALT}) == "primitive"


def test_other_structure_or_formula_is_not_found():
    kcl = crystal(bulk("KCl", "rocksalt", a=5.64))
    assert Matcher().find(ROCKSALT, {"cscl": CSCL, "kcl": kcl}) is None
    assert Matcher().find(ROCKSALT, {}) is None


def test_first_in_order_is_returned():
    known = {"b": CUBIC_ROCKSALT, "a": ROCKSALT}
    assert Matcher().find(ROCKSALT, known) == "b"
    assert Matcher().find(ROCKSALT, dict(reversed(known.items()))) == "a"


def test_tolerances_count():
    strained = bulk("NaCl", "rocksalt", a=5.64)
    strained.set_cell(strained.cell.array @ np.diag([1.0, 1.0, 1.12]), scale_atoms=True)
    assert Matcher().find(crystal(strained), {"known": ROCKSALT}) == "known"
    assert Matcher(ltol=0.01, stol=0.01, angle_tol=0.5).find(crystal(strained), {"known": ROCKSALT}) is None


@needs_mp20
def test_agrees_with_pymatgen_on_real_crystals():
    rng = np.random.default_rng(0)
    crystals = [reference.crystal for reference in read_csv(MP20, max_atoms=8).crystals[:150]]
    by_formula: dict[str, list[Crystal]] = {}
    for known in crystals:
        by_formula.setdefault(known.formula, []).append(known)
    pairs = [(a, b) for group in by_formula.values() for a in group for b in group if a is not b]
    for known in crystals[:40]:
        structure = known.to_structure()
        structure.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
        structure.perturb(0.1, seed=int(rng.integers(1000)))
        pairs.append((known, Crystal.from_structure(structure)))
    matcher, expected = Matcher(), StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
    found = [matcher.find(a, {"b": b}) == "b" for a, b in pairs]
    assert found == [expected.fit(a.to_structure(), b.to_structure()) for a, b in pairs]
    assert any(found)


@pytest.mark.parametrize(
    ("known", "number", "symbol"),
    [
        (ROCKSALT, 225, "Fm-3m"),
        (CUBIC_ROCKSALT, 225, "Fm-3m"),
        (CSCL, 221, "Pm-3m"),
        (crystal(bulk("Mg")), 194, "P6_3/mmc"),
        (crystal(bulk("Si")), 227, "Fd-3m"),
    ],
)
def test_space_groups(known, number, symbol):
    assert spacegroup(known) == (number, symbol)


def test_symprec_decides_on_distorted_crystals():
    distorted = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    distorted.rattle(0.01, seed=1)
    assert spacegroup(crystal(distorted), symprec=0.1)[0] == 225
    assert spacegroup(crystal(distorted), symprec=1e-4) == (1, "P1")


@needs_mp20
def test_space_groups_agree_with_spglib():
    crystals = [reference.crystal for reference in read_csv(MP20, max_atoms=6).crystals[:60]]
    expected = [SpacegroupAnalyzer(known.to_structure(), symprec=0.01).get_space_group_number() for known in crystals]
    assert [spacegroup(known, symprec=0.01)[0] for known in crystals] == expected


def test_duplicates_are_traced_to_the_first():
    kcl = crystal(bulk("KCl", "rocksalt", a=6.3))
    crystals = {"a": ROCKSALT, "b": CSCL, "c": CUBIC_ROCKSALT, "d": kcl, "e": ROCKSALT, "f": CSCL}
    assert duplicates(crystals, Matcher()) == {"c": "a", "e": "a", "f": "b"}
    assert duplicates(dict(reversed(crystals.items())), Matcher()) == {"b": "f", "c": "e", "a": "e"}


def test_index_finds_what_brute_force_finds():
    index = CrystalIndex(Matcher(), {"cscl": CSCL, "cubic": CUBIC_ROCKSALT})
    assert index.find(ROCKSALT) == "cubic"
    assert index.find(crystal(bulk("KCl", "rocksalt", a=6.3))) is None
    index.add("same", ROCKSALT)
    assert index.find(ROCKSALT) == "same"  # identical numbers come first


@needs_mp20
def test_preliminary_tests_never_change_the_answer():
    """Real crystals of one composition, pairs of all kinds: the lattice test alone must reject most misfits."""
    groups: dict[str, list[Crystal]] = {}
    for known in read_csv(MP20, max_atoms=10).crystals:
        structure = known.crystal.to_structure()
        elements = sorted(structure.composition, key=lambda element: (structure.composition[element], element.X))
        if len(elements) == 3:
            structure.replace_species(dict(zip([e.symbol for e in elements], ("Ca", "Ti", "O"), strict=True)))
            groups.setdefault(structure.composition.reduced_formula, []).append(Crystal.from_structure(structure))
    rng = np.random.default_rng(0)
    large = sorted(groups.values(), key=len)[-4:]
    pairs = [tuple(rng.choice(np.array(group, dtype=object), 2)) for group in large for _ in range(250)]
    matcher, expected = Matcher(), StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
    found = [matcher.same(a, b) for a, b in pairs]
    assert found == [expected.fit(a.to_structure(), b.to_structure()) for a, b in pairs]
    assert 50 < sum(found) < 950


def test_odd_crystals_are_compared_without_a_hang():
    rng = np.random.default_rng(0)
    odd = {
        "needle": Crystal(np.diag([0.6, 0.6, 2000.0]), [[0, 0, 0]], [3]),
        "other needle": Crystal(np.diag([0.6, 0.6, 2100.0]), [[0, 0, 0]], [3]),
        "element": crystal(bulk("Li")),
        "noble gas": crystal(bulk("Ar", "fcc", a=5.3)),
        "large": Crystal(np.eye(3) * 15, rng.random((200, 3)), [3] * 200),
        "overlapping": Crystal(np.eye(3) * 4, [[0, 0, 0], [0.01, 0, 0]], [3, 3]),
        "again": crystal(bulk("Li", cubic=True)),
    }
    assert duplicates(odd, Matcher()) == {"again": "element"}
