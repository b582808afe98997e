"""Compositions of a chemical space: which exist, which are balanced in charge, how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from itertools import combinations, product

import numpy as np
from pymatgen.core import Composition, Element


class Chemistry(IntEnum):
    """Why a composition may be a compound; lower is likelier."""

    CHARGE_BALANCED = 0
    MIXED_VALENCE = 1
    SIMPLE_RATIO = 2


@dataclass(frozen=True)
class Stoichiometry:
    """A reduced composition with what chemistry says of it.

    Parameters
    ----------
    counts
        Element and number of atoms per formula unit, in the order of the chemical space.
    chemistry
        Whether oxidation states balance.
    oxidation_states
        Element and mean oxidation state that balance the charge; empty for a simple ratio.
    """

    counts: tuple[tuple[str, int], ...]
    chemistry: Chemistry
    oxidation_states: tuple[tuple[str, float], ...]

    @cached_property
    def formula(self) -> str:
        """Reduced formula as pymatgen writes it, for example ``Mg2Si``."""
        return Composition(dict(self.counts)).reduced_formula

    @property
    def n_atoms(self) -> int:
        """Atoms per formula unit."""
        return sum(count for _, count in self.counts)

    def cell(self, formula_units: int) -> dict[str, int]:
        """Atoms of each element in a cell of so many formula units."""
        return {element: count * formula_units for element, count in self.counts}

    def describe(self) -> str:
        """Chemistry in words, for example ``charge-balanced (Mg +2, Si -4)``."""
        if self.chemistry is Chemistry.SIMPLE_RATIO:
            return "simple ratio " + ":".join(str(count) for _, count in self.counts)
        states = ", ".join(f"{element} {state:+.3g}" for element, state in self.oxidation_states)
        return f"{self.chemistry.name.lower().replace('_', '-')} ({states})"


@cache
def stoichiometries(elements: tuple[str, ...], max_atoms: int) -> tuple[Stoichiometry, ...]:
    """Return all reduced compositions of two or more of `elements` that fit a cell of `max_atoms`.

    They are ordered by chemistry, then by atoms per formula unit. A space of one element has that element alone.
    """
    found = [
        _stoichiometry(subset, counts)
        for size in range(min(2, len(elements)), len(elements) + 1)
        for subset in combinations(elements, size)
        for counts in _partitions(size, max_atoms)
        if math.gcd(*counts) == 1
    ]
    return tuple(sorted(found, key=lambda s: (s.chemistry, s.n_atoms, s.counts)))


def balanced_states(counts: Mapping[str, int], *, mixed_valence: bool = False) -> dict[str, float] | None:
    """Return mean oxidation states that balance the charge, or None.

    Every anion must be more electronegative (Pauling) than every cation. With `mixed_valence` one cation may have a
    mean state between the lowest and highest it is known in, as Mn has in Mn3O4.

    Parameters
    ----------
    counts
        Element symbol → atoms.
    mixed_valence
        Whether one element may have more than one oxidation state.
    """
    elements = list(counts)
    if len(elements) < 2:
        return None
    choices = [oxidation_states(element) for element in elements]
    for states in product(*choices):
        assigned = dict(zip(elements, states, strict=True))
        if sum(counts[element] * state for element, state in assigned.items()) == 0 and _anions_attract(assigned):
            return {element: float(state) for element, state in assigned.items()}
    if not mixed_valence:
        return None
    for index, mixed in enumerate(elements):
        cation_states = [state for state in choices[index] if state > 0]
        if len(cation_states) < 2:
            continue
        for states in product(*choices[:index], [0], *choices[index + 1 :]):
            others = dict(zip(elements, states, strict=True))
            mean = -sum(counts[element] * state for element, state in others.items()) / counts[mixed]
            if min(cation_states) < mean < max(cation_states) and _anions_attract({**others, mixed: mean}):
                return {element: float(state) for element, state in {**others, mixed: mean}.items()}
    return None


@cache
def oxidation_states(element: str) -> tuple[int, ...]:
    """Return the common oxidation states of an element, both signs: pymatgen's textbook and ICSD lists together."""
    known = Element(element)
    return tuple(sorted({*known.common_oxidation_states, *known.icsd_oxidation_states}, key=lambda s: (abs(s), s)))


def atomic_fractions(compositions: Sequence[Mapping[str, int]], elements: Sequence[str]) -> np.ndarray:
    """Return atomic fractions, shape (number of compositions, number of elements)."""
    counts = np.array([[composition.get(element, 0) for element in elements] for composition in compositions], float)
    return counts.reshape(-1, len(elements)) / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def _stoichiometry(elements: Sequence[str], counts: Sequence[int]) -> Stoichiometry:
    amounts = dict(zip(elements, counts, strict=True))
    if states := balanced_states(amounts):
        chemistry = Chemistry.CHARGE_BALANCED
    elif states := balanced_states(amounts, mixed_valence=True):
        chemistry = Chemistry.MIXED_VALENCE
    else:
        chemistry = Chemistry.SIMPLE_RATIO
    return Stoichiometry(tuple(amounts.items()), chemistry, tuple((states or {}).items()))


def _partitions(parts: int, max_total: int) -> Iterator[tuple[int, ...]]:
    """Tuples of `parts` numbers ≥ 1 with a sum ≤ `max_total`."""
    if parts == 0:
        yield ()
        return
    for first in range(1, max_total - parts + 2):
        for rest in _partitions(parts - 1, max_total - first):
            yield (first, *rest)


def _anions_attract(states: Mapping[str, float]) -> bool:
    anions = [Element(element).X for element, state in states.items() if state < 0]
    cations = [Element(element).X for element, state in states.items() if state > 0]
    return bool(anions) and bool(cations) and min(anions) > max(cations)
