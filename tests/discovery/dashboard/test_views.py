"""What is shown, against pymatgen, the store and counting by hand."""

from __future__ import annotations

import hashlib
import math
import shutil
import sqlite3
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from discovery.calibration import reliability
from discovery.config import CampaignConfig
from discovery.dashboard import figures, pages, views
from discovery.dashboard.source import Source, Sources
from discovery.errors import RunError
from discovery.hull import Phase
from discovery.launch_check import checked
from discovery.status import read_status
from discovery.store import Store, sqlite_url
from discovery.store.queries import Queries
from discovery.types import State
from tests.discovery.campaigns import run, tiny_config

ELEMENTS = ("Al", "Au", "Cu")


@pytest.fixture(scope="module")
def everything(run_dir: Path) -> Store:
    return Store.read(run_dir / "campaign.sqlite")


def phase_diagram(phases: tuple[Phase, ...]) -> PhaseDiagram:
    return PhaseDiagram([PDEntry(Composition(phase.composition), phase.energy, phase.id) for phase in phases])


def test_the_counts_of_the_overview_add_up(source: Source, everything: Store) -> None:
    view = views.overview(source)
    candidates = everything.candidates()
    assert view.funnel["sampled"] == len(candidates)
    ends = ("rejected", "failed", "passed_over", "judged", "in_flight")
    assert view.funnel["sampled"] == sum(view.funnel[end] for end in ends)
    for state, causes in view.losses.items():
        assert sum(causes.values()) == view.funnel[state]
    assert sum(rate.judged for rate in view.hits) == view.funnel["judged"]
    by_round = Counter(candidate.round for candidate in candidates if candidate.verdict is not None)
    assert {rate.round: rate.judged for rate in view.hits} == by_round


def test_growth_ends_with_the_stable_discoveries_and_all_that_was_spent(source: Source, everything: Store) -> None:
    steps = views.growth(source)
    stable = {phase.id for phase in phase_diagram_stable(everything)}
    assert stable
    assert steps[-1].discovered == len(stable)
    assert steps[-1].reference_calls == everything.budget({}).spent["reference_calls"]
    assert [step.reference_calls for step in steps] == sorted(step.reference_calls for step in steps)
    screened = sum(c.screening.core_hours for c in everything.candidates() if c.screening is not None)
    assert screened < steps[-1].core_hours <= everything.budget({}).spent["core_hours"] + 1e-12
    on_hull = set(everything.hull_versions("reference")[0].stable)
    for step in steps:
        assert on_hull.isdisjoint(step.entered)
        assert on_hull.issuperset(step.left)
        on_hull = (on_hull | set(step.entered)) - set(step.left)
    assert on_hull == set(everything.hull_versions("reference")[-1].stable)


def phase_diagram_stable(store: Store) -> list[Phase]:
    """Return the discovered compounds on the newest reference hull, by pymatgen."""
    hull = store.hull("reference")
    names = {entry.name for entry in phase_diagram(hull.phases).stable_entries}
    return [phase for phase in hull.phases if phase.id in names and phase.origin == "discovered"]


def test_the_interval_of_a_hit_rate_is_wilsons(source: Source) -> None:
    z = 1.959963984540054
    rates = views.hit_rates(source)
    assert rates
    for rate in rates:
        n, share = rate.judged, rate.stable / rate.judged
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        assert rate.low == pytest.approx(max(centre - half, 0.0), abs=1e-9)
        assert rate.high == pytest.approx(min(centre + half, 1.0), abs=1e-9)


@pytest.mark.parametrize("role", ["screening", "reference"])
@pytest.mark.parametrize("elements", [ELEMENTS, ("Au", "Cu")])
def test_a_diagram_shows_pymatgens_hull_and_lowest_polymorphs(
    source: Source, everything: Store, role: str, elements: tuple[str, ...]
) -> None:
    for _, version in views.hull_stages(source, role):
        diagram = views.hull_diagram(source, role, elements, version)
        assert diagram is not None
        phases = tuple(p for p in everything.hull(role, version).phases if p.composition.keys() <= set(elements))
        expected = phase_diagram(phases)
        assert {point.id for point in diagram.points if point.on_hull} == {e.name for e in expected.stable_entries}
        lowest: dict[str, float] = {}
        for phase in phases:
            lowest[phase.formula] = min(phase.energy_per_atom, lowest.get(phase.formula, math.inf))
        assert len(diagram.points) == len(lowest)
        entries = {entry.name: entry for entry in expected.all_entries}
        for point in diagram.points:
            entry = entries[point.id]
            assert entry.energy_per_atom == pytest.approx(lowest[point.formula])
            assert point.e_above_hull == pytest.approx(expected.get_e_above_hull(entry), abs=1e-6)
            assert point.formation_energy_per_atom == pytest.approx(expected.get_form_energy_per_atom(entry))
            assert point.fractions == pytest.approx([entry.composition.get_atomic_fraction(e) for e in elements])
        names = [entry.name for entry in expected.qhull_entries]
        lines = {tuple(sorted((names[a], names[b]))) for facet in expected.facets for a, b in combinations(facet, 2)}
        assert set(diagram.tie_lines) == lines


