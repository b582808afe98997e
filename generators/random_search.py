"""Random search: symmetric random crystals at a sensible density, the baseline that every generator has to beat.

After Pickard and Needs, *Ab initio random structure searching* (J. Phys.: Condens. Matter 23, 053201, 2011), with the
Wyckoff positions of PyXtal (Fredericks et al., Comput. Phys. Commun. 261, 107810, 2021).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

import numpy as np
from ase.data import covalent_radii
from pydantic import Field
from pymatgen.core import Element
from pymatgen.core import Lattice as Cell
from pyxtal.crystal import random_crystal
from pyxtal.lattice import Lattice
from pyxtal.msg import Comp_CompatibilityError, VolumeError
from pyxtal.symmetry import Group
from pyxtal.tolerance import Tol_matrix

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.types import Failure, FailureKind, Sample, Target
from generators.targets import check_target
from generators.weightless import VolumeRangeConfig, WeightlessGenerator

PRIMITIVE_VECTORS: Mapping[str, np.ndarray] = {
    "A": np.array([[1, 0, 0], [0, 1 / 2, -1 / 2], [0, 1 / 2, 1 / 2]]),
    "C": np.array([[1 / 2, -1 / 2, 0], [1 / 2, 1 / 2, 0], [0, 0, 1]]),
    "I": np.array([[-1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [1 / 2, 1 / 2, -1 / 2]]),
    "F": np.array([[0, 1 / 2, 1 / 2], [1 / 2, 0, 1 / 2], [1 / 2, 1 / 2, 0]]),
    "R": np.array([[2 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, 1 / 3], [-1 / 3, -2 / 3, 1 / 3]]),
}
"""Centring → primitive lattice vectors as rows, in units of the conventional ones (International Tables A)."""

NEIGHBOUR_CELLS = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T


class RandomSearchGenerator(WeightlessGenerator):
    """Samples random crystals of a random compatible space group; falls back to no symmetry."""

    name = "random_search"

    class Config(VolumeRangeConfig):
        """Options of random search."""

        max_atoms: int = Field(default=20, ge=1, description="Largest cell that is sampled; larger targets fail.")
        volume_factor: tuple[float, float] = Field(
            default=(0.8, 1.4), description="Range of the cell volume, in units of the sum of usual atomic volumes."
        )
        min_separation: float = Field(
            default=0.75, gt=0, le=1, description="Smallest distance, in units of the sum of the covalent radii."
        )
        attempts: int = Field(default=10, ge=1, description="Space groups tried for a sample, then cells without one.")
        slack: float = Field(
            default=0.03, ge=0, lt=1, description="Share by which each cell without symmetry lowers min_separation."
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples ordered by target, failures in place.

        Each sample has its own random stream, from `seed`, the target's index and the sample's index; tries are limited
        in number, never in time, so that equal seeds give equal crystals on any machine.
        """
        return [
            self._sample(target, index, np.random.default_rng([seed, index, repeat]))
            for index, target in enumerate(targets)
            for repeat in range(target.n_samples)
        ]

    def _sample(self, target: Target, index: int, rng: np.random.Generator) -> Sample:
        start = time.perf_counter()
        try:
            counts = self._counts(target, rng)
            volume = sum(n * atomic_volume(element) for element, n in counts.items())
        except InvalidInputError as error:
            failure = Failure(FailureKind.INVALID_INPUT, str(error))
            return Sample(index, None, failure, time.perf_counter() - start)
        crystal = self._build(counts, volume * rng.uniform(*self.config.volume_factor), rng)
        if crystal is not None:
            return Sample(index, crystal, seconds=time.perf_counter() - start)
        failure = Failure(
            FailureKind.NOT_CONVERGED,
            f"no cell of {target.label} keeps its atoms {self.config.min_separation:g} covalent radii apart"
            f" after {self.config.attempts} space groups and as many cells without symmetry",
        )
        return Sample(index, None, failure, time.perf_counter() - start)

    def _counts(self, target: Target, rng: np.random.Generator) -> dict[str, int]:
        """Return element → number of atoms in the cell; for an element set every element once, the rest at random."""
        check_target(target, self.config.max_atoms)
        if target.composition is not None:
            return dict(target.composition)
        elements = target.elements or ()
        if len(elements) > self.config.max_atoms:
            raise InvalidInputError(
                f"{len(elements)} elements do not fit into {self.config.max_atoms} atoms; name fewer or set "
                "generator.max_atoms"
            )
        n_more = rng.integers(self.config.max_atoms - len(elements), endpoint=True)
        more = rng.multinomial(n_more, np.full(len(elements), 1 / len(elements)))
        return {element: 1 + int(n) for element, n in zip(elements, more, strict=True)}

    def _build(self, counts: Mapping[str, int], volume: float, rng: np.random.Generator) -> Crystal | None:
        separation = self.config.min_separation
        groups = _compatible_groups(tuple(counts.values()))
        for number in rng.choice(groups, size=self.config.attempts):
            crystal = _place_on_orbits(_group(int(number)), counts, volume, separation, rng)
            if crystal is not None and closest_approach(crystal) >= separation:
                return crystal
        for _ in range(self.config.attempts):
            separation *= 1 - self.config.slack
            crystal = _place_anywhere(counts, volume, separation, rng)
            if crystal is not None and closest_approach(crystal) >= separation:
                return crystal
        return None


