"""The store: the only place that reads and writes a campaign's database.

Every arrow of the state machine is one transaction that holds the new state, its cause and its cost. Writing the same
step again changes nothing, so that a driver may repeat whatever it was doing when it was killed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, delete, event, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError, RunError
from discovery.hull import Hull, Phase
from discovery.store import schema
from discovery.store.machine import IN_FLIGHT, check_transition
from discovery.store.session import CampaignSession
from discovery.store.tables import (
    CampaignRow,
    CandidateRow,
    CheckpointRow,
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
from discovery.store.urls import is_url, masked, parse
from discovery.store.values import evaluation_of, numbers_of, phase_of, scale_of, verdict_of
from discovery.types import (
    Budget,
    Candidate,
    Checkpoint,
    EnergyScale,
    Evaluation,
    Failure,
    Sample,
    State,
    Target,
    Verdict,
)

ROLES = ("screening", "reference")


@dataclass(frozen=True)
class TargetRecord:
    """A stored target with its id, its round and the seed its samples are drawn with."""

    id: str
    round: int
    seed: int
    target: Target


@dataclass(frozen=True)
class ReferenceRecord:
    """A stored reference phase before evaluation."""

    id: str
    crystal: Crystal
    source: str
    properties: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointRecord:
    """A stored checkpoint; ``round`` is None for the weights the campaign began with.

    ``reason`` says why it was trained then, ``hull_version`` by which reference hull its crystals were chosen.
    """

    id: str
    round: int | None
    checkpoint: Checkpoint
    reason: str = ""
    hull_version: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether the generator uses these weights, rather than having kept their parent."""
        return self.checkpoint.metrics.get("accepted", 1.0) > 0


@dataclass(frozen=True)
class CampaignRecord:
    """What is known of the campaign as a whole."""

    name: str
    seed: int
    config: Mapping[str, Any]
    config_hash: str
    state: str
    message: str
    created: float
    seconds: float
    """Wall time of all drivers together."""


@dataclass(frozen=True)
class Arrow:
    """One arrow that a candidate took; ``time`` in seconds since the epoch."""

    state: State
    cause: str
    core_seconds: float
    time: float


@dataclass(frozen=True)
class History:
    """Everything that is stored of one candidate."""

    id: str
    formula: str | None
    state: State
    target: TargetRecord
    sample: int
    """Index among the samples of its target."""
    checkpoint: str | None
    """SHA-256 of the generator weights it was sampled with."""
    arrows: tuple[Arrow, ...]
    evaluations: Mapping[str, Evaluation]
    """Role → evaluation."""
    screening_decomposition_energy: float | None
    """eV/atom, on version ``screening_hull_version`` of the screening hull."""
    screening_hull_version: int | None
    verdict: Verdict | None


@dataclass(frozen=True)
class HullVersion:
    """One version of a hull: what came in, and the ids of what is stable since."""

    energy_scale_id: str
    version: int
    round: int | None
    added: tuple[str, ...]
    stable: tuple[str, ...]


