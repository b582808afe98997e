"""Evaluations of reference phases kept across campaigns."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from discovery.config import CampaignConfig, compose_oracle
from discovery.crystal import Crystal
from discovery.evaluation_cache import EvaluationCache
from discovery.store import Store
from discovery.types import Failure, FailureKind
from tests.discovery.campaigns import outcome, run, small_config

COPPER = Crystal.from_atoms(bulk("Cu"))


@pytest.fixture
def filled(tmp_path: Path) -> EvaluationCache:
    """A cache of EMT with copper in it."""
    choice = compose_oracle("emt")
    oracle = choice.create()
    cache = EvaluationCache(choice, oracle.energy_scale, tmp_path / "cache")
    cache.put(COPPER, replace(oracle.evaluate([COPPER])[0], seconds=7.0))
    return cache


def test_what_was_put_is_found_at_no_cost(filled: EvaluationCache) -> None:
    (expected,) = filled.oracle.create().evaluate([COPPER])
    found = filled.get(COPPER)
    assert found is not None
    assert found.energy == expected.energy
    assert found.crystal == expected.crystal
    np.testing.assert_array_equal(found.forces, expected.forces)
    assert found.core_hours == 0
    assert found.details["cached_seconds"] == 7.0


def test_anything_else_is_not_found(filled: EvaluationCache) -> None:
    assert filled.get(Crystal.from_atoms(bulk("Cu", a=3.7))) is None
    other = replace(filled, energy_scale=replace(filled.energy_scale, version="another"))
    assert other.get(COPPER) is None
    assert replace(filled, oracle=compose_oracle("emt", ["fmax=0.02"])).get(COPPER) is None


def test_failures_are_not_kept(filled: EvaluationCache) -> None:
    gold = Crystal.from_atoms(bulk("Au"))
    (evaluation,) = filled.oracle.create().evaluate([gold])
    failure = Failure(FailureKind.TIMEOUT, "too slow")
    filled.put(gold, replace(evaluation, energy=None, failure=failure))
    assert filled.get(gold) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"evaluation": {"format": "discovery.evaluation/0"}}'])
def test_a_damaged_file_is_replaced(filled: EvaluationCache, content: str) -> None:
    (file,) = filled.folder.glob("*/*.json")
    evaluation = filled.get(COPPER)
    file.write_text(content)
    assert filled.get(COPPER) is None
    assert evaluation is not None
    filled.put(COPPER, replace(evaluation, details={}))
    assert filled.get(COPPER) is not None


def test_a_folder_that_cannot_be_written_costs_no_campaign(filled: EvaluationCache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = replace(filled, folder=tmp_path / "file" / "cache")
    evaluation = filled.get(COPPER)
    assert evaluation is not None
    broken.put(COPPER, replace(evaluation, details={}))
    assert broken.get(COPPER) is None


WRITER = """
import sys
from pathlib import Path
from ase.build import bulk
from discovery.config import compose_oracle
from discovery.crystal import Crystal
from discovery.evaluation_cache import EvaluationCache
choice = compose_oracle("emt", ["relax=false"])
oracle = choice.create()
cache = EvaluationCache(choice, oracle.energy_scale, Path(sys.argv[1]))
crystal = Crystal.from_atoms(bulk("Cu"))
(evaluation,) = oracle.evaluate([crystal])
for _ in range(200):
    cache.put(crystal, evaluation)
    assert cache.get(crystal).energy == evaluation.energy
"""


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
        assert "cannot be used" not in errors
    (file,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert json.loads(file.read_text())["format"] == "discovery.cached_evaluation/1"


def reference_costs(run_dir: Path) -> dict[str, list[bool]]:
    """Return whether each reference phase came from the cache, by role."""
    store = Store.read(run_dir / "campaign.sqlite")
    try:
        ids = [reference.id for reference in store.references()]
        return {
            role: ["cached_seconds" in evaluation.details for id_, evaluation in evaluations.items() if id_ in ids]
            for role in ("screening", "reference")
            for evaluations in [store.evaluations(role)]
        }
    finally:
        store.close()


def test_a_second_campaign_computes_no_reference_phase_again(tmp_path: Path) -> None:
    first = run(small_config(tmp_path / "first", rounds=1))
    second = run(small_config(tmp_path / "second", rounds=1))
    assert not any(any(cached) for cached in reference_costs(first).values())
    assert all(cached == [True, True] for cached in reference_costs(second).values())
    assert outcome(first) == outcome(second)


def test_the_cache_can_be_switched_off(tmp_path: Path) -> None:
    config = small_config(tmp_path / "first", rounds=1)
    run(config)
    data = config.model_dump(mode="json") | {"run_dir": str(tmp_path / "second")}
    data["executor"]["reference_cache"] = False
    off = CampaignConfig.model_validate(data)
    assert off.config_hash == config.config_hash
    assert not any(any(cached) for cached in reference_costs(run(off)).values())
