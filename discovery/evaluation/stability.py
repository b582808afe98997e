"""Protocol P3: how many crystals are stable, unique and novel, after relaxation by an oracle.

After the evaluation of MatterGen (Zeni et al., Nature 639, 624, 2025), with what it leaves out: nothing is dropped, a
structure whose elements the hull lacks is undefined by itself, and the figures are given at four thresholds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.results import Metric, Result, rate, statistic, unusable
from discovery.hull import Hull, Phase
from discovery.hull_command import EnergyKind, energy_of, hull_of
from discovery.matching import CrystalIndex, Matcher, duplicates, is_valid
from discovery.protocols import Oracle
from discovery.references import element_crystals
from discovery.sets import CrystalSet
from discovery.types import EnergyScale

PROTOCOL = "P3 stable, unique, novel"

THRESHOLDS = (0.0, 0.025, 0.05, 0.1)
"""eV/atom above the reference hull that count as stable."""

UNMATCHED_RMSD = 0.5
"""Displacement, in units of (volume/atom)^(1/3), of a crystal that does not match its relaxed form."""

_RELAXATION_MATCHER = StructureMatcher(ltol=0.5, stol=0.5, angle_tol=10, scale=False, attempt_supercell=True)


@dataclass(frozen=True)
class _Relaxed:
    """A structure with its energy, and what relaxing it cost."""

    crystal: Crystal
    energy_per_atom: float
    seconds: float


def evaluate(
    generated: CrystalSet,
    hull_entries: CrystalSet,
    known: Mapping[str, Crystal],
    oracle: Oracle | None,
    *,
    matcher: Matcher | None = None,
    seed: int = 0,
    sampling_seconds: float | None = None,
    oracle_seconds: float | None = None,
    progress: Callable[[], None] | None = None,
) -> Result:
    """Judge generated crystals by stability against a fixed hull, uniqueness and novelty.

    Parameters
    ----------
    generated
        All crystals that were asked for.
    hull_entries
        The reference hull, which the generated crystals never enter. Total energies must be of the oracle's energy
        scale; against formation energies, the oracle's own energies of the elements are subtracted.
    known
        Reference crystals; what matches none of them is novel.
    oracle
        Relaxes the crystals. None takes the energies that `generated` has, and its crystals as relaxed.
    matcher
        Tolerances 0.2, 0.3, 5° by default.
    seed
        Of the bootstrap.
    sampling_seconds
        What generating the crystals took, if it is to be counted.
    oracle_seconds
        What all relaxations may take together; structures that are not reached count as lost.
    progress
        Called after each relaxed crystal.
    """
    matcher = matcher or Matcher()
    start = time.perf_counter()
    outcomes: dict[str, str] = {}
    relaxed = (
        _given(generated, outcomes, hull_entries)
        if oracle is None
        else _relax(generated, outcomes, oracle, oracle_seconds, progress)
    )
    relaxing = time.perf_counter()
    kind = _kind(hull_entries, oracle is None and all(m.energies.total is None for m in generated.members))
    scale = oracle.energy_scale if oracle is not None else EnergyScale("given", "", "given")
    hull = _hull(hull_entries, kind, scale)
    elements = _element_energies(relaxed, oracle) if kind == "formation" and oracle is not None else {}
    above: dict[str, float] = {}
    for id_, one in relaxed.items():
        amounts = one.crystal.composition.get_el_amt_dict()
        energy = one.energy_per_atom
        if kind == "formation" and oracle is not None:
            missing = [element for element in amounts if element not in elements]
            if missing:
                outcomes[id_] = f"undefined: no energy of the element {', '.join(missing)}"
                continue
            energy -= sum(elements[element] * n for element, n in amounts.items()) / len(one.crystal)
        placed = hull.decompose(amounts, energy)
        if placed is None:
            missing = sorted(amounts.keys() - set(hull.elements))
            outcomes[id_] = f"undefined: the hull has no {', '.join(missing)}"
            continue
        above[id_] = placed.decomposition_energy
    placing = time.perf_counter()
    order = sorted(relaxed, key=lambda id_: (above.get(id_, np.inf), relaxed[id_].crystal.content_hash))
    repeated = duplicates({id_: relaxed[id_].crystal for id_ in order}, matcher)
    formulas = {matcher.formula(one.crystal) for one in relaxed.values()}
    index = CrystalIndex(matcher, {id_: one for id_, one in known.items() if len(one) and one.formula in formulas})
    matches = {id_: index.find(one.crystal) for id_, one in relaxed.items()}
    novel = {id_ for id_, match in matches.items() if match is None}
    matching = time.perf_counter()
    displacements = _displacements(generated, relaxed) if oracle is not None else []
    end = time.perf_counter()

    n = len(generated.members)
    unique = relaxed.keys() - repeated.keys()
    metrics = [
        rate("relaxed", len(relaxed), n),
        rate("hull_defined", len(above), n),
        rate("unique", len(unique), n),
        rate("novel", len(novel), n, f"against {len(known)} known crystals"),
        rate("unique_novel", len(unique & novel), n),
    ]
    for threshold in THRESHOLDS:
        stable = {id_ for id_, value in above.items() if value <= threshold + ROUNDING}
        metrics.append(rate(f"stable_{threshold:g}", len(stable), n, f"e_above_hull ≤ {threshold:g} eV/atom"))
        metrics.append(rate(f"sun_{threshold:g}", len(stable & unique & novel), n, "stable, unique and novel"))
    distances = [max(0.0, value) for value in above.values()]
    metrics.append(statistic("mean_e_above_hull", distances, seed=seed, note="eV/atom, of those that have one"))
    if displacements:
        metrics.append(statistic("rmsd_to_relaxed", [one for one, _ in displacements], seed=seed, note="(V/N)^(1/3)"))
        metrics.append(statistic("rmsd_to_relaxed_angstrom", [one for _, one in displacements], seed=seed, note="Å"))
    for id_ in relaxed.keys() & above.keys():
        first_threshold = next((t for t in THRESHOLDS if above[id_] <= t + ROUNDING), None)
        stability = "unstable" if first_threshold is None else f"stable ≤ {first_threshold:g} eV/atom"
        found = ["duplicate"] if id_ in repeated else ["unique"]
        found.append("novel" if id_ in novel else "known")
        outcomes[id_] = ", ".join([stability, *found])
    sun = len({id_ for id_, value in above.items() if value <= THRESHOLDS[-1] + ROUNDING} & unique & novel)
    seconds = {
        **({"sampling": sampling_seconds} if sampling_seconds is not None else {}),
        "relaxation": relaxing - start,
        "hull": placing - relaxing,
        "matching": matching - placing,
        "displacements": end - matching,
    }
    metrics += _costs(seconds, relaxed, n, sun)
    return Result(
        PROTOCOL,
        tuple(metrics),
        {member.id: outcomes[member.id] for member in generated.members},
        {"generated": generated, "hull": hull_entries},
        {
            "thresholds": THRESHOLDS,
            "energies": kind,
            "energy_scale": asdict(scale),
            "matcher": matcher.tolerances,
            "uniqueness_order": "energy above hull, then content hash",
            "n_known": len(known),
            "seed": seed,
        },
        seconds,
        {"energy above the hull (eV/atom)": {"generated": distances}},
    )


ROUNDING = 1e-8


def _relax(
    generated: CrystalSet,
    outcomes: dict[str, str],
    oracle: Oracle,
    oracle_seconds: float | None,
    progress: Callable[[], None] | None,
) -> dict[str, _Relaxed]:
    relaxed = {}
    spent = 0.0
    for member in generated.members:
        crystal = member.crystal
        reason = None if crystal is None else is_valid(crystal)
        if crystal is None or reason is not None:
            outcomes[member.id] = unusable(member) if crystal is None else f"invalid: {_kind_of_reason(reason or '')}"
        elif oracle_seconds is not None and spent >= oracle_seconds:
            outcomes[member.id] = "not relaxed: oracle seconds spent"
        else:
            (evaluation,) = oracle.evaluate([crystal])
            spent += evaluation.seconds
            if evaluation.ok and evaluation.converged and evaluation.crystal is not None:
                relaxed[member.id] = _Relaxed(evaluation.crystal, evaluation.energy_per_atom, evaluation.seconds)
            else:
                failure = evaluation.failure.kind if evaluation.failure is not None else "not_converged"
                outcomes[member.id] = f"failed: {failure}"
        if progress is not None:
            progress()
    return relaxed


def _kind_of_reason(reason: str) -> str:
    """Return the kind of a reason of ``is_valid``, without its numbers."""
    kinds = {
        "atoms are": "atoms too close",
        "lattice vector": "cell too short",
        "volume": "volume",
        "no atoms": "no atoms",
    }
    return next((kind for text, kind in kinds.items() if text in reason), reason)


def _given(generated: CrystalSet, outcomes: dict[str, str], hull_entries: CrystalSet) -> dict[str, _Relaxed]:
    kind: EnergyKind = "total"
    if all(member.energies.total is None for member in generated.members):
        kind = "formation"
    relaxed = {}
    for member in generated.members:
        energy = energy_of(member, kind)
        if member.crystal is None or not len(member.crystal):
            outcomes[member.id] = unusable(member)
        elif energy is None:
            outcomes[member.id] = "failed: no energy is given"
        else:
            relaxed[member.id] = _Relaxed(member.crystal, energy, 0.0)
    if not relaxed:
        raise InvalidInputError(
            f"{generated.path} gives no energies to compare with {hull_entries.path}; name an oracle with --oracle"
        )
    return relaxed


def _kind(entries: CrystalSet, formation_only: bool) -> EnergyKind:
    if not formation_only and any(member.energies.total is not None for member in entries.members):
        return "total"
    if any(member.energies.formation is not None for member in entries.members):
        return "formation"
    raise InvalidInputError(
        f"{entries.path} has no energies; give entries with total energies, or a CSV column formation_energy_per_atom"
    )


def _hull(entries: CrystalSet, kind: EnergyKind, scale: EnergyScale) -> Hull:
    """Return the hull; entries that name an energy scale must name that of the oracle."""
    named = {member.energies.scale for member in entries.members if member.energies.scale is not None}
    if kind == "total" and scale.code != "given" and named:
        phases = [
            Phase(member.id, member.composition, member.energies.total * sum(member.composition.values()), own)
            for member in entries.members
            if (own := member.energies.scale or scale) and member.composition and member.energies.total is not None
        ]
        return Hull(scale, tuple(phases))
    return hull_of(entries, kind, scale)


def _element_energies(relaxed: Mapping[str, _Relaxed], oracle: Oracle) -> dict[str, float]:
    """Return the oracle's energy of each element in eV/atom, the lowest of its bundled crystals."""
    energies: dict[str, float] = {}
    for element in sorted({e for one in relaxed.values() for e in one.crystal.composition.get_el_amt_dict()}):
        try:
            forms = [reference.crystal for reference in element_crystals(element)]
        except InvalidInputError:
            continue
        found = [evaluation.energy_per_atom for evaluation in oracle.evaluate(forms) if evaluation.ok]
        if found:
            energies[element] = min(found)
    return energies