class Store:
    """One campaign's part of a database.

    Parameters
    ----------
    engine
        SQLAlchemy engine of a database with the current schema.
    campaign
        Name of the campaign; may be left out where the database holds one only.

    Notes
    -----
    Made by :meth:`create` and :meth:`open` for the driver, and by :meth:`read` for everybody else. In PostgreSQL the
    connection that writes holds an advisory lock, so that a campaign has one driver, wherever it runs.
    """

    def __init__(self, engine: Engine, campaign: str | None = None) -> None:
        self.engine = engine
        self._session_id: int | None = None
        self._clock = time.time
        self._spent = {"reference_calls": 0.0, "core_hours": 0.0}
        self._newest_spent = 0
        try:
            self.campaign_id, self.name = _find(engine, campaign)
        except SQLAlchemyError as error:
            raise RunError(f"{_describe(engine)} cannot be read: {_cause(error)}") from error

    # Opening -------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, url: str, *, name: str, seed: int, config: Mapping[str, Any], config_hash: str) -> Store:
        """Create the tables where they are missing, and the campaign.

        Parameters
        ----------
        url
            URL of a SQLite (:func:`sqlite_url`) or PostgreSQL database.
        name, seed, config, config_hash
            What the campaign is; ``config`` is the JSON form of its configuration.

        Raises
        ------
        RunError
            If the database holds a campaign of this name.
        """
        engine = _writing_engine(url, name)
        row = CampaignRow(
            name=name,
            seed=seed,
            config=dict(config),
            config_hash=config_hash,
            state="created",
            message="",
            created=time.time(),
        )
        try:
            with Session(engine) as session, session.begin():
                if session.scalar(select(CampaignRow.id).where(CampaignRow.name == name)) is not None:
                    raise RunError(
                        f"{_describe(engine)} already holds a campaign {name!r}; give this one another name with "
                        "name=NAME, or continue that one with `discovery resume` and its run folder"
                    )
                session.add(row)
        except SQLAlchemyError as error:
            raise RunError(f"{_describe(engine)} cannot be written: {_cause(error)}") from error
        return cls(engine, name)

    @classmethod
    def open(cls, url: str, campaign: str | None = None) -> Store:
        """Open an existing campaign for writing; an older schema is upgraded.

        Raises
        ------
        RunError
            If there is no such campaign, or another driver is at work on it.
        """
        parsed = parse(url)
        if parsed.get_backend_name() == "sqlite":
            _require_file(Path(parsed.database or ""))
        return cls(_writing_engine(url, campaign), campaign)

    @classmethod
    def read(cls, where: Path | str, campaign: str | None = None) -> Store:
        """Open a campaign for reading only; safe beside a running driver.

        Parameters
        ----------
        where
            Path of a SQLite database, or URL of a SQLite or PostgreSQL database.
        campaign
            Name of the campaign; may be left out where the database holds one only.
        """
        return cls(_reading_engine(where), campaign)

    @staticmethod
    def campaigns(where: Path | str) -> list[CampaignRecord]:
        """Return the campaigns of a database, oldest first; `where` as in :meth:`read`."""
        engine = _reading_engine(where)
        try:
            with Session(engine) as session:
                seconds: dict[int, float] = dict(
                    session.execute(
                        select(SessionRow.campaign_id, func.sum(SessionRow.heartbeat - SessionRow.started)).group_by(
                            SessionRow.campaign_id
                        )
                    )
                    .tuples()
                    .all()
                )
                rows = session.scalars(select(CampaignRow).order_by(CampaignRow.id))
                return [_campaign(row, seconds.get(row.id)) for row in rows]
        except SQLAlchemyError as error:
            raise RunError(f"{_describe(engine)} cannot be read: {_cause(error)}") from error
        finally:
            engine.dispose()

    def remove(self) -> None:
        """Delete the campaign and everything that belongs to it."""
        with self._transaction() as session:
            self._session_id = None
            session.execute(delete(CampaignRow).where(CampaignRow.id == self.campaign_id))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def has_driver(self) -> bool:
        """Whether a driver is connected to a PostgreSQL database; for SQLite the run folder's lock tells."""
        if self.engine.dialect.name != "postgresql":
            return False
        with self.reading() as session:
            return bool(session.scalar(_LOCK_IS_HELD, {"lock": _lock_number(self.name)}))

    @contextmanager
    def _transaction(self) -> Iterator[CampaignSession]:
        """One transaction; renews the driver's heartbeat."""
        try:
            writing = self.engine.execution_options(writing=True)
            with CampaignSession(writing, self.campaign_id) as session, session.begin():
                if self._session_id is not None:
                    session.connection().execute(_HEARTBEAT, {"session": self._session_id, "now": self._clock()})
                yield session
        except SQLAlchemyError as error:
            if (interrupt := _interrupt_behind(error)) is not None:
                raise interrupt from error
            remedy = (
                "free disk space or make the run folder writable"
                if self.engine.dialect.name == "sqlite"
                else "see that the server runs and can be reached"
            )
            raise RunError(
                f"{_describe(self.engine)} cannot be written: {_cause(error)}; {remedy}, then continue with "
                "`discovery resume`"
            ) from error

    @contextmanager
    def reading(self) -> Iterator[CampaignSession]:
        """Return a session that only reads; its errors name the database."""
        try:
            with CampaignSession(self.engine, self.campaign_id) as session:
                yield session
        except SQLAlchemyError as error:
            raise RunError(f"{_describe(self.engine)} cannot be read: {_cause(error)}") from error

    # Campaign, sessions and steps ----------------------------------------------------------------------------------

    def campaign(self) -> CampaignRecord:
        """Return what is known of the campaign as a whole."""
        with self.reading() as session:
            seconds = session.scalar(select(func.sum(SessionRow.heartbeat - SessionRow.started)))
            return _campaign(session.get_one(CampaignRow, self.campaign_id), seconds)

    def start_session(self) -> None:
        """Record that a driver has begun; the campaign is running from now on.

        Its heartbeats follow a clock that is not set meanwhile, so that their difference is the time that has passed.
        """
        self._session_id = None
        with self._transaction() as session:
            now, started = time.time(), time.monotonic()
            row = SessionRow(pid=os.getpid(), host=socket.gethostname(), started=now, heartbeat=now)
            session.add(row)
            session.get_one(CampaignRow, self.campaign_id).state = "running"
            session.flush()
            session_id = row.id
        self._session_id = session_id
        self._clock = lambda: now + time.monotonic() - started

    def end_session(self) -> None:
        """Give no heartbeat any more, so that no wall time is counted until a session is started again."""
        self._session_id = None

    def heartbeat(self) -> None:
        """Record that the driver is alive, and with it the wall time it has used."""
        with self._transaction():
            pass

    def set_state(self, state: str, message: str = "") -> None:
        """Set the campaign's state: running, interrupted, finished or failed."""
        with self._transaction() as session:
            row = session.get_one(CampaignRow, self.campaign_id)
            row.state, row.message = state, message

    def finish_step(self, round: int, step: str, seconds: float = 0.0) -> None:
        """Record that a step of the loop is done."""
        with self._transaction() as session:
            self._finish_step(session, round, step, seconds)

    def _finish_step(self, session: Session, round: int, step: str, seconds: float) -> None:
        if session.get(StepRow, (round, step)) is None:
            session.add(StepRow(round=round, step=step, seconds=seconds, time=time.time()))

    def is_done(self, round: int, step: str) -> bool:
        """Whether a step of the loop is finished."""
        with self.reading() as session:
            return session.get(StepRow, (round, step)) is not None

    def steps(self) -> dict[tuple[int, str], float]:
        """Return (round, step) → wall seconds of all finished steps."""
        with self.reading() as session:
            rows = session.scalars(select(StepRow).order_by(StepRow.time))
            return {(row.round, row.step): row.seconds for row in rows}

    # Energy scales and reference phases ----------------------------------------------------------------------------

    def set_energy_scale(self, role: str, scale: EnergyScale) -> None:
        """Record a role's energy scale; it never changes within a campaign.

        Raises
        ------
        RunError
            If the role had another energy scale before, for example because a package was updated.
        """
        with self._transaction() as session:
            row = session.get(EnergyScaleRow, role)
            if row is None:
                session.add(EnergyScaleRow(role=role, id=scale.id, **asdict(scale)))
            elif row.id != scale.id:
                raise RunError(
                    f"the {role} oracle now has energy scale {scale.id} ({scale!r}), but this campaign began with "
                    f"{row.id} ({scale_of(row)!r}); restore the former versions and settings, or launch a new campaign"
                )

    def energy_scales(self) -> dict[str, EnergyScale]:
        """Return role → energy scale."""
        with self.reading() as session:
            return {row.role: scale_of(row) for row in session.scalars(select(EnergyScaleRow))}

    def add_references(self, references: Sequence[ReferenceRecord]) -> None:
        """Store the reference phases of the campaign, once and for all."""
        with self._transaction() as session:
            if session.scalar(select(func.count()).select_from(ReferenceRow)):
                return
            session.add_all(
                ReferenceRow(
                    id=reference.id,
                    position=position,
                    formula=reference.crystal.formula,
                    source=reference.source,
                    crystal=reference.crystal.to_dict(),
                    properties=dict(reference.properties),
                )
                for position, reference in enumerate(references)
            )

    def references(self) -> list[ReferenceRecord]:
        """Return the reference phases in the order given."""
        with self.reading() as session:
            return [
                ReferenceRecord(row.id, Crystal.from_dict(row.crystal), row.source, numbers_of(row.properties))
                for row in session.scalars(select(ReferenceRow).order_by(ReferenceRow.position))
            ]

    def add_reference_evaluation(self, reference_id: str, role: str, evaluation: Evaluation) -> None:
        """Store an oracle's answer for a reference phase."""
        with self._transaction() as session:
            self._add_evaluation(session, reference_id, role, evaluation)

    def evaluations(self, role: str) -> dict[str, Evaluation]:
        """Return candidate or reference phase id → evaluation of `role`."""
        with self.reading() as session:
            scales = {row.id: scale_of(row) for row in session.scalars(select(EnergyScaleRow))}
            rows = session.scalars(
                select(EvaluationRow).where(EvaluationRow.role == role).order_by(EvaluationRow.subject_id)
            )
            return {row.subject_id: evaluation_of(row, scales) for row in rows}

    # Hulls ---------------------------------------------------------------------------------------------------------

    def add_phases(self, role: str, hull: Hull, added: Sequence[Phase], round: int | None) -> None:
        """Store the version of `hull` that came about by adding `added`."""
        with self._transaction() as session:
            self._add_phases(session, role, hull, added, round)

    def _add_phases(self, session: Session, role: str, hull: Hull, added: Sequence[Phase], round: int | None) -> None:
        if session.get(HullVersionRow, (role, hull.version)) is not None:
            return
        session.add(
            HullVersionRow(
                role=role,
                energy_scale_id=hull.energy_scale.id,
                version=hull.version,
                round=round,
                added=[phase.id for phase in added],
                stable=[phase.id for phase in hull.stable_phases],
                time=time.time(),
            )
        )
        first = len(hull.phases) - len(added)
        session.add_all(
            PhaseRow(
                role=role,
                energy_scale_id=hull.energy_scale.id,
                id=phase.id,
                position=first + index,
                formula=phase.formula,
                composition=dict(phase.composition),
                energy=phase.energy,
                crystal=phase.crystal.to_dict() if phase.crystal is not None else None,
                origin=phase.origin,
                hull_version=hull.version,
            )
            for index, phase in enumerate(added)
        )

    def hull(self, role: str, version: int | None = None) -> Hull:
        """Return the newest hull of a role's energy scale, or an earlier `version` of it."""
        with self.reading() as session:
            row = session.get(EnergyScaleRow, role)
            if row is None:
                raise RunError(f"the campaign has not yet reached its {role} oracle; wait, or `discovery resume`")
            scale = scale_of(row)
            if version is None:
                newest = select(func.max(HullVersionRow.version)).where(HullVersionRow.role == role)
                version = session.scalar(newest) or 0
            rows = session.scalars(
                select(PhaseRow)
                .where(PhaseRow.role == role, PhaseRow.hull_version <= version)
                .order_by(PhaseRow.position)
            )
            return Hull(scale, tuple(phase_of(row, scale) for row in rows), version)

    def hull_versions(self, role: str) -> list[HullVersion]:
        """Return all versions of a role's hull, oldest first."""
        with self.reading() as session:
            rows = session.scalars(
                select(HullVersionRow).where(HullVersionRow.role == role).order_by(HullVersionRow.version)
            )
            return [
                HullVersion(row.energy_scale_id, row.version, row.round, tuple(row.added), tuple(row.stable))
                for row in rows
            ]

    # Targets and candidates ----------------------------------------------------------------------------------------

    def add_targets(self, targets: Sequence[TargetRecord], round: int, seconds: float = 0.0) -> None:
        """Store what the agent proposed for a round; an empty proposal is stored as well."""
        with self._transaction() as session:
            if session.get(StepRow, (round, "proposed")) is not None:
                return
            self._finish_step(session, round, "proposed", seconds)
            session.add_all(
                TargetRow(
                    id=record.id,
                    round=round,
                    position=position,
                    seed=record.seed,
                    label=record.target.label,
                    reason=record.target.reason,
                    request=record.target.to_dict(),
                )
                for position, record in enumerate(targets)
            )

    def targets(self, round: int | None = None) -> list[TargetRecord]:
        """Return the targets of a round, or of all rounds, in order."""
        return self._targets(round)

    def _targets(self, round: int | None, *where: ColumnElement[bool]) -> list[TargetRecord]:
        query = select(TargetRow).where(*where).order_by(TargetRow.round, TargetRow.position)
        if round is not None:
            query = query.where(TargetRow.round == round)
        with self.reading() as session:
            return [
                TargetRecord(row.id, row.round, row.seed, Target.from_dict(row.request))
                for row in session.scalars(query)
            ]

    def add_samples(self, record: TargetRecord, samples: Sequence[Sample], checkpoint: str | None) -> None:
        """Store a target's samples as candidates; a sample without a crystal is rejected at once."""
        with self._transaction() as session:
            for index, sample in enumerate(samples):
                candidate_id = f"{record.id}-s{index:02d}"
                if session.get(CandidateRow, candidate_id) is not None:
                    continue
                crystal = sample.crystal
                session.add(
                    CandidateRow(
                        id=candidate_id,
                        round=record.round,
                        target_id=record.id,
                        sample=index,
                        checkpoint=checkpoint,
                        formula=crystal.formula if crystal is not None else None,
                        n_atoms=len(crystal) if crystal is not None else 0,
                        crystal=crystal.to_dict() if crystal is not None else None,
                        state=State.SAMPLED,
                    )
                )
                session.add(_transition(candidate_id, None, State.SAMPLED, record.target.label, sample.seconds))
                if crystal is None:
                    reason = sample.failure.message if sample.failure is not None else "no crystal"
                    self._move(session, candidate_id, State.REJECTED, f"generator: {reason}")

    def unsampled_targets(self, round: int | None = None) -> list[TargetRecord]:
        """Return the targets of a round, or of all rounds, of which no sample is stored, in order."""
        sampled = select(CandidateRow.target_id).distinct()
        if round is not None:
            sampled = sampled.where(CandidateRow.round == round)
        return self._targets(round, TargetRow.id.not_in(sampled))

    def admit(self, candidate_id: str) -> None:
        """Take SAMPLED → ADMITTED."""
        with self._transaction() as session:
            self._move(session, candidate_id, State.ADMITTED, "valid and new")

    def reject(self, candidate_id: str, cause: str) -> None:
        """Take SAMPLED → REJECTED."""
        with self._transaction() as session:
            self._move(session, candidate_id, State.REJECTED, cause)

    def screen(
        self,
        candidate_id: str,
        evaluation: Evaluation,
        *,
        formation_energy_per_atom: float | None,
        decomposition_energy: float | None,
        hull_version: int,
    ) -> None:
        """Take ADMITTED → SCREENED, or FAILED if the evaluation failed; energies in eV/atom on the screening hull."""
        with self._transaction() as session:
            failure = evaluation.failure
            state = State.SCREENED if failure is None else State.FAILED
            cause = "relaxed" if failure is None else _failure_text("screening", failure)
            if not self._move(session, candidate_id, state, cause, _core_seconds(evaluation)):
                return
            self._add_evaluation(session, candidate_id, "screening", evaluation)
            row = session.get_one(CandidateRow, candidate_id)
            row.screening_formation_energy_per_atom = formation_energy_per_atom
            row.screening_decomposition_energy = decomposition_energy
            row.screening_hull_version = hull_version

    def pass_over(self, candidate_id: str, cause: str) -> None:
        """Take ADMITTED, SCREENED or SELECTED → PASSED_OVER; a reservation is released."""
        with self._transaction() as session:
            self._move(session, candidate_id, State.PASSED_OVER, cause)
            for row in self._reservations(session, candidate_id):
                session.delete(row)

    def select(self, chosen: Sequence[tuple[str, str]], reserve: Mapping[str, float], round: int) -> None:
        """Take SCREENED → SELECTED for a round's whole selection, in one transaction.

        Parameters
        ----------
        chosen
            Candidate id and the agent's reason.
        reserve
            Kind → amount that each of them takes from the budget until its result is in.
        round
            The round whose selection this is.
        """
        with self._transaction() as session:
            if session.get(StepRow, (round, "selected")) is not None:
                return
            self._finish_step(session, round, "selected", 0.0)
            for candidate_id, reason in chosen:
                if self._move(session, candidate_id, State.SELECTED, reason):
                    for kind, amount in reserve.items():
                        session.add(_ledger(candidate_id, "reference", kind, amount, spent=False))

    def compute(self, candidate_id: str, evaluation: Evaluation) -> None:
        """Take SELECTED → COMPUTED, or FAILED if the evaluation failed; the reservation becomes what was spent."""
        with self._transaction() as session:
            failure = evaluation.failure
            state = State.COMPUTED if failure is None else State.FAILED
            cause = "computed" if failure is None else _failure_text("reference", failure)
            if not self._move(session, candidate_id, state, cause, _core_seconds(evaluation)):
                return
            for row in self._reservations(session, candidate_id):
                session.delete(row)
            session.flush()
            self._add_evaluation(session, candidate_id, "reference", evaluation)
            session.add(_ledger(candidate_id, "reference", "reference_calls", 1.0))

    def judge(self, candidate_id: str, verdict: Verdict, grown: Sequence[tuple[str, Hull, Phase]], round: int) -> None:
        """Take COMPUTED → JUDGED; `grown` holds roles, the hulls that came about and what was added."""
        with self._transaction() as session:
            cause = (
                f"{verdict.stability}: {verdict.e_above_hull:.4f} eV/atom above hull version {verdict.hull_version} "
                f"of {verdict.energy_scale}"
            )
            if not self._move(session, candidate_id, State.JUDGED, cause):
                return
            row = session.get_one(CandidateRow, candidate_id)
            row.stability = verdict.stability
            row.e_above_hull = verdict.e_above_hull
            row.decomposition_energy = verdict.decomposition_energy
            row.formation_energy_per_atom = verdict.formation_energy_per_atom
            row.decomposition = dict(verdict.decomposition)
            row.threshold = verdict.threshold
            row.metastable_threshold = verdict.metastable_threshold
            row.energy_scale_id = verdict.energy_scale
            row.hull_version = verdict.hull_version
            for role, hull, phase in grown:
                self._add_phases(session, role, hull, [phase], round)

    def candidates(self, states: Collection[State] | None = None, *, since: int = 0) -> list[Candidate]:
        """Return the candidates that have a crystal, sorted by id.

        Parameters
        ----------
        states
            Only those in one of these states.
        since
            Only those that have taken an arrow after this one, a number that :meth:`newest_arrow` gave.
        """
        chosen = [CandidateRow.n_atoms > 0]
        if states is not None:
            chosen.append(CandidateRow.state.in_(states))
        if since:
            moved = select(TransitionRow.candidate_id).where(TransitionRow.id > since)
            chosen.append(CandidateRow.id.in_(moved))
        with self.reading() as session:
            scales = {row.id: scale_of(row) for row in session.scalars(select(EnergyScaleRow))}
            rows = session.scalars(select(CandidateRow).where(*chosen).order_by(CandidateRow.id)).all()
            wanted = select(CandidateRow.target_id).where(*chosen)
            targets = {
                row.id: Target.from_dict(row.request)
                for row in session.scalars(select(TargetRow).where(TargetRow.id.in_(wanted)))
            }
            found = select(EvaluationRow).join(CandidateRow, CandidateRow.id == EvaluationRow.subject_id).where(*chosen)
            evaluations = {(row.subject_id, row.role): evaluation_of(row, scales) for row in session.scalars(found)}
            return [
                Candidate(
                    id=row.id,
                    round=row.round,
                    target=targets[row.target_id],
                    crystal=Crystal.from_dict(row.crystal or {}),
                    state=State(row.state),
                    screening=evaluations.get((row.id, "screening")),
                    screening_formation_energy_per_atom=row.screening_formation_energy_per_atom,
                    screening_decomposition_energy=row.screening_decomposition_energy,
                    reference=evaluations.get((row.id, "reference")),
                    verdict=verdict_of(row),
                )
                for row in rows
            ]

    def newest_arrow(self) -> int:
        """Return the number of the newest arrow that a candidate has taken, 0 if there is none; numbers only grow."""
        with self.reading() as session:
            return session.scalar(select(func.max(TransitionRow.id))) or 0

    def candidate_ids(self, prefix: str = "") -> list[str]:
        """Return the sorted ids of all candidates, crystal or not, that begin with `prefix`."""
        with self.reading() as session:
            query = select(CandidateRow.id).where(CandidateRow.id.startswith(prefix, autoescape=True))
            return list(session.scalars(query.order_by(CandidateRow.id)))

    def history(self, candidate_id: str) -> History:
        """Return everything that is stored of one candidate."""
        with self.reading() as session:
            row = session.get(CandidateRow, candidate_id)
            if row is None:
                raise RunError(
                    f"{_describe(self.engine)} holds no candidate {candidate_id!r} of campaign {self.name!r}"
                )
            target = session.get_one(TargetRow, row.target_id)
            scales = {scale.id: scale_of(scale) for scale in session.scalars(select(EnergyScaleRow))}
            arrows = select(TransitionRow).where(TransitionRow.candidate_id == row.id).order_by(TransitionRow.id)
            evaluations = select(EvaluationRow).where(EvaluationRow.subject_id == row.id)
            return History(
                id=row.id,
                formula=row.formula,
                state=State(row.state),
                target=TargetRecord(target.id, target.round, target.seed, Target.from_dict(target.request)),
                sample=row.sample,
                checkpoint=row.checkpoint,
                arrows=tuple(
                    Arrow(State(arrow.to_state), arrow.cause, arrow.core_seconds, arrow.time)
                    for arrow in session.scalars(arrows)
                ),
                evaluations={found.role: evaluation_of(found, scales) for found in session.scalars(evaluations)},
                screening_decomposition_energy=row.screening_decomposition_energy,
                screening_hull_version=row.screening_hull_version,
                verdict=verdict_of(row),
            )

    def transitions(self, candidate_id: str | None = None) -> list[tuple[str, State | None, State, str]]:
        """Return (candidate, from, to, cause) in the order written, of one candidate or of all."""
        with self.reading() as session:
            query = select(TransitionRow).order_by(TransitionRow.id)
            if candidate_id is not None:
                query = query.where(TransitionRow.candidate_id == candidate_id)
            return [
                (row.candidate_id, State(row.from_state) if row.from_state else None, State(row.to_state), row.cause)
                for row in session.scalars(query)
            ]

    def funnel(self) -> dict[str, int]:
        """Count the candidates that ever reached each state, and those in flight.

        Always ``sampled == rejected + failed + passed_over + judged + in_flight``.
        """
        with self.reading() as session:
            reached = (
                session.execute(select(TransitionRow.to_state, func.count()).group_by(TransitionRow.to_state))
                .tuples()
                .all()
            )
            counts = {str(state): 0 for state in State} | dict(reached)
            counts["in_flight"] = (
                session.scalar(select(func.count()).select_from(CandidateRow).where(CandidateRow.state.in_(IN_FLIGHT)))
                or 0
            )
            return counts

    def losses(self) -> dict[State, Counter[str]]:
        """Return, for each state in which a candidate is lost, cause → count; ids are left out."""
        with self.reading() as session:
            lost: dict[State, Counter[str]] = {}
            for state in (State.REJECTED, State.FAILED, State.PASSED_OVER):
                causes = session.scalars(select(TransitionRow.cause).where(TransitionRow.to_state == state))
                lost[state] = Counter(cause.split(":")[0].split(" of ")[0] for cause in causes)
            return lost

    def failures(self) -> dict[str, int]:
        """Return failure kind → count of evaluations, of candidates and reference phases."""
        with self.reading() as session:
            query = (
                select(EvaluationRow.failure_kind, func.count())
                .where(EvaluationRow.failure_kind.is_not(None))
                .group_by(EvaluationRow.failure_kind)
                .order_by(EvaluationRow.failure_kind)
            )
            return {str(kind): count for kind, count in session.execute(query).all()}

    def _move(self, session: Session, candidate_id: str, state: State, cause: str, core_seconds: float = 0.0) -> bool:
        """Take one arrow; False if it was taken before."""
        row = session.get_one(CandidateRow, candidate_id)
        before = session.scalar(
            select(TransitionRow.id).where(TransitionRow.candidate_id == candidate_id, TransitionRow.to_state == state)
        )
        if before is not None:
            return False
        check_transition(candidate_id, State(row.state), state)
        session.add(_transition(candidate_id, State(row.state), state, cause, core_seconds))
        row.state = state
        return True

    def _add_evaluation(self, session: Session, subject_id: str, role: str, evaluation: Evaluation) -> None:
        if session.get(EvaluationRow, (subject_id, role)) is not None:
            return
        data = evaluation.to_dict()
        failure = evaluation.failure
        session.add(
            EvaluationRow(
                subject_id=subject_id,
                role=role,
                energy_scale_id=evaluation.energy_scale.id,
                energy=evaluation.energy,
                converged=evaluation.converged,
                corrections=data["corrections"],
                failure_kind=failure.kind if failure is not None else None,
                failure_message=failure.message if failure is not None else None,
                failure_folder=failure.folder if failure is not None else None,
                seconds=evaluation.seconds,
                cores=evaluation.cores,
                crystal=data["crystal"],
                forces=data["forces"],
                stress=data["stress"],
                details=data["details"],
                time=time.time(),
            )
        )
        session.add(_ledger(subject_id, role, "core_hours", evaluation.core_hours))
        if evaluation.gpu_hours:
            session.add(_ledger(subject_id, role, "gpu_hours", evaluation.gpu_hours))

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def add_initial_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the weights that the campaign begins with."""
        with self._transaction() as session:
            if session.get(CheckpointRow, "initial") is None:
                session.add(_checkpoint_row("initial", None, checkpoint))

    def learn(
        self,
        round: int,
        checkpoint: Checkpoint | None,
        learned: Sequence[str],
        seconds: float,
        *,
        reason: str = "",
        hull_version: int | None = None,
    ) -> None:
        """Finish a round's learning: store the checkpoint, and take JUDGED → LEARNED for what it was trained on."""
        with self._transaction() as session:
            if session.get(StepRow, (round, "learned")) is not None:
                return
            self._finish_step(session, round, "learned", seconds)
            if checkpoint is None:
                return
            session.add(_checkpoint_row(f"r{round:02d}", round, checkpoint, reason, hull_version))
            for candidate_id in learned:
                self._move(session, candidate_id, State.LEARNED, f"trained into checkpoint {checkpoint.sha256[:12]}")

    def checkpoints(self) -> list[CheckpointRecord]:
        """Return all checkpoints, oldest first."""
        with self.reading() as session:
            return [
                CheckpointRecord(
                    row.id,
                    row.round,
                    Checkpoint(row.path, row.sha256, row.parent, tuple(row.trained_on), numbers_of(row.metrics)),
                    row.reason,
                    row.hull_version,
                )
                for row in session.scalars(select(CheckpointRow).order_by(CheckpointRow.time))
            ]

    # Budget --------------------------------------------------------------------------------------------------------

    def budget(self, limit: Mapping[str, float]) -> Budget:
        """Return what may be spent, what is spent and what work in flight reserves."""
        with self.reading() as session:
            new = select(LedgerRow.kind, func.sum(LedgerRow.amount), func.max(LedgerRow.id)).where(
                LedgerRow.spent.is_(True), LedgerRow.id > self._newest_spent
            )
            for kind, amount, newest in session.execute(new.group_by(LedgerRow.kind)).all():
                self._spent[kind] = self._spent.get(kind, 0.0) + float(amount)
                self._newest_spent = max(self._newest_spent, newest)
            held = select(LedgerRow.kind, func.sum(LedgerRow.amount)).where(LedgerRow.spent.is_(False))
            reserved = {kind: float(amount) for kind, amount in session.execute(held.group_by(LedgerRow.kind))}
            seconds = session.scalar(select(func.sum(SessionRow.heartbeat - SessionRow.started))) or 0.0
        return Budget(dict(limit), dict(self._spent) | {"wall_hours": seconds / 3600.0}, reserved)

    def costs(self) -> dict[str, tuple[int, float, float]]:
        """Return role → (evaluations, their wall seconds, their core-hours), of candidates and reference phases."""
        with self.reading() as session:
            query = select(
                EvaluationRow.role,
                func.count(),
                func.sum(EvaluationRow.seconds),
                func.sum(EvaluationRow.seconds * EvaluationRow.cores) / 3600.0,
            ).group_by(EvaluationRow.role)
            return {
                role: (count, float(seconds), float(hours))
                for role, count, seconds, hours in session.execute(query).all()
            }

    def charge(self, subject_id: str, role: str, costs: Mapping[str, float]) -> None:
        """Enter what a calculation has cost that this driver ended before it was done; kind → amount."""
        with self._transaction() as session:
            for kind, amount in costs.items():
                if amount:
                    session.add(_ledger(f"{subject_id} (ended by driver {self._session_id})", role, kind, amount))

    def largest_costs(self, role: str) -> dict[str, float]:
        """Return kind → the most that one evaluation of `role` has cost."""
        with self.reading() as session:
            query = select(LedgerRow.kind, func.max(LedgerRow.amount)).where(
                LedgerRow.role == role, LedgerRow.spent.is_(True), LedgerRow.kind.in_(("core_hours", "gpu_hours"))
            )
            return {kind: float(amount) for kind, amount in session.execute(query.group_by(LedgerRow.kind))}

    def _reservations(self, session: Session, subject_id: str) -> Sequence[LedgerRow]:
        return session.scalars(
            select(LedgerRow).where(LedgerRow.subject_id == subject_id, LedgerRow.spent.is_(False))
        ).all()


