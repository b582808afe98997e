"""Quasi-Newton relaxation of atoms and cell together, for one crystal."""

from __future__ import annotations

import numpy as np
from scipy.linalg import expm
from scipy.sparse import csr_array

from discovery.crystal import Crystal
from oracles.neighbors import bonds

SPRING = 1.5
"""Spring constant of two atoms that touch, eV/Å²."""
DECAY = 4.0
"""How fast springs weaken with distance: exp(−DECAY (r / (r₁ + r₂) − 1)), r₁ and r₂ the covalent radii."""
BENDING = 0.1
"""Stiffness against sideways displacement, relative to that along the bond."""
SPRING_RANGE = 6.0
"""Longest spring, Å."""
SOFTEST = 0.3
"""Smallest curvature that a step may trust, eV/Å²."""
LARGEST_STEP = 0.3
"""First limit on the displacement of an atom in one step, Å; a strain counts as 2.5 Å times its largest component."""
SMALLEST_LIMIT = 1e-3
"""Limit below which no failure reduces it, Å."""
RISE = 1e-4
"""Rise of the energy, eV/atom, by the forces and stress at both ends of a step, after which a step is taken back."""
STRAIN_LENGTH = 2.5
"""Length that turns a strain into a displacement comparable with that of atoms, Å."""

