"""Generators at equal budget: UniMat, random search and ion substitution, relaxed by CHGNet.

The compositions are those of stable crystals of the test split of an MP-20 subset, which UniMat was not trained on. All
entries of the split, with formation energies of the Materials Project, are the reference hull and the known crystals:
a hull of few entries, on which more is stable than in truth. Run as::

    python benchmarks/compare.py ../shared/data/mp_20_bt/test.csv.gz
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from record import write_record

from discovery.evaluation.compare import compare
from discovery.evaluation.output import progress_bars, show_comparison
from discovery.evaluation.stability import Budget
from discovery.generation import create_generator, whole_atoms
from discovery.sets import read_set
from discovery.types import Target
from oracles.chgnet import CHGNetOracle

COMPOSITIONS = ["Sr1O1", "K2Te1", "Li3N1", "Zn1Ni1", "Mg1Tl1F3", "Sr2Co1N2"]
GENERATORS = ("unimat", "random_search", "substitution")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hull", type=Path)
    parser.add_argument("--compositions", nargs="+", default=COMPOSITIONS)
    parser.add_argument(
        "--generators", nargs="+", default=GENERATORS, help="names, each with its settings: 'unimat anti_annealing=8'"
    )
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compare.json"))
    args = parser.parse_args()
    targets = [Target(args.samples, whole_atoms(formula, "composition")) for formula in args.compositions]
    entries = read_set(args.hull)
    with progress_bars() as bars:
        comparison = compare(
            {words: create_generator(words.split()[0], None, words.split()[1:]) for words in args.generators},
            targets,
            entries,
            entries,
            CHGNetOracle(CHGNetOracle.Config()),
            budget=Budget(relaxations=args.samples * len(targets)),
            seed=args.seed,
            progress=bars,
        )
    show_comparison(comparison, page=args.html)
    write_record(
        args.out,
        {
            "compositions": args.compositions,
            "samples_of_each": args.samples,
            "protocol_hash": comparison.protocol_hash,
            "hull_sha256": entries.sha256,
            "generators": {
                name: {
                    "metrics": {metric.name: [metric.value, metric.interval, metric.n] for metric in result.metrics},
                    "outcomes": dict(result.losses.most_common()),
                    "seconds": dict(result.seconds),
                    "gpu_seconds": dict(result.gpu_seconds),
                    "cost": [asdict(cost) for cost in result.costs],
                }
                for name, result in comparison.results.items()
            },
        },
        seed=args.seed,
        command=" ".join(sys.argv),
    )


if __name__ == "__main__":
    main()
