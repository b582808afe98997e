"""What generators without weights have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from discovery.errors import InvalidInputError
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, LabelledCrystal


class VolumeRangeConfig(PluginConfig):
    """Options of generators that draw the cell's volume from a range; each says in which units."""

    volume_factor: tuple[float, float]

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        low, high = self.volume_factor
        if not 0 < low <= high:
            raise ValueError("volume_factor needs two numbers, 0 < smallest <= largest")
        return self


class WeightlessGenerator:
    """The half of the protocol ``Generator`` that concerns weights, for generators that have none."""

    name: ClassVar[str]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """None: there are no weights."""
        return None

    def load(self, checkpoint: Checkpoint) -> None:
        """Refuse: there are no weights."""
        raise InvalidInputError(f"{self.name} has no weights and cannot load {checkpoint.path}")

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:  # noqa: ARG002
        """Return None: there is nothing to train."""
        return None
