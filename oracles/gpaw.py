"""GPAW: plane-wave PAW density functional theory, free of licences; each crystal in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import EnergyScale, Failure, FailureKind
from oracles.dft import DFTConfig, DFTOracle, Stage, hubbard_shell, k_mesh


class GPAWOracle(DFTOracle):
    """PBE energies from GPAW in a plane-wave basis (Mortensen et al., J. Chem. Phys. 160, 092503, 2024)."""

    program = "oracles.gpaw:GPAWOracle"

    class Config(DFTConfig):
        """Settings of the GPAW oracle."""

        energy_tolerance: float = Field(
            1e-5, gt=0, le=1e-2, description="Change of energy at which the SCF ends, eV per valence electron."
        )
        setups: dict[str, str] = Field(
            default_factory=dict,
            description="GPAW setup names by element where they differ from the default, for example {Ti: ':d,4.0'}.",
        )

    def __init__(self, config: Config) -> None:
        try:
            from gpaw import __version__, setup_paths
        except ImportError as error:
            raise MissingDependencyError(
                "GPAW is not installed; run `make setup`, or `pip install 'discovery-engine[gpaw]'` with a C++ compiler"
            ) from error
        setups = json.dumps(config.setups, sort_keys=True) if config.setups else "default"
        scale = EnergyScale(
            code="gpaw",
            version=__version__,
            functional="PBE+U" if config.hubbard_u else "PBE",
            potentials=f"gpaw-data {version('gpaw-data')}",
            settings=f"{config.describe()}, SCF {config.energy_tolerance:g} eV, setups {setups}",
        )
        super().__init__(config, scale, _elements(setup_paths))

    @staticmethod
    def calculator(settings: Mapping[str, Any], crystal: Crystal, folder: Path, stage: Stage) -> Any:
        """Return a GPAW calculator.

        Symmetries with fractional translations are used only with the origin of a standardised cell, where they are
        simple fractions: GPAW looks for a grid that is a multiple of their denominators, and may look for ever.
        """
        from gpaw import GPAW, PW, FermiDirac

        hubbard = {element: f":{hubbard_shell(element)},{u},0" for element, u in settings["hubbard_u"].items()}
        return GPAW(
            mode=PW(settings["cutoff"]),
            xc="PBE",
            kpts={"size": k_mesh(crystal, settings["k_density"]), "gamma": True},
            occupations=FermiDirac(settings["smearing"]),
            convergence={"energy": settings["energy_tolerance"]},
            maxiter=settings["maxiter"],
            symmetry={"symmorphic": not settings["standardised"]},
            setups=hubbard | settings["setups"],
            txt=str(folder / f"{stage}.txt"),
        )

    @staticmethod
    def describe(calculator: Any, folder: Path) -> dict[str, Any]:  # noqa: ARG004
        """Return k-points, Fermi level, magnetic moment and the fingerprints of the setups."""
        return {
            "k_points": len(calculator.get_bz_k_points()),
            "irreducible_k_points": len(calculator.get_ibz_k_points()),
            "fermi_level": float(calculator.get_fermi_level()),
            "magnetic_moment": float(calculator.get_atoms().get_magnetic_moment()),
            "setups": {setup.symbol: setup.fingerprint for setup in calculator.setups},
        }

    @staticmethod
    def recognise(failure: Failure, folder: Path, stage: Stage) -> Failure:  # noqa: ARG004
        """Return what GPAW's exception means."""
        if "KohnShamConvergenceError" in failure.message:
            message = f"the self-consistent field did not converge (see {stage}.txt); raise maxiter or smearing"
            return Failure(FailureKind.NOT_CONVERGED, message)
        if failure.message.startswith("FileNotFoundError"):
            return Failure(FailureKind.INVALID_INPUT, f"a setup is missing: {failure.message}")
        return failure


def _elements(setup_paths: Sequence[str | Path]) -> frozenset[int]:
    """Return the atomic numbers of the elements that have a PBE setup."""
    from ase.data import atomic_numbers

    symbols = {file.name.split(".")[0] for path in setup_paths for file in Path(path).glob("*.PBE*")}
    return frozenset(atomic_numbers[symbol] for symbol in symbols if symbol in atomic_numbers)
