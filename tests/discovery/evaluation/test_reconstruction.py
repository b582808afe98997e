"""Match rate, RMSE and METRe against their definitions, written out with pymatgen alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from pymatgen.analysis.structure_matcher import StructureMatcher
from typer.testing import CliRunner

from discovery.cli import app
from discovery.errors import InvalidInputError
from discovery.evaluation import reconstruction
from discovery.sets import read_set


def rocksalt(symbol="NaCl", noise=0.0, seed=0):
    atoms = bulk(symbol, "rocksalt", a=5.64)
    if noise:
        atoms.rattle(noise, seed=seed)
    return atoms


@pytest.fixture
def sets(tmp_path):
    """Truth: two forms of NaCl and MgO. The second form is predicted only in the place of the first."""
    caesium = bulk("NaCl", "cesiumchloride", a=3.4)
    truth = [rocksalt(), caesium, rocksalt("MgO")]
    predicted = [caesium.copy(), rocksalt(noise=0.2, seed=1), rocksalt(noise=0.4, seed=2)]
    write(tmp_path / "truth.extxyz", truth)
    write(tmp_path / "predicted.extxyz", predicted)
    return read_set(tmp_path / "predicted.extxyz"), read_set(tmp_path / "truth.extxyz")


def test_metre_counts_a_true_crystal_that_any_prediction_matches(sets):
    predicted, truth = sets
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    structures = [[one.to_structure() for one in side.crystals.values()] for side in sets]
    table = [[matcher.get_rms_dist(p, t) for p in structures[0]] for t in structures[1]]
    pairs = [row[i] for i, row in enumerate(table)]
    smallest = [min((found[0] for found in row if found), default=None) for row in table]
    assert [found is not None for found in pairs] == [False, False, False]  # swapped, and Mg is not Na
    assert [value is not None for value in smallest] == [True, True, False]

    result = reconstruction.evaluate(predicted, truth)
    assert result.metric("match_rate").value == 0.0
    assert result.metric("rmse").value is None
    assert result.metric("crmse").value == 0.5
    assert result.metric("METRe").value == pytest.approx(2 / 3)
    assert result.metric("METRe_rmse").value == pytest.approx(np.mean(smallest[:2]), abs=1e-9)
    assert result.metric("METRe_crmse").value == pytest.approx((sum(smallest[:2]) + 0.5) / 3, abs=1e-9)
    assert sum(result.losses.values()) == 3


def test_metre_takes_the_best_of_several_predictions(tmp_path):
    write(tmp_path / "truth.extxyz", [rocksalt(), rocksalt()])
    write(tmp_path / "predicted.extxyz", [rocksalt(noise=0.3, seed=3), rocksalt()])
    result = reconstruction.evaluate(read_set(tmp_path / "predicted.extxyz"), read_set(tmp_path / "truth.extxyz"))
    assert result.metric("METRe_rmse").value == pytest.approx(0.0, abs=1e-9)
    assert result.metric("rmse").value > 0.01
    # of predictions far apart, an invalid one does not count among the valid
    assert result.metric("METRe_valid").value == 1.0


def test_invalid_predictions_count_in_the_figures_of_all_alone(tmp_path):
    uncharged = bulk("NaCl", "rocksalt", a=5.64)
    uncharged.symbols = ["Na", "Ar"]
    write(tmp_path / "both.extxyz", [uncharged, rocksalt()])
    both = read_set(tmp_path / "both.extxyz")
    result = reconstruction.evaluate(both, both)
    assert (result.metric("match_rate").value, result.metric("match_rate_valid").value) == (1.0, 0.5)
    assert (result.metric("METRe").value, result.metric("METRe_valid").value) == (1.0, 0.5)
    assert set(result.outcomes.values()) == {"match", "match, invalid"}


def test_the_command_states_its_matcher(sets, tmp_path):
    predicted, truth = sets
    hashes = []
    for matcher in ("ordered", "disordered"):
        arguments = ["evaluate", "reconstruction", str(predicted.path), str(truth.path), "--matcher", matcher, "--json"]
        run = CliRunner().invoke(app, arguments)
        assert run.exit_code == 0, run.output
        result = json.loads(run.stdout)
        assert result["settings"]["matcher"]["kind"] == matcher
        hashes.append(result["protocol_hash"])
        assert [cost["per"] for cost in result["cost"]] == ["sample", "relaxation", "stable, unique and novel crystal"]
    assert hashes[0] != hashes[1]


def test_seed_and_inputs_do_not_change_the_protocol(sets):
    predicted, truth = sets
    first = reconstruction.evaluate(predicted, truth, seed=0)
    other = reconstruction.evaluate(truth, predicted, seed=1)
    assert first.protocol_hash == other.protocol_hash


def test_sets_that_cannot_be_paired(sets):
    predicted, truth = sets
    with pytest.raises(InvalidInputError, match="one prediction for each"):
        reconstruction.evaluate(replace(predicted, members=predicted.members[:2]), truth)