def _displacements(generated: CrystalSet, relaxed: Mapping[str, _Relaxed]) -> list[tuple[float, float]]:
    """Return the RMS displacements by relaxation, in units of (volume/atom)^(1/3) and in Å."""
    found = []
    crystals = generated.crystals
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for id_, one in relaxed.items():
            length = (one.crystal.volume / len(one.crystal)) ** (1 / 3)
            match = _RELAXATION_MATCHER.get_rms_dist(crystals[id_].to_structure(), one.crystal.to_structure())
            displacement = UNMATCHED_RMSD if match is None else float(match[0])
            found.append((displacement, displacement * length))
    return found


def _costs(seconds: Mapping[str, float], relaxed: Mapping[str, _Relaxed], n: int, n_sun: int) -> list[Metric]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    total = sum(seconds.values())
    times: Sequence[float] = [one.seconds for one in relaxed.values() if one.seconds > 0]
    found = [Metric("seconds_per_structure", total / n if n else None, None, n, f"everything, wall time, {device}")]
    if times:
        found.append(statistic("seconds_per_relaxation", times))
    if "sampling" in seconds:
        found.append(Metric("seconds_per_sample", seconds["sampling"] / n if n else None, None, n, device))
    found.append(
        Metric(
            "seconds_per_sun", total / n_sun if n_sun else None, None, n_sun, f"at {THRESHOLDS[-1]:g} eV/atom, {device}"
        )
    )
    return found
