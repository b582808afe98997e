"""The campaign: the discovery loop, and the only object with state.

Each step writes its results to the store as they come and can be repeated: a campaign that was killed goes on at the
step it was in, with the results it had.

A deterministic campaign goes through rounds, each step after the other; its decisions depend on the seed and on stored
results in the order of candidate ids, never on the order of arrival. A streaming one keeps all stages at work at the
same time; :class:`discovery.scheduler.Flow` tells when the agent is asked, and what it decides depends on what has come
in by then. Its proposals, selections and trainings are counted each for themselves; its rounds are its proposals.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from discovery import config as configuration
from discovery.candidates import Candidates, LazyCandidates
from discovery.config import CampaignConfig, ExecutorConfig
from discovery.control import Inbox, Request
from discovery.crystal import Crystal
from discovery.errors import DiscoveryError, InvalidInputError, RunError
from discovery.evaluation_cache import EvaluationCache
from discovery.executor import (
    ROLES,
    Cost,
    Evaluated,
    EvaluationJob,
    Executor,
    Learned,
    LearnJob,
    Result,
    Role,
    Sampled,
    SampleJob,
    create_executor,
)
from discovery.hull import Hull, Phase
from discovery.matching import CrystalIndex, Matcher, is_valid
from discovery.protocols import Agent, CampaignView, LearningAgent, SinceLearning
from discovery.references import reference_crystals
from discovery.runfolder import RunFolder
from discovery.scheduler import Decision, Flow
from discovery.store import ReferenceRecord, Store, TargetRecord
from discovery.types import Budget, Candidate, Evaluation, LabelledCrystal, Stability, State

Observer = Callable[[str, Mapping[str, Any]], None]
"""Is told of every event: its name and its values."""


def _ignore(_event: str, _values: Mapping[str, Any]) -> None:
    """Observe nothing."""


_SEEDS = {"propose": 0, "sample": 1, "select": 2, "learn": 3}


class CampaignInterruptedError(DiscoveryError):
    """The campaign was stopped, by a signal or because it was asked to, and can be resumed."""


class _StoppedError(Exception):
    """The driver was asked to stop, and nothing runs any more."""


class _TimeShortError(Exception):
    """Work waits that no machine would be there long enough for."""


class _EndedError(Exception):
    """A stopping rule holds; carries it in words."""


class Campaign:
    """A campaign in its run folder.

    Parameters
    ----------
    folder
        The run folder.
    config
        The campaign's configuration.
    store
        Its database, open for writing.
    observe
        Is told of every event.

    Notes
    -----
    Make one with :meth:`launch` or :meth:`resume`, then call :meth:`run`.
    """

    def __init__(self, folder: RunFolder, config: CampaignConfig, store: Store, observe: Observer) -> None:
        self.folder = folder
        self.config = config
        self.store = store
        self._observe = observe
        self._matcher = Matcher()
        self._candidates = Candidates(store)
        self._agent: Agent = config.agent.create()
        self._executor: Executor
        self._inbox: Inbox

    # Starting and stopping -----------------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def launch(cls, config: CampaignConfig, observe: Observer = _ignore) -> Iterator[Campaign]:
        """Begin a campaign in a new run folder, and be its driver within the context.

        If it cannot begin (a missing file, key, program or model), no run folder is left behind.
        """
        folder = RunFolder(config.run_dir.resolve())
        folder.create()
        with folder.driver():
            config.save(folder.config)
            try:
                store = Store.create(
                    folder.database_url,
                    name=config.name,
                    seed=config.seed,
                    config=config.model_dump(mode="json"),
                    config_hash=config.config_hash,
                )
            except DiscoveryError:
                folder.remove()
                raise
            try:
                yield cls(folder, config, store, observe)
            except CampaignInterruptedError:
                raise
            except DiscoveryError:
                if not store.references():
                    store.remove()
                    folder.remove()
                raise
            finally:
                store.close()

    @classmethod
    @contextmanager
    def resume(cls, run_dir: Path, observe: Observer = _ignore) -> Iterator[Campaign]:
        """Open an existing run folder, and be its driver within the context."""
        folder = RunFolder(run_dir.resolve())
        folder.check_writable()
        with folder.driver():
            store = folder.open_store()
            try:
                config = configuration.read(folder.config)
                began_with = CampaignConfig.model_validate(store.campaign().config)
                if config.config_hash != began_with.config_hash:
                    raise RunError(
                        f"{folder.config} was changed since the campaign began; restore it, or launch a new campaign"
                    )
                yield cls(folder, config, store, observe)
            finally:
                store.close()

    def run(self) -> None:
        """Go through the rounds until a stopping rule holds; a finished campaign is left as it is.

        Raises
        ------
        CampaignInterruptedError
            After SIGINT or SIGTERM, or when it was asked to stop (:mod:`discovery.control`); the message says how to
            go on.
        DiscoveryError
            If the campaign cannot go on; the message says why.
        """
        if self.store.campaign().state == "finished":
            return
        self.store.start_session()
        self._event("started", pid=os.getpid())
        try:
            with _signals(), Inbox(self.folder) as self._inbox, create_executor(self.config) as self._executor:
                try:
                    self._discover()
                finally:
                    with suppress(DiscoveryError):
                        self._charge(self._executor.cancel())
        except (KeyboardInterrupt, _StoppedError, _TimeShortError) as error:
            asked = self._inbox.request in (Request.STOP, Request.STOP_NOW)
            reason = "stopped as asked" if asked else "stopped by a signal"
            if isinstance(error, _TimeShortError):
                reason = "stopped because no machine is there long enough for what waits (executor.ends_at)"
            with suppress(DiscoveryError):
                self._end("interrupted", reason)
            raise CampaignInterruptedError(
                f"nothing finished is lost. Go on with: discovery resume {self.folder.path}"
            ) from None
        except BaseException as error:
            with suppress(DiscoveryError):  # on a full disk this fails as well
                self._end("failed", f"{type(error).__name__}: {error}")
            raise

    def _end(self, state: str, message: str) -> None:
        self.store.set_state(state, message)
        self._event(state, message=message)

    # The loop ------------------------------------------------------------------------------------------------------

    def _discover(self) -> None:
        self._meter = _Meter(self._budget(), self.store.largest_costs("reference"))
        self._recall()
        self._prepare()
        try:
            self._evaluate_references()
            reason = self._go_through_rounds() if self.config.campaign.deterministic else self._stream()
        except _EndedError as error:
            self._charge(self._executor.cancel())
            reason = str(error)
        self._close(reason)

    def _recall(self) -> None:
        """Learn from the store what happened under earlier drivers since the generator learned, and since a success."""
        versions = [version for version in self.store.hull_versions("reference") if version.round is not None]
        successes = [index for index, version in enumerate(versions) if set(version.added) & set(version.stable)]
        self._last_success = max((versions[index].round or 0 for index in successes), default=-1)
        learned_from = max((record.hull_version or 0 for record in self.store.checkpoints()), default=0)
        self._last_learning = max(
            (version.round or 0 for version in versions if version.version <= learned_from), default=-1
        )
        self._since_learning = SinceLearning(
            verdicts=sum(version.version > learned_from for version in versions),
            idle_verdicts=len(versions) - 1 - max(successes, default=-1),
        )
        self._learned_at = time.monotonic()

    def _go_through_rounds(self) -> str:
        """Take one step after the other, each with all that the one before has brought; return why it ended."""
        for round in range(self.config.campaign.rounds):
            if self.store.is_done(round, "learned"):
                continue
            if not self._propose(round):
                return "nothing is left to propose"
            self._sample_and_screen(round)
            self._select(round)
            self._compute(round)
            self._judge(round)
            self._obey()
            self._learn(round)
        return "all rounds are done"

    def _stream(self) -> str:
        """Keep all stages at work until nothing is left to do; return why it ended."""
        search = self.config.campaign
        done = Counter(step for _, step in self.store.steps())
        self._proposals, self._selections, self._trainings = done["proposed"], done["selected"], done["learned"]
        self._flow = Flow(
            self.config.executor.reference_workers,
            search.targets_per_round * search.samples_per_target,
            max(0, search.rounds - self._proposals),
        )
        self._learning = False
        self._take_up()
        self._ending: str | None = None
        while True:
            self._decide()
            for result in self._results():
                self._receive(result)
                self._decide()
            if self._ending is not None:
                return self._ending
            if self._flow.due is Decision.END:
                return (self._flow.closed and self._exhausted()) or "all rounds are done"

    def _take_up(self) -> None:
        """Queue what an earlier driver has left."""
        for record in self.store.unsampled_targets():
            self._flow.sampling += 1
            self._executor.submit(SampleJob(record.id, record.target, record.seed))
        for candidate in self._candidates.of(State.ADMITTED):
            self._flow.screening += 1
            self._submit(candidate.id, "screening", candidate.crystal)
        self._flow.screening += self._gate()
        self._flow.fresh = self._candidates.count(State.SCREENED)
        for candidate in self._candidates.of(State.SELECTED):
            self._flow.reference += 1
            self._submit(candidate.id, "reference", _relaxed(candidate))
        self._judge(max(0, self._proposals - 1))

    def _decide(self) -> None:
        """Ask the agent for whatever is due, unless the driver was asked to pause or stop."""
        while self._inbox.request not in (Request.PAUSE, Request.STOP) and self._ending is None:
            due = self._flow.due
            if due is Decision.SELECT:
                wanted = self._flow.wanted
                chosen, allowed = self._ask_for_selection(self._selections, wanted)
                self._selections += 1
                self._flow.selected(len(chosen), allowed)
                self._flow.closed = allowed == 0
                for candidate in chosen:
                    self._submit(candidate.id, "reference", _relaxed(candidate))
            elif due is Decision.PROPOSE and self._exhausted() is None:
                self._propose(self._proposals)
                targets = self.store.targets(self._proposals)
                self._proposals += 1
                self._flow.proposed(len(targets))
                for record in targets:
                    self._executor.submit(SampleJob(record.id, record.target, record.seed))
            elif due is Decision.PROPOSE:
                self._flow.closed = True
            else:
                return

    def _receive(self, result: Result) -> None:
        """Write down one result, and what follows from it at once."""
        round = max(0, self._proposals - 1)
        if isinstance(result, Sampled):
            self._flow.sampled(self._add_samples(result))
        elif isinstance(result, Learned):
            self._learning = False
            self._finish_learning(self._trainings, result)
            self._trainings += 1
        elif result.job.role == "screening":
            self._screen(result)
            self._flow.screened(failed=not result.evaluation.ok)
        else:
            self._compute_one(result)
            self._flow.computed()
            self._flow.closed = False
            self._judge(round)
            self._ending = self._enough(round)
            lessons = [] if self._learning else self._lessons()
            if reason := self._reason_to_learn(round, lessons):
                self._learning = True
                self._begin_learning(self._trainings, round, lessons, reason)

    def _prepare(self) -> None:
        """Check the energy scales against those of earlier drivers, and load the newest weights."""
        for role in ROLES:
            self.store.set_energy_scale(role, self._executor.energy_scale(role))
        accepted = [record for record in self.store.checkpoints() if record.accepted and record.round is not None]
        if accepted:
            newest = accepted[-1].checkpoint
            self._executor.load(replace(newest, path=str(self.folder.path / newest.path)))
        initial = self._executor.checkpoint
        if initial is not None and not accepted:
            self.store.add_initial_checkpoint(initial)
        self._weights = initial.sha256 if initial is not None else None

    def _evaluate_references(self) -> None:
        """Evaluate the reference phases with both oracles and build the first version of both hulls.

        The reference oracle gets the crystals that the screening oracle has relaxed, as it does for candidates; where
        screening failed, the crystals as given.
        """
        if not self.store.references():
            self.store.add_references(
                [
                    ReferenceRecord(reference.id, reference.crystal, reference.source, reference.properties)
                    for reference in reference_crystals(self.config.campaign.elements, self.config.references)
                ]
            )
        references = self.store.references()
        relaxed: dict[str, Evaluation] = {}
        for role in ROLES:
            if not self.store.hull_versions(role):
                self._evaluate_reference_phases(role, references, relaxed)
            relaxed = self.store.evaluations(role)
        self._hulls: dict[Role, Hull] = {
            "screening": self.store.hull("screening"),
            "reference": self.store.hull("reference"),
        }
        gated = self._candidates.of(*set(State) - {State.SAMPLED, State.REJECTED})
        self._gated = CrystalIndex(self._matcher, {candidate.id: candidate.crystal for candidate in gated})
        phases = self._hulls["screening"].phases
        self._phases = CrystalIndex(
            self._matcher, {phase.id: phase.crystal for phase in phases if phase.crystal is not None}
        )
        self._met = _Met(set(), set(), CrystalIndex(self._matcher))
        self._unlearned = {
            candidate.id
            for candidate in self._candidates.of(State.JUDGED)
            if candidate.verdict is not None and candidate.verdict.stability is not Stability.UNSTABLE
        }

    def _evaluate_reference_phases(
        self, role: Role, references: Sequence[ReferenceRecord], relaxed: Mapping[str, Evaluation]
    ) -> None:
        known = self.store.evaluations(role)
        cache = self._reference_cache(role)
        for reference in references:
            if reference.id not in known:
                before = relaxed.get(reference.id)
                crystal = before.crystal if before is not None and before.crystal is not None else reference.crystal
                job = self._job(reference.id, role, crystal)
                cached = cache.get(crystal) if cache is not None else None
                if cached is not None:
                    self._add_reference_evaluation(Evaluated(job, cached))
                else:
                    self._executor.submit(job)
        for done in self._results():
            if isinstance(done, Evaluated):
                self._add_reference_evaluation(done)
                if cache is not None:
                    cache.put(done.job.crystal, done.evaluation)
        evaluations = self.store.evaluations(role)
        hull = Hull(self._executor.energy_scale(role))
        phases = [
            _phase(reference.id, evaluations[reference.id], "reference")
            for reference in references
            if evaluations[reference.id].ok
        ]
        hull = hull.add(phases)
        for element in self.config.campaign.elements:
            if element not in hull.elements:
                raise RunError(self._missing_element(element, role, references, evaluations))
        self.store.add_phases(role, hull, phases, None)
        self._event("hull", role=role, version=hull.version, phases=len(phases), energy_scale=hull.energy_scale.id)

    def _reference_cache(self, role: Role) -> EvaluationCache | None:
        if not self.config.executor.reference_cache:
            return None
        oracle = self.config.oracle.screening if role == "screening" else self.config.oracle.reference
        return EvaluationCache.of(oracle, self._executor.energy_scale(role))

    def _add_reference_evaluation(self, done: Evaluated) -> None:
        self.store.add_reference_evaluation(done.job.id, done.job.role, done.evaluation)
        self._event_evaluated("reference_phase", done)

    def _missing_element(
        self,
        element: str,
        role: Role,
        references: Sequence[ReferenceRecord],
        evaluations: Mapping[str, Evaluation],
    ) -> str:
        causes = [
            f"{reference.id}: {failure.kind}, {failure.message} (folder {self.folder.calculation(reference.id, role)})"
            for reference in references
            if reference.crystal.chemsys == element and (failure := evaluations[reference.id].failure) is not None
        ]
        return (
            f"the {role} oracle has no energy of the element {element}, without which no hull can be built: "
            f"{'; '.join(causes) or 'no reference phase of it was given'}. Choose an oracle or settings that can "
            "compute it, then launch a new campaign"
        )

    def _propose(self, round: int) -> bool:
        """Ask the agent for the round's targets; False if there is nothing left to propose."""
        if not self.store.is_done(round, "proposed"):
            for reason in (self._exhausted(), self._enough(round)):
                if reason is not None:
                    raise _EndedError(reason)
            started = time.monotonic()
            view = self._view(round, "propose")
            proposed = self._agent.propose(view, self.config.campaign.targets_per_round)
            targets = [
                TargetRecord(f"r{round:02d}-t{index:03d}", round, self._seed("sample", round, index), target)
                for index, target in enumerate(proposed[: self.config.campaign.targets_per_round])
            ]
            self.store.add_targets(targets, round, time.monotonic() - started)
            self._event("proposed", round=round, targets=[record.target.label for record in targets])
        return bool(self.store.targets(round))

    def _sample_and_screen(self, round: int) -> None:
        """Sample all targets and screen what passes the gate; screening of one target overlaps sampling of the next."""
        if self.store.is_done(round, "screened"):
            return
        started = time.monotonic()
        for record in self.store.unsampled_targets(round):
            self._executor.submit(SampleJob(record.id, record.target, record.seed))
        for candidate in self._candidates.of(State.ADMITTED):
            self._submit(candidate.id, "screening", candidate.crystal)
        self._gate()
        for done in self._results():
            if isinstance(done, Evaluated):
                self._screen(done)
            elif isinstance(done, Sampled):
                self._add_samples(done)
        self.store.finish_step(round, "screened", time.monotonic() - started)

    def _add_samples(self, done: Sampled) -> int:
        """Store a target's samples and let them through the gate; return how many were admitted."""
        record = TargetRecord(done.job.id, _round_of(done.job.id), done.job.seed, done.job.target)
        self.store.add_samples(record, done.samples, self._weights)
        self._event("sampled", round=record.round, target=record.id, label=record.target.label)
        return self._gate()

    def _gate(self) -> int:
        """Admit valid and new samples to screening, in the order of their ids; return how many."""
        admitted = 0
        for candidate in self._candidates.of(State.SAMPLED):
            cause = _off_target(candidate) or self._invalid(candidate.crystal) or self._seen(candidate.crystal)
            if cause is not None:
                self.store.reject(candidate.id, cause)
                self._event("rejected", candidate=candidate.id, cause=cause)
                continue
            self.store.admit(candidate.id)
            self._gated.add(candidate.id, candidate.crystal)
            self._submit(candidate.id, "screening", candidate.crystal)
            admitted += 1
        return admitted

    @staticmethod
    def _invalid(crystal: Crystal) -> str | None:
        reason = is_valid(crystal)
        return f"invalid: {reason}" if reason is not None else None

    def _seen(self, crystal: Crystal) -> str | None:
        other = self._gated.find(crystal)
        return f"duplicate of {other}" if other is not None else None

    def _screen(self, done: Evaluated) -> None:
        """Store a screening result with its place on the screening hull."""
        hull = self._hulls["screening"]
        formation, decomposition = _place(hull, done.evaluation)
        self.store.screen(
            done.job.id,
            done.evaluation,
            formation_energy_per_atom=formation,
            decomposition_energy=decomposition,
            hull_version=hull.version,
        )
        self._event_evaluated("screened", done, decomposition_energy=decomposition)

    def _select(self, round: int) -> None:
        """Let the agent choose among all screened candidates, earlier rounds' too, but for duplicates."""
        if not self.store.is_done(round, "selected"):
            self._ask_for_selection(round, self.config.campaign.reference_calls_per_round)

    def _ask_for_selection(self, index: int, wanted: int) -> tuple[list[Candidate], int]:
        """Let the agent choose up to `wanted` candidates; return them, and how many the budget allowed.

        `index` is that of the round or, in a streaming campaign, of the selection.
        """
        screened = self._pass_over_surplus(self._pass_over_duplicates(self._screened()))
        budget, reserve = self._selection_budget(wanted)
        allowed = int(budget.left("reference_calls"))
        chosen: list[tuple[Candidate, str]] = []
        if allowed >= 1:
            chosen = self._agent.select(self._view(index, "select"), screened, budget)[:allowed]
        self.store.select([(candidate.id, reason) for candidate, reason in chosen], reserve, index)
        for candidate, reason in chosen:
            self._event("selected", candidate=candidate.id, formula=candidate.crystal.formula, reason=reason)
        if screened and allowed >= 1 and not chosen:
            self._event("none_selected", selection=index, reason=self._none_worth(screened))
        return [candidate for candidate, _ in chosen], allowed

    def _none_worth(self, screened: Sequence[Candidate]) -> str:
        """Return that no candidate was worth a reference calculation to the agent, and how near the best came."""
        nearest = min(screened, key=lambda candidate: (_distance(candidate), candidate.id))
        energy = nearest.screening_decomposition_energy
        place = "has no energy" if energy is None else f"lies {energy:+.3f} eV/atom from the screening hull"
        return (
            f"agent {self.config.agent.name} selected none of {len(screened)} screened candidates; the best, "
            f"{nearest.id} ({nearest.crystal.formula}), {place}, and the agent's limits stand in config.yaml "
            "under agent"
        )

    def _screened(self) -> list[Candidate]:
        """Return what awaits selection, placed on the screening hull as it is now, sorted by id."""
        screened = []
        for candidate in self._candidates.of(State.SCREENED):
            if candidate.screening is not None:
                formation, decomposition = _place(self._hulls["screening"], candidate.screening)
                candidate = replace(
                    candidate,
                    screening_formation_energy_per_atom=formation,
                    screening_decomposition_energy=decomposition,
                )
            screened.append(candidate)
        return screened

    def _pass_over_duplicates(self, screened: Sequence[Candidate]) -> list[Candidate]:
        """Pass over candidates that relaxed into a known phase, a computed candidate or a better candidate.

        Those that waited already when this was last done meet only what is new since, which gives the same.
        """
        computed = {
            candidate.id: candidate.screening.crystal
            for candidate in self._candidates.of(State.FAILED, State.SELECTED, State.COMPUTED)
            if candidate.screening is not None and candidate.screening.crystal is not None
        }
        new = {id_: crystal for id_, crystal in computed.items() if id_ not in self._met.computed}
        better, newcomers = CrystalIndex(self._matcher), CrystalIndex(self._matcher)
        for_newcomers = (self._phases, CrystalIndex(self._matcher, computed), better)
        for_others = (self._met.new_phases, CrystalIndex(self._matcher, new), newcomers)
        kept = []
        for candidate in sorted(screened, key=_screening_energy):
            crystal = _relaxed(candidate)
            waited = candidate.id in self._met.waiting
            known = for_others if waited else for_newcomers
            duplicate = next((id_ for index in known if (id_ := index.find(crystal)) is not None), None)
            if duplicate is None:
                better.add(candidate.id, crystal)
                if not waited:
                    newcomers.add(candidate.id, crystal)
                kept.append(candidate)
            else:
                self.store.pass_over(candidate.id, f"duplicate of {duplicate}")
                self._event("passed_over", candidate=candidate.id, cause=f"duplicate of {duplicate}")
        self._met = _Met({candidate.id for candidate in kept}, computed.keys(), CrystalIndex(self._matcher))
        return sorted(kept, key=lambda candidate: candidate.id)

    def _pass_over_surplus(self, screened: Sequence[Candidate]) -> list[Candidate]:
        """Keep as many candidates as may wait for selection, those nearest to the screening hull."""
        limit = self.config.campaign.max_screened
        ranked = sorted(screened, key=lambda candidate: (_distance(candidate), candidate.id))
        for candidate in ranked[limit:]:
            cause = f"not among the best {limit} that wait for selection"
            self.store.pass_over(candidate.id, cause)
            self._event("passed_over", candidate=candidate.id, cause=cause)
        return sorted(ranked[:limit], key=lambda candidate: candidate.id)

    def _selection_budget(self, wanted: int) -> tuple[Budget, dict[str, float]]:
        """Return what a selection may spend, and what each selected candidate reserves.

        The cost of a calculation is bounded by its time limit; without one it is not known before, and the largest that
        was seen so far is reserved.
        """
        budget = self._budget()
        calls = min(wanted, budget.left("reference_calls"))
        reserve = {"reference_calls": 1.0, **self._meter.bound(self.config.executor)}
        for kind in ("core_hours", "gpu_hours"):
            if reserve[kind] > 0:
                calls = min(calls, budget.left(kind) / reserve[kind])
        calls = max(0.0, math.floor(calls)) if budget.left("wall_hours") > 0 else 0.0
        spent = {kind: amount for kind, amount in budget.spent.items() if kind != "reference_calls"}
        return Budget({**budget.limit, "reference_calls": calls}, spent, budget.reserved), reserve

    def _compute(self, round: int) -> None:
        """Compute the selected candidates with the reference oracle, from the crystals that screening has relaxed."""
        if self.store.is_done(round, "computed"):
            return
        started = time.monotonic()
        for candidate in self._candidates.of(State.SELECTED):
            self._submit(candidate.id, "reference", _relaxed(candidate))
        for done in self._results():
            if isinstance(done, Evaluated):
                self._compute_one(done)
        self.store.finish_step(round, "computed", time.monotonic() - started)

    def _compute_one(self, done: Evaluated) -> None:
        """Store a reference result."""
        self.store.compute(done.job.id, done.evaluation)
        self._event_evaluated("computed", done)

    def _judge(self, round: int) -> None:
        """Add what was computed to both hulls, one candidate after the other, and give the verdicts."""
        search = self.config.campaign
        for candidate in self._candidates.of(State.COMPUTED):
            grown: list[tuple[Role, Hull, Phase]] = []
            for role, evaluation in zip(ROLES, (candidate.screening, candidate.reference), strict=True):
                if evaluation is None:
                    raise RunError(f"{self.folder.database}: {candidate.id} is computed but has no {role} evaluation")
                phase = _phase(candidate.id, evaluation, "discovered")
                grown.append((role, self._hulls[role].add([phase]), phase))
            hulls = {role: hull for role, hull, _ in grown}
            verdict = hulls["reference"].judge(candidate.id, search.stable_threshold, search.metastable_threshold)
            self.store.judge(candidate.id, verdict, grown, round)
            self._hulls = hulls
            if verdict.stability is not Stability.UNSTABLE:
                self._unlearned.add(candidate.id)
            for index in (self._phases, self._met.new_phases):
                index.add(candidate.id, _relaxed(candidate))
            on_hull = any(phase.id == candidate.id for phase in hulls["reference"].stable_phases)
            self._since_learning = self._since_learning.with_verdict(on_hull=on_hull)
            if on_hull:
                self._last_success = round
            self._event(
                "judged",
                candidate=candidate.id,
                formula=candidate.crystal.formula,
                stability=verdict.stability,
                e_above_hull=verdict.e_above_hull,
                threshold=verdict.threshold,
                energy_scale=verdict.energy_scale,
                hull_version=verdict.hull_version,
            )

    def _learn(self, round: int) -> None:
        """Train the generator on what is stable or metastable on the hull as it is now and was not learned before."""
        lessons = self._lessons()
        reason = self._reason_to_learn(round, lessons)
        if not reason:
            self.store.learn(round, None, [], 0.0)
            return
        self._begin_learning(round, round, lessons, reason)
        for done in self._results():
            if isinstance(done, Learned):
                self._finish_learning(round, done)

    def _reason_to_learn(self, round: int, lessons: Sequence[LabelledCrystal]) -> str | None:
        """Ask the agent, if it decides when to learn and there is enough to learn from."""
        if len(lessons) < self.config.campaign.min_new_crystals:
            return None
        if not isinstance(self._agent, LearningAgent):
            return f"{len(lessons)} new crystals"
        return self._agent.reason_to_learn(self._view(round, "learn"), lessons)

    def _begin_learning(self, index: int, round: int, lessons: Sequence[LabelledCrystal], reason: str) -> None:
        folder = self.folder.checkpoint(index)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._event("learning", round=index, crystals=[crystal.id for crystal in lessons], reason=reason)
        self._training = _Training(reason, round, self._hulls["reference"].version, time.monotonic())
        self._executor.submit(LearnJob(f"learning {index}", tuple(lessons), self._seed("learn", index), folder))

    def _finish_learning(self, index: int, done: Learned) -> None:
        checkpoint = done.checkpoint
        learned: list[str] = []
        if checkpoint is not None:
            checkpoint = replace(checkpoint, path=os.path.relpath(checkpoint.path, self.folder.path))
            if checkpoint.metrics.get("accepted", 1.0) > 0:
                learned = [crystal.id for crystal in done.job.crystals]
                self._weights = checkpoint.sha256
            self._event("learned", round=index, sha256=checkpoint.sha256, metrics=dict(checkpoint.metrics))
        training = self._training
        self.store.learn(
            index,
            checkpoint,
            learned,
            time.monotonic() - training.began,
            reason=training.reason,
            hull_version=training.hull_version,
        )
        self._unlearned.difference_update(learned)
        if checkpoint is not None:
            verdicts = self._hulls["reference"].version - training.hull_version
            self._since_learning = replace(self._since_learning, verdicts=verdicts)
            self._last_learning = training.round
            self._learned_at = time.monotonic()

    def _lessons(self) -> list[LabelledCrystal]:
        """Return what is stable or metastable on the hull as it is now and was not learned before.

        What has once become unstable stays so, because a hull only moves down. A generator without weights learns
        nothing.
        """
        search = self.config.campaign
        lessons: list[LabelledCrystal] = []
        if not search.learn or self._weights is None:
            return lessons
        for candidate in self._candidates.named(self._unlearned):
            verdict = self._hulls["reference"].judge(candidate.id, search.stable_threshold, search.metastable_threshold)
            if verdict.stability is Stability.UNSTABLE:
                self._unlearned.remove(candidate.id)
            elif candidate.reference is not None and candidate.reference.crystal is not None:
                properties = {
                    "formation_energy_per_atom": verdict.formation_energy_per_atom,
                    "e_above_hull": verdict.e_above_hull,
                }
                lessons.append(LabelledCrystal(candidate.reference.crystal, properties, candidate.id))
        return lessons

    def _close(self, reason: str) -> None:
        """Judge what is computed, pass over what is left, and finish."""
        newest_round = max((round for round, _ in self.store.steps()), default=0)
        if self._candidates.count(State.SAMPLED, State.COMPUTED):
            self._gate()
            self._judge(newest_round)
        budget, screened = self._budget(), self._screened()
        wanted = self.config.campaign.reference_calls_per_round and budget.exhausted is None
        if wanted and screened and not budget.spent["reference_calls"]:
            reason += f"; {self._none_worth(screened)}"
        for candidate in self._candidates.of(State.ADMITTED, State.SCREENED, State.SELECTED):
            self.store.pass_over(candidate.id, f"not selected: {reason}")
        self._end("finished", reason)

    # What the steps share ------------------------------------------------------------------------------------------

    def _results(self) -> Iterator[Result]:
        """Yield results as they arrive, pausing when asked to; stop at once when hours of a kind are spent."""
        self._obey()
        while True:
            for done in self._executor.results():
                if isinstance(done, Evaluated):
                    self._meter.add(done)
                if done is None:
                    self.store.heartbeat()
                else:
                    yield done
                kind = self._meter.exhausted(self.config.campaign.budget.limits, self._executor.costs)
                if kind is not None:
                    raise _EndedError(f"the budget is exhausted: {kind}")
                if self._inbox.request in (Request.PAUSE, Request.STOP):
                    self._executor.hold()
                else:
                    self._executor.release()
            if not self._executor.waiting:
                return
            if self._inbox.request not in (Request.PAUSE, Request.STOP, Request.RESUME):
                raise _TimeShortError
            self._obey()
            self._executor.release()

    def _obey(self) -> None:
        """Pause or stop if the driver was asked to; nothing runs meanwhile. A pause is no wall time."""
        if self._inbox.request is Request.PAUSE:
            self.store.set_state("paused")
            self._event("paused")
            self.store.end_session()
            with self._meter.standstill():
                while self._inbox.request is Request.PAUSE:
                    self._inbox.wait()
            self.store.start_session()
            self._event("resumed")
        if self._inbox.request is Request.STOP:
            raise _StoppedError

    def _exhausted(self) -> str | None:
        """Return which budget is used up, work in flight included."""
        kind = self._budget().exhausted
        return f"the budget is exhausted: {kind}" if kind is not None else None

    def _enough(self, round: int) -> str | None:
        """Return why there is no need for `round`, if enough was discovered or nothing for too long."""
        search = self.config.campaign
        hull = self._hulls["reference"]
        found = [phase for phase in hull.stable_phases if phase.origin == "discovered" and len(phase.composition) > 1]
        if search.max_discoveries is not None and len(found) >= search.max_discoveries:
            return f"enough was discovered: {len(found)} stable phases"
        if search.patience is not None and round - 1 - self._last_success >= search.patience:
            return f"no new stable phase in {search.patience} rounds"
        return None

    def _charge(self, costs: Sequence[Cost]) -> None:
        """Enter into the ledger what calculations have cost that were ended before they were done."""
        for cost in costs:
            self.store.charge(cost.job.id, cost.job.role, {"core_hours": cost.core_hours, "gpu_hours": cost.gpu_hours})

    def _budget(self) -> Budget:
        return self.store.budget(self.config.campaign.budget.limits)

    def _view(self, round: int, decision: str) -> CampaignView:
        search = self.config.campaign
        return CampaignView(
            seed=self._seed(decision, round),
            round=round,
            elements=search.elements,
            max_atoms=search.max_atoms,
            samples_per_target=search.samples_per_target,
            screening_hull=self._hulls["screening"],
            reference_hull=self._hulls["reference"],
            candidates=LazyCandidates(self._all_candidates),
            budget=self._budget(),
            stable_threshold=search.stable_threshold,
            since_learning=replace(
                self._since_learning,
                idle_rounds=round - max(self._last_success, self._last_learning),
                hours=0.0 if search.deterministic else (time.monotonic() - self._learned_at) / 3600.0,
            ),
        )

    def _all_candidates(self) -> list[Candidate]:
        fresh = {candidate.id: candidate for candidate in self._screened()}
        return [fresh.get(candidate.id, candidate) for candidate in self._candidates.all()]

    def _seed(self, decision: str, *key: int) -> int:
        """Return the seed of one decision; independent of what was drawn before."""
        sequence = np.random.SeedSequence(self.config.seed, spawn_key=(_SEEDS[decision], *key))
        return int(sequence.generate_state(1)[0])

    def _job(self, subject_id: str, role: Role, crystal: Crystal) -> EvaluationJob:
        return EvaluationJob(subject_id, role, crystal, self.folder.calculation(subject_id, role))

    def _submit(self, subject_id: str, role: Role, crystal: Crystal) -> None:
        self._executor.submit(self._job(subject_id, role, crystal))

    def _event(self, event: str, **values: Any) -> None:
        self._observe(event, values)

    def _event_evaluated(self, event: str, done: Evaluated, **values: Any) -> None:
        failure = done.evaluation.failure
        self._event(
            event,
            id=done.job.id,
            role=done.job.role,
            formula=done.job.crystal.formula,
            seconds=done.evaluation.seconds,
            failure=f"{failure.kind}: {failure.message}" if failure is not None else None,
            **values,
        )


