from collections import Counter

from agents.random import RandomAgent


def test_cells_are_drawn_uniformly(make):
    agent = RandomAgent(RandomAgent.Config())
    drawn = Counter(agent.propose(make.view(("Cu", "Au"), max_atoms=4, seed=seed), 1)[0].label for seed in range(1200))
    assert len(drawn) == 6  # CuAu, Cu2Au2, CuAu2, Cu2Au, CuAu3, Cu3Au
    # chi-squared with 5 degrees of freedom: 20.5 is exceeded with probability 0.001
    assert sum((count - 200) ** 2 / 200 for count in drawn.values()) < 20.5


def test_energies_do_not_matter(make):
    agent = RandomAgent(RandomAgent.Config())
    candidates = make.screened(("Mg", "Si", "Ge"), 12)
    flipped = [make.candidate(c.id, c.crystal, -c.screening_decomposition_energy) for c in candidates]
    known = make.view(("Mg", "Si", "Ge"), candidates=candidates)
    first = agent.select(known, candidates, known.budget)
    second = agent.select(known, flipped, known.budget)
    assert [chosen.id for chosen, _ in first] == [chosen.id for chosen, _ in second]
