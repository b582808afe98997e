"""The scheduling core: what begins next, and what is decided next.

Events in, actions out. It knows no Ray, no clock, no files and no crystals, so that the executor of one process, the
executor on Ray and the simulations in ``benchmarks/`` all drive this very code. Times are seconds on any clock that
does not run backwards.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, Literal, Protocol, TypeVar

Stage = Literal["generator", "screening", "reference"]

STAGES: tuple[Stage, ...] = ("reference", "screening", "generator")
"""In the order in which they get work: what is nearest to its end goes first."""


class Identified(Protocol):
    """A piece of work."""

    @property
    def id(self) -> str:
        """Name of what it is for; the same when it is repeated."""
        ...


JobType = TypeVar("JobType", bound=Identified)


@dataclass(frozen=True)
class Pool:
    """The workers of one stage.

    Parameters
    ----------
    workers
        How many work at the same time.
    batch_size
        A worker takes several jobs up to this size together; one job at a time if None.
    max_seconds
        Time limit of a job; a batch gets that of its jobs together. None for none.
    """

    workers: int = 1
    batch_size: float | None = None
    max_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Task(Generic[JobType]):
    """What one worker does at a time.

    Parameters
    ----------
    stage
        Whose worker it takes.
    jobs
        What is done, one after the other.
    worker
        Which of the stage's workers does it, from 0.
    started
        When it was handed out.
    nodes
        The nodes on which it can end in time; None if any will do.
    """

    stage: Stage
    jobs: tuple[JobType, ...]
    worker: int
    started: float
    nodes: frozenset[str] | None = None


@dataclass
class _Stage(Generic[JobType]):
    pool: Pool
    waiting: deque[tuple[JobType, float]] = field(default_factory=deque)
    free: list[int] = field(default_factory=list)
    running: dict[int, Task[JobType]] = field(default_factory=dict)
    longest: float = 0.0

    def __post_init__(self) -> None:
        self.free = list(range(self.pool.workers))[::-1]


class Scheduler(Generic[JobType]):
    """Hands out queued jobs to workers, and gives lost or failed ones another try while their budget lasts.

    Parameters
    ----------
    pools
        The workers of each stage.
    max_lost
        How often a job is repeated because its worker was lost.
    max_failed
        How often a job is repeated because its calculation failed for a reason that may not come again.
    max_tasks
        Tasks at the same time, of all stages together.
    """

    def __init__(
        self, pools: Mapping[Stage, Pool], *, max_lost: int = 3, max_failed: int = 0, max_tasks: float = math.inf
    ) -> None:
        self._stages: dict[Stage, _Stage[JobType]] = {stage: _Stage(pools.get(stage, Pool())) for stage in STAGES}
        self._max_lost = max_lost
        self._max_failed = max_failed
        self._max_tasks = max_tasks
        self._lost: dict[tuple[Stage, str], int] = defaultdict(int)
        self._failed: dict[tuple[Stage, str], int] = defaultdict(int)
        self._alone: set[tuple[Stage, str]] = set()
        self._held = False

    def submit(self, stage: Stage, job: JobType, *, size: float = 1.0, first: bool = False) -> None:
        """Queue a job; `first` puts it before what waits already."""
        waiting = self._stages[stage].waiting
        (waiting.appendleft if first else waiting.append)((job, size))

    def start(self, now: float, ends: Mapping[str, float] | None = None) -> Iterator[Task[JobType]]:
        """Yield the tasks that begin now.

        Parameters
        ----------
        now
            The time.
        ends
            Node → when it will be gone. A reference calculation begins only where it can end before: within its time
            limit or, without one, within the longest time that one has taken so far. Without nodes, or for nodes that
            are not named, no end is known.
        """
        for stage in STAGES:
            state = self._stages[stage]
            while state.waiting and state.free and not self._held and self.running() < self._max_tasks:
                nodes = self._nodes(state, now, ends) if stage == "reference" and ends else None
                if nodes is not None and not nodes:
                    break
                jobs = tuple(self._batch(stage, state))
                task = Task(stage, jobs, state.free.pop(), now, nodes)
                state.running[task.worker] = task
                yield task

    def _nodes(self, state: _Stage[JobType], now: float, ends: Mapping[str, float]) -> frozenset[str] | None:
        needed = self._needed(state)
        long_enough = frozenset(node for node, end in ends.items() if end - now >= needed)
        return None if len(long_enough) == len(ends) else long_enough

    @staticmethod
    def _needed(state: _Stage[JobType]) -> float:
        return state.pool.max_seconds if state.pool.max_seconds is not None else state.longest

    def _batch(self, stage: Stage, state: _Stage[JobType]) -> Iterator[JobType]:
        """Take a fair share of what waits, up to the size of a batch; what was lost or late before goes alone."""
        share = math.ceil(len(state.waiting) / state.pool.workers)
        job, total = state.waiting.popleft()
        yield job
        limit = state.pool.batch_size
        if limit is None or (stage, job.id) in self._alone:
            return
        for _ in range(share - 1):
            job, size = state.waiting[0]
            total += size
            if total > limit or (stage, job.id) in self._alone:
                return
            state.waiting.popleft()
            yield job

    def finish(self, task: Task[JobType], now: float) -> bool:
        """Free the worker of a task; False if it was freed before, for an answer that comes twice."""
        if not self._free(task):
            return False
        state = self._stages[task.stage]
        state.longest = max(state.longest, now - task.started)
        for job in task.jobs:
            self._lost.pop((task.stage, job.id), None)
            self._alone.discard((task.stage, job.id))
        return True

    def lose(self, task: Task[JobType]) -> list[JobType]:
        """Queue a task's jobs again, each alone, because its worker was lost; return those whose tries are used up."""
        state = self._stages[task.stage]
        if not self._free(task):
            return []
        spent: list[JobType] = []
        for job in reversed(task.jobs):
            key = (task.stage, job.id)
            self._lost[key] += 1
            self._alone.add(key)
            if self._lost[key] > self._max_lost:
                spent.insert(0, job)
            else:
                state.waiting.appendleft((job, 1.0))
        return spent

    def expire(self, task: Task[JobType]) -> list[JobType]:
        """Free the worker of a task that is late; return the job that was, or queue each job of a batch alone."""
        state = self._stages[task.stage]
        if not self._free(task):
            return []
        if len(task.jobs) == 1:
            return list(task.jobs)
        for job in reversed(task.jobs):
            self._alone.add((task.stage, job.id))
            state.waiting.appendleft((job, 1.0))
        return []

    def retry(self, stage: Stage, job: JobType) -> bool:
        """Queue a job whose calculation has failed once more; False if its tries are used up."""
        key = (stage, job.id)
        self._failed[key] += 1
        if self._failed[key] > self._max_failed:
            del self._failed[key]
            return False
        self._alone.add(key)
        self._stages[stage].waiting.append((job, 1.0))
        return True

    def late(self, now: float) -> list[Task[JobType]]:
        """Return the running tasks whose time limit is over."""
        return [
            task
            for task in self.tasks
            if (limit := self._stages[task.stage].pool.max_seconds) is not None
            and now - task.started > limit * len(task.jobs)
        ]

    def _free(self, task: Task[JobType]) -> bool:
        state = self._stages[task.stage]
        if state.running.get(task.worker) is not task:
            return False
        del state.running[task.worker]
        state.free.append(task.worker)
        return True

    @property
    def tasks(self) -> list[Task[JobType]]:
        """What is running."""
        return [task for state in self._stages.values() for task in state.running.values()]

    def waiting(self, stage: Stage | None = None) -> int:
        """Return how many jobs are queued, of one stage or of all."""
        return sum(len(self._stages[each].waiting) for each in (STAGES if stage is None else (stage,)))

    def running(self, stage: Stage | None = None) -> int:
        """Return how many tasks are running, of one stage or of all."""
        return sum(len(self._stages[each].running) for each in (STAGES if stage is None else (stage,)))

    def hold(self) -> None:
        """Begin nothing from now on."""
        self._held = True

    def release(self) -> None:
        """End a :meth:`hold`."""
        self._held = False

    def clear(self) -> None:
        """Forget what is queued and what is running."""
        for state in self._stages.values():
            state.waiting.clear()
            for task in list(state.running.values()):
                self._free(task)