@dataclass(frozen=True)
class _Training:
    """A training under way: why, in which round, by which reference hull, and since when on the monotonic clock."""

    reason: str
    round: int
    hull_version: int
    began: float


@dataclass(frozen=True)
class _Met:
    """Which crystals have been compared with each other: `waiting` ones with each other and with `computed` ones.

    `new_phases` entered the screening hull since.
    """

    waiting: Collection[str]
    computed: Collection[str]
    new_phases: CrystalIndex


class _Meter:
    """Knows what was spent without asking the database, and what a calculation may cost."""

    def __init__(self, budget: Budget, largest: Mapping[str, float]) -> None:
        self._spent = defaultdict(float, budget.spent)
        self._largest = defaultdict(float, largest)
        self._started = time.monotonic()

    def add(self, done: Evaluated) -> None:
        """Count a finished evaluation."""
        costs = {"core_hours": done.evaluation.core_hours, "gpu_hours": done.evaluation.gpu_hours}
        for kind, amount in costs.items():
            self._spent[kind] += amount
            if done.job.role == "reference":
                self._largest[kind] = max(self._largest[kind], amount)

    def bound(self, executor: ExecutorConfig) -> dict[str, float]:
        """Return the most that one reference calculation may cost: by its time limit, or judging from those so far."""
        if executor.reference_max_seconds is None:
            return {kind: self._largest[kind] for kind in ("core_hours", "gpu_hours")}
        hours = executor.reference_max_seconds / 3600.0
        return {"core_hours": hours * executor.reference_cores, "gpu_hours": hours * executor.reference_gpus}

    def exhausted(self, limits: Mapping[str, float], running: Sequence[Cost]) -> str | None:
        """Return the first kind of hours that is spent, by what is finished and what is running."""
        spent = {
            "core_hours": self._spent["core_hours"] + sum(cost.core_hours for cost in running),
            "gpu_hours": self._spent["gpu_hours"] + sum(cost.gpu_hours for cost in running),
            "wall_hours": self._spent["wall_hours"] + (time.monotonic() - self._started) / 3600.0,
        }
        return next((kind for kind, amount in spent.items() if kind in limits and amount >= limits[kind]), None)

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """Count no wall time within the context."""
        before = time.monotonic()
        yield
        self._started += time.monotonic() - before


