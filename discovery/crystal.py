"""The crystal: the one value every part of the engine exchanges.

This module imports numpy only, so that model code can use it without pymatgen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from discovery.errors import InvalidInputError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Composition, Structure

CRYSTAL_FORMAT = "discovery.crystal/1"


@dataclass(frozen=True, eq=False)
class Crystal:
    """A periodic arrangement of atoms.

    Parameters
    ----------
    lattice
        Lattice vectors as rows, float64, shape (3, 3), Å.
    frac_coords
        Fractional coordinates, float64, shape (N, 3), wrapped into [0, 1).
    atomic_numbers
        Atomic numbers, int64, shape (N,).

    Raises
    ------
    InvalidInputError
        If shapes disagree, a number is not finite, or an atomic number lies outside 1–118.
    """

    lattice: np.ndarray
    frac_coords: np.ndarray
    atomic_numbers: np.ndarray

    def __post_init__(self) -> None:
        lattice = np.array(self.lattice, dtype=np.float64)
        frac = np.array(self.frac_coords, dtype=np.float64)
        numbers = np.array(self.atomic_numbers, dtype=np.int64)
        if lattice.shape != (3, 3):
            raise InvalidInputError(f"lattice has shape {lattice.shape}, expected (3, 3)")
        if numbers.ndim != 1 or frac.shape != (len(numbers), 3):
            raise InvalidInputError(
                f"frac_coords has shape {frac.shape} and atomic_numbers {numbers.shape}, expected (N, 3) and (N,)"
            )
        if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
            raise InvalidInputError("lattice or frac_coords contains a number that is not finite")
        if len(numbers) and (numbers.min() < 1 or numbers.max() > 118):
            raise InvalidInputError("atomic_numbers must lie between 1 and 118")
        frac = frac - np.floor(frac)
        frac[frac >= 1.0] = 0.0
        for name, array in (("lattice", lattice), ("frac_coords", frac), ("atomic_numbers", numbers)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Crystal) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    @property
    def volume(self) -> float:
        """Cell volume in Å³."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def composition(self) -> Composition:
        """The pymatgen composition of the cell."""
        return _composition(self._sorted_numbers)

    @property
    def formula(self) -> str:
        """Reduced formula, for example ``Mg2Si``."""
        return _formula(self._sorted_numbers)

    @property
    def chemsys(self) -> str:
        """Chemical system, for example ``Mg-Si``."""
        return self.composition.chemical_system

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """Make a crystal of an ordered pymatgen structure.

        Raises
        ------
        InvalidInputError
            If a site is partially occupied.
        """
        if not structure.is_ordered:
            raise InvalidInputError(f"{structure.composition.reduced_formula} has partially occupied sites")
        return cls(structure.lattice.matrix, structure.frac_coords, np.array([site.specie.Z for site in structure]))

    def to_structure(self) -> Structure:
        """Return the crystal as a pymatgen ``Structure``."""
        from pymatgen.core import Element, Structure

        return Structure(self.lattice, [Element.from_Z(int(z)) for z in self.atomic_numbers], self.frac_coords)

    @classmethod
    def from_atoms(cls, atoms: Atoms) -> Crystal:
        """Make a crystal of ASE ``Atoms`` with a three-dimensional cell."""
        return cls(atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers)

    def to_atoms(self) -> Atoms:
        """Return the crystal as ASE ``Atoms``, periodic in three directions."""
        from ase import Atoms

        return Atoms(
            numbers=self.atomic_numbers, scaled_positions=self.frac_coords, cell=np.array(self.lattice), pbc=True
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the version-stamped JSON form; independent of Python class paths."""
        return {
            "format": CRYSTAL_FORMAT,
            "lattice": self.lattice.tolist(),
            "frac_coords": self.frac_coords.tolist(),
            "atomic_numbers": self.atomic_numbers.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Crystal:
        """Read the form that :meth:`to_dict` writes."""
        if data.get("format") != CRYSTAL_FORMAT:
            raise InvalidInputError(f"crystal has format {data.get('format')!r}, this version reads {CRYSTAL_FORMAT!r}")
        return cls(data["lattice"], data["frac_coords"], data["atomic_numbers"])

    @property
    def _sorted_numbers(self) -> bytes:
        return np.sort(self.atomic_numbers).tobytes()

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the crystal's numbers, as hexadecimal text."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _composition(atomic_numbers: bytes) -> Composition:
    from pymatgen.core import Composition, Element

    numbers, counts = np.unique(np.frombuffer(atomic_numbers, dtype=np.int64), return_counts=True)
    return Composition({Element.from_Z(int(z)): int(n) for z, n in zip(numbers, counts, strict=True)})


@lru_cache(maxsize=4096)
def _formula(atomic_numbers: bytes) -> str:
    return _composition(atomic_numbers).reduced_formula
