"""Effective-medium theory: seven fcc metals in milliseconds, for trying the engine out and for its tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discovery.crystal import Crystal
from discovery.types import EnergyScale, Evaluation
from oracles.relax import RelaxConfig, evaluate

ELEMENTS = frozenset({13, 28, 29, 46, 47, 78, 79})
"""Atomic numbers of Al, Ni, Cu, Pd, Ag, Pt and Au, the metals the potential was fitted to."""


class EMTOracle:
    """Effective-medium theory as implemented in ASE.

    Energies are relative to the fcc elements, eV per cell. Source: Jacobsen, Stoltze, Nørskov, Surf. Sci. 366, 394
    (1996), https://doi.org/10.1016/0039-6028(96)00816-3.
    """

    class Config(RelaxConfig):
        """Settings of the EMT oracle."""

    def __init__(self, config: Config) -> None:
        from ase import __version__
        from ase.calculators.emt import EMT

        self._config = config
        self._calculator = EMT
        self.energy_scale = EnergyScale(code="emt", version=__version__, functional="EMT")

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order."""
        return [
            evaluate(
                crystal,
                self._calculator(),
                energy_scale=self.energy_scale,
                supported=ELEMENTS,
                config=self._config,
            )
            for crystal in crystals
        ]
