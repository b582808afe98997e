"""Crystal structure prediction (protocol P2): crystals of test compositions against the true ones.

After Xie et al. (CDVAE, ICLR 2022) and Jiao et al. (DiffCSP, NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.cost import Clock
from discovery.evaluation.reconstruction import match_rms, protocol_matcher
from discovery.evaluation.validity import charges, distances_are_valid
from discovery.protocols import Generator
from discovery.types import Target


@dataclass(frozen=True)
class Reconstruction:
    """Match rate, the share of test crystals that a sample matches, and the mean RMSE of those; None if none does."""

    match_rate: float
    rmse: float | None


@dataclass(frozen=True)
class CspResult:
    """Result of a prediction of `n` crystals from `samples` samples each.

    Parameters
    ----------
    all
        Every sample counts.
    valid
        Samples whose distances or charges are invalid by the rules of CDVAE do not count.
    n, samples
        Test crystals, and samples for each.
    valid_rate
        Share of samples with valid distances among all that were asked for.
    seconds, gpu_seconds
        Wall time of sampling alone, and that part of it in which a GPU was held.
    rms
        Of each test crystal, the smallest displacement among its samples, in units of (volume/atom)^(1/3).
    """

    all: Reconstruction
    valid: Reconstruction
    n: int
    samples: int
    valid_rate: float
    seconds: float
    gpu_seconds: float
    rms: tuple[float | None, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form that `discovery evaluate csp --json` prints."""
        return {
            "match_rate": {"all": self.all.match_rate, "valid": self.valid.match_rate},
            "rmse": {"all": self.all.rmse, "valid": self.valid.rmse},
            **{key: value for key, value in asdict(self).items() if key not in ("all", "valid", "rms")},
            "seconds_per_sample": self.seconds / (self.samples * self.n),
            "gpu_seconds_per_sample": self.gpu_seconds / (self.samples * self.n),
            "matcher": protocol_matcher().settings,
        }


def predict(generator: Generator, truths: Sequence[Crystal], *, samples: int, seed: int) -> CspResult:
    """Sample crystals of the compositions of `truths` and compare them; the best of `samples` counts.

    Raises
    ------
    InvalidInputError
        If there is nothing to predict.
    """
    if not truths:
        raise InvalidInputError("there is no crystal to predict; the data are empty")
    targets = [
        Target(samples, composition={element: int(n) for element, n in truth.composition.get_el_amt_dict().items()})
        for truth in truths
    ]
    clock, matcher = Clock(), protocol_matcher()
    with clock.stage("sampling"):
        predicted = generator.sample(targets, seed=seed)
    best: list[float | None] = [None] * len(truths)
    best_valid: list[float | None] = [None] * len(truths)
    neutral = [charges(truth) == "valid" for truth in truths]
    n_valid = 0
    for item in predicted:
        valid = item.crystal is not None and distances_are_valid(item.crystal.to_structure())
        n_valid += valid
        rms = match_rms(item.crystal, truths[item.target], matcher)
        best[item.target] = _smaller(best[item.target], rms)
        if valid and neutral[item.target]:
            best_valid[item.target] = _smaller(best_valid[item.target], rms)
    return CspResult(
        summarise(best),
        summarise(best_valid),
        len(truths),
        samples,
        n_valid / (samples * len(truths)),
        clock.seconds["sampling"],
        clock.gpu_seconds["sampling"],
        tuple(best),
    )


def summarise(rms: Sequence[float | None]) -> Reconstruction:
    """Return match rate and RMSE of displacements, None where nothing matches."""
    matched = [value for value in rms if value is not None]
    return Reconstruction(len(matched) / len(rms), float(np.mean(matched)) if matched else None)


def _smaller(first: float | None, second: float | None) -> float | None:
    return min((value for value in (first, second) if value is not None), default=None)
