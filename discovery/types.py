"""Values that the engine's parts exchange; all frozen, units eV, Å and seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError


class State(StrEnum):
    """States of a candidate; see the diagram in ``docs/architecture.md``."""

    SAMPLED = "sampled"
    REJECTED = "rejected"
    ADMITTED = "admitted"
    SCREENED = "screened"
    PASSED_OVER = "passed_over"
    SELECTED = "selected"
    COMPUTED = "computed"
    JUDGED = "judged"
    LEARNED = "learned"
    FAILED = "failed"


class FailureKind(StrEnum):
    """Why an evaluation gave no energy."""

    INVALID_INPUT = "invalid_input"
    NOT_CONVERGED = "not_converged"
    UNPHYSICAL = "unphysical"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    LOST = "lost"
    NOT_IN_DATABASE = "not_in_database"


class Stability(StrEnum):
    """The word of a verdict."""

    STABLE = "stable"
    METASTABLE = "metastable"
    UNSTABLE = "unstable"


@dataclass(frozen=True)
class Failure:
    """A failure with its kind, its cause in words and, where files exist, their folder."""

    kind: FailureKind
    message: str
    folder: str | None = None


@dataclass(frozen=True)
class EnergyScale:
    """What makes two energies comparable.

    Parameters
    ----------
    code, version
        Program or package that computes the energy, and its version.
    functional
        Exchange-correlation functional, or the functional a model was trained on.
    potentials
        Pseudopotential set, or the SHA-256 of a model checkpoint.
    settings
        Numerical settings that move total energies (cutoff, k-point density, smearing, spin, +U); empty for an MLFF.
    corrections
        Name of the correction scheme contained in the energies; empty for none.
    """

    code: str
    version: str
    functional: str
    potentials: str = ""
    settings: str = ""
    corrections: str = ""

    @cached_property
    def id(self) -> str:
        """Short stable name, for example ``chgnet-0.3.0-1f2e3d4c``."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.code}-{self.functional}-{digest[:8]}".lower().replace(" ", "_")

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class Target:
    """What the agent asks the generator for.

    Exactly one of `composition` and `elements` is given.

    Parameters
    ----------
    composition
        Atoms of each element in the sampled cell, for example ``{"Mg": 2, "Si": 1}``.
    elements
        Element set; the generator chooses counts from these elements alone.
    n_samples
        How many crystals to sample.
    guidance
        Auxiliary property → wanted value (``formation_energy_per_atom``, ``e_above_hull``, …); ignored by generators
        that cannot be guided.
    reason
        Why the agent asks for it, in words and numbers.
    """

    n_samples: int
    composition: Mapping[str, int] | None = None
    elements: tuple[str, ...] | None = None
    guidance: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.composition is None) == (self.elements is None):
            raise InvalidInputError("a target needs exactly one of composition and elements")
        if self.elements is not None and not self.elements:
            raise InvalidInputError("an element set needs at least one element")
        if self.n_samples < 1:
            raise InvalidInputError(f"n_samples is {self.n_samples}, expected at least 1")
        if self.composition is not None and (not self.composition or min(self.composition.values()) < 1):
            raise InvalidInputError(f"composition {dict(self.composition)} needs at least one atom of each element")

    @property
    def label(self) -> str:
        """Text such as ``Mg2Si1`` or ``{Mg, Si}``."""
        if self.composition is not None:
            return "".join(f"{element}{count}" for element, count in self.composition.items())
        return "{" + ", ".join(self.elements or ()) + "}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_dict` reads."""
        return {
            "n_samples": self.n_samples,
            "composition": dict(self.composition) if self.composition is not None else None,
            "elements": list(self.elements) if self.elements is not None else None,
            "guidance": dict(self.guidance),
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """Read the form that :meth:`to_dict` writes."""
        elements = data["elements"]
        return cls(
            n_samples=data["n_samples"],
            composition=data["composition"],
            elements=tuple(elements) if elements is not None else None,
            guidance=data["guidance"],
            reason=data["reason"],
        )


@dataclass(frozen=True)
class Sample:
    """One attempt of a generator: a crystal, or the failure that took its place."""

    target: int
    """Index of the target in the sequence given to ``sample``."""
    crystal: Crystal | None
    failure: Failure | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One oracle's answer for one crystal.

    Parameters
    ----------
    energy_scale
        Scale of `energy`.
    crystal
        The relaxed crystal (the given one for a static calculation); None if the evaluation failed.
    energy
        Total energy of the cell in eV, corrections included; None if the evaluation failed.
    forces
        eV/Å, shape (N, 3).
    stress
        eV/Å³, shape (3, 3), positive under tension as in ASE.
    converged
        Whether both the electronic and the ionic loop ended within their tolerance.
    corrections
        Corrections contained in `energy`, name → eV per cell.
    seconds, cores, gpus
        Wall time, and the number of cores and GPUs held during it.
    details
        Further JSON values worth keeping (steps, magnetic moments, k-points, potential fingerprints).
    """

    energy_scale: EnergyScale
    crystal: Crystal | None = None
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    converged: bool = False
    corrections: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cores: int = 1
    gpus: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        """Whether the evaluation carries an energy that may be used."""
        return self.failure is None and self.energy is not None and self.crystal is not None

    @property
    def energy_per_atom(self) -> float:
        """Energy in eV/atom."""
        if self.energy is None or self.crystal is None:
            raise ValueError("a failed evaluation has no energy")
        return self.energy / len(self.crystal)

    @property
    def core_hours(self) -> float:
        """Cost in core-hours."""
        return self.seconds * self.cores / 3600.0

    @property
    def gpu_hours(self) -> float:
        """Cost in GPU-hours."""
        return self.seconds * self.gpus / 3600.0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_dict` reads."""
        return {
            "format": "discovery.evaluation/1",
            "energy_scale": asdict(self.energy_scale),
            "crystal": self.crystal.to_dict() if self.crystal is not None else None,
            "energy": self.energy,
            "forces": self.forces.tolist() if self.forces is not None else None,
            "stress": self.stress.tolist() if self.stress is not None else None,
            "converged": self.converged,
            "corrections": dict(self.corrections),
            "seconds": self.seconds,
            "cores": self.cores,
            "gpus": self.gpus,
            "details": dict(self.details),
            "failure": asdict(self.failure) if self.failure is not None else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read the form that :meth:`to_dict` writes."""
        if data.get("format") != "discovery.evaluation/1":
            raise InvalidInputError(f"evaluation has format {data.get('format')!r}, expected 'discovery.evaluation/1'")
        failure = data["failure"]
        return cls(
            energy_scale=EnergyScale(**data["energy_scale"]),
            crystal=Crystal.from_dict(data["crystal"]) if data["crystal"] is not None else None,
            energy=data["energy"],
            forces=np.array(data["forces"]) if data["forces"] is not None else None,
            stress=np.array(data["stress"]) if data["stress"] is not None else None,
            converged=data["converged"],
            corrections=data["corrections"],
            seconds=data["seconds"],
            cores=data["cores"],
            gpus=data.get("gpus", 0.0),
            details=data["details"],
            failure=Failure(FailureKind(failure["kind"]), failure["message"], failure["folder"]) if failure else None,
        )


@dataclass(frozen=True)
class Verdict:
    """What the reference oracle's hull says of a candidate.

    Parameters
    ----------
    stability
        stable if `e_above_hull` ≤ `threshold`, metastable if ≤ `metastable_threshold`, else unstable.
    e_above_hull
        eV/atom above the hull that contains the candidate, ≥ 0.
    decomposition_energy
        eV/atom against the hull without the candidate; negative means below it.
    formation_energy_per_atom
        eV/atom against the elements of the same energy scale.
    decomposition
        Competing phases, reduced formula → amount (atomic fraction).
    threshold, metastable_threshold
        eV/atom.
    energy_scale, hull_version
        Which hull was asked.
    """

    stability: Stability
    e_above_hull: float
    decomposition_energy: float
    formation_energy_per_atom: float
    decomposition: Mapping[str, float]
    threshold: float
    metastable_threshold: float
    energy_scale: str
    hull_version: int


@dataclass(frozen=True)
class LabelledCrystal:
    """A crystal with known properties, for training.

    ``properties`` holds ``formation_energy_per_atom``, ``e_above_hull``, ``band_gap`` (eV) as far as they are known.
    """

    crystal: Crystal
    properties: Mapping[str, float] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Generator weights on disk.

    Parameters
    ----------
    path
        File or folder of the weights.
    sha256
        Hash of the weights.
    parent
        Hash of the checkpoint it was trained from; None if from scratch.
    trained_on
        Ids of the crystals it was trained on beyond its parent's data.
    metrics
        Losses before and after, steps, seconds, and whether the new weights were ``accepted`` (1.0) or the parent kept.
    """

    path: str
    sha256: str
    parent: str | None = None
    trained_on: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Read-only view of one sampled crystal and what has happened to it.

    ``id`` never changes; it is derived from run seed, round, target and sample index.
    """

    id: str
    round: int
    target: Target
    crystal: Crystal
    state: State
    screening: Evaluation | None = None
    screening_formation_energy_per_atom: float | None = None
    screening_decomposition_energy: float | None = None
    reference: Evaluation | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Budget:
    """What may be spent, what is spent, and what work in flight has reserved; kind → amount.

    Kinds: ``reference_calls``, ``core_hours``, ``gpu_hours``, ``wall_hours``. A kind without a limit is absent from
    `limit`.
    """

    limit: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    reserved: Mapping[str, float] = field(default_factory=dict)

    def left(self, kind: str) -> float:
        """Return what is left of `kind`; infinite without a limit."""
        if kind not in self.limit:
            return float("inf")
        return self.limit[kind] - self.spent.get(kind, 0.0) - self.reserved.get(kind, 0.0)

    @property
    def exhausted(self) -> str | None:
        """The first kind of which nothing is left, or None."""
        return next((kind for kind in self.limit if self.left(kind) <= 0), None)
