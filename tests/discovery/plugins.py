"""Plug-ins for tests of the engine, so cheap that a whole campaign takes a fraction of a second."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, reference_states
from pydantic import Field

from discovery.crystal import Crystal
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, Evaluation, LabelledCrystal, Sample, Target
from oracles.emt import EMTOracle

ENTRY_POINTS = """
[discovery.generators]
lattices = tests.discovery.plugins:LatticeGenerator
[discovery.oracles]
watched = tests.discovery.plugins:WatchedOracle
"""


CELLS = (
    np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]]),
    np.eye(3),
)
"""Primitive vectors of the three cubic lattices."""


def install(folder: Path) -> None:
    """Make these plug-ins known to this process and those it starts, as an installed package would."""
    package = folder / "engine_test_plugins-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: engine-test-plugins\nVersion: 1\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    sys.path.append(str(folder))
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, str(folder), os.environ.get("PYTHONPATH", "")])


class LatticeGenerator:
    """Atoms in random order on an fcc, bcc or simple cubic lattice, at a volume near the one Vegard's rule gives.

    It learns: its weights are a number that shifts its seeds.
    """

    class Config(PluginConfig):
        """There are no options."""

    def __init__(self, config: Config) -> None:
        self._weights = Checkpoint("shipped", hashlib.sha256(b"0").hexdigest())
        self._shift = 0

    @property
    def checkpoint(self) -> Checkpoint:
        return self._weights

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        rng = np.random.default_rng([seed, self._shift])
        return [
            Sample(index, _layers(target, rng)) for index, target in enumerate(targets) for _ in range(target.n_samples)
        ]

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint:
        path = folder / "weights.json"
        path.write_text(json.dumps({"shift": seed % 1000 + len(crystals)}))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        trained_on = tuple(crystal.id for crystal in crystals)
        self.load(Checkpoint(str(path), sha256, self._weights.sha256, trained_on, {"loss": 0.1}))
        return self._weights

    def load(self, checkpoint: Checkpoint) -> None:
        self._shift = json.loads(Path(checkpoint.path).read_text())["shift"]
        self._weights = checkpoint


def _layers(target: Target, rng: np.random.Generator) -> Crystal:
    """Return a stack of layers with one atom each."""
    assert target.composition is not None
    numbers = [atomic_numbers[element] for element, count in target.composition.items() for _ in range(count)]
    a = np.mean([reference_states[number]["a"] for number in numbers]) * rng.uniform(0.95, 1.05)
    primitive = CELLS[rng.integers(len(CELLS))]
    n = len(numbers)
    lattice = primitive * (a**3 / 4 / np.linalg.det(primitive)) ** (1 / 3) * np.array([[1], [1], [n]])
    frac_coords = np.array([[0, 0, layer / n] for layer in range(n)])
    return Crystal(lattice, frac_coords, rng.permutation(numbers))


class WatchedOracle(EMTOracle):
    """EMT without relaxation that tells which process on which node computes, and hangs on one formula if asked to.

    It hangs at the first try only, in a program that it has started, and does not end when it is asked to.
    """

    class Config(EMTOracle.Config):
        """Options of the oracle."""

        relax: bool = False
        hangs_on: str = Field("", description="Formula on which it hangs.")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._hangs_on = config.hangs_on

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:
        if folder is not None:
            import ray

            node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
            (folder / "who.json").write_text(json.dumps({"pid": os.getpid(), "node": node}))
        hangs = self._hangs_on in [crystal.formula for crystal in crystals]
        if hangs and folder is not None and not (folder / "hangs").exists():
            program = [sys.executable, "-m", "oracles.leash", str(os.getpid()), "sleep", "600"]
            child = subprocess.Popen(program)
            (folder / "hangs").write_text(str(child.pid))
            while True:
                with suppress(KeyboardInterrupt):
                    time.sleep(1)
        return super().evaluate(crystals, folder=folder)
