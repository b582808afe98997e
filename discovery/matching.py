"""Which crystals are physical, which are the same, and what symmetry they have."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import moyopy
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

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


MAX_ASPECT_RATIO = 100.0
"""Longest over shortest vector of a reduced cell up to which crystals are compared."""


def comparable(crystal: Crystal) -> bool:
    """Whether a cell has a volume and is not so thin that searching its lattice vectors takes forever."""
    if not len(crystal) or crystal.volume / len(crystal) < MIN_COMPARABLE_VOLUME:
        return False
    lengths = Lattice(crystal.lattice).get_lll_reduced_lattice().abc
    return max(lengths) <= MAX_ASPECT_RATIO * min(lengths)


MIN_COMPARABLE_VOLUME = 0.01
"""Å³/atom."""


class Matcher:
    """Tells whether crystals have the same structure, whatever their cells and coordinates.

    The answer is that of pymatgen's ``StructureMatcher.fit``; most pairs get it from what is computed once per crystal:
    reduced formula, number of atoms in the primitive cell, and whether the lattices can be mapped on each other at all.

    Parameters
    ----------
    ltol, stol, angle_tol
        Tolerances of ``StructureMatcher``: relative length, site distance in units of (volume/atom)^(1/3), and degrees.
        Cells are reduced to primitive and scaled to equal volume.
    """

    def __init__(self, ltol: float = 0.2, stol: float = 0.3, angle_tol: float = 5.0) -> None:
        self._matcher = StructureMatcher(ltol=ltol, stol=stol, angle_tol=angle_tol)
        self.tolerances = {"ltol": ltol, "stol": stol, "angle_tol": angle_tol}
        self._ltol, self._angle_tol = ltol, np.radians(angle_tol)
        self._formulas: dict[Crystal, str] = {}
        self._reduced: dict[Crystal, _Reduced | None] = {}

    def same(self, crystal: Crystal, known: Crystal) -> bool:
        """Whether `crystal` has the structure of `known`; the relation is neither transitive nor quite symmetric.

        Crystals that are not :func:`comparable` are the same as identical ones only.
        """
        if self.formula(crystal) != self.formula(known):
            return False
        if crystal == known:
            return True
        first, second = self._reduce(crystal), self._reduce(known)
        return first is not None and second is not None and self._fit(first, second)

    def find(self, crystal: Crystal, known: Mapping[str, Crystal]) -> str | None:
        """Return the id of the first crystal in `known`, in its order, that has the structure of `crystal`, or None.

        What was computed of either side is kept; use :class:`CrystalIndex` where many crystals are known.
        """
        return next((id_ for id_, other in known.items() if self.same(crystal, other)), None)

    def formula(self, crystal: Crystal) -> str:
        """Return the reduced formula."""
        if crystal not in self._formulas:
            self._formulas[crystal] = crystal.formula
        return self._formulas[crystal]

    def _reduce(self, crystal: Crystal) -> _Reduced | None:
        if crystal not in self._reduced:
            self._reduced[crystal] = _Reduced.of(self._matcher, crystal) if comparable(crystal) else None
        return self._reduced[crystal]

    def _fit(self, crystal: _Reduced, known: _Reduced) -> bool:
        if crystal.n_atoms != known.n_atoms or not self._lattices_fit(crystal, known):
            return False
        return bool(self._matcher.fit(crystal.structure, known.structure, skip_structure_reduction=True))

    def _lattices_fit(self, crystal: _Reduced, known: _Reduced) -> bool:
        """Whether vectors of one lattice have the lengths and angles of the other's cell, as ``fit`` requires.

        The lengths of a reduced cell are the shortest of independent vectors, so none can exceed its counterpart by
        more than the tolerance.
        """
        stretch = 1 + self._ltol + ROUNDING
        if (crystal.lengths > stretch * known.lengths).any():
            return False
        vectors, norms = crystal.vectors_within(stretch * known.lengths[-1])
        near = [
            np.abs(norms - length) < (self._ltol + ROUNDING) * length for length in np.linalg.norm(known.cell, axis=1)
        ]
        directions = [vectors[mask] / norms[mask, None] for mask in near]
        fits = []
        for first, second in ((0, 1), (0, 2), (1, 2)):
            cosines = directions[first] @ directions[second].T
            low, high = known.cosine_range(first, second, self._angle_tol + ROUNDING)
            fits.append((cosines > low) & (cosines < high))
        gamma, beta, alpha = fits
        return bool((gamma[:, :, None] & beta[:, None, :] & alpha[None]).any())


ROUNDING = 1e-6
"""Slack of the preliminary tests, so that rounding never rejects what ``StructureMatcher`` accepts."""


@dataclass(frozen=True, eq=False)
class _Reduced:
    """The reduced primitive cell of a crystal; `cell` and its sorted `lengths` are scaled to volume 1 per atom."""

    structure: Structure
    n_atoms: int
    cell: np.ndarray
    lengths: np.ndarray
    _shortest: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, matcher: StructureMatcher, crystal: Crystal) -> _Reduced:
        structure = matcher._get_reduced_structure(crystal.to_structure(), True, True)
        cell = structure.lattice.matrix * (len(structure) / structure.volume) ** (1 / 3)
        return cls(structure, len(structure), cell, np.sort(np.linalg.norm(cell, axis=1)))

    def vectors_within(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Return lattice vectors no longer than `radius`, or somewhat more of them, and their lengths."""
        if not self._shortest or self._shortest[-1][0] < radius:
            bounds = np.ceil(radius * np.linalg.norm(np.linalg.inv(self.cell), axis=0)).astype(int)
            steps = np.meshgrid(*[np.arange(-n, n + 1) for n in bounds], indexing="ij")
            vectors = np.stack(steps, axis=-1).reshape(-1, 3) @ self.cell
            norms = np.linalg.norm(vectors, axis=1)
            inside = (norms <= radius) & (norms > 0)
            self._shortest.append((radius, vectors[inside], norms[inside]))
        return self._shortest[-1][1:]

    def cosine_range(self, first: int, second: int, tolerance: float) -> tuple[float, float]:
        """Return the cosines between which an angle lies within `tolerance` (radians) of that of two cell vectors."""
        a, b = self.cell[first], self.cell[second]
        angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
        low = np.cos(angle + tolerance) if angle + tolerance < np.pi else -2.0
        high = np.cos(angle - tolerance) if angle > tolerance else 2.0
        return float(low), float(high)


