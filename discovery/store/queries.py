"""Counts, sums and pages of a store for people who watch a campaign; reads only, and never all of its crystals.

Whatever grows with the number of candidates is counted by the database or fetched page by page, so that a campaign of
10⁵ candidates is shown as fast as one of ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from sqlalchemy import ColumnElement, and_, case, func, select

from discovery.crystal import Crystal
from discovery.hull import Hull, Phase
from discovery.store.machine import IN_FLIGHT
from discovery.store.store import Store
from discovery.store.tables import (
    CampaignRow,
    CandidateRow,
    EnergyScaleRow,
    EvaluationRow,
    HullVersionRow,
    LedgerRow,
    PhaseRow,
    ReferenceRow,
    SessionRow,
    StepRow,
    TargetRow,
    TransitionRow,
)
from discovery.store.values import evaluation_of, phase_of, require_scale, scale_of, verdict_of
from discovery.types import Evaluation, Stability, State, Target, Verdict

Order = tuple[str, Literal["asc", "desc"]]
"""Column and direction."""

Condition = tuple[str, str, Any]
"""Column, comparison and value; see :meth:`Queries.page`."""

COLUMNS = {
    "id": CandidateRow.id,
    "formula": CandidateRow.formula,
    "state": CandidateRow.state,
    "round": CandidateRow.round,
    "n_atoms": CandidateRow.n_atoms,
    "screening_decomposition_energy": CandidateRow.screening_decomposition_energy,
    "formation_energy_per_atom": CandidateRow.formation_energy_per_atom,
    "e_above_hull": CandidateRow.e_above_hull,
    "stability": CandidateRow.stability,
    "checkpoint": CandidateRow.checkpoint,
}
"""What a page of candidates shows, sorts and filters; nothing else is ever compared."""


@dataclass(frozen=True)
class Waiting:
    """Candidates in one state on which work remains: how many, and since when the one that waits longest."""

    state: State
    count: int
    since: float
    oldest: str


@dataclass(frozen=True)
class PhaseRecord:
    """A phase of a hull without its crystal, its formula, and the version of the hull that it came with."""

    phase: Phase
    formula: str
    version: int


@dataclass(frozen=True)
class Event:
    """One arrow that a candidate has taken; ``time`` in seconds since the epoch."""

    state: State
    cause: str
    time: float
    core_seconds: float


@dataclass(frozen=True, eq=False)
class CandidateRecord:
    """One candidate with everything that is stored of it."""

    id: str
    round: int
    target: Target
    seed: int
    sample: int
    checkpoint: str | None
    formula: str | None
    crystal: Crystal | None
    state: State
    verdict: Verdict | None
    evaluations: Mapping[str, Evaluation]
    events: tuple[Event, ...]


class Queries:
    """What is asked of a store by those who watch.

    Parameters
    ----------
    store
        Open for reading; see :meth:`discovery.store.Store.read`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def revision(self) -> tuple[Any, ...]:
        """Return a value that changes whenever something was written, heartbeats apart."""
        with self._store.reading() as session:
            state, message = session.execute(
                select(CampaignRow.state, CampaignRow.message).where(CampaignRow.id == self._store.campaign_id)
            ).one()
            newest = [
                session.scalar(select(column).order_by(column.desc()).limit(1))
                for column in (TransitionRow.id, LedgerRow.id, HullVersionRow.version, SessionRow.id)
            ]
            return (state, message, session.scalar(select(func.count()).select_from(StepRow)), *newest)

    def heartbeat(self) -> float | None:
        """Return when the newest driver was last alive, in seconds since the epoch."""
        with self._store.reading() as session:
            return session.scalar(select(func.max(SessionRow.heartbeat)).select_from(SessionRow))

    def losses(self) -> dict[State, dict[str, int]]:
        """Return, for each state in which a candidate is lost, cause → count; ids and details are left out."""
        kinds = case(
            (TransitionRow.cause.like("duplicate of %"), "duplicate"),
            else_=TransitionRow.cause,
        )
        lost: dict[State, dict[str, int]] = {}
        with self._store.reading() as session:
            for state in (State.REJECTED, State.FAILED, State.PASSED_OVER):
                query = select(kinds, func.count()).where(TransitionRow.to_state == state).group_by(kinds)
                counts: dict[str, int] = {}
                for cause, count in session.execute(query):
                    name = cause.split(":")[0]
                    counts[name] = counts.get(name, 0) + count
                lost[state] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        return lost

    def failures(self) -> dict[tuple[str, str], int]:
        """Return (role, failure kind) → evaluations that failed, of candidates and reference phases."""
        with self._store.reading() as session:
            query = (
                select(EvaluationRow.role, EvaluationRow.failure_kind, func.count())
                .where(EvaluationRow.failure_kind.is_not(None))
                .group_by(EvaluationRow.role, EvaluationRow.failure_kind)
            )
            return {(role, str(kind)): count for role, kind, count in session.execute(query)}

    def verdicts(self) -> dict[int, dict[Stability, int]]:
        """Return round → verdict, as it was given → candidates."""
        query = (
            select(CandidateRow.round, CandidateRow.stability, func.count())
            .where(CandidateRow.state.in_((State.JUDGED, State.LEARNED)), CandidateRow.stability.is_not(None))
            .group_by(CandidateRow.round, CandidateRow.stability)
            .order_by(CandidateRow.round)
        )
        rounds: dict[int, dict[Stability, int]] = {}
        with self._store.reading() as session:
            for round, stability, count in session.execute(query):
                rounds.setdefault(round, {})[Stability(str(stability))] = count
        return rounds

    def waiting(self) -> list[Waiting]:
        """Return the states on which work remains, in the order in which candidates pass them."""
        arrow = and_(TransitionRow.candidate_id == CandidateRow.id, TransitionRow.to_state == CandidateRow.state)
        query = (
            select(CandidateRow.state, func.count(), func.min(TransitionRow.time), func.min(CandidateRow.id))
            .join(TransitionRow, arrow)
            .where(CandidateRow.state.in_(IN_FLIGHT))
            .group_by(CandidateRow.state)
        )
        with self._store.reading() as session:
            found = {State(row[0]): Waiting(State(row[0]), *row[1:]) for row in session.execute(query).tuples()}
        return [found[state] for state in State if state in found]

    def spent(self, kinds: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Return when evaluations of the reference oracle ended, and what all oracles had spent of each kind by then.

        Times in seconds since the epoch, in the order written; a first entry of nothing spent at time 0 goes before.
        """
        amounts = [case((LedgerRow.kind == kind, LedgerRow.amount), else_=0.0) for kind in kinds]
        sums = [func.sum(amount).over(order_by=LedgerRow.id).label(f"sum{n}") for n, amount in enumerate(amounts)]
        each = select(LedgerRow.time, LedgerRow.role, *sums).where(LedgerRow.spent).subquery()
        query = select(each.c.time, *(each.c[one.name] for one in sums)).where(each.c.role == "reference")
        with self._store.reading() as session:
            rows = [(0.0,) * (1 + len(kinds)), *(tuple(row) for row in session.execute(query))]
        return tuple(np.array(rows, dtype=np.float64).T)

    def hull_times(self, role: str) -> dict[int, float]:
        """Return version of a role's hull → when it came about, in seconds since the epoch."""
        query = select(HullVersionRow.version, HullVersionRow.time).where(HullVersionRow.role == role)
        with self._store.reading() as session:
            return dict(session.execute(query).tuples().all())

    def phases(self, role: str) -> list[PhaseRecord]:
        """Return the phases of a role's newest hull, without their crystals, in the order in which they came."""
        columns = (
            PhaseRow.id,
            PhaseRow.energy_scale_id,
            PhaseRow.formula,
            PhaseRow.composition,
            PhaseRow.energy,
            PhaseRow.origin,
            PhaseRow.hull_version,
        )
        query = select(*columns).where(PhaseRow.role == role).order_by(PhaseRow.position)
        with self._store.reading() as session:
            row = session.get(EnergyScaleRow, role)
            if row is None:
                return []
            scale = scale_of(row)
            records = []
            for id, scale_id, formula, composition, energy, origin, version in session.execute(query).tuples():
                require_scale(id, scale_id, scale)
                phase = Phase(id, composition, energy, scale)
                records.append(
                    PhaseRecord(
                        replace(phase, origin="discovered") if origin == "discovered" else phase, formula, version
                    )
                )
            return records

    def crystals(self, role: str, ids: Sequence[str]) -> dict[str, Crystal]:
        """Return id → relaxed crystal of phases of a role's hull."""
        query = select(PhaseRow.id, PhaseRow.crystal).where(PhaseRow.role == role, PhaseRow.id.in_(ids))
        with self._store.reading() as session:
            return {id: Crystal.from_dict(crystal) for id, crystal in session.execute(query) if crystal is not None}

    def phase(self, role: str, id: str) -> Phase | None:
        """Return one phase of a role's hull."""
        with self._store.reading() as session:
            row = session.scalar(select(PhaseRow).where(PhaseRow.role == role, PhaseRow.id == id))
            scale = session.get(EnergyScaleRow, role)
            return phase_of(row, scale_of(scale)) if row is not None and scale is not None else None

    def pairs(self) -> list[tuple[str, str, float, float]]:
        """Return (id, formula, screening, reference formation energy in eV/atom) of the judged candidates."""
        query = (
            select(
                CandidateRow.id,
                CandidateRow.formula,
                CandidateRow.screening_formation_energy_per_atom,
                CandidateRow.formation_energy_per_atom,
            )
            .where(
                CandidateRow.state.in_((State.JUDGED, State.LEARNED)),
                CandidateRow.screening_formation_energy_per_atom.is_not(None),
                CandidateRow.formation_energy_per_atom.is_not(None),
            )
            .order_by(CandidateRow.id)
        )
        with self._store.reading() as session:
            return [
                (id, formula or "", screening or 0.0, reference or 0.0)
                for id, formula, screening, reference in session.execute(query).tuples()
            ]

    def page(
        self,
        *,
        where: Sequence[Condition] = (),
        order: Sequence[Order] = (),
        offset: int = 0,
        limit: int = 100,
    ) -> tuple[list[dict[str, Any]], int]:
        """Return candidates `offset` to `offset` + `limit`, and how many there are in all.

        Parameters
        ----------
        where
            Conditions that all hold: a column of `COLUMNS`, a comparison of `COMPARISONS`, a value. Others are refused.
        order
            Columns of `COLUMNS` to sort by; empty values come last.
        """
        conditions = [_condition(*condition) for condition in where]
        ordering = [
            expression
            for column, direction in order
            for expression in (
                COLUMNS[column].is_(None),
                COLUMNS[column].desc() if direction == "desc" else COLUMNS[column].asc(),
            )
        ]
        query = (
            select(*COLUMNS.values())
            .where(*conditions)
            .order_by(*ordering, CandidateRow.id)
            .offset(offset)
            .limit(limit)
        )
        with self._store.reading() as session:
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in session.execute(query)]
            total = session.scalar(select(func.count()).select_from(CandidateRow).where(*conditions)) or 0
        return rows, total

    def candidate(self, id: str) -> CandidateRecord | None:
        """Return one candidate, or None if there is none with this id."""
        with self._store.reading() as session:
            row = session.scalar(select(CandidateRow).where(CandidateRow.id == id))
            if row is None:
                return None
            target = session.scalars(select(TargetRow).where(TargetRow.id == row.target_id)).one()
            scales = {scale.id: scale_of(scale) for scale in session.scalars(select(EnergyScaleRow))}
            evaluations = session.scalars(select(EvaluationRow).where(EvaluationRow.subject_id == id))
            events = session.scalars(
                select(TransitionRow).where(TransitionRow.candidate_id == id).order_by(TransitionRow.id)
            )
            return CandidateRecord(
                id=row.id,
                round=row.round,
                target=Target.from_dict(target.request),
                seed=target.seed,
                sample=row.sample,
                checkpoint=row.checkpoint,
                formula=row.formula,
                crystal=Crystal.from_dict(row.crystal) if row.crystal is not None else None,
                state=State(row.state),
                verdict=verdict_of(row),
                evaluations={found.role: evaluation_of(found, scales) for found in evaluations},
                events=tuple(
                    Event(State(event.to_state), event.cause, event.time, event.core_seconds) for event in events
                ),
            )

    def reference(self, id: str) -> tuple[Crystal, str] | None:
        """Return a reference phase's crystal as given, and its source; None if there is none with this id."""
        with self._store.reading() as session:
            row = session.scalar(select(ReferenceRow).where(ReferenceRow.id == id))
            return (Crystal.from_dict(row.crystal), row.source) if row is not None else None

    def evaluations(self, id: str) -> dict[str, Evaluation]:
        """Return role → evaluation of one candidate or reference phase."""
        with self._store.reading() as session:
            scales = {scale.id: scale_of(scale) for scale in session.scalars(select(EnergyScaleRow))}
            rows = session.scalars(select(EvaluationRow).where(EvaluationRow.subject_id == id))
            return {row.role: evaluation_of(row, scales) for row in rows}

    def costs_of(self, ids: Sequence[str]) -> dict[str, float]:
        """Return id of a candidate or reference phase → core-hours of all its evaluations."""
        query = select(LedgerRow.subject_id, func.sum(LedgerRow.amount)).where(
            LedgerRow.kind == "core_hours", LedgerRow.spent, LedgerRow.subject_id.in_(ids)
        )
        with self._store.reading() as session:
            return dict(session.execute(query.group_by(LedgerRow.subject_id)).tuples().all())

    def checkpoints_of(self, ids: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        """Return candidate id → its round and the SHA-256 of the weights that it was sampled with."""
        query = select(CandidateRow.id, CandidateRow.round, CandidateRow.checkpoint).where(CandidateRow.id.in_(ids))
        with self._store.reading() as session:
            return {id: (round, checkpoint) for id, round, checkpoint in session.execute(query)}

    def pace(self) -> dict[str, tuple[float, float]]:
        """Return role → when its newest evaluation ended (seconds since the epoch), and the costliest so far (s)."""
        query = select(LedgerRow.role, func.max(LedgerRow.time), func.max(LedgerRow.amount)).where(
            LedgerRow.kind == "core_hours", LedgerRow.spent
        )
        with self._store.reading() as session:
            rows = session.execute(query.group_by(LedgerRow.role)).tuples()
            return {role: (time, amount * 3600.0) for role, time, amount in rows}


def hull_at(phases: Sequence[PhaseRecord], version: int) -> Hull | None:
    """Return the hull of `version`, built from what :meth:`Queries.phases` gives; None without phases."""
    kept = tuple(record.phase for record in phases if record.version <= version)
    return Hull(kept[0].energy_scale, kept, version) if kept else None


COMPARISONS = ("contains", "equals", "at_most", "at_least")
"""Comparisons of :meth:`Queries.page`."""


def _condition(column: str, comparison: str, value: Any) -> ColumnElement[bool]:
    own = COLUMNS[column]
    match comparison:
        case "contains":
            return func.lower(own).contains(str(value).lower(), autoescape=True)
        case "equals":
            return own == value
        case "at_most":
            return own <= float(value)
        case "at_least":
            return own >= float(value)
    raise KeyError(comparison)
