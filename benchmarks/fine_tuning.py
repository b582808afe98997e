"""Does fine-tuning pay? The quickstart's campaign with a generator that learns and with a frozen one, seed by seed.

Both arms have the same seeds, system, budget and oracles; CHGNet is also the reference oracle, so that a campaign takes
minutes. The shipped checkpoint has seen no compound of Mg-Si-Ge. Counted are the formulas of which a campaign has found
a phase that is stable on the hull of all that any of the campaigns has found. Finished campaigns are not repeated. Run
as::

    python benchmarks/fine_tuning.py --seeds 8 --work runs/fine_tuning
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from record import write_record

from discovery.errors import DiscoveryError
from discovery.hull import Hull, Phase
from discovery.runfolder import RunFolder
from discovery.status import read_status

ARMS = {"fine-tuned": "true", "frozen": "false"}
N_RESAMPLES = 10_000
THRESHOLD = 0.001
"""Largest distance from the hull of a stable phase, eV/atom, as in the campaigns."""


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


def measured(folders: Mapping[tuple[str, int], Path]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what each campaign found that is stable on the hull of all campaigns together."""
    hulls, calls = {}, {}
    for name, folder in folders.items():
        store = RunFolder(folder).read_store()
        hulls[name] = store.hull("reference")
        store.close()
        calls[name] = read_status(folder).budget.spent["reference_calls"]
    own = {name: [phase for phase in hull.phases if phase.origin == "discovered"] for name, hull in hulls.items()}
    first = next(iter(hulls.values()))
    found = [replace(phase, id=f"{name} {phase.id}") for name, phases in own.items() for phase in phases]
    everything = Hull(first.energy_scale, (*(one for one in first.phases if one.origin == "reference"), *found))
    return {
        name: {
            "reference_calls": calls[name],
            "stable": sorted({phase.formula for phase in phases if _is_stable(everything, phase)}),
        }
        for name, phases in own.items()
    }


def _is_stable(hull: Hull, phase: Phase) -> bool:
    placed = hull.decompose(phase.composition, phase.energy_per_atom)
    return placed is not None and len(phase.composition) > 1 and placed.e_above_hull <= THRESHOLD


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
    found = measured({(arm, seed): args.work / arm / str(seed) for arm in ARMS for seed in seeds})
    counts = {arm: np.array([len(found[arm, seed]["stable"]) for seed in seeds]) for arm in ARMS}
    difference = counts["fine-tuned"] - counts["frozen"]
    rng = np.random.default_rng(0)
    resampled = difference[rng.integers(len(difference), size=(N_RESAMPLES, len(difference)))].mean(axis=1)
    results = {
        "mean_stable": {arm: mean(own.tolist()) for arm, own in counts.items()},
        "mean_difference": float(difference.mean()),
        "interval_95": np.quantile(resampled, (0.025, 0.975)).tolist(),
        "campaigns": {arm: {seed: found[arm, seed] for seed in seeds} for arm in ARMS},
    }
    write_record(args.out, results, seed=args.first_seed, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
