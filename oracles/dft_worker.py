"""Computes one crystal with a DFT code in a process of its own: ``python -m oracles.dft_worker FOLDER``.

Reads ``input.json`` and writes ``result.json`` (an :class:`~discovery.types.Evaluation`) in FOLDER, where the code
leaves its own files. A calculation that fails for a scientific reason has a result too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from discovery.crystal import Crystal
from discovery.files import write_atomically
from discovery.types import EnergyScale, Evaluation, FailureKind
from oracles.dft import DFTOracle, Stage
from oracles.relax import RelaxConfig, evaluate


def main(folder: Path) -> None:
    """Compute the crystal described in `folder`."""
    data = json.loads((folder / "input.json").read_text(encoding="utf-8"))
    module, _, name = data["program"].partition(":")
    start = time.perf_counter()
    evaluation = _compute(
        getattr(import_module(module), name),
        Crystal.from_dict(data["crystal"]),
        data["settings"],
        EnergyScale(**data["energy_scale"]),
        RelaxConfig.model_validate(data["relax"]),
        folder,
    )
    evaluation = replace(evaluation, seconds=time.perf_counter() - start)
    write_atomically(folder / "result.json", json.dumps(evaluation.to_dict()))


def _compute(
    program: type[DFTOracle],
    crystal: Crystal,
    settings: Mapping[str, Any],
    energy_scale: EnergyScale,
    config: RelaxConfig,
    folder: Path,
) -> Evaluation:
    """Relax `crystal` if asked to, then compute it on plane waves and k-points of its own cell."""
    details: dict[str, Any] = {}

    def calculate(crystal: Crystal, stage: Stage, config: RelaxConfig) -> Evaluation:
        calculator = program.calculator(settings, crystal, folder, stage)
        evaluation = evaluate(
            crystal,
            calculator,
            energy_scale=energy_scale,
            supported=range(1, 119),
            config=config,
            magnetic_moments=settings["magnetic_moments"],
        )
        details.update(evaluation.details)
        if evaluation.ok:
            details["electronic"] = program.describe(calculator, folder)
        failure = evaluation.failure
        if failure is not None and failure.kind is FailureKind.CRASHED:
            evaluation = replace(evaluation, failure=program.recognise(failure, folder, stage))
        return evaluation

    if config.relax:
        relaxed = calculate(crystal, "relax", config)
        if relaxed.crystal is None:
            return relaxed
        crystal = relaxed.crystal
    final = calculate(crystal, "static", config.model_copy(update={"relax": False}))
    return replace(final, details=details)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
