"""ABINIT: a second plane-wave PAW code, free of licences, with the same PAW data as GPAW."""

from __future__ import annotations

import gzip
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import EnergyScale, Failure
from oracles.dft import (
    DFTConfig,
    DFTOracle,
    NotConvergedError,
    Stage,
    execute,
    hubbard_shell,
    k_mesh,
    symbols,
    told_by_log,
)

UNREADABLE_GRID = "r=a*i/(1-b*i)"
"""Radial grid of the lanthanide files of gpaw-data, which ABINIT cannot read."""


class ABINITOracle(DFTOracle):
    """PBE energies from ABINIT with PAW (Gonze et al., Comput. Phys. Commun. 248, 107042, 2020).

    ABINIT ends with code 0 also if its self-consistent field has not converged; its log says so.
    """

    program = "oracles.abinit:ABINITOracle"

    class Config(DFTConfig):
        """Settings of the ABINIT oracle."""

        command: str = Field("abinit", min_length=1, description="Program, such as `mpirun -n 4 abinit`.")
        paw: Path | None = Field(
            None, description="Folder of PAW files ELEMENT.PBE.gz or ELEMENT.*.xml; unset takes those of gpaw-data."
        )
        residual: float = Field(
            1e-8, gt=0, le=1e-3, description="Squared residual of the potential at which the SCF ends (tolvrs)."
        )

    def __init__(self, config: Config) -> None:
        files = paw_files(str(config.paw) if config.paw is not None else None)
        scale = EnergyScale(
            code="abinit",
            version=_version(config.command),
            functional="PBE+U" if config.hubbard_u else "PBE",
            potentials=_potentials(config.paw, files),
            settings=f"{config.describe()}, SCF residual {config.residual:g}",
        )
        from ase.data import atomic_numbers

        super().__init__(config, scale, frozenset(atomic_numbers[element] for element in files))

    @staticmethod
    def calculator(settings: Mapping[str, Any], crystal: Crystal, folder: Path, stage: Stage) -> Any:
        """Return an ASE calculator that runs ABINIT in a subfolder named after the stage."""
        from ase.calculators.abinit import Abinit, AbinitProfile

        potentials = folder / "potentials"
        potentials.mkdir(exist_ok=True)
        files = paw_files(settings["paw"])
        elements = sorted(set(symbols(crystal)))
        for element in elements:
            _unpack(files[element], potentials / f"{element}.GGA_PBE.xml")
        calculator = Abinit(
            profile=AbinitProfile(settings["command"], pp_paths=[str(potentials)]),
            directory=folder / stage,
            xc="PBE",
            pps="pawxml",
            ecut=settings["cutoff"],
            pawecutdg=2 * settings["cutoff"],
            tolvrs=settings["residual"],
            nstep=settings["maxiter"],
            occopt=3,
            tsmear=settings["smearing"],
            kptopt=1,
            ngkpt=k_mesh(crystal, settings["k_density"]),
            nshiftk=1,
            shiftk=[0, 0, 0],
            chksymbreak=0,
            chksymtnons=0,
            prtwf=0,
            prtden=0,
            raw=_hubbard(settings["hubbard_u"], crystal),
        )
        calculator.template.read_results = _read_results
        calculator.template.execute = partial(execute, calculator.template)
        return calculator

    @staticmethod
    def describe(calculator: Any, folder: Path) -> dict[str, Any]:
        """Return k-points, Fermi level, magnetic moment and the hashes of the PAW files."""
        results = calculator.results
        return {
            "irreducible_k_points": len(results["ibz_kpoints"]),
            "fermi_level": float(results["fermilevel"]),
            "magnetic_moment": float(results.get("magmom", 0.0)),
            "potentials": {
                file.name.partition(".")[0]: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in sorted((folder / "potentials").glob("*.xml"))
            },
        }

    @staticmethod
    def recognise(failure: Failure, folder: Path, stage: Stage) -> Failure:
        """Return what ABINIT's log says."""
        return told_by_log(
            failure,
            folder,
            f"{stage}/abinit.log",
            program="ABINIT",
            unconverged="ScfConvergenceWarning",
            remedy="maxiter or smearing",
            error=r"--- !ERROR.*?message: \|\s*(.*?)\.\.\.",
        )


