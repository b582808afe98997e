"""The control agent: whatever a method gains must show against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from agents.budget import affordable_calls
from agents.compositions import stoichiometries
from agents.learning import LearningRule
from discovery.protocols import CampaignView, PluginConfig
from discovery.types import Budget, Candidate, LabelledCrystal, Target


class RandomAgent:
    """Asks for uniformly drawn cells and computes uniformly drawn candidates."""

    class Config(PluginConfig):
        """Options of the random agent."""

        learn: LearningRule = Field(LearningRule(), description="When the generator learns; one condition is enough.")

    def __init__(self, config: Config) -> None:
        self.config = config

    def propose(self, view: CampaignView, n: int) -> list[Target]:
        """Return at most `n` targets, drawn without replacement from all cells of up to `max_atoms` atoms."""
        cells = [
            stoichiometry.cell(units)
            for stoichiometry in stoichiometries(view.elements, view.max_atoms)
            for units in range(1, view.max_atoms // stoichiometry.n_atoms + 1)
        ]
        drawn = np.random.default_rng(view.seed).permutation(len(cells))[:n]
        reason = f"drawn uniformly from {len(cells)} cells"
        return [Target(view.samples_per_target, composition=cells[index], reason=reason) for index in drawn]

    def select(self, view: CampaignView, screened: Sequence[Candidate], budget: Budget) -> list[tuple[Candidate, str]]:
        """Return candidates in random order, as many as the budget allows."""
        drawn = np.random.default_rng(view.seed).permutation(len(screened))[: affordable_calls(budget)]
        return [(screened[index], f"drawn uniformly from {len(screened)} candidates") for index in drawn]

    def reason_to_learn(self, view: CampaignView, lessons: Sequence[LabelledCrystal]) -> str | None:
        """Return why the generator should learn now; by default whatever is new is a reason."""
        return self.config.learn.reason(view, lessons)
