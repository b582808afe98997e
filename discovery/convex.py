"""The lower convex hull of energies over composition, as planes that are evaluated by a matrix product.

Follows pymatgen's ``PhaseDiagram`` (Ong et al., Chem. Mater. 20, 1798, 2008): Qhull gives the facets, phases with
formation energies above zero are left out. The hull energy at a composition is the largest value of all facet planes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from discovery.errors import InvalidInputError

TOLERANCE = 1e-9
"""eV/atom by which a facet plane may lie above a vertex: rounding of Qhull."""

FRACTION_TOLERANCE = 1e-8
"""Atomic fraction below which an amount counts as none."""


class LowerHull:
    """Lower convex hull of points over the compositions of a chemical system.

    Parameters
    ----------
    fractions
        Atomic fractions, shape (n, k) for k elements; rows add up to 1. A pure row of each element is needed.
    energies
        eV/atom, shape (n,).
    """

    def __init__(self, fractions: np.ndarray, energies: np.ndarray) -> None:
        n_elements = fractions.shape[1]
        self._terminals = np.empty(n_elements, dtype=np.int64)
        for column in range(n_elements):
            pure = np.flatnonzero(fractions[:, column] > 1 - FRACTION_TOLERANCE)
            if not len(pure):
                raise InvalidInputError(f"the chemical system has no phase of its element {column + 1}")
            self._terminals[column] = pure[energies[pure].argmin()]
        self._elemental = energies[self._terminals]
        formation = energies - fractions @ self._elemental
        compounds = np.flatnonzero(formation < -1e-11)
        compounds = compounds[_lowest(fractions[compounds], formation[compounds])]
        self._points = np.concatenate([self._terminals, compounds])
        self._fractions = fractions[self._points]
        self._formation = formation[self._points]
        self._formation[:n_elements] = 0.0
        facets = self._facets()
        vertices = self._fractions[facets]
        self._inverses = np.linalg.inv(vertices)
        planes = (self._inverses @ self._formation[facets][..., None])[..., 0]
        supporting = (self._fractions @ planes.T <= self._formation[:, None] + TOLERANCE).all(axis=0)
        self._planes, self._inverses, self._corners = planes[supporting], self._inverses[supporting], facets[supporting]

    @property
    def vertices(self) -> np.ndarray:
        """Rows of the given points that are corners of the hull, terminals included, sorted."""
        return np.unique(np.concatenate([self._terminals, self._points[self._corners].ravel()]))

    @property
    def edges(self) -> np.ndarray:
        """Edges of the hull's facets, rows of the given points, shape (n_edges, 2), each once, sorted."""
        first, second = np.triu_indices(self._corners.shape[1], k=1)
        pairs = np.stack([self._corners[:, first].ravel(), self._corners[:, second].ravel()], axis=1)
        return np.unique(np.sort(self._points[pairs], axis=1), axis=0)

    def products(self, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the points that a composition decomposes into.

        Parameters
        ----------
        fractions
            One composition, shape (k,).

        Returns
        -------
        rows, amounts
            Rows of the given points, and how many atoms of 1 are in each; amounts add up to 1.
        """
        heights = self._planes @ fractions
        near = np.flatnonzero(heights >= heights.max(initial=-np.inf) - TOLERANCE)
        for facet in near:
            amounts = fractions @ self._inverses[facet]
            if (amounts > -FRACTION_TOLERANCE).all():
                present = amounts > FRACTION_TOLERANCE
                return self._points[self._corners[facet][present]], amounts[present]
        solution = linprog(self._formation, A_eq=self._fractions.T, b_eq=fractions)  # a facet lost to rounding
        present = solution.x > FRACTION_TOLERANCE
        return self._points[present], solution.x[present]

    def _facets(self) -> np.ndarray:
        """Return the corners of the facets, indices into the points, shape (n_facets, k)."""
        n_elements = self._fractions.shape[1]
        if len(self._points) == n_elements:
            return np.arange(n_elements)[None]
        coordinates = np.column_stack([self._fractions[:, 1:], self._formation])
        above = np.append(np.full(n_elements - 1, 1 / n_elements), 1.0)
        simplices = ConvexHull(np.vstack([coordinates, above]), qhull_options="Qt").simplices
        simplices = simplices[(simplices < len(self._points)).all(axis=1)]
        return simplices[np.abs(np.linalg.det(self._fractions[simplices])) > 1e-14]


def _lowest(fractions: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Return the row of lowest energy of each distinct composition, the first of equals, sorted."""
    if not len(energies):
        return np.empty(0, dtype=np.int64)
    order = np.argsort(energies, kind="stable")
    _, first = np.unique(np.round(fractions[order], 8), axis=0, return_index=True)
    return np.sort(order[first])