def _read_results(directory: Path) -> dict[str, Any]:
    """Read a finished calculation; its energy is extrapolated to zero smearing, as in the other codes.

    Raises
    ------
    NotConvergedError
        If the self-consistent field has not converged.
    """
    from ase.io.abinit import read_abinit_outputs
    from ase.units import Hartree

    log = Path(directory, "abinit.log").read_text(encoding="utf-8", errors="replace")
    if "ScfConvergenceWarning" in log:
        raise NotConvergedError
    results: dict[str, Any] = read_abinit_outputs(directory, "abinit")
    output = Path(directory, "abinit.abo").read_text(encoding="utf-8", errors="replace")
    entropy = re.search(r"^'-kT\*entropy'\s*:\s*(\S+)", output, re.MULTILINE)
    if entropy is not None:
        results["energy"] = results["free_energy"] - 0.5 * float(entropy.group(1)) * Hartree
    return results


def _hubbard(hubbard_u: Mapping[str, float], crystal: Crystal) -> list[str] | None:
    """Return the lines that switch DFT+U on, for the species in order of their atomic numbers."""
    from ase.data import chemical_symbols

    elements = [chemical_symbols[z] for z in sorted(set(crystal.atomic_numbers.tolist()))]
    if hubbard_u.keys().isdisjoint(elements):
        return None
    shells = [{"p": 1, "d": 2, "f": 3}[hubbard_shell(each)] if each in hubbard_u else -1 for each in elements]
    return [
        "usepawu 1",
        f"lpawu {' '.join(str(shell) for shell in shells)}",
        f"upawu {' '.join(str(hubbard_u.get(each, 0.0)) for each in elements)} eV",
        f"jpawu {' '.join('0.0' for _ in elements)} eV",
    ]


@cache
def paw_files(folder: str | None) -> dict[str, Path]:
    """Return the PAW file of each element that ABINIT can read, from `folder` or, without one, from gpaw-data.

    Raises
    ------
    MissingDependencyError
        If there are none.
    """
    if folder is None:
        package = find_spec("gpaw_data")
        if package is None or not package.submodule_search_locations:
            raise MissingDependencyError(
                "ABINIT needs PAW files: `pip install gpaw-data`, or set `paw` to a folder of PAW-XML files"
            )
        place = Path(package.submodule_search_locations[0]) / "setups"
    else:
        place = Path(folder)
    files: dict[str, Path] = {}
    for file in sorted([*place.glob("*.PBE.gz"), *place.glob("*.xml")]):
        element, _, rest = file.name.partition(".")
        if rest == "PBE.gz" or file.suffix == ".xml":
            with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as stream:
                if UNREADABLE_GRID not in stream.read(20_000):
                    files.setdefault(element, file)
    if not files:
        raise MissingDependencyError(f"{place} has no PAW file ELEMENT.PBE.gz or ELEMENT.*.xml; set `paw`")
    return files


def _potentials(folder: Path | None, files: Mapping[str, Path]) -> str:
    """Return what names the PAW files in the energy scale."""
    if folder is None:
        try:
            return f"gpaw-data {version('gpaw-data')}"
        except PackageNotFoundError:
            pass
    digest = hashlib.sha256()
    for element in sorted(files):
        digest.update(files[element].read_bytes())
    return digest.hexdigest()


def _unpack(packed: Path, target: Path) -> None:
    if packed.suffix == ".gz":
        with gzip.open(packed, "rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    else:
        shutil.copyfile(packed, target)


@cache
def _version(command: str) -> str:
    """Return the version of the program that `command` ends with."""
    program = shlex.split(command)[-1]
    if shutil.which(program) is None:
        raise MissingDependencyError(
            f"the program {program!r} is not there; `apt-get install abinit` or `conda install -c conda-forge abinit`, "
            "or set `command`"
        )
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
