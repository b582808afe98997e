"""Database URLs: which are understood, and how they are shown without their password."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

POSTGRESQL = "postgresql+psycopg"
FORM = f"{POSTGRESQL}://USER@HOST:PORT/DATABASE"

_PASSWORD = re.compile(r"(?P<user>://[^:/@\s]*):[^\s\"]*@|(?P<key>\b\w*password\w*=)[^&\s\"']*", re.IGNORECASE)


def sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"


def is_url(where: Path | str) -> bool:
    """Whether `where` names a database by URL rather than by path."""
    return isinstance(where, str) and "://" in where


def parse(url: str) -> URL:
    """Return the URL of a SQLite or PostgreSQL database in the form that SQLAlchemy takes.

    ``postgresql://`` and ``postgres://`` stand for ``postgresql+psycopg://``.

    Raises
    ------
    ValueError
        If it is not a URL of one of the two; the message shows no password.
    """
    try:
        parsed = make_url(re.sub(r"^postgres(ql)?://", f"{POSTGRESQL}://", url))
    except (ArgumentError, ValueError):
        raise ValueError(f"{masked(url)!r} is not a database URL; write {FORM}") from None
    if parsed.drivername not in (POSTGRESQL, "sqlite"):
        raise ValueError(f"{masked(url)!r} is a database of an unknown kind; write {FORM}")
    if parsed.drivername == POSTGRESQL and not parsed.database:
        raise ValueError(f"{masked(url)!r} names no database; write {FORM}")
    return parsed


def parse_setting(url: str) -> str:
    """Return the normalised URL of a PostgreSQL database, as a configuration may hold it.

    Raises
    ------
    ValueError
        If it is not one, or contains a password, which would end up in files; the message does not show it.
    """
    parsed = parse(url)
    if parsed.drivername != POSTGRESQL:
        raise ValueError(f"{masked(url)!r} is not a PostgreSQL database; write {FORM}")
    if parsed.password is not None or any("password" in key.lower() for key in parsed.query):
        raise ValueError(
            f"{masked(url)!r} contains a password, which would be stored in the run folder; leave it out and keep it "
            "in ~/.pgpass, in the file that PGPASSFILE names, or in the environment variable PGPASSWORD"
        )
    return parsed.render_as_string()


def masked(text: str) -> str:
    """Return `text` with the passwords of the URLs in it replaced by asterisks."""
    return _PASSWORD.sub(lambda found: f"{found['user']}:***@" if found["user"] else f"{found['key']}***", text)
