"""The store: only legal arrows, counts that add up, and writing twice changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from discovery.crystal import Crystal
from discovery.errors import RunError
from discovery.hull import Hull, Phase
from discovery.store import TRANSITIONS, IllegalTransitionError, ReferenceRecord, Store, TargetRecord
from discovery.store.store import sqlite_url
from discovery.store.tables import Base
from discovery.types import (
    Checkpoint,
    EnergyScale,
    Evaluation,
    Failure,
    FailureKind,
    Sample,
    State,
    Target,
)

CU = Crystal(3.61 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]), np.zeros((1, 3)), np.array([29]))
SCALE = EnergyScale("emt", "1", "EMT")
DONE = Evaluation(SCALE, CU, energy=-0.25, forces=np.zeros((1, 3)), converged=True, seconds=7.2, corrections={"c": 0.1})
CRASHED = Evaluation(SCALE, failure=Failure(FailureKind.CRASHED, "exit code 139", "calculations/x"), seconds=3.6)
RECORD = TargetRecord("r00-t000", 0, 5, Target(n_samples=3, composition={"Cu": 1}, reason="because"))
N_SAMPLES = 3


def new_store(folder: Path) -> Store:
    store = Store.create(sqlite_url(folder / "campaign.sqlite"), name="n", seed=1, config={"a": 1}, config_hash="h")
    store.start_session()
    for role in ("screening", "reference"):
        store.set_energy_scale(role, SCALE)
        hull = Hull(SCALE).add([Phase("element-Cu", {"Cu": 1}, -0.2, SCALE)])
        store.add_phases(role, hull, hull.phases, None)
    store.add_targets([RECORD], 0)
    samples = [Sample(0, CU), Sample(0, CU), Sample(0, None, Failure(FailureKind.INVALID_INPUT, "no such cell"))]
    store.add_samples(RECORD, samples, "abc")
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def grown(store: Store, candidate_id: str) -> list[tuple[str, Hull, Phase]]:
    phase = Phase(candidate_id, {"Cu": 1}, -0.25, SCALE, CU, "discovered")
    return [(role, store.hull(role).add([phase]), phase) for role in ("screening", "reference")]


def take(store: Store, candidate_id: str, state: State, round: int) -> None:
    """Take one arrow as the campaign takes it."""
    if state is State.ADMITTED:
        store.admit(candidate_id)
    elif state is State.REJECTED:
        store.reject(candidate_id, "duplicate of x")
    elif state is State.PASSED_OVER:
        store.pass_over(candidate_id, "not selected: over")
    elif state is State.SELECTED:
        store.select([(candidate_id, "best")], {"reference_calls": 1.0, "core_hours": 0.5}, round)
    elif state in (State.SCREENED, State.FAILED) and current(store, candidate_id) is not State.SELECTED:
        evaluation = DONE if state is State.SCREENED else CRASHED
        store.screen(candidate_id, evaluation, formation_energy_per_atom=0.0, decomposition_energy=0.0, hull_version=1)
    elif state in (State.COMPUTED, State.FAILED):
        store.compute(candidate_id, DONE if state is State.COMPUTED else CRASHED)
    elif state is State.JUDGED:
        entries = grown(store, candidate_id)
        store.judge(candidate_id, entries[1][1].judge(candidate_id, 0.0, 0.1), entries, 0)
    elif state is State.LEARNED:
        store.learn(round, Checkpoint("weights", "f" * 64, trained_on=(candidate_id,)), [candidate_id], 1.0)
    else:
        raise AssertionError(state)


def current(store: Store, candidate_id: str) -> State:
    return store.transitions(candidate_id)[-1][2]


def add_up(funnel: dict[str, int]) -> int:
    return sum(funnel[state] for state in ("rejected", "failed", "passed_over", "judged", "in_flight"))


arrows = st.lists(
    st.tuples(st.integers(0, N_SAMPLES - 2), st.sampled_from([s for s in State if s is not State.SAMPLED])),
    max_size=14,
)


@given(arrows)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_only_legal_arrows_are_taken_and_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, State]]
) -> None:
    store = new_store(tmp_path_factory.mktemp("store"))
    for round, (index, state) in enumerate(steps):
        candidate_id = f"r00-t000-s{index:02d}"
        before = current(store, candidate_id)
        reached = {to for _, _, to, _ in store.transitions(candidate_id)}
        legal = state in TRANSITIONS[before]
        if legal or state in reached:
            take(store, candidate_id, state, round)
            assert current(store, candidate_id) is (state if legal else before)
        else:
            with pytest.raises(IllegalTransitionError):
                take(store, candidate_id, state, round)
            assert current(store, candidate_id) is before
        funnel = store.funnel()
        assert funnel["sampled"] == N_SAMPLES == add_up(funnel)
        reserved = store.budget({}).reserved.get("reference_calls", 0.0)
        assert reserved == sum(candidate.state is State.SELECTED for candidate in store.candidates())
    store.close()


def test_the_state_machine_has_no_way_back() -> None:
    def reachable(state: State) -> set[State]:
        following = set(TRANSITIONS[state])
        return following.union(*(reachable(after) for after in following))

    for state in State:
        assert state not in reachable(state)


WAY = (State.ADMITTED, State.SCREENED, State.SELECTED, State.COMPUTED, State.JUDGED, State.LEARNED)


def test_writing_every_step_twice_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    once, twice = new_store(tmp_path / "once"), new_store(tmp_path / "twice")
    for state in WAY:
        take(once, "r00-t000-s00", state, 0)
        entries = grown(twice, "r00-t000-s00") if state is State.JUDGED else []
        take(twice, "r00-t000-s00", state, 0)
        if state is State.JUDGED:
            twice.judge("r00-t000-s00", entries[1][1].judge("r00-t000-s00", 0.0, 0.1), entries, 0)
        else:
            take(twice, "r00-t000-s00", state, 0)
    twice.add_targets([RECORD], 0)
    twice.add_samples(RECORD, [Sample(0, CU)] * N_SAMPLES, "abc")
    assert once.transitions() == twice.transitions()
    for mine, other in zip(once.candidates(), twice.candidates(), strict=True):
        assert (mine.id, mine.state, mine.crystal, mine.verdict) == (
            other.id,
            other.state,
            other.crystal,
            other.verdict,
        )
    assert once.hull("reference") == twice.hull("reference")
    assert once.hull("reference").version == 2
    assert [v.added for v in once.hull_versions("screening")] == [v.added for v in twice.hull_versions("screening")]
    assert once.costs() == twice.costs()
    spent_once, spent_twice = once.budget({}).spent, twice.budget({}).spent
    assert spent_once["reference_calls"] == spent_twice["reference_calls"] == 1
    assert spent_once["core_hours"] == spent_twice["core_hours"] == pytest.approx(2 * 7.2 / 3600)
    assert len(twice.checkpoints()) == 1


def test_a_candidate_comes_back_as_it_was_written(store: Store) -> None:
    for state in WAY[:-1]:
        take(store, "r00-t000-s00", state, 0)
    candidate = store.candidates({State.JUDGED})[0]
    assert candidate.crystal == CU
    assert candidate.target == RECORD.target
    assert candidate.reference is not None
    assert candidate.reference.to_dict() == DONE.to_dict()
    assert candidate.verdict is not None
    assert candidate.verdict.hull_version == 2
    assert candidate.verdict.decomposition_energy == pytest.approx(-0.05)


def test_a_failed_transaction_leaves_nothing_behind(store: Store) -> None:
    store.admit("r00-t000-s00")
    before = store.budget({}).spent["core_hours"]
    entries = grown(store, "r00-t000-s00")
    with pytest.raises(IllegalTransitionError):
        store.judge("r00-t000-s00", entries[1][1].judge("r00-t000-s00", 0.0, 0.1), entries, 0)
    with pytest.raises(IllegalTransitionError):
        store.compute("r00-t000-s00", DONE)
    assert store.hull("reference").version == 1
    assert store.budget({}).spent["core_hours"] == before
    assert current(store, "r00-t000-s00") is State.ADMITTED


def test_failures_are_counted_by_kind_and_keep_their_cause(store: Store) -> None:
    store.admit("r00-t000-s00")
    take(store, "r00-t000-s00", State.FAILED, 0)
    assert store.failures() == {"crashed": 1}
    assert store.losses()[State.FAILED] == {"screening crashed": 1}
    assert "exit code 139" in store.transitions("r00-t000-s00")[-1][3]


def test_reference_phases_are_stored_once(store: Store) -> None:
    store.add_references([ReferenceRecord("a", CU, "elements", {})])
    store.add_references([ReferenceRecord("b", CU, "elements", {})])
    assert [reference.id for reference in store.references()] == ["a"]


def test_an_energy_scale_cannot_change_within_a_campaign(store: Store) -> None:
    with pytest.raises(RunError, match="launch a new campaign"):
        store.set_energy_scale("reference", EnergyScale("emt", "2", "EMT"))


def test_migrations_make_the_schema_of_the_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_run_folder_of_another_version_is_refused(store: Store, tmp_path: Path) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    path = tmp_path / "campaign.sqlite"
    for attempt in (lambda: Store.open(sqlite_url(path)), lambda: Store.read(path)):
        with pytest.raises(RunError, match="run folder of another version"):
            attempt()


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        Store.read(tmp_path / "campaign.sqlite")
    (tmp_path / "campaign.sqlite").write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(RunError, match=r"campaign\.sqlite"):
        Store.read(tmp_path / "campaign.sqlite")


def test_reading_needs_no_driver_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    reader = Store.read(tmp_path / "campaign.sqlite")
    assert reader.funnel()["sampled"] == N_SAMPLES
    with pytest.raises(RunError):
        reader.set_state("finished")
    store.admit("r00-t000-s00")
    assert reader.funnel()["admitted"] == 1
