r"""Pictures for the documentation: a denoising trajectory, generated beside real crystals, and loss curves.

Run as::

    python benchmarks/unimat_pictures.py --composition Na2Cl2 --data ../shared/data/mp_20_bt/test.csv.gz \
        --log runs/training/log.jsonl --out docs/images
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt
from ase.visualize.plot import plot_atoms
from matplotlib.axes import Axes
from pymatgen.core import Composition, Element

from discovery.crystal import Crystal
from discovery.evaluation.reconstruction import match_rms, protocol_matcher
from discovery.references import read_csv
from generators.diffusion import Sampler
from generators.unimat.generator import UniMatConfig, UniMatGenerator, canonical
from generators.unimat.weights import load_checkpoint

ROTATION = "10x,-20y"


def draw(axes: Axes, crystal: Crystal, title: str) -> None:
    """Draw one cell, seen along its c axis and slightly tilted."""
    plot_atoms(crystal.to_atoms(), axes, radii=0.5, rotation=ROTATION)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def trajectory(checkpoint: Path, composition: str, steps: int, seed: int, out: Path) -> None:
    """Draw a crystal while it is denoised, at six times from noise to the end."""
    model, *_ = load_checkpoint(checkpoint)
    counts = Composition(composition).get_el_amt_dict()
    numbers = np.repeat([Element(e).Z for e in counts], [int(n) for n in counts.values()])
    states: list[tuple[float, Crystal]] = []

    def keep(t: float, frac: np.ndarray, lattice: np.ndarray) -> None:
        states.append((t, Crystal(lattice[0], frac[0], numbers)))

    frac, lattice = model.eval().sample(
        numbers[None], generator=torch.Generator().manual_seed(seed), sampler=Sampler(steps), on_step=keep
    )
    keep(0.0, frac, lattice)
    chosen = [states[round(i)] for i in np.linspace(0, len(states) - 1, 6)]
    figure, axes = plt.subplots(1, len(chosen), figsize=(12, 2.4), dpi=110)
    for place, (t, crystal) in zip(axes, chosen, strict=True):
        draw(place, crystal, f"t = {t:.2f}")
    figure.tight_layout()
    figure.savefig(out / "unimat_trajectory.png")


def beside_real(checkpoint: Path, data: Path, n: int, steps: int, seed: int, out: Path) -> None:
    """Draw real crystals of the test file, drawn at random, above samples of their compositions."""
    from discovery.types import Target

    truths = [canonical(known.crystal) for known in read_csv(data, limit=200, max_atoms=8).crystals]
    chosen = [truths[i] for i in np.random.default_rng(seed).choice(len(truths), n, replace=False)]
    generator = UniMatGenerator(UniMatConfig(checkpoint=checkpoint, steps=steps))
    targets = [
        Target(1, composition={e: int(k) for e, k in truth.composition.get_el_amt_dict().items()}) for truth in chosen
    ]
    samples = generator.sample(targets, seed=seed)
    matcher = protocol_matcher()
    figure, axes = plt.subplots(2, n, figsize=(2 * n, 4.4), dpi=110)
    for column, (truth, sample) in enumerate(zip(chosen, samples, strict=True)):
        draw(axes[0, column], truth, f"{truth.formula}, real")
        if sample.crystal is not None:
            rms = match_rms(sample.crystal, truth, matcher)
            draw(
                axes[1, column], sample.crystal, "sampled, " + ("no match" if rms is None else f"match, rms {rms:.2f}")
            )
    figure.tight_layout()
    figure.savefig(out / "unimat_samples.png")


def loss_curves(logs: list[Path], out: Path) -> None:
    """Draw training losses, averaged over the lines of the log, and validation losses, of each log."""
    figure, axes = plt.subplots(1, len(logs), figsize=(5 * len(logs), 3.2), dpi=110, squeeze=False)
    for place, path in zip(axes[0], logs, strict=True):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for key, style in (("loss", "-"), ("validation", "o")):
            found = [row for row in rows if key in row]
            resumed = {b["step"] for a, b in pairwise(found) if b["step"] <= a["step"]}
            for index, name in enumerate(found[0][key] if found else ()):
                steps = [np.nan if row["step"] in resumed else row["step"] for row in found]
                label = name if key == "loss" else None
                values = [row[key][name] for row in found]
                place.plot(steps, values, style, color=f"C{index}", label=label, markersize=3)
        place.set(xlabel="step", ylabel="mean squared error", yscale="log", title=path.parent.name)
        place.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "unimat_loss.png")


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="needed for all but loss curves")
    parser.add_argument("--composition", help="of the trajectory, such as Na2Cl2")
    parser.add_argument("--data", type=Path, help="test file, to draw samples beside real crystals")
    parser.add_argument("--log", type=Path, nargs="*", default=[], help="log.jsonl of trainings, for loss curves")
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.composition:
        trajectory(args.checkpoint, args.composition, args.steps, args.seed, args.out)
    if args.data:
        beside_real(args.checkpoint, args.data, args.n, args.steps, args.seed, args.out)
    if args.log:
        loss_curves(args.log, args.out)


if __name__ == "__main__":
    main()
