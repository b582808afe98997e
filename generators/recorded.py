"""A database in place of a generator: its crystals among decoys, for campaigns replayed on known results."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from pymatgen.core import Composition, Element

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.protocols import PluginConfig
from discovery.sets import read_set
from discovery.types import Failure, FailureKind, Sample, Target
from generators.random_search import RandomSearchGenerator
from generators.substitution import SubstitutionGenerator
from generators.weightless import WeightlessGenerator


class RecordedGenerator(WeightlessGenerator):
    """Gives the crystals that a file has of a composition, hidden among decoys.

    The crystals of a composition are those of the file, repeated to supercells where the target asks for more atoms,
    and `decoys` made by another generator without weights. They are the same in every campaign, so that what an
    expensive oracle says of them can be kept (oracle `cached`); the seed decides in which order they come. Samples of a
    target differ as long as there are crystals left.
    """

    name: ClassVar[str] = "recorded"

    class Config(PluginConfig):
        """Options of the recorded generator."""

        path: Path = Field(description="Known crystals: CSV with a column cif, JSON of entries, extxyz, CIF files.")
        decoys: int = Field(8, ge=0, description="Crystals of each composition that do not come from the file.")
        filler: Literal["substitution", "random_search"] = Field(
            "substitution", description="What makes decoys; random_search takes over where substitution knows nothing."
        )

    def __init__(self, config: Config) -> None:
        if not config.path.exists():
            raise InvalidInputError(f"{config.path} does not exist; set generator.path to a file of known crystals")
        self.config = config
        self._pools: dict[tuple[tuple[str, int], ...], list[Crystal]] = {}

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples ordered by target, failures in place."""
        samples = []
        for index, target in enumerate(targets):
            rng = np.random.default_rng([seed, index])
            left: list[Crystal] = []
            for _ in range(target.n_samples):
                start = time.perf_counter()
                try:
                    if not left:
                        pool = self._pool(self._counts(target, rng))
                        left = [pool[place] for place in rng.permutation(len(pool))]
                    crystal = left.pop()
                except InvalidInputError as error:
                    failure = Failure(FailureKind.INVALID_INPUT, str(error))
                    samples.append(Sample(index, None, failure, time.perf_counter() - start))
                    continue
                if target.elements is not None:
                    left = []
                samples.append(Sample(index, crystal, seconds=time.perf_counter() - start))
        return samples

    def _counts(self, target: Target, rng: np.random.Generator) -> dict[str, int]:
        """Return element → atoms; for an element set, those of a known crystal of these elements."""
        if target.composition is not None:
            return dict(target.composition)
        wanted = frozenset(target.elements or ())
        fitting = [crystal for known in self._known.values() for crystal in known if _elements(crystal) == wanted]
        if not fitting:
            raise InvalidInputError(f"{self.config.path} has no crystal of {target.label}")
        return _amounts(fitting[rng.integers(len(fitting))])

    def _pool(self, counts: Mapping[str, int]) -> list[Crystal]:
        """Return the crystals of a cell with these atoms, those of the file first."""
        if unknown := [symbol for symbol in counts if not Element.is_valid_symbol(symbol)]:
            raise InvalidInputError(f"{unknown[0]!r} is not an element")
        key = tuple(sorted(counts.items()))
        if key not in self._pools:
            n_atoms = sum(counts.values())
            known = [
                crystal if len(crystal) == n_atoms else _supercell(crystal, n_atoms // len(crystal))
                for crystal in self._known.get(Composition(counts).reduced_formula, ())
                if n_atoms % len(crystal) == 0
            ]
            self._pools[key] = known + list(_decoys(key, self.config.decoys, self.config.filler))
        if not self._pools[key]:
            raise InvalidInputError(f"{self.config.path} has no crystal of {Composition(counts).formula}")
        return self._pools[key]

    @cached_property
    def _known(self) -> dict[str, list[Crystal]]:
        """Reduced formula → crystals in their primitive cells."""
        known: dict[str, list[Crystal]] = defaultdict(list)
        for crystal in read_set(self.config.path).crystals.values():
            primitive = Crystal.from_structure(crystal.to_structure().get_primitive_structure())
            known[primitive.formula].append(primitive)
        if not known:
            raise InvalidInputError(f"{self.config.path} has no usable crystal; set generator.path")
        return dict(known)


@cache
def _decoys(counts: tuple[tuple[str, int], ...], n: int, filler: str) -> tuple[Crystal, ...]:
    """Return at most `n` crystals of a cell; kept for all campaigns of the process, which get the same ones."""
    if not n:
        return ()
    composition = dict(counts)
    seed = int.from_bytes(hashlib.sha256(repr(composition).encode()).digest()[:4])
    crystals: list[Crystal] = []
    for generator in _fillers(filler):
        samples = generator.sample([Target(n, composition=composition)], seed=seed)
        crystals += [sample.crystal for sample in samples if sample.crystal is not None]
        if len(crystals) >= n:
            break
    return tuple(dict.fromkeys(crystals[:n]))


@cache
def _fillers(name: str) -> tuple[SubstitutionGenerator | RandomSearchGenerator, ...]:
    search = RandomSearchGenerator(RandomSearchGenerator.Config())
    if name == "random_search":
        return (search,)
    return SubstitutionGenerator(SubstitutionGenerator.Config()), search


def _elements(crystal: Crystal) -> frozenset[str]:
    return frozenset(element.symbol for element in crystal.composition)


def _amounts(crystal: Crystal) -> dict[str, int]:
    return {element.symbol: int(amount) for element, amount in crystal.composition.items()}


def _supercell(crystal: Crystal, n_cells: int) -> Crystal:
    """Repeat along the shortest vectors, so that the cell stays compact."""
    structure = crystal.to_structure()
    repeats = np.ones(3, dtype=int)
    while n_cells > 1:
        factor = next(prime for prime in range(2, n_cells + 1) if n_cells % prime == 0)
        shortest = int(np.argmin(np.array(structure.lattice.abc) * repeats))
        repeats[shortest] *= factor
        n_cells //= factor
    return Crystal.from_structure(structure.make_supercell(repeats.tolist(), in_place=False))
