"""What the engine itself costs: the driver per candidate, resuming a large campaign, tasks per second through Ray.

Oracles and generator do next to nothing (`no_op.py`). A campaign that was interrupted after so many candidates
(`large_campaign.py`) is resumed and goes on for some more, streaming, in one process: gate, hulls, agent, result files
and SQLite included. Each size has a process of its own. Then reference calculations go through the Ray executor.
Run as::

    python benchmarks/campaigns.py --candidates 1000 10000 100000 --more 1000 --tasks 1000
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import no_op
import numpy as np
from large_campaign import ELEMENTS, ROUNDS, make
from record import write_record

from discovery.campaign import Campaign
from discovery.config import CampaignConfig
from discovery.executor import EvaluationJob, RayExecutor
from discovery.processes import process_pool
from discovery.status import read_status

TARGETS, SAMPLES = 10, 10
"""Of a proposal."""


def config_of(run_dir: Path, more: int, agent: str = "greedy", executor: str = "in_process") -> CampaignConfig:
    """Return the configuration of a streaming campaign that has `more` candidates before it."""
    return CampaignConfig.model_validate(
        {
            "name": run_dir.name,
            "run_dir": run_dir,
            "campaign": {
                "chemical_space": "-".join(ELEMENTS),
                "deterministic": False,
                "rounds": ROUNDS + max(1, more // (TARGETS * SAMPLES)),
                "targets_per_round": TARGETS,
                "samples_per_target": SAMPLES,
                "max_atoms": 12,
                "max_screened": 100,
                "budget": {"reference_calls": 1_000_000},
            },
            "oracle": {role: {"name": "no_op", "role": role} for role in ("screening", "reference")},
            "generator": {"name": "no_op"},
            "agent": {"name": agent},
            "references": {"source": "elements"},
            "executor": {"name": executor, "reference_workers": 2, "reference_cache": False},
        }
    )


def go_on(run_dir: Path) -> dict[str, Any]:
    """Resume the campaign and drive it to its end."""
    started: list[float] = []

    def observe(name: str, _values: Mapping[str, Any]) -> None:
        if name in ("proposed", "selected") and not started:
            started.append(time.process_time())

    before, database = read_status(run_dir).funnel, _size(run_dir)
    begun = time.process_time()
    with Campaign.resume(run_dir, observe) as campaign:
        campaign.run()
    ended = time.process_time()
    after = read_status(run_dir).funnel
    new = {name: after[name] - before[name] for name in ("sampled", "screened", "selected", "judged")}
    return {
        "candidates_before": before["sampled"],
        "judged_before": before["judged"],
        "new": new,
        "cpu_seconds_to_resume": started[0] - begun,
        "cpu_ms_per_candidate": 1e3 * (ended - started[0]) / new["sampled"],
        "database_bytes_per_candidate": (_size(run_dir) - database) / new["sampled"],
        "database_bytes_per_candidate_before": database / before["sampled"],
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _size(run_dir: Path) -> int:
    return sum(path.stat().st_size for path in run_dir.glob("campaign.sqlite*"))


def driver(folder: Path, sizes: list[int], more: int, agent: str) -> list[dict[str, Any]]:
    """Go on with campaigns of growing size."""
    runs = []
    for n in sizes:
        config = config_of(folder / f"{agent}-{n}", more, agent)
        make(config, n)
        with process_pool(1) as process:
            runs.append(process.submit(go_on, config.run_dir).result())
        print(runs[-1], flush=True)
    return runs


def ray(folder: Path, n_tasks: int) -> dict[str, Any]:
    """Send reference calculations through Ray, each with its result file."""
    crystal = no_op.crystal_of({"Cu": 2, "Al": 2}, np.random.default_rng(0))
    started = time.perf_counter()
    with RayExecutor(config_of(folder / "ray", 1, executor="ray")) as executor:
        executor.energy_scale("reference")
        start_up = time.perf_counter() - started

        def send(first: int, n: int) -> float:
            for index in range(first, first + n):
                executor.submit(EvaluationJob(f"c{index}", "reference", crystal, folder / f"c{index}"))
            begun = time.perf_counter()
            done = [result for result in executor.results() if result is not None]
            assert len(done) == n
            return time.perf_counter() - begun

        send(0, 20)
        seconds = send(20, n_tasks)
    return {"tasks": n_tasks, "tasks_per_second": n_tasks / seconds, "seconds_to_start_ray": start_up}


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--more", type=int, default=1_000, help="candidates by which each campaign goes on")
    parser.add_argument("--agent", default="greedy")
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/campaigns.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        no_op.install(folder / "plugins")
        results: dict[str, Any] = {"driver": driver(folder, args.candidates, args.more, args.agent)}
        if args.tasks:
            results["ray"] = ray(folder, args.tasks)
        write_record(args.out, results, seed=0, command=" ".join(sys.argv))


if __name__ == "__main__":
    main()