def test_every_drawable_system_is_drawn(source: Source) -> None:
    assert views.drawable_systems(("Al", "Cu", "Au")) == [ELEMENTS, ("Al", "Au"), ("Al", "Cu"), ("Au", "Cu")]
    assert len(views.drawable_systems(("Li", "Fe", "P", "O", "S"))) == 5 + 10 + 10
    for system in views.drawable_systems(ELEMENTS):
        figure = figures.hull(views.hull_diagram(source, "reference", system))
        diagram = views.hull_diagram(source, "reference", system)
        assert diagram is not None
        drawn = {custom[0] for trace in figure.data if trace.customdata is not None for custom in trace.customdata}
        assert {point.id for point in diagram.points if point.on_hull} <= drawn
        pure = [point.fractions.index(1.0) for point in diagram.points if max(point.fractions) == 1.0]
        assert sorted(pure) == list(range(len(system)))


def test_a_quaternary_hull_is_a_tetrahedron(tmp_path: Path) -> None:
    search = {"chemical_space": "Al-Cu-Au-Ag", "rounds": 1, "targets_per_round": 4, "reference_calls_per_round": 4}
    source = Source.open(run(tiny_config(tmp_path / "run", campaign=search)))
    diagram = views.hull_diagram(source, "reference", ("Ag", "Al", "Au", "Cu"))
    assert diagram is not None
    figure = figures.hull(diagram)
    corners = np.array(
        [
            [trace.x[row], trace.y[row], trace.z[row]]
            for trace in figure.data
            if trace.customdata is not None
            for row, custom in enumerate(trace.customdata)
            if custom[0] in {point.id for point in diagram.points if max(point.fractions) == 1.0}
        ]
    )
    sides = [np.linalg.norm(one - other) for one, other in combinations(corners, 2)]
    assert sides == pytest.approx([1.0] * 6)


def test_discoveries_are_those_of_status(source: Source, run_dir: Path, everything: Store) -> None:
    found = views.discoveries(source)
    status = read_status(run_dir)
    stable = [row for row in found if row.stability == "stable"]
    assert {row.id for row in stable} == {one.phase.id for one in status.stable}
    costs = {
        candidate.id: sum(e.core_hours for e in (candidate.screening, candidate.reference) if e is not None)
        for candidate in everything.candidates()
    }
    for row in found:
        assert row.core_hours == pytest.approx(costs[row.id])
        assert row.round is not None
        assert row.checkpoint


def test_one_crystal_tells_its_way(source: Source, everything: Store) -> None:
    learned = everything.candidates({State.LEARNED})[0]
    view = views.crystal_view(source, learned.id)
    assert view is not None
    assert view.shapes[0].crystal == learned.crystal
    assert [event.state for event in view.record.events][:2] == ["sampled", "admitted"]  # type: ignore[union-attr]
    assert view.learned_into
    structure = view.shapes[-1].crystal.to_structure()
    matrix = structure.distance_matrix + np.diag(
        [min(structure.lattice.get_lll_reduced_lattice().abc)] * len(structure)
    )
    assert min(view.shapes[-1].shortest.values()) <= matrix.min() + 1e-6
    assert views.crystal_view(source, "no such id") is None
    reference = views.crystal_view(source, everything.references()[0].id)
    assert reference is not None
    assert reference.record is None


def test_parity_counts_errors_by_chemical_system(source: Source) -> None:
    parity = views.trust(source).parity
    whole, *groups = parity.errors()
    difference = parity.screening - parity.reference
    assert whole[1] == len(difference) == sum(group[1] for group in groups)
    assert whole[2] == pytest.approx(np.abs(difference).mean())
    assert whole[3] == pytest.approx(np.sqrt((difference**2).mean()))


def test_trust_shows_the_calibration_and_the_remembered_checks(source: Source, everything: Store) -> None:
    shown = views.trust(source)
    assert shown.calibration == reliability(everything)
    assert shown.calibration.predictions
    assert shown.checks == ()
    oracles = CampaignConfig.model_validate(everything.campaign().config).oracle
    report = checked(oracles.reference, shown.summary.elements)
    check = next(one for one in views.trust(source).checks if one.role == "reference")
    assert check.passed == report["passed"]
    assert check.extent == "launch"
    assert [row[0] for row in check.rows] == [f"{one['quantity']} of {one['subject']}" for one in report["checks"]]
    text = str(pages.trust_page(views.trust(source)))
    assert f"reference oracle, launch check: {'passed' if check.passed else 'failed'}" in text
    assert f"Brier score {shown.calibration.brier():.3f}" in text


