"""Neighbours of the atoms of a crystal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from discovery.crystal import Crystal

PERIODIC = np.ones(3, dtype=np.int64)


class Bonds(NamedTuple):
    """Pairs of atoms, each pair once: atom `first` of the cell, and atom `second` in the cell shifted by `image`.

    `vector` points from the first to the second, Å; `length` is its norm. Shapes (M,), (M,), (M, 3), (M, 3), (M,).
    """

    first: np.ndarray
    second: np.ndarray
    image: np.ndarray
    vector: np.ndarray
    length: np.ndarray


def bonds(crystal: Crystal, cutoff: float) -> Bonds:
    """Return all pairs of atoms, periodic images included, that are at most `cutoff` (Å) apart."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    lattice = np.ascontiguousarray(crystal.lattice)
    positions = crystal.frac_coords @ lattice
    first, second, image, length = find_points_in_spheres(
        positions, positions, r=cutoff, pbc=PERIODIC, lattice=lattice, tol=1e-8
    )
    image = image.astype(np.int64)
    sign = np.where(image[:, 0] != 0, image[:, 0], np.where(image[:, 1] != 0, image[:, 1], image[:, 2]))
    once = (first < second) | ((first == second) & (sign > 0))
    first, second, image, length = first[once], second[once], image[once], length[once]
    return Bonds(first, second, image, positions[second] + image @ lattice - positions[first], length)
