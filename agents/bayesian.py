"""The agent that weighs what it expects against what it does not know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.stats import norm

from agents.budget import affordable_calls
from agents.compositions import Stoichiometry, stoichiometries
from agents.learning import LearningRule
from agents.surrogate import Observation, Surrogate
from discovery.calibration import Calibration, hull_energy
from discovery.protocols import CampaignView, PluginConfig
from discovery.types import Budget, Candidate, LabelledCrystal, State, Target

LARGER_CELL = 0.5
"""How much less likely a cell of one more formula unit is to hold the structure that matters."""

OTHER_CELL = 0.5
"""How much samples of another cell of the composition count."""

COST_EXPONENT = (2.0, 1.0)
"""Power of the number of atoms with which the cost of a calculation grows: prior mean and standard deviation."""

COST_NOISE = 0.5
"""Scatter of the logarithm of the cost at equal size."""


class BayesianAgent:
    """Asks where a new stable phase is likely or unknown, and computes what is most likely stable.

    Compositions: a Gaussian process gives the formation energy that each can reach; with the screening hull follows the
    probability that a further set of samples holds a new stable phase. Targets are chosen by Thompson sampling, each
    from a draw of its own, or by the optimistic end of the distribution, each assuming that those before it have been
    seen; both spread a batch. Chemical systems of which next to nothing is expected any more are left alone.

    Candidates: the calibration of screening by the campaign's own pairs gives the probability that a calculation puts a
    candidate on the reference hull. The highest probability per cost comes first; further polymorphs count for what
    the first leaves over.
    """

    class Config(PluginConfig):
        """Options of the Bayesian agent."""

        acquisition: Literal["thompson", "ucb"] = Field("thompson", description="How targets are chosen.")
        optimism: float = Field(1.0, ge=0, description="ucb: standard deviations below the expected energy.")
        success: float = Field(
            0.6, gt=0, lt=1, description="Probability that one set of samples holds a cell's lowest structure."
        )
        exhausted: float = Field(
            0.02, ge=0, description="Expected new stable phases below which a chemical system is left alone."
        )
        min_probability: float = Field(
            0.01, ge=0, le=1, description="Candidates that are stable with less probability are not computed."
        )
        cost: Literal["calls", "core_hours"] = Field(
            "calls",
            description="What is spent wisely: calculations, or core-hours as recorded by number of atoms. Recorded "
            "times differ from run to run, and with core_hours decisions do.",
        )
        learn: LearningRule = Field(
            LearningRule(crystals=2, idle_verdicts=4), description="When the generator learns; one condition is enough."
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def propose(self, view: CampaignView, n: int) -> list[Target]:
        """Return at most `n` targets of distinct cells."""
        options = _Options.of(view, self.config)
        rng = np.random.default_rng(view.seed)
        surrogate = options.surrogate
        allowed = options.worth_asking(self.config.exhausted)
        targets: list[Target] = []
        for _ in range(min(n, len(options.cells))):
            if self.config.acquisition == "thompson":
                energies = surrogate.draw(rng)
            else:
                energies = surrogate.mean - self.config.optimism * surrogate.deviation
            gains = options.gains(energies)
            order = np.lexsort((-options.probabilities, -gains, ~allowed))
            best = int(next(index for index in order if not options.taken[index]))
            options.taken[best] = True
            if self.config.acquisition == "ucb":
                surrogate = surrogate.assuming(options.place[best])
            reason = f"{options.describe(best)}; {self._acquired(float(energies[options.place[best]]))}"
            targets.append(Target(view.samples_per_target, composition=options.cells[best], reason=reason))
        return targets

    def _acquired(self, energy: float) -> str:
        if self.config.acquisition == "thompson":
            return f"drawn formation energy {energy:+.3f} eV/atom"
        return f"formation energy at {self.config.optimism:g} standard deviations {energy:+.3f} eV/atom"

    def select(self, view: CampaignView, screened: Sequence[Candidate], budget: Budget) -> list[tuple[Candidate, str]]:
        """Return the candidates most likely to be stable per cost, as many as the budget allows."""
        calls = affordable_calls(budget)
        calibration = calibrated(view)
        exponent = _cost_exponent(view) if self.config.cost == "core_hours" else 0.0
        likely: list[tuple[Candidate, float]] = []
        for candidate in screened:
            formation = candidate.screening_formation_energy_per_atom
            if formation is not None:
                composition = candidate.crystal.composition.get_el_amt_dict()
                probability = calibration.probability(
                    composition, formation, view.reference_hull, view.stable_threshold
                )
                likely.append((candidate, probability))
        left: dict[str, float] = defaultdict(lambda: 1.0)
        chosen: list[tuple[Candidate, str]] = []
        while likely and (calls is None or len(chosen) < calls):
            values = [
                probability * left[candidate.crystal.formula] / len(candidate.crystal) ** exponent
                for candidate, probability in likely
            ]
            candidate, probability = likely.pop(int(np.argmax(values)))
            formula = candidate.crystal.formula
            if probability * left[formula] < self.config.min_probability:
                if exponent == 0:
                    break
                continue
            shift, width = calibration.residual(candidate.crystal.composition.get_el_amt_dict())
            reason = (
                f"stable with probability {probability:.2f}: screening decomposition energy "
                f"{candidate.screening_decomposition_energy:+.3f}, calibration {shift:+.3f} ± {width:.3f} eV/atom from "
                f"{calibration.n_pairs} pairs"
            )
            if left[formula] < 1:
                reason += f"; counts {left[formula]:.2f} after other structures of {formula}"
            if exponent:
                reason += f"; cost grows as atoms^{exponent:.1f}, {len(candidate.crystal)} atoms"
            chosen.append((candidate, reason))
            left[formula] *= 1 - probability
        return chosen

    def reason_to_learn(self, view: CampaignView, lessons: Sequence[LabelledCrystal]) -> str | None:
        """Return why the generator should learn now; by default enough is new, or the search has come to a halt."""
        return self.config.learn.reason(view, lessons)


def calibrated(view: CampaignView) -> Calibration:
    """Return the calibration of screening by what the campaign has computed so far."""
    computed = sum(candidate.verdict is not None for candidate in view.candidates)
    failed = sum(
        candidate.state is State.FAILED and candidate.screening is not None and candidate.screening.ok
        for candidate in view.candidates
    )
    return Calibration.fit(view.screening_hull, view.reference_hull, computed=computed, failed=failed)


@dataclass(frozen=True, eq=False)
class _Options:
    """The cells that may be asked for, with what is expected of each.

    `place` is the index of a cell's composition in the surrogate; `bound` the formation energy (eV/atom) below which
    something new would be stable, `missed` the probability that earlier samples have not found it.
    """

    space: tuple[Stoichiometry, ...]
    surrogate: Surrogate
    cells: list[dict[str, int]]
    place: np.ndarray
    bound: np.ndarray
    missed: np.ndarray
    samples: np.ndarray
    taken: np.ndarray
    probabilities: np.ndarray
    expected: Mapping[frozenset[str], float]

    @classmethod
    def of(cls, view: CampaignView, config: BayesianAgent.Config) -> _Options:
        space = stoichiometries(view.elements, view.max_atoms)
        sampled = Counter(frozenset(_amounts(candidate).items()) for candidate in view.candidates)
        best = _best_energies(view)
        sets_of_formula: Counter[str] = Counter()
        for s in space:
            for units in range(1, view.max_atoms // s.n_atoms + 1):
                sets_of_formula[s.formula] += sampled[frozenset(s.cell(units).items())]
        observations = {
            s.formula: Observation(
                dict(s.counts),
                best[s.formula],
                max(1.0, sets_of_formula[s.formula] / view.samples_per_target),
            )
            for s in space
            if s.formula in best
        }
        surrogate = Surrogate.fit(space, view.elements, observations)
        cells, place, bound, missed, samples = [], [], [], [], []
        for index, s in enumerate(space):
            hull = hull_energy(view.screening_hull, dict(s.counts)) or 0.0
            for units in range(1, view.max_atoms // s.n_atoms + 1):
                cell = s.cell(units)
                own = sampled[frozenset(cell.items())]
                sets = own + OTHER_CELL * (sets_of_formula[s.formula] - own)
                cells.append(cell)
                place.append(index)
                bound.append(min(hull, best.get(s.formula, hull)))
                missed.append((1 - config.success) ** (sets / view.samples_per_target) * LARGER_CELL ** (units - 1))
                samples.append(own)
        places, bounds, misses = np.array(place), np.array(bound), np.array(missed)
        margin = (bounds - surrogate.mean[places]) / surrogate.deviation[places]
        probabilities = norm.cdf(margin) * misses
        likeliest: dict[int, float] = {}
        for index, probability in zip(place, probabilities, strict=True):
            likeliest[index] = max(likeliest.get(index, 0.0), float(probability))
        expected: dict[frozenset[str], float] = defaultdict(float)
        for index, probability in likeliest.items():
            expected[_system(space[index])] += probability
        return cls(
            space,
            surrogate,
            cells,
            places,
            bounds,
            misses,
            np.array(samples),
            np.zeros(len(cells), dtype=bool),
            probabilities,
            expected,
        )

    def gains(self, energies: np.ndarray) -> np.ndarray:
        """Return by how much (eV/atom) each cell would lower the hull if its composition reached `energies`."""
        gains: np.ndarray = np.maximum(0.0, self.bound - energies[self.place]) * self.missed
        return gains

    def worth_asking(self, exhausted: float) -> np.ndarray:
        """Return which cells belong to a chemical system that is not exhausted; all of them if none is left."""
        worth = np.array([self.expected[_system(self.space[index])] >= exhausted for index in self.place], dtype=bool)
        return worth if worth.any() else ~worth

    def describe(self, index: int) -> str:
        """Return what is expected of a cell, in words and numbers."""
        place = self.place[index]
        s = self.space[place]
        units = sum(self.cells[index].values()) // s.n_atoms
        distance = self.surrogate.mean[place] - self.bound[index]
        system = _system(s)
        return (
            f"{s.formula} x {units}, {s.describe()}; expected {distance:+.3f} ± {self.surrogate.deviation[place]:.3f} "
            f"eV/atom from what is known, from {self.surrogate.n_observations} compositions; new stable phase with "
            f"probability {self.probabilities[index]:.3f}; {self.expected[system]:.2f} expected in "
            f"{'-'.join(sorted(system))}; {self.samples[index]} samples so far"
        )


def _best_energies(view: CampaignView) -> dict[str, float]:
    """Return reduced formula → lowest formation energy on the screening scale, eV/atom."""
    best: dict[str, float] = {}
    hull = view.screening_hull
    for phase in hull.phases:
        energy = hull.formation_energy_per_atom(phase.composition, phase.energy_per_atom)
        if len(phase.composition) > 1 and energy is not None:
            best[phase.formula] = min(energy, best.get(phase.formula, np.inf))
    for candidate in view.candidates:
        energy = candidate.screening_formation_energy_per_atom
        if energy is not None:
            formula = candidate.crystal.formula
            best[formula] = min(energy, best.get(formula, np.inf))
    return best


def _cost_exponent(view: CampaignView) -> float:
    """Return the power of the number of atoms with which core-hours grow, from the calculations so far."""
    pairs = [
        (len(candidate.crystal), candidate.reference.core_hours)
        for candidate in view.candidates
        if candidate.reference is not None and candidate.reference.core_hours > 0
    ]
    mean, deviation = COST_EXPONENT
    if len(pairs) < 2:
        return mean
    log_atoms, log_hours = np.log(np.array(pairs)).T
    x, y = log_atoms - log_atoms.mean(), log_hours - log_hours.mean()
    precision = 1 / deviation**2 + x @ x / COST_NOISE**2
    return max(0.0, float((mean / deviation**2 + x @ y / COST_NOISE**2) / precision))


def _amounts(candidate: Candidate) -> dict[str, int]:
    return {element.symbol: int(amount) for element, amount in candidate.crystal.composition.items()}


def _system(stoichiometry: Stoichiometry) -> frozenset[str]:
    return frozenset(element for element, _ in stoichiometry.counts)
