"""Where work runs: in this process, or in Ray workers on one machine or a cluster.

Both executors take the same work and give the same results; only the order of arrival differs. A worker writes an
evaluation's result file before the driver hears of it, and reads it when the same work comes again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np

from discovery import plugins
from discovery.crystal import Crystal
from discovery.errors import ConfigError, DiscoveryError, MissingDependencyError, RunError
from discovery.files import write_atomically
from discovery.scheduler import Pool, Scheduler, Stage, Task
from discovery.types import (
    Checkpoint,
    EnergyScale,
    Evaluation,
    Failure,
    FailureKind,
    LabelledCrystal,
    Sample,
    Target,
)

if TYPE_CHECKING:
    from discovery.config import CampaignConfig, ExecutorConfig, PluginChoice

Role = Literal["screening", "reference"]
ROLES: tuple[Role, ...] = ("screening", "reference")

RESULT_FORMAT = "discovery.result/1"
REPEATED = (FailureKind.CRASHED, FailureKind.TIMEOUT, FailureKind.OUT_OF_MEMORY)
"""Failures of a calculation that another try may not have."""
POLL_SECONDS = 1.0
"""How long to wait for a result before the caller gets a chance to look at the clock."""
CANCEL_SECONDS = 10.0
"""How long cancelled calculations get to end their external programs."""
NODES_SECONDS = 10.0
"""How often Ray is asked which nodes there are."""
ALL_NODES = "all"
"""Stands for every node where none is known by name."""

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment of all workers: one thread each, because workers are what fills the cores."""
LOCAL_RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""Environment of a Ray that runs on this machine alone; its workers inherit it. By default they run at niceness 15 and
come to a standstill beside any other program."""


@dataclass(frozen=True)
class PluginSpec:
    """A plug-in's name and options as JSON; workers construct it without importing the rest of the configuration."""

    group: plugins.Group
    name: str
    options: str

    @classmethod
    def of(cls, choice: PluginChoice) -> Self:
        """Return the plug-in that a configuration has chosen."""
        return cls(choice.group, choice.name, choice.options.model_dump_json())

    def create(self) -> Any:
        """Import the plug-in and construct it."""
        plugin = plugins.load(self.group, self.name)
        return plugin(plugin.Config.model_validate_json(self.options))


@dataclass(frozen=True)
class EvaluationJob:
    """One crystal for one oracle; `folder` receives ``result.json`` and whatever an external program writes.

    With `repeat`, a failure in the result file is not taken for an answer.
    """

    id: str
    role: Role
    crystal: Crystal
    folder: Path
    repeat: bool = False


@dataclass(frozen=True)
class SampleJob:
    """One target for the generator."""

    id: str
    target: Target
    seed: int


@dataclass(frozen=True)
class LearnJob:
    """A training of the generator, which writes its weights into `folder`."""

    id: str
    crystals: tuple[LabelledCrystal, ...]
    seed: int
    folder: Path


Job = SampleJob | EvaluationJob | LearnJob


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    job: EvaluationJob
    evaluation: Evaluation


@dataclass(frozen=True)
class Sampled:
    """A finished sampling."""

    job: SampleJob
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Learned:
    """A finished training; no checkpoint if the generator cannot learn."""

    job: LearnJob
    checkpoint: Checkpoint | None


Result = Sampled | Evaluated | Learned


@dataclass(frozen=True)
class Cost:
    """What an evaluation has cost before it was ended."""

    job: EvaluationJob
    core_hours: float
    gpu_hours: float


