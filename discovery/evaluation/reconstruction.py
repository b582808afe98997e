"""Protocol P2: how many crystals of known composition are reconstructed, and how closely.

After Xie et al., ICLR 2022 (CDVAE), whose match rate and RMSE the field reports, and after arXiv:2509.12178, which
counts all samples of a composition (METRe) and gives misses their price (cRMSE).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.cost import Clock
from discovery.evaluation.results import Metric, Result, rate, statistic, unusable
from discovery.evaluation.validity import charges, distances_are_valid
from discovery.matching import Matcher, MatcherKind, create_matcher
from discovery.sets import CrystalSet, Member

PROTOCOL = "P2 reconstruction"

LENGTH_TOLERANCE = 0.3
SITE_TOLERANCE = 0.5
ANGLE_TOLERANCE = 10.0
"""Tolerances of the protocol: relative, in units of (volume/atom)^(1/3), and degrees."""


def protocol_matcher(kind: MatcherKind = "ordered") -> Matcher:
    """Return a matcher with the protocol's tolerances."""
    return create_matcher(kind, LENGTH_TOLERANCE, SITE_TOLERANCE, ANGLE_TOLERANCE)


def match_rms(predicted: Crystal | None, truth: Crystal, matcher: Matcher) -> float | None:
    """Return the root mean square displacement of a matching prediction; None if it does not match.

    The displacement is that of the best mapping of sites after scaling to equal volume, in units of
    (volume/atom)^(1/3). A prediction that is missing or too degenerate to be compared does not match.
    """
    if predicted is None or not len(predicted):
        return None
    try:
        return matcher.rms(predicted, truth)
    except (ValueError, ArithmeticError):  # singular lattices
        return None


def evaluate(
    predicted: CrystalSet,
    truth: CrystalSet,
    *,
    matcher: Matcher | None = None,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Result:
    """Compare predicted crystals with true ones, one to one, and for METRe each true crystal with all predictions.

    They are paired by id if both sets have the same ids, else by order. Rates are shares of all true crystals. Figures
    with ``_valid`` take only predictions of valid distances and charges, as CDVAE does. METRe is the share of true
    crystals that any prediction matches; its displacement is the smallest.

    Parameters
    ----------
    predicted, truth
        As many predictions, failed ones included, as true crystals.
    matcher
        That of the protocol by default, ordered.
    seed
        Of the bootstrap.
    progress
        Called after each true crystal.

    Raises
    ------
    InvalidInputError
        If a true crystal is unusable, or the sets cannot be paired.
    """
    matcher = matcher or protocol_matcher()
    clock = Clock()
    pairs = _pairs(predicted, truth)
    usable = {id_: crystal for id_, crystal in predicted.crystals.items() if len(crystal)}
    by_formula: dict[str, list[str]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with clock.stage("validity"):
            valid = {
                id_
                for id_, crystal in usable.items()
                if distances_are_valid(crystal.to_structure()) and charges(crystal) == "valid"
            }
        outcomes: dict[str, str] = {}
        found = _Displacements(), _Displacements()
        with clock.stage("matching"):
            for id_, crystal in usable.items():
                by_formula[matcher.formula(crystal)].append(id_)
            for member, true in pairs:
                displacements: dict[str, float] = {}
                for id_ in by_formula.get(matcher.formula(true), []):
                    displacement = match_rms(usable[id_], true, matcher)
                    if displacement is not None:
                        displacements[id_] = displacement
                found[0].add(member.id, displacements)
                found[1].add(member.id, {id_: value for id_, value in displacements.items() if id_ in valid})
                if member.id in usable:
                    outcomes[member.id] = _outcome(member.id in displacements, member.id in valid)
                else:
                    outcomes[member.id] = unusable(member)
                if progress is not None:
                    progress()
    n = len(pairs)
    return Result(
        PROTOCOL,
        (*_figures("", found[0], n, seed), *_figures("_valid", found[1], n, seed)),
        outcomes,
        {"predicted": predicted, "truth": truth},
        {"matcher": matcher.settings, "oxidation_states": "smact 2.6", "seed": seed},
        clock.seconds,
        clock.gpu_seconds,
        {
            "RMS displacement of matches, in units of (volume/atom)^(1/3)": {
                "one to one": found[0].of_pair,
                "best of all predictions": found[0].of_any,
            }
        },
    )


class _Displacements:
    """Displacements of true crystals: by their own prediction, and the smallest by any."""

    def __init__(self) -> None:
        self.of_pair: list[float] = []
        self.of_any: list[float] = []

    def add(self, own: str, displacements: dict[str, float]) -> None:
        """Add what the predictions that match one true crystal are displaced by; `own` is the one paired with it."""
        if own in displacements:
            self.of_pair.append(displacements[own])
        if displacements:
            self.of_any.append(min(displacements.values()))


def _outcome(matches: bool, valid: bool) -> str:
    return ("match" if matches else "no match") + ("" if valid else ", invalid")


def _pairs(predicted: CrystalSet, truth: CrystalSet) -> list[tuple[Member, Crystal]]:
    for member in truth.members:
        if member.crystal is None:
            raise InvalidInputError(f"{truth.path}: true crystal {member.id!r} is unusable: {member.problem}")
    if len(predicted.members) != len(truth.members):
        raise InvalidInputError(
            f"{predicted.path} has {len(predicted.members)} crystals, {truth.path} has {len(truth.members)}; give one "
            "prediction for each true crystal, a failed one as an empty row or file"
        )
    by_id = {member.id: member for member in predicted.members}
    if by_id.keys() == {member.id for member in truth.members}:
        return [(by_id[member.id], member.crystal) for member in truth.members if member.crystal is not None]
    pairs = zip(predicted.members, truth.members, strict=True)
    return [(member, known.crystal) for member, known in pairs if known.crystal is not None]


def figures(suffix: str, displacements: Sequence[float], n: int, seed: int) -> list[Metric]:
    """Return match rate, RMSE and cRMSE of the true crystals, `n` in all, that are matched with these displacements."""
    return [
        rate(f"match_rate{suffix}", len(displacements), n),
        statistic(f"rmse{suffix}", displacements, seed=seed, note="mean over matches"),
        _with_misses(f"crmse{suffix}", displacements, n, seed),
    ]


def _figures(suffix: str, found: _Displacements, n: int, seed: int) -> list[Metric]:
    return [
        *figures(suffix, found.of_pair, n, seed),
        rate(f"METRe{suffix}", len(found.of_any), n, "true crystals that any prediction matches"),
        statistic(f"METRe_rmse{suffix}", found.of_any, seed=seed, note="smallest of all, mean over matches"),
        _with_misses(f"METRe_crmse{suffix}", found.of_any, n, seed),
    ]


def _with_misses(name: str, displacements: Sequence[float], n: int, seed: int) -> Metric:
    values = np.concatenate([np.asarray(displacements, dtype=float), np.full(n - len(displacements), SITE_TOLERANCE)])
    return statistic(name, values, seed=seed, note=f"misses count as {SITE_TOLERANCE}")
