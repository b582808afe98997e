"""Density functional theory: the settings, cells and k-points that all codes share, so that they compute the same."""

from __future__ import annotations

import os
import re
import subprocess
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from discovery.crystal import Crystal
from discovery.processes import die_with_parent
from discovery.types import EnergyScale, Failure, FailureKind
from oracles.external import ExternalOracle
from oracles.relax import RelaxConfig

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from ase.calculators.genericfileio import BaseProfile

INITIAL_MOMENTS: Mapping[str, float] = {
    **dict.fromkeys(("V", "Cr", "Mn", "Fe"), 5.0),
    **dict.fromkeys(("Co", "Ni"), 3.0),
    **dict.fromkeys(("Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb"), 5.0),
}
"""Elements taken to be magnetic, with the moment in µB that a ferromagnetic start gives them."""

Spin = Literal["auto", "on", "off"]
Stage = Literal["relax", "static"]


class NotConvergedError(Exception):
    """A program ended without a converged self-consistent field."""


class DFTConfig(RelaxConfig):
    """Settings that mean the same in every code; each code's oracle extends them."""

    fmax: float = Field(0.01, gt=0, le=1, description="Largest force on an atom after relaxation, eV/Å.")
    smax: float = Field(
        0.0006, gt=0, le=0.1, description="Largest stress component after relaxation, eV/Å³ (0.00624 eV/Å³ = 1 GPa)."
    )
    max_steps: int = Field(60, ge=1, description="Steps after which a relaxation counts as not converged.")
    max_seconds: float = Field(
        7200.0, gt=0, description="Wall time after which a calculation is killed with all its processes, seconds."
    )
    min_distance: float = Field(
        0.5, ge=0, lt=1, description="Closest approach of two atoms, as a fraction of the sum of their covalent radii."
    )
    cutoff: float = Field(800.0, ge=200, le=3000, description="Kinetic energy cutoff of the plane waves, eV.")
    k_density: float = Field(4.0, gt=0, le=20, description="k-points per Å⁻¹ along each reciprocal axis, Γ included.")
    smearing: float = Field(0.1, gt=0, le=1, description="Width of the Fermi–Dirac occupations, eV.")
    maxiter: int = Field(150, ge=1, description="SCF iterations after which a crystal counts as not converged.")
    spin: Spin = Field(
        "auto", description="Spin polarisation with a ferromagnetic start; auto: V–Ni, lanthanides, elemental oxygen."
    )
    hubbard_u: dict[str, float] = Field(
        default_factory=dict,
        description="Effective U (Dudarev) by element, eV, for example {Ni: 6.2}; on f of lanthanides and actinides, "
        "on p of O, S and N, else on d.",
    )
    symprec: float | None = Field(
        0.02,
        gt=0,
        le=0.2,
        description="Tolerance of the reduction to the primitive cell, Å; null computes the cell as given.",
    )

    @field_validator("spin", mode="before")
    @classmethod
    def _yaml_reads_on_and_off_as_booleans(cls, value: object) -> object:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    def describe(self) -> str:
        """Return the settings that move energies, for the energy scale."""
        hubbard = "".join(f", U({element}) {value:g} eV" for element, value in sorted(self.hubbard_u.items()))
        return (
            f"PW {self.cutoff:g} eV, k-density {self.k_density:g} Å, Fermi-Dirac {self.smearing:g} eV, "
            f"spin {self.spin}{hubbard}"
        )


class DFTOracle(ExternalOracle):
    """A plane-wave code that speaks through an ASE calculator.

    A crystal is reduced to its standardised primitive cell first, because cost grows with atoms and with irreducible
    k-points; the evaluation holds that cell, and its energy is the energy of that cell, extrapolated to zero smearing.
    Atoms and cell are relaxed on one k-mesh, then the relaxed crystal is computed once more on plane waves
    and k-points of its own cell.
    """

    worker = "oracles.dft_worker"
    program: ClassVar[str]
    """Where the worker finds this class: ``module:class``."""

    def __init__(self, config: DFTConfig, energy_scale: EnergyScale, supported: Collection[int]) -> None:
        super().__init__(config, energy_scale, supported)
        self._config = config

    @staticmethod
    @abstractmethod
    def calculator(settings: Mapping[str, Any], crystal: Crystal, folder: Path, stage: Stage) -> Calculator:
        """Return an ASE calculator that computes in `folder`.

        Parameters
        ----------
        settings
            The oracle's options as JSON values, with ``standardised`` (whether the cell is in its standard setting)
            and ``magnetic_moments``.
        crystal
            What is computed first; its cell gives the k-mesh.
        folder
            The calculation's folder.
        stage
            Name for the files of this calculator.
        """

    @staticmethod
    @abstractmethod
    def describe(calculator: Any, folder: Path) -> dict[str, Any]:
        """Return what is worth keeping of a finished calculation, as JSON values."""

    @staticmethod
    @abstractmethod
    def recognise(failure: Failure, folder: Path, stage: Stage) -> Failure:
        """Return what a calculator's exception means, or `failure` itself."""

    def _input(self, crystal: Crystal) -> dict[str, Any]:
        config = self._config
        standard = primitive(crystal, config.symprec)
        relaxation = RelaxConfig.model_fields.keys()
        return {
            "program": self.program,
            "crystal": standard.to_dict(),
            "energy_scale": asdict(self.energy_scale),
            "relax": {name: getattr(config, name) for name in sorted(relaxation) if name != "max_seconds"},
            "settings": config.model_dump(mode="json", exclude={*relaxation, "symprec"})
            | {
                "magnetic_moments": initial_moments(standard, config.spin),
                "standardised": standard is not crystal,
            },
        }


