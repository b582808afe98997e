"""Executors: the same results in this process and in Ray workers, results kept, lost workers replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from discovery.crystal import Crystal
from discovery.errors import ConfigError
from discovery.executor import (
    Evaluated,
    EvaluationJob,
    Executor,
    InProcessExecutor,
    PluginSpec,
    RayExecutor,
    Role,
    read_result,
    write_result,
)
from discovery.types import Evaluation, FailureKind
from tests.discovery.campaigns import outcome, run, small_config

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def copper(a: float) -> Crystal:
    return Crystal(a * FCC, np.zeros((1, 3)), np.array([29]))


def jobs(folder: Path, role: Role = "screening", n: int = 8) -> list[EvaluationJob]:
    return [EvaluationJob(f"c{i}", role, copper(3.4 + 0.05 * i), folder / f"c{i}" / role) for i in range(n)]


def evaluate(executor: Executor, work: list[EvaluationJob]) -> dict[str, Evaluation]:
    for job in work:
        executor.submit(job)
    done = [result for result in executor.results() if isinstance(result, Evaluated)]
    assert sorted(result.job.id for result in done) == sorted(job.id for job in work)
    return {result.job.id: result.evaluation for result in done}


def test_relaxed_copper_has_its_lattice_constant(tmp_path: Path) -> None:
    with InProcessExecutor(small_config(tmp_path)) as executor:
        evaluations = evaluate(executor, jobs(tmp_path, "reference", 2))
    for evaluation in evaluations.values():
        assert evaluation.crystal is not None
        assert (4 * evaluation.crystal.volume) ** (1 / 3) == pytest.approx(3.59, abs=0.03)  # EMT of ASE: 3.58 Å


def test_finished_work_is_read_and_not_repeated(tmp_path: Path) -> None:
    work = jobs(tmp_path, n=2)
    config = small_config(tmp_path)
    with InProcessExecutor(config) as executor:
        first = evaluate(executor, work)
    stamps = [(job.folder / "result.json").stat().st_mtime_ns for job in work]
    with InProcessExecutor(config) as executor:
        again = evaluate(executor, work)
    assert [evaluation.to_dict() for evaluation in again.values()] == [e.to_dict() for e in first.values()]
    assert [(job.folder / "result.json").stat().st_mtime_ns for job in work] == stamps


def test_a_result_of_another_input_or_half_a_file_is_not_taken(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    screening, reference = PluginSpec.of(config.oracle.screening), PluginSpec.of(config.oracle.reference)
    job = jobs(tmp_path, n=1)[0]
    with InProcessExecutor(config) as executor:
        evaluation = evaluate(executor, [job])["c0"]
    assert read_result(screening, job) is not None
    assert read_result(reference, job) is None
    other = EvaluationJob(job.id, job.role, copper(3.9), job.folder)
    assert read_result(screening, other) is None
    path = job.folder / "result.json"
    path.write_text(path.read_text()[:100])
    assert read_result(screening, job) is None
    write_result(screening, job, evaluation)
    restored = read_result(screening, job)
    assert restored is not None
    assert restored.to_dict() == evaluation.to_dict()
    assert [entry.name for entry in job.folder.iterdir()] == ["result.json"]


def test_an_oracle_that_raises_costs_one_crystal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oracles.emt import EMTOracle

    original = EMTOracle.evaluate
    bad = jobs(tmp_path)[1].crystal

    def raising(self: EMTOracle, crystals: list[Crystal], *, folder: Path | None = None) -> list[Evaluation]:
        if bad in crystals:
            raise RuntimeError("segmentation of the plug-in")
        return original(self, crystals, folder=folder)

    monkeypatch.setattr(EMTOracle, "evaluate", raising)
    with InProcessExecutor(small_config(tmp_path)) as executor:
        evaluations = evaluate(executor, jobs(tmp_path, n=3))
    failure = evaluations["c1"].failure
    assert failure is not None
    assert failure.kind is FailureKind.CRASHED
    assert "segmentation of the plug-in" in failure.message
    assert evaluations["c0"].ok
    assert evaluations["c2"].ok


def test_more_cpus_than_there_are_is_an_error_before_the_start(tmp_path: Path) -> None:
    config = small_config(tmp_path, executor="ray")
    config = config.model_copy(update={"executor": config.executor.model_copy(update={"reference_cores": 4096})})
    with pytest.raises(ConfigError, match="4096 CPUs are asked for"):
        RayExecutor(config).__enter__()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_ray_gives_the_same_campaign(tmp_path: Path) -> None:
    assert outcome(run(small_config(tmp_path / "ray", executor="ray"))) == outcome(run(small_config(tmp_path / "here")))


@pytest.mark.slow
def test_lost_workers_are_replaced_and_their_work_repeated(tmp_path: Path) -> None:
    with InProcessExecutor(small_config(tmp_path)) as executor:
        expected = evaluate(executor, jobs(tmp_path / "here"))
    work = jobs(tmp_path / "ray")
    with RayExecutor(small_config(tmp_path, executor="ray")) as ray_executor:
        ray_executor.energy_scale("screening")
        for job in work:
            ray_executor.submit(job)
        results = ray_executor.results()
        first = next(result for result in results if isinstance(result, Evaluated))
        for actor in ray_executor._actors:
            ray.kill(actor)
        done = [first, *(result for result in results if isinstance(result, Evaluated))]
    assert sorted(result.job.id for result in done) == sorted(expected)
    for result in done:
        assert result.evaluation.energy == expected[result.job.id].energy
    assert not ray.is_initialized()
