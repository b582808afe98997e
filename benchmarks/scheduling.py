"""Discrete-event simulation of a streaming campaign on thousands of workers.

The scheduling core of the engine (`discovery.scheduler`, the very code that Ray campaigns run) is driven by a simulated
clock: screenings of 0.1 to 5 s (log-uniform), reference calculations of 10 to 3,000 s (log-normal with median 200 s and
sigma 1.1, cut off), 5 % failures, 1 % of the calculations lost with their node. Sampling takes 2 ms a crystal, on one
generator; the agent selects a third of what was screened; the driver takes 10 ms for each result, one after the other,
in which no worker gets anything new. Utilisation is the share of the reference workers' time spent on calculations
(lost ones included), from the moment when all are busy first until the agent's last proposal. Run as::

    python benchmarks/scheduling.py --candidates 1000 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import heapq
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import write_record

from discovery.scheduler import Decision, Flow, Pool, Scheduler

SAMPLES_PER_TARGET = 16
SECONDS_PER_SAMPLE = 0.002
SELECTED_SHARE = 1 / 3


@dataclass(frozen=True)
class Job:
    """One target, or one candidate."""

    id: str


class Durations:
    """Random numbers in blocks, so that drawing them costs next to nothing."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._blocks: dict[str, list[float]] = {}

    def next(self, name: str) -> float:
        """Return the next number of a kind."""
        block = self._blocks.get(name)
        if not block:
            n = 4096
            block = {
                "screening": lambda: np.exp(self._rng.uniform(np.log(0.1), np.log(5.0), n)),
                "reference": lambda: np.clip(self._rng.lognormal(np.log(200.0), 1.1, n), 10.0, 3000.0),
                "chance": lambda: self._rng.random(n),
            }[name]().tolist()
            self._blocks[name] = block
        return block.pop()


def simulate(
    n_candidates: int, reference_workers: int, screening_workers: int, driver_seconds: float, seed: int
) -> dict[str, Any]:
    """Run one simulated campaign; return what it did and what the scheduling cost in real time."""
    durations = Durations(np.random.default_rng(seed))
    core: Scheduler[Job] = Scheduler(
        {"screening": Pool(screening_workers, 48), "reference": Pool(reference_workers)}, max_lost=3
    )
    targets = max(1, reference_workers // SAMPLES_PER_TARGET * 2)
    per_proposal = targets * SAMPLES_PER_TARGET
    flow = Flow(reference_workers, per_proposal, max(1, round(n_candidates / per_proposal)))
    events: list[tuple[float, int, Any]] = []
    now, number, wanted_pool = 0.0, 0, 0.0
    busy = measured_busy = measured_until = 0.0
    full_at: float | None = None
    counts = {"sampled": 0, "screened": 0, "computed": 0, "failed": 0, "lost": 0, "given_up": 0}
    largest = {"waiting": 0, "running": 0}
    seconds = 0.0

    while True:
        started = time.perf_counter()
        while (due := flow.due) in (Decision.PROPOSE, Decision.SELECT):
            if due is Decision.PROPOSE:
                flow.proposed(targets)
                measured_busy, measured_until = busy, now
                for _ in range(targets):
                    number += 1
                    core.submit("generator", Job(f"t{number}"))
            else:
                wanted = flow.wanted
                chosen = min(wanted, int(wanted_pool))
                wanted_pool -= chosen
                flow.selected(chosen, wanted)
                for _ in range(chosen):
                    number += 1
                    core.submit("reference", Job(f"c{number}"))
        tasks = list(core.start(now))
        seconds += time.perf_counter() - started

        for task in tasks:
            if task.stage == "generator":
                length = SAMPLES_PER_TARGET * SECONDS_PER_SAMPLE
            else:
                length = sum(durations.next(task.stage) for _ in task.jobs)
            lost = task.stage != "generator" and durations.next("chance") < 0.01
            number += 1
            heapq.heappush(events, (now + length * (durations.next("chance") if lost else 1.0), number, (task, lost)))
        if full_at is None and core.running("reference") == reference_workers:
            full_at = now
        for name, amount in (("waiting", core.waiting()), ("running", core.running())):
            largest[name] = max(largest[name], amount)
        if not events:
            break

        before, running = now, core.running("reference")
        ended, _, (task, lost) = heapq.heappop(events)
        now = max(now, ended) + driver_seconds
        if full_at is not None:
            busy += running * (now - before)
            busy -= now - ended if task.stage == "reference" else 0.0
        failures = [durations.next("chance") < 0.05 for _ in task.jobs]

        started = time.perf_counter()
        if lost:
            counts["lost"] += 1
            for _ in core.lose(task):
                counts["given_up"] += 1
                flow.screened(failed=True) if task.stage == "screening" else flow.computed()
        else:
            core.finish(task, now)
            if task.stage == "generator":
                counts["sampled"] += SAMPLES_PER_TARGET
                for _ in range(SAMPLES_PER_TARGET):
                    number += 1
                    core.submit("screening", Job(f"c{number}"), size=8)
                flow.sampled(SAMPLES_PER_TARGET)
            for failed in failures if task.stage != "generator" else ():
                counts["failed"] += failed
                if task.stage == "screening":
                    counts["screened"] += 1
                    flow.screened(failed=failed)
                    wanted_pool += 0 if failed else SELECTED_SHARE
                else:
                    counts["computed"] += 1
                    flow.computed()
        seconds += time.perf_counter() - started

    assert flow.due is Decision.END
    window = max(0.0, measured_until - full_at) if full_at is not None else 0.0
    return {
        **counts,
        "reference_workers": reference_workers,
        "screening_workers": screening_workers,
        "simulated_hours": now / 3600,
        "reference_utilisation": measured_busy / (reference_workers * window) if window else None,
        "hours_measured": window / 3600,
        "scheduling_ms_per_candidate": 1e3 * seconds / counts["sampled"],
        "most_jobs_waiting": largest["waiting"],
        "most_tasks_running": largest["running"],
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--reference-workers", type=int, default=1000)
    parser.add_argument("--screening-workers", type=int, default=64)
    parser.add_argument("--driver-seconds", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scheduling.json"))
    args = parser.parse_args()
    runs = [
        simulate(n, args.reference_workers, args.screening_workers, args.driver_seconds, args.seed)
        for n in args.candidates
    ]
    write_record(
        args.out,
        {"driver_seconds_per_event": args.driver_seconds, "campaigns": runs},
        seed=args.seed,
        command=" ".join(sys.argv),
    )


if __name__ == "__main__":
    main()
