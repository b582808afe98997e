"""What agents find per reference calculation in campaigns replayed on Materials Project data.

In each chemical system the phases of the database hide among decoys made by ion substitution. CHGNet relaxes whatever
an agent asks for, really and once for each crystal; the database answers as reference oracle, and a candidate that is
not in it counts as a calculation that found nothing. Run as::

    python benchmarks/agents.py DATABASE.csv.gz [DATABASE.csv.gz ...] --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from record import write_record

from agents.compositions import stoichiometries
from discovery.config import CampaignConfig, compose
from discovery.crystal import Crystal
from discovery.references import reference_crystals
from discovery.simulation import Simulation, read_database, replay
from discovery.types import Target

SYSTEMS = ("In-Li-Mg", "Li-Rh-Zn", "Al-Fe-Ni", "Au-Cd-La", "Dy-Ho-In", "Pt-Sc-Zn")
"""Ternary systems with five or six stable phases in cells of at most five atoms, no two of them with two common
elements; no setting of an agent was chosen on them."""
AGENTS = ("random", "greedy", "ucb", "thompson")
SHARES = (0.1, 0.25, 0.5, 1.0)
SETTINGS = (
    "campaign.max_atoms=5",
    "campaign.samples_per_target=3",
    "campaign.rounds=10",
    "campaign.targets_per_round=4",
    "campaign.budget.reference_calls=20",
    "generator.decoys=2",
    "oracle.screening.oracle.max_steps=100",
)


def settings(work: Path) -> list[str]:
    """Return the settings of all campaigns."""
    return [*SETTINGS, f"oracle.screening.path='{(work / 'evaluations.sqlite').resolve()}'"]


def warm(systems: list[str], databases: list[Path], work: Path, workers: int) -> int:
    """Screen whatever any agent may ask for, side by side, so that campaigns need only read it; return how many."""
    jobs: list[tuple[dict[str, Any], list[Crystal]]] = []
    for system in systems:
        out = work / system
        given = [f"campaign.chemical_space={system}", f"run_dir='{out.resolve()}'", *settings(work)]
        config = compose("replay", given)
        read_database(databases, config.campaign.elements).write(out / "database.csv")
        generator = config.generator.create()
        n_most = config.campaign.max_atoms
        cells = [
            s.cell(units)
            for s in stoichiometries(config.campaign.elements, n_most)
            for units in range(1, n_most // s.n_atoms + 1)
        ]
        crystals = [reference.crystal for reference in reference_crystals(config.campaign.elements, config.references)]
        for cell in cells:
            samples = generator.sample([Target(100, composition=cell)], seed=0)
            crystals += dict.fromkeys(sample.crystal for sample in samples if sample.crystal is not None)
        data = config.model_dump(mode="json")
        jobs += [(data, crystals[start : start + 8]) for start in range(0, len(crystals), 8)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for number, _ in enumerate(pool.map(_screen, jobs), start=1):
            if number % 20 == 0:
                print(f"{number} of {len(jobs)} batches", flush=True)
    return sum(len(crystals) for _, crystals in jobs)


def _screen(job: tuple[dict[str, Any], list[Crystal]]) -> None:
    _oracle(json.dumps(job[0])).evaluate(job[1])


@cache
def _oracle(config: str) -> Any:
    return CampaignConfig.model_validate_json(config).oracle.screening.create()


def summarise(results: dict[str, Simulation]) -> dict[str, Any]:
    """Return each system's summary, and the median acceleration over all systems."""
    arms = [arm for arm in next(iter(results.values())).arms if arm != "random"]
    medians = {
        arm: {
            f"{share:g}": median(result.acceleration(arm, "random", share).value for result in results.values())
            for share in SHARES
        }
        for arm in arms
    }
    return {
        "median_acceleration": medians,
        "systems": {system: result.summary("random", SHARES) for system, result in results.items()},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("databases", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--agents", nargs="+", default=AGENTS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warm-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/agents.json"))
    args = parser.parse_args()
    print(f"{warm(args.systems, args.databases, args.work, args.workers)} crystals screened", flush=True)
    if args.warm_only:
        return
    results = {}
    for system in args.systems:
        results[system] = replay(
            "replay",
            [f"campaign.chemical_space={system}", *settings(args.work)],
            out=args.work / system,
            databases=args.databases,
            agents=args.agents,
            seeds=range(args.seeds),
            workers=args.workers,
        )
        (args.work / system / "simulation.json").write_text(json.dumps(results[system].to_dict()))
        print(system, {arm: results[system].found(arm).mean(axis=0)[-1] for arm in results[system].arms}, flush=True)
    command = " ".join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    write_record(args.out, summarise(results), seed=0, command=command)


if __name__ == "__main__":
    main()
