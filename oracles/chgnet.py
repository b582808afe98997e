"""CHGNet: the default force field for screening; its weights come with the installed package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from discovery.checkpoints import load, save, sha256
from discovery.crystal import Crystal
from discovery.errors import InvalidInputError, MissingDependencyError
from discovery.types import EnergyScale
from oracles.force_field import ForceFieldOracle
from oracles.relax import BatchConfig

MODEL = "0.3.0"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS = "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
ELEMENTS = range(1, 95)


class CHGNetOracle(ForceFieldOracle):
    """CHGNet 0.3.0 (Deng et al., Nature Machine Intelligence 5, 1031, 2023).

    Its energies are those of its training set MPtrj: PBE and PBE+U, with the Materials Project 2020 corrections. A
    fine-tuned model approaches the energies of the oracle that it has learned from, on a scale of its own.
    One thread per process is fastest for small crystals: set ``OMP_NUM_THREADS=1``.
    """

    class Config(BatchConfig):
        """Settings of the CHGNet oracle."""

        model: str = Field(
            MODEL, description=f"The published checkpoint, {MODEL}, or a file that `discovery finetune` has written."
        )

    def __init__(self, config: Config) -> None:
        import chgnet
        import torch
        from chgnet.model import CHGNet

        from oracles.chgnet_model import CHGNetForceField

        weights = Path(chgnet.__file__).parent / WEIGHTS
        if not weights.is_file():
            raise MissingDependencyError(
                f"CHGNet's weights {weights} are missing; reinstall them with `pip install --force-reinstall chgnet`"
            )
        state = torch.load(weights, map_location="cpu", weights_only=True)
        with redirect_stdout(StringIO()):
            model = CHGNet.from_dict(state["model"], mlp_out_bias=False, version=MODEL)
        functional, corrections = "PBE+U", "MP2020"
        if config.model != MODEL:
            weights = Path(config.model).expanduser()
            functional, corrections = _load(model, weights)
        scale = EnergyScale("chgnet", MODEL, functional, potentials=sha256(weights), corrections=corrections)
        super().__init__(config, CHGNetForceField(model), ELEMENTS, scale)
        self._warm_up()

    def _warm_up(self) -> None:
        """Compute one crystal: the first one pays for lazy initialisation, and torch warns of CHGNet's code once."""
        copper = Crystal(np.array([[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]]), np.zeros((1, 3)), np.array([29]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.evaluate([copper])

    def _save(self, folder: Path, metadata: Mapping[str, Any], learned: EnergyScale) -> tuple[Path, str]:
        path = folder / WEIGHTS_FILE
        scale = {"functional": learned.functional, "corrections": learned.corrections}
        weights = self._force_field.module.state_dict()
        return path, save(path, weights, {**metadata, "model": f"CHGNet {MODEL}"} | scale)


def _load(model: Any, path: Path) -> tuple[str, str]:
    """Put fine-tuned weights into `model`; return the functional and the corrections of what it has learned from."""
    weights, metadata = load(path)
    try:
        model.load_state_dict(weights)
        return metadata["functional"], metadata["corrections"]
    except (RuntimeError, KeyError) as error:
        raise InvalidInputError(f"{path} holds no weights of CHGNet {MODEL}: {error}") from error