def test_a_page_of_candidates_is_sorted_and_filtered_by_the_database(source: Source, everything: Store) -> None:
    candidates = everything.candidates()
    rows, total = source.queries.page(order=[("screening_decomposition_energy", "desc")], limit=10_000)
    assert total == len(rows) == len(candidates)
    energies = [row["screening_decomposition_energy"] for row in rows]
    known = [energy for energy in energies if energy is not None]
    assert known == sorted(known, reverse=True)
    assert energies[len(known) :] == [None] * (len(rows) - len(known))
    rows, total = source.queries.page(where=[("formula", "contains", "al"), ("round", "at_least", 1)], limit=3)
    expected = [c for c in candidates if "al" in c.crystal.formula.lower() and c.round >= 1]
    assert total == len(expected)
    assert len(rows) == min(3, total)
    assert source.queries.page(where=[("formula", "contains", "%")])[1] == 0
    with pytest.raises(KeyError):
        source.queries.page(where=[("crystal", "contains", "a")])
    with pytest.raises(KeyError):
        source.queries.page(order=[("id; DROP TABLE candidates", "asc")])


def test_reading_writes_nothing_and_blocks_no_driver(run_dir: Path, tmp_path: Path) -> None:
    path = run_dir / "campaign.sqlite"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    source = Source.open(run_dir)
    for page in (pages.overview_page(views.overview(source)), pages.trust_page(views.trust(source))):
        assert page
    views.discoveries(source)
    source.close()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before

    driver = Store.create(sqlite_url(tmp_path / "a.sqlite"), name="a", seed=0, config={}, config_hash="")
    reader = Store.read(tmp_path / "a.sqlite")
    with reader.reading() as session:
        session.connection().exec_driver_sql("BEGIN")
        session.connection().exec_driver_sql("SELECT * FROM campaign").fetchone()
        driver.set_state("running")
    assert reader.campaign().state == "running"
    with pytest.raises(RunError):
        reader.set_state("finished")


def test_a_campaign_without_anything_is_shown(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    Store.create(
        sqlite_url(tmp_path / "campaign.sqlite"),
        name="new",
        seed=0,
        config=config.model_dump(mode="json"),
        config_hash="",
    ).close()
    source = Source.open(tmp_path)
    assert pages.overview_page(views.overview(source))
    assert pages.trust_page(views.trust(source))
    assert views.discoveries(source) == []
    assert views.hull_diagram(source, "reference", ("Au", "Cu")) is None
    assert figures.hull(None).layout.annotations[0].text.startswith("No hull yet")


def test_a_campaign_whose_driver_died_is_interrupted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    store = Store.create(
        sqlite_url(tmp_path / "campaign.sqlite"),
        name="dead",
        seed=0,
        config=config.model_dump(mode="json"),
        config_hash="",
    )
    store.start_session()
    assert store.campaign().state == "running"
    assert views.summary(Source.open(tmp_path)).state == "interrupted"


def test_campaigns_of_one_database_are_told_apart(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "several.sqlite")
    config = tiny_config(tmp_path).model_dump(mode="json")
    for name in ("one", "two!", "two?"):
        store = Store.create(url, name=name, seed=0, config=config, config_hash="")
        if name == "one":
            store.start_session()
            store.finish_step(0, "proposed")
        store.close()
    sources = Sources([url]).all()
    assert list(sources) == ["one", "two", "two-2"]
    revisions = {key: source.queries.revision() for key, source in sources.items()}
    assert revisions["one"] == ("running", "", 1, None, None, None, 1)
    assert revisions["two"] == revisions["two-2"] == ("created", "", 0, None, None, None, None)
    assert sources["two"].queries.heartbeat() is None


def test_queries_see_only_their_campaign(run_dir: Path, tmp_path: Path) -> None:
    """Two copies of everything in one database: each is counted once."""
    path = tmp_path / "campaign.sqlite"
    shutil.copy(run_dir / "campaign.sqlite", path)
    alone = Source.open(run_dir)
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if table == "campaign":
                others = ", ".join(c for c in columns if c not in ("id", "name"))
                connection.execute(f"INSERT INTO campaign (name, {others}) SELECT 'copy', {others} FROM campaign")  # noqa: S608
            elif "campaign_id" in columns:
                numbered = table in ("sessions", "transitions", "ledger")
                others = ", ".join(c for c in columns if c != "campaign_id" and not (numbered and c == "id"))
                connection.execute(f"INSERT INTO {table} (campaign_id, {others}) SELECT 2, {others} FROM {table}")  # noqa: S608
    both = Store.read(path, "tiny")
    for name in ("failures", "verdicts", "waiting", "losses", "pairs", "heartbeat", "pace"):
        assert getattr(Queries(both), name)() == getattr(alone.queries, name)(), name
    assert Queries(both).page()[1] == alone.queries.page()[1]
    assert len(Queries(both).phases("reference")) == len(alone.queries.phases("reference"))
    for own, other in zip(Queries(both).spent(["core_hours"]), alone.queries.spent(["core_hours"]), strict=True):
        assert own.tolist() == other.tolist()
    ids = [row.id for row in views.discoveries(alone)]
    assert Queries(both).costs_of(ids) == alone.queries.costs_of(ids)
    assert Queries(both).revision()[2] == alone.queries.revision()[2]
