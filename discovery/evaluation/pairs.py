"""Protocol P4: formation energies of two sets of relaxed crystals, composition by composition.

After the evaluation of UniMat (Yang et al., ICLR 2024), which compares a model with random search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from pymatgen.core import Composition

from discovery.corrections import check_corrections, listed_corrections
from discovery.errors import InvalidInputError
from discovery.evaluation.cost import Clock
from discovery.evaluation.results import Metric, Result, rate, statistic
from discovery.hull_command import EnergyKind, common_scale, energy_of, hull_of
from discovery.sets import CrystalSet, Member
from discovery.types import EnergyScale

PROTOCOL = "P4 energies composition by composition (UniMat)"

METASTABLE = 0.025
"""eV/atom; decomposition energies below it count as metastable."""

_SCALE = EnergyScale("given", "", "given")


def evaluate(first: CrystalSet, second: CrystalSet, hull_entries: CrystalSet | None = None, *, seed: int = 0) -> Result:
    """Compare the lowest energies of two sets at every composition that both reach.

    A member without an energy counts as one whose relaxation did not converge. The convergence rate is the share of a
    set's compositions of which at least one member converged.

    Parameters
    ----------
    first, second
        Relaxed crystals with energies of the same kind and scale; every one that was asked for.
    hull_entries
        Reference hull with energies of that kind, for the numbers of stable and metastable crystals; a crystal that is
        in it by id is left out of it.
    seed
        Of the bootstrap.
    """
    clock = Clock()
    sets = {"first": first, "second": second}
    references = {"hull": hull_entries} if hull_entries is not None else {}
    with clock.stage("comparison"):
        kind = _kind([*sets.values(), *references.values()])
        if kind == "total":
            check_corrections([*sets.values(), *references.values()])
            common_scale([member for one in (sets | references).values() for member in one.members])
        lowest = {name: _lowest(one, kind) for name, one in sets.items()}
        common = sorted(lowest["first"].keys() & lowest["second"].keys())
        differences = [lowest["first"][formula] - lowest["second"][formula] for formula in common]
        compared = f"{len(common)} compositions are in both sets"
        metrics = [
            statistic(
                "delta_formation_energy", differences, seed=seed, note=f"mean of first − second, eV/atom; {compared}"
            ),
            rate("reduction_rate", int(np.sum(np.array(differences) < 0)), len(differences), "first lower than second"),
        ]
        outcomes: dict[str, str] = {}
        for name, one in sets.items():
            requested = _formulas(one)
            metrics.append(rate(f"convergence_rate_{name}", len(lowest[name]), len(requested), "compositions"))
            outcomes |= {f"{name}: {member.id}": _outcome(member, kind, lowest) for member in one.members}
            if hull_entries is not None:
                metrics += _stable(one, hull_entries, kind, name)
    return Result(
        PROTOCOL,
        tuple(metrics),
        outcomes,
        sets | references,
        {"energies": kind, "metastable": METASTABLE, "seed": seed},
        clock.seconds,
        clock.gpu_seconds,
        {"formation energy difference, first − second (eV/atom)": {"common compositions": differences}},
        {role: listed_corrections(one) for role, one in (sets | references).items()} if kind == "total" else {},
    )


def _kind(sets: list[CrystalSet]) -> EnergyKind:
    kinds: tuple[EnergyKind, ...] = ("total", "formation")
    for kind in kinds:
        if all(any(energy_of(member, kind) is not None for member in one.members) for one in sets):
            return kind
    paths = ", ".join(str(one.path) for one in sets)
    raise InvalidInputError(f"{paths} have no energies of the same kind; give all total or all formation energies")


def _formulas(one: CrystalSet) -> set[str]:
    return {Composition(member.composition).reduced_formula for member in one.members if member.composition}


def _outcome(member: Member, kind: EnergyKind, lowest: Mapping[str, Mapping[str, float]]) -> str:
    if not member.composition:
        return f"unusable: {member.problem or 'no atoms'}"
    if energy_of(member, kind) is None:
        return "no energy: not converged"
    formula = Composition(member.composition).reduced_formula
    return "compared" if all(formula in found for found in lowest.values()) else "converged, in one set only"


def _lowest(one: CrystalSet, kind: EnergyKind) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for member in one.members:
        energy = energy_of(member, kind)
        if energy is not None and member.composition:
            found[Composition(member.composition).reduced_formula].append(energy)
    return {formula: min(energies) for formula, energies in found.items()}


def _stable(one: CrystalSet, hull_entries: CrystalSet, kind: EnergyKind, name: str) -> list[Metric]:
    hull = hull_of(hull_entries, kind, _SCALE)
    energies = []
    for member in one.members:
        energy = energy_of(member, kind)
        if energy is None or not member.composition:
            continue
        placed = hull.decompose(member.composition, energy, exclude={member.id})
        if placed is not None:
            energies.append(placed.decomposition_energy)
    n = len(one.members)
    return [
        rate(f"stable_{name}", sum(energy < 0 for energy in energies), n, "decomposition energy < 0"),
        rate(f"metastable_{name}", sum(energy < METASTABLE for energy in energies), n, f"below {METASTABLE} eV/atom"),
    ]
