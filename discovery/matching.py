"""Which crystals are physical, which are the same, and what symmetry they have."""

from __future__ import annotations

import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Any, ClassVar, Literal

import moyopy
import numpy as np
from pymatgen.analysis.structure_matcher import OrderDisorderElementComparator, StructureMatcher
from pymatgen.core import Element, Lattice, Structure

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
    return not is_thin(Lattice(crystal.lattice))


def is_thin(lattice: Lattice) -> bool:
    """Whether the longest vector of the reduced cell is more than 100 times the shortest."""
    lengths = lattice.get_lll_reduced_lattice().abc
    return max(lengths) > MAX_ASPECT_RATIO * min(lengths)


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

    kind: ClassVar[str] = "ordered"

    def __init__(self, ltol: float = 0.2, stol: float = 0.3, angle_tol: float = 5.0) -> None:
        self._matcher = StructureMatcher(ltol=ltol, stol=stol, angle_tol=angle_tol)
        self._tolerances = {"ltol": ltol, "stol": stol, "angle_tol": angle_tol}
        self._ltol, self._angle_tol = ltol, np.radians(angle_tol)
        self._formulas: dict[Crystal, str] = {}
        self._reduced: dict[Crystal, _Reduced | None] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Kind and tolerances: whatever moves the answer."""
        return {"kind": self.kind, **self._tolerances}

    def same(self, crystal: Crystal, known: Crystal) -> bool:
        """Whether `crystal` has the structure of `known`; the relation is neither transitive nor quite symmetric.

        Crystals that are not :func:`comparable` are the same as identical ones only.
        """
        if self.formula(crystal) != self.formula(known):
            return False
        return crystal == known or self._fit(crystal, known)

    def rms(self, crystal: Crystal, known: Crystal) -> float | None:
        """Return the root mean square displacement of matching sites, as ``StructureMatcher.get_rms_dist`` does.

        In units of (volume/atom)^(1/3), after scaling to equal volume; None if the crystals do not match.
        """
        if self.formula(crystal) != self.formula(known):
            return None
        return self._rms(crystal, known)

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
            self._reduced[crystal] = _Reduced.of(crystal.to_structure()) if comparable(crystal) else None
        return self._reduced[crystal]

    def _candidates(self, crystal: Crystal, known: Crystal) -> tuple[Structure, Structure] | None:
        """Return the reduced structures if they may match, None if they cannot."""
        first, second = self._reduce(crystal), self._reduce(known)
        if first is None or second is None or first.n_sites != second.n_sites or not self._lattices_fit(first, second):
            return None
        return first.structure, second.structure

    def _fit(self, crystal: Crystal, known: Crystal) -> bool:
        pair = self._candidates(crystal, known)
        return pair is not None and bool(self._matcher.fit(*pair, skip_structure_reduction=True))

    def _rms(self, crystal: Crystal, known: Crystal) -> float | None:
        pair = self._candidates(crystal, known)
        return None if pair is None else _rms_displacement(self._matcher, *pair)

    def _lattices_fit(self, crystal: _Reduced, known: _Reduced, n_cells: int = 1) -> bool:
        """Whether vectors of one lattice have the lengths and angles of the other's cell, as ``fit`` requires.

        The lengths of a reduced cell are the shortest of independent vectors, so none can exceed its counterpart by
        more than the tolerance. `n_cells` cells of `crystal` are scaled to the volume of the cell of `known`.
        """
        stretch = 1 + self._ltol + ROUNDING
        scale = (known.n_sites / (n_cells * crystal.n_sites)) ** (1 / 3)
        if (scale * crystal.lengths > stretch * known.lengths).any():
            return False
        vectors, norms = crystal.vectors_within(stretch * known.lengths[-1] / scale)
        near = [
            np.abs(scale * norms - length) < (self._ltol + ROUNDING) * length
            for length in np.linalg.norm(known.cell, axis=1)
        ]
        if math.prod(int(mask.sum()) for mask in near) > MAX_MAPPINGS:
            return False
        directions = [vectors[mask] / norms[mask, None] for mask in near]
        fits = []
        for first, second in ((0, 1), (0, 2), (1, 2)):
            cosines = directions[first] @ directions[second].T
            low, high = known.cosine_range(first, second, self._angle_tol + ROUNDING)
            fits.append((cosines > low) & (cosines < high))
        gamma, beta, alpha = fits
        return bool((gamma[:, :, None] & beta[:, None, :] & alpha[None]).any())


MAX_MAPPINGS = 20_000_000
"""Combinations of lattice vectors beyond which a supercell is too large to be searched; such crystals do not match."""

ROUNDING = 1e-6
"""Slack of the preliminary tests, so that rounding never rejects what ``StructureMatcher`` accepts."""


@dataclass(frozen=True, eq=False)
class _Reduced:
    """The reduced primitive cell of a crystal; `cell` and its sorted `lengths` are scaled to volume 1 per site."""

    structure: Structure
    n_sites: int
    cell: np.ndarray
    lengths: np.ndarray
    _shortest: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, structure: Structure) -> _Reduced:
        structure = StructureMatcher._get_reduced_structure(structure, True, True)
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


def _rms_displacement(matcher: StructureMatcher, crystal: Structure, known: Structure) -> float | None:
    """Return what ``matcher.get_rms_dist`` returns first, of structures that are reduced already."""
    match = matcher._match(*matcher._preprocess(crystal, known, skip_structure_reduction=True), use_rms=True)
    return None if match is None else float(match[0])


class DisorderedMatcher(Matcher):
    """Sees crystals as the same also if they are two orderings of one disordered alloy.

    After the disordered matcher of MatterGen (Zeni et al., Nature 639, 624, 2025). What :class:`Matcher` matches,
    matches. Else the elements of `crystal` that substitute for each other share their sites by their amounts, and
    ``StructureMatcher`` compares that with `known` by ``OrderDisorderElementComparator``, with supercells and with
    subsets of sites. The reduced formulas must be equal, so buckets of one formula hold all candidates. Unlike in
    MatterGen, space groups that differ do not keep ordered crystals from matching.
    """

    kind = "disordered"

    def __init__(self, ltol: float = 0.2, stol: float = 0.3, angle_tol: float = 5.0) -> None:
        super().__init__(ltol, stol, angle_tol)
        self._disordered = StructureMatcher(
            ltol=ltol,
            stol=stol,
            angle_tol=angle_tol,
            attempt_supercell=True,
            allow_subset=True,
            comparator=OrderDisorderElementComparator(),
        )
        self._shared: dict[Crystal, _Reduced | None] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Kind, tolerances, and which elements substitute for each other."""
        return super().settings | {
            "max_relative_radius_difference": MAX_RELATIVE_RADIUS_DIFFERENCE,
            "max_electronegativity_difference": MAX_ELECTRONEGATIVITY_DIFFERENCE,
        }

    def _fit(self, crystal: Crystal, known: Crystal) -> bool:
        if super()._fit(crystal, known):
            return True
        pair = self._disordered_candidates(crystal, known)
        return pair is not None and bool(self._disordered.fit(*pair, skip_structure_reduction=True))

    def _rms(self, crystal: Crystal, known: Crystal) -> float | None:
        found = super()._rms(crystal, known)
        if found is not None:
            return found
        pair = self._disordered_candidates(crystal, known)
        return None if pair is None else _rms_displacement(self._disordered, *pair)

    def _disordered_candidates(self, crystal: Crystal, known: Crystal) -> tuple[Structure, Structure] | None:
        """Return `crystal` with shared sites, and `known`, if they may match, None if they cannot."""
        first, second = self._share(crystal), self._reduce(known)
        if first is None or second is None:
            return None
        n_cells, of_first = self._disordered._get_supercell_size(first.structure, second.structure)
        small, large = (first, second) if of_first else (second, first)
        return (first.structure, second.structure) if self._lattices_fit(small, large, n_cells) else None

    def _share(self, crystal: Crystal) -> _Reduced | None:
        """Return the reduced cell with shared sites; None if no elements substitute for each other."""
        if crystal not in self._shared:
            shared = with_shared_sites(crystal) if comparable(crystal) else None
            self._shared[crystal] = None if shared is None else _Reduced.of(shared)
        return self._shared[crystal]


