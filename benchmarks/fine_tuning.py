"""Does fine-tuning pay? Campaigns whose generator learns beside the same campaigns with a frozen one, seed by seed.

Each chemical space is a family in which what is found in one system may teach the generator something about the next
one. CHGNet screens and is also the reference oracle, so that a campaign takes minutes. Counted are

- formulas of which a campaign has found a phase that is stable on the hull of all that any campaign of the space found;
- hits, which say more of the generator: samples of the rounds after the first that relax to the lowest energy that any
  campaign found for their composition. Invalid samples and duplicates are misses.

Run as::

    python benchmarks/fine_tuning.py --seeds 4 --work runs/fine_tuning

The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from record import write_record

from discovery.config import compose
from discovery.runfolder import RunFolder
from discovery.simulation import Simulation, control_arms, resampled, simulate

ARMS = ("fine-tuned", "frozen")
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

HIT = 0.005
"""eV/atom above the lowest energy that any campaign has found for a composition."""

Hits = Mapping[tuple[str, int], list[float]]
"""Arm and seed → share of hits, round after round."""


def run(space: str, seeds: range, work: Path, workers: int) -> tuple[Simulation, Hits]:
    """Run both arms of one chemical space and count."""
    out = work / space
    config = compose("quickstart", [*SETTINGS, f"campaign.chemical_space={space}", f"run_dir='{out.resolve()}'"])
    arms = dict(zip(ARMS, (config, control_arms(config)["frozen"]), strict=True))
    found = simulate(arms, seeds, out, workers=workers, progress=lambda *state: print(space, *state, flush=True))
    return found, hits({(arm, seed): out / arm / f"{seed:03d}" for arm in arms for seed in seeds})


def hits(runs: Mapping[tuple[str, int], Path]) -> Hits:
    """Return, for each campaign, the share of hits among the samples of each round."""
    sampled: dict[tuple[str, int], list[tuple[int, str, float]]] = {}
    for name, folder in runs.items():
        store = RunFolder(folder).read_store()
        energies = ((one, one.screening_formation_energy_per_atom) for one in store.candidates())
        sampled[name] = [(one.round, one.crystal.formula, inf if e is None else e) for one, e in energies]
        store.close()
    lowest: dict[str, float] = defaultdict(lambda: inf)
    for _, formula, energy in chain.from_iterable(sampled.values()):
        lowest[formula] = min(lowest[formula], energy)
    shares = {}
    for name, samples in sampled.items():
        by_round: dict[int, list[bool]] = defaultdict(list)
        for round_, formula, energy in samples:
            by_round[round_].append(energy < lowest[formula] + HIT)
        shares[name] = [mean(by_round[round_]) for round_ in sorted(by_round)]
    return shares


def compared(pairs: Sequence[float]) -> dict[str, Any]:
    """Return median and mean, with its 95 % bootstrap interval, of differences between the arms."""
    values = np.array(pairs)
    interval = np.quantile(resampled(values), (0.025, 0.975)).tolist()
    return {"median": float(np.median(values)), "mean": float(values.mean()), "mean_95": interval}


def summarise(results: Mapping[str, tuple[Simulation, Hits]]) -> dict[str, Any]:
    """Return each space's summary, and how much more fine-tuned campaigns found and hit, over all spaces and seeds."""
    more = {space: found.advantages("fine-tuned", "frozen", 1.0) for space, (found, _) in results.items()}
    later = {
        space: {arm: [mean(shares[1:]) for (own, _), shares in of_space.items() if own == arm] for arm in ARMS}
        for space, (_, of_space) in results.items()
    }
    better = [a - b for arms in later.values() for a, b in zip(*arms.values(), strict=True)]
    return {
        "more_formulas": {**compared([one for space in more.values() for one in space.values()]), "pairs": more},
        "more_hits": compared(better),
        "hits": {arm: mean(chain.from_iterable(arms[arm] for arms in later.values())) for arm in ARMS},
        "spaces": {
            space: {
                **found.summary("frozen", SHARES),
                "hits_by_round": {
                    arm: np.mean([shares for (own, _), shares in of_space.items() if own == arm], axis=0).tolist()
                    for arm in ARMS
                },
            }
            for space, (found, of_space) in results.items()
        },
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
