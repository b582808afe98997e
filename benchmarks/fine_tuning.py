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
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from record import write_record

from discovery.config import compose
from discovery.evaluation.results import statistic
from discovery.runfolder import RunFolder
from discovery.simulation import Simulation, control_arms, simulate

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

Hits = Mapping[str, np.ndarray]
"""Arm → share of hits among the samples of each round, shape (seeds, rounds); NaN in a round without samples."""


def run(space: str, args: argparse.Namespace) -> tuple[Simulation, Hits]:
    """Run both arms of one chemical space and count."""
    out, seeds = args.work / space, range(args.seeds)
    own = [f"campaign.chemical_space={space}", f"run_dir='{out.resolve()}'"]
    config = compose("quickstart", [*SETTINGS, *own, *args.settings])
    arms = dict(zip(ARMS, (config, control_arms(config)["frozen"]), strict=True))
    found = simulate(arms, seeds, out, workers=args.workers, progress=lambda *state: print(space, *state, flush=True))
    return found, hits({arm: [out / arm / f"{seed:03d}" for seed in seeds] for arm in arms}, config.campaign.rounds)


def hits(runs: Mapping[str, Sequence[Path]], rounds: int) -> Hits:
    """Return the shares of hits of each arm's campaigns."""
    samples = [sample for arm in runs for seed, run in enumerate(runs[arm]) for sample in samples_of(run, arm, seed)]
    lowest: dict[str, float] = defaultdict(lambda: inf)
    for *_, formula, energy in samples:
        lowest[formula] = min(lowest[formula], energy)
    counts = {arm: np.zeros((2, len(runs[arm]), rounds)) for arm in runs}
    for arm, seed, round_, formula, energy in samples:
        counts[arm][:, seed, round_] += energy < lowest[formula] + HIT, 1
    with np.errstate(invalid="ignore"):
        return {arm: hit / sampled for arm, (hit, sampled) in counts.items()}


def samples_of(run: Path, arm: str, seed: int) -> list[tuple[str, int, int, str, float]]:
    """Return arm, seed, round, formula and formation energy (eV/atom, after relaxation) of whatever was sampled."""
    store = RunFolder(run).read_store()
    energies = ((one, one.screening_formation_energy_per_atom) for one in store.candidates())
    samples = [(arm, seed, one.round, one.crystal.formula, inf if e is None else e) for one, e in energies]
    store.close()
    return samples


def compared(more: np.ndarray) -> dict[str, Any]:
    """Return median and mean, with its 95 % bootstrap interval, of differences between the arms."""
    mean = statistic("mean", more)
    return {"median": float(np.median(more)), "mean": mean.value, "mean_95": mean.interval}


def summarise(results: Mapping[str, tuple[Simulation, Hits]]) -> dict[str, Any]:
    """Return each space's summary, and how much more fine-tuned campaigns found and hit, over all spaces and seeds."""
    more = {space: found.advantages(*ARMS, 1.0) for space, (found, _) in results.items()}
    later = {arm: np.concatenate([np.nanmean(own[arm][:, 1:], axis=1) for _, own in results.values()]) for arm in ARMS}
    return {
        "more_formulas": compared(np.array([one for of_space in more.values() for one in of_space.values()])),
        "more_hits": compared(later[ARMS[0]] - later[ARMS[1]]),
        "hits": {arm: float(shares.mean()) for arm, shares in later.items()},
        "spaces": {
            space: {
                **found.summary(ARMS[1], SHARES),
                "more_formulas": more[space],
                "hits_by_round": {arm: np.nanmean(own[arm], axis=0).tolist() for arm in ARMS},
            }
            for space, (found, own) in results.items()
        },
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=SPACES)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--settings", nargs="*", default=[], help="of all campaigns, such as campaign.max_atoms=4")
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fine_tuning.json"))
    args = parser.parse_args()
    results = {}
    for space in args.spaces:
        results[space] = run(space, args)
        write_record(args.out, summarise(results), seed=0, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