class Executor(Protocol):
    """Runs samplings, evaluations and trainings; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def energy_scale(self, role: Role) -> EnergyScale:
        """Return the energy scale of a role's oracle."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The generator's weights in use."""
        ...

    def load(self, checkpoint: Checkpoint) -> None:
        """Make the generator use the weights of `checkpoint`."""
        ...

    def submit(self, job: Job) -> None:
        """Queue work; more may be submitted while :meth:`results` is being read."""
        ...

    def results(self) -> Iterator[Result | None]:
        """Yield what is finished, in any order, until nothing runs; None now and then while there is nothing new."""
        ...

    @property
    def waiting(self) -> int:
        """How much work is queued and not begun."""
        ...

    def hold(self) -> None:
        """Begin nothing from now on; :meth:`results` ends once what runs is finished."""
        ...

    def release(self) -> None:
        """End a :meth:`hold`."""
        ...

    @property
    def costs(self) -> list[Cost]:
        """What the running evaluations have cost so far."""
        ...

    def cancel(self) -> list[Cost]:
        """Drop queued work and end what is running; return what that has cost."""
        ...


def create_executor(config: CampaignConfig) -> Executor:
    """Return the executor that the configuration names."""
    if config.executor.name == "ray":
        return RayExecutor(config)
    return InProcessExecutor(config)


# Work, as it is done in every process ---------------------------------------------------------------------------------


def evaluate_jobs(plugin: PluginSpec, oracle: Any, jobs: Sequence[EvaluationJob]) -> list[Evaluation]:
    """Evaluate `jobs` and write a result file for each; whoever has a result file of the same input is read."""
    stored = {job.id: read_result(plugin, job) for job in jobs}
    results = {id_: evaluation for id_, evaluation in stored.items() if evaluation is not None}
    missing = [job for job in jobs if job.id not in results]
    for job in missing:
        job.folder.mkdir(parents=True, exist_ok=True)
    if len(missing) == 1:
        evaluations = _evaluate(oracle, missing, missing[0].folder)
    else:
        evaluations = _evaluate(oracle, missing, None) if missing else []
    for job, evaluation in zip(missing, evaluations, strict=True):
        write_result(plugin, job, evaluation)
        results[job.id] = evaluation
    return [results[job.id] for job in jobs]


def _evaluate(oracle: Any, jobs: Sequence[EvaluationJob], folder: Path | None) -> list[Evaluation]:
    """Ask the oracle; an oracle that raises although it must not costs the crystal it raised for, not the campaign."""
    started = time.perf_counter()
    try:
        evaluations = list(oracle.evaluate([job.crystal for job in jobs], folder=folder))
        if len(evaluations) != len(jobs):
            raise ValueError(f"{len(evaluations)} evaluations of {len(jobs)} crystals")
        return [_checked(evaluation) for evaluation in evaluations]
    except Exception as error:
        if len(jobs) > 1:
            return [evaluation for job in jobs for evaluation in _evaluate(oracle, [job], job.folder)]
        failure = Failure(FailureKind.CRASHED, f"{type(error).__name__}: {error}", str(jobs[0].folder))
        return [Evaluation(oracle.energy_scale, failure=failure, seconds=time.perf_counter() - started)]


def _checked(evaluation: Evaluation) -> Evaluation:
    """Return `evaluation`, or a failure where energy, forces or stress are no numbers."""
    values = {"energy": evaluation.energy, "forces": evaluation.forces, "stress": evaluation.stress}
    wrong = [name for name, value in values.items() if value is not None and not np.isfinite(value).all()]
    if not wrong:
        return evaluation
    failure = Failure(FailureKind.UNPHYSICAL, f"the oracle gave what is no finite number as {' and '.join(wrong)}")
    return replace(evaluation, crystal=None, energy=None, forces=None, stress=None, converged=False, failure=failure)


def read_result(plugin: PluginSpec, job: EvaluationJob) -> Evaluation | None:
    """Return the evaluation in the job's result file, if it is there and belongs to the same crystal and oracle."""
    try:
        data = json.loads((job.folder / "result.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if data.get("format") != RESULT_FORMAT or data.get("input") != _input_hash(plugin, job):
        return None
    evaluation = Evaluation.from_dict(data["evaluation"])
    return None if job.repeat and evaluation.failure is not None else evaluation


def write_result(plugin: PluginSpec, job: EvaluationJob, evaluation: Evaluation) -> None:
    """Write the job's result file, whole or not at all."""
    data = {"format": RESULT_FORMAT, "input": _input_hash(plugin, job), "evaluation": evaluation.to_dict()}
    path = job.folder / "result.json"
    try:
        write_atomically(path, json.dumps(data))
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; free disk space or make the run folder writable, then "
            "continue with `discovery resume`"
        ) from error


def _input_hash(plugin: PluginSpec, job: EvaluationJob) -> str:
    return hashlib.sha256(f"{job.crystal.content_hash}{plugin.name}{plugin.options}".encode()).hexdigest()


# In this process ------------------------------------------------------------------------------------------------------


class _Repetition:
    """Gives failed evaluations another try, and adds what all tries of one have cost."""

    def __init__(self, scheduler: Scheduler[Job]) -> None:
        self._scheduler = scheduler
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)

    def accept(self, done: Evaluated) -> Evaluated | None:
        """Return the final result, or None if the evaluation was queued again."""
        key, failure = (done.job.id, done.job.role), done.evaluation.failure
        repeatable = failure is not None and failure.kind in REPEATED
        if repeatable and self._scheduler.retry(done.job.role, replace(done.job, repeat=True)):
            self._seconds[key] += done.evaluation.seconds
            return None
        before = self._seconds.pop(key, 0.0)
        return replace(done, evaluation=replace(done.evaluation, seconds=before + done.evaluation.seconds))


