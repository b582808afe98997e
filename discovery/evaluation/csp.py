"""Crystal structure prediction (protocol P2): crystals of test compositions against the true ones.

After Xie et al. (CDVAE, ICLR 2022) and Jiao et al. (DiffCSP, NeurIPS 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.cost import Clock
from discovery.evaluation.reconstruction import figures, match_rms, protocol_matcher
from discovery.evaluation.results import Metric, Result, rate, unusable
from discovery.evaluation.validity import charges, distances_are_valid
from discovery.protocols import Generator
from discovery.sets import CrystalSet
from discovery.types import Sample, Target

PROTOCOL = "P2 structure prediction"

TARGETS_AT_ONCE = 128
"""Compositions that a generator is asked for together; progress is shown after each lot."""


def predict(
    generator: Generator,
    truth: CrystalSet,
    *,
    samples: int,
    seed: int,
    progress: Callable[[str, int], None] | None = None,
) -> Result:
    """Sample crystals of the compositions of `truth` and compare them with its crystals; the best sample counts.

    Rates are shares of the true crystals that can be used. Figures with ``_valid`` take only samples of valid distances
    and charges, by the rules of CDVAE; ``valid_distances`` is a share of all samples that were asked for.

    Parameters
    ----------
    generator
        What is judged.
    truth
        The true crystals.
    samples
        Samples for each of them.
    seed
        Of sampling and of the bootstrap.
    progress
        Called with a stage, ``sampling`` or ``matching``, and how many crystals it has done.

    Raises
    ------
    InvalidInputError
        If there is nothing to predict.
    """
    outcomes = {member.id: unusable(member) for member in truth.members}
    usable = {id_: crystal for id_, crystal in truth.crystals.items() if len(crystal)}
    if not usable:
        raise InvalidInputError(f"{truth.path}: there is no crystal to predict; give a file that has some")
    clock, matcher = Clock(), protocol_matcher()
    with clock.stage("sampling"):
        predicted = _sample(generator, list(usable.values()), samples, seed, progress)
    best: dict[str, float] = {}
    best_valid: dict[str, float] = {}
    n_valid = 0
    with clock.stage("matching"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (id_, true), of_target in zip(usable.items(), predicted, strict=True):
            neutral = charges(true) == "valid"
            for sample in of_target:
                valid = sample.crystal is not None and distances_are_valid(sample.crystal.to_structure())
                n_valid += valid
                rms = match_rms(sample.crystal, true, matcher)
                if rms is None:
                    continue
                best[id_] = min(rms, best.get(id_, rms))
                if valid and neutral:
                    best_valid[id_] = min(rms, best_valid.get(id_, rms))
            outcomes[id_] = _outcome(of_target, matches=id_ in best, valid=id_ in best_valid)
            if progress is not None:
                progress("matching", 1)
    n = len(usable)
    metrics: list[Metric] = []
    for suffix, found in (("", best), ("_valid", best_valid)):
        metrics += figures(suffix, list(found.values()), n, seed)
    return Result(
        PROTOCOL,
        (*metrics, rate("valid_distances", n_valid, n * samples, "share of samples")),
        outcomes,
        {"truth": truth},
        {
            "matcher": matcher.settings,
            "members": len(truth.members),
            "samples": samples,
            "oxidation_states": "smact 2.6",
            "seed": seed,
        },
        clock.seconds,
        clock.gpu_seconds,
        {"RMS displacement of matches, in units of (volume/atom)^(1/3)": {f"best of {samples}": list(best.values())}},
        n_samples=n * samples,
    )


def headline(result: Result) -> dict[str, Any]:
    """Return the figures that are quoted of a prediction, with the seconds of sampling alone."""
    value = {metric.name: metric.value for metric in result.metrics}
    return {
        "match_rate": {"all": value["match_rate"], "valid": value["match_rate_valid"]},
        "rmse": {"all": value["rmse"], "valid": value["rmse_valid"]},
        "n": result.metric("match_rate").n,
        "samples": result.settings["samples"],
        "valid_rate": value["valid_distances"],
        "seconds": result.seconds["sampling"],
        "gpu_seconds": result.gpu_seconds["sampling"],
    }


def _sample(
    generator: Generator,
    truths: list[Crystal],
    samples: int,
    seed: int,
    progress: Callable[[str, int], None] | None,
) -> list[list[Sample]]:
    """Return the samples of the composition of each of `truths`."""
    targets = [
        Target(samples, composition={element: int(n) for element, n in truth.composition.get_el_amt_dict().items()})
        for truth in truths
    ]
    found: list[list[Sample]] = [[] for _ in targets]
    for first in range(0, len(targets), TARGETS_AT_ONCE):
        lot = targets[first : first + TARGETS_AT_ONCE]
        own_seed = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
        for sample in generator.sample(lot, seed=own_seed):
            found[first + sample.target].append(sample)
        if progress is not None:
            progress("sampling", len(lot))
    return found


def _outcome(samples: list[Sample], *, matches: bool, valid: bool) -> str:
    if matches:
        return "match" if valid else "match, invalid"
    failures = [sample.failure for sample in samples if sample.failure is not None]
    if samples and len(failures) == len(samples):
        return f"no sample: {failures[0].message}"
    return "no match"
