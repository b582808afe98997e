"""The candidates of a campaign in the driver's memory, so that a decision reads only what is new.

Whatever happens to a candidate is an arrow; those that took one since the last look are read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import overload

from discovery.store import Store
from discovery.types import Candidate, State


class Candidates:
    """All candidates that have a crystal, as the database has them at the moment they are asked for.

    Parameters
    ----------
    store
        The campaign's database; nobody else writes it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest_arrow = 0
        self._all: dict[str, Candidate] = {}
        self._ids: dict[State, set[str]] = defaultdict(set)

    def of(self, *states: State) -> list[Candidate]:
        """Return the candidates that are in one of `states`, sorted by id."""
        self._read()
        return [self._all[id_] for id_ in sorted(id_ for state in states for id_ in self._ids[state])]

    def named(self, ids: Collection[str]) -> list[Candidate]:
        """Return the candidates with these ids, sorted by id."""
        self._read()
        return [self._all[id_] for id_ in sorted(ids)]

    def count(self, *states: State) -> int:
        """Return how many candidates are in one of `states`."""
        self._read()
        return sum(len(self._ids[state]) for state in states)

    def all(self) -> list[Candidate]:
        """Return all candidates, sorted by id."""
        self._read()
        return [self._all[id_] for id_ in sorted(self._all)]

    def _read(self) -> None:
        newest = self._store.newest_arrow()
        if newest == self._newest_arrow:
            return
        for candidate in self._store.candidates(since=self._newest_arrow):
            before = self._all.get(candidate.id)
            if before is not None:
                self._ids[before.state].discard(candidate.id)
            self._all[candidate.id] = candidate
            self._ids[candidate.state].add(candidate.id)
        self._newest_arrow = newest


class LazyCandidates(Sequence[Candidate]):
    """Candidates that are gathered when somebody looks at them.

    Parameters
    ----------
    gather
        Returns them.
    """

    def __init__(self, gather: Callable[[], list[Candidate]]) -> None:
        self._gather = gather

    @cached_property
    def _gathered(self) -> list[Candidate]:
        return self._gather()

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...

    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        return self._gathered[index]

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._gathered)

    def __len__(self) -> int:
        return len(self._gathered)
