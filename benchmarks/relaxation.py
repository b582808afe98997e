"""Relaxations per second of an MLFF oracle against ASE one by one, and whether both find the same minima.

Crystals of a CSV file are strained and displaced at random, then relaxed with the same model and the same criteria:
one by one by ASE (FIRE, FrechetCellFilter, the model's own calculator), and in batches by the oracle, in one process
and in several with one thread each. CPU seconds are compared, so that other processes do not matter; of several
processes, those of the busiest one. Run as::

    OMP_NUM_THREADS=1 python benchmarks/relaxation.py test.csv.gz
    OMP_NUM_THREADS=1 python benchmarks/relaxation.py test.csv.gz --model TensorNet-MatPES-PBE-v2025.1-PES
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from record import write_record

from discovery.crystal import Crystal
from discovery.references import read_csv
from discovery.types import Evaluation
from oracles.chgnet import CHGNetOracle
from oracles.matgl import MatGLOracle

ENERGY_TOLERANCE, VOLUME_TOLERANCE = 1e-3, 5e-3
"""eV/atom, and relative: what counts as the same minimum."""


def distorted(crystal: Crystal, strain: float, displacement: float, rng: np.random.Generator) -> Crystal:
    """Strain the cell and displace the atoms, both with normally distributed components."""
    atoms = crystal.to_atoms()
    matrix = strain * rng.standard_normal((3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (matrix + matrix.T) / 2), scale_atoms=True)
    atoms.positions += displacement * rng.standard_normal((len(atoms), 3))
    return Crystal.from_atoms(atoms)


def create(settings: dict[str, Any]) -> Any:
    """Construct the oracle: matgl if a model is named, else CHGNet."""
    plugin = MatGLOracle if "model" in settings else CHGNetOracle
    return plugin(plugin.Config(**settings))


def calculator(model: str | None) -> Any:
    """Return the model's own ASE calculator."""
    if model is None:
        from chgnet.model import CHGNet, CHGNetCalculator

        return CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")
    from matgl.ext.ase import PESCalculator
    from matgl.utils.io import load_model

    return PESCalculator(load_model(model), stress_unit="eV/A3", use_voigt=True)


def by_ase(crystals: list[Crystal], calc: Any, fmax: float, smax: float, max_steps: int) -> list[dict[str, Any]]:
    """Relax one by one."""
    results = []
    for crystal in crystals:
        start = time.process_time()
        atoms = crystal.to_atoms()
        atoms.calc = calc
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        steps = 0
        while True:
            forces, stress = atoms.get_forces(), atoms.get_stress()
            converged = np.linalg.norm(forces, axis=1).max() <= fmax and np.abs(stress).max() <= smax
            if converged or steps == max_steps:
                break
            optimizer.step()
            steps += 1
        results.append(
            {
                "converged": bool(converged),
                "steps": steps,
                "energy": atoms.get_potential_energy() / len(atoms),
                "volume": atoms.get_volume() / len(atoms),
                "cpu_seconds": time.process_time() - start,
            }
        )
        print(f"ASE {len(results)}/{len(crystals)}", file=sys.stderr)
    return results


def by_oracle(settings: dict[str, Any], crystals: list[Crystal]) -> tuple[list[Evaluation], float]:
    """Relax in this process; return the evaluations and the CPU seconds they took."""
    warnings.simplefilter("ignore")
    oracle = create(settings)
    oracle.evaluate(crystals[:1])
    start = time.process_time()
    return oracle.evaluate(crystals), time.process_time() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CSV with a column cif")
    parser.add_argument("--model", help="matgl model; CHGNet without")
    parser.add_argument("--crystals", type=int, default=50)
    parser.add_argument("--max-atoms", type=int, default=12)
    parser.add_argument("--strain", type=float, default=0.03)
    parser.add_argument("--displacement", type=float, default=0.1, help="Å")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(args.seed)
    known = [row.crystal for row in read_csv(args.data).crystals if len(row.crystal) <= args.max_atoms]
    chosen = rng.choice(len(known), args.crystals, replace=False)
    crystals = [distorted(known[index], args.strain, args.displacement, rng) for index in chosen]
    settings = {"model": args.model} if args.model else {}
    config = create(settings)._config

    evaluations, seconds = by_oracle(settings, crystals)
    parts = [(settings, crystals[index :: args.processes]) for index in range(args.processes)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        busiest = max(cpu for _, cpu in pool.starmap(by_oracle, parts))
    ase = by_ase(crystals, calculator(args.model), config.fmax, config.smax, config.max_steps)

    pairs = [
        (evaluation, reference)
        for evaluation, reference in zip(evaluations, ase, strict=True)
        if evaluation.ok and reference["converged"]
    ]
    energies = np.array([1e3 * (e.energy_per_atom - r["energy"]) for e, r in pairs])
    volumes = np.array([e.crystal.volume / len(e.crystal) / r["volume"] - 1 for e, r in pairs])
    same = (np.abs(energies) <= 1e3 * ENERGY_TOLERANCE) & (np.abs(volumes) <= VOLUME_TOLERANCE)
    ase_seconds = sum(result["cpu_seconds"] for result in ase)
    model = Path(args.model).name if args.model else "CHGNet 0.3.0"
    write_record(
        args.out or Path(f"benchmarks/results/relaxation_{'matgl' if args.model else 'chgnet'}.json"),
        {
            "model": model,
            "crystals": len(crystals),
            "mean_atoms": float(np.mean([len(crystal) for crystal in crystals])),
            "strain": args.strain,
            "displacement_A": args.displacement,
            "fmax_eV_per_A": config.fmax,
            "smax_eV_per_A3": config.smax,
            "ase_relaxations_per_cpu_second": len(crystals) / ase_seconds,
            "oracle_relaxations_per_cpu_second": len(crystals) / seconds,
            "speedup_one_process": ase_seconds / seconds,
            f"speedup_{args.processes}_processes": ase_seconds / busiest,
            "ase_mean_steps": float(np.mean([result["steps"] for result in ase])),
            "oracle_mean_steps": float(np.mean([e.details["steps"] for e in evaluations if "steps" in e.details])),
            "ase_not_converged": sum(not result["converged"] for result in ase),
            "oracle_failures": [str(e.failure.kind) for e in evaluations if e.failure],
            "compared": len(pairs),
            "same_minimum": int(same.sum()),
            "oracle_lower_by_more_than_1_meV": int((energies < -1e3 * ENERGY_TOLERANCE).sum()),
            "ase_lower_by_more_than_1_meV": int((energies > 1e3 * ENERGY_TOLERANCE).sum()),
            "others": [
                {
                    "formula": pair[0].crystal.formula,
                    "energy_difference_meV_per_atom": round(float(energy), 2),
                    "volume_difference_percent": round(100 * float(volume), 2),
                }
                for pair, energy, volume, equal in zip(pairs, energies, volumes, same, strict=True)
                if not equal
            ],
        },
        seed=args.seed,
        command=" ".join(["python", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)]),
    )


if __name__ == "__main__":
    main()
