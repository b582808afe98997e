"""What every registered agent has to keep."""

from importlib.metadata import entry_points

import pytest

from discovery import plugins
from discovery.protocols import Agent, PluginConfig
from discovery.types import Budget, State

SPACES = [("Mg", "Si", "Ge"), ("Cu", "Au"), ("Li", "Mn", "O"), ("F", "O", "V"), ("C",)]


@pytest.fixture(params=sorted(plugins.names("agents")))
def agent(request):
    cls = plugins.load("agents", request.param)
    assert issubclass(cls.Config, PluginConfig)
    return cls(cls.Config())


def fresh(agent):
    return type(agent)(agent.config)


def test_shipped_agents_are_registered():
    assert {"bayesian", "greedy", "random"} <= {point.name for point in entry_points(group="discovery.agents")}


def test_protocol(agent):
    assert isinstance(agent, Agent)


@pytest.mark.parametrize("elements", SPACES, ids="-".join)
@pytest.mark.parametrize("n", [0, 1, 5, 40])
def test_targets(agent, make, elements, n):
    for seed in range(3):
        known = make.view(elements, max_atoms=6, seed=seed)
        targets = agent.propose(known, n)
        assert len(targets) <= n
        assert bool(targets) == bool(n)
        cells = []
        for target in targets:
            assert (target.composition is None) != (target.elements is None)
            assert target.reason
            assert target.n_samples == known.samples_per_target
            if target.composition is not None:
                assert set(target.composition) <= set(elements)
                assert sum(target.composition.values()) <= known.max_atoms
                cells.append(frozenset(target.composition.items()))
            else:
                assert set(target.elements) <= set(elements)
        assert len(set(cells)) == len(cells)


def test_proposals_depend_on_the_seed_alone(agent, make):
    history = make.screened(("Mg", "Si", "Ge"), 20)
    known = [make.view(("Mg", "Si", "Ge"), seed=seed, candidates=history) for seed in (7, 7, 8)]
    first, second = agent.propose(known[0], 6), fresh(agent).propose(known[1], 6)
    assert first == second
    assert first == agent.propose(known[0], 6)


@pytest.mark.parametrize("calls", [0, 1, 3, 100])
def test_selection(agent, make, calls):
    candidates = make.screened(("Mg", "Si", "Ge"), 30)
    budget = Budget({"reference_calls": calls})
    known = make.view(("Mg", "Si", "Ge"), candidates=candidates, budget=budget)
    selected = agent.select(known, candidates, budget)
    assert len(selected) <= calls
    ids = [chosen.id for chosen, _ in selected]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {c.id for c in candidates}
    assert all(reason for _, reason in selected)
    assert all(chosen.state is State.SCREENED for chosen, _ in selected)
    assert selected == fresh(agent).select(known, candidates, budget)
    if calls:
        assert selected


def test_budget_of_any_kind_and_work_in_flight_count(agent, make):
    candidates = make.screened(("Mg", "Si", "Ge"), 30)
    known = make.view(("Mg", "Si", "Ge"), candidates=candidates)
    assert agent.select(known, candidates, Budget({"wall_hours": 1}, spent={"wall_hours": 1})) == []
    spent = Budget({"reference_calls": 10}, spent={"reference_calls": 5}, reserved={"reference_calls": 4})
    assert len(agent.select(known, candidates, spent)) == 1
    assert agent.select(known, candidates, Budget())


def test_nothing_screened_nothing_selected(agent, make):
    assert agent.select(make.view(("Cu", "Au")), [], Budget()) == []


def test_history_with_failures_is_no_obstacle(agent, make):
    crystal = make.compound("fluorite", 6.3, "SiMg2")
    history = [
        make.candidate("failed", crystal, None, State.FAILED),
        make.candidate("rejected", crystal, None, State.REJECTED),
    ]
    assert agent.propose(make.view(("Mg", "Si"), candidates=history), 3)
