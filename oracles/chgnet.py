"""CHGNet: the default force field for screening; its weights come with the installed package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError, MissingDependencyError
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, EnergyScale, Evaluation
from generators.checkpoints import load, save, sha256
from oracles import finetune
from oracles.relax import BatchConfig, evaluate_batch

MODEL = "0.3.0"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS = "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
ELEMENTS = range(1, 95)


class CHGNetOracle:
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

    FineTuneConfig: ClassVar[type[PluginConfig]] = finetune.FineTuneConfig

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
        self._force_field = CHGNetForceField(model)
        self._config = config
        self.energy_scale = EnergyScale(
            code="chgnet",
            version=MODEL,
            functional=functional,
            potentials=sha256(weights),
            corrections=corrections,
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
        return evaluate_batch(
            crystals,
            self._force_field,
            energy_scale=self.energy_scale,
            supported=ELEMENTS,
            config=self._config,
            batch_atoms=self._config.batch_atoms,
        )

    def fine_tune(
        self,
        training: Sequence[Evaluation],
        validation: Sequence[Evaluation],
        *,
        config: finetune.FineTuneConfig,
        folder: Path,
        metadata: Mapping[str, Any],
    ) -> Checkpoint:
        """Learn from another oracle's results; write ``model.safetensors`` into `folder` and use it from now on."""
        parent = self.energy_scale.potentials
        metrics = finetune.fine_tune(self._force_field, training, validation, config)
        path = folder / WEIGHTS_FILE
        scale = training[0].energy_scale
        digest = save(
            path,
            self._force_field.module.state_dict(),
            {**metadata, "model": f"CHGNet {MODEL}", "parent": parent, "metrics": metrics}
            | {"functional": scale.functional, "corrections": scale.corrections},
        )
        self.energy_scale = replace(
            self.energy_scale, functional=scale.functional, corrections=scale.corrections, potentials=digest
        )
        return Checkpoint(str(path), digest, parent, metrics=metrics)


def _load(model: Any, path: Path) -> tuple[str, str]:
    """Put fine-tuned weights into `model`; return the functional and the corrections of what it has learned from."""
    weights, metadata = load(path)
    try:
        model.load_state_dict(weights)
        return metadata["functional"], metadata["corrections"]
    except (RuntimeError, KeyError) as error:
        raise InvalidInputError(f"{path} holds no weights of CHGNet {MODEL}: {error}") from error
