"""The figures of CDVAE's original evaluation code, reproduced: every metric of P1 and P2 on stored crystals.

``SHARED/reference/cdvae/golden.json`` holds what the original code gives for 1000 crystals. Run as::

    python benchmarks/cdvae_golden.py ../shared
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from record import write_record

from discovery.evaluation import proxy, reconstruction
from discovery.sets import read_set


def main() -> None:
    """Run the benchmark; ends with an error if a figure differs by more than 1e-3."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cdvae_golden.json"))
    args = parser.parse_args()
    golden = json.loads((args.shared / "reference/cdvae/golden.json").read_text())
    generated = read_set(args.shared / "reference/cdvae/generated.csv.gz")
    reference = read_set(args.shared / "data/mp_20_bt/test.csv.gz")
    truth = read_set(args.shared / "data/mp_20_bt/train.csv.gz")
    start = time.process_time()
    result = proxy.evaluate(generated, replace(reference, members=reference.members[:600]), workers=args.workers)
    p1_seconds = time.process_time() - start
    rebuilt = reconstruction.evaluate(generated, replace(truth, members=truth.members[:1000]))
    found = {name: result.metric(name).value for name in golden["metrics"]}
    found |= {"match_rate": rebuilt.metric("match_rate_valid").value, "rms_dist": rebuilt.metric("rmse_valid").value}
    expected = golden["metrics"] | golden["reconstruction"]
    differences = {name: abs((found[name] or 0.0) - expected[name]) for name in expected}
    valid = [outcome == "valid" for outcome in result.outcomes.values()]
    disagreements = sum(a != b for a, b in zip(valid, golden["valid"], strict=True))
    write_record(
        args.out,
        {
            "found": found,
            "original": expected,
            "largest_difference": max(differences.values()),
            "crystals_whose_validity_differs": disagreements,
            "cpu_seconds_p1": p1_seconds,
            "wall_seconds": dict(result.seconds) | dict(rebuilt.seconds),
        },
        seed=0,
        command=" ".join(sys.argv),
    )
    if max(differences.values()) > 1e-3 or disagreements:
        sys.exit("the figures differ from the original's")


if __name__ == "__main__":
    main()
