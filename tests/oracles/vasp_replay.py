"""Stands where VASP would: writes the output files of a run that took the steps told by its arguments.

``python vasp_replay.py ENERGY [SHRINK] [UNCONVERGED]``: total energy in eV, the factor of the cell's edges after a
relaxation, and how many times this folder's parent sees runs whose electronic loop does not converge. VASP needs a
licence and cannot run in tests; the files have the form in which VASP 5.4.4 writes them, as far as they are read.
"""

import sys
from pathlib import Path

from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar


def varray(name: str, rows) -> str:
    lines = "".join("<v> " + " ".join(f"{x:16.8f}" for x in row) + " </v>\n" for row in rows)
    return f'<varray name="{name}" >\n{lines}</varray>\n'


def structure_xml(structure, name: str) -> str:
    lattice = structure.lattice
    return (
        f'<structure name="{name}" >\n<crystal>\n{varray("basis", lattice.matrix)}'
        f'<i name="volume"> {lattice.volume:.8f} </i>\n{varray("rec_basis", lattice.reciprocal_lattice.matrix)}'
        f"</crystal>\n{varray('positions', structure.frac_coords)}</structure>\n"
    )


def value(key: str, entry) -> str:
    if isinstance(entry, bool):
        return f'<i type="logical" name="{key}"> {"T" if entry else "F"} </i>\n'
    if isinstance(entry, list):
        return f'<v name="{key}"> {" ".join(str(x) for x in entry)} </v>\n'
    kind = {int: ' type="int"', str: ' type="string"'}.get(type(entry), "")
    return f'<i{kind} name="{key}"> {entry} </i>\n'


def vasprun(structure, incar, kpoints, titles, energy: float, steps: int) -> str:
    counts: dict[str, int] = {}
    for site in structure:
        counts[site.specie.symbol] = counts.get(site.specie.symbol, 0) + 1
    atoms = "".join(
        f"<rc><c>{site.specie.symbol}</c><c> {list(counts).index(site.specie.symbol) + 1} </c></rc>\n"
        for site in structure
    )
    types = "".join(
        f"<rc><c> {n} </c><c>{symbol}</c><c> {10.0} </c><c> {1.0} </c><c> {title} </c></rc>\n"
        for (symbol, n), title in zip(counts.items(), titles, strict=True)
    )
    settings = "".join(value(key, entry) for key, entry in incar.items())
    defaults = {"NELM": 100, "NSW": 0, "IBRION": -1, "LDAU": False, "ISPIN": 2, "ENMAX": 520.0, "METAGGA": "--"}
    defaults |= {
        "GGA": "PE",
        "LVDW": False,
        "IVDW": 0,
        "LHFCALC": False,
        "SYSTEM": "unknown",
        "NELECT": 7.0 * len(structure),
    }
    defaults |= {"AEXX": 0.0, "HFSCREEN": 0.0}
    parameters = "".join(value(key, incar.get(key, default)) for key, default in defaults.items())
    energies = "".join(f'<i name="{name}"> {energy:.8f} </i>\n' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
    scf = "".join(f"<scstep>\n<energy>\n{energies}</energy>\n</scstep>\n" for _ in range(steps))
    zero = [[0.0, 0.0, 0.0]] * len(structure)
    stress = [[10.0 if i == j else 0.0 for j in range(3)] for i in range(3)]
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator>\n'
        '<i name="program" type="string">vasp </i>\n<i name="version" type="string">5.4.4.18Apr17  </i>\n'
        '<i name="subversion" type="string">(build) complex parallel </i>\n'
        '<i name="date" type="string">2019 05 14 </i>\n<i name="time" type="string">09:26:53 </i>\n</generator>\n'
        f"<incar>\n{settings}</incar>\n"
        f'<kpoints>\n<generation param="Gamma">\n<v type="int" name="divisions"> '
        f"{' '.join(str(n) for n in kpoints.kpts[0])} </v>\n</generation>\n{varray('kpointlist', [[0, 0, 0]])}"
        f"{varray('weights', [[1.0]])}</kpoints>\n<parameters>\n{parameters}</parameters>\n"
        f"<atominfo>\n<atoms> {len(structure)} </atoms>\n<types> {len(counts)} </types>\n"
        f'<array name="atoms" >\n<set>\n{atoms}</set>\n</array>\n<array name="atomtypes" >\n<set>\n{types}</set>\n'
        f"</array>\n</atominfo>\n{structure_xml(structure, 'initialpos')}"
        f"<calculation>\n{scf}{structure_xml(structure, 'now')}{varray('forces', zero)}"
        f"{varray('stress', stress)}<energy>\n{energies}</energy>\n</calculation>\n"
        f"{structure_xml(structure, 'finalpos')}</modeling>\n"
    )


def main() -> None:
    energy, shrink = float(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    unconverged = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    structure, incar = Poscar.from_file("POSCAR").structure, Incar.from_file("INCAR")
    titles = [line.split("=")[1].strip() for line in Path("POTCAR").read_text().splitlines() if "TITEL" in line]
    if incar.get("NSW", 0):
        structure.scale_lattice(structure.volume * shrink**3)
    log = Path("../runs.txt")
    runs = log.read_text().splitlines() if log.exists() else []
    log.write_text("\n".join([*runs, Path.cwd().name]) + "\n")
    steps = int(incar.get("NELM", 60)) if len(runs) < unconverged else 12
    Path("vasprun.xml").write_text(vasprun(structure, incar, Kpoints.from_file("KPOINTS"), titles, energy, steps))
    Poscar(structure).write_file("CONTCAR")
    for name in ("OUTCAR", "OSZICAR"):
        Path(name).write_text("reached required accuracy\n")


if __name__ == "__main__":
    main()
