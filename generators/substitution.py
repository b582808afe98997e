"""Ion substitution: known crystals with other ions on their sites, the baseline that learned models have to beat.

After Hautier et al., *Data mined ionic substitutions for the discovery of new compounds* (Inorg. Chem. 50, 656, 2011),
with the probabilities that pymatgen bundles.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
from pydantic import Field
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.core import Composition, Element, Species, Structure
from pymatgen.core.structure_prediction.substitution_probability import SubstitutionProbability
from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.sets import read_set
from discovery.types import Failure, FailureKind, Sample, Target
from generators.random_search import atomic_volume
from generators.targets import check_target
from generators.weightless import VolumeRangeConfig, WeightlessGenerator

MAX_ELEMENTS = 6
"""Elements of a target; the assignments of more to the sites of a template are too many to try."""


@dataclass(frozen=True)
class _Template:
    """A known crystal; `counts` are its elements' numbers of atoms in a formula unit."""

    id: str
    crystal: Crystal
    counts: Mapping[str, int]
    n_formula_units: int


@dataclass(frozen=True)
class _Substitution:
    """A template with the element that replaces each of its own, and the logarithm of the probability weight."""

    template: _Template
    replacement: Mapping[str, str]
    log_weight: float


class SubstitutionGenerator(WeightlessGenerator):
    """Puts the ions of a target on the sites of known crystals, the more probable ones more often.

    Where the oxidation states of template or target are unknown, as in alloys, all assignments are equally probable.
    The cell is scaled to the volume that mined bond lengths predict.
    """

    name = "substitution"

    class Config(VolumeRangeConfig):
        """Options of ion substitution."""

        templates: Path | None = Field(
            default=None,
            description="Known crystals: CSV with a column cif, JSON of entries, extxyz, folder or archive of CIF "
            "files; the AFLOW prototypes bundled with pymatgen by default.",
        )
        max_atoms: int = Field(default=20, ge=1, description="Largest cell that is sampled; larger targets fail.")
        volume_factor: tuple[float, float] = Field(
            default=(0.95, 1.05), description="Range of the cell volume, in units of the predicted volume."
        )

    def __init__(self, config: Config) -> None:
        if config.templates is not None and not config.templates.exists():
            raise InvalidInputError(f"{config.templates} does not exist; set generator.templates to known crystals")
        self.config = config

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples ordered by target, failures in place.

        The samples of a composition use different substitutions as long as there are any, then begin again at other
        volumes.
        """
        samples = []
        for index, target in enumerate(targets):
            rng = np.random.default_rng([seed, index])
            order: list[_Substitution] = []
            for _ in range(target.n_samples):
                start = time.perf_counter()
                try:
                    counts = self._counts(target, rng)
                    if not order:
                        order = self._draw(counts, rng)
                    crystal = self._build(order.pop(0), counts, rng)
                except InvalidInputError as error:
                    failure = Failure(FailureKind.INVALID_INPUT, str(error))
                    samples.append(Sample(index, None, failure, time.perf_counter() - start))
                    continue
                if target.elements is not None:
                    order = []
                samples.append(Sample(index, crystal, seconds=time.perf_counter() - start))
        return samples

    def _counts(self, target: Target, rng: np.random.Generator) -> dict[str, int]:
        """Return element → atoms in the cell; for an element set, of a template with as many elements."""
        elements = tuple(target.composition or target.elements or ())
        check_target(target, self.config.max_atoms)
        if len(elements) > MAX_ELEMENTS:
            raise InvalidInputError(
                f"the target has {len(elements)} elements, substitution takes up to {MAX_ELEMENTS}; name fewer"
            )
        if target.composition is not None:
            return dict(target.composition)
        fitting = [
            template
            for proportions, templates in self._templates.items()
            if len(proportions) == len(elements)
            for template in templates
            if len(template.crystal) <= self.config.max_atoms
        ]
        if not fitting:
            raise InvalidInputError(
                f"no template has {len(elements)} elements; give more crystals as generator.templates"
            )
        template = fitting[rng.integers(len(fitting))]
        amounts = rng.permutation(list(template.counts.values())) * template.n_formula_units
        return {element: int(n) for element, n in zip(elements, amounts, strict=True)}

    def _draw(self, counts: Mapping[str, int], rng: np.random.Generator) -> list[_Substitution]:
        """Return all substitutions that give `counts`, in a random order that favours probable ones.

        Adding Gumbel noise to the logarithms of the weights and sorting draws without replacement.
        """
        divisor = int(np.gcd.reduce(list(counts.values())))
        proportions = tuple(sorted(n // divisor for n in counts.values()))
        found = [
            substitution
            for template in self._templates.get(proportions, ())
            if divisor % template.n_formula_units == 0
            for substitution in _substitutions(template, {element: n // divisor for element, n in counts.items()})
        ]
        if not found:
            raise InvalidInputError(
                f"no template has the proportions {':'.join(map(str, proportions))} in at most {sum(counts.values())} "
                "atoms; give more crystals as generator.templates"
            )
        weights = np.array([substitution.log_weight for substitution in found]) + rng.gumbel(size=len(found))
        return [found[index] for index in np.argsort(-weights)]

    def _build(self, chosen: _Substitution, counts: Mapping[str, int], rng: np.random.Generator) -> Crystal:
        structure = chosen.template.crystal.to_structure()
        structure.replace_species({Element(old): Element(new) for old, new in chosen.replacement.items()})
        n_cells = sum(counts.values()) // len(structure)
        if n_cells > 1:
            structure.make_supercell(_supercell(n_cells, rng))
        structure.scale_lattice(_predicted_volume(structure) * rng.uniform(*self.config.volume_factor))
        return Crystal.from_structure(structure)

    @cached_property
    def _templates(self) -> dict[tuple[int, ...], list[_Template]]:
        """Sorted proportions of a formula unit → templates."""
        if self.config.templates is None:
            crystals = _aflow()
        else:
            crystals = read_set(self.config.templates).crystals
            if not crystals:
                raise InvalidInputError(f"{self.config.templates} has no usable crystal; set generator.templates")
        found: dict[tuple[int, ...], list[_Template]] = defaultdict(list)
        for id_, crystal in crystals.items():
            if not 0 < len(crystal) <= self.config.max_atoms:
                continue
            amounts = crystal.composition.get_el_amt_dict()
            divisor = int(np.gcd.reduce([int(n) for n in amounts.values()]))
            counts = {element: int(n) // divisor for element, n in amounts.items()}
            found[tuple(sorted(counts.values()))].append(_Template(id_, crystal, counts, divisor))
        return dict(found)


def _substitutions(template: _Template, target: Mapping[str, int]) -> list[_Substitution]:
    """Return every assignment of the target's elements to sites of as many atoms."""
    own = list(template.counts)
    states, wanted = _oxidation_states(_formula(template.counts)), _oxidation_states(_formula(target))
    found = []
    for order in permutations(target):
        if any(template.counts[old] != target[new] for old, new in zip(own, order, strict=True)):
            continue
        replacement = dict(zip(own, order, strict=True))
        weight = 0.0
        if states is not None and wanted is not None:
            weight = sum(_lambda(old, states[old], new, wanted[new]) for old, new in replacement.items())
        else:
            weight = _probabilities().alpha * len(replacement)
        found.append(_Substitution(template, replacement, weight))
    return found