_CLAIM_TRIES = 10
_HEARTBEAT = text("UPDATE sessions SET heartbeat = :now WHERE id = :session")
_LOCK_IS_HELD = text(
    "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE datname = current_database() AND locktype = 'advisory' AND granted AND objsubid = 1"
    " AND (classid::bigint << 32) + objid::bigint = :lock)"
)
_DRIVER = (
    "SELECT pid, host FROM sessions JOIN campaign ON campaign.id = sessions.campaign_id WHERE name = %s"
    " ORDER BY sessions.id DESC LIMIT 1"
)


def _writing_engine(url: str, campaign: str | None) -> Engine:
    """Return an engine for the driver, after bringing the schema up to date."""
    parsed = parse(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, json_serializer=_to_json)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin)
        _upgrade(_migrating_engine(url))
        return engine
    _upgrade(_engine(url))
    engine = _engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True)
    name = campaign if campaign is not None else _find(engine, None)[1]
    engine.dispose()
    event.listen(engine, "connect", lambda connection, _record: _claim(connection, name))
    return engine


def _migrating_engine(url: str) -> Engine:
    """Return an engine for a SQLite file that does not enforce foreign keys: migrations build tables anew."""
    engine = create_engine(url)
    event.listen(engine, "connect", _leave_transactions_to_us)
    event.listen(engine, "begin", _begin)
    return engine