STRAINS = np.zeros((6, 3, 3))
"""Orthonormal basis of the symmetric 3×3 matrices, in Voigt's order."""
for _k, (_a, _b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
    STRAINS[_k, _a, _b] = STRAINS[_k, _b, _a] = 1.0 if _a == _b else np.sqrt(0.5)


class QuasiNewton:
    """BFGS with a Hessian that begins as that of springs between neighbours, and a trust radius.

    The variables are the positions before deformation and the logarithm of the deformation of the cell, so that atoms
    and cell move together. Starting from springs, which couple them and know soft directions from stiff ones, saves
    most of the steps that are otherwise spent on learning both: the idea of Lindh et al., Chem. Phys. Lett. 241, 423
    (1995), for molecules and of Pfrommer et al., J. Comput. Phys. 131, 233 (1997), for the cell.

    Parameters
    ----------
    crystal
        Where the relaxation begins.
    """

    def __init__(self, crystal: Crystal) -> None:
        self._numbers = crystal.atomic_numbers
        self._lattice = crystal.lattice
        self._strain_unit = STRAIN_LENGTH * np.sqrt(len(crystal))
        self._x = np.concatenate([(crystal.frac_coords @ crystal.lattice).ravel(), np.zeros(6)])
        self._hessian = _springs(crystal, self._strain_unit)
        self._gradient: np.ndarray | None = None
        self._step = np.zeros_like(self._x)
        self._limit = LARGEST_STEP
        self._learned = False

    @property
    def crystal(self) -> Crystal:
        """The crystal whose energy, forces and stress are wanted next."""
        x = self._x + self._step
        lattice = self._lattice @ self._deformation(x)
        positions = x[:-6].reshape(-1, 3)
        return Crystal(lattice, np.linalg.solve(self._lattice.T, positions.T).T, self._numbers)

    def step(self, forces: np.ndarray, stress: np.ndarray) -> None:
        """Take the next step, given the forces on the atoms of :attr:`crystal` (eV/Å) and its stress (eV/Å³).

        How much a step has gained is judged by forces and stress, because energies on plane waves jump when the cell
        changes, and their minimum is elsewhere than that of the stress.
        """
        here, there = self._gradient, self._gradient_of(forces, stress)
        if here is None:
            here = self._accept(there)
        else:
            predicted = (here + self._hessian @ self._step / 2) @ self._step
            actual = (here + there) @ self._step / 2
            self._learn(there - here)
            if actual > RISE * len(self._numbers):
                self._limit = max(self._length(self._step) / 2, SMALLEST_LIMIT)
            else:
                if actual < predicted / 2:
                    self._limit = min(max(self._limit, 1.5 * self._length(self._step)), 2 * LARGEST_STEP)
                here = self._accept(there)
        self._step = self._newton(here)

    def _accept(self, gradient: np.ndarray) -> np.ndarray:
        """Make the step that was tried, where the gradient is `gradient`, the present point."""
        self._x, self._gradient = self._x + self._step, gradient
        return gradient

    def _deformation(self, x: np.ndarray) -> np.ndarray:
        return expm(np.tensordot(x[-6:] / self._strain_unit, STRAINS, axes=1))

    def _gradient_of(self, forces: np.ndarray, stress: np.ndarray) -> np.ndarray:
        """Return the gradient of the energy; that of the strain holds to first order in the deformation."""
        deformation = self._deformation(self._x + self._step)
        volume = abs(np.linalg.det(self._lattice @ deformation))
        strain = volume * np.tensordot(STRAINS, stress, axes=2) / self._strain_unit
        return np.concatenate([-(forces @ deformation).ravel(), strain])

    def _learn(self, change: np.ndarray) -> None:
        """Update the Hessian by the change of the gradient over the last step; the first one sets its scale as well."""
        curved = self._hessian @ self._step
        expected, found = self._step @ curved, self._step @ change
        if not self._learned:
            scale = np.clip(found / expected, 0.3, 3.0)
            self._hessian, curved, expected = scale * self._hessian, scale * curved, scale * expected
            self._learned = True
        if found < 0.1 * expected:  # Powell's damping keeps the Hessian positive definite
            damping = 0.9 * expected / (expected - found)
            change = damping * change + (1 - damping) * curved
            found = self._step @ change
        self._hessian += np.outer(change, change) / found - np.outer(curved, curved) / expected

    def _newton(self, gradient: np.ndarray) -> np.ndarray:
        """Return the Newton step, shortened to the trust radius."""
        values, vectors = np.linalg.eigh(self._hessian)
        step = -vectors @ ((vectors.T @ gradient) / np.maximum(values, SOFTEST))
        return step * min(1.0, self._limit / max(self._length(step), 1e-12))

    def _length(self, step: np.ndarray) -> float:
        """Return the largest displacement of an atom by `step`, or that which stands for its strain if that is more."""
        displacement = np.linalg.norm(step[:-6].reshape(-1, 3), axis=1).max()
        strain = np.abs(np.tensordot(step[-6:] / self._strain_unit, STRAINS, axes=1)).max()
        return float(max(displacement, STRAIN_LENGTH * strain))


def _springs(crystal: Crystal, strain_unit: float) -> np.ndarray:
    """Return the Hessian of springs between neighbours, for displacements and strain together."""
    from ase.data import covalent_radii

    n = len(crystal)
    bond = bonds(crystal, SPRING_RANGE)
    radii = covalent_radii[crystal.atomic_numbers]
    stretch = bond.length / (radii[bond.first] + radii[bond.second])
    stiffness = SPRING * np.exp(-DECAY * np.clip(stretch - 1, -0.2, None))
    hessian = SOFTEST * np.eye(3 * n + 6)
    along = bond.vector / bond.length[:, None]
    for weight, direction in (
        (1 - BENDING, along),
        *((BENDING, np.broadcast_to(axis, along.shape)) for axis in np.eye(3)),
    ):
        root = np.sqrt(weight * stiffness)[:, None]
        strain = np.einsum("bi,kij,bj->bk", direction, STRAINS, bond.vector) / strain_unit
        values = np.hstack([-root * direction, root * direction, root * strain])
        atoms = [3 * index[:, None] + np.arange(3) for index in (bond.first, bond.second)]
        columns = np.hstack([*atoms, np.broadcast_to(3 * n + np.arange(6), strain.shape)])
        rows = np.repeat(np.arange(len(values)), values.shape[1])
        elongation = csr_array((values.ravel(), (rows, columns.ravel())), shape=(len(values), 3 * n + 6))
        hessian += (elongation.T @ elongation).toarray()
    return hessian
