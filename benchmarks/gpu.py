r"""UniMat on a GPU for a few minutes at a time: training that goes on where it stopped, and sampling throughput.

``prepare`` and ``export`` run where the project is installed. ``train`` and ``throughput`` need torch, numpy and this
source tree alone, stop by themselves before their time is over, and print a short table last::

    python benchmarks/gpu.py prepare train.csv.gz --validation val.csv.gz --out data
    python benchmarks/gpu.py train data --out run --seconds 520 --total-seconds 1040 --bf16
    python benchmarks/gpu.py throughput --out run --seconds 300
    python benchmarks/gpu.py export run data --out checkpoint.safetensors

The exported checkpoint is one as any other: ``discovery evaluate csp test.csv.gz --checkpoint checkpoint.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from generators.data import CrystalArrays
from generators.diffusion import Sampler
from generators.training import ExponentialMovingAverage, TrainingConfig
from generators.unimat.dense import DenseModel, DenseModelConfig
from generators.unimat.model import TokenModel, TokenModelConfig, UniMatModel
from generators.unimat.representation import DenseLayout

FILES = "train.npz", "validation.npz"

RESERVE = 0.05
"""Share of the time kept for validation and writing."""


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Wait for the GPU, so that times are true."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write(path: Path, results: dict[str, Any], seed: int) -> None:
    """Write results with what they were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "results": results,
        "seed": seed,
        "command": " ".join(["python", *sys.argv]),
        "commit": git.stdout.strip() or None,
        "device": name,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def prepare(args: argparse.Namespace) -> None:
    """Write crystals as arrays: canonical cells, with their properties."""
    from discovery.training_data import read_training_data, without_system
    from generators.unimat.generator import prepared

    crystals = [item for path in args.data for item in read_training_data(path)]
    if args.leave_out:
        crystals = without_system(crystals, args.leave_out.split("-"))
    parts = [[prepared(item) for item in part] for part in (crystals, read_training_data(args.validation))]
    names = tuple(sorted({name for part in parts for item in part for name in item.properties}))
    args.out.mkdir(parents=True, exist_ok=True)
    for part, file in zip(parts, FILES, strict=True):
        CrystalArrays.from_crystals(part, names).save(args.out / file)
        print(f"{args.out / file}\t{len(part)} crystals, properties {', '.join(names)}")


