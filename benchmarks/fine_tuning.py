"""Does fine-tuning pay? Campaigns whose generator learns beside the same campaigns with a frozen one, seed by seed.

Each chemical space is a family in which what is found in one system may teach the generator something about the next
one. CHGNet screens and is also the reference oracle, so that a campaign takes minutes. Counted are the formulas of
which a campaign has found a phase that is stable on the hull of all that any campaign of the space has found. Run as::

    python benchmarks/fine_tuning.py --seeds 4 --work runs/fine_tuning

The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from record import write_record

from discovery.config import compose
from discovery.simulation import Simulation, control_arms, resampled, simulate

SPACES = ("Ca-Mg-Sr-Ge-Si-Sn", "K-Li-Na-S-Se-Te", "Al-Ga-In-Ni-Pd-Pt")
"""Tetrelides, chalcogenides and intermetallics, three elements of a group with three of another each."""
SETTINGS = (
    "oracle/reference=chgnet",
    "campaign.rounds=5",
    "campaign.targets_per_round=8",
    "campaign.samples_per_target=8",
    "campaign.reference_calls_per_round=8",
    "campaign.budget.reference_calls=40",
    "campaign.budget.wall_hours=null",
)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the budget: after each round."""


def run(space: str, seeds: range, work: Path, workers: int) -> Simulation:
    """Run both arms of one chemical space."""
    out = work / space
    config = compose("quickstart", [*SETTINGS, f"campaign.chemical_space={space}", f"run_dir='{out.resolve()}'"])
    arms = {"fine-tuned": config, "frozen": control_arms(config)["frozen"]}
    return simulate(arms, seeds, out, workers=workers, progress=lambda *state: print(space, *state, flush=True))


def summarise(results: dict[str, Simulation]) -> dict[str, Any]:
    """Return each space's summary, and how many more formulas fine-tuned campaigns found, over all spaces and seeds."""
    advantages = {space: one.advantages("fine-tuned", "frozen", 1.0) for space, one in results.items()}
    pairs = np.array([more for of_space in advantages.values() for more in of_space.values()])
    means = resampled(pairs)
    return {
        "more_found_by_fine_tuning": {
            "median": float(np.median(pairs)),
            "mean": float(pairs.mean()),
            "mean_95": np.quantile(means, (0.025, 0.975)).tolist(),
            "by_space_and_seed": advantages,
        },
        "spaces": {space: one.summary("frozen", SHARES) for space, one in results.items()},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=SPACES)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fine_tuning.json"))
    args = parser.parse_args()
    results = {}
    for space in args.spaces:
        results[space] = run(space, range(args.seeds), args.work, args.workers)
        write_record(args.out, summarise(results), seed=0, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