class CrystalIndex:
    """Known crystals in buckets of equal reduced formula, in which a crystal is found without looking at the others.

    Parameters
    ----------
    matcher
        Decides which crystals are the same.
    known
        Id → crystal.
    """

    def __init__(self, matcher: Matcher, known: Mapping[str, Crystal] | None = None) -> None:
        self._matcher = matcher
        self._buckets: dict[str, dict[str, Crystal]] = defaultdict(dict)
        self._exact: dict[Crystal, str] = {}
        for id_, crystal in (known or {}).items():
            self.add(id_, crystal)

    def add(self, id_: str, crystal: Crystal) -> None:
        """Add a crystal."""
        self._buckets[self._matcher.formula(crystal)][id_] = crystal
        self._exact.setdefault(crystal, id_)

    def find(self, crystal: Crystal) -> str | None:
        """Return the id of a known crystal of the same structure, identical ones first, then in order of addition."""
        if crystal in self._exact:
            return self._exact[crystal]
        return self._matcher.find(crystal, self._buckets.get(self._matcher.formula(crystal), {}))


def duplicates(
    crystals: Mapping[str, Crystal], matcher: Matcher, progress: Callable[[], None] | None = None
) -> dict[str, str]:
    """Return id of each crystal that repeats an earlier one → id of that one.

    Each crystal is compared with the first of every group found so far. A matcher is not transitive, so the groups
    depend on the order: sort by energy, or by whatever makes the better representative, and then by content hash.
    `progress` is called after each crystal.
    """
    index = CrystalIndex(matcher)
    repeated: dict[str, str] = {}
    for id_, crystal in crystals.items():
        first = index.find(crystal)
        if first is None:
            index.add(id_, crystal)
        else:
            repeated[id_] = first
        if progress is not None:
            progress()
    return repeated


logging.getLogger("moyo").setLevel(logging.ERROR)  # it warns about the orbits of supercells, which nobody asks for here


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
