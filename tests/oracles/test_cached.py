import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase.build import bulk

from discovery.crystal import Crystal
from discovery.errors import RunError
from oracles.cached import CachedOracle
from oracles.emt import EMTOracle

COPPER, GOLD = (Crystal.from_atoms(bulk(symbol)) for symbol in ("Cu", "Au"))
UNKNOWN = Crystal(COPPER.lattice, COPPER.frac_coords, np.array([118]))


def cached(path, **options):
    config = {"path": path, "oracle": {"name": "emt", "relax": False, **options}}
    return CachedOracle(CachedOracle.Config.model_validate(config))


@pytest.fixture
def asked(monkeypatch):
    """Crystals that the real oracle was asked for."""
    crystals = []
    evaluate = EMTOracle.evaluate

    def count(self, some, *, folder=None):
        crystals.extend(some)
        return evaluate(self, some, folder=folder)

    monkeypatch.setattr(EMTOracle, "evaluate", count)
    return crystals


def forms(evaluations):
    return [json.dumps(evaluation.to_dict()) for evaluation in evaluations]


def test_each_crystal_is_computed_once_failures_too(tmp_path, asked):
    first = cached(tmp_path / "answers.sqlite").evaluate([COPPER, UNKNOWN, COPPER])
    assert asked == [COPPER, UNKNOWN]
    again = cached(tmp_path / "answers.sqlite").evaluate([GOLD, UNKNOWN, COPPER])
    assert asked == [COPPER, UNKNOWN, GOLD]
    assert forms([again[2], again[1]]) == forms(first[:2])
    assert first[0].ok
    assert not first[1].ok


def test_other_options_are_another_answer(tmp_path, asked):
    cached(tmp_path / "answers.sqlite").evaluate([COPPER])
    cached(tmp_path / "answers.sqlite", min_distance=0.3).evaluate([COPPER])
    assert asked == [COPPER, COPPER]


def test_its_scale_is_that_of_the_oracle(tmp_path):
    plain = EMTOracle(EMTOracle.Config())
    assert cached(tmp_path / "answers.sqlite").energy_scale == plain.energy_scale


def test_several_may_write_at_once(tmp_path):
    crystals = [Crystal.from_atoms(bulk("Cu", a=3.5 + 0.01 * n)) for n in range(20)]
    with ThreadPoolExecutor(4) as pool:
        energies = list(
            pool.map(lambda _: [e.energy for e in cached(tmp_path / "a.sqlite").evaluate(crystals)], range(4))
        )
    assert all(row == energies[0] for row in energies)


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match="set the oracle's path"):
        cached(tmp_path)
