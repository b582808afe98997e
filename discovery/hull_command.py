"""The command ``discovery hull``: place candidates on the hull of reference entries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from discovery.corrections import check_corrections, listed_corrections
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.hull import Decomposition, Hull, Phase
from discovery.sets import CrystalSet, Member, read_set
from discovery.types import EnergyScale

EnergyKind = Literal["total", "formation"]

UNNAMED_SCALE = EnergyScale("unnamed", "", "unnamed")
"""Stands for the energies of files that name no energy scale; the user vouches that they are comparable."""


@dataclass(frozen=True)
class Placement:
    """One candidate on the hull, or the reason why it is not there."""

    id: str
    formula: str | None
    decomposition: Decomposition | None
    problem: str | None = None


@dataclass(frozen=True)
class Placements:
    """All candidates of a set on the hull of another."""

    placements: tuple[Placement, ...]
    candidates: CrystalSet
    reference: CrystalSet
    energy_kind: EnergyKind
    n_reference_phases: int
    seconds_reading: float
    seconds_hull: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "candidates": {"path": str(self.candidates.path), "sha256": self.candidates.sha256},
            "reference": {
                "path": str(self.reference.path),
                "sha256": self.reference.sha256,
                "entries": len(self.reference.members),
                "used": self.n_reference_phases,
            },
            "energies": self.energy_kind,
            "requested": len(self.placements),
            "placed": sum(placement.decomposition is not None for placement in self.placements),
            "seconds": {"reading": self.seconds_reading, "hull": self.seconds_hull},
            "results": [
                {
                    "id": placement.id,
                    "formula": placement.formula,
                    **(asdict(placement.decomposition) if placement.decomposition is not None else {}),
                    **({"problem": placement.problem} if placement.problem is not None else {}),
                }
                for placement in self.placements
            ],
            "corrections": {
                role: listed_corrections(one) if self.energy_kind == "total" else {}
                for role, one in (("candidates", self.candidates), ("reference", self.reference))
            },
        }


def place(candidates: Path, reference: Path, *, corrections: bool = False) -> Placements:
    """Compare the energies of `candidates` with the hull of `reference`.

    An entry that is among both is left out of the hull when its own decomposition energy is taken. Total energies are
    used where both sets have them, else formation energies, for which every element is a phase of energy 0. With
    `corrections` the total energies of entries are corrected by MP2020, from their uncorrected energies.

    Raises
    ------
    InvalidInputError
        If one of the sets has no energies of the kind that the other has.
    EnergyScaleError
        If the sets name different energy scales, or corrected and uncorrected energies meet.
    """
    start = time.perf_counter()
    wanted, known = (read_set(path, crystals=False, corrections=corrections) for path in (candidates, reference))
    read = time.perf_counter()
    kind = _kind(wanted, known)
    if kind == "total":
        check_corrections([wanted, known])
    hull = hull_of(known, kind, common_scale([*wanted.members, *known.members]))
    placements = tuple(_place(member, hull, kind) for member in wanted.members)
    end = time.perf_counter()
    n_phases = len([phase for phase in hull.phases if not phase.id.startswith(_ELEMENT_PREFIX)])
    return Placements(placements, wanted, known, kind, n_phases, read - start, end - read)


def hull_of(known: CrystalSet, kind: EnergyKind, scale: EnergyScale) -> Hull:
    """Return the hull of the members that have an energy; on formation energies with all elements at 0."""
    phases = []
    for member in known.members:
        energy = energy_of(member, kind)
        if energy is not None and member.composition:
            phases.append(Phase(member.id, member.composition, energy * sum(member.composition.values()), scale))
    if kind == "formation":
        elements = {element for phase in phases for element in phase.composition}
        phases += [Phase(_ELEMENT_PREFIX + element, {element: 1.0}, 0.0, scale) for element in sorted(elements)]
    if not phases:
        raise InvalidInputError(
            f"{known.path} has no entry with composition and {kind} energy; it cannot be a reference"
        )
    return Hull(scale, tuple(phases))


_ELEMENT_PREFIX = "element of formation energy zero: "


def energy_of(member: Member, kind: EnergyKind) -> float | None:
    """Return the energy of a member in eV/atom."""
    return member.energies.total if kind == "total" else member.energies.formation


def _kind(wanted: CrystalSet, known: CrystalSet) -> EnergyKind:
    kinds: Sequence[EnergyKind] = ("total", "formation")
    for kind in kinds:
        if all(any(energy_of(member, kind) is not None for member in one.members) for one in (wanted, known)):
            return kind
    raise InvalidInputError(
        f"{wanted.path} and {known.path} have no energies of the same kind; give both total energies (extxyz, entries, "
        "CSV column energy_per_atom) or both a CSV column formation_energy_per_atom"
    )


def common_scale(members: Sequence[Member]) -> EnergyScale:
    """Return the one energy scale that `members` name; a nameless one if they name none."""
    scales = {member.energies.scale for member in members if member.energies.scale is not None}
    if len(scales) > 1:
        names = " and ".join(sorted(str(scale) for scale in scales))
        raise EnergyScaleError(f"the energies belong to the scales {names}; compute all with one oracle")
    return next(iter(scales), UNNAMED_SCALE)


def _place(member: Member, hull: Hull, kind: EnergyKind) -> Placement:
    from pymatgen.core import Composition

    if not member.composition:
        return Placement(member.id, None, None, member.problem or "it has no atoms")
    formula = Composition(member.composition).reduced_formula
    energy = energy_of(member, kind)
    if energy is None:
        problem = member.energies.problem if kind == "total" else None
        return Placement(member.id, formula, None, problem or f"no {kind} energy is given")
    found = hull.decompose(member.composition, energy, exclude={member.id})
    if found is None:
        missing = sorted(member.composition.keys() - set(hull.elements))
        reason = f"no reference entry of {', '.join(missing)}" if missing else "it is the only entry of its element"
        return Placement(member.id, formula, None, f"undefined: {reason}")
    return Placement(member.id, formula, found)
