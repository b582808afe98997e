"""Agreement and speed of finding duplicates, against pymatgen's StructureMatcher on every pair.

Real crystals of the CSV files given, all with the elements of one composition each: every crystal of an anonymous
formula such as ABC3 is decorated with the same elements, which gives large groups of one composition. A share of them
is repeated in another cell with displaced atoms. Run as::

    python benchmarks/matching.py ../shared/data/mp_20_bt/*.csv.gz
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from record import write_record

from discovery.crystal import Crystal
from discovery.matching import Matcher, duplicates
from discovery.sets import read_set

DECORATION = ("Ca", "Ti", "O", "N", "F")
TRANSFORMATIONS = ([[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[2, 0, 0], [0, 1, 0], [0, 0, 1]])


def decorated(paths: list[Path], n_crystals: int, share_repeated: float, seed: int) -> dict[str, Crystal]:
    """Crystals in few large groups of one composition."""
    rng = np.random.default_rng(seed)
    found: dict[str, Crystal] = {}
    members = [member for path in paths for member in read_set(path).members if member.crystal is not None]
    for number in rng.permutation(len(members)):
        structure = members[number].crystal.to_structure()
        elements = sorted(structure.composition, key=lambda element: (structure.composition[element], element.X))
        if len(elements) > len(DECORATION):
            continue
        structure.replace_species({e.symbol: new for e, new in zip(elements, DECORATION, strict=False)})
        found[members[number].id] = Crystal.from_structure(structure)
        if rng.random() < share_repeated:
            structure.make_supercell(TRANSFORMATIONS[rng.integers(len(TRANSFORMATIONS))])
            structure.perturb(0.05, seed=int(rng.integers(2**31)))
            found[f"{members[number].id}-again"] = Crystal.from_structure(structure)
        if len(found) >= n_crystals:
            break
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--crystals", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/matching.json"))
    args = parser.parse_args()
    crystals = decorated(args.paths, args.crystals, 0.1, args.seed)

    start = time.process_time()
    repeated = duplicates(crystals, Matcher())
    ours = time.process_time() - start

    rng = np.random.default_rng(args.seed)
    groups = defaultdict(list)
    for id_, crystal in crystals.items():
        groups[crystal.formula].append(id_)
    sizes = Counter({formula: len(ids) for formula, ids in groups.items()})
    weights = np.array([len(ids) * (len(ids) - 1) / 2 for ids in groups.values()])
    n_same_composition = int(weights.sum())
    pairs = []
    while len(pairs) < args.pairs:
        ids = list(groups.values())[rng.choice(len(groups), p=weights / weights.sum())]
        pairs.append(tuple(rng.choice(ids, 2, replace=False)))
    structures = {id_: crystals[id_].to_structure() for pair in pairs for id_ in pair}
    matcher, pymatgen = Matcher(), StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
    start = time.process_time()
    found = [matcher.same(crystals[a], crystals[b]) for a, b in pairs]
    ours_pairs = time.process_time() - start
    start = time.process_time()
    expected = [pymatgen.fit(structures[a], structures[b]) for a, b in pairs]
    theirs_pairs = time.process_time() - start

    ids = list(crystals)
    mixed = [tuple(rng.choice(ids, 2, replace=False)) for _ in range(300)]
    others = [(crystals[a].to_structure(), crystals[b].to_structure()) for a, b in mixed]
    start = time.process_time()
    for a, b in others:
        pymatgen.fit(a, b)
    per_pair = (time.process_time() - start) / len(others)
    n_pairs = len(ids) * (len(ids) - 1) // 2
    same_composition = theirs_pairs / len(pairs) * n_same_composition
    write_record(
        args.out,
        {
            "crystals": len(crystals),
            "duplicates": len(repeated),
            "compositions": len(groups),
            "largest_groups": dict(sizes.most_common(3)),
            "pairs_compared": len(pairs),
            "pairs_that_match": int(sum(expected)),
            "disagreements": int(sum(a != b for a, b in zip(found, expected, strict=True))),
            "cpu_seconds_for_pairs": ours_pairs,
            "pymatgen_cpu_seconds_for_pairs": theirs_pairs,
            "cpu_seconds_for_duplicates": ours,
            "pymatgen_cpu_seconds_all_pairs_estimated": per_pair * n_pairs,
            "pymatgen_cpu_seconds_pairs_of_one_composition_estimated": same_composition,
            "speedup_to_all_pairs": per_pair * n_pairs / ours,
            "speedup_to_pairs_of_one_composition": same_composition / ours,
        },
        seed=args.seed,
        command=" ".join(sys.argv),
    )


if __name__ == "__main__":
    main()
