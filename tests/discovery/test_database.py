"""Campaigns in PostgreSQL: the same results as in SQLite, several in one database, one driver each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from discovery.campaign import Campaign
from discovery.config import CampaignConfig
from discovery.errors import ConfigError, RunError
from discovery.runfolder import RunFolder
from discovery.sets import read_set
from discovery.status import read_status
from discovery.store import Store
from discovery.store.queries import Queries
from tests.discovery.campaigns import outcome, results, run, tiny_config
from tests.discovery.test_cli import call

FORK = multiprocessing.get_context("fork")


def in_postgresql(run_dir: Path, url: str, name: str) -> CampaignConfig:
    return tiny_config(run_dir, database=url, name=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_config(tmp_path_factory.mktemp("sqlite") / "run"))


@pytest.fixture(scope="module")
def in_database(tmp_path_factory: pytest.TempPathFactory, postgresql: str) -> Path:
    return run(in_postgresql(tmp_path_factory.mktemp("postgresql") / "run", postgresql, "whole"))


def test_a_campaign_is_the_same_in_both_databases(in_database: Path, finished: Path) -> None:
    assert outcome(in_database) == outcome(finished)
    assert not (in_database / "campaign.sqlite").exists()


def test_a_run_folder_leads_to_its_database(
    in_database: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("status",), ("status", "--json"), ("export", "--format", "entries"), ("report",), ("resume",)):
        call(arguments[0], str(in_database), *arguments[1:])
    assert "whole is finished" in capsys.readouterr().out
    assert (in_database / "export" / "entries.json").is_file()
    members, expected = read_set(in_database).members, read_set(finished).members
    assert [(member.id, member.energies) for member in members] == [(m.id, m.energies) for m in expected]


def test_who_watches_sees_the_same_in_both_databases(in_database: Path, finished: Path) -> None:
    seen = []
    for run_dir in (in_database, finished):
        store = RunFolder(run_dir).read_store()
        ask = Queries(store)
        ids = store.candidate_ids()
        order = (("e_above_hull", "desc"), ("formula", "asc"))
        where = (("formula", "contains", "Cu"), ("n_atoms", "at_most", 4))
        seen.append(
            (
                *(ask.verdicts(), ask.losses(), ask.failures(), ask.waiting(), ask.pairs(), ask.phases("reference")),
                *(ask.page(order=order, where=where, limit=5), ask.checkpoints_of(ids), sorted(ask.costs_of(ids))),
                *(sorted(ask.hull_times("screening")), sorted(ask.pace()), len(ask.spent(["core_hours"])[0])),
            )
        )
        assert ask.revision()
        assert ask.heartbeat()
        store.close()
    assert seen[0] == seen[1]
    assert seen[0][0]


def test_a_killed_campaign_goes_on(tmp_path: Path, postgresql: str, finished: Path) -> None:
    config = in_postgresql(tmp_path / "run", postgresql, "killed")
    seen: dict[str, int] = {}
    deaths = 0
    code = in_child(lambda: run(config))
    while code == -signal.SIGKILL:
        deaths += 1
        assert read_status(config.run_dir).state == "interrupted"
        now = results(config.run_dir)
        assert {path: now[path] for path in seen} == seen, "a finished calculation was repeated"
        seen = now
        assert deaths < 100
        code = in_child(lambda: resume(config.run_dir))
    assert code == 0
    assert deaths > 3
    assert outcome(config.run_dir) == outcome(finished)


def in_child(work: Callable[[], Any]) -> int:
    """Do `work` in a forked process that kills itself before its 15th commit; return its exit code."""

    def mortal() -> None:
        left = iter(range(14))

        def count(_connection: Any) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "commit", count)
        work()

    child = FORK.Process(target=mortal)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def resume(run_dir: Path) -> None:
    with Campaign.resume(run_dir) as campaign:
        campaign.run()


def test_one_driver_although_run_folders_differ(tmp_path: Path, postgresql: str) -> None:
    config = in_postgresql(tmp_path / "run", postgresql, "copied")
    with Campaign.launch(config) as campaign:
        campaign.store.start_session()
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / "config.yaml").write_bytes((config.run_dir / "config.yaml").read_bytes())
        with pytest.raises(RunError, match=f"already has a driver .process {os.getpid()} on"), Campaign.resume(copy):
            pass
    with Campaign.resume(copy):
        pass


def test_a_name_that_is_taken_is_refused_and_leaves_no_folder(tmp_path: Path, postgresql: str) -> None:
    with Campaign.launch(in_postgresql(tmp_path / "run", postgresql, "taken")):
        pass
    with (
        pytest.raises(RunError, match=r"already holds a campaign 'taken'.*name=NAME"),
        Campaign.launch(in_postgresql(tmp_path / "other", postgresql, "taken")),
    ):
        pass
    assert not (tmp_path / "other").exists()


def test_a_campaign_that_cannot_begin_leaves_nothing_in_the_database(tmp_path: Path, postgresql: str) -> None:
    config = tiny_config(
        tmp_path / "run",
        database=postgresql,
        name="never",
        references={"source": "csv", "path": str(tmp_path / "missing.csv")},
    )
    with pytest.raises(Exception, match="missing"):  # noqa: SIM117
        with Campaign.launch(config) as campaign:
            campaign.run()
    assert not (tmp_path / "run").exists()
    assert "never" not in {campaign.name for campaign in Store.campaigns(postgresql)}


def test_no_password_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = tmp_path / "cuau.yaml"
    campaign.write_text("campaign:\n  chemical_space: Cu-Au\n  budget: {reference_calls: 1}\n")
    with pytest.raises(SystemExit):
        call("launch", str(campaign), f"run_dir={tmp_path / 'run'}", "database='postgresql://me:s3cret@localhost/runs'")
    error = capsys.readouterr().err
    assert "PGPASSFILE" in error
    assert "s3cret" not in error
    assert not (tmp_path / "run").exists()


def test_what_is_no_postgresql_is_refused(tmp_path: Path) -> None:
    for url in ("sqlite:///x.sqlite", "runs.sqlite", "mysql://localhost/x"):
        with pytest.raises((ConfigError, ValueError), match="database"):
            tiny_config(tmp_path, database=url)


def test_the_configuration_names_where_the_campaign_is_not_what_it_finds(tmp_path: Path) -> None:
    here = tiny_config(tmp_path)
    there = tiny_config(tmp_path, database="postgresql://me@localhost/runs")
    assert there.database == "postgresql+psycopg://me@localhost/runs"
    assert here.config_hash == there.config_hash


def test_a_run_folder_whose_configuration_is_unreadable_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{")
    with pytest.raises(RunError, match=r"config\.yaml cannot be read"):
        RunFolder(tmp_path).read_store()
