"""Pause, resume and stop from another process: what runs is finished, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from discovery import cli, control
from discovery.campaign import Campaign, CampaignInterruptedError
from discovery.control import Request
from discovery.errors import RunError
from discovery.status import read_status
from tests.discovery.campaigns import outcome, results, run, slow_down, tiny_config

FORK = multiprocessing.get_context("fork")
STOPPED = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_config(tmp_path_factory.mktemp("control") / "run"))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], BaseProcess]]:
    """Start a driver in a process of its own, whose evaluations take a fifth of a second longer."""
    slow_down(monkeypatch)
    config = tiny_config(tmp_path / "run")
    started: list[BaseProcess] = []

    def drive() -> None:
        try:
            if config.run_dir.exists():
                with Campaign.resume(config.run_dir) as campaign:
                    campaign.run()
            else:
                run(config)
        except CampaignInterruptedError:
            os._exit(STOPPED)

    def start() -> BaseProcess:
        child = FORK.Process(target=drive)
        child.start()
        started.append(child)
        until(lambda: len(results(config.run_dir)) >= 3)
        return child

    yield start
    for child in started:
        child.kill()
        child.join()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_paused_campaign_begins_nothing_until_it_is_resumed(
    driver: Callable[[], BaseProcess], tmp_path: Path, finished: Path
) -> None:
    run_dir = tmp_path / "run"
    child = driver()
    assert control.pending(run_dir) is None
    assert control.pause(run_dir) == child.pid
    assert control.pending(run_dir) is Request.PAUSE
    until(lambda: read_status(run_dir).state == "paused")
    before, seconds = results(run_dir), read_status(run_dir).seconds
    time.sleep(0.5)
    assert results(run_dir) == before
    assert read_status(run_dir).seconds == seconds, "a pause counts as wall time"
    control.resume(run_dir)
    child.join(60)
    assert child.exitcode == 0
    assert len(results(run_dir)) > len(before)
    assert outcome(run_dir) == outcome(finished)


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("paused", [False, True])
def test_a_stopped_campaign_goes_on_where_it_was(
    driver: Callable[[], BaseProcess], tmp_path: Path, finished: Path, now: bool, paused: bool
) -> None:
    run_dir = tmp_path / "run"
    child = driver()
    if paused:
        control.pause(run_dir)
        until(lambda: read_status(run_dir).state == "paused")
    assert control.stop(run_dir, now=now) == child.pid
    child.join(60)
    assert child.exitcode == STOPPED
    status = read_status(run_dir)
    assert (status.state, status.message) == ("interrupted", "stopped as asked")
    assert not (run_dir / "request.json").exists()
    before = results(run_dir)
    child = driver()
    child.join(60)
    assert child.exitcode == 0
    assert before.items() <= results(run_dir).items(), "a finished calculation was repeated"
    assert outcome(run_dir) == outcome(finished)


def test_a_campaign_at_work_needs_no_resuming(driver: Callable[[], BaseProcess], tmp_path: Path) -> None:
    child = driver()
    with pytest.raises(RunError, match=rf"process {child.pid}.* at work.*discovery pause"):
        control.resume(tmp_path / "run")


def test_who_has_no_driver_cannot_be_asked(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (control.pause, control.stop, control.resume):
        with pytest.raises(RunError, match=r"has no driver.*discovery resume"):
            ask(finished)
        with pytest.raises(RunError, match="is not a run folder"):
            ask(tmp_path)
    monkeypatch.setattr("sys.argv", ["discovery", "pause", str(finished)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1


def test_a_request_to_an_earlier_driver_is_not_obeyed(finished: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    with Campaign.launch(config) as campaign:
        (config.run_dir / "request.json").write_text('{"driver": 1, "request": "stop_now"}')
        assert control.pending(config.run_dir) is None
        campaign.run()
    assert outcome(config.run_dir) == outcome(finished)
