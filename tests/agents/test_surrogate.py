import numpy as np
import pytest

from agents.compositions import stoichiometries
from agents.surrogate import Observation, Surrogate

ELEMENTS = ("Mg", "Si", "Ge")
SPACE = stoichiometries(ELEMENTS, 6)
PLACE = {s.formula: index for index, s in enumerate(SPACE)}


def fitted(**energies):
    seen = {formula: Observation(dict(SPACE[PLACE[formula]].counts), e, 1.0) for formula, e in energies.items()}
    return Surrogate.fit(SPACE, ELEMENTS, seen)


def test_chemistry_alone_prefers_balanced_and_simple_compositions():
    prior = fitted()
    assert prior.n_observations == 0
    assert prior.mean[PLACE["Mg2Si"]] < prior.mean[PLACE["MgSi2"]] < prior.mean[PLACE["SiGe"]]


def test_an_observation_is_kept_and_makes_its_neighbours_surer():
    prior, posterior = fitted(), fitted(Mg2Si=-0.2, MgSi=-0.1, Mg3Si=-0.1)
    assert posterior.mean[PLACE["Mg2Si"]] == pytest.approx(-0.2, abs=0.04)
    assert posterior.deviation[PLACE["Mg2Si"]] < 0.05
    ratio = posterior.deviation / prior.deviation
    assert ratio[PLACE["Mg4Si"]] < ratio[PLACE["SiGe"]]


def test_what_holds_of_silicon_says_something_of_germanium():
    low, high = fitted(Mg2Si=-0.4), fitted(Mg2Si=0.3)
    assert low.mean[PLACE["Mg2Ge"]] < high.mean[PLACE["Mg2Ge"]] - 0.1


def test_it_predicts_a_regular_solution_from_a_few_compositions():
    """Energies −0.8 x(1−x) of each pair, seen at half of the compositions."""
    x = np.array([[dict(s.counts).get(e, 0) / s.n_atoms for e in ELEMENTS] for s in SPACE])
    energies = -0.8 * (x[:, 0] * x[:, 1] + x[:, 0] * x[:, 2])
    rng = np.random.default_rng(0)
    seen = rng.permutation(len(SPACE))[: len(SPACE) // 2]
    surrogate = fitted(**{SPACE[index].formula: float(energies[index]) for index in seen})
    hidden = np.setdiff1d(np.arange(len(SPACE)), seen)
    error = surrogate.mean[hidden] - energies[hidden]
    assert np.sqrt((error**2).mean()) < 0.5 * energies.std()
    assert (np.abs(error) < 2 * surrogate.deviation[hidden]).mean() > 0.9


def test_draws_have_the_mean_and_covariance_they_should():
    surrogate = fitted(Mg2Si=-0.2)
    rng = np.random.default_rng(1)
    draws = np.array([surrogate.draw(rng) for _ in range(400)])
    assert np.abs(draws.mean(axis=0) - surrogate.mean).max() < 0.06
    correlation = np.corrcoef(draws[:, PLACE["Mg2Ge"]], draws[:, PLACE["Mg3Ge"]])[0, 1]
    expected = surrogate.covariance[PLACE["Mg2Ge"], PLACE["Mg3Ge"]]
    expected /= surrogate.deviation[PLACE["Mg2Ge"]] * surrogate.deviation[PLACE["Mg3Ge"]]
    assert correlation == pytest.approx(expected, abs=0.1)


def test_assuming_shrinks_deviations_only():
    before = fitted()
    after = before.assuming(PLACE["Mg2Si"])
    assert (after.mean == before.mean).all()
    assert after.deviation[PLACE["Mg2Si"]] < 0.05 < before.deviation[PLACE["Mg2Si"]]
    assert (after.deviation <= before.deviation + 1e-9).all()