def told_by_log(
    failure: Failure, folder: Path, log: str, *, program: str, unconverged: str, remedy: str, error: str
) -> Failure:
    """Return what the log of `program` says of a failure.

    Parameters
    ----------
    failure
        What is known without the log.
    folder, log
        Where the program ran, and the log's path within it.
    unconverged, remedy
        Text that an unconverged self-consistent field leaves there, and what to raise then.
    error
        Regular expression, with dots that match line ends, whose group is the program's own message.
    """
    path = folder / log
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if unconverged in text:
        message = f"the self-consistent field did not converge (see {log}); raise {remedy}"
        return Failure(FailureKind.NOT_CONVERGED, message)
    said = re.search(error, text, re.DOTALL)
    return failure if said is None else Failure(failure.kind, f"{program} says: {' '.join(said.group(1).split())}")


def execute(template: Any, directory: Path, profile: BaseProfile) -> None:
    """Run the program of an ASE calculator (`template` says with which files) so that it dies with its worker."""
    with (directory / template.outputname).open("wb") as output, (directory / template.errorname).open("wb") as errors:
        subprocess.run(
            profile.get_command(template.inputname),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            preexec_fn=partial(die_with_parent, os.getpid()),
            check=True,
        )


def symbols(crystal: Crystal) -> list[str]:
    """Return the element of each atom."""
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in crystal.atomic_numbers]


def k_mesh(crystal: Crystal, density: float) -> list[int]:
    """Return the divisions of a Γ-centred mesh with at least `density` k-points per Å⁻¹ along each reciprocal axis.

    Reciprocal axes contain the factor 2π. Equivalent axes get equal divisions in spite of rounding.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(crystal.lattice).T
    return [max(1, int(np.ceil(density * length - 1e-4))) for length in np.linalg.norm(reciprocal, axis=1)]


def primitive(crystal: Crystal, symprec: float | None) -> Crystal:
    """Return the standardised primitive cell of `crystal`, symmetrised.

    Parameters
    ----------
    crystal
        Any cell.
    symprec
        Distance up to which atoms count as symmetry-equivalent, Å; None returns `crystal`.

    Returns
    -------
    Crystal
        Orientation and origin are those of the standard setting; `crystal` itself if no symmetry could be assigned.
    """
    if symprec is None:
        return crystal
    from moyopy import Cell, MoyoDataset

    cell = Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist())
    try:
        standard = MoyoDataset(cell, symprec=symprec).prim_std_cell
    except ValueError:
        return crystal
    return Crystal(np.array(standard.basis), np.array(standard.positions), np.array(standard.numbers))


def initial_moments(crystal: Crystal, spin: Spin) -> list[float] | None:
    """Return the magnetic moments in µB that a calculation starts from; None for one without spin polarisation.

    With ``auto``, crystals with an element of :data:`INITIAL_MOMENTS` are polarised, and so is elemental oxygen, whose
    molecule is a triplet. With ``on``, elements that are not in the table start from 1 µB.
    """
    names = symbols(crystal)
    if spin == "off":
        return None
    if spin == "on" or set(names) == {"O"}:
        return [INITIAL_MOMENTS.get(symbol, 1.0) for symbol in names]
    if INITIAL_MOMENTS.keys().isdisjoint(names):
        return None
    return [INITIAL_MOMENTS.get(symbol, 0.0) for symbol in names]


def hubbard_shell(element: str) -> Literal["p", "d", "f"]:
    """Return the shell that a Hubbard U of `element` acts on."""
    from ase.data import atomic_numbers

    if element in ("N", "O", "S"):
        return "p"
    number = atomic_numbers[element]
    return "f" if 57 <= number <= 71 or 89 <= number <= 103 else "d"
