"""When the generator learns: after so many verdicts or crystals, some hours, or when the search has come to a halt."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from discovery.protocols import CampaignView, PluginConfig
from discovery.types import LabelledCrystal


class LearningRule(PluginConfig):
    """Conditions of which one is enough; without any, whatever is new is a reason to learn."""

    crystals: int | None = Field(None, ge=1, description="Stable or metastable crystals not yet learned from.")
    verdicts: int | None = Field(None, ge=1, description="Verdicts since the generator has learned.")
    hours: float | None = Field(
        None, gt=0, description="Hours since then, or since the driver has begun; in streaming campaigns only."
    )
    idle_verdicts: int | None = Field(None, ge=1, description="Verdicts in a row without a new phase on the hull.")
    idle_rounds: int | None = Field(
        None, ge=1, description="Rounds without a new phase on the hull since one was found or the generator learned."
    )

    def reason(self, view: CampaignView, lessons: Sequence[LabelledCrystal]) -> str | None:
        """Return why the generator should learn from `lessons` now, in words and numbers; None if it should not yet."""
        since, new = view.since_learning, f"{len(lessons)} new crystal{'s' if len(lessons) != 1 else ''}"
        if not self.model_dump(exclude_none=True):
            return new
        conditions = (
            (self.crystals, len(lessons), f"{new}, at least {self.crystals} wanted"),
            (self.verdicts, since.verdicts, f"{since.verdicts} verdicts since it has learned, {new}"),
            (self.hours, since.hours, f"{since.hours:.2f} hours since it has learned, {new}"),
            (
                self.idle_verdicts,
                since.idle_verdicts,
                f"{since.idle_verdicts} verdicts without a new phase on the hull, {new}",
            ),
            (self.idle_rounds, since.idle_rounds, f"{since.idle_rounds} rounds without a new phase on the hull, {new}"),
        )
        return next((text for limit, value, text in conditions if limit is not None and value >= limit), None)
