"""Against the figures of CDVAE's original code; coverage takes minutes and is in benchmarks/cdvae_golden.py."""

import csv
import gzip
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from scipy.stats import wasserstein_distance

from discovery.evaluation import proxy, reconstruction
from discovery.evaluation.validity import charges, distances_are_valid
from discovery.sets import read_set


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "reference/cdvae/golden.json").read_text())


@pytest.fixture(scope="module")
def generated(shared):
    return read_set(shared / "reference/cdvae/generated.csv.gz")


@pytest.fixture
def first(shared: Path, tmp_path: Path):
    """Return a function that reads the first crystals of a split of the MP-20 subset."""

    def read(split: str, n: int):
        with gzip.open(shared / f"data/mp_20_bt/{split}.csv.gz", "rt", newline="") as file:
            rows = list(islice(csv.reader(file), n + 1))
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return read_set(tmp_path / f"{split}.csv")

    return read


def test_validity_agrees_crystal_by_crystal(golden, generated):
    crystals = [member.crystal for member in generated.members]
    assert [charges(crystal) == "valid" for crystal in crystals] == golden["comp_valid"]
    assert [distances_are_valid(crystal.to_structure()) for crystal in crystals] == golden["struct_valid"]


def test_distributions_agree(first, golden, generated):
    reference = first("test", 600).members
    valid = [member.crystal for member, good in zip(generated.members, golden["valid"], strict=True) if good]
    found = wasserstein_distance(
        [crystal.to_structure().density for crystal in valid],
        [member.crystal.to_structure().density for member in reference],
    )
    assert found == pytest.approx(golden["metrics"]["wdist_density"], abs=1e-3)


@pytest.mark.slow
def test_reconstruction_agrees(first, golden, generated):
    result = reconstruction.evaluate(generated, first("train", 1000))
    assert result.metric("match_rate_valid").value == pytest.approx(golden["reconstruction"]["match_rate"], abs=1e-9)
    assert result.metric("rmse_valid").value == pytest.approx(golden["reconstruction"]["rms_dist"], abs=1e-6)
    assert len(result.outcomes) == 1000


@pytest.mark.slow
def test_coverage_is_full_of_itself_and_counts_everything_requested(first):
    reference = first("test", 12)
    broken = replace(reference.members[0], id="broken", crystal=None, problem="unreadable: x")
    result = proxy.evaluate(replace(reference, members=(*reference.members, broken)), reference)
    assert result.metric("cov_recall").value == 1.0
    assert result.metric("joint_recall").value == 1.0
    assert result.metric("cov_precision").value == pytest.approx(12 / 13)
    assert result.metric("amsd_recall").value == 0.0
    assert result.metric("wdist_density").n <= 12
    assert result.outcomes["broken"] == "unusable: unreadable: x"
    assert sum(result.losses.values()) == 13
