"""How far screening can be believed: a campaign's own pairs of screening and reference energies, and what follows.

Both oracles have computed the reference phases and every judged candidate. The difference of the two formation energies
is regressed on composition; the probability that a screened candidate will be stable on the reference hull follows, and
is compared with what happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import t as student

from discovery.hull import Hull
from discovery.store import Store
from discovery.types import Candidate, Stability, State

TYPICAL_ERROR = 0.05
"""eV/atom; what a screening oracle is expected to err by before anything is known. Universal force fields miss PBE
formation energies by 0.03 to 0.07 eV/atom (mean absolute error, Riebesell et al., Matbench Discovery, 2025)."""

PRIOR_PAIRS = 4.0
"""How many pairs that expectation weighs."""

PRIOR_CALCULATIONS = (9.0, 1.0)
"""Calculations that gave an energy and that failed, before anything is known."""

N_BINS = 5
"""Bins of a reliability curve."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Bayesian linear regression of the residual, reference − screening formation energy, on atomic fractions.

    Normal inverse-gamma prior: coefficients and noise of the size of `TYPICAL_ERROR`; predictions are Student t
    (Gelman et al., *Bayesian Data Analysis*, chapter 14).

    Parameters
    ----------
    elements
        One coefficient each.
    coefficients, covariance
        Posterior mean in eV/atom, and covariance in units of the noise variance.
    shape, scale
        Of the noise variance's inverse-gamma distribution; `scale` in (eV/atom)².
    n_pairs
        Compounds that both oracles have computed.
    success
        Probability that a reference calculation gives an energy.
    """

    elements: tuple[str, ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    shape: float
    scale: float
    n_pairs: int
    success: float

    @classmethod
    def fit(cls, screening: Hull, reference: Hull, *, computed: int = 0, failed: int = 0) -> Calibration:
        """Learn from the compounds on both hulls, matched by id.

        Parameters
        ----------
        screening, reference
            Hulls of the two energy scales; they meet as formation energies only, each against its own elements.
        computed, failed
            Reference calculations of candidates that gave an energy, and that did not.
        """
        elements = tuple(sorted(set(screening.elements) & set(reference.elements)))
        theirs = {phase.id: phase for phase in reference.phases}
        rows, residuals = [], []
        for phase in screening.phases:
            pair = theirs.get(phase.id)
            if pair is None or len(phase.composition) == 1:
                continue
            cheap = screening.formation_energy_per_atom(phase.composition, phase.energy_per_atom)
            dear = reference.formation_energy_per_atom(pair.composition, pair.energy_per_atom)
            if cheap is not None and dear is not None:
                rows.append(_fractions(phase.composition, elements))
                residuals.append(dear - cheap)
        design = np.array(rows).reshape(-1, len(elements))
        y = np.array(residuals)
        precision = np.eye(len(elements)) + design.T @ design
        covariance = np.linalg.inv(precision)
        coefficients = covariance @ design.T @ y
        remainder = float(y @ y - coefficients @ precision @ coefficients)
        good, bad = PRIOR_CALCULATIONS
        return cls(
            elements=elements,
            coefficients=coefficients,
            covariance=covariance,
            shape=(PRIOR_PAIRS + len(y)) / 2,
            scale=(PRIOR_PAIRS * TYPICAL_ERROR**2 + max(0.0, remainder)) / 2,
            n_pairs=len(y),
            success=(good + computed) / (good + bad + computed + failed),
        )

    def residual(self, composition: Mapping[str, float]) -> tuple[float, float]:
        """Return what to add to a screening formation energy at `composition`, and its scale of error, eV/atom."""
        x = _fractions(composition, self.elements)
        variance = self.scale / self.shape * (1 + x @ self.covariance @ x)
        return float(x @ self.coefficients), math.sqrt(variance)

    def probability(
        self, composition: Mapping[str, float], formation_energy_per_atom: float, reference: Hull, threshold: float
    ) -> float:
        """Return the probability that a calculation puts a crystal within `threshold` of the reference hull as it is.

        Parameters
        ----------
        composition
            Element symbol → amount.
        formation_energy_per_atom
            On the screening scale, eV/atom.
        reference
            The reference hull.
        threshold
            eV/atom.
        """
        hull = hull_energy(reference, composition)
        if hull is None:
            return 0.0
        shift, width = self.residual(composition)
        margin = hull + threshold - formation_energy_per_atom - shift
        return self.success * float(student.cdf(margin / width, 2 * self.shape))


def hull_energy(hull: Hull, composition: Mapping[str, float]) -> float | None:
    """Return the formation energy of the hull at `composition` in eV/atom; None if an element has no energy there."""
    formation = hull.formation_energy_per_atom(composition, 0.0)
    placed = hull.decompose(composition, 0.0)
    return formation - placed.decomposition_energy if formation is not None and placed is not None else None


@dataclass(frozen=True)
class Prediction:
    """The probability, when a candidate was selected, that it would be stable, and whether it was.

    A calculation that failed did not make its candidate stable.
    """

    candidate: str
    formula: str
    selection: int
    probability: float
    stable: bool


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: their number, mean probability and the share that came true."""

    n: int
    probability: float
    came_true: float