def _upgrade(engine: Engine) -> None:
    try:
        schema.upgrade(engine)
    except SQLAlchemyError as error:
        raise RunError(f"{_describe(engine)} cannot be opened for writing: {_cause(error)}") from error
    finally:
        engine.dispose()


def _reading_engine(where: Path | str) -> Engine:
    url = parse(str(where)) if is_url(where) else None
    if url is not None and url.get_backend_name() == "postgresql":
        engine = _engine(str(where), execution_options={"postgresql_readonly": True}, isolation_level="REPEATABLE READ")
    else:
        path = Path(where if url is None else url.database or "")
        _require_file(path)
        engine = create_engine(f"sqlite:///file:{path.resolve()}?mode=ro&uri=true")
    try:
        schema.require_current(engine)
    except SQLAlchemyError as error:
        raise RunError(f"{_describe(engine)} cannot be read: {_cause(error)}") from error
    return engine


def _engine(url: str, **options: Any) -> Engine:
    """Return an engine of a PostgreSQL database."""
    try:
        return create_engine(parse(url), json_serializer=_to_json, **options)
    except ValueError as error:
        raise RunError(str(error)) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"{masked(url)} needs the package psycopg; install it: pip install 'discovery-engine[postgres]'"
        ) from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise RunError(f"{path} does not exist: this is not a run folder; start one with `discovery launch`")


