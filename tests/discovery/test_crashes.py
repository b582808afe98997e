"""The driver is killed at every kind of write, disks are full and databases locked; then the campaign goes on.

A write of the database has two points: within its transaction, just before it is committed, and just after. One
campaign goes through all points in turn. Slow tests take some of them alone, and all with ``CRASH_POINTS=all pytest
tests/discovery/test_crashes.py``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from discovery import executor as executor_module
from discovery import files
from discovery.campaign import Campaign
from discovery.config import CampaignConfig
from discovery.errors import RunError
from discovery.log import EventLog
from discovery.status import read_status
from discovery.store import Store
from discovery.store import store as store_module
from tests.discovery.campaigns import outcome, results, tiny_config
from tests.discovery.plugins import LatticeGenerator

FORK = multiprocessing.get_context("fork")

TRANSACTIONS = (
    "start_session",
    "set_energy_scale",
    "add_initial_checkpoint",
    "add_references",
    "add_reference_evaluation",
    "add_phases",
    "add_targets",
    "add_samples",
    "admit",
    "reject",
    "screen",
    "finish_step",
    "pass_over",
    "select",
    "compute",
    "judge",
    "learn",
    "set_state",
)
FILES = ("result of a reference phase", "result of screening", "result of reference", "event", "weights")
POINTS = tuple(f"{when} {name}" for name in TRANSACTIONS for when in ("within", "after")) + tuple(
    f"{when} {name}" for name in FILES for when in ("before", "after")
)


def die(point: str, deaths: Path) -> None:
    with deaths.open("a") as file:
        file.write(point + "\n")
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(wanted: Callable[[str], bool], deaths: Path) -> None:
    """Make this process kill itself at the first of the points that are `wanted`; its name goes into `deaths`."""
    inside: list[str] = []

    def reached(point: str) -> None:
        if wanted(point):
            die(point, deaths)

    def around(owner: Any, attribute: str, name: Callable[..., str], before: str) -> None:
        original = getattr(owner, attribute)

        def watched(*arguments: Any, **options: Any) -> Any:
            called = name(*arguments)
            inside.append(called)
            if before:
                reached(f"{before} {called}")
            try:
                result = original(*arguments, **options)
            finally:
                inside.pop()
            reached(f"after {called}")
            return result

        setattr(owner, attribute, watched)

    for transaction in TRANSACTIONS:
        around(Store, transaction, lambda *_, name=transaction: name, "")
    around(executor_module, "write_result", lambda _plugin, job, _evaluation: _result(job), "before")
    around(EventLog, "__call__", lambda *_: "event", "before")
    around(LatticeGenerator, "learn", lambda *_: "weights", "before")
    event.listen(Engine, "commit", lambda _connection: reached(f"within {inside[-1]}") if inside else None)


def _result(job: executor_module.EvaluationJob) -> str:
    return f"result of {job.role}" if "-s" in job.id else "result of a reference phase"


def drive(config: CampaignConfig, wanted: Callable[[str], bool], deaths: Path) -> int:
    """Launch or resume in a process of its own and return its exit code; negative for a signal."""

    def work() -> None:
        kill_at(wanted, deaths)
        exists = (config.run_dir / "campaign.sqlite").exists()
        log = EventLog(config.run_dir.with_suffix(".log"), config.name, config.log)
        with log, Campaign.resume(config.run_dir, log) if exists else Campaign.launch(config, log) as campaign:
            campaign.run()

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def ledger(run_dir: Path) -> list[Any]:
    """Return all entries but the hours, which differ from run to run."""
    store = Store.read(run_dir / "campaign.sqlite")
    query = "SELECT subject_id, role, kind, spent, CASE kind WHEN 'reference_calls' THEN amount END FROM ledger"
    with store.engine.connect() as connection:
        return sorted(map(repr, connection.execute(text(query)).all()))


def adds_up(run_dir: Path) -> bool:
    funnel = read_status(run_dir).funnel
    return funnel["sampled"] == sum(funnel[end] for end in ("rejected", "failed", "passed_over", "judged", "in_flight"))


def config_of(run_dir: Path, **search: Any) -> CampaignConfig:
    return tiny_config(run_dir, campaign={"rounds": 2, "targets_per_round": 3} | search)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes")
    config = config_of(folder / "run")
    assert drive(config, lambda _: False, folder / "deaths") == 0
    return config.run_dir


@contextmanager
def nothing_repeated(run_dir: Path) -> Iterator[None]:
    before = results(run_dir)
    yield
    assert before.items() <= results(run_dir).items(), "a finished calculation was repeated"


def survive(config: CampaignConfig, deaths: Path) -> list[str]:
    """Kill the driver at each point once, in the order in which it reaches them; return them."""
    died: list[str] = []

    def wanted(point: str) -> bool:
        return point not in died

    while (code := drive(config, wanted, deaths)) == -signal.SIGKILL:
        died[:] = deaths.read_text().splitlines()
        assert len(died) <= len(POINTS)
        if (config.run_dir / "campaign.sqlite").exists():
            assert read_status(config.run_dir).state in ("created", "interrupted", "finished")
            assert adds_up(config.run_dir)
    assert code == 0
    return died


def test_a_driver_killed_at_every_point_in_turn_ends_as_an_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    with nothing_repeated(config.run_dir):
        died = survive(config, tmp_path / "deaths")
    assert set(POINTS) == set(died)
    assert len(died) >= 30
    assert outcome(config.run_dir) == outcome(undisturbed)
    assert ledger(config.run_dir) == ledger(undisturbed)


@pytest.mark.slow
def test_a_streaming_driver_killed_at_every_point_in_turn_finishes(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", deterministic=False, budget={"reference_calls": 30})
    died = survive(config, tmp_path / "deaths")
    assert len(died) >= 30
    status = read_status(config.run_dir)
    assert (status.state, status.message, status.funnel["in_flight"]) == ("finished", "all rounds are done", 0)
    assert status.funnel["sampled"] == 18
    assert adds_up(config.run_dir)
    assert not status.budget.reserved
    calls = [row for row in ledger(config.run_dir) if "reference_calls" in row]
    assert len(calls) == len(set(calls)) == status.funnel["judged"] + status.funnel["failed"]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS if os.environ.get("CRASH_POINTS") == "all" else POINTS[::6])
def test_a_driver_killed_once_ends_as_an_undisturbed_one(undisturbed: Path, tmp_path: Path, point: str) -> None:
    config = config_of(tmp_path / "run")
    deaths = tmp_path / "deaths"
    assert drive(config, lambda reached: reached == point, deaths) == -signal.SIGKILL
    with nothing_repeated(config.run_dir):
        assert drive(config, lambda _: False, deaths) == 0
    assert outcome(config.run_dir) == outcome(undisturbed)
    assert ledger(config.run_dir) == ledger(undisturbed)


def test_a_full_disk_ends_the_driver_with_advice_and_costs_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run")

    def limit(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA max_page_count=1")  # no more pages than there are

    def fill(name: str, _values: Any) -> None:
        if name == "screened":
            event.listen(campaign.store.engine, "connect", limit)
            campaign.store.engine.dispose()

    refused = pytest.raises(RunError, match=r"full.*free disk space.*discovery resume")
    with refused, Campaign.launch(config, fill) as campaign:
        campaign.run()
    assert adds_up(config.run_dir)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, nothing_repeated(config.run_dir):
        patch.setattr(files.os, "fsync", full)
        with (
            pytest.raises(RunError, match=r"No space left.*free disk space"),
            Campaign.resume(config.run_dir) as campaign,
        ):
            campaign.run()
    with nothing_repeated(config.run_dir), Campaign.resume(config.run_dir) as campaign:
        campaign.run()
    assert outcome(config.run_dir) == outcome(undisturbed)


def test_a_locked_database_is_waited_for_and_then_an_error(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run")
    locks: list[sqlite3.Connection] = []

    def lock(name: str, _values: Any) -> None:
        if name == "screened" and not locks:
            connection = sqlite3.connect(config.run_dir / "campaign.sqlite", check_same_thread=False)
            connection.execute("BEGIN IMMEDIATE")
            locks.append(connection)
            if release:
                threading.Timer(1.0, connection.rollback).start()

    configure = store_module._configure_sqlite

    def impatient(connection: Any, record: Any) -> None:
        configure(connection, record)
        connection.execute("PRAGMA busy_timeout=300")

    release = False
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_configure_sqlite", impatient)
        with pytest.raises(RunError, match=r"locked.*discovery resume"), Campaign.launch(config, lock) as campaign:
            campaign.run()
    locks.pop().close()
    release = True
    started = time.monotonic()
    with Campaign.resume(config.run_dir, lock) as campaign:
        campaign.run()
    assert time.monotonic() - started >= 1.0
    locks.pop().close()
    assert outcome(config.run_dir) == outcome(undisturbed)
