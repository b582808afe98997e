"""Does fine-tuning pay? The quickstart's campaign with a generator that learns and with a frozen one, seed by seed.

Both arms have the same seeds, system, budget and oracles; CHGNet is also the reference oracle, so that a campaign takes
minutes. The shipped checkpoint has seen no compound of Mg-Si-Ge. Counted are phases that are stable on the campaign's
last hull, after each share of the budget. Campaigns that are finished in the folder are not repeated. Run as::

    python benchmarks/fine_tuning.py --seeds 8 --work runs/fine_tuning
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from record import write_record

from discovery.dashboard import views
from discovery.dashboard.source import Source
from discovery.errors import DiscoveryError
from discovery.status import read_status

ARMS = {"fine-tuned": "true", "frozen": "false"}
N_RESAMPLES = 10_000


def run(folder: Path, seed: int, learn: str) -> None:
    """Run one campaign to its end, unless it is there."""
    try:
        if read_status(folder).state == "finished":
            return
    except DiscoveryError:
        pass
    command = [sys.executable, "-m", "discovery", "launch", "quickstart", "oracle/reference=chgnet"]
    settings = ["executor.name=in_process", "campaign.budget.wall_hours=null", f"campaign.learn={learn}"]
    subprocess.run([*command, *settings, f"seed={seed}", f"run_dir={folder}"], check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path) -> dict[str, Any]:
    """Return what a campaign found, and after how many reference calculations."""
    source = Source.open(folder)
    growth = views.growth(source)
    status = read_status(folder)
    source.close()
    return {
        "reference_calls": status.budget.spent["reference_calls"],
        "found": sorted(f"{one.phase.formula} {one.spacegroup}" for one in status.stable),
        "found_after_calls": [[step.reference_calls, step.discovered] for step in growth],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fine_tuning.json"))
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with ThreadPoolExecutor(args.workers) as pool:
        jobs = [(args.work / arm / str(seed), seed, learn) for seed in seeds for arm, learn in ARMS.items()]
        list(pool.map(lambda job: run(*job), jobs))
    arms = {arm: {seed: measured(args.work / arm / str(seed)) for seed in seeds} for arm in ARMS}
    counts = {arm: np.array([len(one["found"]) for one in found.values()]) for arm, found in arms.items()}
    difference = counts["fine-tuned"] - counts["frozen"]
    rng = np.random.default_rng(0)
    resampled = difference[rng.integers(len(difference), size=(N_RESAMPLES, len(difference)))].mean(axis=1)
    results = {
        "mean_found": {arm: mean(found.tolist()) for arm, found in counts.items()},
        "mean_difference": float(difference.mean()),
        "interval_95": np.quantile(resampled, (0.025, 0.975)).tolist(),
        "campaigns": arms,
    }
    write_record(args.out, results, seed=args.first_seed, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
