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
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from discovery import plugins
from discovery.crystal import Crystal
from discovery.errors import ConfigError, DiscoveryError, MissingDependencyError, RunError
from discovery.files import write_atomically
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
    from discovery.config import CampaignConfig, PluginChoice

Role = Literal["screening", "reference"]
ROLES: tuple[Role, ...] = ("screening", "reference")

RESULT_FORMAT = "discovery.result/1"
BATCH_ATOMS = 48
"""Atoms in one batch for a screening worker; small, so that results are committed soon and little is lost with one."""
MAX_LOST = 3
"""How often work is repeated because its worker was lost, before that is recorded as the failure ``lost``."""
POLL_SECONDS = 1.0
"""How long to wait for a result before the caller gets a chance to look at the clock."""
CANCEL_SECONDS = 10.0
"""How long cancelled calculations get to end their external programs."""

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
    """One crystal for one oracle; `folder` receives ``result.json`` and whatever an external program writes."""

    id: str
    role: Role
    crystal: Crystal
    folder: Path


@dataclass(frozen=True)
class SampleJob:
    """One target for the generator."""

    id: str
    target: Target
    seed: int


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


class Executor(Protocol):
    """Runs samplings and evaluations; a context manager."""

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

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:
        """Train the generator; blocks until it is done."""
        ...

    def submit(self, job: SampleJob | EvaluationJob) -> None:
        """Queue work; more may be submitted while :meth:`results` is being read."""
        ...

    def results(self) -> Iterator[Sampled | Evaluated | None]:
        """Yield what is finished, in any order, until nothing is left; None now and then while there is nothing new."""
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

    def cancel(self) -> None:
        """Drop queued work and end what is running."""
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
        return list(oracle.evaluate([job.crystal for job in jobs], folder=folder))
    except Exception as error:
        if len(jobs) > 1:
            return [evaluation for job in jobs for evaluation in _evaluate(oracle, [job], job.folder)]
        failure = Failure(FailureKind.CRASHED, f"{type(error).__name__}: {error}", str(jobs[0].folder))
        return [Evaluation(oracle.energy_scale, failure=failure, seconds=time.perf_counter() - started)]


