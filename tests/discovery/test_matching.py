import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from pymatgen.analysis.structure_matcher import OrderDisorderElementComparator, StructureMatcher
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from discovery.crystal import Crystal
from discovery.matching import (
    CrystalIndex,
    DisorderedMatcher,
    Matcher,
    duplicates,
    is_valid,
    spacegroup,
    substitute,
    with_shared_sites,
)
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


def layered(order):
    """Atoms of fcc sites, layer by layer along [001], cubic with a = 3.9 Å."""
    a, n = 3.9, len(order) // 2
    frac = [[(layer % 2) / 2 + half, half, layer / (2 * n)] for layer in range(2 * n) for half in (0.0, 0.5)]
    symbols = [order[layer] for layer in range(2 * n) for _ in range(2)]
    return Crystal.from_atoms(Atoms(symbols, scaled_positions=frac, cell=[a, a, a * n], pbc=True))


ALTERNATING = layered(["Cu", "Au", "Cu", "Au"])  # L1_0
DOUBLE = layered(["Cu", "Cu", "Au", "Au"])


def test_orderings_of_one_alloy_are_the_same_to_the_disordered_matcher_alone():
    assert not Matcher().same(ALTERNATING, DOUBLE)
    assert DisorderedMatcher().same(ALTERNATING, DOUBLE)
    assert DisorderedMatcher().same(DOUBLE, ALTERNATING)
    assert Matcher().rms(ALTERNATING, DOUBLE) is None
    assert DisorderedMatcher().rms(ALTERNATING, DOUBLE) == pytest.approx(0.0, abs=1e-6)
    ids = {"a": ALTERNATING, "b": DOUBLE, "c": ROCKSALT}
    assert duplicates(ids, Matcher()) == {}
    assert duplicates(ids, DisorderedMatcher()) == {"b": "a"}
    assert CrystalIndex(DisorderedMatcher(), {"a": ALTERNATING}).find(DOUBLE) == "a"


def test_elements_that_do_not_substitute_stay_apart():
    assert substitute("Cu", "Au")
    assert not substitute("Na", "Cl")  # electronegativity
    assert not substitute("Li", "Cs")  # radius
    assert not substitute("He", "Ne")  # neither is known
    assert with_shared_sites(ROCKSALT) is None
    assert not DisorderedMatcher().same(ROCKSALT, CSCL)
    assert DisorderedMatcher().same(ROCKSALT, CUBIC_ROCKSALT)
    other = layered(["Cu", "Au", "Au", "Au"])
    assert not DisorderedMatcher().same(ALTERNATING, other)  # another composition is another bucket


def test_shared_sites_hold_the_composition():
    structure = with_shared_sites(layered(["Cu", "Au", "Au", "Au"]))
    assert structure[0].species.as_dict() == pytest.approx({"Cu": 0.25, "Au": 0.75})


@needs_mp20
def test_disordered_matcher_agrees_with_brute_force():
    """Real crystals made into alloys of three elements and oxygen; no preliminary test, no stored reduction."""
    groups: dict[str, list[Crystal]] = {}
    for known in read_csv(MP20, max_atoms=8).crystals:
        structure = known.crystal.to_structure()
        elements = sorted(structure.composition, key=lambda element: (structure.composition[element], element.X))
        if len(elements) <= 4:
            structure.replace_species(dict(zip([e.symbol for e in elements], ("Fe", "Mn", "Co", "O"), strict=False)))
            groups.setdefault(structure.composition.reduced_formula, []).append(Crystal.from_structure(structure))
    rng = np.random.default_rng(0)
    large = sorted(groups.values(), key=len)[-6:]
    pairs = [tuple(rng.choice(np.array(group, dtype=object), 2)) for group in large for _ in range(40)]
    ordered = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
    disordered = StructureMatcher(
        ltol=0.2,
        stol=0.3,
        angle_tol=5,
        attempt_supercell=True,
        allow_subset=True,
        comparator=OrderDisorderElementComparator(),
    )
    expected = []
    for a, b in pairs:
        shared, other = a.to_structure(), b.to_structure()
        alloy = [symbol for symbol in ("Fe", "Mn", "Co") if symbol in shared.composition]
        total = sum(shared.composition[symbol] for symbol in alloy)
        mixture = {symbol: shared.composition[symbol] / total for symbol in alloy}
        fits = ordered.fit(shared, other)
        shared.replace_species(dict.fromkeys(alloy, mixture))
        expected.append(fits or disordered.fit(shared, other))
    matcher, plain = DisorderedMatcher(), Matcher()
    assert [matcher.same(a, b) for a, b in pairs] == expected
    assert sum(expected) > sum(plain.same(a, b) for a, b in pairs) > 0


@needs_mp20
def test_displacements_are_those_of_pymatgen():
    rng = np.random.default_rng(0)
    matcher, expected = Matcher(0.3, 0.5, 10), StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    for known in read_csv(MP20, max_atoms=8).crystals[:25]:
        structure = known.crystal.to_structure()
        structure.perturb(0.2, seed=int(rng.integers(1000)))
        found = expected.get_rms_dist(structure, known.crystal.to_structure())
        own = matcher.rms(Crystal.from_structure(structure), known.crystal)
        assert own is None if found is None else own == pytest.approx(found[0], abs=1e-9)


@pytest.mark.parametrize("kind", [Matcher, DisorderedMatcher])
def test_a_large_cell_is_compared_with_a_small_one_without_a_hang(kind):
    rng = np.random.default_rng(0)
    alloy = Crystal(np.eye(3) * 15, rng.random((200, 3)), [29, 79] * 100)
    assert not kind().same(ALTERNATING, alloy)
    assert not kind().same(alloy, ALTERNATING)