# What to decide next --------------------------------------------------------------------------------------------------


class Decision(Enum):
    """What the agent is asked for next."""

    PROPOSE = auto()
    """New targets."""
    SELECT = auto()
    """Candidates for the reference oracle."""
    END = auto()
    """Nothing: all is done."""


@dataclass
class Flow:
    """Counts what is under way between the stages, and tells which decision is due in a streaming campaign.

    Back-pressure: new targets are asked for only while little waits to be screened and to be selected, and no more is
    selected than keeps the reference workers busy. The agent chooses from half a proposal's candidates at least, unless
    a reference worker would idle.

    Parameters
    ----------
    reference_workers
        Reference calculations at the same time.
    proposal
        Samples that one proposal brings.
    proposals_left
        How many proposals may still be asked for.
    """

    reference_workers: int
    proposal: int
    proposals_left: int
    sampling: int = 0
    """Targets that wait for the generator or are being sampled."""
    screening: int = 0
    """Candidates that wait for the screening oracle or are being screened."""
    fresh: int = 0
    """Candidates screened since the agent has selected."""
    reference: int = 0
    """Candidates that wait for the reference oracle or are being computed."""
    more: bool = False
    """Whether the agent would have selected more than it was allowed to."""
    closed: bool = False
    """Whether no more may be selected: a budget is used up by what is under way."""

    @property
    def wanted(self) -> int:
        """How many candidates a selection may choose: two for each reference worker are under way then."""
        return max(0, 2 * self.reference_workers - self.reference)

    @property
    def due(self) -> Decision | None:
        """The next decision, or None while it is better to wait for results."""
        upstream = self.sampling + self.screening
        if self._selection_is_due(upstream):
            return Decision.SELECT
        room = self.sampling == 0 and self.screening < self.proposal and self.fresh < self.proposal
        if self.proposals_left and room and not self.more and not self.closed:
            return Decision.PROPOSE
        if upstream + self.reference == 0:
            return Decision.END
        return None

    def _selection_is_due(self, upstream: int) -> bool:
        if self.closed or not self.wanted or not (self.fresh or self.more):
            return False
        starving = self.reference < self.reference_workers
        worthwhile = 2 * self.wanted >= self.reference_workers and (self.more or 2 * self.fresh >= self.proposal)
        return starving or worthwhile or (upstream == 0 and not self.proposals_left)

    def proposed(self, n_targets: int) -> None:
        """Take note of a proposal; an empty one is the last."""
        self.proposals_left = self.proposals_left - 1 if n_targets else 0
        self.sampling += n_targets

    def sampled(self, n_admitted: int) -> None:
        """Take note of one sampled target."""
        self.sampling -= 1
        self.screening += n_admitted

    def screened(self, *, failed: bool) -> None:
        """Take note of one screening result."""
        self.screening -= 1
        self.fresh += not failed

    def selected(self, n: int, wanted: int) -> None:
        """Take note of a selection of `n` where `wanted` were allowed."""
        self.reference += n
        self.fresh = 0
        self.more = 0 < wanted <= n

    def computed(self) -> None:
        """Take note of one reference result."""
        self.reference -= 1
