"""Protocol P3: how many crystals are stable, unique and novel, after relaxation by an oracle.

After the evaluation of MatterGen (Zeni et al., Nature 639, 624, 2025), with what it leaves out: nothing is dropped, a
structure whose elements the hull lacks is undefined by itself, and the figures are given at four thresholds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from discovery.corrections import (
    MP2020,
    check_corrections,
    corrected_scale,
    corrections_of_crystal,
    listed_corrections,
)
from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.cost import Clock
from discovery.evaluation.results import Result, rate, statistic, unusable
from discovery.hull import Hull, Phase
from discovery.hull_command import EnergyKind, common_scale, energy_of, hull_of
from discovery.matching import CrystalIndex, Matcher, comparable, duplicates, is_valid
from discovery.protocols import Oracle
from discovery.references import element_crystals
from discovery.sets import CrystalSet
from discovery.types import EnergyScale, Evaluation

PROTOCOL = "P3 stable, unique, novel"

THRESHOLDS = (0.0, 0.025, 0.05, 0.1)
"""eV/atom above the reference hull that count as stable."""

UNMATCHED_RMSD = 0.5
"""Displacement, in units of (volume/atom)^(1/3), of a crystal that does not match its relaxed form."""

_RELAXATION_MATCHER = StructureMatcher(ltol=0.5, stol=0.5, angle_tol=10, scale=False, attempt_supercell=True)


@dataclass(frozen=True)
class Budget:
    """What the relaxations of one set may take together; None is no limit."""

    relaxations: int | None = None
    oracle_seconds: float | None = None

    def spent(self, relaxations: int, seconds: float) -> str | None:
        """Return what there is nothing left of, or None."""
        if self.relaxations is not None and relaxations >= self.relaxations:
            return "relaxations spent"
        if self.oracle_seconds is not None and seconds >= self.oracle_seconds:
            return "oracle seconds spent"
        return None


@dataclass(frozen=True)
class _Relaxed:
    """A structure with its energy, and the corrections (eV/atom) that it contains."""

    crystal: Crystal
    energy_per_atom: float
    corrections: Mapping[str, float]


def evaluate(
    generated: CrystalSet,
    hull_entries: CrystalSet,
    known: CrystalSet,
    oracle: Oracle | None,
    *,
    matcher: Matcher | None = None,
    corrections: bool = False,
    seed: int = 0,
    sampling: Clock | None = None,
    budget: Budget | None = None,
    progress: Callable[[str, int], None] | None = None,
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
        Tolerances 0.2, 0.3, 5° and ordered by default.
    corrections
        Correct the oracle's energies by MP2020, unless its energy scale says that they contain it. Entries are
        corrected where they are read.
    seed
        Of the bootstrap.
    sampling
        What generating the crystals took, if it is to be counted.
    budget
        What all relaxations may take together; structures that are not reached count as lost.
    progress
        Called with stage and number of its steps done.

    Raises
    ------
    InvalidInputError
        If there are no energies.
    EnergyScaleError
        If energies of two scales would meet.
    """
    matcher = matcher or Matcher()
    clock = Clock()
    if sampling is not None:
        clock.seconds.update(sampling.seconds)
        clock.gpu_seconds.update(sampling.gpu_seconds)
    scale = oracle.energy_scale if oracle is not None else EnergyScale("given", "", "given")
    if oracle is not None and corrections:
        scale = corrected_scale(scale)
    kind = _kind(hull_entries, oracle is None and all(m.energies.total is None for m in generated.members))
    if kind == "total":
        sets = [hull_entries] if oracle is not None else [generated, hull_entries]
        check_corrections(sets, scale if oracle is not None else None)
        if oracle is None:
            common_scale([*generated.members, *hull_entries.members])
    hull = _hull(hull_entries, kind, scale)
    advance = progress or _silent
    outcomes: dict[str, str] = {}
    n_relaxations = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's, on elements that lack some property
        if oracle is None:
            relaxed = _given(generated, outcomes, hull_entries, kind)
        else:
            with clock.stage("relaxation"):
                relaxed, n_relaxations = _relax(generated, outcomes, oracle, scale, budget or Budget(), advance)
        with clock.stage("hull"):
            above = _place(relaxed, hull, kind, oracle, outcomes)
        with clock.stage("matching"):
            order = sorted(relaxed, key=lambda id_: (above.get(id_, np.inf), relaxed[id_].crystal.content_hash))
            crystals = {id_: relaxed[id_].crystal for id_ in order}
            repeated = duplicates(crystals, matcher, lambda: advance("uniqueness", 1))
            novel = _novel(crystals, known, matcher, advance)
        with clock.stage("displacements"):
            displacements = _displacements(generated, relaxed, advance) if oracle is not None else []

    n = len(generated.members)
    unique = relaxed.keys() - repeated.keys()
    metrics = [
        rate("relaxed", len(relaxed), n),
        rate("hull_defined", len(above), n),
        rate("unique", len(unique), n),
        rate("novel", len(novel), n, f"against {len(known.crystals)} known crystals"),
        rate("unique_novel", len(unique & novel), n),
    ]
    for threshold in THRESHOLDS:
        stable = {id_ for id_, value in above.items() if value <= threshold + ROUNDING}
        sun = stable & unique & novel
        metrics.append(rate(f"stable_{threshold:g}", len(stable), n, f"e_above_hull ≤ {threshold:g} eV/atom"))
        metrics.append(rate(f"sun_{threshold:g}", len(sun), n, "stable, unique and novel"))
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
    return Result(
        PROTOCOL,
        tuple(metrics),
        {member.id: outcomes[member.id] for member in generated.members},
        {"generated": generated, "hull": hull_entries, "known": known},
        {
            "thresholds": THRESHOLDS,
            "energies": kind,
            "energy_scale": asdict(scale),
            "matcher": matcher.settings,
            "uniqueness_order": "energy above hull, then content hash",
            "budget": asdict(budget or Budget()),
            "seed": seed,
        },
        clock.seconds,
        clock.gpu_seconds,
        {"energy above the hull (eV/atom)": {"generated": distances}},
        {
            "generated": {id_: one.corrections for id_, one in relaxed.items() if one.corrections},
            "hull": listed_corrections(hull_entries) if kind == "total" else {},
        },
        n_relaxations,
        len(sun),
    )


