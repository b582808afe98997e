"""The campaign: finds the known phases, adds up, stops in time, and survives its driver's death at any point."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from discovery.campaign import Campaign, CampaignInterruptedError
from discovery.errors import RunError
from discovery.log import EventLog
from discovery.protocols import CampaignView
from discovery.status import read_status
from discovery.store import Store
from discovery.types import Candidate, State, Target
from tests.discovery.campaigns import outcome, results, run, slow_down, tiny_config

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_config(tmp_path_factory.mktemp("campaign") / "run"))


def in_child(work: Callable[[], None]) -> int:
    """Do `work` in a forked process and return its exit code; negative for a signal."""
    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def die_before_commit(n: int) -> None:
    """Make this process kill itself in the middle of its `n`-th transaction."""
    left = n

    def count(_connection: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", count)


def resume(run_dir: Path) -> None:
    with Campaign.resume(run_dir) as campaign:
        campaign.run()


def test_a_campaign_finishes_and_adds_up(finished: Path) -> None:
    status = read_status(finished)
    funnel = status.funnel
    assert (status.state, status.message) == ("finished", "all rounds are done")
    assert funnel["sampled"] == 12
    assert funnel["in_flight"] == 0
    assert funnel["sampled"] == sum(funnel[end] for end in ("rejected", "failed", "passed_over", "judged"))
    assert funnel["judged"] == 4
    assert status.budget.spent["reference_calls"] == 4
    assert not status.budget.reserved


def test_verdicts_are_those_of_pymatgen(finished: Path) -> None:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    store = Store.read(finished / "campaign.sqlite")
    for candidate in store.candidates({State.JUDGED}):
        verdict = candidate.verdict
        assert verdict is not None
        hull = store.hull("reference", verdict.hull_version)
        entries = {p.id: PDEntry(Composition(p.composition), p.energy, name=p.id) for p in hull.phases}
        expected = PhaseDiagram(list(entries.values())).get_e_above_hull(entries[candidate.id])
        assert verdict.e_above_hull == pytest.approx(expected, abs=1e-8)
        assert (verdict.stability == "stable") == (expected <= verdict.threshold)


def test_hull_versions_grow_one_by_one(finished: Path) -> None:
    store = Store.read(finished / "campaign.sqlite")
    for role in ("screening", "reference"):
        versions = store.hull_versions(role)
        assert [version.version for version in versions] == [1, 2, 3, 4, 5]
        assert all(len(version.added) == 1 for version in versions[1:])


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_the_driver_remembers_is_what_the_database_holds(tmp_path: Path, deterministic: bool) -> None:
    config = tiny_config(tmp_path / "run", campaign={"deterministic": deterministic, "metastable_threshold": 1.0})

    def compare(_event: str, _values: Any) -> None:
        fresh = Store.read(config.run_dir / "campaign.sqlite")
        remembered = campaign._candidates.all()
        assert list(map(told, remembered)) == list(map(told, fresh.candidates()))
        for state in State:
            assert [c.id for c in campaign._candidates.of(state)] == [c.id for c in fresh.candidates({state})]
        budget, expected = campaign.store.budget({}), fresh.budget({})
        assert budget.spent == pytest.approx(expected.spent)
        assert budget.reserved == expected.reserved
        fresh.close()

    with Campaign.launch(config, compare) as campaign:
        campaign.run()
    assert campaign._candidates.of(State.LEARNED)


def told(candidate: Candidate) -> tuple[Any, ...]:
    """Return everything that is known of a candidate, as values that can be compared."""
    evaluations = [one.to_dict() if one else None for one in (candidate.screening, candidate.reference)]
    return (candidate.id, candidate.state, candidate.crystal, candidate.target, *evaluations, candidate.verdict)


def test_the_same_seed_gives_the_same_campaign_and_another_seed_another(finished: Path, tmp_path: Path) -> None:
    assert outcome(run(tiny_config(tmp_path / "same"))) == outcome(finished)
    other = outcome(run(tiny_config(tmp_path / "other", seed=8, campaign={"rounds": 1})))
    assert other["candidates"] != outcome(finished)["candidates"][: len(other["candidates"])]


@pytest.mark.parametrize("transactions", [9, 17])
def test_a_killed_campaign_ends_as_an_undisturbed_one(finished: Path, tmp_path: Path, transactions: int) -> None:
    config = tiny_config(tmp_path / "run")

    def launch() -> None:
        die_before_commit(transactions)
        run(config)

    def go_on() -> None:
        die_before_commit(transactions)
        resume(config.run_dir)

    seen: dict[str, int] = {}
    deaths = 0
    code = in_child(launch)
    while code == -signal.SIGKILL:
        deaths += 1
        assert read_status(config.run_dir).state == "interrupted"
        funnel = read_status(config.run_dir).funnel
        assert funnel["sampled"] == sum(
            funnel[end] for end in ("rejected", "failed", "passed_over", "judged", "in_flight")
        )
        now = results(config.run_dir)
        assert {path: now[path] for path in seen} == seen, "a finished calculation was repeated"
        seen = now
        assert deaths < 100
        code = in_child(go_on)
    assert code == 0
    assert deaths > 3
    assert outcome(config.run_dir) == outcome(finished)


def test_a_driver_killed_before_its_first_transaction_leaves_no_campaign(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")

    def launch() -> None:
        die_before_commit(1)
        run(config)

    assert in_child(launch) == -signal.SIGKILL
    with pytest.raises(RunError, match="discovery resume"):
        run(config)


def test_sigterm_interrupts_and_says_how_to_go_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "run")

    def launch() -> None:
        slow_down(monkeypatch)  # the signal must not come too late
        with pytest.raises(CampaignInterruptedError, match=f"discovery resume {config.run_dir}"):
            run(config)
        os._exit(3)

    child = FORK.Process(target=launch)
    child.start()
    assert child.pid is not None
    while len(results(config.run_dir)) < 6:
        assert child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    assert child.exitcode == 3
    assert read_status(config.run_dir).state == "interrupted"
    resume(config.run_dir)
    assert outcome(config.run_dir) == outcome(finished)


def test_a_second_driver_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    with Campaign.launch(config):
        assert read_status(config.run_dir).state == "created"
        with pytest.raises(RunError, match=str(os.getpid())), Campaign.resume(config.run_dir):
            pass


def test_a_used_run_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="discovery resume"):
        run(tiny_config(finished))
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        run(tiny_config(tmp_path))


def test_a_changed_configuration_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    with Campaign.launch(config):
        pass
    path = config.run_dir / "config.yaml"
    path.write_text(path.read_text().replace("rounds: 2", "rounds: 3"))
    with pytest.raises(RunError, match="was changed"):
        resume(config.run_dir)


def test_resuming_a_finished_campaign_changes_nothing(finished: Path) -> None:
    before = outcome(finished)
    resume(finished)
    assert outcome(finished) == before


@pytest.mark.parametrize(
    ("budget", "calls", "message"),
    [
        ({"reference_calls": 3}, 3, "all rounds are done"),
        ({"reference_calls": 2}, 2, "the budget is exhausted: reference_calls"),
        ({"wall_hours": 1e-7}, 0, "the budget is exhausted: wall_hours"),
        ({"core_hours": 1e-7}, 0, "the budget is exhausted: core_hours"),
    ],
)
def test_the_budget_is_never_overspent(tmp_path: Path, budget: dict[str, float], calls: int, message: str) -> None:
    status = read_status(run(tiny_config(tmp_path / "run", campaign={"budget": budget})))
    assert (status.state, status.message) == ("finished", message)
    assert status.budget.spent["reference_calls"] == calls
    assert status.funnel["in_flight"] == 0
    assert not status.budget.reserved


def test_a_campaign_in_which_nothing_is_worth_computing_says_so(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", agent={"max_decomposition_energy": -10.0})
    with EventLog(tmp_path / "campaign.log", config.name, config.log) as log, Campaign.launch(config, log) as campaign:
        campaign.run()
        best = min(
            candidate.screening_decomposition_energy
            for candidate in campaign.store.candidates({State.PASSED_OVER})
            if candidate.screening_decomposition_energy is not None
        )
    lines = [json.loads(line) for line in (tmp_path / "campaign.log").read_text().splitlines()]
    said = [line for line in lines if line["event"] == "none_selected"]
    assert [line["selection"] for line in said] == list(range(config.campaign.rounds))
    assert all(line["level"] == "warning" for line in said)
    status = read_status(config.run_dir)
    assert status.message == f"all rounds are done; {said[-1]['reason']}"
    assert f"lies {best:+.3f} eV/atom from the screening hull" in status.message
    assert status.budget.spent["reference_calls"] == 0
    assert status.funnel["in_flight"] == 0


def test_an_element_without_energy_is_fatal_and_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", campaign={"chemical_space": "Cu-Fe"})
    with pytest.raises(RunError, match=r"screening oracle has no energy of the element Fe.*calculations") as caught:
        run(config)
    assert "no parameters for Fe" in str(caught.value)
    assert read_status(config.run_dir).state == "failed"


def test_the_loop_closes_and_a_resumed_campaign_has_the_learned_weights(finished: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "killed")

    class StopError(Exception):
        pass

    def stop(name: str, _values: Any) -> None:
        if name == "learned":
            raise StopError

    with pytest.raises(StopError), Campaign.launch(config, stop) as campaign:
        campaign.run()
    assert read_status(config.run_dir).state == "failed"
    resume(config.run_dir)
    assert outcome(config.run_dir) == outcome(finished)

    store = Store.read(finished / "campaign.sqlite")
    first, second, *rest = store.checkpoints()
    assert (first.id, second.id, second.round) == ("initial", "r00", 0)
    assert second.checkpoint.parent == first.checkpoint.sha256
    assert second.checkpoint.path == "checkpoints/r00/weights.json"
    assert hashlib.sha256((finished / second.checkpoint.path).read_bytes()).hexdigest() == second.checkpoint.sha256
    trained_on = [*second.checkpoint.trained_on, *(id_ for record in rest for id_ in record.checkpoint.trained_on)]
    assert second.checkpoint.trained_on
    assert sorted(trained_on) == [candidate.id for candidate in store.candidates({State.LEARNED})]


def test_agents_see_what_the_store_holds(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.greedy import GreedyAgent

    views: list[CampaignView] = []
    propose = GreedyAgent.propose

    def spy(self: GreedyAgent, view: CampaignView, n: int) -> list[Target]:
        views.append(view)
        return propose(self, view, n)

    monkeypatch.setattr(GreedyAgent, "propose", spy)
    run(tiny_config(tmp_path / "run"))
    assert [view.round for view in views] == [0, 1]
    assert views[0].seed != views[1].seed
    assert not views[0].candidates
    assert len(views[1].candidates) == 6
    assert views[1].reference_hull.version == 3
    assert views[1].budget.left("reference_calls") == 8
