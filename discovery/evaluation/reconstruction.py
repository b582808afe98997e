"""Protocol P2: how many crystals of known composition are reconstructed, and how closely.

After Xie et al., ICLR 2022 (CDVAE), whose match rate and RMSE the field reports, and after arXiv:2509.12178, which
counts all samples of a composition (METRe) and gives misses their price (cRMSE).
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.results import Metric, Result, rate, statistic, unusable
from discovery.evaluation.validity import charges, distances_are_valid
from discovery.matching import comparable
from discovery.sets import CrystalSet, Member

PROTOCOL = "P2 reconstruction"

LENGTH_TOLERANCE = 0.3
SITE_TOLERANCE = 0.5
ANGLE_TOLERANCE = 10.0
"""Tolerances of the protocol: relative, in units of (volume/atom)^(1/3), and degrees."""

_MATCHER = StructureMatcher(ltol=LENGTH_TOLERANCE, stol=SITE_TOLERANCE, angle_tol=ANGLE_TOLERANCE)


def match_rms(predicted: Crystal | None, truth: Crystal) -> float | None:
    """Return the root mean square displacement of a matching prediction; None if it does not match.

    The displacement is that of the best mapping of sites after scaling to equal volume, in units of
    (volume/atom)^(1/3). A prediction that is missing or too degenerate to be compared does not match.
    """
    if predicted is None or not comparable(predicted) or predicted.formula != truth.formula:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            distances = _MATCHER.get_rms_dist(predicted.to_structure(), truth.to_structure())
        except (ValueError, ArithmeticError):  # singular lattices
            return None
    return None if distances is None else float(distances[0])


def evaluate(
    predicted: CrystalSet, truth: CrystalSet, *, seed: int = 0, progress: Callable[[], None] | None = None
) -> Result:
    """Compare predicted crystals with true ones, one to one.

    They are paired by id if both sets have the same ids, else by order. Rates are shares of all true crystals. Figures
    with ``_valid`` take only predictions of valid distances and charges, as CDVAE does.

    Raises
    ------
    InvalidInputError
        If a true crystal is unusable, or the sets cannot be paired.
    """
    start = time.perf_counter()
    pairs = _pairs(predicted, truth)
    by_formula: dict[str, list[Crystal]] = defaultdict(list)
    for usable in predicted.crystals.values():
        if len(usable):
            by_formula[usable.formula].append(usable)
    outcomes: dict[str, str] = {}
    matched: dict[str, float] = {}
    valid: set[str] = set()
    n_found = 0
    for member, true in pairs:
        crystal = member.crystal
        if crystal is None or not len(crystal):
            found = None
            outcomes[member.id] = unusable(member)
        else:
            found = match_rms(crystal, true)
            outcomes[member.id] = "no match" if found is None else "match"
            if distances_are_valid(crystal.to_structure()) and charges(crystal) == "valid":
                valid.add(member.id)
        if found is not None:
            matched[member.id] = found
        n_found += found is not None or any(
            match_rms(other, true) is not None for other in by_formula.get(true.formula, []) if other is not crystal
        )
        if progress is not None:
            progress()
    n = len(pairs)
    metrics = [*_figures("", list(matched.values()), n, seed)]
    metrics += _figures("_valid", [value for id_, value in matched.items() if id_ in valid], n, seed)
    metrics.append(rate("METRe", n_found, n, "any prediction of the composition counts"))
    return Result(
        PROTOCOL,
        tuple(metrics),
        outcomes,
        {"predicted": predicted, "truth": truth},
        {"ltol": LENGTH_TOLERANCE, "stol": SITE_TOLERANCE, "angle_tol": ANGLE_TOLERANCE, "seed": seed},
        {"matching": time.perf_counter() - start},
        {"RMS displacement of matches": {"all": list(matched.values())}},
    )


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


def _figures(suffix: str, displacements: Sequence[float], n: int, seed: int) -> list[Metric]:
    missed = np.full(n - len(displacements), SITE_TOLERANCE)
    return [
        rate(f"match_rate{suffix}", len(displacements), n),
        statistic(f"rmse{suffix}", displacements, seed=seed, note="mean over matches"),
        statistic(
            f"crmse{suffix}",
            np.concatenate([np.asarray(displacements, dtype=float), missed]),
            seed=seed,
            note=f"misses count as {SITE_TOLERANCE}",
        ),
    ]
