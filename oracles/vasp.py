"""VASP with the inputs of the Materials Project, run and repaired by custodian; VASP itself needs a licence."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.protocols import PluginConfig
from discovery.types import EnergyScale
from oracles.dft import primitive
from oracles.external import ExternalOracle


class VASPOracle(ExternalOracle):
    """PBE and PBE+U energies from VASP as the Materials Project computes them, corrected by its 2020 scheme.

    Inputs are those of pymatgen's ``MPRelaxSet`` (two relaxations, the second from the end of the first) and
    ``MPStaticSet`` (Jain et al., Comput. Mater. Sci. 50, 2295, 2011): cutoff, k-points, smearing, spin and U are theirs
    and no options. Corrections (Wang et al., Sci. Rep. 11, 15496, 2021) are applied to the uncorrected energy of
    the static calculation and listed in each evaluation.

    Each stage has a folder of its own; a stage that is finished is not repeated.
    """

    worker = "oracles.vasp_worker"

    class Config(PluginConfig):
        """Settings of the VASP oracle."""

        command: str = Field("vasp_std", min_length=1, description="Program, such as `mpirun -n 16 vasp_std`.")
        relax: bool = Field(True, description="Relax atoms and cell; false computes the crystal as it is given.")
        max_seconds: float = Field(
            86400.0, gt=0, description="Wall time after which a calculation is killed with all its processes, seconds."
        )
        max_errors: int = Field(5, ge=0, description="Errors that custodian may repair in one stage.")
        min_distance: float = Field(
            0.5,
            ge=0,
            lt=1,
            description="Closest approach of two atoms, as a fraction of the sum of their covalent radii.",
        )
        symprec: float | None = Field(
            0.02,
            gt=0,
            le=0.2,
            description="Tolerance of the reduction to the primitive cell, Å; null computes the cell as given.",
        )

    def __init__(self, config: Config) -> None:
        from ase.data import atomic_numbers
        from pymatgen.core import SETTINGS
        from pymatgen.io.vasp.sets import MPRelaxSet, MPStaticSet

        if find_spec("custodian") is None:
            raise MissingDependencyError("VASP is run by custodian; `pip install 'discovery-engine[vasp]'`")
        program = shlex.split(config.command)[-1]
        if shutil.which(program) is None:
            raise MissingDependencyError(f"the program {program!r} is not there; set `command` to how VASP is started")
        if not SETTINGS.get("PMG_VASP_PSP_DIR"):
            raise MissingDependencyError(
                "pymatgen does not know where VASP's potentials are; `pmg config --add PMG_VASP_PSP_DIR FOLDER`"
            )
        self._config = config
        sets = json.dumps([MPRelaxSet.CONFIG, MPStaticSet.CONFIG], sort_keys=True, default=str)
        scale = EnergyScale(
            code="vasp",
            version="5.4 or 6",
            functional="PBE+U",
            potentials=f"PAW {MPRelaxSet.CONFIG['POTCAR_FUNCTIONAL']} as in MPRelaxSet",
            settings=f"MPRelaxSet and MPStaticSet {hashlib.sha256(sets.encode()).hexdigest()[:8]}",
            corrections="MP2020",
        )
        super().__init__(config, scale, frozenset(atomic_numbers[element] for element in MPRelaxSet.CONFIG["POTCAR"]))

    def _input(self, crystal: Crystal) -> dict[str, Any]:
        config = self._config
        return {
            "crystal": primitive(crystal, config.symprec).to_dict(),
            "energy_scale": asdict(self.energy_scale),
            "command": shlex.split(config.command),
            "relax": config.relax,
            "max_errors": config.max_errors,
        }


def write_stage(folder: Path, crystal: Crystal, *, relax: bool) -> None:
    """Write the input files of one stage."""
    from pymatgen.io.vasp.sets import MPRelaxSet, MPStaticSet

    (MPRelaxSet if relax else MPStaticSet)(crystal.to_structure()).write_input(str(folder))
