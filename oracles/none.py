"""No oracle at all: crystals stay as they are and none is better than another. The control for screening."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discovery.crystal import Crystal
from discovery.protocols import PluginConfig
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind


class NoOracle:
    """Gives every crystal the energy zero, unrelaxed, so that whoever selects by energy learns nothing."""

    class Config(PluginConfig):
        """There are no settings."""

    def __init__(self, config: Config) -> None:  # noqa: ARG002
        self.energy_scale = EnergyScale(code="none", version="1", functional="none")

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order."""
        return [self._evaluate(crystal) for crystal in crystals]

    def _evaluate(self, crystal: Crystal) -> Evaluation:
        if not len(crystal):
            failure = Failure(FailureKind.INVALID_INPUT, "the crystal has no atoms")
            return Evaluation(self.energy_scale, failure=failure)
        return Evaluation(self.energy_scale, crystal=crystal, energy=0.0, converged=True)