class _Queue:
    """What both executors do with the work that waits: it lies in the scheduler."""

    def __init__(self, scheduler: Scheduler[Job]) -> None:
        self._scheduler = scheduler
        self._repetition = _Repetition(scheduler)

    def submit(self, job: Job) -> None:
        """Queue a job with its stage; a training goes before samplings."""
        if isinstance(job, EvaluationJob):
            self._scheduler.submit(job.role, job, size=len(job.crystal))
        else:
            self._scheduler.submit("generator", job, first=isinstance(job, LearnJob))

    @property
    def waiting(self) -> int:
        """How much work is queued and not begun."""
        return self._scheduler.waiting()

    def hold(self) -> None:
        """Begin nothing from now on; results end once what runs is finished."""
        self._scheduler.hold()

    def release(self) -> None:
        """End a :meth:`hold`."""
        self._scheduler.release()


class InProcessExecutor(_Queue):
    """Does one piece of work after the other, when its result is asked for.

    Time limits are the oracles' own: nothing here can end a calculation that hangs.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self._plugins = {
            "screening": PluginSpec.of(config.oracle.screening),
            "reference": PluginSpec.of(config.oracle.reference),
        }
        self._oracles = {role: plugin.create() for role, plugin in self._plugins.items()}
        self._generator = PluginSpec.of(config.generator).create()
        super().__init__(
            Scheduler(
                {"reference": Pool(max_seconds=config.executor.reference_max_seconds)},
                max_failed=config.executor.max_failed,
                max_tasks=1,
            )
        )
        self._ends = {ALL_NODES: _end_of(config)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def energy_scale(self, role: Role) -> EnergyScale:
        """Return the energy scale of a role's oracle."""
        scale: EnergyScale = self._oracles[role].energy_scale
        return scale

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The generator's weights in use."""
        checkpoint: Checkpoint | None = self._generator.checkpoint
        return checkpoint

    def load(self, checkpoint: Checkpoint) -> None:
        """Make the generator use the weights of `checkpoint`."""
        self._generator.load(checkpoint)

    def results(self) -> Iterator[Result | None]:
        """Do the queued work and yield each result."""
        while (task := next(self._scheduler.start(time.monotonic(), self._ends), None)) is not None:
            result = self._do(task.jobs[0])
            self._scheduler.finish(task, time.monotonic())
            accepted = self._repetition.accept(result) if isinstance(result, Evaluated) else result
            if accepted is not None:
                yield accepted

    def _do(self, job: Job) -> Result:
        if isinstance(job, SampleJob):
            return Sampled(job, tuple(self._generator.sample([job.target], seed=job.seed)))
        if isinstance(job, LearnJob):
            return Learned(job, self._generator.learn(list(job.crystals), seed=job.seed, folder=job.folder))
        return Evaluated(job, evaluate_jobs(self._plugins[job.role], self._oracles[job.role], [job])[0])

    @property
    def costs(self) -> list[Cost]:
        """Nothing runs while somebody asks."""
        return []

    def cancel(self) -> list[Cost]:
        """Drop queued work."""
        self._scheduler.clear()
        return []


