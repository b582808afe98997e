"""Training through DeepSpeed, shared by all learned generators.

A model is an ``nn.Module`` whose ``forward(batch, generator)`` returns a tuple of scalar losses; their sum is
minimised.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Parameters
    ----------
    steps
        Optimiser steps, also the length of the learning rate's schedule.
    batch_size, micro_batches
        Crystals per step and rank, and the number of parts a batch is accumulated from.
    learning_rate, warmup_steps, final_learning_rate
        Linear warm-up to `learning_rate`, then a cosine down to `final_learning_rate` as a fraction of it.
    betas, weight_decay
        AdamW.
    gradient_clipping
        Largest norm of the gradient.
    ema_decay
        Decay of the exponential moving average of the weights, warmed up as (1 + step)/(10 + step).
    zero_stage
        DeepSpeed's ZeRO stage, 0–2.
    bf16
        Multiply matrices in bfloat16 (GPU); weights, geometry and losses stay in float32.
    seed
        Of noise.
    time_limit
        Seconds after which training ends; the learning rate then follows time or steps, whichever is further. Without
        it, a training is reproducible to the bit on a CPU.
    """

    steps: int = 30_000
    batch_size: int = 64
    micro_batches: int = 2
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_learning_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    gradient_clipping: float = 1.0
    ema_decay: float = 0.999
    zero_stage: int = 0
    bf16: bool = False
    seed: int = 0
    time_limit: float | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def learning_rate_factor(self, step: int, seconds: float = 0.0) -> float:
        """Return the learning rate at `step`, after `seconds` of training, as a fraction of its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.time_limit is not None:
            progress = max(progress, seconds / self.time_limit)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_learning_rate + (1 - self.final_learning_rate) * cosine


class ExponentialMovingAverage:
    """Averaged float32 copy of a model's weights, kept outside the optimiser."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().float().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model's weights after optimiser step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value.detach().float(), 1 - decay)


def rank() -> int:
    """Return the number of this process among those that train together, 0 if it trains alone."""
    return int(os.environ.get("RANK", "0"))


def n_ranks() -> int:
    """Return how many processes train together, as started by ``torchrun`` or ``deepspeed``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _of_first_rank(value: float) -> float:
    """Return the first process's value, so that all of them take the same decisions."""
    if n_ranks() == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print meanwhile to standard error, which scripts do not parse."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _deepspeed_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import logging

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Without this, DeepSpeed compiles its shared-memory operator at first use, which takes over a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "WORLD_SIZE" not in os.environ:
        # Alone: the store in memory needs no port, which another training might hold.
        os.environ["LOCAL_RANK"] = "0"
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    micro_batch = max(1, config.batch_size // config.micro_batches)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": config.micro_batches,
            "gradient_clipping": config.gradient_clipping,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {"enabled": config.bf16, "dtype": "bfloat16"},
            "steps_per_print": sys.maxsize,
        },
    )
    return engine


def train(
    model: nn.Module,
    batches: Iterable[Sequence[Batch]],
    config: TrainingConfig,
    *,
    folder: Path | None = None,
    save_every: int = 1000,
    on_step: Callable[[int, tuple[float, ...], dict[str, Tensor]], bool | None] | None = None,
) -> dict[str, Tensor]:
    """Train `model` in place and return the averaged weights.

    Parameters
    ----------
    model
        Called as ``model(batch, generator)``; returns a tuple of scalar losses.
    batches
        Yields one sequence of ``config.micro_batches`` micro-batches per step, beginning at the step to resume from; in
        each of several processes those of its own.
    config
        How to train.
    folder
        Where the training state is kept, to resume from exactly; None keeps nothing.
    save_every
        Steps between two saves of that state.
    on_step
        Called with the number of finished steps, the mean losses of the last one and the averaged weights; a true
        answer ends the training.

    Returns
    -------
    dict
        Averaged weights, name → float32 tensor.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    ema = ExponentialMovingAverage(model, config.ema_decay)
    with _stdout_to_stderr():
        engine = _deepspeed_engine(model, optimizer, config)
        start, before = 0, 0.0
        if folder is not None and (folder / "latest").exists():
            _, state = engine.load_checkpoint(str(folder))
            start, before, ema.weights = state["step"], state["seconds"], state["ema"]
    ema.weights = {name: value.to(engine.device) for name, value in ema.weights.items()}
    engine.train()
    began = time.monotonic() - before
    iterator = iter(batches)
    for step in range(start, config.steps):
        seconds = _of_first_rank(time.monotonic() - began)
        for group in engine.optimizer.param_groups:
            group["lr"] = config.learning_rate * config.learning_rate_factor(step, seconds)
        seed = config.seed * 1_000_003 + step + (rank() << 40)
        noise = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # of dropout
        totals: list[float] = []
        for micro_batch in next(iterator):
            losses = engine(micro_batch, noise)
            engine.backward(sum(losses))
            engine.step()
            totals = [a + b.item() for a, b in zip(totals or [0.0] * len(losses), losses, strict=True)]
        ema.update(engine.module, step)
        done = step + 1
        means = tuple(total / config.micro_batches for total in totals)
        seconds = _of_first_rank(time.monotonic() - began)
        stop = bool(on_step and on_step(done, means, ema.weights)) or (
            config.time_limit is not None and seconds > config.time_limit
        )
        if folder is not None and (stop or done % save_every == 0 or done == config.steps):
            with _stdout_to_stderr():
                engine.save_checkpoint(str(folder), client_state={"step": done, "seconds": seconds, "ema": ema.weights})
            if rank() == 0:
                _remove_older_states(folder)
        if stop:
            break
    return ema.weights


def _remove_older_states(folder: Path) -> None:
    latest = (folder / "latest").read_text()
    for state in folder.glob("global_step*"):
        if state.name != latest:
            shutil.rmtree(state)


def resume_step(folder: Path) -> int:
    """Return the number of steps already done by a training in `folder`, 0 if it has none."""
    latest = folder / "latest"
    if not latest.exists():
        return 0
    return int(latest.read_text().removeprefix("global_step"))
