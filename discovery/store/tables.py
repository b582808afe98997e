"""Tables of the store.

Crystals, forces and free-form details are JSON (`discovery.crystal.CRYSTAL_FORMAT`); whatever is searched, summed or
shown is a column. Times are seconds since the epoch, energies eV, durations seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Id = Annotated[str, mapped_column(String().with_variant(String(collation="C"), "postgresql"))]
"""Identifiers sort by their characters in every database, because candidates are judged in the order of their ids."""
Seed = Annotated[int, mapped_column(BigInteger)]
"""Seeds have 32 bits without sign, which PostgreSQL's INTEGER has not."""


class Base(DeclarativeBase):
    """Base of all tables; constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(column_0_label)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class CampaignRow(Base):
    """A campaign; a database may hold several, told apart by their names."""

    __tablename__ = "campaign"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    seed: Mapped[Seed]
    config: Mapped[dict[str, Any]]
    config_hash: Mapped[str]
    state: Mapped[str]
    message: Mapped[str]
    created: Mapped[float]


class OfCampaign:
    """A table whose rows belong to a campaign, and whose keys are unique within it."""

    campaign_id: Mapped[int] = mapped_column(
        ForeignKey("campaign.id", ondelete="CASCADE"), primary_key=True, sort_order=-1
    )


class OfCampaignInOrder(OfCampaign):
    """A table whose rows belong to a campaign and are numbered in the order written."""

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id", ondelete="CASCADE"))
    id: Mapped[int] = mapped_column(primary_key=True)


class SessionRow(OfCampaignInOrder, Base):
    """One run of the driver; the heartbeat is renewed by every transaction."""

    __tablename__ = "sessions"

    pid: Mapped[int]
    host: Mapped[str]
    started: Mapped[float]
    heartbeat: Mapped[float]


class StepRow(OfCampaign, Base):
    """A finished step of the loop, such as ``proposed`` or ``judged``, and its wall time."""

    __tablename__ = "steps"

    round: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float]
    time: Mapped[float]


class EnergyScaleRow(OfCampaign, Base):
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


class ReferenceRow(OfCampaign, Base):
    """A reference phase as it was given, before any evaluation."""

    __tablename__ = "reference_phases"

    id: Mapped[Id] = mapped_column(primary_key=True)
    position: Mapped[int]
    formula: Mapped[str]
    source: Mapped[str]
    crystal: Mapped[dict[str, Any]]
    properties: Mapped[dict[str, Any]]


class TargetRow(OfCampaign, Base):
    """What the agent asked for."""

    __tablename__ = "targets"
    __table_args__ = (Index("ix_targets_campaign_id_round", "campaign_id", "round"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    round: Mapped[int]
    position: Mapped[int]
    seed: Mapped[Seed]
    label: Mapped[str]
    reason: Mapped[str]
    request: Mapped[dict[str, Any]]


class CandidateRow(OfCampaign, Base):
    """A candidate: its sample, its current state and the verdict."""

    __tablename__ = "candidates"
    __table_args__ = (
        ForeignKeyConstraint(["campaign_id", "target_id"], ["targets.campaign_id", "targets.id"]),
        Index("ix_candidates_campaign_id_round", "campaign_id", "round"),
        Index("ix_candidates_campaign_id_state", "campaign_id", "state"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    round: Mapped[int]
    target_id: Mapped[Id]
    sample: Mapped[int]
    checkpoint: Mapped[str | None]
    """SHA-256 of the generator weights it was sampled with."""
    formula: Mapped[str | None]
    n_atoms: Mapped[int]
    crystal: Mapped[dict[str, Any] | None]
    """None if the generator failed."""
    state: Mapped[str]
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


class TransitionRow(OfCampaignInOrder, Base):
    """One arrow taken by a candidate; append-only, and unique because no candidate enters a state twice."""

    __tablename__ = "transitions"
    __table_args__ = (
        ForeignKeyConstraint(["campaign_id", "candidate_id"], ["candidates.campaign_id", "candidates.id"]),
        UniqueConstraint("campaign_id", "candidate_id", "to_state"),
        Index("ix_transitions_campaign_id_id", "campaign_id", "id"),
    )

    candidate_id: Mapped[Id]
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    cause: Mapped[str]
    core_seconds: Mapped[float]
    time: Mapped[float]


class EvaluationRow(OfCampaign, Base):
    """An oracle's answer for a candidate or a reference phase."""

    __tablename__ = "evaluations"

    subject_id: Mapped[Id] = mapped_column(primary_key=True)
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


class PhaseRow(OfCampaign, Base):
    """An entry of a role's hull."""

    __tablename__ = "phases"

    role: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[Id] = mapped_column(primary_key=True)
    energy_scale_id: Mapped[str]
    position: Mapped[int]
    formula: Mapped[str]
    composition: Mapped[dict[str, Any]]
    energy: Mapped[float]
    crystal: Mapped[dict[str, Any] | None]
    origin: Mapped[str]
    hull_version: Mapped[int]


class HullVersionRow(OfCampaign, Base):
    """A version of a role's hull: what was added, and what is stable since."""

    __tablename__ = "hull_versions"

    role: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    energy_scale_id: Mapped[str]
    round: Mapped[int | None]
    added: Mapped[list[Any]]
    stable: Mapped[list[Any]]
    time: Mapped[float]


class CheckpointRow(OfCampaign, Base):
    """Generator weights, their parent and what they were trained on."""

    __tablename__ = "checkpoints"

    id: Mapped[Id] = mapped_column(primary_key=True)
    """``initial``, or the round after which they were trained, such as ``r02``."""
    round: Mapped[int | None]
    sha256: Mapped[str]
    parent: Mapped[str | None]
    path: Mapped[str]
    """Relative to the run folder where it lies inside."""
    trained_on: Mapped[list[Any]]
    reason: Mapped[str]
    """Why it was trained then; empty for the initial weights."""
    hull_version: Mapped[int | None]
    """Version of the reference hull by which its crystals were chosen."""
    metrics: Mapped[dict[str, Any]]
    time: Mapped[float]


class LedgerRow(OfCampaignInOrder, Base):
    """What work on one subject has spent, or reserves while in flight."""

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("campaign_id", "subject_id", "role", "kind"),
        Index("ix_ledger_campaign_id_spent_id", "campaign_id", "spent", "id"),
    )

    subject_id: Mapped[Id]
    role: Mapped[str]
    kind: Mapped[str]
    amount: Mapped[float]
    spent: Mapped[bool]
    """False while the amount is only reserved."""
    time: Mapped[float]
