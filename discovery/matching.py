"""Which crystals are physical, which are the same, and what symmetry they have."""

from __future__ import annotations

from collections.abc import Mapping

import moyopy
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError

MIN_DISTANCE = 0.5
"""Å; the validity limit of CDVAE (Xie et al., ICLR 2022); the shortest bond there is, H–H, has 0.74 Å."""

MIN_VOLUME_PER_ATOM = 2.0
"""Å³; metallic hydrogen at hundreds of GPa and diamond (5.7 Å³) lie above."""

MAX_VOLUME_PER_ATOM = 1000.0
"""Å³; leaves room for a molecule in a box, which elemental references use."""


def is_valid(crystal: Crystal) -> str | None:
    """Return why `crystal` is not a physical crystal, or None if it is one.

    Tested are the number of atoms, the volume per atom, and the distances between atoms, periodic images of an atom
    with itself included.
    """
    if len(crystal) == 0:
        return "it has no atoms"
    volume = crystal.volume / len(crystal)
    if not volume >= MIN_VOLUME_PER_ATOM:
        return f"volume {volume:.3g} Å³/atom is below {MIN_VOLUME_PER_ATOM} Å³/atom"
    if volume > MAX_VOLUME_PER_ATOM:
        return f"volume {volume:.4g} Å³/atom is above {MAX_VOLUME_PER_ATOM:.0f} Å³/atom"
    structure = crystal.to_structure()
    shortest_vector = float(np.min(structure.lattice.get_lll_reduced_lattice().abc))
    if shortest_vector < MIN_DISTANCE:
        return f"the shortest lattice vector has {shortest_vector:.3f} Å, below {MIN_DISTANCE} Å"
    distances = structure.get_neighbor_list(MIN_DISTANCE)[3]
    if len(distances):
        return f"two atoms are {distances.min():.3f} Å apart, below {MIN_DISTANCE} Å"
    return None


class Matcher:
    """Finds a crystal among known ones by structure, not by coordinates.

    Parameters
    ----------
    ltol, stol, angle_tol
        Tolerances of pymatgen's ``StructureMatcher``: relative length, site distance in units of
        (volume/atom)^(1/3), and degrees. Cells are reduced to primitive and scaled to equal volume.
    """

    def __init__(self, ltol: float = 0.2, stol: float = 0.3, angle_tol: float = 5.0) -> None:
        self._matcher = StructureMatcher(ltol=ltol, stol=stol, angle_tol=angle_tol)
        self._formulas: dict[Crystal, str] = {}
        self._structures: dict[Crystal, Structure] = {}

    def find(self, crystal: Crystal, known: Mapping[str, Crystal]) -> str | None:
        """Return the id of the first crystal in `known`, in its order, that has the structure of `crystal`, or None.

        Only crystals of the same reduced formula are compared; both sides are cached, so a matcher should be kept.
        """
        formula = self._formula(crystal)
        same_formula = (id_ for id_, other in known.items() if self._formula(other) == formula)
        return next((id_ for id_ in same_formula if self._same(crystal, known[id_])), None)

    def _formula(self, crystal: Crystal) -> str:
        if crystal not in self._formulas:
            self._formulas[crystal] = crystal.formula
        return self._formulas[crystal]

    def _structure(self, crystal: Crystal) -> Structure:
        if crystal not in self._structures:
            self._structures[crystal] = crystal.to_structure()
        return self._structures[crystal]

    def _same(self, first: Crystal, second: Crystal) -> bool:
        return first == second or bool(self._matcher.fit(self._structure(first), self._structure(second)))


def spacegroup(crystal: Crystal, symprec: float = 0.1) -> tuple[int, str]:
    """Return number (1–230) and Hermann–Mauguin symbol of the space group, found by moyo within `symprec` in Å."""
    cell = moyopy.Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist())
    try:
        number = moyopy.MoyoDataset(cell, symprec=symprec).number
    except (ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"no space group found for {crystal.formula} within symprec {symprec} Å ({error}); try a smaller symprec"
        ) from error
    return number, moyopy.SpaceGroupType(number).hm_short.replace(" ", "")
