"""What the oracles of force fields share: batched evaluation, and fine-tuning into a new checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from discovery.crystal import Crystal
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, EnergyScale, Evaluation
from oracles import finetune
from oracles.relax import BatchConfig, evaluate_batch


class ForceFieldOracle(ABC):
    """Computes many crystals in one pass of a force field; its energy scale names the weights."""

    FineTuneConfig: ClassVar[type[PluginConfig]] = finetune.FineTuneConfig

    def __init__(
        self,
        config: BatchConfig,
        force_field: finetune.TrainableForceField,
        supported: Collection[int],
        energy_scale: EnergyScale,
    ) -> None:
        self._config = config
        self._force_field = force_field
        self._supported = supported
        self.energy_scale = energy_scale

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order."""
        return evaluate_batch(
            crystals,
            self._force_field,
            energy_scale=self.energy_scale,
            supported=self._supported,
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
        """Learn from another oracle's results; write the weights into `folder` and use them from now on."""
        parent = self.energy_scale.potentials
        metrics = finetune.fine_tune(self._force_field, training, validation, config)
        learned = training[0].energy_scale
        folder.mkdir(parents=True, exist_ok=True)
        path, digest = self._save(folder, {**metadata, "parent": parent, "metrics": metrics}, learned)
        self.energy_scale = replace(
            self.energy_scale, functional=learned.functional, corrections=learned.corrections, potentials=digest
        )
        return Checkpoint(str(path), digest, parent, metrics=metrics)

    @abstractmethod
    def _save(self, folder: Path, metadata: Mapping[str, Any], learned: EnergyScale) -> tuple[Path, str]:
        """Write weights that have learned from the scale `learned`; return what names them by path, and their hash."""
