"""The store: only legal arrows, counts that add up, and writing twice changes nothing."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, func, select, text

from discovery.campaign import Campaign
from discovery.crystal import Crystal
from discovery.errors import RunError
from discovery.hull import Hull, Phase
from discovery.status import read_status
from discovery.store import TRANSITIONS, IllegalTransitionError, ReferenceRecord, Store, TargetRecord, sqlite_url
from discovery.store.tables import Base
from discovery.store.urls import parse_setting
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


Database = Callable[[], tuple[str, str]]


def new_store(database: Database) -> Store:
    url, name = database()
    store = Store.create(url, name=name, seed=2**32 - 1, config={"a": 1}, config_hash="h")
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
def store(database: Database) -> Iterator[Store]:
    store = new_store(database)
    yield store
    store.close()


def reader_of(store: Store) -> Store:
    return Store.read(store.engine.url.render_as_string(), store.name)


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


FIXTURES = [HealthCheck.function_scoped_fixture]  # each example asks its fixture for a new campaign
arrows = st.lists(
    st.tuples(st.integers(0, N_SAMPLES - 2), st.sampled_from([s for s in State if s is not State.SAMPLED])),
    max_size=14,
)


@given(arrows)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_only_legal_arrows_are_taken_and_counts_add_up(database: Database, steps: list[tuple[int, State]]) -> None:
    store = new_store(database)
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


def test_writing_every_step_twice_changes_nothing(database: Database) -> None:
    once, twice = new_store(database), new_store(database)
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


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "campaign.sqlite")
    store = Store.create(url, name="n", seed=1, config={}, config_hash="h")
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    for attempt in (lambda: Store.open(url), lambda: Store.read(tmp_path / "campaign.sqlite")):
        with pytest.raises(RunError, match="written by another version"):
            attempt()


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        Store.read(tmp_path / "campaign.sqlite")
    (tmp_path / "campaign.sqlite").write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(RunError, match=r"campaign\.sqlite"):
        Store.read(tmp_path / "campaign.sqlite")


def test_reading_needs_no_driver_and_changes_nothing(store: Store) -> None:
    reader = reader_of(store)
    assert reader.funnel()["sampled"] == N_SAMPLES
    with pytest.raises(RunError):
        reader.set_state("finished")
    store.admit("r00-t000-s00")
    assert reader.funnel()["admitted"] == 1
    reader.close()


# Several campaigns in one database ------------------------------------------------------------------------------------


def everything(store: Store) -> dict[str, Any]:
    """Return the answers of all methods that read."""
    campaign = store.campaign()
    return {
        "campaign": (campaign.name, campaign.seed, campaign.config, campaign.state),
        "steps": sorted(store.steps()),
        "scales": store.energy_scales(),
        "references": [reference.id for reference in store.references()],
        "evaluations": {role: sorted(store.evaluations(role)) for role in ("screening", "reference")},
        "hulls": {role: (store.hull(role), store.hull_versions(role)) for role in store.energy_scales()},
        "targets": store.targets(),
        "unsampled": store.unsampled_targets(),
        "candidates": [(c.id, c.state, c.screening is None, c.reference is None) for c in store.candidates()],
        "transitions": store.transitions(),
        "funnel": store.funnel(),
        "losses": store.losses(),
        "failures": store.failures(),
        "checkpoints": [record.id for record in store.checkpoints()],
        "spent": {kind: n for kind, n in store.budget({}).spent.items() if kind != "wall_hours"},
        "reserved": store.budget({}).reserved,
        "costs": store.costs(),
    }


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database for several campaigns."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "shared.sqlite")
    url: str = request.getfixturevalue("postgresql")
    return url


def test_campaigns_in_one_database_do_not_see_each_other(shared: str) -> None:
    names = iter([f"one-{os.getpid()}", f"other-{os.getpid()}"])
    one = new_store(lambda: (shared, next(names)))
    for state in WAY[:3]:
        take(one, "r00-t000-s00", state, 0)
    before = everything(one)
    other = new_store(lambda: (shared, next(names)))
    other.add_references([ReferenceRecord("a", CU, "elements", {})])
    other.add_initial_checkpoint(Checkpoint("weights", "a" * 64))
    for state in WAY:
        take(other, "r00-t000-s00", state, 0)
    other.admit("r00-t000-s01")
    take(other, "r00-t000-s01", State.FAILED, 0)
    assert everything(one) == before
    after = everything(other)
    for key in before:
        assert after[key] != before[key] or key in ("targets", "unsampled", "scales"), key

    listed = {campaign.name: campaign for campaign in Store.campaigns(shared)}
    assert {one.name, other.name} <= set(listed)
    assert listed[one.name].state == "running"
    with pytest.raises(RunError, match=f"several campaigns.*{one.name}"):
        Store.read(shared)
    with pytest.raises(RunError, match="no campaign 'nobody'"):
        Store.read(shared, "nobody")
    Store.create(shared, name="third", seed=1, config={}, config_hash="h").close()
    with pytest.raises(RunError, match="name=NAME"):
        Store.create(shared, name="third", seed=1, config={}, config_hash="h")

    other.remove()
    other.close()
    assert everything(one) == before
    with one.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            id_ = table.c.get("campaign_id", table.c.id if table.name == "campaign" else None)
            assert connection.scalar(select(func.count()).select_from(table).where(id_ == other.campaign_id)) == 0, (
                table
            )
    one.close()


# PostgreSQL -----------------------------------------------------------------------------------------------------------


def test_ids_sort_by_their_characters_whatever_the_locale_of_the_database(postgresql: str) -> None:
    store = new_store(lambda: (postgresql, "sorted"))
    expected = {
        (table.name, column.name)
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if getattr(column.type.dialect_impl(store.engine.dialect), "collation", None) == "C"
    }
    assert {("candidates", "id"), ("transitions", "candidate_id"), ("evaluations", "subject_id")} <= expected
    query = "SELECT table_name, column_name FROM information_schema.columns WHERE collation_name = 'C'"
    with store.engine.connect() as connection:
        assert {tuple(row) for row in connection.execute(text(query))} >= expected
    store.close()


def test_a_second_driver_is_refused_until_the_first_is_gone(postgresql: str) -> None:
    first = Store.create(postgresql, name="driven", seed=1, config={}, config_hash="h")
    first.start_session()
    with pytest.raises(RunError, match=f"already has a driver .process {os.getpid()} on"):
        Store.open(postgresql, "driven")
    reader = Store.read(postgresql, "driven")
    assert reader.has_driver()
    first.close()
    Store.open(postgresql, "driven").close()
    deadline = time.monotonic() + 10
    while reader.has_driver():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reader.close()


def test_a_driver_that_lost_its_connection_cannot_write_beside_its_successor(postgresql: str) -> None:
    first = Store.create(postgresql, name="cut off", seed=1, config={}, config_hash="h")
    first.start_session()
    cut_off(postgresql, first)
    first.heartbeat()  # nobody came in between: it goes on
    cut_off(postgresql, first)
    second = Store.open(postgresql, "cut off")
    second.start_session()
    with pytest.raises(RunError, match="already has a driver"):
        first.heartbeat()
    second.heartbeat()
    first.close()
    second.close()


def cut_off(url: str, store: Store) -> None:
    """End a driver's connection from outside and wait until the server has let go of its lock."""
    with store.engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr%40t/x@nowhere.invalid:1/db?connect_timeout=1",
        "postgresql://nowhere.invalid:1/db?password=s3cr%40t/x&connect_timeout=1",
        "mysql://me:s3cr%40t/x@nowhere.invalid/db",
        "postgresql://me:s3cr%40t/x@nowhere.invalid",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    for attempt in (Store.read, Store.open, parse_setting):
        with pytest.raises((RunError, ValueError)) as caught:
            attempt(url)
        error: BaseException | None = caught.value
        assert "nowhere.invalid" in str(error)
        assert "s3cr" not in str(error)


