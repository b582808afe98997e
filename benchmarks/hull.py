"""Speed and accuracy of the hull against pymatgen's PhaseDiagram, on 10⁵ reference entries and 10⁴ candidates.

Formation energies follow a random pair model with noise, over 40 elements; candidates come in 10³ chemical systems of
two to four elements. pymatgen builds one PhaseDiagram per chemical system, of entries picked by its EntrySet, for as
many systems as asked for. CPU seconds are compared, so that other processes do not matter. Run as::

    python benchmarks/hull.py --pymatgen-systems 100
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element
from pymatgen.entries.computed_entries import ComputedEntry
from pymatgen.entries.entry_tools import EntrySet
from record import write_record

from discovery.hull import Hull, Phase
from discovery.types import EnergyScale

SCALE = EnergyScale("pair model", "1", "none")
ELEMENTS = [Element.from_Z(z).symbol for z in (*range(3, 10), *range(11, 18), *range(19, 36), *range(37, 46))]
N_PHASES = {2: 15_000, 3: 50_000, 4: 35_000 - len(ELEMENTS)}


def phases(rng: np.random.Generator, n_phases: dict[int, int], prefix: str, systems: list[tuple[str, ...]] | None):
    """Phases of random composition; each system of `systems` gets the same number, if given."""
    position = {element: index for index, element in enumerate(ELEMENTS)}
    pair = np.random.default_rng(1).normal(-1.0, 1.0, (len(ELEMENTS), len(ELEMENTS)))
    found = []
    for n_elements, n in n_phases.items():
        of_size = [system for system in systems or [] if len(system) == n_elements]
        for index in range(n):
            own = of_size[index % len(of_size)] if of_size else rng.choice(ELEMENTS, n_elements, replace=False)
            counts = rng.integers(1, 7, n_elements)
            x = counts / counts.sum()
            columns = [position[element] for element in own]
            energy = float(x @ pair[np.ix_(columns, columns)] @ x - x**2 @ pair.diagonal()[columns])
            energy += float(rng.normal(0.0, 0.1))
            composition = {str(element): int(count) for element, count in zip(own, counts, strict=True)}
            found.append(Phase(f"{prefix}{n_elements}-{index}", composition, energy * int(counts.sum()), SCALE))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", type=int, default=1000)
    parser.add_argument("--pymatgen-systems", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hull.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    reference = [Phase(f"el-{element}", {element: 1}, 0.0, SCALE) for element in ELEMENTS]
    reference += phases(rng, N_PHASES, "ref", None)
    systems = [tuple(rng.choice(ELEMENTS, rng.integers(2, 5), replace=False).tolist()) for _ in range(args.systems)]
    sizes = [len(system) for system in systems]
    candidates = phases(rng, {n: 10 * sizes.count(n) for n in (2, 3, 4)}, "cand", systems)
    by_system: dict[frozenset[str], list[Phase]] = defaultdict(list)
    for candidate in candidates:
        by_system[frozenset(candidate.composition)].append(candidate)
    order = list(by_system)
    rng.shuffle(order)
    compared = order[: args.pymatgen_systems]

    start = time.process_time()
    hull = Hull(SCALE, tuple(reference))
    build = time.process_time() - start
    ours: dict[str, float] = {}

    def decompose(some: list[frozenset[str]]) -> float:
        start = time.process_time()
        for system in some:
            for phase in by_system[system]:
                placed = hull.decompose(phase.composition, phase.energy_per_atom)
                assert placed is not None
                ours[phase.id] = placed.decomposition_energy
        return time.process_time() - start

    seconds_compared = decompose(compared)
    seconds_all = seconds_compared + decompose(order[args.pymatgen_systems :])

    entries = EntrySet([ComputedEntry(Composition(phase.composition), phase.energy) for phase in reference])
    largest, theirs, picking = 0.0, 0.0, 0.0
    for system in compared:
        queries = {phase.id: PDEntry(Composition(phase.composition), phase.energy) for phase in by_system[system]}
        start = time.process_time()
        own = entries.get_subset_in_chemsys(sorted(system))
        picking += time.process_time() - start
        start = time.process_time()
        diagram = PhaseDiagram(own)
        energies = [
            (id_, diagram.get_decomp_and_e_above_hull(entry, allow_negative=True, check_stable=False)[1])
            for id_, entry in queries.items()
        ]
        theirs += time.process_time() - start
        largest = max(largest, *(abs((energy or 0.0) - ours[id_]) for id_, energy in energies))

    start = time.process_time()
    hull.add([Phase("new", {"Li": 1, "O": 1}, -8.0, SCALE)])
    addition = time.process_time() - start
    share = len(compared) / len(order)
    write_record(
        args.out,
        {
            "reference_entries": len(reference),
            "candidates": len(candidates),
            "chemical_systems": len(order),
            "systems_compared": len(compared),
            "largest_difference_eV_per_atom": largest,
            "cpu_seconds_to_index_all_reference_entries": build,
            "cpu_seconds_for_all_candidates": seconds_all,
            "cpu_seconds_compared": seconds_compared,
            "pymatgen_cpu_seconds_picking_entries": picking,
            "pymatgen_cpu_seconds_diagrams": theirs,
            "speedup": (theirs + picking) / (seconds_compared + build * share),
            "speedup_of_diagrams_alone": theirs / seconds_compared,
            "cpu_seconds_to_add_one_entry": addition,
        },
        seed=args.seed,
        command=" ".join(sys.argv),
    )


if __name__ == "__main__":
    main()
