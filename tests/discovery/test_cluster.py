"""A Ray cluster of two nodes on this machine; one of them dies while a campaign runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from discovery.campaign import Campaign
from discovery.executor import LOCAL_RAY, THREADS
from discovery.status import read_status
from tests.discovery.campaigns import outcome, results, run, small_config


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in {**THREADS, **LOCAL_RAY}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    two = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    two.add_node(**node)
    yield two
    ray.shutdown()
    two.shutdown()


def nodes_alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@pytest.mark.slow
def test_a_campaign_survives_the_death_of_a_node(cluster: Cluster, tmp_path: Path) -> None:
    config = small_config(tmp_path / "two", executor="ray", rounds=1)
    executor = config.executor.model_copy(update={"address": cluster.address, "reference_workers": 2})
    config = config.model_copy(update={"executor": executor})
    finished_before: dict[str, int] = {}
    alive: list[int] = []

    def observe(event: str, values: Mapping[str, Any]) -> None:
        if event == "screened" and not alive:
            alive.append(nodes_alive())
            finished_before.update(results(config.run_dir))
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            deadline = time.monotonic() + 60  # Ray notices by heartbeats that do not come
            while nodes_alive() > 1 and time.monotonic() < deadline:
                time.sleep(0.2)
            alive.append(nodes_alive())

    with Campaign.launch(config, observe) as campaign:
        campaign.run()

    assert alive == [2, 1]
    status = read_status(config.run_dir)
    assert status.state == "finished"
    assert status.funnel["in_flight"] == 0
    assert "lost" not in status.failures
    now = results(config.run_dir)
    assert {path: now[path] for path in finished_before} == finished_before, "a finished calculation was repeated"
    assert outcome(config.run_dir) == outcome(run(small_config(tmp_path / "one", rounds=1)))
