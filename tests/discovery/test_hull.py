import json
import os
import random
from pathlib import Path

import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.hull import Hull, Phase
from discovery.hull_command import hull_of
from discovery.sets import read_set
from discovery.types import EnergyScale, Stability

SCALE = EnergyScale("code", "1", "PBE")
ELEMENTS = ("Li", "Mn", "O", "F")


def phase(id_, formula, energy_per_atom, **kwargs):
    composition = Composition(formula)
    return Phase(id_, composition.as_dict(), energy_per_atom * composition.num_atoms, SCALE, **kwargs)


@st.composite
def systems(draw):
    """Phases of two to four elements, terminals included, with energies of random sign against them."""
    elements = ELEMENTS[: draw(st.integers(2, 4))]
    energies = st.floats(-3, 0.5).map(lambda x: round(x, 6))
    phases = [phase(f"terminal-{e}", f"{e}2", draw(energies)) for e in elements]
    counts = st.tuples(*[st.integers(0, 3)] * len(elements)).filter(any)
    for number, amounts in enumerate(draw(st.lists(counts, min_size=1, max_size=10))):
        formula = "".join(f"{e}{n}" for e, n in zip(elements, amounts, strict=True) if n)
        phases.append(phase(f"p{number}", formula, draw(energies)))
    return phases


def entries(phases):
    return {p.id: PDEntry(Composition(p.composition), p.energy, name=p.id) for p in phases}


@settings(max_examples=80, deadline=None)
@given(systems())
def test_agrees_with_pymatgen(phases):
    hull = Hull(SCALE, tuple(phases))
    known = entries(phases)
    diagram = PhaseDiagram(known.values())
    for p in phases:
        _, energy = diagram.get_decomp_and_e_above_hull(known[p.id], check_stable=False)
        found = hull.decompose(p.composition, p.energy_per_atom)
        assert found.e_above_hull == pytest.approx(energy, abs=1e-7)
        assert found.e_above_hull == max(0.0, found.e_above_hull)
        assert sum(found.products.values()) == pytest.approx(1.0)
        assert hull.formation_energy_per_atom(p.composition, p.energy_per_atom) == pytest.approx(
            diagram.get_form_energy_per_atom(known[p.id]), abs=1e-9
        )
        # where energies are degenerate the products may differ, but they never cost more energy
        stable = {phase.formula: phase for phase in hull.stable_phases}
        products_energy = sum(amount * stable[f].energy_per_atom for f, amount in found.products.items() if f in stable)
        if found.products.keys() <= stable.keys():
            assert p.energy_per_atom - products_energy == pytest.approx(energy, abs=1e-6)
    assert {p.formula for p in hull.stable_phases} == {e.composition.reduced_formula for e in diagram.stable_entries}


