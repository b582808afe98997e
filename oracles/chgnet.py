"""CHGNet: the default force field for screening; its weights come with the installed package."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import EnergyScale, Evaluation
from oracles.relax import RelaxConfig, evaluate

MODEL = "0.3.0"
WEIGHTS = "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
ELEMENTS = range(1, 95)


class CHGNetOracle:
    """CHGNet 0.3.0 (Deng et al., Nature Machine Intelligence 5, 1031, 2023).

    Its energies are those of its training set MPtrj: PBE and PBE+U, with the Materials Project 2020 corrections.
    One thread per process is fastest for small crystals: set ``OMP_NUM_THREADS=1``.
    """

    class Config(RelaxConfig):
        """Settings of the CHGNet oracle."""

    def __init__(self, config: Config) -> None:
        import chgnet
        import torch
        from chgnet.model import CHGNet, CHGNetCalculator

        weights = Path(chgnet.__file__).parent / WEIGHTS
        if not weights.is_file():
            raise MissingDependencyError(
                f"CHGNet's weights {weights} are missing; reinstall them with `pip install --force-reinstall chgnet`"
            )
        state = torch.load(weights, map_location="cpu", weights_only=True)
        with redirect_stdout(StringIO()):
            model = CHGNet.from_dict(state["model"], mlp_out_bias=False, version=MODEL)
            self._calculator = CHGNetCalculator(model, use_device="cpu", on_isolated_atoms="error")
        self._config = config
        self.energy_scale = EnergyScale(
            code="chgnet",
            version=MODEL,
            functional="PBE+U",
            potentials=hashlib.sha256(weights.read_bytes()).hexdigest(),
            corrections="MP2020",
        )
        self._warm_up()

    def _warm_up(self) -> None:
        """Compute one crystal: the first one pays for lazy initialisation, and torch warns of CHGNet's code once."""
        copper = Crystal(np.array([[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]]), np.zeros((1, 3)), np.array([29]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.evaluate([copper])

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order."""
        return [
            evaluate(
                crystal,
                self._calculator,
                energy_scale=self.energy_scale,
                supported=ELEMENTS,
                config=self._config,
            )
            for crystal in crystals
        ]
