"""The convex hull of formation energy over composition, for one energy scale.

:mod:`discovery.convex` does the geometry, one chemical system at a time; this module adds the rules of the engine: one
energy scale per hull, versions, decomposition energies against a hull from which entries are left out, and verdicts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain, combinations
from typing import Any, Literal

import numpy as np
from pymatgen.core import Composition, Element

from discovery.convex import LowerHull
from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.matching import Matcher
from discovery.types import EnergyScale, Stability, Verdict

PHASE_FORMAT = "discovery.phase/1"

ChemicalSystem = frozenset[str]
"""Element symbols."""

NUMERICAL_TOLERANCE = 1e-8
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
    _systems: dict[ChemicalSystem, _System] = field(init=False, repr=False, compare=False)
    _by_id: dict[str, Phase] = field(init=False, repr=False, compare=False)
    _terminals: dict[str, Phase] = field(init=False, repr=False, compare=False)
    _regions: dict[tuple[ChemicalSystem, frozenset[str]], _Region] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _matcher: Matcher = field(default_factory=Matcher, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._index(self.phases, {}, {}, {})

    def _index(
        self,
        phases: Iterable[Phase],
        systems: dict[ChemicalSystem, _System],
        by_id: dict[str, Phase],
        terminals: dict[str, Phase],
    ) -> None:
        """Check `phases` and set the indices to those given with `phases` added."""
        added: dict[ChemicalSystem, list[Phase]] = defaultdict(list)
        for phase in phases:
            if phase.energy_scale != self.energy_scale:
                raise EnergyScaleError(
                    f"phase {phase.id!r} has energy scale {phase.energy_scale} ({phase.energy_scale!r}), the hull has "
                    f"{self.energy_scale} ({self.energy_scale!r}); compute the phase with the hull's oracle"
                )
            if phase.id in by_id:
                raise InvalidInputError(f"phase id {phase.id!r} occurs twice in the hull; add each phase once")
            by_id[phase.id] = phase
            added[frozenset(phase.composition)].append(phase)
            if len(phase.composition) == 1:
                (element,) = phase.composition
                known = terminals.get(element)
                if known is None or _by_energy(phase) < _by_energy(known):
                    terminals[element] = phase
        for elements, members in added.items():
            system = systems.get(elements)
            systems[elements] = system.add(members) if system is not None else _System.of(elements, members)
        for name, value in (("_systems", systems), ("_by_id", by_id), ("_terminals", terminals)):
            object.__setattr__(self, name, value)

    def add(self, phases: Iterable[Phase]) -> Hull:
        """Return the hull of the next version with `phases` added.

        Only the chemical systems that contain an added phase are computed anew, and only if it changes their hull.
        """
        new = tuple(phases)
        hull = object.__new__(Hull)
        for name, value in (
            ("energy_scale", self.energy_scale),
            ("phases", (*self.phases, *new)),
            ("version", self.version + 1),
            ("_matcher", self._matcher),
        ):
            object.__setattr__(hull, name, value)
        hull._index(new, dict(self._systems), dict(self._by_id), dict(self._terminals))
        kept = {
            key: region
            for key, region in self._regions.items()
            if not any(region.is_changed_by(phase) for phase in new if phase.composition.keys() <= key[0])
        }
        object.__setattr__(hull, "_regions", kept)
        return hull

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
        region = self._region(frozenset(composition), frozenset())
        # As long as no phase on the hull is left out, leaving out others changes nothing.
        if not region.stable_ids.isdisjoint(exclude):
            left_out = frozenset(self._by_id.keys() & set(exclude))
            if not all(self._has_terminal(element, left_out) for element in composition):
                return None
            region = self._region(frozenset(composition), left_out)
        return region.decompose(composition, energy_per_atom)

    def _has_terminal(self, element: str, left_out: Collection[str]) -> bool:
        return any(phase.id not in left_out for phase in self._systems[frozenset([element])].phases)

    @cached_property
    def stable_phases(self) -> tuple[Phase, ...]:
        """The phases on the hull, one per composition, sorted by id; of the part of the space with all its elements."""
        stable = [
            self._by_id[id_]
            for elements in self._systems
            if elements <= self._terminals.keys()
            for id_ in self._region(elements, frozenset()).stable_ids
            if self._by_id[id_].composition.keys() == elements
        ]
        return tuple(sorted(stable, key=lambda phase: phase.id))

    def tie_lines(self, elements: Collection[str]) -> tuple[tuple[str, str], ...]:
        """Return pairs of ids of phases that coexist in the chemical system of `elements`, sorted.

        Where more phases than elements lie in one plane, the plane is cut into simplices and their edges are returned.
        """
        return self._region(frozenset(elements), frozenset()).tie_lines

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
        outside = self._without_structure(phase) or inside
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

    def _without_structure(self, phase: Phase) -> Decomposition | None:
        """Compare `phase` with the hull without it and without other phases of its structure; None as `decompose`.

        Phases above the hull do not move it, so that only those of the same composition that lie on it are compared.
        """
        left_out = {phase.id}
        polymorphs = [other for other in self._systems[frozenset(phase.composition)].phases if other.id != phase.id]
        while True:
            outside = self.decompose(phase.composition, phase.energy_per_atom, exclude=left_out)
            if outside is None or phase.formula not in outside.products:
                return outside
            lowest = next(other for other in polymorphs if other.id not in left_out and other.formula == phase.formula)
            if phase.crystal is None or lowest.crystal is None or not self._matcher.same(phase.crystal, lowest.crystal):
                return outside
            left_out.add(lowest.id)

    def _region(self, elements: ChemicalSystem, left_out: frozenset[str]) -> _Region:
        """Hull over the space of `elements` without the phases `left_out`; built once."""
        key = (elements, left_out)
        if key not in self._regions:
            self._regions[key] = _Region(elements, [s.without(left_out) for s in self._systems_within(elements)])
        return self._regions[key]

    def _systems_within(self, elements: ChemicalSystem) -> Iterable[_System]:
        if 2 ** len(elements) > len(self._systems):
            return [system for key, system in self._systems.items() if key <= elements]
        subsets = chain.from_iterable(combinations(sorted(elements), n) for n in range(1, len(elements) + 1))
        return [self._systems[key] for key in map(frozenset, subsets) if key in self._systems]


@dataclass(frozen=True)
class _System:
    """The phases with exactly these elements, as numbers.

    `fractions` has one column per element, in the order of `elements`, which is sorted by symbol.
    """

    elements: tuple[str, ...]
    phases: tuple[Phase, ...]
    fractions: np.ndarray
    energies: np.ndarray

    @classmethod
    def of(cls, elements: ChemicalSystem, phases: Sequence[Phase]) -> _System:
        columns = tuple(sorted(elements))
        ordered = tuple(sorted(phases, key=_by_energy))
        amounts = np.array([[phase.composition[element] for element in columns] for phase in ordered])
        energies = np.array([phase.energy_per_atom for phase in ordered])
        return cls(columns, ordered, amounts.reshape(-1, len(columns)) / amounts.sum(axis=1, keepdims=True), energies)

    def add(self, phases: Sequence[Phase]) -> _System:
        new = _System.of(frozenset(self.elements), phases)
        rows = [bisect_left(self.phases, _by_energy(phase), key=_by_energy) for phase in new.phases]
        merged = list(self.phases)
        for row, phase in zip(reversed(rows), reversed(new.phases), strict=True):
            merged.insert(row, phase)
        fractions = np.insert(self.fractions, rows, new.fractions, axis=0)
        return _System(self.elements, tuple(merged), fractions, np.insert(self.energies, rows, new.energies))

    def without(self, left_out: Collection[str]) -> _System:
        kept = [row for row, phase in enumerate(self.phases) if phase.id not in left_out] if left_out else None
        if kept is None or len(kept) == len(self.phases):
            return self
        phases = tuple(self.phases[row] for row in kept)
        return _System(self.elements, phases, self.fractions[kept], self.energies[kept])


class _Region:
    """The hull over one chemical system and all systems within it."""

    def __init__(self, elements: ChemicalSystem, systems: Sequence[_System]) -> None:
        self._elements = tuple(sorted(elements))
        self._phases = [phase for system in systems for phase in system.phases]
        column = {element: index for index, element in enumerate(self._elements)}
        fractions = np.zeros((len(self._phases), len(self._elements)))
        start = 0
        for system in systems:
            stop = start + len(system.phases)
            fractions[start:stop, [column[element] for element in system.elements]] = system.fractions
            start = stop
        self._hull = LowerHull(fractions, np.concatenate([system.energies for system in systems]))

    @cached_property
    def stable_ids(self) -> frozenset[str]:
        return frozenset(self._phases[row].id for row in self._hull.vertices)

    @cached_property
    def tie_lines(self) -> tuple[tuple[str, str], ...]:
        pairs = (sorted((self._phases[first].id, self._phases[second].id)) for first, second in self._hull.edges)
        return tuple(sorted((first, second) for first, second in pairs))

    def _fractions(self, composition: Mapping[str, float]) -> np.ndarray:
        amounts = np.array([composition.get(element, 0.0) for element in self._elements], dtype=np.float64)
        return amounts / amounts.sum()

    def is_changed_by(self, phase: Phase) -> bool:
        """Whether the hull moves, or has another corner, when `phase` is added."""
        return self.decompose(phase.composition, phase.energy_per_atom).e_above_hull == 0.0

    def decompose(self, composition: Mapping[str, float], energy_per_atom: float) -> Decomposition:
        fractions = self._fractions(composition)
        rows, amounts = self._hull.products(fractions)
        products = {self._phases[row].formula: float(n) for row, n in zip(rows, amounts, strict=True)}
        energy = energy_per_atom - float(amounts @ [self._phases[row].energy_per_atom for row in rows])
        return Decomposition(energy, energy if energy > NUMERICAL_TOLERANCE else 0.0, products)


def _by_energy(phase: Phase) -> tuple[float, str]:
    return phase.energy_per_atom, phase.id


def _checked(composition: Mapping[str, float], what: str) -> None:
    if not composition:
        raise InvalidInputError(f"{what} is empty")
    for element, amount in composition.items():
        if not Element.is_valid_symbol(element):
            raise InvalidInputError(f"{what} names {element!r}, which is not an element")
        if not (math.isfinite(amount) and amount > 0):
            raise InvalidInputError(f"{what} has amount {amount} of {element}, expected a number above 0")
