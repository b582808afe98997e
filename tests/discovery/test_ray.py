"""Real Ray: stages placed by resources, a hanging oracle, killed workers, a killed driver, a lost head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster

from discovery.campaign import Campaign
from discovery.config import CampaignConfig
from discovery.executor import Evaluated, EvaluationJob, RayExecutor
from discovery.status import read_status
from discovery.types import FailureKind
from tests.discovery.campaigns import outcome, results, run, tiny_config
from tests.discovery.test_cluster import cluster  # noqa: F401
from tests.discovery.test_executor import copper

pytestmark = pytest.mark.slow

ONE_ROUND = {"rounds": 1, "targets_per_round": 3, "reference_calls_per_round": 3}


WORKERS = ("ray::_GeneratorWorker", "ray::_OracleWorker", "ray::_reference_task")
"""Names of the processes that do a campaign's work; when an agent of Ray's own dies, so does its whole node."""


def config_of(run_dir: Path, executor: dict[str, Any], **campaign: Any) -> CampaignConfig:
    oracle = {"name": "watched"}
    return tiny_config(
        run_dir,
        campaign=campaign,
        oracle={"screening": oracle, "reference": oracle | {"hangs_on": "CuAu"}},
        executor={"name": "ray"} | executor,
    )


def marks(folder: Path) -> dict[str, Any]:
    """Return what the oracle has left in a calculation's folder: its process and its node."""
    data: dict[str, Any] = json.loads((folder / "who.json").read_text())
    return data


def test_each_stage_runs_where_its_resources_are(cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, resources={"licence": 1, "gate": 1})
    config = config_of(
        tmp_path / "run",
        {
            "address": cluster.address,
            "screening_workers": 1,
            "screening_batch_atoms": 1,
            "screening_resources": {"gate": 1},
            "reference_resources": {"licence": 1},
        },
    )
    with RayExecutor(config) as executor:
        for role in ("screening", "reference"):
            for index in range(2):
                folder = tmp_path / role / str(index)
                executor.submit(EvaluationJob(f"{role}-{index}", role, copper(3.6 + 0.01 * index), folder))
        done = [result for result in executor.results() if isinstance(result, Evaluated)]
        assert len(done) == 4
        assert all(result.evaluation.ok for result in done)
    assert {marks(result.job.folder)["node"] for result in done} == {node.node_id}


def test_a_hanging_oracle_is_killed_at_its_time_limit_and_the_campaign_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.executor.CANCEL_SECONDS", 0.5)
    config = config_of(tmp_path / "run", {"reference_max_seconds": 10.0}, **ONE_ROUND)
    late: list[int] = []

    def observe(event: str, values: Mapping[str, Any]) -> None:
        if event == "computed" and values["formula"] == "CuAu":
            late.append(marks(config.run_dir / "calculations" / values["id"] / "reference")["pid"])

    with Campaign.launch(config, observe) as campaign:
        campaign.run()
    status = read_status(config.run_dir)
    assert status.state == "finished"
    assert status.funnel["in_flight"] == 0
    assert late
    assert status.failures[FailureKind.TIMEOUT] >= len(late)
    assert not any(psutil.pid_exists(pid) for pid in late)


def test_workers_killed_at_random_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = tiny_config(tmp_path / "run", executor={"name": "ray", "max_lost": 20})
    events, killed = 0, []

    def observe(event: str, _values: Mapping[str, Any]) -> None:
        nonlocal events
        events += event in ("sampled", "screened", "computed", "judged")
        if events >= 4 * (len(killed) + 1) and len(killed) < 4:
            ours = [child for child in descendants(os.getpid()) if child.name() in WORKERS]
            if ours:
                victim = ours[rng.integers(len(ours))]
                killed.append(victim.name())
                victim.kill()

    with Campaign.launch(config, observe) as campaign:
        campaign.run()
    assert len(killed) == 4
    assert outcome(config.run_dir) == outcome(run(tiny_config(tmp_path / "undisturbed")))


def test_a_killed_driver_leaves_no_process_and_the_campaign_goes_on(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", {}, **ONE_ROUND)
    driver = in_a_process_of_its_own(config, tmp_path)
    try:
        until(lambda: any(child.name() == "sleep" for child in descendants(driver.pid)), driver)
        family = [child for child in descendants(driver.pid) if not child.name().endswith("Agent")]
    finally:
        driver.kill()
        driver.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, f"orphans: {left}"  # Ray's own agents, which compute nothing, may take longer
    goes_on(config, tmp_path)


def test_without_its_head_a_driver_ends_and_the_campaign_goes_on(
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    config = config_of(tmp_path / "run", {"address": cluster.address}, **ONE_ROUND)
    driver = in_a_process_of_its_own(config, tmp_path)
    try:
        until(lambda: any(hanging(config.run_dir)), driver)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        driver.wait(120)
    finally:
        driver.kill()
    assert driver.returncode == 1
    assert "Failed to connect to GCS" in (tmp_path / "driver.log").read_text()
    goes_on(config, tmp_path)


def goes_on(config: CampaignConfig, folder: Path) -> None:
    """Resume in this process and compare with an undisturbed campaign."""
    before = results(config.run_dir)
    assert before
    assert read_status(config.run_dir).state == "interrupted"
    here = config.executor.model_copy(update={"name": "in_process", "address": None})
    config.model_copy(update={"executor": here}).save(config.run_dir / "config.yaml")
    with Campaign.resume(config.run_dir) as campaign:
        campaign.run()
    assert before.items() <= results(config.run_dir).items(), "a finished calculation was repeated"
    assert outcome(config.run_dir) == outcome(run(tiny_config(folder / "undisturbed", campaign=ONE_ROUND)))


def hanging(run_dir: Path) -> list[Path]:
    return list(run_dir.glob("calculations/*-s*/reference/hangs"))


def descendants(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.is_running()]


def until(true: Any, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert driver.poll() is None, "the driver has ended"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def in_a_process_of_its_own(config: CampaignConfig, folder: Path) -> subprocess.Popen[bytes]:
    """Start a driver that no test framework is part of."""
    config.save(folder / "given.yaml")
    code = (
        "import sys; from pathlib import Path; from discovery import config\n"
        "from tests.discovery.campaigns import run\n"
        f"run(config.read(Path({str(folder / 'given.yaml')!r})))"
    )
    with (folder / "driver.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=subprocess.STDOUT)
