"""Seconds and memory of ``discovery evaluate`` on 10⁵ crystals, through the command line.

Crystals of an MP-20 subset get random elements, so that most compositions are rare as in large generated sets; a tenth
are supercells or noisy copies of earlier ones, and one in a thousand is odd: empty, overlapping, a needle or large. Run
as::

    python benchmarks/scale.py ../shared/data/mp_20_bt/train.csv.gz
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from pymatgen.core import Element
from record import write_record

from discovery.sets import read_set

ELEMENTS = [Element.from_Z(z).symbol for z in (*range(3, 10), *range(11, 18), *range(19, 36), *range(37, 43))]
ODD = (
    Atoms(cell=np.eye(3) * 4, pbc=True),
    Atoms("NaCl", positions=[[0, 0, 0], [0.01, 0, 0]], cell=np.eye(3) * 4, pbc=True),
    Atoms("Li", cell=np.diag([0.6, 0.6, 2000.0]), pbc=True),
    Atoms("Na200", positions=np.random.default_rng(0).random((200, 3)) * 15, cell=np.eye(3) * 15, pbc=True),
)


def write_crystals(path: Path, base: list[Atoms], n: int, seed: int) -> None:
    """Write `n` crystals with energies as extxyz."""
    rng = np.random.default_rng(seed)
    earlier: list[Atoms] = []
    with path.open("w") as file:
        for number in range(n):
            if number % 1000 == 999:
                atoms = ODD[number // 1000 % len(ODD)].copy()
            elif earlier and rng.random() < 0.1:
                atoms = earlier[rng.integers(len(earlier))].copy()
                if len(atoms) < 8 and rng.random() < 0.3:
                    atoms = atoms.repeat((2, 1, 1))
                atoms.rattle(0.03, rng=rng)
            else:
                atoms = base[rng.integers(len(base))].copy()
                symbols = sorted(set(atoms.symbols))
                kinds = dict(zip(symbols, rng.choice(ELEMENTS, len(symbols), replace=False), strict=True))
                atoms.symbols = [kinds[symbol] for symbol in atoms.symbols]
                earlier.append(atoms)
            atoms.info = {"id": f"g{number}", "energy": float(-3.0 * len(atoms) + rng.normal())}
            write(file, atoms, format="extxyz")


def measured(arguments: list[str]) -> dict[str, float | int]:
    """Run ``discovery`` and return seconds and peak memory; an error ends the benchmark."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "discovery", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "peak_memory_GiB_so_far": after.ru_maxrss / 2**20,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--crystals", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    args = parser.parse_args()
    base = [member.crystal.to_atoms() for member in read_set(args.base).members if member.crystal is not None]
    results: dict[str, object] = {"crystals": args.crystals}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated, hull = folder / "generated.extxyz", folder / "elements.extxyz"
        write_crystals(generated, base, args.crystals, args.seed)
        elements = [Atoms(element, cell=np.eye(3) * 3, pbc=True, info={"energy": -3.0}) for element in ELEMENTS]
        write(hull, elements)
        runs = {
            "validity": ["evaluate", "proxy"],
            "stability": ["evaluate", "stability", "--hull", str(hull), "--reference", str(args.base)],
        }
        for protocol, arguments in runs.items():
            out = folder / f"{protocol}.json"
            cost = measured([*arguments, str(generated), "--out", str(out)])
            result = json.loads(out.read_text())
            assert result["requested"] == sum(result["outcome_counts"].values()) == args.crystals
            results[protocol] = cost | {
                "stages": result["seconds"],
                "metrics": {metric["name"]: metric["value"] for metric in result["metrics"]},
            }
            print(protocol, results[protocol], flush=True)
    write_record(args.out, results, seed=args.seed, command=" ".join(sys.argv))


if __name__ == "__main__":
    main()
