import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition

from agents.compositions import Chemistry, atomic_fractions, balanced_states, stoichiometries


@pytest.mark.parametrize(
    ("formula", "states"),
    [
        ("Mg2Si", {"Mg": 2, "Si": -4}),
        ("Mg2Ge", {"Mg": 2, "Ge": -4}),
        ("NaCl", {"Na": 1, "Cl": -1}),
        ("LiMnO2", {"Li": 1, "Mn": 3, "O": -2}),
        ("VOF3", {"V": 5, "O": -2, "F": -1}),
        ("SrTiO3", {"Sr": 2, "Ti": 4, "O": -2}),
    ],
)
def test_textbook_oxidation_states(formula, states):
    assert balanced_states(Composition(formula).get_el_amt_dict()) == states


@pytest.mark.parametrize("formula", ["MgSi", "CuAu", "Cu3Au", "NaCl2", "Mg"])
def test_unbalanced_compositions(formula):
    assert balanced_states(Composition(formula).get_el_amt_dict(), mixed_valence=True) is None


@pytest.mark.parametrize(("formula", "mean"), [("Mn3O4", 8 / 3), ("LiMn2O4", 3.5), ("Fe3O4", 8 / 3)])
def test_mixed_valence(formula, mean):
    counts = Composition(formula).get_el_amt_dict()
    metal = "Fe" if "Fe" in counts else "Mn"
    assert balanced_states(counts) is None
    assert balanced_states(counts, mixed_valence=True)[metal] == pytest.approx(mean)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([("Mg", "Si", "Ge"), ("Cu", "Au"), ("Li", "Mn", "O"), ("F", "O", "V")]), st.integers(2, 9))
def test_enumeration_is_complete_and_reduced(elements, max_atoms):
    found = stoichiometries(elements, max_atoms)
    counts = [dict(s.counts) for s in found]
    assert len({s.formula for s in found}) == len(found)
    assert all(len(c) >= 2 and sum(c.values()) <= max_atoms and math.gcd(*c.values()) == 1 for c in counts)
    # number of reduced compositions by brute force
    ranges = [range(max_atoms + 1)] * len(elements)
    grid = [()]
    for values in ranges:
        grid = [(*head, value) for head in grid for value in values]
    expected = [g for g in grid if sum(v > 0 for v in g) >= 2 and sum(g) <= max_atoms and math.gcd(*g) == 1]
    assert len(found) == len(expected)
    for s in found:
        charge = sum(dict(s.counts)[e] * state for e, state in s.oxidation_states)
        assert charge == pytest.approx(0.0)
        assert bool(s.oxidation_states) == (s.chemistry is not Chemistry.SIMPLE_RATIO)


def test_likely_compounds_come_first():
    formulas = [s.formula for s in stoichiometries(("Mg", "Si", "Ge"), 6)]
    assert {"Mg2Si", "Mg2Ge"} <= set(formulas[:3])
    assert [s.formula for s in stoichiometries(("Cu", "Au"), 4)] == ["CuAu", "CuAu2", "Cu2Au", "CuAu3", "Cu3Au"]


def test_one_element_is_its_own_space():
    assert [s.formula for s in stoichiometries(("C",), 4)] == ["C"]


def test_description_names_the_chemistry():
    described = {s.formula: s.describe() for s in stoichiometries(("Mg", "Si"), 4)}
    assert described["Mg2Si"] == "charge-balanced (Mg +2, Si -4)"
    assert described["MgSi"] == "simple ratio 1:1"


def test_atomic_fractions():
    fractions = atomic_fractions([{"Mg": 2, "Si": 1}, {"Ge": 3}], ("Mg", "Si", "Ge"))
    assert fractions.tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0], [0.0, 0.0, 1.0]]
    assert atomic_fractions([], ("Mg",)).shape == (0, 1)
