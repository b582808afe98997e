"""Speed of UniMat's variants: cost of a network evaluation, dense against token, and of a training step.

Weights are random, as speed does not depend on them. Times are processor times of one thread, so that other work
on the machine does not count. Sampling is timed over a few steps and given per crystal and network evaluation. A
training step is timed through DeepSpeed and in a plain torch loop that does the same. Run as::

    python benchmarks/unimat.py --out benchmarks/results/unimat_speed.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from record import write_record

from generators.data import CrystalArrays
from generators.diffusion import Sampler
from generators.training import ExponentialMovingAverage, TrainingConfig, train
from generators.unimat.dense import DenseModel, DenseModelConfig
from generators.unimat.model import TokenModel, TokenModelConfig, UniMatModel
from generators.unimat.representation import DenseLayout

STEPS = 2


def crystals(n: int, n_atoms: int) -> CrystalArrays:
    """Random crystals of binary compositions with at most 20 atoms of an element."""
    rng = np.random.default_rng(0)
    numbers = np.where(np.arange(n_atoms) < (n_atoms + 1) // 2, 12, 8)
    return CrystalArrays(
        np.tile(np.eye(3) * 3 * n_atoms ** (1 / 3), (n, 1, 1)) + rng.uniform(-0.3, 0.3, (n, 3, 3)),
        np.full(n, n_atoms),
        rng.random((n * n_atoms, 3)),
        np.tile(numbers, n),
        np.zeros((n, 0)),
    )


def seconds_per_evaluation(model: UniMatModel, n_atoms: int, batch: int, repeats: int) -> float:
    """Return the median time of one network evaluation per crystal, s."""
    numbers, _ = crystals(batch, n_atoms).padded()
    times = []
    for repeat in range(repeats + 1):
        start = time.process_time()
        model.sample(numbers, generator=torch.Generator().manual_seed(repeat), sampler=Sampler(STEPS))
        times.append((time.process_time() - start) / (STEPS * batch))
    return median(times[1:])


def plain_steps(model: UniMatModel, batches: Iterator[list[object]], config: TrainingConfig) -> list[float]:
    """Train as :func:`generators.training.train` does, without DeepSpeed; return the time of each step, s."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=0.0)
    ema = ExponentialMovingAverage(model, config.ema_decay)
    times = []
    for step in range(config.steps):
        start = time.process_time()
        noise = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for batch in next(batches):
            (sum(model(batch, noise)) / config.micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.step()
        ema.update(model, step)
        times.append(time.process_time() - start)
    return times


def deepspeed_steps(model: UniMatModel, batches: Iterator[list[object]], config: TrainingConfig) -> list[float]:
    """Return the time of each step through DeepSpeed, s."""
    marks: list[float] = []

    def on_step(*_: object) -> None:
        marks.append(time.process_time())

    train(model, batches, config, on_step=on_step)
    return np.diff(marks).tolist()


def compare_training(make: Callable[[], UniMatModel], batch_size: int, steps: int) -> dict[str, float]:
    """Return the median time of a step with and without DeepSpeed, and their ratio."""
    data = crystals(batch_size, 8)

    def batches(model: UniMatModel) -> Iterator[list[object]]:
        while True:
            yield [model.batch(data)]

    config = TrainingConfig(steps=steps, batch_size=batch_size, micro_batches=1)
    plain, deepspeed = [], []
    for _ in range(2):
        for run, times in ((plain_steps, plain), (deepspeed_steps, deepspeed)):
            torch.manual_seed(0)
            model = make()
            model.fit_normalisation(data)
            times += run(model, batches(model), config)[2:]
    return {"plain": median(plain), "deepspeed": median(deepspeed), "ratio": median(deepspeed) / median(plain)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=[64], help="of the dense network; the paper has 256")
    parser.add_argument("--training-steps", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    token = TokenModel(TokenModelConfig()).eval()
    sampling: dict[str, dict[str, float]] = {"token": {}}
    for n_atoms, batch in ((4, 1), (4, 64), (8, 1), (8, 64), (20, 1), (20, 64)):
        sampling["token"][f"{n_atoms} atoms, batch {batch}"] = seconds_per_evaluation(token, n_atoms, batch, 5)
    for slots, width in [(3, 64), *((20, width) for width in args.widths)]:
        name = f"unet3d width {width}, {slots} slots"
        dense = DenseModel(DenseModelConfig(DenseLayout(slots), width=width)).eval()
        sampling[name] = {}
        for n_atoms, batch in ((4, 1), (4, 4), (20, 1)):
            if (n_atoms + 1) // 2 <= slots:
                sampling[name][f"{n_atoms} atoms, batch {batch}"] = seconds_per_evaluation(dense, n_atoms, batch, 2)
        print(name, sampling[name], file=sys.stderr, flush=True)
    best_dense = min(sampling[f"unet3d width {args.widths[0]}, 20 slots"].values())
    training = {
        f"token, batch {batch}": compare_training(lambda: TokenModel(TokenModelConfig()), batch, args.training_steps)
        for batch in (8, 64)
    }
    training["unet3d width 16, 4 slots, batch 8"] = compare_training(
        lambda: DenseModel(DenseModelConfig(DenseLayout(4), width=16)), 8, args.training_steps
    )
    results = {
        "seconds_per_crystal_and_evaluation": sampling,
        "dense_over_token": {
            key: best_dense / value for key, value in sampling["token"].items() if key.endswith("batch 64")
        },
        "seconds_per_training_step": training,
        "parameters": {
            "token": sum(p.numel() for p in token.parameters()),
            **{
                f"unet3d width {width}": sum(
                    p.numel() for p in DenseModel(DenseModelConfig(DenseLayout(20), width=width)).parameters()
                )
                for width in args.widths
            },
        },
    }
    write_record(args.out, results, seed=0, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