@dataclass(frozen=True)
class Reliability:
    """Predictions against what happened.

    Parameters
    ----------
    predictions
        In the order of selection; `selection` counts the decisions from 0.
    """

    predictions: tuple[Prediction, ...]

    def brier(self, selection: int | None = None) -> float:
        """Return the mean squared difference of probability and outcome: 0 is perfect, 0.25 what 50 % always gives."""
        return float(np.mean([(p.probability - p.stable) ** 2 for p in self._of(selection)]))

    def base_rate_brier(self) -> float:
        """Return the Brier score of always predicting the share that came true: what calibration has to beat."""
        rate = float(np.mean([p.stable for p in self.predictions]))
        return rate * (1 - rate)

    @property
    def selections(self) -> list[int]:
        """The decisions that have predictions."""
        return sorted({p.selection for p in self.predictions})

    def curve(self) -> list[Bin]:
        """Return the reliability curve over bins of equal width; empty bins are left out."""
        bins = []
        for index in range(N_BINS):
            members = [p for p in self.predictions if min(N_BINS - 1, int(p.probability * N_BINS)) == index]
            if members:
                probability = float(np.mean([p.probability for p in members]))
                bins.append(Bin(len(members), probability, float(np.mean([p.stable for p in members]))))
        return bins

    def _of(self, selection: int | None) -> Sequence[Prediction]:
        return [p for p in self.predictions if selection is None or p.selection == selection]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form."""
        if not self.predictions:
            return {"predictions": [], "brier": None, "base_rate_brier": None, "selections": [], "curve": []}
        return {
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "brier": self.brier(),
            "base_rate_brier": self.base_rate_brier(),
            "selections": [{"selection": s, "n": len(self._of(s)), "brier": self.brier(s)} for s in self.selections],
            "curve": [asdict(one) for one in self.curve()],
        }


def reliability(store: Store) -> Reliability:
    """Return what was predicted of each candidate when it was selected, whichever agent selected it.

    The prediction is made anew from the hulls and calculations as they were at that moment, which are all in the store.
    Candidates whose calculation is not finished are left out.
    """
    versions = {role: store.hull_versions(role) for role in ("screening", "reference")}
    if not all(versions.values()):
        return Reliability(())
    threshold = store.campaign().config["campaign"]["stable_threshold"]
    candidates = {candidate.id: candidate for candidate in store.candidates()}
    first = {role: of_role[0].version for role, of_role in versions.items()}
    judged = computed = failed = 0
    selection, grouped = -1, False

    @cache
    def known(judged: int, computed: int, failed: int) -> tuple[Calibration, Hull]:
        screening, reference = (store.hull(role, first[role] + judged) for role in ("screening", "reference"))
        return Calibration.fit(screening, reference, computed=computed, failed=failed), reference

    predictions = []
    for id_, before, state, _ in store.transitions():
        candidate = candidates.get(id_)
        if state is not State.SELECTED:
            grouped = grouped and before is not State.SELECTED
            computed += state is State.COMPUTED
            failed += state is State.FAILED and before is State.SELECTED
            judged += state is State.JUDGED
            continue
        selection, grouped = selection + (not grouped), True
        if candidate is None or not _is_over(candidate):
            continue
        formation = candidate.screening_formation_energy_per_atom
        if formation is None:
            continue
        calibration, hull = known(judged, computed, failed)
        composition = candidate.crystal.composition.get_el_amt_dict()
        predictions.append(
            Prediction(
                id_,
                candidate.crystal.formula,
                selection,
                calibration.probability(composition, formation, hull, threshold),
                candidate.verdict is not None and candidate.verdict.stability is Stability.STABLE,
            )
        )
    return Reliability(tuple(predictions))


def _is_over(candidate: Candidate) -> bool:
    return candidate.verdict is not None or candidate.state is State.FAILED


def _fractions(composition: Mapping[str, float], elements: Sequence[str]) -> np.ndarray:
    total = sum(composition.values())
    return np.array([composition.get(element, 0.0) / total for element in elements])
