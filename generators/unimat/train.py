"""Training of the token variant from scratch: ``python -m generators.unimat.train``."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from generators.data import CrystalArrays, shuffled_batches
from generators.training import TrainingConfig, resume_step, train
from generators.unimat.generator import count_templates, save_token_checkpoint, validation_loss
from generators.unimat.model import TokenModel, TokenModelConfig

N_REPLAY = 1024
N_HELD_OUT = 128


def train_token_model(
    data: CrystalArrays,
    validation: CrystalArrays,
    model_config: TokenModelConfig,
    config: TrainingConfig,
    out: Path,
    metadata: dict[str, Any],
    *,
    log_every: int = 200,
    save_every: int = 1000,
) -> dict[str, float]:
    """Train on `data`, resuming what `out` already holds; write ``checkpoint.safetensors`` and ``log.jsonl`` there.

    Returns
    -------
    dict
        Steps, seconds and the losses of the averaged weights on `validation`.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = TokenModel(model_config)
    model.fit_normalisation(data)
    start = resume_step(out / "state")
    batches = (
        [model.batch(part) for part in parts]
        for parts in shuffled_batches(data, config.batch_size, config.micro_batches, seed=config.seed, start=start)
    )
    began = time.monotonic()
    history: list[tuple[float, ...]] = []
    log = (out / "log.jsonl").open("a")
    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    bar = progress.add_task("training", total=config.steps, completed=start, loss="")

    def on_step(done: int, losses: tuple[float, ...]) -> None:
        history.append(losses)
        progress.advance(bar)
        if done % log_every == 0:
            frac_loss, lattice_loss = np.mean(history[-log_every:], axis=0).tolist()
            progress.update(bar, loss=f"coordinates {frac_loss:.4f}, lattice {lattice_loss:.4f}")
            seconds = round(time.monotonic() - began, 1)
            row = {"step": done, "frac_loss": frac_loss, "lattice_loss": lattice_loss, "seconds": seconds}
            log.write(json.dumps(row) + "\n")
            log.flush()

    with log, progress:
        weights = train(model, batches, config, folder=out / "state", save_every=save_every, on_step=on_step)
    model.load_state_dict(weights)
    model.eval()
    frac_loss, lattice_loss = validation_loss(model, validation)
    result = {
        "steps": float(start + len(history)),
        "seconds": time.monotonic() - began,
        "validation_frac_loss": frac_loss,
        "validation_lattice_loss": lattice_loss,
    }
    rng = np.random.default_rng(config.seed)
    replay = data.take(rng.choice(len(data), min(N_REPLAY, len(data)), replace=False))
    held_out = validation.take(rng.choice(len(validation), min(N_HELD_OUT, len(validation)), replace=False))
    save_token_checkpoint(
        out / "checkpoint.safetensors",
        model,
        replay,
        held_out,
        {
            **metadata,
            "parent": None,
            "trained_on": [],
            "training": asdict(config),
            "metrics": result,
            "machine": platform.processor() or platform.machine(),
            "count_templates": count_templates(replay),
        },
    )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Train UniMat's token variant from scratch.")
    parser.add_argument("--data", type=Path, required=True, help="training set, .npz of CrystalArrays")
    parser.add_argument("--validation", type=Path, required=True, help="held-out set, .npz of CrystalArrays")
    parser.add_argument("--out", type=Path, required=True, help="folder for state, log and checkpoint")
    parser.add_argument("--steps", type=int, default=30000)
    parser.add_argument("--time-limit", type=float, help="stop after this many seconds")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--pair-width", type=int, default=80)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metadata", default="{}", help="JSON object stored in the checkpoint")
    options = parser.parse_args(arguments)
    data, validation = CrystalArrays.load(options.data), CrystalArrays.load(options.validation)
    result = train_token_model(
        data,
        validation,
        TokenModelConfig(
            width=options.width,
            pair_width=options.pair_width,
            layers=options.layers,
            property_names=data.property_names,
        ),
        TrainingConfig(
            steps=options.steps,
            batch_size=options.batch_size,
            micro_batches=options.micro_batches,
            learning_rate=options.learning_rate,
            zero_stage=options.zero_stage,
            seed=options.seed,
            time_limit=options.time_limit,
        ),
        options.out,
        json.loads(options.metadata),
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
