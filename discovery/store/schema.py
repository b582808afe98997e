"""Creates, upgrades and checks the database schema with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from discovery.errors import RunError
from discovery.store.urls import masked

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7_208_917_411
"""Number of the advisory lock that admits one migration at a time."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def upgrade(engine: Engine) -> None:
    """Bring an empty or older database to the current schema.

    Raises
    ------
    RunError
        If the database was written by a version whose schema this version does not know.
    """
    config = _config()
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is not None:
            _require_known(engine, revision)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def require_current(engine: Engine) -> None:
    """Raise `RunError` unless the database has the current schema."""
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    _require_known(engine, revision)
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if revision != head:
        raise RunError(
            f"{_name(engine)}: written by an older version (schema {revision}, this version has {head}); "
            "`discovery resume RUN` upgrades it"
        )


def _name(engine: Engine) -> str:
    url = engine.url
    return str(url.database) if url.get_backend_name() == "sqlite" else masked(url.render_as_string())


def _require_known(engine: Engine, revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision not in known:
        raise RunError(
            f"{_name(engine)}: written by another version (schema {revision}, this version knows "
            f"{', '.join(sorted(known))}); open it with the version that wrote it"
        )
