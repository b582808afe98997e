"""The log: a JSON object per line with ids, no secrets, files that do not grow without end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from discovery.config import LogConfig
from discovery.errors import RunError
from discovery.log import EventLog
from discovery.store import Store
from tests.discovery.test_cli import CAMPAIGN, CHOICES, call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_says_when_who_and_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = tmp_path / "cuau.yaml"
    campaign.write_text(CAMPAIGN)
    run = tmp_path / "run"
    small = ("campaign.rounds=1", "campaign.targets_per_round=1", "campaign.samples_per_target=2")
    call("launch", str(campaign), *CHOICES, *small, f"run_dir={run}", "--verbose")
    shown = capsys.readouterr().out
    written = lines(run / "campaign.log")
    assert [line["event"] for line in (written[0], written[-1])] == ["started", "finished"]
    store = Store.read(run / "campaign.sqlite")
    known = set(store.candidate_ids()) | {reference.id for reference in store.references()}
    times = [line["time"] for line in written]
    assert times == sorted(times)
    assert {line["campaign"] for line in written} == {"cuau"}
    assert {line["driver"] for line in written} == {written[0]["pid"]}
    judged = [line["candidate"] for line in written if line["event"] == "judged"]
    assert set(judged) <= known
    assert len(judged) == store.funnel()["judged"] > 0
    screened = {line["id"] for line in written if line["event"] == "screened"}
    assert len(screened) == store.funnel()["screened"]
    for line in written:
        assert line["event"] in shown
    assert judged[0] in shown


def test_secrets_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = 'very"secret\\key'
    monkeypatch.setenv("MP_API_KEY", key)
    monkeypatch.setenv("MY_TOKEN", "short")
    path = tmp_path / "campaign.log"
    with EventLog(path, "n", LogConfig()) as log:
        log("failed", {"message": f"key {key} refused by postgresql://me:pass@word@host/db?sslpassword=x"})
        log("learned", {"path": Path("a"), "url": "http://host:8265/x", "mail": "a@b", "short": "short"})
        logging.getLogger("some_package").warning("cannot reach %s", "postgresql://me:hidden@host/db")
    text = path.read_text()
    assert "hidden" not in text
    assert "secret" not in text
    assert "pass@word" not in text
    first, second, third = lines(path)
    assert first["message"] == "key *** refused by postgresql://me:***@host/db?sslpassword=***"
    assert (second["url"], second["mail"], second["short"]) == ("http://host:8265/x", "a@b", "short")
    assert (third["event"], third["logger"], third["level"]) == ("message", "some_package", "warning")


def test_files_are_rotated_by_size(tmp_path: Path) -> None:
    path = tmp_path / "campaign.log"
    with EventLog(path, "n", LogConfig(max_megabytes=0.01, files=3)) as log:
        for number in range(1000):
            log("screened", {"id": f"r00-t000-s{number:03d}"})
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["campaign.log", "campaign.log.1", "campaign.log.2"]
    assert all(file.stat().st_size <= 10_000 for file in files)
    newest = [line["id"] for file in reversed(files) for line in lines(file)]
    assert newest[-1] == "r00-t000-s999"
    assert newest == sorted(newest)


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["screened", "screened", "failed", "message", "message"]),
        ("info", ["screened", "screened", "failed", "message"]),
        ("warning", ["screened", "failed", "message"]),
        ("error", ["failed"]),
    ],
)
def test_the_level_decides(tmp_path: Path, level: Any, events: list[str]) -> None:
    path = tmp_path / "campaign.log"
    before = logging.getLogger().level
    with EventLog(path, "n", LogConfig(level=level)) as log:
        log("screened", {"id": "a", "failure": None})
        log("screened", {"id": "b", "failure": "crashed: exit code 139"})
        log("failed", {"message": "no space"})
        logging.getLogger("some_package").warning("old weights")
        logging.getLogger("some_package").info("loading")
    assert [line["event"] for line in lines(path)] == events
    assert logging.getLogger().level == before
    assert not any("campaign.log" in str(handler) for handler in logging.getLogger().handlers)


def test_quiet_by_default(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with EventLog(tmp_path / "campaign.log", "n", LogConfig()) as log:
        log("failed", {"message": "no space"})
    assert capfd.readouterr() == ("", "")
    console = Console(width=200)
    with EventLog(tmp_path / "campaign.log", "n", LogConfig(), console) as log:
        log("failed", {"message": "no [bold] space"})
    assert "failed message=no [bold] space" in capfd.readouterr().out


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with (
        EventLog(tmp_path / "missing" / "campaign.log", "n", LogConfig()) as log,
        pytest.raises(RunError, match="free"),
    ):
        log("started", {})