def _end_of(config: CampaignConfig) -> float:
    """Return when all machines will be gone, on the monotonic clock."""
    ends_at = config.executor.ends_at
    return math.inf if ends_at is None else time.monotonic() + ends_at.timestamp() - time.time()


# In Ray workers -------------------------------------------------------------------------------------------------------


class _GeneratorWorker:
    """Holds the generator."""

    def __init__(self, plugin: PluginSpec) -> None:
        self._generator = plugin.create()

    def checkpoint(self) -> Checkpoint | None:
        checkpoint: Checkpoint | None = self._generator.checkpoint
        return checkpoint

    def load(self, checkpoint: Checkpoint) -> None:
        self._generator.load(checkpoint)

    def sample(self, target: Target, seed: int) -> tuple[Sample, ...]:
        return tuple(self._generator.sample([target], seed=seed))

    def learn(self, crystals: Sequence[LabelledCrystal], seed: int, folder: Path) -> Checkpoint | None:
        checkpoint: Checkpoint | None = self._generator.learn(crystals, seed=seed, folder=folder)
        return checkpoint


class _OracleWorker:
    """Holds the screening oracle."""

    def __init__(self, plugin: PluginSpec) -> None:
        self._plugin = plugin
        self._oracle = plugin.create()

    def energy_scale(self) -> EnergyScale:
        scale: EnergyScale = self._oracle.energy_scale
        return scale

    def evaluate(self, jobs: Sequence[EvaluationJob]) -> list[Evaluation]:
        return evaluate_jobs(self._plugin, self._oracle, jobs)


@lru_cache(maxsize=1)
def _cached_worker(plugin: PluginSpec) -> _OracleWorker:
    """Keep the oracle from one task to the next in the same worker process."""
    return _OracleWorker(plugin)


def _reference_scale(plugin: PluginSpec) -> EnergyScale:
    return _cached_worker(plugin).energy_scale()


def _reference_task(plugin: PluginSpec, jobs: Sequence[EvaluationJob]) -> list[Evaluation]:
    return _cached_worker(plugin).evaluate(jobs)