MAX_RELATIVE_RADIUS_DIFFERENCE = 0.3
MAX_ELECTRONEGATIVITY_DIFFERENCE = 1.0
"""Between elements that substitute for each other: of atomic radii over their mean, and on Pauling's scale; MatterGen's
form of the rules of Hume-Rothery."""


@cache
def substitute(first: str, second: str) -> bool:
    """Whether two elements may share a site; False if radius or electronegativity of one is unknown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a, b = Element(first), Element(second)
        radius, other_radius, difference = a.atomic_radius, b.atomic_radius, abs(a.X - b.X)
    if radius is None or other_radius is None:
        return False
    mean_radius = (radius + other_radius) / 2
    return bool(
        abs(radius - other_radius) <= MAX_RELATIVE_RADIUS_DIFFERENCE * mean_radius
        and difference <= MAX_ELECTRONEGATIVITY_DIFFERENCE  # never true of an unknown one, which is NaN
    )


def with_shared_sites(crystal: Crystal) -> Structure | None:
    """Return `crystal` with the elements that substitute for each other spread over their sites by their amounts.

    Elements that are connected through a third one share sites as well. None if no two elements substitute.
    """
    amounts = crystal.composition.get_el_amt_dict()
    groups = [{element} for element in amounts]
    for first, second in combinations(amounts, 2):
        if substitute(first, second):
            joined = [group for group in groups if first in group or second in group]
            groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    if len(groups) == len(amounts):
        return None
    occupations: dict[Any, Any] = {}
    for group in groups:
        total = sum(amounts[element] for element in group)
        shares = {element: amounts[element] / total for element in sorted(group)}
        occupations |= dict.fromkeys(group, shares)
    structure = crystal.to_structure()
    structure.replace_species(occupations)
    return structure


MatcherKind = Literal["ordered", "disordered"]


def create_matcher(kind: MatcherKind, ltol: float = 0.2, stol: float = 0.3, angle_tol: float = 5.0) -> Matcher:
    """Return a matcher of `kind`."""
    return (DisorderedMatcher if kind == "disordered" else Matcher)(ltol, stol, angle_tol)


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