def create(variant: str, data: CrystalArrays, width: int | None) -> UniMatModel:
    """Return an untrained model for `data`."""
    if variant == "token":
        token = TokenModelConfig(property_names=data.property_names)
        if width is not None:
            token = replace(token, width=width, pair_width=width // 2)
        return TokenModel(token)
    numbers, _ = data.padded()
    slots = max(int((numbers == z).sum(axis=1).max()) for z in np.unique(numbers[numbers > 0]))
    dense = DenseModelConfig(DenseLayout(slots), property_names=data.property_names)
    return DenseModel(dense if width is None else replace(dense, width=width))


def batches(data: CrystalArrays, whole: Any, size: int, parts: int, seed: int, step: int) -> Iterator[list[Any]]:
    """Yield batches for ever, from step number `step`, as parts of similar size, cut from tensors on the device."""
    per_epoch = max(1, len(data) // size)
    while True:
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(data))
        chosen = order[position * size : (position + 1) * size]
        chosen = chosen[np.argsort(data.n_atoms[chosen], kind="stable")]
        found = []
        for part in np.array_split(chosen, parts):
            index = torch.from_numpy(part).to(whole.numbers.device)
            largest = int(data.n_atoms[part].max())
            cut = whole._replace(numbers=whole.numbers[:, :largest], frac=whole.frac[:, :largest])
            found.append(type(whole)(*(tensor[index] for tensor in cut)))
        yield found
        step += 1


@torch.no_grad()
def validation_loss(model: UniMatModel, whole: Any) -> dict[str, float]:
    """Return the losses on crystals that are on the device, always with the same noise."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.tensor([[float(loss) for loss in model(whole, generator)] for _ in range(4)]).mean(0)
    return dict(zip(model.loss_names, losses.tolist(), strict=True))


def train(args: argparse.Namespace) -> None:
    """Train for `seconds`, going on with what the folder holds."""
    began = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    data, held_out = (CrystalArrays.load(args.data / file) for file in FILES)
    model = create(args.variant, data, args.width)
    model.fit_normalisation(data)
    model.to(device())
    config = TrainingConfig(
        steps=args.steps, batch_size=args.batch_size, micro_batches=args.parts, learning_rate=args.learning_rate,
        bf16=args.bf16, seed=args.seed, time_limit=args.total_seconds or args.seconds,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=0.0)
    ema = ExponentialMovingAverage(model, config.ema_decay)
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "state.pt"
    step, before, log = 0, 0.0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device())
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, before, log, ema.weights = state["step"], state["seconds"], state["log"], state["ema"]
    stepper = torch.compile(model, dynamic=True) if args.compile else model
    stream = batches(data, model.batch(data), config.batch_size, config.micro_batches, config.seed, step)
    first, recent = step, [0.0] * len(model.loss_names)
    model.train()
    while step < config.steps and (passed := time.monotonic() - began) < args.seconds * (1 - RESERVE):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.learning_rate_factor(step, before + passed)
        noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        optimizer.zero_grad(set_to_none=True)
        for part in next(stream):
            autocast: AbstractContextManager[Any] = (
                torch.autocast(device().type, dtype=torch.bfloat16) if args.bf16 else nullcontext()
            )
            with autocast:
                losses = stepper(part, noise)
            (sum(losses) / config.micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.step()
        ema.update(model, step)
        step += 1
        if step % args.log_every == 0:
            recent = [loss.item() for loss in losses]
            log.append({"step": step, "seconds": before + time.monotonic() - began, "loss": recent})
    synchronise()
    spent = before + time.monotonic() - began
    shadow = create(args.variant, data, args.width).to(device()).eval()
    shadow.load_state_dict(ema.weights)
    validation = validation_loss(shadow, shadow.batch(held_out))
    log.append({"step": step, "seconds": spent, "validation": validation})
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.weights}
    temporary = state_file.with_suffix(".tmp")
    torch.save({**state, "step": step, "seconds": spent, "log": log}, temporary)
    temporary.replace(state_file)
    rate = (step - first) / (time.monotonic() - began)
    results = {
        "variant": args.variant, "width": args.width, "step": step, "seconds": spent, "steps_per_second": rate,
        "training": asdict(config), "validation": validation, "log": log,
    }  # fmt: skip
    write(args.out / "training.json", results, args.seed)
    print(f"step {step}, {spent:.0f} s in all, {rate:.1f} steps/s of {config.batch_size}")
    for name, loss in validation.items():
        print(f"validation {name}\t{loss:.4f}")


def throughput(args: argparse.Namespace) -> None:
    """Measure crystals sampled per second by untrained models of the usual size, dense beside token."""
    began = time.monotonic()
    rows = []
    for n_atoms in args.atoms:
        numbers = np.where(np.arange(n_atoms) < (n_atoms + 1) // 2, 12, 8)[None]
        models: dict[str, UniMatModel] = {
            "token": TokenModel(TokenModelConfig()),
            "unet3d": DenseModel(DenseModelConfig(DenseLayout(20), width=args.width)),
        }
        for name, model in models.items():
            model.to(device()).eval()
            for batch in args.batches if name == "token" else args.dense_batches:
                given = np.repeat(numbers, batch, axis=0)
                sampler = Sampler(args.evaluations)
                times = []
                for _ in range(2):  # the first one warms up
                    synchronise()
                    start = time.monotonic()
                    model.sample(given, generator=torch.Generator().manual_seed(args.seed), sampler=sampler)
                    synchronise()
                    times.append(time.monotonic() - start)
                    if time.monotonic() - began > args.seconds * (1 - RESERVE):
                        break
                per_second = {steps: batch * args.evaluations / (steps * times[-1]) for steps in (50, 256)}
                rows.append({"variant": name, "atoms": n_atoms, "batch": batch, "crystals_per_second": per_second})
                if time.monotonic() - began > args.seconds * (1 - RESERVE):
                    break
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "throughput.json", {"width": args.width, "rows": rows}, args.seed)
    print("variant\tatoms\tbatch\tcrystals/s, 50 steps\t256 steps")
    for row in rows:
        rates = row["crystals_per_second"]
        print(f"{row['variant']}\t{row['atoms']}\t{row['batch']}\t{rates[50]:.1f}\t{rates[256]:.2f}")


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights of a training as a checkpoint."""
    from generators.unimat.train import N_HELD_OUT, N_REPLAY
    from generators.unimat.weights import save_checkpoint

    record = json.loads((args.run / "training.json").read_text())
    found, (data, held_out) = record["results"], (CrystalArrays.load(args.data / file) for file in FILES)
    model = create(found["variant"], data, found["width"])
    model.load_state_dict(torch.load(args.run / "state.pt", weights_only=True, map_location="cpu")["ema"])
    rng = np.random.default_rng(record["seed"])
    replay, guard = (
        part.take(rng.choice(len(part), min(size, len(part)), replace=False))
        for part, size in ((data, N_REPLAY), (held_out, N_HELD_OUT))
    )
    metrics = {"step": float(found["step"]), "validation_loss": sum(found["validation"].values())}
    metadata = {"parent": None, "trained_on": [], "metrics": metrics, "training": found["training"]}
    described = {"machine": record["device"], "note": args.note, "n_train": len(data), "n_validation": len(held_out)}
    digest = save_checkpoint(args.out, model, replay, guard, {**metadata, **described})
    print(f"{args.out}\t{digest}")


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(function: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=function.__doc__)
        added.set_defaults(run_command=function)
        added.add_argument("--out", type=Path, required=True)
        added.add_argument("--seed", type=int, default=0)
        return added

    of_prepare = command(prepare)
    of_prepare.add_argument("data", type=Path, nargs="+")
    of_prepare.add_argument("--validation", type=Path, required=True)
    of_prepare.add_argument("--leave-out", help="chemical system, such as Mg-Si-Ge")
    of_train = command(train)
    of_train.add_argument("data", type=Path)
    of_train.add_argument("--seconds", type=float, required=True, help="of this run, start and end included")
    of_train.add_argument("--total-seconds", type=float, help="of all runs; the learning rate falls to 0 over them")
    of_train.add_argument("--variant", choices=("token", "unet3d"), default="token")
    of_train.add_argument("--width", type=int, help="of the network; the variant's default if absent")
    of_train.add_argument("--steps", type=int, default=1_000_000)
    of_train.add_argument("--batch-size", type=int, default=512)
    of_train.add_argument("--parts", type=int, default=4, help="of a batch, by size of the cells")
    of_train.add_argument("--learning-rate", type=float, default=1e-3)
    of_train.add_argument("--log-every", type=int, default=200)
    of_train.add_argument("--bf16", action="store_true")
    of_train.add_argument("--compile", action="store_true", help="by torch.compile")
    of_throughput = command(throughput)
    of_throughput.add_argument("--seconds", type=float, required=True)
    of_throughput.add_argument("--atoms", type=int, nargs="+", default=[8, 20])
    of_throughput.add_argument("--batches", type=int, nargs="+", default=[1000, 10_000])
    of_throughput.add_argument("--dense-batches", type=int, nargs="+", default=[64, 512])
    of_throughput.add_argument("--width", type=int, default=64, help="of the dense network")
    of_throughput.add_argument("--evaluations", type=int, default=4, help="timed steps; rates are scaled to 50 and 256")
    of_export = command(export)
    of_export.add_argument("run", type=Path)
    of_export.add_argument("data", type=Path)
    of_export.add_argument("--note", default="", help="licence and remarks on the data")
    args = parser.parse_args()
    args.run_command(args)


if __name__ == "__main__":
    main()
