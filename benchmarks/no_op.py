"""An oracle and a generator that do next to nothing, so that what is measured is the engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from ase.data import atomic_numbers
from large_campaign import ELEMENTS, SCALES, PairModel
from pydantic import Field

from discovery.crystal import Crystal
from discovery.protocols import PluginConfig
from discovery.types import Evaluation, Sample, Target
from generators.weightless import WeightlessGenerator

ENTRY_POINTS = """
[discovery.oracles]
no_op = no_op:NoOpOracle
[discovery.generators]
no_op = no_op:NoOpGenerator
"""


def install(folder: Path) -> None:
    """Make the two known to this process and to those it starts, as an installed package would."""
    package = folder / "no_op-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: no-op\nVersion: 1\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    here = Path(__file__).parent
    paths = [str(folder), str(here.parent), str(here)]  # the packages before the benchmarks that are called like them
    sys.path[:] = [path for path in sys.path if path != str(here)] + paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


class NoOpOracle:
    """Gives the energies of invented campaigns, with noise that follows from the crystal; relaxes nothing."""

    class Config(PluginConfig):
        """Options of the oracle that does next to nothing."""

        role: Literal["screening", "reference"] = Field(description="Whose energy scale it answers on.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.energy_scale = SCALES[config.role]

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order."""
        return [self._evaluate(crystal) for crystal in crystals]

    def _evaluate(self, crystal: Crystal) -> Evaluation:
        numbers = list(crystal.atomic_numbers)
        counts = np.array([numbers.count(number) for number in ELEMENTS.values()])
        noise = np.random.default_rng(int(crystal.content_hash[:8], 16))
        screening, reference = PairModel(np.random.default_rng(0)).energies(counts, noise)
        return Evaluation(
            self.energy_scale,
            crystal=crystal,
            energy=screening if self.config.role == "screening" else reference,
            forces=np.zeros((len(crystal), 3)),
            stress=np.zeros((3, 3)),
            converged=True,
        )


class NoOpGenerator(WeightlessGenerator):
    """Gives random coordinates in orthorhombic cells of 15 Å³ per atom."""

    name = "no_op"

    class Config(PluginConfig):
        """There are no options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return the samples of each target."""
        rng = np.random.default_rng(seed)
        return [
            Sample(index, crystal_of(target.composition or {}, rng))
            for index, target in enumerate(targets)
            for _ in range(target.n_samples)
        ]


def crystal_of(composition: dict[str, int], rng: np.random.Generator) -> Crystal:
    """Return a crystal with its atoms in a row along the diagonal of a random box."""
    numbers = [atomic_numbers[element] for element, n in composition.items() for _ in range(n)]
    lengths = rng.uniform(1.0, 3.0, 3)
    lengths *= (15.0 * len(numbers) / lengths.prod()) ** (1 / 3)
    steps = np.arange(len(numbers))[:, None] / len(numbers)
    return Crystal(np.diag(lengths), (steps + rng.uniform(0, 0.1 / len(numbers), (len(numbers), 3))) % 1, numbers)
