"""Fine-tuning of force fields on energies, forces and stresses of another oracle."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.protocols import PluginConfig
from discovery.types import Evaluation, Failure
from oracles.relax import Answer


class FineTuneConfig(PluginConfig):
    """Settings of a fine-tuning."""

    epochs: int = Field(30, ge=1, description="Passes over the training pairs.")
    batch_crystals: int = Field(8, ge=1, description="Crystals per step.")
    learning_rate: float = Field(3e-4, gt=0, description="Of Adam at the start; it falls to zero along a cosine.")
    force_weight: float = Field(1.0, ge=0, description="Weight of 1 eV/Å beside 1 eV/atom.")
    stress_weight: float = Field(10.0, ge=0, description="Weight of 1 eV/Å³ beside 1 eV/atom.")
    seed: int = Field(0, ge=0, description="Of the order of the pairs.")


class TrainableForceField(Protocol):
    """A force field whose weights can be trained."""

    @property
    def module(self) -> nn.Module:
        """The network; in training mode, predictions can be differentiated by its parameters."""
        ...

    @property
    def trainable(self) -> Sequence[nn.Parameter]:
        """The parameters that are trained; not those that are fixed, such as energies of elements."""
        ...

    def compute(self, crystals: Sequence[Crystal]) -> Sequence[Answer | Failure]:
        """Return one answer per crystal, in order."""
        ...

    def predict(self, crystals: Sequence[Crystal]) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies (eV, (B,)), forces (eV/Å, (N, 3)) and stresses (eV/Å³, (B, 3, 3)) of crystals."""
        ...

    def shift(self, energies: Mapping[int, float]) -> None:
        """Add an energy (eV) per atom of each element, given by atomic number."""
        ...


def fine_tune(
    force_field: TrainableForceField,
    training: Sequence[Evaluation],
    validation: Sequence[Evaluation],
    config: FineTuneConfig,
) -> dict[str, float]:
    """Train `force_field` in place and keep the weights with the smallest error of the energies of `validation`.

    Energies of different oracles differ first of all by an energy per atom of each element, which is fitted and added
    before anything is learned. Errors are those of static calculations of the crystals as the other oracle gives them.

    Parameters
    ----------
    force_field
        What is trained.
    training, validation
        Results of the other oracle; forces and stress are used where they are known.
    config
        Settings of the training.

    Returns
    -------
    dict
        Mean absolute errors on `validation` as ``…_before`` (elements shifted, weights as they were) and ``…_after``:
        ``energy_mae`` in eV/atom, ``force_mae`` in eV/Å, ``stress_mae`` in eV/Å³; ``best_epoch``, ``seconds`` and the
        numbers of pairs.

    Raises
    ------
    InvalidInputError
        If the force field cannot compute enough of the crystals.
    """
    start = time.perf_counter()
    training, answers = _usable(force_field, training)
    validation, _ = _usable(force_field, validation)
    if not training or not validation:
        raise InvalidInputError(
            f"{len(training)} training and {len(validation)} validation pairs can be computed by the force field; "
            "at least one of each is needed"
        )
    force_field.shift(_element_shifts(training, answers))
    module = force_field.module
    parameters = [parameter.requires_grad_(True) for parameter in force_field.trainable]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    steps = config.epochs * -(-len(training) // config.batch_crystals)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(config.seed)

    before = _errors(force_field, validation)
    best, best_epoch, weights = before["energy_mae"], 0, copy.deepcopy(module.state_dict())
    for epoch in range(1, config.epochs + 1):
        module.train()
        order = rng.permutation(len(training))
        for first in range(0, len(order), config.batch_crystals):
            optimizer.zero_grad()
            batch = [training[index] for index in order[first : first + config.batch_crystals]]
            _loss(force_field, batch, config).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        errors = _errors(force_field, validation)
        if errors["energy_mae"] < best:
            best, best_epoch, weights = errors["energy_mae"], epoch, copy.deepcopy(module.state_dict())
    module.load_state_dict(weights)
    module.requires_grad_(False).eval()
    after = _errors(force_field, validation)
    return {
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
        "best_epoch": best_epoch,
        "n_training": len(training),
        "n_validation": len(validation),
        "seconds": time.perf_counter() - start,
    }


def _usable(
    force_field: TrainableForceField, evaluations: Sequence[Evaluation]
) -> tuple[list[Evaluation], list[Answer]]:
    """Return the evaluations that the force field can compute as well, and its answers."""
    pairs = []
    for evaluation in evaluations:
        (answer,) = force_field.compute([_crystal(evaluation)])
        if isinstance(answer, Answer):
            pairs.append((evaluation, answer))
    return [evaluation for evaluation, _ in pairs], [answer for _, answer in pairs]


def _crystal(evaluation: Evaluation) -> Crystal:
    if evaluation.crystal is None or evaluation.energy is None:
        raise InvalidInputError("a failed evaluation cannot be learned from")
    return evaluation.crystal


def _element_shifts(evaluations: Sequence[Evaluation], answers: Sequence[Answer]) -> dict[int, float]:
    """Return the energy per atom of each element, by least squares on energies per atom."""
    elements = sorted({int(z) for evaluation in evaluations for z in _crystal(evaluation).atomic_numbers})
    fractions = np.array([[(_crystal(e).atomic_numbers == z).mean() for z in elements] for e in evaluations])
    differences = [
        evaluation.energy_per_atom - answer.energy / len(_crystal(evaluation))
        for evaluation, answer in zip(evaluations, answers, strict=True)
    ]
    shifts, *_ = np.linalg.lstsq(fractions, np.array(differences), rcond=1e-6)
    return dict(zip(elements, shifts.tolist(), strict=True))


def _differences(
    force_field: TrainableForceField, evaluations: Sequence[Evaluation]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return errors of energies per atom, and of forces and stresses of the crystals for which they are known."""
    sizes = [len(_crystal(evaluation)) for evaluation in evaluations]
    energies, forces, stresses = force_field.predict([_crystal(evaluation) for evaluation in evaluations])
    known = energies.new_tensor([evaluation.energy_per_atom for evaluation in evaluations])
    return (
        energies / energies.new_tensor(sizes) - known,
        [
            predicted - predicted.new_tensor(evaluation.forces)
            for predicted, evaluation in zip(forces.split(sizes), evaluations, strict=True)
            if evaluation.forces is not None
        ],
        [
            predicted - predicted.new_tensor(evaluation.stress)
            for predicted, evaluation in zip(stresses, evaluations, strict=True)
            if evaluation.stress is not None
        ],
    )


def _loss(force_field: TrainableForceField, evaluations: Sequence[Evaluation], config: FineTuneConfig) -> Tensor:
    energies, forces, stresses = _differences(force_field, evaluations)
    loss = functional.l1_loss(energies, torch.zeros_like(energies))
    for weight, differences in ((config.force_weight, forces), (config.stress_weight, stresses)):
        if differences:
            loss = loss + weight * torch.cat(differences).abs().mean()
    return loss


def _errors(force_field: TrainableForceField, evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return mean absolute errors."""
    force_field.module.eval()
    found = [_differences(force_field, [evaluation]) for evaluation in evaluations]
    errors = {"energy_mae": float(torch.cat([energy.detach() for energy, _, _ in found]).abs().mean())}
    for name, column in (("force_mae", 1), ("stress_mae", 2)):
        differences: list[Any] = [tensor.detach() for item in found for tensor in item[column]]
        if differences:
            errors[name] = float(torch.cat(differences).abs().mean())
    return errors