ROUNDING = 1e-8


def _silent(stage: str, steps: int) -> None:
    """Show no progress."""


def _relax(
    generated: CrystalSet,
    outcomes: dict[str, str],
    oracle: Oracle,
    scale: EnergyScale,
    budget: Budget,
    advance: Callable[[str, int], None],
) -> tuple[dict[str, _Relaxed], int]:
    """Return the crystals whose relaxation succeeded, and how many were tried; the others' fates go to `outcomes`."""
    relaxed = {}
    n_tried, seconds = 0, 0.0
    for member in generated.members:
        crystal = member.crystal
        reason = None if crystal is None else is_valid(crystal)
        spent = budget.spent(n_tried, seconds)
        if crystal is None or reason is not None:
            outcomes[member.id] = unusable(member) if crystal is None else f"invalid: {_kind_of_reason(reason or '')}"
        elif spent is not None:
            outcomes[member.id] = f"not relaxed: {spent}"
        else:
            (evaluation,) = oracle.evaluate([crystal])
            n_tried += 1
            seconds += evaluation.seconds
            if evaluation.ok and evaluation.converged and evaluation.crystal is not None:
                try:
                    relaxed[member.id] = _corrected(evaluation, evaluation.crystal, scale)
                except InvalidInputError as error:
                    outcomes[member.id] = f"failed: {error}"
            else:
                failure = evaluation.failure.kind if evaluation.failure is not None else "not_converged"
                outcomes[member.id] = f"failed: {failure}"
        advance("relaxation", 1)
    return relaxed, n_tried


def _corrected(evaluation: Evaluation, crystal: Crystal, scale: EnergyScale) -> _Relaxed:
    """Return the relaxed crystal with its energy on `scale`, corrected if the oracle's own energies are not."""
    n_atoms = len(crystal)
    contained = dict(evaluation.corrections)
    energy = evaluation.energy_per_atom
    if scale.corrections == MP2020 and evaluation.energy_scale.corrections != MP2020:
        contained = corrections_of_crystal(crystal, scale)
        energy += sum(contained.values()) / n_atoms
    return _Relaxed(crystal, energy, {name: value / n_atoms for name, value in contained.items()})


def _place(
    relaxed: Mapping[str, _Relaxed], hull: Hull, kind: EnergyKind, oracle: Oracle | None, outcomes: dict[str, str]
) -> dict[str, float]:
    """Return id → decomposition energy in eV/atom of those for which the hull is defined."""
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
    return above


def _novel(
    crystals: Mapping[str, Crystal], known: CrystalSet, matcher: Matcher, advance: Callable[[str, int], None]
) -> set[str]:
    """Return the ids of the crystals that match none of `known`."""
    formulas = {matcher.formula(crystal) for crystal in crystals.values()}
    possible = {id_: one for id_, one in known.crystals.items() if len(one) and one.formula in formulas}
    index = CrystalIndex(matcher, possible)
    novel = set()
    for id_, crystal in crystals.items():
        if index.find(crystal) is None:
            novel.add(id_)
        advance("novelty", 1)
    return novel


def _kind_of_reason(reason: str) -> str:
    """Return the kind of a reason of ``is_valid``, without its numbers."""
    kinds = {
        "atoms are": "atoms too close",
        "lattice vector": "cell too short",
        "volume": "volume",
        "no atoms": "no atoms",
    }
    return next((kind for text, kind in kinds.items() if text in reason), reason)


def _given(
    generated: CrystalSet, outcomes: dict[str, str], hull_entries: CrystalSet, kind: EnergyKind
) -> dict[str, _Relaxed]:
    relaxed = {}
    for member in generated.members:
        energy = energy_of(member, kind)
        if member.crystal is None or not len(member.crystal):
            outcomes[member.id] = unusable(member)
        elif energy is None:
            outcomes[member.id] = f"failed: {member.energies.problem or 'no energy is given'}"
        else:
            relaxed[member.id] = _Relaxed(member.crystal, energy, member.energies.corrections or {})
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


def _displacements(
    generated: CrystalSet, relaxed: Mapping[str, _Relaxed], advance: Callable[[str, int], None]
) -> list[tuple[float, float]]:
    """Return the RMS displacements by relaxation, in units of (volume/atom)^(1/3) and in Å."""
    found = []
    crystals = generated.crystals
    for id_, one in relaxed.items():
        length = (one.crystal.volume / len(one.crystal)) ** (1 / 3)
        match = None
        if comparable(crystals[id_]) and comparable(one.crystal):
            match = _RELAXATION_MATCHER.get_rms_dist(crystals[id_].to_structure(), one.crystal.to_structure())
        displacement = UNMATCHED_RMSD if match is None else float(match[0])
        found.append((displacement, displacement * length))
        advance("displacements", 1)
    return found