class RayExecutor(_Queue):
    """Spreads the work over Ray workers.

    One actor holds the generator, ``screening_workers`` actors hold the screening oracle and take batches sized by
    atoms, and each reference calculation is a task that holds ``reference_cores`` CPUs. Actors hold no CPU in Ray's
    books unless told otherwise, because they idle while reference calculations run; GPUs that nobody asked for are
    shared evenly among them. What waits, waits in the driver: no more is handed to Ray than workers can take at once.

    A node started with ``ray start --labels=ends_at=SECONDS`` (since the epoch) gets no reference calculation that
    could outlast it.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self._settings = settings = config.executor
        self._plugins = {
            "generator": PluginSpec.of(config.generator),
            "screening": PluginSpec.of(config.oracle.screening),
            "reference": PluginSpec.of(config.oracle.reference),
        }
        pools: dict[Stage, Pool] = {
            "generator": Pool(),
            "screening": Pool(
                settings.screening_workers, settings.screening_batch_atoms, settings.screening_max_seconds
            ),
            "reference": Pool(settings.reference_workers, None, settings.reference_max_seconds),
        }
        super().__init__(Scheduler(pools, max_lost=settings.max_lost, max_failed=settings.max_failed))
        self._running: dict[Any, Task[Job]] = {}
        self._ending: dict[Any, float] = {}
        self._end = _end_of(config)
        self._nodes: dict[str, float] = {}
        self._nodes_asked = -math.inf
        self._loaded: Checkpoint | None = None
        self._generator: Any
        self._actors: list[Any]

    def __enter__(self) -> Self:
        settings = self._settings
        if settings.address is None:
            for variable, value in {**THREADS, **LOCAL_RAY}.items():
                os.environ.setdefault(variable, value)
        import ray

        needed = max(settings.reference_cores * settings.reference_workers, settings.screening_workers)
        here = len(os.sched_getaffinity(0))
        where: dict[str, Any] = {"address": settings.address, "runtime_env": {"env_vars": THREADS}}
        if settings.address is None:
            _require_cpus(needed, here)
            where = {
                "address": "local",  # never a cluster that somebody else has started here
                "num_cpus": here,
                "include_dashboard": False,
                "object_store_memory": 200 * 2**20,
                "resources": _custom_resources(settings),
            }
        try:
            ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, OSError) as error:
            raise RunError(
                f"Ray cannot be started or reached (address {settings.address or 'of this machine'}): {error}; "
                "check executor.address, or use executor.name=in_process"
            ) from error
        resources = ray.cluster_resources()
        if settings.address is not None:
            _require_cpus(needed, int(resources.get("CPU", 0)))
        _require_resources(settings, resources)
        share = min(1.0, resources.get("GPU", 0.0) / (1 + settings.screening_workers))
        self._gpus = {
            "screening": share if settings.screening_gpus is None else settings.screening_gpus,
            "reference": settings.reference_gpus,
        }
        self._cores = {"screening": max(1, settings.screening_cores), "reference": settings.reference_cores}
        self._generator_class = ray.remote(
            num_cpus=settings.generator_cores,
            num_gpus=share if settings.generator_gpus is None else settings.generator_gpus,
            resources=settings.generator_resources,
            scheduling_strategy="SPREAD",
        )(_GeneratorWorker)
        self._screening_class = ray.remote(
            num_cpus=settings.screening_cores,
            num_gpus=self._gpus["screening"],
            resources=settings.screening_resources,
            scheduling_strategy="SPREAD",
        )(_OracleWorker)
        task = ray.remote(
            num_cpus=settings.reference_cores,
            num_gpus=settings.reference_gpus,
            resources=settings.reference_resources,
            max_retries=0,
        )
        self._reference_function = task(_reference_task)
        reference_scale = task(_reference_scale)
        self._start_generator()
        self._actors = [self._start_screening() for _ in range(settings.screening_workers)]
        self._scales = {
            "screening": self._actors[0].energy_scale.remote(),
            "reference": reference_scale.remote(self._plugins["reference"]),
        }
        return self

    def __exit__(self, *exc: object) -> None:
        import ray

        self.cancel()
        ray.shutdown()

    def _start_generator(self) -> None:
        self._generator = self._generator_class.remote(self._plugins["generator"])
        if self._loaded is not None:
            self._get(self._generator.load.remote(self._loaded))

    def _start_screening(self) -> Any:
        return self._screening_class.remote(self._plugins["screening"])

    def _get(self, reference: Any) -> Any:
        """Wait for a result; an error of ours raised in the worker is raised here as it was."""
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DiscoveryError):
                raise error.cause from error
            raise
        except ray.exceptions.ActorDiedError as error:
            raise MissingDependencyError(f"a worker could not be started: {_explain(error)}") from error

    def energy_scale(self, role: Role) -> EnergyScale:
        """Return the energy scale of a role's oracle."""
        scale: EnergyScale = self._get(self._scales[role])
        return scale

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The generator's weights in use."""
        checkpoint: Checkpoint | None = self._get(self._generator.checkpoint.remote())
        return checkpoint

    def load(self, checkpoint: Checkpoint) -> None:
        """Make the generator use the weights of `checkpoint`."""
        self._get(self._generator.load.remote(checkpoint))
        self._loaded = checkpoint

    def results(self) -> Iterator[Result | None]:
        """Hand out work as workers become free, and yield results as they arrive."""
        import ray

        while True:
            self._hand_out()
            if not self._running:
                return
            waited = list(self._running)
            done, _ = ray.wait(waited, num_returns=1, timeout=POLL_SECONDS)
            if done:
                done, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
            results = [result for reference in done for result in self._collect(reference)]
            results += self._end_late()
            self._hand_out()  # before the caller writes down what there is
            if not results:
                yield None
            yield from results

    def _hand_out(self) -> None:
        for task in self._scheduler.start(time.monotonic(), self._node_ends()):
            self._running[self._begin(task)] = task

    def _node_ends(self) -> dict[str, float]:
        """Return node → when it will be gone, on the monotonic clock; asks Ray now and then."""
        import ray

        now = time.monotonic()
        if now > self._nodes_asked + NODES_SECONDS:
            self._nodes_asked = now
            nodes = {node["NodeID"]: node.get("Labels", {}).get("ends_at") for node in ray.nodes() if node["Alive"]}
            known = nodes if any(nodes.values()) else {}
            self._nodes = {
                node: min(self._end, now + float(end) - time.time() if end else math.inf) for node, end in known.items()
            }
        return self._nodes or ({} if math.isinf(self._end) else {ALL_NODES: self._end})

    def _begin(self, task: Task[Job]) -> Any:
        first = task.jobs[0]
        if isinstance(first, SampleJob):
            return self._generator.sample.remote(first.target, first.seed)
        if isinstance(first, LearnJob):
            return self._generator.learn.remote(list(first.crystals), first.seed, first.folder.resolve())
        if task.stage == "screening":
            return self._actors[task.worker].evaluate.remote(_evaluations(task))
        function = self._reference_function
        if task.nodes is not None:
            function = function.options(label_selector={"ray.io/node-id": f"in({','.join(sorted(task.nodes))})"})
        return function.remote(self._plugins["reference"], _evaluations(task))

    def _collect(self, reference: Any) -> Iterator[Result]:
        """Yield the results of a task that has ended; one whose worker was lost is queued again."""
        import ray

        task = self._running.pop(reference)
        try:
            value = self._get(reference)
        except ray.exceptions.RayTaskError:
            raise
        except (ray.exceptions.RayError, MissingDependencyError) as error:
            yield from self._worker_lost(task, error)
            return
        self._scheduler.finish(task, time.monotonic())
        first = task.jobs[0]
        if isinstance(first, SampleJob):
            yield Sampled(first, value)
        elif isinstance(first, LearnJob):
            self._loaded = value if value is not None else self._loaded
            yield Learned(first, value)
        else:
            for job, evaluation in zip(_evaluations(task), value, strict=True):
                cores = max(evaluation.cores, self._cores[job.role])
                result = replace(evaluation, cores=cores, gpus=self._gpus[job.role])
                accepted = self._repetition.accept(Evaluated(job, result))
                if accepted is not None:
                    yield accepted

    def _worker_lost(self, task: Task[Job], error: Exception) -> Iterator[Evaluated]:
        """Replace a lost worker and queue its work again; yield failures for work that was lost too often."""
        import ray

        given_up = self._scheduler.lose(task)
        times = self._settings.max_lost + 1
        if task.stage == "generator":
            if given_up:
                raise RunError(
                    f"the generator's worker was lost {times} times during {given_up[0].id}: {_explain(error)}; look "
                    "for the cause (often memory), then continue with `discovery resume`"
                ) from error
            self._start_generator()
        elif task.stage == "screening":
            self._actors[task.worker] = self._start_screening()
        memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        kind = FailureKind.OUT_OF_MEMORY if memory else FailureKind.LOST
        for job in given_up:
            if isinstance(job, EvaluationJob):
                yield self._failed(job, kind, f"the worker was lost {times} times: {_explain(error)}", 0.0)

    def _end_late(self) -> list[Evaluated]:
        """End what has taken longer than its time limit; what does not end when asked to is killed soon after."""
        import ray

        now = time.monotonic()
        for reference, deadline in list(self._ending.items()):
            if deadline < now:
                ray.cancel(reference, force=True)
                del self._ending[reference]
        late = set(self._scheduler.late(now))
        results = []
        for reference, task in list(self._running.items()):
            if task not in late:
                continue
            del self._running[reference]
            if task.stage == "screening":
                ray.kill(self._actors[task.worker])
                self._actors[task.worker] = self._start_screening()
            else:
                ray.cancel(reference, force=False)
                self._ending[reference] = now + CANCEL_SECONDS
            for job in self._scheduler.expire(task):
                if isinstance(job, EvaluationJob):
                    seconds = now - task.started
                    message = f"ended after {seconds:.0f} s; executor.{job.role}_max_seconds is its time limit"
                    accepted = self._repetition.accept(self._failed(job, FailureKind.TIMEOUT, message, seconds))
                    results += [accepted] if accepted is not None else []
        return results

    def _failed(self, job: EvaluationJob, kind: FailureKind, message: str, seconds: float) -> Evaluated:
        failure = Failure(kind, message, str(job.folder))
        return Evaluated(
            job,
            Evaluation(
                self.energy_scale(job.role),
                failure=failure,
                seconds=seconds,
                cores=self._cores[job.role],
                gpus=self._gpus[job.role],
            ),
        )

    @property
    def costs(self) -> list[Cost]:
        """What the running evaluations have cost so far."""
        now = time.monotonic()
        costs = []
        for task in self._scheduler.tasks:
            jobs = _evaluations(task)
            for job in jobs:
                hours = (now - task.started) / 3600.0 / len(jobs)
                costs.append(Cost(job, hours * self._cores[job.role], hours * self._gpus[job.role]))
        return costs

    def cancel(self) -> list[Cost]:
        """Drop queued work and interrupt what is running, so that external programs are ended by their oracle."""
        import ray

        costs = self.costs
        tasks = [reference for reference, task in self._running.items() if task.stage == "reference"]
        for reference in tasks:
            ray.cancel(reference, force=False)
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)
        self._running.clear()
        self._scheduler.clear()
        return costs


