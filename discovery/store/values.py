"""Rows of the tables as the values that the rest of the code works with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError
from discovery.hull import Phase
from discovery.store.tables import CandidateRow, EnergyScaleRow, EvaluationRow, PhaseRow
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind, Stability, Verdict


def scale_of(row: EnergyScaleRow) -> EnergyScale:
    """Return the energy scale."""
    return EnergyScale(row.code, row.version, row.functional, row.potentials, row.settings, row.corrections)


def require_scale(phase_id: str, energy_scale_id: str, scale: EnergyScale) -> None:
    """Refuse a phase that was stored with another energy scale than its hull's `scale`.

    Raises
    ------
    EnergyScaleError
        If it was, which no campaign does.
    """
    if energy_scale_id != scale.id:
        raise EnergyScaleError(
            f"phase {phase_id} is stored with the energy scale {energy_scale_id}, but its hull has {scale.id}; not "
            "its campaign has changed the database: take a copy from before, or launch a new campaign"
        )


def phase_of(row: PhaseRow, scale: EnergyScale) -> Phase:
    """Return the phase, which has to be on `scale`."""
    require_scale(row.id, row.energy_scale_id, scale)
    return Phase(
        id=row.id,
        composition=row.composition,
        energy=row.energy,
        energy_scale=scale,
        crystal=Crystal.from_dict(row.crystal) if row.crystal is not None else None,
        origin="discovered" if row.origin == "discovered" else "reference",
    )


def evaluation_of(row: EvaluationRow, scales: Mapping[str, EnergyScale]) -> Evaluation:
    """Return the evaluation; `scales` holds the energy scales by id."""
    failure = None
    if row.failure_kind is not None:
        failure = Failure(FailureKind(row.failure_kind), row.failure_message or "", row.failure_folder)
    return Evaluation(
        energy_scale=scales[row.energy_scale_id],
        crystal=Crystal.from_dict(row.crystal) if row.crystal is not None else None,
        energy=row.energy,
        forces=np.array(row.forces) if row.forces is not None else None,
        stress=np.array(row.stress) if row.stress is not None else None,
        converged=row.converged,
        corrections=row.corrections,
        seconds=row.seconds,
        cores=row.cores,
        details=row.details,
        failure=failure,
    )


def numbers_of(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return numbers by name; what JSON cannot hold was stored as null and is NaN again."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def verdict_of(row: CandidateRow) -> Verdict | None:
    """Return the verdict, or None while there is none."""
    if row.stability is None:
        return None
    return Verdict(
        stability=Stability(row.stability),
        e_above_hull=row.e_above_hull or 0.0,
        decomposition_energy=row.decomposition_energy or 0.0,
        formation_energy_per_atom=row.formation_energy_per_atom or 0.0,
        decomposition=row.decomposition or {},
        threshold=row.threshold or 0.0,
        metastable_threshold=row.metastable_threshold or 0.0,
        energy_scale=row.energy_scale_id or "",
        hull_version=row.hull_version or 0,
    )
