"""Serves the dashboard on this machine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

from discovery.dashboard import views
from discovery.dashboard.source import Sources
from discovery.errors import DiscoveryError, MissingDependencyError, RunError
from discovery.store import Store
from discovery.store.urls import is_url

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


def serve(places: Sequence[Path | str], *, host: str, port: int, control: bool) -> None:
    """Show the campaigns in `places` until Ctrl-C.

    Raises
    ------
    RunError
        If a folder or database does not exist, or the address cannot be listened on.
    MissingDependencyError
        If the packages of the dashboard are not installed.
    """
    try:
        from waitress.server import create_server

        from discovery.dashboard import app as dashboard
    except ImportError as error:
        raise MissingDependencyError(
            f"the dashboard needs the package {error.name}; install it with: pip install 'discovery-engine[dashboard]'"
        ) from error
    for place in places:
        if is_url(place):
            Store.campaigns(place)
        elif not Path(place).is_dir():
            raise RunError(f"{place} does not exist; name run folders, a folder that holds them, or a database URL")
    token = dashboard.new_token() if control else None
    sources = Sources(places)
    threading.Thread(target=_read_ahead, args=(sources,), daemon=True).start()
    app = dashboard.create_app(sources, token)
    if host in LOCAL_NAMES:
        dashboard.only_hosts(app, LOCAL_NAMES)
    try:
        server = create_server(app.server, host=host, port=port, threads=6)
    except OSError as error:
        raise RunError(f"{host}:{port} cannot be used: {error.strerror}; choose another with --port") from error
    typer.echo(f"http://{host}:{server.effective_port}  (Ctrl-C ends it)")
    if token is not None:
        typer.echo(f"token for pause, resume and stop: {token}")
    try:
        server.run()
    finally:
        server.close()


def _read_ahead(sources: Sources) -> None:
    """Read what the pages of each campaign show, before somebody asks for it."""
    for read in (views.overview, views.discoveries):
        for source in sources.all().values():
            with suppress(DiscoveryError):
                read(source)
