"""Streaming campaigns, when to learn, stopping rules, and faults of oracles and machines."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from discovery.campaign import Campaign, CampaignInterruptedError
from discovery.config import CampaignConfig
from discovery.status import read_status
from discovery.store import Store
from discovery.types import Evaluation, FailureKind, State
from oracles.emt import EMTOracle
from tests.discovery.campaigns import outcome, run, tiny_config


def store_of(run_dir: Path) -> Store:
    return Store.read(run_dir / "campaign.sqlite")


def streaming_config(run_dir: Path, executor: Any = None, **search: Any) -> CampaignConfig:
    settings = {"deterministic": False, "rounds": 4, "targets_per_round": 3, "budget": {"reference_calls": 50}} | search
    return tiny_config(run_dir, campaign=settings, executor={"reference_workers": 2} | (executor or {}))


def events_of(config: CampaignConfig) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    with Campaign.launch(config, lambda name, values: events.append((name, dict(values)))) as campaign:
        campaign.run()
    return events


def adds_up(run_dir: Path) -> bool:
    funnel = read_status(run_dir).funnel
    return funnel["sampled"] == sum(funnel[end] for end in ("rejected", "failed", "passed_over", "judged", "in_flight"))


def test_a_streaming_campaign_does_all_stages_at_once_and_adds_up(tmp_path: Path) -> None:
    config = streaming_config(tmp_path / "run")
    names = [name for name, _ in events_of(config)]
    status = read_status(config.run_dir)
    assert (status.state, status.message) == ("finished", "all rounds are done")
    assert adds_up(config.run_dir)
    assert names.count("proposed") == 4
    assert status.funnel["judged"] == status.budget.spent["reference_calls"] > 0
    assert not status.budget.reserved
    assert names.index("judged") < len(names) - 1 - names[::-1].index("sampled"), "verdicts wait for all samples"
    versions = store_of(config.run_dir).hull_versions("reference")
    assert len(versions) == 1 + status.funnel["judged"]


def test_a_streaming_campaign_goes_on_after_every_event(tmp_path: Path) -> None:
    config = streaming_config(tmp_path / "run", rounds=2)

    class StopError(Exception):
        pass

    def stop(n: int) -> Any:
        count = 0

        def observe(_name: str, _values: Any) -> None:
            nonlocal count
            count += 1
            if count == n:
                raise StopError

        return observe

    with pytest.raises(StopError), Campaign.launch(config, stop(8)) as campaign:
        campaign.run()
    for _ in range(100):
        try:
            with Campaign.resume(config.run_dir, stop(6)) as campaign:
                campaign.run()
            break
        except StopError:
            assert adds_up(config.run_dir)
    status = read_status(config.run_dir)
    assert (status.state, status.message) == ("finished", "all rounds are done")
    assert status.funnel["in_flight"] == 0
    assert adds_up(config.run_dir)
    assert sum(step == "proposed" for _, step in store_of(config.run_dir).steps()) == 2


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_agent_decides_when_to_learn(tmp_path: Path, deterministic: bool) -> None:
    config = streaming_config(tmp_path / "run", deterministic=deterministic)
    config = tiny_config(
        tmp_path / "run",
        **config.model_dump(mode="json", include={"campaign", "executor"}),
        agent={"learn": {"verdicts": 3}},
    )
    names = [name for name, _ in events_of(config) if name in ("judged", "learning")]
    assert "learning" in names
    verdicts = "".join(name[0] for name in names).split("l")[:-1]
    assert all(len(group) >= 3 for group in verdicts)
    store = store_of(config.run_dir)
    reasons = [record.reason for record in store.checkpoints() if record.round is not None]
    assert reasons
    for reason in reasons:
        found = re.fullmatch(r"(\d+) verdicts since it has learned, \d+ new crystals?", reason)
        assert found
        assert int(found[1]) >= 3


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"max_discoveries": 1}, "enough was discovered: "),
        (
            {"patience": 1, "reference_calls_per_round": 0, "budget": {"wall_hours": 1}},
            "no new stable phase in 1 rounds",
        ),
        ({"budget": {"reference_calls": 3}}, ""),
        ({"budget": {"core_hours": 1e-7}}, "the budget is exhausted: core_hours"),
        ({"budget": {"wall_hours": 1e-7}}, "the budget is exhausted: wall_hours"),
    ],
)
def test_a_campaign_stops_by_its_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool, rule: Any, message: str
) -> None:
    if not deterministic and "patience" in rule:
        rule = {"patience": 1, "metastable_threshold": 0.001, "budget": {"reference_calls": 1}}
        message = "the budget is exhausted: reference_calls"
    config = streaming_config(tmp_path / "run", deterministic=deterministic, **rule)
    if "max_discoveries" in rule:
        evaluate = EMTOracle.evaluate

        def attractive(self: EMTOracle, crystals: Any, **options: Any) -> list[Evaluation]:
            return [
                replace(each, energy=(each.energy or 0.0) - 0.5 * len(crystal) * (len(crystal.composition) - 1))
                for crystal, each in zip(crystals, evaluate(self, crystals, **options), strict=True)
            ]

        monkeypatch.setattr(EMTOracle, "evaluate", attractive)
    run(config)
    status = read_status(config.run_dir)
    assert status.state == "finished"
    assert status.message.startswith(message)
    assert status.funnel["in_flight"] == 0
    assert adds_up(config.run_dir)
    assert status.budget.spent["reference_calls"] <= status.budget.limit.get("reference_calls", 100)
    if "max_discoveries" in rule:
        assert status.round < 3, "it went on to its last round"


def test_gpu_hours_are_counted_and_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = EMTOracle.evaluate

    def on_gpu(self: EMTOracle, *arguments: Any, **options: Any) -> list[Evaluation]:
        return [replace(each, seconds=3600.0, gpus=2.0) for each in evaluate(self, *arguments, **options)]

    monkeypatch.setattr(EMTOracle, "evaluate", on_gpu)
    config = tiny_config(tmp_path / "run", campaign={"budget": {"gpu_hours": 15}})
    run(config)
    status = read_status(config.run_dir)
    assert status.message == "the budget is exhausted: gpu_hours"
    assert status.budget.spent["gpu_hours"] == pytest.approx(16)  # less than one task too much


def test_the_bound_of_a_time_limit_is_reserved(tmp_path: Path) -> None:
    limit = {"core_hours": 10.0}
    config = streaming_config(
        tmp_path / "run", {"reference_max_seconds": 9 * 3600.0}, deterministic=False, budget=limit
    )
    reserved: list[float] = []

    def look(name: str, _values: Any) -> None:
        if name in ("selected", "computed"):
            reserved.append(store_of(config.run_dir).budget(limit).reserved.get("core_hours", 0.0))

    with Campaign.launch(config, look) as campaign:
        campaign.run()
    assert max(reserved) == 9.0, "two calculations that may cost 9 core-hours each were begun with 10 left"
    assert read_status(config.run_dir).funnel["judged"] > 1


def test_what_cannot_end_in_time_is_not_begun(tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    config = streaming_config(
        tmp_path / "run", {"reference_max_seconds": 60.0, "reference_cache": False, "ends_at": soon}
    )
    with pytest.raises(CampaignInterruptedError, match="discovery resume"):
        run(config)
    status = read_status(config.run_dir)
    assert status.state == "interrupted"
    assert "executor.ends_at" in status.message
    assert not list(config.run_dir.glob("calculations/*/reference/result.json"))


@pytest.mark.parametrize("wrong", [{"energy": float("nan")}, {"forces": np.full((1, 3), np.inf)}])
def test_what_is_no_number_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    evaluate = EMTOracle.evaluate

    def poisoned(self: EMTOracle, crystals: Any, **options: Any) -> list[Evaluation]:
        return [
            replace(each, **wrong) if len(crystal) > 1 else each
            for crystal, each in zip(crystals, evaluate(self, crystals, **options), strict=True)
        ]

    monkeypatch.setattr(EMTOracle, "evaluate", poisoned)
    config = tiny_config(tmp_path / "run")
    run(config)
    status = read_status(config.run_dir)
    assert status.state == "finished"
    assert status.failures == {FailureKind.UNPHYSICAL: status.funnel["failed"]}
    assert status.funnel["failed"] == status.funnel["admitted"] > 0


def test_a_calculation_that_crashes_has_the_tries_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = EMTOracle.evaluate
    calls: dict[Any, int] = {}

    def flaky(self: EMTOracle, crystals: Any, *, folder: Path | None = None) -> list[Evaluation]:
        calls[folder] = calls.get(folder, 0) + 1
        if calls[folder] == 1 and folder is not None and "-s" in folder.parent.name:
            raise RuntimeError("a node without its file system")
        return evaluate(self, crystals, folder=folder)

    undisturbed = outcome(run(tiny_config(tmp_path / "undisturbed")))
    monkeypatch.setattr(EMTOracle, "evaluate", flaky)
    assert outcome(run(tiny_config(tmp_path / "retried", executor={"max_failed": 1}))) == undisturbed
    calls.clear()
    final = read_status(run(tiny_config(tmp_path / "final")))
    assert final.failures[FailureKind.CRASHED] == final.funnel["failed"] == final.funnel["admitted"]


def test_a_worker_that_answers_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from discovery.executor import InProcessExecutor

    undisturbed = outcome(run(tiny_config(tmp_path / "undisturbed")))
    once = InProcessExecutor.results

    def twice(self: InProcessExecutor) -> Any:
        for result in once(self):
            yield result
            yield result

    monkeypatch.setattr(InProcessExecutor, "results", twice)
    assert outcome(run(tiny_config(tmp_path / "run"))) == undisturbed


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_spends_no_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    undisturbed = outcome(run(tiny_config(tmp_path / "undisturbed")))
    now, calls = time.time, 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return now() + (jump if calls > 60 else 0.0)

    monkeypatch.setattr(time, "time", jumping)
    config = tiny_config(tmp_path / "run", campaign={"budget": {"reference_calls": 10, "wall_hours": 1.0}})
    run(config)
    assert calls > 60
    monkeypatch.undo()
    status = read_status(config.run_dir)
    assert 0 < status.seconds < 600
    assert status.message == "all rounds are done"
    assert outcome(config.run_dir)["candidates"] == undisturbed["candidates"]


def test_no_more_candidates_wait_than_may(tmp_path: Path) -> None:
    config = streaming_config(tmp_path / "run", max_screened=1, deterministic=True)
    run(config)
    causes = [cause for _, _, state, cause in store_of(config.run_dir).transitions() if state is State.PASSED_OVER]
    assert any(cause.startswith("not among the best 1 ") for cause in causes)
    assert adds_up(config.run_dir)
