"""GPAW: plane-wave PAW density functional theory, free of licences; each crystal in a process of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.files import write_atomically
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind
from oracles.external import SINGLE_THREAD, Outcome, run
from oracles.relax import RelaxConfig, reject

INITIAL_MOMENTS: Mapping[str, float] = {
    **dict.fromkeys(("V", "Cr", "Mn", "Fe"), 5.0),
    **dict.fromkeys(("Co", "Ni"), 3.0),
    **dict.fromkeys(("Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb"), 5.0),
}
"""Elements taken to be magnetic, with the moment in µB that a ferromagnetic start gives them."""


class GPAWOracle:
    """PBE energies from GPAW in a plane-wave basis (Mortensen et al., J. Chem. Phys. 160, 092503, 2024).

    A crystal is reduced to its standardised primitive cell first, because cost grows with atoms and with irreducible
    k-points; the evaluation holds that cell, and its energy is the energy of that cell. Atoms and cell are relaxed with
    BFGS, then the relaxed crystal is computed once more on plane waves of its own cell.

    Every calculation has a folder named after the hash of its crystal and settings, with ``input.json``, ``log.txt``,
    GPAW's own logs, and at last ``result.json``. A folder that already has its result is not computed again.
    """

    class Config(RelaxConfig):
        """Settings of the GPAW oracle."""

        fmax: float = Field(0.01, gt=0, le=1, description="Largest force on an atom after relaxation, eV/Å.")
        smax: float = Field(
            0.0006,
            gt=0,
            le=0.1,
            description="Largest stress component after relaxation, eV/Å³ (0.00624 eV/Å³ = 1 GPa).",
        )
        max_steps: int = Field(60, ge=1, description="Steps after which a relaxation counts as not converged.")
        max_seconds: float = Field(
            7200.0, gt=0, description="Wall time after which a calculation is killed with all its processes, seconds."
        )
        min_distance: float = Field(
            0.5,
            ge=0,
            lt=1,
            description="Closest approach of two atoms, as a fraction of the sum of their covalent radii.",
        )
        cutoff: float = Field(800.0, ge=200, le=2000, description="Kinetic energy cutoff of the plane waves, eV.")
        k_density: float = Field(
            4.0, gt=0, le=20, description="k-points per Å⁻¹ along each reciprocal axis, Γ included."
        )
        smearing: float = Field(0.1, gt=0, le=1, description="Width of the Fermi–Dirac occupations, eV.")
        energy_tolerance: float = Field(
            1e-5, gt=0, le=1e-2, description="Change of energy at which the SCF ends, eV per valence electron."
        )
        maxiter: int = Field(150, ge=1, description="SCF iterations after which a crystal counts as not converged.")
        spin: Literal["auto", "on", "off"] = Field(
            "auto",
            description="Spin polarisation with a ferromagnetic start; auto: V–Ni, lanthanides, elemental oxygen.",
        )
        setups: dict[str, str] = Field(
            default_factory=dict,
            description="GPAW setup names by element where they differ from the default, for example {Ti: ':d,4.0'}.",
        )
        symprec: float | None = Field(
            0.02,
            gt=0,
            le=0.2,
            description="Tolerance of the reduction to the primitive cell, Å; null computes the cell as given.",
        )

    def __init__(self, config: Config) -> None:
        try:
            from gpaw import __version__, setup_paths
        except ImportError as error:
            raise MissingDependencyError(
                "GPAW is not installed; run `make setup`, or `pip install 'discovery-engine[gpaw]'` with a C++ compiler"
            ) from error
        self._config = config
        self._supported = _elements(setup_paths)
        setups = json.dumps(config.setups, sort_keys=True) if config.setups else "default"
        self.energy_scale = EnergyScale(
            code="gpaw",
            version=__version__,
            functional="PBE",
            potentials=f"gpaw-data {version('gpaw-data')}",
            settings=f"PW {config.cutoff:g} eV, k-density {config.k_density:g} Å, Fermi-Dirac {config.smearing:g} eV, "
            f"SCF {config.energy_tolerance:g} eV, spin {config.spin}, setups {setups}",
        )

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:
        """Return one evaluation per crystal, in order.

        Calculations are subfolders of `folder`. Without one they go to a temporary place, where only failed ones stay.
        """
        return [self._evaluate(crystal, folder) for crystal in crystals]

    def _evaluate(self, crystal: Crystal, parent: Path | None) -> Evaluation:
        failure = reject(crystal, self._supported, self._config)
        if failure is not None:
            return Evaluation(self.energy_scale, failure=failure)
        text = json.dumps(self._input(crystal), sort_keys=True)
        if parent is None:
            folder = Path(tempfile.mkdtemp(prefix="gpaw-"))
        else:
            folder = parent / f"{crystal.formula}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            folder.mkdir(parents=True, exist_ok=True)
        result = folder / "result.json"
        if result.exists():
            evaluation = _read(result)
        else:
            write_atomically(folder / "input.json", text)
            outcome = run(
                [sys.executable, "-m", "oracles.gpaw_worker", str(folder.resolve())],
                folder=folder,
                log="log.txt",
                max_seconds=self._config.max_seconds,
                environment=SINGLE_THREAD,
            )
            evaluation = _read(result) if result.exists() else self._killed(outcome, folder)
        if evaluation.failure is not None:
            return replace(evaluation, failure=_locate(evaluation.failure, folder))
        if parent is None:
            shutil.rmtree(folder)
        return evaluation

    def _input(self, crystal: Crystal) -> dict[str, Any]:
        """Return all that a result depends on, as JSON values.

        Symmetries with fractional translations are used only with the origin of a standardised cell, where they are
        simple fractions: GPAW looks for a grid that is a multiple of their denominators, and may look for ever.
        """
        config = self._config
        standard = primitive(crystal, config.symprec)
        return {
            "crystal": standard.to_dict(),
            "magnetic_moments": initial_moments(standard, config.spin),
            "energy_scale": asdict(self.energy_scale),
            "gpaw": {
                "xc": "PBE",
                "cutoff": config.cutoff,
                "kpts": {"density": config.k_density, "gamma": True},
                "smearing": config.smearing,
                "convergence": {"energy": config.energy_tolerance},
                "maxiter": config.maxiter,
                "symmetry": {"symmorphic": standard is crystal},
                "setups": config.setups,
            },
            "relax": {
                name: getattr(config, name) for name in sorted(RelaxConfig.model_fields) if name != "max_seconds"
            },
        }

    def _killed(self, outcome: Outcome, folder: Path) -> Evaluation:
        """Return the failure of a calculation that ended without a result."""
        if outcome.timed_out:
            kind = FailureKind.TIMEOUT
            message = f"killed after max_seconds={self._config.max_seconds:g} s; raise it to go on"
        elif outcome.returncode == -signal.SIGKILL:
            kind = FailureKind.OUT_OF_MEMORY
            message = "killed by the system, which it does when memory runs out; run fewer calculations at once"
        elif outcome.returncode < 0:
            kind = FailureKind.CRASHED
            message = f"ended by {signal.Signals(-outcome.returncode).name}"
        else:
            kind = FailureKind.CRASHED
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            message = lines[-1] if lines else f"ended with code {outcome.returncode} and an empty log"
        return Evaluation(self.energy_scale, seconds=outcome.seconds, failure=Failure(kind, message))


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


def initial_moments(crystal: Crystal, spin: Literal["auto", "on", "off"]) -> list[float] | None:
    """Return the magnetic moments in µB that a calculation starts from; None for one without spin polarisation.

    With ``auto``, crystals with an element of :data:`INITIAL_MOMENTS` are polarised, and so is elemental oxygen, whose
    molecule is a triplet. With ``on``, elements that are not in the table start from 1 µB.
    """
    from ase.data import chemical_symbols

    symbols = [chemical_symbols[z] for z in crystal.atomic_numbers]
    if spin == "off":
        return None
    if spin == "on" or set(symbols) == {"O"}:
        return [INITIAL_MOMENTS.get(symbol, 1.0) for symbol in symbols]
    if INITIAL_MOMENTS.keys().isdisjoint(symbols):
        return None
    return [INITIAL_MOMENTS.get(symbol, 0.0) for symbol in symbols]


def _elements(setup_paths: Sequence[str | Path]) -> frozenset[int]:
    """Return the atomic numbers of the elements that have a PBE setup."""
    from ase.data import atomic_numbers

    symbols = {file.name.split(".")[0] for path in setup_paths for file in Path(path).glob("*.PBE*")}
    return frozenset(atomic_numbers[symbol] for symbol in symbols if symbol in atomic_numbers)


def _read(result: Path) -> Evaluation:
    return Evaluation.from_dict(json.loads(result.read_text(encoding="utf-8")))


def _locate(failure: Failure, folder: Path) -> Failure:
    """Return `failure` with the folder it left and the command that shows more."""
    message = f"{failure.message}; see `tail {folder}/*.txt`"
    return replace(failure, message=message, folder=str(folder))
