"""Calibration: the regression is Bayes' rule, probabilities mean what they say, and the past is read as it was."""

import json
import math

import numpy as np
import pytest
from scipy.stats import t as student

from discovery.calibration import (
    PRIOR_PAIRS,
    TYPICAL_ERROR,
    Calibration,
    Prediction,
    Reliability,
    hull_energy,
    reliability,
)
from discovery.hull import Hull, Phase
from discovery.store import Store
from discovery.types import EnergyScale, State
from tests.discovery.campaigns import run, small_config

CHEAP, DEAR = EnergyScale("mlff", "1", "PBE"), EnergyScale("dft", "1", "PBE")


def hulls(pairs):
    """Hulls of Li and O with compounds of the given (composition, cheap, dear) formation energies."""
    made = []
    for scale, shift, column in ((CHEAP, -1.0, 1), (DEAR, -5.0, 2)):
        phases = [Phase(e, {e: 1}, shift, scale) for e in ("Li", "O")]
        for number, pair in enumerate(pairs):
            n = sum(pair[0].values())
            phases.append(Phase(f"p{number}", pair[0], (pair[column] + shift) * n, scale))
        made.append(Hull(scale).add(phases))
    return made


def test_without_pairs_the_prior_speaks():
    calibration = Calibration.fit(*hulls([]))
    shift, width = calibration.residual({"Li": 1, "O": 1})
    assert (shift, calibration.n_pairs) == (0.0, 0)
    assert width == pytest.approx(TYPICAL_ERROR * math.sqrt(1.5))
    reference = hulls([])[1]
    middle = calibration.probability({"Li": 1, "O": 1}, 0.001, reference, 0.001)
    assert middle == pytest.approx(calibration.success / 2)
    expected = calibration.success * student.cdf(0.05 / width, PRIOR_PAIRS)
    assert calibration.probability({"Li": 1, "O": 1}, -0.05, reference, 0.0) == pytest.approx(expected)


def test_the_posterior_is_that_of_a_grid():
    """Integrate likelihood × prior over one coefficient and the variance by brute force; all compounds are LiO."""
    residuals = [0.08, 0.12, 0.05]
    calibration = Calibration.fit(*hulls([({"Li": 1, "O": 1}, -1.0, -1.0 + r) for r in residuals]))
    # with equal fractions both coefficients act as one, b = (bLi + bO) / 2, of prior variance s²/2
    b = np.linspace(-0.4, 0.5, 1201)[:, None]
    s2 = np.geomspace(1e-5, 0.2, 1200)[None]
    shape, scale = PRIOR_PAIRS / 2, PRIOR_PAIRS * TYPICAL_ERROR**2 / 2
    log = -(shape + 1) * np.log(s2) - scale / s2 - 0.5 * np.log(s2 / 2) - b**2 / s2
    for residual in residuals:
        log = log - 0.5 * np.log(s2) - (residual - b) ** 2 / (2 * s2)
    weight = np.exp(log - log.max()) * s2  # the grid of s2 is logarithmic
    mean = (weight * b).sum() / weight.sum()
    assert calibration.residual({"Li": 1, "O": 1})[0] == pytest.approx(mean, abs=1e-3)
    mean_variance = (weight * s2).sum() / weight.sum()
    assert calibration.scale / (calibration.shape - 1) == pytest.approx(mean_variance, rel=0.02)


def test_a_systematic_error_is_learned_and_corrected():
    rng = np.random.default_rng(0)
    pairs = [({"Li": 1, "O": n}, -0.5, -0.5 + 0.2 + 0.01 * rng.standard_normal()) for n in range(1, 25)]
    screening, reference = hulls(pairs)
    calibration = Calibration.fit(screening, reference)
    shift, width = calibration.residual({"Li": 1, "O": 3})
    assert shift == pytest.approx(0.2, abs=0.04)
    assert width < 0.05
    bound = hull_energy(reference, {"Li": 3, "O": 2})
    assert calibration.probability({"Li": 1, "O": 3}, bound - 1.0, reference, 0.0) > 0.85
    assert calibration.probability({"Li": 1, "O": 3}, -0.35, reference, 0.0) < 0.05


