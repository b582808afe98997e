"""A campaign's run folder: its files, its lock, and whether it can be written."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from discovery.errors import RunError
from discovery.store import Store, sqlite_url

MIN_FREE_BYTES = 100 * 2**20
"""Free disk space without which no campaign is begun or resumed."""

_LOCK_TRIES = 10


def file_name(id: str) -> str:
    """Return `id` with everything but letters, digits, dots, hyphens and underscores replaced."""
    return re.sub(r"[^\w.-]+", "_", id)


@contextmanager
def locked(path: Path, what: str, advice: str) -> Iterator[None]:
    """Hold the lock file `path`, which names this process; the operating system lets go of it when the process ends.

    Raises
    ------
    RunError
        If another process holds it: `what` has a driver already, and `advice` says what to do.
    """
    with path.open("a+") as file:
        for attempt in range(_LOCK_TRIES):  # who only looks may hold the lock for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _LOCK_TRIES - 1:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise RunError(f"{what} already has a driver (process {holder}); {advice}") from None
                time.sleep(0.05)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@dataclass(frozen=True)
class RunFolder:
    """Paths within a run folder.

    Parameters
    ----------
    path
        The run folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The composed configuration."""
        return self.path / "config.yaml"

    @property
    def database(self) -> Path:
        """The store, unless the configuration names another database."""
        return self.path / "campaign.sqlite"

    @property
    def holds_campaign(self) -> bool:
        """Whether this is the run folder of a campaign."""
        return self.database.is_file() or (self.config.is_file() and self._setting("database") is not None)

    @property
    def database_url(self) -> str:
        """URL of the database: the one that the configuration names, or the SQLite file."""
        return str(self._setting("database") or sqlite_url(self.database))

    def read_store(self) -> Store:
        """Open the campaign's store for reading only; safe beside a running driver."""
        if self.database.is_file():
            return Store.read(self.database)
        self.require_campaign()
        return Store.read(self.database_url, self._setting("name"))

    def open_store(self) -> Store:
        """Open the campaign's store as its driver."""
        self.require_campaign()
        return Store.open(self.database_url, None if self.database.is_file() else self._setting("name"))

    def require_campaign(self) -> None:
        """Raise `RunError` unless this is the run folder of a campaign."""
        if not self.holds_campaign:
            raise RunError(f"{self.path} is not a run folder; start a campaign with `discovery launch`")

    def _setting(self, key: str) -> Any:
        """Return a setting of the stored configuration without importing the plug-ins that it names."""
        try:
            return (yaml.safe_load(self.config.read_text()) or {}).get(key)
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise RunError(f"{self.config} cannot be read: {error}; restore it") from error

    @property
    def log(self) -> Path:
        """Events, one JSON object per line."""
        return self.path / "campaign.log"

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self.path / "report.md"

    @property
    def request(self) -> Path:
        """What the driver is asked to do; see :mod:`discovery.control`."""
        return self.path / "request.json"

    @property
    def report_page(self) -> Path:
        """The report as one HTML file."""
        return self.path / "report.html"

    def calculation(self, subject_id: str, role: str) -> Path:
        """Return the folder of one calculation."""
        return self.path / "calculations" / file_name(subject_id) / role

    def checkpoint(self, round: int) -> Path:
        """Return the folder of the weights trained after a round."""
        return self.path / "checkpoints" / f"r{round:02d}"

    @property
    def _lock(self) -> Path:
        return self.path / "driver.lock"

    def create(self) -> None:
        """Make the folder.

        Raises
        ------
        RunError
            If it holds something already, or cannot be written.
        """
        self.require_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be created: {error.strerror}; choose another run_dir") from error
        self.check_writable()

    def require_new(self) -> None:
        """Raise `RunError` if the folder holds something already."""
        if self.holds_campaign:
            raise RunError(
                f"{self.path} already holds a campaign; continue it with `discovery resume {self.path}`, or launch "
                "into another folder with run_dir=FOLDER"
            )
        if self.path.is_dir() and any(entry.name != self._lock.name for entry in self.path.iterdir()):
            raise RunError(f"{self.path} is not empty; launch into another folder with run_dir=FOLDER")

    def remove(self) -> None:
        """Delete the folder of a campaign that could not begin."""
        shutil.rmtree(self.path, ignore_errors=True)

    def check_writable(self) -> None:
        """Raise `RunError` if the folder is missing, read-only or on a full disk."""
        if not self.path.is_dir():
            raise RunError(f"{self.path} does not exist; start a campaign with `discovery launch`")
        probe = self.path / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"0")
            probe.unlink()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}; mend that, or choose another") from error
        if free < MIN_FREE_BYTES:
            raise RunError(
                f"{self.path}: only {free / 2**20:.0f} MiB are free on its disk, {MIN_FREE_BYTES / 2**20:.0f} MiB are "
                "needed to begin; free some space"
            )

    @contextmanager
    def driver(self) -> Iterator[None]:
        """Be the only driver of this run; the operating system ends the claim with the process.

        Raises
        ------
        RunError
            If another driver is at work.
        """
        advice = f"wait for it, or watch it with `discovery status {self.path}`"
        with locked(self._lock, str(self.path), advice):
            yield

    def driver_pid(self) -> int | None:
        """Return the process id of the driver that is at work, or None."""
        for _ in range(_LOCK_TRIES):  # a driver has the lock an instant before its id is written
            if not self.has_driver():
                return None
            text = self._lock.read_text().strip()
            if text.isdigit():
                return int(text)
            time.sleep(0.05)
        return None

    def has_driver(self) -> bool:
        """Whether a driver is at work."""
        try:
            with self._lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False
