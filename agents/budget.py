"""What a decision may spend."""

from __future__ import annotations

import math

from discovery.types import Budget


def affordable_calls(budget: Budget) -> int | None:
    """Return how many reference calculations the budget allows; None if it sets no limit."""
    if budget.exhausted is not None:
        return 0
    left = budget.left("reference_calls")
    return None if math.isinf(left) else math.floor(left)