def test_predicted_probabilities_come_true():
    """Residuals are drawn from the model itself; of candidates said to be stable with 20–80 %, that many are."""
    rng = np.random.default_rng(4)
    said, came = [], []
    for _ in range(300):
        variance = 1 / rng.gamma(PRIOR_PAIRS / 2, 1 / (PRIOR_PAIRS * TYPICAL_ERROR**2 / 2))
        b = rng.normal(0, math.sqrt(variance), 2)

        def residual(n, b=b, variance=variance):
            return (b[0] + n * b[1]) / (n + 1) + rng.normal(0, math.sqrt(variance))

        screening, reference = hulls([({"Li": 1, "O": n}, 0.5, 0.5 + residual(n)) for n in (1, 2, 5)])
        calibration = Calibration.fit(screening, reference, computed=10**9)
        energy = rng.uniform(-0.1, 0.1)
        said.append(calibration.probability({"Li": 1, "O": 3}, energy, reference, 0.0))
        came.append(energy + residual(3) <= hull_energy(reference, {"Li": 1, "O": 3}))
    said, came = np.array(said), np.array(came)
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        members = (said >= low) & (said <= high)
        tolerance = 3 * math.sqrt(0.25 / members.sum())
        assert came[members].mean() == pytest.approx(said[members].mean(), abs=tolerance)


def test_failed_calculations_lower_every_probability():
    screening, reference = hulls([])
    good = Calibration.fit(screening, reference, computed=10)
    bad = Calibration.fit(screening, reference, computed=10, failed=20)
    assert bad.success == pytest.approx(19 / 40)
    assert bad.probability({"Li": 1, "O": 1}, -1.0, reference, 0.0) < good.probability(
        {"Li": 1, "O": 1}, -1.0, reference, 0.0
    )


def test_scores():
    outcomes = [(0.9, True), (0.8, True), (0.7, False), (0.1, False), (0.0, False)]
    predictions = [Prediction(f"c{n}", "LiO", n // 3, p, stable) for n, (p, stable) in enumerate(outcomes)]
    scored = Reliability(tuple(predictions))
    assert scored.brier() == pytest.approx((0.01 + 0.04 + 0.49 + 0.01 + 0.0) / 5)
    assert scored.brier(1) == pytest.approx(0.005)
    assert scored.base_rate_brier() == pytest.approx(0.4 * 0.6)
    assert [(one.n, one.came_true) for one in scored.curve()] == [(2, 0.0), (1, 0.0), (2, 1.0)]
    assert json.loads(json.dumps(scored.to_dict()))["selections"][1]["n"] == 2
    assert Reliability(()).to_dict()["brier"] is None


def test_the_past_is_read_as_it_was(tmp_path):
    """The predictions of a finished campaign are those that an observer at each selection would have made."""
    store = Store.read(run(small_config(tmp_path / "run")) / "campaign.sqlite")
    found = reliability(store)
    judged = store.candidates({State.JUDGED, State.LEARNED})
    assert {p.candidate for p in found.predictions} == {candidate.id for candidate in judged}
    assert found.selections == [0, 1]
    first = [p for p in found.predictions if p.selection == 0]
    assert len(first) == 2
    beginning = Calibration.fit(store.hull("screening", 1), store.hull("reference", 1))
    after = Calibration.fit(store.hull("screening", 3), store.hull("reference", 3), computed=2)
    for prediction in found.predictions:
        candidate = next(c for c in judged if c.id == prediction.candidate)
        known, hull = (beginning, 1) if prediction.selection == 0 else (after, 3)
        expected = known.probability(
            candidate.crystal.composition.get_el_amt_dict(),
            candidate.screening_formation_energy_per_atom,
            store.hull("reference", hull),
            1e-3,
        )
        assert prediction.probability == pytest.approx(expected)
        assert prediction.stable == (candidate.verdict.stability == "stable")
