"""The state machine of a candidate; the diagram is in ``docs/architecture.md``, section 3."""

from __future__ import annotations

from collections.abc import Mapping

from discovery.errors import DiscoveryError
from discovery.types import State

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.SAMPLED: frozenset({State.ADMITTED, State.REJECTED}),
    State.ADMITTED: frozenset({State.SCREENED, State.FAILED, State.PASSED_OVER}),
    State.SCREENED: frozenset({State.SELECTED, State.PASSED_OVER}),
    State.SELECTED: frozenset({State.COMPUTED, State.FAILED, State.PASSED_OVER}),
    State.COMPUTED: frozenset({State.JUDGED}),
    State.JUDGED: frozenset({State.LEARNED}),
    State.LEARNED: frozenset(),
    State.REJECTED: frozenset(),
    State.FAILED: frozenset(),
    State.PASSED_OVER: frozenset(),
}
"""State → states that may follow. It has no cycle, so that a candidate enters each state at most once."""

IN_FLIGHT = frozenset({State.SAMPLED, State.ADMITTED, State.SCREENED, State.SELECTED, State.COMPUTED})
"""States of candidates on which work remains."""


class IllegalTransitionError(DiscoveryError):
    """A candidate was about to take an arrow that the state machine does not have."""


def check_transition(candidate_id: str, current: State, new: State) -> None:
    """Raise `IllegalTransitionError` unless `new` may follow `current`."""
    if new not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "nothing"
        raise IllegalTransitionError(f"candidate {candidate_id} is {current}; {allowed} may follow, not {new}")
