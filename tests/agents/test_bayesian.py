import re
from dataclasses import replace

import pytest

from agents.bayesian import BayesianAgent
from discovery.hull import Phase
from discovery.protocols import LearningAgent, SinceLearning
from discovery.types import Budget, EnergyScale, Evaluation, LabelledCrystal, State

SCALE = EnergyScale("code", "1", "PBE")
PAIR = ("Mg", "Si")


def bayesian(**options):
    return BayesianAgent(BayesianAgent.Config(**options))


def labels(targets):
    return [target.label for target in targets]


@pytest.mark.parametrize("acquisition", ["thompson", "ucb"])
def test_known_silicides_and_germanides_are_among_the_first(make, acquisition):
    """Six of the space's 65 cells at random would hold 0.9 of ten."""
    found = 0
    for seed in range(5):
        targets = bayesian(acquisition=acquisition).propose(make.view(("Mg", "Si", "Ge"), max_atoms=6, seed=seed), 6)
        found += len({"Mg2Si1", "Mg2Ge1"} & set(labels(targets)))
    assert found >= 5


def test_reasons_give_words_and_numbers(make):
    known = make.view(("Mg", "Si", "Ge"), candidates=make.screened(("Mg", "Si", "Ge"), 20))
    for acquisition in ("thompson", "ucb"):
        reason = bayesian(acquisition=acquisition).propose(known, 1)[0].reason
        assert re.search(r"expected [+-]\d\.\d+ ± \d\.\d+ eV/atom .* probability 0\.\d+; \d+\.\d+ expected in", reason)
    selected = bayesian(min_probability=0.0).select(known, known.candidates, Budget({"reference_calls": 1}))
    assert "stable with probability" in selected[0][1]
    assert "pairs" in selected[0][1]


def test_a_batch_is_spread(make):
    known = make.view(("Mg", "Si", "Ge"), max_atoms=8)
    for acquisition in ("thompson", "ucb"):
        formulas = set(labels(bayesian(acquisition=acquisition).propose(known, 8)))
        assert len(formulas) == 8
    systems = [frozenset(t.composition) for t in bayesian(acquisition="ucb").propose(known, 8)]
    assert len(set(systems)) >= 2


def test_an_exhausted_system_is_left_for_one_that_is_not(make):
    """All of Mg-Si was sampled often and lies far above the hull; Mg-Ge was never tried."""
    elements = ("Mg", "Si", "Ge")
    high = []
    for a in range(1, 4):
        for b in range(1, 5 - a):
            crystal = make.cell({"Mg": a, "Si": b})
            high += [make.candidate(f"c{a}{b}-{n}", crystal, 0.5) for n in range(16)]
    targets = bayesian(exhausted=0.05).propose(make.view(elements, max_atoms=4, candidates=high), 5)
    assert all("Ge" in target.composition for target in targets)


def test_selection_is_by_probability_and_discounts_polymorphs(make):
    best = make.compound("fluorite", 6.3, "SiMg2")
    candidates = [
        make.candidate("polymorph", make.compound("fluorite", 5.9, "SiMg2"), -0.09),
        make.candidate("best", best, -0.1),
        make.candidate("other", make.compound("cesiumchloride", 3.2, "MgSi"), -0.05),
        make.candidate("hopeless", make.compound("fluorite", 6.3, "MgSi2"), 0.5),
        make.candidate("failed", best, None, State.FAILED),
    ]
    known = make.view(PAIR, candidates=candidates)
    selected = bayesian().select(known, candidates, Budget())
    assert [chosen.id for chosen, _ in selected] == ["best", "other", "polymorph"]
    assert "after other structures of Mg2Si" in selected[2][1]
    probabilities = [float(re.search(r"probability (\d\.\d+)", reason)[1]) for _, reason in selected]
    assert probabilities[0] > probabilities[1] > 0.5


def test_the_campaigns_own_pairs_change_the_choice(make):
    """Screening finds MgSi 0.3 eV/atom too low wherever it was checked, so that it is not believed again."""
    screening, reference = make.hull(PAIR), make.hull(PAIR)
    checked = [make.cell({"Mg": 1, "Si": n}) for n in range(1, 9)]
    for number, crystal in enumerate(checked):
        amounts = crystal.composition.get_el_amt_dict()
        for role, energy in (("screening", -0.2), ("reference", 0.1)):
            phase = Phase(f"c{number}", amounts, (energy - 1) * len(crystal), SCALE, crystal, "discovered")
            if role == "screening":
                screening = screening.add([phase])
            else:
                reference = reference.add([phase])
    new = make.candidate("new", make.compound("fluorite", 6.3, "SiMg2"), -0.15)
    naive = make.view(PAIR, candidates=[new])
    taught = replace(naive, screening_hull=screening, reference_hull=reference)
    assert bayesian(min_probability=0.5).select(naive, [new], Budget())
    assert not bayesian(min_probability=0.5).select(taught, [new], Budget())


def test_cost_is_weighed_if_core_hours_count(make):
    small = make.candidate("small", make.compound("cesiumchloride", 3.2, "MgSi"), -0.05)
    large = make.candidate("large", make.cell({"Mg": 8, "Si": 4}), -0.06)
    history = []
    for n, hours in ((2, 0.01), (4, 0.08), (8, 0.64)):
        crystal = make.cell({"Mg": n // 2, "Si": n - n // 2})
        evaluation = Evaluation(SCALE, crystal=crystal, energy=-1.0, converged=True, seconds=3600 * hours)
        history.append(replace(make.candidate(f"h{n}", crystal, 0.2, State.JUDGED), reference=evaluation))
    known = make.view(PAIR, max_atoms=12, candidates=[*history, small, large])
    by_calls = bayesian().select(known, [small, large], Budget())
    by_hours = bayesian(cost="core_hours").select(known, [small, large], Budget())
    assert [chosen.id for chosen, _ in by_calls] == ["large", "small"]
    assert [chosen.id for chosen, _ in by_hours] == ["small", "large"]
    assert re.search(r"cost grows as atoms\^[23]\.\d", by_hours[0][1])


def test_it_learns_from_a_few_crystals_or_when_the_search_halts(make):
    lesson = LabelledCrystal(make.compound("fluorite", 6.3, "SiMg2"))
    going, halted = (replace(make.view(PAIR), since_learning=SinceLearning(idle, idle)) for idle in (1, 5))
    agent = bayesian()
    assert isinstance(agent, LearningAgent)
    assert agent.reason_to_learn(going, [lesson, lesson]) == "2 new crystals, at least 2 wanted"
    assert agent.reason_to_learn(going, [lesson]) is None
    assert agent.reason_to_learn(halted, [lesson]) == "5 verdicts without a new phase on the hull, 1 new crystal"
