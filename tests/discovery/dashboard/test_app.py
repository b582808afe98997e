"""The server without a browser: downloads, refusals, and what a browser sends."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import flask.testing
import pytest
from ase.io import read
from monty.json import MontyDecoder
from pymatgen.core import Structure

from discovery import control
from discovery.dashboard import app as dashboard
from discovery.dashboard import views
from discovery.dashboard.source import Source, Sources
from discovery.errors import RunError


@pytest.fixture
def client(run_dir: Path) -> flask.testing.FlaskClient:
    return dashboard.create_app(Sources([run_dir])).server.test_client()


def test_downloads_hold_the_crystal_that_was_computed(client: flask.testing.FlaskClient, source: Source) -> None:
    row = views.discoveries(source)[0]
    view = views.crystal_view(source, row.id)
    assert view is not None
    crystal = view.shapes[-1].crystal
    energy = view.evaluations["reference"].energy

    def get(form: str) -> str:
        answer = client.get(f"/download/ternary/{form}?id={quote(row.id)}")
        assert answer.status_code == 200
        assert "attachment" in answer.headers["Content-Disposition"]
        return answer.text

    expected = crystal.to_structure()
    for text, kind in ((get("cif"), "cif"), (get("poscar"), "poscar")):
        found = Structure.from_str(text, fmt=kind)  # type: ignore[arg-type]
        assert found.composition == expected.composition
        assert found.lattice.parameters == pytest.approx(expected.lattice.parameters, abs=1e-6)
        assert found.matches(expected)
    atoms = read(io.StringIO(get("extxyz")), format="extxyz")
    assert atoms.get_potential_energy() == pytest.approx(energy)
    assert atoms.info["id"] == row.id
    entry = MontyDecoder().process_decoded(json.loads(get("json")))
    assert entry.energy == pytest.approx(energy)
    assert entry.parameters["energy_scale"]["code"]


@pytest.mark.parametrize(
    "path",
    [
        "/download/ternary/cif?id=nothing",
        "/download/ternary/exe?id=element-Cu",
        "/download/other/cif?id=element-Cu",
        "/download/ternary/cif?id=../../config.yaml",
        "/download/ternary/cif?id=' OR 1=1 --",
        "/download/ternary/cif",
    ],
)
def test_what_does_not_exist_is_not_found(client: flask.testing.FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_requests_to_other_hosts_are_refused(run_dir: Path) -> None:
    app = dashboard.create_app(Sources([run_dir]))
    dashboard.only_hosts(app, ("127.0.0.1", "localhost", "::1"))
    client = app.server.test_client()
    assert client.get("/", headers={"Host": "evil.example:8050"}).status_code == 403
    for host in ("localhost:8050", "127.0.0.1", "[::1]:8050"):
        assert client.get("/", headers={"Host": host}).status_code == 200


def test_the_browser_is_told_to_run_nothing_else(client: flask.testing.FlaskClient) -> None:
    headers = client.get("/").headers
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    own, *hashes = policy["script-src"].split()
    assert own == "'self'"
    assert hashes
    assert all(one.startswith("'sha256-") for one in hashes)
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_filters_of_the_grid_become_conditions_and_nothing_else() -> None:
    model = {
        "formula": {"filterType": "text", "type": "contains", "filter": "Au"},
        "round": {"filterType": "number", "type": "inRange", "filter": 2, "filterTo": 3},
        "state": {"type": "equals", "filter": "passed over"},
        "crystal": {"type": "contains", "filter": "x"},
        "e_above_hull": {"type": "regexp", "filter": ".*"},
        "n_atoms": {"type": "lessThan", "filter": {"$gt": 0}},
    }
    assert dashboard._conditions(model) == [
        ("formula", "contains", "Au"),
        ("round", "at_least", 1),
        ("round", "at_most", 2),
        ("state", "equals", "passed_over"),
    ]
    assert dashboard._order([{"colId": "id", "sort": "desc"}, {"colId": "1; DROP TABLE x", "sort": "asc"}]) == [
        ("id", "desc")
    ]


def ask(client: flask.testing.FlaskClient, name: str, token: str) -> str:
    """Press a button of the control row, as the page does."""
    inputs = [
        {"id": f"control-{button}", "property": "n_clicks", "value": int(button == name)}
        for button in dashboard.CONTROLS
    ]
    answer = client.post(
        "/_dash-update-component",
        json={
            "output": "..control-answer.children...control-answer.className..",
            "outputs": [
                {"id": "control-answer", "property": "children"},
                {"id": "control-answer", "property": "className"},
            ],
            "inputs": inputs,
            "changedPropIds": [f"control-{name}.n_clicks"],
            "state": [
                {"id": "token", "property": "value", "value": token},
                {"id": "url", "property": "pathname", "value": "/ternary"},
            ],
        },
    )
    return answer.get_json()["response"]["control-answer"]["children"] if answer.status_code == 200 else answer.text


def test_controls_ask_for_the_token_and_do_what_the_command_does(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = dashboard.create_app(Sources([run_dir]), "secret").server.test_client()
    asked: list[Path] = []
    monkeypatch.setitem(dashboard.CONTROLS, "pause", lambda path: asked.append(path) or 7)
    assert "not the token" in ask(client, "pause", "guess")
    assert "not the token" in ask(client, "pause", "")
    assert asked == []
    assert ask(client, "pause", "secret") == "Asked process 7 to pause."
    assert asked == [run_dir]
    with pytest.raises(RunError) as error:
        control.stop(run_dir)
    assert ask(client, "stop", "secret") == str(error.value)


def test_without_the_flag_there_are_no_controls(client: flask.testing.FlaskClient) -> None:
    assert "control-answer" not in client.get("/_dash-dependencies").text


def test_campaigns_that_begin_later_are_found(tmp_path: Path, run_dir: Path) -> None:
    sources = Sources([tmp_path])
    assert sources.all() == {}
    (tmp_path / "compare").symlink_to(run_dir)
    (tmp_path / "other").symlink_to(run_dir)
    assert list(sources.all()) == ["compare-2", "other"]  # addresses under /compare are taken


def test_campaigns_that_cannot_be_read_are_named(tmp_path: Path, run_dir: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(run_dir / "campaign.sqlite", broken)
    with closing(sqlite3.connect(broken / "campaign.sqlite")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
        database.commit()
    sources = Sources([tmp_path])
    assert sources.all() == {}
    assert len(sources.problems) == 1
    assert "schema 0001" in sources.problems[0]
    client = dashboard.create_app(sources).server.test_client()
    request = {
        "output": "..nav.children...page.children..",
        "outputs": [{"id": "nav", "property": "children"}, {"id": "page", "property": "children"}],
        "inputs": [{"id": "url", "property": "pathname", "value": "/"}],
        "changedPropIds": ["url.pathname"],
    }
    assert "Not shown: file:" in client.post("/_dash-update-component", json=request).text
    shutil.copy(run_dir / "campaign.sqlite", broken)
    assert list(sources.all()) == ["broken"]
    assert sources.problems == ()


def test_the_command_says_what_is_wrong(tmp_path: Path, serve: Callable[..., str], run_dir: Path) -> None:
    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "discovery", "dashboard", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        return done.stderr

    assert "does not exist; name run folders" in call(str(tmp_path / "nothing"))
    port = serve(run_dir).rsplit(":", 1)[1]
    assert "choose another with --port" in call(str(run_dir), "--port", port)
