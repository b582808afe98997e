"""Pause, resume and stop a campaign from another process.

A request is a file in the run folder, addressed to the driver that was at work when it was made; its driver reads it
every half second. A driver that is not there any more cannot be asked: that is an error which says how to go on.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import Self

from discovery.errors import RunError
from discovery.files import write_atomically
from discovery.runfolder import RunFolder

POLL_SECONDS = 0.5
"""How often a driver looks for a request."""


class Request(StrEnum):
    """What a driver can be asked to do."""

    PAUSE = "pause"
    """Finish what runs, start nothing new, and wait."""
    RESUME = "resume"
    """Go on after a pause."""
    STOP = "stop"
    """Finish what runs, then end the driver; the campaign can be resumed."""
    STOP_NOW = "stop_now"
    """End what runs and the driver; the campaign can be resumed."""


def pause(run_dir: Path) -> int:
    """Ask the driver of a campaign to finish what runs and wait; return its process id."""
    return _ask(run_dir, Request.PAUSE)


def resume(run_dir: Path) -> int:
    """Ask a driver that pauses, or is about to, to go on; return its process id.

    Raises
    ------
    RunError
        If the driver was not asked to pause.
    """
    if pending(run_dir) is not Request.PAUSE:
        folder = RunFolder(run_dir)
        pid = _driver(folder, Request.RESUME)
        raise RunError(
            f"{folder.path} already has a driver (process {pid}) at work; watch it with `discovery status "
            f"{folder.path}`, or pause it with `discovery pause {folder.path}`"
        )
    return _ask(run_dir, Request.RESUME)


def stop(run_dir: Path, *, now: bool = False) -> int:
    """Ask the driver of a campaign to end, `now` or once what runs is finished; return its process id."""
    return _ask(run_dir, Request.STOP_NOW if now else Request.STOP)


def pending(run_dir: Path) -> Request | None:
    """Return the last request to the driver that is at work, or None; a pause stays until it is lifted."""
    folder = RunFolder(run_dir)
    pid = folder.driver_pid()
    return _read(folder, pid) if pid is not None else None


def _ask(run_dir: Path, request: Request) -> int:
    folder = RunFolder(run_dir)
    pid = _driver(folder, request)
    try:
        write_atomically(folder.request, json.dumps({"driver": pid, "request": request}))
    except OSError as error:
        raise RunError(f"{folder.request} cannot be written: {error.strerror}; mend that, then ask again") from error
    return pid


def _driver(folder: RunFolder, request: Request) -> int:
    if not folder.database.is_file() and not folder.config.is_file():
        raise RunError(f"{folder.path} is not a run folder; start a campaign with `discovery launch`")
    pid = folder.driver_pid()
    if pid is None:
        raise RunError(
            f"{folder.path} has no driver that could {request.split('_')[0]}: the campaign is not running. See how it "
            f"stands with `discovery status {folder.path}`, go on with `discovery resume {folder.path}`"
        )
    return pid


def _read(folder: RunFolder, pid: int) -> Request | None:
    """Return the request addressed to driver `pid`."""
    try:
        data = json.loads(folder.request.read_text())
        return Request(data["request"]) if data["driver"] == pid else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Inbox:
    """The driver's side: knows the last request to this process; a context manager, entered by the main thread.

    :attr:`Request.STOP_NOW` interrupts whatever the main thread does by SIGTERM; the others wait in :attr:`request`
    until it looks.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.request: Request | None = None
        self._folder = folder
        self._closed = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="inbox", daemon=True)

    def __enter__(self) -> Self:
        self._folder.request.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join()
        self._folder.request.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until it is time to look again."""
        self._closed.wait(POLL_SECONDS)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self.request = _read(self._folder, os.getpid())
            if self.request is Request.STOP_NOW and self._main is not None:
                signal.pthread_kill(self._main, signal.SIGTERM)
                return
