"""The scheduling core: pools, batches, time limits, tries, nodes that end, and when the agent is asked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from discovery.scheduler import Decision, Flow, Pool, Scheduler, Stage, Task


@dataclass(frozen=True)
class Job:
    id: str


def scheduler(workers: int = 2, **options: float) -> Scheduler[Job]:
    pools: dict[Stage, Pool] = {
        "screening": Pool(workers, batch_size=10, max_seconds=5),
        "reference": Pool(workers, max_seconds=100),
    }
    return Scheduler(pools, **options)  # type: ignore[arg-type]


def submit(core: Scheduler[Job], stage: Stage, n: int, size: float = 3) -> None:
    for index in range(n):
        core.submit(stage, Job(f"{stage[0]}{index}"), size=size)


def ids(task: Task[Job]) -> list[str]:
    return [job.id for job in task.jobs]


def test_no_stage_has_more_tasks_than_workers_and_a_free_worker_gets_the_next() -> None:
    core = scheduler()
    submit(core, "reference", 5)
    first, second = core.start(0)
    assert (ids(first), ids(second)) == (["r0"], ["r1"])
    assert {first.worker, second.worker} == {0, 1}
    assert not list(core.start(1))
    core.finish(second, 2)
    (third,) = core.start(2)
    assert (ids(third), third.worker) == (["r2"], second.worker)
    assert (core.waiting("reference"), core.running("reference")) == (2, 2)


def test_batches_are_fair_shares_limited_by_size() -> None:
    core = scheduler()
    submit(core, "screening", 4)
    assert [ids(task) for task in core.start(0)] == [["s0", "s1"], ["s2"]]
    core = scheduler()
    submit(core, "screening", 100)
    assert [ids(task) for task in core.start(0)] == [["s0", "s1", "s2"], ["s3", "s4", "s5"]]
    core = scheduler()
    submit(core, "screening", 9, size=1000)
    assert [ids(task) for task in core.start(0)] == [["s0"], ["s1"]]


def test_what_is_nearest_to_its_end_goes_first() -> None:
    core = scheduler(max_tasks=1)
    for stage in ("generator", "screening", "reference"):
        submit(core, stage, 1)
    stages = []
    while tasks := list(core.start(0)):
        assert len(tasks) == 1
        stages.append(tasks[0].stage)
        core.finish(tasks[0], 1)
    assert stages == ["reference", "screening", "generator"]


def test_an_answer_that_comes_twice_frees_no_second_worker() -> None:
    core = scheduler(workers=1)
    submit(core, "reference", 3)
    (task,) = core.start(0)
    assert core.finish(task, 1)
    assert not core.finish(task, 1)
    assert len(list(core.start(1))) == 1
    assert not core.finish(task, 2)
    assert core.running("reference") == 1
    assert core.lose(task) == []


def test_lost_work_is_repeated_alone_and_first_until_its_tries_are_spent() -> None:
    core = scheduler(workers=1, max_lost=2)
    submit(core, "screening", 5)
    (task,) = core.start(0)
    assert ids(task) == ["s0", "s1", "s2"]
    assert core.lose(task) == []
    for _ in range(2):
        (task,) = core.start(0)
        assert ids(task) == ["s0"]
        given_up = core.lose(task)
    assert [job.id for job in given_up] == ["s0"]
    order = []
    while tasks := list(core.start(1)):
        order.append(ids(tasks[0]))
        core.finish(tasks[0], 2)
    assert order == [["s1"], ["s2"], ["s3", "s4"]]


def test_failed_and_lost_tries_are_counted_apart() -> None:
    core = scheduler(workers=1, max_lost=1, max_failed=1)
    core.submit("reference", Job("a"))
    (task,) = core.start(0)
    assert core.lose(task) == []
    (task,) = core.start(0)
    core.finish(task, 1)
    assert core.retry("reference", Job("a"))
    (task,) = core.start(1)
    assert core.lose(task) == [], "a try lost later has a budget of its own"
    (task,) = core.start(1)
    core.finish(task, 2)
    assert not core.retry("reference", Job("a"))
    assert core.waiting() == 0


def test_a_late_batch_is_taken_apart_and_a_late_job_given_up() -> None:
    core = scheduler(workers=1)
    submit(core, "screening", 2)
    (task,) = core.start(0)
    assert core.late(9.9) == []
    assert core.late(10.1) == [task], "two jobs have twice the time"
    assert core.expire(task) == []
    (task,) = core.start(11)
    assert ids(task) == ["s0"]
    assert core.late(16.1) == [task]
    assert [job.id for job in core.expire(task)] == ["s0"]
    assert not core.finish(task, 17), "an answer after the time limit counts no more"
    assert [ids(task) for task in core.start(17)] == [["s1"]]


def test_nothing_begins_that_would_outlast_its_node() -> None:
    core = scheduler()
    submit(core, "reference", 4)
    (first,) = [task for task in core.start(0, {"short": 50, "long": 150}) if task.jobs[0].id == "r0"]
    assert first.nodes == {"long"}
    core.finish(first, 10)
    (third,) = core.start(10, {"short": 200, "long": 150})
    assert third.nodes is None
    core.finish(third, 60)
    assert list(core.start(60, {"short": 150, "long": 150})) == []
    assert core.waiting("reference") == 1


def test_without_a_time_limit_the_longest_so_far_is_what_a_calculation_needs() -> None:
    core: Scheduler[Job] = Scheduler({"reference": Pool(1)})
    submit(core, "reference", 3)
    (task,) = core.start(0, {"node": 10})
    core.finish(task, 8)
    assert list(core.start(8, {"node": 15.9})) == []
    (task,) = core.start(8, {"node": 16.1})
    assert ids(task) == ["r1"]


def test_held_work_waits_and_cleared_work_is_gone() -> None:
    core = scheduler()
    submit(core, "reference", 4)
    running = list(core.start(0))
    core.hold()
    core.finish(running[0], 1)
    assert list(core.start(1)) == []
    core.release()
    assert len(list(core.start(1))) == 1
    core.clear()
    assert (core.waiting(), core.running()) == (0, 0)
    assert not core.finish(running[1], 2)


def drive(flow: Flow, per_target: int, wishes: float) -> list[Decision]:
    """Let a flow go to its end, each stage finishing one thing at a time; the agent wants a share of what it sees."""
    decisions = []
    pool = 0.0
    for _ in range(10_000):
        due = flow.due
        if due is Decision.END:
            return decisions
        if due is not None:
            decisions.append(due)
        assert flow.screening <= flow.proposal + per_target
        assert flow.reference <= 2 * flow.reference_workers
        if due is Decision.PROPOSE:
            flow.proposed(flow.proposal // per_target)
        elif due is Decision.SELECT:
            wanted = flow.wanted
            n = min(wanted, int(pool))
            pool -= n
            flow.selected(n, wanted)
        elif flow.reference:
            flow.computed()
        elif flow.screening:
            flow.screened(failed=False)
            pool += wishes
        else:
            flow.sampled(per_target)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("workers", [1, 3, 40])
@pytest.mark.parametrize("wishes", [0.0, 0.3, 1.0])
def test_a_stream_ends_with_all_proposals_made_and_nothing_wanted_left(workers: int, wishes: float) -> None:
    flow = Flow(workers, proposal=20, proposals_left=6)
    decisions = drive(flow, 4, wishes)
    assert decisions.count(Decision.PROPOSE) == 6
    assert (flow.sampling, flow.screening, flow.reference) == (0, 0, 0)


def test_no_new_targets_while_the_reference_oracle_is_the_bottleneck() -> None:
    flow = Flow(2, proposal=10, proposals_left=100)
    flow.proposed(1)
    flow.sampled(10)
    for _ in range(10):
        flow.screened(failed=False)
    assert flow.due is Decision.SELECT
    flow.selected(4, 4)
    assert flow.due is None, "the agent would have selected more of what there is"
    flow.computed()
    assert flow.due is Decision.SELECT
    flow.selected(0, 1)
    assert flow.due is Decision.PROPOSE
    flow.proposed(1)
    flow.sampled(10)
    for _ in range(10):
        flow.screened(failed=False)
    flow.reference += 1
    assert flow.due is None, "the reference workers have enough, and enough waits to be selected"
    flow.computed()
    assert flow.due is Decision.SELECT


def test_an_empty_proposal_is_the_last_one() -> None:
    flow = Flow(1, proposal=4, proposals_left=5)
    flow.proposed(0)
    assert flow.due is Decision.END