@cache
def _aflow() -> dict[str, Crystal]:
    crystals = {}
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure.copy()
        structure.remove_oxidation_states()
        if structure.is_ordered:
            id_ = f"{entry['tags']['aflow']} {structure.composition.reduced_formula}"
            crystals[id_] = Crystal.from_structure(structure.get_primitive_structure())
    return crystals


@cache
def _probabilities() -> SubstitutionProbability:
    return SubstitutionProbability()


def _lambda(old: str, old_state: float, new: str, new_state: float) -> float:
    """Return the logarithm of the probability weight of an exchange of two ions, up to a constant."""
    return float(_probabilities().get_lambda(Species(old, old_state), Species(new, new_state)))


@cache
def _oxidation_states(formula: str) -> dict[str, float] | None:
    """Return the most probable integer oxidation states that make a formula neutral; None if there are none."""
    for guess in Composition(formula).oxi_state_guesses():
        if any(guess.values()) and all(state == int(state) for state in guess.values()):
            return {element: int(state) for element, state in guess.items()}
    return None


def _formula(counts: Mapping[str, int]) -> str:
    return "".join(f"{element}{n}" for element, n in sorted(counts.items()))


def _supercell(n_cells: int, rng: np.random.Generator) -> list[int]:
    """Return how often the cell is repeated along each vector: the prime factors of `n_cells`, each along one."""
    repeats, factor = [1, 1, 1], 2
    while n_cells > 1:
        if n_cells % factor:
            factor += 1
        else:
            repeats[rng.integers(3)] *= factor
            n_cells //= factor
    return repeats


def _predicted_volume(structure: Structure) -> float:
    """Return the volume in Å³ by mined bond lengths; where they are unknown, the sum of usual atomic volumes."""
    scaled = structure.copy()
    scaled.scale_lattice(sum(atomic_volume(site.specie.symbol) for site in structure))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            volume = float(DLSVolumePredictor().predict(scaled))
        except (ValueError, KeyError):
            volume = float("nan")
    return volume if np.isfinite(volume) and volume > 0 else float(scaled.volume)
