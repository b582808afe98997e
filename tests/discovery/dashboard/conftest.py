"""A finished campaign of a fraction of a second, and the dashboard on a free port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discovery.dashboard.source import Source, Sources
from tests.discovery.campaigns import run, tiny_config


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished campaign in Al-Cu-Au whose generator has learned."""
    folder = tmp_path_factory.mktemp("dashboard") / "ternary"
    search = {
        "chemical_space": "Al-Cu-Au",
        "rounds": 3,
        "targets_per_round": 6,
        "samples_per_target": 4,
        "reference_calls_per_round": 6,
        "budget": {"reference_calls": 40},
        "metastable_threshold": 0.2,
    }
    return run(tiny_config(folder, campaign=search))


@pytest.fixture
def source(run_dir: Path) -> Iterator[Source]:
    source = Source.open(run_dir, "ternary")
    yield source
    source.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Return a function that serves the dashboard of some places and returns its address."""
    from waitress.server import create_server

    from discovery.dashboard.app import create_app

    servers = []

    def start(*places: Path | str, token: str | None = None) -> str:
        app = create_app(Sources(places), token)
        server = create_server(app.server, host="127.0.0.1", port=0, threads=4)
        threading.Thread(target=server.run, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.effective_port}"

    yield start
    for server in servers:
        server.close()