@settings(max_examples=80, deadline=None)
@given(systems())
def test_own_decomposition_energy_is_taken_against_a_hull_without_the_entry(phases):
    hull = Hull(SCALE, tuple(phases))
    known = entries(phases)
    for p in phases:
        others = [entry for id_, entry in known.items() if id_ != p.id]
        found = hull.decompose(p.composition, p.energy_per_atom, exclude=[p.id])
        missing = set(p.composition) - {e.composition.elements[0].symbol for e in others if len(e.composition) == 1}
        if missing:
            assert found is None
            continue
        _, energy = PhaseDiagram(others).get_decomp_and_e_above_hull(known[p.id], allow_negative=True)
        assert found.decomposition_energy == pytest.approx(energy, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(systems(), st.data())
def test_any_set_of_phases_can_be_left_out(phases, data):
    left_out = set(data.draw(st.lists(st.sampled_from([p.id for p in phases]))))
    kept = [p for p in phases if p.id not in left_out]
    hull, without = Hull(SCALE, tuple(phases)), Hull(SCALE, tuple(kept))
    for p in phases:
        found = hull.decompose(p.composition, p.energy_per_atom, exclude=[*left_out, "unknown"])
        expected = without.decompose(p.composition, p.energy_per_atom)
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.decomposition_energy == pytest.approx(expected.decomposition_energy, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(systems())
def test_stable_phase_without_polymorphs_has_pymatgens_equilibrium_reaction_energy(phases):
    diagram = PhaseDiagram(entries(phases).values())
    stable = {entry.name: entry for entry in diagram.stable_entries}
    hull = Hull(SCALE, tuple(p for p in phases if p.id in stable))
    for p in hull.phases:
        if len(p.composition) > 1:
            expected = diagram.get_equilibrium_reaction_energy(stable[p.id])
            assert hull.judge(p.id, 0.0, 0.1).decomposition_energy == pytest.approx(expected, abs=1e-7)
            assert expected <= 1e-8


@settings(max_examples=40, deadline=None)
@given(systems(), st.randoms(use_true_random=False))
def test_order_of_phases_is_irrelevant(phases, rng: random.Random):
    shuffled = rng.sample(phases, len(phases))
    one, other = Hull(SCALE, tuple(phases)), Hull(SCALE).add(shuffled)
    assert [p.id for p in one.stable_phases] == [p.id for p in other.stable_phases]
    for p in phases:
        first, second = one.judge(p.id, 0.0, 0.1), other.judge(p.id, 0.0, 0.1)
        assert first.e_above_hull == pytest.approx(second.e_above_hull, abs=1e-9)
        assert first.decomposition_energy == pytest.approx(second.decomposition_energy, abs=1e-9)
        assert first.stability == second.stability


@settings(max_examples=40, deadline=None)
@given(systems(), st.integers(-3, 2))
def test_adding_a_phase_never_lowers_the_energy_above_the_hull(phases, energy):
    before = Hull(SCALE, tuple(phases))
    elements = "".join(before.elements)
    after = before.add([phase("new", elements, float(energy))])
    assert after.version == before.version + 1
    for p in phases:
        low = before.decompose(p.composition, p.energy_per_atom).e_above_hull
        assert after.decompose(p.composition, p.energy_per_atom).e_above_hull >= low - 1e-9


@pytest.fixture
def binary():
    return Hull(SCALE).add(
        [
            phase("Mg", "Mg2", -1.5),
            phase("Si", "Si2", -5.0),
            phase("low", "Mg2Si", -3.0),
            phase("high", "Mg4Si2", -2.95),
        ]
    )


def test_energies_by_hand(binary):
    # E(Mg2Si) - (2 E(Mg) + E(Si)) / 3 = -3 + 8/3
    verdict = binary.judge("low", 0.0, 0.1)
    assert verdict.formation_energy_per_atom == pytest.approx(-1 / 3)
    assert verdict.stability is Stability.STABLE
    assert verdict.e_above_hull == 0.0
    assert verdict.decomposition_energy == pytest.approx(-0.05)
    assert verdict.decomposition == pytest.approx({"Mg2Si": 1.0})
    assert verdict.energy_scale == SCALE.id
    assert verdict.hull_version == 1
    # halfway between Mg2Si and Si in atoms: MgSi lies at Mg2Si 3/4, Si 1/4
    middle = binary.decompose({"Mg": 3, "Si": 3}, -3.4)
    assert middle.products == pytest.approx({"Mg2Si": 0.75, "Si": 0.25})
    assert middle.decomposition_energy == pytest.approx(-3.4 - (0.75 * -3.0 + 0.25 * -5.0))


@pytest.mark.parametrize(
    ("threshold", "metastable", "stability"),
    [
        (0.0, 0.1, Stability.METASTABLE),
        (0.0, 0.04, Stability.UNSTABLE),
        (0.06, 0.1, Stability.STABLE),
        (0.05 + 1e-12, 0.1, Stability.STABLE),
    ],
)
def test_verdict_thresholds(binary, threshold, metastable, stability):
    verdict = binary.judge("high", threshold, metastable)
    assert verdict.e_above_hull == pytest.approx(0.05)
    assert verdict.stability is stability
    assert (verdict.threshold, verdict.metastable_threshold) == (threshold, metastable)


def test_polymorphs_leave_the_lowest_on_the_hull(binary):
    assert [p.id for p in binary.stable_phases] == ["Mg", "Si", "low"]


def test_a_crystal_found_twice_does_not_compete_with_itself():
    crystal = Crystal.from_atoms(bulk("MgO", "rocksalt", a=4.2))
    again = Crystal.from_atoms(bulk("MgO", "rocksalt", a=4.25, cubic=True))
    other = Crystal.from_atoms(bulk("MgO", "cesiumchloride", a=2.6))
    hull = Hull(SCALE).add(
        [
            phase("Mg", "Mg2", -1.5),
            phase("O", "O2", -5.0),
            phase("first", "MgO", -6.0, crystal=crystal),
            phase("again", "Mg4O4", -5.999, crystal=again),
        ]
    )
    verdict = hull.judge("first", 0.0, 0.1)
    assert verdict.decomposition_energy == pytest.approx(-2.75)
    assert verdict.decomposition == pytest.approx({"Mg": 0.5, "O2": 0.5})
    different = hull.add([phase("CsCl", "MgO", -5.5, crystal=other)]).judge("first", 0.0, 0.1)
    assert different.decomposition_energy == pytest.approx(-0.5)


def test_only_phase_of_an_element_is_judged(binary):
    verdict = binary.judge("Mg", 0.0, 0.1)
    assert (verdict.stability, verdict.decomposition_energy) == (Stability.STABLE, 0.0)


def test_missing_terminal_gives_none(binary):
    assert binary.decompose({"Mg": 1, "O": 1}, -5.0) is None
    assert binary.formation_energy_per_atom({"Mg": 1, "O": 1}, -5.0) is None
    assert binary.decompose({"Mg": 1}, -5.0, exclude=["Mg"]) is None
    incomplete = binary.add([phase("MgO", "MgO", -5.0)])
    assert incomplete.elements == ("Mg", "Si")
    assert [p.id for p in incomplete.stable_phases] == ["Mg", "Si", "low"]
    with pytest.raises(InvalidInputError, match="element\\(s\\) O;"):
        incomplete.judge("MgO", 0.0, 0.1)


def test_empty_hull():
    hull = Hull(SCALE)
    assert hull.elements == ()
    assert hull.stable_phases == ()
    assert hull.decompose({"Mg": 1}, -1.0) is None


def test_scales_never_mix(binary):
    foreign = Phase("x", {"Mg": 1}, -1.0, EnergyScale("code", "2", "PBE"))
    with pytest.raises(EnergyScaleError) as error:
        binary.add([foreign])
    assert SCALE.id in str(error.value)
    assert foreign.energy_scale.id in str(error.value)


def test_duplicate_ids_are_refused(binary):
    with pytest.raises(InvalidInputError, match="'low' occurs twice"):
        binary.add([phase("low", "Mg", -1.0)])


def test_add_leaves_the_old_hull_as_it_was(binary):
    binary.add([phase("MgSi", "MgSi", -9.0)])
    assert binary.version == 1
    assert [p.id for p in binary.stable_phases] == ["Mg", "Si", "low"]


@pytest.mark.parametrize("composition", [{}, {"Xx": 1}, {"Mg": 0}, {"Mg": -1}, {"Mg": float("nan")}])
def test_wrong_compositions_are_refused(binary, composition):
    with pytest.raises(InvalidInputError):
        Phase("x", composition, -1.0, SCALE)
    with pytest.raises(InvalidInputError):
        binary.decompose(composition, -1.0)


def test_wrong_judgements_are_refused(binary):
    with pytest.raises(InvalidInputError, match="not in hull"):
        binary.judge("unknown", 0.0, 0.1)
    with pytest.raises(InvalidInputError, match="metastable_threshold"):
        binary.judge("low", 0.1, 0.0)
    with pytest.raises(InvalidInputError, match="energy nan"):
        Phase("x", {"Mg": 1}, float("nan"), SCALE)


def test_phase_survives_json():
    p = phase("MgO", "MgO", -5.0, crystal=Crystal.from_atoms(bulk("MgO", "rocksalt", a=4.2)), origin="discovered")
    assert Phase.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    with pytest.raises(InvalidInputError, match="format"):
        Phase.from_dict({**p.to_dict(), "format": "discovery.phase/0"})


def random_phases(elements, n, seed, prefix="p"):
    """Terminals at 0 and phases of one to all elements with random energies."""
    rng = random.Random(seed)  # noqa: S311
    phases = [phase(f"{prefix}-{element}", element, 0.0) for element in elements]
    for number in range(n):
        chosen = rng.sample(elements, rng.randint(1, len(elements)))
        formula = "".join(f"{element}{rng.randint(1, 9)}" for element in chosen)
        phases.append(phase(f"{prefix}-{number}", formula, rng.gauss(0.0, 1.0) if len(chosen) > 1 else rng.random()))
    return phases


@pytest.mark.parametrize(("n_elements", "n"), [(2, 400), (3, 800), (4, 600), (5, 200)])
def test_many_phases_agree_with_pymatgen(n_elements, n):
    elements = ["Li", "Mn", "O", "F", "Cu"][:n_elements]
    phases = random_phases(elements, n, seed=n_elements)
    hull, known = Hull(SCALE, tuple(phases)), entries(phases)
    diagram = PhaseDiagram(known.values())
    queries = random_phases(elements, 200, seed=99, prefix="q")[n_elements:]
    for p in phases[:200] + queries:
        entry = PDEntry(Composition(p.composition), p.energy)
        _, energy = diagram.get_decomp_and_e_above_hull(entry, allow_negative=True, check_stable=False)
        assert hull.decompose(p.composition, p.energy_per_atom).decomposition_energy == pytest.approx(energy, abs=1e-9)
    assert {p.id for p in hull.stable_phases} == {entry.name for entry in diagram.stable_entries}


def test_added_phases_give_the_hull_that_is_built_at_once():
    phases = random_phases(["Li", "Mn", "O", "F"], 200, seed=3)
    grown = Hull(SCALE, tuple(phases[:50]))
    for p in phases[50:]:
        grown.decompose(p.composition, p.energy_per_atom)  # fills the caches that the next addition may spoil
        grown = grown.add([p])
    at_once = Hull(SCALE, tuple(phases))
    for p in phases:
        expected = at_once.decompose(p.composition, p.energy_per_atom).decomposition_energy
        assert grown.decompose(p.composition, p.energy_per_atom).decomposition_energy == pytest.approx(expected)
    assert grown.stable_phases == at_once.stable_phases


def test_products_add_up_to_the_composition_and_its_hull_energy():
    phases = random_phases(["Li", "Mn", "O"], 300, seed=5)
    hull = Hull(SCALE, tuple(phases))
    energies = {p.formula: p.energy_per_atom for p in hull.stable_phases}
    for p in random_phases(["Li", "Mn", "O"], 100, seed=6):
        found = hull.decompose(p.composition, p.energy_per_atom)
        total = Composition()
        for formula, amount in found.products.items():
            product = Composition(formula)
            total += product * (amount / product.num_atoms)
        assert total.almost_equals(Composition(p.composition) / sum(p.composition.values()), atol=1e-6)
        energy = sum(amount * energies[formula] for formula, amount in found.products.items())
        assert p.energy_per_atom - energy == pytest.approx(found.decomposition_energy)


MP20 = Path(os.environ.get("DISCOVERY_SHARED", Path(__file__).parents[3] / "shared")) / "data/mp_20_bt"


@pytest.mark.skipif(not MP20.exists(), reason=f"{MP20} is missing; set DISCOVERY_SHARED")
def test_real_entries_agree_with_pymatgen():
    known, wanted = (read_set(MP20 / f"{name}.csv.gz", crystals=False) for name in ("train", "test"))
    hull = hull_of(known, "formation", SCALE)
    by_elements = {p.id: (p, frozenset(p.composition)) for p in hull.phases}
    for member in wanted.members[:80]:
        elements = frozenset(member.composition)
        own = [PDEntry(Composition(p.composition), p.energy) for p, of_p in by_elements.values() if of_p <= elements]
        composition, energy = Composition(member.composition), member.energies.formation
        entry = PDEntry(composition, energy * composition.num_atoms)
        _, expected = PhaseDiagram(own).get_decomp_and_e_above_hull(entry, allow_negative=True, check_stable=False)
        found = hull.decompose(member.composition, energy)
        assert found.decomposition_energy == pytest.approx(expected, abs=1e-6)