@cache
def atomic_volume(element: str) -> float:
    """Return the usual volume of an atom of `element` in a crystal, Å³.

    From ``atomic_volumes.json``, which names its source.

    Raises
    ------
    InvalidInputError
        If the table has no such element.
    """
    volumes = json.loads(resources.files("generators").joinpath("atomic_volumes.json").read_text())["volumes"]
    if element not in volumes:
        raise InvalidInputError(f"random_search knows no atomic volume of {element}")
    return float(volumes[element])


def closest_approach(crystal: Crystal) -> float:
    """Return the smallest distance between two atoms, periodic images included, over the sum of their covalent radii.

    The cell must be LLL-reduced, so that nearest images lie in neighbouring cells.
    """
    difference = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    difference -= np.round(difference)
    distance = np.linalg.norm((difference[:, :, None] + NEIGHBOUR_CELLS) @ crystal.lattice, axis=-1)
    distance[np.eye(len(crystal), dtype=bool)[:, :, None] & (NEIGHBOUR_CELLS == 0).all(axis=-1)] = np.inf
    radii = covalent_radii[crystal.atomic_numbers]
    return float((distance.min(axis=-1) / (radii[:, None] + radii)).min())


class _FewTries(random_crystal):
    """PyXtal's random crystal with few tries per space group instead of up to 400, which may take many seconds."""

    def set_crystal(self) -> None:
        self.numattempts = 0
        for _ in range(5):
            self.set_lattice(self.lattice0)
            for _ in range(2):
                sites = self._set_coords()
                if sites:
                    self.atom_sites = sites
                    return
            self.lattice.reset_matrix()


@cache
def _group(number: int) -> Group:
    return Group(number)


@cache
def _compatible_groups(counts: tuple[int, ...]) -> list[int]:
    """Return the space groups whose Wyckoff positions can hold `counts` atoms of each element in a primitive cell."""
    groups = map(_group, range(1, 231))
    return [g.number for g in groups if g.check_compatible(np.array(counts) * g.cellsize())[0]]


def _place_on_orbits(
    group: Group, counts: Mapping[str, int], volume: float, separation: float, rng: np.random.Generator
) -> Crystal | None:
    """Place atoms on random Wyckoff positions of the conventional cell and return its primitive cell."""
    elements = list(counts)
    try:
        lattice = Lattice(group.lattice_type, volume * group.cellsize(), random_state=rng)
        placed = _FewTries(
            group=group,
            species=elements,
            numIons=list(counts.values()),
            conventional=False,
            lattice=lattice,
            tm=_distances(tuple(elements), separation),
            random_state=rng,
        )
    except (Comp_CompatibilityError, VolumeError):
        return None
    if not placed.valid:
        return None
    frac_coords = np.concatenate([site.coords for site in placed.atom_sites])
    numbers = np.concatenate([[Element(site.specie).Z] * len(site.coords) for site in placed.atom_sites])
    vectors = PRIMITIVE_VECTORS.get(group.symbol[0], np.eye(3))
    cell = vectors @ placed.lattice.matrix
    frac_coords = frac_coords @ np.linalg.inv(vectors)
    first = _first_of_equals(frac_coords, cell)
    if len(first) != sum(counts.values()):
        return None
    return _reduced(cell, frac_coords[first], numbers[first])


@cache
def _distances(elements: tuple[str, ...], separation: float) -> Tol_matrix:
    """Return PyXtal's table of smallest distances, Å."""
    table = Tol_matrix(prototype="atomic")
    for a in elements:
        for b in elements:
            table.set_tol(a, b, separation * (covalent_radii[Element(a).Z] + covalent_radii[Element(b).Z]))
    return table


def _first_of_equals(frac_coords: np.ndarray, cell: np.ndarray, tolerance: float = 0.01) -> np.ndarray:
    """Return the indices of the sites that repeat no earlier one, within `tolerance` in Å."""
    difference = frac_coords[:, None] - frac_coords[None]
    difference -= np.round(difference)
    equal = np.linalg.norm(difference @ cell, axis=-1) < tolerance
    return np.flatnonzero(equal.argmax(axis=1) == np.arange(len(frac_coords)))


def _place_anywhere(
    counts: Mapping[str, int], volume: float, separation: float, rng: np.random.Generator
) -> Crystal | None:
    """Place one atom after the other in a triclinic cell where it is far enough from those before."""
    try:
        cell = Lattice("triclinic", volume, random_state=rng).matrix
    except VolumeError:
        return None
    numbers = rng.permutation(np.repeat([Element(element).Z for element in counts], list(counts.values())))
    crystal = None
    frac_coords = np.empty((0, 3))
    for n_placed in range(1, len(numbers) + 1):
        for _ in range(50):
            crystal = _reduced(cell, np.vstack([frac_coords, rng.random(3)]), numbers[:n_placed])
            if closest_approach(crystal) >= separation:
                break
        else:
            return None
        cell, frac_coords = crystal.lattice, crystal.frac_coords
    return crystal


def _reduced(cell: np.ndarray, frac_coords: np.ndarray, numbers: np.ndarray) -> Crystal:
    """Return the crystal in its LLL-reduced cell."""
    reduced = Cell(cell).get_lll_reduced_lattice().matrix
    return Crystal(reduced, frac_coords @ cell @ np.linalg.inv(reduced), numbers)
