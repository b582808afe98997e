"""Tables of the store.

Crystals, forces and free-form details are JSON (`discovery.crystal.CRYSTAL_FORMAT`); whatever is searched, summed or
shown is a column. Times are seconds since the epoch, energies eV, durations seconds.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, ForeignKey, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of all tables; constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(column_0_label)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class CampaignRow(Base):
    """The campaign; one row."""

    __tablename__ = "campaign"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    seed: Mapped[int]
    config: Mapped[dict[str, Any]]
    config_hash: Mapped[str]
    state: Mapped[str]
    message: Mapped[str]
    created: Mapped[float]


class SessionRow(Base):
    """One run of the driver; the heartbeat is renewed by every transaction."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(primary_key=True)
    pid: Mapped[int]
    host: Mapped[str]
    started: Mapped[float]
    heartbeat: Mapped[float]


class StepRow(Base):
    """A finished step of the loop, such as ``proposed`` or ``judged``, and its wall time."""

    __tablename__ = "steps"

    round: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float]
    time: Mapped[float]


class EnergyScaleRow(Base):
    """What makes energies comparable, and which role computes on it."""

    __tablename__ = "energy_scales"

    role: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str]
    code: Mapped[str]
    version: Mapped[str]
    functional: Mapped[str]
    potentials: Mapped[str]
    settings: Mapped[str]
    corrections: Mapped[str]


class ReferenceRow(Base):
    """A reference phase as it was given, before any evaluation."""

    __tablename__ = "reference_phases"

    id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    formula: Mapped[str]
    source: Mapped[str]
    crystal: Mapped[dict[str, Any]]
    properties: Mapped[dict[str, Any]]


class TargetRow(Base):
    """What the agent asked for."""

    __tablename__ = "targets"

    id: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(index=True)
    position: Mapped[int]
    seed: Mapped[int]
    label: Mapped[str]
    reason: Mapped[str]
    request: Mapped[dict[str, Any]]


class CandidateRow(Base):
    """A candidate: its sample, its current state and the verdict."""

    __tablename__ = "candidates"

    id: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(index=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"))
    sample: Mapped[int]
    checkpoint: Mapped[str | None]
    """SHA-256 of the generator weights it was sampled with."""
    formula: Mapped[str | None]
    n_atoms: Mapped[int]
    crystal: Mapped[dict[str, Any] | None]
    """None if the generator failed."""
    state: Mapped[str] = mapped_column(index=True)
    screening_formation_energy_per_atom: Mapped[float | None]
    screening_decomposition_energy: Mapped[float | None]
    screening_hull_version: Mapped[int | None]
    stability: Mapped[str | None]
    e_above_hull: Mapped[float | None]
    decomposition_energy: Mapped[float | None]
    formation_energy_per_atom: Mapped[float | None]
    decomposition: Mapped[dict[str, Any] | None]
    threshold: Mapped[float | None]
    metastable_threshold: Mapped[float | None]
    energy_scale_id: Mapped[str | None]
    hull_version: Mapped[int | None]


class TransitionRow(Base):
    """One arrow taken by a candidate; append-only, and unique because no candidate enters a state twice."""

    __tablename__ = "transitions"
    __table_args__ = (UniqueConstraint("candidate_id", "to_state"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    candidate_id: Mapped[str] = mapped_column(ForeignKey("candidates.id"), index=True)
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    cause: Mapped[str]
    core_seconds: Mapped[float]
    time: Mapped[float]


class EvaluationRow(Base):
    """An oracle's answer for a candidate or a reference phase."""

    __tablename__ = "evaluations"

    subject_id: Mapped[str] = mapped_column(primary_key=True)
    """Id of the candidate or the reference phase."""
    role: Mapped[str] = mapped_column(primary_key=True)
    energy_scale_id: Mapped[str]
    energy: Mapped[float | None]
    converged: Mapped[bool]
    corrections: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None]
    failure_message: Mapped[str | None]
    failure_folder: Mapped[str | None]
    seconds: Mapped[float]
    cores: Mapped[int]
    crystal: Mapped[dict[str, Any] | None]
    forces: Mapped[list[Any] | None]
    stress: Mapped[list[Any] | None]
    details: Mapped[dict[str, Any]]
    time: Mapped[float]


class PhaseRow(Base):
    """An entry of a role's hull."""

    __tablename__ = "phases"

    role: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    energy_scale_id: Mapped[str]
    position: Mapped[int]
    formula: Mapped[str]
    composition: Mapped[dict[str, Any]]
    energy: Mapped[float]
    crystal: Mapped[dict[str, Any] | None]
    origin: Mapped[str]
    hull_version: Mapped[int]


class HullVersionRow(Base):
    """A version of a role's hull: what was added, and what is stable since."""

    __tablename__ = "hull_versions"

    role: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    energy_scale_id: Mapped[str]
    round: Mapped[int | None]
    added: Mapped[list[Any]]
    stable: Mapped[list[Any]]
    time: Mapped[float]


class CheckpointRow(Base):
    """Generator weights, their parent and what they were trained on."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(primary_key=True)
    """``initial``, or the round after which they were trained, such as ``r02``."""
    round: Mapped[int | None]
    sha256: Mapped[str]
    parent: Mapped[str | None]
    path: Mapped[str]
    """Relative to the run folder where it lies inside."""
    trained_on: Mapped[list[Any]]
    metrics: Mapped[dict[str, Any]]
    time: Mapped[float]


class LedgerRow(Base):
    """What work on one subject has spent, or reserves while in flight."""

    __tablename__ = "ledger"
    __table_args__ = (UniqueConstraint("subject_id", "role", "kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    subject_id: Mapped[str]
    role: Mapped[str]
    kind: Mapped[str]
    amount: Mapped[float]
    spent: Mapped[bool]
    """False while the amount is only reserved."""
    time: Mapped[float]
