"""The convex hull of formation energy over composition, for one energy scale.

pymatgen's ``PhaseDiagram`` does the geometry; this module adds the rules of the engine: one energy scale per hull,
versions, decomposition energies against a hull from which entries are left out, and verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element
from pymatgen.entries import Entry

from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.matching import Matcher
from discovery.types import EnergyScale, Stability, Verdict

PHASE_FORMAT = "discovery.phase/1"

NUMERICAL_TOLERANCE = PhaseDiagram.numerical_tol
"""eV/atom below which an energy above the hull is rounding error and counts as zero."""


@dataclass(frozen=True)
class Phase:
    """One entry of a hull.

    Parameters
    ----------
    id
        Unique within a hull.
    composition
        Element symbol → atoms per cell.
    energy
        Total energy in eV per cell, corrections included.
    energy_scale
        Scale of `energy`.
    crystal
        The relaxed crystal, if it is known.
    origin
        ``reference`` for phases known beforehand, ``discovered`` for candidates.

    Raises
    ------
    InvalidInputError
        If the composition is empty, names no element or holds a wrong amount, or the energy is not finite.
    """

    id: str
    composition: Mapping[str, float]
    energy: float
    energy_scale: EnergyScale
    crystal: Crystal | None = None
    origin: Literal["reference", "discovered"] = "reference"

    def __post_init__(self) -> None:
        _checked(self.composition, f"phase {self.id!r}")
        if not math.isfinite(self.energy):
            raise InvalidInputError(f"phase {self.id!r} has energy {self.energy}; leave failed evaluations out")

    @property
    def energy_per_atom(self) -> float:
        """Energy in eV/atom."""
        return self.energy / sum(self.composition.values())

    @cached_property
    def formula(self) -> str:
        """Reduced formula."""
        return Composition(self.composition).reduced_formula

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_dict` reads."""
        return {
            "format": PHASE_FORMAT,
            "id": self.id,
            "composition": dict(self.composition),
            "energy": self.energy,
            "energy_scale": asdict(self.energy_scale),
            "crystal": self.crystal.to_dict() if self.crystal is not None else None,
            "origin": self.origin,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phase:
        """Read the form that :meth:`to_dict` writes."""
        if data.get("format") != PHASE_FORMAT:
            raise InvalidInputError(f"phase has format {data.get('format')!r}, this version reads {PHASE_FORMAT!r}")
        return cls(
            id=data["id"],
            composition=data["composition"],
            energy=data["energy"],
            energy_scale=EnergyScale(**data["energy_scale"]),
            crystal=Crystal.from_dict(data["crystal"]) if data["crystal"] is not None else None,
            origin=data["origin"],
        )


@dataclass(frozen=True)
class Decomposition:
    """What a composition decomposes into, and the energy this gains.

    Parameters
    ----------
    decomposition_energy
        eV/atom relative to the products; negative means more stable than they are.
    e_above_hull
        eV/atom, ``max(0, decomposition_energy)``.
    products
        Reduced formula → atomic fraction; the fractions add up to 1.
    """

    decomposition_energy: float
    e_above_hull: float
    products: Mapping[str, float]


@dataclass(frozen=True)
class Hull:
    """Lower convex envelope of formation energy over composition; an immutable, versioned value.

    Parameters
    ----------
    energy_scale
        The one scale of all energies in the hull.
    phases
        Its entries, stable or not.
    version
        Grows by one with each addition.

    Raises
    ------
    EnergyScaleError
        If a phase's energy belongs to another scale.
    InvalidInputError
        If two phases share an id.
    """

    energy_scale: EnergyScale
    phases: tuple[Phase, ...] = ()
    version: int = 0
    _diagrams: dict[tuple[frozenset[str], frozenset[str]], PhaseDiagram] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for phase in self.phases:
            if phase.energy_scale != self.energy_scale:
                raise EnergyScaleError(
                    f"phase {phase.id!r} has energy scale {phase.energy_scale} ({phase.energy_scale!r}), the hull has "
                    f"{self.energy_scale} ({self.energy_scale!r}); compute the phase with the hull's oracle"
                )
            if phase.id in seen:
                raise InvalidInputError(f"phase id {phase.id!r} occurs twice in the hull; add each phase once")
            seen.add(phase.id)

    def add(self, phases: Iterable[Phase]) -> Hull:
        """Return the hull of the next version with `phases` added."""
        return Hull(self.energy_scale, (*self.phases, *phases), self.version + 1)

    @cached_property
    def _by_id(self) -> dict[str, Phase]:
        return {phase.id: phase for phase in self.phases}

    @cached_property
    def _terminals(self) -> dict[str, Phase]:
        """Element → its phase of lowest energy per atom."""
        terminals: dict[str, Phase] = {}
        for phase in sorted(self.phases, key=lambda phase: (phase.energy_per_atom, phase.id)):
            if len(phase.composition) == 1:
                terminals.setdefault(next(iter(phase.composition)), phase)
        return terminals

    @property
    def elements(self) -> tuple[str, ...]:
        """Elements that have a terminal phase, sorted by symbol."""
        return tuple(sorted(self._terminals))

    def formation_energy_per_atom(self, composition: Mapping[str, float], energy_per_atom: float) -> float | None:
        """Return the formation energy against the elements in eV/atom; None if a terminal element is missing."""
        _checked(composition, "composition")
        if not composition.keys() <= self._terminals.keys():
            return None
        total = sum(composition.values())
        return energy_per_atom - sum(
            amount / total * self._terminals[element].energy_per_atom for element, amount in composition.items()
        )

    def decompose(
        self, composition: Mapping[str, float], energy_per_atom: float, exclude: Collection[str] = ()
    ) -> Decomposition | None:
        """Compare an energy with the hull at `composition`.

        Parameters
        ----------
        composition
            Element symbol → amount, of any scale.
        energy_per_atom
            Total energy in eV/atom, on the hull's energy scale.
        exclude
            Ids of phases to leave out of the hull, such as the entry itself; unknown ids are ignored.

        Returns
        -------
        Decomposition or None
            None if, without the excluded phases, a terminal element is missing.
        """
        _checked(composition, "composition")
        if not composition.keys() <= self._terminals.keys():
            return None
        diagram = self._diagram(frozenset(composition), frozenset())
        # As long as no phase on the hull is left out, leaving out others changes nothing.
        if not set(_ids(diagram.stable_entries)).isdisjoint(exclude):
            left_out = self._by_id.keys() & set(exclude)
            elements = {
                element
                for phase in self.phases
                if len(phase.composition) == 1 and phase.id not in left_out
                for element in phase.composition
            }
            if not composition.keys() <= elements:
                return None
            diagram = self._diagram(frozenset(composition), frozenset(left_out))
        products: dict[str, float] = {}
        amounts, hull_energy = diagram.get_decomp_and_hull_energy_per_atom(Composition(composition))
        for entry, amount in amounts.items():
            products[entry.composition.reduced_formula] = float(amount)
        energy = float(energy_per_atom - hull_energy)
        return Decomposition(energy, energy if energy > NUMERICAL_TOLERANCE else 0.0, products)

    @cached_property
    def stable_phases(self) -> tuple[Phase, ...]:
        """The phases on the hull, one per composition, sorted by id; of the part of the space with all its elements."""
        if not self._terminals:
            return ()
        diagram = self._diagram(frozenset(self._terminals), frozenset())
        return tuple(sorted((self._by_id[id_] for id_ in _ids(diagram.stable_entries)), key=lambda phase: phase.id))

    def judge(self, phase_id: str, threshold: float, metastable_threshold: float) -> Verdict:
        """Give the verdict on a phase of this hull.

        Its decomposition energy is taken against the hull without the phase and without other phases of the same
        structure, so that a crystal found a second time does not compete with itself. The only known phase of an
        element has decomposition energy 0.

        Parameters
        ----------
        phase_id
            Id of a phase in the hull.
        threshold, metastable_threshold
            Largest e_above_hull in eV/atom of a stable and of a metastable phase.
        """
        phase = self._by_id.get(phase_id)
        if phase is None:
            raise InvalidInputError(f"phase {phase_id!r} is not in hull version {self.version}; add it first")
        if metastable_threshold < threshold:
            raise InvalidInputError(
                f"metastable_threshold {metastable_threshold} is below threshold {threshold}; it must not be smaller"
            )
        inside = self.decompose(phase.composition, phase.energy_per_atom)
        formation_energy = self.formation_energy_per_atom(phase.composition, phase.energy_per_atom)
        if inside is None or formation_energy is None:
            missing = sorted(phase.composition.keys() - self._terminals.keys())
            raise InvalidInputError(
                f"phase {phase_id!r} cannot be judged: the hull has no phase of the element(s) {', '.join(missing)}; "
                "add them as reference phases"
            )
        own = {phase_id, *self._duplicates(phase)}
        outside = self.decompose(phase.composition, phase.energy_per_atom, exclude=own) or inside
        if inside.e_above_hull <= threshold:
            stability = Stability.STABLE
        elif inside.e_above_hull <= metastable_threshold:
            stability = Stability.METASTABLE
        else:
            stability = Stability.UNSTABLE
        return Verdict(
            stability=stability,
            e_above_hull=inside.e_above_hull,
            decomposition_energy=outside.decomposition_energy,
            formation_energy_per_atom=formation_energy,
            decomposition=outside.products,
            threshold=threshold,
            metastable_threshold=metastable_threshold,
            energy_scale=self.energy_scale.id,
            hull_version=self.version,
        )

    def _duplicates(self, phase: Phase) -> set[str]:
        if phase.crystal is None:
            return set()
        matcher = Matcher()
        return {
            other.id
            for other in self.phases
            if other.id != phase.id
            and other.crystal is not None
            and other.formula == phase.formula
            and matcher.find(phase.crystal, {other.id: other.crystal}) is not None
        }

    def _diagram(self, elements: frozenset[str], left_out: frozenset[str]) -> PhaseDiagram:
        """Phase diagram of the space of `elements` without the phases `left_out`; built once."""
        key = (elements, left_out)
        if key not in self._diagrams:
            entries = [
                PDEntry(Composition(phase.composition), phase.energy, name=phase.id)
                for phase in self.phases
                if phase.composition.keys() <= elements and phase.id not in left_out
            ]
            self._diagrams[key] = PhaseDiagram(entries, [Element(element) for element in sorted(elements)])
        return self._diagrams[key]


def _ids(entries: Iterable[Entry]) -> list[str]:
    return [entry.name for entry in entries if isinstance(entry, PDEntry)]


def _checked(composition: Mapping[str, float], what: str) -> None:
    if not composition:
        raise InvalidInputError(f"{what} is empty")
    for element, amount in composition.items():
        if not Element.is_valid_symbol(element):
            raise InvalidInputError(f"{what} names {element!r}, which is not an element")
        if not (math.isfinite(amount) and amount > 0):
            raise InvalidInputError(f"{what} has amount {amount} of {element}, expected a number above 0")