@contextmanager
def _signals() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, and hear SIGINT also when a shell started this process with it ignored."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _phase(id: str, evaluation: Evaluation, origin: Any) -> Phase:
    if evaluation.crystal is None or evaluation.energy is None:
        raise InvalidInputError(f"{id}: a failed evaluation cannot enter a hull")
    return Phase(
        id=id,
        composition=evaluation.crystal.composition.get_el_amt_dict(),
        energy=evaluation.energy,
        energy_scale=evaluation.energy_scale,
        crystal=evaluation.crystal,
        origin=origin,
    )


def _place(hull: Hull, evaluation: Evaluation) -> tuple[float | None, float | None]:
    """Return formation and decomposition energy in eV/atom on `hull`; None where there is no energy."""
    if evaluation.crystal is None or evaluation.energy is None:
        return None, None
    composition = evaluation.crystal.composition.get_el_amt_dict()
    formation = hull.formation_energy_per_atom(composition, evaluation.energy_per_atom)
    decomposition = hull.decompose(composition, evaluation.energy_per_atom)
    return formation, decomposition.decomposition_energy if decomposition is not None else None


def _off_target(candidate: Candidate) -> str | None:
    """Return why a sample is not what was asked for; generators guarantee compositions, this holds them to it."""
    asked = candidate.target.composition
    if asked is not None and candidate.crystal.composition.get_el_amt_dict() != dict(asked):
        return f"generator: {candidate.crystal.composition.formula} instead of {candidate.target.label}"
    return None


def _relaxed(candidate: Candidate) -> Crystal:
    if candidate.screening is None or candidate.screening.crystal is None:
        raise RunError(f"{candidate.id} is {candidate.state} but has no relaxed crystal; the database is damaged")
    return candidate.screening.crystal


def _round_of(target_id: str) -> int:
    return int(target_id.partition("-")[0].removeprefix("r"))


def _distance(candidate: Candidate) -> float:
    energy = candidate.screening_decomposition_energy
    return math.inf if energy is None else energy


def _screening_energy(candidate: Candidate) -> tuple[float, str]:
    energy = candidate.screening.energy_per_atom if candidate.screening is not None else math.inf
    return energy, candidate.id
