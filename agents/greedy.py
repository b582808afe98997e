"""The default agent: chemistry first, then whatever the results so far recommend."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations, product

import numpy as np
from pydantic import Field
from pymatgen.core import Element

from agents.budget import affordable_calls
from agents.compositions import Chemistry, Stoichiometry, atomic_fractions, stoichiometries
from agents.learning import LearningRule
from discovery.crystal import Crystal
from discovery.protocols import CampaignView, PluginConfig
from discovery.types import Budget, Candidate, LabelledCrystal, Target

PRIOR = {Chemistry.CHARGE_BALANCED: 0.0, Chemistry.MIXED_VALENCE: 0.05, Chemistry.SIMPLE_RATIO: 0.1}
"""eV/atom expected above the hull before anything is known."""

COMPLEXITY = 0.01
"""eV/atom added per atom of the formula unit: simple formulas first."""

PRIOR_WEIGHT = 0.5
"""Weight of the prior against one result at the very composition."""

MAX_LESSON = 0.3
"""eV/atom; a worse result counts as this, since it may say more about the sample than about the composition."""

LENGTH = 0.1
"""Range of a result's influence in atomic fractions (Euclidean distance, Gaussian)."""

ANALOGY = 0.4
"""Weight of a result for the composition in which elements of one group are exchanged: what holds for Mg2Ge says
something about Mg2Si."""


