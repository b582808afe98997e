"""Quantum ESPRESSO: plane waves with pseudopotentials that the user brings (SSSP, PseudoDojo, …)."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import EnergyScale, Failure
from oracles.dft import DFTConfig, DFTOracle, NotConvergedError, Stage, execute, k_mesh, symbols, told_by_log

NOT_CONVERGED = "convergence NOT achieved"


class EspressoOracle(DFTOracle):
    """PBE energies from pw.x of Quantum ESPRESSO (Giannozzi et al., J. Phys.: Condens. Matter 29, 465901, 2017).

    The pseudopotentials must be made for PBE; their folder is part of the energy scale, by the hash of its UPF files.
    pw.x prints "JOB DONE." also if its self-consistent field has not converged.
    """

    program = "oracles.espresso:EspressoOracle"

    class Config(DFTConfig):
        """Settings of the Quantum ESPRESSO oracle."""

        command: str = Field("pw.x", min_length=1, description="Program, such as `mpirun -n 4 pw.x`.")
        pseudopotentials: Path = Field(
            description="Folder with one UPF file per element, made for PBE; file names begin with the element."
        )
        density_cutoff: float = Field(
            8.0,
            ge=4,
            le=16,
            description="Cutoff of the charge density, times `cutoff`; 4 suffices for norm-conserving.",
        )
        energy_tolerance: float = Field(
            1e-7, gt=0, le=1e-2, description="Estimated error of the energy at which the SCF ends, eV per atom."
        )

    def __init__(self, config: Config) -> None:
        files = upf_files(config.pseudopotentials)
        digest = hashlib.sha256()
        for element in sorted(files):
            digest.update(element.encode() + files[element].read_bytes())
        scale = EnergyScale(
            code="espresso",
            version=_version(config.command),
            functional="PBE+U" if config.hubbard_u else "PBE",
            potentials=digest.hexdigest(),
            settings=f"{config.describe()}, density {config.density_cutoff:g} × cutoff, "
            f"SCF {config.energy_tolerance:g} eV",
        )
        from ase.data import atomic_numbers

        super().__init__(config, scale, frozenset(atomic_numbers[element] for element in files))

    @staticmethod
    def calculator(settings: Mapping[str, Any], crystal: Crystal, folder: Path, stage: Stage) -> Any:
        """Return an ASE calculator that runs pw.x in a subfolder named after the stage."""
        from ase.calculators.espresso import Espresso, EspressoProfile
        from ase.units import Ry

        place = Path(settings["pseudopotentials"])
        files = upf_files(place)
        elements = list(dict.fromkeys(symbols(crystal)))
        moments = settings["magnetic_moments"]
        hubbard = {element: u for element, u in settings["hubbard_u"].items() if element in elements}
        calculator = Espresso(
            profile=EspressoProfile(settings["command"], place.resolve()),
            directory=folder / stage,
            pseudopotentials={element: files[element].name for element in elements},
            kpts=k_mesh(crystal, settings["k_density"]),
            rescale_magmom_fac=10,
            input_data={
                "control": {"tprnfor": True, "tstress": True, "disk_io": "none", "outdir": "."},
                "system": {
                    "ecutwfc": settings["cutoff"] / Ry,
                    "ecutrho": settings["density_cutoff"] * settings["cutoff"] / Ry,
                    "occupations": "smearing",
                    "smearing": "fermi-dirac",
                    "degauss": settings["smearing"] / Ry,
                    "input_dft": "PBE",
                    **({"nspin": 2} if moments is not None else {}),
                    **({"lda_plus_u": True} if hubbard else {}),
                    **{f"Hubbard_U({elements.index(element) + 1})": u for element, u in hubbard.items()},
                },
                "electrons": {
                    "conv_thr": settings["energy_tolerance"] * len(crystal) / Ry,
                    "electron_maxstep": settings["maxiter"],
                },
            },
        )
        calculator.template.read_results = _read_results
        calculator.template.execute = partial(execute, calculator.template)
        return calculator

    @staticmethod
    def describe(calculator: Any, folder: Path) -> dict[str, Any]:
        """Return the total magnetic moment and the hashes of the pseudopotentials."""
        output = max(folder.glob("*/espresso.pwo"), key=lambda file: file.stat().st_mtime).read_text()
        moment = re.findall(r"total magnetization\s*=\s*(\S+)", output)
        k_points = re.search(r"number of k points=\s*(\d+)", output)
        files = calculator.parameters["pseudopotentials"]
        place = Path(calculator.profile.pseudo_dir)
        return {
            "irreducible_k_points": int(k_points.group(1)) if k_points is not None else None,
            "magnetic_moment": float(moment[-1]) if moment else 0.0,
            "potentials": {
                element: hashlib.sha256((place / name).read_bytes()).hexdigest() for element, name in files.items()
            },
        }

    @staticmethod
    def recognise(failure: Failure, folder: Path, stage: Stage) -> Failure:
        """Return what pw.x says."""
        return told_by_log(
            failure,
            folder,
            f"{stage}/espresso.pwo",
            program="pw.x",
            unconverged=NOT_CONVERGED,
            remedy="maxiter",
            error=r"Error in routine[^\n]*\n(.*?)\n\s*%%%",
        )


def _read_results(directory: Path) -> dict[str, Any]:
    """Read a finished calculation; its energy is extrapolated to zero smearing, as in the other codes.

    Raises
    ------
    NotConvergedError
        If the self-consistent field has not converged.
    """
    from ase.io import read
    from ase.units import Ry

    path = Path(directory, "espresso.pwo")
    output = path.read_text(encoding="utf-8", errors="replace")
    if NOT_CONVERGED in output:
        raise NotConvergedError
    atoms: Any = read(path, format="espresso-out")
    results = dict(atoms.calc.properties())
    entropy = re.findall(r"smearing contrib\. \(-TS\)\s*=\s*(\S+) Ry", output)
    if entropy:
        results["energy"] = results["free_energy"] - 0.5 * float(entropy[-1]) * Ry
    return results


def upf_files(folder: Path) -> dict[str, Path]:
    """Return the UPF file of each element.

    Raises
    ------
    MissingDependencyError
        If there are none, or two of one element.
    """
    from ase.data import atomic_numbers

    files: dict[str, Path] = {}
    for file in sorted(file for file in folder.glob("*") if file.suffix.lower() == ".upf"):
        element = re.split(r"[._-]", file.name)[0].capitalize()
        if element not in atomic_numbers:
            continue
        if element in files:
            raise MissingDependencyError(
                f"{folder} has two pseudopotentials of {element}, {files[element].name} and {file.name}; keep one"
            )
        files[element] = file
    if not files:
        raise MissingDependencyError(
            f"{folder} has no pseudopotential ELEMENT.*.UPF; download a PBE set (SSSP, PseudoDojo) and set "
            "`pseudopotentials` to its folder"
        )
    return files


@cache
def _version(command: str) -> str:
    """Return the version of the program that `command` ends with."""
    program = shlex.split(command)[-1]
    if shutil.which(program) is None:
        raise MissingDependencyError(
            f"the program {program!r} is not there; `apt-get install quantum-espresso` or "
            "`conda install -c conda-forge qe`, or set `command`"
        )
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [program], cwd=folder, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
    found = re.search(r"PWSCF\s+v\.(\S+)", process.stdout)
    return found.group(1) if found is not None else "unknown"
