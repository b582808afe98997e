"""Protocol P1: validity, coverage, distances and property distributions of CDVAE (Xie et al., ICLR 2022).

The figures are those of its original evaluation code. They are saturated for most models: they tell that something is
broken, not that something is good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist, pdist
from scipy.stats import wasserstein_distance

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.evaluation.cost import Clock
from discovery.evaluation.fingerprints import composition_fingerprint, structure_fingerprint
from discovery.evaluation.results import CONFIDENCE_Z, Metric, Result, rate, statistic, unusable
from discovery.evaluation.validity import charges, distances_are_valid, images_are_valid
from discovery.processes import process_pool
from discovery.sets import CrystalSet

PROTOCOL = "P1 proxy metrics (CDVAE)"

CUTOFFS: Mapping[str, tuple[float, float]] = {"mp20": (0.4, 10.0), "carbon": (0.2, 4.0), "perovskite": (0.2, 4.0)}
"""Data set → largest distance of structures and of compositions that counts as covered."""

N_DRAWN = 1000
"""Valid crystals that diversity and distributions are taken from."""

N_DRAWS = 10

N_JACKKNIFE = 40
"""Halves of the valid crystals from which intervals are taken if there is nothing to draw from."""


@dataclass(frozen=True)
class Description:
    """What the protocol needs to know of one crystal; fingerprints are None where there are none."""

    distances_valid: bool
    charges: str
    images_valid: bool
    density: float
    n_elements: int
    structure: np.ndarray | None
    composition: np.ndarray | None

    @property
    def valid(self) -> bool:
        """Whether distances and charges are valid and there is a fingerprint."""
        return self.distances_valid and self.charges == "valid" and self.structure is not None

    @property
    def reason(self) -> str | None:
        """Why distances or charges are not valid; None if they are."""
        if not self.distances_valid:
            return "invalid: distances"
        return None if self.charges == "valid" else f"{self.charges}: charges"

    @property
    def outcome(self) -> str:
        """Valid, or the first reason against it."""
        return self.reason or ("valid" if self.structure is not None else "invalid: no structure fingerprint")


def describe(crystal: Crystal, *, fingerprints: bool = True) -> Description:
    """Describe one crystal, without fingerprints if they are not wanted."""
    structure = crystal.to_structure()
    fingerprint = structure_fingerprint(structure) if fingerprints else None
    return Description(
        distances_valid=distances_are_valid(structure),
        charges=charges(crystal),
        images_valid=images_are_valid(structure),
        density=float(structure.density) if structure.volume > 0 else np.inf,
        n_elements=len(structure.composition),
        structure=fingerprint,
        composition=composition_fingerprint(structure.composition) if fingerprint is not None else None,
    )


def describe_all(
    crystals: Sequence[Crystal],
    *,
    fingerprints: bool = True,
    workers: int = 1,
    progress: Callable[[], None] | None = None,
) -> list[Description]:
    """Describe crystals in `workers` processes; `progress` is called after each."""
    found = []
    one = partial(describe, fingerprints=fingerprints)
    if workers == 1:
        for crystal in crystals:
            found.append(one(crystal))
            if progress is not None:
                progress()
        return found
    with process_pool(workers) as pool:
        for description in pool.map(one, crystals, chunksize=8):
            found.append(description)
            if progress is not None:
                progress()
    return found


def evaluate(
    generated: CrystalSet,
    reference: CrystalSet,
    *,
    data_set: str = "mp20",
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Result:
    """Judge generated crystals against a test set.

    Parameters
    ----------
    generated
        All crystals that were asked for; those that cannot be read count as invalid.
    reference
        The full test split.
    data_set
        Whose cut-offs of coverage are used: mp20, carbon or perovskite.
    workers
        Processes that compute fingerprints.
    seed
        For the draw of valid crystals and the bootstrap.
    progress
        Called after each crystal of both sets.
    """
    if data_set not in CUTOFFS:
        raise InvalidInputError(f"data set {data_set!r} has no cut-offs; choose one of {', '.join(CUTOFFS)}")
    clock = Clock()
    usable = {id_: crystal for id_, crystal in generated.crystals.items() if len(crystal)}
    with clock.stage("generated"):
        found = describe_all(list(usable.values()), workers=workers, progress=progress)
    with clock.stage("reference"):
        known = describe_all(
            [crystal for crystal in reference.crystals.values() if len(crystal)], workers=workers, progress=progress
        )
    with clock.stage("metrics"):
        metrics = [
            *_validity(found, len(generated.members)),
            rate("valid", sum(one.valid for one in found), len(generated.members)),
            *_distributions([one for one in found if one.valid], known, seed),
            *_coverage(found, known, len(generated.members), CUTOFFS[data_set], seed),
        ]
    return Result(
        PROTOCOL,
        tuple(metrics),
        _outcomes(generated, dict(zip(usable, [one.outcome for one in found], strict=True))),
        {"generated": generated, "reference": reference},
        {
            "data_set": data_set,
            "structure_cutoff": CUTOFFS[data_set][0],
            "composition_cutoff": CUTOFFS[data_set][1],
            "oxidation_states": "smact 2.6",
            "seed": seed,
        },
        clock.seconds,
        clock.gpu_seconds,
        {
            "density (g/cm³)": {
                "generated, valid": [one.density for one in found if one.valid],
                "reference": [one.density for one in known],
            },
            "elements per crystal": {
                "generated, valid": [one.n_elements for one in found if one.valid],
                "reference": [one.n_elements for one in known],
            },
        },
    )


def evaluate_validity(
    generated: CrystalSet, *, workers: int = 1, seed: int = 0, progress: Callable[[], None] | None = None
) -> Result:
    """Judge distances and charges alone, without fingerprints and reference: for hundreds of thousands of crystals."""
    clock = Clock()
    usable = {id_: crystal for id_, crystal in generated.crystals.items() if len(crystal)}
    with clock.stage("generated"):
        found = describe_all(list(usable.values()), fingerprints=False, workers=workers, progress=progress)
    reasons = [one.reason or "valid distances and charges" for one in found]
    return Result(
        f"{PROTOCOL}, validity alone",
        tuple(_validity(found, len(generated.members))),
        _outcomes(generated, dict(zip(usable, reasons, strict=True))),
        {"generated": generated},
        {"oxidation_states": "smact 2.6", "seed": seed},
        clock.seconds,
        clock.gpu_seconds,
        {"density (g/cm³)": {"generated, all": [one.density for one in found if one.density < MAX_SHOWN_DENSITY]}},
    )


MAX_SHOWN_DENSITY = 50.0
"""g/cm³; twice that of osmium, the densest element."""


def _outcomes(generated: CrystalSet, outcomes: Mapping[str, str]) -> dict[str, str]:
    """Return the fate of every member; those without a crystal are unusable."""
    return {member.id: outcomes.get(member.id) or unusable(member) for member in generated.members}


def _validity(found: Sequence[Description], n: int) -> list[Metric]:
    return [
        rate("struct_valid", sum(one.distances_valid for one in found), n),
        rate(
            "struct_valid_with_images",
            sum(one.distances_valid and one.images_valid for one in found),
            n,
            "stricter than the original: distances of atoms from their own images count as well",
        ),
        rate("comp_valid", sum(one.charges == "valid" for one in found), n),
        rate("struct_and_comp_valid", sum(one.reason is None for one in found), n),
    ]


def _distributions(valid: Sequence[Description], known: Sequence[Description], seed: int) -> list[Metric]:
    if len(valid) < 2 or not known:
        names = ("comp_div", "struct_div", "wdist_density", "wdist_num_elems")
        return [Metric(name, None, None, len(valid), "fewer than two valid crystals") for name in names]
    densities, counts = np.array([one.density for one in known]), np.array([one.n_elements for one in known])
    quantities: dict[str, tuple[np.ndarray, Callable[[np.ndarray], float]]] = {
        "comp_div": (np.array([one.composition for one in valid]), lambda rows: float(pdist(rows).mean())),
        "struct_div": (np.array([one.structure for one in valid]), lambda rows: float(pdist(rows).mean())),
        "wdist_density": (
            np.array([one.density for one in valid]),
            lambda rows: float(wasserstein_distance(rows, densities)),
        ),
        "wdist_num_elems": (
            np.array([one.n_elements for one in valid]),
            lambda rows: float(wasserstein_distance(rows, counts)),
        ),
    }
    return [_drawn(name, rows, of, seed) for name, (rows, of) in quantities.items()]


def _drawn(name: str, rows: np.ndarray, of: Callable[[np.ndarray], float], seed: int) -> Metric:
    """Take a quantity of 1000 valid crystals, as the protocol asks for, or of all if they are fewer.

    The interval is from the spread over draws, or over halves of all (delete-half jackknife).
    """
    rng = np.random.default_rng(seed)
    if len(rows) <= N_DRAWN:
        note = "" if len(rows) == N_DRAWN else f"of all {len(rows)} valid crystals; the protocol asks for {N_DRAWN}"
        halves = [of(rows[rng.permutation(len(rows))[: max(2, len(rows) // 2)]]) for _ in range(N_JACKKNIFE)]
        value, half_width = of(rows), CONFIDENCE_Z * float(np.std(halves))
        return Metric(name, value, (value - half_width, value + half_width), len(rows), note)
    draws = [of(rows[rng.choice(len(rows), N_DRAWN, replace=False)]) for _ in range(N_DRAWS)]
    mean, deviation = float(np.mean(draws)), float(np.std(draws))
    note = f"mean of {N_DRAWS} draws of {N_DRAWN} valid crystals, standard deviation {deviation:.4g}"
    return Metric(name, mean, (mean - CONFIDENCE_Z * deviation, mean + CONFIDENCE_Z * deviation), len(rows), note)


def _coverage(
    found: Sequence[Description], known: Sequence[Description], n: int, cutoffs: tuple[float, float], seed: int
) -> list[Metric]:
    generated: Any = [one for one in found if one.structure is not None]
    reference: Any = [one for one in known if one.structure is not None]
    names = ("cov_recall", "cov_precision", "joint_recall", "joint_precision", "amsd_recall", "amsd_precision")
    if not generated or not reference:
        return [Metric(name, None, None, 0, "no fingerprints") for name in (*names, "amcd_recall", "amcd_precision")]
    nearest = _Nearest.of(generated, reference, cutoffs)
    near, near_known = (one <= cutoffs[0] for one in (nearest.structure, nearest.structure_of_known))
    alike, alike_known = (one <= cutoffs[1] for one in (nearest.composition, nearest.composition_of_known))
    joint = "stricter than the original: one and the same crystal must be near in structure and composition"
    return [
        rate("cov_recall", int((near_known & alike_known).sum()), len(reference)),
        rate("cov_precision", int((near & alike).sum()), n),
        rate("joint_recall", int(nearest.joint_of_known.sum()), len(reference), joint),
        rate("joint_precision", int(nearest.joint.sum()), n, joint),
        statistic("amsd_recall", nearest.structure_of_known, seed=seed),
        statistic("amsd_precision", nearest.structure, seed=seed),
        statistic("amcd_recall", nearest.composition_of_known, seed=seed),
        statistic("amcd_precision", nearest.composition, seed=seed),
    ]


@dataclass(frozen=True)
class _Nearest:
    """Distances of each generated crystal to the nearest known one, and of each known one to the nearest generated.

    `joint` tells whether one and the same crystal is near in structure and composition.
    """

    structure: np.ndarray
    composition: np.ndarray
    joint: np.ndarray
    structure_of_known: np.ndarray
    composition_of_known: np.ndarray
    joint_of_known: np.ndarray

    @classmethod
    def of(cls, generated: Sequence[Any], known: Sequence[Any], cutoffs: tuple[float, float]) -> _Nearest:
        """Compare all pairs, some rows at a time, so that the memory does not grow with the number of pairs."""
        structures, compositions = (
            np.array([getattr(one, kind) for one in known]) for kind in ("structure", "composition")
        )
        rows = []
        columns = np.full((2, len(known)), np.inf)
        joint = np.zeros(len(known), dtype=bool)
        for start in range(0, len(generated), ROWS):
            some = generated[start : start + ROWS]
            near = cdist([one.structure for one in some], structures)
            alike = cdist([one.composition for one in some], compositions)
            both = (near <= cutoffs[0]) & (alike <= cutoffs[1])
            rows.append((near.min(axis=1), alike.min(axis=1), both.any(axis=1)))
            columns = np.minimum(columns, [near.min(axis=0), alike.min(axis=0)])
            joint |= both.any(axis=0)
        structure, composition, joint_rows = (np.concatenate(column) for column in zip(*rows, strict=True))
        return cls(structure, composition, joint_rows, columns[0], columns[1], joint)


ROWS = 512
"""Generated crystals that are compared with all known ones at once."""