class GreedyAgent:
    """Asks for charge-balanced compositions first and turns to those near which low energies were found.

    Each composition has an estimate of the decomposition energy it can reach: a mean of a chemical prior and of the
    lowest screening energies found so far, weighted by distance in composition; a result also counts, with less weight,
    for the composition in which elements of one group are exchanged. Repetition is damped. Of what was
    screened, the best of each composition is computed first, then further polymorphs.
    """

    class Config(PluginConfig):
        """Options of the greedy agent."""

        max_decomposition_energy: float = Field(
            0.1, description="eV/atom; candidates above it on the screening hull are not computed"
        )
        max_polymorphs: int = Field(3, ge=1, description="Most structures of one composition selected per decision")
        exploration: float = Field(
            0.02,
            ge=0.0,
            description="eV/atom; standard deviation of the noise added to estimates when choosing targets",
        )
        repetition: float = Field(
            0.04, ge=0.0, description="eV/atom; penalty per full set of samples already taken of a composition"
        )
        max_sample_sets: int = Field(
            4, ge=1, description="Sets of samples after which a cell is left alone; one for a known stable phase"
        )
        learn: LearningRule = Field(LearningRule(), description="When the generator learns; one condition is enough.")

    def __init__(self, config: Config) -> None:
        self.config = config

    def propose(self, view: CampaignView, n: int) -> list[Target]:
        """Return at most `n` targets of distinct cells, most promising first."""
        ranked = self._ranked(view)
        targets: list[Target] = []
        taken: Counter[str] = Counter()
        while ranked and len(targets) < n:
            best = min(ranked, key=lambda option: (taken[option.stoichiometry.formula], option.score))
            ranked.remove(best)
            taken[best.stoichiometry.formula] += 1
            cell = best.stoichiometry.cell(best.units)
            targets.append(Target(view.samples_per_target, composition=cell, reason=best.reason))
        return targets

    def select(
        self,
        view: CampaignView,  # noqa: ARG002
        screened: Sequence[Candidate],
        budget: Budget,
    ) -> list[tuple[Candidate, str]]:
        """Return candidates near or below the screening hull: best of each formula first, then further polymorphs."""
        promising = sorted(
            (candidate for candidate in screened if _energy(candidate) <= self.config.max_decomposition_energy),
            key=lambda candidate: (_energy(candidate), candidate.id),
        )
        chosen: list[tuple[int, Candidate]] = []
        structures: Counter[str] = Counter()
        for candidate in promising:
            formula = candidate.crystal.formula
            if structures[formula] < self.config.max_polymorphs:
                structures[formula] += 1
                chosen.append((structures[formula], candidate))
        chosen.sort(key=lambda item: item[0])
        return [
            (
                candidate,
                f"structure {rank} of {candidate.crystal.formula} by screening energy, "
                f"decomposition energy {_energy(candidate):+.3f} eV/atom",
            )
            for rank, candidate in chosen[: affordable_calls(budget)]
        ]

    def reason_to_learn(self, view: CampaignView, lessons: Sequence[LabelledCrystal]) -> str | None:
        """Return why the generator should learn now; by default whatever is new is a reason."""
        return self.config.learn.reason(view, lessons)

    def _ranked(self, view: CampaignView) -> list[_Option]:
        space = stoichiometries(view.elements, view.max_atoms)
        estimates = _estimates(space, view)
        noise = np.random.default_rng(view.seed).normal(0.0, self.config.exploration, len(space))
        sampled = Counter(_cell_key(candidate.crystal) for candidate in view.candidates)
        stable = {phase.formula for phase in view.screening_hull.stable_phases}
        fresh: list[_Option] = []
        exhausted: list[_Option] = []
        for stoichiometry, estimate, extra in zip(space, estimates, noise, strict=True):
            limit = 1 if stoichiometry.formula in stable else self.config.max_sample_sets
            for units in range(1, view.max_atoms // stoichiometry.n_atoms + 1):
                samples = sampled[frozenset(stoichiometry.cell(units).items())]
                sets = samples / view.samples_per_target
                score = estimate.energy + extra + self.config.repetition * sets + COMPLEXITY * (units - 1)
                option = _Option(stoichiometry, units, float(score), estimate, samples)
                (fresh if sets < limit else exhausted).append(option)
        return fresh or exhausted


@dataclass(frozen=True)
class _Estimate:
    """Decomposition energy a composition may reach (eV/atom), and the result that says most about it."""

    energy: float
    n_results: int
    nearest: tuple[str, float] | None


@dataclass(frozen=True)
class _Option:
    """A cell that may be asked for."""

    stoichiometry: Stoichiometry
    units: int
    score: float
    estimate: _Estimate
    samples: int

    @property
    def reason(self) -> str:
        text = f"{self.stoichiometry.formula} x {self.units}, {self.stoichiometry.describe()}; "
        text += f"expected decomposition energy {self.estimate.energy:+.3f} eV/atom "
        if self.estimate.nearest is None:
            text += "from chemistry alone"
        else:
            formula, energy = self.estimate.nearest
            text += f"from {self.estimate.n_results} screened compositions, nearest {formula} {energy:+.3f}"
        return text + f"; {self.samples} samples so far"


def _estimates(space: Sequence[Stoichiometry], view: CampaignView) -> list[_Estimate]:
    """Kernel average of a chemical prior and of the best screening energy of each formula so far."""
    prior = np.array([PRIOR[s.chemistry] + COMPLEXITY * s.n_atoms for s in space])
    best: dict[str, tuple[float, dict[str, int]]] = {}
    for candidate in view.candidates:
        energy = _energy(candidate)
        counts = {element.symbol: int(amount) for element, amount in candidate.crystal.composition.items()}
        if math.isfinite(energy) and energy < best.get(candidate.crystal.formula, (math.inf,))[0]:
            best[candidate.crystal.formula] = (energy, counts)
    if not best:
        return [_Estimate(float(energy), 0, None) for energy in prior]
    formulas = list(best)
    energies = np.array([best[formula][0] for formula in formulas])
    wanted = atomic_fractions([dict(s.counts) for s in space], view.elements)
    known = atomic_fractions([best[formula][1] for formula in formulas], view.elements)
    squared, *exchanged = [
        ((wanted[:, None, order] - known[None, :, :]) ** 2).sum(axis=-1) for order in _exchanges(view.elements)
    ]
    weights = np.exp(-squared / (2 * LENGTH**2))
    for distances in exchanged:
        weights = np.maximum(weights, ANALOGY * np.exp(-distances / (2 * LENGTH**2)))
    means = (PRIOR_WEIGHT * prior + weights @ np.minimum(energies, MAX_LESSON)) / (PRIOR_WEIGHT + weights.sum(axis=1))
    nearest = squared.argmin(axis=1)
    return [
        _Estimate(float(mean), len(formulas), (formulas[index], float(energies[index])))
        for mean, index in zip(means, nearest, strict=True)
    ]


def _exchanges(elements: Sequence[str]) -> list[list[int]]:
    """Return the orders of `elements`, as indices, that exchange elements of one group; the given order is first."""
    groups: dict[int, list[int]] = {}
    for place, element in enumerate(elements):
        groups.setdefault(Element(element).group, []).append(place)
    orders = []
    for exchanged in product(*(permutations(places) for places in groups.values())):
        order = dict(zip(chain(*groups.values()), chain(*exchanged), strict=True))
        orders.append([order[place] for place in range(len(elements))])
    return orders


def _cell_key(crystal: Crystal) -> frozenset[tuple[str, int]]:
    return frozenset((element.symbol, int(amount)) for element, amount in crystal.composition.items())


def _energy(candidate: Candidate) -> float:
    energy = candidate.screening_decomposition_energy
    return math.inf if energy is None or not math.isfinite(energy) else energy