def _find(engine: Engine, name: str | None) -> tuple[int, str]:
    """Return id and name of the campaign `name`, or of the only one."""
    with Session(engine) as session:
        ids = dict(session.execute(select(CampaignRow.name, CampaignRow.id)).tuples().all())
    if name is None and len(ids) == 1:
        name = next(iter(ids))
    if name is not None and name in ids:
        return ids[name], name
    if not ids:
        raise RunError(f"{_describe(engine)} holds no campaign; remove the run folder and launch again")
    wanted = f"no campaign {name!r}" if name is not None else "several campaigns; name one"
    raise RunError(f"{_describe(engine)} holds {wanted}; there are: {', '.join(sorted(ids))}")


def _describe(engine: Engine) -> str:
    """Return what a message calls the database: a path, or a URL without its password."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database).removeprefix("file:").partition("?")[0]
    return masked(engine.url.render_as_string())


def _cause(error: SQLAlchemyError) -> str:
    return masked(str(getattr(error, "orig", None) or error).strip())


def _lock_number(campaign: str) -> int:
    """Return the number of the advisory lock of a campaign's driver: 63 bits of the hash of its name."""
    return int.from_bytes(hashlib.sha256(campaign.encode()).digest()[:8]) >> 1


def _claim(connection: Any, campaign: str) -> None:
    """Take the driver's lock on a new connection; PostgreSQL releases it when the connection ends.

    Keepalives tell the server within two minutes that the driver's machine is gone.
    """
    with connection.cursor() as cursor:
        for setting, value in (("idle", 60), ("interval", 15), ("count", 4)):
            cursor.execute(f"SET tcp_keepalives_{setting} = {value}")
        for attempt in range(_CLAIM_TRIES):  # a driver that has just ended is gone from the server a moment later
            if attempt:
                time.sleep(0.05)
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (_lock_number(campaign),))
            if cursor.fetchone()[0]:
                connection.commit()
                return
        cursor.execute(_DRIVER, (campaign,))
        pid, host = cursor.fetchone() or ("unknown", "unknown")
    connection.close()
    raise RunError(
        f"campaign {campaign!r} already has a driver (process {pid} on {host}); wait for it, or watch it with "
        "`discovery status`"
    )


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would leave table definitions outside transactions


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """Set write-ahead logging, so that readers never wait for the driver nor the driver for them.

    ``synchronous=NORMAL`` cannot corrupt the database. A power cut may lose its newest transactions; their results lie
    in files that were flushed to the disk before, and are imported again.
    """
    _leave_transactions_to_us(connection, _record)
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Begin a transaction; one that writes waits for its turn at once, since SQLite lets no reader wait to write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def _to_json(value: Any) -> str:
    """Return JSON as the standard has it: what is no finite number is null, in every database alike."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_with_nulls(value), allow_nan=False)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _transition(
    candidate_id: str, before: State | None, after: State, cause: str, core_seconds: float
) -> TransitionRow:
    return TransitionRow(
        candidate_id=candidate_id,
        from_state=before,
        to_state=after,
        cause=cause,
        core_seconds=core_seconds,
        time=time.time(),
    )


def _ledger(subject_id: str, role: str, kind: str, amount: float, *, spent: bool = True) -> LedgerRow:
    return LedgerRow(subject_id=subject_id, role=role, kind=kind, amount=amount, spent=spent, time=time.time())


def _checkpoint_row(
    id: str, round: int | None, checkpoint: Checkpoint, reason: str = "", hull_version: int | None = None
) -> CheckpointRow:
    return CheckpointRow(
        id=id,
        round=round,
        sha256=checkpoint.sha256,
        parent=checkpoint.parent,
        path=checkpoint.path,
        trained_on=list(checkpoint.trained_on),
        reason=reason,
        hull_version=hull_version,
        metrics=dict(checkpoint.metrics),
        time=time.time(),
    )


def _core_seconds(evaluation: Evaluation) -> float:
    return evaluation.seconds * evaluation.cores


def _failure_text(role: str, failure: Failure) -> str:
    return f"{role} {failure.kind}: {failure.message}"


def _campaign(row: CampaignRow, seconds: float | None) -> CampaignRecord:
    return CampaignRecord(
        row.name, row.seed, row.config, row.config_hash, row.state, row.message, row.created, float(seconds or 0.0)
    )


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt in the midst of which a library raised `error`, if that is how it came about."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, KeyboardInterrupt):
        current = current.__cause__ or current.__context__
    return current
