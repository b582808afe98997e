"""Computes one crystal with VASP in a process of its own: ``python -m oracles.vasp_worker FOLDER``.

Reads ``input.json`` and writes ``result.json`` (an :class:`~discovery.types.Evaluation`) in FOLDER; each stage has a
subfolder ``relax-1``, ``relax-2``, ``static``, with ``finished.json`` once it is done.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.units import GPa

from discovery.crystal import Crystal
from discovery.files import write_atomically
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind
from oracles.vasp import write_stage

KILOBAR = 0.1 * GPa
"""1 kbar in eV/Å³."""


def main(folder: Path) -> None:
    """Compute the crystal described in `folder`."""
    data = json.loads((folder / "input.json").read_text(encoding="utf-8"))
    scale = EnergyScale(**data["energy_scale"])
    start = time.perf_counter()
    evaluation = replace(_compute(folder, data, scale), seconds=time.perf_counter() - start)
    write_atomically(folder / "result.json", json.dumps(evaluation.to_dict()))


def _compute(folder: Path, data: Mapping[str, Any], scale: EnergyScale) -> Evaluation:
    crystal = Crystal.from_dict(data["crystal"])
    for stage in ("relax-1", "relax-2", "static") if data["relax"] else ("static",):
        relax = stage != "static"
        failure = _run_stage(folder / stage, crystal, relax=relax, command=data["command"], errors=data["max_errors"])
        if failure is not None:
            return Evaluation(scale, failure=failure)
        crystal = Crystal.from_structure(_vasprun(folder / stage).final_structure)
    return read(folder / "static", scale)


def _run_stage(folder: Path, crystal: Crystal, *, relax: bool, command: Sequence[str], errors: int) -> Failure | None:
    """Run VASP until it converges or custodian knows no more; a stage that is finished is left as it is."""
    from custodian import Custodian
    from custodian.custodian import CustodianError
    from custodian.vasp.handlers import (
        MeshSymmetryErrorHandler,
        NonConvergingErrorHandler,
        PositiveEnergyErrorHandler,
        PotimErrorHandler,
        StdErrHandler,
        UnconvergedErrorHandler,
        VaspErrorHandler,
    )
    from custodian.vasp.jobs import VaspJob
    from custodian.vasp.validators import VaspFilesValidator, VasprunXMLValidator

    if (folder / "finished.json").exists():
        return None
    crystal = _last_step(folder) or crystal
    shutil.rmtree(folder, ignore_errors=True)
    write_stage(folder, crystal, relax=relax)
    leash = [sys.executable, "-m", "oracles.leash", str(os.getpid())]
    handlers = (
        VaspErrorHandler,
        MeshSymmetryErrorHandler,
        UnconvergedErrorHandler,
        NonConvergingErrorHandler,
        PotimErrorHandler,
        PositiveEnergyErrorHandler,
        StdErrHandler,
    )
    custodian = Custodian(
        [handler() for handler in handlers],
        [VaspJob([*leash, *command], auto_gamma=False)],
        validators=[VasprunXMLValidator(), VaspFilesValidator()],
        max_errors=errors,
        polling_time_step=1,
        directory=str(folder),
    )
    try:
        repairs = custodian.run()
    except CustodianError as error:
        repaired = [str(repair["handler"]) for job in custodian.run_log for repair in job["corrections"]]
        unconverged = any("onverg" in handler for handler in repaired[-1:])
        kind = FailureKind.NOT_CONVERGED if unconverged else FailureKind.CRASHED
        return Failure(
            kind, f"custodian gave {folder.name} up: {str(error).strip()} (see {folder.name}/custodian.json)"
        )
    run = _vasprun(folder)
    if not (run.converged if relax else run.converged_electronic):
        return Failure(FailureKind.NOT_CONVERGED, f"{folder.name} ended without convergence")
    write_atomically(folder / "finished.json", json.dumps({"repairs": repairs}, default=str))
    return None


def _last_step(folder: Path) -> Crystal | None:
    """Return how far an interrupted relaxation came."""
    from pymatgen.core import Structure

    try:
        return Crystal.from_structure(Structure.from_file(folder / "CONTCAR"))
    except (OSError, ValueError, IndexError):
        return None


def _vasprun(folder: Path) -> Any:
    from pymatgen.io.vasp.outputs import Vasprun

    return Vasprun(folder / "vasprun.xml", parse_dos=False, parse_eigen=False, parse_potcar_file=False)


def read(folder: Path, scale: EnergyScale) -> Evaluation:
    """Return the evaluation that a finished calculation amounts to, corrected once from its uncorrected energy.

    Parameters
    ----------
    folder
        Has ``vasprun.xml``.
    scale
        Scale of the corrected energies.
    """
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    run = _vasprun(folder)
    entry = run.get_computed_entry(inc_structure=True)
    entry.parameters["run_type"] = entry.parameters["run_type"].replace("PBE", "GGA")  # as VASP 6 calls what 5 left out
    uncorrected = float(entry.uncorrected_energy)
    corrected = MaterialsProject2020Compatibility().process_entry(entry, inplace=False)
    if corrected is None:
        message = "its settings are not those of the Materials Project, so that MP2020 corrections do not apply"
        return Evaluation(scale, failure=Failure(FailureKind.CRASHED, message))
    last = run.ionic_steps[-1]
    return Evaluation(
        scale,
        crystal=Crystal.from_structure(run.final_structure),
        energy=float(corrected.energy),
        forces=np.array(last["forces"], dtype=float),
        stress=-KILOBAR * np.array(last["stress"], dtype=float),
        converged=True,
        corrections={adjustment.name: float(adjustment.value) for adjustment in corrected.energy_adjustments},
        details={
            "uncorrected_energy": uncorrected,
            "run_type": run.run_type,
            "hubbard_u": run.hubbards,
            "potentials": run.potcar_symbols,
            "version": run.vasp_version,
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