def read_result(plugin: PluginSpec, job: EvaluationJob) -> Evaluation | None:
    """Return the evaluation in the job's result file, if it is there and belongs to the same crystal and oracle."""
    try:
        data = json.loads((job.folder / "result.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if data.get("format") != RESULT_FORMAT or data.get("input") != _input_hash(plugin, job):
        return None
    return Evaluation.from_dict(data["evaluation"])


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


class InProcessExecutor:
    """Does one piece of work after the other, when its result is asked for."""

    def __init__(self, config: CampaignConfig) -> None:
        self._plugins = {
            "screening": PluginSpec.of(config.oracle.screening),
            "reference": PluginSpec.of(config.oracle.reference),
        }
        self._oracles = {role: plugin.create() for role, plugin in self._plugins.items()}
        self._generator = PluginSpec.of(config.generator).create()
        self._queue: deque[SampleJob | EvaluationJob] = deque()
        self._held = False

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

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:
        """Train the generator."""
        checkpoint: Checkpoint | None = self._generator.learn(crystals, seed=seed, folder=folder)
        return checkpoint

    def submit(self, job: SampleJob | EvaluationJob) -> None:
        """Queue work."""
        self._queue.append(job)

    def results(self) -> Iterator[Sampled | Evaluated | None]:
        """Do the queued work in order and yield each result."""
        while self._queue and not self._held:
            job = self._queue.popleft()
            if isinstance(job, SampleJob):
                yield Sampled(job, tuple(self._generator.sample([job.target], seed=job.seed)))
            else:
                yield Evaluated(job, evaluate_jobs(self._plugins[job.role], self._oracles[job.role], [job])[0])

    @property
    def waiting(self) -> int:
        """How much work is queued and not begun."""
        return len(self._queue)

    def hold(self) -> None:
        """Begin nothing from now on."""
        self._held = True

    def release(self) -> None:
        """End a :meth:`hold`."""
        self._held = False

    def cancel(self) -> None:
        """Drop queued work."""
        self._queue.clear()


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


@dataclass
class _Running:
    """Work in flight and the actor that does it; reference calculations are tasks and have none."""

    jobs: tuple[EvaluationJob, ...] | SampleJob
    actor: int | None = None


class RayExecutor:
    """Spreads the work over Ray workers.

    One actor holds the generator, ``screening_workers`` actors hold the screening oracle and take batches sized by
    atoms, and each reference calculation is a task that holds ``reference_cores`` CPUs. Actors hold no CPU in Ray's
    books, because they idle while reference calculations run; GPUs are shared evenly among them. What waits, waits in
    the driver: no more is handed to Ray than workers can take at once.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self._settings = config.executor
        self._plugins = {
            "generator": PluginSpec.of(config.generator),
            "screening": PluginSpec.of(config.oracle.screening),
            "reference": PluginSpec.of(config.oracle.reference),
        }
        self._samples: deque[SampleJob] = deque()
        self._screening: deque[EvaluationJob] = deque()
        self._reference: deque[EvaluationJob] = deque()
        self._running: dict[Any, _Running] = {}
        self._lost: dict[str, int] = {}
        self._loaded: Checkpoint | None = None
        self._held = False
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
            where = {"num_cpus": here, "include_dashboard": False, "object_store_memory": 200 * 2**20}
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
        gpus = min(1.0, resources.get("GPU", 0.0) / (1 + settings.screening_workers))
        actor = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        self._generator_class = ray.remote(**actor)(_GeneratorWorker)
        self._screening_class = ray.remote(**actor)(_OracleWorker)
        task = ray.remote(num_cpus=settings.reference_cores, max_retries=0)
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

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:
        """Train the generator; repeated if its worker is lost."""
        import ray

        for attempt in range(MAX_LOST + 1):
            try:
                checkpoint: Checkpoint | None = self._get(
                    self._generator.learn.remote(list(crystals), seed, folder.resolve())
                )
            except (ray.exceptions.RayActorError, MissingDependencyError):
                if attempt == MAX_LOST:
                    raise
                self._start_generator()
            else:
                if checkpoint is not None:
                    self._loaded = checkpoint
                return checkpoint
        return None

    def submit(self, job: SampleJob | EvaluationJob) -> None:
        """Queue work."""
        if isinstance(job, SampleJob):
            self._samples.append(job)
        elif job.role == "screening":
            self._screening.append(job)
        else:
            self._reference.append(job)

    def results(self) -> Iterator[Sampled | Evaluated | None]:
        """Hand out work as workers become free, and yield results as they arrive."""
        import ray

        settings = self._settings
        while True:
            self._hand_out()
            if not self._running:
                return
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
            if not done:
                yield None
            for reference in done:
                running = self._running.pop(reference)
                try:
                    value = self._get(reference)
                except ray.exceptions.RayTaskError:
                    raise
                except (ray.exceptions.RayError, MissingDependencyError) as error:
                    yield from self._worker_lost(running, error)
                    continue
                if isinstance(running.jobs, SampleJob):
                    yield Sampled(running.jobs, value)
                else:
                    for job, evaluation in zip(running.jobs, value, strict=True):
                        cores = settings.reference_cores if job.role == "reference" else evaluation.cores
                        yield Evaluated(job, replace(evaluation, cores=cores))

    def _hand_out(self) -> None:
        if self._held:
            return
        settings = self._settings
        busy = [running.actor for running in self._running.values()]
        if self._samples and not any(isinstance(running.jobs, SampleJob) for running in self._running.values()):
            sample = self._samples.popleft()
            self._running[self._generator.sample.remote(sample.target, sample.seed)] = _Running(sample)
        for index, actor in enumerate(self._actors):
            if self._screening and index not in busy:
                batch = self._next_batch()
                self._running[actor.evaluate.remote(batch)] = _Running(tuple(batch), index)
        calculations = sum(
            running.actor is None and not isinstance(running.jobs, SampleJob) for running in self._running.values()
        )
        while self._reference and calculations < settings.reference_workers:
            job = self._reference.popleft()
            reference = self._reference_function.remote(self._plugins["reference"], [job])
            self._running[reference] = _Running((job,))
            calculations += 1

    def _next_batch(self) -> list[EvaluationJob]:
        """Take a fair share of what waits, at most `BATCH_ATOMS` atoms; work that was lost before goes alone."""
        share = math.ceil(len(self._screening) / len(self._actors))
        batch = [self._screening.popleft()]
        atoms = len(batch[0].crystal)
        while self._screening and len(batch) < share and not self._lost.get(batch[0].id):
            atoms += len(self._screening[0].crystal)
            if atoms > BATCH_ATOMS or self._lost.get(self._screening[0].id):
                break
            batch.append(self._screening.popleft())
        return batch

    def _worker_lost(self, running: _Running, error: Exception) -> Iterator[Evaluated]:
        """Replace a lost worker and queue its work again, or give the work up after `MAX_LOST` repetitions."""
        import ray

        if isinstance(running.jobs, SampleJob):
            self._lost[running.jobs.id] = self._lost.get(running.jobs.id, 0) + 1
            if self._lost[running.jobs.id] > MAX_LOST:
                raise RunError(
                    f"the generator's worker was lost {MAX_LOST + 1} times while sampling {running.jobs.target.label}: "
                    f"{_explain(error)}; look for the cause (often memory), then continue with `discovery resume`"
                ) from error
            self._start_generator()
            self._samples.appendleft(running.jobs)
            return
        if running.actor is not None:
            self._actors[running.actor] = self._start_screening()
        queue = self._screening if running.actor is not None else self._reference
        memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        for job in reversed(running.jobs):
            self._lost[job.id] = self._lost.get(job.id, 0) + 1
            if self._lost[job.id] <= MAX_LOST:
                queue.appendleft(job)
                continue
            kind = FailureKind.OUT_OF_MEMORY if memory else FailureKind.LOST
            message = f"the worker was lost {MAX_LOST + 1} times: {_explain(error)}"
            yield Evaluated(
                job, Evaluation(self.energy_scale(job.role), failure=Failure(kind, message, str(job.folder)))
            )

    @property
    def waiting(self) -> int:
        """How much work is queued and not begun."""
        return len(self._samples) + len(self._screening) + len(self._reference)

    def hold(self) -> None:
        """Begin nothing from now on; :meth:`results` ends once what runs is finished."""
        self._held = True

    def release(self) -> None:
        """End a :meth:`hold`."""
        self._held = False

    def cancel(self) -> None:
        """Drop queued work and interrupt what is running, so that external programs are ended by their oracle."""
        import ray

        for queue in (self._samples, self._screening, self._reference):
            queue.clear()
        tasks = [reference for reference, running in self._running.items() if running.actor is None]
        tasks = [reference for reference in tasks if not isinstance(self._running[reference].jobs, SampleJob)]
        for reference in tasks:
            ray.cancel(reference, force=False)
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)
        self._running.clear()


def _require_cpus(needed: int, available: int) -> None:
    if needed > available:
        raise ConfigError(
            f"executor: {needed} CPUs are asked for, {available} are there; lower executor.screening_workers, "
            "executor.reference_workers or executor.reference_cores"
        )


def _explain(error: Exception) -> str:
    """Return the last line of Ray's long messages that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
