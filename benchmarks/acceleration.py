"""What agents find per reference calculation in campaigns replayed on Materials Project data.

In each chemical system the phases of the database hide among decoys made by ion substitution. CHGNet screens whatever
an agent asks for, really and once for each crystal: by a single energy, or relaxed with ``--relax``, which brings the
decoys down. The database answers as reference oracle; a candidate that is not in it counts as a calculation that found
nothing. With ``--reference gpaw_cached`` GPAW computes the candidates instead, once for each crystal, and found is what
is on the hull of all that was computed. Run as::

    python benchmarks/acceleration.py DATABASE.csv.gz [DATABASE.csv.gz ...] --work FOLDER

The same command goes on where it was interrupted; the record holds the systems that are finished.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from record import write_record

from agents.compositions import stoichiometries
from discovery.config import CampaignConfig, compose
from discovery.crystal import Crystal
from discovery.processes import process_pool
from discovery.references import reference_crystals
from discovery.simulation import Simulation, read_database, replay
from discovery.types import Target

SYSTEMS = ("In-Li-Mg", "Bi-Ca-Pd", "Ca-Ge-Ni", "Cu-Dy-Ga", "Li-Rh-Zn", "Cu-O-Ti")
"""Ternary systems with five to seven stable phases in cells of at most six atoms, no two with two common elements; no
setting of an agent was chosen on them."""
AGENTS = ("random", "greedy", "ucb", "thompson")
RECORDED = "replay"
"""The reference oracle that knows the database's energies."""
SHARES = (0.1, 0.25, 0.5, 1.0)
SETTINGS = (
    "campaign.max_atoms=6",
    "campaign.samples_per_target=3",
    "campaign.rounds=10",
    "campaign.targets_per_round=4",
    "generator.decoys=3",
)


def settings(system: str, args: argparse.Namespace) -> list[str]:
    """Return the settings of all campaigns in a chemical system."""
    answers = f"path='{(args.work / 'evaluations.sqlite').resolve()}'"
    reference = [f"oracle/reference={args.reference}"]
    if args.reference != RECORDED:
        reference.append(f"oracle.reference.{answers}")
    return [
        f"campaign.chemical_space={system}",
        f"campaign.budget.reference_calls={args.calls}",
        *SETTINGS,
        f"oracle.screening.{answers}",
        f"oracle.screening.oracle.relax={str(args.relax).lower()}",
        *reference,
        *args.settings,
    ]


def warm(system: str, args: argparse.Namespace) -> int:
    """Screen whatever any agent may ask for, side by side, so that campaigns need only read it; return how many."""
    out = args.work / system
    config = compose("replay", [f"run_dir='{out.resolve()}'", *settings(system, args)])
    elements, n_most = config.campaign.elements, config.campaign.max_atoms
    read_database(args.databases, elements).write(out / "database.csv")
    generator = config.generator.create()
    cells = [s.cell(units) for s in stoichiometries(elements, n_most) for units in range(1, n_most // s.n_atoms + 1)]
    crystals = [reference.crystal for reference in reference_crystals(elements, config.references)]
    for cell in cells:
        samples = generator.sample([Target(100, composition=cell)], seed=0)
        crystals += dict.fromkeys(sample.crystal for sample in samples if sample.crystal is not None)
    data = config.model_dump_json()
    jobs = [(data, crystals[start : start + 8]) for start in range(0, len(crystals), 8)]
    with process_pool(args.workers) as pool:
        list(pool.map(_screen, jobs))
    return len(crystals)


def _screen(job: tuple[str, list[Crystal]]) -> None:
    config, crystals = job
    _oracle(config).evaluate(crystals)


@cache
def _oracle(config: str) -> Any:
    return CampaignConfig.model_validate_json(config).oracle.screening.create()


def summarise(results: dict[str, Simulation]) -> dict[str, Any]:
    """Return each system's summary, and the median acceleration over all systems."""
    arms = [arm for arm in next(iter(results.values())).arms if arm != "random"]
    medians = {
        arm: {
            f"{share:g}": _finite(median(one.acceleration(arm, "random", share).value for one in results.values()))
            for share in SHARES
        }
        for arm in arms
    }
    return {
        "median_acceleration": medians,
        "systems": {system: result.summary("random", SHARES) for system, result in results.items()},
    }


def _finite(value: float) -> float | None:
    """Return `value`; None, as in the systems' summaries, stands for infinity."""
    return value if math.isfinite(value) else None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("databases", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--agents", nargs="+", default=AGENTS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--calls", type=int, default=20, help="budget of reference calculations")
    parser.add_argument("--reference", default=RECORDED, help="reference oracle, a choice of configs/oracle")
    parser.add_argument("--settings", nargs="*", default=[], help="of all campaigns, such as campaign.max_atoms=4")
    parser.add_argument("--relax", action="store_true", help="screening relaxes: about a second for each crystal")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/acceleration.json"))
    args = parser.parse_args()
    command = " ".join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    results = {}
    for system in args.systems:
        print(system, warm(system, args), "crystals", flush=True)
        results[system] = replay(
            "replay",
            settings(system, args),
            out=args.work / system,
            databases=args.databases if args.reference == RECORDED else (),
            agents=args.agents,
            seeds=range(args.seeds),
            workers=args.workers,
        )
        (args.work / system / "simulation.json").write_text(json.dumps(results[system].to_dict()))
        at = [results[system].calls(share) for share in SHARES]
        found = {arm: results[system].found(arm).mean(axis=0)[at].tolist() for arm in results[system].arms}
        print(system, found, flush=True)
        write_record(args.out, summarise(results), seed=0, command=command)


if __name__ == "__main__":
    main()
