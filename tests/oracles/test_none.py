import numpy as np
from ase.build import bulk

from discovery.crystal import Crystal
from discovery.protocols import Oracle
from discovery.types import FailureKind
from oracles.none import NoOracle


def test_every_crystal_stays_as_it_is_and_none_is_better():
    oracle = NoOracle(NoOracle.Config())
    assert isinstance(oracle, Oracle)
    crystals = [Crystal.from_atoms(bulk(symbol)) for symbol in ("Cu", "Au")]
    evaluations = oracle.evaluate(crystals)
    assert [evaluation.crystal for evaluation in evaluations] == crystals
    assert [evaluation.energy for evaluation in evaluations] == [0.0, 0.0]
    (empty,) = oracle.evaluate([Crystal(np.eye(3), np.zeros((0, 3)), np.zeros(0))])
    assert empty.failure.kind is FailureKind.INVALID_INPUT
