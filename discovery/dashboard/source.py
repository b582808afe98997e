"""Campaigns to watch: found in run folders and databases, opened for reading, read again when something has changed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from discovery.errors import DiscoveryError
from discovery.runfolder import RunFolder
from discovery.store import Store
from discovery.store.queries import Queries
from discovery.store.urls import is_url

Value = TypeVar("Value")

RESERVED_KEYS = {"compare", "assets", "download"}
"""First parts of addresses that name no campaign."""


@dataclass(frozen=True, eq=False)
class Source:
    """One campaign's store, open for reading.

    Parameters
    ----------
    key
        Names the campaign in addresses of pages; unique among those shown.
    store
        Its database.
    folder
        Its run folder; None if only the database is known.
    """

    key: str
    store: Store
    folder: RunFolder | None
    _values: dict[str, tuple[Hashable, Any]] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    @classmethod
    def open(cls, run_dir: Path, key: str = "") -> Source:
        """Open a run folder for reading."""
        folder = RunFolder(run_dir)
        return cls(key, folder.read_store(), folder)

    @property
    def queries(self) -> Queries:
        """What those who watch ask of the store."""
        return Queries(self.store)

    @property
    def has_driver(self) -> bool:
        """Whether a driver is at work."""
        return (self.folder is not None and self.folder.has_driver()) or self.store.has_driver()

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    def remembered(self, name: str, state: Hashable, make: Callable[[], Value]) -> Value:
        """Return what `make` gives, made anew only if `state` differs from that of the last call with this `name`."""
        with self._lock:
            known = self._values.get(name)
            if known is None or known[0] != state:
                known = self._values[name] = (state, make())
            return known[1]


class Sources:
    """All campaigns that are watched; those that begin later in a watched folder or database are found as well.

    Parameters
    ----------
    places
        Run folders, folders that hold run folders, and URLs of databases.
    """

    def __init__(self, places: Iterable[Path | str]) -> None:
        self._places = tuple(places)
        self._sources: dict[tuple[str, str], Source] = {}
        self._problems: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def all(self) -> dict[str, Source]:
        """Return key → campaign; those that cannot be read are among the :attr:`problems`."""
        with self._lock:
            for place, name in self._found():
                if (place, name) in self._sources:
                    continue
                try:
                    self._sources[place, name] = self._open(place, name)
                    self._problems.pop((place, name), None)
                except DiscoveryError as error:
                    self._problems[place, name] = str(error)
            return {source.key: source for source in self._sources.values()}

    @property
    def problems(self) -> tuple[str, ...]:
        """Why campaigns that :meth:`all` has found last cannot be shown."""
        return tuple(self._problems.values())

    def _found(self) -> Iterator[tuple[str, str]]:
        """Yield (run folder, its name) and (URL, campaign)."""
        for place in self._places:
            if is_url(place):
                yield from ((str(place), record.name) for record in Store.campaigns(place))
                continue
            folder = Path(place).resolve()
            if RunFolder(folder).holds_campaign:
                yield str(folder), folder.name
            elif folder.is_dir():
                inside = sorted(entry for entry in folder.iterdir() if RunFolder(entry).holds_campaign)
                yield from ((str(entry), entry.name) for entry in inside)

    def _open(self, place: str, name: str) -> Source:
        key = self._key(name)
        if is_url(place):
            return Source(key, Store.read(place, name), None)
        return Source.open(Path(place), key)

    def _key(self, name: str) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "campaign"
        taken = RESERVED_KEYS | {source.key for source in self._sources.values()}
        return next(key for n in range(len(taken) + 1) if (key := f"{slug}-{n + 1}" if n else slug) not in taken)
