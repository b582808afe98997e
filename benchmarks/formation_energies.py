"""Formation energies of intermetallic compounds: two DFT codes with equal settings and PAW data, and published PBE.

The compounds have the CsCl structure, so that nothing but their volume is relaxed, and elements to which the Materials
Project applies neither a correction nor a Hubbard U: what it publishes of them is PBE (VASP; material ids below, as in
the data set MP-20 of T. Xie et al., ICLR 2022). Finished calculations in the folder are not repeated. Run as::

    python benchmarks/formation_energies.py --folder runs/formation-energies
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ase.build import bulk
from pymatgen.core import Composition
from record import write_record

from discovery.config import compose_oracle
from discovery.crystal import Crystal
from discovery.references import element_crystals

PUBLISHED = {
    "MgPd": ("mp-506", -0.7418, 16.216),
    "CaPd": ("mp-213", -0.6751, 21.976),
    "LiAu": ("mp-1206794", -0.5422, 15.552),
    "LiPd": ("mp-2743", -0.4206, 13.533),
    "ZnAu": ("mp-1684", -0.2157, 16.297),
    "ZnCu": ("mp-987", -0.0907, 12.975),
    "CaMg": ("mp-1039148", -0.0793, 31.194),
    "MgZn": ("mp-1094779", -0.0781, 17.933),
    "LiMg": ("mp-1094889", -0.0600, 20.036),
}
"""Material id, formation energy in eV/atom, volume in Å³/atom."""

SETTINGS = ["cutoff=500", "k_density=4", "smearing=0.1", "spin=off", "smax=0.003", "relax=true"]


def crystal(formula: str) -> Crystal:
    """Return a compound at its published volume, or an element in its ground state."""
    elements = [element.symbol for element in Composition(formula)]
    if len(elements) == 1:
        return element_crystals(formula)[0].crystal
    a = (2 * PUBLISHED[formula][2]) ** (1 / 3)
    return Crystal.from_atoms(bulk(formula, "cesiumchloride", a=a))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oracles", nargs="+", default=["gpaw", "abinit"])
    parser.add_argument("--compounds", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), metavar="FORMULA")
    parser.add_argument("--folder", type=Path, default=Path("runs/formation-energies"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/formation_energies.json"))
    args = parser.parse_args()
    oracles = {name: compose_oracle(name, SETTINGS).create() for name in args.oracles}
    energies: dict[str, dict[str, float]] = {name: {} for name in oracles}
    volumes: dict[str, dict[str, float]] = {name: {} for name in oracles}
    seconds = dict.fromkeys(oracles, 0.0)
    elements = sorted({element.symbol for formula in args.compounds for element in Composition(formula)})
    for formula in [*elements, *args.compounds]:
        for name, oracle in oracles.items():
            (evaluation,) = oracle.evaluate([crystal(formula)], folder=args.folder / name)
            assert evaluation.crystal is not None, f"{formula}: {evaluation.failure}"
            energies[name][formula] = evaluation.energy_per_atom
            volumes[name][formula] = evaluation.crystal.volume / len(evaluation.crystal)
            seconds[name] += evaluation.seconds
            print(f"{name} {formula}: {evaluation.energy_per_atom:.4f} eV/atom, {evaluation.seconds:.0f} s", flush=True)
    compounds = {}
    for formula in args.compounds:
        material_id, published, volume = PUBLISHED[formula]
        parts = [element.symbol for element in Composition(formula)]
        computed = {
            name: {
                "formation_energy_per_atom": found[formula] - sum(found[part] for part in parts) / 2,
                "volume_per_atom": volumes[name][formula],
            }
            for name, found in energies.items()
        }
        compounds[formula] = {
            "published": {"id": material_id, "formation_energy_per_atom": published, "volume_per_atom": volume},
            **computed,
        }
        print(formula, f"{published:.3f}", *(f"{each['formation_energy_per_atom']:.3f}" for each in computed.values()))
    write_record(
        args.out,
        {
            "settings": SETTINGS,
            "energy_scales": {name: oracle.energy_scale.id for name, oracle in oracles.items()},
            "compounds": compounds,
            "seconds": seconds,
        },
        seed=0,
        command=" ".join(sys.argv),
    )


if __name__ == "__main__":
    main()
