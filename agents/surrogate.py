"""A model of the formation energy that each composition can reach, with its uncertainty.

A Gaussian process: chemistry as linear terms with a prior, two smooth terms (over atomic fractions, and over the
properties of the elements, so that what holds of Mg2Ge says something of Mg2Si), and what is each composition's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pymatgen.core import Element
from scipy.linalg import cho_factor, cho_solve

from agents.compositions import Chemistry, Stoichiometry, atomic_fractions

IONICITY = (-0.3, 0.3)
"""eV/atom per squared difference of Pauling electronegativities at equal amounts: prior mean and standard deviation."""
BALANCE = (-0.15, 0.1)
"""eV/atom where oxidation states balance, per unit of the largest difference of electronegativities, at most 1."""
COMPLEXITY = (0.01, 0.01)
"""eV/atom per atom of the formula unit."""
OFFSET = (0.0, 0.1)
"""eV/atom of all compounds together."""
PAIR = (0.0, 0.3)
"""eV/atom of each pair of elements at equal amounts (regular solution)."""
SMOOTH, SMOOTH_LENGTH = 0.12, 0.15
"""eV/atom, and range in atomic fractions (Euclidean distance)."""
ANALOGY, ANALOGY_LENGTH = 0.12, 0.5
"""eV/atom, and range in the mean scaled properties of the elements."""
OWN = 0.06
"""eV/atom that no neighbour tells: which structures a composition happens to have."""
NOISE = 0.03
"""eV/atom by which the best of one set of samples misses what the composition can reach."""
SCALES = (0.5, 1.0, 2.0)
"""Factors of all prior deviations, from which the likeliest is taken."""

PROPERTY_SCALES = {"X": 0.5, "atomic_radius": 0.3, "group": 4.0, "row": 2.0}


@dataclass(frozen=True, eq=False)
class Observation:
    """The lowest formation energy (eV/atom) seen of a composition, and how many sets of samples it took."""

    composition: Mapping[str, float]
    formation_energy_per_atom: float
    sets: float


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Joint normal distribution of the formation energies of compositions.

    Parameters
    ----------
    mean
        eV/atom, shape (n,).
    covariance
        (eV/atom)², shape (n, n).
    n_observations
        How many compositions were seen.
    """

    mean: np.ndarray
    covariance: np.ndarray
    n_observations: int

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviations, eV/atom, shape (n,)."""
        return np.sqrt(np.maximum(self.covariance.diagonal(), 1e-12))

    @classmethod
    def fit(
        cls, space: Sequence[Stoichiometry], elements: Sequence[str], observations: Mapping[str, Observation]
    ) -> Surrogate:
        """Return the distribution over `space` given what was seen of some of its compositions, by formula."""
        x = atomic_fractions([dict(s.counts) for s in space], elements)
        design, prior_mean, prior_deviation = _linear_terms(space, x, elements)
        embedded = x @ _properties(elements)
        kernel = (design * prior_deviation**2) @ design.T
        kernel += SMOOTH**2 * _gaussian(x, SMOOTH_LENGTH) + ANALOGY**2 * _gaussian(embedded, ANALOGY_LENGTH)
        kernel += OWN**2 * np.eye(len(space))
        mean = design @ prior_mean
        seen = [index for index, s in enumerate(space) if s.formula in observations]
        if not seen:
            return cls(mean, kernel, 0)
        found = [observations[space[index].formula] for index in seen]
        difference = np.array([one.formation_energy_per_atom for one in found]) - mean[seen]
        noise = NOISE**2 / np.maximum([one.sets for one in found], 1e-3)
        fits = [_condition(mean, scale**2 * kernel, seen, difference, noise) for scale in SCALES]
        _, mean, covariance = max(fits, key=lambda fit: fit[0])
        return cls(mean, covariance, len(seen))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return one joint draw, eV/atom, shape (n,)."""
        return rng.multivariate_normal(self.mean, self.covariance, check_valid="ignore", method="eigh")

    def assuming(self, index: int) -> Surrogate:
        """Return the distribution if composition `index` were seen where it is expected: only deviations shrink."""
        column = self.covariance[:, index]
        covariance = self.covariance - np.outer(column, column) / (self.covariance[index, index] + NOISE**2)
        return Surrogate(self.mean, covariance, self.n_observations)


def _condition(
    mean: np.ndarray, kernel: np.ndarray, seen: list[int], difference: np.ndarray, noise: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return log likelihood, mean and covariance given the observations."""
    factor = cho_factor(kernel[np.ix_(seen, seen)] + np.diag(noise), lower=True)
    weights = cho_solve(factor, difference)
    cross = kernel[:, seen]
    likelihood = -0.5 * difference @ weights - np.log(np.diag(factor[0])).sum()
    return float(likelihood), mean + cross @ weights, kernel - cross @ cho_solve(factor, cross.T)


def _linear_terms(
    space: Sequence[Stoichiometry], x: np.ndarray, elements: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the design matrix, shape (compositions, terms), and prior means and deviations of its coefficients."""
    electronegativity = np.nan_to_num([Element(element).X for element in elements])
    first, second = np.array(list(combinations(range(len(elements)), 2)), dtype=int).reshape(-1, 2).T
    products = 4 * x[:, first] * x[:, second]
    squares = (electronegativity[first] - electronegativity[second]) ** 2
    balanced = np.array([s.chemistry is not Chemistry.SIMPLE_RATIO for s in space], float)
    contrast = np.minimum(1.0, np.sqrt(((products > 0) * squares).max(axis=1, initial=0.0)))
    columns = [
        (products @ squares, IONICITY),
        (balanced * contrast, BALANCE),
        (np.array([s.n_atoms for s in space], float), COMPLEXITY),
        (np.ones(len(space)), OFFSET),
        *((column, PAIR) for column in products.T),
    ]
    design = np.array([column for column, _ in columns]).T
    means, deviations = np.array([prior for _, prior in columns]).T
    return design, means, deviations


def _properties(elements: Sequence[str]) -> np.ndarray:
    """Return scaled properties of the elements, shape (elements, properties); unknown ones are zero."""
    values = [[getattr(Element(element), name) for name in PROPERTY_SCALES] for element in elements]
    known = np.array([[np.nan if value is None else float(value) for value in row] for row in values])
    return np.nan_to_num(known) / np.array(list(PROPERTY_SCALES.values()))


def _gaussian(points: np.ndarray, length: float) -> np.ndarray:
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
    kernel: np.ndarray = np.exp(-squared / (2 * length**2))
    return kernel