def _evaluations(task: Task[Job]) -> list[EvaluationJob]:
    return [job for job in task.jobs if isinstance(job, EvaluationJob)]


def _custom_resources(settings: ExecutorConfig) -> dict[str, float]:
    """Return what this machine offers, if it is alone: enough for all workers."""
    offered: dict[str, float] = defaultdict(float)
    for resources, workers in (
        (settings.generator_resources, 1),
        (settings.screening_resources, settings.screening_workers),
        (settings.reference_resources, settings.reference_workers),
    ):
        for name, amount in resources.items():
            offered[name] += amount * workers
    return dict(offered)


def _require_cpus(needed: int, available: int) -> None:
    if needed > available:
        raise ConfigError(
            f"executor: {needed} CPUs are asked for, {available} are there; lower executor.screening_workers, "
            "executor.reference_workers or executor.reference_cores"
        )


def _require_resources(settings: ExecutorConfig, available: Mapping[str, float]) -> None:
    """Refuse what no node could ever give; Ray would wait for it in silence."""
    for stage in ("generator", "screening", "reference"):
        wanted = {**getattr(settings, f"{stage}_resources"), "GPU": getattr(settings, f"{stage}_gpus") or 0.0}
        for name, amount in wanted.items():
            if amount > available.get(name, 0.0):
                raise ConfigError(
                    f"executor.{stage}_{'gpus' if name == 'GPU' else 'resources'}: {amount:g} of {name!r} are asked "
                    f"for, {available.get(name, 0.0):g} are there; start a node that has it (ray start --resources), "
                    "or ask for less"
                )


def _explain(error: Exception) -> str:
    """Return the last line of Ray's long messages that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
