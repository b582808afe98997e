"""What a training's validation losses predict for more steps: a power law, with the uncertainty of its extrapolation.

Fits L(s) = c + a (s / s₀)^(−b) to the sum of the validation losses by step, a, b, c ≥ 0 and s₀ the last step, and draws
parameters from the fit's covariance. The learning rate falls along a cosine, which lowers the last losses faster than
steps alone would: the prediction is for trainings that end as this one did, and its interval knows nothing of that. Run
as::

    python benchmarks/learning_curve.py runs/perov/log.jsonl --out benchmarks/results/learning_curve_perov_5.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from record import write_record
from scipy.optimize import curve_fit

FACTORS = (1, 2, 4, 10)
"""Numbers of steps that are predicted, in units of the last one."""


def power_law(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    """Return the loss at `x`, in units of the last step."""
    return c + a * x**-b


def main() -> None:
    """Fit and predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--first", type=int, default=2000, help="step from which on losses count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.log.read_text().splitlines()]
    losses = {row["step"]: row["validation"] for row in rows if "validation" in row}
    steps = np.array([step for step in losses if step >= args.first])
    total = np.array([sum(losses[step].values()) for step in steps.tolist()])
    last = steps[-1]
    best, covariance = curve_fit(
        power_law, steps / last, total, (total[-1] / 2, 0.5, total[-1] / 2), bounds=(0, np.inf)
    )
    drawn = np.random.default_rng(args.seed).multivariate_normal(best, covariance, 2000)
    drawn = drawn[(drawn >= 0).all(axis=1)]
    predicted = {
        f"{factor * last}": {
            "loss": float(power_law(np.array(factor), *best)),
            "interval_68": np.quantile([power_law(np.array(factor), *row) for row in drawn], (0.16, 0.84)).tolist(),
        }
        for factor in FACTORS
    }
    results = {
        "losses": {str(step): losses[step] for step in steps.tolist()},
        "fit": dict(zip("abc", best.tolist(), strict=True)),
        "standard_error": dict(zip("abc", np.sqrt(np.diag(covariance)).tolist(), strict=True)),
        "residual": float(np.std(total - power_law(steps / last, *best))),
        "predicted": predicted,
    }
    write_record(args.out, results, seed=args.seed, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
