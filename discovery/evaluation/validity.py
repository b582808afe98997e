"""Validity of crystals as CDVAE defines it (Xie et al., ICLR 2022): by distances, and by charges.

The charge rule is that of SMACT (Davies et al., J. Open Source Softw. 4, 1361, 2019) with the tables of version 2.6,
which the field uses; later versions allow other oxidation states, and give other numbers.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product
from math import gcd, prod
from typing import Literal

import numpy as np
from pymatgen.core import Element, Structure

from discovery.crystal import Crystal
from discovery.evaluation.tables import table
from discovery.matching import MIN_DISTANCE

MIN_VOLUME = 0.1
"""Å³, of the cell."""

MAX_COMBINATIONS = 1_000_000
"""Combinations of oxidation states that are tried before a composition is called undetermined."""

Charges = Literal["valid", "invalid", "undetermined"]


def distances_are_valid(structure: Structure) -> bool:
    """Whether all distinct atoms are at least 0.5 Å apart and the cell has at least 0.1 Å³.

    As in the original, the distance of an atom from its own images is not tested: see :func:`images_are_valid`.
    """
    if structure.volume < MIN_VOLUME:  # first, because a flat cell has no distances
        return False
    distances = structure.distance_matrix
    np.fill_diagonal(distances, np.inf)
    return bool(distances.min() >= MIN_DISTANCE)


def images_are_valid(structure: Structure) -> bool:
    """Whether every atom is at least 0.5 Å from its own periodic images; never of a flat cell."""
    return structure.volume >= MIN_VOLUME and bool(min(structure.lattice.get_lll_reduced_lattice().abc) >= MIN_DISTANCE)


def charges(crystal: Crystal) -> Charges:
    """Return whether some oxidation states make the composition neutral with anions more electronegative than cations.

    Elements, and compounds of metals alone, are valid. An element without oxidation states makes a compound invalid.
    """
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    divisor = gcd(*counts.tolist())
    return _charges(tuple(numbers.tolist()), tuple(count // divisor for count in counts.tolist()))


@lru_cache(maxsize=100_000)
def _charges(numbers: tuple[int, ...], amounts: tuple[int, ...]) -> Charges:
    """Return the same for a reduced composition, given as atomic numbers and amounts."""
    if len(numbers) == 1:
        return "valid"
    known = table("smact_2_6")["elements"]
    symbols = [Element.from_Z(number).symbol for number in numbers]
    if any(symbol not in known for symbol in symbols):
        return "undetermined"
    if all(known[symbol]["metal"] for symbol in symbols):
        return "valid"
    states = [known[symbol]["oxidation_states"] for symbol in symbols]
    if prod(map(len, states)) > MAX_COMBINATIONS:
        return "undetermined"
    electronegativities = [known[symbol]["electronegativity"] for symbol in symbols]
    for chosen in product(*states):
        if sum(state * n for state, n in zip(chosen, amounts, strict=True)) == 0 and _pauling(
            chosen, electronegativities
        ):
            return "valid"
    return "invalid"


def _pauling(states: tuple[int, ...], electronegativities: list[float | None]) -> bool:
    """Whether every cation is less electronegative than every anion; False if an electronegativity is unknown."""
    if None in electronegativities:
        return False
    ions = zip(states, electronegativities, strict=True)
    return not any(
        (first > 0 > second and chi >= other) or (first < 0 < second and chi <= other)  # type: ignore[operator]
        for (first, chi), (second, other) in combinations(ions, 2)
    )
