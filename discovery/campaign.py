"""The campaign: the discovery loop, and the only object with state.

Each step of a round writes its results to the store as they come and can be repeated: a campaign that was killed goes
on at the step it was in, with the results it had. Decisions depend on the seed and on stored results in the order of
candidate ids, never on the order of arrival.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from discovery import config as configuration
from discovery.config import CampaignConfig
from discovery.control import Inbox, Request
from discovery.crystal import Crystal
from discovery.errors import DiscoveryError, InvalidInputError, RunError
from discovery.evaluation_cache import EvaluationCache
from discovery.executor import ROLES, Evaluated, EvaluationJob, Executor, Role, Sampled, SampleJob, create_executor
from discovery.hull import Hull, Phase
from discovery.matching import Matcher, is_valid
from discovery.protocols import Agent, CampaignView
from discovery.references import reference_crystals
from discovery.runfolder import RunFolder
from discovery.store import ReferenceRecord, Store, TargetRecord
from discovery.types import Budget, Candidate, Checkpoint, Evaluation, LabelledCrystal, Stability, State

Observer = Callable[[str, Mapping[str, Any]], None]
"""Is told of every event: its name and its values."""


def _ignore(_event: str, _values: Mapping[str, Any]) -> None:
    """Observe nothing."""


_SEEDS = {"propose": 0, "sample": 1, "select": 2, "learn": 3}


class CampaignInterruptedError(DiscoveryError):
    """The campaign was stopped, by a signal or because it was asked to, and can be resumed."""


class _StoppedError(Exception):
    """The driver was asked to stop, and nothing runs any more."""


class _BudgetExhaustedError(Exception):
    """Nothing is left of a kind; carries the kind."""


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
                self._discover()
        except (KeyboardInterrupt, _StoppedError):
            asked = self._inbox.request in (Request.STOP, Request.STOP_NOW)
            with suppress(DiscoveryError):
                self._end("interrupted", "stopped as asked" if asked else "stopped by a signal")
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
        self._prepare()
        reason = "all rounds are done"
        try:
            self._evaluate_references()
            for round in range(self.config.campaign.rounds):
                if (round, "learned") in self.store.steps():
                    continue
                if not self._propose(round):
                    reason = "nothing is left to propose"
                    break
                self._sample_and_screen(round)
                self._select(round)
                self._compute(round)
                self._judge(round)
                self._obey()
                self._learn(round)
        except _BudgetExhaustedError as error:
            self._executor.cancel()
            reason = f"the budget is exhausted: {error}"
        self._close(reason)

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
        self._gated = {
            candidate.id: candidate.crystal
            for candidate in self.store.candidates()
            if candidate.state not in (State.SAMPLED, State.REJECTED)
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
        if (round, "proposed") not in self.store.steps():
            self._check_budget()
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
        if (round, "screened") in self.store.steps():
            return
        started = time.monotonic()
        sampled = self.store.sampled_targets()
        waiting = [record for record in self.store.targets(round) if record.id not in sampled]
        for record in waiting:
            self._executor.submit(SampleJob(record.id, record.target, record.seed))
        for candidate in self.store.candidates({State.ADMITTED}):
            self._executor.submit(self._job(candidate.id, "screening", candidate.crystal))
        self._gate()
        arrived: dict[str, Sampled] = {}
        for done in self._results():
            if isinstance(done, Evaluated):
                self._screen(done)
                continue
            arrived[done.job.id] = done
            while waiting and waiting[0].id in arrived:
                record = waiting.pop(0)
                self.store.add_samples(record, arrived.pop(record.id).samples, self._weights)
                self._event("sampled", round=round, target=record.id, label=record.target.label)
                self._gate()
        self.store.finish_step(round, "screened", time.monotonic() - started)

    def _gate(self) -> None:
        """Admit valid and new samples to screening, in the order of their ids."""
        for candidate in self.store.candidates({State.SAMPLED}):
            cause = _off_target(candidate) or self._invalid(candidate.crystal) or self._seen(candidate.crystal)
            if cause is not None:
                self.store.reject(candidate.id, cause)
                self._event("rejected", candidate=candidate.id, cause=cause)
                continue
            self.store.admit(candidate.id)
            self._gated[candidate.id] = candidate.crystal
            self._executor.submit(self._job(candidate.id, "screening", candidate.crystal))

    @staticmethod
    def _invalid(crystal: Crystal) -> str | None:
        reason = is_valid(crystal)
        return f"invalid: {reason}" if reason is not None else None

    def _seen(self, crystal: Crystal) -> str | None:
        other = self._matcher.find(crystal, self._gated)
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
        if (round, "selected") in self.store.steps():
            return
        screened = self._pass_over_duplicates(self._screened())
        budget, reserve = self._round_budget()
        chosen: list[tuple[Candidate, str]] = []
        if budget.left("reference_calls") >= 1:
            chosen = self._agent.select(self._view(round, "select"), screened, budget)
            chosen = chosen[: int(budget.left("reference_calls"))]
        self.store.select([(candidate.id, reason) for candidate, reason in chosen], reserve, round)
        for candidate, reason in chosen:
            self._event("selected", candidate=candidate.id, formula=candidate.crystal.formula, reason=reason)

    def _screened(self) -> list[Candidate]:
        """Return what awaits selection, placed on the screening hull as it is now, sorted by id."""
        screened = []
        for candidate in self.store.candidates({State.SCREENED}):
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
        """Pass over candidates that relaxed into a known phase, a computed candidate or a better candidate."""
        known = {phase.id: phase.crystal for phase in self._hulls["screening"].phases if phase.crystal is not None}
        for candidate in self.store.candidates({State.FAILED}):
            if candidate.screening is not None and candidate.screening.crystal is not None:
                known[candidate.id] = candidate.screening.crystal
        kept = []
        for candidate in sorted(screened, key=_screening_energy):
            crystal = _relaxed(candidate)
            duplicate = self._matcher.find(crystal, known)
            if duplicate is None:
                known[candidate.id] = crystal
                kept.append(candidate)
            else:
                self.store.pass_over(candidate.id, f"duplicate of {duplicate}")
                self._event("passed_over", candidate=candidate.id, cause=f"duplicate of {duplicate}")
        return sorted(kept, key=lambda candidate: candidate.id)

    def _round_budget(self) -> tuple[Budget, dict[str, float]]:
        """Return what this round's selection may spend, and what each selected candidate reserves.

        The core-hours of a calculation are not known before; reserved is the largest cost that was seen so far.
        """
        budget = self._budget()
        calls = min(self.config.campaign.reference_calls_per_round, budget.left("reference_calls"))
        costs = [evaluation.core_hours for evaluation in self.store.evaluations("reference").values()]
        reserve = {"reference_calls": 1.0, "core_hours": max(costs, default=0.0)}
        if reserve["core_hours"] > 0:
            calls = min(calls, budget.left("core_hours") / reserve["core_hours"])
        calls = max(0.0, math.floor(calls)) if budget.left("wall_hours") > 0 else 0.0
        spent = {kind: amount for kind, amount in budget.spent.items() if kind != "reference_calls"}
        return Budget({**budget.limit, "reference_calls": calls}, spent, budget.reserved), reserve

    def _compute(self, round: int) -> None:
        """Compute the selected candidates with the reference oracle, from the crystals that screening has relaxed."""
        if (round, "computed") in self.store.steps():
            return
        started = time.monotonic()
        for candidate in self.store.candidates({State.SELECTED}):
            self._executor.submit(self._job(candidate.id, "reference", _relaxed(candidate)))
        for done in self._results():
            if isinstance(done, Evaluated):
                self.store.compute(done.job.id, done.evaluation)
                self._event_evaluated("computed", done)
        self.store.finish_step(round, "computed", time.monotonic() - started)

    def _judge(self, round: int) -> None:
        """Add what was computed to both hulls, one candidate after the other, and give the verdicts."""
        search = self.config.campaign
        for candidate in self.store.candidates({State.COMPUTED}):
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
        search = self.config.campaign
        started = time.monotonic()
        crystals = self._lessons() if search.learn else []
        checkpoint: Checkpoint | None = None
        learned: list[str] = []
        if len(crystals) >= search.min_new_crystals:
            folder = self.folder.checkpoint(round)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._event("learning", round=round, crystals=[crystal.id for crystal in crystals])
            checkpoint = self._executor.learn(crystals, seed=self._seed("learn", round), folder=folder)
        if checkpoint is not None:
            checkpoint = replace(checkpoint, path=os.path.relpath(checkpoint.path, self.folder.path))
            if checkpoint.metrics.get("accepted", 1.0) > 0:
                learned = [crystal.id for crystal in crystals]
                self._weights = checkpoint.sha256
            self._event("learned", round=round, sha256=checkpoint.sha256, metrics=dict(checkpoint.metrics))
        self.store.learn(round, checkpoint, learned, time.monotonic() - started)

    def _lessons(self) -> list[LabelledCrystal]:
        search = self.config.campaign
        lessons = []
        for candidate in self.store.candidates({State.JUDGED}):
            verdict = self._hulls["reference"].judge(candidate.id, search.stable_threshold, search.metastable_threshold)
            if verdict.stability is not Stability.UNSTABLE and candidate.reference and candidate.reference.crystal:
                properties = {
                    "formation_energy_per_atom": verdict.formation_energy_per_atom,
                    "e_above_hull": verdict.e_above_hull,
                }
                lessons.append(LabelledCrystal(candidate.reference.crystal, properties, candidate.id))
        return lessons

    def _close(self, reason: str) -> None:
        """Judge what is computed, pass over what is left, and finish."""
        newest_round = max((round for round, _ in self.store.steps()), default=0)
        if self.store.candidates({State.SAMPLED, State.COMPUTED}):
            self._gate()
            self._judge(newest_round)
        for candidate in self.store.candidates({State.ADMITTED, State.SCREENED, State.SELECTED}):
            self.store.pass_over(candidate.id, f"not selected: {reason}")
        self._end("finished", reason)

    # What the steps share ------------------------------------------------------------------------------------------

    def _results(self) -> Iterator[Sampled | Evaluated]:
        """Yield results as they arrive, pausing when asked to; stop at once when core-hours or wall time are spent."""
        self._obey()
        while True:
            for done in self._executor.results():
                if done is None:
                    self.store.heartbeat()
                else:
                    yield done
                budget = self._budget()
                for kind in ("core_hours", "wall_hours"):
                    if kind in budget.limit and budget.spent[kind] >= budget.limit[kind]:
                        raise _BudgetExhaustedError(kind)
                if self._inbox.request in (Request.PAUSE, Request.STOP):
                    self._executor.hold()
                else:
                    self._executor.release()
            if not self._executor.waiting:
                return
            self._obey()
            self._executor.release()

    def _obey(self) -> None:
        """Pause or stop if the driver was asked to; nothing runs meanwhile. A pause is no wall time."""
        if self._inbox.request is Request.PAUSE:
            self.store.set_state("paused")
            self._event("paused")
            while self._inbox.request is Request.PAUSE:
                self._inbox.wait()
            if self._inbox.request is not Request.STOP:
                self.store.start_session()
                self._event("resumed")
        if self._inbox.request is Request.STOP:
            raise _StoppedError

    def _check_budget(self) -> None:
        exhausted = self._budget().exhausted
        if exhausted is not None:
            raise _BudgetExhaustedError(exhausted)

    def _budget(self) -> Budget:
        return self.store.budget(self.config.campaign.budget.limits)

    def _view(self, round: int, decision: str) -> CampaignView:
        fresh = {candidate.id: candidate for candidate in self._screened()}
        search = self.config.campaign
        return CampaignView(
            seed=self._seed(decision, round),
            round=round,
            elements=search.elements,
            max_atoms=search.max_atoms,
            samples_per_target=search.samples_per_target,
            screening_hull=self._hulls["screening"],
            reference_hull=self._hulls["reference"],
            candidates=tuple(fresh.get(candidate.id, candidate) for candidate in self.store.candidates()),
            budget=self._budget(),
            stable_threshold=search.stable_threshold,
        )

    def _seed(self, decision: str, *key: int) -> int:
        """Return the seed of one decision; independent of what was drawn before."""
        sequence = np.random.SeedSequence(self.config.seed, spawn_key=(_SEEDS[decision], *key))
        return int(sequence.generate_state(1)[0])

    def _job(self, subject_id: str, role: Role, crystal: Crystal) -> EvaluationJob:
        return EvaluationJob(subject_id, role, crystal, self.folder.calculation(subject_id, role))

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


def _screening_energy(candidate: Candidate) -> tuple[float, str]:
    energy = candidate.screening.energy_per_atom if candidate.screening is not None else math.inf
    return energy, candidate.id
