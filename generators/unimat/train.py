"""Training of both variants from scratch, through DeepSpeed."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from discovery import checkpoints
from discovery.errors import InvalidInputError
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, LabelledCrystal
from generators.data import CrystalArrays, shuffled_batches
from generators.training import TrainingConfig, n_ranks, rank, resume_step, train
from generators.unimat.dense import DenseModel, DenseModelConfig
from generators.unimat.model import TokenModelConfig
from generators.unimat.representation import check_fit
from generators.unimat.weights import Model, create_model, load_checkpoint, save_checkpoint

N_REPLAY = 1024
N_HELD_OUT = 128
SAVE_EVERY = 1000


class UniMatTrainConfig(PluginConfig):
    """Settings of ``discovery train --generator unimat``."""

    variant: Literal["token", "unet3d"] = Field(
        "token", description="token: occupied slots of a given composition; unet3d: the paper's dense tensor and U-Net."
    )
    token: TokenModelConfig = Field(
        default_factory=TokenModelConfig, description="The network and noise of the token variant."
    )
    unet3d: DenseModelConfig = Field(
        default_factory=DenseModelConfig,
        description="Layout, network and noise of the dense variant; layout.slots becomes what the data need.",
    )
    initial: Path | None = Field(
        None, description="Checkpoint to begin with: its weights, network, scales and conditions; none begins anew."
    )
    training: TrainingConfig = Field(
        default_factory=TrainingConfig,
        description="Steps, batches, learning rate, averaging, ZeRO stage, bf16, seed, time limit.",
    )
    validate_every: int = Field(1000, ge=1, description="Steps between two validations of the averaged weights.")
    patience: int = Field(
        10, ge=0, description="Training ends after so many validations without improvement; 0 never ends it early."
    )
    log_every: int = Field(100, ge=1, description="Steps between two lines of the log.")


def train_model(
    crystals: Sequence[LabelledCrystal],
    validation: Sequence[LabelledCrystal],
    config: UniMatTrainConfig,
    folder: Path,
    metadata: Mapping[str, Any],
    on_validation: Callable[[int, float], None] | None = None,
) -> Checkpoint:
    """Train a model, going on with what `folder` already holds.

    The folder gets ``state`` (to resume from), ``log.jsonl`` (losses by step) and ``checkpoint.safetensors``, the
    averaged weights of the best validation so far.

    Parameters
    ----------
    crystals, validation
        Canonical cells; properties that any of them has become conditions.
    config
        What to train, and how.
    folder
        Where everything is written.
    metadata
        JSON object stored in the checkpoint.
    on_validation
        Called with the step and the sum of the losses of every validation.

    Raises
    ------
    InvalidInputError
        If there is nothing to train on or to validate with, a crystal does not fit the layout, or the loss is no
        longer a number.
    """
    if not crystals or not validation:
        raise InvalidInputError(
            f"training needs crystals for training ({len(crystals)}) and validation ({len(validation)}); add data"
        )
    torch.manual_seed(config.training.seed)
    if config.initial is None:
        found = {name for item in crystals for name, value in item.properties.items() if np.isfinite(value)}
        data, held_out = _arrays(crystals, validation, tuple(sorted(found)))
        model = create_model(_model_config(config, data.concatenate(held_out)))
        model.fit_normalisation(data)
    else:
        model, *_ = load_checkpoint(config.initial)
        data, held_out = _arrays(crystals, validation, model.property_names)
        if isinstance(model, DenseModel):
            check_fit(data.concatenate(held_out), model.config.layout)
        metadata = {**metadata, "parent": checkpoints.sha256(config.initial)}
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(model, data, held_out, config, folder, metadata, on_validation)
    start = resume_step(folder / "state")
    training = config.training
    batches = (
        [model.batch(part) for part in parts]
        for parts in shuffled_batches(
            data,
            training.batch_size,
            training.micro_batches,
            seed=training.seed,
            start=start,
            rank=rank(),
            n_ranks=n_ranks(),
        )
    )
    with run.progress(start):
        weights = train(model, batches, training, folder=folder / "state", save_every=SAVE_EVERY, on_step=run.on_step)
    run.finish(weights)
    return run.checkpoint


def _arrays(
    crystals: Sequence[LabelledCrystal], validation: Sequence[LabelledCrystal], names: tuple[str, ...]
) -> tuple[CrystalArrays, CrystalArrays]:
    return CrystalArrays.from_crystals(crystals, names), CrystalArrays.from_crystals(validation, names)


def _model_config(config: UniMatTrainConfig, data: CrystalArrays) -> TokenModelConfig | DenseModelConfig:
    if config.variant == "token":
        return replace(config.token, property_names=data.property_names)
    numbers, _ = data.padded()
    needed = max((numbers == z).sum(axis=1).max() for z in np.unique(numbers[numbers > 0]))
    layout = replace(config.unet3d.layout, slots=int(needed))
    check_fit(data, layout)
    return replace(config.unet3d, layout=layout, property_names=data.property_names)


class _Run:
    """What happens beside the steps: log, progress, validation, the best checkpoint, early stop."""

    def __init__(
        self,
        model: Model,
        data: CrystalArrays,
        validation: CrystalArrays,
        config: UniMatTrainConfig,
        folder: Path,
        metadata: Mapping[str, Any],
        on_validation: Callable[[int, float], None] | None,
    ) -> None:
        self.on_validation = on_validation
        self.config = config
        self.data, self.validation = data, validation
        self.shadow = create_model(model.config).eval()
        self.path = folder / "checkpoint.safetensors"
        self.log = folder / "log.jsonl"
        self.metadata = metadata
        self.began = time.monotonic()
        self.history: list[tuple[float, ...]] = []
        self.done = self.validated = resume_step(folder / "state")
        self.best: dict[str, float] = checkpoints.load(self.path)[1]["metrics"] if self.path.exists() else {}

    def progress(self, start: int) -> Progress:
        """Return the progress bar, on standard error."""
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(stderr=True),
            disable=rank() > 0,
        )
        self.bar.add_task("training", total=self.config.training.steps, completed=start, loss="")
        return self.bar

    def on_step(self, done: int, losses: tuple[float, ...], weights: dict[str, Tensor]) -> bool:
        """Take note of a step; return whether training should end."""
        self.done = done
        self.history.append(losses)
        self.bar.advance(self.bar.task_ids[0])
        if done % self.config.log_every == 0:
            means = np.mean(self.history, axis=0).tolist()
            self.history.clear()
            named = dict(zip(self.shadow.loss_names, means, strict=True))
            self.bar.update(self.bar.task_ids[0], loss=", ".join(f"{name} {loss:.4f}" for name, loss in named.items()))
            self._write({"step": done, "loss": named})
        if done % self.config.validate_every == 0:
            self._validate(weights)
        waited = done - self.best.get("step", done)
        return 0 < self.config.patience * self.config.validate_every <= waited

    def finish(self, weights: dict[str, Tensor]) -> None:
        """Validate the last weights, unless that is done."""
        if self.validated != self.done or not self.best:
            self._validate(weights)
        if n_ranks() > 1:
            torch.distributed.barrier()  # until the first process has written the checkpoint

    @property
    def checkpoint(self) -> Checkpoint:
        """The best weights so far."""
        return Checkpoint(str(self.path), checkpoints.sha256(self.path), metrics=self.best)

    def _write(self, row: dict[str, Any]) -> None:
        if rank() > 0:
            return
        with self.log.open("a") as log:
            log.write(json.dumps({**row, "seconds": round(time.monotonic() - self.began, 1)}) + "\n")

    def _validate(self, weights: dict[str, Tensor]) -> None:
        self.validated = self.done
        self.shadow.to(weights["lattice_mean"].device).load_state_dict(weights)
        losses = dict(zip(self.shadow.loss_names, validation_loss(self.shadow, self.validation), strict=True))
        self._write({"step": self.done, "validation": losses})
        total = sum(losses.values())
        if not np.isfinite(total):
            raise InvalidInputError(
                f"the training diverged: the validation loss is {total} at step {self.done}; remove {self.path.parent} "
                "and train again with a lower training.learning_rate"
            )
        if not self.best or total < self.best["validation_loss"]:
            self._keep(losses, total)
        if self.on_validation is not None:
            self.on_validation(self.done, total)

    def _keep(self, losses: Mapping[str, float], total: float) -> None:
        self.best = {
            "step": float(self.done),
            "validation_loss": total,
            **{f"validation_{name}_loss": loss for name, loss in losses.items()},
        }
        if rank() > 0:
            return
        rng = np.random.default_rng(self.config.training.seed)
        replay, held_out = (
            data.take(rng.choice(len(data), min(size, len(data)), replace=False))
            for data, size in ((self.data, N_REPLAY), (self.validation, N_HELD_OUT))
        )
        save_checkpoint(
            self.path,
            self.shadow,
            replay,
            held_out,
            {
                "parent": None,
                **self.metadata,
                "trained_on": [],
                "training": asdict(self.config.training),
                "metrics": self.best,
                "machine": platform.processor() or platform.machine(),
            },
        )


@torch.no_grad()
def validation_loss(model: Model, data: CrystalArrays, *, repeats: int = 4) -> tuple[float, ...]:
    """Return the mean losses on `data` that ``model.loss_names`` names, always with the same noise."""
    order = np.argsort(data.n_atoms, kind="stable")
    generator = torch.Generator().manual_seed(0)
    totals = np.zeros(len(model.loss_names))
    for _ in range(repeats):
        for first in range(0, len(data), 64):
            chosen = order[first : first + 64]
            losses = model(model.batch(data.take(chosen)), generator)
            totals += np.array([float(loss) for loss in losses]) * len(chosen)
    return tuple((totals / (repeats * len(data))).tolist())