# Databases of former versions -----------------------------------------------------------------------------------------

FORMER = Path(__file__).parent / "data" / "schema_0001"


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """Return a run folder as version 0.1.0 left it, with the database of the first schema."""
    (tmp_path / "config.yaml").write_bytes((FORMER / "config.yaml").read_bytes())
    with closing(sqlite3.connect(tmp_path / "campaign.sqlite")) as connection:
        connection.executescript((FORMER / "campaign.sql").read_text())
    return tmp_path


def test_a_database_of_the_first_schema_is_brought_up_to_date(former: Path) -> None:
    path = former / "campaign.sqlite"
    with pytest.raises(RunError, match="discovery resume RUN"):
        Store.read(path)
    with closing(sqlite3.connect(path)) as connection:
        counts = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in Base.metadata.tables
        }
        transitions = connection.execute("SELECT candidate_id, to_state, cause FROM transitions ORDER BY id").fetchall()

    store = Store.open(sqlite_url(path))
    assert store.name == "small"
    assert [(candidate, to, cause) for candidate, _, to, cause in store.transitions()] == transitions
    assert add_up(store.funnel()) == store.funnel()["sampled"] == counts["candidates"] == 4
    verdicts = {candidate.id: candidate.verdict for candidate in store.candidates({State.JUDGED})}
    assert store.hull("reference").version == 3
    for id_, verdict in verdicts.items():
        assert verdict is not None
        hull = store.hull("reference", verdict.hull_version)
        assert hull.judge(id_, verdict.threshold, verdict.metastable_threshold) == verdict
    with store.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            assert connection.scalar(select(func.count()).select_from(table)) == counts[table.name]
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    store.admit("r00-t000-s00")
    with pytest.raises(IllegalTransitionError):
        store.reject("r00-t000-s00", "it went another way")
    store.close()
    fresh = Store.create(sqlite_url(former / "fresh.sqlite"), name="small", seed=7, config={}, config_hash="h")
    assert columns_of(fresh) == columns_of(Store.read(path))
    fresh.close()


def columns_of(store: Store) -> dict[str, set[tuple[Any, ...]]]:
    with store.engine.connect() as connection:
        return {
            table: {tuple(row)[1:] for row in connection.execute(text(f"PRAGMA table_info({table})"))}
            for table in Base.metadata.tables
        }


def test_a_run_folder_of_a_former_version_is_resumed(former: Path) -> None:
    with Campaign.resume(former) as campaign:
        campaign.run()
    assert read_status(former).state == "finished"


def test_what_is_no_number_is_the_same_in_both_databases(database: Callable[[], tuple[str, str]]) -> None:
    store = new_store(database)
    nan, inf = float("nan"), float("inf")
    store.add_references([ReferenceRecord("a", CU, "elements", {"band_gap": nan, "density": 8.9})])
    details = {"magnetic_moments": [nan, 1.0], "k_points": {"spacing": inf}}
    store.add_reference_evaluation("a", "screening", Evaluation(SCALE, CU, -1.0, details=details))
    store.add_initial_checkpoint(Checkpoint("weights", "a" * 64, metrics={"loss": nan, "steps": 3.0}))
    assert store.evaluations("screening")["a"].details == {
        "magnetic_moments": [None, 1.0],
        "k_points": {"spacing": None},
    }
    properties, metrics = store.references()[0].properties, store.checkpoints()[0].checkpoint.metrics
    assert (properties["density"], metrics["steps"]) == (8.9, 3.0)
    assert math.isnan(properties["band_gap"])
    assert math.isnan(metrics["loss"])
    store.close()
