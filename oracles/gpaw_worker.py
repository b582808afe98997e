"""Computes one crystal with GPAW in a process of its own: ``python -m oracles.gpaw_worker FOLDER``.

Reads ``input.json`` and writes ``result.json`` (an :class:`~discovery.types.Evaluation`), ``relax.txt`` and
``static.txt`` (GPAW's logs) in FOLDER. A calculation that fails for a scientific reason has a result too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from discovery.crystal import Crystal
from discovery.files import write_atomically
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind
from oracles.relax import RelaxConfig, evaluate


def main(folder: Path) -> None:
    """Compute the crystal described in `folder`."""
    data = json.loads((folder / "input.json").read_text(encoding="utf-8"))
    start = time.perf_counter()
    evaluation = _compute(
        Crystal.from_dict(data["crystal"]),
        data["gpaw"],
        data["magnetic_moments"],
        EnergyScale(**data["energy_scale"]),
        RelaxConfig.model_validate(data["relax"]),
        folder,
    )
    evaluation = replace(evaluation, seconds=time.perf_counter() - start)
    write_atomically(folder / "result.json", json.dumps(evaluation.to_dict()))


def _compute(
    crystal: Crystal,
    parameters: Mapping[str, Any],
    magnetic_moments: list[float] | None,
    energy_scale: EnergyScale,
    config: RelaxConfig,
    folder: Path,
) -> Evaluation:
    """Relax `crystal` if asked to, then compute it on a basis of its own cell."""
    details: dict[str, Any] = {}

    def calculate(crystal: Crystal, log: str, config: RelaxConfig) -> Evaluation:
        calculator = _calculator(parameters, folder / log)
        evaluation = evaluate(
            crystal,
            calculator,
            energy_scale=energy_scale,
            supported=range(1, 119),
            config=config,
            optimizer="BFGS",
            magnetic_moments=magnetic_moments,
        )
        details.update(evaluation.details)
        if evaluation.ok:
            details["electronic"] = _describe(calculator)
        failure = evaluation.failure
        if failure is not None and failure.kind is FailureKind.CRASHED:
            evaluation = replace(evaluation, failure=_recognise(failure, crystal, log))
        return evaluation

    if config.relax:
        relaxed = calculate(crystal, "relax.txt", config)
        if relaxed.crystal is None:
            return relaxed
        crystal = relaxed.crystal
    final = calculate(crystal, "static.txt", config.model_copy(update={"relax": False}))
    return replace(final, details=details)


def _calculator(parameters: Mapping[str, Any], log: Path) -> Any:
    """Return a GPAW calculator; `parameters` are JSON values."""
    from gpaw import GPAW, PW, FermiDirac

    settings = dict(parameters)
    return GPAW(
        mode=PW(settings.pop("cutoff")), occupations=FermiDirac(settings.pop("smearing")), txt=str(log), **settings
    )


def _describe(calculator: Any) -> dict[str, Any]:
    """Return what is worth keeping of a finished calculation, as JSON values."""
    atoms = calculator.get_atoms()
    return {
        "k_points": len(calculator.get_bz_k_points()),
        "irreducible_k_points": len(calculator.get_ibz_k_points()),
        "fermi_level": float(calculator.get_fermi_level()),
        "magnetic_moment": float(atoms.get_magnetic_moment()),
        "setups": {setup.symbol: setup.fingerprint for setup in calculator.setups},
    }


def _recognise(failure: Failure, crystal: Crystal, log: str) -> Failure:
    """Return what GPAW's exception means."""
    if "KohnShamConvergenceError" in failure.message:
        message = f"the self-consistent field did not converge (see {log}); raise maxiter or smearing"
        return Failure(FailureKind.NOT_CONVERGED, message)
    if failure.message.startswith("FileNotFoundError"):
        message = f"a setup for {crystal.formula} is missing: {failure.message}"
        return Failure(FailureKind.INVALID_INPUT, message)
    return failure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
