import pytest
from pydantic import ValidationError

from agents.greedy import GreedyAgent
from discovery.hull import Phase
from discovery.types import Budget, EnergyScale

SCALE = EnergyScale("code", "1", "PBE")


def greedy(**options):
    return GreedyAgent(GreedyAgent.Config(**options))


def labels(targets):
    return [target.label for target in targets]


@pytest.mark.parametrize("max_atoms", [6, 8])
@pytest.mark.parametrize("seed", range(5))
def test_known_silicides_and_germanides_are_asked_for_first(make, max_atoms, seed):
    targets = greedy().propose(make.view(("Mg", "Si", "Ge"), max_atoms=max_atoms, seed=seed), 6)
    assert {"Mg2Si1", "Mg2Ge1"} <= set(labels(targets))
    reason = next(t.reason for t in targets if t.label == "Mg2Si1")
    assert "charge-balanced (Mg +2, Si -4)" in reason
    assert "eV/atom" in reason


def test_intermetallics_are_asked_for_where_charge_says_nothing(make):
    targets = greedy(exploration=0.0).propose(make.view(("Cu", "Au"), max_atoms=4), 5)
    assert set(labels(targets)) == {"Cu1Au1", "Cu3Au1", "Cu1Au3", "Cu2Au1", "Cu1Au2"}


def test_formulas_come_once_before_larger_cells(make):
    targets = labels(greedy(exploration=0.0).propose(make.view(("Cu", "Au"), max_atoms=4), 10))
    assert targets[5:] == ["Cu2Au2"]


def test_low_energies_attract_and_high_ones_repel(make):
    elements = ("Cu", "Au")
    near = make.candidate("low", make.compound("cesiumchloride", 3.2, "CuAu"), -0.2)
    far = make.candidate("high", make.compound("cesiumchloride", 3.2, "CuAu"), 0.3)
    agent = greedy(exploration=0.0)
    distances = []
    for history in ([near], [far]):
        known = make.view(elements, max_atoms=8, candidates=history)
        fractions = [t.composition["Cu"] / sum(t.composition.values()) for t in agent.propose(known, 6)]
        distances.append(sum(abs(x - 0.5) for x in fractions))
    assert distances[0] < distances[1]
    assert "nearest CuAu -0.200" in agent.propose(make.view(elements, candidates=[near]), 1)[0].reason


def test_a_success_speaks_for_its_isovalent_analogue(make):
    stable = make.candidate("low", make.compound("fluorite", 6.4, "GeMg2"), -0.2)
    failed = make.candidate("high", make.compound("fluorite", 6.3, "SiMg2"), 0.06)

    def rank(history):
        known = make.view(("Mg", "Si", "Ge"), max_atoms=6, candidates=history)
        return labels(greedy(exploration=0.0).propose(known, 30)).index("Mg2Si1")

    assert rank([failed, stable]) < rank([failed])


def test_repetition_is_damped_and_then_stopped(make):
    crystal = make.compound("fluorite", 6.3, "SiMg2")
    agent = greedy(exploration=0.0, max_sample_sets=2)
    counts = {}
    for sets in (0, 1, 2):
        history = [make.candidate(f"c{i}", crystal, 0.0) for i in range(4 * sets)]
        targets = agent.propose(make.view(("Mg", "Si"), max_atoms=6, candidates=history), 20)
        counts[sets] = labels(targets)
    assert counts[0][0] == "Mg2Si1"
    assert counts[1][0] == "Mg4Si2"
    assert "Mg2Si1" in counts[1]
    assert "Mg2Si1" not in counts[2]


def test_known_stable_phase_is_left_alone_after_one_set(make):
    crystal = make.compound("fluorite", 6.3, "SiMg2")
    known = make.hull(("Mg", "Si")).add([Phase("Mg2Si", {"Mg": 2, "Si": 1}, -4.0, SCALE, crystal)])
    agent = greedy(exploration=0.0)
    for sets, present in ((0, True), (1, False)):
        history = [make.candidate(f"c{i}", crystal, 0.0) for i in range(4 * sets)]
        targets = agent.propose(make.view(("Mg", "Si"), candidates=history, screening_hull=known), 40)
        assert ("Mg2Si1" in labels(targets)) is present


def test_an_exhausted_space_is_still_searched(make):
    history = [make.candidate(f"c{i}", make.compound("cesiumchloride", 3.2, "CuAu"), 0.0) for i in range(100)]
    assert labels(greedy().propose(make.view(("Cu", "Au"), max_atoms=2, candidates=history), 3)) == ["Cu1Au1"]


def test_selection_ranks_by_energy_and_takes_each_formula_first(make):
    fluorite, rutile = make.compound("fluorite", 6.3, "SiMg2"), make.compound("fluorite", 6.3, "MgSi2")
    other = make.compound("cesiumchloride", 3.2, "MgSi")
    polymorph = make.compound("rocksalt", 5.2, "MgSi")
    candidates = [
        make.candidate("worst", rutile, 0.09),
        make.candidate("polymorph", polymorph, -0.01),
        make.candidate("best", other, -0.1),
        make.candidate("second", fluorite, -0.05),
        make.candidate("unstable", make.compound("fluorite", 6.0, "GeMg2"), 0.11),
        make.candidate("failed", make.compound("fluorite", 6.0, "MgGe2"), None),
    ]
    known = make.view(("Mg", "Si", "Ge"), candidates=candidates)
    selected = greedy().select(known, candidates, Budget())
    assert [chosen.id for chosen, _ in selected] == ["best", "second", "worst", "polymorph"]
    assert selected[0][1] == "structure 1 of MgSi by screening energy, decomposition energy -0.100 eV/atom"
    few = greedy().select(known, candidates, Budget({"reference_calls": 2.5}))
    assert [chosen.id for chosen, _ in few] == ["best", "second"]
    single = greedy(max_polymorphs=1, max_decomposition_energy=0.0).select(known, candidates, Budget())
    assert [chosen.id for chosen, _ in single] == ["best", "second"]


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="temperature"):
        GreedyAgent.Config(temperature=1.0)
