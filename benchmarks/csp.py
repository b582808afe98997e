"""Crystal structure prediction: match rate and RMSE of generators on a test file, beside what chance gives.

Three rows show chance: random sites in a random cell of the right volume, `random_search`, and the true crystal with
its species shuffled over its sites. Run as::

    python benchmarks/csp.py ../shared/data/perov_5/test.csv.gz --checkpoint checkpoint.safetensors --limit 500
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from record import write_record

from discovery.crystal import Crystal
from discovery.evaluation.csp import headline, predict
from discovery.generation import create_generator
from discovery.sets import read_set
from discovery.types import Sample, Target


class Chance:
    """Makes crystals of the true ones, one after the other; a generator that knows the answers and ignores them."""

    def __init__(self, truths: Iterable[Crystal], make: Callable[[Crystal, np.random.Generator], Crystal]) -> None:
        self.truths = iter(truths)
        self.make = make

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples."""
        rng = np.random.default_rng(seed)
        return [
            Sample(index, self.make(truth, rng))
            for index, (target, truth) in enumerate(zip(targets, self.truths, strict=False))
            for _ in range(target.n_samples)
        ]


def right_volume(truth: Crystal, rng: np.random.Generator) -> Crystal:
    """Return uniform sites in a cell of the true volume, lengths within a factor 2 and angles of 60–120°."""
    from pymatgen.core import Lattice

    while True:
        cell = Lattice.from_parameters(*rng.uniform(1, 2, 3), *rng.uniform(60, 120, 3))
        if np.isfinite(cell.volume) and cell.volume > 0.1:
            break
    return Crystal(cell.scale(truth.volume).matrix, rng.random((len(truth), 3)), truth.atomic_numbers)


def shuffled(truth: Crystal, rng: np.random.Generator) -> Crystal:
    """Return the true lattice and sites with the species shuffled."""
    return Crystal(truth.lattice, truth.frac_coords, rng.permutation(truth.atomic_numbers))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--settings", nargs="*", default=[], help="of unimat, such as steps=50")
    parser.add_argument("--rows", nargs="*", help="names of rows, all by default")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    truth = read_set(args.data, limit=args.limit)
    truths = truth.crystals.values()
    unimat = create_generator("unimat", args.checkpoint, args.settings)
    generators = {
        "unimat": unimat,
        "random sites, right volume": Chance(truths, right_volume),
        "random_search": create_generator("random_search", None, [f"max_atoms={max(map(len, truths))}"]),
        "true lattice, shuffled sites": Chance(truths, shuffled),
    }
    rows = {}
    for name in args.rows or generators:
        generator = generators[name]
        rows[name] = headline(predict(generator, truth, samples=args.samples, seed=args.seed))
        print(name, rows[name]["match_rate"], rows[name]["rmse"], file=sys.stderr, flush=True)
    checkpoint = unimat.checkpoint
    results = {
        "data": f"{args.data.parent.name}/{args.data.name}",
        "checkpoint_sha256": checkpoint.sha256 if checkpoint is not None else None,
        "settings": args.settings,
        "rows": rows,
    }
    write_record(args.out, results, seed=args.seed, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
